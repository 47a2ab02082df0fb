/* SPDX-License-Identifier: MIT
 *
 * loss.cl - what the sums of a row come to: log d, lse, loss, entropy, and the factors of the gradient; with the
 * options that act on one logit. Stands behind exp.cl in every program that reads logits, for a lane
 * that is one row or many. Formulas: clxent.h.
 */
#define NO_CLASS 0xffffffffu

/* The options of the plan that are numbers. Those that are compiled in are constants where they are not in use. */
typedef struct {
    real keep;  /* 1 - label_smoothing */
    real share; /* label_smoothing / classes */
    real smoothing;
    real z_loss;
    real logit_scale;
    real softcap;
} options;

static inline options options_of(const clxent_parameters *p)
{
    options o;
    o.keep = HAS_SMOOTHING ? REAL_OF(p->keep) : REAL(1.0);
    o.share = HAS_SMOOTHING ? REAL_OF(p->share) : REAL(0.0);
    o.smoothing = HAS_SMOOTHING ? REAL_OF(p->smoothing) : REAL(0.0);
    o.z_loss = REAL_OF(p->z_loss);
    o.logit_scale = HAS_LOGIT_SCALE ? REAL_OF(p->logit_scale) : REAL(1.0);
    o.softcap = HAS_SOFTCAP ? REAL_OF(p->softcap) : REAL(0.0);
    return o;
}

/* What every kernel of a run gets; buffers that the run does not use are NULL. logits and gradient (or softmax,
 * log_softmax) may be one buffer, hence no restrict on them: an element is read before it is written, and by
 * others not after that. */
#define ARGUMENTS                                                                               \
    const clxent_parameters p, __global const storage *logits,  /* [rows, classes] */           \
        __global const void *restrict targets,                  /* [rows] or [rows, classes] */ \
        __global const real *restrict class_weights,            /* [classes] */                 \
        __global const real *restrict row_weights,              /* [rows] */                    \
        __global const real *restrict upstream,                 /* [1] or [rows] */             \
        __global const real *restrict denominator,              /* [1] */                       \
        __global real *restrict losses,                         /* [rows] */                    \
        __global real *restrict lse,                            /* [rows] */                    \
        __global storage *softmax,                              /* [rows, classes] */           \
        __global storage *log_softmax,                          /* [rows, classes] */           \
        __global gradient_storage *gradient,                    /* [rows, classes] */           \
        __global long *restrict argmax,                         /* [rows] */                    \
        __global real *restrict entropy,                        /* [rows] */                    \
        __global real *restrict statistics,                     /* [rows, 2] */                 \
        __global uchar *restrict workspace, __local real *cache /* [cache_elements] */

/* ---- z ------------------------------------------------------------------------------------ */

/* With t = exp(-2|y|) = 2^k exp(r), which unlike exp(2|y|) cannot overflow,
 *
 *     tanh|y| = (1 - t) / (1 + t)        1 - t = (1 - 2^k) - 2^k (exp(r) - 1): no cancellation near 0
 *     slope   = 1 - tanh^2 = 4 t / (1 + t)^2: none where tanh rounds to 1 either
 *
 * Below, t and 1 - t are 4 times that, the 4 in the power of two: t is the slope of a saturated logit then, and keeps
 * its digits down to the smallest normal number. 2|y| is clamped to where k is -(BIAS + 2): the power, and with it the
 * slope, is 0 from there on, where the true slope is no normal number either. The slope is dz/ds: logit_scale is part of
 * what the whole row is multiplied by. */
#define TANH_LIMIT (LN2_HIGH * (BIAS + 2))
static inline real inverse_of(const real softcap) { return 1 / softcap; } /* finite: it is not subnormal */

/* 1 / d for d in [4, 8]. In f32 by Newton's method, two steps from the parabola of least relative error, 1 / 99 =
 * 1 / T3(3), which leave 99^-4 = 0.2 u and the rounding of the last: 6 instructions in place of a division, which holds
 * up a CPU's vector unit for 16 cycles and is a dozen instructions on GPUs. */
#if DTYPE == F64
#    define INVERSE_START(T, d) ((T)(1) / (d))
#    define INVERSE_STEP(T, d, r) (r)
#else
#    define INVERSE_START(T, d) fma(fma((T)(0.5f / 99), d, (T)(-9.0f / 99)), d, (T)(52.5f / 99))
#    define INVERSE_STEP(T, d, r) fma(r, fma(-(d), r, (T)(1)), r)
#endif

#define DEFINE_SOFTCAP(NAME, T, I, AS_T, AS_I)                                     \
    static inline T NAME(const T s, const real softcap, T *slope)                  \
    {                                                                              \
        const T y2 = s * (T)(2 * inverse_of(softcap));                             \
        const T x = -fabs(y2) < (T)(-TANH_LIMIT) ? (T)(-TANH_LIMIT) : -fabs(y2);   \
        const T shifted = fma(x, (T)(INV_LN2), (T)(ROUNDER + BIAS + 2));           \
        const T k = shifted - (T)(ROUNDER + BIAS + 2);                             \
        const T r = REDUCE(T, k, x);                                               \
        /* exp(r) - 1: the polynomial without its last term */                     \
        const T p = r * EXP_SLOPE(r, (T)AS_IT_IS);                                 \
        const T scale = AS_T(AS_I(shifted) << MANTISSA_BITS);                      \
        const T t = fma(scale, p, scale);                                          \
        const T rest = fma(-scale, p, (T)(4) - scale);                             \
        const T d = t + (T)(4);                                                    \
        const T near = INVERSE_START(T, d);                                        \
        const T nearer = INVERSE_STEP(T, d, near);                                 \
        const T inverse = INVERSE_STEP(T, d, nearer);                              \
        *slope = ((T)(16) * t) * (inverse * inverse);                              \
        return copysign((T)(softcap) * (rest * inverse), y2);                      \
    }                                                                              \
    /* z of x, and the slope */                                                    \
    static inline T NAME##_z(const T x, const options o, T *slope)                 \
    {                                                                              \
        if (!HAS_Z) return x;                                                      \
        T z = HAS_LOGIT_SCALE ? x * (T)(o.logit_scale) : x;                        \
        *slope = (T)(1);                                                           \
        if (HAS_SOFTCAP) {                                                         \
            z = NAME(z, o.softcap, slope); /* of NaN it is NaN */                  \
            *slope = x == (T)(-REAL_INFINITY) ? (T)(0) : *slope;                   \
        }                                                                          \
        return x == (T)(-REAL_INFINITY) ? x : z;                                   \
    }                                                                              \
    /* s = logit_scale * x: what the argmax is taken of, as a softcap that       \
     * saturates makes equal what is not. Without a softcap it is z. */ \
    static inline T NAME##_s(const T x, const options o)                           \
    {                                                                              \
        if (!HAS_LOGIT_SCALE) return x;                                            \
        return x == (T)(-REAL_INFINITY) ? x : x * (T)(o.logit_scale);              \
    }

#if !LANES || VEC == 1
DEFINE_SOFTCAP(softcap_one, real, integer, PASTE(as_, REAL_TYPE), PASTE(as_, INTEGER_TYPE))
#endif
#if VEC > 1
DEFINE_SOFTCAP(softcap_vector, vec, ivec, AS_VEC, AS_IVEC)
#else
#    define softcap_vector_z softcap_one_z
#    define softcap_vector_s softcap_one_s
#endif

/* ---- What follows from the sums ----------------------------------------------------------- */

typedef struct {
    lane maximum;
    exp_scale scale;
    lane others;     /* sum of exp(z) at scale, without the target's class */
    lane target_exp; /* at scale; 0 without a target */
    lane d;          /* others + target_exp */
    lane log_d;      /* log sum exp(z - maximum) */
    lane lse;
    ilane valid; /* at least one finite logit, no +inf, no NaN */
    ilane
        confident; /* one class that is not the target holds more than half: log_d lacks relative precision until
                        keep_top_apart() */
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
    r.lse = has_nan ? (lane)(REAL_NAN) : r.valid ? maximum + r.log_d : maximum;
    r.confident = r.valid && r.d < top + top && target_exp <= others;
    return r;
}

/* others: the sum without the top, where that is confident. */
static inline void keep_top_apart(row_result *r, const lane others)
{
#if !LANES
    if (!r->confident) return;
#endif
    const lane top = exp_lane(r->maximum, r->scale, true);
    const lane log_d = log_sum(others, top, top);
    r->log_d = r->confident ? log_d : r->log_d;
    r->lse = r->confident ? r->maximum + r->log_d : r->lse;
}

/* What a row is judged by, and the weights of its terms. */
typedef struct {
    ilane counts;   /* neither ignored nor masked nor out of range */
    ilane bad;      /* out of range, and the policy makes that NaN */
    lane weight;    /* row_weight */
    lane z;         /* of the target's class; -inf without one */
    lane slope;     /* of the softcap there */
    lane one_hot;   /* keep * class_weight of the target's class; 0 without one */
    lane dense;     /* the part of a_j at the target's class that every class has */
    lane dense_sum; /* sum of that part over the classes */
    lane dense_nll; /* sum of that part times (maximum - z_j) */
} judgement;

static inline lane loss_of(const row_result *r, const judgement *t, const real z_loss)
{
    const lane zero = (lane)(0);
    lane loss = t->one_hot != zero ? t->one_hot * ((r->maximum - t->z) + r->log_d) : zero;
    if (HAS_DENSE) loss = loss + (t->dense_nll + t->dense_sum * r->log_d);
    if (z_loss != 0) loss = fma((lane)(z_loss), r->lse * r->lse, loss); /* 0 * inf would be NaN */
    loss = r->valid ? t->weight * loss : (lane)(REAL_NAN);
    return t->counts ? loss : t->bad ? (lane)(REAL_NAN) : zero;
}

/* sum: of exp(z) (maximum - z) at scale over all classes but the target's. */
static inline lane entropy_of(const row_result *r, const judgement *t, const lane sum)
{
    const lane zero = (lane)(0);
    const lane of_target = r->target_exp == zero ? zero : r->target_exp * (r->maximum - t->z);
    return r->valid ? r->log_d + (sum + of_target) / r->d : (lane)(REAL_NAN);
}

/* dx_j = (exp(z_j) * factor - dense a_j) * outer * slope_j, at the target's class `target`. Where a row has no
 * gradient all its elements are `fill`. */
typedef struct {
    lane factor, outer, target, fill;
    lane rest;    /* of factor, which it was rounded by */
    lane inverse; /* 1 / d, which softmax is made of */
    ilane filled;
} gradient_factors;

/* outer: row_weight upstream logit_scale / d. no_rows: d is the sum of weights, and no row counts. lse: as the
 * statistics give it, as a gradient run from them has no better one. */
static inline gradient_factors gradient_of(const row_result *r, const judgement *t, const real z_loss,
                                           const lane lse, const lane outer, const bool no_rows)
{
    const lane z_term = (lane)(2 * z_loss) * lse;
    /* the lesser of p and 1 - p, rounded as their quotient is; of the other the difference to 1 cancels nothing */
    const ilane is_likely = r->target_exp > r->others;
    const lane part = is_likely ? r->others : r->target_exp;
    const lane inverse = (lane)(1) / r->d;
    const lane near = part * inverse;
    const lane share = fma(fma(-near, r->d, part), inverse, near);
    const lane p = is_likely ? (lane)(1) - share : share;
    const lane missing = is_likely ? share : (lane)(1) - share;
    const lane at_target = (t->dense_sum + z_term) * p - t->one_hot * missing;
    gradient_factors g;
    const lane sum = t->one_hot + t->dense_sum + z_term;
    g.factor = sum / r->d;
    g.rest = fma(-g.factor, r->d, sum) * inverse;
    g.inverse = inverse;
    g.outer = outer;
    g.target = (HAS_DENSE ? at_target - t->dense : at_target) * g.outer * t->slope;
    g.filled = (ilane)(no_rows ? -1 : 0) || !t->counts || !r->valid;
    g.fill = t->bad || (t->counts && !r->valid) ? (lane)(REAL_NAN) : (lane)(0);
    return g;
}

/* Adding 0, as at a class whose p has vanished, leaves even -0 as it is, as rows that do not count do. */
static inline __attribute__((unused)) vec accumulated(const vec old, const vec value)
{
    return value == (vec)(0) ? old : old + value;
}

/* ---- What stands beside the logits -------------------------------------------------------- */

/* What multiplies the gradient of one row. */
static inline real get_upstream(const clxent_parameters *p, __global const real *upstream, const ulong row)
{
    if (p->flags & FLAG_UPSTREAM_ROWS) return upstream[p->offset.upstream + row];
    return (p->flags & FLAG_UPSTREAM) ? upstream[p->offset.upstream] : REAL(1.0);
}

/* What losses and gradients are divided by: the caller's denominator, or D as the pass over the targets left it. Of
 * few rows without weights every work-item counts by itself (FLAG_OWN_D), which saves that pass, and one leaves
 * the number for reduce.cl. Counts are exact: the bits are those of the pass. */
static inline real get_d(const clxent_parameters *p, __global const void *targets,
                         __global const real *row_weights, __global const real *denominator,
                         __global uchar *workspace)
{
    if (p->flags & FLAG_DENOMINATOR) return denominator[p->offset.denominator];
    if (!(p->flags & FLAG_MEAN)) return 1;
    __global real *shared = (__global real *)(workspace + p->denominator_at);
    if (!(p->flags & FLAG_OWN_D)) return *shared;
    real d = 0;
    for (ulong row = 0; row < p->rows; row++) {
        if (get_target(p, row, targets, row_weights).counts) d = d + 1;
    }
    if (get_global_id(0) == 0) *shared = d;
    return d;
}
