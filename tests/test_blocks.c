/* SPDX-License-Identifier: MIT
 *
 * test_blocks.c - the building blocks: softmax, one-hot, loss of given probabilities, softmax backward, softmax
 * gradient; against the reference, which test_reference.c holds against closed forms.
 */
#include "support.h"

#include <criterion/criterion.h>

#include <math.h>
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
            /* the fourth with the class axis not last, in a plan for more rows */
            run_filled_case("block", &desc, fill, i, i == 3 ? CASE_SUBSETS | CASE_LARGER_PLAN : 0);
        }
    }
}

/* ---- Softmax ------------------------------------------------------------------------------- */

Test(blocks, softmax_and_losses_need_no_more_than_they_are_asked_for)
{
    clxent_desc desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_SOFTMAX, 13, 1);
    for (size_t i = 0; i < shapes(); i++) {
        desc.classes = classes_of[i];
        desc.outputs = CLXENT_OUTPUT_SOFTMAX; /* without any target */
        run_filled_case("softmax", &desc, FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL, i, 0);
        if (classes_of[i] < 256 && !runs_all()) continue; /* lanes, of a program of their own */
        desc.outputs = CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS;
        run_filled_case("softmax and losses", &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, i, 0);
    }
}

/* ---- One-hot ------------------------------------------------------------------------------- */

Test(blocks, one_hot_matches_the_reference)
{
    clxent_desc desc = make_op(CLXENT_OP_ONE_HOT, CLXENT_OUTPUT_ONE_HOT, 8, 1);
    const uint32_t types[] = { CLXENT_TARGET_I32, CLXENT_TARGET_I64, CLXENT_TARGET_U8, CLXENT_TARGET_U16,
                               CLXENT_TARGET_U32 };
    for (size_t i = 0; i < (runs_all() ? COUNT(types) : 3); i++) { /* those of other tests of this file */
        desc.target_type = types[i];
        check_op(desc, FILL_IGNORED | FILL_BAD_TARGETS, types[i] == CLXENT_TARGET_I64);
    }
    desc.target_type = CLXENT_TARGET_I64;
    desc.bad_target = CLXENT_BAD_TARGET_IGNORE;
    check_op(desc, FILL_BAD_TARGETS, true);
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
    desc.target_type = CLXENT_TARGET_I64;
    check_op(desc, FILL_MASKED | FILL_IGNORED, false);
}

/* Also a zero's sign. */
Test(blocks, accumulating_leaves_rows_that_do_not_count_as_they_are)
{
    enum { ROWS = 8, CLASSES = 10 };
    clxent_desc desc = make_op(CLXENT_OP_SOFTMAX_GRADIENT, CLXENT_OUTPUT_GRADIENT, ROWS, CLASSES);
    clxent_host_args out;
    problem p;

    desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    make_problem(&p, &desc, FILL_PLAIN, 5);
    for (size_t row = 1; row < ROWS; row++) set_target(&p, row, desc.ignore_index);
    for (size_t k = 0; k < ROWS * CLASSES; k++)
        put_element((void *)p.args.gradient.data, CLXENT_F32, k, -0.0);
    run_with("accumulate", NULL, &p, 0, &out);
    for (size_t k = 0; k < ROWS * CLASSES; k++) {
        const double value = get_element(out.gradient.data, CLXENT_F32, k);
        cr_assert(k < CLASSES ? value != 0 : value == 0 && signbit(value), "element %zu: %g", k, value);
    }
    free_run(&p, &out);
}
