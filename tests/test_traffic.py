#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How often each logit goes over the bus, with the parameters of a GPU: exactly, as Oclgrind counts it.

CLXENT_TRAFFIC names the executable of traffic.c, the environment selects Oclgrind. What a row has one of, such as its
target, does not depend on the number of classes within one size of groups, so two runs that differ in nothing else
leave the logits' traffic as their difference. Scalar and vector accesses through pointers are counted, caches are not
simulated.
"""
import os
import re
import subprocess
import unittest

TRAFFIC = os.environ["CLXENT_TRAFFIC"]
# Unoptimised: what the optimiser makes of clones Oclgrind 21.10 does not know.
COUNTING = {"OCLGRIND_INST_COUNTS": "1", "OCLGRIND_BUILD_OPTIONS": "-cl-opt-disable"}


def run(rows, classes, inner=1, lanes=0, piece=0, gradient=1):
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
    def test_logits_are_read_and_gradients_written_as_often_as_said(self):
        lanes, split = {"lanes": 32}, {"piece": 8192}
        one_block, of_lanes = "^rows.* kept in registers", "^lanes.* kept in local memory"
        for name, strategy, expected, rows, classes, options in (
            ("rows of one block", one_block, (1, 1), 2, (2560, 4096), {}),
            ("odd rows of one block", one_block, (1, 1), 2, (1277, 2045), {}),
            ("longer rows", "^rows.* read twice", (2, 1), 2, (8192, 12288), {}),
            ("split rows", "^split rows.* 2 pieces", (2, 1), 2, (12288, 16384), split),
            ("lanes", of_lanes, (1, 1), 128, (8, 24), lanes),
            ("lanes of an inner axis", of_lanes, (1, 1), 512, (4, 12), {"inner": 256}),
            ("a loss alone", "^rows", (1, 0), 2, (2560, 4096), {"gradient": 0}),
            ("a loss alone of longer rows", "^rows", (1, 0), 2, (8192, 12288), {"gradient": 0}),
            ("a loss alone of lanes", "^lanes", (1, 0), 128, (8, 24), {**lanes, "gradient": 0}),
        ):
            with self.subTest(name):
                (few, *moved_few), (many, *moved_many) = (run(rows, count, **options) for count in classes)
                for plan in (few, many):
                    self.assertRegex(plan, strategy)
                logits = 4 * rows * (classes[1] - classes[0])
                moved = [(b - a) / logits for a, b in zip(moved_few, moved_many)]
                self.assertEqual(moved, list(expected), "how often a logit is read, and a gradient written")


if __name__ == "__main__":
    unittest.main()
