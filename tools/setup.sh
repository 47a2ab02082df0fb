# shellcheck shell=sh
# SPDX-License-Identifier: MIT
#
# setup.sh - what demo.sh and test.sh share: install what is missing, configure, build. Sourced by them
# with the checkout as the working directory.
#
# A tool counts as there when it works, however it came. Only what is missing is asked of apt-get, as root
# or through sudo, so that nothing here needs root or a network on a machine that has everything.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# has NAME: whether the thing that a package of that name brings is there.
has() {
    case $1 in
    build-essential) printf '#include <math.h>\nint main(void){return 0;}\n' | ${CC:-cc} -x c -o /dev/null - ;;
    cmake) cmake --version ;;
    ninja-build) ninja --version ;;
    pkg-config) pkg-config --version ;;
    opencl-headers) echo '#include <CL/cl.h>' | ${CC:-cc} -x c -fsyntax-only - ;;
    ocl-icd-opencl-dev) pkg-config --exists OpenCL ;;
    pocl-opencl-icd) test -e /etc/OpenCL/vendors/pocl.icd ;;
    libjansson-dev) pkg-config --exists jansson ;;
    libzip-dev) pkg-config --exists libzip ;;
    libcriterion-dev) pkg-config --exists criterion ;;
    python3) python3 -c '' ;;
    python3-numpy) /usr/bin/python3 -c 'import numpy' || python3 -c 'import numpy' ;;
    python3-venv) python3 -c 'import ensurepip, venv' ;;
    gnuplot-nox) gnuplot --version ;;
    doxygen) doxygen --version ;;
    mandoc) command -v mandoc ;;
    oclgrind) test -e /usr/lib/oclgrind/liboclgrind-rt-icd.so ;;
    libclang-rt-dev)
        echo 'int LLVMFuzzerTestOneInput(void); int LLVMFuzzerTestOneInput(void) { return 0; }' |
            clang -x c -fsanitize=fuzzer,address -o /dev/null -
        ;;
    gcc-mingw-w64-x86-64) x86_64-w64-mingw32-gcc --version ;;
    libclc-15) test -e /usr/lib/clc/nvptx64--nvidiacl.bc ;;
    clang | clang-15 | clang-19 | clang-format | clang-tidy | shellcheck) "$1" --version ;;
    *) false ;;
    esac >/dev/null 2>&1
}

# missing NAME...: those that are not there.
missing() {
    for name in "$@"; do
        has "$name" || printf '%s ' "$name"
    done
}

apt() {
    if [ "$(id -u)" = 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
    fi </dev/null >>"$apt_log" 2>&1
}

# install NAME...: tries to bring what is missing; the caller looks at what still is.
install() {
    absent=$(missing "$@")
    [ -n "$absent" ] || return 0
    command -v apt-get >/dev/null 2>&1 || return 0
    [ "$(id -u)" = 0 ] || sudo -n true >/dev/null 2>&1 || return 0
    apt_log=$(mktemp) || return 0
    say "installing ${absent% }"
    apt update || :
    # One that the mirror does not have must not keep the others away.
    # shellcheck disable=SC2086
    if ! apt install -y --no-install-recommends $absent && grep -Eq 'Unable to locate|no installation' "$apt_log"; then
        for name in $absent; do
            apt install -y --no-install-recommends "$name" || :
        done
    fi
    apt_error=$(grep '^E: ' "$apt_log" | head -n 1) || :
    rm -f "$apt_log"
}

# setup demo|test|NAME...: everything at once, then ends the script where it cannot do without what is missing.
setup() {
    need_build='build-essential cmake ninja-build pkg-config opencl-headers ocl-icd-opencl-dev pocl-opencl-icd
        libjansson-dev libzip-dev'
    need_tests='libcriterion-dev python3 python3-numpy'
    case $1 in
    demo) need=$need_build better='' ;;
    test) need="$need_build $need_tests" better='clang doxygen gnuplot-nox' ;;
    *) need=$* better='' ;;
    esac
    # shellcheck disable=SC2086
    install $need $better
    if [ -n "${CLXENT_REQUIRE_ALL:-}" ]; then need="$need $better" better=''; fi

    # shellcheck disable=SC2086
    absent=$(missing $need)
    reason=${apt_error:-that takes apt-get, and root or sudo without a password}
    # A machine may have a driver of its own in place of PoCL.
    if [ "$absent" = 'pocl-opencl-icd ' ] && ls /etc/OpenCL/vendors/*.icd >/dev/null 2>&1; then
        say 'could not install pocl-opencl-icd: goes on with the OpenCL driver that is there'
        absent=
    fi
    if [ -n "$absent" ]; then
        say "could not install ${absent% }: $reason"
        exit 1
    fi
    # shellcheck disable=SC2086
    absent=$(missing $better)
    [ -z "$absent" ] || say "could not install ${absent% }: goes on without ($reason)"
}

# configure PRESET FOLDER [cmake argument...]. A folder that was configured in another way, or stood elsewhere,
# starts afresh.
configure() {
    preset=$1 folder=$2
    shift 2
    how="$preset ${CC:-} $PWD"
    if [ ! -e "$folder/configured" ]; then
        rm -rf "$folder/CMakeCache.txt" "$folder/CMakeFiles"
    elif [ "$(cat "$folder/configured")" != "$how" ]; then
        rm -rf "$folder"
    fi
    quietly cmake --preset "$preset" -B "$folder" "$@"
    printf '%s\n' "$how" >"$folder/configured"
}

# quietly COMMAND...: its output only when it fails.
quietly() {
    quiet_log=$(mktemp) || exit 1
    "$@" >"$quiet_log" 2>&1 || {
        cat "$quiet_log" >&2
        rm -f "$quiet_log"
        say "failed: $*"
        exit 1
    }
    rm -f "$quiet_log"
}
