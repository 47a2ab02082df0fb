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

clxent_desc linear_desc(const linear_options *o)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    desc.op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
    desc.outputs = CLXENT_OUTPUT_LOSS;
    if (o->backward) desc.outputs |= CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT;
    desc.batch = o->rows;
    desc.seq = 1;
    desc.features = o->features;
    desc.classes = o->classes;
    desc.dtype = o->dtype;
    desc.target_type = CLXENT_TARGET_I32;
    desc.workspace_limit = o->limit;
    return desc;
}

/* ---- One shape ------------------------------------------------------------------------------ */

enum { RUN_PLAN, RUN_BLAS };

typedef struct figures {
    summary seconds, blas_seconds, ratio; /* the last two NAN without OpenBLAS */
    size_t workspace, peak;               /* bytes */
    char strategy[256];
} figures;

/* Operations of the products, of so many rows. */
static double operations(const linear_options *o, double rows)
{
    return 2.0 * rows * (double)o->features * (double)o->classes * (o->backward ? 3 : 1);
}

static double counted_rows(const linear_options *o)
{
    return (double)(o->rows - (size_t)((double)o->rows * o->ignored));
}

static bool time_shape(measure *m, const linear_options *o, figures *f)
{
    const clxent_desc desc = linear_desc(o);
    bool good = timed_linear(m, RUN_PLAN, &desc, o->ignored, NULL);

    if (good && blas_prepare(o->blas, &m->session.device)) good = timed_blas(m, RUN_BLAS, o->blas, &desc);
    good = good && measure_times(m, o->pairs);
    if (good) {
        const bool both = m->num_runs > RUN_BLAS;
        const summary none = { NAN, NAN, NAN, NAN, NAN, 0 };
        f->seconds = times_of(m, RUN_PLAN);
        f->blas_seconds = both ? times_of(m, RUN_BLAS) : none;
        f->ratio = both ? ratio_of(m, RUN_PLAN, RUN_BLAS) : none;
        f->workspace = clxent_plan_workspace_size(m->runs[RUN_PLAN].plan);
        f->peak = linear_bytes(m, RUN_PLAN);
        snprintf(f->strategy, sizeof f->strategy, "%s", clxent_plan_strategy(m->runs[RUN_PLAN].plan));
    }
    measure_clear(m);
    return good;
}

static void print_json(const linear_options *o, const figures *f)
{
    const blas *b = o->blas;
    const bool has_blas = b->functions != NULL;

    cli_json_print(json_pack(
        "{s:s, s:I, s:I, s:I, s:s, s:o, s:s, s:f, s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
        "op", "linear", "rows", (json_int_t)o->rows, "features", (json_int_t)o->features, "classes",
        (json_int_t)o->classes, "dtype", dtype_names[o->dtype], "device", cli_json_text(o->device.name),
        "outputs", o->backward ? "loss+hidden_gradient+weight_gradient" : "loss", "ignored", o->ignored,
        "workspace_limit", o->limit != 0 ? json_integer((json_int_t)o->limit) : json_null(),
        "workspace_bytes", (json_int_t)f->workspace, "peak_bytes", (json_int_t)f->peak, "median_s",
        cli_json_number(f->seconds.median), "min_s", cli_json_number(f->seconds.least), "gflops",
        cli_json_number(1e-9 * operations(o, counted_rows(o)) / f->seconds.median), "blas_median_s",
        cli_json_known(f->blas_seconds.median), "ratio_to_blas", cli_json_known(f->ratio.median), "blas_core",
        has_blas ? cli_json_text(b->core) : json_null(), "blas_config",
        has_blas ? cli_json_text(b->config) : json_null(), "blas_threads",
        has_blas ? json_integer(b->threads) : json_null()));
}

static void print_problem(const linear_options *o)
{
    printf("device      %zu: %s\n", o->device.index, o->device.name);
    printf("op          linear, mean loss%s\n", o->backward ? " + gradients of hidden and weight" : "");
    printf("hidden      %zu x %zu %s\n", o->rows, o->features, dtype_names[o->dtype]);
    printf("weight      %zu x %zu\n", o->classes, o->features);
    if (o->ignored > 0) printf("ignored     %.0f rows\n", (double)o->rows - counted_rows(o));
}

static void print_text(const linear_options *o, const figures *f)
{
    const blas *b = o->blas;
    const char *calls = o->dtype == CLXENT_F64 ? "dgemm" : "sgemm";

    print_problem(o);
    printf("workspace   %.4g MiB", (double)f->workspace / mib);
    if (o->limit != 0) printf(" of at most %.4g MiB", (double)o->limit / mib);
    printf("\nmemory      %.4g MiB of inputs, outputs and workspace\n", (double)f->peak / mib);
    printf("strategy    %s\n", f->strategy);
    printf("time        %.4g ms, the best of %zu %.4g ms\n", f->seconds.median * 1e3, o->pairs,
           f->seconds.least * 1e3);
    printf("products    %.4g GFLOP/s\n", 1e-9 * operations(o, counted_rows(o)) / f->seconds.median);
    if (b->functions == NULL) {
        printf("/ OpenBLAS  none: %s\n", b->why_not);
        return;
    }
    printf("/ OpenBLAS  %.2f (%.2f - %.2f; %s %s of all rows %.4g ms, %.4g GFLOP/s)\n", f->ratio.median,
           f->ratio.least, f->ratio.most, o->backward ? "three" : "one", calls, f->blas_seconds.median * 1e3,
           1e-9 * operations(o, (double)o->rows) / f->blas_seconds.median);
    printf("OpenBLAS    %s, threads %d, core %s%s\n", b->config, b->threads, b->core,
           b->chose_core ? " (OPENBLAS_CORETYPE=SkylakeX, set by clxent)" : "");
}

/* ---- Over workspace limits ------------------------------------------------------------------ */

/* 16 MiB, 32 MiB and so on, below what the plan without a limit has; that one is run 0. */
enum { LEAST_LIMIT = 16 << 20, LIMITS = MOST_RUNS - 1 };

typedef struct sweep {
    const linear_options *o;
    size_t count;
    /* workspace: 0 where the limit is too small for the shape */
    size_t limit[LIMITS + 1], workspace[LIMITS + 1],
        peak[LIMITS + 1];                           /* bytes; limit 0: none, the last row */
    summary seconds[LIMITS + 1], ratio[LIMITS + 1]; /* to the run without a limit */
} sweep;

static bool run_sweep(measure *m, sweep *s)
{
    linear_options o = *s->o;
    size_t run_of[LIMITS + 1] = { 0 }, runs = 1;

    clxent_desc desc = linear_desc(&o);
    if (!timed_linear(m, 0, &desc, o.ignored, NULL)) return false;
    const size_t most = clxent_plan_workspace_size(m->runs[0].plan);
    for (o.limit = LEAST_LIMIT; o.limit < most && s->count < LIMITS; o.limit *= 2) {
        clxent_status status;
        desc = linear_desc(&o);
        if (timed_linear(m, runs, &desc, o.ignored, &status)) run_of[s->count] = runs++;
        else if (status != CLXENT_ERROR_INVALID_DESC) return false;
        s->limit[s->count++] = o.limit;
    }
    s->count++;         /* run 0 */
    m->num_runs = runs; /* without one that was refused */
    if (!measure_times(m, o.pairs)) return false;
    for (size_t i = 0; i < s->count; i++) {
        if (run_of[i] == 0 && s->limit[i] != 0) {
            s->seconds[i] = s->ratio[i] = (summary){ NAN, NAN, NAN, NAN, NAN, 0 };
            continue;
        }
        s->workspace[i] = clxent_plan_workspace_size(m->runs[run_of[i]].plan);
        s->peak[i] = linear_bytes(m, run_of[i]);
        s->seconds[i] = times_of(m, run_of[i]);
        s->ratio[i] = ratio_of(m, run_of[i], 0);
    }
    return true;
}

static void print_sweep_json(const sweep *s)
{
    const linear_options *o = s->o;

    for (size_t i = 0; i < s->count; i++) {
        const bool fits = s->workspace[i] != 0;
        cli_json_print(json_pack(
            "{s:s, s:I, s:I, s:I, s:s, s:o, s:s, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "op", "linear",
            "rows", (json_int_t)o->rows, "features", (json_int_t)o->features, "classes",
            (json_int_t)o->classes, "dtype", dtype_names[o->dtype], "device", cli_json_text(o->device.name),
            "outputs", o->backward ? "loss+hidden_gradient+weight_gradient" : "loss", "ignored", o->ignored,
            "workspace_limit", s->limit[i] != 0 ? json_integer((json_int_t)s->limit[i]) : json_null(),
            "workspace_bytes", fits ? json_integer((json_int_t)s->workspace[i]) : json_null(), "peak_bytes",
            fits ? json_integer((json_int_t)s->peak[i]) : json_null(), "median_s",
            cli_json_known(s->seconds[i].median), "min_s", cli_json_known(s->seconds[i].least), "gflops",
            cli_json_known(1e-9 * operations(o, counted_rows(o)) / s->seconds[i].median),
            "ratio_to_unlimited", cli_json_known(s->ratio[i].median)));
    }
}

static void print_sweep(const sweep *s)
{
    print_problem(s->o);
    printf("\n%10s %14s %10s %10s %12s %17s\n", "limit MiB", "workspace MiB", "ms", "GFLOP/s", "/ unlimited",
           "range");
    for (size_t i = 0; i < s->count; i++) {
        if (s->limit[i] != 0) printf("%10zu", s->limit[i] >> 20);
        else printf("%10s", "none");
        if (s->workspace[i] == 0) {
            printf("  too small for one chunk of rows\n");
            continue;
        }
        printf(" %14.1f %10.2f %10.1f %12.2f %7.2f - %7.2f\n", (double)s->workspace[i] / mib,
               1e3 * s->seconds[i].median, 1e-9 * operations(s->o, counted_rows(s->o)) / s->seconds[i].median,
               s->ratio[i].median, s->ratio[i].least, s->ratio[i].most);
    }
}

static void write_sweep(FILE *to, const void *data)
{
    const sweep *s = data;

    fputs("$figures << EOD\n", to);
    for (size_t i = 0; i < s->count; i++)
        if (s->workspace[i] != 0)
            fprintf(to, "%.9g %.9g %.9g %.9g\n", (double)s->workspace[i] / mib, 1e3 * s->seconds[i].median,
                    1e3 * s->seconds[i].least, 1e3 * s->seconds[i].most);
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

int linear_run(const linear_options *o)
{
    const bool sweeps = o->sweep || o->plot != NULL;
    sweep s = { .o = o };
    figures f;
    measure m;

    cli_progress_start("bench");
    bool good = measure_open(&m, &o->device, 1);
    good = good && (sweeps ? run_sweep(&m, &s) : time_shape(&m, o, &f));
    cli_progress_stop();
    good = good && (o->plot == NULL || plot_png(o->plot, 900, write_sweep, &s));
    if (good && sweeps && cli_given.json) print_sweep_json(&s);
    else if (good && sweeps) print_sweep(&s);
    else if (good && cli_given.json) print_json(o, &f);
    else if (good) print_text(o, &f);
    measure_close(&m);
    return good ? CLI_DONE : CLI_FAILED;
}
