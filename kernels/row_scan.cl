/* SPDX-License-Identifier: MIT
 *
 * row_scan.cl - how one work-item reads a row: maximum, sums, the first class with a value. Stands behind row_input.cl in
 * front of row_results.cl, and of along_scan.cl for tiles of short rows (ALONG); group_rows.cl has the ways of a group.
 *
 * A block's maximum comes first, then its exponentials (online softmax). A block is read twice, from the first-level
 * cache.
 */
/* Vectors between two flushes, see block_sums; a block has no fewer, or is one. By fours they are four additions: eight to one large
 * term and many equal ones, which round alike, take lse to 1.4 of its bound. */
#define FLUSH_VECTORS (BLOCK < 16 ? BLOCK : 16)
#define TOGETHER 4

/* Whether gradients need the logits although local_rows has the exponentials: for the softcap's slope, which may be kept
 * instead, and for the distances of an entropy's gradient. */
#define NEEDS_X (HAS_SOFTCAP || HAS_GRAD_ENTROPY)
#define KEEPS_SLOPE (HAS_SOFTCAP && !HAS_GRAD_ENTROPY)

/* The vector that holds the tail ends with the row and begins among the classes of the one before it, unless the row
 * is shorter than a vector: a load of single elements would cost as much as twenty vectors. `first_new` of its
 * elements are not counted a second time. */
#define TAIL_OVERLAPS(in) ((in)->vectors > 0)

static inline uint vector_at(const row_input *in, const uint v)
{
    return TAIL_OVERLAPS(in) && v >= in->vectors ? in->classes - VEC : v * VEC;
}

static inline uint first_new(const row_input *in, const uint v)
{
    return TAIL_OVERLAPS(in) && v >= in->vectors ? VEC - in->tail : 0;
}

/* Vector v, whole or the tail; classes past the end read as -inf. */
static inline vec vector_x(const row_input *in, const uint v)
{
    if (v < in->vectors || TAIL_OVERLAPS(in)) return load_vector(in->x + vector_at(in, v));
    return load_partial(in->x + v * VEC, in->tail, -ACC_INFINITY);
}

static inline vec vector_z(const row_input *in, const uint v)
{
    vec unused;
    return softcap_vector_z(vector_x(in, v), in->o, &unused);
}

/* z of a vector that is whole. */
static inline vec full_z(const row_input *in, const uint v)
{
    vec unused;
    return softcap_vector_z(load_vector(in->x + v * VEC), in->o, &unused);
}

/* local_rows has the exponentials of a row in class order. DEINTERLEAVES: of its even classes, and from odd_at on those of the odd
 * ones. `at` is the first class of a vector, and may be odd. */
#if DEINTERLEAVES
typedef float8 half_vec __attribute__((aligned(4)));
#    define KEPT_AT(odd_at, at, odd) ((odd) ? (odd_at) + (at) / 2 : ((at) + 1) / 2)
#    define ODD_OF(classes) (((classes) + VEC - 1) / VEC * (VEC / 2))

ALWAYS_INLINE void keep_in_order(__local acc_t *local_rows, const uint odd_at, const uint at, const vec e)
{
    *(__local half_vec *)(local_rows + KEPT_AT(odd_at, at, at % 2 != 0)) = e.even;
    *(__local half_vec *)(local_rows + KEPT_AT(odd_at, at, at % 2 == 0)) = e.odd;
}
#else
#    define ODD_OF(classes) 0
#    define keep_in_order(local_rows, odd_at, at, e) STORE(e, (local_rows) + (at))
#endif

#if HAS_PREFETCH
/* The lines of `count` vectors, 2 or 4, of `bytes` each: four lines at most, and of vectors of less than 32 bytes some
 * twice. */
ALWAYS_INLINE void prefetch_vectors(__global const uchar *row, const uint first, const uint count,
                                    const size_t bytes)
{
    __global const uchar *p = row + first * bytes;
    PREFETCH(p);
    if (count * bytes > 64) PREFETCH(p + 64);
    if (count * bytes > 128) PREFETCH(p + 128);
    if (count * bytes > 128) PREFETCH(p + 192);
}
#endif

/* Vectors between one that is computed with and the one that is prefetched meanwhile, at least: 16 KiB of
 * f32, which take longer to compute with than memory takes to answer. */
#define AHEAD 256u

/* Computing with `vectors` of them from v on, prefetches what comes next in memory, rows lying side by side. A core has so
 * many lines under way at most, so it must prefetch all the time (PoCL, 2 hyperthreads of Emerald Rapids, 32,768 classes:
 * 0.68 of the time without this). */
ALWAYS_INLINE void prefetch_ahead(const row_input *in, const uint v, const uint vectors)
{
#if HAS_PREFETCH
    prefetch_vectors((__global const uchar *)in->x, in->ahead + v, vectors, VEC * sizeof(storage));
    if (HAS_PROBABILITIES) {
        prefetch_vectors((__global const uchar *)in->q, in->ahead + v, vectors,
                         VEC * (TARGETS == TARGET_PROBABILITIES_F32 ? sizeof(float) : sizeof(storage)));
    }
#else
    (void)in;
    (void)v;
    (void)vectors;
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

/* ---- The scan of a row --------------------------------------------------------------------- */

/* What a part of a row is scanned for. */
typedef struct {
    uint excluded;             /* the class left out of sum_excluding_target, or NO_CLASS */
    bool in_local;             /* local_rows is filled with exponentials */
    bool keeps_z;              /* with a softcap: local_rows has z until it has the exponentials */
    __local acc_t *local_rows; /* [classes, rounded up to VEC] */
    uint odd_at;               /* see keep_in_order() */
} row_scan;

/* What exponentials are taken relative to. */
typedef struct {
    exp_scale scale;
    acc_t base; /* see distance_base() */
    bool far;   /* see exp_scale */
} row_level;

/* To t, which is no_terms(), what vector v adds. rare: it may be the last one, or have the class left out, `excluded`; then its
 * exponentials are left in local_rows here. */
ALWAYS_INLINE void take_vector(terms *t, const row_input *in, const row_scan *scan, const row_level *level,
                               const uint v, const vec z, const uint excluded, const bool rare)
{
    const uint at = rare ? vector_at(in, v) : v * VEC, skipped = rare ? first_new(in, v) : 0;
    const vec clamped = exp_vector_clamped(z, level->scale, level->far);
    vec e = exp_vector_of(clamped, level->scale);
    if (rare && scan->in_local) keep_in_order(scan->local_rows, scan->odd_at, at, e);
    if (excluded != NO_CLASS) e = IOTA == (ivec)((integer)(excluded - at)) ? (vec)(0) : e;
    if (skipped > 0) e = IOTA < (ivec)((integer)skipped) ? (vec)(0) : e;
    vec a = (vec)(0);
    if (HAS_DENSE) a = get_a(in, v, rare);
    take_terms(t, e, z, (vec)(level->base), a);
    /* the same without a look for 0, as clamped is finite there (statistics: 0.95 of the time, Zen 3) */
    if (HAS_ENTROPY) t->entropy = e * ((vec)(level->base - level->scale.base) - clamped);
}

/* Where z of vector v waits for its maximum under a softcap, as it takes longer than the exponential: in the place of
 * its exponentials, or of a block's where local_rows has no room for the row. */
static inline __local acc_t *z_place(const row_input *in, const row_scan *scan, const uint first,
                                     const uint v)
{
    return scan->local_rows + (scan->in_local ? vector_at(in, v) : (v - first) * VEC);
}

/* z of vector v of the block that begins at `from`. */
ALWAYS_INLINE vec z_of_block(const row_input *in, const row_scan *scan, const uint from, const uint v,
                             const bool rare)
{
    /* of the tail's z, if kept, exponentials may have overwritten some by now */
    if (scan->keeps_z && (!rare || v < in->vectors)) return LOAD(z_place(in, scan, from, v));
    return rare ? vector_z(in, v) : full_z(in, v);
}

/* Adds the vectors [v, stop), whole turns of whole vectors without the class left out, of the block that begins at
 * `from`. keeps: exponentials stay in local_rows. */
ALWAYS_INLINE void sum_turns(block_sums *b, const row_input *in, const row_scan *scan, const row_level *level,
                             const uint from, const uint first, const uint stop, const bool keeps)
{
    for (uint v = first; v < stop; v += TOGETHER) {
        terms some[TOGETHER];
        prefetch_ahead(in, v, TOGETHER);
#pragma unroll
        for (uint k = 0; k < TOGETHER; k++) some[k] = no_terms();
#if DEINTERLEAVES
#    pragma unroll
        for (uint k = 0; k < TOGETHER; k += 2) {
            const vec_pair x = load_pair(in->x + (v + k) * VEC);
            take_vector(&some[k], in, scan, level, v + k, x.first, NO_CLASS, false);
            take_vector(&some[k + 1], in, scan, level, v + k, x.second, NO_CLASS, false);
            if (!keeps) continue;
            STORE(some[k].sum_excluding_target, scan->local_rows + (v + k) * (VEC / 2));
            STORE(some[k + 1].sum_excluding_target, scan->local_rows + scan->odd_at + (v + k) * (VEC / 2));
        }
#else
#    pragma unroll
        for (uint k = 0; k < TOGETHER; k++) {
            take_vector(&some[k], in, scan, level, v + k, z_of_block(in, scan, from, v + k, false), NO_CLASS,
                        false);
            if (keeps) keep_in_order(scan->local_rows, 0, (v + k) * VEC, some[k].sum_excluding_target);
        }
#endif
        add_four(b, some);
    }
}

/* Adds the vectors [from, to) to b: turns without a branch (Zen 3, AVX2: 0.86 to 0.95 of the time), but for the one that has
 * the class left out, and the last. Where usual rows are near, far ones take these slow turns alone: a plain loop of their own would
 * be compiled for every plan. */
ALWAYS_INLINE void sum_block(block_sums *b, const row_input *in, const row_scan *scan, const row_level *level,
                             const uint from, const uint to)
{
    const uint full = min(to, in->vectors);
    const uint excluded_vector = scan->excluded / VEC; /* of NO_CLASS: past every row */
    const row_level usual = { level->scale, level->base, !SUMS_PLAINLY };
    uint v = from;
    do {
        const uint flush_at = min(v + FLUSH_VECTORS, to);
        while (v < flush_at) {
            const uint whole = max(min(flush_at, full), v);
            const uint plain = excluded_vector >= v ? min(excluded_vector, whole) : whole;
            const uint stop = level->far && SUMS_PLAINLY ? v : v + (plain - v) / TOGETHER * TOGETHER;
            if (scan->in_local) {
                sum_turns(b, in, scan, &usual, from, v, stop, true);
            } else {
                sum_turns(b, in, scan, &usual, from, v, stop, false);
            }
            v = stop;
            if (v >= flush_at) break;
            terms some[TOGETHER];
            prefetch_ahead(in, v, TOGETHER);
#pragma unroll 1
            for (uint k = 0; k < TOGETHER; k++) {
                const uint u = v + k;
                some[k] = no_terms();
                if (u >= flush_at) continue;
                take_vector(&some[k], in, scan, level, u, z_of_block(in, scan, from, u, true),
                            u == excluded_vector ? scan->excluded : NO_CLASS, true);
            }
            add_four(b, some);
            v = min(v + TOGETHER, flush_at);
        }
        flush(b, ALONG && to <= FLUSH_VECTORS);
    } while (v < to);
}

/* z of vector v, left behind for sum_block(), and its slope for the gradient. */
ALWAYS_INLINE vec keep_z(const row_input *in, const row_scan *scan, const uint from, const uint v,
                         const bool is_full)
{
    const uint at = is_full ? v * VEC : vector_at(in, v);
    vec slope;
    const vec z = is_full ? softcap_vector_z_inline(load_vector(in->x + at), in->o, &slope)
                          : softcap_vector_z(vector_x(in, v), in->o, &slope);
    STORE(z, scan->local_rows + (scan->in_local ? at : (v - from) * VEC));
    if (in->slope_at > 0) STORE(slope, scan->local_rows + in->slope_at + at);
    return z;
}

/* Two vectors a turn spill by AVX2: one takes 0.92 of the time (Zen 3, all options). */
#if defined(__AVX512F__)
#    define KEEP_Z_TURN 2
#else
#    define KEEP_Z_TURN 1
#endif

/* The maximum of the vectors [from, to), element by element. */
ALWAYS_INLINE vec maximum_of(const row_input *in, const row_scan *scan, const uint from, const uint to)
{
    const uint full = min(to, in->vectors);
    vec m0 = (vec)(-ACC_INFINITY);
    vec m1 = m0;
    vec m2 = m0;
    vec m3 = m0;
    uint v = from;
    if (scan->keeps_z) {
#pragma unroll KEEP_Z_TURN
        for (; v < full; v++) m0 = vec_max(m0, keep_z(in, scan, from, v, true));
        if (v < to) m0 = vec_max(m0, keep_z(in, scan, from, v, false));
        return m0;
    }
    for (; v + 3 < full; v += 4) {
#if DEINTERLEAVES
        const vec_pair x = load_pair(in->x + v * VEC), next = load_pair(in->x + (v + 2) * VEC);
        m0 = vec_max(m0, x.first);
        m1 = vec_max(m1, x.second);
        m2 = vec_max(m2, next.first);
        m3 = vec_max(m3, next.second);
#else
        m0 = vec_max(m0, full_z(in, v));
        m1 = vec_max(m1, full_z(in, v + 1));
        m2 = vec_max(m2, full_z(in, v + 2));
        m3 = vec_max(m3, full_z(in, v + 3));
#endif
    }
    for (; v < full; v++) m0 = vec_max(m0, full_z(in, v));
    if (v < to) m1 = vec_max(m1, vector_z(in, v));
    return vec_max(vec_max(m0, m1), vec_max(m2, m3));
}

/* In `found`, where an element of vector v is the value, or NaN. */
ALWAYS_INLINE ivec match_vector(const row_input *in, const uint v, const bool is_full, const bool want_nan,
                                const acc_t value, const ivec found)
{
    const vec s = softcap_vector_s(is_full ? load_vector(in->x + v * VEC) : vector_x(in, v), in->o);
    return (want_nan ? s != s : s == (vec)(value)) ? (ivec)((integer)vector_at(in, v)) : found;
}

/* The first class of the vectors [first, last) whose s is `value`, or that is NaN. NO_CLASS if none. From the last vector
 * to the first, so that each element is left with its first one; four by four, as each waits for the one before. */
PART integer find_first(const row_input *in, const bool want_nan, const acc_t value, const uint first,
                        const uint last)
{
    const ivec none = (ivec)(NO_CLASS);
    uint behind = max(first, last);
    ivec found[4] = { none, none, none, none };
    if (behind > first && behind > in->vectors) {
        behind--;
        found[0] = match_vector(in, behind, false, want_nan, value, none);
    }
    for (; behind >= first + 4; behind -= 4) {
#pragma unroll
        for (uint k = 0; k < 4; k++) {
            found[k] = match_vector(in, behind - 1 - k, true, want_nan, value, found[k]);
        }
    }
    for (; behind > first; behind--) found[0] = match_vector(in, behind - 1, true, want_nan, value, found[0]);
    const ivec first_at = min(min(found[0], found[1]), min(found[2], found[3]));
    const ivec at = first_at == none ? none : first_at + IOTA;
    const integer least = FOLD(at, min);
    return least < (integer)in->classes ? least : (integer)NO_CLASS;
}

/* The exponentials of the vectors [from, to) once more, without the one class that is the maximum: of
 * confident rows, where it is one. */
static inline compensated_vector sum_excluding_max(const row_input *in, const row_level *level,
                                                   const acc_t maximum, const uint from, const uint to)
{
    compensated_vector rest = { (vec)(0), (vec)(0) };
    for (uint v = from; v < to; v++) {
        const uint skipped = first_new(in, v);
        const vec z = vector_z(in, v);
        vec e = z == (vec)(maximum) ? (vec)(0) : exp_vector(z, level->scale, true);
        if (skipped > 0) e = IOTA < (ivec)((integer)skipped) ? (vec)(0) : e;
        rest = compensated_add_vector(rest, e);
    }
    return rest;
}
