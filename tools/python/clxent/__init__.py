# SPDX-License-Identifier: MIT
"""Softmax cross-entropy on OpenCL devices, for NumPy arrays and pyopencl.array.Array. clxent.torch is for PyTorch,
clxent.tinygrad for tinygrad.

The functions compute NumPy arrays (what numpy.asarray() takes) in one blocking call. C-contiguous arrays are read
where they are, others are copied first. Calls release Python's interpreter lock; any thread may make them.

Given a pyopencl Array as logits or hidden states they only enqueue: all arrays are pyopencl Arrays then, C-contiguous and of
the dtypes below, nothing is copied or waited for, and the results carry the events that complete them.

Logits and hidden states are float16, bfloat16 (of ml_dtypes), float32 or float64. "real" below is float32, for float64 ones
float64. "rows" is the shape of the logits without the class axis, or of the hidden states without the last.
"""

from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from . import _library, _opencl
from ._opencl import Parts, Plan
from ._problem import GRADIENTS, Problem, gradients, name_of

__all__ = ["Parts", "Plan", "cross_entropy", "linear_cross_entropy", "log_softmax", "softmax"]
__version__ = _library.library.clxent_version().decode()


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    weight: Any = None,
    ignore_index: Optional[int] = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    shift: int = 0,
    axis: int = -1,
    row_weights: Any = None,
    denominator: Any = None,
    grad_output: Any = None,
    grad_entropy: Any = None,
    grad_lse: Any = None,
    return_grad: bool = False,
    outputs: Sequence[str] = (),
    out: Optional[Mapping[str, Any]] = None,
    device: Optional[str] = None,
    queue: Any = None,
    wait_for: Optional[Iterable[Any]] = None,
) -> Any:
    """Cross-entropy of logits and targets. Names and meanings are those of torch.nn.functional.cross_entropy, but for
    the class axis, which is the last one.

    logits           any shape with a class axis
    targets          [rows] class indices (uint8, uint16, uint32, int32, int64; NumPy arrays of other integers are
                     converted), or probabilities in the shape of logits (float32 or the logits' dtype; NumPy arrays
                     of other floats are converted)
    weight           [classes] real: a weight for each class. As NumPy arrays this and the inputs below may be of any
                     numbers, and one number for all
    ignore_index     rows with this target do not count: loss and gradient 0. None: no target is ignored
    reduction        "mean", "sum" or "none"
    label_smoothing  share of the target that is spread over the classes
    z_loss           adds z_loss * lse**2 to each row's loss
    logit_scale      multiplies the logits
    softcap          bounds the scaled logits: softcap * tanh(logits / softcap). 0: off
    shift            row t has the target of row t + shift, along the last axis that is not the class axis
    axis             the class axis; PyTorch's is 1
    row_weights      [rows] real: a weight for each row; 0 masks it whatever it contains
    denominator      [] real: divides loss and gradient, in place of what a mean computes
    grad_output      [] real, for "none" [rows]: multiplies the gradient
    grad_entropy, grad_lse
                     [rows] real: gradients of what follows a row's entropy and lse. Theirs are added to the gradient, of
                     ignored rows too; no denominator divides them
    return_grad      computes the gradient of the loss with respect to the logits, too
    outputs          more results by name: losses, lse, entropy [rows] real; softmax, log_softmax in the logits' shape
                     and dtype; argmax [rows] int64; correct (rows whose argmax is their target), counted (rows that
                     count) [] uint64; computed_denominator [] real; bad_targets [] (count, first_row, value)
    out              arrays to write results to, by name. "gradient" may be logits itself, or have another dtype
    device           of NumPy arrays: "gpu", "cpu" or a part of a device's name. None: the first GPU, else the first
    queue, wait_for  of pyopencl Arrays: default is the queue of logits; events to wait for

    Returns the loss, [] or for "none" [rows] real; with return_grad the pair (loss, gradient); with outputs a dict of
    them all, with the keys "loss", "gradient" and the names of outputs.

    Raises IndexError where a target is out of range, with its row in C order; given pyopencl Arrays its loss and
    gradient are NaN, and bad_targets has the row. ValueError and TypeError name the argument, what it is and what it
    takes. RuntimeError is the driver's, NotImplementedError what the device cannot do, MemoryError as everywhere.
    """
    return _loss(locals(), logits, ["gradient"])


def linear_cross_entropy(
    hidden: Any,
    linear_weight: Any,
    targets: Any,
    linear_bias: Any = None,
    *,
    weight: Any = None,
    ignore_index: Optional[int] = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    shift: int = 0,
    row_weights: Any = None,
    denominator: Any = None,
    grad_output: Any = None,
    grad_entropy: Any = None,
    grad_lse: Any = None,
    workspace_limit: int = 0,
    return_grad: bool = False,
    outputs: Sequence[str] = (),
    out: Optional[Mapping[str, Any]] = None,
    device: Optional[str] = None,
    queue: Any = None,
    wait_for: Optional[Iterable[Any]] = None,
) -> Any:
    """Cross-entropy of the logits hidden @ linear_weight.T + linear_bias and targets, with all gradients. The logits of a few
    rows are in memory at a time. Names and meanings are those of torch.nn.functional.linear_cross_entropy.

    hidden           [..., features]
    linear_weight    [classes, features] of hidden's dtype
    targets          [rows] class indices, as cross_entropy() has them, or [..., classes] probabilities (real or float32; NumPy
                     arrays of other floats are converted)
    linear_bias      [classes] of hidden's dtype
    weight           [classes] real: a weight for each class
    workspace_limit  bytes of memory that logits and sums may take on the device. Less takes more time. 0: those of 2,048
                     rows, of NumPy arrays about 1 GiB
    return_grad      computes the gradients of the loss with respect to hidden, linear_weight and linear_bias, too
    outputs          more results by name: hidden_gradient [..., features], weight_gradient [classes, features] and
                     bias_gradient [classes] in hidden's dtype; losses, lse, entropy [rows] real; argmax [rows] int64;
                     correct, counted [] uint64; computed_denominator [] real; bad_targets []
    out              arrays to write results to, by name. Gradients may have another dtype: float16, bfloat16 or float32, of
                     float64 hidden states float32

    The other arguments, and errors, are those of cross_entropy(). Logits are real, never rounded to hidden's dtype.

    Returns the loss, [] or for "none" [rows] real; with return_grad the tuple (loss, hidden_gradient, weight_gradient), and
    bias_gradient at its end where there is a linear_bias; with outputs a dict of them all.

    All results but weight_gradient and bias_gradient have the same bits whatever workspace_limit is.
    """
    if linear_weight is None:
        raise TypeError("linear_weight is None: takes an array [classes, features]")
    return _loss(locals(), hidden, gradients(linear_weight, linear_bias))


def softmax(
    logits: Any,
    axis: int = -1,
    *,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    out: Any = None,
    device: Optional[str] = None,
    queue: Any = None,
    wait_for: Optional[Iterable[Any]] = None,
) -> Any:
    """Softmax along an axis, in the logits' shape and dtype. out: an array to write it to, which may be logits itself;
    the other arguments are those of cross_entropy()."""
    return _of_logits("softmax", logits, axis, logit_scale, softcap, out, (device, queue, wait_for))


def log_softmax(
    logits: Any,
    axis: int = -1,
    *,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    out: Any = None,
    device: Optional[str] = None,
    queue: Any = None,
    wait_for: Optional[Iterable[Any]] = None,
) -> Any:
    """Logarithm of the softmax along an axis, at full precision; arguments as for softmax()."""
    return _of_logits("log_softmax", logits, axis, logit_scale, softcap, out, (device, queue, wait_for))


# ---- NumPy ------------------------------------------------------------------------------------


# Arguments of cross_entropy() and linear_cross_entropy(): arrays beside the targets, and what becomes a field of the desc.
_INPUTS = "linear_weight linear_bias weight row_weights denominator grad_output grad_entropy grad_lse".split()
_OPTIONS = "ignore_index reduction label_smoothing z_loss logit_scale softcap shift axis workspace_limit".split()


def _loss(arguments: Dict[str, Any], x: Any, grads: List[str]) -> Any:
    """What either function returns, given its arguments by name. grads: what return_grad asks for."""
    given = {name: arguments[name] for name in _INPUTS if name in arguments}
    options = {name: arguments[name] for name in _OPTIONS if name in arguments}
    outputs, out = arguments["outputs"], arguments["out"] or {}
    grads = grads if arguments["return_grad"] else []
    names = {"loss": "losses"} if options["reduction"] == "none" else {}  # what it is called in the library
    wanted = ["loss", *grads, *([outputs] if isinstance(outputs, str) else outputs)]
    results = _run(
        x,
        arguments["targets"],
        [names.get(name, name) for name in wanted],
        given,
        {names.get(name, name): array for name, array in out.items()},
        (arguments["device"], arguments["queue"], arguments["wait_for"]),
        **options,
    )
    found = {name: results[names.get(name, name)] for name in wanted}
    if outputs:
        return found
    return tuple(found[name] for name in ("loss", *grads)) if grads else found["loss"]


def _of_logits(
    name: str, logits: Any, axis: int, logit_scale: float, softcap: float, out: Any, where: Tuple[Any, Any, Any]
) -> Any:
    outs = {} if out is None else {name: out}
    options = {"axis": axis, "logit_scale": logit_scale, "softcap": softcap}
    return _run(logits, None, [name], {}, outs, where, **options)[name]


def _run(
    x: Any,
    targets: Any,
    results: Iterable[str],
    given: Dict[str, Any],
    out: Dict[str, Any],
    where: Tuple[Optional[str], Any, Optional[Iterable[Any]]],
    **options: Any,
) -> Dict[str, Any]:
    given = {name: array for name, array in given.items() if array is not None}
    device, queue, wait_for = where
    for name in GRADIENTS:
        if name in out:
            options[name + "_dtype"] = getattr(out[name], "dtype", None)
    if _opencl.is_array(x):
        if device is not None:
            raise ValueError("device is %r: takes None with pyopencl Arrays, which have one" % (device,))
        planned = {name: array for name, array in given.items() if name in _opencl.PLANNED}
        plan = Plan(x, targets, outputs=results, queue=queue, **planned, **options)
        return plan(x, targets, out=out, queue=queue, wait_for=wait_for, **given)

    linear = "linear_weight" in given
    for name, value in (("queue", queue), ("wait_for", wait_for)):
        if value is not None:
            raise ValueError("%s is given: takes pyopencl Arrays as %s" % (name, "hidden" if linear else "logits"))
    x = _readable(np.asarray(x))
    if linear:
        options["linear_weight"] = given["linear_weight"] = np.asarray(given["linear_weight"])
    soft = np.dtype("f8" if x.dtype == np.float64 else "f4") if linear else x.dtype
    y = None if targets is None else _target_array(np.asarray(targets), soft)
    problem = Problem(x, y, results, given, **options)
    arrays = {problem.x: x}
    if y is not None:
        arrays["targets"] = y
    for name, value in given.items():
        field, shape, dtype = problem.inputs[name]
        read = _parameter_array if name in ("linear_weight", "linear_bias") else _input_array
        arrays[field] = read(name, value, dtype, shape)
    problem.check_names("out", out)
    made = {}
    for name, (shape, dtype) in problem.results.items():
        made[name] = _output_array(name, out[name], dtype, shape) if name in out else np.empty(shape, dtype)

    args = _library.new(_library.library.clxent_host_args_init, _library.HostArgs)
    for field, array in (*arrays.items(), *made.items()):
        setattr(args, field, _library.Array(array.ctypes.data, array.nbytes))
    _library.run_host(_library.default_context(device), problem.desc, args, (arrays, made))
    return made


def _readable(array: np.ndarray) -> np.ndarray:
    """array itself where the library can read it."""
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def _target_array(array: np.ndarray, own: np.dtype) -> np.ndarray:
    """own: the dtype of probabilities that the library takes besides float32."""
    dtype = array.dtype.newbyteorder("=")
    if (dtype.kind == "f" or dtype.name == "bfloat16") and dtype not in (np.float32, own):
        dtype = np.dtype("f8" if own == np.float64 else "f4")
    if dtype == np.uint64:
        # As int64 the largest would be negative, and one of them the ignored one.
        for row in np.flatnonzero(array.reshape(-1) > np.uint64(2**63 - 1))[:1]:
            raise IndexError("targets: row %d is %d: takes at most 2**63 - 1" % (row, array.reshape(-1)[row]))
    return _readable(array.astype({"int8": "i4", "int16": "i4", "uint64": "i8"}.get(dtype.name, dtype), copy=False))


def _input_array(name: str, value: Any, dtype: np.dtype, shape: Tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError("%s is %s: takes numbers" % (name, array.dtype))
    if array.shape not in ((), shape):
        raise ValueError("%s has shape %s: takes %s" % (name, array.shape, shape))
    return _readable(np.broadcast_to(array.astype(dtype, copy=False), shape))


def _parameter_array(name: str, value: Any, dtype: np.dtype, shape: Tuple[int, ...]) -> np.ndarray:
    array = _readable(np.asarray(value))
    if array.dtype != dtype:
        raise TypeError("%s is %s: takes %s, as hidden is" % (name, array.dtype, name_of(dtype)))
    if array.shape != shape:
        raise ValueError("%s has shape %s: takes %s" % (name, array.shape, shape))
    return array


def _output_array(name: str, array: Any, dtype: np.dtype, shape: Tuple[int, ...]) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise TypeError("out[%r] is %s: takes a numpy.ndarray" % (name, type(array).__name__))
    if array.dtype != dtype or array.shape != shape:
        got = array.dtype, array.shape, dtype, shape
        raise ValueError("out[%r] is %s of shape %s: takes %s of shape %s" % (name, *got))
    if not (array.flags.c_contiguous and array.flags.aligned and array.flags.writeable):
        raise ValueError("out[%r] is not C-contiguous, aligned and writeable: takes an array that is" % name)
    return array
