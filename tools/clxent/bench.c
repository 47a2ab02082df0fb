/* SPDX-License-Identifier: MIT
 *
 * bench.c - the flags of `clxent bench`; what one shape costs beside moving the same bytes, a picture of that over the
 * class counts, and a loop in which other programs take turns with this one.
 */
#define _XOPEN_SOURCE 700
#include "measure.h"

#include <stdlib.h>
#include <string.h>

enum { OP_LOSS, OP_FUSED, OP_SOFTMAX, OP_LINEAR };
static const char *const ops[] = { "loss", "fused", "softmax" };
static const char *const op_texts[] = { "mean loss", "mean loss + gradient", "softmax" };
static const uint32_t op_outputs[] = { CLXENT_OUTPUT_LOSS, CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT,
                                       CLXENT_OUTPUT_SOFTMAX };

/* ---- Flags ---------------------------------------------------------------------------------- */

#define OFFSET(name) offsetof(bench_options, name)
#define SUITE .mark = OFFSET(of_suite)
#define SINGLE .mark = OFFSET(single)
#define LINEAR .mark = OFFSET(of_linear)
static const cli_flag flags[] = {
    { "op", "OP", "loss, fused (loss and gradient), softmax or linear (see below) (default: fused)",
      CLI_CHOICE, OFFSET(op), .words = "loss|fused|softmax|linear", SINGLE },
    { "rows", "R", "Rows of logits (default: as many as --log2-logits gives; linear: 1024)", CLI_SIZE,
      OFFSET(rows), .least = 1, SINGLE },
    { "classes", "C", "Classes (default: 1024; with --rows as many as --log2-logits gives; linear: 32768)",
      CLI_SIZE, OFFSET(classes), .least = 1, SINGLE },
    { "dtype", "T", "f32, f16, bf16 or f64, of logits and results (default: f32)", CLI_CHOICE, OFFSET(dtype),
      CLXENT_F32, .words = "f32|f16|bf16|f64", SINGLE },
    { "pairs", "N", "Alternated runs of which figures are the median (default: 11)", CLI_SIZE, OFFSET(pairs),
      .least = 1 },
    { "most-pairs", "N",
      "With --suite, takes up to so many pairs where the verdict is unsure, twice as many each time "
      "(default: 8 times --pairs)",
      CLI_SIZE, OFFSET(most_pairs), .least = 1, SUITE },
    { "hand", "SET",
      "With --suite, instructions of the hand-written code of cases 'hand, ...': auto (what the device "
      "compiles for), avx2, avx512 or none (default: auto)",
      CLI_CHOICE, OFFSET(hand), .words = "auto|avx2|avx512|none", SUITE },
    { "log2-logits", "N", "2^N logits where rows and classes do not say otherwise, 16 to 36 (default: 26)",
      CLI_SIZE, OFFSET(log2_logits), .least = 16, .mark = OFFSET(not_of_linear) },
    { "plot", "FILE.png",
      "Also runs class counts from 2 to 262144 and draws time per element and ratio to the copy over them, "
      "with gnuplot; linear: runs --sweep and draws time over workspace (default: no picture)",
      CLI_PNG, OFFSET(plot), SINGLE },
    { "suite", NULL,
      "Runs every case that has a goal (default: one shape). Prints the figure, the range in which it lies, "
      "goal and verdict, and the speed of the memory. Cases 'cold, ...' measure CPU time, of a plan "
      "and its first run over that of a textbook softmax kernel, each in a process of its own without "
      "cached kernels",
      .kind = CLI_SWITCH, OFFSET(suite) },
    { "case", "PART",
      "With --suite, runs only the cases whose name contains PART, such as cold (default: all)",
      .kind = CLI_TEXT, OFFSET(only), SUITE },
    { "loop", NULL,
      "Prints a line once warm, then for each line of standard input the seconds of one run, so that "
      "programs can take turns (default: off)",
      CLI_SWITCH, OFFSET(loop), SINGLE },
    { .help = "With --op linear:" },
    { "features", "F", "Columns of hidden states and weight (default: 1024)", CLI_SIZE, OFFSET(features),
      .least = 1, LINEAR },
    { "backward", NULL, "Also the gradients of hidden states and weight (default: the loss alone)",
      CLI_SWITCH, OFFSET(backward), LINEAR },
    { "workspace-mib", "M", "At most so many MiB of workspace (default: no limit)", CLI_SIZE, OFFSET(limit),
      .least = 1, LINEAR },
    { "ignored", "P", "Part of the rows that is ignored, from 0 to less than 1 (default: 0)", CLI_NUMBER,
      OFFSET(ignored), 0, 1, LINEAR },
    { "sweep", NULL,
      "Times workspace limits of 16 MiB, 32 MiB and so on beside no limit (default: one run, beside "
      "OpenBLAS)",
      CLI_SWITCH, OFFSET(sweep), LINEAR },
    { "blas", "LIB",
      "OpenBLAS's library, also with --suite; what cannot be opened is not compared with (default: "
      "libopenblas.so.0 and its other names)",
      .kind = CLI_PATH, OFFSET(library) },
    { "child", "N", NULL, .kind = CLI_TEXT, OFFSET(child) },
    { "caches", "FOLDER", NULL, .kind = CLI_TEXT, OFFSET(caches) },
};

static void check_flags(void *data, struct argp_state *state)
{
    const bench_options *o = data;

    if (o->pairs > 100000) argp_error(state, "--pairs is '%zu': takes at most 100000", o->pairs);
    if (o->most_pairs != 0 && (o->most_pairs < o->pairs || o->most_pairs > 800000))
        argp_error(state, "--most-pairs is '%zu': takes --pairs, %zu, to 800000", o->most_pairs, o->pairs);
    if (o->of_suite != NULL && !o->suite) argp_error(state, "--%s is for --suite", o->of_suite);
    if (o->log2_logits > 36) argp_error(state, "--log2-logits is '%zu': takes 16 to 36", o->log2_logits);
    if (o->only != NULL && suite_count(o->only) == 0)
        argp_error(state,
                   "--case is '%s': takes a part of a case's name, such as cold, hand, small or linear",
                   o->only);
    if (o->suite && o->single != NULL) argp_error(state, "--%s is not for --suite", o->single);
    if (o->loop && (o->plot != NULL || cli_given.json)) argp_error(state, "--loop prints seconds only");
    if (o->op != OP_LINEAR && o->of_linear != NULL)
        argp_error(state, "--%s is for --op linear", o->of_linear);
    if (o->op == OP_LINEAR && o->not_of_linear != NULL)
        argp_error(state, "--%s is not for --op linear", o->not_of_linear);
    if (o->op != OP_LINEAR && !o->suite && o->library != NULL)
        argp_error(state, "--blas is for --op linear and --suite");
    if (o->library != NULL && (o->loop || o->sweep || o->plot != NULL))
        argp_error(state, "--blas is not for --loop, --sweep and --plot");
    if (o->loop && o->sweep) argp_error(state, "--loop prints seconds only");
    if ((o->sweep || o->plot != NULL) && o->limit != 0)
        argp_error(state, "--workspace-mib is not for --sweep and --plot");
    if (!(o->ignored < 1)) argp_error(state, "--ignored is '%g': takes less than 1", o->ignored);
    if (o->limit > SIZE_MAX >> 20)
        argp_error(state, "--workspace-mib is '%zu': takes at most %zu", o->limit, SIZE_MAX >> 20);
    if (o->op == OP_LINEAR && (o->rows > INT32_MAX || o->features > INT32_MAX || o->classes > INT32_MAX))
        argp_error(state, "--rows, --features and --classes take at most %d", INT32_MAX);
    if (o->rows != 0 && o->classes != 0 && o->rows > SIZE_MAX / 64 / o->classes)
        argp_error(state, "--rows %zu times --classes %zu is too much", o->rows, o->classes);
}

/* ---- One shape ------------------------------------------------------------------------------ */

/* Bytes that a run cannot but move: the logits, and as much for a result of their shape. */
static double traffic(const bench_options *o, size_t rows, size_t classes)
{
    return (o->op == OP_LOSS ? 1.0 : 2.0) * (double)rows * (double)classes * (double)dtype_size(o->dtype);
}

enum { RUN_COPY, RUN_PLAN, RUN_STREAM, RUN_READ, RUNS };
typedef struct figures {
    summary seconds[RUNS]; /* of each run; the last two only where they were asked for */
    summary ratio[RUNS];   /* of the plan to each */
} figures;

static bool time_shape(measure *m, const bench_options *o, size_t rows, size_t classes, size_t runs,
                       figures *f)
{
    const clxent_desc desc = measure_desc(op_outputs[o->op], o->dtype, rows, 0, classes);
    const size_t bytes = rows * classes * dtype_size(o->dtype);
    static const uint32_t moves[] = { MOVE_COPY, 0, MOVE_STREAM, MOVE_READ };

    /* the plan first: it knows what the device cannot do */
    bool good = timed_plan(m, RUN_PLAN, &desc, false, 0, NULL);
    for (size_t i = 0; good && i < runs; i++)
        good = i == RUN_PLAN || timed_move(m, i, moves[i], o->dtype, bytes);
    good = good && measure_times(m, o->pairs);
    for (size_t i = 0; good && i < runs; i++) {
        f->seconds[i] = times_of(m, i);
        f->ratio[i] = ratio_of(m, RUN_PLAN, i);
    }
    measure_cut(m, 0);
    return good;
}

static void print_shape(const bench_options *o, const measure *m, const figures *f)
{
    const double bytes = traffic(o, o->rows, o->classes), mib = 1024.0 * 1024.0;
    const double logits = (double)o->rows * (double)o->classes * (double)dtype_size(o->dtype);
    const summary *t = &f->seconds[RUN_PLAN];

    if (cli_given.json) {
        cli_json_print(json_pack("{s:s, s:I, s:I, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "op", ops[o->op],
                                 "rows", (json_int_t)o->rows, "classes", (json_int_t)o->classes, "dtype",
                                 dtype_names[o->dtype], "device", cli_json_text(m->session.device.name),
                                 "median_s", cli_json_number(t->median), "min_s", cli_json_number(t->least),
                                 "copy_median_s", cli_json_number(f->seconds[RUN_COPY].median),
                                 "ratio_to_copy", cli_json_number(f->ratio[RUN_COPY].median), "gb_per_s",
                                 cli_json_number(bytes / t->median * 1e-9)));
        return;
    }
    printf("device      %zu: %s\n", m->session.device.index, m->session.device.name);
    printf("op          %s\n", op_texts[o->op]);
    printf("logits      %zu x %zu %s, %.4g MiB\n", o->rows, o->classes, dtype_names[o->dtype], logits / mib);
    printf("time        %.4g ms, the best of %zu %.4g ms\n", t->median * 1e3, o->pairs, t->least * 1e3);
    printf("bandwidth   %.3g GB/s\n", bytes / t->median * 1e-9);
    printf("/ copy      %.2f (%.2f - %.2f; copy %.4g ms, %.3g GB/s)\n", f->ratio[RUN_COPY].median,
           f->ratio[RUN_COPY].least, f->ratio[RUN_COPY].most, f->seconds[RUN_COPY].median * 1e3,
           2e-9 * logits / f->seconds[RUN_COPY].median);
    if (m->has_stream) {
        printf("/ nt copy   %.2f (non-temporal stores: %.3g GB/s)\n", f->ratio[RUN_STREAM].median,
               2e-9 * logits / f->seconds[RUN_STREAM].median);
    } else {
        printf("/ nt copy   none: this compiler has no non-temporal stores\n");
    }
    printf("/ read      %.2f (%.3g GB/s)\n", f->ratio[RUN_READ].median,
           1e-9 * logits / f->seconds[RUN_READ].median);
    if (logits < 4 * (double)m->cache_bytes)
        printf("note        the logits are less than 4 times the largest cache, %.4g MiB: it may serve some "
               "of them\n",
               (double)m->cache_bytes / mib);
}

/* ---- Over class counts ---------------------------------------------------------------------- */

static const size_t sweep_classes[] = { 2,     3,     5,     8,      10,     16,     21,    32,
                                        64,    100,   128,   256,    257,    512,    1000,  1023,
                                        1024,  2048,  4096,  5003,   8192,   16384,  32000, 32768,
                                        50257, 50304, 65537, 100003, 131072, 151936, 262144 };
enum { SWEEP = sizeof sweep_classes / sizeof *sweep_classes };

typedef struct sweep {
    const bench_options *o;
    const char *device;
    double plan_ns[SWEEP], copy_ns[SWEEP], ratio[SWEEP]; /* per element */
} sweep;

static void write_sweep(FILE *to, const void *data)
{
    const sweep *s = data;
    double worst = 0;

    for (size_t i = 0; i < SWEEP; i++)
        if (s->ratio[i] > worst) worst = s->ratio[i];
    fputs("$figures << EOD\n", to);
    for (size_t i = 0; i < SWEEP; i++)
        fprintf(to, "%zu %.9g %.9g %.9g\n", sweep_classes[i], s->plan_ns[i], s->copy_ns[i], s->ratio[i]);
    fputs("EOD\n"
          "set key top right textcolor rgb '#333333'\n"
          "set logscale x 2\n"
          "set xrange [1.6:330000]\n"
          "set xtics ('2' 2, '10' 10, '32' 32, '100' 100, '257' 257, '1,023' 1023, '4,096' 4096, '16,384' "
          "16384, '50,257' 50257, '262,144' 262144) rotate by -35\n"
          "set xlabel 'classes' textcolor rgb '#333333'\n",
          to);
    fprintf(
        to,
        "set multiplot layout 1,2 margins 0.06,0.96,0.2,0.86 spacing 0.07,0 title \"%s, %s\" font ',16'\n",
        op_texts[s->o->op], dtype_names[s->o->dtype]);
    /* From 0, unless slow cases would press all others to the ground. */
    fputs(worst < 20 ? "set yrange [0:*]\n" : "set logscale y\n", to);
    fputs("set title 'Time per element'\n"
          "set ylabel 'ns' offset 1,0 textcolor rgb '#333333'\n"
          "plot $figures using 1:2 with linespoints pt 7 ps 0.8 lw 2 lc rgb '#2b6ca3' title 'clxent', '' "
          "using 1:3 with linespoints pt 7 ps 0.5 lw 1.5 lc rgb '#999999' title 'copy'\n"
          "set title 'Ratio to the copy'\n"
          "set ylabel ''\n"
          "set arrow from graph 0,first 1 to graph 1,first 1 nohead lw 1.2 lc rgb '#999999'\n"
          "plot $figures using 1:4 with linespoints pt 7 ps 0.8 lw 2 lc rgb '#c8503c' notitle\n"
          "unset multiplot\n",
          to);
}

static bool run_sweep(measure *m, const bench_options *o, sweep *s)
{
    s->o = o;
    for (size_t i = 0; i < SWEEP; i++) {
        const size_t classes = sweep_classes[i], rows = o->logits > classes ? o->logits / classes : 1;
        const double ns = 1e9 / ((double)rows * (double)classes);
        figures f;

        m->progress_from = (double)(i + 1) / (SWEEP + 1);
        m->progress_to = (double)(i + 2) / (SWEEP + 1);
        if (!time_shape(m, o, rows, classes, 2, &f)) return false;
        s->plan_ns[i] = f.seconds[RUN_PLAN].median * ns;
        s->copy_ns[i] = f.seconds[RUN_COPY].median * ns;
        s->ratio[i] = f.ratio[RUN_COPY].median;
    }
    return true;
}

static void print_sweep(const sweep *s)
{
    printf("\n%10s %12s %12s %8s\n", "classes", "ns/element", "copy", "/ copy");
    for (size_t i = 0; i < SWEEP; i++)
        printf("%10zu %12.4f %12.4f %8.2f\n", sweep_classes[i], s->plan_ns[i], s->copy_ns[i], s->ratio[i]);
}

/* ---- In turns with other programs ----------------------------------------------------------- */

static bool run_loop(measure *m, const bench_options *o)
{
    const clxent_desc desc = o->op == OP_LINEAR
                                 ? linear_desc(o)
                                 : measure_desc(op_outputs[o->op], o->dtype, o->rows, 0, o->classes);
    bool good = timed_plan(m, 0, &desc, false, o->ignored, NULL);

    good = good && measure_times(m, 1); /* warms up */

    if (good) printf("clxent %s on %s\n", clxent_version(), m->session.device.name);
    for (char line[64]; good && fflush(stdout) == 0 && fgets(line, sizeof line, stdin) != NULL;) {
        const double start = cli_seconds();
        good = measure_enqueue(m, 0) && clFinish(m->session.queue) == CL_SUCCESS;
        if (good) printf("%.9f\n", cli_seconds() - start);
    }
    return good;
}

int command_bench(int argc, char **argv)
{
    static const cli_syntax syntax = {
        "Times the loss, the loss with its gradient, or the softmax against kernels that only move the "
        "same bytes: a plain copy of the logits, a copy with non-temporal stores, and a pass that only "
        "reads. All take turns in one process; a ratio is the median over the turns of time / time of the "
        "other run in the same turn.\v"
        "--op linear times the cross-entropy of hidden states and a weight, whose logits nobody holds, "
        "against OpenBLAS: one product of that size (sgemm; f64: dgemm) or, with --backward, three, of "
        "all rows, in as many threads as the device has compute units. They take turns; each waits until "
        "the other's threads sleep. OpenBLAS is opened at run time, on CPUs only; without it its figures "
        "are null. Where the CPU has AVX-512 and OPENBLAS_CORETYPE is not set, clxent sets it to "
        "SkylakeX, as OpenBLAS takes slower kernels on CPUs that it does not know: set it to compare with "
        "others. gflops are of the products of rows that count.\n\n"
        "--suite prints beside each median the range in which it lies: the median of all that could be "
        "measured is outside with a chance of at most 5 %, whatever the distribution. A goal is met where "
        "all "
        "of the range is at most the goal, missed where none of it is. Where the goal lies within, more "
        "pairs "
        "are taken, up to --most-pairs (cold cases: 7 to 14); the verdict is unsure where it still does. "
        "Fewer than 6 pairs have no range.\n\n"
        "With --suite, --json prints one object a line for each case: case, figure, unit, goal (null: "
        "none), verdict (met, missed, unsure, none, unsupported, not measured, failed), low and high (of the "
        "range), pairs (or single values that the figure is the median of), nt_ratio (the same run against "
        "the copy with non-temporal stores), seconds, "
        "reference_seconds, reference_gb_per_s, note, device; null where a case has no such figure. The "
        "exit status tells whether the work was done, not whether goals were met.",
        flags, sizeof flags / sizeof *flags, check_flags
    };
    blas peer = { 0 };
    bench_options o = { .op = OP_FUSED, .dtype = CLXENT_F32, .pairs = 11, .log2_logits = 26, .blas = &peer };
    sweep s;
    measure m;
    figures f;
    bool good;

    cli_parse(&syntax, argc, argv, &o);
    if (o.op == OP_LINEAR) {
        if (o.rows == 0) o.rows = 1024;
        if (o.classes == 0) o.classes = 32768;
        if (o.features == 0) o.features = 1024;
    }
    o.logits = (size_t)1 << o.log2_logits;
    o.limit <<= 20;
    if (o.most_pairs == 0) o.most_pairs = 8 * o.pairs;
    if (o.rows == 0)
        o.rows = o.classes == 0 ? o.logits / 1024 : o.logits > o.classes ? o.logits / o.classes : 1;
    if (o.classes == 0)
        o.classes = o.rows == o.logits / 1024 ? 1024 : o.logits > o.rows ? o.logits / o.rows : 1;
    if (o.caches != NULL) suite_set_caches(o.caches);
    if (o.plot != NULL && !plot_check(o.plot)) return CLI_FAILED;
    if (o.suite ? suite_needs_blas(o.only) : o.op == OP_LINEAR && !o.loop && !o.sweep && o.plot == NULL)
        blas_open(&peer, o.library);
    if (!cli_find_device(&o.device)) return CLI_FAILED;
    if (o.child != NULL) return suite_child(&o.device, strtoul(o.child, NULL, 10));
    if (o.suite) return suite_run(&o);
    if (o.op == OP_LINEAR && !o.loop) return linear_run(&o);

    cli_progress_start("bench");
    good = measure_open(&m, &o.device, o.loop || o.plot == NULL ? 1 : o.logits);
    if (good && o.loop) {
        cli_progress_stop();
        good = run_loop(&m, &o);
    } else if (good) {
        if (o.plot != NULL) m.progress_to = 1.0 / (SWEEP + 1);
        good = time_shape(&m, &o, o.rows, o.classes, RUNS, &f) && (o.plot == NULL || run_sweep(&m, &o, &s));
        cli_progress_stop();
        good = good && (o.plot == NULL || plot_png(o.plot, 1500, write_sweep, &s));
        if (good) print_shape(&o, &m, &f);
        if (good && o.plot != NULL && !cli_given.json) print_sweep(&s);
    }
    cli_progress_stop();
    measure_close(&m);
    return good ? CLI_DONE : CLI_FAILED;
}
