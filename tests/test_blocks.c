/* SPDX-License-Identifier: MIT
 *
 * test_blocks.c - the building blocks: softmax, one-hot, loss of given probabilities, softmax backward, softmax
 * gradient; against the reference, against closed forms, and against each other.
 */
#include "support.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

TestSuite(blocks, .init = open_device, .fini = close_device);

static const size_t classes_of[] = { 1, 2, 17, 256, 1030 };

static size_t shapes(void) { return small_run() ? 3 : COUNT(classes_of); }

static clxent_desc make_op(uint32_t op, uint32_t outputs, size_t rows, size_t classes)
{
    clxent_desc desc = make_desc(outputs, CLXENT_F32, rows, 1, classes);
    desc.op = op;
    return desc;
}

/* The op in every dtype, dense and padded, the class axis last and not. Where few programs are compiled, in f32 unless
 * in_every_dtype: once for each of an op's kinds of targets. */
static void check_op(clxent_desc desc, uint32_t fill, bool in_every_dtype)
{
    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++) {
        if (dtype == CLXENT_F64 && !device.has_f64) continue;
        if (dtype != CLXENT_F32 && !in_every_dtype && !runs_all()) continue;
        for (size_t i = 0; i < shapes(); i++) {
            char name[64];
            desc.dtype = dtype;
            desc.classes = classes_of[i];
            desc.inner = i % 2 == 0 ? 1 : 3;
            desc.batch = 4 * desc.inner;
            desc.seq = 2;
            const size_t slab = desc.classes * desc.inner;
            desc.probabilities_row_stride = i < 2 ? 0 : slab + 1;
            desc.gradient_row_stride = i < 2 ? 0 : slab + 2;
            desc.target_row_stride = i < 2 ? 0 : slab + 3;
            desc.gradient_padding = i > 2 && (desc.outputs & CLXENT_OUTPUT_GRADIENT) != 0 &&
                                            desc.gradient_mode == CLXENT_GRADIENT_WRITE
                                        ? CLXENT_GRADIENT_PADDING_ZERO
                                        : CLXENT_GRADIENT_PADDING_KEEP;
            (void)snprintf(name, sizeof name, "op %u dtype %u classes %zu inner %zu", (unsigned)desc.op,
                           (unsigned)dtype, desc.classes, desc.inner);
            /* the fourth with the class axis not last, in a plan for more rows */
            run_filled_case(name, &desc, fill, i, i == 3 ? CASE_SUBSETS | CASE_LARGER_PLAN : 0);
        }
    }
}

/* Runs p; the outputs go to out. */
static void run(const problem *p, clxent_host_args *out)
{
    clxent_plan *plan;
    cr_assert(clxent_plan_create(&plan, device.ctx, &p->desc) == CLXENT_OK, "%s", last_error());
    run_once("block", plan, p, p->desc.outputs, 0, out);
    clxent_plan_destroy(plan);
}

/* ---- Softmax ------------------------------------------------------------------------------- */

Test(blocks, softmax_and_losses_need_no_more_than_they_are_asked_for)
{
    clxent_desc desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_SOFTMAX, 13, 1);
    for (size_t i = 0; i < shapes(); i++) {
        desc.classes = classes_of[i];
        desc.outputs = CLXENT_OUTPUT_SOFTMAX; /* without any target */
        run_filled_case("softmax", &desc, FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL, i, 0);
        desc.outputs = CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS;
        run_filled_case("softmax and losses", &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, i, 0);
    }
}

Test(blocks, softmax_of_known_logits_is_known)
{
    const float logits[] = { 1, 3, 5, 7, 1, -9, 4, 8 };
    const double want[] = { 2.1440087835846340e-03, 1.5842201178506925e-02, 1.1705891323853292e-01,
                            8.6495487679937544e-01, 8.9467946053009757e-04, 4.0618384668004272e-08,
                            1.7970117338894899e-02, 9.8113516258219036e-01 };
    const double losses[] = { 0.14507793896078233, 17.01904504849764 };
    const clxent_desc desc = make_op(
        CLXENT_OP_CROSS_ENTROPY,
        CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT, 2, 4);
    problem p;
    clxent_host_args out;
    clxent_desc sum = desc;

    sum.reduction = CLXENT_REDUCTION_SUM;
    make_problem(&p, &sum, FILL_PLAIN, 1);
    memcpy((void *)p.args.logits.data, logits, sizeof logits);
    put_target((void *)p.args.targets.data, desc.target_type, 0, 3);
    put_target((void *)p.args.targets.data, desc.target_type, 1, 1);
    run(&p, &out);
    for (size_t k = 0; k < 8; k++) {
        const double softmax = get_element(out.softmax.data, CLXENT_F32, k);
        const double gradient = get_element(out.gradient.data, CLXENT_F32, k);
        const double exact = want[k] - (k == 3 || k == 5 ? 1 : 0);
        cr_assert(fabs(softmax - want[k]) <= 1e-6 * want[k], "softmax %zu: %.9g", k, softmax);
        cr_assert(fabs(gradient - exact) <= 1e-6 * fabs(exact), "gradient %zu: %.9g", k, gradient);
    }
    for (size_t row = 0; row < 2; row++) {
        const double loss = get_element(out.losses.data, CLXENT_F32, row);
        cr_assert(fabs(loss - losses[row]) <= 2e-7 * losses[row], "loss %zu: %.9g", row, loss);
    }
    free_outputs(&out);
    free_problem(&p);
}

/* ---- One-hot ------------------------------------------------------------------------------- */

Test(blocks, one_hot_matches_the_reference)
{
    clxent_desc desc = make_op(CLXENT_OP_ONE_HOT, CLXENT_OUTPUT_ONE_HOT, 8, 1);
    const uint32_t types[] = { CLXENT_TARGET_I32, CLXENT_TARGET_I64, CLXENT_TARGET_U8 };
    for (size_t i = 0; i < COUNT(types); i++) {
        desc.target_type = types[i];
        check_op(desc, FILL_IGNORED | FILL_BAD_TARGETS, types[i] == CLXENT_TARGET_I64);
    }
    desc.target_type = CLXENT_TARGET_I64;
    desc.bad_target = CLXENT_BAD_TARGET_IGNORE;
    check_op(desc, FILL_BAD_TARGETS, true);
}

Test(blocks, one_hot_rows_are_one_at_the_target_zero_where_ignored_and_nan_where_bad)
{
    const clxent_desc desc = make_op(CLXENT_OP_ONE_HOT, CLXENT_OUTPUT_ONE_HOT, 4, 5);
    const int64_t targets[] = { 4, -100, 5, ((int64_t)1 << 32) + 1 };
    problem p;
    clxent_host_args out;

    make_problem(&p, &desc, FILL_PLAIN, 1);
    for (size_t row = 0; row < 4; row++)
        put_target((void *)p.args.targets.data, desc.target_type, row, targets[row]);
    run(&p, &out);
    for (size_t k = 0; k < 20; k++) {
        const double got = get_element(out.one_hot.data, CLXENT_F32, k);
        if (k < 10) cr_assert(got == (k == 4 ? 1 : 0), "element %zu: %g", k, got);
        else cr_assert(isnan(got), "element %zu: %g", k, got);
    }
    free_outputs(&out);
    free_problem(&p);
}

/* ---- The loss of given probabilities ------------------------------------------------------- */

Test(blocks, probability_loss_matches_the_reference)
{
    clxent_desc desc = make_op(CLXENT_OP_PROBABILITY_LOSS, CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS, 8, 1);
    const uint32_t types[] = { CLXENT_TARGET_I64, CLXENT_TARGET_U8, CLXENT_TARGET_PROBABILITIES_F32,
                               CLXENT_TARGET_PROBABILITIES_LOGITS };
    for (size_t i = 0; i < COUNT(types); i++) {
        desc.target_type = types[i];
        check_op(desc, FILL_MASKED | (i < 2 ? FILL_IGNORED | FILL_BAD_TARGETS : 0), i % 3 == 0);
    }
    desc.reduction = CLXENT_REDUCTION_SUM;
    check_op(desc, FILL_DENOMINATOR, true);
}

Test(blocks, probability_loss_of_zeros_follows_the_convention)
{
    /* label 0 adds 0 even at pred 0, pred 0 under a positive label is +inf, pred 1 under a label is 0 */
    const float labels[] = { 0, 1, 0, 0, 0, 1, 0, 0.5f, 0.5f };
    const float preds[] = { 0, 1, 0, 0, 1, 0, 0.5f, 0, 0.5f };
    const double want[] = { 0, INFINITY, INFINITY };
    for (int dense = 0; dense < 2; dense++) {
        clxent_desc desc = make_op(CLXENT_OP_PROBABILITY_LOSS, CLXENT_OUTPUT_LOSSES, 3, 3);
        problem p;
        clxent_host_args out;
        if (dense) desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
        make_problem(&p, &desc, FILL_PLAIN, 1);
        memcpy((void *)p.args.probabilities.data, preds, sizeof preds);
        if (dense) memcpy((void *)p.args.targets.data, labels, sizeof labels);
        for (size_t row = 0; !dense && row < 3; row++) {
            put_target((void *)p.args.targets.data, desc.target_type, row, row == 0 ? 1 : row == 1 ? 2 : 1);
        }
        run(&p, &out);
        for (size_t row = 0; row < 3; row++) {
            const double got = get_element(out.losses.data, CLXENT_F32, row);
            cr_assert(got == want[row], "%s, row %zu: %g", dense ? "dense" : "index", row, got);
        }
        free_outputs(&out);
        free_problem(&p);
    }
}

/* ---- Gradients ----------------------------------------------------------------------------- */

Test(blocks, softmax_backward_matches_the_reference)
{
    clxent_desc desc = make_op(CLXENT_OP_SOFTMAX_BACKWARD, CLXENT_OUTPUT_GRADIENT, 8, 1);
    check_op(desc, FILL_PLAIN, true);
    desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    check_op(desc, FILL_MASKED, false);
}

Test(blocks, softmax_gradient_matches_the_reference)
{
    clxent_desc desc = make_op(CLXENT_OP_SOFTMAX_GRADIENT, CLXENT_OUTPUT_GRADIENT, 8, 1);
    const uint32_t types[] = { CLXENT_TARGET_I32, CLXENT_TARGET_U8, CLXENT_TARGET_PROBABILITIES_F32,
                               CLXENT_TARGET_PROBABILITIES_LOGITS };
    for (size_t i = 0; i < COUNT(types); i++) {
        desc.target_type = types[i];
        desc.reduction = (uint32_t)(i % 3);
        check_op(desc, FILL_GRAD_OUTPUT | (i < 2 ? FILL_IGNORED | FILL_BAD_TARGETS : FILL_DENOMINATOR),
                 types[i] == CLXENT_TARGET_PROBABILITIES_LOGITS);
    }
    desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    check_op(desc, FILL_MASKED, true);
}

Test(blocks, softmax_then_its_gradient_is_the_gradient_of_the_loss)
{
    enum { ROWS = 6, CLASSES = 40 };
    clxent_desc desc =
        make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_GRADIENT, ROWS, CLASSES);
    problem p, q;
    clxent_host_args whole, parts;

    make_problem(&p, &desc, FILL_IGNORED, 3);
    run(&p, &whole);
    desc.op = CLXENT_OP_SOFTMAX_GRADIENT;
    desc.outputs = CLXENT_OUTPUT_GRADIENT;
    make_problem(&q, &desc, FILL_PLAIN, 3);
    memcpy((void *)q.args.probabilities.data, whole.softmax.data, whole.softmax.size);
    memcpy((void *)q.args.targets.data, p.args.targets.data, p.args.targets.size);
    run(&q, &parts);
    for (size_t k = 0; k < ROWS * CLASSES; k++) {
        const double a = get_element(whole.gradient.data, CLXENT_F32, k);
        const double b = get_element(parts.gradient.data, CLXENT_F32, k);
        cr_assert(fabs(a - b) <= 1e-7, "element %zu: %.9g and %.9g", k, a, b);
    }
    free_outputs(&whole);
    free_outputs(&parts);
    free_problem(&p);
    free_problem(&q);
}

Test(blocks, softmax_backward_of_a_constant_is_zero_and_of_the_labels_is_the_loss_gradient)
{
    /* g = -q / p turns the backward of softmax into p - q: one more way to the same number */
    enum { ROWS = 3, CLASSES = 9 };
    const clxent_desc desc = make_op(CLXENT_OP_SOFTMAX_BACKWARD, CLXENT_OUTPUT_GRADIENT, ROWS, CLASSES);
    problem p;
    clxent_host_args out;

    make_problem(&p, &desc, FILL_PLAIN, 5);
    for (size_t k = 0; k < ROWS * CLASSES; k++) {
        const double s = get_element(p.args.probabilities.data, CLXENT_F32, k);
        const size_t row = k / CLASSES;
        put_element((void *)p.args.grad_output.data, CLXENT_F32, k,
                    row == 0             ? 3
                    : k % CLASSES == row ? -1 / s
                                         : 0);
    }
    run(&p, &out);
    for (size_t k = 0; k < ROWS * CLASSES; k++) {
        const double s = get_element(p.args.probabilities.data, CLXENT_F32, k);
        const double want = k / CLASSES == 0 ? 0 : s - (k % CLASSES == k / CLASSES ? 1 : 0);
        const double got = get_element(out.gradient.data, CLXENT_F32, k);
        cr_assert(fabs(got - want) <= 1e-6, "element %zu: got %.9g, want %.9g", k, got, want);
    }
    free_outputs(&out);
    free_problem(&p);
}
