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
from oracle import OUTPUTS, batch, linear_oracle, store, values_of

# Beside class weights: together a program of test_cross_entropy.c.
DENSE = {"label_smoothing": 0.13, "softcap": 4.5}
# Those that need no targets.
LOGITS_OUTPUTS = ("lse", "softmax", "log-softmax", "argmax", "entropy")

# Every dtype of numbers that is read; byte orders in turn.
INTEGERS = ("?", "i1", "u1", "<i2", ">u2", ">i4", "<u4", "<i8", ">u8")
FLOATS = ("<f2", ">f2", ">f4", "<f8")
SAFETENSORS = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def npy(descr, shape, data):
    """A file whose header NumPy would not write."""
    header = b"{'descr': '%s', 'fortran_order': False, 'shape': %s}" % (descr.encode(), str(shape).encode())
    header += b" " * ((1 - len(header) - 10) % 4)  # data that is not aligned
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def stored_as(values, dtype):
    """What a file of dtype holds; bf16: its bits."""
    return store(values, dtype) if dtype == "bf16" else values.astype(dtype)


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

    def saver(self, order="C", **instead):
        """For evaluate(): writes arrays, or what is given here in their place: an array, a file's bytes or its path."""

        def save(name, array):
            file = instead.get(name[:-4], array)
            if isinstance(file, str):
                return file
            return self.raw(name, file) if isinstance(file, bytes) else self.save(name, np.array(file, order=order))

        return save

    def refuse_eval(self, *flags, mentions, **kwargs):
        """Of the files that are there."""
        files = ["--logits", self.path("logits.npy"), "--targets", self.path("targets.npy")]
        self.refuse("eval", *files, *flags, mentions=mentions, **kwargs)

    def check(self, x, y, mentions, *flags, name="logits.npy"):
        """One line that names the file. An array, a file's bytes, or None for no file."""
        for path, array in (("logits.npy", x), ("targets.npy", y)):
            if isinstance(array, bytes):
                self.raw(path, array)
            elif array is not None:
                np.save(self.path(path), array, allow_pickle=True)
            elif os.path.exists(self.path(path)):
                os.remove(self.path(path))
        self.refuse_eval("--grad-out", self.path("g.npy"), *flags, mentions=[self.path(name) + ": ", *mentions])

    def check_targets(self, x, y, *mentions, flags=()):
        self.check(x, y, mentions, *flags, name="targets.npy")

    def check_weights(self, x, y, flag, array, *mentions, flags=()):
        self.check(x, y, mentions, *flags, flag, self.save("w.npy", array), name="w.npy")

    def safetensors_file(self, name, dtype, array):
        """Its flag's value."""
        odd = ("U8", np.zeros(3))  # the others are not aligned behind it
        return self.raw(name + ".safetensors", safetensors_of(odd=odd, **{"t:0": (dtype, array)})) + ":t:0"

    def check_numbers(self, dtypes, file_of=lambda dtype, array: array):
        """Numbers for classes and rows, which one function reads: by turns each file has another dtype, and all values
        or one. file_of(): what saver() takes."""
        x, y = self.data()
        shapes = dict.fromkeys(("class_weights", "row_weights", "grad_output", "grad_entropy", "grad_lse"), (2, 5))
        shapes["class_weights"] = (33,)
        random = np.random.RandomState(4)
        for turn in range(len(dtypes) if ALL else 5):
            options, files = {"reduction": "none", **DENSE}, {}
            for i, (name, shape) in enumerate(shapes.items()):
                dtype, form = dtypes[(5 * turn + i) % len(dtypes)], (shape, (), (1,))[(turn + i) % 3]
                values = random.randint(1, 4, form) + np.float64(0.3)
                array = stored_as(-values if dtype[-2:] in ("i1", "i2", "i4", "i8") else values, dtype)
                options[name] = np.broadcast_to(values_of(array, dtype), shape)
                files[name] = file_of(dtype, array)
            with self.subTest(turn=turn):
                self.evaluate(x, y, save=self.saver("CF"[turn % 2], **files), **options)


# ---- Numbers ----------------------------------------------------------------------------------


class Batches(EvalCase):
    def test_every_dtype(self):
        kinds = [(dtype, None) for dtype in ("f32", "f16", "bf16", "f64")] + [("f32", "bf16")]
        if ALL:
            kinds += itertools.product(("f32", "f16", "bf16"), repeat=2)
            kinds += [("f64", "f32"), ("f64", "f64")]
        for dtype, grad in kinds:
            with self.subTest(dtype=dtype, grad=grad):
                self.evaluate(*batch(7, dtype=dtype), dtype=dtype, grad_dtype=grad)

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
        for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 1e-3, "row_weights": np.full(4, 3.0)}):
            with self.subTest(options=list(options)):
                outputs = () if ALL or "label_smoothing" not in options else ("softmax", "grad")
                got, _ = self.evaluate(x, np.full(4, 3), outputs=outputs, **options)
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

    def test_combinations(self):
        """Each option changes some of the results that the oracle has; where all programs are compiled, also alone."""
        options, random = self.alone(), np.random.RandomState(9)
        sets = [
            "class_weights row_weights label_smoothing softcap ignore_index z_loss reduction denominator shift grad_output",
            "logit_scale softcap row_weights",
            "grad_entropy grad_lse denominator",
            "z_loss shift grad_output",
        ]
        if ALL:
            sets += options
            sets += [" ".join(name for name in options if random.uniform() < 0.5) for _ in range(24)]
        for i, names in enumerate(sets):
            dtype = ("f32", "f32", "f32", "f64", "bf16", "f16")[i % 6]
            with self.subTest(dtype=dtype, options=names):
                x, y = batch(100 + i, dtype=dtype, scale=2.0)
                y.reshape(-1)[[5, 6]] = (33, 7)  # out of range, and ignored in some
                chosen = {name: options[name] for name in names.split()}
                outputs = OUTPUTS if ALL or "grad_lse" not in chosen else ("lse", "grad", "entropy")
                self.evaluate(x, y, dtype=dtype, outputs=outputs, on_bad_target=("nan", "ignore")[i % 2], **chosen)

    def test_ignore_index(self):
        x, y = self.data()
        with self.subTest("a class"):
            self.evaluate(x, y, ignore_index=int(y[0, 0]), on_bad_target="ignore")
        with self.subTest("none"):
            self.evaluate(x, np.abs(y) % 33, ignore_index=None)
            self.save("targets.npy", y)
            self.refuse_eval("--ignore-index", "none", mentions=["-100", "0 to 32"])
        with self.subTest("full width"):
            y[1, 1] = 2**32 + 5
            got, _ = self.evaluate(x, y, ignore_index=2**32 + 5, on_bad_target="ignore")
            self.assertEqual((got["ignored"], got["bad_targets"]), (1, 1))

    def test_bad_target_policies(self):
        x, y = self.data()
        y[1, 3], y[0, 2] = 33, -1
        for policy in ("nan", "ignore"):
            got, arrays = self.evaluate(x, y, on_bad_target=policy)
            self.assertEqual(got["bad_targets"], 2)
            self.assertEqual(np.isnan(arrays["losses"]).sum(), 2 if policy == "nan" else 0)

    def test_all_ignored(self):
        x, _ = self.data()
        y = np.full((2, 5), -100)
        got, arrays = self.evaluate(x, y)
        self.assertEqual((got["loss"], got["perplexity"], got["accuracy"]), ("NaN", None, None))
        self.assertTrue((arrays["grad"] == 0).all())
        self.assertEqual(self.evaluate(x, y, all_ignored="zero", outputs=())[0]["loss"], 0.0)
        self.assertEqual(self.evaluate(x, self.data()[1], shift=5, outputs=())[0]["ignored"], 10)

    def test_probabilities(self):
        x, _ = self.data()
        q = np.random.RandomState(3).uniform(-0.1, 1, x.shape).astype("<f4")
        options = self.alone()
        for index, names in ((-1, ("row_weights", "z_loss", "shift", "reduction")), (None, ("class_weights",))):
            chosen = {name: options[name] for name in names}
            self.evaluate(x, q, ignore_index=index, **chosen, **(DENSE if "class_weights" in names else {}))
        for index in (0, 7, 2**40):
            said = "targets.npy: --ignore-index %d: takes a negative index or 'none'" % index
            self.refuse_eval("--ignore-index", index, mentions=[said, "probabilities"])

    def test_masked_rows_may_hold_anything(self):
        x, y = self.data()
        x[0, 1], y[0, 1] = np.nan, 1000
        weights = np.ones((2, 5), "<f4")
        weights[0, 1] = 0
        got, arrays = self.evaluate(x, y, row_weights=weights, outputs=("losses", "grad"))
        self.assertEqual((got["bad_targets"], got["ignored"]), (0, 2))
        self.assertTrue((arrays["grad"][0, 1] == 0).all())


# ---- Files ------------------------------------------------------------------------------------


class Files(EvalCase):
    def test_versions_orders_and_byte_orders_give_the_same_bits(self):
        x, y = batch(21, (3, 4, 17))
        ways = ("C", "<", "<"), ("C", ">", ">"), ("F", "<", ">"), ("F", ">", "<")
        found = []
        for version, (order, bytes_x, bytes_y) in zip(((1, 0), (2, 0), (3, 0), (1, 0)), ways):  # test_npy.c: all pairs

            def save(name, array):
                array = array.astype(array.dtype.newbyteorder(bytes_x if name == "logits.npy" else bytes_y))
                return self.save(name, np.array(array, order=order), version=version)

            with self.subTest(version=version, order=order, bytes_x=bytes_x, bytes_y=bytes_y):
                found.append(self.evaluate(x, y, outputs=("losses", "grad", "softmax"), save=save)[1])
                for name, array in found[0].items():
                    np.testing.assert_array_equal(found[-1][name], array, name)

    def test_dtypes_of_classes(self):
        x, y = batch(23)
        for number, dtype in enumerate(INTEGERS):
            y[1, 3] = -100 if np.dtype(dtype).kind == "i" else 7
            classes = (y if np.dtype(dtype).kind == "i" else np.abs(y) % 33).astype(dtype)
            # any byte but 0 is true
            file = npy("|b1", y.shape, y.astype("u1").tobytes()) if dtype == "?" else classes
            with self.subTest(dtype=dtype):
                outputs = ("losses", "grad", "softmax")
                save = self.saver("CF"[number % 2], targets=file)
                self.evaluate(x, classes.astype("<i8"), outputs=outputs, save=save)

    def test_dtypes_of_numbers_for_classes_and_rows(self):
        self.check_numbers([*INTEGERS, *FLOATS])

    def test_dtypes_of_probabilities(self):
        x, y = self.data()
        hot = np.arange(33) == y[:, :, None]
        q = np.random.RandomState(3).uniform(-0.1, 1, x.shape)
        kinds = [("f32", hot, dtype) for dtype in ("?", "i1", ">u2", ">f2", ">f8")]
        kinds += [("f32", q, "<f4"), ("f32", q, "<f8"), ("bf16", q, "bf16")]
        if ALL:  # with f64 logits f8 keeps its digits, and integers become f8
            kinds += [("f64", hot, "i1"), ("f64", q, "<f8"), ("f64", q, "<f4")]
            kinds += [("f16", q, "<f2"), ("f16", q, "<f4"), ("bf16", q, "<f4")]
        for number, (dtype, values, stored) in enumerate(kinds):
            with self.subTest(dtype=dtype, stored=stored):
                logits, targets = store(x.astype("f8"), dtype), stored_as(values, stored)
                save = self.saver("CF"[number % 2], targets=targets)
                self.evaluate(logits, values_of(targets, stored), dtype=dtype, save=save)

    def test_one_value_where_none_fits(self):
        x, y = batch(23)
        x, y = x[:, :4], y[:, :4]  # 4 rows of a sequence: (1,) has no other meaning
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

    def test_class_axis_of_length_1_in_targets_and_row_weights(self):
        random = np.random.RandomState(1)
        images = random.normal(size=(2, 7, 3, 5)).astype("<f4")
        labels = random.randint(0, 7, (2, 3, 5)).astype("<i8")
        for (logits, targets), axis in ((batch(23), -1), ((images, labels), 1)):
            weights = random.uniform(size=targets.shape).astype("<f4")
            files = {"targets": np.expand_dims(targets, axis), "row_weights": np.expand_dims(weights, axis)}
            self.evaluate(logits, targets, axis=axis, row_weights=weights, save=self.saver(**files))

    def test_integers_beside_one_class_are_classes(self):
        x = np.zeros((2, 5, 1), "<f4")
        got, _ = self.evaluate(x, np.zeros((2, 5), "<i8"), save=self.saver(targets=np.zeros(x.shape, "<i8")))
        self.assertEqual(got["accuracy"], 1)
        self.check_targets(x, np.ones(x.shape, "<i8"), "target 1 at (0, 0)", "takes 0 to 0")

    def test_integers_in_the_logits_shape_are_one_hot(self):
        x, _ = batch(23)
        for number, dtype in enumerate((*INTEGERS[1:], ">i4")):
            y = np.zeros(x.shape, dtype, order="CF"[number % 2])
            y[1, 2, 3] = value = 2 if number == 8 else np.iinfo(dtype).min or np.iinfo(dtype).max
            said = "item (1, 2, 3) is %.10g: an integer in the logits' shape takes 0 or 1" % value
            self.check_targets(x, y, said)
            name = {stored[-2:]: name for name, stored in SAFETENSORS.items()}[dtype[-2:]]
            path = self.safetensors_file("y", name, y)
            self.refuse("eval", "--logits", self.path("logits.npy"), "--targets", path, mentions=[said])

    def test_bf16_in_items_of_other_kinds(self):
        x, y = batch(24, dtype="bf16")
        for file in (x.view("<i2"), x.view("V2"), npy("bfloat16", x.shape, x.tobytes())):
            self.evaluate(x, y, dtype="bf16", save=self.saver(logits=file))

    def test_class_axes(self):
        for shape, axis, order in (
            ((2, 7, 3, 5), 1, "C"),
            ((2, 7, 3, 5), -3, "F"),
            ((7, 4), 0, "C"),
            ((4, 7), 1, "F"),
            ((7,), 0, "C"),
            ((2, 7, 1), 1, "F"),
            ((3, 21, 16, 17), 1, "F"),
            ((2, 3, 4, 7), -1, "F"),
            ((2, 3, 7, 4), -2, "C"),
        ):
            with self.subTest(shape=shape, axis=axis, order=order):
                random = np.random.RandomState(1)
                x = random.normal(size=shape).astype("<f4")
                y = random.randint(0, 7, np.delete(shape, axis)).astype("<i8")
                # of many inner positions, what test_host_arrays.c computes
                outputs = OUTPUTS if ALL or shape[-1] < 17 else ("losses", "lse", "grad", "argmax")
                self.evaluate(x, y, axis=axis, outputs=outputs, save=self.saver(order))

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
        self.evaluate(np.moveaxis(x, 1, -1), y, shift=2, row_weights=weights)

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
            ("lse.npy", "logits.npy/grad.npy", ["grad.npy"]),
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
        self.assertEqual(sorted(os.listdir(self.dir)), ["logits.npy", "old.npy", "targets.npy"])

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

    def test_safetensors(self):
        dtypes = {"bf16" if name == "BF16" else dtype: name for name, dtype in SAFETENSORS.items()}
        numbers = iter(range(1000))
        self.check_numbers([*dtypes], lambda dtype, a: self.safetensors_file("n%d" % next(numbers), dtypes[dtype], a))
        x, y = batch(42)
        q, weights = (store(np.random.RandomState(i).uniform(size=a.shape), "bf16") for i, a in enumerate((x, y)))
        files = {name: self.safetensors_file(name, "BF16", a) for name, a in (("targets", q), ("row_weights", weights))}
        save = self.saver(**files)
        self.evaluate(x, values_of(q, "bf16"), row_weights=values_of(weights, "bf16"), save=save)
        for dtype in ("F16", "BF16", "F64") if ALL else ("BF16",):
            x = store(batch(41)[0].astype("f8"), dtype.lower())
            files = {"logits": self.safetensors_file("x", dtype, x), "targets": self.safetensors_file("y", "I64", y)}
            self.evaluate(x, y, dtype=dtype.lower(), save=self.saver(**files))
        flags = [text for name, path in files.items() for text in ("--" + name, path)]
        self.assertEqual(self.succeed_json("eval", *flags)["dtype"], dtype.lower())  # without --bf16

    def test_npz_stored_and_deflated(self):
        x, y = batch(43)
        file = self.path("a.npz")
        arrays = {"logits": np.asfortranarray(x), "deep/targets": y.astype(">i4")}
        for save, end in ((np.savez, ""), (np.savez_compressed, ".npy")):
            save(file, **arrays)
            names = {"logits": "%s:logits%s" % (file, end), "targets": "%s:deep/targets%s" % (file, end)}
            self.evaluate(x, y, outputs=("losses", "grad", "softmax"), save=self.saver(**names))
        np.savez(file, x)
        self.evaluate(x, y, outputs=("losses", "grad", "softmax"), save=self.saver(logits=file))

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
        text = self.succeed("eval", "--logits", self.save("logits.npy", batch(52)[0]), "--argmax-out", self.path("a.npy"))
        names = [line.split()[0] for line in text.splitlines()]
        self.assertEqual(names, ["rows", "classes", "dtype", "device", "time", "compiling", "bandwidth"])

    def test_what_needs_targets_is_wrong_usage(self):
        base = ["eval", "--logits", self.save("logits.npy", batch(53)[0]), "--lse-out", self.path("lse.npy")]
        self.refuse(*base[:3], status=2, mentions=["--targets is required for the loss; only outputs of the logits alone"])
        for flag, value in (
            *(("--losses-out", self.path("a.npy")), ("--grad-out", self.path("a.npy"))),
            *((flag, self.path("logits.npy")) for flag in ("--class-weights", "--row-weights", "--grad-output", "--grad-lse")),
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
        return self.option_flags({name: array for name, array in files.items() if array is not None})

    def evaluate_linear(
        self, h, w, b, y, dtype="f32", outputs=ROWS_OUTPUTS, gradients=GRADIENTS, save=None, own=None, **options
    ):
        """Everything that eval gives, against the oracle: test_linear.c holds the device to bounds. own: options that
        change no result."""
        dtypes = dict.fromkeys(outputs, "f64" if dtype == "f64" else "f32")
        stored = (own or {}).get("grad_dtype", dtype)
        dtypes.update({name + "-grad": stored for name in gradients if b is not None or name != "bias"})
        hidden, weight, bias = (None if array is None else values_of(array, dtype) for array in (h, w, b))
        classes = np.zeros(h.shape[:-1], "i8") if y is None else y
        want = linear_oracle(hidden, weight, classes, bias, **options)
        inputs = {"hidden": h, "weight": w, "bias": b, "targets": y}
        keys = [*KEYS[:4], "features", *KEYS[4:]]
        got, arrays = self.hold(inputs, {**options, **(own or {})}, want, dtype, dtypes, save, keys)
        self.assertEqual(got["features"], h.shape[-1])
        return got, arrays

    def test_shapes(self):
        for number, (shape, features, classes) in enumerate((
            *(((3, 7), 13, 19), ((40,), 1, 5), ((2, 3, 4), 64, 100), ((), 5, 3), ((2, 0), 5, 3), ((0,), 5, 3)),
            *(((9, 5), 33, 1), ((1, 1), 300, 1000)),
        )):  # fmt: skip
            if SMALL and classes == 1000:
                continue
            h, w, b, y = self.linear(62, shape, features, classes)
            for bias in (b, None) if ALL else ((b, None)[number % 2],):
                with self.subTest(shape=shape, features=features, classes=classes, bias=bias is not None):
                    self.evaluate_linear(h, w, bias, y)

    def test_dtypes(self):
        for dtype, grad in (("f32", None), ("f16", None), ("bf16", None), ("bf16", "f32"), ("f64", None)):
            with self.subTest(dtype=dtype, grad=grad):
                outputs = ROWS_OUTPUTS if ALL or dtype != "f64" else FEW_ROWS_OUTPUTS
                own = {"grad_dtype": grad} if grad else {}
                self.evaluate_linear(*self.linear(63, dtype=dtype), dtype=dtype, outputs=outputs, own=own)

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
            compiled = [{**compiled[0], **compiled[1], **compiled[2]}]
        for options in (
            {"reduction": "sum", "shift": 2, "denominator": -3.5, "z_loss": 0.02, "row_weights": weights},
            {"reduction": "none", "grad_output": weights, "ignore_index": 7, "on_bad_target": "ignore"},
            *compiled,
        ):
            with self.subTest(**options):
                self.evaluate_linear(h, w, b, y, **options)

    def test_outputs_alone_and_without_targets(self):
        h, w, b, y = self.linear(65)
        _, together = self.evaluate_linear(h, w, b, y)
        for name in (*ROWS_OUTPUTS, *GRADIENTS) if ALL else ("lse", "weight"):
            outputs, gradients = ((name,), ()) if name in ROWS_OUTPUTS else ((), (name,))
            _, alone = self.evaluate_linear(h, w, b, y, outputs=outputs, gradients=gradients)
            for key, array in alone.items():
                np.testing.assert_array_equal(array, together[key], key)
        outputs = ("lse", "argmax", *(("entropy",) if ALL else ()))
        self.evaluate_linear(h, w, b, None, outputs=outputs, gradients=())

    def test_probabilities(self):
        q = np.random.RandomState(66).dirichlet(np.ones(19), size=(3, 7))
        hot = np.eye(19)[np.arange(21).reshape(3, 7) % 19]
        outputs = ROWS_OUTPUTS if ALL else FEW_ROWS_OUTPUTS
        kinds = [("f32", q, "<f4"), ("f32", q, "<f8"), ("f32", hot, "u1"), ("f16", q, "<f2")]
        for dtype, values, stored in [*kinds, ("f64", q, "<f8")] if ALL else kinds:
            targets, arrays = values.astype(stored), self.linear(66, dtype=dtype)[:3]
            save = self.saver(targets=targets)
            self.evaluate_linear(*arrays, targets.astype("f8"), dtype=dtype, outputs=outputs, save=save)

    def test_a_bias_of_another_dtype_is_rounded(self):
        h, w, b, y = self.linear(67, dtype="f16")
        out = ["--lse-out", self.path("lse.npy")]
        results = []
        for bias in (b, b.astype(">f8") * (1 + 1e-9)):
            self.succeed("eval", *self.flags(h, w, bias, y), *out)
            results.append(self.read("lse.npy"))
        self.assertEqual(*results)
        mask = np.where(np.arange(19) == 3, -np.inf, b.astype("<f4"))
        self.succeed("eval", *self.flags(h, w, mask, y), *out, "--argmax-out", self.path("argmax.npy"))
        self.assertTrue(np.isfinite(np.load(self.path("lse.npy"))).all())
        self.assertNotIn(3, np.load(self.path("argmax.npy")))
        mask[7] = 65520
        self.refuse("eval", *self.flags(h, w, mask, y), *out, mentions=["bias.npy: item (7,) is 65520: too large for f16"])

    @unittest.skipIf(SMALL, "MiB of logits take a simulator too long")
    def test_a_workspace_of_less_changes_no_row(self):
        h, w, b, y = self.linear(68, (600,), 8, 1000)
        outputs = ("losses", "lse", "argmax")
        got, whole = self.evaluate_linear(h, w, b, y, outputs=outputs)
        less, cut = self.evaluate_linear(h, w, b, y, outputs=outputs, own={"workspace_mib": 1})
        self.assertEqual(got["loss"], less["loss"])
        for name in (*outputs, "hidden-grad"):
            np.testing.assert_array_equal(whole[name], cut[name], name)
        self.assertFalse((whole["weight-grad"] == cut["weight-grad"]).all(), "the workspace was no smaller")
        wide = store(np.zeros((1 << 19, 1)), "f32")
        said = ["hidden.npy: workspace_limit is 1048576: takes at least ", "524288 classes"]
        self.refuse("eval", *self.flags(h[:, :1], wide, None, y), "--workspace-mib", 1, mentions=said)

    def test_tensors_of_safetensors_and_orders(self):
        h, w, b, y = self.linear(69, dtype="bf16")
        path = self.raw("a.safetensors", safetensors_of(h=("BF16", h), w=("BF16", w), b=("BF16", b)))
        files = {"hidden": path + ":h", "weight": path + ":w", "bias": path + ":b"}
        self.evaluate_linear(h, w, b, y, dtype="bf16", save=self.saver(**files))
        h, w, b, y = self.linear(69)
        self.evaluate_linear(np.asfortranarray(h.astype(">f4")), np.asfortranarray(w), b, y)

    def test_text_has_features(self):
        text = self.succeed("eval", *self.flags(*self.linear(70)))
        self.assertRegex(text, r"(?m)^classes     19\nfeatures    13\ndtype       f32\n")

    def test_wrong_usage(self):
        h, w, b, y = self.linear(71)
        flags, x = self.flags(h, w, b, y), self.save("logits.npy", np.zeros((3, 7, 19), "<f4"))
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
            (flags[:6], "--targets is required for the loss"),
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
        whole = self.read(self.save("logits.npy", x))
        for data, *mentions in (  # test_npy.c has all faults
            *((whole[:length],) for length in (0, 9, 128, len(whole) - 1)),
            (whole[: len(whole) - 4], "truncated", "1316 of 1320"),
            (whole + x.tobytes(), "1320 bytes follow"),
        ):
            self.check(data, y, mentions)
        os.mkfifo(self.path("pipe"))
        for path in (self.path("pipe"), self.dir):
            self.refuse("eval", "--logits", path, "--targets", self.path("targets.npy"), mentions=["not a regular file"])

    def test_file_names_cannot_break_the_line(self):
        self.refuse("eval", "--logits", "a\nb\x1b[31m", "--targets", "y", mentions=["a?b?[31m: "])


if __name__ == "__main__":
    unittest.main()
