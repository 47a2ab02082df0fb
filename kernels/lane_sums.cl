/* SPDX-License-Identifier: MIT
 *
 * lane_sums.cl - maxima, sums and the classes that are sought, of all rows of a tile at a time. Stands behind tiles.cl:
 * with ALONG for vectors along the classes of a row, else for lanes that are rows.
 */
/* ---- Sums ----------------------------------------------------------------------------------- */

typedef struct {
    lane maximum;
    long_sum others, entropy, dense_nll, dense_weight; /* as in cross_entropy.cl */
    ilane best, nan_at;                                /* -1: none */
} tile_sums;

static inline tile_sums empty_sums(const lane maximum)
{
    const long_sum none = long_zero();
    return (tile_sums){ maximum, none, none, none, none, (ilane)(-1), (ilane)(-1) };
}

#if ALONG
/* A row is its whole vectors and, where classes are left, one that ends with the row and begins among the classes of the
 * last whole one: in sums the elements that were seen before count for nothing. */
INLINE uint tail_of(const tile_input *in) { return in->classes % VEC; }

INLINE vec along_x(const tile_input *in, const uint row, const uint c)
{
    return load_vector(in->x + row * in->p->row_stride + c);
}

/* The maximum of a row, element by element of its vectors. */
INLINE vec maximum_along(const tile_input *in, const uint row)
{
    vec m0 = along_x(in, row, in->classes - VEC), m1 = m0;
    uint c = 0;
    for (; c + 2 * VEC <= in->classes; c += 2 * VEC) {
        m0 = vec_max(m0, along_x(in, row, c));
        m1 = vec_max(m1, along_x(in, row, c + VEC));
    }
    if (c + VEC <= in->classes) m0 = vec_max(m0, along_x(in, row, c));
    return vec_max(m0, m1);
}

/* Rows whose maxima are found before their exponentials are taken: all of a tile that stays in the first-level cache, of
 * a larger one a few at a time, which neither leave that cache nor wait for a maximum one by one (loss of 1,024 classes:
 * 0.9 of the time). */
#    define MOST_TOGETHER 384u
#    define FEW_TOGETHER 4u

/* Of `count` rows from `row` on, or of all. */
INLINE void find_maxima(const tile_input *in, const uint row, const uint count, real maximum[VEC])
{
    if (count < VEC) {
        for (uint i = row; i < min(row + count, in->n); i++) {
            const vec m = maximum_along(in, i);
            maximum[i] = FOLD(m, real_max);
        }
        return;
    }
    vec most[VEC];
    for (uint i = 0; i < VEC; i++) most[i] = maximum_along(in, min(i, in->n - 1));
    transpose(most);
    for (uint step = VEC / 2; step > 0; step /= 2) {
#    pragma unroll
        for (uint i = 0; i < step; i++) most[i] = vec_max(most[i], most[i + step]);
    }
    STORE(most[0], maximum);
}

/* Exponentials of the vector at class c, left behind where they are wanted; 0 for the class `apart`. */
INLINE vec take_along(const tile_input *in, const uint row, const uint c, const exp_scale scale,
                      const uint apart, const bool keeps, const bool far, __local real *values)
{
    const vec e = exp_vector(along_x(in, row, c), scale, far);
    if (keeps) STORE(e, values + c);
    if (apart - c >= VEC) return e;
    return IOTA == (ivec)((integer)(apart - c)) ? (vec)(0) : e;
}

/* What is summed over the classes of one row, element by element of its vectors, but for the class `apart`: exponentials,
 * and their products with the distance from the maximum. Summed as in cross_entropy.cl: few terms plainly, then with what
 * is lost. */
typedef struct {
    long_sum others, entropy;
} along_sums;

INLINE vec entropy_along(const tile_input *in, const uint row, const uint c, const real maximum, const vec e)
{
    return e == (vec)(0) ? (vec)(0) : e * ((vec)(maximum)-along_x(in, row, c));
}

INLINE void sum_along(along_sums *sums, const tile_input *in, const uint row, const exp_scale scale,
                      const uint apart, const real maximum, const bool keeps, const bool far,
                      __local real *values)
{
    const uint whole = in->classes - tail_of(in);
    *sums = (along_sums){ long_zero(), long_zero() };
    for (uint from = 0; from < whole; from += BLOCK_CLASSES * VEC) {
        const uint to = min(from + BLOCK_CLASSES * VEC, whole);
        vec few = (vec)(0), few_entropy = (vec)(0);
        uint c = from;
        for (; c + 4 * VEC <= to; c += 4 * VEC) {
            vec e[4];
#    pragma unroll
            for (uint k = 0; k < 4; k++) PREFETCH(in->next + row * in->p->row_stride + c + k * VEC);
            if (apart - c < 4 * VEC) {
#    pragma unroll
                for (uint k = 0; k < 4; k++)
                    e[k] = take_along(in, row, c + k * VEC, scale, apart, keeps, far, values);
            } else {
#    pragma unroll
                for (uint k = 0; k < 4; k++)
                    e[k] = take_along(in, row, c + k * VEC, scale, NO_CLASS, keeps, far, values);
            }
            few += (e[0] + e[1]) + (e[2] + e[3]);
            if (HAS_ENTROPY) {
#    pragma unroll
                for (uint k = 0; k < 4; k++) e[k] = entropy_along(in, row, c + k * VEC, maximum, e[k]);
                few_entropy += (e[0] + e[1]) + (e[2] + e[3]);
            }
        }
        for (; c < to; c += VEC) {
            PREFETCH(in->next + row * in->p->row_stride + c);
            const vec e = take_along(in, row, c, scale, apart, keeps, far, values);
            few += e;
            if (HAS_ENTROPY) few_entropy += entropy_along(in, row, c, maximum, e);
        }
        if (to == whole && tail_of(in) > 0) {
            const uint last = in->classes - VEC;
            vec e = take_along(in, row, last, scale, apart, keeps, far, values);
            e = IOTA < (ivec)((integer)(VEC - tail_of(in))) ? (vec)(0) : e;
            few += e;
            if (HAS_ENTROPY) few_entropy += entropy_along(in, row, last, maximum, e);
        }
        /* the first loses nothing, and of few classes there is no other */
        sums->others = from == 0 ? (long_sum){ few, (vec)(0) } : long_add(sums->others, few);
        if (HAS_ENTROPY) {
            sums->entropy =
                from == 0 ? (long_sum){ few_entropy, (vec)(0) } : long_add(sums->entropy, few_entropy);
        }
    }
}

/* high and low: of each row, element by element of its vectors; of the rows, lane by lane. has_low: low is not all 0. */
INLINE void fold_along(long_sum *sum, vec high[VEC], vec low[VEC], const bool has_low)
{
    long_sum s = long_zero();
    transpose(high);
    for (uint i = 0; i < VEC; i++) s = long_add(s, high[i]);
    if (has_low) {
        transpose(low);
        for (uint step = VEC / 2; step > 0; step /= 2) {
#    pragma unroll
            for (uint i = 0; i < step; i++) low[i] += low[i + step];
        }
        s.low += low[0];
    }
    *sum = s;
}

/* In `found`, where an element of the vector at class c is the value, or NaN. */
INLINE ivec match_along(const tile_input *in, const uint row, const uint c, const bool want_nan,
                        const real value, const ivec found)
{
    const vec x = along_x(in, row, c);
    return (want_nan ? x != x : x == (vec)(value)) ? (ivec)((integer)c) : found;
}

/* The first class of a row whose x is `value`, or that is NaN; -1 if none. From the last vector to the first, so that each
 * element is left with its first one; four by four, as each waits for the one before. */
INLINE integer find_along(const tile_input *in, const uint row, const bool want_nan, const real value)
{
    const ivec none = (ivec)(INT_MAX);
    ivec found[4] = { none, none, none, none };
    uint left = in->classes;
    if (left % VEC > 0) { /* the tail's vector overlaps the one before it */
        found[0] = match_along(in, row, left - VEC, want_nan, value, none);
        left -= left % VEC;
    }
    for (; left >= 4 * VEC; left -= 4 * VEC) {
#    pragma unroll
        for (uint k = 0; k < 4; k++)
            found[k] = match_along(in, row, left - (k + 1) * VEC, want_nan, value, found[k]);
    }
    for (; left > 0; left -= VEC) found[0] = match_along(in, row, left - VEC, want_nan, value, found[0]);
    const ivec first = min(min(found[0], found[1]), min(found[2], found[3]));
    const ivec at = first == none ? none : first + IOTA;
    const integer least = FOLD(at, min);
    return least < INT_MAX ? least : -1;
}

/* What a run wants of the rows of a tile, beside their exponentials' sums. */
typedef struct {
    bool keeps; /* the exponentials */
    bool best;
    bool nan; /* which class is NaN, of rows whose sums are */
} along_wishes;

static inline tile_sums sum_rows(const tile_input *in, const ilane target, const bool from_statistics,
                                 const lane saved_maximum, const along_wishes wishes, __local real *values)
{
    const uint together = in->classes <= MOST_TOGETHER ? (uint)VEC : min(FEW_TOGETHER, (uint)VEC);
    real base[VEC], q[VEC], lowest[VEC], maximum[VEC];
    integer apart[VEC], best[VEC];
    vec high[VEC], low[VEC], entropy_high[VEC], entropy_low[VEC];
    STORE(saved_maximum, maximum);
    STORE(target, apart);
    for (uint i = 0; i < VEC; i++) {
        best[i] = -1;
        if (i >= in->n) {
            high[i] = low[i] = entropy_high[i] = entropy_low[i] = (vec)(0);
            continue;
        }
        if (i % together == 0) {
            if (!from_statistics) find_maxima(in, i, together, maximum);
            const exp_scale scale = exp_scale_of(LOAD(maximum));
            STORE(scale.base, base);
            STORE(scale.q, q);
            STORE(scale.lowest, lowest);
        }
        const exp_scale own = { (lane)(base[i]), (lane)(q[i]), (lane)(lowest[i]) };
        __local real *row = values + i * in->classes;
        along_sums sums;
        if (fabs(maximum[i]) > MAX_NEAR) {
            sum_along(&sums, in, i, own, (uint)apart[i], maximum[i], wishes.keeps, true, row);
        } else {
            sum_along(&sums, in, i, own, (uint)apart[i], maximum[i], wishes.keeps, false, row);
        }
        high[i] = sums.others.high;
        low[i] = sums.others.low;
        entropy_high[i] = sums.entropy.high;
        entropy_low[i] = sums.entropy.low;
        if (wishes.best) best[i] = find_along(in, i, false, maximum[i]);
    }
    tile_sums s = empty_sums(LOAD(maximum));
    const bool has_low = in->classes >= (BLOCK_CLASSES + 1) * VEC; /* nothing is lost by the first addition */
    fold_along(&s.others, high, low, has_low);
    if (HAS_ENTROPY) fold_along(&s.entropy, entropy_high, entropy_low, has_low);
    if (wishes.best) s.best = LOAD(best);
    return s;
}

/* Of rows whose sum is NaN, the first class that is, where +inf - inf did not make it. */
static inline ilane find_nans_along(const tile_input *in, const ilane is_nan)
{
    integer search[VEC], at[VEC];
    STORE(is_nan, search);
    for (uint i = 0; i < VEC; i++) at[i] = i < in->n && search[i] != 0 ? find_along(in, i, true, 0) : -1;
    return LOAD(at);
}

/* The exponentials once more, of confident rows, without the one class that is the maximum. */
static inline lane sum_below_top(const tile_input *in, const row_result *r)
{
    const uint whole = in->classes - tail_of(in);
    real base[VEC], q[VEC], lowest[VEC], maximum[VEC];
    integer wanted[VEC];
    vec high[VEC], low[VEC];
    STORE(r->scale.base, base);
    STORE(r->scale.q, q);
    STORE(r->scale.lowest, lowest);
    STORE(r->maximum, maximum);
    STORE(r->confident, wanted);
    for (uint i = 0; i < VEC; i++) {
        const exp_scale own = { (lane)(base[i]), (lane)(q[i]), (lane)(lowest[i]) };
        long_sum sum = long_zero();
        for (uint c = 0; c < in->classes && i < in->n && wanted[i] != 0; c += VEC) {
            const uint at = c < whole ? c : in->classes - VEC, seen = c - at;
            const vec x = along_x(in, i, at);
            const vec e =
                x == (vec)(maximum[i]) || IOTA < (ivec)((integer)seen) ? (vec)(0) : exp_vector(x, own, true);
            sum = long_add(sum, e);
        }
        high[i] = sum.high;
        low[i] = sum.low;
    }
    long_sum all;
    fold_along(&all, high, low, true);
    return long_value(all);
}

#else
static inline lane tile_maximum(const tile_input *in)
{
    vec m0 = (vec)(-REAL_INFINITY), m1 = m0, m2 = m0, m3 = m0;
    uint c = 0;
    for (; c + 3 < in->classes; c += 4) {
        m0 = vec_max(m0, get_z(in, c));
        m1 = vec_max(m1, get_z(in, c + 1));
        m2 = vec_max(m2, get_z(in, c + 2));
        m3 = vec_max(m3, get_z(in, c + 3));
    }
    for (; c < in->classes; c++) m0 = vec_max(m0, get_z(in, c));
    return vec_max(vec_max(m0, m1), vec_max(m2, m3));
}

/* The exponentials of class c, 0 where it is the target; they are left behind, and what else is summed goes to b. */
INLINE vec add_class(const tile_input *in, tile_sums *b, const exp_scale scale, const ilane target,
                     const uint c, const bool far)
{
    const vec z = get_z(in, c);
    const vec e = exp_vector(z, scale, far);
    if (!INNER || in->brings_next) {
        PREFETCH(in->next + c * (INNER ? class_step(in->p) : VEC));
    } else if (!CACHED) {
        PREFETCH(in->x + (c + CLASSES_AHEAD) * class_step(in->p));
    }
    if (CACHED) STORE(e, in->values + (size_t)c * PITCH);
    const vec other = target == (ilane)((integer)c) ? (vec)(0) : e;
    const vec distance = (b->maximum > (lane)(-REAL_INFINITY) ? b->maximum : (lane)(0)) - z;
    if (HAS_ENTROPY) b->entropy = long_add(b->entropy, other == (vec)(0) ? (vec)(0) : other * distance);
    if (HAS_DENSE) {
        const vec a = dense_class(in, c);
        b->dense_nll = long_add(b->dense_nll, a == (vec)(0) ? (vec)(0) : a * distance);
        b->dense_weight = long_add(b->dense_weight, a);
    }
    return other;
}

/* Of the classes [c, min(c + 4, end)), of which there may be none. */
INLINE vec add_four(const tile_input *in, tile_sums *b, const exp_scale scale, const ilane target,
                    const uint c, const uint end, const bool far)
{
    vec sum = (vec)(0);
    if (c + 3 < end) {
        const vec first = add_class(in, b, scale, target, c, far);
        const vec second = add_class(in, b, scale, target, c + 1, far);
        const vec third = add_class(in, b, scale, target, c + 2, far);
        const vec fourth = add_class(in, b, scale, target, c + 3, far);
        return (first + second) + (third + fourth);
    }
    for (uint k = c; k < end; k++) sum += add_class(in, b, scale, target, k, far);
    return sum;
}

INLINE void sum_classes(const tile_input *in, tile_sums *s, const exp_scale scale, const ilane target,
                        const uint begin, const uint end, const bool far)
{
    tile_sums b = empty_sums(s->maximum);
    UNROLL_ALONE
    for (uint i = 0; i < BLOCK_CLASSES; i += 4) {
        b.others = long_add(b.others, add_four(in, &b, scale, target, begin + i, end, far));
    }
    s->others = long_merge(s->others, b.others);
    if (HAS_ENTROPY) s->entropy = long_merge(s->entropy, b.entropy);
    if (HAS_DENSE) {
        s->dense_nll = long_merge(s->dense_nll, b.dense_nll);
        s->dense_weight = long_merge(s->dense_weight, b.dense_weight);
    }
}

/* Where the tile does not stay on chip, it is read once for maximum and sums together. */
static inline void raise_maximum(tile_sums *s, const lane maximum)
{
    const ilane first = s->maximum == (lane)(-REAL_INFINITY);
    const ilane same = s->maximum == maximum;
    const lane rescale = exp_rescale(exp_scale_of(s->maximum), exp_scale_of(maximum));
    const lane factor = first || same ? (lane)(1) : rescale;
    const lane step = first || same ? (lane)(0) : maximum - s->maximum;
    if (HAS_ENTROPY) {
        s->entropy = long_times(long_add(s->entropy, long_value(s->others) * step), factor);
    }
    if (HAS_DENSE) s->dense_nll = long_add(s->dense_nll, long_value(s->dense_weight) * step);
    s->others = long_times(s->others, factor);
    s->maximum = maximum;
}

/* maximum: saved, or as fill_tile() found it of x, which is z unless HAS_Z. */
static inline tile_sums sum_tile(const tile_input *in, const ilane target, const bool from_statistics,
                                 const lane maximum)
{
    tile_sums s = empty_sums((lane)(-REAL_INFINITY));
    if (from_statistics || FILL_FINDS_MAXIMUM) {
        s.maximum = maximum;
    } else if (CACHED) {
        s.maximum = tile_maximum(in);
    }
    exp_scale scale = exp_scale_of(s.maximum);
    bool is_far = ANY_LANE(fabs(s.maximum) > (lane)(MAX_NEAR));
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        if (!CACHED && !from_statistics) {
            lane m = s.maximum;
            for (uint c = begin; c < end; c++) m = vec_max(m, get_z(in, c));
            raise_maximum(&s, m);
            scale = exp_scale_of(m);
            is_far = ANY_LANE(fabs(m) > (lane)(MAX_NEAR));
        }
        if (!SUMS_PLAINLY || is_far) {
            sum_classes(in, &s, scale, target, begin, end, true);
        } else {
            sum_classes(in, &s, scale, target, begin, end, false);
        }
    }
    return s;
}
#endif

#if !ALONG
/* The first NaN and the first maximum of logit_scale * x. */
static inline void find_best(const tile_input *in, tile_sums *s)
{
    lane top = (lane)(-REAL_INFINITY);
    s->best = (ilane)(0);
    s->nan_at = (ilane)(-1);
    for (uint c = 0; c < in->classes; c++) {
        const vec v = softcap_vector_s(get_x(in, c), in->o);
        const ilane here = (ilane)((integer)c);
        const ilane better = v > top;
        s->best = better ? here : s->best;
        top = better ? v : top;
        s->nan_at = v != v && s->nan_at < (ilane)(0) ? here : s->nan_at;
    }
}

static inline lane sum_below_top(const tile_input *in, const row_result *r)
{
    const lane top = exp_lane(r->maximum, r->scale, true);
    long_sum sum = long_zero();
    for (uint begin = 0; begin < in->classes; begin += BLOCK_CLASSES) {
        const uint end = min(begin + BLOCK_CLASSES, in->classes);
        vec others = (vec)(0);
        for (uint c = begin; c < end; c++) {
            const vec e =
                CACHED ? LOAD(in->values + (size_t)c * PITCH) : exp_vector(get_z(in, c), r->scale, true);
            others += e == top ? (vec)(0) : e; /* more than half of the sum: there is one such class */
        }
        sum = long_merge(sum, (long_sum){ others, (vec)(0) });
    }
    return long_value(sum);
}
#endif
