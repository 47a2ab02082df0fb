/* SPDX-License-Identifier: MIT
 *
 * eval.h - what `clxent eval` was asked for, and what its files hold. eval.c: flags, the run and its results; eval_inputs.c: from
 * files to arrays that the library takes.
 */
#ifndef CLXENT_TOOLS_EVAL_H
#define CLXENT_TOOLS_EVAL_H

#include "../../host/tensors.h"
#include "cli.h"
#include "tensor_file.h"
#include "verify_case.h"

/* The files: those of the tensors, and that of --tuning. */
enum { TUNING = TENSORS, PATHS };

typedef struct options {
    bool bf16;
    const char *axis_text, *ignore_index; /* as given; NULL: not given */
    int64_t class_axis;
    double denominator;        /* NAN: not given */
    clxent_desc desc;          /* the options that are its fields */
    const char *path[PATHS];   /* as given; NULL: not given */
    const char *file[PATHS];   /* of inputs the part of the path that names the file; new text */
    const char *tensor[PATHS]; /* and the part that names a tensor in it; NULL: none */
    const char *of_targets;    /* the latest flag that changes nothing without targets; NULL: none */
} options;

/* The inputs that logits come from. */
enum {
    MAKES_LOGITS = 1u << TENSOR_LOGITS | 1u << TENSOR_HIDDEN | 1u << TENSOR_WEIGHT | 1u << TENSOR_BIAS,
    LINEAR_GRADIENTS =
        CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT,
    GRADIENTS = CLXENT_OUTPUT_GRADIENT | LINEAR_GRADIENTS
};

/* What a file holds. */
struct eval_file {
    const char *flag;
    enum element element;
    enum shape shape;
};
extern const struct eval_file eval_files[PATHS];

typedef struct job {
    options o;
    clxent_desc desc;
    clxent_host_args args;
    npy_array in[FIRST_OUTPUT];
    void *converted[FIRST_OUTPUT];                  /* another dtype's copy; NULL: none */
    int source;                                     /* TENSOR_LOGITS, or TENSOR_HIDDEN */
    npy_header logits;                              /* also of those that are made: their shape */
    size_t class_axis;                              /* from the front */
    size_t rows, row_axes, row_shape[NPY_MAX_AXES]; /* the logits' shape without the class axis */
    bool indices;                                   /* targets are classes */
    bool as_stored;                                 /* targets have target_type in the file */
    uint32_t acc_dtype;                             /* of sums and weights: f32, f64 with f64 logits */
    double denominator, loss;                       /* stored in it */
    uint64_t ignored, bad, correct;                 /* rows; those that are not ignored or bad count */
    void *losses;                                   /* row losses that no file takes; NULL: a file does */
    npy_output files[OUTPUTS];
    int file_tensor[OUTPUTS]; /* of files[i] */
    size_t num_files;
    double seconds, compile_seconds;
} job;

static inline size_t acc_bytes(const job *j) { return dtype_size(j->acc_dtype); }

static inline const npy_header *header_of(const job *j, int tensor) { return &j->in[tensor].header; }

static inline bool is_linear(const job *j) { return j->source == TENSOR_HIDDEN; }

/* The file that faults of the problem as a whole are said of, and what it holds. */
static inline const char *source_path(const job *j) { return j->o.path[j->source]; }
static inline const char *source_name(const job *j) { return is_linear(j) ? "hidden states" : "logits"; }

static inline bool has_targets(const job *j) { return j->o.path[TENSOR_TARGETS] != NULL; }

/* Whether an output must not have the path of the other file. */
static inline bool is_taken(int other, int output) { return other < output || other == TUNING; }

/* Headers only: nothing is read that a wrong shape would make useless. Like eval_load_inputs() it says what is wrong and
 * returns false. */
bool eval_open_inputs(job *j);
bool eval_load_inputs(job *j); /* the values; counts the rows */

typedef enum row_status { ROW_COUNTS, ROW_IGNORED, ROW_BAD } row_status;

/* As the library decides: shifted off, masked, ignored, out of range, in this order. */
row_status eval_row_status(const job *j, size_t row);

#endif
