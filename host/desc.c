/* SPDX-License-Identifier: MIT
 *
 * desc.c - what a desc means: what makes it valid, and the size and shape of every tensor that a run of it
 * touches.
 *
 * Two tables carry the file: `tensors` tells element type and shape of each tensor, `operations` what
 * each operation reads, gives and takes. Everything else reads them. No OpenCL call: the reference and the
 * host-array path judge arrays by the same rules as the device path judges buffers.
 */
#include "internal.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- Tables ------------------------------------------------------------------------------ */

enum element {
    ELEMENT_DTYPE,
    ELEMENT_GRADIENT,
    ELEMENT_REAL,
    ELEMENT_TARGET,
    ELEMENT_I64,
    ELEMENT_U64,
    ELEMENT_RECORD
};

enum shape {
    SHAPE_ONE,     /* [1] */
    SHAPE_ROWS,    /* [rows] */
    SHAPE_PAIRS,   /* [rows, 2] */
    SHAPE_CLASSES, /* [classes] */
    SHAPE_MATRIX   /* [rows, classes] with a stride, or [rows / inner, classes, inner] */
};

struct tensor {
    const char *name;
    enum element element;
    enum shape shape;
    size_t stride; /* offset in clxent_desc of the stride of a SHAPE_MATRIX, else 0 */
};

#define STRIDE(field) offsetof(clxent_desc, field)

/* Index targets are SHAPE_ROWS and upstream differs by operation: tensor_of() knows. */
static const struct tensor tensors[CLXENT_TENSORS] = {
    [CLXENT_TENSOR_LOGITS] = { "logits", ELEMENT_DTYPE, SHAPE_MATRIX, STRIDE(row_stride) },
    [CLXENT_TENSOR_PROBABILITIES] = { "probabilities", ELEMENT_DTYPE, SHAPE_MATRIX,
                                      STRIDE(probabilities_row_stride) },
    [CLXENT_TENSOR_TARGETS] = { "targets", ELEMENT_TARGET, SHAPE_MATRIX, STRIDE(target_row_stride) },
    [CLXENT_TENSOR_CLASS_WEIGHTS] = { "class_weights", ELEMENT_REAL, SHAPE_CLASSES, 0 },
    [CLXENT_TENSOR_ROW_WEIGHTS] = { "row_weights", ELEMENT_REAL, SHAPE_ROWS, 0 },
    [CLXENT_TENSOR_UPSTREAM] = { "upstream", ELEMENT_REAL, SHAPE_ONE, 0 },
    [CLXENT_TENSOR_DENOMINATOR] = { "denominator", ELEMENT_REAL, SHAPE_ONE, 0 },
    [CLXENT_TENSOR_LOSSES] = { "losses", ELEMENT_REAL, SHAPE_ROWS, 0 },
    [CLXENT_TENSOR_LOSS] = { "loss", ELEMENT_REAL, SHAPE_ONE, 0 },
    [CLXENT_TENSOR_LSE] = { "lse", ELEMENT_REAL, SHAPE_ROWS, 0 },
    [CLXENT_TENSOR_SOFTMAX] = { "softmax", ELEMENT_DTYPE, SHAPE_MATRIX, STRIDE(probabilities_row_stride) },
    [CLXENT_TENSOR_LOG_SOFTMAX] = { "log_softmax", ELEMENT_DTYPE, SHAPE_MATRIX,
                                    STRIDE(probabilities_row_stride) },
    [CLXENT_TENSOR_GRADIENT] = { "gradient", ELEMENT_GRADIENT, SHAPE_MATRIX, STRIDE(gradient_row_stride) },
    [CLXENT_TENSOR_ARGMAX] = { "argmax", ELEMENT_I64, SHAPE_ROWS, 0 },
    [CLXENT_TENSOR_CORRECT] = { "correct", ELEMENT_U64, SHAPE_ONE, 0 },
    [CLXENT_TENSOR_ENTROPY] = { "entropy", ELEMENT_REAL, SHAPE_ROWS, 0 },
    [CLXENT_TENSOR_STATISTICS] = { "statistics", ELEMENT_REAL, SHAPE_PAIRS, 0 },
    [CLXENT_TENSOR_BAD_TARGETS] = { "bad_targets", ELEMENT_RECORD, SHAPE_ONE, 0 },
    [CLXENT_TENSOR_ONE_HOT] = { "one_hot", ELEMENT_DTYPE, SHAPE_MATRIX, STRIDE(probabilities_row_stride) },
};

/* Bit i of clxent_desc.outputs is the tensor CLXENT_TENSOR_LOSSES + i. */
enum {
    OUTPUTS = CLXENT_TENSORS - CLXENT_TENSOR_LOSSES,
    ALL_OUTPUTS = (1 << OUTPUTS) - 1,
    TARGET_OUTPUTS = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT |
                     CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_STATISTICS | CLXENT_OUTPUT_BAD_TARGETS |
                     CLXENT_OUTPUT_ONE_HOT
};

struct operation {
    const char *name;
    clxent_tensor input;
    uint32_t outputs;
    bool targets; /* reads targets, so ignore_index and the bad-target policy act; has a D */
    bool options; /* takes the fields of `cross_entropy_options` */
};

static const struct operation operations[] = {
    [CLXENT_OP_CROSS_ENTROPY] = { "CROSS_ENTROPY", CLXENT_TENSOR_LOGITS, ALL_OUTPUTS & ~CLXENT_OUTPUT_ONE_HOT,
                                  true, true },
    [CLXENT_OP_SOFTMAX_BACKWARD] = { "SOFTMAX_BACKWARD", CLXENT_TENSOR_PROBABILITIES, CLXENT_OUTPUT_GRADIENT,
                                     false, false },
    [CLXENT_OP_ONE_HOT] = { "ONE_HOT", CLXENT_TENSOR_TARGETS,
                            CLXENT_OUTPUT_ONE_HOT | CLXENT_OUTPUT_BAD_TARGETS, true, false },
    [CLXENT_OP_PROBABILITY_LOSS] = { "PROBABILITY_LOSS", CLXENT_TENSOR_PROBABILITIES,
                                     CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_BAD_TARGETS,
                                     true, false },
    [CLXENT_OP_SOFTMAX_GRADIENT] = { "SOFTMAX_GRADIENT", CLXENT_TENSOR_PROBABILITIES,
                                     CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_BAD_TARGETS, true, false },
};

/* Indexed by the enumerators of clxent.h; NULL where a number has no meaning. */
struct names {
    const char *field, *prefix;
    const char *text[6];
};

static const struct names op_names = { "op",
                                       "CLXENT_OP_",
                                       { "CROSS_ENTROPY", "SOFTMAX_BACKWARD", "ONE_HOT", "PROBABILITY_LOSS",
                                         "SOFTMAX_GRADIENT", NULL } };
static const struct names dtype_names = { "dtype", "CLXENT_", { NULL, "F32", "F16", "BF16", "F64", NULL } };
static const struct names target_names = {
    "target_type", "CLXENT_TARGET_", { NULL, "I32", "I64", "U8", "PROBABILITIES_F32", "PROBABILITIES_LOGITS" }
};
static const struct names reduction_names = { "reduction",
                                              "CLXENT_REDUCTION_",
                                              { "MEAN", "SUM", "NONE", NULL, NULL, NULL } };
static const struct names bad_target_names = { "bad_target",
                                               "CLXENT_BAD_TARGET_",
                                               { "REPORT", "NAN", "IGNORE", NULL, NULL, NULL } };
static const struct names all_ignored_names = { "all_ignored",
                                                "CLXENT_ALL_IGNORED_",
                                                { "NAN", "ZERO", NULL, NULL, NULL, NULL } };
static const struct names gradient_mode_names = { "gradient_mode",
                                                  "CLXENT_GRADIENT_",
                                                  { "WRITE", "ACCUMULATE", NULL, NULL, NULL, NULL } };

static const struct names gradient_padding_names = { "gradient_padding",
                                                     "CLXENT_GRADIENT_PADDING_",
                                                     { "KEEP", "ZERO", NULL, NULL, NULL, NULL } };

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

size_t clxent_real_size(const clxent_desc *desc) { return desc->dtype == CLXENT_F64 ? 8 : 4; }

uint32_t clxent_gradient_dtype(const clxent_desc *desc)
{
    return desc->gradient_dtype != 0 ? desc->gradient_dtype : desc->dtype;
}

bool clxent_targets_are_indices(const clxent_desc *desc)
{
    return desc->target_type == CLXENT_TARGET_U8 || desc->target_type == CLXENT_TARGET_I32 ||
           desc->target_type == CLXENT_TARGET_I64;
}

bool clxent_needs_targets(const clxent_desc *desc, uint32_t outputs)
{
    return operations[desc->op].targets && (outputs & TARGET_OUTPUTS) != 0;
}

/* ---- Shapes -------------------------------------------------------------------------------- */

static struct tensor tensor_of(const clxent_desc *desc, clxent_tensor which)
{
    struct tensor found = tensors[which];
    if (which == CLXENT_TENSOR_TARGETS && clxent_targets_are_indices(desc)) {
        found.shape = SHAPE_ROWS;
    } else if (which == CLXENT_TENSOR_UPSTREAM && desc->op == CLXENT_OP_SOFTMAX_BACKWARD) {
        found.element = ELEMENT_DTYPE;
        found.shape = SHAPE_MATRIX;
        found.stride = STRIDE(probabilities_row_stride);
    } else if (which == CLXENT_TENSOR_UPSTREAM && desc->reduction == CLXENT_REDUCTION_NONE) {
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
        case CLXENT_TARGET_U8: *name = "u8"; return 1;
        case CLXENT_TARGET_I32: *name = "i32"; return 4;
        case CLXENT_TARGET_I64: *name = "i64"; return 8;
        case CLXENT_TARGET_PROBABILITIES_F32: dtype = CLXENT_F32; break;
        default: break;
        }
        break;
    case ELEMENT_GRADIENT: dtype = clxent_gradient_dtype(desc); break;
    case ELEMENT_REAL: dtype = desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32; break;
    case ELEMENT_DTYPE: break;
    }
    *name = clxent_dtype_name(dtype);
    return clxent_dtype_size(dtype);
}

static clxent_use use_of(const clxent_desc *desc, uint32_t outputs, bool statistics_in, clxent_tensor which)
{
    const struct operation *op = &operations[desc->op];
    const bool asked = which >= CLXENT_TENSOR_LOSSES && (outputs >> (which - CLXENT_TENSOR_LOSSES) & 1u) != 0;

    switch (which) {
    case CLXENT_TENSOR_LOGITS:
    case CLXENT_TENSOR_PROBABILITIES:
        return which == op->input && (outputs & ~(uint32_t)CLXENT_OUTPUT_BAD_TARGETS) != 0 ? CLXENT_REQUIRED
                                                                                           : CLXENT_UNUSED;
    /* By what the plan can be asked for, not by this run: the class that a row's sum keeps apart is its target's,
     * and each output of a plan has the same bits whichever others are asked for beside it. */
    case CLXENT_TENSOR_TARGETS:
        return clxent_needs_targets(desc, desc->outputs) ? CLXENT_REQUIRED : CLXENT_UNUSED;
    case CLXENT_TENSOR_CLASS_WEIGHTS:
        return desc->has_class_weights != 0 && clxent_needs_targets(desc, desc->outputs) ? CLXENT_REQUIRED
                                                                                         : CLXENT_UNUSED;
    case CLXENT_TENSOR_ROW_WEIGHTS:
        return desc->has_row_weights != 0 && clxent_needs_targets(desc, desc->outputs) ? CLXENT_REQUIRED
                                                                                       : CLXENT_UNUSED;
    case CLXENT_TENSOR_UPSTREAM:
        if ((outputs & CLXENT_OUTPUT_GRADIENT) == 0) return CLXENT_UNUSED;
        return desc->op == CLXENT_OP_SOFTMAX_BACKWARD ? CLXENT_REQUIRED : CLXENT_OPTIONAL;
    case CLXENT_TENSOR_DENOMINATOR:
        return op->targets && (outputs & (CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT)) != 0 ? CLXENT_OPTIONAL
                                                                                             : CLXENT_UNUSED;
    case CLXENT_TENSOR_STATISTICS: return asked || statistics_in ? CLXENT_REQUIRED : CLXENT_UNUSED;
    case CLXENT_TENSOR_BAD_TARGETS: return asked ? CLXENT_OPTIONAL : CLXENT_UNUSED;
    default: return asked ? CLXENT_REQUIRED : CLXENT_UNUSED;
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
    need->is_matrix = tensor.shape == SHAPE_MATRIX;
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
    case SHAPE_PAIRS:
        fits = clxent_size_mul(rows, 2, &elements);
        step = 2;
        snprintf(need->shape, sizeof need->shape, "[rows %zu, 2] %s", rows, type);
        break;
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
        return clxent_fail_text(text, size, CLXENT_ERROR_INVALID_DESC,
                                "batch is %zu, seq is %zu, classes is %zu, inner is %zu, row stride %zu: "
                                "takes at most %zu bytes for %s",
                                desc->batch, desc->seq, desc->classes, desc->inner, step, SIZE_MAX,
                                tensor.name);
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

/* "mean is 7: takes CLXENT_REDUCTION_MEAN (0), CLXENT_REDUCTION_SUM (1), ..." */
static clxent_status check_name(struct message say, const struct names *names, uint32_t value)
{
    const size_t count = sizeof names->text / sizeof *names->text;
    char list[256] = "";
    size_t used = 0;

    if (value < count && names->text[value] != NULL) return CLXENT_OK;
    for (size_t i = 0; i < count; i++)
        if (names->text[i] != NULL)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s%s (%zu)", used > 0 ? ", " : "",
                                     names->prefix, names->text[i], i);
    return REJECT("%s is %" PRIu32 ": takes %s", names->field, value, list);
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

static clxent_status check_types(const clxent_desc *desc, struct message say)
{
    CLXENT_TRY(check_name(say, &op_names, desc->op));
    CLXENT_TRY(check_name(say, &dtype_names, desc->dtype));
    if (desc->gradient_dtype != 0) {
        const bool f64 = desc->dtype == CLXENT_F64;
        if ((operations[desc->op].outputs & CLXENT_OUTPUT_GRADIENT) == 0)
            return REJECT("gradient_dtype is %" PRIu32 ": takes 0 with op %s, which gives no gradient",
                          desc->gradient_dtype, operations[desc->op].name);
        if (clxent_dtype_size(desc->gradient_dtype) == 0 ||
            (f64 ? desc->gradient_dtype != CLXENT_F64 && desc->gradient_dtype != CLXENT_F32
                 : desc->gradient_dtype == CLXENT_F64))
            return REJECT("gradient_dtype is %" PRIu32 " (%s): takes 0, %s with dtype %s",
                          desc->gradient_dtype, clxent_dtype_name(desc->gradient_dtype),
                          f64 ? "CLXENT_F64 (4) or CLXENT_F32 (1)"
                              : "CLXENT_F32 (1), CLXENT_F16 (2) or CLXENT_BF16 (3)",
                          clxent_dtype_name(desc->dtype));
    }
    CLXENT_TRY(check_name(say, &reduction_names, desc->reduction));
    CLXENT_TRY(check_name(say, &bad_target_names, desc->bad_target));
    CLXENT_TRY(check_name(say, &all_ignored_names, desc->all_ignored));
    CLXENT_TRY(check_name(say, &gradient_mode_names, desc->gradient_mode));
    CLXENT_TRY(check_name(say, &gradient_padding_names, desc->gradient_padding));
    if (clxent_needs_targets(desc, desc->outputs))
        CLXENT_TRY(check_name(say, &target_names, desc->target_type));
    return CLXENT_OK;
}

static clxent_status check_outputs(const clxent_desc *desc, struct message say)
{
    const struct operation *op = &operations[desc->op];
    const bool indices = clxent_targets_are_indices(desc);
    char list[256];

    if (desc->outputs == 0)
        return REJECT("outputs is 0: takes at least one of %s with op %s",
                      list_outputs(op->outputs, list, sizeof list), op->name);
    if ((desc->outputs & ~(uint32_t)ALL_OUTPUTS) != 0)
        return REJECT("outputs is 0x%" PRIx32 ": takes CLXENT_OUTPUT_* bits, which 0x%" PRIx32 " are not",
                      desc->outputs, desc->outputs & ~(uint32_t)ALL_OUTPUTS);
    if ((desc->outputs & ~op->outputs) != 0) {
        char extra[256];
        return REJECT("outputs is 0x%" PRIx32 " with %s: takes %s with op %s", desc->outputs,
                      list_outputs(desc->outputs & ~op->outputs, extra, sizeof extra),
                      list_outputs(op->outputs, list, sizeof list), op->name);
    }
    if ((desc->outputs & CLXENT_OUTPUT_LOSS) != 0 && desc->reduction == CLXENT_REDUCTION_NONE)
        return REJECT("outputs is 0x%" PRIx32 " with loss and reduction is CLXENT_REDUCTION_NONE: "
                      "takes MEAN or SUM, or losses alone",
                      desc->outputs);
    if (desc->op == CLXENT_OP_ONE_HOT && !indices)
        return REJECT("target_type is %s: takes an index type (I32, I64, U8) with op ONE_HOT",
                      target_names.text[desc->target_type]);
    if ((desc->outputs & (CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_BAD_TARGETS)) != 0 && !indices)
        return REJECT("outputs is 0x%" PRIx32
                      " with %s and target_type is %s: takes an index type (I32, I64, U8)",
                      desc->outputs,
                      list_outputs(desc->outputs & (CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_BAD_TARGETS), list,
                                   sizeof list),
                      target_names.text[desc->target_type]);
    if ((desc->outputs & CLXENT_OUTPUT_BAD_TARGETS) != 0 && desc->bad_target != CLXENT_BAD_TARGET_REPORT)
        return REJECT("outputs is 0x%" PRIx32 " with bad_targets and bad_target is %s: takes "
                      "CLXENT_BAD_TARGET_REPORT",
                      desc->outputs, bad_target_names.text[desc->bad_target]);
    return CLXENT_OK;
}

static clxent_status check_shape(const clxent_desc *desc, struct message say)
{
    static const struct {
        const char *name;
        size_t offset;
    } strides[] = {
        { "row_stride", STRIDE(row_stride) },
        { "gradient_row_stride", STRIDE(gradient_row_stride) },
        { "probabilities_row_stride", STRIDE(probabilities_row_stride) },
        { "target_row_stride", STRIDE(target_row_stride) },
    };
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
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++) {
        size_t stride;
        memcpy(&stride, (const char *)desc + strides[i].offset, sizeof stride);
        if (stride != 0 && stride < slab)
            return REJECT("%s is %zu: takes 0 or at least classes * inner, which is %zu", strides[i].name,
                          stride, slab);
    }
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        clxent_need need;
        CLXENT_TRY(clxent_tensor_need(desc, desc->outputs, false, rows, (clxent_tensor)t, &need, say.text,
                                      say.size));
    }
    return CLXENT_OK;
}

/* The options are computed with as "real", so that is where they must be finite; a softcap that rounds
 * to 0 there would be switched off, and a subnormal one has no reciprocal. The conditions are written so that
 * NaN fails them. */
static clxent_status check_numbers(const clxent_desc *desc, struct message say)
{
    const bool f64 = desc->dtype == CLXENT_F64;
    const double largest = f64 ? DBL_MAX : (double)FLT_MAX;
    const double smallest = f64 ? DBL_MIN : (double)FLT_MIN;

    if (!(desc->label_smoothing >= 0 && desc->label_smoothing <= 1))
        return REJECT("label_smoothing is %g: takes a number in [0, 1]", desc->label_smoothing);
    if (!(desc->z_loss >= 0 && desc->z_loss <= largest))
        return REJECT("z_loss is %g: takes a number in [0, %g]", desc->z_loss, largest);
    if (!(fabs(desc->logit_scale) <= largest))
        return REJECT("logit_scale is %g: takes a number in [-%g, %g]", desc->logit_scale, largest, largest);
    if (!(desc->softcap == 0 || (desc->softcap >= smallest && desc->softcap <= largest)))
        return REJECT("softcap is %g: takes 0 (off) or a number in [%g, %g]", desc->softcap, smallest,
                      largest);
    return CLXENT_OK;
}

/* An option that an operation would silently pass over is refused. */
static clxent_status check_unused(const clxent_desc *desc, struct message say)
{
    const struct operation *op = &operations[desc->op];
    const struct {
        const char *name;
        double value, neutral;
    } options[] = {
        { "label_smoothing", desc->label_smoothing, 0 },
        { "z_loss", desc->z_loss, 0 },
        { "logit_scale", desc->logit_scale, 1 },
        { "softcap", desc->softcap, 0 },
        { "has_class_weights", (double)desc->has_class_weights, 0 },
        { "has_row_weights", (double)desc->has_row_weights, 0 },
        { "shift", (double)desc->shift, 0 },
    };

    for (size_t i = 0; !op->options && i < sizeof options / sizeof *options; i++)
        if (options[i].value != options[i].neutral)
            return REJECT("%s is %g: takes %g with op %s, which does not use it", options[i].name,
                          options[i].value, options[i].neutral, op->name);
    /* The default, -100, stays allowed, as in PyTorch. */
    if (clxent_needs_targets(desc, desc->outputs) && !clxent_targets_are_indices(desc) &&
        desc->use_ignore_index != 0 && desc->ignore_index >= 0)
        return REJECT("ignore_index is %" PRId64 " and target_type is %s: takes a negative number, or "
                      "use_ignore_index 0, as probability targets have no index (row weights of 0 mask rows)",
                      desc->ignore_index, target_names.text[desc->target_type]);
    if (desc->gradient_mode != CLXENT_GRADIENT_WRITE && (op->outputs & CLXENT_OUTPUT_GRADIENT) == 0)
        return REJECT("gradient_mode is %s: takes CLXENT_GRADIENT_WRITE with op %s, which gives no gradient",
                      gradient_mode_names.text[desc->gradient_mode], op->name);
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
    if (desc->reserved != 0) return REJECT("reserved is %" PRIu32 ": takes 0", desc->reserved);
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
