/* SPDX-License-Identifier: MIT
 *
 * map_row.cl - a row over a work-group, vectors along its classes: how its pieces are merged. Stands behind a way to read a
 * row and to write its results, row_scan.cl with row_results.cl or group_rows.cl, which defines
 *   sum_part                what a work-item sums over a part of a row
 *   sum_part_excluding_max  the exponentials once more, without the one class that is the maximum
 *   write_result            one [rows, classes] result
 * and in groups of more than one work-item
 *   group_scratch           their local memory
 *   merge_group, from_first how sums meet in the first work-item, and what it knows gets to all
 *
 * A row is taken in pieces of piece_vectors vectors, each read once block by block, and the pieces' sums are merged in
 * order. Where a [rows, classes] result is asked for, the row is read a second time, unless its exponentials were kept in
 * local memory or in registers.
 */
/* A unit of work is a row. fused.cl says what each of these is for. */
typedef row_input unit_input;
#define COLUMNS 1
#if WG_SIZE > 1
typedef group_scratch unit_scratch;
#else
typedef row_state unit_scratch;
#endif
#define UNIT_SCRATCH 1
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
    row_input in;
    in.x = 0;
    in.row = 0;
    in.n = 1;
    in.classes = p->classes;
    in.vectors = p->classes / VEC;
    in.tail = p->classes % VEC;
    in.q = 0;
    in.class_weights = u->class_weights;
    in.best = WANTS(p, OUTPUT_ARGMAX | OUTPUT_CORRECT);
    in.nan = in.best || WANTS(p, OUTPUT_LSE);
    in.o = u->o;
#if WG_SIZE > 1
    (void)whole_rows;
#else
    const bool fits = max(p->classes, (uint)VEC) <= p->local_elements;
    const uint padded = (p->classes + VEC - 1) / VEC * VEC;
    in.local_elements = p->local_elements;
    in.ahead = AHEAD;
    in.fits = fits;
    in.keeps = whole_rows && fits && WANTS_WIDE(p) && !(p->flags & FLAG_FROM_STATISTICS);
    in.slope_at =
        KEEPS_SLOPE && in.keeps && WANTS(p, OUTPUT_GRADIENT) && p->local_elements / 2 >= padded ? padded : 0;
#endif
    return in;
}

/* A row that has no probabilities because targets are shifted is given the last row's, of which nothing reaches its
 * results: behind those there may be no memory. */
TAKES_LOCAL void open_unit(const run *u, unit_input *in, const ulong row, __local unit_scratch *scratch)
{
    const clxent_parameters *p = u->p;
    (void)scratch;
    const ulong q_row = min(row + p->shift, p->target_rows - 1);
    const ulong q_at = p->offset.targets + row_start(p, q_row, p->target_row_stride);
#if WG_SIZE == 1
    in->in_local = in->keeps;
    in->kept_q = NO_SCALE;
#endif
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

#if WG_SIZE == 1
#    define merge_group(own, scratch) (void)(scratch)
#    define from_first(value, scratch) (value)
#endif

/* The vectors of a piece. */
static inline vector_range vectors_of(const run *u, const row_input *in, const uint piece)
{
    const uint total = in->vectors + (in->tail > 0 ? 1 : 0), begin = piece * u->p->piece_vectors;
    return (vector_range){ begin, min(begin + u->p->piece_vectors, total) };
}

/* This work-item's sums over one piece of the row, as far as the run needs any. s: empty_state(). From saved statistics
 * only those of a_j are used, which come out with the same bits. */
INLINE_ON_GPU void sum_piece(row_state *s, const run *u, row_input *in, const lane_targets *t,
                             const uint piece, __local unit_scratch *scratch)
{
    vector_range part = vectors_of(u, in, piece);
    const bool of_logits =
        WANTS(u->p, OUTPUT_LSE | OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX | OUTPUT_ARGMAX | OUTPUT_ENTROPY) ||
        (HAS_UPSTREAMS && WANTS(u->p, OUTPUT_GRADIENT | OUTPUT_STATISTICS));
    const bool from_statistics = (u->p->flags & FLAG_FROM_STATISTICS) != 0;
    if ((from_statistics && !SUMS_WEIGHT) || !(of_logits || t->counts)) part.last = part.first;
    sum_part(s, u, in, (integer)t->class_index, part, scratch);
}

/* Of the row's pieces in order, and once more of a confident row's. The first work-item of a group gets the result; all get
 * all->maximum. One merge_group() whatever the row needs: compilers for CPUs must see that all work-items of a group meet the
 * same barriers, and some copy everything behind one that stands under a condition. */
TAKES_LOCAL row_result scan_rows(const run *u, unit_input *in, const lane_targets *t, target_terms *j,
                                 row_state *all, __local unit_scratch *scratch)
{
    row_state excluding_max = empty_state();
    row_result r;
    if (LOCAL_ID == 0) *j = judge_targets(u, t, target_logits(in, t));
#if ONE_BLOCK
    row_state own = empty_state();
    sum_piece(&own, u, in, t, 0, scratch);
    merge_group(&own, scratch);
    *all = own;
    if (u->p->flags & FLAG_FROM_STATISTICS) read_statistics(u, in->row, 1, all);
    r.confident = 0;
    if (LOCAL_ID == 0) r = finish(j, t, all);
    if (NEEDS_FINE_LSE(HAS_DENSE, OUTPUTS)) {
        own = empty_state();
        if (from_first(r.confident, scratch))
            sum_part_excluding_max(&own, in, all->maximum, vectors_of(u, in, 0));
        merge_group(&own, scratch);
        excluding_max = own;
    }
    if ((u->p->flags & FLAG_FROM_STATISTICS) && (HAS_UPSTREAMS || t->counts)) keep_row(in, all->maximum);
#else
    const uint pieces = u->p->pieces, steps = pieces * count_passes(u);
    integer confident = 0;
    r.confident = 0;
    *all = empty_state();
    for (uint step = 0; step < steps; step++) {
        row_state own = empty_state();
        if (step < pieces) sum_piece(&own, u, in, t, step, scratch);
        if (step >= pieces && confident)
            sum_part_excluding_max(&own, in, all->maximum, vectors_of(u, in, step - pieces));
        merge_group(&own, scratch);
        if (step >= pieces) {
            if (LOCAL_ID == 0) excluding_max = step == pieces ? own : merge(excluding_max, own);
        } else if (LOCAL_ID == 0) {
            *all = step == 0 ? own : merge(*all, own);
        } else {
            all->maximum = acc_max(all->maximum, own.maximum);
        }
        if (step + 1 == pieces) {
            if (u->p->flags & FLAG_FROM_STATISTICS) read_statistics(u, in->row, 1, all);
            if (LOCAL_ID == 0) r = finish(j, t, all);
        }
        if (NEEDS_FINE_LSE(HAS_DENSE, OUTPUTS)) confident = from_first(r.confident, scratch);
    }
#endif
    if (LOCAL_ID == 0 && count_passes(u) > 1)
        refine_lse(&r, compensated_value(excluding_max.sum_excluding_target));
    return r;
}

/* The classes [begin, end) of one result. */
INLINE_ON_GPU void write_epilogue(const run *u, const unit_input *in, const row_result *r, const epilogue *g,
                                  const uint kind, const uint begin, const uint end)
{
    const ulong stride = kind == OUTPUT_GRADIENT ? u->p->gradient_row_stride : u->p->probabilities_row_stride;
    const destination to = destination_of(u, kind, row_start(u->p, in->row, stride));
    if (ACCUMULATE && kind == OUTPUT_GRADIENT && g->filled && g->fill == 0) return;
    write_result(u, in, r, g, &to, stride, begin, end);
}

/* The same, if the run asks for it. */
INLINE_ON_GPU void write_kind(const run *u, const unit_input *in, const lane_targets *t,
                              const target_terms *j, const row_result *r, const uint kind, const uint begin,
                              const uint end)
{
    if (!WANTS(u->p, kind)) return;
    const epilogue g = epilogue_of(u, kind, in->row, 1, t, j, r);
    write_epilogue(u, in, r, &g, kind, begin, end);
}

/* The classes [begin, end) of the results that a row has one of for each class. */
INLINE_ON_GPU void epilogue_of_classes(const run *u, const unit_input *in, const lane_targets *t,
                                       const target_terms *j, const row_result *r, const uint begin,
                                       const uint end)
{
    write_kind(u, in, t, j, r, OUTPUT_SOFTMAX, begin, end);
    write_kind(u, in, t, j, r, OUTPUT_LOG_SOFTMAX, begin, end);
    write_kind(u, in, t, j, r, OUTPUT_GRADIENT, begin, end);
}

#if WG_SIZE > 1
/* The first work-item leaves for all what results are made of. */
TAKES_LOCAL void share_row(const run *u, const unit_input *in, const lane_targets *t, const target_terms *j,
                           const row_result *r, __local unit_scratch *scratch)
{
    __local shared_row *to = &scratch->row;
    to->maximum = r->maximum;
    to->fine_lse_minus_max = r->fine_lse_minus_max;
    to->scale = r->scale;
    if (WANTS(u->p, OUTPUT_SOFTMAX)) to->of_softmax = epilogue_of(u, OUTPUT_SOFTMAX, in->row, 1, t, j, r);
    if (WANTS(u->p, OUTPUT_LOG_SOFTMAX))
        to->of_log_softmax = epilogue_of(u, OUTPUT_LOG_SOFTMAX, in->row, 1, t, j, r);
    if (WANTS(u->p, OUTPUT_GRADIENT)) to->of_gradient = epilogue_of(u, OUTPUT_GRADIENT, in->row, 1, t, j, r);
}

INLINE_ON_GPU void write_shared(const run *u, const unit_input *in, const row_result *r,
                                __local const epilogue *shared, const uint kind)
{
    if (!WANTS(u->p, kind)) return;
    const epilogue g = *shared;
    write_epilogue(u, in, r, &g, kind, 0, in->classes);
}

INLINE_ON_GPU void epilogue_of_unit(const run *u, unit_input *in, const ulong row,
                                    const lane_targets t[COLUMNS], const target_terms j[COLUMNS],
                                    const row_result ignored[COLUMNS], __local unit_scratch *scratch)
{
    __local const shared_row *shared = &scratch->row;
    row_result r;
    (void)row;
    (void)t;
    (void)j;
    (void)ignored;
    r.maximum = shared->maximum;
    r.fine_lse_minus_max = shared->fine_lse_minus_max;
    r.scale = shared->scale;
    write_shared(u, in, &r, &shared->of_softmax, OUTPUT_SOFTMAX);
    write_shared(u, in, &r, &shared->of_log_softmax, OUTPUT_LOG_SOFTMAX);
    write_shared(u, in, &r, &shared->of_gradient, OUTPUT_GRADIENT);
}
#else
#    define share_row(u, in, t, j, r, scratch) (void)0
INLINE_ON_GPU void epilogue_of_unit(const run *u, unit_input *in, const ulong row,
                                    const lane_targets t[COLUMNS], const target_terms j[COLUMNS],
                                    const row_result r[COLUMNS], __local unit_scratch *scratch)
{
    (void)row;
    (void)scratch;
    /* a row that was not scanned has left nothing in local_rows, and has constant results */
    if (WANTS_WIDE(u->p)) epilogue_of_classes(u, in, t, j, r, 0, in->classes);
}
#endif
