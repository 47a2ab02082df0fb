/* SPDX-License-Identifier: MIT
 *
 * desc.c - what a desc means: what makes it valid, and the size and shape of every tensor that a run of it
 * touches.
 *
 * Two tables carry the file, tensors.def and options.def. No OpenCL call: the reference and the host-array path check
 * arrays by the same rules by which the device path checks buffers.
 */
#include "internal.h"
#include "tensors.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- Tables ------------------------------------------------------------------------------ */

struct tensor {
    const char *name;
    enum element element;
    enum shape shape;
    size_t stride; /* offset in clxent_desc of the stride of its rows, else 0 */
    uint32_t operations;
    enum { DEPENDS_LOGITS, DEPENDS_TARGETS, DEPENDS_INDICES } depends;
    clxent_made made;
    size_t buffer, array; /* offsets in clxent_args and clxent_host_args */
};

#define STRIDE(field) offsetof(clxent_desc, field)
#define NO_STRIDE 0
#define OP(name) (1u << CLXENT_OP_##name)
#define TENSOR(name, element, shape, stride, operations, depends, made) \
    { #name,                                                            \
      ELEMENT_##element,                                                \
      SHAPE_##shape,                                                    \
      stride,                                                           \
      operations,                                                       \
      DEPENDS_##depends,                                                \
      made,                                                             \
      offsetof(clxent_args, name),                                      \
      offsetof(clxent_host_args, name) },

/* Index targets are SHAPE_ROWS and grad_output differs by operation: tensor_of() knows. */
static const struct tensor tensors[CLXENT_TENSORS] = {
#define INPUT(name, NAME, element, shape, stride, operations, file) \
    TENSOR(name, element, shape, stride, operations, LOGITS, CLXENT_MADE_INPUT)
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, file) \
    TENSOR(name, element, shape, stride, operations, depends, CLXENT_MADE_##made)
#include "tensors.def"
};

#define OUTPUT(name, NAME, ...)                                                                \
    _Static_assert(CLXENT_OUTPUT_##NAME == 1u << (CLXENT_TENSOR_##NAME - CLXENT_FIRST_OUTPUT), \
                   "clxent.h and tensors.def give " #name " the same bit");
#include "tensors.def"

enum {
    OUTPUTS = CLXENT_TENSORS - CLXENT_FIRST_OUTPUT,
    ALL_OUTPUTS = (1 << OUTPUTS) - 1,
    OUTPUTS_OF_INDICES = 0
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, file) \
    | (DEPENDS_##depends == DEPENDS_INDICES ? CLXENT_OUTPUT_##NAME : 0)
#include "tensors.def"
    ,
    OUTPUTS_OF_TARGETS = OUTPUTS_OF_INDICES
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, file) \
    | (DEPENDS_##depends == DEPENDS_TARGETS ? CLXENT_OUTPUT_##NAME : 0)
#include "tensors.def"
};

/* An enumeration by value; NULL where a number has no meaning. */
struct names {
    const char *prefix;
    const char *text[16];
};

#define VALUE(prefix, NAME, word) [CLXENT_##prefix##NAME] = #NAME,
#define NO_VALUE(word)
#define ENUMERATION(name, prefix, first, values) \
    static const struct names name##_names = { "CLXENT_" #prefix, { values } };
#include "options.def"

/* ---- Small things ------------------------------------------------------------------------- */

clxent_status clxent_fail_text(char *text, size_t size, clxent_status status, const char *format, ...)
{
    if (text != NULL && size > 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, size, format, arguments);
        va_end(arguments);
    }
    return status;
}

bool clxent_size_mul(size_t a, size_t b, size_t *product)
{
    if (b != 0 && a > SIZE_MAX / b) return false;
    *product = a * b;
    return true;
}

const char *clxent_tensor_name(clxent_tensor tensor)
{
    return (unsigned)tensor < CLXENT_TENSORS ? tensors[tensor].name : "unknown";
}

clxent_buffer *clxent_tensor_buffer(clxent_args *args, clxent_tensor tensor)
{
    return (clxent_buffer *)(void *)((char *)args + tensors[tensor].buffer);
}

clxent_output *clxent_tensor_array(clxent_host_args *args, clxent_tensor tensor)
{
    return (clxent_output *)(void *)((char *)args + tensors[tensor].array);
}

uint32_t clxent_outputs_made(clxent_made made)
{
    uint32_t outputs = 0;
    for (unsigned i = 0; i < OUTPUTS; i++)
        if (tensors[CLXENT_FIRST_OUTPUT + i].made == made) outputs |= 1u << i;
    return outputs;
}

uint32_t clxent_outputs_of_rows(uint32_t outputs)
{
    return outputs & ~clxent_outputs_made(CLXENT_MADE_TARGETS_PASS);
}

static uint32_t outputs_of(uint32_t op)
{
    uint32_t outputs = 0;
    for (unsigned i = 0; i < OUTPUTS; i++)
        if ((tensors[CLXENT_FIRST_OUTPUT + i].operations >> op & 1u) != 0) outputs |= 1u << i;
    return outputs;
}

bool clxent_op_reads(uint32_t op, clxent_tensor input) { return (tensors[input].operations >> op & 1u) != 0; }

/* The loss of given probabilities is divided by its denominator in reduce.cl alone. */
bool clxent_tensor_is_argument(uint32_t op, clxent_tensor tensor)
{
    if (tensor == CLXENT_TENSOR_DENOMINATOR && (outputs_of(op) & CLXENT_OUTPUT_GRADIENT) == 0) return false;
    const clxent_made last = op == CLXENT_OP_CROSS_ENTROPY ? CLXENT_MADE_TARGETS_PASS : CLXENT_MADE_ROW;
    return (tensors[tensor].operations >> op & 1u) != 0 && tensors[tensor].made <= last;
}

size_t clxent_dtype_size(uint32_t dtype)
{
    static const size_t sizes[] = { 0, 4, 2, 2, 8 };
    return dtype < sizeof sizes / sizeof *sizes ? sizes[dtype] : 0;
}

const char *clxent_dtype_name(uint32_t dtype)
{
    static const char *const text[] = { "unknown", "f32", "f16", "bf16", "f64" };
    return dtype < sizeof text / sizeof *text ? text[dtype] : "unknown";
}

size_t clxent_acc_size(const clxent_desc *desc) { return desc->dtype == CLXENT_F64 ? 8 : 4; }

bool clxent_accumulates(const clxent_desc *desc, clxent_tensor tensor)
{
    switch (tensor) {
    case CLXENT_TENSOR_GRADIENT: return desc->gradient_mode == CLXENT_GRADIENT_ACCUMULATE;
    case CLXENT_TENSOR_HIDDEN_GRADIENT: return desc->hidden_gradient_mode == CLXENT_GRADIENT_ACCUMULATE;
    case CLXENT_TENSOR_WEIGHT_GRADIENT: return desc->weight_gradient_mode == CLXENT_GRADIENT_ACCUMULATE;
    case CLXENT_TENSOR_BIAS_GRADIENT: return desc->bias_gradient_mode == CLXENT_GRADIENT_ACCUMULATE;
    default: return false;
    }
}

static uint32_t or_dtype(const clxent_desc *desc, uint32_t dtype) { return dtype != 0 ? dtype : desc->dtype; }

uint32_t clxent_gradient_dtype(const clxent_desc *desc) { return or_dtype(desc, desc->gradient_dtype); }

bool clxent_targets_are_indices(const clxent_desc *desc)
{
    switch (desc->target_type) {
#define INDEX_TYPE(NAME, word, type) case CLXENT_TARGET_##NAME:
#include "options.def"
        return true;
    default: return false;
    }
}

bool clxent_needs_targets(const clxent_desc *desc, uint32_t outputs)
{
    return clxent_op_reads(desc->op, CLXENT_TENSOR_TARGETS) && (outputs & OUTPUTS_OF_TARGETS) != 0;
}

/* ---- Shapes -------------------------------------------------------------------------------- */

static struct tensor tensor_of(const clxent_desc *desc, clxent_tensor which)
{
    struct tensor found = tensors[which];
    if (which == CLXENT_TENSOR_TARGETS && clxent_targets_are_indices(desc)) {
        found.shape = SHAPE_ROWS;
    } else if (which == CLXENT_TENSOR_GRAD_OUTPUT && desc->op == CLXENT_OP_SOFTMAX_BACKWARD) {
        found.element = ELEMENT_DTYPE;
        found.shape = SHAPE_MATRIX;
        found.stride = STRIDE(probabilities_row_stride);
    } else if (which == CLXENT_TENSOR_GRAD_OUTPUT && desc->reduction == CLXENT_REDUCTION_NONE) {
        found.shape = SHAPE_ROWS;
    }
    return found;
}

static size_t element_of(const clxent_desc *desc, enum element kind, const char **name)
{
    uint32_t dtype = desc->dtype;
    switch (kind) {
    case ELEMENT_I64: *name = "i64"; return 8;
    case ELEMENT_U64: *name = "u64"; return 8;
    case ELEMENT_RECORD: *name = "clxent_bad_targets"; return sizeof(clxent_bad_targets);
    case ELEMENT_TARGET:
        switch (desc->target_type) {
#define INDEX_TYPE(NAME, word, type) \
    case CLXENT_TARGET_##NAME:       \
        *name = word;                \
        return sizeof(type);
#include "options.def"
        case CLXENT_TARGET_PROBABILITIES_F32: dtype = CLXENT_F32; break;
        default: /* the logits' */
            if (desc->op == CLXENT_OP_LINEAR_CROSS_ENTROPY) return element_of(desc, ELEMENT_REAL, name);
            break;
        }
        break;
    case ELEMENT_GRADIENT: dtype = clxent_gradient_dtype(desc); break;
    case ELEMENT_HIDDEN_GRADIENT: dtype = or_dtype(desc, desc->hidden_gradient_dtype); break;
    case ELEMENT_WEIGHT_GRADIENT: dtype = or_dtype(desc, desc->weight_gradient_dtype); break;
    case ELEMENT_BIAS_GRADIENT: dtype = or_dtype(desc, desc->bias_gradient_dtype); break;
    case ELEMENT_REAL: dtype = desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32; break;
    case ELEMENT_DTYPE: break;
    }
    *name = clxent_dtype_name(dtype);
    return clxent_dtype_size(dtype);
}

static clxent_use required_if(bool needed) { return needed ? CLXENT_REQUIRED : CLXENT_UNUSED; }

static clxent_use use_of(const clxent_desc *desc, uint32_t outputs, bool statistics_in, clxent_tensor which)
{
    const bool asked = which >= CLXENT_TENSOR_LOSSES && (outputs >> (which - CLXENT_TENSOR_LOSSES) & 1u) != 0;
    const bool of_rows = clxent_outputs_of_rows(outputs) != 0, gradients = (outputs & CLXENT_GRADIENTS) != 0;
    /* By what the plan can be asked for, not by this run: the class that a row's sum leaves out is its target's, and each
     * output of a plan has the same bits whichever others are asked for beside it. */
    const bool targets = clxent_needs_targets(desc, desc->outputs);

    switch (which) {
    case CLXENT_TENSOR_LOGITS:
    case CLXENT_TENSOR_PROBABILITIES:
    case CLXENT_TENSOR_HIDDEN:
    case CLXENT_TENSOR_WEIGHT: return required_if(of_rows && clxent_op_reads(desc->op, which));
    case CLXENT_TENSOR_BIAS: return required_if(of_rows && desc->has_bias != 0);
    case CLXENT_TENSOR_TARGETS: return required_if(targets);
    case CLXENT_TENSOR_CLASS_WEIGHTS: return required_if(targets && desc->has_class_weights != 0);
    case CLXENT_TENSOR_ROW_WEIGHTS: return required_if(targets && desc->has_row_weights != 0);
    case CLXENT_TENSOR_GRAD_OUTPUT:
        if (!gradients) return CLXENT_UNUSED;
        return desc->op == CLXENT_OP_SOFTMAX_BACKWARD ? CLXENT_REQUIRED : CLXENT_OPTIONAL;
    case CLXENT_TENSOR_DENOMINATOR:
        return clxent_op_reads(desc->op, which) && (gradients || (outputs & CLXENT_OUTPUT_LOSS) != 0)
                   ? CLXENT_OPTIONAL
                   : CLXENT_UNUSED;
    case CLXENT_TENSOR_GRAD_ENTROPY: return required_if(gradients && desc->has_grad_entropy != 0);
    case CLXENT_TENSOR_GRAD_LSE: return required_if(gradients && desc->has_grad_lse != 0);
    case CLXENT_TENSOR_STATISTICS: return required_if(asked || statistics_in);
    case CLXENT_TENSOR_BAD_TARGETS: return asked ? CLXENT_OPTIONAL : CLXENT_UNUSED;
    default: return required_if(asked);
    }
}

clxent_status clxent_tensor_need(const clxent_desc *desc, uint32_t outputs, bool statistics_in, size_t rows,
                                 clxent_tensor which, clxent_need *need, char *text, size_t size)
{
    const struct tensor tensor = tensor_of(desc, which);
    const char *type;
    size_t elements = 1, step = 0; /* in elements: touched, and from one row or slab to the next */
    bool fits = true;

    memset(need, 0, sizeof *need);
    need->use = use_of(desc, outputs, statistics_in, which);
    if (need->use == CLXENT_UNUSED) return CLXENT_OK;
    need->element_size = element_of(desc, tensor.element, &type);
    need->is_matrix = tensor.shape == SHAPE_MATRIX || tensor.shape == SHAPE_HIDDEN;
    switch (tensor.shape) {
    case SHAPE_ONE: snprintf(need->shape, sizeof need->shape, "[1] %s", type); break;
    case SHAPE_CLASSES:
        elements = desc->classes;
        snprintf(need->shape, sizeof need->shape, "[classes %zu] %s", desc->classes, type);
        break;
    case SHAPE_ROWS:
        elements = rows;
        step = 1;
        snprintf(need->shape, sizeof need->shape, "[rows %zu] %s", rows, type);
        break;
    case SHAPE_STATISTICS:
        step = desc->has_grad_entropy != 0 ? 3 : 2;
        fits = clxent_size_mul(rows, step, &elements);
        snprintf(need->shape, sizeof need->shape, "[rows %zu, %zu] %s", rows, step, type);
        break;
    case SHAPE_HIDDEN:
    case SHAPE_WEIGHT: {
        const size_t count = tensor.shape == SHAPE_HIDDEN ? rows : desc->classes;
        size_t stride;
        memcpy(&stride, (const char *)desc + tensor.stride, sizeof stride);
        if (stride == 0) stride = desc->features;
        if (count > 0) {
            fits = clxent_size_mul(count - 1, stride, &elements) && elements <= SIZE_MAX - desc->features;
            elements += desc->features;
        } else {
            elements = 0;
        }
        if (tensor.shape == SHAPE_HIDDEN) step = stride;
        snprintf(need->shape, sizeof need->shape, "[%s %zu, features %zu] %s, row stride %zu",
                 tensor.shape == SHAPE_HIDDEN ? "rows" : "classes", count, desc->features, type, stride);
        break;
    }
    case SHAPE_MATRIX: {
        const bool full =
            which == CLXENT_TENSOR_GRADIENT && desc->gradient_padding == CLXENT_GRADIENT_PADDING_ZERO;
        const size_t slabs = rows / desc->inner;
        size_t slab;
        fits = clxent_size_mul(desc->classes, desc->inner, &slab);
        if (!fits) break;
        memcpy(&step, (const char *)desc + tensor.stride, sizeof step);
        if (step == 0) step = slab;
        elements = 0;
        if (slabs > 0) {
            const size_t last = full ? step : slab;
            fits = clxent_size_mul(slabs - 1, step, &elements) && elements <= SIZE_MAX - last;
            elements += last;
        }
        if (desc->inner == 1)
            snprintf(need->shape, sizeof need->shape, "[rows %zu, classes %zu] %s, row stride %zu%s", rows,
                     desc->classes, type, step, full ? ", padding too" : "");
        else
            snprintf(need->shape, sizeof need->shape, "[%zu, classes %zu, inner %zu] %s, row stride %zu%s",
                     slabs, desc->classes, desc->inner, type, step, full ? ", padding too" : "");
        break;
    }
    }
    if (!fits || !clxent_size_mul(elements, need->element_size, &need->bytes) ||
        !clxent_size_mul(step, need->element_size, &need->row_bytes))
        return clxent_fail_text(
            text, size, CLXENT_ERROR_INVALID_DESC,
            "batch is %zu, seq is %zu, classes is %zu, inner is %zu, features is %zu, row "
            "stride %zu: takes at most %zu bytes for %s",
            desc->batch, desc->seq, desc->classes, desc->inner, desc->features, step, SIZE_MAX, tensor.name);
    return CLXENT_OK;
}

size_t clxent_part_unit(const clxent_desc *desc)
{
    if (desc->batch == 0 || desc->seq == 0 || desc->shift == 0) return desc->inner;
    size_t a = desc->inner, b = desc->seq;
    while (b != 0) { /* Euclid: a becomes the greatest common divisor */
        const size_t remainder = a % b;
        a = b;
        b = remainder;
    }
    return desc->inner / a * desc->seq; /* divides batch * seq, as both do */
}

/* ---- Validity ------------------------------------------------------------------------------ */

struct message {
    char *text;
    size_t size;
};

#define REJECT(...) clxent_fail_text(say.text, say.size, CLXENT_ERROR_INVALID_DESC, __VA_ARGS__)

/* "reduction is 7: takes CLXENT_REDUCTION_MEAN (0), CLXENT_REDUCTION_SUM (1), ..." */
static clxent_status check_name(struct message say, const char *field, const struct names *names,
                                uint32_t value)
{
    const size_t count = sizeof names->text / sizeof *names->text;
    char list[256] = "";
    size_t used = 0;

    if (value < count && names->text[value] != NULL) return CLXENT_OK;
    for (size_t i = 0; i < count; i++)
        if (names->text[i] != NULL)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s%s (%zu)", used > 0 ? ", " : "",
                                     names->prefix, names->text[i], i);
    return REJECT("%s is %" PRIu32 ": takes %s", field, value, list);
}

/* "losses, loss, bad_targets" */
static const char *list_outputs(uint32_t outputs, char *list, size_t size)
{
    size_t used = 0;
    list[0] = '\0';
    for (unsigned i = 0; i < OUTPUTS; i++)
        if ((outputs >> i & 1u) != 0)
            used += (size_t)snprintf(list + used, size - used, "%s%s", used > 0 ? ", " : "",
                                     tensors[CLXENT_TENSOR_LOSSES + i].name);
    return list;
}

/* output: the gradient that has it. */
static clxent_status check_gradient_dtype(const clxent_desc *desc, struct message say, const char *field,
                                          uint32_t dtype, uint32_t output)
{
    const bool f64 = desc->dtype == CLXENT_F64;

    if (dtype == 0) return CLXENT_OK;
    if ((outputs_of(desc->op) & output) == 0)
        return REJECT("%s is %" PRIu32 ": takes 0 with op %s, which has no such output", field, dtype,
                      op_names.text[desc->op]);
    if (clxent_dtype_size(dtype) == 0 ||
        (f64 ? dtype != CLXENT_F64 && dtype != CLXENT_F32 : dtype == CLXENT_F64))
        return REJECT(
            "%s is %" PRIu32 " (%s): takes 0, %s with dtype %s", field, dtype, clxent_dtype_name(dtype),
            f64 ? "CLXENT_F64 (4) or CLXENT_F32 (1)" : "CLXENT_F32 (1), CLXENT_F16 (2) or CLXENT_BF16 (3)",
            clxent_dtype_name(desc->dtype));
    return CLXENT_OK;
}

/* op first: what else is looked at depends on it. */
static clxent_status check_types(const clxent_desc *desc, struct message say)
{
    const struct {
        const char *field;
        const struct names *names;
        const uint32_t *value;
    } choices[] = {
#define CHOICE(name, enumeration, initial, ...) { #name, &enumeration##_names, &desc->name },
#include "options.def"
    };

    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        const uint32_t *value = choices[i].value;
        const uint32_t output = value == &desc->gradient_dtype          ? CLXENT_OUTPUT_GRADIENT
                                : value == &desc->hidden_gradient_dtype ? CLXENT_OUTPUT_HIDDEN_GRADIENT
                                : value == &desc->weight_gradient_dtype ? CLXENT_OUTPUT_WEIGHT_GRADIENT
                                : value == &desc->bias_gradient_dtype   ? CLXENT_OUTPUT_BIAS_GRADIENT
                                                                        : 0;
        if (output != 0) CLXENT_TRY(check_gradient_dtype(desc, say, choices[i].field, *value, output));
        else if (value != &desc->target_type || clxent_needs_targets(desc, desc->outputs))
            CLXENT_TRY(check_name(say, choices[i].field, choices[i].names, *value));
    }
    return CLXENT_OK;
}

#define AN_INDEX_TYPE "an index type (I32, I64, U8, U16, U32)"

static clxent_status check_outputs(const clxent_desc *desc, struct message say)
{
    const uint32_t given = outputs_of(desc->op), of_indices = desc->outputs & OUTPUTS_OF_INDICES;
    const bool indices = clxent_targets_are_indices(desc);
    char list[256];

    if (desc->outputs == 0)
        return REJECT("outputs is 0: takes at least one of %s with op %s",
                      list_outputs(given, list, sizeof list), op_names.text[desc->op]);
    if ((desc->outputs & ~(uint32_t)ALL_OUTPUTS) != 0)
        return REJECT("outputs is 0x%" PRIx32 ": takes CLXENT_OUTPUT_* bits, which 0x%" PRIx32 " are not",
                      desc->outputs, desc->outputs & ~(uint32_t)ALL_OUTPUTS);
    if ((desc->outputs & ~given) != 0) {
        char extra[256];
        return REJECT("outputs is 0x%" PRIx32 " with %s: takes %s with op %s", desc->outputs,
                      list_outputs(desc->outputs & ~given, extra, sizeof extra),
                      list_outputs(given, list, sizeof list), op_names.text[desc->op]);
    }
    if ((desc->outputs & CLXENT_OUTPUT_LOSS) != 0 && desc->reduction == CLXENT_REDUCTION_NONE)
        return REJECT("outputs is 0x%" PRIx32 " with loss and reduction is CLXENT_REDUCTION_NONE: "
                      "takes MEAN or SUM, or losses alone",
                      desc->outputs);
    if (desc->op == CLXENT_OP_ONE_HOT && !indices)
        return REJECT("target_type is %s: takes " AN_INDEX_TYPE " with op ONE_HOT",
                      target_type_names.text[desc->target_type]);
    if (of_indices != 0 && !indices)
        return REJECT("outputs is 0x%" PRIx32 " with %s and target_type is %s: takes " AN_INDEX_TYPE,
                      desc->outputs, list_outputs(of_indices, list, sizeof list),
                      target_type_names.text[desc->target_type]);
    if ((desc->outputs & CLXENT_OUTPUT_BAD_TARGETS) != 0 && desc->bad_target != CLXENT_BAD_TARGET_REPORT)
        return REJECT("outputs is 0x%" PRIx32 " with bad_targets and bad_target is %s: takes "
                      "CLXENT_BAD_TARGET_REPORT",
                      desc->outputs, bad_target_names.text[desc->bad_target]);
    return CLXENT_OK;
}

/* What only CLXENT_OP_LINEAR_CROSS_ENTROPY has, or has not. */
static clxent_status check_features(const clxent_desc *desc, struct message say)
{
    const bool linear = desc->op == CLXENT_OP_LINEAR_CROSS_ENTROPY;
    const struct {
        const char *name;
        size_t stride;
    } strides[] = { { "hidden_row_stride", desc->hidden_row_stride },
                    { "weight_row_stride", desc->weight_row_stride },
                    { "hidden_gradient_row_stride", desc->hidden_gradient_row_stride },
                    { "weight_gradient_row_stride", desc->weight_gradient_row_stride } };
    const struct {
        const char *name;
        size_t value, takes;
    } unused[] = { { "inner", desc->inner, 1 },
                   { "row_stride", desc->row_stride, 0 },
                   { "gradient_row_stride", desc->gradient_row_stride, 0 },
                   { "probabilities_row_stride", desc->probabilities_row_stride, 0 } };

    if (!linear) return CLXENT_OK;
    if (desc->features < 1 || desc->features > INT32_MAX)
        return REJECT("features is %zu: takes 1 to %d with op LINEAR_CROSS_ENTROPY", desc->features,
                      INT32_MAX);
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++)
        if (strides[i].stride != 0 && strides[i].stride < desc->features)
            return REJECT("%s is %zu: takes 0 or at least features, which is %zu", strides[i].name,
                          strides[i].stride, desc->features);
    for (size_t i = 0; i < sizeof unused / sizeof *unused; i++)
        if (unused[i].value != unused[i].takes)
            return REJECT("%s is %zu: takes %zu with op LINEAR_CROSS_ENTROPY, which has no buffer of logits",
                          unused[i].name, unused[i].value, unused[i].takes);
    return CLXENT_OK;
}

static clxent_status check_shape(const clxent_desc *desc, struct message say)
{
    size_t rows, slab;

    if (desc->classes < 1 || desc->classes > INT32_MAX)
        return REJECT("classes is %zu: takes 1 to %d", desc->classes, INT32_MAX);
    if (desc->inner < 1) return REJECT("inner is 0: takes at least 1");
    if (desc->seq < 1 && desc->batch > 0)
        return REJECT("seq is 0: takes at least 1 unless batch, which is %zu, is 0", desc->batch);
    if (!clxent_size_mul(desc->batch, desc->seq, &rows))
        return REJECT("batch is %zu and seq is %zu: takes a product of at most %zu", desc->batch, desc->seq,
                      SIZE_MAX);
    if (rows % desc->inner != 0)
        return REJECT("inner is %zu: takes a divisor of batch * seq, which is %zu", desc->inner, rows);
    if (rows > 0 && desc->shift > desc->seq)
        return REJECT("shift is %zu: takes 0 to seq, which is %zu", desc->shift, desc->seq);
    if (!clxent_size_mul(desc->classes, desc->inner, &slab))
        return REJECT("inner is %zu: takes classes * inner of at most %zu", desc->inner, SIZE_MAX);
    const struct {
        const char *name;
        size_t stride;
    } strides[] = { { "row_stride", desc->row_stride },
                    { "gradient_row_stride", desc->gradient_row_stride },
                    { "probabilities_row_stride", desc->probabilities_row_stride },
                    { "target_row_stride", desc->target_row_stride } };
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++)
        if (strides[i].stride != 0 && strides[i].stride < slab)
            return REJECT("%s is %zu: takes 0 or at least classes * inner, which is %zu", strides[i].name,
                          strides[i].stride, slab);
    CLXENT_TRY(check_features(desc, say));
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        clxent_need need;
        CLXENT_TRY(clxent_tensor_need(desc, desc->outputs, false, rows, (clxent_tensor)t, &need, say.text,
                                      say.size));
    }
    return CLXENT_OK;
}

/* The options are computed with as acc_t, so that is where they must be finite; a softcap that rounds
 * to 0 there would be switched off, and a subnormal one has no reciprocal. The conditions are written so that
 * NaN fails them. */
static clxent_status check_numbers(const clxent_desc *desc, struct message say)
{
    const bool f64 = desc->dtype == CLXENT_F64;
    const double largest = f64 ? DBL_MAX : (double)FLT_MAX;
    const double smallest = f64 ? DBL_MIN : (double)FLT_MIN;
    const struct {
        const char *name;
        double value;
        enum { FRACTION, NOT_NEGATIVE, FINITE, NORMAL } takes;
    } numbers[] = {
#define NUMBER(name, initial, takes, acts, constant, parameter, draws, ...) { #name, desc->name, takes },
#include "options.def"
    };

    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const char *name = numbers[i].name;
        const double value = numbers[i].value;
        switch (numbers[i].takes) {
        case FRACTION:
            if (!(value >= 0 && value <= 1)) return REJECT("%s is %g: takes a number in [0, 1]", name, value);
            break;
        case NOT_NEGATIVE:
            if (!(value >= 0 && value <= largest))
                return REJECT("%s is %g: takes a number in [0, %g]", name, value, largest);
            break;
        case FINITE:
            if (!(fabs(value) <= largest))
                return REJECT("%s is %g: takes a number in [-%g, %g]", name, value, largest, largest);
            break;
        case NORMAL:
            if (!(value == 0 || (value >= smallest && value <= largest)))
                return REJECT("%s is %g: takes 0 (off) or a number in [%g, %g]", name, value, smallest,
                              largest);
            break;
        }
    }
    return CLXENT_OK;
}

/* An option that an operation would silently pass over is refused. */
static clxent_status check_unused(const clxent_desc *desc, struct message say)
{
    enum { ANY, LOGITS, LOSS, GRADIENT, ROWS, LINEAR };
    const char *op = op_names.text[desc->op];
    const bool linear = desc->op == CLXENT_OP_LINEAR_CROSS_ENTROPY;
    const bool cross_entropy = linear || desc->op == CLXENT_OP_CROSS_ENTROPY;
    const struct {
        const char *name;
        double value, initial;
        int acts;
    } options[] = {
#define OPTION(name, kind, initial, acts, constant, ...) { #name, (double)desc->name, initial, acts },
#include "options.def"
    };

    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (options[i].acts != ANY && options[i].value != options[i].initial &&
            !(options[i].acts == LINEAR ? linear : cross_entropy))
            return REJECT("%s is %g: takes %g with op %s, which does not use it", options[i].name,
                          options[i].value, options[i].initial, op);
    /* The default, -100, stays allowed, as in PyTorch. */
    if (clxent_needs_targets(desc, desc->outputs) && !clxent_targets_are_indices(desc) &&
        desc->use_ignore_index != 0 && desc->ignore_index >= 0)
        return REJECT("ignore_index is %" PRId64 " and target_type is %s: takes a negative number, or "
                      "use_ignore_index 0, as probability targets have no index (row weights of 0 mask rows)",
                      desc->ignore_index, target_type_names.text[desc->target_type]);
    const struct {
        const char *name;
        uint32_t value, output;
    } modes[] = { { "gradient_mode", desc->gradient_mode, CLXENT_OUTPUT_GRADIENT },
                  { "hidden_gradient_mode", desc->hidden_gradient_mode, CLXENT_OUTPUT_HIDDEN_GRADIENT },
                  { "weight_gradient_mode", desc->weight_gradient_mode, CLXENT_OUTPUT_WEIGHT_GRADIENT },
                  { "bias_gradient_mode", desc->bias_gradient_mode, CLXENT_OUTPUT_BIAS_GRADIENT } };
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (modes[i].value != CLXENT_GRADIENT_WRITE && (outputs_of(desc->op) & modes[i].output) == 0)
            return REJECT("%s is %s: takes CLXENT_GRADIENT_WRITE with op %s, which has no such output",
                          modes[i].name, gradient_mode_names.text[modes[i].value], op);
    if ((desc->outputs & CLXENT_OUTPUT_BIAS_GRADIENT) != 0 && desc->has_bias == 0)
        return REJECT("outputs is 0x%" PRIx32 " with bias_gradient and has_bias is 0: takes 1",
                      desc->outputs);
    if (desc->gradient_padding != CLXENT_GRADIENT_PADDING_KEEP) {
        const char *padding = gradient_padding_names.text[desc->gradient_padding];
        if ((desc->outputs & CLXENT_OUTPUT_GRADIENT) == 0)
            return REJECT("gradient_padding is %s: takes CLXENT_GRADIENT_PADDING_KEEP with outputs 0x%" PRIx32
                          ", which have no gradient",
                          padding, desc->outputs);
        if (desc->gradient_mode == CLXENT_GRADIENT_ACCUMULATE)
            return REJECT("gradient_padding is %s: takes CLXENT_GRADIENT_PADDING_KEEP with gradient_mode "
                          "ACCUMULATE, which adds to what is there",
                          padding);
    }
    if ((desc->has_grad_entropy != 0 || desc->has_grad_lse != 0) &&
        (desc->outputs & (CLXENT_GRADIENTS | CLXENT_OUTPUT_STATISTICS)) == 0)
        return REJECT("%s is %" PRIu32 ": takes 0 with outputs 0x%" PRIx32
                      ", which have neither gradient nor statistics",
                      desc->has_grad_entropy != 0 ? "has_grad_entropy" : "has_grad_lse",
                      desc->has_grad_entropy != 0 ? desc->has_grad_entropy : desc->has_grad_lse,
                      desc->outputs);
    return CLXENT_OK;
}

clxent_status clxent_desc_check(const clxent_desc *desc, char *text, size_t size)
{
    const struct message say = { text, size };
    clxent_desc copy;

    if (desc == NULL)
        return clxent_fail_text(text, size, CLXENT_ERROR_NULL_ARGUMENT, "desc is NULL: takes a clxent_desc");
    CLXENT_TRY(clxent_struct_copy(CLXENT_STRUCT_DESC, &copy, desc, text, size));
    CLXENT_TRY(check_types(&copy, say));
    CLXENT_TRY(check_outputs(&copy, say));
    CLXENT_TRY(check_shape(&copy, say));
    CLXENT_TRY(check_numbers(&copy, say));
    CLXENT_TRY(check_unused(&copy, say));
    return clxent_fail_text(text, size, CLXENT_OK, "%s", "");
}
