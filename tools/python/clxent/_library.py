# SPDX-License-Identifier: MIT
"""The C library by ctypes: its structs and functions, statuses as exceptions, objects that destroy themselves.

clxent.h says what everything means. The structs are compared with the library's own when it is loaded. Calls release
Python's interpreter lock.
"""

import ctypes
import os
import sys
import threading
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any, Dict, Iterable, List, Optional, Tuple

# ---- Structs ----------------------------------------------------------------------------------

INPUTS = ("logits", "probabilities", "targets", "class_weights", "row_weights", "grad_output", "denominator")
OUTPUTS = "losses loss lse softmax log_softmax gradient argmax correct entropy statistics bad_targets one_hot".split()
LATER_OUTPUTS = ("computed_denominator", "counted")
LATER_INPUTS = ("grad_entropy", "grad_lse")
LINEAR = ("hidden", "weight", "bias", "hidden_gradient", "weight_gradient", "bias_gradient")

log_function = ctypes.CFUNCTYPE(None, c_char_p, c_void_p)


def fields(kind: Any, names: Iterable[str]) -> List[Tuple[str, Any]]:
    return [(name, kind) for name in names]


class ContextOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("log", log_function),
        ("log_payload", c_void_p),
        ("tuning", c_char_p),
        ("store", c_void_p * 3),
    ]


class Desc(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *fields(c_uint32, ("op", "outputs", "dtype", "gradient_dtype", "target_type", "reduction")),
        *fields(c_size_t, ("batch", "seq", "classes", "inner", "row_stride", "gradient_row_stride")),
        *fields(c_size_t, ("probabilities_row_stride", "target_row_stride")),
        ("ignore_index", c_int64),
        *fields(c_uint32, ("use_ignore_index", "bad_target", "all_ignored", "gradient_mode")),
        *fields(c_uint32, ("has_class_weights", "has_row_weights")),
        ("shift", c_size_t),
        *fields(c_double, ("label_smoothing", "z_loss", "logit_scale", "softcap")),
        *fields(c_uint32, ("gradient_padding", "has_grad_entropy", "has_grad_lse", "has_bias")),
        *fields(c_size_t, ("features", "hidden_row_stride", "weight_row_stride")),
        *fields(c_size_t, ("hidden_gradient_row_stride", "weight_gradient_row_stride")),
        *fields(c_uint32, ("hidden_gradient_dtype", "weight_gradient_dtype", "bias_gradient_dtype")),
        *fields(c_uint32, ("hidden_gradient_mode", "weight_gradient_mode", "bias_gradient_mode")),
        ("workspace_limit", c_size_t),
    ]


class Array(ctypes.Structure):
    """clxent_input and clxent_output: data, size; clxent_buffer: mem, offset."""

    _fields_ = [("data", c_void_p), ("size", c_size_t)]


class HostArgs(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("max_chunk_bytes", c_size_t),
        *fields(Array, (*INPUTS, *OUTPUTS, *LATER_OUTPUTS, *LATER_INPUTS, *LINEAR)),
    ]


class Args(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("outputs", c_uint32),
        ("rows", c_size_t),
        *fields(Array, (*INPUTS, *OUTPUTS, "workspace")),
        *fields(c_size_t, ("total_rows", "first_row")),
        *fields(c_uint32, ("part", "reserved")),
        *fields(Array, (*LATER_OUTPUTS, *LATER_INPUTS, *LINEAR)),
    ]


# ---- The library ------------------------------------------------------------------------------


def _load() -> ctypes.CDLL:
    name = {"win32": "clxent.dll", "darwin": "libclxent.dylib"}.get(sys.platform, "libclxent.so")
    path = os.environ.get("CLXENT_LIBRARY") or os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(
            "clxent cannot load %s: %s. It takes an OpenCL loader (Debian: ocl-icd-libopencl1)" % (path, error)
        ) from None
    handle, size = POINTER(c_void_p), c_size_t
    for function, result, arguments in (
        ("clxent_version", c_char_p, ()),
        ("clxent_status_string", c_char_p, (c_int32,)),
        ("clxent_context_options_init", None, (POINTER(ContextOptions),)),
        ("clxent_desc_init", None, (POINTER(Desc),)),
        ("clxent_args_init", None, (POINTER(Args),)),
        ("clxent_host_args_init", None, (POINTER(HostArgs),)),
        ("clxent_desc_check", c_int32, (POINTER(Desc), c_char_p, size)),
        ("clxent_context_create", c_int32, (handle, c_void_p, c_void_p, POINTER(ContextOptions))),
        ("clxent_context_create_default", c_int32, (handle, c_char_p, POINTER(ContextOptions))),
        ("clxent_context_destroy", None, (c_void_p,)),
        ("clxent_plan_create", c_int32, (handle, c_void_p, POINTER(Desc))),
        ("clxent_plan_destroy", None, (c_void_p,)),
        ("clxent_plan_workspace_size", size, (c_void_p,)),
        ("clxent_plan_strategy", c_char_p, (c_void_p,)),
        ("clxent_enqueue", c_int32, (c_void_p, c_void_p, POINTER(Args), c_uint32, handle, handle)),
        ("clxent_enqueue_denominator", c_int32, (c_void_p, c_void_p, POINTER(Args), c_uint32, handle, handle)),
        ("clxent_run_host", c_int32, (c_void_p, POINTER(Desc), POINTER(HostArgs))),
    ):
        bound = getattr(library, function, None)
        if bound is None:
            raise ImportError("%s has no %s: takes the library of this package's version" % (path, function))
        bound.restype, bound.argtypes = result, arguments
    for init, struct in (
        (library.clxent_context_options_init, ContextOptions),
        (library.clxent_desc_init, Desc),
        (library.clxent_args_init, Args),
        (library.clxent_host_args_init, HostArgs),
    ):
        # More than enough for a library with more fields; a smaller struct must not be written past its end.
        room = (ctypes.c_char * (ctypes.sizeof(struct) + 4096))()
        own = struct.from_buffer(room)
        init(byref(own))
        if own.struct_size != ctypes.sizeof(struct):
            raise ImportError(
                "%s is clxent %s, whose %s has %d bytes: takes the library of this package's version, with %d"
                % (path, library.clxent_version().decode(), struct.__name__, own.struct_size, ctypes.sizeof(struct))
            )
    desc = new(library.clxent_desc_init, Desc)
    if (desc.inner, desc.ignore_index, desc.use_ignore_index, desc.logit_scale) != (1, -100, 1, 1.0):
        raise ImportError("%s: the fields of clxent_desc are not where this package has them" % path)
    return library


def new(init: Any, struct: Any) -> Any:
    value = struct()
    init(byref(value))
    return value


# ---- Errors -----------------------------------------------------------------------------------

BAD_TARGET, OUT_OF_HOST_MEMORY, UNSUPPORTED, ARRAYS_IN_USE = 6, 7, 4, 10
_ERRORS = {
    1: ValueError,
    2: ValueError,
    3: ValueError,
    5: ValueError,
    UNSUPPORTED: NotImplementedError,
    BAD_TARGET: IndexError,
    OUT_OF_HOST_MEMORY: MemoryError,
    -4: MemoryError,  # CL_MEM_OBJECT_ALLOCATION_FAILURE
    -6: MemoryError,  # CL_OUT_OF_HOST_MEMORY
}

# The text of an error is logged in the thread whose call fails; a context keeps one text for all threads.
_thread = threading.local()


def _keep_text(message: bytes, payload: Optional[int]) -> None:
    _thread.text = message.decode("utf-8", "replace")


_log = log_function(_keep_text)


def check(function: Any, *arguments: Any) -> None:
    """Calls function and raises what its status means, with the library's text."""
    _thread.text = ""
    status = function(*arguments)
    if status != 0:
        text = _thread.text or library.clxent_status_string(status).decode()
        error: Any = _ERRORS.get(status, RuntimeError)(text)
        error.clxent_status = status
        raise error


# ---- Objects ----------------------------------------------------------------------------------


class Handle:
    """What create() made, destroyed with the Python object, but never in a child after fork(): see clxent.h."""

    def __init__(self, create: Any, destroy: Any, *arguments: Any) -> None:
        self._as_parameter_ = c_void_p()
        self._destroy, self._getpid, self.pid = destroy, os.getpid, os.getpid()
        check(create, byref(self._as_parameter_), *arguments)

    def __del__(self) -> None:
        if self._as_parameter_ and self.pid == self._getpid():
            self._destroy(self._as_parameter_)


def make_context(create: Any, *arguments: Any) -> Handle:
    options = new(library.clxent_context_options_init, ContextOptions)
    options.log = _log
    return Handle(create, library.clxent_context_destroy, *arguments, byref(options))


def make_plan(context: Handle, desc: Desc) -> Handle:
    return Handle(library.clxent_plan_create, library.clxent_plan_destroy, context, byref(desc))


_contexts: Dict[Optional[str], Handle] = {}
_lock = threading.Lock()


def default_context(device: Optional[str]) -> Handle:
    """The process's context for a device by type or name."""
    if device is not None and not isinstance(device, str):
        raise TypeError('device is %r: takes "gpu", "cpu", a part of a device\'s name, or None' % (device,))
    with _lock:
        if any(context.pid != os.getpid() for context in _contexts.values()):
            raise RuntimeError(
                "this process is a fork of one that used OpenCL, whose drivers do not survive that: takes a new "
                'process, such as those of multiprocessing\'s "spawn"'
            )
        if device not in _contexts:
            name = None if device is None else device.encode()
            _contexts[device] = make_context(library.clxent_context_create_default, name)
        return _contexts[device]


# What a driver that failed may still use must live as long as the process.
_kept: List[Any] = []


def run_host(context: Handle, desc: Desc, args: HostArgs, arrays: Any) -> None:
    """args points into arrays."""
    try:
        check(library.clxent_run_host, context, byref(desc), byref(args))
    except RuntimeError as error:
        if getattr(error, "clxent_status", 0) == ARRAYS_IN_USE:
            _kept.append(arrays)
        raise


library = _load()
