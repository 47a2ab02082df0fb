/* SPDX-License-Identifier: MIT
 *
 * eval_inputs.c - see eval.h: whether files fit each other and the options, first by their headers, then by their values, which
 * become arrays of the dtypes that the library takes.
 */
#define _XOPEN_SOURCE 700
#include "eval.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Headers -------------------------------------------------------------------------------- */

/* What can hold the bits of a bf16: u2, i2, and the V2 that NumPy writes for dtypes of other libraries. */
static bool is_bits16(const npy_header *h)
{
    return h->item_size == 2 && (h->kind == 'u' || h->kind == 'i' || h->kind == 'V');
}

/* CLXENT_F32, ...; 0: no floating point that is known. bits: 2-byte items are the bits of bf16. */
static uint32_t float_dtype(const npy_header *h, bool bits)
{
    if (h->bf16 || (bits && is_bits16(h))) return CLXENT_BF16;
    if (h->kind != 'f') return 0;
    return h->item_size == 2   ? CLXENT_F16
           : h->item_size == 4 ? CLXENT_F32
           : h->item_size == 8 ? CLXENT_F64
                               : 0;
}

static bool is_integer(const npy_header *h)
{
    const size_t n = h->item_size;
    return h->kind == 'b' ? n == 1 : (h->kind == 'i' || h->kind == 'u') && n <= 8 && (n & (n - 1)) == 0;
}

/* The dtype of logits or hidden states. */
static bool check_dtype(job *j)
{
    const npy_header *h = header_of(j, j->source);

    j->desc.dtype = float_dtype(h, j->o.bf16);
    if (j->desc.dtype == 0 || (j->o.bf16 && j->desc.dtype != CLXENT_BF16))
        return cli_fail(source_path(j), "dtype %s: %s take %s", npy_dtype_text(h).text, source_name(j),
                        j->o.bf16      ? "u2, i2 or V2 with --bf16"
                        : is_bits16(h) ? "f2, f4 or f8; if these are the bits of bf16, give --bf16"
                                       : "f2, f4 or f8, or u2 with --bf16");
    j->acc_dtype = j->desc.dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
    return true;
}

/* The logits that hidden states, weight and bias make. */
static bool check_linear_inputs(job *j)
{
    const npy_header *h = header_of(j, TENSOR_HIDDEN), *weight = header_of(j, TENSOR_WEIGHT);
    const npy_header *bias = header_of(j, TENSOR_BIAS);
    const char *path = j->o.path[TENSOR_WEIGHT];
    clxent_desc *d = &j->desc;

    if (h->axes == 0) return cli_fail(source_path(j), "shape (): hidden states take an axis of features");
    d->features = h->shape[h->axes - 1];
    if (d->features == 0)
        return cli_fail(source_path(j), "shape %s has no features: the last axis takes at least 1",
                        npy_shape_text(h->shape, h->axes).text);
    if (float_dtype(weight, j->o.bf16) != d->dtype)
        return cli_fail(path, "dtype %s: takes that of --hidden, %s", npy_dtype_text(weight).text,
                        dtype_names[d->dtype]);
    if (weight->axes != 2 || weight->shape[1] != d->features)
        return cli_fail(path, "shape %s: takes (classes, features), with %zu features, as --hidden has",
                        npy_shape_text(weight->shape, weight->axes).text, d->features);
    d->classes = weight->shape[0];
    if (d->classes == 0)
        return cli_fail(path, "shape %s has no classes: takes at least 1",
                        npy_shape_text(weight->shape, weight->axes).text);
    d->has_bias = j->o.path[TENSOR_BIAS] != NULL;
    if (d->has_bias && float_dtype(bias, j->o.bf16) == 0)
        return cli_fail(j->o.path[TENSOR_BIAS], "dtype %s: a bias takes f2, f4, f8 or bf16",
                        npy_dtype_text(bias).text);
    if (d->has_bias && (bias->axes != 1 || bias->shape[0] != d->classes))
        return cli_fail(j->o.path[TENSOR_BIAS], "shape %s: a bias takes (%zu,), the classes of --weight",
                        npy_shape_text(bias->shape, bias->axes).text, d->classes);
    j->logits = *h;
    j->logits.shape[h->axes - 1] = d->classes;
    return true;
}

static bool check_logits(job *j)
{
    if (!check_dtype(j)) return false;
    j->logits = *header_of(j, j->source);
    if (is_linear(j) && !check_linear_inputs(j)) return false;

    const npy_header *h = &j->logits;
    const char *path = source_path(j);
    const int64_t axes = (int64_t)h->axes;
    const int64_t axis = j->o.class_axis < 0 ? j->o.class_axis + axes : j->o.class_axis;

    if (axes == 0) return cli_fail(path, "shape (): logits take a class axis");
    if (axis < 0 || axis >= axes)
        return cli_fail(path, "--class-axis %" PRId64 ": shape %s takes %" PRId64 " to %" PRId64,
                        j->o.class_axis, npy_shape_text(h->shape, h->axes).text, -axes, axes - 1);
    j->desc.classes = h->shape[axis];
    if (j->desc.classes == 0)
        return cli_fail(path, "shape %s has no classes: axis %" PRId64 " takes at least 1",
                        npy_shape_text(h->shape, h->axes).text, axis);

    j->class_axis = (size_t)axis;
    /* npy_measure() saw to it that no product of these axes overflows. */
    j->rows = j->desc.inner = 1;
    for (int64_t k = 0; k < axes; k++) {
        if (k == axis) continue;
        j->row_shape[j->row_axes++] = h->shape[k];
        j->rows *= h->shape[k];
        if (k > axis) j->desc.inner *= h->shape[k];
    }
    j->desc.seq = j->row_axes > 0 ? j->row_shape[j->row_axes - 1] : 1;
    if (j->rows == 0) j->desc.seq = j->desc.inner = 1; /* no rows: any shape of them will do */
    j->desc.batch = j->rows / j->desc.seq;
    return true;
}

static bool same_shape(const npy_header *h, const size_t *shape, size_t axes)
{
    return h->axes == axes && (axes == 0 || memcmp(h->shape, shape, axes * sizeof *shape) == 0);
}

static bool check_shape(const job *j, int tensor, const size_t *shape, size_t axes, const char *what)
{
    const npy_header *h = header_of(j, tensor);
    return same_shape(h, shape, axes) ||
           cli_fail(j->o.path[tensor], "shape %s: %s take %s", npy_shape_text(h->shape, h->axes).text, what,
                    npy_shape_text(shape, axes).text);
}

/* Whether an array has one item for each row of the logits: their shape without that axis, or with 1 in its place. */
static bool fits_axis(const npy_header *h, const npy_header *logits, size_t axis)
{
    const size_t kept = h->axes == logits->axes ? 1 : 0, behind = axis + 1;

    return h->axes + 1 - kept == logits->axes && (kept == 0 || h->shape[axis] == 1) &&
           memcmp(logits->shape, h->shape, axis * sizeof *h->shape) == 0 &&
           memcmp(logits->shape + behind, h->shape + axis + kept,
                  (logits->axes - behind) * sizeof *h->shape) == 0;
}

/* The class axis that targets of this shape belong to; the logits' number of axes where there is none. */
static size_t fitting_axis(const npy_header *logits, const npy_header *targets)
{
    const size_t axes = logits->axes;

    for (size_t i = 0; i < axes; i++) {
        const size_t axis = axes > 1 && i < 2 ? 1 - i : i; /* 1 first: that of N,C,H,W */
        if (fits_axis(targets, logits, axis)) return axis;
    }
    return axes;
}

static bool has_row_shape(const job *j, int tensor)
{
    return fits_axis(header_of(j, tensor), &j->logits, j->class_axis);
}

/* Integers are classes where they have the shape of classes, also where that is the logits' shape too, as of one class; else
 * they are probabilities, as floats are, and 0 or 1. */
static bool check_targets(job *j)
{
    const npy_header *h = header_of(j, TENSOR_TARGETS), *logits = &j->logits;
    const char *path = j->o.path[TENSOR_TARGETS];
    const bool full = same_shape(h, logits->shape, logits->axes);
    const uint32_t dtype = float_dtype(h, j->o.bf16 && (full || h->kind == 'V'));

    if (dtype == 0 && !is_integer(h))
        return cli_fail(
            path, "dtype %s: targets take integers or bool (classes), f2, f4, f8 or bf16 (probabilities)%s",
            npy_dtype_text(h).text, is_bits16(h) ? "; bf16 needs --bf16, and logits of it" : "");
    j->indices = dtype == 0 && has_row_shape(j, TENSOR_TARGETS);
    if (j->indices) {
        static const uint32_t of_unsigned[9] = {
            [1] = CLXENT_TARGET_U8, [2] = CLXENT_TARGET_U16, [4] = CLXENT_TARGET_U32
        };
        const uint32_t type = h->kind == 'u' ? of_unsigned[h->item_size] : 0;
        j->as_stored = type != 0 || (h->kind == 'i' && h->item_size >= 4);
        j->desc.target_type = type != 0 ? type : h->item_size <= 4 ? CLXENT_TARGET_I32 : CLXENT_TARGET_I64;
        return true;
    }
    if (full || dtype != 0) {
        j->as_stored = dtype == CLXENT_F32 || dtype == (is_linear(j) ? j->acc_dtype : j->desc.dtype);
        j->desc.target_type = (j->as_stored ? dtype : j->acc_dtype) == CLXENT_F32
                                  ? CLXENT_TARGET_PROBABILITIES_F32
                                  : CLXENT_TARGET_PROBABILITIES_LOGITS;
        return check_shape(j, TENSOR_TARGETS, logits->shape, logits->axes, "probabilities");
    }
    const size_t axis = fitting_axis(logits, h);
    if (axis == logits->axes || is_linear(j))
        return check_shape(j, TENSOR_TARGETS, j->row_shape, j->row_axes, "targets");
    return cli_fail(path,
                    "shape %s: targets take %s with --class-axis %" PRId64 "; these fit --class-axis %zu",
                    npy_shape_text(h->shape, h->axes).text, npy_shape_text(j->row_shape, j->row_axes).text,
                    j->o.class_axis, axis);
}

/* A number for each class or row, or one for all of them. */
static bool check_numbers(const job *j, int tensor, const char *what)
{
    const npy_header *h = header_of(j, tensor);
    const char *path = j->o.path[tensor];
    const bool of_classes = tensor == TENSOR_CLASS_WEIGHTS;
    const size_t *shape = of_classes ? &j->desc.classes : j->row_shape, axes = of_classes ? 1 : j->row_axes;

    if (path == NULL) return true;
    if (float_dtype(h, false) == 0 && !is_integer(h))
        return cli_fail(path, "dtype %s: %s take f2, f4, f8, bf16, integers or bool", npy_dtype_text(h).text,
                        what);
    if (h->axes == 0 || (h->axes == 1 && h->shape[0] == 1)) return true;
    if (tensor == TENSOR_GRAD_OUTPUT && j->desc.reduction != CLXENT_REDUCTION_NONE)
        return cli_fail(path, "shape %s: %s take one value, () or (1,), with this --reduction",
                        npy_shape_text(h->shape, h->axes).text, what);
    return (of_classes ? same_shape(h, shape, axes) : has_row_shape(j, tensor)) ||
           cli_fail(path, "shape %s: %s take %s, or one value, () or (1,)",
                    npy_shape_text(h->shape, h->axes).text, what, npy_shape_text(shape, axes).text);
}

enum takes { FRACTION, NOT_NEGATIVE, FINITE, NORMAL };

/* A number as acc_dtype takes it. The library checks it too, by the name of its field. */
static bool check_number(const job *j, const char *flag, double value, enum takes takes)
{
    const bool f64 = j->acc_dtype == CLXENT_F64, normal = takes == NORMAL;
    const double largest = f64 ? DBL_MAX : (double)FLT_MAX;
    const double smallest = f64 ? DBL_MIN : (double)FLT_MIN; /* no subnormal: it has no reciprocal */

    return (fabs(value) <= largest && (!normal || value == 0 || value >= smallest)) ||
           cli_fail(source_path(j), "--%s %g: takes %sa number from %g to %g with %s %s", flag, value,
                    normal ? "0 (off) or " : "",
                    normal            ? smallest
                    : takes == FINITE ? -largest
                                      : 0,
                    largest, dtype_names[j->desc.dtype], source_name(j));
}

/* The options that depend on the logits' dtype and shape. */
static bool check_options(job *j)
{
    const clxent_desc *d = &j->desc;
    const npy_header *h = header_of(j, j->source);
    const char *path = source_path(j), *dtype = dtype_names[d->dtype], *what = source_name(j);
    const bool f64 = d->dtype == CLXENT_F64;

    const uint32_t gradient = j->o.desc.gradient_dtype;
    if (f64 ? gradient == CLXENT_F16 || gradient == CLXENT_BF16 : gradient == CLXENT_F64)
        return cli_fail(path, "--grad-dtype %s: takes %s with %s %s", dtype_names[gradient],
                        f64 ? "f64 or f32" : "f32, f16 or bf16", dtype, what);
#undef EVAL
#define EVAL(flag, argument, help) flag
#define NUMBER(name, initial, takes, acts, constant, parameter, draws, eval) \
    if (!check_number(j, eval, d->name, takes)) return false;
#include "../../host/options.def"
    put_element(&j->denominator, j->acc_dtype, 0, j->o.denominator);
    const double stored = get_element(&j->denominator, j->acc_dtype, 0);
    if (isinf(stored) || (stored == 0) != (j->o.denominator == 0))
        return cli_fail(path, "--denominator %g: takes an f32 number with %s %s", j->o.denominator, dtype,
                        what);
    if (has_targets(j) && !j->indices && d->use_ignore_index && d->ignore_index >= 0)
        return cli_fail(j->o.path[TENSOR_TARGETS],
                        "--ignore-index %" PRId64 ": takes a negative index or 'none' where targets are "
                        "probabilities, which have no index to ignore",
                        d->ignore_index);
    return j->rows == 0 || d->shift <= d->seq ||
           cli_fail(path, "--shift %zu: takes 0 to %zu with %s of shape %s", d->shift, d->seq, what,
                    npy_shape_text(h->shape, h->axes).text);
}

/* Each output can be written, to a file of its own: inputs are mapped, and one that an output replaced would be lost.
 * The files are created after the kernels are compiled: what crashes in a driver's compiler leaves none. */
static bool check_outputs(const job *j)
{
    const char *const *path = j->o.file;
    char *resolved[PATHS] = { NULL };
    npy_fault fault;
    bool good = true;

    for (int t = FIRST_OUTPUT; good && t < TENSORS; t++) {
        int other = 0;
        if (path[t] == NULL) continue;
        while (other < PATHS &&
               !(is_taken(other, t) && path[other] != NULL && npy_one_file(path[t], path[other])))
            other++;
        if (other == PATHS && !npy_can_write(path[t], &resolved[t], &fault)) {
            good = cli_fail(path[t], "%s", fault.text);
            break;
        }
        for (int k = FIRST_OUTPUT; k < t && other == PATHS; k++)
            if (resolved[k] != NULL && strcmp(resolved[k], resolved[t]) == 0) other = k;
        good =
            other == PATHS || cli_fail(path[t], "--%s and --%s name the same file: each output takes its own",
                                       eval_files[other].flag, eval_files[t].flag);
    }
    for (int t = 0; t < TENSORS; t++) free(resolved[t]);
    return good;
}

/* The header of a file that was given. */
static bool open_input(job *j, int tensor)
{
    npy_fault fault;

    return j->o.path[tensor] == NULL ||
           tensor_open(&j->in[tensor], j->o.file[tensor], j->o.tensor[tensor], &fault) ||
           cli_fail(j->o.path[tensor], "%s", fault.text);
}

bool eval_open_inputs(job *j)
{
    char text[512];

    j->source = j->o.path[TENSOR_HIDDEN] != NULL ? TENSOR_HIDDEN : TENSOR_LOGITS;
    if (is_linear(j)) j->desc.gradient_dtype = 0; /* which has three of its own */
    for (int t = 0; t < FIRST_OUTPUT; t++)
        if ((MAKES_LOGITS >> t & 1u) != 0 && !open_input(j, t)) return false;
    if (!check_logits(j)) return false;
    for (int t = 0; t < FIRST_OUTPUT; t++) {
        if ((MAKES_LOGITS >> t & 1u) == 0 && !open_input(j, t)) return false;
        if (t == TENSOR_TARGETS && has_targets(j) && !check_targets(j)) return false;
    }
    j->desc.has_class_weights = j->o.path[TENSOR_CLASS_WEIGHTS] != NULL;
    j->desc.has_row_weights = j->o.path[TENSOR_ROW_WEIGHTS] != NULL;
    j->desc.has_grad_entropy = j->o.path[TENSOR_GRAD_ENTROPY] != NULL;
    j->desc.has_grad_lse = j->o.path[TENSOR_GRAD_LSE] != NULL;
    j->desc.outputs |= j->o.desc.outputs & GRADIENTS;
    return check_numbers(j, TENSOR_CLASS_WEIGHTS, "class weights") &&
           check_numbers(j, TENSOR_ROW_WEIGHTS, "row weights") &&
           check_numbers(j, TENSOR_GRAD_ENTROPY, "values of --grad-entropy") &&
           check_numbers(j, TENSOR_GRAD_LSE, "values of --grad-lse") &&
           check_numbers(j, TENSOR_GRAD_OUTPUT, "values of --grad-output") && check_options(j) &&
           check_outputs(j) &&
           (clxent_desc_check(&j->desc, text, sizeof text) == CLXENT_OK ||
            cli_fail(source_path(j), "%s", text));
}

/* ---- Values --------------------------------------------------------------------------------- */

static bool load(job *j, int tensor)
{
    npy_array *a = &j->in[tensor];
    npy_fault fault;

    if (j->o.path[tensor] == NULL) return true;
    if (!npy_native(a, &fault)) return cli_fail(j->o.path[tensor], "%s", fault.text);
    *array_of(&j->args, tensor) = (clxent_output){ (void *)a->data, a->bytes };
    return true;
}

/* Item i of a native array of integers; negative ones modulo 2^64. */
static uint64_t integer_at(const npy_header *h, const void *data, size_t i)
{
    const bool is_signed = h->kind == 'i';

    switch (h->item_size) {
    case 1:
        if (h->kind == 'b') return ((const uint8_t *)data)[i] != 0;
        return is_signed ? (uint64_t)((const int8_t *)data)[i] : ((const uint8_t *)data)[i];
    case 2: return is_signed ? (uint64_t)((const int16_t *)data)[i] : ((const uint16_t *)data)[i];
    case 4: return is_signed ? (uint64_t)((const int32_t *)data)[i] : ((const uint32_t *)data)[i];
    default: return ((const uint64_t *)data)[i];
    }
}

/* Item i of any array of numbers; dtype: its float_dtype(). */
static double number_at(const npy_header *h, uint32_t dtype, const void *data, size_t i)
{
    if (dtype != 0) return get_element(data, dtype, i);
    const uint64_t value = integer_at(h, data, i);
    return h->kind == 'i' ? (double)(int64_t)value : (double)value;
}

/* Where item at of an array is. */
static npy_text place_of(const size_t *shape, size_t axes, size_t at)
{
    size_t index[NPY_MAX_AXES];

    for (size_t axis = axes; axis-- > 0; at /= shape[axis]) index[axis] = at % shape[axis];
    return npy_shape_text(index, axes);
}

/* A weight that is no number would make every result NaN without a word, and one that becomes 0 in f32 would mask
 * rows or classes that were only meant to count little. (Row weights may be anything: see clxent.h.) Integers in the
 * logits' shape that are not one-hot rows are classes of some other layout, or 255 for what does not count. */
static bool check_item(const job *j, int tensor, size_t at, double value)
{
    const npy_header *h = header_of(j, tensor);
    const bool may_vanish = tensor != TENSOR_CLASS_WEIGHTS && tensor != TENSOR_ROW_WEIGHTS;
    const bool one_hot = tensor == TENSOR_TARGETS && float_dtype(h, j->o.bf16) == 0;
    const char *fault = one_hot && value != 0 && value != 1 ? "an integer in the logits' shape takes 0 or 1"
                        : tensor == TENSOR_CLASS_WEIGHTS && !isfinite(value) ? "takes a finite number"
                        : j->acc_dtype == CLXENT_F64 || !isfinite(value)     ? NULL
                        : fabs(value) > (double)FLT_MAX                      ? "too large for f32"
                        : may_vanish || value == 0                           ? NULL
                        : (float)value == 0 ? "too small for f32, where it would be 0"
                                            : NULL;
    return fault == NULL || cli_fail(j->o.path[tensor], "item %s is %.10g: %s",
                                     place_of(h->shape, h->axes, at).text, value, fault);
}

/* Room for the array in another dtype; what takes its place in args. NULL: has said why. */
static void *make_converted(job *j, int tensor, size_t bytes)
{
    npy_fault fault;
    void *data = j->converted[tensor] = npy_scratch(bytes, &fault);

    if (data == NULL) cli_fail(j->o.path[tensor], "%s", fault.text);
    else *array_of(&j->args, tensor) = (clxent_output){ data, bytes };
    return data;
}

/* Numbers in acc_dtype: count of them, one value repeated where the file has one. */
static bool load_numbers(job *j, int tensor, size_t count)
{
    const npy_header *h = header_of(j, tensor);
    const uint32_t dtype = float_dtype(h, j->o.bf16 && tensor == TENSOR_TARGETS);

    if (j->o.path[tensor] == NULL) return true;
    if (!load(j, tensor)) return false;
    const void *from = array_of(&j->args, tensor)->data;
    for (size_t i = 0; i < h->count; i++)
        if (!check_item(j, tensor, i, number_at(h, dtype, from, i))) return false;
    if (dtype == j->acc_dtype && h->count == count) return true;

    void *to = make_converted(j, tensor, count * acc_bytes(j));
    for (size_t i = 0; to != NULL && i < count; i++)
        put_element(to, j->acc_dtype, i, number_at(h, dtype, from, h->count == 1 ? 0 : i));
    return to != NULL;
}

/* In the dtype of hidden states. A number is rounded, but to no infinity, which would mask a class or make every row NaN. */
static bool load_bias(job *j)
{
    const npy_header *h = header_of(j, TENSOR_BIAS);
    const uint32_t dtype = float_dtype(h, j->o.bf16);

    if (!load(j, TENSOR_BIAS)) return false;
    if (j->o.path[TENSOR_BIAS] == NULL || dtype == j->desc.dtype) return true;
    const void *from = j->args.bias.data;
    void *to = make_converted(j, TENSOR_BIAS, h->count * dtype_size(j->desc.dtype));
    for (size_t i = 0; to != NULL && i < h->count; i++) {
        const double value = get_element(from, dtype, i);
        put_element(to, j->desc.dtype, i, value);
        if (isfinite(value) && !isfinite(get_element(to, j->desc.dtype, i)))
            return cli_fail(j->o.path[TENSOR_BIAS], "item %s is %.10g: too large for %s",
                            place_of(h->shape, h->axes, i).text, value, dtype_names[j->desc.dtype]);
    }
    return to != NULL;
}

/* ---- Targets -------------------------------------------------------------------------------- */

static int64_t target_at(const job *j, size_t row)
{
    return get_target(j->args.targets.data, j->desc.target_type, row);
}

/* Where a row's target is. */
static npy_text place_of_row(const job *j, size_t row) { return place_of(j->row_shape, j->row_axes, row); }

static bool load_targets(job *j)
{
    const npy_header *h = header_of(j, TENSOR_TARGETS);
    const uint32_t type = j->desc.target_type;

    if (!has_targets(j)) return true;
    if (!j->as_stored && !j->indices) return load_numbers(j, TENSOR_TARGETS, h->count);
    if (!load(j, TENSOR_TARGETS)) return false;
    if (j->as_stored) return true;

    const void *from = j->args.targets.data;
    void *to = make_converted(j, TENSOR_TARGETS, j->rows * (type == CLXENT_TARGET_I32 ? 4 : 8));
    for (size_t row = 0; to != NULL && row < j->rows; row++) {
        const uint64_t value = integer_at(h, from, row);
        if (h->kind == 'u' && value > INT64_MAX)
            return cli_fail(j->o.path[TENSOR_TARGETS], "target %" PRIu64 " at %s: takes at most %" PRId64,
                            value, place_of_row(j, row).text, INT64_MAX);
        put_target(to, type, row, (int64_t)value);
    }
    return to != NULL;
}

row_status eval_row_status(const job *j, size_t row)
{
    const clxent_desc *d = &j->desc;
    const void *weights = j->args.row_weights.data;

    if (row % d->seq + d->shift >= d->seq) return ROW_IGNORED;
    if (weights != NULL && get_element(weights, j->acc_dtype, row) == 0) return ROW_IGNORED;
    if (!j->indices) return ROW_COUNTS;
    const int64_t target = target_at(j, row + d->shift);
    if (d->use_ignore_index && target == d->ignore_index) return ROW_IGNORED;
    return target < 0 || (uint64_t)target >= d->classes ? ROW_BAD : ROW_COUNTS;
}

/* Counts the rows; a bad target is an error here unless a policy for it was given. */
static bool count_rows(job *j)
{
    size_t first = 0;
    char ignored[48] = "";

    for (size_t row = 0; row < j->rows && has_targets(j); row++) {
        const row_status status = eval_row_status(j, row);
        if (status == ROW_BAD && j->bad++ == 0) first = row;
        if (status == ROW_IGNORED) j->ignored++;
    }
    if (j->bad == 0 || j->desc.bad_target != CLXENT_BAD_TARGET_REPORT) return true;

    const size_t at = first + j->desc.shift;
    if (j->desc.use_ignore_index)
        snprintf(ignored, sizeof ignored, ", or %" PRId64 " (ignored)", j->desc.ignore_index);
    return cli_fail(j->o.path[TENSOR_TARGETS],
                    "row %zu: target %" PRId64 " at %s is out of range: takes 0 to %zu%s (%" PRIu64
                    " bad row%s)",
                    first, target_at(j, at), place_of_row(j, at).text, j->desc.classes - 1, ignored, j->bad,
                    j->bad == 1 ? "" : "s");
}

bool eval_load_inputs(job *j)
{
    return load_targets(j) && load_numbers(j, TENSOR_ROW_WEIGHTS, j->rows) && count_rows(j) &&
           load(j, TENSOR_LOGITS) && load(j, TENSOR_HIDDEN) && load(j, TENSOR_WEIGHT) && load_bias(j) &&
           load_numbers(j, TENSOR_CLASS_WEIGHTS, j->desc.classes) &&
           load_numbers(j, TENSOR_GRAD_ENTROPY, j->rows) && load_numbers(j, TENSOR_GRAD_LSE, j->rows) &&
           load_numbers(j, TENSOR_GRAD_OUTPUT, j->desc.reduction == CLXENT_REDUCTION_NONE ? j->rows : 1);
}
