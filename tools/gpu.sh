#!/bin/sh
# SPDX-License-Identifier: MIT
#
# gpu.sh [TARGET...] - what compilers for GPUs make of every strategy that a GPU takes, without a GPU: clang and libclc
# compile the kernels with the parameters of host/tuning.def, and their assembly is read. Targets: sm_XX (PTX; registers
# and spills where there is a ptxas that knows it), gfxXXX (AMD). Prints a table of each kernel's registers, private
# memory and spills, and its global loads and stores of 128 bits and of less.
#
# Ends with 1 where a kernel does not compile, spills vector registers, or lacks accesses of 128 bits where vectors of
# logits are aligned (a block's loads of them must be under way together); with 77 where clang or libclc is missing.
# These are instructions, not times: what a row costs is for a device to say.
#
# Environment, all optional: CLXENT_GPU_CLANG (default clang-15), CLXENT_LIBCLC, the folder of libclc of that version.
set -u
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P) && cd "$root" || exit 1

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

clang=${CLXENT_GPU_CLANG:-clang-15} libclc=${CLXENT_LIBCLC:-/usr/lib/clc}
[ $# -gt 0 ] || set -- sm_70 sm_80 gfx90a gfx1030
for target in "$@"; do
    case $target in
    sm_[0-9]* | gfx[0-9]*) ;;
    *)
        say "$target: takes targets like sm_80 or gfx90a"
        exit 2
        ;;
    esac
done
command -v "$clang" >/dev/null 2>&1 || {
    say "no $clang (Debian: clang-15)"
    exit 77
}
for library in nvptx64--nvidiacl amdgcn--amdhsa; do
    [ -e "$libclc/$library.bc" ] || {
        say "no $libclc/$library.bc (Debian: libclc-15)"
        exit 77
    }
done

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# parameter NAME DTYPE: of the row of tuning.def that a GPU takes without a name of its own.
parameter() {
    awk -F '[(,) ]+' -v name="$1" -v dtype="$2" '
        /dtype +group/ { for (i = 1; i <= NF; i++) column[$i] = i }
        /^TUNE\(ANY/ && ($4 == dtype || $4 == "ANY_DTYPE") { print $(column[name]); exit }' host/tuning.def
}

# compile TARGET PROGRAM OUT OPTION...
compile() {
    target=$1 file=$2 out=$3
    shift 3
    case $target in
    sm_*) where="-target nvptx64-- -Xclang -target-cpu -Xclang $target" library=nvptx64--nvidiacl ;;
    *) where="-target amdgcn-amd-amdhsa -mcpu=$target -nogpulib" library=amdgcn--amdhsa ;;
    esac
    # shellcheck disable=SC2086
    "$clang" -x cl -cl-std=CL1.2 -O3 -Wno-linker-warnings -Wno-pass-failed $where -Xclang -finclude-default-header \
        -Xclang -mlink-builtin-bitcode -Xclang "$libclc/$library.bc" "$@" -S -o "$out" "kernels/programs/$file"
}

# Of an assembly file, for each kernel: name, registers, private bytes, spills of vector registers, of scalar ones, loads
# and stores of 128 bits, of less, and the most loads of 128 bits that one basic block has.
read_amd() {
    awk '
        /^clxent_[a-z_]*:/ { kernel = substr($1, 1, length($1) - 1); together = 0 }
        /^\.LBB|^; %bb/ { together = 0 }
        $1 ~ /^(global|flat)_load_dwordx4/ { loads[kernel]++; if (++together > most[kernel]) most[kernel] = together; next }
        $1 ~ /^(global|flat)_store_dwordx4/ { stores[kernel]++; next }
        $1 ~ /^(global|flat)_load/ { narrow_loads[kernel]++ }
        $1 ~ /^(global|flat)_store/ { narrow_stores[kernel]++ }
        /^    \.name: / { name = $2 }
        /^    \.private_segment_fixed_size: / { private = $2 }
        /^    \.sgpr_count: / { scalars = $2 }
        /^    \.sgpr_spill_count: / { scalar_spills = $2 }
        /^    \.vgpr_count: / { vectors = $2 }
        /^    \.vgpr_spill_count: / {
            print name, vectors "+" scalars, private, $2, scalar_spills, loads[name] + 0, stores[name] + 0,
                narrow_loads[name] + 0, narrow_stores[name] + 0, most[name] + 0
        }' "$1"
}

read_nvidia() {
    ptxas -v -arch "$2" -o /dev/null "$1" >"$work/ptxas" 2>&1 || : >"$work/ptxas"
    awk '
        # with those of the functions that it calls: their sum, or the most of any
        function fold(counts, name, most_of_any,   n, i, called, one, result) {
            result = counts[name] + 0
            n = split(calls[name], called, " ")
            for (i = 1; i <= n; i++) {
                one = fold(counts, called[i], most_of_any)
                result = !most_of_any ? result + one : one > result ? one : result
            }
            return result
        }
        FILENAME ~ /ptxas$/ && /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
        FILENAME ~ /ptxas$/ && /bytes stack frame/ { private[kernel] += $1; spills[kernel] += $5 + $9 }
        FILENAME ~ /ptxas$/ && / Used / { registers[kernel] = $5 }
        FILENAME ~ /ptxas$/ { next }
        /^\.visible \.entry/ { kernel = $3; sub(/\(.*/, "", kernel); names[++n] = kernel; together = 0 }
        /^\.func.*\($/ { kernel = $0; sub(/\($/, "", kernel); sub(/.*[ \t]/, "", kernel); together = 0 }
        /^[ \t]*[a-z_0-9]+,[ \t]*$/ { callee = $1; sub(/,/, "", callee); calls[kernel] = calls[kernel] " " callee }
        /^\$L|%bb/ { together = 0 }
        $1 ~ /^ld\.global.*\.(v4\..32|v2\..64)/ { loads[kernel]++; if (++together > most[kernel]) most[kernel] = together; next }
        $1 ~ /^st\.global.*\.(v4\..32|v2\..64)/ { stores[kernel]++; next }
        $1 ~ /^ld\.global/ { narrow_loads[kernel]++ }
        $1 ~ /^st\.global/ { narrow_stores[kernel]++ }
        END {
            for (i = 1; i <= n; i++) {
                k = names[i]
                known = k in registers
                print k, known ? registers[k] : "-", known ? private[k] : "-", known ? spills[k] : "-", "-",
                    fold(loads, k), fold(stores, k), fold(narrow_loads, k), fold(narrow_stores, k), fold(most, k, 1)
            }
        }' "$work/ptxas" "$1"
}

format='%-42s %-5s %-8s %-8s %7s %6s %7s  %8s %6s  %8s %6s\n'
# shellcheck disable=SC2059
heading() {
    printf "$format" '' '' '' registers private spills '' '128-bit' '' narrower ''
    printf "$format" strategy dtype target '' bytes vector scalar loads stores loads stores
}

# report LOADS STORES [WORD...]: the row of a kernel, whose words are those of read_amd and read_nvidia.
report() {
    want_loads=$1 want_stores=$2
    shift 2
    if [ $# -lt 10 ]; then
        say "$target: no $kernel in the code of kernels/programs/$file"
        exit 1
    fi
    # shellcheck disable=SC2059
    printf "$format" "$strategy" "$dtype" "$target" "$2" "$3" "$4" "$5" "$6" "$7" "$8" "$9"
    if [ "$4" != - ] && [ "$4" -gt 0 ]; then
        say "$target, $strategy, $dtype: $kernel spills vector registers ($4)"
        status=1
    fi
    if [ "${10}" -lt "$want_loads" ] || [ "$7" -lt "$want_stores" ]; then
        say "$target, $strategy, $dtype: $kernel has ${10} loads of 128 bits together and $7 stores, takes" \
            "$want_loads and $want_stores"
        status=1
    fi
}

# program PROGRAM DTYPE NAME OPTION... <<LINES: compiles for every target. Each line is a kernel, the 128-bit loads that one
# of its basic blocks must have, the stores that it must have, and the strategy.
program() {
    file=$1 dtype=$2
    shift 2
    cat >"$work/kernels"
    for target in $targets; do
        if ! compile "$target" "$file" "$work/code" "$@"; then
            say "$target: kernels/programs/$file does not compile with $*"
            status=1
            continue
        fi
        case $target in
        sm_*) read_nvidia "$work/code" "$target" ;;
        *) read_amd "$work/code" ;;
        esac >"$work/found"
        while read -r kernel want_loads want_stores strategy; do
            # shellcheck disable=SC2046
            report "$want_loads" "$want_stores" $(grep "^$kernel " "$work/found")
        done <"$work/kernels"
    done
}

targets=$* status=0
heading
for type in F32:1 F16:2 BF16:3 F64:4; do
    name=${type%:*} number=${type#*:}
    block=$(parameter block "$name")
    case $name in F32) size=4 ;; F64) size=8 ;; *) size=2 ;; esac
    # accesses of 128 bits that a vector takes; lanes of less than that have none
    accesses=$(($(parameter vector "$name") * size / 16))
    of_lanes=$(($(parameter lane_vector "$name") * size / 16))
    generals=0
    [ "$name" != F32 ] || generals='0 1'
    for general in $generals; do
        # kernels/constants.cl: losses and gradient of int64 targets; with the entropy and every option of the gradient
        with='' outputs=32
        [ "$general" = 0 ] || with=', all options' outputs=288
        common="-DDTYPE=$number -DGRADIENT_DTYPE=$number -DOUTPUTS=$outputs -DTARGETS=2 -DREDUCES=1"
        for option in CLASS_WEIGHTS SMOOTHING LOGIT_SCALE SOFTCAP; do
            common="$common -DHAS_$option=$general"
        done
        common="$common -DACCUMULATE=$general"
        # shellcheck disable=SC2086
        program rows.cl "$name" $common -DLANES=0 -DKERNELS=3 "-DVEC=$(parameter vector "$name")" \
            "-DWG_SIZE=$(parameter group "$name")" "-DBLOCK=$block" <<-END
		clxent_cross_entropy $((block * accesses)) $accesses rows$with
		clxent_split_partials $((block * accesses)) 0 split rows, sums$with
		clxent_split_finalize $accesses $accesses split rows, results$with
		END
        lanes="$common -DLANES=1 -DALONG=0 -DWG_SIZE=$(parameter lane_group "$name") -DCOLUMNS=1"
        # shellcheck disable=SC2086
        program lanes.cl "$name" $lanes -DVEC=1 -DINNER=0 -DIN_LOCAL=1 <<-END
		clxent_cross_entropy 0 0 lanes, last axis$with
		END
        for cached in 1 0; do
            where='on chip'
            [ $cached = 1 ] || where='read twice'
            # shellcheck disable=SC2086
            program lanes.cl "$name" $lanes "-DVEC=$(parameter lane_vector "$name")" -DINNER=1 -DIN_LOCAL=$cached <<-END
			clxent_cross_entropy $of_lanes $of_lanes lanes, inner axis, $where$with
			END
        done
    done
done
exit $status
