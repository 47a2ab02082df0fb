/* SPDX-License-Identifier: MIT
 *
 * test_linear.c - CLXENT_OP_LINEAR_CROSS_ENTROPY on the device: every option, dtype and stride against the reference, at the
 * sizes where tiles, blocks and depths begin and end; chunks that decide no bits of a row; rows that do not count; the
 * memory that it takes.
 */
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

TestSuite(linear, .init = open_device, .fini = close_device);

enum {
    GRADIENTS = CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT,
    TRAINING = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LOSSES | GRADIENTS
};

static clxent_desc make_linear(uint32_t outputs, uint32_t dtype, size_t rows, size_t features, size_t classes)
{
    clxent_desc desc = make_desc(outputs, dtype, rows, 1, classes);
    desc.op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
    desc.features = features;
    desc.has_bias = (outputs & CLXENT_OUTPUT_BIAS_GRADIENT) != 0;
    return desc;
}

/* ---- Against the reference ----------------------------------------------------------------- */

#define LINEAR "op=linear-cross-entropy;has_bias=1;outputs=" TRAINING_LINEAR
#define TRAINING_LINEAR "loss+losses+hidden_gradient+weight_gradient+bias_gradient"

/* Around a tile of 8 x 48 or 6 x 16, its vectors, and a depth of features. */
#define SHAPES                                                                                             \
    ";batch=1|2|7|8|9|17|25|49|3;features=1|3|16|17|15|31|64|65|130;classes=1|5|47|48|49|96|97|200|1000;"  \
    "hidden_row_stride=0|6|0|20|0|34|0|68|0;weight_row_stride=0|4|0|18|0|32|0|66|0;"                       \
    "hidden_gradient_row_stride=0|8|0|22|0|36|0|70|0;weight_gradient_row_stride=0|5|0|19|0|33|0|67|0;"     \
    "fill=ignored+grad-output;seed=300;small:batch=1|7|9;small:features=1|5|17;small:classes=1|19|20;"     \
    "small:hidden_row_stride=0|8|0;small:weight_row_stride=0|6|0;small:hidden_gradient_row_stride=0|10|0;" \
    "small:weight_gradient_row_stride=0|7|0"

Test(linear, every_shape_matches_the_reference)
{
    RUN_LINES({ "shapes", LINEAR SHAPES }, { "shapes of bf16", LINEAR SHAPES ";dtype=bf16" },
              { "shapes of f16", "only=full;" LINEAR SHAPES ";dtype=f16" },
              { "shapes of f64", LINEAR SHAPES ";dtype=f64" });
}

Test(linear, every_option_matches_the_reference)
{
    RUN_LINES(
        { "options", LINEAR
          "+lse+argmax+entropy+correct+bad_targets+computed_denominator+counted;seq=23;features=33;"
          "classes=70;label_smoothing=0.1;z_loss=0.01;logit_scale=0.5;softcap=40;has_class_weights=1;"
          "has_row_weights=1;shift=2;has_grad_entropy=1;has_grad_lse=1;reduction=mean|sum|none;seed=400;"
          "fill=ignored+grad-output+bad-targets;small:features=3;small:classes=20;small:reduction=none" },
        { "dtypes and modes", LINEAR
          ";dtype=bf16;batch=19;features=18;classes=50;fill=ignored;seed=500;"
          "hidden_gradient_dtype=f32|f16|bf16;weight_gradient_dtype=f16|bf16|f32;"
          "bias_gradient_dtype=bf16|f32|f16;hidden_gradient_mode=write|accumulate|accumulate;"
          "weight_gradient_mode=accumulate|write|accumulate;bias_gradient_mode=accumulate|accumulate|write;"
          "small:batch=5;small:features=3;small:classes=20" },
        /* chunks that begin inside a sequence */
        { "soft targets",
          LINEAR "+lse;batch=3;seq=11;shift=3;features=9;classes=40;target_type=probabilities-f32;"
                 "target_row_stride=43;has_row_weights=1;workspace_limit=0|3000;seed=600" });
}

/* Groups of the parameters of GPUs; in an interpreter those of a device that takes no larger ones. */
Test(linear, groups_match_the_reference)
{
    const size_t most = device.ctx->device.max_work_group;
    const clxent_tuning groups = strategy_for(CLXENT_F32, EACH_GROUPS);
    skip_unless_driver_takes(&groups);
    force(&groups);
    clxent_desc desc = small_run() ? make_linear(TRAINING, CLXENT_F32, 20, 9, 40)
                                   : make_linear(TRAINING, CLXENT_F32, 70, 35, 130);
    desc.workspace_limit = small_run() ? 0 : 40000;
    if (small_run()) device.ctx->device.max_work_group = 64;
    run_filled_case("groups", &desc, FILL_IGNORED, 700, 0);
    device.ctx->device.max_work_group = most;
}

/* ---- Chunks ---------------------------------------------------------------------------------- */

static size_t workspace_of(const clxent_desc *desc)
{
    clxent_plan *plan = plan_with(NULL, desc);
    const size_t size = clxent_plan_workspace_size(plan);
    clxent_plan_destroy(plan);
    return size;
}

/* What each row has, and the loss, have the same bits for every limit. */
Test(linear, chunks_decide_no_bits_of_a_row)
{
    RUN_LINES({ "a limit", /* which compares with the bits without one */
                "op=linear-cross-entropy;outputs=losses+loss+lse+argmax+entropy+correct+hidden_gradient+"
                "computed_denominator;batch=37;features=20;classes=75;fill=ignored;seed=800;"
                "workspace_limit=900|2000|4000|7000|10000;small:batch=13;small:features=7;small:classes=30;"
                "small:workspace_limit=400|900" });
}

static void run_on_units(cl_uint units, const problem *p, clxent_host_args *out)
{
    const cl_uint own = device.ctx->device.compute_units;
    device.ctx->device.compute_units = units;
    run_with("on so many units", NULL, p, 0, out);
    device.ctx->device.compute_units = own;
}

static void check_units(const clxent_desc *desc)
{
    clxent_host_args one, many;
    problem p;

    make_problem(&p, desc, FILL_IGNORED, 810);
    run_on_units(1, &p, &one);
    run_on_units(100, &p, &many);
    check_same_outputs("with more compute units", &one, &many);
    free_outputs(&many);
    free_run(&p, &one);
}

/* Blocks of other sizes; and rows of several pieces, which are split over groups where there are few for the units, and then
 * take more of the workspace: chunks have the same rows all the same. */
Test(linear, compute_units_decide_no_bits)
{
    clxent_desc desc = make_linear(TRAINING, CLXENT_F32, small_run() ? 70 : 700, small_run() ? 5 : 40,
                                   small_run() ? 20 : 100);
    check_units(&desc);
    if (small_run()) return;
    desc = make_linear(TRAINING, CLXENT_F32, 48, 4, 70000);
    const cl_uint own = device.ctx->device.compute_units;
    clxent_plan_facts facts;
    device.ctx->device.compute_units = 1;
    cr_assert_eq(clxent_plan_measure(&facts, device.ctx, &desc, NULL, 48, 10), CLXENT_OK);
    device.ctx->device.compute_units = own;
    desc.workspace_limit = facts.workspace; /* just enough for chunks of 10 rows */
    check_units(&desc);
}

/* Where rows are split, one row takes the least too. */
Test(linear, the_least_workspace_is_that_of_one_row)
{
    clxent_desc desc = make_linear(CLXENT_OUTPUT_LOSS, CLXENT_F32, 100, 8, 200000);
    const cl_uint own = device.ctx->device.compute_units;
    clxent_plan_facts facts;
    clxent_plan *plan;

    device.ctx->device.compute_units = 32;
    cr_assert_eq(clxent_plan_measure(&facts, device.ctx, &desc, NULL, 100, 1), CLXENT_OK);
    desc.workspace_limit = facts.workspace - 1;
    cr_assert_eq(clxent_plan_create(&plan, device.ctx, &desc), CLXENT_ERROR_INVALID_DESC);
    desc.workspace_limit = facts.workspace;
    cr_assert_eq(clxent_plan_create(&plan, device.ctx, &desc), CLXENT_OK, "%s", last_error());
    cr_assert_leq(clxent_plan_workspace_size(plan), facts.workspace);
    clxent_plan_destroy(plan);
    device.ctx->device.compute_units = own;
}

Test(linear, a_limit_is_kept_or_refused_with_what_it_takes)
{
    clxent_desc desc = make_linear(TRAINING, CLXENT_BF16, 33, small_run() ? 3 : 20, small_run() ? 20 : 75);
    clxent_plan *plan;
    size_t least = 0;

    desc.workspace_limit = 1;
    cr_assert_eq(clxent_plan_create(&plan, device.ctx, &desc), CLXENT_ERROR_INVALID_DESC);
    cr_assert_null(plan);
    cr_assert_eq(
        sscanf(last_error(), "workspace_limit is 1: takes at least %zu bytes with 33 rows, ", &least), 1,
        "%s", last_error());
    desc.workspace_limit = least - 1;
    cr_assert_eq(clxent_plan_create(&plan, device.ctx, &desc), CLXENT_ERROR_INVALID_DESC);
    for (size_t limit = least; limit < 40 * least;
         limit = limit * (small_run() ? 3 : 5) / (small_run() ? 1 : 4) + 1) {
        desc.workspace_limit = limit;
        cr_assert_leq(workspace_of(&desc), limit);
    }
    desc.workspace_limit = small_run() ? least * 2 : least;
    run_filled_case("little workspace", &desc, FILL_IGNORED, 820, 0);
}

/* A buffer of all logits would have more bytes than the device's largest. */
Test(linear, logits_beyond_the_largest_buffer)
{
    const cl_ulong most = device.ctx->device.max_allocation;
    const clxent_desc desc = make_linear(TRAINING, CLXENT_F32, 50, 3, 100);

    device.ctx->device.max_allocation = (cl_ulong)30 * 100 * sizeof(float);
    run_filled_case("chunks of what one buffer holds", &desc, FILL_IGNORED, 830, 0);
    device.ctx->device.max_allocation = 300;
    clxent_plan *plan;
    cr_assert_eq(clxent_plan_create(&plan, device.ctx, &desc), CLXENT_ERROR_UNSUPPORTED);
    cr_assert_not_null(strstr(last_error(), "the largest buffer of the device is 300: takes at least "), "%s",
                       last_error());
    device.ctx->device.max_allocation = most;
}

/* ---- Rows that do not count ------------------------------------------------------------------ */

/* Odd seeds have NaN and infinities in the hidden states of such rows alone: they reach nothing but what is asked of every row.
 * With and without that. */
Test(linear, rows_that_do_not_count_reach_nothing)
{
    RUN_LINES({ "spoilt rows", LINEAR
                "|" TRAINING_LINEAR "+lse;batch=24;features=10;classes=30;fill=special+ignored;reduction=sum;"
                "bad_target=ignore;seed=901|902;cases=6" });
}

Test(linear, no_rows_count)
{
    RUN_LINES({ "all ignored",
                LINEAR ";batch=9|9|0;features=6;classes=20;fill=all-ignored;seed=910;"
                       "hidden_gradient_mode=write|accumulate;weight_gradient_mode=write|accumulate;"
                       "bias_gradient_mode=write|accumulate;cases=6" });
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static size_t buffers_made;

/* In front of the loader's: the library is linked into this program. */
cl_mem clCreateBuffer(cl_context context, cl_mem_flags flags, size_t size, void *data, cl_int *code)
{
    REAL(clCreateBuffer);
    buffers_made++;
    return real(context, flags, size, data, code);
}

/* Device memory is what the caller has made: inputs, outputs and a workspace of the stated size. */
Test(linear, the_library_makes_no_buffers)
{
    clxent_desc desc = make_linear(TRAINING, CLXENT_F32, 40, 12, 60);
    clxent_host_args out;
    problem p;

    make_problem(&p, &desc, FILL_IGNORED, 920);
    clxent_plan *plan = plan_with(NULL, &desc);
    const size_t after_plan = buffers_made;
    run_once("counted", plan, &p, TRAINING, 0, &out);
    const size_t of_the_test = buffers_made - after_plan;
    size_t needed = clxent_plan_workspace_size(plan) > 0 ? 1 : 0;
    for (int t = 0; t < TENSORS; t++)
        needed += clxent_plan_bytes(plan, tensor_names[t]) > 0 && t != TENSOR_GRAD_OUTPUT &&
                  t != TENSOR_DENOMINATOR && t != TENSOR_COMPUTED_DENOMINATOR && t != TENSOR_COUNTED;
    cr_assert_eq(of_the_test, needed, "%zu buffers, %zu of them the caller's", of_the_test, needed);
    clxent_plan_destroy(plan);
    free_run(&p, &out);
}

/* ---- Calls ----------------------------------------------------------------------------------- */

Test(linear, warm_and_describe)
{
    clxent_desc desc = make_linear(TRAINING, CLXENT_F32, 20, 12, 60);
    desc.workspace_limit = 10000;
    char text[400];
    clxent_plan *plan = plan_with(NULL, &desc);

    cr_assert_eq(clxent_plan_warm(plan, device.queue), CLXENT_OK, "%s", last_error());
    cr_assert_eq(clxent_plan_describe(device.ctx, &desc, text, sizeof text), CLXENT_OK);
    cr_assert_str_eq(text, clxent_plan_strategy(plan));
    cr_assert_eq(strncmp(text, "linear: chunks of ", 18), 0, "%s", text);
    clxent_plan_destroy(plan);
    run_filled_case("after warming", &desc, FILL_IGNORED, 930, CASE_OUT_OF_ORDER);
}

Test(linear, outputs_of_a_run_and_larger_plans)
{
    RUN_LINES({ "subsets, parts",
                LINEAR "+correct;batch=21;features=12;classes=60;fill=ignored;seed=940;"
                       "checks=subsets+larger-plan|parts;small:batch=6;small:features=3;small:classes=20" });
}
