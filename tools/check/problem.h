/* SPDX-License-Identifier: MIT
 *
 * problem.h - problems filled with data that is designed to catch named bugs, and check_problem(), which runs one
 * on a device and holds all it wrote against the reference. `clxent verify` and the device tests share it.
 *
 * A function that returns false has found a fault and says in one line which; it neither prints nor exits.
 * Knows the library by its public headers and host/tensors.def only: sizes of arrays are worked out here, so that a library
 * that counted them wrongly is found out.
 */
#ifndef CLXENT_TOOLS_PROBLEM_H
#define CLXENT_TOOLS_PROBLEM_H

#include <clxent/clxent.h>
#include <clxent/reference.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct problem_fault {
    char text[1024];
} problem_fault;

/* Writes the line and returns false. */
bool say_fault(problem_fault *f, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- Random numbers and storage ------------------------------------------------------------ */

typedef struct random_state {
    uint64_t state;
} random_state;

random_state random_start(uint64_t seed);
uint32_t random_u32(random_state *random);
double random_uniform(random_state *random, double low, double high);

double get_element(const void *data, uint32_t dtype, size_t index);
void put_element(void *data, uint32_t dtype, size_t index, double value);
size_t dtype_size(uint32_t dtype);            /* bytes of an element */
uint32_t real_dtype(const clxent_desc *desc); /* of losses, lse, entropy, weights */
int64_t get_target(const void *data, uint32_t target_type, size_t index);
void put_target(void *data, uint32_t target_type, size_t index, int64_t value);

/* Element r, j of a [rows, classes] tensor of desc with this row stride (0: without padding), inner included. */
size_t element_index(const clxent_desc *desc, size_t stride, size_t row, size_t class_index);

bool has_index_targets(const clxent_desc *desc); /* not probabilities */
size_t index_size(uint32_t target_type);         /* bytes of an index target; 0 for probabilities */

/* ---- Tensors ------------------------------------------------------------------------------- */

/* Those of tensors.def: TENSOR_LOGITS and the other inputs, then TENSOR_LOSSES and the other outputs in the order of their
 * bits. */
enum {
#define INPUT(name, NAME, ...) TENSOR_##NAME,
#define OUTPUT(name, NAME, ...) TENSOR_##NAME,
#include "../../host/tensors.def"
    TENSORS,
    FIRST_OUTPUT = TENSOR_LOSSES,
    OUTPUTS = TENSORS - FIRST_OUTPUT,
    /* bits of all that CLXENT_OP_CROSS_ENTROPY gives */
    CROSS_ENTROPY_OUTPUTS = 0
#define OP(name) (1 << CLXENT_OP_##name)
#define OUTPUT(name, NAME, element, shape, stride, operations, ...) \
    | (((operations)&OP(CROSS_ENTROPY)) != 0 ? CLXENT_OUTPUT_##NAME : 0)
#include "../../host/tensors.def"
#undef OP
};
extern const char *const tensor_names[TENSORS + 1]; /* the fields' names; ends with NULL */

/* The tensor's field. Inputs are alike, but for const. */
clxent_buffer *buffer_of(clxent_args *args, int tensor);
clxent_output *array_of(const clxent_host_args *args, int tensor);

/* Bytes of the tensor in a run of all that desc has; 0 where the run has none. An optional one counts. */
size_t tensor_bytes(const clxent_desc *desc, int tensor);

/* What a run of desc can give of its operation's outputs, desc.outputs aside. */
uint32_t possible_outputs(const clxent_desc *desc);

/* Whether the error of an output shows that of the arithmetic: integers and one_hot are exact, and the bound of what is
 * stored narrower than computed, or added to what was there, is reached by that one rounding. */
bool shows_arithmetic(const clxent_desc *desc, int tensor);

/* ---- Problems ------------------------------------------------------------------------------ */

/* Which rows and arrays a problem has. Row kinds cycle with the row number; each part has a comment in
 * problem.c that names the bug it is there to catch. */
enum {
    FILL_PLAIN = 0,            /* uniform in [-8, 8) */
    FILL_DESIGNED = 1 << 0,    /* finite: all negative, above exp's overflow, equal maxima, a dominant logit,
                                  denormals, large offsets, maximum first and last */
    FILL_MASKED = 1 << 1,      /* -inf among finite logits, long leading blocks of it; never the target's */
    FILL_SPECIAL = 1 << 2,     /* NaN, +inf, rows of -inf, the target's logit -inf */
    FILL_IGNORED = 1 << 3,     /* every fifth target is ignore_index */
    FILL_BAD_TARGETS = 1 << 4, /* some targets, one with ALL_IGNORED: below 0, at classes, beyond 32 bits */
    FILL_GRAD_OUTPUT = 1 << 5, /* gives grad_output where it is optional */
    FILL_DENOMINATOR = 1 << 6, /* gives denominator, of either sign */
    FILL_HIT = 1 << 7, /* every second target is its row's maximum: correct predictions, small losses */
    FILL_ALL_IGNORED = 1 << 8,      /* every target is ignore_index, but for one with BAD_TARGETS */
    FILL_STEADY = 1 << 9,           /* rows of equal logits but for one */
    FILL_ZERO_DENOMINATOR = 1 << 10 /* gives denominator 0 */
};

/* Inputs of desc in host memory, exactly as large as desc needs (logits as a gradient in their place needs), padding
 * filled with NaN. gradient holds numbers to add to where desc accumulates. Outputs are absent. */
typedef struct problem {
    clxent_desc desc;
    clxent_host_args args;
    uint32_t fill; /* as fill_problem() got them */
    uint64_t seed;
} problem;

bool fill_problem(problem *p, const clxent_desc *desc, uint32_t fill, uint64_t seed, problem_fault *f);
void free_problem(problem *p); /* also after a failure */

/* ---- Comparison ---------------------------------------------------------------------------- */

typedef struct close_report {
    size_t bad, first; /* how many elements, and the first of them */
    double worst;      /* the largest error / bound; infinite where the bound is 0 or got is not finite */
} close_report;

/* The worst of many results of one output. */
typedef struct worst_error {
    double ratio; /* error / bound */
    double ulps;  /* error / ulp of the result in its own storage, of numbers that have not underflowed */
} worst_error;

/* |got - want| <= bound, element by element; NaN and infinite wants exactly. */
close_report compare(const double *got, const double *want, const double *bound, size_t n);

/* ---- Runs ---------------------------------------------------------------------------------- */

enum {
    CASE_IN_PLACE = 1 << 0,     /* gradient (without one: softmax, else log_softmax) is logits itself */
    CASE_SUBSETS = 1 << 1,      /* each output also alone: the same bits */
    CASE_LARGER_PLAN = 1 << 2,  /* a plan for more rows than are run */
    CASE_OUT_OF_ORDER = 1 << 3, /* on an out-of-order queue, where there is one */
    CASE_ALIGNED = 1 << 4,      /* buffers begin at offset 0: the cases of aligned fast paths */
    CASE_PARTS = 1 << 6,        /* also in parts, cut anywhere by the problem's seed: the same bits */
    CASE_RUN_ONCE = 1 << 7,     /* no second run: an interpreter takes the same steps again */
    CASE_HOST_ARRAYS =
        1 << 5 /* also by clxent_run_host(), with args.max_chunk_bytes or the next double of it that
                                   is not too small: the same bits, or CLXENT_ERROR_BAD_TARGET and no output but
                                   the record where a target is bad */
};

/* What problems are run on. */
typedef struct runner {
    cl_context cl;
    cl_command_queue queue;        /* in-order */
    cl_command_queue out_of_order; /* NULL: the device has none */
    clxent_context *ctx;
    clxent_status (*make_plan)(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc);
} runner;

/* A tensor in memory as the host saw it before the run and after. Canaries lie on both sides of it. */
typedef struct image {
    cl_mem mem;            /* NULL: in host memory */
    unsigned char *before; /* NULL: absent */
    unsigned char *after;  /* the tensor begins at after + front */
    size_t front, bytes, total;
} image;

/* One run: everything it could have touched. */
typedef struct execution {
    image images[TENSORS];
    image workspace;
    int in_place; /* the tensor whose memory is the logits'; -1: none */
} execution;

/* Runs p once in fresh buffers at an odd offset and reads everything back. outputs: those of p->desc to compute;
 * flags: CASE_IN_PLACE, CASE_OUT_OF_ORDER, CASE_ALIGNED; saved: NULL, or an earlier execution whose statistics this
 * one, a gradient run, begins from. */
bool execute(execution *e, const runner *on, clxent_plan *plan, const problem *p, uint32_t outputs,
             const execution *saved, uint32_t flags, problem_fault *f);
/* The same by clxent_run_host(), all outputs, whose status is returned in *status. */
bool execute_on_host(execution *e, const runner *on, const problem *p, uint32_t flags, size_t max_chunk_bytes,
                     clxent_status *status, problem_fault *f);
void free_execution(execution *e); /* also after a failure */
const image *image_of(const execution *e, int tensor);

/* The parts of check_problem(). worst[i], where worst is given, receives the largest errors of output i
 * if they are larger than what it holds. */
bool check_reference(const problem *p, const execution *e, worst_error worst[OUTPUTS], problem_fault *f);
/* nothing but the elements of outputs changed */
bool check_untouched(const problem *p, const execution *e, uint32_t outputs, problem_fault *f);
/* what: "in a second run" */
bool check_same_bits(const char *what, const problem *p, const execution *a, const execution *b,
                     uint32_t outputs, problem_fault *f);

/* Runs p on the device, every buffer with canaries on both sides and at an odd offset, and compares every
 * output of p->desc with the reference and its bounds. Also checks that
 *   - nothing but the outputs' own elements changed: canaries, padding and inputs are as before, and the gradient's
 *     padding is 0 where desc says so;
 *   - a second run gives the same bits, unless flags have CASE_RUN_ONCE;
 *   - with statistics and gradient among the outputs, the gradient from saved statistics has the same bits;
 *   - the flags' promises hold;
 *   - a plan without desc's workspace_limit, where it has one, gives the same bits.
 * In parts, on host arrays and without the limit the sums over rows of products (weight_gradient, bias_gradient) have other
 * bits: they are compared with the reference. A workspace_limit that is too small is doubled until it is not. */
bool check_problem(const runner *on, const problem *p, uint32_t flags, worst_error worst[OUTPUTS],
                   problem_fault *f);

#endif
