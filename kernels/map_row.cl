/* SPDX-License-Identifier: MIT
 *
 * map_row.cl - a row over a work-group, vectors along its classes: how its pieces are merged. Stands behind a way to read a
 * row and to write its results, row_scan.cl with row_results.cl or group_rows.cl, which defines
 *   sum_part                what a work-item sums over a part of a row
 *   sum_part_excluding_max  the exponentials once more, without the one class that is the maximum
 *   write_result            one [rows, classes] result
 *
 * A row is taken in pieces of piece_vectors vectors, each read once block by block, and the pieces' sums are merged in
 * order. Where a [rows, classes] result is asked for, the row is read a second time, unless its exponentials were kept in
 * local memory or in registers.
 */
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
    in.shares_lines = WANTS_WIDE(p) && whole_rows && !fits && p->classes * sizeof(storage) <= MOST_KEPT_BYTES;
    in.slope_at =
        KEEPS_SLOPE && in.keeps && WANTS(p, OUTPUT_GRADIENT) && p->local_elements / 2 >= padded ? padded : 0;
#endif
    return in;
}

/* A row that has no probabilities because targets are shifted is given the last row's, of which nothing reaches its
 * results: behind those there may be no memory. */
TAKES_LOCAL void open_unit(const run *u, unit_input *in, const ulong row, __local row_state *scratch)
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

/* Over the group: the maxima first, so that each work-item rescales its sums once, then the sums alone. Of one block the
 * sums have the row's maximum already. */
#if WG_SIZE == 1 || ONE_BLOCK
DEFINE_GROUP_TREE(merge_group, row_state, merge_at_one_maximum)
#elif defined(POCL_DEVICE_ADDRESS_BITS)
DEFINE_GROUP_TREE(merge_group, row_state, merge)
#else
DEFINE_GROUP_TREE(merge_sums, row_state, merge_at_one_maximum)
TAKES_LOCAL row_state merge_group(row_state own, __local row_state *scratch)
{
    const acc_t maximum = group_max(own.maximum, (__local acc_t *)scratch);
    raise_maximum(&own, maximum);
    return merge_sums(own, scratch);
}
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
                             const uint piece, __local row_state *scratch)
{
    vector_range part = vectors_of(u, in, piece);
    const bool of_logits =
        WANTS(u->p, OUTPUT_LSE | OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX | OUTPUT_ARGMAX | OUTPUT_ENTROPY) ||
        (HAS_UPSTREAMS && WANTS(u->p, OUTPUT_GRADIENT | OUTPUT_STATISTICS));
    const bool from_statistics = (u->p->flags & FLAG_FROM_STATISTICS) != 0;
    if ((from_statistics && !SUMS_WEIGHT) || !(of_logits || t->counts)) part.last = part.first;
    sum_part(s, u, in, (integer)t->class_index, part, scratch);
}

/* Of the row's pieces in order, and once more of a confident row's. One merge_group() whatever the row needs: compilers for
 * CPUs must see that all work-items of a group meet the same barriers, and some copy everything behind one that stands
 * under a condition. */
TAKES_LOCAL row_result scan_rows(const run *u, unit_input *in, const lane_targets *t, target_terms *j,
                                 row_state *all, __local row_state *scratch)
{
    row_state excluding_max = empty_state();
    row_result r;
#if ONE_BLOCK
    row_state own = empty_state();
    sum_piece(&own, u, in, t, 0, scratch);
    *all = merge_group(own, scratch);
    if (u->p->flags & FLAG_FROM_STATISTICS) read_statistics(u, in->row, 1, all);
    r = finish(j, t, all);
    if (NEEDS_FINE_LSE(HAS_DENSE, OUTPUTS)) {
        own = empty_state();
        if (r.confident) sum_part_excluding_max(&own, in, r.maximum, vectors_of(u, in, 0));
        excluding_max = merge_group(own, scratch);
    }
    if ((u->p->flags & FLAG_FROM_STATISTICS) && (HAS_UPSTREAMS || t->counts)) keep_row(in, &r);
#else
    const uint pieces = u->p->pieces, steps = pieces * count_passes(u);
    r.confident = 0;
    *all = empty_state();
    for (uint step = 0; step < steps; step++) {
        row_state own = empty_state();
        if (step < pieces) sum_piece(&own, u, in, t, step, scratch);
        if (step >= pieces && r.confident)
            sum_part_excluding_max(&own, in, r.maximum, vectors_of(u, in, step - pieces));
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
#endif
    if (count_passes(u) > 1) keep_max_apart(&r, compensated_value(excluding_max.sum_excluding_target));
    return r;
}

/* The classes [begin, end) of one result, if the run asks for it. */
INLINE_ON_GPU void write_kind(const run *u, const unit_input *in, const lane_targets *t,
                              const target_terms *j, const row_result *r, const uint kind, const uint begin,
                              const uint end)
{
    if (!WANTS(u->p, kind)) return;
    const ulong stride = kind == OUTPUT_GRADIENT ? u->p->gradient_row_stride : u->p->probabilities_row_stride;
    const epilogue g = epilogue_of(u, kind, in->row, 1, t, j, r);
    const destination to = destination_of(u, kind, row_start(u->p, in->row, stride));
    if (ACCUMULATE && kind == OUTPUT_GRADIENT && g.filled && g.fill == 0) return;
    write_result(u, in, r, &g, &to, stride, begin, end);
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

INLINE_ON_GPU void epilogue_of_unit(const run *u, unit_input *in, const ulong row,
                                    const lane_targets t[COLUMNS], const target_terms j[COLUMNS],
                                    const row_result r[COLUMNS], __local row_state *scratch)
{
    (void)row;
    (void)scratch;
    /* a row that was not scanned has left nothing in local_rows, and has constant results */
    if (WANTS_WIDE(u->p)) epilogue_of_classes(u, in, t, j, r, 0, in->classes);
}
