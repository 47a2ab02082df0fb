/* SPDX-License-Identifier: MIT
 *
 * eval.c - the loss of logits in .npy files: every option and output of the library, from files to files.
 *
 * Headers are checked first, then values, then the device runs: one clxent_run_host() over mapped inputs
 * that writes into mapped outputs, which get their names only when everything has succeeded. Perplexity
 * is of the plain negative log-likelihood; where options make the row losses something else (weights,
 * smoothing, z-loss) a second call computes it, because lse - z of a row would lose the digits of a
 * confident one.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"
#include "npy.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Options -------------------------------------------------------------------------------- */

/* Files that eval can write: what they hold, and where run_host() finds their memory. */
typedef enum item { ITEM_REAL, ITEM_LOGITS, ITEM_GRADIENT, ITEM_I8 } item;
static const struct result {
    const char *flag, *help;
    uint32_t bit;
    bool has_classes; /* the logits' shape, else that without the class axis */
    item type;
    size_t field;
} results[] = {
#define FIELD(name) offsetof(clxent_host_args, name)
    { "losses-out", "Row losses, with weights and z-loss, before reduction", CLXENT_OUTPUT_LOSSES, false,
      ITEM_REAL, FIELD(losses) },
    { "lse-out", "log sum exp of every row", CLXENT_OUTPUT_LSE, false, ITEM_REAL, FIELD(lse) },
    { "softmax-out", "Softmax, in the logits' dtype", CLXENT_OUTPUT_SOFTMAX, true, ITEM_LOGITS,
      FIELD(softmax) },
    { "log-softmax-out", "Log-softmax, in the logits' dtype", CLXENT_OUTPUT_LOG_SOFTMAX, true, ITEM_LOGITS,
      FIELD(log_softmax) },
    { "grad-out", "Gradient of the reduced loss with respect to the logits", CLXENT_OUTPUT_GRADIENT, true,
      ITEM_GRADIENT, FIELD(gradient) },
    { "argmax-out", "Class of the first maximum (of the first NaN) of every row, before the softcap, i8",
      CLXENT_OUTPUT_ARGMAX, false, ITEM_I8, FIELD(argmax) },
    { "entropy-out", "Entropy of the softmax of every row", CLXENT_OUTPUT_ENTROPY, false, ITEM_REAL,
      FIELD(entropy) },
#undef FIELD
};
enum { RESULTS = sizeof results / sizeof *results };

typedef struct options {
    cli_common common;
    const char *logits, *targets, *class_weights, *row_weights, *grad_output;
    bool bf16;
    int64_t class_axis;
    bool has_denominator;
    double denominator;
    clxent_desc desc; /* the options that are its fields */
    const char *out[RESULTS];
} options;

enum {
    KEY_LOGITS = 0x100,
    KEY_TARGETS,
    KEY_BF16,
    KEY_CLASS_AXIS,
    KEY_IGNORE_INDEX,
    KEY_CLASS_WEIGHTS,
    KEY_ROW_WEIGHTS,
    KEY_LABEL_SMOOTHING,
    KEY_Z_LOSS,
    KEY_LOGIT_SCALE,
    KEY_SOFTCAP,
    KEY_REDUCTION,
    KEY_DENOMINATOR,
    KEY_SHIFT,
    KEY_ON_BAD_TARGET,
    KEY_ALL_IGNORED,
    KEY_GRAD_OUTPUT,
    KEY_GRAD_DTYPE,
    KEY_OUT /* + index in results */
};

/* In the order of the library's constants; dtypes begin at 1. */
static const char *const reductions[] = { "mean", "sum", "none", NULL };
static const char *const bad_targets[] = { "error", "nan", "ignore", NULL };
static const char *const all_ignored[] = { "nan", "zero", NULL };
static const char *const dtypes[] = { "f32", "f16", "bf16", "f64", NULL };
static const char *const npy_dtypes[] = { "f4", "f2", "u2", "f8" };

static const struct argp_option fixed_options[] = {
    { NULL, 0, NULL, 0, "Inputs (.npy, versions 1 to 3, C or Fortran order, either byte order):", 1 },
    { "logits", KEY_LOGITS, "X.npy", 0, "Logits: f2, f4, f8, or u2 with --bf16 (required)", 0 },
    { "targets", KEY_TARGETS, "Y.npy", 0,
      "Classes (u1, i4, i8) in the logits' shape without the class axis, or probabilities (f4 or the logits' "
      "dtype) in "
      "the logits' shape (required)",
      0 },
    { "bf16", KEY_BF16, NULL, 0,
      "The logits' 2-byte items are bf16 bits; so are 2-byte outputs (default: off)", 0 },
    { "class-axis", KEY_CLASS_AXIS, "N", 0,
      "Axis of the logits that counts classes; negative: from the end (default: -1)", 0 },
    { "class-weights", KEY_CLASS_WEIGHTS, "F.npy", 0, "Weight of each class, [classes] f4 or f8 (default: 1)",
      0 },
    { "row-weights", KEY_ROW_WEIGHTS, "F.npy", 0,
      "Weight of each row, f4 or f8 in the shape of index targets; 0 masks the row (default: 1)", 0 },
    { NULL, 0, NULL, 0, "The loss:", 2 },
    { "ignore-index", KEY_IGNORE_INDEX, "I|none", 0, "Rows with this target do not count (default: -100)",
      0 },
    { "label-smoothing", KEY_LABEL_SMOOTHING, "E", 0,
      "Share of the target spread over all classes, 0 to 1 (default: 0)", 0 },
    { "z-loss", KEY_Z_LOSS, "Z", 0, "Adds Z * lse^2 to the loss of each row (default: 0)", 0 },
    { "logit-scale", KEY_LOGIT_SCALE, "S", 0, "Multiplies the logits (default: 1)", 0 },
    { "softcap", KEY_SOFTCAP, "C", 0, "Scaled logits become C * tanh(logits / C); 0 is off (default: 0)", 0 },
    { "reduction", KEY_REDUCTION, "mean|sum|none", 0, "What the row losses are reduced to (default: mean)",
      0 },
    { "denominator", KEY_DENOMINATOR, "D", 0,
      "Divides the reduced loss and the gradient (default: with mean the weights of the rows that count, "
      "else 1)",
      0 },
    { "shift", KEY_SHIFT, "K", 0,
      "Judges timestep t against the target of t + K, along the last axis that is not the class axis "
      "(default: 0)",
      0 },
    { "on-bad-target", KEY_ON_BAD_TARGET, "error|nan|ignore", 0,
      "A target that is no class: fail, make its row NaN, or ignore the row (default: error)", 0 },
    { "all-ignored", KEY_ALL_IGNORED, "nan|zero", 0, "The mean over no rows (default: nan)", 0 },
    { "grad-output", KEY_GRAD_OUTPUT, "F.npy", 0,
      "Gradient of the loss, f4 or f8: one value or, with --reduction none, one for each row; multiplies "
      "--grad-out "
      "(default: 1)",
      0 },
    { "grad-dtype", KEY_GRAD_DTYPE, "f32|f16|bf16|f64", 0, "Dtype of --grad-out (default: the logits')", 0 },
    { NULL, 0, NULL, 0, "Outputs (.npy in C order; f4, f8 for f8 logits, where not said otherwise):", 3 },
};
enum { FIXED_OPTIONS = sizeof fixed_options / sizeof *fixed_options };

/* The files that eval reads, with their flags. */
enum { INPUTS = 6 };
typedef struct named_path {
    const char *flag, *path; /* path NULL: not given */
} named_path;

static void list_inputs(const options *o, named_path list[INPUTS])
{
    const named_path inputs[INPUTS] = { { "logits", o->logits },
                                        { "targets", o->targets },
                                        { "class-weights", o->class_weights },
                                        { "row-weights", o->row_weights },
                                        { "grad-output", o->grad_output },
                                        { "tuning", cli_tuning_file } };
    memcpy(list, inputs, sizeof inputs);
}

/* What can be said of the flags without their files. */
static void check_flags(const options *o, struct argp_state *state)
{
    named_path inputs[INPUTS];
    uint32_t outputs = 0;

    if (o->logits == NULL && o->targets == NULL) argp_error(state, "--logits and --targets are required");
    else if (o->logits == NULL) argp_error(state, "--logits is required");
    else if (o->targets == NULL) argp_error(state, "--targets is required");
    for (size_t i = 0; i < RESULTS; i++) {
        if (o->out[i] != NULL) outputs |= results[i].bit;
        for (size_t j = 0; j < i; j++) {
            if (o->out[i] != NULL && o->out[j] != NULL && strcmp(o->out[i], o->out[j]) == 0)
                argp_error(state, "--%s and --%s name the same file: each output takes its own",
                           results[j].flag, results[i].flag);
        }
    }
    list_inputs(o, inputs);
    for (size_t i = 0; i < RESULTS; i++) {
        for (size_t j = 0; j < INPUTS; j++) {
            if (o->out[i] != NULL && inputs[j].path != NULL && strcmp(o->out[i], inputs[j].path) == 0)
                argp_error(state, "--%s and --%s name the same file: each output takes its own",
                           inputs[j].flag, results[i].flag);
        }
    }
    if ((outputs & CLXENT_OUTPUT_GRADIENT) != 0) return;
    if (o->grad_output != NULL)
        argp_error(state, "--grad-output without --grad-out, the only result that it changes");
    if (o->desc.gradient_dtype != 0)
        argp_error(state, "--grad-dtype without --grad-out, the file whose dtype it is");
}

static error_t parse(int key, char *text, struct argp_state *state)
{
    options *o = state->input;
    clxent_desc *desc = &o->desc;

    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; return 0;
    case ARGP_KEY_END: check_flags(o, state); return 0;
    case KEY_LOGITS: o->logits = cli_path(state, "logits", text); return 0;
    case KEY_TARGETS: o->targets = cli_path(state, "targets", text); return 0;
    case KEY_CLASS_WEIGHTS: o->class_weights = cli_path(state, "class-weights", text); return 0;
    case KEY_ROW_WEIGHTS: o->row_weights = cli_path(state, "row-weights", text); return 0;
    case KEY_GRAD_OUTPUT: o->grad_output = cli_path(state, "grad-output", text); return 0;
    case KEY_BF16: o->bf16 = true; return 0;
    case KEY_CLASS_AXIS: o->class_axis = cli_integer(state, "class-axis", text, "an axis"); return 0;
    case KEY_IGNORE_INDEX:
        desc->use_ignore_index = strcmp(text, "none") != 0;
        if (desc->use_ignore_index)
            desc->ignore_index = cli_integer(state, "ignore-index", text, "a 64-bit integer or 'none'");
        return 0;
    case KEY_LABEL_SMOOTHING:
        desc->label_smoothing = cli_number(state, "label-smoothing", text, 0, 1);
        return 0;
    case KEY_Z_LOSS: desc->z_loss = cli_number(state, "z-loss", text, 0, DBL_MAX); return 0;
    case KEY_LOGIT_SCALE:
        desc->logit_scale = cli_number(state, "logit-scale", text, -DBL_MAX, DBL_MAX);
        return 0;
    case KEY_SOFTCAP: desc->softcap = cli_number(state, "softcap", text, 0, DBL_MAX); return 0;
    case KEY_REDUCTION: desc->reduction = cli_choice(state, "reduction", text, reductions); return 0;
    case KEY_DENOMINATOR:
        o->denominator = cli_number(state, "denominator", text, -DBL_MAX, DBL_MAX);
        o->has_denominator = true;
        return 0;
    case KEY_SHIFT: desc->shift = cli_size(state, "shift", text, 0); return 0;
    case KEY_ON_BAD_TARGET:
        desc->bad_target = cli_choice(state, "on-bad-target", text, bad_targets);
        return 0;
    case KEY_ALL_IGNORED: desc->all_ignored = cli_choice(state, "all-ignored", text, all_ignored); return 0;
    case KEY_GRAD_DTYPE:
        desc->gradient_dtype = CLXENT_F32 + cli_choice(state, "grad-dtype", text, dtypes);
        return 0;
    default: break;
    }
    if (key < KEY_OUT || key >= KEY_OUT + RESULTS) return ARGP_ERR_UNKNOWN;
    o->out[key - KEY_OUT] = cli_path(state, results[key - KEY_OUT].flag, text);
    return 0;
}

static void parse_options(options *o, int argc, char **argv)
{
    static const char *const about =
        "Computes softmax cross-entropy of logits against targets, both .npy files, on an OpenCL device.\v"
        "Prints rows, ignored rows (ignored targets, masked or shifted-off rows), rows with a bad target, "
        "classes, the "
        "loss, the perplexity (exp of the mean unweighted negative log-likelihood of the rows that count), "
        "the accuracy "
        "over the same rows, the time of the run, the time of compiling its kernels, and the bytes of inputs "
        "and "
        "outputs by the time of the run. Compiling is what precedes the run: kernels are built, then "
        "launched once "
        "on a few rows, as some drivers compile only at the first launch: one row, one slab where the class "
        "axis is "
        "not the last, whole sequences with --shift, and some 4100 rows where the run has more and they have "
        "at most "
        "8388608 logits. Where one row, slab or sequence has more logits than that it is "
        "left out, and what the driver compiles then counts as the run. Accuracy and --argmax-out look for "
        "the largest of --logit-scale times the "
        "logits, before --softcap, which would make equal what it saturates. A file that cannot be used, or "
        "a target that is no class, is exit status 1 "
        "and leaves "
        "no output; wrong flags are 2.";
    struct argp_option list[FIXED_OPTIONS + RESULTS + 1] = { { 0 } };
    const struct argp argp = { list, parse, NULL, about, cli_common_options, NULL, NULL };

    memcpy(list, fixed_options, sizeof fixed_options);
    for (int i = 0; i < RESULTS; i++) {
        list[FIXED_OPTIONS + i] =
            (struct argp_option){ results[i].flag, KEY_OUT + i, "F.npy", 0, results[i].help, 0 };
    }
    memset(o, 0, sizeof *o);
    clxent_desc_init(&o->desc);
    o->class_axis = -1;
    cli_parse(&argp, argc, argv, o);
}

/* ---- Inputs --------------------------------------------------------------------------------- */

typedef struct input {
    const char *path; /* NULL: not given */
    npy_array array;
    void *converted; /* another dtype's copy; NULL: none */
    clxent_input use;
} input;

typedef struct job {
    options o;
    clxent_desc desc;
    input logits, targets, class_weights, row_weights, grad_output;
    size_t rows, row_axes, row_shape[NPY_MAX_AXES]; /* the logits' shape without the class axis */
    bool indices, f64;                              /* targets are classes; real is f8 */
    uint64_t ignored, bad;                          /* rows; the others count */
    float denominator_f32;
    clxent_host_args args;
    uint64_t correct;
    double loss_f64;
    float loss_f32;
    void *losses; /* row losses that no file takes; NULL: a file does */
    npy_output files[RESULTS];
    size_t file_result[RESULTS], num_files; /* files[i] is results[file_result[i]] */
    double seconds, compile_seconds, bytes_moved;
} job;

static size_t real_bytes(const job *j) { return j->f64 ? sizeof(double) : sizeof(float); }

static bool open_input(input *in, const char *path)
{
    npy_fault fault;
    if (path == NULL) return true;
    in->path = path;
    if (npy_open(&in->array, path, &fault)) return true;
    cli_fail(path, "%s", fault.text);
    return false;
}

static bool is(const npy_header *h, char kind, size_t size)
{
    return h->kind == kind && h->item_size == size;
}

/* What can hold the bits of a bf16: u2, i2, and the V2 that NumPy writes for dtypes of other libraries. */
static bool is_bits16(const npy_header *h)
{
    return h->item_size == 2 && (h->kind == 'u' || h->kind == 'i' || h->kind == 'V');
}

static bool check_logits(job *j)
{
    const npy_header *h = &j->logits.array.header;
    const int64_t axes = (int64_t)h->axes;
    const int64_t axis = j->o.class_axis < 0 ? j->o.class_axis + axes : j->o.class_axis;

    if (j->o.bf16 && is_bits16(h)) {
        j->desc.dtype = CLXENT_BF16;
    } else if (!j->o.bf16 && h->kind == 'f' && h->item_size <= 8) {
        j->desc.dtype = h->item_size == 2 ? CLXENT_F16 : h->item_size == 4 ? CLXENT_F32 : CLXENT_F64;
    } else {
        const char *takes = j->o.bf16      ? "u2, i2 or V2 with --bf16"
                            : is_bits16(h) ? "f2, f4 or f8; if these are the bits of bf16, give --bf16"
                                           : "f2, f4 or f8, or u2 with --bf16";
        cli_fail(j->logits.path, "dtype %s: logits take %s", npy_dtype_text(h).text, takes);
        return false;
    }
    if (axis < 0 || axis >= axes) {
        if (axes == 0) cli_fail(j->logits.path, "shape (): logits take a class axis");
        else
            cli_fail(j->logits.path, "--class-axis %" PRId64 ": shape %s takes %" PRId64 " to %" PRId64,
                     j->o.class_axis, npy_shape_text(h->shape, h->axes).text, -axes, axes - 1);
        return false;
    }
    j->desc.classes = h->shape[axis];
    if (j->desc.classes == 0) {
        cli_fail(j->logits.path, "shape %s has no classes: axis %" PRId64 " takes at least 1",
                 npy_shape_text(h->shape, h->axes).text, axis);
        return false;
    }

    /* npy_parse() saw to it that no product of these axes overflows. */
    j->f64 = j->desc.dtype == CLXENT_F64;
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

static bool check_shape(const input *in, const size_t *shape, size_t axes, const char *what)
{
    const npy_header *h = &in->array.header;
    if (same_shape(h, shape, axes)) return true;
    cli_fail(in->path, "shape %s: %s take %s", npy_shape_text(h->shape, h->axes).text, what,
             npy_shape_text(shape, axes).text);
    return false;
}

/* The class axis that targets of this shape belong to; the logits' number of axes where there is none. */
static size_t fitting_axis(const npy_header *logits, const npy_header *targets)
{
    const size_t axes = logits->axes;

    if (targets->axes + 1 != axes) return axes;
    for (size_t i = 0; i < axes; i++) {
        const size_t axis = axes > 1 && i < 2 ? 1 - i : i; /* 1 first: that of N,C,H,W */
        const size_t behind = (axes - axis - 1) * sizeof *logits->shape;
        if (memcmp(logits->shape, targets->shape, axis * sizeof *logits->shape) == 0 &&
            memcmp(logits->shape + axis + 1, targets->shape + axis, behind) == 0)
            return axis;
    }
    return axes;
}

static bool check_targets(job *j)
{
    const npy_header *h = &j->targets.array.header, *logits = &j->logits.array.header;
    const bool as_logits = j->o.bf16 ? is_bits16(h) : is(h, 'f', logits->item_size);

    j->indices = true;
    if (is(h, 'u', 1)) {
        j->desc.target_type = CLXENT_TARGET_U8;
    } else if (is(h, 'i', 4)) {
        j->desc.target_type = CLXENT_TARGET_I32;
    } else if (is(h, 'i', 8)) {
        j->desc.target_type = CLXENT_TARGET_I64;
    } else if (is(h, 'f', 4) || as_logits) {
        j->desc.target_type =
            is(h, 'f', 4) ? CLXENT_TARGET_PROBABILITIES_F32 : CLXENT_TARGET_PROBABILITIES_LOGITS;
        j->indices = false;
        return check_shape(&j->targets, logits->shape, logits->axes, "probabilities");
    } else {
        cli_fail(j->targets.path,
                 "dtype %s: targets take u1, i4 or i8 (classes), f4 or the logits' dtype (probabilities)%s",
                 npy_dtype_text(h).text,
                 h->kind == 'V' && is_bits16(h) ? "; bf16 needs --bf16, and logits of it" : "");
        return false;
    }
    const size_t axis = fitting_axis(logits, h);
    if (same_shape(h, j->row_shape, j->row_axes) || axis == logits->axes)
        return check_shape(&j->targets, j->row_shape, j->row_axes, "targets");
    cli_fail(j->targets.path,
             "shape %s: targets take %s with --class-axis %" PRId64 "; these fit --class-axis %zu",
             npy_shape_text(h->shape, h->axes).text, npy_shape_text(j->row_shape, j->row_axes).text,
             j->o.class_axis, axis);
    return false;
}

static bool check_real(const input *in, const char *what)
{
    const npy_header *h = &in->array.header;
    if (is(h, 'f', 4) || is(h, 'f', 8)) return true;
    cli_fail(in->path, "dtype %s: %s take f4 or f8", npy_dtype_text(h).text, what);
    return false;
}

static bool check_weights(job *j)
{
    const npy_header *g = &j->grad_output.array.header;

    if (j->class_weights.path != NULL) {
        if (!check_real(&j->class_weights, "class weights")) return false;
        if (!check_shape(&j->class_weights, &j->desc.classes, 1, "class weights")) return false;
        j->desc.has_class_weights = 1;
    }
    if (j->row_weights.path != NULL) {
        if (!check_real(&j->row_weights, "row weights")) return false;
        if (!check_shape(&j->row_weights, j->row_shape, j->row_axes, "row weights")) return false;
        j->desc.has_row_weights = 1;
    }
    if (j->grad_output.path != NULL) {
        const bool each = j->desc.reduction == CLXENT_REDUCTION_NONE;
        if (!check_real(&j->grad_output, "values of --grad-output")) return false;
        if (g->count != 1 && !(each && same_shape(g, j->row_shape, j->row_axes))) {
            cli_fail(j->grad_output.path, "shape %s: --grad-output takes one value%s%s",
                     npy_shape_text(g->shape, g->axes).text, each ? " or " : " with this --reduction",
                     each ? npy_shape_text(j->row_shape, j->row_axes).text : "");
            return false;
        }
    }
    return true;
}

/* The options that depend on the logits' dtype and shape. The library checks them too, by the names of its fields. */
static bool check_options(job *j)
{
    const clxent_desc *d = &j->desc;
    const npy_header *h = &j->logits.array.header;
    const char *path = j->logits.path, *dtype = dtypes[d->dtype - CLXENT_F32];
    const double largest = j->f64 ? DBL_MAX : (double)FLT_MAX;
    const double smallest = j->f64 ? DBL_MIN : (double)FLT_MIN; /* no subnormal: it has no reciprocal */
    const double divisor = j->o.denominator;

    j->denominator_f32 = (float)divisor;
    if (j->f64 ? d->gradient_dtype == CLXENT_F16 || d->gradient_dtype == CLXENT_BF16
               : d->gradient_dtype == CLXENT_F64)
        cli_fail(path, "--grad-dtype %s: takes %s with %s logits", dtypes[d->gradient_dtype - CLXENT_F32],
                 j->f64 ? "f64 or f32" : "f32, f16 or bf16", dtype);
    else if (d->z_loss > largest)
        cli_fail(path, "--z-loss %g: takes a number from 0 to %g with %s logits", d->z_loss, largest, dtype);
    else if (fabs(d->logit_scale) > largest)
        cli_fail(path, "--logit-scale %g: takes a number from -%g to %g with %s logits", d->logit_scale,
                 largest, largest, dtype);
    else if (d->softcap != 0 && (d->softcap < smallest || d->softcap > largest))
        cli_fail(path, "--softcap %g: takes 0 (off) or a number from %g to %g with %s logits", d->softcap,
                 smallest, largest, dtype);
    else if (!j->f64 && (isinf(j->denominator_f32) || (j->denominator_f32 == 0) != (divisor == 0)))
        cli_fail(path, "--denominator %g: takes an f32 number with %s logits", divisor, dtype);
    else if (!j->indices && d->use_ignore_index && d->ignore_index >= 0)
        cli_fail(j->targets.path,
                 "--ignore-index %" PRId64 ": takes a negative index or 'none' where targets are "
                 "probabilities, which have no index to ignore",
                 d->ignore_index);
    else if (j->rows > 0 && d->shift > d->seq)
        cli_fail(path, "--shift %zu: takes 0 to %zu with logits of shape %s", d->shift, d->seq,
                 npy_shape_text(h->shape, h->axes).text);
    else return true;
    return false;
}

/* Each output can be written, to a file of its own: inputs are mapped, and one that an output replaced would be lost.
 * The files are created after the kernels are compiled: what crashes in a driver's compiler leaves none. */
static bool check_outputs(job *j)
{
    const options *o = &j->o;
    named_path inputs[INPUTS];
    char *resolved[RESULTS] = { NULL };
    npy_fault fault;
    bool good = true;

    list_inputs(o, inputs);
    for (size_t i = 0; i < RESULTS && good; i++) {
        const char *path = o->out[i], *other = NULL;
        if (path == NULL) continue;
        for (size_t k = 0; k < INPUTS; k++)
            if (inputs[k].path != NULL && npy_one_file(path, inputs[k].path)) other = inputs[k].flag;
        if (other == NULL && !npy_can_write(path, &resolved[i], &fault)) {
            cli_fail(path, "%s", fault.text);
            good = false;
            break;
        }
        for (size_t k = 0; k < i && other == NULL; k++) {
            const bool same = resolved[k] != NULL && (strcmp(resolved[k], resolved[i]) == 0 ||
                                                      npy_one_file(resolved[k], resolved[i]));
            if (same) other = results[k].flag;
        }
        good = other == NULL;
        if (!good)
            cli_fail(path, "--%s and --%s name the same file: each output takes its own", other,
                     results[i].flag);
    }
    for (size_t i = 0; i < RESULTS; i++) free(resolved[i]);
    return good;
}

/* Headers only: nothing is read that a wrong shape would make useless. */
static bool open_inputs(job *j)
{
    const options *o = &j->o;
    char text[512];

    if (!open_input(&j->logits, o->logits) || !check_logits(j)) return false;
    if (!open_input(&j->targets, o->targets) || !check_targets(j)) return false;
    if (!open_input(&j->class_weights, o->class_weights) || !open_input(&j->row_weights, o->row_weights) ||
        !open_input(&j->grad_output, o->grad_output) || !check_weights(j) || !check_options(j) ||
        !check_outputs(j))
        return false;
    if (clxent_desc_check(&j->desc, text, sizeof text) != CLXENT_OK) {
        cli_fail(o->logits, "%s", text);
        return false;
    }
    return true;
}

static double real_at(const input *in, size_t i)
{
    const void *data = in->array.data;
    return in->array.header.item_size == 8 ? ((const double *)data)[i] : (double)((const float *)data)[i];
}

static bool load(input *in)
{
    npy_fault fault;
    if (in->path == NULL) return true;
    if (!npy_native(&in->array, &fault)) {
        cli_fail(in->path, "%s", fault.text);
        return false;
    }
    in->use = (clxent_input){ in->array.data, in->array.bytes };
    return true;
}

/* A weight that is no number would make every result NaN without a word, and one that becomes 0 in f32 would mask
 * rows or classes that were only meant to count little. (Row weights may be anything: see clxent.h.) */
static bool check_real_value(const job *j, const input *in, size_t at, double value)
{
    const char *fault = in == &j->class_weights && !isfinite(value) ? "takes a finite number"
                        : j->f64 || !isfinite(value)                ? NULL
                        : fabs(value) > (double)FLT_MAX             ? "too large for f32"
                        : in != &j->grad_output && value != 0 && (float)value == 0
                            ? "too small for f32, where it would be 0"
                            : NULL;

    if (fault != NULL) cli_fail(in->path, "item %zu is %g: %s", at, value, fault);
    return fault == NULL;
}

/* Weights in the plan's real type: count of them, one value repeated where the file has one. */
static bool load_real(const job *j, input *in, size_t count)
{
    const npy_header *h = &in->array.header;
    const bool from_f64 = h->item_size == 8;
    npy_fault fault;

    if (!load(in)) return false;
    if (in->path == NULL) return true;
    for (size_t i = 0; i < h->count; i++)
        if (!check_real_value(j, in, i, real_at(in, i))) return false;
    if (from_f64 == j->f64 && h->count == count) return true;

    in->use.size = count * real_bytes(j);
    in->use.data = in->converted = npy_scratch(in->use.size, &fault);
    if (in->converted == NULL) {
        cli_fail(in->path, "%s", fault.text);
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const double value = real_at(in, h->count == 1 ? 0 : i);
        if (j->f64) ((double *)in->converted)[i] = value;
        else ((float *)in->converted)[i] = (float)value;
    }
    return true;
}

/* ---- Targets -------------------------------------------------------------------------------- */

static int64_t target_at(const job *j, size_t i)
{
    const void *data = j->targets.use.data;
    switch (j->desc.target_type) {
    case CLXENT_TARGET_U8: return ((const uint8_t *)data)[i];
    case CLXENT_TARGET_I32: return ((const int32_t *)data)[i];
    default: return ((const int64_t *)data)[i];
    }
}

typedef enum fate { ROW_COUNTS, ROW_IGNORED, ROW_BAD } fate;

/* As the library decides: shifted off, masked, ignored, out of range, in this order. */
static fate fate_of(const job *j, size_t row)
{
    const clxent_desc *d = &j->desc;
    const void *weights = j->row_weights.use.data;
    int64_t target;

    if (row % d->seq + d->shift >= d->seq) return ROW_IGNORED;
    if (weights != NULL &&
        (j->f64 ? ((const double *)weights)[row] == 0 : ((const float *)weights)[row] == 0))
        return ROW_IGNORED;
    if (!j->indices) return ROW_COUNTS;
    target = target_at(j, row + d->shift);
    if (d->use_ignore_index && target == d->ignore_index) return ROW_IGNORED;
    return target < 0 || (uint64_t)target >= d->classes ? ROW_BAD : ROW_COUNTS;
}

/* Counts the rows; a bad target is an error here unless a policy for it was given. */
static bool judge_rows(job *j)
{
    size_t first = 0, at, index[NPY_MAX_AXES];
    char ignored[48] = "";

    for (size_t row = 0; row < j->rows; row++) {
        const fate f = fate_of(j, row);
        if (f == ROW_BAD && j->bad++ == 0) first = row;
        if (f == ROW_IGNORED) j->ignored++;
    }
    if (j->bad == 0 || j->desc.bad_target != CLXENT_BAD_TARGET_REPORT) return true;

    at = first + j->desc.shift;
    for (size_t axis = j->row_axes, rest = at; axis-- > 0; rest /= j->row_shape[axis])
        index[axis] = rest % j->row_shape[axis];
    if (j->desc.use_ignore_index)
        snprintf(ignored, sizeof ignored, ", or %" PRId64 " (ignored)", j->desc.ignore_index);
    cli_fail(j->targets.path,
             "row %zu: target %" PRId64 " at %s is out of range: takes 0 to %zu%s (%" PRIu64 " bad row%s)",
             first, target_at(j, at), npy_shape_text(index, j->row_axes).text, j->desc.classes - 1, ignored,
             j->bad, j->bad == 1 ? "" : "s");
    return false;
}

/* ---- The run -------------------------------------------------------------------------------- */

static void set_output(clxent_host_args *args, size_t field, void *data, size_t size)
{
    const clxent_output output = { data, size };
    memcpy((char *)args + field, &output, sizeof output);
}

/* What the files and what is printed need: the row losses give the perplexity. */
static void choose_outputs(job *j)
{
    j->desc.outputs = CLXENT_OUTPUT_LOSSES;
    for (size_t i = 0; i < RESULTS; i++)
        if (j->o.out[i] != NULL) j->desc.outputs |= results[i].bit;
    if (j->desc.reduction != CLXENT_REDUCTION_NONE) j->desc.outputs |= CLXENT_OUTPUT_LOSS;
    if (j->indices) j->desc.outputs |= CLXENT_OUTPUT_CORRECT;
}

static bool create_outputs(job *j)
{
    const npy_header *h = &j->logits.array.header;
    const uint32_t gradient = j->desc.gradient_dtype != 0 ? j->desc.gradient_dtype : j->desc.dtype;
    npy_fault fault;

    for (size_t i = 0; i < RESULTS; i++) {
        const struct result *r = &results[i];
        npy_output *file = &j->files[j->num_files];
        const char *dtype = r->type == ITEM_I8         ? "i8"
                            : r->type == ITEM_REAL     ? (j->f64 ? "f8" : "f4")
                            : r->type == ITEM_GRADIENT ? npy_dtypes[gradient - CLXENT_F32]
                                                       : npy_dtypes[j->desc.dtype - CLXENT_F32];
        if (j->o.out[i] == NULL) continue;
        if (!npy_create(file, j->o.out[i], dtype, r->has_classes ? h->shape : j->row_shape,
                        r->has_classes ? h->axes : j->row_axes, &fault)) {
            cli_fail(j->o.out[i], "%s", fault.text);
            return false;
        }
        j->file_result[j->num_files++] = i;
        set_output(&j->args, r->field, file->data, file->bytes);
        j->bytes_moved += (double)file->bytes;
    }

    if (j->args.losses.data == NULL) {
        j->losses = npy_scratch(j->rows * real_bytes(j), &fault);
        if (j->losses == NULL) {
            cli_fail(NULL, "%s", fault.text);
            return false;
        }
        j->args.losses = (clxent_output){ j->losses, j->rows * real_bytes(j) };
        j->bytes_moved += (double)(j->rows * real_bytes(j));
    }
    if ((j->desc.outputs & CLXENT_OUTPUT_LOSS) != 0)
        j->args.loss = (clxent_output){ j->f64 ? (void *)&j->loss_f64 : (void *)&j->loss_f32, real_bytes(j) };
    if (j->indices) j->args.correct = (clxent_output){ &j->correct, sizeof j->correct };
    return true;
}

static bool fail_run(const job *j, const cli_session *session, clxent_status status)
{
    const bool of_input = status == CLXENT_ERROR_INVALID_DESC || status == CLXENT_ERROR_INVALID_ARGUMENT ||
                          status == CLXENT_ERROR_BAD_TARGET;
    cli_fail_status(session->ctx, of_input ? j->logits.path : session->device.name, status);
    return false;
}

static bool compile(job *j, cli_session *session)
{
    const clxent_status status = cli_compile(session, &j->desc, &j->compile_seconds);
    return status == CLXENT_OK || fail_run(j, session, status);
}

static bool run(job *j, cli_session *session)
{
    clxent_status status;

    j->args.logits = j->logits.use;
    j->args.targets = j->targets.use;
    j->args.class_weights = j->class_weights.use;
    j->args.row_weights = j->row_weights.use;
    if ((j->desc.outputs & CLXENT_OUTPUT_GRADIENT) != 0) j->args.upstream = j->grad_output.use;
    if (j->o.has_denominator) {
        j->args.denominator =
            (clxent_input){ j->f64 ? (const void *)&j->o.denominator : (const void *)&j->denominator_f32,
                            real_bytes(j) };
    }
    j->bytes_moved += (double)j->logits.use.size + (double)j->targets.use.size +
                      (double)j->class_weights.use.size + (double)j->row_weights.use.size +
                      (double)j->args.upstream.size;

    const double start = cli_seconds();
    status = clxent_run_host(session->ctx, &j->desc, &j->args);
    j->seconds = cli_seconds() - start;
    cli_progress_stop();
    return status == CLXENT_OK || fail_run(j, session, status);
}

/* Mean of the plain negative log-likelihood over the rows that count; NaN where there is none. */
static bool mean_nll(job *j, cli_session *session, double *mean)
{
    const clxent_desc *d = &j->desc;
    const bool plain =
        d->label_smoothing == 0 && d->z_loss == 0 && d->has_class_weights == 0 && d->has_row_weights == 0;
    const size_t bytes = j->rows * real_bytes(j);
    const void *losses = j->args.losses.data;
    void *own = NULL;
    double sum = 0, lost = 0;

    if (!plain) {
        clxent_desc desc = *d;
        clxent_host_args args = CLXENT_HOST_ARGS_INIT;
        clxent_status status;
        npy_fault fault;

        losses = own = npy_scratch(bytes, &fault);
        if (own == NULL) {
            cli_fail(NULL, "%s", fault.text);
            return false;
        }
        desc.outputs = CLXENT_OUTPUT_LOSSES;
        desc.reduction = CLXENT_REDUCTION_NONE;
        desc.label_smoothing = desc.z_loss = 0;
        desc.has_class_weights = desc.has_row_weights = 0;
        desc.bad_target = CLXENT_BAD_TARGET_IGNORE; /* masked rows may hold bad targets */
        args.logits = j->args.logits;
        args.targets = j->args.targets;
        args.losses = (clxent_output){ own, bytes };
        cli_progress_start("perplexity");
        status = cli_compile(session, &desc, &j->compile_seconds);
        if (status == CLXENT_OK) status = clxent_run_host(session->ctx, &desc, &args);
        cli_progress_stop();
        if (status != CLXENT_OK) {
            cli_fail_status(session->ctx, session->device.name, status);
            npy_scratch_free(own, bytes);
            return false;
        }
    }
    /* Compensated, so that 10^9 rows keep every digit; an infinite loss makes the compensation NaN. */
    for (size_t row = 0; row < j->rows; row++) {
        double value, next;
        if (fate_of(j, row) != ROW_COUNTS) continue;
        value = j->f64 ? ((const double *)losses)[row] : (double)((const float *)losses)[row];
        next = sum + value;
        lost += fabs(sum) >= fabs(value) ? (sum - next) + value : (value - next) + sum;
        sum = next;
    }
    *mean = (isfinite(sum) ? sum + lost : sum) / (double)(j->rows - j->ignored - j->bad);
    npy_scratch_free(own, bytes);
    return true;
}

static void print_results(const job *j, const cli_session *session, double nll)
{
    const bool has_loss = j->desc.reduction != CLXENT_REDUCTION_NONE;
    const double loss = j->f64 ? j->loss_f64 : (double)j->loss_f32;
    const uint64_t counted = j->rows - j->ignored - j->bad;
    const bool has_mean = j->indices && counted > 0;
    const double accuracy = (double)j->correct / (double)counted;

    if (j->o.common.json) {
        cli_json_print(json_pack(
            "{s:I, s:I, s:I, s:I, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "rows", (json_int_t)j->rows, "ignored",
            (json_int_t)j->ignored, "bad_targets", (json_int_t)j->bad, "classes", (json_int_t)j->desc.classes,
            "dtype", dtypes[j->desc.dtype - CLXENT_F32], "device", cli_json_text(session->device.name),
            "loss", has_loss ? cli_json_number(loss) : json_null(), "perplexity",
            has_mean ? cli_json_number(exp(nll)) : json_null(), "accuracy",
            has_mean ? cli_json_number(accuracy) : json_null(), "seconds", cli_json_number(j->seconds),
            "compile_seconds", cli_json_number(j->compile_seconds)));
        return;
    }
    printf("rows        %zu\n", j->rows);
    printf("ignored     %" PRIu64 "\n", j->ignored);
    if (j->bad > 0) printf("bad targets %" PRIu64 "\n", j->bad);
    printf("classes     %zu\n", j->desc.classes);
    printf("dtype       %s\n", dtypes[j->desc.dtype - CLXENT_F32]);
    printf("device      %zu: %s\n", session->device.index, session->device.name);
    if (has_loss) printf("loss        %.*g (%s)\n", j->f64 ? 17 : 9, loss, reductions[j->desc.reduction]);
    if (has_mean) {
        printf("perplexity  %.9g\n", exp(nll));
        printf("accuracy    %.6f (%" PRIu64 " of %" PRIu64 ")\n", accuracy, j->correct, counted);
    }
    printf("time        %.3f s\n", j->seconds);
    printf("compiling   %.3f s\n", j->compile_seconds);
    printf("bandwidth   %.3g GB/s\n", j->bytes_moved / j->seconds * 1e-9);
}

static void close_input(input *in)
{
    npy_scratch_free(in->converted, in->use.size);
    npy_close(&in->array);
}

int command_eval(int argc, char **argv)
{
    static job j; /* its arrays of axes would crowd the stack */
    cli_session session = { 0 };
    cli_device device;
    npy_fault fault;
    size_t failed = 0;
    double nll = NAN;
    int status = CLI_FAILED;

    parse_options(&j.o, argc, argv);
    j.desc = j.o.desc;
    j.desc.outputs = CLXENT_OUTPUT_LOSSES;
    clxent_host_args_init(&j.args);

    if (!open_inputs(&j)) goto done;
    cli_progress_start("eval");
    if (!load(&j.targets) || !load_real(&j, &j.row_weights, j.rows) || !judge_rows(&j)) goto done;
    if (!load(&j.logits) || !load_real(&j, &j.class_weights, j.desc.classes)) goto done;
    if (!load_real(&j, &j.grad_output, j.desc.reduction == CLXENT_REDUCTION_NONE ? j.rows : 1)) goto done;
    if (!cli_find_device(&device, j.o.common.device) || !cli_open(&session, &device)) goto done;
    choose_outputs(&j);
    if (!compile(&j, &session) || !create_outputs(&j) || !run(&j, &session)) goto done;
    if (j.indices && !mean_nll(&j, &session, &nll)) goto done;
    if (!npy_commit(j.files, j.num_files, &failed, &fault)) {
        cli_fail(j.o.out[j.file_result[failed]], "%s", fault.text);
        j.num_files = 0;
        goto done;
    }
    print_results(&j, &session, nll);
    status = CLI_DONE;

done:
    cli_progress_stop();
    for (size_t i = 0; i < j.num_files; i++) npy_discard(&j.files[i]);
    npy_scratch_free(j.losses, j.rows * real_bytes(&j));
    close_input(&j.logits);
    close_input(&j.targets);
    close_input(&j.class_weights);
    close_input(&j.row_weights);
    close_input(&j.grad_output);
    cli_close(&session);
    return status;
}
