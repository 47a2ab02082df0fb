/* SPDX-License-Identifier: MIT
 *
 * test_reference_linear.c - is the oracle right about linear cross-entropy? Closed forms, the same in two steps, of which
 * test_reference.c holds the first against finite differences, rows that do not count, and whether its error bounds admit what a
 * device may do and little else.
 */
#include "reference_inputs.h"

#include <clxent/reference.h>

#include <float.h>
#include <math.h>
#include <string.h>

enum { ROWS = 6, CLASSES = 5, FEATURES = 7, ELEMENTS = 64, TEXT = 256, STEP = FEATURES + 2 };

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- One small problem --------------------------------------------------------------------- */

/* Inputs as doubles, which write_inputs() gives the reference, and results. */
static struct fixture {
    clxent_desc desc;
    clxent_host_args args;
    double hidden[ELEMENTS], weight[ELEMENTS], bias[ELEMENTS], class_weights[CLASSES], row_weights[ROWS];
    double grad_output[ROWS], grad_entropy[ROWS], grad_lse[ROWS], soft_targets[ELEMENTS];
    double old[3][ELEMENTS]; /* what the gradients are added to */
    int64_t targets[ROWS];

    double losses[ROWS], losses_bound[ROWS], loss[1], loss_bound[1], lse[ROWS], lse_bound[ROWS];
    double entropy[ROWS], entropy_bound[ROWS];
    double gradient[3][ELEMENTS], bound[3][ELEMENTS]; /* of hidden, weight, bias */
    int64_t argmax[ROWS];
    uint64_t correct, counted;
    double divisor;
    unsigned char allowed[ELEMENTS];
    char text[TEXT];
} w;

enum { HIDDEN, WEIGHT, BIAS };
static const char *const gradient_names[] = { "hidden_gradient", "weight_gradient", "bias_gradient" };

static random_state random_numbers = { 1 };

static double uniform(void) { return random_uniform(&random_numbers, -1, 1); }

/* Multiples of 1/16, which every storage type holds. */
static double sixteenth(double range) { return round(range * 16 * uniform()) / 16; }

static void shape(uint32_t dtype, size_t rows, size_t classes, size_t features)
{
    w.desc.op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
    w.desc.dtype = dtype;
    w.desc.batch = rows;
    w.desc.seq = 1;
    w.desc.classes = classes;
    w.desc.features = features;
}

static void reset(void)
{
    memset(&w, 0, sizeof w);
    clxent_desc_init(&w.desc);
    shape(CLXENT_F32, ROWS, CLASSES, FEATURES);
    w.desc.has_bias = 1;
    for (size_t i = 0; i < ELEMENTS; i++) {
        w.hidden[i] = sixteenth(2);
        w.weight[i] = sixteenth(2);
        w.bias[i] = sixteenth(1);
        w.soft_targets[i] = sixteenth(1);
        for (int g = 0; g < 3; g++) w.old[g][i] = sixteenth(1);
    }
    for (size_t r = 0; r < ROWS; r++) {
        w.row_weights[r] = 1.5 + sixteenth(1);
        w.grad_output[r] = sixteenth(1);
        w.grad_entropy[r] = sixteenth(1);
        w.grad_lse[r] = sixteenth(1);
        w.targets[r] = (int64_t)(r * 2 % CLASSES);
    }
    for (size_t j = 0; j < CLASSES; j++) w.class_weights[j] = 1.5 + sixteenth(1);
}

static size_t rows(void) { return w.desc.batch * w.desc.seq; }

static void give(int tensor, const double *values) { give_values(&w.args, &w.desc, tensor, values); }

static bool is_soft(void) { return !has_index_targets(&w.desc); }

/* As desc and the arrays of w are now. */
static void write_inputs(bool grad_output)
{
    clxent_host_args_init(&w.args);
    give(TENSOR_HIDDEN, w.hidden);
    give(TENSOR_WEIGHT, w.weight);
    give(TENSOR_BIAS, w.bias);
    give(TENSOR_CLASS_WEIGHTS, w.class_weights);
    give(TENSOR_ROW_WEIGHTS, w.row_weights);
    if (grad_output) give(TENSOR_GRAD_OUTPUT, w.grad_output);
    give(TENSOR_GRAD_ENTROPY, w.grad_entropy);
    give(TENSOR_GRAD_LSE, w.grad_lse);
    if (is_soft()) give(TENSOR_TARGETS, w.soft_targets);
    else give_classes(&w.args, &w.desc, w.targets);
    give(TENSOR_HIDDEN_GRADIENT, w.old[HIDDEN]);
    give(TENSOR_WEIGHT_GRADIENT, w.old[WEIGHT]);
    give(TENSOR_BIAS_GRADIENT, w.old[BIAS]);
}

static size_t gradient_count(int g)
{
    return g == HIDDEN ? rows() * w.desc.features : w.desc.classes * (g == WEIGHT ? w.desc.features : 1);
}

static clxent_reference_results results(void)
{
    clxent_reference_results out = CLXENT_REFERENCE_RESULTS_INIT;
    out.losses = w.losses, out.losses_bound = w.losses_bound;
    out.lse = w.lse, out.lse_bound = w.lse_bound;
    out.entropy = w.entropy, out.entropy_bound = w.entropy_bound;
    if (w.desc.reduction != CLXENT_REDUCTION_NONE) out.loss = w.loss, out.loss_bound = w.loss_bound;
    out.hidden_gradient = w.gradient[HIDDEN], out.hidden_gradient_bound = w.bound[HIDDEN];
    out.weight_gradient = w.gradient[WEIGHT], out.weight_gradient_bound = w.bound[WEIGHT];
    if (w.desc.has_bias != 0) out.bias_gradient = w.gradient[BIAS], out.bias_gradient_bound = w.bound[BIAS];
    out.argmax = w.argmax;
    if (!is_soft()) out.correct = &w.correct;
    out.counted = &w.counted;
    out.denominator = &w.divisor;
    out.argmax_allowed = w.allowed;
    return out;
}

static void run(void)
{
    clxent_reference_results out;

    w.desc.outputs = possible_outputs(&w.desc);
    out = results();
    const clxent_status status = clxent_reference_run(&w.desc, &w.args, &out, w.text, sizeof w.text);
    cr_assert_eq(status, CLXENT_OK, "status %d: %s", (int)status, w.text);
}

static void solve(void)
{
    write_inputs(false);
    run();
}

static bool is_near(double got, double want, double relative, double absolute)
{
    return (isnan(got) && isnan(want)) || got == want || fabs(got - want) <= relative * fabs(want) + absolute;
}

static void check_near(const char *what, const double *got, const double *want, size_t n, double absolute)
{
    for (size_t i = 0; i < n; i++)
        cr_assert(is_near(got[i], want[i], 1e-13, absolute), "%s[%zu]: got %.17g, want %.17g", what, i,
                  got[i], want[i]);
}

TestSuite(linear, .init = reset);

/* ---- Closed forms -------------------------------------------------------------------------- */

/* Two classes whose logits are 2.5 and 1: p = 1 / (1 + exp(-1.5)) of the first, and D = (p - 1, 1 - p) where it is the target. */
Test(linear, gives_the_gradients_of_two_classes)
{
    static const double hidden[] = { 2, -1 }, weight[] = { 1, 0.5, -0.5, -3 }, bias[] = { 1, -1 };
    static const uint32_t dtypes[] = { CLXENT_F32, CLXENT_F16, CLXENT_BF16, CLXENT_F64 };
    const double other = 1 / (1 + exp(1.5));
    const double want[3][4] = { { -other * 1.5, -other * 3.5 },
                                { -other * 2, other, other * 2, -other },
                                { -other, other } };

    for (size_t d = 0; d < COUNT(dtypes); d++) {
        reset();
        shape(dtypes[d], 1, 2, 2);
        memcpy(w.hidden, hidden, sizeof hidden);
        memcpy(w.weight, weight, sizeof weight);
        memcpy(w.bias, bias, sizeof bias);
        solve();
        cr_assert(is_near(w.loss[0], log1p(exp(-1.5)), 1e-15, 0) && is_near(w.losses[0], w.loss[0], 0, 0));
        cr_assert(is_near(w.lse[0], 2.5 + log1p(exp(-1.5)), 1e-15, 0) && w.argmax[0] == 0 && w.correct == 1);
        cr_assert(w.allowed[0] == 1 && w.allowed[1] == 0);
        cr_assert(is_near(w.entropy[0], log1p(exp(-1.5)) + 1.5 * other, 1e-14, 0));
        for (int g = 0; g < 3; g++)
            check_near(gradient_names[g], w.gradient[g], want[g], gradient_count(g), 1e-16);
    }
}

/* ---- The same in two steps ------------------------------------------------------------------ */

static double logit_of(size_t r, size_t j)
{
    double x = w.desc.has_bias != 0 ? w.bias[j] : 0;
    for (size_t f = 0; f < w.desc.features; f++)
        x += w.hidden[r * w.desc.features + f] * w.weight[j * w.desc.features + f];
    return x;
}

/* The gradients from those of the logits, D. */
static void multiply(const double *d, double *const gradient[3])
{
    const size_t n = rows(), classes = w.desc.classes, features = w.desc.features;

    for (int g = 0; g < 3; g++) memset(gradient[g], 0, gradient_count(g) * sizeof(double));
    for (size_t r = 0; r < n; r++) {
        for (size_t j = 0; j < classes; j++) {
            const double own = d[r * classes + j];
            if (own == 0) continue;
            gradient[BIAS][j] += own;
            for (size_t f = 0; f < features; f++) {
                gradient[HIDDEN][r * features + f] += own * w.weight[j * features + f];
                gradient[WEIGHT][j * features + f] += own * w.hidden[r * features + f];
            }
        }
    }
}

/* The options of a problem, by the bits of on. */
enum {
    ON_SMOOTHING,
    ON_Z_LOSS,
    ON_SCALE,
    ON_SOFTCAP,
    ON_SOFT_TARGETS,
    ON_CLASS_WEIGHTS,
    ON_ROW_WEIGHTS,
    ON_GRAD_OUTPUT,
    ON_SHIFT,
    ON_ENTROPY,
    ON_LSE,
    ON_MASK,
    ON_IGNORED,
    ON_NO_BIAS,
    OPTIONS
};

static bool has(unsigned on, unsigned option) { return (on >> option & 1u) != 0; }

/* A new random problem; false where options contradict each other. */
static bool draw(unsigned on, uint32_t reduction)
{
    reset();
    w.desc.reduction = reduction;
    if (has(on, ON_SMOOTHING)) w.desc.label_smoothing = 0.25;
    if (has(on, ON_Z_LOSS)) w.desc.z_loss = 0.125;
    if (has(on, ON_SCALE)) w.desc.logit_scale = -1.5;
    if (has(on, ON_SOFTCAP)) w.desc.softcap = 2;
    if (has(on, ON_SOFT_TARGETS)) w.desc.target_type = CLXENT_TARGET_PROBABILITIES_LOGITS;
    if (has(on, ON_SHIFT)) w.desc.batch = 2, w.desc.seq = 3, w.desc.shift = 1;
    w.desc.has_class_weights = has(on, ON_CLASS_WEIGHTS);
    w.desc.has_row_weights = has(on, ON_ROW_WEIGHTS);
    w.desc.has_grad_entropy = has(on, ON_ENTROPY);
    w.desc.has_grad_lse = has(on, ON_LSE);
    w.desc.has_bias = !has(on, ON_NO_BIAS);
    if (has(on, ON_MASK)) w.bias[CLASSES - 1] = -INFINITY;
    for (size_t r = 0; r < ROWS; r++) w.targets[r] %= CLASSES - 1; /* not the masked one */
    if (has(on, ON_IGNORED)) w.targets[1] = w.targets[4] = -100, w.row_weights[2] = 0;
    return !has(on, ON_MASK) || !(has(on, ON_SMOOTHING) || has(on, ON_SOFT_TARGETS)); /* infinite losses */
}

static unsigned draw_options(void) { return random_u32(&random_numbers) & ((1u << OPTIONS) - 1); }

/* CROSS_ENTROPY of the logits x with the options of w: the same outputs and the gradient of x. */
struct two_steps {
    double losses[ROWS], loss[1], lse[ROWS], entropy[ROWS], d[ROWS * CLASSES];
    double gradient[3][ELEMENTS];
    int64_t argmax[ROWS];
    uint64_t correct;
};

static void run_two_steps(struct two_steps *two, const double *x, bool grad_output)
{
    const clxent_desc linear = w.desc, none = CLXENT_DESC_INIT;
    clxent_reference_results out = CLXENT_REFERENCE_RESULTS_INIT;
    double *const gradient[3] = { two->gradient[0], two->gradient[1], two->gradient[2] };

    w.desc.dtype = CLXENT_F64;
    w.desc.op = CLXENT_OP_CROSS_ENTROPY;
    w.desc.features = none.features;
    w.desc.has_bias = 0;
    w.desc.hidden_row_stride = w.desc.weight_row_stride = w.desc.hidden_gradient_row_stride =
        w.desc.weight_gradient_row_stride = 0;
    w.desc.hidden_gradient_dtype = w.desc.weight_gradient_dtype = w.desc.bias_gradient_dtype = 0;
    w.desc.hidden_gradient_mode = w.desc.weight_gradient_mode = w.desc.bias_gradient_mode = 0;
    w.desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ENTROPY |
                     CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_ARGMAX;
    out.losses = two->losses, out.lse = two->lse, out.entropy = two->entropy, out.gradient = two->d;
    out.argmax = two->argmax;
    if (w.desc.reduction != CLXENT_REDUCTION_NONE) w.desc.outputs |= CLXENT_OUTPUT_LOSS, out.loss = two->loss;
    if (!is_soft()) w.desc.outputs |= CLXENT_OUTPUT_CORRECT, out.correct = &two->correct;
    w.desc.features = linear.features; /* for the sizes of what is stored and not used */
    write_inputs(grad_output);
    w.desc.features = 0;
    give(TENSOR_LOGITS, x);
    const clxent_status status = clxent_reference_run(&w.desc, &w.args, &out, w.text, sizeof w.text);
    cr_assert_eq(status, CLXENT_OK, "%s", w.text);
    w.desc = linear;
    multiply(two->d, gradient);
}

Test(linear, is_cross_entropy_of_the_product_and_products_of_its_gradient)
{
    static const uint32_t dtypes[] = { CLXENT_F64, CLXENT_F32, CLXENT_F16, CLXENT_BF16 };
    size_t solved = 0;

    for (unsigned i = 0; i < 3000; i++) {
        const unsigned on = i < OPTIONS ? 1u << i : draw_options();
        const bool padded = i % 3 == 0, grad_output = has(on, ON_GRAD_OUTPUT);
        struct two_steps two;
        double x[ROWS * CLASSES];

        if (!draw(on, i % 7 % 3)) continue;
        w.desc.dtype = dtypes[i % 4];
        if (padded) {
            w.desc.hidden_row_stride = STEP;
            w.desc.weight_row_stride = STEP + 1;
            w.desc.hidden_gradient_row_stride = STEP + 2;
            w.desc.weight_gradient_row_stride = STEP + 3;
        }
        write_inputs(grad_output);
        run();
        for (size_t k = 0; k < ROWS * CLASSES; k++) x[k] = logit_of(k / CLASSES, k % CLASSES);
        run_two_steps(&two, x, grad_output);
        check_near("losses", w.losses, two.losses, ROWS, 1e-14);
        check_near("lse", w.lse, two.lse, ROWS, 1e-14);
        check_near("entropy", w.entropy, two.entropy, ROWS, 1e-14);
        if (w.desc.reduction != CLXENT_REDUCTION_NONE) check_near("loss", w.loss, two.loss, 1, 1e-14);
        for (int g = 0; g < (w.desc.has_bias ? 3 : 2); g++)
            check_near(gradient_names[g], w.gradient[g], two.gradient[g], gradient_count(g), 1e-13);
        cr_assert(memcmp(w.argmax, two.argmax, sizeof w.argmax) == 0);
        cr_assert(is_soft() || w.correct == two.correct);
        solved++;
    }
    cr_assert(solved > 1000);
}

/* ---- Accumulating --------------------------------------------------------------------------- */

Test(linear, accumulating_adds_to_each_gradient_on_its_own)
{
    static const uint32_t dtypes[] = { CLXENT_F32, CLXENT_F16, CLXENT_BF16 };
    double plain[3][ELEMENTS], bound[3][ELEMENTS];

    for (unsigned on = 0; on < 8; on++) {
        uint32_t *const modes[] = { &w.desc.hidden_gradient_mode, &w.desc.weight_gradient_mode,
                                    &w.desc.bias_gradient_mode };
        reset();
        w.desc.hidden_gradient_dtype = dtypes[on % 3];
        w.desc.weight_gradient_dtype = dtypes[(on + 1) % 3];
        w.desc.bias_gradient_dtype = dtypes[(on + 2) % 3];
        w.desc.weight_gradient_row_stride = STEP;
        w.desc.hidden_gradient_row_stride = STEP + 1;
        solve();
        memcpy(plain, w.gradient, sizeof plain);
        memcpy(bound, w.bound, sizeof bound);
        for (int g = 0; g < 3; g++) *modes[g] = on >> g & 1u;
        solve();
        for (int g = 0; g < 3; g++) {
            for (size_t k = 0; k < gradient_count(g); k++) {
                const double old = (on >> g & 1u) != 0 ? w.old[g][k] : 0;
                cr_assert(is_near(w.gradient[g][k], plain[g][k] + old, 1e-15, 1e-16), "%s[%zu]",
                          gradient_names[g], k);
                if (old == 0) cr_assert(w.bound[g][k] == bound[g][k] || w.desc.hidden_gradient_mode != 0);
            }
        }
    }
}

/* A gradient of 0 leaves what is there, and the bound says so. */
Test(linear, nothing_added_is_exact)
{
    for (size_t r = 0; r < ROWS; r++) w.targets[r] = -100;
    w.desc.hidden_gradient_mode = w.desc.weight_gradient_mode = w.desc.bias_gradient_mode =
        CLXENT_GRADIENT_ACCUMULATE;
    w.desc.hidden_gradient_dtype = CLXENT_BF16;
    solve();
    for (int g = 0; g < 3; g++)
        for (size_t k = 0; k < gradient_count(g); k++)
            cr_assert(w.gradient[g][k] == w.old[g][k] && w.bound[g][k] == 0, "%s[%zu]", gradient_names[g], k);
}

Test(linear, accumulating_checks_what_it_adds_to)
{
    clxent_output *const given[] = { &w.args.hidden_gradient, &w.args.weight_gradient,
                                     &w.args.bias_gradient };
    uint32_t *const modes[] = { &w.desc.hidden_gradient_mode, &w.desc.weight_gradient_mode,
                                &w.desc.bias_gradient_mode };

    for (int g = 0; g < 3; g++) {
        reset();
        solve();
        for (int wrong = 0; wrong < 3; wrong++) {
            *modes[g] = wrong > 0;
            write_inputs(false);
            const clxent_reference_results out = results();
            if (wrong == 1) given[g]->size--;
            else given[g]->data = NULL; /* written only, it is not read: right where wrong is 0 */
            const clxent_status status = clxent_reference_run(&w.desc, &w.args, &out, w.text, sizeof w.text);
            cr_assert_eq(status, wrong == 0   ? CLXENT_OK
                                 : wrong == 1 ? CLXENT_ERROR_BUFFER_TOO_SMALL
                                              : CLXENT_ERROR_NULL_ARGUMENT);
            if (wrong > 0) cr_assert(strstr(w.text, gradient_names[g]) == w.text, "%s", w.text);
        }
    }
}

/* ---- Rows that do not count, and numbers that are not finite ---------------------------------- */

/* Row 1 is ignored, 2 masked by its weight, 4 bad: as if they were not there, whatever their hidden states hold. */
Test(linear, rows_that_do_not_count_add_nothing_whatever_they_hold)
{
    static const double spoilt[] = { 0.5, NAN, INFINITY };
    double plain[3][ELEMENTS], losses[ROWS];

    for (size_t s = 0; s < COUNT(spoilt); s++) {
        reset();
        random_numbers = random_start(9);
        draw(1u << ON_ROW_WEIGHTS, CLXENT_REDUCTION_MEAN);
        w.desc.bad_target = CLXENT_BAD_TARGET_IGNORE;
        w.targets[1] = -100;
        w.row_weights[2] = 0;
        w.targets[4] = CLASSES;
        for (size_t r = 1; r < 5; r += r == 2 ? 2 : 1) w.hidden[r * FEATURES + r] = spoilt[s];
        solve();
        if (s == 0) memcpy(plain, w.gradient, sizeof plain), memcpy(losses, w.losses, sizeof losses);
        cr_assert(memcmp(plain, w.gradient, sizeof plain) == 0 &&
                  memcmp(losses, w.losses, sizeof losses) == 0);
        for (size_t r = 0; r < ROWS; r++) {
            const bool out = r == 1 || r == 2 || r == 4;
            for (size_t f = 0; f < FEATURES; f++) {
                const double got = w.gradient[HIDDEN][r * FEATURES + f];
                cr_assert(out ? got == 0 && w.bound[HIDDEN][r * FEATURES + f] == 0
                              : isfinite(got) && got != 0);
            }
            cr_assert(out && s == 1 ? isnan(w.lse[r]) : isfinite(w.losses[r]));
        }
    }
    /* but grad_lse acts on every row, and a bad target that is not ignored on all of weight_gradient */
    w.desc.has_grad_lse = 1;
    memset(w.grad_lse, 0, sizeof w.grad_lse);
    solve();
    cr_assert(memcmp(plain, w.gradient, sizeof plain) == 0, "a grad_lse of 0 does not act");
    w.grad_lse[2] = 0.5;
    solve();
    cr_assert(isnan(w.gradient[HIDDEN][2 * FEATURES]) && isnan(w.gradient[WEIGHT][0]) &&
              isnan(w.gradient[BIAS][0]));
    cr_assert(w.gradient[HIDDEN][FEATURES] == 0 && isfinite(w.gradient[HIDDEN][0]));
    w.desc.has_grad_lse = 0;
    w.desc.bad_target = CLXENT_BAD_TARGET_NAN;
    solve();
    cr_assert(isnan(w.losses[4]) && isnan(w.gradient[HIDDEN][4 * FEATURES]) && isnan(w.gradient[WEIGHT][0]));
    cr_assert(isnan(w.gradient[BIAS][CLASSES - 1]) && isfinite(w.gradient[HIDDEN][0]));
}

Test(linear, infinities_and_nan_follow_the_truth_table)
{
    static const double weight[] = { 1, -1, 2, 1, 0, 3 };
    static const struct {
        double hidden[2], bias[3], softcap;
        double x[3]; /* the logits */
        int64_t argmax;
    } cases[] = {
        { { 1, 2 }, { 0, -INFINITY, 0 }, 0, { -1, -INFINITY, 6 }, 2 },
        { { INFINITY, 1 }, { 0, 0, 0 }, 0, { INFINITY, INFINITY, NAN }, 2 },   /* inf * 0 */
        { { INFINITY, INFINITY }, { 0, 0, 0 }, 0, { NAN, INFINITY, NAN }, 0 }, /* inf - inf */
        { { 1, INFINITY }, { 0, 0, 0 }, 0, { -INFINITY, INFINITY, INFINITY }, 1 },
        { { 1, INFINITY }, { 0, 0, 0 }, 2, { -INFINITY, INFINITY, INFINITY }, 1 },
        { { 1, -INFINITY }, { 0, 0, 0 }, 0, { INFINITY, -INFINITY, -INFINITY }, 0 },
        { { 1, 2 }, { -INFINITY, -INFINITY, -INFINITY }, 0, { -INFINITY, -INFINITY, -INFINITY }, 0 },
        { { NAN, 2 }, { -INFINITY, 0, 0 }, 0, { NAN, NAN, NAN }, 0 },
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct two_steps two;
        reset();
        shape(CLXENT_F32, 1, 3, 2);
        w.desc.softcap = cases[i].softcap;
        memcpy(w.weight, weight, sizeof weight);
        memcpy(w.hidden, cases[i].hidden, sizeof cases[i].hidden);
        memcpy(w.bias, cases[i].bias, sizeof cases[i].bias);
        solve();
        run_two_steps(&two, cases[i].x, false);
        cr_assert(is_near(w.losses[0], two.losses[0], 1e-14, 0) && is_near(w.lse[0], two.lse[0], 1e-14, 0),
                  "case %zu: loss %g, not %g, lse %g, not %g", i, w.losses[0], two.losses[0], w.lse[0],
                  two.lse[0]);
        cr_assert(is_near(w.entropy[0], two.entropy[0], 1e-14, 0) && w.argmax[0] == cases[i].argmax);
        check_near("bias_gradient", w.gradient[BIAS], two.gradient[BIAS], 3, 0);
        for (int64_t j = 0; j < 3; j++)
            cr_assert(w.allowed[j] == (j == w.argmax[0]), "case %zu: class %d", i, (int)j);
    }
}

/* ---- Bounds -------------------------------------------------------------------------------- */

/* Ratios of error and bound; the largest of each result. */
static double worst[8];
enum { OF_LOSSES, OF_LSE, OF_ENTROPY, OF_LOSS, OF_GRADIENTS };

static void admit(int which, const double *got, const double *want, const double *bound, size_t n)
{
    const close_report report = compare(got, want, bound, n);
    cr_assert(report.bad == 0, "result %d: [%zu] got %.17g, want %.17g, bound %g", which, report.first,
              got[report.first], want[report.first], bound[report.first]);
    worst[which] = fmax(worst[which], report.worst);
}

static void admit_two_steps(const struct two_steps *two)
{
    admit(OF_LOSSES, two->losses, w.losses, w.losses_bound, ROWS);
    admit(OF_LSE, two->lse, w.lse, w.lse_bound, ROWS);
    admit(OF_ENTROPY, two->entropy, w.entropy, w.entropy_bound, ROWS);
    if (w.desc.reduction != CLXENT_REDUCTION_NONE) admit(OF_LOSS, two->loss, w.loss, w.loss_bound, 1);
    for (int g = 0; g < (w.desc.has_bias ? 3 : 2); g++)
        admit(OF_GRADIENTS + g, two->gradient[g], w.gradient[g], w.bound[g], gradient_count(g));
    for (size_t r = 0; r < ROWS; r++)
        cr_assert(w.allowed[r * CLASSES + (size_t)two->argmax[r]] == 1, "row %zu: argmax %d", r,
                  (int)two->argmax[r]);
}

/* Logits that are off by all of R, in the direction that matters or at random, are within the bounds of every result, and
 * reach some of them. Hidden states of up to 2^spread, at which R is 2^(2 * spread) larger: up to errors of several units. */
Test(linear, bounds_admit_logits_off_by_their_error_and_not_much_else)
{
    for (int spread = 0; spread <= 12; spread += 4) {
        memset(worst, 0, sizeof worst);
        for (unsigned i = 0; i < 1500; i++) {
            const unsigned on = i < OPTIONS ? 1u << i : draw_options();
            struct two_steps two;
            double x[ROWS * CLASSES];

            if (!draw(on, i % 3)) continue;
            for (size_t k = 0; k < ROWS * FEATURES; k++) w.hidden[k] = ldexp(w.hidden[k], spread);
            for (size_t k = 0; k < CLASSES * FEATURES; k++) w.weight[k] = ldexp(w.weight[k], spread);
            for (size_t k = 0; spread > 0 && k < CLASSES * FEATURES; k++)
                w.weight[k] = w.weight[k % FEATURES]; /* alike */
            write_inputs(has(on, ON_GRAD_OUTPUT));
            run();
            for (size_t r = 0; r < ROWS; r++) {
                const size_t up = random_u32(&random_numbers) % (CLASSES + 2); /* it alone; or at random */
                for (size_t j = 0; j < CLASSES; j++) {
                    double size = w.desc.has_bias ? fabs(w.bias[j]) : 0;
                    for (size_t f = 0; f < FEATURES; f++)
                        size += fabs(w.hidden[r * FEATURES + f] * w.weight[j * FEATURES + f]);
                    const double error = 0x1p-24 * (FEATURES + 2) * size;
                    const bool raised = up < CLASSES ? j == up : random_u32(&random_numbers) % 2 == 0;
                    x[r * CLASSES + j] = logit_of(r, j);
                    if (isfinite(error)) x[r * CLASSES + j] += raised ? error : -error;
                }
            }
            run_two_steps(&two, x, has(on, ON_GRAD_OUTPUT));
            admit_two_steps(&two);
        }
        for (int k = 0; k < OF_GRADIENTS + 3; k++) {
            const bool tight = spread <= 4 || k <= OF_LSE; /* errors of units move the gradient anywhere */
            cr_assert(worst[k] > (tight ? 0.6 : 0) && worst[k] <= 1, "spread %d: result %d: %g", spread, k,
                      worst[k]);
        }
    }
}

/* Rows that do not count and classes that are masked change nothing but the number of terms: by 2 of them bounds grow by 2
 * roundings of the sum of the terms' sizes. */
Test(linear, bounds_have_a_rounding_for_each_term)
{
    double few[3][ELEMENTS], size[3][ELEMENTS];
    double *const sizes[3] = { size[0], size[1], size[2] };
    struct two_steps two;
    double x[ROWS * CLASSES];

    for (int g = HIDDEN; g <= WEIGHT; g++) {
        for (int more = 0; more < 2; more++) {
            reset();
            random_numbers = random_start(5);
            draw(0, CLXENT_REDUCTION_SUM);
            shape(CLXENT_F32, g == WEIGHT ? ROWS - 2 + 2 * (size_t)more : ROWS,
                  g == HIDDEN ? 3 + 2 * (size_t)more : CLASSES, FEATURES);
            for (size_t r = 0; r < ROWS; r++)
                w.targets[r] = g == WEIGHT && r >= ROWS - 2 ? -100 : (int64_t)r % 3;
            if (g == HIDDEN) w.bias[3] = w.bias[4] = -INFINITY;
            solve();
            if (more == 0) memcpy(few, w.bound, sizeof few);
        }
        for (size_t k = 0; k < ROWS * CLASSES; k++) x[k] = logit_of(k / CLASSES, k % CLASSES);
        run_two_steps(&two, x, false);
        for (size_t k = 0; k < ROWS * CLASSES; k++) two.d[k] = fabs(two.d[k]);
        for (size_t k = 0; k < ELEMENTS; k++)
            w.hidden[k] = fabs(w.hidden[k]), w.weight[k] = fabs(w.weight[k]);
        multiply(two.d, sizes);
        for (size_t k = 0; k < (g == HIDDEN ? ROWS : 3) * FEATURES; k++)
            cr_assert(is_near(w.bound[g][k] - few[g][k], 2 * 0x1p-24 * size[g][k], 1e-4, 0),
                      "%s[%zu]: %g, not %g", gradient_names[g], k, w.bound[g][k] - few[g][k],
                      2 * 0x1p-24 * size[g][k]);
    }
}

/* What else the bound of a gradient has is f32's. */
Test(linear, one_rounding_to_16_bits_and_no_more)
{
    static const uint32_t dtypes[] = { CLXENT_F16, CLXENT_BF16 };
    for (size_t d = 0; d < COUNT(dtypes); d++) {
        const double half_ulp = d == 0 ? 0x1p-11 : 0x1p-8; /* relative, at a power of 2 */
        reset();
        w.desc.dtype = dtypes[d];
        solve();
        for (int g = 0; g < 3; g++)
            for (size_t k = 0; k < gradient_count(g); k++) {
                const double size = fabs(w.gradient[g][k]), bound = w.bound[g][k];
                if (size < 1e-3) continue;
                cr_assert(bound >= half_ulp * size / 2 && bound <= half_ulp * size + 1e-4, "%g +- %g", size,
                          bound);
            }
        for (size_t r = 0; r < ROWS; r++)
            cr_assert(w.losses_bound[r] < 1e-4 && w.lse_bound[r] < 1e-4, "in f32");
    }
}

Test(linear, sums_that_may_overflow_have_infinite_bounds)
{
    shape(CLXENT_F32, 2, 2, 2);
    for (size_t k = 0; k < 4; k++) w.hidden[k] = w.weight[k] = k < 2 ? 1 : -1;
    w.hidden[0] = w.hidden[1] = 1e30;
    w.weight[0] = 1e30, w.weight[1] = -1e30; /* x = 0, or inf - inf */
    w.weight[2] = w.weight[3] = 0;
    w.bias[0] = w.bias[1] = 0;
    w.hidden[2] = w.hidden[3] = 1e-30;
    w.targets[1] = 1;
    solve();
    cr_assert(w.lse_bound[0] == INFINITY && w.losses_bound[0] == INFINITY && w.entropy_bound[0] == INFINITY);
    cr_assert(w.loss_bound[0] == INFINITY && w.bound[HIDDEN][0] == INFINITY &&
              w.bound[WEIGHT][0] == INFINITY);
    cr_assert(w.bound[BIAS][0] == INFINITY && w.allowed[0] == 1 && w.allowed[1] == 1);
    cr_assert(isfinite(w.lse_bound[1]) && isfinite(w.losses_bound[1]) && isfinite(w.bound[HIDDEN][2]));
}

/* Logits of 0 that are off by 200: exp(200) is no infinity, but more than anything is known by. */
Test(linear, errors_of_hundreds_have_infinite_bounds)
{
    shape(CLXENT_F32, 1, 2, 2);
    w.desc.has_bias = 0;
    w.hidden[0] = w.hidden[1] = w.weight[0] = 20480, w.weight[1] = -20480;
    w.weight[2] = 0.5, w.weight[3] = -0.5;
    solve();
    cr_assert(w.lse_bound[0] == INFINITY && w.losses_bound[0] == INFINITY && w.entropy_bound[0] == INFINITY);
    cr_assert(w.bound[HIDDEN][0] == INFINITY && w.bound[WEIGHT][3] == INFINITY && w.allowed[1] == 1);
}

/* A product that a device flushes to 0, then a factor: large scales bring the logit of class 0 back. */
Test(linear, bounds_admit_that_products_and_factors_underflow)
{
    static const struct {
        double hidden, weight, scale;
    } cases[] = { { 1e-20, 1e-20, 0x1p120 }, { 0x1p-130, 0x1p100, 0x1p20 }, { 0x1p100, 0x1p-130, 0x1p20 } };

    for (size_t i = 0; i < COUNT(cases); i++) {
        reset();
        shape(CLXENT_F32, 1, 2, 1);
        w.desc.has_bias = 0;
        w.hidden[0] = cases[i].hidden;
        w.weight[0] = cases[i].weight;
        w.weight[1] = 0;
        w.desc.logit_scale = cases[i].scale;
        solve();
        const double lost = log(2) - w.losses[0];
        cr_assert(lost > 5e-5 && w.losses_bound[0] >= lost, "case %zu: %g, bound %g", i, lost,
                  w.losses_bound[0]);
    }
    w.hidden[0] = 0;
    solve();
    cr_assert(w.bound[WEIGHT][0] == 0 && w.allowed[1] == 0, "products of 0 are exact");
}

/* ---- argmax -------------------------------------------------------------------------------- */

Test(linear, argmax_may_be_any_class_within_the_errors_of_the_largest)
{
    /* the same products in another order; far below; more than the errors below; again the same */
    static const double hidden[] = { 1, 1, 1 };
    static const double weight[] = { 0.1, 0.7, 3, -9, 0, 1, 3, 0.7, 0.0999, 0.7, 0.1, 3, 3, 0.1, 0.7000001 };

    shape(CLXENT_F32, 1, 5, 3);
    w.desc.has_bias = 0;
    memcpy(w.hidden, hidden, sizeof hidden);
    memcpy(w.weight, weight, sizeof weight);
    for (int scale = 1; scale >= -1; scale--) {
        static const unsigned char want[3][5] = { { 0, 1, 0, 0, 0 }, { 1, 0, 0, 0, 0 }, { 1, 0, 0, 1, 1 } };
        w.desc.logit_scale = scale;
        solve();
        for (int j = 0; j < 5; j++)
            cr_assert_eq(w.allowed[j], want[scale + 1][j], "scale %d, class %d", scale, j);
    }
    /* equal logits without an error are a tie, and the first one wins */
    memset(w.hidden, 0, sizeof w.hidden);
    w.desc.logit_scale = 1;
    solve();
    cr_assert(w.argmax[0] == 0 && w.allowed[0] == 1 && w.allowed[1] == 0 && w.allowed[4] == 0);
}
