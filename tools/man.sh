#!/bin/sh
# SPDX-License-Identifier: MIT
#
# man.sh CLXENT FILE - writes the manual page of the command line to FILE. What the program CLXENT prints as --help becomes
# a section for each subcommand, what README.md runs the examples.
set -eu
clxent=$1 page=$2
readme=$(dirname -- "$0")/../README.md
LC_ALL=C
export LC_ALL
trap 'rm -f "$page.new"' EXIT

# Each paragraph and flag in one line of any length.
help() {
    ARGP_HELP_FMT=rmargin=30000,opt-doc-col=60 "$clxent" "$@" --help
}

# escape: standard input with what roff would not print as it is.
escape() {
    sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/'/\\\\(aq/g" -e 's/`/\\(ga/g' -e 's/\^/\\(ha/g' -e 's/~/\\(ti/g' \
        -e 's/^\./\\\&./'
}

# section own|everywhere: the help of a subcommand on standard input, without or with nothing but the flags that all
# subcommands have.
section() {
    escape | awk -v part="$1" '
        /^Usage: / {
            if (part == "own") print ".B " substr($0, 8)
            next
        }
        /^ Everywhere:$/ { everywhere = 1; next }
        /^Mandatory or optional arguments to long options/ { next }
        NF == 0 || (part == "everywhere") != (everywhere && /^ +\\-/) { next }
        /^ +\\-/ {
            sub(/^ +/, "")
            match($0, /   */) # between flag and text
            printf ".TP\n.B %s\n%s\n", substr($0, 1, RSTART - 1), substr($0, RSTART + RLENGTH)
            next
        }
        {
            sub(/^ /, "") # a headline of flags
            printf ".PP\n%s\n", $0
        }'
}

# The rows "  name  text" of a list on standard input.
list() {
    escape | sed -n 's/^  \([a-z][a-z]*\)  *\(.*\)$/.TP\n.B \1\n\2/p'
}

# The commands with flags of README's section on the command line, and what they print.
examples() {
    escape <"$readme" | awk '
        /^## / { inside = $0 == "## The command line" }
        inside && /^    clxent [a-z]+ \\-\\-/ { commands = commands substr($0, 5) "\n"; next }
        inside && /^\\\(ga\\\(ga\\\(ga$/ { block = !block; next }
        inside && block { output = output $0 "\n" }
        END {
            if (commands == "" || output == "") exit 1
            printf ".PP\n.RS 4\n.nf\n%s.fi\n.RE\n.PP\nThe second prints, among other lines:\n", commands
            printf ".PP\n.RS 4\n.nf\n%s.fi\n.RE\n", output
        }'
}

subcommands=$(help | sed -n 's/^  \([a-z][a-z]*\) .*/\1/p')
[ -n "$subcommands" ]

{
    printf '.\\" Made by tools/man.sh.\n.TH CLXENT 1 "" "%s" "User Commands"\n' "$("$clxent" --version)"
    cat <<'END'
.SH NAME
clxent \- softmax cross\-entropy on any OpenCL device
.SH SYNOPSIS
.B clxent
.I SUBCOMMAND
.RI [ OPTION ...]
.br
.B clxent
.RB [ SUBCOMMAND ]
.B \-\-help
.br
.B clxent \-\-version
.SH DESCRIPTION
.B clxent
computes losses, gradients and statistics of logits in files, checks and times an OpenCL device, and searches the parameters
of its kernels.
.PP
The subcommands:
END
    help | list
    cat <<'END'
.PP
Results go to standard output; messages and progress to standard error.
.SH OPTIONS
These are options of every subcommand.
END
    help info | section everywhere
    for name in $subcommands; do
        printf '.SH CLXENT %s\n' "$(printf %s "$name" | tr '[:lower:]' '[:upper:]')"
        help "$name" | section own
    done
    cat <<'END'
.SH EXIT STATUS
.TP
.B 0
Success.
.TP
.B 1
A fault of a file or of the device, with one line on standard error and no output file;
.BR "clxent verify" :
a case failed.
.TP
.B 2
Wrong usage.
.TP
.BR 130 ", " 143
.B clxent verify
was ended by SIGINT or SIGTERM, and no case had failed.
.SH ENVIRONMENT
.TP
.BR XDG_CACHE_HOME ", " HOME
Where stored files are: see FILES.
.TP
.B TMPDIR
Where temporary files are made (default:
.IR /tmp ).
.TP
.BR LC_ALL ", " LC_CTYPE ", " LANG
.B clxent demo
draws with more than ASCII where these name UTF\-8.
.TP
.BR POCL_KERNEL_CACHE ", " CUDA_CACHE_DISABLE ", " NEO_CACHE_PERSISTENT ", " MESA_SHADER_CACHE_DISABLE
Where one of these has a driver keep no compiled programs,
.B clxent eval
and
.B clxent demo
keep them: see FILES.
.PP
OpenCL's loader and the drivers read others.
.SH FILES
.I ~/.cache
below is
.I $XDG_CACHE_HOME
where that is an absolute path.
.TP
.I ~/.cache/clxent/*.def
Parameters of kernels that
.B clxent tune
found, one file for each device and driver.
.TP
.I ~/.cache/clxent/programs/
Compiled programs of drivers that keep none, at most 64 MiB. Any of them may be deleted.
.SH EXAMPLES
A loss of real data, and its gradient as a file:
END
    examples
    cat <<'END'
.SH SEE ALSO
The library has a manual in its header,
.IR clxent/clxent.h .
END
} >"$page.new"
mv "$page.new" "$page"
