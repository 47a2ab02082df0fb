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
#include "eval.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* What a file holds. */
#undef NPY
#undef NO_NPY
#define NPY(flag, argument, help) flag
#define NO_NPY NULL
const struct eval_file eval_files[PATHS] = {
#define INPUT(name, NAME, element, shape, stride, operations, npy) { npy, ELEMENT_##element, SHAPE_##shape },
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, npy) \
    { npy, ELEMENT_##element, SHAPE_##shape },
#include "../../host/tensors.def"
    { "tuning", 0, 0 },
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
        const bool with_hidden = t == TENSOR_WEIGHT || t == TENSOR_BIAS ||
                                 (t >= FIRST_OUTPUT && (LINEAR_GRADIENTS >> (t - FIRST_OUTPUT) & 1u) != 0);
        if (o->path[t] == NULL) continue;
        if (!linear && with_hidden) argp_error(state, "--%s without --hidden", eval_files[t].flag);
        if (linear && t >= FIRST_OUTPUT && eval_files[t].shape == SHAPE_MATRIX)
            argp_error(state, "--%s with --hidden, whose logits are made chunk by chunk and never stored",
                       eval_files[t].flag);
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
                       eval_files[t].flag, o->path[t]);
        for (int k = 0; k < PATHS; k++)
            if (is_taken(k, t) && o->path[k] != NULL && strcmp(o->path[t], o->file[k]) == 0)
                argp_error(state, "--%s and --%s name the same file: each output takes its own",
                           eval_files[k].flag, eval_files[t].flag);
        d->outputs |= 1u << (t - FIRST_OUTPUT);
    }
    check_linear(o, state);
    if (o->path[TENSOR_LOGITS] == NULL && !linear)
        argp_error(state, "%s",
                   targets != NULL ? "--logits is required" : "--logits and --targets are required");
    if (targets == NULL && o->of_targets != NULL) argp_error(state, "--%s needs --targets", o->of_targets);
    if (targets == NULL && d->outputs == 0)
        argp_error(state, "--targets is required: only outputs that depend on the logits alone do without");
    if ((d->outputs & GRADIENTS) != 0) return;
    const char *gradients =
        linear ? "--hidden-grad-out, --weight-grad-out and --bias-grad-out" : "--grad-out";
    for (int t = 0; t < FIRST_OUTPUT; t++) {
        if (o->path[t] != NULL &&
            (t == TENSOR_GRAD_OUTPUT || t == TENSOR_GRAD_ENTROPY || t == TENSOR_GRAD_LSE))
            argp_error(state, "--%s without %s, the only result%s that it changes", eval_files[t].flag,
                       gradients, linear ? "s" : "");
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
    static const char *const npy_dtypes[] = { NULL, "f4", "f2", "u2", "f8" };
    const clxent_desc *d = &j->desc;
    const enum element element = eval_files[tensor].element;
    const bool is_gradient = element >= ELEMENT_GRADIENT && element <= ELEMENT_BIAS_GRADIENT;
    const uint32_t gradient = j->o.desc.gradient_dtype;
    const uint32_t dtype = element == ELEMENT_REAL        ? j->acc_dtype
                           : is_gradient && gradient != 0 ? gradient
                                                          : d->dtype;
    const size_t *shape = j->row_shape; /* that of index targets */
    size_t axes = j->row_axes;
    switch (eval_files[tensor].shape) {
    case SHAPE_MATRIX: shape = j->logits.shape, axes = j->logits.axes; break;
    case SHAPE_HIDDEN: shape = header_of(j, TENSOR_HIDDEN)->shape, axes = j->logits.axes; break;
    case SHAPE_WEIGHT: shape = header_of(j, TENSOR_WEIGHT)->shape, axes = 2; break;
    case SHAPE_CLASSES: shape = &d->classes, axes = 1; break;
    default: break;
    }
    npy_output *file = &j->files[j->num_files];
    npy_fault fault;

    if (!npy_create(file, j->o.path[tensor], element == ELEMENT_I64 ? "i8" : npy_dtypes[dtype], shape, axes,
                    &fault))
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
        args.logits = j->args.logits;
        args.hidden = j->args.hidden;
        args.weight = j->args.weight;
        args.bias = j->args.bias;
        args.targets = j->args.targets;
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
        if (eval_row_status(j, row) != ROW_COUNTS) continue;
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
    bool good = eval_open_inputs(&j) && eval_load_inputs(&j) && cli_find_device(&device) &&
                cli_open(&session, &device, true);
    if (good) choose_outputs(&j);
    good = good && run(&j, &session) && (!j.indices || mean_nll(&j, &session, &nll)) && commit(&j);
    if (good) {
        print_results(&j, &session, nll);
        cli_store_keep(session.store);
    }
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
