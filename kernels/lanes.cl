/* SPDX-License-Identifier: MIT
 *
 * lanes.cl - everything that is computed from logits, where a vector lies across rows: results, and the kernel. Stands
 * behind tiles.cl, which says more and has the list of what the host sets, and lane_sums.cl. cross_entropy.cl has
 * the other rows.
 */
/* ---- [rows, classes] results ---------------------------------------------------------------- */

#define EMIT_LOG_SOFTMAX 0
#define EMIT_SOFTMAX 1
#define EMIT_GRADIENT 2
#define EMIT_KINDS 3

/* What the values of one kind are made of, for the lanes of one vector. */
typedef struct {
    uint kind;
    bool again;  /* the exponentials were written over since the sums were taken */
    lane factor; /* of the exponentials, and what it was rounded by: few classes have large shares */
    lane rest;
    gradient_factors g;
    ilane target;
} emission;

/* Where they go. */
typedef struct {
    bool is_gradient;
    bool aligned; /* whole vectors may bypass the cache */
    __global storage *out;
    __global gradient_storage *gradient;
} destination;

#if !ALONG
/* Of class c in all lanes. */
INLINE vec emit_value(const tile_input *in, const row_result *r, const emission *m, const uint c)
{
    if (m->kind == EMIT_LOG_SOFTMAX) {
        const vec value = -((r->maximum - get_z(in, c)) + r->log_d);
        return r->valid ? value : (vec)(REAL_NAN); /* computed NaNs differ in bits */
    }
    vec slope = (vec)(1);
    vec e;
    if (CACHED && !m->again) {
        e = LOAD(in->values + (size_t)c * PITCH);
        if (HAS_SOFTCAP && m->kind == EMIT_GRADIENT) (void)softcap_vector_z(get_x(in, c), in->o, &slope);
    } else {
        e = exp_vector(softcap_vector_z(get_x(in, c), in->o, &slope), r->scale, true);
    }
    vec value = fma(e, m->factor, e * m->rest);
    if (m->kind == EMIT_SOFTMAX) return r->valid ? value : (vec)(REAL_NAN);
    if (HAS_DENSE) value = value - dense_class(in, c);
    if (!HAS_ONE_FACTOR) value = value * m->g.outer * slope;
    value = m->target == (ilane)((integer)c) ? m->g.target : value;
    return m->g.filled ? m->g.fill : value;
}
#endif

#if !COOPERATIVE
/* A vector at element `at`, of which n exist. */
INLINE void put(const destination *to, const ulong at, const vec value, const uint n)
{
    vec sum = value;
    if (!to->is_gradient) {
        if (n == VEC) {
            store_vector(to->out + at, value, to->aligned);
        } else {
            store_partial(to->out + at, value, n);
        }
    } else if (n == VEC) {
        if (ACCUMULATE) sum = accumulated(load_gradient_vector(to->gradient + at), value);
        store_gradient_vector(to->gradient + at, sum, to->aligned);
    } else {
        if (ACCUMULATE) sum = accumulated(load_gradient_partial(to->gradient + at, n), value);
        store_gradient_partial(to->gradient + at, sum, n);
    }
}
#endif

#if !INNER
INLINE void put_one(const destination *to, const ulong at, const real value)
{
    if (!to->is_gradient) {
        store_one(to->out + at, value);
    } else if (ACCUMULATE) {
        if (value != 0) store_gradient_one(to->gradient + at, value + load_gradient_one(to->gradient + at));
    } else {
        store_gradient_one(to->gradient + at, value);
    }
}
#endif

/* Whether vectors that begin at multiples of VEC elements are aligned. */
static inline bool is_aligned(const destination *to, const ulong step, const bool streaming)
{
    const size_t size = to->is_gradient ? sizeof(gradient_storage) : sizeof(storage);
    const size_t address = to->is_gradient ? (size_t)to->gradient : (size_t)to->out;
    return (streaming || TELLS_ALIGNED) && address % (VEC * size) == 0 && step % VEC == 0;
}

#if ALONG
/* Values of all classes, in the place of their exponentials. */
static inline void stage_along(const tile_input *in, const row_result *r, const emission *m,
                               __local real *values)
{
    const bool is_gradient = m->kind == EMIT_GRADIENT;
    const ilane filled = is_gradient ? m->g.filled : !r->valid;
    const lane fill = is_gradient ? m->g.fill : (lane)(REAL_NAN);
    real factors[VEC], rests[VEC], fills[VEC], targets[VEC];
    integer is_filled[VEC], target[VEC];
    STORE(m->factor, factors);
    STORE(m->rest, rests);
    STORE(fill, fills);
    STORE(filled, is_filled);
    STORE(m->g.target, targets);
    STORE(m->target, target);
    for (uint i = 0; i < in->n; i++) {
        const vec factor = (vec)(factors[i]), rest = (vec)(rests[i]);
        const uint last = in->classes - VEC;
        __local real *row = values + i * in->classes;
        if (is_filled[i]) {
            for (uint c = 0; c < last; c += VEC) STORE((vec)(fills[i]), row + c);
            STORE((vec)(fills[i]), row + last);
            continue;
        }
        const vec e_last = LOAD(row + last); /* before the one beside it is written over */
        for (uint c = 0; c < last; c += VEC) {
            const vec e = LOAD(row + c);
            STORE(fma(e, factor, e * rest), row + c);
        }
        STORE(fma(e_last, factor, e_last * rest), row + last);
        if (is_gradient && target[i] >= 0) row[target[i]] = targets[i];
    }
}

#elif CACHED && !STORES_DIRECTLY
/* Values of all classes, of one vector of lanes, to where store_tile() takes them from. */
static inline void stage(const tile_input *in, const row_result *r, const emission *m, __local real *own_rows)
{
#    if TRANSPOSES
#        if VEC > 1
    if (in->classes == 2) {
        const vec a = emit_value(in, r, m, 0), b = emit_value(in, r, m, 1);
        STORE(ZIP(a.lo, b.lo, s), own_rows);
        STORE(ZIP(a.hi, b.hi, s), own_rows + VEC);
        return;
    }
#        endif
    for (uint left = in->classes; left > 0;) {
        const uint n = left % VEC > 0 ? left % VEC : VEC; /* the last classes first: see rows_to_tile() */
        const uint c = left == in->classes ? (in->classes - 1) / VEC * VEC : left - VEC;
        vec v[VEC];
        if (n == VEC) {
#        pragma unroll
            for (uint i = 0; i < VEC; i++) v[i] = emit_value(in, r, m, c + i);
        } else {
            for (uint i = 0; i < VEC; i++) {
                v[i] = (vec)(0);
                if (i < n) v[i] = emit_value(in, r, m, c + i);
            }
        }
        transpose(v);
#        pragma unroll
        for (uint i = 0; i < VEC; i++) STORE(v[i], own_rows + i * in->classes + c);
        left = c;
    }
#    else
    (void)own_rows;
    for (uint c = 0; c < in->classes; c++) {
        const vec value = emit_value(in, r, m, c);
        STORE(value, in->values + (size_t)c * PITCH);
    }
#    endif
}

#endif

#if STORES_DIRECTLY
/* Values of all classes of this work-item's columns, of which there are `columns`, side by side as they lie. */
INLINE void store_columns(const tile_input *each, const row_result *r, const emission *m,
                          const destination *at, const uint columns, const bool streaming)
{
    const clxent_parameters *p = each[0].p;
    destination to = *at;
    to.aligned = is_aligned(&to, p->inner, streaming);
#    if HAS_ONE_FACTOR && !HAS_Z /* else so much code takes long to compile */
    if (columns == COLUMNS && each[COLUMNS - 1].n == VEC) {
        for (uint c = 0; c < p->classes; c++) {
#        pragma unroll
            for (uint w = 0; w < COLUMNS; w++) {
                put(&to, c * class_step(p) + w * VEC, emit_value(&each[w], &r[w], &m[w], c), VEC);
            }
        }
        return;
    }
#    endif
    for (uint c = 0; c < p->classes; c++) {
        for (uint w = 0; w < COLUMNS && w < columns; w++) {
            put(&to, c * class_step(p) + w * VEC, emit_value(&each[w], &r[w], &m[w], c), each[w].n);
        }
    }
}
#elif CACHED
/* stride: from row to row (slab to slab, with INNER) of the destination, which begins at the tile's first row. */
static inline void store_tile(const tile_input *in, const destination *at, const ulong stride,
                              const bool streaming, const __local real *values, const __local real *own_rows,
                              const uint rows)
{
    destination to = *at;
    to.aligned = is_aligned(&to, INNER ? in->p->inner : 0, streaming);
#    if IN_ORDER
    (void)values;
    if (stride == in->classes) {
        const uint all = rows * in->classes;
        uint e = 0;
        for (; e + VEC <= all; e += VEC) put(&to, e, LOAD(own_rows + e), VEC);
        for (; e < all; e++) put_one(&to, e, own_rows[e]);
        return;
    }
    to.aligned = false;
    for (uint i = 0; i < rows; i++) {
        uint c = 0;
        for (; c + VEC <= in->classes; c += VEC) {
            put(&to, i * stride + c, LOAD(own_rows + i * in->classes + c), VEC);
        }
        for (; c < in->classes; c++) put_one(&to, i * stride + c, own_rows[i * in->classes + c]);
    }
#    elif COOPERATIVE
    (void)own_rows;
    for (uint e = (uint)get_local_id(0); e < rows * in->classes; e += WG_SIZE) {
        const uint row = e / in->classes, c = e % in->classes;
        put_one(&to, row * stride + c, values[(size_t)c * PITCH + row]);
    }
#    else
    (void)stride;
    (void)own_rows;
    const uint first = (uint)get_local_id(0) * VEC;
    for (uint c = 0; c < in->classes && first < rows; c++) {
        const vec value = LOAD(values + first + (size_t)c * PITCH);
        put(&to, c * class_step(in->p) + first, value, min((uint)VEC, rows - first));
    }
#    endif
}

#else
/* Without a tile to put them in between. */
static inline void store_values(const tile_input *in, const row_result *r, const emission *m,
                                const destination *at, const bool streaming)
{
    destination to = *at;
    to.aligned = is_aligned(&to, in->p->inner, streaming);
    UNROLL_ALONE
    for (uint c = 0; c < in->classes; c++) put(&to, c * class_step(in->p), emit_value(in, r, m, c), in->n);
}
#endif

/* ---- The kernel ----------------------------------------------------------------------------- */

/* The results that a row has one of, of all lanes. */
static inline void write_rows(const tile_input *in, const row_result *r, const judgement *j,
                              const tile_sums *s, const lane_targets *t, __global real *losses,
                              __global real *lse, __global long *argmax, __global real *entropy,
                              __global real *statistics, __global uchar *workspace)
{
    const clxent_parameters *p = in->p;
    const uint outputs = p->outputs;
    const ilane best = s->nan_at >= (ilane)(0) ? s->nan_at : s->best;
    if (TARGETS != TARGET_NONE && (outputs & (OUTPUT_LOSSES | OUTPUT_LOSS)) != 0) {
        __global real *to = (outputs & OUTPUT_LOSSES) ? losses + p->offset.losses
                                                      : (__global real *)(workspace + p->row_losses_at);
        store_lanes(to + in->row, loss_of(r, j, in->o.z_loss), in->n);
    }
    if (outputs & OUTPUT_LSE) store_lanes(lse + p->offset.lse + in->row, r->lse, in->n);
    if (outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) {
        integer at[VEC], hit[VEC];
        const ilane is_hit = t->has_class && best == t->class_index;
        STORE(best, at);
        STORE(is_hit, hit);
        for (uint i = 0; i < in->n; i++) {
            if (outputs & OUTPUT_ARGMAX) argmax[p->offset.argmax + in->row + i] = at[i];
            if (outputs & OUTPUT_CORRECT) workspace[p->correct_at + in->row + i] = hit[i] != 0;
        }
    }
    if (WANTS(p, OUTPUT_ENTROPY)) {
        store_lanes(entropy + p->offset.entropy + in->row, entropy_of(r, j, long_value(s->entropy)), in->n);
    }
    if ((outputs & OUTPUT_STATISTICS) && !(p->flags & FLAG_FROM_STATISTICS)) {
        real maximum[VEC], others[VEC];
        const lane zero = (lane)(0), m = t->counts ? r->maximum : zero,
                   d = t->counts ? r->others * (lane)(STATISTICS_FACTOR) : zero;
        STORE(m, maximum);
        STORE(d, others);
        for (uint i = 0; i < in->n; i++) {
            statistics[p->offset.statistics + 2 * (in->row + i)] = maximum[i];
            statistics[p->offset.statistics + 2 * (in->row + i) + 1] = others[i];
        }
    }
}

static inline judgement judge(const tile_input *in, const lane_targets *t)
{
    const lane zero = (lane)(0);
    judgement j;
    j.counts = t->counts;
    j.bad = t->bad;
    j.weight = t->weight;
    j.slope = (lane)(1);
    j.z = softcap_vector_z(target_logits(in, t->class_index), in->o, &j.slope);
    const lane class_weight = HAS_CLASS_WEIGHTS ? gather(in->class_weights, t->class_index) : (lane)(1);
    j.one_hot = t->has_class ? (lane)(in->o.keep) * class_weight : zero;
    const lane of_class = t->has_class ? (lane)(in->o.share) * class_weight : zero;
    j.dense = HAS_DENSE && !HAS_PROBABILITIES ? of_class : zero;
    j.dense_sum = (lane)(HAS_DENSE ? in->o.smoothing : 0);
    j.dense_nll = zero;
    return j;
}

/* All work-items of a group that shares a tile. A branch right behind a barrier, on a condition known before, PoCL 3.1
 * decides once for all of them, by the last one's: so what they compare themselves with is read from memory there. */
#if COOPERATIVE
#    define MEET                          \
        do {                              \
            barrier(CLK_LOCAL_MEM_FENCE); \
            rows = tile_rows[tile & 1];   \
        } while (0)
#else
#    define MEET (void)0
#endif

/* Grid: a work-group for tiles_per_group tiles; a slab of inner rows (all rows with the class axis last) has `tiles`
 * of them. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_lanes(ARGUMENTS)
{
#if COOPERATIVE
    __local uint
        tile_rows[2]; /* of this tile and of the next, which work-item 0 may be at while others are here */
#endif
    const uint lid = (uint)get_local_id(0);
    const uint outputs = p.outputs;
    const bool from_statistics = (p.flags & FLAG_FROM_STATISTICS) != 0;
    const bool streaming = (p.flags & FLAG_NONTEMPORAL) != 0;
    const bool keeps_logits = (p.flags & FLAG_KEEPS_LOGITS) != 0;
    const bool wants_best = (outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    const bool second_pass = NEEDS_LOG_D && !from_statistics;
#if ALONG
    const along_wishes wishes = { WANTS(&p, OUTPUT_SOFTMAX | OUTPUT_GRADIENT), wants_best,
                                  wants_best || (outputs & OUTPUT_LSE) != 0 };
#endif
    const real d = get_d(&p, targets, row_weights, denominator, workspace);
    const ulong slab_rows = INNER ? p.inner : p.rows;
    const size_t tile_size = (size_t)p.classes * PITCH * COLUMNS;
    __local real *values = keeps_logits ? cache + tile_size : cache;
    __local real *own_rows = ALONG ? cache : values + tile_size;
    (void)own_rows; /* where there is no tile */
    tile_input in;
    in.p = &p;
    in.classes = p.classes;
    in.brings_next = tile_size * sizeof(real) <= MOST_BROUGHT;
    in.q_at = 0;
    in.targets = targets;
    in.class_weights = class_weights + p.offset.class_weights;
    in.o = options_of(&p);

    const ulong tiles = p.rows / slab_rows * p.tiles;
    const ulong first_tile = get_group_id(0) * (ulong)p.tiles_per_group;
    const ulong last_tile = min(first_tile + p.tiles_per_group, tiles);
#if TRANSPOSES
    STORE((vec)(0), own_rows + VEC * p.classes); /* read beside the last row */
#endif
    for (ulong tile = first_tile; tile < last_tile; tile++) {
        const ulong slab = tile / p.tiles, within = tile % p.tiles * TILE;
        const ulong first_row = slab * slab_rows + within;
        uint rows = (uint)min((ulong)TILE, slab_rows - within); /* of this tile */
#if COOPERATIVE
        if (lid == 0) tile_rows[tile & 1] = rows;
#endif
        __global const storage *x = logits + p.offset.logits;
        x += INNER ? slab * p.row_stride + within : within * p.row_stride;
        in.row = first_row + lid * VEC;
        in.n = lid * VEC < rows ? min((uint)VEC, rows - lid * VEC) : 0;
        in.x = x + lid * VEC * lane_step(p.row_stride);
        in.next = in.x + (p.row_stride == p.classes ? TILE * p.row_stride : 0); /* rows without gaps */
        in.logits = cache + lid * VEC;
#if TELLS_ALIGNED
        in.aligned = p.inner % VEC == 0 && IS_ALIGNED(in.x, storage);
#endif
        lane maximum[COLUMNS]; /* saved, or of this tile */
        for (uint w = 0; w < COLUMNS; w++) maximum[w] = (lane)(0);
#if HOLDS_LOGITS
        fill_tile(&in, cache, own_rows, rows, maximum);
#endif
        MEET;

        row_result r[COLUMNS];
        emission m[COLUMNS];
#if COLUMNS > 1
        tile_input each[COLUMNS];
#else
        const tile_input *each = &in;
        (void)each; /* where rows are stored otherwise */
#endif
        for (uint w = 0; w < COLUMNS && (lid + w) * VEC < rows; w++) {
            const uint lane_0 = (lid + w) * VEC;
            in.row = first_row + lane_0;
            in.n = min((uint)VEC, rows - lane_0);
            in.x = x + lane_0 * lane_step(p.row_stride);
            if (INNER) in.next = in.x + TILE;
            in.logits = cache + lid * VEC + (size_t)w * p.classes * PITCH;
            in.values = in.logits + (values - cache);
            in.q_at = target_start(&in, 0);
            lane saved_others = (lane)(0);
            if (from_statistics) {
                real top[VEC], others[VEC];
                for (uint i = 0; i < VEC; i++) {
                    const ulong at = p.offset.statistics + 2 * (in.row + min(i, in.n - 1));
                    top[i] = statistics[at];
                    others[i] = statistics[at + 1];
                }
                maximum[w] = LOAD(top);
                saved_others = LOAD(others) * (lane)(1 / STATISTICS_FACTOR);
            }
            const lane_targets t = get_targets(&p, in.row, in.n, targets, row_weights);
            judgement j = judge(&in, &t);
#if ALONG
            tile_sums s = sum_rows(&in, t.class_index, from_statistics, maximum[w], wishes, own_rows);
#else
            tile_sums s = sum_tile(&in, t.class_index, from_statistics, maximum[w]);
#endif
            if (SUMS_WEIGHT) j.dense_sum = long_value(s.dense_weight);
            if (HAS_DENSE) j.dense_nll = long_value(s.dense_nll);
            const lane others = from_statistics ? saved_others : long_value(s.others);
            const lane target_exp = t.has_class ? exp_lane(j.z, exp_scale_of(s.maximum), true) : (lane)(0);
            const ilane sum_is_nan = others + target_exp != others + target_exp;
#if ALONG
            if (wishes.nan && ANY_LANE(sum_is_nan)) s.nan_at = find_nans_along(&in, sum_is_nan);
#else
            if (keeps_logits && (wants_best || ((outputs & OUTPUT_LSE) && ANY_LANE(sum_is_nan)))) {
                find_best(&in, &s);
            }
#endif
            r[w] = finish_sums(s.maximum, others, target_exp, s.nan_at >= (ilane)(0));
            const lane saved_lse = r[w].lse;
            if (second_pass && ANY_LANE(r[w].confident)) keep_top_apart(&r[w], sum_below_top(&in, &r[w]));
            write_rows(&in, &r[w], &j, &s, &t, losses, lse, argmax, entropy, statistics, workspace);

            lane outer;
            if (p.flags & FLAG_UPSTREAM_ROWS) {
                outer = t.weight * load_lanes(upstream + p.offset.upstream + in.row, in.n) / (lane)(d);
            } else {
                const real up = (p.flags & FLAG_UPSTREAM) ? upstream[p.offset.upstream] : REAL(1.0);
                if (p.flags & FLAG_ROW_WEIGHTS) {
                    outer = t.weight * (lane)(up) / (lane)(d);
                } else {
                    outer = (lane)(up / d); /* of rows that do not count it is not used */
                }
            }
            if (HAS_LOGIT_SCALE) outer = outer * (lane)(in.o.logit_scale);
            m[w].g = gradient_of(&r[w], &j, in.o.z_loss, saved_lse, outer, divides_by_own_d(&p) && d == 0);
            m[w].target = t.class_index;
#if COLUMNS > 1
            each[w] = in;
#endif
        }

        uint stored = 0; /* kinds; each has code of its own where registers are not short */
#if !COOPERATIVE && (CACHED || WG_SIZE == 1)
#    pragma unroll
#endif
        for (uint kind = 0; kind < EMIT_KINDS; kind++) {
            const uint output = kind == EMIT_LOG_SOFTMAX ? OUTPUT_LOG_SOFTMAX
                                : kind == EMIT_SOFTMAX   ? OUTPUT_SOFTMAX
                                                         : OUTPUT_GRADIENT;
            const bool is_wanted = WANTS(&p, output);
            const ulong stride = kind == EMIT_GRADIENT ? p.gradient_row_stride : p.probabilities_row_stride;
            const ulong at = INNER ? slab * stride + within : within * stride;
            const destination to = { kind == EMIT_GRADIENT, false,
                                     kind == EMIT_LOG_SOFTMAX ? log_softmax + p.offset.log_softmax + at
                                                              : softmax + p.offset.softmax + at,
                                     gradient + p.offset.gradient + at };
            for (uint w = 0; w < COLUMNS && is_wanted && (lid + w) * VEC < rows; w++) {
#if COLUMNS == 1
                /* once more: PoCL 3.1 loses `in` at a barrier */
                in.row = first_row + lid * VEC;
                in.n = min((uint)VEC, rows - lid * VEC);
                in.x = x + lid * VEC * lane_step(p.row_stride);
                in.logits = cache + lid * VEC;
                in.values = in.logits + (values - cache);
                in.q_at = target_start(&in, 0);
#endif
                m[w].kind = kind;
                m[w].again = OVERWRITES && stored > 0;
                if (kind == EMIT_SOFTMAX) {
                    m[w].factor = m[w].g.inverse;
                    m[w].rest = fma(-m[w].factor, r[w].d, (lane)(1)) * m[w].factor;
                } else if (!HAS_ONE_FACTOR) {
                    m[w].factor = m[w].g.factor;
                    m[w].rest = m[w].g.rest;
                } else {
                    m[w].factor = m[w].g.factor * m[w].g.outer;
                    const lane rest =
                        fma(m[w].g.factor, m[w].g.outer, -m[w].factor) + m[w].g.rest * m[w].g.outer;
                    /* an infinite factor, as a denominator of 0 gives, was rounded by nothing */
                    m[w].rest = fabs(m[w].factor) < (lane)(REAL_INFINITY) ? rest : (lane)(0);
                }
#if ALONG
                stage_along(&in, &r[w], &m[w], own_rows);
#elif CACHED && !STORES_DIRECTLY
                stage(&in, &r[w], &m[w], own_rows);
#elif !STORES_DIRECTLY
                destination own = to;
                own.out += lid * VEC;
                own.gradient += lid * VEC;
                store_values(&in, &r[w], &m[w], &own, streaming);
#endif
            }
#if STORES_DIRECTLY
            if (is_wanted) store_columns(each, r, m, &to, (rows + VEC - 1) / VEC, streaming);
            (void)stored;
#elif CACHED
            MEET;
            if (is_wanted) {
                store_tile(&in, &to, stride, streaming, values, own_rows, rows);
                stored++;
            }
#endif
            MEET;
        }
    }
}
