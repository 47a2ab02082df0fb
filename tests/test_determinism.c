/* SPDX-License-Identifier: MIT
 *
 * test_determinism.c - the same input gives the same bits: again and again, on either kind of queue, on one compute
 * unit, whatever else a run is asked for, however many rows stand beside, and whatever `clxent tune` found.
 */
#include "internal.h"
#include "support.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

TestSuite(determinism, .init = open_device, .fini = close_device);

/* Enough rows for several partial sums and for all compute units, of every kind; one of the programs of test_api.c. */
static clxent_desc every_kind(void)
{
    clxent_desc desc =
        make_desc(EVERY_OUTPUT, CLXENT_F32, small_run() ? 40 : 9001, 1, small_run() ? 19 : 131);
    desc.target_type = CLXENT_TARGET_I32;
    desc.z_loss = 1e-3;
    desc.has_class_weights = desc.has_row_weights = 1;
    return desc;
}

/* The program of other tests, without class weights. */
static void share(clxent_desc *desc)
{
    desc->target_type = CLXENT_TARGET_I64;
    desc->has_class_weights = 0;
}

static void make_rows(problem *p, const clxent_desc *desc)
{
    make_problem(p, desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED | FILL_GRAD_OUTPUT, 11);
}

static void run_on_device(const problem *p, uint32_t outputs, uint32_t flags, clxent_host_args *out)
{
    clxent_plan *plan;
    cr_assert(clxent_plan_create(&plan, device.ctx, &p->desc) == CLXENT_OK, "%s", last_error());
    run_once("determinism", plan, p, outputs, flags, out);
    clxent_plan_destroy(plan);
}

/* The outputs that both have; each element is written, so whole arrays compare. */
static void check_equal(const char *what, const clxent_host_args *a, const clxent_host_args *b)
{
    const clxent_output *x = &a->losses, *y = &b->losses;
    size_t compared = 0;
    for (size_t i = 0; x + i <= &a->one_hot; i++) {
        if (x[i].data == NULL || y[i].data == NULL) continue;
        compared++;
        cr_assert(x[i].size == y[i].size && memcmp(x[i].data, y[i].data, x[i].size) == 0,
                  "%s: output %zu has other bits", what, i);
    }
    cr_assert(compared > 0);
}

Test(determinism, runs_repeat_their_bits)
{
    const clxent_desc desc = every_kind();
    clxent_host_args first, again;
    clxent_plan *plan;
    problem p;

    make_rows(&p, &desc);
    cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    run_once("first", plan, &p, EVERY_OUTPUT, 0, &first);
    for (int i = 0; i < (small_run() ? 1 : 8); i++) {
        run_once("again", plan, &p, EVERY_OUTPUT, i % 2 == 0 ? CASE_OUT_OF_ORDER : 0, &again);
        check_equal(i % 2 == 0 ? "out of order" : "again", &first, &again);
        free_outputs(&again);
    }
    /* where buffers begin decides how results are stored, not what */
    run_once("aligned", plan, &p, EVERY_OUTPUT, CASE_ALIGNED, &again);
    check_equal("aligned", &first, &again);
    free_outputs(&again);
    free_outputs(&first);
    clxent_plan_destroy(plan);
    free_problem(&p);
}

Test(determinism, one_compute_unit_gives_the_bits_of_all)
{
    const cl_device_partition_property by_one[] = { CL_DEVICE_PARTITION_EQUALLY, 1, 0 };
    const clxent_desc desc = every_kind();
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    cl_device_id parts[64];
    cl_uint count = 0, most = 0;
    clxent_host_args whole, part;
    cl_int code;
    problem p;

    clGetDeviceInfo(device.id, CL_DEVICE_PARTITION_MAX_SUB_DEVICES, sizeof most, &most, NULL);
    if (most < 2 || clCreateSubDevices(device.id, by_one, 64, parts, &count) != CL_SUCCESS || count == 0) {
        cr_skip("the device has no sub-devices of one compute unit");
    }
    make_rows(&p, &desc);
    run_on_device(&p, EVERY_OUTPUT, 0, &whole);
    struct test_device all = device;
    device.id = parts[0];
    device.cl = clCreateContext(NULL, 1, &parts[0], NULL, NULL, &code);
    cr_assert(code == CL_SUCCESS, "clCreateContext: %d", code);
    device.queue = clCreateCommandQueue(device.cl, parts[0], 0, &code);
    cr_assert(code == CL_SUCCESS, "clCreateCommandQueue: %d", code);
    options.tuning = all.tuning;
    code = clxent_context_create(&device.ctx, device.cl, parts[0], &options);
    cr_assert(code == CLXENT_OK, "clxent_context_create: %s", clxent_status_string(code));
    run_on_device(&p, EVERY_OUTPUT, 0, &part);
    check_equal("one compute unit", &whole, &part);
    clxent_context_destroy(device.ctx);
    clReleaseCommandQueue(device.queue);
    clReleaseContext(device.cl);
    for (cl_uint i = 0; i < count; i++) clReleaseDevice(parts[i]);
    device = all;
    free_outputs(&whole);
    free_outputs(&part);
    free_problem(&p);
}

Test(determinism, what_else_a_run_is_asked_for_changes_nothing)
{
    const uint32_t subsets[] = {
        CLXENT_OUTPUT_LOSS,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT,
        CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_STATISTICS,
        CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_ENTROPY,
        CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_BAD_TARGETS,
        CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_LOG_SOFTMAX,
    };
    const size_t classes[] = { 131, 2048, 2600 };

    for (size_t c = 0; c < (small_run() ? 1 : COUNT(classes)); c++) {
        clxent_desc desc = every_kind();
        clxent_host_args whole;
        clxent_plan *plan;
        problem p;
        desc.batch = 60;
        desc.classes = small_run() ? 19 : classes[c];
        if (c > 0 && !runs_all()) share(&desc);
        make_rows(&p, &desc);
        cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
        run_once("whole", plan, &p, EVERY_OUTPUT, 0, &whole);
        for (size_t i = 0; i < COUNT(subsets); i++) {
            char what[64];
            clxent_host_args some;
            (void)snprintf(what, sizeof what, "outputs 0x%x of %zu classes", (unsigned)subsets[i],
                           desc.classes);
            run_once(what, plan, &p, subsets[i], 0, &some);
            check_equal(what, &whole, &some);
            free_outputs(&some);
        }
        clxent_plan_destroy(plan);
        free_outputs(&whole);
        free_problem(&p);
    }
}

/* Plans of other outputs are other programs, and what they share has the same bits: clxent.h says where not. */
Test(determinism, what_else_a_plan_computes_changes_nothing)
{
    static const uint32_t subsets[] = {
        CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_STATISTICS,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_SOFTMAX,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOG_SOFTMAX | CLXENT_OUTPUT_CORRECT,
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_ENTROPY,
    };
    static const struct {
        size_t batch, classes, inner;
    } shapes[] = { { 40, 4099, 1 }, { 70, 7, 1 }, { 48, 19, 16 } };

    for (size_t s = 0; s < (runs_all() ? COUNT(shapes) : 1); s++) {
        clxent_desc desc = CLXENT_DESC_INIT;
        clxent_host_args all;
        problem p;
        desc.outputs = EVERY_OUTPUT;
        desc.batch = small_run() && s == 0 ? 8 : shapes[s].batch;
        desc.seq = 1;
        desc.classes = shapes[s].classes;
        desc.inner = shapes[s].inner;
        make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 17);
        run_on_device(&p, desc.outputs, 0, &all);
        for (size_t i = 0; i < (runs_all() ? COUNT(subsets) : 2); i++) {
            char what[64];
            clxent_host_args some;
            p.desc.outputs = subsets[i];
            (void)snprintf(what, sizeof what, "a plan of 0x%x, %zu classes", (unsigned)subsets[i],
                           desc.classes);
            run_on_device(&p, subsets[i], 0, &some);
            check_equal(what, &all, &some);
            free_outputs(&some);
        }
        free_outputs(&all);
        free_problem(&p);
    }
}

/* Sums of a_j that a run from statistics takes without the exponentials: of a target within four vectors, of fewer than
 * four behind them, of a tail. */
Test(determinism, saved_statistics_give_the_gradient_its_bits)
{
    static const size_t classes[] = { 1000, 1049, 1090 };

    for (size_t i = 0; i < (runs_all() ? COUNT(classes) : 1); i++) {
        for (int soft = 0; soft < (runs_all() ? 2 : 1); soft++) {
            clxent_desc desc = CLXENT_DESC_INIT;
            char name[64];
            problem p;
            desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS;
            desc.batch = small_run() ? 12 : 200;
            desc.seq = 1;
            desc.classes = classes[i];
            desc.has_class_weights = 1;
            desc.label_smoothing = 0.1;
            if (soft) desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
            make_problem(&p, &desc, FILL_PLAIN, 19);
            (void)snprintf(name, sizeof name, "%zu classes, %s targets", desc.classes,
                           soft ? "soft" : "index");
            check_gradient_from_statistics(name, &p);
            free_problem(&p);
        }
    }
}

/* The same of results that let vectors lie along few classes, for which the outputs decide. */
Test(determinism, nor_does_it_where_rows_lie_along_the_classes)
{
    const uint32_t all = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT |
                         CLXENT_OUTPUT_STATISTICS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX |
                         CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_ENTROPY;
    const uint32_t subsets[] = { CLXENT_OUTPUT_LOSS,
                                 CLXENT_OUTPUT_GRADIENT,
                                 CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_STATISTICS,
                                 CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_CORRECT,
                                 CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_GRADIENT,
                                 CLXENT_OUTPUT_ENTROPY };
    const size_t classes[] = { 100, 301 };

    for (size_t c = 0; c < COUNT(classes); c++) {
        clxent_desc desc = every_kind();
        clxent_host_args whole, other;
        clxent_plan *plan;
        problem p;
        desc.outputs = all;
        if (!runs_all()) share(&desc);
        desc.batch = small_run() ? 20 : 1003;
        desc.classes = classes[c];
        make_rows(&p, &desc);
        cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
        run_once("whole", plan, &p, all, 0, &whole);
        for (size_t i = 0; i < COUNT(subsets); i++) {
            run_once("some", plan, &p, subsets[i], i == 0 ? CASE_OUT_OF_ORDER : 0, &other);
            check_equal("some", &whole, &other);
            free_outputs(&other);
        }
        run_once("aligned", plan, &p, all, CASE_ALIGNED, &other);
        check_equal("aligned", &whole, &other);
        free_outputs(&other);
        clxent_plan_destroy(plan);
        free_outputs(&whole);
        free_problem(&p);
    }
}

/* A row's results do not depend on its neighbours: each row alone gives what it gives among all. */
static void check_rows_alone(size_t classes)
{
    enum { ROWS = 30 };
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_host_args whole;
    problem p;

    desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_GRADIENT;
    desc.reduction = CLXENT_REDUCTION_SUM;
    desc.batch = ROWS;
    desc.seq = 1;
    desc.classes = classes;
    make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 12);
    run_on_device(&p, desc.outputs, 0, &whole);
    for (size_t row = 0; row < ROWS; row++) {
        const size_t bytes = desc.classes * sizeof(float);
        clxent_host_args alone;
        problem q;
        desc.batch = 1;
        make_problem(&q, &desc, FILL_PLAIN, 1);
        memcpy((void *)q.args.logits.data, (const char *)p.args.logits.data + row * bytes, bytes);
        put_target((void *)q.args.targets.data, desc.target_type, 0,
                   get_target(p.args.targets.data, desc.target_type, row));
        run_on_device(&q, desc.outputs, 0, &alone);
        cr_assert(memcmp((char *)whole.gradient.data + row * bytes, alone.gradient.data, bytes) == 0,
                  "gradient of row %zu", row);
        cr_assert(memcmp((float *)whole.losses.data + row, alone.losses.data, 4) == 0, "loss of row %zu",
                  row);
        cr_assert(memcmp((float *)whole.lse.data + row, alone.lse.data, 4) == 0, "lse of row %zu", row);
        free_outputs(&alone);
        free_problem(&q);
    }
    free_outputs(&whole);
    free_problem(&p);
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
    } shapes[] = { { 70, 7, 1 }, { 64, 9, 32 }, { 40, 700, 1 }, { 2, 70001, 1 } };

    for (size_t s = 0; s < (small_run() ? 2 : COUNT(shapes)); s++) {
        clxent_desc desc = CLXENT_DESC_INIT;
        clxent_host_args whole;
        problem p;
        desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT;
        desc.batch = shapes[s].batch;
        desc.seq = 1;
        desc.classes = shapes[s].classes;
        desc.inner = shapes[s].inner;
        make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 13);
        run_on_device(&p, desc.outputs, 0, &whole);
        for (size_t v = 0; v < COUNT(variations); v++) {
            for (size_t i = 0; i < COUNT(variations[v].values); i++) {
                const bool compiles = variations[v].field == offsetof(clxent_tuning, lane_vector);
                if (compiles && !runs_all() && i != 1) continue;
                clxent_tuning t = clxent_tuning_choose(device.ctx->tuning, &device.ctx->device, &desc);
                clxent_host_args other;
                clxent_plan *plan;
                char what[96];
                /* along the classes it decides bits, see tuning.def; the tuner leaves it alone unless told */
                if (variations[v].field == offsetof(clxent_tuning, lane_vector) && desc.classes == 700)
                    continue;
                memcpy((char *)&t + variations[v].field, &variations[v].values[i], sizeof(uint32_t));
                (void)snprintf(what, sizeof what, "%zu classes, inner %zu, %s %u", desc.classes, desc.inner,
                               variations[v].what, (unsigned)variations[v].values[i]);
                cr_assert(clxent_plan_create_tuned(&plan, device.ctx, &desc, &t) == CLXENT_OK, "%s: %s", what,
                          last_error());
                run_once(what, plan, &p, desc.outputs, CASE_ALIGNED, &other);
                check_equal(what, &whole, &other);
                free_outputs(&other);
                clxent_plan_destroy(plan);
            }
        }
        free_outputs(&whole);
        free_problem(&p);
    }
}

/* A context's own rows reach its plans. */
Test(determinism, a_contexts_tuning_rows_reach_its_plans)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    clxent_desc desc = every_kind();
    clxent_context *ctx;
    clxent_plan *plan;

    desc.classes = 700;
    desc.outputs = ONE_PASS_OUTPUTS;
    share(&desc);
    options.tuning = "TUNE(ANY, \"*\", F32, 1, 4, 4, 0, 0, 0, 0, 0, 0, 1, 1, 0)";
    cr_assert(clxent_context_create(&ctx, device.cl, device.id, &options) == CLXENT_OK);
    cr_assert(clxent_plan_create(&plan, ctx, &desc) == CLXENT_OK);
    cr_assert(strstr(clxent_plan_strategy(plan), "1 row a work-group of 1, vectors of 4, blocks of 16") !=
                  NULL,
              "%s", clxent_plan_strategy(plan));
    clxent_plan_destroy(plan);
    clxent_context_destroy(ctx);
}
