/* SPDX-License-Identifier: MIT
 *
 * arguments.c - what a run is by the caller's arguments: its rows and outputs, and the check of every buffer that it
 * touches. Nothing is launched here: a call that fails has no effect.
 */
#include "run.h"

#include <stdio.h>
#include <string.h>

enum { TEXT_SIZE = 512, WORKSPACE_ALIGNMENT = 64 };

cl_ulong *clxent_run_offset(clxent_parameters *p, clxent_tensor tensor)
{
    return (cl_ulong *)(void *)((char *)&p->offset +
                                tensor * sizeof(cl_ulong)); /* parameters.h sees to the order */
}

static clxent_status copy_args(run *r, const clxent_args *args)
{
    clxent_context *ctx = r->plan->ctx;
    char text[TEXT_SIZE];

    if (args == NULL)
        return clxent_fail(ctx, CLXENT_ERROR_NULL_ARGUMENT, "args is NULL: takes a clxent_args");
    const clxent_status status = clxent_struct_copy(CLXENT_STRUCT_ARGS, &r->args, args, text, sizeof text);
    return status == CLXENT_OK ? CLXENT_OK : clxent_fail(ctx, status, "%s", text);
}

clxent_status clxent_run_check_outputs(run *r)
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
clxent_status clxent_run_check_batch(const run *r, size_t *total)
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
clxent_status clxent_run_check_part(run *r)
{
    static const char *const names[] = { "WHOLE", "FIRST", "MIDDLE", "LAST" };
    clxent_context *ctx = r->plan->ctx;
    const clxent_args *args = &r->args;
    const uint32_t part = args->part;
    const bool begins = part == CLXENT_PART_WHOLE || part == CLXENT_PART_FIRST;
    const bool ends = part == CLXENT_PART_WHOLE || part == CLXENT_PART_LAST;
    size_t total = 0;

    CLXENT_TRY(clxent_run_check_batch(r, &total));
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
    r->part =
        (clxent_part){ ends ? CLXENT_PASS_ALL : CLXENT_PASS_LOGITS, total, 0, total, args->first_row, 0 };
    return CLXENT_OK;
}

/* Whether this part ends the batch, or the rows that the [rows] buffers hold. */
bool clxent_run_ends_batch(const run *r)
{
    return r->part.span_first + r->part.span_rows == r->part.total_rows;
}

bool clxent_run_ends_span(const run *r)
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
    case CLXENT_TENSOR_CORRECT: return r->part.pass != CLXENT_PASS_TARGETS && clxent_run_ends_span(r);
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
    const clxent_desc *desc = &r->plan->desc;
    const clxent_need *need = &r->needs[tensor];
    /* chunk after chunk adds to those that are not rounded at the end */
    const bool adds_chunks =
        (tensor == CLXENT_TENSOR_WEIGHT_GRADIENT || tensor == CLXENT_TENSOR_BIAS_GRADIENT) &&
        need->element_size == clxent_acc_size(desc);

    switch (tensor) {
    case CLXENT_TENSOR_LOSSES: /* the reduction reads them back */
        return (r->outputs & CLXENT_OUTPUT_LOSS) != 0 ? READS | WRITES : WRITES;
    case CLXENT_TENSOR_STATISTICS: return r->statistics_in ? READS : WRITES;
    default:
        if (adds_chunks || clxent_accumulates(desc, tensor)) return READS | WRITES;
        return tensor < CLXENT_TENSOR_LOSSES ? READS : WRITES;
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
        *clxent_run_offset(&r->p, tensor) = buffer->offset / need->element_size;
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

clxent_status clxent_run_check_queue(run *r)
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

clxent_status clxent_run_open(run *r, const clxent_args *args)
{
    CLXENT_TRY(copy_args(r, args));
    CLXENT_TRY(clxent_run_check_queue(r));
    return check_wait_list(r);
}

clxent_status clxent_run_check_buffers(run *r)
{
    CLXENT_TRY(find_needs(r));
    CLXENT_TRY(check_buffers(r));
    return check_overlap(r);
}
