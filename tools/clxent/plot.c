/* SPDX-License-Identifier: MIT
 *
 * plot.c - the picture of the worked example, drawn by gnuplot.
 *
 * gnuplot runs without a shell: its commands come through a pipe and the PNG leaves through its standard
 * output into a temporary file that is renamed when gnuplot has succeeded. posix_spawnp() and not fork():
 * a driver's fork handlers would run in the child.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"
#include "npy.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Two bars and a gap of one bar share a class's unit: each bar's middle is a sixth of it away. */
#define BAR "0.1667"
#define LABELS(offset) " with labels offset " offset " font ',12' textcolor rgb '#333333' notitle"

static const char *const style =
    "set terminal pngcairo size 1800,620 font 'DejaVu Sans,15' background '#ffffff'\n"
    "set encoding utf8\n"
    "set style data histograms\n"
    "set style histogram clustered gap 1\n"
    "set style fill solid 1 noborder\n"
    "set boxwidth 0.92\n"
    "set border 3 lw 1.2 lc rgb '#555555'\n"
    "set tics nomirror out scale 0.5 textcolor rgb '#333333'\n"
    "set xtics scale 0\n"
    "set xrange [-0.6:3.6]\n"
    "set grid ytics lt 1 lw 0.8 lc rgb '#dddddd'\n"
    "set key top left reverse Left samplen 1.2 textcolor rgb '#333333'\n"
    "set title font ',18' offset 0,0.3\n"
    "set xlabel 'class' textcolor rgb '#333333'\n"
    "set multiplot layout 1,3 margins 0.055,0.99,0.13,0.87 spacing 0.045,0\n";

static void write_script(FILE *to, const example *e)
{
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
                "set title '%s prediction: loss %.4f'\nset ylabel '%s' offset 1,0 textcolor rgb '#333333'\n"
                "plot $row%d using 2:xtic(1) title 'prediction (softmax)' lc rgb '#2b6ca3', "
                "'' using 3 title 'label' lc rgb '#f0a830', "
                "'' using ($0-" BAR "):2:(sprintf('%%.2f',$2))" LABELS("0,0.6") "\n",
                row == 0 ? "Good" : "Bad", (double)e->losses[row], row == 0 ? "probability" : "", row);
    }
    fputs("set title 'Gradient: softmax - label'\nset ylabel ''\nset yrange [-1.2:1.5]\nset ytics -1,0.5,1\n"
          "set border 2\nset arrow from graph 0,first 0 to graph 1,first 0 nohead lw 1.2 lc rgb '#555555'\n"
          "plot $row0 using 4:xtic(1) title 'good prediction' lc rgb '#4a9d6f', "
          "$row1 using 4 title 'bad prediction' lc rgb '#c8503c'",
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

/* Runs gnuplot on the script with its standard output in descriptor. */
static bool run_gnuplot(const example *e, int descriptor)
{
    static char name[] = "gnuplot";
    char *argv[] = { name, NULL };
    posix_spawn_file_actions_t actions;
    int pipe_ends[2], error, status = 0;
    pid_t child;
    FILE *to;

    if (pipe(pipe_ends) != 0) {
        cli_fail("gnuplot", "%s", strerror(errno));
        return false;
    }
    fcntl(pipe_ends[1], F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_ends[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, descriptor, STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addclose(&actions, pipe_ends[0]);
    error = posix_spawnp(&child, name, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_ends[0]);
    if (error != 0) {
        close(pipe_ends[1]);
        cli_fail("gnuplot", "%s",
                 error == ENOENT ? "not found: --plot needs it (Debian: gnuplot-nox)" : strerror(error));
        return false;
    }

    /* A gnuplot that ends early is told by its exit status. */
    void (*const old)(int) = signal(SIGPIPE, SIG_IGN);
    to = fdopen(pipe_ends[1], "w");
    if (to != NULL) {
        write_script(to, e);
        fclose(to);
    } else {
        close(pipe_ends[1]);
    }
    signal(SIGPIPE, old);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    cli_fail("gnuplot", "failed with status %d: --plot needs its pngcairo terminal",
             WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return false;
}

bool plot_example(const example *e, const char *path)
{
    char *resolved, *temporary;
    npy_fault fault;
    const int descriptor = npy_temporary(path, &resolved, &temporary, &fault);
    bool good;

    if (descriptor < 0) {
        cli_fail(path, "%s", fault.text);
        return false;
    }
    good = run_gnuplot(e, descriptor);
    close(descriptor);
    if (good && !npy_temporary_keep(temporary, resolved, &fault)) {
        cli_fail(path, "%s", fault.text);
        good = false;
    }
    if (!good) npy_temporary_drop(temporary);
    free(resolved);
    free(temporary);
    return good;
}
