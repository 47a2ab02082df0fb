#!/bin/sh
# SPDX-License-Identifier: MIT
#
# gpu-bench.sh - checks and times clxent on this machine's OpenCL device: `clxent info`, the tests, random cases, the
# suite of goals beside the device's own copy, and PyTorch (eager, compiled, Liger's loss) on its GPU where Python
# imports it. Prints one Markdown table at the end. Ends with 1 where a test, a case or a measurement failed.
#
#   gpu-bench.sh [--device N|NAME] [--tests NAMES] [--cases N] [--suite PART] [--log2-logits N]
#   gpu-bench.sh --pack DIR
#
# The first runs the programs of build/, or those of a pack. The second copies them into DIR, with all that a machine
# with a driver and no network lacks. --tests '' runs none, --tests 'test_api test_limits' these two, all on the first
# device, whatever --device is. --cases is for `clxent verify`; --suite PART measures the cases named PART.
# shellcheck disable=SC2317
set -u
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P) || exit 1

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() {
    say "$1"
    exit "${2:-1}"
}

# Programs contain their kernels. glibc stays behind, as drivers need the machine's own.
pack() {
    ls "$here/../build/clxent" "$here/../build/tests/test_api" >/dev/null || fail 'takes a build with tests'
    mkdir -p "$1/bin" "$1/lib" && cp "$here/gpu-bench.sh" "$here/peers.py" "$1" &&
        cp "$here/../build/clxent" "$here"/../build/tests/test_* "$1/bin" || exit 1
    ldd "$1"/bin/* | awk '$2 == "=>" && $1 !~ /^lib(c|m|dl|rt|pthread|resolv)\.so/ { print $3 }' | sort -u |
        xargs cp -L -t "$1/lib" || exit 1
    cat >"$1/clxent" <<'END'
#!/bin/sh
here=${0%/*}
LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$here/bin/clxent" "$@"
END
    chmod +x "$1/clxent"
}

device='' tests=all cases=1000 part='' logits=26
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail "takes a value after $1" 2
    case $1 in
    --pack)
        pack "$2"
        exit
        ;;
    --device) device=$2 ;;
    --tests) tests=$2 ;;
    --cases) cases=$2 ;;
    --suite) part=$2 ;;
    --log2-logits) logits=$2 ;;
    *) fail "knows no $1" 2 ;;
    esac
    shift 2
done

clxent=$here/clxent programs=$here/bin
[ -f "$clxent" ] || clxent=$here/../build/clxent programs=$here/../build/tests
[ -f "$clxent" ] || fail 'no clxent: build it, or see --pack'
# Containers may have NVIDIA's library without the file that names it to the loader.
if [ -z "${OCL_ICD_VENDORS:-}" ] && ! ls /etc/OpenCL/vendors/*.icd >/dev/null 2>&1; then
    export OCL_ICD_VENDORS=libnvidia-opencl.so.1
fi
[ "$tests" != all ] || tests=$(cd "$programs" && ls -d test_*)
work=$(mktemp -d) status=0
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# on_device NAME COMMAND...: its output into $work/NAME; printed where the command fails.
on_device() {
    say "$1"
    output=$work/$1
    shift
    "$@" >"$output" || {
        status=1
        cat "$output"
    }
}
run() { "$clxent" "$@" ${device:+--device "$device"}; }
run_test() {
    # One case reads tuning.def of the checkout that the program comes from.
    LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$programs/$1" --jobs 1 \
        --filter '!(context/the_librarys_own_rows_are_rows)' 2>&1
}
row() { printf '| %s | %s | %s | %s |\n' "$@" >>"$work/table"; }

on_device info run info
cat "$work/info"
[ $status = 0 ] || exit 1
for test in $tests; do
    on_device "$test" run_test "$test"
    counts=$(sed -n 's/ |/,/g; s/.*Synthesis: *\(Tested.*[0-9]\).*/\1/p' "$work/$test")
    row "$test" "${counts:-did not finish}" 'no failure' ''
done
on_device verify run verify --cases "$cases"
row verify "$(sed -n 's/^cases *//p' "$work/verify")" 'no failure' ''
on_device suite run bench --suite --json --log2-logits "$logits" ${part:+--case "$part"}
awk -F '"' 'function show(format, text) { return text ~ /null/ ? "none" : sprintf(format, substr(text, 2)) }
    { printf "| %s | %s %s | %s | %s |\n", $4, show("%.2f", $7), $10, show("%g", $13), $16 }' \
    "$work/suite" >>"$work/table"
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    for dtype in f32 bf16; do
        on_device "peers-$dtype" python3 "$here/peers.py" --clxent "$clxent" ${device:+--device "$device"} \
            --gpu --json --dtype $dtype
        # {"rows": N, "classes": N, "peer": NAME, "version": TEXT, "ms": X, "least_ms": X, "ratio": X, ...; a peer
        # that is absent ends with its version.
        awk -F '"' -v dtype=$dtype '{
            ran = NF > 14
            figure = ran ? sprintf("%.3f ms, %.2f x clxent", substr($15, 2), substr($19, 2)) : $12
            printf "| %s, %d x %d: %s | %s | | |\n", dtype, substr($3, 2), substr($5, 2), (ran ? $12 : $8), figure
        }' "$work/peers-$dtype" >>"$work/table"
    done
fi

printf '\n%s2^%s logits\n\n| case | figure | goal | verdict |\n|---|---|---|---|\n' \
    "$(sed -n 's/^\(device\|driver\|clxent\) *\(.*\)/\1 \2; /p' "$work/verify" | tr -d '\n')" "$logits"
cat "$work/table"
exit $status
