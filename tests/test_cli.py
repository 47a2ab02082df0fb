#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The command line as a user runs it: its frame and all subcommands but eval, whose results are test_eval.py's."""

import contextlib
import ctypes
import ctypes.util
import itertools
import json
import math
import os
import platform
import pty
import re
import resource
import signal
import subprocess
import sys
import time
import unittest

import numpy as np

from cli import BIN, COMPILES, FULL, POCL, ROOT, SHIM, SMALL, Case, bad_driver, clxent, needs_bad_driver
from oracle import OUTPUTS, batch, oracle

# ---- The frame --------------------------------------------------------------------------------


class Frame(Case):
    def test_version(self):
        self.assertRegex(self.succeed("--version"), r"\Aclxent \d+\.\d+\.\d+\n\Z")
        self.assertEqual(self.succeed("eval", "--version"), self.succeed("--version"))

    def test_help_names_every_subcommand(self):
        text = self.succeed("--help")
        for name in ("info", "demo", "sample", "eval", "verify", "bench", "tune"):
            self.assertRegex(text, r"(?m)^  %s  " % name)
            self.assertIn("--device", self.succeed(name, "--help"))
        text = self.succeed("eval", "--help")
        self.assertRegex(text, r"Accuracy\s+and\s+--argmax-out\s[^.]*--logit-scale[^.]*before\s+--softcap")
        unknown = "ignored, bad_targets, loss, perplexity and accuracy are null".replace(" ", r"\s+")
        self.assertRegex(text, r"without\s+--targets\s+" + unknown)

    def test_wrong_usage_is_status_2(self):
        files = self.files(*batch(0))
        for args in (
            *([], ["nonsense"], ["--nonsense"], ["verify", "extra"], ["tune", "extra"], ["demo", "extra"]),
            *(["eval"], ["eval", *files, "extra"], ["eval", *files, "--nonsense"]),
            *(["eval", *files, "--grad-dtype", "f16"], ["info", "--logits", "x"]),
            ["eval", *files, "--grad-output", "g.npy", "--lse-out", self.path("a.npy")],
            ["eval", *files, "--lse-out", self.path("a.npy"), "--grad-out", self.path("a.npy")],
            ["sample", "--text", "x", "--out", "o", "--batch", 2**40, "--seq", 2**40],
        ):
            self.refuse(*args, status=2)
        logits = "--logits, or --hidden and --weight, is required"
        for given, missing in (("--logits", "--targets is required"), ("--targets", logits)):
            text = self.refuse("eval", given, "logits.npy", status=2, mentions=[missing])
            self.assertNotIn(given, text)
        both = "--logits (or --hidden and --weight) and --targets are required"
        self.refuse("eval", status=2, mentions=[both])
        for given, missing in (
            ([], "--text, --batch, --seq and --out are"),
            (["--text", "x", "--out", "o"], "--batch and --seq are"),
            (["--text", "x", "--batch", "2", "--seq", "3"], "--out is"),
        ):
            self.refuse("sample", *given, status=2, mentions=["sample: %s required" % missing])
        for flag in ("--grad-dtype", "--grad-output", "--grad-entropy", "--grad-lse"):
            self.refuse("eval", *files, flag, "f16", status=2, mentions=[flag, "--grad-out,"])
        outputs = ["--%s-out" % name for name in OUTPUTS]
        for flag in (*outputs, "--logits", "--targets", "--class-weights", "--row-weights", "--grad-output"):
            self.refuse("eval", *files, flag, "-", status=2, mentions=[flag + " is '-'", "./-"])
            self.refuse_values(["eval", *files], {flag: [""]})
        for command in ("info", "demo", "verify", "bench", "tune"):
            self.refuse_values([command], {"--tuning": [""], "--device": ["", "-1", "-99999999999999999999999"]})
        for command in ("demo", "bench"):
            self.refuse_values([command], {"--plot": ["", "-", "png"]})
            said = "--plot is 'x.jpg': takes a .png file"
            self.refuse(command, "--plot", "x.jpg", status=2, mentions=[said])
        values = {
            "--class-axis": ["", "x", "1.5", "99999999999999999999"],
            "--ignore-index": ["no", "1e3", "9223372036854775808"],
            "--label-smoothing": ["-0.1", "1.01", "nan", "x", "", " 0.1", "0.1 "],
            "--z-loss": ["-1", "inf", "nan"],
            "--logit-scale": ["inf", "nan", "1x"],
            "--softcap": ["-1", "inf"],
            "--reduction": ["max", "", "Mean"],
            "--denominator": ["inf", "x"],
            "--shift": ["-1", "1.0", "+1"],
            "--on-bad-target": ["x"],
            "--all-ignored": ["x"],
            "--grad-dtype": ["f4", "x"],
        }
        self.refuse_values(["eval", *files], values)
        good = ["sample", "--text", "x", "--batch", "1", "--seq", "1", "--out", self.path("o")]
        values = {"--batch": ["0", "x"], "--seq": ["-1"], "--text": ["", "-"], "--out": ["", "-"]}
        self.refuse_values(good, values)

    def test_text_output_has_every_figure(self):
        x, y = batch(1)
        text = self.succeed("eval", *self.files(x, y))
        want = oracle(x, y)
        got = dict(line.split(None, 1) for line in text.splitlines())
        self.assertEqual((got["rows"], got["ignored"], got["classes"]), ("10", "1", "33"))
        self.assertAlmostEqual(float(got["loss"].split()[0]), float(want["loss"]), delta=1e-5)
        self.assertAlmostEqual(float(got["perplexity"]), want["perplexity"], delta=1e-5 * want["perplexity"])
        self.assertTrue(got["accuracy"].startswith("%.6f" % want["accuracy"]))
        self.assertRegex(got["time"], r"\A\d+\.\d+ s\Z")
        self.assertRegex(got["compiling"], r"\A\d+\.\d+ s\Z")
        self.assertRegex(got["bandwidth"], r"GB/s\Z")
        self.assertRegex(got["device"], r"\A\d+: .")

    def test_any_directory_and_an_empty_environment(self):
        self.files(*batch(2))
        environment = {}
        with open(BIN, "rb") as stream:
            if b"__asan_init" in stream.read() and "OCL_ICD_VENDORS" in os.environ:
                # Some drivers cannot be loaded into a sanitized program.
                environment = {"OCL_ICD_VENDORS": os.environ["OCL_ICD_VENDORS"]}
        args = ["--logits", "logits.npy", "--targets", "targets.npy", "--lse-out", "lse.npy"]
        self.succeed("eval", *args, cwd=self.dir, env=environment)
        self.assertEqual(np.load(self.path("lse.npy")).shape, (2, 5))
        self.succeed("demo", cwd="/", env=environment)

    def test_full_disk_at_standard_output(self):
        files = self.files(*batch(3))
        verify = ["verify", "--case", "outputs=loss", "--no-host-arrays"]
        for args in (["--help"], ["eval", "--help"], ["--version"], ["demo"], ["eval", *files], verify):
            with open("/dev/full", "w") as full:
                result = subprocess.run([BIN, *args], stdout=full, stderr=subprocess.PIPE)
                self.assertEqual(result.returncode, 1, args)
                self.assertRegex(result.stderr, rb"\Aclxent( (demo|eval|verify))?: standard output: ")

    def test_closed_streams_receive_nothing_of_files(self):
        files = self.files(*batch(3))
        command = " ".join([BIN, "eval", *files, "--lse-out", self.path("lse.npy")])
        for closed, status in ((">&-", 1), ("2>&-", 0), ("<&-", 0), ("<&- >&- 2>&-", 1)):
            to = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            result = subprocess.run(["sh", "-c", command + " " + closed], **to)
            self.assertEqual(result.returncode, status, closed)
            self.assertEqual(np.load(self.path("lse.npy")).shape, (2, 5))


class PlotCase(Case):
    def check_picture(self, name):
        data = self.read(name)
        self.assertEqual((data[:8], data[-8:-4]), (b"\x89PNG\r\n\x1a\n", b"IEND"))
        self.assertGreater(len(data), 10000)


class Devices(Case):
    def test_info_lists_devices_and_strategies(self):
        info = self.succeed_json("info")
        self.assertEqual(list(info), ["devices"])
        self.assertGreater(len(info["devices"]), 0)
        for index, device in enumerate(info["devices"]):
            self.assertEqual(device["index"], index)
            for key in ("name", "type", "vendor", "driver", "version"):
                self.assertTrue(device[key], key)
            for key in ("memory", "max_allocation", "max_work_group", "compute_units"):
                self.assertGreater(device[key], 0, key)
            for key in ("f64", "host_memory"):
                self.assertIsInstance(device[key], bool)
            self.assertGreater(len(device["strategies"]), 3)
            for entry in device["strategies"]:
                self.assertTrue(entry["strategy"])
        self.assertIn(info["devices"][0]["name"], self.succeed("info"))

    @needs_bad_driver
    def test_info_compiles_nothing(self):
        self.succeed("info", env=bad_driver("build:abort:0,launch:abort:0"))

    def test_a_device_is_chosen_by_number_or_name(self):
        name = self.succeed_json("info", "--device", "0")["devices"][0]["name"]
        self.assertEqual(self.succeed_json("demo", "--device", name[2:9].upper())["device"], name)
        wrong = {"99": "info", "99999999999999999999999": "demo", "no such device": "info", "-1x": "demo"}
        for wanted, command in wrong.items():
            self.refuse(command, "--device", wanted, mentions=["--device"])
        last = len(self.succeed_json("info")["devices"]) - 1
        takes = "takes 0 to %d" % last if last > 0 else "takes 0"
        self.refuse("info", "--device", "99", mentions=["--device 99: there is no such device: %s\n" % takes])

    def test_no_device_is_an_error(self):
        self.refuse("demo", env={"OCL_ICD_VENDORS": "/nonexistent"}, mentions=["no OpenCL device"])
        self.refuse("info", env={"OCL_ICD_VENDORS": "/nonexistent"}, mentions=["no OpenCL device"])


class Demo(PlotCase):
    LOSSES = [0.14507793896078233, 17.01904504849764]
    SOFTMAX = [
        [2.1440087835846340e-03, 1.5842201178506925e-02, 1.1705891323853292e-01, 8.6495487679937544e-01],
        [8.9467946053009757e-04, 4.0618384668004272e-08, 1.7970117338894899e-02, 9.8113516258219036e-01],
    ]
    TARGETS = [3, 1]

    def gradient(self, row, j):
        return self.SOFTMAX[row][j] - (j == self.TARGETS[row])

    def test_numbers_in_fixed_notation_and_bars_of_the_locale(self):
        self.assertIn("\u2588", self.succeed("demo", env={**os.environ, "LC_ALL": "C.UTF-8"}))
        text = self.succeed("demo", env={**os.environ, "LC_ALL": "", "LC_CTYPE": "", "LANG": "C"})
        text.encode("ascii")
        self.assertRegex(text, r"(?m)^time \d+\.\d{3} s, after \d+\.\d{3} s of compiling kernels$")
        losses = re.findall(r"(?m)^row \d, target \d: loss (\d+\.\d{9}) ", text)
        self.assertEqual(len(losses), 2)
        rows = re.findall(r"(?m)^  ([* ]) +(\d) +(-?\d+)  (\d\.\d{9})  [# ]{20}  ([ -]\d\.\d{9})  [# |]+$", text)
        self.assertEqual(len(rows), 8)
        for i, (mark, j, _, softmax, gradient) in enumerate(rows):
            row, j = i // 4, int(j)
            self.assertEqual(mark == "*", j == self.TARGETS[row])
            self.assertAlmostEqual(float(losses[row]), self.LOSSES[row], delta=2e-6 * self.LOSSES[row])
            self.assertAlmostEqual(float(softmax), self.SOFTMAX[row][j], delta=2e-6 * self.SOFTMAX[row][j] + 5.1e-10)
            want = self.gradient(row, j)
            self.assertAlmostEqual(float(gradient), want, delta=2e-6 * abs(want) + 5.1e-10)

    def test_json(self):
        got = self.succeed_json("demo")
        for row in range(2):
            self.assertAlmostEqual(got["losses"][row], self.LOSSES[row], delta=2e-6 * self.LOSSES[row])
            for j in range(4):
                self.assertAlmostEqual(got["gradient"][row][j], self.gradient(row, j), delta=2e-6)
        self.assertGreater(got["seconds"], 0)
        self.assertGreater(got["compile_seconds"], 0)

    @needs_bad_driver
    def test_a_terminal_shows_that_kernels_are_compiled(self):
        runs = []
        for call in ("build", "launch"):  # either takes longer than a second
            master, slave = pty.openpty()
            env = bad_driver(call + ":sleep")
            runs.append((subprocess.Popen([BIN, "demo"], stdout=subprocess.DEVNULL, stderr=slave, env=env), master))
            os.close(slave)
        for run, master in runs:
            shown = b""
            with open(master, "rb", buffering=0) as stream, contextlib.suppress(OSError):  # EIO: all is read
                while part := stream.read(4096):
                    shown += part
            self.assertEqual(run.wait(), 0, shown)
            self.assertIn(b"\r\x1b[Kdemo: compiling kernels ", shown)
            self.assertTrue(shown.endswith(b"\r\x1b[K"), shown)

    def test_plot(self):
        self.succeed("demo", "--plot", self.path("demo.png"))
        self.check_picture("demo.png")

    def test_plot_without_gnuplot(self):
        plot = ["demo", "--plot", self.path("demo.png")]
        self.refuse(*plot, env={**os.environ, "PATH": "/nonexistent"}, mentions=["gnuplot"])
        os.mkdir(self.path("bin"))
        for script, mentions in (
            ("echo partial\nexit 3\n", ["status 3"]),
            ("echo partial\n", ["demo.png", "no whole picture"]),  # as on a full device, of which it does not tell
        ):
            os.chmod(self.raw("bin/gnuplot", b"#!/bin/sh\n" + script.encode()), 0o755)
            self.refuse(*plot, env={**os.environ, "PATH": self.path("bin")}, mentions=mentions)
        self.refuse("demo", "--plot", self.path("no/demo.png"), mentions=["no/demo.png"])
        # before any work is done
        rows = self.raw("rows.png", b"not read yet")
        os.symlink("rows.png", self.path("link.png"))
        for command, plot in itertools.product(("demo", "bench"), (rows, self.path("link.png"))):
            said = plot + ": --plot and --tuning name the same file"
            self.refuse(command, "--plot", plot, "--tuning", rows, mentions=[said])
        self.refuse("bench", "--plot", self.path("no/bench.png"), mentions=["no/bench.png"])


class Sample(Case):
    TEXT = (
        b"It was the best of times, it was the worst of times, it was the age of wisdom, "
        b"it was the age of foolishness, "
        b"it was the epoch of belief, it was the epoch of incredulity.\x00\xff\n"
    ) * 3

    def test_rows_are_the_bigram_model_and_eval_finds_its_cross_entropy(self):
        B, S = 3, 40
        out = self.path("a/b")
        args = ["--text", self.raw("t", self.TEXT), "--batch", B, "--seq", S, "--out", out]
        told = self.succeed_json("sample", *args)
        text = np.frombuffer(self.TEXT, np.uint8)
        counts = np.zeros((256, 256))
        np.add.at(counts, (text[:-1], text[1:]), 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            model = np.log(counts / counts.sum(axis=1, keepdims=True))
        logits, targets = np.load(out + "/logits.npy"), np.load(out + "/targets.npy")
        self.assertEqual((logits.dtype, logits.shape), (np.dtype("<f4"), (B, S, 256)))
        self.assertEqual((targets.dtype, targets.shape), (np.dtype("u1"), (B, S)))
        np.testing.assert_array_equal(targets, text[1 : B * S + 1].reshape(B, S))
        np.testing.assert_array_equal(logits, model[text[: B * S]].astype("<f4").reshape(B, S, 256))

        cross_entropy = -model[text[: B * S], text[1 : B * S + 1]].mean()
        self.assertAlmostEqual(told["cross_entropy"], cross_entropy, delta=1e-12)
        got = self.succeed_json("eval", "--logits", out + "/logits.npy", "--targets", out + "/targets.npy")
        self.assertAlmostEqual(got["loss"], cross_entropy, delta=1e-6 * cross_entropy)
        self.assertAlmostEqual(got["perplexity"], math.exp(cross_entropy), delta=1e-6 * math.exp(cross_entropy))
        self.assertEqual(got["accuracy"], np.mean(logits.argmax(axis=-1) == targets))
        self.assertIn("%.9f" % cross_entropy, self.succeed("sample", *args))

    def test_no_room(self):
        """A limit of a file's size stands for a full device; its signal would end the command."""
        self.refuse(
            *("sample", "--text", self.raw("t", self.TEXT), "--batch", 4, "--seq", 100, "--out", self.dir),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
            mentions=["logits.npy: no room for ", "File too large"],
        )

    def test_exactly_enough_text(self):
        text = self.raw("t", b"abcdefg")
        args = ["sample", "--text", text, "--out", self.path("o")]
        self.succeed(*args, "--batch", 2, "--seq", 3)
        self.refuse(*args, "--batch", 1, "--seq", 7, mentions=["t: 7 bytes", "8"])

    def test_errors(self):
        rest = ["--batch", 1, "--seq", 2, "--out", self.path("o")]
        self.refuse("sample", "--text", self.path("none"), *rest, mentions=["none: ", "No such file"])
        self.refuse("sample", "--text", self.raw("empty", b""), *rest, mentions=["empty: 0 bytes"])
        self.refuse("sample", "--text", self.dir, *rest, mentions=["not a regular file"])
        text = self.raw("t", b"abcdef")
        for out in (text, text + "/x"):
            self.refuse("sample", "--text", text, *rest, "--out", out, mentions=["cannot be made"])
        os.makedirs(self.path("o/targets.npy"))
        self.refuse("sample", "--text", text, *rest, mentions=["targets.npy", "is a directory"])
        self.assertEqual(os.listdir(self.path("o")), ["targets.npy"])
        os.rmdir(self.path("o/targets.npy"))
        os.symlink("logits.npy", self.path("o/targets.npy"))
        self.refuse("sample", "--text", text, *rest, mentions=["targets.npy: is the same file as", "logits.npy"])
        os.remove(self.path("o/targets.npy"))
        for name in ("logits.npy", "targets.npy"):
            for link in (os.link, os.symlink):
                link(text, self.path("o/" + name))
                self.refuse("sample", "--text", text, *rest, mentions=[name + ": is the same file as --text " + text])
                os.remove(self.path("o/" + name))
        self.assertEqual(self.read("t"), b"abcdef")


@needs_bad_driver
class BadDrivers(Case):
    """Drivers that crash, hang, or compile for long."""

    def setUp(self):
        super().setUp()
        self.eval = [BIN, "eval", *self.files(*batch(27))]
        os.mkdir(self.path("out"))
        self.outputs = ["--lse-out", self.path("out/lse.npy"), "--grad-out", self.path("out/grad.npy")]

    def start(self, faults, *command, preexec_fn=None, **kwargs):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
        run = subprocess.Popen(command, env=bad_driver(faults, **kwargs), preexec_fn=preexec_fn, **pipes)
        self.addCleanup(run.kill)
        return run

    def evaluate_badly(self, faults, *args, **kwargs):
        """The exit status and stderr."""
        run = self.start(faults, *self.eval, *args, **kwargs)
        err = run.communicate()[1]
        return run.returncode, err

    def test_a_fault_leaves_no_file(self):
        for what, status in (
            ("segv", -signal.SIGSEGV),
            ("ill", -signal.SIGILL),
            ("fpe", -signal.SIGFPE),
            ("bus", -signal.SIGBUS),
            ("abort", -signal.SIGABRT),
            ("exit", 3),
        ):
            # PoCL's own handler for SIGFPE goes on behind a division by zero, unless it is switched off
            for handler in ("0", "1") if what != "fpe" else "0":
                with self.subTest(fault=what, handler=handler):
                    # while the outputs are being written
                    environment = {"folder": self.path("out"), "POCL_SIGFPE_HANDLER": handler}
                    result, err = self.evaluate_badly("launch:" + what, *self.outputs, **environment)
                    if what != "ill" or result != -signal.SIGTRAP:  # as some processors have it
                        self.assertEqual(result, status, err)
                    self.assertEqual(os.listdir(self.path("out")), [])
        for what in ("segv", "abort", "exit"):  # within the driver's compiler
            self.assertNotEqual(self.evaluate_badly("build:" + what, *self.outputs)[0], 0)
            self.assertEqual(os.listdir(self.path("out")), [])

    def test_what_the_caller_ignored_stays_ignored(self):
        """nohup, and jobs in the background: the signals come while a driver works."""
        for where in ("build:signals", "launch:signals"):
            ignore = lambda: [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGINT)]
            self.assertEqual(self.evaluate_badly(where, *self.outputs, preexec_fn=ignore), (0, ""), where)
            self.assertEqual(sorted(os.listdir(self.path("out"))), ["grad.npy", "lse.npy"])
            for name in os.listdir(self.path("out")):
                os.remove(self.path("out/" + name))
        status, _ = self.evaluate_badly("launch:signals", *self.outputs, folder=self.path("out"))
        self.assertIn(status, (-signal.SIGHUP, -signal.SIGINT))
        self.assertEqual(os.listdir(self.path("out")), [])

    def test_compiling_and_computing_are_told_apart(self):
        # The perplexity of smoothed losses takes a second program.
        smoothed = ["--label-smoothing", "0.1", *self.outputs, "--softmax-out", self.path("out/softmax.npy")]
        runs = [("build:sleep:2", [*self.eval, *smoothed])]
        runs += itertools.product(("build:sleep", "launch:sleep"), (self.eval, [BIN, "demo"]))
        runs = [(where, self.start(where, *command, "--json")) for where, command in runs]  # all at once
        for where, run in runs:
            out, err = run.communicate()
            self.assertEqual((run.returncode, err), (0, ""))
            self.assertGreater(json.loads(out)["compile_seconds"], 1.4, where)

    def verify_badly(self, faults, *args, sends=None):
        """A run whose driver hangs, and the signal it is sent then."""
        default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        run = self.start(faults, BIN, *Verify.LONG_RUN, *args, preexec_fn=default)
        self.assertEqual(run.stderr.readline(), "bad driver: hangs\n")
        if sends is not None:
            run.send_signal(sends)
        out, err = run.communicate(timeout=6900)
        self.assertEqual(err, "")
        return run.returncode, out

    def test_verify_ends_while_a_driver_compiles(self):
        status, out = self.verify_badly("build:hang:2", sends=signal.SIGINT)
        self.assertEqual(status, 130)
        done = re.search(r"(?m)^cases +(\d+) of seed 11: \1 passed, 0 failed; interrupted by SIGINT$", out)
        self.assertGreater(int(done.group(1)), 0)
        self.assertRegex(out, r"(?m)^programs +1 compiled$")
        self.assertRegex(out, r"(?m)^all +%s +0 " % done.group(1))
        self.assertRegex(out, r"(?m)^note +few cases ran: [\d.]+ of the [\d.]+ s went into cases whose programs had")

        status, out = self.verify_badly("build:hang:2", "--json", sends=signal.SIGTERM)
        self.assertEqual(status, 143)
        result = json.loads(out)
        self.assertEqual((result["interrupted"], str(result["cases"])), (True, done.group(1)))
        self.assertTrue(0 < result["compile_seconds"] <= result["seconds"])

        status, out = self.verify_badly("build:hang", "--seconds", "0.2")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"(?m)^cases +0 of seed 11: 0 passed, 0 failed$")
        self.assertRegex(out, r"(?m)^note +few cases ran")

    def test_verify_reports_the_failure_that_it_was_shrinking(self):
        """Nothing is launched, so that case 0 fails; its shrinking needs a second program."""
        status, out = self.verify_badly("launch:skip:0,build:hang:2", sends=signal.SIGTERM)
        self.assertEqual(status, 1)
        self.assertRegex(out, r"(?m)^FAILED case 0: .* are wrong")
        self.assertRegex(out, r"(?m)^  smallest .* \(interrupted\)$")
        self.assertEqual(len(re.findall(r"(?m)^  repeat    clxent verify .*--case ", out)), 2)
        self.assertRegex(out, r"(?m)^cases +1 of seed 11: 0 passed, 1 failed; interrupted by SIGTERM$")


    def test_the_command_that_repeats_a_case_has_the_flags_that_matter(self):
        rows = self.raw("rows.def", b"")
        for flags, begins in (
            ([], ""),
            (["--no-tuning"], " --no-tuning"),
            (["--no-tuning", "--device", "0"], " --device '0' --no-tuning"),
            (["--tuning", rows], " --tuning '%s'" % rows),
        ):
            run = self.start("launch:abort:30", BIN, *Verify.LONG_RUN, *flags)
            err = run.communicate()[1]
            said = r"\A\nclxent verify: .*crashed; repeat with\n  clxent verify%s --case '" % re.escape(begins)
            self.assertRegex(err, said)
            self.assertEqual(run.returncode, -signal.SIGABRT, err)


class Verify(Case):
    SMALL_RUN = ("verify", "--max-elements", "200", "--no-host-arrays")
    LONG_RUN = (*SMALL_RUN, "--cases", "1000000", "--seed", "11")  # would not end by itself

    def run_json(self, *args, **kwargs):
        result = self.succeed_json(*self.SMALL_RUN, *args, **kwargs)
        self.assertLessEqual(result.pop("compile_seconds"), result.pop("seconds"))
        return result

    def test_a_few_dozen_cases_pass_and_repeat(self):
        result = self.run_json("--cases", "40", "--seed", "1")
        self.assertEqual(result["cases"] + result["skipped"], 40)
        self.assertEqual((result["failed"], result["failures"], result["seed"]), (0, [], 1))
        self.assertGreater(result["programs"], 2)
        self.assertTrue(0.1 < result["worst"] < 0.999)
        self.assertFalse(result["interrupted"])
        for key in ("device", "driver", "opencl", "version"):
            self.assertTrue(result[key], key)
        features = {entry["feature"]: entry for entry in result["features"]}
        self.assertGreater(len(features), 50)
        for group in ("op ", "dtype "):
            cases = [entry["cases"] for name, entry in features.items() if name.startswith(group)]
            self.assertEqual(sum(cases), result["cases"], group)
        for entry in features.values():
            self.assertEqual(list(entry), ["feature", "cases", "failures", "worst"])
            if entry["worst"] is not None:
                self.assertLessEqual(entry["worst"], result["worst"])
        self.assertEqual(self.run_json("--cases", "40", "--seed", "1"), result)
        other = self.run_json("--cases", "5", "--seed", "8")
        self.assertNotEqual(other["features"], result["features"])

    def test_the_text_says_what_the_report_needs(self):
        text = self.succeed(*self.SMALL_RUN, "--cases", "5")
        self.assertRegex(text, r"(?m)^device +\d+: .+\ndriver +.+, OpenCL .+\nclxent +\d+\.\d+\.\d+$")
        self.assertRegex(text, r"(?m)^cases +5 of seed 1: 5 passed, 0 failed")
        self.assertRegex(text, r"(?m)^programs +\d+ compiled\ntime +[\d.]+ s$")
        self.assertRegex(text, r"(?m)^all +5 +0 +[\d.]+$")

    def test_ratios_are_of_results_whose_rounding_is_not_all_there_is(self):
        """A 16-bit result is off by up to its whole bound by rounding alone, which would hide all others."""

        def worst(case):
            result = self.run_json("--case", case + ";batch=9;classes=7")
            ratios = {entry["feature"]: entry["worst"] for entry in result["features"]}
            return {name: ratio for name, ratio in ratios.items() if name.startswith("outputs")}, result["worst"]

        for dtype in ("f16", "bf16") if FULL else ("bf16",):
            ratios, overall = worst("outputs=softmax+gradient+lse+argmax;dtype=%s" % dtype)
            self.assertLess(0, ratios["outputs lse"])
            self.assertEqual(overall, ratios.pop("outputs lse"))
            self.assertEqual(set(ratios.values()), {None})
            self.assertIsNone(worst("outputs=gradient;gradient_dtype=%s" % dtype)[1])
        if FULL:
            self.assertIsNone(worst("outputs=gradient;gradient_mode=accumulate")[1])
            self.assertIsNone(worst("outputs=gradient;dtype=f64;gradient_dtype=f32")[1])
        ratios, _ = worst("outputs=softmax+gradient;dtype=bf16;gradient_dtype=f32")
        self.assertIsNone(ratios["outputs softmax"])
        self.assertTrue(0 < ratios["outputs gradient"] < 1)
        case = "outputs=gradient;gradient_dtype=bf16;batch=9;classes=7"
        text = self.succeed(*self.SMALL_RUN, "--case", case)
        self.assertRegex(text, r"(?m)^outputs gradient +1 +0 +-$")
        self.assertRegex(text, r"(?m)^all +1 +0 +-$")
        self.assertRegex(self.succeed("verify", "--help"), r"left\s+out[^:]*:\s+those\s+of\s+f16\s+and\s+bf16")

    def signalled(self, number, *args):
        """Status, stdout and stderr of a run that is sent the signal once it is prepared for it."""
        for delay in (0.1, 1, 10, 60):
            run = subprocess.Popen(
                [BIN, *self.LONG_RUN, *args],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                universal_newlines=True,
                env={**os.environ, **COMPILES},  # how many cases there is time for, nobody knows
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            for wait in (delay, 0.01):  # twice, as timeout(1) does: one to the process, one to its group
                time.sleep(wait)
                run.send_signal(number)
            out, err = run.communicate(timeout=6900)
            if run.returncode != -number:
                return run.returncode, out, err
        self.fail("signal %d ended verify" % number)

    def test_an_interrupted_run_has_its_summary(self):
        status, out, err = self.signalled(signal.SIGINT)
        self.assertEqual((status, err), (130, ""))
        passed = re.search(r"(?m)^cases +(\d+) of seed 11: (\d+) passed, 0 failed.*; interrupted by SIGINT$", out)
        self.assertEqual(*passed.groups())
        self.assertRegex(out, r"(?m)^all +%s +0 " % passed.group(1))
        status, out, err = self.signalled(signal.SIGTERM, "--json")
        self.assertEqual((status, err), (143, ""))
        result = json.loads(out)
        self.assertEqual((result["interrupted"], result["failed"], result["seed"]), (True, 0, 11))
        text = self.succeed("verify", "--help")
        self.assertRegex(text, r"130\s+after\s+SIGINT\s+and\s+143\s+after\s+SIGTERM")

    def test_one_case_repeats_by_number_and_by_text(self):
        number = self.run_json("--case", "3")
        self.assertEqual(number["cases"], 1)
        words = re.search(r"(?m)^case +(.+)$", self.succeed(*self.SMALL_RUN, "--case", "3")).group(1)
        shape = re.search(r"^(.+) of (.+) \[(\d+), (\d+), (\d+)\], (.*)$", words).groups()
        fields = dict(zip(("op", "dtype", "batch", "seq", "classes"), shape))
        fields.update(item.split(" ") for item in shape[5].split(", "))
        text = ";".join("%s=%s" % item for item in fields.items())
        again = self.run_json("--case", text)
        self.assertEqual(again["features"], number["features"])

    def test_seconds_end_it(self):
        for seconds in (0.2, 2, 20, 100):  # the machine may be busy, and kernels not be compiled
            began = time.monotonic()
            result = self.run_json("--seconds", seconds, "--seed", "1", env={**os.environ, **COMPILES})
            self.assertLess(time.monotonic() - began, seconds + 60)
            if result["cases"] > 0:
                break
        self.assertGreater(result["cases"], 0)

    def test_wrong_flags_are_status_2(self):
        values = {"--cases": ["0", "x"], "--seconds": ["-1", "nan"], "--seed": ["-1"]}
        self.refuse_values(["verify"], {**values, "--max-elements": ["0"], "--max-failures": ["0"]})
        for more in ("--cases", "--seconds"):
            self.refuse("verify", "--case", "1", more, "2", status=2, mentions=["--case"])
        for case, said in {"-1": "takes a number", "outputs=loss;classes=0": "classes is 0: takes 1 to"}.items():
            self.refuse("verify", "--case", case, status=2, mentions=["--case", said])  # test_verify.c has all texts
        case = "outputs=loss;batch=1000000;seq=1000;classes=1000000000"
        said = "--case: logits of 4000000000000000000 bytes: the device takes at most "
        self.refuse("verify", "--case", case, mentions=[said])


def suite_goals():
    """The cases of suite.def: goals by name, and those of the cases that only --case runs."""
    goals, long = {}, {}
    with open(os.path.join(ROOT, "tools", "bench", "suite.def"), encoding="utf-8") as stream:
        for name, rest, goal in re.findall(r'(?m)^(?:CASE|LINEAR)\("([^"]+)",(.*) (\S+)\)$', stream.read()):
            (long if " LONG, " in rest else goals)[name] = None if goal == "NAN" else float(goal)
    return goals, long


class Bench(PlotCase):
    """What is printed, and that it is about the work asked for; no speed is judged."""

    SIZE = ("--log2-logits", 16, "--pairs", 3)
    FEW = ("--rows", 1, "--classes", 1024, "--pairs", 3) if SMALL else SIZE
    SUITE_KEYS = (
        "case figure unit goal verdict low high pairs nt_ratio seconds reference_seconds reference_gb_per_s note device"
    ).split()
    GOALS, LONG = suite_goals()

    def suite(self, *args):
        text = self.succeed("bench", "--suite", "--json", *self.SIZE, "--most-pairs", 6, *args)
        return [json.loads(line) for line in text.splitlines()]

    def check_row(self, row):
        name = row["case"]
        self.assertEqual(list(row), self.SUITE_KEYS)
        self.assertEqual(row["goal"], {**self.GOALS, **self.LONG}[name], name)
        self.assertTrue(row["device"], name)
        if row["verdict"] == "not measured":
            self.assertRegex(row["unit"], "sgemm|hand-written|plain C")
            self.assertTrue(row["note"], row)
            self.assertEqual((row["figure"], row["low"], row["seconds"]), (None, None, None))
            return
        if row["verdict"] == "unsupported":  # an f64 case on a device without
            self.assertIn("f64", name)
            return
        self.assertGreater(row["figure"], -1, row)
        if row["low"] is None:  # too few pairs
            met = "unsure"
        else:
            self.assertTrue(row["low"] <= row["figure"] <= row["high"], row)
            met = "met" if row["high"] <= (row["goal"] or 0) else "missed" if row["low"] > (row["goal"] or 0) else "unsure"
        self.assertEqual(row["verdict"], "none" if row["goal"] is None else met, row)
        if " x " in " " + row["unit"]:
            self.assertGreater(row["seconds"], 0, row)
            self.assertGreater(row["reference_seconds"], 0, row)

    def test_json(self):
        classes = 13 if SMALL else 1024
        keys = "op rows classes dtype device median_s min_s copy_median_s ratio_to_copy gb_per_s".split()
        passes, sizes = {"loss": 1, "fused": 2, "softmax": 2}, {"bf16": 2, "f16": 2, "f32": 4}
        for op, dtype in itertools.product(passes, sizes) if FULL else zip(passes, sizes):
            args = ("--op", op, "--dtype", dtype, "--rows", 60, "--classes", classes, "--pairs", 3)
            got = self.succeed_json("bench", *args)
            self.assertEqual(list(got), keys)
            self.assertEqual((got["op"], got["rows"], got["classes"], got["dtype"]), (op, 60, classes, dtype))
            self.assertTrue(0 < got["min_s"] <= got["median_s"] < 60, got)
            self.assertTrue(0 < got["copy_median_s"] < 60, got)
            moved = passes[op] * 60 * classes * sizes[dtype]
            self.assertAlmostEqual(got["gb_per_s"] * got["median_s"] * 1e9, moved, delta=1e-6 * moved)
            self.assertGreater(got["ratio_to_copy"], 0)

    @unittest.skipIf(SMALL, "an interpreter takes a minute for six times 2^16 logits")
    def test_shapes(self):
        for args, shape in (
            (("--classes", 100), (655, 100)),
            (("--classes", 100000), (1, 100000)),
            (("--rows", 3), (3, 21845)),
            (("--rows", 5, "--classes", 7), (5, 7)),
        ):
            got = self.succeed_json("bench", *self.SIZE, *args)
            self.assertEqual((got["rows"], got["classes"]), shape, args)

    def test_text(self):
        text = self.succeed("bench", *self.FEW, "--op", "loss")
        got = dict(line.split(None, 1) for line in text.splitlines())
        self.assertEqual(got["op"], "mean loss")
        self.assertRegex(got["logits"], r"\A1 x 1024 f32, " if SMALL else r"\A64 x 1024 f32, 0\.25 MiB")
        self.assertRegex(got["time"], r"\A[\d.e-]+ ms, the best of 3 [\d.e-]+ ms\Z")
        for what in ("copy", "nt copy", "read"):
            self.assertRegex(text, r"(?m)^/ %s +\d+\.\d\d " % what)

    @unittest.skipIf(SMALL, "an interpreter takes half a minute for 2^16 logits and their copies")
    def test_suite_has_every_case(self):
        some = "in place, 1,024 classes"
        rows = self.suite(*(() if FULL else ("--case", some)))
        want = [name for name in self.GOALS if FULL or some in name]
        self.assertEqual(sorted(row["case"] for row in rows), sorted(want))
        for row in rows:
            self.check_row(row)

    @unittest.skipIf(SMALL, "an interpreter takes half a minute for 2^16 logits and their copies")
    def test_suite_text_and_case(self):
        text = self.succeed("bench", "--suite", "--case", "2 rows", *self.SIZE)
        self.assertRegex(text, r"(?m)^2 rows of 4 classes, launches +[1-9]  [1-9] - [1-9] +launches +1  (met|missed)$")
        self.assertRegex(text, r"(?m)^2 rows of 4 classes, enqueue +\d+\.\d\d  \d+\.\d\d - \d+\.\d\d +us ")
        self.assertRegex(text, r"(?m)^\d met, \d missed, \d unsure, 0 not measured$")
        self.assertEqual(len(text.splitlines()), 7)
        row, time = self.suite("--case", "2 rows")
        self.assertEqual(row["figure"], int(row["figure"]))
        self.assertTrue(1 <= row["figure"] <= 9, row)
        self.assertEqual((row["unit"], time["unit"]), ("launches", "us"))
        self.assertEqual((row["pairs"], time["pairs"]), (1, 1001))

    @unittest.skipIf(SMALL, "hand-written code is not for an interpreter")
    def test_suite_beside_hand_written_code(self):
        cases = [("hand, ", "auto"), ("hand, in place, 50", "avx2"), ("hand, in place, 50", "avx512")]
        if not FULL:
            cases = [("hand, f16, 50", "auto"), ("hand, plain C, 3 ", "auto"), ("hand, loss, 1,0", "auto")]
            cases += [(part, "avx2") for part in ("hand, 10", "hand, bf16, 50", "hand, in place, 50")]
        for part, name in cases:
            for row in self.suite("--case", part, "--hand", name, "--pairs", 1, "--most-pairs", 1):
                self.check_row(row)  # fails where the gradients differ
                self.assertTrue(row["note"], row)
                if platform.machine() == "x86_64" and name == "avx2" and row["verdict"] != "not measured":
                    self.assertIn("AVX2", row["note"])
        (row,) = self.suite("--case", "hand, loss, 1,024", "--hand", "none")
        self.check_row(row)
        self.assertEqual((row["verdict"], row["note"]), ("not measured", "--hand none"))

    def test_suite_takes_more_pairs_while_unsure(self):
        for args, pairs in (
            (("--pairs", 2, "--most-pairs", 5), {5}),  # no bounds of so few
            (("--pairs", 2, "--most-pairs", 16), {8, 16}),  # four looks need 8 for bounds
            (("--pairs", 8, "--most-pairs", 8), {8}),
        ):
            (row,) = self.suite("--case", "small, 32 x 10", *args)
            self.check_row(row)
            self.assertIn(row["pairs"], pairs, row)
            self.assertRegex(row["note"], r"\A[1-9] launches\Z")
            self.assertEqual(row["low"] is None, row["pairs"] < 6, row)

    @unittest.skipIf(SMALL, "an interpreter takes minutes for 2^20 logits")
    def test_cold_processes_start_with_nothing_and_leave_nothing(self):
        os.mkdir(self.path("tmp"))
        case = "cold, loss, 64 x 50,257"
        environment = {**os.environ, **COMPILES, "TMPDIR": self.path("tmp")}
        args = ("bench", "--suite", "--json", "--case", case, "--pairs", 1, "--most-pairs", 1)
        row = json.loads(self.succeed(*args, env=environment))
        self.check_row(row)
        self.assertRegex(row["note"], r"\ACPU \d+\.\d\d s over \d+\.\d\d s; with start and end of the process \d")
        self.assertEqual(os.listdir(self.path("tmp")), [])
        if "POCL_CACHE_DIR" in os.environ:  # compiled, not found in the tests' cache
            self.assertGreater(row["reference_seconds"], 0.2)
        environment["TMPDIR"] = self.path("none")
        result = clxent(*args, env=environment)
        self.assertEqual((result.returncode, json.loads(result.stdout)["verdict"]), (1, "failed"))
        self.assertRegex(result.stderr, r"\Aclxent bench: [^\n]+none/clxent-cold\.[^\n]+TMPDIR[^\n]+\n\Z")

    def test_loop(self):
        for args, turns in ((("bench", *self.FEW), 3), ((*self.LINEAR, "--backward"), 2))[: 1 if SMALL else 2]:
            lines = self.succeed(*args, "--loop", input="\n" * turns).splitlines()
            self.assertEqual(len(lines), 1 + turns)
            self.assertRegex(lines[0], r"\Aclxent \d+\.\d+\.\d+ on .")
            for line in lines[1:]:
                self.assertTrue(0 < float(line) < 60, line)

    def test_plot(self):
        if not FULL:
            self.skipTest("31 class counts: in a full run")
        self.succeed("bench", *self.SIZE, "--json", "--plot", self.path("bench.png"))
        self.check_picture("bench.png")
        text = self.succeed("bench", *self.SIZE, "--pairs", 1, "--plot", self.path("bench.png"))
        classes = [int(line.split()[0]) for line in text.splitlines() if re.match(r" +\d+ ", line)]
        self.assertEqual((classes[0], classes[-1]), (2, 262144))
        for count in (257, 1023, 50257):
            self.assertIn(count, classes)
        self.refuse("bench", *self.SIZE, "--plot", self.path("no/bench.png"), mentions=["no/bench.png"])

    SHAPE = (24, 40, 100)
    LINEAR = ("bench", "--op", "linear", "--pairs", 3)
    LINEAR += tuple(itertools.chain(*zip(("--rows", "--features", "--classes"), SHAPE)))
    LINEAR_KEYS = (
        "op rows features classes dtype device outputs ignored workspace_limit workspace_bytes peak_bytes median_s "
        "min_s gflops blas_median_s ratio_to_blas blas_core blas_config blas_threads"
    ).split()

    @unittest.skipIf(SMALL, "test_linear runs the kernels, in less time")
    def test_linear_json(self):
        rows, features, classes = self.SHAPE
        for dtype, backward in (("f32", True), ("bf16", False), ("f64", True)) if FULL else (("f32", True),):
            got = self.succeed_json(*self.LINEAR, "--dtype", dtype, *["--backward"] * backward)
            self.assertEqual(list(got), self.LINEAR_KEYS)
            shape = (got["op"], got["rows"], got["features"], got["classes"], got["dtype"], got["workspace_limit"])
            self.assertEqual(shape, ("linear", *self.SHAPE, dtype, None))
            self.assertEqual(got["outputs"], "loss" + "+hidden_gradient+weight_gradient" * backward)
            self.assertTrue(0 < got["min_s"] <= got["median_s"] < 60, got)
            work = 2 * rows * features * classes * (3 if backward else 1)
            self.assertAlmostEqual(got["gflops"] * got["median_s"] * 1e9, work, delta=1e-6 * work)
            size = {"f32": 4, "bf16": 2, "f64": 8}[dtype]
            arrays = (rows + classes) * features * size * (2 if backward else 1) + rows * 4 + max(size, 4)
            self.assertEqual(got["peak_bytes"], arrays + got["workspace_bytes"])
            self.assertGreaterEqual(got["workspace_bytes"], rows * classes * max(size, 4))
            self.check_blas(got)

    def check_blas(self, got):
        """What JSON has of OpenBLAS: all of it or nothing, and nothing only where it cannot be opened."""
        figures = [got[key] for key in self.LINEAR_KEYS[-5:]]
        if None in figures:
            self.assertEqual(figures, [None] * 5)
            if POCL:  # is a CPU
                with self.assertRaises(OSError):
                    ctypes.CDLL("libopenblas.so.0")
            return
        seconds, ratio, core, config, threads = figures
        self.assertTrue(0 < seconds < 60 and 0 < ratio, got)
        self.assertTrue(core)
        self.assertIn("OpenBLAS", config)
        self.assertGreaterEqual(threads, 1)

    @unittest.skipIf(SMALL, "test_linear runs the kernels, in less time")
    def test_linear_text_without_openblas(self):
        libraries = {"none/libopenblas.so.0": "none/libopenblas"}
        if ctypes.util.find_library("m"):
            libraries[ctypes.util.find_library("m")] = " has no cblas_sgemm"
        few = ("--ignored", 0.5, "--workspace-mib", 1)
        for library, fault in libraries.items():
            text = self.succeed(*self.LINEAR, "--blas", library, *few)
            self.assertRegex(text, r"(?m)^/ OpenBLAS  none: .*%s" % re.escape(fault))
            self.assertNotRegex(text, r"(?m)^OpenBLAS")
        got = self.succeed_json(*self.LINEAR, "--blas", library)
        self.assertEqual([got[key] for key in self.LINEAR_KEYS[-5:]], [None] * 5)
        self.assertGreater(got["median_s"], 0)
        for line in (
            r"ignored +12 rows",
            r"hidden +24 x 40 f32",
            r"weight +100 x 40",
            r"workspace +0\.\d+ MiB of at most 1 MiB",
            r"time +[\d.e-]+ ms, the best of 3 [\d.e-]+ ms",
        ):
            self.assertRegex(text, "(?m)^%s$" % line)
        text = self.succeed("bench", "--suite", *self.SIZE, "--case", "linear, loss", "--blas", "none/libopenblas.so.0")
        for case in (r"linear, loss  +x sgemm +1\.05", r"linear, loss \+ gradients  +x three sgemms +1\.10"):
            self.assertRegex(text, r"(?m)^%s  not measured .*none/libopenblas" % case)
        self.assertRegex(text, r"(?m)^0 met, 0 missed, 0 unsure, 2 not measured$")

    @unittest.skipIf(SMALL, "test_linear runs the kernels, in less time")
    def test_linear_text_with_openblas(self):
        text = self.succeed(*self.LINEAR, "--backward")
        if re.search(r"(?m)^/ OpenBLAS  none", text):
            self.skipTest("no OpenBLAS")
        self.assertRegex(text, r"(?m)^/ OpenBLAS  \d+\.\d\d \(.*three sgemm of all rows ")
        self.assertRegex(text, r"(?m)^OpenBLAS +OpenBLAS .*, threads \d+, core \w+")
        text = self.succeed(*self.LINEAR, env={**os.environ, "OPENBLAS_CORETYPE": "Nehalem"})
        if platform.machine() == "x86_64" and "DYNAMIC_ARCH" in text:
            self.assertRegex(text, r"(?m)^OpenBLAS .*, core Nehalem$")
        self.assertNotIn("set by clxent", text)

    @unittest.skipIf(SMALL, "test_linear runs the kernels, in less time")
    def test_linear_ignored_rows_are_no_work(self):
        for ignored, counted in ((0.1, 22), (0.99, 1)):
            got = self.succeed_json(*self.LINEAR, "--ignored", ignored)
            self.assertEqual(got["ignored"], ignored)
            work = 2 * counted * 40 * 100
            self.assertAlmostEqual(got["gflops"] * got["median_s"] * 1e9, work, delta=1e-6 * work)

    @unittest.skipIf(SMALL, "an interpreter takes minutes for 10^7 logits")
    def test_linear_over_workspace_limits(self):
        shape = ("bench", "--op", "linear", "--rows", 2, "--features", 1, "--classes", 5000000, "--pairs", 1)
        picture = ["--plot", self.path("limits.png")]
        rows = [json.loads(line) for line in self.succeed(*shape, "--json", *picture).splitlines()]
        self.check_picture("limits.png")
        self.assertEqual([row["workspace_limit"] for row in rows], [1 << 24, 1 << 25, None])
        too_small, half, all_of_it = rows
        for key in ("workspace_bytes", "peak_bytes", "median_s", "min_s", "gflops", "ratio_to_unlimited"):
            self.assertIsNone(too_small[key])
            self.assertGreater(half[key], 0)
        self.assertTrue(20e6 <= half["workspace_bytes"] <= 1 << 25, half)
        self.assertGreaterEqual(all_of_it["workspace_bytes"], 40e6)
        self.assertEqual(all_of_it["ratio_to_unlimited"], 1)
        text = self.succeed(*shape, "--sweep")
        self.assertRegex(text, r"(?m)^ +16  too small for one chunk of rows$")
        self.assertRegex(text, r"(?m)^ +32 +\d+\.\d +\d+\.\d\d +\d+\.\d +\d+\.\d\d ")
        self.assertRegex(text, r"(?m)^ +none +\d+\.\d .* 1\.00 - +1\.00$")
        self.refuse(*shape, "--workspace-mib", 1, mentions=["workspace_limit is 1048576: takes at least "])

    @unittest.skipIf(SMALL, "test_linear runs the kernels, in less time")
    def test_linear_suite(self):
        if not FULL:
            (row,) = self.suite("--case", "linear, half")
            self.check_row(row)
            self.assertEqual(row["note"], "16 x 1024 x 4096")
            return
        rows = self.suite("--case", "linear")
        want = [*(name for name in self.GOALS if name.startswith("linear")), *self.LONG]
        self.assertEqual([row["case"] for row in rows], want)
        for row in rows:
            self.check_row(row)

    def test_more_than_the_device_has_is_status_1(self):
        if not SMALL:  # Oclgrind allocates what it says it has, or ends
            self.refuse("bench", "--rows", 2**20, "--classes", 2**22, mentions=["a buffer of 17592186044416 bytes"])
        self.refuse("bench", *self.SIZE, "--device", "99", mentions=["--device 99"])

    def test_wrong_usage_is_status_2(self):
        values = {
            "--op": ["", "gradient", "Loss"],
            "--dtype": ["f8", "float", ""],
            "--rows": ["0", "-1", "x", "1.5"],
            "--classes": ["0", "", "1e3"],
            "--pairs": ["0", "x", "100001"],
            "--most-pairs": ["0", "x", "800001", "10"],
            "--log2-logits": ["15", "37", "x"],
            "--blas": ["", "-"],
            "--hand": ["", "sse"],
        }
        self.refuse_values(["bench"], values)
        linear = ["--op", "linear"]
        values = {
            "--features": ["0", "x", "2147483648"],
            "--rows": ["2147483648"],
            "--classes": ["2147483648"],
            "--workspace-mib": ["0", "1.5", 2**44],
            "--ignored": ["-0.1", "1", "nan", "x"],
        }
        self.refuse_values(["bench", *linear], values)
        plot = ["--plot", self.path("x.png")]
        for_linear = (["--features", 3], ["--backward"], ["--workspace-mib", 3], ["--ignored", 0.5], ["--sweep"])
        for args, said in (
            (["extra"], ""),
            (["--case", "loss"], "--suite"),
            (["--suite", "--case", "nonsense"], "--case is 'nonsense': takes a part of a case's name, such as cold"),
            (["--rows", 2**40, "--classes", 2**40], "--rows"),
            (["--loop", "--json"], "--loop"),
            *((args, args[0] + " is for --suite") for args in (["--most-pairs", 20], ["--hand", "none"])),
            *((["--suite", *args], args[0]) for args in (["--op", "loss"], ["--rows", "3"], plot, ["--loop"], *for_linear)),
            *((args, args[0] + " is for --op linear") for args in for_linear),
            (["--blas", "x"], "--blas is for --op linear and --suite"),
            *(([*linear, "--blas", "x", *args], "--blas is not for") for args in (["--loop"], ["--sweep"], plot)),
            *(([*linear, "--workspace-mib", 3, *args], "--sweep") for args in (["--sweep"], plot)),
            *(([*linear, "--loop", *args], "--loop") for args in (["--sweep"], plot)),
            ([*linear, "--log2-logits", 20], "--log2-logits is not for"),
        ):
            self.refuse("bench", *args, status=2, mentions=[said])


class Peers(Case):
    """tools/peers.py, with a program that only says a time in the place of what may not be installed."""

    def setUp(self):
        super().setUp()
        self.fake = self.raw("peer", b"#!/bin/sh\necho fake $*\nwhile read -r _; do echo 4096; done\n")
        os.chmod(self.fake, 0o755)

    def run_peers(self, *args):
        command = [sys.executable, "-B", os.path.join(ROOT, "tools", "peers.py"), "--clxent", BIN, "--rounds", "3"]
        command += ["--pause", "0", "--python", "pytorch=" + self.path("none"), *args]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)

    def table(self, *args):
        result = self.run_peers(*args)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout

    def rows(self, *args):
        return [json.loads(line) for line in self.table("--json", *args).splitlines()]

    def test_take_turns_in_one_table(self):
        few = ["--shape", "64x100", "--skip", "clxent.py", "--skip", "jax", "--skip", "tinygrad"]
        ours, fake, torch, compiled = self.rows(*few, "--onednn", self.fake)
        self.assertEqual((ours["peer"], ours["rows"], ours["classes"], ours["ratio"]), ("clxent", 64, 100, 1))
        self.assertTrue(ours["version"].startswith("clxent "))
        self.assertEqual((fake["peer"], fake["version"], fake["ms"]), ("oneDNN", "fake 64 100", 4096e3))
        self.assertAlmostEqual(fake["ratio"] * ours["ms"], fake["ms"], delta=1e-6 * fake["ms"])
        self.assertEqual((torch["peer"], torch["version"]), ("PyTorch", "not installed"))
        self.assertEqual((compiled["peer"], compiled["version"]), ("compiled", "not installed"))

        table = self.table(*few, "--onednn", self.path("none"))
        self.assertRegex(table, r"(?m)^clxent +\d+\.\d\d +\d+\.\d\d +1\.00 ")
        self.assertRegex(table, r"(?m)^oneDNN +not installed$")
        self.assertEqual(self.run_peers(*few, "--shape", "3").returncode, 2)

        for name in ("pytorch", "compiled", "openvino", "onnx"):
            few += ["--skip", name]
        rows = self.rows(*few, "--onednn", self.fake, "--op", "both", "--huge-pages")
        self.assertEqual([row.get("op") for row in rows], [None, None, "loss", "loss"])
        self.assertEqual([row["version"] for row in rows[1::2]], ["fake 64 100", "fake 64 100 loss"])

    @unittest.skipIf(SMALL, "test_linear runs the kernels, in less time")
    def test_linear(self):
        linear = ["--linear", "--python", "jax=" + self.fake, "--threads", "2"]
        rows = self.rows(*linear, "--shape", "24x40x100")
        self.assertEqual([row["peer"] for row in rows], ["clxent", "JAX", "PyTorch", "compiled", "chunked"])
        for row in rows:
            self.assertEqual((row["rows"], row["features"], row["classes"]), (24, 40, 100))
        ours, jax = rows[:2]
        self.assertEqual(ours["ratio"], 1)
        self.assertTrue(ours["version"].startswith("clxent "))
        self.assertEqual(jax["ms"], 4096e3)
        self.assertTrue(jax["version"].endswith(" --serve JAX 24 40 100 --threads 2 --dtype f32 --op fused --linear"), jax)
        self.assertEqual({row["version"] for row in rows[2:]}, {"not installed"})
        for args in (["--shape", "24x100"], ["--gpu"], ["--dtype", "bf16"]):
            self.assertEqual(self.run_peers(*linear, *args).returncode, 2, args)


class Tune(Case):
    """Stored parameters, in a cache folder of each test's own."""

    ROW = 'TUNE(ANY, "*", F32, 1, 4, 8, 0, 4096, 0, 1024, 8, 0, 1, 4, 0, 0)\n'

    def setUp(self):
        super().setUp()
        self.env = {**os.environ, **COMPILES, "XDG_CACHE_HOME": self.path("cache")}

    def tune(self, *args):
        """stdout; stderr may have the words of a driver's compiler, but none of ours."""
        result = clxent("tune", "--quick", *args, env=self.env)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("clxent", result.stderr)
        return result.stdout

    def tune_json(self, *args):
        return json.loads(self.tune("--json", *args))

    def stored(self):
        folder = self.path("cache/clxent")
        names = os.listdir(folder)
        self.assertEqual(len(names), 1, names)
        return os.path.join(folder, names[0])

    def store(self, text):
        """Writes text where the search would."""
        if not os.path.exists(self.path("cache")):
            self.tune("--seconds", 0)
        with open(self.stored(), "w") as stream:
            stream.write(text)

    def info(self, *args):
        return self.succeed_json("info", *args, env=self.env)["devices"][0]

    @unittest.skipIf(SMALL, "a simulator's times say nothing")
    def test_a_search_is_stored_and_used(self):
        before = self.info()
        self.assertIsNone(before["tuning"])
        self.assertFalse(os.path.exists(self.path("cache")), "looking for parameters made a folder")
        result = self.tune_json("--seconds", 1)
        self.assertEqual(list(result), ["device", "driver", "path", "complete", "shapes", "rows"])
        self.assertEqual((result["device"], result["path"]), (before["name"], self.stored()))
        text = self.read(self.stored()).decode()
        self.assertIn("* device  " + before["name"], text)
        self.assertIn(before["driver"], text)
        self.assertEqual([line for line in text.splitlines() if line.startswith("TUNE")], result["rows"])
        self.assertEqual(len(result["rows"]), 2)
        self.assertGreater(len(result["shapes"]), 2)
        for shape in result["shapes"]:
            self.assertGreater(min(shape["built_in_s"], shape["tuned_s"], shape["ratio"]), 0, shape)
        self.assertEqual(self.info()["tuning"], self.stored())
        # No parameter that decides bits was searched: all but elements, stream and split, of which a device may like others.
        names = ["group", "vector", "block", "cache", "elements", "stream", "piece", "split"]
        names += ["lane_classes", "lane_group", "lane_vector", "lane_cache", "native_exp"]
        for line, own in zip(result["rows"], self.tune_json("--seconds", 0)["rows"]):
            found, built_in = (row.rsplit(",", len(names)) for row in (line.rstrip(")"), own.rstrip(")")))
            self.assertEqual(len(found), len(names) + 1, line)
            self.assertEqual(found[0], built_in[0])
            for name, one, other in zip(names, found[1:], built_in[1:]):
                if name not in ("elements", "stream", "split"):
                    self.assertEqual(one, other, name)
        with open(self.stored(), "w") as stream:
            stream.write(text)  # what the search had found
        # And results are the same, bit for bit.
        for name, flags in (("tuned.npy", []), ("own.npy", ["--no-tuning"])):
            self.succeed("eval", *self.files(*batch(7)), "--grad-out", self.path(name), *flags, env=self.env)
        self.assertEqual(self.read("tuned.npy"), self.read("own.npy"))

    @unittest.skipIf(SMALL, "a simulator's times say nothing")
    def test_the_text_is_for_people(self):
        text = self.tune("--seconds", 0)
        for part in (
            r"(?m)^device +\d+: ",
            r"(?m)^.* f32 loss \+ gradient +[0-9.]+ ms +[0-9.]+ ms +1\.000$",
            r"(?m)^TUNE\(.*, F64, ",
            r"(?m)^TUNE\(.*, ANY_DTYPE, ",
            r"The time was up",
            "(?m)^stored +" + re.escape(self.stored()) + "$",
        ):
            self.assertRegex(text, part)

    @unittest.skipIf(SMALL, "a simulator's times say nothing")
    def test_stored_rows_reach_plans_unless_told_otherwise(self):
        self.store("/* by hand */\n" + self.ROW)
        mine, own = self.info(), self.info("--no-tuning")
        self.assertEqual((mine["tuning"], own["tuning"]), (self.stored(), None))
        self.assertIn("vectors of 4, blocks of 32", mine["strategies"][1]["strategy"])
        self.assertNotIn("vectors of 4, blocks of 32", own["strategies"][1]["strategy"])
        self.assertIn(self.stored(), self.succeed("info", env=self.env))
        self.assertIn("built in", self.succeed("info", "--no-tuning", env=self.env))
        x, y = batch(8)
        got = self.succeed_json("eval", *self.files(x, y), env=self.env)
        self.assertAlmostEqual(got["loss"], float(oracle(x, y)["loss"]), delta=1e-5)
        # A relative folder is no folder; without one HOME's is looked at.
        os.makedirs(self.path(".cache"))
        os.rename(self.path("cache/clxent"), self.path(".cache/clxent"))
        self.env.update(XDG_CACHE_HOME="cache", HOME=self.dir)
        told = self.succeed_json("info", env=self.env, cwd=self.dir)  # where a driver may use it
        self.assertTrue(told["devices"][0]["tuning"].startswith(self.path(".cache/clxent")))

    @unittest.skipIf(SMALL, "a simulator's times say nothing")
    def test_a_damaged_file_is_a_warning(self):
        own = self.info("--no-tuning")["strategies"]
        for text, mentions in (
            (self.ROW + self.ROW.replace("1, 4, 8", "1, 3, 8"), ["line 2", "vector is '3'", "1, 4, 8 or 16"]),
            (self.ROW[:40], ["line 1", "missing"]),
            ("\n\nnonsense", ["line 3", "nonsense"]),
            ("a\0b", ["text"]),
            (self.ROW * 2000, ["65536"]),
        ):
            self.store(text)
            result = clxent("info", "--json", env=self.env)
            self.assertEqual(result.returncode, 0, result.stderr)
            device = json.loads(result.stdout)["devices"][0]
            self.assertEqual((device["tuning"], device["strategies"]), (None, own))
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            for part in ["clxent info: ", self.stored(), "the built-in parameters are used", *mentions]:
                self.assertIn(part, result.stderr)
        self.succeed("info", "--no-tuning", env=self.env)
        os.remove(self.stored())
        self.assertIsNone(self.info()["tuning"])

    def test_a_named_file_of_rows_is_used_and_its_faults_are_final(self):
        own = self.raw("own.def", self.ROW.encode())
        mine = self.info("--tuning", own)
        self.assertEqual(mine["tuning"], own)
        self.assertIn("vectors of 4, blocks of 32", mine["strategies"][1]["strategy"])
        for text, mentions in (
            (self.ROW.replace("1, 4, 8", "1, 3, 8"), ["line 1", "vector is '3'"]),
            ("a\0b", ["text"]),
        ):
            self.raw("own.def", text.encode())
            self.refuse("verify", "--cases", 1, "--tuning", own, env=self.env, mentions=[own, *mentions])
        self.refuse("verify", "--cases", 1, "--tuning", self.path("none"), env=self.env, mentions=["No such file"])

    def test_what_cannot_be_stored_is_found_before_the_search(self):
        for folder in (self.raw("file", b""), "/proc/no"):
            self.env["XDG_CACHE_HOME"] = folder
            start = time.monotonic()
            self.refuse("tune", env=self.env, mentions=[folder])
            self.assertLess(time.monotonic() - start, 20)
        environment = {k: v for k, v in self.env.items() if k not in ("XDG_CACHE_HOME", "HOME")}
        self.refuse("tune", env=environment, mentions=["XDG_CACHE_HOME", "HOME"])

    def test_wrong_flags_are_status_2(self):
        for args in (["--seconds", "-1"], ["--seconds", "x"], ["--seconds"], ["--quick=1"], ["--shape", "1"]):
            self.refuse("tune", *args, status=2, env=self.env)
        self.refuse("info", "--no-tuning=1", status=2, env=self.env)
        self.assertFalse(os.path.exists(self.path("cache")))


class Store(Case):
    """Programs that the command line keeps where the driver keeps none: PoCL when it is told so, Oclgrind."""

    MOST = 64 << 20

    def setUp(self):
        super().setUp()
        self.env = {**os.environ, **COMPILES, "XDG_CACHE_HOME": self.path("cache"), "POCL_KERNEL_CACHE": "0"}
        self.env["POCL_WORK_GROUP_SPECIALIZATION"] = "0"  # else it compiles again what the binary has, for each size
        self.env["POCL_EXTRA_BUILD_FLAGS"] = "-cl-opt-disable"  # a quarter of the time
        self.folder = self.path("cache/clxent/programs")
        # The smallest program that eval compiles: row losses of probabilities alone.
        random = np.random.RandomState(3)
        self.args = ["--logits", self.save("logits.npy", random.normal(size=(3, 70)).astype("<f4"))]
        self.args += ["--targets", self.save("targets.npy", random.uniform(size=(3, 70)).astype("<f4"))]
        self.args += ["--reduction", "none", "--losses-out"]

    def eval(self, **environment):
        """The bytes of the losses, and the calls that make programs where the shim tells of them."""
        if SHIM:
            environment.update(LD_PRELOAD=SHIM, CLXENT_FAIL_REPORT=self.path("report"))
        self.succeed("eval", *self.args, self.path("losses.npy"), env={**self.env, **environment})
        calls = {"not told"}
        if SHIM:
            *calls, live = self.read("report").decode().splitlines()
            self.assertEqual(live, "live 0")
            calls = {call for call in calls if call.startswith("clCreateProgram")}
        return self.read("losses.npy"), calls

    def expect(self, losses, call):
        got, calls = self.eval()
        self.assertEqual(got, losses)
        self.assertEqual(calls, {call} if SHIM else {"not told"})

    def stored(self):
        return sorted(os.listdir(self.folder)) if os.path.exists(self.folder) else []

    def fill(self):
        """Files that are none of ours, the limit's worth of them, in the order in which they go."""
        os.makedirs(self.folder, 0o700)
        for age, (name, size) in enumerate((("oldest", self.MOST // 2), ("older", self.MOST // 2 - 100), ("newer", 100))):
            path = self.raw(os.path.join(self.folder, name), b"")
            os.truncate(path, size)
            os.utime(path, (1000 + age, 1000 + age))
        os.mkdir(os.path.join(self.folder, "folder"))
        os.symlink("/dev/zero", os.path.join(self.folder, "link"))

    def store_one(self):
        """The losses, and the path of the one file that their program is in."""
        before = self.stored()
        losses, _ = self.eval()
        new = [name for name in self.stored() if name not in before]
        if not new and not POCL and not SMALL:
            self.skipTest("the driver keeps programs itself")
        self.assertEqual(len(new), 1)
        self.assertRegex(new[0], r"\A[0-9a-f]{64}\Z")
        return losses, os.path.join(self.folder, new[0])

    def test_the_second_process_starts_from_what_the_first_stored(self):
        self.fill()
        losses, path = self.store_one()
        self.assertEqual(self.stored(), sorted([os.path.basename(path), "older", "newer", "folder", "link"]))
        sizes = [os.lstat(os.path.join(self.folder, name)).st_size for name in self.stored() if name != "folder"]
        self.assertLessEqual(sum(sizes), self.MOST)
        before = os.stat(path)
        self.expect(losses, "clCreateProgramWithBinary")
        after = os.stat(path)
        self.assertEqual((after.st_ino, after.st_mtime_ns), (before.st_ino, before.st_mtime_ns))

    # What follows depends on no driver, and on one that is told to keep nothing each step compiles for seconds.

    @unittest.skipUnless(SMALL, "an interpreter runs it")
    def test_only_what_this_user_has_stored_is_run(self):
        losses, path = self.store_one()
        self.assertEqual([os.stat(p).st_mode & 0o777 for p in (path, self.folder)], [0o600, 0o700])
        whole = self.read(path)
        for data, mode in ((whole[:-1], 0o600), (whole[:-1] + b"?", 0o600), (b"", 0o600), (whole, 0o622), (whole, 0o660)):
            self.raw(path, data)
            os.chmod(path, mode)
            losses_now, _ = self.eval()
            self.assertEqual(losses_now, losses)
            self.assertEqual(self.read(path), whole)
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600, "it was not stored anew")

    @unittest.skipUnless(SMALL, "an interpreter runs it")
    def test_a_command_that_fails_stores_nothing(self):
        self.refuse("eval", *self.args, self.path("no/losses.npy"), env=self.env)
        self.assertEqual(self.stored(), [])

    @unittest.skipUnless(SMALL, "an interpreter runs it")
    def test_a_folder_that_cannot_be_written_is_silent(self):
        self.raw("file", b"")
        for folder in (self.path("file"), "relative", "/proc/no"):
            self.eval(XDG_CACHE_HOME=folder, HOME="/proc/none")

    @unittest.skipUnless(POCL or SMALL, "not known whether the driver keeps programs")
    def test_nothing_is_stored_where_nothing_is_gained(self):
        if POCL:
            del self.env["POCL_KERNEL_CACHE"], self.env["POCL_EXTRA_BUILD_FLAGS"]
            self.eval()
        else:
            self.succeed("info", env=self.env)
            self.succeed("verify", "--cases", 1, "--max-elements", 50, "--no-host-arrays", env=self.env)
        self.assertEqual(self.stored(), [])


if __name__ == "__main__":
    unittest.main()
