/* SPDX-License-Identifier: MIT
 *
 * support.h - what the device tests share: a device, and problem.h's designed problems and checks as Criterion
 * assertions.
 *
 * All checks are Criterion assertions: a function that returns has found nothing wrong.
 */
#ifndef CLXENT_TEST_SUPPORT_H
#define CLXENT_TEST_SUPPORT_H

#include "problem.h"

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
    char *tuning; /* of ctx; NULL: the library's own */
    bool has_f64;
} device;

/* The first GPU, else the first device. None is a failure, or a skipped test where the environment
 * has CLXENT_TEST_ALLOW_NO_DEVICE=1. Plans have the parameters of the file that CLXENT_TEST_TUNING names, in the form of
 * clxent_context_options.tuning. */
void open_device(void);

/* The parts of it: everything of `device` but the tuning, for that id. */
void open_context(cl_device_id id);
void close_context(void);

/* Whether the driver can compile groups of the size that tuning has. Where it cannot, close_device() reports the reason
 * in a line with [SKIP], which test.sh counts. */
struct clxent_tuning;
bool driver_takes(const struct clxent_tuning *tuning);
void skip_unless_driver_takes(const struct clxent_tuning *tuning); /* the whole test */

/* Where the environment has CLXENT_TEST_RATIOS=1, says on stderr how near run_case() came to the bounds. */
void close_device(void);

bool wants_ratios(void); /* CLXENT_TEST_RATIOS=1 */

bool small_run(void); /* CLXENT_TEST_SMALL=1: sizes for an interpreter such as Oclgrind */

/* CLXENT_TEST_FULL=1: every variant times every dtype. Else tests that compile programs of their own, seconds each, take
 * one of each kind: volume() is count in a full run and at most few elsewhere. */
bool full_run(void);
size_t volume(size_t count, size_t few);

/* Whether every combination is run, rather than one of each kind: in a full run, and under Oclgrind, where small cases
 * cost little. A combination of outputs, target type and options is a program that a driver compiles, and compiling
 * takes longer than all cases of it: so the others share the outputs below, with int64 targets, as far as they can. */
bool runs_all(void);

enum {
    /* what training asks for */
    TRAINING_OUTPUTS =
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_BAD_TARGETS,
    /* served by vectors along the classes, see plan.c */
    ALONG_OUTPUTS = TRAINING_OUTPUTS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ENTROPY,
    EVERY_OUTPUT = CROSS_ENTROPY_OUTPUTS,
    /* without those for which log sum_exp is taken from a pass of its own */
    ONE_PASS_OUTPUTS = EVERY_OUTPUT & ~(CLXENT_OUTPUT_LOG_SOFTMAX | CLXENT_OUTPUT_ENTROPY)
};

/* A softcap beside class weights and smoothing: together the program of options on every class that tests share. */
#define SHARED_SOFTCAP 40.0

const char *last_error(void); /* of device.ctx; valid until the next call */

/* Each of words is in last_error(). */
#define WORDS(...) ((const char *const[]){ __VA_ARGS__, NULL })
void check_words(const char *name, const char *const *words);

/* An out-of-order queue, NULL where the device has none. The caller releases it. */
cl_command_queue make_out_of_order_queue(void);

/* The device's parts of one compute unit each, at most 64 that the caller releases; 0 where it cannot be divided. */
cl_uint divide_device(cl_device_id parts[64]);

/* In an OpenCL function that a test defines in front of the loader's: `real`, the loader's. Takes <dlfcn.h>. */
#define REAL(name)          \
    __typeof__(&name) real; \
    *(void **)&real = dlsym(RTLD_NEXT, #name)

/* ---- Problems ------------------------------------------------------------------------------ */

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* batch x seq rows of that dtype; all else by default. */
clxent_desc make_desc(uint32_t outputs, uint32_t dtype, size_t batch, size_t seq, size_t classes);

/* fill_problem() of problem.h, whose fault fails the test. */
void make_problem(problem *p, const clxent_desc *desc, uint32_t fill, uint64_t seed);

/* Memory of n bytes, never NULL; fails the test where there is none. */
void *take_memory(size_t n);

/* check_problem() of problem.h on the device. name begins the text of a failure, repeat_text() ends it. */
void run_case(const char *name, const problem *p, uint32_t flags);

/* The command `clxent verify --case '...'` that repeats a run_case(), and what the test has that the command has not:
 * data of its own, forced parameters. Valid until the next call. */
const char *repeat_text(const problem *p, uint32_t flags);

/* make_problem(), run_case(), free_problem(). */
struct verify_case;
void run_verify_case(const char *name, const struct verify_case *c);
void run_filled_case(const char *name, const clxent_desc *desc, uint32_t fill, uint64_t seed, uint32_t flags);

/* Cases of one name, as `clxent verify --case` reads them. Besides:
 *   field=a|b|c      has its values in turn: case i the one at i, counted round. There are as many cases as the longest list has
 *                    values, or `cases` says; their seeds count up. Lists whose lengths share no factor give all combinations.
 *   all:field=...    takes the place of the field where runs_all(), small:field=... where small_run()
 *   only=all, full   cases of such runs alone
 *   pad=odd, same    gives rows odd paddings, each tensor its own, or all the same one
 * Outputs that the other fields rule out are left out, and so are f64 where the device has none and what is too much for an
 * interpreter. */
typedef struct case_line {
    const char *name, *fields;
} case_line;
void run_lines(const case_line *lines, size_t count);
void each_case(const case_line *lines, size_t count,
               void (*check)(const char *name, const struct verify_case *c));
clxent_desc desc_of(const char *fields); /* of a line of one case */
#define RUN_LINES(...) \
    run_lines((const case_line[]){ __VA_ARGS__ }, COUNT(((const case_line[]){ __VA_ARGS__ })))

/* The outputs above in words. */
#define TRAINING_NAMES "losses+loss+gradient+bad_targets"
#define ALONG_NAMES TRAINING_NAMES "+lse+entropy"
#define ONE_PASS_NAMES TRAINING_NAMES "+lse+softmax+argmax+correct+statistics+computed_denominator+counted"
#define EVERY_NAME ONE_PASS_NAMES "+log_softmax+entropy"

/* A plan of desc with that tuning (NULL: the library's own), never NULL; its failure fails the test. */
clxent_plan *plan_with(const struct clxent_tuning *tuning, const clxent_desc *desc);

/* Elements of a problem's inputs and of the outputs of a run of it, in the types that desc gives them; i counts the
 * elements of the array as it lies in memory. */
double get_logit(const problem *p, size_t i);
void set_logit(const problem *p, size_t i, double value);
int64_t target_of(const problem *p, size_t row);
void set_target(const problem *p, size_t row, int64_t value);
double real_of(const problem *p, const clxent_output *out, size_t i); /* of such an output */

/* The worst that run_case() has seen in this process, or since forget_worst(): of one output's bit, for logits of
 * one dtype. */
worst_error worst_of(uint32_t output, uint32_t dtype);
void forget_worst(void);

/* One run of p on the same kind of buffers, nothing checked: for tests with expectations of their own. The
 * outputs come back in arrays of out, laid out as desc says. */
void run_once(const char *name, clxent_plan *plan, const problem *p, uint32_t outputs, uint32_t flags,
              clxent_host_args *out);
/* The same in a plan of its own with that tuning, all outputs of p->desc. */
void run_with(const char *name, const struct clxent_tuning *tuning, const problem *p, uint32_t flags,
              clxent_host_args *out);
void free_outputs(clxent_host_args *out);
void free_run(problem *p, clxent_host_args *out); /* both */

/* Fails unless the outputs that both have, one at least, have the same bits. */
void check_same_outputs(const char *what, const clxent_host_args *a, const clxent_host_args *b);

/* A device buffer; data: what it holds, NULL: zeros. The caller releases it. */
cl_mem new_buffer(cl_context cl, cl_mem_flags flags, size_t bytes, const void *data);

/* A context that counts the programs that are built for it: counts[0] all, counts[1] those of padding.cl. */
clxent_context *make_counting_context(int counts[2]);

/* The gradient from statistics that another plan saved, held against the reference. */
void run_from_statistics_of(const char *name, const problem *p, uint32_t saved_with);

/* What run_case() makes plans with; clxent_plan_create() unless a test forces a strategy. */
extern clxent_status (*plan_maker)(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc);

/* Makes them of that tuning from now on, in this test. */
void force(const struct clxent_tuning *tuning);

#endif
