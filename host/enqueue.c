/* SPDX-License-Identifier: MIT
 *
 * enqueue.c - one run of a plan: sets arguments, launches kernels in a chain:
 * targets -> denominator, logits -> rows, zeros -> padding, rows -> loss, at most eight (rows split and taken twice, many
 * rows to reduce). Nothing here compiles, allocates on the device or waits for it.
 *
 * A kernel's arguments belong to the cl_kernel, not to the launch. The plan's lock is held from the first argument of a
 * run to its last launch (of linear.c: of each step), so that threads may share a plan. No callback is called while it is held.
 */
#include "linear.h"

#include <string.h>

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
           (r->outputs & (CLXENT_OUTPUT_LOSS | CLXENT_GRADIENTS)) != 0;
}

/* Whether the run is a launch of the main kernel over a batch that reduce.cl has one partial of, by groups of one work-item
 * (kernels/epilogue.cl, REDUCES_ITSELF). */
static bool may_reduce_itself(const run *r)
{
    return r->plan->group == 1 && r->part.pass == CLXENT_PASS_ALL &&
           r->plan->desc.op == CLXENT_OP_CROSS_ENTROPY && r->rows > 0 && r->rows == r->part.total_rows &&
           clxent_partials(r->plan, r->rows) == 1 && clxent_outputs_of_rows(r->outputs) != 0;
}

/* Work-groups of the main kernel; of split rows for each pass. */
static size_t main_groups(const run *r)
{
    const clxent_plan *plan = r->plan;
    if (plan->desc.op != CLXENT_OP_CROSS_ENTROPY) return r->rows;
    if (plan->shares == CLXENT_STRATEGY_SPLIT) return r->rows * plan->pieces;
    if (plan->shares == CLXENT_STRATEGY_ROWS) return (r->rows - 1) / plan->rows_per_group + 1;
    const size_t slabs = plan->desc.inner > 1 ? r->rows / plan->desc.inner : 1;
    return (slabs * r->p.tiles - 1) / plan->tiles_per_group + 1;
}

/* Whether one group writes all losses and sums them too, which saves a launch. */
static bool is_alone(const run *r)
{
    return may_reduce_itself(r) && r->rows <= CLXENT_MOST_ROWS_ALONE &&
           (r->plan->shares == CLXENT_STRATEGY_SPLIT ? r->rows == 1 : main_groups(r) == 1);
}

/* Whether every group of the main kernel makes the pass over the few targets, which saves a launch. */
static bool makes_own_targets(const run *r)
{
    enum { FEW_ROWS = 64 };
    return is_alone(r) || (may_reduce_itself(r) && r->rows <= FEW_ROWS);
}

/* Whether the run makes a pass over the targets. */
static bool reads_targets(const run *r)
{
    const bool needs_denominator = divides_by_denominator(r) && r->args.denominator.mem == NULL;
    return r->part.pass != CLXENT_PASS_LOGITS &&
           (needs_denominator || (r->p.outputs & clxent_outputs_made(CLXENT_MADE_TARGETS_PASS)) != 0);
}

/* Whether the run reduces the rows' losses. */
static bool reduces_losses(const run *r)
{
    return r->part.pass != CLXENT_PASS_TARGETS && clxent_run_ends_span(r) &&
           (r->outputs & clxent_outputs_made(CLXENT_MADE_LOSSES)) != 0;
}

/* The part's rows in the [rows] buffers and in the workspace's row values; its [rows, classes] buffers hold no
 * others. */
static void fill_own_parameters(run *r)
{
    const clxent_plan *plan = r->plan;
    const size_t skip = r->part.first_row - r->part.span_first;

    r->own = r->p;
    r->own.rows = r->rows;
    r->own.first_timestep = plan->desc.seq > 0 ? r->part.first_row % plan->desc.seq : 0;
    r->own.target_rows = r->rows + r->part.target_rows_behind;
    r->own.row_losses_at += skip * clxent_acc_size(&plan->desc);
    r->own.correct_at += skip;
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const clxent_need *need = &r->needs[i];
        if (need->use == CLXENT_UNUSED || need->is_matrix) continue;
        *clxent_run_offset(&r->own, (clxent_tensor)i) += skip * (need->row_bytes / need->element_size);
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

/* Whether results bypass the cache, which decides no bits. Not where one of them is in place, as the cache has its lines. */
static bool streams(const run *r)
{
    const clxent_plan *plan = r->plan;
    const size_t bytes = r->rows * plan->desc.classes * clxent_dtype_size(plan->desc.dtype);
    const bool in_place =
        r->args.gradient.mem == r->args.logits.mem && (r->outputs & CLXENT_OUTPUT_GRADIENT) != 0;

    return plan->tuning.stream != 0 && bytes >= plan->tuning.stream && !in_place;
}

static void fill_parameters(run *r)
{
    const clxent_plan *plan = r->plan;
    const clxent_desc *desc = &plan->desc;
    const cl_ulong workspace = r->args.workspace.offset;
    clxent_parameters *p = &r->p; /* zero, but for the offsets */

    p->rows = r->part.span_rows;
    p->first_row = r->part.span_first;
    p->seq = desc->seq;
    p->shift = desc->shift;
    p->first_timestep = desc->seq > 0 ? r->part.span_first % desc->seq : 0;
    p->target_rows = r->part.span_rows;
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
    p->excluding_at = workspace + plan->excluding_at;
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
               (streams(r) ? FLAG_NONTEMPORAL : 0u) |
               (desc->bad_target == CLXENT_BAD_TARGET_IGNORE ? FLAG_BAD_IGNORED : 0u) |
               (desc->all_ignored == CLXENT_ALL_IGNORED_ZERO ? FLAG_ALL_IGNORED_ZERO : 0u);
    if (reads_targets(r) && makes_own_targets(r)) p->flags |= FLAG_OWN_TARGETS;
    if (reduces_losses(r) && is_alone(r)) p->flags |= FLAG_ALONE;
    fill_own_parameters(r);
}

void clxent_set_bytes(setter *s, size_t size, const void *value)
{
    if (s->code == CL_SUCCESS) s->code = clSetKernelArg(s->kernel, s->next, size, value);
    s->next++;
}

void clxent_set_mem(setter *s, cl_mem mem) { clxent_set_bytes(s, sizeof mem, mem != NULL ? &mem : NULL); }

setter clxent_set_begin(cl_kernel kernel, size_t size, const void *parameters)
{
    setter s = { kernel, 0, CL_SUCCESS };
    clxent_set_bytes(&s, size, parameters);
    return s;
}

static setter set_begin(cl_kernel kernel, const clxent_parameters *p)
{
    return clxent_set_begin(kernel, sizeof *p, p);
}

static void set_buffer(setter *s, const clxent_buffer *buffer) { clxent_set_mem(s, buffer->mem); }

/* ---- Launches ------------------------------------------------------------------------------ */

cl_uint clxent_run_waits(const run *r, const cl_event **wait)
{
    if (r->previous != NULL) {
        *wait = &r->previous;
        return 1;
    }
    *wait = r->launched ? NULL : r->wait;
    return r->launched ? 0 : r->num_wait;
}

clxent_status clxent_run_launch(run *r, const setter *s, size_t groups, size_t group, bool last,
                                cl_event *event)
{
    const bool needs_event = last ? event != NULL : r->out_of_order;
    const cl_event *wait;
    const cl_uint num_wait = clxent_run_waits(r, &wait);
    const size_t global = groups * group;
    cl_event done = NULL;
    cl_int code = s->code;

    r->failed = code == CL_SUCCESS ? "clEnqueueNDRangeKernel" : "clSetKernelArg"; /* if any */
    if (code == CL_SUCCESS) {
        code = clEnqueueNDRangeKernel(r->queue, s->kernel, 1, NULL, &global, &group, num_wait, wait,
                                      needs_event ? &done : NULL);
    }
    if (r->previous != NULL) (void)clReleaseEvent(r->previous);
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

static clxent_status launch_sums(run *r, cl_kernel kernel, const clxent_parameters *p,
                                 const clxent_buffer *buffers, size_t count, size_t groups, bool last,
                                 cl_event *event)
{
    setter s = set_begin(kernel, p);
    for (size_t i = 0; i < count; i++) set_buffer(&s, &buffers[i]);
    set_buffer(&s, &r->args.workspace);
    return clxent_run_launch(r, &s, groups, r->plan->group, last, event);
}

/* Partials, and at the end of the batch their fold. */
static clxent_status launch_reduction(run *r, cl_kernel kernel, const clxent_buffer *buffers, size_t count,
                                      bool last, cl_event *event)
{
    clxent_parameters p = partials_parameters(r);
    const bool folds = p.partials > 1 && clxent_run_ends_batch(r);
    CLXENT_TRY(launch_sums(r, kernel, &p, buffers, count, clxent_partials(r->plan, r->part.span_rows),
                           last && !folds, event));
    if (!folds) return CLXENT_OK;
    p = r->p; /* all partials of the batch */
    p.flags |= FLAG_FOLD;
    return launch_sums(r, kernel, &p, buffers, count, 1, last, event);
}

static clxent_status launch_targets(run *r, bool last, cl_event *event)
{
    const clxent_args *a = &r->args;
    const clxent_buffer buffers[] = { a->targets,     a->class_weights,        a->row_weights,
                                      a->bad_targets, a->computed_denominator, a->counted };
    return launch_reduction(r, r->plan->reduce_targets, buffers, sizeof buffers / sizeof *buffers, last,
                            event);
}

static clxent_status launch_losses(run *r, bool last, cl_event *event)
{
    const clxent_args *a = &r->args;
    const clxent_buffer buffers[] = { a->losses, a->denominator, a->loss, a->correct };
    return launch_reduction(r, r->plan->reduce_losses, buffers, sizeof buffers / sizeof *buffers, last,
                            event);
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
        clxent_set_bytes(s, local_bytes > 0 ? local_bytes : clxent_acc_size(desc), NULL);
}

/* One kernel over the rows, with more flags than the run's. */
static clxent_status launch_rows(run *r, cl_kernel kernel, cl_uint flags, size_t groups, size_t group,
                                 bool last, cl_event *event)
{
    clxent_parameters p = r->own;
    p.flags |= flags;
    setter s = set_begin(kernel, &p);
    set_main(r, &s);
    return clxent_run_launch(r, &s, groups, group, last, event);
}

static clxent_status launch_cross_entropy(run *r, bool last, cl_event *event)
{
    const clxent_plan *plan = r->plan;
    const uint32_t group = plan->group;

    const size_t groups = main_groups(r);

    if (plan->shares != CLXENT_STRATEGY_SPLIT) {
        return launch_rows(r, plan->main, 0, groups, group, last, event);
    }
    for (int pass = 0; pass < (plan->second_pass && !r->statistics_in ? 2 : 1); pass++) {
        const cl_uint flags = pass > 0 ? FLAG_SECOND_PASS : 0u;
        CLXENT_TRY(launch_rows(r, plan->main, flags, groups, group, false, NULL));
    }
    return launch_rows(r, plan->finalize, 0, groups, group, last, event);
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
    return clxent_run_launch(r, &s, slabs < most ? slabs : most, plan->padding_group, last, event);
}

/* Needs the lock. Returns CLXENT_OK or the cl_int of r->failed, which the caller reports once the lock is free. */
static clxent_status launch_all(run *r, cl_event *event)
{
    const bool targets = reads_targets(r) && (r->p.flags & FLAG_OWN_TARGETS) == 0;
    const bool logits = r->part.pass != CLXENT_PASS_TARGETS;
    const bool main = logits && r->rows > 0 && clxent_outputs_of_rows(r->outputs) != 0;
    const bool padding = main && r->plan->padding != NULL && (r->outputs & CLXENT_OUTPUT_GRADIENT) != 0;
    const bool losses = reduces_losses(r) && (r->p.flags & FLAG_ALONE) == 0;

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

static clxent_status enqueue(run *r, cl_event *event)
{
    clxent_plan *plan = r->plan;

    CLXENT_TRY(clxent_run_check_buffers(r));
    fill_parameters(r);
    if (plan->linear != NULL) return clxent_linear_launch(r, event);
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

    CLXENT_TRY(clxent_run_open(&r, args));
    CLXENT_TRY(clxent_run_check_outputs(&r));
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

    CLXENT_TRY(clxent_run_open(&r, args));
    CLXENT_TRY(clxent_run_check_outputs(&r));
    CLXENT_TRY(clxent_run_check_part(&r));
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

    CLXENT_TRY(clxent_run_open(&r, args));
    if (plan->linear != NULL) {
        clxent_args of_loss = r.args;
        of_loss.workspace.offset += clxent_linear_loss_at(plan->linear);
        return clxent_enqueue_denominator(clxent_linear_loss(plan->linear), queue, &of_loss, num_wait, wait,
                                          event);
    }
    if (plan->reduce_targets == NULL) {
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
    CLXENT_TRY(clxent_run_check_batch(&r, &r.rows));
    r.part = (clxent_part){ CLXENT_PASS_TARGETS, r.rows, 0, r.rows, 0, 0 };
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

    if (plan->reduce_targets != NULL) CLXENT_TRY(launch_targets(r, false, NULL));
    if (plan->rows > 0) CLXENT_TRY(launch_main(r, false, NULL));
    r->own.rows = 0;
    if (plan->padding != NULL && plan->rows > 0) CLXENT_TRY(launch_padding(r, false, NULL));
    if (plan->reduce_losses != NULL) CLXENT_TRY(launch_losses(r, false, NULL));
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

    CLXENT_TRY(clxent_run_check_queue(&r));
    if (plan->linear != NULL) return clxent_linear_warm(&r);
    const size_t row_losses =
        plan->desc.op == CLXENT_OP_PROBABILITY_LOSS ? plan->rows * clxent_acc_size(&plan->desc) : 0;
    if (plan->workspace_size + row_losses > 0) {
        r.args.workspace.mem =
            clCreateBuffer(ctx->cl, CL_MEM_READ_WRITE, plan->workspace_size + row_losses, NULL, &code);
        CLXENT_TRY(clxent_check_cl(ctx, code, "clCreateBuffer"));
    }
    r.part = (clxent_part){ CLXENT_PASS_ALL, r.rows, 0, r.rows, 0, 0 };
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
