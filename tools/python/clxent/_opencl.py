# SPDX-License-Identifier: MIT
"""pyopencl Arrays: plans that are enqueued on the caller's queue. pyopencl is used only where the caller imported it."""

import functools
import math
import sys
import threading
from ctypes import byref, c_void_p
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np

from . import _library
from ._problem import GRADIENTS, Problem, gradients

# The optional inputs that are a part of a plan: its runs have them, or none has.
PLANNED = ("weight", "row_weights", "grad_entropy", "grad_lse", "linear_weight", "linear_bias")
WHOLE, FIRST, MIDDLE, LAST = range(4)  # of clxent_args.part


def is_array(value: Any) -> bool:
    module = sys.modules.get("pyopencl.array")
    return module is not None and isinstance(value, module.Array)


class _Workspaces:
    """A workspace for each queue, of which runs use one at a time."""

    MOST_QUEUES = 8  # workspaces that are dropped live until their runs end: OpenCL sees to that

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self._of_queues: Dict[int, Tuple[Any, List[Any]]] = {}

    def of(self, queue: Any) -> Tuple[Any, List[Any]]:
        """The queue's buffer, and the event of the last run that uses it: a queue may run out of order."""
        import pyopencl

        if queue.int_ptr not in self._of_queues:
            if len(self._of_queues) >= self.MOST_QUEUES:
                self._of_queues.clear()
            flags = pyopencl.mem_flags.READ_WRITE
            buffer = pyopencl.Buffer(queue.context, flags, self.size) if self.size else None
            self._of_queues[queue.int_ptr] = buffer, []
        return self._of_queues[queue.int_ptr]


class _Compiled:
    """A plan of the library, kept for others of the same desc."""

    # Bytes. A larger workspace, such as that of linear cross-entropy, would be lost to the caller for as long as the plan
    # is kept: it belongs to one Plan.
    MOST_SHARED = 1 << 24

    def __init__(self, context: _library.Handle, desc: bytes) -> None:
        self.handle = _library.make_plan(context, _library.Desc.from_buffer_copy(desc))
        self.workspace_size = _library.library.clxent_plan_workspace_size(self.handle)
        self._shared = _Workspaces(self.workspace_size)

    def workspaces(self) -> _Workspaces:
        return self._shared if self.workspace_size <= self.MOST_SHARED else _Workspaces(self.workspace_size)


# What is kept retains its cl_context: no other can have the same pointer meanwhile.
@functools.lru_cache(maxsize=8)
def _context(context: int, device: int) -> _library.Handle:
    return _library.make_context(_library.library.clxent_context_create, context, device)


@functools.lru_cache(maxsize=64)
def _compiled(context: _library.Handle, desc: bytes) -> _Compiled:
    return _Compiled(context, desc)


class Plan:
    """cross_entropy() or linear_cross_entropy() in a loop over pyopencl Arrays of one shape: everything slow happens here.

    logits, targets             Arrays of the shapes and dtypes that every run has. With linear_weight logits are the
                                hidden states of linear_cross_entropy()
    linear_weight, linear_bias, likewise; those not given are not part of the plan
    weight, row_weights,
    grad_entropy, grad_lse
    outputs                     what a run returns: "loss" (with reduction "none" "losses"), "gradient" or those of hidden
                                states, weight and bias, and the names of outputs of the function. targets may be None where
                                they depend on the logits alone. Default: loss and gradients
    batch                       length of the first axis of the batch that parts() computes; logits are one of its parts,
                                and so are probabilities as targets
    queue                       of the context and device; default is that of logits
    options                     those of the function, from ignore_index to axis or workspace_limit; gradient_dtype, or
                                hidden_gradient_dtype, weight_gradient_dtype, bias_gradient_dtype

    strategy (of the library, for people) and workspace_size (bytes for each queue) are attributes.
    """

    def __init__(
        self,
        logits: Any,
        targets: Any = None,
        *,
        outputs: Optional[Iterable[str]] = None,
        weight: Any = None,
        row_weights: Any = None,
        grad_entropy: Any = None,
        grad_lse: Any = None,
        linear_weight: Any = None,
        linear_bias: Any = None,
        batch: Optional[int] = None,
        queue: Any = None,
        **options: Any,
    ) -> None:
        planned = dict(zip(PLANNED, (weight, row_weights, grad_entropy, grad_lse, linear_weight, linear_bias)))
        given = {name: array for name, array in planned.items() if array is not None}
        x = "logits" if linear_weight is None else "hidden"
        for name, array in ((x, logits), ("targets", targets), ("linear_weight", linear_weight)):
            if not is_array(array) and not (name != x and array is None):
                raise TypeError("%s is %s: takes a pyopencl.array.Array" % (name, type(array).__name__))
        if linear_weight is None and linear_bias is not None:
            raise ValueError("linear_bias is %s: takes None without linear_weight" % type(linear_bias).__name__)
        if outputs is None:
            losses = "losses" if options.get("reduction") == "none" else "loss"
            outputs = [losses, *gradients(linear_weight, linear_bias)]
        self._problem = Problem(logits, targets, outputs, given, linear_weight=linear_weight, batch=batch, **options)
        self._target_dtype: Any = None if targets is None else targets.dtype
        self._given = set(given)
        queue = _queue(queue, logits)
        context = _context(queue.context.int_ptr, queue.device.int_ptr)
        self._compiled = _compiled(context, bytes(self._problem.desc))
        self.strategy = _library.library.clxent_plan_strategy(self._compiled.handle).decode()
        self.workspace_size = self._compiled.workspace_size
        self._workspaces = self._compiled.workspaces()

    def __call__(
        self,
        logits: Any,
        targets: Any = None,
        *,
        weight: Any = None,
        row_weights: Any = None,
        denominator: Any = None,
        grad_output: Any = None,
        grad_entropy: Any = None,
        grad_lse: Any = None,
        linear_weight: Any = None,
        linear_bias: Any = None,
        out: Optional[Mapping[str, Any]] = None,
        queue: Any = None,
        wait_for: Optional[Iterable[Any]] = None,
    ) -> Dict[str, Any]:
        """Enqueues one run and returns its results by name: Arrays of out, or new ones. It waits for wait_for, for
        the events of the Arrays, and for the run before it on the same queue."""
        problem, queue, out = self._problem, _queue(queue, logits), out or {}
        problem.check_names("out", out)
        arrays = {problem.x: _checked(problem.x, logits, problem.shape, problem.dtype)}
        if self._target_dtype is not None:
            arrays["targets"] = _checked("targets", targets, problem.targets, self._target_dtype)
        planned = weight, row_weights, grad_entropy, grad_lse, linear_weight, linear_bias
        arrays.update(self._inputs(planned, denominator, grad_output))
        results = self._results(problem.results, problem.shape, out, queue, logits.allocator)
        args = _library.new(_library.library.clxent_args_init, _library.Args)
        events = list(wait_for or ()) + _set(args, {**arrays, **results})
        with self._workspaces.lock:
            workspace, last = self._workspaces.of(queue)
            done = self._enqueue(_library.library.clxent_enqueue, queue, args, workspace, events + last)
            last[:] = [done]
        for array in results.values():
            array.add_event(done)
        return results

    def parts(
        self,
        targets: Any = None,
        *,
        weight: Any = None,
        row_weights: Any = None,
        denominator: Any = None,
        grad_output: Any = None,
        grad_entropy: Any = None,
        grad_lse: Any = None,
        linear_weight: Any = None,
        linear_bias: Any = None,
        out: Optional[Mapping[str, Any]] = None,
        queue: Any = None,
        wait_for: Optional[Iterable[Any]] = None,
    ) -> "Parts":
        """A batch whose logits or hidden states come in parts, as those of micro-batches do: call what this returns with each
        of them, in order. All results but weight_gradient and bias_gradient have the bits of one run of the whole batch.

        targets and the other inputs are the whole batch's, and so are the Arrays of out but those in the logits' shape;
        probabilities as targets come with the logits. A mean without a denominator computes that of the batch here."""
        planned = weight, row_weights, grad_entropy, grad_lse, linear_weight, linear_bias
        inputs = self._inputs(planned, denominator, grad_output)
        if self._target_dtype is not None and not self._problem.soft_targets:
            inputs["targets"] = _checked("targets", targets, self._problem.rows, self._target_dtype)
        elif targets is not None:
            raise ValueError("targets is %s: takes None, as it comes with the parts" % type(targets).__name__)
        return Parts(self, inputs, out or {}, _queue(queue, *inputs.values()), wait_for)

    def _inputs(self, planned: Tuple[Any, ...], denominator: Any, grad_output: Any) -> Dict[str, Any]:
        """The optional inputs that are given, by the library's names."""
        found = {}
        given = {**dict(zip(PLANNED, planned)), "denominator": denominator, "grad_output": grad_output}
        for name, array in given.items():
            if array is not None and name in self._problem.inputs:
                field, shape, dtype = self._problem.inputs[name]
                found[field] = _checked(name, array, shape, dtype)
            if name in PLANNED and (array is not None) != (name in self._given):
                wanted = "takes one" if name in self._given else "takes None"
                raise ValueError("%s is %s: %s, as the plan was made" % (name, type(array).__name__, wanted))
        return found

    def _results(
        self, names: Iterable[str], x: Tuple[int, ...], out: Mapping[str, Any], queue: Any, allocator: Any
    ) -> Dict[str, Any]:
        """Arrays for results: those of out, or new ones. x is the shape of a run's logits or hidden states."""
        import pyopencl.array

        found = {}
        for name in names:
            shape, dtype = self._problem.results[name]
            if name in self._problem.of_x:
                shape = x
            if name in out:
                found[name] = _checked("out[%r]" % name, out[name], shape, dtype)
            else:
                found[name] = pyopencl.array.empty(queue, shape, dtype, allocator=allocator)
        return found

    def _enqueue(self, function: Any, queue: Any, args: Any, workspace: Any, events: List[Any]) -> Any:
        """Enqueues args behind events and returns the event of their end."""
        import pyopencl

        if workspace is not None:
            args.workspace.data = workspace.int_ptr
        wait = (c_void_p * len(events))(*[one.int_ptr for one in events])
        event: Any = c_void_p()
        plan, wait_or_none = self._compiled.handle, wait if events else None
        _library.check(function, plan, queue.int_ptr, byref(args), len(events), wait_or_none, byref(event))
        return pyopencl.Event.from_int_ptr(event.value, retain=False)


class Parts:
    """A batch in parts along the first axis of its logits; Plan.parts() makes it. done is the number of the first axis's
    elements that have come."""

    def __init__(self, plan: Plan, inputs: Dict[str, Any], out: Mapping[str, Any], queue: Any, wait_for: Any) -> None:
        import pyopencl
        import pyopencl.array

        problem = plan._problem
        problem.check_names("out", out)
        for name in problem.of_x.intersection(out):
            raise ValueError("out has %r: takes it with each part" % name)
        self.done = 0
        self._plan, self._inputs, self._queue = plan, inputs, queue
        names = [name for name in problem.results if name not in problem.of_x]
        self._results = plan._results(names, (), out, queue, None)
        # Nothing else may use it between the parts.
        size, flags = plan.workspace_size, pyopencl.mem_flags.READ_WRITE
        self._workspace = pyopencl.Buffer(queue.context, flags, size) if size else None
        self._events = list(wait_for or ())
        divides = problem.reduction == "mean" and {"loss", *GRADIENTS}.intersection(problem.results)
        if divides and "denominator" not in inputs:
            made = pyopencl.array.empty(queue, (), problem.real)
            args = _library.new(_library.library.clxent_args_init, _library.Args)
            events = self._events + _set(args, {**inputs, "computed_denominator": made})
            function = _library.library.clxent_enqueue_denominator
            self._events = [plan._enqueue(function, queue, args, self._workspace, events)]
            self._inputs = {**inputs, "denominator": made}

    def __call__(
        self,
        logits: Any,
        targets: Any = None,
        *,
        out: Optional[Mapping[str, Any]] = None,
        wait_for: Optional[Iterable[Any]] = None,
    ) -> Dict[str, Any]:
        """Enqueues the next part and returns the results by name. Those in the logits' shape are the part's, Arrays of out
        or new ones. The others are the batch's, the same Arrays for each part: rows that have not come are undefined, and
        so is what is summed over the rows until the last part."""
        problem, plan, out = self._plan._problem, self._plan, out or {}
        for name in out:
            if name not in problem.of_x:
                taken = problem.x, sorted(problem.of_x)
                raise ValueError("out has %r: takes results in the shape of %s, %s" % (name, *taken))
        count = logits.shape[0] if is_array(logits) and logits.shape else 0
        left = problem.shape[0] - self.done
        if count > left or (count == 0 and problem.shape[0] > 0):
            raise ValueError(
                "%s has %d of the first axis: takes 1 to %d, which are left of the batch" % (problem.x, count, left)
            )
        shape = (count, *problem.shape[1:])
        arrays = {**self._inputs, problem.x: _checked(problem.x, logits, shape, problem.dtype)}
        if problem.soft_targets:
            arrays["targets"] = _checked("targets", targets, (count, *problem.targets[1:]), plan._target_dtype)
        elif targets is not None:
            raise ValueError("targets is %s: takes None, as the batch has them" % type(targets).__name__)
        results = {**self._results}
        results.update(plan._results(sorted(problem.of_x), shape, out, self._queue, logits.allocator))
        args = _library.new(_library.library.clxent_args_init, _library.Args)
        events = self._events + list(wait_for or ()) + _set(args, {**arrays, **results})
        rows = math.prod(problem.rows[1:])
        args.first_row, args.rows, args.total_rows = (n * rows for n in (self.done, count, problem.shape[0]))
        first, last = self.done == 0, count == left
        args.part = WHOLE if first and last else FIRST if first else LAST if last else MIDDLE
        done = plan._enqueue(_library.library.clxent_enqueue, self._queue, args, self._workspace, events)
        self.done += count
        self._events = [done]
        for array in results.values():
            array.add_event(done)
        return {name: results[name] for name in problem.results}


def _set(args: Any, arrays: Mapping[str, Any]) -> List[Any]:
    """Puts arrays into args, and returns the events to wait for."""
    events = []
    for field, array in arrays.items():
        setattr(args, field, _library.Array(_memory(field, array), array.offset))
        events += array.events
    return events


def _queue(queue: Any, *arrays: Any) -> Any:
    for array in arrays:
        queue = array.queue if queue is None else queue
    if queue is None:
        raise ValueError("queue is None: takes a pyopencl.CommandQueue, as no Array has one")
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


def _memory(name: str, array: Any) -> Any:
    memory = array.base_data
    if memory is None:
        return None
    if not hasattr(memory, "int_ptr"):
        raise TypeError("%s lies in %s: takes a buffer" % (name, type(memory).__name__))
    return memory.int_ptr
