#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The Python package in tools/python, against oracle.py. CLXENT_LIBRARY names the library that it loads.
CLXENT_TEST_INSTALLED=1: the package that Python finds by itself.

Cases that need PyOpenCL or PyTorch are skipped where Python does not find them.
"""

import contextlib
import ctypes
import io
import os
import re
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

import numpy as np

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
if not os.environ.get("CLXENT_TEST_INSTALLED"):
    sys.path.insert(0, os.path.join(ROOT, "tools", "python"))

import clxent
from clxent import _library, _opencl
from clxent._problem import _LINEAR_RESULTS, _RESULTS, BFLOAT16
from oracle import ERRORS, NUMPY, batch, linear_oracle, oracle, store, values_of

try:
    import pyopencl
    import pyopencl.array
except ImportError:
    pyopencl = None
try:
    import torch
    import clxent.torch

    torch.set_num_threads(1)  # other tests run beside this one
except ImportError:
    torch = None

try:
    import tinygrad
    import clxent.tinygrad
except ImportError:
    tinygrad = None
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

NAMES = {"log-softmax": "log_softmax", "grad": "gradient"}  # the oracle's, the package's
MODULES = ("pyopencl", "clxent.tinygrad", "torch")  # that may be absent
OUTPUTS = ("losses", "lse", "softmax", "log_softmax", "argmax", "entropy")
OF_LOGITS = ("softmax", "log_softmax", "gradient", "hidden_gradient", "weight_gradient", "bias_gradient")  # their dtype
FLOATS = ("loss", "losses", "lse", "entropy", *OF_LOGITS)


class Case(unittest.TestCase):
    def holds(self, found, want, dtype="f32", reduction="mean"):
        """Every result that is found is the oracle's, in the shape and dtype promised."""
        want = {NAMES.get(name, name): value for name, value in want.items()}
        if reduction == "none":
            want["loss"] = want["losses"]
        for name in (name for name in found if name in want and isinstance(found[name], np.ndarray)):
            got, own = found[name], dtype if name in OF_LOGITS or dtype == "f64" else "f32"
            with self.subTest(result=name):
                self.assertEqual(got.shape, np.shape(want[name]))
                if name == "argmax":
                    self.assertEqual(got.dtype, np.int64)
                elif name in FLOATS:
                    self.assertEqual(got.dtype, BFLOAT16 if own == "bf16" else NUMPY[own])
                    got = values_of(got.view("u2"), own) if own == "bf16" else got
                relative, absolute = ERRORS[own]
                np.testing.assert_allclose(got.astype("f8"), np.asarray(want[name], "f8"), relative, absolute)

    def check(self, x, y, dtype="f32", **options):
        """cross_entropy() of all results, and the oracle's."""
        told = {k: v for k, v in options.items() if k not in ("weight", "out")}
        if "weight" in options:
            told["class_weights"] = options["weight"]
        values = values_of(x.view("u2") if dtype == "bf16" else x, dtype)
        want = oracle(values, np.asarray(y), f64=dtype == "f64", **told)
        found = clxent.cross_entropy(x, y, return_grad=True, outputs=OUTPUTS, **options)
        self.holds(found, want, dtype, options.get("reduction"))
        return found

    def passed(self, *args, function=clxent.cross_entropy, **options):
        """The desc and the arrays that function would give to the library: kernels take a second to compile."""
        with mock.patch.object(_library, "run_host") as run_host:
            function(*args, **options)
        ((_, desc, _, (arrays, _)),) = (call[0] for call in run_host.call_args_list)
        return desc, arrays

    def raises(self, error, text, *args, function=clxent.cross_entropy, **options):
        self.assertRaisesRegex(error, text, function, *args, **options)


X, Y = batch(1, (2, 5, 33))


# ---- Linear cross-entropy ---------------------------------------------------------------------


class LinearCase(Case):
    def holds_linear(self, found, h, w, y, b=None, dtype="f32", **options):
        """Every result is that of all logits in double."""
        h, w, y, b = (
            None if array is None else np.asarray(array, "f8" if i != 2 else None)
            for i, array in enumerate((h, w, y, b))
        )
        told = {{"weight": "class_weights"}.get(name, name): value for name, value in options.items()}
        want = linear_oracle(h, w, y, b, **told)
        self.assertLessEqual(set(found), set(want))
        self.holds(found, want, dtype, options.get("reduction"))

    def linear(self, h, w, y, b=None, outputs=(), **options):
        """linear_cross_entropy() of gradients and outputs, held to all logits in double."""
        found = clxent.linear_cross_entropy(h, w, y, b, return_grad=True, outputs=outputs, **options)
        names = ["loss", "hidden_gradient", "weight_gradient", *([] if b is None else ["bias_gradient"])]
        results = found if outputs else dict(zip(names, found))
        self.assertEqual(list(results), [*names, *outputs])
        options.pop("workspace_limit", None)
        self.holds_linear(results, h, w, y, b, **options)
        return results


_random = np.random.RandomState(9)
HIDDEN, WEIGHT, BIAS = (_random.normal(size=shape).astype("f4") for shape in ((2, 5, 9), (33, 9), (33,)))
LINEAR_OUTPUTS = ("losses", "lse", "argmax", "correct", "counted")


class Library(Case):
    def test_every_field_of_desc_is_where_the_library_has_it(self):
        names = [name for name, _ in _library.Desc._fields_ if name not in ("struct_size", "batch")]
        bad = dict.fromkeys(names, 99)
        bad.update(dict.fromkeys(("outputs", "seq", "classes", "inner", "use_ignore_index"), 0))
        bad.update({name: 1 for name in names if "stride" in name})
        bad.update({name: np.nan for name, kind in _library.Desc._fields_ if kind is ctypes.c_double}, ignore_index=3)
        text = ctypes.create_string_buffer(500)
        for name, value in bad.items():
            desc = _library.new(_library.library.clxent_desc_init, _library.Desc)
            desc.outputs, desc.batch, desc.seq, desc.classes = 1, 2, 3, 4
            if name.startswith("has_grad"):
                desc.outputs = 4  # without a gradient
            elif name in ("has_class_weights", "has_row_weights"):
                desc.op = 3
            elif name.endswith("ignore_index"):
                desc.target_type, desc.ignore_index = 4, 3
            setattr(desc, name, value)
            status = _library.library.clxent_desc_check(ctypes.byref(desc), text, 500)
            with self.subTest(field=name):
                if name == "use_ignore_index":
                    self.assertEqual(status, 0)
                else:
                    self.assertEqual(text.value.decode().split()[0], name)

    def test_every_array_is_where_the_library_has_it(self):
        given = "weight", "row_weights", "grad_entropy", "grad_lse"
        inputs = set("targets class_weights row_weights grad_entropy grad_lse".split())
        results = {name for name in _RESULTS if name != "bad_targets"}
        self.names_arrays(clxent._problem.Problem(X, Y, results, given), inputs | {"logits"} | results)
        results = {name for name in _LINEAR_RESULTS if name != "bad_targets"}
        problem = clxent._problem.Problem(HIDDEN, Y, results, (*given, "linear_bias"), linear_weight=WEIGHT)
        self.names_arrays(problem, inputs | {"hidden", "weight", "bias"} | results)

    def names_arrays(self, problem, want):
        """What is missing is named, one after another."""
        desc = problem.desc
        args = _library.new(_library.library.clxent_host_args_init, _library.HostArgs)
        room = np.zeros(1000, "f8")
        named = set()
        while len(named) < 40:
            with self.assertRaises(ValueError) as caught:
                _library.run_host(_library.default_context(None), desc, args, None)
            name = str(caught.exception).split()[0].rstrip(":")
            if name in named or not hasattr(args, name):
                break  # no array is missing any more: they overlap
            named.add(name)
            setattr(args, name, _library.Array(room.ctypes.data, 8 * room.size))
        self.assertIn("overlaps", str(caught.exception))
        self.assertEqual(named, want)

    def test_statuses(self):
        for status, error in (
            (1, ValueError),  # NULL_ARGUMENT
            (4, NotImplementedError),  # UNSUPPORTED, of the device
            (6, IndexError),  # BAD_TARGET
            (7, MemoryError),
            (8, RuntimeError),  # BUILD_FAILED
            (10, RuntimeError),  # ARRAYS_IN_USE
            (-4, MemoryError),  # CL_MEM_OBJECT_ALLOCATION_FAILURE
            (-5, RuntimeError),  # CL_OUT_OF_RESOURCES
        ):
            name = _library.library.clxent_status_string(status).decode()
            with self.assertRaisesRegex(error, name), mock.patch.object(
                _library.library, "clxent_run_host", lambda *arguments: status
            ):
                clxent.cross_entropy(X, Y)
        # What the device may still write must stay.
        ((inputs, outputs),) = _library._kept
        self.assertEqual((list(inputs), list(outputs)), (["logits", "targets"], ["loss"]))
        _library._kept.clear()

    def test_a_library_of_another_version_is_refused(self):
        program = "import clxent"
        for library, text in (("/nowhere/libclxent.so", "cannot load /nowhere"), ("libm.so.6", "has no clxent_")):
            environment = {**os.environ, "CLXENT_LIBRARY": library, "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(
                [sys.executable, "-B", "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("ImportError: ", done.stderr.decode())
            self.assertIn(text, done.stderr.decode())

        class Longer(_library.Desc):
            _fields_ = [("later", ctypes.c_size_t)]

        self.addCleanup(setattr, _library, "Desc", _library.Desc)
        _library.Desc = Longer
        self.assertRaisesRegex(ImportError, r"whose Longer has \d+ bytes: takes the library of this", _library._load)


class NumPy(Case):
    def test_options_and_results(self):
        random = np.random.RandomState(1)
        weight = random.uniform(0.1, 3, 33)
        rows = random.uniform(0, 2, (2, 5)).astype("f4")
        rows[1, 2] = 0
        self.check(X, Y)
        self.check(X, Y, reduction="sum", weight=weight, row_weights=rows, label_smoothing=0.1, z_loss=1e-3)
        self.check(X, Y, reduction="none", logit_scale=0.5, softcap=30.0, shift=1)
        self.check(X, np.maximum(Y, 0), denominator=7, ignore_index=11)
        self.check(X, np.maximum(Y, 0), ignore_index=None)
        grads = random.normal(size=(2, 2, 5)).astype("f4")
        self.check(X, Y, grad_entropy=grads[0], grad_lse=grads[1])
        _, arrays = self.passed(X, Y, weight=3, row_weights=2)
        np.testing.assert_array_equal(arrays["class_weights"], np.full(33, 3, "f4"))
        np.testing.assert_array_equal(arrays["row_weights"], np.full((2, 5), 2, "f4"))

    def test_dtypes(self):
        for dtype in ("f16", "bf16", "f64"):
            with self.subTest(dtype=dtype):
                x, y = batch(2, (3, 4, 33), dtype)
                self.check(x.view(BFLOAT16) if dtype == "bf16" else x, y, dtype)
        if ml_dtypes is None:
            return
        x = X.astype(ml_dtypes.bfloat16)
        found = clxent.softmax(x)
        self.assertEqual(found.dtype, x.dtype)
        np.testing.assert_array_equal(found.view("u2"), clxent.softmax(x.view(BFLOAT16)).view("u2"))

    def test_targets(self):
        y = np.maximum(Y, 0)
        kinds = {"u1": 3, "u2": 6, "u4": 7, "i4": 1, "i8": 2, "i1": 1, "i2": 1, "u8": 2, ">i4": 1, ">u2": 6}
        for dtype, kind in kinds.items():
            with self.subTest(dtype=dtype):
                desc, arrays = self.passed(X, y.astype(dtype))
                self.assertEqual(desc.target_type, kind)
                self.assertTrue(arrays["targets"].dtype.isnative)
                np.testing.assert_array_equal(arrays["targets"], y)
                size = {1: 4, 2: 8, 3: 1, 6: 2, 7: 4}[kind]
                self.assertEqual(arrays["targets"].itemsize, size)
        self.assertEqual(self.passed(X.tolist(), y.tolist())[1]["logits"].dtype, np.float64)
        q = np.random.RandomState(3).dirichlet(np.ones(33), (2, 5)).astype("f4")
        self.check(X, q)
        kinds = (("f4", "f2", 5), ("f4", "f8", 5), ("f4", ">f4", 5), ("f8", "f4", 4), ("f8", "f8", 5))
        for logits, dtype, kind in kinds:
            with self.subTest(logits=logits, dtype=dtype):
                desc, arrays = self.passed(X.astype(logits), q.astype(dtype))
                self.assertEqual(desc.target_type, kind)
                self.assertEqual(arrays["targets"].dtype, "f8" if dtype == logits == "f8" else "f4")
                np.testing.assert_array_equal(arrays["targets"], q.astype(dtype).astype(arrays["targets"].dtype))

    def test_class_axis(self):
        x, y = batch(4, (6, 4, 7))
        for axis in (0, 1, -3, 2):
            with self.subTest(axis=axis):
                moved = np.moveaxis(x, -1, axis)
                want = self.check(np.ascontiguousarray(moved), y, axis=axis, shift=1)
                copied = clxent.cross_entropy(moved, y, axis=axis, shift=1, return_grad=True, outputs=OUTPUTS)
                np.testing.assert_array_equal(copied["softmax"], want["softmax"])
        self.check(x[0, 0], y[0, 0])

    def test_returns(self):
        loss = clxent.cross_entropy(X, Y)
        self.assertTrue(type(loss) is np.ndarray and loss.shape == ())
        again, gradient = clxent.cross_entropy(X, Y, return_grad=True)
        found = clxent.cross_entropy(X, Y, outputs=("correct", "counted", "computed_denominator", "bad_targets"))
        self.assertEqual(list(found), ["loss", "correct", "counted", "computed_denominator", "bad_targets"])
        self.assertEqual(found["loss"], loss)
        self.assertEqual(again, loss)
        want = oracle(X, Y)
        self.assertEqual((found["correct"], found["counted"]), (want["correct"], want["counted"]))
        self.assertEqual(found["computed_denominator"], want["counted"])
        self.assertEqual(found["bad_targets"]["count"], 0)
        losses = clxent.cross_entropy(X, Y, reduction="none", outputs="losses")
        self.assertTrue(losses["loss"] is losses["losses"])
        doubled = clxent.cross_entropy(X, Y, return_grad=True, grad_output=2)[1]
        np.testing.assert_array_equal(doubled, 2 * gradient)
        self.holds({"softmax": clxent.softmax(X), "log_softmax": clxent.log_softmax(X)}, want)

    def test_nothing_is_copied(self):
        x, y = X.copy(), Y.copy()
        x.flags.writeable = y.flags.writeable = False
        seen = {}
        run_host = _library.run_host

        def spy(context, desc, args, arrays):
            seen.update(logits=args.logits.data, targets=args.targets.data, gradient=args.gradient.data)
            run_host(context, desc, args, arrays)

        out = np.empty_like(X)
        with mock.patch.object(_library, "run_host", spy):
            result = clxent.cross_entropy(x, y, return_grad=True, out={"gradient": out})
        self.assertTrue(result[1] is out)
        self.assertEqual(seen, {"logits": x.ctypes.data, "targets": y.ctypes.data, "gradient": out.ctypes.data})

    def test_out(self):
        loss, gradient = clxent.cross_entropy(X, Y, return_grad=True)
        own, place = np.zeros((), "f4"), X.copy()
        result = clxent.cross_entropy(place, Y, return_grad=True, out={"gradient": place, "loss": own})
        self.assertTrue(result[0] is own and result[1] is place)
        self.assertEqual(own, loss)
        np.testing.assert_array_equal(place, gradient)
        half = np.empty(X.shape, "f2")
        clxent.cross_entropy(X, Y, return_grad=True, out={"gradient": half})
        np.testing.assert_array_equal(half, gradient.astype("f2"))
        for bad, text in (
            (np.empty((2, 5, 32), "f4"), "shape .2, 5, 32.: takes float32 of shape .2, 5, 33"),
            (np.empty(X.shape, ">f4"), "takes float32"),
            (np.empty((2, 33, 5), "f4").swapaxes(1, 2), "not C-contiguous"),
        ):
            self.raises(ValueError, "out.'gradient'. is .*" + text, X, Y, return_grad=True, out={"gradient": bad})
        self.raises(TypeError, "out.'gradient'. is list", X, Y, return_grad=True, out={"gradient": []})
        self.raises(ValueError, "out has 'gradient': takes loss", X, Y, out={"gradient": half})

    def test_no_rows(self):
        x, y = np.empty((0, 4), "f4"), np.empty(0, "i8")
        self.assertTrue(np.isnan(clxent.cross_entropy(x, y)))
        self.assertEqual(clxent.cross_entropy(x, y, reduction="sum"), 0)
        self.assertEqual(clxent.cross_entropy(x, y, reduction="none").shape, (0,))
        self.assertEqual(clxent.softmax(np.empty((3, 4, 0), "f4"), 1).shape, (3, 4, 0))

    def test_bad_targets(self):
        y = Y.copy()
        y[1, 0] = 33
        self.raises(IndexError, r"targets: row 5 is 33, must be in \[0, 33\) or -100 \(ignored\)", X, y)
        self.raises(IndexError, "targets: row 4 is -100", X, Y, ignore_index=None)
        wide = np.zeros(Y.shape, "u8")
        wide[0, 2] = 2**64 - 100  # as int64 the ignored one
        self.raises(IndexError, "targets: row 2 is 18446744073709551516", X, wide)

    def test_errors_name_the_argument(self):
        for error, text, options in (
            (ValueError, "label_smoothing is 1.5: takes a number in .0, 1", {"label_smoothing": 1.5}),
            (TypeError, "z_loss is 'a': takes a number", {"z_loss": "a"}),
            (ValueError, "reduction is 'max': takes \"mean\"", {"reduction": "max"}),
            (ValueError, "axis is 3: takes -3 to 2", {"axis": 3}),
            (ValueError, "shift is -1: takes 0 to 5", {"shift": -1}),
            (TypeError, "shift is 0.5: takes an integer", {"shift": 0.5}),
            (ValueError, "ignore_index is 9223372036854775808: takes", {"ignore_index": 2**63}),
            (ValueError, "weight has shape .2,.: takes .33,", {"weight": [1, 2]}),
            (TypeError, "row_weights is .U1: takes numbers", {"row_weights": "a"}),
            (ValueError, "denominator has shape .2,.: takes ..$", {"denominator": [1, 2]}),
            (ValueError, "outputs has 'loses': takes losses, loss", {"outputs": ("loses",)}),
            (ValueError, r"grad_lse has shape \(2,\): takes \(2, 5\)", {"grad_lse": [1, 2], "return_grad": True}),
            (ValueError, "grad_entropy is given: takes a gradient", {"grad_entropy": 1}),
            (RuntimeError, 'device is "no such device"', {"device": "no such device"}),
            (TypeError, "device is 1: takes", {"device": 1}),
            (ValueError, "queue is given: takes pyopencl", {"queue": 1}),
        ):
            self.raises(error, text, X, Y, **options)
        self.raises(TypeError, "logits is int64: takes float16", Y, Y)
        self.raises(TypeError, "targets is bool: takes class indices of int32", X, Y > 0)
        self.raises(ValueError, r"targets has shape \(2, 4\): takes class indices of shape \(2, 5\)", X, Y[:, 1:])
        self.raises(ValueError, "classes is 0", np.empty((3, 0), "f4"), np.zeros(3, "i8"))
        self.raises(ValueError, r"logits has shape \(\)", np.float32(1), 0)

    def test_threads_get_their_own_errors(self):
        found, both = [], threading.Barrier(2)

        def run(text):
            def fails():
                _library._log(text.encode(), None)
                both.wait()  # both have failed before either reads why
                return 2

            try:
                _library.check(fails)
            except ValueError as error:
                found.append((text, str(error)))

        threads = [threading.Thread(target=run, args=(text,)) for text in ("one", "other")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(found), [("one", "one"), ("other", "other")])

    def test_readmes(self):
        """The Python code in the READMEs runs, and prints the numbers beside it."""
        numbers = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?")
        for path in "README.md", "tools/python/README.md":
            with open(os.path.join(ROOT, path), encoding="utf-8") as stream:
                blocks = [block.split("```")[0] for block in stream.read().split("```python\n")[1:]]
            names, absent = {}, False
            for block in blocks:
                if "import" in block:  # else it goes on
                    absent = any(name in block and sys.modules.get(name) is None for name in MODULES)
                if absent:
                    continue
                printed = io.StringIO()
                with self.subTest(path=path, block=block), contextlib.redirect_stdout(printed):
                    exec(block, names)
                    told = re.findall(r"^print.*# (.*)", block, re.M)
                    self.assertEqual(len(printed.getvalue().splitlines()), len(told))
                    got, want = (list(map(float, numbers.findall(t))) for t in (printed.getvalue(), " ".join(told)))
                    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork()")
    def test_a_forked_process_is_refused(self):
        clxent.cross_entropy(X, Y)
        child = os.fork()
        if child == 0:
            try:
                clxent.cross_entropy(X, Y, device="gpu")
            except RuntimeError as error:
                os._exit(0 if "fork" in str(error) else 2)
            os._exit(1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)


class Linear(LinearCase):
    def test_options_and_results(self):
        all_of_it = self.linear(HIDDEN, WEIGHT, Y, BIAS, outputs=LINEAR_OUTPUTS)
        # Chunks of fewer rows. What the least is, the error has.
        text = r"workspace_limit is 1: takes at least (\d+) bytes"
        with self.assertRaisesRegex(ValueError, text) as caught:
            clxent.linear_cross_entropy(HIDDEN, WEIGHT, Y, BIAS, workspace_limit=1, return_grad=True)
        least = int(re.search(text, str(caught.exception)).group(1))
        cut = self.linear(HIDDEN, WEIGHT, Y, BIAS, outputs=LINEAR_OUTPUTS, workspace_limit=least + 1000)
        for name in ("loss", "hidden_gradient", *LINEAR_OUTPUTS):
            np.testing.assert_array_equal(cut[name], all_of_it[name])
        grads = np.linspace(-1, 1, 10).reshape(2, 5)
        options = {"reduction": "none", "ignore_index": 11, "z_loss": 1e-3, "shift": 1}
        options.update(grad_output=grads, row_weights=grads + 1)
        self.linear(HIDDEN, WEIGHT, np.maximum(Y, 0), outputs=LINEAR_OUTPUTS, **options)

    def test_options_are_those_of_cross_entropy(self):
        rows = np.linspace(-1, 1, 10).reshape(2, 5)
        own = "op outputs dtype gradient_dtype hidden_gradient_dtype weight_gradient_dtype bias_gradient_dtype".split()
        for options in (
            {"weight": np.arange(33), "row_weights": 2, "label_smoothing": 0.1, "z_loss": 0.2, "logit_scale": 0.3},
            {"softcap": 30, "shift": 1, "grad_entropy": rows, "grad_lse": rows, "reduction": "sum", "denominator": 3},
            {"ignore_index": 5, "reduction": "none", "grad_output": rows},
            {"ignore_index": None},
        ):
            want, arrays = self.passed(X, Y, return_grad=True, **options)
            got = self.passed(HIDDEN, WEIGHT, Y, function=clxent.linear_cross_entropy, return_grad=True, **options)
            for name, _ in _library.Desc._fields_:
                if name not in (*own, "features"):
                    self.assertEqual(getattr(got[0], name), getattr(want, name), name)
            self.assertEqual(set(got[1]), set(arrays) - {"logits"} | {"hidden", "weight"})
            for name in set(arrays) - {"logits"}:
                np.testing.assert_array_equal(got[1][name], arrays[name])

    def test_dtypes_and_out(self):
        def bf16(array):
            return store(array.astype("f8"), "bf16").view(BFLOAT16)

        q = np.random.RandomState(3).dirichlet(np.ones(33), (2, 5)).astype("f4")
        arrays = tuple(map(bf16, (HIDDEN, WEIGHT, BIAS)))
        own = np.empty(HIDDEN.shape, "u2").view(BFLOAT16)
        names = "hidden_gradient", "lse"
        options = {"outputs": names, "out": {"hidden_gradient": own}}
        found = clxent.linear_cross_entropy(*arrays[:2], Y, arrays[2], **options)
        self.assertTrue(found["hidden_gradient"] is own)
        h, w, b = (values_of(array.view("u2"), "bf16") for array in arrays)
        self.holds_linear(found, h, w, Y, b, "bf16")
        out = {"weight_gradient": np.empty(WEIGHT.shape, "f4"), "bias_gradient": np.empty(33, "f2")}
        options = {"function": clxent.linear_cross_entropy, "return_grad": True, "out": out}
        desc, _ = self.passed(*arrays[:2], Y, arrays[2], **options)
        kinds = desc.hidden_gradient_dtype, desc.weight_gradient_dtype, desc.bias_gradient_dtype
        self.assertEqual(kinds, (3, 1, 2))
        kinds = ("f4", "f4", 1, 5), ("f4", "f8", 1, 5), ("f2", "f2", 2, 5), ("f8", "f4", 4, 4), ("f8", "f8", 4, 5)
        for hidden, targets, dtype, kind in (*kinds, (">f4", "f4", 1, 5)):
            with self.subTest(hidden=hidden, targets=targets):
                h, w = HIDDEN.astype(hidden), WEIGHT.astype(hidden)
                desc, passed = self.passed(h, w, q.astype(targets), function=clxent.linear_cross_entropy)
                self.assertEqual((desc.dtype, desc.target_type), (dtype, kind))
                self.assertEqual(passed["targets"].itemsize, 8 if targets == hidden == "f8" else 4)
                np.testing.assert_array_equal(passed["hidden"], h)
        desc, passed = self.passed(HIDDEN, WEIGHT, Y, BIAS, function=clxent.linear_cross_entropy)
        for name, array in (("hidden", HIDDEN), ("weight", WEIGHT), ("bias", BIAS)):
            self.assertEqual(passed[name].ctypes.data, array.ctypes.data)
        if ml_dtypes is None:
            return
        h, w, b = (array.view(ml_dtypes.bfloat16) for array in arrays)
        again = clxent.linear_cross_entropy(h, w, Y, b, outputs=names)["hidden_gradient"]
        self.assertEqual(again.dtype, h.dtype)
        np.testing.assert_array_equal(again.view("u2"), own.view("u2"))
        q = q.astype(h.dtype)
        passed = self.passed(h, w, q, function=clxent.linear_cross_entropy)[1]["targets"]
        self.assertEqual(passed.dtype, "f4")
        np.testing.assert_array_equal(passed, q.astype("f4"))

    def test_errors_name_the_argument(self):
        for error, text, args, options in (
            (TypeError, "hidden is int64: takes float16", (Y, WEIGHT, Y), {}),
            (ValueError, r"hidden has shape \(\): takes an axis of features", (np.float32(1), WEIGHT, 0), {}),
            (TypeError, "linear_weight is None", (HIDDEN, None, Y), {}),
            (TypeError, "linear_weight is float64: takes float32", (HIDDEN, WEIGHT.astype("f8"), Y), {}),
            (ValueError, r"linear_weight has shape \(9, 33\): takes .* 9 features", (HIDDEN, WEIGHT.T, Y), {}),
            (ValueError, r"linear_bias has shape \(9,\): takes \(33,\)", (HIDDEN, WEIGHT, Y, BIAS[:9]), {}),
            (ValueError, r"targets has shape \(2, 4\): takes class indices", (HIDDEN, WEIGHT, Y[:, 1:]), {}),
            (ValueError, r"targets has .* takes prob.* \(2, 5, 33\)", (HIDDEN, WEIGHT, HIDDEN), {}),
            (IndexError, r"targets: row 0 is 33, must be in \[0, 33\)", (HIDDEN, WEIGHT, Y * 0 + 33), {}),
            (ValueError, "outputs has 'softmax': takes losses", (HIDDEN, WEIGHT, Y), {"outputs": "softmax"}),
            (ValueError, "outputs has 'bias_gradient': takes", (HIDDEN, WEIGHT, Y), {"outputs": "bias_gradient"}),
            (ValueError, "out has 'gradient': takes loss", (HIDDEN, WEIGHT, Y), {"out": {"gradient": X}}),
            (ValueError, "grad_lse is given: takes a gradient", (HIDDEN, WEIGHT, Y), {"grad_lse": 1}),
            (ValueError, "workspace_limit is -1: takes 0 to", (HIDDEN, WEIGHT, Y), {"workspace_limit": -1}),
            (ValueError, "queue is given: takes pyopencl Arrays as hidden", (HIDDEN, WEIGHT, Y), {"queue": 1}),
            (ValueError, "features is 0: takes 1", (HIDDEN[..., :0], WEIGHT[:, :0], Y), {}),
        ):
            self.raises(error, text, *args, function=clxent.linear_cross_entropy, **options)


@unittest.skipIf(pyopencl is None, "no PyOpenCL")
class PyOpenCL(LinearCase):
    def setUp(self):
        self.context = pyopencl.create_some_context(interactive=False)
        self.queue = pyopencl.CommandQueue(self.context)
        self.x, self.y = self.put(X), self.put(Y)

    def put(self, array):
        return pyopencl.array.to_device(self.queue, np.array(array))

    def test_has_numpys_bits(self):
        weights = {"weight": np.linspace(0.5, 2, 33, dtype="f4"), "row_weights": np.linspace(0, 1, 10, dtype="f4")}
        weights["row_weights"].shape = 2, 5
        scalars = {"denominator": np.array(3, "f4"), "grad_output": np.array(2, "f4")}
        for name in ("grad_entropy", "grad_lse"):
            scalars[name] = np.linspace(-1, 1, 10, dtype="f4").reshape(2, 5)
        for outputs, inputs in ((_RESULTS, {**weights, **scalars}), (("computed_denominator",), weights)):
            want = clxent.cross_entropy(X, Y, return_grad=True, outputs=tuple(outputs), **inputs)
            arrays = {name: self.put(array) for name, array in inputs.items()}
            got = clxent.cross_entropy(self.x, self.y, return_grad=True, outputs=tuple(outputs), **arrays)
            self.assertEqual(list(got), list(want))
            for name, array in got.items():
                self.assertIsInstance(array, pyopencl.array.Array)
                np.testing.assert_array_equal(array.get(), want[name])
        behind = self.put(np.concatenate([X, X + 1]))[2:]  # at an offset of its buffer
        np.testing.assert_array_equal(clxent.softmax(behind).get(), clxent.softmax(X + 1))
        np.testing.assert_array_equal(clxent.log_softmax(self.x).get(), clxent.log_softmax(X))

    def pending(self, user, queue, **options):
        """The logits, which come once user is complete, and the loss and gradient of their run. PyOpenCL waits for a copy
        from the host when its event dies: the caller keeps the logits."""
        x = pyopencl.array.empty(queue, X.shape, X.dtype)
        x.add_event(pyopencl.enqueue_copy(queue, x.data, X, wait_for=[user], is_blocking=False))
        return (x, *clxent.cross_entropy(x, self.y, return_grad=True, **options))

    @contextlib.contextmanager
    def held(self):
        """An event that a test completes, or else its end: nothing must wait for ever."""
        event = pyopencl.UserEvent(self.context)
        try:
            yield event
        finally:
            if not self.complete(event):
                event.set_status(pyopencl.command_execution_status.COMPLETE)

    def out_of_order(self):
        mode = pyopencl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE
        return pyopencl.CommandQueue(self.context, properties=mode)

    def waits(self, queue, array, seconds=0.2):
        """The run that makes the array has not ended."""
        queue.flush()
        time.sleep(seconds)
        self.assertFalse(self.complete(array.events[-1]))

    def complete(self, event):
        return event.command_execution_status == pyopencl.command_execution_status.COMPLETE

    def test_waits_for_events_and_does_not_block(self):
        with self.held() as data, self.held() as other:
            _, loss, gradient = self.pending(data, self.queue, wait_for=[other])
            for event in data, other:
                self.waits(self.queue, loss)
                event.set_status(pyopencl.command_execution_status.COMPLETE)
            want = clxent.cross_entropy(X, Y, return_grad=True)
            self.assertEqual(loss.get(), want[0])
            np.testing.assert_array_equal(gradient.get(), want[1])

    def test_runs_out_of_order_share_no_workspace(self):
        queue = self.out_of_order()
        with self.held() as user:
            first = self.pending(user, queue)
            # Of the same plan and queue; nothing else keeps it from running.
            second = clxent.cross_entropy(self.x, self.y, return_grad=True, queue=queue)[0]
            self.waits(queue, second, 0.5)
            user.set_status(pyopencl.command_execution_status.COMPLETE)
            self.assertEqual(second.get(queue), clxent.cross_entropy(X, Y))
            self.assertEqual(first[1].get(queue), second.get(queue))

    def test_no_rows(self):
        x = pyopencl.array.empty(self.queue, (0, 4), "f4")
        y = pyopencl.array.empty(self.queue, (0,), "i8")
        loss, gradient = clxent.cross_entropy(x, y, reduction="sum", return_grad=True)
        self.assertEqual((loss.get(), gradient.shape), (0, (0, 4)))

    def test_plan(self):
        plan = clxent.Plan(self.x, self.y, outputs=("losses", "gradient"), reduction="none", z_loss=1e-3)
        self.assertIn("row", plan.strategy)
        for seed in (1, 2):
            x, y = batch(seed, (2, 5, 33))
            grads = np.linspace(-1, 1, 10, dtype="f4").reshape(2, 5)
            place = self.put(x)
            found = plan(place, self.put(y), grad_output=self.put(grads), out={"gradient": place})
            self.assertTrue(found["gradient"] is place)
            want = oracle(x, y, reduction="none", z_loss=1e-3, grad_output=grads)
            self.holds({name: array.get() for name, array in found.items()}, want)
        with self.assertRaisesRegex(ValueError, "weight is Array: takes None, as the plan was made"):
            plan(self.x, self.y, weight=self.put(np.ones(33, "f4")))
        with self.assertRaisesRegex(ValueError, r"logits is .* takes float32 of shape \(2, 5, 33\)"):
            plan(self.put(X[0]), self.y)

    def parts(self, x, y, cuts, given=(), inputs=(), outputs=(), **options):
        """Results of a batch in parts that end before cuts, as NumPy arrays."""
        planned, rest = ({name: self.put(array) for name, array in dict(some).items()} for some in (given, inputs))
        names = ("losses" if options.get("reduction") == "none" else "loss", "gradient", *outputs)
        soft = y.shape == x.shape
        part = slice(0, cuts[0])
        plan = clxent.Plan(
            self.put(x[part]), self.put(y[part] if soft else y), batch=len(x), outputs=names, **planned, **options
        )
        run = plan.parts(None if soft else self.put(y), queue=self.queue, **planned, **rest)
        gradients, begin = [], 0
        for end in cuts:
            part = slice(begin, end)
            found = run(self.put(x[part]), self.put(y[part]) if soft else None)
            self.assertEqual((list(found), run.done), (list(names), end))
            gradients.append(found["gradient"].get())
            begin = end
        found = {name: array.get() for name, array in found.items()}
        found["gradient"] = np.concatenate(gradients)
        return found

    def test_parts_have_the_bits_of_one_run(self):
        x, y = batch(7, (6, 5, 33))
        random = np.random.RandomState(8)
        weights = {"weight": random.uniform(0.1, 3, 33).astype("f4")}
        weights["row_weights"] = random.uniform(0, 2, (6, 5)).astype("f4")
        rows = {name: random.normal(size=(6, 5)).astype("f4") for name in ("grad_entropy", "grad_lse")}
        outputs = ("losses", "argmax", "correct", "counted", "computed_denominator", "bad_targets")
        self.same_in_parts(x, y, {**weights, **rows}, outputs=outputs)
        self.same_in_parts(x, y, inputs={"grad_output": rows["grad_lse"]}, reduction="none", shift=1)
        self.same_in_parts(x[:, 0], y[:, 0], inputs={"denominator": np.array(7, "f4")})
        self.same_in_parts(x, random.dirichlet(np.ones(33), (6, 5)).astype("f4"), weights)
        self.same_in_parts(x, random.randint(0, 5, (6, 33)), axis=1)

    def same_in_parts(self, x, y, given=(), inputs=(), **options):
        outputs = options.pop("outputs", ())
        given = dict(given)
        want = clxent.cross_entropy(
            x, y, return_grad=True, outputs=("lse", *outputs), **given, **dict(inputs), **options
        )
        for cuts in ((6,), (1, 3, 6), (2, 6)):
            with self.subTest(cuts=cuts):
                for name, value in self.parts(x, y, cuts, given, inputs, ("lse", *outputs), **options).items():
                    of_rows = name == "losses" and "losses" not in want
                    np.testing.assert_array_equal(value, want["loss" if of_rows else name])

    def test_parts_wait_for_events_and_each_other(self):
        queue = self.out_of_order()
        plan = clxent.Plan(self.x[:1], self.y, batch=2)
        for given in ({}, {"denominator": self.put(np.array(3, "f4"))}):
            with self.held() as start, self.held() as middle:
                run = plan.parts(self.y, queue=queue, wait_for=[start], **given)
                first, last = run(self.x[:1]), run(self.x[1:], wait_for=[middle])
                for held, found in ((start, first), (middle, last)):
                    self.waits(queue, found["gradient"])
                    held.set_status(pyopencl.command_execution_status.COMPLETE)
                want = clxent.cross_entropy(X, Y, **{name: array.get() for name, array in given.items()})
                self.assertEqual(last["loss"].get(queue), want)
        with self.held() as start:  # no Array is written by both parts
            plan = clxent.Plan(self.x[:1], self.y, outputs=("gradient",), batch=2)
            run = plan.parts(self.y, queue=queue, denominator=self.put(np.array(3, "f4")))
            run(self.x[:1], wait_for=[start])
            last = run(self.x[1:])
            self.waits(queue, last["gradient"])

    def test_parts_in_a_loop(self):
        """Arrays of out, an out-of-order queue, and two batches at a time."""
        queue = self.out_of_order()
        batches = (X, Y), batch(9, X.shape)
        want = [clxent.cross_entropy(x, y, return_grad=True) for x, y in batches]
        targets = [self.put(y) for _, y in batches]
        plan = clxent.Plan(self.x[:1], self.y, batch=2)
        loss = self.put(np.zeros((), "f4"))
        first, second = plan.parts(targets[0], queue=queue, out={"loss": loss}), plan.parts(targets[1], queue=queue)
        for i in (0, 1):
            place = self.put(X[i : i + 1])
            found = first(place, out={"gradient": place})
            self.assertTrue(found["gradient"] is place and found["loss"] is loss)
            other = second(self.put(batches[1][0][i : i + 1]))
            for array, (_, gradient) in zip((place, other["gradient"]), want):
                np.testing.assert_array_equal(array.get(queue)[0], gradient[i])
        self.assertEqual((loss.get(queue), other["loss"].get(queue)), (want[0][0], want[1][0]))
        np.testing.assert_array_equal(plan(self.x, self.y)["gradient"].get(), want[0][1])  # whole, too

        with self.assertRaisesRegex(ValueError, "logits has 1 of the first axis: takes 1 to 0, which are left"):
            first(self.x[:1])
        run = plan.parts(self.y)
        for error, text, call in (
            (ValueError, "logits has 0 of the first axis: takes 1 to 2", lambda: run(self.x[:0])),
            (ValueError, r"logits is .* takes float32 of shape \(1, 5, 33\)", lambda: run(self.put(X[:1, :, 1:]))),
            (ValueError, "targets is Array: takes None, as the batch has them", lambda: run(self.x, self.y)),
            (ValueError, "out has 'loss': takes results in the", lambda: run(self.x, out={"loss": loss})),
            (ValueError, "out has 'gradient': takes it with", lambda: plan.parts(self.y, out={"gradient": self.x})),
            (ValueError, r"targets is .* takes int64 of shape \(2, 5\)", lambda: plan.parts(self.y[:1])),
            (ValueError, "weight is Array: takes None", lambda: plan.parts(self.y, weight=self.put(np.ones(33, "f4")))),
            (ValueError, "batch is 2: takes None, as .* classes", lambda: clxent.Plan(self.x, batch=2, axis=0)),
            (
                ValueError,
                "batch is 2: takes None, as .* shift",
                lambda: clxent.Plan(self.x[0], self.y[0], batch=2, shift=1),
            ),
            (TypeError, "batch is 0.5: takes an integer", lambda: clxent.Plan(self.x, self.y, batch=0.5)),
        ):
            self.assertRaisesRegex(error, text, call)

    def test_threads(self):
        """Each with a queue of its own on one plan, beside calls with NumPy arrays, which leave the interpreter free."""
        self.assertNotIsInstance(_library.library, ctypes.PyDLL)
        plan = clxent.Plan(self.x, self.y, outputs=("loss", "gradient"))
        batches = [batch(seed, X.shape) for seed in range(4)]
        want = [clxent.cross_entropy(x, y, return_grad=True) for x, y in batches]
        right = []

        def run(i):
            queue = pyopencl.CommandQueue(self.context)
            x, y = (pyopencl.array.to_device(queue, array) for array in batches[i])
            for _ in range(20):
                found = plan(x, y, queue=queue)
                own = clxent.cross_entropy(*batches[i], return_grad=True)
                for loss, gradient in (own, (found["loss"].get(), found["gradient"].get())):
                    if loss == want[i][0] and (gradient == want[i][1]).all():
                        right.append(i)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(right), 4 * 20 * 2)

    def test_linear(self):
        args = HIDDEN, WEIGHT, Y, BIAS
        options = {"return_grad": True, "outputs": LINEAR_OUTPUTS}
        want = clxent.linear_cross_entropy(*args, **options)
        arrays = [self.put(array) for array in args]
        got = clxent.linear_cross_entropy(*arrays, **options)
        self.assertEqual(list(got), list(want))
        for name, array in got.items():
            np.testing.assert_array_equal(array.get(), want[name])
        hidden, weight, targets, bias = arrays
        own = {"linear_weight": weight, "linear_bias": bias}
        plan = clxent.Plan(hidden, targets, **own)
        with self.held() as start:
            weight.add_event(start)
            found = plan(hidden, targets, **own)
            self.waits(self.queue, found["loss"])
            start.set_status(pyopencl.command_execution_status.COMPLETE)
            self.assertEqual(list(found), list(want)[:4])
            for name, array in found.items():
                np.testing.assert_array_equal(array.get(), want[name])
        with self.assertRaisesRegex(ValueError, "linear_bias is NoneType: takes one, as the plan was made"):
            plan(hidden, targets, linear_weight=weight)
        for text, call in (
            ("linear_bias is Array: takes None without", lambda: clxent.Plan(self.x, self.y, linear_bias=bias)),
            ("linear_weight is Array: takes None", lambda: clxent.Plan(self.x, self.y)(self.x, self.y, **own)),
            ("axis is 0: takes -1", lambda: clxent.Plan(hidden[0], targets[0], axis=0, **own)),
            ("batch is 2: .* features", lambda: clxent.Plan(hidden[0, 0], targets[0, 0], batch=2, **own)),
            (r"hidden is .* takes float32 of shape \(2, 5, 9\)", lambda: plan(self.x, targets, **own)),
            ("device is 'cpu'", lambda: clxent.linear_cross_entropy(*arrays, device="cpu")),
        ):
            self.assertRaisesRegex(ValueError, text, call)
        with self.assertRaisesRegex(TypeError, "hidden is ndarray: takes a pyopencl.array.Array"):
            clxent.Plan(HIDDEN, targets, **own)

    def test_linear_in_parts(self):
        """Row results have the bits of one run; what is summed over the rows differs by rounding."""
        want = clxent.linear_cross_entropy(HIDDEN, WEIGHT, Y, BIAS, return_grad=True, outputs=LINEAR_OUTPUTS)
        hidden, targets = self.put(HIDDEN), self.put(Y)
        own = {"linear_weight": self.put(WEIGHT), "linear_bias": self.put(BIAS)}
        plan = clxent.Plan(hidden[:1], targets, batch=2, outputs=list(want), **own)
        weight_gradient = self.put(np.full(WEIGHT.shape, np.nan, "f4"))
        run = plan.parts(targets, out={"weight_gradient": weight_gradient}, **own)
        parts = []
        for i in range(2):
            found = run(hidden[i : i + 1])
            parts.append(found["hidden_gradient"].get())
        self.assertTrue(found["weight_gradient"] is weight_gradient)
        found = {**{name: array.get() for name, array in found.items()}, "hidden_gradient": np.concatenate(parts)}
        for name in ("loss", "hidden_gradient", *LINEAR_OUTPUTS):
            np.testing.assert_array_equal(found[name], want[name])
        self.holds_linear(found, HIDDEN, WEIGHT, Y, BIAS)

        q = np.random.RandomState(3).dirichlet(np.ones(33), (2, 5)).astype("f4")
        plan = clxent.Plan(hidden[:1], self.put(q[:1]), batch=2, outputs=["loss", "lse"], **own)
        run = plan.parts(**own)
        for i in range(2):
            found = run(hidden[i : i + 1], self.put(q[i : i + 1]))
        self.holds_linear({name: array.get() for name, array in found.items()}, HIDDEN, WEIGHT, q, BIAS)

    def test_a_large_workspace_is_that_of_one_plan(self):
        def workspace(plan):
            with plan._workspaces.lock:
                return plan._workspaces.of(self.queue)[0].int_ptr

        plans = [clxent.Plan(self.x, self.y) for _ in range(2)]
        self.assertEqual(*map(workspace, plans))
        with mock.patch.object(_opencl._Compiled, "MOST_SHARED", 0):
            plans = [clxent.Plan(self.x, self.y) for _ in range(2)]
        self.assertNotEqual(*map(workspace, plans))
        self.assertEqual(workspace(plans[0]), workspace(plans[0]))
        self.assertIs(plans[0]._compiled, plans[1]._compiled)

    def test_bad_targets_are_reported_on_the_device(self):
        y = Y.copy()
        y[1, 0] = 33
        found = clxent.cross_entropy(self.x, self.put(y), outputs=("losses", "bad_targets"))
        self.assertEqual(found["bad_targets"].get()[()].tolist(), (1, 5, 33))
        self.assertTrue(np.isnan(found["losses"].get()[1, 0]))

    def test_errors_name_the_argument(self):
        self.raises(TypeError, "targets is ndarray: takes a pyopencl", self.x, Y)
        self.raises(TypeError, "weight is ndarray: takes a pyopencl", self.x, self.y, weight=np.ones(33, "f4"))
        self.raises(ValueError, "device is 'cpu': takes None", self.x, self.y, device="cpu")
        other = pyopencl.CommandQueue(pyopencl.Context(self.context.devices))
        y = pyopencl.array.to_device(other, Y)
        self.raises(ValueError, "another cl_context", self.x, y)


@unittest.skipIf(torch is None, "no PyTorch")
class PyTorch(Case):
    def same(self, x, y, dtype=None, **options):
        """Loss and gradient are PyTorch's."""
        results = []
        for function in (clxent.torch.cross_entropy, torch.nn.functional.cross_entropy):
            logits = x.detach().clone().requires_grad_(True)
            loss = function(logits, y, **options)
            (3 * loss).sum().backward()
            results.append((loss.detach(), logits.grad))
        for ours, theirs in zip(*results):
            self.assertEqual(ours.shape, theirs.shape)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_is_pytorchs(self):
        x, y = torch.from_numpy(X[0]), torch.from_numpy(Y[0])
        weight = torch.linspace(0.1, 2, 33)
        for reduction in ("mean", "sum", "none"):
            self.same(x, y, reduction=reduction)
        self.same(x, y.clamp(min=0), weight=weight, label_smoothing=0.1, ignore_index=11)
        self.same(x, torch.softmax(x.flip(0), 1))
        image = torch.from_numpy(np.random.RandomState(5).normal(size=(2, 5, 3, 4)).astype("f4"))
        classes = torch.arange(24).reshape(2, 3, 4) % 5
        self.same(image, classes, reduction="none")
        self.same(image.to(memory_format=torch.channels_last), classes)
        self.same(x[0], y[0])

    def test_gradcheck(self):
        x = torch.from_numpy(np.random.RandomState(6).normal(size=(3, 5, 2))).requires_grad_(True)
        y = torch.tensor([[1, 4], [0, -100], [2, 2]])

        def check(**options):
            self.assertTrue(torch.autograd.gradcheck(lambda x: clxent.torch.cross_entropy(x, y, **options), (x,)))

        check()
        check(reduction="none", label_smoothing=0.2, z_loss=0.1, softcap=3.0)
        loss = clxent.torch.cross_entropy(x, y)
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        first *= 0
        self.assertTrue((torch.autograd.grad(loss, x)[0] != 0).any())  # nothing kept was changed

    @unittest.skipUnless(hasattr(torch and torch._C._autograd, "_get_current_graph_task_keep_graph"), "PyTorch 1")
    def test_the_gradient_is_not_copied(self):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.from_numpy(X[0]).to(dtype).requires_grad_(True)
            made = []

            def spy(*args, **options):
                made.append(clxent.cross_entropy(*args, **options))
                return made[0]

            with mock.patch("clxent.torch._cross_entropy", spy):
                loss = clxent.torch.cross_entropy(x, torch.from_numpy(Y[0]))
            (kept,) = torch.autograd.grad(2 * loss, x, retain_graph=True)
            (own,) = torch.autograd.grad(2 * loss, x)
            self.assertTrue(torch.equal(kept, own))
            self.assertEqual(own.data_ptr(), made[0][1].ctypes.data)
            self.assertNotEqual(kept.data_ptr(), own.data_ptr())

    def test_batches_of_grad_output(self):
        y = torch.from_numpy(Y[0])
        for reduction, grads in (("none", torch.eye(5)), ("mean", torch.tensor([1.0, 2.0]))):
            results = []
            for function in (clxent.torch.cross_entropy, torch.nn.functional.cross_entropy):
                x = torch.from_numpy(X[0]).requires_grad_(True)
                results += torch.autograd.grad(function(x, y, reduction=reduction), x, grads, is_grads_batched=True)
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)

    def test_half_precision(self):
        y = torch.from_numpy(Y[0])
        for dtype, error in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
            x = torch.from_numpy(X[0]).to(dtype).requires_grad_(True)
            wide = x.detach().float().requires_grad_(True)
            # A loss scale lifts what float16 could not hold before.
            for logits in (x, wide):
                loss = clxent.torch.cross_entropy(logits, y, denominator=1e9)
                (loss * 1e9).backward()
            self.assertEqual((loss.dtype, x.grad.dtype), (torch.float32, dtype))
            torch.testing.assert_close(x.grad.float(), wide.grad, rtol=error, atol=1e-6)

    def test_nothing_is_copied_and_no_gradient_made_without_need(self):
        from clxent.torch import _array

        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64):
            tensor = torch.ones(3, 4, dtype=dtype)
            self.assertEqual(_array(tensor).ctypes.data, tensor.data_ptr())
        x, y = torch.from_numpy(X[0]), torch.from_numpy(Y[0])
        with mock.patch("clxent.torch._cross_entropy", side_effect=clxent.cross_entropy) as call:
            self.assertFalse(clxent.torch.cross_entropy(x, y).requires_grad)
            x.requires_grad_(True)
            with torch.no_grad():
                clxent.torch.cross_entropy(x, y)
            self.assertTrue(clxent.torch.cross_entropy(x, y).requires_grad)
        self.assertEqual([one[1]["return_grad"] for one in call.call_args_list], [False, False, True])

    def test_errors_name_the_argument(self):
        x, y = torch.from_numpy(X[0]), torch.from_numpy(Y[0])
        for error, text, args in (
            (TypeError, "target is ndarray: takes a torch.Tensor", (x, Y[0])),
            (ValueError, "input is on meta: takes a tensor on the CPU", (x.to("meta"), y)),
            (ValueError, "target requires a gradient", (x, x.clone().requires_grad_(True))),
            (IndexError, "row 1 is 33", (x, torch.tensor([0, 33, 0, 0, 0]))),
        ):
            self.assertRaisesRegex(error, text, clxent.torch.cross_entropy, *args)

    def linear(self, *args, function=None, grad_output=None, **options):
        """Loss and gradients of input, linear_weight and linear_bias."""
        own = [args[i].detach().clone().requires_grad_(True) for i in (0, 1, 3) if i < len(args)]
        loss = (function or clxent.torch.linear_cross_entropy)(own[0], own[1], args[2], *own[2:], **options)
        (loss * (3 if grad_output is None else grad_output)).sum().backward()
        return [loss.detach(), *(tensor.grad for tensor in own)]

    def test_linear_is_pytorchs(self):
        def theirs(input, linear_weight, target, linear_bias=None, **options):
            logits = torch.nn.functional.linear(input, linear_weight, linear_bias).flatten(0, -2)
            target = target.flatten(0, -1 if target.dtype == torch.int64 else -2)
            return torch.nn.functional.cross_entropy(logits, target, **options)

        h, w, y, b = map(torch.from_numpy, (HIDDEN, WEIGHT, Y, BIAS))
        grads = torch.linspace(-1, 1, 10)
        for args, options in (
            ((h, w, y, b), {}),
            ((h[0], w.t().contiguous().t(), y[0]), {"reduction": "sum", "ignore_index": 11}),
            ((h.flatten(0, 1), w, y.flatten(), b), {"reduction": "none", "grad_output": grads}),
            ((h, w, y, b), {"reduction": "none", "grad_output": torch.tensor(2.0)}),
        ):
            if options.get("ignore_index"):
                args = args[0], args[1], args[2].clamp(min=0)
            ours, want = self.linear(*args, **options), self.linear(*args, function=theirs, **options)
            if ours[0].dim() == 2:
                want[0] = want[0].view(ours[0].shape)
            for one, other in zip(ours, want):
                self.assertEqual((one.shape, one.dtype), (other.shape, other.dtype))
                torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
        own = getattr(torch.nn.functional, "linear_cross_entropy", None)
        if own is not None:  # the names of its arguments
            own = own(h[0], linear_weight=w, target=y[0], linear_bias=b, reduction="mean", label_smoothing=0.0)
            ours = clxent.torch.linear_cross_entropy(
                h[0], linear_weight=w, target=y[0], linear_bias=b, reduction="mean", label_smoothing=0.0
            )
            torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-6)

    def test_linear_gradcheck(self):
        random = np.random.RandomState(6)
        own = [torch.from_numpy(random.normal(size=shape)).requires_grad_(True) for shape in ((3, 4), (5, 4), (5,))]
        y, weight = torch.tensor([1, -100, 4]), torch.linspace(0.1, 2, 5, dtype=torch.float64)
        options = {"weight": weight, "label_smoothing": 0.2, "z_loss": 0.1}

        def loss(input, linear_weight, linear_bias, **more):
            return clxent.torch.linear_cross_entropy(input, linear_weight, y, linear_bias, **options, **more)

        for more in ({}, {"reduction": "none"}):
            self.assertTrue(torch.autograd.gradcheck(lambda *tensors: loss(*tensors, **more), own))
        # What the backward pass reads must be what the forward pass read.
        first, second = loss(*own, reduction="none"), loss(*own, reduction="none")
        want = torch.autograd.grad(first.sum(), own[1])[0]
        weight.mul_(2)
        self.assertTrue(torch.equal(torch.autograd.grad(second.sum(), own[1], retain_graph=True)[0], want))
        with torch.no_grad():
            own[1].add_(1)
        self.assertRaisesRegex(RuntimeError, "modified by an inplace operation", second.sum().backward)

    def test_linear_makes_the_gradients_that_are_needed(self):
        made = []

        def spy(*args, **options):
            made.append(clxent.linear_cross_entropy(*args, **options))
            return made[-1]

        h, w, y, b = map(torch.from_numpy, (HIDDEN, WEIGHT, Y, BIAS))
        names = "hidden_gradient", "weight_gradient", "bias_gradient"
        with mock.patch("clxent.torch._linear_cross_entropy", spy):
            for needed in ((), (0,), (1,), (0, 1, 2)):
                for reduction in ("sum", "none"):
                    own = [tensor.clone().requires_grad_(i in needed) for i, tensor in enumerate((h, w, b))]
                    loss = clxent.torch.linear_cross_entropy(own[0], own[1], y, own[2], reduction=reduction)
                    self.assertEqual(loss.requires_grad, bool(needed))
                    if needed:
                        loss.sum().backward()
                    forward, *backward = made
                    kept = backward[0] if backward else forward
                    self.assertEqual(len(made), 1 + (bool(needed) and reduction == "none"))
                    self.assertEqual(set(kept) - {"loss"} if needed else set(), {names[i] for i in needed})
                    for i in needed:  # not copied
                        self.assertEqual(own[i].grad.data_ptr(), kept[names[i]].ctypes.data)
                    made.clear()
            with torch.no_grad():
                self.assertFalse(clxent.torch.linear_cross_entropy(h, w.clone().requires_grad_(True), y).requires_grad)
            self.assertEqual(made[0].shape, ())

    def test_linear_half_precision(self):
        """float16 gradients are float32 until the gradient of what follows has lifted them; so are probabilities."""

        def tiny(hidden, linear_weight, targets, linear_bias, out, outputs, **options):
            self.assertEqual({targets.dtype, *(out[name].dtype for name in outputs)}, {np.dtype("f4")})
            for name in outputs:
                out[name].fill(1e-9)
            return {"loss": np.zeros((), "f4"), **out}

        with mock.patch("clxent.torch._linear_cross_entropy", tiny):
            h, w, b = (torch.from_numpy(array).half() for array in (HIDDEN, WEIGHT, BIAS))
            results = self.linear(h, w, torch.full((2, 5, 33), 1 / 33).bfloat16(), b, grad_output=1e9)
        for tensor, own in zip(results[1:], (h, w, b)):
            self.assertTrue(torch.equal(tensor, torch.ones_like(own)))

    def test_linear_errors_name_the_argument(self):
        h, w, y = map(torch.from_numpy, (HIDDEN, WEIGHT, Y))
        for error, text, args in (
            (TypeError, "linear_weight is ndarray: takes a torch.Tensor", (h, WEIGHT, y)),
            (TypeError, "linear_weight is NoneType: takes a torch.Tensor", (h, None, y)),
            (TypeError, "linear_bias is torch.float64: takes torch.float32", (h, w, y, torch.ones(33).double())),
            (ValueError, "linear_weight is on meta", (h, w.to("meta"), y)),
            (ValueError, "target requires a gradient", (h, w, (h @ w.t()).requires_grad_(True))),
            (ValueError, r"linear_weight has shape \(9, 33\)", (h, w.t(), y)),
            (IndexError, "row 0 is 33", (h, w, y * 0 + 33)),
        ):
            self.assertRaisesRegex(error, text, clxent.torch.linear_cross_entropy, *args)

    def test_example(self):
        gpt = os.path.join(ROOT, "tools", "python", "examples", "gpt.py")
        small = "--steps 1 --vocabulary 33 --batch 2 --seq 5 --width 32 --layers 1 --threads 1".split()
        command = [sys.executable, "-B", gpt, "--text", os.path.join(ROOT, "README.md"), *small]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertRegex(done.stdout.decode(), r"PyTorch / clxent: [\d.]+ a step, [\d.]+ the loss \(PyTorch")


@unittest.skipIf(tinygrad is None, "no tinygrad and PyOpenCL")
class Tinygrad(Case):
    def tensor(self, array):
        return tinygrad.Tensor(array, device="CL")

    def test_has_numpys_bits(self):
        weights = {"weight": np.linspace(0.5, 2, 33, dtype="f4"), "grad_lse": np.linspace(-1, 1, 10, dtype="f4")}
        weights["grad_lse"] = weights["grad_lse"].reshape(2, 5)
        outputs = ("softmax", "lse", "argmax", "correct")
        want = clxent.cross_entropy(X, Y, return_grad=True, outputs=outputs, z_loss=1e-3, **weights)
        tensors = {name: self.tensor(array) for name, array in weights.items()}
        # Computed for the call alone: their memory must not become that of a result.
        x, y = self.tensor(X / 2) * 2, self.tensor(Y) + 0
        got = clxent.tinygrad.cross_entropy(x, y, return_grad=True, outputs=outputs, z_loss=1e-3, **tensors)
        self.assertEqual(list(got), list(want))
        for name, tensor in got.items():
            np.testing.assert_array_equal(tensor.numpy(), want[name])
        losses = clxent.tinygrad.cross_entropy(x, y, reduction="none")
        np.testing.assert_array_equal(losses.numpy(), clxent.cross_entropy(X, Y, reduction="none"))

    def test_the_gradient_goes_on(self):
        weight, hidden = self.tensor(X[0]), self.tensor(X[1, :, :5])
        logits = hidden @ weight
        loss, gradient = clxent.tinygrad.cross_entropy(logits, self.tensor(Y[0] % 33), return_grad=True)
        want = (hidden @ weight).sparse_categorical_crossentropy(self.tensor(Y[0] % 33))
        self.assertAlmostEqual(loss.item(), want.item(), delta=1e-6 * want.item())
        (ours,), (theirs,) = logits.gradient(weight, gradient=gradient), want.gradient(weight)
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)
        half = clxent.tinygrad.cross_entropy(weight.cast("half"), self.tensor(Y[0]), return_grad=True)[1]
        want = clxent.cross_entropy(X[0].astype("f2"), Y[0], return_grad=True)[1]
        np.testing.assert_array_equal(half.numpy(), want)

    def test_errors_name_the_argument(self):
        x, y = self.tensor(X), self.tensor(Y)
        for error, text, call in (
            (TypeError, "targets is ndarray: takes a tinygrad.Tensor", lambda: clxent.tinygrad.cross_entropy(x, Y)),
            (ValueError, "logits is on PYTHON", lambda: clxent.tinygrad.cross_entropy(x.to("PYTHON"), y)),
            (TypeError, "targets is .*bool", lambda: clxent.tinygrad.cross_entropy(x, y > 0)),
            (ValueError, "outputs has 'bad_", lambda: clxent.tinygrad.cross_entropy(x, y, outputs="bad_targets")),
            (ValueError, "label_smoothing is 2", lambda: clxent.tinygrad.cross_entropy(x, y, label_smoothing=2)),
        ):
            self.assertRaisesRegex(error, text, call)


if __name__ == "__main__":
    unittest.main()
