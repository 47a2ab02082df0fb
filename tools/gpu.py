#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What compilers for GPUs make of the kernels, without a GPU: registers, occupancy, memory accesses, instructions.

    tools/gpu.py [--list | --known] [--quick] [--only TEXT] [--tuning ROWS] [--options build/tests/gpu_options] [TARGET...]

clang and libclc compile the programs that plans of a GPU build (gpu_options names them), and this reads the machine
code. Targets are sm_XX and gfxXXX. For sm_XX, ptxas makes machine code and nvdisasm prints it; without ptxas there are
no registers, without nvdisasm no instructions, and accesses are counted in PTX.

Prints a table, then a line for each figure that misses its limit (LIMITS) and is not in KNOWN. Exit status 1: there is
such a line, a known miss got worse or is met, or a kernel does not compile. 77: no clang or no libclc.

The instructions of a logit are those of the shortest path through a loop that loads logits and takes their
exponentials, or that stores results. Where a row is one block (ONE_BLOCK), the path is that of the whole row, on average
over the warps of a group, of which the first alone merges sums and computes the row's factors. No figure here is a time.
--quick has the products of f32 and bf16 alone.

Environment, all optional: CLXENT_GPU_CLANG (default clang-15), CLXENT_LIBCLC, the folder of libclc of that version.
"""
import argparse
import collections
import concurrent.futures
import fnmatch
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

TARGETS = ("sm_80", "sm_90", "gfx90a", "gfx1030", "gfx1100")
# Classes and the elements between two of them. 10 classes are a row per lane.
SHAPES = ((10, 1), (1024, 1), (4096, 1), (32768, 1), (50257, 1), (131072, 1), (21, 4096), (1000, 4096))
QUICK = ((10, 1), (1024, 1), (50257, 1), (21, 4096))
# Matrix products of linear cross-entropy. Their programs are the same for every number of rows, classes and features.
PRODUCTS = ("logits", "hidden", "weight")
KERNELS = {
    "clxent_cross_entropy": "rows",
    "clxent_split_partials": "rows-sums",
    "clxent_split_finalize": "rows-results",
    "clxent_product_block": "product",
}

# Where: target, dtype, options (plain, all), classes, kernel (rows, rows-sums, rows-results, lanes, strided, and with 0
# classes product-logits, product-hidden, product-weight), each a pattern of the shell. Figures are the columns of the table,
# and two more.
LIMITS = """
sm_*  f32  plain *      rows*    registers    <= 64
sm_*  f32  all   *      rows*    registers    <= 96
sm_*  *16  plain *      rows*    registers    <= 64
sm_*  *16  all   *      rows*    registers    <= 80
gfx*  f32  *     *      rows*    registers    <= 128     # with which gfx90a has half of its waves
gfx*  *16  *     *      rows*    registers    <= 128
*     f64  *     *      rows*    registers    <= 128
*     *    *     *      strided  registers    <= 64
*     *    *     *      product* registers    <= 128     # two groups of 256 on NVIDIA
sm_*  *    *     *      product* occupancy    >= 25
sm_*  *    *     *      *        file         <= 65536   # registers of a group
*     *    *     *      *        spills       <= 0
*     *    *     *      *        private      <= 0
*     f32  plain *      rows*    occupancy    >= 50
sm_*  *16  plain *      rows*    occupancy    >= 50
*     *    *     *      *        missing128   <= 0       # accesses of 128 bits that aligned vectors allow
sm_*  f32  plain *      rows     instructions <= 34
sm_*  bf16 plain *      rows     instructions <= 42
*     *    plain *      rows     in_flight    >= 16384
"""

# Misses that are known: where, the figure, its worst value, as --known prints them with ptxas 13.5 for TARGETS. f32 rows of
# 1,024 classes are a warp, whose registers hold all but a few values of the row. All options hold a_j, slopes and exponentials of
# a block, f64 in pairs of registers; clang 15 has 128 of them on gfx1100. Of 50,257 classes a vector's load may stand in front of a
# label and those of its block behind, which is counted as missing. A further word `ptx` marks a miss of PTX alone, of which ptxas
# makes 128 bits.
KNOWN = """
sm*     f32 plain * rows         missing128   1
sm*     f32 plain * rows         private      24
sm*     f32 plain * rows         spills       48
sm*     f32 all   * rows         missing128   1
sm*     f32 all   * rows         registers    121
sm*     f32 all   * strided      registers    72
sm*     *16 all   * rows         missing128   1
sm*     *16 all   * rows         registers    116
sm*     *16 all   * rows-results missing128   1
sm*     *16 all   * rows-results registers    94
sm*     *16 all   * rows-sums    missing128   1
sm*     *16 all   * strided      registers    72
sm*     f64 plain * rows         missing128   2
sm*     f64 plain * strided      registers    72
sm*     f64 all   * rows         missing128   2
sm*     f64 all   * rows         registers    196
sm*     f64 all   * rows-results missing128   2
sm*     f64 all   * rows-sums    missing128   2
sm*     f64 all   * strided      registers    123
sm_80   f32 all   * strided      private      8
sm_80   f32 all   * strided      spills       8
sm_80   *16 all   * strided      private      8
sm_80   *16 all   * strided      spills       8
sm_80   f64 plain * product-weight private      8
sm_80   f64 plain * strided      private      8
sm_80   f64 plain * strided      spills       16
sm_80   f64 plain * product-weight spills       24
gfx*    f32 plain * rows         missing128   1
gfx*    f32 all   * strided      registers    122
gfx*    *16 all   * strided      registers    121
gfx*    f64 plain * rows         missing128   2
gfx*    f64 plain * strided      registers    142
gfx*    f64 all   * strided      registers    204
gfx90a  f32 plain * strided      registers    71
gfx90a  f32 all   * rows         registers    140
gfx90a  *16 plain * rows         missing128   1
gfx90a  *16 plain * rows-sums    missing128   1
gfx90a  *16 plain * strided      registers    73
gfx90a  *16 all   * rows         registers    146
gfx90a  f64 plain * rows         registers    198
gfx90a  f64 all   * rows         registers    264
gfx1030 f64 plain * rows         in_flight    14336
gfx1030 f64 plain * rows         registers    164
gfx1030 f64 all   * rows         registers    235
gfx1100 f64 plain * rows         private      204
gfx1100 f64 plain * rows         spills       54
gfx1100 f64 all   * lanes        private      20
gfx1100 f64 all   * lanes        spills       4
gfx1100 f64 all   * rows         private      396
gfx1100 f64 all   * rows         spills       157
gfx1100 f64 all   * strided      private      28
gfx1100 f64 all   * strided      spills       14
"""

# A multiprocessor or compute unit has `parts` schedulers. Each has room for so many `waves` of `wave` work-items, which
# share its `registers` in granules. A group takes `reserved` bytes of local memory beside its own.
Unit = collections.namedtuple("Unit", "registers granule parts waves wave groups local reserved")
NVIDIA = Unit(512, 8, 4, 16, 32, 32, 164 << 10, 1024)
UNITS = {
    "sm_90": NVIDIA._replace(local=228 << 10),
    "gfx90a": Unit(512, 8, 4, 8, 64, 16, 64 << 10, 0),
    "gfx1030": Unit(1024, 8, 2, 16, 32, 16, 64 << 10, 0),
    "gfx1100": Unit(1536, 24, 2, 16, 32, 16, 64 << 10, 0),
}
SIZES = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8}

PROGRAMS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "kernels", "programs")
CLANG = os.environ.get("CLXENT_GPU_CLANG", "clang-15")
LIBRARIES = [os.path.join(os.environ.get("CLXENT_LIBCLC", "/usr/lib/clc"), name)
             for name in ("amdgcn--amdhsa.bc", "nvptx64--nvidiacl.bc")]
PTXAS, NVDISASM = shutil.which("ptxas"), shutil.which("nvdisasm")


def resident(unit, group, registers, local):
    """Groups that a multiprocessor has at once, and the part of its waves that they are."""
    waves = -(-group // unit.wave)
    held = -(-max(registers, 1) // unit.granule) * unit.granule
    groups = min(unit.waves, unit.registers // held) * unit.parts // waves
    if waves > 1 or unit.reserved:
        groups = min(groups, unit.groups)
    if local + unit.reserved > 0:
        groups = min(groups, unit.local // (local + unit.reserved))
    return groups, 100 * groups * waves // (unit.waves * unit.parts)


# ---- Code ---------------------------------------------------------------------------------------

# load, store: bytes of global memory; exp: it is the one of an exponential that is counted; first: of a kind that the first
# warp of a group has more of; target: the label that it may jump to; falls: the next instruction may follow it.
Instruction = collections.namedtuple("Instruction", "load store exp first target falls text")


def read_sass(text):
    """Kernel -> instructions and labels (str), in order."""
    code, lines = {}, []
    for line in text.splitlines():
        begin = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        label = re.match(r"(\.L_x_\d+):", line)
        found = re.match(r"\s*/\*[0-9a-f]+\*/\s+(@\S+\s+)?(\S+)\s*([^;]*);", line)
        if begin:
            lines = code.setdefault(begin[1], [])
        elif label:
            lines.append(label[1])
        elif found:
            guard, op, operands = found[1], found[2], found[3]
            bits = re.search(r"\.[US]?(128|64|16|8)\b", op)
            size = int(bits[1]) // 8 if bits else 4
            # A call of a label leaves a loop; those of functions, such as the division, come back.
            jump = re.search(r"(.*)`\((\.L_x_\d+)\)", operands) if op.startswith(("BRA", "CALL")) else None
            ends = op.split(".")[0] in ("EXIT", "RET", "BRX", "JMX") or (jump and not jump[1].strip())
            # Either the special-function unit's, or the shift of an integer into the exponent's place.
            exp = re.match(r"MUFU\.EX2|SHF\.L\.U32 .*, 0x1[47], RZ|IMAD\.SHL\.U32 .*, 0x[18]00000, RZ",
                           op + " " + operands)
            lines.append(Instruction(size if op.startswith("LDG") else 0, size if op.startswith("STG") else 0,
                                     bool(exp), op.startswith(("LDS", "STS", "FCHK")), jump and jump[2],
                                     bool(guard) or not ends, operands))
    return code


def read_lines(text, begin, label, access):
    """The same from assembly: begin and label match a line, access an instruction and its width."""
    code, lines = {}, []
    for line in text.splitlines():
        found = re.match(begin, line)
        if found:
            lines = code.setdefault(found[1], [])
        elif re.match(label, line):
            lines.append(line)
        else:
            found = re.match(access, line)
            size = bytes_of(found[2]) if found else 0
            loads = found and found[1].startswith("l")
            lines.append(Instruction(size if loads else 0, 0 if loads else size, False, False, None, True, line))
    return code


def bytes_of(width):
    """Of dwordx4, b128, u16, v4.f32, ..."""
    times = re.match(r"v(\d)\.", width)
    if width.startswith("dword"):
        return 4 * int(width[6:] or 1)
    words = {"ushort": 2, "sshort": 2, "short": 2, "ubyte": 1, "sbyte": 1, "byte": 1}
    bits = re.search(r"[a-z](\d+)$", width)
    return words[width.split("_")[0]] if bits is None else int(times[1] if times else 1) * int(bits[1]) // 8


def read_amd(text):
    return read_lines(text, r"(clxent_\w+):", r"\.LBB|; %bb",
                      r"\s(?:global|flat)_(load|store)_((?:dword|[us]?short|[us]?byte|[bui]\d|d16_)\w*)\s")


def read_ptx(text):
    return read_lines(text, r"\.visible \.entry (\w+)", r"\$L|// %bb",
                      r"\s(?:@\S+ )?(ld|st)\.global(?:\.nc|\.volatile)*\.(\S+)")


def together(code):
    """Of loads that are issued before one of them is used: the most of 128 bits, the most bytes."""
    best, wide, total, waits = [0, 0], 0, 0, set()
    for i in code:
        words = set() if isinstance(i, str) else set(re.findall(r"\bR\d+\b", i.text))
        if isinstance(i, str) or waits & words or re.match(r"\s*s_waitcnt.*vmcnt", i.text):
            wide, total, waits = 0, 0, set()
        if isinstance(i, str):
            continue
        if i.load:
            wide, total = wide + (i.load == 16), total + i.load
            first = re.match(r"R(\d+),", i.text)
            waits |= {"R%d" % (int(first[1]) + n) for n in range(-(-i.load // 4))} if first else set()
        best = [max(best[0], wide), max(best[1], total)]
    return best


# ---- Paths --------------------------------------------------------------------------------------


class Graph:
    """Basic blocks of a kernel's machine code, and its loops. Counts accesses of `width` bytes, or such loads and all stores."""

    def __init__(self, code, width, all_stores=False):
        self.blocks, self.successors, names = [], [], {}
        fresh, falls = True, []
        for i in code:
            if isinstance(i, str):
                fresh = True
                names[i] = len(self.blocks)
                continue
            if fresh:
                self.blocks.append([0, 0, 0, 0, 0])
                falls.append((None, True))
            counts = self.blocks[-1]
            counts[0] += i.load == width
            counts[1] += i.store > 0 if all_stores else i.store == width
            counts[2] += i.exp
            counts[3] += 1
            counts[4] += i.first
            falls[-1] = (i.target, i.falls)
            fresh = i.target is not None or not i.falls
        for n, (target, on) in enumerate(falls):
            next_one = [n + 1] if on and n + 1 < len(falls) else []
            self.successors.append(next_one + ([names[target]] if target in names else []))
        self.order, self.back = [], collections.defaultdict(list)
        self.visit()

    def visit(self):
        """Sets order, in which every block comes before its successors but for back[header], the ends of a loop."""
        state, stack = {0: 1}, [(0, iter(self.successors[0]))]
        while stack:
            n, rest = stack[-1]
            for m in rest:
                if state.get(m) == 1:
                    self.back[m].append(n)
                elif m not in state:
                    state[m] = 1
                    stack.append((m, iter(self.successors[m])))
                    break
            else:
                state[n] = 2
                self.order.insert(0, n)
                stack.pop()

    def loops(self):
        """Header, and the blocks of its loop."""
        before = collections.defaultdict(list)
        for n in self.order:
            for m in self.successors[n]:
                before[m].append(n)
        for header, ends in self.back.items():
            body, todo = {header}, list(ends)
            while todo:
                n = todo.pop()
                if n not in body:
                    body.add(n)
                    todo += before[n]
            yield header, body

    def paths(self, header, body, caps, first=False):
        """Through a loop once, the loops in it once or never: (loads, stores, exponentials), each at most its cap, ->
        the fewest instructions of a path that has so many. first: of a path of the first warp."""
        much = 1 << 20 if first else 0
        at, done = {header: {(0, 0, 0): 0}}, {}
        for n in self.order:
            if n not in at or n not in body:
                continue
            states, counts = {}, self.blocks[n]
            for key, cost in at.pop(n).items():
                key = tuple(min(k + c, cap) for k, c, cap in zip(key, counts, caps))
                states[key] = min(states.get(key, 1 << 30), cost + counts[3] - much * counts[4])
            for m in self.successors[n]:
                if n in self.back.get(m, ()):
                    into = done if m == header else {}
                else:
                    into = at.setdefault(m, {}) if m in body else {}
                for key, cost in states.items():
                    into[key] = min(into.get(key, cost), cost)
        return {key: cost % (1 << 20) for key, cost in done.items()}


def instructions(code, case):
    """For a logit, of the scan and of the results; NaN where there is no such loop. ONE_BLOCK: all of them, and 0."""
    size, width = SIZES[case.dtype], min(16, case.vector * SIZES[case.dtype])
    read = size + (max(4, size) if case.options == "all" else 0)  # with its class's weight
    element = width if case.divides else size
    scan, results = [], []
    if case.one_block:
        work, warps = case.block * case.vector, -(-case.group // 32)
        whole = (work * read // element, work * size // element, work)
        graph = Graph(code, element)
        for header, body in graph.loops():
            others, first = (graph.paths(header, body, whole, is_first).get(whole) for is_first in (False, True))
            if others is not None:
                scan.append((others + (first - others) / warps) / work)
                results.append(0)
        return min(scan, default=float("nan")), min(results, default=float("nan"))
    for bytes_each in {element, width}:  # where the vector does not divide, single elements are read, vectors written
        for is_scan in (False, True):  # of a scan nothing is stored
            graph = Graph(code, bytes_each, is_scan)
            for header, body in graph.loops():
                for (loads, stores, exps), cost in graph.paths(header, body, (64, 64, 64)).items():
                    scanned, written = loads * bytes_each // read, stores * bytes_each // size
                    if is_scan and scanned and not stores and exps >= min(scanned, 64):
                        scan.append(cost / scanned)
                    elif not is_scan and written and exps >= min(written, 64):
                        results.append(cost / written)
    return min(scan, default=float("nan")), min(results, default=float("nan"))


# ---- Compilers ----------------------------------------------------------------------------------


class Failure(Exception):
    pass


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise Failure("%s: %s" % (" ".join(command), done.stdout.strip()))
    return done.stdout


def compile_program(target, program, folder):
    """Kernel -> registers, private bytes, spills, local bytes (None without ptxas), instructions."""
    file, registers, options = program
    nvidia = target.startswith("sm_")
    out = os.path.join(folder, "%s-%d" % (target, abs(hash(program))))
    # clang 15 knows sm_86 at most; ptxas compiles for the later ones what it made for sm_80.
    old = target if not nvidia or int(target[3:]) < 80 else "sm_80"
    where = ["-target", "nvptx64--", "-Xclang", "-target-cpu", "-Xclang", old] if nvidia else [
        "-target", "amdgcn-amd-amdhsa", "-mcpu=" + target, "-nogpulib"]
    run(CLANG, "-x", "cl", "-cl-std=CL1.2", "-O3", "-Wno-linker-warnings", "-Wno-pass-failed", *where, "-Xclang",
        "-finclude-default-header", "-Xclang", "-mlink-builtin-bitcode", "-Xclang", LIBRARIES[nvidia],
        *options.split(), "-S", "-o", out, os.path.join(PROGRAMS, file))
    with open(out, encoding="utf-8") as source:
        text = source.read()
    if not nvidia:
        return read_amd_facts(text)
    code, facts = read_ptx(text), {}
    if PTXAS:
        # NVIDIA's OpenCL fits registers to the work-group that a kernel requires; clang does not pass that on.
        if "GROUP_IS_HINT" not in options:
            group = re.search(r"-DWG_SIZE=(\d+)", options)[1]
            text = re.sub(r"(\.entry (?:%s)\([^)]*\))" % "|".join(KERNELS), r"\1 .reqntid " + group, text)
        with open(out, "w", encoding="utf-8") as source:
            source.write(text)
        cap = ["-maxrregcount", str(registers)] if registers else []
        said = run(PTXAS, "-v", "-arch", target, *cap, "-o", out + ".cubin", out)
        for part in said.split("Compiling entry function '")[1:]:
            used = re.search(r"(\d+) bytes stack.* (\d+) bytes spill s.* (\d+) bytes spill(?s:.*)Used (\d+)", part)
            private, stores, loads, used = map(int, used.groups())
            local = re.search(r"(\d+) bytes smem", part)
            facts[part.split("'")[0]] = (used, private, stores + loads, int(local[1]) if local else 0)
        if NVDISASM:
            code = read_sass(run(NVDISASM, "-c", out + ".cubin"))
    return {name: (*facts.get(name, [None] * 4), code[name]) for name in KERNELS if name in code}


def read_amd_facts(text):
    code, facts, found = read_amd(text), {}, {}
    for key, value in re.findall(r"^ +(?:- )?\.(\w+): +(\S+)$", text, re.MULTILINE):
        found[key] = value
        if key == "wavefront_size":  # the last of a kernel
            names = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count", "group_segment_fixed_size")
            facts[found["name"]] = [int(found[k]) for k in names]
    return {name: (*facts[name], code[name]) for name in KERNELS if name in code}


# ---- Cases --------------------------------------------------------------------------------------

Case = collections.namedtuple("Case", "dtype options classes product inner group local program vector block one_block divides lanes")


def device_of(target):
    """What drivers report: AMD's takes groups of 256 at most."""
    if target.startswith("sm_"):
        return ("--vendor", "NVIDIA Corporation", *(["--sm-80"] if int(target[3:]) >= 80 else []))
    return ("--vendor", "Advanced Micro Devices, Inc.", "--name", target, "--max-group", "256",
            "--local", str(UNITS["gfx90a"].local))


def make_case(gpu_options, device, dtype, options, shape, product=""):
    of_shape = ("--product", product) if product else ("--classes", str(shape[0]), "--inner", str(shape[1]))
    said = run(gpu_options, *device, "--dtype", dtype, *of_shape, *(["--all-options"] if options == "all" else []))
    found = dict(word.split("=", 1) for word in shlex.split(said))
    define = dict(re.findall(r"-D(\w+)=(\d+)", found["options"]))
    return Case(dtype, options, shape[0], product, shape[1], int(found["group"]), int(found["local"]),
                (found["file"], int(found["maxregisters"]), found["options"]), int(define["VEC"]),
                int(define.get("BLOCK", 1)), define.get("ONE_BLOCK", "0") == "1", define.get("DIVIDES", "1") == "1",
                define["LANES"] == "1")


def measure(target, case, name, compiled):
    """The figures of a kernel, None where a tool is missing."""
    registers, private, spills, local, code = compiled
    kernel = ("strided" if case.inner > 1 else "lanes") if case.lanes else KERNELS[name]
    kernel += "-" + case.product if case.product else ""
    lines = [i for i in code if not isinstance(i, str)]
    wide, flying = together(code)
    f = {"group": case.group, "registers": registers, "private": private, "spills": spills}
    f.update(loads128=sum(i.load == 16 for i in lines), loads=sum(0 < i.load < 16 for i in lines),
             stores128=sum(i.store == 16 for i in lines), stores=sum(0 < i.store < 16 for i in lines))
    # A block's loads are under way together; results come a vector at a time. Sums of classes that the vector does not divide
    # are read in single elements.
    each = case.vector * SIZES[case.dtype] // 16 if kernel != "lanes" and not case.product else 0
    loads = each * (case.block if kernel in ("rows", "rows-sums") and case.block <= 8 else 1)
    if kernel == "rows-sums" and not case.divides:
        loads = 0
    stores = each if kernel != "rows-sums" else 0
    f["missing128"] = max(0, loads - wide) + max(0, stores - f["stores128"])
    if registers is not None:
        f["local"] = local + (case.local if name == "clxent_cross_entropy" else 0)
        f["file"] = case.group * registers
        unit = UNITS.get(target, NVIDIA if target.startswith("sm_") else UNITS["gfx90a"])
        groups, f["occupancy"] = resident(unit, case.group, registers, f["local"])
        f["in_flight"] = flying * groups * case.group
    if kernel == "rows" and NVDISASM and target.startswith("sm_"):
        f["scan"], f["results"] = instructions(code, case)
        f["instructions"] = f["scan"] + f["results"]
    return kernel, f


COLUMNS = ("group", "registers", "private", "spills", "local", "occupancy", "loads128", "loads", "stores128", "stores",
           "in_flight", "scan", "results", "instructions")


def show(value):
    return "-" if value is None else "%g" % round(value, 1)


def rules(text):
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words:
            yield words


def beyond(value, sign, limit):
    return not (value <= limit if sign == "<=" else value >= limit)


def misses(measured):
    """Where, figure, value, sign and limit of each figure that has one; last whether it misses it."""
    for where, figures in measured:
        for *pattern, figure, sign, limit in rules(LIMITS):
            value = figures.get(figure)
            if value is not None and all(map(fnmatch.fnmatch, where, pattern)):
                value = round(value, 1)
                yield where, figure, value, sign, limit, beyond(value, sign, float(limit))


def judge(measured, whole):
    """Lines on figures that are neither within limits nor known. whole: all cases of the targets were measured."""
    known = [(words, []) for words in rules(KNOWN)]
    for where, figure, value, sign, limit, missed in misses(measured):
        stated = [k for k in known if k[0][5] == figure and all(map(fnmatch.fnmatch, where, k[0][:5]))]
        for words, values in stated:
            values.append(missed)
            if missed and beyond(value, sign, float(words[6])):
                yield "KNOWN has %s: %s has %s" % (" ".join(words), " ".join(where), show(value))
        if missed and not stated:
            yield "%s %s %s  # %s %s" % (" ".join(where), figure, show(value), sign, limit)
    for words, values in known:
        if whole and values and not any(values) and words[7:] != ["ptx"]:
            yield "KNOWN has %s: it is met" % " ".join(words)


def summarize(measured):
    """Lines for KNOWN: all class counts together, both 16-bit dtypes, and a maker's targets where all of them miss."""
    values = collections.defaultdict(list)
    for (target, dtype, options, _, kernel), figure, value, sign, _, missed in misses(measured):
        if missed:
            values[(re.sub(".*16", "*16", dtype), options, "*", kernel, figure, sign)].append((target, value))
    for (*where, sign), found in values.items():
        for maker in ("sm*", "gfx*"):
            of_maker = {w[0] for w, _ in measured if fnmatch.fnmatch(w[0], maker)}
            missing = {target for target, _ in found} & of_maker
            for target in [maker] if missing and missing == of_maker else sorted(missing):
                worst = (max if sign == "<=" else min)(v for t, v in found if fnmatch.fnmatch(t, target))
                yield " ".join((target, *where, show(worst)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the table alone")
    parser.add_argument("--known", action="store_true", help="the table, and what KNOWN would be for these kernels")
    parser.add_argument("--quick", action="store_true", help="one class count of each kind")
    parser.add_argument("--only", default="", help="cases with this text, for instance 'f32 plain 1024'")
    parser.add_argument("--tuning", default="", help="rows as host/tuning.def has them, before the library's own")
    parser.add_argument("--options", default="build/tests/gpu_options", help="the executable")
    parser.add_argument("target", nargs="*", default=TARGETS)
    options = parser.parse_args()
    if any(not re.fullmatch(r"sm_\d+|gfx[0-9a-f]+", target) for target in options.target):
        parser.error("takes targets like sm_80 or gfx90a")
    absent = [] if shutil.which(CLANG) else [CLANG + " (Debian: clang-15)"]
    absent += [name + " (Debian: libclc-15)" for name in LIBRARIES if not os.path.exists(name)]
    if absent:
        print("gpu.py: no", absent[0], file=sys.stderr)
        return 77
    if not (PTXAS and NVDISASM) and "sm_" in "".join(options.target):
        print("gpu.py: no ptxas or no nvdisasm (pip: nvidia-cuda-nvcc, nvidia-cuda-nvdisasm)", file=sys.stderr)
    shapes = QUICK if options.quick else SHAPES
    cases = {}  # of a target
    for target in options.target:
        device = (*device_of(target), "--tuning", options.tuning)
        made = [make_case(options.options, device, *c) for c in itertools.product(SIZES, ("plain", "all"), shapes)]
        made += [make_case(options.options, device, dtype, "plain", (0, 1), product)
                 for dtype, product in itertools.product(("f32", "bf16") if options.quick else SIZES, PRODUCTS)]
        cases[target] = [c for c in made if options.only in ("%s %s %d %s" % c[:4]).strip()]
    measured, status = [], 0
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = {(t, c.program): None for t in options.target for c in cases[t]}
        for key in programs:
            programs[key] = pool.submit(compile_program, *key, folder)
        print("%-8s%-5s%-6s%-7s%-15s%s" % ("target", "dtype", "opt", "class", "kernel", "".join(
            "%*s" % (len(c) + 2, c) for c in COLUMNS)))
        for target in options.target:
            for case in cases[target]:
                try:
                    compiled = programs[target, case.program].result()
                except Failure as failure:
                    print("%s: %s" % (target, failure), file=sys.stderr)
                    status = 1
                    continue
                for name in compiled:
                    kernel, f = measure(target, case, name, compiled[name])
                    where = (target, case.dtype, case.options, str(case.classes), kernel)
                    measured.append((where, f))
                    print("%-8s%-5s%-6s%-7s%-15s%s" % (*where, "".join(
                        "%*s" % (len(c) + 2, show(f.get(c))) for c in COLUMNS)), flush=True)
    if not measured:
        status = 1
    if options.known:
        print(*summarize(measured), sep="\n")
    elif not options.list:
        for line in judge(measured, not options.quick and not options.only):
            print(line)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
