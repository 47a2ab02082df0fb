/* SPDX-License-Identifier: MIT
 *
 * test_variants.c - every strategy that some device may choose, forced on this one: work-group sizes, vector
 * widths, block lengths, the cache, rows a group, streaming stores, rows split over groups, lanes. (Linked with
 * the static library for clxent_plan_create_tuned().) Each judged by the reference, as in test_cross_entropy.c.
 */
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <dlfcn.h>
#include <math.h>
#include <string.h>

TestSuite(variants, .init = open_device, .fini = close_device);

static clxent_desc variant_desc(uint32_t dtype, size_t rows, size_t classes, size_t inner, bool general,
                                uint32_t flags)
{
    const size_t slab = classes * inner;
    const uint32_t plain = EVERY_OUTPUT & ~CLXENT_OUTPUT_ENTROPY;
    /* where few programs are compiled, those of other tests */
    const uint32_t few = dtype == CLXENT_F32 ? ONE_PASS_OUTPUTS : EVERY_OUTPUT;
    const uint32_t outputs = general ? EVERY_OUTPUT : runs_all() ? plain : few;
    clxent_desc desc = make_desc(outputs, dtype, rows, 1, classes);

    desc.inner = inner;
    if (general) {
        desc.label_smoothing = 0.1;
        desc.has_class_weights = 1;
        desc.z_loss = 1e-3;
        desc.softcap = SHARED_SOFTCAP;
    }
    if ((flags & CASE_IN_PLACE) != 0) {
        desc.outputs = TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS;
    } else if ((flags & CASE_ALIGNED) == 0) {
        desc.row_stride = slab + 3;
        desc.gradient_row_stride = slab + 5;
        desc.probabilities_row_stride = slab + 1;
    }
    return desc;
}

static void check_desc(const clxent_tuning *tuning, const clxent_desc *desc, uint32_t flags)
{
    if (!driver_takes(tuning)) return;
    force(tuning);
    run_filled_case("variant", desc,
                    FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS |
                        FILL_GRAD_OUTPUT | FILL_HIT,
                    desc->classes, flags);
}

static void check_inner(const clxent_tuning *tuning, uint32_t dtype, size_t rows, size_t classes,
                        size_t inner, bool general, uint32_t flags)
{
    clxent_desc desc = variant_desc(dtype, rows, classes, inner, general, flags);
    /* of larger groups, for which PoCL takes half a minute, those in place */
    if (!runs_all() && !general && (tuning->group > 1 || tuning->lane_group > 1))
        desc.outputs = TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS;
    check_desc(tuning, &desc, flags);
}

static void check(const clxent_tuning *tuning, uint32_t dtype, size_t rows, size_t classes, bool general,
                  uint32_t flags)
{
    check_inner(tuning, dtype, rows, classes, 1, general, flags);
}

/* Below, at and above what the group handles in one step, in one block, in the cache, and in several blocks. */
static void check_sizes(const clxent_tuning *t, uint32_t dtype, bool general)
{
    const size_t step = (size_t)t->group * t->vector, block = step * t->block;
    const size_t real = dtype == CLXENT_F64 ? 8 : 4, cache = t->cache / real;
    const size_t classes[] = { 1,     2,         step,  step + 1,  2 * step + 3, block - 1,
                               block, block + 1, cache, cache + 1, 3 * block + 5 };
    const size_t limit = small_run() ? 200 : 40000;

    for (size_t i = 0; i < COUNT(classes); i++) {
        /* rows enough for each kind of row once, and for a last group that is not full */
        if (classes[i] == 0 || classes[i] > limit) continue;
        check(t, dtype, small_run() ? 3 : 19, classes[i], general, i % 3 == 0 ? CASE_OUT_OF_ORDER : 0);
    }
}

Test(variants, vectors_blocks_and_caches_of_one_work_item)
{
    const clxent_tuning tunings[] = {
        ROWS(1, 1, 4, 8192, 4096, 0),    ROWS(1, 16, 64, 0, 4096, 0),   ROWS(1, 4, 4, 32768, 4096, 0),
        ROWS(1, 16, 64, 65536, 4096, 0), ROWS(1, 4, 64, 0, 1, 0),       ROWS(1, 8, 64, 8192, 4096, 0),
        ROWS(1, 16, 4, 8192, 1, 0),      ROWS(1, 8, 4, 32768, 4096, 0),
    };
    for (size_t i = 0; i < (small_run() ? COUNT(tunings) : volume(COUNT(tunings), 4)); i++) {
        check_sizes(&tunings[i], CLXENT_F32, false);
        if (runs_all() ? i % 3 == 0 : i == 3) check_sizes(&tunings[i], CLXENT_F32, true);
    }
    /* exponentials fit under a softcap, and the slopes beside them do not */
    const clxent_tuning tight = ROWS(1, 16, 64, 100, 4096, 0);
    check(&tight, CLXENT_F32, 5, 1100, true, 0);
}

/* Where exponentials are kept, blocks share a scale that changes with every 64 binades of the maximum (row_results.cl). The
 * kinds: a maximum that passes one change or several, that is at one, that rises behind masks, that falls from one piece to
 * the next, that becomes far or near; one that is at either side of a change, with small others. part: of the row's classes,
 * those in front of this one. */
enum { STEP_KINDS = 12 };
static double step_logit(size_t kind, double part, double noise)
{
    const double step = 64 * 0x1.62e42fefa39efp-1, far = 0x1p16;

    switch (kind) {
    case 0: return step / 2 - 0.7 + 1.4 * part;
    case 1: return -step / 2 - 0.7 + 1.4 * part;
    case 2: return step * (3 * part - 1.5) + noise;
    case 3: return step * (1.5 - 3 * part) + noise;
    case 4: return step / 2;
    case 5: return part < 0.5 ? -INFINITY : part < 0.8 ? noise : noise + step;
    case 6: return part < 0.5 ? noise + step : noise;
    case 7: return far - 3 + 6 * part;
    case 8: return -far - 3 + 6 * part;
    case 9: return part < 0.2 ? -INFINITY : part < 0.4 ? -8 * far : part < 0.8 ? -INFINITY : noise;
    case 10: return part == 0.0 ? 21.9 : noise - 60;
    default: return part == 0.0 ? 22.5 : noise - 60;
    }
}

/* PoCL takes half a minute to compile each: where few programs are compiled, groups are of f32. */
static void check_groups_of_every_dtype(void)
{
    const clxent_tuning fours = ROWS(8, 4, 4, 8192, 1024, 0), eights = ROWS(8, 8, 4, 8192, 1024, 0);
    const clxent_tuning twos = ROWS(8, 4, 2, 8192, 1024, 0); /* with options blocks of one vector */
    check_sizes(&twos, CLXENT_F32, true);
    check(&twos, CLXENT_F32, 9, 192, true, CASE_ALIGNED);
    for (uint32_t dtype = CLXENT_F16; dtype <= CLXENT_F64; dtype++) {
        const clxent_tuning tuning = dtype == CLXENT_F64 ? fours : eights; /* as in tuning.def */
        if (dtype == CLXENT_F64 && !device.has_f64) continue;
        check_sizes(&tuning, dtype, dtype != CLXENT_F16);
        check(&tuning, dtype, 9, 192, dtype != CLXENT_F16, CASE_ALIGNED);
        check(&tuning, dtype, 9, small_run() ? 320 : 4096, dtype != CLXENT_F16, CASE_ALIGNED);
    }
}

Test(variants, work_groups_of_every_size_and_dtype)
{
    const clxent_tuning tunings[] = {
        ROWS(4, 4, 4, 8192, 1024, 0),
        ROWS(2, 1, 16, 8192, 1, 0),
        ROWS(64, 4, 4, 16384, 1024, 0),
        ROWS(256, 4, 4, 16384, 1024, 0),
    };
    skip_unless_driver_takes(&tunings[0]);
    /* PoCL compiles that of 64 for other tests too; Oclgrind takes long to run large groups, and gets one row of each */
    const size_t begin = runs_all() ? 0 : 2;
    const size_t end = small_run() ? 2 : full_run() ? COUNT(tunings) : 3;
    for (size_t i = begin; i < end; i++) {
        /* what one work-item writes over the logits, another must have read */
        check(&tunings[i], CLXENT_F32, 9, 70, false, CASE_IN_PLACE);
        check(&tunings[i], CLXENT_F32, small_run() ? 3 : 19, small_run() ? 203 : 3077, false, CASE_IN_PLACE);
        if (runs_all()) {
            check_sizes(&tunings[i], CLXENT_F32, false);
            /* rows that begin at multiples of the vector, which GPUs read and write otherwise */
            check(&tunings[i], CLXENT_F32, 9, 192, false, CASE_ALIGNED);
            /* of rows that do not count one result is constant, and the other needs the logits that it replaces */
            clxent_desc both = variant_desc(CLXENT_F32, 19, 37, 1, false, CASE_IN_PLACE);
            both.outputs |= CLXENT_OUTPUT_LOG_SOFTMAX;
            check_desc(&tunings[i], &both, CASE_IN_PLACE);
        }
        if (tunings[i].vector == 1 || !runs_all()) continue;
        check_sizes(&tunings[i], CLXENT_F32, true);
        check(&tunings[i], CLXENT_F32, 9, 70, true, CASE_IN_PLACE);
        check(&tunings[i], CLXENT_F32, 9, 192, true, CASE_ALIGNED);
        if (!small_run()) check(&tunings[i], CLXENT_F32, 9, 2048, true, CASE_ALIGNED);
    }
    /* a warp of NVIDIA's with vectors of one: 32 of them are a block */
    const clxent_tuning ones = ROWS(32, 1, 32, 0, 1024, 0);
    if (runs_all()) check(&ones, CLXENT_F32, 3, 1024, false, CASE_IN_PLACE);
    if (runs_all()) check(&ones, CLXENT_F32, 3, 1023, true, 0);
    for (size_t i = end; small_run() && i < COUNT(tunings); i++) /* of two blocks */
        check(&tunings[i], CLXENT_F32, 1, (size_t)tunings[i].group * 16 + 76, false, CASE_IN_PLACE);
    if (runs_all()) check_groups_of_every_dtype();
}

static clxent_tuning native_tuning(void)
{
    clxent_tuning t = strategy_for(CLXENT_F32, EACH_GROUPS);
    t.native_exp = 1;
    return t;
}

/* Statistics of the device's exp2 to a plan that has the polynomial. */
static clxent_status make_native_then_plain(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    const clxent_tuning native = native_tuning(), plain = strategy_for(desc->dtype, EACH_ROWS);
    const bool saves = (desc->outputs & CLXENT_OUTPUT_STATISTICS) != 0;
    return clxent_plan_create_tuned(out, ctx, desc, saves ? &native : &plain);
}

/* The largest error of the device's native_exp2() where rows take it, in ulp. */
static double error_of_exp2(void)
{
    enum { SAMPLES = 1 << 16 };
    static const char *const source =
        "kernel void k(global float *v) { size_t i = get_global_id(0); v[i] = native_exp2(v[i]); }";
    const size_t count = SAMPLES, bytes = count * sizeof(float);
    float *f = take_memory(bytes), *e = take_memory(bytes);
    double worst = 0;
    cl_int code;

    for (size_t i = 0; i < count; i++) f[i] = (float)((double)i / (double)count - 0.5);
    cl_mem mem = new_buffer(device.cl, CL_MEM_READ_WRITE, bytes, f);
    cl_program program = clCreateProgramWithSource(device.cl, 1, (const char **)&source, NULL, &code);
    cr_assert(code == CL_SUCCESS && clBuildProgram(program, 1, &device.id, "", NULL, NULL) == CL_SUCCESS);
    cl_kernel kernel = clCreateKernel(program, "k", &code);
    cr_assert(clSetKernelArg(kernel, 0, sizeof mem, &mem) == CL_SUCCESS);
    cr_assert(clEnqueueNDRangeKernel(device.queue, kernel, 1, NULL, &count, NULL, 0, NULL, NULL) == 0);
    cr_assert(clEnqueueReadBuffer(device.queue, mem, CL_TRUE, 0, bytes, e, 0, NULL, NULL) == CL_SUCCESS);
    for (size_t i = 0; i < count; i++) {
        const double want = exp2(f[i]), ulp = want < 1 ? 0x1p-24 : 0x1p-23;
        worst = fmax(worst, fabs(e[i] - want) / ulp);
    }
    clReleaseKernel(kernel);
    clReleaseProgram(program);
    clReleaseMemObject(mem);
    free(f);
    free(e);
    return worst;
}

/* On devices whose exp2 is as good as tuning.def asks. */
Test(variants, groups_take_the_exp2_of_the_device)
{
    if (error_of_exp2() > 1) cr_skip("native_exp2() of this device is off by more than an ulp");
    const clxent_tuning native = native_tuning();
    const size_t rows = small_run() ? 3 : 19, several = small_run() ? 300 : 1100; /* blocks */
    clxent_tuning polynomial = native;
    clxent_host_args of_device, own;
    problem p;

    skip_unless_driver_takes(&native);
    polynomial.native_exp = 0;
    /* of several blocks; where PoCL need not compile them, of one too, in vectors of one, and of 16 bits */
    check(&native, CLXENT_F32, 9, several, false, CASE_IN_PLACE);
    for (size_t i = 0; i < (runs_all() ? 2 : 0); i++) {
        check(&native, CLXENT_F32, rows, small_run() ? 64 : 512, i != 0, CASE_ALIGNED);
        check(&native, CLXENT_F32, rows, 70, i != 0, 0);
        check(&native, i == 0 ? CLXENT_BF16 : CLXENT_F16, rows, several, i != 0, CASE_ALIGNED);
    }

    const clxent_desc desc = variant_desc(CLXENT_F32, 9, several, 1, false, CASE_IN_PLACE);
    make_problem(&p, &desc, FILL_PLAIN, 3);
    run_with("exp2", &native, &p, 0, &of_device);
    run_with("polynomial", &polynomial, &p, 0, &own);
    cr_assert(memcmp(of_device.gradient.data, own.gradient.data, own.gradient.size) != 0);
    free_outputs(&own);
    free_outputs(&of_device);

    /* far from 0, where the two have other factors in common */
    for (size_t i = 0; i < 9 * several; i++)
        set_logit(&p, i, get_logit(&p, i) + (i / several % 2 == 0 ? 1e4 : -3e4));
    plan_maker = make_native_then_plain;
    run_from_statistics_of("of exp2", &p, TRAINING_OUTPUTS);
    free_problem(&p);
}

/* Lanes: class counts around the vector, the long sums' blocks and the tile; rows that fill no tile, one, and several;
 * in place; with every output beside each other. */
static void check_lanes(const clxent_tuning *t, uint32_t dtype, size_t inner, bool general)
{
    const size_t vector = t->lane_vector, tile = t->lane_group * t->lane_vector;
    const size_t classes[] = { 1, 2, 3, vector - 1, vector, vector + 1, 2 * vector + 3, 64, 65, 130, 257 };
    const size_t rows[] = { 1, tile, 2 * tile + 19 };

    for (size_t i = 0; i < COUNT(classes); i++) {
        if (classes[i] == 0 || (small_run() && classes[i] > 20)) continue;
        /* PoCL's programs: tiles of four columns, of one, and none in local memory */
        if (!runs_all() && inner > 1 && (classes[i] == 64 || classes[i] == 65)) continue;
        for (size_t k = small_run() ? 2 : 0; k < COUNT(rows); k++) {
            const size_t n = small_run() ? tile + 3 : rows[k];
            const bool in_place =
                i % 4 == 0 && (runs_all() || (dtype == CLXENT_F32 && inner == 1 && !general));
            check_inner(t, dtype, inner > 1 ? (n + inner - 1) / inner * inner : n, classes[i], inner, general,
                        in_place     ? CASE_IN_PLACE
                        : i % 4 <= 1 ? CASE_ALIGNED
                                     : 0);
        }
    }
}

Test(variants, lanes_of_every_vector_with_the_class_axis_last)
{
    const clxent_tuning tunings[] = {
        LANES(1, 16, 1 << 19, 1), LANES(group_of_several(32), 1, 1 << 19, 0),
        LANES(1, 16, 1 << 14, 0), LANES(1, 4, 1 << 19, 0),
        LANES(1, 1, 1 << 19, 0),  LANES(1, 8, 1 << 19, 1),
    };
    for (size_t i = 0; i < (small_run() ? 2 : volume(COUNT(tunings), 3)); i++) {
        const clxent_tuning *t = &tunings[i];
        check_lanes(t, CLXENT_F32, 1, false);
        if (runs_all() || i == 0) check_lanes(t, CLXENT_F32, 1, true);
    }
    /* several tiles one after the other in a group that shares them */
    const clxent_tuning *shared = &tunings[1];
    const size_t tiles = 8 * (size_t)device.ctx->device.compute_units * 3;
    check(shared, CLXENT_F32, shared->lane_group * tiles + 5, 2, false, 0);
}

/* Whether a plan of that tuning has lanes whose vectors lie along the classes. */
static bool lies_along(const clxent_tuning *t, const clxent_desc *desc)
{
    clxent_plan *plan = plan_with(t, desc);
    const bool along = plan->along;
    clxent_plan_destroy(plan);
    return along;
}

/* Classes around multiples of the vector and of the long sums' blocks; a row's last vector that overlaps the one
 * before; each result that this serves; rows that fill no tile, one, and several. */
Test(variants, lanes_along_the_classes)
{
    const clxent_tuning tunings[] = { LANES(1, 16, 1 << 19, 1), LANES(1, 8, 1 << 19, 0),
                                      LANES(1, 4, 1 << 19, 1) };
    const uint32_t outputs[] = {
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS |
            CLXENT_OUTPUT_BAD_TARGETS,
        CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_SOFTMAX,
        runs_all() ? CLXENT_OUTPUT_LOSSES : CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS,
        CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_CORRECT |
            (runs_all() ? CLXENT_OUTPUT_ENTROPY : 0),
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_ENTROPY,
    };
    for (size_t i = small_run() ? 2 : 0; i < (small_run() ? COUNT(tunings) : volume(COUNT(tunings), 1));
         i++) {
        const size_t vector = tunings[i].lane_vector, block = 16 * vector;
        const size_t local = (size_t)device.ctx->device.local_memory / 2; /* what plans take of it */
        const size_t most = local < tunings[i].lane_cache ? local : tunings[i].lane_cache;
        const size_t classes[] = { 4 * vector,         4 * vector + 1,
                                   8 * vector - 1,     block,
                                   block + 1,          block + vector,
                                   block + vector + 3, 512,
                                   2 * block + 5,      4095 };
        const size_t rows[] = { 1, vector, 2 * vector + vector / 2 + 1 };
        for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++) {
            if (dtype == CLXENT_F64 && !device.has_f64) continue;
            if (dtype != CLXENT_F32 && (small_run() || !full_run() ? dtype != CLXENT_BF16 : i > 0)) continue;
            for (size_t c = 0; c < COUNT(classes); c++) {
                if (classes[c] * vector * 8 > most || (small_run() && c % 3 != 1)) continue;
                for (size_t r = small_run() ? 2 : 0; r < COUNT(rows); r++) {
                    /* see lies_along() */
                    const size_t few = dtype == CLXENT_F32 || runs_all() ? COUNT(outputs) : 1;
                    const size_t k = classes[c] > 1024 ? 0 : (c + r) % few;
                    const uint32_t flags = k > 0              ? (c % 2 == 0 ? CASE_ALIGNED : 0)
                                           : c % 3 == 0       ? CASE_IN_PLACE
                                           : (c + r) % 2 == 0 ? CASE_ALIGNED
                                                              : 0;
                    clxent_desc desc = variant_desc(dtype, rows[r], classes[c], 1, false, flags);
                    desc.outputs = outputs[k];
                    cr_assert(lies_along(&tunings[i], &desc), "%zu classes", classes[c]);
                    check_desc(&tunings[i], &desc, flags);
                }
            }
        }
    }
}

/* Blocks below the row's maximum by more than one step of 64 binades; and upstreams that make the factor of the exponentials, of
 * one row of 16 or of all, normal at the row's scale and not at the shared one. Lanes that share a tile are each at a scale of
 * their own. */
Test(variants, exponentials_of_every_scale_keep_their_digits)
{
    const uint32_t rows_outputs = runs_all() ? EVERY_OUTPUT & ~CLXENT_OUTPUT_ENTROPY : ONE_PASS_OUTPUTS;
    const uint32_t lanes_outputs = TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS;
    const struct {
        clxent_tuning tuning;
        uint32_t outputs;
        size_t rows, classes, inner;
    } cases[] = {
        { ROWS(1, 4, 4, 32768, 4096, 0), rows_outputs, STEP_KINDS, small_run() ? 83 : 203, 1 },
        { PIECES(1, 4, 4, 32768, 64, 0), rows_outputs, STEP_KINDS, small_run() ? 83 : 203, 1 },
        { LANES(1, 16, 1 << 19, 0), lanes_outputs, 16 * STEP_KINDS + 5, 20, 1 },  /* transposed */
        { LANES(1, 16, 1 << 19, 0), lanes_outputs, 16 * STEP_KINDS + 5, 203, 1 }, /* along the classes */
        { LANES(1, 16, 1 << 19, 0), lanes_outputs, 75, 203, 75 },                 /* neighbours, in blocks */
        { LANES(1, 4, 1 << 19, 0), lanes_outputs, 75, 203, 75 },
    };

    for (size_t i = 0; i < 2 * (small_run() ? 4 : COUNT(cases)); i++) {
        const size_t rows = cases[i / 2].rows, classes = cases[i / 2].classes;
        clxent_desc desc =
            make_desc(cases[i / 2].outputs & ~(uint32_t)CLXENT_OUTPUT_LOSS, CLXENT_F32, rows, 1, classes);
        problem p;
        desc.inner = cases[i / 2].inner;
        desc.reduction = CLXENT_REDUCTION_NONE;
        force(&cases[i / 2].tuning);
        make_problem(&p, &desc, FILL_GRAD_OUTPUT, 23);
        for (size_t row = 0; row < rows; row++) {
            const bool small = i % 2 == 1 || row % 16 == 3;
            put_element((void *)p.args.grad_output.data, CLXENT_F32, row, small ? 0x1p-115 : 1);
            for (size_t j = 0; j < classes; j++) {
                const size_t at = element_index(&desc, 0, row, j);
                const double noise = get_logit(&p, at);
                set_logit(&p, at, step_logit(row * 5 % STEP_KINDS, (double)j / (double)classes, noise));
            }
        }
        run_case("scales", &p, 0);
        free_problem(&p);
    }
}

/* 24 KiB of local memory hold a few classes of 16 lanes, 16 bytes a lane those of groups, and not the others. */
Test(variants, lanes_of_every_vector_with_the_class_axis_not_last)
{
    const clxent_tuning tunings[] = {
        LANES(1, 16, 24 << 10, 1),
        LANES(group_of_several(64), 4, 16 * 4 * group_of_several(64), 0),
        LANES(1, 16, 1 << 19, 1),
        LANES(1, 4, 1 << 19, 0),
    };
    const size_t inners[] = { 75, 5, 21, 64, 2, 200 };
    for (size_t i = 0; i < (small_run() ? 2 : volume(COUNT(tunings), 1)); i++) {
        for (size_t k = small_run() ? 2 : 0; k < (small_run() ? 3 : volume(COUNT(inners), 1)); k++) {
            check_lanes(&tunings[i], CLXENT_F32, inners[k], runs_all() && (i + k) % 2 == 0);
        }
    }
}

Test(variants, lanes_serve_every_dtype)
{
    const clxent_tuning alone = LANES(1, 16, 1 << 19, 1), group = LANES(64, 4, 1 << 18, 0);
    for (uint32_t dtype = CLXENT_F16; dtype <= CLXENT_F64; dtype++) {
        if (dtype == CLXENT_F64 && !device.has_f64) continue;
        if (!runs_all() && dtype != CLXENT_F64) continue;
        if (!runs_all()) {
            const clxent_tuning shared = strategy_for(dtype, EACH_LANES);
            check_lanes(&shared, dtype, 1, false);
            continue;
        }
        check_lanes(&alone, dtype, 1, dtype != CLXENT_F16);
        check_lanes(&alone, dtype, 80, dtype == CLXENT_F16);
        if (!full_run()) continue;
        check_lanes(&group, dtype, 1, dtype == CLXENT_BF16);
        check_lanes(&group, dtype, 300, dtype != CLXENT_BF16);
    }
}

static clxent_strategy strategy_of(const clxent_tuning *t, const clxent_desc *desc)
{
    clxent_plan *plan = plan_with(t, desc);
    const clxent_strategy shares = plan->shares;
    clxent_plan_destroy(plan);
    return shares;
}

/* A row over several groups gives the bits of the same pieces in one, whatever the row holds, in place too. */
Test(variants, split_rows_have_the_bits_of_whole_ones)
{
    const struct {
        clxent_tuning whole, split;
        size_t classes;
    } cases[] = {
        /* whole rows keep their exponentials, of several scales, or have no room for them */
        { PIECES(1, 16, 64, 65536, 1024, 0), PIECES(1, 16, 64, 65536, 1024, UINT32_MAX), 5000 },
        { PIECES(1, 16, 64, 8192, 1024, 0), PIECES(1, 16, 64, 8192, 1024, UINT32_MAX), 5000 },
        /* in an interpreter these */
        { PIECES(1, 16, 4, 8192, 64, 0), PIECES(1, 16, 4, 8192, 64, UINT32_MAX), 203 },
        { PIECES(1, 4, 4, 0, 16, 0), PIECES(1, 4, 4, 0, 16, UINT32_MAX), 203 },
        { PIECES(4, 4, 4, 0, 64, 0), PIECES(4, 4, 4, 0, 64, UINT32_MAX), 203 },
    };
    const size_t begin = small_run() ? 2 : 0, end = small_run() ? COUNT(cases) : volume(COUNT(cases), 1);
    for (size_t i = begin; i < end; i++) {
        const size_t classes = cases[i].classes, rows = small_run() ? 3 : 26;
        if (!driver_takes(&cases[i].split)) continue;
        for (int k = 0; k < 4; k++) {
            const bool general = k / 2 != 0, in_place = k % 2 != 0;
            if (general && in_place && !runs_all()) continue;
            if (small_run() && general != (i % 2 == 0)) continue; /* all take an interpreter 24 s of CPU */
            const uint32_t flags = in_place ? CASE_IN_PLACE : 0;
            const clxent_desc desc = variant_desc(CLXENT_F32, rows, classes, 1, general, flags);
            clxent_host_args whole, split;
            problem p;

            if (in_place || !small_run()) check(&cases[i].whole, CLXENT_F32, rows, classes, general, flags);
            check(&cases[i].split, CLXENT_F32, rows, classes, general, flags);
            if (in_place) continue; /* the same values, as check() found, over the logits */
            cr_assert(strategy_of(&cases[i].whole, &desc) == CLXENT_STRATEGY_ROWS);
            cr_assert(strategy_of(&cases[i].split, &desc) == CLXENT_STRATEGY_SPLIT);
            make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED | FILL_HIT, 7);
            run_with("whole", &cases[i].whole, &p, flags, &whole);
            run_with("split", &cases[i].split, &p, flags, &split);
            check_same_outputs(general ? "split rows, general" : "split rows", &whole, &split);
            free_outputs(&whole);
            free_run(&p, &split);
        }
    }
    /* nothing to reduce: the workspace has pieces alone */
    const clxent_desc lse =
        make_desc(CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX, CLXENT_F32, 5, 1, cases[begin].classes);
    check_desc(&cases[begin].split, &lse, 0);
}

/* What the plan of one row says of itself on any device. */
static void check_strategy(const clxent_tuning *t, size_t classes, const char *expected)
{
    const clxent_desc desc = make_desc(CLXENT_OUTPUT_GRADIENT, CLXENT_F32, 1, 1, classes);
    clxent_plan_facts facts;
    cr_assert_eq(clxent_plan_measure(&facts, device.ctx, &desc, t, 1, 1), CLXENT_OK);
    cr_assert(strncmp(facts.strategy, expected, strlen(expected)) == 0, "%zu classes: \"%s\", not \"%s\"",
              classes, facts.strategy, expected);
}

/* Pieces of a row have equal work. A group of one work-item does not share two of them; of very long rows there are so few
 * that each group can merge them all. */
Test(variants, pieces_of_a_row)
{
    const clxent_tuning alone = PIECES(1, 16, 64, 65536, 32768, UINT32_MAX);
    const clxent_tuning group = PIECES(256, 4, 4, 0, 32768, UINT32_MAX);
    check_strategy(&alone, 50257, "rows: 1 row ");
    check_strategy(&alone, 70000, "split rows: 3 pieces of 23552 ");
    check_strategy(&alone, 1 << 19, "split rows: 16 pieces of 32768 ");
    check_strategy(&alone, 1 << 22, "split rows: 64 pieces of 65536 ");
    check_strategy(&alone, 1 << 25, "split rows: 128 pieces of 262144 ");
    if (driver_takes(&group)) check_strategy(&group, 50257, "split rows: 2 pieces of 28672 ");
}

/* Strategies of strategy_for() and lanes with the class axis not last. */
enum { EACH_INNER = EACH_STRATEGY, EACH_PLACE };

/* The fewest pieces that are shared are three, of 1,024 each. */
enum { SPLIT_CLASSES = 2100 };

static clxent_tuning tuning_at(size_t place, uint32_t dtype)
{
    return strategy_for(dtype, place == EACH_INNER ? EACH_LANES : place);
}

static clxent_tuning tuning_of(size_t place) { return tuning_at(place, CLXENT_F32); }

/* ---- Rows that are not finite, and rows that do not count ------------------------------------ */

/* As the reference has them, which test_reference.c holds against the table in clxent.h line by line. Every fifth row is ignored
 * and every sixth has weight 0: 6 of each kind have each kind with either. The interpreter gets each kind once. All are
 * whole slabs of 3 rows. */
static void check_special_rows(const clxent_tuning *tuning, uint32_t outputs, uint32_t dtype, size_t classes,
                               size_t inner, double smoothing)
{
    enum { KINDS = 19 };
    clxent_desc desc = make_desc(outputs, dtype, small_run() ? KINDS + 2 : KINDS * 6, 1, classes);
    problem p;

    desc.inner = inner;
    desc.reduction = CLXENT_REDUCTION_SUM;
    desc.label_smoothing = smoothing;
    desc.z_loss = 0.1;
    desc.has_row_weights = 1;
    force(tuning);
    make_problem(&p, &desc, FILL_DESIGNED | FILL_STEADY | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED, classes);
    for (size_t k = 0; k < 2; k++) /* several +inf in a row of ordinary logits */
        set_logit(&p, element_index(&desc, 0, KINDS, k * (classes - 1)), INFINITY);
    run_case("special rows", &p, 0);
    free_problem(&p);
}

/* Where few programs are compiled, those of f32 and bf16 that other tests have too: PoCL takes half a minute for groups. */
static bool has_place(size_t place, uint32_t dtype)
{
    const clxent_tuning tuning = tuning_at(place, dtype);
    return (runs_all() || dtype == CLXENT_F32 || (dtype == CLXENT_BF16 && place != EACH_GROUPS)) &&
           (dtype != CLXENT_F64 || device.has_f64) && driver_takes(&tuning);
}

static uint32_t outputs_at(size_t place, uint32_t dtype)
{
    if (place == EACH_GROUPS && !runs_all()) return TRAINING_OUTPUTS | CLXENT_OUTPUT_LSE;
    return dtype == CLXENT_F32 || place == EACH_GROUPS ? ONE_PASS_OUTPUTS : EVERY_OUTPUT;
}

static void check_special_rows_at(size_t place, uint32_t dtype)
{
    const size_t classes[] = { 4, 33, 1025, 3000 };
    const clxent_tuning tuning = tuning_at(place, dtype);
    const bool lanes = place == EACH_LANES || place == EACH_INNER,
               rows_or_lanes = place == EACH_ROWS || lanes;

    for (size_t i = 0; i < (small_run() ? 2 : COUNT(classes)); i++) {
        if (lanes && classes[i] > 1025) continue; /* too many for a tile */
        /* of groups a row in one block, by single elements, and one in several, by vectors: PoCL takes 10 to 20 s for each */
        if (place == EACH_GROUPS && !runs_all() && classes[i] != 33 && classes[i] != 3000) continue;
        for (int smooth = 0; smooth < 2; smooth++) {
            if (smooth != 0 && !runs_all() && (dtype != CLXENT_F32 || !rows_or_lanes || place == EACH_INNER))
                continue;
            check_special_rows(&tuning, outputs_at(place, dtype), dtype, classes[i],
                               place == EACH_INNER ? 3 : 1, smooth != 0 ? 0.1 : 0);
        }
    }
}

Test(variants, rows_that_are_not_finite_or_do_not_count_match_the_reference)
{
    const clxent_tuning along = LANES(1, 16, 1 << 19, 1), rows = tuning_of(EACH_ROWS);

    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++)
        for (size_t place = 0; place < EACH_PLACE; place++)
            if (has_place(place, dtype) && (place != EACH_SPLIT || !small_run()))
                check_special_rows_at(place, dtype);
    check_special_rows(&along, ALONG_OUTPUTS, CLXENT_F32, 100, 1, 0);
    check_special_rows(&along, ALONG_OUTPUTS, CLXENT_BF16, 100, 1, 0);
    check_special_rows(&rows, ONE_PASS_OUTPUTS, CLXENT_F32, 33, 3, 0); /* lanes of one */
}

/* Exactly, where the reference has bounds. */
static void check_one_class(size_t place, uint32_t dtype)
{
    enum { ROWS = 6 };
    const clxent_tuning tuning = tuning_at(place, dtype);
    clxent_desc desc = make_desc(outputs_at(place, dtype), dtype, ROWS, 1, 1);
    clxent_host_args out;
    problem p;

    desc.inner = place == EACH_INNER ? 3 : 1;
    make_problem(&p, &desc, FILL_PLAIN, 1);
    run_with("one class", &tuning, &p, 0, &out);
    for (size_t row = 0; row < ROWS; row++) {
        const double softmax = out.softmax.data != NULL ? get_element(out.softmax.data, dtype, row) : 1;
        cr_assert(real_of(&p, &out.losses, row) == 0 && get_element(out.gradient.data, dtype, row) == 0 &&
                      real_of(&p, &out.lse, row) == get_logit(&p, row) && fabs(softmax - 1) <= 2e-7 &&
                      (out.entropy.data == NULL || real_of(&p, &out.entropy, row) == 0),
                  "place %zu, dtype %u, row %zu: loss %g, lse %g, softmax %g", place, (unsigned)dtype, row,
                  real_of(&p, &out.losses, row), real_of(&p, &out.lse, row), softmax);
    }
    free_run(&p, &out);
}

Test(variants, one_class_costs_nothing)
{
    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++)
        for (size_t place = 0; place < EACH_PLACE; place++)
            if (has_place(place, dtype) && (place != EACH_GROUPS || runs_all()))
                check_one_class(place, dtype);
}

/* test_reference.c says what comes of no rows; here, that the device has it too, and that the event completes. */
Test(variants, no_rows_give_a_zero_sum_and_the_policy_of_the_mean)
{
    RUN_LINES({ "no rows",
                "outputs=" EVERY_NAME ";batch=0;classes=7;reduction=mean|sum;all_ignored=nan|nan|zero|zero;"
                "dtype=f32|bf16|f32;cases=12;all:dtype=f32|f16|bf16|f64|f32;all:cases=20" });
}

/* ---- Values ---------------------------------------------------------------------------------- */

/* A class that is masked in a row that counts has a gradient of 0, and so has all of a row that does not count: adding
 * it leaves even -0 as it is. Class counts of no whole vector, and of vectors with a head and a tail. */
Test(variants, accumulating_a_gradient_of_0_leaves_the_sign_of_a_0)
{
    enum { ROWS_OF_EACH = 10 };
    const size_t classes[] = { 5, 37, 100, 1100 }; /* lanes of 100 lie along the classes */
    for (size_t t = 0; t < EACH_PLACE; t++) {
        const bool inner = t == EACH_INNER, split = t == EACH_SPLIT;
        const clxent_tuning tuning = tuning_of(t);
        if (!driver_takes(&tuning) || ((t == EACH_GROUPS || inner || split) && !runs_all())) continue;
        for (size_t i = split ? COUNT(classes) - 1 : 0; i < COUNT(classes); i++) {
            const size_t n = split ? SPLIT_CLASSES : classes[i];
            clxent_desc desc = make_desc(CLXENT_OUTPUT_GRADIENT, CLXENT_F32, ROWS_OF_EACH, 1, n);
            clxent_host_args out;
            problem p;

            if (n > 100 && (inner || t == EACH_LANES || (small_run() && !split))) continue;
            desc.inner = inner ? 5 : 1;
            desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
            make_problem(&p, &desc, FILL_PLAIN, 3);
            for (size_t row = 0; row < ROWS_OF_EACH; row++) {
                const size_t target = (size_t)target_of(&p, row);
                for (size_t j = 0; j < n; j++) {
                    const size_t at = element_index(&desc, 0, row, j);
                    put_element((void *)p.args.gradient.data, CLXENT_F32, at, -0.0);
                    if (j != target && (j + row) % 2 == 0) set_logit(&p, at, -INFINITY);
                }
                if (row % 5 == 4) set_target(&p, row, desc.ignore_index);
            }
            run_with("accumulate 0", &tuning, &p, 0, &out);
            for (size_t k = 0; k < ROWS_OF_EACH * n; k++) {
                const size_t row = k / n, at = element_index(&desc, 0, row, k % n);
                const bool none = get_logit(&p, at) == -INFINITY || target_of(&p, row) == desc.ignore_index;
                const double value = get_element(out.gradient.data, CLXENT_F32, at);
                cr_assert(none ? value == 0 && signbit(value) : value != 0,
                          "strategy %zu, %zu classes: row %zu, class %zu is %g", t, n, row, k % n, value);
            }
            free_run(&p, &out);
        }
    }
}

/* The largest number that an unsigned type holds, which has the bits of -1, in vectors of rows and row by row: out of range, or
 * ignored where ignore_index is that number. The last class of 65,536 is a u16 too. */
Test(variants, unsigned_targets_are_compared_at_full_width)
{
    /* where few programs are compiled, those of the command line */
#define UNSIGNED(type, most)                                                                          \
    {                                                                                                 \
        type, "outputs=" ONE_PASS_NAMES ";all:outputs=" TRAINING_NAMES ";batch=70;classes=21;seed=3;" \
              "fill=bad-targets+ignored;target_type=" type ";ignore_index=" most "|-1|-100|7"         \
    }
    const size_t places[] = { EACH_ROWS, EACH_LANES };
    for (size_t i = 0; i < COUNT(places); i++) {
        const clxent_tuning tuning = tuning_of(places[i]);
        force(&tuning);
        RUN_LINES(UNSIGNED("u16", "65535"));
        if (places[i] == EACH_ROWS)
            RUN_LINES({ "last class",
                        "outputs=" ONE_PASS_NAMES ";all:outputs=" TRAINING_NAMES
                        ";batch=37;classes=65536;small:classes=21;target_type=u16;ignore_index=7" });
        if (places[i] == EACH_LANES || runs_all())
            RUN_LINES(UNSIGNED("u8", "255"), UNSIGNED("u32", "4294967295"));
    }
}

/* The padding of every row is 0, the last one's too, and nothing beside it is written: rows that begin at every element,
 * ignored and bad rows, in the logits' place, and in a plan for more rows. */
Test(variants, padding_of_the_gradient_is_zero_where_asked)
{
    const size_t classes[] = { 5, 100, 1100, SPLIT_CLASSES }, paddings[] = { 1, 3, 47 };
    const uint32_t flags[] = { CASE_IN_PLACE | CASE_OUT_OF_ORDER, CASE_LARGER_PLAN | CASE_SUBSETS,
                               CASE_ALIGNED };
    for (size_t t = 0; t < EACH_PLACE; t++) {
        const bool inner = t == EACH_INNER;
        const clxent_tuning tuning = tuning_of(t);
        for (size_t i = 0; i < COUNT(classes); i++) {
            if (classes[i] > 100 && (inner || t == EACH_LANES)) continue;
            if ((classes[i] == SPLIT_CLASSES) != (t == EACH_SPLIT)) continue;
            for (size_t k = 0; k < (small_run() ? i % 3 == 0 : COUNT(flags)); k++) {
                clxent_desc desc =
                    variant_desc(CLXENT_F32, small_run() ? 5 : 20, classes[i], inner ? 5 : 1, false, 0);
                desc.outputs =
                    inner && !runs_all() ? EVERY_OUTPUT : TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS;
                desc.gradient_row_stride = desc.row_stride = classes[i] * desc.inner + paddings[k];
                desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
                check_desc(&tuning, &desc, flags[k]);
            }
        }
    }
}

/* ---- The first launch ---------------------------------------------------------------------- */

/* What was launched, while anybody looks. */
typedef struct launches {
    size_t count;
    struct {
        char kernel[64];
        size_t global, group;
    } each[64];
} launches;
static launches *watching;

cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset,
                              const size_t *global, const size_t *group, cl_uint num, const cl_event *wait,
                              cl_event *event)
{
    __typeof__(&clEnqueueNDRangeKernel) real;
    *(void **)&real = dlsym(RTLD_NEXT, "clEnqueueNDRangeKernel");
    if (watching != NULL && watching->count < COUNT(watching->each)) {
        const size_t i = watching->count++;
        memset(&watching->each[i], 0, sizeof watching->each[i]);
        clGetKernelInfo(kernel, CL_KERNEL_FUNCTION_NAME, sizeof watching->each[i].kernel,
                        watching->each[i].kernel, NULL);
        watching->each[i].global = *global;
        watching->each[i].group = *group;
    }
    return real(queue, kernel, dims, offset, global, group, num, wait, event);
}

static bool has_launch(const launches *l, const launches *of, size_t i)
{
    for (size_t k = 0; k < l->count; k++)
        if (memcmp(&l->each[k], &of->each[i], sizeof l->each[k]) == 0) return true;
    return false;
}

static clxent_status (*make_cold)(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc);
static launches warm, runs;

static clxent_status make_warm(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    const clxent_status made = make_cold(out, ctx, desc);
    if (made != CLXENT_OK) return made;
    watching = &warm;
    const clxent_status status = clxent_plan_warm(*out, device.queue);
    watching = &runs;
    cr_assert(status == CLXENT_OK, "%s: %s", clxent_status_string(status), last_error());
    return CLXENT_OK;
}

/* All that a run launches was launched before it, kernel for kernel with the same sizes, and the run's results are right. */
static void check_warm(const char *name, const clxent_desc *desc)
{
    memset(&warm, 0, sizeof warm);
    memset(&runs, 0, sizeof runs);
    make_cold = plan_maker;
    plan_maker = make_warm;
    run_filled_case(name, desc, FILL_DESIGNED | FILL_IGNORED | FILL_BAD_TARGETS, 1, 0);
    plan_maker = make_cold;
    watching = NULL;
    cr_assert(runs.count > 0 && runs.count < COUNT(runs.each) && warm.count < COUNT(warm.each));
    for (size_t i = 0; i < runs.count; i++)
        cr_assert(has_launch(&warm, &runs, i), "%s: a run launches %s, %zu work-items in groups of %zu", name,
                  runs.each[i].kernel, runs.each[i].global, runs.each[i].group);
}

Test(variants, warming_launches_what_a_run_does)
{
    const size_t classes[] = { 1100, SPLIT_CLASSES, 1100, 5, 5 };
    for (size_t t = 0; t < EACH_PLACE; t++) {
        const clxent_tuning tuning = tuning_of(t);
        /* Oclgrind 21.10 takes a buffer for no larger than a former one at its address, when it keeps account of what is
         * written: of the workspace that split rows read back, only the first in a process is safe from that */
        if (!driver_takes(&tuning) || (t == EACH_SPLIT && small_run())) continue;
        force(&tuning);
        for (int general = 0; general < 2; general++) {
            clxent_desc desc =
                variant_desc(CLXENT_F32, small_run() ? 5 : 20, small_run() ? classes[t] % 1000 : classes[t],
                             t == EACH_INNER ? 5 : 1, general != 0, 0);
            if (general && (t == EACH_GROUPS || t == EACH_INNER) && !runs_all()) continue;
            if (!general && t != EACH_INNER) desc.outputs = TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS;
            if (t == EACH_INNER && !runs_all()) desc.outputs = EVERY_OUTPUT;
            desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
            check_warm("strategy", &desc);
        }
    }
    /* more than one partial sum: the folds too */
    const clxent_tuning rows = tuning_of(EACH_ROWS);
    force(&rows);
    clxent_desc many = variant_desc(CLXENT_F32, 1, 3, 1, false, 0);
    many.batch = clxent_span_unit(&many) + 5;
    many.outputs = TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS;
    if (!small_run()) check_warm("many rows", &many);
}

/* Upstreams make each row count, and smoothing takes a second pass. */
Test(variants, warming_launches_what_a_run_of_split_rows_does)
{
    const clxent_tuning tuning = tuning_of(EACH_SPLIT);
    clxent_desc desc = variant_desc(CLXENT_F32, 5, SPLIT_CLASSES, 1, true, 0);
    desc.has_grad_entropy = desc.has_grad_lse = 1;
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    cr_assert(strategy_of(&tuning, &desc) == CLXENT_STRATEGY_SPLIT);
    force(&tuning);
    check_warm("upstreams", &desc);
}

/* Where one group has all rows, no kernel but the main one is launched, whatever is asked for: with the bits of a batch in
 * parts, whose losses and targets kernels of their own reduce. */
Test(variants, few_rows_are_reduced_in_one_launch)
{
    const struct {
        size_t place, rows, classes, launches;
        bool general; /* with a second pass, and weights */
    } cases[] = {
        { EACH_LANES, 3, 5, 1, false },     { EACH_LANES, 40, 5, 1, true },
        { EACH_LANES, 1024, 5, 1, false },  { EACH_LANES, 1025, 5, 3, false },
        { EACH_INNER, 10, 5, 1, false },    { EACH_ROWS, 7, 1100, 1, true },
        { EACH_ROWS, 8, 1100, 2, false },   { EACH_ROWS, 64, 1100, 2, true },
        { EACH_ROWS, 65, 1100, 3, true },   { EACH_SPLIT, 1, 5000, 2, false },
        { EACH_SPLIT, 1, 5000, 3, true },   { EACH_SPLIT, 2, 5000, 3, false },
        { EACH_GROUPS, 1, 1100, 3, false },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const clxent_tuning tuning = tuning_of(cases[i].place);
        const bool few = cases[i].rows <= 10 && cases[i].classes <= 1100;
        if (!driver_takes(&tuning) || (small_run() && (!few || cases[i].place == EACH_SPLIT))) continue;
        clxent_desc desc = variant_desc(CLXENT_F32, cases[i].rows, cases[i].classes,
                                        cases[i].place == EACH_INNER ? 5 : 1, cases[i].general, 0);
        clxent_host_args out;
        problem p;

        if (!cases[i].general) desc.outputs = TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS;
        if (cases[i].place == EACH_INNER && !runs_all()) desc.outputs = EVERY_OUTPUT;
        make_problem(&p, &desc, FILL_DESIGNED | FILL_IGNORED | FILL_BAD_TARGETS | FILL_HIT, 3);
        memset(&runs, 0, sizeof runs);
        watching = &runs;
        run_with("few rows", &tuning, &p, 0, &out);
        watching = NULL;
        cr_assert_eq(runs.count, cases[i].launches, "case %zu: %zu launches, %s first", i, runs.count,
                     runs.each[0].kernel);
        free_outputs(&out);
        force(&tuning);
        run_case("few rows", &p, CASE_PARTS);
        free_problem(&p);
    }
}

Test(variants, warming_launches_what_a_run_of_a_building_block_does)
{
    static const char *const blocks[] = { "op=softmax-backward;outputs=gradient;batch=8;classes=5",
                                          "op=one-hot;outputs=one_hot+bad_targets;batch=8;classes=5",
                                          "op=probability-loss;outputs=losses;batch=8;classes=5",
                                          "op=probability-loss;outputs=loss;batch=8;classes=5",
                                          "op=softmax-gradient;outputs=gradient;batch=8;classes=5" };
    for (size_t i = 0; i < COUNT(blocks); i++) {
        const clxent_desc desc = desc_of(blocks[i]);
        check_warm(blocks[i], &desc);
    }
}

Test(variants, zero_padding_is_a_program_of_its_own_that_only_padded_plans_build)
{
    int counts[2];
    clxent_context *ctx = make_counting_context(counts);
    clxent_desc desc = make_desc(CLXENT_OUTPUT_GRADIENT, CLXENT_F32, 2, 1, 33);
    clxent_plan *plan;
    const struct {
        uint32_t padding;
        size_t stride;
        int programs, paddings;
    } steps[] = { { CLXENT_GRADIENT_PADDING_KEEP, 40, 1, 0 },
                  { CLXENT_GRADIENT_PADDING_ZERO, 0, 1, 0 },
                  { CLXENT_GRADIENT_PADDING_ZERO, 33, 1, 0 },
                  { CLXENT_GRADIENT_PADDING_ZERO, 40, 2, 1 },
                  { CLXENT_GRADIENT_PADDING_ZERO, 50, 2, 1 } };

    for (size_t i = 0; i < COUNT(steps); i++) {
        desc.gradient_padding = steps[i].padding;
        desc.gradient_row_stride = steps[i].stride;
        cr_assert(clxent_plan_create(&plan, ctx, &desc) == CLXENT_OK);
        cr_assert(counts[0] == steps[i].programs && counts[1] == steps[i].paddings, "step %zu: %d, %d", i,
                  counts[0], counts[1]);
        clxent_plan_destroy(plan);
    }
    clxent_context_destroy(ctx);
}

/* What a plan fixes is compiled in, values are not: on both sides of each boundary. */
Test(variants, plans_that_differ_in_values_share_a_program)
{
    const clxent_tuning tuning = strategy_for(CLXENT_F32, EACH_ROWS),
                        lanes = strategy_for(CLXENT_F32, EACH_LANES);
    clxent_desc desc = make_desc(TRAINING_OUTPUTS, CLXENT_F32, 3, 4, 33);
    int counts[2], built = 0;
    clxent_context *ctx = make_counting_context(counts);
    clxent_tuning both = tuning;

    both.lane_classes = 32;
    both.lane_group = 1;
    both.lane_vector = lanes.lane_vector;
    both.lane_cache = 1 << 14;
#define EXPECT(programs, what)                                                            \
    do {                                                                                  \
        clxent_plan *plan;                                                                \
        cr_assert(clxent_plan_create_tuned(&plan, ctx, &desc, &both) == CLXENT_OK, what); \
        clxent_plan_destroy(plan);                                                        \
        built += (programs);                                                              \
        cr_assert_eq(counts[0], built, what);                                             \
    } while (0)
    EXPECT(1, "the first");
    desc.classes = 50257;
    desc.row_stride = 50304;
    desc.batch = 100;
    desc.outputs |= CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_STATISTICS;
    desc.ignore_index = 5;
    desc.all_ignored = CLXENT_ALL_IGNORED_ZERO;
    desc.has_row_weights = 1;
    desc.shift = 1;
    desc.z_loss = 0.1;
    desc.reduction = CLXENT_REDUCTION_SUM;
    EXPECT(0, "values and what a row stores");
    desc.classes = 32;
    desc.row_stride = 0;
    EXPECT(1, "rows of few classes are lanes");
    desc.classes = 2;
    EXPECT(0, "fewer classes");
    desc.outputs |= CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_ARGMAX;
    EXPECT(0, "outputs that a row has one of");
    desc.outputs |= CLXENT_OUTPUT_SOFTMAX;
    EXPECT(1, "an output that every class has");
    desc.outputs ^= CLXENT_OUTPUT_SOFTMAX;
    EXPECT(0, "without it again");
    desc.outputs = ONE_PASS_OUTPUTS; /* as other tests have it */
    desc.label_smoothing = 0.1;
    EXPECT(1, "an option");
    desc.label_smoothing = 0.2;
    EXPECT(0, "another value of it");
    clxent_context_destroy(ctx);
}

/* Streaming stores need aligned vectors: results begin at every element of one, rows at all of them. */
Test(variants, streaming_stores_at_every_alignment)
{
    const uint32_t vectors[] = { 4, 16 };
    const uint32_t dtypes[] = { CLXENT_F32, CLXENT_BF16, CLXENT_F16, CLXENT_F64 };
    for (size_t d = 0; d < (small_run() ? 2 : volume(COUNT(dtypes), 3)); d++) {
        if (dtypes[d] == CLXENT_F64 && !device.has_f64) continue;
        for (size_t v = d == 0 && runs_all() ? 0 : 1; v < COUNT(vectors); v++) {
            const clxent_tuning tuning = ROWS(1, vectors[v], 64, 0, 1, 1);
            const clxent_tuning kept = ROWS(1, vectors[v], 64, 8192, 1, 1);
            /* with and without padding: all rows aligned, or each at the next element */
            check(&tuning, dtypes[d], 19, 64, false, CASE_ALIGNED);
            for (size_t classes = 1; classes < (small_run() ? 20 : 2 * vectors[v] + 4);
                 classes += small_run() ? 9 : 1) {
                check(&tuning, dtypes[d], small_run() ? 5 : 19, classes, false, 0);
                check(&kept, dtypes[d], small_run() ? 5 : 19, classes, false, CASE_ALIGNED);
            }
            check(&tuning, dtypes[d], 19, small_run() ? 37 : 1500, false, 0);
            check(&kept, dtypes[d], 19, small_run() ? 37 : 1500, false, 0);
            if (runs_all()) check(&tuning, dtypes[d], small_run() ? 5 : 19, 70, true, 0);
        }
    }
}

/* The reductions take a group too, with many rows: several partials and a fold. */
Test(variants, reductions_of_many_rows)
{
    const uint32_t groups[] = { 1, 16 };
    const size_t rows[] = { 1, 4095, 4096, 4097, 20000 };
    for (size_t i = 0; i < (small_run() ? COUNT(groups) : volume(COUNT(groups), 1)); i++) {
        const clxent_tuning tuning = ROWS(groups[i], 1, 4, 0, 4096, 0); /* as the first of this file */
        for (size_t k = 0; k < COUNT(rows); k++) {
            check(&tuning, CLXENT_F32, small_run() ? 1 + rows[k] / 1000 : rows[k], 3, false, 0);
        }
    }
}
