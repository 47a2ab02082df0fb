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

/* The files that eval reads and writes, and the options of clxent_desc that have flags: flag is NULL where there is none. */
#define NPY(flag, argument, help) flag, argument, help
#define NO_NPY NULL, NULL, NULL
#define EVAL(flag, argument, help) flag, argument, help
#define NO_FLAG NULL, NULL, NULL

enum {
#define INPUT(name, NAME, ...) IN_##NAME,
#include "../../host/tensors.def"
    INPUTS,
    TUNING = INPUTS, /* the file of --tuning, among the paths */
    FIRST_RESULT
};
enum element { ELEMENT_DTYPE, ELEMENT_GRADIENT, ELEMENT_REAL, ELEMENT_I64, ELEMENT_U64, ELEMENT_RECORD };
enum shape { SHAPE_ONE, SHAPE_ROWS, SHAPE_PAIRS, SHAPE_MATRIX };

static const struct npy_input {
    const char *flag, *argument, *help;
    size_t field; /* of clxent_host_args */
} inputs[INPUTS] = {
#define INPUT(name, NAME, element, shape, stride, operations, npy) { npy, offsetof(clxent_host_args, name) },
#include "../../host/tensors.def"
};

static const struct result {
    const char *flag, *argument, *help;
    uint32_t bit;
    enum element element;
    enum shape shape;
    size_t field; /* of clxent_host_args */
} results[] = {
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, npy) \
    { npy, CLXENT_OUTPUT_##NAME, ELEMENT_##element, SHAPE_##shape, offsetof(clxent_host_args, name) },
#include "../../host/tensors.def"
};
enum { RESULTS = sizeof results / sizeof *results, PATHS = FIRST_RESULT + RESULTS };

#define ENUMERATION(name, prefix, first, values) enum { FIRST_##name = first };
#include "../../host/options.def"

static const struct desc_option {
    const char *flag, *argument, *help;
    enum { KIND_ENUM, KIND_FLAG, KIND_SIZE, KIND_I64, KIND_REAL } kind;
    size_t field;                                               /* of clxent_desc */
    uint32_t first;                                             /* value of an enumeration */
    enum { ANY, FRACTION, NOT_NEGATIVE, FINITE, NORMAL } takes; /* a number */
} desc_options[] = {
#define CHOICE(name, enumeration, initial, eval) \
    { eval, KIND_ENUM, offsetof(clxent_desc, name), FIRST_##enumeration, ANY },
#define OPTION(name, kind, initial, acts, constant, ...) \
    { __VA_ARGS__, KIND_##kind, offsetof(clxent_desc, name), 0, ANY },
#define NUMBER(name, initial, takes, acts, constant, parameter, draws, eval) \
    { eval, KIND_REAL, offsetof(clxent_desc, name), 0, takes },
#include "../../host/options.def"
};
enum { OPTIONS = sizeof desc_options / sizeof *desc_options };

typedef struct desc_options {
    cli_common common;
    bool bf16;
    int64_t class_axis;
    bool has_denominator;
    double denominator;
    clxent_desc desc;        /* the options that are its fields */
    const char *path[PATHS]; /* inputs, --tuning, results; NULL: not given */
} options;

enum {
    KEY_BF16 = 0x100,
    KEY_CLASS_AXIS,
    KEY_DENOMINATOR,
    KEY_PATH,                     /* + index in options.path */
    KEY_OPTION = KEY_PATH + PATHS /* + index in desc_options */
};

/* dtypes begin at 1 */
static const char *const reductions[] = { "mean", "sum", "none" };
static const char *const dtypes[] = { "f32", "f16", "bf16", "f64" };
static const char *const npy_dtypes[] = { "f4", "f2", "u2", "f8" };

static const struct argp_option fixed_options[] = {
    { NULL, 0, NULL, 0, "Inputs (.npy, versions 1 to 3, C or Fortran order, either byte order):", 1 },
    { "bf16", KEY_BF16, NULL, 0,
      "The logits' 2-byte items are bf16 bits; so are 2-byte outputs (default: off)", 1 },
    { "class-axis", KEY_CLASS_AXIS, "N", 0,
      "Axis of the logits that counts classes; negative: from the end (default: -1)", 1 },
    { NULL, 0, NULL, 0, "The loss:", 2 },
    { "denominator", KEY_DENOMINATOR, "D", 0,
      "Divides the reduced loss and the gradient (default: with mean the weights of the rows that count, "
      "else 1)",
      2 },
    { NULL, 0, NULL, 0, "Outputs (.npy in C order; f4, f8 for f8 logits, where not said otherwise):", 3 },
};
enum { FIXED_OPTIONS = sizeof fixed_options / sizeof *fixed_options };

static const char *flag_of(int path)
{
    return path < INPUTS ? inputs[path].flag : path == TUNING ? "tuning" : results[path - FIRST_RESULT].flag;
}

/* What can be said of the flags without their files. */
static void check_flags(options *o, struct argp_state *state)
{
    const char *logits = o->path[IN_LOGITS], *targets = o->path[IN_TARGETS];

    o->path[TUNING] = cli_tuning_file;
    if (logits == NULL || targets == NULL)
        argp_error(state, "%s",
                   logits != NULL    ? "--targets is required"
                   : targets != NULL ? "--logits is required"
                                     : "--logits and --targets are required");
    for (int i = FIRST_RESULT; i < PATHS; i++) {
        for (int k = 0; k < i; k++) {
            if (o->path[i] != NULL && o->path[k] != NULL && strcmp(o->path[i], o->path[k]) == 0)
                argp_error(state, "--%s and --%s name the same file: each output takes its own", flag_of(k),
                           flag_of(i));
        }
        if (o->path[i] != NULL) o->desc.outputs |= results[i - FIRST_RESULT].bit;
    }
    if ((o->desc.outputs & CLXENT_OUTPUT_GRADIENT) != 0) return;
    if (o->path[IN_GRAD_OUTPUT] != NULL)
        argp_error(state, "--grad-output without --grad-out, the only result that it changes");
    if (o->desc.gradient_dtype != 0)
        argp_error(state, "--grad-dtype without --grad-out, the file whose dtype it is");
}

static void parse_option(const struct desc_option *option, clxent_desc *desc, const char *text,
                         struct argp_state *state)
{
    static const struct {
        double least, most;
    } limits[] = { [FRACTION] = { 0, 1 },
                   [NOT_NEGATIVE] = { 0, DBL_MAX },
                   [FINITE] = { -DBL_MAX, DBL_MAX },
                   [NORMAL] = { 0, DBL_MAX } };
    void *field = (char *)desc + option->field;

    switch (option->kind) {
    case KIND_ENUM:
        *(uint32_t *)field = option->first + cli_choice(state, option->flag, text, option->argument);
        break;
    case KIND_SIZE: *(size_t *)field = cli_size(state, option->flag, text, 0); break;
    case KIND_REAL:
        *(double *)field =
            cli_number(state, option->flag, text, limits[option->takes].least, limits[option->takes].most);
        break;
    case KIND_I64: /* ignore_index */
        desc->use_ignore_index = strcmp(text, "none") != 0;
        if (desc->use_ignore_index)
            *(int64_t *)field = cli_integer(state, option->flag, text, "a 64-bit integer or 'none'");
        break;
    case KIND_FLAG: break; /* has no argument */
    }
}

static error_t parse(int key, char *text, struct argp_state *state)
{
    options *o = state->input;

    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; return 0;
    case ARGP_KEY_END: check_flags(o, state); return 0;
    case KEY_BF16: o->bf16 = true; return 0;
    case KEY_CLASS_AXIS: o->class_axis = cli_integer(state, "class-axis", text, "an axis"); return 0;
    case KEY_DENOMINATOR:
        o->denominator = cli_number(state, "denominator", text, -DBL_MAX, DBL_MAX);
        o->has_denominator = true;
        return 0;
    default: break;
    }
    if (key < KEY_PATH || key >= KEY_OPTION + OPTIONS) return ARGP_ERR_UNKNOWN;
    if (key >= KEY_OPTION) parse_option(&desc_options[key - KEY_OPTION], &o->desc, text, state);
    else o->path[key - KEY_PATH] = cli_path(state, flag_of(key - KEY_PATH), text);
    return 0;
}

static void add_flag(struct argp_option **next, int key, const char *flag, const char *argument,
                     const char *help, int group)
{
    if (flag != NULL) *(*next)++ = (struct argp_option){ flag, key, argument, 0, help, group };
}

static void parse_options(options *o, int argc, char **argv)
{
    static const char *const about =
        "Computes softmax cross-entropy of logits against targets, both .npy files, on an OpenCL device.\v"
        "Prints rows, ignored rows (ignored targets, masked or shifted-off rows), rows with a bad "
        "target, classes, the loss, the perplexity (exp of the mean unweighted negative log-likelihood "
        "of the rows that count), the accuracy over the same rows, the time of the run, the time of "
        "compiling its kernels, and the bytes of inputs and outputs by the time of the run. Compiling is"
        " what precedes the run: kernels are built, then launched once on a few rows, as some drivers "
        "compile only at the first launch: one row, one slab with a strided class axis, whole"
        " sequences with --shift, and some 4100 rows where the run has more and they have at most "
        "8388608 logits. Where one row, slab or sequence has more logits than that it is left out, and "
        "what the driver compiles then counts as the run. Accuracy and --argmax-out look for the largest"
        " of --logit-scale times the logits, before --softcap, which would make equal what it saturates."
        " A file that cannot be used, or a target that is no class, is exit status 1 and leaves no "
        "output; wrong flags are 2.";
    struct argp_option list[FIXED_OPTIONS + PATHS + OPTIONS + 1] = { { 0 } }, *next = list + FIXED_OPTIONS;
    const struct argp argp = { list, parse, NULL, about, cli_common_options, NULL, NULL };

    memcpy(list, fixed_options, sizeof fixed_options);
    for (int i = 0; i < INPUTS; i++)
        add_flag(&next, KEY_PATH + i, inputs[i].flag, inputs[i].argument, inputs[i].help, 1);
    for (int i = 0; i < OPTIONS; i++) {
        const struct desc_option *option = &desc_options[i];
        add_flag(&next, KEY_OPTION + i, option->flag, option->argument, option->help, 2);
    }
    for (int i = 0; i < RESULTS; i++)
        add_flag(&next, KEY_PATH + FIRST_RESULT + i, results[i].flag, results[i].argument, results[i].help,
                 3);
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
    input in[INPUTS];
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
    const npy_header *h = &j->in[IN_LOGITS].array.header;
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
        cli_fail(j->in[IN_LOGITS].path, "dtype %s: logits take %s", npy_dtype_text(h).text, takes);
        return false;
    }
    if (axis < 0 || axis >= axes) {
        if (axes == 0) cli_fail(j->in[IN_LOGITS].path, "shape (): logits take a class axis");
        else
            cli_fail(j->in[IN_LOGITS].path,
                     "--class-axis %" PRId64 ": shape %s takes %" PRId64 " to %" PRId64, j->o.class_axis,
                     npy_shape_text(h->shape, h->axes).text, -axes, axes - 1);
        return false;
    }
    j->desc.classes = h->shape[axis];
    if (j->desc.classes == 0) {
        cli_fail(j->in[IN_LOGITS].path, "shape %s has no classes: axis %" PRId64 " takes at least 1",
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
    const npy_header *h = &j->in[IN_TARGETS].array.header, *logits = &j->in[IN_LOGITS].array.header;
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
        return check_shape(&j->in[IN_TARGETS], logits->shape, logits->axes, "probabilities");
    } else {
        cli_fail(j->in[IN_TARGETS].path,
                 "dtype %s: targets take u1, i4 or i8 (classes), f4 or the logits' dtype (probabilities)%s",
                 npy_dtype_text(h).text,
                 h->kind == 'V' && is_bits16(h) ? "; bf16 needs --bf16, and logits of it" : "");
        return false;
    }
    const size_t axis = fitting_axis(logits, h);
    if (same_shape(h, j->row_shape, j->row_axes) || axis == logits->axes)
        return check_shape(&j->in[IN_TARGETS], j->row_shape, j->row_axes, "targets");
    cli_fail(j->in[IN_TARGETS].path,
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

static bool check_weight(const input *in, const size_t *shape, size_t axes, const char *what)
{
    return in->path == NULL || (check_real(in, what) && check_shape(in, shape, axes, what));
}

static bool check_weights(job *j)
{
    const npy_header *g = &j->in[IN_GRAD_OUTPUT].array.header;

    j->desc.has_class_weights = j->in[IN_CLASS_WEIGHTS].path != NULL;
    j->desc.has_row_weights = j->in[IN_ROW_WEIGHTS].path != NULL;
    if (!check_weight(&j->in[IN_CLASS_WEIGHTS], &j->desc.classes, 1, "class weights") ||
        !check_weight(&j->in[IN_ROW_WEIGHTS], j->row_shape, j->row_axes, "row weights"))
        return false;
    if (j->in[IN_GRAD_OUTPUT].path != NULL) {
        const bool each = j->desc.reduction == CLXENT_REDUCTION_NONE;
        if (!check_real(&j->in[IN_GRAD_OUTPUT], "values of --grad-output")) return false;
        if (g->count != 1 && !(each && same_shape(g, j->row_shape, j->row_axes))) {
            cli_fail(j->in[IN_GRAD_OUTPUT].path, "shape %s: --grad-output takes one value%s%s",
                     npy_shape_text(g->shape, g->axes).text, each ? " or " : " with this --reduction",
                     each ? npy_shape_text(j->row_shape, j->row_axes).text : "");
            return false;
        }
    }
    return true;
}

/* The numbers as `real` takes them. The library checks them too, by the names of its fields. */
static bool check_numbers(const job *j, const char *path, const char *dtype)
{
    const double largest = j->f64 ? DBL_MAX : (double)FLT_MAX;
    const double smallest = j->f64 ? DBL_MIN : (double)FLT_MIN; /* no subnormal: it has no reciprocal */

    for (int i = 0; i < OPTIONS; i++) {
        const struct desc_option *option = &desc_options[i];
        double value;
        if (option->kind != KIND_REAL) continue;
        memcpy(&value, (const char *)&j->desc + option->field, sizeof value);
        if (fabs(value) <= largest && (option->takes != NORMAL || value == 0 || value >= smallest)) continue;
        cli_fail(path, "--%s %g: takes %sa number from %g to %g with %s logits", option->flag, value,
                 option->takes == NORMAL ? "0 (off) or " : "",
                 option->takes == NORMAL   ? smallest
                 : option->takes == FINITE ? -largest
                                           : 0,
                 largest, dtype);
        return false;
    }
    return true;
}

/* The options that depend on the logits' dtype and shape. */
static bool check_options(job *j)
{
    const clxent_desc *d = &j->desc;
    const npy_header *h = &j->in[IN_LOGITS].array.header;
    const char *path = j->in[IN_LOGITS].path, *dtype = dtypes[d->dtype - CLXENT_F32];
    const double divisor = j->o.denominator;

    j->denominator_f32 = (float)divisor;
    if (j->f64 ? d->gradient_dtype == CLXENT_F16 || d->gradient_dtype == CLXENT_BF16
               : d->gradient_dtype == CLXENT_F64)
        cli_fail(path, "--grad-dtype %s: takes %s with %s logits", dtypes[d->gradient_dtype - CLXENT_F32],
                 j->f64 ? "f64 or f32" : "f32, f16 or bf16", dtype);
    else if (!check_numbers(j, path, dtype)) return false;
    else if (!j->f64 && (isinf(j->denominator_f32) || (j->denominator_f32 == 0) != (divisor == 0)))
        cli_fail(path, "--denominator %g: takes an f32 number with %s logits", divisor, dtype);
    else if (!j->indices && d->use_ignore_index && d->ignore_index >= 0)
        cli_fail(j->in[IN_TARGETS].path,
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
    const char *const *path = j->o.path;
    char *resolved[PATHS] = { NULL };
    npy_fault fault;
    bool good = true;

    for (int i = FIRST_RESULT; i < PATHS && good; i++) {
        int other = -1;
        if (path[i] == NULL) continue;
        for (int k = 0; k < FIRST_RESULT && other < 0; k++)
            if (path[k] != NULL && npy_one_file(path[i], path[k])) other = k;
        if (other < 0 && !npy_can_write(path[i], &resolved[i], &fault)) {
            cli_fail(path[i], "%s", fault.text);
            good = false;
            break;
        }
        for (int k = FIRST_RESULT; k < i && other < 0; k++)
            if (resolved[k] != NULL &&
                (strcmp(resolved[k], resolved[i]) == 0 || npy_one_file(resolved[k], resolved[i])))
                other = k;
        good = other < 0;
        if (!good)
            cli_fail(path[i], "--%s and --%s name the same file: each output takes its own", flag_of(other),
                     flag_of(i));
    }
    for (int i = 0; i < PATHS; i++) free(resolved[i]);
    return good;
}

/* Headers only: nothing is read that a wrong shape would make useless. */
static bool open_inputs(job *j)
{
    char text[512];

    for (int i = 0; i < INPUTS; i++) {
        if (!open_input(&j->in[i], j->o.path[i])) return false;
        if (i == IN_LOGITS && !check_logits(j)) return false;
        if (i == IN_TARGETS && !check_targets(j)) return false;
    }
    if (!check_weights(j) || !check_options(j) || !check_outputs(j)) return false;
    if (clxent_desc_check(&j->desc, text, sizeof text) != CLXENT_OK) {
        cli_fail(j->in[IN_LOGITS].path, "%s", text);
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
    const char *fault = in == &j->in[IN_CLASS_WEIGHTS] && !isfinite(value) ? "takes a finite number"
                        : j->f64 || !isfinite(value)                       ? NULL
                        : fabs(value) > (double)FLT_MAX                    ? "too large for f32"
                        : in != &j->in[IN_GRAD_OUTPUT] && value != 0 && (float)value == 0
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
    const void *data = j->in[IN_TARGETS].use.data;
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
    const void *weights = j->in[IN_ROW_WEIGHTS].use.data;
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
    cli_fail(j->in[IN_TARGETS].path,
             "row %zu: target %" PRId64 " at %s is out of range: takes 0 to %zu%s (%" PRIu64 " bad row%s)",
             first, target_at(j, at), npy_shape_text(index, j->row_axes).text, j->desc.classes - 1, ignored,
             j->bad, j->bad == 1 ? "" : "s");
    return false;
}

/* ---- The run -------------------------------------------------------------------------------- */

static void set_array(clxent_host_args *args, size_t field, const void *data, size_t size)
{
    const clxent_input array = { data, size }; /* outputs are alike, but for const */
    memcpy((char *)args + field, &array, sizeof array);
}

/* What the files and what is printed need: the row losses give the perplexity. */
static void choose_outputs(job *j)
{
    j->desc.outputs = j->o.desc.outputs | CLXENT_OUTPUT_LOSSES;
    if (j->desc.reduction != CLXENT_REDUCTION_NONE) j->desc.outputs |= CLXENT_OUTPUT_LOSS;
    if (j->indices) j->desc.outputs |= CLXENT_OUTPUT_CORRECT;
}

static bool create_outputs(job *j)
{
    const npy_header *h = &j->in[IN_LOGITS].array.header;
    const uint32_t gradient = j->desc.gradient_dtype != 0 ? j->desc.gradient_dtype : j->desc.dtype;
    npy_fault fault;

    for (size_t i = 0; i < RESULTS; i++) {
        const struct result *r = &results[i];
        npy_output *file = &j->files[j->num_files];
        const char *dtype = r->element == ELEMENT_I64        ? "i8"
                            : r->element == ELEMENT_REAL     ? (j->f64 ? "f8" : "f4")
                            : r->element == ELEMENT_GRADIENT ? npy_dtypes[gradient - CLXENT_F32]
                                                             : npy_dtypes[j->desc.dtype - CLXENT_F32];
        const bool has_classes = r->shape == SHAPE_MATRIX; /* else the logits' shape without the class axis */
        if (j->o.path[FIRST_RESULT + i] == NULL) continue;
        if (!npy_create(file, j->o.path[FIRST_RESULT + i], dtype, has_classes ? h->shape : j->row_shape,
                        has_classes ? h->axes : j->row_axes, &fault)) {
            cli_fail(j->o.path[FIRST_RESULT + i], "%s", fault.text);
            return false;
        }
        j->file_result[j->num_files++] = i;
        set_array(&j->args, r->field, file->data, file->bytes);
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
    cli_fail_status(session->ctx, of_input ? j->in[IN_LOGITS].path : session->device.name, status);
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

    for (int i = 0; i < INPUTS; i++) {
        set_array(&j->args, inputs[i].field, j->in[i].use.data, j->in[i].use.size);
        j->bytes_moved += (double)j->in[i].use.size;
    }
    if (j->o.has_denominator) {
        j->args.denominator =
            (clxent_input){ j->f64 ? (const void *)&j->o.denominator : (const void *)&j->denominator_f32,
                            real_bytes(j) };
    }

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
    const size_t bytes = j->rows * real_bytes(j);
    const void *losses = j->args.losses.data;
    void *own = NULL;
    double sum = 0, lost = 0;

    if (make_plain(&desc)) {
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
    j.desc.outputs = CLXENT_OUTPUT_LOSSES; /* the others once the targets are known */
    clxent_host_args_init(&j.args);

    if (!open_inputs(&j)) goto done;
    cli_progress_start("eval");
    if (!load(&j.in[IN_TARGETS]) || !load_real(&j, &j.in[IN_ROW_WEIGHTS], j.rows) || !judge_rows(&j))
        goto done;
    if (!load(&j.in[IN_LOGITS]) || !load_real(&j, &j.in[IN_CLASS_WEIGHTS], j.desc.classes)) goto done;
    if (!load_real(&j, &j.in[IN_GRAD_OUTPUT], j.desc.reduction == CLXENT_REDUCTION_NONE ? j.rows : 1))
        goto done;
    if (!cli_find_device(&device, j.o.common.device) || !cli_open_stored(&session, &device)) goto done;
    choose_outputs(&j);
    if (!compile(&j, &session) || !create_outputs(&j) || !run(&j, &session)) goto done;
    if (j.indices && !mean_nll(&j, &session, &nll)) goto done;
    if (!npy_commit(j.files, j.num_files, &failed, &fault)) {
        cli_fail(j.o.path[FIRST_RESULT + j.file_result[failed]], "%s", fault.text);
        j.num_files = 0;
        goto done;
    }
    print_results(&j, &session, nll);
    cli_store_keep(session.store);
    status = CLI_DONE;

done:
    cli_progress_stop();
    for (size_t i = 0; i < j.num_files; i++) npy_discard(&j.files[i]);
    npy_scratch_free(j.losses, j.rows * real_bytes(&j));
    for (int i = 0; i < INPUTS; i++) close_input(&j.in[i]);
    cli_close(&session);
    return status;
}
