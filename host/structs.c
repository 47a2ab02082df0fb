/* SPDX-License-Identifier: MIT
 *
 * structs.c - the structs that callers fill: their defaults, and how one of an older version is read. Calls no OpenCL
 * function.
 *
 * An older struct ends with one of the fields of ours. A struct_size that ends inside a field is a mistake: half of a
 * number or of a buffer would be read as the whole. It is refused.
 */
#include "internal.h"

#include <clxent/reference.h>

#include <string.h>

typedef struct field {
    size_t begin, end; /* bytes into its struct */
} field;

/* ---- Fields, in the order of the header ---------------------------------------------------- */

#define END(type, name) (offsetof(type, name) + sizeof(((type *)0)->name))
#define FIELD(type, name)                     \
    {                                         \
        offsetof(type, name), END(type, name) \
    }

/* Whoever appends a field to a struct appends it here, and here only. */
#define ENDS_WITH(type, name)                                       \
    _Static_assert(sizeof(type) - END(type, name) < _Alignof(type), \
                   "the table of fields ends with the struct's last")

#define DESC(name) FIELD(clxent_desc, name)
static const field desc_fields[] = {
    DESC(struct_size),
    DESC(op),
    DESC(outputs),
    DESC(dtype),
    DESC(gradient_dtype),
    DESC(target_type),
    DESC(reduction),
    DESC(batch),
    DESC(seq),
    DESC(classes),
    DESC(inner),
    DESC(row_stride),
    DESC(gradient_row_stride),
    DESC(probabilities_row_stride),
    DESC(target_row_stride),
    DESC(ignore_index),
    DESC(use_ignore_index),
    DESC(bad_target),
    DESC(all_ignored),
    DESC(gradient_mode),
    DESC(has_class_weights),
    DESC(has_row_weights),
    DESC(shift),
    DESC(label_smoothing),
    DESC(z_loss),
    DESC(logit_scale),
    DESC(softcap),
    DESC(gradient_padding),
    DESC(reserved),
};
ENDS_WITH(clxent_desc, reserved);

/* clxent_args and clxent_host_args list the same tensors. */
#define TENSORS(FIELD_OF)                                                                                   \
    FIELD_OF(logits), FIELD_OF(probabilities), FIELD_OF(targets), FIELD_OF(class_weights),                  \
        FIELD_OF(row_weights), FIELD_OF(upstream), FIELD_OF(denominator), FIELD_OF(losses), FIELD_OF(loss), \
        FIELD_OF(lse), FIELD_OF(softmax), FIELD_OF(log_softmax), FIELD_OF(gradient), FIELD_OF(argmax),      \
        FIELD_OF(correct), FIELD_OF(entropy), FIELD_OF(statistics), FIELD_OF(bad_targets), FIELD_OF(one_hot)

#define ARGS(name) FIELD(clxent_args, name)
static const field args_fields[] = { ARGS(struct_size), ARGS(outputs), ARGS(rows), TENSORS(ARGS),
                                     ARGS(workspace) };
ENDS_WITH(clxent_args, workspace);

#define HOST_ARGS(name) FIELD(clxent_host_args, name)
static const field host_args_fields[] = { HOST_ARGS(struct_size), HOST_ARGS(max_chunk_bytes),
                                          TENSORS(HOST_ARGS) };
ENDS_WITH(clxent_host_args, one_hot);

#define OPTIONS(name) FIELD(clxent_context_options, name)
static const field options_fields[] = { OPTIONS(struct_size), OPTIONS(log), OPTIONS(log_payload),
                                        OPTIONS(tuning), OPTIONS(store) };
ENDS_WITH(clxent_context_options, store);

#define RESULTS(name) FIELD(clxent_reference_results, name)
static const field results_fields[] = {
    RESULTS(struct_size),    RESULTS(losses),      RESULTS(losses_bound),      RESULTS(loss),
    RESULTS(loss_bound),     RESULTS(lse),         RESULTS(lse_bound),         RESULTS(softmax),
    RESULTS(softmax_bound),  RESULTS(log_softmax), RESULTS(log_softmax_bound), RESULTS(gradient),
    RESULTS(gradient_bound), RESULTS(entropy),     RESULTS(entropy_bound),     RESULTS(one_hot),
    RESULTS(argmax),         RESULTS(correct),     RESULTS(counted),           RESULTS(denominator),
    RESULTS(bad_targets),
};
ENDS_WITH(clxent_reference_results, bad_targets);

/* ---- Defaults ------------------------------------------------------------------------------ */

static const clxent_desc desc_defaults = CLXENT_DESC_INIT;
static const clxent_args args_defaults = CLXENT_ARGS_INIT;
static const clxent_host_args host_args_defaults = CLXENT_HOST_ARGS_INIT;
static const clxent_context_options options_defaults = CLXENT_CONTEXT_OPTIONS_INIT;
static const clxent_reference_results results_defaults = CLXENT_REFERENCE_RESULTS_INIT;

void clxent_desc_init(clxent_desc *desc) { *desc = desc_defaults; }

void clxent_args_init(clxent_args *args) { *args = args_defaults; }

void clxent_host_args_init(clxent_host_args *args) { *args = host_args_defaults; }

void clxent_context_options_init(clxent_context_options *options) { *options = options_defaults; }

void clxent_reference_results_init(clxent_reference_results *results) { *results = results_defaults; }

/* ---- Copies -------------------------------------------------------------------------------- */

static const struct layout {
    const char *prefix, *macro; /* for messages: "args.", "CLXENT_ARGS_INIT" */
    clxent_status refused;
    size_t size;
    const void *defaults;
    const field *fields;
    size_t count;
} layouts[] = {
#define LAYOUT(prefix, macro, refused, name)                                             \
    {                                                                                    \
        prefix, macro, refused, sizeof name##_defaults, &name##_defaults, name##_fields, \
            sizeof name##_fields / sizeof *name##_fields                                 \
    }
    [CLXENT_STRUCT_DESC] = LAYOUT("", "CLXENT_DESC_INIT", CLXENT_ERROR_INVALID_DESC, desc),
    [CLXENT_STRUCT_ARGS] = LAYOUT("args.", "CLXENT_ARGS_INIT", CLXENT_ERROR_INVALID_ARGUMENT, args),
    [CLXENT_STRUCT_HOST_ARGS] =
        LAYOUT("args.", "CLXENT_HOST_ARGS_INIT", CLXENT_ERROR_INVALID_ARGUMENT, host_args),
    [CLXENT_STRUCT_CONTEXT_OPTIONS] =
        LAYOUT("options.", "CLXENT_CONTEXT_OPTIONS_INIT", CLXENT_ERROR_INVALID_ARGUMENT, options),
    [CLXENT_STRUCT_REFERENCE_RESULTS] =
        LAYOUT("results.", "CLXENT_REFERENCE_RESULTS_INIT", CLXENT_ERROR_INVALID_ARGUMENT, results),
#undef LAYOUT
};

/* Where a field ends, or where the next begins: a struct that ended with the field before is padded up to there. */
static bool ends_with_a_field(const struct layout *layout, size_t size)
{
    if (size == layout->size) return true;
    for (size_t i = 0; i < layout->count; i++) {
        if (size == layout->fields[i].end || (i > 0 && size == layout->fields[i].begin)) return true;
    }
    return false;
}

clxent_status clxent_struct_copy(clxent_struct kind, void *to, const void *from, char *text, size_t size)
{
    const struct layout *layout = &layouts[kind];
    size_t theirs;

    memcpy(&theirs, from, sizeof theirs);
    if (!ends_with_a_field(layout, theirs)) {
        return clxent_fail_text(
            text, size, layout->refused,
            "%sstruct_size is %zu: takes %zu to %zu bytes, up to the end of a field, as set by %s",
            layout->prefix, theirs, sizeof theirs, layout->size, layout->macro);
    }
    memcpy(to, layout->defaults, layout->size);
    memcpy(to, from, theirs);
    memcpy(to, &layout->size, sizeof layout->size);
    return CLXENT_OK;
}
