# SPDX-License-Identifier: MIT
"""The cross-entropy family by NumPy: what the tests of the command line, of Python, PyTorch's yardstick and the golden vectors
(golden/make_golden.py) take for the truth. Whole matrices in float64, or in long double where asked.
"""

import math

import numpy as np

# ---- Storage ----------------------------------------------------------------------------------

# Relative and absolute errors that tests of what is around the library allow; test_*.c hold the library itself to its bounds.
ERRORS = {"f16": (2.0**-10, 1e-5), "bf16": (2.0**-7, 1e-5), "f32": (1e-4, 1e-5), "f64": (1e-12, 1e-13)}
OUTPUTS = ("losses", "lse", "softmax", "log-softmax", "grad", "argmax", "entropy")
NUMPY = {"f16": "<f2", "bf16": "<u2", "f32": "<f4", "f64": "<f8"}


def store(values, dtype):
    """float64 to what the file holds; bf16 rounds to nearest even."""
    if dtype != "bf16":
        return values.astype(NUMPY[dtype])
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return bits.astype("<u2")


def values_of(stored, dtype, wide=np.float64):
    if dtype == "bf16":
        stored = (stored.astype("<u4") << 16).view("<f4")
    return stored.astype(wide)


# ---- The formulas -----------------------------------------------------------------------------


def oracle(
    x,
    y,
    axis=-1,
    f64=False,
    ignore_index=-100,
    class_weights=None,
    row_weights=None,
    label_smoothing=0.0,
    z_loss=0.0,
    logit_scale=1.0,
    softcap=0.0,
    reduction="mean",
    denominator=None,
    shift=0,
    on_bad_target="error",
    all_ignored="nan",
    grad_output=None,
    grad_entropy=None,
    grad_lse=None,
    wide=None,
):
    """x: values of the stored logits; y: classes or, in x's shape, probabilities. f64: options are used
    as doubles, not as floats; wide: the type of all arithmetic."""
    wide = wide or (np.longdouble if f64 else np.float64)
    real = np.float64 if f64 else np.float32
    # Options are used as real: their rounding belongs to the problem.
    label_smoothing, z_loss, logit_scale, softcap = (
        wide(real(v)) for v in (label_smoothing, z_loss, logit_scale, softcap)
    )

    x = np.moveaxis(x.astype(wide), axis, -1)
    row_shape, classes = x.shape[:-1], x.shape[-1]
    x = x.reshape(-1, classes)
    rows, seq = x.shape[0], row_shape[-1] if row_shape else 1
    s = x * logit_scale
    tanh = np.tanh(s / softcap) if softcap > 0 else np.zeros_like(s)
    z = softcap * tanh if softcap > 0 else s
    z = np.where(x == -np.inf, -np.inf, z)
    # Of the scaled logits: a softcap that saturates makes equal what is not. Rounding to real may tie.
    argmax = np.where(x == -np.inf, -np.inf, s).astype(real).argmax(axis=1)
    m = z.max(axis=1, keepdims=True)
    delta = m - z
    e = np.exp(-delta)
    top = np.zeros_like(e)
    top[np.arange(rows), z.argmax(axis=1)] = 1
    log_d = np.log1p((e * (1 - top)).sum(axis=1, keepdims=True))
    d = e.sum(axis=1, keepdims=True)
    p, lse, nll = e / d, m + log_d, delta + log_d
    finite_delta = np.where(np.isfinite(delta), delta, 0)

    weight = np.ones(rows, wide) if row_weights is None else row_weights.astype(real).astype(wide).reshape(-1)
    class_weight = np.ones(classes, wide) if class_weights is None else class_weights.astype(real).astype(wide)
    position = np.arange(rows)
    has_target = (position % seq) + shift < seq
    source = np.where(has_target, position + shift, 0)
    hard = y.shape != np.moveaxis(np.empty(row_shape + (classes,)), -1, axis).shape or y.dtype.kind in "iu"
    bad = np.zeros(rows, bool)
    q = np.zeros((rows, classes), wide)
    if hard and rows > 0:
        t = y.reshape(-1)[source].astype(np.int64)
        counts = has_target & (weight != 0)
        if ignore_index is not None:
            counts &= t != ignore_index
        bad = counts & ((t < 0) | (t >= classes))
        counts &= ~bad
        t = np.where(counts, t, 0)
        q[position, t] = 1
        correct = int((counts & (argmax == t)).sum())
        pull = class_weight[t]
    else:
        counts = has_target & (weight != 0)
        if rows > 0:
            q = np.moveaxis(y.astype(wide), axis, -1).reshape(-1, classes)[source]
        correct, pull = None, np.ones(rows, wide)
    a = class_weight * ((1 - label_smoothing) * q + label_smoothing / classes)

    with np.errstate(invalid="ignore"):
        terms = np.where(a == 0, 0, a * nll)
    losses = weight * (terms.sum(axis=1) + z_loss * lse[:, 0] ** 2)
    dz = p * a.sum(axis=1, keepdims=True) - a + 2 * z_loss * lse * p
    if hard and label_smoothing == 0 and rows > 0:
        # The target's element is minus the sum over the others: p - 1 would have lost digits.
        others = (e * (1 - q)).sum(axis=1) / d[:, 0]
        dz[position, t] = -pull * others + (2 * z_loss * lse * p)[position, t]
    slope = np.where(x == -np.inf, 0, logit_scale * (1 - tanh**2))

    divisor = wide(1)
    if reduction == "mean":
        divisor = (weight * pull)[counts].sum()
    if denominator is not None:
        divisor = wide(real(denominator))
    no_rows = divisor == 0
    factor = np.ones(rows, wide)
    if grad_output is not None:
        factor = factor * grad_output.astype(real).astype(wide).reshape(-1)
    outer = np.where(counts, weight * factor, 0) / (1 if no_rows else divisor)
    gradient = np.where(counts[:, None], dz * slope * outer[:, None], 0)
    losses = np.where(counts, losses, 0)
    distance = (p * finite_delta).sum(axis=1, keepdims=True)
    for array, share in ((grad_lse, p), (grad_entropy, p * (finite_delta - distance))):
        if array is not None:
            gradient = gradient + array.astype(real).astype(wide).reshape(-1, 1) * share * slope
    with np.errstate(invalid="ignore"):
        entropy = log_d[:, 0] + np.where(p == 0, 0, p * delta).sum(axis=1)
    losses = np.where(bad & (on_bad_target == "nan"), np.nan, losses)
    gradient = np.where((bad & (on_bad_target == "nan"))[:, None], np.nan, gradient)

    reduced = (
        losses.sum() / divisor
        if rows > 0 and not no_rows
        else wide(0) / (divisor if reduction != "mean" or denominator else 1)
    )
    if no_rows:
        reduced = wide(np.nan if all_ignored == "nan" else 0)
    if (bad & (on_bad_target == "nan")).any():
        reduced = wide(np.nan)
    count = int(counts.sum())
    mean_nll = nll[position, t][counts].sum() / count if hard and count > 0 else None

    def full(v):
        return np.moveaxis(v.reshape(row_shape + (classes,)), -1, axis)

    def flat(v):
        return v.reshape(row_shape)

    return {
        "rows": rows,
        "classes": classes,
        "bad_targets": int(bad.sum()),
        "ignored": rows - count - int(bad.sum()),
        "loss": reduced,
        "perplexity": math.exp(mean_nll) if mean_nll is not None else None,
        "accuracy": correct / count if hard and count > 0 else None,
        "correct": correct,
        "counted": count,
        "divisor": divisor,
        "z": z,
        "a": a,
        "slope": slope,
        "outer": outer,
        "losses": flat(losses),
        "lse": flat(lse[:, 0]),
        "softmax": full(p),
        "log-softmax": full(-nll),
        "grad": full(gradient),
        "argmax": flat(argmax),
        "entropy": flat(entropy),
    }


def linear_oracle(h, w, y, b=None, **options):
    """The same of linear cross-entropy, from all logits."""
    want = oracle(h @ w.T + (0 if b is None else b), y, f64=True, **options)
    d, rows = want.pop("grad").reshape(-1, len(w)), h.reshape(-1, h.shape[-1])
    products = {"hidden_gradient": (d @ w).reshape(h.shape), "weight_gradient": d.T @ rows, "bias_gradient": d.sum(axis=0)}
    return {**want, **products}


# ---- Inputs -----------------------------------------------------------------------------------


def batch(seed, shape=(2, 5, 33), dtype="f32", targets="<i8", scale=3.0):
    """Logits with equal maxima, far offsets and masked classes; targets with ignored rows."""
    random = np.random.RandomState(seed)
    x = random.normal(size=shape) * scale
    x = x.reshape(-1, shape[-1])
    if len(x) > 3:
        x[0] += 100
        x[1] = -np.abs(x[1]) - 100
        x[2, : shape[-1] // 2] = x[2].max()
        x[3, shape[-1] // 3] = 40  # a confident row
    stored = store(x.reshape(shape), dtype)
    y = random.randint(0, shape[-1], size=shape[:-1])
    if y.size > 4:
        y.reshape(-1)[3] = shape[-1] // 3
        if targets != "u1":
            y.reshape(-1)[4] = -100
    return stored, y.astype(targets)
