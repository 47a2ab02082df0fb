/* SPDX-License-Identifier: MIT
 *
 * internal.h - what the files of host/ share. Nothing here is exported.
 */
#ifndef CLXENT_INTERNAL_H
#define CLXENT_INTERNAL_H

#include "mutex.h"

#include <clxent/clxent.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* MinGW: in C11 its stdio is the standard's, but plain `printf` here means that of msvcrt.dll, without %zu. */
#if defined(__MINGW32__)
#    define CLXENT_PRINTF(fmt, args) __attribute__((format(gnu_printf, fmt, args)))
#elif defined(__GNUC__)
#    define CLXENT_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#    define CLXENT_PRINTF(fmt, args)
#endif

#define CLXENT_TRY(expr)                                  \
    do {                                                  \
        const clxent_status try_status_ = (expr);         \
        if (try_status_ != CLXENT_OK) return try_status_; \
    } while (0)

#define CLXENT_TRY_OR_FAIL(expr)            \
    do {                                    \
        status = (expr);                    \
        if (status != CLXENT_OK) goto fail; \
    } while (0)

/* ---- desc.c: the shapes. No OpenCL call. -------------------------------------------------- */

/* Every tensor a run reads or writes: the inputs, then the outputs in the order of their bits. */
typedef enum clxent_tensor {
#define INPUT(name, NAME, ...) CLXENT_TENSOR_##NAME,
#define OUTPUT(name, NAME, ...) CLXENT_TENSOR_##NAME,
#include "tensors.def"
    CLXENT_TENSORS
} clxent_tensor;
enum { CLXENT_FIRST_OUTPUT = CLXENT_TENSOR_LOSSES };

typedef enum clxent_use { CLXENT_UNUSED, CLXENT_OPTIONAL, CLXENT_REQUIRED } clxent_use;

/* What one tensor of a run must be. */
typedef struct clxent_need {
    clxent_use use;
    size_t element_size; /* bytes */
    size_t bytes;        /* up to the last element touched: the last row ends without its padding,
                            unless that is written */
    size_t row_bytes;    /* bytes from one row to the next, 0 where the tensor does not grow with the
                            rows; with inner > 1: from one slab to the next for [rows, classes] tensors */
    bool is_matrix;  /* [rows, classes] or [rows, features]: in a batch in parts, the part's own rows only */
    char shape[128]; /* "[rows 6, classes 4] f32, row stride 4", for messages */
} clxent_need;

const char *clxent_tensor_name(clxent_tensor tensor); /* the field's name: "logits" */

/* The fields of the tensor; const is dropped from inputs, which have the layout of outputs but for it. */
clxent_buffer *clxent_tensor_buffer(clxent_args *args, clxent_tensor tensor);
clxent_output *clxent_tensor_array(clxent_host_args *args, clxent_tensor tensor);

/* Where a value comes from, see tensors.def. */
typedef enum clxent_made {
    CLXENT_MADE_INPUT,
    CLXENT_MADE_CLASSES,
    CLXENT_MADE_ROW,
    CLXENT_MADE_LOSSES,
    CLXENT_MADE_TARGETS_PASS,
    CLXENT_MADE_PRODUCT
} clxent_made;
uint32_t clxent_outputs_made(clxent_made made);    /* CLXENT_OUTPUT_* bits */
uint32_t clxent_outputs_of_rows(uint32_t outputs); /* those that take more than a pass over the targets */
/* The operation's main kernel has the tensor among its arguments, which are in the order of clxent_tensor. */
bool clxent_tensor_is_argument(uint32_t op, clxent_tensor tensor);
bool clxent_op_reads(uint32_t op, clxent_tensor input);

/* Fails with CLXENT_ERROR_INVALID_DESC where the bytes overflow size_t, naming the tensor in text.
 * outputs is a subset of desc->outputs; statistics_in: the run reads statistics (gradient run). */
clxent_status clxent_tensor_need(const clxent_desc *desc, uint32_t outputs, bool statistics_in, size_t rows,
                                 clxent_tensor tensor, clxent_need *need, char *text, size_t size);

/* Rows that no part of a batch divides: 1, or with inner > 1 a slab, or with shift > 0 a sequence; the least common
 * multiple with both. At least 1; divides batch * seq. */
size_t clxent_part_unit(const clxent_desc *desc);

/* Outputs that are gradients of the loss: all that is divided by the denominator but the loss. */
#define CLXENT_GRADIENTS                                                                      \
    (CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT | \
     CLXENT_OUTPUT_BIAS_GRADIENT)

size_t clxent_dtype_size(uint32_t dtype);        /* 4, 2, 2, 8 bytes; 0 for an unknown one */
const char *clxent_dtype_name(uint32_t dtype);   /* "f32"; "unknown" */
size_t clxent_acc_size(const clxent_desc *desc); /* 4, 8 for f64 logits */
bool clxent_accumulates(const clxent_desc *desc, clxent_tensor tensor); /* a gradient, by its mode */
uint32_t clxent_gradient_dtype(const clxent_desc *desc);                /* never 0 */
bool clxent_targets_are_indices(const clxent_desc *desc);
bool clxent_needs_targets(const clxent_desc *desc, uint32_t outputs); /* some output depends on targets */

/* *product = a * b; false on overflow. */
bool clxent_size_mul(size_t a, size_t b, size_t *product);
/* Takes rows * columns * size bytes of a workspace, and aligns what comes next; false on overflow. */
bool clxent_reserve(size_t *used, size_t rows, size_t columns, size_t size, size_t *at);

/* snprintf that accepts text == NULL; always returns status. */
clxent_status clxent_fail_text(char *text, size_t size, clxent_status status, const char *format, ...)
    CLXENT_PRINTF(4, 5);

/* ---- structs.c: the structs that callers fill. No OpenCL call. ------------------------------ */

typedef enum clxent_struct {
    CLXENT_STRUCT_DESC,
    CLXENT_STRUCT_ARGS,
    CLXENT_STRUCT_HOST_ARGS,
    CLXENT_STRUCT_CONTEXT_OPTIONS,
    CLXENT_STRUCT_REFERENCE_RESULTS
} clxent_struct;

/* Copies a caller's struct of any version up to ours: the fields it has, our defaults for the rest, our struct_size.
 * Where its struct_size is not the end of a field, leaves `to` alone and fails with CLXENT_ERROR_INVALID_ARGUMENT,
 * a desc with CLXENT_ERROR_INVALID_DESC. */
clxent_status clxent_struct_copy(clxent_struct kind, void *to, const void *from, char *text, size_t size);

/* ---- context.c ---------------------------------------------------------------------------- */

/* What the device says of itself, queried once. */
typedef struct clxent_device {
    char name[128], vendor[128], driver[128], version[64];
    cl_device_type type;
    cl_uint compute_units;
    size_t max_work_group;                                /* along the first dimension */
    cl_ulong local_memory, global_memory, max_allocation; /* bytes */
    cl_uint address_bits;
    bool has_f64;
    bool sm_80;            /* an NVIDIA GPU of compute capability 8.0 or more */
    bool host_memory;      /* CL_DEVICE_HOST_UNIFIED_MEMORY */
    cl_uint native_floats; /* CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT */
} clxent_device;

struct clxent_context {
    cl_context cl;
    cl_device_id id;
    clxent_device device;
    clxent_log_fn log;
    void *log_payload;
    clxent_store store;                /* the application's; no functions: none */
    struct clxent_tuning_rows *tuning; /* likewise; NULL: none */
    struct clxent_cache *cache; /* programs, errors, their lock and the reference count: context.c only */
};

void clxent_context_retain(clxent_context *ctx);

/* Records the text as the context's last error, hands it to the log, returns status. */
clxent_status clxent_fail(clxent_context *ctx, clxent_status status, const char *format, ...)
    CLXENT_PRINTF(3, 4);
void clxent_log(clxent_context *ctx, const char *format, ...) CLXENT_PRINTF(2, 3);

/* CLXENT_OK for CL_SUCCESS; else records "what: CL_..." and returns the cl_int. */
clxent_status clxent_check_cl(clxent_context *ctx, cl_int code, const char *what);
clxent_status clxent_kernel_create(clxent_context *ctx, cl_program program, const char *name, cl_kernel *out);

/* The embedded program kernels/programs/FILE, built with options: from the context's cache, else from the application's
 * store, else compiled, and kept in both. The caller releases it. Thread-safe; two threads asking for one program at once
 * may both compile, one result is kept. */
clxent_status clxent_program_get(clxent_context *ctx, const char *file, const char *options, cl_program *out);

/* kernels.c, made by tools/cmake/embed.cmake: every file of kernels/programs as bytes, with what it includes. */
typedef struct clxent_source {
    const char *name; /* "rows.cl" */
    const unsigned char *text;
    size_t length;
} clxent_source;
extern const clxent_source clxent_sources[]; /* ends with name == NULL */

/* ---- sha256.c. No OpenCL call. -------------------------------------------------------------- */

enum { CLXENT_SHA256_BYTES = 32 };

typedef struct clxent_sha256 {
    uint32_t state[8];
    uint64_t bytes; /* added so far */
    unsigned char block[64];
} clxent_sha256;

void clxent_sha256_begin(clxent_sha256 *hash);
void clxent_sha256_add(clxent_sha256 *hash, const void *data, size_t size);
void clxent_sha256_end(clxent_sha256 *hash, unsigned char digest[CLXENT_SHA256_BYTES]);

/* ---- store.c: the application's store of compiled programs ---------------------------------- */

typedef struct clxent_key {
    char text[2 * CLXENT_SHA256_BYTES + 1];
} clxent_key;

/* False where the context has no store, or the device does not say what its programs depend on. */
bool clxent_store_key(const clxent_context *ctx, const clxent_source *source, const char *options,
                      clxent_key *key);

/* A built program, the caller's; NULL where the store has none that the driver takes. */
cl_program clxent_store_load(const clxent_context *ctx, const clxent_key *key, const char *options);

/* program: built, from source. */
void clxent_store_save(const clxent_context *ctx, const clxent_key *key, cl_program program);

/* ---- tuning.c ------------------------------------------------------------------------------ */

/* The parameters of tuning.def, in its order. */
typedef struct clxent_tuning {
    uint32_t group, vector, block, cache, elements, stream;
    uint32_t piece, split;
    uint32_t lane_classes, lane_group, lane_vector, lane_cache;
    uint32_t native_exp;
} clxent_tuning;

/* Rows that the application handed over. One block of memory: the caller frees it. */
typedef struct clxent_tuning_rows clxent_tuning_rows;

/* text as tuning.def has it. On failure *out is NULL and fault names line, field, what it got and what it takes. */
clxent_status clxent_tuning_parse(clxent_tuning_rows **out, const char *text, char *fault, size_t size);

/* The first row that fits, of own (may be NULL), then of tuning.def. */
clxent_tuning clxent_tuning_choose(const clxent_tuning_rows *own, const clxent_device *device,
                                   const clxent_desc *desc);

/* tuning within what the device has and desc's layout allows. */
clxent_tuning clxent_tuning_clamp(const clxent_tuning *tuning, const clxent_device *device,
                                  const clxent_desc *desc);

/* Why device's driver cannot be given groups of so many work-items, and the most that it takes; NULL where it can. */
const char *clxent_tuning_driver_fault(const clxent_device *device, uint32_t group, uint32_t *most);

/* ---- plan.c, enqueue.c --------------------------------------------------------------------- */

/* How a plan's rows are shared out; map_row.cl and map_lane.cl say more. */
typedef enum clxent_strategy {
    CLXENT_STRATEGY_ROWS,  /* whole rows a work-group; the building blocks too */
    CLXENT_STRATEGY_SPLIT, /* a row over several groups: the bits of CLXENT_STRATEGY_ROWS */
    CLXENT_STRATEGY_LANES  /* rows side by side in a vector */
} clxent_strategy;

/* Rows whose losses one work-item of a CPU sums rather than that another kernel is launched. */
#define CLXENT_MOST_ROWS_ALONE 1024u

struct clxent_plan {
    clxent_context *ctx; /* a reference */
    clxent_desc desc;    /* complete: no field of it means "default" any more */
    clxent_tuning tuning;
    clxent_strategy shares;
    size_t rows;      /* batch * seq */
    size_t span_rows; /* rows that the workspace has room for: all, but see clxent_part */
    size_t part_rows; /* most rows of a run; likewise */
    size_t reduce_unit, partials_per_unit; /* clxent_parameters has both */
    size_t rows_per_group, tiles_per_group;
    size_t piece_vectors, pieces;
    uint32_t group; /* work-items in a group, of every kernel but the folds and `padding` */
    uint32_t padding_group;
    uint32_t tile, columns;  /* of lanes: rows, vectors of a work-item */
    bool along;              /* of lanes: ALONG */
    uint32_t local_elements; /* of local memory, of the main kernel */
    bool second_pass;        /* a row's sums may be taken once more, see epilogue.cl, count_passes() */
    cl_uint flags;           /* FLAG_* that follow from the plan alone */
    cl_kernel main;          /* of the op; of split rows the partials */
    cl_kernel finalize;      /* NULL unless rows are split */
    cl_kernel padding;       /* NULL unless the gradient's is to be zero, and it has some */
    cl_kernel reduce_targets, reduce_losses;                       /* NULL where no run needs them */
    size_t denominator_at, partials_at, row_losses_at, correct_at; /* bytes into the workspace */
    size_t pieces_at, excluding_at;
    size_t workspace_size;
    char strategy[320];
    struct clxent_linear
        *linear; /* of CLXENT_OP_LINEAR_CROSS_ENTROPY, which has none of the kernels here; else NULL */
    /* Guards `latest` and the kernels' arguments: nothing else of a plan changes once it is made. */
    mutex lock;
    struct { /* what clxent_tensor_need() said for the latest run: the next is usually alike */
        bool valid, statistics_in;
        uint32_t outputs;
        size_t rows, span_rows;
        clxent_need needs[CLXENT_TENSORS];
    } latest;
};

/* clxent_plan_create() with parameters other than the table's, clamped to the device: for tests that force every
 * variant on the device at hand, and for the tuner. */
clxent_status clxent_plan_create_tuned(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc,
                                       const clxent_tuning *tuning);

/* What a plan builds, and launches its main kernel with. */
enum { CLXENT_OPTIONS_SIZE = 512 };
typedef struct clxent_plan_build {
    const char *file; /* of kernels/programs */
    char options[CLXENT_OPTIONS_SIZE];
    uint32_t group;
    size_t local_bytes; /* of the argument; a kernel declares more itself */
} clxent_plan_build;

/* The program of a plan on a device with these facts, without a device and without compiling: for tests/gpu_options.c. A
 * driver that takes the kernels in smaller groups only gets another program, see choose_program() of plan.c. own: as
 * clxent_tuning_choose() takes them; desc has this version's size. */
clxent_status clxent_plan_program(const clxent_tuning_rows *own, const clxent_device *device,
                                  const clxent_desc *desc, clxent_plan_build *build);

/* The same of a matrix product of CLXENT_OP_LINEAR_CROSS_ENTROPY: "logits", "hidden" or "weight". In work-groups of one
 * work-item local_bytes, which blocks decide, is 0 too. */
clxent_status clxent_linear_program(const clxent_tuning_rows *own, const clxent_device *device,
                                    const clxent_desc *desc, const char *name, clxent_plan_build *build);

/* A batch in parts, for host_arrays.c: the [rows, classes] and [rows, features] tensors come part by part, one enqueue
 * each, in order, on one in-order queue. All parts share one workspace, which keeps the denominator and what is reduced
 * over the rows. Outputs of all parts have the bits of one clxent_enqueue() over the batch, but for the gradients of
 * weight and bias.
 *
 * A part is a multiple of clxent_part_unit() rows. [rows] buffers hold the whole batch, or, where that does not fit
 * the device, one span of it after the other: each a multiple of clxent_span_unit() rows, but for the last. A pass
 * goes over all spans. CLXENT_OP_LINEAR_CROSS_ENTROPY takes one span. */
typedef enum clxent_pass {
    /* What clxent_enqueue() does, for a batch in one part. */
    CLXENT_PASS_ALL = 0,
    /* The denominator and bad_targets, over the whole span: needs index targets, class_weights, row_weights. */
    CLXENT_PASS_TARGETS = 1,
    /* Everything else, with the denominator of the pass over the targets. A span's last part reduces its rows, the
     * batch's last part writes loss and correct. */
    CLXENT_PASS_LOGITS = 2
} clxent_pass;

typedef struct clxent_part {
    clxent_pass pass;
    size_t total_rows;            /* of the batch */
    size_t span_first, span_rows; /* of the batch, in the [rows] buffers */
    size_t first_row;             /* of the batch; args.rows from there on are this part, all in the span */
    size_t target_rows_behind;    /* of probability targets, in their buffer behind those of the part */
} clxent_part;

size_t clxent_span_unit(const clxent_desc *desc);             /* a multiple of clxent_part_unit() */
size_t clxent_partials(const clxent_plan *plan, size_t rows); /* that reduce.cl makes of rows; at least 1 */

/* A plan for parts of a batch: most rows of a span, most rows of a part. tuning: NULL: the table's. */
clxent_status clxent_plan_create_parts(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc,
                                       const clxent_tuning *tuning, size_t span_rows, size_t part_rows);

/* What is known of such a plan without building it. A device that takes a kernel in smaller groups only may need more. */
typedef struct clxent_plan_facts {
    size_t workspace; /* bytes that suffice whatever the number of compute units */
    uint32_t group;   /* work-items in a group of rows */
    char strategy[192];
} clxent_plan_facts;
clxent_status clxent_plan_measure(clxent_plan_facts *facts, clxent_context *ctx, const clxent_desc *desc,
                                  const clxent_tuning *tuning, size_t span_rows, size_t part_rows);

/* part: NULL: the batch in one, as clxent_enqueue(). */
clxent_status clxent_enqueue_part(clxent_plan *plan, cl_command_queue queue, const clxent_args *args,
                                  const clxent_part *part, cl_uint num_wait, const cl_event *wait,
                                  cl_event *event);

#endif
