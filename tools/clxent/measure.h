/* SPDX-License-Identifier: MIT
 *
 * measure.h - timing on a device: runs of plans, and of kernels that only move the same bytes, taken in turn, so that
 * what disturbs the machine disturbs both. Every function that can fail says why on stderr, as cli_fail() does.
 */
#ifndef CLXENT_TOOLS_MEASURE_H
#define CLXENT_TOOLS_MEASURE_H

#include "../bench/hand.h"
#include "cli.h"
#include "summary.h"
#include "verify_case.h"

/* ---- blas.c --------------------------------------------------------------------------------- */

/* OpenBLAS, which needs not be there: its library is opened at run time. */
typedef struct blas {
    const struct blas_functions *functions; /* NULL: why_not */
    const char *library;                    /* the name it was opened by */
    char core[64], config[256];             /* its kernels, its version and how it was built */
    bool chose_core;                        /* clxent has set OPENBLAS_CORETYPE */
    int threads;
    char why_not[256];
} blas;

/* library: the only name to open; NULL: the usual ones. May set OPENBLAS_CORETYPE, so call it before any call of
 * OpenCL, whose threads may read the environment. */
void blas_open(blas *b, const char *library);
bool blas_prepare(blas *b,
                  const cli_device *device); /* as many threads as device; false where not to be used */

/* The products of a linear cross-entropy, of f32 or f64 arrays. */
typedef struct blas_problem {
    bool f64;
    size_t rows, features, classes;          /* at most INT_MAX each */
    void *hidden, *weight, *logits;          /* [rows, features], [classes, features], [rows, classes] */
    void *hidden_gradient, *weight_gradient; /* NULL: the logits alone are computed */
} blas_problem;
void blas_run(const blas *b, const blas_problem *p); /* returns when the results are there */

/* ---- bench_hand.c --------------------------------------------------------------------------- */

enum {
    HAND_AUTO,
    HAND_AVX2,
    HAND_AVX512,
    HAND_NONE
};                                        /* instruction sets; HAND_AUTO: what the device compiles for */
enum { HAND_ROWS, HAND_TEN, HAND_PLAIN }; /* functions of hand.h */
typedef struct hand_pool hand_pool;

hand_pool *hand_open(uint32_t set, const cli_device *device, const char **why_not); /* NULL: not to be had */
void hand_close(hand_pool *pool);                                                   /* accepts NULL */
const char *hand_name(const hand_pool *pool);       /* of the instruction set */
bool hand_prepare(hand_pool *pool, size_t classes); /* before runs of so many */
double hand_run(hand_pool *pool, const hand_problem *p, int which, unsigned variant); /* the mean loss */

/* ---- measure.c ------------------------------------------------------------------------------ */

/* Kernels that move bytes and compute next to nothing; a run may consist of several, one after the other. */
enum {
    MOVE_COPY = 1 << 0,     /* reads the logits, writes as much elsewhere */
    MOVE_STREAM = 1 << 1,   /* the same with stores that bypass the caches: what memory can do at best */
    MOVE_READ = 1 << 2,     /* reads the logits, keeps their maximum */
    MOVE_IN_PLACE = 1 << 3, /* reads and writes back */
    MOVE_TWO = 1 << 4       /* reads the logits and as many bytes more, writes as much as one of them */
};
enum { MOVES = 5, KERNELS = MOVES + 6 };

enum { DTYPES = CLXENT_F64 };
typedef struct bulk {
    cl_mem mem;
    size_t bytes;
} bulk;

/* One thing to time: a plan, clxent_run_host(), moves, OpenBLAS or hand-written code. Owns its small buffers; the large ones are shared. */
typedef struct timed {
    uint32_t moves; /* MOVE_* */
    size_t empty;   /* launches of a kernel that does nothing, before the moves */
    size_t bytes;   /* of the logits */
    uint32_t dtype;
    clxent_plan *plan; /* NULL: moves or host */
    clxent_args args;
    bool restore; /* in place: the logits are put back before each run, untimed */
    bool is_host; /* clxent_run_host() of desc and host */
    clxent_desc desc;
    clxent_host_args host;
    const blas *blas; /* NULL: none; else its products of */
    blas_problem products;
    bool is_hand; /* of the buffers of run plan_run, which are mapped for the time of a run */
    size_t plan_run;
    hand_problem problem;
    int which;
    unsigned variant;
    cl_mem mapped[3];
    double loss; /* of the latest run */
} timed;

enum { MOST_RUNS = 16 };

typedef struct measure {
    cli_session session;
    size_t elements;    /* that most runs have */
    size_t cache_bytes; /* of the largest cache; 0: not known */
    bool has_stream;    /* the compiler has stores that bypass the caches; else MOVE_STREAM is MOVE_COPY */
    cl_kernel kernels[KERNELS];
    size_t group, each; /* of move: work-items of a group, vectors of a work-item */
    size_t vector;      /* bytes */
    bulk bulks[TENSORS + 1]
              [DTYPES]; /* of tensors, the last of workspaces, by dtype - 1: all runs share them */
    hand_pool *hand;    /* NULL: none; closed with the rest */
    double progress_from, progress_to; /* the part of the progress line that measure_times() fills */
    timed runs[MOST_RUNS];             /* what takes turns */
    size_t num_runs, pairs, repeats;
    double *seconds; /* [pairs][num_runs], of the latest measure_times() and since */
    size_t looks;    /* of summarize(); 1 unless changed */
} measure;

/* elements: of the logits of most runs. */
bool measure_open(measure *m, const cli_device *device, size_t elements);
void measure_close(measure *m); /* accepts a zeroed one */
void measure_trim(measure *m);  /* releases the runs, and the large buffers that f32 does not use */

/* done of all in the part of the progress line. */
void measure_progress(const measure *m, size_t done, size_t all);

/* A mean loss and other outputs of [rows, classes] against I32 targets; features 0: of logits, else of hidden states. */
clxent_desc measure_desc(uint32_t outputs, uint32_t dtype, size_t rows, size_t features, size_t classes);

/* These make run number run, in the place of another that it was. Moves: of logits of so many bytes. */
bool timed_move(measure *m, size_t run, uint32_t moves, uint32_t dtype, size_t bytes);

/* A run of desc on data of the measure's making: logits uniform in [-8, 8), targets over all classes, of which the part
 * ignored, spread evenly over the rows, is ignore_index, weights in [0.5, 1.5), probabilities in [0, 1), hidden states in
 * [-1, 1), a weight in [-0.1, 0.1). *status, optional, is CLXENT_ERROR_UNSUPPORTED where the device cannot,
 * CLXENT_ERROR_INVALID_DESC where workspace_limit is too small; then nothing is said. in_place: gradient or softmax replaces
 * the logits. */
bool timed_plan(measure *m, size_t run, const clxent_desc *desc, bool in_place, double ignored,
                clxent_status *status);

/* The same through clxent_run_host() on arrays in host memory, which hold what plan's buffers hold. plan: a run made by
 * timed_plan() with in_place false. */
bool timed_host(measure *m, size_t run, size_t plan);

size_t linear_bytes(const measure *m, size_t run); /* of its inputs, outputs and workspace */

/* OpenBLAS's products of desc, one or, with gradients, three: in f64 where desc is, else in f32. b stays where it is. */
bool timed_blas(measure *m, size_t run, const blas *b, const clxent_desc *desc);

/* Hand-written code, through m->hand, on the buffers of plan, a run made by timed_plan(). */
bool timed_hand(measure *m, size_t run, size_t plan, int which, unsigned variant);

/* Whether hand-written code, run number hand, gives the loss and gradient of its plan; else says what differs. */
bool measure_agrees(measure *m, size_t hand);

/* Releases runs from number on. */
void measure_cut(measure *m, size_t number);

/* Runs all in turn, pairs times, after two turns that are not counted. Runs so short that a clock's tick or a launch's
 * latency would count are repeated within a turn; the seconds are those of one. Where OpenBLAS is among them each waits
 * until the threads of the one before sleep. */
bool measure_times(measure *m, size_t pairs);
bool measure_more(measure *m, size_t pairs); /* adds as many */

bool measure_enqueue(measure *m, size_t run); /* once, without waiting for it */

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

/* ---- bench.c, bench_linear.c, bench_suite.c -------------------------------------------------- */

/* What `clxent bench` is asked for. */
typedef struct bench_options {
    cli_device device;
    uint32_t op, dtype, hand;       /* hand: HAND_AUTO and so on */
    size_t rows, features, classes; /* 0: not given */
    size_t log2_logits, logits;
    size_t pairs, most_pairs; /* 0: not given */
    bool suite, loop, backward, sweep;
    size_t limit;          /* of the workspace: MiB as given, then bytes; 0: none */
    double ignored;        /* part of the rows, less than 1 */
    const char *only;      /* cases whose name has it; NULL: all but the long ones */
    const char *plot;      /* NULL: no picture */
    const char *library;   /* OpenBLAS's; NULL: the usual ones */
    const char *of_suite;  /* an option given that only a suite takes */
    const char *single;    /* an option given that a suite does not take */
    const char *of_linear; /* one that only --op linear takes, and one that it does not */
    const char *not_of_linear;
    const char *child, *caches; /* of suite_child(); NULL: not given */
    blas *blas;
} bench_options;

/* Cross-entropy of hidden states and a weight, the gradients of both with backward. */
clxent_desc linear_desc(const bench_options *o);

/* These measure and print; the result is the exit status. */
int linear_run(const bench_options *o);
int suite_run(const bench_options *o);

size_t suite_count(const char *only); /* cases that only names */
bool suite_needs_blas(const char *only);

/* Case number of suite_run(), in the process of its own that suite_run() starts. */
int suite_child(const cli_device *device, size_t number);
void suite_set_caches(
    const char *folder); /* where drivers keep compiled kernels; before any call of OpenCL */

#endif
