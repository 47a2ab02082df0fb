# SPDX-License-Identifier: MIT
"""cross_entropy() for PyTorch tensors in the memory of the CPU, computed on an OpenCL device."""

from typing import Any, Optional

import numpy as np
import torch

from . import cross_entropy as _cross_entropy
from ._problem import BFLOAT16

__all__ = ["cross_entropy"]


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: Optional[torch.Tensor] = None,
    *,
    ignore_index: Optional[int] = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    shift: int = 0,
    row_weights: Optional[torch.Tensor] = None,
    denominator: Any = None,
    device: Optional[str] = None,
) -> torch.Tensor:
    """torch.nn.functional.cross_entropy(), with the options of clxent.cross_entropy().

    input   [C], [N, C] or [N, C, d1, ...]: float16, bfloat16, float32 or float64
    target  input's shape without C: class indices (int64; also uint8, int32); or in input's shape: probabilities
    Returns the loss: float32, for float64 input float64. Its gradient is that of input alone, and is computed in the
    same pass, where input requires one.

    Contiguous tensors are read where they are.
    """
    tensors = {"input": input, "target": target, "weight": weight, "row_weights": row_weights}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError("%s is %s: takes a torch.Tensor" % (name, type(tensor).__name__))
        if tensor.device.type != "cpu":
            raise ValueError("%s is on %s: takes a tensor on the CPU" % (name, tensor.device))
        if tensor.requires_grad and name != "input":
            raise ValueError("%s requires a gradient: takes one that does not, as only input gets one" % name)
    real = torch.float64 if input.dtype == torch.float64 else torch.float32
    options = {
        "weight": None if weight is None else _array(weight.to(real)),
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "shift": shift,
        "row_weights": None if row_weights is None else _array(row_weights.to(real)),
        "denominator": denominator,
        "device": device,
        "axis": 1 if input.dim() > 1 else 0,
        "return_grad": input.requires_grad and torch.is_grad_enabled(),
    }
    return _CrossEntropy.apply(input, target, options)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's own memory. NumPy has no bfloat16: its bits."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, options):
        if not options["return_grad"]:
            return torch.from_numpy(_cross_entropy(_array(input), _array(target), **options))
        # A float16 gradient divided by the number of rows underflows before a loss scale can lift it.
        gradient = torch.empty(input.shape, dtype=torch.float32 if input.dtype == torch.float16 else input.dtype)
        out = {"gradient": _array(gradient)}
        loss, _ = _cross_entropy(_array(input), _array(target), out=out, **options)
        ctx.save_for_backward(gradient)
        ctx.dtype, ctx.axis = input.dtype, options["axis"]
        return torch.from_numpy(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        if grad_output.dim() > 0:  # of row losses
            grad_output = grad_output.unsqueeze(ctx.axis)
        return (gradient * grad_output).to(ctx.dtype), None, None
