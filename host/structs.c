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

/* ---- Fields -------------------------------------------------------------------------------- */

#define FIELD_OF(type, name)                                             \
    {                                                                    \
        offsetof(type, name), offsetof(type, name) + SIZE_OF(type, name) \
    }
#define SIZE_OF(type, name) sizeof(((type *)0)->name)
/* Where sizes have 64 bits a field that a table lacks shows in the struct's size. */
#define LISTS_ALL(type, bytes) \
    _Static_assert(sizeof(size_t) != 8 || (bytes) == sizeof(type), "a field of " #type " is missing")

static const field desc_fields[] = {
    FIELD_OF(clxent_desc, struct_size),
#define FIELD(name, kind, initial) FIELD_OF(clxent_desc, name),
#include "options.def"
};
enum {
    DESC_BYTES = sizeof(size_t)
#define FIELD(name, kind, initial) +SIZE_OF(clxent_desc, name)
#include "options.def"
};
LISTS_ALL(clxent_desc, DESC_BYTES);

static const field args_fields[] = {
    FIELD_OF(clxent_args, struct_size), FIELD_OF(clxent_args, outputs),    FIELD_OF(clxent_args, rows),
    FIELD_OF(clxent_args, workspace),   FIELD_OF(clxent_args, total_rows), FIELD_OF(clxent_args, first_row),
    FIELD_OF(clxent_args, part),        FIELD_OF(clxent_args, reserved),
#define INPUT(name, ...) FIELD_OF(clxent_args, name),
#define OUTPUT(name, ...) FIELD_OF(clxent_args, name),
#include "tensors.def"
};
LISTS_ALL(clxent_args, 6 * sizeof(size_t) + (CLXENT_TENSORS + 1) * sizeof(clxent_buffer));

static const field host_args_fields[] = {
    FIELD_OF(clxent_host_args, struct_size),
    FIELD_OF(clxent_host_args, max_chunk_bytes),
#define INPUT(name, ...) FIELD_OF(clxent_host_args, name),
#define OUTPUT(name, ...) FIELD_OF(clxent_host_args, name),
#include "tensors.def"
};
LISTS_ALL(clxent_host_args, 2 * sizeof(size_t) + CLXENT_TENSORS * sizeof(clxent_output));

#define OPTIONS(name) FIELD_OF(clxent_context_options, name)
static const field options_fields[] = { OPTIONS(struct_size), OPTIONS(log), OPTIONS(log_payload),
                                        OPTIONS(tuning), OPTIONS(store) };
LISTS_ALL(clxent_context_options,
          sizeof(size_t) + 3 * sizeof(void *) + SIZE_OF(clxent_context_options, store));

#define RESULT(name) FIELD_OF(clxent_reference_results, name),
#define RESULT_BOUNDED(name) RESULT(name) RESULT(name##_bound)
#define RESULT_EXACT(name) RESULT(name)
#define RESULT_INTEGER(name) RESULT(name)
#define RESULT_OPAQUE(name)
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, file) \
    RESULT_##reference(name)
static const field results_fields[] = {
    FIELD_OF(clxent_reference_results, struct_size),
    FIELD_OF(clxent_reference_results, denominator),
    FIELD_OF(clxent_reference_results, argmax_allowed),
#include "tensors.def"
};
LISTS_ALL(clxent_reference_results, sizeof(results_fields) / sizeof *results_fields * sizeof(void *));

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
