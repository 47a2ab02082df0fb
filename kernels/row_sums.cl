/* SPDX-License-Identifier: MIT
 *
 * row_sums.cl - what is summed over the classes of a row that is a work-group's: vectors lie along its classes. First of
 * two parts; cross_entropy.cl has what is made of the sums, and the kernels. Rows of few classes, and a class axis that
 * is not the last, are lanes.cl's.
 *
 * A row is taken in pieces of piece_vectors vectors, each read once block by block (online softmax: a block's
 * maximum first, then its exponentials), and the pieces' sums are merged in order. Where a [rows, classes]
 * result is asked for, the row is read a second time, unless its exponentials were kept in local memory.
 *
 * clxent_cross_entropy does rows_per_group whole rows a group. Where rows are too few to keep the device busy,
 * clxent_scan_pieces, clxent_merge_pieces and clxent_emit_pieces do the same with a group for each piece: the
 * same sums in the same order, so that the bits do not tell which it was, and the choice may look at the
 * device.
 *
 * Set by the host with -D, beside those of constants.cl and common.cl:
 *   BLOCK  vectors that one work-item takes in a block, a multiple of 4. Part of what decides the bits
 */
#if !defined(BLOCK) || BLOCK < 4 || BLOCK % 4 != 0
#    error "BLOCK: a multiple of 4"
#endif

/* Blocks this short are read into registers. Longer ones are read twice, from the first-level cache. */
#if BLOCK <= 8
#    define IN_REGISTERS 1
#else
#    define IN_REGISTERS 0
#endif

/* Whether gradients need the logits although the cache has the exponentials: for the softcap's slope. */
#define NEEDS_X (!IN_REGISTERS && HAS_SOFTCAP)

/* On GPUs a call would put the row's inputs into memory. Not for functions that return a struct: Oclgrind 21.10 knows
 * nothing of what clang makes of those. */
#if WG_SIZE > 1
#    define INLINE static inline __attribute__((always_inline))
#else
#    define INLINE static inline
#endif

/* What a row has a few vectors of is compiled once on CPUs, where copies cost more time to compile than calls to run
 * (PoCL 3.1, first loss and gradient: 2.65 s of CPU, 3.05 without this). On GPUs it would put arrays into memory. */
#if WG_SIZE > 1
#    define RARE static inline __attribute__((always_inline))
#    define UNROLL_OF_GROUPS _Pragma("unroll")
#else
#    define RARE static __attribute__((noinline))
#    define UNROLL_OF_GROUPS _Pragma("unroll 1")
#endif

/* Left to itself, PoCL's compiler calls some of these for every vector. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Streaming stores need their elements moved to where vectors are aligned, see emit(). */
#if HAS_NONTEMPORAL && WG_SIZE == 1
#    define CAN_STREAM 1
#else
#    define CAN_STREAM 0
#endif

/* One row's inputs. Vector v < vectors is x[v * VEC ..]; vector `vectors` is the tail of classes % VEC. */
typedef struct {
    __global const storage *x;
    uint classes;
    uint vectors;
    uint tail;
    uint cache_elements;
    bool shares_lines; /* see bring() */
    uint slope_at; /* where the cache has the slope of every class beside its exponential; 0: it has not */
    __global const void *q;             /* probabilities [classes] */
    __global const real *class_weights; /* [classes] */
    bool best;                          /* the argmax is wanted */
    bool nan;                           /* so is which class is NaN */
    options o;
} row_input;

/* Sums over a part of a row: a work-item's, a piece's, in the end the row's. */
typedef struct {
    real maximum;    /* of z; NaN is not seen */
    real top;        /* of logit_scale * x; -inf where best is not wanted */
    uint best;       /* the first class whose s is top, or NO_CLASS */
    uint nan_at;     /* the first class that is NaN, or NO_CLASS */
    long_sum others; /* exp(z) at the maximum's scale, over all classes but the target's */
#if HAS_ENTROPY
    long_sum entropy; /* exp(z) (maximum - z), over the same */
#endif
#if HAS_DENSE
    long_sum dense_nll;    /* a_j (maximum - z_j) */
    long_sum dense_weight; /* a_j */
#endif
} row_sums;

/* The vector that holds the tail ends with the row and begins among the classes of the one before it, unless the row
 * is shorter than a vector: a load of single elements would cost as much as twenty vectors. `first_new` of its
 * elements are not counted a second time. In larger groups another work-item has the vector before, and would write
 * the same place of the cache. */
#if WG_SIZE == 1
#    define TAIL_OVERLAPS(in) ((in)->vectors > 0)
#else
#    define TAIL_OVERLAPS(in) false
#endif

static inline uint vector_at(const row_input *in, const uint v)
{
    return TAIL_OVERLAPS(in) && v >= in->vectors ? in->classes - VEC : v * VEC;
}

static inline uint first_new(const row_input *in, const uint v)
{
    return TAIL_OVERLAPS(in) && v >= in->vectors ? VEC - in->tail : 0;
}

/* Vector v, whole or the tail; classes past the end read as -inf. */
static inline vec get_x(const row_input *in, const uint v)
{
    if (v < in->vectors || TAIL_OVERLAPS(in)) return load_vector(in->x + vector_at(in, v));
    return load_partial(in->x + v * VEC, in->tail, -REAL_INFINITY);
}

#if HAS_PREFETCH
/* The lines of `count` vectors, 2 or 4, of `bytes` each: four lines at most, and of vectors of less than 32 bytes some
 * twice. */
ALWAYS_INLINE void bring_vectors(__global const uchar *row, const uint first, const uint count,
                                 const size_t bytes)
{
    __global const uchar *p = row + first * bytes;
    PREFETCH(p);
    if (count * bytes > 64) PREFETCH(p + 64);
    if (count * bytes > 128) PREFETCH(p + 128);
    if (count * bytes > 128) PREFETCH(p + 192);
}
#endif

/* Vectors between one that is computed with and the one that is brought from memory meanwhile, at least: 16 KiB of
 * f32, which take longer to compute with than memory takes to answer. */
#define AHEAD 256u
/* Bytes of a row, at most, that are taken to stay in the second cache until its results are written. */
#define MOST_KEPT_BYTES (1u << 19)

/* Computing with the vectors [v, v + 4), asks for what comes next in memory, rows lying side by side. A core has so many
 * lines under way at most, so it must ask for some all the time: where results need a second pass over the row
 * (shares_lines), each pass brings one half of one (PoCL, 2 hyperthreads of Emerald Rapids, 32,768 classes: 0.68 of
 * the time without this, 0.78 with the first pass alone). */
ALWAYS_INLINE void bring(const row_input *in, const uint v, const bool second_pass)
{
#if HAS_PREFETCH
    const uint lines_at =
        in->shares_lines ? AHEAD + (second_pass ? in->vectors : in->vectors / 2) + v / 2 : AHEAD + v;
    const uint count = in->shares_lines ? 2 : 4;
    bring_vectors((__global const uchar *)in->x, lines_at, count, VEC * sizeof(storage));
    if (HAS_PROBABILITIES) {
        bring_vectors((__global const uchar *)in->q, lines_at, count,
                      VEC * (TARGETS == TARGET_PROBABILITIES_F32 ? sizeof(float) : sizeof(storage)));
    }
#else
    (void)in;
    (void)v;
    (void)second_pass;
#endif
}

static inline vec get_z(const row_input *in, const uint v)
{
    vec unused;
    return softcap_vector_z(get_x(in, v), in->o, &unused);
}

/* ---- a ------------------------------------------------------------------------------------ */

static inline real probability_one(const row_input *in, const uint at)
{
#if DTYPE != F32
    if (TARGETS == TARGET_PROBABILITIES_LOGITS) return load_one((__global const storage *)in->q + at);
#endif
    return convert_real(((__global const float *)in->q)[at]);
}

static inline vec probability_vector(const row_input *in, const uint at)
{
#if DTYPE != F32
    if (TARGETS == TARGET_PROBABILITIES_LOGITS) return load_vector((__global const storage *)in->q + at);
#endif
    return CONVERT_VEC(LOAD((__global const float *)in->q + at));
}

/* The part of a_j that every class has: of an index target the smoothing, of probabilities all. */
static inline real dense_one(const row_input *in, const uint at)
{
    real a = in->o.share;
    if (HAS_PROBABILITIES) a = fma(in->o.keep, probability_one(in, at), a);
    if (HAS_CLASS_WEIGHTS) a = a * in->class_weights[at];
    return a;
}

/* n < VEC: only the first n exist, the others give 0. */
static inline vec dense_vector(const row_input *in, const uint at, const uint n)
{
    if (n < VEC) {
        real element[VEC];
        for (uint i = 0; i < VEC; i++) element[i] = i < n ? dense_one(in, at + i) : 0;
        return LOAD(element);
    }
    vec a = (vec)(in->o.share);
    if (HAS_PROBABILITIES) a = fma((vec)(in->o.keep), probability_vector(in, at), a);
    if (HAS_CLASS_WEIGHTS) a = a * LOAD(in->class_weights + at);
    return a;
}

/* ---- Sums of a row ------------------------------------------------------------------------ */

static inline row_sums empty_sums(void)
{
    row_sums s;
    s.maximum = -REAL_INFINITY;
    s.top = -REAL_INFINITY;
    s.best = NO_CLASS;
    s.nan_at = NO_CLASS;
    s.others = long_zero();
#if HAS_ENTROPY
    s.entropy = long_zero();
#endif
#if HAS_DENSE
    s.dense_nll = long_zero();
    s.dense_weight = long_zero();
#endif
    return s;
}

/* Moves s to a maximum that is no less. Sums of (maximum - z) grow by their weight times the step. */
static inline void raise_maximum(row_sums *s, const real maximum)
{
    if (s->maximum > -REAL_INFINITY && maximum > s->maximum) {
        const real factor = exp_rescale(exp_scale_of(s->maximum), exp_scale_of(maximum));
#if HAS_ENTROPY
        const real raised = long_value(s->others) * (maximum - s->maximum);
        s->entropy = long_times(long_add(s->entropy, raised), factor);
#endif
#if HAS_DENSE
        const real step = maximum - s->maximum;
        s->dense_nll = long_add(s->dense_nll, long_value(s->dense_weight) * step);
#endif
        s->others = long_times(s->others, factor);
    }
    s->maximum = maximum;
}

/* Of two parts, neither of which need be the first. */
static inline row_sums merge(row_sums a, row_sums b)
{
    const real maximum = real_max(a.maximum, b.maximum);
    raise_maximum(&a, maximum);
    raise_maximum(&b, maximum);
    if (b.top > a.top || (b.top == a.top && b.best < a.best)) {
        a.top = b.top;
        a.best = b.best;
    }
    a.nan_at = min(a.nan_at, b.nan_at);
    a.others = long_merge(a.others, b.others);
#if HAS_ENTROPY
    a.entropy = long_merge(a.entropy, b.entropy);
#endif
#if HAS_DENSE
    a.dense_nll = long_merge(a.dense_nll, b.dense_nll);
    a.dense_weight = long_merge(a.dense_weight, b.dense_weight);
#endif
    return a;
}

/* Over the work-group, by a tree of fixed shape; every work-item must call it and gets the result. The barriers:
 * one before each level (the level above was written by others), one before the result is read, one after it so
 * that the caller may use scratch again. */
static inline row_sums merge_group(const row_sums own, __local row_sums *scratch)
{
    if (WG_SIZE == 1) return own;
    const uint lid = (uint)get_local_id(0);
    scratch[lid] = own;
    for (uint half_size = WG_SIZE / 2; half_size > 0; half_size /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < half_size) scratch[lid] = merge(scratch[lid], scratch[lid + half_size]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const row_sums all = scratch[0];
    barrier(CLK_LOCAL_MEM_FENCE);
    return all;
}

/* What one vector adds. What a program does not sum stays 0, and costs nothing. */
typedef struct {
    vec others, entropy, nll, weight;
} terms;

/* What one block adds: few terms are summed plainly, four by four, and flushed into sums that lose nothing before many
 * have been added: where one term is 1 and very many others are alike, each addition to it rounds the same way, and
 * the error grows with their number. */
typedef struct {
    terms few;
    long_vector others, entropy, nll, weight;
} block_sums;

/* Vectors of a work-item between two flushes, see above; a block has no fewer, or is one. */
#define FLUSH_VECTORS (BLOCK < 16 ? BLOCK : 16)

static inline terms no_terms(void)
{
    const vec zero = (vec)(0);
    return (terms){ zero, zero, zero, zero };
}

static inline block_sums empty_block(void)
{
    const vec zero = (vec)(0);
    const long_vector none = { zero, zero };
    return (block_sums){ no_terms(), none, none, none, none };
}

#define SUM_FOUR(f, member) ((f[0].member + f[1].member) + (f[2].member + f[3].member))
ALWAYS_INLINE void add_four(block_sums *b, const terms four[4])
{
    b->few.others += SUM_FOUR(four, others);
    if (HAS_ENTROPY) b->few.entropy += SUM_FOUR(four, entropy);
    if (HAS_DENSE) b->few.nll += SUM_FOUR(four, nll);
    if (HAS_DENSE) b->few.weight += SUM_FOUR(four, weight);
}

ALWAYS_INLINE void flush(block_sums *b)
{
    b->others = long_add_vector(b->others, b->few.others);
    if (HAS_ENTROPY) b->entropy = long_add_vector(b->entropy, b->few.entropy);
    if (HAS_DENSE) b->nll = long_add_vector(b->nll, b->few.nll);
    if (HAS_DENSE) b->weight = long_add_vector(b->weight, b->few.weight);
    b->few = no_terms();
}

static inline long_sum fold(const long_sum s, const long_vector v)
{
    return long_merge(s, (long_sum){ FOLD(v.high, real_sum), FOLD(v.low, real_sum) });
}

static inline void add_block(row_sums *s, const block_sums *b)
{
    s->others = fold(s->others, b->others);
#if HAS_ENTROPY
    s->entropy = fold(s->entropy, b->entropy);
#endif
#if HAS_DENSE
    s->dense_nll = fold(s->dense_nll, b->nll);
    s->dense_weight = fold(s->dense_weight, b->weight);
#endif
}

/* a of vector v, as it is summed. tail: v may be the last one. */
static inline vec get_a(const row_input *in, const uint v, const bool tail)
{
    const uint at = tail ? vector_at(in, v) : v * VEC, skipped = tail ? first_new(in, v) : 0;
    const bool part = TAIL_OVERLAPS(in) ? false : tail && v >= in->vectors;
    const vec a = dense_vector(in, at, part ? in->tail : VEC);
    return skipped > 0 && IOTA < (ivec)((integer)skipped) ? (vec)(0) : a;
}

/* To t, which is no_terms(), what vector v adds; the exponentials are 0 for the class kept apart (NO_CLASS: of another
 * vector). tail: v may be the last one. */
ALWAYS_INLINE void take_terms(terms *t, const row_input *in, const row_sums *s, const exp_scale scale,
                              const uint v, const vec z, const bool tail, const uint apart, const bool far,
                              const bool cached, __local real *cache)
{
    const uint at = tail ? vector_at(in, v) : v * VEC, skipped = tail ? first_new(in, v) : 0;
    vec e = exp_vector(z, scale, far);
    if (cached && !IN_REGISTERS) STORE(e, cache + at);
    if (apart != NO_CLASS) e = IOTA == (ivec)((integer)(apart - at)) ? (vec)(0) : e;
    if (skipped > 0) e = IOTA < (ivec)((integer)skipped) ? (vec)(0) : e;
    t->others = e;
    const vec distance = (vec)(s->maximum > -REAL_INFINITY ? s->maximum : 0) - z;
    if (HAS_ENTROPY) t->entropy = e == (vec)(0) ? (vec)(0) : e * distance;
    if (HAS_DENSE) {
        t->weight = get_a(in, v, tail);
        t->nll = t->weight == (vec)(0) ? (vec)(0) : t->weight * distance;
    }
}

/* Where the maximum was met first: a range of this work-item's vectors. */
typedef struct {
    uint first, last;
} vector_range;

#if IN_REGISTERS
/* This work-item's part of the vectors [begin, end). */
static inline row_sums scan_own(const row_input *in, const uint apart, const uint begin, const uint end,
                                const bool whole, const bool cached, __local real *cache, vector_range *range)
{
    const uint apart_vector = apart / VEC; /* of NO_CLASS: past every row */
    const bool aligned = TELLS_ALIGNED && IS_ALIGNED(in->x, storage);
    row_sums s = empty_sums();
    for (uint from = begin; from < end; from += BLOCK * WG_SIZE) {
        const uint to = min(from + BLOCK * WG_SIZE, end);
        block_sums b = empty_block();
        vec x[BLOCK], z[BLOCK];
        vec m = (vec)(-REAL_INFINITY);
        /* a full block without a branch between its loads, which are then under way together */
        if (aligned && from + BLOCK * WG_SIZE <= min(end, in->vectors)) {
#    pragma unroll
            for (uint i = 0; i < BLOCK; i++) {
                x[i] = load_vector_aligned(in->x + (from + (uint)get_local_id(0) + i * WG_SIZE) * VEC);
            }
        } else {
#    pragma unroll
            for (uint i = 0; i < BLOCK; i++) {
                const uint v = from + (uint)get_local_id(0) + i * WG_SIZE;
                x[i] = v < to ? get_x(in, v) : (vec)(-REAL_INFINITY);
            }
        }
#    pragma unroll
        for (uint i = 0; i < BLOCK; i++) {
            const uint v = from + (uint)get_local_id(0) + i * WG_SIZE;
            z[i] = (vec)(-REAL_INFINITY);
            if (v < to) {
                vec unused;
                if (cached) STORE(x[i], cache + vector_at(in, v));
                z[i] = softcap_vector_z(x[i], in->o, &unused);
            }
            m = vec_max(m, z[i]);
        }
        const real maximum = FOLD(m, real_max);
        if (maximum > s.maximum) {
            raise_maximum(&s, maximum);
            *range = (vector_range){ from, to };
        }
        const exp_scale scale = exp_scale_of(s.maximum);
#    pragma unroll
        for (uint i = 0; i < BLOCK; i += 4) {
            terms four[4];
#    pragma unroll
            for (uint k = 0; k < 4; k++) {
                const uint v = from + (uint)get_local_id(0) + (i + k) * WG_SIZE;
                four[k] = no_terms();
                if (v < to) {
                    take_terms(&four[k], in, &s, scale, v, z[i + k], v >= in->vectors,
                               v == apart_vector ? apart : NO_CLASS, true, cached, cache);
                }
            }
            add_four(&b, four);
        }
        flush(&b);
        add_block(&s, &b);
    }
    (void)whole;
    return s;
}

#else

/* z of a vector that is whole. */
static inline vec get_full_z(const row_input *in, const uint v)
{
    vec unused;
    return softcap_vector_z(load_vector(in->x + v * VEC), in->o, &unused);
}

/* Where z of vector v waits for its maximum under a softcap, as it takes longer than the exponential: in the place of
 * its exponentials, or of a block's where the cache has no room for the row. */
static inline __local real *z_place(const row_input *in, __local real *cache, const uint first, const uint v,
                                    const bool whole)
{
    return cache + (whole ? vector_at(in, v) : (v - first) * VEC);
}

/* Adds the vectors [from, to) of this work-item. */
ALWAYS_INLINE void sum_block(const row_input *in, row_sums *s, const uint from, const uint to,
                             const uint apart, const bool far, const bool whole, const bool keeps_z,
                             const bool cached, __local real *cache)
{
    const uint full = min(to, in->vectors);
    const uint apart_vector = apart / VEC; /* of NO_CLASS: past every row */
    const exp_scale scale = exp_scale_of(s->maximum);
    block_sums b = empty_block();
    for (uint v = from + (uint)get_local_id(0); v < to; v += FLUSH_VECTORS * WG_SIZE) {
#    define Z(w) (keeps_z ? LOAD(z_place(in, cache, from, w, whole)) : get_full_z(in, w))
        for (uint i = 0; i < FLUSH_VECTORS && v + i * WG_SIZE < to; i += 4) {
            const uint w = v + i * WG_SIZE, last = w + 3 * WG_SIZE;
            terms four[4];
            bring(in, w, false);
            if (last < full && (apart_vector < w || apart_vector > last)) {
#    pragma unroll
                for (uint k = 0; k < 4; k++) {
                    four[k] = no_terms();
                    take_terms(&four[k], in, s, scale, w + k * WG_SIZE, Z(w + k * WG_SIZE), false, NO_CLASS,
                               far, false, cache);
                }
                if (cached) {
#    pragma unroll
                    for (uint k = 0; k < 4; k++) STORE(four[k].others, cache + (w + k * WG_SIZE) * VEC);
                }
            } else {
                UNROLL_OF_GROUPS
                for (uint k = 0; k < 4; k++) {
                    const uint u = w + k * WG_SIZE;
                    four[k] = no_terms();
                    if (u < to) {
                        /* of the tail's z, if kept, exponentials may have overwritten some by now */
                        take_terms(&four[k], in, s, scale, u, u < full ? Z(u) : get_z(in, u), true,
                                   u == apart_vector ? apart : NO_CLASS, far, cached, cache);
                    }
                }
            }
            add_four(&b, four);
        }
        flush(&b);
#    undef Z
    }
    add_block(s, &b);
}

/* z of vector v, left behind for sum_block(), and its slope for the gradient. */
ALWAYS_INLINE vec keep_z(const row_input *in, const uint from, const uint v, const bool is_full,
                         const bool whole, __local real *cache)
{
    const uint at = is_full ? v * VEC : vector_at(in, v);
    vec slope;
    const vec z = softcap_vector_z(is_full ? load_vector(in->x + at) : get_x(in, v), in->o, &slope);
    STORE(z, cache + (whole ? at : (v - from) * VEC));
    if (in->slope_at > 0) STORE(slope, cache + in->slope_at + at);
    return z;
}

static inline real block_maximum(const row_input *in, const uint from, const uint to, const bool whole,
                                 const bool keeps_z, __local real *cache)
{
    const uint full = min(to, in->vectors);
    if (keeps_z) {
        vec m = (vec)(-REAL_INFINITY);
        uint v = from + (uint)get_local_id(0);
#    pragma unroll 4
        for (; v < full; v += WG_SIZE) m = vec_max(m, keep_z(in, from, v, true, whole, cache));
        if (v < to) m = vec_max(m, keep_z(in, from, v, false, whole, cache));
        return FOLD(m, real_max);
    }

    vec m0 = (vec)(-REAL_INFINITY);
    vec m1 = m0;
    vec m2 = m0;
    vec m3 = m0;
    uint v = from + (uint)get_local_id(0);
    for (; v + 3 * WG_SIZE < full; v += 4 * WG_SIZE) {
        m0 = vec_max(m0, get_full_z(in, v));
        m1 = vec_max(m1, get_full_z(in, v + WG_SIZE));
        m2 = vec_max(m2, get_full_z(in, v + 2 * WG_SIZE));
        m3 = vec_max(m3, get_full_z(in, v + 3 * WG_SIZE));
    }
    for (; v < full; v += WG_SIZE) m0 = vec_max(m0, get_full_z(in, v));
    if (v < to) m1 = vec_max(m1, get_z(in, v));
    const vec all = vec_max(vec_max(m0, m1), vec_max(m2, m3));
    return FOLD(all, real_max);
}

/* This work-item's part of the vectors [begin, end). whole: the maximum of all of them is found first. */
static inline row_sums scan_own(const row_input *in, const uint apart, const uint begin, const uint end,
                                const bool whole, const bool cached, __local real *cache, vector_range *range)
{
    const uint block = BLOCK * WG_SIZE;
    const bool keeps_z = HAS_SOFTCAP && (whole || in->cache_elements >= block * VEC);
    const uint step = whole ? end - begin : block;
    row_sums s = empty_sums();
    for (uint first = begin; first < end; first += step) {
        const uint last = min(first + step, end);
        const real maximum = block_maximum(in, first, last, whole, keeps_z, cache);
        if (maximum > s.maximum) {
            raise_maximum(&s, maximum);
            *range = (vector_range){ first, last };
        }
        for (uint from = first; from < last; from += block) {
            const uint to = min(from + block, last);
            if (!SUMS_PLAINLY || fabs(s.maximum) > MAX_NEAR) {
                sum_block(in, &s, from, to, apart, true, whole, keeps_z, cached, cache);
            } else {
                sum_block(in, &s, from, to, apart, false, whole, keeps_z, cached, cache);
            }
        }
    }
    return s;
}
#endif

/* In `found`, where an element of vector v is the value, or NaN. */
ALWAYS_INLINE ivec match_vector(const row_input *in, const uint v, const bool is_full, const bool want_nan,
                                const real value, const ivec found)
{
    const vec s = softcap_vector_s(is_full ? load_vector(in->x + v * VEC) : get_x(in, v), in->o);
    return (want_nan ? s != s : s == (vec)(value)) ? (ivec)((integer)vector_at(in, v)) : found;
}

/* The first class in this work-item's part of the vectors [first, last) whose s is `value`, or that is NaN. NO_CLASS if
 * none. From the last vector to the first, so that each element is left with its first one; four by four, as each waits
 * for the one before. */
ALWAYS_INLINE uint find_first(const row_input *in, const bool want_nan, const real value, const uint first,
                              const uint last)
{
    const ivec none = (ivec)(INT_MAX); /* classes are fewer */
    const uint begin = first + (uint)get_local_id(0);
    uint left = last > begin ? (last - begin - 1) / WG_SIZE + 1 : 0;
    ivec found[4] = { none, none, none, none };
    if (left > 0 && begin + (left - 1) * WG_SIZE >= in->vectors) {
        left--;
        found[0] = match_vector(in, begin + left * WG_SIZE, false, want_nan, value, none);
    }
    for (; left >= 4; left -= 4) {
#pragma unroll
        for (uint k = 0; k < 4; k++) {
            const uint v = begin + (left - 1 - k) * WG_SIZE;
            found[k] = match_vector(in, v, true, want_nan, value, found[k]);
        }
    }
    for (; left > 0; left--) {
        const uint v = begin + (left - 1) * WG_SIZE;
        found[0] = match_vector(in, v, true, want_nan, value, found[0]);
    }
    const ivec first_at = min(min(found[0], found[1]), min(found[2], found[3]));
    const ivec at = first_at == none ? none : first_at + IOTA;
    const uint least = (uint)FOLD(at, min);
    return least < in->classes ? least : NO_CLASS;
}

/* Everything that is summed over this work-item's part of the vectors [begin, end): apart: the class left out of
 * others, or NO_CLASS. cached: cache [classes, rounded up to VEC] is filled, from registers with logits, else with
 * exponentials; for the latter the maximum of all is found first, as whole says. whole decides bits, so it may
 * depend on the plan only. */
static inline row_sums sum_own(const row_input *in, const uint apart, const uint begin, const uint end,
                               const bool whole, const bool cached, __local real *cache)
{
    vector_range range = { begin, end }; /* all -inf: no block ever raised the maximum */
    row_sums s = scan_own(in, apart, begin, end, whole, cached, cache, &range);
    const bool has_nan = s.others.high != s.others.high;
    if (in->best) {
        s.top = s.maximum;
        if (HAS_SOFTCAP) {
            vec m = (vec)(-REAL_INFINITY);
            for (uint v = begin + (uint)get_local_id(0); v < end; v += WG_SIZE) {
                m = vec_max(m, softcap_vector_s(get_x(in, v), in->o));
            }
            s.top = FOLD(m, real_max);
            range = (vector_range){ begin, end };
        }
        s.best = find_first(in, false, s.top, range.first, range.last);
    }
    /* also true where +inf - inf made it, without a NaN among the logits */
    if (has_nan && in->nan) {
        /* of s, which is NaN too where a logit_scale of 0 meets an infinity */
        s.nan_at = find_first(in, true, 0, begin, end);
    }
    return s;
}

#if SUMS_WEIGHT
/* sum a_j alone, in the order of scan_own(): the same bits. */
static inline row_sums sum_own_weights(const row_input *in, const uint begin, const uint end)
{
    row_sums s = empty_sums();
    for (uint from = begin; from < end; from += BLOCK * WG_SIZE) {
        const uint to = min(from + BLOCK * WG_SIZE, end);
        block_sums b = empty_block();
        for (uint v = from + (uint)get_local_id(0); v < to; v += FLUSH_VECTORS * WG_SIZE) {
            for (uint i = 0; i < FLUSH_VECTORS && v + i * WG_SIZE < to; i += 4) {
                terms four[4];
                for (uint k = 0; k < 4; k++) {
                    const uint u = v + (i + k) * WG_SIZE;
                    four[k] = no_terms();
                    if (u < to) four[k].weight = get_a(in, u, true);
                }
                add_four(&b, four);
            }
            flush(&b);
        }
        s.dense_weight = fold(s.dense_weight, b.weight);
    }
    return s;
}
#endif

/* The exponentials once more, without the one class that is the maximum: of confident rows, where it is one. */
static inline row_sums sum_own_below_top(const row_input *in, const real maximum, const uint begin,
                                         const uint end)
{
    const exp_scale scale = exp_scale_of(maximum);
    row_sums s = empty_sums();
    s.maximum = maximum;
    for (uint from = begin; from < end; from += BLOCK * WG_SIZE) {
        const uint to = min(from + BLOCK * WG_SIZE, end);
        long_vector others = empty_block().others;
        for (uint v = from + (uint)get_local_id(0); v < to; v += WG_SIZE) {
            const uint skipped = first_new(in, v);
            const vec z = get_z(in, v);
            vec e = z == (vec)(maximum) ? (vec)(0) : exp_vector(z, scale, true);
            if (skipped > 0) e = IOTA < (ivec)((integer)skipped) ? (vec)(0) : e;
            others = long_add_vector(others, e);
        }
        s.others = fold(s.others, others);
    }
    return s;
}
