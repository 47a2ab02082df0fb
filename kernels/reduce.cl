/* SPDX-License-Identifier: MIT
 *
 * reduce.cl - from rows to one number: the denominator and the record of bad targets before the main kernel, the loss and
 * the count of correct predictions after it.
 *
 * Each work-group sums up to REDUCE_ROWS rows into a partial; one work-item folds the batch's partials in order.
 * Every addition keeps what it loses (compensated_sum), so 10^7 rows cost no digits. The rows of a partial follow from
 * the desc alone: parts of a batch write the values of their rows, and nothing is summed before all rows of a span
 * are there. Grid: one work-group for each partial of the [rows] buffers; where it is the batch's only one it folds as well,
 * else a second launch does, of one work-group with FLAG_FOLD (a kernel of its own takes PoCL 3.1 40 ms of CPU to compile). Of
 * few rows the main kernel does all that, see epilogue.cl.
 *
 * A part of every program whose plan reduces, for its DTYPE and WG_SIZE: a program of its own takes PoCL 25 ms, however
 * short it is and though it is cached.
 */

/* What losses and gradients are divided by: the caller's denominator, or the sum that the pass over the targets left. */
static inline acc_t denominator_of(const clxent_parameters *p, __global const acc_t *denominator,
                                   __global const uchar *workspace)
{
    if (p->flags & FLAG_DENOMINATOR) return denominator[p->offset.denominator];
    return (p->flags & FLAG_MEAN) ? *(__global const acc_t *)(workspace + p->denominator_at) : ACC(1.0);
}

#if REDUCES
typedef struct {
    compensated_sum_one sum; /* of row weights, or of losses */
    ulong count;             /* of bad targets, or of correct predictions */
    ulong first_bad;
    long bad_value;
    ulong counted; /* rows that count */
} partial;

static inline partial merge_partials(const partial a, const partial b)
{
    partial c = { compensated_merge_one(a.sum, b.sum), a.count + b.count, a.first_bad, a.bad_value,
                  a.counted + b.counted };
    if (b.first_bad < a.first_bad) {
        c.first_bad = b.first_bad;
        c.bad_value = b.bad_value;
    }
    return c;
}

/* Rows between one that is summed and the one that is prefetched meanwhile. */
#    define REDUCE_AHEAD 1024u

static inline partial empty_partial(void) { return (partial){ { 0, 0 }, 0, 0xffffffffffffffffUL, 0, 0 }; }

/* What a work-item of the group sums of one partial: rows [begin, end), from its own on. */
typedef struct {
    ulong begin, end;
    uint item;
} share_of_partial;

static inline share_of_partial own_share(const clxent_parameters *p, const ulong index)
{
    const ulong unit = index / p->partials_per_unit * p->reduce_unit;
    const ulong begin = unit + index % p->partials_per_unit * REDUCE_ROWS;
    return (share_of_partial){ begin, min(min(begin + REDUCE_ROWS, unit + p->reduce_unit), p->rows),
                               LOCAL_ID };
}

static inline __global partial *partial_at(const clxent_parameters *p, __global uchar *workspace,
                                           const ulong index)
{
    return (__global partial *)(workspace + p->partials_at + index * PARTIAL_BYTES);
}

/* With FLAG_FOLD those of the batch, in work-item 0; else none. */
static inline partial all_partials(const clxent_parameters *p, __global uchar *workspace)
{
    const ulong count = (p->flags & FLAG_FOLD) && LOCAL_ID == 0 ? p->partials : 0;
    partial all = empty_partial();
    for (ulong i = 0; i < count; i++) all = merge_partials(all, *partial_at(p, workspace, i));
    return all;
}

/* Work-item 0 returns the group's sum, in the order of the work-items. */
TAKES_LOCAL partial merge_partials_of_group(const partial own, __local partial *scratch)
{
    if (WG_SIZE == 1) return own;
    scratch[LOCAL_ID] = own;
    barrier(CLK_LOCAL_MEM_FENCE);
    partial all = own;
    if (LOCAL_ID == 0) {
        for (uint i = 1; i < WG_SIZE; i++) all = merge_partials(all, scratch[i]);
    }
    return all;
}

/* The first n of the lanes; a row that does not exist adds nothing. */
static inline lane keep_first(const lane v, const uint n)
{
    return n == LANE_ROWS ? v : LANE_IOTA < (ilane)((integer)n) ? v : (lane)(0);
}

static inline compensated_sum_one fold_lanes(const compensated_sum s)
{
    acc_t high[LANE_ROWS], low[LANE_ROWS];
    compensated_sum_one all = { 0, 0 };
    STORE_LANE(s.high, high);
    STORE_LANE(s.low, low);
    ROLLED
    for (uint i = 0; i < LANE_ROWS; i++)
        all = compensated_merge_one(all, (compensated_sum_one){ high[i], low[i] });
    return all;
}

static inline ulong count_lanes(const ilane counts)
{
    integer of_lane[LANE_ROWS];
    ulong all = 0;
    STORE_LANE(counts, of_lane);
    ROLLED
    for (uint i = 0; i < LANE_ROWS; i++) all += (ulong)of_lane[i];
    return all;
}

static inline void fold_targets(const clxent_parameters *p, const partial all, __global ulong *bad_targets,
                                __global acc_t *computed_denominator, __global ulong *counted,
                                __global uchar *workspace)
{
    const acc_t weights = compensated_value_one(all.sum);
    *(__global acc_t *)(workspace + p->denominator_at) = weights;
    if (p->outputs & OUTPUT_COMPUTED_DENOMINATOR)
        computed_denominator[p->offset.computed_denominator] = weights;
    if (p->outputs & OUTPUT_COUNTED) counted[p->offset.counted] = all.counted;
    if (p->outputs & OUTPUT_BAD_TARGETS) {
        __global ulong *record = bad_targets + 3 * p->offset.bad_targets; /* counted in records */
        record[0] = all.count;
        record[1] = all.count > 0 ? all.first_bad : 0;
        record[2] = as_ulong(all.count > 0 ? all.bad_value : 0L);
    }
}

PART void sum_targets(partial *sum, const clxent_parameters *p, __global const void *targets,
                      __global const acc_t *class_weights, __global const acc_t *row_weights,
                      const share_of_partial share)
{
    /* of i64 a step is two lines, of which one is prefetched */
    const uint target_bytes = TARGETS == TARGET_I64   ? 8
                              : HAS_4_BYTE_INDICES    ? 4
                              : TARGETS == TARGET_U16 ? 2
                                                      : 1;
    partial own = empty_partial();
    compensated_sum weights = compensated_zero();
    ilane counts = (ilane)(0); /* at most REDUCE_ROWS */
    for (ulong row = share.begin + share.item * LANE_ROWS; row < share.end; row += WG_SIZE * LANE_ROWS) {
        const uint n = (uint)min((ulong)LANE_ROWS, share.end - row);
        PREFETCH((__global const uchar *)targets + (p->offset.targets + row + REDUCE_AHEAD) * target_bytes);
        const lane_targets t = get_targets(p, row, n, targets, row_weights);
        lane weight = t.weight;
        if (HAS_CLASS_WEIGHTS) {
            const lane of_class = gather(class_weights, t.class_index);
            weight = t.has_class ? weight * of_class : weight;
        }
        weights = compensated_add(weights, keep_first(weight, n));
        counts -= n == LANE_ROWS || LANE_IOTA < (ilane)((integer)n) ? t.counts : (ilane)(0);
        if (ANY_LANE(t.bad)) {
            ROLLED
            for (uint i = 0; i < n; i++) {
                const row_target one = get_target(p, row + i, targets, row_weights);
                if (one.bad)
                    own = merge_partials(own, (partial){ { 0, 0 }, 1, p->first_row + row + i, one.value, 0 });
            }
        }
    }
    own.sum = fold_lanes(weights);
    own.counted = count_lanes(counts);
    *sum = own;
}

/* Of both kernels the body is a function of its own, see DEFINE_KERNEL. */
PART void reduce_targets(const clxent_parameters *p, const size_t group, __global const void *targets,
                         __global const acc_t *class_weights, __global const acc_t *row_weights,
                         __global ulong *bad_targets, __global acc_t *computed_denominator,
                         __global ulong *counted, __global uchar *workspace, __local partial *scratch)
{
    partial own = all_partials(p, workspace);
    if (!(p->flags & FLAG_FOLD))
        sum_targets(&own, p, targets, class_weights, row_weights, own_share(p, group));
    const partial all = merge_partials_of_group(own, scratch);
    if (LOCAL_ID != 0) return;
    if (p->partials == 1 || (p->flags & FLAG_FOLD)) {
        fold_targets(p, all, bad_targets, computed_denominator, counted, workspace);
    } else {
        *partial_at(p, workspace, group) = all;
    }
}

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_reduce_targets(
    const clxent_parameters p, __global const void *restrict targets, /* [rows] */
    __global const acc_t *restrict class_weights,                     /* [classes] */
    __global const acc_t *restrict row_weights,                       /* [rows] */
    __global ulong *restrict bad_targets,                             /* [3] */
    __global acc_t *restrict computed_denominator,                    /* [1] */
    __global ulong *restrict counted,                                 /* [1] */
    __global uchar *restrict workspace)
{
    __local partial scratch[WG_SIZE];
    reduce_targets(&p, get_group_id(0), targets, class_weights + p.offset.class_weights, row_weights,
                   bad_targets, computed_denominator, counted, workspace, scratch);
}

static inline void fold_losses(const clxent_parameters *p, const partial all, const acc_t divisor,
                               __global acc_t *loss, __global ulong *correct)
{
    if (p->outputs & OUTPUT_CORRECT) correct[p->offset.correct] = all.count;
    if (!(p->outputs & OUTPUT_LOSS)) return;
    const acc_t value = compensated_value_one(all.sum);
    acc_t result = value / divisor;
    if (divisor == 0) {
        /* a bad row's NaN is not hidden */
        const bool zero = (p->flags & FLAG_ALL_IGNORED_ZERO) != 0 && value == value;
        result = zero ? ACC(0.0) : ACC_NAN;
    }
    loss[p->offset.loss] = result;
}

PART void sum_losses(partial *sum, const clxent_parameters *p, __global const acc_t *losses,
                     __global const uchar *workspace, const share_of_partial share)
{
    const bool sums = (p->outputs & OUTPUT_LOSS) != 0;
    const bool counts = (p->outputs & OUTPUT_CORRECT) != 0;
    __global const acc_t *row_losses = (p->outputs & OUTPUT_LOSSES)
                                           ? losses + p->offset.losses
                                           : (__global const acc_t *)(workspace + p->row_losses_at);
    partial own = empty_partial();
    compensated_sum total = compensated_zero();
    ilane hits = (ilane)(0); /* at most REDUCE_ROWS */
    for (ulong row = share.begin + share.item * LANE_ROWS; row < share.end; row += WG_SIZE * LANE_ROWS) {
        const uint n = (uint)min((ulong)LANE_ROWS, share.end - row);
        PREFETCH(row_losses + row + REDUCE_AHEAD);
        if (sums) total = compensated_add(total, keep_first(load_lanes(row_losses + row, n), n));
        if (counts && n == LANE_ROWS) {
            hits += TO_INTEGERS(LOAD_LANE(workspace + p->correct_at + row));
        } else if (counts) {
            ROLLED
            for (uint i = 0; i < n; i++) own.count += workspace[p->correct_at + row + i];
        }
    }
    own.sum = fold_lanes(total);
    own.count += count_lanes(hits);
    *sum = own;
}

PART void reduce_losses(const clxent_parameters *p, const size_t group, __global const acc_t *losses,
                        __global const acc_t *denominator, __global acc_t *loss, __global ulong *correct,
                        __global uchar *workspace, __local partial *scratch)
{
    partial own = all_partials(p, workspace);
    if (!(p->flags & FLAG_FOLD)) sum_losses(&own, p, losses, workspace, own_share(p, group));
    const partial all = merge_partials_of_group(own, scratch);
    if (LOCAL_ID != 0) return;
    if (p->partials == 1 || (p->flags & FLAG_FOLD)) {
        fold_losses(p, all, denominator_of(p, denominator, workspace), loss, correct);
    } else {
        *partial_at(p, workspace, group) = all;
    }
}

__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_reduce_losses(
    const clxent_parameters p, __global const acc_t *restrict losses, /* [rows], or NULL: in workspace */
    __global const acc_t *restrict denominator,                       /* [1] */
    __global acc_t *restrict loss,                                    /* [1] */
    __global ulong *restrict correct,                                 /* [1] */
    __global uchar *restrict workspace)
{
    __local partial scratch[WG_SIZE];
    reduce_losses(&p, get_group_id(0), losses, denominator, loss, correct, workspace, scratch);
}
#endif
