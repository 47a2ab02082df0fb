/* SPDX-License-Identifier: MIT
 *
 * eval.c - the loss of logits in files, or of hidden states and a weight: every option and output of the library, from
 * files to files.
 *
 * Headers are checked first, then values, then the device runs: one clxent_run_host() over mapped inputs
 * that writes into mapped outputs, which get their names only when everything has succeeded. Perplexity
 * is of the plain negative log-likelihood; where options make the row losses something else (weights,
 * smoothing, z-loss) a second call computes it, because lse - z of a row would lose the digits of a
 * confident one.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"
#include "layout.h"
#include "tensor_file.h"
#include "verify_case.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
enum { MAKES_LOGITS = 1u << TENSOR_LOGITS | 1u << TENSOR_HIDDEN | 1u << TENSOR_WEIGHT | 1u << TENSOR_BIAS };

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

static size_t acc_bytes(const job *j) { return dtype_size(j->acc_dtype); }

static const npy_header *header_of(const job *j, int tensor) { return &j->in[tensor].header; }

static bool is_linear(const job *j) { return j->source == TENSOR_HIDDEN; }

/* The file that faults of the problem as a whole are said of, and what it holds. */
static const char *source_path(const job *j) { return j->o.path[j->source]; }
static const char *source_name(const job *j) { return is_linear(j) ? "hidden states" : "logits"; }

static bool has_targets(const job *j) { return j->o.path[TENSOR_TARGETS] != NULL; }

/* Whether an output must not have the path of the other file. */
static bool is_taken(int other, int output) { return other < output || other == TUNING; }

/* ---- Flags ---------------------------------------------------------------------------------- */

/* Flags of files and options are NULL where there is none. */
#define NPY(flag, argument, help) flag, argument, help
#define NO_NPY NULL, NULL, NULL
#define EVAL(flag, argument, help) flag, argument, help
#define NO_FLAG NULL, NULL, NULL

#define ENUMERATION(name, prefix, first, values) enum { FIRST_##name = first };
#include "../../host/options.def"

/* Where a flag leaves its name if it changes nothing without targets; else 0. */
enum {
    OF_TARGETS = offsetof(options, of_targets),
    OF_INDICES = OF_TARGETS,
    OF_LOGITS = 0,
    OF_ANY = OF_TARGETS, /* those of the indices */
    OF_LOSS = OF_TARGETS,
    OF_ROWS = OF_TARGETS,
    OF_GRADIENT = OF_TARGETS,
    OF_LINEAR = 0
};

static const cli_flag flags[] = {
    { .help = "Inputs: .npy (versions 1 to 3, C or Fortran order, either byte order), FILE.npz:NAME or "
              "FILE.safetensors:NAME; without :NAME the file's only tensor:",
      .group = 1 },
    { "bf16", NULL, "The logits' 2-byte items are bf16 bits; so are 2-byte outputs (default: off)",
      CLI_SWITCH, offsetof(options, bf16), .group = 1 },
    { "class-axis", "N", "Axis of the logits that counts classes; negative: from the end (default: -1)",
      CLI_TEXT, offsetof(options, axis_text), .group = 1 },
    { .help = "The loss:", .group = 2 },
    { "denominator", "VALUE",
      "Divides the reduced loss and the gradient (default: with mean the weights of the rows that count, "
      "else 1)",
      CLI_NUMBER, offsetof(options, denominator), -DBL_MAX, DBL_MAX, .group = 2, .mark = OF_TARGETS },
    { .help = "Outputs (.npy in C order; f4, f8 for f8 logits, where not said otherwise):", .group = 3 },
#define INPUT(name, NAME, element, shape, stride, operations, npy)       \
    { npy, CLI_PATH, offsetof(options, path[TENSOR_##NAME]), .group = 1, \
      .mark = (MAKES_LOGITS >> TENSOR_##NAME & 1u) != 0 ? 0 : OF_TARGETS },
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, npy) \
    { npy, CLI_PATH, offsetof(options, path[TENSOR_##NAME]), .group = 3, .mark = OF_##depends },
#include "../../host/tensors.def"
#define CHOICE(name, enumeration, initial, eval) \
    { eval, CLI_CHOICE, offsetof(options, desc.name), FIRST_##enumeration, .group = 2, .mark = OF_TARGETS },
#define OPTION_FLAG(name) CLI_SWITCH, 0 /* has no flag */
#define OPTION_SIZE(name) CLI_SIZE, offsetof(options, desc.name)
#define OPTION_I64(name) CLI_TEXT, offsetof(options, name)
#define OPTION(name, kind, initial, acts, constant, ...) \
    { __VA_ARGS__, OPTION_##kind(name), .group = 2, .mark = OF_##acts },
#define TAKES_FRACTION 0, 1
#define TAKES_NOT_NEGATIVE 0, DBL_MAX
#define TAKES_FINITE -DBL_MAX, DBL_MAX
#define TAKES_NORMAL 0, DBL_MAX
#define NUMBER(name, initial, takes, acts, constant, parameter, draws, eval) \
    { eval, CLI_NUMBER, offsetof(options, desc.name), TAKES_##takes, .group = 2, .mark = OF_##acts },
#include "../../host/options.def"
};

#undef NPY
#undef NO_NPY
#define NPY(flag, argument, help) flag
#define NO_NPY NULL
static const char *const flag_of[PATHS] = {
#define INPUT(name, NAME, element, shape, stride, operations, npy) npy,
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, npy) npy,
#include "../../host/tensors.def"
    "tuning",
};

static int64_t integer(struct argp_state *state, const char *flag, const char *text, const char *takes)
{
    char *end = NULL;
    intmax_t value = 0;

    errno = 0;
    if (text[0] == '-' || (text[0] >= '0' && text[0] <= '9')) value = strtoimax(text, &end, 10);
    if (end == NULL || end == text || *end != '\0' || errno != 0)
        argp_error(state, "--%s is '%s': takes %s", flag, text, takes);
    return value;
}

/* What goes with --hidden, and what with --logits. */
static void check_linear(options *o, struct argp_state *state)
{
    const bool linear = o->path[TENSOR_HIDDEN] != NULL;
    clxent_desc *d = &o->desc;

    if (linear && o->path[TENSOR_LOGITS] != NULL)
        argp_error(state, "--logits and --hidden: takes one of them");
    if (linear && o->path[TENSOR_WEIGHT] == NULL) argp_error(state, "--hidden needs --weight");
    if (linear && o->axis_text != NULL)
        argp_error(state, "--class-axis with --hidden, whose logits have their classes last");
    for (int t = 0; t < TENSORS; t++) {
        if (o->path[t] == NULL) continue;
        if (!linear && !has_tensor(CLXENT_OP_CROSS_ENTROPY, t))
            argp_error(state, "--%s without --hidden", flag_of[t]);
        if (linear && t >= FIRST_OUTPUT && tensors[t].shape == SHAPE_MATRIX)
            argp_error(state, "--%s with --hidden, whose logits are made chunk by chunk and never stored",
                       flag_of[t]);
    }
    if (o->path[TENSOR_BIAS_GRADIENT] != NULL && o->path[TENSOR_BIAS] == NULL)
        argp_error(state, "--bias-grad-out without --bias");
    if (!linear && d->workspace_limit != 0) argp_error(state, "--workspace-mib without --hidden");
    if (d->workspace_limit > SIZE_MAX >> 20)
        argp_error(state, "--workspace-mib is %zu: takes at most %zu", d->workspace_limit, SIZE_MAX >> 20);
    d->workspace_limit <<= 20;
    if (!linear) return;
    d->op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
    d->hidden_gradient_dtype = d->weight_gradient_dtype = d->bias_gradient_dtype = d->gradient_dtype;
}

/* What can be said of the flags without their files. */
static void check_flags(void *data, struct argp_state *state)
{
    options *o = data;
    clxent_desc *d = &o->desc;
    const char *targets = o->path[TENSOR_TARGETS];
    const bool linear = o->path[TENSOR_HIDDEN] != NULL;

    o->path[TUNING] = cli_given.tuning;
    o->class_axis = o->axis_text != NULL ? integer(state, "class-axis", o->axis_text, "an axis") : -1;
    d->use_ignore_index = o->ignore_index == NULL || strcmp(o->ignore_index, "none") != 0;
    if (o->ignore_index != NULL && d->use_ignore_index)
        d->ignore_index = integer(state, "ignore-index", o->ignore_index, "a 64-bit integer or 'none'");
    for (int k = 0; k < PATHS; k++) {
        o->file[k] = o->path[k];
        if (k >= FIRST_OUTPUT || o->path[k] == NULL) continue;
        o->file[k] = tensor_file_name(o->path[k], &o->tensor[k]);
        if (o->file[k] == NULL) argp_failure(state, CLI_FAILED, 0, "no memory");
    }
    for (int t = FIRST_OUTPUT; t < TENSORS; t++) {
        if (o->path[t] == NULL) continue;
        if (tensor_file_length(o->path[t]) > 0)
            argp_error(state, "--%s is '%s': takes a .npy file; .npz and .safetensors are read only",
                       flag_of[t], o->path[t]);
        for (int k = 0; k < PATHS; k++)
            if (is_taken(k, t) && o->path[k] != NULL && strcmp(o->path[t], o->file[k]) == 0)
                argp_error(state, "--%s and --%s name the same file: each output takes its own", flag_of[k],
                           flag_of[t]);
        d->outputs |= 1u << (t - FIRST_OUTPUT);
    }
    check_linear(o, state);
    if (o->path[TENSOR_LOGITS] == NULL && !linear)
        argp_error(state, "%s",
                   targets != NULL ? "--logits, or --hidden and --weight, is required"
                                   : "--logits (or --hidden and --weight) and --targets are required");
    if (targets == NULL && o->of_targets != NULL) argp_error(state, "--%s needs --targets", o->of_targets);
    if (targets == NULL && d->outputs == 0)
        argp_error(state, "--targets is required for the loss; only outputs of the logits alone, such as "
                          "--lse-out, need none");
    if ((d->outputs & GRADIENTS) != 0) return;
    const char *gradients =
        linear ? "--hidden-grad-out, --weight-grad-out and --bias-grad-out" : "--grad-out";
    for (int t = 0; t < FIRST_OUTPUT; t++) {
        if (o->path[t] != NULL &&
            (t == TENSOR_GRAD_OUTPUT || t == TENSOR_GRAD_ENTROPY || t == TENSOR_GRAD_LSE))
            argp_error(state, "--%s without %s, the only result%s that it changes", flag_of[t], gradients,
                       linear ? "s" : "");
    }
    if (d->gradient_dtype != 0)
        argp_error(state, "--grad-dtype without %s, the file%s whose dtype it is", gradients,
                   linear ? "s" : "");
}

static void parse_options(options *o, int argc, char **argv)
{
    static const char *const about =
        "Computes softmax cross-entropy of logits against targets, both in files, on an OpenCL device."
        " With --hidden and --weight the logits are their product, of which one chunk exists at a time."
        " Without --targets it computes outputs that depend on the logits alone.\v"
        "Prints rows, ignored rows (ignored targets, masked or shifted-off rows), rows with a bad "
        "target, classes, the loss, the perplexity (exp of the mean unweighted negative log-likelihood "
        "of the rows that count), the accuracy over the same rows, the time of the run, the time of "
        "compiling its kernels, and the bytes of inputs and outputs by the time of the run. Compiling is"
        " what precedes the run: kernels are built, then launched once with nothing to do, as some drivers "
        "compile only at the first launch. Accuracy and --argmax-out look for the largest"
        " of --logit-scale times the logits, before --softcap, which would make equal what it saturates."
        " With --json loss is null with --reduction none; perplexity and accuracy are null where targets are "
        "probabilities or no row counts; without --targets ignored, bad_targets, loss, perplexity and "
        "accuracy are null."
        " A file that cannot be used, or a target that is no class, is exit status 1 and leaves no "
        "output; wrong flags are 2.";
    const cli_syntax syntax = { about, flags, sizeof flags / sizeof *flags, check_flags };

    memset(o, 0, sizeof *o);
    clxent_desc_init(&o->desc);
    o->denominator = NAN;
    cli_parse(&syntax, argc, argv, o);
}

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
static const struct {
    int tensor;
    const char *what;
} numbers[] = { { TENSOR_CLASS_WEIGHTS, "class weights" },
                { TENSOR_ROW_WEIGHTS, "row weights" },
                { TENSOR_GRAD_ENTROPY, "values of --grad-entropy" },
                { TENSOR_GRAD_LSE, "values of --grad-lse" },
                { TENSOR_GRAD_OUTPUT, "values of --grad-output" } };
enum { NUMBERS = sizeof numbers / sizeof *numbers };

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

static double rounded(uint32_t dtype, double value)
{
    double stored = 0;

    put_element(&stored, dtype, 0, value);
    return get_element(&stored, dtype, 0);
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
    const double stored = rounded(j->acc_dtype, j->o.denominator);
    put_element(&j->denominator, j->acc_dtype, 0, stored);
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
                                       flag_of[other], flag_of[t]);
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

/* Headers only: nothing is read that a wrong shape would make useless. */
static bool open_inputs(job *j)
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
    for (size_t i = 0; i < NUMBERS; i++)
        if (!check_numbers(j, numbers[i].tensor, numbers[i].what)) return false;
    return check_options(j) && check_outputs(j) &&
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
 * rows or classes that were only meant to count little. (Row weights may be anything: see clxent.h.) A bias that becomes
 * infinite would mask a class or make every row NaN. Integers in the logits' shape that are not one-hot rows are classes of some
 * other layout, or 255 for what does not count. */
static bool check_item(const job *j, int tensor, uint32_t to, size_t at, double value)
{
    const npy_header *h = header_of(j, tensor);
    const bool may_vanish = tensor != TENSOR_CLASS_WEIGHTS && tensor != TENSOR_ROW_WEIGHTS;
    const bool one_hot = tensor == TENSOR_TARGETS && float_dtype(h, j->o.bf16) == 0;
    const double stored = rounded(to, value);
    const bool is_large = isfinite(value) && !isfinite(stored);
    const char *fault = one_hot && value != 0 && value != 1 ? "an integer in the logits' shape takes 0 or 1"
                        : tensor == TENSOR_CLASS_WEIGHTS && !isfinite(value) ? "takes a finite number"
                        : is_large                                           ? "too large for "
                        : may_vanish || value == 0 || stored != 0            ? NULL
                                                                  : "too small for f32, where it would be 0";
    return fault == NULL ||
           cli_fail(j->o.path[tensor], "item %s is %.10g: %s%s", place_of(h->shape, h->axes, at).text, value,
                    fault, is_large ? dtype_names[to] : "");
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

/* Numbers in a dtype: count of them, one value repeated where the file has one. */
static bool load_numbers(job *j, int tensor, uint32_t to_dtype, size_t count)
{
    const npy_header *h = header_of(j, tensor);
    const uint32_t dtype = float_dtype(h, j->o.bf16 && (tensor == TENSOR_TARGETS || tensor == TENSOR_BIAS));

    if (j->o.path[tensor] == NULL) return true;
    if (!load(j, tensor)) return false;
    const void *from = array_of(&j->args, tensor)->data;
    for (size_t i = 0; i < h->count; i++)
        if (!check_item(j, tensor, to_dtype, i, number_at(h, dtype, from, i))) return false;
    if (dtype == to_dtype && h->count == count) return true;

    void *to = make_converted(j, tensor, count * dtype_size(to_dtype));
    for (size_t i = 0; to != NULL && i < count; i++)
        put_element(to, to_dtype, i, number_at(h, dtype, from, h->count == 1 ? 0 : i));
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
    if (!j->as_stored && !j->indices) return load_numbers(j, TENSOR_TARGETS, j->acc_dtype, h->count);
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

typedef enum row_status { ROW_COUNTS, ROW_IGNORED, ROW_BAD } row_status;

/* As the library decides: shifted off, masked, ignored, out of range, in this order. */
static row_status status_of_row(const job *j, size_t row)
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
        const row_status status = status_of_row(j, row);
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

static bool load_inputs(job *j)
{
    if (!load_targets(j)) return false;
    for (size_t i = 0; i < NUMBERS; i++) {
        const int tensor = numbers[i].tensor;
        const bool one = tensor == TENSOR_GRAD_OUTPUT && j->desc.reduction != CLXENT_REDUCTION_NONE;
        const size_t count = tensor == TENSOR_CLASS_WEIGHTS ? j->desc.classes : one ? 1 : j->rows;
        if (!load_numbers(j, tensor, j->acc_dtype, count)) return false;
        if (tensor == TENSOR_ROW_WEIGHTS && !count_rows(j)) return false;
    }
    return load(j, TENSOR_LOGITS) && load(j, TENSOR_HIDDEN) && load(j, TENSOR_WEIGHT) &&
           load_numbers(j, TENSOR_BIAS, j->desc.dtype, j->desc.classes);
}

/* ---- The run -------------------------------------------------------------------------------- */

/* What the files and what is printed need: the row losses give the perplexity. */
static void choose_outputs(job *j)
{
    j->desc.outputs = j->o.desc.outputs;
    if (!has_targets(j)) return;
    j->desc.outputs |= CLXENT_OUTPUT_LOSSES;
    if (j->desc.reduction != CLXENT_REDUCTION_NONE) j->desc.outputs |= CLXENT_OUTPUT_LOSS;
    if (j->indices) j->desc.outputs |= CLXENT_OUTPUT_CORRECT;
}

static bool create_output(job *j, int tensor)
{
    static const char *const npy_dtypes[] = { "i8", "f4", "f2", "u2", "f8" }; /* no dtype: integers */
    const uint32_t dtype = layout_of(&j->desc, tensor).dtype;
    const size_t *shape = j->row_shape; /* that of index targets */
    size_t axes = j->row_axes;
    switch (tensors[tensor].shape) {
    case SHAPE_MATRIX: shape = j->logits.shape, axes = j->logits.axes; break;
    case SHAPE_HIDDEN: shape = header_of(j, TENSOR_HIDDEN)->shape, axes = j->logits.axes; break;
    case SHAPE_WEIGHT: shape = header_of(j, TENSOR_WEIGHT)->shape, axes = 2; break;
    case SHAPE_CLASSES: shape = &j->desc.classes, axes = 1; break;
    default: break;
    }
    npy_output *file = &j->files[j->num_files];
    npy_fault fault;

    if (!npy_create(file, j->o.path[tensor], npy_dtypes[dtype], shape, axes, &fault))
        return cli_fail(j->o.path[tensor], "%s", fault.text);
    j->file_tensor[j->num_files++] = tensor;
    *array_of(&j->args, tensor) = (clxent_output){ file->data, file->bytes };
    return true;
}

static bool create_outputs(job *j)
{
    npy_fault fault;

    for (int t = FIRST_OUTPUT; t < TENSORS; t++)
        if (j->o.path[t] != NULL && !create_output(j, t)) return false;
    if (has_targets(j) && j->args.losses.data == NULL) {
        j->losses = npy_scratch(j->rows * acc_bytes(j), &fault);
        if (j->losses == NULL) return cli_fail(NULL, "%s", fault.text);
        j->args.losses = (clxent_output){ j->losses, j->rows * acc_bytes(j) };
    }
    if (!isnan(j->o.denominator)) j->args.denominator = (clxent_input){ &j->denominator, acc_bytes(j) };
    if ((j->desc.outputs & CLXENT_OUTPUT_LOSS) != 0) j->args.loss = (clxent_output){ &j->loss, acc_bytes(j) };
    if (j->indices) j->args.correct = (clxent_output){ &j->correct, sizeof j->correct };
    return true;
}

static bool fail_run(const job *j, const cli_session *session, clxent_status status)
{
    const bool of_input = status == CLXENT_ERROR_INVALID_DESC || status == CLXENT_ERROR_INVALID_ARGUMENT ||
                          status == CLXENT_ERROR_BAD_TARGET;
    return cli_fail_status(session->ctx, of_input ? source_path(j) : session->device.name, status);
}

static bool run(job *j, cli_session *session)
{
    clxent_status status = cli_compile(session, &j->desc, &j->compile_seconds);

    if (status != CLXENT_OK) return fail_run(j, session, status);
    if (!create_outputs(j)) return false;
    const double start = cli_seconds();
    status = clxent_run_host(session->ctx, &j->desc, &j->args);
    j->seconds = cli_seconds() - start;
    cli_progress_stop();
    return status == CLXENT_OK || fail_run(j, session, status);
}

/* The options that make a row's loss something else than its negative log-likelihood become what they are initially;
 * whether one was not. */
static bool make_plain(clxent_desc *d)
{
    bool changed = false;
#define PLAIN_ANY(name, initial)
#define PLAIN_LOGITS(name, initial)
#define PLAIN_ROWS(name, initial)
#define PLAIN_LINEAR(name, initial)
#define PLAIN_GRADIENT(name, initial) d->name = initial;
#define PLAIN_LOSS(name, initial)              \
    changed = changed || d->name != (initial); \
    d->name = initial;
#define OPTION(name, kind, initial, acts, constant, ...) PLAIN_##acts(name, initial)
#include "../../host/options.def"
    return changed;
}

/* Mean of the plain negative log-likelihood over the rows that count; NaN where there is none. */
static bool mean_nll(job *j, cli_session *session, double *mean)
{
    clxent_desc desc = j->desc;
    const size_t bytes = j->rows * acc_bytes(j);
    const void *losses = j->args.losses.data;
    void *own = NULL;
    double sum = 0, lost = 0;

    if (make_plain(&desc)) {
        clxent_host_args args = CLXENT_HOST_ARGS_INIT;
        npy_fault fault;

        losses = own = npy_scratch(bytes, &fault);
        if (own == NULL) return cli_fail(NULL, "%s", fault.text);
        desc.outputs = CLXENT_OUTPUT_LOSSES;
        desc.reduction = CLXENT_REDUCTION_NONE;
        desc.bad_target = CLXENT_BAD_TARGET_IGNORE; /* masked rows may hold bad targets */
        for (int t = 0; t < FIRST_OUTPUT; t++)
            if ((MAKES_LOGITS >> t & 1u) != 0 || t == TENSOR_TARGETS)
                *array_of(&args, t) = *array_of(&j->args, t);
        args.losses = (clxent_output){ own, bytes };
        cli_progress_start("perplexity");
        clxent_status status = cli_compile(session, &desc, &j->compile_seconds);
        if (status == CLXENT_OK) status = clxent_run_host(session->ctx, &desc, &args);
        cli_progress_stop();
        if (status != CLXENT_OK) {
            npy_scratch_free(own, bytes);
            return cli_fail_status(session->ctx, session->device.name, status);
        }
    }
    /* Compensated, so that 10^9 rows keep every digit; an infinite loss makes the compensation NaN. */
    for (size_t row = 0; row < j->rows; row++) {
        if (status_of_row(j, row) != ROW_COUNTS) continue;
        const double value = get_element(losses, j->acc_dtype, row), next = sum + value;
        lost += fabs(sum) >= fabs(value) ? (sum - next) + value : (value - next) + sum;
        sum = next;
    }
    *mean = (isfinite(sum) ? sum + lost : sum) / (double)(j->rows - j->ignored - j->bad);
    npy_scratch_free(own, bytes);
    return true;
}

static void print_results(const job *j, const cli_session *session, double nll)
{
    const bool targets = has_targets(j), has_loss = (j->desc.outputs & CLXENT_OUTPUT_LOSS) != 0;
    const double loss = get_element(&j->loss, j->acc_dtype, 0);
    const uint64_t counted = j->rows - j->ignored - j->bad;
    const bool has_mean = j->indices && counted > 0;
    const double accuracy = (double)j->correct / (double)counted;
    const char *dtype = dtype_names[j->desc.dtype];
    double bytes = 0;

    if (cli_given.json) {
        cli_json_print(json_pack(
            "{s:I, s:o, s:o, s:I, s:o*, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "rows", (json_int_t)j->rows,
            "ignored", targets ? json_integer((json_int_t)j->ignored) : json_null(), "bad_targets",
            targets ? json_integer((json_int_t)j->bad) : json_null(), "classes", (json_int_t)j->desc.classes,
            "features", is_linear(j) ? json_integer((json_int_t)j->desc.features) : NULL, "dtype", dtype,
            "device", cli_json_text(session->device.name), "loss",
            has_loss ? cli_json_number(loss) : json_null(), "perplexity",
            has_mean ? cli_json_number(exp(nll)) : json_null(), "accuracy",
            has_mean ? cli_json_number(accuracy) : json_null(), "seconds", cli_json_number(j->seconds),
            "compile_seconds", cli_json_number(j->compile_seconds)));
        return;
    }
    for (int t = 0; t < TENSORS; t++) bytes += (double)array_of(&j->args, t)->size;
    printf("rows        %zu\n", j->rows);
    if (targets) printf("ignored     %" PRIu64 "\n", j->ignored);
    if (j->bad > 0) printf("bad targets %" PRIu64 "\n", j->bad);
    printf("classes     %zu\n", j->desc.classes);
    if (is_linear(j)) printf("features    %zu\n", j->desc.features);
    printf("dtype       %s\n", dtype);
    printf("device      %zu: %s\n", session->device.index, session->device.name);
    if (has_loss)
        printf("loss        %.*g (%s)\n", j->acc_dtype == CLXENT_F64 ? 17 : 9, loss,
               reduction_names[j->desc.reduction]);
    if (has_mean) {
        printf("perplexity  %.9g\n", exp(nll));
        printf("accuracy    %.6f (%" PRIu64 " of %" PRIu64 ")\n", accuracy, j->correct, counted);
    }
    printf("time        %.3f s\n", j->seconds);
    printf("compiling   %.3f s\n", j->compile_seconds);
    printf("bandwidth   %.3g GB/s\n", bytes / j->seconds * 1e-9);
}

/* Gives the outputs their names. */
static bool commit(job *j)
{
    size_t failed = 0;
    npy_fault fault;

    if (npy_commit(j->files, j->num_files, &failed, &fault)) return true;
    return cli_fail(j->o.path[j->file_tensor[failed]], "%s", fault.text);
}

int command_eval(int argc, char **argv)
{
    static job j; /* its arrays of axes would crowd the stack */
    cli_session session = { 0 };
    cli_device device;
    double nll = NAN;

    parse_options(&j.o, argc, argv);
    j.desc = j.o.desc;
    if (has_targets(&j)) j.desc.outputs = CLXENT_OUTPUT_LOSSES; /* the others once the targets are known */
    clxent_host_args_init(&j.args);

    cli_progress_start("eval");
    bool good =
        open_inputs(&j) && load_inputs(&j) && cli_find_device(&device) && cli_open(&session, &device, true);
    if (good) choose_outputs(&j);
    good = good && run(&j, &session) && (!j.indices || mean_nll(&j, &session, &nll)) && commit(&j);
    if (good) print_results(&j, &session, nll);
    cli_progress_stop();
    for (size_t i = 0; i < j.num_files; i++) npy_discard(&j.files[i]);
    npy_scratch_free(j.losses, j.rows * acc_bytes(&j));
    for (int t = 0; t < FIRST_OUTPUT; t++) {
        npy_scratch_free(j.converted[t], array_of(&j.args, t)->size);
        npy_close(&j.in[t]);
        free((char *)j.o.file[t]);
    }
    cli_close(&session);
    return good ? CLI_DONE : CLI_FAILED;
}
