/* SPDX-License-Identifier: MIT
 *
 * lanes.cl - everything that is computed from logits, where a vector lies across rows: each of its elements, a
 * lane, is another row, and what a row has one of is one vector for all of them. For rows of few classes, and
 * for a class axis that is not the last. cross_entropy.cl has the other rows.
 *
 * Rows come in tiles of WG_SIZE * VEC. A tile is read once into local memory, class by class, and stays there
 * until its results are written; where it does not fit (INNER only) it is read a second time. With the class axis
 * last, tiles are transposed on their way in and out: by shuffles of registers in a group of one work-item, by
 * local memory in larger ones.
 *
 * Set by the host with -D, beside those of common.cl and loss.cl:
 *   INNER  0: the class axis is last; a group of more than one work-item needs VEC 1
 *          1: rows are neighbours, classes are inner elements apart
 */
#if !defined(INNER) || INNER < 0 || INNER > 1 || (!INNER && VEC > 1 && WG_SIZE > 1)
#    error "INNER: 0, with VEC 1 or WG_SIZE 1, or 1"
#endif

#define TILE (WG_SIZE * VEC)
/* From one class to the next in a tile. The odd element keeps neighbouring classes of a row in different banks. */
#if !INNER && WG_SIZE > 1
#    define COOPERATIVE 1 /* tiles are loaded and stored by all work-items of the group */
#    define PITCH (TILE + 1)
#else
#    define COOPERATIVE 0
#    define PITCH TILE
#endif
/* Classes between two additions to a long sum. Part of what decides bits. */
#define BLOCK_CLASSES 64u

/* The rows of one work-item's lanes, and their inputs. */
typedef struct {
    const clxent_parameters *p;
    ulong row; /* of lane 0 */
    uint n;    /* lanes that exist, 0 to VEC */
    uint classes;
    __global const storage *x; /* lane 0, class 0 */
    __local real *logits;      /* this work-item's part of the tile; where `fits` */
    __local real *values;      /* exponentials; the same place where logits are not needed again */
    bool fits;
    bool keeps_logits;
    bool dense;
    bool probabilities;
    bool q_is_f32;
    __global const void *targets;
    ulong q_at; /* of lane 0, class 0, in elements */
    __global const real *class_weights;
    bool has_class_weights;
    options o;
} tile_input;

/* From lane to lane and from class to class of a [rows, classes] tensor, in elements. */
static inline ulong lane_step(const ulong row_stride) { return INNER ? 1 : row_stride; }

static inline ulong class_step(const clxent_parameters *p) { return INNER ? p->inner : 1; }

/* ---- Lanes from and to memory --------------------------------------------------------------- */

#define LONGS VECTOR(long)

static inline vec load_lanes(__global const real *p, const uint n)
{
    if (n == VEC) return LOAD(p);
    real element[VEC];
    for (uint i = 0; i < VEC; i++) element[i] = p[min(i, n - 1)];
    return LOAD(element);
}

static inline void store_lanes(__global real *p, const vec value, const uint n)
{
    if (n == VEC) {
        STORE(value, p);
        return;
    }
    real element[VEC];
    STORE(value, element);
    for (uint i = 0; i < n; i++) p[i] = element[i];
}

/* The targets of all lanes, as get_target() finds them. */
typedef struct {
    ilane counts, bad, has_class;
    ilane class_index; /* -1 where there is none */
    lane weight;
} lane_targets;

static inline lane_targets get_targets(const tile_input *in, __global const real *row_weights)
{
    const clxent_parameters *p = in->p;
    lane_targets t;
    if (in->n < VEC || p->shift > 0 || p->target_type == TARGET_NONE || in->probabilities) {
        integer counts[VEC], bad[VEC], has_class[VEC], class_index[VEC];
        real weight[VEC];
        for (uint i = 0; i < VEC; i++) {
            const row_target one = get_target(p, in->row + min(i, in->n - 1), in->targets, row_weights);
            counts[i] = one.counts ? -1 : 0;
            bad[i] = one.bad ? -1 : 0;
            has_class[i] = one.has_class ? -1 : 0;
            class_index[i] = one.has_class ? (integer)one.class_index : -1;
            weight[i] = one.weight;
        }
        t.counts = LOAD(counts);
        t.bad = LOAD(bad);
        t.has_class = LOAD(has_class);
        t.class_index = LOAD(class_index);
        t.weight = LOAD(weight);
        return t;
    }
    const ulong at = p->offset.targets + in->row;
    LONGS value;
    if (p->target_type == TARGET_I32) {
        value = CONVERT(long)(LOAD((__global const int *)in->targets + at));
    } else if (p->target_type == TARGET_I64) {
        value = LOAD((__global const long *)in->targets + at);
    } else {
        value = CONVERT(long)(LOAD((__global const uchar *)in->targets + at));
    }
    t.weight = (lane)(1);
    if (p->flags & FLAG_ROW_WEIGHTS) t.weight = LOAD(row_weights + p->offset.row_weights + in->row);
    const ilane judged = t.weight != (lane)(0);
    const ilane known = TO_INTEGERS(value >= (LONGS)(0) && value < (LONGS)((long)p->classes));
    ilane ignored = (ilane)(0);
    if (p->flags & FLAG_IGNORE_INDEX) ignored = TO_INTEGERS(value == (LONGS)(p->ignore_index));
    t.has_class = judged && known && !ignored;
    t.counts = t.has_class;
    t.bad = (ilane)(p->bad_target != BAD_TARGET_IGNORE ? -1 : 0) && judged && !known && !ignored;
    t.class_index = t.has_class ? TO_INTEGERS(value) : (ilane)(-1);
    t.weight = t.counts ? t.weight : (lane)(0);
    return t;
}

/* table[class of each lane], 0 where there is none; step: elements from lane to lane */
static inline lane gather(__global const real *table, const ilane class_index)
{
    integer index[VEC];
    real element[VEC];
    STORE(class_index, index);
    for (uint i = 0; i < VEC; i++) element[i] = index[i] >= 0 ? table[index[i]] : 0;
    return LOAD(element);
}

/* x of class c in all lanes. */
static inline vec load_class(const tile_input *in, const uint c)
{
    __global const storage *x = in->x + c * class_step(in->p);
    if (INNER && in->n == VEC) return load_vector(x);
    real element[VEC];
    for (uint i = 0; i < VEC; i++) {
        element[i] = load_one(x + min(i, in->n - 1) * lane_step(in->p->row_stride));
    }
    return LOAD(element);
}

static inline vec get_x(const tile_input *in, const uint c)
{
    return in->fits ? LOAD(in->logits + (size_t)c * PITCH) : load_class(in, c);
}

static inline vec get_z(const tile_input *in, const uint c)
{
    vec unused;
    return softcap_vector_z(get_x(in, c), in->o, &unused);
}

/* The logit of each lane's target; -inf without one. */
static inline lane target_logits(const tile_input *in, const ilane class_index)
{
    integer index[VEC];
    real element[VEC];
    STORE(class_index, index);
    for (uint i = 0; i < VEC; i++) {
        element[i] = -REAL_INFINITY;
        if (i >= in->n || index[i] < 0) continue;
        element[i] =
            in->fits
                ? in->logits[(size_t)index[i] * PITCH + i]
                : load_one(in->x + (ulong)index[i] * class_step(in->p) + i * lane_step(in->p->row_stride));
    }
    return LOAD(element);
}

/* The part of a_j that every class has, of class c: of an index target the smoothing, of probabilities all. */
static inline vec dense_class(const tile_input *in, const uint c)
{
    vec a = (vec)(in->o.share);
    if (in->probabilities) {
        const ulong at = in->q_at + c * class_step(in->p), step = lane_step(in->p->target_row_stride);
        __global const float *f32 = (__global const float *)in->targets + at;
        __global const storage *stored = (__global const storage *)in->targets + at;
        vec q;
        if (INNER && in->n == VEC) {
            q = in->q_is_f32 ? CONVERT_VEC(LOAD(f32)) : load_vector(stored);
        } else {
            real element[VEC];
            for (uint i = 0; i < VEC; i++) {
                const ulong skip = min(i, in->n - 1) * step;
                element[i] = in->q_is_f32 ? convert_real(f32[skip]) : load_one(stored + skip);
            }
            q = LOAD(element);
        }
        a = fma((vec)(in->o.keep), q, a);
    }
    if (in->has_class_weights) a = a * (vec)(in->class_weights[c]);
    return a;
}

/* ---- Transposition -------------------------------------------------------------------------- */

#if VEC == 16
#    define ZIP(a, b, s)                                                                                 \
        ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1, (a).s##2, (b).s##2, (a).s##3, (b).s##3, (a).s##4, \
               (b).s##4, (a).s##5, (b).s##5, (a).s##6, (b).s##6, (a).s##7, (b).s##7))
#elif VEC == 8
#    define ZIP(a, b, s) \
        ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1, (a).s##2, (b).s##2, (a).s##3, (b).s##3))
#elif VEC == 4
#    define ZIP(a, b, s) ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1))
#endif

/* v[i].j <-> v[j].i: log2(VEC) rounds, each of which zips the first half with the second. */
static inline void transpose(vec v[VEC])
{
#if VEC > 1
    for (uint round = 1; round < VEC; round *= 2) {
        vec w[VEC];
#    pragma unroll
        for (uint i = 0; i < VEC / 2; i++) {
            w[2 * i] = ZIP(v[i].lo, v[i + VEC / 2].lo, s);
            w[2 * i + 1] = ZIP(v[i].hi, v[i + VEC / 2].hi, s);
        }
#    pragma unroll
        for (uint i = 0; i < VEC; i++) v[i] = w[i];
    }
#endif
}

/* ---- A tile of logits ----------------------------------------------------------------------- */

/* Fills this work-item's part of the tile, or with all of the group the whole of it. first: row 0 of the tile, rows:
 * how many it has. */
static inline void fill_tile(const tile_input *in, __local real *tile, const ulong first, const uint rows)
{
    const clxent_parameters *p = in->p;
#if INNER
    (void)tile;
    (void)first;
    (void)rows;
    (void)p;
    if (in->n == 0) return;
    for (uint c = 0; c < in->classes; c++) STORE(load_class(in, c), in->logits + (size_t)c * PITCH);
#elif COOPERATIVE
    __global const storage *x = in->x - get_local_id(0) * p->row_stride;
    (void)first;
    for (uint e = (uint)get_local_id(0); e < rows * in->classes; e += WG_SIZE) {
        const uint r = e / in->classes, c = e % in->classes;
        tile[(size_t)c * PITCH + r] = load_one(x + r * p->row_stride + c);
    }
#else
    (void)tile;
    (void)first;
    (void)rows;
    if (VEC == 1 || in->classes < VEC) {
        for (uint c = 0; c < in->classes; c++) STORE(load_class(in, c), in->logits + (size_t)c * PITCH);
        return;
    }
    /* the last block overlaps the one before it */
    for (uint at = 0; at < in->classes; at += VEC) {
        const uint c = min(at, in->classes - VEC);
        vec v[VEC];
#    pragma unroll
        for (uint i = 0; i < VEC; i++) v[i] = load_vector(in->x + min(i, in->n - 1) * p->row_stride + c);
        transpose(v);
#    pragma unroll
        for (uint i = 0; i < VEC; i++) STORE(v[i], in->logits + (size_t)(c + i) * PITCH);
    }
#endif
}

/* ---- Sums ----------------------------------------------------------------------------------- */

typedef struct {
    lane maximum;
    long_sum others, entropy, dense_nll, dense_weight; /* as in cross_entropy.cl */
    ilane best, nan_at;                                /* -1: none */
} tile_sums;

static inline lane tile_maximum(const tile_input *in)
{
    vec m0 = (vec)(-REAL_INFINITY), m1 = m0, m2 = m0, m3 = m0;
    uint c = 0;
    for (; c + 3 < in->classes; c += 4) {
        m0 = vec_max(m0, get_z(in, c));
        m1 = vec_max(m1, get_z(in, c + 1));
        m2 = vec_max(m2, get_z(in, c + 2));
        m3 = vec_max(m3, get_z(in, c + 3));
    }
    for (; c < in->classes; c++) m0 = vec_max(m0, get_z(in, c));
    return vec_max(vec_max(m0, m1), vec_max(m2, m3));
}

/* Adds class c to the sums of a block; leaves the exponentials behind. */
static inline vec add_class(const tile_input *in, const tile_sums *s, const exp_scale scale,
                            const ilane target, const uint c, const bool entropy, vec *block_entropy,
                            vec *nll, vec *weight, const bool far)
{
    const vec z = get_z(in, c);
    const vec e = exp_vector(z, scale, far);
    if (in->fits) STORE(e, in->values + (size_t)c * PITCH);
    const vec other = target == (ilane)((integer)c) ? (vec)(0) : e;
    if (GENERAL) {
        const vec distance = (s->maximum > (lane)(-REAL_INFINITY) ? s->maximum : (lane)(0)) - z;
        if (entropy) *block_entropy += other == (vec)(0) ? (vec)(0) : other * distance;
        if (in->dense) {
            const vec a = dense_class(in, c);
            *nll += a == (vec)(0) ? (vec)(0) : a * distance;
            *weight += a;
        }
    }
    return other;
}

static inline void sum_classes(const tile_input *in, tile_sums *s, const ilane target, const uint begin,
                               const uint end, const bool entropy, const bool far)
{
    const vec zero = (vec)(0);
    const exp_scale scale = exp_scale_of(s->maximum);
    vec others0 = zero, others1 = zero, others2 = zero, others3 = zero;
    vec block_entropy = zero, nll = zero, weight = zero;
    uint c = begin;
#define ADD(c) add_class(in, s, scale, target, c, entropy, &block_entropy, &nll, &weight, far)
    for (; c + 3 < end; c += 4) {
        others0 += ADD(c);
        others1 += ADD(c + 1);
        others2 += ADD(c + 2);
        others3 += ADD(c + 3);
    }
    for (; c < end; c++) others0 += ADD(c);
#undef ADD
    s->others = long_add(s->others, (others0 + others1) + (others2 + others3));
    if (GENERAL && entropy) s->entropy = long_add(s->entropy, block_entropy);
    if (GENERAL && in->dense) {
        s->dense_nll = long_add(s->dense_nll, nll);
        s->dense_weight = long_add(s->dense_weight, weight);
    }
}

/* Where the tile does not stay on chip, it is read once for maximum and sums together. */
static inline void raise_maximum(tile_sums *s, const lane maximum)
{
    const ilane first = s->maximum == (lane)(-REAL_INFINITY);
    const ilane same = s->maximum == maximum;
    const lane rescale = exp_rescale(exp_scale_of(s->maximum), exp_scale_of(maximum));
    const lane factor = first || same ? (lane)(1) : rescale;
    if (GENERAL) {
        const lane step = first || same ? (lane)(0) : maximum - s->maximum;
        s->entropy = long_times(long_add(s->entropy, s->others.high * step), factor);
        s->dense_nll = long_add(s->dense_nll, s->dense_weight.high * step);
    }
    s->others = long_times(s->others, factor);
    s->maximum = maximum;
}

static inline tile_sums sum_tile(const tile_input *in, const ilane target, const bool from_statistics,
                                 const lane saved_maximum, const bool entropy)
{
    tile_sums s;
    s.maximum = (lane)(-REAL_INFINITY);
    s.others = s.entropy = s.dense_nll = s.dense_weight = long_zero();
    s.best = s.nan_at = (ilane)(-1);
    if (from_statistics) {
        s.maximum = saved_maximum;
    } else if (in->fits) {
        s.maximum = tile_maximum(in);
    }
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        if (!in->fits && !from_statistics) {
            lane m = s.maximum;
            for (uint c = begin; c < end; c++) m = vec_max(m, get_z(in, c));
            raise_maximum(&s, m);
        }
        const ilane is_far = fabs(s.maximum) > (lane)(MAX_NEAR);
        if (GENERAL || ANY_LANE(is_far)) {
            sum_classes(in, &s, target, begin, end, entropy, true);
        } else {
            sum_classes(in, &s, target, begin, end, entropy, false);
        }
    }
    return s;
}

/* The first NaN and the first maximum of s, see get_s() in cross_entropy.cl. */
static inline void find_best(const tile_input *in, tile_sums *s)
{
    options uncapped = in->o;
    uncapped.softcap = 0;
    vec unused;
    lane top = (lane)(-REAL_INFINITY);
    s->best = (ilane)(0);
    s->nan_at = (ilane)(-1);
    for (uint c = 0; c < in->classes; c++) {
        const vec v = softcap_vector_z(get_x(in, c), uncapped, &unused);
        const ilane here = (ilane)((integer)c);
        const ilane better = v > top;
        s->best = better ? here : s->best;
        top = better ? v : top;
        s->nan_at = v != v && s->nan_at < (ilane)(0) ? here : s->nan_at;
    }
}

static inline lane sum_below_top(const tile_input *in, const row_result *r)
{
    const lane top = exp_lane(r->maximum, r->scale, true);
    long_sum sum = long_zero();
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        vec others = (vec)(0);
        for (uint c = begin; c < end; c++) {
            const vec e =
                in->fits ? LOAD(in->values + (size_t)c * PITCH) : exp_vector(get_z(in, c), r->scale, true);
            others += e == top ? (vec)(0) : e; /* more than half of the sum: there is one such class */
        }
        sum = long_add(sum, others);
    }
    return long_value(sum);
}

/* ---- [rows, classes] results ---------------------------------------------------------------- */

#define EMIT_LOG_SOFTMAX 0
#define EMIT_SOFTMAX 1
#define EMIT_GRADIENT 2
#define EMIT_KINDS 3

typedef struct {
    uint kind;
    lane factor; /* of the exponentials */
    gradient_factors g;
    ilane target;
    bool accumulate;
    __global storage *out; /* softmax or log-softmax; lane 0, class 0 */
    __global gradient_storage *gradient;
    ulong step; /* from lane to lane */
    bool streaming;
} emission;

/* Of class c in all lanes. again: the exponentials were written over since the sums were taken. */
static inline vec emit_value(const tile_input *in, const row_result *r, const emission *m, const uint c,
                             const bool again)
{
    if (m->kind == EMIT_LOG_SOFTMAX) return -((r->maximum - get_z(in, c)) + r->log_d);
    vec dz_dx = (vec)(1);
    vec e;
    if (in->fits && !again) {
        e = LOAD(in->values + (size_t)c * PITCH);
        if (GENERAL && m->kind == EMIT_GRADIENT) (void)softcap_vector_z(get_x(in, c), in->o, &dz_dx);
    } else {
        e = exp_vector(softcap_vector_z(get_x(in, c), in->o, &dz_dx), r->scale, true);
    }
    vec value = e * m->factor;
    if (m->kind == EMIT_SOFTMAX) return value;
    if (GENERAL) {
        if (in->dense) value = value - dense_class(in, c);
        value = value * m->g.outer * dz_dx;
    }
    value = m->target == (ilane)((integer)c) ? m->g.target : value;
    return m->g.filled ? m->g.fill : value;
}

/* n elements at p; whole vectors may be aligned. */
static inline void put(const emission *m, const ulong at, const vec value, const uint n, const bool aligned)
{
    if (m->kind != EMIT_GRADIENT) {
        if (n == VEC) {
            store_vector(m->out + at, value, aligned);
        } else {
            store_partial(m->out + at, value, n);
        }
        return;
    }
    if (n == VEC) {
        vec sum = value;
        if (m->accumulate) sum = value + load_gradient_vector(m->gradient + at);
        store_gradient_vector(m->gradient + at, sum, aligned);
    } else {
        vec sum = value;
        if (m->accumulate) sum = value + load_gradient_partial(m->gradient + at, n);
        store_gradient_partial(m->gradient + at, sum, n);
    }
}

static inline void put_one(const emission *m, const ulong at, const real value)
{
    if (m->kind != EMIT_GRADIENT) {
        store_one(m->out + at, value);
    } else if (m->accumulate) {
        store_gradient_one(m->gradient + at, value + load_gradient_one(m->gradient + at));
    } else {
        store_gradient_one(m->gradient + at, value);
    }
}

/* Whether vectors of rows `step` apart begin where streaming stores may go. */
static inline bool is_aligned(const emission *m, const ulong step)
{
    const size_t size = m->kind == EMIT_GRADIENT ? sizeof(gradient_storage) : sizeof(storage);
    const size_t address = m->kind == EMIT_GRADIENT ? (size_t)m->gradient : (size_t)m->out;
    return m->streaming && address % (VEC * size) == 0 && step % VEC == 0;
}

#if !COOPERATIVE
static inline void emit_own(const tile_input *in, const row_result *r, const emission *m)
{
#    if INNER
    const bool aligned = is_aligned(m, in->p->inner);
    for (uint c = 0; c < in->classes; c++) {
        put(m, c * class_step(in->p), emit_value(in, r, m, c, false), in->n, aligned);
    }
#    else
    const bool aligned = is_aligned(m, m->step);
    const uint whole = VEC > 1 ? in->classes / VEC * VEC : 0;
    for (uint c = 0; c < whole; c += VEC) {
        vec v[VEC];
#        pragma unroll
        for (uint i = 0; i < VEC; i++) v[i] = emit_value(in, r, m, c + i, false);
        transpose(v);
        for (uint i = 0; i < in->n; i++) put(m, i * m->step + c, v[i], VEC, aligned);
    }
    for (uint c = whole; c < in->classes; c++) {
        real element[VEC];
        STORE(emit_value(in, r, m, c, false), element);
        for (uint i = 0; i < in->n; i++) put_one(m, i * m->step + c, element[i]);
    }
#    endif
}
#endif

/* ---- The kernel ----------------------------------------------------------------------------- */

/* The results that a row has one of, of all lanes. */
static inline void write_rows(const tile_input *in, const row_result *r, const judgement *j,
                              const tile_sums *s, const lane_targets *t, __global real *losses,
                              __global real *lse, __global long *argmax, __global real *entropy,
                              __global real *statistics, __global uchar *workspace)
{
    const clxent_parameters *p = in->p;
    const uint outputs = p->outputs;
    const ilane best = s->nan_at >= (ilane)(0) ? s->nan_at : s->best;
    if (outputs & (OUTPUT_LOSSES | OUTPUT_LOSS)) {
        __global real *to = (outputs & OUTPUT_LOSSES) ? losses + p->offset.losses
                                                      : (__global real *)(workspace + p->row_losses_at);
        store_lanes(to + in->row, loss_of(r, j, in->dense, in->o.z_loss), in->n);
    }
    if (outputs & OUTPUT_LSE) store_lanes(lse + p->offset.lse + in->row, r->lse, in->n);
    if (outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) {
        integer at[VEC], hit[VEC];
        const ilane is_hit = t->has_class && best == t->class_index;
        STORE(best, at);
        STORE(is_hit, hit);
        for (uint i = 0; i < in->n; i++) {
            if (outputs & OUTPUT_ARGMAX) argmax[p->offset.argmax + in->row + i] = at[i];
            if (outputs & OUTPUT_CORRECT) workspace[p->correct_at + in->row + i] = hit[i] != 0;
        }
    }
#if GENERAL
    if (outputs & OUTPUT_ENTROPY) {
        store_lanes(entropy + p->offset.entropy + in->row, entropy_of(r, j, long_value(s->entropy)), in->n);
    }
#endif
    if ((outputs & OUTPUT_STATISTICS) && !(p->flags & FLAG_FROM_STATISTICS)) {
        real maximum[VEC], others[VEC];
        const lane zero = (lane)(0), m = t->counts ? r->maximum : zero, d = t->counts ? r->others : zero;
        STORE(m, maximum);
        STORE(d, others);
        for (uint i = 0; i < in->n; i++) {
            statistics[p->offset.statistics + 2 * (in->row + i)] = maximum[i];
            statistics[p->offset.statistics + 2 * (in->row + i) + 1] = others[i];
        }
    }
}

/* Grid: a work-group for tiles_per_group tiles; a slab of inner rows (all rows with the class axis last) has `tiles`
 * of them. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_lanes(ARGUMENTS)
{
    const uint lid = (uint)get_local_id(0);
    const uint outputs = p.outputs;
    const uint wanted[EMIT_KINDS] = { OUTPUT_LOG_SOFTMAX, OUTPUT_SOFTMAX, OUTPUT_GRADIENT };
    const bool from_statistics = (p.flags & FLAG_FROM_STATISTICS) != 0;
    const bool wants_entropy = GENERAL && (outputs & OUTPUT_ENTROPY) != 0;
    const bool wants_best = (outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    const bool may_be_dense = GENERAL && (is_probabilities(p.target_type) || smoothing != 0);
    const bool second_pass = ((p.flags & FLAG_LOG_D) != 0 || may_be_dense) && !from_statistics;
    const real d = get_d(&p, targets, class_weights, row_weights, denominator, workspace);
    const ulong slab_rows = INNER ? p.inner : p.rows;
    tile_input in;
    in.p = &p;
    in.classes = p.classes;
    in.fits = (p.flags & FLAG_TILE_FITS) != 0;
    in.keeps_logits = (p.flags & FLAG_KEEPS_LOGITS) != 0;
    in.logits = cache + lid * VEC;
    in.values = in.keeps_logits ? in.logits + (size_t)p.classes * PITCH : in.logits;
    in.probabilities = GENERAL && is_probabilities(p.target_type);
    in.q_is_f32 = p.target_type == TARGET_PROBABILITIES_F32;
    in.targets = targets;
    in.class_weights = class_weights + p.offset.class_weights;
    in.has_class_weights = (p.flags & FLAG_CLASS_WEIGHTS) != 0;
    in.dense = may_be_dense;
    in.o = (options){ keep, share, smoothing, z_loss, logit_scale, softcap };
    const bool sums_weight = in.dense && (in.probabilities || in.has_class_weights);

    const ulong tiles = p.rows / slab_rows * p.tiles;
    const ulong first_tile = get_group_id(0) * (ulong)p.tiles_per_group;
    const ulong last_tile = min(first_tile + p.tiles_per_group, tiles);
    for (ulong tile = first_tile; tile < last_tile; tile++) {
        const ulong slab = tile / p.tiles, within = tile % p.tiles * TILE;
        const ulong first_row = slab * slab_rows + within;
        const uint rows = (uint)min((ulong)TILE, slab_rows - within); /* of this tile */
        const uint lane_0 = lid * VEC;
        const ulong slab_at =
            INNER ? slab * p.row_stride + within + lane_0 : (within + lane_0) * p.row_stride;
        in.row = first_row + lane_0;
        in.n = lane_0 < rows ? min((uint)VEC, rows - lane_0) : 0;
        in.x = logits + p.offset.logits + slab_at;
        if (in.probabilities) {
            in.q_at = p.offset.targets + row_start(&p, in.row + p.shift, p.target_row_stride);
        }
        if (in.fits) fill_tile(&in, cache, first_row, rows);
        if (COOPERATIVE) barrier(CLK_LOCAL_MEM_FENCE);

        lane_targets t;
        judgement j;
        row_result r;
        emission m;
        if (in.n > 0) {
            t = get_targets(&in, row_weights);
            lane saved_maximum = (lane)(0), saved_others = (lane)(0);
            if (from_statistics) {
                real maximum[VEC], others[VEC];
                for (uint i = 0; i < VEC; i++) {
                    const ulong at = p.offset.statistics + 2 * (in.row + min(i, in.n - 1));
                    maximum[i] = statistics[at];
                    others[i] = statistics[at + 1];
                }
                saved_maximum = LOAD(maximum);
                saved_others = LOAD(others);
            }
            j.counts = t.counts;
            j.bad = t.bad;
            j.weight = t.weight;
            j.dz_dx = (lane)(1);
            j.z = softcap_vector_z(target_logits(&in, t.class_index), in.o, &j.dz_dx);
            j.one_hot = t.has_class ? (lane)(keep) : (lane)(0);
            if (in.has_class_weights) j.one_hot = j.one_hot * gather(in.class_weights, t.class_index);
            j.dense = (lane)(0);
            if (GENERAL && in.dense && !in.probabilities) {
                j.dense = (lane)(share);
                if (in.has_class_weights) j.dense = j.dense * gather(in.class_weights, t.class_index);
                j.dense = t.has_class ? j.dense : (lane)(0);
            }

            tile_sums s = sum_tile(&in, t.class_index, from_statistics, saved_maximum, wants_entropy);
            j.dense_sum = sums_weight ? long_value(s.dense_weight) : (lane)(in.dense ? smoothing : 0);
            j.dense_nll = GENERAL && in.dense ? long_value(s.dense_nll) : (lane)(0);
            const lane others = from_statistics ? saved_others : long_value(s.others);
            const lane target_exp = t.has_class ? exp_lane(j.z, exp_scale_of(s.maximum), true) : (lane)(0);
            const ilane sum_is_nan = others + target_exp != others + target_exp;
            if (in.keeps_logits && (wants_best || ((outputs & OUTPUT_LSE) && ANY_LANE(sum_is_nan)))) {
                find_best(&in, &s);
            }
            r = finish_sums(s.maximum, others, target_exp, s.nan_at >= (ilane)(0));
            const lane saved_lse = r.lse;
            if (second_pass && ANY_LANE(r.confident)) keep_top_apart(&r, sum_below_top(&in, &r));
            write_rows(&in, &r, &j, &s, &t, losses, lse, argmax, entropy, statistics, workspace);

            lane up = (lane)(1);
            if (p.flags & FLAG_UPSTREAM_ROWS) {
                up = load_lanes(upstream + p.offset.upstream + in.row, in.n);
            } else if (p.flags & FLAG_UPSTREAM) {
                up = (lane)(upstream[p.offset.upstream]);
            }
            m.g = gradient_of(&r, &j, in.dense, z_loss, saved_lse, up, d, (p.flags & FLAG_MEAN) != 0);
            m.target = t.class_index;
        }
        m.streaming = (p.flags & FLAG_NONTEMPORAL) != 0;
        for (uint kind = 0; kind < EMIT_KINDS; kind++) {
            const bool is_gradient = kind == EMIT_GRADIENT;
            const bool is_wanted = (outputs & wanted[kind]) != 0;
            const ulong stride = is_gradient ? p.gradient_row_stride : p.probabilities_row_stride;
            const ulong at = INNER ? slab * stride + within + lane_0 : (within + lane_0) * stride;
            m.kind = kind;
            m.step = lane_step(stride);
            m.accumulate = is_gradient && (p.flags & FLAG_ACCUMULATE) != 0;
            m.out = kind == EMIT_LOG_SOFTMAX ? log_softmax + p.offset.log_softmax + at
                                             : softmax + p.offset.softmax + at;
            m.gradient = gradient + p.offset.gradient + at;
            if (in.n > 0 && is_wanted) {
                m.factor = is_gradient && GENERAL ? m.g.slope
                           : is_gradient          ? m.g.slope * m.g.outer
                                                  : (r.valid ? (lane)(1) / r.d : (lane)(REAL_NAN));
#if !COOPERATIVE
                emit_own(&in, &r, &m);
            }
#else
                for (uint c = 0; c < in.classes; c++) {
                    const vec value = emit_value(&in, &r, &m, c, in.keeps_logits);
                    in.values[(size_t)c * PITCH] = value;
                }
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            if (is_wanted) {
                __local real *values = in.values - lid;
                const emission all = { kind,
                                       m.factor,
                                       m.g,
                                       m.target,
                                       m.accumulate,
                                       m.out - lid * stride,
                                       m.gradient - lid * stride,
                                       stride,
                                       false };
                for (uint e = lid; e < rows * in.classes; e += WG_SIZE) {
                    const uint row = e / in.classes, c = e % in.classes;
                    put_one(&all, row * stride + c, values[(size_t)c * PITCH + row]);
                }
            }
            barrier(CLK_LOCAL_MEM_FENCE);
#endif
        }
    }
}
