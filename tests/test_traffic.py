#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How often each logit goes over the bus, with the parameters of a GPU: exactly, as Oclgrind counts it.

CLXENT_TRAFFIC names the executable of traffic.c, the environment selects Oclgrind. What a row has one of, such as its
target, does not depend on the number of classes, so two runs that differ in nothing else leave the logits' traffic as
their difference. Scalar and vector accesses through pointers are counted, caches are not simulated.
"""
import os
import re
import subprocess
import unittest

TRAFFIC = os.environ["CLXENT_TRAFFIC"]
# Unoptimised: what the optimiser makes of clones Oclgrind 21.10 does not know.
COUNTING = {"OCLGRIND_INST_COUNTS": "1", "OCLGRIND_BUILD_OPTIONS": "-cl-opt-disable"}


def run(rows, classes, inner, lanes, piece, gradient):
    """The plan's strategy, bytes read, bytes written."""
    done = subprocess.run(
        [TRAFFIC, *(str(n) for n in (rows, classes, inner, lanes, piece, gradient))],
        env={**os.environ, **COUNTING},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or done.stderr:
        raise AssertionError(f"traffic: status {done.returncode}: {done.stderr}")
    moved = {
        way: sum(int(n.replace(",", "")) for n in re.findall(rf"{way} global \(([\d,]+) bytes\)", done.stdout))
        for way in ("load", "store")
    }
    return done.stdout.splitlines()[0], moved["load"], moved["store"]


class Traffic(unittest.TestCase):
    def check(self, strategy, expected, rows, classes, inner=1, lanes=0, piece=0, gradient=1):
        """expected: how often a logit is read, and a gradient written."""
        few, read_few, written_few = run(rows, classes[0], inner, lanes, piece, gradient)
        many, read_many, written_many = run(rows, classes[1], inner, lanes, piece, gradient)
        for plan in (few, many):
            self.assertRegex(plan, strategy)
        logits = 4 * rows * (classes[1] - classes[0])
        self.assertEqual((read_many - read_few, written_many - written_few), (expected[0] * logits, expected[1] * logits))

    def test_rows_on_chip_are_read_once(self):
        self.check("^rows.* kept in local memory", (1, 1), 2, (1024, 3072))

    def test_rows_of_odd_classes_on_chip_are_read_once(self):
        self.check("^rows.* kept in local memory", (1, 1), 2, (1021, 3069))

    def test_longer_rows_are_read_twice(self):
        self.check("^rows.* read twice", (2, 1), 2, (8192, 12288))

    def test_split_rows_are_read_twice(self):
        self.check("^split rows.* 2 pieces", (2, 1), 2, (12288, 16384), piece=8192)

    def test_lanes_are_read_once(self):
        self.check("^lanes.* kept in local memory", (1, 1), 128, (8, 24), lanes=32)

    def test_lanes_of_an_inner_axis_are_read_once(self):
        self.check("^lanes.* kept in local memory", (1, 1), 512, (4, 12), inner=256)

    def test_a_loss_alone_reads_once(self):
        self.check("^rows", (1, 0), 2, (1024, 3072), gradient=0)
        self.check("^rows", (1, 0), 2, (8192, 12288), gradient=0)
        self.check("^lanes", (1, 0), 128, (8, 24), lanes=32, gradient=0)


if __name__ == "__main__":
    unittest.main()
