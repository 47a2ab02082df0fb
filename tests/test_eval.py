#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`clxent eval` as a user runs it: every option, output, dtype and kind of file, held against NumPy, and what it says of
inputs that it does not take. Whether results are within their bounds: test_cross_entropy.c and others.

Where few programs are compiled, cases take those of test_cross_entropy.c: int64 targets, all outputs or none, and options
that are values of a run.
"""

import itertools
import json
import math
import os
import resource
import unittest
import warnings
import zipfile

import numpy as np

from cli import ALL, KEYS, SMALL, Case
from oracle import NUMPY, OUTPUTS, batch, linear_oracle, store, values_of

# Options that a program is compiled for. A value alone does not compile another.
COMPILED = ("class_weights", "label_smoothing", "logit_scale", "softcap", "grad_entropy", "grad_lse")
# Beside class weights: together a program of test_cross_entropy.c.
DENSE = {} if ALL else {"label_smoothing": 0.13, "softcap": 4.5}
# Those that need no targets.
LOGITS_OUTPUTS = ("lse", "softmax", "log-softmax", "argmax", "entropy")

# Every dtype that is read; byte orders in turn.
INTEGERS = ("?", "i1", "u1", "<i2", ">u2", ">i4", "<u4", "<i8", ">u8")
SAFETENSORS = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def npy(descr, shape, data):
    """A file whose header NumPy would not write."""
    header = b"{'descr': '%s', 'fortran_order': False, 'shape': %s}" % (descr.encode(), str(shape).encode())
    header += b" " * ((1 - len(header) - 10) % 4)  # data that is not aligned
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def safetensors(header, data=b""):
    """A file of a header, text or what JSON makes of it."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors_of(**tensors):
    """A file of tensors, each (dtype, array), in this order."""
    header, data = {"__metadata__": {"made by": "test_eval.py"}}, b""
    for name, (dtype, array) in tensors.items():
        stored = array.astype(SAFETENSORS[dtype]).tobytes()
        header[name] = entry(dtype, array.shape, (len(data), len(data) + len(stored)))
        data += stored
    return safetensors(header, data)


class EvalCase(Case):
    def data(self):
        x, y = batch(11)
        y.reshape(-1)[6] = 7
        return x, y

    def refuse_eval(self, *flags, mentions, **kwargs):
        """Of the files that are there."""
        files = ["--logits", self.path("x.npy"), "--targets", self.path("y.npy")]
        self.refuse("eval", *files, *flags, mentions=mentions, **kwargs)

    def check(self, x, y, mentions, *flags, name="x.npy"):
        """One line that names the file. An array, a file's bytes, or None for no file."""
        for path, array in (("x.npy", x), ("y.npy", y)):
            if isinstance(array, bytes):
                self.raw(path, array)
            elif array is not None:
                np.save(self.path(path), array, allow_pickle=True)
            elif os.path.exists(self.path(path)):
                os.remove(self.path(path))
        self.refuse_eval("--grad-out", self.path("g.npy"), *flags, mentions=[self.path(name) + ": ", *mentions])

    def check_targets(self, x, y, *mentions, flags=()):
        self.check(x, y, mentions, *flags, name="y.npy")

    def check_weights(self, x, y, flag, array, *mentions, flags=()):
        self.check(x, y, mentions, *flags, flag, self.save("w.npy", array), name="w.npy")

    def same_bits(self, got, want):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], name)


# ---- Numbers ----------------------------------------------------------------------------------


class Batches(EvalCase):

    def test_every_dtype(self):
        kinds = [(dtype, None) for dtype in ("f32", "f16", "bf16", "f64")] + [("f32", "bf16")]
        if ALL:
            kinds += itertools.product(("f32", "f16", "bf16"), repeat=2)
            kinds += [("f64", "f32"), ("f64", "f64")]
        for dtype, grad in kinds:
            with self.subTest(dtype=dtype, grad=grad):
                x, y = batch(7, dtype=dtype)
                _, arrays, _ = self.evaluate(x, y, dtype=dtype, grad_dtype=grad)
                self.assertEqual(arrays["grad"].dtype, np.dtype(NUMPY[grad or dtype]))

    def test_masked_classes_and_special_rows(self):
        x = np.zeros((7, 5), "<f4")
        x[0, 2] = -np.inf  # another class masked
        x[1, 3] = -np.inf  # the target masked: +inf
        x[2] = -np.inf  # nothing left: NaN, lse -inf
        x[3, 0] = np.inf  # NaN, lse +inf
        x[4, 4] = np.nan
        x[5] = np.nan  # ignored
        x[6] += 1e6
        y = np.array([3, 3, 3, 3, 3, -100, 3])
        outputs = [flag for name in OUTPUTS for flag in ("--%s-out" % name, self.path(name + ".npy"))]
        got = self.succeed_json("eval", *self.files(x, y), *outputs)
        self.assertEqual((got["loss"], got["perplexity"], got["ignored"]), ("NaN", "NaN", 1))
        out = {name: np.load(self.path(name + ".npy")) for name in OUTPUTS}
        log4, log5 = math.log(4), math.log(5)
        self.close(out["losses"], [log4, np.inf, np.nan, np.nan, np.nan, 0, log5], "f32", "losses")
        lse = [log4, log4, -np.inf, np.inf, np.nan, np.nan, 1e6 + log5]
        self.close(out["lse"], lse, "f32", "lse")
        self.assertTrue((out["grad"][5] == 0).all())
        self.assertTrue(np.isfinite(out["grad"][[0, 1, 6]]).all())
        self.assertEqual(list(out["argmax"]), [0, 0, 0, 0, 4, 0, 0])
        only = self.succeed_json("eval", *self.files(x[:2], y[:2]))
        self.assertEqual((only["loss"], only["perplexity"]), ("Infinity", "Infinity"))

    def test_perplexity_of_confident_rows_under_every_option(self):
        x = np.full((4, 8), 1e6, "<f4")
        x[:, 3] += 16
        nll = math.log1p(7 * math.exp(-16))
        for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}, {"row_weights": np.full(4, 3.0)}):
            with self.subTest(options=list(options)):
                outputs = () if ALL or "label_smoothing" not in options else ("softmax", "grad")
                got, _, _ = self.evaluate(x, np.full(4, 3), outputs=outputs, **options)
                self.assertAlmostEqual(math.log(got["perplexity"]), nll, delta=1e-5 * nll)


class Options(EvalCase):
    def alone(self):
        random = np.random.RandomState(5)
        row_weights = np.where(random.uniform(size=(2, 5)) < 0.3, 0, random.uniform(0.1, 2, (2, 5)))
        return {
            "ignore_index": 7,
            "class_weights": random.uniform(-0.5, 2, 33).astype("<f4"),
            "row_weights": row_weights.astype("<f4"),
            "label_smoothing": 0.13,
            "z_loss": 0.02,
            "logit_scale": -0.7,
            "softcap": 4.5,
            "reduction": "sum",
            "denominator": -3.5,
            "shift": 2,
            "grad_output": np.array(1.7, "<f4"),
            "grad_entropy": random.uniform(-2, 2, (2, 5)).astype("<f4"),
            "grad_lse": np.where(np.arange(10) % 3 == 0, 0, random.uniform(-2, 2, 10)).reshape(2, 5).astype("<f4"),
        }

    def test_each_alone_changes_the_result(self):
        x, y = self.data()
        plain_got, plain, _ = self.evaluate(x, y)
        for name, value in self.alone().items():
            if not ALL and name in ("class_weights", "label_smoothing", "logit_scale", "grad_lse"):
                continue  # programs of their own, which test_combinations() has
            with self.subTest(option=name):
                extra = {"on_bad_target": "ignore"} if name == "ignore_index" else {}  # -100 is no class then
                outputs = OUTPUTS
                if not ALL and name == "softcap":
                    extra["logit_scale"] = -0.7
                if not ALL and name == "grad_entropy":
                    extra["grad_lse"] = self.alone()["grad_lse"]
                    outputs = ("lse", "grad", "entropy")
                got, arrays, _ = self.evaluate(x, y, outputs=outputs, **{name: value}, **extra)
                self.assertFalse(np.array_equal(arrays["grad"], plain["grad"]))
                self.assertEqual(got["loss"] == plain_got["loss"], name.startswith("grad_"))

    def test_combinations(self):
        options = self.alone()
        random = np.random.RandomState(9)
        for i in range(24 if ALL else 3):
            chosen = {name: value for name, value in options.items() if random.uniform() < (1.0 if i == 0 else 0.5)}
            if not ALL:  # the first has the dense options of test_variants.c
                for name in ("logit_scale", "grad_entropy", "grad_lse") if i == 0 else COMPILED:
                    chosen.pop(name, None)
            dtype = ("f32", "bf16", "f64", "f16")[i % 4]
            chosen["on_bad_target"] = ("nan", "ignore")[i % 2]
            if random.uniform() < 0.4:
                chosen["reduction"] = ("mean", "sum", "none")[i % 3]
            with self.subTest(i=i, dtype=dtype, options=list(chosen)):
                x, y = batch(100 + i, dtype=dtype, scale=2.0)
                y.reshape(-1)[[5, 6]] = (33, 7)  # out of range, and ignored in some
                self.evaluate(x, y, dtype=dtype, **chosen)

    def test_ignore_index(self):
        x, y = self.data()
        with self.subTest("a class"):
            self.evaluate(x, y, ignore_index=int(y[0, 0]), on_bad_target="ignore")
        with self.subTest("none"):
            self.evaluate(x, np.abs(y) % 33, ignore_index=None)
            self.save("y.npy", y)
            self.refuse_eval("--ignore-index", "none", mentions=["-100", "0 to 32"])
        with self.subTest("full width"):
            y[1, 1] = 2**32 + 5
            got, _, _ = self.evaluate(x, y, ignore_index=2**32 + 5, on_bad_target="ignore")
            self.assertEqual((got["ignored"], got["bad_targets"]), (1, 1))

    def test_bad_target_policies(self):
        x, y = self.data()
        y[1, 3], y[0, 2] = 33, -1
        for policy in ("nan", "ignore"):
            got, arrays, _ = self.evaluate(x, y, on_bad_target=policy)
            self.assertEqual(got["bad_targets"], 2)
            self.assertEqual(np.isnan(arrays["losses"]).sum(), 2 if policy == "nan" else 0)

    def test_all_ignored(self):
        x, _ = self.data()
        y = np.full((2, 5), -100)
        got, arrays, _ = self.evaluate(x, y)
        self.assertEqual((got["loss"], got["perplexity"], got["accuracy"]), ("NaN", None, None))
        self.assertTrue((arrays["grad"] == 0).all())
        self.assertEqual(self.evaluate(x, y, all_ignored="zero")[0]["loss"], 0.0)

    def test_probabilities(self):
        x, _ = self.data()
        q = np.random.RandomState(3).uniform(-0.1, 1, x.shape)
        options = self.alone()
        kinds = [("f32", "<f4"), ("bf16", "<u2")]
        if ALL:
            kinds += [("f64", "<f4"), ("f16", "<f2"), ("f16", "<f4"), ("bf16", "<f4"), ("f64", "<f8")]
        for dtype, stored in kinds:
            with self.subTest(dtype=dtype, stored=stored):
                y = store(q, "bf16") if stored == "<u2" else q.astype(stored)
                self.evaluate(store(x.astype("f8"), dtype), y, dtype=dtype)
        q = q.astype("<f4")
        for name in ("class_weights", "row_weights", "label_smoothing", "z_loss", "shift", "reduction"):
            if ALL or name != "label_smoothing":
                with self.subTest(option=name):
                    self.evaluate(x, q, **{name: options[name]}, **(DENSE if name == "class_weights" else {}))
        for index in (0, 7, 2**40):
            said = "y.npy: --ignore-index %d: takes a negative index or 'none'" % index
            self.refuse_eval("--ignore-index", index, mentions=[said, "probabilities"])
        for index in (-1, None):
            self.evaluate(x, q, ignore_index=index)

    def test_masked_rows_may_hold_anything(self):
        x, y = self.data()
        x[0, 1], y[0, 1] = np.nan, 1000
        weights = np.ones((2, 5), "<f4")
        weights[0, 1] = 0
        got, arrays, _ = self.evaluate(x, y, row_weights=weights, outputs=("losses", "grad"))
        self.assertEqual((got["bad_targets"], got["ignored"]), (0, 2))
        self.assertTrue((arrays["grad"][0, 1] == 0).all())

    def test_shift_of_a_whole_sequence(self):
        x, y = self.data()
        self.assertEqual(self.evaluate(x, y, shift=5)[0]["ignored"], 10)


# ---- Files ------------------------------------------------------------------------------------


class Files(EvalCase):
    def bits(self, x, y, dtype="f32", **kwargs):
        outputs = ("losses", "grad", "softmax") if dtype == "f32" else OUTPUTS
        return self.evaluate(x, y, dtype=dtype, outputs=outputs, **kwargs)[1]

    def test_versions_orders_and_byte_orders_give_the_same_bits(self):
        x, y = batch(21, (3, 4, 17))
        want = self.bits(x, y)
        ways = itertools.product("CF", "<>", "<>")  # a version has nothing to do with them: test_npy.c
        for version, (order, bytes_x, bytes_y) in zip(itertools.cycle(((1, 0), (2, 0), (3, 0))), ways):
            with self.subTest(version=version, order=order, bytes_x=bytes_x, bytes_y=bytes_y):

                def save(name, array):
                    if array.dtype.itemsize > 1:
                        array = array.astype(array.dtype.newbyteorder(bytes_x if name == "x.npy" else bytes_y))
                    return self.save(name, np.array(array, order=order), version=version)

                self.same_bits(self.bits(x, y, save=save), want)

    def test_dtypes_of_classes_row_weights_and_grad_output(self):
        x, _ = batch(23)
        random = np.random.RandomState(0)
        y, weights, factor = random.randint(0, 33, (2, 5)), random.randint(0, 4, (2, 5)), np.array(2)

        def of(dtype, values):
            return np.asarray(values != 0 if dtype == "?" else values, dtype)

        for number, dtype in enumerate(INTEGERS):
            y[1, 3] = -100 if np.dtype(dtype).kind == "i" else 7
            arrays = [of(dtype, values).astype("<i8") for values in (y, weights, factor)]
            options = {"row_weights": arrays[1], "grad_output": arrays[2]}
            wide = {"row_weights": arrays[1].astype("<f4"), "grad_output": arrays[2].astype("<f8")}
            # row weights beside targets of each type: a program more, for the perplexity
            for kept, of_classes, of_rows in (("", options, wide),) if ALL else (("", {}, {}), ("y.npy", options, wide)):
                save = lambda name, a: self.save(name, np.array(a, order="CF"[number % 2]))
                stored = lambda name, a: save(name, a if name in ("x.npy", kept) else a.astype(dtype))
                with self.subTest(dtype=dtype, options=list(of_classes)):
                    want = self.bits(x, arrays[0], **of_rows)
                    self.same_bits(self.bits(x, arrays[0], save=stored, **of_classes), want)
        for dtype in ("<f2", ">f2", ">f4", "<f8"):
            got = self.bits(x, y, row_weights=weights.astype(dtype), grad_output=factor.astype(dtype))
            self.same_bits(got, self.bits(x, y, row_weights=weights.astype("<f4"), grad_output=factor.astype("<f4")))

    def test_any_byte_but_0_is_true(self):
        x, _ = batch(23)
        y = np.arange(10).reshape(2, 5) % 3
        raw = npy("|b1", y.shape, y.astype("u1").tobytes())
        stored = lambda name, a: self.save(name, a) if name == "x.npy" else self.raw(name, raw)
        self.bits(x, (y != 0).astype("<i8"), save=stored)

    def test_dtypes_of_probabilities(self):
        x, y = self.data()
        one_hot = (np.arange(33) == y[:, :, None]).astype("<f4")
        q = np.random.RandomState(3).uniform(-0.1, 1, x.shape)
        kinds = [("f32", one_hot, dtype) for dtype in ("?", "i1", ">u2", ">f2", ">f8")] + [("f32", q, "<f8")]
        if ALL:  # with f64 logits f8 keeps its digits, and integers become f8
            kinds += [("f64", one_hot, "i1"), ("f64", q, "<f8")]
        for number, (dtype, values, stored) in enumerate(kinds):
            with self.subTest(dtype=dtype, stored=stored):
                logits, own = store(x.astype("f8"), dtype), values.astype("<f4" if dtype == "f32" else "<f8")
                save = lambda name, a: self.save(
                    name, a if name == "x.npy" else np.array(values.astype(stored), order="FC"[number % 2])
                )
                want = self.evaluate(logits, own, dtype=dtype)[1]
                self.same_bits(self.evaluate(logits, own, dtype=dtype, save=save)[1], want)

    def test_dtypes_of_class_weights(self):
        x, y = self.data()
        whole, fractions = np.arange(33) % 4, np.random.RandomState(4).uniform(0.5, 2, 33)
        for weights, dtype in ((whole != 0, "?"), (whole, ">i2"), (whole, "<u8"), (fractions, "<f8"), (fractions, ">f4")):
            with self.subTest(dtype=dtype):
                want = self.evaluate(x, y, class_weights=weights.astype("<f4"), **DENSE)[1]
                self.same_bits(self.evaluate(x, y, class_weights=weights.astype(dtype), **DENSE)[1], want)

    def test_one_value_for_all_rows_or_classes(self):
        x, y = batch(23)
        x, y = x[:, :4], y[:, :4]  # 4 rows of a sequence: (1,) has no other meaning
        for name, shape in (("row_weights", (2, 4)), ("class_weights", 33), ("grad_output", (2, 4))):
            options = {"class_weights": DENSE, "grad_output": {"reduction": "none"}}.get(name, {}).copy()
            for value in (np.array(3, "u1"), np.array(0.1, ">f2"), np.array([2], "<i8"), np.array([0.1], "<f4")):
                with self.subTest(name=name, value=value):
                    options[name] = np.full(shape, value, "<f4")
                    want = self.evaluate(x, y, **options)[1]
                    stored = lambda file, a: self.save(file, value if file == name + ".npy" else a)
                    self.same_bits(self.evaluate(x, y, save=stored, **options)[1], want)
        said = "shape (1, 1): %s, or one value, () or (1,)"
        for flag, takes in (
            ("class-weights", "class weights take (33,)"),
            *((name, "values of --%s take (2, 4)" % name) for name in ("grad-entropy", "grad-lse", "grad-output")),
            ("row-weights", "row weights take (2, 4)"),
        ):
            flags = ("--reduction", "none")
            self.check_weights(x, y, "--" + flag, np.ones((1, 1)), said % takes, flags=flags)
        said = "shape (1, 1): values of --grad-output take one value, () or (1,), with this --reduction"
        self.check_weights(x, y, "--grad-output", np.ones((1, 1)), said)

    def test_dtypes_of_the_gradients_of_entropy_and_lse(self):
        base = ["eval", *self.files(*batch(23)), "--grad-out", self.path("g.npy"), "--entropy-out", self.path("e.npy")]
        each = np.arange(10).reshape(2, 5)
        twos = np.full((2, 5), 2)
        for want, stored in ((each, each.astype(">i2")), (twos, np.array(2, "u1")), (twos, np.array([2], ">f8"))):
            read = []
            for array in (want.astype("<f4"), stored):
                flags = [self.save("h.npy", array), "--grad-lse", self.save("k.npy", array)]
                self.succeed(*base, "--grad-entropy", *flags)
                read.append(self.read("g.npy"))
            self.assertEqual(*read)

    def test_class_axis_of_length_1_in_targets_and_row_weights(self):
        random = np.random.RandomState(1)
        x, y = batch(23)
        images = random.normal(size=(2, 7, 3, 5)).astype("<f4")
        labels = random.randint(0, 7, (2, 3, 5)).astype("<i8")
        for logits, targets, axis in ((x, y, -1), (images, labels, 1)):
            weights = random.uniform(size=targets.shape).astype("<f4")
            options = {"axis": axis, "row_weights": weights}
            _, want, _ = self.evaluate(logits, targets, **options)
            stored = lambda name, a: self.save(name, a if name == "x.npy" else np.expand_dims(a, axis))
            self.same_bits(self.evaluate(logits, targets, save=stored, **options)[1], want)

    def test_integers_beside_one_class_are_classes(self):
        x = np.zeros((2, 5, 1), "<f4")
        stored = lambda name, a: self.save(name, a.reshape(x.shape))
        got, _, _ = self.evaluate(x, np.zeros((2, 5), "<i8"), save=stored)
        self.assertEqual(got["accuracy"], 1)
        self.check_targets(x, np.ones(x.shape, "<i8"), "target 1 at (0, 0)", "takes 0 to 0")

    def test_integers_in_the_logits_shape_are_one_hot(self):
        x, _ = batch(23)
        for number, (dtype, value) in enumerate((("u1", 255), ("<i8", -1), (">i4", 2), ("<u8", 2**32), ("i1", -100))):
            y = np.zeros(x.shape, dtype, order="CF"[number % 2])
            y[1, 2, 3] = value
            said = "item (1, 2, 3) is %d: an integer in the logits' shape takes 0 or 1" % value
            self.check_targets(x, y, said)

    def test_bf16_in_items_of_other_kinds(self):
        x, y = batch(24, dtype="bf16")
        want = self.bits(x, y, dtype="bf16")
        for dtype in ("<i2", "V2"):
            save = lambda name, a: self.save(name, a.view(dtype) if name == "x.npy" else a)
            self.same_bits(self.bits(x, y, dtype="bf16", save=save), want)
        named = npy("bfloat16", x.shape, x.tobytes())
        save = lambda name, a: self.save(name, a) if name == "y.npy" else self.raw(name, named)
        self.same_bits(self.bits(x, y, dtype="bf16", save=save), want)

    def test_class_axes(self):
        for shape, axis, orders in (
            ((2, 7, 3, 5), 1, "CF"),
            ((2, 7, 3, 5), -3, "F"),
            ((7, 4), 0, "CF"),
            ((4, 7), 1, "F"),
            ((2, 3, 7), -1, "C"),
            ((7,), 0, "C"),
            ((2, 7, 1), 1, "F"),
            ((3, 21, 16, 17), 1, "CF"),
            ((2, 3, 4, 7), -1, "F"),
            ((2, 3, 7, 4), -2, "C"),
        ):
            for order in orders:
                with self.subTest(shape=shape, axis=axis, order=order):
                    random = np.random.RandomState(1)
                    x = random.normal(size=shape).astype("<f4")
                    y = random.randint(0, 7, np.delete(shape, axis)).astype("<i8")
                    save = lambda name, a: self.save(name, np.array(a, order=order))
                    # of many inner positions, what test_host_arrays.c computes
                    outputs = OUTPUTS if ALL or shape[-1] < 17 else ("losses", "lse", "grad", "argmax")
                    self.evaluate(x, y, axis=axis, outputs=outputs, save=save)

    def test_class_axis_with_shift_weights_and_probabilities(self):
        random = np.random.RandomState(2)
        x = random.normal(size=(2, 6, 3, 5)).astype("<f4")
        y = random.randint(0, 6, (2, 3, 5)).astype("<i8")
        weights = random.uniform(0, 1, (2, 3, 5)).astype("<f4")
        compiled = {"class_weights": random.uniform(size=6).astype("<f4"), "label_smoothing": 0.1}
        self.evaluate(x, y, axis=1, shift=2, row_weights=weights, **(compiled if ALL else {}))
        self.evaluate(x, random.uniform(size=x.shape).astype("<f4"), axis=1, shift=1, row_weights=weights)
        self.evaluate(x, y, axis=1, reduction="none", grad_output=weights)
        # the sequence is the last axis but the classes'
        x = random.normal(size=(2, 3, 5, 6)).astype("<f4")
        y = random.randint(0, 6, (2, 3, 5)).astype("<i8")
        self.evaluate(x, y, shift=2, row_weights=weights)

    def test_empty_and_single(self):
        for shape in ((0, 3, 4), (2, 0, 4), (1, 1, 1)):
            with self.subTest(shape=shape):
                self.evaluate(np.zeros(shape, "<f4"), np.zeros(shape[:-1], "<i8"))
        self.evaluate(np.zeros((2, 4, 0), "<f4"), np.zeros((2, 0), "<i8"), axis=1)

    def test_outputs_are_complete_or_absent(self):
        x, y = batch(26)
        base = ["eval", *self.files(x, y)]
        old = self.read(self.save("old.npy", y))
        os.symlink("a.npy", self.path("link.npy"))
        for lse, grad, mentions in (
            ("lse.npy", "no/grad.npy", ["no/grad.npy", "No such file"]),
            ("lse.npy", "x.npy/grad.npy", ["grad.npy"]),
            ("old.npy", self.dir, ["is a directory"]),
            ("/dev/null", "grad.npy", ["/dev/null", "regular"]),
            *((other, "a.npy", ["--lse-out and --grad-out name the same file"])
              for other in ("./a.npy", self.path("a.npy"), "link.npy", self.path("link.npy"))),
        ):  # fmt: skip
            self.refuse(*base, "--lse-out", lse, "--grad-out", grad, cwd=self.dir, mentions=mentions)
        os.remove(self.path("link.npy"))
        self.assertEqual(self.read("old.npy"), old)
        self.succeed(*base, "--lse-out", self.path("old.npy"))
        self.assertEqual(np.load(self.path("old.npy")).shape, (2, 5))
        self.assertEqual(sorted(os.listdir(self.dir)), ["old.npy", "x.npy", "y.npy"])

    def test_an_output_cannot_take_the_place_of_an_input(self):
        """By the same path, or by another name of the file: test_npy.c has them all."""
        x, y = batch(28)
        inputs = {
            "logits": x,
            "targets": y,
            "class-weights": np.ones(33, "<f4"),
            "row-weights": np.ones((2, 5)),
            "grad-output": np.array(1, "<f4"),
            "tuning": np.zeros(1),  # refused before anybody reads it
        }
        base = ["eval", "--grad-out", self.path("g.npy")]
        for name, array in inputs.items():
            base += ["--" + name, self.save(name + ".npy", array)]
        hard = self.path("hard.npy")
        for number, name in enumerate(inputs):
            before = self.read(name + ".npy")
            flag = "--%s-out" % OUTPUTS[number].replace("grad", "entropy")
            said = ["--%s and %s name the same file" % (name, flag)]
            os.link(self.path(name + ".npy"), hard)
            self.refuse(*base, flag, self.path(name + ".npy"), status=2, mentions=said)
            self.refuse(*base, flag, hard, mentions=said)
            self.assertEqual(self.read(name + ".npy"), before)
            os.remove(hard)
        old = self.save("old.npy", y)
        os.link(old, hard)
        said = ["--losses-out and --lse-out name the same file"]
        self.refuse(*base, "--lse-out", old, "--losses-out", hard, mentions=said)

    def test_no_room_for_an_output(self):
        """A limit stands for a full device, which no test can make. The driver's own files are smaller."""
        limit = 1 << 26
        x, y = np.zeros((4200, 4099), "<f4"), np.zeros(4200, "<i8")
        self.assertGreater(x.nbytes, limit)
        self.files(x, y)
        self.refuse_eval(
            *("--lse-out", self.path("lse.npy"), "--grad-out", self.path("grad.npy")),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            mentions=["grad.npy: no room for ", "File too large"],
        )


class Containers(EvalCase):
    """Files of several tensors."""

    def bits_of(self, *flags, outputs=("losses", "grad", "softmax")):
        """What eval makes of files: its report and its outputs."""
        for name in outputs:
            flags += ("--%s-out" % name, self.path(name + ".npy"))
        got = self.succeed_json("eval", *flags)
        keep = ("rows", "ignored", "dtype", "loss", "perplexity", "accuracy")
        return {key: got[key] for key in keep}, [self.read(name + ".npy") for name in outputs]

    def test_safetensors(self):
        x, y = batch(41)
        y = np.abs(y) % 33
        weights = np.arange(10).reshape(2, 5)
        file = self.path("m.safetensors")
        for logits in ("F32", "F16", "BF16", "F64") if ALL else ("F32", "BF16"):
            stored = store(x.astype("f8"), logits.lower()) if logits == "BF16" else x.astype(SAFETENSORS[logits])
            bf16, outputs = ["--bf16"] * (logits == "BF16"), OUTPUTS if logits == "BF16" else ("losses", "grad", "softmax")
            integers = [dtype for dtype in SAFETENSORS if dtype[0] in "IU"]
            for dtype in ("I64",) if logits != "F32" else (*integers, "BOOL"):
                classes, factors = (a.astype(SAFETENSORS[dtype]) for a in (y, weights))
                # behind 3 bytes, so that the others are not aligned
                tensors = {"odd": ("U8", np.zeros(3)), "x": (logits, stored), "y:0": (dtype, classes)}
                tensors["w"] = (dtype, factors)
                self.raw("m.safetensors", safetensors_of(**tensors))
                # not row weights: the perplexity beside them is a program more for each type
                plain = [*self.files(stored, classes), "--grad-output", self.save("w.npy", factors)]
                flags = ["--logits", file + ":x", "--targets", file + ":y:0", "--grad-output", file + ":w"]
                bits = lambda *flags: self.bits_of(*flags, "--reduction", "none", outputs=outputs)
                with self.subTest(logits=logits, targets=dtype):
                    want = bits(*plain, *bf16)
                    self.assertEqual(bits(*flags), want)
                    self.assertEqual(bits(*flags, *bf16), want)

    def test_bf16_weights_and_probabilities_of_safetensors(self):
        x, y = batch(42)
        q = store(np.random.RandomState(0).uniform(size=x.shape), "bf16")
        weights = store(np.random.RandomState(1).uniform(size=(2, 5)), "bf16")
        self.raw("q.safetensors", safetensors_of(q=("BF16", q)))
        self.raw("w.safetensors", safetensors_of(w=("BF16", weights)))
        files = ["--logits", self.save("x.npy", x), "--row-weights"]
        f4 = [self.save("%s.npy" % name, values_of(a, "bf16").astype("<f4")) for name, a in (("w", weights), ("q", q))]
        want = self.bits_of(*files, f4[0], "--targets", f4[1], outputs=OUTPUTS)
        of_tensors = [self.path("w.safetensors"), "--targets", self.path("q.safetensors:q")]
        got = self.bits_of(*files, *of_tensors, outputs=OUTPUTS)
        self.assertEqual(got, want)

    def test_npz_stored_and_deflated(self):
        x, y = batch(43)
        want = self.bits_of(*self.files(x, y))
        file = self.path("a.npz")
        arrays = {"logits": np.asfortranarray(x), "deep/targets": y.astype(">i4")}
        for save in (np.savez, np.savez_compressed):
            save(file, **arrays)
            for end in ("", ".npy"):
                flags = ["--logits", "%s:logits%s" % (file, end), "--targets", "%s:deep/targets%s" % (file, end)]
                self.assertEqual(self.bits_of(*flags), want)
        np.savez(file, x)
        self.assertEqual(self.bits_of("--logits", file, "--targets", self.path("y.npy")), want)

    def test_an_output_cannot_take_the_place_of_a_file_of_tensors(self):
        x, y = batch(44)
        np.savez(self.path("a.npz"), x=x, y=y)
        before = self.read("a.npz")
        flags = ["--logits", self.path("a.npz:x"), "--targets", self.path("a.npz:y"), "--grad-out"]
        os.symlink("a.npz", self.path("g.npy"))
        self.refuse("eval", *flags, self.path("g.npy"), mentions=["--logits and --grad-out name the same file"])
        self.assertEqual(self.read("a.npz"), before)

    def test_outputs_are_npy_files(self):
        base = ["eval", *self.files(*batch(44)), "--lse-out"]
        for name in ("l.npz", "l.npz:a", "l.npz:a.npy", "l.safetensors", "l.safetensors:b:c", "a:l.npz"):
            said = "--lse-out is '%s': takes a .npy file" % self.path(name)
            self.refuse(*base, self.path(name), status=2, mentions=[said])
        os.mkdir(self.path("d.npz"))
        for name in ("d.npz/l.npy", "l:npz", "l"):
            self.succeed(*base, self.path(name))

    def refuse_file(self, file, data, name, *mentions):
        path = self.raw(file, data) + ("" if name is None else ":" + name)
        self.refuse("eval", "--logits", path, "--lse-out", self.path("l.npy"), mentions=[path + ": ", *mentions])

    def test_hostile_safetensors(self):
        text = json.dumps({"a": entry()})
        ten = {"tensor%d" % i: entry(offsets=(8 * i, 8 * i + 8)) for i in range(10)}
        for header, data, name, *mentions in (
            ({"b": entry()}, 8, "a", "has no tensor 'a': takes 'b'"),
            (ten, 80, "a" * 50, "no tensor '%s': takes 'tensor0', 'tensor1'" % ("a" * 40), "'tensor4', ..."),
            (ten, 80, None, "has 10 tensors: takes FILE:NAME, NAME one of 'tensor0', "),
            ({}, 0, None, "has no tensors"),
            ({"__metadata__": {"a": "b"}}, 0, None, "has no tensors"),
            ({"__metadata__": {"a": "b"}}, 0, "__metadata__", "has no tensors"),
            (text[:-1], 8, "a", "malformed header: "),
            (text + " x", 8, "a", "malformed header: "),
            ("[]", 0, "a", "malformed header: takes an object"),
            ("", 0, "a", "malformed header: "),
            ('{"a\x01\n": 1}', 0, "a", "malformed header: "),
            ('{"a": 1, "a": 2}', 8, "a", "malformed header: ", "uplicate"),
            ({"a": 1}, 0, "a", "tensor 'a': no dtype"),
            ({"a": {"dtype": 1, "shape": [], "data_offsets": [0, 4]}}, 4, "a", "no dtype"),
            ({"a": entry("F8_E4M3", (8,))}, 8, "a", "dtype F8_E4M3: takes F16, BF16, F32, "),
            ({"a": entry(shape=2)}, 8, "a", "no shape"),
            ({"a": entry(shape=(-2,))}, 8, "a", "axis 0 of its shape"),
            ({"a": entry(shape=(1, 2.0))}, 8, "a", "axis 1 of its shape"),
            ({"a": entry(shape=(2**63,))}, 8, "a", "malformed header: "),
            ({"a": entry(shape=(2**62,))}, 8, "a", "more items than memory"),
            ({"a": entry(shape=(2**32, 2**32))}, 8, "a", "more items than memory"),
            ({"a": entry(shape=(0, 2**32, 2**32), offsets=(0, 0))}, 0, "a", "more items than memory"),
            ({"a": entry(shape=(1,) * 33)}, 8, "a", "33 axes: takes at most 32"),
            ({"a": entry(shape=(3,))}, 8, "a", "tensor 'a': 8 bytes of data: F32 of shape (3,) takes 12"),
            ({"a": entry("F16")}, 8, "a", "F16 of shape (2,) takes 4"),
            ({"a": entry(offsets=(0, 9))}, 8, "a", "data_offsets 0 to 9: takes 0 to 8"),
            ({"a": entry(offsets=(8, 0))}, 8, "a", "data_offsets 8 to 0: takes 0 to 8"),
            ({"a": entry(offsets=(2**62, 2**62 + 8))}, 8, "a", "data_offsets 4611686018427387904 to"),
            ({"a": entry(offsets=(-1, 7))}, 8, "a", "no data_offsets"),
            ({"a": entry(offsets=(0,))}, 8, "a", "no data_offsets"),
            ({"a": entry(offsets=(0, 8, 16))}, 8, "a", "no data_offsets"),
            ({"a": entry(offsets=("0", "8"))}, 8, "a", "no data_offsets"),
            ({"a": entry(), "b": entry(offsets=(8, 17))}, 16, "a", "tensor 'b': data_offsets 8 to 17"),
            ({"a": entry(), "b": entry(shape=(1,))}, 8, "a", "tensor 'b': 8 bytes of data"),
            ({"a": entry(), "b": entry()}, 8, "a", "8 bytes follow the header, its tensors take 16"),
            ({"a": entry()}, 12, "a", "12 bytes follow the header, its tensors take 8"),
            ({"a": entry(), "b": entry()}, 16, "a", "data_offsets 0 to 8: takes 8, the end of those before"),
            ({"a": entry(), "b": entry(offsets=(4, 12)), "c": entry(shape=(1,), offsets=(16, 20))}, 20, "a",
             "tensor 'b': data_offsets 4 to 12: takes 8"),
            ({"a": entry(offsets=(8, 16)), "b": entry(offsets=(8, 16))}, 16, "a", "data_offsets 8 to 16: takes 0"),
            ({"a": entry(), "b": entry(shape=(0,), offsets=(4, 4))}, 8, "a", "'b': data_offsets 4 to 4: takes 8"),
        ):  # fmt: skip
            with self.subTest(header=header, data=data):
                self.refuse_file("h.safetensors", safetensors(header, bytes(data)), name, *mentions)
        whole = safetensors(text, bytes(8))
        for data, said in (
            (b"", "truncated: ends within the length"),
            (whole[:7], "truncated: ends within the length"),
            (whole[:20], "truncated: 12 of %d bytes of its header" % len(text)),
            (whole[:-1], "data_offsets 0 to 8: takes 0 to 7"),
            ((10**8).to_bytes(8, "little") + whole[8:], "truncated: "),
            (b"\xff" * 8 + whole[8:], "a header of 18446744073709551615 bytes: takes at most 100000000"),
            (b"\x93NUMPY\x01\x00", "bytes: takes at most"),
        ):
            self.refuse_file("h.safetensors", data, "a", said)
        path = self.path("none.safetensors:a")
        self.refuse("eval", "--logits", path, "--lse-out", "l.npy", mentions=[path + ": ", "No such file"])

    def test_hostile_npz(self):
        file = self.path("a.npz")
        np.savez(file, a=np.zeros(1000, "<f4"), b=np.zeros((2, 3)))
        stored = self.read("a.npz")
        np.savez_compressed(file, a=np.arange(1000, dtype="<f4"))
        deflated = self.read("a.npz")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wanted here
            with zipfile.ZipFile(file, "w") as archive:
                for content in (b"", b"text", b"text"):
                    archive.writestr("a.npy" if content else "empty.npy", content)
        twice = self.read("a.npz")
        changed, damaged = bytearray(stored), bytearray(deflated)
        changed[stored.index(bytes(100)) + 50] = 1
        damaged[len(deflated) // 2] ^= 0xFF
        size = deflated.rindex(b"PK\x01\x02") + 24  # of the uncompressed member, in the directory
        larger, smaller, huge = (bytearray(deflated) for _ in range(3))
        larger[size : size + 4] = (5000).to_bytes(4, "little")
        smaller[size : size + 4] = (1000).to_bytes(4, "little")
        huge[size : size + 4] = (2**32 - 2).to_bytes(4, "little")
        for data, name, *mentions in (
            (stored, "c", "has no tensor 'c': takes 'a', 'b'"),
            (stored, None, "has 2 tensors: takes FILE:NAME, NAME one of 'a', 'b'"),
            (stored, "a.npy.npy", "has no tensor 'a.npy'"),
            (twice, "a", "has 2 tensors of the name 'a'"),
            (twice, "empty", "empty"),
            (b"", None, "has no tensors"),
            (b"hello, world", None, "not a .npz archive: "),
            (stored[:-1], "a", "not a .npz archive: "),
            (stored[: len(stored) // 2], "a", "not a .npz archive: "),
            (bytes(changed), "a", "cannot be read: CRC error"),
            (bytes(damaged), "a", ""),
            (bytes(larger), "a", ""),
            (bytes(smaller), "a", ""),
            (bytes(huge), "a", ""),
            (stored.replace(b"'shape'", b"'shapf'"), "a", ""),
            (stored.replace(b"NUMPY", b"NUMPX"), "a", ""),
        ):
            self.refuse_file("a.npz", data, name, *mentions)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.npy", b"text")
            archive.writestr("b.txt", npy("<f4", (1,), bytes(4)))
        self.refuse_file("a.npz", self.read("a.npz"), "a", "not a .npy file")
        self.succeed("eval", "--logits", file + ":b.txt", "--lse-out", self.path("lse.npy"))

    def test_what_is_no_npy_in_a_npz_is_no_tensor(self):
        file = self.path("a.npz")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("arrays/", b"")
            archive.writestr("arrays/x.npy", npy("<f4", (1,), bytes(4)))
            archive.writestr("README", b"text")
        self.succeed("eval", "--logits", file, "--lse-out", self.path("lse.npy"))
        self.refuse_file("a.npz", self.read("a.npz"), "y", "has no tensor 'y': takes 'arrays/x'")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("arrays/", b"")
        self.refuse_file("a.npz", self.read("a.npz"), None, "has no tensors")

    def test_tensors_without_items_in_safetensors(self):
        header = {"a": entry(shape=(0,), offsets=(8, 8)), "x": entry(), "b": entry(shape=(0,), offsets=(0, 0))}
        path = self.raw("a.safetensors", safetensors(header, bytes(8)))
        self.succeed("eval", "--logits", path + ":x", "--lse-out", self.path("lse.npy"))


class WithoutTargets(EvalCase):
    def test_outputs_that_depend_on_the_logits_alone(self):
        x, _ = batch(51)
        kinds = [("f32", x, {}), ("f32", x, {"logit_scale": -0.7, "softcap": 4.5} if ALL else {})]
        if ALL:
            kinds += [(dtype, batch(51, dtype=dtype)[0], {}) for dtype in ("f16", "bf16", "f64")]
            kinds.append(("f32", np.zeros((2, 0, 3), "<f4"), {}))
        for dtype, logits, options in kinds:
            with self.subTest(dtype=dtype, **options):
                self.evaluate(logits, None, dtype=dtype, outputs=LOGITS_OUTPUTS, **options)
        for name in ("argmax", *(LOGITS_OUTPUTS if ALL else ())):
            self.evaluate(x, None, outputs=(name,))
        if ALL:
            self.evaluate(np.moveaxis(x, -1, 1), None, axis=1, outputs=LOGITS_OUTPUTS)

    def test_text(self):
        text = self.succeed("eval", "--logits", self.save("x.npy", batch(52)[0]), "--argmax-out", self.path("a.npy"))
        names = [line.split()[0] for line in text.splitlines()]
        self.assertEqual(names, ["rows", "classes", "dtype", "device", "time", "compiling", "bandwidth"])

    def test_what_needs_targets_is_wrong_usage(self):
        base = ["eval", "--logits", self.save("x.npy", batch(53)[0]), "--lse-out", self.path("lse.npy")]
        self.refuse(*base[:3], status=2, mentions=["--targets is required: only outputs that depend on the logits"])
        for flag, value in (
            *(("--losses-out", self.path("a.npy")), ("--grad-out", self.path("a.npy"))),
            *((flag, self.path("x.npy")) for flag in ("--class-weights", "--row-weights", "--grad-output", "--grad-lse")),
            *(("--ignore-index", "none"), ("--label-smoothing", 0), ("--z-loss", 0), ("--reduction", "mean")),
            *(("--denominator", 1), ("--shift", 0), ("--on-bad-target", "nan"), ("--all-ignored", "zero")),
            ("--grad-dtype", "f32"),
        ):
            self.refuse(*base, flag, value, status=2, mentions=[flag + " needs --targets"])
        self.succeed(*base, "--logit-scale", 1, "--softcap", 0)


ROWS_OUTPUTS = ("losses", "lse", "argmax", "entropy")
FEW_ROWS_OUTPUTS = ("losses", "lse", "argmax")  # in programs of test_linear.c
GRADIENTS = ("hidden", "weight", "bias")


class Linear(EvalCase):
    """Hidden states and a weight in the place of logits."""

    def linear(self, seed=61, shape=(3, 7), features=13, classes=19, dtype="f32"):
        """Hidden states, weight and bias as stored, and classes."""
        random = np.random.RandomState(seed)
        h = random.normal(size=(*shape, features)) * random.choice((0.1, 1, 5), shape + (1,))
        w, b = random.normal(size=(classes, features)) / math.sqrt(features), random.normal(size=classes)
        y = random.randint(0, classes, size=shape)
        if y.size > 4:
            y.reshape(-1)[4] = -100
        return (*(store(array, dtype) for array in (h, w, b)), y)

    def flags(self, h, w, b=None, y=None):
        """Of files that are written."""
        files = {"hidden": h, "weight": w, "bias": b, "targets": y}
        return [
            text
            for name, array in files.items()
            if array is not None
            for text in ("--" + name, self.save(name + ".npy", array))
        ]

    def evaluate_linear(
        self, h, w, b, y, dtype="f32", outputs=ROWS_OUTPUTS, gradients=GRADIENTS, limit=None, grad_dtype=None, **options
    ):
        """Everything that eval gives, against the oracle: test_linear.c holds the device to bounds."""
        flags = self.flags(h, w, b, y) + ["--bf16"] * (dtype == "bf16") + self.option_flags(options)
        if limit is not None:
            flags += ["--workspace-mib", limit]
        if grad_dtype is not None:
            flags += ["--grad-dtype", grad_dtype]
        real, stored = "f64" if dtype == "f64" else "f32", grad_dtype or dtype
        dtypes = dict.fromkeys(outputs, real)
        dtypes.update({name + "-grad": stored for name in gradients if b is not None or name != "bias"})
        for name in dtypes:
            flags += ["--%s-out" % name, self.path("out-%s.npy" % name)]
        got = self.succeed_json("eval", *flags)

        h, w, b = (None if array is None else values_of(array, dtype) for array in (h, w, b))
        want = linear_oracle(h, w, np.zeros(h.shape[:-1], "i8") if y is None else y, b, **options)
        self.assertEqual(list(got), [*KEYS[:4], "features", *KEYS[4:]])
        self.assertEqual(got["features"], h.shape[-1])
        arrays = self.hold(got, want, dtype, dtypes, y is not None, options.get("reduction"))
        return got, arrays

    def test_shapes(self):
        for shape, features, classes in (
            *(((3, 7), 13, 19), ((40,), 1, 5), ((2, 3, 4), 64, 100), ((), 5, 3), ((2, 0), 5, 3), ((0,), 5, 3)),
            *(((1, 1), 300, 1000), ((9, 5), 33, 1)),
        ):
            if SMALL and classes == 1000:
                continue
            for with_bias in (True, False):
                with self.subTest(shape=shape, features=features, classes=classes, bias=with_bias):
                    h, w, b, y = self.linear(62, shape, features, classes)
                    self.evaluate_linear(h, w, b if with_bias else None, y)

    def test_dtypes(self):
        for dtype, grad in (("f32", None), ("f16", None), ("bf16", None), ("bf16", "f32"), ("f64", None)):
            with self.subTest(dtype=dtype, grad=grad):
                outputs = ROWS_OUTPUTS if ALL or dtype != "f64" else FEW_ROWS_OUTPUTS
                self.evaluate_linear(*self.linear(63, dtype=dtype), dtype=dtype, grad_dtype=grad, outputs=outputs)

    def test_options(self):
        h, w, b, y = self.linear(64)
        random = np.random.RandomState(64)
        weights = np.where(random.uniform(size=y.shape) < 0.3, 0, random.uniform(0.1, 2, y.shape)).astype("<f4")
        compiled = [
            {"grad_entropy": weights, "grad_lse": -weights},
            {"label_smoothing": 0.1, "class_weights": random.uniform(0.5, 2, 19).astype("<f4")},
            {"logit_scale": -0.7, "softcap": 4.5},
        ]
        if not ALL:  # a program of test_linear.c
            compiled = [compiled[0], {**compiled[0], **compiled[1], **compiled[2]}]
        for options in (
            {"reduction": "sum", "shift": 2},
            {"reduction": "none", "grad_output": weights},
            {"denominator": -3.5, "z_loss": 0.02, "row_weights": weights},
            {"ignore_index": 7, "on_bad_target": "ignore"},
            *compiled,
        ):
            with self.subTest(**options):
                self.evaluate_linear(h, w, b, y, **options)

    def test_outputs_alone_and_without_targets(self):
        h, w, b, y = self.linear(65)
        _, together = self.evaluate_linear(h, w, b, y)
        for name in (*(ROWS_OUTPUTS if ALL else FEW_ROWS_OUTPUTS), *GRADIENTS):
            outputs, gradients = ((name,), ()) if name in ROWS_OUTPUTS else ((), (name,))
            _, alone = self.evaluate_linear(h, w, b, y, outputs=outputs, gradients=gradients)
            for key, array in alone.items():
                np.testing.assert_array_equal(array, together[key], key)
        outputs = ("lse", "argmax", *(("entropy",) if ALL else ()))
        self.evaluate_linear(h, w, b, None, outputs=outputs, gradients=())

    def test_probabilities(self):
        h, w, b, _ = self.linear(66)
        q = np.random.RandomState(66).dirichlet(np.ones(19), size=(3, 7))
        outputs = ROWS_OUTPUTS if ALL else FEW_ROWS_OUTPUTS
        for stored in ("<f4", "<f2", "<f8"):
            self.evaluate_linear(h, w, b, q.astype(stored), outputs=outputs)
        self.evaluate_linear(*self.linear(66, dtype="f16")[:3], q.astype("<f2"), dtype="f16", outputs=outputs)
        if ALL:
            self.evaluate_linear(*self.linear(66, dtype="f64")[:3], q, dtype="f64")
        one_hot = np.eye(19, dtype="u1")[np.arange(21).reshape(3, 7) % 19]
        self.succeed("eval", *self.flags(h, w, b, one_hot), "--hidden-grad-out", self.path("g.npy"))

    def test_a_bias_of_another_dtype_is_rounded(self):
        h, w, b, y = self.linear(67, dtype="f16")
        out = ["--lse-out", self.path("lse.npy")]
        results = []
        for bias in (b, b.astype("<f4"), b.astype(">f8") * (1 + 1e-9)):
            self.succeed("eval", *self.flags(h, w, bias, y), *out)
            results.append(self.read("lse.npy"))
        self.assertEqual(len(set(results)), 1)
        mask = np.where(np.arange(19) == 3, -np.inf, b.astype("<f4"))
        self.succeed("eval", *self.flags(h, w, mask, y), *out, "--argmax-out", self.path("argmax.npy"))
        self.assertTrue(np.isfinite(np.load(self.path("lse.npy"))).all())
        self.assertNotIn(3, np.load(self.path("argmax.npy")))
        mask[7] = 65520
        self.refuse("eval", *self.flags(h, w, mask, y), *out, mentions=["bias.npy: item (7,) is 65520: too large for f16"])

    @unittest.skipIf(SMALL, "MiB of logits take a simulator too long")
    def test_a_workspace_of_less_changes_no_row(self):
        h, w, b, y = self.linear(68, (3000,), 8, 1000)
        outputs = ("losses", "lse", "argmax")
        got, whole = self.evaluate_linear(h, w, b, y, outputs=outputs)
        less, cut = self.evaluate_linear(h, w, b, y, outputs=outputs, limit=1)
        self.assertEqual(got["loss"], less["loss"])
        for name in (*outputs, "hidden-grad"):
            np.testing.assert_array_equal(whole[name], cut[name], name)
        self.assertFalse((whole["weight-grad"] == cut["weight-grad"]).all(), "the workspace was no smaller")
        wide = store(np.zeros((1 << 19, 1)), "f32")
        said = ["hidden.npy: workspace_limit is 1048576: takes at least ", "524288 classes"]
        self.refuse("eval", *self.flags(h[:, :1], wide, None, y), "--workspace-mib", 1, mentions=said)

    def test_tensors_of_safetensors_and_orders(self):
        h, w, b, y = self.linear(69, dtype="bf16")
        header, data = {}, b""
        for name, array in (("h", h), ("w", w), ("b", b)):
            header[name] = entry("BF16", array.shape, (len(data), len(data) + array.nbytes))
            data += array.tobytes()
        path = self.raw("a.safetensors", safetensors(header, data))
        want, _ = self.evaluate_linear(h, w, b, y, dtype="bf16")
        files = [text for name in ("hidden", "weight", "bias") for text in ("--" + name, "%s:%s" % (path, name[0]))]
        got = self.succeed_json("eval", *files, "--targets", self.path("targets.npy"))
        self.assertEqual((got["loss"], got["dtype"]), (want["loss"], "bf16"))
        h, w, b, y = self.linear(69)
        want, _ = self.evaluate_linear(h, w, b, y)
        got = self.succeed_json("eval", *self.flags(np.asfortranarray(h.astype(">f4")), np.asfortranarray(w), b, y))
        self.assertEqual(got["loss"], want["loss"])

    def test_text_has_features(self):
        text = self.succeed("eval", *self.flags(*self.linear(70)))
        self.assertRegex(text, r"(?m)^classes     19\nfeatures    13\ndtype       f32\n")

    def test_wrong_usage(self):
        h, w, b, y = self.linear(71)
        flags, x = self.flags(h, w, b, y), self.save("x.npy", np.zeros((3, 7, 19), "<f4"))
        out, logits = self.path("o.npy"), ["--logits", x, "--targets", self.path("targets.npy")]
        for args, said in (
            ([*flags, "--logits", x], "--logits and --hidden"),
            ([*flags[:2], *flags[4:]], "--hidden needs --weight"),
            ([*flags, "--class-axis", -1], "--class-axis with --hidden"),
            ([*flags, "--softmax-out", out], "--softmax-out with --hidden"),
            ([*flags, "--log-softmax-out", out], "--log-softmax-out with --hidden"),
            ([*flags, "--grad-out", out], "--grad-out with --hidden"),
            ([*flags[:4], *flags[6:], "--bias-grad-out", out], "--bias-grad-out without --bias"),
            ([*flags, "--grad-dtype", "f16"], "--grad-dtype without --hidden-grad-out"),
            ([*flags, "--grad-output", x, "--lse-out", out], "--grad-output without --hidden-grad-out"),
            ([*flags, "--workspace-mib", 2**44], "--workspace-mib is %d" % 2**44),
            ([*flags, "--workspace-mib", "x"], "--workspace-mib"),
            ([*flags[:6], "--weight-grad-out", out], "--weight-grad-out needs --targets"),
            ([*logits, "--weight", x], "--weight without --hidden"),
            ([*logits, "--bias", x], "--bias without --hidden"),
            ([*logits, "--workspace-mib", 1], "--workspace-mib without --hidden"),
            *(([*logits, "--%s-grad-out" % name, out], "--%s-grad-out without --hidden" % name) for name in GRADIENTS),
            ([*flags, "--weight-grad-out", self.path("weight.npy")], "--weight and --weight-grad-out name the same"),
            (flags[:6], "--targets is required"),
        ):
            self.refuse("eval", *args, status=2, mentions=[said])

    def test_wrong_files(self):
        h, w, b, y = self.linear(72)
        good = {"hidden": h, "weight": w, "bias": b, "targets": y}
        for name, array, said in (
            ("hidden", np.float32(1), "shape (): hidden states take an axis of features"),
            ("hidden", h[..., :0], "shape (3, 7, 0) has no features"),
            ("hidden", h.astype("i4"), "dtype i4: hidden states take f2, f4 or f8"),
            ("weight", w[:, :12], "shape (19, 12): takes (classes, features), with 13 features"),
            ("weight", w.T, "shape (13, 19): takes (classes, features), with 13 features"),
            ("weight", w[0], "shape (13,)"),
            ("weight", w[:0], "shape (0, 13) has no classes"),
            ("weight", w.astype("f8"), "dtype f8: takes that of --hidden, f32"),
            ("weight", w.astype("f2"), "dtype f2: takes that of --hidden, f32"),
            ("bias", b[:18], "shape (18,): a bias takes (19,)"),
            ("bias", b.reshape(1, 19), "shape (1, 19)"),
            ("bias", b.astype("i4"), "dtype i4: a bias takes f2, f4, f8 or bf16"),
            ("bias", b.astype("f8") * 1e300, "too large for f32"),
            ("targets", y[:, :6], "shape (3, 6): targets take (3, 7)"),
            ("targets", np.zeros((3, 19), "u1"), "shape (3, 19): targets take (3, 7)"),
            ("targets", np.zeros((3, 7, 13), "<f4"), "shape (3, 7, 13): probabilities take (3, 7, 19)"),
            ("targets", np.where(np.arange(21).reshape(3, 7) == 9, 19, y), "row 9: target 19 at (1, 2) is out of range"),
            ("weight", None, "No such file"),
        ):
            with self.subTest(said=said):
                flags = self.flags(**{key[0] if key != "targets" else "y": good[key] for key in good})
                if array is None:
                    os.remove(self.path(name + ".npy"))
                else:
                    self.save(name + ".npy", array)
                grad = ["--weight-grad-out", self.path("g.npy")]
                self.refuse("eval", *flags, *grad, mentions=[self.path(name + ".npy: "), said])
        flags = self.flags(h, w, b, y)
        self.refuse("eval", *flags, "--shift", 8, mentions=["hidden.npy: --shift 8: takes 0 to 7 with hidden states of"])
        self.refuse("eval", *flags, "--bf16", mentions=["hidden.npy: dtype f4: hidden states take u2"])


class Errors(EvalCase):
    def test_wrong_shapes(self):
        x, y = batch(31)
        images = np.zeros((2, 5, 3, 4), "<f4")  # N,C,H,W
        cubes = np.zeros((2, 4, 4, 4, 5), "<f4")  # of several axes that fit it is 1
        told = "shape (2, 3, 4): targets take (2, 5, 3) with --class-axis -1; these fit --class-axis 1"
        for logits, targets, mentions, axis in (
            (x, y[:1], ["(1, 5)", "(2, 5)"], -1),
            (x, y.T, ["(5, 2)", "(2, 5)"], -1),
            (x, y.reshape(2, 1, 5), ["(2, 1, 5): targets take (2, 5)"], -1),
            (x, y.reshape(1, 2, 5, 1), ["(1, 2, 5, 1)"], -1),
            (x, np.zeros((2, 5, 32), "?"), ["(2, 5, 32): targets take (2, 5)"], -1),
            (images, np.zeros((2, 1, 3, 4), "u1"), ["these fit --class-axis 1"], -1),
            (x, x[:, :, :32], ["(2, 5, 32)", "(2, 5, 33)"], -1),
            (images, np.zeros((2, 3, 4), "u1"), [told], -1),
            (images, np.zeros((5, 3, 4), "u1"), ["these fit --class-axis 0"], -1),
            (images, np.zeros((2, 5, 4), "u1"), ["take (2, 3, 4) with --class-axis 1", "fit --class-axis 2"], 1),
            (cubes, np.zeros((2, 4, 4, 5), "u1"), ["fit --class-axis 1"], -1),
        ):
            self.check_targets(logits, targets, *mentions, flags=("--class-axis", axis) if axis != -1 else ())
        self.check(np.float32(1), y, ["shape ()"])
        self.check(x[:, :, :0], y, ["no classes"])
        self.check(x, y, ["--class-axis 3", "-3 to 2"], "--class-axis", "3")
        self.check(x, y, ["--class-axis -4"], "--class-axis", "-4")
        for flag, shape in (("--class-weights", 32), ("--row-weights", 10), ("--grad-output", (2, 5))):
            self.check_weights(x, y, flag, np.ones(shape), "shape")
        self.check_weights(x, y, "--grad-output", np.ones(3), "shape (3,)", flags=("--reduction", "none"))

    def test_wrong_dtypes(self):
        x, y = batch(32)
        for dtype in ("i4", "u2", "c8", "?", "u1", "g"):
            self.check(x.astype(dtype), y, ["dtype"])
        self.check(x, y, ["dtype f4", "u2"], "--bf16")
        self.check(x.astype("g"), y, ["dtype long double: logits take f2, f4 or f8"])
        bits = store(x.astype("f8"), "bf16")
        for stored in (bits, bits.view("V2")):
            self.check(stored, y, ["dtype %s%d: " % (stored.dtype.kind, 2), "give --bf16"])
        self.check(npy("bfloat16", x.shape, bits.tobytes()), y, ["dtype V2: ", "give --bf16"])
        self.check_targets(x, bits.view("V2"), "dtype V2: ", "--bf16")
        for dtype in ("f4", "f2", "f8"):
            self.check_targets(x, y.astype(dtype), "shape (2, 5): probabilities take (2, 5, 33)")
        for dtype in ("c8", "g"):
            self.check_targets(x, y.astype(dtype), "dtype", "targets take integers or bool")
        self.check(np.array(["a", "b"]), y, ["'<U1'"])
        self.check(np.array([None, {}]), y, ["Python objects"])
        self.check(np.zeros(2, [("a", "f4")]), y, ["structured"])
        for flag in ("--class-weights", "--row-weights", "--grad-output"):
            self.check_weights(x, y, flag, np.ones(33, "c8"), "dtype c8", "take f2, f4, f8, bf16, integers or bool")
        self.check_weights(x, y, "--class-weights", np.full(33, 1e300), "1e+300", "f32")

    def test_options_that_do_not_fit_the_logits(self):
        x, y = batch(35)
        wide, largest = x.astype("f8"), "3.40282e+38 with f32 logits"
        for logits, flag, value, mentions in (
            (x, "--denominator", "1e300", "f32"),
            (x, "--denominator", "1e-60", "f32"),
            (x, "--grad-dtype", "f64", "takes f32, f16 or bf16 with f32 logits"),
            (x, "--z-loss", "1e39", "1e+39: takes a number from 0 to " + largest),
            (x, "--logit-scale", "-1e39", "-1e+39: takes a number from -3.40282e+38 to " + largest),
            (x, "--softcap", "1e39", "takes 0 (off) or a number from 1.17549e-38 to " + largest),
            (x, "--softcap", "1e-40", "takes 0 (off) or a number from 1.17549e-38 to " + largest),
            (x, "--shift", "6", "--shift 6: takes 0 to 5 with logits of shape (2, 5, 33)"),
            (wide, "--grad-dtype", "bf16", "--grad-dtype bf16: takes f64 or f32 with f64"),
            (wide, "--softcap", "1e-310", "--softcap 1e-310: takes 0 (off)"),
        ):
            self.check(logits, y, [flag + " ", mentions], flag, value)
        self.evaluate(wide, y, dtype="f64", z_loss=1e39)

    def test_weights_that_would_mean_something_else(self):
        x, y = batch(36)
        wide = x.astype("f8")
        for logits, flag, shape, dtype, values in (
            (x, "--class-weights", 33, "f8", {"1e-60": "too small", "-1e-60": "too small"}),
            (x, "--row-weights", (2, 5), "f8", {"1e-60": "too small", "1e300": "too large"}),
            (x, "--class-weights", 33, "f8", {"nan": "finite", "inf": "finite", "1e300": "too large"}),
            (x, "--class-weights", 33, "f4", {"nan": "finite", "-inf": "finite"}),
            (x, "--grad-output", 1, "f8", {"1e300": "too large"}),
            (wide, "--class-weights", 33, "f8", {"nan": "finite"}),
        ):
            for value, fault in values.items():
                weights = np.ones(shape, dtype)
                weights.flat[7 % weights.size] = float(value)
                place = tuple(map(int, np.unravel_index(7 % weights.size, weights.shape)))
                where = "item %s is %s" % (place, value.replace("1e300", "1e+300"))
                self.check_weights(logits, y, flag, weights, where, fault)
        self.evaluate(wide, y, dtype="f64", row_weights=np.full((2, 5), 1e-60))
        self.evaluate(x, y, outputs=("losses", "grad"), grad_output=np.array(1e-60))

    def test_targets_out_of_range_name_row_value_and_range(self):
        x, _ = batch(33, (2, 5, 33))
        for dtype, values in (("u1", (33, 255)), ("i4", (33, -1, -(2**31))), ("i8", (33, -1, 2**32 + 1, -(2**63)))):
            for value in values:
                y = np.zeros((2, 5), dtype)
                y[1, 2] = value
                self.check_targets(x, y, "row 7", "target %d " % value, "(1, 2)", "0 to 32", "-100")
        self.check_targets(x, np.full((2, 5), 99), "row 0", "10 bad rows")
        y = np.zeros((2, 5), "i8")
        y[1, 2] = 40  # read by row 6 under --shift 1; targets that no row reads may be anything
        y[0, 0] = y[1, 0] = 41
        self.check_targets(x, y, "row 6", "target 40", "(1, 2)", "1 bad row)", flags=("--shift", "1"))

    def test_targets_beyond_64_bits_with_a_sign(self):
        y = np.zeros((2, 5), ">u8")
        y[1, 2] = 2**63
        said = "target 9223372036854775808 at (1, 2): takes at most 9223372036854775807"
        self.check_targets(batch(33)[0], y, said, flags=("--on-bad-target", "ignore"))
        y[1, 2] = 2**63 - 1
        self.check_targets(batch(33)[0], y, "target 9223372036854775807 at (1, 2) is out of range")

    def test_probabilities_too_large_for_f32(self):
        x, _ = batch(33)
        q = np.zeros(x.shape)
        q[0, 1, 2] = 1e39
        self.check_targets(x, q, "item (0, 1, 2) is 1e+39: too large for f32")

    def test_missing_truncated_and_other_files(self):
        x, y = batch(34)
        self.check(None, y, ["No such file"])
        self.check_targets(x, None, "No such file")
        whole = self.read(self.save("x.npy", x))
        for data, *mentions in (  # test_npy.c has all faults
            *((whole[:length],) for length in (0, 9, 128, len(whole) - 1)),
            (whole[: len(whole) - 4], "truncated", "1316 of 1320"),
            (whole + x.tobytes(), "1320 bytes follow"),
        ):
            self.check(data, y, mentions)
        os.mkfifo(self.path("pipe"))
        for path in (self.path("pipe"), self.dir):
            self.refuse("eval", "--logits", path, "--targets", self.path("y.npy"), mentions=["not a regular file"])

    def test_file_names_cannot_break_the_line(self):
        self.refuse("eval", "--logits", "a\nb\x1b[31m", "--targets", "y", mentions=["a?b?[31m: "])


if __name__ == "__main__":
    unittest.main()
