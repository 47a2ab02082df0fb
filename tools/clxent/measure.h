/* SPDX-License-Identifier: MIT
 *
 * measure.h - timing on a device: runs of plans, and of kernels that only move the same bytes, taken in turn, so that
 * what disturbs the machine disturbs both. Every function that can fail says why on stderr, as cli_fail() does.
 */
#ifndef CLXENT_TOOLS_MEASURE_H
#define CLXENT_TOOLS_MEASURE_H

#include "cli.h"
#include "verify_case.h"

/* Kernels that move bytes and compute next to nothing; a run may consist of several, one after the other. */
enum {
    MOVE_COPY = 1 << 0,     /* reads the logits, writes as much elsewhere */
    MOVE_STREAM = 1 << 1,   /* the same with stores that bypass the caches: what memory can do at best */
    MOVE_READ = 1 << 2,     /* reads the logits, keeps their maximum */
    MOVE_IN_PLACE = 1 << 3, /* reads and writes back */
    MOVE_TWO = 1 << 4       /* reads the logits and as many bytes more, writes as much as one of them */
};
enum { MOVES = 5 };

/* A large buffer that all runs share. */
typedef struct bulk {
    cl_mem mem;
    size_t bytes;
    bool filled;
} bulk;

/* One thing to time: a plan, clxent_run_host() or moves. Owns its small buffers; the large ones are shared. */
typedef struct timed {
    uint32_t moves; /* MOVE_* */
    size_t bytes;   /* of the logits */
    uint32_t dtype;
    clxent_plan *plan; /* NULL: moves or host */
    clxent_args args;
    bool restore; /* in place: the logits are put back before each run, untimed */
    bool is_host; /* clxent_run_host() of desc and host */
    clxent_desc desc;
    clxent_host_args host;
    cl_mem owned[16];
    size_t num_owned;
} timed;

enum { MOST_RUNS = 8 };

typedef struct measure {
    cli_session session;
    cl_command_queue queue;
    size_t elements;    /* that most runs have */
    size_t cache_bytes; /* of the largest cache; 0: not known */
    bool has_stream;    /* the compiler has stores that bypass the caches; else MOVE_STREAM is MOVE_COPY */
    cl_kernel move[MOVES], fill[5];
    size_t group, each;                /* of move: work-items of a group, vectors of a work-item */
    size_t vector;                     /* bytes */
    bulk logits[4], results[4];        /* by dtype - 1 */
    bulk labels;                       /* probabilities, f32 */
    double progress_from, progress_to; /* the part of the progress line that measure_times() fills */
    timed runs[MOST_RUNS];             /* what takes turns */
    size_t num_runs, pairs;
    double *seconds; /* [pairs][num_runs], of the latest measure_times() */
} measure;

/* elements: of the logits of most runs. */
bool measure_open(measure *m, const cli_device *device, size_t elements);
void measure_close(measure *m); /* accepts a zeroed one */
void measure_clear(measure *m); /* releases the runs */
void measure_trim(measure *m);  /* and the large buffers that f32 does not use */

/* done of all in the part of the progress line. */
void measure_progress(const measure *m, size_t done, size_t all);

/* These make run number run, in the place of another that it was. Moves: of logits of so many bytes. */
bool timed_move(measure *m, size_t run, uint32_t moves, uint32_t dtype, size_t bytes);

/* A run of desc, of op CROSS_ENTROPY, on data of the measure's making: logits uniform in [-8, 8), targets over all
 * classes, weights in [0.5, 1.5), probabilities in [0, 1). *status, optional, is CLXENT_ERROR_UNSUPPORTED where the
 * device cannot; then nothing is said. in_place: gradient or softmax replaces the logits. */
bool timed_plan(measure *m, size_t run, const clxent_desc *desc, bool in_place, clxent_status *status);

/* The same through clxent_run_host() on arrays in host memory, which hold what plan's buffers hold. plan: a run made by
 * timed_plan() with in_place false, index targets and no weights. */
bool timed_host(measure *m, size_t run, size_t plan);

/* Runs all in turn, pairs times, after two turns that are not counted. Runs so short that a clock's tick or a launch's
 * latency would count are repeated within a turn; the seconds are those of one. */
bool measure_times(measure *m, size_t pairs);

bool measure_enqueue(measure *m, size_t run); /* once, without waiting for it */

typedef struct summary {
    double median, least, most;
} summary;
summary summarize(double *values, size_t count); /* sorts them */

summary times_of(const measure *m, size_t run); /* of one run */
/* Of the quotients of two runs in the same turn. */
summary ratio_of(const measure *m, size_t over, size_t under);

/* Kernel launches and program builds of this process, libclxent's included, until now. */
typedef struct cl_calls {
    size_t launches, builds;
    size_t log_bytes; /* of the builds' logs */
} cl_calls;
cl_calls measure_calls(void);

/* tools/bench/<name>, embedded by tools/cmake/embed.cmake. */
typedef struct bench_source {
    const char *name;
    const unsigned char *text;
    size_t length;
} bench_source;
enum { SOURCE_MOVES, SOURCE_SOFTMAX };
extern const bench_source bench_sources[];

/* Builds one of them; the caller releases it. NULL on failure. */
cl_program measure_program(const cli_session *session, size_t source, const char *options);

/* One run of plan, made for desc, on rows of zeros (compile.c). Returns when it has ended. */
clxent_status launch_zeros(const cli_session *session, clxent_plan *plan, const clxent_desc *desc,
                           size_t rows);

/* ---- bench_suite.c -------------------------------------------------------------------------- */

typedef struct suite_options {
    cli_device device;
    size_t logits, pairs;
    const char *only; /* optional: cases whose name has it */
} suite_options;

size_t suite_count(const char *only);  /* cases that only names */
int suite_run(const suite_options *o); /* measures and prints them; the exit status */

/* Case number of suite_run(), in the process of its own that suite_run() starts. */
int suite_child(const cli_device *device, size_t number);
void suite_set_caches(
    const char *folder); /* where drivers keep compiled kernels; before any call of OpenCL */

#endif
