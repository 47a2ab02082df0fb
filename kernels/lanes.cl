/* SPDX-License-Identifier: MIT
 *
 * lanes.cl - everything that is computed from logits, where a vector lies across rows: each of its elements, a
 * lane, is another row, and what a row has one of is one vector for all of them. For rows of few classes, and
 * for a class axis that is not the last. cross_entropy.cl has the other rows.
 *
 * Rows come in tiles, which are read once into local memory, class by class, and stay there until their results
 * are written; where a tile does not fit (INNER only) it is read a second time. With the class axis last, tiles are
 * transposed on their way in and out: by shuffles of registers in a group of one work-item, by local memory in
 * larger ones. With ALONG they are not: rows are read where they lie, and the tile has their exponentials, row by row.
 *
 * Set by the host with -D, beside those of common.cl and loss.cl:
 *   INNER    0: the class axis is last; a group of more than one work-item needs VEC 1
 *            1: rows are neighbours, classes are inner elements apart
 *   CACHED   1: a tile fits into local memory; 0: it does not
 *   COLUMNS  vectors of lanes that one work-item has in a tile, one after the other. More than one is for INNER
 *            with a group of one work-item: so many neighbours are read and written together
 *   ALONG    1: vectors lie along the classes of a row while sums are taken and results are made, and only what a row
 *            has one of is a lane, so that nothing but the rows' partial sums is transposed. For at least VEC
 *            classes (plan.c: lies_along()), a group of one work-item, no log-softmax, and not both softmax and gradient.
 *            GENERAL is 0 here also where the entropy is wanted
 */
#if !defined(INNER) || INNER < 0 || INNER > 1 || (!INNER && VEC > 1 && WG_SIZE > 1)
#    error "INNER: 0, with VEC 1 or WG_SIZE 1, or 1"
#endif
#if !defined(CACHED) || CACHED < 0 || CACHED > 1 || (!INNER && !CACHED)
#    error "CACHED: 1, or 0 with INNER"
#endif
#if !defined(COLUMNS) || COLUMNS < 1 || (COLUMNS > 1 && (!INNER || !CACHED || WG_SIZE > 1))
#    error "COLUMNS: 1, or more with INNER, CACHED and a group of one work-item"
#endif

#if !defined(ALONG) || ALONG < 0 || ALONG > 1 || \
    (ALONG && (INNER || GENERAL || !CACHED || VEC == 1 || WG_SIZE > 1))
#    error \
        "ALONG: 0, or 1 with CACHED, neither INNER nor GENERAL, VEC more than 1 and a group of one work-item"
#endif

#define TILE (WG_SIZE * VEC * COLUMNS)
/* From one class to the next in a tile. The odd element keeps neighbouring classes of a row in different banks. */
#if !INNER && WG_SIZE > 1
#    define COOPERATIVE 1 /* tiles are loaded and stored by all work-items of the group */
#    define PITCH (WG_SIZE + 1)
#else
#    define COOPERATIVE 0
#    define PITCH (WG_SIZE * VEC)
#endif
/* A group of one work-item also keeps a tile as it lies in memory, to move it in whole vectors in order; ALONG keeps it in
 * no other way, and has no logits in it. */
#if !INNER && WG_SIZE == 1
#    define IN_ORDER 1
#else
#    define IN_ORDER 0
#endif
#if IN_ORDER && !ALONG
#    define TRANSPOSES 1
#else
#    define TRANSPOSES 0
#endif
#if CACHED && !ALONG
#    define HOLDS_LOGITS 1
#else
#    define HOLDS_LOGITS 0
#endif
/* Neighbours are written as they are computed, by one work-item; in groups that takes registers a GPU does not have, and
 * results are gathered in the tile first. */
#if INNER && WG_SIZE == 1
#    define STORES_DIRECTLY 1
#else
#    define STORES_DIRECTLY 0
#endif
/* Whether results are gathered in the place of their exponentials. */
#if IN_ORDER || STORES_DIRECTLY
#    define OVERWRITES false
#else
#    define OVERWRITES true
#endif
/* Whether a column's maximum is known once it is in the tile: a softcap is not taken on the way. */
#if INNER && CACHED && !GENERAL
#    define FILL_FINDS_MAXIMUM true
#else
#    define FILL_FINDS_MAXIMUM false
#endif
/* Classes between two additions to a long sum (see block_sums in cross_entropy.cl). Part of what decides bits. */
#define BLOCK_CLASSES 16u

/* Bytes of a tile, at most, of which the next one's logits are brought into the second-level cache while this one is
 * computed with. Classes that are a power of two apart share a few sets of that cache, and of more than this some would be
 * gone again before they are used: those come while the tile is filled, so many classes ahead (PoCL, 2 hyperthreads of
 * Emerald Rapids, 1,000 classes 16 KiB apart: 0.84 of the time). */
#define MOST_BROUGHT (1u << 16)
#define CLASSES_AHEAD 12u

/* Left to themselves, compilers call some of these for every vector. */
#define INLINE static inline __attribute__((always_inline))

/* Of a group of one work-item; in larger ones it takes registers that a GPU does not have. */
#if WG_SIZE == 1
#    define UNROLL_ALONE _Pragma("unroll")
#else
#    define UNROLL_ALONE _Pragma("unroll 1")
#endif

/* The rows of one work-item's lanes, and their inputs. */
typedef struct {
    const clxent_parameters *p;
    ulong row; /* of lane 0 */
    uint n;    /* lanes that exist, 0 to VEC */
#if TELLS_ALIGNED
    bool aligned; /* with INNER: vectors of logits are */
#endif
    uint classes;
    __global const storage *x;    /* lane 0, class 0 */
    __global const storage *next; /* of the next tile, a vector for each class */
    bool brings_next;             /* with INNER: see MOST_BROUGHT */
    __local real *logits;         /* this work-item's part of the tile */
    __local real *values;         /* exponentials; the same place where logits are not needed again */
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

/* x of class c in all lanes. */
INLINE vec load_class(const tile_input *in, const uint c)
{
    __global const storage *x = in->x + c * class_step(in->p);
    if (INNER && in->n == VEC) return LOAD_VECTOR(x, in->aligned);
    real element[VEC];
    for (uint i = 0; i < VEC; i++) {
        element[i] = load_one(x + min(i, in->n - 1) * lane_step(in->p->row_stride));
    }
    return LOAD(element);
}

INLINE vec get_x(const tile_input *in, const uint c)
{
    return HOLDS_LOGITS ? LOAD(in->logits + (size_t)c * PITCH) : load_class(in, c);
}

#if !ALONG
INLINE vec get_z(const tile_input *in, const uint c)
{
    vec unused;
    return softcap_vector_z(get_x(in, c), in->o, &unused);
}
#endif

/* The logit of each lane's target; -inf without one. */
static inline lane target_logits(const tile_input *in, const ilane class_index)
{
    if (HOLDS_LOGITS && in->classes <= 4 * VEC) { /* cheaper than to take the lanes apart */
        lane z = (lane)(-REAL_INFINITY);
        for (uint c = 0; c < in->classes; c++) {
            z = class_index == (ilane)((integer)c) ? get_x(in, c) : z;
        }
        return z;
    }
    integer index[VEC];
    real element[VEC];
    STORE(class_index, index);
    for (uint i = 0; i < VEC; i++) {
        element[i] = -REAL_INFINITY;
        if (i >= in->n || index[i] < 0) continue;
        element[i] =
            HOLDS_LOGITS
                ? in->logits[(size_t)index[i] * PITCH + i]
                : load_one(in->x + (ulong)index[i] * class_step(in->p) + i * lane_step(in->p->row_stride));
    }
    return LOAD(element);
}

/* Where the probabilities of lane i begin, in elements. A row that has none because targets are shifted reads the
 * last row's, and uses nothing of them: behind those there may be no memory. Callers ask for it unconditionally:
 * PoCL 3.1 loses the loop over a group's work-items where a branch of the kernel holds this. */
INLINE ulong target_start(const tile_input *in, const uint i)
{
    const ulong row = min(in->row + i + in->p->shift, in->p->rows - 1);
    return in->p->offset.targets + row_start(in->p, row, in->p->target_row_stride);
}

#if !ALONG
/* The part of a_j that every class has, of class c: of an index target the smoothing, of probabilities all. */
INLINE vec dense_class(const tile_input *in, const uint c)
{
    vec a = (vec)(in->o.share);
    if (in->probabilities) {
        const ulong at = in->q_at + c * class_step(in->p), step = lane_step(in->p->target_row_stride);
        __global const float *f32 = (__global const float *)in->targets + at;
        __global const storage *stored = (__global const storage *)in->targets + at;
        vec q;
        if (INNER && in->n == VEC && in->p->shift == 0) {
            q = in->q_is_f32 ? CONVERT_VEC(LOAD(f32)) : load_vector(stored);
        } else {
            real element[VEC];
            for (uint i = 0; i < VEC; i++) {
                const uint k = min(i, in->n - 1);
                const ulong skip = VEC == 1 || in->p->shift == 0 ? k * step : target_start(in, k) - in->q_at;
                element[i] = in->q_is_f32 ? convert_real(f32[skip]) : load_one(stored + skip);
            }
            q = LOAD(element);
        }
        a = fma((vec)(in->o.keep), q, a);
    }
    if (in->has_class_weights) a = a * (vec)(in->class_weights[c]);
    return a;
}
#endif

#if IN_ORDER
/* ---- Transposition -------------------------------------------------------------------------- */

#    if VEC == 16
#        define ZIP(a, b, s)                                                                                 \
            ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1, (a).s##2, (b).s##2, (a).s##3, (b).s##3, (a).s##4, \
                   (b).s##4, (a).s##5, (b).s##5, (a).s##6, (b).s##6, (a).s##7, (b).s##7))
#        define EVEN(a) (a).s0, (a).s2, (a).s4, (a).s6, (a).s8, (a).sa, (a).sc, (a).se
#        define ODD(a) (a).s1, (a).s3, (a).s5, (a).s7, (a).s9, (a).sb, (a).sd, (a).sf
#    elif VEC == 8
#        define ZIP(a, b, s) \
            ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1, (a).s##2, (b).s##2, (a).s##3, (b).s##3))
#        define EVEN(a) (a).s0, (a).s2, (a).s4, (a).s6
#        define ODD(a) (a).s1, (a).s3, (a).s5, (a).s7
#    elif VEC == 4
#        define ZIP(a, b, s) ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1))
#        define EVEN(a) (a).s0, (a).s2
#        define ODD(a) (a).s1, (a).s3
#    endif

/* v[i].j <-> v[j].i: log2(VEC) rounds, each of which zips the first half with the second. */
INLINE void transpose(vec v[VEC])
{
#    if VEC > 1
    for (uint round = 1; round < VEC; round *= 2) {
        vec w[VEC];
#        pragma unroll
        for (uint i = 0; i < VEC / 2; i++) {
            w[2 * i] = ZIP(v[i].lo, v[i + VEC / 2].lo, s);
            w[2 * i + 1] = ZIP(v[i].hi, v[i + VEC / 2].hi, s);
        }
#        pragma unroll
        for (uint i = 0; i < VEC; i++) v[i] = w[i];
    }
#    else
    (void)v;
#    endif
}

#endif

/* ---- A tile of logits ----------------------------------------------------------------------- */

#if TRANSPOSES
/* rows [n, classes], dense but for the room of a vector behind them, to and from a tile. Vectors that begin in a
 * row and end in the next bring along what does not belong to them: what is stored there by mistake is
 * written over later, as the last classes go first and rows go in order. */
/* n <= most classes from VEC rows. */
INLINE void block_to_tile(const __local real *rows, __local real *tile, const uint classes, const uint n,
                          const uint most)
{
    vec v[VEC];
#    pragma unroll
    for (uint i = 0; i < VEC; i++) v[i] = LOAD(rows + i * classes);
    transpose(v);
#    pragma unroll
    for (uint i = 0; i < VEC; i++) {
        if (i < most && i < n) STORE(v[i], tile + (size_t)i * PITCH);
    }
}

static inline void rows_to_tile(const __local real *rows, __local real *tile, const uint classes)
{
#    if VEC > 1
    if (classes == 2) { /* the one case of so few that is common: two shuffles instead of dozens */
        const vec a = LOAD(rows), b = LOAD(rows + VEC);
        STORE((vec)(EVEN(a), EVEN(b)), tile); /* (a.even, b.even) makes Oclgrind 21.10 crash */
        STORE((vec)(ODD(a), ODD(b)), tile + PITCH);
        return;
    }
#    endif
    for (uint c = 0; c < classes; c += VEC) {
        const uint n = min((uint)VEC, classes - c);
        /* what is not stored is not shuffled: of 2 classes a quarter */
        if (n <= 2) {
            block_to_tile(rows + c, tile + (size_t)c * PITCH, classes, n, min(2u, (uint)VEC));
        } else if (n <= 4) {
            block_to_tile(rows + c, tile + (size_t)c * PITCH, classes, n, min(4u, (uint)VEC));
        } else if (n <= 8) {
            block_to_tile(rows + c, tile + (size_t)c * PITCH, classes, n, min(8u, (uint)VEC));
        } else {
            block_to_tile(rows + c, tile + (size_t)c * PITCH, classes, n, VEC);
        }
    }
}

/* Reads [n, classes] rows; those of the tile that do not exist are 0. */
static inline void load_rows(const tile_input *in, __local real *rows)
{
    const ulong stride = in->p->row_stride;
    for (uint e = in->n * in->classes; e < VEC * in->classes; e++) rows[e] = 0;
    if (stride == in->classes) {
        const uint all = in->n * in->classes;
        uint at = 0;
        for (; at + VEC <= all; at += VEC) STORE(load_vector(in->x + at), rows + at);
        for (; at < all; at++) rows[at] = load_one(in->x + at);
        return;
    }
    for (uint i = 0; i < in->n; i++) {
        uint c = 0;
        for (; c + VEC <= in->classes; c += VEC) {
            STORE(load_vector(in->x + i * stride + c), rows + i * in->classes + c);
        }
        for (; c < in->classes; c++) rows[i * in->classes + c] = load_one(in->x + i * stride + c);
    }
}
#endif

#if HOLDS_LOGITS
/* Fills this work-item's columns of the tile, or with the others of the group the whole of it. rows: of the tile.
 * maximum: with INNER, of x in each column. */
static inline void fill_tile(const tile_input *in, __local real *cache, __local real *own_rows,
                             const uint rows, lane maximum[COLUMNS])
{
#    if TRANSPOSES
    (void)cache;
    (void)rows;
    (void)maximum;
    load_rows(in, own_rows);
    rows_to_tile(own_rows, in->logits, in->classes);
#    elif COOPERATIVE
    const ulong stride = in->p->row_stride;
    __global const storage *x = in->x - get_local_id(0) * stride;
    (void)own_rows;
    (void)maximum;
    for (uint e = (uint)get_local_id(0); e < rows * in->classes; e += WG_SIZE) {
        const uint r = e / in->classes, c = e % in->classes;
        cache[(size_t)c * PITCH + r] = load_one(x + r * stride + c);
    }
#    else
    (void)cache;
    (void)own_rows;
    if (in->n == 0) return;
    for (uint w = 0; w < COLUMNS; w++) maximum[w] = (lane)(-REAL_INFINITY);
    if (COLUMNS > 1 && rows == TILE) {
        lane most[COLUMNS];
        for (uint w = 0; w < COLUMNS; w++) most[w] = maximum[w];
        for (uint c = 0; c < in->classes; c++) {
            __global const storage *x = in->x + c * class_step(in->p);
#        pragma unroll
            for (uint w = 0; w < COLUMNS; w++) {
                const vec v = load_vector(x + w * VEC);
                if (!in->brings_next) PREFETCH(x + CLASSES_AHEAD * class_step(in->p) + w * VEC);
                most[w] = vec_max(most[w], v);
                STORE(v, in->logits + ((size_t)w * in->classes + c) * PITCH);
            }
        }
        for (uint w = 0; w < COLUMNS; w++) maximum[w] = most[w];
        return;
    }
    tile_input column = *in;
    for (uint w = 0; w < COLUMNS && w * VEC < rows; w++) {
        column.n = COLUMNS > 1 ? min((uint)VEC, rows - w * VEC) : in->n;
        column.x = in->x + w * VEC;
        for (uint c = 0; c < in->classes; c++) {
            const vec v = load_class(&column, c);
            if (!in->brings_next) PREFETCH(column.x + (c + CLASSES_AHEAD) * class_step(in->p));
            maximum[w] = vec_max(maximum[w], v);
            STORE(v, in->logits + ((size_t)w * in->classes + c) * PITCH);
        }
    }
#    endif
}
#endif

/* ---- Sums ----------------------------------------------------------------------------------- */

typedef struct {
    lane maximum;
    long_sum others, entropy, dense_nll, dense_weight; /* as in cross_entropy.cl */
    ilane best, nan_at;                                /* -1: none */
} tile_sums;

static inline tile_sums empty_sums(const lane maximum)
{
    const long_sum none = long_zero();
    return (tile_sums){ maximum, none, none, none, none, (ilane)(-1), (ilane)(-1) };
}

#if ALONG
/* A row is its whole vectors and, where classes are left, one that ends with the row and begins among the classes of the
 * last whole one: in sums the elements that were seen before count for nothing. */
INLINE uint tail_of(const tile_input *in) { return in->classes % VEC; }

INLINE vec along_x(const tile_input *in, const uint row, const uint c)
{
    return load_vector(in->x + row * in->p->row_stride + c);
}

/* The maximum of a row, element by element of its vectors. */
INLINE vec maximum_along(const tile_input *in, const uint row)
{
    vec m0 = along_x(in, row, in->classes - VEC), m1 = m0;
    uint c = 0;
    for (; c + 2 * VEC <= in->classes; c += 2 * VEC) {
        m0 = vec_max(m0, along_x(in, row, c));
        m1 = vec_max(m1, along_x(in, row, c + VEC));
    }
    if (c + VEC <= in->classes) m0 = vec_max(m0, along_x(in, row, c));
    return vec_max(m0, m1);
}

/* Rows whose maxima are found before their exponentials are taken: all of a tile that stays in the first-level cache, of
 * a larger one a few at a time, which neither leave that cache nor wait for a maximum one by one (loss of 1,024 classes:
 * 0.9 of the time). */
#    define MOST_TOGETHER 384u
#    define FEW_TOGETHER 4u

/* Of `count` rows from `row` on, or of all. */
INLINE void find_maxima(const tile_input *in, const uint row, const uint count, real maximum[VEC])
{
    if (count < VEC) {
        for (uint i = row; i < min(row + count, in->n); i++) {
            const vec m = maximum_along(in, i);
            maximum[i] = FOLD(m, real_max);
        }
        return;
    }
    vec most[VEC];
    for (uint i = 0; i < VEC; i++) most[i] = maximum_along(in, min(i, in->n - 1));
    transpose(most);
    for (uint step = VEC / 2; step > 0; step /= 2) {
#    pragma unroll
        for (uint i = 0; i < step; i++) most[i] = vec_max(most[i], most[i + step]);
    }
    STORE(most[0], maximum);
}

/* Exponentials of the vector at class c, left behind where they are wanted; 0 for the class `apart`. */
INLINE vec take_along(const tile_input *in, const uint row, const uint c, const exp_scale scale,
                      const uint apart, const bool keeps, const bool far, __local real *values)
{
    const vec e = exp_vector(along_x(in, row, c), scale, far);
    if (keeps) STORE(e, values + c);
    if (apart - c >= VEC) return e;
    return IOTA == (ivec)((integer)(apart - c)) ? (vec)(0) : e;
}

/* What is summed over the classes of one row, element by element of its vectors, but for the class `apart`: exponentials,
 * and their products with the distance from the maximum. Summed as in cross_entropy.cl: few terms plainly, then with what
 * is lost. */
typedef struct {
    long_sum others, entropy;
} along_sums;

INLINE vec entropy_along(const tile_input *in, const uint row, const uint c, const real maximum, const vec e)
{
    return e == (vec)(0) ? (vec)(0) : e * ((vec)(maximum)-along_x(in, row, c));
}

INLINE void sum_along(along_sums *sums, const tile_input *in, const uint row, const exp_scale scale,
                      const uint apart, const real maximum, const bool keeps, const bool entropy,
                      const bool far, __local real *values)
{
    const uint whole = in->classes - tail_of(in);
    *sums = (along_sums){ long_zero(), long_zero() };
    for (uint from = 0; from < whole; from += BLOCK_CLASSES * VEC) {
        const uint to = min(from + BLOCK_CLASSES * VEC, whole);
        vec few = (vec)(0), few_entropy = (vec)(0);
        uint c = from;
        for (; c + 4 * VEC <= to; c += 4 * VEC) {
            vec e[4];
#    pragma unroll
            for (uint k = 0; k < 4; k++) PREFETCH(in->next + row * in->p->row_stride + c + k * VEC);
            if (apart - c < 4 * VEC) {
#    pragma unroll
                for (uint k = 0; k < 4; k++)
                    e[k] = take_along(in, row, c + k * VEC, scale, apart, keeps, far, values);
            } else {
#    pragma unroll
                for (uint k = 0; k < 4; k++)
                    e[k] = take_along(in, row, c + k * VEC, scale, NO_CLASS, keeps, far, values);
            }
            few += (e[0] + e[1]) + (e[2] + e[3]);
            if (entropy) {
#    pragma unroll
                for (uint k = 0; k < 4; k++) e[k] = entropy_along(in, row, c + k * VEC, maximum, e[k]);
                few_entropy += (e[0] + e[1]) + (e[2] + e[3]);
            }
        }
        for (; c < to; c += VEC) {
            PREFETCH(in->next + row * in->p->row_stride + c);
            const vec e = take_along(in, row, c, scale, apart, keeps, far, values);
            few += e;
            if (entropy) few_entropy += entropy_along(in, row, c, maximum, e);
        }
        if (to == whole && tail_of(in) > 0) {
            const uint last = in->classes - VEC;
            vec e = take_along(in, row, last, scale, apart, keeps, far, values);
            e = IOTA < (ivec)((integer)(VEC - tail_of(in))) ? (vec)(0) : e;
            few += e;
            if (entropy) few_entropy += entropy_along(in, row, last, maximum, e);
        }
        /* the first loses nothing, and of few classes there is no other */
        sums->others = from == 0 ? (long_sum){ few, (vec)(0) } : long_add(sums->others, few);
        if (entropy) {
            sums->entropy =
                from == 0 ? (long_sum){ few_entropy, (vec)(0) } : long_add(sums->entropy, few_entropy);
        }
    }
}

/* high and low: of each row, element by element of its vectors; of the rows, lane by lane. has_low: low is not all 0. */
INLINE void fold_along(long_sum *sum, vec high[VEC], vec low[VEC], const bool has_low)
{
    long_sum s = long_zero();
    transpose(high);
    for (uint i = 0; i < VEC; i++) s = long_add(s, high[i]);
    if (has_low) {
        transpose(low);
        for (uint step = VEC / 2; step > 0; step /= 2) {
#    pragma unroll
            for (uint i = 0; i < step; i++) low[i] += low[i + step];
        }
        s.low += low[0];
    }
    *sum = s;
}

/* In `found`, where an element of the vector at class c is the value, or NaN. */
INLINE ivec match_along(const tile_input *in, const uint row, const uint c, const bool want_nan,
                        const real value, const ivec found)
{
    const vec x = along_x(in, row, c);
    return (want_nan ? x != x : x == (vec)(value)) ? (ivec)((integer)c) : found;
}

/* The first class of a row whose x is `value`, or that is NaN; -1 if none. From the last vector to the first, so that each
 * element is left with its first one; four by four, as each waits for the one before. */
INLINE integer find_along(const tile_input *in, const uint row, const bool want_nan, const real value)
{
    const ivec none = (ivec)(INT_MAX);
    ivec found[4] = { none, none, none, none };
    uint left = in->classes;
    if (left % VEC > 0) { /* the tail's vector overlaps the one before it */
        found[0] = match_along(in, row, left - VEC, want_nan, value, none);
        left -= left % VEC;
    }
    for (; left >= 4 * VEC; left -= 4 * VEC) {
#    pragma unroll
        for (uint k = 0; k < 4; k++)
            found[k] = match_along(in, row, left - (k + 1) * VEC, want_nan, value, found[k]);
    }
    for (; left > 0; left -= VEC) found[0] = match_along(in, row, left - VEC, want_nan, value, found[0]);
    const ivec first = min(min(found[0], found[1]), min(found[2], found[3]));
    const ivec at = first == none ? none : first + IOTA;
    const integer least = FOLD(at, min);
    return least < INT_MAX ? least : -1;
}

/* What a run wants of the rows of a tile, beside their exponentials' sums. */
typedef struct {
    bool keeps; /* the exponentials */
    bool entropy, best;
    bool nan; /* which class is NaN, of rows whose sums are */
} along_wishes;

static inline tile_sums sum_rows(const tile_input *in, const ilane target, const bool from_statistics,
                                 const lane saved_maximum, const along_wishes wishes, __local real *values)
{
    const uint together = in->classes <= MOST_TOGETHER ? (uint)VEC : min(FEW_TOGETHER, (uint)VEC);
    real base[VEC], q[VEC], lowest[VEC], maximum[VEC];
    integer apart[VEC], best[VEC];
    vec high[VEC], low[VEC], entropy_high[VEC], entropy_low[VEC];
    STORE(saved_maximum, maximum);
    STORE(target, apart);
    for (uint i = 0; i < VEC; i++) {
        best[i] = -1;
        if (i >= in->n) {
            high[i] = low[i] = entropy_high[i] = entropy_low[i] = (vec)(0);
            continue;
        }
        if (i % together == 0) {
            if (!from_statistics) find_maxima(in, i, together, maximum);
            const exp_scale scale = exp_scale_of(LOAD(maximum));
            STORE(scale.base, base);
            STORE(scale.q, q);
            STORE(scale.lowest, lowest);
        }
        const exp_scale own = { (lane)(base[i]), (lane)(q[i]), (lane)(lowest[i]) };
        __local real *row = values + i * in->classes;
        along_sums sums;
        if (fabs(maximum[i]) > MAX_NEAR) {
            sum_along(&sums, in, i, own, (uint)apart[i], maximum[i], wishes.keeps, wishes.entropy, true, row);
        } else {
            sum_along(&sums, in, i, own, (uint)apart[i], maximum[i], wishes.keeps, wishes.entropy, false,
                      row);
        }
        high[i] = sums.others.high;
        low[i] = sums.others.low;
        entropy_high[i] = sums.entropy.high;
        entropy_low[i] = sums.entropy.low;
        if (wishes.best) best[i] = find_along(in, i, false, maximum[i]);
    }
    tile_sums s = empty_sums(LOAD(maximum));
    const bool has_low = in->classes >= (BLOCK_CLASSES + 1) * VEC; /* nothing is lost by the first addition */
    fold_along(&s.others, high, low, has_low);
    if (wishes.entropy) fold_along(&s.entropy, entropy_high, entropy_low, has_low);
    if (wishes.best) s.best = LOAD(best);
    return s;
}

/* Of rows whose sum is NaN, the first class that is, where +inf - inf did not make it. */
static inline ilane find_nans_along(const tile_input *in, const ilane is_nan)
{
    integer search[VEC], at[VEC];
    STORE(is_nan, search);
    for (uint i = 0; i < VEC; i++) at[i] = i < in->n && search[i] != 0 ? find_along(in, i, true, 0) : -1;
    return LOAD(at);
}

/* The exponentials once more, of confident rows, without the one class that is the maximum. */
static inline lane sum_below_top(const tile_input *in, const row_result *r)
{
    const uint whole = in->classes - tail_of(in);
    real base[VEC], q[VEC], lowest[VEC], maximum[VEC];
    integer wanted[VEC];
    vec high[VEC], low[VEC];
    STORE(r->scale.base, base);
    STORE(r->scale.q, q);
    STORE(r->scale.lowest, lowest);
    STORE(r->maximum, maximum);
    STORE(r->confident, wanted);
    for (uint i = 0; i < VEC; i++) {
        const exp_scale own = { (lane)(base[i]), (lane)(q[i]), (lane)(lowest[i]) };
        long_sum sum = long_zero();
        for (uint c = 0; c < in->classes && i < in->n && wanted[i] != 0; c += VEC) {
            const uint at = c < whole ? c : in->classes - VEC, seen = c - at;
            const vec x = along_x(in, i, at);
            const vec e =
                x == (vec)(maximum[i]) || IOTA < (ivec)((integer)seen) ? (vec)(0) : exp_vector(x, own, true);
            sum = long_add(sum, e);
        }
        high[i] = sum.high;
        low[i] = sum.low;
    }
    long_sum all;
    fold_along(&all, high, low, true);
    return long_value(all);
}

#else
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

/* The exponentials of class c, 0 where it is the target; they are left behind, and what else is summed goes to b. */
INLINE vec add_class(const tile_input *in, tile_sums *b, const exp_scale scale, const ilane target,
                     const uint c, const bool entropy, const bool far)
{
    const vec z = get_z(in, c);
    const vec e = exp_vector(z, scale, far);
    if (!INNER || in->brings_next) {
        PREFETCH(in->next + c * (INNER ? class_step(in->p) : VEC));
    } else if (!CACHED) {
        PREFETCH(in->x + (c + CLASSES_AHEAD) * class_step(in->p));
    }
    if (CACHED) STORE(e, in->values + (size_t)c * PITCH);
    const vec other = target == (ilane)((integer)c) ? (vec)(0) : e;
    if (GENERAL) {
        const vec distance = (b->maximum > (lane)(-REAL_INFINITY) ? b->maximum : (lane)(0)) - z;
        if (entropy) b->entropy = long_add(b->entropy, other == (vec)(0) ? (vec)(0) : other * distance);
        if (in->dense) {
            const vec a = dense_class(in, c);
            b->dense_nll = long_add(b->dense_nll, a == (vec)(0) ? (vec)(0) : a * distance);
            b->dense_weight = long_add(b->dense_weight, a);
        }
    }
    return other;
}

/* Of the classes [c, min(c + 4, end)), of which there may be none. */
INLINE vec add_four(const tile_input *in, tile_sums *b, const exp_scale scale, const ilane target,
                    const uint c, const uint end, const bool entropy, const bool far)
{
    vec sum = (vec)(0);
    if (c + 3 < end) {
        const vec first = add_class(in, b, scale, target, c, entropy, far);
        const vec second = add_class(in, b, scale, target, c + 1, entropy, far);
        const vec third = add_class(in, b, scale, target, c + 2, entropy, far);
        const vec fourth = add_class(in, b, scale, target, c + 3, entropy, far);
        return (first + second) + (third + fourth);
    }
    for (uint k = c; k < end; k++) sum += add_class(in, b, scale, target, k, entropy, far);
    return sum;
}

INLINE void sum_classes(const tile_input *in, tile_sums *s, const exp_scale scale, const ilane target,
                        const uint begin, const uint end, const bool entropy, const bool far)
{
    tile_sums b = empty_sums(s->maximum);
    UNROLL_ALONE
    for (uint i = 0; i < BLOCK_CLASSES; i += 4) {
        b.others = long_add(b.others, add_four(in, &b, scale, target, begin + i, end, entropy, far));
    }
    s->others = long_merge(s->others, b.others);
    if (GENERAL && entropy) s->entropy = long_merge(s->entropy, b.entropy);
    if (GENERAL && in->dense) {
        s->dense_nll = long_merge(s->dense_nll, b.dense_nll);
        s->dense_weight = long_merge(s->dense_weight, b.dense_weight);
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
        s->entropy = long_times(long_add(s->entropy, long_value(s->others) * step), factor);
        s->dense_nll = long_add(s->dense_nll, long_value(s->dense_weight) * step);
    }
    s->others = long_times(s->others, factor);
    s->maximum = maximum;
}

/* maximum: saved, or as fill_tile() found it of x, which is z unless GENERAL. */
static inline tile_sums sum_tile(const tile_input *in, const ilane target, const bool from_statistics,
                                 const lane maximum, const bool entropy)
{
    tile_sums s = empty_sums((lane)(-REAL_INFINITY));
    if (from_statistics || FILL_FINDS_MAXIMUM) {
        s.maximum = maximum;
    } else if (CACHED) {
        s.maximum = tile_maximum(in);
    }
    exp_scale scale = exp_scale_of(s.maximum);
    bool is_far = ANY_LANE(fabs(s.maximum) > (lane)(MAX_NEAR));
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        if (!CACHED && !from_statistics) {
            lane m = s.maximum;
            for (uint c = begin; c < end; c++) m = vec_max(m, get_z(in, c));
            raise_maximum(&s, m);
            scale = exp_scale_of(m);
            is_far = ANY_LANE(fabs(m) > (lane)(MAX_NEAR));
        }
        if (GENERAL || is_far) {
            sum_classes(in, &s, scale, target, begin, end, entropy, true);
        } else {
            sum_classes(in, &s, scale, target, begin, end, entropy, false);
        }
    }
    return s;
}
#endif

#if !ALONG
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
                CACHED ? LOAD(in->values + (size_t)c * PITCH) : exp_vector(get_z(in, c), r->scale, true);
            others += e == top ? (vec)(0) : e; /* more than half of the sum: there is one such class */
        }
        sum = long_merge(sum, (long_sum){ others, (vec)(0) });
    }
    return long_value(sum);
}
#endif

/* ---- [rows, classes] results ---------------------------------------------------------------- */

#define EMIT_LOG_SOFTMAX 0
#define EMIT_SOFTMAX 1
#define EMIT_GRADIENT 2
#define EMIT_KINDS 3

/* What the values of one kind are made of, for the lanes of one vector. */
typedef struct {
    uint kind;
    bool again;  /* the exponentials were written over since the sums were taken */
    lane factor; /* of the exponentials, and what it was rounded by: few classes have large shares */
    lane rest;
    gradient_factors g;
    ilane target;
} emission;

/* Where they go. */
typedef struct {
    bool is_gradient;
    bool accumulate;
    bool aligned; /* whole vectors may bypass the cache */
    __global storage *out;
    __global gradient_storage *gradient;
} destination;

#if !ALONG
/* Of class c in all lanes. */
INLINE vec emit_value(const tile_input *in, const row_result *r, const emission *m, const uint c)
{
    if (m->kind == EMIT_LOG_SOFTMAX) {
        const vec value = -((r->maximum - get_z(in, c)) + r->log_d);
        return r->valid ? value : (vec)(REAL_NAN); /* computed NaNs differ in bits */
    }
    vec slope = (vec)(1);
    vec e;
    if (CACHED && !m->again) {
        e = LOAD(in->values + (size_t)c * PITCH);
        if (GENERAL && m->kind == EMIT_GRADIENT) (void)softcap_vector_z(get_x(in, c), in->o, &slope);
    } else {
        e = exp_vector(softcap_vector_z(get_x(in, c), in->o, &slope), r->scale, true);
    }
    vec value = fma(e, m->factor, e * m->rest);
    if (m->kind == EMIT_SOFTMAX) return r->valid ? value : (vec)(REAL_NAN);
    if (GENERAL) {
        if (in->dense) value = value - dense_class(in, c);
        value = value * m->g.outer * slope;
    }
    value = m->target == (ilane)((integer)c) ? m->g.target : value;
    return m->g.filled ? m->g.fill : value;
}
#endif

#if !COOPERATIVE
/* A vector at element `at`, of which n exist. */
INLINE void put(const destination *to, const ulong at, const vec value, const uint n)
{
    vec sum = value;
    if (!to->is_gradient) {
        if (n == VEC) {
            store_vector(to->out + at, value, to->aligned);
        } else {
            store_partial(to->out + at, value, n);
        }
    } else if (n == VEC) {
        if (to->accumulate) sum = accumulated(load_gradient_vector(to->gradient + at), value);
        store_gradient_vector(to->gradient + at, sum, to->aligned);
    } else {
        if (to->accumulate) sum = accumulated(load_gradient_partial(to->gradient + at, n), value);
        store_gradient_partial(to->gradient + at, sum, n);
    }
}
#endif

#if !INNER
INLINE void put_one(const destination *to, const ulong at, const real value)
{
    if (!to->is_gradient) {
        store_one(to->out + at, value);
    } else if (to->accumulate) {
        if (value != 0) store_gradient_one(to->gradient + at, value + load_gradient_one(to->gradient + at));
    } else {
        store_gradient_one(to->gradient + at, value);
    }
}
#endif

/* Whether vectors that begin at multiples of VEC elements are aligned. */
static inline bool is_aligned(const destination *to, const ulong step, const bool streaming)
{
    const size_t size = to->is_gradient ? sizeof(gradient_storage) : sizeof(storage);
    const size_t address = to->is_gradient ? (size_t)to->gradient : (size_t)to->out;
    return (streaming || TELLS_ALIGNED) && address % (VEC * size) == 0 && step % VEC == 0;
}

#if ALONG
/* Values of all classes, in the place of their exponentials. */
static inline void stage_along(const tile_input *in, const row_result *r, const emission *m,
                               __local real *values)
{
    const bool is_gradient = m->kind == EMIT_GRADIENT;
    const ilane filled = is_gradient ? m->g.filled : !r->valid;
    const lane fill = is_gradient ? m->g.fill : (lane)(REAL_NAN);
    real factors[VEC], rests[VEC], fills[VEC], targets[VEC];
    integer is_filled[VEC], target[VEC];
    STORE(m->factor, factors);
    STORE(m->rest, rests);
    STORE(fill, fills);
    STORE(filled, is_filled);
    STORE(m->g.target, targets);
    STORE(m->target, target);
    for (uint i = 0; i < in->n; i++) {
        const vec factor = (vec)(factors[i]), rest = (vec)(rests[i]);
        const uint last = in->classes - VEC;
        __local real *row = values + i * in->classes;
        if (is_filled[i]) {
            for (uint c = 0; c < last; c += VEC) STORE((vec)(fills[i]), row + c);
            STORE((vec)(fills[i]), row + last);
            continue;
        }
        const vec e_last = LOAD(row + last); /* before the one beside it is written over */
        for (uint c = 0; c < last; c += VEC) {
            const vec e = LOAD(row + c);
            STORE(fma(e, factor, e * rest), row + c);
        }
        STORE(fma(e_last, factor, e_last * rest), row + last);
        if (is_gradient && target[i] >= 0) row[target[i]] = targets[i];
    }
}

#elif CACHED && !STORES_DIRECTLY
/* Values of all classes, of one vector of lanes, to where store_tile() takes them from. */
static inline void stage(const tile_input *in, const row_result *r, const emission *m, __local real *own_rows)
{
#    if TRANSPOSES
#        if VEC > 1
    if (in->classes == 2) {
        const vec a = emit_value(in, r, m, 0), b = emit_value(in, r, m, 1);
        STORE(ZIP(a.lo, b.lo, s), own_rows);
        STORE(ZIP(a.hi, b.hi, s), own_rows + VEC);
        return;
    }
#        endif
    for (uint left = in->classes; left > 0;) {
        const uint n = left % VEC > 0 ? left % VEC : VEC; /* the last classes first: see rows_to_tile() */
        const uint c = left == in->classes ? (in->classes - 1) / VEC * VEC : left - VEC;
        vec v[VEC];
        if (n == VEC) {
#        pragma unroll
            for (uint i = 0; i < VEC; i++) v[i] = emit_value(in, r, m, c + i);
        } else {
            for (uint i = 0; i < VEC; i++) {
                v[i] = (vec)(0);
                if (i < n) v[i] = emit_value(in, r, m, c + i);
            }
        }
        transpose(v);
#        pragma unroll
        for (uint i = 0; i < VEC; i++) STORE(v[i], own_rows + i * in->classes + c);
        left = c;
    }
#    else
    (void)own_rows;
    for (uint c = 0; c < in->classes; c++) {
        const vec value = emit_value(in, r, m, c);
        STORE(value, in->values + (size_t)c * PITCH);
    }
#    endif
}

#endif

#if STORES_DIRECTLY
/* Values of all classes of this work-item's columns, of which there are `columns`, side by side as they lie. */
INLINE void store_columns(const tile_input *each, const row_result *r, const emission *m,
                          const destination *at, const uint columns, const bool streaming)
{
    const clxent_parameters *p = each[0].p;
    destination to = *at;
    to.aligned = is_aligned(&to, p->inner, streaming);
#    if !GENERAL /* with its options so much code takes long to compile */
    if (columns == COLUMNS && each[COLUMNS - 1].n == VEC) {
        for (uint c = 0; c < p->classes; c++) {
#        pragma unroll
            for (uint w = 0; w < COLUMNS; w++) {
                put(&to, c * class_step(p) + w * VEC, emit_value(&each[w], &r[w], &m[w], c), VEC);
            }
        }
        return;
    }
#    endif
    for (uint c = 0; c < p->classes; c++) {
        for (uint w = 0; w < COLUMNS && w < columns; w++) {
            put(&to, c * class_step(p) + w * VEC, emit_value(&each[w], &r[w], &m[w], c), each[w].n);
        }
    }
}
#elif CACHED
/* stride: from row to row (slab to slab, with INNER) of the destination, which begins at the tile's first row. */
static inline void store_tile(const tile_input *in, const destination *at, const ulong stride,
                              const bool streaming, const __local real *values, const __local real *own_rows,
                              const uint rows)
{
    destination to = *at;
    to.aligned = is_aligned(&to, INNER ? in->p->inner : 0, streaming);
#    if IN_ORDER
    (void)values;
    if (stride == in->classes) {
        const uint all = rows * in->classes;
        uint e = 0;
        for (; e + VEC <= all; e += VEC) put(&to, e, LOAD(own_rows + e), VEC);
        for (; e < all; e++) put_one(&to, e, own_rows[e]);
        return;
    }
    to.aligned = false;
    for (uint i = 0; i < rows; i++) {
        uint c = 0;
        for (; c + VEC <= in->classes; c += VEC) {
            put(&to, i * stride + c, LOAD(own_rows + i * in->classes + c), VEC);
        }
        for (; c < in->classes; c++) put_one(&to, i * stride + c, own_rows[i * in->classes + c]);
    }
#    elif COOPERATIVE
    (void)own_rows;
    for (uint e = (uint)get_local_id(0); e < rows * in->classes; e += WG_SIZE) {
        const uint row = e / in->classes, c = e % in->classes;
        put_one(&to, row * stride + c, values[(size_t)c * PITCH + row]);
    }
#    else
    (void)stride;
    (void)own_rows;
    const uint first = (uint)get_local_id(0) * VEC;
    for (uint c = 0; c < in->classes && first < rows; c++) {
        const vec value = LOAD(values + first + (size_t)c * PITCH);
        put(&to, c * class_step(in->p) + first, value, min((uint)VEC, rows - first));
    }
#    endif
}

#else
/* Without a tile to put them in between. */
static inline void store_values(const tile_input *in, const row_result *r, const emission *m,
                                const destination *at, const bool streaming)
{
    destination to = *at;
    to.aligned = is_aligned(&to, in->p->inner, streaming);
    UNROLL_ALONE
    for (uint c = 0; c < in->classes; c++) put(&to, c * class_step(in->p), emit_value(in, r, m, c), in->n);
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
#if GENERAL || ALONG
    if (outputs & OUTPUT_ENTROPY) {
        store_lanes(entropy + p->offset.entropy + in->row, entropy_of(r, j, long_value(s->entropy)), in->n);
    }
#else
    (void)entropy;
#endif
    if ((outputs & OUTPUT_STATISTICS) && !(p->flags & FLAG_FROM_STATISTICS)) {
        real maximum[VEC], others[VEC];
        const lane zero = (lane)(0), m = t->counts ? r->maximum : zero,
                   d = t->counts ? r->others * (lane)(STATISTICS_FACTOR) : zero;
        STORE(m, maximum);
        STORE(d, others);
        for (uint i = 0; i < in->n; i++) {
            statistics[p->offset.statistics + 2 * (in->row + i)] = maximum[i];
            statistics[p->offset.statistics + 2 * (in->row + i) + 1] = others[i];
        }
    }
}

static inline judgement judge(const tile_input *in, const lane_targets *t)
{
    const lane zero = (lane)(0);
    judgement j;
    j.counts = t->counts;
    j.bad = t->bad;
    j.weight = t->weight;
    j.slope = (lane)(1);
    j.z = softcap_vector_z(target_logits(in, t->class_index), in->o, &j.slope);
    const lane class_weight = in->has_class_weights ? gather(in->class_weights, t->class_index) : (lane)(1);
    j.one_hot = t->has_class ? (lane)(in->o.keep) * class_weight : zero;
    j.dense = in->dense && !in->probabilities && t->has_class ? (lane)(in->o.share) * class_weight : zero;
    j.dense_sum = (lane)(in->dense ? in->o.smoothing : 0);
    j.dense_nll = zero;
    return j;
}

/* All work-items of a group that shares a tile. A branch right behind a barrier, on a condition known before, PoCL 3.1
 * decides once for all of them, by the last one's: so what they compare themselves with is read from memory there. */
#if COOPERATIVE
#    define MEET                          \
        do {                              \
            barrier(CLK_LOCAL_MEM_FENCE); \
            rows = tile_rows[tile & 1];   \
        } while (0)
#else
#    define MEET (void)0
#endif

/* Grid: a work-group for tiles_per_group tiles; a slab of inner rows (all rows with the class axis last) has `tiles`
 * of them. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_lanes(ARGUMENTS)
{
#if COOPERATIVE
    __local uint
        tile_rows[2]; /* of this tile and of the next, which work-item 0 may be at while others are here */
#endif
    const uint lid = (uint)get_local_id(0);
    const uint outputs = p.outputs;
    const bool from_statistics = (p.flags & FLAG_FROM_STATISTICS) != 0;
    const bool streaming = (p.flags & FLAG_NONTEMPORAL) != 0;
    const bool keeps_logits = (p.flags & FLAG_KEEPS_LOGITS) != 0;
    const bool wants_entropy = (GENERAL || ALONG) && (outputs & OUTPUT_ENTROPY) != 0;
    const bool wants_best = (outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    const bool second_pass = (p.flags & FLAG_LOG_D) != 0 && !from_statistics;
#if ALONG
    const along_wishes wishes = { (outputs & (OUTPUT_SOFTMAX | OUTPUT_GRADIENT)) != 0, wants_entropy,
                                  wants_best, wants_best || (outputs & OUTPUT_LSE) != 0 };
#endif
    const real d = get_d(&p, targets, row_weights, denominator, workspace);
    const ulong slab_rows = INNER ? p.inner : p.rows;
    const size_t tile_size = (size_t)p.classes * PITCH * COLUMNS;
    __local real *values = keeps_logits ? cache + tile_size : cache;
    __local real *own_rows = ALONG ? cache : values + tile_size;
    (void)own_rows; /* where there is no tile */
    tile_input in;
    in.p = &p;
    in.classes = p.classes;
    in.brings_next = tile_size * sizeof(real) <= MOST_BROUGHT;
    in.probabilities = GENERAL && is_probabilities(p.target_type);
    in.q_is_f32 = p.target_type == TARGET_PROBABILITIES_F32;
    in.q_at = 0;
    in.targets = targets;
    in.class_weights = class_weights + p.offset.class_weights;
    in.has_class_weights = (p.flags & FLAG_CLASS_WEIGHTS) != 0;
    in.dense = GENERAL && (in.probabilities || smoothing != 0);
    in.o = (options){ keep, share, smoothing, z_loss, logit_scale, softcap };
    const bool sums_weight = in.dense && (in.probabilities || in.has_class_weights);

    const ulong tiles = p.rows / slab_rows * p.tiles;
    const ulong first_tile = get_group_id(0) * (ulong)p.tiles_per_group;
    const ulong last_tile = min(first_tile + p.tiles_per_group, tiles);
#if TRANSPOSES
    STORE((vec)(0), own_rows + VEC * p.classes); /* read beside the last row */
#endif
    for (ulong tile = first_tile; tile < last_tile; tile++) {
        const ulong slab = tile / p.tiles, within = tile % p.tiles * TILE;
        const ulong first_row = slab * slab_rows + within;
        uint rows = (uint)min((ulong)TILE, slab_rows - within); /* of this tile */
#if COOPERATIVE
        if (lid == 0) tile_rows[tile & 1] = rows;
#endif
        __global const storage *x = logits + p.offset.logits;
        x += INNER ? slab * p.row_stride + within : within * p.row_stride;
        in.row = first_row + lid * VEC;
        in.n = lid * VEC < rows ? min((uint)VEC, rows - lid * VEC) : 0;
        in.x = x + lid * VEC * lane_step(p.row_stride);
        in.next = in.x + (p.row_stride == p.classes ? TILE * p.row_stride : 0); /* rows without gaps */
        in.logits = cache + lid * VEC;
#if TELLS_ALIGNED
        in.aligned = p.inner % VEC == 0 && IS_ALIGNED(in.x, storage);
#endif
        lane maximum[COLUMNS]; /* saved, or of this tile */
        for (uint w = 0; w < COLUMNS; w++) maximum[w] = (lane)(0);
#if HOLDS_LOGITS
        fill_tile(&in, cache, own_rows, rows, maximum);
#endif
        MEET;

        row_result r[COLUMNS];
        emission m[COLUMNS];
#if COLUMNS > 1
        tile_input each[COLUMNS];
#else
        const tile_input *each = &in;
        (void)each; /* where rows are stored otherwise */
#endif
        for (uint w = 0; w < COLUMNS && (lid + w) * VEC < rows; w++) {
            const uint lane_0 = (lid + w) * VEC;
            in.row = first_row + lane_0;
            in.n = min((uint)VEC, rows - lane_0);
            in.x = x + lane_0 * lane_step(p.row_stride);
            if (INNER) in.next = in.x + TILE;
            in.logits = cache + lid * VEC + (size_t)w * p.classes * PITCH;
            in.values = in.logits + (values - cache);
            in.q_at = target_start(&in, 0);
            lane saved_others = (lane)(0);
            if (from_statistics) {
                real top[VEC], others[VEC];
                for (uint i = 0; i < VEC; i++) {
                    const ulong at = p.offset.statistics + 2 * (in.row + min(i, in.n - 1));
                    top[i] = statistics[at];
                    others[i] = statistics[at + 1];
                }
                maximum[w] = LOAD(top);
                saved_others = LOAD(others) * (lane)(1 / STATISTICS_FACTOR);
            }
            const lane_targets t = get_targets(&p, in.row, in.n, targets, row_weights);
            judgement j = judge(&in, &t);
#if ALONG
            tile_sums s = sum_rows(&in, t.class_index, from_statistics, maximum[w], wishes, own_rows);
#else
            tile_sums s = sum_tile(&in, t.class_index, from_statistics, maximum[w], wants_entropy);
#endif
            if (sums_weight) j.dense_sum = long_value(s.dense_weight);
            if (GENERAL && in.dense) j.dense_nll = long_value(s.dense_nll);
            const lane others = from_statistics ? saved_others : long_value(s.others);
            const lane target_exp = t.has_class ? exp_lane(j.z, exp_scale_of(s.maximum), true) : (lane)(0);
            const ilane sum_is_nan = others + target_exp != others + target_exp;
#if ALONG
            if (wishes.nan && ANY_LANE(sum_is_nan)) s.nan_at = find_nans_along(&in, sum_is_nan);
#else
            if (keeps_logits && (wants_best || ((outputs & OUTPUT_LSE) && ANY_LANE(sum_is_nan)))) {
                find_best(&in, &s);
            }
#endif
            r[w] = finish_sums(s.maximum, others, target_exp, s.nan_at >= (ilane)(0));
            const lane saved_lse = r[w].lse;
            if (second_pass && ANY_LANE(r[w].confident)) keep_top_apart(&r[w], sum_below_top(&in, &r[w]));
            write_rows(&in, &r[w], &j, &s, &t, losses, lse, argmax, entropy, statistics, workspace);

            lane outer;
            if (p.flags & FLAG_UPSTREAM_ROWS) {
                outer = t.weight * load_lanes(upstream + p.offset.upstream + in.row, in.n) / (lane)(d);
            } else {
                const real up = (p.flags & FLAG_UPSTREAM) ? upstream[p.offset.upstream] : REAL(1.0);
                if (p.flags & FLAG_ROW_WEIGHTS) {
                    outer = t.weight * (lane)(up) / (lane)(d);
                } else {
                    outer = (lane)(up / d); /* of rows that do not count it is not used */
                }
            }
            if (GENERAL) outer = outer * (lane)(logit_scale);
            m[w].g =
                gradient_of(&r[w], &j, in.dense, z_loss, saved_lse, outer, divides_by_own_d(&p) && d == 0);
            m[w].target = t.class_index;
#if COLUMNS > 1
            each[w] = in;
#endif
        }

        uint stored = 0; /* kinds; each has code of its own where registers are not short */
#if !COOPERATIVE && (CACHED || WG_SIZE == 1)
#    pragma unroll
#endif
        for (uint kind = 0; kind < EMIT_KINDS; kind++) {
            const bool is_wanted = (outputs & (kind == EMIT_LOG_SOFTMAX ? OUTPUT_LOG_SOFTMAX
                                               : kind == EMIT_SOFTMAX   ? OUTPUT_SOFTMAX
                                                                        : OUTPUT_GRADIENT)) != 0;
            const ulong stride = kind == EMIT_GRADIENT ? p.gradient_row_stride : p.probabilities_row_stride;
            const ulong at = INNER ? slab * stride + within : within * stride;
            const destination to = { kind == EMIT_GRADIENT,
                                     kind == EMIT_GRADIENT && (p.flags & FLAG_ACCUMULATE) != 0, false,
                                     kind == EMIT_LOG_SOFTMAX ? log_softmax + p.offset.log_softmax + at
                                                              : softmax + p.offset.softmax + at,
                                     gradient + p.offset.gradient + at };
            for (uint w = 0; w < COLUMNS && is_wanted && (lid + w) * VEC < rows; w++) {
#if COLUMNS == 1
                /* once more: PoCL 3.1 loses `in` at a barrier */
                in.row = first_row + lid * VEC;
                in.n = min((uint)VEC, rows - lid * VEC);
                in.x = x + lid * VEC * lane_step(p.row_stride);
                in.logits = cache + lid * VEC;
                in.values = in.logits + (values - cache);
                in.q_at = target_start(&in, 0);
#endif
                m[w].kind = kind;
                m[w].again = OVERWRITES && stored > 0;
                if (kind == EMIT_SOFTMAX) {
                    m[w].factor = m[w].g.inverse;
                    m[w].rest = fma(-m[w].factor, r[w].d, (lane)(1)) * m[w].factor;
                } else if (GENERAL) {
                    m[w].factor = m[w].g.factor;
                    m[w].rest = m[w].g.rest;
                } else {
                    m[w].factor = m[w].g.factor * m[w].g.outer;
                    const lane rest =
                        fma(m[w].g.factor, m[w].g.outer, -m[w].factor) + m[w].g.rest * m[w].g.outer;
                    /* an infinite factor, as a denominator of 0 gives, was rounded by nothing */
                    m[w].rest = fabs(m[w].factor) < (lane)(REAL_INFINITY) ? rest : (lane)(0);
                }
#if ALONG
                stage_along(&in, &r[w], &m[w], own_rows);
#elif CACHED && !STORES_DIRECTLY
                stage(&in, &r[w], &m[w], own_rows);
#elif !STORES_DIRECTLY
                destination own = to;
                own.out += lid * VEC;
                own.gradient += lid * VEC;
                store_values(&in, &r[w], &m[w], &own, streaming);
#endif
            }
#if STORES_DIRECTLY
            if (is_wanted) store_columns(each, r, m, &to, (rows + VEC - 1) / VEC, streaming);
            (void)stored;
#elif CACHED
            MEET;
            if (is_wanted) {
                store_tile(&in, &to, stride, streaming, values, own_rows, rows);
                stored++;
            }
#endif
            MEET;
        }
    }
}
