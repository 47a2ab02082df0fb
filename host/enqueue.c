/* SPDX-License-Identifier: MIT
 *
 * enqueue.c - one run of a plan: checks the caller's buffers, sets arguments, launches kernels in a chain:
 * targets -> denominator, logits -> rows, zeros -> padding, rows -> loss, at most ten (rows split and taken twice, many
 * rows to reduce). Nothing here compiles, allocates on the device or waits for it.
 *
 * A kernel's arguments belong to the cl_kernel, not to the launch. The plan's lock is held from the first argument of a
 * run to its last launch, so that threads may share a plan. No callback is called while it is held.
 */
#include "internal.h"
#include "parameters.h"

#include <stdio.h>
#include <string.h>

enum { TEXT_SIZE = 512, WORKSPACE_ALIGNMENT = 64 };

/* One call of clxent_enqueue_part(). */
typedef struct run {
    clxent_plan *plan;
    clxent_args args; /* complete */
    clxent_part part;
    uint32_t outputs;
    size_t rows;
    bool statistics_in;
    clxent_need *needs;    /* [CLXENT_TENSORS] */
    clxent_parameters p;   /* of the reductions: all rows of the [rows] buffers */
    clxent_parameters own; /* of the kernels between them: the rows of this part */
    /* the chain */
    cl_command_queue queue;
    bool out_of_order;
    cl_uint num_wait;
    const cl_event *wait;
    cl_event previous; /* of the latest launch, where the next or the caller needs it */
    bool launched;
    const char *failed; /* the OpenCL call that refused a launch */
} run;

static cl_ulong *offset_of(clxent_parameters *p, clxent_tensor tensor)
{
    return (cl_ulong *)(void *)((char *)&p->offset +
                                tensor * sizeof(cl_ulong)); /* parameters.h sees to the order */
}

/* ---- Checks -------------------------------------------------------------------------------- */

static clxent_status copy_args(run *r, const clxent_args *args)
{
    clxent_context *ctx = r->plan->ctx;
    char text[TEXT_SIZE];

    if (args == NULL)
        return clxent_fail(ctx, CLXENT_ERROR_NULL_ARGUMENT, "args is NULL: takes a clxent_args");
    const clxent_status status = clxent_struct_copy(CLXENT_STRUCT_ARGS, &r->args, args, text, sizeof text);
    return status == CLXENT_OK ? CLXENT_OK : clxent_fail(ctx, status, "%s", text);
}

static clxent_status check_outputs(run *r)
{
    clxent_plan *plan = r->plan;
    const uint32_t gradient_only = clxent_outputs_of_rows(r->args.outputs);

    if ((r->args.outputs & ~plan->desc.outputs) != 0) {
        return clxent_fail(plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "args.outputs is 0x%x: takes a subset of the plan's 0x%x",
                           (unsigned)r->args.outputs, (unsigned)plan->desc.outputs);
    }
    r->outputs = r->args.outputs != 0 ? r->args.outputs : plan->desc.outputs;
    r->statistics_in = plan->desc.op == CLXENT_OP_CROSS_ENTROPY && gradient_only == CLXENT_OUTPUT_GRADIENT &&
                       r->args.statistics.mem != NULL;
    return CLXENT_OK;
}

static clxent_status check_count(const run *r, const char *name, size_t count)
{
    const clxent_plan *plan = r->plan;
    const clxent_desc *desc = &plan->desc;

    if (count > plan->rows) {
        return clxent_fail(plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "args.%s is %zu: takes at most the plan's batch * seq = %zu", name, count,
                           plan->rows);
    }
    if (desc->inner > 1 && count % desc->inner != 0) {
        return clxent_fail(plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "args.%s is %zu: takes a multiple of inner = %zu", name, count, desc->inner);
    }
    if (desc->shift > 0 && count > 0 && count % desc->seq != 0) { /* without rows seq may be 0 */
        return clxent_fail(plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "args.%s is %zu: takes a multiple of seq = %zu, as targets are shifted", name,
                           count, desc->seq);
    }
    return CLXENT_OK;
}

/* The rows of the batch. */
static clxent_status check_batch(const run *r, size_t *total)
{
    const clxent_args *args = &r->args;
    const bool whole = args->part == CLXENT_PART_WHOLE && args->rows != CLXENT_ALL_ROWS;

    if (args->part > CLXENT_PART_LAST) {
        return clxent_fail(r->plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "args.part is %u: takes CLXENT_PART_WHOLE (0), CLXENT_PART_FIRST (1), "
                           "CLXENT_PART_MIDDLE (2), CLXENT_PART_LAST (3)",
                           (unsigned)args->part);
    }
    if (args->reserved != 0) {
        return clxent_fail(r->plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT, "args.reserved is %u: takes 0",
                           (unsigned)args->reserved);
    }
    *total = args->total_rows != 0 ? args->total_rows : whole ? args->rows : r->plan->rows;
    return check_count(r, args->total_rows != 0 ? "total_rows" : "rows", *total);
}

/* The batch and the part of it that the caller's numbers name. A part too many would write over the loss, one too few never
 * write it: a part says where in the batch it is, and is held to it. */
static clxent_status check_part(run *r)
{
    static const char *const names[] = { "WHOLE", "FIRST", "MIDDLE", "LAST" };
    clxent_context *ctx = r->plan->ctx;
    const clxent_args *args = &r->args;
    const uint32_t part = args->part;
    const bool begins = part == CLXENT_PART_WHOLE || part == CLXENT_PART_FIRST;
    const bool ends = part == CLXENT_PART_WHOLE || part == CLXENT_PART_LAST;
    size_t total;

    CLXENT_TRY(check_batch(r, &total));
    const size_t last = part == CLXENT_PART_MIDDLE ? total - (total > 0) : total;
    if (begins ? args->first_row != 0 : args->first_row > last || (args->first_row == 0 && !ends)) {
        return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT, "args.first_row is %zu: takes %s with part %s",
                           args->first_row, begins ? "0" : "a row of the batch behind the first",
                           names[part]);
    }
    r->rows = args->rows == CLXENT_ALL_ROWS ? total - args->first_row : args->rows;
    CLXENT_TRY(check_count(r, "first_row", args->first_row));
    CLXENT_TRY(check_count(r, "rows", r->rows));
    const size_t rest = total - args->first_row;
    if (r->rows > rest || (r->rows == rest) != ends) {
        return clxent_fail(
            ctx, CLXENT_ERROR_INVALID_ARGUMENT,
            "args.rows is %zu and args.first_row is %zu: takes %s %zu rows with part %s of a batch "
            "of %zu",
            r->rows, args->first_row, ends ? "exactly" : "less than", rest, names[part], total);
    }
    r->part = (clxent_part){ ends ? CLXENT_PASS_ALL : CLXENT_PASS_LOGITS, total, 0, total, args->first_row };
    return CLXENT_OK;
}

/* Whether this part ends the batch, or the rows that the [rows] buffers hold. */
static bool ends_batch(const run *r) { return r->part.span_first + r->part.span_rows == r->part.total_rows; }

static bool ends_span(const run *r)
{
    return r->part.first_row + r->rows == r->part.span_first + r->part.span_rows;
}

/* What the passes of this part touch. */
static bool part_uses(const run *r, clxent_tensor tensor)
{
    switch (tensor) {
    /* the sum of weights of probability targets comes from the row weights alone */
    case CLXENT_TENSOR_TARGETS:
        return r->part.pass != CLXENT_PASS_TARGETS || clxent_targets_are_indices(&r->plan->desc);
    case CLXENT_TENSOR_CLASS_WEIGHTS:
    case CLXENT_TENSOR_ROW_WEIGHTS: return true;
    case CLXENT_TENSOR_BAD_TARGETS:
    case CLXENT_TENSOR_COMPUTED_DENOMINATOR:
    case CLXENT_TENSOR_COUNTED: return r->part.pass != CLXENT_PASS_LOGITS;
    case CLXENT_TENSOR_LOSS:
    case CLXENT_TENSOR_CORRECT: return r->part.pass != CLXENT_PASS_TARGETS && ends_span(r);
    default: return r->part.pass != CLXENT_PASS_TARGETS;
    }
}

static clxent_status find_needs(run *r)
{
    clxent_plan *plan = r->plan;
    char text[TEXT_SIZE];

    mutex_lock(&plan->lock);
    const bool alike = plan->latest.valid && plan->latest.outputs == r->outputs &&
                       plan->latest.rows == r->rows && plan->latest.span_rows == r->part.span_rows &&
                       plan->latest.statistics_in == r->statistics_in;
    if (alike) memcpy(r->needs, plan->latest.needs, sizeof plan->latest.needs);
    mutex_unlock(&plan->lock);
    if (alike) return CLXENT_OK;

    for (int i = 0; i < CLXENT_TENSORS; i++) {
        clxent_need *need = &r->needs[i];
        clxent_status status =
            clxent_tensor_need(&plan->desc, r->outputs, r->statistics_in, r->part.span_rows, (clxent_tensor)i,
                               need, text, sizeof text);
        if (status == CLXENT_OK && need->is_matrix) {
            status = clxent_tensor_need(&plan->desc, r->outputs, r->statistics_in, r->rows, (clxent_tensor)i,
                                        need, text, sizeof text);
        }
        if (status != CLXENT_OK) return clxent_fail(plan->ctx, status, "%s", text);
    }
    mutex_lock(&plan->lock);
    plan->latest.outputs = r->outputs;
    plan->latest.rows = r->rows;
    plan->latest.span_rows = r->part.span_rows;
    plan->latest.statistics_in = r->statistics_in;
    plan->latest.valid = true;
    memcpy(plan->latest.needs, r->needs, sizeof plan->latest.needs);
    mutex_unlock(&plan->lock);
    return CLXENT_OK;
}

/* What the device does with a buffer: bits. */
typedef enum device_access { READS = 1, WRITES = 2 } device_access;

static device_access access_of(const run *r, clxent_tensor tensor)
{
    const bool accumulates = r->plan->desc.gradient_mode == CLXENT_GRADIENT_ACCUMULATE;

    switch (tensor) {
    case CLXENT_TENSOR_LOSSES: /* the reduction reads them back */
        return (r->outputs & CLXENT_OUTPUT_LOSS) != 0 ? READS | WRITES : WRITES;
    case CLXENT_TENSOR_GRADIENT: return accumulates ? READS | WRITES : WRITES;
    case CLXENT_TENSOR_STATISTICS: return r->statistics_in ? READS : WRITES;
    default: return tensor < CLXENT_TENSOR_LOSSES ? READS : WRITES;
    }
}

/* A buffer of args, and what it must be. */
typedef struct wanted {
    const char *name, *shape;
    const clxent_buffer *buffer;
    size_t bytes;
    device_access access;
} wanted;

static clxent_status mem_info(clxent_context *ctx, const char *name, cl_mem mem, cl_mem_info info,
                              size_t size, void *value)
{
    const cl_int code = clGetMemObjectInfo(mem, info, size, value, NULL);
    if (code == CL_SUCCESS) return CLXENT_OK;
    return clxent_fail(ctx, code, "%s.mem: clGetMemObjectInfo(0x%x) says %s (%d): takes a buffer", name,
                       (unsigned)info, clxent_status_string(code), (int)code);
}

/* CL_MEM_READ_WRITE, _READ_ONLY or _WRITE_ONLY. A sub-buffer that was made without one of them has its parent's, which
 * not every driver says in the sub-buffer's own flags. */
static clxent_status mem_access(clxent_context *ctx, const char *name, cl_mem mem, cl_mem_flags *flags)
{
    const cl_mem_flags any = CL_MEM_READ_WRITE | CL_MEM_READ_ONLY | CL_MEM_WRITE_ONLY;
    cl_mem parent = NULL;

    CLXENT_TRY(mem_info(ctx, name, mem, CL_MEM_FLAGS, sizeof *flags, flags));
    *flags &= any;
    if (*flags == 0) {
        CLXENT_TRY(mem_info(ctx, name, mem, CL_MEM_ASSOCIATED_MEMOBJECT, sizeof parent, &parent));
        if (parent != NULL) CLXENT_TRY(mem_info(ctx, name, parent, CL_MEM_FLAGS, sizeof *flags, flags));
        *flags &= any;
    }
    if (*flags == 0) *flags = CL_MEM_READ_WRITE;
    return CLXENT_OK;
}

/* Some drivers, PoCL 3.1 among them, run kernels on images, on buffers of other contexts and on buffers that their flags
 * close to kernels. */
static clxent_status check_buffer(clxent_context *ctx, const wanted *w)
{
    cl_mem mem = w->buffer->mem;
    cl_mem_object_type type = 0;
    cl_context context = NULL;
    cl_mem_flags flags = 0;
    size_t size = 0;

    CLXENT_TRY(mem_info(ctx, w->name, mem, CL_MEM_TYPE, sizeof type, &type));
    if (type != CL_MEM_OBJECT_BUFFER) {
        return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "%s.mem is an image or another memory object (CL_MEM_TYPE 0x%x): takes a buffer",
                           w->name, (unsigned)type);
    }
    CLXENT_TRY(mem_info(ctx, w->name, mem, CL_MEM_CONTEXT, sizeof context, &context));
    if (context != ctx->cl) {
        return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "%s.mem is a buffer of another cl_context: takes one of the plan's", w->name);
    }
    CLXENT_TRY(mem_access(ctx, w->name, mem, &flags));
    if (((w->access & READS) != 0 && (flags & CL_MEM_WRITE_ONLY) != 0) ||
        ((w->access & WRITES) != 0 && (flags & CL_MEM_READ_ONLY) != 0)) {
        return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "%s.mem is %s: takes %sCL_MEM_READ_WRITE, as this run %s it", w->name,
                           (flags & CL_MEM_READ_ONLY) != 0 ? "CL_MEM_READ_ONLY" : "CL_MEM_WRITE_ONLY",
                           w->access == READS    ? "CL_MEM_READ_ONLY or "
                           : w->access == WRITES ? "CL_MEM_WRITE_ONLY or "
                                                 : "",
                           w->access == READS    ? "reads"
                           : w->access == WRITES ? "writes"
                                                 : "reads and writes");
    }
    CLXENT_TRY(mem_info(ctx, w->name, mem, CL_MEM_SIZE, sizeof size, &size));
    if (w->buffer->offset > size || w->bytes > size - w->buffer->offset) {
        return clxent_fail(ctx, CLXENT_ERROR_BUFFER_TOO_SMALL,
                           "%s.mem holds %zu bytes: takes %s = %zu bytes from offset %zu", w->name, size,
                           w->shape, w->bytes, w->buffer->offset);
    }
    return CLXENT_OK;
}

/* The tensors that this run uses; what it does not use is cleared. */
static clxent_status check_buffers(run *r)
{
    clxent_context *ctx = r->plan->ctx;

    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const clxent_tensor tensor = (clxent_tensor)i;
        const clxent_need *need = &r->needs[i];
        clxent_buffer *buffer = clxent_tensor_buffer(&r->args, tensor);
        const char *name = clxent_tensor_name(tensor);

        /* what a later part writes, and is given already, is looked at now: a fault is found before anything is computed */
        const bool ignored = r->part.pass == CLXENT_PASS_TARGETS && !part_uses(r, tensor);
        if (need->use == CLXENT_UNUSED || ignored) buffer->mem = NULL;
        if (buffer->mem == NULL) {
            if (need->use != CLXENT_REQUIRED || need->bytes == 0 || !part_uses(r, tensor)) continue;
            return clxent_fail(ctx, CLXENT_ERROR_NULL_ARGUMENT,
                               "%s.mem is NULL: takes a buffer of %s = %zu bytes", name, need->shape,
                               need->bytes);
        }
        if (buffer->offset % need->element_size != 0) {
            return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                               "%s.offset is %zu: takes a multiple of the element size %zu", name,
                               buffer->offset, need->element_size);
        }
        const wanted w = { name, need->shape, buffer, need->bytes, access_of(r, tensor) };
        CLXENT_TRY(check_buffer(ctx, &w));
        *offset_of(&r->p, tensor) = buffer->offset / need->element_size;
    }
    if (r->plan->workspace_size > 0) {
        const clxent_buffer *workspace = &r->args.workspace;
        if (workspace->mem == NULL) {
            return clxent_fail(
                ctx, CLXENT_ERROR_NULL_ARGUMENT,
                "workspace.mem is NULL: takes a buffer of clxent_plan_workspace_size() = %zu bytes",
                r->plan->workspace_size);
        }
        if (workspace->offset % WORKSPACE_ALIGNMENT != 0) {
            return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                               "workspace.offset is %zu: takes a multiple of %d", workspace->offset,
                               (int)WORKSPACE_ALIGNMENT);
        }
        const wanted w = { "workspace", "clxent_plan_workspace_size()", workspace, r->plan->workspace_size,
                           READS | WRITES };
        CLXENT_TRY(check_buffer(ctx, &w));
    } else {
        r->args.workspace.mem = NULL;
    }
    return CLXENT_OK;
}

/* gradient, softmax or log_softmax written over logits: each element after its last reader, if all else is
 * the same and no other [rows, classes] result still needs the logits. */
static bool may_be_in_place(run *r, clxent_tensor out)
{
    const clxent_desc *desc = &r->plan->desc;
    const uint32_t wide =
        r->outputs & (CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOG_SOFTMAX | CLXENT_OUTPUT_GRADIENT);
    const size_t dense = desc->classes * desc->inner;
    const size_t stride = desc->row_stride != 0 ? desc->row_stride : dense;
    size_t own;

    if (r->args.logits.offset != clxent_tensor_buffer(&r->args, out)->offset) return false;
    if (out == CLXENT_TENSOR_GRADIENT) {
        own = desc->gradient_row_stride;
        if (desc->gradient_dtype != desc->dtype || desc->gradient_mode == CLXENT_GRADIENT_ACCUMULATE)
            return false;
    } else if (out == CLXENT_TENSOR_SOFTMAX || out == CLXENT_TENSOR_LOG_SOFTMAX) {
        own = desc->probabilities_row_stride;
        if ((wide & (wide - 1)) != 0) return false;
    } else {
        return false;
    }
    return (own != 0 ? own : dense) == stride;
}

static clxent_status check_overlap(run *r)
{
    const clxent_need *needs = r->needs;

    for (int i = CLXENT_TENSOR_LOSSES; i < CLXENT_TENSORS; i++) {
        const clxent_buffer *out = clxent_tensor_buffer(&r->args, (clxent_tensor)i);
        if (out->mem == NULL || needs[i].bytes == 0) continue;
        for (int j = 0; j < CLXENT_TENSORS + 1; j++) {
            const clxent_buffer *other =
                j < CLXENT_TENSORS ? clxent_tensor_buffer(&r->args, (clxent_tensor)j) : &r->args.workspace;
            const size_t bytes = j < CLXENT_TENSORS ? needs[j].bytes : r->plan->workspace_size;
            const bool both_outputs = j >= CLXENT_TENSOR_LOSSES && j < CLXENT_TENSORS;
            if (other->mem != out->mem || j == i || bytes == 0 || (both_outputs && j < i)) continue;
            if (out->offset >= other->offset + bytes || other->offset >= out->offset + needs[i].bytes)
                continue;
            if (j == CLXENT_TENSOR_LOGITS && may_be_in_place(r, (clxent_tensor)i)) continue;
            return clxent_fail(
                r->plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                "%s overlaps %s in one buffer: takes memory of its own; only gradient may stand "
                "in the place of logits (or softmax or log_softmax, as the only "
                "[rows, classes] output), with equal offset, stride and dtype, not accumulated",
                clxent_tensor_name((clxent_tensor)i),
                j < CLXENT_TENSORS ? clxent_tensor_name((clxent_tensor)j) : "workspace");
        }
    }
    return CLXENT_OK;
}

static clxent_status queue_info(const run *r, cl_command_queue_info info, size_t size, void *value)
{
    const cl_int code = clGetCommandQueueInfo(r->queue, info, size, value, NULL);
    if (code == CL_SUCCESS) return CLXENT_OK;
    return clxent_fail(r->plan->ctx, code,
                       "queue: clGetCommandQueueInfo(0x%x) says %s (%d): takes a command queue",
                       (unsigned)info, clxent_status_string(code), (int)code);
}

static clxent_status check_queue(run *r)
{
    clxent_context *ctx = r->plan->ctx;
    cl_context context = NULL;
    cl_device_id device = NULL;
    cl_command_queue_properties properties = 0;

    if (r->queue == NULL)
        return clxent_fail(ctx, CLXENT_ERROR_NULL_ARGUMENT, "queue is NULL: takes a command queue");
    CLXENT_TRY(queue_info(r, CL_QUEUE_CONTEXT, sizeof context, &context));
    CLXENT_TRY(queue_info(r, CL_QUEUE_DEVICE, sizeof device, &device));
    CLXENT_TRY(queue_info(r, CL_QUEUE_PROPERTIES, sizeof properties, &properties));
    if (context != ctx->cl || device != ctx->id) {
        return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "queue is one of another %s: takes one of the plan's cl_context and device",
                           context != ctx->cl ? "cl_context" : "device");
    }
    r->out_of_order = (properties & CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE) != 0;
    return CLXENT_OK;
}

static clxent_status check_wait_list(run *r)
{
    clxent_context *ctx = r->plan->ctx;

    if ((r->num_wait == 0) != (r->wait == NULL)) {
        return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                           "num_wait is %u and wait is %s: takes both or neither", (unsigned)r->num_wait,
                           r->wait == NULL ? "NULL" : "not NULL");
    }
    for (cl_uint i = 0; i < r->num_wait; i++) {
        cl_context context = NULL;
        if (r->wait[i] == NULL) {
            return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                               "wait[%u] is NULL: takes an event of the plan's cl_context", (unsigned)i);
        }
        const cl_int code = clGetEventInfo(r->wait[i], CL_EVENT_CONTEXT, sizeof context, &context, NULL);
        if (code != CL_SUCCESS) {
            return clxent_fail(ctx, code,
                               "wait[%u]: clGetEventInfo(CL_EVENT_CONTEXT) says %s (%d): takes an event",
                               (unsigned)i, clxent_status_string(code), (int)code);
        }
        if (context != ctx->cl) {
            return clxent_fail(ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                               "wait[%u] is an event of another cl_context: takes one of the plan's",
                               (unsigned)i);
        }
    }
    return CLXENT_OK;
}

/* ---- Arguments ----------------------------------------------------------------------------- */

static size_t or_dense(const clxent_desc *desc, size_t stride)
{
    return stride != 0 ? stride : desc->classes * desc->inner;
}

/* Whether a result is divided by the denominator, be it the caller's or the sum of weights. */
static bool divides_by_denominator(const run *r)
{
    const clxent_desc *desc = &r->plan->desc;
    return desc->reduction == CLXENT_REDUCTION_MEAN && clxent_needs_targets(desc, r->outputs) &&
           (r->outputs & (CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT)) != 0;
}

/* Few rows without weights need no pass over the targets: the main kernel counts them itself, exactly. */
static bool finds_own_denominator(const run *r)
{
    enum { FEW_ROWS = 64 };
    return r->part.pass == CLXENT_PASS_ALL && r->plan->desc.op == CLXENT_OP_CROSS_ENTROPY && r->rows > 0 &&
           r->rows <= FEW_ROWS && r->args.bad_targets.mem == NULL && r->args.class_weights.mem == NULL &&
           r->args.row_weights.mem == NULL;
}

/* The part's rows in the [rows] buffers and in the workspace's row values; its [rows, classes] buffers hold no
 * others. */
static void fill_own_parameters(run *r)
{
    const clxent_plan *plan = r->plan;
    const size_t skip = r->part.first_row - r->part.span_first;

    r->own = r->p;
    r->own.rows = r->rows;
    r->own.row_losses_at += skip * clxent_acc_size(&plan->desc);
    r->own.correct_at += skip;
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const clxent_need *need = &r->needs[i];
        if (need->use == CLXENT_UNUSED || need->is_matrix) continue;
        *offset_of(&r->own, (clxent_tensor)i) += skip * (need->row_bytes / need->element_size);
    }
}

/* A number as kernels take it, see ACC_OF() of common.cl: the bits of a double for f64 logits, else of a float. */
static cl_ulong acc_bits(const clxent_desc *desc, double value)
{
    const float narrow = (float)value;
    cl_ulong wide;
    cl_uint bits;

    memcpy(&wide, &value, sizeof wide);
    memcpy(&bits, &narrow, sizeof bits);
    return desc->dtype == CLXENT_F64 ? wide : bits;
}

static void fill_parameters(run *r)
{
    const clxent_plan *plan = r->plan;
    const clxent_desc *desc = &plan->desc;
    const cl_ulong workspace = r->args.workspace.offset;
    const size_t bytes = r->rows * desc->classes * clxent_dtype_size(desc->dtype);
    clxent_parameters *p = &r->p; /* zero, but for the offsets */

    p->rows = r->part.span_rows;
    p->first_row = r->part.span_first;
    p->seq = desc->seq;
    p->shift = desc->shift;
    p->inner = desc->inner;
    p->row_stride = or_dense(desc, desc->row_stride);
    p->gradient_row_stride = or_dense(desc, desc->gradient_row_stride);
    p->probabilities_row_stride = or_dense(desc, desc->probabilities_row_stride);
    p->target_row_stride = or_dense(desc, desc->target_row_stride);
    p->denominator_at = workspace + plan->denominator_at;
    p->partials_at = workspace + plan->partials_at;
    p->row_losses_at = workspace + plan->row_losses_at;
    p->correct_at = workspace + plan->correct_at;
    p->pieces_at = workspace + plan->pieces_at;
    p->records_at = workspace + plan->records_at;
    p->reduce_unit = plan->reduce_unit;
    p->partials_per_unit = plan->partials_per_unit;
    p->partials = clxent_partials(plan, r->part.total_rows);
    p->ignore_index = desc->ignore_index;
    p->one_minus_smoothing = acc_bits(desc, 1.0 - desc->label_smoothing);
    p->smoothing_per_class = acc_bits(desc, desc->label_smoothing / (double)desc->classes);
#define NUMBER(name, initial, takes, acts, constant, parameter, draws, ...) \
    p->parameter = acc_bits(desc, desc->name);
#include "options.def"
    p->classes = (cl_uint)desc->classes;
    p->outputs = r->outputs;
    if (r->args.bad_targets.mem == NULL) p->outputs &= ~CLXENT_OUTPUT_BAD_TARGETS;
    p->local_elements = plan->local_elements;
    p->rows_per_group = (cl_uint)plan->rows_per_group;
    p->piece_vectors = (cl_uint)plan->piece_vectors;
    p->pieces = (cl_uint)plan->pieces;
    if (plan->shares == CLXENT_STRATEGY_LANES) {
        const size_t slab =
            desc->inner > 1 ? desc->inner : r->rows; /* the part's, which no reduction looks at */
        p->tiles = slab > 0 ? (slab - 1) / plan->tile + 1 : 0;
        p->tiles_per_group = (cl_uint)plan->tiles_per_group;
    }
    p->flags = plan->flags | (desc->use_ignore_index ? FLAG_IGNORE_INDEX : 0u) |
               (r->args.row_weights.mem != NULL ? FLAG_ROW_WEIGHTS : 0u) |
               (r->args.grad_output.mem == NULL            ? 0u
                : desc->reduction == CLXENT_REDUCTION_NONE ? FLAG_GRAD_OUTPUT | FLAG_GRAD_OUTPUT_ROWS
                                                           : FLAG_GRAD_OUTPUT) |
               (r->args.denominator.mem != NULL ? FLAG_DENOMINATOR : 0u) |
               (divides_by_denominator(r) ? FLAG_MEAN : 0u) | (r->statistics_in ? FLAG_FROM_STATISTICS : 0u) |
               (plan->tuning.stream != 0 && bytes >= plan->tuning.stream ? FLAG_NONTEMPORAL : 0u) |
               (finds_own_denominator(r) ? FLAG_OWN_DENOMINATOR : 0u) |
               (desc->bad_target == CLXENT_BAD_TARGET_IGNORE ? FLAG_BAD_IGNORED : 0u) |
               (desc->all_ignored == CLXENT_ALL_IGNORED_ZERO ? FLAG_ALL_IGNORED_ZERO : 0u);
    fill_own_parameters(r);
}

/* Sets arguments one after the other; the first failure stays. */
typedef struct setter {
    cl_kernel kernel;
    cl_uint next;
    cl_int code;
} setter;

static void set_bytes(setter *s, size_t size, const void *value)
{
    if (s->code == CL_SUCCESS) s->code = clSetKernelArg(s->kernel, s->next, size, value);
    s->next++;
}

static void set_buffer(setter *s, const clxent_buffer *buffer)
{
    set_bytes(s, sizeof buffer->mem, buffer->mem != NULL ? &buffer->mem : NULL);
}

static setter set_begin(cl_kernel kernel, const clxent_parameters *p)
{
    setter s = { kernel, 0, CL_SUCCESS };
    set_bytes(&s, sizeof *p, p);
    return s;
}

/* ---- Launches ------------------------------------------------------------------------------ */

/* Puts one kernel behind the chain. Only the first waits for the caller's events; an out-of-order queue needs
 * an event between any two. */
static clxent_status launch(run *r, const setter *s, size_t groups, size_t group, bool last, cl_event *event)
{
    const bool needs_event = last ? event != NULL : r->out_of_order;
    const bool chained = r->previous != NULL;
    const cl_uint num_wait = chained ? 1 : r->launched ? 0 : r->num_wait;
    const cl_event *wait = chained ? &r->previous : r->launched ? NULL : r->wait;
    const size_t global = groups * group;
    cl_event done = NULL;
    cl_int code = s->code;

    r->failed = code == CL_SUCCESS ? "clEnqueueNDRangeKernel" : "clSetKernelArg"; /* if any */
    if (code == CL_SUCCESS) {
        code = clEnqueueNDRangeKernel(r->queue, s->kernel, 1, NULL, &global, &group, num_wait, wait,
                                      needs_event ? &done : NULL);
    }
    if (chained) (void)clReleaseEvent(r->previous);
    r->previous = NULL;
    if (code != CL_SUCCESS) return code;
    r->launched = true;
    if (last && event != NULL) {
        *event = done;
    } else {
        r->previous = done;
    }
    return CLXENT_OK;
}

/* Partials of the rows that the [rows] buffers hold stand behind those of the rows before. */
static clxent_parameters partials_parameters(const run *r)
{
    const clxent_plan *plan = r->plan;
    clxent_parameters p = r->p;
    p.partials_at +=
        r->part.span_first / plan->reduce_unit * plan->partials_per_unit * (cl_ulong)PARTIAL_BYTES;
    return p;
}

static void set_targets_results(const run *r, setter *s)
{
    set_buffer(s, &r->args.bad_targets);
    set_buffer(s, &r->args.computed_denominator);
    set_buffer(s, &r->args.counted);
    set_buffer(s, &r->args.workspace);
}

static clxent_status launch_targets(run *r, bool last, cl_event *event)
{
    const clxent_plan *plan = r->plan;
    const clxent_parameters p = partials_parameters(r);
    const bool folds = p.partials > 1 && ends_batch(r);
    setter s = set_begin(plan->targets_partials, &p);

    set_buffer(&s, &r->args.targets);
    set_buffer(&s, &r->args.class_weights);
    set_buffer(&s, &r->args.row_weights);
    set_targets_results(r, &s);
    CLXENT_TRY(launch(r, &s, clxent_partials(plan, r->part.span_rows), plan->group, last && !folds, event));
    if (!folds) return CLXENT_OK;
    s = set_begin(plan->targets_fold, &r->p);
    set_targets_results(r, &s);
    return launch(r, &s, 1, 1, last, event);
}

static clxent_status launch_losses(run *r, bool last, cl_event *event)
{
    const clxent_plan *plan = r->plan;
    const clxent_parameters p = partials_parameters(r);
    const bool folds = p.partials > 1 && ends_batch(r);
    setter s = set_begin(plan->losses_partials, &p);

    set_buffer(&s, &r->args.losses);
    set_buffer(&s, &r->args.denominator);
    set_buffer(&s, &r->args.loss);
    set_buffer(&s, &r->args.correct);
    set_buffer(&s, &r->args.workspace);
    CLXENT_TRY(launch(r, &s, clxent_partials(plan, r->part.span_rows), plan->group, last && !folds, event));
    if (!folds) return CLXENT_OK;
    s = set_begin(plan->losses_fold, &r->p);
    set_buffer(&s, &r->args.denominator);
    set_buffer(&s, &r->args.loss);
    set_buffer(&s, &r->args.correct);
    set_buffer(&s, &r->args.workspace);
    return launch(r, &s, 1, 1, last, event);
}

/* The arguments of the operation's main kernel behind the parameters. */
static void set_main(run *r, setter *s)
{
    const clxent_desc *desc = &r->plan->desc;
    const size_t local_bytes = r->plan->local_elements * clxent_acc_size(desc);

    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (clxent_tensor_is_argument(desc->op, (clxent_tensor)t))
            set_buffer(s, clxent_tensor_buffer(&r->args, (clxent_tensor)t));
    }
    if (clxent_op_reads(desc->op, CLXENT_TENSOR_DENOMINATOR))
        set_buffer(s, &r->args.workspace); /* which has the denominator */
    if (desc->op == CLXENT_OP_CROSS_ENTROPY)
        set_bytes(s, local_bytes > 0 ? local_bytes : clxent_acc_size(desc), NULL);
}

/* One kernel over the rows, with more flags than the run's. */
static clxent_status launch_rows(run *r, cl_kernel kernel, cl_uint flags, size_t groups, size_t group,
                                 bool last, cl_event *event)
{
    clxent_parameters p = r->own;
    p.flags |= flags;
    setter s = set_begin(kernel, &p);
    set_main(r, &s);
    return launch(r, &s, groups, group, last, event);
}

static clxent_status launch_cross_entropy(run *r, bool last, cl_event *event)
{
    const clxent_plan *plan = r->plan;
    const uint32_t group = plan->group;

    if (plan->shares == CLXENT_STRATEGY_LANES) {
        const size_t slabs = plan->desc.inner > 1 ? r->rows / plan->desc.inner : 1;
        const size_t tiles = slabs * r->p.tiles;
        return launch_rows(r, plan->main, 0, (tiles - 1) / plan->tiles_per_group + 1, plan->group, last,
                           event);
    }
    if (plan->shares == CLXENT_STRATEGY_ROWS) {
        return launch_rows(r, plan->main, 0, (r->rows - 1) / plan->rows_per_group + 1, group, last, event);
    }
    for (int pass = 0; pass < (plan->second_pass && !r->statistics_in ? 2 : 1); pass++) {
        const cl_uint flags = pass > 0 ? FLAG_SECOND_PASS : 0u;
        CLXENT_TRY(launch_rows(r, plan->main, flags, r->rows * plan->pieces, group, false, NULL));
        CLXENT_TRY(launch_rows(r, plan->combine, flags, r->rows, 1, false, NULL));
    }
    return launch_rows(r, plan->finalize, 0, r->rows * plan->pieces, group, last, event);
}

static clxent_status launch_main(run *r, bool last, cl_event *event)
{
    const clxent_plan *plan = r->plan;

    if (plan->desc.op == CLXENT_OP_CROSS_ENTROPY) return launch_cross_entropy(r, last, event);
    return launch_rows(r, plan->main, 0, r->rows, plan->group, last, event);
}

static clxent_status launch_padding(run *r, bool last, cl_event *event)
{
    enum { GROUPS_EACH = 16 }; /* for each compute unit: enough that all of them are busy to the end */
    const clxent_plan *plan = r->plan;
    const size_t slabs = r->rows / plan->desc.inner;
    const size_t most = GROUPS_EACH * (size_t)plan->ctx->device.compute_units;
    setter s = set_begin(plan->padding, &r->own);

    set_buffer(&s, &r->args.gradient);
    return launch(r, &s, slabs < most ? slabs : most, plan->padding_group, last, event);
}

/* Needs the lock. Returns CLXENT_OK or the cl_int of r->failed, which the caller reports once the lock is free. */
static clxent_status launch_all(run *r, cl_event *event)
{
    const bool needs_denominator =
        divides_by_denominator(r) && r->args.denominator.mem == NULL && !finds_own_denominator(r);
    const bool targets =
        r->part.pass != CLXENT_PASS_LOGITS &&
        (needs_denominator || (r->p.outputs & clxent_outputs_made(CLXENT_MADE_TARGETS_PASS)) != 0);
    const bool logits = r->part.pass != CLXENT_PASS_TARGETS;
    const bool main = logits && r->rows > 0 && clxent_outputs_of_rows(r->outputs) != 0;
    const bool padding = main && r->plan->padding != NULL && (r->outputs & CLXENT_OUTPUT_GRADIENT) != 0;
    const bool losses = logits && ends_span(r) && (r->outputs & clxent_outputs_made(CLXENT_MADE_LOSSES)) != 0;

    if (targets) CLXENT_TRY(launch_targets(r, !main && !losses, event));
    if (main) CLXENT_TRY(launch_main(r, !padding && !losses, event));
    if (padding) CLXENT_TRY(launch_padding(r, !losses, event));
    if (losses) CLXENT_TRY(launch_losses(r, true, event));
    if (!targets && !main && !losses) {
        r->failed = "clEnqueueMarkerWithWaitList";
        return clEnqueueMarkerWithWaitList(r->queue, r->num_wait, r->wait, event);
    }
    return CLXENT_OK;
}

/* What the run is by its arguments, before its buffers are looked at. */
static clxent_status open_run(run *r, const clxent_args *args)
{
    CLXENT_TRY(copy_args(r, args));
    CLXENT_TRY(check_queue(r));
    return check_wait_list(r);
}

static clxent_status enqueue(run *r, cl_event *event)
{
    clxent_plan *plan = r->plan;

    CLXENT_TRY(find_needs(r));
    CLXENT_TRY(check_buffers(r));
    CLXENT_TRY(check_overlap(r));
    fill_parameters(r);
    mutex_lock(&plan->lock);
    const clxent_status status = launch_all(r, event);
    mutex_unlock(&plan->lock);
    if (r->previous != NULL) (void)clReleaseEvent(r->previous);
    return clxent_check_cl(plan->ctx, status, r->failed);
}

clxent_status clxent_enqueue_part(clxent_plan *plan, cl_command_queue queue, const clxent_args *args,
                                  const clxent_part *part, cl_uint num_wait, const cl_event *wait,
                                  cl_event *event)
{
    clxent_need needs[CLXENT_TENSORS];
    run r = { .plan = plan, .needs = needs, .queue = queue, .num_wait = num_wait, .wait = wait };

    CLXENT_TRY(open_run(&r, args));
    CLXENT_TRY(check_outputs(&r));
    r.part = *part;
    r.rows = r.args.rows;
    return enqueue(&r, event);
}

clxent_status clxent_enqueue(clxent_plan *plan, cl_command_queue queue, const clxent_args *args,
                             cl_uint num_wait, const cl_event *wait, cl_event *event)
{
    if (plan == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    clxent_need needs[CLXENT_TENSORS];
    run r = { .plan = plan, .needs = needs, .queue = queue, .num_wait = num_wait, .wait = wait };

    CLXENT_TRY(open_run(&r, args));
    CLXENT_TRY(check_outputs(&r));
    CLXENT_TRY(check_part(&r));
    if (r.args.part != CLXENT_PART_WHOLE && divides_by_denominator(&r) && r.args.denominator.mem == NULL) {
        return clxent_fail(
            plan->ctx, CLXENT_ERROR_NULL_ARGUMENT,
            "denominator.mem is NULL: takes a buffer of [1], as clxent_enqueue_denominator() writes it, "
            "for a part of a mean");
    }
    return enqueue(&r, event);
}

clxent_status clxent_enqueue_denominator(clxent_plan *plan, cl_command_queue queue, const clxent_args *args,
                                         cl_uint num_wait, const cl_event *wait, cl_event *event)
{
    if (plan == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    clxent_need needs[CLXENT_TENSORS];
    run r = { .plan = plan, .needs = needs, .queue = queue, .num_wait = num_wait, .wait = wait };

    CLXENT_TRY(open_run(&r, args));
    if (plan->targets_partials == NULL) {
        return clxent_fail(
            plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
            "plan has outputs 0x%x and reduction %u: takes one of CLXENT_REDUCTION_MEAN with loss or "
            "gradient, or one with computed_denominator or counted",
            (unsigned)plan->desc.outputs, (unsigned)plan->desc.reduction);
    }
    r.outputs = (r.args.computed_denominator.mem != NULL ? CLXENT_OUTPUT_COMPUTED_DENOMINATOR : 0u) |
                (r.args.counted.mem != NULL ? CLXENT_OUTPUT_COUNTED : 0u);
    if (r.outputs == 0) {
        return clxent_fail(
            plan->ctx, CLXENT_ERROR_NULL_ARGUMENT,
            "computed_denominator.mem and counted.mem are NULL: takes a buffer of [1] for either");
    }
    CLXENT_TRY(check_batch(&r, &r.rows));
    r.part = (clxent_part){ CLXENT_PASS_TARGETS, r.rows, 0, r.rows, 0 };
    return enqueue(&r, event);
}

/* ---- Launches ahead of the first run ------------------------------------------------------- */

/* Parameters with which kernels run on the grids of a whole run and touch nothing but the workspace: no outputs, no rows to
 * go over. Split rows and the building blocks have a group for each row whatever p.rows is: there each row's target is
 * shifted out, so that its logits are not read, and the building blocks loop over no classes. */
static void ask_for_nothing(run *r)
{
    const clxent_plan *plan = r->plan;

    r->p.outputs = 0;
    r->p.flags = plan->flags;
    r->p.seq = r->p.shift = 1;
    r->own = r->p;
    r->p.rows = 0;
    if (plan->desc.op != CLXENT_OP_CROSS_ENTROPY) {
        r->own.classes = 0;
        r->own.row_losses_at = plan->workspace_size; /* which has them only where LOSS is an output */
    } else if (plan->shares == CLXENT_STRATEGY_LANES) {
        r->own.tiles = 0; /* p.rows is a divisor */
    } else if (plan->shares == CLXENT_STRATEGY_ROWS) {
        r->own.rows = 0;
    }
}

/* Every kernel of the plan, then a marker. Needs the lock. */
static clxent_status launch_every_kernel(run *r, cl_event *event)
{
    const clxent_plan *plan = r->plan;

    if (plan->targets_partials != NULL) CLXENT_TRY(launch_targets(r, false, NULL));
    if (plan->rows > 0) CLXENT_TRY(launch_main(r, false, NULL));
    r->own.rows = 0;
    if (plan->padding != NULL && plan->rows > 0) CLXENT_TRY(launch_padding(r, false, NULL));
    if (plan->losses_partials != NULL) CLXENT_TRY(launch_losses(r, false, NULL));
    r->failed = "clEnqueueMarkerWithWaitList";
    return clEnqueueMarkerWithWaitList(r->queue, r->previous != NULL,
                                       r->previous != NULL ? &r->previous : NULL, event);
}

clxent_status clxent_plan_warm(clxent_plan *plan, cl_command_queue queue)
{
    if (plan == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    clxent_need unused[CLXENT_TENSORS] = { { CLXENT_UNUSED, 0, 0, 0, false, "" } };
    run r = { .plan = plan, .needs = unused, .queue = queue, .rows = plan->rows };
    clxent_context *ctx = plan->ctx;
    cl_event done = NULL;
    cl_int code = CL_SUCCESS;

    CLXENT_TRY(check_queue(&r));
    const size_t row_losses =
        plan->desc.op == CLXENT_OP_PROBABILITY_LOSS ? plan->rows * clxent_acc_size(&plan->desc) : 0;
    if (plan->workspace_size + row_losses > 0) {
        r.args.workspace.mem =
            clCreateBuffer(ctx->cl, CL_MEM_READ_WRITE, plan->workspace_size + row_losses, NULL, &code);
        CLXENT_TRY(clxent_check_cl(ctx, code, "clCreateBuffer"));
    }
    r.part = (clxent_part){ CLXENT_PASS_ALL, r.rows, 0, r.rows, 0 };
    fill_parameters(&r);
    ask_for_nothing(&r);
    mutex_lock(&plan->lock);
    clxent_status status = launch_every_kernel(&r, &done);
    mutex_unlock(&plan->lock);
    if (status == CLXENT_OK) {
        r.failed = "clWaitForEvents";
        status = clWaitForEvents(1, &done);
    }
    if (done != NULL) (void)clReleaseEvent(done);
    if (r.previous != NULL) (void)clReleaseEvent(r.previous);
    /* what is still enqueued keeps it */
    if (r.args.workspace.mem != NULL) (void)clReleaseMemObject(r.args.workspace.mem);
    return clxent_check_cl(ctx, status, r.failed);
}
