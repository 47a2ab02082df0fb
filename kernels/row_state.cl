/* SPDX-License-Identifier: MIT
 *
 * row_state.cl - what is known of a row while its logits are read: empty, add a block, raise the maximum, merge, finish.
 * Stands behind math.cl in every program that reads logits. A lane is one row or a vector of rows; a vec lies along the
 * classes of one row or holds one class of many, and fold() makes lanes of it. Which work-item has which logits, and in what
 * order they come, is map_row.cl's and map_lane.cl's.
 */
/* Sums over a part of a row: a work-item's, a piece's, in the end the row's. */
typedef struct {
    lane maximum;    /* of z; NaN is not seen */
    lane top;        /* of logit_scale * x; -inf where best is not wanted */
    ilane best;      /* the first class whose s is top, or NO_CLASS */
    ilane nan_at;    /* the first class that is NaN, or NO_CLASS */
    long_sum others; /* exp(z) at the maximum's scale, over all classes but the target's */
#if HAS_ENTROPY
    long_sum entropy; /* exp(z) (maximum - z), over the same */
#endif
#if HAS_DENSE
    long_sum dense_nll;    /* a_j (maximum - z_j) */
    long_sum dense_weight; /* a_j */
#endif
} row_sums;

static inline row_sums empty_sums(void)
{
    row_sums s;
    s.maximum = (lane)(-REAL_INFINITY);
    s.top = (lane)(-REAL_INFINITY);
    s.best = NO_CLASSES;
    s.nan_at = NO_CLASSES;
    s.others = long_zero();
#if HAS_ENTROPY
    s.entropy = long_zero();
#endif
#if HAS_DENSE
    s.dense_nll = long_zero();
    s.dense_weight = long_zero();
#endif
    return s;
}

/* Moves s to a maximum that is no less. Sums of (maximum - z) grow by their weight times the step; nothing is added while
 * the maximum is -inf. */
static inline void raise_maximum(row_sums *s, const lane maximum)
{
    const ilane moves = s->maximum > (lane)(-REAL_INFINITY) && maximum > s->maximum;
    if (ANY_LANE(moves)) {
        const lane rescale = exp_rescale(exp_scale_of(s->maximum), exp_scale_of(maximum));
        const lane factor = moves ? rescale : (lane)(1);
#if HAS_ENTROPY || HAS_DENSE
        const lane step = moves ? maximum - s->maximum : (lane)(0);
#endif
#if HAS_ENTROPY
        const lane raised = moves ? long_value(s->others) * step : (lane)(0);
        s->entropy = long_times(long_add(s->entropy, raised), factor);
#endif
#if HAS_DENSE
        s->dense_nll = long_add(s->dense_nll, long_value(s->dense_weight) * step);
#endif
        s->others = long_times(s->others, factor);
    }
    s->maximum = maximum;
}

#if !LANES
/* Of two parts, neither of which need be the first. */
static inline row_sums merge(row_sums a, row_sums b)
{
    const real maximum = real_max(a.maximum, b.maximum);
    raise_maximum(&a, maximum);
    raise_maximum(&b, maximum);
    if (b.top > a.top || (b.top == a.top && b.best < a.best)) {
        a.top = b.top;
        a.best = b.best;
    }
    a.nan_at = min(a.nan_at, b.nan_at);
    a.others = long_merge(a.others, b.others);
#    if HAS_ENTROPY
    a.entropy = long_merge(a.entropy, b.entropy);
#    endif
#    if HAS_DENSE
    a.dense_nll = long_merge(a.dense_nll, b.dense_nll);
    a.dense_weight = long_merge(a.dense_weight, b.dense_weight);
#    endif
    return a;
}

DEFINE_GROUP_TREE(merge_group, row_sums, merge)
#endif

/* ---- A block -------------------------------------------------------------------------------- */

/* What one vector adds. What a program does not sum stays 0, and costs nothing. */
typedef struct {
    vec others, entropy, nll, weight;
} terms;

/* What one block adds: few terms are summed plainly, four by four, and flushed into sums that lose nothing before many
 * have been added: where one term is 1 and very many others are alike, each addition to it rounds the same way, and
 * the error grows with their number. */
typedef struct {
    terms few;
    long_vector others, entropy, nll, weight;
} block_sums;

static inline terms no_terms(void)
{
    const vec zero = (vec)(0);
    return (terms){ zero, zero, zero, zero };
}

static inline block_sums empty_block(void)
{
    const vec zero = (vec)(0);
    const long_vector none = { zero, zero };
    return (block_sums){ no_terms(), none, none, none, none };
}

/* What distances are taken from: the maximum, but for a row that has nothing but -inf. */
static inline lane distance_base(const lane maximum)
{
    return maximum > (lane)(-REAL_INFINITY) ? maximum : (lane)(0);
}

/* To t, which is no_terms(), from logits z. e: their exponentials, 0 where they do not count; base: see distance_base(); a: 0 where it does not
 * count. */
ALWAYS_INLINE void take_terms(terms *t, const vec e, const vec z, const vec base, const vec a)
{
    t->others = e;
    if (HAS_ENTROPY) t->entropy = e == (vec)(0) ? (vec)(0) : e * (base - z);
    if (HAS_DENSE) {
        t->weight = a;
        t->nll = a == (vec)(0) ? (vec)(0) : a * (base - z);
    }
}

#define SUM_FOUR(f, member) ((f[0].member + f[1].member) + (f[2].member + f[3].member))
ALWAYS_INLINE void add_four(block_sums *b, const terms four[4])
{
    b->few.others += SUM_FOUR(four, others);
    if (HAS_ENTROPY) b->few.entropy += SUM_FOUR(four, entropy);
    if (HAS_DENSE) b->few.nll += SUM_FOUR(four, nll);
    if (HAS_DENSE) b->few.weight += SUM_FOUR(four, weight);
}

ALWAYS_INLINE void add_one(block_sums *b, const terms *one)
{
    b->few.others += one->others;
    if (HAS_ENTROPY) b->few.entropy += one->entropy;
    if (HAS_DENSE) b->few.nll += one->nll;
    if (HAS_DENSE) b->few.weight += one->weight;
}

/* first: b was flushed never before, and an addition to nothing loses nothing. */
ALWAYS_INLINE void flush(block_sums *b, const bool first)
{
    const long_vector none = { (vec)(0), (vec)(0) };
#define FLUSH(member)                                          \
    if (first) {                                               \
        b->member = none;                                      \
        b->member.high = b->few.member;                        \
    } else {                                                   \
        b->member = long_add_vector(b->member, b->few.member); \
    }
    FLUSH(others)
    if (HAS_ENTROPY) {
        FLUSH(entropy)
    }
    if (HAS_DENSE) {
        FLUSH(nll)
        FLUSH(weight)
    }
#undef FLUSH
    b->few = no_terms();
}

static inline long_sum fold(const long_sum s, const long_vector v)
{
#if LANES
    return long_merge(s, v);
#else
    return long_merge(s, (long_sum){ FOLD(v.high, real_sum), FOLD(v.low, real_sum) });
#endif
}

static inline void add_block(row_sums *s, const block_sums *b)
{
    s->others = fold(s->others, b->others);
#if HAS_ENTROPY
    s->entropy = fold(s->entropy, b->entropy);
#endif
#if HAS_DENSE
    s->dense_nll = fold(s->dense_nll, b->nll);
    s->dense_weight = fold(s->dense_weight, b->weight);
#endif
}

/* ---- What the sums come to ------------------------------------------------------------------ */

typedef struct {
    lane maximum;
    exp_scale scale;
    lane others;     /* sum of exp(z) at scale, without the target's class */
    lane target_exp; /* at scale; 0 without a target */
    lane d;          /* others + target_exp */
    lane log_d;      /* log sum exp(z - maximum) */
    lane fine_log_d; /* the same after a second pass, with full relative precision, where results need it */
    lane lse;
    ilane valid; /* at least one finite logit, no +inf, no NaN */
    ilane
        confident; /* one class that is not the target holds more than half: log_d lacks relative precision */
} row_result;

/* log(others + apart) relative to top, all at one scale. Where the class kept apart is the top and holds more
 * than half, it is log(1 + y), y = others / apart, which keeps the digits of a confident row: 2 atanh(y / (2 + y)). Of
 * either only the one quotient is taken: divisions are what holds up a CPU's vector unit for 16 cycles each. */
static inline lane log_sum(const lane others, const lane apart, const lane top)
{
    const ilane is_apart = apart > others;
    const lane v = (others + apart) / top;
    const ilane k = is_apart ? (ilane)(0) : log_exponent(v);
    const lane f = AS_LANE(AS_ILANE(v) - (k << MANTISSA_BITS));
    const lane numerator = is_apart ? others : f - (lane)(1);
    const lane denominator = is_apart ? others + (apart + apart) : f + (lane)(1);
    return fma(CONVERT_LANE(k), (lane)(LN2_HIGH), two_atanh(numerator / denominator));
}

static inline row_result finish_sums(const lane maximum, const lane others, const lane target_exp,
                                     const ilane has_nan)
{
    row_result r;
    r.maximum = maximum;
    r.scale = exp_scale_of(maximum);
    r.others = others;
    r.target_exp = target_exp;
    r.d = others + target_exp;
    r.valid = maximum > (lane)(-REAL_INFINITY) && maximum < (lane)(REAL_INFINITY) && r.d == r.d;
    const lane top = exp_lane(maximum, r.scale, true);
    r.log_d = r.valid ? log_sum(others, target_exp, top) : (lane)(REAL_NAN);
    r.fine_log_d = r.log_d;
    r.lse = has_nan ? (lane)(REAL_NAN) : r.valid ? maximum + r.log_d : maximum;
    r.confident = r.valid && r.d < top + top && target_exp <= others;
    return r;
}

/* others: the sum without the top, of confident rows. lse and the loss of an index keep the bits that they have without this
 * pass: what else a plan computes changes neither. */
static inline void keep_top_apart(row_result *r, const lane others)
{
#if !LANES
    if (!r->confident) return;
#endif
    const lane top = exp_lane(r->maximum, r->scale, true);
    const lane log_d = log_sum(others, top, top);
    r->fine_log_d = r->confident ? log_d : r->log_d;
}
