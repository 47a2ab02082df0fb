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

static const size_t classes_of[] = { 4, 33, 1025, 3000 };

/* An interpreter gets the first two class counts: small groups, and pieces of 16, of which the second count has three. */
static clxent_tuning sized(clxent_tuning tuning)
{
    tuning.group = group_of_several(tuning.group);
    tuning.lane_group = group_of_several(tuning.lane_group);
    if (small_run() && tuning.piece > 0) {
        tuning.piece = 16;
        tuning.vector = tuning.group > 1 ? 1 : 4;
        tuning.block = tuning.piece / (tuning.group * tuning.vector);
    }
    return tuning;
}
enum { MOST_LANES = 1025 }; /* more classes do not fit into a tile, and are rows */

/* What other dtypes than f32 run on: strategy_for() each, and lanes once more with the class axis not last. Where
 * `general`, an output that needs the program of all options is asked for besides. That program serves every line, and
 * of all these other tests have compiled the programs before, but for work-groups of f16 with options: PoCL takes half a
 * minute for vectors there, so those are scalars. */
enum { ON_INNER_LANES = EACH_STRATEGY, ON_ALL };
typedef struct place {
    clxent_tuning tuning;
    uint32_t dtype;
    size_t inner, most_classes;
    bool general;
} place;

static place place_for(uint32_t dtype, size_t which, bool options)
{
    const clxent_tuning scalars = ROWS(16, 1, 4, 8192, 1024, 0);
    const bool inner = which == ON_INNER_LANES, lanes = inner || which == EACH_LANES;
    place at = { sized(strategy_for(dtype, inner ? EACH_LANES : which)), dtype, inner ? 3 : 1,
                 lanes ? MOST_LANES : SIZE_MAX, !runs_all() || (which != EACH_ROWS && which != EACH_LANES) };
    if (which == EACH_GROUPS && dtype == CLXENT_F16) {
        at.general = false;
        if (options) at.tuning = scalars;
    }
    return at;
}

/* Every dtype but f32 that the device has, bf16 alone unless the run is a full one; an interpreter gets the others. */
static bool next_dtype(uint32_t *dtype)
{
    if (!full_run()) {
        *dtype = *dtype == CLXENT_F32 && !small_run() ? CLXENT_BF16 : CLXENT_F64 + 1;
        return *dtype == CLXENT_BF16;
    }
    if (++*dtype == CLXENT_BF16 && small_run()) ++*dtype;
    return *dtype <= CLXENT_F64 && (*dtype != CLXENT_F64 || device.has_f64);
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
#define INF INFINITY

/* What a row has beside ordinary logits. */
enum row {
    MASKED_OTHERS, /* every second class but the target */
    MASKED_LEADING,
    MASKED_TARGET,
    MASKED,
    ONE_INFINITY,
    INFINITIES, /* of both signs */
    ONE_NAN,
    NAN_AT_TARGET,
    NAN_AND_INFINITIES,
    EVERYTHING
};

static void fill_row(enum row row, double *x, size_t n, size_t target)
{
    for (size_t j = 0; j < n; j++) {
        const bool other = j != target;
        if (row == MASKED || (row == MASKED_OTHERS && j % 2 == 1 && other) ||
            (row == MASKED_LEADING && j + 2 < n && other))
            x[j] = -INF;
    }
    if (row == INFINITIES) x[0] = -INF;
    if (row == NAN_AND_INFINITIES || row == EVERYTHING) {
        x[0] = INF;
        x[1] = -INF;
    }
    if (row == ONE_INFINITY || row == INFINITIES) x[n / 2] = INF;
    if (row == INFINITIES) x[n - 1] = INF;
    if (row == ONE_NAN || row == NAN_AND_INFINITIES || row == EVERYTHING) x[n / 2] = NAN;
    if (row == MASKED_TARGET) x[target] = -INF;
    if (row == NAN_AT_TARGET || row == EVERYTHING) x[target] = NAN;
}

typedef struct line {
    const char *name;
    double smoothing, z_loss;
    enum row row;
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

static void check_row(const char *name, const problem *p, const line *l, const double *x, size_t target,
                      const clxent_host_args *out, size_t row)
{
    const clxent_desc *desc = &p->desc;
    const double loss = real_of(p, &out->losses, row);

    cr_assert(is_as(loss, l->loss), "%s: loss %g, not %g", name, loss, l->loss);
    if (out->entropy.data != NULL) {
        const double entropy = real_of(p, &out->entropy, row);
        cr_assert(is_as(entropy, l->lse == FINITE ? FINITE : NAN), "%s: entropy %g", name, entropy);
    }
    if (out->lse.data != NULL) {
        const double lse = real_of(p, &out->lse, row);
        cr_assert(is_as(lse, l->lse), "%s: lse %g, not %g", name, lse, l->lse);
    }
    for (size_t j = 0; j < desc->classes; j++) {
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
static bool is_typical(const place *at, size_t classes)
{
    const bool lanes = at->tuning.lane_classes > 0;
    return at->dtype == CLXENT_F32 && at->inner == 1 && at->tuning.group == 1 && at->tuning.split == 0 &&
           (!lanes || classes <= MOST_LANES);
}

/* Two rows with the line's logits, target first and last, and an ordinary one between that must not notice. */
static void check_case(const line *l, const place *at, size_t classes, uint32_t outputs)
{
    enum { ROWS = 3 };
    const clxent_tuning *tuning = &at->tuning;
    const size_t targets[ROWS] = { 0, classes / 2, classes - 1 };
    clxent_desc desc = make_desc(outputs, at->dtype, ROWS, 1, classes);
    clxent_host_args out;
    problem p;
    char name[160];
    random_state random = { classes };

    if (!driver_takes(tuning) || (!runs_all() && l->smoothing != 0 && !is_typical(at, classes))) return;
    desc.inner = at->inner;
    desc.reduction = CLXENT_REDUCTION_SUM;
    desc.label_smoothing = l->smoothing;
    desc.z_loss = l->z_loss;
    desc.has_row_weights = l->weights;
    (void)snprintf(name, sizeof name,
                   "%s, group %u vector %u cache %u, dtype %u, %zu classes, inner %zu, outputs %#x", l->name,
                   (unsigned)tuning->group, (unsigned)tuning->vector, (unsigned)tuning->cache,
                   (unsigned)at->dtype, classes, at->inner, (unsigned)outputs);
    make_problem(&p, &desc, FILL_PLAIN, 1);
    double *x = take_memory(ROWS * classes * sizeof *x);
    for (size_t row = 0; row < ROWS; row++) {
        double *own = x + row * classes;
        for (size_t j = 0; j < classes; j++) own[j] = random_uniform(&random, -4, 4);
        if (row != 1) fill_row(l->row, own, classes, targets[row]);
        for (size_t j = 0; j < classes; j++) set_logit(&p, element_index(&desc, 0, row, j), own[j]);
        set_target(&p, row, l->ignored && row != 1 ? desc.ignore_index : (int64_t)targets[row]);
        if (l->weights) put_element((void *)p.args.row_weights.data, real_dtype(&desc), row, row == 1);
    }
    clxent_plan *plan = plan_with(tuning, &desc);
    cr_assert(plan->along == (outputs == ALONG_OUTPUTS), "%s: %s", name, clxent_plan_strategy(plan));
    run_once(name, plan, &p, desc.outputs, 0, &out);
    check_row(name, &p, l, x, targets[0], &out, 0);
    check_row(name, &p, l, x + 2 * classes, targets[2], &out, 2);
    cr_assert(isfinite(real_of(&p, &out.losses, 1)), "%s: the row between is not finite", name);
    clxent_plan_destroy(plan);
    free_run(&p, &out);
    free(x);
}

/* One of a test's cases, at one place with that many classes. */
typedef void (*case_fn)(const line *l, const place *at, size_t classes, uint32_t outputs);

/* Oclgrind runs a quarter of the lines, places and class counts of a dtype beside f32, so that each two of these and the dtype
 * meet. What has no line runs at every place, with one of its class counts. */
static bool has_turn(const line *l, uint32_t dtype, size_t which, size_t classes)
{
    const bool first = classes == classes_of[0];
    if (l == NULL) return classes == 1 || (dtype + which) % 2 == first;
    return (dtype + which + l->row + (first ? 0 : 2)) % 4 == 0;
}

/* Every strategy of f32, and those of other dtypes. */
static void at_every_place(case_fn run, const line *l, size_t classes)
{
    const bool options = l != NULL && l->smoothing != 0;
    for (size_t t = 0; t < strategies(); t++) {
        const place at = { sized(tunings[t]), CLXENT_F32, 1, SIZE_MAX, false };
        /* of groups a row in one block, by single elements, and one in several, by vectors: PoCL takes 10 to 20 s for each */
        if (at.tuning.group > 1 && !runs_all() && classes != 33 && classes != 3000) continue;
        run(l, &at, classes, outputs_on(&tunings[t], false));
    }
    for (uint32_t dtype = CLXENT_F32; next_dtype(&dtype);) {
        for (size_t which = 0; which < ON_ALL; which++) {
            const place at = place_for(dtype, which, options);
            if (which == EACH_GROUPS && !runs_all()) continue; /* half a minute of PoCL's compiler */
            if (small_run() && !has_turn(l, dtype, which, classes)) continue;
            if (classes <= at.most_classes) run(l, &at, classes, outputs_on(&at.tuning, at.general));
        }
    }
}

static void check_line(const line *l)
{
    const clxent_tuning along = LANES(1, 16, 1 << 19, 1);
    const place inner = { tunings[0], CLXENT_F32, 3, SIZE_MAX, false };
    uint32_t dtype = CLXENT_F32;

    do {
        const place at = { along, dtype, 1, SIZE_MAX, false };
        if (l->smoothing == 0) check_case(l, &at, 100, ALONG_OUTPUTS);
    } while (next_dtype(&dtype));
    for (size_t i = 0; i < (small_run() ? 2 : COUNT(classes_of)); i++) {
        at_every_place(check_case, l, classes_of[i]);
        check_case(l, &inner, classes_of[i], outputs_on(&tunings[0], false));
    }
}

TestSuite(truth_table, .init = open_device, .fini = close_device);

/* ---- Lines --------------------------------------------------------------------------------- */

static void check_lines(const line *lines, size_t count)
{
    for (size_t i = 0; i < count; i++) check_line(&lines[i]);
}
#define CHECK(...) check_lines((const line[]){ __VA_ARGS__ }, COUNT(((const line[]){ __VA_ARGS__ })))

/* name; smoothing, z-loss; row; loss, lse, gradient, gradient where masked; whether the weight is 0, ignored */
Test(truth_table, a_masked_class_that_is_not_the_target_has_no_share)
{
    CHECK({ "masked class", 0, 0.1, MASKED_OTHERS, FINITE, FINITE, FINITE, 0, false, false });
}

Test(truth_table, a_masked_target_makes_the_loss_infinite_and_the_gradient_finite)
{
    CHECK({ "masked target", 0, 0, MASKED_TARGET, INF, FINITE, FINITE, 0, false, false });
}

Test(truth_table, masks_and_label_smoothing_make_the_loss_infinite_never_nan)
{
    CHECK({ "smoothing over a mask", 0.1, 0, MASKED_OTHERS, INF, FINITE, FINITE, FINITE, false, false },
          { "smoothing, masked target", 0.1, 0, MASKED_TARGET, INF, FINITE, FINITE, FINITE, false, false });
}

Test(truth_table, a_row_of_masks_is_nan_with_an_lse_of_minus_infinity)
{
    CHECK({ "all masked", 0, 0, MASKED, NAN, -INF, NAN, NAN, false, false },
          { "all masked, smoothing", 0.1, 0.1, MASKED, NAN, -INF, NAN, NAN, false, false });
}

Test(truth_table, plus_infinity_makes_nan_with_an_lse_of_infinity)
{
    CHECK({ "+inf", 0, 0, ONE_INFINITY, NAN, INF, NAN, NAN, false, false },
          { "several +inf", 0.1, 0, INFINITIES, NAN, INF, NAN, NAN, false, false });
}

Test(truth_table, nan_anywhere_makes_everything_nan)
{
    CHECK({ "NaN", 0, 0, ONE_NAN, NAN, NAN, NAN, NAN, false, false },
          { "NaN at the target", 0, 0, NAN_AT_TARGET, NAN, NAN, NAN, NAN, false, false },
          { "NaN and +inf", 0, 0, NAN_AND_INFINITIES, NAN, NAN, NAN, NAN, false, false });
}

Test(truth_table, an_ignored_row_is_zero_whatever_it_holds)
{
    CHECK({ "ignored", 0, 0, EVERYTHING, 0, NAN, 0, 0, false, true },
          { "ignored, all masked", 0.1, 0.1, MASKED, 0, -INF, 0, 0, false, true });
}

Test(truth_table, a_row_of_weight_0_is_zero_whatever_it_holds)
{
    CHECK({ "weight 0", 0, 0, EVERYTHING, 0, NAN, 0, 0, true, false },
          { "weight 0, +inf", 0.1, 0.1, ONE_INFINITY, 0, INF, 0, 0, true, false });
}

Test(truth_table, a_long_leading_mask_is_as_if_it_were_not_there)
{
    CHECK({ "leading masks", 0, 0.1, MASKED_LEADING, FINITE, FINITE, FINITE, 0, false, false });
}

/* The rest of the table is about numbers: the reference judges, on every strategy. f16 has a smaller offset. */
static void check_offset(const line *l, const place *at, size_t classes, uint32_t outputs)
{
    clxent_desc desc = make_desc(outputs, at->dtype, 3, 1, classes);
    problem p;

    (void)l;
    if (!driver_takes(&at->tuning)) return;
    force(&at->tuning);
    desc.inner = at->inner;
    make_problem(&p, &desc, FILL_PLAIN, 2);
    for (size_t k = 0; k < 3 * classes; k++)
        set_logit(&p, k, get_logit(&p, k) + (at->dtype == CLXENT_F16 ? 3e4 : 1e6));
    run_case("logits + 1e6", &p, 0);
    free_problem(&p);
}

Test(truth_table, an_offset_of_a_million_changes_nothing_but_what_storage_rounds)
{
    for (size_t i = 0; i < (small_run() ? 2 : COUNT(classes_of)); i++)
        at_every_place(check_offset, NULL, classes_of[i]);
}

static void check_one_class(const line *l, const place *at, size_t classes, uint32_t outputs)
{
    enum { ROWS = 6 };
    clxent_desc desc = make_desc(outputs, at->dtype, ROWS, 1, classes);
    clxent_host_args out;
    problem p;

    (void)l;
    if (!driver_takes(&at->tuning)) return;
    desc.inner = at->inner;
    make_problem(&p, &desc, FILL_PLAIN, 1);
    run_with("one class", &at->tuning, &p, 0, &out);
    for (size_t row = 0; row < ROWS; row++) {
        char name[96];
        (void)snprintf(name, sizeof name, "dtype %u, group %u, lanes %u, inner %zu, row %zu",
                       (unsigned)at->dtype, (unsigned)at->tuning.group, (unsigned)at->tuning.lane_classes,
                       at->inner, row);
        cr_assert(real_of(&p, &out.losses, row) == 0, "%s: loss", name);
        cr_assert(get_element(out.gradient.data, at->dtype, row) == 0, "%s: gradient", name);
        cr_assert(real_of(&p, &out.lse, row) == get_logit(&p, row), "%s: lse", name);
        cr_assert(out.softmax.data == NULL || fabs(get_element(out.softmax.data, at->dtype, row) - 1) <= 2e-7,
                  "%s: softmax", name);
        cr_assert(out.entropy.data == NULL || real_of(&p, &out.entropy, row) == 0, "%s: entropy", name);
    }
    free_run(&p, &out);
}

Test(truth_table, one_class_costs_nothing) { at_every_place(check_one_class, NULL, 1); }

/* test_reference.c says what comes of no rows; here, that the device has it too, and that the event completes. */
Test(truth_table, no_rows_give_an_empty_none_a_zero_sum_and_the_policy_of_the_mean)
{
    RUN_LINES({ "no rows",
                "outputs=" EVERY_NAME ";batch=0;classes=7;reduction=mean|sum;all_ignored=nan|nan|zero|zero;"
                "dtype=f32|bf16|f32;cases=12;all:dtype=f32|f16|bf16|f64|f32;all:cases=20" });
}
