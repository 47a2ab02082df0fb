/* SPDX-License-Identifier: MIT
 *
 * common.cl - storage types, vectors, compensated sums; stands behind parameters.cl and constants.cl at the
 * head of every program.
 *
 * Set by the host with -D (host/plan.c, define_all()):
 *   DTYPE           storage of logits, probabilities, softmax: 1 f32, 2 f16, 3 bf16, 4 f64
 *   GRADIENT_DTYPE  storage of the gradient, same values
 *   VEC             elements that one work-item handles at a time: 1, 4, 8 or 16
 *   WG_SIZE         work-items in a group: a power of two, at most 1024. With 1 every barrier and
 *                   tree below vanishes: that is the CPU's shape, one work-item a row
 *   SM_80           1: an NVIDIA GPU of compute capability 8.0 or more, whose PTX has what asm statements name; 0 where its
 *                   driver's compiler refuses that
 *   LANES           what a `lane` is, the type of what a row has one of: 0 an acc_t, so that vectors lie along
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

#if !defined(__has_builtin)
#    define __has_builtin(name) 0
#endif
#if !defined(SM_80) || !(defined(__NV_CL_C_VERSION) || defined(__NVPTX__))
#    undef SM_80
#    define SM_80 0
#endif

/* a * b + c is one rounding only where fma() says so: every kernel then gives the same bits, and the
 * error-free sums below stay error-free. */
#pragma OPENCL FP_CONTRACT OFF

/* PoCL prints -Wpass-failed for every loop left rolled. Conditions on what a plan fixes are constants on purpose. */
#if defined(__clang__)
#    pragma clang diagnostic ignored "-Wpass-failed"
#    pragma clang diagnostic ignored "-Wconstant-logical-operand"
#endif

#define F32 1
#define F16 2
#define BF16 3
#define F64 4

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

#if DTYPE == F64
#    pragma OPENCL EXTENSION cl_khr_fp64 : enable
typedef double acc_t;
typedef long integer; /* as wide as acc_t */
#    define ACC(x) x
#    define ACC_TYPE double
#    define INTEGER_TYPE long
#    define ACC_OF(bits) as_double(bits)
#else
typedef float acc_t;
typedef int integer;
#    define ACC(x) x##f
#    define ACC_TYPE float
#    define INTEGER_TYPE int
#    define ACC_OF(bits) as_float((uint)(bits))
#endif
#define convert_acc PASTE(convert_, ACC_TYPE)
#define ACC_INFINITY ((acc_t)INFINITY)
#define ACC_NAN ((acc_t)NAN)

/* To nearest even. Compilers for GPUs make one instruction of vstore_half(), whose default rounding that is; of
 * vstore_half_rte() libclc, with which tools/gpu.py compiles, makes many. */
#if defined(__NVPTX__) || defined(__AMDGCN__)
#    define TO_NEAREST(vstore) vstore
#else
#    define TO_NEAREST(vstore) PASTE(vstore, _rte)
#endif
#define STORE_ONE_HALF(v, p) TO_NEAREST(vstore_half)(v, 0, p)

#if VEC == 1
#    define VECTOR(type) type
#    define CONVERT(type) PASTE(convert_, type)
#    define AS(type) PASTE(as_, type)
#    define LOAD(p) (*(p))
#    define STORE(v, p) (*(p) = (v))
#    define LOAD_HALF(p) vload_half(0, p)
#    define STORE_HALF STORE_ONE_HALF
#else
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
#    define STORE_HALF(v, p) TO_NEAREST(PASTE(vstore_half, VEC))(v, 0, p)
#endif
typedef VECTOR(ACC_TYPE) vec;
typedef VECTOR(INTEGER_TYPE) ivec;
#define AS_VEC AS(ACC_TYPE)
#define AS_IVEC AS(INTEGER_TYPE)
#define CONVERT_VEC CONVERT(ACC_TYPE)

/* What a row has one of. In code for both: conditions are ilanes, chosen by ?: and joined by && and ||, and constants are
 * cast. */
#if LANES
#    define LANE_ROWS VEC
#    define LANE(type) VECTOR(type)
#    define LANE_OF(type) CONVERT(type)
#    define AS_LANES(type) AS(type)
#    define LOAD_LANE(p) LOAD(p)
#    define STORE_LANE(v, p) STORE(v, p)
#    define LANE_IOTA IOTA
#else
#    define LANE_ROWS 1
#    define LANE(type) type
#    define LANE_OF(type) PASTE(convert_, type)
#    define AS_LANES(type) PASTE(as_, type)
#    define LOAD_LANE(p) (*(p))
#    define STORE_LANE(v, p) (*(p) = (v))
#    define LANE_IOTA 0
#endif
typedef LANE(ACC_TYPE) lane;
typedef LANE(INTEGER_TYPE) ilane;
#define AS_LANE AS_LANES(ACC_TYPE)
#define AS_ILANE AS_LANES(INTEGER_TYPE)
#define CONVERT_LANE LANE_OF(ACC_TYPE)
#define AS_ONE_INTEGER PASTE(as_, INTEGER_TYPE)
/* Conditions and numbers of another width to those of the width of acc_t. */
#define TO_INTEGERS(v) LANE_OF(INTEGER_TYPE)(v)

/* PoCL's any() looks at one element after the other. The built-in is for its CPUs: Oclgrind and SPIR-V do not know it. */
#if !LANES || VEC == 1
#    define ANY_LANE(condition) ((condition) != 0)
#elif WG_SIZE == 1 && defined(POCL_DEVICE_ADDRESS_BITS) && __has_builtin(__builtin_reduce_or)
#    define ANY_LANE(condition) (__builtin_reduce_or(condition) != 0)
#else
#    define ANY_LANE(condition) any(condition)
#endif

/* Conditions that are kept. Lanes of CPUs take them from bits, -1 or 0: vectors that are joined of comparisons PoCL 3.1 packs
 * into bytes, and unpacks where they are used. */
#if LANES && VEC > 1 && WG_SIZE == 1
#    define IS_NEGATIVE(v) ((v) >> (integer)(8 * sizeof(acc_t) - 1))
#    define BITS_OF(v) AS_ILANE(fabs(v))
#    define IS_ZERO(v) (~IS_NEGATIVE(-BITS_OF(v)))
#    define IS_BELOW(v, limit) IS_NEGATIVE(BITS_OF(v) - (ilane)(AS_ONE_INTEGER(limit)))
#    define IS_WITHIN(v, low, high) \
        (~(IS_BELOW(v, low) | IS_NEGATIVE((ilane)(AS_ONE_INTEGER(high)) - BITS_OF(v))))
#    define IS_FINITE(v) IS_BELOW(v, ACC_INFINITY)
#    define IS_NOT_NAN(v) IS_NEGATIVE(BITS_OF(v) - (ilane)(AS_ONE_INTEGER(ACC_INFINITY) + 1))
#    define NOT(a) (~(a))
#    define BOTH(a, b) ((a) & (b))
#    define EITHER(a, b) ((a) | (b))
#    define ANY_KEPT(a) ANY_LANE((a) < (ilane)(0))
#else
#    define IS_ZERO(v) ((v) == (lane)(0))
#    define IS_BELOW(v, limit) (fabs(v) < (lane)(limit))
#    define IS_WITHIN(v, low, high) (fabs(v) >= (lane)(low) && fabs(v) <= (lane)(high))
#    define IS_FINITE(v) ((v) > (lane)(-ACC_INFINITY) && (v) < (lane)(ACC_INFINITY))
#    define IS_NOT_NAN(v) ((v) == (v))
#    define NOT(a) (!(a))
#    define BOTH(a, b) ((a) && (b))
#    define EITHER(a, b) ((a) || (b))
#    define ANY_KEPT(a) ANY_LANE(a)
#endif

/* ---- Functions ---------------------------------------------------------------------------- */

/* Left to itself, PoCL's compiler calls some of these for every vector. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* LOCAL_ID: PoCL inlines functions that ask for the work-item into their kernel; see DEFINE_KERNEL.
 * INLINE_ON_GPU: on GPUs a call would put a row's inputs into memory. Not for functions that return a struct or take
 * restrict: Oclgrind 21.10 knows nothing of what clang makes of those.
 * PART: a function of its own on CPUs, as a compiler optimizes what it has inlined once more in each caller (PoCL 3.1, first
 * loss and gradient of 50,257 classes: 0.82 of the CPU time, with all options 0.91). For what a row or a tile passes through
 * a few times; loops over results are slower with their arguments in memory (bf16, 32,768 classes: 1.16 of the time with
 * write_result() as one). */
#if WG_SIZE == 1
#    define LOCAL_ID 0u
#    define INLINE_ON_GPU static inline
#    define PART static __attribute__((noinline))
#else
#    define LOCAL_ID ((uint)get_local_id(0))
#    define INLINE_ON_GPU ALWAYS_INLINE
#    define PART ALWAYS_INLINE
#endif

/* Marks a condition that is false in most runs, so that the constants of the loop around it stay in registers (loss and gradient
 * of 2 classes: 0.98 of the time). */
#if __has_builtin(__builtin_expect)
#    define RARELY(condition) __builtin_expect(condition, 0)
#else
#    define RARELY(condition) (condition)
#endif

/* Marks a loop over the elements of a vector that a row or a tile passes seldom, and that stays rolled. Unrolled, such loops were
 * a quarter of what a program for CPUs compiled. GPUs keep private arrays in registers only where loops over them are unrolled. */
#if WG_SIZE == 1 && defined(__clang__)
#    define ROLLED _Pragma("clang loop vectorize(disable) unroll(disable)")
#else
#    define ROLLED
#endif

/* Of functions that are given a kernel's __local variable. PoCL makes such a variable an argument of the kernel, one for each
 * thread, unless another function names it. Clang lets a function name it that gets no other and is not inlined; then all
 * threads share the one variable (PoCL 3.1, 2 threads, groups of 64: 3 wrong results in 100 runs). */
#if WG_SIZE > 1 && defined(POCL_DEVICE_ADDRESS_BITS)
#    define TAKES_LOCAL ALWAYS_INLINE
#else
#    define TAKES_LOCAL static inline
#endif

/* ---- Storage ----------------------------------------------------------------------------- */

/* Where the compiler has it, a store that does not first read the line it overwrites: 0.7 of the
 * time of a plain copy on PoCL. The pointer must be aligned to the vector. */
#if VEC > 1 && WG_SIZE == 1 && __has_builtin(__builtin_nontemporal_store)
#    define HAS_NONTEMPORAL 1
#else
#    define HAS_NONTEMPORAL 0
#endif

/* Brings a line of memory into the second-level cache, or the first. PoCL's prefetch() does nothing; this built-in is for its
 * CPUs, and Oclgrind does not know it. p may point behind the buffer. */
#if WG_SIZE == 1 && defined(POCL_DEVICE_ADDRESS_BITS) && __has_builtin(__builtin_prefetch)
#    define HAS_PREFETCH 1
#    define PREFETCH(p) __builtin_prefetch((const void *)(size_t)(p), 0, 2)
#    define PREFETCH_FIRST(p) __builtin_prefetch((const void *)(size_t)(p), 0, 3)
#else
#    define HAS_PREFETCH 0
#    define PREFETCH(p) (void)(p)
#    define PREFETCH_FIRST(p) (void)(p)
#endif

/* On GPUs a vector that may stand anywhere can become single elements, as clang makes it for PTX; one that is known to
 * be aligned is one access of 128 bits. CPUs do not tell them apart. */
#if WG_SIZE > 1 && VEC > 1 && !defined(POCL_DEVICE_ADDRESS_BITS)
#    define TELLS_ALIGNED 1
#else
#    define TELLS_ALIGNED 0
#endif
#define IS_ALIGNED(p, T) ((size_t)(p) % (VEC * sizeof(T)) == 0)

/* Two vectors of 16-bit elements. The type is clang's, and Oclgrind 21.10 does not survive it. */
#if WG_SIZE == 1 && VEC > 1 && defined(POCL_DEVICE_ADDRESS_BITS) && defined(__ENDIAN_LITTLE__)
#    define HAS_HALVES 1
typedef ushort halves __attribute__((ext_vector_type(2 * VEC)));
typedef halves halves_anywhere __attribute__((aligned(2)));
#else
#    define HAS_HALVES 0
#endif

/* bf16 is the upper half of an f32, rounded to nearest even. NaN keeps its upper bits and gets a quiet
 * bit, as rounding could carry its payload into the exponent. */
#define DEFINE_BF16(NAME, FLOAT, UINT, USHORT, AS_UINT, AS_FLOAT, TO_UINT, UPPER_HALF)                \
    static inline FLOAT NAME##_load(const USHORT bits) { return AS_FLOAT(TO_UINT(bits) << 16); }      \
    static inline UINT NAME##_round(const UINT bits) { return bits + 0x7fffu + ((bits >> 16) & 1u); } \
    static inline USHORT NAME##_store(const FLOAT value)                                              \
    {                                                                                                 \
        const UINT bits = AS_UINT(value);                                                             \
        const UINT kept = value != value ? bits | 0x400000u : NAME##_round(bits);                     \
        return UPPER_HALF(kept);                                                                      \
    }                                                                                                 \
    /* of what is no NaN */                                                                           \
    static inline __attribute__((unused)) USHORT NAME##_store_number(const FLOAT value)               \
    {                                                                                                 \
        return UPPER_HALF(NAME##_round(AS_UINT(value)));                                              \
    }

#if TELLS_ALIGNED
/* Pairs of 16-bit elements as 32-bit integers: PTX has no access to eight of 16 bits. */
#    if VEC == 4
#        define PAIRS(type) PASTE(type, 2)
#    elif VEC == 8
#        define PAIRS(type) PASTE(type, 4)
#    else
#        define PAIRS(type) PASTE(type, 8)
#    endif
static inline __attribute__((unused)) void store_pairs(const VECTOR(ushort) bits, __global ushort *p)
{
    *(__global PAIRS(uint) *)p =
        PASTE(convert_, PAIRS(uint))(bits.even) | (PASTE(convert_, PAIRS(uint))(bits.odd) << 16);
}
#    if SM_80
/* Of what is no NaN: two are rounded and packed by one instruction, where bf16 takes eight. */
#        define DEFINE_BITS_OF_NUMBERS(NAME, PTX)                                                  \
            static inline __attribute__((unused)) VECTOR(ushort) NAME(const VECTOR(float) value)   \
            {                                                                                      \
                float element[VEC];                                                                \
                PAIRS(uint) pairs;                                                                 \
                STORE(value, element);                                                             \
                _Pragma("unroll") for (uint i = 0; i < VEC / 2; i++)                               \
                {                                                                                  \
                    const float low = element[2 * i], high = element[2 * i + 1];                   \
                    __asm__(PTX " %0, %1, %2;" : "=r"(((uint *)&pairs)[i]) : "f"(high), "f"(low)); \
                }                                                                                  \
                return AS(ushort)(pairs);                                                          \
            }
DEFINE_BITS_OF_NUMBERS(f16_bits_of_numbers, "cvt.rn.f16x2.f32")
DEFINE_BITS_OF_NUMBERS(bf16_bits_of_numbers, "cvt.rn.bf16x2.f32")
#    endif
#endif

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
#    define UPPER_HALF_OF_ONE(v) convert_ushort((v) >> 16)
DEFINE_BF16(bf16_scalar, float, uint, ushort, as_uint, as_float, convert_uint, UPPER_HALF_OF_ONE)
#    if VEC > 1
#        if HAS_HALVES
/* One permutation on CPUs with AVX-512, where shift and conversion are three instructions. */
#            define UPPER_HALF(v) __builtin_astype(v, halves).odd
#        else
#            define UPPER_HALF(v) CONVERT(ushort)((v) >> 16)
#        endif
DEFINE_BF16(bf16_vector, VECTOR(float), VECTOR(uint), VECTOR(ushort), AS(uint), AS(float), CONVERT(uint),
            UPPER_HALF)
#        if TELLS_ALIGNED
static inline __attribute__((unused)) VECTOR(float) bf16_load_pairs(__global const ushort *p)
{
    const PAIRS(uint) pairs = *(__global const PAIRS(uint) *)p;
    VECTOR(float) value;
    value.even = PASTE(as_, PAIRS(float))(pairs << 16);
    value.odd = PASTE(as_, PAIRS(float))(pairs & 0xffff0000u);
    return value;
}
#        endif
#    else
#        define bf16_vector_load bf16_scalar_load
#        define bf16_vector_store bf16_scalar_store
#        define bf16_vector_store_number bf16_scalar_store_number
#    endif
#endif

#if HAS_NONTEMPORAL
#    define STORE_ALIGNED(T, v, p) __builtin_nontemporal_store(v, (__global VECTOR(T) *)(p))
#elif TELLS_ALIGNED
#    define STORE_ALIGNED(T, v, p) (*(__global VECTOR(T) *)(p) = (v))
#else
#    define STORE_ALIGNED(T, v, p) STORE(v, p)
#endif
#if TELLS_ALIGNED
#    define STORE_ALIGNED_16(v, p) store_pairs(v, p)
#else
#    define STORE_ALIGNED_16(v, p) STORE_ALIGNED(ushort, v, p)
#endif
#define STORE_IF(aligned, ALIGNED_STORE, v, p) \
    do {                                       \
        if (aligned) {                         \
            ALIGNED_STORE;                     \
        } else {                               \
            STORE(v, p);                       \
        }                                      \
    } while (0)
#define STORE_16(v, p, aligned) STORE_IF(aligned, STORE_ALIGNED_16(v, p), v, p)

/* How each dtype is loaded and stored. NUMBERS: values without NaN. */
#define F32_LOAD_ONE(p) convert_acc(*(p))
#define F32_LOAD(p) CONVERT_VEC(LOAD(p))
#define F32_LOAD_ALIGNED(p) CONVERT_VEC(*(__global const VECTOR(float) *)(p))
#define F32_STORE_ONE(v, p) (*(p) = convert_float(v))
#define F32_STORE(v, p, aligned) \
    STORE_IF(aligned, STORE_ALIGNED(float, CONVERT(float)(v), p), CONVERT(float)(v), p)
#define F32_STORE_NUMBERS F32_STORE
#define F64_LOAD_ONE(p) (*(p))
#define F64_LOAD(p) LOAD(p)
#define F64_LOAD_ALIGNED(p) (*(__global const vec *)(p))
#define F64_STORE_ONE(v, p) (*(p) = (v))
#define F64_STORE(v, p, aligned) STORE_IF(aligned, STORE_ALIGNED(double, v, p), v, p)
#define F64_STORE_NUMBERS F64_STORE
#define F16_LOAD_ONE(p) vload_half(0, p)
#define F16_LOAD(p) half_values(LOAD((__global const ushort *)(p)))
#define F16_LOAD_ALIGNED(p) half_values(*(__global const VECTOR(ushort) *)(p))
#define F16_STORE_ONE STORE_ONE_HALF
#define F16_STORE(v, p, aligned) STORE_16(half_bits(v), (__global ushort *)(p), aligned)
#define BF16_LOAD_ONE(p) bf16_scalar_load(*(p))
#define BF16_LOAD(p) bf16_vector_load(LOAD(p))
#define BF16_LOAD_ALIGNED(p) bf16_load_pairs(p)
#define BF16_STORE_ONE(v, p) (*(p) = bf16_scalar_store(v))
#define BF16_STORE(v, p, aligned) STORE_16(bf16_vector_store(v), p, aligned)
#if TELLS_ALIGNED && SM_80
#    define F16_STORE_NUMBERS(v, p, aligned) STORE_16(f16_bits_of_numbers(v), (__global ushort *)(p), aligned)
#    define BF16_STORE_NUMBERS(v, p, aligned) STORE_16(bf16_bits_of_numbers(v), p, aligned)
#else
#    define F16_STORE_NUMBERS F16_STORE
#    define BF16_STORE_NUMBERS(v, p, aligned) STORE_16(bf16_vector_store_number(v), p, aligned)
#endif

/* The functions that know how a tensor is stored, as acc_t sees it. aligned: p is aligned to the vector, and the store may
 * bypass the cache where it can. partial: only the first n elements exist (1 <= n <= VEC); the others are never touched, and
 * read as fill. All loads are in bounds, so none of them needs a branch. */
#define DEFINE_STORAGE(LOAD_NAME, STORE_NAME, STORAGE, DTYPE_NAME)                                      \
    static inline acc_t LOAD_NAME##_one(__global const STORAGE *p) { return DTYPE_NAME##_LOAD_ONE(p); } \
    static inline vec LOAD_NAME##_vector(__global const STORAGE *p) { return DTYPE_NAME##_LOAD(p); }    \
    static inline vec LOAD_NAME##_partial(__global const STORAGE *p, const uint n, const acc_t fill)    \
    {                                                                                                   \
        acc_t element[VEC];                                                                             \
        ROLLED for (uint i = 0; i < VEC; i++)                                                           \
        {                                                                                               \
            const acc_t value = LOAD_NAME##_one(p + min(i, n - 1));                                     \
            element[i] = i < n ? value : fill;                                                          \
        }                                                                                               \
        return LOAD(element);                                                                           \
    }                                                                                                   \
    static inline void STORE_NAME##_one(__global STORAGE *p, const acc_t value)                         \
    {                                                                                                   \
        DTYPE_NAME##_STORE_ONE(value, p);                                                               \
    }                                                                                                   \
    static inline void STORE_NAME##_vector(__global STORAGE *p, const vec value, const bool aligned)    \
    {                                                                                                   \
        DTYPE_NAME##_STORE(value, p, aligned);                                                          \
    }                                                                                                   \
    /* the same of values without NaN */                                                                \
    static inline void STORE_NAME##_numbers(__global STORAGE *p, const vec value, const bool aligned)   \
    {                                                                                                   \
        DTYPE_NAME##_STORE_NUMBERS(value, p, aligned);                                                  \
    }                                                                                                   \
    static inline void STORE_NAME##_partial(__global STORAGE *p, const vec value, const uint n)         \
    {                                                                                                   \
        acc_t element[VEC];                                                                             \
        STORE(value, element);                                                                          \
        ROLLED for (uint i = 0; i < VEC; i++)                                                           \
        {                                                                                               \
            if (i < n) STORE_NAME##_one(p + i, element[i]);                                             \
        }                                                                                               \
    }

#if DTYPE == F32
typedef float storage;
#    define LOAD_ALIGNED F32_LOAD_ALIGNED
DEFINE_STORAGE(load, store, storage, F32)
#elif DTYPE == F16
typedef half storage;
#    define LOAD_ALIGNED F16_LOAD_ALIGNED
DEFINE_STORAGE(load, store, storage, F16)
#elif DTYPE == BF16
typedef ushort storage;
#    define LOAD_ALIGNED BF16_LOAD_ALIGNED
DEFINE_STORAGE(load, store, storage, BF16)
#else
typedef double storage;
#    define LOAD_ALIGNED F64_LOAD_ALIGNED
DEFINE_STORAGE(load, store, storage, F64)
#endif
#if GRADIENT_DTYPE == F32
typedef float gradient_storage;
DEFINE_STORAGE(load_gradient, store_gradient, gradient_storage, F32)
#elif GRADIENT_DTYPE == F16
typedef half gradient_storage;
DEFINE_STORAGE(load_gradient, store_gradient, gradient_storage, F16)
#elif GRADIENT_DTYPE == BF16
typedef ushort gradient_storage;
DEFINE_STORAGE(load_gradient, store_gradient, gradient_storage, BF16)
#else
typedef double gradient_storage;
DEFINE_STORAGE(load_gradient, store_gradient, gradient_storage, F64)
#endif

#if TELLS_ALIGNED
/* p: aligned to the vector's storage. */
static inline __attribute__((unused)) vec load_vector_aligned(__global const storage *p)
{
    return LOAD_ALIGNED(p);
}
#    define LOAD_VECTOR(p, aligned) ((aligned) ? load_vector_aligned(p) : load_vector(p))
#else
#    define load_vector_aligned load_vector
#    define LOAD_VECTOR(p, aligned) load_vector(p)
#endif

/* Of bf16 on PoCL a row's vectors come in pairs, the even classes in the first and the odd ones in the second: a pair of
 * elements, 32 bits, becomes two f32 by a shift and a mask, and two f32 a pair likewise. Loss + gradient take 0.9 of the
 * time of class order by AVX2 (Zen 3), 0.87 by AVX-512 (Zen 4, 32,768 classes; 1,024: 0.93). Not where classes meet what is
 * stored in class order, and not on Oclgrind 21.10, which such vectors crash. */
#define DEINTERLEAVES (DTYPE == BF16 && VEC == 16 && HAS_HALVES && !LANES && !HAS_Z && !HAS_DENSE)

#define SECOND_OF_PAIR 0xffff0000u

/* Two vectors of neighbouring classes. DEINTERLEAVES: all even ones, and all odd ones. */
typedef struct {
    vec first, second;
} vec_pair;

static inline __attribute__((unused)) vec_pair load_pair(__global const storage *p)
{
#if DEINTERLEAVES
    const uint16 both = __builtin_astype(*(__global const halves_anywhere *)p, uint16);
    return (vec_pair){ as_float16(both << 16), as_float16(both & SECOND_OF_PAIR) };
#else
    return (vec_pair){ load_vector(p), load_vector(p + VEC) };
#endif
}

#if DEINTERLEAVES
static inline vec_pair in_class_order(const vec_pair v)
{
    vec_pair ordered;
    ordered.first.even = v.first.lo;
    ordered.first.odd = v.second.lo;
    ordered.second.even = v.first.hi;
    ordered.second.odd = v.second.hi;
    return ordered;
}

/* Numbers, as load_pair() has them, in one store of 64 bytes, a line of memory. */
static inline void store_deinterleaved(__global ushort *p, const vec_pair v, const bool aligned)
{
    const uint16 first = bf16_vector_round(as_uint16(v.first)),
                 second = bf16_vector_round(as_uint16(v.second));
    const halves bits = __builtin_astype((first >> 16) | (second & SECOND_OF_PAIR), halves);
    if (HAS_NONTEMPORAL && aligned) {
        __builtin_nontemporal_store(bits, (__global halves *)p);
    } else {
        *(__global halves_anywhere *)p = bits;
    }
}
#endif
/* Bytes that a pair of vectors is aligned to where its stores bypass the cache. */
#define PAIR_ALIGNMENT(bytes) (VEC * (bytes) * (DEINTERLEAVES && (bytes) == 2 ? 2 : 1))

/* Adding 0, as at a class whose p has vanished, leaves even -0 as it is, as rows that do not count do. */
static inline acc_t accumulated_one(const acc_t old, const acc_t value)
{
    return value == 0 ? old : old + value;
}

/* ---- Vectors ----------------------------------------------------------------------------- */

/* Maximum that prefers a where b is NaN: one instruction either way, maxps on CPUs, and fmax on GPUs. */
static inline vec vec_max(const vec a, const vec b)
{
    if (WG_SIZE > 1) return fmax(a, b);
    return b > a ? b : a;
}

static inline acc_t acc_max(const acc_t a, const acc_t b)
{
    if (WG_SIZE > 1) return fmax(a, b);
    return b > a ? b : a;
}

static inline acc_t acc_sum(const acc_t a, const acc_t b) { return a + b; }

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

/* The lower halves of a and b, element by element in turn, and so on. */
#if VEC == 16
#    define ZIP(a, b, s)                                                                                 \
        ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1, (a).s##2, (b).s##2, (a).s##3, (b).s##3, (a).s##4, \
               (b).s##4, (a).s##5, (b).s##5, (a).s##6, (b).s##6, (a).s##7, (b).s##7))
#elif VEC == 8
#    define ZIP(a, b, s) \
        ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1, (a).s##2, (b).s##2, (a).s##3, (b).s##3))
#elif VEC == 4
#    define ZIP(a, b, s) ((vec)((a).s##0, (b).s##0, (a).s##1, (b).s##1))
#endif

/* v[i].j <-> v[j].i: log2(VEC) rounds, each of which zips the first half with the second. */
ALWAYS_INLINE __attribute__((unused)) void transpose(vec v[VEC])
{
#if VEC > 1
    for (uint round = 1; round < VEC; round *= 2) {
        vec w[VEC];
#    pragma unroll
        for (uint i = 0; i < VEC / 2; i++) {
            w[2 * i] = ZIP(v[i].lo, v[i + VEC / 2].lo, s);
            w[2 * i + 1] = ZIP(v[i].hi, v[i + VEC / 2].hi, s);
        }
#    pragma unroll
        for (uint i = 0; i < VEC; i++) v[i] = w[i];
    }
#else
    (void)v;
#endif
}

/* ---- Sums -------------------------------------------------------------------------------- */

/* A sum with what its additions lost. ADD is Knuth's two-sum, exact but for the roundings of low: n equal terms, which
 * all round the same way, leave n u / 2 of the sum there, and (n u)^2 / 4 is lost. So ADD is for a few thousand terms,
 * and MERGE, which moves low's whole part to high, for sums of any number of those. A sum that is infinite or NaN
 * stays so: high decides, low is not looked at. */
#define DEFINE_COMPENSATED_SUM(SUM, T, ADD, VALUE, MERGE)                  \
    typedef struct {                                                       \
        T high, low;                                                       \
    } SUM;                                                                 \
    static inline SUM ADD(const SUM s, const T x)                          \
    {                                                                      \
        const T high = s.high + x;                                         \
        const T shadow = high - s.high;                                    \
        const T lost = (s.high - (high - shadow)) + (x - shadow);          \
        return (SUM){ high, s.low + lost };                                \
    }                                                                      \
    static inline T VALUE(const SUM s)                                     \
    {                                                                      \
        return fabs(s.high) < (T)(ACC_INFINITY) ? s.high + s.low : s.high; \
    }                                                                      \
    static inline SUM MERGE(const SUM a, const SUM b)                      \
    {                                                                      \
        const SUM s = ADD(a, b.high);                                      \
        const T low = s.low + b.low;                                       \
        const T high = VALUE((SUM){ s.high, low });                        \
        return (SUM){ high, low - (high - s.high) };                       \
    }
DEFINE_COMPENSATED_SUM(compensated_sum, lane, compensated_add, compensated_value, compensated_merge)
#if !LANES && VEC > 1
DEFINE_COMPENSATED_SUM(compensated_vector, vec, compensated_add_vector, compensated_value_vector,
                       compensated_merge_vector)
#else
#    define compensated_vector compensated_sum
#    define compensated_add_vector compensated_add
#endif
#if LANES
DEFINE_COMPENSATED_SUM(compensated_sum_one, acc_t, compensated_add_one, compensated_value_one,
                       compensated_merge_one)
#else
#    define compensated_sum_one compensated_sum
#    define compensated_add_one compensated_add
#    define compensated_value_one compensated_value
#    define compensated_merge_one compensated_merge
#endif

static inline compensated_sum compensated_zero(void) { return (compensated_sum){ (lane)(0), (lane)(0) }; }

static inline compensated_sum compensated_times(const compensated_sum s, const lane factor)
{
    return (compensated_sum){ s.high * factor, s.low * factor };
}
