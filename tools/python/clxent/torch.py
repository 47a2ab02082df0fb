# SPDX-License-Identifier: MIT
"""cross_entropy() for PyTorch tensors in the memory of the CPU, computed on an OpenCL device."""

from typing import Any, Dict, Optional, Tuple

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
    options = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "shift": shift,
        "denominator": denominator,
        "device": device,
    }
    loss: torch.Tensor = _compute(input, target, {"weight": weight, "row_weights": row_weights}, options)
    return loss


def _eager(function: Any) -> Any:
    """torch.compile() leaves a function out of its graphs. PyTorch 1 has neither."""
    disable = getattr(getattr(torch, "compiler", None), "disable", None)
    return function if disable is None else disable(function)


@_eager
def _compute(input: Any, target: Any, weights: Dict[str, Any], options: Dict[str, Any]) -> Any:
    tensors = {"input": input, "target": target, **weights}
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
    for name, tensor in weights.items():
        options[name] = None if tensor is None else _array(tensor.to(real))
    options["axis"] = 1 if input.dim() > 1 else 0
    options["return_grad"] = input.requires_grad and torch.is_grad_enabled()
    return _CrossEntropy.apply(input, target, options)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's own memory. NumPy has no bfloat16: its bits."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array's own memory."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _is_kept() -> bool:
    """Whether the backward pass that is running may be repeated (retain_graph). PyTorch 1 does not tell."""
    tell = getattr(getattr(torch._C, "_autograd", None), "_get_current_graph_task_keep_graph", None)
    return tell is None or bool(tell())


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, target: torch.Tensor, options: Dict[str, Any]) -> torch.Tensor:
        if not options["return_grad"]:
            return _tensor(_cross_entropy(_array(input), _array(target), **options))
        # A float16 gradient divided by the number of rows underflows before a loss scale can lift it. NumPy makes the
        # array, as it asks for huge pages: 134 MB take 29 ms to fill, of torch.empty() 76 ms.
        out = {"gradient": np.empty(input.shape, np.float32)} if input.dtype == torch.float16 else None
        loss, gradient = _cross_entropy(_array(input), _array(target), out=out, **options)
        ctx.save_for_backward(_tensor(gradient))
        ctx.dtype, ctx.axis = input.dtype, options["axis"]
        return _tensor(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], None, None]:
        (gradient,), (grad_output,) = ctx.saved_tensors, grad_outputs
        if grad_output.dim() > 0:  # of row losses
            grad_output = grad_output.unsqueeze(ctx.axis)
        # What is large is not copied where nobody needs it again, unless vmap makes many of it.
        try:
            if _is_kept():
                gradient = gradient * grad_output
            elif grad_output.dim() > 0 or grad_output.item() != 1:
                gradient.mul_(grad_output)
        except RuntimeError:
            gradient = gradient * grad_output
        return gradient.to(ctx.dtype), None, None
