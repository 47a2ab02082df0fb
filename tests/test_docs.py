#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What is written for users: the manual that Doxygen makes of the headers, the manual page, README.md. What they show is
run or compared here; Python code in test_python.py. Of each command in README.md and tools/python/README.md, Commands knows
what runs it, or why nothing does.

CLXENT_DOXYGEN and CLXENT_DOXYFILE: Doxygen and its file for the target `docs`; without them the manual is left out.
CLXENT_BUILD_FOLDER: the build, with clxent.1."""

import html
import os
import re
import shutil
import subprocess
import unittest

from cli import ROOT, Case

DOXYGEN, DOXYFILE = os.environ.get("CLXENT_DOXYGEN"), os.environ.get("CLXENT_DOXYFILE")
BUILD = os.environ["CLXENT_BUILD_FOLDER"]
HEADERS = ("clxent.h", "reference.h")
SUBCOMMANDS = "info demo sample eval verify bench tune".split()
GPL = "/usr/share/common-licenses/GPL-3"


def text_of(*parts):
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as stream:
        return stream.read()


def run(*command, **kwargs):
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=7000, **kwargs
    )
    return result.returncode, result.stdout


# ---- The manual -------------------------------------------------------------------------------


@unittest.skipUnless(DOXYFILE, "no Doxygen")
class Manual(Case):
    def setUp(self):
        super().setUp()
        shutil.copytree(os.path.join(ROOT, "include"), self.path("include"))

    def edit(self, old, new):
        """Replaces the one place of clxent.h that the pattern old fits."""
        path = self.path("include/clxent/clxent.h")
        with open(path, encoding="utf-8") as stream:
            text, count = re.subn(old, new, stream.read())
        self.assertEqual(count, 1, old)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)

    def make(self):
        """The target `docs` for the headers in the test's folder: status and output."""
        with open(DOXYFILE, encoding="utf-8") as stream:
            settings = stream.read()
        settings += "OUTPUT_DIRECTORY = %s\n" % self.dir
        settings += "STRIP_FROM_PATH = %s\nSTRIP_FROM_INC_PATH = %s\n" % (2 * (self.path("include"),))
        self.assertEqual(settings.count("include/clxent "), 1)
        settings = settings.replace("include/clxent ", self.path("include/clxent") + " ")
        return run(DOXYGEN, "-", input=settings, cwd=ROOT)

    def page(self, name):
        """The text of a page, without tags and with single spaces."""
        with open(self.path("html/" + name), encoding="utf-8") as stream:
            text = re.sub(r"<(script|style).*?</\1>", "", stream.read(), flags=re.S)
        text = re.sub(r"</?(?:p|br|div|tr|td|th|dt|dd|dl|h\d|table|li)\b[^>]*>", " ", text)
        return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())

    def test_nothing_is_missing(self):
        self.assertEqual(self.make(), (0, ""))
        pages = [self.page(name) for name in os.listdir(self.path("html")) if name.endswith(".html")]
        # The text of a header is a page too.
        whole = "\n".join(page for page in pages if "Go to the documentation of this file" not in page)
        for header in HEADERS:
            text = text_of("include", "clxent", header)
            names = re.findall(r"CLXENT_API [^;(]*?\b(clxent_\w+)\(", text)
            self.assertGreater(len(names), 5)
            for name in names:
                self.assertTrue(name + "()" in whole, name)
            for name in re.findall(r"#define (CLXENT_\w+) ", text) + re.findall(r"typedef struct (\w+) \{", text):
                self.assertTrue(name in whole, name)

        # Each line of a comment, in words: but for those on what Doxygen does not see.
        for header in HEADERS:
            text = text_of("include", "clxent", header)
            lines = 0
            for comment, follows in re.findall(r"/\*(.*?)\*/[ \t]*\n?(#if)?", text, flags=re.S):
                if follows and "SPDX" not in comment or "----" in comment:
                    continue
                for line in comment.replace("SPDX-License-Identifier: MIT", "").split("\n"):
                    line = re.sub(r"^ *\* ?", "", line, count=1)
                    line = re.sub(r"^(?:clxent|reference)\.h - |^\S.{0,18}?  +(?=\S)|^Returns ", "", line)
                    words = " ".join(line.split())
                    if words:
                        lines += 1
                        self.assertTrue(words in whole, words)
            self.assertGreater(lines, 60)

    def test_what_is_missing_is_an_error(self):
        """A function without documentation, and a name that does not exist."""
        self.edit(r"/\* [^/]* \*/\n(?=CLXENT_API const char \*clxent_version)", "")
        self.edit(r"(?<=clxent_load_fn load; /\* )see clxent_load_fn", "see clxent_lode()")
        status, output = self.make()
        self.assertNotEqual(status, 0)
        self.assertRegex(output, r"clxent_version\b.* is not documented")
        self.assertIn("clxent_lode", output)


# ---- The manual page --------------------------------------------------------------------------


class ManPage(Case):
    def setUp(self):
        super().setUp()
        self.file = os.path.join(BUILD, "clxent.1")
        with open(self.file, encoding="utf-8") as stream:
            text = stream.read()
        for escaped, plain in (("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\(ha", "^"), ("\\(ti", "~")):
            text = text.replace(escaped, plain)
        text = text.replace("\\&", "").replace("\\e", "\\")
        self.sections = dict(part.split("\n", 1) for part in text.split("\n.SH ")[1:])

    def test_help_of_every_subcommand(self):
        for name in SUBCOMMANDS:
            text = self.succeed(name, "--help")
            page = self.sections["CLXENT " + name.upper()] + "\n" + self.sections["OPTIONS"]
            flags = re.findall(r"(?m)^(?:      |  (-\S, ))(--[a-z0-9-]+(?:=\S+)?)", text)
            self.assertGreater(len(flags), 6)
            for letter, flag in flags:
                self.assertTrue("\n.B %s%s\n" % (letter, flag) in page, flag)
            text = re.sub(r"(?m)^ Everywhere:$|^Usage:|^Mandatory(.|\n)*?short options\.$", "", text)
            self.assertEqual(set(text.split()) - set(page.split()), set(), name)
            self.assertIn("\n.B %s\n" % name, self.sections["DESCRIPTION"])
        for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"):
            self.assertIn(section, self.sections)

    def test_is_installed_with_the_program(self):
        status, output = run("cmake", "--install", BUILD, "--prefix", self.dir)
        self.assertEqual(status, 0, output)
        found = [os.path.join(folder, name) for folder, _, names in os.walk(self.dir) for name in names]
        page = [path for path in found if path.endswith("/man1/clxent.1")]
        self.assertEqual(len(page), 1)
        with open(self.file, "rb") as made, open(page[0], "rb") as installed:
            self.assertEqual(installed.read(), made.read())
        self.assertTrue(any(path.endswith("/bin/clxent") for path in found))

    def test_examples_are_those_of_readme(self):
        readme = text_of("README.md")
        lines = [line for line in self.sections["EXAMPLES"].split("\n") if line and line[0] != "."]
        self.assertEqual(sum(line.startswith("clxent ") for line in lines), 2)
        for line in lines:
            if not line.endswith(":"):
                self.assertIn(line + "\n", readme)

    def test_environment_is_what_the_program_reads(self):
        folder = os.path.join(ROOT, "tools", "clxent")
        source = "".join(text_of("tools", "clxent", name) for name in os.listdir(folder) if name.endswith(".c"))
        read = set(re.findall(r'getenv\("(\w+)"\)', source))
        read |= set(re.findall(r'\{ "[^"]*", "([A-Z_]+)", "\w+" \}', text_of("tools", "clxent", "store.c")))
        read |= set(re.search(r"names\[\] = \{ (.*LANG.*) \};", source)[1].replace('"', "").split(", "))
        headlines = " ".join(re.findall(r"(?m)^\.TP\n\.BR? (.*)$", self.sections["ENVIRONMENT"]))
        named = set(re.findall(r"[A-Z]+(?:_[A-Z]+)*", headlines))
        self.assertEqual(named, read)

    def test_formatters_have_no_complaint(self):
        tools = [
            command
            for command in (
                ["mandoc", "-T", "lint", "-W", "warning", self.file],
                ["groff", "-ww", "-man", "-Tutf8", self.file],
                ["man", "--warnings", "-l", self.file],
            )
            if shutil.which(command[0])
        ]
        if not tools:
            self.skipTest("no mandoc, groff or man")
        for command in tools:
            environment = {**os.environ, "LC_ALL": "C.UTF-8", "PAGER": "cat", "MANPAGER": "cat", "MANWIDTH": "100"}
            result = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment
            )
            complaints = result.stdout if command[0] == "mandoc" else result.stderr
            # A date would differ from build to build.
            complaints = [line for line in complaints.splitlines() if "missing date" not in line]
            self.assertEqual(complaints, [], command)
            if command[0] != "mandoc":
                self.assertEqual(result.returncode, 0)
                self.assertTrue("label-smoothing" in re.sub(".\b", "", result.stdout))


# ---- Commands of the READMEs ------------------------------------------------------------------

INSTALL = (
    "tools/demo.sh",
    'cmake --preset release && cmake --build build && cmake --install build --prefix "$HOME/clxent"',
    "cmake --preset library && cmake --build build-library",
)
CLI, DOCS, PACKAGE = "tests/test_cli.py", "tests/test_docs.py", "tests/package/run.cmake"
WHEEL = "tools/python/check_wheel.py"
REAL_DATA = (DOCS, "self.succeed(*command.split(), cwd=self.dir)")

# The file that runs a command, and the code there that does.
RUN_BY = {
    **{command: (DOCS, "for command in INSTALL:") for command in INSTALL},
    "tools/test.sh": (".ci/run", "tools/test.sh 2>&1"),
    "tools/windows.sh": (".ci/run", "tools/windows.sh"),
    "cc app.c $(pkg-config --cflags --libs clxent) -o app": (PACKAGE, "&& ${command}"),
    'cc app.c $(pkg-config --cflags --libs clxent) -Wl,-rpath,"$HOME/clxent/lib" -o app': (PACKAGE, "&& ${command}"),
    "build/clxent demo": (DOCS, 'self.succeed("demo", env='),
    "build/clxent demo --plot demo.png": (CLI, 'self.succeed("demo", "--plot", self.path("demo.png"))'),
    "clxent info": (CLI, 'self.succeed("info")'),
    "clxent demo [--plot FILE.png]": (CLI, 'self.succeed("demo", "--plot"'),
    "clxent sample ...": REAL_DATA,
    "clxent eval ...": REAL_DATA,
    "clxent verify [--seconds T]": (CLI, 'self.run_json("--seconds", seconds'),
    "clxent bench [--suite]": (CLI, 'self.succeed("bench", "--suite"'),
    "clxent bench --suite": (CLI, 'self.succeed("bench", "--suite"'),
    "clxent tune": (CLI, 'clxent("tune", "--quick"'),
    "clxent sample --text /usr/share/common-licenses/GPL-3 --batch 64 --seq 512 --out data": REAL_DATA,
    "clxent eval --logits data/logits.npy --targets data/targets.npy --grad-out gradient.npy": REAL_DATA,
    "clxent eval --help": (DOCS, 'self.succeed("eval", "--help")'),
    "man clxent": (DOCS, '["man", "--warnings", "-l", self.file]'),
    "clxent verify --case 'outputs=gradient;classes=8;softcap=30'": (DOCS, 'self.succeed("verify", "--case", case[1])'),
    "pip install ./tools/python": (WHEEL, 'shown("pip install ")'),
    "python -m build -o dist tools/python": (WHEEL, 'shown("python -m build ")'),
    "auditwheel repair --exclude libOpenCL.so.1 dist/clxent-*-linux_x86_64.whl": (WHEEL, 'shown("auditwheel repair ")'),
    "tools/python/check_wheel.py": (".ci/run", "tools/python/check_wheel.py"),
}
NOT_RUN = {
    "pip install pyopencl[pocl]": "names where a driver comes from that is not ours",
}
PROGRAM = re.compile(r"(?:build/)?clxent|cmake|cc|pip|python|auditwheel|man|tools/\S+\.(?:sh|py)")
# How indented lines begin that are formulas, CMake, or part of a list.
OTHER = set("softmax loss gradient a_j dx_j + find_package(clxent target_link_libraries(app".split())


class Commands(Case):
    def test_every_command_is_run_or_has_a_reason(self):
        commands, others = set(), set()
        for path in ("README.md", "tools/python/README.md"):
            text = re.sub(r"(?ms)^```.*?^```$", "", text_of(path))
            for line in re.findall(r"(?m)^    +(\S.*)$", text):
                command = re.split("  +", line)[0]  # what it does comes after
                (commands if PROGRAM.fullmatch(line.split()[0]) else others).add(command)
            for code in re.findall(r"`([^`]+)`", re.sub(r"(?m)^    .*$", "", text)):
                words = code.split()
                if PROGRAM.fullmatch(words[0]) and (len(words) > 1 or "/" in code and "." in code):
                    commands.add(" ".join(words))
        self.assertEqual({line.split()[0] for line in others}, OTHER)
        self.assertEqual(sorted(commands), sorted([*RUN_BY, *NOT_RUN]))
        for command, (path, code) in RUN_BY.items():
            text = re.sub(r"(?ms)^RUN_BY = .*?^}$", "", text_of(*path.split("/")))  # this list is no evidence
            self.assertTrue(code in text, "%s: %s has no %s" % (command, path, code))

    def test_installation(self):
        """In a copy of the checkout, with all that demo.sh would install already there. What is built there stays, as in the
        tests of the package."""
        copy = os.path.join(BUILD, "tests", "installation")
        for name in ("include", "host", "kernels", "tools", "home"):
            shutil.rmtree(os.path.join(copy, name), ignore_errors=True)
        for name in ("include", "host", "kernels", "tools"):
            shutil.copytree(os.path.join(ROOT, name), os.path.join(copy, name))
        for name in ("CMakeLists.txt", "CMakePresets.json", "LICENSE", "README.md"):
            shutil.copy2(os.path.join(ROOT, name), copy)
        # What is installed counts here, not its speed: half of the time.
        compiler = self.raw(os.path.join(copy, "cc"), b'#!/bin/sh\nexec %s "$@" -O0\n' % os.environ.get("CC", "cc").encode())
        os.chmod(compiler, 0o755)
        home = os.path.join(copy, "home")
        environment = {**os.environ, "HOME": home, "CC": compiler}
        for command in INSTALL:
            status, output = run("sh", "-ec", command, cwd=copy, env=environment)
            self.assertEqual(status, 0, output)
            if command == INSTALL[0]:
                self.assertIn("they agree", output)
        self.assertEqual(run(os.path.join(home, "clxent/bin/clxent"), "demo")[0], 0)
        self.assertTrue(os.path.exists(os.path.join(copy, "build-library/libclxent.a")))


# ---- README.md --------------------------------------------------------------------------------


class Readme(Case):
    def setUp(self):
        super().setUp()
        self.readme = text_of("README.md")

    def section(self, title):
        return self.readme.split("\n## %s\n" % title)[1].split("\n## ")[0]

    def block(self, section, language=""):
        return self.section(section).split("\n```%s\n" % language)[1].split("```")[0]

    def found(self, pattern, text):
        self.assertIsNotNone(re.search(pattern, text), pattern)

    def same(self, got, want):
        """Words alike, numbers with a fraction within what devices may differ by."""
        got, want = got.split(), want.split()
        self.assertEqual(len(got), len(want), (got, want))
        for a, b in zip(got, want):
            if re.fullmatch(r"-?\d+\.\d+", b):
                self.assertAlmostEqual(float(a), float(b), delta=1e-6 * abs(float(b)) + 1e-9)
            else:
                self.assertEqual(a, b)

    def test_program(self):
        """The statements of README's program stand in quickstart.c, in the same order."""

        def bare(text):
            return [line for line in re.sub(r"/\*.*?\*/", "", text, flags=re.S).split() if line]

        program, rest = bare(self.block("The library", "c")), bare(text_of("tools", "examples", "quickstart.c"))
        self.assertGreater(len(program), 40)
        for word in program:
            self.assertIn(word, rest)
            rest = rest[rest.index(word) + 1 :]

    def test_demo(self):
        printed = self.succeed("demo", env={**os.environ, "LC_ALL": "C.UTF-8"})
        want = self.block("First result")
        self.assertIn(want.split("\n")[1], printed)
        start = printed.index("row 0")
        self.same(printed[start : printed.index("row 1")], want)

    @unittest.skipUnless(os.path.exists(GPL), "no " + GPL)
    def test_real_data(self):
        commands = re.findall(r"(?m)^    clxent ((?:sample|eval) --.*)$", self.section("The command line"))
        self.assertEqual(len(commands), 2)
        for command in commands:
            printed = self.succeed(*command.split(), cwd=self.dir)
        want = self.block("The command line")
        names = [line.split()[0] for line in want.splitlines()]
        self.assertIn("loss", names)
        lines = [line for line in printed.splitlines() if line.split()[0] in names]
        self.same("\n".join(lines), want)
        self.assertGreater(os.path.getsize(self.path("gradient.npy")), 32768 * 256 * 4)

    def test_commands(self):
        """Subcommands and flags in README exist."""
        listed = re.findall(r"(?m)^    clxent ([a-z]+) (.*)$", self.section("The command line"))
        self.assertEqual(sorted({name for name, _ in listed}), sorted(SUBCOMMANDS))
        listed += re.findall(r"`(?:build/)?clxent ([a-z]+)( [^`]*)?`", self.readme)
        self.assertGreater(len(listed), 12)
        for name, rest in listed:
            text = self.succeed(name, "--help")
            for flag in re.findall(r"--[a-z0-9-]+", rest):
                self.found(r"\s%s\b" % flag, text)
        options, text = self.section("What it computes"), self.succeed("eval", "--help")
        flags = re.findall(r"`(--[a-z-]+)`", options)
        self.assertGreater(len(flags), 15)
        for flag in flags:
            self.found(r"\s%s\b" % flag, text)
        case = re.search(r"`clxent verify --case '(.*)'`", self.readme)
        self.assertRegex(self.succeed("verify", "--case", case[1]), r"(?m)^cases +1: 1 passed")

    def test_names(self):
        """Functions, fields, options of CMake, presets and files that README names exist."""
        headers = "".join(text_of("include", "clxent", header) for header in HEADERS)
        names = set(re.findall(r"\b(clxent_[a-z_]+)\(\)|\b(CLXENT_[A-Z0-9_]+[A-Z0-9])\b", self.readme))
        self.assertGreater(len(names), 8)
        for name in (a or b for a, b in names):
            self.found(r"\b%s\b" % name, headers + text_of("CMakeLists.txt"))
        table = self.section("What it computes").split("| option ")[1].split("\n\n")[0]
        for cell in re.findall(r"(?m)^\| (.*?)(?: \(| \|)", table):
            for field in re.findall(r"`(?:args\.)?(\w+)`", cell):
                self.found(r"\b%s;" % field, headers)
        version = ".".join(re.findall(r"#define CLXENT_VERSION_\w+ (\d+)", headers))
        self.found(r"project\(clxent VERSION %s " % version, text_of("CMakeLists.txt"))
        for option in re.findall(r"-D([A-Z_]+)=", self.readme):
            self.found(r"\boption\(%s " % option, text_of("CMakeLists.txt"))
        for preset in re.findall(r"cmake --preset (\w+)", self.readme):
            self.found('"name": "%s"' % preset, text_of("CMakePresets.json"))
        paths = re.findall(r"\b(?:tools|tests|include|host|kernels)/[\w./-]*\w", self.readme)
        self.assertGreater(len(paths), 10)
        for path in paths:
            self.assertTrue(os.path.exists(os.path.join(ROOT, path)), path)
        for name in re.findall(r"(?m)^- `(\w+\.c(?:pp)?)`", self.section("The library")):
            self.assertTrue(os.path.exists(os.path.join(ROOT, "tools/examples", name)), name)
            self.found(name.split(".")[0], text_of("CMakeLists.txt"))


if __name__ == "__main__":
    unittest.main()
