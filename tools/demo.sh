#!/bin/sh
# SPDX-License-Identifier: MIT
#
# demo.sh - installs what is missing, builds build/clxent, runs the worked example and a batch of real text.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
# shellcheck source=tools/setup.sh disable=SC1091
. tools/setup.sh

number=0
step() {
    number=$((number + 1))
    say "$number of 5: $*"
}

step 'installs what is missing'
setup demo
step 'builds build/clxent'
configure release build -DCLXENT_BUILD_TESTS=OFF
quietly cmake --build build --target clxent_tool
clxent=$root/build/clxent

# PoCL finds no device where it cannot write its cache.
export POCL_CACHE_DIR="${POCL_CACHE_DIR:-$root/build/pocl}"
mkdir -p "$POCL_CACHE_DIR"

step 'runs the worked example; a driver without compiled kernels compiles them first, for some seconds'
"$clxent" demo

# The bigram model of a text, evaluated on the same text: the longest that every Debian has, else ours.
text=/usr/share/common-licenses/GPL-3 batch=64 seq=512
if [ "$(wc -c <"$text" 2>/dev/null || echo 0)" -le $((batch * seq)) ]; then
    text=LICENSE batch=8 seq=128
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

step "counts the byte bigrams of $text and evaluates the model on the same text"
printf '\nA byte bigram model of %s, %s rows of 256 classes:\n' "$text" $((batch * seq))
"$clxent" sample --text "$text" --batch "$batch" --seq "$seq" --out "$work"
"$clxent" eval --logits "$work/logits.npy" --targets "$work/targets.npy"
loss=$("$clxent" eval --json --logits "$work/logits.npy" --targets "$work/targets.npy" |
    sed -n 's/.*"loss": *\([-+.0-9eE]*\).*/\1/p')

step 'computes the same figure without clxent'
# That is the mean of log(count of the first byte / count of the pair), in awk.
od -An -v -tu1 "$text" | awk -v rows=$((batch * seq)) -v loss="$loss" '
    { for (i = 1; i <= NF; i++) byte[n++] = $i }
    END {
        for (i = 0; i + 1 < n; i++) { first[byte[i]]++; pair[byte[i], byte[i + 1]]++ }
        for (i = 0; i < rows; i++) sum += log(first[byte[i]] / pair[byte[i], byte[i + 1]])
        expected = sum / rows
        difference = loss - expected
        if (difference < 0) difference = -difference
        agrees = loss != "" && difference <= 1e-6 * expected
        printf "counted from the text: %.9f   clxent: %.9f   %s\n", expected, loss, \
            agrees ? "they agree" : "THEY DIFFER"
        exit !agrees
    }'
echo "The program is $clxent"
