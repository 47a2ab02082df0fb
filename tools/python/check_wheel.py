#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds sdist and wheel of the Python package, checks what they hold, and runs the tests on the wheel as installed.

    tools/python/check_wheel.py             in a virtual environment below TMPDIR, with PyOpenCL and more from PyPI; takes a
                                            C compiler, readelf, and OpenCL with headers and a driver
    tools/python/check_wheel.py FILE...     checks files that are there

The rules are those of auditwheel, but for the OpenCL loader, which is the system's: the wheel has one shared library, which
needs that and the C library alone and exports the C API; its tag holds. The sdist has what the library is built from.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MODULES = sorted(name for name in os.listdir(os.path.join(HERE, "clxent")) if name.endswith((".py", ".typed")))
SYSTEM = {"libOpenCL.so.1", "libc.so.6", "libm.so.6", "libpthread.so.0"}  # the last until glibc 2.34
# PyOpenCL's wheel has a loader of its own beside the system's.
PACKAGES = ["build", "ml_dtypes", "mypy", "pyopencl", "tinygrad"]


def expect(truth, text, *values):
    if not truth:
        sys.exit("check_wheel.py: " + text % values)


def check_library(path, tag):
    """Returns the manylinux tag that holds."""

    def tell(command, *arguments):
        done = subprocess.run([command, *arguments, path], stdout=subprocess.PIPE, universal_newlines=True, check=True)
        return done.stdout

    dynamic = tell("readelf", "-dW")
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    expect(needed <= SYSTEM and "libOpenCL.so.1" in needed, "%s needs %s", path, sorted(needed))
    expect("RPATH" not in dynamic and "RUNPATH" not in dynamic, "%s has a search path of its own", path)
    versions = tell("readelf", "-VW")
    opencl = re.findall(r"OPENCL_([\d.]+)", versions)
    expect(max(opencl, default="1.2") <= "1.2", "%s needs OpenCL %s", path, sorted(set(opencl)))
    exported = re.findall(r" (\w+)$", tell("nm", "-D", "--defined-only"), re.M)
    expect(exported and all(name.startswith("clxent_") for name in exported), "%s exports %s", path, exported)
    glibc = max(tuple(map(int, found.split(".")[:2])) for found in re.findall(r"GLIBC_(\d[\d.]+)", versions))
    told = re.search(r"manylinux_(\d+)_(\d+)_", tag)
    if told:
        expect(glibc <= tuple(map(int, told.groups())), "%s needs glibc %d.%d: not %s", path, *glibc, tag)
    return "manylinux_%d_%d" % glibc


def check_wheel(path):
    name, version, python, abi, tag = os.path.basename(path)[: -len(".whl")].split("-")
    expect((name, python, abi) == ("clxent", "py3", "none"), "%s: its tags are not py3-none", path)
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        files = [name for name in wheel.namelist() if not name.endswith("/")]
        info = "clxent-%s.dist-info/" % version
        extra = [info + name for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")]
        library = "clxent/libclxent.so"
        want = sorted([*("clxent/" + name for name in MODULES), library, *extra])
        expect(sorted(files) == want, "%s has %s: takes %s", path, sorted(files), want)
        expect("\nTag: py3-none-%s\n" % tag in wheel.read(info + "WHEEL").decode(), "%s: another tag inside", path)
        holds = check_library(wheel.extract(library, folder), tag)
    print("%s: %d files, %s holds" % (os.path.basename(path), len(files), holds))


def check_sdist(path):
    with tarfile.open(path) as sdist:
        files = [member.name.split("/", 1)[1] for member in sdist.getmembers() if member.isfile()]
    for folder in ("host", "include", "kernels", "tools/cmake"):
        for place, _, names in os.walk(os.path.join(ROOT, folder)):
            for name in names:
                file = "library/" + os.path.relpath(os.path.join(place, name), ROOT).replace(os.sep, "/")
                expect(file in files, "%s lacks %s", path, file)
    other = [name for name in files if not name.startswith("library/")]
    allowed = {"PKG-INFO", "README.md", "pyproject.toml", "check_wheel.py", "examples/gpt.py"}
    expect(set(other) == allowed | {"clxent/" + name for name in MODULES}, "%s has %s", path, other)
    print("%s: %d files" % (os.path.basename(path), len(files)))


def check(path):
    (check_wheel if path.endswith(".whl") else check_sdist)(path)


def run(*command, **options):
    expect(subprocess.run(command, **options).returncode == 0, "failed: %s", " ".join(command))


def build_and_test():
    with tempfile.TemporaryDirectory(prefix="clxent-wheel-") as folder:
        run(sys.executable, "-m", "venv", os.path.join(folder, "venv"))
        python = os.path.join(folder, "venv", "bin", "python")
        run(python, "-m", "pip", "install", "-q", *PACKAGES)
        files = os.path.join(folder, "files")
        log = os.path.join(folder, "log")
        with open(log, "w+") as stream:  # the wheel is built from the sdist
            command = [python, "-m", "build", "-o", files, HERE]
            if subprocess.run(command, stdout=stream, stderr=stream).returncode != 0:
                stream.seek(0)
                sys.exit("check_wheel.py: failed: %s\n%s" % (" ".join(command), stream.read()))
        paths = sorted(os.path.join(files, name) for name in os.listdir(files))
        expect(len(paths) == 2, "built %s: takes one sdist and one wheel", paths)
        for path in paths:
            check(path)
        run(python, "-m", "pip", "install", "-q", "--no-index", *(path for path in paths if path.endswith(".whl")))
        environment = {
            name: value for name, value in os.environ.items() if name not in ("CLXENT_LIBRARY", "PYTHONPATH")
        }
        environment["CLXENT_TEST_INSTALLED"] = "1"
        run(python, "-B", os.path.join(ROOT, "tests", "test_python.py"), env=environment, cwd=folder)


if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print((__doc__ or "").strip())
    elif len(sys.argv) > 1:
        for argument in sys.argv[1:]:
            check(argument)
    else:
        build_and_test()
