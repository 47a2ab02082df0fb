/* SPDX-License-Identifier: MIT
 *
 * test_numerics.c - how large errors are, and that they do not grow with the number of classes.
 *
 * CLXENT_TEST_RATIOS=1 test_numerics --filter 'numerics/errors*' prints the table of tools/bench/README.md on stderr.
 */
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

TestSuite(numerics, .init = open_device, .fini = close_device);

static clxent_desc make_sum(uint32_t outputs, uint32_t dtype, size_t rows, size_t classes)
{
    clxent_desc desc = make_desc(outputs, dtype, rows, 1, classes);
    desc.reduction = CLXENT_REDUCTION_SUM;
    return desc;
}

/* ---- By output, dtype and class count ------------------------------------------------------ */

static const size_t class_counts[] = { 10, 1000, 32768, 262144 };
static const size_t small_class_counts[] = { 10, 300 };

/* Random rows and designed ones: of all signs and sizes, offset, masked, confident. Losses and gradients as most
 * ask for them, then beside the entropy. */
static void measure(uint32_t dtype, size_t classes)
{
    /* for the table more than a test needs */
    const size_t most = ((size_t)1 << (wants_ratios() ? 20 : 16)) / classes, least = wants_ratios() ? 26 : 4;
    const size_t rows = small_run() ? 12 : most > 5000 ? 5000 : most < least ? least : most;
    const uint32_t fills[] = { FILL_PLAIN | FILL_HIT, FILL_DESIGNED | FILL_MASKED | FILL_HIT };

    for (size_t i = 0; i < COUNT(fills); i++) {
        const uint32_t without = EVERY_OUTPUT & ~CLXENT_OUTPUT_ENTROPY;
        const clxent_desc plain = make_sum(without, dtype, rows, classes);
        const bool all = runs_all() || wants_ratios();
        /* split rows are programs of their own */
        const uint32_t outputs = all || classes < 100000 ? EVERY_OUTPUT : ONE_PASS_OUTPUTS;
        const clxent_desc general = make_sum(outputs, dtype, rows, classes);
        if (all) run_filled_case("plain", &plain, fills[i], 1 + i, CASE_ALIGNED);
        run_filled_case("general", &general, fills[i], 3 + i, CASE_ALIGNED);
    }
}

Test(numerics, errors_stay_within_their_bounds_at_every_class_count)
{
    static const uint32_t outputs[] = { TENSOR_LOSSES,      TENSOR_LSE,      TENSOR_SOFTMAX,
                                        TENSOR_LOG_SOFTMAX, TENSOR_GRADIENT, TENSOR_ENTROPY };
    static const uint32_t dtypes[] = { CLXENT_F32, CLXENT_F16, CLXENT_BF16, CLXENT_F64 };
    const size_t *counts = small_run() ? small_class_counts : class_counts;
    const size_t count = small_run() ? COUNT(small_class_counts) : COUNT(class_counts);
    worst_error worst[COUNT(outputs)][COUNT(dtypes)][COUNT(class_counts)] = { 0 };

    for (size_t c = 0; c < count; c++) {
        for (size_t d = 0; d < COUNT(dtypes); d++) {
            if (dtypes[d] == CLXENT_F64 && !device.has_f64) continue;
            /* split rows are programs of their own */
            if (!runs_all() && !wants_ratios() && d > 0 && counts[c] > 1000) continue;
            forget_worst();
            measure(dtypes[d], counts[c]);
            for (size_t o = 0; o < COUNT(outputs); o++)
                worst[o][d][c] = worst_of(1u << (outputs[o] - FIRST_OUTPUT), dtypes[d]);
            cr_assert(worst_of(CLXENT_OUTPUT_SOFTMAX, dtypes[d]).ratio > 0, "%s was not measured",
                      clxent_dtype_name(dtypes[d]));
        }
    }
    if (!wants_ratios()) return;
    forget_worst(); /* said here */
    (void)fprintf(stderr, "\n| output | logits |");
    for (size_t c = 0; c < count; c++) (void)fprintf(stderr, " %zu classes |", counts[c]);
    (void)fprintf(stderr, "\n|---|---|%s\n", count == COUNT(class_counts) ? "---|---|---|---|" : "---|---|");
    for (size_t o = 0; o < COUNT(outputs); o++) {
        for (size_t d = 0; d < COUNT(dtypes); d++) {
            (void)fprintf(stderr, "| %s | %s |", tensor_names[outputs[o]], clxent_dtype_name(dtypes[d]));
            for (size_t c = 0; c < count; c++) {
                (void)fprintf(stderr, " %.2f (%.2f) |", worst[o][d][c].ulps, worst[o][d][c].ratio);
            }
            (void)fprintf(stderr, "\n");
        }
    }
}

/* ---- Long sums ----------------------------------------------------------------------------- */

/* The largest relative error, in ulp, of results that hang on a sum of classes - 1 equal terms: one that is added up
 * in one running value drifts, always to the same side, by up to u / 2 for each addition. */
static double error_of_equal_terms(uint32_t dtype, size_t classes)
{
    enum { ROWS = 12 };
    /* no log-softmax: log sum_exp as most plans take it, from one pass */
    const clxent_desc desc = make_sum(ONE_PASS_OUTPUTS, dtype, ROWS, classes);
    const double unit = dtype == CLXENT_F64 ? DBL_EPSILON : FLT_EPSILON;
    clxent_host_args out;
    double worst = 0;
    problem p;

    make_problem(&p, &desc, FILL_PLAIN, 1);
    for (size_t row = 0; row < ROWS; row++) {
        /* row 0: all equal. Others: the target and all else apart by what makes terms of every mantissa. */
        const double others = row == 0 ? 2 : 2 - 0.37 * (double)row;
        for (size_t j = 0; j < classes; j++) set_logit(&p, row * classes + j, j == row ? 2 : others);
        set_target(&p, row, (int64_t)row);
    }
    run_with("equal terms", NULL, &p, 0, &out);
    for (size_t row = 0; row < ROWS; row++) {
        const size_t other = row * classes + (row + 1) % classes, target = row * classes + row;
        const double gap = get_logit(&p, target) - get_logit(&p, other);
        const long double rest = (long double)(classes - 1) * expl(-(long double)gap);
        const struct {
            double got;
            long double want;
        } results[] = { { real_of(&p, &out.losses, row), log1pl(rest) },
                        { real_of(&p, &out.lse, row), 2 + log1pl(rest) },
                        { get_element(out.softmax.data, dtype, target), 1 / (1 + rest) },
                        { get_element(out.softmax.data, dtype, other), expl(-gap) / (1 + rest) },
                        { get_element(out.gradient.data, dtype, target), -rest / (1 + rest) } };
        for (size_t k = 0; k < COUNT(results); k++) {
            const long double want = results[k].want;
            worst = fmax(worst, (double)(fabsl((results[k].got - want) / want) / unit));
        }
    }
    free_run(&p, &out);
    return worst;
}

Test(numerics, a_sum_over_262144_classes_is_as_good_as_one_over_1024)
{
    const size_t many = small_run() ? 4096 : 262144;
    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype += CLXENT_F64 - CLXENT_F32) {
        if (dtype == CLXENT_F64 && !device.has_f64) continue;
        const double few = error_of_equal_terms(dtype, 1024), all = error_of_equal_terms(dtype, many);
        /* Half an ulp apart is the luck of the last rounding. */
        cr_assert(all <= fmax(few, 1) + 0.5, "dtype %u: %.3g ulp over %zu classes, %.3g over 1024",
                  (unsigned)dtype, all, many, few);
        cr_assert(few <= 3, "dtype %u: %.3g ulp over 1024 classes", (unsigned)dtype, few);
    }
}

/* One large term and many equal ones, which each addition rounds the same way: what is added between two flushes is few. */
Test(numerics, sums_of_steady_rows_keep_their_bound)
{
    RUN_LINES({ "steady",
                "outputs=" TRAINING_NAMES "+lse;batch=26;classes=274|1193;small:classes=274;reduction=sum;"
                "fill=steady;seed=9000079" });
}

/* ---- Saturated logits ---------------------------------------------------------------------- */

/* Logits whose softcap is saturated by y = 9 up to where its slope underflows and beyond, of both signs: every second
 * row holds nothing else, the others ordinary ones too. The last row has infinities. */
static void saturate(problem *p)
{
    const clxent_desc *desc = &p->desc;
    const double last = desc->dtype == CLXENT_F64 ? 360 : 46;
    const size_t rows = desc->batch;
    random_state random = random_start(desc->classes);

    for (size_t row = 0; row < rows; row++) {
        for (size_t j = 0; j < desc->classes; j++) {
            const size_t at = element_index(desc, 0, row, j);
            const double y = random_uniform(&random, 9, last), sign = j % 3 == 0 ? -1 : 1;
            double x = sign * desc->softcap * y / desc->logit_scale;
            if (row % 2 == 1 && j % 4 == 0) continue;
            if (row + 1 == rows && j % 7 == 3) x = sign * INFINITY;
            set_logit(p, at, x);
        }
    }
}

/* What is left of the slope there is no difference between 1 and a number that rounds to it. */
Test(numerics, gradients_of_saturated_logits_keep_their_digits)
{
    const double options[][2] = { { 4, 2 }, { 5, 0.7 }, { 0.3, -3 }, { 4, 1 } }; /* softcap, logit_scale */

    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype += CLXENT_F64 - CLXENT_F32) {
        if (dtype == CLXENT_F64 && !device.has_f64) continue;
        for (size_t i = 0; i < (small_run() ? COUNT(options) : volume(COUNT(options), 3)); i++) {
            for (size_t t = 0; t <= EACH_STRATEGY; t++) {
                if (!runs_all() && t != EACH_ROWS && (t != EACH_LANES || dtype == CLXENT_F64)) continue;
                /* an interpreter gets two options of each strategy, the other two in the other dtype */
                if (small_run() && (i + t) % 2 != (dtype == CLXENT_F64)) continue;
                const bool inner = t == EACH_STRATEGY; /* lanes again, with the class axis not last */
                const clxent_tuning tuning = strategy_for(dtype, inner ? EACH_LANES : t);
                clxent_desc desc = make_sum(EVERY_OUTPUT, dtype, inner ? 20 : 6, small_run() ? 40 : 1100);
                problem p;
                if (!driver_takes(&tuning)) continue;
                if (t == EACH_LANES || inner) desc.classes = 40;
                if (inner) desc.inner = 5;
                desc.softcap = options[i][0];
                desc.logit_scale = options[i][1];
                force(&tuning);
                make_problem(&p, &desc, FILL_PLAIN, 1 + t);
                saturate(&p);
                run_case("saturated", &p, 0);
                free_problem(&p);
            }
        }
    }
}

/* ---- Terms that underflow ------------------------------------------------------------------- */

/* In every row one class exceeds N(0, 1) logits of n classes by 8 + log n + 3 k, k from 0 to 31, so that the sum without
 * it falls from exp(-8) to far below the smallest normal number, the terms of single classes before it. */
static void raise_one_class(problem *p, double shift)
{
    const clxent_desc *desc = &p->desc;
    const size_t n = desc->classes, step = 32 / desc->batch;
    random_state random = random_start(n);

    for (size_t row = 0; row < desc->batch; row++) {
        const size_t top = row * 131 % n;
        for (size_t j = 0; j < n; j++) {
            const double radius = sqrt(-2 * log(random_uniform(&random, 0x1p-32, 1)));
            const double normal = radius * cos(random_uniform(&random, 0, 6.283185307179586));
            const double raised =
                8 + log((double)n) + 3 * (double)(row * step) + (row * step > 4 ? shift : 0);
            const double x = j == top ? raised : normal;
            set_logit(p, element_index(desc, 0, row, j), x);
        }
        if (has_index_targets(desc)) {
            set_target(p, row, (int64_t)top);
            continue;
        }
        for (size_t j = 0; j < n; j++)
            put_element((void *)p->args.targets.data, CLXENT_F32, element_index(desc, 0, row, j), j == top);
    }
}

/* Shapes that the parameters of strategy_for() run as whole rows, split rows, rows of larger groups, tiles along the
 * classes, a row for each lane, and that with the class axis not last. */
enum { WHOLE_ROWS, SPLIT_ROWS, GROUPS, ALONG, ROW_PER_LANE, STRIDED, EVERY_SHAPE };
static const struct {
    size_t strategy, classes, inner;
} underflow_shapes[EVERY_SHAPE] = {
    [WHOLE_ROWS] = { EACH_ROWS, 4099, 1 },  [SPLIT_ROWS] = { EACH_SPLIT, 4099, 1 },
    [GROUPS] = { EACH_GROUPS, 4099, 1 },    [ALONG] = { EACH_LANES, 4091, 1 },
    [ROW_PER_LANE] = { EACH_LANES, 40, 1 }, [STRIDED] = { EACH_LANES, 40, 8 },
};

static void check_underflow(int shape, uint32_t dtype, uint32_t target_type)
{
    const size_t all_classes = underflow_shapes[shape].classes;
    const size_t classes = small_run() ? all_classes % 300 : all_classes;
    const double shift = dtype == CLXENT_F64 ? 621 : 0; /* 2^-1022 = exp(-621) 2^-126 */
    /* as the tests of their dtype have it, where few programs are compiled */
    const bool shared = !runs_all() && dtype != CLXENT_F32 && shape == WHOLE_ROWS;
    const uint32_t more = dtype == CLXENT_F64 ? ONE_PASS_OUTPUTS : EVERY_OUTPUT;
    clxent_desc desc = make_sum(shared ? more : TRAINING_OUTPUTS, dtype, small_run() ? 8 : 32, classes);
    problem p;

    if (dtype == CLXENT_F64 && !device.has_f64) return;
    desc.inner = underflow_shapes[shape].inner;
    desc.target_type = target_type;
    if (!has_index_targets(&desc)) desc.outputs &= ~CLXENT_OUTPUT_BAD_TARGETS;
    const clxent_tuning tuning = strategy_for(dtype, underflow_shapes[shape].strategy);
    if (!driver_takes(&tuning)) return;
    force(&tuning);
    make_problem(&p, &desc, FILL_PLAIN, 1);
    raise_one_class(&p, shift);
    run_case("underflow", &p, 0);
    free_problem(&p);
}

/* The programs, here and below, are those of other tests, also where not all of those run. */
Test(numerics, losses_keep_their_bound_where_terms_underflow)
{
    for (int shape = 0; shape < EVERY_SHAPE; shape++)
        if (runs_all() || shape != STRIDED) check_underflow(shape, CLXENT_F32, CLXENT_TARGET_I64);
}

Test(numerics, f64_losses_keep_their_bound_where_terms_underflow)
{
    check_underflow(WHOLE_ROWS, CLXENT_F64, CLXENT_TARGET_I64);
    if (!runs_all()) return;
    check_underflow(ROW_PER_LANE, CLXENT_F64, CLXENT_TARGET_I64);
    check_underflow(SPLIT_ROWS, CLXENT_F64, CLXENT_TARGET_I64);
    check_underflow(ALONG, CLXENT_F64, CLXENT_TARGET_I64);
    check_underflow(GROUPS, CLXENT_F64, CLXENT_TARGET_PROBABILITIES_F32);
    check_underflow(STRIDED, CLXENT_F64, CLXENT_TARGET_PROBABILITIES_F32);
}

Test(numerics, losses_of_16_bit_logits_keep_their_bound_where_terms_underflow)
{
    for (uint32_t dtype = CLXENT_F16; dtype <= CLXENT_BF16; dtype++) {
        if (runs_all() || dtype == CLXENT_BF16) check_underflow(WHOLE_ROWS, dtype, CLXENT_TARGET_I64);
        if (full_run() || (!small_run() && dtype == CLXENT_BF16))
            check_underflow(ALONG, dtype, CLXENT_TARGET_I64);
    }
}

Test(numerics, losses_of_soft_targets_keep_their_bound_where_terms_underflow)
{
    for (int shape = 0; shape < EVERY_SHAPE; shape++)
        if (full_run() ? shape != ALONG : shape == WHOLE_ROWS || (!small_run() && shape == ROW_PER_LANE))
            check_underflow(shape, CLXENT_F32, CLXENT_TARGET_PROBABILITIES_F32);
}

/* ---- Upstreams ------------------------------------------------------------------------------ */

/* From below the normal numbers to the largest: what multiplies a row's exponentials is then no normal number, or infinite, where
 * gradients are. Masked classes have 0 all the same. */
static void check_upstreams(int shape, uint32_t dtype, bool of_entropy)
{
    const double small = dtype == CLXENT_F64 ? DBL_MIN : (double)FLT_MIN;
    const double large = dtype == CLXENT_F64 ? DBL_MAX : (double)FLT_MAX;
    const double upstreams[] = {
        large, -large / 512, small * 0x1p40, small * 0x1p20, -small * 64, small / 16
    };
    /* a program of test_cross_entropy.c */
    const uint32_t outputs = TRAINING_OUTPUTS | (of_entropy ? CLXENT_OUTPUT_ENTROPY : 0);
    const size_t classes = underflow_shapes[shape].classes;
    clxent_desc desc = make_sum(outputs, dtype, 16, small_run() ? classes % 300 : classes);
    const clxent_tuning tuning = strategy_for(dtype, underflow_shapes[shape].strategy);

    if (!driver_takes(&tuning)) return;
    desc.inner = underflow_shapes[shape].inner;
    desc.has_grad_lse = desc.has_grad_entropy = of_entropy;
    force(&tuning);
    for (size_t i = 0; i < COUNT(upstreams); i++) {
        problem p;
        make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_HIT | FILL_GRAD_OUTPUT, 3 + i);
        put_element((void *)p.args.grad_output.data, dtype, 0, of_entropy ? 1 : upstreams[i]);
        for (size_t row = 0; of_entropy && row < desc.batch; row++) {
            const size_t at = row % COUNT(upstreams);
            put_element((void *)p.args.grad_lse.data, dtype, row, row % 2 == i % 2 ? upstreams[at] : 0);
            put_element((void *)p.args.grad_entropy.data, dtype, row, row % 2 == i % 2 ? 0 : upstreams[at]);
        }
        run_case("upstreams", &p, CASE_RUN_ONCE);
        free_problem(&p);
        if (of_entropy && i == 1) break; /* each row has had either upstream */
    }
}

Test(numerics, gradients_keep_their_digits_under_upstreams_of_every_size)
{
    for (int shape = 0; shape < EVERY_SHAPE; shape++) {
        if (!runs_all() && shape == STRIDED) continue;
        check_upstreams(shape, CLXENT_F32, false);
        if (runs_all() && device.has_f64) check_upstreams(shape, CLXENT_F64, false);
        if (runs_all() || shape == WHOLE_ROWS || shape == ROW_PER_LANE)
            check_upstreams(shape, CLXENT_F32, true);
    }
}
