/* SPDX-License-Identifier: MIT
 *
 * support.h - what the device tests share: a device, problems filled with data that is designed to catch named
 * bugs, and run_case(), which runs a problem on the device and compares everything with the reference.
 *
 * All checks are Criterion assertions: a function that returns has found nothing wrong.
 */
#ifndef CLXENT_TEST_SUPPORT_H
#define CLXENT_TEST_SUPPORT_H

#include <clxent/clxent.h>
#include <clxent/reference.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Device -------------------------------------------------------------------------------- */

/* Filled by open_device(), the .init of a test; close_device() is its .fini. */
extern struct test_device {
    cl_context cl;
    cl_device_id id;
    cl_command_queue queue; /* in-order */
    clxent_context *ctx;
    bool has_f64;
} device;

/* The first GPU, else the first device. None is a failure, or a skipped test where the environment
 * has CLXENT_TEST_ALLOW_NO_DEVICE=1. */
void open_device(void);

/* Where the environment has CLXENT_TEST_RATIOS=1, says on stderr how near run_case() came to the bounds. */
void close_device(void);

bool wants_ratios(void); /* CLXENT_TEST_RATIOS=1 */

/* Whether the driver compiles the row kernel for work-groups of more than one within a test's time. PoCL 3.1
 * does not: it copies everything behind a conditional barrier, once for each way to get there. Oclgrind does. */
bool compiles_groups(void);

bool small_run(void);         /* CLXENT_TEST_SMALL=1: sizes for an interpreter such as Oclgrind */
const char *last_error(void); /* of device.ctx; valid until the next call */

/* An out-of-order queue, NULL where the device has none. The caller releases it. */
cl_command_queue make_out_of_order_queue(void);

/* ---- Random numbers and storage ------------------------------------------------------------ */

typedef struct random_state {
    uint64_t state;
} random_state;

uint32_t random_u32(random_state *random);
double random_uniform(random_state *random, double low, double high);

double get_element(const void *data, uint32_t dtype, size_t index);
void put_element(void *data, uint32_t dtype, size_t index, double value);
int64_t get_target(const void *data, uint32_t target_type, size_t index);
void put_target(void *data, uint32_t target_type, size_t index, int64_t value);

/* Element r, j of a [rows, classes] tensor of desc with this row stride (0: dense), inner included. */
size_t element_index(const clxent_desc *desc, size_t stride, size_t row, size_t class_index);

/* ---- Problems ------------------------------------------------------------------------------ */

/* Which rows and arrays a problem has. Row kinds cycle with the row number; each part has a comment in
 * support.c that names the bug it is there to catch. */
enum {
    FILL_PLAIN = 0,            /* uniform in [-8, 8) */
    FILL_DESIGNED = 1 << 0,    /* finite: all negative, above exp's overflow, equal maxima, a dominant logit,
                                  denormals, large offsets, maximum first and last */
    FILL_MASKED = 1 << 1,      /* -inf among finite logits, long leading blocks of it; never the target's */
    FILL_SPECIAL = 1 << 2,     /* NaN, +inf, rows of -inf, the target's logit -inf */
    FILL_IGNORED = 1 << 3,     /* every fifth target is ignore_index */
    FILL_BAD_TARGETS = 1 << 4, /* some targets below 0, at classes, beyond 32 bits */
    FILL_UPSTREAM = 1 << 5,    /* gives upstream where it is optional */
    FILL_DENOMINATOR = 1 << 6, /* gives denominator */
    FILL_HIT = 1 << 7 /* every second target is its row's maximum: correct predictions, small losses */
};

/* Inputs of desc in host memory, exactly as large as desc needs, padding filled with NaN. gradient holds
 * numbers to add to where desc accumulates. Outputs are absent. */
typedef struct problem {
    clxent_desc desc;
    clxent_host_args args;
} problem;

void make_problem(problem *p, const clxent_desc *desc, uint32_t fill, uint64_t seed);
void free_problem(problem *p);

/* Memory of n bytes, never NULL; fails the test where there is none. */
void *take_memory(size_t n);

/* ---- Comparison ---------------------------------------------------------------------------- */

typedef struct close_report {
    size_t bad, first; /* how many elements, and the first of them */
    double worst;      /* the largest error / bound; infinite where the bound is 0 or got is not finite */
} close_report;

/* |got - want| <= bound, element by element; NaN and infinite wants exactly. */
close_report compare(const double *got, const double *want, const double *bound, size_t n);

/* ---- run_case ------------------------------------------------------------------------------ */

enum {
    CASE_IN_PLACE = 1 << 0,     /* gradient (without one: softmax, else log_softmax) is logits itself */
    CASE_SUBSETS = 1 << 1,      /* each output also alone: the same bits */
    CASE_LARGER_PLAN = 1 << 2,  /* a plan for more rows than are run */
    CASE_OUT_OF_ORDER = 1 << 3, /* on an out-of-order queue, where there is one */
    CASE_ALIGNED = 1 << 4       /* buffers begin at offset 0: the cases of aligned fast paths */
};

/* Runs p on the device, every buffer with canaries on both sides and at an odd offset, and compares every
 * output of p->desc with the reference and its bounds. Also checks that
 *   - nothing but the outputs' own elements changed: canaries, padding and inputs are as before;
 *   - a second run gives the same bits;
 *   - with statistics and gradient among the outputs, the gradient from saved statistics has the same bits;
 *   - the flags' promises hold.
 * name begins the text of a failure. */
void run_case(const char *name, const problem *p, uint32_t flags);

/* make_problem(), run_case(), free_problem(). */
void run_filled_case(const char *name, const clxent_desc *desc, uint32_t fill, uint64_t seed, uint32_t flags);

/* The worst that run_case() has seen in this process, or since forget_worst(): of one output's bit, for logits of
 * one dtype. */
typedef struct worst_error {
    double ratio; /* error / bound */
    double ulps;  /* error / ulp of the result in its own storage */
} worst_error;

worst_error worst_of(uint32_t output, uint32_t dtype);
void forget_worst(void);

/* One run of p on the same kind of buffers, nothing checked: for tests with expectations of their own. The
 * outputs come back in arrays of out, laid out as desc says. */
void run_once(const char *name, clxent_plan *plan, const problem *p, uint32_t outputs, uint32_t flags,
              clxent_host_args *out);
void free_outputs(clxent_host_args *out);

/* What run_case() makes plans with; clxent_plan_create() unless a test forces a strategy. */
extern clxent_status (*plan_maker)(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc);

#endif
