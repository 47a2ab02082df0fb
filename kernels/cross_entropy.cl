/* SPDX-License-Identifier: MIT
 *
 * cross_entropy.cl - everything that is computed from logits, where a row is a work-group's: results, the row from its
 * target to its results, and the kernels. Stands behind row_sums.cl, which says more and has the rest of what the
 * host sets:
 *   KERNELS  1: for whole rows; 2: for rows split over groups; 3: both, as the limit of a device for the work-group of
 *            either is one for both, so that their bits are the same
 */
#if !defined(KERNELS) || KERNELS < 1 || KERNELS > 3
#    error "KERNELS: 1, 2 or 3"
#endif

/* ---- [rows, classes] results --------------------------------------------------------------- */

/* Of a program with one of them the kind is known. */
#define WIDE_OUTPUTS (OUTPUTS & (OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX | OUTPUT_GRADIENT))
#define IS_KIND(g, output) \
    (WIDE_OUTPUTS == (output) || ((WIDE_OUTPUTS & (output)) != 0 && (g)->kind == (output)))

typedef struct {
    uint kind;   /* OUTPUT_SOFTMAX, OUTPUT_LOG_SOFTMAX or OUTPUT_GRADIENT */
    bool filled; /* every element is fill. Rows of NaN are: computed NaNs differ in bits */
    real fill;
    real factor;      /* softmax: 1 / d; gradient: what multiplies the exponentials */
    bool folds;       /* the factor, a finite one, goes into the exponential: where those are never cached */
    real outer;       /* gradient, unless HAS_ONE_FACTOR: what multiplies dz */
    uint class_index; /* NO_CLASS, or the class whose gradient is `target` */
    real target;
} emission;

/* has_slope: kept_slope is as the cache has it, which with exponentials from there leaves no need of x. */
ALWAYS_INLINE vec emit_value(const row_input *in, const row_result *r, const emission *g, const vec x,
                             const vec cached_e, const bool cached, const bool has_slope,
                             const vec kept_slope, const uint at, const uint n)
{
    vec slope = (vec)(1);
    vec z = x;
    if (has_slope) {
        slope = kept_slope;
    } else {
        z = softcap_vector_z(x, in->o, &slope);
    }
    if (IS_KIND(g, OUTPUT_LOG_SOFTMAX)) return -(((vec)(r->maximum) - z) + (vec)(r->log_d));
    if (g->folds) return exp_vector_times(z, r->scale, true, g->factor);
    const vec e = cached && !IN_REGISTERS ? cached_e : exp_vector(z, r->scale, true);
    if (IS_KIND(g, OUTPUT_SOFTMAX)) return e * (vec)(g->factor);
    if (HAS_ONE_FACTOR) return e * (vec)(g->factor);
    const vec dz = HAS_DENSE ? fma(e, (vec)(g->factor), -dense_vector(in, at, n)) : e * (vec)(g->factor);
    return dz * (vec)(g->outer) * slope;
}

/* n elements from `at`, 1 <= n <= VEC, the target's class among them or not. */
static inline void emit_part(const row_input *in, const row_result *r, const emission *g,
                             __global storage *out, __global gradient_storage *gradient, const uint at,
                             const uint n)
{
    const vec x = load_partial(in->x + at, n, -REAL_INFINITY);
    vec value = emit_value(in, r, g, x, x, false, false, x, at, n);
    if (!IS_KIND(g, OUTPUT_GRADIENT)) {
        store_partial(out + at, value, n);
        return;
    }
    const ivec hit = IOTA == (ivec)((integer)(g->class_index - at)) ? (ivec)(-1) : (ivec)(0);
    if (g->class_index >= at && g->class_index - at < n) value = hit ? (vec)(g->target) : value;
    if (ACCUMULATE) value = accumulated(load_gradient_partial(gradient + at, n), value);
    store_gradient_partial(gradient + at, value, n);
}

/* What belongs into a whole vector; with_target: the target's class may be in it. */
ALWAYS_INLINE vec value_of_vector(const row_input *in, const row_result *r, const emission *g,
                                  const __global gradient_storage *gradient, const uint at,
                                  const bool with_target, const bool cached, const bool aligned,
                                  const __local real *cache)
{
    (void)aligned; /* see TELLS_ALIGNED */
    const vec kept = cached ? LOAD(cache + at) : (vec)(0);
    const bool has_slope = cached && HAS_SOFTCAP && IS_KIND(g, OUTPUT_GRADIENT) && in->slope_at > 0;
    const vec slope = has_slope ? LOAD(cache + in->slope_at + at) : kept;
    const bool has_x = cached && (!NEEDS_X || has_slope || IS_KIND(g, OUTPUT_SOFTMAX));
    const vec x = !has_x ? LOAD_VECTOR(in->x + at, aligned) : kept;
    vec value = emit_value(in, r, g, x, kept, cached, has_slope, slope, at, VEC);
    if (!IS_KIND(g, OUTPUT_GRADIENT)) return value;
    if (with_target) value = IOTA == (ivec)((integer)(g->class_index - at)) ? (vec)(g->target) : value;
    if (ACCUMULATE) value = accumulated(load_gradient_vector(gradient + at), value);
    return value;
}

/* The same, of a vector that the target's class may be in. */
RARE vec value_with_target(const row_input *in, const row_result *r, const emission *g,
                           const __global gradient_storage *gradient, const uint at, const bool cached,
                           const __local real *cache)
{
    return value_of_vector(in, r, g, gradient, at, true, cached, false, cache);
}

static inline void put_element(const emission *g, __global storage *out, __global gradient_storage *gradient,
                               const uint at, const real value)
{
    if (IS_KIND(g, OUTPUT_GRADIENT)) {
        store_gradient_one(gradient + at, value);
    } else {
        store_one(out + at, value);
    }
}

static inline void put_vector(const emission *g, __global storage *out, __global gradient_storage *gradient,
                              const uint at, const vec value, const bool aligned)
{
    if (IS_KIND(g, OUTPUT_GRADIENT)) {
        store_gradient_vector(gradient + at, value, aligned);
    } else {
        store_vector(out + at, value, aligned);
    }
}

/* emit_loop() for a row that is filled. Each element is written by the work-item that emit_loop() gives it to, as that one
 * has read the logit in its place for the results before. */
static inline void fill_loop(const emission *g, __global storage *out, __global gradient_storage *gradient,
                             const uint begin, const uint head, const uint end, const bool aligned)
{
    const uint first = begin + head, lid = (uint)get_local_id(0);
    const uint vectors = (end - first) / VEC;
    for (uint c = begin; c < first && lid == 0; c++) put_element(g, out, gradient, c, g->fill);
    for (uint v = lid; v < vectors; v += WG_SIZE) {
        put_vector(g, out, gradient, first + v * VEC, (vec)(g->fill), aligned);
    }
    for (uint c = first + vectors * VEC; c < end && lid == vectors % WG_SIZE; c++) {
        put_element(g, out, gradient, c, g->fill);
    }
}

/* The classes [begin, end), vectors beginning at `begin` + head. The elements before those and behind them are
 * vectors too that overlap their neighbours, where one work-item does all: they are computed first, before
 * anything is written in place, and written last. */
ALWAYS_INLINE void emit_loop(const row_input *in, const row_result *r, const emission *g,
                             __global storage *out, __global gradient_storage *gradient, const uint begin,
                             const uint head, const uint end, const bool cached, const bool aligned,
                             const __local real *cache)
{
    const uint first = begin + head;
    const uint vectors = (end - first) / VEC;
    const uint tail = (end - first) % VEC;
    const bool overlaps = WG_SIZE == 1 && end - begin >= VEC;
    const uint special =
        g->class_index != NO_CLASS && g->class_index >= first ? (g->class_index - first) / VEC : NO_CLASS;
    uint v = (uint)get_local_id(0);
    uint stop = special >= v && special < vectors ? special : vectors;
    vec head_value = (vec)(0), tail_value = (vec)(0);
    if (overlaps) {
        if (head > 0) head_value = value_with_target(in, r, g, gradient, begin, cached, cache);
        if (tail > 0) tail_value = value_with_target(in, r, g, gradient, end - VEC, cached, cache);
    } else if (head > 0 && v == 0) {
        emit_part(in, r, g, out, gradient, begin, head);
    }
    for (;;) {
        for (; v < stop; v += WG_SIZE) {
            const uint at = first + v * VEC;
            const vec value = value_of_vector(in, r, g, gradient, at, false, cached, aligned, cache);
            put_vector(g, out, gradient, at, value, aligned);
            if (!cached && v % 4 == 0) bring(in, v, true);
        }
        if (stop == vectors) break;
        if (v == special) {
            const uint at = first + v * VEC;
            const vec value = value_with_target(in, r, g, gradient, at, cached, cache);
            put_vector(g, out, gradient, at, value, aligned);
            v += WG_SIZE;
        }
        stop = vectors;
    }
    if (overlaps) {
        if (head > 0) put_vector(g, out, gradient, begin, head_value, false);
        if (tail > 0) put_vector(g, out, gradient, end - VEC, tail_value, false);
    } else if (tail > 0 && v == vectors) {
        emit_part(in, r, g, out, gradient, first + v * VEC, tail);
    }
}

/* Rows of fewer classes than this are streamed only where all of them are aligned. */
#define LONG_ROW 4096u

/* Writes the classes [begin, end) of one row of one result, the row beginning at out or gradient, `stride` elements
 * from the next. Streaming stores need aligned vectors: the elements before the first aligned one go apart, which
 * moves no bit, as elements do not depend on each other here. But a line that is written both ways costs several
 * memory accesses, and every row that is not aligned has two (1,000 classes on PoCL: 1.99 of a copy, all plain
 * 1.18). Only for one work-item alone: what another has read may have been overwritten by then. */
INLINE void emit(const row_input *in, const row_result *r, const emission *g, __global storage *out,
                 __global gradient_storage *gradient, const ulong stride, const uint begin, const uint end,
                 const bool cached, const bool streaming, const __local real *cache)
{
    const bool is_gradient = IS_KIND(g, OUTPUT_GRADIENT);
    const size_t address = is_gradient ? (size_t)(gradient + begin) : (size_t)(out + begin);
    const size_t size = is_gradient ? sizeof(gradient_storage) : sizeof(storage);
    const uint to_aligned = (uint)((0 - address) & (VEC * size - 1)) / (uint)size;
    const bool streams =
        CAN_STREAM && streaming && address % size == 0 &&
        ((to_aligned == 0 && stride % VEC == 0) || (in->classes >= LONG_ROW && to_aligned < end - begin));
    const bool aligned =
        streams || (TELLS_ALIGNED && address % (VEC * size) == 0 && IS_ALIGNED(in->x + begin, storage));
    if (g->filled) {
        fill_loop(g, out, gradient, begin, streams ? to_aligned : 0, end, aligned);
        return;
    }
#if TELLS_ALIGNED
    /* In one loop for both clang 15 makes single elements of all loads. */
    if (aligned) {
        emit_loop(in, r, g, out, gradient, begin, 0, end, cached, true, cache);
        return;
    }
    emit_loop(in, r, g, out, gradient, begin, 0, end, cached, false, cache);
#else
    emit_loop(in, r, g, out, gradient, begin, streams ? to_aligned : 0, end, cached, aligned, cache);
#endif
}

/* ---- The row ------------------------------------------------------------------------------- */

/* What a kernel was given, for the functions below. */
typedef struct {
    const clxent_parameters *p;
    __global const storage *logits;
    __global const void *targets;
    __global const real *row_weights, *upstream;
    __global real *losses, *lse;
    __global storage *softmax, *log_softmax;
    __global gradient_storage *gradient;
    __global long *argmax;
    __global real *entropy, *statistics;
    __global uchar *workspace;
    __local real *cache;
    real d; /* what gradients are divided by */
} run;

#define MAKE_RUN                                                                                           \
    {                                                                                                      \
        &p, logits, targets, row_weights, upstream, losses, lse, softmax, log_softmax, gradient, argmax,   \
            entropy, statistics, workspace, cache, get_d(&p, targets, row_weights, denominator, workspace) \
    }

static inline row_input make_input(const clxent_parameters *p, __global const real *class_weights)
{
    row_input in;
    in.x = 0;
    in.classes = p->classes;
    in.vectors = p->classes / VEC;
    in.tail = p->classes % VEC;
    in.cache_elements = p->cache_elements;
    in.slope_at = 0;
    in.shares_lines = false;
    in.q = 0;
    in.class_weights = class_weights + p->offset.class_weights;
    in.best = (p->outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    in.nan = in.best || (p->outputs & OUTPUT_LSE) != 0;
    in.o = options_of(p);
    return in;
}

/* Points `in` at a row and finds the row's target. A row that has no probabilities because targets are shifted is given
 * the last row's, of which nothing reaches its results: behind those there may be no memory. */
static inline row_target open_row(const run *u, row_input *in, const ulong row)
{
    const clxent_parameters *p = u->p;
    const row_target t = get_target(p, row, u->targets, u->row_weights);
    const ulong q_row = min(row + p->shift, p->rows - 1);
    const ulong q_at = p->offset.targets + row_start(p, q_row, p->target_row_stride);
    in->x = u->logits + p->offset.logits + row_start(p, row, p->row_stride);
    if (TARGETS == TARGET_PROBABILITIES_F32) in->q = (__global const float *)u->targets + q_at;
    if (TARGETS == TARGET_PROBABILITIES_LOGITS) in->q = (__global const storage *)u->targets + q_at;
    return t;
}

/* x: the logit of the target's class. */
static inline judgement judge(const row_input *in, const row_target *t, const real x)
{
    judgement j = { t->counts, t->bad, t->weight, -REAL_INFINITY, 1, 0, 0, 0, 0 };
    if (t->has_class) {
        j.z = softcap_one_z(x, in->o, &j.slope);
        j.one_hot = in->o.keep;
        if (HAS_CLASS_WEIGHTS) j.one_hot = in->o.keep * in->class_weights[t->class_index];
        if (HAS_DENSE) j.dense = dense_one(in, t->class_index);
    }
    if (HAS_DENSE && !SUMS_WEIGHT) j.dense_sum = in->o.smoothing;
    return j;
}

static inline real target_logit(const row_input *in, const row_target *t)
{
    return t->has_class ? load_one(in->x + t->class_index) : -REAL_INFINITY;
}

/* This work-item's sums over one piece of the row, as far as the run needs any. */
static inline row_sums sum_piece(const run *u, const row_input *in, const row_target *t, const uint piece,
                                 const bool whole, const bool cached)
{
    const uint total = in->vectors + (in->tail > 0 ? 1 : 0);
    const uint begin = piece * u->p->piece_vectors, end = min(begin + u->p->piece_vectors, total);
    const bool from_statistics = (u->p->flags & FLAG_FROM_STATISTICS) != 0;
    const bool of_logits = (u->p->outputs & (OUTPUT_LSE | OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX |
                                             OUTPUT_ARGMAX | OUTPUT_ENTROPY)) != 0;
    if (!from_statistics && (of_logits || t->counts)) {
        return sum_own(in, t->has_class ? t->class_index : NO_CLASS, begin, end, whole, cached, u->cache);
    }
#if SUMS_WEIGHT
    if (from_statistics) return sum_own_weights(in, begin, end);
#endif
    return empty_sums();
}

static inline row_sums sum_piece_below_top(const run *u, const row_input *in, const real maximum,
                                           const uint piece)
{
    const uint total = in->vectors + (in->tail > 0 ? 1 : 0);
    const uint begin = piece * u->p->piece_vectors, end = min(begin + u->p->piece_vectors, total);
    return sum_own_below_top(in, maximum, begin, end);
}

/* Of all pieces; what the sums say goes into j as well. */
static inline row_result finish_row(const run *u, const row_target *t, judgement *j, row_sums *s,
                                    const ulong row)
{
    if ((u->p->flags & FLAG_FROM_STATISTICS) && t->counts) {
        s->maximum = u->statistics[u->p->offset.statistics + 2 * row];
        s->others.high = u->statistics[u->p->offset.statistics + 2 * row + 1] * (1 / STATISTICS_FACTOR);
    }
#if HAS_DENSE
    if (SUMS_WEIGHT) j->dense_sum = long_value(s->dense_weight);
    j->dense_nll = long_value(s->dense_nll);
#endif
    const exp_scale scale = exp_scale_of(s->maximum);
    const real target_exp = t->has_class ? exp_lane(j->z, scale, true) : REAL(0.0);
    const bool has_nan = s->nan_at != NO_CLASS || j->z != j->z;
    return finish_sums(s->maximum, long_value(s->others), target_exp, has_nan);
}

/* A second pass is needed where log d must have its full precision: a confident row's comes from the others. */
static inline uint count_passes(const run *u)
{
    return NEEDS_LOG_D && !(u->p->flags & FLAG_FROM_STATISTICS) ? 2 : 1;
}

/* The results that a row has one of. */
static inline void write_row(const run *u, const row_input *in, const row_target *t, const judgement *j,
                             const row_result *r, const row_sums *s, const ulong row)
{
    const clxent_parameters *p = u->p;
    const uint outputs = p->outputs;
    uint best = s->best;
    if (s->nan_at != NO_CLASS) best = s->nan_at;
    if (t->has_class && j->z != j->z) best = min(t->class_index, s->nan_at);
    if (TARGETS != TARGET_NONE && (outputs & (OUTPUT_LOSSES | OUTPUT_LOSS)) != 0) {
        __global real *losses = (outputs & OUTPUT_LOSSES)
                                    ? u->losses + p->offset.losses
                                    : (__global real *)(u->workspace + p->row_losses_at);
        losses[row] = loss_of(r, j, in->o.z_loss);
    }
    if (outputs & OUTPUT_LSE) u->lse[p->offset.lse + row] = r->lse;
    if (outputs & OUTPUT_ARGMAX) u->argmax[p->offset.argmax + row] = best;
    if (outputs & OUTPUT_CORRECT) u->workspace[p->correct_at + row] = t->has_class && best == t->class_index;
#if HAS_ENTROPY
    if (outputs & OUTPUT_ENTROPY) {
        u->entropy[p->offset.entropy + row] = entropy_of(r, j, long_value(s->entropy));
    }
#endif
    if ((outputs & OUTPUT_STATISTICS) && !(p->flags & FLAG_FROM_STATISTICS)) {
        u->statistics[p->offset.statistics + 2 * row] = t->counts ? r->maximum : REAL(0.0);
        u->statistics[p->offset.statistics + 2 * row + 1] =
            t->counts ? r->others * STATISTICS_FACTOR : REAL(0.0);
    }
}

/* The classes [begin, end) of the results that a row has one of for each class. saved_lse: as saved statistics
 * give it. fits: whether rows of this plan are cached, cached: whether this one is. */
INLINE void emit_row(const run *u, const row_input *in, const row_target *t, const judgement *j,
                     const row_result *r, const real saved_lse, const ulong row, const uint begin,
                     const uint end, const bool fits, const bool cached)
{
    const clxent_parameters *p = u->p;
    const bool streaming = (p->flags & FLAG_NONTEMPORAL) != 0;
    const bool folds = IN_REGISTERS || !fits;
    const ulong at = row_start(p, row, p->probabilities_row_stride);
    if (WANTS(p, OUTPUT_SOFTMAX)) {
        const emission g = { OUTPUT_SOFTMAX, !r->valid, REAL_NAN, 1 / r->d, folds, 0, NO_CLASS, 0 };
        emit(in, r, &g, u->softmax + p->offset.softmax + at, u->gradient, p->probabilities_row_stride, begin,
             end, cached, streaming, u->cache);
    }
    if (WANTS(p, OUTPUT_LOG_SOFTMAX)) {
        const emission g = { OUTPUT_LOG_SOFTMAX, !r->valid, REAL_NAN, 0, false, 0, NO_CLASS, 0 };
        emit(in, r, &g, u->log_softmax + p->offset.log_softmax + at, u->gradient, p->probabilities_row_stride,
             begin, end, IN_REGISTERS && cached, streaming, u->cache);
    }
    if (WANTS(p, OUTPUT_GRADIENT)) {
        __global gradient_storage *gradient =
            u->gradient + p->offset.gradient + row_start(p, row, p->gradient_row_stride);
        const real up = get_upstream(p, u->upstream, row);
        const real outer = j->weight * up / u->d * in->o.logit_scale;
        const bool no_rows = divides_by_own_d(p) && u->d == 0;
        const gradient_factors f = gradient_of(r, j, in->o.z_loss, saved_lse, outer, no_rows);
        if (f.filled) {
            const emission g = { OUTPUT_GRADIENT, true, f.fill, 0, false, 0, NO_CLASS, 0 };
            if (!ACCUMULATE || f.fill != 0) {
                emit(in, r, &g, u->softmax, gradient, p->gradient_row_stride, begin, end, false, streaming,
                     u->cache);
            }
        } else {
            const real factor = HAS_ONE_FACTOR ? f.factor * f.outer : f.factor;
            const emission g = { OUTPUT_GRADIENT,
                                 false,
                                 0,
                                 factor,
                                 HAS_ONE_FACTOR && folds && fabs(factor) < REAL_INFINITY,
                                 f.outer,
                                 t->has_class ? t->class_index : NO_CLASS,
                                 f.target };
            emit(in, r, &g, u->softmax, gradient, p->gradient_row_stride, begin, end, cached, streaming,
                 u->cache);
        }
    }
}

#if KERNELS & 1
/* Grid: a work-group for rows_per_group rows. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_cross_entropy(ARGUMENTS)
{
    __local row_sums scratch[WG_SIZE];
    const run u = MAKE_RUN;
    row_input in = make_input(&p, class_weights);
    const bool two_dimensional = WANTS(&p, OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX | OUTPUT_GRADIENT);
    const bool fits = p.classes + VEC - 1 <= p.cache_elements;
    in.shares_lines = two_dimensional && !fits && p.classes * sizeof(storage) <= MOST_KEPT_BYTES;
    const bool cached = two_dimensional && !(p.flags & FLAG_FROM_STATISTICS) && fits;
    const uint padded = (p.classes + VEC - 1) / VEC * VEC;
    if (NEEDS_X && cached && WANTS(&p, OUTPUT_GRADIENT) && p.cache_elements / 2 >= padded) {
        in.slope_at = padded;
    }
    const uint pieces = p.pieces, steps = pieces * count_passes(&u);

    const ulong first = get_group_id(0) * (ulong)p.rows_per_group;
    const ulong last = min(first + p.rows_per_group, p.rows);
    for (ulong row = first; row < last; row++) {
        const row_target t = open_row(&u, &in, row);
        judgement j = judge(&in, &t, target_logit(&in, &t));
        row_sums all = empty_sums();
        row_sums below_top = empty_sums();
        row_result r;
        r.confident = 0;
        /* One merge_group() whatever the row needs: compilers for CPUs must see that all work-items of a group
         * meet the same barriers, and some copy everything behind one that stands under a condition. */
        for (uint step = 0; step < steps; step++) {
            row_sums own = empty_sums();
            if (step < pieces) own = sum_piece(&u, &in, &t, step, fits, cached);
            if (step >= pieces && r.confident) {
                own = sum_piece_below_top(&u, &in, r.maximum, step - pieces);
            }
            const row_sums sum = merge_group(own, scratch);
            if (step < pieces) {
                all = step == 0 ? sum : merge(all, sum);
            } else {
                below_top = step == pieces ? sum : merge(below_top, sum);
            }
            if (step + 1 == pieces) r = finish_row(&u, &t, &j, &all, row);
        }
        const real saved_lse = r.lse;
        if (steps > pieces) keep_top_apart(&r, long_value(below_top.others));
        if (get_local_id(0) == 0) write_row(&u, &in, &t, &j, &r, &all, row);

        /* All reads of the row by others, and all writes to the cache, come before any write below. */
        if (WG_SIZE > 1) barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
        if (two_dimensional) {
            /* a row that was not scanned has left nothing in the cache, and has constant results */
            emit_row(&u, &in, &t, &j, &r, saved_lse, row, 0, p.classes, fits, cached);
        }
        /* The next row's scan writes the cache that others may still read. */
        if (WG_SIZE > 1) barrier(CLK_LOCAL_MEM_FENCE);
    }
}
#endif

#if KERNELS & 2
/* ---- Rows split over groups ---------------------------------------------------------------- */

/* In the workspace, RECORD_BYTES each: of every piece its sums, of every row all that its pieces need to know. */
typedef struct {
    row_sums all;
    row_sums below_top;
    real target_logit; /* before a gradient in place overwrites it */
} row_record;

static inline __global row_sums *piece_record(const clxent_parameters *p, __global uchar *workspace,
                                              const ulong row, const uint piece)
{
    return (__global row_sums *)(workspace + p->pieces_at + (row * p->pieces + piece) * RECORD_BYTES);
}

static inline __global row_record *record_of_row(const clxent_parameters *p, __global uchar *workspace,
                                                 const ulong row)
{
    return (__global row_record *)(workspace + p->records_at + row * RECORD_BYTES);
}

/* Grid: a work-group for each piece of each row. With FLAG_SECOND_PASS the sums below the top. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_scan_pieces(ARGUMENTS)
{
    __local row_sums scratch[WG_SIZE];
    const run u = MAKE_RUN;
    row_input in = make_input(&p, class_weights);
    const ulong row = get_group_id(0) / p.pieces;
    const uint piece = (uint)(get_group_id(0) % p.pieces);
    const row_target t = open_row(&u, &in, row);
    row_sums own = empty_sums();
    if (p.flags & FLAG_SECOND_PASS) {
        row_record record = *record_of_row(&p, workspace, row);
        judgement j = judge(&in, &t, record.target_logit);
        const row_result r = finish_row(&u, &t, &j, &record.all, row);
        if (r.confident) own = sum_piece_below_top(&u, &in, r.maximum, piece);
    } else {
        own = sum_piece(&u, &in, &t, piece, false, false);
    }
    const row_sums sum = merge_group(own, scratch);
    if (get_local_id(0) == 0) *piece_record(&p, workspace, row, piece) = sum;
}

/* Grid: a work-group of one work-item for each row; after each pass of clxent_scan_pieces. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void clxent_merge_pieces(ARGUMENTS)
{
    const run u = MAKE_RUN;
    row_input in = make_input(&p, class_weights);
    const ulong row = get_group_id(0);
    const row_target t = open_row(&u, &in, row);
    __global row_record *record = record_of_row(&p, workspace, row);
    row_sums all = empty_sums();
    for (uint piece = 0; piece < p.pieces; piece++) {
        const row_sums sum = *piece_record(&p, workspace, row, piece);
        all = piece == 0 ? sum : merge(all, sum);
    }
    if (p.flags & FLAG_SECOND_PASS) {
        record->below_top = all;
    } else {
        record->all = all;
        record->target_logit = target_logit(&in, &t);
    }
}

/* Grid: as clxent_scan_pieces. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_emit_pieces(ARGUMENTS)
{
    const run u = MAKE_RUN;
    row_input in = make_input(&p, class_weights);
    const ulong row = get_group_id(0) / p.pieces;
    const uint piece = (uint)(get_group_id(0) % p.pieces);
    const row_target t = open_row(&u, &in, row);
    row_record record = *record_of_row(&p, workspace, row);
    judgement j = judge(&in, &t, record.target_logit);
    row_result r = finish_row(&u, &t, &j, &record.all, row);
    const real saved_lse = r.lse;
    if (count_passes(&u) > 1) keep_top_apart(&r, long_value(record.below_top.others));
    if (piece == 0 && get_local_id(0) == 0) write_row(&u, &in, &t, &j, &r, &record.all, row);
    const uint begin = piece * p.piece_vectors * VEC, end = min(begin + p.piece_vectors * VEC, p.classes);
    emit_row(&u, &in, &t, &j, &r, saved_lse, row, begin, end, false, false);
}
#endif
