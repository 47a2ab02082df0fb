/* SPDX-License-Identifier: MIT
 *
 * bench_suite.c - the cases that have a goal: which shapes and options, against what each is held, and how figures of
 * another kind than a ratio of times are taken.
 *
 * A figure meets its goal when it is no larger. Goals are for CPUs and GPUs alike; they were set on PoCL with two
 * cores. 2^26 f32 logits are 256 MiB, more than the caches of what this was tried on.
 */
#define _XOPEN_SOURCE 700
#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Cases ---------------------------------------------------------------------------------- */

typedef enum verdict { MET, MISSED, NO_GOAL, UNSUPPORTED, FAILED } verdict;
static const char *const verdicts[] = { "met", "missed", "none", "unsupported", "failed" };

typedef struct result {
    verdict verdict;
    double figure, least, most;
    double nt_ratio, seconds, reference_seconds, reference_bytes; /* NAN: none */
    char note[96];
} result;

typedef struct suite_case {
    char name[96];
    const char *unit;
    double goal; /* NAN: none */
    bool (*run)(measure *m, const struct suite_case *c, const suite_options *o, result *r);

    /* what run makes of these is its own affair */
    uint32_t outputs, dtype, moves;
    size_t rows, classes, inner; /* rows 0: all that the logits give */
    bool in_place, all_options, labels;
} suite_case;

typedef struct suite {
    suite_case *cases;
    size_t count, room;
} suite;

static suite_case *add(suite *s, bool (*run)(measure *, const suite_case *, const suite_options *, result *),
                       const char *unit, double goal)
{
    suite_case *c;

    if (s->count == s->room) {
        const size_t room = 2 * s->room + 64;
        suite_case *more = realloc(s->cases, room * sizeof *more);
        if (more == NULL) return NULL;
        s->cases = more;
        s->room = room;
    }
    c = &s->cases[s->count++];
    memset(c, 0, sizeof *c);
    c->run = run;
    c->unit = unit;
    c->goal = goal;
    c->dtype = CLXENT_F32;
    c->moves = MOVE_COPY;
    c->inner = 1;
    return c;
}

/* 50257 as "50,257". */
static const char *grouped(size_t value, char text[32])
{
    char digits[32];
    const int length = snprintf(digits, sizeof digits, "%zu", value);
    int at = 0;

    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

static clxent_desc desc_of(const suite_case *c, const suite_options *o)
{
    clxent_desc desc = CLXENT_DESC_INIT;

    desc.outputs = c->outputs;
    desc.classes = c->classes;
    desc.inner = c->inner;
    desc.batch = c->rows != 0 ? c->rows : o->logits > c->classes ? o->logits / c->classes : 1;
    desc.seq = 1;
    desc.dtype = c->dtype;
    desc.target_type = c->labels ? CLXENT_TARGET_PROBABILITIES_F32 : CLXENT_TARGET_I32;
    if (c->all_options) {
        desc.has_class_weights = desc.has_row_weights = 1;
        desc.label_smoothing = 0.1;
        desc.z_loss = 1e-4;
        desc.logit_scale = 0.75;
        desc.softcap = 30;
    }
    return desc;
}

/* ---- Figures that are ratios of times ------------------------------------------------------- */

enum { RUN_REFERENCE, RUN_SUBJECT, RUN_STREAM, RUNS };

/* The case's plan against moves of its bytes, or, where there are none, against the same plan in f32. */
static bool run_ratio(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    const clxent_desc desc = desc_of(c, o);
    timed runs[RUNS];
    const timed *list[RUNS] = { &runs[0], &runs[1], &runs[2] };
    /* The copy with non-temporal stores says something only beside what is held against the plain one. */
    const size_t count = c->moves == MOVE_COPY && m->has_stream ? 3 : 2;
    clxent_status status = CLXENT_OK;
    double *seconds = NULL, moved = 0;
    bool good;

    memset(runs, 0, sizeof runs);
    good = timed_plan(m, &runs[RUN_SUBJECT], &desc, c->in_place, &status);
    if (status == CLXENT_ERROR_UNSUPPORTED) r->verdict = UNSUPPORTED;
    if (good && c->moves != 0) {
        good = timed_move(m, &runs[RUN_REFERENCE], c->moves, c->dtype, runs[RUN_SUBJECT].bytes);
    } else if (good) {
        clxent_desc f32 = desc;
        f32.dtype = CLXENT_F32;
        good = timed_plan(m, &runs[RUN_REFERENCE], &f32, false, NULL);
    }
    if (good && count > RUN_STREAM)
        good = timed_move(m, &runs[RUN_STREAM], MOVE_STREAM, c->dtype, runs[RUN_SUBJECT].bytes);
    good = good && measure_times(m, list, count, o->pairs, &seconds);
    if (good) {
        const summary s = summarize_times(seconds, count, o->pairs, RUN_SUBJECT, RUN_REFERENCE);
        r->figure = s.median;
        r->least = s.least;
        r->most = s.most;
        r->seconds = summarize_times(seconds, count, o->pairs, RUN_SUBJECT, count).median;
        r->reference_seconds = summarize_times(seconds, count, o->pairs, RUN_REFERENCE, count).median;
        if (count > RUN_STREAM)
            r->nt_ratio = summarize_times(seconds, count, o->pairs, RUN_SUBJECT, RUN_STREAM).median;
        if ((c->moves & MOVE_READ) != 0) moved += 1;
        if ((c->moves & (MOVE_COPY | MOVE_IN_PLACE)) != 0) moved += 2;
        if ((c->moves & MOVE_TWO) != 0) moved += 3;
        if (c->inner > 1)
            snprintf(r->note, sizeof r->note, "%zu slabs of %zu x %zu", c->rows / c->inner, c->classes,
                     c->inner);
        else if (c->rows != 0) snprintf(r->note, sizeof r->note, "%zu x %zu", c->rows, c->classes);
        r->reference_bytes = moved > 0 ? moved * (double)runs[RUN_SUBJECT].bytes : NAN;
    }
    free(seconds);
    for (size_t i = 0; i < RUNS; i++) timed_release(&runs[i]);
    return good;
}

static bool run_memory(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    const size_t bytes = o->logits * dtype_bytes(c->dtype);
    const double moved = (c->moves == MOVE_READ ? 1.0 : c->moves == MOVE_TWO ? 3.0 : 2.0) * (double)bytes;
    timed move;
    const timed *const list[] = { &move };
    double *seconds = NULL;
    bool good =
        timed_move(m, &move, c->moves, c->dtype, bytes) && measure_times(m, list, 1, o->pairs, &seconds);

    if (good) {
        const summary s = summarize_times(seconds, 1, o->pairs, 0, 1);
        r->figure = 1e-9 * moved / s.median;
        r->least = 1e-9 * moved / s.most;
        r->most = 1e-9 * moved / s.least;
        r->seconds = s.median;
        if (c->moves == MOVE_STREAM && !m->has_stream)
            strcpy(r->note, "this compiler has no such stores: a plain copy");
        else if ((double)bytes < 4 * (double)m->cache_bytes)
            snprintf(r->note, sizeof r->note, "less than 4 times the largest cache, %zu MiB",
                     m->cache_bytes >> 20);
    }
    free(seconds);
    timed_release(&move);
    return good;
}

/* Time per element with c->classes over that with a neighbour that divides into whole vectors. */
static bool run_odd_even(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    const size_t even = (c->classes + 63) / 64 * 64;
    suite_case other = *c;
    double *seconds = NULL;
    clxent_desc desc[2];
    timed runs[2];
    const timed *const list[] = { &runs[0], &runs[1] };
    bool good = true;

    other.classes = even;
    desc[0] = desc_of(&other, o);
    desc[1] = desc_of(c, o);
    memset(runs, 0, sizeof runs);
    for (size_t i = 0; good && i < 2; i++) good = timed_plan(m, &runs[i], &desc[i], false, NULL);
    good = good && measure_times(m, list, 2, o->pairs, &seconds);
    if (good) {
        const double elements = (double)runs[0].bytes / (double)runs[1].bytes;
        const summary s = summarize_times(seconds, 2, o->pairs, 1, 0);
        r->figure = s.median * elements;
        r->least = s.least * elements;
        r->most = s.most * elements;
        r->seconds = summarize_times(seconds, 2, o->pairs, 1, 2).median;
        r->reference_seconds = summarize_times(seconds, 2, o->pairs, 0, 2).median;
    }
    free(seconds);
    for (size_t i = 0; i < 2; i++) timed_release(&runs[i]);
    return good;
}

/* The largest time per element over the smallest, among class counts where neither should matter. Each is taken as a
 * ratio to the copy in turn with it, so that a machine that changes its speed meanwhile makes no cliff. */
static bool run_cliff(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    static const size_t counts[] = { 256,  257,   400,   511,   1000,  1023,   1024,   2049,   4096,
                                     5003, 10007, 16384, 32767, 50257, 100003, 131071, 262143, 262144 };
    enum { COUNTS = sizeof counts / sizeof *counts };
    const double from = m->progress_from, part = (m->progress_to - from) / COUNTS;
    size_t slow = 0, fast = 0;
    double worst = 0, best = HUGE_VAL;
    char a[32], b[32];

    for (size_t i = 0; i < COUNTS; i++) {
        suite_case one = *c;
        result each;

        one.classes = counts[i];
        m->progress_from = from + part * (double)i;
        m->progress_to = from + part * (double)(i + 1);
        memset(&each, 0, sizeof each);
        if (!run_ratio(m, &one, o, &each)) return false;
        if (each.figure > worst) worst = each.figure, slow = i;
        if (each.figure < best) best = each.figure, fast = i;
    }
    r->figure = worst / best;
    r->least = best;
    r->most = worst;
    snprintf(r->note, sizeof r->note, "%s classes %.2f x copy, %s %.2f", grouped(counts[slow], a), worst,
             grouped(counts[fast], b), best);
    return true;
}

/* clxent_run_host() against the compute of it alone. */
static bool run_host_arrays(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    const clxent_desc desc = desc_of(c, o);
    double *seconds = NULL;
    timed runs[2];
    const timed *const list[] = { &runs[0], &runs[1] };
    bool good;

    memset(runs, 0, sizeof runs);
    good = timed_plan(m, &runs[0], &desc, false, NULL) && timed_host(m, &runs[1], &runs[0], &desc) &&
           measure_times(m, list, 2, o->pairs, &seconds);
    if (good) {
        const summary s = summarize_times(seconds, 2, o->pairs, 1, 0);
        r->figure = s.median;
        r->least = s.least;
        r->most = s.most;
        r->seconds = summarize_times(seconds, 2, o->pairs, 1, 2).median;
        r->reference_seconds = summarize_times(seconds, 2, o->pairs, 0, 2).median;
        if (!m->host_memory) {
            r->verdict = NO_GOAL;
            strcpy(r->note, "memory of its own: up- and download count");
        }
    }
    free(seconds);
    for (size_t i = 0; i < 2; i++) timed_release(&runs[i]);
    return good;
}

/* ---- Figures of another kind ---------------------------------------------------------------- */

static bool run_launches(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    const clxent_desc desc = desc_of(c, o);
    timed t;
    bool good = timed_plan(m, &t, &desc, false, NULL);

    if (good) {
        const size_t before = measure_calls().launches;
        good = measure_enqueue(m, &t) && clFinish(m->queue) == CL_SUCCESS;
        r->figure = r->least = r->most = (double)(measure_calls().launches - before);
    }
    if (good && r->figure == 0) {
        r->verdict = UNSUPPORTED; /* a run launches something */
        strcpy(r->note, "launches cannot be counted on this system");
    }
    timed_release(&t);
    return good;
}

/* Host time of clxent_enqueue() on an idle queue. */
static bool run_enqueue(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    enum { TIMES = 1001 };
    const clxent_desc desc = desc_of(c, o);
    double micros[TIMES];
    timed t;
    bool good =
        timed_plan(m, &t, &desc, false, NULL) && measure_enqueue(m, &t) && clFinish(m->queue) == CL_SUCCESS;

    for (size_t i = 0; good && i < TIMES; i++) {
        const double start = cli_seconds();
        good = measure_enqueue(m, &t);
        micros[i] = 1e6 * (cli_seconds() - start);
        good = good && clFinish(m->queue) == CL_SUCCESS;
    }
    if (good) {
        const summary s = summarize(micros, TIMES);
        r->figure = s.median;
        r->least = s.least;
        r->most = s.most;
    }
    timed_release(&t);
    return good;
}

static bool create_first_plan(clxent_context *ctx, double *seconds)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_plan *plan;
    clxent_status status;
    double start;

    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = 1024;
    desc.seq = 1;
    desc.classes = 50257;
    desc.target_type = CLXENT_TARGET_I32;
    start = cli_seconds();
    status = clxent_plan_create(&plan, ctx, &desc);
    *seconds = cli_seconds() - start;
    clxent_plan_destroy(plan);
    if (status != CLXENT_OK) cli_fail_status(ctx, "the first plan", status);
    return status == CLXENT_OK;
}

int suite_first_plan(const cli_device *device)
{
    cli_session session;
    double seconds = 0;
    bool good = cli_open(&session, device) && create_first_plan(session.ctx, &seconds);

    if (good) printf("%.9f\n", seconds);
    cli_close(&session);
    return good ? CLI_DONE : CLI_FAILED;
}

/* suite_first_plan() in a process of its own. */
static bool first_plan_elsewhere(const cli_device *device, double *seconds)
{
    static char self[] = "/proc/self/exe", bench[] = "bench", what[] = "--first-plan", flag[] = "--device",
                plain[] = "--no-tuning", tuning[] = "--tuning";
    char index[32], text[64] = "";
    char *const how = cli_tuning_file != NULL ? tuning : cli_no_tuning ? plain : NULL;
    char *const argv[] = { self, bench, what, flag, index, how, cli_tuning_file, NULL };
    int ends[2], status;
    ssize_t length;

    *seconds = 0;
    snprintf(index, sizeof index, "%zu", device->index);
    if (pipe(ends) != 0) {
        cli_fail("pipe", "%s", strerror(errno));
        return false;
    }
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    status = cli_run(argv, NULL, NULL, ends[1]);
    close(ends[1]);
    length = status == 0 ? read(ends[0], text, sizeof text - 1) : 0;
    close(ends[0]);
    if (length > 0 && sscanf(text, "%lf", seconds) == 1) return true;
    if (status < 0) cli_fail(self, "%s", strerror(-status));
    else cli_fail("the first plan of a process", "status %d", status);
    return false;
}

static bool run_first_plan(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    enum { TIMES = 5 };
    double millis[TIMES], fill_cache;
    bool good = first_plan_elsewhere(&m->session.device, &fill_cache);
    (void)c;
    (void)o;

    for (size_t i = 0; good && i < TIMES; i++) {
        good = first_plan_elsewhere(&m->session.device, &millis[i]);
        millis[i] *= 1e3;
    }
    if (good) {
        const summary s = summarize(millis, TIMES);
        r->figure = s.median;
        r->least = s.least;
        r->most = s.most;
    }
    return good;
}

/* Plans of other class counts than one that the context has seen: their time, or the programs built for them. */
static bool run_new_classes(measure *m, const suite_case *c, const suite_options *o, result *r)
{
    static const size_t counts[] = { 50304, 32000, 1024, 262144, 151936 };
    enum { COUNTS = sizeof counts / sizeof *counts };
    suite_case next = *c;
    clxent_desc desc = desc_of(c, o);
    clxent_plan *plan;
    double millis[COUNTS];
    size_t builds;
    clxent_status status = clxent_plan_create(&plan, m->session.ctx, &desc);

    clxent_plan_destroy(plan);
    builds = measure_calls().builds;
    for (size_t i = 0; status == CLXENT_OK && i < COUNTS; i++) {
        next.classes = counts[i];
        desc = desc_of(&next, o);
        const double start = cli_seconds();
        status = clxent_plan_create(&plan, m->session.ctx, &desc);
        millis[i] = 1e3 * (cli_seconds() - start);
        clxent_plan_destroy(plan);
    }
    if (status != CLXENT_OK) {
        cli_fail_status(m->session.ctx, m->session.device.name, status);
        return false;
    }
    if (strcmp(c->unit, "ms") == 0) {
        const summary s = summarize(millis, COUNTS);
        r->figure = s.median;
        r->least = s.least;
        r->most = s.most;
    } else {
        r->figure = r->least = r->most = (double)(measure_calls().builds - builds);
    }
    return true;
}

/* ---- The list ------------------------------------------------------------------------------- */

enum {
    LOSS = CLXENT_OUTPUT_LOSS,
    FUSED = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT,
    STATISTICS = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_ENTROPY
};

enum { PLAIN, IN_PLACE, ALL_OPTIONS, LABELS };

/* Class counts end with 0. */
static const size_t all_counts[] = { 1024, 32768, 50257, 50304, 131072, 262144, 0 };
static const size_t five[] = { 1024, 32768, 50257, 131072, 262144, 0 };
static const size_t three[] = { 1024, 32768, 50257, 0 }, two[] = { 1024, 32768, 0 };
static const size_t c2[] = { 2, 0 }, c10[] = { 10, 0 }, c32[] = { 32, 0 }, c100[] = { 100, 0 },
                    c256[] = { 256, 0 };

static const struct family {
    const char *what, *unit;
    uint32_t outputs, dtype, moves;
    double goal;
    int how;
    const size_t *classes;
} families[] = {
    { "loss + gradient", "x copy", FUSED, CLXENT_F32, MOVE_COPY, 1.15, PLAIN, all_counts },
    { "loss + gradient", "x copy", FUSED, CLXENT_F32, MOVE_COPY, 6, PLAIN, c2 },
    { "loss + gradient", "x copy", FUSED, CLXENT_F32, MOVE_COPY, 3, PLAIN, c10 },
    { "loss + gradient", "x copy", FUSED, CLXENT_F32, MOVE_COPY, 2, PLAIN, c32 },
    { "loss + gradient", "x copy", FUSED, CLXENT_F32, MOVE_COPY, 1.5, PLAIN, c100 },
    { "loss + gradient", "x copy", FUSED, CLXENT_F32, MOVE_COPY, 1.3, PLAIN, c256 },
    { "in place", "x copy in place", FUSED, CLXENT_F32, MOVE_IN_PLACE, 1.15, IN_PLACE, five },
    { "loss", "x read", LOSS, CLXENT_F32, MOVE_READ, 1.25, PLAIN, five },
    { "loss, lse, argmax, entropy", "x read", STATISTICS, CLXENT_F32, MOVE_READ, 1.6, PLAIN, five },
    { "softmax", "x copy", CLXENT_OUTPUT_SOFTMAX, CLXENT_F32, MOVE_COPY, 1.15, PLAIN, three },
    { "log-softmax", "x copy", CLXENT_OUTPUT_LOG_SOFTMAX, CLXENT_F32, MOVE_COPY, 1.15, PLAIN, three },
    { "bf16", "x f32", FUSED, CLXENT_BF16, 0, 0.75, PLAIN, three },
    { "f16", "x f32", FUSED, CLXENT_F16, 0, 0.75, PLAIN, three },
    { "f64", "x copy", FUSED, CLXENT_F64, MOVE_COPY, 1.5, PLAIN, two },
    { "all options", "x copy", FUSED, CLXENT_F32, MOVE_COPY, 2.5, ALL_OPTIONS, three },
    { "probability targets", "x two reads, a write", FUSED, CLXENT_F32, MOVE_TWO, 1.15, LABELS, three },
};
enum { FAMILIES = sizeof families / sizeof *families };

/* Images of classes x height x width, shrunk where that is more than the logits wanted. */
static const struct image {
    size_t count, classes, height, width;
} images[] = { { 8, 21, 512, 512 }, { 16, 1000, 64, 64 } };

/* The cases for so many logits; their names are the same for any. False where memory is short. */
static bool list_cases(suite *s, size_t logits)
{
    static const struct {
        const char *name;
        uint32_t moves;
    } memory[] = { { "memory: copy", MOVE_COPY },
                   { "memory: copy, non-temporal", MOVE_STREAM },
                   { "memory: read", MOVE_READ } };
    suite_case *c = NULL;
    char text[32];

    for (size_t i = 0; i < 3; i++) {
        if ((c = add(s, run_memory, "GB/s", NAN)) == NULL) return false;
        strcpy(c->name, memory[i].name);
        c->moves = memory[i].moves;
    }
    for (size_t i = 0; i < FAMILIES; i++) {
        const struct family *f = &families[i];
        for (size_t k = 0; f->classes[k] != 0; k++) {
            if ((c = add(s, run_ratio, f->unit, f->goal)) == NULL) return false;
            snprintf(c->name, sizeof c->name, "%s, %s classes", f->what, grouped(f->classes[k], text));
            c->outputs = f->outputs;
            c->dtype = f->dtype;
            c->moves = f->moves;
            c->in_place = f->how == IN_PLACE;
            c->all_options = f->how == ALL_OPTIONS;
            c->labels = f->how == LABELS;
            c->classes = f->classes[k];
        }
    }
    if ((c = add(s, run_odd_even, "x 50,304, per element", 1.05)) == NULL) return false;
    strcpy(c->name, "loss + gradient, 50,257 classes against 50,304");
    c->classes = 50257;
    for (size_t rows = 1; rows <= 8; rows += 7) {
        if ((c = add(s, run_ratio, "x (read + copy)", 1.1)) == NULL) return false;
        c->rows = rows;
        c->classes = logits / 2 / rows;
        c->moves = MOVE_READ | MOVE_COPY;
        snprintf(c->name, sizeof c->name, "%s", rows == 1 ? "1 long row" : "8 long rows");
    }
    for (size_t i = 0; i < 2; i++) {
        struct image at = images[i];
        while (at.count * at.classes * at.height * at.width > logits && at.height > 1) {
            at.height /= 2;
            at.width /= 2;
        }
        if ((c = add(s, run_ratio, "x copy", 1.4)) == NULL) return false;
        c->rows = at.count * at.height * at.width;
        c->classes = at.classes;
        c->inner = at.height * at.width;
        snprintf(c->name, sizeof c->name, "class axis not last, %s classes", grouped(at.classes, text));
    }
    if ((c = add(s, run_cliff, "slowest / fastest", 1.5)) == NULL) return false;
    strcpy(c->name, "no cliff, 256 to 262,144 classes");
    if ((c = add(s, run_launches, "launches", 2)) == NULL) return false;
    strcpy(c->name, "2 rows of 4 classes, launches");
    c->rows = 2;
    c->classes = 4;
    if ((c = add(s, run_enqueue, "us", 30)) == NULL) return false;
    strcpy(c->name, "2 rows of 4 classes, enqueue");
    c->rows = 2;
    c->classes = 4;
    if ((c = add(s, run_first_plan, "ms", 50)) == NULL) return false;
    strcpy(c->name, "plan, the first of a process");
    for (size_t i = 0; i < 2; i++) {
        if ((c = add(s, run_new_classes, i == 0 ? "ms" : "builds", i == 0 ? 50 : 0)) == NULL) return false;
        strcpy(c->name, i == 0 ? "plan, another class count" : "plan, programs built for other class counts");
        c->classes = 50257;
    }
    if ((c = add(s, run_host_arrays, "x compute alone", 1.15)) == NULL) return false;
    strcpy(c->name, "host arrays, 32,768 classes");
    c->classes = 32768;

    for (size_t i = 0; i < s->count; i++)
        if (s->cases[i].outputs == 0) s->cases[i].outputs = FUSED;
    return true;
}

static bool selected(const suite_case *c, const char *only)
{
    return only == NULL || strstr(c->name, only) != NULL;
}

size_t suite_count(const char *only)
{
    suite s = { NULL, 0, 0 };
    size_t count = 0;

    if (list_cases(&s, (size_t)1 << 26))
        for (size_t i = 0; i < s.count; i++) count += selected(&s.cases[i], only);
    free(s.cases);
    return count;
}

/* ---- Running and printing ------------------------------------------------------------------- */

static json_t *number_or_null(double value) { return isnan(value) ? json_null() : cli_json_number(value); }

static void print_json(const suite_case *c, const result *r, const cli_device *device)
{
    json_t *object = json_object();

    json_object_set_new(object, "case", json_string(c->name));
    json_object_set_new(object, "figure", number_or_null(r->figure));
    json_object_set_new(object, "unit", json_string(c->unit));
    json_object_set_new(object, "goal", number_or_null(c->goal));
    json_object_set_new(object, "verdict", json_string(verdicts[r->verdict]));
    json_object_set_new(object, "least", number_or_null(r->least));
    json_object_set_new(object, "most", number_or_null(r->most));
    json_object_set_new(object, "nt_ratio", number_or_null(r->nt_ratio));
    json_object_set_new(object, "seconds", number_or_null(r->seconds));
    json_object_set_new(object, "reference_seconds", number_or_null(r->reference_seconds));
    json_object_set_new(object, "reference_gb_per_s",
                        number_or_null(1e-9 * r->reference_bytes / r->reference_seconds));
    json_object_set_new(object, "note", r->note[0] != '\0' ? json_string(r->note) : json_null());
    json_object_set_new(object, "device", cli_json_text(device->name));
    cli_json_print(object);
}

/* A number for a column, which stays empty where there is none. */
static const char *number(char text[32], int digits, double value)
{
    if (isnan(value)) return "";
    snprintf(text, 32, "%.*f", digits, value);
    return text;
}

static void print_text(const suite_case *c, const result *r)
{
    const int digits = strcmp(c->unit, "launches") == 0 || strcmp(c->unit, "builds") == 0 ? 0 : 2;
    char a[7][32], line[512];
    int length = snprintf(
        line, sizeof line, "%-46s %7s %-21s %5s  %-11s %7s - %7s %6s %8s %8s  %s", c->name,
        number(a[0], digits, r->figure), c->unit, number(a[1], digits == 0 ? 0 : 2, c->goal),
        r->verdict == NO_GOAL ? "" : verdicts[r->verdict], number(a[2], digits, r->least),
        number(a[3], digits, r->most), number(a[4], 2, r->nt_ratio), number(a[5], 2, 1e3 * r->seconds),
        number(a[6], 1, 1e-9 * r->reference_bytes / r->reference_seconds), r->note);

    if (length >= (int)sizeof line) length = (int)sizeof line - 1;
    while (line[length - 1] == ' ') length--;
    printf("%.*s\n", length, line);
}

int suite_run(const suite_options *o)
{
    suite s = { NULL, 0, 0 };
    result *results = NULL;
    measure m;
    size_t wanted = suite_count(o->only), done = 0, met = 0, missed = 0, failed = 0;

    memset(&m, 0, sizeof m);
    if (!list_cases(&s, o->logits) || (results = calloc(s.count, sizeof *results)) == NULL) {
        free(s.cases);
        return cli_fail(NULL, "out of memory");
    }
    cli_progress_start("bench");
    if (!measure_open(&m, &o->device, o->logits)) {
        free(results);
        free(s.cases);
        return CLI_FAILED;
    }
    for (size_t i = 0; i < s.count; i++) {
        result *r = &results[i];

        if (!selected(&s.cases[i], o->only)) continue;
        cli_progress_start("bench"); /* goes on where a failure has stopped it */
        m.progress_from = (double)done / (double)wanted;
        m.progress_to = (double)++done / (double)wanted;
        cli_progress_set(m.progress_from);
        r->figure = r->least = r->most = r->nt_ratio = r->seconds = r->reference_seconds =
            r->reference_bytes = NAN;
        r->verdict = MET;
        if (!s.cases[i].run(&m, &s.cases[i], o, r)) {
            if (r->verdict != UNSUPPORTED) r->verdict = FAILED;
        } else if (isnan(s.cases[i].goal)) {
            r->verdict = NO_GOAL;
        } else if (r->verdict == MET && !(r->figure <= s.cases[i].goal)) {
            r->verdict = MISSED;
        }
        measure_trim(&m);
        met += r->verdict == MET;
        missed += r->verdict == MISSED;
        failed += r->verdict == FAILED;
    }
    cli_progress_stop();

    if (!o->json) {
        printf("device %zu: %s; %s", o->device.index, o->device.name, "f32 unless a case says otherwise, ");
        printf("%zu logits, median and range of %zu pairs\n\n", o->logits, o->pairs);
        printf("%-46s %7s %-21s %5s  %-11s %17s %6s %8s %8s\n", "case", "figure", "", "goal", "", "range",
               "/ nt", "ms", "ref GB/s");
    }
    for (size_t i = 0; i < s.count; i++) {
        if (!selected(&s.cases[i], o->only)) continue;
        if (o->json) print_json(&s.cases[i], &results[i], &o->device);
        else print_text(&s.cases[i], &results[i]);
    }
    if (!o->json) {
        printf("\n%zu met, %zu missed", met, missed);
        if (failed > 0) printf(", %zu failed", failed);
        putchar('\n');
    }
    measure_close(&m);
    free(results);
    free(s.cases);
    return failed > 0 ? CLI_FAILED : CLI_DONE;
}
