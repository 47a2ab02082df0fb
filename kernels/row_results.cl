/* SPDX-License-Identifier: MIT
 *
 * row_results.cl - how one work-item sums a row block by block, and writes its results. Stands behind row_scan.cl in front
 * of map_row.cl; group_rows.cl has the ways of a group.
 */
/* What is kept of a row is at block_scale_of() from the beginning, and its maximum need not be known first. Where blocks
 * differ after all, or are far, results are exponentiated anew. */
#define NO_SCALE ACC_INFINITY

/* Notes at what scale exponentials were kept. */
static inline void note_scale(row_input *in, const exp_scale scale, const acc_t maximum)
{
    if (maximum == -ACC_INFINITY) return;
    in->in_local =
        in->in_local && fabs(maximum) <= MAX_NEAR && (in->kept_q == NO_SCALE || in->kept_q == scale.q);
    in->kept_q = scale.q;
}

/* Vectors whose sums are folded together, at most: compensated_add_vector() is for few terms. */
#define MOST_FOLDED (64 * BLOCK)

/* The sums of the vectors [begin, end), block by block, and folded where the maximum rises: each block's folded took 1.04 of
 * the time (loss, 32,768 classes, Zen 3). range: where the maximum was met first. */
static inline void scan_own(row_state *s, row_input *in, const row_scan *scan, const uint begin,
                            const uint end, vector_range *range)
{
    row_level level = { block_scale_of(-ACC_INFINITY), distance_base(-ACC_INFINITY), true };
    block_sums b = empty_block();
    uint unfolded = begin;
    *s = empty_state();
    for (uint from = begin;; from += BLOCK) {
        const uint to = min(from + BLOCK, end);
        acc_t maximum = -ACC_INFINITY;
        if (from < end) {
            const vec m = maximum_of(in, scan, from, to);
            maximum = FOLD(m, acc_max);
        }
        const bool rises = maximum > s->maximum;
        if ((rises && from > begin) || from >= end || from - unfolded >= MOST_FOLDED) {
            scale_block(&b, exp_rescale(level.scale, exp_scale_of(s->maximum)));
            add_block(s, &b);
            b = empty_block();
            unfolded = from;
        }
        if (from >= end) break;
        if (rises) {
            raise_maximum(s, maximum);
            *range = (vector_range){ from, to };
            level.scale = block_scale_of(maximum);
            level.base = distance_base(maximum);
        }
        /* a block that is all -inf is near: its exponentials, 0, are kept */
        level.far = !SUMS_PLAINLY || (fabs(s->maximum) > MAX_NEAR && s->maximum > -ACC_INFINITY);
        sum_block(&b, in, scan, &level, from, to);
        if (scan->in_local) note_scale(in, level.scale, s->maximum);
    }
}

/* Everything that is summed over the vectors of a part of the row, but for the target's class. */
PART void sum_part(row_state *s, const run *u, row_input *in, const integer target, const vector_range part,
                   __local row_state *scratch)
{
    vector_range range = part; /* all -inf: no block ever raised the maximum */
    (void)scratch;
    row_scan scan = { (uint)target, WIDE_OUTPUTS != 0 && in->in_local, false, u->local_rows,
                      ODD_OF(in->classes) };
    scan.keeps_z = HAS_SOFTCAP && (scan.in_local || in->local_elements >= BLOCK * VEC);
    scan_own(s, in, &scan, part.first, part.last, &range);
    const bool sum_is_nan = s->sum_excluding_target.high != s->sum_excluding_target.high;
    if (in->best) {
        s->top = s->maximum;
        if (HAS_SOFTCAP) {
            vec m = (vec)(-ACC_INFINITY);
            for (uint v = part.first; v < part.last; v++) {
                m = vec_max(m, softcap_vector_s(vector_x(in, v), in->o));
            }
            s->top = FOLD(m, acc_max);
            range = part;
        }
        s->best = find_first(in, false, s->top, range.first, range.last);
    }
    /* also true where +inf - inf made it, without a NaN among the logits */
    if (sum_is_nan && in->nan) {
        /* of s, which is NaN too where a logit_scale of 0 meets an infinity */
        s->nan_at = find_first(in, true, 0, part.first, part.last);
    }
}

/* The exponentials once more, without the one class that is the maximum: of confident rows, where it is one. */
static inline void sum_part_excluding_max(row_state *s, const row_input *in, const acc_t maximum,
                                          const vector_range part)
{
    const row_level level = { exp_scale_of(maximum), distance_base(maximum), true };
    s->maximum = maximum;
    for (uint from = part.first; from < part.last; from += BLOCK) {
        const uint to = min(from + BLOCK, part.last);
        s->sum_excluding_target =
            fold(s->sum_excluding_target, sum_excluding_max(in, &level, maximum, from, to));
    }
}

/* ---- The results of a row ------------------------------------------------------------------ */

/* Streaming stores need their elements moved to where vectors are aligned, see write_result(). */
#if HAS_NONTEMPORAL
#    define CAN_STREAM 1
#else
#    define CAN_STREAM 0
#endif

/* How a row is written. */
typedef struct {
    bool in_local;   /* its exponentials are in local_rows */
    bool streaming;  /* large results bypass the cache where they can */
    bool is_scaled;  /* values are exponentials times a finite factor alone: none is NaN */
    bool folds;      /* is_scaled, and the factor goes into the exponential: rows too long to be kept */
    exp_scale scale; /* of exponentials, kept or not */
    acc_t rescale;   /* what takes them to the row's scale; 1 where the factor does */
    const __local acc_t *local_rows;
    uint odd_at; /* see keep_in_order() */
} row_source;

/* The exponentials of the vector at class `at`. */
ALWAYS_INLINE vec kept_vector(const row_source *from, const uint at)
{
#if DEINTERLEAVES
    vec e;
    e.even = *(const __local half_vec *)(from->local_rows + KEPT_AT(from->odd_at, at, at % 2 != 0));
    e.odd = *(const __local half_vec *)(from->local_rows + KEPT_AT(from->odd_at, at, at % 2 == 0));
    return e;
#else
    return LOAD(from->local_rows + at);
#endif
}

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
    if (from->folds) return exp_vector_times(z, from->scale, true, g->factor);
    vec e = from->in_local ? kept_e : exp_vector(z, from->scale, true);
    if (!HAS_PLAIN_FACTOR(g)) e = e * (vec)(from->rescale);
    if (HAS_DENSE && IS_KIND(g, OUTPUT_GRADIENT)) a = dense_vector(in, at, n);
    return result_of(r, g, z, slope, e, a);
}

/* n elements from `at`, 1 <= n <= VEC, the target's class among them or not. */
static inline void epilogue_part(const row_input *in, const row_result *r, const epilogue *g,
                                 const row_source *from, const destination *to, const uint at, const uint n)
{
    row_source own = *from;
    own.in_local = false;
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
    const vec kept = from->in_local ? kept_vector(from, at) : (vec)(0);
    const bool has_slope = from->in_local && KEEPS_SLOPE && IS_KIND(g, OUTPUT_GRADIENT) && in->slope_at > 0;
    const vec slope = has_slope ? LOAD(from->local_rows + in->slope_at + at) : kept;
    const bool has_x = from->in_local && (!NEEDS_X || has_slope || IS_KIND(g, OUTPUT_SOFTMAX));
    const vec x = !has_x ? load_vector(in->x + at) : kept;
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

static inline void put_with_target(const row_input *in, const row_result *r, const epilogue *g,
                                   const row_source *from, const destination *to, const uint at)
{
    put(to, at, value_with_target(in, r, g, from, to, at), VEC);
}

static inline void put_anywhere(const destination *to, const uint at, const vec value)
{
    destination anywhere = *to;
    anywhere.aligned = false;
    put(&anywhere, at, value, VEC);
}

/* epilogue_loop() for a row that is filled. */
static inline void fill_loop(const epilogue *g, const destination *to, const uint begin, const uint head,
                             const uint end)
{
    uint at = begin;
    for (; at < begin + head; at++) put_one(to, at, g->fill);
    for (; at + VEC <= end; at += VEC) put(to, at, (vec)(g->fill), VEC);
    for (; at < end; at++) put_one(to, at, g->fill);
}

/* The classes [begin, end), whole turns of epilogue_loop(), of a row that is_scaled and kept, without a look at NaN (four vectors at
 * a time, bf16 of 32,768 classes, Zen 4 with AVX-512: 0.92 of the time). */
ALWAYS_INLINE void kept_turns(const epilogue *g, const row_source *from, const destination *to,
                              const uint begin, const uint end, const bool aligned)
{
    uint at = begin;
#if DEINTERLEAVES
    const __local acc_t *first = from->local_rows + KEPT_AT(from->odd_at, begin, begin % 2 != 0),
                        *second = from->local_rows + KEPT_AT(from->odd_at, begin, begin % 2 == 0);
#    pragma unroll 2
    for (; at < end; at += 2 * VEC, first += VEC, second += VEC) {
        const vec_pair e = { LOAD(first) * (vec)(g->factor), LOAD(second) * (vec)(g->factor) };
        put_pair(to, at, e, aligned);
    }
#else
#    pragma unroll 4
    for (; at < end; at += VEC) put_number(to, at, LOAD(from->local_rows + at) * (vec)(g->factor), aligned);
#endif
}

/* factor * exp(z) of the vector x. folds: see row_source. */
ALWAYS_INLINE vec scaled_value(const row_input *in, const epilogue *g, const row_source *from, const vec x,
                               const bool folds)
{
    vec slope;
    const vec z = softcap_vector_z(x, in->o, &slope);
    if (folds) return exp_vector_times(z, from->scale, true, g->factor);
    return exp_vector(z, from->scale, true) * (vec)(g->factor);
}

/* The same of a row that is_scaled and was not kept. */
ALWAYS_INLINE void scaled_turns(const row_input *in, const epilogue *g, const row_source *from,
                                const destination *to, const uint begin, const uint end, const bool folds,
                                const bool aligned)
{
    for (uint at = begin; at < end; at += 2 * VEC) {
        const vec_pair x = load_pair(in->x + at);
        const vec_pair e = { scaled_value(in, g, from, x.first, folds),
                             scaled_value(in, g, from, x.second, folds) };
        prefetch_ahead(in, at / VEC, 2);
        put_pair(to, at, e, aligned);
    }
}

/* Rows with a plain factor that are not is_scaled have a grad_output beyond SMALLEST_FACTOR and its inverse, maybe all rows of a
 * run. They share the slow code. */
#define IS_MOSTLY_SCALED(g) (HAS_PLAIN_FACTOR(g) && !(ACCUMULATE && IS_KIND(g, OUTPUT_GRADIENT)))

/* The classes [begin, end), vectors beginning at `begin` + head. The elements before those and behind them are
 * vectors too that overlap their neighbours: they are computed first, before anything is written in place, and written
 * last. */
ALWAYS_INLINE void epilogue_loop(const row_input *in, const row_result *r, const epilogue *g,
                                 const row_source *from, const destination *to, const uint begin,
                                 const uint head, const uint end)
{
    const uint first = begin + head;
    const uint vectors = (end - first) / VEC;
    const uint tail = (end - first) % VEC;
    const bool overlaps = end - begin >= VEC;
    const bool is_plain = from->is_scaled && !(ACCUMULATE && IS_KIND(g, OUTPUT_GRADIENT));
    const uint turn = is_plain && (DEINTERLEAVES || !from->in_local) ? 2 : 1;
    uint v = 0;
    vec head_value = (vec)(0), tail_value = (vec)(0);
    if (overlaps) {
        if (head > 0) head_value = value_with_target(in, r, g, from, to, begin);
        if (tail > 0) tail_value = value_with_target(in, r, g, from, to, end - VEC);
    } else if (head > 0) {
        epilogue_part(in, r, g, from, to, begin, head);
    }
    /* to where a pair is aligned */
    if (is_plain && to->aligned && vectors > 0 && address_of(to, first) % PAIR_ALIGNMENT(BYTES_OF(to)) != 0)
        put_with_target(in, r, g, from, to, first + VEC * v++);
    const uint last = vectors - (vectors - v) % turn;
    const uint class_index = (uint)g->class_index;
    const uint special = class_index != NO_CLASS && class_index >= first + v * VEC
                             ? v + ((class_index - first) / VEC - v) / turn * turn
                             : NO_CLASS;
    for (uint stop = min(special, last);; stop = last) {
        const uint here = first + v * VEC, there = first + stop * VEC;
        if (is_plain && !from->in_local && !from->folds) {
            scaled_turns(in, g, from, to, here, there, false, to->aligned);
        } else if (is_plain && to->aligned) { /* known in the loop: 0.94 of the time of 262,144 classes */
            if (from->folds) scaled_turns(in, g, from, to, here, there, true, true);
            if (from->in_local) kept_turns(g, from, to, here, there, true);
        } else if (is_plain) {
            if (from->folds) scaled_turns(in, g, from, to, here, there, true, false);
            if (from->in_local) kept_turns(g, from, to, here, there, false);
        } else if (IS_MOSTLY_SCALED(g)) {
            for (uint at = here; at < there; at += VEC) put_with_target(in, r, g, from, to, at);
        } else {
            for (uint at = here; at < there; at += VEC) {
                put(to, at, value_of_vector(in, r, g, from, to, at, false), VEC);
                if (!from->in_local && at / VEC % 4 == 0) prefetch_ahead(in, at / VEC, 4);
            }
        }
        v = stop;
        const uint behind = stop == last ? vectors : stop + turn;
        for (; v < behind; v++) put_with_target(in, r, g, from, to, first + v * VEC);
        if (stop == last) break;
    }
    if (overlaps) {
        if (head > 0) put_anywhere(to, begin, head_value);
        if (tail > 0) put_anywhere(to, end - VEC, tail_value);
    } else if (tail > 0) {
        epilogue_part(in, r, g, from, to, first + v * VEC, tail);
    }
}

/* g's factor becomes that of exponentials at the source's scale. What it depends on is the row, and not whether its
 * exponentials are there: so a gradient from saved statistics has the same bits. */
static inline row_source source_of(const run *u, const row_input *in, const row_result *r, epilogue *g)
{
    row_source from;
    from.streaming = (u->p->flags & FLAG_NONTEMPORAL) != 0;
    from.local_rows = u->local_rows;
    from.odd_at = ODD_OF(in->classes);
    from.in_local = in->in_local && !IS_KIND(g, OUTPUT_LOG_SOFTMAX);
    from.is_scaled = from.folds = false;
    from.scale = r->scale;
    from.rescale = 1;
    if (IS_KIND(g, OUTPUT_LOG_SOFTMAX)) return from;
    if (in->fits) {
        const exp_scale scale = block_scale_of(r->maximum);
        const acc_t rescale = exp_rescale(scale, r->scale), factor = g->factor * rescale;
        if (HAS_PLAIN_FACTOR(g) && g->factor != 0 && fabs(factor) < ACC_SMALLEST_NORMAL) {
            from.in_local = false; /* digits would be lost */
        } else {
            from.scale = scale;
            g->factor = HAS_PLAIN_FACTOR(g) ? factor : g->factor;
            from.rescale = HAS_PLAIN_FACTOR(g) ? 1 : rescale;
        }
    }
    from.is_scaled = HAS_PLAIN_FACTOR(g) && g->outer == 1 && fabs(g->factor) < ACC_INFINITY;
    from.folds = from.is_scaled && !in->fits;
    return from;
}

/* Rows of fewer classes than this are streamed only where all of them are aligned. */
#define LONG_ROW 4096u

/* Writes the classes [begin, end) of one row of one result, `stride` elements from the next. Streaming stores need
 * aligned vectors: the elements before the first aligned one go apart, which moves no bit, as elements do not depend on
 * each other here. But a line that is written both ways costs several memory accesses, and every row that is not aligned
 * has two (1,000 classes on PoCL: 1.99 of a copy, all plain 1.18). */
static inline void write_result(const run *u, const row_input *in, const row_result *r, const epilogue *g,
                                const destination *at, const ulong stride, const uint begin, const uint end)
{
    destination to = *at;
    epilogue own = *g;
    const row_source from = source_of(u, in, r, &own);
    const size_t size = BYTES_OF(&to), address = address_of(&to, begin);
    const uint to_aligned = (uint)((0 - address) & (VEC * size - 1)) / (uint)size;
    to.aligned =
        CAN_STREAM && from.streaming && address % size == 0 &&
        ((to_aligned == 0 && stride % VEC == 0) || (in->classes >= LONG_ROW && to_aligned < end - begin));
    const uint head = to.aligned ? to_aligned : 0;
    if (g->filled) {
        fill_loop(g, &to, begin, head, end);
    } else {
        epilogue_loop(in, r, &own, &from, &to, begin, head, end);
    }
}
