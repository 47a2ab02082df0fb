/* SPDX-License-Identifier: MIT
 *
 * test_reference.c - is the oracle right? Closed forms, finite differences, the results of another program
 * (golden/), each line of the truth table, exhaustive storage conversions, and whether its error bounds admit
 * careful f32 arithmetic and refuse careless one.
 */
#include "reference_inputs.h"

#include <clxent/reference.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- One small problem --------------------------------------------------------------------- */

enum { MAX_ROWS = 64, MAX_ELEMENTS = 8192, TEXT = 256 };

/* Results as doubles. A test sets desc first, then gives inputs. */
static struct fixture {
    clxent_desc desc;
    clxent_host_args args;
    double losses[MAX_ROWS], losses_bound[MAX_ROWS], loss[1], loss_bound[1], lse[MAX_ROWS],
        lse_bound[MAX_ROWS];
    double softmax[MAX_ELEMENTS], softmax_bound[MAX_ELEMENTS], log_softmax[MAX_ELEMENTS];
    double log_softmax_bound[MAX_ELEMENTS], gradient[MAX_ELEMENTS], gradient_bound[MAX_ELEMENTS];
    double entropy[MAX_ROWS], entropy_bound[MAX_ROWS], one_hot[MAX_ELEMENTS], divisor;
    int64_t argmax[MAX_ROWS];
    uint64_t correct, counted;
    clxent_bad_targets bad;
    char text[TEXT];
} w;

static void reset(void)
{
    memset(&w, 0, sizeof w);
    clxent_desc_init(&w.desc);
    clxent_host_args_init(&w.args);
}

static size_t rows(void) { return w.desc.batch * w.desc.seq; }

static void shape(uint32_t dtype, size_t batch, size_t seq, size_t classes)
{
    w.desc.dtype = dtype;
    w.desc.batch = batch;
    w.desc.seq = seq;
    w.desc.classes = classes;
    w.desc.outputs = possible_outputs(&w.desc) & ~CLXENT_OUTPUT_STATISTICS;
}

static void give(int tensor, const double *values) { give_values(&w.args, &w.desc, tensor, values); }

static void give_targets(const int64_t *values) { give_classes(&w.args, &w.desc, values); }

static void give_class_weights(const double *values)
{
    w.desc.has_class_weights = 1;
    give(TENSOR_CLASS_WEIGHTS, values);
}

static void give_row_weights(const double *values)
{
    w.desc.has_row_weights = 1;
    give(TENSOR_ROW_WEIGHTS, values);
}

static clxent_status try_run(void)
{
    clxent_reference_results out = CLXENT_REFERENCE_RESULTS_INIT;
#define GIVE(NAME, field)                        \
    if (w.desc.outputs & CLXENT_OUTPUT_##NAME) { \
        out.field = w.field;                     \
        out.field##_bound = w.field##_bound;     \
    }
    GIVE(LOSSES, losses)
    GIVE(LOSS, loss)
    GIVE(LSE, lse)
    GIVE(SOFTMAX, softmax)
    GIVE(LOG_SOFTMAX, log_softmax)
    GIVE(GRADIENT, gradient)
    GIVE(ENTROPY, entropy)
    if (w.desc.outputs & CLXENT_OUTPUT_ONE_HOT) out.one_hot = w.one_hot;
    if (w.desc.outputs & CLXENT_OUTPUT_ARGMAX) out.argmax = w.argmax;
    if (w.desc.outputs & CLXENT_OUTPUT_CORRECT) out.correct = &w.correct;
    out.counted = &w.counted;
    out.denominator = &w.divisor;
    out.bad_targets = &w.bad;
    return clxent_reference_run(&w.desc, &w.args, &out, w.text, sizeof w.text);
}

static void run(void)
{
    const clxent_status status = try_run();
    cr_assert_eq(status, CLXENT_OK, "status %d: %s", (int)status, w.text);
}

/* All by default but the shape and what the test has set in w.desc. */
static void solve(uint32_t dtype, size_t batch, size_t seq, size_t classes, const double *logits,
                  const int64_t *targets)
{
    shape(dtype, batch, seq, classes);
    give(TENSOR_LOGITS, logits);
    give_targets(targets);
    run();
}

static void one_row(uint32_t dtype, size_t classes, const double *logits, int64_t target)
{
    solve(dtype, 1, 1, classes, logits, &target);
}

/* |got - want| <= relative * |want| + absolute for each element; NaN and infinities exactly. */
static void check_close(const char *what, const char *name, const double *got, const double *want, size_t n,
                        double relative, double absolute)
{
    for (size_t i = 0; i < n; i++) {
        const bool same = (isnan(got[i]) && isnan(want[i])) || got[i] == want[i];
        const double error = fabs(got[i] - want[i]);
        cr_assert(same || error <= relative * fabs(want[i]) + absolute, "%s, %s[%zu]: got %.17g, want %.17g",
                  what, name, i, got[i], want[i]);
    }
}

static void check_one(const char *name, double got, double want, double relative)
{
    check_close("one value", name, &got, &want, 1, relative, 0);
}

static bool all(const double *values, size_t n, bool (*holds)(double))
{
    for (size_t i = 0; i < n; i++)
        if (!holds(values[i])) return false;
    return true;
}

static bool is_nan(double v) { return isnan(v); }

static bool is_zero(double v) { return v == 0; }

static bool is_finite(double v) { return isfinite(v); }

static double uniform(void) /* [-1, 1) */
{
    static random_state random = { 1 };
    return random_uniform(&random, -1, 1);
}

static const uint32_t dtypes[] = { CLXENT_F32, CLXENT_F16, CLXENT_BF16, CLXENT_F64 };
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

TestSuite(reference, .init = reset);

/* ---- Closed forms -------------------------------------------------------------------------- */

Test(reference, gives_softplus_for_two_classes)
{
    static const int64_t targets[] = { 0 };
    for (double gap = -700; gap <= 700; gap += 17.25) {
        const double logits[] = { 0.5, 0.5 + gap };
        const double other = 1 / (1 + exp(-gap)); /* softmax of the other class */
        solve(CLXENT_F64, 1, 1, 2, logits, targets);
        check_one("loss", w.losses[0], gap > 0 ? gap + log1p(exp(-gap)) : log1p(exp(gap)), 1e-15);
        check_one("softmax", w.softmax[1], other, 2e-15);
        check_one("gradient of the other", w.gradient[1], other, 2e-15);
        check_one("gradient of the target", w.gradient[0], -other, 2e-15);
    }
}

/* Of two classes whose logits are g apart, p = 1 / (1 + exp(-g)) is the share of the second: the entropy's derivative by g is
 * -g p (1 - p), that of lse by the second logit p. Neither is weighted or divided, nor does the target matter, while the
 * loss's part, of a sum divided by 8, is (p - 1) / 8 where the row counts. */
Test(reference, grad_entropy_and_grad_lse_add_their_parts)
{
    static const double h[] = { 0.75, -2, 0, 0 }, k[] = { 0, 3, -0.5, 0 }, divisor = 8, scale = 0.5;
    static const int64_t targets[] = { 1, -100, -100, -100 };

    for (double g = -60; g <= 60; g += 7.5) {
        double logits[8];
        for (int r = 0; r < 4; r++) logits[2 * r] = 1, logits[2 * r + 1] = 1 + g / scale;
        reset();
        w.desc.reduction = CLXENT_REDUCTION_SUM;
        w.desc.has_grad_entropy = w.desc.has_grad_lse = 1;
        w.desc.logit_scale = scale;
        shape(CLXENT_F64, 4, 1, 2);
        give(TENSOR_DENOMINATOR, &divisor);
        give(TENSOR_GRAD_ENTROPY, h);
        give(TENSOR_GRAD_LSE, k);
        solve(CLXENT_F64, 4, 1, 2, logits, targets);
        const double p = 1 / (1 + exp(-g)), q = 1 / (1 + exp(g));
        for (int r = 0; r < 4; r++) {
            const double of_loss = r == 0 ? q / divisor : 0, of_entropy = h[r] * g * p * q;
            const double want[] = { scale * (of_loss + of_entropy + k[r] * q),
                                    scale * (-of_loss - of_entropy + k[r] * p) };
            for (int j = 0; j < 2; j++) {
                const double got = w.gradient[2 * r + j], bound = w.gradient_bound[2 * r + j];
                cr_assert(fabs(got - want[j]) <=
                              1e-14 * (fabs(h[r] * g * p * q) + fabs(k[r]) * (j ? p : q) + q),
                          "g %g, row %d: got %g, want %g", g, r, got, want[j]);
                cr_assert(r == 3 ? got == 0 && bound == 0 : bound < 1e-12, "row %d: %g +- %g", r, got, bound);
            }
        }
    }
}

/* What grad_lse multiplies may not be finite: 0 does not look. */
Test(reference, a_grad_lse_of_0_leaves_rows_alone_that_do_not_count)
{
    static const double logits[] = { NAN, 1, NAN, 1, -INFINITY, -INFINITY, 2, -INFINITY, 2, 2 };
    static const double up[] = { 0, 1, -1, 1, 0 };
    static const int64_t targets[] = { -100, -100, -100, -100, 7 };
    static const double want[] = { 0, 0, NAN, NAN, NAN, NAN, 1, 0, NAN, NAN };

    w.desc.has_grad_lse = 1;
    w.desc.bad_target = CLXENT_BAD_TARGET_NAN;
    shape(CLXENT_F32, 5, 1, 2);
    give(TENSOR_GRAD_LSE, up);
    solve(CLXENT_F32, 5, 1, 2, logits, targets);
    check_close("grad_lse", "gradient", w.gradient, want, 10, 0, 0);
}

Test(reference, keeps_relative_precision_of_confident_rows)
{
    /* exp(-40) = 4e-18: 1 - p and log(1 + rest) would both be exactly 0. */
    static const double logits[] = { 12, 52, 11, 11 };
    static const int64_t targets[] = { 1 };
    const double rest = exp(-40) + 2 * exp(-41);

    for (int d = 0; d < DTYPES; d++) {
        solve(dtypes[d], 1, 1, 4, logits, targets);
        check_one("loss", w.losses[0], rest, 4e-16);
        check_one("gradient", w.gradient[1], -rest, 4e-16);
        check_one("entropy", w.entropy[0], 41 * exp(-40) + 2 * 42 * exp(-41), 4e-15);
        cr_assert(w.losses_bound[0] < 1e-5 * rest, "loss %g +- %g", w.losses[0], w.losses_bound[0]);
    }
}

/* 4,098 classes from -4 to 4 below one that rises from row to row. A device that takes every class below sqrt(2) times
 * the smallest normal number as 0 is within the bounds of loss and gradient; a loss that is larger than 1e-25, or as far
 * from underflow in f64, has the bound without those classes but for an ulp. */
Test(reference, bounds_admit_that_terms_underflow_and_stay_tight_elsewhere)
{
    enum { CLASSES = 4099, TOP = 7 };
    static double logits[CLASSES];
    static const int64_t targets[] = { TOP };

    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype += CLXENT_F64 - CLXENT_F32) {
        const int digits = dtype == CLXENT_F64 ? 53 : 24;
        const double smallest = dtype == CLXENT_F64 ? DBL_MIN : (double)FLT_MIN, u = ldexp(1, -digits);
        const double ordinary = dtype == CLXENT_F64 ? ldexp(1e-25, -1022 + 126) : 1e-25;
        bool lost_some = false, lost_all = false;
        for (int k = 0; k < 36; k++) {
            long double all = 0, kept = 0;
            for (int j = 0; j < CLASSES; j++) logits[j] = (double)(j * 1024 % CLASSES) / 512 - 4;
            logits[TOP] = 16 + 3 * k + (dtype == CLXENT_F64 && k > 4 ? 621 : 0);
            reset();
            shape(dtype, 1, 1, CLASSES);
            for (int j = 0; j < CLASSES; j++) {
                const long double e = j == TOP ? 0 : expl((long double)logits[j] - logits[TOP]);
                all += e;
                kept += e < sqrtl(2) * smallest ? 0 : e;
            }
            give(TENSOR_LOGITS, logits);
            give_targets(targets);
            run();
            const double loss = w.losses[0], bound = w.losses_bound[0];
            const double careful = (16 + (dtype == CLXENT_F64)) * u * loss;
            cr_assert(fabsl(log1pl(kept) - loss) <= bound, "dtype %u, %d: %g is off by more than %g",
                      (unsigned)dtype, k, loss, bound);
            cr_assert(fabsl(kept / (1 + kept) + w.gradient[TOP]) <= w.gradient_bound[TOP]);
            /* no more than all that may vanish, and a result that underflows itself */
            cr_assert(bound <= careful * (1 + 1e-9) + (CLASSES + 1) * 2 * smallest);
            if (loss > ordinary)
                cr_assert(bound <= careful + 2 * u * loss, "dtype %u, %d: loss %g, bound %g", (unsigned)dtype,
                          k, loss, bound);
            lost_some = lost_some || (kept > 0 && kept < all * (1 - 1e-3));
            lost_all = lost_all || kept == 0;
        }
        cr_assert(lost_some && lost_all);
    }
}

Test(reference, exponentials_are_not_hurt_by_the_rounding_of_z_minus_max)
{
    /* 0.1 - 700.3 is off by up to 2^-44, which the exponential would turn into 500 ulps. */
    static const double logits[] = { 0.1, -700.3, -650.7 };
    static const int64_t targets[] = { 0 };
    solve(CLXENT_F64, 1, 1, 3, logits, targets);
    check_one("softmax", w.softmax[1], (double)expl((long double)logits[1] - (long double)logits[0]), 1e-15);
    check_one("softmax", w.softmax[2], (double)expl((long double)logits[2] - (long double)logits[0]), 1e-15);
}

Test(reference, long_sums_lose_nothing)
{
    enum { CLASSES = 8000 };
    static double logits[CLASSES]; /* 0, and -0.7 for all others: equal roundings add up */
    static const int64_t targets[] = { 0 };
    for (int j = 1; j < CLASSES; j++) logits[j] = -0.7;
    solve(CLXENT_F64, 1, 1, CLASSES, logits, targets);
    const long double rest = (CLASSES - 1) * expl((long double)-0.7);
    check_one("loss", w.losses[0], (double)log1pl(rest), 3e-16);
    check_one("gradient", w.gradient[0], (double)(-rest / (1 + rest)), 3e-16);
    check_one("softmax", w.softmax[0], (double)(1 / (1 + rest)), 5e-16);
}

Test(reference, loses_nothing_to_a_shared_offset)
{
    /* Multiples of 2^-10, so that adding 2^20 is exact in f64, and of 1/16 in f32: same bits everywhere. */
    static const int64_t targets[] = { 1, 0 };
    double logits[10], shifted[10];
    struct fixture plain;

    for (int d = 0; d < DTYPES; d += 3) {
        const double unit = dtypes[d] == CLXENT_F64 ? 0x1p-10 : 0.25;
        for (int i = 0; i < 10; i++) {
            logits[i] = unit * round(40 * uniform());
            shifted[i] = logits[i] + 0x1p20;
        }
        shape(dtypes[d], 1, 2, 5);
        give_targets(targets);
        give(TENSOR_LOGITS, logits);
        run();
        plain = w;
        give(TENSOR_LOGITS, shifted);
        run();
        cr_assert(memcmp(plain.losses, w.losses, sizeof w.losses) == 0);
        cr_assert(memcmp(plain.softmax, w.softmax, sizeof w.softmax) == 0);
        cr_assert(memcmp(plain.gradient, w.gradient, sizeof w.gradient) == 0);
        cr_assert(memcmp(plain.entropy, w.entropy, sizeof w.entropy) == 0);
        cr_assert_neq(plain.lse[0], w.lse[0]);
    }
}

/* ---- Another program ----------------------------------------------------------------------- */

struct golden {
    const char *name;
    uint32_t dtype, target_type, reduction, bad_target, all_ignored, use_ignore;
    size_t batch, seq, classes, inner, padding, shift;
    int64_t ignore_index;
    uint64_t correct, counted;
    double smoothing, z_loss, scale, softcap, loss, divisor;
    const double *logits, *probabilities, *class_weights, *row_weights, *grad_output, *denominator, *old;
    const double *losses, *lse, *softmax, *gradient, *entropy;
    const int64_t *targets, *argmax;
};

static const struct golden golden[] = {
#include "golden/golden.inc"
};
enum { GOLDEN = sizeof golden / sizeof *golden };

static void check_golden(const struct golden *g)
{
    const size_t n = g->batch * g->seq;
    const size_t stride = g->padding > 0 ? g->classes * g->inner + g->padding : 0;

    reset();
    w.desc.target_type = g->target_type;
    w.desc.reduction = g->reduction;
    w.desc.bad_target = g->bad_target;
    w.desc.all_ignored = g->all_ignored;
    w.desc.ignore_index = g->ignore_index;
    w.desc.use_ignore_index = g->use_ignore;
    w.desc.shift = g->shift;
    w.desc.label_smoothing = g->smoothing;
    w.desc.z_loss = g->z_loss;
    w.desc.logit_scale = g->scale;
    w.desc.softcap = g->softcap;
    w.desc.inner = g->inner;
    w.desc.row_stride = w.desc.gradient_row_stride = w.desc.target_row_stride = stride;
    shape(g->dtype, g->batch, g->seq, g->classes);
    give(TENSOR_LOGITS, g->logits);
    if (g->targets != NULL) give_targets(g->targets);
    if (g->probabilities != NULL) give(TENSOR_TARGETS, g->probabilities);
    if (g->class_weights != NULL) give_class_weights(g->class_weights);
    if (g->row_weights != NULL) give_row_weights(g->row_weights);
    if (g->denominator != NULL) give(TENSOR_DENOMINATOR, g->denominator);
    if (g->grad_output != NULL) give(TENSOR_GRAD_OUTPUT, g->grad_output);
    if (g->old != NULL) {
        w.desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
        give(TENSOR_GRADIENT, g->old);
    }
    run();

    /* Both programs' own roundings; long double's at offset 1e6 is 5e-14 in the exponent. */
    const double slack = fabs(g->logits[0]) > 1e5 ? 2e-13 : 1e-14;
    check_close(g->name, "losses", w.losses, g->losses, n, 1e-14, slack);
    check_close(g->name, "lse", w.lse, g->lse, n, 1e-15, slack);
    check_close(g->name, "softmax", w.softmax, g->softmax, n * g->classes, slack, 0);
    check_close(g->name, "gradient", w.gradient, g->gradient, n * g->classes, 1e-14, slack);
    check_close(g->name, "entropy", w.entropy, g->entropy, n, 1e-14, slack);
    check_close(g->name, "denominator", &w.divisor, &g->divisor, 1, 1e-15, 0);
    if (g->reduction != CLXENT_REDUCTION_NONE)
        check_close(g->name, "loss", w.loss, &g->loss, 1, 1e-14, slack);
    for (size_t r = 0; r < n; r++)
        cr_assert_eq(w.argmax[r], g->argmax[r], "%s: argmax[%zu] is %lld", g->name, r,
                     (long long)w.argmax[r]);
    cr_assert_eq(w.correct, g->correct, "%s: correct is %llu", g->name, (unsigned long long)w.correct);
    cr_assert_eq(w.counted, g->counted, "%s: counted is %llu", g->name, (unsigned long long)w.counted);
}

/* Each option alone, then drawn together. */
Test(reference, agrees_with_numpy)
{
    cr_assert(GOLDEN >= 80);
    for (int i = 0; i < GOLDEN; i++) check_golden(&golden[i]);
}

/* ---- Derivatives and symmetries ------------------------------------------------------------ */

/* What the gradient is the gradient of. */
static double objective(const double *logits, const double *grad_output, const double *of_rows)
{
    double value = 0;
    give(TENSOR_LOGITS, logits);
    run();
    for (size_t r = 0; r < rows(); r++) {
        if (w.desc.has_grad_entropy) value += of_rows[r] * w.entropy[r];
        if (w.desc.has_grad_lse) value -= of_rows[r] * w.lse[r];
        if (w.desc.reduction == CLXENT_REDUCTION_NONE) value += grad_output[r] * w.losses[r] / w.divisor;
    }
    return w.desc.reduction == CLXENT_REDUCTION_NONE ? value : value + grad_output[0] * w.loss[0];
}

Test(reference, gradient_is_the_derivative_of_the_loss_for_every_option)
{
    enum { ROWS = 4, CLASSES = 3, N = ROWS * CLASSES, OPTIONS = 13 };
    static const int64_t targets[ROWS] = { 2, 0, -100, 1 };
    static const double denominator[] = { 2.5 };
    const double step = 1e-5;
    double logits[N], q[N], class_weights[CLASSES], row_weights[ROWS], grad_output[ROWS], of_rows[ROWS],
        against[ROWS], moved[N], gradient[N];

    for (unsigned on = 0; on < 1u << OPTIONS; on++) {
        for (unsigned reduction = 0; reduction < 3; reduction++) {
            if ((on * 3 + reduction) % 17 != 0 && (on & (on - 1)) != 0)
                continue; /* alone: all; combined: some */
            reset();
            for (int i = 0; i < N; i++) logits[i] = 3 * uniform();
            for (int i = 0; i < N; i++) q[i] = uniform();
            for (int i = 0; i < CLASSES; i++) class_weights[i] = 1.5 + uniform();
            for (int i = 0; i < ROWS; i++) row_weights[i] = 1.5 + uniform();
            for (int i = 0; i < ROWS; i++) grad_output[i] = on & 1u << 7 ? uniform() : 1.0;
            for (int i = 0; i < ROWS; i++) against[i] = -(of_rows[i] = uniform());
            /* a mask at a class that no row has as its target, of a row that counts and of one that does not */
            if (on & 1u << 12) logits[1] = logits[7] = -INFINITY;
            w.desc.reduction = reduction;
            if (on & 1u << 0) w.desc.label_smoothing = 0.2;
            if (on & 1u << 1) w.desc.z_loss = 0.1;
            if (on & 1u << 2) w.desc.logit_scale = -0.7;
            if (on & 1u << 3) w.desc.softcap = 2;
            if (on & 1u << 4) w.desc.target_type = CLXENT_TARGET_PROBABILITIES_LOGITS;
            if (on & 1u << 8) w.desc.shift = 1;
            if (on & 1u << 9) w.desc.inner = 2;
            w.desc.has_grad_entropy = on >> 10 & 1u;
            w.desc.has_grad_lse = on >> 11 & 1u;
            if ((on & 1u << 12) != 0 && (on & (1u << 0 | 1u << 4 | 1u << 8)) != 0)
                continue; /* infinite losses */
            shape(CLXENT_F64, 2, 2, CLASSES);
            give(TENSOR_GRAD_ENTROPY, of_rows);
            give(TENSOR_GRAD_LSE, against);
            if (on & 1u << 4) give(TENSOR_TARGETS, q);
            else give_targets(targets);
            if (on & 1u << 5) give_class_weights(class_weights);
            if (on & 1u << 6) give_row_weights(row_weights);
            if (on & 1u << 7) {
                give(TENSOR_GRAD_OUTPUT, grad_output);
                give(TENSOR_DENOMINATOR, denominator);
            }
            objective(logits, grad_output, of_rows);
            memcpy(gradient, w.gradient, sizeof gradient);
            for (int i = 0; i < N; i++) {
                if (logits[i] == -INFINITY) continue;
                memcpy(moved, logits, sizeof moved);
                moved[i] = logits[i] + step;
                const double up = objective(moved, grad_output, of_rows);
                moved[i] = logits[i] - step;
                const double down = objective(moved, grad_output, of_rows);
                /* Truncation step^2 f'''/6 and rounding 2^-53 |f| / step are both about 1e-10. */
                const double slope = (up - down) / (2 * step);
                cr_assert(fabs(slope - gradient[i]) <= 5e-9,
                          "options 0x%x, reduction %u, element %d: %.12g, not %.12g", on, reduction, i,
                          gradient[i], slope);
            }
        }
    }
}

/* ---- The truth table ----------------------------------------------------------------------- */

/* Stand for any such number. */
#define FINITE 12345.0
#define ABOVE_0 12346.0
#define BELOW_0 12347.0

static bool is_as(double got, double want)
{
    if (want == FINITE) return isfinite(got);
    if (want == ABOVE_0 || want == BELOW_0)
        return isfinite(got) && (got > 0) == (want == ABOVE_0) && got != 0;
    return isnan(want) ? isnan(got) : got == want || fabs(got - want) <= 1e-15 * fabs(want);
}

#define INF INFINITY
#define MORE ABOVE_0
#define LESS BELOW_0
static const struct line {
    const char *name;
    size_t classes;
    double logits[4];
    int64_t target;
    double loss, lse, gradient[4];
    int64_t argmax;
    double smoothing, softcap;
    unsigned unweighted; /* bits of the classes of weight 0, where the others have weight 1 */
} lines[] = {
    { "a masked class", 3, { 1, -INF, 2 }, 0, 1.3132616875182228, FINITE, { LESS, 0, MORE }, .argmax = 2 },
    { "a masked target", 3, { 1, -INF, 1 }, 1, INF, 1.6931471805599453, { 0.5, -1, 0.5 }, .argmax = 0 },
    { "smoothing, mask", 3, { 1, -INF, 2 }, 0, INF, FINITE, { LESS, LESS, MORE }, 2, .smoothing = 0.1 },
    /* an infinite term of weight 0 */
    { "mask of weight 0", 3, { 1, -INF, 2 }, 0, FINITE, FINITE, { LESS, 0, MORE }, 2, 0.1, .unweighted = 2 },
    { "all masked", 3, { -INF, -INF, -INF }, 0, NAN, -INF, { NAN, NAN, NAN }, .argmax = 0 },
    { "+inf, target 0", 3, { 1, INF, -INF }, 0, NAN, INF, { NAN, NAN, NAN }, .argmax = 1 },
    { "+inf, target 1", 3, { 1, INF, -INF }, 1, NAN, INF, { NAN, NAN, NAN }, .argmax = 1 },
    { "+inf, target 2", 3, { 1, INF, -INF }, 2, NAN, INF, { NAN, NAN, NAN }, .argmax = 1 },
    { "NaN, +inf", 4, { INF, 1, NAN, NAN }, 1, NAN, NAN, { NAN, NAN, NAN, NAN }, 2, .unweighted = 12 },
    /* z of +inf is the cap, finite; a mask stays a mask. The cap is flat at both. */
    { "softcap", 3, { INF, 0, -INF }, 1, 2.1269280110429727, FINITE, { 0, LESS, 0 }, 0, .softcap = 2 },
    { "softcap, masked target", 3, { INF, 0, -INF }, 2, INF, FINITE, { 0, MORE, 0 }, 0, .softcap = 2 },
};

static void check_line(const struct line *l, uint32_t dtype)
{
    double weights[4];

    for (unsigned j = 0; j < 4; j++) weights[j] = (l->unweighted >> j & 1u) == 0;
    reset();
    w.desc.label_smoothing = l->smoothing;
    w.desc.softcap = l->softcap;
    shape(dtype, 1, 1, l->classes);
    if (l->unweighted != 0) give_class_weights(weights);
    one_row(dtype, l->classes, l->logits, l->target);
    cr_assert(is_as(w.losses[0], l->loss) && is_as(w.loss[0], l->loss), "%s: loss %g", l->name, w.losses[0]);
    cr_assert(is_as(w.lse[0], l->lse), "%s: lse %g", l->name, w.lse[0]);
    cr_assert(is_as(w.entropy[0], isfinite(l->lse) ? FINITE : NAN), "%s: entropy %g", l->name, w.entropy[0]);
    cr_assert_eq(w.argmax[0], l->argmax, "%s: argmax %d", l->name, (int)w.argmax[0]);
    for (size_t j = 0; j < l->classes; j++) {
        const bool masked = l->logits[j] == -INF;
        const double p = w.softmax[j], log_p = w.log_softmax[j], bound = w.gradient_bound[j];
        cr_assert(is_as(w.gradient[j], l->gradient[j]), "%s: gradient[%zu] is %g", l->name, j, w.gradient[j]);
        if (l->gradient[j] == 0)
            cr_assert(masked ? bound == 0 : dtype == CLXENT_F16 || bound < 4 * (double)FLT_MIN,
                      "%s: bound %g", l->name, bound);
        if (!isfinite(l->lse)) cr_assert(isnan(p) && isnan(log_p), "%s: softmax[%zu] is %g", l->name, j, p);
        else if (masked) cr_assert(p == 0 && w.softmax_bound[j] == 0 && log_p == -INF, "%s", l->name);
        else cr_assert(p > 0 && p < 1 && isfinite(log_p), "%s: softmax[%zu] is %g", l->name, j, p);
    }
}

Test(reference, rows_that_are_not_finite_follow_the_truth_table)
{
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        for (int d = 0; d < DTYPES; d++) check_line(&lines[i], dtypes[d]);
}

Test(reference, ignored_rows_are_exactly_zero_whatever_they_hold)
{
    static const double logits[] = { NAN, 1, INFINITY, 2, -INFINITY, -INFINITY, 1, 2, 3, 1 };
    static const double row_weights[] = { 1, 0, 1, 0, 1 };
    static const int64_t targets[] = { -100, 77, -100, 1, 1 };
    static const double grad_output[] = { NAN, INFINITY, 1, 1, 1 };

    for (int d = 0; d < DTYPES; d++) {
        reset();
        w.desc.reduction = CLXENT_REDUCTION_NONE;
        shape(dtypes[d], 5, 1, 2);
        give(TENSOR_LOGITS, logits);
        give_targets(targets);
        give_row_weights(row_weights);
        give(TENSOR_GRAD_OUTPUT, grad_output);
        run();
        cr_assert(all(w.losses, 4, is_zero) && all(w.losses_bound, 4, is_zero) && w.losses[4] > 2);
        cr_assert(all(w.gradient, 8, is_zero) && all(w.gradient_bound, 8, is_zero) && w.gradient[8] > 0.5);
        cr_assert(isnan(w.lse[0]) && w.lse[1] == INFINITY && w.lse[2] == -INFINITY && isfinite(w.lse[3]));
        cr_assert(all(w.softmax, 6, is_nan) && all(w.softmax + 6, 4, is_finite));
        cr_assert(isnan(w.entropy[0]) && w.entropy[3] > 0);
        cr_assert(w.argmax[0] == 0 && w.argmax[1] == 0 && w.argmax[3] == 1);
        cr_assert_eq(w.counted, 1);
        cr_assert_eq(w.correct, 0);
        cr_assert_eq(w.bad.count, 0, "the target of a masked row is not looked at");
    }
}

Test(reference, leading_block_of_minus_infinities_changes_nothing)
{
    enum { BLOCK = 2500 };
    static double logits[BLOCK + 3];
    static const double tail[] = { 0.5, -1.25, 3 };
    struct fixture plain;

    for (int i = 0; i < BLOCK; i++) logits[i] = -INFINITY;
    memcpy(logits + BLOCK, tail, sizeof tail);
    one_row(CLXENT_F32, 3, tail, 1);
    plain = w;
    one_row(CLXENT_F32, BLOCK + 3, logits, BLOCK + 1);
    cr_assert(w.losses[0] == plain.losses[0] && w.lse[0] == plain.lse[0] && w.entropy[0] == plain.entropy[0]);
    cr_assert(memcmp(w.gradient + BLOCK, plain.gradient, 3 * sizeof(double)) == 0);
    cr_assert(all(w.gradient, BLOCK, is_zero));
}

Test(reference, one_class_has_no_loss_and_no_gradient)
{
    static const double logits[] = { -7.5, 0, 1000 };
    static const int64_t targets[] = { 0, 0, 0 };
    for (int d = 0; d < DTYPES; d++) {
        solve(dtypes[d], 3, 1, 1, logits, targets);
        cr_assert(all(w.losses, 3, is_zero) && all(w.gradient, 3, is_zero) && all(w.entropy, 3, is_zero));
        check_close("one class", "lse", w.lse, logits, 3, 0, 0);
        cr_assert(w.softmax[0] == 1 && w.log_softmax[0] == 0);
        cr_assert_eq(w.correct, 3);
    }
}

/* Two rows of two classes, the first 1 2: what sums and means of few rows, or of none, come to. */
Test(reference, means_of_nothing_follow_the_policy_and_given_denominators_divide)
{
    enum { IGNORED = -100, BAD = 9 };
    static const double logits[] = { 1, 2, 3, 4 }, cancelling[] = { 1, -1 };
    static const struct {
        const char *name;
        size_t rows;
        int64_t targets[2];
        uint32_t reduction, all_ignored;
        double denominator; /* NAN: none */
        bool cancels;       /* class weights 1 and -1 */
        double loss, divisor, gradient[4];
        uint64_t counted;
    } cases[] = {
#define CASE(name, rows, first, second, reduction, policy, ...) \
    { name, rows, { first, second }, CLXENT_REDUCTION_##reduction, CLXENT_ALL_IGNORED_##policy, __VA_ARGS__ }
#define OF(...)     \
    {               \
        __VA_ARGS__ \
    }
        CASE("no rows, sum", 0, 0, 0, SUM, NAN, NAN, false, 0, 1, OF(0), 0),
        CASE("no rows, mean", 0, 0, 0, MEAN, NAN, NAN, false, NAN, 0, OF(0), 0),
        CASE("no rows, mean or 0", 0, 0, 0, MEAN, ZERO, NAN, false, 0, 0, OF(0), 0),
        CASE("no rows, divided", 0, 0, 0, MEAN, NAN, 4, false, 0, 4, OF(0), 0),
        CASE("all ignored", 2, IGNORED, IGNORED, MEAN, NAN, NAN, false, NAN, 0, OF(0, 0, 0, 0), 0),
        CASE("all ignored or 0", 2, IGNORED, IGNORED, MEAN, ZERO, NAN, false, 0, 0, OF(0, 0, 0, 0), 0),
        /* no policy hides a bad row */
        CASE("ignored and bad", 2, IGNORED, BAD, MEAN, NAN, NAN, false, NAN, 0, OF(0, 0, NAN, NAN), 0),
        CASE("ignored and bad, or 0", 2, IGNORED, BAD, MEAN, ZERO, NAN, false, NAN, 0, OF(0, 0, NAN, NAN), 0),
        CASE("weights that cancel", 2, 0, 1, MEAN, NAN, NAN, true, NAN, 0, OF(0, 0, 0, 0), 2),
        /* one given is no other than one computed */
        CASE("divided by 0", 2, 0, IGNORED, MEAN, NAN, 0, false, NAN, 0, OF(0, 0, 0, 0), 1),
        CASE("divided by 0, or 0", 2, 0, IGNORED, SUM, ZERO, 0, false, 0, 0, OF(0, 0, 0, 0), 1),
        CASE("bad and divided by 0", 2, 0, BAD, SUM, ZERO, 0, false, NAN, 0, OF(0, 0, NAN, NAN), 1),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *name = cases[i].name;
        const size_t n = cases[i].rows;
        reset();
        w.desc.reduction = cases[i].reduction;
        w.desc.all_ignored = cases[i].all_ignored;
        shape(CLXENT_F32, n, n > 0, 2);
        if (cases[i].cancels) give_class_weights(cancelling);
        if (!isnan(cases[i].denominator)) give(TENSOR_DENOMINATOR, &cases[i].denominator);
        w.gradient[2 * n] = w.losses[n] = 5;
        solve(CLXENT_F32, n, n > 0, 2, logits, cases[i].targets);
        check_close(name, "loss", w.loss, &cases[i].loss, 1, 0, 0);
        check_close(name, "denominator", &w.divisor, &cases[i].divisor, 1, 0, 0);
        check_close(name, "gradient", w.gradient, cases[i].gradient, 2 * n, 0, 0);
        cr_assert(w.counted == cases[i].counted && w.correct == cases[i].cancels, "%s", name);
        cr_assert(w.gradient[2 * n] == 5 && w.losses[n] == 5, "%s: written behind the rows", name);
        for (size_t r = 0; r < n; r++) {
            const int64_t y = cases[i].targets[r];
            cr_assert(is_as(w.losses[r], y == IGNORED ? 0
                                         : y == BAD   ? NAN
                                         : y == 0     ? MORE
                                                      : LESS),
                      "%s: %g", name, w.losses[r]);
        }
    }
}

/* A saturated logit beside one of 0, the target: its gradient is p times the slope, 4 t / (1 + t)^2 for t = exp(-2y),
 * where 1 - tanh(y)^2 has no digits left. The logits are exact in every storage type. */
Test(reference, the_slope_of_a_saturated_softcap_keeps_its_digits)
{
    static const double saturations[] = { 0.125, 1, 3, 9, 13, 18.5, 25, 40, 43.5, 50, 100, 340, 352, 400 };
    const double cap = 2;

    w.desc.softcap = cap;
    w.desc.reduction = CLXENT_REDUCTION_SUM;
    for (size_t i = 0; i < sizeof saturations / sizeof *saturations; i++) {
        for (int d = 0; d < DTYPES; d++) {
            const bool f64 = dtypes[d] == CLXENT_F64;
            const double y = saturations[i], u = f64 ? 0x1p-53 : 0x1p-24,
                         tiny = f64 ? DBL_MIN : (double)FLT_MIN;
            const long double t = expl(-2 * (long double)y);
            const long double want = 4 * t / ((1 + t) * (1 + t)) / (1 + expl(-cap * tanhl(y)));
            for (int sign = -1; sign <= 1; sign += 2) {
                w.desc.gradient_dtype = f64 ? CLXENT_F64 : CLXENT_F32;
                w.desc.logit_scale = sign; /* z is the same */
                one_row(dtypes[d], 3, (const double[]){ sign * cap * y, -INFINITY, 0 }, 2);
                cr_assert(fabsl(sign * w.gradient[0] - want) <= 8 * 0x1p-53L * want + 0x1p-1074L,
                          "y %g: %.17g, not %.17g", y, sign * w.gradient[0], (double)want);
                cr_assert(w.gradient[1] == 0 && w.gradient_bound[1] == 0);
                /* the bound is one of digits, and of nothing but underflow beyond them */
                const double digits = (f64 ? 2 : 1) * (62 + 8 * y) * u * (double)want;
                cr_assert(w.gradient_bound[0] <= digits + (want < 4 * tiny ? 4 * tiny : 0), "y %g: bound %g",
                          y, w.gradient_bound[0]);
            }
        }
    }
    w.desc.gradient_dtype = 0;
    w.desc.logit_scale = 0;
    one_row(CLXENT_F32, 2, (const double[]){ 30, 0 }, 1);
    cr_assert(w.gradient[0] == 0 && w.gradient_bound[0] == 0, "nothing to round");
}

/* ---- Rows that do not count ---------------------------------------------------------------- */

/* The largest numbers of a type, and those that have the same bits in another: out of range, or ignored where ignore_index is the
 * number itself. */
Test(reference, targets_are_compared_at_full_width)
{
    static const double logits[] = { 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4 };
    static const struct {
        uint32_t type;
        int64_t target, same_bits;
    } cases[] = { { CLXENT_TARGET_U8, UINT8_MAX, -1 },
                  { CLXENT_TARGET_U16, UINT16_MAX, -1 },
                  { CLXENT_TARGET_U32, UINT32_MAX, -1 },
                  { CLXENT_TARGET_U32, (int64_t)UINT32_MAX - 99, -100 },
                  { CLXENT_TARGET_I64, (INT64_C(1) << 32) + 1, 1 },
                  { CLXENT_TARGET_I64, INT64_MIN, 0 },
                  { CLXENT_TARGET_I64, -1, 0xff } };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        reset();
        w.desc.target_type = cases[i].type;
        w.desc.ignore_index = cases[i].same_bits;
        solve(CLXENT_F32, 3, 1, 4, logits, (const int64_t[]){ 2, cases[i].target, cases[i].target });
        cr_assert(w.losses[0] > 0 && isnan(w.losses[1]) && isnan(w.losses[2]) && w.divisor == 1, "%zu", i);
        cr_assert(w.bad.count == 2 && w.bad.first_row == 1 && w.bad.value == cases[i].target, "%zu", i);
        w.desc.ignore_index = cases[i].target;
        run();
        cr_assert(w.losses[0] > 0 && w.losses[1] == 0 && w.bad.count == 0 && isfinite(w.loss[0]), "%zu", i);
    }
}

Test(reference, argmax_is_the_first_maximum_and_is_taken_before_the_softcap)
{
    static const double ties[] = { 1, 3, 3, 2 };
    static const double saturated[] = { 1, 900, 1000, 950 };
    one_row(CLXENT_F32, 4, ties, 1);
    cr_assert(w.argmax[0] == 1 && w.correct == 1);
    one_row(CLXENT_F32, 4, ties, 2);
    cr_assert_eq(w.correct, 0);
    w.desc.logit_scale = -1;
    one_row(CLXENT_F32, 4, ties, 0);
    cr_assert_eq(w.argmax[0], 0, "the argmax of z");
    w.desc.logit_scale = 1;
    w.desc.softcap = 5;
    one_row(CLXENT_F32, 4, saturated, 2);
    cr_assert(w.argmax[0] == 2 && w.correct == 1, "tanh rounds to 1 for three of them");
}

Test(reference, accumulating_adds_to_the_gradient_and_leaves_ignored_rows_alone)
{
    static const double logits[] = { 1, 2, 3, 4, 5, 6 };
    static const double old[] = { 10, 20, 30, 40, 50, 60 };
    static const int64_t targets[] = { 0, -100, 5 };
    double plain[6];

    w.desc.gradient_row_stride = 3;
    solve(CLXENT_F16, 3, 1, 2, logits, targets);
    memcpy(plain, w.gradient, sizeof plain);
    w.desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    give(TENSOR_GRADIENT, old);
    run();
    for (int i = 0; i < 2; i++) check_one("accumulated", w.gradient[i], old[i] + plain[i], 1e-15);
    cr_assert(w.gradient[2] == 30 && w.gradient[3] == 40 && w.gradient_bound[2] == 0);
    cr_assert(isnan(w.gradient[4]) && isnan(w.gradient[5]));
    cr_assert(w.gradient_bound[0] >= 0x1p-8, "half an ulp of f16 at 10");

    w.desc.gradient_dtype = CLXENT_F32;
    give(TENSOR_GRADIENT, old);
    run();
    cr_assert(w.gradient_bound[0] >= 10 * 0x1p-24 && w.gradient_bound[0] < 30 * 0x1p-24, "the sum rounds");
}

/* ---- Building blocks ----------------------------------------------------------------------- */

Test(reference, one_hot_marks_the_target_alone)
{
    static const int64_t targets[] = { 1, -100, 0, 7 };
    static const double want[] = { 0, 1, 0, 0, 0, 0, 1, 0, 0, NAN, NAN, NAN };
    w.desc.op = CLXENT_OP_ONE_HOT;
    shape(CLXENT_F16, 2, 2, 3);
    w.desc.outputs = CLXENT_OUTPUT_ONE_HOT;
    give_targets(targets);
    run();
    check_close("one hot", "one_hot", w.one_hot, want, 12, 0, 0);
    w.desc.bad_target = CLXENT_BAD_TARGET_IGNORE;
    run();
    cr_assert(all(w.one_hot + 9, 3, is_zero));
}

Test(reference, softmax_backward_is_the_jacobian_times_grad_output)
{
    enum { CLASSES = 5, N = 2 * CLASSES };
    double p[N], g[N], want[N];
    for (int i = 0; i < N; i++) {
        p[i] = 0.5 + 0.25 * uniform();
        g[i] = uniform();
    }
    for (int r = 0; r < N; r += CLASSES)
        for (int j = 0; j < CLASSES; j++) {
            want[r + j] = 0;
            for (int k = 0; k < CLASSES; k++)
                want[r + j] += g[r + k] * p[r + k] * ((j == k ? 1.0 : 0.0) - p[r + j]);
        }
    w.desc.op = CLXENT_OP_SOFTMAX_BACKWARD;
    w.desc.inner = 2;
    w.desc.probabilities_row_stride = 2 * CLASSES + 1;
    shape(CLXENT_F64, 1, 2, CLASSES);
    give(TENSOR_PROBABILITIES, p);
    give(TENSOR_GRAD_OUTPUT, g);
    run();
    check_close("softmax backward", "gradient", w.gradient, want, N, 1e-14, 1e-16);
}

Test(reference, probability_loss_takes_indices_and_soft_targets)
{
    static const double p[] = { 0.25, 0.75, 0, 0.5, 0.5, 0, 1, 0, 0, 0.125, 0.25, 0.5 };
    static const int64_t targets[] = { 1, 2, 0, -100 };
    static const double q[] = { 0.5, 0.5, 0, 0, 1, 0, 1, 0, 0, 1, -1, 0.5 };
    const double by_index[] = { -log(0.75), INFINITY, 0, 0 };
    const double by_label[] = { -0.5 * log(0.25) - 0.5 * log(0.75), log(2), 0,
                                log(8) - log(4) + 0.5 * log(2) };

    w.desc.op = CLXENT_OP_PROBABILITY_LOSS;
    shape(CLXENT_BF16, 4, 1, 3);
    w.desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS;
    give(TENSOR_PROBABILITIES, p);
    give_targets(targets);
    run();
    check_close("indices", "losses", w.losses, by_index, 4, 1e-15, 0);
    cr_assert(w.loss[0] == INFINITY && w.divisor == 3);
    w.desc.use_ignore_index = 0;
    run();
    cr_assert(isnan(w.losses[3]) && isnan(w.loss[0]) && w.divisor == 3, "-100 is out of range then");

    w.desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
    give(TENSOR_TARGETS, q);
    run();
    check_close("labels", "losses", w.losses, by_label, 4, 1e-15, 0);
    check_one("mean", w.loss[0], (by_label[0] + by_label[1] + by_label[2] + by_label[3]) / 4, 1e-15);
}

Test(reference, softmax_gradient_is_softmax_minus_one_hot)
{
    static const double p[] = { 0.25, 0.75, 0.5, 0.5, 0.125, 0.875, 1, 0 };
    static const int64_t targets[] = { 1, -100, 0, 9 };
    static const double grad_output[] = { 3 };
    static const double want[] = { 0.25, -0.25, 0, 0, -0.875, 0.875, NAN, NAN };
    double scaled[8];

    w.desc.op = CLXENT_OP_SOFTMAX_GRADIENT;
    shape(CLXENT_F32, 4, 1, 2);
    give(TENSOR_PROBABILITIES, p);
    give_targets(targets);
    give(TENSOR_GRAD_OUTPUT, grad_output);
    run();
    for (int i = 0; i < 8; i++) scaled[i] = want[i] * 3 / 2;
    check_close("softmax gradient", "gradient", w.gradient, scaled, 8, 1e-15, 0);
}

/* ---- Storage ------------------------------------------------------------------------------- */

typedef uint16_t (*encoder)(double);
typedef double (*decoder)(uint16_t);

/* Every value returns; every midpoint of neighbours goes to the even one; beside it, to the nearer one. */
static void check_storage(encoder encode, decoder decode, uint16_t infinity)
{
    for (unsigned bits = 0; bits < 1u << 16; bits++) {
        const double value = decode((uint16_t)bits);
        cr_assert_eq(encode(value), bits, "0x%04x gives %g gives 0x%04x", bits, value, encode(value));
        cr_assert_eq(isnan(value) != 0, (bits & 0x7fffu) > infinity);
        cr_assert_eq(signbit(value) != 0, bits >> 15);
    }
    for (unsigned bits = 0; bits + 1u < infinity; bits++) {
        const double low = decode((uint16_t)bits), high = decode((uint16_t)(bits + 1u));
        const double middle = (low + high) / 2; /* exact: one bit more than the format has */
        const unsigned even = bits % 2 == 0 ? bits : bits + 1;
        cr_assert(low < high);
        cr_assert_eq(encode(middle), even, "tie above 0x%04x gives 0x%04x", bits, encode(middle));
        cr_assert_eq(encode(-middle), even | 0x8000u);
        cr_assert_eq(encode(nextafter(middle, INFINITY)), bits + 1);
        cr_assert_eq(encode(nextafter(middle, 0)), bits);
    }
    const double top = decode((uint16_t)(infinity - 1u)), below = decode((uint16_t)(infinity - 2u));
    const double overflow = top + (top - below) / 2;
    cr_assert_eq(encode(overflow), infinity, "the tie goes to infinity, which is even");
    cr_assert_eq(encode(nextafter(overflow, 0)), infinity - 1);
    cr_assert_eq(encode(-DBL_MAX), infinity | 0x8000u);
    cr_assert_eq(encode(DBL_TRUE_MIN), 0);
    cr_assert_eq(encode(-DBL_MIN), 0x8000u);
    cr_assert(isinf(decode(infinity)) && decode(infinity) > 0);
}

Test(reference, f16_conversions_are_exact_and_round_to_even)
{
    check_storage(clxent_f16_from_double, clxent_f16_to_double, 0x7c00);
    cr_assert_eq(clxent_f16_from_double(1.0), 0x3c00);
    cr_assert_eq(clxent_f16_from_double(65504.0), 0x7bff);
    cr_assert_eq(clxent_f16_from_double(65520.0), 0x7c00);
    cr_assert_eq(clxent_f16_to_double(0x0001), 0x1p-24);
    cr_assert(isnan(clxent_f16_to_double(clxent_f16_from_double(NAN))));
}

Test(reference, bf16_conversions_are_exact_and_round_to_even)
{
    check_storage(clxent_bf16_from_double, clxent_bf16_to_double, 0x7f80);
    for (unsigned bits = 0; bits < 1u << 16; bits++) { /* bf16 is the upper half of f32 */
        const uint32_t wide = bits << 16;
        float f;
        memcpy(&f, &wide, sizeof f);
        cr_assert(isnan(f) || (double)f == clxent_bf16_to_double((uint16_t)bits));
    }
}

Test(reference, conversions_round_once)
{
    /* By way of f32 these become ties, and go the wrong way. */
    cr_assert_eq(clxent_f16_from_double(1 + 0x1p-11 + 0x1p-40), 0x3c01);
    cr_assert_eq(clxent_bf16_from_double(1 + 0x1p-8 + 0x1p-40), 0x3f81);
    cr_assert_eq(clxent_f16_from_double(1 + 3 * 0x1p-11 - 0x1p-40), 0x3c01);
    uint64_t bits = UINT64_C(0x7ff0000000000001); /* a NaN whose payload does not fit */
    double nan;
    memcpy(&nan, &bits, sizeof nan);
    cr_assert_eq(clxent_f16_from_double(nan) & 0x7fff, 0x7e00);
}

/* ---- Error bounds -------------------------------------------------------------------------- */

static double worst(const float *got, const double *want, const double *bound, size_t n)
{
    double ratio = 0;
    for (size_t i = 0; i < n; i++) {
        const double error = fabs((double)got[i] - want[i]);
        if (!(error <= bound[i]) && !(bound[i] > 0)) return INFINITY;
        if (error > 0 && !(error / bound[i] <= ratio)) ratio = error / bound[i];
    }
    return ratio;
}

/* What a careful f32 kernel does, and with `careless` what most do. */
static void softmax_f32(const double *logits, size_t classes, size_t target, bool careless, float *softmax,
                        float *gradient, float *loss, float *lse)
{
    float max = -INFINITY, others = 0;
    for (size_t j = 0; j < classes; j++) max = fmaxf(max, (float)logits[j]);
    const float own = expf((float)logits[target] - max);
    for (size_t j = 0; j < classes; j++)
        if (j != target) others += expf((float)logits[j] - max);
    const float sum = others + own;
    const float log_sum = own == 1.0f && !careless ? log1pf(others) : logf(sum);
    *lse = max + log_sum;
    *loss = careless ? *lse - (float)logits[target] : (max - (float)logits[target]) + log_sum;
    for (size_t j = 0; j < classes; j++) {
        softmax[j] = expf((float)logits[j] - max) / sum;
        gradient[j] = j != target ? softmax[j] : careless ? softmax[j] - 1 : -(others / sum);
    }
}

Test(reference, bounds_admit_careful_f32_and_refuse_careless_f32)
{
    enum { TRIALS = 400, MAX_CLASSES = 60 };
    double loss_worst[2] = { 0, 0 }, gradient_worst[2] = { 0, 0 }, softmax_worst = 0, lse_worst = 0;

    for (int trial = 0; trial < TRIALS; trial++) {
        const size_t classes = 2 + (size_t)trial % (MAX_CLASSES - 2);
        const double offset = trial % 4 == 0 ? 1e6 : 0, spread = trial % 3 == 0 ? 40 : 4;
        const int64_t target = trial % 2 == 0 ? 0 : (int64_t)classes - 1;
        double logits[MAX_CLASSES];
        float softmax[MAX_CLASSES], gradient[MAX_CLASSES], loss, lse;

        for (size_t j = 0; j < classes; j++) logits[j] = (double)(float)(offset + spread * uniform());
        if (trial % 5 == 0) logits[target] = (double)(float)(offset + spread + 12); /* confident */
        w.desc.reduction = CLXENT_REDUCTION_SUM;
        one_row(CLXENT_F32, classes, logits, target);
        for (int careless = 0; careless < 2; careless++) {
            softmax_f32(logits, classes, (size_t)target, careless != 0, softmax, gradient, &loss, &lse);
            loss_worst[careless] = fmax(loss_worst[careless], worst(&loss, w.losses, w.losses_bound, 1));
            gradient_worst[careless] =
                fmax(gradient_worst[careless], worst(gradient, w.gradient, w.gradient_bound, classes));
            softmax_worst = fmax(softmax_worst, worst(softmax, w.softmax, w.softmax_bound, classes));
            lse_worst = fmax(lse_worst, worst(&lse, w.lse, w.lse_bound, 1));
        }
    }
    fprintf(
        stderr,
        "error / bound: loss %.2f (careless %.3g), gradient %.2f (careless %.3g), softmax %.2f, lse %.2f\n",
        loss_worst[0], loss_worst[1], gradient_worst[0], gradient_worst[1], softmax_worst, lse_worst);
    cr_assert(loss_worst[0] <= 1 && gradient_worst[0] <= 1 && softmax_worst <= 1 && lse_worst <= 1);
    cr_assert(loss_worst[0] > 0.01 && gradient_worst[0] > 0.01, "bounds so wide say nothing");
    cr_assert(loss_worst[1] > 10 && gradient_worst[1] > 10, "the bounds must tell careless kernels");
}

Test(reference, bounds_include_the_rounding_to_storage)
{
    static const double logits[] = { 0, 1, 2.5, -3 };
    static const double ulp[] = { [CLXENT_F16] = 0x1p-11, [CLXENT_BF16] = 0x1p-8 };
    for (int d = 1; d < 3; d++) {
        one_row(dtypes[d], 4, logits, 0);
        for (int j = 0; j < 4; j++) {
            const double half = ldexp(ulp[dtypes[d]], ilogb(w.softmax[j]));
            cr_assert(w.softmax_bound[j] >= half && w.softmax_bound[j] < 1.1 * half, "%g, not %g",
                      w.softmax_bound[j], half);
        }
        cr_assert(w.losses_bound[0] < 1e-5, "losses stay in f32");
    }
    w.desc.gradient_dtype = CLXENT_F32;
    one_row(CLXENT_BF16, 4, logits, 0);
    cr_assert(w.gradient_bound[0] < 1e-5 && w.softmax_bound[0] > 1e-5);
    w.desc.gradient_dtype = CLXENT_F32;
    one_row(CLXENT_F64, 4, logits, 0);
    cr_assert(w.gradient_bound[0] > 1e-9 && w.gradient_bound[0] < 1e-7 && w.losses_bound[0] < 1e-14);
}

Test(reference, bounds_are_infinite_where_storage_may_overflow)
{
    static const double logits[] = { 0, 1 };
    static const double huge[] = { 1e5 };
    w.desc.reduction = CLXENT_REDUCTION_SUM;
    shape(CLXENT_F16, 1, 1, 2);
    give(TENSOR_GRAD_OUTPUT, huge);
    one_row(CLXENT_F16, 2, logits, 0);
    cr_assert(w.gradient[0] < -65520 && w.gradient_bound[0] == INFINITY);
    w.desc.gradient_dtype = CLXENT_F32;
    one_row(CLXENT_F16, 2, logits, 0);
    cr_assert(w.gradient_bound[0] < 1);
}

Test(reference, bounds_admit_what_underflows)
{
    static const double logits[] = { 0, -90, -200, -1000 };
    one_row(CLXENT_F32, 4, logits, 0);
    cr_assert(w.softmax[1] < (double)FLT_MIN && w.softmax_bound[1] >= w.softmax[1], "it may be flushed");
    cr_assert(w.softmax[3] == 0 && w.softmax_bound[3] >= (double)FLT_MIN && w.softmax_bound[3] < 1e-37);
    cr_assert(w.gradient_bound[2] >= (double)FLT_MIN && w.gradient_bound[2] < 1e-37);
    cr_assert(w.losses[0] < (double)FLT_MIN && w.losses_bound[0] >= w.losses[0]);
}

Test(reference, bounds_are_not_widened_by_classes_that_do_not_matter)
{
    static const double logits[] = { 1, 2, -1e30 };
    w.desc.logit_scale = 0.5;
    one_row(CLXENT_F32, 3, logits, 0);
    cr_assert(w.losses_bound[0] < 1e-5 && w.lse_bound[0] < 1e-5 && w.softmax_bound[0] < 1e-5);
    cr_assert(w.gradient_bound[0] < 1e-5 && w.entropy_bound[0] < 1e-5);
}

/* ---- Arguments ----------------------------------------------------------------------------- */

static void valid_problem(void)
{
    static const double logits[] = { 1, 2, 3, 4, 5, 6 };
    static const int64_t targets[] = { 0, 1 };
    reset();
    shape(CLXENT_F32, 2, 1, 3);
    give(TENSOR_LOGITS, logits);
    give_targets(targets);
}

/* A valid problem with something changed, and the whole text. */
#define REFUSED(status, words, ...)                                   \
    do {                                                              \
        valid_problem();                                              \
        __VA_ARGS__;                                                  \
        cr_assert_eq(try_run(), CLXENT_ERROR_##status, "%s", w.text); \
        cr_assert_str_eq(w.text, words);                              \
    } while (0)

Test(reference, names_the_input_that_is_missing_or_too_small)
{
    REFUSED(NULL_ARGUMENT, "logits is NULL: takes [rows 2, classes 3] f32, row stride 3",
            w.args.logits.data = NULL);
    REFUSED(NULL_ARGUMENT, "targets is NULL: takes [rows 2] i64", w.args.targets.data = NULL);
    REFUSED(NULL_ARGUMENT, "class_weights is NULL: takes [classes 3] f32", w.desc.has_class_weights = 1);
    REFUSED(NULL_ARGUMENT, "gradient is NULL: takes [rows 2, classes 3] f32, row stride 3",
            w.desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE);
    REFUSED(BUFFER_TOO_SMALL, "logits has 23 bytes: takes 24 for [rows 2, classes 3] f32, row stride 3",
            w.args.logits.size = 23);
    REFUSED(BUFFER_TOO_SMALL, "grad_output has 3 bytes: takes 4 for [1] f32",
            w.args.grad_output = (clxent_input){ w.lse, 3 });
    REFUSED(BUFFER_TOO_SMALL, "denominator has 0 bytes: takes 4 for [1] f32",
            w.args.denominator = (clxent_input){ w.lse, 0 });
}

Test(reference, refuses_null_and_foreign_structs_and_results_that_desc_does_not_name)
{
    const clxent_reference_results none = CLXENT_REFERENCE_RESULTS_INIT;
    clxent_reference_results foreign = none, lse = none;
    clxent_host_args args;
    clxent_desc desc, nan;

    valid_problem();
    foreign.struct_size = sizeof foreign + 8;
    lse.lse = w.lse;
    desc = nan = w.desc;
    desc.outputs = CLXENT_OUTPUT_LOSSES;
    nan.label_smoothing = NAN;
    args = w.args;
    args.struct_size = offsetof(clxent_host_args, logits) + 1; /* within a field */
    const struct {
        const clxent_desc *desc;
        const clxent_host_args *args;
        const clxent_reference_results *out;
        clxent_status want;
        const char *begin; /* of the text */
    } cases[] = {
        { NULL, &w.args, &none, CLXENT_ERROR_NULL_ARGUMENT, "" },
        { &desc, NULL, &none, CLXENT_ERROR_NULL_ARGUMENT, "args is NULL: takes a clxent_host_args" },
        { &desc, &w.args, NULL, CLXENT_ERROR_NULL_ARGUMENT, "" },
        { &desc, &w.args, &foreign, CLXENT_ERROR_INVALID_ARGUMENT, "results.struct_size is " },
        { &desc, &args, &none, CLXENT_ERROR_INVALID_ARGUMENT, "args.struct_size is " },
        { &nan, &w.args, &none, CLXENT_ERROR_INVALID_DESC, "label_smoothing is " },
        { &desc, &w.args, &lse, CLXENT_ERROR_INVALID_DESC,
          "results asks for outputs 0x4: takes those of desc.outputs, 0x1" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const clxent_status status =
            clxent_reference_run(cases[i].desc, cases[i].args, cases[i].out, w.text, TEXT);
        cr_assert_eq(status, cases[i].want, "case %zu: %s", i, w.text);
        cr_assert_eq(strncmp(w.text, cases[i].begin, strlen(cases[i].begin)), 0, "case %zu: %s", i, w.text);
        cr_assert_eq(clxent_reference_run(cases[i].desc, cases[i].args, cases[i].out, NULL, 0), status);
    }
}

Test(reference, reads_only_what_the_results_asked_for_depend_on)
{
    clxent_reference_results out = CLXENT_REFERENCE_RESULTS_INIT;
    valid_problem();
    w.args.targets.data = NULL;
    w.desc.has_row_weights = 1;
    out.lse = w.lse;
    cr_assert_eq(clxent_reference_run(&w.desc, &w.args, &out, w.text, TEXT), CLXENT_OK, "%s", w.text);
    check_one("lse", w.lse[0], 3 + log1p(exp(-1) + exp(-2)), 1e-15);

    valid_problem();
    w.desc.outputs = CLXENT_OUTPUT_LOSSES; /* depends on no denominator: one of 1 byte is not read */
    w.desc.has_row_weights = 0;
    w.args.denominator = (clxent_input){ w.lse, 1 };
    run();
    cr_assert_eq(w.divisor, 2);
}
