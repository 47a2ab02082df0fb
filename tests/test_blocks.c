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

/* Dense and padded, the class axis last and not; the fourth in a plan for more rows. Where few programs are compiled, in f32, and in
 * EVERY_DTYPE once for each of an operation's kinds of targets. */
#define SHAPES                                                                            \
    ";seq=2;batch=4|12|4|12|4;classes=1|2|17|256|1030;inner=1|3|1|3|1;pad=||odd|odd|odd;" \
    "checks=|||subsets+larger-plan|;cases=5;all:dtype=f32|f16|bf16|f64;all:cases=20;"     \
    "small:batch=4|12|4;small:classes=1|2|17;small:inner=1|3|1;small:pad=||odd;small:checks=;small:cases=12"
#define EVERY_DTYPE ";dtype=f32|f16|bf16|f64;cases=20;small:cases=12"
#define ZERO_PADDING ";gradient_padding=keep|keep|keep|zero|zero;small:gradient_padding=keep"

Test(blocks, softmax_needs_no_more_than_it_is_asked_for)
{
    RUN_LINES({ "softmax", "outputs=softmax;batch=13;classes=1|2|17|256|1030;fill=designed+masked+special;"
                           "small:classes=1|2|17" },
              { "softmax and losses",
                "outputs=softmax+losses+loss;batch=13;classes=256|1030;all:classes=1|2|17|256|1030;"
                "fill=designed+masked+ignored;small:classes=1|2|17" });
}

Test(blocks, one_hot_matches_the_reference)
{
#define ONE_HOT "op=one-hot;outputs=one_hot" SHAPES
    RUN_LINES({ "one-hot", ONE_HOT ";target_type=i32|i64|u8;fill=ignored+bad-targets;cases=15" },
              { "one-hot, bad targets ignored", ONE_HOT ";bad_target=ignore;fill=bad-targets" EVERY_DTYPE },
              { "one-hot of every dtype", ONE_HOT ";fill=ignored+bad-targets" EVERY_DTYPE },
              { "one-hot of every type",
                "only=all;" ONE_HOT ";target_type=i32|i64|u8|u16|u32|i32|u16;cases=140;"
                "fill=ignored+bad-targets;small:cases=84" });
}

Test(blocks, probability_loss_matches_the_reference)
{
#define PROBABILITY_LOSS "op=probability-loss;outputs=losses+loss" SHAPES
#define INDICES ";fill=masked+ignored+bad-targets"
    RUN_LINES({ "i64", PROBABILITY_LOSS INDICES EVERY_DTYPE },
              { "u8", PROBABILITY_LOSS INDICES ";target_type=u8" },
              { "soft targets of f32", PROBABILITY_LOSS ";target_type=probabilities-f32;fill=masked" },
              { "soft targets", PROBABILITY_LOSS ";target_type=probabilities;fill=masked" EVERY_DTYPE },
              { "a sum",
                PROBABILITY_LOSS ";target_type=probabilities;reduction=sum;fill=denominator" EVERY_DTYPE });
}

Test(blocks, softmax_backward_matches_the_reference)
{
#define SOFTMAX_BACKWARD "op=softmax-backward;outputs=gradient" SHAPES
    RUN_LINES({ "softmax backward", SOFTMAX_BACKWARD ZERO_PADDING EVERY_DTYPE },
              { "accumulated", SOFTMAX_BACKWARD ";gradient_mode=accumulate;fill=masked" });
}

Test(blocks, softmax_gradient_matches_the_reference)
{
#define SOFTMAX_GRADIENT "op=softmax-gradient;outputs=gradient" SHAPES ZERO_PADDING
    RUN_LINES({ "i32", SOFTMAX_GRADIENT ";target_type=i32;fill=grad-output+ignored+bad-targets" },
              { "u8", SOFTMAX_GRADIENT ";target_type=u8;reduction=sum;fill=grad-output+ignored+bad-targets" },
              { "soft targets of f32", SOFTMAX_GRADIENT
                ";target_type=probabilities-f32;reduction=none;fill=grad-output+denominator" },
              { "soft targets",
                SOFTMAX_GRADIENT ";target_type=probabilities;fill=grad-output+denominator" EVERY_DTYPE },
              { "accumulated",
                SOFTMAX_GRADIENT ";gradient_padding=keep;gradient_mode=accumulate;fill=masked+ignored" });
}

/* Also a zero's sign. */
Test(blocks, accumulating_leaves_rows_that_do_not_count_as_they_are)
{
    enum { ROWS = 8, CLASSES = 10 };
    clxent_desc desc = make_desc(CLXENT_OUTPUT_GRADIENT, CLXENT_F32, ROWS, 1, CLASSES);
    clxent_host_args out;
    problem p;

    desc.op = CLXENT_OP_SOFTMAX_GRADIENT;
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
