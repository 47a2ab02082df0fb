#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes golden.inc: inputs and results of the cross-entropy family, computed by NumPy in long double.

Run in this folder: ./make_golden.py > golden.inc. The file is committed; the tests do not run this program.

The results are oracle.py's, a second opinion for host/reference.c: whole matrices instead of rows. What both take from one
closed form is held against another here: logaddexp, and the full Jacobian. Needs a machine whose long double has 64 bits of
mantissa (x86).
"""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from oracle import oracle, store as stored, values_of

LONG = np.longdouble
assert np.finfo(LONG).nmant >= 63, "this machine's long double is too short"


def store(values, dtype):
    """The nearest values of a storage type, as doubles."""
    return values_of(stored(np.asarray(values, dtype=np.float64), dtype.lower()), dtype.lower())


def wide(values):
    return None if values is None else np.asarray(values, dtype=LONG)


def solve(c):
    """Adds the expected results to the case."""
    shape = (c["batch"], c["seq"], c["classes"])
    rows, classes = shape[0] * shape[1], shape[2]
    x = wide(c["logits"])
    y = c["probabilities"] if c["targets"] is None else c["targets"]
    r = oracle(x.reshape(shape), np.reshape(y, shape if c["targets"] is None else shape[:2]), f64=c["dtype"] == "F64",
               wide=LONG, ignore_index=c["ignore_index"] if c["use_ignore"] else None,
               class_weights=wide(c["class_weights"]), row_weights=wide(c["row_weights"]),
               label_smoothing=c["smoothing"], z_loss=c["z_loss"], logit_scale=c["scale"], softcap=c["softcap"],
               reduction=c["reduction"].lower(), denominator=c["denominator"], shift=c["shift"],
               on_bad_target="ignore" if c["bad_target"] == "IGNORE" else "nan", all_ignored=c["all_ignored"].lower(),
               grad_output=wide(c["grad_output"]))
    for name, of in (("losses", "losses"), ("lse", "lse"), ("entropy", "entropy"), ("argmax", "argmax")):
        c[name] = r[of].reshape(rows)
    c["loss"], c["divisor"], c["counted"], c["correct"] = r["loss"], r["divisor"], r["counted"], r["correct"] or 0
    c["softmax"], gradient = r["softmax"].reshape(rows, classes), r["grad"].reshape(rows, classes)
    c["gradient"] = gradient if c["old"] is None else gradient + wide(c["old"])

    # d(-log p_k)/dz_j = p_j - [j = k]; d lse / dz_j = p_j.
    lse = np.logaddexp.reduce(r["z"], axis=1)
    p = np.exp(r["z"] - lse[:, None])
    z_loss = LONG((np.float64 if c["dtype"] == "F64" else np.float32)(c["z_loss"]))
    jacobian = p[:, None, :] - np.eye(classes, dtype=LONG)[None, :, :]
    dz = np.einsum("rk,rkj->rj", r["a"], jacobian) + 2 * z_loss * lse[:, None] * p
    for got, want in ((c["lse"], lse), (c["softmax"], p), (gradient, dz * r["slope"] * r["outer"][:, None])):
        counts = np.isfinite(got) & (got != 0)  # others are told, not computed
        assert (np.abs(got - want) <= 1e-14 * (1 + np.abs(want)))[counts].all(), c["name"]
    return c


DEFAULTS = dict(dtype="F64", target_type="I64", reduction="MEAN", batch=2, seq=2, classes=3, inner=1,
                padding=0, ignore_index=-100, use_ignore=1, bad_target="REPORT", all_ignored="NAN", shift=0,
                smoothing=0.0, z_loss=0.0, scale=1.0, softcap=0.0, targets=None, probabilities=None,
                class_weights=None, row_weights=None, grad_output=None, denominator=None, old=None)
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
        c["grad_output"] = store(rng.standard_normal(1), real)
    elif up == "rows":
        c["grad_output"] = store(rng.standard_normal(shape[0]), real)
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
case("grad_output", up="one")
case("grad_output rows", up="rows", reduction="NONE")
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
               for k in ("logits", "probabilities", "class_weights", "row_weights", "grad_output", "denominator",
                         "old", "losses", "lse", "softmax", "gradient", "entropy") if c[k] is not None]
    fields += [".%s = %s" % (k, array("int64_t", c[k], lambda v: str(int(v))))
               for k in ("targets", "argmax") if c[k] is not None]
    print("    {\n" + wrap(", ".join(fields)) + "\n    },")
