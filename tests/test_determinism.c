/* SPDX-License-Identifier: MIT
 *
 * test_determinism.c - the same input gives the same bits: on one compute unit, whatever else a plan computes, however many
 * rows stand beside, and whatever `clxent tune` found. A second run, on either kind of queue, and one of each output alone are
 * part of run_case(): test_cross_entropy.c.
 */
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

TestSuite(determinism, .init = open_device, .fini = close_device);

/* Enough rows for several partial sums and for all compute units, of every kind; a program that other tests share. */
Test(determinism, one_compute_unit_gives_the_bits_of_all)
{
    const clxent_desc desc =
        desc_of("outputs=" EVERY_NAME ";batch=9001;classes=131;small:batch=40;small:classes=19;z_loss=0.001;"
                "has_class_weights=1;has_row_weights=1;label_smoothing=0.1;softcap=40");
    cl_device_id parts[64];
    const cl_uint count = divide_device(parts);
    clxent_host_args whole, part;
    problem p;

    if (count == 0) cr_skip("the device has no sub-devices of one compute unit");
    make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED | FILL_GRAD_OUTPUT, 11);
    run_with("whole", NULL, &p, 0, &whole);
    struct test_device all = device;
    open_context(parts[0]);
    run_with("part", NULL, &p, 0, &part);
    check_same_outputs("one compute unit", &whole, &part);
    close_context();
    for (cl_uint i = 0; i < count; i++) clReleaseDevice(parts[i]);
    device = all;
    free_outputs(&whole);
    free_run(&p, &part);
}

/* Plans of other outputs are other programs, and what they share has the same bits: clxent.h says where not. */
Test(determinism, what_else_a_plan_computes_changes_nothing)
{
    static const uint32_t subsets[] = {
        CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX |
            CLXENT_OUTPUT_STATISTICS,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_SOFTMAX,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOG_SOFTMAX | CLXENT_OUTPUT_CORRECT,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_ENTROPY,
    };
    static const struct {
        size_t batch, classes, inner;
        double softcap;
        bool groups; /* of several blocks, which add exponentials in another loop */
    } shapes[] = { { 40, 4099, 1, SHARED_SOFTCAP, false },
                   { 40, 4099, 1, 0, false },
                   { 70, 7, 1, 0, false },
                   { 48, 19, 16, 0, false },
                   { 8, 1100, 1, 0, true } };
    const clxent_tuning groups = ROWS(8, 4, 4, 0, 1024, 0);

    for (size_t s = 0; s < (runs_all() ? COUNT(shapes) : 2); s++) {
        const size_t batch = small_run() && s < 2 ? 8 : shapes[s].batch;
        const clxent_tuning *tuning = shapes[s].groups ? &groups : NULL;
        if (tuning != NULL && !driver_takes(tuning)) continue;
        clxent_desc desc = make_desc(EVERY_OUTPUT, CLXENT_F32, batch, 1, shapes[s].classes);
        clxent_host_args all;
        problem p;
        desc.inner = shapes[s].inner;
        desc.softcap = shapes[s].softcap;
        make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 17);
        run_with("all", tuning, &p, 0, &all);
        for (size_t i = 0; i < (runs_all() ? COUNT(subsets) : 2); i++) {
            char what[64];
            clxent_host_args some;
            p.desc.outputs = subsets[i];
            (void)snprintf(what, sizeof what, "a plan of 0x%x, %zu classes", (unsigned)subsets[i],
                           desc.classes);
            run_with(what, tuning, &p, 0, &some);
            check_same_outputs(what, &all, &some);
            free_outputs(&some);
        }
        free_run(&p, &all);
    }
}

/* Sums of a_j that a run from statistics takes without the exponentials: of a target within four vectors, of fewer than
 * four behind them, of a tail. */
Test(determinism, saved_statistics_give_the_gradient_its_bits)
{
    RUN_LINES({ "from statistics", /* which compares the bits */
                "outputs=" EVERY_NAME
                ";batch=200;classes=1000;softcap=40;has_class_weights=1;label_smoothing=0.1;seed=19;"
                "all:outputs=losses+gradient+statistics;all:softcap=0;all:classes=1000|1049|1090;"
                "all:target_type=i64|probabilities-f32;all:cases=6;small:batch=12" });
}

/* A row's results do not depend on its neighbours: each row alone gives what it gives among all. */
static void check_rows_alone(size_t classes)
{
    enum { ROWS = 30 };
    const uint32_t outputs =
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_GRADIENT;
    clxent_desc desc = make_desc(outputs, CLXENT_F32, ROWS, 1, classes);
    clxent_host_args whole;
    problem p;

    desc.reduction = CLXENT_REDUCTION_SUM;
    make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 12);
    run_with("whole", NULL, &p, 0, &whole);
    for (size_t row = 0; row < ROWS; row++) {
        const size_t bytes = desc.classes * sizeof(float);
        clxent_host_args alone;
        problem q;
        desc.batch = 1;
        make_problem(&q, &desc, FILL_PLAIN, 1);
        memcpy((void *)q.args.logits.data, (const char *)p.args.logits.data + row * bytes, bytes);
        set_target(&q, 0, target_of(&p, row));
        run_with("alone", NULL, &q, 0, &alone);
        cr_assert(memcmp((char *)whole.gradient.data + row * bytes, alone.gradient.data, bytes) == 0,
                  "gradient of row %zu", row);
        cr_assert(memcmp((float *)whole.losses.data + row, alone.losses.data, 4) == 0, "loss of row %zu",
                  row);
        cr_assert(memcmp((float *)whole.lse.data + row, alone.lse.data, 4) == 0, "lse of row %zu", row);
        free_run(&q, &alone);
    }
    free_run(&p, &whole);
}

/* Rows of a work-group, lanes that lie along the classes, lanes. */
Test(determinism, a_row_alone_has_the_bits_it_has_among_others)
{
    if (!small_run()) check_rows_alone(1500);
    check_rows_alone(100);
    check_rows_alone(33);
}

/* `clxent tune` leaves results as they were: what it varies unless told otherwise decides no bits. The default row is
 * taken as text from the parameters that plans use, so that this holds for the rows of this device. */
Test(determinism, what_the_tuner_varies_decides_no_bits)
{
    static const struct {
        const char *what;
        size_t field; /* of clxent_tuning */
        uint32_t values[3];
    } variations[] = {
        { "elements", offsetof(clxent_tuning, elements), { 0, 1024, 1 << 20 } },
        { "stream", offsetof(clxent_tuning, stream), { 0, 1, UINT32_MAX } },
        { "split", offsetof(clxent_tuning, split), { 0, 1, UINT32_MAX } },
        { "lane_vector", offsetof(clxent_tuning, lane_vector), { 4, 8, 16 } },
    };
    const struct {
        size_t batch, classes, inner;
    } shapes[] = { { 70, 7, 1 }, { 64, 9, 16 }, { 40, 700, 1 }, { 23, 5003, 1 }, { 2, 70001, 1 } };

    for (size_t s = 0; s < (small_run() ? 2 : COUNT(shapes)); s++) {
        const uint32_t outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT;
        clxent_desc desc = make_desc(outputs, CLXENT_F32, shapes[s].batch, 1, shapes[s].classes);
        clxent_host_args whole;
        problem p;
        desc.inner = shapes[s].inner;
        if (desc.inner > 1 && !runs_all()) desc.outputs = ONE_PASS_OUTPUTS;
        make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 13);
        run_with("whole", NULL, &p, 0, &whole);
        for (size_t k = 0; k < 3 * COUNT(variations); k++) {
            const size_t v = k / 3, i = k % 3;
            const bool compiles = variations[v].field == offsetof(clxent_tuning, lane_vector);
            clxent_tuning t = clxent_tuning_choose(device.ctx->tuning, &device.ctx->device, &desc);
            clxent_host_args other;
            char what[96];
            if (compiles && !runs_all() && (i != 1 || s > 0)) continue;
            /* along the classes it decides bits, see tuning.def; the tuner leaves it alone unless told */
            if (compiles && desc.classes == 700) continue;
            memcpy((char *)&t + variations[v].field, &variations[v].values[i], sizeof(uint32_t));
            (void)snprintf(what, sizeof what, "%zu classes, inner %zu, %s %u", desc.classes, desc.inner,
                           variations[v].what, (unsigned)variations[v].values[i]);
            run_with(what, &t, &p, CASE_ALIGNED, &other);
            check_same_outputs(what, &whole, &other);
            free_outputs(&other);
        }
        free_run(&p, &whole);
    }
}

/* A context's own rows reach its plans. */
Test(determinism, a_contexts_tuning_rows_reach_its_plans)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    const clxent_desc desc = make_desc(ONE_PASS_OUTPUTS, CLXENT_F32, 40, 1, 700);
    clxent_context *ctx;
    clxent_plan *plan;

    options.tuning = "TUNE(ANY, \"*\", F32, 1, 4, 4, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0)";
    cr_assert(clxent_context_create(&ctx, device.cl, device.id, &options) == CLXENT_OK);
    cr_assert(clxent_plan_create(&plan, ctx, &desc) == CLXENT_OK);
    cr_assert(strstr(clxent_plan_strategy(plan), "1 row a work-group of 1, vectors of 4, blocks of 16") !=
                  NULL,
              "%s", clxent_plan_strategy(plan));
    clxent_plan_destroy(plan);
    clxent_context_destroy(ctx);
}
