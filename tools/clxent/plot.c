/* SPDX-License-Identifier: MIT
 *
 * plot.c - pictures drawn by gnuplot.
 *
 * gnuplot reads its commands from a pipe and writes the PNG into a temporary file, which is renamed when gnuplot has
 * succeeded.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"
#include "npy.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Whether the file ends as every whole PNG does: gnuplot does not say that it could not write. */
static bool is_whole(int descriptor)
{
    static const unsigned char end[] = { 'I', 'E', 'N', 'D', 0xae, 0x42, 0x60, 0x82 };
    unsigned char found[sizeof end];
    const off_t size = lseek(descriptor, 0, SEEK_END);

    return size >= (off_t)sizeof end &&
           pread(descriptor, found, sizeof end, size - (off_t)sizeof end) == (ssize_t)sizeof end &&
           memcmp(found, end, sizeof end) == 0;
}

bool plot_check(const char *path)
{
    npy_fault fault;

    if (cli_given.tuning != NULL && npy_one_file(path, cli_given.tuning))
        return cli_fail(path, "--plot and --tuning name the same file: each output takes its own");
    return npy_can_write(path, NULL, &fault) || cli_fail(path, "%s", fault.text);
}

bool plot_png(const char *path, int width, void (*script)(FILE *to, const void *data), const void *data)
{
    const struct sigaction ignore = { .sa_handler = SIG_IGN };
    struct sigaction before;
    char *resolved, command[64];
    npy_fault fault = { "" };
    const int descriptor = npy_temporary(path, &resolved, &fault);
    FILE *to;
    int status = -1;
    bool good = false;

    if (descriptor < 0) return cli_fail(path, "%s", fault.text);
    snprintf(command, sizeof command, "exec gnuplot >/proc/$PPID/fd/%d 2>/dev/null", descriptor);
    sigaction(SIGPIPE, &ignore, &before); /* the exit status of a gnuplot that ends early is reported below */
    to = popen(command, "w");
    if (to != NULL) {
        setvbuf(to, NULL, _IONBF, 0); /* pclose() returns no exit status where its last write fails */
        fprintf(to,
                "set terminal pngcairo size %d,620 font 'DejaVu Sans,%d' background '#ffffff'\n"
                "set encoding utf8\n"
                "set border 3 lw 1.2 lc rgb '#555555'\n"
                "set tics nomirror out scale 0.5 textcolor rgb '#333333'\n"
                "set grid ytics lt 1 lw 0.8 lc rgb '#dddddd'\n",
                width, width < 1800 ? 14 : 15);
        script(to, data);
        status = pclose(to);
    }
    sigaction(SIGPIPE, &before, NULL);
    if (status == -1) cli_fail("gnuplot", "cannot be run: %s", strerror(errno));
    else if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        cli_fail("gnuplot", "not found: --plot needs it (Debian: gnuplot-nox)");
    else if (status != 0)
        cli_fail("gnuplot", "failed with status %d: --plot needs its pngcairo terminal",
                 WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    else if (!is_whole(descriptor))
        cli_fail(path, "gnuplot wrote no whole picture: is there room on the device?");
    else good = npy_temporary_keep(descriptor, resolved, &fault) || cli_fail(path, "%s", fault.text);
    if (!good) npy_temporary_drop(descriptor);
    free(resolved);
    return good;
}
