/* SPDX-License-Identifier: MIT
 *
 * bench_suite.c - runs the cases of tools/bench/suite.def. What is here alone: how each kind of figure is taken, and in
 * which processes.
 */
#define _XOPEN_SOURCE 700
#include "measure.h"
#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* ---- Cases ---------------------------------------------------------------------------------- */

/* Beside those of summary.h. */
enum { UNSUPPORTED = NO_GOAL + 1, NOT_MEASURED, FAILED, VERDICTS };
static const char *const verdicts[] = { "met",         "missed",       "unsure", "none",
                                        "unsupported", "not measured", "failed" };

typedef struct result {
    int verdict;
    summary figure;
    double nt_ratio, seconds, reference_seconds, reference_bytes; /* NAN: none */
    char note[96];
} result;

enum { PLAIN, IN_PLACE, ALL_OPTIONS, SOFT_TARGETS };
enum { OPENBLAS, IN_F32, UNLIMITED, ALL_ROWS }; /* what a linear case compares with */
enum { SHORT, LONG };                           /* LONG: runs only where --case begins its name */

typedef struct suite_case {
    const char *name;
    bool (*measure)(measure *m, const struct suite_case *c, const bench_options *o, result *r);
    uint32_t moves, outputs, dtype;
    int how;
    size_t rows, classes, inner;
    const char *unit;
    double goal;
    /* of linear cases */
    size_t features, workspace_mib;
    double ignored;
    int against;
    bool is_long;
} suite_case;

typedef bool take(measure *m, const suite_case *c, const bench_options *o, result *r);
static take measure_memory, measure_ratio, measure_odd_even, measure_cliff, measure_host_arrays, measure_hand,
    measure_small, measure_launches, measure_enqueue_time, measure_new_classes, measure_first_plan,
    measure_linear, measure_cold, measure_most_cold;
#define FUNCTION(name) bool name(measure *m, const suite_case *c, const bench_options *o, result *r)

/* The words of suite.def. */
enum {
    NONE = 0,
    COPY = MOVE_COPY,
    STREAM = MOVE_STREAM,
    READ = MOVE_READ,
    ITSELF = MOVE_IN_PLACE,
    TWO = MOVE_TWO,

    LOSS = CLXENT_OUTPUT_LOSS,
    FUSED = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT,
    STATISTICS = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_ENTROPY,
    SOFTMAX = CLXENT_OUTPUT_SOFTMAX,
    LOG_SOFTMAX = CLXENT_OUTPUT_LOG_SOFTMAX,
    GRADIENTS = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT,

    F32 = CLXENT_F32,
    F16 = CLXENT_F16,
    BF16 = CLXENT_BF16,
    F64 = CLXENT_F64
};

static const suite_case cases[] = {
#define CASE(name, measured, ...) { name, measure_##measured, __VA_ARGS__, 0, 0, 0, OPENBLAS, false },
#define LINEAR(name_, against_, outputs_, dtype_, rows_, features_, classes_, mib_, ignored_, length_, \
               unit_, goal_)                                                                           \
    { .name = name_,                                                                                   \
      .measure = measure_linear,                                                                       \
      .against = against_,                                                                             \
      .outputs = outputs_,                                                                             \
      .dtype = dtype_,                                                                                 \
      .rows = rows_,                                                                                   \
      .features = features_,                                                                           \
      .classes = classes_,                                                                             \
      .inner = 1,                                                                                      \
      .workspace_mib = mib_,                                                                           \
      .ignored = ignored_,                                                                             \
      .is_long = length_ == LONG,                                                                      \
      .unit = unit_,                                                                                   \
      .goal = goal_ },
#include "../bench/suite.def"
#undef CASE
#undef LINEAR
};
enum { CASES = sizeof cases / sizeof *cases };

static clxent_desc desc_of(const suite_case *c, const bench_options *o)
{
    enum { FEWEST_ROWS = 16 };
    size_t rows = c->rows, classes = c->classes, inner = c->inner;

    if (classes == 0) classes = o->logits / 2 / rows;
    else if (rows == 0) rows = o->logits > classes ? o->logits / classes : 1;
    while (inner > 1 && rows * classes * inner > o->logits) inner /= 4; /* half the height, half the width */
    while (c->features > 0 && rows * classes > o->logits)
        if (rows > FEWEST_ROWS) rows /= 2;
        else classes /= 2;
    clxent_desc desc = measure_desc(c->outputs, c->dtype, rows, c->features, classes);
    desc.seq = desc.inner = inner;
    desc.workspace_limit = c->workspace_mib << 20;
    if (c->how == SOFT_TARGETS) desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
    if (c->how == ALL_OPTIONS) {
        desc.has_class_weights = desc.has_row_weights = 1;
        desc.label_smoothing = 0.1;
        desc.z_loss = 1e-4;
        desc.logit_scale = 0.75;
        desc.softcap = 30;
    }
    return desc;
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

/* ---- Figures that are ratios of times ------------------------------------------------------- */

enum { RUN_REFERENCE, RUN_SUBJECT, RUN_STREAM };

/* Times the runs in turn, and releases all of them. The figure is that of the subject over the reference, times scale. */
static bool take_ratio(measure *m, double scale, double goal, const bench_options *o, result *r)
{
    bool good = measure_times(m, o->pairs);

    while (good) {
        r->figure = summary_scaled(ratio_of(m, RUN_SUBJECT, RUN_REFERENCE), scale);
        const size_t more = summary_wants(&r->figure, goal, o->most_pairs);
        if (more == 0) break;
        good = measure_more(m, more);
    }
    if (good) {
        r->seconds = times_of(m, RUN_SUBJECT).median;
        r->reference_seconds = times_of(m, RUN_REFERENCE).median;
        if (m->num_runs > RUN_STREAM) r->nt_ratio = ratio_of(m, RUN_SUBJECT, RUN_STREAM).median;
    }
    measure_cut(m, 0);
    return good;
}

/* Bytes that moves read and write for each byte of the logits. */
static double passes_of(uint32_t moves)
{
    return ((moves & READ) != 0 ? 1 : 0) + ((moves & (COPY | STREAM | ITSELF)) != 0 ? 2 : 0) +
           ((moves & TWO) != 0 ? 3 : 0);
}

/* The case's plan against moves of its bytes, or, where there are none, against the same plan in f32. */
static FUNCTION(measure_ratio)
{
    const clxent_desc desc = desc_of(c, o);
    clxent_status status = CLXENT_OK;
    bool good = timed_plan(m, RUN_SUBJECT, &desc, c->how == IN_PLACE, 0, &status);

    if (status == CLXENT_ERROR_UNSUPPORTED) r->verdict = UNSUPPORTED;
    const size_t bytes = m->runs[RUN_SUBJECT].bytes;
    if (good && c->moves != NONE) {
        good = timed_move(m, RUN_REFERENCE, c->moves, c->dtype, bytes);
        r->reference_bytes = passes_of(c->moves) * (double)bytes;
    } else if (good) {
        clxent_desc f32 = desc;
        f32.dtype = CLXENT_F32;
        good = timed_plan(m, RUN_REFERENCE, &f32, false, 0, NULL);
    }
    /* The copy with non-temporal stores says something only beside what is compared with the plain one. */
    if (good && c->moves == COPY && m->has_stream) good = timed_move(m, RUN_STREAM, STREAM, c->dtype, bytes);
    if (c->inner > 1)
        snprintf(r->note, sizeof r->note, "%zu slabs of %zu x %zu", desc.batch, desc.classes, desc.inner);
    else if (c->rows != 0) snprintf(r->note, sizeof r->note, "%zu x %zu", desc.batch, desc.classes);
    return good && take_ratio(m, 1, c->goal, o, r);
}

static FUNCTION(measure_memory)
{
    const size_t bytes = o->logits * dtype_size(c->dtype);
    const double gb = 1e-9 * passes_of(c->moves) * (double)bytes;

    if (!timed_move(m, 0, c->moves, c->dtype, bytes) || !measure_times(m, o->pairs)) return false;
    const summary s = times_of(m, 0);
    r->figure = (summary){ gb / s.median, gb / s.most, gb / s.least, gb / s.high, gb / s.low, s.count };
    r->seconds = s.median;
    if (c->moves == STREAM && !m->has_stream)
        strcpy(r->note, "this compiler has no such stores: a plain copy");
    else if ((double)bytes < 4 * (double)m->cache_bytes)
        snprintf(r->note, sizeof r->note, "less than 4 times the largest cache, %zu MiB",
                 m->cache_bytes >> 20);
    return true;
}

/* Time per element with so many classes over that with others. */
static bool take_classes(measure *m, const suite_case *c, const size_t classes[2], const bench_options *o,
                         result *r)
{
    for (size_t run = 0; run < 2; run++) {
        suite_case one = *c;
        one.classes = classes[run];
        const clxent_desc desc = desc_of(&one, o);
        if (!timed_plan(m, run, &desc, false, 0, NULL)) return false;
    }
    return take_ratio(m, (double)m->runs[RUN_REFERENCE].bytes / (double)m->runs[RUN_SUBJECT].bytes, c->goal,
                      o, r);
}

/* Beside a neighbour that divides into whole vectors. */
static FUNCTION(measure_odd_even)
{
    const size_t classes[] = { (c->classes + 63) / 64 * 64, c->classes };
    return take_classes(m, c, classes, o, r);
}

/* The largest time per element over the smallest, among class counts where neither should matter. Which they are is found
 * by ratios to the copy, so that a machine that changes its speed meanwhile makes no cliff; then these two take turns. */
static FUNCTION(measure_cliff)
{
    static const size_t counts[] = { 256,  257,   400,   511,   1000,  1023,   1024,   2049,   4096,
                                     5003, 10007, 16384, 32767, 50257, 100003, 131071, 262143, 262144 };
    enum { COUNTS = sizeof counts / sizeof *counts };
    const double from = m->progress_from, part = (m->progress_to - from) / (COUNTS + 1);
    size_t slow = 0, fast = 0;
    double worst = 0, best = HUGE_VAL;
    char a[32], b[32];

    for (size_t i = 0; i < COUNTS; i++) {
        suite_case one = *c;
        result each;

        one.classes = counts[i];
        one.goal = NAN;
        m->progress_from = from + part * (double)i;
        m->progress_to = from + part * (double)(i + 1);
        memset(&each, 0, sizeof each);
        if (!measure_ratio(m, &one, o, &each)) return false;
        if (each.figure.median > worst) worst = each.figure.median, slow = i;
        if (each.figure.median < best) best = each.figure.median, fast = i;
    }
    snprintf(r->note, sizeof r->note, "%s classes %.2f x copy, %s %.2f", grouped(counts[slow], a), worst,
             grouped(counts[fast], b), best);
    const size_t classes[] = { counts[fast], counts[slow] };
    return take_classes(m, c, classes, o, r);
}

/* clxent_run_host() against the compute of it alone. */
static FUNCTION(measure_host_arrays)
{
    const clxent_desc desc = desc_of(c, o);
    const bool copies = !m->session.device.host_memory;

    if (copies) {
        r->verdict = NO_GOAL;
        strcpy(r->note, "memory of its own: up- and download count");
    }
    return timed_plan(m, 0, &desc, false, 0, NULL) && timed_host(m, 1, 0) &&
           take_ratio(m, 1, copies ? NAN : c->goal, o, r);
}

/* Linear cross-entropy against OpenBLAS's products, or against another run of itself. */
static FUNCTION(measure_linear)
{
    const clxent_desc desc = desc_of(c, o);
    clxent_desc reference = desc;
    clxent_status status = CLXENT_OK;

    snprintf(r->note, sizeof r->note, "%zu x %zu x %zu", desc.batch, desc.features, desc.classes);
    if (c->against == OPENBLAS && !blas_prepare(o->blas, &m->session.device)) {
        r->verdict = NOT_MEASURED;
        snprintf(r->note, sizeof r->note, "%.*s", (int)sizeof r->note - 1, o->blas->why_not);
        return false;
    }
    bool good = timed_plan(m, RUN_SUBJECT, &desc, false, c->ignored, &status);
    if (status == CLXENT_ERROR_UNSUPPORTED) r->verdict = UNSUPPORTED;
    else if (status == CLXENT_ERROR_INVALID_DESC)
        cli_fail_status(m->session.ctx, m->session.device.name, status);
    if (c->against == IN_F32) reference.dtype = CLXENT_F32;
    if (c->against == UNLIMITED) reference.workspace_limit = 0;
    if (good && c->against == OPENBLAS) good = timed_blas(m, RUN_REFERENCE, o->blas, &desc);
    else if (good)
        good = timed_plan(m, RUN_REFERENCE, &reference, false, c->against == ALL_ROWS ? 0 : c->ignored, NULL);
    return good && take_ratio(m, 1, c->goal, o, r);
}

/* The case's plan against hand-written code: against the fastest of its variants, which are timed first. */
static FUNCTION(measure_hand)
{
    const int which = (int)c->moves;
    const bool has_gradient = (c->outputs & CLXENT_OUTPUT_GRADIENT) != 0;
    const size_t count = which == HAND_TEN ? 2 : which == HAND_ROWS && has_gradient ? HAND_VARIANTS : 1;
    const unsigned step = which == HAND_TEN ? HAND_STREAM : 1; /* ten classes: nothing to keep */
    clxent_desc desc = desc_of(c, o);
    const char *why_not = NULL;
    size_t best = 0;

    if (m->hand == NULL) m->hand = hand_open(o->hand, &m->session.device, &why_not);
    if (m->hand == NULL) {
        r->verdict = NOT_MEASURED;
        strcpy(r->note, why_not);
        return false;
    }
    desc.batch = (desc.batch + 7) / 8 * 8; /* hand_ten() takes eight rows at once */
    bool good = timed_plan(m, RUN_SUBJECT, &desc, c->how == IN_PLACE, 0, NULL);
    for (size_t i = 0; good && i < count; i++)
        good =
            timed_hand(m, i == 0 ? RUN_REFERENCE : RUN_SUBJECT + i, RUN_SUBJECT, which, (unsigned)i * step);
    if (good && count > 1) {
        good = measure_times(m, 5);
        for (size_t i = 1; good && i < count; i++) {
            const size_t than = best == 0 ? RUN_REFERENCE : RUN_SUBJECT + best;
            if (ratio_of(m, RUN_SUBJECT + i, than).median < 1) best = i;
        }
        measure_cut(m, RUN_SUBJECT + 1);
        good = good && timed_hand(m, RUN_REFERENCE, RUN_SUBJECT, which, (unsigned)best * step);
    }
    const unsigned variant = (unsigned)best * step;
    snprintf(r->note, sizeof r->note, "%s%s%s%s", which == HAND_PLAIN ? "plain C, " : "", hand_name(m->hand),
             (variant & HAND_KEEP) != 0 ? ", keeps exponentials" : "",
             (variant & HAND_STREAM) != 0 ? ", non-temporal" : "");
    return good && measure_agrees(m, RUN_REFERENCE) && take_ratio(m, 1, c->goal, o, r);
}

/* Makes the case's plan run number run, and counts the launches of one run of it. */
static bool count_launches(measure *m, size_t run, const clxent_desc *desc, size_t *launches, result *r)
{
    if (!timed_plan(m, run, desc, false, 0, NULL)) return false;
    const size_t before = measure_calls().launches;
    if (!measure_enqueue(m, run) || clFinish(m->session.queue) != CL_SUCCESS) return false;
    *launches = measure_calls().launches - before;
    if (*launches > 0) return true;
    r->verdict = UNSUPPORTED; /* a run launches something */
    strcpy(r->note, "launches cannot be counted on this system");
    return false;
}

/* The case's plan against moves of its bytes and as many launches as its own of a kernel that does nothing. */
static FUNCTION(measure_small)
{
    const clxent_desc desc = desc_of(c, o);
    size_t launches;

    if (!count_launches(m, RUN_SUBJECT, &desc, &launches, r) ||
        !timed_move(m, RUN_REFERENCE, c->moves, c->dtype, m->runs[RUN_SUBJECT].bytes))
        return false;
    m->runs[RUN_REFERENCE].empty = launches;
    snprintf(r->note, sizeof r->note, "%zu launches", launches);
    return take_ratio(m, 1, c->goal, o, r);
}

/* ---- Figures of another kind ---------------------------------------------------------------- */

static FUNCTION(measure_launches)
{
    const clxent_desc desc = desc_of(c, o);
    size_t launches;

    if (!count_launches(m, 0, &desc, &launches, r)) return false;
    r->figure = summary_of_exact((double)launches);
    return true;
}

/* Host time of clxent_enqueue() on an idle queue. */
static FUNCTION(measure_enqueue_time)
{
    enum { TIMES = 1001 };
    const clxent_desc desc = desc_of(c, o);
    double micros[TIMES + 1];

    if (!timed_plan(m, 0, &desc, false, 0, NULL)) return false;
    for (size_t i = 0; i <= TIMES; i++) { /* the first may compile */
        const double start = cli_seconds();
        if (!measure_enqueue(m, 0)) return false;
        micros[i] = 1e6 * (cli_seconds() - start);
        if (clFinish(m->session.queue) != CL_SUCCESS) return false;
    }
    r->figure = summarize(micros + 1, TIMES, 1);
    return true;
}

/* Plans of other class counts than one that the context has seen: their time, or the programs built for them. */
static FUNCTION(measure_new_classes)
{
    static const size_t counts[] = { 50304, 32000, 1024, 262144, 151936, 128256,
                                     65536, 30522, 8192, 21128,  100352 };
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
    if (status != CLXENT_OK) return cli_fail_status(m->session.ctx, m->session.device.name, status);
    r->figure = strcmp(c->unit, "ms") == 0 ? summarize(millis, COUNTS, 1)
                                           : summary_of_exact((double)(measure_calls().builds - builds));
    return true;
}

/* ---- In a process of its own ---------------------------------------------------------------- */

/* What a child process reports. */
typedef struct child_report {
    double plan_seconds; /* of creating the plan */
    double cpu_seconds;  /* of creating it and of its first run, by all threads and finished children */
    double process_cpu_seconds; /* of the process from start to end; known to its parent alone */
    size_t builds, log_bytes;
} child_report;

static double cpu_seconds(int of)
{
    struct rusage usage;

    if (getrusage(of, &usage) != 0) return NAN;
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* Builds the textbook kernel and runs it on rows of zeros. */
static clxent_status run_textbook(const cli_session *session, const clxent_desc *desc)
{
    const size_t rows = desc->batch * desc->seq, one = 1, bytes = rows * desc->classes * sizeof(cl_float);
    const cl_uint classes = (cl_uint)desc->classes;
    const cl_float zero = 0;
    cl_program program = measure_program(session, SOURCE_SOFTMAX, "-cl-std=CL1.2");
    cl_command_queue queue = session->queue;
    cl_kernel kernel = NULL;
    cl_mem logits = NULL, softmax = NULL;
    cl_int code = program != NULL ? CL_SUCCESS : CL_BUILD_PROGRAM_FAILURE;

    if (code == CL_SUCCESS) kernel = clCreateKernel(program, "softmax", &code);
    if (code == CL_SUCCESS) logits = clCreateBuffer(session->cl, CL_MEM_READ_ONLY, bytes, NULL, &code);
    if (code == CL_SUCCESS) softmax = clCreateBuffer(session->cl, CL_MEM_WRITE_ONLY, bytes, NULL, &code);
    if (code == CL_SUCCESS)
        code = clEnqueueFillBuffer(queue, logits, &zero, sizeof zero, 0, bytes, 0, NULL, NULL);
    if (code == CL_SUCCESS) code = clSetKernelArg(kernel, 0, sizeof logits, &logits);
    if (code == CL_SUCCESS) code = clSetKernelArg(kernel, 1, sizeof softmax, &softmax);
    if (code == CL_SUCCESS) code = clSetKernelArg(kernel, 2, sizeof classes, &classes);
    if (code == CL_SUCCESS) code = clEnqueueNDRangeKernel(queue, kernel, 1, NULL, &rows, &one, 0, NULL, NULL);
    if (code == CL_SUCCESS) code = clFinish(queue);
    if (softmax != NULL) clReleaseMemObject(softmax);
    if (logits != NULL) clReleaseMemObject(logits);
    if (kernel != NULL) clReleaseKernel(kernel);
    if (program != NULL) clReleaseProgram(program);
    return code;
}

/* A buffer of zeros; NULL on failure. */
static cl_mem make_zeros(const cli_session *session, size_t bytes)
{
    const cl_uchar zero = 0;
    cl_int code;
    cl_mem mem = clCreateBuffer(session->cl, CL_MEM_READ_WRITE, bytes, NULL, &code);

    if (mem == NULL ||
        clEnqueueFillBuffer(session->queue, mem, &zero, 1, 0, bytes, 0, NULL, NULL) == CL_SUCCESS)
        return mem;
    clReleaseMemObject(mem);
    return NULL;
}

/* One run of plan, made for desc, on zeros. Returns when it has ended. */
static clxent_status run_zeros(const cli_session *session, clxent_plan *plan, const clxent_desc *desc)
{
    const size_t workspace = clxent_plan_workspace_size(plan);
    clxent_args args = CLXENT_ARGS_INIT;

    args.rows = desc->batch * desc->seq;
    for (int t = 0; t < TENSORS; t++)
        if (t != TENSOR_GRAD_OUTPUT && t != TENSOR_DENOMINATOR && tensor_bytes(desc, t) > 0)
            buffer_of(&args, t)->mem = make_zeros(session, tensor_bytes(desc, t));
    if (workspace > 0) args.workspace.mem = make_zeros(session, workspace);
    clxent_status status = clxent_enqueue(plan, session->queue, &args, 0, NULL, NULL);
    const cl_int code = clFinish(session->queue);
    if (status == CLXENT_OK) status = code;
    for (int t = 0; t < TENSORS; t++)
        if (buffer_of(&args, t)->mem != NULL) clReleaseMemObject(buffer_of(&args, t)->mem);
    if (args.workspace.mem != NULL) clReleaseMemObject(args.workspace.mem);
    return status;
}

void suite_set_caches(const char *folder)
{
    static const char *const names[] = { "POCL_CACHE_DIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH", "HOME" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) setenv(names[i], folder, 1);
}

/* Numbers from CASES on are those of the textbook kernel at the shape of case number - CASES. */
int suite_child(const cli_device *device, size_t number)
{
    const bench_options any = { .logits = (size_t)1 << 26 };
    const suite_case *c = &cases[number % CASES];
    const clxent_desc desc = desc_of(c, &any);
    child_report report = { 0 };
    clxent_plan *plan = NULL;
    clxent_status status;
    cli_session session;

    if (number >= 2 * (size_t)CASES || !cli_open(&session, device, false)) return CLI_FAILED;
    const double cpu = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN), start = cli_seconds();
    if (number >= CASES) {
        status = run_textbook(&session, &desc);
    } else {
        status = clxent_plan_create(&plan, session.ctx, &desc);
        report.plan_seconds = cli_seconds() - start;
        if (status == CLXENT_OK && c->measure == measure_cold) status = run_zeros(&session, plan, &desc);
    }
    report.cpu_seconds = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN) - cpu;
    clxent_plan_destroy(plan);
    cli_close(&session);
    printf("%d %.9f %.9f %zu %zu\n", status, report.plan_seconds, report.cpu_seconds, measure_calls().builds,
           measure_calls().log_bytes);
    return CLI_DONE;
}

/* Runs suite_child(number) as a process, whose caches are in folder, where given. CLXENT_ERROR_INTERNAL, after a
 * message, where there is no report; else the status of its plan or run. */
static clxent_status run_child(const cli_device *device, size_t number, const char *folder,
                               child_report *report)
{
    char which[32], index[32], text[256] = "";
    const char *argv[16] = { "/proc/self/exe", "bench", "--child", which, "--device", index };
    const char **end = &argv[6];
    const double before = cpu_seconds(RUSAGE_CHILDREN);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int ends[2], error, ended = -1, status = CLXENT_ERROR_INTERNAL;
    FILE *from;
    pid_t child;

    if (cli_given.tuning != NULL) *end++ = "--tuning", *end++ = cli_given.tuning;
    else if (cli_given.no_tuning) *end++ = "--no-tuning";
    if (folder != NULL) *end++ = "--caches", *end++ = folder;
    snprintf(which, sizeof which, "%zu", number);
    snprintf(index, sizeof index, "%zu", device->index);
    if (pipe(ends) != 0) {
        cli_fail("pipe", "%s", strerror(errno));
        return CLXENT_ERROR_INTERNAL;
    }
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attributes, signals_of_caller()); /* Ctrl-C ends it too */
    error = posix_spawn(&child, argv[0], &actions, &attributes, (char **)argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    from = fdopen(ends[0], "r");
    if (from != NULL) (void)!fgets(text, sizeof text, from);
    if (from != NULL) fclose(from);
    while (error == 0 && waitpid(child, &ended, 0) < 0 && errno == EINTR) {
    }
    report->process_cpu_seconds = cpu_seconds(RUSAGE_CHILDREN) - before;
    if (error == 0 && ended == 0 &&
        sscanf(text, "%d %lf %lf %zu %zu", &status, &report->plan_seconds, &report->cpu_seconds,
               &report->builds, &report->log_bytes) == 5)
        return status;
    if (error != 0) cli_fail(argv[0], "%s", strerror(error));
    else cli_fail("a process of its own", "ended with status %d", ended);
    return CLXENT_ERROR_INTERNAL;
}

static bool check_child(const measure *m, clxent_status status, result *r)
{
    if (status == CLXENT_ERROR_UNSUPPORTED) r->verdict = UNSUPPORTED;
    else if (status != CLXENT_OK && status != CLXENT_ERROR_INTERNAL)
        cli_fail(m->session.device.name, "%s", clxent_status_string(status));
    return status == CLXENT_OK;
}

static FUNCTION(measure_first_plan)
{
    enum { MOST = 88 };
    const size_t number = (size_t)(c - cases), most = o->most_pairs < MOST ? o->most_pairs : MOST;
    const size_t first = o->pairs < most ? o->pairs : most;
    double millis[MOST];
    child_report report;

    /* the first fills the driver's cache */
    if (!check_child(m, run_child(&m->session.device, number, NULL, &report), r)) return false;
    for (size_t done = 0, all = first; done < all; all += summary_wants(&r->figure, c->goal, most)) {
        double sorted[MOST];
        for (; done < all; done++) {
            if (!check_child(m, run_child(&m->session.device, number, NULL, &report), r)) return false;
            millis[done] = 1e3 * report.plan_seconds;
        }
        memcpy(sorted, millis, done * sizeof *millis);
        r->figure = summarize(sorted, done, summary_looks(first, most));
    }
    return true;
}

/* ---- With an empty kernel cache ------------------------------------------------------------- */

static child_report cold_reports[CASES]; /* the latest of each case */
static bool has_cold_report[CASES];

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *at)
{
    (void)info, (void)type, (void)at;
    return remove(path);
}

/* suite_child(number) where drivers and clxent find no compiled kernel. Until its folder is gone no signal ends this
 * process; those of a terminal end the child. */
static clxent_status run_cold(const cli_device *device, size_t number, child_report *report)
{
    const char *parent = getenv("TMPDIR");
    char folder[4096];
    clxent_status status = CLXENT_ERROR_INTERNAL;

    snprintf(folder, sizeof folder, "%s/clxent-cold.XXXXXX",
             parent != NULL && parent[0] != '\0' ? parent : "/tmp");
    signals_hold();
    if (mkdtemp(folder) != NULL) {
        status = run_child(device, number, folder, report);
        nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    } else {
        cli_fail(folder, "cannot be made (TMPDIR names another place): %s", strerror(errno));
    }
    signals_release();
    return status;
}

static FUNCTION(measure_cold)
{
    enum { FIRST = 7, MOST = 14 }; /* seconds each; 7 are the fewest with bounds for two looks */
    const size_t number = (size_t)(c - cases), most = o->most_pairs < MOST ? o->most_pairs : MOST;
    const size_t first = o->pairs < FIRST ? o->pairs : FIRST;
    double plan[MOST], textbook[MOST], whole[2][MOST];

    for (size_t done = 0, all = first; done < all; all += summary_wants(&r->figure, c->goal, most)) {
        double ratio[MOST];
        for (; done < all; done++) {
            child_report report, reference;
            if (!check_child(m, run_cold(&m->session.device, CASES + number, &reference), r) ||
                !check_child(m, run_cold(&m->session.device, number, &report), r))
                return false;
            textbook[done] = reference.cpu_seconds;
            plan[done] = report.cpu_seconds;
            whole[0][done] = reference.process_cpu_seconds;
            whole[1][done] = report.process_cpu_seconds;
            cold_reports[number] = report;
            has_cold_report[number] = true;
            measure_progress(m, done + 1, all);
        }
        for (size_t i = 0; i < done; i++) ratio[i] = plan[i] / textbook[i];
        r->figure = summarize(ratio, done, summary_looks(first, most));
    }
    const size_t pairs = r->figure.count;
    r->seconds = summarize(plan, pairs, 1).median;
    r->reference_seconds = summarize(textbook, pairs, 1).median;
    snprintf(r->note, sizeof r->note,
             "CPU %.2f s over %.2f s; with start and end of the process %.2f over %.2f", r->seconds,
             r->reference_seconds, summarize(whole[1], pairs, 1).median,
             summarize(whole[0], pairs, 1).median);
    return true;
}

/* The most builds, or bytes of their logs, of all cold cases, each of which runs once unless it has. */
static FUNCTION(measure_most_cold)
{
    const bool builds = strcmp(c->unit, "builds") == 0;
    size_t most = 0;
    (void)o;

    for (size_t i = 0; i < CASES; i++) {
        result one = { .verdict = MET };
        if (cases[i].measure != measure_cold) continue;
        if (!has_cold_report[i]) {
            const clxent_status status = run_cold(&m->session.device, i, &cold_reports[i]);
            has_cold_report[i] = check_child(m, status, &one);
            if (one.verdict == UNSUPPORTED) continue;
            if (!has_cold_report[i]) return false;
        }
        const size_t value = builds ? cold_reports[i].builds : cold_reports[i].log_bytes;
        if (value > most) {
            most = value;
            snprintf(r->note, sizeof r->note, "%s", cases[i].name);
        }
    }
    r->figure = summary_of_exact((double)most);
    return true;
}

/* ---- Running and printing ------------------------------------------------------------------- */

static bool selected(const suite_case *c, const char *only)
{
    if (only == NULL) return !c->is_long;
    const char *found = strstr(c->name, only);
    return found != NULL && (!c->is_long || (found == c->name && only[0] != '\0'));
}

size_t suite_count(const char *only)
{
    size_t count = 0;

    for (size_t i = 0; i < CASES; i++) count += selected(&cases[i], only);
    return count;
}

bool suite_needs_blas(const char *only)
{
    for (size_t i = 0; i < CASES; i++)
        if (selected(&cases[i], only) && cases[i].measure == measure_linear && cases[i].against == OPENBLAS)
            return true;
    return false;
}

static void print_json(const suite_case *c, const result *r, const cli_device *device)
{
    cli_json_print(json_pack(
        "{s:s, s:o, s:s, s:o, s:s, s:o, s:o, s:I, s:o, s:o, s:o, s:o, s:s?, s:o}", "case", c->name, "figure",
        cli_json_known(r->figure.median), "unit", c->unit, "goal", cli_json_known(c->goal), "verdict",
        verdicts[r->verdict], "low", cli_json_known(r->figure.low), "high", cli_json_known(r->figure.high),
        "pairs", (json_int_t)r->figure.count, "nt_ratio", cli_json_known(r->nt_ratio), "seconds",
        cli_json_known(r->seconds), "reference_seconds", cli_json_known(r->reference_seconds),
        "reference_gb_per_s", cli_json_known(1e-9 * r->reference_bytes / r->reference_seconds), "note",
        r->note[0] != '\0' ? r->note : NULL, "device", cli_json_text(device->name)));
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
    const bool counts =
        strcmp(c->unit, "launches") == 0 || strcmp(c->unit, "builds") == 0 || strcmp(c->unit, "bytes") == 0;
    const int digits = counts ? 0 : 2;
    char a[7][32], range[80] = "", line[512];

    if (!isnan(r->figure.low))
        snprintf(range, sizeof range, "%s - %s", number(a[0], digits, r->figure.low),
                 number(a[1], digits, r->figure.high));
    int length = snprintf(line, sizeof line, "%-46s %7s  %-15s %-21s %5s  %-12s %6s %8s %8s  %s", c->name,
                          number(a[2], digits, r->figure.median), range, c->unit,
                          number(a[3], digits, c->goal), r->verdict == NO_GOAL ? "" : verdicts[r->verdict],
                          number(a[4], 2, r->nt_ratio), number(a[5], 2, 1e3 * r->seconds),
                          number(a[6], 1, 1e-9 * r->reference_bytes / r->reference_seconds), r->note);

    if (length >= (int)sizeof line) length = (int)sizeof line - 1;
    while (line[length - 1] == ' ') length--;
    printf("%.*s\n", length, line);
}

int suite_run(const bench_options *o)
{
    measure m;
    size_t wanted = suite_count(o->only), done = 0, verdicts_of[VERDICTS] = { 0 };

    memset(&m, 0, sizeof m);
    cli_progress_start("bench");
    if (!measure_open(&m, &o->device, o->logits)) return CLI_FAILED;
    m.looks = summary_looks(o->pairs, o->most_pairs);
    cli_progress_stop();
    if (!cli_given.json) {
        printf("device %zu: %s; %s", o->device.index, o->device.name, "f32 unless a case says otherwise, ");
        printf("%zu logits, median of %zu to %zu pairs and the range in which it lies\n\n", o->logits,
               o->pairs, o->most_pairs);
        printf("%-46s %7s  %-15s %-21s %5s  %-12s %6s %8s %8s\n", "case", "figure", "range", "", "goal", "",
               "/ nt", "ms", "ref GB/s");
    }
    for (size_t i = 0; i < CASES; i++) {
        const suite_case *c = &cases[i];
        result own, *r = &own;

        if (!selected(c, o->only)) continue;
        cli_progress_start("bench");
        m.progress_from = (double)done / (double)wanted;
        m.progress_to = (double)++done / (double)wanted;
        measure_progress(&m, 0, 1);
        *r = (result){ MET, { NAN, NAN, NAN, NAN, NAN, 0 }, NAN, NAN, NAN, NAN, "" };
        if (!c->measure(&m, c, o, r)) {
            if (r->verdict != UNSUPPORTED && r->verdict != NOT_MEASURED) r->verdict = FAILED;
        } else if (r->verdict == MET) {
            r->verdict = summary_verdict(&r->figure, c->goal);
        }
        measure_trim(&m);
        verdicts_of[r->verdict]++;
        cli_progress_stop();
        if (cli_given.json) print_json(c, r, &o->device);
        else print_text(c, r);
        fflush(stdout); /* a run takes minutes, and may be ended before its last case */
    }
    if (!cli_given.json) {
        printf("\n%zu met, %zu missed, %zu unsure, %zu not measured", verdicts_of[MET], verdicts_of[MISSED],
               verdicts_of[UNSURE], verdicts_of[NOT_MEASURED]);
        if (verdicts_of[UNSUPPORTED] > 0) printf(", %zu unsupported", verdicts_of[UNSUPPORTED]);
        if (verdicts_of[FAILED] > 0) printf(", %zu failed", verdicts_of[FAILED]);
        putchar('\n');
    }
    measure_close(&m);
    return verdicts_of[FAILED] > 0 ? CLI_FAILED : CLI_DONE;
}
