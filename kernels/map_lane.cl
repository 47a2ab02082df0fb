/* SPDX-License-Identifier: MIT
 *
 * map_lane.cl - a row for each lane: few classes, and a class axis that is not the last. How a tile's results are stored, and
 * what fused.cl asks of a mapping. Stands behind tile.cl and a way to read the tile, lane_scan.cl or along_scan.cl, which
 * defines
 *   sum_tile        the row states of all lanes; with BY_BLOCKS scan_tile() below is in its place
 *   find_classes    argmax and first NaN, as far as the sums have not found them
 *   tile_excluding_max  the exponentials once more, of confident rows, without the one class that is the maximum
 *   stage           the values of one result, to where store_tile() takes them from
 *   tile_maximum, sum_shared, find_best, stage_shared  of plain tiles, whose rows share a scale: see pass_plain_tiles()
 */
/* Whether vectors that begin at multiples of VEC elements are aligned. */
static inline bool is_aligned(const destination *to, const ulong step, const bool streaming)
{
    return (streaming || TELLS_ALIGNED) && address_of(to, 0) % (VEC * BYTES_OF(to)) == 0 && step % VEC == 0;
}

#if IN_LOCAL && !BY_BLOCKS
/* stride: from row to row (slab to slab, with INNER) of the destination, which begins at the tile's first row. */
ALWAYS_INLINE void store_tile(const tile_input *in, const destination *at, const ulong stride)
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
    for (uint e = LOCAL_ID; e < rows * in->classes; e += WG_SIZE) {
        const uint row = e / in->classes, c = e % in->classes;
        put_sum_one(&to, row * stride + c, in->tile_values[(size_t)c * PITCH + row]);
    }
#    else
    (void)stride;
    const uint first = LOCAL_ID * VEC;
    for (uint c = 0; c < in->classes && first < rows; c++) {
        const vec value = LOAD(in->tile_values + first + (size_t)c * PITCH);
        put_sum(&to, c * class_step(in->p) + first, value, min((uint)VEC, rows - first));
    }
#    endif
}

#elif !IN_LOCAL
/* Without a tile to put them in between. */
static inline void store_values(const tile_input *in, const row_result *r, const epilogue *g,
                                const destination *to)
{
    const uint first = LOCAL_ID * VEC;
    uint c = 0;
#    if WG_SIZE > 1 && \
        DTYPE != F64 /* which takes 224 registers of gfx90a then with all options, 192 without */
    for (; c + 3 < in->classes; c += 4) { /* four loads under way, maybe from where results go */
        vec x[4];
#        pragma unroll
        for (uint k = 0; k < 4; k++) x[k] = class_x(in, c + k);
#        pragma unroll
        for (uint k = 0; k < 4; k++) {
            const vec value = value_of_logits(in, r, g, false, c + k, x[k], no_rescaling());
            put_sum(to, (c + k) * class_step(in->p) + first, value, in->n);
        }
    }
#    endif
    UNROLL_ALONE
    for (; c < in->classes; c++) {
        put_sum(to, c * class_step(in->p) + first, value_of_class(in, r, g, false, c, no_rescaling()), in->n);
    }
}
#endif

/* ---- The mapping ---------------------------------------------------------------------------- */

/* A unit of work is a tile: a slab of inner rows (all rows with the class axis last) has p.tiles of them. fused.cl says
 * what each of these is for. A branch right behind a barrier, on a condition known before, PoCL 3.1 decides once for all
 * work-items, by the last one's: so the number of rows that they compare themselves with is read from memory there. It is
 * that of this tile or of the next, which work-item 0 may be at while others are here. */
typedef uint unit_scratch;
#define UNIT_SCRATCH 2
#define share_row(u, in, t, j, r, scratch) (void)0
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

static inline ulong slab_of(const clxent_parameters *p, const ulong unit)
{
    return INNER ? unit / p->tiles : 0;
}

static inline ulong row_in_slab(const clxent_parameters *p, const ulong unit)
{
    return (INNER ? unit % p->tiles : unit) * TILE;
}

static inline uint units_of_group(const clxent_parameters *p) { return p->tiles_per_group; }

static inline unit_input make_input(const run *u, const bool whole_rows)
{
    const size_t tile_size = (size_t)ROOM(u->p->classes) * PITCH * COLUMNS;
    tile_input in;
    (void)whole_rows;
    in.p = u->p;
    in.classes = u->p->classes;
    in.rows = 0;
    in.w = 0;
#if HAS_PLAIN_TILES
    in.has_exceptions = false;
#endif
    in.prefetches_next = tile_size * sizeof(acc_t) <= MOST_PREFETCHED;
    in.tile_values = (u->p->flags & FLAG_KEEPS_LOGITS) != 0 ? u->local_rows + tile_size : u->local_rows;
    in.own_rows = ALONG ? u->local_rows : in.tile_values + tile_size;
    in.targets = u->targets;
    in.class_weights = u->class_weights;
    in.o = u->o;
#if BY_BLOCKS
    in.maxima = in.tile_values + tile_size;
#endif
#if TRANSPOSES
    /* of few classes read beside the last row and the last class */
    STORE((vec)(0), in.own_rows + VEC * in.classes);
    for (uint c = in.classes; c < ROOM(in.classes); c++) STORE((vec)(0), in.tile_values + (size_t)c * PITCH);
#endif
    return in;
}

/* Column w of the tile; false where it has none for this work-item. Everything that a unit has of its own is found here,
 * as PoCL 3.1 loses it at a barrier. */
static inline bool open_rows(const run *u, unit_input *in, const ulong unit, const uint w)
{
    const clxent_parameters *p = u->p;
    const uint lid = LOCAL_ID, lane_0 = (lid + w) * VEC;
    const ulong slab = slab_of(p, unit), within = row_in_slab(p, unit);
    in->w = w;
    in->row = slab * rows_of_slab(p) + within + lane_0;
    const bool exists = lane_0 < in->rows;
    /* a constant of vectors of one row: else each store of a GPU's results is a branch (f16: 91 registers, 72 without) */
    in->n = VEC == 1 ? 1 : exists ? min((uint)VEC, in->rows - lane_0) : 0;
    in->x = u->logits + p->offset.logits +
            (INNER ? slab * p->row_stride + within + lane_0 : (within + lane_0) * p->row_stride);
    in->next = in->x;
    if (INNER) in->next += TILE;
    if (!INNER && p->row_stride == p->classes) in->next += TILE * p->row_stride; /* rows without gaps */
    in->logits = u->local_rows + lid * VEC + (size_t)w * p->classes * PITCH;
    in->staged = in->logits + (in->tile_values - u->local_rows);
    in->values = TRANSPOSES ? in->own_rows : in->staged;
    in->q_at = HAS_PROBABILITIES ? target_start(in, 0) : 0;
#if TELLS_ALIGNED
    in->aligned = p->inner % VEC == 0 && IS_ALIGNED(in->x, storage);
#endif
    return exists;
}

#if BY_BLOCKS
/* Fills a tile, and takes the sums of its columns and the logits of their targets on the way. Saved statistics shorten nothing:
 * exponentials that are nearly 0 have other bits at another scale. */
PART void scan_tile(const run *u, tile_input *in, const ulong unit)
{
    ilane target[COLUMNS];
    uint columns = 0;
    for (uint w = 0; w < COLUMNS && open_rows(u, in, unit, w); w++) {
        target[w] = get_targets(u->p, in->row, in->n, u->targets, u->row_weights).class_index;
        in->sums[w] = empty_state();
        in->target_x[w] = (lane)(-ACC_INFINITY);
        columns++;
    }
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        (void)open_rows(u, in, unit, 0);
        fill_classes(in, begin, end);
        for (uint w = 0; w < columns; w++) {
            (void)open_rows(u, in, unit, w);
            row_state s = in->sums[w];
            lane found = in->target_x[w], m = in->maximum[w];
            if (HAS_Z) {
                m = (lane)(-ACC_INFINITY);
                for (uint c = begin; c < end; c++) m = vec_max(m, class_z(in, c));
            }
            raise_maximum(&s, vec_max(s.maximum, m));
            STORE(s.maximum, in->maxima + (begin / BLOCK_CLASSES * COLUMNS + w) * VEC);
            add_classes(&s, &found, in, target[w], begin, end);
            in->sums[w] = s;
            in->target_x[w] = found;
        }
    }
}
#endif

TAKES_LOCAL void open_unit(const run *u, unit_input *in, const ulong unit, __local uint *scratch)
{
    in->rows = (uint)min((ulong)TILE, rows_of_slab(u->p) - row_in_slab(u->p, unit));
    if (COOPERATIVE && LOCAL_ID == 0) scratch[unit & 1] = in->rows;
    for (uint w = 0; w < COLUMNS; w++) in->maximum[w] = (lane)(0);
#if BY_BLOCKS
    scan_tile(u, in, unit);
#elif HOLDS_LOGITS
    (void)open_rows(u, in, unit, 0);
    fill_tile(in, u->local_rows);
#endif
}

TAKES_LOCAL row_result scan_rows(const run *u, unit_input *in, const lane_targets *t, target_terms *j,
                                 row_state *s, __local uint *scratch)
{
    const bool from_statistics = (u->p->flags & FLAG_FROM_STATISTICS) != 0;
    row_state saved = empty_state();
    (void)scratch;
    if (from_statistics) read_statistics(u, in->row, in->n, &saved);
    lane target_x;
#if BY_BLOCKS
    *s = in->sums[in->w];
    target_x = in->target_x[in->w];
#else
    sum_tile(s, &target_x, u, in, t->class_index, from_statistics,
             from_statistics ? saved.maximum : in->maximum[in->w]);
#endif
    *j = judge_targets(u, t, SUMS_FIND_TARGET ? target_x : target_logits(in, t));
    if (from_statistics) {
        s->sum_excluding_target = saved.sum_excluding_target;
#if HAS_GRAD_ENTROPY
        s->entropy = saved.entropy;
#endif
    }
    find_classes(u, in, s);
    row_result r = finish(j, t, s);
    if (count_passes(u) > 1 && ANY_LANE(r.confident)) refine_lse(&r, tile_excluding_max(in, &r));
    return r;
}

#if BY_BLOCKS
#    define COLUMNS_AT_ONCE (COLUMNS < 4 ? COLUMNS : 4)
#    if HAS_ONE_FACTOR && !HAS_Z
/* The classes [begin, end) of the columns from `first` on, all whole, each exponential with its factor alone: what four columns
 * need stays in registers. */
ALWAYS_INLINE void store_whole(const tile_input *in, const plain_factors f[COLUMNS], const destination *to,
                               const uint first, const uint begin, const uint end)
{
    const ulong step = class_step(in->p);
    const __local acc_t *values[COLUMNS_AT_ONCE];
    plain_factors own[COLUMNS_AT_ONCE];
#        pragma unroll
    for (uint k = 0; k < COLUMNS_AT_ONCE; k++) {
        values[k] = in->tile_values + (size_t)(first + k) * in->classes * PITCH;
        own[k] = f[first + k];
    }
    const destination at = *to;
    for (uint c = begin; c < end; c++) {
#        pragma unroll
        for (uint k = 0; k < COLUMNS_AT_ONCE; k++) {
            const vec e = LOAD(values[k] + (size_t)c * PITCH);
            const vec value = fma(e, own[k].factor, e * own[k].rest);
            put_sum(&at, c * step + (first + k) * VEC,
                    own[k].class_index == (ilane)((integer)c) ? own[k].target : value, VEC);
        }
    }
}
#    endif

/* Values of all classes of this work-item's columns, of which there are `columns`, side by side as they lie. */
PART void store_columns(const run *u, tile_input *in, const ulong unit, const row_result r[COLUMNS],
                        const epilogue g[COLUMNS], const destination *to, const uint columns)
{
    const uint classes = in->classes;
#    if HAS_ONE_FACTOR && !HAS_Z
    const bool is_whole = columns == COLUMNS && in->rows == TILE;
    ilane needs_more = (ilane)(0);
    for (uint w = 0; w < columns; w++) needs_more = EITHER(needs_more, EITHER(g[w].filled, HAS_OUTER(&g[w])));
#    endif
    for (uint begin = 0; begin < classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, classes);
#    if HAS_ONE_FACTOR && !HAS_Z
        ilane rest = needs_more;
        plain_factors f[COLUMNS];
        for (uint w = 0; w < columns; w++) {
            epilogue own = g[w];
            rescaling by = block_rescaling(in, &r[w], w, begin);
            rest = EITHER(rest, fold_rescaling(&own, &by));
            f[w] = (plain_factors){ own.factor, own.rest, own.class_index, own.target };
        }
        if (is_whole && !IS_KIND(to, OUTPUT_LOG_SOFTMAX) && !ANY_KEPT(rest)) {
            for (uint w = 0; w < COLUMNS; w += COLUMNS_AT_ONCE) store_whole(in, f, to, w, begin, end);
            continue;
        }
#    endif
        for (uint w = 0; w < columns; w++) {
            (void)open_rows(u, in, unit, w);
            epilogue own = g[w];
            rescaling by = block_rescaling(in, &r[w], w, begin);
            (void)fold_rescaling(&own, &by);
            for (uint c = begin; c < end; c++) {
                put_sum(to, c * class_step(in->p) + w * VEC, value_of_class(in, &r[w], &own, false, c, by),
                        in->n);
            }
        }
    }
}
#endif

#if HAS_PLAIN_TILES
/* Whether rows with these maxima share the scale that `shared` names, and are near. */
static inline bool share_scale(const lane maximum, const acc_t shared)
{
    return fabs(shared) < MAX_NEAR / SCALE_STEP && !ANY_LANE(scale_steps(maximum) != (lane)(shared));
}

static inline ulong plain_stride(const clxent_parameters *p)
{
    return WIDE_OUTPUTS == OUTPUT_SOFTMAX ? p->probabilities_row_stride : p->gradient_row_stride;
}

/* Results that the open rows have one of, and f, from sums of exponentials at scale q; false where a row is not plain. given: what
 * `u` is a copy of, which functions that are not inlined get, so that the copy stays in registers. */
ALWAYS_INLINE bool finish_plain(const run *u, const run *given, const tile_input *in, const lane_targets *t,
                                const plain_sums *s, const acc_t q, plain_factors *f)
{
    const clxent_parameters *p = u->p;
    row_result r;
    r.maximum = s->maximum;
    r.scale.base = (lane)(0);
    r.scale.q = (r.maximum * (lane)(INV_LN2) + (lane)(ROUNDER)) - (lane)(ROUNDER) - (lane)(HEADROOM);
    r.scale.lowest = (r.scale.q - (lane)(BIAS)) * (lane)(LN2_HIGH);
    const lane factor = power_of_two((lane)(q)-r.scale.q);
    r.sum_excluding_target = s->sum.high * factor + s->sum.low * factor;
    r.target_exp = s->found.e * factor;
    r.sum_exp = r.sum_excluding_target + r.target_exp;
    if (ANY_KEPT(t->bad) || ANY_LANE(!(r.sum_exp < (lane)(ACC_INFINITY)))) return false;
    r.valid = (ilane)(-1);
    r.lse_minus_max = log_sum(r.sum_excluding_target, r.target_exp, exp_lane(r.maximum, r.scale, false));
    r.lse = r.maximum + r.lse_minus_max;
    target_terms j;
    judge_these_targets(&j, u, t, s->found.x);
    if (WANTS(p, OUTPUT_LOSSES | OUTPUT_LOSS)) STORE(loss_of(u, &r, &j), losses_of(u) + in->row);
    if (WANTS(p, OUTPUT_LSE)) STORE(r.lse, u->lse + p->offset.lse + in->row);
    if (RARELY(WANTS(p, OUTPUT_ARGMAX | OUTPUT_CORRECT)))
        write_best(given, in->row, VEC, t, find_best(in, s->maximum));
    if (RARELY(WANTS(p, OUTPUT_STATISTICS))) {
        const row_result saved = r;
        write_statistics(given, in->row, VEC, t, &saved, (lane)(0));
    }
    if (!WANTS(p, WIDE_OUTPUTS)) return true;
    const lane zero = (lane)(0);
    epilogue g;
    g.kind = WIDE_OUTPUTS;
    g.class_index = t->class_index;
    if (WIDE_OUTPUTS == OUTPUT_GRADIENT) {
        gradient_of(&g, u, &r, &j, outer_of(u, in->row, VEC, t));
    } else {
        softmax_of(&g, &r);
    }
    rescaling by = { factor, (lane)(1) };
    const ilane loses = fold_rescaling(&g, &by);
    f->factor = g.filled ? zero : g.factor;
    f->rest = g.filled ? zero : g.rest;
    f->class_index = g.class_index;
    f->target = g.filled ? zero : g.target;
    return !ANY_KEPT(EITHER(HAS_OUTER(&g), loses));
}

/* The body of fused.cl for one whole tile, to the same bits, where all its rows are plain: their maxima are near and share a
 * scale, their sums are numbers, no target is bad, and a factor is all that their gradients take. */
#    if BY_BLOCKS
ALWAYS_INLINE bool pass_plain_tile(const run *u, const run *given, tile_input *in, const ulong unit)
{
    const clxent_parameters *p = u->p;
    plain_sums s[COLUMNS];
    plain_factors f[COLUMNS];
    (void)open_rows(u, in, unit, 0);
    fill_classes(in, 0, in->classes);
    const acc_t shared = scale_steps(in->maximum[0]).s0, q = Q_OF_STEPS(acc_t, shared);
    for (uint w = 0; w < COLUMNS; w++) {
        (void)open_rows(u, in, unit, w);
        s[w] = (plain_sums){ in->maximum[w], { (lane)(0), (lane)(0) }, { (lane)(-ACC_INFINITY), (lane)(0) } };
        if (!share_scale(s[w].maximum, shared)) return false;
        sum_shared(&s[w], in, q, get_targets(p, in->row, VEC, u->targets, u->row_weights).class_index, 0,
                   in->classes);
    }
    for (uint w = 0; w < COLUMNS; w++) {
        (void)open_rows(u, in, unit, w);
        const lane_targets t = get_targets(p, in->row, VEC, u->targets, u->row_weights);
        if (!finish_plain(u, given, in, &t, &s[w], q, &f[w])) return false;
    }
    if (!WANTS(p, WIDE_OUTPUTS)) return true;
    destination to =
        destination_of(u, WIDE_OUTPUTS, slab_of(p, unit) * plain_stride(p) + row_in_slab(p, unit));
    to.aligned = is_aligned(&to, p->inner, (p->flags & FLAG_NONTEMPORAL) != 0);
    for (uint w = 0; w < COLUMNS; w += COLUMNS_AT_ONCE) store_whole(in, f, &to, w, 0, in->classes);
    return true;
}
#    else
ALWAYS_INLINE bool pass_plain_tile(const run *u, const run *given, tile_input *in, const ulong unit)
{
    const clxent_parameters *p = u->p;
    (void)open_rows(u, in, unit, 0);
#        if !ALONG
    fill_tile(in, u->local_rows);
#        endif
    const lane_targets t = get_targets(p, in->row, VEC, u->targets, u->row_weights);
    plain_sums s = { tile_maximum(in), { (lane)(0), (lane)(0) }, { (lane)(-ACC_INFINITY), (lane)(0) } };
    plain_factors f;
    const acc_t shared = scale_steps(s.maximum).s0, q = Q_OF_STEPS(acc_t, shared);
    if (!share_scale(s.maximum, shared)) return false;
    sum_shared(&s, in, q, t.class_index, 0, in->classes);
    if (!finish_plain(u, given, in, &t, &s, q, &f)) return false;
    if (!WANTS(p, WIDE_OUTPUTS)) return true;
    stage_shared(in, &f);
    destination to = destination_of(u, WIDE_OUTPUTS, row_in_slab(p, unit) * plain_stride(p));
    to.aligned = is_aligned(&to, 0, (p->flags & FLAG_NONTEMPORAL) != 0);
#        if !ALONG
    if (in->classes == 2 && plain_stride(p) == 2) {
        const vec a = LOAD(in->staged), b = LOAD(in->staged + PITCH);
        put_sum(&to, 0, ZIP(a.lo, b.lo, s), VEC);
        put_sum(&to, VEC, ZIP(a.hi, b.hi, s), VEC);
        return true;
    }
    tile_to_rows(in->staged, in->own_rows, in->classes);
#        endif
    store_tile(in, &to, plain_stride(p));
    return true;
}
#    endif

/* Those that finish_plain() writes, and those of reduce.cl that need nothing else of a row. */
#    define OUTPUTS_OF_PLAIN_TILES                                                                  \
        (WIDE_OUTPUTS | OUTPUT_LOSSES | OUTPUT_LOSS | OUTPUT_LSE | OUTPUT_ARGMAX | OUTPUT_CORRECT | \
         OUTPUT_STATISTICS | OUTPUT_BAD_TARGETS | OUTPUT_COUNTED | OUTPUT_COMPUTED_DENOMINATOR)

/* Passes tiles from `first` on, up to one that is not whole or not plain. What does not change from tile to tile stays in
 * registers, and its code is short enough for the next tile to begin while this one waits for its divisions. PoCL 3.1, Zen 4,
 * part of the time of loss and gradient by AVX-512 and by AVX2: 2 classes 0.71 and 0.78, 10 0.93 and 0.94, 32 0.95 and 0.93, 100
 * 0.84 and 0.67, 256 0.96 and 0.87, strided ones 21 0.84 and 0.84; a process with its first result takes 1.17 to 1.20 of the CPU
 * time. Not neighbours of several blocks: the body moves each block's sum to the row's scale before it adds it, which loses digits
 * near underflow that one move at the end keeps. */
PART ulong pass_plain_tiles(const run *u, tile_input *tile, const ulong first, const ulong last)
{
    const clxent_parameters p = *u->p; /* here, as stores may alias *u */
    run own = *u;
    tile_input in = *tile;
    ulong unit = first;
    if (tile->has_exceptions || (p.flags & FLAG_FROM_STATISTICS) != 0 || p.shift > 0 ||
        ACC_OF(p.z_loss) != 0 || own.denominator == 0 || (p.outputs & ~OUTPUTS_OF_PLAIN_TILES) != 0 ||
        (ALONG && (p.classes > MOST_PLAIN_CLASSES || p.row_stride != p.classes)) ||
        (BY_BLOCKS && p.classes > BLOCK_CLASSES))
        return first;
    own.p = &p;
    in.p = &p;
    in.rows = TILE;
    while (unit < last && row_in_slab(&p, unit) + TILE <= rows_of_slab(&p)) {
        if (!pass_plain_tile(&own, u, &in, unit)) {
            tile->has_exceptions = BY_BLOCKS; /* where much was in vain */
            break;
        }
        unit++;
    }
    return unit;
}
#endif

/* Each kind has code of its own where registers are not short. */
TAKES_LOCAL void epilogue_of_unit(const run *u, unit_input *in, const ulong unit,
                                  const lane_targets t[COLUMNS], const target_terms j[COLUMNS],
                                  const row_result r[COLUMNS], __local uint *scratch)
{
    const clxent_parameters *p = u->p;
    const uint kinds[3] = { OUTPUT_LOG_SOFTMAX, OUTPUT_SOFTMAX, OUTPUT_GRADIENT };
    const bool streaming = (p->flags & FLAG_NONTEMPORAL) != 0;
    uint stored = 0;
    (void)scratch;
#if !COOPERATIVE && (IN_LOCAL || WG_SIZE == 1)
#    pragma unroll
#endif
    for (uint k = 0; k < 3; k++) {
        const uint kind = kinds[k];
        const bool is_wanted = WANTS(p, kind);
        const ulong slab = slab_of(p, unit), within = row_in_slab(p, unit);
        const ulong stride = kind == OUTPUT_GRADIENT ? p->gradient_row_stride : p->probabilities_row_stride;
        destination to = destination_of(u, kind, INNER ? slab * stride + within : within * stride);
        to.aligned = is_aligned(&to, INNER ? p->inner : 0, streaming);
        epilogue g[COLUMNS];
        uint columns = 0;
        for (uint w = 0; w < COLUMNS; w++) {
            if (!is_wanted || !open_rows(u, in, unit, w)) break;
            g[w] = epilogue_of(u, kind, in->row, in->n, &t[w], &j[w], &r[w]);
            columns++;
#if BY_BLOCKS
#elif IN_LOCAL
            stage(in, &r[w], &g[w], OVERWRITES && stored > 0);
#else
            store_values(in, &r[w], &g[w], &to);
#endif
        }
        (void)columns;
        (void)stored;
#if BY_BLOCKS
        if (columns > 0) store_columns(u, in, unit, r, g, &to, columns);
#elif IN_LOCAL
        MEET(in, unit);
        if (is_wanted) {
            store_tile(in, &to, stride);
            stored++;
        }
#endif
        MEET(in, unit);
    }
}
