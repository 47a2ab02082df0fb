/* SPDX-License-Identifier: MIT
 *
 * product.cl - the three matrix products of linear cross-entropy, around the kernels of the loss; D is the gradient of the
 * logits, which stands in their place:
 *
 *     LOGITS    C = logits           [rows, classes]       = hidden [rows, features] * weight^T (+ bias)
 *     HIDDEN    C = hidden gradient  [rows, features]      = D [rows, classes] * weight [classes, features]
 *     WEIGHT    C = weight gradient  [classes, features]  += D^T [classes, rows] * hidden [rows, features]
 *
 * Each is C[i][j] = sum_k A(i, k) B(k, j). Rows are those of `list`: of a chunk those that count, in order, so that rows that
 * do not cost nothing; how many they are the device alone knows.
 *
 * A work-item adds to a tile of TILE_ROWS x TILE_VECTORS vectors of C in registers: for each k a few vectors of B, and the
 * elements of A one by one. Which terms an element of C adds, and in which order, depends on K and p.depth alone.
 *
 * In groups of one work-item (CPUs) a group has a block of C. B is copied into panels of a tile's width, so that a tile
 * reads one stream; A is read where it lies, but for D^T. Depths of k are added to the block one after the other: a sum of
 * K terms has the error of p.depth + K / p.depth. In larger groups (GPUs) each work-item has one tile, and all share copies
 * of A and B in local memory.
 *
 * Set by the host with -D, beside those of constants.cl and common.cl (GRADIENT_DTYPE is C's):
 *   PRODUCT       1 LOGITS, with the kernel of the list; 2 HIDDEN, with zeros for the rows that do not count; 3 WEIGHT, with the
 *                 panels of the hidden states, and the bias gradient; 4 ROUND: sums to a gradient of another type
 *   TILE_ROWS, TILE_VECTORS   of a tile; in larger groups TILE_ROWS is a multiple of VEC
 *   BIAS_VECTORS    vectors of columns that a work-item sums for the bias gradient
 *   GROUP_COLUMNS   in larger groups: work-items side by side along the columns of C
 */
#define LOGITS 1
#define HIDDEN 2
#define WEIGHT 3
#define ROUND 4
#if !defined(PRODUCT) || PRODUCT < LOGITS || PRODUCT > ROUND || !defined(TILE_ROWS) || !defined(TILE_VECTORS)
#    error \
        "PRODUCT: 1 logits, 2 hidden gradient, 3 weight gradient, 4 rounding; TILE_ROWS, TILE_VECTORS: at least 1"
#endif
#define TILE_COLUMNS (TILE_VECTORS * VEC)

/* ---- Rows ------------------------------------------------------------------------------------ */

/* list[0] rows of the chunk are listed: list[1], list[2], ... Behind them are the others. */
static inline uint count_rows(const clxent_product *p, __global const uint *list)
{
    /* Of no rows it is not read: in memory that a released buffer had, Oclgrind 21.10 takes a list that warming a plan has
     * just written for one that is not initialised. */
    return p->most > 0 ? list[0] : 0;
}

static inline ulong row_of(__global const uint *list, const uint i) { return list[1 + i]; }

#if PRODUCT == LOGITS
/* Whether the row's logits, or their gradient, are asked for. An upstream of 0 adds 0, whatever the logits are. */
static inline bool is_listed(const clxent_parameters *p, const ulong row, __global const void *targets,
                             __global const acc_t *row_weights, __global const acc_t *grad_entropy,
                             __global const acc_t *grad_lse)
{
    const row_target t = get_target(p, row, targets, row_weights);
    if (t.counts || t.bad) return true;
    if (HAS_GRAD_ENTROPY && grad_entropy && grad_entropy[p->offset.grad_entropy + row] != 0) return true;
    return HAS_GRAD_LSE && grad_lse && grad_lse[p->offset.grad_lse + row] != 0;
}

/* Grid: one group. Each work-item has as many rows as the others, in order. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_product_list(
    const clxent_parameters p, __global const void *restrict targets,
    __global const acc_t *restrict row_weights, __global const acc_t *restrict grad_entropy,
    __global const acc_t *restrict grad_lse, __global uint *restrict workspace, const ulong list_at,
    const uint all) /* 1: every row */
{
    __global uint *list = workspace + list_at;
    __local uint counts[WG_SIZE];
    const uint rows = (uint)p.rows, each = (rows + WG_SIZE - 1) / WG_SIZE;
    const uint begin = min(LOCAL_ID * each, rows), end = min(begin + each, rows);
    uint own = 0;
    for (uint row = begin; row < end; row++) {
        if (all || is_listed(&p, row, targets, row_weights, grad_entropy, grad_lse)) own++;
    }
    counts[LOCAL_ID] = own;
    barrier(CLK_LOCAL_MEM_FENCE);
    uint before = 0, total = 0;
    for (uint i = 0; i < WG_SIZE; i++) {
        if (i < LOCAL_ID) before += counts[i];
        total += counts[i];
    }
    if (LOCAL_ID == 0) list[0] = total;
    uint other = total + begin - before;
    for (uint row = begin; row < end; row++) {
        const bool listed = all || is_listed(&p, row, targets, row_weights, grad_entropy, grad_lse);
        list[1 + (listed ? before : other)] = row;
        if (listed) before++;
        else other++;
    }
}
#endif

#if PRODUCT == LOGITS || PRODUCT == HIDDEN
/* Zeros in the rows of C that are not listed. Grid: any number of groups; each takes one, skips as many as there are groups,
 * and so on. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_product_zeros(
    const clxent_product p, __global gradient_storage *restrict c, __global const uint *restrict workspace)
{
    __global const uint *list = workspace + p.list_at;
    for (uint i = count_rows(&p, list) + (uint)get_group_id(0); i < p.most; i += (uint)get_num_groups(0)) {
        __global gradient_storage *row = c + p.c + row_of(list, i) * p.c_stride;
        const uint columns = PRODUCT == LOGITS ? p.classes : p.features;
        for (uint j = LOCAL_ID; j < columns; j += WG_SIZE) store_gradient_one(row + j, 0);
    }
}
#endif

#if PRODUCT == WEIGHT
/* Sums of D's columns, a gradient of the bias. Grid: a work-item for every BIAS_VECTORS vectors of columns. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_product_bias(
    const clxent_product p, __global const acc_t *restrict d, __global acc_t *restrict c,
    __global const uint *restrict workspace)
{
    __global const uint *list = workspace + p.list_at;
    const uint rows = min(count_rows(&p, list), p.most);
    const uint first = ((uint)get_group_id(0) * WG_SIZE + LOCAL_ID) * BIAS_VECTORS * VEC;
    vec sum[BIAS_VECTORS];
    for (uint v = 0; v < BIAS_VECTORS; v++) sum[v] = (vec)(0);
    if (first < p.classes && first + BIAS_VECTORS * VEC <= p.classes) {
        for (uint i = 0; i < rows; i++) {
            __global const acc_t *row = d + p.a + row_of(list, i) * p.a_stride + first;
            for (uint v = 0; v < BIAS_VECTORS; v++) sum[v] += LOAD(row + v * VEC);
        }
        for (uint v = 0; v < BIAS_VECTORS; v++) {
            __global acc_t *to = c + p.c + first + v * VEC;
            STORE(p.adds ? LOAD(to) + sum[v] : sum[v], to);
        }
        return;
    }
    for (uint j = first; j < min(first + BIAS_VECTORS * VEC, p.classes); j++) {
        acc_t one = 0;
        for (uint i = 0; i < rows; i++) one += d[p.a + row_of(list, i) * p.a_stride + j];
        c[p.c + j] = p.adds ? c[p.c + j] + one : one;
    }
}
#endif

#if PRODUCT == ROUND
/* c [classes, features] of its own type (+)= a [classes, features] acc_t. Grid: any number of groups; each takes a row, skips as
 * many as there are groups, and so on. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_product_round(
    const clxent_product p, __global const acc_t *restrict a, __global gradient_storage *restrict c)
{
    for (uint i = (uint)get_group_id(0); i < p.classes; i += (uint)get_num_groups(0)) {
        __global const acc_t *from = a + p.a + (ulong)i * p.features;
        __global gradient_storage *to = c + p.c + i * p.c_stride;
        const uint whole = p.features / VEC * VEC;
        for (uint j = LOCAL_ID * VEC; j < whole; j += WG_SIZE * VEC) {
            const vec sum = LOAD(from + j);
            store_gradient_vector(to + j, p.adds ? load_gradient_vector(to + j) + sum : sum, false);
        }
        for (uint j = whole + LOCAL_ID; j < p.features; j += WG_SIZE) {
            store_gradient_one(to + j, p.adds ? load_gradient_one(to + j) + from[j] : from[j]);
        }
    }
}
#endif

#if PRODUCT != ROUND
/* ---- Products ---------------------------------------------------------------------------------- */

/* A is an operand as the caller has it, or D, which is acc_t. */
#    if PRODUCT == LOGITS
typedef storage a_storage;
#    else
typedef acc_t a_storage;
#    endif
#    define CONVERTS_A (PRODUCT == LOGITS && (DTYPE == F16 || DTYPE == BF16))

/* The sizes of this run's product. */
typedef struct {
    uint m, n, k;
} extents;

static inline extents get_extents(const clxent_product *p, __global const uint *list)
{
    const uint listed = count_rows(p, list), rows = listed > p->first ? min(listed - p->first, p->most) : 0;
    if (PRODUCT == LOGITS) return (extents){ rows, p->classes, p->features };
    if (PRODUCT == HIDDEN) return (extents){ rows, p->features, p->classes };
    return (extents){ p->classes, p->features, rows };
}

/* Where row i of C begins. */
static inline ulong start_of(const clxent_product *p, __global const uint *list, const uint i)
{
    return p->c + (PRODUCT == WEIGHT ? i : row_of(list, p->first + i)) * p->c_stride;
}

/* n elements of a row of C from column j on, n <= VEC. */
ALWAYS_INLINE void store_result(const clxent_product *p, __global gradient_storage *row, const uint j,
                                const uint n, vec sum, __global const storage *bias, const bool aligned)
{
    if (PRODUCT == LOGITS && p->has_bias) {
        sum += n == VEC ? load_vector(bias + p->bias + j) : load_partial(bias + p->bias + j, n, 0);
    }
    if (n == VEC) {
        if (p->adds) sum += load_gradient_vector(row + j);
        store_gradient_vector(row + j, sum, aligned);
    } else {
        if (p->adds) sum += load_gradient_partial(row + j, n, 0);
        store_gradient_partial(row + j, sum, n);
    }
}

#    if WG_SIZE == 1
/* ---- A block of C for each work-item ---------------------------------------------------------- */

/* Of k, from the vectors of B that a tile takes to those that are fetched meanwhile. */
#        define DEPTHS_AHEAD 8u
/* Of rows, from one whose part is copied to the one whose part is fetched meanwhile: neighbours are pages apart. (PoCL,
 * Emerald Rapids, 1,024 rows, features and 8,192 classes, WEIGHT: 1.07 of an sgemm's time, 1.16 without.) */
#        define ROWS_AHEAD 8u

/* B is in panels [k][TILE_COLUMNS], one behind the other, the last with zeros or columns that nobody stores.
 * Local: a block's, copied by its work-item; global: all of the hidden states, by clxent_product_panels. */
#        if PRODUCT == WEIGHT
#            define B_SPACE __global
#        else
#            define B_SPACE __local
#        endif
/* What a tile reads of A: TILE_ROWS rows where they lie, or copies [k][TILE_ROWS] of D^T and [TILE_ROWS][depth] of what is
 * not stored as acc_t. */
#        if PRODUCT == WEIGHT
#            define A_AT(i, k) a[(size_t)(k)*TILE_ROWS + (i)]
#        elif CONVERTS_A
#            define A_AT(i, k) a[(size_t)(i)*depth + (k)]
#        else
#            define A_AT(i, k) a_row[i][k]
#        endif

/* n elements of a row of B to a panel's row, the rest zeros. */
#        if PRODUCT != LOGITS
ALWAYS_INLINE void copy_along(__global const storage *row, const uint n, B_SPACE acc_t *panel)
{
#            pragma unroll
    for (uint j = 0; j < TILE_COLUMNS; j += VEC) {
        vec value = (vec)(0);
        if (j + VEC <= n) value = load_vector(row + j);
        else if (j < n) value = load_partial(row + j, n - j, 0);
        STORE(value, panel + j);
    }
}
#        endif

#        if PRODUCT == WEIGHT
/* Grid: a group for each panel of the hidden states. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void clxent_product_panels(
    const clxent_product p, __global const storage *restrict hidden, __global acc_t *restrict panels,
    __global const uint *restrict workspace)
{
    __global const uint *list = workspace + p.list_at;
    const uint rows = get_extents(&p, list).k, j = (uint)get_group_id(0) * TILE_COLUMNS;
    __global acc_t *to = panels + p.panels_at + (size_t)j * rows;
    for (uint k = 0; k < rows; k++, to += TILE_COLUMNS) {
        copy_along(hidden + p.b + row_of(list, p.first + k) * p.b_stride + j,
                   min((uint)TILE_COLUMNS, p.features - j), to);
    }
}

/* D^T: rows m0 to m1, classes, and depth columns from k0 on, rows of D, as tiles [depth][TILE_ROWS]. */
PART void copy_a(const clxent_product *p, __global const acc_t *d, __global const uint *list, const uint m0,
                 const uint m1, const uint k0, const uint depth, __local acc_t *tiles)
{
    for (uint k = 0; k < depth; k++) {
        __global const acc_t *from = d + p->a + row_of(list, p->first + k0 + k) * p->a_stride;
        __local acc_t *to = tiles + (size_t)k * TILE_ROWS;
        uint i = m0;
        const uint ahead = p->first + k0 + min(k + ROWS_AHEAD, depth - 1);
        __global const acc_t *next = d + p->a + row_of(list, ahead) * p->a_stride;
        for (uint e = m0; e < m1; e += VEC) PREFETCH(next + e);
        for (; i + TILE_ROWS <= m1; i += TILE_ROWS, to += (size_t)depth * TILE_ROWS) {
#            pragma unroll
            for (uint e = 0; e < TILE_ROWS; e++) to[e] = from[i + e];
        }
        for (uint e = 0; i < m1 && e < TILE_ROWS; e++) to[e] = i + e < m1 ? from[i + e] : 0;
    }
}
#        else
/* Columns n0 to n1 of B, depth rows of it from k0 on. */
PART void copy_b(const clxent_product *p, __global const storage *b, const uint n0, const uint n1,
                 const uint k0, const uint depth, __local acc_t *panels)
{
#            if PRODUCT == HIDDEN
    for (uint k = 0; k < depth; k++) {
        __global const storage *from = b + p->b + (ulong)(k0 + k) * p->b_stride;
        for (uint j = n0; j < n1; j += TILE_COLUMNS) {
#                pragma unroll
            for (uint v = 0; v < TILE_VECTORS; v++) PREFETCH(from + ROWS_AHEAD * p->b_stride + j + v * VEC);
            copy_along(from + j, min((uint)TILE_COLUMNS, n1 - j),
                       panels + ((size_t)(j - n0) * depth + (size_t)k * TILE_COLUMNS));
        }
    }
#            else
    /* columns are rows of the weight: VEC of them at a time, the last again where a panel has more */
    const uint end = n0 + (n1 - n0 + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
    for (uint j = n0; j < end; j += VEC) {
        const uint column = j - n0;
        __local acc_t *panel =
            panels + (size_t)(column / TILE_COLUMNS) * depth * TILE_COLUMNS + column % TILE_COLUMNS;
        ulong at[VEC];
        for (uint i = 0; i < VEC; i++) at[i] = p->b + min(j + i, n1 - 1) * p->b_stride + k0;
        uint k = 0;
        for (; k + VEC <= depth; k += VEC) {
            vec v[VEC];
#                pragma unroll
            for (uint i = 0; i < VEC; i++) v[i] = load_vector(b + at[i] + k);
            transpose(v);
#                pragma unroll
            for (uint i = 0; i < VEC; i++) STORE(v[i], panel + (size_t)(k + i) * TILE_COLUMNS);
        }
        for (; k < depth; k++) {
            for (uint i = 0; i < VEC; i++) panel[(size_t)k * TILE_COLUMNS + i] = load_one(b + at[i] + k);
        }
    }
#            endif
}
#        endif

/* Grid: a group for each block of p.block_m x p.block_n of C, those of one block of columns side by side. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void clxent_product_block(
    const clxent_product p, __global const a_storage *restrict a_all, __global const storage *restrict b_all,
    __global const storage *restrict bias, __global const acc_t *restrict panels_all,
    __global gradient_storage *c_all, __global const uint *restrict workspace, __local acc_t *local_memory)
{
    __global const uint *list = workspace + p.list_at;
    const extents x = get_extents(&p, list);
    const uint m0 = (uint)(get_group_id(0) % p.blocks_m) * p.block_m, m1 = min(m0 + p.block_m, x.m);
    const uint n0 = (uint)(get_group_id(0) / p.blocks_m) * p.block_n, n1 = min(n0 + p.block_n, x.n);
    if (m0 >= m1 || n0 >= n1 || (x.k == 0 && p.adds)) return;

    __local acc_t *sums = local_memory + p.sums_at; /* tile by tile, of the depths so far */
    __local acc_t *copy = local_memory + p.copy_at;
    (void)copy;
    (void)b_all;
    (void)panels_all;
    const uint tiles_m = (m1 - m0 + TILE_ROWS - 1) / TILE_ROWS,
               tiles_n = (n1 - n0 + TILE_COLUMNS - 1) / TILE_COLUMNS;
    uint k0 = 0;
    do {
        const uint depth = min(p.depth, x.k - k0);
        const bool begins = k0 == 0, ends = k0 + depth == x.k;
#        if PRODUCT == WEIGHT
        copy_a(&p, a_all, list, m0, m1, k0, depth, copy);
#        else
        copy_b(&p, b_all, n0, n1, k0, depth, local_memory);
#        endif
        for (uint t = 0; t < tiles_m * tiles_n; t++) {
            /* the operand of which all is used for each part of the other one goes first: a panel for all tiles of D^T,
             * rows of A for all panels */
            const uint ti = PRODUCT == WEIGHT ? t % tiles_m : t / tiles_n;
            const uint tj = PRODUCT == WEIGHT ? t / tiles_m : t % tiles_n;
            const uint i0 = m0 + ti * TILE_ROWS, j0 = n0 + tj * TILE_COLUMNS;
            __local acc_t *sum = sums + (size_t)t * TILE_ROWS * TILE_COLUMNS;
#        if PRODUCT == WEIGHT
            __local const acc_t *a = copy + (size_t)ti * TILE_ROWS * depth;
            __global const acc_t *b = panels_all + p.panels_at + (size_t)j0 * x.k + (size_t)k0 * TILE_COLUMNS;
#        else
            __local const acc_t *b = local_memory + (size_t)tj * depth * TILE_COLUMNS;
            __global const a_storage *a_row[TILE_ROWS];
#            pragma unroll
            for (uint i = 0; i < TILE_ROWS; i++) {
                a_row[i] = a_all + p.a + row_of(list, p.first + min(i0 + i, m1 - 1)) * p.a_stride + k0;
            }
#            if CONVERTS_A
            __local acc_t *a = copy;
            for (uint i = 0; tj == 0 && i < TILE_ROWS; i++) {
                uint k = 0;
                for (; k + VEC <= depth; k += VEC)
                    STORE(load_vector(a_row[i] + k), a + (size_t)i * depth + k);
                for (; k < depth; k++) a[(size_t)i * depth + k] = load_one(a_row[i] + k);
            }
#            endif
#        endif
            /* what C has comes from memory while the tile is computed */
            if (PRODUCT == WEIGHT && p.adds) {
                for (uint i = 0; i < TILE_ROWS; i++) {
                    __global gradient_storage *row = c_all + start_of(&p, list, min(i0 + i, m1 - 1)) + j0;
                    for (uint v = 0; v < TILE_VECTORS; v++) PREFETCH_FIRST(row + v * VEC);
                }
            }
            vec tile[TILE_ROWS][TILE_VECTORS];
#        pragma unroll
            for (uint i = 0; i < TILE_ROWS; i++) {
#        pragma unroll
                for (uint v = 0; v < TILE_VECTORS; v++) tile[i][v] = (vec)(0);
            }
            for (uint k = 0; k < depth; k++) {
                vec own[TILE_VECTORS];
#        pragma unroll
                for (uint v = 0; v < TILE_VECTORS; v++) {
                    own[v] = LOAD(b + (size_t)k * TILE_COLUMNS + v * VEC);
                    PREFETCH_FIRST(b + (size_t)(k + DEPTHS_AHEAD) * TILE_COLUMNS + v * VEC);
                }
#        pragma unroll
                for (uint i = 0; i < TILE_ROWS; i++) {
                    const vec one = (vec)(A_AT(i, k));
#        pragma unroll
                    for (uint v = 0; v < TILE_VECTORS; v++) tile[i][v] = fma(one, own[v], tile[i][v]);
                }
            }
#        pragma unroll
            for (uint i = 0; i < TILE_ROWS; i++) {
#        pragma unroll
                for (uint v = 0; v < TILE_VECTORS; v++) {
                    __local acc_t *before = sum + i * TILE_COLUMNS + v * VEC;
                    if (!begins) tile[i][v] = LOAD(before) + tile[i][v];
                    if (!ends) STORE(tile[i][v], before);
                }
            }
            if (!ends) continue;
#        pragma unroll
            for (uint i = 0; i < TILE_ROWS; i++) {
                if (i0 + i >= m1) continue;
                __global gradient_storage *row = c_all + start_of(&p, list, i0 + i);
#        pragma unroll
                for (uint v = 0; v < TILE_VECTORS; v++) {
                    const uint j = j0 + v * VEC;
                    if (j < n1) store_result(&p, row, j, min((uint)VEC, n1 - j), tile[i][v], bias, false);
                }
            }
        }
        k0 += depth;
    } while (k0 < x.k);
}

#    else
/* ---- A tile of C for each work-item, operands in local memory ----------------------------------- */

#        if !defined(GROUP_COLUMNS) || WG_SIZE % GROUP_COLUMNS != 0 || TILE_ROWS % VEC != 0
#            error "GROUP_COLUMNS: a divisor of WG_SIZE; TILE_ROWS: a multiple of VEC"
#        endif
#        define GROUP_ROWS (WG_SIZE / GROUP_COLUMNS)
#        define BLOCK_ROWS (GROUP_ROWS * TILE_ROWS)
#        define BLOCK_COLUMNS (GROUP_COLUMNS * TILE_COLUMNS)
#        define DEPTH (DTYPE == F64 ? 16u : 8u) /* of k in local memory: a vector or two for each work-item */
#        if BLOCK_ROWS * DEPTH % (WG_SIZE * VEC) != 0 || BLOCK_COLUMNS * DEPTH % (WG_SIZE * VEC) != 0
#            error "WG_SIZE: a divisor of the vectors of A and of B in local memory"
#        endif
/* A row of local memory begins VEC elements behind the end of the one before. Where an operand is written across, neighbours
 * write VEC rows apart, which are in other banks then. */
#        define PITCH(elements) ((elements) + VEC)

/* What a work-item loads of an operand stays as it is stored until the tile in local memory is free: a conversion would wait
 * for the load. */
#        if DTYPE == F16 || DTYPE == BF16
typedef ushort b_bits;
typedef VECTOR(ushort) b_vector;
#        else
typedef acc_t b_bits;
typedef vec b_vector;
#        endif
#        if DTYPE == F16
#            define VALUE_OF_B(bits) half_values(bits)
#        elif DTYPE == BF16
#            define VALUE_OF_B(bits) bf16_vector_load(bits)
#        else
#            define VALUE_OF_B(bits) (bits)
#        endif
#        if PRODUCT == LOGITS
typedef b_bits a_bits;
typedef b_vector a_vector;
#            define VALUE_OF_A(bits) VALUE_OF_B(bits)
#        else
typedef acc_t a_bits;
typedef vec a_vector;
#            define VALUE_OF_A(bits) (bits)
#        endif

/* The first n elements, which may be none or more than a vector has; zeros behind them. */
#        define DEFINE_FETCH(OPERAND)                                                                      \
            static inline OPERAND##_vector OPERAND##_fetch(__global const OPERAND##_bits *p, const uint n) \
            {                                                                                              \
                if (n >= VEC) return LOAD(p);                                                              \
                OPERAND##_bits element[VEC];                                                               \
                for (uint i = 0; i < VEC; i++) element[i] = i < n ? p[i] : (OPERAND##_bits)(0);            \
                return LOAD(element);                                                                      \
            }
DEFINE_FETCH(a)
DEFINE_FETCH(b)
#        if TELLS_ALIGNED
#            define FETCH_ALIGNED(OPERAND, p) (*(__global const OPERAND##_vector *)(p))
#        else
#            define FETCH_ALIGNED(OPERAND, p) LOAD(p)
#        endif

/* A work-item's share of DEPTH x COUNT elements of an operand: vectors LOCAL_ID, LOCAL_ID + WG_SIZE, and so on. IS_ALONG: a row
 * of the operand is one of DEPTH, and i runs along it; else it is one of COUNT, and k does. ROW(u, k) is where it begins. WHOLE:
 * of aligned vectors, all of which exist. Where k ends there are zeros; rows and columns of C that do not exist have values of
 * others, as nobody stores them. */
#        define SHARE(COUNT) ((COUNT)*DEPTH / VEC / WG_SIZE)
#        define ELEMENT(u) (LOCAL_ID + (u)*WG_SIZE)
#        define I_OF(u, IS_ALONG, COUNT) \
            (IS_ALONG ? ELEMENT(u) % ((COUNT) / VEC) * VEC : ELEMENT(u) / (DEPTH / VEC))
#        define K_OF(u, IS_ALONG, COUNT) \
            (IS_ALONG ? ELEMENT(u) / ((COUNT) / VEC) : ELEMENT(u) % (DEPTH / VEC) * VEC)
#        define FETCH_OPERAND(OPERAND, IS_ALONG, COUNT, ROW, LIMIT, K0, WHOLE)                          \
            _Pragma("unroll") for (uint u = 0; u < SHARE(COUNT); u++)                                   \
            {                                                                                           \
                const uint i = I_OF(u, IS_ALONG, COUNT), k = (K0) + K_OF(u, IS_ALONG, COUNT);           \
                const uint along = WHOLE ? min(i, (LIMIT)-VEC) : i;                                     \
                const uint left = IS_ALONG  ? (k < x.k && i < (LIMIT) ? (LIMIT)-i : 0)                  \
                                  : k < x.k ? x.k - k                                                   \
                                            : 0;                                                        \
                __global const OPERAND##_bits *from =                                                   \
                    ROW(u, WHOLE ? k : min(k, x.k - 1)) + (IS_ALONG ? along : k);                       \
                OPERAND##_next[u] = WHOLE ? FETCH_ALIGNED(OPERAND, from) : OPERAND##_fetch(from, left); \
            }
/* To tile[DEPTH][PITCH(COUNT)]. */
#        define PUT_OPERAND(OPERAND, IS_ALONG, COUNT, VALUE)                                            \
            _Pragma("unroll") for (uint u = 0; u < SHARE(COUNT); u++)                                   \
            {                                                                                           \
                __local acc_t *to =                                                                     \
                    OPERAND + K_OF(u, IS_ALONG, COUNT) * PITCH(COUNT) + I_OF(u, IS_ALONG, COUNT);       \
                acc_t element[VEC];                                                                     \
                STORE(VALUE(OPERAND##_next[u]), element);                                               \
                if (IS_ALONG) {                                                                         \
                    *(__local vec *)to = VALUE(OPERAND##_next[u]);                                      \
                } else {                                                                                \
                    _Pragma("unroll") for (uint q = 0; q < VEC; q++) to[q * PITCH(COUNT)] = element[q]; \
                }                                                                                       \
            }
#        define A_IS_ALONG (PRODUCT == WEIGHT)
#        define B_IS_ALONG (PRODUCT != LOGITS)
#        if PRODUCT == WEIGHT
#            define A_ROW(u, k) (a_begin + row_of(list, p.first + (k)) * p.a_stride + m0)
#            define B_ROW(u, k) (b_begin + row_of(list, p.first + (k)) * p.b_stride + n0)
#        else
#            define A_ROW(u, k) (a_begin + (ulong)a_row[u] * p.a_stride)
#            define B_ROW(u, k)                    \
                (b_begin +                         \
                 (PRODUCT == HIDDEN                \
                      ? (ulong)(k)*p.b_stride + n0 \
                      : (ulong)(n0 + min(I_OF(u, false, BLOCK_COLUMNS), columns - 1)) * p.b_stride))
#        endif
/* One branch for both, so that all loads are under way together. */
#        define FETCH(K0)                                                              \
            if (whole && (K0) + DEPTH <= x.k) {                                        \
                FETCH_OPERAND(a, A_IS_ALONG, BLOCK_ROWS, A_ROW, rows, K0, true)        \
                FETCH_OPERAND(b, B_IS_ALONG, BLOCK_COLUMNS, B_ROW, columns, K0, true)  \
            } else {                                                                   \
                FETCH_OPERAND(a, A_IS_ALONG, BLOCK_ROWS, A_ROW, rows, K0, false)       \
                FETCH_OPERAND(b, B_IS_ALONG, BLOCK_COLUMNS, B_ROW, columns, K0, false) \
            }

/* Grid: as in groups of one. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_product_block(
    const clxent_product p, __global const a_storage *restrict a_all, __global const storage *restrict b_all,
    __global const storage *restrict bias, __global gradient_storage *c_all,
    __global const uint *restrict workspace)
{
    __global const uint *list = workspace + p.list_at;
    __local vec a_vectors[DEPTH * PITCH(BLOCK_ROWS) / VEC], b_vectors[DEPTH * PITCH(BLOCK_COLUMNS) / VEC];
    __local acc_t *a = (__local acc_t *)a_vectors, *b = (__local acc_t *)b_vectors;
    const extents x = get_extents(&p, list);
    const uint m0 = (uint)(get_group_id(0) % p.blocks_m) * BLOCK_ROWS;
    const uint n0 = (uint)(get_group_id(0) / p.blocks_m) * BLOCK_COLUMNS;
    const uint rows = m0 < x.m ? min(x.m - m0, (uint)BLOCK_ROWS) : 0;
    const uint columns = n0 < x.n ? min(x.n - n0, (uint)BLOCK_COLUMNS) : 0;
    const uint depth = rows > 0 && columns > 0 ? x.k : 0;
    const uint ty = LOCAL_ID / GROUP_COLUMNS * VEC, tx = LOCAL_ID % GROUP_COLUMNS * VEC;
    const bool aligned_c = IS_ALIGNED(c_all + p.c, gradient_storage) && p.c_stride % VEC == 0;
    const bool whole = IS_ALIGNED(a_all + p.a, a_storage) && p.a_stride % VEC == 0 &&
                       IS_ALIGNED(b_all + p.b, storage) && p.b_stride % VEC == 0 &&
                       (PRODUCT != WEIGHT || rows % VEC == 0) && (PRODUCT == LOGITS || columns % VEC == 0);
    __global const a_bits *a_begin = (__global const a_bits *)(a_all + p.a);
    __global const b_bits *b_begin = (__global const b_bits *)(b_all + p.b);
    a_vector a_next[SHARE(BLOCK_ROWS)];
    b_vector b_next[SHARE(BLOCK_COLUMNS)];

    vec tile[TILE_ROWS][TILE_VECTORS];
#        pragma unroll
    for (uint i = 0; i < TILE_ROWS; i++) {
#        pragma unroll
        for (uint v = 0; v < TILE_VECTORS; v++) tile[i][v] = (vec)(0);
    }
#        if PRODUCT != WEIGHT
    /* barriers would have the list read again */
    uint a_row[SHARE(BLOCK_ROWS)];
#            pragma unroll
    for (uint u = 0; u < SHARE(BLOCK_ROWS); u++) {
        a_row[u] =
            depth > 0 ? (uint)row_of(list, p.first + m0 + min(I_OF(u, false, BLOCK_ROWS), rows - 1)) : 0;
    }
#        endif
    if (depth > 0) {
        FETCH(0)
    }
    for (uint k0 = 0; k0 < depth; k0 += DEPTH) {
        PUT_OPERAND(a, A_IS_ALONG, BLOCK_ROWS, VALUE_OF_A)
        PUT_OPERAND(b, B_IS_ALONG, BLOCK_COLUMNS, VALUE_OF_B)
        barrier(CLK_LOCAL_MEM_FENCE);
        /* the next DEPTH of k come from memory while these are multiplied */
        if (k0 + DEPTH < depth) {
            FETCH(k0 + DEPTH)
        }
        for (uint k = 0; k < DEPTH; k++) {
            acc_t own_a[TILE_ROWS];
            vec own_b[TILE_VECTORS];
#        pragma unroll
            for (uint i = 0; i < TILE_ROWS; i += VEC) {
                STORE(*(__local vec *)(a + k * PITCH(BLOCK_ROWS) + ty + i * GROUP_ROWS), own_a + i);
            }
#        pragma unroll
            for (uint v = 0; v < TILE_VECTORS; v++)
                own_b[v] = *(__local vec *)(b + k * PITCH(BLOCK_COLUMNS) + tx + v * (GROUP_COLUMNS * VEC));
#        pragma unroll
            for (uint i = 0; i < TILE_ROWS; i++) {
#        pragma unroll
                for (uint v = 0; v < TILE_VECTORS; v++)
                    tile[i][v] = fma((vec)(own_a[i]), own_b[v], tile[i][v]);
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
#        pragma unroll
    for (uint i = 0; i < TILE_ROWS; i++) {
        const uint row = ty + i / VEC * VEC * GROUP_ROWS + i % VEC;
        if (row < rows) {
#        pragma unroll
            for (uint v = 0; v < TILE_VECTORS; v++) {
                const uint j = tx + v * (GROUP_COLUMNS * VEC);
                if (j < columns) {
                    store_result(&p, c_all + start_of(&p, list, m0 + row), n0 + j,
                                 min((uint)VEC, columns - j), tile[i][v], bias, aligned_c);
                }
            }
        }
    }
}
#    endif
#endif
