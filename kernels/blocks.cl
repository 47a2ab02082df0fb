/* SPDX-License-Identifier: MIT
 *
 * blocks.cl - the building blocks that do not start from logits: one-hot encoding, softmax backward, the loss of
 * given probabilities, and the gradient softmax - onehot. Any class axis.
 *
 * Grid: one work-group a row. Set by the host: those of constants.cl and common.cl, with VEC 1.
 */

/* Over the work-group, by a tree of fixed shape; every work-item must call it and gets the sum. A level writes and reads a range
 * of its own, so it takes one barrier; one more stands before the sum is read, and one after it so that the caller may use
 * scratch again. */
TAKES_LOCAL compensated_sum group_sum(compensated_sum own, __local compensated_sum scratch[WG_SIZE])
{
    if (WG_SIZE == 1) return own;
    for (uint half_size = WG_SIZE / 2; half_size > 0; half_size /= 2) {
        if (LOCAL_ID >= half_size && LOCAL_ID < 2 * half_size) scratch[LOCAL_ID] = own;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (LOCAL_ID < half_size) own = compensated_merge(own, scratch[LOCAL_ID + half_size]);
    }
    if (LOCAL_ID == 0) scratch[0] = own;
    barrier(CLK_LOCAL_MEM_FENCE);
    const compensated_sum all = scratch[0];
    barrier(CLK_LOCAL_MEM_FENCE);
    return all;
}

static inline void put_gradient_one(__global gradient_storage *out, const acc_t value)
{
    store_gradient_one(out, ACCUMULATE ? accumulated_one(load_gradient_one(out), value) : value);
}

/* q_j of a row that counts. */
static inline acc_t label_at(const clxent_parameters *p, const row_target *t, __global const void *targets,
                             const ulong q_start, const uint class_index)
{
    if (HAS_INDICES) return t->class_index == class_index ? ACC(1.0) : ACC(0.0);
    return load_probability(targets, q_start + class_index * p->inner);
}

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_one_hot(
    const clxent_parameters p, __global const void *restrict targets, /* [rows] */
    __global storage *restrict one_hot)                               /* [rows, classes] */
{
    const ulong row = get_group_id(0);
    const row_target t = get_target(&p, row, targets, 0);
    const ulong start = p.offset.one_hot + row_start(&p, row, p.probabilities_row_stride);
    for (uint c = LOCAL_ID; c < p.classes; c += WG_SIZE) {
        const acc_t value = t.bad ? ACC_NAN : t.has_class && t.class_index == c ? ACC(1.0) : ACC(0.0);
        store_one(one_hot + start + c * p.inner, value);
    }
}

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_softmax_backward(
    const clxent_parameters p, __global const storage *restrict probabilities, /* [rows, classes] */
    __global const storage *restrict grad_output,                              /* [rows, classes] */
    __global gradient_storage *restrict gradient)                              /* [rows, classes] */
{
    __local compensated_sum scratch[WG_SIZE];
    const ulong row = get_group_id(0);
    const ulong row_at = row_start(&p, row, p.probabilities_row_stride);
    const ulong start = p.offset.gradient + row_start(&p, row, p.gradient_row_stride);
    __global const storage *s = probabilities + p.offset.probabilities + row_at;
    __global const storage *g = grad_output + p.offset.grad_output + row_at;
    compensated_sum dot = { 0, 0 };
    for (uint c = LOCAL_ID; c < p.classes; c += WG_SIZE) {
        dot = compensated_merge(
            dot, (compensated_sum){ load_one(s + c * p.inner) * load_one(g + c * p.inner), 0 });
    }
    const acc_t mean = compensated_value(group_sum(dot, scratch));
    for (uint c = LOCAL_ID; c < p.classes; c += WG_SIZE) {
        const acc_t value = load_one(s + c * p.inner) * (load_one(g + c * p.inner) - mean);
        put_gradient_one(gradient + start + c * p.inner, value);
    }
}

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_probability_loss(
    const clxent_parameters p, __global const storage *restrict probabilities, /* [rows, classes] */
    __global const void *restrict targets,                                     /* [rows] or [rows, classes] */
    __global acc_t *restrict losses, /* [rows], or NULL: in workspace */
    __global uchar *restrict workspace)
{
    __local compensated_sum scratch[WG_SIZE];
    const ulong row = get_group_id(0);
    const row_target t = get_target(&p, row, targets, 0);
    const ulong start = p.offset.probabilities + row_start(&p, row, p.probabilities_row_stride);
    const ulong q_start = p.offset.targets + row_start(&p, row, p.target_row_stride);
    __global acc_t *out = (p.outputs & OUTPUT_LOSSES) ? losses + p.offset.losses
                                                      : (__global acc_t *)(workspace + p.row_losses_at);
    /* NaN from the start: PoCL 6.0 aborts where it is chosen in the store, once the program's binary is asked for
     * ("Instruction Combining did not reach a fixpoint") */
    compensated_sum sum = { t.bad ? ACC_NAN : ACC(0.0), 0 };
    if (t.has_class) {
        if (LOCAL_ID == 0) {
            sum.high = -log(load_one(probabilities + start + t.class_index * p.inner));
        }
    } else if (t.counts) {
        for (uint c = LOCAL_ID; c < p.classes; c += WG_SIZE) {
            const acc_t q = label_at(&p, &t, targets, q_start, c);
            if (q == 0) continue;
            const acc_t nll = -log(load_one(probabilities + start + c * p.inner));
            sum = compensated_merge(sum, (compensated_sum){ q * nll, 0 });
        }
    }
    sum = group_sum(sum, scratch);
    if (LOCAL_ID == 0) out[row] = compensated_value(sum);
}

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_softmax_gradient(
    const clxent_parameters p, __global const storage *restrict probabilities, /* [rows, classes] */
    __global const void *restrict targets,                                     /* [rows] or [rows, classes] */
    __global const acc_t *restrict grad_output,                                /* [1] or [rows] */
    __global const acc_t *restrict denominator,                                /* [1] */
    __global gradient_storage *restrict gradient,                              /* [rows, classes] */
    __global uchar *restrict workspace)
{
    const ulong row = get_group_id(0);
    const row_target t = get_target(&p, row, targets, 0);
    const acc_t divisor = denominator_of(&p, denominator, workspace);
    const acc_t up = (p.flags & FLAG_GRAD_OUTPUT_ROWS) ? grad_output[p.offset.grad_output + row]
                     : (p.flags & FLAG_GRAD_OUTPUT)    ? grad_output[p.offset.grad_output]
                                                       : ACC(1.0);
    const bool zero = !t.counts || divisor == 0;
    const ulong start = p.offset.probabilities + row_start(&p, row, p.probabilities_row_stride);
    const ulong q_start = p.offset.targets + row_start(&p, row, p.target_row_stride);
    const ulong to = p.offset.gradient + row_start(&p, row, p.gradient_row_stride);
    for (uint c = LOCAL_ID; c < p.classes; c += WG_SIZE) {
        acc_t value = t.bad ? ACC_NAN : ACC(0.0);
        if (!zero) {
            const acc_t q = label_at(&p, &t, targets, q_start, c);
            value = (load_one(probabilities + start + c * p.inner) - q) * (up / divisor);
        }
        put_gradient_one(gradient + to + c * p.inner, value);
    }
}
