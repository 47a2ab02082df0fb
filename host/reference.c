/* SPDX-License-Identifier: MIT
 *
 * reference.c - the oracle: every operation, option, dtype and layout of clxent.h, in double, row by row.
 *
 * Written to be compared with the formulas at the top of clxent.h, not to be fast. Where double alone would
 * lose what the contract promises, the loss is avoided in the open: long sums are compensated, exp(z - m)
 * is corrected by the rounding of z - m, and 1 - p is never formed by subtracting from 1.
 *
 * The options of desc are doubles, but a plan computes with them as acc_t (f32 unless the logits are
 * f64). The reference rounds them the same way first, so that this rounding is part of the problem, not of
 * the error. Likewise logit_scale * x overflows to infinity where it does in acc_t.
 */
#include <clxent/reference.h>

#include "internal.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Error bounds ------------------------------------------------------------------------- */

/* All bounds are absolute and counted in u, the rounding unit of acc_t: 2^-24 for f32, 2^-53 for f64. Write
 *
 *     delta_j = m - z_j      L = log sum_exp      Z = the largest |z_k| that matters (delta_k < 110, f64: 750)
 *     X_j     = 0, or argument * max(Z, |z_j|) with a logit_scale, cap_argument with a softcap: z itself is rounded then, and
 *               what moves the exponents by that much moves the exponentials by that factor. In f64 twice:
 *               the oracle rounds z as often
 *     E_j     = exponential + delta_j + X_j
 *
 *   X            A product rounds z by u: 2 u of z_j and the maximum together, and 4 u leave room for a scale that is
 *                rounded itself. A softcap's quotient, tanh and product round by up to 6.2 u (every third f32 up to 20
 *                caps, of caps from 0.5 to 50: 4.4 to 6.2), twice that together.
 *   softmax      p_j * E_j. The exponential and the sum have a few roundings each (8 in all); delta_j is the
 *                rounding of z_j - m, which the exponential turns into a relative error.
 *   lse          |lse| + lse * L + lse_floor + argument * Z: the sum m + L rounds to half an ulp of itself (in
 *                f64 the oracle's does as well: twice), log is within an ulp (2 u L), and the relative error
 *                of sum_exp, an exponential's 2 u and the sum's, is an absolute one of L. (2 max(|m|, L) + 1 would
 *                be used up by the first rounding where m and L are alike: 4.9 u was seen at m = 1.24, L = 1.45.)
 *   log_softmax  log_floor + 2 delta_j + log * L + X_j + argument * Z: delta_j rounds when subtracted and
 *                when L is added, log is within 3 ulps, and sum_exp's relative error (as in softmax) is L's
 *                absolute one.
 *   row loss     loss * (delta_j + L) for each |a_j|: relative to the sum of its terms, because log1p(sum
 *                over the others) keeps L's relative precision. 2 (1 - p_j) X_j: z_j moves itself and, by
 *                sum p_k X_k, lse. The z-loss term adds its own relative error and the absolute one of lse,
 *                2 |lse| times: lse may be near 0 where m and L are not.
 *   gradient     E_j * p_j * (sum |a_k| + 2 |z_loss * lse|) + exponential * |a_j| + 2 z_loss p_j times the
 *                bound of lse, times the outer factors. delta_j does not multiply |a_j|: only p_j has an
 *                exponent. The target of a one-hot row without smoothing is -(sum of the others) / sum_exp instead:
 *                its error is that of the others, sum p_k * E_k, however small. In f64 twice, as the
 *                oracle rounds as often.
 *   row grads    grad_lse k and grad_entropy h add p_j * (k + h * (delta_j - D)), D = sum p_i delta_i: E_j * p_j * (|k| +
 *                |h| * (delta_j + D + L)). The exponential's 8 u hold the roundings of delta_j, of D, whose terms have one
 *                sign, and of the sum; L, which the part itself has not, is what |log p_j| + H has more. Errors X of z
 *                move delta_j, and D by sum p_i X_i (1 + delta_i). In f64 twice. D may lack what the classes of V
 *                (below) add to it, W = sum p_i delta_i over these: |h| p_j W more.
 *   1 - tanh^2   of y = s / softcap, relative: slope + slope_argument * |y| tanh|y|. With t = exp(-2|y|) it is
 *                4 t / (1 + t)^2. An error of y, relative to y, is multiplied by its derivative, 2 |y| tanh|y|:
 *                s, 1 / softcap and their product round, and t's reduction by ln2 in one part adds 0.1 |y|,
 *                hence 7. Of the rest, t is within 2 u, and counts less the less y saturates; 1 + t and the
 *                quotient round, twice for the square, 3 u together wherever t lies in [0, 1]; and 3 products:
 *                8. It falls below the smallest normal number at |y| = 44 (f64: 355), and may be 0 from there.
 *                In f64 twice: the oracle rounds s, y, cosh, and two quotients.
 *   entropy      L + sum p_j delta_j: the bounds of log_softmax's L and, for each term, p_j's relative error
 *                E_j, delta_j's rounding and X_j, a product, and `sum` for adding up.
 *   loss         the row bounds added up, plus sum * the absolute row losses: the sum goes in blocks. The denominator as
 *                a sum of weights likewise; as a count it rounds once.
 *   probability loss    loss * sum |q_j log p_j|
 *   softmax backward    |p_j| * (backward * (|g_j| + sum |p_k g_k|))
 *   softmax gradient    product * |gradient|: one subtraction, one division, one product
 *
 * Linear cross-entropy. The logits are sums that the device rounds, in an order that is its own.
 *   - x of n terms h_f w_f, and a bias as one more: any order of summation, with fma or without, is within n u M of it, M the
 *     sum of the terms' sizes (Jeannerod and Rump 2013: no power of 1 + u is needed; an fma leaves a rounding out).
 *     R = u (n + terms) M, one rounding for the bias and one to spare; in f64 f64_terms, as the oracle rounds each product
 *     and the sum. A term may underflow, and so may a sum that cancels: 2 t for each term, and t times the other factor
 *     where a factor is subnormal and may be flushed, t as below.
 *   - e_j = |z(x') - z(x)| <= R_j |scale|, under a softcap times the largest slope within R_j. All e_j are `spare` larger, for
 *     the products of these errors with those of the arithmetic, which counts errors of the exact logits. Then
 *         |lse' - lse|   <= log sum p_k exp(e_k) = l              (downwards sum p_k e_k, which is less)
 *         |p'_j - p_j|   <= p_j (exp(e_j + l) - 1) <= p_j x exp(x) = gain_j, x = e_j + l
 *         |H' - H|       <= sum p_j exp(x) e_j (|delta_j - D| + e_j + sum gain_i (1 + delta_i)): H's slope on the way there
 *         |nll'_j - nll_j| <= log(p_j + sum over the others of p_k exp(e_k + e_j)): relative to 1 - p_j where p_j is near 1
 *     for errors of any size, and p_j exp(x) >= p'_j, so that gain_j also has what e_j moves in products with p'_j. gain_j
 *     joins p_j X_j, l joins argument * Z. Where l is beyond 100 nothing is known of a row, and its bounds are infinite.
 *   - The slope 1 - tanh(y)^2 moves by a factor of at most exp(2 d tanh(|y| + d)), d what y moves: its logarithm has the
 *     derivative -2 tanh(y).
 *   - A gradient is a sum of n terms D b whose D has an error d, with D the gradient of the logits:
 *     sum d |b| + u (n + terms) sum (|D| + d) |b|, and underflow as for x. What hidden_gradient is added to rounds once more.
 *     What weight_gradient and bias_gradient are added to is one more term, as parts of a batch add to it in turn.
 *   - Sums that may pass the largest number before they are done have infinite bounds.
 *
 * Underflow. Let t be the smallest normal number of real, 2^-126 or 2^-1022.
 *   - The device may flush a result below t to 0, or lose digits of it: its bound has t more. So have p_j and the
 *     slope as factors of the gradient, dz_j, and each a_j nll_j, times what multiplies them afterwards.
 *   - A class with exp(z_j - m) < 2 t may count as 0. The device holds the exponentials at a scale where the largest is
 *     2^-1/2 to 2^1/2, so those below sqrt(2) t may be 0 or lose digits. Where the others of a confident row add up to
 *     less than 2 t, the quotient that log1p starts from, half of theirs by sum_exp, may be 0. A sum that is rescaled as the
 *     maximum rises, and vanishes, consists of such classes only. Let V = sum p_k over these classes. Their loss moves
 *     log sum_exp, and with it each nll_j, by V, and the gradient of a one-hot target by V |a_y|. V is at most 2 t for each
 *     class: less than an ulp of any loss above classes * 2 t / u, 2e-27 for f32 and 4,099 classes. The floors in the
 *     bounds of lse, log_softmax and entropy exceed V.
 *
 * Storage narrower than real adds half an ulp at the value, and where value and bound together reach the storage's
 * overflow threshold, so that infinity is a correct rounding, the bound is infinite. */
static const struct {
    double exponential, argument, cap_argument, lse, lse_floor, log_floor, log, loss, slope, slope_argument,
        sum, backward, product, terms, f64_terms;
} ulps = {
    .exponential = 8,
    .argument = 4,
    .cap_argument = 12,
    .lse = 2,
    .lse_floor = 4,
    .log_floor = 8,
    .log = 4,
    .loss = 16,
    .slope = 8,
    .slope_argument = 7,
    .sum = 8,
    .backward = 8,
    .product = 4,
    .terms = 2,
    .f64_terms = 4,
};
static const double spare =
    1 + 0x1p-12; /* a row's arithmetic has relative errors below 2^-12: E_j < 4096 in f32 */

/* ---- Storage ------------------------------------------------------------------------------- */

/* Indexed by CLXENT_F32 .. CLXENT_F64. Magnitudes from overflow on round to infinity. */
static const struct format {
    int digits, min_exponent; /* of normal numbers: 1.xxx * 2^min_exponent is the smallest */
    double overflow;
} formats[] = {
    [CLXENT_F32] = { 24, -126, 0x1.ffffffp127 },
    [CLXENT_F16] = { 11, -14, 65520.0 },
    [CLXENT_BF16] = { 8, -126, 0x1.ffp127 },
    [CLXENT_F64] = { 53, -1022, INFINITY },
};

/* The fields of an IEEE interchange format of 16 bits, widened to double bit by bit: exact, also for the
 * payload of a NaN, which a conversion by the hardware may change. */
static double decode(uint16_t bits, int mantissa_bits)
{
    const int exponent_bits = 15 - mantissa_bits;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const unsigned exponent = ((unsigned)bits & 0x7fffu) >> mantissa_bits;
    const unsigned mantissa = (unsigned)bits & ((1u << mantissa_bits) - 1u);
    const uint64_t sign = (uint64_t)(bits >> 15) << 63;
    double value;

    if (exponent == (1u << exponent_bits) - 1u) {
        const uint64_t wide = sign | UINT64_C(0x7ff) << 52 | (uint64_t)mantissa << (52 - mantissa_bits);
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    if (exponent == 0) value = ldexp((double)mantissa, 1 - bias - mantissa_bits);
    else value = ldexp((double)(mantissa | 1u << mantissa_bits), (int)exponent - bias - mantissa_bits);
    return sign != 0 ? -value : value;
}

/* Drops the lowest `drop` bits, 1 to 63 of them, rounding to nearest, ties to even. */
static uint64_t drop_bits(uint64_t bits, int drop)
{
    const uint64_t half = UINT64_C(1) << (drop - 1);
    return (bits + (half - 1) + (bits >> drop & 1u)) >> drop;
}

/* One rounding from double, never by way of float: rounding twice is wrong at ties. */
static uint16_t encode(double value, int mantissa_bits)
{
    const int exponent_bits = 15 - mantissa_bits;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int drop = 52 - mantissa_bits;
    const uint64_t infinity = (UINT64_C(1) << 15) - (UINT64_C(1) << mantissa_bits);
    uint64_t bits, result;

    memcpy(&bits, &value, sizeof bits);
    const uint64_t sign = bits >> 63 << 15;
    bits &= ~(UINT64_C(1) << 63);
    const int exponent = (int)(bits >> 52) - 1023;
    const uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);

    if (isnan(value)) {
        const uint64_t payload = fraction >> drop;
        result = infinity | (payload != 0 ? payload : UINT64_C(1) << (mantissa_bits - 1));
    } else if (exponent > bias) {
        result = infinity;
    } else if (exponent >= 1 - bias) {
        /* A carry out of the fraction moves into the exponent, at the top into infinity: both are right. */
        result = drop_bits(bits - ((uint64_t)(1023 - bias) << 52), drop);
    } else {
        const int more = 1 - bias - exponent;
        result = more > 62 - drop ? 0 : drop_bits(fraction | UINT64_C(1) << 52, drop + more);
    }
    return (uint16_t)(sign | result);
}

uint16_t clxent_f16_from_double(double value) { return encode(value, 10); }

uint16_t clxent_bf16_from_double(double value) { return encode(value, 7); }

double clxent_f16_to_double(uint16_t bits) { return decode(bits, 10); }

double clxent_bf16_to_double(uint16_t bits) { return decode(bits, 7); }

static double load(const void *data, uint32_t dtype, size_t i)
{
    switch (dtype) {
    case CLXENT_F16: return decode(((const uint16_t *)data)[i], 10);
    case CLXENT_BF16: return decode(((const uint16_t *)data)[i], 7);
    case CLXENT_F64: return ((const double *)data)[i];
    default: return (double)((const float *)data)[i];
    }
}

/* Element (row, class) of a [rows / inner, classes, inner] tensor; stride 0 means no padding. */
static size_t element(const clxent_desc *desc, size_t stride, size_t row, size_t class)
{
    if (stride == 0) stride = desc->classes * desc->inner;
    return row / desc->inner * stride + class * desc->inner + row % desc->inner;
}

/* ---- Arithmetic ------------------------------------------------------------------------------ */

/* Neumaier's compensated sum: the error does not grow with the number of terms. */
struct sum {
    double total, carry;
};

static void sum_add(struct sum *sum, double term)
{
    const double total = sum->total + term;
    sum->carry += fabs(sum->total) >= fabs(term) ? (sum->total - total) + term : (term - total) + sum->total;
    sum->total = total;
}

/* After an infinity the carry is NaN and the total says it all. */
static double sum_value(struct sum sum) { return isfinite(sum.total) ? sum.total + sum.carry : sum.total; }

/* exp(z - m) without the rounding of z - m, which near z - m = -700 would cost 9 bits. */
static double exp_difference(double z, double m)
{
    const double difference = z - m;
    if (isinf(difference)) return 0;
    const double back = difference - z;
    const double lost = (z - (difference - back)) - (m + back);
    const double value = exp(difference);
    return value + value * lost;
}

/* ---- The problem ------------------------------------------------------------------------------- */

/* A sum of products a * b, with what its bound is made of. */
struct product {
    struct sum value;
    double size;  /* sum of (|a| + its error) |b| */
    double moved; /* by errors of a */
    double lost;  /* by underflow */
};

struct problem {
    const clxent_desc *desc;
    const clxent_host_args *in; /* what no result depends on is NULL */
    const clxent_reference_results *out;
    uint32_t asked; /* the outputs that out has room for */
    size_t rows, classes;
    uint32_t real; /* dtype of sums, weights, losses */
    bool reads_targets;
    bool moves_z;                         /* z is not x */
    double scale, cap, smoothing, z_loss; /* as real has them */
    double u, largest, smallest;          /* of real: rounding unit, largest and smallest normal number */
    double span;                          /* beyond it exp(-span) is 0 in real */
    double times;         /* 2 where the oracle rounds as often as the device, in f64; else 1 */
    double divisor;       /* the denominator, as used */
    double divisor_error; /* relative */
    bool no_divisor;      /* it is 0 */
    struct sum loss, loss_size, loss_bound;
    /* Work arrays, [classes] each. */
    double *z, *slope, *slope_bound, *e, *a, *a_size;
    /* Linear cross-entropy; else the errors are 0. [classes] each, see `ulps`: x, R_j, e_j, p_j (exp(e_j) - 1), gain_j, D_j, d_j. */
    double *x, *x_error, *z_error, *rise, *gain, *dx, *dx_bound;
    double *s; /* scaled x */
    bool linear;
    bool unknown;                                    /* nothing is known of the row's logits */
    double *hidden, *weight;                         /* [features], [classes, features] */
    struct product *of_hidden, *of_weight, *of_bias; /* [features], [classes, features], [classes] */
};

static double as_real(const struct problem *p, double value)
{
    return p->real == CLXENT_F64 ? value : (double)(float)value;
}

/* Turns the error of arithmetic in real into the bound of a stored result: see `ulps`. */
static double finish(const struct problem *p, uint32_t dtype, double want, double bound)
{
    const struct format *storage = &formats[dtype];
    const double tiny = p->real == CLXENT_F64 && dtype == CLXENT_F64 ? DBL_MIN : (double)FLT_MIN;

    if (!isfinite(want) || (want == 0 && bound == 0)) return 0;
    if (p->unknown) return INFINITY;
    if (p->real == CLXENT_F64) bound += p->u * fabs(want); /* want has been rounded to double itself */
    if (storage->digits < formats[p->real].digits) {
        const double magnitude = fabs(want) + bound;
        int exponent = storage->min_exponent;
        if (isfinite(magnitude) && magnitude > 0 && ilogb(magnitude) > exponent) exponent = ilogb(magnitude);
        bound += ldexp(1.0, exponent - storage->digits);
    }
    if (fabs(want) - bound < tiny) bound += tiny;
    return fabs(want) + bound >= storage->overflow ? INFINITY : bound;
}

static void put(double *values, double *bounds, size_t i, double value, double bound)
{
    if (values != NULL) values[i] = value;
    if (bounds != NULL) bounds[i] = bound;
}

/* ---- Targets ----------------------------------------------------------------------------------- */

enum row_status { COUNTED, IGNORED, BAD };

struct target_terms {
    enum row_status status;
    bool out_of_range;
    double row_weight;
    size_t target_row; /* where its target stands */
    int64_t target;    /* index targets: as stored */
    double weight;     /* what it adds to the denominator */
};

static int64_t load_target(const struct problem *p, size_t row)
{
    switch (p->desc->target_type) {
#define INDEX_TYPE(NAME, word, type)            \
    case CLXENT_TARGET_##NAME: {                \
        const type *data = p->in->targets.data; \
        return data[row];                       \
    }
#include "options.def"
    default: return -1; /* not reached: only index targets are loaded */
    }
}

static double load_probability(const struct problem *p, size_t row, size_t class)
{
    const clxent_desc *desc = p->desc;
    const uint32_t dtype = desc->target_type == CLXENT_TARGET_PROBABILITIES_F32 ? CLXENT_F32
                           : p->linear                                          ? p->real
                                                                                : desc->dtype;
    return load(p->in->targets.data, dtype, element(desc, desc->target_row_stride, row, class));
}

/* The order matters: a masked row's target is not looked at, and ignore_index may be out of range. */
static struct target_terms load_target_terms(const struct problem *p, size_t row)
{
    const clxent_desc *desc = p->desc;
    struct target_terms v = { COUNTED, false, 1.0, row, 0, 1.0 };

    if (!p->reads_targets) return v;
    if (desc->has_row_weights != 0) v.row_weight = load(p->in->row_weights.data, p->real, row);
    v.weight = v.row_weight;
    if (v.row_weight == 0 || desc->seq - row % desc->seq <= desc->shift) {
        v.status = IGNORED;
        return v;
    }
    v.target_row = row + desc->shift;
    if (!clxent_targets_are_indices(desc)) return v;

    v.target = load_target(p, v.target_row);
    if (desc->use_ignore_index != 0 && v.target == desc->ignore_index) {
        v.status = IGNORED;
    } else if (v.target < 0 || (uint64_t)v.target >= p->classes) {
        v.out_of_range = true;
        v.status = desc->bad_target == CLXENT_BAD_TARGET_IGNORE ? IGNORED : BAD;
    } else if (desc->has_class_weights != 0) {
        v.weight *= load(p->in->class_weights.data, p->real, (size_t)v.target);
    }
    return v;
}

/* The denominator, and what can be told from the targets alone. */
static void count_rows(struct problem *p)
{
    const clxent_desc *desc = p->desc;
    const bool weighted = desc->has_row_weights != 0 || desc->has_class_weights != 0;
    struct sum weights = { 0, 0 };
    double size = 0;
    uint64_t counted = 0;
    clxent_bad_targets bad = { 0, 0, 0 };

    for (size_t row = 0; row < p->rows; row++) {
        const struct target_terms v = load_target_terms(p, row);
        if (v.out_of_range && bad.count++ == 0) {
            bad.first_row = row;
            bad.value = v.target;
        }
        if (v.status != COUNTED) continue;
        counted++;
        sum_add(&weights, v.weight);
        size += fabs(v.weight);
    }

    const double denominator = sum_value(weights);
    const double error = p->u * (weighted ? (ulps.sum + 1) * size : denominator);
    p->divisor = 1;
    if (p->reads_targets && p->in->denominator.data != NULL) {
        p->divisor = load(p->in->denominator.data, p->real, 0);
    } else if (p->reads_targets && desc->reduction == CLXENT_REDUCTION_MEAN) {
        const double relative = error / fabs(denominator);
        p->divisor = denominator;
        if (denominator != 0) p->divisor_error = relative < 1 ? relative / (1 - relative) : INFINITY;
    }
    p->no_divisor = p->divisor == 0;
    put(p->out->computed_denominator, p->out->computed_denominator_bound, 0, denominator,
        finish(p, p->real, denominator, error));
    if (p->out->counted != NULL) *p->out->counted = counted;
    if (p->out->denominator != NULL) *p->out->denominator = p->divisor;
    if (p->out->bad_targets != NULL) *p->out->bad_targets = bad;
}

/* ---- Results shared by the operations ------------------------------------------------------------ */

/* Takes one row's loss. A row out of range counts as NaN, an ignored one as exactly 0. */
static void put_loss(struct problem *p, size_t row, double loss, double bound)
{
    bound = finish(p, p->real, loss, bound);
    put(p->out->losses, p->out->losses_bound, row, loss, bound);
    sum_add(&p->loss, loss);
    sum_add(&p->loss_size, fabs(loss));
    sum_add(&p->loss_bound, bound);
}

/* Takes one element of the gradient; adds it to what is there when desc accumulates. That of logits which nobody sees is kept
 * for take_products(). */
static void put_gradient(const struct problem *p, size_t row, size_t class, double gradient, double bound)
{
    const clxent_desc *desc = p->desc;
    const uint32_t dtype = clxent_gradient_dtype(desc);
    double want = gradient;

    if (p->linear) {
        put(p->dx, p->dx_bound, class, gradient, finish(p, p->real, gradient, bound));
        return;
    }
    if (desc->gradient_mode == CLXENT_GRADIENT_ACCUMULATE) {
        want += load(p->in->gradient.data, dtype, element(desc, desc->gradient_row_stride, row, class));
        if (gradient == 0 && bound == 0) {
            put(p->out->gradient, p->out->gradient_bound, row * p->classes + class, want, 0);
            return;
        }
        bound += p->u * fabs(want);
    }
    put(p->out->gradient, p->out->gradient_bound, row * p->classes + class, want,
        finish(p, dtype, want, bound));
}

/* grad_output / denominator of one row; a denominator of 0 makes the gradient 0. */
static double outer_factor(const struct problem *p, size_t row)
{
    double grad_output = 1;
    if (p->in->grad_output.data != NULL)
        grad_output =
            load(p->in->grad_output.data, p->real, p->desc->reduction == CLXENT_REDUCTION_NONE ? row : 0);
    return p->no_divisor ? 0 : grad_output / p->divisor;
}

static void put_reduced_loss(const struct problem *p)
{
    const double sum = sum_value(p->loss);
    double loss = sum / p->divisor;
    double bound = sum_value(p->loss_bound) + ulps.sum * p->u * sum_value(p->loss_size);

    bound = bound / fabs(p->divisor) + fabs(loss) * (p->divisor_error + p->u);
    if (p->no_divisor) {
        /* A bad row's NaN, or a NaN in the logits, is not hidden by the policy for a denominator of 0. */
        loss = p->desc->all_ignored == CLXENT_ALL_IGNORED_ZERO && !isnan(sum) ? 0 : NAN;
        bound = 0;
    }
    put(p->out->loss, p->out->loss_bound, 0, loss, finish(p, p->real, loss, bound));
}

/* ---- Cross-entropy ------------------------------------------------------------------------------- */

/* `argument` or `cap_argument` of a z of that size. */
static double moved(const struct problem *p, double z_size)
{
    const double moves = p->cap > 0 ? ulps.cap_argument : ulps.argument;
    return p->moves_z ? p->times * moves * z_size : 0;
}

struct row {
    size_t top;     /* the first maximum of z */
    int64_t argmax; /* the first NaN, else the first maximum; before the softcap, which is monotone */
    bool finite;    /* the maximum is: everything but lse is NaN otherwise */
    double max;
    double sum_excluding_max; /* of exp(z_j - max), over the classes other than top: sum_exp is 1 more */
    double vanishing;         /* V: the share of the classes that may count as 0, see `ulps` */
    double log_sum, lse, lse_bound;
    double z_size;              /* Z */
    double lse_moved;           /* l: by errors of the logits */
    double top_rise, rest_rise; /* sums of `rise`: of top, of the others */
};

/* Products and sums are taken as they come: 0 * inf is NaN. */
static void product_add(const struct problem *p, struct product *sum, double a, double a_error, double b)
{
    const double size = fabs(a) + a_error, other = fabs(b);

    sum_add(&sum->value, a * b);
    if (size == 0 || other == 0) return;
    sum->size += size * other;
    sum->moved += a_error * other;
    sum->lost += p->smallest * (2 + (size < p->smallest ? other : 0) + (other < p->smallest ? size : 0));
}

/* Its bound as a sum in real of n products; infinite where it may overflow on the way. */
static double product_bound(const struct problem *p, const struct product *sum, size_t n)
{
    const double roundings = (double)n + (p->real == CLXENT_F64 ? ulps.f64_terms : ulps.terms);
    const double rounded = p->u * roundings * sum->size;

    return sum->size + rounded < p->largest ? sum->moved + rounded + sum->lost : INFINITY;
}

/* x and R. */
static void load_linear_row(const struct problem *p, size_t index)
{
    const clxent_desc *desc = p->desc;
    const size_t stride = desc->hidden_row_stride != 0 ? desc->hidden_row_stride : desc->features;

    for (size_t f = 0; f < desc->features; f++)
        p->hidden[f] = load(p->in->hidden.data, desc->dtype, index * stride + f);
    for (size_t j = 0; j < p->classes; j++) {
        const double *weight = p->weight + j * desc->features;
        struct product x = { { 0, 0 }, 0, 0, 0 };
        for (size_t f = 0; f < desc->features; f++) product_add(p, &x, p->hidden[f], 0, weight[f]);
        if (desc->has_bias != 0) product_add(p, &x, load(p->in->bias.data, desc->dtype, j), 0, 1);
        p->x[j] = sum_value(x.value);
        p->x_error[j] = isfinite(p->x[j]) ? product_bound(p, &x, desc->features) : 0;
    }
}

/* R_j times the scale. */
static double scaled_move(const struct problem *p, size_t j)
{
    return p->scale == 0 || p->x_error[j] == 0 ? 0 : fabs(p->scale) * p->x_error[j] * spare;
}

/* dz/dx at s under a softcap, with its bound, and e_j. */
static void load_slope(struct problem *p, size_t j, double s)
{
    const double size = fabs(p->scale), y = fabs(s / p->cap), grown = cosh(y);
    const double flat = 1 / grown / grown; /* 1 - tanh^2 = 1 / cosh^2, without cancellation */
    double bound = 0;

    if (flat > 0) bound = p->u * flat * (ulps.slope + ulps.slope_argument * y * tanh(y));
    bound *= p->times;
    p->slope[j] = p->scale * flat;
    p->slope_bound[j] = size * bound;
    /* it may be flushed to 0 before it is scaled, and after that */
    if (size > 0 && fmin(1, size) * (flat - bound) < p->smallest)
        p->slope_bound[j] += fmax(1, size) * p->smallest;

    const double moves = scaled_move(p, j) / p->cap;
    if (moves == 0) return;
    const double least = cosh(fmax(0, y - moves));
    p->z_error[j] = moves * p->cap / least / least;
    /* fmin() passes over the NaN of a slope of 0 times infinity */
    p->slope_bound[j] += fmin(size * flat * expm1(2 * moves * tanh(y + moves)), size / least / least);
}

static double probability(const struct problem *p, const struct row *row, size_t j)
{
    return p->e[j] / (1 + row->sum_excluding_max);
}

/* 1 - p_j, which does not cancel where p_j is the largest. */
static double others_share(const struct problem *p, const struct row *row, size_t j)
{
    return (j == row->top ? row->sum_excluding_max : 1 + row->sum_excluding_max - p->e[j]) /
           (1 + row->sum_excluding_max);
}

/* What errors of the logits do to p and lse: `rise`, `gain`, l. */
static void move_row(struct problem *p, struct row *row)
{
    struct sum rest = { 0, 0 };

    for (size_t j = 0; j < p->classes; j++) {
        const double probable = probability(p, row, j), error = p->z_error[j];
        p->rise[j] =
            error < 1 ? probable * expm1(error) : exp(p->z[j] - row->max - row->log_sum + error) - probable;
        if (j == row->top) row->top_rise = p->rise[j];
        else sum_add(&rest, p->rise[j]);
    }
    row->rest_rise = sum_value(rest);
    row->lse_moved = log1p(row->top_rise + row->rest_rise);
    if (!(row->lse_moved <= 100)) p->unknown = true;
    for (size_t j = 0; j < p->classes; j++) {
        const double x = p->z_error[j] + row->lse_moved;
        p->gain[j] = p->z[j] == -INFINITY || p->unknown ? 0 : x * exp(p->z[j] - row->max - row->log_sum + x);
    }
}

/* What errors of the logits do to nll_j. */
static double moved_nll(const struct problem *p, const struct row *row, size_t j)
{
    const double error = p->z_error[j], together = error + row->lse_moved;

    if (!p->linear || p->z[j] == -INFINITY || error >= 1) return together;
    const double others =
        j == row->top ? row->rest_rise : row->top_rise + fmax(0, row->rest_rise - p->rise[j]);
    const double grown = expm1(error);
    return fmin(log1p((1 + grown) * others + grown * others_share(p, row, j)), together);
}

/* The error of the scaled logit that argmax compares. */
static double scaled_error(const struct problem *p, size_t j)
{
    const double error = scaled_move(p, j);
    return error > 0 && p->scale != 1 ? error + p->u * fabs(p->s[j]) + p->smallest : error;
}

/* The device's argmax may be each class that no other one exceeds for certain. */
static void put_allowed(const struct problem *p, size_t index, const struct row *row)
{
    double largest = -INFINITY, before = -INFINITY;

    for (size_t j = 0; j < p->classes; j++) largest = fmax(largest, p->s[j] - scaled_error(p, j));
    for (size_t j = 0; j < p->classes; j++) {
        const double most = p->s[j] + scaled_error(p, j);
        const bool close = !isnan(row->max) && (p->unknown || (most >= largest && most > before));
        p->out->argmax_allowed[index * p->classes + j] = close || (int64_t)j == row->argmax;
        before = fmax(before, p->s[j] - scaled_error(p, j));
    }
}

/* Whether the class may count as 0: it is one of V. */
static bool may_vanish(const struct problem *p, const struct row *row, size_t j)
{
    return p->e[j] < 2 * p->smallest * exp(fmin(p->z_error[j] + p->z_error[row->top], 700));
}

static void load_row(struct problem *p, size_t index, struct row *row)
{
    const clxent_desc *desc = p->desc;
    double best = 0;
    bool nan = false;

    *row = (struct row){ 0 };
    p->unknown = false;
    if (p->linear) load_linear_row(p, index);
    for (size_t j = 0; j < p->classes; j++) {
        const double x =
            p->linear ? p->x[j]
                      : load(p->in->logits.data, desc->dtype, element(desc, desc->row_stride, index, j));
        double s = -INFINITY;
        p->z[j] = -INFINITY;
        p->slope[j] = p->cap > 0 ? 0 : p->scale;
        p->slope_bound[j] = 0;
        p->z_error[j] = scaled_move(p, j);
        if (x != -INFINITY) {
            s = p->scale * x;
            if (isinf(as_real(p, s))) s = as_real(p, s);
            p->z[j] = s;
            if (p->cap > 0) {
                p->z[j] = p->cap * tanh(s / p->cap);
                load_slope(p, j, s);
            }
        }
        /* s in real: two logits that become equal there are a tie, as on the device. */
        p->s[j] = s = as_real(p, s);
        if (j == 0 || s > best || (isnan(s) && !isnan(best))) {
            row->argmax = (int64_t)j;
            best = s;
        }
        nan = nan || isnan(p->z[j]);
        if (p->z[j] > p->z[row->top]) row->top = j;
    }

    row->max = nan ? NAN : p->z[row->top];
    row->finite = isfinite(row->max);
    row->lse = row->max;
    if (!row->finite) return;

    struct sum rest = { 0, 0 }, vanishing = { 0, 0 };
    row->z_size = fabs(row->max);
    for (size_t j = 0; j < p->classes; j++) {
        p->e[j] = exp_difference(p->z[j], row->max);
        if (j != row->top) sum_add(&rest, p->e[j]);
        if (may_vanish(p, row, j)) sum_add(&vanishing, p->e[j]);
        if (row->max - p->z[j] < p->span && fabs(p->z[j]) > row->z_size) row->z_size = fabs(p->z[j]);
    }
    row->sum_excluding_max = sum_value(rest);
    row->vanishing = sum_value(vanishing) / (1 + row->sum_excluding_max);
    row->log_sum = log1p(row->sum_excluding_max);
    row->lse = row->max + row->log_sum;
    if (p->linear) move_row(p, row);
    row->lse_bound = p->u * (p->times * fabs(row->lse) + ulps.lse * row->log_sum + ulps.lse_floor +
                             moved(p, row->z_size)) +
                     row->lse_moved;
}

/* X_j: the error of z_j itself. */
static double argument_error(const struct problem *p, const struct row *row, size_t j)
{
    return moved(p, fmax(row->z_size, fabs(p->z[j])));
}

/* p_j * X_j, and gain_j. */
static double weighted_error(const struct problem *p, const struct row *row, size_t j)
{
    return probability(p, row, j) * argument_error(p, row, j) + p->gain[j] / p->u;
}

/* p_j * E_j; the exponential of -inf is 0 without error. */
static double probability_error(const struct problem *p, const struct row *row, size_t j)
{
    if (p->z[j] == -INFINITY) return 0;
    return probability(p, row, j) * (ulps.exponential + (row->max - p->z[j])) + weighted_error(p, row, j);
}

/* What p_j may lose by underflow: nothing, or all of it. */
static double underflow(const struct problem *p, const struct row *row, size_t j)
{
    const double left = probability(p, row, j) - p->u * probability_error(p, row, j);
    return p->z[j] != -INFINITY && left < p->smallest ? p->smallest : 0;
}

static void put_softmax(const struct problem *p, size_t index, const struct row *row)
{
    const clxent_reference_results *out = p->out;
    const uint32_t dtype = p->desc->dtype;

    for (size_t j = 0; j < p->classes; j++) {
        const size_t i = index * p->classes + j;
        double softmax = NAN, softmax_bound = 0, log_softmax = NAN, log_softmax_bound = 0;
        if (row->finite) {
            const double delta = row->max - p->z[j];
            softmax = probability(p, row, j);
            softmax_bound = p->u * probability_error(p, row, j) + underflow(p, row, j);
            log_softmax = -(delta + row->log_sum);
            log_softmax_bound = p->u * (ulps.log_floor + 2 * delta + ulps.log * row->log_sum +
                                        argument_error(p, row, j) + moved(p, row->z_size));
        }
        put(out->softmax, out->softmax_bound, i, softmax, finish(p, dtype, softmax, softmax_bound));
        put(out->log_softmax, out->log_softmax_bound, i, log_softmax,
            finish(p, dtype, log_softmax, log_softmax_bound));
    }
}

/* What errors of the logits do to H; distance: D. */
static double moved_entropy(const struct problem *p, const struct row *row, double distance)
{
    struct sum moves = { 0, 0 }, total = { 0, 0 };

    if (!p->linear) return 0;
    for (size_t j = 0; j < p->classes; j++)
        if (p->gain[j] != 0) sum_add(&moves, p->gain[j] * (1 + row->max - p->z[j]));
    for (size_t j = 0; j < p->classes; j++) {
        const double error = p->z_error[j], most = probability(p, row, j) + p->gain[j];
        if (most == 0 || error == 0) continue;
        sum_add(&total, most * error * (fabs(row->max - p->z[j] - distance) + error + sum_value(moves)));
    }
    return sum_value(total);
}

static void put_entropy(const struct problem *p, size_t index, const struct row *row)
{
    double entropy = NAN, bound = 0;
    if (row->finite) {
        struct sum terms = { 0, 0 }, errors = { 0, 0 };
        for (size_t j = 0; j < p->classes; j++) {
            const double delta = row->max - p->z[j], argument = argument_error(p, row, j);
            const double probable = probability(p, row, j);
            if (probable == 0) continue;
            sum_add(&terms, probable * delta);
            sum_add(&errors,
                    probable * (delta * (ulps.exponential + delta + argument + 2 + ulps.sum) + argument));
        }
        entropy = row->log_sum + sum_value(terms);
        bound = p->u * (ulps.log_floor + ulps.log * row->log_sum + entropy + sum_value(errors) +
                        moved(p, row->z_size)) +
                moved_entropy(p, row, sum_value(terms));
    }
    put(p->out->entropy, p->out->entropy_bound, index, entropy, finish(p, p->real, entropy, bound));
}

/* a_j, and its size where its two terms have opposite signs. */
static void load_targets(struct problem *p, const struct target_terms *v)
{
    const clxent_desc *desc = p->desc;
    const bool indices = clxent_targets_are_indices(desc);

    for (size_t j = 0; j < p->classes; j++) {
        const double q = !indices                  ? load_probability(p, v->target_row, j)
                         : (int64_t)j == v->target ? 1.0
                                                   : 0.0;
        const double weight =
            desc->has_class_weights != 0 ? load(p->in->class_weights.data, p->real, j) : 1.0;
        const double spread = p->smoothing / (double)p->classes;
        p->a[j] = weight * ((1 - p->smoothing) * q + spread);
        p->a_size[j] = fabs(weight) * ((1 - p->smoothing) * fabs(q) + spread);
    }
}

static void take_loss(struct problem *p, size_t index, const struct row *row, const struct target_terms *v)
{
    struct sum terms = { 0, 0 }, errors = { 0, 0 };
    double lost = 0; /* by underflow */

    if (!row->finite) {
        put_loss(p, index, NAN, 0);
        return;
    }
    for (size_t j = 0; j < p->classes; j++) {
        const double delta = row->max - p->z[j];
        const double nll = delta + row->log_sum;
        if (p->a[j] == 0) continue;
        sum_add(&terms, p->a[j] * nll);
        double error = ulps.loss * nll;
        error += 2 * others_share(p, row, j) * argument_error(p, row, j) + moved_nll(p, row, j) / p->u;
        if (nll > p->largest) error = INFINITY; /* overflows before a_j scales it down */
        sum_add(&errors, p->a_size[j] * error);
        lost += p->a_size[j] * row->vanishing;
        if (nll > 0 && p->a_size[j] * nll < p->smallest) lost += p->smallest;
    }
    if (p->z_loss > 0) {
        const double square = row->lse * row->lse;
        sum_add(&terms, p->z_loss * square);
        sum_add(&errors, square > p->largest
                             ? INFINITY
                             : p->z_loss * (ulps.loss * square +
                                            (2 * fabs(row->lse) + row->lse_bound) * row->lse_bound / p->u));
    }
    put_loss(p, index, v->row_weight * sum_value(terms),
             fabs(v->row_weight) * (p->u * sum_value(errors) + lost));
}

/* The gradient of h * entropy + k * lse, without the slope. */
struct row_grads {
    double of_lse, of_entropy;       /* k, h */
    double distance, distance_error; /* D; by errors of z, in u */
    double lost;                     /* what D may lose by underflow */
    bool finite;
};

static struct row_grads load_row_grads(const struct problem *p, size_t index, const struct row *row)
{
    const clxent_host_args *in = p->in;
    struct row_grads up = { 0, 0, 0, 0, 0, true };
    struct sum distance = { 0, 0 }, error = { 0, 0 }, lost = { 0, 0 };

    if (in->grad_lse.data != NULL) up.of_lse = load(in->grad_lse.data, p->real, index);
    if (in->grad_entropy.data != NULL) up.of_entropy = load(in->grad_entropy.data, p->real, index);
    for (size_t j = 0; row->finite && up.of_entropy != 0 && j < p->classes; j++) {
        const double probable = probability(p, row, j), delta = row->max - p->z[j];
        if (probable == 0 && p->gain[j] == 0) continue;
        sum_add(&distance, probable * delta);
        sum_add(&error, weighted_error(p, row, j) * (1 + delta));
        if (may_vanish(p, row, j)) sum_add(&lost, probable * delta);
    }
    up.lost = sum_value(lost);
    up.finite = isfinite(up.of_lse) && isfinite(up.of_entropy);
    up.distance = sum_value(distance);
    up.distance_error = sum_value(error);
    return up;
}

/* Of class j; its bound in *error. */
static double pull_of(const struct problem *p, const struct row *row, const struct row_grads *up, size_t j,
                      double *error)
{
    const double probable = probability(p, row, j), delta = row->max - p->z[j];
    const double size = fabs(up->of_lse) + fabs(up->of_entropy) * (delta + up->distance + row->log_sum);

    *error = 0;
    if ((up->of_lse == 0 && up->of_entropy == 0) || p->z[j] == -INFINITY) return 0;
    *error = probability_error(p, row, j) * size;
    if (p->moves_z || p->linear)
        *error +=
            fabs(up->of_entropy) * (weighted_error(p, row, j) +
                                    (probable + p->gain[j]) * (moved(p, row->z_size) + up->distance_error));
    *error =
        p->times * p->u * *error + underflow(p, row, j) * size + probable * fabs(up->of_entropy) * up->lost;
    if (probable == 0) return 0;
    const double pull = probable * (up->of_lse + up->of_entropy * (delta - up->distance));
    if (fabs(pull) - *error < p->smallest) *error += p->smallest;
    return pull;
}

/* The loss's part of a row that counts, and that of the gradients of entropy and lse of any. Returns whether the row has one at all. */
static bool take_gradient(const struct problem *p, size_t index, const struct row *row,
                          const struct target_terms *v)
{
    const struct row_grads up = load_row_grads(p, index, row);
    const bool counts = v->status == COUNTED, pulls = up.of_lse != 0 || up.of_entropy != 0;
    const bool one_hot = clxent_targets_are_indices(p->desc) && p->smoothing == 0;
    const double factor = v->row_weight * outer_factor(p, index);
    const double z_pull = 2 * p->z_loss * row->lse; /* times p_j: the gradient of the z-loss */
    struct sum a = { 0, 0 };
    double a_size = 0;

    for (size_t j = 0; j < p->classes; j++) {
        sum_add(&a, p->a[j]);
        a_size += p->a_size[j];
    }
    for (size_t j = 0; j < p->classes; j++) {
        if (v->status == BAD || ((counts || pulls) && !row->finite) || !up.finite) {
            put_gradient(p, index, j, NAN, 0);
            continue;
        }
        if (!counts && !pulls) {
            put_gradient(p, index, j, 0, 0);
            continue;
        }
        double pull_error;
        const double pull = pull_of(p, row, &up, j, &pull_error);
        if (!counts) {
            put_gradient(p, index, j, pull * p->slope[j],
                         pull_error * fabs(p->slope[j]) + p->slope_bound[j] * (fabs(pull) + pull_error));
            continue;
        }
        /* p_j * sum a - a_j = p_j * (sum over the others of a) - a_j * (1 - p_j): neither term cancels. */
        const double probable = probability(p, row, j);
        const double dz =
            probable * (sum_value(a) - p->a[j]) - p->a[j] * others_share(p, row, j) + z_pull * probable;

        double error;
        if (one_hot && (int64_t)j == v->target) {
            struct sum errors = { 0, 0 };
            for (size_t k = 0; k < p->classes; k++)
                if (k != j) sum_add(&errors, probability_error(p, row, k));
            error = sum_value(errors) * p->a_size[j];
        } else {
            error = probability_error(p, row, j) * a_size + ulps.exponential * p->a_size[j];
        }
        error += probability_error(p, row, j) * fabs(z_pull) +
                 2 * p->z_loss * (probable + p->gain[j]) * row->lse_bound / p->u;
        error = p->times * p->u * error + underflow(p, row, j) * (a_size + fabs(z_pull));
        if (one_hot && (int64_t)j == v->target) error += row->vanishing * p->a_size[j];
        if ((dz != 0 || error != 0) && fabs(dz) - error < p->smallest) error += p->smallest;

        const double gradient = dz * p->slope[j] * factor;
        double bound = (error * fabs(factor) + pull_error) * fabs(p->slope[j]);
        bound += p->slope_bound[j] * ((fabs(dz) + error) * fabs(factor) + fabs(pull) + pull_error);
        if (gradient != 0) bound += fabs(gradient) * p->divisor_error;
        put_gradient(p, index, j, gradient + pull * p->slope[j], bound);
    }
    return v->status == BAD || counts || pulls;
}

/* Writes one element of a product of the gradient of the logits; adds it to what is there when desc accumulates. */
static void put_product(const struct problem *p, clxent_tensor which, size_t row, size_t column,
                        const struct product *sum)
{
    const clxent_desc *desc = p->desc;
    const clxent_reference_results *out = p->out;
    const bool hidden = which == CLXENT_TENSOR_HIDDEN_GRADIENT, bias = which == CLXENT_TENSOR_BIAS_GRADIENT;
    const uint32_t own = hidden ? desc->hidden_gradient_dtype
                         : bias ? desc->bias_gradient_dtype
                                : desc->weight_gradient_dtype;
    const void *given = hidden ? p->in->hidden_gradient.data
                        : bias ? p->in->bias_gradient.data
                               : p->in->weight_gradient.data;
    const size_t columns = bias ? 1 : desc->features;
    const size_t step = hidden ? desc->hidden_gradient_row_stride
                        : bias ? 1
                               : desc->weight_gradient_row_stride;
    const uint32_t dtype = own != 0 ? own : desc->dtype;
    const bool nothing = sum_value(sum->value) == 0 && sum->size == 0;
    double want = sum_value(sum->value), bound = 0;
    struct product all = *sum;

    if (clxent_accumulates(desc, which) && given != NULL) {
        const double old = load(given, dtype, row * (step != 0 ? step : columns) + column);
        want += old;
        if (hidden) bound = p->u * fabs(want);
        else all.size += fabs(old);
    }
    bound += product_bound(p, &all, hidden ? p->classes : p->rows);
    bound = nothing ? 0 : finish(p, dtype, want, bound);
    if (hidden) put(out->hidden_gradient, out->hidden_gradient_bound, row * columns + column, want, bound);
    else if (bias) put(out->bias_gradient, out->bias_gradient_bound, row, want, bound);
    else put(out->weight_gradient, out->weight_gradient_bound, row * columns + column, want, bound);
}

/* What the gradient of the logits makes of a row: its hidden_gradient, and its terms of the others. What has no gradient does
 * not look at the hidden state, which may be NaN. */
static void take_products(const struct problem *p, size_t index, bool has_gradient)
{
    const size_t features = p->desc->features;

    memset(p->of_hidden, 0, features * sizeof *p->of_hidden);
    for (size_t j = 0; has_gradient && j < p->classes; j++) {
        for (size_t f = 0; f < features; f++) {
            product_add(p, &p->of_hidden[f], p->dx[j], p->dx_bound[j], p->weight[j * features + f]);
            product_add(p, &p->of_weight[j * features + f], p->dx[j], p->dx_bound[j], p->hidden[f]);
        }
        product_add(p, &p->of_bias[j], p->dx[j], p->dx_bound[j], 1);
    }
    for (size_t f = 0; f < features; f++)
        put_product(p, CLXENT_TENSOR_HIDDEN_GRADIENT, index, f, &p->of_hidden[f]);
}

static void put_products(struct problem *p)
{
    p->unknown = false;
    for (size_t j = 0; j < p->classes; j++) {
        for (size_t f = 0; f < p->desc->features; f++)
            put_product(p, CLXENT_TENSOR_WEIGHT_GRADIENT, j, f, &p->of_weight[j * p->desc->features + f]);
        put_product(p, CLXENT_TENSOR_BIAS_GRADIENT, j, 0, &p->of_bias[j]);
    }
}

/* Returns whether the row is one that counts and that argmax gets right. */
static bool cross_entropy_row(struct problem *p, size_t index, const struct target_terms *v)
{
    const bool gradient = (p->asked & CLXENT_GRADIENTS) != 0;
    struct row row;

    load_row(p, index, &row);
    if (p->out->argmax_allowed != NULL) put_allowed(p, index, &row);
    put(p->out->lse, p->out->lse_bound, index, row.lse, finish(p, p->real, row.lse, row.lse_bound));
    if (p->out->argmax != NULL) p->out->argmax[index] = row.argmax;
    if ((p->asked & (CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOG_SOFTMAX)) != 0) put_softmax(p, index, &row);
    if ((p->asked & CLXENT_OUTPUT_ENTROPY) != 0) put_entropy(p, index, &row);
    if (!p->reads_targets) return false;
    if (v->status != COUNTED) {
        const double nothing = v->status == BAD ? NAN : 0.0;
        put_loss(p, index, nothing, 0);
    } else {
        load_targets(p, v);
        take_loss(p, index, &row, v);
    }
    if (gradient) {
        const bool has_gradient = take_gradient(p, index, &row, v);
        if (p->linear) take_products(p, index, has_gradient);
    }
    return v->status == COUNTED && clxent_targets_are_indices(p->desc) && v->target == row.argmax;
}

/* ---- Building blocks ------------------------------------------------------------------------------- */

static double given_probability(const struct problem *p, size_t row, size_t class)
{
    const clxent_desc *desc = p->desc;
    return load(p->in->probabilities.data, desc->dtype,
                element(desc, desc->probabilities_row_stride, row, class));
}

static double given_label(const struct problem *p, const struct target_terms *v, size_t class)
{
    if (!clxent_targets_are_indices(p->desc)) return load_probability(p, v->target_row, class);
    return (int64_t) class == v->target ? 1.0 : 0.0;
}

static void softmax_backward_row(const struct problem *p, size_t row)
{
    const clxent_desc *desc = p->desc;
    struct sum dot = { 0, 0 };
    double size = 0;

    for (size_t j = 0; j < p->classes; j++) {
        p->a[j] =
            load(p->in->grad_output.data, desc->dtype, element(desc, desc->probabilities_row_stride, row, j));
        p->e[j] = given_probability(p, row, j);
        sum_add(&dot, p->e[j] * p->a[j]);
        size += fabs(p->e[j] * p->a[j]);
    }
    for (size_t j = 0; j < p->classes; j++)
        put_gradient(p, row, j, p->e[j] * (p->a[j] - sum_value(dot)),
                     p->u * ulps.backward * fabs(p->e[j]) * (fabs(p->a[j]) + size));
}

static void one_hot_row(const struct problem *p, size_t row, const struct target_terms *v)
{
    for (size_t j = 0; j < p->classes; j++)
        put(p->out->one_hot, NULL, row * p->classes + j,
            v->status == BAD                                  ? NAN
            : v->status == COUNTED && (int64_t)j == v->target ? 1.0
                                                              : 0.0,
            0);
}

static void probability_loss_row(struct problem *p, size_t row, const struct target_terms *v)
{
    struct sum terms = { 0, 0 };
    double size = 0;

    if (v->status != COUNTED) {
        put_loss(p, row, v->status == BAD ? NAN : 0, 0);
        return;
    }
    for (size_t j = 0; j < p->classes; j++) {
        const double q = given_label(p, v, j);
        if (q == 0) continue;
        const double term = q * -log(given_probability(p, row, j));
        sum_add(&terms, term);
        size += fabs(term);
    }
    put_loss(p, row, sum_value(terms), p->u * ulps.loss * size);
}

static void softmax_gradient_row(const struct problem *p, size_t row, const struct target_terms *v)
{
    const double factor = outer_factor(p, row);
    for (size_t j = 0; j < p->classes; j++) {
        if (v->status != COUNTED) {
            put_gradient(p, row, j, v->status == BAD ? NAN : 0, 0);
            continue;
        }
        const double gradient = (given_probability(p, row, j) - given_label(p, v, j)) * factor;
        put_gradient(p, row, j, gradient,
                     gradient == 0 ? 0 : fabs(gradient) * (ulps.product * p->u + p->divisor_error));
    }
}

/* ---- Entry ------------------------------------------------------------------------------------------- */

/* What comes from the targets alone is found whatever is asked for. */
static uint32_t outputs_asked(const clxent_reference_results *out)
{
    uint32_t asked = 0;
#define ASKED_BOUNDED(name) (out->name != NULL || out->name##_bound != NULL)
#define ASKED_EXACT(name) (out->name != NULL)
#define ASKED_INTEGER(name) (out->name != NULL)
#define ASKED_OPAQUE(name) false
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, file) \
    if (ASKED_##reference(name)) asked |= CLXENT_OUTPUT_##NAME;
#include "tensors.def"
    return clxent_outputs_of_rows(asked);
}

/* Checks one array; one that the outputs do not use becomes NULL, so that nothing reads it unchecked. */
static clxent_status check_input(const struct problem *p, uint32_t outputs, clxent_tensor which,
                                 const void **data, size_t bytes, char *text, size_t size)
{
    const char *name = clxent_tensor_name(which);
    clxent_need need;

    CLXENT_TRY(clxent_tensor_need(p->desc, outputs, false, p->rows, which, &need, text, size));
    if (need.use == CLXENT_UNUSED) *data = NULL;
    if (need.use == CLXENT_UNUSED || need.bytes == 0) return CLXENT_OK;
    if (*data == NULL)
        return need.use == CLXENT_OPTIONAL ? CLXENT_OK
                                           : clxent_fail_text(text, size, CLXENT_ERROR_NULL_ARGUMENT,
                                                              "%s is NULL: takes %s", name, need.shape);
    if (bytes < need.bytes)
        return clxent_fail_text(text, size, CLXENT_ERROR_BUFFER_TOO_SMALL,
                                "%s has %zu bytes: takes %zu for %s", name, bytes, need.bytes, need.shape);
    return CLXENT_OK;
}

static clxent_status check_inputs(const struct problem *p, clxent_host_args *in, uint32_t outputs, char *text,
                                  size_t size)
{
#define INPUT(name, NAME, ...) \
    CLXENT_TRY(check_input(p, outputs, CLXENT_TENSOR_##NAME, &in->name.data, in->name.size, text, size));
#include "tensors.def"
#define ADDED(name, NAME)                                                                            \
    if (clxent_accumulates(p->desc, CLXENT_TENSOR_##NAME)) {                                         \
        const void *old = in->name.data;                                                             \
        CLXENT_TRY(check_input(p, p->asked, CLXENT_TENSOR_##NAME, &old, in->name.size, text, size)); \
    }
    ADDED(gradient, GRADIENT)
    ADDED(hidden_gradient, HIDDEN_GRADIENT)
    ADDED(weight_gradient, WEIGHT_GRADIENT)
    ADDED(bias_gradient, BIAS_GRADIENT)
    return CLXENT_OK;
}

/* Those of linear cross-entropy. */
static bool take_arrays(struct problem *p)
{
    const clxent_desc *desc = p->desc;
    const size_t stride = desc->weight_row_stride != 0 ? desc->weight_row_stride : desc->features;

    p->hidden = calloc(desc->features, sizeof *p->hidden);
    p->weight = calloc(p->classes, desc->features * sizeof *p->weight);
    p->of_hidden = calloc(desc->features, sizeof *p->of_hidden);
    p->of_weight = calloc(p->classes, desc->features * sizeof *p->of_weight);
    p->of_bias = calloc(p->classes, sizeof *p->of_bias);
    if (p->hidden == NULL || p->weight == NULL || p->of_hidden == NULL || p->of_weight == NULL ||
        p->of_bias == NULL)
        return false;
    for (size_t j = 0; p->in->weight.data != NULL && j < p->classes; j++)
        for (size_t f = 0; f < desc->features; f++)
            p->weight[j * desc->features + f] = load(p->in->weight.data, desc->dtype, j * stride + f);
    return true;
}

static void compute(struct problem *p)
{
    uint64_t correct = 0;

    count_rows(p);
    for (size_t row = 0; p->asked != 0 && row < p->rows; row++) {
        const struct target_terms v = load_target_terms(p, row);
        switch (p->desc->op) {
        case CLXENT_OP_LINEAR_CROSS_ENTROPY:
        case CLXENT_OP_CROSS_ENTROPY: correct += cross_entropy_row(p, row, &v) ? 1u : 0u; break;
        case CLXENT_OP_SOFTMAX_BACKWARD: softmax_backward_row(p, row); break;
        case CLXENT_OP_ONE_HOT: one_hot_row(p, row, &v); break;
        case CLXENT_OP_PROBABILITY_LOSS: probability_loss_row(p, row, &v); break;
        default: softmax_gradient_row(p, row, &v); break;
        }
    }
    put_reduced_loss(p);
    if ((p->asked & (CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT)) != 0) put_products(p);
    if (p->out->correct != NULL) *p->out->correct = correct;
}

clxent_status clxent_reference_run(const clxent_desc *desc, const clxent_host_args *args,
                                   const clxent_reference_results *results, char *text, size_t size)
{
    clxent_desc own_desc;
    clxent_host_args in;
    clxent_reference_results out;
    struct problem p = { 0 };

    CLXENT_TRY(clxent_desc_check(desc, text, size));
    if (args == NULL || results == NULL)
        return clxent_fail_text(text, size, CLXENT_ERROR_NULL_ARGUMENT, "%s",
                                args == NULL ? "args is NULL: takes a clxent_host_args"
                                             : "results is NULL: takes a clxent_reference_results");
    CLXENT_TRY(clxent_struct_copy(CLXENT_STRUCT_DESC, &own_desc, desc, text, size));
    CLXENT_TRY(clxent_struct_copy(CLXENT_STRUCT_HOST_ARGS, &in, args, text, size));
    CLXENT_TRY(clxent_struct_copy(CLXENT_STRUCT_REFERENCE_RESULTS, &out, results, text, size));

    p.asked = outputs_asked(&out);
    if ((p.asked & ~own_desc.outputs) != 0)
        return clxent_fail_text(text, size, CLXENT_ERROR_INVALID_DESC,
                                "results asks for outputs 0x%" PRIx32
                                ": takes those of desc.outputs, 0x%" PRIx32,
                                p.asked, own_desc.outputs);
    /* Counts come from the targets alone, but take whatever desc says they depend on. */
    const bool counts = out.counted != NULL || out.denominator != NULL || out.bad_targets != NULL ||
                        out.computed_denominator != NULL || out.computed_denominator_bound != NULL;
    const uint32_t inputs = p.asked | (counts ? own_desc.outputs : 0);
    own_desc.outputs =
        inputs; /* a plan's runs need what any of its outputs does: here only these are asked for */

    p.desc = &own_desc;
    p.in = &in;
    p.out = &out;
    p.rows = own_desc.batch * own_desc.seq;
    p.classes = own_desc.classes;
    p.real = own_desc.dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
    p.reads_targets = clxent_needs_targets(&own_desc, inputs);
    const bool f64 = p.real == CLXENT_F64;
    p.u = ldexp(1.0, -formats[p.real].digits);
    p.largest = f64 ? DBL_MAX : (double)FLT_MAX;
    p.smallest = f64 ? DBL_MIN : (double)FLT_MIN;
    p.span = f64 ? 750 : 110;
    p.times = f64 ? 2 : 1;
    p.scale = as_real(&p, own_desc.logit_scale);
    p.cap = as_real(&p, own_desc.softcap);
    p.smoothing = as_real(&p, own_desc.label_smoothing);
    p.z_loss = as_real(&p, own_desc.z_loss);
    p.moves_z = p.scale != 1 || p.cap > 0;
    p.linear = own_desc.op == CLXENT_OP_LINEAR_CROSS_ENTROPY;
    CLXENT_TRY(check_inputs(&p, &in, inputs, text, size));

    double **const arrays[] = { &p.z,       &p.slope,   &p.slope_bound, &p.e,    &p.a,  &p.a_size,   &p.x,
                                &p.x_error, &p.z_error, &p.rise,        &p.gain, &p.dx, &p.dx_bound, &p.s };
    const size_t count = sizeof arrays / sizeof *arrays;
    p.z = calloc(p.classes, count * sizeof *p.z);
    const bool taken = p.z != NULL && (!p.linear || take_arrays(&p));
    if (taken) {
        for (size_t i = 1; i < count; i++) *arrays[i] = p.z + i * p.classes;
        compute(&p);
    }
    free(p.z);
    free(p.hidden);
    free(p.weight);
    free(p.of_hidden);
    free(p.of_weight);
    free(p.of_bias);
    if (!taken)
        return clxent_fail_text(text, size, CLXENT_ERROR_OUT_OF_HOST_MEMORY,
                                "no memory for %zu arrays of %zu classes and %zu features", count, p.classes,
                                own_desc.features);
    return CLXENT_OK;
}
