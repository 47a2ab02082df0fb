#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes golden.inc: inputs and results of the cross-entropy family, computed by NumPy in long double.

Run in this folder: ./make_golden.py > golden.inc. The file is committed; the tests do not run this program.

It is a second opinion for host/reference.c and shares none of its structure: whole matrices instead of rows,
logaddexp instead of maximum and sum, the full Jacobian instead of the gradient's closed form. Needs a machine
whose long double has 64 bits of mantissa (x86).
"""
import numpy as np

LONG = np.longdouble
assert np.finfo(LONG).nmant >= 63, "this machine's long double is too short"

REAL = {"F32": np.float32, "F16": np.float32, "BF16": np.float32, "F64": np.float64}


def store(values, dtype):
    """The nearest values of a storage type, as doubles; bf16 by cutting, which is also a value of it."""
    values = np.asarray(values, dtype=np.float64)
    if dtype == "BF16":
        bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(float)
    return values.astype({"F32": np.float32, "F16": np.float16, "F64": np.float64}[dtype]).astype(float)


def solve(c):
    """Adds the expected results to the case."""
    real = REAL[c["dtype"]]
    opt = {k: LONG(real(c[k])) for k in ("smoothing", "z_loss", "scale", "softcap")}
    x = np.asarray(c["logits"], dtype=LONG)
    rows, classes = x.shape
    masked = np.isneginf(x)
    s = np.where(masked, LONG(0), x) * opt["scale"]
    z, slope = s, np.full_like(x, opt["scale"])
    if opt["softcap"] > 0:
        t = np.tanh(s / opt["softcap"])
        z, slope = opt["softcap"] * t, np.where(masked, LONG(0), opt["scale"] * (1 - t * t))
    z = np.where(masked, -LONG(np.inf), z)
    lse = np.logaddexp.reduce(z, axis=1)
    logp = z - lse[:, None]
    p = np.exp(logp)
    c["lse"], c["softmax"] = lse, p
    c["entropy"] = -np.where(p > 0, p * np.where(p > 0, logp, 0), 0).sum(axis=1)
    c["argmax"] = np.argmax(z, axis=1)

    # Row r looks at the target `shift` further on in its sequence.
    seq, shift = c["seq"], c["shift"]
    t = np.arange(rows) % seq
    inside = t + shift < seq
    source = np.where(inside, np.arange(rows) + shift, 0)
    weight = LONG(1) * np.ones(rows) if c["row_weights"] is None else np.asarray(c["row_weights"], dtype=LONG)
    per_class = np.ones(classes, dtype=LONG)
    if c["class_weights"] is not None:
        per_class = np.asarray(c["class_weights"], dtype=LONG)
    live = inside & (weight != 0)
    bad = np.zeros(rows, dtype=bool)
    if c["targets"] is not None:
        y = np.asarray(c["targets"], dtype=np.int64)[source]
        if c["use_ignore"]:
            live &= y != c["ignore_index"]
        outside = live & ((y < 0) | (y >= classes))
        live &= ~outside
        if c["bad_target"] != "IGNORE":
            bad = outside
        safe = np.where(live, y, 0)
        q = np.eye(classes, dtype=LONG)[safe]
        share = weight * per_class[safe]
        c["correct"] = int((live & (c["argmax"] == y)).sum())
    else:
        q = np.asarray(c["probabilities"], dtype=LONG)[source]
        share = weight
        c["correct"] = 0
    a = per_class * ((1 - opt["smoothing"]) * q + opt["smoothing"] / classes)

    losses = weight * (-np.where(a == 0, LONG(0), a * np.where(a == 0, LONG(0), logp)).sum(axis=1)
                       + opt["z_loss"] * lse ** 2)
    losses = np.where(bad, LONG(np.nan), np.where(live, losses, LONG(0)))
    total = np.where(live, share, LONG(0)).sum()
    divisor = total if c["reduction"] == "MEAN" else LONG(1)
    nobody = c["reduction"] == "MEAN" and total == 0
    if c["denominator"] is not None:
        divisor, nobody = LONG(c["denominator"]), False
    c["losses"], c["divisor"], c["counted"] = losses, divisor, int(live.sum())
    c["loss"] = losses.sum() / divisor if not nobody else LONG(np.nan)
    if nobody and c["all_ignored"] == "ZERO" and not bad.any():
        c["loss"] = LONG(0)

    # d(-log p_k)/dz_j = p_j - [j = k]; d lse / dz_j = p_j.
    jacobian = p[:, None, :] - np.eye(classes, dtype=LONG)[None, :, :]
    dz = np.einsum("rk,rkj->rj", a, jacobian) + 2 * opt["z_loss"] * lse[:, None] * p
    up = LONG(1) if c["upstream"] is None else np.asarray(c["upstream"], dtype=LONG)
    outer = weight * up * (LONG(0) if nobody else 1 / divisor)
    g = dz * slope * outer[:, None]
    g = np.where(bad[:, None], LONG(np.nan), np.where(live[:, None], g, LONG(0)))
    c["gradient"] = g if c["old"] is None else g + np.asarray(c["old"], dtype=LONG)
    return c


DEFAULTS = dict(dtype="F64", target_type="I64", reduction="MEAN", batch=2, seq=2, classes=3, inner=1,
                padding=0, ignore_index=-100, use_ignore=1, bad_target="REPORT", all_ignored="NAN", shift=0,
                smoothing=0.0, z_loss=0.0, scale=1.0, softcap=0.0, targets=None, probabilities=None,
                class_weights=None, row_weights=None, upstream=None, denominator=None, old=None)
cases = []


def case(name, seed=None, spread=3.0, offset=0.0, mask=0.0, weights=None, tokens=None, up=None, divide=None,
         accumulate=False, **fields):
    c = dict(DEFAULTS, name=name, **fields)
    rng = np.random.default_rng(len(cases) + 1000 if seed is None else seed)
    real = "F64" if c["dtype"] == "F64" else "F32"
    shape = (c["batch"] * c["seq"], c["classes"])
    logits = store(offset + spread * rng.standard_normal(shape), c["dtype"])
    if mask > 0:
        logits[rng.random(shape) < mask] = -np.inf
        logits[:, 0] = store(rng.standard_normal(shape[0]), c["dtype"])
    c["logits"] = logits
    if c["target_type"].startswith("PROB"):
        q = rng.random(shape) if spread < 5 else rng.standard_normal(shape)
        q[0] /= q[0].sum()
        q[-1, 0] = 0
        c["probabilities"] = store(q, "F32" if c["target_type"].endswith("F32") else c["dtype"])
    elif c["targets"] is None:
        c["targets"] = rng.integers(0, c["classes"], shape[0])
    if weights == "negative":
        c["class_weights"] = store(rng.standard_normal(shape[1]), real)
    elif weights:
        c["class_weights"] = store(rng.random(shape[1]) + 0.25, real)
    if tokens:
        c["row_weights"] = store(rng.random(shape[0]) + 0.5, real)
        c["row_weights"][int(rng.integers(shape[0]))] = 0
    if up == "one":
        c["upstream"] = store(rng.standard_normal(1), real)
    elif up == "rows":
        c["upstream"] = store(rng.standard_normal(shape[0]), real)
    if divide is not None:
        c["denominator"] = float(store(divide, real))
    if accumulate:
        c["old"] = store(rng.standard_normal(shape), c["dtype"])
    cases.append(solve(c))


def combined(seed):
    """Every option drawn, most of them on."""
    rng = np.random.default_rng(seed)
    pick = lambda *what: what[int(rng.integers(len(what)))]
    f = dict(seed=seed + 5000, dtype=pick("F32", "F64", "F64", "F16", "BF16"),
             target_type=pick("I64", "I32", "U8", "PROBABILITIES_F32", "PROBABILITIES_LOGITS"),
             reduction=pick("MEAN", "SUM", "NONE"), batch=pick(1, 2), seq=pick(2, 4), classes=pick(2, 3, 5),
             padding=pick(0, 3), smoothing=pick(0.0, 0.1, 0.5, 1.0), z_loss=pick(0.0, 1e-4, 0.3),
             scale=pick(1.0, 0.125, -1.5), softcap=pick(0.0, 30.0, 2.5), weights=pick(None, True, "negative"),
             tokens=pick(False, True), shift=pick(0, 0, 1), divide=pick(None, None, 7.5),
             accumulate=pick(False, True), all_ignored=pick("NAN", "ZERO"), spread=pick(1.0, 4.0, 9.0))
    f["inner"] = pick(1, f["seq"])
    f["up"] = pick(None, "rows" if f["reduction"] == "NONE" else "one")
    if not f["target_type"].startswith("PROB"):
        targets = rng.integers(0, f["classes"], f["batch"] * f["seq"])
        targets[0] = pick(int(targets[0]), 200)
        f.update(targets=targets, ignore_index=pick(-100, 1, 200), use_ignore=pick(0, 1),
                 bad_target=pick("REPORT", "NAN", "IGNORE"))
    case("combined %d" % seed, **f)


case("mean")
case("sum", reduction="SUM")
case("none", reduction="NONE")
case("f32", dtype="F32")
case("f16", dtype="F16")
case("bf16", dtype="BF16")
case("one class", classes=1)
case("two classes", classes=2)
case("many classes", classes=19, batch=1)
case("targets i32", target_type="I32")
case("targets u8", target_type="U8")
case("probabilities f32", target_type="PROBABILITIES_F32")
case("probabilities as logits", target_type="PROBABILITIES_LOGITS", dtype="F16")
case("signed probabilities", target_type="PROBABILITIES_LOGITS", spread=6.0)
case("ignore_index", targets=[1, -100, 2, -100])
case("ignore_index a class", targets=[1, 2, 2, 0], ignore_index=2)
case("ignore_index off", targets=[1, 2, 2, 0], ignore_index=2, use_ignore=0)
case("class weights", weights=True)
case("negative class weights", weights="negative", reduction="SUM")
case("class weights, probabilities", weights=True, target_type="PROBABILITIES_LOGITS")
case("row weights", tokens=True)
case("row weights, probabilities", tokens=True, target_type="PROBABILITIES_F32", dtype="F32")
case("smoothing", smoothing=0.1)
case("smoothing f32", smoothing=0.1, dtype="F32")
case("smoothing 1", smoothing=1.0)
case("z_loss", z_loss=0.25)
case("scale", scale=0.3, dtype="F32")
case("negative scale", scale=-2.0)
case("softcap", softcap=5.0, spread=6.0)
case("scale and softcap", scale=1.7, softcap=0.9)
case("denominator, mean", divide=12.5)
case("denominator, sum", divide=0.75, reduction="SUM")
case("denominator, none", divide=3.0, reduction="NONE")
case("upstream", up="one")
case("upstream rows", up="rows", reduction="NONE")
case("shift", shift=1, seq=3)
case("shift, probabilities", shift=1, target_type="PROBABILITIES_LOGITS")
case("shift all", shift=2, all_ignored="ZERO")
case("inner", inner=4, seq=4, batch=1, padding=2)
case("inner, probabilities", inner=2, padding=1, target_type="PROBABILITIES_F32")
case("stride", padding=5)
case("accumulate", accumulate=True)
case("all ignored", targets=[-100] * 4)
case("all ignored, zero", targets=[-100] * 4, all_ignored="ZERO")
case("bad target", targets=[1, 3, 2, -1])
case("bad target ignored", targets=[1, 3, 2, -1], bad_target="IGNORE")
case("masked", mask=0.4, classes=5, smoothing=0.0, targets=[0, 0, 0, 0])
case("masked, softcap", mask=0.4, classes=5, softcap=3.0, targets=[0, 0, 0, 0])
case("offset 1e6", offset=1e6)
case("offset -1e6 f32", offset=-1e6, dtype="F32")
for number in range(40):
    combined(number)


def number(v):
    v = float(v)
    return "NAN" if np.isnan(v) else ("-" if v < 0 else "") + "INFINITY" if np.isinf(v) else repr(v)


def array(kind, values, form=number):
    flat = np.asarray(values).reshape(-1)
    return "(const %s[]){ %s }" % (kind, ", ".join(form(v) for v in flat))


def wrap(text, width=108):
    """Breaks a long initialiser at its commas."""
    lines, line = [], "      "
    for word in text.split(" "):
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "       "
        line += " " + word
    return "\n".join(lines + [line])


print("/* SPDX-License-Identifier: MIT\n *\n * Written by make_golden.py. */")
for c in cases:
    names = {"dtype": "", "target_type": "TARGET_", "reduction": "REDUCTION_", "bad_target": "BAD_TARGET_",
             "all_ignored": "ALL_IGNORED_"}
    fields = ['.name = "%s"' % c["name"]] + [".%s = CLXENT_%s%s" % (k, names[k], c[k]) for k in names]
    fields += [".%s = %d" % (k, c[k]) for k in ("batch", "seq", "classes", "inner", "padding", "ignore_index",
                                               "use_ignore", "shift", "correct", "counted") if c[k] != 0]
    fields += [".%s = %s" % (k, number(c[k]))
               for k in ("smoothing", "z_loss", "scale", "softcap", "loss", "divisor") if c[k] != 0]
    fields += [".%s = %s" % (k, array("double", c[k]))
               for k in ("logits", "probabilities", "class_weights", "row_weights", "upstream", "denominator",
                         "old", "losses", "lse", "softmax", "gradient", "entropy") if c[k] is not None]
    fields += [".%s = %s" % (k, array("int64_t", c[k], lambda v: str(int(v))))
               for k in ("targets", "argmax") if c[k] is not None]
    print("    {\n" + wrap(", ".join(fields)) + "\n    },")
