/* SPDX-License-Identifier: MIT
 *
 * demo.c - a worked example on the device: softmax, losses and gradient of two rows, one that the model gets
 * right and one that it gets wrong.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { EXAMPLE_ROWS = 2, EXAMPLE_CLASSES = 4 };
typedef struct example {
    float logits[EXAMPLE_ROWS][EXAMPLE_CLASSES];
    int32_t targets[EXAMPLE_ROWS];
    float softmax[EXAMPLE_ROWS][EXAMPLE_CLASSES], losses[EXAMPLE_ROWS], loss;
    float gradient[EXAMPLE_ROWS][EXAMPLE_CLASSES];
} example;

typedef struct times {
    double seconds, compile_seconds;
} times;

static bool compute(example *e, cli_session *session, times *t)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_host_args args = CLXENT_HOST_ARGS_INIT;
    clxent_status status;

    desc.outputs = CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.target_type = CLXENT_TARGET_I32;
    desc.reduction = CLXENT_REDUCTION_SUM;
    desc.batch = 1;
    desc.seq = EXAMPLE_ROWS;
    desc.classes = EXAMPLE_CLASSES;
    args.logits = (clxent_input){ e->logits, sizeof e->logits };
    args.targets = (clxent_input){ e->targets, sizeof e->targets };
    args.softmax = (clxent_output){ e->softmax, sizeof e->softmax };
    args.losses = (clxent_output){ e->losses, sizeof e->losses };
    args.loss = (clxent_output){ &e->loss, sizeof e->loss };
    args.gradient = (clxent_output){ e->gradient, sizeof e->gradient };

    cli_progress_start("demo");
    status = cli_compile(session, &desc, &t->compile_seconds);
    if (status == CLXENT_OK) {
        const double start = cli_seconds();
        status = clxent_run_host(session->ctx, &desc, &args);
        t->seconds = cli_seconds() - start;
    }
    cli_progress_stop();
    return status == CLXENT_OK || cli_fail_status(session->ctx, session->device.name, status);
}

enum { CELLS = 20 };

/* value in [0, 1] as a bar of CELLS cells, in eighths of a cell where the terminal knows such characters. */
static void print_bar(double value, bool utf8)
{
    static const char *const eighths[] = { "",       "\u258f", "\u258e", "\u258d",
                                           "\u258c", "\u258b", "\u258a", "\u2589" };
    const int whole = (int)floor(value * CELLS);
    const int part = (int)floor((value * CELLS - whole) * 8);
    const bool partial = utf8 && part > 0;

    for (int i = 0; i < whole; i++) fputs(utf8 ? "\u2588" : "#", stdout);
    if (partial) fputs(eighths[part], stdout);
    for (int i = whole + partial; i < CELLS; i++) putchar(' ');
}

/* value in [-1, 1] to both sides of a line, in halves of a cell. The last line of a row needs no padding. */
static void print_signed_bar(double value, bool utf8)
{
    enum { SIDE = CELLS / 2 };
    const int halves = (int)lround(fabs(value) * SIDE * 2);
    const int whole = halves / 2;
    const bool partial = utf8 && halves % 2 != 0;
    const char *block = utf8 ? "\u2588" : "#";

    for (int i = 0; i < SIDE - (value < 0 ? whole + partial : 0); i++) putchar(' ');
    if (value < 0 && partial) fputs("\u2590", stdout);
    for (int i = 0; value < 0 && i < whole; i++) fputs(block, stdout);
    fputs(utf8 ? "\u2502" : "|", stdout);
    for (int i = 0; value >= 0 && i < whole; i++) fputs(block, stdout);
    if (value >= 0 && partial) fputs("\u258c", stdout);
}

static void print_text(const example *e, const cli_device *device, const times *t)
{
    const bool utf8 = cli_terminal_is_utf8();

    printf("device %zu: %s\n", device->index, device->name);
    for (size_t row = 0; row < EXAMPLE_ROWS; row++) {
        printf("\nrow %zu, target %d: loss %.9f = -log %.9f\n", row, (int)e->targets[row],
               (double)e->losses[row], (double)e->softmax[row][e->targets[row]]);
        printf("   class  logit      softmax  %*s      gradient\n", CELLS, "");
        for (int j = 0; j < EXAMPLE_CLASSES; j++) {
            const double p = (double)e->softmax[row][j], g = (double)e->gradient[row][j];
            printf("  %s %4d  %5.0f  %.9f  ", j == e->targets[row] ? "*" : " ", j, (double)e->logits[row][j],
                   p);
            print_bar(p, utf8);
            printf("  %12.9f  ", g);
            print_signed_bar(g, utf8);
            putchar('\n');
        }
    }
    printf("\nsum of the losses %.9f; gradient = softmax - onehot(target)\n", (double)e->loss);
    printf("time %.3f s, after %.3f s of compiling kernels\n", t->seconds, t->compile_seconds);
}

/* [count] of the values, or where columns > 1 [count][columns]. */
static json_t *array(const float *values, size_t count, size_t columns)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, columns > 1 ? array(values + i * columns, columns, 1)
                                                : cli_json_number((double)values[i]));
    return list;
}

static void print_json(const example *e, const cli_device *device, const times *t)
{
    cli_json_print(
        json_pack("{s:o, s:o, s:[i, i], s:o, s:o, s:o, s:o, s:o, s:o}", "device", cli_json_text(device->name),
                  "logits", array(e->logits[0], EXAMPLE_ROWS, EXAMPLE_CLASSES), "targets", e->targets[0],
                  e->targets[1], "softmax", array(e->softmax[0], EXAMPLE_ROWS, EXAMPLE_CLASSES), "losses",
                  array(e->losses, EXAMPLE_ROWS, 1), "loss", cli_json_number((double)e->loss), "gradient",
                  array(e->gradient[0], EXAMPLE_ROWS, EXAMPLE_CLASSES), "seconds",
                  cli_json_number(t->seconds), "compile_seconds", cli_json_number(t->compile_seconds)));
}

/* ---- The picture ---------------------------------------------------------------------------- */

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

static void plot_example(FILE *to, const void *data)
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

int command_demo(int argc, char **argv)
{
    static const cli_flag flags[] = {
        { "plot", "FILE.png",
          "Also draws prediction against label for both rows, and the gradient, with gnuplot (default: no "
          "picture)",
          CLI_PNG, .letter = 'p' },
    };
    static const cli_syntax syntax = {
        "Computes softmax, losses and gradient (of the losses' sum) of logits [[[1, 3, 5, 7], [1, -9, 4, "
        "8]]] against targets [[3, 1]] on the device.",
        flags, 1, NULL
    };
    const char *plot = NULL;
    example e = { .logits = { { 1, 3, 5, 7 }, { 1, -9, 4, 8 } }, .targets = { 3, 1 } };
    times t = { 0, 0 };
    cli_session session = { 0 };
    cli_device device;

    cli_parse(&syntax, argc, argv, &plot);
    const bool good = (plot == NULL || plot_check(plot)) && cli_find_device(&device) &&
                      cli_open(&session, &device, true) && compute(&e, &session, &t) &&
                      (plot == NULL || plot_png(plot, 1800, plot_example, &e));
    if (good && cli_given.json) print_json(&e, &device, &t);
    else if (good) print_text(&e, &device, &t);
    cli_close(&session);
    return good ? CLI_DONE : CLI_FAILED;
}
