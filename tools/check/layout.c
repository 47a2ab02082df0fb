/* SPDX-License-Identifier: MIT
 *
 * layout.c - see layout.h and problem.h: elements of arrays, and the tensors of a desc.
 */
#include "layout.h"

#include <stdlib.h>
#include <string.h>

/* ---- Storage ---------------------------------------------------------------------------------- */

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

/* ---- Tensors ---------------------------------------------------------------------------------- */

size_t element_index(const clxent_desc *desc, size_t stride, size_t row, size_t class_index)
{
    const size_t slab = stride != 0 ? stride : desc->classes * desc->inner;
    return row / desc->inner * slab + class_index * desc->inner + row % desc->inner;
}

const struct tensor tensors[TENSORS] = {
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

uint32_t output_bit(int tensor) { return tensor < FIRST_OUTPUT ? 0 : 1u << (tensor - FIRST_OUTPUT); }

bool has_tensor(uint32_t op, int tensor) { return (tensors[tensor].operations >> op & 1u) != 0; }

size_t rows_of(const clxent_desc *desc) { return desc->batch * desc->seq; }

uint32_t real_dtype(const clxent_desc *desc) { return desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32; }

bool accumulates(const clxent_desc *desc, int tensor)
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

bool needs_targets(const clxent_desc *desc)
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

bool takes(const clxent_desc *desc, uint32_t outputs, int tensor)
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

layout layout_of(const clxent_desc *desc, int tensor)
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

size_t index_of(const clxent_desc *desc, const layout *l, size_t row, size_t column)
{
    if (l->matrix) return element_index(desc, l->stride, row, column);
    return row * (l->stride != 0 ? l->stride : l->columns) + column;
}

size_t offset_of(const clxent_desc *desc, const layout *l, size_t k)
{
    return index_of(desc, l, k / l->columns, k % l->columns) * l->element_size;
}

size_t slab_elements(const clxent_desc *desc) { return desc->classes * desc->inner; }

size_t slab_stride(const clxent_desc *desc, const layout *l)
{
    return l->stride != 0 ? l->stride : slab_elements(desc);
}

size_t layout_bytes(const clxent_desc *desc, const layout *l)
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
