# SPDX-License-Identifier: MIT
"""cross_entropy() and linear_cross_entropy() for PyTorch tensors in the memory of the CPU, computed on an OpenCL device."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from . import cross_entropy as _cross_entropy
from . import linear_cross_entropy as _linear_cross_entropy
from ._problem import BFLOAT16

__all__ = ["cross_entropy", "linear_cross_entropy"]


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
    options = _options(locals())
    loss: torch.Tensor = _compute(input, target, {"weight": weight, "row_weights": row_weights}, options)
    return loss


def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: Optional[torch.Tensor] = None,
    *,
    weight: Optional[torch.Tensor] = None,
    ignore_index: Optional[int] = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    shift: int = 0,
    row_weights: Optional[torch.Tensor] = None,
    denominator: Any = None,
    workspace_limit: int = 0,
    device: Optional[str] = None,
) -> torch.Tensor:
    """torch.nn.functional.linear_cross_entropy(), which is cross_entropy(linear(input, linear_weight, linear_bias), target)
    without all logits in memory, with the options of clxent.linear_cross_entropy().

    input          [..., features]: float16, bfloat16, float32 or float64
    linear_weight  [classes, features] of input's dtype
    target         [...]: class indices (int64; also uint8, int32); or [..., classes]: probabilities of any floats
    linear_bias    [classes] of input's dtype
    ignore_index   None: no target is ignored; PyTorch has -100 then
    Returns the loss: float32, for float64 input float64. Its gradients are those of input, linear_weight and linear_bias.
    Those that are required are computed in the same pass; with reduction "none" in the backward pass, as the gradient of
    a weight is a sum over rows.

    Contiguous tensors are read where they are.
    """
    options = _options(locals())
    own = {"input": input, "linear_weight": linear_weight, "linear_bias": linear_bias}
    loss: torch.Tensor = _compute_linear(own, target, {"weight": weight, "row_weights": row_weights}, options)
    return loss


def _options(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """Of the arguments by name those that clxent's function takes as they are."""
    names = "ignore_index reduction label_smoothing z_loss logit_scale softcap shift denominator workspace_limit device"
    return {name: arguments[name] for name in names.split() if name in arguments}


def _eager(function: Any) -> Any:
    """torch.compile() leaves a function out of its graphs. PyTorch 1 has neither."""
    disable = getattr(getattr(torch, "compiler", None), "disable", None)
    return function if disable is None else disable(function)


@_eager
def _compute(input: Any, target: Any, weights: Dict[str, Any], options: Dict[str, Any]) -> Any:
    _check({"input": input}, {"target": target, **weights})
    _set_weights(options, weights, input)
    options["axis"] = 1 if input.dim() > 1 else 0
    options["return_grad"] = input.requires_grad and torch.is_grad_enabled()
    return _CrossEntropy.apply(input, target, options)


@_eager
def _compute_linear(own: Dict[str, Any], target: Any, weights: Dict[str, Any], options: Dict[str, Any]) -> Any:
    _check(own, {"target": target, **weights})
    input, linear_weight, linear_bias = own.values()
    for name, tensor in own.items():
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError("%s is %s: takes %s, as input is" % (name, tensor.dtype, input.dtype))
    _set_weights(options, weights, input)
    if target.is_floating_point():
        target = target.to(_real(input))
    needed = [tensor is not None and tensor.requires_grad and torch.is_grad_enabled() for tensor in own.values()]
    return _LinearCrossEntropy.apply(input, linear_weight, linear_bias, target, needed, options)


def _check(own: Dict[str, Any], others: Dict[str, Any]) -> None:
    """own: tensors that may require a gradient."""
    for name, tensor in {**own, **others}.items():
        if tensor is None and name not in ("input", "linear_weight", "target"):
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError("%s is %s: takes a torch.Tensor" % (name, type(tensor).__name__))
        if tensor.device.type != "cpu":
            raise ValueError("%s is on %s: takes a tensor on the CPU" % (name, tensor.device))
        if tensor.requires_grad and name in others:
            got = name, " or ".join(own)
            raise ValueError("%s requires a gradient: takes one that does not, as there is none but of %s" % got)


def _real(input: torch.Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _set_weights(options: Dict[str, Any], weights: Dict[str, Any], input: torch.Tensor) -> None:
    for name, tensor in weights.items():
        options[name] = None if tensor is None else _array(tensor.to(_real(input)))


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
        return _times(gradient, grad_output, _is_kept()).to(ctx.dtype), None, None


def _times(gradient: torch.Tensor, grad_output: torch.Tensor, kept: bool) -> torch.Tensor:
    """What is large is not copied where nobody needs it again, unless vmap makes many of it."""
    try:
        if kept:
            return gradient * grad_output
        if grad_output.dim() > 0 or grad_output.item() != 1:
            gradient.mul_(grad_output)
        return gradient
    except RuntimeError:
        return gradient * grad_output


class _LinearCrossEntropy(torch.autograd.Function):
    GRADIENTS = ("hidden_gradient", "weight_gradient", "bias_gradient")

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        linear_weight: torch.Tensor,
        linear_bias: Optional[torch.Tensor],
        target: torch.Tensor,
        needed: Sequence[bool],
        options: Dict[str, Any],
    ) -> torch.Tensor:
        names = [name for name, need in zip(_LinearCrossEntropy.GRADIENTS, needed) if need]
        tensors = input, linear_weight, target, linear_bias
        if not names or options["reduction"] == "none":
            loss = _linear_cross_entropy(*_arrays(tensors), **options)
            if names:
                # The tensors are PyTorch's to guard; these are ours.
                for name in ("weight", "row_weights"):
                    options[name] = None if options[name] is None else options[name].copy()
                ctx.save_for_backward(*tensors)
        else:
            # As above: float16 has no room for what is divided by the number of rows.
            shapes = zip(_LinearCrossEntropy.GRADIENTS, (input, linear_weight, linear_bias))
            wide = {name: own.shape for name, own in shapes if own is not None and name in names}
            half = input.dtype == torch.float16
            out = {name: np.empty(shape, np.float32) for name, shape in wide.items()} if half else None
            found = _linear_cross_entropy(*_arrays(tensors), outputs=names, out=out, **options)
            loss = found["loss"]
            ctx.save_for_backward(*(_tensor(found[name]) for name in names))
        ctx.dtype, ctx.names, ctx.options = input.dtype, names, options
        return _tensor(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], ...]:
        saved, (grad_output,) = ctx.saved_tensors, grad_outputs
        if ctx.options["reduction"] == "none":
            given = {**ctx.options, "grad_output": _array(grad_output.to(_real(saved[0])))}
            results = _linear_cross_entropy(*_arrays(saved), outputs=ctx.names, **given)
            found = {name: _tensor(results[name]) for name in ctx.names}
        else:
            kept = _is_kept()
            found = {name: _times(own, grad_output, kept).to(ctx.dtype) for name, own in zip(ctx.names, saved)}
        return (*(found.get(name) for name in _LinearCrossEntropy.GRADIENTS), None, None, None)


def _arrays(tensors: Sequence[Optional[torch.Tensor]]) -> List[Optional[np.ndarray]]:
    return [None if tensor is None else _array(tensor) for tensor in tensors]
