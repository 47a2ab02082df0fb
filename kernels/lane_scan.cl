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

/* What class c of the next tile takes, or of this one the next block. */
ALWAYS_INLINE void prefetch_class(const tile_input *in, const uint c)
{
    if (!INNER || in->prefetches_next) {
        PREFETCH(in->next + c * (INNER ? class_step(in->p) : VEC));
    } else {
        PREFETCH(in->x + (c + CLASSES_AHEAD) * class_step(in->p));
    }
}

/* To t, which is no_terms(), what class c adds, whose logits are x; its exponentials are left behind. target_x: the logits of
 * the targets, once their classes were taken. */
ALWAYS_INLINE void take_class(terms *t, lane *target_x, const tile_input *in, const tile_level *level,
                              const vec x, const vec z, const uint c)
{
    const vec e = exp_vector(z, level->scale, level->far);
    prefetch_class(in, c);
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
        add_terms(&b->few, &one);
    }
    flush(b, false);
}

#if SHARES_SCALE && SUMS_PLAINLY
#    if !TRANSPOSES
/* The logits of the targets among the classes [begin, end). */
ALWAYS_INLINE lane find_targets(const tile_input *in, const lane found, const ilane target, const uint begin,
                                const uint end)
{
    const ilane first = (ilane)((integer)begin);
    const ilane is_here = target >= first && target < (ilane)((integer)end);
    if (!ANY_LANE(is_here)) return found;
    integer at[VEC];
    acc_t x[VEC];
    const ilane clamped = is_here ? target : first;
    STORE(clamped, at);
#        pragma unroll
    for (uint i = 0; i < VEC; i++) x[i] = in->logits[(size_t)at[i] * PITCH + i];
    return is_here ? LOAD(x) : found;
}
#    endif

/* sum_classes() of rows that are near and share the scale of `q`, to the same bits: constants that lanes share, and sums apart
 * from exponentials, which the 16 registers of AVX2 have no room for at once. */
ALWAYS_INLINE void sum_shared(plain_sums *s, const tile_input *in, const acc_t q, const ilane target,
                              const uint begin, const uint end)
{
    compensated_vector sum = { (vec)(0), (vec)(0) };
    const exp_scale scale = { (lane)(0), (lane)(q), (lane)((q - BIAS) * (acc_t)LN2_HIGH) };
#    if !TRANSPOSES
    s->found.x = find_targets(in, s->found.x, target, begin, end);
#    endif
    for (uint c = begin; c < end; c++) {
        prefetch_class(in, c);
        STORE(exp_vector(class_x(in, c), scale, false), in->values + (size_t)c * PITCH);
    }
    const __local acc_t *e = in->values + (size_t)begin * PITCH;
    const __local acc_t *x = in->logits + (size_t)begin * PITCH;
    found_targets found = s->found;
    ilane left = target - (ilane)((integer)begin);
    uint c = begin;
    for (; c + 3 < end; c += 4) {
        vec four[4];
#    pragma unroll
        for (uint k = 0; k < 4; k++) {
            const ilane is_target = left == (ilane)((integer)k);
            const vec one = LOAD(e + (size_t)k * PITCH);
            four[k] = is_target ? (vec)(0) : one;
            found.e = is_target ? one : found.e;
            if (TRANSPOSES) found.x = is_target ? LOAD(x + (size_t)k * PITCH) : found.x;
        }
        sum = compensated_add_vector(sum, (four[0] + four[1]) + (four[2] + four[3]));
        e += (size_t)4 * PITCH;
        x += (size_t)4 * PITCH;
        left -= (ilane)(4);
    }
    vec few = (vec)(0);
    for (; c < end; c++) {
        const ilane is_target = left == (ilane)(0);
        const vec one = LOAD(e);
        few += is_target ? (vec)(0) : one;
        found.e = is_target ? one : found.e;
        if (TRANSPOSES) found.x = is_target ? LOAD(x) : found.x;
        e += PITCH;
        x += PITCH;
        left -= (ilane)(1);
    }
    s->found = found;
    if (end - begin < 4) {
        s->sum = (compensated_sum){ few, (vec)(0) }; /* nothing was added yet */
    } else {
        s->sum = compensated_add_vector(sum, few);
    }
}
#endif

/* Of the block that class `begin` begins. Most tiles have one, to which nothing is added. */
ALWAYS_INLINE void add_sums(row_state *s, const block_sums *b, const uint begin)
{
    if (WG_SIZE > 1 || begin > 0) {
        add_block(s, b);
        return;
    }
    s->sum_excluding_target = b->sum_excluding_target;
#if HAS_ENTROPY
    s->entropy = b->entropy;
#endif
#if HAS_DENSE
    s->dense_nll = b->nll;
    s->dense_weight = b->weight;
#endif
}

/* add_classes() of rows each at its own scale. */
ALWAYS_INLINE void add_at_own_scales(row_state *s, lane *target_x, const tile_input *in, const ilane target,
                                     const uint begin, const uint end)
{
    tile_level level = { tile_scale_of(s->maximum), distance_base(s->maximum), true, target };
    block_sums b = empty_block();
    if (SHARES_SCALE || !SUMS_PLAINLY || ANY_LANE(fabs(s->maximum) > (lane)(MAX_NEAR))) {
        sum_classes(&b, target_x, in, &level, begin, end);
    } else {
        level.far = false;
        sum_classes(&b, target_x, in, &level, begin, end);
    }
    if (SHARES_SCALE) scale_block(&b, exp_rescale(level.scale, exp_scale_of(s->maximum)));
    add_sums(s, &b, begin);
}

#if SHARES_SCALE && SUMS_PLAINLY
/* A function of its own, as what its loop does not change would be computed for every tile. */
PART void add_rarely(row_state *s, lane *target_x, const tile_input *tile, const ilane target,
                     const uint begin, const uint end)
{
    const tile_input copy = *tile; /* in registers: stores may alias *tile */
    row_state own = *s;
    lane found = *target_x;
    add_at_own_scales(&own, &found, &copy, target, begin, end);
    *s = own;
    *target_x = found;
}
#endif

/* Adds the classes [begin, end) to s, whose maximum is theirs too. */
ALWAYS_INLINE void add_classes(row_state *s, lane *target_x, const tile_input *tile, const ilane target,
                               const uint begin, const uint end)
{
    const tile_input copy = *tile, *in = &copy; /* in registers: stores may alias *tile */
#if SHARES_SCALE && SUMS_PLAINLY
    const lane steps = scale_steps(s->maximum);
    const acc_t shared = steps.s0;
    if (fabs(shared) < MAX_NEAR / SCALE_STEP && !ANY_LANE(steps != (lane)(shared))) {
        const acc_t q = Q_OF_STEPS(acc_t, shared);
        block_sums b = empty_block();
        plain_sums all = { s->maximum, compensated_zero(), { *target_x, (lane)(0) } };
        sum_shared(&all, in, q, target, begin, end);
        b.sum_excluding_target = all.sum;
        *target_x = all.found.x;
        scale_block(&b, power_of_two((lane)(q)-exp_scale_of(s->maximum).q));
        add_sums(s, &b, begin);
    } else {
        const tile_input in_memory = *tile; /* what the function is given lies in memory */
        row_state own = *s;
        lane found = *target_x;
        add_rarely(&own, &found, &in_memory, target, begin, end);
        *s = own;
        *target_x = found;
    }
#else
    add_at_own_scales(s, target_x, in, target, begin, end);
#endif
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

#if !BY_BLOCKS
/* maximum: saved, or as fill_tile() found it of x, which is z unless HAS_Z. Where the tile does not stay on chip, it is read
 * once for maximum and sums together. */
PART_OF_SLAB void sum_tile(row_state *sums, lane *target_x, const run *u, const tile_input *tile,
                           const ilane target, const bool from_statistics, const lane maximum)
{
    const tile_input copy = *tile, *in = &copy; /* see add_classes() */
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
        add_classes(&s, &found, tile, target, begin, end);
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
        const rescaling by = block_rescaling(in, r, in->w, begin);
        for (uint c = begin; c < end; c++) {
            const vec e = IN_LOCAL ? LOAD(in->values + (size_t)c * PITCH) * by.first * by.second
                                   : exp_vector(class_z(in, c), r->scale, true);
            rest += e == top ? (vec)(0) : e; /* more than half of the sum: there is one such class */
        }
        sum = compensated_merge(sum, (compensated_sum){ rest, (vec)(0) });
    }
    return compensated_value(sum);
}

/* Of class c in all lanes, whose logits are x. again: the exponentials were written over since the sums were taken. by: what
 * they are multiplied by. */
ALWAYS_INLINE vec value_of_logits(const tile_input *in, const row_result *r, const epilogue *g,
                                  const bool again, const uint c, const vec x, const rescaling by)
{
    vec unused;
    const bool is_gradient = IS_KIND(g, OUTPUT_GRADIENT);
    vec slope = (vec)(1), z = (vec)(0), e = (vec)(0), a = (vec)(0);
    if (IS_KIND(g, OUTPUT_LOG_SOFTMAX)) {
        z = softcap_vector_z(x, in->o, &unused);
    } else if (IN_LOCAL && !again) {
        e = LOAD(in->values + (size_t)c * PITCH) * by.first * by.second;
        if ((HAS_SOFTCAP || HAS_GRAD_ENTROPY) && is_gradient) z = softcap_vector_z(x, in->o, &slope);
    } else {
        z = softcap_vector_z(x, in->o, &slope);
        e = exp_vector(z, IN_LOCAL ? tile_scale_of(r->maximum) : r->scale, true) * by.first * by.second;
    }
    if (HAS_DENSE && is_gradient) a = dense_class(in, c);
    vec value = result_of(r, g, z, slope, e, a);
    if (is_gradient) value = g->class_index == (ilane)((integer)c) ? g->target : value;
    return g->filled ? g->fill : value;
}

ALWAYS_INLINE vec value_of_class(const tile_input *in, const row_result *r, const epilogue *g,
                                 const bool again, const uint c, const rescaling by)
{
    return value_of_logits(in, r, g, again, c, class_x(in, c), by);
}

#if IN_LOCAL && !STORES_DIRECTLY
/* Values of all classes, of one vector of lanes, in the place of their exponentials, and to where store_tile() takes them
 * from. */
static inline void stage(const tile_input *tile, const row_result *r, const epilogue *g, const bool again)
{
    const tile_input copy = *tile, *in = &copy; /* see add_classes() */
    epilogue own = *g;
    rescaling by = block_rescaling(in, r, 0, 0);
    const ilane loses = fold_rescaling(&own, &by);
    if (ANY_KEPT(EITHER(EITHER(own.filled, HAS_OUTER(&own)), loses))) {
        for (uint c = 0; c < in->classes; c++) {
            STORE(value_of_class(in, r, &own, again, c, by), in->staged + (size_t)c * PITCH);
        }
    } else {
        own.filled = (ilane)(0);
        own.outer = (lane)(1);
        for (uint c = 0; c < in->classes; c++) {
            const rescaling left = HAS_PLAIN_FACTOR(g) ? no_rescaling() : by;
            STORE(value_of_class(in, r, &own, again, c, left), in->staged + (size_t)c * PITCH);
        }
    }
#    if TRANSPOSES
    tile_to_rows(in->staged, in->own_rows, in->classes);
#    endif
}
#endif

#if HAS_PLAIN_TILES
/* The first class whose logit is the maximum. */
static inline ilane find_best(const tile_input *in, const lane maximum)
{
    ilane best = NO_CLASSES;
    for (uint c = in->classes; c-- > 0;) best = class_x(in, c) == maximum ? (ilane)((integer)c) : best;
    return best;
}
#endif

#if HAS_PLAIN_TILES && !BY_BLOCKS
/* Of rows whose gradients are exponentials times a factor, but for their targets'. */
ALWAYS_INLINE void stage_shared(const tile_input *in, const plain_factors *f)
{
    for (uint c = 0; c < in->classes; c++) {
        const vec e = LOAD(in->values + (size_t)c * PITCH);
        const vec value = fma(e, f->factor, e * f->rest);
        STORE(f->class_index == (ilane)((integer)c) ? f->target : value, in->staged + (size_t)c * PITCH);
    }
}
#endif
