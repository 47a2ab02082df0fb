/* SPDX-License-Identifier: MIT
 *
 * host_arrays.c - the blocking call for arrays in host memory: cuts the rows into chunks that fit the device,
 * moves them there and back, and gives the bits of one run over all rows.
 *
 * Every tensor is taken as `rows / inner` slabs of `width` bytes, `pitch` bytes apart, or as one that all
 * chunks share. A chunk occupies one of a few slots, each with a buffer for every tensor that has
 * rows. On a device that shares the host's memory the buffers are windows over the caller's arrays; on
 * others three queues upload, compute and download different slots at the same time.
 */
#include "internal.h"

#include <stdio.h>
#include <string.h>

/* One chunk in each of the three stages at a time: with two, a chunk's upload would wait for the download
 * of the one before last, and each stage would idle a third of the time. */
enum { SLOTS = 3 };

/* Copied chunks are no larger than this unless one part needs it: the first upload and the last download
 * overlap with nothing, so the fewer bytes in them the better, while 64 MiB still take milliseconds
 * on the fastest links, a hundred times a launch. */
#define COPIED_CHUNK_BYTES ((size_t)64 << 20)

/* A row count of 0 still needs buffers to name. */
enum { EMPTY_BUFFER_BYTES = 64 };

typedef struct tensor {
    bool used;
    bool has_rows;       /* else one buffer serves the whole run */
    bool input, output;  /* gradient is both when accumulating */
    char *data;          /* the caller's; written only where output */
    size_t width, pitch; /* bytes of a slab, from slab to slab; pitch 0 without rows */
} tensor;

typedef struct device_buffer {
    cl_mem mem;
    bool wrapped; /* a window over the caller's memory, nothing to copy */
} device_buffer;

typedef struct slot {
    device_buffer buffers[CLXENT_TENSORS];
    cl_event done; /* of the chunk that used the slot last; NULL: free */
} slot;

typedef struct run {
    clxent_context *ctx;
    clxent_desc desc; /* the whole run's; plan has a chunk's */
    size_t rows, chunk_rows;
    bool copy, in_place;
    tensor tensors[CLXENT_TENSORS];
    clxent_plan *plan;
    cl_command_queue upload, compute, download; /* in-order; one and the same unless copying */
    cl_mem workspace;
    device_buffer shared[CLXENT_TENSORS];
    slot slots[SLOTS];
    clxent_bad_targets bad;          /* what the first pass found */
    clxent_bad_targets *bad_targets; /* the caller's; optional */
} run;

typedef struct chunk {
    clxent_part part;
    size_t rows;
} chunk;

static const struct {
    size_t device, host;
} fields[CLXENT_TENSORS] = {
#define FIELD(name)                                                   \
    {                                                                 \
        offsetof(clxent_args, name), offsetof(clxent_host_args, name) \
    }
    FIELD(logits),   FIELD(probabilities), FIELD(targets),     FIELD(class_weights), FIELD(row_weights),
    FIELD(upstream), FIELD(denominator),   FIELD(losses),      FIELD(loss),          FIELD(lse),
    FIELD(softmax),  FIELD(log_softmax),   FIELD(gradient),    FIELD(argmax),        FIELD(correct),
    FIELD(entropy),  FIELD(statistics),    FIELD(bad_targets), FIELD(one_hot),
#undef FIELD
};

static bool is_input(clxent_tensor t) { return t < CLXENT_TENSOR_LOSSES; }

/* Data and size of one field of args; inputs and outputs have the same layout but for const. */
static clxent_input host_field(const clxent_host_args *args, clxent_tensor t)
{
    clxent_input field;
    memcpy(&field, (const char *)args + fields[t].host, sizeof field);
    return field;
}

static void set_field(clxent_args *args, clxent_tensor t, cl_mem mem)
{
    const clxent_buffer buffer = { mem, 0 };
    memcpy((char *)args + fields[t].device, &buffer, sizeof buffer);
}

/* ---- What the caller gave ------------------------------------------------------------------ */

static clxent_status tensor_bytes(run *r, clxent_tensor t, size_t rows, clxent_need *need)
{
    char text[256] = "";
    const clxent_status status =
        clxent_tensor_need(&r->desc, r->desc.outputs, false, rows, t, need, text, sizeof text);
    return status == CLXENT_OK ? CLXENT_OK : clxent_fail(r->ctx, status, "%s", text);
}

static clxent_status read_tensor(run *r, clxent_tensor t, const clxent_host_args *args)
{
    tensor *own = &r->tensors[t];
    const char *name = clxent_tensor_name(t);
    const clxent_input field = host_field(args, t);
    clxent_need need, one, two;

    CLXENT_TRY(tensor_bytes(r, t, r->rows, &need));
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

    /* What a second slab adds is the pitch; the last slab of an array ends without its padding. */
    CLXENT_TRY(tensor_bytes(r, t, r->desc.inner, &one));
    CLXENT_TRY(tensor_bytes(r, t, 2 * r->desc.inner, &two));
    own->used = true;
    own->has_rows = two.bytes > one.bytes;
    own->input =
        is_input(t) || (t == CLXENT_TENSOR_GRADIENT && r->desc.gradient_mode == CLXENT_GRADIENT_ACCUMULATE);
    own->output = !is_input(t);
    memcpy(&own->data, &field.data, sizeof own->data); /* drops const, which inputs keep by own->output */
    own->width = one.bytes;
    own->pitch = two.bytes - one.bytes;
    return CLXENT_OK;
}

static size_t slabs(const run *r, size_t rows) { return rows / r->desc.inner; }

/* Bytes of the caller's array from its first to its last element. */
static size_t extent(const run *r, const tensor *t, size_t rows)
{
    if (!t->has_rows) return t->width;
    return rows == 0 ? 0 : (slabs(r, rows) - 1) * t->pitch + t->width;
}

static clxent_status check_overlaps(run *r)
{
    const tensor *logits = &r->tensors[CLXENT_TENSOR_LOGITS];
    const tensor *gradient = &r->tensors[CLXENT_TENSOR_GRADIENT];

    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *a = &r->tensors[i];
        const uintptr_t a_first = (uintptr_t)a->data, a_end = a_first + (a->used ? extent(r, a, r->rows) : 0);
        for (int j = 0; j < i; j++) {
            const tensor *b = &r->tensors[j];
            const uintptr_t b_first = (uintptr_t)b->data,
                            b_end = b_first + (b->used ? extent(r, b, r->rows) : 0);
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
    return CLXENT_OK;
}

/* ---- Chunks -------------------------------------------------------------------------------- */

/* How many parts of part_rows rows fit: each buffer in limit, all of a slot in share. */
static size_t parts_that_fit(const run *r, size_t part_rows, size_t limit, size_t share)
{
    size_t all = 0, parts = SIZE_MAX;
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        if (!t->used || !t->has_rows || (r->in_place && i == CLXENT_TENSOR_GRADIENT)) continue;
        const size_t bytes = slabs(r, part_rows) * t->pitch;
        if (limit / bytes < parts) parts = limit / bytes;
        all = all > SIZE_MAX - bytes ? SIZE_MAX : all + bytes;
    }
    if (all > 0 && share / all < parts) parts = share / all;
    return parts;
}

static size_t clamp_size(cl_ulong value) { return value < SIZE_MAX ? (size_t)value : SIZE_MAX; }

static clxent_status choose_chunk(run *r, size_t max_chunk_bytes)
{
    /* The last part of a run may be shorter than the others, and a short run is one such part. */
    const size_t least = clxent_part_rows(&r->desc);
    const size_t part_rows = r->rows > 0 && r->rows < least ? r->rows : least;
    const size_t device_limit = clamp_size(r->ctx->device.max_allocation);
    /* Half of the device for all slots: the rest is for the workspace, the driver and other programs. */
    const size_t share = clamp_size(r->ctx->device.global_memory) / 2 / SLOTS;
    const bool limited = max_chunk_bytes > 0 && max_chunk_bytes < device_limit;
    const size_t limit = limited ? max_chunk_bytes : device_limit;
    size_t parts = parts_that_fit(r, part_rows, limit, share);

    r->chunk_rows = r->rows;
    if (r->rows == 0) return CLXENT_OK;
    if (parts == 0) {
        size_t largest = 0;
        for (int i = 0; i < CLXENT_TENSORS; i++) {
            const tensor *t = &r->tensors[i];
            if (t->used && t->has_rows && slabs(r, part_rows) * t->pitch > largest) {
                largest = slabs(r, part_rows) * t->pitch;
            }
        }
        if (limited && parts_that_fit(r, part_rows, device_limit, share) > 0) {
            return clxent_fail(r->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                               "max_chunk_bytes is %zu: the smallest chunk of %zu rows needs %zu",
                               max_chunk_bytes, part_rows, largest);
        }
        return clxent_fail(r->ctx, CLXENT_ERROR_UNSUPPORTED,
                           "rows: the smallest chunk of %zu rows has a buffer of %zu bytes, the device takes "
                           "%zu for one buffer and %zu for all of a chunk",
                           part_rows, largest, device_limit, share);
    }
    if (r->copy && limit > COPIED_CHUNK_BYTES) {
        const size_t small = parts_that_fit(r, part_rows, COPIED_CHUNK_BYTES, share);
        parts = small > 0 ? small : 1;
    }
    if (parts < r->rows / part_rows + (r->rows % part_rows != 0)) r->chunk_rows = parts * part_rows;
    return CLXENT_OK;
}

static bool reports_bad_targets(const clxent_desc *desc)
{
    return desc->bad_target == CLXENT_BAD_TARGET_REPORT && clxent_targets_are_indices(desc) &&
           clxent_needs_targets(desc, desc->outputs);
}

static clxent_status read_arguments(run *r, const clxent_desc *desc, const clxent_host_args *args)
{
    char text[256] = "";
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
    if (reports_bad_targets(&r->desc)) {
        /* The record is needed whether the caller wants it or not. */
        tensor *record = &r->tensors[CLXENT_TENSOR_BAD_TARGETS];
        const tensor own_record = { .used = true, .output = true, .width = sizeof r->bad };
        r->bad_targets = (clxent_bad_targets *)(void *)record->data;
        *record = own_record;
        record->data = (char *)&r->bad;
    }
    return choose_chunk(r, own.max_chunk_bytes);
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
 * the driver refuses that pointer), else one that holds any chunk. */
static clxent_status make_tensor_buffer(run *r, clxent_tensor index, char *data, size_t rows,
                                        device_buffer *buffer)
{
    const tensor *t = &r->tensors[index];
    const bool written = t->output || (r->in_place && index == CLXENT_TENSOR_LOGITS);
    const cl_mem_flags flags = written ? CL_MEM_READ_WRITE : CL_MEM_READ_ONLY;
    const size_t bytes = extent(r, t, rows);

    if (buffer->mem != NULL) return CLXENT_OK;
    if (!r->copy && bytes > 0) {
        cl_int code;
        buffer->mem = clCreateBuffer(r->ctx->cl, flags | CL_MEM_USE_HOST_PTR, bytes, data, &code);
        buffer->wrapped = code == CL_SUCCESS;
        if (buffer->wrapped) return CLXENT_OK;
    }
    return make_buffer(r, flags, t->has_rows ? slabs(r, r->chunk_rows) * t->pitch : t->width, &buffer->mem);
}

static void release_buffer(device_buffer *buffer)
{
    if (buffer->mem != NULL) (void)clReleaseMemObject(buffer->mem);
    buffer->mem = NULL;
    buffer->wrapped = false;
}

static void release_event(cl_event *event)
{
    if (*event != NULL) (void)clReleaseEvent(*event);
    *event = NULL;
}

static clxent_status open_run(run *r)
{
    clxent_desc part = r->desc;
    /* Where sequences matter a chunk is a whole number of them; elsewhere rows are rows. */
    if (r->desc.shift == 0) part.seq = 1;
    part.batch = r->chunk_rows / (part.seq > 0 ? part.seq : 1);
    CLXENT_TRY(clxent_plan_create(&r->plan, r->ctx, &part));
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

/* Waits for whatever is under way first: the caller's arrays may be gone after the return. */
static void close_run(run *r)
{
    cl_command_queue queues[] = { r->upload, r->compute, r->download };
    for (size_t i = 0; i < sizeof queues / sizeof *queues; i++) {
        if (queues[i] == NULL) continue;
        (void)clFinish(queues[i]);
        (void)clReleaseCommandQueue(queues[i]);
    }
    for (int s = 0; s < SLOTS; s++) {
        if (r->slots[s].done != NULL) (void)clWaitForEvents(1, &r->slots[s].done);
        release_event(&r->slots[s].done);
        for (int t = 0; t < CLXENT_TENSORS; t++) release_buffer(&r->slots[s].buffers[t]);
    }
    for (int t = 0; t < CLXENT_TENSORS; t++) release_buffer(&r->shared[t]);
    if (r->workspace != NULL) (void)clReleaseMemObject(r->workspace);
    clxent_plan_destroy(r->plan);
}

/* ---- Transfers ----------------------------------------------------------------------------- */

static bool is_dense(const tensor *t) { return !t->has_rows || t->width == t->pitch; }

/* Rows of t to the device. Padding stays behind: what the device has there is never read. */
static clxent_status send(run *r, const tensor *t, const char *data, size_t rows, const device_buffer *to)
{
    const size_t bytes = extent(r, t, rows);
    const size_t origin[3] = { 0, 0, 0 }, region[3] = { t->width, slabs(r, rows), 1 };

    if (to->wrapped || bytes == 0) return CLXENT_OK;
    if (is_dense(t)) {
        return clxent_check_cl(
            r->ctx, clEnqueueWriteBuffer(r->upload, to->mem, CL_FALSE, 0, bytes, data, 0, NULL, NULL),
            "clEnqueueWriteBuffer");
    }
    return clxent_check_cl(r->ctx,
                           clEnqueueWriteBufferRect(r->upload, to->mem, CL_FALSE, origin, origin, region,
                                                    t->pitch, 0, t->pitch, 0, data, 0, NULL, NULL),
                           "clEnqueueWriteBufferRect");
}

/* Rows of t to the caller's array, whose padding is not ours to write. A window is mapped and unmapped: only
 * then does the standard promise its contents to the host. */
static clxent_status receive(run *r, const tensor *t, char *data, size_t rows, const device_buffer *from)
{
    const size_t bytes = extent(r, t, rows);
    const size_t origin[3] = { 0, 0, 0 }, region[3] = { t->width, slabs(r, rows), 1 };

    if (bytes == 0) return CLXENT_OK;
    if (from->wrapped) {
        cl_int code;
        void *mapped =
            clEnqueueMapBuffer(r->download, from->mem, CL_FALSE, CL_MAP_READ, 0, bytes, 0, NULL, NULL, &code);
        CLXENT_TRY(clxent_check_cl(r->ctx, code, "clEnqueueMapBuffer"));
        return clxent_check_cl(r->ctx, clEnqueueUnmapMemObject(r->download, from->mem, mapped, 0, NULL, NULL),
                               "clEnqueueUnmapMemObject");
    }
    if (is_dense(t)) {
        return clxent_check_cl(
            r->ctx, clEnqueueReadBuffer(r->download, from->mem, CL_FALSE, 0, bytes, data, 0, NULL, NULL),
            "clEnqueueReadBuffer");
    }
    return clxent_check_cl(r->ctx,
                           clEnqueueReadBufferRect(r->download, from->mem, CL_FALSE, origin, origin, region,
                                                   t->pitch, 0, t->pitch, 0, data, 0, NULL, NULL),
                           "clEnqueueReadBufferRect");
}

/* Makes what queue is given next wait for event. */
static clxent_status hold_for(run *r, cl_command_queue queue, const cl_event *event)
{
    return clxent_check_cl(r->ctx, clEnqueueBarrierWithWaitList(queue, 1, event, NULL),
                           "clEnqueueBarrierWithWaitList");
}

/* An event that completes after all that queue was given so far. */
static clxent_status mark(run *r, cl_command_queue queue, cl_event *event)
{
    return clxent_check_cl(r->ctx, clEnqueueMarkerWithWaitList(queue, 0, NULL, event),
                           "clEnqueueMarkerWithWaitList");
}

/* ---- The two passes ------------------------------------------------------------------------ */

static bool in_pass(clxent_pass pass, clxent_tensor t)
{
    if (pass == CLXENT_PASS_LOGITS) return t != CLXENT_TENSOR_BAD_TARGETS;
    return t == CLXENT_TENSOR_TARGETS || t == CLXENT_TENSOR_CLASS_WEIGHTS || t == CLXENT_TENSOR_ROW_WEIGHTS ||
           t == CLXENT_TENSOR_BAD_TARGETS;
}

/* The denominator of probability targets comes from the row weights alone: the first pass names the
 * targets, but does not look at them. */
static bool is_sent(const run *r, clxent_pass pass, clxent_tensor t)
{
    if (!r->tensors[t].input) return false;
    return pass == CLXENT_PASS_LOGITS || t != CLXENT_TENSOR_TARGETS || clxent_targets_are_indices(&r->desc);
}

/* Windows belong to one chunk; buffers that are copied to stay with the slot. */
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

static char *chunk_data(const run *r, const tensor *t, const chunk *c)
{
    if (t->data == NULL || !t->has_rows) return t->data;
    return t->data + slabs(r, c->part.first_row) * t->pitch;
}

/* Buffers of the chunk named in args and, where they are copies, on their way to the device. */
static clxent_status send_chunk(run *r, const chunk *c, slot *own, clxent_args *args)
{
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const clxent_tensor index = (clxent_tensor)i;
        const tensor *t = &r->tensors[i];
        if (!t->used || !in_pass(c->part.pass, index)) continue;
        if (r->in_place && index == CLXENT_TENSOR_GRADIENT) {
            set_field(args, index, own->buffers[CLXENT_TENSOR_LOGITS].mem);
            continue;
        }

        device_buffer *buffer = t->has_rows ? &own->buffers[i] : &r->shared[i];
        const bool there = !t->has_rows && buffer->mem != NULL;
        char *data = chunk_data(r, t, c);
        CLXENT_TRY(make_tensor_buffer(r, index, data, c->rows, buffer));
        set_field(args, index, buffer->mem);
        if (is_sent(r, c->part.pass, index) && !there) CLXENT_TRY(send(r, t, data, c->rows, buffer));
    }
    return CLXENT_OK;
}

static clxent_status receive_chunk(run *r, const chunk *c, slot *own)
{
    if (c->part.pass != CLXENT_PASS_LOGITS) return CLXENT_OK;
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        const bool in_logits = r->in_place && i == CLXENT_TENSOR_GRADIENT;
        if (!t->used || !t->output || !t->has_rows) continue;
        CLXENT_TRY(
            receive(r, t, chunk_data(r, t, c), c->rows, &own->buffers[in_logits ? CLXENT_TENSOR_LOGITS : i]));
    }
    return CLXENT_OK;
}

static clxent_status run_chunk(run *r, const chunk *c, slot *own)
{
    clxent_args args = CLXENT_ARGS_INIT;
    clxent_status status;
    cl_event sent = NULL, computed = NULL;

    CLXENT_TRY(free_slot(r, own));
    CLXENT_TRY(send_chunk(r, c, own, &args));
    args.rows = c->rows;
    args.workspace.mem = r->workspace;
    CLXENT_TRY_OR_FAIL(mark(r, r->upload, &sent));
    CLXENT_TRY_OR_FAIL(clxent_enqueue_part(r->plan, r->compute, &args, &c->part, 1, &sent, &computed));
    CLXENT_TRY_OR_FAIL(hold_for(r, r->download, &computed));
    CLXENT_TRY_OR_FAIL(receive_chunk(r, c, own));
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

/* Runs the pass over all chunks, receives what they share, and waits for it all. */
static clxent_status run_pass(run *r, clxent_pass pass)
{
    cl_event end = NULL;
    size_t first = 0;

    for (size_t i = 0; i == 0 || first < r->rows; i++) {
        const size_t left = r->rows - first;
        chunk c = { { pass, first, first == 0, left <= r->chunk_rows }, r->chunk_rows };
        if (c.part.last) c.rows = left;
        CLXENT_TRY(run_chunk(r, &c, &r->slots[i % SLOTS]));
        first += c.rows;
    }
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const tensor *t = &r->tensors[i];
        if (!t->used || !t->output || t->has_rows || !in_pass(pass, (clxent_tensor)i)) continue;
        CLXENT_TRY(receive(r, t, t->data, r->rows, &r->shared[i]));
    }
    /* The queue is in-order: all downloads precede the marker, and all else precedes a download. */
    CLXENT_TRY(mark(r, r->download, &end));
    const clxent_status status = clxent_check_cl(r->ctx, clWaitForEvents(1, &end), "clWaitForEvents");
    release_event(&end);
    return status;
}

/* D and the record of bad targets, before any output is touched. */
static clxent_status run_targets(run *r)
{
    const clxent_desc *desc = &r->desc;
    const bool divides = desc->reduction == CLXENT_REDUCTION_MEAN &&
                         !r->tensors[CLXENT_TENSOR_DENOMINATOR].used &&
                         (desc->outputs & (CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT)) != 0 &&
                         clxent_needs_targets(desc, desc->outputs);

    if (!divides && !reports_bad_targets(desc)) return CLXENT_OK;
    CLXENT_TRY(run_pass(r, CLXENT_PASS_TARGETS));
    if (r->bad_targets != NULL) *r->bad_targets = r->bad;
    if (r->bad.count == 0) return CLXENT_OK;

    const unsigned long long row = r->bad.first_row, count = r->bad.count;
    char ignored[48] = "", shifted[64] = "";
    if (desc->use_ignore_index) {
        (void)snprintf(ignored, sizeof ignored, " or %lld (ignored)", (long long)desc->ignore_index);
    }
    if (desc->shift > 0) {
        (void)snprintf(shifted, sizeof shifted, " (judged by the target of row %llu)", row + desc->shift);
    }
    return clxent_fail(
        r->ctx, CLXENT_ERROR_BAD_TARGET,
        "targets: row %llu%s is %lld, must be in [0, %zu)%s; %llu of %zu rows are out of range", row, shifted,
        (long long)r->bad.value, desc->classes, ignored, count, r->rows);
}

clxent_status clxent_run_host(clxent_context *ctx, const clxent_desc *desc, const clxent_host_args *args)
{
    clxent_status status;
    run r = { .ctx = ctx };

    if (ctx == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    if (desc == NULL || args == NULL) {
        return clxent_fail(ctx, CLXENT_ERROR_NULL_ARGUMENT, "%s",
                           desc == NULL ? "desc is NULL: takes a clxent_desc"
                                        : "args is NULL: takes a clxent_host_args");
    }
    r.copy = !ctx->device.host_memory;
    CLXENT_TRY_OR_FAIL(read_arguments(&r, desc, args));
    CLXENT_TRY_OR_FAIL(open_run(&r));
    CLXENT_TRY_OR_FAIL(run_targets(&r));
    CLXENT_TRY_OR_FAIL(run_pass(&r, CLXENT_PASS_LOGITS));

fail:
    close_run(&r);
    return status;
}
