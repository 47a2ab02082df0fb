#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whatever OpenCL call of the command line fails, alone or with all later ones, it ends with a message of one line.

CLXENT_SHIM names the library that fault_shim.c is, CLXENT_LIBRARY libclxent, CLXENT_NM the tool that lists symbols. By default
up to three calls of each function fail, with CLXENT_TEST_ALL_FAULTS=1 each call.
"""

import itertools
import os
import re
import subprocess
import unittest

import numpy as np

from cli import BIN, SHIM, Case, clxent

LIBRARY = os.environ.get("CLXENT_LIBRARY", "")
NM = os.environ.get("CLXENT_NM", "nm")
ALL = os.environ.get("CLXENT_TEST_ALL_FAULTS") == "1"

OUTPUTS = ("grad", "softmax", "losses", "lse")


def symbols(path, *options):
    listed = subprocess.run([NM, *options, path], stdout=subprocess.PIPE, universal_newlines=True, check=True)
    return {name for name in re.findall(r" [TU] (cl[A-Z]\w*)", listed.stdout)}


class Run:
    """One process: what it printed, called and left."""

    def __init__(self, folder, arguments, **fault):
        report = os.path.join(folder, "report")
        self.out = os.path.join(folder, "out")
        environment = dict(os.environ, LD_PRELOAD=SHIM, CLXENT_FAIL_REPORT=report, TMPDIR=self.out)
        environment.update({"CLXENT_FAIL_" + name.upper(): str(value) for name, value in fault.items()})
        if os.path.exists(report):
            os.remove(report)
        process = clxent(*arguments, cwd=self.out, env=environment)
        self.status, self.stdout, self.stderr = process.returncode, process.stdout, process.stderr
        self.calls, self.live = [], None
        if os.path.exists(report):
            with open(report) as file:
                *self.calls, last = file.read().split("\n")[:-1]
            self.live = int(last.split()[1])
        self.files = {}
        for name in sorted(os.listdir(self.out)):
            with open(os.path.join(self.out, name), "rb") as file:
                self.files[name] = file.read()
            os.remove(os.path.join(self.out, name))


class Faults(Case):
    def setUp(self):
        super().setUp()
        os.mkdir(self.path("out"))
        random = np.random.default_rng(7)
        self.inputs = self.files(random.normal(size=(3, 5)).astype(np.float32), np.array([4, 0, 2], np.int32))

    def sweep(self, arguments, expected_files=(), alone=False):
        """By default the first call of each function fails with all later ones, and the last, with all later ones where kernels
        wait. Alone: just the last."""
        good = Run(self.dir, arguments)
        self.assertEqual((good.status, good.stderr, good.live), (0, "", 0))
        self.assertEqual(sorted(good.files), sorted(expected_files))
        kernel = good.calls.index("clEnqueueNDRangeKernel") + 1
        chosen = set()  # call, whether all later ones fail too
        for name in set(good.calls):
            at = [i for i, call in enumerate(good.calls, 1) if call == name]
            if ALL:
                chosen |= set(itertools.product(at, (False, True)))
            else:
                chosen |= {(at[-1], False)} if alone else {(at[0], True), (at[-1], at[-1] > kernel)}
        for at, forever in sorted(chosen):
            fault = {"forever": 1, "late": int(at > kernel)} if forever else {}
            with self.subTest(command=arguments[0], call=at, name=good.calls[at - 1], **fault):
                self.check(good, Run(self.dir, arguments, at=at, **fault))

    def check(self, good, run):
        self.assertIn(run.status, (0, 1), run.stderr)
        if run.status == 0:  # what can be done without is survived, results included
            self.assertEqual((run.files, run.stderr), (good.files, ""))
        else:
            self.assertEqual((run.files, run.stdout), ({}, ""))
            self.assertRegex(run.stderr, r"\Aclxent [a-z]+: [^\n]+\n\Z")
        if "the device may still use the arrays" not in run.stderr:
            self.assertEqual(run.live, 0, run.stderr)

    def test_eval(self):
        arguments = ["eval", *self.inputs]
        files = []
        for output in OUTPUTS:
            files.append(output + ".npy")
            arguments += ["--%s-out" % output, files[-1]]
        self.sweep(arguments, files)

    def test_demo(self):
        self.sweep(["demo"], alone=True)

    def test_shim_is_complete(self):
        called = symbols(BIN, "-D", "-u")
        if LIBRARY:
            called |= symbols(LIBRARY, "-u", *(["-D"] if LIBRARY.endswith(".so") else []))
        self.assertGreater(len(called), 20)
        self.assertEqual(called - symbols(SHIM, "-D", "--defined-only"), set())


if __name__ == "__main__":
    unittest.main(verbosity=2)
