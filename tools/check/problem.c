/* SPDX-License-Identifier: MIT
 *
 * problem.c - see problem.h. Three parts: what a problem holds, one run of it between canaries, and what must be true
 * of the run.
 */
#include "problem.h"

#include "../../host/tensors.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool say_fault(problem_fault *f, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(f->text, sizeof f->text, format, list);
    va_end(list);
    return false;
}

/* malloc that never asks for nothing, of which malloc may make NULL. */
static void *take(size_t n, problem_fault *f)
{
    void *memory = malloc(n > 0 ? n : 1);
    if (memory == NULL) say_fault(f, "malloc of %zu bytes failed", n);
    return memory;
}

/* ---- Random numbers and storage ------------------------------------------------------------ */

/* PCG-XSH-RR 64/32: the same numbers on every machine, which rand() does not promise. */
uint32_t random_u32(random_state *random)
{
    const uint64_t old = random->state;
    const uint32_t mixed = (uint32_t)(((old >> 18) ^ old) >> 27);
    const unsigned turn = (unsigned)(old >> 59);
    random->state = old * 6364136223846793005u + 1442695040888963407u;
    return mixed >> turn | mixed << (-turn & 31u);
}

random_state random_start(uint64_t seed)
{
    random_state random = { seed * 0x9E3779B97F4A7C15u + 1 };
    /* the state's low bits take a few turns to reach what is drawn from it */
    for (int i = 0; i < 4; i++) random_u32(&random);
    return random;
}

double random_uniform(random_state *random, double low, double high)
{
    return low + (high - low) * (random_u32(random) * 0x1p-32);
}

size_t dtype_size(uint32_t dtype) { return dtype == CLXENT_F64 ? 8 : dtype == CLXENT_F32 ? 4 : 2; }

double get_element(const void *data, uint32_t dtype, size_t index)
{
    const char *at = (const char *)data + index * dtype_size(dtype);
    uint16_t bits;
    float single;
    double value = 0;

    switch (dtype) {
    case CLXENT_F32: memcpy(&single, at, sizeof single); return single;
    case CLXENT_F64: memcpy(&value, at, sizeof value); return value;
    default: memcpy(&bits, at, sizeof bits);
    }
    return dtype == CLXENT_F16 ? clxent_f16_to_double(bits) : clxent_bf16_to_double(bits);
}

void put_element(void *data, uint32_t dtype, size_t index, double value)
{
    char *at = (char *)data + index * dtype_size(dtype);
    uint16_t bits;
    float single;

    switch (dtype) {
    case CLXENT_F32:
        single = (float)value;
        memcpy(at, &single, sizeof single);
        return;
    case CLXENT_F64: memcpy(at, &value, sizeof value); return;
    default:
        bits = dtype == CLXENT_F16 ? clxent_f16_from_double(value) : clxent_bf16_from_double(value);
        memcpy(at, &bits, sizeof bits);
    }
}

int64_t get_target(const void *data, uint32_t target_type, size_t index)
{
    switch (target_type) {
#define INDEX_TYPE(NAME, word, type)                              \
    case CLXENT_TARGET_##NAME: {                                  \
        type value;                                               \
        memcpy(&value, (const type *)data + index, sizeof value); \
        return value;                                             \
    }
#include "../../host/options.def"
    default: return -1;
    }
}

void put_target(void *data, uint32_t target_type, size_t index, int64_t value)
{
    switch (target_type) {
#define INDEX_TYPE(NAME, word, type)                    \
    case CLXENT_TARGET_##NAME: {                        \
        const type own = (type)value;                   \
        memcpy((type *)data + index, &own, sizeof own); \
        return;                                         \
    }
#include "../../host/options.def"
    default: return;
    }
}

size_t element_index(const clxent_desc *desc, size_t stride, size_t row, size_t class_index)
{
    const size_t slab = stride != 0 ? stride : desc->classes * desc->inner;
    return row / desc->inner * slab + class_index * desc->inner + row % desc->inner;
}

/* ---- Tensors ------------------------------------------------------------------------------- */

static const struct tensor {
    enum element element;
    enum shape shape;
    size_t stride; /* its offset in clxent_desc */
    uint32_t operations;
    enum { DEPENDS_LOGITS, DEPENDS_TARGETS, DEPENDS_INDICES } depends;
    enum { REFERENCE_BOUNDED, REFERENCE_EXACT, REFERENCE_INTEGER, REFERENCE_OPAQUE } reference;
    size_t buffer, array; /* offsets in clxent_args and clxent_host_args */
} tensors[TENSORS] = {
#define STRIDE(name) offsetof(clxent_desc, name)
#define NO_STRIDE 0
#define OP(name) (1u << CLXENT_OP_##name)
#define OFFSETS(name) offsetof(clxent_args, name), offsetof(clxent_host_args, name)
#define INPUT(name, NAME, element, shape, stride, operations, npy) \
    { ELEMENT_##element, SHAPE_##shape, stride, operations, DEPENDS_LOGITS, REFERENCE_OPAQUE, OFFSETS(name) },
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, npy) \
    { ELEMENT_##element, SHAPE_##shape,         stride,       operations,                     \
      DEPENDS_##depends, REFERENCE_##reference, OFFSETS(name) },
#include "../../host/tensors.def"
};

const char *const tensor_names[TENSORS + 1] = {
#define INPUT(name, ...) #name,
#define OUTPUT(name, ...) #name,
#include "../../host/tensors.def"
};

clxent_buffer *buffer_of(clxent_args *args, int tensor)
{
    return (clxent_buffer *)(void *)((char *)args + tensors[tensor].buffer);
}

clxent_output *array_of(const clxent_host_args *args, int tensor)
{
    return (clxent_output *)(void *)((char *)args + tensors[tensor].array);
}

static uint32_t output_bit(int tensor) { return tensor < FIRST_OUTPUT ? 0 : 1u << (tensor - FIRST_OUTPUT); }

/* Whether the operation reads or gives the tensor. */
static bool has_tensor(uint32_t op, int tensor) { return (tensors[tensor].operations >> op & 1u) != 0; }

static size_t rows_of(const clxent_desc *desc) { return desc->batch * desc->seq; }

static uint32_t real_dtype(const clxent_desc *desc)
{
    return desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
}

enum {
    GRADIENTS = CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT |
                CLXENT_OUTPUT_BIAS_GRADIENT
};

static bool accumulates(const clxent_desc *desc, int tensor)
{
    switch (tensor) {
    case TENSOR_GRADIENT: return desc->gradient_mode == CLXENT_GRADIENT_ACCUMULATE;
    case TENSOR_HIDDEN_GRADIENT: return desc->hidden_gradient_mode == CLXENT_GRADIENT_ACCUMULATE;
    case TENSOR_WEIGHT_GRADIENT: return desc->weight_gradient_mode == CLXENT_GRADIENT_ACCUMULATE;
    case TENSOR_BIAS_GRADIENT: return desc->bias_gradient_mode == CLXENT_GRADIENT_ACCUMULATE;
    default: return false;
    }
}

static uint32_t dtype_of(const clxent_desc *desc, enum element element)
{
    const uint32_t own = element == ELEMENT_GRADIENT          ? desc->gradient_dtype
                         : element == ELEMENT_HIDDEN_GRADIENT ? desc->hidden_gradient_dtype
                         : element == ELEMENT_WEIGHT_GRADIENT ? desc->weight_gradient_dtype
                         : element == ELEMENT_BIAS_GRADIENT   ? desc->bias_gradient_dtype
                                                              : 0;
    return own != 0 ? own : desc->dtype;
}

size_t index_size(uint32_t target_type)
{
    static const size_t sizes[] = {
#define INDEX_TYPE(NAME, word, type) [CLXENT_TARGET_##NAME] = sizeof(type),
#include "../../host/options.def"
    };
    return target_type < sizeof sizes / sizeof *sizes ? sizes[target_type] : 0;
}

bool has_index_targets(const clxent_desc *desc) { return index_size(desc->target_type) != 0; }

uint32_t possible_outputs(const clxent_desc *desc)
{
    uint32_t outputs = 0;

    for (int t = FIRST_OUTPUT; t < TENSORS; t++) {
        if (has_tensor(desc->op, t) && (tensors[t].depends != DEPENDS_INDICES || has_index_targets(desc)))
            outputs |= output_bit(t);
    }
    if (desc->reduction == CLXENT_REDUCTION_NONE) outputs &= ~CLXENT_OUTPUT_LOSS;
    if (desc->bad_target != CLXENT_BAD_TARGET_REPORT) outputs &= ~CLXENT_OUTPUT_BAD_TARGETS;
    if (desc->has_bias == 0) outputs &= ~CLXENT_OUTPUT_BIAS_GRADIENT;
    return outputs;
}

/* Outputs that the targets decide need them, and the weights with them. */
static bool needs_targets(const clxent_desc *desc)
{
    for (int t = FIRST_OUTPUT; has_tensor(desc->op, TENSOR_TARGETS) && t < TENSORS; t++)
        if ((desc->outputs & output_bit(t)) != 0 && tensors[t].depends != DEPENDS_LOGITS) return true;
    return false;
}

/* What a pass over the targets gives, without logits or probabilities. */
enum {
    OUTPUTS_OF_TARGETS =
        CLXENT_OUTPUT_BAD_TARGETS | CLXENT_OUTPUT_COMPUTED_DENOMINATOR | CLXENT_OUTPUT_COUNTED
};

/* Whether a run of outputs takes the tensor at all; grad_output and denominator it need not be given. */
static bool takes(const clxent_desc *desc, uint32_t outputs, int tensor)
{
    const bool rows_are_read = (outputs & ~(uint32_t)OUTPUTS_OF_TARGETS) != 0;

    switch (tensor) {
    case TENSOR_LOGITS:
    case TENSOR_PROBABILITIES:
    case TENSOR_HIDDEN:
    case TENSOR_WEIGHT: return has_tensor(desc->op, tensor) && rows_are_read;
    case TENSOR_BIAS: return desc->has_bias != 0 && rows_are_read;
    case TENSOR_TARGETS: return needs_targets(desc);
    case TENSOR_CLASS_WEIGHTS: return desc->has_class_weights != 0 && needs_targets(desc);
    case TENSOR_ROW_WEIGHTS: return desc->has_row_weights != 0 && needs_targets(desc);
    case TENSOR_GRAD_OUTPUT: return (outputs & GRADIENTS) != 0;
    case TENSOR_GRAD_ENTROPY: return desc->has_grad_entropy != 0 && (outputs & GRADIENTS) != 0;
    case TENSOR_GRAD_LSE: return desc->has_grad_lse != 0 && (outputs & GRADIENTS) != 0;
    case TENSOR_DENOMINATOR:
        return has_tensor(desc->op, tensor) && (outputs & (CLXENT_OUTPUT_LOSS | GRADIENTS)) != 0;
    default: return (outputs & output_bit(tensor)) != 0;
    }
}

/* How the elements of a tensor lie: rows x columns of them. */
typedef struct layout {
    size_t rows, columns, element_size, stride;
    bool matrix;    /* [rows, classes], see element_index() */
    bool own_rows;  /* in a batch in parts, those of the part */
    bool full;      /* ends with the padding of its last row */
    uint32_t dtype; /* 0: integers */
} layout;

static void set_element(layout *l, const clxent_desc *desc, enum element element)
{
    const bool target = element == ELEMENT_TARGET, index = target && has_index_targets(desc);
    const bool narrow = target && desc->target_type == CLXENT_TARGET_PROBABILITIES_F32;

    l->dtype = element > ELEMENT_TARGET || index                      ? 0
               : narrow                                               ? CLXENT_F32
               : target && desc->op == CLXENT_OP_LINEAR_CROSS_ENTROPY ? real_dtype(desc)
               : element == ELEMENT_REAL                              ? real_dtype(desc)
                                                                      : dtype_of(desc, element);
    l->element_size = l->dtype != 0 ? dtype_size(l->dtype) : index ? index_size(desc->target_type) : 8;
}

static layout layout_of(const clxent_desc *desc, int tensor)
{
    const bool given_rows = desc->reduction == CLXENT_REDUCTION_NONE;
    struct tensor own = tensors[tensor];
    layout l = { .rows = rows_of(desc), .columns = 1 };

    if (tensor == TENSOR_GRAD_OUTPUT && desc->op == CLXENT_OP_SOFTMAX_BACKWARD)
        own = tensors[TENSOR_PROBABILITIES];
    else if ((tensor == TENSOR_GRAD_OUTPUT && given_rows) ||
             (tensor == TENSOR_TARGETS && has_index_targets(desc)))
        own.shape = SHAPE_ROWS;
    set_element(&l, desc, own.element);
    switch (own.shape) {
    case SHAPE_ONE:
        l.rows = 1;
        l.columns = own.element == ELEMENT_RECORD ? 3 : 1;
        break;
    case SHAPE_ROWS: break;
    case SHAPE_STATISTICS: l.columns = desc->has_grad_entropy != 0 ? 3 : 2; break;
    case SHAPE_CLASSES: l.rows = desc->classes; break;
    case SHAPE_MATRIX:
        l.columns = desc->classes;
        l.matrix = true;
        l.own_rows = true;
        memcpy(&l.stride, (const char *)desc + own.stride, sizeof l.stride);
        /* logits too: a gradient in their place needs it */
        l.full = desc->gradient_padding == CLXENT_GRADIENT_PADDING_ZERO &&
                 (tensor == TENSOR_LOGITS || tensor == TENSOR_GRADIENT);
        break;
    case SHAPE_HIDDEN:
    case SHAPE_WEIGHT:
        if (own.shape == SHAPE_WEIGHT) l.rows = desc->classes;
        l.columns = desc->features;
        l.own_rows = own.shape == SHAPE_HIDDEN;
        memcpy(&l.stride, (const char *)desc + own.stride, sizeof l.stride);
        break;
    }
    return l;
}

bool shows_arithmetic(const clxent_desc *desc, int tensor)
{
    return tensors[tensor].reference == REFERENCE_BOUNDED &&
           layout_of(desc, tensor).dtype == real_dtype(desc) && !accumulates(desc, tensor);
}

/* Index of an element in the tensor's own memory. */
static size_t index_of(const clxent_desc *desc, const layout *l, size_t row, size_t column)
{
    if (l->matrix) return element_index(desc, l->stride, row, column);
    return row * (l->stride != 0 ? l->stride : l->columns) + column;
}

/* Byte of element number k, counted row by row. */
static size_t offset_of(const clxent_desc *desc, const layout *l, size_t k)
{
    return index_of(desc, l, k / l->columns, k % l->columns) * l->element_size;
}

/* Elements of a row or slab without its padding, and with it. */
static size_t slab_elements(const clxent_desc *desc) { return desc->classes * desc->inner; }

static size_t slab_stride(const clxent_desc *desc, const layout *l)
{
    return l->stride != 0 ? l->stride : slab_elements(desc);
}

/* Up to the last element: the last row ends without its padding, unless that is written. */
static size_t layout_bytes(const clxent_desc *desc, const layout *l)
{
    if (l->rows == 0) return 0;
    if (l->full) return l->rows / desc->inner * slab_stride(desc, l) * l->element_size;
    return (index_of(desc, l, l->rows - 1, l->columns - 1) + 1) * l->element_size;
}

size_t tensor_bytes(const clxent_desc *desc, int tensor)
{
    const layout l = layout_of(desc, tensor);
    return takes(desc, desc->outputs, tensor) ? layout_bytes(desc, &l) : 0;
}

/* ---- Problems ------------------------------------------------------------------------------ */

static bool target_fits(uint32_t target_type, int64_t value)
{
    int64_t stored = 0;

    put_target(&stored, target_type, 0, value);
    return get_target(&stored, target_type, 0) == value;
}

/* The next value of a list that is no class, nor ignored, and fits the targets' type: false where none does. */
static bool next_bad_target(const clxent_desc *desc, size_t *next, int64_t *value)
{
    /* 2^32 + 1 is class 1 to code that compares 32 bits. */
    const int64_t bad[] = { (int64_t)desc->classes,
                            -1,
                            ((int64_t)1 << 32) + 1,
                            INT32_MIN,
                            INT64_MIN,
                            INT32_MAX,
                            UINT16_MAX,
                            UINT32_MAX };
    const size_t count = sizeof bad / sizeof *bad;

    for (size_t tried = 0; tried < count; tried++) {
        *value = bad[(*next)++ % count];
        if ((*value < 0 || *value >= (int64_t)desc->classes) && target_fits(desc->target_type, *value) &&
            !(desc->use_ignore_index && *value == desc->ignore_index))
            return true;
    }
    return false;
}

static void fill_index_targets(const clxent_desc *desc, void *data, uint32_t fill, random_state *random)
{
    const int64_t last = (int64_t)desc->classes - 1;
    const bool can_ignore = desc->use_ignore_index && target_fits(desc->target_type, desc->ignore_index);
    const bool all_ignored = (fill & FILL_ALL_IGNORED) != 0 && can_ignore;
    const bool has_bad = (fill & FILL_BAD_TARGETS) != 0;
    const size_t lone_bad =
        all_ignored && has_bad && rows_of(desc) > 0 ? random_u32(random) % rows_of(desc) : 0;
    size_t bads = 0;

    for (size_t row = 0; row < rows_of(desc); row++) {
        int64_t target;
        switch (row % 6) {
        case 0: target = last; break; /* the vector tail's last element */
        case 1: target = 0; break;
        case 2: target = last >= 3 ? last - 3 : 0; break; /* elsewhere in the tail */
        default: target = (int64_t)(random_u32(random) % desc->classes);
        }
        if (!target_fits(desc->target_type, target)) target = random_u32(random) % 256;
        const bool ignored = all_ignored || ((fill & FILL_IGNORED) != 0 && can_ignore && row % 5 == 2);
        const bool bad = has_bad && (all_ignored ? row == lone_bad : !ignored && row % 7 == 3);
        int64_t bad_value;
        if (bad && next_bad_target(desc, &bads, &bad_value)) target = bad_value;
        else if (ignored) target = desc->ignore_index;
        put_target(data, desc->target_type, row, target);
    }
}

static void fill_probability_targets(const clxent_desc *desc, void *data, uint32_t dtype,
                                     random_state *random)
{
    for (size_t row = 0; row < rows_of(desc); row++) {
        const size_t hot = random_u32(random) % desc->classes;
        for (size_t j = 0; j < desc->classes; j++) {
            double q;
            switch (row % 4) {
            case 0: q = random_uniform(random, 0, 2.0 / (double)desc->classes); break;
            case 1: q = j == hot; break;
            case 2: q = j % 3 == 0 ? 0 : random_uniform(random, 0, 1); break; /* sum far from 1 */
            default: q = random_uniform(random, -0.5, 1); /* signed, as logits of a teacher */
            }
            put_element(data, dtype, element_index(desc, desc->target_row_stride, row, j), q);
        }
    }
}

enum row_kind {
    ROW_PLAIN,
    /* finite */
    ROW_NEGATIVE, /* a maximum that starts at 0 */
    ROW_HIGH,     /* exp without the maximum subtracted overflows above 88.7 */
    ROW_EQUAL,    /* three classes share the top: sum not 1 and log of it not 0, which would hide its error */
    ROW_DOMINANT, /* a confident row: loss near 0, log(1 + tiny) */
    ROW_DENORMAL, /* flushed inputs, and all exponentials 1 */
    ROW_OFFSET,   /* a large shared offset: a rounded lse loses the loss */
    ROW_RISING,   /* each block rescales the running sum */
    ROW_FALLING,  /* none does, and the tail underflows */
    ROW_STEADY,   /* one class dominates many equal ones: a running sum that rounds the same way each time */
    /* -inf, not at the target */
    ROW_HOLES,
    ROW_LEADING, /* -inf - -inf in a running maximum before the first finite logit */
    ROW_LONE,    /* one finite logit: p = 1 */
    /* rows with results that are not finite */
    ROW_ALL_MASKED,
    ROW_TARGET_MASKED,
    ROW_NAN,
    ROW_NAN_LAST, /* in the tail */
    ROW_INF,
    ROW_NAN_AND_INF
};

static double logit_of(const clxent_desc *desc, enum row_kind kind, size_t j, size_t special, bool is_target,
                       random_state *random)
{
    const bool f16 = desc->dtype == CLXENT_F16;
    const size_t last = desc->classes - 1;
    const double plain = random_uniform(random, -8, 8);
    const double tiny = f16 ? 0x1p-20 : desc->dtype == CLXENT_F64 ? 0x1p-1060 : 0x1p-135;

    switch (kind) {
    case ROW_NEGATIVE: return plain - 112;
    case ROW_HIGH: return plain + 112;
    case ROW_EQUAL: return j == special || j == last || j == last / 2 ? 9.25 : plain;
    case ROW_DOMINANT: return j == special ? 12.5 : plain - 20;
    case ROW_DENORMAL: return floor(plain) * tiny;
    case ROW_OFFSET: return floor(4 * plain) + (f16 ? 3e4 : desc->dtype == CLXENT_BF16 ? 4096 : 1e6);
    case ROW_RISING: return -100 + 200 * ((double)j / (double)desc->classes);
    case ROW_FALLING: return 100 - 200 * ((double)j / (double)desc->classes);
    case ROW_STEADY: return j == special ? 0 : -8.3;
    case ROW_HOLES: return !is_target && j != last && (j + special) % 3 == 0 ? -INFINITY : plain;
    case ROW_LEADING:
        return !is_target && j != last && j < desc->classes - desc->classes / 8 ? -INFINITY : plain;
    case ROW_LONE: return !is_target && j != last ? -INFINITY : plain;
    case ROW_ALL_MASKED: return -INFINITY;
    case ROW_TARGET_MASKED: return is_target ? -INFINITY : plain;
    case ROW_NAN: return j == special ? (double)NAN : plain;
    case ROW_NAN_LAST: return j == last ? (double)NAN : plain;
    case ROW_INF: return j == special ? INFINITY : plain;
    case ROW_NAN_AND_INF: return j == last ? (double)NAN : j == last / 2 ? INFINITY : plain;
    case ROW_PLAIN: break;
    }
    return plain;
}

/* The class that row is compared with; classes where there is none. */
static size_t target_class(const problem *p, size_t row)
{
    const clxent_desc *desc = &p->desc;
    if (p->args.targets.data == NULL || !has_index_targets(desc)) return desc->classes;
    if (row % desc->seq + desc->shift >= desc->seq) return desc->classes;
    const int64_t target = get_target(p->args.targets.data, desc->target_type, row + desc->shift);
    return target >= 0 && target < (int64_t)desc->classes ? (size_t)target : desc->classes;
}

static void fill_logits(const problem *p, void *data, uint32_t fill, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    enum row_kind kinds[ROW_NAN_AND_INF + 1];
    size_t count = 0;

    kinds[count++] = ROW_PLAIN;
    for (int kind = ROW_NEGATIVE; kind <= ROW_NAN_AND_INF; kind++) {
        const uint32_t needs = kind <= ROW_FALLING  ? FILL_DESIGNED
                               : kind == ROW_STEADY ? FILL_STEADY
                               : kind <= ROW_LONE   ? FILL_MASKED
                                                    : FILL_SPECIAL;
        if ((fill & needs) != 0) kinds[count++] = (enum row_kind)kind;
    }
    for (size_t row = 0; row < rows_of(desc); row++) {
        const enum row_kind kind = kinds[row % count];
        const size_t special = random_u32(random) % desc->classes, target = target_class(p, row);
        double top = -INFINITY;
        for (size_t j = 0; j < desc->classes; j++) {
            const size_t at = element_index(desc, desc->row_stride, row, j);
            const double x = logit_of(desc, kind, j, special, j == target, random);
            put_element(data, desc->dtype, at, x);
            top = fmax(top, get_element(data, desc->dtype, at));
        }
        if ((fill & FILL_HIT) != 0 && row % 2 == 0 && target < desc->classes && kind <= ROW_LONE) {
            put_element(data, desc->dtype, element_index(desc, desc->row_stride, row, target),
                        top + (fabs(top) > 1e3 ? fabs(top) / 64 : 3));
        }
    }
}

static double exponential_of(uint32_t fill, size_t row, size_t j, random_state *random)
{
    const double e = exp(random_uniform(random, -8, 8));
    return (fill & FILL_MASKED) != 0 && row % 3 == 1 && j % 2 == 1 ? 0 : e;
}

/* Rows of a softmax, with exact zeros under FILL_MASKED. */
static void fill_probabilities(const clxent_desc *desc, void *data, uint32_t fill, random_state *random)
{
    for (size_t row = 0; row < rows_of(desc); row++) {
        random_state again = *random; /* the same exponentials twice, so that none are kept */
        double sum = 0;
        for (size_t j = 0; j < desc->classes; j++) sum += exponential_of(fill, row, j, random);
        for (size_t j = 0; j < desc->classes; j++) {
            put_element(data, desc->dtype, element_index(desc, desc->probabilities_row_stride, row, j),
                        exponential_of(fill, row, j, &again) / sum);
        }
    }
}

/* ---- Hidden states --------------------------------------------------------------------------- */

/* Whether the row's loss counts; a target out of range does. */
static bool row_counts(const problem *p, size_t row)
{
    const clxent_desc *desc = &p->desc;

    if (desc->seq - row % desc->seq <= desc->shift) return false;
    if (p->args.row_weights.data != NULL && get_element(p->args.row_weights.data, real_dtype(desc), row) == 0)
        return false;
    if (!has_index_targets(desc) || p->args.targets.data == NULL) return true;
    const int64_t target = get_target(p->args.targets.data, desc->target_type, row + desc->shift);
    if (desc->use_ignore_index != 0 && target == desc->ignore_index) return false;
    return desc->bad_target != CLXENT_BAD_TARGET_IGNORE || (target >= 0 && (uint64_t)target < desc->classes);
}

/* Weights of -1 to 1. Under FILL_DESIGNED all classes have 1 in the first column, by which hidden states reach all logits of a
 * row alike, and the last class has the weights of the first: whichever argmax takes, it is a tie. */
static void fill_weight(const problem *p, void *data, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    const layout l = layout_of(desc, TENSOR_WEIGHT);
    const bool designed = (p->fill & FILL_DESIGNED) != 0;

    for (size_t j = 0; j < l.rows; j++)
        for (size_t f = 0; f < l.columns; f++) {
            double weight = random_uniform(random, -1, 1);
            if (designed && j > 1 && j == l.rows - 1)
                weight = get_element(data, l.dtype, index_of(desc, &l, 0, f));
            if (designed && l.columns > 1 && f == 0) weight = 1;
            put_element(data, l.dtype, index_of(desc, &l, j, f), weight);
        }
}

/* Under FILL_MASKED some classes that are no row's target are -inf. Under FILL_STEADY all are equal but one, for rows whose
 * hidden state is 0; under FILL_SPECIAL one is -inf that may be a target. */
static void fill_bias(const problem *p, void *data, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    const uint32_t dtype = layout_of(desc, TENSOR_BIAS).dtype;
    const size_t special = random_u32(random) % desc->classes, step = 2 + random_u32(random) % 3;

    for (size_t j = 0; j < desc->classes; j++) {
        const double plain = random_uniform(random, -1, 1);
        const bool masked = (p->fill & FILL_MASKED) != 0 && j % step == 1 && j != desc->classes - 1;
        const bool one = (p->fill & FILL_SPECIAL) != 0 && p->seed % 4 == 0 && j == special;
        put_element(data, dtype, j,
                    masked || one                  ? -INFINITY
                    : (p->fill & FILL_STEADY) == 0 ? plain
                    : j == special                 ? 0
                                                   : -8.3);
    }
    for (size_t row = 0; (p->fill & FILL_SPECIAL) == 0 && row < rows_of(desc); row++) {
        const size_t target = target_class(p, row);
        if (target < desc->classes && get_element(data, dtype, target) == -INFINITY)
            put_element(data, dtype, target, 0.5);
    }
}

enum hidden_kind {
    HIDDEN_PLAIN, /* logits of -8 to 8, mostly */
    HIDDEN_ZERO,  /* the bias alone; without one all logits are equal, and argmax is class 0 */
    /* finite */
    HIDDEN_LARGE,    /* confident rows; exponentials underflow */
    HIDDEN_SMALL,    /* all classes nearly alike */
    HIDDEN_HIGH,     /* exp without the maximum subtracted overflows above 88.7 */
    HIDDEN_LOW,      /* a maximum that starts at 0 */
    HIDDEN_DENORMAL, /* flushed inputs */
    HIDDEN_LONE,     /* one feature, the last: the tail of a block of features */
    /* not finite */
    HIDDEN_NAN,
    HIDDEN_NAN_LAST, /* in the tail */
    HIDDEN_INF,
    HIDDEN_MINUS_INF,
    HIDDEN_KINDS
};

static double hidden_of(const clxent_desc *desc, enum hidden_kind kind, size_t f, size_t special,
                        double plain)
{
    const double tiny = desc->dtype == CLXENT_F16   ? 0x1p-20
                        : desc->dtype == CLXENT_F64 ? 0x1p-1060
                                                    : 0x1p-135;
    const bool last = f == desc->features - 1;

    switch (kind) {
    case HIDDEN_ZERO: return 0;
    case HIDDEN_LARGE: return 8 * plain;
    case HIDDEN_SMALL: return plain / 1024;
    case HIDDEN_HIGH: return f == 0 ? 112 : plain;
    case HIDDEN_LOW: return f == 0 ? -112 : plain;
    case HIDDEN_DENORMAL: return floor(4 * plain) * tiny;
    case HIDDEN_LONE: return last ? 6 : 0;
    case HIDDEN_NAN: return f == special ? (double)NAN : plain;
    case HIDDEN_NAN_LAST: return last ? (double)NAN : plain;
    case HIDDEN_INF: return f == special ? INFINITY : plain;
    case HIDDEN_MINUS_INF: return last ? -INFINITY : plain;
    default: return plain;
    }
}

/* A row's state along the weights of its target, whose logit is 12 then, but for the bias. */
static void point_at_target(const problem *p, void *data, size_t row, size_t target)
{
    const layout hidden = layout_of(&p->desc, TENSOR_HIDDEN), weight = layout_of(&p->desc, TENSOR_WEIGHT);
    double square = 0.125; /* no weights are 0 */

    for (int pass = 0; pass < 2; pass++)
        for (size_t f = 0; f < weight.columns; f++) {
            const double w =
                get_element(p->args.weight.data, weight.dtype, index_of(&p->desc, &weight, target, f));
            if (pass == 0) square += w * w;
            else put_element(data, hidden.dtype, index_of(&p->desc, &hidden, row, f), 12 * w / square);
        }
}

/* Under FILL_SPECIAL every second seed has NaN and infinities only where a row does not count, which must not be seen in any
 * gradient; else weight_gradient is NaN throughout. */
static void fill_hidden(const problem *p, void *data, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    const layout l = layout_of(desc, TENSOR_HIDDEN);
    const double range = 14 / sqrt((double)desc->features); /* logits have a variance of 8^2 / 3 */
    const bool everywhere = p->seed % 2 == 0;
    enum hidden_kind kinds[HIDDEN_KINDS];
    size_t count = 0;

    for (int kind = HIDDEN_PLAIN; kind < HIDDEN_KINDS; kind++) {
        const bool offset = kind == HIDDEN_HIGH || kind == HIDDEN_LOW;
        const uint32_t needs = kind == HIDDEN_ZERO ? FILL_DESIGNED | FILL_STEADY
                               : kind < HIDDEN_NAN ? FILL_DESIGNED
                                                   : FILL_SPECIAL;
        if (kind == HIDDEN_PLAIN || ((p->fill & needs) != 0 && !(offset && desc->features == 1)))
            kinds[count++] = (enum hidden_kind)kind;
    }
    for (size_t row = 0; row < l.rows; row++) {
        enum hidden_kind kind = kinds[row % count];
        const size_t special = random_u32(random) % desc->features, target = target_class(p, row);
        if ((p->fill & FILL_SPECIAL) != 0 && !everywhere) {
            if (!row_counts(p, row))
                kind = (enum hidden_kind)(HIDDEN_NAN + row % (HIDDEN_KINDS - HIDDEN_NAN));
            else if (kind >= HIDDEN_NAN) kind = HIDDEN_PLAIN;
        }
        for (size_t f = 0; f < desc->features; f++) {
            const double plain = random_uniform(random, -range, range);
            put_element(data, l.dtype, index_of(desc, &l, row, f), hidden_of(desc, kind, f, special, plain));
        }
        if ((p->fill & FILL_HIT) != 0 && row % 2 == 0 && target < desc->classes && kind <= HIDDEN_SMALL)
            point_at_target(p, data, row, target);
    }
}

/* ---- Other inputs ---------------------------------------------------------------------------- */

/* A negative weight is lost where its absolute value is taken, or where only what is above 0 counts. */
static void fill_weights(void *data, uint32_t dtype, size_t n, random_state *random)
{
    for (size_t i = 0; i < n; i++) {
        double weight = random_uniform(random, 0.25, 2);
        if (i % 6 == 4) weight = 0;
        if (i % 9 == 7) weight = -0.25;
        put_element(data, dtype, i, weight);
    }
}

/* An array for the tensor, absent where desc takes none; false where there is no memory. */
static bool take_array(problem *p, int tensor, problem_fault *f)
{
    const layout l = layout_of(&p->desc, tensor);
    clxent_output *array = array_of(&p->args, tensor);

    if (!takes(&p->desc, p->desc.outputs, tensor)) return true;
    array->size = layout_bytes(&p->desc, &l);
    array->data = take(array->size, f);
    /* All bits set is NaN in every storage type, and -1 as a target: what padding holds. */
    if (array->data != NULL) memset(array->data, 0xFF, array->size);
    return array->data != NULL;
}

/* Every element of a tensor of real numbers; those of row or element number i % 5 == 3 are zero where zeros. */
static void fill_uniform(const clxent_desc *desc, int tensor, void *data, double range, bool zeros,
                         random_state *random)
{
    const layout l = layout_of(desc, tensor);
    for (size_t i = 0; i < l.rows * l.columns; i++) {
        const size_t at = index_of(desc, &l, i / l.columns, i % l.columns);
        put_element(data, l.dtype, at, zeros && i % 5 == 3 ? 0 : random_uniform(random, -range, range));
    }
}

static void fill_tensor(const problem *p, int tensor, void *data, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    const bool backward = desc->op == CLXENT_OP_SOFTMAX_BACKWARD;
    const layout l = layout_of(desc, tensor);

    switch (tensor) {
    case TENSOR_TARGETS:
        if (has_index_targets(desc)) fill_index_targets(desc, data, p->fill, random);
        else fill_probability_targets(desc, data, l.dtype, random);
        break;
    case TENSOR_LOGITS: fill_logits(p, data, p->fill, random); break;
    case TENSOR_PROBABILITIES: fill_probabilities(desc, data, p->fill, random); break;
    case TENSOR_CLASS_WEIGHTS:
    case TENSOR_ROW_WEIGHTS: fill_weights(data, l.dtype, l.rows, random); break;
    case TENSOR_GRAD_ENTROPY:
    case TENSOR_GRAD_LSE:
    case TENSOR_GRAD_OUTPUT: fill_uniform(desc, tensor, data, 2, !backward, random); break;
    case TENSOR_DENOMINATOR: {
        const double denominator = random_u32(random) % 2 == 0 ? 7.25 : -3.5;
        put_element(data, l.dtype, 0, (p->fill & FILL_ZERO_DENOMINATOR) != 0 ? 0 : denominator);
        break;
    }
    case TENSOR_HIDDEN: fill_hidden(p, data, random); break;
    case TENSOR_WEIGHT: fill_weight(p, data, random); break;
    case TENSOR_BIAS: fill_bias(p, data, random); break;
    default: fill_uniform(desc, tensor, data, 1, false, random); break;
    }
}

bool fill_problem(problem *p, const clxent_desc *desc, uint32_t fill, uint64_t seed, problem_fault *f)
{
    const bool backward = desc->op == CLXENT_OP_SOFTMAX_BACKWARD;
    /* targets first: what a row's logits hold depends on where its target is; a hidden state depends on weights and on whether
     * its row counts, too */
    const struct {
        int tensor;
        bool given;
    } order[] = { { TENSOR_TARGETS, true },
                  { TENSOR_LOGITS, true },
                  { TENSOR_PROBABILITIES, true },
                  { TENSOR_CLASS_WEIGHTS, true },
                  { TENSOR_ROW_WEIGHTS, true },
                  { TENSOR_GRAD_OUTPUT, backward || (fill & FILL_GRAD_OUTPUT) != 0 },
                  { TENSOR_DENOMINATOR, (fill & (FILL_DENOMINATOR | FILL_ZERO_DENOMINATOR)) != 0 },
                  { TENSOR_GRADIENT, accumulates(desc, TENSOR_GRADIENT) },
                  { TENSOR_GRAD_ENTROPY, true },
                  { TENSOR_GRAD_LSE, true },
                  { TENSOR_WEIGHT, true },
                  { TENSOR_BIAS, true },
                  { TENSOR_HIDDEN, true },
                  { TENSOR_HIDDEN_GRADIENT, accumulates(desc, TENSOR_HIDDEN_GRADIENT) },
                  { TENSOR_WEIGHT_GRADIENT, accumulates(desc, TENSOR_WEIGHT_GRADIENT) },
                  { TENSOR_BIAS_GRADIENT, accumulates(desc, TENSOR_BIAS_GRADIENT) } };
    const clxent_host_args absent = CLXENT_HOST_ARGS_INIT;
    random_state random = random_start(seed);

    *p = (problem){ *desc, absent, fill, seed };
    if (clxent_desc_check(desc, f->text, sizeof f->text) != CLXENT_OK) return false;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        if (!order[i].given) continue;
        if (!take_array(p, order[i].tensor, f)) return false;
        void *data = array_of(&p->args, order[i].tensor)->data;
        if (data != NULL) fill_tensor(p, order[i].tensor, data, &random);
    }
    return true;
}

void free_problem(problem *p)
{
    for (int t = 0; t < TENSORS; t++) free(array_of(&p->args, t)->data);
    memset(p, 0, sizeof *p);
}

/* ---- Comparison ---------------------------------------------------------------------------- */

close_report compare(const double *got, const double *want, const double *bound, size_t n)
{
    close_report report = { 0, 0, 0 };
    for (size_t i = 0; i < n; i++) {
        const bool same = (isnan(got[i]) && isnan(want[i])) || got[i] == want[i];
        const double error = fabs(got[i] - want[i]);
        double ratio = bound[i] > 0 ? error / bound[i] : INFINITY;
        bool close = error <= bound[i]; /* false for NaN */

        if (same) continue;
        if (!isfinite(want[i])) close = false;
        if (isinf(bound[i]) && close) ratio = 0; /* infinity is a correct rounding of want */
        if (!close && report.bad++ == 0) report.first = i;
        if (!(ratio <= report.worst)) report.worst = isnan(ratio) ? INFINITY : ratio;
    }
    return report;
}
/* ---- One run ------------------------------------------------------------------------------- */

static bool make_image(image *made, size_t front, size_t bytes, size_t back, const void *data, unsigned byte,
                       problem_fault *f)
{
    const size_t total = front + bytes + back;

    *made = (image){ NULL, take(total, f), take(total, f), front, bytes, total };
    if (made->before == NULL || made->after == NULL) return false;
    /* Two bytes in turn: 0xFFFE, so that NaN copied from an input's padding, 0xFFFF, differs from it. */
    for (size_t i = 0; i < total; i++) made->before[i] = (unsigned char)(i % 2 == 0 ? byte : 0xFF);
    if (data != NULL && bytes > 0) memcpy(made->before + front, data, bytes);
    memcpy(made->after, made->before, total);
    return true;
}

static void free_image(image *i)
{
    if (i->mem != NULL) clReleaseMemObject(i->mem);
    free(i->before);
    free(i->after);
    memset(i, 0, sizeof *i);
}

void free_execution(execution *e)
{
    for (int t = 0; t < TENSORS; t++) free_image(&e->images[t]);
    free_image(&e->workspace);
}

const image *image_of(const execution *e, int tensor)
{
    return &e->images[tensor == e->in_place ? TENSOR_LOGITS : tensor];
}

static int in_place_tensor(uint32_t outputs)
{
    if ((outputs & CLXENT_OUTPUT_GRADIENT) != 0) return TENSOR_GRADIENT;
    return (outputs & CLXENT_OUTPUT_SOFTMAX) != 0 ? TENSOR_SOFTMAX : TENSOR_LOG_SOFTMAX;
}

/* The images of a run in host memory. */
static bool make_images(execution *e, const problem *p, uint32_t outputs, const execution *saved,
                        uint32_t flags, problem_fault *f)
{
    const clxent_desc *desc = &p->desc;

    memset(e, 0, sizeof *e);
    e->in_place = (flags & CASE_IN_PLACE) != 0 ? in_place_tensor(outputs) : -1;
    for (int t = 0; t < TENSORS; t++) {
        const layout l = layout_of(desc, t);
        const size_t element =
            tensors[t].element == ELEMENT_RECORD ? sizeof(clxent_bad_targets) : l.element_size;
        const size_t front = (flags & CASE_ALIGNED) != 0 ? 0 : 37 * element;
        const void *data = array_of(&p->args, t)->data; /* of outputs: what a gradient is added to */
        bool used = takes(desc, outputs, t) && (t >= FIRST_OUTPUT || data != NULL);

        if (saved != NULL && output_bit(t) == CLXENT_OUTPUT_STATISTICS) {
            data = saved->images[t].after + saved->images[t].front;
            used = true;
        }
        if (!used || t == e->in_place) continue;
        if (!make_image(&e->images[t], front, layout_bytes(desc, &l), 256, data,
                        t < FIRST_OUTPUT ? 0xFF : 0xFE, f))
            return false;
    }
    return true;
}

static bool say_status(problem_fault *f, const char *what, clxent_status status, const clxent_context *ctx)
{
    char text[768] = "";
    if (ctx != NULL) clxent_context_last_error(ctx, text, sizeof text);
    return say_fault(f, "%s: %s%s%s", what, clxent_status_string(status), text[0] != '\0' ? ": " : "", text);
}

static bool upload(image *i, const runner *on, problem_fault *f)
{
    cl_int code;

    if (i->before == NULL) return true;
    i->mem = clCreateBuffer(on->cl, CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR, i->total, i->before, &code);
    if (code != CL_SUCCESS)
        return say_fault(f, "clCreateBuffer of %zu bytes: %s", i->total, clxent_status_string(code));
    return true;
}

static bool download(image *i, const runner *on, problem_fault *f)
{
    if (i->mem == NULL) return true;
    const cl_int code = clEnqueueReadBuffer(on->queue, i->mem, CL_TRUE, 0, i->total, i->after, 0, NULL, NULL);
    return code == CL_SUCCESS || say_status(f, "clEnqueueReadBuffer", code, NULL);
}

/* Everything on the device, and args that name it. */
static bool upload_all(execution *e, const runner *on, clxent_plan *plan, const problem *p, uint32_t outputs,
                       const execution *saved, uint32_t flags, clxent_args *args, problem_fault *f)
{
    const clxent_args init = CLXENT_ARGS_INIT;

    *args = init;
    if (!make_images(e, p, outputs, saved, flags, f)) return false;
    for (int t = 0; t < TENSORS; t++) {
        if (!upload(&e->images[t], on, f)) return false;
        *buffer_of(args, t) = (clxent_buffer){ image_of(e, t)->mem, image_of(e, t)->front };
    }
    args->workspace = (clxent_buffer){ NULL, 64 };
    if (!make_image(&e->workspace, 64, clxent_plan_workspace_size(plan), 64, NULL, 0xFF, f) ||
        !upload(&e->workspace, on, f))
        return false;
    args->workspace.mem = e->workspace.mem;
    args->outputs = outputs;
    args->rows = rows_of(&p->desc);
    return true;
}

static bool download_all(execution *e, const runner *on, problem_fault *f)
{
    for (int t = 0; t < TENSORS; t++)
        if (!download(&e->images[t], on, f)) return false;
    return download(&e->workspace, on, f);
}

typedef clxent_status (*enqueue_fn)(clxent_plan *plan, cl_command_queue queue, const clxent_args *args,
                                    cl_uint num_wait, const cl_event *wait, cl_event *event);

/* Enqueues and waits. */
static bool run_once(const char *name, enqueue_fn enqueue, const runner *on, clxent_plan *plan,
                     const clxent_args *args, uint32_t flags, problem_fault *f)
{
    const bool out_of_order = (flags & CASE_OUT_OF_ORDER) != 0 && on->out_of_order != NULL;
    cl_event done = NULL;

    clxent_status status = enqueue(plan, out_of_order ? on->out_of_order : on->queue, args, 0, NULL, &done);
    if (status != CLXENT_OK) return say_status(f, name, status, on->ctx);
    status = clWaitForEvents(1, &done);
    clReleaseEvent(done);
    return status == CL_SUCCESS || say_status(f, "clWaitForEvents", status, NULL);
}

bool execute(execution *e, const runner *on, clxent_plan *plan, const problem *p, uint32_t outputs,
             const execution *saved, uint32_t flags, problem_fault *f)
{
    clxent_args args;

    return upload_all(e, on, plan, p, outputs, saved, flags, &args, f) &&
           run_once("clxent_enqueue", clxent_enqueue, on, plan, &args, flags, f) && download_all(e, on, f);
}

/* Rows that parts are cut between. */
static size_t part_unit(const clxent_desc *desc)
{
    size_t unit = desc->inner;
    while (desc->shift > 0 && unit % desc->seq != 0) unit += desc->inner;
    return unit;
}

/* Moves the [rows, classes] buffers of args to where the part begins. */
static void move_to_part(clxent_args *args, const problem *p, const execution *e, size_t first_row)
{
    for (int t = 0; t < TENSORS; t++) {
        const layout l = layout_of(&p->desc, t);
        if (!l.own_rows || image_of(e, t)->mem == NULL) continue;
        buffer_of(args, t)->offset =
            image_of(e, t)->front + index_of(&p->desc, &l, first_row, 0) * l.element_size;
    }
}

/* As execute(), part by part. A mean without a denominator gets one from its own pass. */
static bool execute_in_parts(execution *e, const runner *on, clxent_plan *plan, const problem *p,
                             uint32_t outputs, const execution *saved, uint32_t flags, problem_fault *f)
{
    const clxent_desc *desc = &p->desc;
    const size_t rows = rows_of(desc), unit = part_unit(desc);
    random_state random = random_start(p->seed ^ 0x7061727473);
    const uint32_t divided = outputs & (CLXENT_OUTPUT_LOSS | GRADIENTS);
    const bool is_mean = desc->reduction == CLXENT_REDUCTION_MEAN && divided != 0 && needs_targets(desc);
    image denominator = { 0 };
    clxent_args args;

    bool good = upload_all(e, on, plan, p, outputs, saved, flags, &args, f) &&
                make_image(&denominator, 0, sizeof(double), 0, NULL, 0xFF, f) && upload(&denominator, on, f);
    args.total_rows = rows;
    if (good && is_mean && args.denominator.mem == NULL) {
        clxent_args of_targets = args;
        of_targets.counted.mem = NULL;
        of_targets.computed_denominator = (clxent_buffer){ denominator.mem, 0 };
        good = run_once("clxent_enqueue_denominator", clxent_enqueue_denominator, on, plan, &of_targets,
                        flags, f);
        args.denominator = of_targets.computed_denominator;
    }
    for (size_t first = 0; good && first < rows; first += args.rows) {
        const size_t left = (rows - first) / unit, few = left < 4 ? left : 4;
        const size_t units = random_u32(&random) % 4 == 0 ? left : 1 + random_u32(&random) % few;
        const size_t least = rows / unit / 16; /* of many rows not too many parts */
        args.rows = (units > least ? units : least < left ? least : left) * unit;
        args.first_row = first;
        args.part = first + args.rows == rows ? CLXENT_PART_LAST
                    : first == 0              ? CLXENT_PART_FIRST
                                              : CLXENT_PART_MIDDLE;
        move_to_part(&args, p, e, first);
        good = run_once("clxent_enqueue of a part", clxent_enqueue, on, plan, &args, flags, f);
    }
    free_image(&denominator);
    return good && download_all(e, on, f);
}

bool execute_on_host(execution *e, const runner *on, const problem *p, uint32_t flags, size_t max_chunk_bytes,
                     clxent_status *status, problem_fault *f)
{
    clxent_host_args args = CLXENT_HOST_ARGS_INIT;

    if (!make_images(e, p, p->desc.outputs, NULL, flags, f)) return false;
    args.max_chunk_bytes = max_chunk_bytes;
    for (int t = 0; t < TENSORS; t++) {
        const image *i = image_of(e, t);
        if (i->before != NULL) *array_of(&args, t) = (clxent_output){ i->after + i->front, i->bytes };
    }
    *status = clxent_run_host(on->ctx, &p->desc, &args);
    if (*status != CLXENT_ERROR_ARRAYS_IN_USE) return true;
    (void)say_status(f, "clxent_run_host", *status, on->ctx);
    memset(e, 0, sizeof *e); /* they stay until the process ends */
    return false;
}

/* ---- What must be true of it ---------------------------------------------------------------- */

/* Of a gradient whose padding must be 0; puts back what it was, in after, the image's copy. */
static bool check_zero_padding(const problem *p, const image *i, const layout *l, unsigned char *after,
                               problem_fault *f)
{
    const size_t used = slab_elements(&p->desc), stride = slab_stride(&p->desc, l);

    for (size_t slab = 0; slab < l->rows / p->desc.inner; slab++) {
        const size_t first = i->front + (slab * stride + used) * l->element_size;
        for (size_t k = first; k < first + (stride - used) * l->element_size; k++) {
            if (after[k] != 0)
                return say_fault(f, "gradient: byte %zu of the padding of slab %zu is not 0", k - first,
                                 slab);
            after[k] = i->before[k];
        }
    }
    return true;
}

/* Puts back what the run was free to write; then nothing may differ. */
static bool check_image_untouched(const problem *p, const image *i, int image_tensor, int written,
                                  problem_fault *f)
{
    unsigned char *after = take(i->total, f);
    size_t first = 0;

    if (after == NULL) return false;
    memcpy(after, i->after, i->total);
    if (written >= 0) {
        const layout l = layout_of(&p->desc, written);
        for (size_t k = 0; k < l.rows * l.columns; k++) {
            const size_t offset = i->front + offset_of(&p->desc, &l, k);
            memcpy(after + offset, i->before + offset, l.element_size);
        }
        if (written == TENSOR_GRADIENT && l.full && !check_zero_padding(p, i, &l, after, f)) {
            free(after);
            return false;
        }
    }
    while (first < i->total && after[first] == i->before[first]) first++;
    free(after);
    return first == i->total ||
           say_fault(f, "%s: byte %lld of its %zu was written", tensor_names[image_tensor],
                     (long long)first - (long long)i->front, i->bytes);
}

bool check_untouched(const problem *p, const execution *e, uint32_t outputs, problem_fault *f)
{
    const image *w = &e->workspace;

    for (int t = 0; t < TENSORS; t++) {
        const int written = t == TENSOR_LOGITS ? e->in_place : (outputs & output_bit(t)) != 0 ? t : -1;
        if (e->images[t].before != NULL && !check_image_untouched(p, &e->images[t], t, written, f))
            return false;
    }
    if (w->before == NULL) return true;
    if (memcmp(w->before, w->after, w->front) != 0)
        return say_fault(f, "bytes before the workspace were written");
    if (memcmp(w->before + w->front + w->bytes, w->after + w->front + w->bytes,
               w->total - w->front - w->bytes) != 0)
        return say_fault(f, "bytes behind the workspace of %zu were written", w->bytes);
    return true;
}

/* The outputs that both executions have, element by element: padding differs where only one is in place. */
bool check_same_bits(const char *what, const problem *p, const execution *a, const execution *b,
                     uint32_t outputs, problem_fault *f)
{
    for (int t = FIRST_OUTPUT; t < TENSORS; t++) {
        if ((outputs & output_bit(t)) == 0) continue;
        const layout l = layout_of(&p->desc, t);
        const image *x = image_of(a, t), *y = image_of(b, t);
        for (size_t k = 0; k < l.rows * l.columns; k++) {
            const size_t offset = offset_of(&p->desc, &l, k);
            if (memcmp(x->after + x->front + offset, y->after + y->front + offset, l.element_size) != 0)
                return say_fault(f, "%s: row %zu column %zu has other bits %s", tensor_names[t],
                                 k / l.columns, k % l.columns, what);
        }
    }
    return true;
}

static bool check_integers(int tensor, const image *i, const void *want, size_t n, problem_fault *f)
{
    for (size_t k = 0; k < n; k++) {
        int64_t got, wanted;
        memcpy(&got, i->after + i->front + 8 * k, 8);
        memcpy(&wanted, (const char *)want + 8 * k, 8);
        if (got != wanted)
            return say_fault(f, "%s[%zu]: got %" PRId64 ", want %" PRId64, tensor_names[tensor], k, got,
                             wanted);
    }
    return true;
}

/* argmax, where it may be any of several classes. */
static bool check_argmax(const image *i, const unsigned char *allowed, const int64_t *want, size_t rows,
                         size_t classes, problem_fault *f)
{
    for (size_t row = 0; row < rows; row++) {
        int64_t got;
        memcpy(&got, i->after + i->front + 8 * row, 8);
        if (got < 0 || (uint64_t)got >= classes || allowed[row * classes + (size_t)got] == 0)
            return say_fault(f, "argmax[%zu]: got %" PRId64 ", want %" PRId64 " or what is as large", row,
                             got, want[row]);
    }
    return true;
}

/* correct, which each row may change whose argmax may be its target or another class. */
static bool check_correct(const image *i, const unsigned char *allowed, uint64_t want, size_t rows,
                          size_t classes, problem_fault *f)
{
    uint64_t got, undecided = 0;

    for (size_t row = 0; row < rows; row++) {
        size_t several = 0;
        for (size_t j = 0; j < classes; j++) several += allowed[row * classes + j];
        undecided += several > 1;
    }
    memcpy(&got, i->after + i->front, 8);
    return (got > want ? got - want : want - got) <= undecided ||
           say_fault(f, "correct[0]: got %" PRIu64 ", want %" PRIu64 " within %" PRIu64, got, want,
                     undecided);
}

/* The distance between numbers of dtype at value. */
static double ulp_of(double value, uint32_t dtype)
{
    static const struct {
        int digits, lowest; /* of the significand; exponent of the smallest normal number */
    } formats[] = { [CLXENT_F32] = { 24, -126 },
                    [CLXENT_F16] = { 11, -14 },
                    [CLXENT_BF16] = { 8, -126 },
                    [CLXENT_F64] = { 53, -1022 } };
    int exponent;
    (void)frexp(value, &exponent); /* value = f * 2^exponent, f in [0.5, 1) */
    if (--exponent < formats[dtype].lowest) exponent = formats[dtype].lowest;
    return ldexp(1, exponent - formats[dtype].digits + 1);
}

/* Finite results only, and above where real underflows: there a device may give 0. */
static double worst_ulps(const double *got, const double *want, size_t n, uint32_t dtype, uint32_t real)
{
    const double smallest = real == CLXENT_F64 ? 0x1p-1022 : 0x1p-126;
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i]) || !isfinite(want[i]) || fabs(want[i]) < smallest) continue;
        worst = fmax(worst, fabs(got[i] - want[i]) / ulp_of(want[i], dtype));
    }
    return worst;
}

static bool check_values(const problem *p, const image *i, int tensor, const double *want,
                         const double *bound, worst_error worst[OUTPUTS], problem_fault *f)
{
    const layout l = layout_of(&p->desc, tensor);
    const size_t n = l.rows * l.columns;
    double *got = take(n * sizeof *got, f);
    bool good;

    if (got == NULL) return false;
    for (size_t k = 0; k < n; k++) {
        const size_t at = index_of(&p->desc, &l, k / l.columns, k % l.columns);
        got[k] = get_element(i->after + i->front, l.dtype, at);
    }
    const close_report report = compare(got, want, bound, n);
    const size_t first = report.first;
    good = report.bad == 0 ||
           say_fault(f,
                     "%s: %zu of %zu are wrong, first row %zu column %zu: got %.17g, want %.17g, bound %.3g; "
                     "worst error %.3g times its bound",
                     tensor_names[tensor], report.bad, n, first / l.columns, first % l.columns, got[first],
                     want[first], bound[first], report.worst);
    if (worst != NULL) {
        worst_error *own = &worst[tensor - FIRST_OUTPUT];
        own->ratio = fmax(own->ratio, report.worst);
        own->ulps = fmax(own->ulps, worst_ulps(got, want, n, l.dtype, real_dtype(&p->desc)));
    }
    free(got);
    return good;
}

/* Points the results that outputs ask for at memory: values, and bounds behind them. */
static void point_results(clxent_reference_results *want, uint32_t outputs, double *const memory[OUTPUTS],
                          const size_t counts[OUTPUTS])
{
#define POINT_BOUNDED(name, k) \
    want->name = memory[k];    \
    want->name##_bound = memory[k] + counts[k];
#define POINT_EXACT(name, k) want->name = memory[k];
#define POINT_INTEGER(name, k) want->name = (void *)memory[k];
#define POINT_OPAQUE(name, k)
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, npy) \
    if ((outputs & CLXENT_OUTPUT_##NAME) != 0) {                                              \
        POINT_##reference(name, TENSOR_##NAME - FIRST_OUTPUT)                                 \
    }
#include "../../host/tensors.def"
}

static bool check_output(const problem *p, const execution *e, int tensor, double *want, size_t count,
                         const unsigned char *allowed, worst_error worst[OUTPUTS], problem_fault *f)
{
    const image *i = image_of(e, tensor);
    const size_t rows = rows_of(&p->desc), classes = p->desc.classes;
    const void *integers = want;

    if (allowed != NULL && tensor == TENSOR_ARGMAX)
        return check_argmax(i, allowed, integers, rows, classes, f);
    if (allowed != NULL && tensor == TENSOR_CORRECT)
        return check_correct(i, allowed, *(const uint64_t *)integers, rows, classes, f);
    switch (tensors[tensor].reference) {
    case REFERENCE_OPAQUE: return true;
    case REFERENCE_INTEGER: return check_integers(tensor, i, want, count, f);
    default: return check_values(p, i, tensor, want, want + count, worst, f);
    }
}

/* check_reference() of some outputs. */
static bool check_outputs(const problem *p, const execution *e, uint32_t outputs, worst_error worst[OUTPUTS],
                          problem_fault *f)
{
    const bool has_argmax = (outputs & (CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_CORRECT)) != 0;
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    double *memory[OUTPUTS] = { NULL };
    unsigned char *allowed = NULL;
    size_t counts[OUTPUTS] = { 0 };
    bool good = true;

    if (p->desc.op == CLXENT_OP_LINEAR_CROSS_ENTROPY && has_argmax) {
        allowed = take(rows_of(&p->desc) * p->desc.classes, f);
        good = allowed != NULL;
        want.argmax_allowed = allowed;
    }

    for (int k = 0; good && k < OUTPUTS; k++) {
        const layout l = layout_of(&p->desc, FIRST_OUTPUT + k);
        counts[k] = l.rows * l.columns;
        if ((outputs >> k & 1u) == 0) continue;
        memory[k] = take(2 * counts[k] * sizeof(double), f);
        good = memory[k] != NULL;
        if (good) memset(memory[k], 0, 2 * counts[k] * sizeof(double));
    }
    if (good) {
        char text[512] = "";
        point_results(&want, outputs, memory, counts);
        const clxent_status status = clxent_reference_run(&p->desc, &p->args, &want, text, sizeof text);
        if (status != CLXENT_OK) good = say_fault(f, "reference: %s: %s", clxent_status_string(status), text);
    }
    for (int k = 0; good && k < OUTPUTS; k++)
        if (memory[k] != NULL)
            good = check_output(p, e, FIRST_OUTPUT + k, memory[k], counts[k], allowed, worst, f);
    for (int k = 0; k < OUTPUTS; k++) free(memory[k]);
    free(allowed);
    return good;
}

bool check_reference(const problem *p, const execution *e, worst_error worst[OUTPUTS], problem_fault *f)
{
    return check_outputs(p, e, p->desc.outputs, worst, f);
}

/* ---- check_problem ------------------------------------------------------------------------- */

typedef bool (*execute_fn)(execution *e, const runner *on, clxent_plan *plan, const problem *p,
                           uint32_t outputs, const execution *saved, uint32_t flags, problem_fault *f);

/* Sums over the rows of products, which have other bits where the rows are cut elsewhere. */
enum { SUMS_OF_ROWS = CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT };

/* Outputs have the bits of the first run; of one whose rows are cut elsewhere, sums of products are as the reference has them. */
static bool check_like_first(const char *what, bool cut, const problem *p, const execution *first,
                             const execution *again, uint32_t outputs, problem_fault *f)
{
    const uint32_t sums = cut ? outputs & SUMS_OF_ROWS : 0;

    return check_untouched(p, again, outputs, f) &&
           check_same_bits(what, p, first, again, outputs & ~sums, f) &&
           (sums == 0 || check_outputs(p, again, sums, NULL, f));
}

/* One more run, by execute() or execute_in_parts(), whose outputs must have the bits of the first. */
static bool check_again(const char *what, execute_fn run, const runner *on, clxent_plan *plan,
                        const problem *p, const execution *first, uint32_t outputs, const execution *saved,
                        uint32_t flags, problem_fault *f)
{
    execution again;
    const bool good = run(&again, on, plan, p, outputs, saved, flags, f) &&
                      check_like_first(what, run == execute_in_parts, p, first, &again, outputs, f);
    free_execution(&again);
    return good;
}

/* The record of bad targets as the reference has it, whether desc asks for it or not. */
static bool find_bad_targets(const problem *p, clxent_bad_targets *bad, problem_fault *f)
{
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    clxent_desc desc = p->desc;

    memset(bad, 0, sizeof *bad);
    if (!needs_targets(&desc) || !has_index_targets(&desc) || desc.bad_target != CLXENT_BAD_TARGET_REPORT)
        return true;
    desc.outputs |= CLXENT_OUTPUT_BAD_TARGETS;
    want.bad_targets = bad;
    return clxent_reference_run(&desc, &p->args, &want, f->text, sizeof f->text) == CLXENT_OK;
}

/* A limit that the smallest chunk does not fit is refused, and nothing written; what that chunk takes is the
 * library's affair, so the limit is doubled until it is taken, which it must be where a chunk of all rows fits. */
static bool execute_in_chunks(execution *e, const runner *on, const problem *p, uint32_t flags,
                              clxent_status *status, problem_fault *f)
{
    size_t limit = p->args.max_chunk_bytes, largest = 0;

    for (;;) {
        if (!execute_on_host(e, on, p, flags, limit, status, f)) return false;
        for (int t = 0; t < TENSORS; t++) {
            const layout l = layout_of(&p->desc, t);
            /* the last row of a chunk may have its padding, which the tensor's last row has not */
            const size_t bytes = e->images[t].bytes + l.stride * l.element_size;
            if (e->images[t].before != NULL && bytes > largest) largest = bytes;
        }
        if (limit == 0 || limit > largest || *status != CLXENT_ERROR_INVALID_ARGUMENT) return true;
        e->in_place = -1;
        if (!check_untouched(p, e, 0, f)) return false;
        free_execution(e);
        limit *= 2;
    }
}

/* clxent_run_host() gives what first gave, or refuses what it promises to refuse. */
static bool check_on_host(const runner *on, const problem *p, const execution *first, uint32_t flags,
                          problem_fault *f)
{
    execution e = { .in_place = -1 };
    clxent_bad_targets bad;
    clxent_status status;

    if (!find_bad_targets(p, &bad, f)) return false;
    bool good = execute_in_chunks(&e, on, p, flags, &status, f);
    const uint32_t outputs = bad.count > 0 ? p->desc.outputs & CLXENT_OUTPUT_BAD_TARGETS : p->desc.outputs;
    if (good && bad.count > 0 && status != CLXENT_ERROR_BAD_TARGET)
        good = say_fault(f, "clxent_run_host: got %s, want CLXENT_ERROR_BAD_TARGET for %" PRIu64 " targets",
                         clxent_status_string(status), bad.count);
    if (good && bad.count == 0 && status != CLXENT_OK)
        good = say_status(f, "clxent_run_host", status, on->ctx);
    if (bad.count > 0) e.in_place = -1; /* the logits are as they were */
    good = good && check_like_first("by clxent_run_host", true, p, first, &e, outputs, f);
    free_execution(&e);
    return good;
}

/* What the fewest rows take is the library's affair: a workspace_limit that is too small for them is refused, and doubled
 * until it is not. */
static bool make_plan_within(clxent_plan **plan, const runner *on, clxent_desc *desc, problem_fault *f)
{
    static const size_t enough = (size_t)1 << (sizeof(size_t) == 8 ? 40 : 30);
    clxent_status status;

    while ((status = on->make_plan(plan, on->ctx, desc)) == CLXENT_ERROR_INVALID_DESC &&
           desc->workspace_limit != 0 && desc->workspace_limit < enough)
        desc->workspace_limit *= 2;
    if (status != CLXENT_OK) return say_status(f, "clxent_plan_create", status, on->ctx);
    const size_t size = clxent_plan_workspace_size(*plan), limit = desc->workspace_limit;
    if (limit == 0 || size <= limit) return true;
    clxent_plan_destroy(*plan);
    *plan = NULL;
    return say_fault(f, "clxent_plan_workspace_size: got %zu, want at most workspace_limit, %zu", size,
                     limit);
}

/* A plan without a workspace_limit cuts rows elsewhere, and gives the same bits but for sums of products. */
static bool check_without_limit(const runner *on, const clxent_desc *plan_desc, const problem *p,
                                const execution *first, uint32_t flags, problem_fault *f)
{
    const uint32_t outputs = p->desc.outputs;
    clxent_desc desc = *plan_desc;
    clxent_plan *plan = NULL;
    execution again;

    desc.workspace_limit = 0;
    if (!make_plan_within(&plan, on, &desc, f)) return false;
    const bool good = execute(&again, on, plan, p, outputs, NULL, flags, f) &&
                      check_like_first("with another workspace_limit", true, p, first, &again, outputs, f);
    free_execution(&again);
    clxent_plan_destroy(plan);
    return good;
}

bool check_problem(const runner *on, const problem *given, uint32_t flags, worst_error worst[OUTPUTS],
                   problem_fault *f)
{
    problem own = *given;
    const problem *p = &own;
    const clxent_desc *desc = &p->desc;
    const uint32_t both = CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS;
    const uint32_t elsewhere = flags & ~(uint32_t)CASE_IN_PLACE;
    clxent_desc plan_desc = *desc;
    clxent_plan *plan = NULL;
    execution first;

    if ((flags & CASE_LARGER_PLAN) != 0) plan_desc.batch = desc->batch > 0 ? 2 * desc->batch : desc->inner;
    if (plan_desc.seq == 0) plan_desc.seq = 1;
    if (!make_plan_within(&plan, on, &plan_desc, f)) return false;
    own.desc.workspace_limit = plan_desc.workspace_limit;

    bool good = execute(&first, on, plan, p, desc->outputs, NULL, flags, f) &&
                check_untouched(p, &first, desc->outputs, f) && check_reference(p, &first, worst, f) &&
                check_again("in a second run", execute, on, plan, p, &first, desc->outputs, NULL, flags, f);
    if ((desc->outputs & both) == both)
        good = good && check_again("from saved statistics", execute, on, plan, p, &first,
                                   CLXENT_OUTPUT_GRADIENT, &first, flags, f);
    for (uint32_t bit = 1; (flags & CASE_SUBSETS) != 0 && bit <= desc->outputs; bit <<= 1) {
        if ((desc->outputs & bit) == 0) continue;
        good = good && check_again("when it is the only output", execute, on, plan, p, &first, bit, NULL,
                                   elsewhere, f);
    }
    if ((flags & CASE_HOST_ARRAYS) != 0) good = good && check_on_host(on, p, &first, flags, f);
    if ((flags & CASE_PARTS) != 0 && rows_of(desc) > 0) {
        good = good &&
               check_again("in parts", execute_in_parts, on, plan, p, &first, desc->outputs, NULL, flags, f);
        if ((desc->outputs & both) == both)
            good = good && check_again("in parts from saved statistics", execute_in_parts, on, plan, p,
                                       &first, CLXENT_OUTPUT_GRADIENT, &first, flags, f);
    }
    if (good && desc->workspace_limit != 0) good = check_without_limit(on, &plan_desc, p, &first, flags, f);
    free_execution(&first);
    clxent_plan_destroy(plan);
    return good;
}
