# SPDX-License-Identifier: MIT
"""The cross-entropy family by NumPy, with error bounds: what the tests of the command line, PyTorch's yardstick and the
golden vectors (golden/make_golden.py) take for the truth. Whole matrices in float64, or in long double where asked.
"""

import math

import numpy as np

# ---- Storage ----------------------------------------------------------------------------------

# Unit of "real", largest relative rounding error, half of the smallest subnormal.
ROUNDING = {
    "f16": (2.0**-11, 2.0**-25),
    "bf16": (2.0**-8, 2.0**-134),
    "f32": (2.0**-24, 2.0**-150),
    "f64": (2.0**-53, 0.0),
}
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
    """x: values of the stored logits; y: classes or, in x's shape, probabilities. Results, with bounds. f64: options are
    used as doubles, not as floats; wide: the type of all arithmetic."""
    wide = wide or (np.longdouble if f64 else np.float64)
    real = np.float64 if f64 else np.float32
    u = 2.0**-53 if f64 else 2.0**-24
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
    judged = (position % seq) + shift < seq
    source = np.where(judged, position + shift, 0)
    hard = y.shape != np.moveaxis(np.empty(row_shape + (classes,)), -1, axis).shape or y.dtype.kind in "iu"
    bad = np.zeros(rows, bool)
    q = np.zeros((rows, classes), wide)
    if hard and rows > 0:
        t = y.reshape(-1)[source].astype(np.int64)
        counts = judged & (weight != 0)
        if ignore_index is not None:
            counts &= t != ignore_index
        bad = counts & ((t < 0) | (t >= classes))
        counts &= ~bad
        t = np.where(counts, t, 0)
        q[position, t] = 1
        correct = int((counts & (argmax == t)).sum())
        pull = class_weight[t]
    else:
        counts = judged & (weight != 0)
        if rows > 0:
            q = np.moveaxis(y.astype(wide), axis, -1).reshape(-1, classes)[source]
        correct, pull = None, np.ones(rows, wide)
    a = class_weight * ((1 - label_smoothing) * q + label_smoothing / classes)
    mass = np.abs(a).sum(axis=1, keepdims=True)

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
    upstream_bound = np.zeros_like(p)
    distance = (p * finite_delta).sum(axis=1, keepdims=True)
    entropy_share, entropy_size = p * (finite_delta - distance), finite_delta + distance + 2 * log_d
    for array, share, size in ((grad_lse, p, 1), (grad_entropy, entropy_share, entropy_size)):
        if array is not None:
            up = array.astype(real).astype(wide).reshape(-1, 1)
            gradient = gradient + up * share * slope
            upstream_bound += np.abs(up * slope) * p * size

    # Bounds. `argument`: a scale moves the exponents by 4 u times the largest |z| that matters, a cap by 12.
    near = np.where(delta < (750 if f64 else 110), np.abs(z), 0).max(axis=1, keepdims=True)
    scaled = logit_scale != 1 or softcap > 0
    moves = 12 if softcap > 0 else 4
    argument = moves * near if scaled else np.zeros_like(near)
    far = moves * np.maximum(near, np.where(np.isfinite(z), np.abs(z), 0)) if scaled else np.zeros_like(z)
    exponent = 8 + finite_delta + far
    lse_bound = u * ((2 if f64 else 1) * np.abs(lse) + 2 * log_d + 4 + argument)
    with np.errstate(invalid="ignore"):
        finite_terms = np.where(np.isfinite(terms), np.abs(terms), 0)
        entropy = log_d[:, 0] + np.where(p == 0, 0, p * delta).sum(axis=1)
    loss_bound = (
        u
        * np.abs(weight)
        * (
            16 * (finite_terms.sum(axis=1) + np.abs(z_loss) * lse[:, 0] ** 2)
            + (np.abs(a) * (far * (finite_delta > 0) + argument * (1 - p.max(axis=1, keepdims=True)))).sum(axis=1)
        )
    )
    loss_bound = loss_bound + np.abs(weight) * z_loss * 2 * np.abs(lse[:, 0]) * lse_bound[:, 0]
    element = exponent * (p * mass + 2 * np.abs(z_loss * lse) * p) + (8 + finite_delta) * np.abs(a)
    if hard and label_smoothing == 0 and rows > 0:
        others = (exponent * p * (1 - q)).sum(axis=1) * np.abs(pull) + (2 * np.abs(z_loss * lse) * p * exponent)[
            position, t
        ]
        element[position, t] = others + 8 * np.abs(dz[position, t])
    element = element * u + 2 * z_loss * p * lse_bound
    gradient_bound = (element * np.abs(slope) + 8 * u * np.abs(dz * logit_scale * (softcap > 0))) * np.abs(outer)[
        :, None
    ]
    gradient_bound += 4 * u * np.abs(gradient)  # the denominator and grad_output round
    gradient_bound += u * exponent * upstream_bound
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

    tiny = 2.0**-1022 if f64 else 2.0**-126
    with np.errstate(invalid="ignore"):
        log_p_bound = np.where(np.isfinite(nll), u * (8 + 2 * finite_delta + 4 * log_d + far + argument), 0)
        entropy_bound = u * (
            8
            + 4 * log_d[:, 0]
            + entropy
            + (p * finite_delta * (exponent + 10)).sum(axis=1)
            + (p * far).sum(axis=1)
            + argument[:, 0]
        )
    loss_total = (
        (loss_bound[counts].sum() + 8 * u * np.abs(losses[counts]).sum()) / abs(divisor) if not no_rows else wide(0)
    )
    return {
        "rows": rows,
        "classes": classes,
        "bad_targets": int(bad.sum()),
        "ignored": rows - count - int(bad.sum()),
        "loss": (reduced, loss_total + 8 * u * abs(reduced) + tiny),
        "perplexity": math.exp(mean_nll) if mean_nll is not None else None,
        "perplexity_bound": (
            None
            if mean_nll is None
            else float(
                math.exp(mean_nll)
                * u
                * (1 + (16 * nll[position, t] + argument[:, 0] + far[position, t])[counts].sum() / count)
            )
        ),
        "accuracy": correct / count if hard and count > 0 else None,
        "correct": correct,
        "counted": count,
        "divisor": divisor,
        "z": z,
        "a": a,
        "slope": slope,
        "outer": outer,
        "losses": (flat(losses), flat(loss_bound + tiny)),
        "lse": (flat(lse[:, 0]), flat(lse_bound[:, 0])),
        "softmax": (full(p), full(u * exponent * p + tiny)),
        "log-softmax": (full(-nll), full(log_p_bound + tiny)),
        "grad": (full(gradient), full(np.where(counts[:, None] | (upstream_bound > 0), gradient_bound + tiny, 0))),
        "argmax": (flat(argmax), None),
        "entropy": (flat(entropy), flat(entropy_bound + tiny)),
    }


# ---- Inputs -----------------------------------------------------------------------------------


def batch(seed, shape=(2, 5, 33), dtype="f32", targets="<i8", scale=3.0):
    """Logits with equal maxima, far offsets and masked classes; targets with ignored rows."""
    random = np.random.RandomState(seed)
    x = random.normal(size=shape) * scale
    x = x.reshape(-1, shape[-1])
    if len(x) > 3:
        x[0] += 1000
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
