#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A yardstick: no result of clxent may be further from the truth than PyTorch's on the same f32 numbers.

The truth is oracle.py's, in float64, of the stored values. Two measures of the worst error over a tensor are
compared: in ulp of each element (are small results as good as large ones?), and absolute, in ulp of the
tensor's largest element. CLXENT_TEST_RATIOS=1 prints all the measurements.

Where PyTorch's answers are other than ours by definition, not by accuracy, `Differences` says exactly how.
"""

import itertools
import math
import os
import unittest

import numpy as np
import torch

from cli import Case
from oracle import oracle

torch.set_num_threads(1)  # other tests run beside this one
REPORT = os.environ.get("CLXENT_TEST_RATIOS") == "1"
CLASSES = (10, 100, 1000, 4096, 32768, 50257, 262144)
OUTPUTS = ("losses", "softmax", "log-softmax", "grad")

# Where only a handful of roundings make a result (an exponential, a sum, a quotient or logarithm, each half an ulp
# to one, and all of them twice that where the result lies just above a power of two), which of two worst elements
# is nearer is the luck of the numbers drawn. There, and only there, one rounding more is allowed.
ROUNDING_LEVEL = 4.0
LUCK = 0.5


class EvalCase(Case):
    def clxent(self, x, y, weight=None, **options):
        """What clxent eval gives, by output, and its JSON object."""
        if weight is not None:
            options["class_weights"] = weight
        paths = {name: self.path(name + "-out.npy") for name in OUTPUTS}
        flags = [text for name in OUTPUTS for text in ("--%s-out" % name, paths[name])]
        told = self.succeed_json("eval", *self.files(x, y), *self.option_flags(options), *flags)
        return {name: np.load(path) for name, path in paths.items()}, told


def pytorch(x, y, weight=None, **options):
    """PyTorch's loss (of each row, or reduced), and the logits with their gradient."""
    logits = torch.from_numpy(x).requires_grad_(True)
    weight = None if weight is None else torch.from_numpy(weight)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), weight=weight, **options)
    loss.sum().backward()
    return loss.detach().numpy(), logits


def truth(x, y, weight, smoothing):
    """The same results in float64, by the oracle of all tests."""
    of = oracle(
        x, y, class_weights=weight, label_smoothing=smoothing, reduction="sum", ignore_index=None, wide=np.float64
    )
    return {name: of[name] for name in OUTPUTS}


def worst(got, want):
    """The largest error in ulp of its element, and in ulp of the largest element."""
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite].astype(np.float32)):
        return math.inf, math.inf
    error = np.abs(got[finite].astype(np.float64) - want[finite])
    size = np.abs(want[finite])
    normal = size >= 2.0**-126  # below, PyTorch gives what is left of the digits and clxent 0 or the same
    ulp = np.spacing(np.maximum(size, 2.0**-126).astype(np.float32)).astype(np.float64)
    return (error / ulp)[normal].max(initial=0), error.max() / np.spacing(np.float32(size.max()))


class Yardstick(EvalCase):
    def compare(self, name, x, y, weight=None, smoothing=0.0):
        ours, _ = self.clxent(x, y, weight, reduction="sum", label_smoothing=smoothing)
        losses, logits = pytorch(x, y, weight, reduction="none", label_smoothing=smoothing)
        with torch.no_grad():
            matrices = torch.softmax(logits, -1).numpy(), torch.log_softmax(logits, -1).numpy()
        theirs = dict(zip(OUTPUTS, (losses, *matrices, logits.grad.numpy())))
        want = truth(x, y, weight, smoothing)
        for output in OUTPUTS:
            pairs = zip(worst(ours[output], want[output]), worst(theirs[output], want[output]))
            for measure, (a, b) in zip(("element", "largest"), pairs):
                if REPORT:
                    mark = " !" if a > b else ""
                    print("| %s | %d | %s | %s | %.3g | %.3g |%s" % (name, x.shape[1], output, measure, a, b, mark))
                allowed = b + (LUCK if max(a, b) <= ROUNDING_LEVEL else 0)
                with self.subTest(case=name, classes=x.shape[1], output=output, measure=measure):
                    self.assertLessEqual(a, allowed, "worst error in ulp: clxent %.3f, PyTorch %.3f" % (a, b))

    def every_size(self, name, change=lambda x, y, random: None, **options):
        for classes in CLASSES:
            random = np.random.RandomState(classes)
            rows = max(8, min(2048, (1 << 19) // classes))
            x = (3 * random.normal(size=(rows, classes))).astype(np.float32)
            y = random.randint(0, classes, rows)
            change(x, y, random)
            made = {key: make(classes, random) for key, make in options.items()}
            self.compare(name, x, y, **made)

    def test_plain(self):
        self.every_size("plain")

    def test_narrow_and_wide_logits(self):
        def narrow(x, y, random):
            x *= 0.01

        def wide(x, y, random):
            x *= 10

        self.every_size("narrow", narrow)
        self.every_size("wide", wide)

    def test_label_smoothing(self):
        self.every_size("smoothing", smoothing=lambda classes, random: 0.125)

    def test_class_weights(self):
        def weights(classes, random):
            return random.uniform(0.1, 3, classes).astype(np.float32)

        self.every_size("weights", weight=weights)
        self.every_size("weights and smoothing", weight=weights, smoothing=lambda classes, random: 0.125)

    def test_confident_rows(self):
        def confident(x, y, random):
            x[np.arange(len(y)), y] = random.uniform(10, 40, len(y))

        self.every_size("confident", confident)

    def test_offset_rows(self):
        def offset(x, y, random):
            x += np.float32(1e4)

        self.every_size("offset 1e4", offset)

    def test_masked_classes(self):
        def mask(x, y, random):
            at = np.arange(len(y))
            kept = x[at, y]
            x[random.uniform(size=x.shape) < 0.5] = -np.inf
            x[at, y] = kept

        self.every_size("masked", mask)


# ---- Answers by definition ---------------------------------------------------------------------


class Differences(EvalCase):
    """Both sides of every sentence of the README on how clxent differs from PyTorch."""

    def both(self, x, y, weight=None, reduction="none", ignore_index=-100, smoothing=0.0):
        """Loss (of each row, or reduced), gradient: ours, then PyTorch's."""
        x, y = np.array(x, np.float32), np.array(y)
        y = y.astype(np.float32 if y.dtype.kind == "f" else np.int64)
        weight = None if weight is None else np.array(weight, np.float32)
        options = {"reduction": reduction, "ignore_index": ignore_index, "label_smoothing": smoothing}
        arrays, told = self.clxent(x, y, weight, **options)
        loss, logits = pytorch(x, y, weight, **options)
        ours = arrays["losses"] if reduction == "none" else float(told["loss"])
        return (ours, arrays["grad"]), (loss, logits.grad.numpy())

    def same(self, *args, **options):
        ours, theirs = self.both(*args, **options)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-7)
        return ours

    def test_options_mean_the_same(self):
        x = np.random.RandomState(1).normal(size=(4, 3)).astype(np.float32)
        q = np.array([[0.5, 0, 0.5], [0.2, 0.3, 0.1], [0, 1, 0], [0.1, 0.1, 0.8]])
        weight = [1.0, 2.0, 0.25]
        for reduction, smoothing, weights in itertools.product(("mean", "sum", "none"), (0.0, 0.3), (None, weight)):
            options = {"reduction": reduction, "smoothing": smoothing, "weight": weights}
            with self.subTest(**options):
                self.same(x, [0, -100, 2, 1], **options)  # an ignored row has no smoothing either
                self.same(x, [0, 1, 2, 1], ignore_index=1, **options)
                self.same(x, q, **options)

    def test_rows_that_are_not_finite_are_the_same(self):
        inf, nan = np.inf, np.nan
        for x, y in (
            ([0, -inf, 1], 0),
            ([0, -inf, 1], 1),
            ([-inf, -inf, -inf], 0),
            ([0, inf, 1], 0),
            ([0, inf, 1], 1),
            ([0, nan, 1], 0),
            ([inf, nan, 1], 0),
        ):
            for smoothing in (0.0, 0.1):
                with self.subTest(x=x, y=y, smoothing=smoothing):
                    self.same([x], [y], smoothing=smoothing)

    def test_all_ignored_is_the_same(self):
        loss, gradient = self.same([[0, 2, 1]], [-100], reduction="mean")
        self.assertTrue(math.isnan(loss) and (gradient == 0).all())
        self.same([[0, 2, 1]], [-100], reduction="sum")

    def test_argmax_takes_the_first_of_equals_and_the_first_nan(self):
        for x in ([1, 5, 5, 3], [5, 5, 5, 5], [1, np.nan, 5, np.nan]):
            self.assertEqual(int(torch.tensor(x).argmax()), int(np.argmax(x)))  # and ours, by test_eval.py

    def test_an_ignored_row_may_hold_anything(self):
        for bad in (np.nan, np.inf):
            ours, theirs = self.both([[0, bad, 1]], [-100])
            self.assertTrue((ours[1] == 0).all() and ours[0] == 0 and theirs[0] == 0)
            self.assertTrue(np.isnan(theirs[1]).all())

    def test_a_label_of_0_adds_nothing_at_a_masked_class(self):
        ours, theirs = self.both([[0, -np.inf, 1]], [[0.5, 0.0, 0.5]])
        self.assertAlmostEqual(float(ours[0][0]), math.log1p(math.e) - 0.5, delta=1e-6)
        self.assertTrue(np.isnan(theirs[0][0]))
        ours, theirs = self.both([[0, -np.inf, 1]], [0], weight=[1, 0, 1], smoothing=0.1)
        self.assertTrue(np.isfinite(ours[0][0]) and np.isnan(theirs[0][0]))
        ours, theirs = self.both([[0, -np.inf, 1]], [1], weight=[1, 0, 1])
        self.assertTrue(ours[0][0] == 0 and np.isnan(theirs[0][0]))

    def test_a_mean_over_weights_of_0_has_no_gradient(self):
        ours, theirs = self.both([[0, 2, 1]], [1], weight=[1, 0, 1], reduction="mean")
        self.assertTrue(math.isnan(ours[0]) and np.isnan(theirs[0]))
        self.assertTrue((ours[1] == 0).all() and np.isnan(theirs[1]).all())

    def test_a_confident_row_keeps_its_loss_and_gradient(self):
        ours, theirs = self.both([[20, 0, 0, 0]], [0])
        exact = math.log1p(3 * math.exp(-20))
        self.assertAlmostEqual(float(ours[0][0]) / exact, 1, delta=1e-6)
        self.assertAlmostEqual(float(ours[1][0, 0]) / -exact, 1, delta=1e-6)
        self.assertTrue(theirs[0][0] == 0 and theirs[1][0, 0] == 0)

    def test_a_target_out_of_range_is_an_error(self):
        for target in (3, -1, 2**32 + 1):
            files = self.files(np.zeros((1, 3), np.float32), np.array([target]))
            self.refuse("eval", *files, mentions=["row 0: target %d " % target, "0 to 2"])
            with self.assertRaises(IndexError):
                torch.nn.functional.cross_entropy(torch.zeros(1, 3), torch.tensor([target]))


if __name__ == "__main__":
    unittest.main()
