/* SPDX-License-Identifier: MIT
 *
 * group_rows.cl - how the work-items of a group read a row and write its results: the shape of GPUs. Stands behind
 * row_input.cl in front of map_row.cl; row_scan.cl and row_results.cl have the ways of one work-item alone.
 *
 * Of the block that begins with vector `first`, work-item l has the vectors first + i * WG_SIZE + l, i < BLOCK, in
 * registers: neighbours load neighbouring vectors, and all of a work-item's loads are under way together. VEC divides
 * the class count: of those that it does not, vectors have one element (host/tuning.c), so that neighbours load
 * neighbouring classes, and which class is whose follows from the class count alone, not from where a row begins.
 *
 * Set by the host with -D, beside those of row_input.cl:
 *   ONE_BLOCK  1: no row has more than one block. A row then is read once, and stays in registers until its results are
 *              written
 */
#if !defined(ONE_BLOCK) || ONE_BLOCK < 0 || ONE_BLOCK > 1
#    error "ONE_BLOCK: 0 or 1"
#endif
/* Arrays of BLOCK vectors are registers where loops over them are unrolled. Not on PoCL, which runs no GPU and took 240 s to
 * compile all outputs in groups of 64. */
#if defined(POCL_DEVICE_ADDRESS_BITS)
#    define UNROLL_BLOCK _Pragma("unroll 1")
#else
#    define UNROLL_BLOCK _Pragma("unroll")
#endif

/* Whether a row stays as its exponentials, or as its logits, which log-softmax, the softcap's slope and an entropy's gradient
 * need. */
#define KEEPS_EXP (ONE_BLOCK && !HAS_SOFTCAP && !HAS_GRAD_ENTROPY && (OUTPUTS & OUTPUT_LOG_SOFTMAX) == 0)

DEFINE_GROUP_TREE(group_max, acc_t, acc_max)

static inline uint own_vector(const uint first, const uint i) { return first + i * WG_SIZE + LOCAL_ID; }

/* Vectors from `end` on do not exist and read as -inf. Loads of a full block have no branch between them. */
ALWAYS_INLINE void load_block(const row_input *in, const uint first, const uint end, vec x[BLOCK])
{
    const bool aligned = !TELLS_ALIGNED || IS_ALIGNED(in->x, storage);
    if (aligned && first + BLOCK * WG_SIZE <= end) {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) x[i] = load_vector_aligned(in->x + own_vector(first, i) * VEC);
        return;
    }
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) x[i] = (vec)(-ACC_INFINITY);
    if (aligned) {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++)
            if (own_vector(first, i) < end) x[i] = load_vector_aligned(in->x + own_vector(first, i) * VEC);
    } else {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++)
            if (own_vector(first, i) < end) x[i] = load_vector(in->x + own_vector(first, i) * VEC);
    }
}

/* The block as a row's results find it: what add_registers() has left of it, or logits. */
ALWAYS_INLINE void get_block(const row_input *in, const uint first, const uint end, vec x[BLOCK])
{
#if ONE_BLOCK
    (void)first;
    (void)end;
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) x[i] = in->kept[i];
#else
    load_block(in, first, end, x);
#endif
}

ALWAYS_INLINE void get_z(const row_input *in, const vec x[BLOCK], vec z[BLOCK])
{
    vec unused;
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) z[i] = softcap_vector_z(x[i], in->o, &unused);
}

/* The first class of this work-item's part of a block whose s is `value`, or that is NaN; NO_CLASS if none. */
ALWAYS_INLINE integer first_of_block(const row_input *in, const uint first, const vec x[BLOCK],
                                     const bool want_nan, const acc_t value)
{
    const ivec none = (ivec)(NO_CLASS);
    ivec found = none;
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) {
        const vec s = softcap_vector_s(x[BLOCK - 1 - i], in->o);
        const ivec here = (ivec)((integer)(own_vector(first, BLOCK - 1 - i) * VEC));
        found = (want_nan ? s != s : s == (vec)(value)) ? here : found;
    }
    const ivec at = found == none ? none : found + IOTA;
    const integer least = FOLD(at, min);
    return least < (integer)in->classes ? least : (integer)NO_CLASS;
}

/* In one loop for both, the few rows that are far would cost all others one subtraction for each class. */
ALWAYS_INLINE void exponentials_of(const vec z[BLOCK], const exp_scale scale, vec e[BLOCK])
{
    if (scale.base == 0) {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) e[i] = exp_vector(z[i], scale, false);
    } else {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) e[i] = exp_vector(z[i], scale, true);
    }
}

/* Which of a work-item's vectors of a block has the class; BLOCK or more: none. */
static inline uint vector_with(const integer class_index, const uint first)
{
    const uint from_own = (uint)class_index / VEC - own_vector(first, 0); /* of NO_CLASS: past every row */
    return from_own % WG_SIZE == 0 ? from_own / WG_SIZE : BLOCK;
}

/* What a block of z with exponentials e adds, but for the target's class, which is in vector `with_target`. */
ALWAYS_INLINE void sum_terms(terms *sum, const row_input *in, const uint first, const uint end,
                             const vec z[BLOCK], const vec e[BLOCK], const acc_t base, const integer target,
                             const uint with_target)
{
    block_sums b;
    b.few = no_terms();
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i += 4) {
        terms four[4];
        UNROLL_BLOCK
        for (uint k = 0; k < 4; k++) {
            four[k] = no_terms();
            if (i + k >= BLOCK) continue;
            const uint v = own_vector(first, i + k);
            vec other = e[i + k], a = (vec)(0);
            if (i + k == with_target) other = IOTA == (ivec)(target - (integer)(v * VEC)) ? (vec)(0) : other;
            if (HAS_DENSE && v < end) a = dense_vector(in, v * VEC, VEC);
            take_terms(&four[k], other, z[i + k], (vec)(base), a);
        }
        add_four(&b, four);
    }
    *sum = b.few;
}

/* Adds the block of x to s, whose scale is *scale, and leaves in its place what results are made of. */
INLINE_ON_GPU void add_registers(row_state *s, exp_scale *scale, const row_input *in, const integer target,
                                 const uint first, const uint end, vec x[BLOCK], __local acc_t *scratch)
{
    vec z[BLOCK], e[BLOCK], m = (vec)(-ACC_INFINITY);
    terms sum;
    (void)scratch;
    get_z(in, x, z);
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) m = vec_max(m, z[i]);
    acc_t maximum = FOLD(m, acc_max);
#if ONE_BLOCK
    maximum = group_max(maximum, scratch);
#endif
    if (maximum > s->maximum) {
        raise_maximum(s, maximum);
        *scale = exp_scale_of(maximum);
    }
    if (in->best) {
        acc_t top = maximum;
        if (HAS_SOFTCAP) {
            m = (vec)(-ACC_INFINITY);
            UNROLL_BLOCK
            for (uint i = 0; i < BLOCK; i++) m = vec_max(m, softcap_vector_s(x[i], in->o));
            top = FOLD(m, acc_max);
        }
        if (top > s->top || s->best == NO_CLASS) {
            s->top = top;
            s->best = first_of_block(in, first, x, false, top);
        }
    }
    exponentials_of(z, *scale, e);
    const acc_t base = distance_base(s->maximum);
    const uint with_target = vector_with(target, first);
    if (with_target < BLOCK) {
        sum_terms(&sum, in, first, end, z, e, base, target, with_target);
    } else {
        sum_terms(&sum, in, first, end, z, e, base, target, BLOCK);
    }
    s->sum_excluding_target =
        compensated_add(s->sum_excluding_target, FOLD(sum.sum_excluding_target, acc_sum));
#if HAS_ENTROPY
    s->entropy = compensated_add(s->entropy, FOLD(sum.entropy, acc_sum));
#endif
#if HAS_DENSE
    s->dense_nll = compensated_add(s->dense_nll, FOLD(sum.nll, acc_sum));
    s->dense_weight = compensated_add(s->dense_weight, FOLD(sum.weight, acc_sum));
#endif
    if (in->nan && s->nan_at == NO_CLASS && s->sum_excluding_target.high != s->sum_excluding_target.high)
        s->nan_at = first_of_block(in, first, x, true, 0);
#if KEEPS_EXP
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) x[i] = e[i];
#endif
}

/* Everything that is summed over this work-item's part of the vectors of a part of the row, but for the target's class. */
INLINE_ON_GPU void sum_part(row_state *s, const run *u, row_input *in, const integer target,
                            const vector_range part, __local row_state *scratch)
{
    exp_scale scale = exp_scale_of(-ACC_INFINITY);
    (void)u;
#if ONE_BLOCK
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) in->kept[i] = (vec)(-ACC_INFINITY);
    if (part.last > 0) load_block(in, 0, part.last, in->kept);
    add_registers(s, &scale, in, target, 0, part.last, in->kept, (__local acc_t *)scratch);
#else
    (void)scratch;
    for (uint first = part.first; first < part.last; first += BLOCK * WG_SIZE) {
        vec x[BLOCK];
        load_block(in, first, part.last, x);
        add_registers(s, &scale, in, target, first, part.last, x, 0);
    }
#endif
}

/* The exponentials once more, without the one class that is the maximum: of confident rows, where it is one. */
INLINE_ON_GPU void sum_part_excluding_max(row_state *s, const row_input *in, const acc_t maximum,
                                          const vector_range part)
{
    const exp_scale scale = exp_scale_of(maximum);
    const acc_t top = exp_lane(maximum, scale, true);
    s->maximum = maximum;
    for (uint first = part.first; first < part.last; first += BLOCK * WG_SIZE) {
        vec e[BLOCK], rest = (vec)(0);
        get_block(in, first, part.last, e);
#if !KEEPS_EXP
        get_z(in, e, e);
        exponentials_of(e, scale, e);
#endif
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) e[i] = e[i] == (vec)(top) ? (vec)(0) : e[i];
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i += 2) rest += i + 1 < BLOCK ? e[i] + e[i + 1] : e[i];
        s->sum_excluding_target = compensated_add(s->sum_excluding_target, FOLD(rest, acc_sum));
    }
}

/* ---- The results of a row ------------------------------------------------------------------ */

#if ONE_BLOCK
/* Brings a row whose sums are saved to where sum_part() would have left it. */
INLINE_ON_GPU void keep_row(row_input *in, const row_result *r)
{
    load_block(in, 0, in->vectors, in->kept);
#    if KEEPS_EXP
    get_z(in, in->kept, in->kept);
    exponentials_of(in->kept, r->scale, in->kept);
#    else
    (void)r;
#    endif
}
#endif

/* The values of one vector, the target's class maybe among them. x: what add_registers() has left, or logits. folds: the
 * factor, a finite one, goes into the exponential. */
ALWAYS_INLINE vec value_of(const row_input *in, const row_result *r, const epilogue *g, const vec x,
                           const uint at, const bool folds)
{
    vec slope = (vec)(1), a = (vec)(0), z = x, e = x, value;
    if (!KEEPS_EXP) z = softcap_vector_z(x, in->o, &slope);
    if (folds) {
        value = exp_vector_times(z, r->scale, true, g->factor);
    } else {
        if (!KEEPS_EXP && !IS_KIND(g, OUTPUT_LOG_SOFTMAX)) e = exp_vector(z, r->scale, true);
        if (HAS_DENSE && IS_KIND(g, OUTPUT_GRADIENT)) a = dense_vector(in, at, VEC);
        value = result_of(r, g, z, slope, e, a);
    }
    return IOTA == (ivec)(g->class_index - (integer)at) ? (vec)(g->target) : value;
}

/* The vectors [begin, end). All logits of a turn are loaded before a result is written, maybe in their place. */
ALWAYS_INLINE void write_blocks(const row_input *in, const row_result *r, const epilogue *g,
                                const destination *to, const uint begin, const uint end)
{
    const bool folds =
        !ONE_BLOCK && (IS_KIND(g, OUTPUT_SOFTMAX) ||
                       (IS_KIND(g, OUTPUT_GRADIENT) && HAS_ONE_FACTOR && fabs(g->factor) < ACC_INFINITY));
    for (uint first = begin; first < end; first += BLOCK * WG_SIZE) {
        vec x[BLOCK];
        get_block(in, first, end, x);
        if (folds && r->scale.base == 0 && first + BLOCK * WG_SIZE <= end &&
            vector_with((integer)g->class_index, first) >= BLOCK) {
            vec unused;
            UNROLL_BLOCK
            for (uint i = 0; i < BLOCK; i++)
                x[i] = exp_vector_finite_times(softcap_vector_z(x[i], in->o, &unused), r->scale, g->factor);
            UNROLL_BLOCK
            for (uint i = 0; i < BLOCK; i++) {
                const uint at = own_vector(first, i) * VEC;
                put(to, at, with_old(to, at, x[i], VEC), VEC);
            }
            continue;
        }
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) {
            const uint at = own_vector(first, i) * VEC;
            if (own_vector(first, i) < end)
                put(to, at, with_old(to, at, value_of(in, r, g, x[i], at, folds), VEC), VEC);
        }
    }
}

/* write_blocks() for a row that is filled. */
static inline void fill_vectors(const epilogue *g, const destination *to, const uint begin, const uint end)
{
    for (uint v = begin + LOCAL_ID; v < end; v += WG_SIZE) put(to, v * VEC, (vec)(g->fill), VEC);
}

/* Writes the classes [begin, end), whole vectors of them, of one row of one result. */
INLINE_ON_GPU void write_result(const run *u, const row_input *in, const row_result *r, const epilogue *g,
                                const destination *at, const ulong stride, const uint begin, const uint end)
{
    destination to = *at;
    (void)u;
    (void)stride;
    to.aligned = false;
    if (g->filled) {
        fill_vectors(g, &to, begin / VEC, end / VEC);
    } else if (TELLS_ALIGNED && address_of(&to, begin) % (VEC * BYTES_OF(&to)) == 0) {
        to.aligned = true; /* in one loop for both clang 15 makes single elements of all accesses */
        write_blocks(in, r, g, &to, begin / VEC, end / VEC);
    } else {
        write_blocks(in, r, g, &to, begin / VEC, end / VEC);
    }
}
