/* SPDX-License-Identifier: MIT
 *
 * target.cl - what rows have one of: where they begin, their targets and weights, of one row or of a vector of rows. Stands
 * behind common.cl in every program that reads targets.
 */
/* ---- Rows -------------------------------------------------------------------------------- */

/* The element that class 0 of a row stands at: [rows / inner, classes, inner]. */
static inline ulong row_start(const clxent_parameters *p, const ulong row, const ulong stride)
{
    return p->inner == 1 ? row * stride : row / p->inner * stride + row % p->inner;
}

/* Of a class that there is not. Classes are fewer. */
#define NO_CLASS INT_MAX
#define NO_CLASSES ((ilane)((integer)NO_CLASS))

/* What a row's target says: whether the row counts, and how much. */
typedef struct {
    bool counts;    /* neither ignored nor masked nor out of range */
    bool bad;       /* out of range, and the policy makes that NaN */
    bool has_class; /* counts, with an index target: class_index is in range */
    uint class_index;
    long value;   /* as stored, where bad */
    acc_t weight; /* row_weight; 0 where the row does not count */
} row_target;

static inline long load_target(__global const void *targets, const ulong at)
{
    if (TARGETS == TARGET_I32) return ((__global const int *)targets)[at];
    if (TARGETS == TARGET_I64) return ((__global const long *)targets)[at];
    if (TARGETS == TARGET_U16) return ((__global const ushort *)targets)[at];
    if (TARGETS == TARGET_U32) return ((__global const uint *)targets)[at];
    return ((__global const uchar *)targets)[at];
}

/* The target is compared at its full width, and a row of weight 0 does not look at it. */
static inline row_target get_target(const clxent_parameters *p, const ulong row, __global const void *targets,
                                    __global const acc_t *row_weights)
{
    row_target t = { false, false, false, 0, 0, 0 };
    const acc_t weight = (p->flags & FLAG_ROW_WEIGHTS) ? row_weights[p->offset.row_weights + row] : ACC(1.0);
    if (weight == 0 || TARGETS == TARGET_NONE) return t;
    if (p->shift > 0 && (row + p->first_timestep) % p->seq + p->shift >= p->seq) return t;
    if (HAS_PROBABILITIES) {
        t.counts = true;
        t.weight = weight;
        return t;
    }
    const long target = load_target(targets, p->offset.targets + row + p->shift);
    if ((p->flags & FLAG_IGNORE_INDEX) && target == p->ignore_index) return t;
    if (target < 0 || target >= (long)p->classes) {
        t.bad = (p->flags & FLAG_BAD_IGNORED) == 0;
        t.value = target;
        return t;
    }
    t.counts = true;
    t.has_class = true;
    t.class_index = (uint)target;
    t.weight = weight;
    return t;
}

/* Of a [rows, classes] target. */
static inline acc_t load_probability(__global const void *targets, const ulong at)
{
    if (TARGETS == TARGET_PROBABILITIES_LOGITS) return load_one((__global const storage *)targets + at);
    return convert_acc(((__global const float *)targets)[at]);
}

/* ---- Lanes ------------------------------------------------------------------------------- */

#define LONGS LANE(long)

static inline lane load_lanes(__global const acc_t *p, const uint n)
{
    if (n == LANE_ROWS) return LOAD_LANE(p);
    acc_t element[LANE_ROWS];
    ROLLED
    for (uint i = 0; i < LANE_ROWS; i++) element[i] = p[min(i, n - 1)];
    return LOAD_LANE(element);
}

static inline void store_lanes(__global acc_t *p, const lane value, const uint n)
{
    if (n == LANE_ROWS) {
        STORE_LANE(value, p);
        return;
    }
    acc_t element[LANE_ROWS];
    STORE_LANE(value, element);
    ROLLED
    for (uint i = 0; i < n; i++) p[i] = element[i];
}

/* The targets of n rows, as get_target() finds them; of the lanes behind, the last row's. */
typedef struct {
    ilane counts, bad, has_class;
    ilane class_index; /* NO_CLASS where there is none */
    lane weight;
} lane_targets;

/* One by one. */
#if LANES
PART
#else
static inline
#endif
    void
    get_each_target(lane_targets *t, const clxent_parameters *p, const ulong row, const uint n,
                    __global const void *targets, __global const acc_t *row_weights)
{
    integer counts[LANE_ROWS], bad[LANE_ROWS], has_class[LANE_ROWS], class_index[LANE_ROWS];
    acc_t weight[LANE_ROWS];
    ROLLED
    for (uint i = 0; i < LANE_ROWS; i++) {
        const row_target one = get_target(p, row + min(i, n - 1), targets, row_weights);
        counts[i] = one.counts ? -1 : 0;
        bad[i] = one.bad ? -1 : 0;
        has_class[i] = one.has_class ? -1 : 0;
        class_index[i] = one.has_class ? (integer)one.class_index : (integer)NO_CLASS;
        weight[i] = one.weight;
    }
    t->counts = LOAD_LANE(counts);
    t->bad = LOAD_LANE(bad);
    t->has_class = LOAD_LANE(has_class);
    t->class_index = LOAD_LANE(class_index);
    t->weight = LOAD_LANE(weight);
}

static inline lane_targets get_targets(const clxent_parameters *p, const ulong row, const uint n,
                                       __global const void *targets, __global const acc_t *row_weights)
{
    const ilane none = (ilane)(0);
    if (TARGETS == TARGET_NONE) return (lane_targets){ none, none, none, NO_CLASSES, (lane)(0) };
    lane_targets t;
    if (LANE_ROWS == 1 || n < LANE_ROWS || p->shift > 0 || !HAS_INDICES) {
        get_each_target(&t, p, row, n, targets, row_weights);
        return t;
    }
    const ulong at = p->offset.targets + row;
    const bool ignores = (p->flags & FLAG_IGNORE_INDEX) != 0;
    ilane value, outside, ignored;
    if (TARGETS == TARGET_I64) {
        const LONGS wide = LOAD_LANE((__global const long *)targets + at);
        outside = TO_INTEGERS(wide < (LONGS)(0) || wide >= (LONGS)((long)p->classes));
        ignored = TO_INTEGERS(wide == (LONGS)(p->ignore_index));
        value = TO_INTEGERS(wide);
    } else {
        /* A u32 from 2^31 on reads as a negative number, which is out of range as well. */
        const LANE(int) narrow = HAS_4_BYTE_INDICES ? LOAD_LANE((__global const int *)targets + at)
                                 : TARGETS == TARGET_U16
                                     ? LANE_OF(int)(LOAD_LANE((__global const ushort *)targets + at))
                                     : LANE_OF(int)(LOAD_LANE((__global const uchar *)targets + at));
        const int index = (int)p->ignore_index;
        const long full_width = TARGETS == TARGET_U32 ? (long)(uint)index : (long)index;
        const LANE(int) behind = AS_LANES(int)((LANE(uint))(p->classes - 1) - AS_LANES(uint)(narrow));
        outside = TO_INTEGERS((narrow | behind) >> 31);
        ignored = TO_INTEGERS(narrow == (LANE(int))(index));
        if (full_width != p->ignore_index) ignored = (ilane)(0);
        value = TO_INTEGERS(narrow);
    }
    if (!ignores) ignored = (ilane)(0);
    t.weight = (lane)(1);
    if (p->flags & FLAG_ROW_WEIGHTS) t.weight = LOAD_LANE(row_weights + p->offset.row_weights + row);
    const ilane left_out = EITHER(IS_ZERO(t.weight), ignored);
    t.has_class = NOT(EITHER(left_out, outside));
    t.counts = t.has_class;
    t.bad = (p->flags & FLAG_BAD_IGNORED) == 0 ? BOTH(outside, NOT(left_out)) : (ilane)(0);
    t.class_index = t.has_class ? value : NO_CLASSES;
    t.weight = t.counts ? t.weight : (lane)(0);
    return t;
}

/* table[class of each lane], 0 where there is none */
static inline lane gather(__global const acc_t *table, const ilane class_index)
{
    integer index[LANE_ROWS];
    acc_t element[LANE_ROWS];
    STORE_LANE(class_index, index);
    ROLLED
    for (uint i = 0; i < LANE_ROWS; i++) element[i] = index[i] != NO_CLASS ? table[index[i]] : 0;
    return LOAD_LANE(element);
}
