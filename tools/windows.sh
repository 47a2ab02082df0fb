#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Cross-compiles the library for 64-bit Windows with MinGW, static and as a DLL, with warnings as errors; installs
# both; links README's program with each through find_package(); checks that the DLL exports what the headers declare.
# Where Wine is installed, runs the program on the OpenCL driver of this machine. The exit status is 0 when all of
# that worked. Needs the packages below; Debian's Wine is wine64.
#
# No OpenCL SDK for Windows is needed: headers are this system's, and the import library of OpenCL.dll is made from
# the functions that this system's ICD loader exports.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

# shellcheck source=tools/setup.sh
. tools/setup.sh
setup build-essential cmake ninja-build opencl-headers ocl-icd-opencl-dev gcc-mingw-w64-x86-64

work=$(mktemp -d)
prefix=
wine=$(command -v wine64 || command -v /usr/lib/wine/wine64 || true)
wineserver=$(command -v wineserver64 || command -v /usr/lib/wine/wineserver64 || true)
export WINEPREFIX=$work/wine WINEDEBUG=-all
clean() {
    [[ -z $wineserver || ! -e $WINEPREFIX ]] || "$wineserver" -k || true
    rm -rf "$work"
}
trap clean EXIT

# ---- OpenCL for Windows ------------------------------------------------------------

mkdir "$work/opencl"
header=$(echo '#include <CL/cl.h>' | cc -M -x c - | tr ' ' '\n' | grep '/CL/cl\.h$')
cp -r "$(dirname "$header")" "$work/opencl/CL"
{
    printf 'LIBRARY OpenCL.dll\nEXPORTS\n'
    nm -D --defined-only --format=posix "$(cc -print-file-name=libOpenCL.so)" | sed -n 's/^\(cl[A-Z][A-Za-z0-9]*\).* T .*/\1/p'
} >"$work/opencl/OpenCL.def"
grep -q '^clEnqueueNDRangeKernel$' "$work/opencl/OpenCL.def"
x86_64-w64-mingw32-dlltool -d "$work/opencl/OpenCL.def" -l "$work/opencl/libOpenCL.a"

# ---- Library and program -----------------------------------------------------------

for kind in static shared; do
    shared=OFF
    [[ $kind == static ]] || shared=ON
    prefix=$work/$kind/prefix
    target=(--toolchain "$PWD/tools/cmake/mingw.cmake" -DOpenCL_INCLUDE_DIR="$work/opencl"
        -DOpenCL_LIBRARY="$work/opencl/libOpenCL.a")
    quietly cmake --preset release -B "$work/$kind/library" "${target[@]}" -DBUILD_SHARED_LIBS=$shared \
        -DCLXENT_BUILD_TOOLS=OFF -DCLXENT_BUILD_TESTS=OFF -DCLXENT_WERROR=ON -DCMAKE_INSTALL_LIBDIR=lib
    quietly cmake --build "$work/$kind/library"
    quietly cmake --install "$work/$kind/library" --prefix "$prefix"
    quietly cmake -G Ninja -S tests/package -B "$work/$kind/program" "${target[@]}" -DCMAKE_PREFIX_PATH="$prefix" \
        -DSOURCE="$PWD/tools/examples/quickstart.c" -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_FLAGS=-Werror
    quietly cmake --build "$work/$kind/program"
    say "$kind: compiled and linked"
done
quietly cmake -DNM=x86_64-w64-mingw32-nm -DLIBRARY="$prefix/lib/libclxent.dll.a" -DHEADERS=include/clxent \
    -P tests/package/exports.cmake

# ---- Run ---------------------------------------------------------------------------

if [[ -z $wine ]]; then
    say 'no Wine: nothing was run'
    exit 0
fi
cp "$prefix/bin/libclxent.dll" "$work/shared/program"
for kind in static shared; do
    "$wine" "$work/$kind/program/consumer.exe" >"$work/output" 2>"$work/errors" || {
        cat "$work/output" "$work/errors" >&2
        say "$kind: failed in Wine"
        exit 1
    }
    grep -q '^loss      8\.582062' "$work/output" || {
        cat "$work/output" >&2
        say "$kind: expected a loss of 8.582062"
        exit 1
    }
    say "$kind: ran in Wine"
done
