#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test.sh - installs what is missing, builds, runs every test, ends with "N passed, M failed" test cases.
#
# Environment, all optional: CC; CLXENT_PRESET, a preset of CMakePresets.json (default release);
# CLXENT_BUILD_DIR; CLXENT_CMAKE_ARGS, more arguments for cmake; CLXENT_CTEST_ARGS, for ctest;
# CLXENT_REQUIRE_ALL=1: end where a tool cannot be had instead of leaving out what needs it.
set -u
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P) && cd "$root" || exit 1
# shellcheck source=tools/setup.sh disable=SC1091
. tools/setup.sh

preset=${CLXENT_PRESET:-release}
case $preset in
release) build=${CLXENT_BUILD_DIR:-$root/build} ;;
*) build=${CLXENT_BUILD_DIR:-$root/build-$preset} ;;
esac
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null) || jobs=2

setup test
[ "$preset" != oclgrind ] || setup oclgrind

# shellcheck disable=SC2086
configure "$preset" "$build" -DCLXENT_BUILD_TESTS=ON ${CLXENT_CMAKE_ARGS:-}
quietly cmake --build "$build"

results=$build/results.xml
run_tests() {
    # shellcheck disable=SC2086
    ctest --test-dir "$build" --output-on-failure -j "$jobs" --output-junit "$results" \
        --test-output-size-passed 100000000 --test-output-size-failed 100000000 ${CLXENT_CTEST_ARGS:-}
}

# PoCL's compiler leaks; a cached kernel needs no compiler. So the cache is warm before leaks count.
if [ "$preset" = sanitize ] && [ -z "${CLXENT_CACHE_IS_WARM:-}" ]; then
    say 'fills the cache of compiled kernels'
    ASAN_OPTIONS=detect_leaks=0 run_tests >/dev/null 2>&1
fi

rm -f "$results"
run_tests
status=$?

# ctest counts programs; this counts the cases in them, from what Criterion and unittest say. A program that
# says neither is one case. One that failed without a failed case (crash, time limit, leak) is one failure.
counts=$(awk '
    /<testcase / {
        good = /status="run"/
        passed = failed = known = unittest = skip = 0
    }
    /Synthesis: Tested: / {
        for (i = 1; i < NF; i++) {
            if ($i == "Passing:") passed += $(i + 1)
            if ($i == "Failing:") failed += $(i + 1)
        }
        known = 1
    }
    /\[SKIP\] / { skipped++ }
    /<skipped message="SKIP_RETURN_CODE=/ {
        skipped++
        skip = 1
    }
    /Ran [0-9]+ tests? in / {
        for (i = 1; i < NF; i++) if ($i ~ /Ran$/) passed += $(i + 1)
        known = unittest = 1
    }
    unittest && /^(OK|FAILED)/ {
        unittest = 0
        n = split($0, part, /[(,) ]+/)
        for (i = 2; i <= n; i++) {
            split(part[i], pair, "=")
            if (pair[1] == "failures" || pair[1] == "errors") {
                failed += pair[2]
                passed -= pair[2]
            } else if (pair[1] == "skipped") {
                skipped += pair[2]
                passed -= pair[2]
            }
        }
    }
    /<\/testcase>/ {
        if (good && !known) passed = 1
        if (!good && !skip && failed == 0) failed = 1
        all_passed += passed
        all_failed += failed
    }
    END { print all_passed + 0, all_failed + 0, skipped + 0 }' "$results" 2>/dev/null) || counts='0 0 0'
# shellcheck disable=SC2086
set -- $counts
[ "$3" = 0 ] || say "$3 cases skipped"

# That nothing ran is a failure too, and so is what ctest itself finds wrong.
failed=$2
if [ "$failed" = 0 ] && { [ "$status" != 0 ] || [ "$1" = 0 ]; }; then
    failed=1
fi
echo "$1 passed, $failed failed"
[ "$failed" = 0 ]
