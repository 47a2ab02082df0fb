/* SPDX-License-Identifier: MIT
 *
 * test_variants.c - every strategy that some device may choose, forced on this one: work-group sizes, vector
 * widths, block lengths, the cache, rows a group, streaming stores. (Linked with the static library for
 * clxent_plan_create_tuned().) Each judged by the reference, as in test_cross_entropy.c.
 */
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <stdio.h>

TestSuite(variants, .init = open_device, .fini = close_device);

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum {
    PLAIN = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX |
            CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOG_SOFTMAX |
            CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS | CLXENT_OUTPUT_BAD_TARGETS,
    GENERAL = PLAIN | CLXENT_OUTPUT_ENTROPY
};

static clxent_tuning forced;

static clxent_status make_forced(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    return clxent_plan_create_tuned(out, ctx, desc, &forced);
}

static void check(const clxent_tuning *tuning, uint32_t dtype, size_t rows, size_t classes, bool general,
                  uint32_t flags)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    char name[160];

    desc.outputs = general ? GENERAL : PLAIN;
    desc.dtype = dtype;
    desc.batch = rows;
    desc.seq = 1;
    desc.classes = classes;
    if (general) {
        desc.label_smoothing = 0.1;
        desc.has_class_weights = 1;
    }
    if ((flags & CASE_IN_PLACE) != 0) {
        desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS;
    } else if ((flags & CASE_ALIGNED) == 0) {
        desc.row_stride = classes + 3;
        desc.gradient_row_stride = classes + 5;
        desc.probabilities_row_stride = classes + 1;
    }
    (void)snprintf(name, sizeof name,
                   "group %u vector %u block %u cache %u elements %u stream %u, dtype %u, %zu classes%s",
                   (unsigned)tuning->group, (unsigned)tuning->vector, (unsigned)tuning->block,
                   (unsigned)tuning->cache, (unsigned)tuning->elements, (unsigned)tuning->stream,
                   (unsigned)dtype, classes, general ? ", general" : "");
    forced = *tuning;
    plan_maker = make_forced;
    run_filled_case(name, &desc,
                    FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS |
                        FILL_UPSTREAM,
                    classes, flags);
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
        ROWS(1, 1, 4, 8192, 4096, 0),    ROWS(1, 4, 64, 0, 1, 0),    ROWS(1, 8, 4, 32768, 4096, 0),
        ROWS(1, 8, 64, 8192, 4096, 0),   ROWS(1, 16, 4, 8192, 1, 0), ROWS(1, 16, 64, 0, 4096, 0),
        ROWS(1, 16, 64, 65536, 4096, 0),
    };
    for (size_t i = 0; i < COUNT(tunings); i++) {
        check_sizes(&tunings[i], CLXENT_F32, false);
        if (i % 3 == 0) check_sizes(&tunings[i], CLXENT_F32, true);
    }
}

Test(variants, work_groups_of_every_size)
{
    const clxent_tuning tunings[] = {
        ROWS(2, 1, 4, 0, 1, 0),          ROWS(4, 4, 4, 8192, 1024, 0), ROWS(64, 1, 4, 0, 1024, 0),
        ROWS(2, 16, 4, 8192, 4096, 0),   ROWS(16, 8, 64, 0, 1, 0),     ROWS(64, 4, 4, 0, 4096, 0),
        ROWS(256, 4, 4, 16384, 1024, 0),
    };
    if (!compiles_groups()) cr_skip("the driver takes minutes to compile barriers under conditions");
    for (size_t i = 0; i < (small_run() ? 3 : COUNT(tunings)); i++) {
        check_sizes(&tunings[i], CLXENT_F32, false);
        check_sizes(&tunings[i], CLXENT_F32, true);
        /* what one work-item writes over the logits, another must have read */
        check(&tunings[i], CLXENT_F32, 9, 70, false, CASE_IN_PLACE);
        check(&tunings[i], CLXENT_F32, 9, 70, true, CASE_IN_PLACE);
    }
}

Test(variants, work_groups_serve_every_dtype)
{
    const clxent_tuning tuning = ROWS(8, 4, 4, 8192, 1024, 0);
    if (!compiles_groups()) cr_skip("the driver takes minutes to compile barriers under conditions");
    for (uint32_t dtype = CLXENT_F16; dtype <= CLXENT_F64; dtype++) {
        if (dtype == CLXENT_F64 && !device.has_f64) continue;
        check_sizes(&tuning, dtype, dtype != CLXENT_F16);
    }
}

/* Streaming stores need aligned vectors: results begin at every element of one, rows at all of them. */
Test(variants, streaming_stores_at_every_alignment)
{
    const uint32_t vectors[] = { 4, 16 };
    const uint32_t dtypes[] = { CLXENT_F32, CLXENT_BF16, CLXENT_F16, CLXENT_F64 };
    for (size_t d = 0; d < (small_run() ? 2 : COUNT(dtypes)); d++) {
        if (dtypes[d] == CLXENT_F64 && !device.has_f64) continue;
        for (size_t v = d == 0 ? 0 : 1; v < COUNT(vectors); v++) {
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
            check(&tuning, dtypes[d], small_run() ? 5 : 19, 70, true, 0);
        }
    }
}

/* What does not decide bits by the contract of tuning.def does not: the way a row's results are stored, and how
 * many rows a group takes. */
Test(variants, streaming_and_rows_a_group_change_no_bit)
{
    const clxent_tuning tunings[] = {
        ROWS(1, 16, 64, 8192, 1, 0),
        ROWS(1, 16, 64, 8192, 4096, 0),
        ROWS(1, 16, 64, 8192, 1, 1),
    };
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_host_args out[COUNT(tunings)];
    problem p;

    desc.outputs = PLAIN;
    desc.batch = 23;
    desc.seq = 1;
    desc.classes = 203;
    make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED, 4);
    for (size_t i = 0; i < COUNT(tunings); i++) {
        clxent_plan *plan;
        cr_assert(clxent_plan_create_tuned(&plan, device.ctx, &desc, &tunings[i]) == CLXENT_OK, "%s",
                  last_error());
        run_once("stream", plan, &p, desc.outputs, 0, &out[i]);
        clxent_plan_destroy(plan);
    }
    for (size_t i = 1; i < COUNT(tunings); i++) {
        for (size_t k = 0; k < 23 * 203; k++) {
            cr_assert(get_element(out[0].gradient.data, CLXENT_F32, k) ==
                          get_element(out[i].gradient.data, CLXENT_F32, k),
                      "gradient %zu of strategy %zu", k, i);
            cr_assert(get_element(out[0].softmax.data, CLXENT_F32, k) ==
                          get_element(out[i].softmax.data, CLXENT_F32, k),
                      "softmax %zu of strategy %zu", k, i);
        }
        free_outputs(&out[i]);
    }
    free_outputs(&out[0]);
    free_problem(&p);
}

/* The reductions take a group too, with many rows: several partials and a fold. */
Test(variants, reductions_of_many_rows)
{
    const uint32_t groups[] = { 1, 16 };
    const size_t rows[] = { 1, 4095, 4096, 4097, 20000 };
    for (size_t i = 0; i < COUNT(groups); i++) {
        const clxent_tuning tuning = ROWS(groups[i], 4, 4, 0, 4096, 0);
        if (groups[i] > 1 && !compiles_groups()) continue;
        for (size_t k = 0; k < COUNT(rows); k++) {
            check(&tuning, CLXENT_F32, small_run() ? 1 + rows[k] / 1000 : rows[k], 3, false, 0);
        }
    }
}
