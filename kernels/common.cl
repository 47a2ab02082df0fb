/* SPDX-License-Identifier: MIT
 *
 * common.cl - storage types, the exponential, work-group reductions; stands behind parameters.cl at the
 * head of every program.
 *
 * Set by the host with -D (host/plan.c, build_options()):
 *   DTYPE           storage of logits, probabilities, softmax: 1 f32, 2 f16, 3 bf16, 4 f64
 *   GRADIENT_DTYPE  storage of the gradient, same values
 *   VEC             elements that one work-item handles at a time: 1, 4, 8 or 16
 *   WG_SIZE         work-items in a group: a power of two, at most 1024. With 1 every barrier and
 *                   tree below vanishes: that is the CPU's shape, one work-item a row
 *   LANES           what a `lane` is, the type of what a row has one of: 0 a real, so that vectors lie along
 *                   the classes of one row; 1 a vector, so that each of its elements is another row
 */
#if !defined(DTYPE) || DTYPE < 1 || DTYPE > 4
#    error "DTYPE: 1 f32, 2 f16, 3 bf16, 4 f64"
#endif
#if !defined(GRADIENT_DTYPE) || GRADIENT_DTYPE < 1 || GRADIENT_DTYPE > 4
#    error "GRADIENT_DTYPE: 1 f32, 2 f16, 3 bf16, 4 f64"
#endif
#if !defined(VEC) || (VEC != 1 && VEC != 4 && VEC != 8 && VEC != 16)
#    error "VEC: 1, 4, 8 or 16"
#endif
#if !defined(WG_SIZE) || WG_SIZE < 1 || WG_SIZE > 1024 || (WG_SIZE & (WG_SIZE - 1)) != 0
#    error "WG_SIZE: a power of two, at most 1024"
#endif
#if !defined(LANES) || LANES < 0 || LANES > 1
#    error "LANES: 0 or 1"
#endif

/* a * b + c is one rounding only where fma() says so: every kernel then gives the same bits, and the
 * error-free sums below stay error-free. */
#pragma OPENCL FP_CONTRACT OFF

/* A loop that is not unrolled after all is no news to anybody; PoCL prints it. */
#if defined(__clang__)
#    pragma clang diagnostic ignored "-Wpass-failed"
#endif

#define F32 1
#define F16 2
#define BF16 3
#define F64 4

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

#if DTYPE == F64
#    pragma OPENCL EXTENSION cl_khr_fp64 : enable
typedef double real;
typedef long integer; /* as wide as real */
#    define REAL(x) x
#    define REAL_TYPE double
#    define INTEGER_TYPE long
#else
typedef float real;
typedef int integer;
#    define REAL(x) x##f
#    define REAL_TYPE float
#    define INTEGER_TYPE int
#endif
#define convert_real PASTE(convert_, REAL_TYPE)
#define REAL_INFINITY ((real)INFINITY)
#define REAL_NAN ((real)NAN)

#if VEC == 1
typedef real vec;
typedef integer ivec;
#    define AS_VEC PASTE(as_, REAL_TYPE)
#    define AS_IVEC PASTE(as_, INTEGER_TYPE)
#    define CONVERT_VEC PASTE(convert_, REAL_TYPE)
#    define VECTOR(type) type
#    define CONVERT(type) PASTE(convert_, type)
#    define AS(type) PASTE(as_, type)
#    define LOAD(p) (*(p))
#    define STORE(v, p) (*(p) = (v))
#    define LOAD_HALF(p) vload_half(0, p)
#    define STORE_HALF(v, p) vstore_half_rte(v, 0, p)
#else
typedef PASTE(REAL_TYPE, VEC) vec;
typedef PASTE(INTEGER_TYPE, VEC) ivec;
#    define AS_VEC PASTE(PASTE(as_, REAL_TYPE), VEC)
#    define AS_IVEC PASTE(PASTE(as_, INTEGER_TYPE), VEC)
#    define CONVERT_VEC PASTE(PASTE(convert_, REAL_TYPE), VEC)
#    define VECTOR(type) PASTE(type, VEC)
#    define CONVERT(type) PASTE(PASTE(convert_, type), VEC)
#    define AS(type) PASTE(PASTE(as_, type), VEC)
#    if defined(__clang__)
/* PoCL 3.1 makes vstore16 into local memory four stores, as it cannot tell that they do not overlap the loads
 * between them. A pointer to vectors that may stand anywhere is one access in every compiler made of clang. */
#        define DEFINE_ACCESS(T, SPACE)                                                              \
            static inline __attribute__((overloadable, unused)) VECTOR(T) load_any(SPACE const T *p) \
            {                                                                                        \
                typedef VECTOR(T) anywhere __attribute__((aligned(sizeof(T))));                      \
                return *(SPACE const anywhere *)p;                                                   \
            }                                                                                        \
            static inline __attribute__((overloadable, unused)) void store_any(const VECTOR(T) v,    \
                                                                               SPACE T *p)           \
            {                                                                                        \
                typedef VECTOR(T) anywhere __attribute__((aligned(sizeof(T))));                      \
                *(SPACE anywhere *)p = v;                                                            \
            }
#        define DEFINE_ACCESSES(T)     \
            DEFINE_ACCESS(T, __global) \
            DEFINE_ACCESS(T, __local)  \
            DEFINE_ACCESS(T, __private)
DEFINE_ACCESSES(float)
DEFINE_ACCESSES(int)
DEFINE_ACCESSES(long)
DEFINE_ACCESSES(ushort)
DEFINE_ACCESSES(uchar)
#        if DTYPE == F64 || GRADIENT_DTYPE == F64
DEFINE_ACCESSES(double)
#        endif
#        define LOAD(p) load_any(p)
#        define STORE(v, p) store_any(v, p)
#    else
#        define LOAD(p) PASTE(vload, VEC)(0, p)
#        define STORE(v, p) PASTE(vstore, VEC)(v, 0, p)
#    endif
#    define LOAD_HALF(p) PASTE(vload_half, VEC)(0, p)
#    define STORE_HALF(v, p) PASTE(PASTE(vstore_half, VEC), _rte)(v, 0, p)
#endif

/* 64-bit conditions and numbers to those of the width of real. */
#define TO_INTEGERS(v) LANE_OF(INTEGER_TYPE)(v)

/* In code for both: conditions are ilanes, chosen by ?: and joined by && and ||, and constants are cast. */
#if LANES
typedef vec lane;
typedef ivec ilane;
#    if VEC > 1
#        define ANY_LANE(condition) any(condition)
#    else
#        define ANY_LANE(condition) ((condition) != 0)
#    endif
#    define AS_LANE AS_VEC
#    define AS_ILANE AS_IVEC
#    define CONVERT_LANE CONVERT_VEC
#    define LANE_ROWS VEC
#    define LANE(type) VECTOR(type)
#    define LANE_OF(type) CONVERT(type)
#    define LOAD_LANE(p) LOAD(p)
#    define STORE_LANE(v, p) STORE(v, p)
#    define LANE_IOTA IOTA
#else
typedef real lane;
typedef integer ilane;
#    define AS_LANE PASTE(as_, REAL_TYPE)
#    define AS_ILANE PASTE(as_, INTEGER_TYPE)
#    define CONVERT_LANE convert_real
#    define LANE_ROWS 1
#    define LANE(type) type
#    define LANE_OF(type) PASTE(convert_, type)
#    define LOAD_LANE(p) (*(p))
#    define STORE_LANE(v, p) (*(p) = (v))
#    define LANE_IOTA 0
#    define ANY_LANE(condition) ((condition) != 0)
#endif

/* ---- Storage ----------------------------------------------------------------------------- */

/* The functions below are the only ones that know how a tensor is stored. */
#if DTYPE == F32
typedef float storage;
#elif DTYPE == F16
typedef half storage;
#elif DTYPE == BF16
typedef ushort storage;
#else
typedef double storage;
#endif

#if GRADIENT_DTYPE == F32
typedef float gradient_storage;
#elif GRADIENT_DTYPE == F16
typedef half gradient_storage;
#elif GRADIENT_DTYPE == BF16
typedef ushort gradient_storage;
#else
typedef double gradient_storage;
#endif

/* Where the compiler has it, a store that does not first read the line it overwrites: 0.7 of the
 * time of a plain copy on PoCL. The pointer must be aligned to the vector. */
#if defined(__has_builtin)
#    if __has_builtin(__builtin_nontemporal_store) && VEC > 1 && WG_SIZE == 1
#        define HAS_NONTEMPORAL 1
#    endif
#endif
#if !defined(HAS_NONTEMPORAL)
#    define HAS_NONTEMPORAL 0
#endif

/* On GPUs a vector that may stand anywhere can become single elements, as clang makes it for PTX; one that is known to
 * be aligned is one access of 128 bits. CPUs do not tell them apart. */
#if WG_SIZE > 1 && VEC > 1
#    define TELLS_ALIGNED 1
#else
#    define TELLS_ALIGNED 0
#endif
#define IS_ALIGNED(p, T) ((size_t)(p) % (VEC * sizeof(T)) == 0)

/* bf16 is the upper half of an f32, rounded to nearest even. NaN keeps its upper bits and gets a quiet
 * bit, as rounding could carry its payload into the exponent. */
#define DEFINE_BF16(NAME, FLOAT, UINT, USHORT, AS_UINT, AS_FLOAT, TO_UINT, TO_USHORT)            \
    static inline FLOAT NAME##_load(const USHORT bits) { return AS_FLOAT(TO_UINT(bits) << 16); } \
    static inline USHORT NAME##_store(const FLOAT value)                                         \
    {                                                                                            \
        const UINT bits = AS_UINT(value);                                                        \
        const UINT rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;                       \
        const UINT quiet = (bits >> 16) | 0x40u;                                                 \
        return TO_USHORT((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);                  \
    }

/* PoCL 3.1 takes pointers to vectors of halves for aligned ones, though they may begin at any half: so memory sees
 * 16-bit integers, and only private memory halves. */
#if DTYPE == F16 || GRADIENT_DTYPE == F16
static inline VECTOR(ushort) half_bits(const VECTOR(float) value)
{
    VECTOR(ushort) bits;
    STORE_HALF(value, (__private half *)&bits);
    return bits;
}

static inline VECTOR(float) half_values(const VECTOR(ushort) stored)
{
    const VECTOR(ushort) bits = stored;
    return LOAD_HALF((const __private half *)&bits);
}
#endif

#if DTYPE == BF16 || GRADIENT_DTYPE == BF16
DEFINE_BF16(bf16_scalar, float, uint, ushort, as_uint, as_float, convert_uint, convert_ushort)
#    if VEC > 1
DEFINE_BF16(bf16_vector, VECTOR(float), VECTOR(uint), VECTOR(ushort), AS(uint), AS(float), CONVERT(uint),
            CONVERT(ushort))
#        if TELLS_ALIGNED
/* Pairs of them as 32-bit integers: PTX has no access to eight of 16 bits. */
#            if VEC == 4
#                define PAIRS(type) PASTE(type, 2)
#            elif VEC == 8
#                define PAIRS(type) PASTE(type, 4)
#            else
#                define PAIRS(type) PASTE(type, 8)
#            endif
static inline __attribute__((unused)) VECTOR(float) bf16_load_pairs(__global const ushort *p)
{
    const PAIRS(uint) pairs = *(__global const PAIRS(uint) *)p;
    VECTOR(float) value;
    value.even = PASTE(as_, PAIRS(float))(pairs << 16);
    value.odd = PASTE(as_, PAIRS(float))(pairs & 0xffff0000u);
    return value;
}

static inline __attribute__((unused)) void bf16_store_pairs(const VECTOR(ushort) bits, __global ushort *p)
{
    *(__global PAIRS(uint) *)p =
        PASTE(convert_, PAIRS(uint))(bits.even) | (PASTE(convert_, PAIRS(uint))(bits.odd) << 16);
}
#        endif
#    else
#        define bf16_vector_load bf16_scalar_load
#        define bf16_vector_store bf16_scalar_store
#    endif
#endif

static inline real load_one(__global const storage *p)
{
#if DTYPE == F16
    return vload_half(0, p);
#elif DTYPE == BF16
    return bf16_scalar_load(*p);
#else
    return *p;
#endif
}

static inline vec load_vector(__global const storage *p)
{
#if DTYPE == F16
    return half_values(LOAD((__global const ushort *)p));
#elif DTYPE == BF16
    return bf16_vector_load(LOAD(p));
#else
    return LOAD(p);
#endif
}

#if TELLS_ALIGNED
/* p: aligned to the vector's storage. */
static inline __attribute__((unused)) vec load_vector_aligned(__global const storage *p)
{
#    if DTYPE == F16
    return half_values(*(__global const VECTOR(ushort) *)p);
#    elif DTYPE == BF16
    return bf16_load_pairs(p);
#    else
    return *(__global const vec *)p;
#    endif
}
#    define LOAD_VECTOR(p, aligned) ((aligned) ? load_vector_aligned(p) : load_vector(p))
#else
#    define load_vector_aligned load_vector
#    define LOAD_VECTOR(p, aligned) load_vector(p)
#endif

#define DEFINE_STORE(NAME, STORAGE, KIND)                                                                \
    static inline void NAME##_one(__global STORAGE *p, const real value) { KIND##_STORE_ONE(value, p); } \
    /* aligned: p is aligned to the vector's storage, and the store may bypass the cache where it can */ \
    static inline void NAME##_vector(__global STORAGE *p, const vec value, const bool aligned)           \
    {                                                                                                    \
        KIND##_STORE_VECTOR(value, p, aligned);                                                          \
    }

#if HAS_NONTEMPORAL
#    define STORE_OR_STREAM(TYPE, v, p, aligned)                              \
        do {                                                                  \
            if (aligned) {                                                    \
                __builtin_nontemporal_store(v, (__global VECTOR(TYPE) *)(p)); \
            } else {                                                          \
                STORE(v, p);                                                  \
            }                                                                 \
        } while (0)
#elif TELLS_ALIGNED
#    define STORE_OR_STREAM(TYPE, v, p, aligned)     \
        do {                                         \
            if (aligned) {                           \
                *(__global VECTOR(TYPE) *)(p) = (v); \
            } else {                                 \
                STORE(v, p);                         \
            }                                        \
        } while (0)
#else
#    define STORE_OR_STREAM(TYPE, v, p, aligned) \
        do {                                     \
            (void)(aligned);                     \
            STORE(v, p);                         \
        } while (0)
#endif
#define F32_STORE_ONE(v, p) (*(p) = convert_float(v))
#define F32_STORE_VECTOR(v, p, aligned) STORE_OR_STREAM(float, CONVERT(float)(v), p, aligned)
#define F64_STORE_ONE(v, p) (*(p) = (v))
#define F64_STORE_VECTOR(v, p, aligned) STORE_OR_STREAM(double, v, p, aligned)
#define BF16_STORE_ONE(v, p) (*(p) = bf16_scalar_store(v))
#if TELLS_ALIGNED
#    define BF16_STORE_VECTOR(v, p, aligned)               \
        do {                                               \
            if (aligned) {                                 \
                bf16_store_pairs(bf16_vector_store(v), p); \
            } else {                                       \
                STORE(bf16_vector_store(v), p);            \
            }                                              \
        } while (0)
#else
#    define BF16_STORE_VECTOR(v, p, aligned) STORE_OR_STREAM(ushort, bf16_vector_store(v), p, aligned)
#endif
#define F16_STORE_ONE(v, p) vstore_half_rte(v, 0, p)
#define F16_STORE_VECTOR(v, p, aligned) STORE_OR_STREAM(ushort, half_bits(v), (__global ushort *)(p), aligned)

#if DTYPE == F32
DEFINE_STORE(store, storage, F32)
#elif DTYPE == F16
DEFINE_STORE(store, storage, F16)
#elif DTYPE == BF16
DEFINE_STORE(store, storage, BF16)
#else
DEFINE_STORE(store, storage, F64)
#endif
#if GRADIENT_DTYPE == F32
DEFINE_STORE(store_gradient, gradient_storage, F32)
#elif GRADIENT_DTYPE == F16
DEFINE_STORE(store_gradient, gradient_storage, F16)
#elif GRADIENT_DTYPE == BF16
DEFINE_STORE(store_gradient, gradient_storage, BF16)
#else
DEFINE_STORE(store_gradient, gradient_storage, F64)
#endif

static inline real load_gradient_one(__global const gradient_storage *p)
{
#if GRADIENT_DTYPE == F16
    return vload_half(0, p);
#elif GRADIENT_DTYPE == BF16
    return bf16_scalar_load(*p);
#else
    return convert_real(*p);
#endif
}

static inline vec load_gradient_vector(__global const gradient_storage *p)
{
#if GRADIENT_DTYPE == F16
    return half_values(LOAD((__global const ushort *)p));
#elif GRADIENT_DTYPE == BF16
    return bf16_vector_load(LOAD(p));
#elif GRADIENT_DTYPE == F32 && DTYPE == F64
    return CONVERT(double)(LOAD(p));
#else
    return LOAD(p);
#endif
}

/* A vector of which only the first n elements exist (1 <= n <= VEC). The others are never touched, and
 * read as fill. All loads are in bounds, so none of them needs a branch. */
static inline vec load_partial(__global const storage *p, const uint n, const real fill)
{
    real element[VEC];
    for (uint i = 0; i < VEC; i++) {
        const real value = load_one(p + min(i, n - 1));
        element[i] = i < n ? value : fill;
    }
    return LOAD(element);
}

static inline void store_partial(__global storage *p, const vec value, const uint n)
{
    real element[VEC];
    STORE(value, element);
    for (uint i = 0; i < VEC; i++) {
        if (i < n) store_one(p + i, element[i]);
    }
}

static inline vec load_gradient_partial(__global const gradient_storage *p, const uint n)
{
    real element[VEC];
    for (uint i = 0; i < VEC; i++) element[i] = load_gradient_one(p + min(i, n - 1));
    return LOAD(element);
}

static inline void store_gradient_partial(__global gradient_storage *p, const vec value, const uint n)
{
    real element[VEC];
    STORE(value, element);
    for (uint i = 0; i < VEC; i++) {
        if (i < n) store_gradient_one(p + i, element[i]);
    }
}

/* ---- Vectors ----------------------------------------------------------------------------- */

/* Maximum that prefers a where either is NaN: one instruction (maxps), unlike fmax. */
static inline vec vec_max(const vec a, const vec b) { return b > a ? b : a; }

static inline real real_max(const real a, const real b) { return b > a ? b : a; }

static inline real real_sum(const real a, const real b) { return a + b; }

/* A vector's elements to one, halves first. */
#if VEC == 16
#    define FOLD(v, f)                                                                         \
        f(f(f(f((v).s0, (v).s8), f((v).s4, (v).sc)), f(f((v).s2, (v).sa), f((v).s6, (v).se))), \
          f(f(f((v).s1, (v).s9), f((v).s5, (v).sd)), f(f((v).s3, (v).sb), f((v).s7, (v).sf))))
#    define IOTA ((ivec)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
#elif VEC == 8
#    define FOLD(v, f) f(f(f((v).s0, (v).s4), f((v).s2, (v).s6)), f(f((v).s1, (v).s5), f((v).s3, (v).s7)))
#    define IOTA ((ivec)(0, 1, 2, 3, 4, 5, 6, 7))
#elif VEC == 4
#    define FOLD(v, f) f(f((v).s0, (v).s2), f((v).s1, (v).s3))
#    define IOTA ((ivec)(0, 1, 2, 3))
#else
#    define FOLD(v, f) (v)
#    define IOTA 0
#endif

/* ---- The exponential --------------------------------------------------------------------- */

/* Softmax needs exp(z - m) for the maximum m. Subtracting first rounds z - m to u * |z - m|, which
 * the exponential turns into a relative error. So z is range-reduced as it stands,
 *
 *     z = k ln2 + r,  |r| <= ln2 / 2        exp(z) = 2^k exp(r)
 *
 * and what is shifted away is not m but 2^q, q = rint(m / ln2): exp(z - q ln2) = 2^(k - q) exp(r) has a
 * relative error of about 2u whatever z, costs no instruction more, and when the maximum grows the
 * sum so far is rescaled by a power of two, which is exact. The largest term lies in [2^-1/2, 2^1/2], or 2^HEADROOM times that.
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
 * ("far": base = m, q = 0): two logits differ there by 1/8 at least or not at all. */
#define INV_LN2 REAL(0x1.71547652b82fep+0)
#define HAS_TABLE 0
#if VEC == 16 && DTYPE != F64 && !LANES && defined(__AVX512F__) && defined(__has_builtin)
#    if __has_builtin(__builtin_ia32_permvarsf512)
#        undef HAS_TABLE
#        define HAS_TABLE 1
#    endif
#endif
#if DTYPE == F64
#    define LN2_HIGH 0x1.62e42fefa39efp-1
#    define LN2_LOW 0x1.abc9e3b39803fp-56
#    define REDUCE(T, k, x) fma(k, (T)(-LN2_LOW), fma(k, (T)(-LN2_HIGH), x))
#    define ROUNDER 0x1.8p+52
#    define BIAS 1023
#    define MANTISSA_BITS 52
#    define MAX_NEAR 0x1p+50
#else
#    define LN2_HIGH 0x1.62e430p-1f
#    define REDUCE(T, k, x) fma(k, (T)(-LN2_HIGH), x)
#    define ROUNDER 0x1.8p+23f
#    define BIAS 127
#    define MANTISSA_BITS 23
#    if HAS_TABLE
#        define MAX_NEAR 0x1p+16f /* k counts sixteenths */
#    else
#        define MAX_NEAR 0x1p+20f
#    endif
#endif

/* exp(r) = 1 + r (1 + r P(r)): P of least relative error on |r| <= 0.3475 (Remez exchange), 3.1e-9 = 0.05 u for
 * f32, 5.5e-20 for f64. EXP_SLOPE is the parenthesis. C(c) gives a coefficient as the caller wants it: as it
 * is, or times a factor. */
#if DTYPE == F64
#    define EXP_SLOPE(r, C)                                                                                 \
        fma(fma(fma(fma(fma(fma(fma(fma(fma(fma(fma(C(0x1.1e3c462bb53ffp-29), r, C(0x1.af6d42be17e7ep-26)), \
                                                r, C(0x1.27e5b62d97945p-22)),                               \
                                            r, C(0x1.71ddef5d22005p-19)),                                   \
                                        r, C(0x1.a01a0134ec9a0p-16)),                                       \
                                    r, C(0x1.a01a01b3cb125p-13)),                                           \
                                r, C(0x1.6c16c16c30d04p-10)),                                               \
                            r, C(0x1.111111110eb9bp-7)),                                                    \
                        r, C(0x1.5555555555501p-5)),                                                        \
                    r, C(0x1.555555555555cp-3)),                                                            \
                r, C(0.5)),                                                                                 \
            r, C(1.0))
#else
#    define EXP_SLOPE(r, C)                                                                      \
        fma(fma(fma(fma(fma(C(0x1.6a21acp-10f), r, C(0x1.123b6ap-7f)), r, C(0x1.5558fap-5f)), r, \
                    C(0x1.555490p-3f)),                                                          \
                r, C(0x1.fffffcp-2f)),                                                           \
            r, C(1.0f))
#endif
#define EXP_POLYNOMIAL(r, C) fma(EXP_SLOPE(r, C), r, C(REAL(1.0)))

/* The scale that a row's exponentials share: they are exp(z - base) * 2^-q. */
typedef struct {
    lane base;   /* 0 while |maximum| <= MAX_NEAR, else the maximum */
    lane q;      /* an integer */
    lane lowest; /* z - base is clamped to this: (q - BIAS) ln2 */
} exp_scale;

/* With the table, numbers below the normal ones come out wrong, while the polynomial reaches 2^-24 below them: so the
 * largest term is 2^HEADROOM, and what is lost is less than any normal share of the sum. */
#define HEADROOM (HAS_TABLE ? 16 : 0)

/* Of -inf, the maximum of nothing yet, it is the scale of 0: its terms are 0 at any scale. */
static inline exp_scale exp_scale_of(const lane maximum)
{
    const lane zero = (lane)(0);
    const ilane is_near = fabs(maximum) <= (lane)(MAX_NEAR);
    const ilane is_far = fabs(maximum) > (lane)(MAX_NEAR) && maximum > (lane)(-REAL_INFINITY);
    const lane q = (maximum * (lane)(INV_LN2) + (lane)(ROUNDER)) - (lane)(ROUNDER);
    exp_scale s;
    s.q = (is_near ? q : zero) - (lane)(HEADROOM);
    s.base = is_far ? maximum : zero;
    s.lowest = (s.q - (lane)(BIAS)) * (lane)(LN2_HIGH);
    return s;
}

#define AS_ONE_INTEGER PASTE(as_, INTEGER_TYPE)
#define TWO_THIRDS (REAL(2.0) / REAL(3.0))

/* NAME(z) = exp(z) at scale s. NAME##_times(z) = factor * exp(z), the factor multiplied into the polynomial's
 * coefficients, which are the same for a whole row: one multiplication less for each element. */
#define AS_IT_IS(c) c
#define TIMES_FACTOR(c) ((factor) * (lane)(c))
#define DEFINE_EXP(NAME, T, I, AS_T, AS_I)                                                        \
    static inline T NAME##_reduce(const T z, const exp_scale s, const bool far, T *r)             \
    {                                                                                             \
        const T x = far ? z - (T)(s.base) : z;                                                    \
        const T clamped = (T)(s.lowest) > x ? (T)(s.lowest) : x;                                  \
        const T rounder = (T)((lane)(ROUNDER + BIAS) - s.q);                                      \
        const T shifted = fma(clamped, (T)(INV_LN2), rounder);                                    \
        const T k = shifted - rounder;                                                            \
        *r = REDUCE(T, k, clamped);                                                               \
        return AS_T(AS_I(shifted) << MANTISSA_BITS);                                              \
    }                                                                                             \
    static inline T NAME(const T z, const exp_scale s, const bool far)                            \
    {                                                                                             \
        T r;                                                                                      \
        const T power = NAME##_reduce(z, s, far, &r);                                             \
        return EXP_POLYNOMIAL(r, (T)AS_IT_IS) * power;                                            \
    }                                                                                             \
    static inline T NAME##_times(const T z, const exp_scale s, const bool far, const lane factor) \
    {                                                                                             \
        T r;                                                                                      \
        const T power = NAME##_reduce(z, s, far, &r);                                             \
        return EXP_POLYNOMIAL(r, (T)TIMES_FACTOR) * power;                                        \
    }

/* On CPUs with AVX-512, whose 512-bit fma takes a whole cycle, a table of 2^(j/16) in a register takes the place of half
 * the polynomial: k counts sixteenths, its four low bits are the permutation's index, and |r| <= ln2 / 32. The
 * table holds what, added to the integer that is left of `shifted`, makes the bits of 2^(k - q). exp(r) = 1 + r + C2
 * r^2 + C3 r^3 to 4.1e-09. The error is 2.1 u instead of 1.1 u: not for lanes, whose few classes have large shares. */
#if HAS_TABLE
#    define TABLE                                                                                     \
        ((int16)(0x0, -0x2553d, -0x46a3e, -0x63c2d, -0x7c810, -0x90ace, -0xa0129, -0xaa7c1, -0xafb0d, \
                 -0xaf75c, -0xa98d6, -0x9db74, -0x8bb03, -0x73321, -0x53f39, -0x2da83))
#    define TABLE_C2 0x1.00017c0000000p-1f
#    define TABLE_C3 0x1.5556d20000000p-3f
static inline vec exp_vector_reduce(const vec z, const exp_scale s, const bool far, vec *r)
{
    const vec x = far ? z - (vec)(s.base) : z;
    const vec clamped = (vec)(s.lowest) > x ? (vec)(s.lowest) : x;
    const vec rounder = (vec)((lane)(ROUNDER + 16 * BIAS) - (lane)(16) * s.q);
    const vec shifted = fma(clamped, (vec)(16 * INV_LN2), rounder);
    const ivec bits = as_int16(shifted);
    *r = fma(shifted - rounder, (vec)(-LN2_HIGH / 16), clamped);
    return as_float16((bits << (MANTISSA_BITS - 4)) +
                      as_int16(__builtin_ia32_permvarsf512(as_float16(TABLE), bits)));
}

static inline vec exp_vector(const vec z, const exp_scale s, const bool far)
{
    vec r;
    const vec power = exp_vector_reduce(z, s, far, &r);
    return fma(power * r, fma(fma((vec)(TABLE_C3), r, (vec)(TABLE_C2)), r, (vec)(1)), power);
}

static inline vec exp_vector_times(const vec z, const exp_scale s, const bool far, const lane factor)
{
    vec r;
    const vec power = exp_vector_reduce(z, s, far, &r);
    const vec c3 = (vec)(factor * (lane)(TABLE_C3)), c2 = (vec)(factor * (lane)(TABLE_C2)),
              one = (vec)(factor);
    return fma(fma(fma(c3, r, c2), r, one), r, one) * power;
}
#endif

#if (!LANES || VEC == 1) && !HAS_TABLE
DEFINE_EXP(exp_one, real, integer, PASTE(as_, REAL_TYPE), PASTE(as_, INTEGER_TYPE))
#endif
#if VEC > 1 && !HAS_TABLE
DEFINE_EXP(exp_vector, vec, ivec, AS_VEC, AS_IVEC)
#elif VEC == 1
#    define exp_vector exp_one
#    define exp_vector_times exp_one_times
#endif
/* Of one logit, with the bits it has in a vector: d < 2 exp(m) must say that one class alone is the maximum, which the
 * ulp between two ways to compute it would spoil. */
#if LANES
#    define exp_lane exp_vector
#elif HAS_TABLE
static inline real exp_lane(const real z, const exp_scale s, const bool far)
{
    return exp_vector((vec)(z), s, far).s0;
}
#else
#    define exp_lane exp_one
#endif

/* 2^n for an integer n <= BIAS, 0 below the normal numbers. */
static inline lane power_of_two(const lane n)
{
    const lane clamped = n < (lane)(-BIAS) ? (lane)(-BIAS) : n;
    return AS_LANE(AS_ILANE(clamped + (lane)(ROUNDER + BIAS)) << MANTISSA_BITS);
}

/* exp(from's scale - to's): what turns a sum at scale from into one at scale to, whose maximum is no less.
 * Exact but where one of them is far: there base and q ln2 are of the order of 2^20 each and nearly cancel, so
 * nothing is rounded before they have. */
static inline lane exp_rescale(const exp_scale from, const exp_scale to)
{
    const lane shift = to.q - from.q;
    const ilane same_base = from.base == to.base;
#if LANES
    if (all(same_base)) return power_of_two(-shift);
#else
    if (same_base) return power_of_two(-shift);
#endif
    return same_base ? power_of_two(-shift) : exp(REDUCE(lane, shift, from.base - to.base));
}

/* ---- The logarithm ----------------------------------------------------------------------- */

/* log(1 + y) = 2 atanh(s), s = y / (2 + y), by the series s + s^3 / 3 + ...: |s| <= 1/3, and what is left out is
 * less than 0.03 u of the sum. The drivers' log on vectors takes ten times as long, and their scalars differ. */
static inline lane two_atanh(const lane s)
{
    const lane s2 = s * s;
#if DTYPE == F64
    lane p = (lane)(1.0 / 35.0);
    p = fma(p, s2, (lane)(1.0 / 33.0));
    p = fma(p, s2, (lane)(1.0 / 31.0));
    p = fma(p, s2, (lane)(1.0 / 29.0));
    p = fma(p, s2, (lane)(1.0 / 27.0));
    p = fma(p, s2, (lane)(1.0 / 25.0));
    p = fma(p, s2, (lane)(1.0 / 23.0));
    p = fma(p, s2, (lane)(1.0 / 21.0));
    p = fma(p, s2, (lane)(1.0 / 19.0));
    p = fma(p, s2, (lane)(1.0 / 17.0));
    p = fma(p, s2, (lane)(1.0 / 15.0));
#else
    lane p = (lane)(1.0f / 15.0f);
#endif
    p = fma(p, s2, (lane)(REAL(1.0) / REAL(13.0)));
    p = fma(p, s2, (lane)(REAL(1.0) / REAL(11.0)));
    p = fma(p, s2, (lane)(REAL(1.0) / REAL(9.0)));
    p = fma(p, s2, (lane)(REAL(1.0) / REAL(7.0)));
    p = fma(p, s2, (lane)(REAL(1.0) / REAL(5.0)));
    p = fma(p, s2, (lane)(REAL(1.0) / REAL(3.0)));
    const lane twice = s + s;
    return fma(twice * s2, p, twice);
}

/* log(1 + y) for 0 <= y <= 1, to full relative precision. */
static inline lane log1p_lane(const lane y) { return two_atanh(y / (y + (lane)(2))); }

/* log(v) for a normal v > 0: v = 2^k f with f in [2/3, 4/3), where f - 1 is exact. Near 1, k is 0. */
static inline lane log_lane(const lane v)
{
    const ilane bits = AS_ILANE(v);
    const ilane k = (bits - (ilane)(AS_ONE_INTEGER(TWO_THIRDS))) >> MANTISSA_BITS;
    const lane f = AS_LANE(bits - (k << MANTISSA_BITS));
    return fma(CONVERT_LANE(k), (lane)(LN2_HIGH), two_atanh((f - (lane)(1)) / (f + (lane)(1))));
}

/* ---- Sums -------------------------------------------------------------------------------- */

/* A sum with what its additions lost. ADD is Knuth's two-sum, exact but for the roundings of low: n equal terms, which
 * all round the same way, leave n u / 2 of the sum there, and (n u)^2 / 4 is lost. So ADD is for a few thousand terms,
 * and MERGE, which moves low's whole part to high, for sums of any number of those. A sum that is infinite or NaN
 * stays so: high decides, low is not looked at. */
#define DEFINE_LONG_SUM(SUM, T, ADD, VALUE, MERGE)                          \
    typedef struct {                                                        \
        T high, low;                                                        \
    } SUM;                                                                  \
    static inline SUM ADD(const SUM s, const T x)                           \
    {                                                                       \
        const T high = s.high + x;                                          \
        const T shadow = high - s.high;                                     \
        const T lost = (s.high - (high - shadow)) + (x - shadow);           \
        return (SUM){ high, s.low + lost };                                 \
    }                                                                       \
    static inline T VALUE(const SUM s)                                      \
    {                                                                       \
        return fabs(s.high) < (T)(REAL_INFINITY) ? s.high + s.low : s.high; \
    }                                                                       \
    static inline SUM MERGE(const SUM a, const SUM b)                       \
    {                                                                       \
        const SUM s = ADD(a, b.high);                                       \
        const T low = s.low + b.low;                                        \
        const T high = VALUE((SUM){ s.high, low });                         \
        return (SUM){ high, low - (high - s.high) };                        \
    }
DEFINE_LONG_SUM(long_sum, lane, long_add, long_value, long_merge)
#if !LANES && VEC > 1
DEFINE_LONG_SUM(long_vector, vec, long_add_vector, long_value_vector, long_merge_vector)
#elif !LANES
#    define long_vector long_sum
#    define long_add_vector long_add
#endif
#if LANES
DEFINE_LONG_SUM(long_sum_one, real, long_add_one, long_value_one, long_merge_one)
#else
#    define long_sum_one long_sum
#    define long_add_one long_add
#    define long_value_one long_value
#    define long_merge_one long_merge
#endif

static inline long_sum long_zero(void) { return (long_sum){ (lane)(0), (lane)(0) }; }

static inline long_sum long_times(const long_sum s, const lane factor)
{
    return (long_sum){ s.high * factor, s.low * factor };
}

#if !LANES
/* Over the work-group, by a tree of fixed shape; every work-item must call it and gets the result.
 * scratch is [WG_SIZE]. The barriers: one before each level (the level above was written by others), one
 * before the result is read, one after it so that the caller may use scratch again. */
static inline long_sum group_sum(long_sum value, __local long_sum *scratch)
{
    if (WG_SIZE == 1) return value;
    const uint lid = (uint)get_local_id(0);
    scratch[lid] = value;
    for (uint half_size = WG_SIZE / 2; half_size > 0; half_size /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < half_size) scratch[lid] = long_merge(scratch[lid], scratch[lid + half_size]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    value = scratch[0];
    barrier(CLK_LOCAL_MEM_FENCE);
    return value;
}
#endif

/* ---- Rows -------------------------------------------------------------------------------- */

/* The element that class 0 of a row stands at: [rows / inner, classes, inner]. */
static inline ulong row_start(const clxent_parameters *p, const ulong row, const ulong stride)
{
    return p->inner == 1 ? row * stride : row / p->inner * stride + row % p->inner;
}

static inline bool is_probabilities(const uint target_type)
{
    return target_type >= TARGET_PROBABILITIES_F32;
}

/* What a row's target says: whether the row counts, and how much. */
typedef struct {
    bool counts;    /* neither ignored nor masked nor out of range */
    bool bad;       /* out of range, and the policy makes that NaN */
    bool has_class; /* counts, with an index target: class_index is in range */
    uint class_index;
    long value;  /* as stored, where bad */
    real weight; /* row_weight; 0 where the row does not count */
} row_target;

static inline long load_target(__global const void *targets, const uint type, const ulong at)
{
    if (type == TARGET_I32) return ((__global const int *)targets)[at];
    if (type == TARGET_I64) return ((__global const long *)targets)[at];
    return ((__global const uchar *)targets)[at];
}

/* The target is compared at its full width, and a row of weight 0 does not look at it. */
static inline row_target get_target(const clxent_parameters *p, const ulong row, __global const void *targets,
                                    __global const real *row_weights)
{
    row_target t = { false, false, false, 0, 0, 0 };
    const real weight = (p->flags & FLAG_ROW_WEIGHTS) ? row_weights[p->offset.row_weights + row] : REAL(1.0);
    if (weight == 0 || p->target_type == TARGET_NONE) return t;
    if (p->shift > 0 && row % p->seq + p->shift >= p->seq) return t;
    if (is_probabilities(p->target_type)) {
        t.counts = true;
        t.weight = weight;
        return t;
    }
    const long target = load_target(targets, p->target_type, p->offset.targets + row + p->shift);
    if ((p->flags & FLAG_IGNORE_INDEX) && target == p->ignore_index) return t;
    if (target < 0 || target >= (long)p->classes) {
        t.bad = p->bad_target != BAD_TARGET_IGNORE;
        t.value = target;
        return t;
    }
    t.counts = true;
    t.has_class = true;
    t.class_index = (uint)target;
    t.weight = weight;
    return t;
}

/* ---- Lanes ------------------------------------------------------------------------------- */

#define LONGS LANE(long)

static inline lane load_lanes(__global const real *p, const uint n)
{
    if (n == LANE_ROWS) return LOAD_LANE(p);
    real element[LANE_ROWS];
    for (uint i = 0; i < LANE_ROWS; i++) element[i] = p[min(i, n - 1)];
    return LOAD_LANE(element);
}

static inline void store_lanes(__global real *p, const lane value, const uint n)
{
    if (n == LANE_ROWS) {
        STORE_LANE(value, p);
        return;
    }
    real element[LANE_ROWS];
    STORE_LANE(value, element);
    for (uint i = 0; i < n; i++) p[i] = element[i];
}

/* The targets of n rows, as get_target() finds them; of the lanes behind, the last row's. */
typedef struct {
    ilane counts, bad, has_class;
    ilane class_index; /* -1 where there is none */
    lane weight;
} lane_targets;

static inline lane_targets get_targets(const clxent_parameters *p, const ulong row, const uint n,
                                       __global const void *targets, __global const real *row_weights)
{
    lane_targets t;
    if (n < LANE_ROWS || p->shift > 0 || p->target_type == TARGET_NONE || is_probabilities(p->target_type)) {
        integer counts[LANE_ROWS], bad[LANE_ROWS], has_class[LANE_ROWS], class_index[LANE_ROWS];
        real weight[LANE_ROWS];
        for (uint i = 0; i < LANE_ROWS; i++) {
            const row_target one = get_target(p, row + min(i, n - 1), targets, row_weights);
            counts[i] = one.counts ? -1 : 0;
            bad[i] = one.bad ? -1 : 0;
            has_class[i] = one.has_class ? -1 : 0;
            class_index[i] = one.has_class ? (integer)one.class_index : -1;
            weight[i] = one.weight;
        }
        t.counts = LOAD_LANE(counts);
        t.bad = LOAD_LANE(bad);
        t.has_class = LOAD_LANE(has_class);
        t.class_index = LOAD_LANE(class_index);
        t.weight = LOAD_LANE(weight);
        return t;
    }
    const ulong at = p->offset.targets + row;
    LONGS value;
    if (p->target_type == TARGET_I32) {
        value = LANE_OF(long)(LOAD_LANE((__global const int *)targets + at));
    } else if (p->target_type == TARGET_I64) {
        value = LOAD_LANE((__global const long *)targets + at);
    } else {
        value = LANE_OF(long)(LOAD_LANE((__global const uchar *)targets + at));
    }
    t.weight = (lane)(1);
    if (p->flags & FLAG_ROW_WEIGHTS) t.weight = LOAD_LANE(row_weights + p->offset.row_weights + row);
    const ilane judged = t.weight != (lane)(0);
    const ilane known = TO_INTEGERS(value >= (LONGS)(0) && value < (LONGS)((long)p->classes));
    ilane ignored = (ilane)(0);
    if (p->flags & FLAG_IGNORE_INDEX) ignored = TO_INTEGERS(value == (LONGS)(p->ignore_index));
    t.has_class = judged && known && !ignored;
    t.counts = t.has_class;
    t.bad = (ilane)(p->bad_target != BAD_TARGET_IGNORE ? -1 : 0) && judged && !known && !ignored;
    t.class_index = t.has_class ? TO_INTEGERS(value) : (ilane)(-1);
    t.weight = t.counts ? t.weight : (lane)(0);
    return t;
}

/* table[class of each lane], 0 where there is none */
static inline lane gather(__global const real *table, const ilane class_index)
{
    integer index[LANE_ROWS];
    real element[LANE_ROWS];
    STORE_LANE(class_index, index);
    for (uint i = 0; i < LANE_ROWS; i++) element[i] = index[i] >= 0 ? table[index[i]] : 0;
    return LOAD_LANE(element);
}
