#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# fresh.sh bookworm|trixie [FOLDER] - runs README's two commands on a machine that has nothing: in a bare root made by
# debootstrap, on the commit that is checked out, without compiled kernels. Then installs the Python package by README's
# line and runs README's Python code. Prints the time of each, and the counts.
#
# FOLDER keeps the bare root: debootstrap fills it where it is absent, a later run copies it. Takes root, debootstrap
# and 4 GiB of disk below TMPDIR (default /var/tmp). The times include the installation of packages.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() {
    say "$1"
    exit "${2:-1}"
}

suite=${1:-} kept=${2:-}
case $suite in
bookworm | trixie) [[ $# -le 2 ]] || fail 'takes bookworm or trixie, and at most one folder' 2 ;;
*) fail "takes bookworm or trixie, got '$suite'" 2 ;;
esac
[[ $(id -u) == 0 ]] || fail 'takes root, for debootstrap and chroot'
for tool in debootstrap unshare git; do
    command -v "$tool" >/dev/null || fail "takes $tool, which is not installed"
done

child=
work=$(mktemp -d "${TMPDIR:-/var/tmp}/fresh.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
# The end of unshare ends all that runs below it; the second is the kernel's.
trap '[[ -z $child ]] || kill -KILL "$child"; sleep 1; exit 1' HUP INT TERM
root=$work/root

# make_root FOLDER: a bare one, from the mirror that this machine's apt uses for Debian, else debootstrap's default.
make_root() {
    local mirror
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" { print $2; exit }') || mirror=
    say "debootstrap: $suite"
    # shellcheck disable=SC2086
    if ! debootstrap --variant=minbase "$suite" "$1" $mirror >"$work/debootstrap.log" 2>&1; then
        tail -n 5 "$work/debootstrap.log" >&2
        fail "debootstrap failed"
    fi
}

if [[ -z $kept ]]; then
    make_root "$root"
else
    if [[ ! -e $kept ]]; then
        make_root "$kept.part"
        mv "$kept.part" "$kept"
    fi
    [[ $(sed -n 's/^VERSION_CODENAME=//p' "$kept/etc/os-release" 2>/dev/null) == "$suite" ]] ||
        fail "$kept holds no root of $suite"
    cp -a "$kept" "$root"
fi

# What this machine reaches its mirror with: names, proxies, certificates.
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
apt-config dump 2>/dev/null |
    grep -Ei '^Acquire::.*(Proxy|CaInfo|Check-Date|Check-Valid-Until|Verify-Peer)' >"$root/etc/apt/apt.conf.d/99host" || :
if [[ -e /etc/ssl/certs/ca-certificates.crt ]]; then
    mkdir -p "$root/etc/ssl/certs"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    # For pip: the package ca-certificates, which python3-venv brings, writes its own over the first.
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/host.crt"
    export PIP_CERT=/etc/ssl/certs/host.crt
fi
variables=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8)
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_CERT PIP_INDEX_URL PIP_EXTRA_INDEX_URL; do
    [[ -z ${!name:-} ]] || variables+=("$name=${!name}")
done

mkdir "$root/clxent"
git archive HEAD | tar -x -C "$root/clxent"

# Runs in namespaces of its own: what it mounts and starts ends with it. PoCL reads processors and memory in /sys,
# Criterion shares memory in /dev/shm.
# shellcheck disable=SC2016
inside='
    set -e
    root=$1
    shift
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" "$@"'

# Sets cpu to the seconds of CPU of all children until now.
cpu_seconds() {
    times >"$work/times" # a subshell would count its own
    cpu=$(awk 'NR == 2 { split($0, t, /[ms ]+/); printf "%.0f", 60 * (t[1] + t[3]) + t[2] + t[4] }' "$work/times")
}

failed=0 lines=()
python='. tools/setup.sh && setup python3-venv && tools/python/check_wheel.py --install'
for command in tools/demo.sh tools/test.sh "$python"; do
    say "$suite: $command"
    cpu_seconds
    before=$cpu started=$SECONDS status=0
    : >"$work/log" # there before tail looks for it
    unshare --mount --pid --fork --kill-child sh -c "$inside" sh "$root" env -i "${variables[@]}" \
        sh -c "cd /clxent && $command" </dev/null >"$work/log" 2>&1 &
    child=$!
    tail -n +1 -f --pid="$child" "$work/log" &
    wait "$child" || status=$?
    child=
    wait
    [[ $status == 0 ]] || failed=1
    counts=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$work/log" | tail -n 1) || counts="exit status $status"
    cpu_seconds
    lines+=("$suite, ${command##*&& }: $((SECONDS - started)) s, $((cpu - before)) s of CPU, $counts")
done
printf '%s\n' "${lines[@]}"
exit $failed
