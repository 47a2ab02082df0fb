/* SPDX-License-Identifier: MIT
 *
 * hand.c - loss and gradient in intrinsics; see hand.h. The method is that of the kernels: a row goes by in blocks that
 * fit the first-level cache, whose exponentials are taken at a power of two in place of the maximum, e^x / 2^scale, so
 * that nothing is subtracted from x and a change of scale is exact. Sums are f32 within a block and double across.
 */
#include "hand.h"

#include <clxent/clxent.h>

#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define INLINE inline __attribute__((always_inline))

#ifdef __AVX512F__
#    define HAND(name) hand_##name##_avx512
#    define V(name) _mm512_##name
#    define AS_INT _mm512_castps_si512
#    define AS_FLOAT _mm512_castsi512_ps
#    define STREAM_INTS(to, value) _mm512_stream_si512((__m512i *)(to), value)
#    define STORE_INTS(to, value) _mm512_store_si512(to, value)
typedef __m512 vec;
typedef __m512i ints;
typedef __m256i half_ints; /* as many 16-bit values as a vec has floats */
#else
#    define HAND(name) hand_##name##_avx2
#    define V(name) _mm256_##name
#    define AS_INT _mm256_castps_si256
#    define AS_FLOAT _mm256_castsi256_ps
#    define STREAM_INTS(to, value) _mm256_stream_si256((__m256i *)(to), value)
#    define STORE_INTS(to, value) _mm256_store_si256((__m256i *)(to), value)
typedef __m256 vec;
typedef __m256i ints;
typedef __m128i half_ints;
#endif

enum {
    LANES = sizeof(vec) / sizeof(float),
    STEP = 4 * LANES, /* four vectors at a time: each instruction waits for the one before */
    BLOCK = 1024,     /* logits; 512 took 1.05 of the time, 2,048 as much */
    LINE = 64,
    EDGES = 96,  /* before the first and after the last whole STEP on whole lines: at most 31 + 63 logits */
    AHEAD = 8192 /* bytes; the best of 1,024 to 16,384 */
};

#define INVERSE_LN2 0x1.715476p+0f
#define LN2 0x1.62e430p-1f
#define NO_SCALE (-0x1p20f)

/* ---- Exponentials --------------------------------------------------------------------------- */

/* e^r = 1 + r + r^2 (...) for |r| <= ln(2) / 2, off by 4e-9 at most. */
static const float series[5] = { 0x1.6a224cp-10f, 0x1.123b86p-7f, 0x1.5558fap-5f, 0x1.555490p-3f,
                                 0x1.fffffcp-2f };

/* What exponentials at 2^scale, times factor, need. Adding shift to x / ln 2 rounds it and leaves the power of two in the
 * low bits. */
typedef struct power8 {
    __m256 shift, lowest, series[5], factor;
} power8;

static INLINE power8 power8_of(__m256 scale, float factor)
{
    power8 p;
    p.shift = _mm256_sub_ps(_mm256_set1_ps(0x1.8p23f + 127), scale);
    p.lowest =
        _mm256_mul_ps(_mm256_sub_ps(scale, _mm256_set1_ps(127)), _mm256_set1_ps(LN2)); /* its power is 0 */
    p.factor = _mm256_set1_ps(factor);
    for (int i = 0; i < 5; i++) p.series[i] = _mm256_set1_ps(series[i] * factor);
    return p;
}

static INLINE __m256 exp8(__m256 x, const power8 *p)
{
    x = _mm256_max_ps(p->lowest, x);
    const __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(INVERSE_LN2), p->shift);
    const __m256 r = _mm256_fnmadd_ps(_mm256_sub_ps(shifted, p->shift), _mm256_set1_ps(LN2), x);
    __m256 sum = p->series[0];
    for (int i = 1; i < 5; i++) sum = _mm256_fmadd_ps(sum, r, p->series[i]);
    sum = _mm256_fmadd_ps(_mm256_fmadd_ps(sum, r, p->factor), r, p->factor);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}

#ifdef __AVX512F__
/* The same with x / ln 2 rounded to 1/32: the low five bits choose one of 32 powers from two registers, so that a series of
 * three terms is off by 6e-10. What those bits add to the exponent's place, the table has subtracted. */
typedef struct power {
    vec shift, lowest, low_table, high_table, third, second, first;
} power;

static INLINE power power_of(float scale, float factor)
{
    static const float table[32] = { 0x1.000000p+0f, 0x1.059b0ep+0f, 0x1.0b5586p+0f, 0x1.11301ep+0f,
                                     0x1.172b84p+0f, 0x1.1d4874p+0f, 0x1.2387a6p+0f, 0x1.29e9e0p+0f,
                                     0x1.306fe0p+0f, 0x1.371a74p+0f, 0x1.3dea64p+0f, 0x1.44e086p+0f,
                                     0x1.4bfdaep+0f, 0x1.5342b6p+0f, 0x1.5ab07ep+0f, 0x1.6247ecp+0f,
                                     0x1.6a09e6p+0f, 0x1.71f75ep+0f, 0x1.7a1148p+0f, 0x1.82589ap+0f,
                                     0x1.8ace54p+0f, 0x1.93737cp+0f, 0x1.9c4918p+0f, 0x1.a5503cp+0f,
                                     0x1.ae89fap+0f, 0x1.b7f770p+0f, 0x1.c199bep+0f, 0x1.cb7210p+0f,
                                     0x1.d58190p+0f, 0x1.dfc974p+0f, 0x1.ea4afap+0f, 0x1.f50766p+0f };
    const __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_slli_epi32(index, 18),
                  high = _mm512_add_epi32(low, _mm512_set1_epi32(16 << 18));

    return (power){ _mm512_set1_ps(0x1.8p18f - scale),
                    _mm512_set1_ps((scale - 126) * LN2),
                    AS_FLOAT(_mm512_sub_epi32(AS_INT(_mm512_loadu_ps(table)), low)),
                    AS_FLOAT(_mm512_sub_epi32(AS_INT(_mm512_loadu_ps(table + 16)), high)),
                    _mm512_set1_ps(factor / 6),
                    _mm512_set1_ps(factor / 2),
                    _mm512_set1_ps(factor) };
}

static INLINE vec exp_of(vec x, const power *p)
{
    x = _mm512_max_ps(p->lowest, x);
    const vec shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(INVERSE_LN2), p->shift);
    const vec r = _mm512_fnmadd_ps(_mm512_sub_ps(shifted, p->shift), _mm512_set1_ps(LN2), x);
    const vec sum =
        _mm512_fmadd_ps(_mm512_fmadd_ps(_mm512_fmadd_ps(p->third, r, p->second), r, p->first), r, p->first);
    const vec entry = _mm512_permutex2var_ps(p->low_table, AS_INT(shifted), p->high_table);
    return _mm512_mul_ps(sum,
                         AS_FLOAT(_mm512_add_epi32(AS_INT(entry), _mm512_slli_epi32(AS_INT(shifted), 18))));
}
#else
typedef power8 power;
static INLINE power power_of(float scale, float factor) { return power8_of(_mm256_set1_ps(scale), factor); }
static INLINE vec exp_of(vec x, const power *p) { return exp8(x, p); }
#endif

/* ---- Loads and stores ----------------------------------------------------------------------- */

static INLINE vec load(const void *from, size_t i, uint32_t dtype)
{
    if (dtype == CLXENT_F32) return V(load_ps)((const float *)from + i);
    half_ints bits;
    memcpy(&bits, (const uint16_t *)from + i, sizeof bits);
    if (dtype == CLXENT_F16) return V(cvtph_ps)(bits);
    return AS_FLOAT(V(slli_epi32)(V(cvtepu16_epi32)(bits), 16));
}

static INLINE float load_one(const void *from, size_t i, uint32_t dtype)
{
    if (dtype == CLXENT_F32) return ((const float *)from)[i];
    const uint16_t bits = ((const uint16_t *)from)[i];
    const uint32_t shifted = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &shifted, sizeof value);
    return dtype == CLXENT_F16 ? _cvtsh_ss(bits) : value;
}

static INLINE void store_one(void *to, size_t i, float value, uint32_t dtype)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == CLXENT_F32) ((float *)to)[i] = value;
    else if (dtype == CLXENT_F16) ((uint16_t *)to)[i] = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
    else ((uint16_t *)to)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The upper half of each is the bf16 value nearest to v, ties to even. */
static INLINE ints rounded(vec v)
{
    const ints bits = AS_INT(v), last = V(srli_epi32)(V(slli_epi32)(bits, 15), 31);
    return V(add_epi32)(V(add_epi32)(bits, V(set1_epi32)(0x7fff)), last);
}

/* Two vectors in 16 bits each. */
static INLINE ints packed(vec a, vec b, uint32_t dtype)
{
#ifdef __AVX512F__
    static const uint16_t upper_halves[32] = {
        1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63
    };
    if (dtype == CLXENT_BF16)
        return _mm512_permutex2var_epi16(rounded(a), _mm512_loadu_si512(upper_halves), rounded(b));
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)),
                              _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT), 1);
#else
    if (dtype == CLXENT_BF16)
        return _mm256_permute4x64_epi64(
            _mm256_packus_epi32(_mm256_srli_epi32(rounded(a), 16), _mm256_srli_epi32(rounded(b), 16)), 0xd8);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)),
                                   _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT), 1);
#endif
}

static INLINE void store_ints(void *to, ints value, bool stream)
{
    if (stream) STREAM_INTS(to, value);
    else STORE_INTS(to, value);
}

/* A STEP at i. */
static INLINE void store(void *to, size_t i, const vec value[4], uint32_t dtype, bool stream)
{
    for (size_t k = 0; dtype == CLXENT_F32 && k < 4; k++)
        store_ints((float *)to + i + k * LANES, AS_INT(value[k]), stream);
    for (size_t k = 0; dtype != CLXENT_F32 && k < 4; k += 2)
        store_ints((uint16_t *)to + i + k * LANES, packed(value[k], value[k + 1], dtype), stream);
}

static INLINE float sum_of(vec v)
{
#ifdef __AVX512F__
    return _mm512_reduce_add_ps(v);
#else
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#endif
}

static INLINE float most_of(vec v)
{
#ifdef __AVX512F__
    return _mm512_reduce_max_ps(v);
#else
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
#endif
}

/* ---- A row ---------------------------------------------------------------------------------- */

typedef struct state {
    double sum; /* of exponentials at 2^scale */
    float scale;
} state;

/* Raises the scale to that of a logit. */
static INLINE void raise_scale(state *s, float most)
{
    const float scale = rintf(most * INVERSE_LN2);

    if (scale <= s->scale) return;
    if (s->sum > 0) s->sum = ldexp(s->sum, (int)(s->scale - scale));
    s->scale = scale;
}

static INLINE vec most_at(const void *x, size_t begin, size_t end, uint32_t dtype)
{
    vec most[4];

    for (size_t k = 0; k < 4; k++) most[k] = V(set1_ps)(-INFINITY);
    for (size_t i = begin; i < end; i += STEP)
        for (size_t k = 0; k < 4; k++) most[k] = V(max_ps)(most[k], load(x, i + k * LANES, dtype));
    return V(max_ps)(V(max_ps)(most[0], most[1]), V(max_ps)(most[2], most[3]));
}

/* The sum of exponentials of a block, and themselves where kept is not NULL. */
static INLINE float sum_block(const void *x, size_t begin, size_t end, const power *p, float *kept,
                              uint32_t dtype)
{
    const size_t size = dtype == CLXENT_F32 ? 4 : 2;
    vec sum[4];

    for (size_t k = 0; k < 4; k++) sum[k] = V(setzero_ps)();
    for (size_t i = begin; i < end; i += STEP) {
        for (size_t at = 0; at < STEP * size; at += LINE)
            _mm_prefetch((const char *)x + i * size + at + AHEAD, _MM_HINT_T1);
        for (size_t k = 0; k < 4; k++) {
            const vec e = exp_of(load(x, i + k * LANES, dtype), p);
            if (kept != NULL) V(store_ps)(kept + i + k * LANES, e);
            sum[k] = V(add_ps)(sum[k], e);
        }
    }
    return sum_of(V(add_ps)(V(add_ps)(sum[0], sum[1]), V(add_ps)(sum[2], sum[3])));
}

/* The loss of a row x of logits; gradient NULL: no more. */
static INLINE double run_row(const char *x, char *gradient, size_t classes, size_t target, double weight,
                             uint32_t dtype, unsigned variant, float *scratch)
{
    const size_t size = dtype == CLXENT_F32 ? 4 : 2;
    const size_t head = (LINE - (uintptr_t)x % LINE) % LINE / size, full = (classes - head) / STEP * STEP;
    const size_t edges = classes - full;
    const void *middle = x + head * size;
    const float at_target = load_one(x, target, dtype);
    float *kept = (variant & HAND_KEEP) != 0 ? scratch : NULL, *scales = scratch + full;
    float edge[EDGES + LANES] __attribute__((aligned(LINE)));
    state s = { 0, NO_SCALE };

    for (size_t i = 0; i < edges; i++) edge[i] = load_one(x, i < head ? i : i + full, dtype);
    for (size_t i = edges; i % LANES != 0; i++) edge[i] = -INFINITY;
    for (size_t i = 0; i < edges; i += LANES) raise_scale(&s, most_of(V(load_ps)(edge + i)));
    const float edge_scale = s.scale;
    if (edges > 0) {
        const power p = power_of(edge_scale, 1);
        for (size_t i = 0; i < edges; i += LANES) {
            const vec e = exp_of(V(load_ps)(edge + i), &p);
            V(store_ps)(edge + i, e);
            s.sum += (double)sum_of(e);
        }
    }
    for (size_t begin = 0; begin < full; begin += BLOCK) {
        const size_t end = begin + BLOCK < full ? begin + BLOCK : full;
        raise_scale(&s, most_of(most_at(middle, begin, end, dtype)));
        const power p = power_of(s.scale, 1);
        s.sum += (double)sum_block(middle, begin, end, &p, kept, dtype);
        if (kept != NULL) scales[begin / BLOCK] = s.scale;
    }
    const double lse = (double)s.scale * (double)LN2 + log(s.sum); /* LN2 as the exponentials have it */
    if (gradient == NULL) return lse - (double)at_target;

    void *to = gradient + head * size;
    const float factor = (float)(weight / s.sum), at = (float)((exp((double)at_target - lse) - 1) * weight);
    const size_t step_of_target =
        target >= head && target - head < full ? (target - head) / STEP * STEP : SIZE_MAX;
    const float edge_factor = ldexpf(factor, (int)(edge_scale - s.scale));
    for (size_t begin = 0; begin < full; begin += BLOCK) {
        const size_t end = begin + BLOCK < full ? begin + BLOCK : full;
        const vec scaled =
            V(set1_ps)(kept != NULL ? ldexpf(factor, (int)(scales[begin / BLOCK] - s.scale)) : 0);
        const power p = power_of(s.scale, factor);
        for (size_t i = begin; i < end; i += STEP) {
            vec value[4];
            for (size_t k = 0; k < 4; k++)
                value[k] = kept != NULL ? V(mul_ps)(V(load_ps)(kept + i + k * LANES), scaled)
                                        : exp_of(load(middle, i + k * LANES, dtype), &p);
            if (__builtin_expect(i == step_of_target, 0)) {
                float changed[STEP];
                memcpy(changed, value, sizeof changed);
                changed[target - head - i] = at;
                memcpy(value, changed, sizeof changed);
            }
            store(to, i, value, dtype, (variant & HAND_STREAM) != 0);
        }
    }
    for (size_t i = 0; i < edges; i++) {
        const size_t class_ = i < head ? i : i + full;
        store_one(gradient, class_, class_ == target ? at : edge[i] * edge_factor, dtype);
    }
    return lse - (double)at_target;
}

static INLINE double run_rows(const hand_problem *p, size_t begin, size_t end, uint32_t dtype, bool gradient,
                              unsigned variant, float *scratch)
{
    const size_t bytes = p->classes * (dtype == CLXENT_F32 ? 4 : 2);
    double loss = 0;

    for (size_t row = begin; row < end; row++)
        loss += run_row((const char *)p->logits + row * bytes,
                        gradient ? (char *)p->gradient + row * bytes : NULL, p->classes,
                        (size_t)p->targets[row], 1.0 / (double)p->rows, dtype, variant, scratch);
    _mm_sfence();
    return loss;
}

double HAND(rows)(const hand_problem *p, size_t begin, size_t end, unsigned variant, float *scratch)
{
#define ROWS(type, gradient_, variant_) return run_rows(p, begin, end, type, gradient_, variant_, scratch)
#define VARIANTS(type)                                      \
    if (p->dtype == (type)) {                               \
        if (p->gradient == NULL) ROWS(type, false, 0);      \
        switch (variant) {                                  \
        case 0: ROWS(type, true, 0);                        \
        case HAND_KEEP: ROWS(type, true, HAND_KEEP);        \
        case HAND_STREAM: ROWS(type, true, HAND_STREAM);    \
        default: ROWS(type, true, HAND_KEEP | HAND_STREAM); \
        }                                                   \
    }
    VARIANTS(CLXENT_F32)
    VARIANTS(CLXENT_BF16)
    VARIANTS(CLXENT_F16)
    return NAN;
}

/* ---- Ten classes ---------------------------------------------------------------------------- */

static INLINE void transpose(__m256 v[8])
{
    __m256 pairs[8], fours[8];

    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

/* Eight rows at a time, one in each lane: classes 0 to 7 in one square, 2 to 9 in another. */
static INLINE double run_ten(const hand_problem *p, size_t begin, size_t end, bool stream)
{
    enum { ROWS = 8, CLASSES = 10 };
    const float weight = 1.0f / (float)p->rows;
    double loss = 0;

    for (size_t row = begin; row < end; row += ROWS) {
        const float *x = (const float *)p->logits + row * CLASSES;
        float *gradient = (float *)p->gradient + row * CLASSES;
        float result[ROWS * CLASSES] __attribute__((aligned(LINE))), sums[ROWS], scales[ROWS];
        __m256 first[8], last[8], e[CLASSES];

        for (int i = 0; i < ROWS; i++) {
            first[i] = _mm256_loadu_ps(x + i * CLASSES);
            last[i] = _mm256_loadu_ps(x + i * CLASSES + 2);
        }
        transpose(first);
        transpose(last);
        __m256 most = _mm256_max_ps(last[6], last[7]), sum = _mm256_setzero_ps();
        for (int i = 0; i < 8; i++) most = _mm256_max_ps(most, first[i]);
        const __m256 scale = _mm256_round_ps(_mm256_mul_ps(most, _mm256_set1_ps(INVERSE_LN2)),
                                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const power8 own = power8_of(scale, 1);
        for (int i = 0; i < CLASSES; i++) {
            e[i] = exp8(i < 8 ? first[i] : last[i - 2], &own);
            sum = _mm256_add_ps(sum, e[i]);
        }
        const __m256 factor = _mm256_div_ps(_mm256_set1_ps(weight), sum);
        for (int i = 0; i < 8; i++) {
            first[i] = _mm256_mul_ps(e[i], factor);
            last[i] = _mm256_mul_ps(e[i + 2], factor);
        }
        transpose(first);
        transpose(last);
        _mm256_storeu_ps(sums, sum);
        _mm256_storeu_ps(scales, scale);
        double lse = 0;
        float product = 1; /* of sums between 0.7 and 15: one logarithm for all rows */
        for (int i = 0; i < ROWS; i++) {
            _mm256_storeu_ps(result + i * CLASSES, first[i]);
            _mm_storeh_pi((__m64 *)(result + i * CLASSES + 8), _mm256_extractf128_ps(last[i], 1));
            lse += (double)scales[i] * (double)LN2 - (double)x[i * CLASSES + p->targets[row + (size_t)i]];
            product *= sums[i];
        }
        for (int i = 0; i < ROWS; i++) result[i * CLASSES + p->targets[row + (size_t)i]] -= weight;
        loss += lse + (double)logf(product);
        for (int i = 0; i < ROWS * CLASSES; i += 8) {
            if (stream) _mm256_stream_ps(gradient + i, _mm256_load_ps(result + i));
            else _mm256_store_ps(gradient + i, _mm256_load_ps(result + i));
        }
    }
    _mm_sfence();
    return loss;
}

double HAND(ten)(const hand_problem *p, size_t begin, size_t end, unsigned variant, float *scratch)
{
    (void)scratch;
    return (variant & HAND_STREAM) != 0 ? run_ten(p, begin, end, true) : run_ten(p, begin, end, false);
}
