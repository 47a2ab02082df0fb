/* SPDX-License-Identifier: MIT
 *
 * fused.cl - everything that is computed from logits, in one body: open the rows, scan them, finish their states, write
 * what a row has one of, then what it has one of for each class. Stands behind a mapping, which says what a unit of work is
 * and which work-item has which logits:
 *   map_row.cl   a row over a work-group
 *   map_lane.cl  a row for each lane: few classes, and a class axis that is not the last
 *
 * A mapping defines
 *   unit_input    of a unit of work, and of the rows of it that are open
 *   COLUMNS       lanes that a work-item has in a unit, one after the other
 *   unit_scratch, UNIT_SCRATCH
 *                 an element of the group's local memory `scratch`, and how many it has
 *   MEET_UNIT     all work-items, after a unit was brought on chip
 *   MEET_ROWS     all work-items, before results are written, and before the next unit; tiles do that in epilogue_of_unit
 *   count_units, units_of_group, make_input
 *   open_unit     points at a unit, brings it on chip
 *   open_rows     points at its column w; false where it has none
 *   HAS_PLAIN_TILES, pass_plain_tiles
 *                 of lanes: whether, and from which unit on, tiles without exceptions are done by other code to the same bits
 *   target_logits
 *   scan_rows     the sums of open rows, the terms of their targets, and what both come to
 *   share_row     after scan_rows, the work-item that has the results: what epilogue_of_unit needs of them
 *   epilogue_of_unit
 *
 * Grid: a work-group for units_of_group() units.
 *
 * Set by the host with -D, with map_row.cl:
 *   KERNELS  1: for whole rows; 2: for rows split over groups; 3: both, as the limit of a device for the work-group of
 *            either is one for both, so that their bits are the same
 */
#if !LANES && (!defined(KERNELS) || KERNELS < 1 || KERNELS > 3)
#    error "KERNELS: 1, 2 or 3"
#endif

#if LANES || (KERNELS & 1)
DEFINE_KERNEL(clxent_cross_entropy, WG_SIZE)
{
    OPEN_RUN;
    OPEN_SCRATCH(unit_scratch, UNIT_SCRATCH);
    unit_input in = make_input(u, true);
    const ulong first = u->group * (ulong)units_of_group(u->p);
    const ulong last = min(first + units_of_group(u->p), count_units(u->p));
    for (ulong unit = first; unit < last; unit++) {
        lane_targets t[COLUMNS];
        target_terms j[COLUMNS];
        row_result r[COLUMNS];
#    if HAS_PLAIN_TILES
        unit = pass_plain_tiles(u, &in, unit, last);
        if (unit == last) break;
#    endif
        open_unit(u, &in, unit, scratch);
        MEET_UNIT(&in, unit);
        for (uint w = 0; w < COLUMNS; w++) {
            row_state s;
            if (!open_rows(u, &in, unit, w)) break;
            t[w] = get_targets(u->p, in.row, in.n, u->targets, u->row_weights);
            r[w] = scan_rows(u, &in, &t[w], &j[w], &s, scratch);
            if (LANES || LOCAL_ID == 0) {
                write_rows(u, in.row, in.n, &t[w], &j[w], &r[w], &s);
                share_row(u, &in, &t[w], &j[w], &r[w], scratch);
            }
        }
        MEET_ROWS;
        epilogue_of_unit(u, &in, unit, t, j, r, scratch);
        MEET_ROWS;
    }
#    if REDUCES_ITSELF
    if (u->p->flags & FLAG_ALONE) sum_own_losses(u);
#    endif
}
#endif

#if !LANES && (KERNELS & 2)
/* ---- Rows split over groups ---------------------------------------------------------------- */

/* Where rows are too few to keep the device busy, these two do what the body above does, with a group for each piece of
 * a row: the same sums in the same order, so that the bits do not tell which it was, and the choice may look at the
 * device. The workspace has of every piece its sums, RECORD_BYTES each, and those without the maximum likewise. Every
 * group merges the pieces of its row by itself, which saves a launch. */
typedef struct {
    row_state sums;
    acc_t target_logit; /* of the row, in piece 0: before a gradient in place overwrites it */
} piece_record;
typedef char piece_record_fits[sizeof(piece_record) <= RECORD_BYTES ? 1 : -1];

/* at: pieces_at or excluding_at. */
static inline __global piece_record *record_of_piece(const run *u, const ulong at, const ulong row,
                                                     const uint piece)
{
    return (__global piece_record *)(u->workspace + at + (row * u->p->pieces + piece) * RECORD_BYTES);
}

static inline row_state merge_pieces(const run *u, const ulong at, const ulong row)
{
    row_state all = record_of_piece(u, at, row, 0)->sums;
    for (uint piece = 1; piece < u->p->pieces; piece++)
        all = merge(all, record_of_piece(u, at, row, piece)->sums);
    return all;
}

/* What the first pass over a row came to. */
INLINE_ON_GPU void finish_pieces(const run *u, const row_input *in, const lane_targets *t, target_terms *j,
                                 row_state *all, row_result *r)
{
    *j = judge_targets(u, t, record_of_piece(u, u->p->pieces_at, in->row, 0)->target_logit);
    *all = merge_pieces(u, u->p->pieces_at, in->row);
    if (u->p->flags & FLAG_FROM_STATISTICS) read_statistics(u, in->row, 1, all);
    *r = finish(j, t, all);
}

/* Grid: a work-group for each piece of each row. With FLAG_SECOND_PASS the sums without the maximum. */
DEFINE_KERNEL(clxent_split_partials, WG_SIZE)
{
    OPEN_RUN;
    OPEN_SCRATCH(unit_scratch, UNIT_SCRATCH);
    const bool is_second = (u->p->flags & FLAG_SECOND_PASS) != 0;
    row_input in = make_input(u, false);
    const uint piece = (uint)(u->group % u->p->pieces);
    open_unit(u, &in, u->group / u->p->pieces, 0);
    const lane_targets t = get_targets(u->p, in.row, 1, u->targets, u->row_weights);
    row_state own = empty_state();
    if (is_second) {
        target_terms j;
        row_state all;
        row_result r;
        finish_pieces(u, &in, &t, &j, &all, &r);
        if (r.confident) sum_part_excluding_max(&own, &in, r.maximum, vectors_of(u, &in, piece));
    } else {
        sum_piece(&own, u, &in, &t, piece, scratch);
    }
    merge_group(&own, scratch);
    if (LOCAL_ID == 0) {
        const ulong at = is_second ? u->p->excluding_at : u->p->pieces_at;
        __global piece_record *record = record_of_piece(u, at, in.row, piece);
        record->sums = own;
        if (piece == 0 && !is_second) record->target_logit = target_logits(&in, &t);
    }
}

/* Grid: as clxent_split_partials. */
DEFINE_KERNEL(clxent_split_finalize, WG_SIZE)
{
    OPEN_RUN;
    row_input in = make_input(u, false);
    const uint piece = (uint)(u->group % u->p->pieces);
    open_unit(u, &in, u->group / u->p->pieces, 0);
    const lane_targets t = get_targets(u->p, in.row, 1, u->targets, u->row_weights);
    target_terms j;
    row_state all;
    row_result r;
    finish_pieces(u, &in, &t, &j, &all, &r);
    if (count_passes(u) > 1) {
        const row_state excluding_max = merge_pieces(u, u->p->excluding_at, in.row);
        refine_lse(&r, compensated_value(excluding_max.sum_excluding_target));
    }
    if (piece == 0 && LOCAL_ID == 0) {
        write_rows(u, in.row, 1, &t, &j, &r, &all);
#    if REDUCES_ITSELF
        if (u->p->flags & FLAG_ALONE) sum_own_losses(u); /* the row is the only one */
#    endif
    }
    const uint begin = piece * u->p->piece_vectors * VEC,
               end = min(begin + u->p->piece_vectors * VEC, u->p->classes);
    epilogue_of_classes(u, &in, &t, &j, &r, begin, end);
}
#endif
