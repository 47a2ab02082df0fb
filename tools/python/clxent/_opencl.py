# SPDX-License-Identifier: MIT
"""pyopencl Arrays: plans that are enqueued on the caller's queue. pyopencl is used only where the caller imported it."""

import functools
import sys
import threading
from ctypes import byref, c_void_p
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

import numpy as np

from . import _library
from ._problem import Problem


def is_array(value: Any) -> bool:
    module = sys.modules.get("pyopencl.array")
    return module is not None and isinstance(value, module.Array)


class _Compiled:
    """A plan of the library with a workspace for each queue."""

    MOST_QUEUES = 8  # workspaces that are dropped live until their runs end: OpenCL sees to that

    def __init__(self, context: _library.Handle, desc: bytes) -> None:
        self.handle = _library.make_plan(context, _library.Desc.from_buffer_copy(desc))
        self.workspace_size = _library.library.clxent_plan_workspace_size(self.handle)
        self.lock = threading.Lock()
        self._workspaces: Dict[int, Tuple[Any, list]] = {}

    def workspace(self, queue: Any) -> Tuple[Any, list]:
        """The queue's buffer, and the event of the last run that uses it: a queue may run out of order."""
        import pyopencl

        if queue.int_ptr not in self._workspaces:
            if len(self._workspaces) >= self.MOST_QUEUES:
                self._workspaces.clear()
            flags = pyopencl.mem_flags.READ_WRITE
            buffer = pyopencl.Buffer(queue.context, flags, self.workspace_size) if self.workspace_size else None
            self._workspaces[queue.int_ptr] = buffer, []
        return self._workspaces[queue.int_ptr]


# What is kept retains its cl_context: no other can have the same pointer meanwhile.
@functools.lru_cache(maxsize=8)
def _context(context: int, device: int) -> _library.Handle:
    return _library.make_context(_library.library.clxent_context_create, context, device)


@functools.lru_cache(maxsize=64)
def _compiled(context: _library.Handle, desc: bytes) -> _Compiled:
    return _Compiled(context, desc)


class Plan:
    """cross_entropy() in a loop over pyopencl Arrays of one shape: everything slow happens here.

    logits, targets, weight, row_weights  Arrays of the shapes and dtypes that every run has; those not given are not
                                          part of the plan
    outputs                               what a run returns: "loss" (with reduction "none" "losses"), "gradient" and
                                          the names of outputs of cross_entropy(). targets may be None where they
                                          depend on the logits alone
    queue                                 of the context and device; default is that of logits
    options                               those of cross_entropy(), from ignore_index to axis; gradient_dtype

    strategy (of the library, for people) and workspace_size (bytes for each queue) are attributes.
    """

    def __init__(
        self,
        logits: Any,
        targets: Any = None,
        *,
        outputs: Iterable[str] = ("loss", "gradient"),
        weight: Any = None,
        row_weights: Any = None,
        denominator: Any = None,
        grad_output: Any = None,
        queue: Any = None,
        **options: Any,
    ) -> None:
        given = {"weight": weight, "row_weights": row_weights}
        given = {name: array for name, array in given.items() if array is not None}
        for name, array in (("logits", logits), ("targets", targets)):
            if not is_array(array) and not (name == "targets" and array is None):
                raise TypeError("%s is %s: takes a pyopencl.array.Array" % (name, type(array).__name__))
        self._problem = Problem(logits, targets, outputs, given, **options)
        self._targets = None if targets is None else (tuple(targets.shape), targets.dtype)
        self._given = set(given)
        queue = _queue(logits, queue)
        context = _context(queue.context.int_ptr, queue.device.int_ptr)
        self._compiled = _compiled(context, bytes(self._problem.desc))
        self.strategy = _library.library.clxent_plan_strategy(self._compiled.handle).decode()
        self.workspace_size = self._compiled.workspace_size

    def __call__(
        self,
        logits: Any,
        targets: Any = None,
        *,
        weight: Any = None,
        row_weights: Any = None,
        denominator: Any = None,
        grad_output: Any = None,
        out: Optional[Mapping[str, Any]] = None,
        queue: Any = None,
        wait_for: Optional[Iterable[Any]] = None,
    ) -> Dict[str, Any]:
        """Enqueues one run and returns its results by name: Arrays of out, or new ones. It waits for wait_for, for
        the events of the Arrays, and for the run before it on the same queue."""
        import pyopencl
        import pyopencl.array

        problem, queue, out = self._problem, _queue(logits, queue), out or {}
        inputs = {"weight": weight, "row_weights": row_weights, "denominator": denominator, "grad_output": grad_output}
        problem.check_names("out", out)
        arrays = {"logits": _checked("logits", logits, problem.shape, problem.dtype)}
        if self._targets is not None:
            arrays["targets"] = _checked("targets", targets, *self._targets)
        for name, array in inputs.items():
            field, shape = problem.inputs[name]
            if array is not None:
                arrays[field] = _checked(name, array, shape, problem.real)
            if name in ("weight", "row_weights") and (array is not None) != (name in self._given):
                wanted = "takes one" if name in self._given else "takes None"
                raise ValueError("%s is %s: %s, as the plan was made" % (name, type(array).__name__, wanted))
        results = {}
        for name, (shape, dtype) in problem.results.items():
            if name in out:
                results[name] = _checked("out[%r]" % name, out[name], shape, dtype)
            else:
                results[name] = pyopencl.array.empty(queue, shape, dtype, allocator=logits.allocator)

        args = _library.new(_library.library.clxent_args_init, _library.Args)
        events = list(wait_for or ())
        for field, array in (*arrays.items(), *results.items()):
            setattr(args, field, _library.Array(_memory(field, array), array.offset))
            events += array.events
        event: Any = c_void_p()
        with self._compiled.lock:
            workspace, last = self._compiled.workspace(queue)
            if workspace is not None:
                args.workspace.data = workspace.int_ptr
            events += last
            wait = (c_void_p * len(events))(*[one.int_ptr for one in events])
            _library.check(
                _library.library.clxent_enqueue,
                self._compiled.handle,
                queue.int_ptr,
                byref(args),
                len(events),
                wait if events else None,
                byref(event),
            )
            done = pyopencl.Event.from_int_ptr(event.value, retain=False)
            last[:] = [done]
        for array in results.values():
            array.add_event(done)
        return results


def _queue(logits: Any, queue: Any) -> Any:
    queue = logits.queue if queue is None else queue
    if queue is None:
        raise ValueError("queue is None: takes a pyopencl.CommandQueue, as logits has none")
    return queue


def _checked(name: str, array: Any, shape: Tuple[int, ...], dtype: np.dtype) -> Any:
    if not is_array(array):
        raise TypeError("%s is %s: takes a pyopencl.array.Array" % (name, type(array).__name__))
    if tuple(array.shape) != shape or array.dtype != dtype:
        got = array.dtype, tuple(array.shape), dtype, shape
        raise ValueError("%s is %s of shape %s: takes %s of shape %s" % (name, *got))
    if not array.flags.c_contiguous:
        raise ValueError("%s is not C-contiguous: takes an Array that is" % name)
    return array


def _memory(name: str, array: Any) -> Optional[int]:
    memory = array.base_data
    if memory is None:
        return None
    if not hasattr(memory, "int_ptr"):
        raise TypeError("%s lies in %s: takes a buffer" % (name, type(memory).__name__))
    return memory.int_ptr
