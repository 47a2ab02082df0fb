/* SPDX-License-Identifier: MIT
 *
 * host_arrays.c - the blocking call for arrays in host memory: cuts the rows into parts that fit the device,
 * moves them there and back, and gives the bits of one run over all rows.
 *
 * Every array has one of three scopes, which say what a device buffer holds of it. Call: all of it ([1], [classes]
 * and [classes, features]). Span: the rows of a span ([rows] arrays), which is the whole batch unless the device has no
 * buffers that large. Part: the rows of a part ([rows, classes] and [rows, features] arrays). A part occupies one of a few
 * slots, each with a buffer for every array of its scope. On a device that shares the host's memory the buffers are windows
 * over the caller's arrays; on others three queues upload, compute and download different slots at the same time.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One part in each of the three stages at a time: with two, a part's upload would wait for the download
 * of the one before last, and each stage would idle a third of the time. */
enum { SLOTS = 3 };

/* Copied parts are no larger than this unless one row needs it: the first upload and the last download
 * overlap with nothing, so the fewer bytes in them the better, while 64 MiB still take milliseconds
 * on the fastest links, a hundred times a launch. */
#define COPIED_PART_BYTES ((size_t)64 << 20)

/* A row count of 0 still needs buffers to name. */
enum { EMPTY_BUFFER_BYTES = 64, TEXT_SIZE = 256 };

typedef enum scope { SCOPE_CALL, SCOPE_SPAN, SCOPE_PART } scope;

typedef struct tensor {
    bool used;
    bool input, output; /* a gradient is both when accumulating */
    scope scope;
    char *data;   /* the caller's; written only where output */
    size_t bytes; /* from its first to its last element */
    /* bytes of an item, from item to item: of a row, in SCOPE_PART of a slab, in SCOPE_CALL of a class or of all */
    size_t width, pitch;
    size_t count; /* items, in SCOPE_CALL */
} tensor;

typedef struct device_buffer {
    cl_mem mem;
    bool wrapped; /* a window over the caller's memory, nothing to copy */
    bool filled;  /* an input in SCOPE_CALL or SCOPE_SPAN: is there, or on its way */
} device_buffer;

typedef struct slot {
    device_buffer buffers[CLXENT_TENSORS];
    cl_event done; /* of the part that used the slot last; NULL: free */
} slot;

typedef struct run {
    clxent_context *ctx;
    clxent_desc desc;
    size_t rows, span_rows, part_rows; /* of the batch; most of a span, of a part */
    size_t slot_count;
    bool copy, in_place;
    bool busy; /* something was enqueued that nobody has waited for */
    tensor tensors[CLXENT_TENSORS];
    clxent_plan *plan;
    cl_command_queue upload, compute, download; /* in-order; one and the same unless copying */
    cl_mem workspace;
    size_t span_first;                  /* of the span that `held` has */
    device_buffer held[CLXENT_TENSORS]; /* SCOPE_CALL, SCOPE_SPAN */
    slot slots[SLOTS];
    struct { /* what the first pass found; the caller's arrays get it once targets are known to be good */
        clxent_bad_targets bad_targets;
        double computed_denominator; /* or a float */
        uint64_t counted;
    } found;
    char *callers[CLXENT_TENSORS]; /* of these outputs, the caller's arrays; optional */
} run;

static bool is_input(clxent_tensor t) { return t < CLXENT_TENSOR_LOSSES; }

static void set_field(clxent_args *args, clxent_tensor t, cl_mem mem)
{
    *clxent_tensor_buffer(args, t) = (clxent_buffer){ mem, 0 };
}

/* ---- What the caller gave ------------------------------------------------------------------ */

/* The items of a tensor: what is moved of it, and what lies between. */
static void find_items(const run *r, clxent_tensor t, const clxent_need *need, tensor *own)
{
    const clxent_desc *desc = &r->desc;
    const bool pads = t == CLXENT_TENSOR_GRADIENT && desc->gradient_padding == CLXENT_GRADIENT_PADDING_ZERO;
    const size_t stride = t == CLXENT_TENSOR_WEIGHT            ? desc->weight_row_stride
                          : t == CLXENT_TENSOR_WEIGHT_GRADIENT ? desc->weight_gradient_row_stride
                                                               : 0;
    const bool features =
        t == CLXENT_TENSOR_HIDDEN || t == CLXENT_TENSOR_HIDDEN_GRADIENT || stride > desc->features;

    own->count = 1;
    own->pitch = own->width = need->row_bytes > 0 ? need->row_bytes : need->bytes;
    if (features) own->width = desc->features * need->element_size;
    else if (need->is_matrix && !pads) own->width = desc->classes * desc->inner * need->element_size;
    if (own->scope != SCOPE_CALL || !features) return;
    own->pitch = stride * need->element_size;
    own->count = desc->classes;
}

static clxent_status read_tensor(run *r, clxent_tensor t, clxent_host_args *args)
{
    tensor *own = &r->tensors[t];
    const char *name = clxent_tensor_name(t);
    const clxent_output field = *clxent_tensor_array(args, t);
    char text[TEXT_SIZE] = "";
    clxent_need need;

    const clxent_status status =
        clxent_tensor_need(&r->desc, r->desc.outputs, false, r->rows, t, &need, text, sizeof text);
    if (status != CLXENT_OK) return clxent_fail(r->ctx, status, "%s", text);
    if (need.use == CLXENT_UNUSED) return CLXENT_OK;
    if (field.data == NULL && need.bytes > 0) {
        if (need.use == CLXENT_OPTIONAL) return CLXENT_OK;
        return clxent_fail(r->ctx, CLXENT_ERROR_NULL_ARGUMENT, "%s is NULL: takes an array of %s = %zu bytes",
                           name, need.shape, need.bytes);
    }
    if (field.size < need.bytes) {
        return clxent_fail(r->ctx, CLXENT_ERROR_BUFFER_TOO_SMALL, "%s: needs %s = %zu bytes, got %zu", name,
                           need.shape, need.bytes, field.size);
    }
    own->used = true;
    own->input = is_input(t) || clxent_accumulates(&r->desc, t);
    own->output = !is_input(t);
    own->scope = need.is_matrix ? SCOPE_PART : need.row_bytes > 0 ? SCOPE_SPAN : SCOPE_CALL;
    own->data = field.data;
    own->bytes = need.bytes;
    find_items(r, t, &need, own);
    return CLXENT_OK;
}

static size_t items(const run *r, const tensor *t, size_t rows)
{
    return t->scope == SCOPE_CALL ? t->count : t->scope == SCOPE_PART ? rows / r->desc.inner : rows;
}

/* From the first to the last element of so many rows. */
static size_t bytes_of(const run *r, const tensor *t, size_t rows)
{
    if (t->scope == SCOPE_CALL) return t->bytes;
    return rows == 0 ? 0 : (items(r, t, rows) - 1) * t->pitch + t->width;
}

static clxent_status check_overlaps(run *r)
{
    const tensor *logits = &r->tensors[CLXENT_TENSOR_LOGITS];
    const tensor *gradient = &r->tensors[CLXENT_TENSOR_GRADIENT];

    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *a = &r->tensors[i];
        const uintptr_t a_first = (uintptr_t)a->data, a_end = a_first + a->bytes;
        for (int j = 0; j < i; j++) {
            const tensor *b = &r->tensors[j];
            const uintptr_t b_first = (uintptr_t)b->data, b_end = b_first + b->bytes;
            if (a_first == a_end || b_first == b_end || a_end <= b_first || b_end <= a_first) continue;
            if (!a->output && !b->output) continue;
            if (a == gradient && b == logits && a_first == b_first) {
                r->in_place = true;
                continue;
            }
            return clxent_fail(r->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                               "%s overlaps %s: takes memory of its own; only gradient may be logits itself",
                               clxent_tensor_name((clxent_tensor)i), clxent_tensor_name((clxent_tensor)j));
        }
    }
    if (!r->in_place) return CLXENT_OK;
    if (r->desc.gradient_mode == CLXENT_GRADIENT_ACCUMULATE) {
        return clxent_fail(
            r->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
            "gradient is logits itself: takes memory of its own under CLXENT_GRADIENT_ACCUMULATE");
    }
    if (clxent_gradient_dtype(&r->desc) != r->desc.dtype || logits->pitch != gradient->pitch) {
        return clxent_fail(
            r->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
            "gradient is logits itself, as %s with %zu bytes from row to row: takes %s with %zu, as "
            "logits has, or memory of its own",
            clxent_dtype_name(clxent_gradient_dtype(&r->desc)), gradient->pitch,
            clxent_dtype_name(r->desc.dtype), logits->pitch);
    }
    /* One buffer for both holds the last slab's padding where the gradient's is written. */
    r->tensors[CLXENT_TENSOR_LOGITS].width = gradient->width;
    return CLXENT_OK;
}

static bool reports_bad_targets(const clxent_desc *desc)
{
    return desc->bad_target == CLXENT_BAD_TARGET_REPORT && clxent_targets_are_indices(desc) &&
           clxent_needs_targets(desc, desc->outputs);
}

/* ---- Spans and parts ----------------------------------------------------------------------- */

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static size_t clamp_size(cl_ulong value) { return value < SIZE_MAX ? (size_t)value : SIZE_MAX; }

static size_t saturating_add(size_t a, size_t b) { return a > SIZE_MAX - b ? SIZE_MAX : a + b; }

static size_t items_that_fit(size_t width, size_t pitch, size_t limit)
{
    return limit < width ? 0 : (limit - width) / pitch + 1;
}

/* Bytes of a row in all buffers of a span, and the loss and prediction that the workspace keeps of it. */
static size_t span_bytes_per_row(const run *r)
{
    size_t bytes = clxent_acc_size(&r->desc) + 1;
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        if (r->tensors[i].used && r->tensors[i].scope == SCOPE_SPAN) bytes += r->tensors[i].pitch;
    }
    return bytes;
}

static bool is_linear(const run *r) { return r->desc.op == CLXENT_OP_LINEAR_CROSS_ENTROPY; }

/* All rows, if their buffers fit into the largest allocation and a quarter of memory together. Linear cross-entropy takes
 * one span: hidden states, of which a row is longer, fill the host's memory before targets fill a buffer. */
static clxent_status choose_span(run *r, size_t limit, size_t memory)
{
    const size_t unit = is_linear(r) ? r->rows : smaller(clxent_span_unit(&r->desc), r->rows);
    /* An eighth of the workspace is for what else it holds: partial sums, pieces of rows. */
    size_t most = (limit - limit / 8) / (clxent_acc_size(&r->desc) + 1);
    const char *largest = "workspace";

    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        if (!t->used || t->scope != SCOPE_SPAN || limit / t->pitch >= most) continue;
        most = limit / t->pitch;
        largest = clxent_tensor_name((clxent_tensor)i);
    }
    if (most < unit) {
        return clxent_fail(
            r->ctx, CLXENT_ERROR_UNSUPPORTED,
            "%s: the device takes %zu bytes for one buffer, those of %zu rows; the smallest span "
            "of a batch has %zu",
            largest, limit, most, unit);
    }
    const size_t fit = smaller(most, memory / 4 / span_bytes_per_row(r));
    r->span_rows = fit >= r->rows ? r->rows : fit < unit ? unit : fit / unit * unit;
    return CLXENT_OK;
}

/* Arrays that are not cut: each in one buffer. */
static clxent_status check_call_arrays(const run *r, size_t limit)
{
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        if (!t->used || t->scope != SCOPE_CALL || t->bytes <= limit) continue;
        return clxent_fail(r->ctx, CLXENT_ERROR_UNSUPPORTED,
                           "%s takes %zu bytes, the device takes %zu for one buffer, and only rows are cut",
                           clxent_tensor_name((clxent_tensor)i), t->bytes, limit);
    }
    return CLXENT_OK;
}

/* Of a batch in parts of so many rows. */
static clxent_status measure_workspace(const run *r, size_t part_rows, size_t *bytes)
{
    clxent_plan_facts facts;
    CLXENT_TRY(clxent_plan_measure(&facts, r->ctx, &r->desc, NULL, r->rows, part_rows));
    *bytes = facts.workspace;
    return CLXENT_OK;
}

/* Lowers workspace_limit where memory wants it. Of a device with memory of its own it then takes away what parts cannot
 * have: the workspace, and the arrays that are not cut. */
static clxent_status choose_workspace(run *r, size_t *memory)
{
    size_t arrays = 0, least, workspace;

    for (int i = 0; i < CLXENT_TENSORS && r->copy; i++) {
        const tensor *t = &r->tensors[i];
        if (t->used && t->scope == SCOPE_CALL) arrays = saturating_add(arrays, t->bytes);
    }
    const size_t half = *memory > arrays ? (*memory - arrays) / 2 : 0;
    CLXENT_TRY(measure_workspace(r, 1, &least));
    CLXENT_TRY(measure_workspace(r, r->rows, &workspace));
    if (workspace > half) {
        r->desc.workspace_limit = half > least ? half : least;
        CLXENT_TRY(measure_workspace(r, r->rows, &workspace));
    }
    if (saturating_add(arrays, workspace) >= *memory) {
        return clxent_fail(r->ctx, CLXENT_ERROR_UNSUPPORTED,
                           "weight: the arrays that are not cut take %zu bytes and the workspace at least "
                           "%zu, the device has %zu in all",
                           arrays, least, *memory);
    }
    if (r->copy) *memory -= arrays + workspace;
    return CLXENT_OK;
}

/* clxent_part_unit()s that fit: each buffer in limit, all buffers of a slot in share. */
static size_t units_that_fit(const run *r, size_t limit, size_t share)
{
    size_t slabs = SIZE_MAX, width = 0, pitch = 0;
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        if (!t->used || t->scope != SCOPE_PART || (r->in_place && i == CLXENT_TENSOR_GRADIENT)) continue;
        slabs = smaller(slabs, items_that_fit(t->width, t->pitch, limit));
        width = saturating_add(width, t->width);
        pitch = saturating_add(pitch, t->pitch);
    }
    if (pitch > 0) slabs = smaller(slabs, items_that_fit(width, pitch, share));
    return slabs / (clxent_part_unit(&r->desc) / r->desc.inner);
}

static const char *describe_unit(const run *r, char *text, size_t size)
{
    const clxent_desc *desc = &r->desc;
    if (desc->shift == 0 && desc->inner == 1) {
        (void)snprintf(text, size, "one row");
    } else if (desc->shift == 0) {
        (void)snprintf(text, size, "one slab of %zu rows, as inner is %zu,", desc->inner, desc->inner);
    } else if (desc->inner == 1) {
        (void)snprintf(text, size, "one sequence of %zu rows, as targets are shifted,", desc->seq);
    } else {
        (void)snprintf(text, size, "%zu rows, whole slabs (inner is %zu) and shifted sequences (seq is %zu),",
                       clxent_part_unit(desc), desc->inner, desc->seq);
    }
    return text;
}

/* Says why not even one unit fits: max_chunk_bytes, the largest buffer, or all of them. */
static clxent_status refuse_part(const run *r, size_t max_chunk_bytes, size_t limit, size_t memory)
{
    const size_t unit = clxent_part_unit(&r->desc);
    size_t all = 0, largest = 0;
    const char *name = "";
    char text[128];

    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        if (!t->used || t->scope != SCOPE_PART || (r->in_place && i == CLXENT_TENSOR_GRADIENT)) continue;
        const size_t bytes = bytes_of(r, t, unit);
        all = saturating_add(all, bytes);
        if (bytes <= largest) continue;
        largest = bytes;
        name = clxent_tensor_name((clxent_tensor)i);
    }
    (void)describe_unit(r, text, sizeof text);
    if (max_chunk_bytes < largest && max_chunk_bytes < limit) {
        return clxent_fail(r->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "max_chunk_bytes is %zu: takes 0 or at least %zu, what %s of %s takes",
                           max_chunk_bytes, largest, text, name);
    }
    if (limit < largest) {
        return clxent_fail(
            r->ctx, CLXENT_ERROR_UNSUPPORTED,
            "%s: %s takes %zu bytes, the device takes %zu for one buffer, and rows are not cut", name, text,
            largest, limit);
    }
    return clxent_fail(r->ctx, CLXENT_ERROR_UNSUPPORTED,
                       "%s: %s takes %zu bytes in all arrays of [rows, %s], the device has %zu for them",
                       name, text, all, is_linear(r) ? "features] and [rows, classes" : "classes", memory);
}

/* Whole pages, or cache lines, lie between the beginnings of large parts: a window then shares none with the next. */
static size_t round_units(size_t units)
{
    static const size_t multiples[] = { 4096, 64 };
    for (size_t i = 0; i < sizeof multiples / sizeof *multiples; i++) {
        if (units >= multiples[i]) return units - units % multiples[i];
    }
    return units;
}

static clxent_status choose_part(run *r, size_t max_chunk_bytes, size_t limit, size_t memory)
{
    const size_t unit = clxent_part_unit(&r->desc);
    const size_t held = r->span_rows * span_bytes_per_row(r); /* a quarter of memory, or one unit */
    /* Half of the device: the rest is for the driver and other programs. */
    const size_t room = memory / 2 > held ? memory / 2 - held : 0;
    const size_t most = max_chunk_bytes > 0 ? smaller(max_chunk_bytes, limit) : limit;
    size_t units = units_that_fit(r, most, room / SLOTS);

    r->slot_count = SLOTS;
    while (units == 0 && r->slot_count > 1) {
        r->slot_count--;
        units = units_that_fit(r, most, room / r->slot_count);
    }
    if (units == 0) { /* beyond half of the device, one by one; windows are not the device's memory */
        const size_t rest = !r->copy ? SIZE_MAX : memory > held ? memory - held : 0;
        if (units_that_fit(r, most, rest) == 0)
            return refuse_part(r, max_chunk_bytes > 0 ? max_chunk_bytes : SIZE_MAX, limit, rest);
        units = 1;
    }
    if (r->copy && most > COPIED_PART_BYTES) {
        const size_t few = units_that_fit(r, COPIED_PART_BYTES, room / r->slot_count);
        units = few > 0 ? few : 1;
    }
    units = round_units(units);
    r->part_rows = units < r->span_rows / unit ? units * unit : r->span_rows;
    return CLXENT_OK;
}

/* Lets the first pass write the output to found. */
static void find_into(run *r, clxent_tensor t, void *found)
{
    r->callers[t] = r->tensors[t].data;
    r->tensors[t].data = found;
}

static clxent_status read_arguments(run *r, const clxent_desc *desc, const clxent_host_args *args)
{
    const clxent_device *device = &r->ctx->device;
    const size_t limit = clamp_size(device->max_allocation);
    size_t memory = clamp_size(device->global_memory);
    char text[TEXT_SIZE] = "";
    clxent_host_args own;
    clxent_status status = clxent_struct_copy(CLXENT_STRUCT_DESC, &r->desc, desc, text, sizeof text);

    if (status == CLXENT_OK) status = clxent_desc_check(&r->desc, text, sizeof text);
    if (status == CLXENT_OK)
        status = clxent_struct_copy(CLXENT_STRUCT_HOST_ARGS, &own, args, text, sizeof text);
    if (status != CLXENT_OK) return clxent_fail(r->ctx, status, "%s", text);

    r->rows = r->desc.batch * r->desc.seq;
    if (reports_bad_targets(&r->desc)) r->desc.outputs |= CLXENT_OUTPUT_BAD_TARGETS;
    for (int t = 0; t < CLXENT_TENSORS; t++) CLXENT_TRY(read_tensor(r, (clxent_tensor)t, &own));
    CLXENT_TRY(check_overlaps(r));
    /* The record is needed whether the caller wants it or not. */
    tensor *record = &r->tensors[CLXENT_TENSOR_BAD_TARGETS];
    const size_t record_bytes = sizeof r->found.bad_targets;
    if (reports_bad_targets(&r->desc)) {
        *record = (tensor){ .used = true,
                            .output = true,
                            .scope = SCOPE_CALL,
                            .data = record->data,
                            .bytes = record_bytes,
                            .width = record_bytes,
                            .pitch = record_bytes,
                            .count = 1 };
    }
    find_into(r, CLXENT_TENSOR_BAD_TARGETS, &r->found.bad_targets);
    find_into(r, CLXENT_TENSOR_COMPUTED_DENOMINATOR, &r->found.computed_denominator);
    find_into(r, CLXENT_TENSOR_COUNTED, &r->found.counted);
    r->slot_count = 1;
    CLXENT_TRY(check_call_arrays(r, limit));
    if (r->rows == 0) return CLXENT_OK;
    CLXENT_TRY(choose_span(r, limit, memory));
    if (is_linear(r)) CLXENT_TRY(choose_workspace(r, &memory));
    return choose_part(r, own.max_chunk_bytes, limit, memory);
}

/* ---- Device objects ------------------------------------------------------------------------ */

static clxent_status make_queue(run *r, cl_command_queue *queue)
{
    cl_int code;
    *queue = clCreateCommandQueue(r->ctx->cl, r->ctx->id, 0, &code);
    return clxent_check_cl(r->ctx, code, "clCreateCommandQueue");
}

static clxent_status make_buffer(run *r, cl_mem_flags flags, size_t bytes, cl_mem *mem)
{
    cl_int code;
    *mem = clCreateBuffer(r->ctx->cl, flags, bytes > 0 ? bytes : EMPTY_BUFFER_BYTES, NULL, &code);
    if (code == CL_SUCCESS) return CLXENT_OK;
    return clxent_fail(r->ctx, code, "clCreateBuffer of %zu bytes: %s (%d)", bytes,
                       clxent_status_string(code), (int)code);
}

/* A buffer for rows rows of tensor t beginning at data: a window over them where memory is shared (unless
 * the driver refuses that pointer), else one that holds the rows of any part or span. */
static clxent_status make_tensor_buffer(run *r, clxent_tensor index, char *data, size_t rows,
                                        device_buffer *buffer)
{
    const tensor *t = &r->tensors[index];
    const bool written = t->output || (r->in_place && index == CLXENT_TENSOR_LOGITS);
    const cl_mem_flags flags = written ? CL_MEM_READ_WRITE : CL_MEM_READ_ONLY;
    const size_t bytes = bytes_of(r, t, rows);

    if (buffer->mem != NULL) return CLXENT_OK;
    if (!r->copy && bytes > 0) {
        cl_int code;
        buffer->mem = clCreateBuffer(r->ctx->cl, flags | CL_MEM_USE_HOST_PTR, bytes, data, &code);
        buffer->wrapped = code == CL_SUCCESS;
        if (buffer->wrapped) return CLXENT_OK;
    }
    return make_buffer(r, flags, bytes_of(r, t, t->scope == SCOPE_PART ? r->part_rows : r->span_rows),
                       &buffer->mem);
}

static void release_buffer(device_buffer *buffer)
{
    if (buffer->mem != NULL) (void)clReleaseMemObject(buffer->mem);
    *buffer = (device_buffer){ 0 };
}

static void release_event(cl_event *event)
{
    if (*event != NULL) (void)clReleaseEvent(*event);
    *event = NULL;
}

static clxent_status open_run(run *r)
{
    CLXENT_TRY(clxent_plan_create_parts(&r->plan, r->ctx, &r->desc, NULL, r->span_rows, r->part_rows));
    CLXENT_TRY(make_queue(r, &r->compute));
    if (r->copy) {
        CLXENT_TRY(make_queue(r, &r->upload));
        CLXENT_TRY(make_queue(r, &r->download));
    } else {
        CLXENT_TRY(clxent_check_cl(r->ctx, clRetainCommandQueue(r->compute), "clRetainCommandQueue"));
        r->upload = r->compute;
        CLXENT_TRY(clxent_check_cl(r->ctx, clRetainCommandQueue(r->compute), "clRetainCommandQueue"));
        r->download = r->compute;
    }
    return make_buffer(r, CL_MEM_READ_WRITE, clxent_plan_workspace_size(r->plan), &r->workspace);
}

/* Waits for whatever is under way: the caller's arrays may be gone after the return. */
static cl_int drain(run *r)
{
    const cl_command_queue queues[] = { r->upload, r->compute, r->download };
    cl_int code = CL_SUCCESS;
    for (size_t i = 0; i < sizeof queues / sizeof *queues; i++) {
        const cl_int finished = queues[i] != NULL ? clFinish(queues[i]) : CL_SUCCESS;
        if (finished != CL_SUCCESS) code = finished;
    }
    /* Not every clFinish() waits for what was flushed before (rusticl of Mesa 22.3). An event that ended with an error
     * fails the wait too, but has ended. */
    for (size_t s = 0; s < r->slot_count; s++) {
        const cl_event *done = &r->slots[s].done;
        cl_int ended = CL_QUEUED;
        if (*done == NULL) continue;
        const cl_int waited = clWaitForEvents(1, done);
        if (waited == CL_SUCCESS) continue;
        const cl_int asked =
            clGetEventInfo(*done, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof ended, &ended, NULL);
        if (asked != CL_SUCCESS || ended > CL_COMPLETE) code = waited;
    }
    return code;
}

/* Leaves everything as it is where the device may still be at work on it. Returns what the call returns. */
static clxent_status close_run(run *r, clxent_status status)
{
    const cl_command_queue queues[] = { r->upload, r->compute, r->download };
    const cl_int code = r->busy ? drain(r) : CL_SUCCESS;

    if (code != CL_SUCCESS) {
        char text[2 * TEXT_SIZE] = "";
        (void)clxent_context_last_error(r->ctx, text, sizeof text);
        return clxent_fail(r->ctx, CLXENT_ERROR_ARRAYS_IN_USE,
                           "%s; clFinish: %s (%d): the device may still use the arrays", text,
                           clxent_status_string(code), (int)code);
    }
    for (size_t s = 0; s < SLOTS; s++) {
        release_event(&r->slots[s].done);
        for (int t = 0; t < CLXENT_TENSORS; t++) release_buffer(&r->slots[s].buffers[t]);
    }
    for (int t = 0; t < CLXENT_TENSORS; t++) release_buffer(&r->held[t]);
    if (r->workspace != NULL) (void)clReleaseMemObject(r->workspace);
    for (size_t i = 0; i < sizeof queues / sizeof *queues; i++) {
        if (queues[i] != NULL) (void)clReleaseCommandQueue(queues[i]);
    }
    clxent_plan_destroy(r->plan);
    free(r);
    return status;
}

/* ---- Transfers ----------------------------------------------------------------------------- */

/* Every command is enqueued through this: from the first on, the device is at work. */
static clxent_status check_enqueued(run *r, cl_int code, const char *what)
{
    if (code == CL_SUCCESS) r->busy = true;
    return clxent_check_cl(r->ctx, code, what);
}

static bool is_dense(const tensor *t) { return t->width == t->pitch; }

/* Rows of t to the device. Padding stays behind: what the device has there is never read. */
static clxent_status send(run *r, const tensor *t, const char *data, size_t rows, const device_buffer *to)
{
    const size_t bytes = bytes_of(r, t, rows);
    const size_t origin[3] = { 0, 0, 0 }, region[3] = { t->width, items(r, t, rows), 1 };

    if (to->wrapped || bytes == 0) return CLXENT_OK;
    if (is_dense(t)) {
        return check_enqueued(
            r, clEnqueueWriteBuffer(r->upload, to->mem, CL_FALSE, 0, bytes, data, 0, NULL, NULL),
            "clEnqueueWriteBuffer");
    }
    return check_enqueued(r,
                          clEnqueueWriteBufferRect(r->upload, to->mem, CL_FALSE, origin, origin, region,
                                                   t->pitch, 0, t->pitch, 0, data, 0, NULL, NULL),
                          "clEnqueueWriteBufferRect");
}

/* Rows of t to the caller's array, whose padding is not ours to write. A window is mapped and unmapped: only
 * then does the standard promise its contents to the host. */
static clxent_status receive(run *r, const tensor *t, char *data, size_t rows, const device_buffer *from)
{
    const size_t bytes = bytes_of(r, t, rows);
    const size_t origin[3] = { 0, 0, 0 }, region[3] = { t->width, items(r, t, rows), 1 };

    if (bytes == 0) return CLXENT_OK;
    if (from->wrapped) {
        cl_int code;
        void *mapped =
            clEnqueueMapBuffer(r->download, from->mem, CL_FALSE, CL_MAP_READ, 0, bytes, 0, NULL, NULL, &code);
        CLXENT_TRY(check_enqueued(r, code, "clEnqueueMapBuffer"));
        return check_enqueued(r, clEnqueueUnmapMemObject(r->download, from->mem, mapped, 0, NULL, NULL),
                              "clEnqueueUnmapMemObject");
    }
    if (is_dense(t)) {
        return check_enqueued(
            r, clEnqueueReadBuffer(r->download, from->mem, CL_FALSE, 0, bytes, data, 0, NULL, NULL),
            "clEnqueueReadBuffer");
    }
    return check_enqueued(r,
                          clEnqueueReadBufferRect(r->download, from->mem, CL_FALSE, origin, origin, region,
                                                  t->pitch, 0, t->pitch, 0, data, 0, NULL, NULL),
                          "clEnqueueReadBufferRect");
}

/* Makes what queue is given next wait for event. */
static clxent_status hold_for(run *r, cl_command_queue queue, const cl_event *event)
{
    return check_enqueued(r, clEnqueueBarrierWithWaitList(queue, 1, event, NULL),
                          "clEnqueueBarrierWithWaitList");
}

/* An event that completes after all that queue was given so far. */
static clxent_status mark(run *r, cl_command_queue queue, cl_event *event)
{
    return check_enqueued(r, clEnqueueMarkerWithWaitList(queue, 0, NULL, event),
                          "clEnqueueMarkerWithWaitList");
}

/* Waits for everything. The queue is in-order: all downloads precede the marker, and all else precedes a download or
 * the barrier before it. */
static clxent_status wait_for_all(run *r)
{
    cl_event end = NULL;
    CLXENT_TRY(mark(r, r->download, &end));
    const clxent_status status = clxent_check_cl(r->ctx, clWaitForEvents(1, &end), "clWaitForEvents");
    release_event(&end);
    if (status == CLXENT_OK) r->busy = false;
    return status;
}

/* ---- The two passes ------------------------------------------------------------------------ */

/* The denominator of probability targets comes from the row weights alone. */
static bool in_pass(const run *r, clxent_pass pass, clxent_tensor t)
{
    if (!r->tensors[t].used) return false;
    const bool of_targets = t == CLXENT_TENSOR_BAD_TARGETS || t == CLXENT_TENSOR_COMPUTED_DENOMINATOR ||
                            t == CLXENT_TENSOR_COUNTED;
    if (pass == CLXENT_PASS_LOGITS) return !of_targets;
    return (t == CLXENT_TENSOR_TARGETS && clxent_targets_are_indices(&r->desc)) ||
           t == CLXENT_TENSOR_CLASS_WEIGHTS || t == CLXENT_TENSOR_ROW_WEIGHTS || of_targets;
}

/* Windows belong to one part; buffers that are copied to stay with the slot. */
static clxent_status free_slot(run *r, slot *own)
{
    if (own->done == NULL) return CLXENT_OK;
    if (r->copy) {
        CLXENT_TRY(hold_for(r, r->upload, &own->done));
    } else {
        CLXENT_TRY(clxent_check_cl(r->ctx, clWaitForEvents(1, &own->done), "clWaitForEvents"));
        for (int t = 0; t < CLXENT_TENSORS; t++) release_buffer(&own->buffers[t]);
    }
    release_event(&own->done);
    return CLXENT_OK;
}

/* What t has for the span or the part that begins at first_row. */
static char *data_at(const run *r, const tensor *t, size_t first_row)
{
    if (t->data == NULL || t->scope == SCOPE_CALL) return t->data;
    return t->data + items(r, t, first_row) * t->pitch;
}

/* Makes room for another span. Nothing is under way. */
static void drop_span(run *r, size_t first_row)
{
    if (r->span_first == first_row) return;
    r->span_first = first_row;
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (r->tensors[t].scope != SCOPE_SPAN) continue;
        r->held[t].filled = false;
        if (!r->copy) release_buffer(&r->held[t]);
    }
}

/* Buffers of the part named in args and, where they are copies, on their way to the device. */
static clxent_status send_part(run *r, const clxent_part *part, slot *own, clxent_args *args)
{
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const clxent_tensor index = (clxent_tensor)i;
        const tensor *t = &r->tensors[i];
        if (!in_pass(r, part->pass, index)) continue;
        if (r->in_place && index == CLXENT_TENSOR_GRADIENT) {
            set_field(args, index, own->buffers[CLXENT_TENSOR_LOGITS].mem);
            continue;
        }

        const bool is_held = t->scope != SCOPE_PART;
        device_buffer *buffer = is_held ? &r->held[i] : &own->buffers[i];
        const size_t rows = is_held ? part->span_rows : args->rows;
        char *data = data_at(r, t, is_held ? part->span_first : part->first_row);
        CLXENT_TRY(make_tensor_buffer(r, index, data, rows, buffer));
        set_field(args, index, buffer->mem);
        if (t->input && !buffer->filled) CLXENT_TRY(send(r, t, data, rows, buffer));
        buffer->filled = is_held;
    }
    return CLXENT_OK;
}

static clxent_status receive_part(run *r, const clxent_part *part, size_t rows, slot *own)
{
    if (part->pass != CLXENT_PASS_LOGITS) return CLXENT_OK;
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        const bool in_logits = r->in_place && i == CLXENT_TENSOR_GRADIENT;
        if (!t->used || !t->output || t->scope != SCOPE_PART) continue;
        CLXENT_TRY(receive(r, t, data_at(r, t, part->first_row), rows,
                           &own->buffers[in_logits ? CLXENT_TENSOR_LOGITS : i]));
    }
    return CLXENT_OK;
}

/* Outputs of the pass that are one for the span, or for the call. */
static clxent_status receive_held(run *r, const clxent_part *part, scope which)
{
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        if (!t->output || t->scope != which || !in_pass(r, part->pass, (clxent_tensor)i)) continue;
        CLXENT_TRY(receive(r, t, data_at(r, t, part->span_first), part->span_rows, &r->held[i]));
    }
    return CLXENT_OK;
}

static clxent_status run_part(run *r, const clxent_part *part, size_t rows, slot *own)
{
    clxent_args args = CLXENT_ARGS_INIT;
    clxent_status status;
    cl_event sent = NULL, computed = NULL;

    args.rows = rows;
    args.workspace.mem = r->workspace;
    CLXENT_TRY(free_slot(r, own));
    CLXENT_TRY(send_part(r, part, own, &args));
    CLXENT_TRY_OR_FAIL(mark(r, r->upload, &sent));
    CLXENT_TRY_OR_FAIL(clxent_enqueue_part(r->plan, r->compute, &args, part, 1, &sent, &computed));
    CLXENT_TRY_OR_FAIL(hold_for(r, r->download, &computed));
    CLXENT_TRY_OR_FAIL(receive_part(r, part, rows, own));
    CLXENT_TRY_OR_FAIL(mark(r, r->download, &own->done));

    /* Without a flush a driver may hold back what another queue waits for. */
    CLXENT_TRY_OR_FAIL(clxent_check_cl(r->ctx, clFlush(r->upload), "clFlush"));
    CLXENT_TRY_OR_FAIL(clxent_check_cl(r->ctx, clFlush(r->compute), "clFlush"));
    CLXENT_TRY_OR_FAIL(clxent_check_cl(r->ctx, clFlush(r->download), "clFlush"));

fail:
    release_event(&sent);
    release_event(&computed);
    return status;
}

/* All rows of the span that part names, whose first part it is: in one where no [rows, classes] array is read. */
static clxent_status run_span(run *r, clxent_part part)
{
    const size_t end = part.span_first + part.span_rows;
    const size_t most = part.pass == CLXENT_PASS_LOGITS ? r->part_rows : part.span_rows;

    drop_span(r, part.span_first);
    for (size_t i = 0; i == 0 || part.first_row < end; i++) {
        const size_t rows = smaller(most, end - part.first_row);
        CLXENT_TRY(run_part(r, &part, rows, &r->slots[i % r->slot_count]));
        part.first_row += rows;
    }
    return receive_held(r, &part, SCOPE_SPAN);
}

static clxent_status run_pass(run *r, clxent_pass pass)
{
    clxent_part part = { pass, r->rows, 0, 0, 0, 0 };

    for (;;) {
        part.span_rows = smaller(r->span_rows, r->rows - part.span_first);
        part.first_row = part.span_first;
        CLXENT_TRY(run_span(r, part));
        if (part.span_first + part.span_rows == r->rows) break;
        CLXENT_TRY(wait_for_all(r));
        part.span_first += part.span_rows;
    }
    CLXENT_TRY(receive_held(r, &part, SCOPE_CALL));
    return wait_for_all(r);
}

/* The denominator, the rows that count and the record of bad targets. */
static clxent_status run_targets(run *r)
{
    const clxent_desc *desc = &r->desc;
    const bool counts =
        r->tensors[CLXENT_TENSOR_COMPUTED_DENOMINATOR].used || r->tensors[CLXENT_TENSOR_COUNTED].used;
    const bool divides = desc->reduction == CLXENT_REDUCTION_MEAN &&
                         !r->tensors[CLXENT_TENSOR_DENOMINATOR].used &&
                         (desc->outputs & (CLXENT_OUTPUT_LOSS | CLXENT_GRADIENTS)) != 0 &&
                         clxent_needs_targets(desc, desc->outputs);

    if (!divides && !counts && !reports_bad_targets(desc)) return CLXENT_OK;
    CLXENT_TRY(run_pass(r, CLXENT_PASS_TARGETS));
    const clxent_bad_targets bad = r->found.bad_targets;
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (r->callers[t] != NULL && (bad.count == 0 || t == CLXENT_TENSOR_BAD_TARGETS))
            memcpy(r->callers[t], r->tensors[t].data, r->tensors[t].bytes);
    }
    if (bad.count == 0) return CLXENT_OK;

    const unsigned long long row = bad.first_row, count = bad.count;
    char ignored[48] = "", shifted[64] = "";
    if (desc->use_ignore_index) {
        (void)snprintf(ignored, sizeof ignored, " or %lld (ignored)", (long long)desc->ignore_index);
    }
    if (desc->shift > 0) {
        (void)snprintf(shifted, sizeof shifted, " (its target is that of row %llu)", row + desc->shift);
    }
    return clxent_fail(
        r->ctx, CLXENT_ERROR_BAD_TARGET,
        "targets: row %llu%s is %lld, must be in [0, %zu)%s; %llu of %zu rows are out of range", row, shifted,
        (long long)bad.value, desc->classes, ignored, count, r->rows);
}

static clxent_status run_all(run *r, const clxent_desc *desc, const clxent_host_args *args)
{
    CLXENT_TRY(read_arguments(r, desc, args));
    CLXENT_TRY(open_run(r));
    CLXENT_TRY(run_targets(r));
    return run_pass(r, CLXENT_PASS_LOGITS);
}

clxent_status clxent_run_host(clxent_context *ctx, const clxent_desc *desc, const clxent_host_args *args)
{
    if (ctx == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    if (desc == NULL || args == NULL) {
        return clxent_fail(ctx, CLXENT_ERROR_NULL_ARGUMENT, "%s",
                           desc == NULL ? "desc is NULL: takes a clxent_desc"
                                        : "args is NULL: takes a clxent_host_args");
    }
    run *r = calloc(1, sizeof *r); /* not on the stack: see close_run() */
    if (r == NULL) {
        return clxent_fail(ctx, CLXENT_ERROR_OUT_OF_HOST_MEMORY, "run: malloc of %zu bytes failed",
                           sizeof *r);
    }
    r->ctx = ctx;
    r->copy = !ctx->device.host_memory;
    const clxent_status status = run_all(r, desc, args);
    return close_run(r, status);
}
