# SPDX-License-Identifier: MIT
"""What the tests of the command line share: processes in a folder of each test's own, and `clxent eval` held against the
oracle. CLXENT_BIN names the executable."""

import json
import os
import subprocess
import tempfile
import unittest

import numpy as np

from oracle import ERRORS, NUMPY, OUTPUTS, oracle, values_of

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.path.abspath(os.environ.get("CLXENT_BIN", "clxent"))
SMALL = "CLXENT_TEST_SMALL" in os.environ  # a simulator runs the kernels
# Every variant times every dtype; else one of each kind, as each takes seconds to compile. A simulator compiles in no time.
FULL = "CLXENT_TEST_FULL" in os.environ
ALL = FULL or SMALL
BAD_DRIVER = os.environ.get("CLXENT_BAD_DRIVER_LIB")  # tests/bad_driver.c
SHIM = os.environ.get("CLXENT_SHIM")  # tests/fault_shim.c
POCL = "pocl" in os.environ.get("OCL_ICD_VENDORS", "")

KEYS = "rows ignored bad_targets classes dtype device loss perplexity accuracy seconds compile_seconds".split()

# Of a process that compiles whatever is cached: PoCL's compiler leaks, which a sanitized program reports.
COMPILES = {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}


def clxent(*args, **kwargs):
    return subprocess.run(
        [BIN, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        encoding="utf-8",
        timeout=7000,  # a guard against hanging
        **kwargs
    )


def bad_driver(faults, folder=None, **environment):
    """The environment in which the driver fails; see bad_driver.c."""
    if folder is not None:
        environment["CLXENT_BAD_DRIVER_FOLDER"] = folder
    return {**os.environ, "LD_PRELOAD": BAD_DRIVER, "CLXENT_BAD_DRIVER": faults, **environment}


needs_bad_driver = unittest.skipUnless(BAD_DRIVER, "a sanitizer's runtime wants to be loaded first")


# ---- Running eval -----------------------------------------------------------------------------


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="clxent-cli-")
        self.addCleanup(temporary.cleanup)
        self.dir = temporary.name

    def path(self, name):
        return os.path.join(self.dir, name)

    def save(self, name, array, version=None):
        if version is None:
            np.save(self.path(name), array)
        else:
            with open(self.path(name), "wb") as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), version=version)
        return self.path(name)

    def raw(self, name, data):
        with open(self.path(name), "wb") as stream:
            stream.write(data)
        return self.path(name)

    def files(self, x, y):
        """The flags of two files that are written."""
        return self.option_flags({"logits": np.asarray(x), "targets": np.asarray(y)})

    def read(self, name):
        with open(self.path(name), "rb") as stream:
            return stream.read()

    def succeed(self, *args, **kwargs):
        result = clxent(*args, **kwargs)
        self.assertEqual((result.returncode, result.stderr), (0, ""), args)
        return result.stdout

    def succeed_json(self, *args, **kwargs):
        return json.loads(self.succeed(*args, "--json", **kwargs))

    def refuse(self, *args, status=1, mentions=(), **kwargs):
        """Exit status, talk on stderr only, and for status 1 exactly one line that has all of mentions."""
        before = sorted(os.listdir(self.dir))
        result = clxent(*args, **kwargs)
        self.assertEqual((result.returncode, result.stdout), (status, ""), (args, result.stderr))
        if status == 1:
            self.assertRegex(result.stderr, r"\Aclxent [a-z]+: [^\n]+\n\Z")
        for text in mentions:
            self.assertIn(text, result.stderr)
        self.assertEqual(sorted(os.listdir(self.dir)), before, "a file was left behind")
        return result.stderr

    def refuse_values(self, command, values):
        """Each value of a flag is wrong usage, which names the flag."""
        for flag, wrong in values.items():
            for value in wrong:
                self.refuse(*command, flag, value, status=2, mentions=[flag])

    def close(self, got, want, dtype, what):
        """Equal, infinities and NaN too, but for the errors that a result of dtype may have."""
        self.assertEqual(np.shape(got), np.shape(want), what)
        relative, absolute = ERRORS[dtype]
        np.testing.assert_allclose(np.asarray(got, "f8"), np.asarray(want, "f8"), relative, absolute, err_msg=what)

    def option_flags(self, options, save=None):
        """Of values by name; arrays are written to files."""
        flags = []
        for name, value in options.items():
            if isinstance(value, np.ndarray):
                value = (save or self.save)(name + ".npy", value)
            flags += ["--" + name.replace("_", "-"), "none" if value is None else value]
        return flags

    def evaluate(self, logits, targets, dtype="f32", axis=-1, outputs=OUTPUTS, grad_dtype=None, save=None, **options):
        """eval of logits against the oracle. targets: None for none; save: writes an array and returns its path."""
        real = "f64" if dtype == "f64" else "f32"
        x = values_of(logits, dtype)
        y = targets if targets is not None else np.zeros(np.delete(logits.shape, axis), "i8")
        if dtype == "bf16" and y.shape == logits.shape and y.dtype.itemsize == 2:
            y = values_of(y, dtype)
        want = oracle(x, y, axis=axis, f64=dtype == "f64", **options)
        kinds = {"softmax": dtype, "log-softmax": dtype, "grad": grad_dtype or dtype}
        dtypes = {name: kinds.get(name, real) for name in outputs}
        options.update({"class_axis": axis} if axis != -1 else {}, **{"grad_dtype": grad_dtype} if grad_dtype else {})
        return self.hold({"logits": logits, "targets": targets}, options, want, dtype, dtypes, save)

    def hold(self, inputs, options, want, dtype, dtypes, save=None, keys=KEYS):
        """Runs eval on stored arrays and compares everything it gives with what the oracle wants: its JSON object and its
        outputs, which are returned. inputs: by flag, None for none; dtypes: of the outputs, by name."""
        real = "f64" if dtype == "f64" else "f32"
        inputs = {name: array for name, array in inputs.items() if array is not None}
        flags = self.option_flags({**inputs, **options}, save) + ["--bf16"] * (dtype == "bf16")
        for name in dtypes:
            flags += ["--%s-out" % name, self.path("out-%s.npy" % name)]
        got = self.succeed_json("eval", *flags)

        self.assertEqual(list(got), keys)
        unknown = () if "targets" in inputs else ("ignored", "bad_targets", "loss", "perplexity", "accuracy")
        want = {**want, **dict.fromkeys(unknown), **({"loss": None} if options.get("reduction") == "none" else {})}
        self.assertEqual(got["dtype"], dtype)
        for key in ("rows", "classes", "ignored", "bad_targets", "accuracy"):
            self.assertEqual(got[key], want[key], key)
        for key in ("loss", "perplexity"):
            self.assertEqual(got[key] is None, want[key] is None, key)
            if want[key] is not None:
                self.close(float(got[key]), want[key], real, key)
        arrays = {}
        for name, stored in dtypes.items():
            array = arrays[name] = np.load(self.path("out-%s.npy" % name))
            self.assertTrue(array.flags["C_CONTIGUOUS"])
            self.assertEqual(array.dtype, np.dtype("<i8" if name == "argmax" else NUMPY[stored]), name)
            if name == "argmax":
                np.testing.assert_array_equal(array, want[name])
            else:
                self.close(values_of(array, stored), want[name.replace("-grad", "_gradient")], stored, name)
        return got, arrays
