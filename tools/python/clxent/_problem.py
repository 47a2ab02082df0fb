# SPDX-License-Identifier: MIT
"""What one call computes, whoever holds its arrays: the library's desc, and the shape and dtype of every array."""

import operator
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

import numpy as np

from . import _library

# bfloat16 of programs without ml_dtypes: the bits, in a dtype that is no integer.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

_DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3, "float64": 4}
_TARGETS = {"int32": 1, "int64": 2, "uint8": 3, "uint16": 6, "uint32": 7}
_PROBABILITIES_F32, _PROBABILITIES_LOGITS = 4, 5
_REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}

# Every result: its bit, shape and dtype. Shapes and dtypes are attributes of Problem, or a dtype itself.
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
    """logits and targets are arrays of any kind, with shape and dtype; given names the optional inputs there are. batch is
    the length of the first axis of a batch that logits are a part of."""

    def __init__(
        self,
        logits: Any,
        targets: Any,
        results: Iterable[str],
        given: Iterable[str] = (),
        *,
        batch: Optional[int] = None,
        axis: int = -1,
        reduction: str = "mean",
        ignore_index: Optional[int] = -100,
        shift: int = 0,
        gradient_dtype: Any = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float = 0.0,
    ) -> None:
        self.dtype, self.shape = logits.dtype, tuple(logits.shape)
        if name_of(self.dtype) not in _DTYPES:
            raise TypeError("logits is %s: takes float16, bfloat16, float32 or float64" % self.dtype)
        if not self.shape:
            raise ValueError("logits has shape (): takes a class axis")
        self.axis = integer("axis", axis, -len(self.shape), len(self.shape) - 1) % len(self.shape)
        if batch is not None:
            # The library cuts between rows, under a shift between sequences, of a class axis inside between slabs.
            if self.axis == 0 or (shift and len(self.shape) < 3):
                why = "the first axis is that of the %s" % ("classes" if self.axis == 0 else "shift")
                raise ValueError("batch is %r: takes None, as %s" % (batch, why))
            self.shape = (integer("batch", batch, 0, 2**63 - 1), *self.shape[1:])
        if reduction not in _REDUCTIONS:
            raise ValueError('reduction is %r: takes "mean", "sum" or "none"' % (reduction,))
        self.rows = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        self.classes = (self.shape[self.axis],)
        self.one: Tuple[int, ...] = ()
        self.real = np.dtype("f8" if self.dtype == np.float64 else "f4")
        self.gradient_dtype = (gradient_dtype or self.dtype).newbyteorder("=")
        if name_of(self.gradient_dtype) not in _DTYPES:
            raise TypeError("gradient is %s: takes float16, bfloat16, float32 or float64" % self.gradient_dtype)

        desc = self.desc = _library.new(_library.library.clxent_desc_init, _library.Desc)
        desc.dtype = _DTYPES[name_of(self.dtype)]
        desc.reduction, self.reduction = _REDUCTIONS[reduction], reduction
        desc.seq = self.rows[-1] if self.rows else 1
        desc.batch = int(np.prod(self.rows[:-1], dtype=np.int64)) if desc.seq > 0 else 0
        desc.classes = self.classes[0]
        desc.inner = max(1, int(np.prod(self.shape[self.axis + 1 :], dtype=np.int64)))
        if targets is not None:
            desc.target_type = self._target_type(targets, tuple(logits.shape))
        self.soft_targets = targets is not None and name_of(targets.dtype) in _DTYPES
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
        for name in results:
            if name not in _RESULTS:
                raise ValueError("outputs has %r: takes %s" % (name, ", ".join(_RESULTS)))
            bit, shape, dtype = _RESULTS[name]
            desc.outputs |= 1 << bit
            own = getattr(self, dtype) if isinstance(dtype, str) and hasattr(self, dtype) else np.dtype(dtype)
            self.results[name] = getattr(self, shape), own
        for name in ("grad_entropy", "grad_lse"):
            if name in given and "gradient" not in self.results:
                raise ValueError("%s is given: takes a gradient among the results" % name)
        self.of_logits = {name for name in self.results if _RESULTS[name][1] == "shape"}
        if "gradient" in self.results:
            desc.gradient_dtype = _DTYPES[name_of(self.gradient_dtype)]

        # By Python's names: the library's, and the shape.
        row_losses = reduction == "none"
        self.inputs = {
            "weight": ("class_weights", self.classes),
            "row_weights": ("row_weights", self.rows),
            "denominator": ("denominator", ()),
            "grad_output": ("grad_output", self.rows if row_losses else ()),
            "grad_entropy": ("grad_entropy", self.rows),
            "grad_lse": ("grad_lse", self.rows),
        }

    def _target_type(self, targets: Any, logits: Tuple[int, ...]) -> int:
        name, shape = name_of(targets.dtype), tuple(targets.shape)
        probabilities = name in _DTYPES
        if not probabilities and name not in _TARGETS:
            raise TypeError(
                "targets is %s: takes class indices of %s, or probabilities of float32 or the dtype of logits, %s"
                % (targets.dtype, ", ".join(_TARGETS), name_of(self.dtype))
            )
        wanted = logits if probabilities else self.rows
        if shape != wanted:
            what = "probabilities" if probabilities else "class indices"
            raise ValueError("targets has shape %s: takes %s of shape %s" % (shape, what, wanted))
        if not probabilities:
            return _TARGETS[name]
        if name == name_of(self.dtype):
            return _PROBABILITIES_LOGITS
        if name == "float32":
            return _PROBABILITIES_F32
        raise TypeError("targets is %s: takes probabilities of float32 or %s" % (name, name_of(self.dtype)))

    def check_names(self, argument: str, names: Mapping[str, Any]) -> None:
        for name in names:
            if name not in self.results:
                raise ValueError("%s has %r: takes %s" % (argument, name, ", ".join(self.results)))
