/* SPDX-License-Identifier: MIT
 *
 * map_lane.cl - a row for each lane: vectors lie across rows, and each of their elements is another one. For rows of few
 * classes, and for a class axis that is not the last. Stands behind epilogue.cl, and with ALONG behind row_scan.cl.
 *
 * Rows come in tiles, which are read once into local memory, class by class, and stay there until their results
 * are written; where a tile does not fit (INNER only) it is read a second time. With the class axis last, tiles are
 * transposed on their way in and out: by shuffles of registers in a group of one work-item, by local memory in
 * larger ones. With ALONG they are not: rows are read where they lie, and the tile has their exponentials, row by row.
 *
 * Set by the host with -D, beside those of constants.cl and common.cl:
 *   INNER    0: the class axis is last; a group of more than one work-item needs VEC 1
 *            1: rows are neighbours, classes are inner elements apart
 *   CACHED   1: a tile fits into local memory; 0: it does not
 *   COLUMNS  vectors of lanes that one work-item has in a tile, one after the other. More than one is for INNER
 *            with a group of one work-item: so many neighbours are read and written together
 *   ALONG    1: vectors lie along the classes of a row while sums are taken and results are made, and only what a row
 *            has one of is a lane, so that nothing but the rows' partial sums is transposed. For at least VEC
 *            classes (plan.c: lies_along()), a group of one work-item, z that is x, no smoothing or probabilities, no
 *            log-softmax, and not both softmax and gradient
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
    (ALONG && (INNER || HAS_Z || HAS_DENSE || !CACHED || VEC == 1 || WG_SIZE > 1))
#    error \
        "ALONG: 0, or 1 with CACHED, no INNER, HAS_Z, HAS_DENSE, VEC more than 1 and a group of one work-item"
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
#if INNER && CACHED && !HAS_Z
#    define FILL_FINDS_MAXIMUM true
#else
#    define FILL_FINDS_MAXIMUM false
#endif
/* Classes between two additions to a long sum (see block_sums). Part of what decides bits. */
#define BLOCK_CLASSES 16u

/* Bytes of a tile, at most, of which the next one's logits are brought into the second-level cache while this one is
 * computed with. Classes that are a power of two apart share a few sets of that cache, and of more than this some would be
 * gone again before they are used: those come while the tile is filled, so many classes ahead (PoCL, 2 hyperthreads of
 * Emerald Rapids, 1,000 classes 16 KiB apart: 0.84 of the time). */
#define MOST_BROUGHT (1u << 16)
#define CLASSES_AHEAD 12u

/* Of a group of one work-item; in larger ones it takes registers that a GPU does not have. */
#if WG_SIZE == 1
#    define UNROLL_ALONE _Pragma("unroll")
#else
#    define UNROLL_ALONE _Pragma("unroll 1")
#endif

/* A tile, and of it the rows of one work-item's lanes that are open, with their inputs. */
typedef struct {
    const clxent_parameters *p;
    ulong row; /* of lane 0 */
    uint n;    /* lanes that exist, 0 to VEC */
    uint rows; /* of the tile */
    uint w;    /* the column that is open */
#if TELLS_ALIGNED
    bool aligned; /* with INNER: vectors of logits are */
#endif
    uint classes;
    __global const storage *x;    /* lane 0, class 0 */
    __global const storage *next; /* of the next tile, a vector for each class */
    bool brings_next;             /* with INNER: see MOST_BROUGHT */
    __local real *logits;         /* this work-item's part of the tile */
    __local real *values;         /* exponentials; the same place where logits are not needed again */
    __local real *tile_values;    /* of the whole tile */
    __local real *own_rows;       /* the tile as it lies in memory */
    lane maximum[COLUMNS];        /* of x in each column, where filling the tile finds it */
    __global const void *targets;
    ulong q_at; /* of lane 0, class 0, in elements */
    __global const real *class_weights;
    options o;
} tile_input;
typedef tile_input unit_input;

/* From lane to lane and from class to class of a [rows, classes] tensor, in elements. */
static inline ulong lane_step(const ulong row_stride) { return INNER ? 1 : row_stride; }

static inline ulong class_step(const clxent_parameters *p) { return INNER ? p->inner : 1; }

/* ---- Lanes from and to memory --------------------------------------------------------------- */

/* x of class c in all lanes. */
ALWAYS_INLINE vec load_class(const tile_input *in, const uint c)
{
    __global const storage *x = in->x + c * class_step(in->p);
    if (INNER && in->n == VEC) return LOAD_VECTOR(x, in->aligned);
    real element[VEC];
    for (uint i = 0; i < VEC; i++) {
        element[i] = load_one(x + min(i, in->n - 1) * lane_step(in->p->row_stride));
    }
    return LOAD(element);
}

ALWAYS_INLINE vec class_x(const tile_input *in, const uint c)
{
    return HOLDS_LOGITS ? LOAD(in->logits + (size_t)c * PITCH) : load_class(in, c);
}

#if !ALONG
ALWAYS_INLINE vec class_z(const tile_input *in, const uint c)
{
    vec unused;
    return softcap_vector_z(class_x(in, c), in->o, &unused);
}
#endif

/* The logit of each lane's target; -inf without one. */
static inline lane target_logits(const unit_input *in, const lane_targets *t)
{
    const ilane class_index = t->class_index;
    if (HOLDS_LOGITS && in->classes <= 4 * VEC) { /* cheaper than to take the lanes apart */
        lane z = (lane)(-REAL_INFINITY);
        for (uint c = 0; c < in->classes; c++) {
            z = class_index == (ilane)((integer)c) ? class_x(in, c) : z;
        }
        return z;
    }
    integer index[VEC];
    real element[VEC];
    STORE(class_index, index);
    for (uint i = 0; i < VEC; i++) {
        element[i] = -REAL_INFINITY;
        if (i >= in->n || index[i] == NO_CLASS) continue;
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
ALWAYS_INLINE ulong target_start(const tile_input *in, const uint i)
{
    const ulong row = min(in->row + i + in->p->shift, in->p->rows - 1);
    return in->p->offset.targets + row_start(in->p, row, in->p->target_row_stride);
}

#if !ALONG
/* The part of a_j that every class has, of class c: of an index target the smoothing, of probabilities all. */
ALWAYS_INLINE vec dense_class(const tile_input *in, const uint c)
{
    vec a = (vec)(in->o.share);
    if (HAS_PROBABILITIES) {
        const bool is_f32 = TARGETS == TARGET_PROBABILITIES_F32;
        const ulong at = in->q_at + c * class_step(in->p), step = lane_step(in->p->target_row_stride);
        __global const float *f32 = (__global const float *)in->targets + at;
        __global const storage *stored = (__global const storage *)in->targets + at;
        vec q;
        if (INNER && in->n == VEC && in->p->shift == 0) {
            q = is_f32 ? CONVERT_VEC(LOAD(f32)) : load_vector(stored);
        } else {
            real element[VEC];
            for (uint i = 0; i < VEC; i++) {
                const uint k = min(i, in->n - 1);
                const ulong skip = VEC == 1 || in->p->shift == 0 ? k * step : target_start(in, k) - in->q_at;
                element[i] = is_f32 ? convert_real(f32[skip]) : load_one(stored + skip);
            }
            q = LOAD(element);
        }
        a = fma((vec)(in->o.keep), q, a);
    }
    if (HAS_CLASS_WEIGHTS) a = a * (vec)(in->class_weights[c]);
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
ALWAYS_INLINE void transpose(vec v[VEC])
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
ALWAYS_INLINE void block_to_tile(const __local real *rows, __local real *tile, const uint classes,
                                 const uint n, const uint most)
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
/* Fills this work-item's columns of the tile, or with the others of the group the whole of it. */
static inline void fill_tile(tile_input *in, __local real *cache)
{
#    if TRANSPOSES
    (void)cache;
    load_rows(in, in->own_rows);
    rows_to_tile(in->own_rows, in->logits, in->classes);
#    elif COOPERATIVE
    const ulong stride = in->p->row_stride;
    __global const storage *x = in->x - get_local_id(0) * stride;
    for (uint e = (uint)get_local_id(0); e < in->rows * in->classes; e += WG_SIZE) {
        const uint r = e / in->classes, c = e % in->classes;
        cache[(size_t)c * PITCH + r] = load_one(x + r * stride + c);
    }
#    else
    (void)cache;
    if (in->n == 0) return;
    for (uint w = 0; w < COLUMNS; w++) in->maximum[w] = (lane)(-REAL_INFINITY);
    if (COLUMNS > 1 && in->rows == TILE) {
        lane most[COLUMNS];
        for (uint w = 0; w < COLUMNS; w++) most[w] = in->maximum[w];
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
        for (uint w = 0; w < COLUMNS; w++) in->maximum[w] = most[w];
        return;
    }
    tile_input column = *in;
    for (uint w = 0; w < COLUMNS && w * VEC < in->rows; w++) {
        column.n = COLUMNS > 1 ? min((uint)VEC, in->rows - w * VEC) : in->n;
        column.x = in->x + w * VEC;
        for (uint c = 0; c < in->classes; c++) {
            const vec v = load_class(&column, c);
            if (!in->brings_next) PREFETCH(column.x + (c + CLASSES_AHEAD) * class_step(in->p));
            in->maximum[w] = vec_max(in->maximum[w], v);
            STORE(v, in->logits + ((size_t)w * in->classes + c) * PITCH);
        }
    }
#    endif
}
#endif

/* ---- Scans ---------------------------------------------------------------------------------- */

#if ALONG
/* Rows whose maxima are found before their exponentials are taken: all of a tile that stays in the first-level cache, of
 * a larger one a few at a time, which neither leave that cache nor wait for a maximum one by one (loss of 1,024 classes:
 * 0.9 of the time). */
#    define MOST_TOGETHER 384u
#    define FEW_TOGETHER 4u

/* Row i of the tile, as row_scan.cl reads it. */
static inline row_input row_of_tile(const tile_input *in, const uint i)
{
    row_input row;
    row.x = in->x + i * in->p->row_stride;
    row.row = in->row + i;
    row.n = 1;
    row.classes = in->classes;
    row.vectors = in->classes / VEC;
    row.tail = in->classes % VEC;
    row.cache_elements = 0;
    row.fits = true;
    row.cached = true;
    row.ahead = in->p->row_stride == in->classes ? TILE / VEC * in->classes
                                                 : 0; /* rows without gaps: the next tile */
    row.shares_lines = false;
    row.slope_at = 0;
    row.q = 0;
    row.class_weights = in->class_weights;
    row.best = false;
    row.nan = false;
    row.o = in->o;
    return row;
}

/* Of a row; the last one ends with it. */
static inline uint vectors_of_tile(const tile_input *in) { return (in->classes - 1) / VEC + 1; }

/* Of `count` rows from `first` on, or of all. */
ALWAYS_INLINE void find_maxima(const tile_input *in, const uint first, const uint count, real maximum[VEC])
{
    const row_scan scan = { NO_CLASS, true, false, false, 0 };
    vec most[VEC], unused[REGISTERS];
    const uint all = vectors_of_tile(in);
    if (count < VEC) {
        for (uint i = first; i < min(first + count, in->n); i++) {
            const row_input row = row_of_tile(in, i);
            const vec m = maximum_of(&row, &scan, 0, all, unused);
            maximum[i] = FOLD(m, real_max);
        }
        return;
    }
    for (uint i = 0; i < VEC; i++) {
        const row_input row = row_of_tile(in, min(i, in->n - 1));
        most[i] = maximum_of(&row, &scan, 0, all, unused);
    }
    transpose(most);
    for (uint step = VEC / 2; step > 0; step /= 2) {
#    pragma unroll
        for (uint i = 0; i < step; i++) most[i] = vec_max(most[i], most[i + step]);
    }
    STORE(most[0], maximum);
}

/* high and low: of each row, element by element of its vectors; of the rows, lane by lane. has_low: low is not all 0. */
static inline long_sum fold_along(vec high[VEC], vec low[VEC], const bool has_low)
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
    return s;
}

/* The scales of a vector of rows, one by one. */
typedef struct {
    real maximum[VEC], base[VEC], q[VEC], lowest[VEC];
} tile_levels;

ALWAYS_INLINE void split_levels(tile_levels *l, const exp_scale scale)
{
    STORE(scale.base, l->base);
    STORE(scale.q, l->q);
    STORE(scale.lowest, l->lowest);
}

static inline row_level level_of_row(const tile_levels *l, const uint i)
{
    const exp_scale scale = { (lane)(l->base[i]), (lane)(l->q[i]), (lane)(l->lowest[i]) };
    const real maximum = l->maximum[i];
    return (row_level){ scale, maximum > -REAL_INFINITY ? maximum : 0, true };
}

/* saved_maximum: of statistics. keeps: the exponentials stay in own_rows, row by row. */
static inline row_sums sum_tile(const run *u, const tile_input *in, const ilane target,
                                const bool from_statistics, const lane saved_maximum)
{
    const bool keeps = WANTS_WIDE(u->p);
    const bool wants_best = (u->p->outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    const uint all = vectors_of_tile(in);
    const uint together = in->classes <= MOST_TOGETHER ? (uint)VEC : min(FEW_TOGETHER, (uint)VEC);
    tile_levels levels;
    integer apart[VEC], best[VEC];
    vec high[VEC], low[VEC], entropy_high[VEC], entropy_low[VEC];
    STORE(saved_maximum, levels.maximum);
    STORE(target, apart);
    for (uint i = 0; i < VEC; i++) {
        best[i] = NO_CLASS;
        if (i >= in->n) {
            high[i] = low[i] = entropy_high[i] = entropy_low[i] = (vec)(0);
            continue;
        }
        if (i % together == 0) {
            if (!from_statistics) find_maxima(in, i, together, levels.maximum);
            split_levels(&levels, exp_scale_of(LOAD(levels.maximum)));
        }
        const row_input row = row_of_tile(in, i);
        const row_scan scan = { (uint)apart[i], true, keeps, false, in->own_rows + i * in->classes };
        row_level level = level_of_row(&levels, i);
        vec unused[REGISTERS];
        block_sums b = empty_block();
        if (fabs(levels.maximum[i]) > MAX_NEAR) {
            sum_block(&b, &row, &scan, &level, 0, all, unused);
        } else {
            level.far = false;
            sum_block(&b, &row, &scan, &level, 0, all, unused);
        }
        high[i] = b.others.high;
        low[i] = b.others.low;
        entropy_high[i] = b.entropy.high;
        entropy_low[i] = b.entropy.low;
        if (wants_best) best[i] = find_first(&row, false, levels.maximum[i], 0, all);
    }
    row_sums s = empty_sums();
    const bool has_low = all > FLUSH_VECTORS; /* nothing is lost by the first addition */
    s.maximum = LOAD(levels.maximum);
    s.others = fold_along(high, low, has_low);
#    if HAS_ENTROPY
    s.entropy = fold_along(entropy_high, entropy_low, has_low);
#    endif
    s.best = LOAD(best);
    return s;
}

/* Of rows whose sum is NaN, the first class that is, where +inf - inf did not make it. */
static inline void find_classes(const run *u, const tile_input *in, row_sums *s)
{
    const uint outputs = u->p->outputs;
    const ilane is_nan = s->others.high != s->others.high;
    if ((outputs & (OUTPUT_LSE | OUTPUT_ARGMAX | OUTPUT_CORRECT)) == 0 || !ANY_LANE(is_nan)) return;
    integer search[VEC], at[VEC];
    STORE(is_nan, search);
    for (uint i = 0; i < VEC; i++) {
        at[i] = NO_CLASS;
        if (i >= in->n || search[i] == 0) continue;
        const row_input row = row_of_tile(in, i);
        at[i] = find_first(&row, true, 0, 0, vectors_of_tile(in));
    }
    s->nan_at = LOAD(at);
}

/* The exponentials once more, of confident rows, without the one class that is the maximum. */
static inline lane tile_below_top(const tile_input *in, const row_result *r)
{
    tile_levels levels;
    integer wanted[VEC];
    vec high[VEC], low[VEC];
    split_levels(&levels, r->scale);
    STORE(r->maximum, levels.maximum);
    STORE(r->confident, wanted);
    for (uint i = 0; i < VEC; i++) {
        high[i] = low[i] = (vec)(0);
        if (i >= in->n || wanted[i] == 0) continue;
        const row_input row = row_of_tile(in, i);
        const row_level level = level_of_row(&levels, i);
        const long_vector sum = sum_below_top(&row, &level, levels.maximum[i], 0, vectors_of_tile(in));
        high[i] = sum.high;
        low[i] = sum.low;
    }
    return long_value(fold_along(high, low, true));
}

#else
static inline lane tile_maximum(const tile_input *in)
{
    vec m0 = (vec)(-REAL_INFINITY), m1 = m0, m2 = m0, m3 = m0;
    uint c = 0;
    for (; c + 3 < in->classes; c += 4) {
        m0 = vec_max(m0, class_z(in, c));
        m1 = vec_max(m1, class_z(in, c + 1));
        m2 = vec_max(m2, class_z(in, c + 2));
        m3 = vec_max(m3, class_z(in, c + 3));
    }
    for (; c < in->classes; c++) m0 = vec_max(m0, class_z(in, c));
    return vec_max(vec_max(m0, m1), vec_max(m2, m3));
}

/* What exponentials are taken relative to, and the target that is left out of others. */
typedef struct {
    exp_scale scale;
    lane base; /* see distance_base() */
    bool far;  /* see exp_scale */
    ilane target;
} tile_level;

/* To t, which is no_terms(), what class c adds; its exponentials are left behind. */
ALWAYS_INLINE void take_class(terms *t, const tile_input *in, const tile_level *level, const uint c)
{
    const vec z = class_z(in, c);
    const vec e = exp_vector(z, level->scale, level->far);
    if (!INNER || in->brings_next) {
        PREFETCH(in->next + c * (INNER ? class_step(in->p) : VEC));
    } else if (!CACHED) {
        PREFETCH(in->x + (c + CLASSES_AHEAD) * class_step(in->p));
    }
    if (CACHED) STORE(e, in->values + (size_t)c * PITCH);
    const vec other = level->target == (ilane)((integer)c) ? (vec)(0) : e;
    vec a = (vec)(0);
    if (HAS_DENSE) a = dense_class(in, c);
    take_terms(t, other, z, level->base, a);
}

/* The classes [begin, min(begin + BLOCK_CLASSES, end)). Few classes have large shares: what few terms lose is kept from the
 * first four on. */
ALWAYS_INLINE void sum_classes(block_sums *b, const tile_input *in, const tile_level *level, const uint begin,
                               const uint end)
{
    UNROLL_ALONE
    for (uint i = 0; i < BLOCK_CLASSES; i += 4) {
        const uint c = begin + i;
        if (c + 3 < end) {
            terms four[4];
#    pragma unroll
            for (uint k = 0; k < 4; k++) {
                four[k] = no_terms();
                take_class(&four[k], in, level, c + k);
            }
            add_four(b, four);
        } else {
            for (uint k = c; k < end; k++) {
                terms one = no_terms();
                take_class(&one, in, level, k);
                add_one(b, &one);
            }
        }
        flush(b, i == 0);
    }
}

/* maximum: saved, or as fill_tile() found it of x, which is z unless HAS_Z. Where the tile does not stay on chip, it is read
 * once for maximum and sums together. */
static inline row_sums sum_tile(const run *u, const tile_input *in, const ilane target,
                                const bool from_statistics, const lane maximum)
{
    row_sums s = empty_sums();
    (void)u;
    if (from_statistics || FILL_FINDS_MAXIMUM) {
        s.maximum = maximum;
    } else if (CACHED) {
        s.maximum = tile_maximum(in);
    }
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        if (!CACHED && !from_statistics) {
            lane m = s.maximum;
            for (uint c = begin; c < end; c++) m = vec_max(m, class_z(in, c));
            raise_maximum(&s, m);
        }
        tile_level level = { exp_scale_of(s.maximum), distance_base(s.maximum), true, target };
        block_sums b = empty_block();
        if (!SUMS_PLAINLY || ANY_LANE(fabs(s.maximum) > (lane)(MAX_NEAR))) {
            sum_classes(&b, in, &level, begin, end);
        } else {
            level.far = false;
            sum_classes(&b, in, &level, begin, end);
        }
        add_block(&s, &b);
    }
    return s;
}

/* Argmax and first NaN: the first NaN and the first maximum of logit_scale * x, where the plan has kept the logits for that. */
static inline void find_classes(const run *u, const tile_input *in, row_sums *s)
{
    const uint outputs = u->p->outputs;
    const bool wants_best = (outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    const ilane is_nan = s->others.high != s->others.high;
    if (!(u->p->flags & FLAG_KEEPS_LOGITS)) return;
    if (!wants_best && ((outputs & OUTPUT_LSE) == 0 || !ANY_LANE(is_nan))) return;
    s->best = (ilane)(0);
    for (uint c = 0; c < in->classes; c++) {
        const vec v = softcap_vector_s(class_x(in, c), in->o);
        const ilane here = (ilane)((integer)c);
        const ilane better = v > s->top;
        s->best = better ? here : s->best;
        s->top = better ? v : s->top;
        s->nan_at = v != v && s->nan_at == NO_CLASSES ? here : s->nan_at;
    }
}

static inline lane tile_below_top(const tile_input *in, const row_result *r)
{
    const lane top = exp_lane(r->maximum, r->scale, true);
    long_sum sum = long_zero();
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        vec others = (vec)(0);
        for (uint c = begin; c < end; c++) {
            const vec e =
                CACHED ? LOAD(in->values + (size_t)c * PITCH) : exp_vector(class_z(in, c), r->scale, true);
            others += e == top ? (vec)(0) : e; /* more than half of the sum: there is one such class */
        }
        sum = long_merge(sum, (long_sum){ others, (vec)(0) });
    }
    return long_value(sum);
}
#endif

/* ---- [rows, classes] results of a tile ------------------------------------------------------ */

#if ALONG
/* Values of all classes, in the place of their exponentials. */
static inline void stage(const tile_input *in, const row_result *r, const emission *g, const bool again)
{
    real factors[VEC], rests[VEC], fills[VEC], targets[VEC];
    integer is_filled[VEC], class_index[VEC];
    STORE(g->factor, factors);
    STORE(g->rest, rests);
    STORE(g->fill, fills);
    STORE(g->filled, is_filled);
    STORE(g->target, targets);
    STORE(g->class_index, class_index);
    (void)again;
    for (uint i = 0; i < in->n; i++) {
        emission own = *g;
        const vec none = (vec)(0);
        const uint last = in->classes - VEC;
        __local real *row = in->own_rows + i * in->classes;
        own.factor = (lane)(factors[i]);
        own.rest = (lane)(rests[i]);
        if (is_filled[i]) {
            for (uint c = 0; c < last; c += VEC) STORE((vec)(fills[i]), row + c);
            STORE((vec)(fills[i]), row + last);
            continue;
        }
        const vec e_last = LOAD(row + last); /* before the one beside it is written over */
        for (uint c = 0; c < last; c += VEC) {
            STORE(result_of(r, &own, none, none, LOAD(row + c), none), row + c);
        }
        STORE(result_of(r, &own, none, none, e_last, none), row + last);
        if (class_index[i] != NO_CLASS) row[class_index[i]] = targets[i];
    }
}

#else
/* Of class c in all lanes. again: the exponentials were written over since the sums were taken. */
ALWAYS_INLINE vec value_of_class(const tile_input *in, const row_result *r, const emission *g,
                                 const bool again, const uint c)
{
    const bool is_gradient = IS_KIND(g, OUTPUT_GRADIENT);
    vec slope = (vec)(1), z = (vec)(0), e = (vec)(0), a = (vec)(0);
    if (IS_KIND(g, OUTPUT_LOG_SOFTMAX)) {
        z = class_z(in, c);
    } else if (CACHED && !again) {
        e = LOAD(in->values + (size_t)c * PITCH);
        if (HAS_SOFTCAP && is_gradient) (void)softcap_vector_z(class_x(in, c), in->o, &slope);
    } else {
        e = exp_vector(softcap_vector_z(class_x(in, c), in->o, &slope), r->scale, true);
    }
    if (HAS_DENSE && is_gradient) a = dense_class(in, c);
    vec value = result_of(r, g, z, slope, e, a);
    if (is_gradient) value = g->class_index == (ilane)((integer)c) ? g->target : value;
    return g->filled ? g->fill : value;
}
#endif

#if CACHED && !STORES_DIRECTLY && !ALONG
/* Values of all classes, of one vector of lanes, to where store_tile() takes them from. */
static inline void stage(const tile_input *in, const row_result *r, const emission *g, const bool again)
{
#    if TRANSPOSES
#        if VEC > 1
    if (in->classes == 2) {
        const vec a = value_of_class(in, r, g, again, 0), b = value_of_class(in, r, g, again, 1);
        STORE(ZIP(a.lo, b.lo, s), in->own_rows);
        STORE(ZIP(a.hi, b.hi, s), in->own_rows + VEC);
        return;
    }
#        endif
    for (uint left = in->classes; left > 0;) {
        const uint n = left % VEC > 0 ? left % VEC : VEC; /* the last classes first: see rows_to_tile() */
        const uint c = left == in->classes ? (in->classes - 1) / VEC * VEC : left - VEC;
        vec v[VEC];
        if (n == VEC) {
#        pragma unroll
            for (uint i = 0; i < VEC; i++) v[i] = value_of_class(in, r, g, again, c + i);
        } else {
            for (uint i = 0; i < VEC; i++) {
                v[i] = (vec)(0);
                if (i < n) v[i] = value_of_class(in, r, g, again, c + i);
            }
        }
        transpose(v);
#        pragma unroll
        for (uint i = 0; i < VEC; i++) STORE(v[i], in->own_rows + i * in->classes + c);
        left = c;
    }
#    else
    for (uint c = 0; c < in->classes; c++) {
        const vec value = value_of_class(in, r, g, again, c);
        STORE(value, in->values + (size_t)c * PITCH);
    }
#    endif
}
#endif

/* Adds where the plan accumulates. */
ALWAYS_INLINE void put_sum(const destination *to, const ulong at, const vec value, const uint n)
{
    put(to, at, with_old(to, at, value, n), n);
}

#if !INNER
ALWAYS_INLINE void put_sum_one(const destination *to, const ulong at, const real value)
{
    if (!ACCUMULATE || !IS_KIND(to, OUTPUT_GRADIENT)) {
        put_one(to, at, value);
    } else if (value != 0) {
        put_one(to, at, value + load_gradient_one(to->gradient + at));
    }
}
#endif

/* Whether vectors that begin at multiples of VEC elements are aligned. */
static inline bool is_aligned(const destination *to, const ulong step, const bool streaming)
{
    return (streaming || TELLS_ALIGNED) && address_of(to, 0) % (VEC * BYTES_OF(to)) == 0 && step % VEC == 0;
}

#if STORES_DIRECTLY
/* Values of all classes of this work-item's columns, of which there are `columns`, side by side as they lie. */
ALWAYS_INLINE void store_columns(const tile_input each[COLUMNS], const row_result r[COLUMNS],
                                 const emission g[COLUMNS], const destination *to, const uint columns)
{
    const clxent_parameters *p = each[0].p;
#    if HAS_ONE_FACTOR && !HAS_Z /* else so much code takes long to compile */
    if (columns == COLUMNS && each[COLUMNS - 1].n == VEC) {
        for (uint c = 0; c < p->classes; c++) {
#        pragma unroll
            for (uint w = 0; w < COLUMNS; w++) {
                put_sum(to, c * class_step(p) + w * VEC, value_of_class(&each[w], &r[w], &g[w], false, c),
                        VEC);
            }
        }
        return;
    }
#    endif
    for (uint c = 0; c < p->classes; c++) {
        for (uint w = 0; w < COLUMNS && w < columns; w++) {
            put_sum(to, c * class_step(p) + w * VEC, value_of_class(&each[w], &r[w], &g[w], false, c),
                    each[w].n);
        }
    }
}
#elif CACHED
/* stride: from row to row (slab to slab, with INNER) of the destination, which begins at the tile's first row. */
static inline void store_tile(const tile_input *in, const destination *at, const ulong stride)
{
    destination to = *at;
    const uint rows = in->rows;
#    if IN_ORDER
    if (stride == in->classes) {
        const uint all = rows * in->classes;
        uint e = 0;
        for (; e + VEC <= all; e += VEC) put_sum(&to, e, LOAD(in->own_rows + e), VEC);
        for (; e < all; e++) put_sum_one(&to, e, in->own_rows[e]);
        return;
    }
    to.aligned = false;
    for (uint i = 0; i < rows; i++) {
        uint c = 0;
        for (; c + VEC <= in->classes; c += VEC) {
            put_sum(&to, i * stride + c, LOAD(in->own_rows + i * in->classes + c), VEC);
        }
        for (; c < in->classes; c++) put_sum_one(&to, i * stride + c, in->own_rows[i * in->classes + c]);
    }
#    elif COOPERATIVE
    for (uint e = (uint)get_local_id(0); e < rows * in->classes; e += WG_SIZE) {
        const uint row = e / in->classes, c = e % in->classes;
        put_sum_one(&to, row * stride + c, in->tile_values[(size_t)c * PITCH + row]);
    }
#    else
    (void)stride;
    const uint first = (uint)get_local_id(0) * VEC;
    for (uint c = 0; c < in->classes && first < rows; c++) {
        const vec value = LOAD(in->tile_values + first + (size_t)c * PITCH);
        put_sum(&to, c * class_step(in->p) + first, value, min((uint)VEC, rows - first));
    }
#    endif
}

#else
/* Without a tile to put them in between. */
static inline void store_values(const tile_input *in, const row_result *r, const emission *g,
                                const destination *to)
{
    const uint first = (uint)get_local_id(0) * VEC;
    UNROLL_ALONE
    for (uint c = 0; c < in->classes; c++) {
        put_sum(to, c * class_step(in->p) + first, value_of_class(in, r, g, false, c), in->n);
    }
}
#endif

/* ---- The mapping ---------------------------------------------------------------------------- */

/* A unit of work is a tile: a slab of inner rows (all rows with the class axis last) has p.tiles of them. fused.cl says
 * what each of these is for. A branch right behind a barrier, on a condition known before, PoCL 3.1 decides once for all
 * work-items, by the last one's: so the number of rows that they compare themselves with is read from memory there. It is
 * that of this tile or of the next, which work-item 0 may be at while others are here. */
#define UNIT_SCRATCH __local uint scratch[2]
#if COOPERATIVE
#    define MEET(in, unit)                  \
        do {                                \
            barrier(CLK_LOCAL_MEM_FENCE);   \
            (in)->rows = scratch[(unit)&1]; \
        } while (0)
#else
#    define MEET(in, unit) (void)0
#endif
#define MEET_UNIT(in, unit) MEET(in, unit)
#define MEET_ROWS (void)0

static inline ulong rows_of_slab(const clxent_parameters *p) { return INNER ? p->inner : p->rows; }

static inline ulong count_units(const clxent_parameters *p) { return p->rows / rows_of_slab(p) * p->tiles; }

static inline uint units_of_group(const clxent_parameters *p) { return p->tiles_per_group; }

static inline unit_input make_input(const run *u, const bool whole_rows)
{
    const size_t tile_size = (size_t)u->p->classes * PITCH * COLUMNS;
    tile_input in;
    (void)whole_rows;
    in.p = u->p;
    in.classes = u->p->classes;
    in.rows = 0;
    in.w = 0;
    in.brings_next = tile_size * sizeof(real) <= MOST_BROUGHT;
    in.tile_values = (u->p->flags & FLAG_KEEPS_LOGITS) != 0 ? u->cache + tile_size : u->cache;
    in.own_rows = ALONG ? u->cache : in.tile_values + tile_size;
    in.targets = u->targets;
    in.class_weights = u->class_weights;
    in.o = u->o;
#if TRANSPOSES
    STORE((vec)(0), in.own_rows + VEC * in.classes); /* read beside the last row */
#endif
    return in;
}

/* Column w of the tile; false where it has none for this work-item. Everything that a unit has of its own is found here,
 * as PoCL 3.1 loses it at a barrier. */
static inline bool open_rows(const run *u, unit_input *in, const ulong unit, const uint w)
{
    const clxent_parameters *p = u->p;
    const uint lid = (uint)get_local_id(0), lane_0 = (lid + w) * VEC;
    const ulong slab = unit / p->tiles, within = unit % p->tiles * TILE;
    in->w = w;
    in->row = slab * rows_of_slab(p) + within + lane_0;
    in->n = lane_0 < in->rows ? min((uint)VEC, in->rows - lane_0) : 0;
    in->x = u->logits + p->offset.logits +
            (INNER ? slab * p->row_stride + within + lane_0 : (within + lane_0) * p->row_stride);
    in->next = in->x;
    if (INNER) in->next += TILE;
    if (!INNER && p->row_stride == p->classes) in->next += TILE * p->row_stride; /* rows without gaps */
    in->logits = u->cache + lid * VEC + (size_t)w * p->classes * PITCH;
    in->values = in->logits + (in->tile_values - u->cache);
    in->q_at = target_start(in, 0);
#if TELLS_ALIGNED
    in->aligned = p->inner % VEC == 0 && IS_ALIGNED(in->x, storage);
#endif
    return in->n > 0;
}

static inline void open_unit(const run *u, unit_input *in, const ulong unit, __local uint *scratch)
{
    in->rows = (uint)min((ulong)TILE, rows_of_slab(u->p) - unit % u->p->tiles * TILE);
    if (COOPERATIVE && get_local_id(0) == 0) scratch[unit & 1] = in->rows;
    for (uint w = 0; w < COLUMNS; w++) in->maximum[w] = (lane)(0);
#if HOLDS_LOGITS
    (void)open_rows(u, in, unit, 0);
    fill_tile(in, u->cache);
#endif
}

static inline row_result scan_rows(const run *u, const unit_input *in, const lane_targets *t, judgement *j,
                                   row_sums *s, __local uint *scratch)
{
    const bool from_statistics = (u->p->flags & FLAG_FROM_STATISTICS) != 0;
    row_sums saved = empty_sums();
    (void)scratch;
    if (from_statistics) read_statistics(u, in->row, in->n, &saved);
    *s = sum_tile(u, in, t->class_index, from_statistics,
                  from_statistics ? saved.maximum : in->maximum[in->w]);
    if (from_statistics) s->others = saved.others;
    find_classes(u, in, s);
    row_result r = finish(j, t, s);
    if (count_passes(u) > 1 && ANY_LANE(r.confident)) keep_top_apart(&r, tile_below_top(in, &r));
    return r;
}

/* Each kind has code of its own where registers are not short. */
static inline void emit_unit(const run *u, unit_input *in, const ulong unit, const lane_targets t[COLUMNS],
                             const judgement j[COLUMNS], const row_result r[COLUMNS], __local uint *scratch)
{
    const clxent_parameters *p = u->p;
    const uint kinds[3] = { OUTPUT_LOG_SOFTMAX, OUTPUT_SOFTMAX, OUTPUT_GRADIENT };
    const bool streaming = (p->flags & FLAG_NONTEMPORAL) != 0;
    uint stored = 0;
    (void)scratch;
#if !COOPERATIVE && (CACHED || WG_SIZE == 1)
#    pragma unroll
#endif
    for (uint k = 0; k < 3; k++) {
        const uint kind = kinds[k];
        const bool is_wanted = WANTS(p, kind);
        const ulong slab = unit / p->tiles, within = unit % p->tiles * TILE;
        const ulong stride = kind == OUTPUT_GRADIENT ? p->gradient_row_stride : p->probabilities_row_stride;
        destination to = destination_of(u, kind, INNER ? slab * stride + within : within * stride);
        to.aligned = is_aligned(&to, INNER ? p->inner : 0, streaming);
        emission g[COLUMNS];
        uint columns = 0;
#if STORES_DIRECTLY
        tile_input each[COLUMNS];
#endif
        for (uint w = 0; w < COLUMNS; w++) {
            if (!is_wanted || !open_rows(u, in, unit, w)) break;
            g[w] = emission_of(u, kind, in->row, in->n, &t[w], &j[w], &r[w]);
            columns++;
#if STORES_DIRECTLY
            each[w] = *in;
#elif CACHED
            stage(in, &r[w], &g[w], OVERWRITES && stored > 0);
#else
            store_values(in, &r[w], &g[w], &to);
#endif
        }
#if !STORES_DIRECTLY && !CACHED
        (void)columns;
#endif
#if STORES_DIRECTLY
        if (columns > 0) store_columns(each, r, g, &to, columns);
        (void)stored;
#elif CACHED
        (void)columns;
        MEET(in, unit);
        if (is_wanted) {
            store_tile(in, &to, stride);
            stored++;
        }
#endif
        MEET(in, unit);
    }
}
