/* SPDX-License-Identifier: MIT
 *
 * lane_scan.cl - how map_lane.cl reads a tile class by class, all lanes at once. Stands behind tile.cl.
 */
static inline lane tile_maximum(const tile_input *in)
{
    vec m0 = (vec)(-ACC_INFINITY), m1 = m0, m2 = m0, m3 = m0;
    uint c = 0;
    for (; c + 3 < in->classes; c += 4) {
        m0 = vec_max(m0, class_z(in, c));
        m1 = vec_max(m1, class_z(in, c + 1));
        m2 = vec_max(m2, class_z(in, c + 2));
        m3 = vec_max(m3, class_z(in, c + 3));
    }
    for (; c < in->classes; c++) m0 = vec_max(m0, class_z(in, c));
    return vec_max(vec_max(m0, m1), vec_max(m2, m3));
}

/* What exponentials are taken relative to, and the target that is left out of sum_excluding_target. */
typedef struct {
    exp_scale scale;
    lane base; /* see distance_base() */
    bool far;  /* see exp_scale */
    ilane target;
} tile_level;

/* To t, which is no_terms(), what class c adds, whose logits are x; its exponentials are left behind. target_x: the logits of
 * the targets, once their classes were taken. */
ALWAYS_INLINE void take_class(terms *t, lane *target_x, const tile_input *in, const tile_level *level,
                              const vec x, const vec z, const uint c)
{
    const vec e = exp_vector(z, level->scale, level->far);
    if (!INNER || in->prefetches_next) {
        PREFETCH(in->next + c * (INNER ? class_step(in->p) : VEC));
    } else {
        PREFETCH(in->x + (c + CLASSES_AHEAD) * class_step(in->p));
    }
    if (IN_LOCAL) STORE(e, in->values + (size_t)c * PITCH);
    const ilane is_target = level->target == (ilane)((integer)c);
    const vec other = is_target ? (vec)(0) : e;
    if (SUMS_FIND_TARGET) *target_x = is_target ? x : *target_x;
    vec a = (vec)(0);
    if (HAS_DENSE) a = dense_class(in, c);
    take_terms(t, other, z, level->base, a);
}

/* The classes [begin, end). Few classes have large shares: what few terms lose is kept from the first four on. */
ALWAYS_INLINE void sum_classes(block_sums *b, lane *target_x, const tile_input *in, const tile_level *level,
                               const uint begin, const uint end)
{
    vec unused;
    uint c = begin;
    for (; c + 3 < end; c += 4) {
        terms four[4];
#pragma unroll
        for (uint k = 0; k < 4; k++) {
            four[k] = no_terms();
            const vec x = class_x(in, c + k);
            take_class(&four[k], target_x, in, level, x, softcap_vector_z(x, in->o, &unused), c + k);
        }
        add_four(b, four);
        flush(b, false);
    }
    if (c == end) return;
    for (; c < end; c++) {
        terms one = no_terms();
        const vec x = class_x(in, c);
        take_class(&one, target_x, in, level, x, softcap_vector_z(x, in->o, &unused), c);
        add_one(b, &one);
    }
    flush(b, false);
}

#if WG_SIZE > 1 && !IN_LOCAL
/* Adds n <= 4 classes from c on, whose logits are in registers meanwhile: a work-item has four loads under way, and reads no
 * logit twice. */
ALWAYS_INLINE void sum_turn(row_state *s, const tile_input *in, const ilane target,
                            const bool from_statistics, const uint c, const uint n)
{
    vec z[4], unused;
    terms four[4];
    block_sums b = empty_block();
    lane m = s->maximum;
#    pragma unroll
    for (uint k = 0; k < 4; k++) z[k] = k < n ? class_z(in, c + k) : (vec)(-ACC_INFINITY);
#    pragma unroll
    for (uint k = 0; k < 4; k++) m = vec_max(m, z[k]);
    if (!from_statistics) raise_maximum(s, m);
    const tile_level level = { exp_scale_of(s->maximum), distance_base(s->maximum), true, target };
#    pragma unroll
    for (uint k = 0; k < 4; k++) {
        four[k] = no_terms();
        if (k < n) take_class(&four[k], &unused, in, &level, z[k], z[k], c + k);
    }
    add_four(&b, four);
    flush(&b, true);
    add_block(s, &b);
}
#endif

#if BY_BLOCKS
/* What exponentials of the block that class c begins are multiplied by for the row's scale: 1 from its maximum on. */
static inline lane block_rescale(const tile_input *in, const row_result *r, const uint w, const uint c)
{
    const lane maximum = LOAD(in->maxima + (c / BLOCK_CLASSES * COLUMNS + w) * VEC);
    const lane rescale = exp_rescale(exp_scale_of(maximum), r->scale);
    return maximum > (lane)(-ACC_INFINITY) ? rescale : (lane)(0);
}
#else
/* maximum: saved, or as fill_tile() found it of x, which is z unless HAS_Z. Where the tile does not stay on chip, it is read
 * once for maximum and sums together. */
PART_OF_SLAB void sum_tile(row_state *sums, lane *target_x, const run *u, const tile_input *tile,
                           const ilane target, const bool from_statistics, const lane maximum)
{
    const tile_input copy = *tile, *in = &copy; /* in registers: stores may alias *tile */
    row_state s = empty_state();
    lane found = (lane)(-ACC_INFINITY);
    (void)u;
    if (from_statistics || FILL_FINDS_MAXIMUM) {
        s.maximum = maximum;
    } else if (IN_LOCAL) {
        s.maximum = tile_maximum(in);
    }
#    if WG_SIZE > 1 && !IN_LOCAL
    uint c = 0;
    for (; c + 3 < in->classes; c += 4) sum_turn(&s, in, target, from_statistics, c, 4);
    for (; c < in->classes; c++) sum_turn(&s, in, target, from_statistics, c, 1);
#    else
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        if (!IN_LOCAL && !from_statistics) {
            lane m = s.maximum;
            for (uint c = begin; c < end; c++) m = vec_max(m, class_z(in, c));
            raise_maximum(&s, m);
        }
        tile_level level = { exp_scale_of(s.maximum), distance_base(s.maximum), true, target };
        block_sums b = empty_block();
        if (!SUMS_PLAINLY || ANY_LANE(fabs(s.maximum) > (lane)(MAX_NEAR))) {
            sum_classes(&b, &found, in, &level, begin, end);
        } else {
            level.far = false;
            sum_classes(&b, &found, in, &level, begin, end);
        }
        add_block(&s, &b);
    }
#    endif
    *target_x = found;
    *sums = s;
}
#endif

/* Argmax and first NaN: the first NaN and the first maximum of logit_scale * x, where the plan has kept the logits for that. */
static inline void find_classes(const run *u, const tile_input *in, row_state *s)
{
    const uint outputs = u->p->outputs;
    const bool wants_best = (outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0;
    const ilane is_nan = s->sum_excluding_target.high != s->sum_excluding_target.high;
    if (!(u->p->flags & FLAG_KEEPS_LOGITS)) return;
    if (!wants_best && ((outputs & OUTPUT_LSE) == 0 || !ANY_LANE(is_nan))) return;
    s->best = (ilane)(0);
    for (uint c = 0; c < in->classes; c++) {
        const vec v = softcap_vector_s(class_x(in, c), in->o);
        const ilane here = (ilane)((integer)c);
        const ilane better = v > s->top;
        s->best = better ? here : s->best;
        s->top = better ? v : s->top;
        s->nan_at = v != v && s->nan_at == NO_CLASSES ? here : s->nan_at;
    }
}

PART lane tile_excluding_max(const tile_input *in, const row_result *r)
{
    const lane top = exp_lane(r->maximum, r->scale, true);
    compensated_sum sum = compensated_zero();
    for (uint begin = 0; begin < in->classes; begin += PLAIN_CLASSES) {
        const uint end = min(begin + PLAIN_CLASSES, in->classes);
        vec rest = (vec)(0);
#if BY_BLOCKS
        const lane rescale = block_rescale(in, r, in->w, begin);
#endif
        for (uint c = begin; c < end; c++) {
            vec e =
                IN_LOCAL ? LOAD(in->values + (size_t)c * PITCH) : exp_vector(class_z(in, c), r->scale, true);
#if BY_BLOCKS
            e = e * rescale;
#endif
            rest += e == top ? (vec)(0) : e; /* more than half of the sum: there is one such class */
        }
        sum = compensated_merge(sum, (compensated_sum){ rest, (vec)(0) });
    }
    return compensated_value(sum);
}

/* Of class c in all lanes, whose logits are x. again: the exponentials were written over since the sums were taken. rescale:
 * see block_rescale(). */
ALWAYS_INLINE vec value_of_logits(const tile_input *in, const row_result *r, const epilogue *g,
                                  const bool again, const uint c, const vec x, const lane rescale)
{
    vec unused;
    const bool is_gradient = IS_KIND(g, OUTPUT_GRADIENT);
    vec slope = (vec)(1), z = (vec)(0), e = (vec)(0), a = (vec)(0);
    if (IS_KIND(g, OUTPUT_LOG_SOFTMAX)) {
        z = softcap_vector_z(x, in->o, &unused);
    } else if (IN_LOCAL && !again) {
        e = LOAD(in->values + (size_t)c * PITCH);
        if (BY_BLOCKS) e = e * rescale;
        if ((HAS_SOFTCAP || HAS_GRAD_ENTROPY) && is_gradient) z = softcap_vector_z(x, in->o, &slope);
    } else {
        z = softcap_vector_z(x, in->o, &slope);
        e = exp_vector(z, r->scale, true);
    }
    if (HAS_DENSE && is_gradient) a = dense_class(in, c);
    vec value = result_of(r, g, z, slope, e, a);
    if (is_gradient) value = g->class_index == (ilane)((integer)c) ? g->target : value;
    return g->filled ? g->fill : value;
}

ALWAYS_INLINE vec value_of_class(const tile_input *in, const row_result *r, const epilogue *g,
                                 const bool again, const uint c, const lane rescale)
{
    return value_of_logits(in, r, g, again, c, class_x(in, c), rescale);
}

#if IN_LOCAL && !STORES_DIRECTLY
/* Values of all classes, of one vector of lanes, in the place of their exponentials, and to where store_tile() takes them
 * from. */
static inline void stage(const tile_input *tile, const row_result *r, const epilogue *g, const bool again)
{
    const tile_input copy = *tile, *in = &copy; /* see sum_tile() */
    epilogue own = *g;
    if (ANY_LANE(own.filled || own.outer != (lane)(1))) {
        for (uint c = 0; c < in->classes; c++) {
            STORE(value_of_class(in, r, &own, again, c, (lane)(1)), in->values + (size_t)c * PITCH);
        }
    } else {
        own.filled = (ilane)(0);
        own.outer = (lane)(1);
        for (uint c = 0; c < in->classes; c++) {
            STORE(value_of_class(in, r, &own, again, c, (lane)(1)), in->values + (size_t)c * PITCH);
        }
    }
#    if TRANSPOSES
    tile_to_rows(in->values, in->own_rows, in->classes);
#    endif
}
#endif
