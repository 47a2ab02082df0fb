#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""doxygen.py FILE - the filter of the target `docs`: prints a header of include/clxent with its comments in Doxygen's
notation, and other files as they are.

The headers are written to be read as text. Their form is the notation:

    the first block                             the main page (clxent.h) or the page of the file
    /* ---- Title ---- */                       a module, up to the next one
    a block before a declaration                its documentation, and that of those below it up to a blank line
    a block before several macros               the head of their group; a row "NAME  text" of its table is of ..._NAME
    a comment behind a field or a macro         its documentation

In a block, lines indented by four or more are shown as they are, "word  text" begins an item, which is a parameter where
the function has one of that name, and a line that begins with "Returns" the result. Names of functions, macros, types
and of fields (desc.outputs) become links; Doxygen warns of one that does not exist.
"""

import re
import sys

WORDS = {"args": "clxent_args", "desc": "clxent_desc", "options": "clxent_context_options"}
LINK = re.compile(
    r"(?P<field>\b(?:clxent_)?(?:%s)\.\w+)"
    r"|(?P<name>\bclxent_[a-z0-9_]+\b(?!\*)(?:\(\))?|\bCLXENT_[A-Z0-9_]*[A-Z0-9]\b(?!_?\*))"
    r'|(?P<special>[<>&@\\#%%"])' % "|".join(WORDS)
)


def linked(text, excluded=()):
    """Escaped for Doxygen, with links, but none to the excluded names."""

    def replace(match):
        if match["field"]:
            word, field = match["field"].split(".")
            return '\\ref %s::%s "%s"' % (WORDS[word.replace("clxent_", "")], field, match["field"])
        if match["name"]:
            return match["name"] if match["name"].rstrip("()") in excluded else "#" + match["name"]
        return "\\" + match["special"]

    return LINK.sub(replace, text).replace("e.g. ", "e.g.\\ ")  # which does not end the sentence


def rows(lines):
    """The rows "NAME  text" of the tables in a block, by NAME."""
    found, name = {}, None
    for line in lines:
        row = re.match(r"    +(?:\* )?([A-Z][A-Z_]+)(?:  +(.*))?$", line)
        if row:
            name = row[1]
            found[name] = row[2] or ""
        elif name and line.startswith("     "):
            found[name] += " " + line.strip()
        else:
            name = None
    return found


def body(lines, parameters=(), excluded=()):
    """The lines of a block in Doxygen's notation, one for each."""
    out, column, verbatim = [], 0, False  # column: of the text of an item

    for line in lines:
        indent = len(line) - len(line.lstrip())
        if verbatim and line and indent < 4:
            out[-1] += "@endverbatim"
            verbatim = False
        item = re.match(r"(\S.{0,18}?)  +(?=\S)", line)
        if not line:
            column = 0 if not verbatim else column
            out.append("")
        elif indent >= 4 and not (column and indent >= column):
            # The blank line before it is this one's @verbatim, so that lines keep their numbers.
            if not verbatim:
                out[-1] += "@verbatim"
            verbatim, column = True, 0
            out.append(line)
        elif item:
            column, text = item.end(), linked(line[item.end() :], excluded)
            names = item[1].split(", ")
            if item[1] == "Returns":
                out.append("@return " + text)
            elif all(name in parameters for name in names):
                out.append("@param %s %s" % (",".join(names), text))
            else:
                out.append("<dl><dt><b>%s</b></dt><dd>%s</dd></dl>" % (linked(item[1]), text))
                # Its other lines belong into the <dd>.
        elif line.startswith("Returns "):
            out.append("@return " + linked(line[len("Returns ") :], excluded))
        elif column and out[-1].endswith("</dd></dl>"):
            out[-1] = out[-1][: -len("</dd></dl>")]
            out.append(linked(line.strip(), excluded) + "</dd></dl>")
        else:
            out.append(linked(line.strip(), excluded))
    if verbatim:
        out[-1] += "\n@endverbatim"
    return out


class Filter:
    def __init__(self, path, text):
        self.file = path.rsplit("/", 1)[-1]
        self.lines = text.split("\n")
        self.at = 0
        self.out = []
        self.module = False
        self.struct = None  # whose fields are read

    def block(self):
        """The lines of the comment that stands at self.at, without its marks."""
        lines = []
        while True:
            line = self.lines[self.at].strip()
            self.at += 1
            end = line.endswith("*/")
            if not lines:
                line = line[3:]
            elif line.startswith("*"):
                line = line[2:] if line != "*/" else "/"
            lines.append(re.sub(r"(?:^| )\*?/$", "", line) if end else line)
            if end:
                return lines

    def trailing(self, row=None, suffix=""):
        """Prints the line at self.at with the comment behind it as documentation, or row where it has none."""
        line = self.lines[self.at]
        self.at += 1
        mark = line.find("/*")
        if mark < 0:
            self.out.append(line + (" /**< %s */" % linked(row) if row is not None else ""))
            return
        names = re.findall(r"\*(\w+)", line[:mark])
        text = [line[mark + 2 :]]
        while not text[-1].endswith("*/"):
            text.append(self.lines[self.at])
            self.at += 1
        text[-1] = text[-1][:-2]
        text = [linked(part.strip()) for part in text]
        text[-1] += suffix
        self.out.append("%s/**< %s" % (line[:mark], "\n".join(text)) + " */")
        # Doxygen gives the comment to the last of several declarators.
        if len(names) > 1:
            kind = line.split()[0]
            result, bound = names
            both = ["%s *%s; /**< %s */" % (kind, result, " ".join(text))]
            link = '\\ref %s::%s "%s"' % (self.struct, result, result)
            both.append("%s *%s; /**< %s: the bound of %s */" % (kind, bound, text[0].split(";")[0], link))
            self.out[-1] = " ".join(both)

    def declaration(self, first, row=None):
        """Prints one declaration; the documentation of the declaration called first is its own too. Its name."""
        start = self.lines[self.at]
        if self.struct and re.match(r" +[\w ]+$", start):  # the type alone
            self.out.append("")
            self.at += 1
            self.lines[self.at] = start = start + " " + self.lines[self.at].strip()
        define = re.match(r"#define (\w+)", start)
        struct = re.match(r"typedef struct (\w+) \{", start)
        whole = start
        for line in self.lines[self.at + 1 :]:
            if define or struct or ";" in whole.split("/*")[0]:
                break
            whole += line
        name = (define or struct or re.search(r"(\w+)\)?(?:\(.*\))?(?:,.*)?;", whole.split("/*")[0]) or [0, ""])[1]
        typedef = re.match(r"typedef .*\(\*(\w+)\)", whole)
        function = re.match(r"CLXENT_API .*?(\w+)\(", whole)
        name = typedef[1] if typedef else function[1] if function else name
        if first is not None:
            target = "%s::%s" % (self.struct, first) if self.struct else first
            if "/*" not in start:
                self.lines[self.at] = "/** @copydoc %s */ %s" % (target, start)
                self.out.append(self.lines[self.at])
                self.at += 1
            else:
                self.trailing(suffix=' (see also \\ref %s "%s")' % (target, first))
        elif define and not start.endswith("\\"):
            self.trailing(row)
        elif struct:
            self.out.append(start)
            self.at += 1
            self.struct = struct[1]
            self.read(lambda line: line.startswith("}"))
            self.struct = None
            self.out.append(self.lines[self.at])
            self.at += 1
        else:
            self.trailing()
        more = define and start.endswith("\\") or not define and not struct and ";" not in start.split("/*")[0]
        while more:
            line = self.lines[self.at]
            more = line.endswith("\\") if define else ";" not in line
            self.out.append(line)
            self.at += 1
        return name

    def ends(self):
        """Whether the declarations under a block end at self.at."""
        line = self.lines[self.at].strip()
        return not line or line.startswith(("/*", "}", "#if", "#endif"))

    def documented(self, lines):
        """Prints the block and the declarations under it."""
        macros = []
        for line in self.lines[self.at :]:
            macro = re.match(r"#define (\w+) [^\\]*$", line)
            if not macro and not re.match(r" +\S.*\*/$", line):  # the rest of a comment
                break
            macros += [macro[1]] if macro else []
        whole = " ".join(self.lines[self.at : self.at + 6]).split(";")[0]
        parameters = re.findall(r"(\w+)(?=[,)])", whole) if whole.startswith("CLXENT_API") else []
        own = re.findall(r"\b(\w+)\(", whole)[:1] if parameters else re.findall(r"typedef struct (\w+)", whole)
        text = body(lines, parameters, own)
        if len(macros) > 1:
            common = macros[0]
            while not all(name.startswith(common + "_") for name in macros) and common:
                common = common.rpartition("_")[0]
            title = common + "_*" if common not in ("", "CLXENT") else "%s ... %s" % (macros[0], macros[-1])
            table = rows(lines)
            self.out.append("/** @name %s" % title)
            self.out.append("\n".join(text))
            self.out.append("@{ */")
            while not self.ends():
                name = re.match(r"#define (\w+)", self.lines[self.at])[1]
                fitting = [key for key in table if name.endswith("_" + key)]
                self.declaration(None, table[max(fitting, key=len)] if fitting else None)
            self.out.append("/** @} */")
            return
        self.out.append("/** " + "\n".join(text) + " */")
        first = None
        while not self.ends():
            name = self.declaration(first)
            first = first or name

    def page(self, lines):
        """Prints the block at the beginning of the file."""
        lines = lines[2:]  # the licence
        title = lines[0].partition(" - ")[2]
        if self.file == "clxent.h":
            self.out.append("/** @file\n@brief %s */" % linked(title))
            self.out.append("/** @mainpage %s" % linked(title[0].upper() + title.partition(":")[0][1:]))
        else:
            self.out.append("/** @file\n@brief %s" % linked(title))
        self.out.append("\n".join([""] + body(lines[1:])) + " */")

    def read(self, stop):
        while self.at < len(self.lines) and not stop(self.lines[self.at]):
            line = self.lines[self.at]
            section = re.match(r"/\* ---- (.*?) -+ \*/$", line)
            if self.module and (section or line == "#ifdef __cplusplus"):
                self.out.append("/** @} */")
                self.module = False
            if section:
                identifier = re.sub(r"\W", "_", section[1].lower())
                self.out.append("/** @defgroup %s %s\n@{ */" % (identifier, section[1]))
                self.module = True
                self.at += 1
            elif line.lstrip().startswith("/*"):
                begin = self.at
                lines = self.block()
                if begin == 0:
                    self.page(lines)
                elif self.ends():
                    self.out += self.lines[begin : self.at]  # of what Doxygen does not see
                else:
                    self.documented(lines)
            elif line.startswith(("typedef", "#define", "CLXENT_API")) or self.struct and line.strip():
                self.declaration(None)
            else:
                self.out.append(line)
                self.at += 1


def main():
    with open(sys.argv[1], encoding="utf-8") as stream:
        text = stream.read()
    if not sys.argv[1].endswith(".h"):
        sys.stdout.write(text)
        return
    reader = Filter(sys.argv[1], text)
    reader.read(lambda line: False)
    print("\n".join(reader.out))


main()
