/* SPDX-License-Identifier: MIT
 *
 * reduce.cl - from rows to one number: D and the record of bad targets before the main kernel, the loss and the
 * count of correct predictions after it.
 *
 * Each work-group sums REDUCE_ROWS rows into a partial; one work-item folds the partials in order
 * into the totals. Every addition keeps what it loses (long_sum), so 10^7 rows cost no digits, and
 * none of it depends on the device or on how the rows were cut into parts. Grid of the *_partials kernels: one
 * work-group for REDUCE_ROWS rows; with a single one it folds as well, and *_fold is not launched.
 *
 * A part of every program, for its DTYPE and WG_SIZE: a program of its own takes PoCL 25 ms, however short it is
 * and though it is cached.
 */
typedef struct {
    real d; /* first: cross_entropy.cl reads it there */
    real padding;
    long_sum_one weight;
    long_sum_one loss;
    ulong correct;
    ulong bad;
    ulong first_bad;
    long bad_value;
} totals;

typedef struct {
    long_sum_one sum; /* of row weights, or of losses */
    ulong count;      /* of bad targets, or of correct predictions */
    ulong first_bad;
    long bad_value;
} partial;

static inline partial merge_partials(const partial a, const partial b)
{
    partial c = { long_merge_one(a.sum, b.sum), a.count + b.count, a.first_bad, a.bad_value };
    if (b.first_bad < a.first_bad) {
        c.first_bad = b.first_bad;
        c.bad_value = b.bad_value;
    }
    return c;
}

/* Rows between one that is summed and the one that is brought from memory meanwhile. */
#define REDUCE_AHEAD 1024u

static inline partial empty_partial(void) { return (partial){ { 0, 0 }, 0, 0xffffffffffffffffUL, 0 }; }

/* Work-item 0 returns the group's sum, in the order of the work-items. */
static inline partial merge_partials_of_group(const partial own, __local partial *scratch)
{
    if (WG_SIZE == 1) return own;
    scratch[get_local_id(0)] = own;
    barrier(CLK_LOCAL_MEM_FENCE);
    partial all = own;
    if (get_local_id(0) == 0) {
        for (uint i = 1; i < WG_SIZE; i++) all = merge_partials(all, scratch[i]);
    }
    return all;
}

/* The first n of the lanes; a row that does not exist adds nothing. */
static inline lane keep_first(const lane v, const uint n)
{
    return n == LANE_ROWS ? v : LANE_IOTA < (ilane)((integer)n) ? v : (lane)(0);
}

static inline long_sum_one fold_lanes(const long_sum s)
{
    real high[LANE_ROWS], low[LANE_ROWS];
    long_sum_one all = { 0, 0 };
    STORE_LANE(s.high, high);
    STORE_LANE(s.low, low);
    for (uint i = 0; i < LANE_ROWS; i++) all = long_merge_one(all, (long_sum_one){ high[i], low[i] });
    return all;
}

static inline void fold_targets(const clxent_parameters *p, __global totals *t, const partial all,
                                __global ulong *bad_targets)
{
    partial sum = all;
    if (!(p->flags & FLAG_FIRST_PART)) {
        sum = merge_partials((partial){ t->weight, t->bad, t->first_bad, t->bad_value }, all);
    }
    t->weight = sum.sum;
    t->d = long_value_one(sum.sum);
    t->bad = sum.count;
    t->first_bad = sum.first_bad;
    t->bad_value = sum.bad_value;
    if ((p->flags & FLAG_LAST_PART) && (p->outputs & OUTPUT_BAD_TARGETS)) {
        __global ulong *record = bad_targets + 3 * p->offset.bad_targets; /* counted in records */
        record[0] = sum.count;
        record[1] = sum.count > 0 ? sum.first_bad : 0;
        record[2] = as_ulong(sum.count > 0 ? sum.bad_value : 0L);
    }
}

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_targets_partials(
    const clxent_parameters p, __global const void *restrict targets, /* [rows] */
    __global const real *restrict class_weights,                      /* [classes] */
    __global const real *restrict row_weights,                        /* [rows] */
    __global ulong *restrict bad_targets,                             /* [3] */
    __global uchar *restrict workspace)
{
    __local partial scratch[WG_SIZE];
    const ulong begin = get_group_id(0) * (ulong)REDUCE_ROWS;
    const ulong end = min(begin + REDUCE_ROWS, p.rows);
    /* of i64 a step is two lines, of which one is asked for */
    const uint target_bytes = p.target_type == TARGET_I32 ? 4 : p.target_type == TARGET_I64 ? 8 : 1;
    partial own = empty_partial();
    long_sum weights = long_zero();
    for (ulong row = begin + get_local_id(0) * LANE_ROWS; row < end; row += WG_SIZE * LANE_ROWS) {
        const uint n = (uint)min((ulong)LANE_ROWS, end - row);
        PREFETCH((__global const uchar *)targets + (p.offset.targets + row + REDUCE_AHEAD) * target_bytes);
        const lane_targets t = get_targets(&p, row, n, targets, row_weights);
        lane weight = t.weight;
        if (p.flags & FLAG_CLASS_WEIGHTS) {
            const lane of_class = gather(class_weights + p.offset.class_weights, t.class_index);
            weight = t.has_class ? weight * of_class : weight;
        }
        weights = long_add(weights, keep_first(weight, n));
        if (ANY_LANE(t.bad)) {
            for (uint i = 0; i < n; i++) {
                const row_target one = get_target(&p, row + i, targets, row_weights);
                if (one.bad)
                    own = merge_partials(own, (partial){ { 0, 0 }, 1, p.first_row + row + i, one.value });
            }
        }
    }
    own.sum = fold_lanes(weights);
    const partial all = merge_partials_of_group(own, scratch);
    if (get_local_id(0) != 0) return;
    if (get_num_groups(0) == 1) {
        fold_targets(&p, (__global totals *)(workspace + p.totals_at), all, bad_targets);
    } else {
        *(__global partial *)(workspace + p.partials_at + get_group_id(0) * PARTIAL_BYTES) = all;
    }
}

/* Work-group 1, one of them. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void clxent_targets_fold(
    const clxent_parameters p, __global ulong *restrict bad_targets, __global uchar *restrict workspace)
{
    const ulong groups = (p.rows + REDUCE_ROWS - 1) / REDUCE_ROWS;
    partial all = empty_partial();
    for (ulong i = 0; i < groups; i++) {
        all = merge_partials(all, *(__global const partial *)(workspace + p.partials_at + i * PARTIAL_BYTES));
    }
    fold_targets(&p, (__global totals *)(workspace + p.totals_at), all, bad_targets);
}

static inline void fold_losses(const clxent_parameters *p, __global totals *t, const partial all,
                               __global const real *denominator, __global real *loss, __global ulong *correct)
{
    partial sum = all;
    if (!(p->flags & FLAG_FIRST_PART)) sum = merge_partials((partial){ t->loss, t->correct, 0, 0 }, all);
    t->loss = sum.sum;
    t->correct = sum.count;
    if (!(p->flags & FLAG_LAST_PART)) return;
    if (p->outputs & OUTPUT_CORRECT) correct[p->offset.correct] = sum.count;
    if (p->outputs & OUTPUT_LOSS) {
        const real value = long_value_one(sum.sum);
        if (p->flags & FLAG_DENOMINATOR) {
            loss[p->offset.loss] = value / denominator[p->offset.denominator];
        } else if (!(p->flags & FLAG_MEAN)) {
            loss[p->offset.loss] = value;
        } else if (t->d == 0) {
            /* a bad row's NaN is not hidden */
            const bool zero = (p->flags & FLAG_ALL_IGNORED_ZERO) != 0 && value == value;
            loss[p->offset.loss] = zero ? REAL(0.0) : REAL_NAN;
        } else {
            loss[p->offset.loss] = value / t->d;
        }
    }
}

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_losses_partials(
    const clxent_parameters p, __global const real *restrict losses, /* [rows], or NULL: in workspace */
    __global const real *restrict denominator,                       /* [1] */
    __global real *restrict loss,                                    /* [1] */
    __global ulong *restrict correct,                                /* [1] */
    __global uchar *restrict workspace)
{
    __local partial scratch[WG_SIZE];
    const bool sums = (p.outputs & OUTPUT_LOSS) != 0;
    const bool counts = (p.outputs & OUTPUT_CORRECT) != 0;
    __global const real *row_losses = (p.outputs & OUTPUT_LOSSES)
                                          ? losses + p.offset.losses
                                          : (__global const real *)(workspace + p.row_losses_at);
    const ulong begin = get_group_id(0) * (ulong)REDUCE_ROWS;
    const ulong end = min(begin + REDUCE_ROWS, p.rows);
    partial own = empty_partial();
    long_sum total = long_zero();
    ilane hits = (ilane)(0); /* at most REDUCE_ROWS */
    for (ulong row = begin + get_local_id(0) * LANE_ROWS; row < end; row += WG_SIZE * LANE_ROWS) {
        const uint n = (uint)min((ulong)LANE_ROWS, end - row);
        PREFETCH(row_losses + row + REDUCE_AHEAD);
        if (sums) total = long_add(total, keep_first(load_lanes(row_losses + row, n), n));
        if (counts && n == LANE_ROWS) {
            hits += TO_INTEGERS(LOAD_LANE(workspace + p.correct_at + row));
        } else if (counts) {
            for (uint i = 0; i < n; i++) own.count += workspace[p.correct_at + row + i];
        }
    }
    own.sum = fold_lanes(total);
    integer of_lane[LANE_ROWS];
    STORE_LANE(hits, of_lane);
    for (uint i = 0; i < LANE_ROWS; i++) own.count += (ulong)of_lane[i];
    const partial all = merge_partials_of_group(own, scratch);
    if (get_local_id(0) != 0) return;
    if (get_num_groups(0) == 1) {
        fold_losses(&p, (__global totals *)(workspace + p.totals_at), all, denominator, loss, correct);
    } else {
        *(__global partial *)(workspace + p.partials_at + get_group_id(0) * PARTIAL_BYTES) = all;
    }
}

/* Work-group 1, one of them. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void clxent_losses_fold(
    const clxent_parameters p, __global const real *restrict denominator, __global real *restrict loss,
    __global ulong *restrict correct, __global uchar *restrict workspace)
{
    const ulong groups = (p.rows + REDUCE_ROWS - 1) / REDUCE_ROWS;
    partial all = empty_partial();
    for (ulong i = 0; i < groups; i++) {
        all = merge_partials(all, *(__global const partial *)(workspace + p.partials_at + i * PARTIAL_BYTES));
    }
    fold_losses(&p, (__global totals *)(workspace + p.totals_at), all, denominator, loss, correct);
}
