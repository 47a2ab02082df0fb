/* SPDX-License-Identifier: MIT
 *
 * parameters.cl - what the host tells every kernel: one struct, passed by value, and its constants.
 *
 * Read by two compilers: by OpenCL C as the first part of every program, and by host/parameters.h, which has
 * the cl_ types stand for u64, i64 and u32. Hence plain C, 8-byte members first, no padding.
 */
#if !defined(CLXENT_PARAMETERS_H)
typedef ulong u64;
typedef long i64;
typedef uint u32;
#endif

/* Offsets of the caller's buffers, in elements, by name. */
typedef struct clxent_offsets {
    u64 logits, probabilities, targets, class_weights, row_weights, grad_output, denominator, grad_entropy,
        grad_lse, hidden, weight, bias;
    u64 losses, loss, lse, softmax, log_softmax, gradient, argmax, correct, entropy, statistics;
    u64 bad_targets, one_hot, computed_denominator, counted, hidden_gradient, weight_gradient, bias_gradient;
} clxent_offsets;

typedef struct clxent_parameters {
    u64 rows; /* of this launch */
    u64 first_row; /* of the batch, that the [rows] buffers begin with: bad_targets counts from the batch's first */
    u64 seq, shift, inner;
    u64 first_timestep; /* of row 0, in its sequence */
    u64 target_rows;    /* that probability targets have, from row 0 on */
    u64 row_stride, gradient_row_stride, probabilities_row_stride, target_row_stride;
    u64 denominator_at, partials_at, row_losses_at, correct_at, pieces_at,
        excluding_at; /* bytes into the workspace */
    /* reduce.cl: every reduce_unit rows are partials_per_unit partials, of REDUCE_ROWS rows each but for the last */
    u64 reduce_unit, partials_per_unit;
    u64 partials; /* of the batch; 1: no fold is launched */
    u64 tiles;    /* map_lane.cl: of a slab */
    i64 ignore_index;
    /* Options that are numbers: the bits of an acc_t, see ACC_OF(). smoothing_per_class: label_smoothing /
     * classes; one_minus_smoothing: 1 - label_smoothing */
    u64 one_minus_smoothing, smoothing_per_class, smoothing, z_loss, logit_scale, softcap;
    clxent_offsets offset;
    u32 classes;
    u32 outputs;        /* CLXENT_OUTPUT_* bits: the values below are the same */
    u32 flags;          /* FLAG_* */
    u32 local_elements; /* of local memory behind `local_rows`; 0: none */
    u32 rows_per_group;
    u32 piece_vectors; /* of a row that make a piece; part of what decides bits */
    u32 pieces;        /* of a row */
    u32 tiles_per_group;
} clxent_parameters;

/* One product of product.cl. Offsets and strides in elements. */
typedef struct clxent_product {
    u64 a, b, c, bias;
    u64 a_stride, b_stride, c_stride;
    u64 list_at, panels_at; /* into the workspace, in uints and in acc_t */
    u32 classes, features;
    u32 first, most;                /* of the rows of the list: this product's */
    u32 block_m, block_n, blocks_m; /* of C, for a group */
    u32 depth;                      /* of k, between two additions to a block */
    u32 sums_at, copy_at;           /* elements of local memory */
    u32 adds;                       /* 1: to what C has */
    u32 has_bias;
} clxent_product;

#define OUTPUT_LOSSES (1u << 0)
#define OUTPUT_LOSS (1u << 1)
#define OUTPUT_LSE (1u << 2)
#define OUTPUT_SOFTMAX (1u << 3)
#define OUTPUT_LOG_SOFTMAX (1u << 4)
#define OUTPUT_GRADIENT (1u << 5)
#define OUTPUT_ARGMAX (1u << 6)
#define OUTPUT_CORRECT (1u << 7)
#define OUTPUT_ENTROPY (1u << 8)
#define OUTPUT_STATISTICS (1u << 9)
#define OUTPUT_BAD_TARGETS (1u << 10)
#define OUTPUT_ONE_HOT (1u << 11)
#define OUTPUT_COMPUTED_DENOMINATOR (1u << 12)
#define OUTPUT_COUNTED (1u << 13)
#define OUTPUT_HIDDEN_GRADIENT (1u << 14)
#define OUTPUT_WEIGHT_GRADIENT (1u << 15)
#define OUTPUT_BIAS_GRADIENT (1u << 16)

#define TARGET_NONE 0u
#define TARGET_I32 1u
#define TARGET_I64 2u
#define TARGET_U8 3u
#define TARGET_PROBABILITIES_F32 4u
#define TARGET_PROBABILITIES_LOGITS 5u
#define TARGET_U16 6u
#define TARGET_U32 7u

#define FLAG_IGNORE_INDEX (1u << 0) /* ignore_index is in use */
#define FLAG_ROW_WEIGHTS (1u << 1)
#define FLAG_GRAD_OUTPUT (1u << 2)
#define FLAG_GRAD_OUTPUT_ROWS (1u << 3) /* grad_output is [rows] */
#define FLAG_DENOMINATOR (1u << 4)      /* the caller gave one */
#define FLAG_MEAN (1u << 5)             /* divides by the sum of weights, unless FLAG_DENOMINATOR */
#define FLAG_FROM_STATISTICS (1u << 6)  /* statistics are an input */
#define FLAG_NONTEMPORAL (1u << 7)      /* large results bypass the cache; changes no bit */
#define FLAG_ALL_IGNORED_ZERO (1u << 8)
#define FLAG_OWN_TARGETS (1u << 9) /* no pass over the targets went before: every group makes it for itself */
#define FLAG_SECOND_PASS (1u << 10)
#define FLAG_KEEPS_LOGITS (1u << 11) /* map_lane.cl: with room for the exponentials beside them */
#define FLAG_BAD_IGNORED (1u << 12)  /* a target out of range is ignored, not NaN */
#define FLAG_ALONE (1u << 13)        /* the group that writes row 0 has all rows, and reduces them too */
#define FLAG_FOLD (1u << 14)         /* reduce.cl: the batch's partials are there */

/* Whether log sum_exp must have its full relative precision, so that a confident row's comes from a second pass, which
 * leaves out the maximum. has_dense: every class has its own a_j. */
#define NEEDS_FINE_LSE(has_dense, outputs) \
    ((has_dense) || ((outputs) & (OUTPUT_LOG_SOFTMAX | OUTPUT_ENTROPY)) != 0)

/* Rows that one partial sum of reduce.cl covers, at most. Part of what decides the bits of a mean: never derived
 * from the device. */
#define REDUCE_ROWS 4096u

/* Bytes of one partial in the workspace; reduce.cl has its members. */
#define PARTIAL_BYTES 64u

/* Of the sums of a piece of a row, of fused.cl. */
#define RECORD_BYTES 256u
/* Of lanes: neighbours' classes between two looks at the maximum, and classes that a tile has room for at least, so that it can
 * be transposed. The host lays out local memory by both. */
#define NEIGHBOUR_CLASSES 32u
#define LEAST_CLASSES 4u
