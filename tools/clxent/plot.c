/* SPDX-License-Identifier: MIT
 *
 * plot.c - pictures drawn by gnuplot, and that of the worked example.
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

/* Two bars and a gap of one bar share a class's unit: each bar's middle is a sixth of it away. */
#define BAR "0.1667"
#define LABELS(offset) " with labels offset " offset " font ',12' textcolor rgb '#333333' notitle"

static const char *const style = "set style data histograms\n"
                                 "set style histogram clustered gap 1\n"
                                 "set style fill solid 1 noborder\n"
                                 "set boxwidth 0.92\n"
                                 "set xtics scale 0\n"
                                 "set xrange [-0.6:3.6]\n"
                                 "set key top left reverse Left samplen 1.2 textcolor rgb '#333333'\n"
                                 "set title font ',18' offset 0,0.3\n"
                                 "set xlabel 'class' textcolor rgb '#333333'\n"
                                 "set multiplot layout 1,3 margins 0.055,0.99,0.13,0.87 spacing 0.045,0\n";

void plot_example(FILE *to, const void *data)
{
    const example *e = data;

    for (int row = 0; row < EXAMPLE_ROWS; row++) {
        fprintf(to, "$row%d << EOD\n", row);
        for (int j = 0; j < EXAMPLE_CLASSES; j++)
            fprintf(to, "%d %.9g %d %.9g\n", j, (double)e->softmax[row][j], j == e->targets[row],
                    (double)e->gradient[row][j]);
        fputs("EOD\n", to);
    }
    fputs(style, to);

    fputs("set yrange [0:1.22]\nset ytics 0,0.2,1\n", to);
    for (int row = 0; row < EXAMPLE_ROWS; row++) {
        fprintf(to,
                "set title '%s prediction: loss %.4f'\n"
                "set ylabel '%s' offset 1,0 textcolor rgb '#333333'\n"
                "plot $row%d using 2:xtic(1) title 'prediction (softmax)' lc rgb '#2b6ca3', '' using 3 "
                "title 'label' lc rgb '#f0a830', '' using ($0-" BAR
                "):2:(sprintf('%%.2f',$2))" LABELS("0,0.6") "\n",
                row == 0 ? "Good" : "Bad", (double)e->losses[row], row == 0 ? "probability" : "", row);
    }
    fputs("set title 'Gradient: softmax - label'\nset ylabel ''\nset yrange [-1.2:1.5]\nset ytics -1,0.5,1\n"
          "set border 2\n"
          "set arrow from graph 0,first 0 to graph 1,first 0 nohead lw 1.2 lc rgb '#555555'\n"
          "plot $row0 using 4:xtic(1) title 'good prediction' lc rgb '#4a9d6f', $row1 using 4 title 'bad "
          "prediction' lc rgb '#c8503c'",
          to);
    /* Above positive bars, below negative ones, nothing at bars that cannot be seen. */
    for (int row = 0; row < EXAMPLE_ROWS; row++) {
        const char side = row == 0 ? '-' : '+';
        fprintf(to,
                ", $row%d using ($0%c" BAR "):($4 > 0.005 ? $4 : 1/0):(sprintf('%%.2f',$4))" LABELS("0,0.6"),
                row, side);
        fprintf(to,
                ", $row%d using ($0%c" BAR
                "):($4 < -0.005 ? $4 : 1/0):(sprintf('%%.2f',$4))" LABELS("0,-0.7"),
                row, side);
    }
    putc('\n', to);
    fputs("unset multiplot\n", to);
}

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
    char *resolved;

    if (cli_given.tuning != NULL && npy_one_file(path, cli_given.tuning))
        return cli_fail(path, "--plot and --tuning name the same file: each output takes its own");
    if (!npy_can_write(path, &resolved, &fault)) return cli_fail(path, "%s", fault.text);
    free(resolved);
    return true;
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
