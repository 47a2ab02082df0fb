/* SPDX-License-Identifier: MIT
 *
 * row_state.cl - what is known of a row while its logits are read: empty, add a block, raise the maximum, merge, finish.
 * Stands behind math.cl in every program that reads logits. A lane is one row or a vector of rows; a vec lies along the
 * classes of one row or holds one class of many, and fold() makes lanes of it. Which work-item has which logits, and in what
 * order they come, is map_row.cl's and map_lane.cl's.
 */
/* Sums over a part of a row: a work-item's, a piece's, in the end the row's. */
typedef struct {
    lane maximum; /* of z; NaN is not seen */
    lane top;     /* of logit_scale * x; -inf where best is not wanted */
    ilane best;   /* the first class whose s is top, or NO_CLASS */
    ilane nan_at; /* the first class that is NaN, or NO_CLASS */
    /* exp(z) at the maximum's scale, over all classes but the target's */
    compensated_sum sum_excluding_target;
#if HAS_ENTROPY
    compensated_sum entropy; /* exp(z) (maximum - z), over the same */
#endif
#if HAS_DENSE
    compensated_sum dense_nll;    /* a_j (maximum - z_j) */
    compensated_sum dense_weight; /* a_j */
#endif
} row_state;

static inline row_state empty_state(void)
{
    row_state s;
    s.maximum = (lane)(-ACC_INFINITY);
    s.top = (lane)(-ACC_INFINITY);
    s.best = NO_CLASSES;
    s.nan_at = NO_CLASSES;
    s.sum_excluding_target = compensated_zero();
#if HAS_ENTROPY
    s.entropy = compensated_zero();
#endif
#if HAS_DENSE
    s.dense_nll = compensated_zero();
    s.dense_weight = compensated_zero();
#endif
    return s;
}

/* Moves s to a maximum that is no less. Sums of (maximum - z) grow by their weight times the step; nothing is added while
 * the maximum is -inf. */
static inline void raise_maximum(row_state *s, const lane maximum)
{
    const ilane moves = s->maximum > (lane)(-ACC_INFINITY) && maximum > s->maximum;
    if (ANY_LANE(moves)) {
        const lane rescale = exp_rescale(exp_scale_of(s->maximum), exp_scale_of(maximum));
        const lane factor = moves ? rescale : (lane)(1);
#if HAS_ENTROPY || HAS_DENSE
        const lane step = moves ? maximum - s->maximum : (lane)(0);
#endif
#if HAS_ENTROPY
        const lane raised = moves ? compensated_value(s->sum_excluding_target) * step : (lane)(0);
        s->entropy = compensated_times(compensated_add(s->entropy, raised), factor);
#endif
#if HAS_DENSE
        s->dense_nll = compensated_add(s->dense_nll, compensated_value(s->dense_weight) * step);
#endif
        s->sum_excluding_target = compensated_times(s->sum_excluding_target, factor);
    }
    s->maximum = maximum;
}

#if !LANES
/* Of two parts, neither of which need be the first. */
static inline row_state merge_at_one_maximum(row_state a, const row_state b)
{
    if (HAS_BEST && (b.top > a.top || (b.top == a.top && b.best < a.best))) {
        a.top = b.top;
        a.best = b.best;
    }
    if (HAS_NAN_AT) a.nan_at = min(a.nan_at, b.nan_at);
    a.sum_excluding_target = compensated_merge(a.sum_excluding_target, b.sum_excluding_target);
#    if HAS_ENTROPY
    a.entropy = compensated_merge(a.entropy, b.entropy);
#    endif
#    if HAS_DENSE
    a.dense_nll = compensated_merge(a.dense_nll, b.dense_nll);
    a.dense_weight = compensated_merge(a.dense_weight, b.dense_weight);
#    endif
    return a;
}

static inline row_state merge(row_state a, row_state b)
{
    const acc_t maximum = acc_max(a.maximum, b.maximum);
    raise_maximum(&a, maximum);
    raise_maximum(&b, maximum);
    return merge_at_one_maximum(a, b);
}
#endif

/* ---- A block -------------------------------------------------------------------------------- */

/* What one vector adds. What a program does not sum stays 0, and costs nothing. */
typedef struct {
    vec sum_excluding_target, entropy, nll, weight;
} terms;

/* What one block adds: few terms are summed plainly, four by four, and flushed into sums that lose nothing before many
 * have been added: where one term is 1 and very many others are alike, each addition to it rounds the same way, and
 * the error grows with their number. */
typedef struct {
    terms few;
    compensated_vector sum_excluding_target, entropy, nll, weight;
} block_sums;

static inline terms no_terms(void)
{
    const vec zero = (vec)(0);
    return (terms){ zero, zero, zero, zero };
}

static inline block_sums empty_block(void)
{
    const vec zero = (vec)(0);
    const compensated_vector none = { zero, zero };
    return (block_sums){ no_terms(), none, none, none, none };
}

/* What distances are taken from: the maximum, but for a row that has nothing but -inf. */
static inline lane distance_base(const lane maximum)
{
    return maximum > (lane)(-ACC_INFINITY) ? maximum : (lane)(0);
}

/* To t, which is no_terms(), from logits z. e: their exponentials, 0 where they do not count; base: see distance_base();
 * a: 0 where it does not count. */
ALWAYS_INLINE void take_terms(terms *t, const vec e, const vec z, const vec base, const vec a)
{
    t->sum_excluding_target = e;
    if (HAS_ENTROPY) t->entropy = e == (vec)(0) ? (vec)(0) : e * (base - z);
    if (HAS_DENSE) {
        t->weight = a;
        t->nll = a == (vec)(0) ? (vec)(0) : a * (base - z);
    }
}

#define SUM_FOUR(t, member) ((t[0].member + t[1].member) + (t[2].member + t[3].member))
ALWAYS_INLINE void add_four(block_sums *b, const terms t[4])
{
    b->few.sum_excluding_target += SUM_FOUR(t, sum_excluding_target);
    if (HAS_ENTROPY) b->few.entropy += SUM_FOUR(t, entropy);
    if (HAS_DENSE) b->few.nll += SUM_FOUR(t, nll);
    if (HAS_DENSE) b->few.weight += SUM_FOUR(t, weight);
}

ALWAYS_INLINE void add_terms(terms *sum, const terms *one)
{
    sum->sum_excluding_target += one->sum_excluding_target;
    if (HAS_ENTROPY) sum->entropy += one->entropy;
    if (HAS_DENSE) sum->nll += one->nll;
    if (HAS_DENSE) sum->weight += one->weight;
}

/* first: b was flushed never before, and an addition to nothing loses nothing. */
ALWAYS_INLINE void flush(block_sums *b, const bool first)
{
    const compensated_vector none = { (vec)(0), (vec)(0) };
#define FLUSH(member)                                                 \
    if (first) {                                                      \
        b->member = none;                                             \
        b->member.high = b->few.member;                               \
    } else {                                                          \
        b->member = compensated_add_vector(b->member, b->few.member); \
    }
    FLUSH(sum_excluding_target)
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

static inline compensated_sum fold(const compensated_sum s, const compensated_vector v)
{
#if LANES
    return compensated_merge(s, v);
#else
    return compensated_merge(s, (compensated_sum){ FOLD(v.high, acc_sum), FOLD(v.low, acc_sum) });
#endif
}

/* Moves sums of exponentials to another scale: exact, short of underflow. */
static inline void scale_block(block_sums *b, const lane factor)
{
    b->sum_excluding_target.high *= (vec)(factor);
    b->sum_excluding_target.low *= (vec)(factor);
    if (HAS_ENTROPY) b->entropy.high *= (vec)(factor);
    if (HAS_ENTROPY) b->entropy.low *= (vec)(factor);
}

static inline void add_block(row_state *s, const block_sums *b)
{
    s->sum_excluding_target = fold(s->sum_excluding_target, b->sum_excluding_target);
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
    lane sum_excluding_target; /* sum of exp(z) at scale, without the target's class */
    lane target_exp;           /* at scale; 0 without a target */
    lane sum_exp;              /* sum_excluding_target + target_exp */
#if HAS_ENTROPY
    lane mean_distance; /* sum of p_j (maximum - z_j) */
#endif
    lane lse_minus_max; /* log sum exp(z - maximum) */
    /* the same after a second pass, with full relative precision, where results need it */
    lane fine_lse_minus_max;
    lane lse;
    ilane valid; /* at least one finite logit, no +inf, no NaN */
    /* one class that is not the target holds more than half: lse_minus_max lacks relative precision */
    ilane confident;
} row_result;

/* log(rest + excluded) relative to top, all at one scale. Where the excluded class is the top and holds more
 * than half, it is log(1 + y), y = rest / excluded, which keeps the digits of a confident row: 2 atanh(y / (2 + y)). Of
 * either only the one quotient is taken: divisions are what holds up a CPU's vector unit for 16 cycles each. */
static inline lane log_sum(const lane rest, const lane excluded, const lane top)
{
    const ilane is_most = excluded > rest;
    const lane v = (rest + excluded) / top;
    const ilane k = is_most ? (ilane)(0) : log_exponent(v);
    const lane f = AS_LANE(AS_ILANE(v) - (k << MANTISSA_BITS));
    const lane numerator = is_most ? rest : f - (lane)(1);
    const lane divisor = is_most ? rest + (excluded + excluded) : f + (lane)(1);
    return fma(CONVERT_LANE(k), (lane)(LN2_HIGH), two_atanh(numerator / divisor));
}

static inline row_result finish_state(const lane maximum, const lane sum_excluding_target,
                                      const lane target_exp, const ilane has_nan)
{
    row_result r;
    r.maximum = maximum;
    r.scale = exp_scale_of(maximum);
    r.sum_excluding_target = sum_excluding_target;
    r.target_exp = target_exp;
    r.sum_exp = sum_excluding_target + target_exp;
    r.valid = BOTH(IS_FINITE(maximum), IS_NOT_NAN(r.sum_exp));
    const lane top = exp_lane(maximum, r.scale, true);
    r.lse_minus_max = r.valid ? log_sum(sum_excluding_target, target_exp, top) : (lane)(ACC_NAN);
    r.fine_lse_minus_max = r.lse_minus_max;
    r.lse = has_nan ? (lane)(ACC_NAN) : r.valid ? maximum + r.lse_minus_max : maximum;
    r.confident = r.valid && r.sum_exp < top + top && target_exp <= sum_excluding_target;
    return r;
}

/* Of confident rows. lse and the loss of an index keep the bits that they have without this pass: what else a plan
 * computes changes neither. */
static inline void refine_lse(row_result *r, const lane sum_excluding_max)
{
#if !LANES
    if (!r->confident) return;
#endif
    const lane top = exp_lane(r->maximum, r->scale, true);
    const lane lse_minus_max = log_sum(sum_excluding_max, top, top);
    r->fine_lse_minus_max = r->confident ? lse_minus_max : r->lse_minus_max;
}
