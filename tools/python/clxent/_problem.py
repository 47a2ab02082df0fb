# SPDX-License-Identifier: MIT
"""What one call computes, whoever holds its arrays: the library's desc, and the shape and dtype of every array."""

import operator
import sys
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np

from . import _library

# bfloat16 of programs without ml_dtypes: the bits, in a dtype that is no integer.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

_DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3, "float64": 4}
_TARGETS = {"int32": 1, "int64": 2, "uint8": 3, "uint16": 6, "uint32": 7}
_PROBABILITIES_F32, _PROBABILITIES_LOGITS = 4, 5
_REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}

# Every result of cross-entropy: its bit, shape and dtype. Shapes and dtypes are attributes of Problem, or a dtype itself.
_RESULTS: Dict[str, Tuple[int, str, Any]] = {
    "losses": (0, "rows", "real"),
    "loss": (1, "one", "real"),
    "lse": (2, "rows", "real"),
    "softmax": (3, "shape", "dtype"),
    "log_softmax": (4, "shape", "dtype"),
    "gradient": (5, "shape", "gradient_dtype"),
    "argmax": (6, "rows", "i8"),
    "correct": (7, "one", "u8"),
    "entropy": (8, "rows", "real"),
    "bad_targets": (10, "one", [("count", "u8"), ("first_row", "u8"), ("value", "i8")]),
    "computed_denominator": (12, "one", "real"),
    "counted": (13, "one", "u8"),
}
# Those of linear cross-entropy.
_LINEAR_RESULTS: Dict[str, Tuple[int, str, Any]] = {
    **{name: row for name, row in _RESULTS.items() if row[1] != "shape"},
    "hidden_gradient": (14, "shape", "hidden_gradient_dtype"),
    "weight_gradient": (15, "linear_weight", "weight_gradient_dtype"),
    "bias_gradient": (16, "classes", "bias_gradient_dtype"),
}
_LINEAR_CROSS_ENTROPY = 5

GRADIENTS = ("gradient", "hidden_gradient", "weight_gradient", "bias_gradient")


def gradients(linear_weight: Any, linear_bias: Any) -> List[str]:
    """All that there are."""
    if linear_weight is None:
        return ["gradient"]
    return ["hidden_gradient", "weight_gradient", *([] if linear_bias is None else ["bias_gradient"])]


def name_of(dtype: np.dtype) -> str:
    return "bfloat16" if dtype == BFLOAT16 else dtype.name


def integer(name: str, value: Any, least: int, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError("%s is %r: takes an integer" % (name, value)) from None
    if not least <= number <= most:
        raise ValueError("%s is %d: takes %d to %d" % (name, number, least, most))
    return number


class Problem:
    """x and targets are arrays of any kind, with shape and dtype: x logits, with linear_weight hidden states. given names the
    optional inputs there are. batch is the length of the first axis of a batch that x is a part of."""

    def __init__(
        self,
        x: Any,
        targets: Any,
        results: Iterable[str],
        given: Iterable[str] = (),
        *,
        linear_weight: Any = None,
        batch: Optional[int] = None,
        axis: int = -1,
        reduction: str = "mean",
        ignore_index: Optional[int] = -100,
        shift: int = 0,
        gradient_dtype: Any = None,
        hidden_gradient_dtype: Any = None,
        weight_gradient_dtype: Any = None,
        bias_gradient_dtype: Any = None,
        workspace_limit: int = 0,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float = 0.0,
    ) -> None:
        linear = linear_weight is not None
        self.x = "hidden" if linear else "logits"  # what x is called
        self.dtype, self.shape = x.dtype, tuple(x.shape)
        if name_of(self.dtype) not in _DTYPES:
            raise TypeError("%s is %s: takes float16, bfloat16, float32 or float64" % (self.x, self.dtype))
        last = "features" if linear else "classes"
        if not self.shape:
            raise ValueError("%s has shape (): takes an axis of %s" % (self.x, last))
        self.axis = integer("axis", axis, -len(self.shape), len(self.shape) - 1) % len(self.shape)
        if linear and self.axis != len(self.shape) - 1:
            raise ValueError("axis is %d: takes -1 with linear_weight" % axis)
        if batch is not None:
            # The library cuts between rows, under a shift between sequences, of a class axis inside between slabs.
            if self.axis == 0 or (shift and len(self.shape) < 3):
                why = "the first axis is that of the %s" % (last if self.axis == 0 else "shift")
                raise ValueError("batch is %r: takes None, as %s" % (batch, why))
            self.shape = (integer("batch", batch, 0, 2**63 - 1), *self.shape[1:])
        if reduction not in _REDUCTIONS:
            raise ValueError('reduction is %r: takes "mean", "sum" or "none"' % (reduction,))
        self.rows = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        self.classes = (self.shape[self.axis],)
        self.logits = self.shape
        if linear:
            self._set_linear_weight(linear_weight)
        self.one: Tuple[int, ...] = ()
        self.real = np.dtype("f8" if self.dtype == np.float64 else "f4")
        dtypes = gradient_dtype, hidden_gradient_dtype, weight_gradient_dtype, bias_gradient_dtype
        for name, dtype in zip(GRADIENTS, dtypes):
            own = np.dtype(dtype or self.dtype).newbyteorder("=")
            if name_of(own) not in _DTYPES:
                raise TypeError("%s is %s: takes float16, bfloat16, float32 or float64" % (name, own))
            setattr(self, name + "_dtype", own)

        desc = self.desc = _library.new(_library.library.clxent_desc_init, _library.Desc)
        desc.dtype = _DTYPES[name_of(self.dtype)]
        desc.reduction, self.reduction = _REDUCTIONS[reduction], reduction
        desc.seq = self.rows[-1] if self.rows else 1
        desc.batch = int(np.prod(self.rows[:-1], dtype=np.int64)) if desc.seq > 0 else 0
        desc.classes = self.classes[0]
        desc.inner = max(1, int(np.prod(self.shape[self.axis + 1 :], dtype=np.int64)))
        if linear:
            desc.op, desc.features = _LINEAR_CROSS_ENTROPY, self.shape[-1]
            desc.has_bias = "linear_bias" in given
        desc.workspace_limit = integer("workspace_limit", workspace_limit, 0, 2 * sys.maxsize + 1)
        self.soft_dtype = self.real if linear else self.dtype  # of probabilities that are not float32
        if targets is not None:
            part = self.logits if batch is None else (x.shape[0], *self.logits[1:])
            desc.target_type = self._target_type(targets, part)
        self.soft_targets = targets is not None and name_of(targets.dtype) in _DTYPES
        self.targets = self.logits if self.soft_targets else self.rows
        if ignore_index is None:
            desc.use_ignore_index = 0
        else:
            desc.ignore_index = integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
        desc.has_class_weights = "weight" in given
        desc.has_row_weights = "row_weights" in given
        desc.has_grad_entropy = "grad_entropy" in given
        desc.has_grad_lse = "grad_lse" in given
        desc.shift = integer("shift", shift, 0, desc.seq)
        numbers = {"label_smoothing": label_smoothing, "z_loss": z_loss, "logit_scale": logit_scale, "softcap": softcap}
        for name, value in numbers.items():
            try:
                setattr(desc, name, float(value))
            except (TypeError, ValueError):
                raise TypeError("%s is %r: takes a number" % (name, value)) from None

        self.results: Dict[str, Tuple[Tuple[int, ...], np.dtype]] = {}
        known = dict(_LINEAR_RESULTS if linear else _RESULTS)
        if linear and not desc.has_bias:
            del known["bias_gradient"]
        for name in results:
            if name not in known:
                raise ValueError("outputs has %r: takes %s" % (name, ", ".join(known)))
            bit, shape, dtype = known[name]
            desc.outputs |= 1 << bit
            own = getattr(self, dtype) if isinstance(dtype, str) and hasattr(self, dtype) else np.dtype(dtype)
            self.results[name] = getattr(self, shape), own
        for name in ("grad_entropy", "grad_lse"):
            if name in given and not set(GRADIENTS).intersection(self.results):
                raise ValueError("%s is given: takes a gradient among the results" % name)
        self.of_x = {name for name in self.results if known[name][1] == "shape"}  # in the shape of x
        for name in GRADIENTS:
            if name in self.results:
                setattr(desc, name + "_dtype", _DTYPES[name_of(self.results[name][1])])

        # By Python's names: the library's, the shape and the dtype.
        row_losses = reduction == "none"
        self.inputs: Dict[str, Tuple[str, Tuple[int, ...], np.dtype]] = {
            "weight": ("class_weights", self.classes, self.real),
            "row_weights": ("row_weights", self.rows, self.real),
            "denominator": ("denominator", (), self.real),
            "grad_output": ("grad_output", self.rows if row_losses else (), self.real),
            "grad_entropy": ("grad_entropy", self.rows, self.real),
            "grad_lse": ("grad_lse", self.rows, self.real),
        }
        if linear:
            self.inputs["linear_weight"] = "weight", self.linear_weight, self.dtype
            self.inputs["linear_bias"] = "bias", self.classes, self.dtype

    def _set_linear_weight(self, weight: Any) -> None:
        self.linear_weight = tuple(weight.shape)
        if len(self.linear_weight) != 2 or self.linear_weight[1] != self.shape[-1]:
            wanted = "takes [classes, features], with the %d features of hidden" % self.shape[-1]
            raise ValueError("linear_weight has shape %s: %s" % (self.linear_weight, wanted))
        self.classes = self.linear_weight[:1]
        self.logits = (*self.rows, *self.classes)

    def _target_type(self, targets: Any, logits: Tuple[int, ...]) -> int:
        name, shape = name_of(targets.dtype), tuple(targets.shape)
        probabilities = name in _DTYPES
        if not probabilities and name not in _TARGETS:
            raise TypeError(
                "targets is %s: takes class indices of %s, or probabilities of float32%s"
                % (targets.dtype, ", ".join(_TARGETS), self._or_soft_dtype())
            )
        wanted = logits if probabilities else self.rows
        if shape != wanted:
            what = "probabilities" if probabilities else "class indices"
            raise ValueError("targets has shape %s: takes %s of shape %s" % (shape, what, wanted))
        if not probabilities:
            return _TARGETS[name]
        if name == name_of(self.soft_dtype):
            return _PROBABILITIES_LOGITS
        if name == "float32":
            return _PROBABILITIES_F32
        raise TypeError("targets is %s: takes probabilities of float32%s" % (name, self._or_soft_dtype()))

    def _or_soft_dtype(self) -> str:
        name = name_of(self.soft_dtype)
        return "" if name == "float32" else " or %s" % name

    def check_names(self, argument: str, names: Mapping[str, Any]) -> None:
        for name in names:
            if name not in self.results:
                raise ValueError("%s has %r: takes %s" % (argument, name, ", ".join(self.results)))
