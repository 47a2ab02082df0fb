/* SPDX-License-Identifier: MIT
 *
 * bench_linear.c - what linear cross-entropy costs beside OpenBLAS's products of the same sizes, and over limits of its
 * workspace.
 */
#define _XOPEN_SOURCE 700
#include "measure.h"

#include <math.h>
#include <string.h>

static const double mib = 1024.0 * 1024.0;

clxent_desc linear_desc(const bench_options *o)
{
    const uint32_t gradients = CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT;
    clxent_desc desc = measure_desc(CLXENT_OUTPUT_LOSS | (o->backward ? gradients : 0), o->dtype, o->rows,
                                    o->features, o->classes);
    desc.workspace_limit = o->limit;
    return desc;
}

/* ---- One shape ------------------------------------------------------------------------------ */

enum { RUN_PLAN, RUN_BLAS };

/* One run under one limit of the workspace, in bytes. */
typedef struct figures {
    size_t limit, workspace, peak; /* limit 0: none; workspace 0: the limit is too small for the shape */
    summary seconds, ratio;        /* to OpenBLAS, in a sweep to the run without a limit */
} figures;

static const summary none = { NAN, NAN, NAN, NAN, NAN, 0 };

/* Operations of the products, of so many rows. */
static double operations(const bench_options *o, double rows)
{
    return 2.0 * rows * (double)o->features * (double)o->classes * (o->backward ? 3 : 1);
}

static double counted_rows(const bench_options *o)
{
    return (double)(o->rows - (size_t)((double)o->rows * o->ignored));
}

static figures figures_of(const measure *m, size_t run, size_t limit, size_t under)
{
    return (figures){ limit, clxent_plan_workspace_size(m->runs[run].plan), linear_bytes(m, run),
                      times_of(m, run), under < m->num_runs ? ratio_of(m, run, under) : none };
}

/* What one run and one of a sweep have in common. */
static json_t *to_json(const bench_options *o, const figures *f)
{
    const bool fits = f->workspace != 0;

    return json_pack("{s:s, s:I, s:I, s:I, s:s, s:o, s:s, s:f, s:o, s:o, s:o, s:o, s:o, s:o}", "op", "linear",
                     "rows", (json_int_t)o->rows, "features", (json_int_t)o->features, "classes",
                     (json_int_t)o->classes, "dtype", dtype_names[o->dtype], "device",
                     cli_json_text(o->device.name), "outputs",
                     o->backward ? "loss+hidden_gradient+weight_gradient" : "loss", "ignored", o->ignored,
                     "workspace_limit", f->limit != 0 ? json_integer((json_int_t)f->limit) : json_null(),
                     "workspace_bytes", fits ? json_integer((json_int_t)f->workspace) : json_null(),
                     "peak_bytes", fits ? json_integer((json_int_t)f->peak) : json_null(), "median_s",
                     cli_json_known(f->seconds.median), "min_s", cli_json_known(f->seconds.least), "gflops",
                     cli_json_known(1e-9 * operations(o, counted_rows(o)) / f->seconds.median));
}

static void print_problem(const bench_options *o)
{
    printf("device      %zu: %s\n", o->device.index, o->device.name);
    printf("op          linear, mean loss%s\n", o->backward ? " + gradients of hidden and weight" : "");
    printf("hidden      %zu x %zu %s\n", o->rows, o->features, dtype_names[o->dtype]);
    printf("weight      %zu x %zu\n", o->classes, o->features);
    if (o->ignored > 0) printf("ignored     %.0f rows\n", (double)o->rows - counted_rows(o));
}

static void print_json(const bench_options *o, const figures *f, double blas_seconds)
{
    const blas *b = o->blas;
    const bool has_blas = b->functions != NULL;
    json_t *object = to_json(o, f);

    json_object_update_new(
        object, json_pack("{s:o, s:o, s:o, s:o, s:o}", "blas_median_s", cli_json_known(blas_seconds),
                          "ratio_to_blas", cli_json_known(f->ratio.median), "blas_core",
                          has_blas ? cli_json_text(b->core) : json_null(), "blas_config",
                          has_blas ? cli_json_text(b->config) : json_null(), "blas_threads",
                          has_blas ? json_integer(b->threads) : json_null()));
    cli_json_print(object);
}

static void print_text(const bench_options *o, const figures *f, double blas_seconds, const char *strategy)
{
    const blas *b = o->blas;
    const char *calls = o->dtype == CLXENT_F64 ? "dgemm" : "sgemm";

    print_problem(o);
    printf("workspace   %.4g MiB", (double)f->workspace / mib);
    if (o->limit != 0) printf(" of at most %.4g MiB", (double)o->limit / mib);
    printf("\nmemory      %.4g MiB of inputs, outputs and workspace\n", (double)f->peak / mib);
    printf("strategy    %s\n", strategy);
    printf("time        %.4g ms, the best of %zu %.4g ms\n", f->seconds.median * 1e3, o->pairs,
           f->seconds.least * 1e3);
    printf("products    %.4g GFLOP/s\n", 1e-9 * operations(o, counted_rows(o)) / f->seconds.median);
    if (b->functions == NULL) {
        printf("/ OpenBLAS  none: %s\n", b->why_not);
        return;
    }
    printf("/ OpenBLAS  %.2f (%.2f - %.2f; %s %s of all rows %.4g ms, %.4g GFLOP/s)\n", f->ratio.median,
           f->ratio.least, f->ratio.most, o->backward ? "three" : "one", calls, blas_seconds * 1e3,
           1e-9 * operations(o, (double)o->rows) / blas_seconds);
    printf("OpenBLAS    %s, threads %d, core %s%s\n", b->config, b->threads, b->core,
           b->chose_core ? " (OPENBLAS_CORETYPE=SkylakeX, set by clxent)" : "");
}

static bool run_one(measure *m, const bench_options *o)
{
    const clxent_desc desc = linear_desc(o);
    bool good = timed_plan(m, RUN_PLAN, &desc, false, o->ignored, NULL);

    if (good && blas_prepare(o->blas, &m->session.device)) good = timed_blas(m, RUN_BLAS, o->blas, &desc);
    good = good && measure_times(m, o->pairs);
    cli_progress_stop();
    if (!good) return false;
    const figures f = figures_of(m, RUN_PLAN, o->limit, RUN_BLAS);
    const double blas_seconds = m->num_runs > RUN_BLAS ? times_of(m, RUN_BLAS).median : NAN;
    if (cli_given.json) print_json(o, &f, blas_seconds);
    else print_text(o, &f, blas_seconds, clxent_plan_strategy(m->runs[RUN_PLAN].plan));
    return true;
}

/* ---- Over workspace limits ------------------------------------------------------------------ */

/* 16 MiB, 32 MiB and so on, below what the plan without a limit has; that one is run 0. */
enum { LEAST_LIMIT = 16 << 20, LIMITS = MOST_RUNS - 1 };

typedef struct sweep {
    const bench_options *o;
    size_t count;
    figures of[LIMITS + 1]; /* the last without a limit */
} sweep;

static bool time_limits(measure *m, sweep *s)
{
    bench_options o = *s->o;
    size_t limits[LIMITS + 1], run_of[LIMITS + 1], runs = 1;

    clxent_desc desc = linear_desc(&o);
    if (!timed_plan(m, 0, &desc, false, o.ignored, NULL)) return false;
    const size_t most = clxent_plan_workspace_size(m->runs[0].plan);
    for (o.limit = LEAST_LIMIT; o.limit < most && s->count < LIMITS; o.limit *= 2) {
        clxent_status status;
        desc = linear_desc(&o);
        const bool fits = timed_plan(m, runs, &desc, false, o.ignored, &status);
        if (!fits && status != CLXENT_ERROR_INVALID_DESC) return false;
        run_of[s->count] = fits ? runs++ : LIMITS + 1;
        limits[s->count++] = o.limit;
    }
    run_of[s->count] = limits[s->count] = 0;
    s->count++;
    m->num_runs = runs; /* without one that was refused */
    if (!measure_times(m, o.pairs)) return false;
    for (size_t i = 0; i < s->count; i++)
        s->of[i] = run_of[i] < runs ? figures_of(m, run_of[i], limits[i], 0)
                                    : (figures){ .limit = limits[i], .seconds = none, .ratio = none };
    return true;
}

static void print_sweep(const sweep *s)
{
    if (!cli_given.json) {
        print_problem(s->o);
        printf("\n%10s %14s %10s %10s %12s %17s\n", "limit MiB", "workspace MiB", "ms", "GFLOP/s",
               "/ unlimited", "range");
    }
    for (size_t i = 0; i < s->count; i++) {
        const figures *f = &s->of[i];
        if (cli_given.json) {
            json_t *object = to_json(s->o, f);
            json_object_set_new(object, "ratio_to_unlimited", cli_json_known(f->ratio.median));
            cli_json_print(object);
            continue;
        }
        if (f->limit != 0) printf("%10zu", f->limit >> 20);
        else printf("%10s", "none");
        if (f->workspace == 0) {
            printf("  too small for one chunk of rows\n");
            continue;
        }
        printf(" %14.1f %10.2f %10.1f %12.2f %7.2f - %7.2f\n", (double)f->workspace / mib,
               1e3 * f->seconds.median, 1e-9 * operations(s->o, counted_rows(s->o)) / f->seconds.median,
               f->ratio.median, f->ratio.least, f->ratio.most);
    }
}

static void write_sweep(FILE *to, const void *data)
{
    const sweep *s = data;

    fputs("$figures << EOD\n", to);
    for (size_t i = 0; i < s->count; i++)
        if (s->of[i].workspace != 0)
            fprintf(to, "%.9g %.9g %.9g %.9g\n", (double)s->of[i].workspace / mib,
                    1e3 * s->of[i].seconds.median, 1e3 * s->of[i].seconds.least, 1e3 * s->of[i].seconds.most);
    fputs("EOD\n"
          "set logscale x 2\n"
          "set offsets graph 0.02,graph 0.02,0,0\n"
          "set yrange [0:*]\n"
          "set xlabel 'workspace, MiB' textcolor rgb '#333333'\n"
          "set ylabel 'ms' textcolor rgb '#333333'\n",
          to);
    fprintf(to,
            "set title 'linear cross-entropy, %s%s, %zu rows, %zu features, %zu classes'\n"
            "plot $figures using 1:2:3:4 with yerrorbars pt 7 ps 0.8 lw 1 lc rgb '#999999' notitle, '' using "
            "1:2 with linespoints pt 7 ps 1 lw 2 lc rgb '#2b6ca3' notitle\n",
            dtype_names[s->o->dtype], s->o->backward ? ", with gradients" : "", s->o->rows, s->o->features,
            s->o->classes);
}

static bool run_sweep(measure *m, const bench_options *o)
{
    sweep s = { .o = o };
    const bool good = time_limits(m, &s);

    cli_progress_stop();
    if (!good || (o->plot != NULL && !plot_png(o->plot, 900, write_sweep, &s))) return false;
    print_sweep(&s);
    return true;
}

int linear_run(const bench_options *o)
{
    measure m;

    cli_progress_start("bench");
    const bool good =
        measure_open(&m, &o->device, 1) && (o->sweep || o->plot != NULL ? run_sweep(&m, o) : run_one(&m, o));
    cli_progress_stop();
    measure_close(&m);
    return good ? CLI_DONE : CLI_FAILED;
}
