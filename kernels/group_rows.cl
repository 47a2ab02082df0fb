/* SPDX-License-Identifier: MIT
 *
 * group_rows.cl - how the work-items of a group read a row and write its results: the shape of GPUs. Stands behind
 * row_input.cl in front of map_row.cl; row_scan.cl and row_results.cl have the ways of one work-item alone.
 *
 * A block is BLOCK_CLASSES classes, BLOCK vectors of each work-item in registers: all of a work-item's loads are under way
 * together. Element j of vector i of work-item l is class
 *
 *     (i * WG_SIZE + l) * VEC + j    of the block where VEC divides the class count: neighbours load neighbouring vectors
 *     (i * VEC + j) * WG_SIZE + l    elsewhere: rows begin anywhere, and neighbours load neighbouring classes
 *
 * so that the class count alone, not where a row begins, says which class is whose. Results are the same bits whoever computes
 * them: those of the second kind are written in aligned vectors where the logits are aligned as they are.
 *
 * Set by the host with -D, beside those of row_input.cl:
 *   ONE_BLOCK  1: no row has more than one block. A row then is read once, and stays in registers until its results are
 *              written
 *   DIVIDES    1: VEC divides the class count
 */
#if !defined(ONE_BLOCK) || ONE_BLOCK < 0 || ONE_BLOCK > 1
#    error "ONE_BLOCK: 0 or 1"
#endif
#if !defined(DIVIDES) || DIVIDES < 0 || DIVIDES > 1
#    error "DIVIDES: 0 or 1"
#endif
#define BLOCK_CLASSES (BLOCK * WG_SIZE * VEC)
/* Where the block behind the one at `begin` begins. A loop over one block is none. */
static inline uint next_block(const uint begin, const uint end)
{
    return ONE_BLOCK ? end : begin + BLOCK_CLASSES;
}
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

/* What a work-item's sums are merged by: a row_state without its maximum, and without what is not asked for. */
typedef struct {
#if HAS_BEST
    acc_t top;
    integer best;
#endif
#if HAS_NAN_AT
    integer nan_at;
#endif
    compensated_sum sum_excluding_target;
#if HAS_ENTROPY
    compensated_sum entropy;
#endif
#if HAS_DENSE
    compensated_sum dense_nll, dense_weight;
#endif
} group_sums;

/* What the first work-item computes of a row for all. */
typedef struct {
    integer confident;
    acc_t maximum, fine_lse_minus_max;
    exp_scale scale;
    epilogue of_softmax, of_log_softmax, of_gradient; /* those that the run asks for */
} shared_row;

/* The local memory of a group. Between two uses of a member all work-items meet for another one. */
typedef struct {
    group_sums sums[WG_SIZE];
    acc_t maxima[WG_SIZE];
    shared_row row;
} group_scratch;

/* Every work-item gets the maximum. Eight become one at a time, so that few barriers are met, and all look at the last
 * eight. */
TAKES_LOCAL acc_t group_max(acc_t own, __local acc_t maxima[WG_SIZE])
{
    const uint lid = LOCAL_ID;
    uint size = WG_SIZE, left;
    for (; size > 8; size = left) {
        left = size > 64 ? size / 8 : 8;
        if (lid >= left && lid < size) maxima[lid] = own;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < left) {
            for (uint at = left; at < size; at += left) own = acc_max(own, maxima[lid + at]);
        }
    }
    if (lid < size) maxima[lid] = own;
    barrier(CLK_LOCAL_MEM_FENCE);
    own = maxima[0];
    for (uint at = 1; at < size; at++) own = acc_max(own, maxima[at]);
    return own;
}

/* Of so few sums what is lost needs no carry in between: compensated_merge(). */
static inline compensated_sum join_sums(const compensated_sum a, const compensated_sum b)
{
    const compensated_sum s = compensated_add(a, b.high);
    return (compensated_sum){ s.high, s.low + b.low };
}

ALWAYS_INLINE void join(row_state *a, __local const group_sums *b)
{
#if HAS_BEST
    if (b->top > a->top || (b->top == a->top && b->best < a->best)) {
        a->top = b->top;
        a->best = b->best;
    }
#endif
#if HAS_NAN_AT
    a->nan_at = min(a->nan_at, b->nan_at);
#endif
    a->sum_excluding_target = join_sums(a->sum_excluding_target, b->sum_excluding_target);
#if HAS_ENTROPY
    a->entropy = join_sums(a->entropy, b->entropy);
#endif
#if HAS_DENSE
    a->dense_nll = join_sums(a->dense_nll, b->dense_nll);
    a->dense_weight = join_sums(a->dense_weight, b->dense_weight);
#endif
}

ALWAYS_INLINE void store_sums(__local group_sums *to, const row_state *s)
{
#if HAS_BEST
    to->top = s->top;
    to->best = s->best;
#endif
#if HAS_NAN_AT
    to->nan_at = s->nan_at;
#endif
    to->sum_excluding_target = s->sum_excluding_target;
#if HAS_ENTROPY
    to->entropy = s->entropy;
#endif
#if HAS_DENSE
    to->dense_nll = s->dense_nll;
    to->dense_weight = s->dense_weight;
#endif
}

/* Over the group, in an order of its own that is always the same: the maxima first, so that each work-item rescales its sums
 * once, then the sums. Sums of one block have the row's maximum already. The first work-item gets the sums, all get the
 * maximum. */
ALWAYS_INLINE void merge_group(row_state *own, __local group_scratch *scratch)
{
    const uint lid = LOCAL_ID;
    if (!ONE_BLOCK) raise_maximum(own, group_max(own->maximum, scratch->maxima));
    for (uint size = WG_SIZE, left; size > 1; size = left) {
        left = size > 64 ? size / 8 : size > 8 ? size / 4 : 1;
        if (lid >= left && lid < size) store_sums(&scratch->sums[lid], own);
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < left) {
            for (uint at = left; at < size; at += left) join(own, &scratch->sums[lid + at]);
        }
    }
}

/* What the first work-item has, to all. */
TAKES_LOCAL integer from_first(const integer value, __local group_scratch *scratch)
{
    if (LOCAL_ID == 0) scratch->row.confident = value;
    barrier(CLK_LOCAL_MEM_FENCE);
    return scratch->row.confident;
}

/* The class of the first element that a work-item has of the block at `begin`, and how far apart its others are. */
#if DIVIDES
#    define OWN_CLASS(begin) ((begin) + LOCAL_ID * VEC)
#    define CLASS_STEP 1
#else
#    define OWN_CLASS(begin) ((begin) + LOCAL_ID)
#    define CLASS_STEP WG_SIZE
#endif
#define VECTOR_STEP (WG_SIZE * VEC)

/* The classes of vector i. */
static inline ivec own_classes(const uint begin, const uint i)
{
    return (ivec)((integer)(OWN_CLASS(begin) + i * VECTOR_STEP)) + IOTA * (ivec)(CLASS_STEP);
}

/* Of the vectors from class `at` on, once for all blocks. */
static inline bool begins_aligned(const row_input *in, const uint at)
{
    return !TELLS_ALIGNED || IS_ALIGNED(in->x + at, storage);
}

/* Vectors of neighbouring classes from `begin` on. Those from `end` on do not exist and read as -inf. Loads of a full block
 * have no branch between them, and one address for all. */
ALWAYS_INLINE void load_vectors(const row_input *in, const uint begin, const uint end, const bool aligned,
                                vec x[BLOCK])
{
    const uint own = begin + LOCAL_ID * VEC;
    __global const storage *p = in->x + own;
    if (aligned && begin + BLOCK_CLASSES <= end) {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) x[i] = load_vector_aligned(p + i * VECTOR_STEP);
        return;
    }
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) x[i] = (vec)(-ACC_INFINITY);
    if (aligned) {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++)
            if (own + i * VECTOR_STEP < end) x[i] = load_vector_aligned(p + i * VECTOR_STEP);
    } else {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++)
            if (own + i * VECTOR_STEP < end) x[i] = load_vector(p + i * VECTOR_STEP);
    }
}

#if DIVIDES
#    define load_block load_vectors
#else
ALWAYS_INLINE void load_block(const row_input *in, const uint begin, const uint end, const bool aligned,
                              vec x[BLOCK])
{
    const uint own = OWN_CLASS(begin);
    (void)aligned;
    __global const storage *p = in->x + own;
    if (begin + BLOCK_CLASSES <= end) {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) {
            acc_t element[VEC];
            UNROLL_BLOCK
            for (uint j = 0; j < VEC; j++) element[j] = load_one(p + i * VECTOR_STEP + j * WG_SIZE);
            x[i] = LOAD(element);
        }
        return;
    }
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) {
        acc_t element[VEC];
        UNROLL_BLOCK
        for (uint j = 0; j < VEC; j++) {
            element[j] = -ACC_INFINITY;
            if (own + i * VECTOR_STEP + j * WG_SIZE < end)
                element[j] = load_one(p + i * VECTOR_STEP + j * WG_SIZE);
        }
        x[i] = LOAD(element);
    }
}
#endif

/* The part of a_j that every class has, of vector i of a block; 0 from class `end` on. */
ALWAYS_INLINE vec dense_of(const row_input *in, const uint begin, const uint end, const uint i)
{
    const uint own = OWN_CLASS(begin) + i * VECTOR_STEP;
#if DIVIDES
    return own < end ? dense_vector(in, own, VEC) : (vec)(0);
#else
    acc_t a[VEC];
    UNROLL_BLOCK
    for (uint j = 0; j < VEC; j++) a[j] = own + j * WG_SIZE < end ? dense_one(in, own + j * WG_SIZE) : 0;
    return LOAD(a);
#endif
}

/* A block as a row's results find it: what add_registers() has left of it, or logits. */
ALWAYS_INLINE void get_block(const row_input *in, const uint begin, const uint end, const bool aligned,
                             vec x[BLOCK])
{
#if ONE_BLOCK
    (void)begin;
    (void)end;
    (void)aligned;
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) x[i] = in->kept[i];
#else
    load_block(in, begin, end, aligned, x);
#endif
}

ALWAYS_INLINE void get_z(const row_input *in, const vec x[BLOCK], vec z[BLOCK])
{
    vec unused;
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) z[i] = softcap_vector_z(x[i], in->o, &unused);
}

/* The first class of this work-item's part of a block whose s is `value`, or that is NaN; NO_CLASS if none. */
ALWAYS_INLINE integer first_of_block(const row_input *in, const uint begin, const vec x[BLOCK],
                                     const bool want_nan, const acc_t value)
{
    ivec found = (ivec)(NO_CLASS);
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) {
        const vec s = softcap_vector_s(x[BLOCK - 1 - i], in->o);
        found = (want_nan ? s != s : s == (vec)(value)) ? own_classes(begin, BLOCK - 1 - i) : found;
    }
    const integer least = FOLD(found, min);
    return least < (integer)in->classes ? least : (integer)NO_CLASS;
}

#define INTEGER_OR(a, b) ((a) | (b))

/* Where the exponential of a finite logit loses NaN, it is sought two logits at a time: half an instruction for each on GPUs,
 * where a clamp that keeps it takes one more. */
ALWAYS_INLINE bool hides_nan(const vec z[BLOCK])
{
    ivec nan = isunordered(z[0], z[BLOCK - 1]);
    UNROLL_BLOCK
    for (uint i = 1; i + 1 < BLOCK; i += 2) nan |= isunordered(z[i], z[i + 1]);
    return !EXP_KEEPS_NAN && FOLD(nan, INTEGER_OR) != 0;
}

/* Whether there is a NaN that e hides. In one loop for both, the few rows that are far would cost all others one
 * subtraction for each class. */
ALWAYS_INLINE bool exponentials_of(const vec z[BLOCK], const exp_scale scale, vec e[BLOCK])
{
    if (scale.base == 0) {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) e[i] = exp_finite(z[i], scale);
        return hides_nan(z);
    }
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) e[i] = exp_vector(z[i], scale, true);
    return false;
}

#if SUMS_PLAINLY && !ONE_BLOCK
/* exp(z) at a scale: the product of what is returned and a power of two. */
ALWAYS_INLINE vec part_of(const vec z, const exp_scale scale, const bool far, vec *power)
{
    *power = (vec)(1);
    return far ? exp_vector(z, scale, true) : exp_finite_part(z, scale, power);
}

/* In pairs, as sum_terms() adds them: whether a plan wants the entropy moves no bit. */
ALWAYS_INLINE vec sum_of_vectors(const vec z[BLOCK], const exp_scale scale, const bool far)
{
    vec sum = (vec)(0);
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i += 4) {
        vec pair[2], power;
        UNROLL_BLOCK
        for (uint k = i; k < min(i + 4, (uint)BLOCK); k++) {
            const vec part = part_of(z[k], scale, far, &power);
            vec *of = &pair[(k - i) / 2];
            *of = k % 2 == 0 ? part * power : fma(part, power, *of);
        }
        const vec four = i + 2 < BLOCK ? pair[0] + pair[1] : pair[0];
        sum = i == 0 ? four : sum + four;
    }
    return sum;
}

/* The sum of the exponentials of a block. What is multiplied by a power of two is not rounded, and so one instruction multiplies
 * and adds. */
ALWAYS_INLINE acc_t sum_of_block(const vec z[BLOCK], const exp_scale scale)
{
    if (scale.base != 0) return FOLD(sum_of_vectors(z, scale, true), acc_sum);
    return hides_nan(z) ? ACC_NAN : FOLD(sum_of_vectors(z, scale, false), acc_sum);
}
#endif

/* Which of a work-item's vectors from class `begin` on, that of a block, has the class; BLOCK or more: none of that block. */
static inline uint vector_with(const integer class_index, const uint begin)
{
    const uint from_begin = (uint)class_index - begin; /* of NO_CLASS: past every row */
#if DIVIDES
    const uint from_own = from_begin / VEC - LOCAL_ID;
    return from_own % WG_SIZE == 0 ? from_own / WG_SIZE : UINT_MAX;
#else
    const uint from_own = from_begin - LOCAL_ID;
    return from_own % WG_SIZE == 0 ? from_own / VECTOR_STEP : UINT_MAX;
#endif
}

/* What a block of z with exponentials e adds, but for the target's class, which is in vector `with_target`. */
ALWAYS_INLINE void sum_terms(terms *sum, const row_input *in, const uint begin, const uint end,
                             const vec z[BLOCK], const vec e[BLOCK], const acc_t base, const integer target,
                             const uint with_target)
{
    terms t[BLOCK];
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) {
        vec other = e[i], a = (vec)(0);
        if (i == with_target) other = own_classes(begin, i) == (ivec)(target) ? (vec)(0) : other;
        if (HAS_DENSE) a = dense_of(in, begin, end, i);
        take_terms(&t[i], other, z[i], (vec)(base), a);
    }
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i += 4) {
        if (i + 1 < BLOCK) add_terms(&t[i], &t[i + 1]);
        if (i + 3 < BLOCK) add_terms(&t[i + 2], &t[i + 3]);
        if (i + 2 < BLOCK) add_terms(&t[i], &t[i + 2]);
        if (i > 0) add_terms(&t[0], &t[i]);
    }
    *sum = t[0];
}

/* The only block of a row adds to nothing. */
static inline compensated_sum sum_with(const compensated_sum s, const acc_t block)
{
    return ONE_BLOCK ? (compensated_sum){ block, 0 } : compensated_add(s, block);
}

/* Adds the block of x to s, whose scale is *scale, and leaves in its place what results are made of. with_target: see
 * vector_with(). */
INLINE_ON_GPU void add_registers(row_state *s, exp_scale *scale, const row_input *in, const integer target,
                                 const uint with_target, const uint begin, const uint end, vec x[BLOCK],
                                 __local group_scratch *scratch)
{
    vec z[BLOCK], m;
    (void)scratch;
    get_z(in, x, z);
    m = z[0];
    UNROLL_BLOCK
    for (uint i = 1; i < BLOCK; i++) m = vec_max(m, z[i]);
    acc_t maximum = acc_max(FOLD(m, acc_max), -ACC_INFINITY); /* of nothing but NaN too */
#if ONE_BLOCK
    maximum = s->maximum = group_max(maximum, scratch->maxima);
    *scale = exp_scale_of(maximum);
#else
    if (maximum > s->maximum) {
        raise_maximum(s, maximum);
        *scale = exp_scale_of(maximum);
    }
#endif
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
            s->best = first_of_block(in, begin, x, false, top);
        }
    }
#if SUMS_PLAINLY && !ONE_BLOCK
    if (with_target < BLOCK) {
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++)
            if (i == with_target)
                z[i] = own_classes(begin, i) == (ivec)(target) ? (vec)(-ACC_INFINITY) : z[i];
    }
    const acc_t block = sum_of_block(z, *scale);
#else
    vec e[BLOCK];
    terms sum;
    const bool is_hidden = exponentials_of(z, *scale, e);
    const acc_t base = distance_base(s->maximum);
    if (with_target < BLOCK) {
        sum_terms(&sum, in, begin, end, z, e, base, target, with_target);
    } else {
        sum_terms(&sum, in, begin, end, z, e, base, target, BLOCK);
    }
    const acc_t block = is_hidden ? ACC_NAN : FOLD(sum.sum_excluding_target, acc_sum);
#endif
    s->sum_excluding_target = sum_with(s->sum_excluding_target, block);
#if HAS_ENTROPY
    s->entropy = sum_with(s->entropy, FOLD(sum.entropy, acc_sum));
#endif
#if HAS_DENSE
    s->dense_nll = sum_with(s->dense_nll, FOLD(sum.nll, acc_sum));
    s->dense_weight = sum_with(s->dense_weight, FOLD(sum.weight, acc_sum));
#endif
    /* Rare, and so loaded once more: kept beside the exponentials, the logits take as many registers again. */
    if (in->nan && s->nan_at == NO_CLASS && s->sum_excluding_target.high != s->sum_excluding_target.high) {
        vec again[BLOCK];
        load_block(in, begin, end, begins_aligned(in, begin), again);
        s->nan_at = first_of_block(in, begin, again, true, 0);
    }
#if KEEPS_EXP
    UNROLL_BLOCK
    for (uint i = 0; i < BLOCK; i++) x[i] = e[i];
#endif
}

/* Everything that is summed over this work-item's part of the vectors of a part of the row, but for the target's class. */
INLINE_ON_GPU void sum_part(row_state *s, const run *u, row_input *in, const integer target,
                            const vector_range part, __local group_scratch *scratch)
{
    exp_scale scale = exp_scale_of(-ACC_INFINITY);
    const uint end = min(part.last * VEC, in->classes);
    (void)u;
#if ONE_BLOCK
    load_block(in, 0, end, begins_aligned(in, 0), in->kept);
    add_registers(s, &scale, in, target, vector_with(target, 0), 0, end, in->kept, scratch);
#else
    const uint first = part.first * VEC;
    const bool aligned = begins_aligned(in, first);
    uint with_target = vector_with(target, first);
    (void)scratch;
    for (uint begin = first; begin < end; begin += BLOCK_CLASSES, with_target -= BLOCK) {
        vec x[BLOCK];
        load_block(in, begin, end, aligned, x);
        add_registers(s, &scale, in, target, with_target, begin, end, x, 0);
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
    const uint first = part.first * VEC, end = min(part.last * VEC, in->classes);
    const bool aligned = begins_aligned(in, first);
    for (uint begin = first; begin < end; begin = next_block(begin, end)) {
        vec e[BLOCK], rest = (vec)(0);
        get_block(in, begin, end, aligned, e);
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
INLINE_ON_GPU void keep_row(row_input *in, const acc_t maximum)
{
    load_block(in, 0, in->classes, begins_aligned(in, 0), in->kept);
#    if KEEPS_EXP
    get_z(in, in->kept, in->kept);
    exponentials_of(in->kept, exp_scale_of(maximum), in->kept);
#    else
    (void)maximum;
#    endif
}
#endif

/* The class of the target is stored once more, behind the others: one store of a row in place of a comparison for each class.
 * Not where gradients are added to. */
#define STORES_TARGET_LAST (!ACCUMULATE)

/* Whether the values but for the target's class are exponentials times the factor, a finite one, alone. */
static inline bool has_factor(const epilogue *g)
{
    return IS_KIND(g, OUTPUT_SOFTMAX) ||
           (IS_KIND(g, OUTPUT_GRADIENT) && HAS_ONE_FACTOR && g->outer == 1 && fabs(g->factor) < ACC_INFINITY);
}

/* Whether the factor goes into the exponential. */
static inline bool folds_factor(const epilogue *g) { return !ONE_BLOCK && has_factor(g); }

/* Whether product_of() gives the values but for the target's class: none of them is NaN. */
static inline bool is_product(const row_result *r, const epilogue *g)
{
    return has_factor(g) && (KEEPS_EXP || (!ONE_BLOCK && r->scale.base == 0));
}

ALWAYS_INLINE vec product_of(const row_input *in, const row_result *r, const epilogue *g, const vec x)
{
    vec unused;
    if (KEEPS_EXP) return x * (vec)(g->factor);
    return exp_finite_times(softcap_vector_z(x, in->o, &unused), r->scale, g->factor);
}

/* The values of one vector. x: what add_registers() has left, or logits; a: of gradients, see dense_of(). */
ALWAYS_INLINE vec value_of(const row_input *in, const row_result *r, const epilogue *g, const vec x,
                           const ivec classes, const vec a)
{
    vec slope = (vec)(1), z = x, e = x, value;
    if (!KEEPS_EXP) z = softcap_vector_z(x, in->o, &slope);
    if (folds_factor(g)) {
        value = exp_vector_times(z, r->scale, true, g->factor);
    } else {
        if (!KEEPS_EXP && !IS_KIND(g, OUTPUT_LOG_SOFTMAX)) e = exp_vector(z, r->scale, true);
        value = result_of(r, g, z, slope, e, a);
    }
    return !STORES_TARGET_LAST && classes == (ivec)(g->class_index) ? (vec)(g->target) : value;
}

/* The gradient of the target's class, by the work-item that has written its vector of [first, end). */
static inline void put_target(const epilogue *g, const destination *to, const uint first, const uint end,
                              const uint neighbours)
{
    const uint from_first = (uint)g->class_index - first; /* of NO_CLASS: past every row */
    if (STORES_TARGET_LAST && IS_KIND(to, OUTPUT_GRADIENT) && from_first < end - first &&
        from_first / neighbours % WG_SIZE == LOCAL_ID)
        put_one(to, (uint)g->class_index, g->target);
}

/* From `by` on: accesses behind it that are a constant apart need one address. */
static inline destination moved(const destination *to, const uint by)
{
    return (destination){ to->kind, to->aligned, to->out + by, to->gradient + by };
}

/* The classes [first, end), whole vectors of them. All logits of a turn are loaded before a result is written, maybe in
 * their place. */
ALWAYS_INLINE void write_vectors(const row_input *in, const row_result *r, const epilogue *g,
                                 const destination *to, const uint first, const uint end)
{
    const bool aligned = begins_aligned(in, first);
    for (uint begin = first; begin < end; begin = next_block(begin, end)) {
        const uint own = begin + LOCAL_ID * VEC;
        const destination own_to = moved(to, own);
        vec x[BLOCK];
        if (DIVIDES) {
            get_block(in, begin, end, aligned, x);
        } else {
            load_vectors(in, begin, end, aligned, x);
        }
        if (is_product(r, g) && begin + BLOCK_CLASSES <= end &&
            (STORES_TARGET_LAST || vector_with((integer)g->class_index, begin) >= BLOCK)) {
            UNROLL_BLOCK
            for (uint i = 0; i < BLOCK; i++) x[i] = product_of(in, r, g, x[i]);
            UNROLL_BLOCK
            for (uint i = 0; i < BLOCK; i++) {
                const uint at = i * VECTOR_STEP;
                if (ACCUMULATE) {
                    put_sum(&own_to, at, x[i], VEC);
                } else {
                    put_number(&own_to, at, x[i], own_to.aligned);
                }
            }
        } else {
            UNROLL_BLOCK
            for (uint i = 0; i < BLOCK; i++) {
                const uint at = i * VECTOR_STEP;
                if (own + at >= end) continue;
                const ivec classes = (ivec)((integer)(own + at)) + IOTA;
                vec a = (vec)(0);
                if (HAS_DENSE && IS_KIND(g, OUTPUT_GRADIENT)) a = dense_vector(in, own + at, VEC);
                put_sum(&own_to, at, value_of(in, r, g, x[i], classes, a), VEC);
            }
        }
    }
    put_target(g, to, first, end, VEC);
}

#if !DIVIDES
/* The classes [first, end), each written by the work-item that has summed it. */
ALWAYS_INLINE void write_elements(const row_input *in, const row_result *r, const epilogue *g,
                                  const destination *to, const uint first, const uint end)
{
    for (uint begin = first; begin < end; begin = next_block(begin, end)) {
        const uint own = OWN_CLASS(begin);
        const destination own_to = moved(to, own);
        const bool is_full = begin + BLOCK_CLASSES <= end;
        const bool is_plain =
            is_product(r, g) && (STORES_TARGET_LAST || vector_with((integer)g->class_index, begin) >= BLOCK);
        vec x[BLOCK];
        get_block(in, begin, end, false, x);
        UNROLL_BLOCK
        for (uint i = 0; i < BLOCK; i++) {
            acc_t element[VEC];
            vec value = x[i];
            if (is_plain) {
                value = product_of(in, r, g, x[i]);
            } else {
                vec a = (vec)(0);
                if (HAS_DENSE && IS_KIND(g, OUTPUT_GRADIENT)) a = dense_of(in, begin, end, i);
                value = value_of(in, r, g, x[i], own_classes(begin, i), a);
            }
            STORE(value, element);
            UNROLL_BLOCK
            for (uint j = 0; j < VEC; j++) {
                const uint at = i * VECTOR_STEP + j * WG_SIZE;
                if (is_full || own + at < end) put_sum_one(&own_to, at, element[j]);
            }
        }
    }
    put_target(g, to, first, end, 1);
}

/* The classes [first, head) and [tail, end). */
ALWAYS_INLINE void write_ends(const row_input *in, const row_result *r, const epilogue *g,
                              const destination *to, const uint first, const uint head, const uint tail,
                              const uint end)
{
    for (uint i = LOCAL_ID; i < head - first + (end - tail); i += WG_SIZE) {
        const uint at = i < head - first ? first + i : tail + (i - (head - first));
        acc_t a = 0;
        if (HAS_DENSE && IS_KIND(g, OUTPUT_GRADIENT)) a = dense_one(in, at);
        const vec value = value_of(in, r, g, (vec)(load_one(in->x + at)), (ivec)((integer)at), (vec)(a));
        put_sum_one(to, at, STORES_TARGET_LAST && at == (uint)g->class_index ? g->target : value.s0);
    }
}
#endif

/* Writes the classes [begin, end) of one row of one result, those in front of the first aligned vector and behind the last
 * apart. In one loop for aligned vectors and others clang 15 makes single elements of all accesses. */
INLINE_ON_GPU void write_result(const run *u, const row_input *in, const row_result *r, const epilogue *g,
                                const destination *at, const ulong stride, const uint begin, const uint end)
{
    destination to = *at;
    (void)u;
    (void)stride;
    to.aligned = false;
#if DIVIDES
    if (g->filled) {
        for (uint c = OWN_CLASS(begin); c < end; c += VECTOR_STEP) put(&to, c, (vec)(g->fill), VEC);
    } else if (TELLS_ALIGNED && address_of(&to, begin) % (VEC * BYTES_OF(&to)) == 0) {
        to.aligned = true;
        write_vectors(in, r, g, &to, begin, end);
    } else {
        write_vectors(in, r, g, &to, begin, end);
    }
#else
    const size_t size = BYTES_OF(&to);
    const uint head = min(begin + (uint)(0 - address_of(&to, begin) / size) % VEC, end);
    const uint tail = head + (end - head) / VEC * VEC;
    if (g->filled) {
        for (uint c = OWN_CLASS(begin); c < end; c += WG_SIZE) put_one(&to, c, g->fill);
    } else if (TELLS_ALIGNED && !ONE_BLOCK && address_of(&to, head) % (VEC * size) == 0 &&
               IS_ALIGNED(in->x + head, storage)) {
        to.aligned = true;
        write_ends(in, r, g, &to, begin, head, tail, end);
        write_vectors(in, r, g, &to, head, tail);
    } else {
        write_elements(in, r, g, &to, begin, end);
    }
#endif
}
