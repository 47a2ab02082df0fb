/* SPDX-License-Identifier: MIT
 *
 * along_scan.cl - how map_lane.cl reads a tile of short rows that lie side by side (ALONG): each by row_scan.cl, vectors along
 * its classes; only what a row has one of becomes a lane. Stands behind row_scan.cl and tile.cl, in the place of
 * lane_scan.cl.
 */
/* Rows whose maxima are found before their exponentials are taken: all of a tile that stays in the first-level cache, of
 * a larger one a few at a time, which neither leave that cache nor wait for a maximum one by one (loss of 1,024 classes:
 * 0.9 of the time). */
#define MOST_TOGETHER 384u
#define FEW_TOGETHER 4u

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
    row.local_elements = 0;
    row.fits = true;
    row.keeps = true;
    row.in_local = true;
    row.kept_q = 0;
    row.ahead = in->p->row_stride == in->classes ? TILE / VEC * in->classes
                                                 : 0; /* rows without gaps: the next tile */
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

/* Of row i, element by element of its vectors. */
ALWAYS_INLINE vec row_maximum(const tile_input *in, const uint i)
{
    const row_scan scan = { NO_CLASS, false, false, 0, 0 };
    const row_input row = row_of_tile(in, i);
    return maximum_of(&row, &scan, 0, vectors_of_tile(in));
}

/* high and low: of each row, element by element of its vectors; of the rows, lane by lane. has_low: low is not all 0. */
PART compensated_sum fold_along(vec high[VEC], vec low[VEC], const bool has_low)
{
    compensated_sum s = compensated_zero();
    transpose(high);
    ROLLED
    for (uint i = 0; i < VEC; i++) s = compensated_add(s, high[i]);
    if (has_low) {
        transpose(low);
        for (uint step = VEC / 2; step > 0; step /= 2) {
#pragma unroll
            for (uint i = 0; i < step; i++) low[i] += low[i + step];
        }
        s.low += low[0];
    }
    return s;
}

/* The scales of a vector of rows, one by one. */
typedef struct {
    acc_t maximum[VEC], base[VEC], q[VEC], lowest[VEC];
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
    const acc_t maximum = l->maximum[i];
    return (row_level){ scale, maximum > -ACC_INFINITY ? maximum : 0, true };
}

/* saved_maximum: of statistics. keeps: the exponentials stay in own_rows, row by row. */
PART void sum_tile(row_state *sums, lane *target_x, const run *u, const tile_input *in, const ilane target,
                   const bool from_statistics, const lane saved_maximum)
{
    (void)target_x;
    const bool keeps = WANTS_WIDE(u->p);
    const bool wants_best = (u->p->outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    const uint all = vectors_of_tile(in);
    const uint together = in->classes <= MOST_TOGETHER ? (uint)VEC : min(FEW_TOGETHER, (uint)VEC);
    tile_levels levels;
    integer excluded[VEC], best[VEC];
    vec high[VEC], low[VEC], entropy_high[VEC], entropy_low[VEC];
    STORE(saved_maximum, levels.maximum);
    STORE(target, excluded);
    for (uint i = 0; i < VEC; i++) {
        best[i] = NO_CLASS;
        if (i >= in->n) {
            high[i] = low[i] = entropy_high[i] = entropy_low[i] = (vec)(0);
            continue;
        }
        if (i % together == 0) {
            ROLLED
            for (uint k = i; k < min(i + together, in->n) && !from_statistics; k++) {
                const vec most = row_maximum(in, k);
                levels.maximum[k] = FOLD(most, acc_max);
            }
            split_levels(&levels, tile_scale_of(LOAD(levels.maximum)));
        }
        const row_input row = row_of_tile(in, i);
        const row_scan scan = { (uint)excluded[i], keeps, false, in->own_rows + i * in->classes, 0 };
        row_level level = level_of_row(&levels, i);
        block_sums b = empty_block();
        level.far = !SUMS_PLAINLY || fabs(levels.maximum[i]) > MAX_NEAR;
        sum_block(&b, &row, &scan, &level, 0, all);
        high[i] = b.sum_excluding_target.high;
        low[i] = b.sum_excluding_target.low;
        entropy_high[i] = b.entropy.high;
        entropy_low[i] = b.entropy.low;
        if (wants_best) best[i] = find_first(&row, false, levels.maximum[i], 0, all);
    }
    row_state s = empty_state();
    const bool has_low = all > FLUSH_VECTORS; /* nothing is lost by the first addition */
    s.maximum = LOAD(levels.maximum);
    const lane factor = exp_rescale(tile_scale_of(s.maximum), exp_scale_of(s.maximum));
    s.sum_excluding_target = compensated_times(fold_along(high, low, has_low), factor);
#if HAS_ENTROPY
    s.entropy = compensated_times(fold_along(entropy_high, entropy_low, has_low), factor);
#endif
    s.best = LOAD(best);
    *sums = s;
}

/* Of rows whose sum is NaN, the first class that is, where +inf - inf did not make it. */
static inline void find_classes(const run *u, const tile_input *in, row_state *s)
{
    const uint outputs = u->p->outputs;
    const ilane is_nan = s->sum_excluding_target.high != s->sum_excluding_target.high;
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
PART lane tile_excluding_max(const tile_input *in, const row_result *r)
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
        const compensated_vector sum =
            sum_excluding_max(&row, &level, levels.maximum[i], 0, vectors_of_tile(in));
        high[i] = sum.high;
        low[i] = sum.low;
    }
    return compensated_value(fold_along(high, low, true));
}

/* Values of all classes, in the place of their exponentials. */
static inline void stage(const tile_input *in, const row_result *r, const epilogue *g, const bool again)
{
    acc_t factors[VEC], rests[VEC], outers[VEC], fills[VEC], targets[VEC], scales[VEC];
    integer is_filled[VEC], class_index[VEC];
    epilogue folded = *g;
    rescaling by = block_rescaling(in, r, 0, 0);
    (void)fold_rescaling(&folded, &by);
    STORE(by.first, scales);
    STORE(folded.factor, factors);
    STORE(folded.rest, rests);
    STORE(g->outer, outers);
    STORE(g->fill, fills);
    STORE(g->filled, is_filled);
    STORE(g->target, targets);
    STORE(g->class_index, class_index);
    (void)again;
    for (uint i = 0; i < in->n; i++) {
        epilogue own = *g;
        const vec none = (vec)(0), scale = (vec)(scales[i]);
        const uint last = in->classes - VEC;
        __local acc_t *row = in->own_rows + i * in->classes;
        own.factor = (lane)(factors[i]);
        own.rest = (lane)(rests[i]);
        own.outer = (lane)(outers[i]);
        if (is_filled[i]) {
            for (uint c = 0; c < last; c += VEC) STORE((vec)(fills[i]), row + c);
            STORE((vec)(fills[i]), row + last);
            continue;
        }
        const vec e_last = LOAD(row + last) * scale; /* before the one beside it is written over */
        for (uint c = 0; c < last; c += VEC) {
            STORE(result_of(r, &own, none, none, LOAD(row + c) * scale, none), row + c);
        }
        STORE(result_of(r, &own, none, none, e_last, none), row + last);
        if (class_index[i] != NO_CLASS) row[class_index[i]] = targets[i];
    }
}

#if HAS_PLAIN_TILES
/* These are those of lane_scan.cl, of rows that lie side by side: what is alike in all rows of the tile passes them
 * without their ends. */
static inline lane tile_maximum(const tile_input *in)
{
    vec most[VEC];
    ROLLED
    for (uint i = 0; i < VEC; i++) most[i] = row_maximum(in, i);
    transpose(most);
    for (uint step = VEC / 2; step > 0; step /= 2) {
#    pragma unroll
        for (uint i = 0; i < step; i++) most[i] = vec_max(most[i], most[i + step]);
    }
    return most[0];
}

static inline ilane find_best(const tile_input *in, const lane maximum)
{
    acc_t of_row[VEC];
    integer best[VEC];
    STORE(maximum, of_row);
    ROLLED
    for (uint i = 0; i < VEC; i++) {
        const row_input row = row_of_tile(in, i);
        best[i] = find_first(&row, false, of_row[i], 0, vectors_of_tile(in));
    }
    return LOAD(best);
}

/* The exponentials of a row's vectors from `first` on, up to a flush, as sum_block() adds them. */
ALWAYS_INLINE vec sum_kept(const __local acc_t *row, const uint classes, const uint first)
{
    const uint stop = min(classes, (first + FLUSH_VECTORS) * VEC), tail = stop % VEC;
    vec sum = (vec)(0);
    uint c = first * VEC;
    for (; c + TOGETHER * VEC <= stop; c += TOGETHER * VEC)
        sum += (LOAD(row + c) + LOAD(row + c + VEC)) + (LOAD(row + c + 2 * VEC) + LOAD(row + c + 3 * VEC));
    if (c == stop) return sum;
    const uint left = (stop - c) / VEC;
    vec rest = (vec)(0); /* in add_four()'s order */
    if (tail > 0) rest = IOTA < (ivec)((integer)(VEC - tail)) ? rest : LOAD(row + stop - VEC);
    if (left > 2) rest += LOAD(row + c + 2 * VEC);
    if (left == 1) rest += LOAD(row + c);
    if (left > 1) rest += LOAD(row + c) + LOAD(row + c + VEC);
    return sum + rest;
}

PART void sum_flushed(vec *high, vec *low, const __local acc_t *row, const uint classes)
{
    compensated_vector sum = { (vec)(0), (vec)(0) };
    for (uint v = 0; v * VEC < classes; v += FLUSH_VECTORS)
        sum = compensated_add_vector(sum, sum_kept(row, classes, v));
    *high = sum.high;
    *low = sum.low;
}

ALWAYS_INLINE void sum_shared(plain_sums *s, const tile_input *in, const acc_t q, const ilane target,
                              const uint begin, const uint end)
{
    const exp_scale scale = { (lane)(0), (lane)(q), (lane)((q - BIAS) * (acc_t)LN2_HIGH) };
    const uint classes = end - begin;
    integer at[VEC];
    acc_t x[VEC], e[VEC];
    vec high[VEC], low[VEC];
#    pragma unroll 4
    for (uint k = 0; k < classes; k++) {
        PREFETCH(in->next + k * VEC);
        STORE(exp_vector(load_vector(in->x + k * VEC), scale, false), in->own_rows + k * VEC);
    }
    STORE(target, at);
    for (uint i = 0; i < VEC; i++) {
        const bool has_class = at[i] != NO_CLASS;
        const uint k = i * classes + (has_class ? (uint)at[i] : 0);
        const acc_t own = in->own_rows[k];
        x[i] = has_class ? load_one(in->x + k) : -ACC_INFINITY;
        e[i] = has_class ? own : 0;
        in->own_rows[k] = has_class ? 0 : own;
    }
    s->found.x = LOAD(x);
    s->found.e = LOAD(e);
    const bool is_one_flush = (classes - 1) / VEC < FLUSH_VECTORS;
    for (uint i = 0; i < VEC; i++) {
        const __local acc_t *row = in->own_rows + i * classes;
        if (is_one_flush) {
            high[i] = sum_kept(row, classes, 0);
        } else {
            sum_flushed(&high[i], &low[i], row, classes);
        }
    }
    s->sum = fold_along(high, low, !is_one_flush);
    if (WIDE_OUTPUTS != OUTPUT_SOFTMAX) return; /* gradients have a value of their own there */
    for (uint i = 0; i < VEC; i++) {
        if (at[i] != NO_CLASS) in->own_rows[i * classes + (uint)at[i]] = e[i];
    }
}

ALWAYS_INLINE void stage_shared(const tile_input *in, const plain_factors *f)
{
    acc_t factors[VEC], rests[VEC], targets[VEC];
    integer at[VEC];
    const uint last = in->classes - VEC;
    STORE(f->factor, factors);
    STORE(f->rest, rests);
    STORE(f->target, targets);
    STORE(f->class_index, at);
    for (uint i = 0; i < VEC; i++) {
        __local acc_t *row = in->own_rows + i * in->classes;
        const vec one = (vec)(factors[i]), small = (vec)(rests[i]);
        const vec e_last = LOAD(row + last); /* before the one beside it is written over */
        for (uint c = 0; c < last; c += VEC) {
            const vec e = LOAD(row + c);
            STORE(fma(e, one, e * small), row + c);
        }
        STORE(fma(e_last, one, e_last * small), row + last);
        const uint k = at[i] != NO_CLASS ? (uint)at[i] : 0;
        row[k] = at[i] != NO_CLASS ? targets[i] : row[k];
    }
}
#endif
