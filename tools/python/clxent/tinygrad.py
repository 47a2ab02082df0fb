# SPDX-License-Identifier: MIT
"""cross_entropy() for tinygrad Tensors on OpenCL (device "CL"), by PyOpenCL: it enqueues on tinygrad's own queue, between
what tinygrad enqueues there. It reads the buffers of Tensors where they are."""

import ctypes
from typing import Any, Dict, Optional, Sequence

import numpy as np
import pyopencl
import pyopencl.array
from tinygrad.device import Device
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor

from . import cross_entropy as _cross_entropy
from ._opencl import PLANNED
from ._problem import BFLOAT16, Problem

__all__ = ["cross_entropy"]

_DTYPES = {
    name: (getattr(dtypes, name), BFLOAT16 if name == "bfloat16" else np.dtype(name))
    for name in "float16 bfloat16 float32 float64 uint8 uint16 uint32 uint64 int32 int64".split()
}


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Optional[Tensor] = None,
    row_weights: Optional[Tensor] = None,
    denominator: Optional[Tensor] = None,
    grad_output: Optional[Tensor] = None,
    grad_entropy: Optional[Tensor] = None,
    grad_lse: Optional[Tensor] = None,
    return_grad: bool = False,
    outputs: Sequence[str] = (),
    **options: Any,
) -> Any:
    """clxent.cross_entropy() of Tensors. The results are Tensors without a graph; the gradient goes on by

        loss, gradient = clxent.tinygrad.cross_entropy(logits, targets, return_grad=True)
        gradients = logits.gradient(*parameters, gradient=gradient)

    A Tensor that is not realized is computed for this call, and keeps its graph. In a TinyJit the call is not recorded.
    """
    given = dict(zip(PLANNED, (weight, row_weights, grad_entropy, grad_lse)), denominator=denominator)
    given.update(grad_output=grad_output, logits=logits, targets=targets)
    arrays = {name: _array(name, tensor) for name, tensor in given.items() if tensor is not None}
    x, y = arrays.pop("logits"), arrays.pop("targets")
    names = [*(["gradient"] if return_grad else []), *([outputs] if isinstance(outputs, str) else outputs)]
    losses = options.get("reduction") == "none"
    problem = Problem(
        x, y, ["losses" if losses else "loss", *names], [name for name in arrays if name in PLANNED], **options
    )
    made: Dict[str, Tensor] = {}
    for name, (shape, dtype) in problem.results.items():
        of_tinygrad = [own for own, numpys in _DTYPES.values() if numpys == dtype]
        if not of_tinygrad:
            raise ValueError("outputs has %r: takes what Tensors can hold" % name)
        made[name] = Tensor.empty(*shape, dtype=of_tinygrad[0], device=logits.device).realize()
    out = {name: _array(name, tensor) for name, tensor in made.items()}
    if losses:
        made["loss"], out["loss"] = made["losses"], out.pop("losses")
    _cross_entropy(x, y, return_grad=return_grad, outputs=outputs, out=out, **arrays, **options)
    if outputs:
        return {name: made[name] for name in ["loss", *names]}
    return (made["loss"], made["gradient"]) if return_grad else made["loss"]


def _array(name: str, tensor: Tensor) -> Any:
    """The Tensor's own memory as an Array on tinygrad's queue."""
    if not isinstance(tensor, Tensor):
        raise TypeError("%s is %s: takes a tinygrad.Tensor" % (name, type(tensor).__name__))
    if not isinstance(tensor.device, str) or tensor.device.split(":")[0] != "CL":
        raise ValueError("%s is on %s: takes a Tensor on CL" % (name, tensor.device))
    found = [numpys for own, numpys in _DTYPES.values() if own == tensor.dtype]
    if not found:
        raise TypeError("%s is %s: takes %s" % (name, tensor.dtype, ", ".join(_DTYPES)))
    # A Tensor of its own: one that is realized itself has no graph any more.
    own = tensor.contiguous().realize()
    buffer: Any = own.uop.buffer
    buffer.ensure_allocated()
    device: Any = Device[tensor.device]
    queue: Any = ctypes.cast(device.queue, ctypes.c_void_p).value
    memory: Any = ctypes.cast(buffer._buf, ctypes.c_void_p).value
    queue = pyopencl.CommandQueue.from_int_ptr(queue, retain=True)
    data = pyopencl.Buffer.from_int_ptr(memory, retain=True)
    shape = tuple(int(n) for n in tensor.shape)
    array: Any = pyopencl.array.Array(queue, shape, found[0], data=data, offset=buffer.offset)
    array.tensor = own  # else tinygrad gives its memory to the next one, which may be a result
    return array
