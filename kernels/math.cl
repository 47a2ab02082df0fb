/* SPDX-License-Identifier: MIT
 *
 * math.cl - the exponential, the logarithm and the softcap, with the accuracy and the scaling that softmax needs. Stands
 * behind common.cl in every program that reads logits.
 */
/* ---- The exponential --------------------------------------------------------------------- */

/* Softmax needs exp(z - m) for the maximum m. Subtracting first rounds z - m to u * |z - m|, which
 * the exponential turns into a relative error. So z is range-reduced as it stands,
 *
 *     z = k ln2 + r,  |r| <= ln2 / 2        exp(z) = 2^k exp(r)
 *
 * and what is shifted away is not m but 2^q, q = rint(m / ln2): exp(z - q ln2) = 2^(k - q) exp(r) has a
 * relative error of about 2u whatever z, costs no instruction more, and when the maximum grows the
 * sum so far is rescaled by a power of two, which is exact. The largest term lies in [2^-1/2, 2^1/2], times
 * 2^HEADROOM.
 *
 * k - q is computed in one fma with a constant that leaves the integer k - q + BIAS in the low bits of the
 * mantissa: shifted into the exponent's place, it is 2^(k - q). z is clamped from below to where that is 0, so
 * terms under 2^(-BIAS + 1/2) of the largest vanish, -inf included, and NaN stays NaN.
 *
 * In f32 the reduction takes ln2 in one part. It is off by LN2_LOW = 0.03 u for each unit of k, of which q units
 * are the same factor for the whole row and cancel wherever terms are compared, divided or related to the
 * maximum's; what remains is 0.05 u (m - z). In f64 that would be 0.3 u (m - z), and the low part is added.
 *
 * All this holds for |k| < 2^22; beyond MAX_NEAR the row's maximum is subtracted first after all
 * ("far": base = m, q = 0): two logits of a row that count differ there by 1/128 at least or not at all. */
#define INV_LN2 ACC(0x1.71547652b82fep+0)
/* Set by the host for groups of rows (host/tuning.def, native_exp):
 *   NATIVE_EXP  1: the device's 2^f takes the place of the polynomial */
#if !defined(NATIVE_EXP)
#    define NATIVE_EXP 0
#endif
#if NATIVE_EXP < 0 || NATIVE_EXP > 1 || (NATIVE_EXP && (DTYPE == F64 || LANES || WG_SIZE == 1))
#    error "NATIVE_EXP: 0, or 1 for groups of rows that are not f64"
#endif
/* Bits of the exponent that a table of powers of two takes from the polynomial, see TABLE_ENTRY; 0: no table. */
#if VEC != 16 || WG_SIZE > 1 || DTYPE == F64 || (LANES && !ALONG)
#    define TABLE_BITS 0
#elif defined(__AVX512F__) && __has_builtin(__builtin_ia32_permvarsf512)
#    define TABLE_BITS 4
#elif defined(__AVX2__) && __has_builtin(__builtin_ia32_vpermilvarps256)
#    define TABLE_BITS 2
#else
#    define TABLE_BITS 0
#endif
#define HAS_TABLE (TABLE_BITS > 0)
#define TABLE_STEPS (1 << TABLE_BITS)
#if DTYPE == F64
#    define LN2_HIGH 0x1.62e42fefa39efp-1
#    define LN2_LOW 0x1.abc9e3b39803fp-56
#    define REDUCE(T, k, steps, x) fma(k, (T)(-LN2_LOW), fma(k, (T)(-LN2_HIGH), x))
#    define ROUNDER 0x1.8p+52
#    define BIAS 1023
#    define MANTISSA_BITS 52
#    define MAX_NEAR 0x1p+50
#    define ACC_SMALLEST_NORMAL 0x1p-1022
#else
#    define LN2_HIGH 0x1.62e430p-1f
#    define REDUCE(T, k, steps, x) fma(k, (T)(-LN2_HIGH / (steps)), x)
#    define ROUNDER 0x1.8p+23f
#    define BIAS 127
#    define MANTISSA_BITS 23
#    define ACC_SMALLEST_NORMAL 0x1p-126f
#    define MAX_NEAR 0x1p+16f /* with a table k counts parts; all share their scales */
#endif

/* exp(r) = 1 + r + r^2 Q(r): Q of least relative error on |r| <= 0.3475 (Remez exchange), 3.1e-9 = 0.05 u for f32, 5.5e-20 for
 * f64. */
#if DTYPE == F64
#    define EXP_C2 0.5
#    define EXP_C3 0x1.555555555555cp-3
#    define EXP_C4 0x1.5555555555501p-5
#    define EXP_C5 0x1.111111110eb9bp-7
#    define EXP_C6 0x1.6c16c16c30d04p-10
#    define EXP_C7 0x1.a01a01b3cb125p-13
#    define EXP_C8 0x1.a01a0134ec9a0p-16
#    define EXP_C9 0x1.71ddef5d22005p-19
#    define EXP_C10 0x1.27e5b62d97945p-22
#    define EXP_C11 0x1.af6d42be17e7ep-26
#    define EXP_C12 0x1.1e3c462bb53ffp-29
#else
#    define EXP_C2 0x1.fffffcp-2f
#    define EXP_C3 0x1.555490p-3f
#    define EXP_C4 0x1.5558fap-5f
#    define EXP_C5 0x1.123b6ap-7f
#    define EXP_C6 0x1.6a21acp-10f
#endif

/* On CPUs a table of 2^(j / TABLE_STEPS) in a register takes the place of half of the polynomial: k counts parts of
 * ln2, its low bits are the permutation's index, and |r| <= ln2 / TABLE_STEPS / 2. The table holds what, added to the
 * integer that is left of `shifted`, makes the bits of 2^(k - q). The error is 2.1 u instead of 1.1 u: not for lanes of few
 * classes, whose large shares have hardly another error.
 *   AVX-512, whose 512-bit fma takes a whole cycle: exp(r) = 1 + r + C2 r^2 + C3 r^3 to 4.1e-09
 *   AVX2, which permutes four: one term more, to 5.6e-09. Of the operations that two of Zen 3's four pipes do, 7 in place
 *   of 9: loss 0.89 of the time, loss + gradient 0.92 */
#if TABLE_BITS == 4
#    define TABLE                                                                                     \
        ((int16)(0x0, -0x2553d, -0x46a3e, -0x63c2d, -0x7c810, -0x90ace, -0xa0129, -0xaa7c1, -0xafb0d, \
                 -0xaf75c, -0xa98d6, -0x9db74, -0x8bb03, -0x73321, -0x53f39, -0x2da83))
#    define TABLE_C2 0x1.00017c0000000p-1f
#    define TABLE_C3 0x1.5556d20000000p-3f
#    define TABLE_ENTRY(bits) as_int16(__builtin_ia32_permvarsf512(as_float16(TABLE), bits))
#elif TABLE_BITS == 2
#    define TABLE ((int8)(0x0, -0x7c810, -0xafb0d, -0x8bb03, 0x0, -0x7c810, -0xafb0d, -0x8bb03))
#    define TABLE_C2 0x1.000006p-1f
#    define TABLE_C3 0x1.557202p-3f
#    define TABLE_C4 0x1.5520cap-5f
#    define TABLE_HALF(bits) as_int8(__builtin_ia32_vpermilvarps256(as_float8(TABLE), bits))
#    define TABLE_ENTRY(bits) ((int16)(TABLE_HALF((bits).lo), TABLE_HALF((bits).hi)))
#else
#    define TABLE_ENTRY(bits) (ivec)(0)
#endif

/* factor * (exp(r) - 1) / r, by Horner's scheme. The coefficients are the same for a whole row, so that the factor costs no
 * element a multiplication. */
ALWAYS_INLINE vec exp_slope(const vec r, const lane factor)
{
#define COEFFICIENT(c) (vec)(factor * (lane)(c))
#if TABLE_BITS == 4
    vec p = COEFFICIENT(TABLE_C3);
    p = fma(p, r, COEFFICIENT(TABLE_C2));
#elif HAS_TABLE
    vec p = COEFFICIENT(TABLE_C4);
    p = fma(p, r, COEFFICIENT(TABLE_C3));
    p = fma(p, r, COEFFICIENT(TABLE_C2));
#else
#    if DTYPE == F64
    vec p = COEFFICIENT(EXP_C12);
    p = fma(p, r, COEFFICIENT(EXP_C11));
    p = fma(p, r, COEFFICIENT(EXP_C10));
    p = fma(p, r, COEFFICIENT(EXP_C9));
    p = fma(p, r, COEFFICIENT(EXP_C8));
    p = fma(p, r, COEFFICIENT(EXP_C7));
    p = fma(p, r, COEFFICIENT(EXP_C6));
#    else
    vec p = COEFFICIENT(EXP_C6);
#    endif
    p = fma(p, r, COEFFICIENT(EXP_C5));
    p = fma(p, r, COEFFICIENT(EXP_C4));
    p = fma(p, r, COEFFICIENT(EXP_C3));
    p = fma(p, r, COEFFICIENT(EXP_C2));
#endif
    return fma(p, r, (vec)(factor));
#undef COEFFICIENT
}

/* factor * exp(r) */
ALWAYS_INLINE vec exp_polynomial(const vec r, const lane factor)
{
    return fma(exp_slope(r, factor), r, (vec)(factor));
}

/* exp(r) - 1. On CPUs by Estrin's scheme, whose chain is half as long: loss and gradient take 0.95 of the time, of f64 0.91
 * (Zen 3, AVX2). GPUs have other work-items to run meanwhile, and no registers for the powers of r. */
#define EXP_PAIR(r, c1, c0) fma((vec)(c1), r, (vec)(c0))
ALWAYS_INLINE vec exp_minus_1(const vec r)
{
#if WG_SIZE > 1
    return r * exp_slope(r, (lane)(1));
#else
    const vec r2 = r * r;
#    if DTYPE == F64
    const vec r4 = r2 * r2;
    const vec high = fma(fma((vec)(EXP_C12), r2, EXP_PAIR(r, EXP_C11, EXP_C10)), r4,
                         fma(EXP_PAIR(r, EXP_C9, EXP_C8), r2, EXP_PAIR(r, EXP_C7, EXP_C6)));
    const vec q = fma(high, r4, fma(EXP_PAIR(r, EXP_C5, EXP_C4), r2, EXP_PAIR(r, EXP_C3, EXP_C2)));
#    else
    const vec q = fma(fma((vec)(EXP_C6), r2, EXP_PAIR(r, EXP_C5, EXP_C4)), r2, EXP_PAIR(r, EXP_C3, EXP_C2));
#    endif
    return fma(q, r2, r);
#endif
}

/* exp(r) * power, on GPUs as sum_of_block() of group_rows.cl computes it. */
ALWAYS_INLINE vec exp_product(const vec r, const vec power)
{
#if WG_SIZE > 1
    return exp_polynomial(r, (lane)(1)) * power;
#elif TABLE_BITS == 4
    return fma(power * r, fma(fma((vec)(TABLE_C3), r, (vec)(TABLE_C2)), r, (vec)(1)), power);
#elif HAS_TABLE
    const vec r2 = r * r;
    return fma(fma(fma((vec)(TABLE_C4), r2, EXP_PAIR(r, TABLE_C3, TABLE_C2)), r2, r), power, power);
#else
    return fma(exp_minus_1(r), power, power);
#endif
}

/* The scale that a row's exponentials share: they are exp(z - base) * 2^-q. */
typedef struct {
    lane base;   /* 0 while |maximum| <= MAX_NEAR, else the maximum */
    lane q;      /* an integer */
    lane lowest; /* z - base is clamped to this: (q - BIAS) ln2 */
} exp_scale;

/* With the table, numbers below the normal ones come out wrong, while the polynomial reaches 2^-24 below them: so the
 * largest term is 2^HEADROOM, of a block of row_results.cl up to 2^64 times that, and what is lost is less than any normal
 * share of the sum. */
#define HEADROOM (HAS_TABLE ? 16 : 0)

/* What turns a sum at a row's scale into that of saved statistics, which every strategy shares, and which loses nothing
 * of the rows that need the headroom. */
#define STATISTICS_FACTOR (HAS_TABLE ? ACC(1.0) : ACC(65536.0))

/* Of -inf, the maximum of nothing yet, it is the scale of 0: its terms are 0 at any scale. */
static inline exp_scale exp_scale_of(const lane maximum)
{
    const lane zero = (lane)(0);
    const ilane is_near = fabs(maximum) <= (lane)(MAX_NEAR);
    const ilane is_far = fabs(maximum) > (lane)(MAX_NEAR) && maximum > (lane)(-ACC_INFINITY);
    const lane q = (maximum * (lane)(INV_LN2) + (lane)(ROUNDER)) - (lane)(ROUNDER);
    exp_scale s;
    s.q = (is_near ? q : zero) - (lane)(HEADROOM);
    s.base = is_far ? maximum : zero;
    s.lowest = (s.q - (lane)(BIAS)) * (lane)(LN2_HIGH);
    return s;
}

/* Binades of a maximum that share a scale of blocks. The largest term of a block is at most 2^(64 + HEADROOM + 1/2), and no
 * sum of 2^31 of those overflows. */
#define SCALE_STEP 64

/* Of a maximum that is near, and the q of so many. */
static inline lane scale_steps(const lane maximum)
{
    return fma(maximum, (lane)(INV_LN2 / SCALE_STEP), (lane)(ROUNDER)) - (lane)(ROUNDER);
}
#define Q_OF_STEPS(T, steps) fma(steps, (T)(SCALE_STEP), (T)(-SCALE_STEP / 2 - HEADROOM))

/* The scale of a block's exponentials: it depends on the maximum so coarsely that blocks, and rows beside each other, share
 * it. */
static inline exp_scale block_scale_of(const lane maximum)
{
    exp_scale s = exp_scale_of(maximum);
    s.q = fabs(maximum) <= (lane)(MAX_NEAR) ? Q_OF_STEPS(lane, scale_steps(maximum)) : s.q;
    s.lowest = (s.q - (lane)(BIAS)) * (lane)(LN2_HIGH);
    return s;
}

#define TWO_THIRDS (ACC(2.0) / ACC(3.0))

#if !NATIVE_EXP
/* z - base, and a finite number where exp(z) is 0 */
ALWAYS_INLINE vec exp_vector_clamped(const vec z, const exp_scale s, const bool far)
{
    const vec x = far ? z - (vec)(s.base) : z;
    return (vec)(s.lowest) > x ? (vec)(s.lowest) : x;
}

/* The power of two of exp(z), and what is left for the polynomial. */
ALWAYS_INLINE vec exp_vector_reduce(const vec clamped, const exp_scale s, vec *r)
{
    const vec rounder = (vec)((lane)(ROUNDER + TABLE_STEPS * BIAS) - (lane)(TABLE_STEPS)*s.q);
    const vec shifted = fma(clamped, (vec)(TABLE_STEPS * INV_LN2), rounder);
    const ivec bits = AS_IVEC(shifted);
    *r = REDUCE(vec, shifted - rounder, TABLE_STEPS, clamped);
    return AS_VEC((bits << (MANTISSA_BITS - TABLE_BITS)) + TABLE_ENTRY(bits));
}

ALWAYS_INLINE vec exp_vector_of(const vec clamped, const exp_scale s)
{
    vec r;
    const vec power = exp_vector_reduce(clamped, s, &r);
    return exp_product(r, power);
}

/* exp(z) at scale s */
static inline vec exp_vector(const vec z, const exp_scale s, const bool far)
{
    return exp_vector_of(exp_vector_clamped(z, s, far), s);
}

/* factor * exp(z) */
ALWAYS_INLINE vec exp_vector_times(const vec z, const exp_scale s, const bool far, const lane factor)
{
    vec r;
    const vec power = exp_vector_reduce(exp_vector_clamped(z, s, far), s, &r);
    return exp_polynomial(r, factor) * power;
}
#endif

#if WG_SIZE > 1
/* Whether NaN gets through exp_finite_part(). PTX has a maximum that keeps it for NVIDIA GPUs of capability 8.0. */
#    define KEEPS_NAN_BY_PTX (SM_80 && VEC > 1 && DTYPE != F64)
#    define EXP_KEEPS_NAN (NATIVE_EXP || KEEPS_NAN_BY_PTX)
#    if KEEPS_NAN_BY_PTX
static inline __attribute__((unused)) vec max_keeping_nan(const vec a, const vec b)
{
    float one[VEC], other[VEC];
    STORE(a, one);
    STORE(b, other);
#        pragma unroll
    for (uint i = 0; i < VEC; i++)
        __asm__("max.NaN.f32 %0, %1, %2;" : "=f"(one[i]) : "f"(one[i]), "f"(other[i]));
    return LOAD(one);
}
#        define MAX_OF_FINITE max_keeping_nan
#    else
#        define MAX_OF_FINITE fmax
#    endif

/* Of a finite z or -inf of a row that is near, one instruction less: exp(z) = what is returned * power. */
#    if NATIVE_EXP
/* 2^(r / ln2) by the device in place of exp(r) by the polynomial. `shifted` is clamped, to where 2^(k - q) is 0, and not z:
 * r then is at most ln2 / 2, -inf, or NaN of NaN, so that one instruction serves all three. Where 2^f is off by b u, the
 * result is by (b + 0.5 + 0.05 (m - z)) u, measured over all f32 z from m - 87 to m. Without the reduction, as 2^f of one
 * fma, f alone is rounded by what makes up to 54 u at m - z = 44, where softmax may be off by 52 u. NVIDIA's native_exp2()
 * takes care of results below the normal numbers, which there are none of: 4 instructions more. */
static inline vec exp_finite_part(const vec z, const exp_scale s, vec *power)
{
    const vec rounder = (vec)((lane)(ROUNDER + BIAS) - s.q);
    const vec shifted = fmax(fma(z, (vec)(INV_LN2), rounder), (vec)(ROUNDER));
    const vec f = REDUCE(vec, shifted - rounder, 1, z) * (vec)(INV_LN2);
    *power = AS_VEC(AS_IVEC(shifted) << MANTISSA_BITS);
#        if defined(__NV_CL_C_VERSION) || defined(__NVPTX__)
    float element[VEC];
    STORE(f, element);
#            pragma unroll
    for (uint i = 0; i < VEC; i++) __asm__("ex2.approx.ftz.f32 %0, %1;" : "=f"(element[i]) : "f"(element[i]));
    return LOAD(element);
#        else
    return native_exp2(f);
#        endif
}

static inline vec exp_vector(const vec z, const exp_scale s, const bool far)
{
    vec power;
    const vec part = exp_finite_part(far ? z - (vec)(s.base) : z, s, &power);
    return part * power;
}

static inline vec exp_vector_times(const vec z, const exp_scale s, const bool far, const lane factor)
{
    return exp_vector(z, s, far) * (vec)(factor);
}

static inline vec exp_finite_times(const vec z, const exp_scale s, const lane factor)
{
    return exp_vector_times(z, s, false, factor);
}
#    else
static inline vec exp_finite_part(const vec z, const exp_scale s, vec *power)
{
    vec r;
    *power = exp_vector_reduce(MAX_OF_FINITE(z, (vec)(s.lowest)), s, &r);
    return exp_polynomial(r, (lane)(1));
}

static inline vec exp_finite_times(const vec z, const exp_scale s, const lane factor)
{
    vec r;
    const vec power = exp_vector_reduce(fmax(z, (vec)(s.lowest)), s, &r);
    return exp_polynomial(r, factor) * power;
}
#    endif

static inline vec exp_finite(const vec z, const exp_scale s)
{
    vec power;
    const vec part = exp_finite_part(z, s, &power);
    return part * power;
}
#endif

/* Of one logit, with the bits it has in a vector: sum_exp < 2 exp(m) must say that one class alone is the maximum, which the
 * ulp between two ways to compute it would spoil. */
#if LANES || VEC == 1
#    define exp_lane exp_vector
#else
static inline acc_t exp_lane(const acc_t z, const exp_scale s, const bool far)
{
    return exp_vector((vec)(z), s, far).s0;
}
#endif

/* 2^n for an integer n <= BIAS, 0 below the normal numbers. */
static inline lane power_of_two(const lane n)
{
    const lane clamped = n < (lane)(-BIAS) ? (lane)(-BIAS) : n;
    return AS_LANE(AS_ILANE(clamped + (lane)(ROUNDER + BIAS)) << MANTISSA_BITS);
}

/* exp(from's scale - to's): what turns a sum at scale from into one at scale to, whose q is no less.
 * Exact but where one of them is far: there base and q ln2 are of the order of 2^20 each and nearly cancel, so
 * nothing is rounded before they have. */
static inline lane exp_rescale(const exp_scale from, const exp_scale to)
{
    const lane shift = to.q - from.q;
    const ilane same_base = from.base == to.base;
    if (!ANY_LANE(from.base != to.base)) return power_of_two(-shift);
    return same_base ? power_of_two(-shift) : exp(REDUCE(lane, shift, 1, from.base - to.base));
}

/* ---- The logarithm ----------------------------------------------------------------------- */

/* 2 atanh(s) by the series s + s^3 / 3 + ... for |s| <= 1/3: what is left out is less than 0.03 u of the sum. The
 * drivers' log on vectors takes ten times as long, and their scalars differ. */
#define LAST_ODD (DTYPE == F64 ? 35 : 15)
static inline lane two_atanh(const lane s)
{
    const lane s2 = s * s;
    lane p = (lane)(ACC(1.0) / LAST_ODD);
#pragma unroll
    for (int n = LAST_ODD - 2; n >= 3; n -= 2) p = fma(p, s2, (lane)(ACC(1.0) / (acc_t)n));
    const lane twice = s + s;
    return fma(twice * s2, p, twice);
}

/* The k of a normal v > 0 = 2^k f with f in [2/3, 4/3), where f - 1 is exact: log(v) = k ln2 + 2 atanh((f - 1) / (f + 1)).
 * Near 1, k is 0. */
static inline ilane log_exponent(const lane v)
{
    return (AS_ILANE(v) - (ilane)(AS_ONE_INTEGER(TWO_THIRDS))) >> MANTISSA_BITS;
}

/* ---- The softcap ------------------------------------------------------------------------- */

/* The options of the plan that are numbers. Those that are compiled in are constants where they are not in use. */
typedef struct {
    acc_t one_minus_smoothing; /* 1 - label_smoothing */
    acc_t smoothing_per_class; /* label_smoothing / classes */
    acc_t smoothing;
    acc_t logit_scale;
    acc_t softcap;
#if WG_SIZE == 1
    acc_t over_softcap; /* see OVER_SOFTCAP() */
#endif
} options;

/* 2 / softcap: finite, as that is not subnormal. Groups divide anew, which takes a register less than to keep it. */
#if WG_SIZE == 1
#    define OVER_SOFTCAP(o) ((o).over_softcap)
#else
#    define OVER_SOFTCAP(o) (2 * (1 / (o).softcap))
#endif

static inline options options_of(const clxent_parameters *p)
{
    options o;
    o.one_minus_smoothing = HAS_SMOOTHING ? ACC_OF(p->one_minus_smoothing) : ACC(1.0);
    o.smoothing_per_class = HAS_SMOOTHING ? ACC_OF(p->smoothing_per_class) : ACC(0.0);
    o.smoothing = HAS_SMOOTHING ? ACC_OF(p->smoothing) : ACC(0.0);
    o.logit_scale = HAS_LOGIT_SCALE ? ACC_OF(p->logit_scale) : ACC(1.0);
    o.softcap = HAS_SOFTCAP ? ACC_OF(p->softcap) : ACC(0.0);
#if WG_SIZE == 1
    o.over_softcap = HAS_SOFTCAP ? 2 * (1 / o.softcap) : ACC(0.0);
#endif
    return o;
}

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

/* 1 / d for d in [4, 8]. In f32 by Newton's method, two steps from the parabola of least relative error, 1 / 99 =
 * 1 / T3(3), which leave 99^-4 = 0.2 u and the rounding of the last: 6 instructions in place of a division, which holds
 * up a vector unit of 512 bits for 16 cycles and is a dozen instructions on GPUs. Other CPUs divide: those 6 wait for each
 * other (AVX2, Zen 3, all options: 0.84 of the time). */
ALWAYS_INLINE vec inverse_of(const vec d)
{
#if DTYPE == F64 || (WG_SIZE == 1 && !defined(__AVX512F__))
    return (vec)(1) / d;
#else
    const vec start = fma(fma((vec)(0.5f / 99), d, (vec)(-9.0f / 99)), d, (vec)(52.5f / 99));
    const vec near = fma(start, fma(-d, start, (vec)(1)), start);
    return fma(near, fma(-d, near, (vec)(1)), near);
#endif
}

ALWAYS_INLINE vec softcap_vector(const vec s, const options o, vec *slope)
{
    const vec y2 = s * (vec)OVER_SOFTCAP(o);
    const vec x = (vec)(TANH_LIMIT) < fabs(y2) ? (vec)(TANH_LIMIT) : fabs(y2);
    const vec shifted = fma(x, (vec)(-INV_LN2), (vec)(ROUNDER + BIAS + 2));
    const vec k = shifted - (vec)(ROUNDER + BIAS + 2);
    const vec p = exp_minus_1(REDUCE(vec, k, 1, -x));
    const vec scale = AS_VEC(AS_IVEC(shifted) << MANTISSA_BITS);
    const vec t = fma(scale, p, scale);
    const vec rest = fma(-scale, p, (vec)(4) - scale);
    const vec inverse = inverse_of(t + (vec)(4));
    *slope = ((vec)(16) * t) * (inverse * inverse);
    return copysign((vec)(o.softcap) * (rest * inverse), y2);
}

/* z of x, and the slope */
ALWAYS_INLINE vec softcap_vector_z_inline(const vec x, const options o, vec *slope)
{
    *slope = (vec)(1);
    if (!HAS_Z) return x;
    vec z = HAS_LOGIT_SCALE ? x * (vec)(o.logit_scale) : x;
    if (HAS_SOFTCAP) {
        z = softcap_vector(z, o, slope); /* of NaN it is NaN */
        *slope = x == (vec)(-ACC_INFINITY) ? (vec)(0) : *slope;
    }
    return x == (vec)(-ACC_INFINITY) ? x : z;
}

static inline vec softcap_vector_z(const vec x, const options o, vec *slope)
{
    return softcap_vector_z_inline(x, o, slope);
}

/* s = logit_scale * x: what the argmax is taken of, as a softcap that saturates makes equal what is not. Without a softcap it
 * is z. */
static inline vec softcap_vector_s(const vec x, const options o)
{
    if (!HAS_LOGIT_SCALE) return x;
    return x == (vec)(-ACC_INFINITY) ? x : x * (vec)(o.logit_scale);
}

#if LANES || VEC == 1
#    define softcap_lane_z softcap_vector_z
#else
static inline acc_t softcap_lane_z(const acc_t x, const options o, acc_t *slope)
{
    vec slopes;
    const acc_t z = softcap_vector_z((vec)(x), o, &slopes).s0;
    *slope = slopes.s0;
    return z;
}
#endif
