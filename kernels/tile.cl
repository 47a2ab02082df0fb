/* SPDX-License-Identifier: MIT
 *
 * tile.cl - a vector of rows on chip, for map_lane.cl: vectors lie across rows, and each of their elements, a lane, is
 * another one. Stands behind epilogue.cl.
 *
 * Rows come in tiles, which are read once into local memory, class by class, and stay there until their results
 * are written; where a tile does not fit (INNER only) it is read a second time. With the class axis last, tiles are
 * transposed on their way in and out: by shuffles of registers in a group of one work-item, by local memory in
 * larger ones. With ALONG they are not: rows are read where they lie, and the tile has their exponentials, row by row.
 *
 * Set by the host with -D, beside those of constants.cl and common.cl:
 *   INNER    0: the class axis is last; a group of more than one work-item needs VEC 1
 *            1: rows are neighbours, classes are inner elements apart
 *   IN_LOCAL   1: a tile fits into local memory; 0: it does not
 *   COLUMNS  vectors of lanes that one work-item has in a tile, one after the other. More than one is for INNER
 *            with a group of one work-item: so many neighbours are read and written together
 *   ALONG    1: vectors lie along the classes of a row while sums are taken and results are made, and only what a row
 *            has one of is a lane, so that nothing but the rows' partial sums is transposed. For at least VEC
 *            classes (plan.c: lies_along()), a group of one work-item, z that is x, no smoothing or probabilities, no
 *            gradient of lse or entropy, no log-softmax, and not both softmax and gradient
 */
#if !defined(INNER) || INNER < 0 || INNER > 1 || (!INNER && VEC > 1 && WG_SIZE > 1)
#    error "INNER: 0, with VEC 1 or WG_SIZE 1, or 1"
#endif
#if !defined(IN_LOCAL) || IN_LOCAL < 0 || IN_LOCAL > 1 || (!INNER && !IN_LOCAL)
#    error "IN_LOCAL: 1, or 0 with INNER"
#endif
#if !defined(COLUMNS) || COLUMNS < 1 || (COLUMNS > 1 && (!INNER || !IN_LOCAL || WG_SIZE > 1))
#    error "COLUMNS: 1, or more with INNER, IN_LOCAL and a group of one work-item"
#endif

#if !defined(ALONG) || ALONG < 0 || ALONG > 1 || \
    (ALONG && (INNER || HAS_Z || HAS_DENSE || HAS_UPSTREAMS || !IN_LOCAL || VEC == 1 || WG_SIZE > 1))
#    error \
        "ALONG: 0, or 1 with IN_LOCAL, no INNER, HAS_Z, HAS_DENSE, HAS_UPSTREAMS, VEC more than 1, a group of one"
#endif

/* With INNER as PART. With the class axis last, tiles of few classes are so short that a call shows (PoCL, loss and
 * gradient of 2 classes: 1.28 of the time). */
#if INNER
#    define PART_OF_SLAB PART
#else
#    define PART_OF_SLAB static inline
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
#if IN_LOCAL && !ALONG
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
#if ALONG || STORES_DIRECTLY
#    define OVERWRITES false
#else
#    define OVERWRITES true
#endif
/* Neighbours are brought on chip, and their exponentials taken, BLOCK_CLASSES at a time: a block stays in the first-level cache
 * between the two, and the next one is prefetched meanwhile. Its exponentials stay at the scale of the largest logit so far,
 * which the tile keeps, a vector for each block and column. */
#if STORES_DIRECTLY && IN_LOCAL
#    define BY_BLOCKS 1
#else
#    define BY_BLOCKS 0
#endif
/* Whether a column's maximum is known once it is in the tile: a softcap is not taken on the way. */
#if INNER && IN_LOCAL && !HAS_Z
#    define FILL_FINDS_MAXIMUM true
#else
#    define FILL_FINDS_MAXIMUM false
#endif
/* Whether tiles without exceptions take a shorter way: pass_plain_tiles(). */
#if WG_SIZE == 1 && IN_LOCAL && VEC > 1 && SUMS_PLAINLY && HAS_ONE_FACTOR && !HAS_PROBABILITIES && \
    (WIDE_OUTPUTS == 0 || WIDE_OUTPUTS == OUTPUT_GRADIENT || WIDE_OUTPUTS == OUTPUT_SOFTMAX)
#    define HAS_PLAIN_TILES 1
#else
#    define HAS_PLAIN_TILES 0
#endif
/* Most classes of a plain tile with ALONG. Where nothing but the loss is asked for, exponentials that stay in registers are
 * faster by AVX-512: 512 classes take 0.93 of the time, by AVX2 1.06. */
#if WIDE_OUTPUTS == 0 && defined(__AVX512F__)
#    define MOST_PLAIN_CLASSES (16u * VEC)
#else
#    define MOST_PLAIN_CLASSES 0xffffffffu
#endif
/* Classes between two looks at the maximum. Part of what decides bits. Neighbours: PoCL 3.1, Zen 4 with AVX-512, 1,000 classes
 * 16 KiB apart, CPU time next to blocks of 16: 0.85; 21 classes, one block: 0.91. A transposed tile is one block, as its maximum
 * is known. */
#define BLOCK_CLASSES (BY_BLOCKS ? NEIGHBOUR_CLASSES : TRANSPOSES ? 1u << 30 : 16u)
/* Exponentials that are added plainly, of confident rows: see tile_excluding_max(). */
#define PLAIN_CLASSES 16u

/* Bytes of a tile, at most, of which the next one's logits are prefetched into the second-level cache while this one is
 * computed with. Classes that are a power of two apart share a few sets of that cache, and of more than this some would be
 * gone again before they are used: of those the next block of this tile is prefetched. */
#define MOST_PREFETCHED (1u << 16)
#define CLASSES_AHEAD BLOCK_CLASSES

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
#if HAS_PLAIN_TILES
    bool has_exceptions; /* as many tiles may: see pass_plain_tiles() */
#endif
    uint classes;
    __global const storage *x;    /* lane 0, class 0 */
    __global const storage *next; /* of the next tile, a vector for each class */
    bool prefetches_next;         /* with INNER: see MOST_PREFETCHED */
    __local acc_t *logits;        /* this work-item's part of the tile */
    __local acc_t *values;        /* exponentials: with TRANSPOSES in own_rows, else as staged */
    __local acc_t *staged;        /* results; the same place as logits where those are not needed again */
    __local acc_t *tile_values;   /* of the whole tile */
    __local acc_t *own_rows;      /* the tile as it lies in memory */
    lane maximum[COLUMNS];        /* of x in each column, where filling the tile finds it */
#if BY_BLOCKS
    __local acc_t *maxima; /* of z in each block and column, and the blocks before it */
    row_state sums[COLUMNS];
    lane target_x[COLUMNS]; /* logits of the targets */
#endif
    __global const void *targets;
    ulong q_at; /* of lane 0, class 0, in elements */
    __global const acc_t *class_weights;
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
    acc_t element[VEC];
    ROLLED
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

/* Whether the sums find the logit of each lane's target on their way. */
#if ALONG || (INNER && !IN_LOCAL)
#    define SUMS_FIND_TARGET false
#else
#    define SUMS_FIND_TARGET true
#endif

/* The logit of each lane's target; -inf without one. */
static inline lane target_logits(const unit_input *in, const lane_targets *t)
{
    integer index[VEC];
    acc_t element[VEC];
    STORE(t->class_index, index);
    ROLLED
    for (uint i = 0; i < VEC; i++) {
        element[i] = -ACC_INFINITY;
        if (i >= in->n || index[i] == NO_CLASS) continue;
        element[i] = load_one(in->x + (ulong)index[i] * class_step(in->p) + i * lane_step(in->p->row_stride));
    }
    return LOAD(element);
}

/* Where the probabilities of lane i begin, in elements. A row that has none because targets are shifted reads the
 * last row's, and uses nothing of them: behind those there may be no memory. Callers ask for it unconditionally:
 * PoCL 3.1 loses the loop over a group's work-items where a branch of the kernel holds this. */
ALWAYS_INLINE ulong target_start(const tile_input *in, const uint i)
{
    const ulong row = min(in->row + i + in->p->shift, in->p->target_rows - 1);
    return in->p->offset.targets + row_start(in->p, row, in->p->target_row_stride);
}

#if !ALONG
/* The part of a_j that every class has, of class c: of an index target the smoothing, of probabilities all. */
ALWAYS_INLINE vec dense_class(const tile_input *in, const uint c)
{
    vec a = (vec)(in->o.smoothing_per_class);
    if (HAS_PROBABILITIES) {
        const bool is_f32 = TARGETS == TARGET_PROBABILITIES_F32;
        const ulong at = in->q_at + c * class_step(in->p), step = lane_step(in->p->target_row_stride);
        __global const float *f32 = (__global const float *)in->targets + at;
        __global const storage *stored = (__global const storage *)in->targets + at;
        vec q;
        if (INNER && in->n == VEC && in->p->shift == 0) {
            q = is_f32 ? CONVERT_VEC(LOAD(f32)) : load_vector(stored);
        } else {
            acc_t element[VEC];
            for (uint i = 0; i < VEC; i++) {
                const uint k = min(i, in->n - 1);
                const ulong skip = VEC == 1 || in->p->shift == 0 ? k * step : target_start(in, k) - in->q_at;
                element[i] = is_f32 ? convert_acc(f32[skip]) : load_one(stored + skip);
            }
            q = LOAD(element);
        }
        a = fma((vec)(in->o.one_minus_smoothing), q, a);
    }
    if (HAS_CLASS_WEIGHTS) a = a * (vec)(in->class_weights[c]);
    return a;
}
#endif

/* Classes that a tile has room for: the least that is transposed. */
#if TRANSPOSES && VEC > 1
#    define ROOM(classes) max(classes, LEAST_CLASSES)
#else
#    define ROOM(classes) (classes)
#endif

#if TRANSPOSES && VEC > 1
/* ---- Transposition -------------------------------------------------------------------------- */

/* In squares of 256 bits a side, all that AVX2 has: 16 x 16 spill its registers, and Zen 4 shuffles two vectors of 256 bits
 * in the time of one of 512. Matrices that are narrower take squares of 4. */
#    if VEC == 4 || DTYPE == F64
#        define SIDE 4u
#    else
#        define SIDE 8u
#    endif

#    if VEC == 16
#        define EVEN(a) (a).s0, (a).s2, (a).s4, (a).s6, (a).s8, (a).sa, (a).sc, (a).se
#        define ODD(a) (a).s1, (a).s3, (a).s5, (a).s7, (a).s9, (a).sb, (a).sd, (a).sf
#    elif VEC == 8
#        define EVEN(a) (a).s0, (a).s2, (a).s4, (a).s6
#        define ODD(a) (a).s1, (a).s3, (a).s5, (a).s7
#    else
#        define EVEN(a) (a).s0, (a).s2
#        define ODD(a) (a).s1, (a).s3
#    endif

#    if defined(__clang__) /* see DEFINE_ACCESS */
#        define DEFINE_SIDE(N)                  \
            typedef PASTE(ACC_TYPE, N) side##N; \
            typedef side##N any_side##N __attribute__((aligned(sizeof(acc_t))));
#        define LOAD_SIDE(N, SPACE, p) (*(SPACE const any_side##N *)(p))
#        define STORE_SIDE(N, v, p) (*(__local any_side##N *)(p) = (v))
#    else
#        define DEFINE_SIDE(N) typedef PASTE(ACC_TYPE, N) side##N;
#        define LOAD_SIDE(N, SPACE, p) vload##N(0, p)
#        define STORE_SIDE(N, v, p) vstore##N(v, 0, p)
#    endif
DEFINE_SIDE(4)
#    if SIDE == 8
DEFINE_SIDE(8)
#    endif

/* Of a and b: in each 128 bits elements in turn, or pairs; and halves. */
#    define LOW_ELEMENTS(a, b) (side8)((a).s0, (b).s0, (a).s1, (b).s1, (a).s4, (b).s4, (a).s5, (b).s5)
#    define HIGH_ELEMENTS(a, b) (side8)((a).s2, (b).s2, (a).s3, (b).s3, (a).s6, (b).s6, (a).s7, (b).s7)
#    define LOW_PAIRS(a, b) (side8)((a).s0, (a).s1, (b).s0, (b).s1, (a).s4, (a).s5, (b).s4, (b).s5)
#    define HIGH_PAIRS(a, b) (side8)((a).s2, (a).s3, (b).s2, (b).s3, (a).s6, (a).s7, (b).s6, (b).s7)
#    define LOW_HALVES(a, b) (side8)((a).s0, (a).s1, (a).s2, (a).s3, (b).s0, (b).s1, (b).s2, (b).s3)
#    define HIGH_HALVES(a, b) (side8)((a).s4, (a).s5, (a).s6, (a).s7, (b).s4, (b).s5, (b).s6, (b).s7)

#    define DEFINE_SQUARE4(NAME, SPACE)                                                                      \
        ALWAYS_INLINE void NAME(SPACE const acc_t *from, const size_t from_step, __local acc_t *to,          \
                                const size_t to_step)                                                        \
        {                                                                                                    \
            const side4 a = LOAD_SIDE(4, SPACE, from), b = LOAD_SIDE(4, SPACE, from + from_step);            \
            const side4 c = LOAD_SIDE(4, SPACE, from + 2 * from_step),                                       \
                        d = LOAD_SIDE(4, SPACE, from + 3 * from_step);                                       \
            const side4 low_ab = (side4)(a.s0, b.s0, a.s1, b.s1), high_ab = (side4)(a.s2, b.s2, a.s3, b.s3); \
            const side4 low_cd = (side4)(c.s0, d.s0, c.s1, d.s1), high_cd = (side4)(c.s2, d.s2, c.s3, d.s3); \
            STORE_SIDE(4, (side4)(low_ab.s0, low_ab.s1, low_cd.s0, low_cd.s1), to);                          \
            STORE_SIDE(4, (side4)(low_ab.s2, low_ab.s3, low_cd.s2, low_cd.s3), to + to_step);                \
            STORE_SIDE(4, (side4)(high_ab.s0, high_ab.s1, high_cd.s0, high_cd.s1), to + 2 * to_step);        \
            STORE_SIDE(4, (side4)(high_ab.s2, high_ab.s3, high_cd.s2, high_cd.s3), to + 3 * to_step);        \
        }

#    define DEFINE_SQUARE8(NAME, SPACE)                                                             \
        ALWAYS_INLINE void NAME(SPACE const acc_t *from, const size_t from_step, __local acc_t *to, \
                                const size_t to_step)                                               \
        {                                                                                           \
            side8 v[8], w[8];                                                                       \
            _Pragma("unroll") for (uint i = 0; i < 8; i++)                                          \
            {                                                                                       \
                v[i] = LOAD_SIDE(8, SPACE, from + i * from_step);                                   \
            }                                                                                       \
            _Pragma("unroll") for (uint i = 0; i < 8; i += 2)                                       \
            {                                                                                       \
                w[i] = LOW_ELEMENTS(v[i], v[i + 1]);                                                \
                w[i + 1] = HIGH_ELEMENTS(v[i], v[i + 1]);                                           \
            }                                                                                       \
            _Pragma("unroll") for (uint i = 0; i < 8; i += 4)                                       \
            {                                                                                       \
                v[i] = LOW_PAIRS(w[i], w[i + 2]);                                                   \
                v[i + 1] = HIGH_PAIRS(w[i], w[i + 2]);                                              \
                v[i + 2] = LOW_PAIRS(w[i + 1], w[i + 3]);                                           \
                v[i + 3] = HIGH_PAIRS(w[i + 1], w[i + 3]);                                          \
            }                                                                                       \
            _Pragma("unroll") for (uint i = 0; i < 4; i++)                                          \
            {                                                                                       \
                STORE_SIDE(8, LOW_HALVES(v[i], v[i + 4]), to + i * to_step);                        \
                STORE_SIDE(8, HIGH_HALVES(v[i], v[i + 4]), to + (i + 4) * to_step);                 \
            }                                                                                       \
        }

/* to[j][i] = from[i][j], i < rows, j < columns, each at least N. The last squares overlap others, so that nothing beside
 * the matrix is touched. */
#    define DEFINE_TRANSPOSE(NAME, N, SPACE)                                                           \
        DEFINE_SQUARE##N(NAME##_square, SPACE);                                                        \
        PART void NAME(SPACE const acc_t *from, const size_t from_step, __local acc_t *to,             \
                       const size_t to_step, const uint rows, const uint columns)                      \
        {                                                                                              \
            for (uint i = 0; i < rows; i += N) {                                                       \
                const size_t r = min(i, rows - N);                                                     \
                for (uint j = 0; j < columns; j += N) {                                                \
                    const size_t c = min(j, columns - N);                                              \
                    NAME##_square(from + r * from_step + c, from_step, to + c * to_step + r, to_step); \
                }                                                                                      \
            }                                                                                          \
        }
DEFINE_TRANSPOSE(transpose_by_4, 4, __local)
#    if SIDE == 8
DEFINE_TRANSPOSE(transpose_by_8, 8, __local)
#    else
#        define transpose_by_8 transpose_by_4
#    endif
#    if DTYPE == F32 && SIDE == 8
DEFINE_TRANSPOSE(transpose_global_by_8, 8, __global)
#    endif
#endif

/* ---- A tile of logits ----------------------------------------------------------------------- */

#if TRANSPOSES
/* [VEC, classes] rows to a tile. */
static inline void rows_to_tile(const __local acc_t *rows, __local acc_t *tile, const uint classes)
{
#    if VEC == 1
    for (uint c = 0; c < classes; c++) tile[c] = rows[c];
#    else
    if (classes < SIDE) {
        transpose_by_4(rows, classes, tile, PITCH, VEC, ROOM(classes));
    } else {
        transpose_by_8(rows, classes, tile, PITCH, VEC, classes);
    }
#    endif
}

/* And back. Of fewer classes than a square has, each row writes over the beginning of the next. */
static inline void tile_to_rows(const __local acc_t *tile, __local acc_t *rows, const uint classes)
{
#    if VEC == 1
    for (uint c = 0; c < classes; c++) rows[c] = tile[c];
#    else
    if (classes < SIDE) {
        transpose_by_4(tile, PITCH, rows, classes, ROOM(classes), VEC);
    } else {
        transpose_by_8(tile, PITCH, rows, classes, classes, VEC);
    }
#    endif
}

/* Reads [n, classes] rows; those of the tile that do not exist are 0. */
static inline void load_rows(const tile_input *in, __local acc_t *rows)
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

#if TELLS_ALIGNED
#    define IS_TILE_ALIGNED(tile) (tile).aligned
#else
#    define IS_TILE_ALIGNED(tile) false
#endif
#if HOLDS_LOGITS && INNER
/* Fills this work-item's columns of the tile with the classes [begin, end), and finds their maxima. */
ALWAYS_INLINE void fill_classes(tile_input *in, const uint begin, const uint end)
{
    const ulong step = class_step(in->p);
    lane most[COLUMNS];
    if (in->rows == TILE) {
        const tile_input tile = *in;
        for (uint w = 0; w < COLUMNS; w++) most[w] = (lane)(-ACC_INFINITY);
        for (uint c = begin; c < end; c++) {
            __global const storage *x = tile.x + c * step;
#    pragma unroll
            for (uint w = 0; w < COLUMNS; w++) {
                const vec v = LOAD_VECTOR(x + w * VEC, IS_TILE_ALIGNED(tile));
                most[w] = vec_max(most[w], v);
                STORE(v, tile.logits + ((size_t)w * tile.classes + c) * PITCH);
            }
        }
        for (uint w = 0; w < COLUMNS; w++) in->maximum[w] = most[w];
        return;
    }
    tile_input column = *in;
    for (uint w = 0; w < COLUMNS && w * VEC < in->rows; w++) {
        column.n = COLUMNS > 1 ? min((uint)VEC, in->rows - w * VEC) : in->n;
        column.x = in->x + w * VEC;
        lane maximum = (lane)(-ACC_INFINITY);
        for (uint c = begin; c < end; c++) {
            const vec v = load_class(&column, c);
            maximum = vec_max(maximum, v);
            STORE(v, in->logits + ((size_t)w * in->classes + c) * PITCH);
        }
        in->maximum[w] = maximum;
    }
}
#endif

#if HOLDS_LOGITS && !BY_BLOCKS
/* Fills this work-item's columns of the tile, or with the others of the group the whole of it. */
ALWAYS_INLINE void fill_tile(tile_input *in, __local acc_t *local_rows)
{
#    if TRANSPOSES
    (void)local_rows;
#        if VEC > 1
    if (in->n == VEC && in->classes == 2 &&
        in->p->row_stride == 2) { /* the one case of so few that is common */
        const vec a = load_vector(in->x), b = load_vector(in->x + VEC);
        STORE((vec)(EVEN(a), EVEN(b)), in->logits); /* (a.even, b.even) makes Oclgrind 21.10 crash */
        STORE((vec)(ODD(a), ODD(b)), in->logits + PITCH);
        return;
    }
#        endif
#        if DTYPE == F32 && VEC >= 8
    if (in->n == VEC && in->classes >= 8) {
        transpose_global_by_8(in->x, in->p->row_stride, in->logits, PITCH, VEC, in->classes);
        return;
    }
#        endif
    load_rows(in, in->own_rows);
    rows_to_tile(in->own_rows, in->logits, in->classes);
#    elif COOPERATIVE
    const ulong stride = in->p->row_stride;
    __global const storage *x = in->x - LOCAL_ID * stride;
    for (uint e = LOCAL_ID; e < in->rows * in->classes; e += WG_SIZE) {
        const uint r = e / in->classes, c = e % in->classes;
        local_rows[(size_t)c * PITCH + r] = load_one(x + r * stride + c);
    }
#    else
    (void)local_rows;
    if (LOCAL_ID * VEC < in->rows) fill_classes(in, 0, in->classes);
#    endif
}
#endif

/* ---- Scales ---------------------------------------------------------------------------------- */

/* On CPUs exponentials of a tile stay at a scale that its rows mostly share, see sum_shared(). */
#if WG_SIZE == 1 && VEC > 1 && IN_LOCAL
#    define SHARES_SCALE 1
#    define tile_scale_of block_scale_of
#else
#    define SHARES_SCALE 0
#    define tile_scale_of exp_scale_of
#endif

/* What the sums know of a row's target: its logit and its exponential. */
typedef struct {
    lane x, e;
} found_targets;

/* What rows have sums of, and what makes gradients of their exponentials. */
typedef struct {
    lane maximum;
    compensated_sum sum;
    found_targets found;
} plain_sums;

typedef struct {
    lane factor, rest;
    ilane class_index; /* whose gradient is `target` */
    lane target;
} plain_factors;

/* What takes exponentials from one scale to another: both factors, as one alone may be 0 where the product is not. */
typedef struct {
    lane first, second;
} rescaling;

static inline rescaling no_rescaling(void) { return (rescaling){ (lane)(1), (lane)(1) }; }

/* Times 2^n; the largest exponential is at most 2^(SCALE_STEP + 1/2). */
static inline rescaling rescaling_by(const lane n)
{
    const lane step = n < (lane)(-SCALE_STEP) ? (lane)(SCALE_STEP) : (lane)(0);
    return (rescaling){ power_of_two(-step), power_of_two(n + step) };
}

/* Of the block that class c begins, in column w, to the row's scale. */
static inline rescaling block_rescaling(const tile_input *in, const row_result *r, const uint w, const uint c)
{
#if BY_BLOCKS
    const lane maximum = LOAD(in->maxima + (c / BLOCK_CLASSES * COLUMNS + w) * VEC);
    if (SHARES_SCALE && !ANY_LANE(!(fabs(maximum) <= (lane)(MAX_NEAR)) || r->scale.base != (lane)(0)))
        return rescaling_by(Q_OF_STEPS(lane, scale_steps(maximum)) - r->scale.q);
    const exp_scale from = tile_scale_of(maximum);
    const ilane same_base = from.base == r->scale.base;
    rescaling of_lane = rescaling_by(same_base ? from.q - r->scale.q : (lane)(0));
    of_lane.second = same_base ? of_lane.second : exp_rescale(from, r->scale);
    of_lane.second = maximum > (lane)(-ACC_INFINITY) ? of_lane.second : (lane)(0);
    return of_lane;
#else
    (void)in;
    (void)w;
    (void)c;
    if (!SHARES_SCALE) return no_rescaling();
    return (rescaling){ power_of_two(tile_scale_of(r->maximum).q - r->scale.q), (lane)(1) };
#endif
}

/* Where the factor alone is not all. */
#define HAS_OUTER(g) ((g)->outer != (lane)(1))

/* Puts the rescaling into the factor where values have one, row by row: what is left of it, and -1, where that would lose
 * digits. */
static inline ilane fold_rescaling(epilogue *g, rescaling *by)
{
    const rescaling own = *by;
    if ((!SHARES_SCALE && !BY_BLOCKS) || !HAS_PLAIN_FACTOR(g)) return (ilane)(0);
    const lane factor = g->factor * own.first * own.second;
    const ilane is_nothing = EITHER(IS_ZERO(g->factor), EITHER(IS_ZERO(own.first), IS_ZERO(own.second)));
    const ilane loses = BOTH(IS_BELOW(factor, SMALLEST_FACTOR), NOT(is_nothing));
    g->factor = loses ? g->factor : factor;
    g->rest = loses ? g->rest : g->rest * own.first * own.second;
    by->first = loses ? own.first : (lane)(1);
    by->second = loses ? own.second : (lane)(1);
    return loses;
}
