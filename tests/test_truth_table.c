/* SPDX-License-Identifier: MIT
 *
 * test_truth_table.c - rows that are not finite and rows that do not count: one test for each line of the table
 * in clxent.h, on every strategy with every dtype, and several class counts.
 *
 * What a line promises is written out here, not taken from the reference.
 */
#include "internal.h"
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One work-item a row with exponentials kept and computed twice; rows in pieces, split; groups with vectors; lanes in
 * registers. In full and small runs also one work-item without vectors, groups without, and lanes of a group. */
static const clxent_tuning tunings[] = {
    ROWS(1, 16, 64, 8192, 4096, 0),
    ROWS(1, 16, 64, 0, 4096, 1),
    PIECES(1, 16, 64, 8192, 1024, UINT32_MAX),
    ROWS(64, 4, 4, 16384, 1024, 0),
    LANES(1, 16, 1 << 19, 0),
    ROWS(1, 1, 4, 8192, 4096, 0),
    PIECES(16, 1, 4, 0, 64, UINT32_MAX),
    LANES(32, 1, 1 << 19, 0),
};
static size_t strategies(void) { return small_run() ? COUNT(tunings) : volume(COUNT(tunings), 5); }

static const size_t classes_of[] = { 4, 17, 1025, 3000 };
enum { MOST_LANES = 1025 }; /* more classes do not fit into a tile, and are rows */

/* What other dtypes than f32 run on: strategy_for() each, and lanes once more with the class axis not last. Where
 * `general`, an output that needs the program of all options is asked for besides. That program serves every line, and
 * of all these other tests have compiled the programs before, but for work-groups of f16 with options: PoCL takes half a
 * minute for vectors there, so those are scalars. */
enum { ON_INNER_LANES = EACH_STRATEGY, ON_ALL };
typedef struct place {
    clxent_tuning tuning;
    size_t inner, most_classes;
    bool general;
} place;

static place place_for(uint32_t dtype, size_t which, bool options)
{
    const clxent_tuning scalars = ROWS(16, 1, 4, 8192, 1024, 0);
    const bool inner = which == ON_INNER_LANES, lanes = inner || which == EACH_LANES;
    place at = { strategy_for(dtype, inner ? EACH_LANES : which), inner ? 3 : 1,
                 lanes ? MOST_LANES : SIZE_MAX, which != EACH_ROWS && which != EACH_LANES };
    if (which == EACH_GROUPS && dtype == CLXENT_F16) {
        at.general = false;
        if (options) at.tuning = scalars;
    }
    if (which == EACH_GROUPS && !runs_all()) at.tuning = scalars;
    return at;
}

/* Every dtype but f32 that the device has, bf16 alone unless the run is a full one. */
static bool next_dtype(uint32_t *dtype)
{
    if (!full_run()) {
        *dtype = *dtype == CLXENT_F32 && !small_run() ? CLXENT_BF16 : CLXENT_F64 + 1;
        return *dtype == CLXENT_BF16;
    }
    return ++*dtype <= CLXENT_F64 && (*dtype != CLXENT_F64 || device.has_f64);
}

/* PoCL takes 10 s for the program of a larger group with two [rows, classes] outputs. */
static uint32_t outputs_on(const clxent_tuning *tuning, bool with_entropy)
{
    if (!runs_all() && tuning->group > 1) return TRAINING_OUTPUTS | CLXENT_OUTPUT_LSE;
    if (!with_entropy) return ONE_PASS_OUTPUTS;
    return runs_all() ? ONE_PASS_OUTPUTS | CLXENT_OUTPUT_ENTROPY
                      : EVERY_OUTPUT; /* as test_cross_entropy.c has it */
}

/* A row's expectations; NAN means NaN, and FINITE any finite number. */
#define FINITE 12345.0

typedef struct line {
    const char *name;
    double smoothing, z_loss;
    /* logits of classes classes, around ordinary ones in x; target's class */
    void (*fill)(double *x, size_t classes, size_t target);
    double loss, lse, gradient; /* gradient: of every class with a finite logit */
    double at_masked;           /* gradient of classes at -inf that are not the target; NAN: as gradient */
    bool weights;               /* the row's weight is 0 */
    bool ignored;
} line;

static bool is_as(double got, double want)
{
    if (want == FINITE) return isfinite(got);
    return isnan(want) ? isnan(got) : got == want;
}

static void check_row(const char *name, const clxent_desc *desc, const line *l, const double *x,
                      size_t target, const clxent_host_args *out, size_t row)
{
    const size_t n = desc->classes;
    const uint32_t real = desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
    const double loss = get_element(out->losses.data, real, row);

    if (out->entropy.data != NULL) {
        const double entropy = get_element(out->entropy.data, real, row);
        cr_assert(is_as(entropy, l->lse == FINITE ? FINITE : NAN), "%s: entropy %g", name, entropy);
    }
    cr_assert(is_as(loss, l->loss), "%s: loss %g, not %g", name, loss, l->loss);
    if (out->lse.data != NULL) {
        const double lse = get_element(out->lse.data, real, row);
        cr_assert(is_as(lse, l->lse), "%s: lse %g, not %g", name, lse, l->lse);
    }
    for (size_t j = 0; j < n; j++) {
        const size_t at = element_index(desc, 0, row, j);
        const double gradient = get_element(out->gradient.data, desc->dtype, at);
        const double want = x[j] == -INFINITY && j != target ? l->at_masked : l->gradient;
        cr_assert(is_as(gradient, want), "%s: gradient of class %zu is %g, not %g", name, j, gradient, want);
        if (out->softmax.data == NULL) continue;
        const double softmax = get_element(out->softmax.data, desc->dtype, at);
        if (l->lse == FINITE) {
            cr_assert(x[j] == -INFINITY ? softmax == 0 : softmax >= 0 && softmax <= 1.000001,
                      "%s: softmax of class %zu is %g at %g", name, j, softmax, x[j]);
        } else if (!l->weights && !l->ignored) {
            cr_assert(isnan(softmax), "%s: softmax of class %zu is %g", name, j, softmax);
        }
    }
}

/* Where the lines of an option run, too: rows and lanes of f32. */
static bool is_typical(const clxent_tuning *tuning, uint32_t dtype, size_t classes, size_t inner)
{
    const bool lanes = tuning->lane_classes > 0;
    return dtype == CLXENT_F32 && inner == 1 && tuning->group == 1 && tuning->split == 0 &&
           (!lanes || classes <= MOST_LANES);
}

/* Two rows with the line's logits, target first and last, and an ordinary one between that must not notice. */
static void check_case(const line *l, const clxent_tuning *tuning, uint32_t dtype, size_t classes,
                       size_t inner, uint32_t outputs)
{
    enum { ROWS = 3 };
    const size_t targets[ROWS] = { 0, classes / 2, classes - 1 };
    clxent_desc desc = make_desc(outputs, dtype, ROWS, 1, classes);
    clxent_host_args out;
    clxent_plan *plan;
    problem p;
    char name[160];
    double *x = take_memory(ROWS * classes * sizeof *x);
    random_state random = { classes };

    if (!driver_takes(tuning) ||
        (!runs_all() && l->smoothing != 0 && !is_typical(tuning, dtype, classes, inner))) {
        free(x);
        return;
    }
    desc.inner = inner;
    desc.reduction = CLXENT_REDUCTION_SUM;
    desc.label_smoothing = l->smoothing;
    desc.z_loss = l->z_loss;
    desc.has_row_weights = l->weights;
    (void)snprintf(name, sizeof name,
                   "%s, group %u vector %u cache %u, dtype %u, %zu classes, inner %zu, outputs %#x", l->name,
                   (unsigned)tuning->group, (unsigned)tuning->vector, (unsigned)tuning->cache,
                   (unsigned)dtype, classes, inner, (unsigned)outputs);
    make_problem(&p, &desc, FILL_PLAIN, 1);
    for (size_t row = 0; row < ROWS; row++) {
        double *own = x + row * classes;
        for (size_t j = 0; j < classes; j++) own[j] = random_uniform(&random, -4, 4);
        if (row != 1) l->fill(own, classes, targets[row]);
        for (size_t j = 0; j < classes; j++) {
            put_element((void *)p.args.logits.data, dtype, element_index(&desc, 0, row, j), own[j]);
        }
        put_target((void *)p.args.targets.data, desc.target_type, row,
                   l->ignored && row != 1 ? desc.ignore_index : (int64_t)targets[row]);
        if (l->weights) {
            put_element((void *)p.args.row_weights.data, dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32, row,
                        row == 1);
        }
    }
    cr_assert(clxent_plan_create_tuned(&plan, device.ctx, &desc, tuning) == CLXENT_OK, "%s: %s", name,
              last_error());
    cr_assert(plan->along == (outputs == ALONG_OUTPUTS), "%s: %s", name, clxent_plan_strategy(plan));
    run_once(name, plan, &p, desc.outputs, 0, &out);
    check_row(name, &desc, l, x, targets[0], &out, 0);
    check_row(name, &desc, l, x + 2 * classes, targets[2], &out, 2);
    cr_assert(isfinite(get_element(out.losses.data, dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32, 1)),
              "%s: the row between is not finite", name);
    free_outputs(&out);
    clxent_plan_destroy(plan);
    free_problem(&p);
    free(x);
}

static void check_line(const line *l)
{
    const clxent_tuning along = LANES(1, 16, 1 << 19, 1);
    uint32_t dtype_along = CLXENT_F32;

    do {
        if (l->smoothing == 0) check_case(l, &along, dtype_along, 100, 1, ALONG_OUTPUTS);
    } while (next_dtype(&dtype_along));
    const size_t counts = small_run() ? 2 : COUNT(classes_of);
    for (size_t i = 0; i < counts; i++) {
        for (size_t t = 0; t < strategies(); t++)
            check_case(l, &tunings[t], CLXENT_F32, classes_of[i], 1, outputs_on(&tunings[t], false));
        check_case(l, &tunings[0], CLXENT_F32, classes_of[i], 3, outputs_on(&tunings[0], false));
        for (uint32_t dtype = CLXENT_F32; next_dtype(&dtype);) {
            for (size_t which = 0; which < ON_ALL; which++) {
                const place at = place_for(dtype, which, l->smoothing != 0);
                if (classes_of[i] > at.most_classes) continue;
                check_case(l, &at.tuning, dtype, classes_of[i], at.inner, outputs_on(&at.tuning, at.general));
            }
        }
    }
}

TestSuite(truth_table, .init = open_device, .fini = close_device);

/* ---- Rows ---------------------------------------------------------------------------------- */

static void mask_others(double *x, size_t classes, size_t target)
{
    for (size_t j = 0; j < classes; j++) {
        if (j % 2 == 1 && j != target) x[j] = -INFINITY;
    }
}

static void mask_target(double *x, size_t classes, size_t target)
{
    (void)classes;
    x[target] = -INFINITY;
}

static void mask_all(double *x, size_t classes, size_t target)
{
    (void)target;
    for (size_t j = 0; j < classes; j++) x[j] = -INFINITY;
}

static void put_infinity(double *x, size_t classes, size_t target)
{
    (void)target;
    x[classes / 2] = INFINITY;
}

static void put_infinities(double *x, size_t classes, size_t target)
{
    (void)target;
    x[0] = -INFINITY;
    x[classes / 2] = x[classes - 1] = INFINITY;
}

static void put_nan(double *x, size_t classes, size_t target)
{
    (void)target;
    x[classes / 2] = NAN;
}

static void put_nan_at_target(double *x, size_t classes, size_t target)
{
    (void)classes;
    x[target] = NAN;
}

static void put_nan_and_infinity(double *x, size_t classes, size_t target)
{
    (void)target;
    x[classes / 2] = NAN;
    x[0] = INFINITY;
    x[1] = -INFINITY;
}

static void put_everything(double *x, size_t classes, size_t target)
{
    put_nan_and_infinity(x, classes, target);
    x[target] = NAN;
}

static void mask_leading(double *x, size_t classes, size_t target)
{
    for (size_t j = 0; j + 2 < classes; j++) {
        if (j != target) x[j] = -INFINITY;
    }
}

/* ---- Lines --------------------------------------------------------------------------------- */

Test(truth_table, a_masked_class_that_is_not_the_target_has_no_share)
{
    const line l = { "masked class", 0, 0.1, mask_others, FINITE, FINITE, FINITE, 0, false, false };
    check_line(&l);
}

Test(truth_table, a_masked_target_makes_the_loss_infinite_and_the_gradient_finite)
{
    const line l = { "masked target", 0, 0, mask_target, INFINITY, FINITE, FINITE, 0, false, false };
    check_line(&l);
}

Test(truth_table, masks_and_label_smoothing_make_the_loss_infinite_never_nan)
{
    const line others = {
        "smoothing over a masked class", 0.1, 0, mask_others, INFINITY, FINITE, FINITE, FINITE, false, false
    };
    const line target = {
        "smoothing, masked target", 0.1, 0, mask_target, INFINITY, FINITE, FINITE, FINITE, false, false
    };
    check_line(&others);
    check_line(&target);
}

Test(truth_table, a_row_of_masks_is_nan_with_an_lse_of_minus_infinity)
{
    const line l = { "all masked", 0, 0, mask_all, NAN, -INFINITY, NAN, NAN, false, false };
    const line smooth = {
        "all masked, smoothing", 0.1, 0.1, mask_all, NAN, -INFINITY, NAN, NAN, false, false
    };
    check_line(&l);
    check_line(&smooth);
}

Test(truth_table, plus_infinity_makes_nan_with_an_lse_of_infinity)
{
    const line one = { "+inf", 0, 0, put_infinity, NAN, INFINITY, NAN, NAN, false, false };
    const line many = { "several +inf", 0.1, 0, put_infinities, NAN, INFINITY, NAN, NAN, false, false };
    check_line(&one);
    check_line(&many);
}

Test(truth_table, nan_anywhere_makes_everything_nan)
{
    const line l = { "NaN", 0, 0, put_nan, NAN, NAN, NAN, NAN, false, false };
    const line target = { "NaN at the target", 0, 0, put_nan_at_target, NAN, NAN, NAN, NAN, false, false };
    const line both = { "NaN and +inf", 0, 0, put_nan_and_infinity, NAN, NAN, NAN, NAN, false, false };
    check_line(&l);
    check_line(&target);
    check_line(&both);
}

Test(truth_table, an_ignored_row_is_zero_whatever_it_holds)
{
    const line l = { "ignored", 0, 0, put_everything, 0, NAN, 0, 0, false, true };
    const line masked = { "ignored, all masked", 0.1, 0.1, mask_all, 0, -INFINITY, 0, 0, false, true };
    check_line(&l);
    check_line(&masked);
}

Test(truth_table, a_row_of_weight_0_is_zero_whatever_it_holds)
{
    const line l = { "weight 0", 0, 0, put_everything, 0, NAN, 0, 0, true, false };
    const line infinite = { "weight 0, +inf", 0.1, 0.1, put_infinity, 0, INFINITY, 0, 0, true, false };
    check_line(&l);
    check_line(&infinite);
}

Test(truth_table, a_long_leading_mask_is_as_if_it_were_not_there)
{
    const line l = { "leading masks", 0, 0.1, mask_leading, FINITE, FINITE, FINITE, 0, false, false };
    check_line(&l);
}

/* The rest of the table is about numbers: the reference judges, on every strategy. */
/* The largest offset that storage has besides, of f16. */
static void check_offset(const clxent_tuning *tuning, uint32_t dtype, size_t classes, size_t inner,
                         bool general)
{
    clxent_desc desc = make_desc(outputs_on(tuning, general), dtype, 3, 1, classes);
    problem p;

    if (!driver_takes(tuning)) return;
    force(tuning);
    desc.inner = inner;
    make_problem(&p, &desc, FILL_PLAIN, 2);
    for (size_t k = 0; k < 3 * classes; k++) {
        const double x = get_element(p.args.logits.data, dtype, k);
        put_element((void *)p.args.logits.data, dtype, k, x + (dtype == CLXENT_F16 ? 3e4 : 1e6));
    }
    run_case("logits + 1e6", &p, 0);
    free_problem(&p);
}

Test(truth_table, an_offset_of_a_million_changes_nothing_but_what_storage_rounds)
{
    for (size_t i = 0; i < (small_run() ? 2 : COUNT(classes_of)); i++) {
        for (size_t t = 0; t < strategies(); t++)
            check_offset(&tunings[t], CLXENT_F32, classes_of[i], 1, false);
        for (uint32_t dtype = CLXENT_F32; next_dtype(&dtype);) {
            for (size_t which = 0; which < ON_ALL; which++) {
                const place at = place_for(dtype, which, false);
                if (classes_of[i] > at.most_classes) continue;
                check_offset(&at.tuning, dtype, classes_of[i], at.inner, at.general);
            }
        }
    }
}

static void check_one_class(const clxent_tuning *tuning, uint32_t dtype, size_t inner, bool general)
{
    enum { ROWS = 6 };
    const uint32_t real = dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
    clxent_desc desc = make_desc(outputs_on(tuning, general), dtype, ROWS, 1, 1);
    clxent_host_args out;
    clxent_plan *plan;
    problem p;

    if (!driver_takes(tuning)) return;
    desc.inner = inner;
    make_problem(&p, &desc, FILL_PLAIN, 1);
    cr_assert(clxent_plan_create_tuned(&plan, device.ctx, &desc, tuning) == CLXENT_OK, "%s", last_error());
    run_once("one class", plan, &p, desc.outputs, 0, &out);
    for (size_t row = 0; row < ROWS; row++) {
        const double x = get_element(p.args.logits.data, dtype, row);
        const char *name = clxent_plan_strategy(plan);
        cr_assert(get_element(out.losses.data, real, row) == 0, "%s: loss of row %zu", name, row);
        cr_assert(get_element(out.gradient.data, dtype, row) == 0, "%s: gradient of row %zu", name, row);
        cr_assert(get_element(out.lse.data, real, row) == x, "%s: lse of row %zu", name, row);
        cr_assert(out.softmax.data == NULL || fabs(get_element(out.softmax.data, dtype, row) - 1) <= 2e-7,
                  "%s: softmax of row %zu", name, row);
        cr_assert(out.entropy.data == NULL || get_element(out.entropy.data, real, row) == 0,
                  "%s: entropy of row %zu", name, row);
    }
    free_outputs(&out);
    clxent_plan_destroy(plan);
    free_problem(&p);
}

Test(truth_table, one_class_costs_nothing)
{
    for (size_t t = 0; t < strategies(); t++) check_one_class(&tunings[t], CLXENT_F32, 1, false);
    for (uint32_t dtype = CLXENT_F32; next_dtype(&dtype);) {
        for (size_t which = 0; which < ON_ALL; which++) {
            const place at = place_for(dtype, which, false);
            check_one_class(&at.tuning, dtype, at.inner, at.general);
        }
    }
}

static void check_no_rows(uint32_t dtype, uint32_t reduction, uint32_t policy)
{
    const uint32_t real = dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
    clxent_desc desc =
        make_desc(CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT, dtype, 0, 1, 7);
    clxent_host_args out;
    clxent_plan *plan;
    problem p;

    desc.reduction = reduction;
    desc.all_ignored = policy;
    make_problem(&p, &desc, FILL_PLAIN, 1);
    cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    run_once("no rows", plan, &p, desc.outputs, 0, &out); /* waits for the event */
    const double loss = get_element(out.loss.data, real, 0);
    const double want = reduction == CLXENT_REDUCTION_MEAN && policy == CLXENT_ALL_IGNORED_NAN ? NAN : 0;
    cr_assert(is_as(loss, want), "dtype %u, reduction %u: loss %g", (unsigned)dtype, (unsigned)reduction,
              loss);
    cr_assert(out.losses.size == 0 && out.gradient.size == 0);
    free_outputs(&out);
    clxent_plan_destroy(plan);
    free_problem(&p);
}

Test(truth_table, no_rows_give_an_empty_none_a_zero_sum_and_the_policy_of_the_mean)
{
    for (uint32_t policy = CLXENT_ALL_IGNORED_NAN; policy <= CLXENT_ALL_IGNORED_ZERO; policy++) {
        for (uint32_t reduction = CLXENT_REDUCTION_MEAN; reduction <= CLXENT_REDUCTION_SUM; reduction++) {
            check_no_rows(CLXENT_F32, reduction, policy);
            for (uint32_t dtype = CLXENT_F32; next_dtype(&dtype);) check_no_rows(dtype, reduction, policy);
        }
    }
}
