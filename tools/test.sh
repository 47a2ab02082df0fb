#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test.sh - installs what is missing, builds, runs every test, ends with "N passed, M failed" test cases.
#
# Environment, all optional: CC; CLXENT_PRESET, a preset of CMakePresets.json (default release);
# CLXENT_BUILD_DIR; CLXENT_CMAKE_ARGS, more arguments for cmake (-DCLXENT_TEST_FULL=ON: every variant times every dtype);
# CLXENT_CTEST_ARGS, for ctest;
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

log=$build/tests.log ctest_pid=''
# Cases that had finished count when the run is interrupted: everything is read from what ctest has printed so far. A
# session of its own, so that the tests end with ctest.
trap '[ -z "$ctest_pid" ] || kill -TERM "-$ctest_pid" 2>/dev/null' INT TERM HUP
run_tests() {
    # shellcheck disable=SC2086
    setsid ctest --test-dir "$build" --verbose -j "$jobs" ${CLXENT_CTEST_ARGS:-} >"$log" 2>&1 &
    ctest_pid=$!
    while kill -0 "$ctest_pid" 2>/dev/null; do
        wait "$ctest_pid"
        status=$?
    done
    ctest_pid=
}

# PoCL's compiler leaks; a cached kernel needs no compiler. So the cache is warm before leaks count.
if [ "$preset" = sanitize ] && [ -z "${CLXENT_CACHE_IS_WARM:-}" ]; then
    say 'fills the cache of compiled kernels'
    ASAN_OPTIONS=detect_leaks=0 run_tests
fi

: >"$log"
tail -f "$log" 2>/dev/null | grep --line-buffered -E '^ *[0-9]+/[0-9]+ Test ' &
progress=$!
run_tests
sleep 1
kill "$progress" 2>/dev/null
wait "$progress" 2>/dev/null

# ctest counts programs; this counts the cases in them, from what Criterion and unittest say: their closing lines or, of
# a program that was interrupted, the line of each case. A program that says neither is one case. One that failed
# without a failed case (crash, time limit, leak) is one failure. The output of failed programs is printed.
counts=$(awk '
    function add(k) {
        if (!(k in known)) {
            passed[k] = of_case[k, "PASS"] + of_case[k, "ok"]
            failed[k] = of_case[k, "FAIL"] + of_case[k, "ERROR"]
        }
        if (state[k] == "good" && passed[k] + failed[k] == 0 && !(k in known)) passed[k] = 1
        if (state[k] == "bad" && failed[k] + 0 == 0) failed[k] = 1
        all_passed += passed[k]
        all_failed += failed[k]
    }
    match($0, /^[0-9]+: /) {
        k = substr($0, 1, RLENGTH - 2)
        text = substr($0, RLENGTH + 1)
        seen[k] = 1
        if (text ~ /^\[(PASS|FAIL|SKIP)\]/) of_case[k, substr(text, 2, 4)]++
        if (text ~ /^\[SKIP\]/) skipped++
        if (text ~ / \.\.\. (ok|FAIL|ERROR)$/) {
            n = split(text, word, " ")
            of_case[k, word[n]]++
        }
        n = split(text, word, " ")
        if (text ~ /Synthesis: Tested: /) {
            known[k] = 1
            for (i = 1; i < n; i++) {
                if (word[i] == "Passing:") passed[k] += word[i + 1]
                if (word[i] == "Failing:") failed[k] += word[i + 1]
            }
        }
        if (text ~ /^Ran [0-9]+ tests? in /) {
            known[k] = unittest[k] = 1
            passed[k] += word[2]
        }
        if ((k in unittest) && text ~ /^(OK|FAILED)/) {
            delete unittest[k]
            n = split(text, part, /[(,) ]+/)
            for (i = 2; i <= n; i++) {
                split(part[i], pair, "=")
                if (pair[1] == "failures" || pair[1] == "errors") {
                    failed[k] += pair[2]
                    passed[k] -= pair[2]
                } else if (pair[1] == "skipped") {
                    skipped += pair[2]
                    passed[k] -= pair[2]
                }
            }
        }
        next
    }
    /^ *[0-9]+\/[0-9]+ Test +#[0-9]+: / {
        k = $0
        sub(/^[^#]*#/, "", k)
        sub(/:.*/, "", k)
        seen[k] = 1
        if ($0 ~ /\*\*\*Skipped/) {
            skipped++
            state[k] = "skipped"
            known[k] = 1
        } else {
            state[k] = $0 ~ / Passed +[0-9.]+ sec/ ? "good" : "bad"
        }
    }
    END {
        for (k in seen) add(k)
        bad = ""
        for (k in state) if (state[k] == "bad") bad = bad " " k
        print all_passed + 0, all_failed + 0, skipped + 0, bad
    }' "$log" 2>/dev/null) || counts='0 0 0'
# shellcheck disable=SC2086
set -- $counts
passed=$1 failed=$2 skipped=$3
shift 3
for number; do
    say "output of test $number:"
    grep -E "^$number: |^ *[0-9]+/[0-9]+ Test +#$number:" "$log" >&2
done
[ "$skipped" = 0 ] || say "$skipped cases skipped"

# That nothing ran is a failure too, and so is what ctest itself finds wrong.
if [ "$failed" = 0 ] && { [ "$status" != 0 ] || [ "$passed" = 0 ]; }; then
    failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
