/* SPDX-License-Identifier: MIT
 *
 * cross_entropy.cl - everything that is computed from logits, for a class axis that is the last one.
 *
 * Grid: one work-group for rows_per_group rows. A row is read once block by block (online softmax: a
 * block's maximum first, then its exponentials) and, where a [rows, classes] result is asked for, a second time
 * while it is in cache, unless its exponentials were kept in local memory. Formulas: clxent.h.
 *
 * Set by the host with -D, beside those of common.cl:
 *   GENERAL  0: index targets or none, without smoothing, scale, softcap and entropy: nothing but the
 *               exponential stands in the inner loops
 *            1: every option, as run-time values
 *   BLOCK    vectors that one work-item takes in a block, a multiple of 4. Part of what decides the bits
 *   STRIDED  0: classes are neighbours; 1: they are inner elements apart (needs VEC 1)
 */
#if !defined(GENERAL) || GENERAL < 0 || GENERAL > 1
#    error "GENERAL: 0 or 1"
#endif
#if !defined(BLOCK) || BLOCK < 4 || BLOCK % 4 != 0
#    error "BLOCK: a multiple of 4"
#endif

#if !defined(STRIDED) || STRIDED < 0 || STRIDED > 1 || (STRIDED && VEC != 1)
#    error "STRIDED: 0, or 1 with VEC 1"
#endif

#define NO_CLASS 0xffffffffu

/* Where class c stands in a row, in elements. */
#define AT(in, c) (STRIDED ? (size_t)(c) * (in)->step : (size_t)(c))

/* The options of the plan that are numbers. */
typedef struct {
    real keep;  /* 1 - label_smoothing */
    real share; /* label_smoothing / classes */
    real smoothing;
    real z_loss;
    real logit_scale;
    real softcap;
} options;

/* One row's inputs. Vector v < vectors is x[v * VEC ..]; vector `vectors` is the tail of classes % VEC. */
typedef struct {
    __global const storage *x;
    size_t step; /* elements from one class to the next: desc.inner */
    uint classes;
    uint vectors;
    uint tail;
    bool dense;         /* sum a_j nll_j has terms for every class */
    bool probabilities; /* targets are q [classes] */
    bool q_is_f32;
    __global const void *q;
    __global const real *class_weights; /* used where has_class_weights */
    bool has_class_weights;
    bool entropy;
    options o;
} row_input;

/* Sums over a part of a row: a work-item's, in the end the row's. */
typedef struct {
    real maximum; /* of z; NaN is not seen */
    exp_scale scale;
    long_sum others;       /* exp(z) at scale, over all classes but the one kept apart */
    long_sum entropy;      /* exp(z) (maximum - z), over the same */
    long_sum dense_nll;    /* a_j (maximum - z_j) */
    long_sum dense_weight; /* a_j */
    uint first, last;      /* the vectors among which the maximum was first met */
} row_sums;

/* ---- z ------------------------------------------------------------------------------------ */

/* tanh(y) = e / (e + 2) with e = exp(2|y|) - 1 = 2^k (exp(r) - 1) + (2^k - 1): no cancellation near 0. |y| is
 * clamped to where tanh rounds to 1. slope is 1 - tanh^2 = 4 (e + 1) / (e + 2)^2. */
#if DTYPE == F64
#    define TANH_LIMIT REAL(20.0)
#else
#    define TANH_LIMIT REAL(10.0)
#endif
#define DEFINE_SOFTCAP(NAME, T, I, AS_T, AS_I)                                       \
    static inline T NAME(const T s, const real softcap, T *slope)                    \
    {                                                                                \
        const T y = s / (T)(softcap);                                                \
        const T size = fabs(y) > (T)(TANH_LIMIT) ? (T)(TANH_LIMIT) : fabs(y);        \
        const T x = size + size;                                                     \
        const T shifted = fma(x, (T)(INV_LN2), (T)(ROUNDER + BIAS));                 \
        const T k = shifted - (T)(ROUNDER + BIAS);                                   \
        const T r = REDUCE(T, k, x);                                                 \
        /* exp(r) - 1: the polynomial without its last term */                       \
        const T p = r * EXP_SLOPE(r, (T)AS_IT_IS);                                   \
        const T scale = AS_T(AS_I(shifted) << MANTISSA_BITS);                        \
        const T e = fma(scale, p, scale - (T)(1));                                   \
        const T e2 = e + (T)(2);                                                     \
        *slope = ((T)(4) * (e + (T)(1))) / (e2 * e2);                                \
        return copysign((T)(softcap) * (e / e2), y);                                 \
    }                                                                                \
    /* z of x, and dz/dx */                                                          \
    static inline T NAME##_z(const T x, const options o, T *dz_dx)                   \
    {                                                                                \
        if (GENERAL == 0) return x;                                                  \
        T z = x * (T)(o.logit_scale);                                                \
        *dz_dx = (T)(o.logit_scale);                                                 \
        if (o.softcap > 0) {                                                         \
            T slope;                                                                 \
            const T capped = NAME(z, o.softcap, &slope);                             \
            z = z != z ? z : capped;                                                 \
            *dz_dx = x == (T)(-REAL_INFINITY) ? (T)(0) : slope * (T)(o.logit_scale); \
        }                                                                            \
        return x == (T)(-REAL_INFINITY) ? x : z;                                     \
    }

DEFINE_SOFTCAP(softcap_one, real, integer, PASTE(as_, REAL_TYPE), PASTE(as_, INTEGER_TYPE))
#if VEC > 1
DEFINE_SOFTCAP(softcap_vector, vec, ivec, AS_VEC, AS_IVEC)
#else
#    define softcap_vector_z softcap_one_z
#endif

/* z of a vector that is whole. */
static inline vec get_full_z(const row_input *in, const uint v)
{
    vec unused;
    return softcap_vector_z(load_vector(in->x + AT(in, v * VEC)), in->o, &unused);
}

/* z of vector v, whole or the tail; classes past the end read as -inf. */
static inline vec get_z(const row_input *in, const uint v)
{
    vec unused;
    if (v < in->vectors) return get_full_z(in, v);
    const vec x = load_partial(in->x + AT(in, v * VEC), in->tail, -REAL_INFINITY);
    return softcap_vector_z(x, in->o, &unused);
}

/* ---- a ------------------------------------------------------------------------------------ */

static inline real probability_one(const row_input *in, const uint at)
{
#if DTYPE != F32
    if (!in->q_is_f32) return load_one((__global const storage *)in->q + AT(in, at));
#endif
    return convert_real(((__global const float *)in->q)[AT(in, at)]);
}

static inline vec probability_vector(const row_input *in, const uint at)
{
#if DTYPE != F32
    if (!in->q_is_f32) return load_vector((__global const storage *)in->q + AT(in, at));
#endif
    return CONVERT_VEC(LOAD((__global const float *)in->q + AT(in, at)));
}

/* The part of a_j that every class has: of an index target the smoothing, of probabilities all. */
static inline real dense_one(const row_input *in, const uint at)
{
    real a = in->o.share;
    if (in->probabilities) a = fma(in->o.keep, probability_one(in, at), a);
    if (in->has_class_weights) a = a * in->class_weights[at];
    return a;
}

/* n < VEC: only the first n exist, the others give 0. */
static inline vec dense_vector(const row_input *in, const uint at, const uint n)
{
    if (n < VEC) {
        real element[VEC];
        for (uint i = 0; i < VEC; i++) element[i] = i < n ? dense_one(in, at + i) : 0;
        return LOAD(element);
    }
    vec a = (vec)(in->o.share);
    if (in->probabilities) a = fma((vec)(in->o.keep), probability_vector(in, at), a);
    if (in->has_class_weights) a = a * LOAD(in->class_weights + at);
    return a;
}

/* ---- Sums of a row ------------------------------------------------------------------------ */

static inline row_sums empty_sums(void)
{
    const long_sum zero = { 0, 0 };
    return (row_sums){ -REAL_INFINITY, exp_scale_of(-REAL_INFINITY), zero, zero, zero, zero, 0, 0 };
}

/* Moves s to a maximum that is no less. Sums of (maximum - z) grow by their weight times the step. */
static inline void raise_maximum(row_sums *s, const real maximum)
{
    const exp_scale scale = exp_scale_of(maximum);
    if (s->maximum > -REAL_INFINITY) {
        const real factor = exp_rescale(s->scale, scale);
        if (GENERAL) {
            const real step = maximum - s->maximum;
            s->entropy = long_add(s->entropy, s->others.high * step);
            s->entropy = (long_sum){ s->entropy.high * factor, s->entropy.low * factor };
            s->dense_nll = long_add(s->dense_nll, s->dense_weight.high * step);
        }
        s->others = (long_sum){ s->others.high * factor, s->others.low * factor };
    }
    s->maximum = maximum;
    s->scale = scale;
}

/* What one block adds. Four sums of exponentials, as an addition takes four times as long as it keeps
 * the adder busy. */
typedef struct {
    vec others0, others1, others2, others3;
    vec entropy, nll, weight;
} block_sums;

/* The exponentials of vector v, 0 for the class kept apart; what else is summed goes to b. n: how many of its
 * elements exist. */
static inline vec add_vector(const row_input *in, const row_sums *s, block_sums *b, const uint v, const vec z,
                             const uint n, const uint apart, const bool far, const bool cached,
                             __local real *cache)
{
    vec e = exp_vector(z, s->scale, far);
    if (cached) STORE(e, cache + (size_t)v * VEC);
    if (apart != NO_CLASS) e = IOTA == (ivec)((integer)(apart % VEC)) ? (vec)(0) : e;
    if (GENERAL) {
        const vec distance = (vec)(s->maximum > -REAL_INFINITY ? s->maximum : 0) - z;
        if (in->entropy) b->entropy += e == (vec)(0) ? (vec)(0) : e * distance;
        if (in->dense) {
            const vec a = dense_vector(in, v * VEC, n);
            b->nll += a == (vec)(0) ? (vec)(0) : a * distance;
            b->weight += a;
        }
    }
    return e;
}

/* Adds the vectors [from, to) of this work-item. The class kept apart interrupts the plain loop once. */
static inline void sum_block(const row_input *in, row_sums *s, const uint from, const uint to,
                             const uint apart, const bool far, const bool cached, __local real *cache)
{
    const vec zero = (vec)(0);
    const uint full = min(to, in->vectors);
    const uint apart_vector = apart / VEC; /* of NO_CLASS: past every row */
    block_sums b = { zero, zero, zero, zero, zero, zero, zero };
    uint v = from + (uint)get_local_id(0);
    uint stop = apart_vector >= v && apart_vector < full ? apart_vector : full;
    for (;;) {
#define ADD(w) add_vector(in, s, &b, w, get_full_z(in, w), VEC, NO_CLASS, far, cached, cache)
        for (; v + 3 * WG_SIZE < stop; v += 4 * WG_SIZE) {
            b.others0 += ADD(v);
            b.others1 += ADD(v + WG_SIZE);
            b.others2 += ADD(v + 2 * WG_SIZE);
            b.others3 += ADD(v + 3 * WG_SIZE);
        }
        for (; v < stop; v += WG_SIZE) b.others0 += ADD(v);
#undef ADD
        if (stop == full) break;
        if (v == apart_vector) {
            b.others0 += add_vector(in, s, &b, v, get_full_z(in, v), VEC, apart, far, cached, cache);
            v += WG_SIZE;
        }
        stop = full;
    }
    if (v < to) { /* the tail */
        const uint tail_apart = v == apart_vector ? apart : NO_CLASS;
        b.others1 += add_vector(in, s, &b, v, get_z(in, v), in->tail, tail_apart, far, cached, cache);
    }
    const vec others = (b.others0 + b.others1) + (b.others2 + b.others3);
    s->others = long_add(s->others, FOLD(others, real_sum));
    if (GENERAL && in->entropy) s->entropy = long_add(s->entropy, FOLD(b.entropy, real_sum));
    if (GENERAL && in->dense) {
        s->dense_nll = long_add(s->dense_nll, FOLD(b.nll, real_sum));
        s->dense_weight = long_add(s->dense_weight, FOLD(b.weight, real_sum));
    }
}

static inline real block_maximum(const row_input *in, const uint from, const uint to)
{
    const uint full = min(to, in->vectors);
    vec m0 = (vec)(-REAL_INFINITY);
    vec m1 = m0;
    vec m2 = m0;
    vec m3 = m0;
    uint v = from + (uint)get_local_id(0);
    for (; v + 3 * WG_SIZE < full; v += 4 * WG_SIZE) {
        m0 = vec_max(m0, get_full_z(in, v));
        m1 = vec_max(m1, get_full_z(in, v + WG_SIZE));
        m2 = vec_max(m2, get_full_z(in, v + 2 * WG_SIZE));
        m3 = vec_max(m3, get_full_z(in, v + 3 * WG_SIZE));
    }
    for (; v < full; v += WG_SIZE) m0 = vec_max(m0, get_full_z(in, v));
    if (v < to) m1 = vec_max(m1, get_z(in, v));
    const vec all = vec_max(vec_max(m0, m1), vec_max(m2, m3));
    return FOLD(all, real_max);
}

/* Sums over the whole row, by the whole group; apart: the class left out of others, or NO_CLASS. whole: the
 * maximum is found over the whole row first, so that all exponentials have one scale; cached: they are left
 * behind in cache [classes, rounded up to VEC]. whole decides bits, so it may depend on the plan only. */
static inline row_sums scan_row(const row_input *in, const uint apart, const bool whole, const bool cached,
                                __local real *cache, __local long_sum *scratch)
{
    const uint total = in->vectors + (in->tail > 0 ? 1 : 0);
    const uint block = BLOCK * WG_SIZE;
    const uint step = whole ? total : block;
    row_sums s = empty_sums();
    for (uint first = 0; first < total; first += step) {
        const uint last = min(first + step, total);
        real maximum = block_maximum(in, first, last);
        if (whole) maximum = group_max(maximum, (__local real *)scratch);
        if (maximum > s.maximum) {
            raise_maximum(&s, maximum);
            s.first = first;
            s.last = last;
        }
        for (uint from = first; from < last; from += block) {
            const uint to = min(from + block, last);
            if (GENERAL || s.scale.base != 0) {
                sum_block(in, &s, from, to, apart, true, cached, cache);
            } else {
                sum_block(in, &s, from, to, apart, false, cached, cache);
            }
        }
    }
    if (WG_SIZE > 1) {
        const real own = s.maximum;
        raise_maximum(&s, group_max(own, (__local real *)scratch));
        if (own != s.maximum) s.last = s.first; /* the maximum is not among this work-item's */
        s.others = group_sum(s.others, scratch);
        if (GENERAL && in->entropy) s.entropy = group_sum(s.entropy, scratch);
        if (GENERAL && in->dense) {
            s.dense_nll = group_sum(s.dense_nll, scratch);
            s.dense_weight = group_sum(s.dense_weight, scratch);
        }
    }
    return s;
}

/* sum a_j alone, in the order of scan_row: the same bits. */
static inline real dense_weight_of(const row_input *in, __local long_sum *scratch)
{
    const uint total = in->vectors + (in->tail > 0 ? 1 : 0);
    long_sum sum = { 0, 0 };
    for (uint from = 0; from < total; from += BLOCK * WG_SIZE) {
        const uint to = min(from + BLOCK * WG_SIZE, total);
        vec weight = (vec)(0);
        for (uint v = from + (uint)get_local_id(0); v < to; v += WG_SIZE) {
            weight += dense_vector(in, v * VEC, v < in->vectors ? VEC : in->tail);
        }
        sum = long_add(sum, FOLD(weight, real_sum));
    }
    return long_value(group_sum(sum, scratch));
}

/* s = logit_scale * x of vector v: what the argmax is taken of, as a softcap that saturates makes equal what
 * is not. Without a softcap it is z. */
static inline vec get_s(const row_input *in, const uint v)
{
    row_input uncapped = *in;
    uncapped.o.softcap = 0;
    return get_z(&uncapped, v);
}

/* The first class in the vectors [first, last) of this work-item whose s is `value`, NaN meaning any NaN;
 * over the group. NO_CLASS if none. */
static inline uint find_first(const row_input *in, const real value, const uint first, const uint last,
                              __local long_sum *scratch)
{
    const bool want_nan = value != value;
    uint found = NO_CLASS;
    for (uint v = first + (uint)get_local_id(0); v < last && found == NO_CLASS; v += WG_SIZE) {
        const vec s = get_s(in, v);
        const ivec match = want_nan ? s != s : s == (vec)(value);
#if VEC > 1
        if (!any(match)) continue;
#endif
        integer hit[VEC];
        STORE(match, hit);
        for (uint i = VEC; i > 0; i--) {
            const uint at = v * VEC + i - 1;
            if (hit[i - 1] != 0 && at < in->classes) found = at;
        }
    }
    return group_min(found, (__local uint *)scratch);
}

/* The first NaN, else the first maximum. The scan knows where the maximum of z was met first; under a softcap
 * that of s is looked for anew. */
static inline uint find_argmax(const row_input *in, const row_sums *s, const bool has_nan,
                               __local long_sum *scratch)
{
    const uint all = in->vectors + (in->tail > 0 ? 1 : 0);
    if (has_nan) {
        const uint found = find_first(in, REAL_NAN, 0, all, scratch);
        if (found != NO_CLASS) return found;
    }
    if (GENERAL && in->o.softcap > 0) {
        vec m = (vec)(-REAL_INFINITY);
        for (uint v = (uint)get_local_id(0); v < all; v += WG_SIZE) m = vec_max(m, get_s(in, v));
        const real maximum = group_max(FOLD(m, real_max), (__local real *)scratch);
        return find_first(in, maximum, 0, all, scratch);
    }
    /* all -inf: no block ever raised the maximum */
    const bool none = s->maximum == -REAL_INFINITY;
    return find_first(in, s->maximum, none ? 0 : s->first, none ? all : s->last, scratch);
}

/* ---- What follows from the sums ----------------------------------------------------------- */

typedef struct {
    real maximum;
    exp_scale scale;
    real others;     /* at scale, without the target's class */
    real target_exp; /* at scale; 0 without a target */
    real d;          /* others + target_exp */
    real log_d;      /* log sum exp(z - maximum), to full relative precision where that was asked for */
    real lse;
    bool valid; /* at least one finite logit, no +inf, no NaN */
} row_result;

/* log(others + apart) relative to top, all at one scale. Where the class kept apart is the top and holds more
 * than half, log1p keeps the digits of a confident row. */
static inline real log_sum(const real others, const real apart, const real top)
{
    return apart > others ? log1p(others / apart) : log((others + apart) / top);
}

static inline row_result finish_sums(const real maximum, const real others, const real target_exp,
                                     const bool has_nan)
{
    row_result r;
    r.maximum = maximum;
    r.scale = exp_scale_of(maximum);
    r.others = others;
    r.target_exp = target_exp;
    r.d = others + target_exp;
    r.valid = maximum > -REAL_INFINITY && maximum < REAL_INFINITY && r.d == r.d;
    const real top = exp_one(maximum, r.scale, true);
    r.log_d = r.valid ? log_sum(others, target_exp, top) : REAL_NAN;
    r.lse = has_nan ? REAL_NAN : r.valid ? maximum + r.log_d : maximum;
    return r;
}

/* ---- [rows, classes] results --------------------------------------------------------------- */

#define EMIT_GRADIENT 0
#define EMIT_SOFTMAX 1
#define EMIT_LOG_SOFTMAX 2
#define EMIT_CONSTANT 3 /* into the gradient */

typedef struct {
    uint kind;
    real fill;        /* EMIT_CONSTANT: the value */
    real factor;      /* softmax: 1 / d; gradient: what multiplies the exponentials */
    bool folds;       /* the factor goes into the exponential: where rows are never cached */
    real outer;       /* gradient, GENERAL: what multiplies dz */
    uint class_index; /* NO_CLASS, or the class whose gradient is `target` */
    real target;
    bool accumulate;
} emission;

static inline vec emit_value(const row_input *in, const row_result *r, const emission *g, const vec x,
                             const vec cached_e, const bool cached, const uint at, const uint n)
{
    if (g->kind == EMIT_CONSTANT) return (vec)(g->fill);
    vec dz_dx = (vec)(1);
    const vec z = softcap_vector_z(x, in->o, &dz_dx);
    if (g->kind == EMIT_LOG_SOFTMAX) return -(((vec)(r->maximum) - z) + (vec)(r->log_d));
    if (!GENERAL && g->folds) return exp_vector_times(z, r->scale, true, g->factor);
    const vec e = cached ? cached_e : exp_vector(z, r->scale, true);
    if (g->kind == EMIT_SOFTMAX) return e * (vec)(g->factor);
    if (GENERAL == 0) return e * (vec)(g->factor);
    vec dz = e * (vec)(g->factor);
    if (in->dense) dz = dz - dense_vector(in, at, n);
    return dz * (vec)(g->outer) * dz_dx;
}

/* n elements from `at`, 1 <= n <= VEC, the target's class among them or not. */
static inline void emit_part(const row_input *in, const row_result *r, const emission *g,
                             __global storage *out, __global gradient_storage *gradient, const uint at,
                             const uint n)
{
    const vec x = load_partial(in->x + AT(in, at), n, -REAL_INFINITY);
    vec value = emit_value(in, r, g, x, x, false, at, n);
    if (g->kind == EMIT_SOFTMAX || g->kind == EMIT_LOG_SOFTMAX) {
        store_partial(out + AT(in, at), value, n);
        return;
    }
    const ivec hit = IOTA == (ivec)((integer)(g->class_index - at)) ? (ivec)(-1) : (ivec)(0);
    if (g->class_index >= at && g->class_index - at < n) value = hit ? (vec)(g->target) : value;
    if (g->accumulate) value = value + load_gradient_partial(gradient + AT(in, at), n);
    store_gradient_partial(gradient + AT(in, at), value, n);
}

/* A whole vector; with_target: the target's class is in it. */
static inline void emit_vector(const row_input *in, const row_result *r, const emission *g,
                               __global storage *out, __global gradient_storage *gradient, const uint at,
                               const bool with_target, const bool cached, const bool aligned,
                               const __local real *cache)
{
    const bool reads_x = GENERAL || !cached;
    const vec e = cached ? LOAD(cache + at) : (vec)(0);
    const vec x = g->kind != EMIT_CONSTANT && reads_x ? load_vector(in->x + AT(in, at)) : e;
    vec value = emit_value(in, r, g, x, e, cached, at, VEC);
    if (g->kind == EMIT_SOFTMAX || g->kind == EMIT_LOG_SOFTMAX) {
        store_vector(out + AT(in, at), value, aligned);
        return;
    }
    if (with_target) value = IOTA == (ivec)((integer)(g->class_index - at)) ? (vec)(g->target) : value;
    if (g->accumulate) value = value + load_gradient_vector(gradient + AT(in, at));
    store_gradient_vector(gradient + AT(in, at), value, aligned);
}

static inline void emit_loop(const row_input *in, const row_result *r, const emission *g,
                             __global storage *out, __global gradient_storage *gradient, const uint head,
                             const bool cached, const bool aligned, const __local real *cache)
{
    const uint vectors = (in->classes - head) / VEC;
    const uint tail = (in->classes - head) % VEC;
    const uint special =
        g->class_index != NO_CLASS && g->class_index >= head ? (g->class_index - head) / VEC : NO_CLASS;
    uint v = (uint)get_local_id(0);
    uint stop = special >= v && special < vectors ? special : vectors;
    if (head > 0 && v == 0) emit_part(in, r, g, out, gradient, 0, head);
    for (;;) {
        for (; v < stop; v += WG_SIZE) {
            emit_vector(in, r, g, out, gradient, head + v * VEC, false, cached, aligned, cache);
        }
        if (stop == vectors) break;
        if (v == special) {
            emit_vector(in, r, g, out, gradient, head + v * VEC, true, cached, aligned, cache);
            v += WG_SIZE;
        }
        stop = vectors;
    }
    if (tail > 0 && v == vectors) emit_part(in, r, g, out, gradient, head + v * VEC, tail);
}

/* Writes one row of one result. Streaming stores need aligned vectors: the elements before the first
 * aligned one go apart. That moves no bit, as elements do not depend on each other here. */
static inline void emit(const row_input *in, const row_result *r, const emission *g, __global storage *out,
                        __global gradient_storage *gradient, const bool cached, const bool streaming,
                        const __local real *cache)
{
    const bool is_gradient = g->kind == EMIT_GRADIENT || g->kind == EMIT_CONSTANT;
    const size_t address = is_gradient ? (size_t)gradient : (size_t)out;
    const size_t size = is_gradient ? sizeof(gradient_storage) : sizeof(storage);
    const bool can_stream = HAS_NONTEMPORAL > STRIDED; /* strided results have no vectors */
    if (can_stream && streaming && address % size == 0) {
        const uint head = (uint)((0 - address) & (VEC * size - 1)) / (uint)size;
        if (head < in->classes) {
            emit_loop(in, r, g, out, gradient, head, cached, true, cache);
            return;
        }
    }
    emit_loop(in, r, g, out, gradient, 0, cached, false, cache);
}

/* ---- The row ------------------------------------------------------------------------------- */

/* Every row of batch * seq: see the top of the file. Buffers that a run does not use are NULL. logits
 * and gradient (or softmax, log_softmax) may be one buffer, hence no restrict on them: a work-item reads an
 * element before it writes it, and everything that others read is read before the barrier in front of
 * the writes. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_cross_entropy(
    const clxent_parameters p, const real keep, const real share, const real smoothing, const real z_loss,
    const real logit_scale, const real softcap,
    __global const storage *logits,                          /* [rows, classes], row_stride */
    __global const void *restrict targets,                   /* [rows] or [rows, classes] */
    __global const real *restrict class_weights,             /* [classes] */
    __global const real *restrict row_weights,               /* [rows] */
    __global const real *restrict upstream,                  /* [1] or [rows] */
    __global const real *restrict denominator,               /* [1] */
    __global real *restrict losses,                          /* [rows] */
    __global real *restrict lse,                             /* [rows] */
    __global storage *softmax,                               /* [rows, classes] */
    __global storage *log_softmax,                           /* [rows, classes] */
    __global gradient_storage *gradient,                     /* [rows, classes] */
    __global long *restrict argmax,                          /* [rows] */
    __global real *restrict entropy,                         /* [rows] */
    __global real *restrict statistics,                      /* [rows, 2] */
    __global uchar *restrict workspace, __local real *cache) /* [cache_elements] */
{
    __local long_sum scratch[WG_SIZE];
    const uint lid = (uint)get_local_id(0);
    const uint outputs = p.outputs;
    const bool from_statistics = (p.flags & FLAG_FROM_STATISTICS) != 0;
    const bool streaming = (p.flags & FLAG_NONTEMPORAL) != 0;
    const bool two_dimensional = (outputs & (OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX | OUTPUT_GRADIENT)) != 0;
    const bool has_own_d = (p.flags & (FLAG_MEAN | FLAG_DENOMINATOR)) == FLAG_MEAN;
    const real d_mean = (p.flags & FLAG_DENOMINATOR) ? denominator[p.offset.denominator]
                        : has_own_d                  ? *(__global const real *)(workspace + p.totals_at)
                                                     : REAL(1.0);
    __global real *row_losses =
        (outputs & OUTPUT_LOSSES) ? losses + p.offset.losses : (__global real *)(workspace + p.row_losses_at);
    row_input in;
    in.step = p.inner;
    in.classes = p.classes;
    in.vectors = p.classes / VEC;
    in.tail = p.classes % VEC;
    in.probabilities = GENERAL && is_probabilities(p.target_type);
    in.q_is_f32 = p.target_type == TARGET_PROBABILITIES_F32;
    in.q = targets;
    in.class_weights = class_weights + p.offset.class_weights;
    in.has_class_weights = (p.flags & FLAG_CLASS_WEIGHTS) != 0;
    in.entropy = (outputs & OUTPUT_ENTROPY) != 0;
    in.o = (options){ keep, share, smoothing, z_loss, logit_scale, softcap };
    const bool may_be_dense = GENERAL && (in.probabilities || smoothing != 0);
    const bool fits = p.classes + VEC - 1 <= p.cache_elements;
    const bool cacheable = two_dimensional && !from_statistics && fits;

    const ulong begin = get_group_id(0) * (ulong)p.rows_per_group;
    const ulong end = min(begin + p.rows_per_group, p.rows);
    for (ulong row = begin; row < end; row++) {
        const row_target t = get_target(&p, row, targets, row_weights);
        const ulong q_at = p.offset.targets + row_start(&p, row + p.shift, p.target_row_stride);
        in.x = logits + p.offset.logits + row_start(&p, row, p.row_stride);
        in.dense = may_be_dense && t.counts;
        if (in.probabilities) {
            in.q = in.q_is_f32 ? (__global const void *)((__global const float *)targets + q_at)
                               : (__global const void *)((__global const storage *)targets + q_at);
        }
        const bool of_logits =
            (outputs & (OUTPUT_LSE | OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX | OUTPUT_ARGMAX | OUTPUT_ENTROPY)) !=
            0;
        const bool scans = !from_statistics && (of_logits || t.counts);
        const bool no_gradient = !t.counts || (has_own_d && d_mean == 0);
        const uint target = t.has_class ? t.class_index : NO_CLASS;
        real dz_dx = 1;
        real target_z = -REAL_INFINITY;
        if (t.has_class) target_z = softcap_one_z(load_one(in.x + AT(&in, t.class_index)), in.o, &dz_dx);

        bool cached = false;
        row_sums s = empty_sums();
        row_result r;
        real dense_weight = in.dense && !in.probabilities && !in.has_class_weights ? smoothing : REAL(0.0);
        const bool sums_weight = in.dense && (in.probabilities || in.has_class_weights);
        uint best = NO_CLASS;
        real saved_lse = 0; /* as the statistics give it: a gradient run from them has no better one */
        if (scans) {
            cached = cacheable;
            s = scan_row(&in, target, fits, cached, cache, scratch);
            if (sums_weight) dense_weight = long_value(s.dense_weight);
        } else if (from_statistics && t.counts) {
            s.maximum = statistics[p.offset.statistics + 2 * row];
            s.others.high = statistics[p.offset.statistics + 2 * row + 1];
            if (sums_weight && !no_gradient) dense_weight = dense_weight_of(&in, scratch);
        }
        if (scans || t.counts) {
            const real others = from_statistics ? s.others.high : long_value(s.others);
            const exp_scale scale = exp_scale_of(s.maximum);
            const real target_exp = t.has_class ? exp_one(target_z, scale, true) : REAL(0.0);
            /* with +inf the sum is NaN whether or not there is a NaN beside it: look again */
            bool has_nan = others + target_exp != others + target_exp;
            if (has_nan && s.maximum == REAL_INFINITY && scans && (outputs & OUTPUT_LSE)) {
                has_nan =
                    find_first(&in, REAL_NAN, 0, in.vectors + (in.tail > 0 ? 1 : 0), scratch) != NO_CLASS;
            }
            r = finish_sums(s.maximum, others, target_exp, has_nan);
            saved_lse = r.lse;
            const bool wants_log_d = (p.flags & FLAG_LOG_D) != 0 || in.dense;
            const real top = exp_one(s.maximum, scale, true);
            const bool confident = r.valid && r.d < top + top && target_exp <= others;
            if (scans && ((outputs & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0 || (wants_log_d && confident))) {
                best = find_argmax(&in, &s, r.d != r.d, scratch);
            }
            if (scans && wants_log_d && confident) {
                /* the top holds more than half and is not the target: once more, with it kept apart */
                const row_sums apart = scan_row(&in, best, fits, false, cache, scratch);
                r.log_d = log_sum(long_value(apart.others), top, top);
                r.lse = r.maximum + r.log_d;
            }
        }

        const real class_weight =
            t.has_class && in.has_class_weights ? in.class_weights[t.class_index] : REAL(1.0);
        const real one_hot = t.has_class ? keep * class_weight : REAL(0.0);
        if (lid == 0) {
            if (outputs & (OUTPUT_LOSSES | OUTPUT_LOSS)) {
                real loss = t.bad ? REAL_NAN : REAL(0.0);
                if (t.counts && r.valid) {
                    if (one_hot != 0) loss = one_hot * ((r.maximum - target_z) + r.log_d);
                    if (in.dense) loss = loss + (long_value(s.dense_nll) + dense_weight * r.log_d);
                    if (z_loss != 0) loss = fma(z_loss, r.lse * r.lse, loss); /* 0 * inf would be NaN */
                    loss = t.weight * loss;
                } else if (t.counts) {
                    loss = REAL_NAN;
                }
                row_losses[row] = loss;
            }
            if (outputs & OUTPUT_LSE) lse[p.offset.lse + row] = r.lse;
            if (outputs & OUTPUT_ARGMAX) argmax[p.offset.argmax + row] = best;
            if (outputs & OUTPUT_CORRECT) workspace[p.correct_at + row] = t.has_class && best == target;
            if (outputs & OUTPUT_ENTROPY) {
                const real target_part = r.target_exp == 0 ? 0 : r.target_exp * (r.maximum - target_z);
                const real sum = (long_value(s.entropy) + target_part) / r.d;
                entropy[p.offset.entropy + row] = r.valid ? r.log_d + sum : REAL_NAN;
            }
            if ((outputs & OUTPUT_STATISTICS) && !from_statistics) {
                statistics[p.offset.statistics + 2 * row] = t.counts ? r.maximum : REAL(0.0);
                statistics[p.offset.statistics + 2 * row + 1] = t.counts ? r.others : REAL(0.0);
            }
        }
        if (!two_dimensional) continue;

        /* All reads of the row by others, and all writes to the cache, come before any write below. */
        if (WG_SIZE > 1) barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
        if (outputs & OUTPUT_SOFTMAX) {
            const emission g = {
                EMIT_SOFTMAX, 0, r.valid ? 1 / r.d : REAL_NAN, !fits, 0, NO_CLASS, 0, false
            };
            emit(&in, &r, &g, softmax + p.offset.softmax + row_start(&p, row, p.probabilities_row_stride),
                 gradient, cached, streaming, cache);
        }
        if (outputs & OUTPUT_LOG_SOFTMAX) {
            const emission g = { EMIT_LOG_SOFTMAX, 0, 0, false, 0, NO_CLASS, 0, false };
            emit(&in, &r, &g,
                 log_softmax + p.offset.log_softmax + row_start(&p, row, p.probabilities_row_stride),
                 gradient, false, streaming, cache);
        }
        if (outputs & OUTPUT_GRADIENT) {
            __global gradient_storage *row_gradient =
                gradient + p.offset.gradient + row_start(&p, row, p.gradient_row_stride);
            const bool accumulate = (p.flags & FLAG_ACCUMULATE) != 0;
            if (no_gradient || !r.valid) {
                const real fill = t.bad || (t.counts && !r.valid) ? REAL_NAN : REAL(0.0);
                const emission g = { EMIT_CONSTANT, fill, 0, false, 0, NO_CLASS, 0, accumulate };
                if (!accumulate || fill != 0) {
                    emit(&in, &r, &g, softmax, row_gradient, false, streaming, cache);
                }
            } else {
                const real up = (p.flags & FLAG_UPSTREAM_ROWS) ? upstream[p.offset.upstream + row]
                                : (p.flags & FLAG_UPSTREAM)    ? upstream[p.offset.upstream]
                                                               : REAL(1.0);
                const real outer = t.weight * up / d_mean;
                const real z_term = 2 * z_loss * saved_lse;
                const real slope = (one_hot + dense_weight + z_term) / r.d;
                const real rest = (dense_weight + z_term) * (r.target_exp / r.d);
                real at_target = rest - one_hot * (r.others / r.d);
                if (in.dense && t.has_class) at_target = at_target - dense_one(&in, t.class_index);
                const emission g = { EMIT_GRADIENT, 0,      GENERAL ? slope : slope * outer, !fits,
                                     outer,         target, at_target * outer * dz_dx,       accumulate };
                emit(&in, &r, &g, softmax, row_gradient, cached, streaming, cache);
            }
        }
        /* The next row's scan writes the cache that others may still read. */
        if (WG_SIZE > 1) barrier(CLK_LOCAL_MEM_FENCE);
    }
}
