/* SPDX-License-Identifier: MIT
 *
 * map_row.cl - a row over a work-group, vectors along its classes: how its pieces are merged, and which work-item writes
 * which results. Stands behind row_scan.cl.
 *
 * A row is taken in pieces of piece_vectors vectors, each read once block by block, and the pieces' sums are merged in
 * order. Where a [rows, classes] result is asked for, the row is read a second time, unless its exponentials were kept in
 * local memory.
 */
/* Where the maximum was met first: a range of this work-item's vectors. */
typedef struct {
    uint first, last;
} vector_range;

static inline row_level level_of(const acc_t maximum)
{
    return (row_level){ exp_scale_of(maximum), distance_base(maximum), true };
}

/* This work-item's part of the vectors [begin, end), block by block. */
INLINE_ON_GPU void scan_own(row_state *s, const row_input *in, const row_scan *scan, const uint begin,
                            const uint end, vector_range *range)
{
    const uint block = BLOCK * WG_SIZE;
    const uint step = scan->whole && !IN_REGISTERS ? end - begin : block;
    *s = empty_state();
    for (uint first = begin; first < end; first += step) {
        const uint last = min(first + step, end);
        vec z[REGISTERS];
        const vec m = IN_REGISTERS ? load_block(in, scan, first, last, z) : maximum_of(in, scan, first, last);
        const acc_t maximum = FOLD(m, acc_max);
        if (maximum > s->maximum) {
            raise_maximum(s, maximum);
            *range = (vector_range){ first, last };
        }
        row_level level = level_of(s->maximum);
        for (uint from = first; from < last; from += block) {
            const uint to = min(from + block, last);
            block_sums b = empty_block();
            if (IN_REGISTERS || !SUMS_PLAINLY || fabs(s->maximum) > MAX_NEAR) {
                sum_block(&b, in, scan, &level, from, to, z);
            } else {
                level.far = false;
                sum_block(&b, in, scan, &level, from, to, z);
            }
            add_block(s, &b);
        }
    }
}

/* Everything that is summed over this work-item's part of the vectors [begin, end). */
PART void sum_own(row_state *s, const row_input *in, const row_scan *wanted, const uint begin, const uint end)
{
    vector_range range = { begin, end }; /* all -inf: no block ever raised the maximum */
    row_scan scan = *wanted;
    scan.keeps_z =
        HAS_SOFTCAP && !IN_REGISTERS && (scan.whole || in->local_elements >= BLOCK * WG_SIZE * VEC);
    scan_own(s, in, &scan, begin, end, &range);
    const bool has_nan = s->sum_excluding_target.high != s->sum_excluding_target.high;
    if (in->best) {
        s->top = s->maximum;
        if (HAS_SOFTCAP) {
            vec m = (vec)(-ACC_INFINITY);
            for (uint v = begin + LOCAL_ID; v < end; v += WG_SIZE) {
                m = vec_max(m, softcap_vector_s(vector_x(in, v), in->o));
            }
            s->top = FOLD(m, acc_max);
            range = (vector_range){ begin, end };
        }
        s->best = find_first(in, false, s->top, range.first, range.last);
    }
    /* also true where +inf - inf made it, without a NaN among the logits */
    if (has_nan && in->nan) {
        /* of s, which is NaN too where a logit_scale of 0 meets an infinity */
        s->nan_at = find_first(in, true, 0, begin, end);
    }
}

#if SUMS_WEIGHT
/* sum a_j alone, in the order of sum_block(): the same bits. */
static inline void sum_own_weights(row_state *s, const row_input *in, const uint apart_vector,
                                   const uint begin, const uint end)
{
    for (uint from = begin; from < end; from += BLOCK * WG_SIZE) {
        const uint to = min(from + BLOCK * WG_SIZE, end), full = min(to, in->vectors);
        block_sums b = empty_block();
        for (uint v = from + LOCAL_ID; v < to; v += FLUSH_VECTORS * WG_SIZE) {
            for (uint i = 0; i < FLUSH_VECTORS && v + i * WG_SIZE < to; i += 4) {
                const uint w = v + i * WG_SIZE, last = w + 3 * WG_SIZE;
                const bool together =
                    !IN_REGISTERS && last < full && (apart_vector < w || apart_vector > last);
                terms four[4];
                for (uint k = 0; k < 4; k++) {
                    const uint u = w + k * WG_SIZE;
                    four[k] = no_terms();
                    if (u < to) four[k].weight = get_a(in, u, true);
                    if (!together) add_one(&b, &four[k]);
                }
                if (together) add_four(&b, four);
            }
            flush(&b, IN_REGISTERS);
        }
        s->dense_weight = fold(s->dense_weight, b.weight);
    }
}
#endif

/* Streaming stores need their elements moved to where vectors are aligned, see run_epilogue(). */
#if HAS_NONTEMPORAL && WG_SIZE == 1
#    define CAN_STREAM 1
#else
#    define CAN_STREAM 0
#endif

/* ---- The results of a row ------------------------------------------------------------------ */

/* How a row is written. */
typedef struct {
    bool in_local;  /* its exponentials, or in registers' shape its logits, are in local_rows */
    bool folds;     /* the factor, a finite one, goes into the exponential: where those are never kept */
    bool streaming; /* large results bypass the cache where they can */
    const __local acc_t *local_rows;
} row_source;

/* has_slope: kept_slope is as local_rows has it, which with exponentials from there leaves no need of x. */
ALWAYS_INLINE vec epilogue_value(const row_input *in, const row_result *r, const epilogue *g,
                                 const row_source *from, const vec x, const vec kept_e, const bool has_slope,
                                 const vec kept_slope, const uint at, const uint n)
{
    vec slope = (vec)(1);
    vec z = x;
    vec a = (vec)(0);
    if (has_slope) {
        slope = kept_slope;
    } else {
        z = softcap_vector_z(x, in->o, &slope);
    }
    if (from->folds && !IS_KIND(g, OUTPUT_LOG_SOFTMAX)) return exp_vector_times(z, r->scale, true, g->factor);
    const vec e = from->in_local && !IN_REGISTERS ? kept_e : exp_vector(z, r->scale, true);
    if (HAS_DENSE && IS_KIND(g, OUTPUT_GRADIENT)) a = dense_vector(in, at, n);
    return result_of(r, g, z, slope, e, a);
}

/* n elements from `at`, 1 <= n <= VEC, the target's class among them or not. */
static inline void epilogue_part(const row_input *in, const row_result *r, const epilogue *g,
                                 const row_source *from, const destination *to, const uint at, const uint n)
{
    const row_source own = { false, from->folds, false, from->local_rows };
    const vec x = load_partial(in->x + at, n, -ACC_INFINITY);
    vec value = epilogue_value(in, r, g, &own, x, x, false, x, at, n);
    const integer hit = g->class_index - (integer)at;
    if (hit >= 0 && hit < (integer)n) value = IOTA == (ivec)(hit) ? (vec)(g->target) : value;
    put(to, at, with_old(to, at, value, n), n);
}

/* What belongs into a whole vector; with_target: the target's class may be in it. */
ALWAYS_INLINE vec value_of_vector(const row_input *in, const row_result *r, const epilogue *g,
                                  const row_source *from, const destination *to, const uint at,
                                  const bool with_target)
{
    const vec kept = from->in_local ? LOAD(from->local_rows + at) : (vec)(0);
    const bool has_slope = from->in_local && HAS_SOFTCAP && IS_KIND(g, OUTPUT_GRADIENT) && in->slope_at > 0;
    const vec slope = has_slope ? LOAD(from->local_rows + in->slope_at + at) : kept;
    const bool has_x = from->in_local && (!NEEDS_X || has_slope || IS_KIND(g, OUTPUT_SOFTMAX));
    const vec x = !has_x ? LOAD_VECTOR(in->x + at, to->aligned) : kept;
    vec value = epilogue_value(in, r, g, from, x, kept, has_slope, slope, at, VEC);
    if (with_target) value = IOTA == (ivec)(g->class_index - (integer)at) ? (vec)(g->target) : value;
    return with_old(to, at, value, VEC);
}

/* The same, of a vector that the target's class may be in. */
PART vec value_with_target(const row_input *in, const row_result *r, const epilogue *g,
                           const row_source *from, const destination *to, const uint at)
{
    destination anywhere = *to;
    anywhere.aligned = false;
    return value_of_vector(in, r, g, from, &anywhere, at, true);
}

static inline void put_anywhere(const destination *to, const uint at, const vec value)
{
    destination anywhere = *to;
    anywhere.aligned = false;
    put(&anywhere, at, value, VEC);
}

/* epilogue_loop() for a row that is filled. Each element is written by the work-item that epilogue_loop() gives it to, as
 * that one has read the logit in its place for the results before. */
static inline void fill_loop(const epilogue *g, const destination *to, const uint begin, const uint head,
                             const uint end)
{
    const uint first = begin + head, lid = LOCAL_ID;
    const uint vectors = (end - first) / VEC;
    for (uint c = begin; c < first && lid == 0; c++) put_one(to, c, g->fill);
    for (uint v = lid; v < vectors; v += WG_SIZE) put(to, first + v * VEC, (vec)(g->fill), VEC);
    for (uint c = first + vectors * VEC; c < end && lid == vectors % WG_SIZE; c++) put_one(to, c, g->fill);
}

/* The classes [begin, end), vectors beginning at `begin` + head. The elements before those and behind them are
 * vectors too that overlap their neighbours, where one work-item does all: they are computed first, before
 * anything is written in place, and written last. */
ALWAYS_INLINE void epilogue_loop(const row_input *in, const row_result *r, const epilogue *g,
                                 const row_source *from, const destination *to, const uint begin,
                                 const uint head, const uint end)
{
    const uint first = begin + head;
    const uint vectors = (end - first) / VEC;
    const uint tail = (end - first) % VEC;
    const bool overlaps = WG_SIZE == 1 && end - begin >= VEC;
    const uint class_index = (uint)g->class_index;
    const uint special =
        class_index != NO_CLASS && class_index >= first ? (class_index - first) / VEC : NO_CLASS;
    uint v = LOCAL_ID;
    uint stop = special >= v && special < vectors ? special : vectors;
    vec head_value = (vec)(0), tail_value = (vec)(0);
    if (overlaps) {
        if (head > 0) head_value = value_with_target(in, r, g, from, to, begin);
        if (tail > 0) tail_value = value_with_target(in, r, g, from, to, end - VEC);
    } else if (head > 0 && v == 0) {
        epilogue_part(in, r, g, from, to, begin, head);
    }
    for (;;) {
        for (; v < stop; v += WG_SIZE) {
            const uint at = first + v * VEC;
            put(to, at, value_of_vector(in, r, g, from, to, at, false), VEC);
            if (!from->in_local && v % 4 == 0) prefetch_ahead(in, v, true);
        }
        if (stop == vectors) break;
        if (v == special) {
            const uint at = first + v * VEC;
            put(to, at, value_with_target(in, r, g, from, to, at), VEC);
            v += WG_SIZE;
        }
        stop = vectors;
    }
    if (overlaps) {
        if (head > 0) put_anywhere(to, begin, head_value);
        if (tail > 0) put_anywhere(to, end - VEC, tail_value);
    } else if (tail > 0 && v == vectors) {
        epilogue_part(in, r, g, from, to, first + v * VEC, tail);
    }
}

/* Rows of fewer classes than this are streamed only where all of them are aligned. */
#define LONG_ROW 4096u

/* Writes the classes [begin, end) of one row of one result, `stride` elements from the next. Streaming stores need
 * aligned vectors: the elements before the first aligned one go apart, which moves no bit, as elements do not depend on
 * each other here. But a line that is written both ways costs several memory accesses, and every row that is not aligned
 * has two (1,000 classes on PoCL: 1.99 of a copy, all plain 1.18). Only for one work-item alone: what another has read may
 * have been overwritten by then. */
INLINE_ON_GPU void run_epilogue(const row_input *in, const row_result *r, const epilogue *g,
                                const row_source *from, const destination *at, const ulong stride,
                                const uint begin, const uint end)
{
    destination to = *at;
    const size_t size = BYTES_OF(&to), address = address_of(&to, begin);
    const uint to_aligned = (uint)((0 - address) & (VEC * size - 1)) / (uint)size;
    const bool streams =
        CAN_STREAM && from->streaming && address % size == 0 &&
        ((to_aligned == 0 && stride % VEC == 0) || (in->classes >= LONG_ROW && to_aligned < end - begin));
    const uint head = streams ? to_aligned : 0;
    to.aligned =
        streams || (TELLS_ALIGNED && address % (VEC * size) == 0 && IS_ALIGNED(in->x + begin, storage));
    if (g->filled) {
        fill_loop(g, &to, begin, head, end);
        return;
    }
#if TELLS_ALIGNED
    /* In one loop for both clang 15 makes single elements of all loads. */
    if (to.aligned) {
        to.aligned = true; /* which the compiler knows then */
        epilogue_loop(in, r, g, from, &to, begin, 0, end);
        return;
    }
    to.aligned = false;
    epilogue_loop(in, r, g, from, &to, begin, 0, end);
#else
    epilogue_loop(in, r, g, from, &to, begin, head, end);
#endif
}

/* ---- The mapping ---------------------------------------------------------------------------- */

/* A unit of work is a row. fused.cl says what each of these is for. */
typedef row_input unit_input;
#define COLUMNS 1
typedef row_state unit_scratch;
#define UNIT_SCRATCH WG_SIZE
#define MEET_UNIT(in, unit) (void)0
/* All reads of the row by others, and all writes to local_rows, come before any write of a result; and all reads of the
 * local_rows before the next row's writes. */
#define MEET_ROWS                                                             \
    do {                                                                      \
        if (WG_SIZE > 1) barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE); \
    } while (0)

static inline ulong count_units(const clxent_parameters *p) { return p->rows; }

static inline uint units_of_group(const clxent_parameters *p) { return p->rows_per_group; }

static inline unit_input make_input(const run *u, const bool whole_rows)
{
    const clxent_parameters *p = u->p;
    const bool fits = whole_rows && p->classes + VEC - 1 <= p->local_elements;
    const uint padded = (p->classes + VEC - 1) / VEC * VEC;
    row_input in;
    in.x = 0;
    in.row = 0;
    in.n = 1;
    in.classes = p->classes;
    in.vectors = p->classes / VEC;
    in.tail = p->classes % VEC;
    in.local_elements = p->local_elements;
    in.ahead = AHEAD;
    in.fits = fits;
    in.in_local = fits && WANTS_WIDE(p) && !(p->flags & FLAG_FROM_STATISTICS);
    in.shares_lines = WANTS_WIDE(p) && whole_rows && !fits && p->classes * sizeof(storage) <= MOST_KEPT_BYTES;
    in.slope_at =
        NEEDS_X && in.in_local && WANTS(p, OUTPUT_GRADIENT) && p->local_elements / 2 >= padded ? padded : 0;
    in.q = 0;
    in.class_weights = u->class_weights;
    in.best = (p->outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    in.nan = in.best || (p->outputs & OUTPUT_LSE) != 0;
    in.o = u->o;
    return in;
}

/* A row that has no probabilities because targets are shifted is given the last row's, of which nothing reaches its
 * results: behind those there may be no memory. */
static inline void open_unit(const run *u, unit_input *in, const ulong row, __local row_state *scratch)
{
    const clxent_parameters *p = u->p;
    (void)scratch;
    const ulong q_row = min(row + p->shift, p->rows - 1);
    const ulong q_at = p->offset.targets + row_start(p, q_row, p->target_row_stride);
    in->row = row;
    in->x = u->logits + p->offset.logits + row_start(p, row, p->row_stride);
    if (TARGETS == TARGET_PROBABILITIES_F32) in->q = (__global const float *)u->targets + q_at;
    if (TARGETS == TARGET_PROBABILITIES_LOGITS) in->q = (__global const storage *)u->targets + q_at;
}

static inline bool open_rows(const run *u, unit_input *in, const ulong row, const uint w)
{
    (void)u;
    (void)in;
    (void)row;
    return w == 0;
}

static inline lane target_logits(const unit_input *in, const lane_targets *t)
{
    return t->has_class ? load_one(in->x + t->class_index) : -ACC_INFINITY;
}

/* Vectors of a piece. */
static inline vector_range vectors_of(const run *u, const row_input *in, const uint piece)
{
    const uint total = in->vectors + (in->tail > 0 ? 1 : 0), begin = piece * u->p->piece_vectors;
    return (vector_range){ begin, min(begin + u->p->piece_vectors, total) };
}

/* This work-item's sums over one piece of the row, as far as the run needs any. s: empty_state(). */
INLINE_ON_GPU void sum_piece(row_state *s, const run *u, const row_input *in, const lane_targets *t,
                             const uint piece)
{
    const vector_range of_piece = vectors_of(u, in, piece);
    const bool from_statistics = (u->p->flags & FLAG_FROM_STATISTICS) != 0;
    const bool of_logits = (u->p->outputs & (OUTPUT_LSE | OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX |
                                             OUTPUT_ARGMAX | OUTPUT_ENTROPY)) != 0;
    if (!from_statistics && (of_logits || t->counts)) {
        const row_scan scan = { (uint)t->class_index, in->fits, in->in_local, false, u->local_rows };
        sum_own(s, in, &scan, of_piece.first, of_piece.last);
    }
#if SUMS_WEIGHT
    if (from_statistics) sum_own_weights(s, in, (uint)t->class_index / VEC, of_piece.first, of_piece.last);
#endif
}

INLINE_ON_GPU void sum_piece_excluding_max(row_state *s, const run *u, const row_input *in,
                                           const acc_t maximum, const uint piece)
{
    const vector_range of_piece = vectors_of(u, in, piece);
    const row_level level = level_of(maximum);
    s->maximum = maximum;
    for (uint from = of_piece.first; from < of_piece.last; from += BLOCK * WG_SIZE) {
        const uint to = min(from + BLOCK * WG_SIZE, of_piece.last);
        s->sum_excluding_target =
            fold(s->sum_excluding_target, sum_excluding_max(in, &level, maximum, from, to));
    }
}

/* Of the row's pieces in order, and once more of a confident row's. One merge_group() whatever the row needs: compilers for
 * CPUs must see that all work-items of a group meet the same barriers, and some copy everything behind one that stands
 * under a condition. */
static inline row_result scan_rows(const run *u, const unit_input *in, const lane_targets *t, target_terms *j,
                                   row_state *all, __local row_state *scratch)
{
    const uint pieces = u->p->pieces, steps = pieces * count_passes(u);
    row_state excluding_max = empty_state();
    row_result r;
    r.confident = 0;
    *all = empty_state();
    for (uint step = 0; step < steps; step++) {
        row_state own = empty_state();
        if (step < pieces) sum_piece(&own, u, in, t, step);
        if (step >= pieces && r.confident) sum_piece_excluding_max(&own, u, in, r.maximum, step - pieces);
        const row_state sum = merge_group(own, scratch);
        if (step < pieces) {
            *all = step == 0 ? sum : merge(*all, sum);
        } else {
            excluding_max = step == pieces ? sum : merge(excluding_max, sum);
        }
        if (step + 1 == pieces) {
            if (u->p->flags & FLAG_FROM_STATISTICS) read_statistics(u, in->row, 1, all);
            r = finish(j, t, all);
        }
    }
    if (steps > pieces) keep_max_apart(&r, compensated_value(excluding_max.sum_excluding_target));
    return r;
}

/* The classes [begin, end) of the results that a row has one of for each class. */
INLINE_ON_GPU void epilogue_of_classes(const run *u, const unit_input *in, const lane_targets *t,
                                       const target_terms *j, const row_result *r, const uint begin,
                                       const uint end)
{
    const clxent_parameters *p = u->p;
    const ulong at = row_start(p, in->row, p->probabilities_row_stride);
    row_source from = { in->in_local, IN_REGISTERS || !in->fits, (p->flags & FLAG_NONTEMPORAL) != 0,
                        u->local_rows };
    if (WANTS(p, OUTPUT_SOFTMAX)) {
        const epilogue g = epilogue_of(u, OUTPUT_SOFTMAX, in->row, 1, t, j, r);
        const destination to = destination_of(u, OUTPUT_SOFTMAX, at);
        run_epilogue(in, r, &g, &from, &to, p->probabilities_row_stride, begin, end);
    }
    if (WANTS(p, OUTPUT_LOG_SOFTMAX)) {
        const epilogue g = epilogue_of(u, OUTPUT_LOG_SOFTMAX, in->row, 1, t, j, r);
        const destination to = destination_of(u, OUTPUT_LOG_SOFTMAX, at);
        from.in_local = IN_REGISTERS && in->in_local;
        run_epilogue(in, r, &g, &from, &to, p->probabilities_row_stride, begin, end);
        from.in_local = in->in_local;
    }
    if (WANTS(p, OUTPUT_GRADIENT)) {
        const epilogue g = epilogue_of(u, OUTPUT_GRADIENT, in->row, 1, t, j, r);
        const destination to =
            destination_of(u, OUTPUT_GRADIENT, row_start(p, in->row, p->gradient_row_stride));
        from.folds = HAS_ONE_FACTOR && from.folds && fabs(g.factor) < ACC_INFINITY;
        if (!ACCUMULATE || !g.filled || g.fill != 0)
            run_epilogue(in, r, &g, &from, &to, p->gradient_row_stride, begin, end);
    }
}

static inline void epilogue_of_unit(const run *u, unit_input *in, const ulong row,
                                    const lane_targets t[COLUMNS], const target_terms j[COLUMNS],
                                    const row_result r[COLUMNS], __local row_state *scratch)
{
    (void)row;
    (void)scratch;
    /* a row that was not scanned has left nothing in local_rows, and has constant results */
    if (WANTS_WIDE(u->p)) epilogue_of_classes(u, in, t, j, r, 0, in->classes);
}
