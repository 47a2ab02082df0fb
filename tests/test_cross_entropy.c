/* SPDX-License-Identifier: MIT
 *
 * test_cross_entropy.c - the kernels of the default strategy against the reference: every output, option, dtype
 * and layout, at the sizes where loops, vectors, blocks and the cache begin and end.
 *
 * run_case() compares; what stands here is which problems it gets. Other strategies: test_variants.c.
 */
#include "support.h"

#include <criterion/criterion.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

TestSuite(cross_entropy, .init = open_device, .fini = close_device);

enum {
    SUMS = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX |
           CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_BAD_TARGETS,
    GENERAL = EVERY_OUTPUT,
    /* without what only index targets have */
    OF_PROBABILITIES = GENERAL & ~(CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_BAD_TARGETS)
};

/* Each kind of finite and masked row of support.c twice, against all places of the target. */
enum { ALL_KINDS = 26 };

/* Beside GENERAL, all but the entropy. Where few programs are compiled the log-softmax stays GENERAL's, so that log sum_exp comes
 * from one pass here. */
static uint32_t plain(void) { return runs_all() ? EVERY_OUTPUT & ~CLXENT_OUTPUT_ENTROPY : ONE_PASS_OUTPUTS; }

/* Strides with padding, odd ones so that rows begin at every alignment. */
static void pad(clxent_desc *desc)
{
    const size_t slab = desc->classes * desc->inner;
    desc->row_stride = slab + 3;
    desc->gradient_row_stride = slab + 5;
    desc->probabilities_row_stride = slab + 1;
    desc->target_row_stride = slab + 7;
}

/* LOSS is one number and has no meaning under NONE. (A failure prints the whole desc: cases have short names.) */
static void reduce_by(clxent_desc *desc, uint32_t reduction)
{
    desc->reduction = reduction;
    if (reduction == CLXENT_REDUCTION_NONE) desc->outputs &= ~CLXENT_OUTPUT_LOSS;
}

/* Around the vector, the unrolled loop, the block of 1,024, the cache of 8 KiB, and several blocks. */
static const size_t sizes[] = { 1,    2,    3,    15,   16,   17,   31,   63,   64,   65,   255,  1023,
                                1024, 1025, 1087, 2032, 2033, 2047, 2048, 2049, 3071, 4097, 50257 };
static const size_t small_sizes[] = { 1, 2, 17, 65, 1025 };

static void check_sizes(uint32_t outputs, uint32_t dtype, uint32_t gradient_dtype, size_t largest)
{
    const size_t *all = small_run() ? small_sizes : sizes;
    const size_t count = small_run() ? COUNT(small_sizes) : COUNT(sizes);

    for (size_t i = 0; i < count && all[i] <= largest; i++) {
        const size_t rows = small_run() ? 5 : all[i] > 5000 ? 13 : ALL_KINDS;
        clxent_desc desc = make_desc(outputs, dtype, rows, 1, all[i]);
        desc.gradient_dtype = gradient_dtype;
        if (outputs == SUMS && runs_all()) desc.target_type = CLXENT_TARGET_U8;
        if (outputs == plain() && runs_all()) desc.target_type = CLXENT_TARGET_I32;
        reduce_by(&desc, (uint32_t)(i % 3));
        if (i % 2 == 1) pad(&desc);
        run_filled_case("sizes", &desc,
                        FILL_DESIGNED | FILL_MASKED | FILL_IGNORED |
                            (i % 2 == 0 ? FILL_HIT : FILL_GRAD_OUTPUT),
                        100 + i, i % 4 == 3 ? CASE_LARGER_PLAN : 0);
    }
}

/* Everything but the entropy; sums alone, whose log sum_exp no log-softmax asks for its last digits; everything. */
Test(cross_entropy, every_size_matches_the_reference)
{
    const uint32_t outputs[] = { plain(), SUMS, GENERAL };
    for (size_t i = 0; i < COUNT(outputs); i++) check_sizes(outputs[i], CLXENT_F32, 0, SIZE_MAX);
}

Test(cross_entropy, rows_with_specials_and_bad_targets_match_the_reference)
{
    const size_t classes[] = { 1, 2, 5, 16, 33, 1025, 2500 };
    for (size_t i = 0; i < (small_run() ? 5 : COUNT(classes)); i++) {
        for (uint32_t policy = CLXENT_BAD_TARGET_REPORT; policy <= CLXENT_BAD_TARGET_IGNORE; policy++) {
            const uint32_t outputs = i % 2 == 0 ? plain() : GENERAL;
            clxent_desc desc = make_desc(outputs, CLXENT_F32, small_run() ? 9 : 37, 1, classes[i]);
            desc.bad_target = policy;
            if (policy != CLXENT_BAD_TARGET_REPORT) desc.outputs &= ~CLXENT_OUTPUT_BAD_TARGETS;
            reduce_by(&desc, policy);
            desc.ignore_index = 0;
            pad(&desc);
            run_filled_case("specials", &desc, FILL_DESIGNED | FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS,
                            7 + i, 0);
        }
    }
}

/* ---- The exponential's range --------------------------------------------------------------- */

/* Logits of rows whose maximum is beyond `edge`, where the exponential subtracts it first, or reaches there by
 * way of one that is not: a wrong scale between two blocks costs more than any bound. */
static double far_logit(size_t kind, size_t j, size_t classes, double edge)
{
    const double part = (double)j / (double)classes, noise = 0.25 * (double)(j * 2654435761u % 16);

    switch (kind) {
    case 0: return edge * 3 + noise;
    case 1: return -edge * 3 - noise;
    case 2: return j == classes / 3 ? edge * 5 : noise; /* all others vanish */
    case 3: return j % 7 == 2 ? -edge * 5 : noise;      /* far below a near maximum */
    case 4: return edge - 8 + 16 * part;                /* near, then just beyond */
    case 5: return edge + 8 - 16 * part;
    case 6: return -edge - 8 + 16 * part; /* beyond, then near */
    case 7: return -edge + 8 - 16 * part;
    case 8: return j < classes / 2 ? -0x1p30 : 1 + noise; /* one jump over everything */
    case 9: return j < classes / 2 ? 1 + noise : 0x1p30;
    case 10: return part < 0.8 ? -INFINITY : -edge * 2 + noise;
    case 11: return j % 3 == 0 ? FLT_MAX : 0x1.fffffcp127; /* differences overflow elsewhere */
    case 12: return j % 3 == 0 ? -FLT_MAX : FLT_MAX;
    case 13: return -FLT_MAX;
    case 14: return edge;
    default: return -edge + (j == 1 ? 1 : 0);
    }
}

enum { FAR_KINDS = 16 };

/* The edge is MAX_NEAR of math.cl. */
static void check_far(uint32_t outputs, uint32_t dtype, size_t classes)
{
    const clxent_desc desc = make_desc(outputs, dtype, FAR_KINDS, 1, classes);
    const double edge = dtype == CLXENT_F64 ? 0x1p50 : 0x1p16;
    problem p;

    make_problem(&p, &desc, FILL_PLAIN, 50 + classes);
    for (size_t k = 0; k < FAR_KINDS * classes; k++)
        set_logit(&p, k, far_logit(k / classes, k % classes, classes, edge));
    run_case("far", &p, 0);
    free_problem(&p);
}

Test(cross_entropy, logits_on_both_sides_of_where_rows_are_far_match_the_reference)
{
    const size_t classes[] = { 2, 17, 1025, 2500, 5000 };

    for (size_t i = 0; i < (small_run() ? 2 : COUNT(classes)); i++) {
        for (int general = 0; general < 2; general++)
            check_far(general ? GENERAL : plain(), CLXENT_F32, classes[i]);
        if (device.has_f64 && (runs_all() || i % 2 == 1)) check_far(GENERAL, CLXENT_F64, classes[i]);
    }
}

static void check_few_ulps(const problem *p, const clxent_output *out, size_t row, double ulps, double want)
{
    const double got = real_of(p, out, row);
    cr_assert(fabs(got - want) <= ldexp(ulps, -24) * want, "%zu classes, row %zu: %.9g, not %.9g",
              p->desc.classes, row, got, want);
}

/* Of one logit L above n - 1 zeros, t = (n - 1) exp(-L): H = log(1 + t) + L t / (1 + t). The bound is for the sum with
 * log sum_exp = 1; here that is taken from the sum without the maximum, in lanes, lanes along the classes and rows. */
Test(cross_entropy, the_entropy_of_a_confident_row_keeps_its_digits)
{
    enum { ROWS = 20 };
    const size_t classes[] = { 19, 100, 1027 };
    for (size_t i = 0; i < COUNT(classes); i++) {
        const size_t n = classes[i];
        const uint32_t outputs = runs_all() ? CLXENT_OUTPUT_ENTROPY : n == 100 ? ALONG_OUTPUTS : GENERAL;
        const clxent_desc desc = make_desc(outputs, CLXENT_F32, ROWS, 1, n);
        clxent_host_args out;
        problem p;
        make_problem(&p, &desc, FILL_PLAIN, 1);
        for (size_t k = 0; k < ROWS * n; k++) set_logit(&p, k, k % n == 7 ? 12 + (double)(k / n) : 0);
        run_with("entropy", NULL, &p, 0, &out);
        for (size_t row = 0; row < ROWS; row++) {
            const double top = 12 + (double)row, t = (double)(n - 1) * exp(-top);
            check_few_ulps(&p, &out.entropy, row, 32, log1p(t) + top * t / (1 + t));
        }
        free_run(&p, &out);
    }
}

/* Of soft targets, without what only index targets have; the program of test_numerics.c. */
enum { SOFT_OUTPUTS = TRAINING_OUTPUTS & ~CLXENT_OUTPUT_BAD_TARGETS };

/* The square of lse is most of what this loss may lose: soft targets take it of the second pass, as they take log sum_exp. */
Test(cross_entropy, the_z_loss_of_confident_soft_targets_keeps_its_digits)
{
    enum { ROWS = 8 };
    const size_t classes[] = { 19, 1027 };
    for (size_t i = 0; i < COUNT(classes); i++) {
        const size_t n = classes[i];
        clxent_desc desc =
            make_desc(runs_all() ? CLXENT_OUTPUT_LOSSES : SOFT_OUTPUTS, CLXENT_F32, ROWS, 1, n);
        clxent_host_args out;
        problem p;
        desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
        desc.z_loss = 8192;
        make_problem(&p, &desc, FILL_PLAIN, 1);
        for (size_t k = 0; k < ROWS * n; k++) {
            set_logit(&p, k, k % n == 7 ? 0 : -14 - (double)(k / n));
            put_element((void *)p.args.targets.data, CLXENT_F32, k, k % n == 7);
        }
        run_with("z-loss", NULL, &p, 0, &out);
        for (size_t row = 0; row < ROWS; row++) {
            const double lse = log1p((double)(n - 1) * exp(-14 - (double)row));
            check_few_ulps(&p, &out.losses, row, 64, lse + desc.z_loss * lse * lse);
        }
        free_run(&p, &out);
    }
}

/* Equal terms all round the same way: what they lose together must not be lost. With the smaller class counts the
 * logits of a tile stay on chip; with the larger they are read twice, and sums move as the maximum rises. */
Test(cross_entropy, sums_over_very_many_classes_lose_nothing)
{
    const size_t classes[] = { 5003, 20001, 300007 }, inners[] = { 1, runs_all() ? 4 : 16 };
    for (size_t i = 0; i < (small_run() ? 0 : COUNT(classes)); i++) {
        for (size_t k = 0; k < COUNT(inners); k++) {
            uint32_t outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ENTROPY;
            if (!runs_all())
                outputs = ONE_PASS_OUTPUTS; /* the truth table's, and without options that of lanes */
            /* split rows are those of a million classes, lanes on chip those of other tests */
            if (!runs_all() && (k == 0 ? i == 2 : i != 1)) continue;
            clxent_desc desc =
                make_desc(outputs, CLXENT_F32, k == 0 ? 12 : 12 / inners[k] + 1, inners[k], classes[i]);
            desc.inner = inners[k];
            if (k == 0 || runs_all()) desc.label_smoothing = 1;
            run_filled_case("many classes", &desc, FILL_DESIGNED | FILL_HIT, 90 + i, 0);
        }
    }
}

/* ---- Arguments of a run -------------------------------------------------------------------- */

Test(cross_entropy, reductions_grad_output_and_denominator_combine)
{
    const uint32_t fills[] = { 0, FILL_GRAD_OUTPUT, FILL_DENOMINATOR, FILL_GRAD_OUTPUT | FILL_DENOMINATOR,
                               FILL_ZERO_DENOMINATOR };
    for (uint32_t reduction = CLXENT_REDUCTION_MEAN; reduction <= CLXENT_REDUCTION_NONE; reduction++) {
        for (size_t i = 0; i < COUNT(fills); i++) {
            for (int general = 0; general < 2; general++) {
                clxent_desc desc =
                    make_desc(general ? GENERAL : plain(), CLXENT_F32, 4, 7, small_run() ? 5 : 67);
                reduce_by(&desc, reduction);
                run_filled_case("reductions", &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED | fills[i],
                                70 + i, 0);
            }
        }
    }
}

/* On tiles, rows, rows of several pieces and an inner class axis; from saved statistics, in place, and of rows that do not
 * count, or are not finite. */
Test(cross_entropy, gradients_of_entropy_and_lse_match_the_reference)
{
    const struct {
        size_t classes, inner;
        uint32_t flags;
    } cases[] = {
        { 3, 1, CASE_PARTS },       { 33, 1, CASE_IN_PLACE },   { 300, 1, CASE_SUBSETS },
        { 1024, 1, CASE_ALIGNED },  { 4099, 1, CASE_IN_PLACE }, { 70001, 1, CASE_PARTS },
        { 7, 6, CASE_HOST_ARRAYS }, { 200, 12, CASE_IN_PLACE }, { 1, 1, CASE_PARTS },
    };
    const uint32_t outputs = TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS | CLXENT_OUTPUT_ENTROPY |
                             CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_COUNTED;
    const uint32_t dtypes[] = { CLXENT_F32, CLXENT_BF16, CLXENT_F64, CLXENT_F16 };

    for (size_t d = 0; d < (full_run() ? COUNT(dtypes) : small_run() ? 2 : 1); d++) {
        for (int general = 0; general < 2; general++) {
            for (size_t i = 0; i < COUNT(cases); i++) {
                if (small_run() && (cases[i].classes > 300 || (d > 0 && general == 0))) continue;
                /* else a program more of each strategy, and one for lanes of 4 */
                const bool strided = cases[i].inner > 1;
                if (!runs_all() && general != (strided ? 1 : (int)i % 2)) continue;
                clxent_desc desc = make_desc(outputs, dtypes[d], small_run() ? 1 : 4, 12, cases[i].classes);
                desc.inner = strided && !runs_all() ? 12 : cases[i].inner;
                desc.has_grad_entropy = 1;
                desc.has_grad_lse = general || !runs_all();
                desc.has_row_weights = 1;
                if (general) {
                    desc.softcap = SHARED_SOFTCAP;
                    desc.label_smoothing = 0.1;
                    desc.has_class_weights = 1;
                    desc.logit_scale = 0.5;
                }
                run_filled_case("grad_entropy", &desc,
                                FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS,
                                40 + i, cases[i].flags);
            }
        }
    }
}

/* The exponential of the second class goes from normal numbers to nothing, and with it what it adds to the entropy's sum; row
 * weights and outputs are those of the test above, whose program this is. */
Test(cross_entropy, gradients_of_entropy_keep_their_bound_where_terms_underflow)
{
    enum { ROWS = 80 };
    clxent_desc desc = make_desc(TRAINING_OUTPUTS | CLXENT_OUTPUT_STATISTICS | CLXENT_OUTPUT_ENTROPY |
                                     CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_COUNTED,
                                 CLXENT_F32, ROWS, 1, 2);
    problem p;

    desc.has_grad_entropy = desc.has_row_weights = 1;
    desc.has_grad_lse = !runs_all();
    make_problem(&p, &desc, FILL_IGNORED, 3);
    for (size_t row = 0; row < ROWS; row++) {
        set_logit(&p, 2 * row, 0);
        set_logit(&p, 2 * row + 1, -84 - (double)row / 4);
    }
    run_case("grad_entropy", &p, 0);
    free_problem(&p);
}

/* Programs of other tests, and every cut of a batch: rows of their own, sequences under a shift, slabs; outputs of the last
 * part alone; weights, soft targets, accumulation. */
Test(cross_entropy, a_batch_in_parts_has_the_bits_of_one_run)
{
    for (uint32_t reduction = CLXENT_REDUCTION_MEAN; reduction <= CLXENT_REDUCTION_NONE; reduction++) {
        for (int k = 0; k < 7; k++) {
            clxent_desc desc =
                make_desc(k == 3 ? OF_PROBABILITIES : GENERAL, CLXENT_F32, 6, 5, small_run() ? 5 : 67);
            uint32_t fill = FILL_DESIGNED | FILL_MASKED | FILL_IGNORED | FILL_GRAD_OUTPUT;
            reduce_by(&desc, reduction);
            if (k == 1) desc.shift = 2;
            if (k == 2) desc.inner = 10;
            if (k == 3) desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
            if (k == 4) fill |= FILL_DENOMINATOR | FILL_BAD_TARGETS;
            if (k == 5) desc.shift = 1, desc.inner = 2;
            if (k == 6) desc.outputs &= ~CLXENT_OUTPUT_LOSSES; /* row losses are in the workspace then */
            desc.has_row_weights = k != 0;
            for (uint64_t seed = small_run() ? 3 : 0; seed < 4; seed++)
                run_filled_case("parts", &desc, fill, 30 + seed,
                                CASE_PARTS | (seed == 3 ? CASE_OUT_OF_ORDER : 0));
        }
    }
    /* more rows than one partial sum has, of which none is a row's own cut */
    clxent_desc many = make_desc(GENERAL, CLXENT_F32, small_run() ? 300 : 9001, 1, small_run() ? 2 : 5);
    many.has_row_weights = 1;
    run_filled_case("many rows in parts", &many, FILL_DESIGNED | FILL_IGNORED, 7, CASE_PARTS);
}

/* Two classes alike that hold nearly everything: neither is all but the whole of the sum. */
Test(cross_entropy, two_equal_maxima_share_the_row)
{
    enum { ROWS = 200 };
    const size_t classes[] = { 2, 20, 300, 5000 };
    for (size_t i = 0; i < (small_run() ? 2 : COUNT(classes)); i++) {
        const size_t n = classes[i], rows = small_run() ? 20 : ROWS;
        const clxent_desc desc = make_desc(GENERAL, CLXENT_F32, rows, 1, n);
        problem p;
        make_problem(&p, &desc, FILL_PLAIN, 80 + i);
        for (size_t row = 0; row < rows; row++) {
            const size_t target = (size_t)target_of(&p, row);
            const size_t first = row % 2 == 0 ? target : (target + 1) % n;
            for (size_t j = 0; j < n; j++) set_logit(&p, row * n + j, -40);
            set_logit(&p, row * n + first, (double)(173 + row) / 4096);
            set_logit(&p, row * n + (first + n / 2) % n, (double)(173 + row) / 4096);
        }
        run_case("two maxima", &p, 0);
        free_problem(&p);
    }
}

Test(cross_entropy, ignore_index_may_be_a_class_or_out_of_range_or_off)
{
    const struct {
        int64_t index;
        uint32_t use, type;
    } cases[] = {
        { 3, 1, CLXENT_TARGET_I32 },
        { 0, 1, CLXENT_TARGET_U8 },
        { 255, 1, CLXENT_TARGET_U8 },
        { -1, 1, CLXENT_TARGET_I64 },
        { 33, 1, CLXENT_TARGET_I64 },
        { 5, 0, CLXENT_TARGET_I32 },
        /* at full width this is not class 5 */
        { ((int64_t)1 << 32) + 5, 1, CLXENT_TARGET_I64 },
        { ((int64_t)1 << 32) + 5, 1, CLXENT_TARGET_I32 },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        /* of other types the sums, which compile faster */
        const bool wide = runs_all() || cases[i].type == CLXENT_TARGET_I64;
        clxent_desc desc = make_desc(wide ? plain() : SUMS, CLXENT_F32, 5, 6, 33);
        problem p;
        desc.ignore_index = cases[i].index;
        desc.use_ignore_index = cases[i].use;
        desc.target_type = cases[i].type;
        desc.has_row_weights = 1;
        make_problem(&p, &desc, FILL_IGNORED, 80 + i);
        set_target(&p, 7, 5);
        run_case("ignore_index", &p, 0);
        free_problem(&p);
    }
}

/* Also all but one, which is bad and does not count either: no policy hides its NaN. */
Test(cross_entropy, all_rows_ignored_give_the_policy_and_zero_gradients)
{
    const uint32_t fills[] = { 0, FILL_DENOMINATOR, FILL_BAD_TARGETS, FILL_BAD_TARGETS | FILL_DENOMINATOR };
    for (uint32_t policy = CLXENT_ALL_IGNORED_NAN; policy <= CLXENT_ALL_IGNORED_ZERO; policy++) {
        for (size_t i = 0; i < COUNT(fills); i++) {
            clxent_desc desc = make_desc(plain(), CLXENT_F32, 6, 1, 20);
            desc.all_ignored = policy;
            run_filled_case("all ignored", &desc, FILL_SPECIAL | FILL_ALL_IGNORED | fills[i], 4, 0);
        }
    }
}

Test(cross_entropy, a_softcap_of_f64_may_be_less_than_any_f32)
{
    const size_t classes[] = { 300, 7 };
    for (size_t i = 0; device.has_f64 && i < (small_run() ? COUNT(classes) : volume(COUNT(classes), 1));
         i++) {
        clxent_desc desc = make_desc(GENERAL, CLXENT_F64, 5, 1, classes[i]);
        problem p;
        desc.softcap = 1e-40;
        if (!runs_all()) desc.logit_scale = 0.5; /* as in test_numerics.c */
        make_problem(&p, &desc, FILL_PLAIN, 6);
        for (size_t j = 0; j < 5 * classes[i]; j++) set_logit(&p, j, 1e-40 * get_logit(&p, j));
        run_case("softcap 1e-40", &p, 0);
        free_problem(&p);
    }
}

Test(cross_entropy, padding_of_gradients_of_every_dtype_is_zero_where_asked)
{
    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++) {
        clxent_desc desc = make_desc(GENERAL, dtype, 3, 5, small_run() ? 33 : 1000);
        if (dtype == CLXENT_F64 && !device.has_f64) continue;
        pad(&desc);
        desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
        run_filled_case("zero padding", &desc, FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS, 9, 0);
    }
}

Test(cross_entropy, results_may_stand_in_the_place_of_the_logits)
{
    const size_t classes[] = { 1, 17, 2048, 3001 };
    const uint32_t outputs[] = { ONE_PASS_OUTPUTS, CLXENT_OUTPUT_GRADIENT, SUMS | CLXENT_OUTPUT_SOFTMAX,
                                 SUMS | CLXENT_OUTPUT_LOG_SOFTMAX };
    for (size_t i = 0; i < (small_run() ? 2 : COUNT(classes)); i++) {
        for (size_t k = 0; k < COUNT(outputs); k++) {
            /* lanes, rows; test_variants.c has the gradient in place, too */
            if (!runs_all() && (k % 2 == i / 2 || k == 1)) continue;
            for (uint32_t entropy = 0; entropy <= CLXENT_OUTPUT_ENTROPY; entropy += CLXENT_OUTPUT_ENTROPY) {
                if (entropy != 0 && !runs_all()) continue;
                clxent_desc desc =
                    make_desc(outputs[k] | entropy, CLXENT_F32, small_run() ? 5 : 18, 1, classes[i]);
                desc.row_stride = desc.gradient_row_stride = desc.probabilities_row_stride = classes[i] + i;
                run_filled_case("in place", &desc, FILL_DESIGNED | FILL_SPECIAL | FILL_IGNORED, 90 + i,
                                CASE_IN_PLACE);
            }
        }
    }
}

Test(cross_entropy, each_output_alone_has_the_bits_it_has_beside_others)
{
    const size_t classes[] = { 9, 1030, 2100 };
    for (size_t i = 0; i < (small_run() ? 1 : COUNT(classes)); i++) {
        for (int general = 0; general < 2; general++) {
            clxent_desc desc = make_desc(general ? GENERAL : plain(), CLXENT_F32, 19, 1, classes[i]);
            if (general) {
                desc.label_smoothing = 0.1;
                desc.has_class_weights = 1;
                if (!runs_all()) desc.softcap = SHARED_SOFTCAP;
            }
            pad(&desc);
            run_filled_case("alone", &desc,
                            FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS,
                            5 + i, CASE_SUBSETS | CASE_LARGER_PLAN | CASE_OUT_OF_ORDER);
        }
    }
    /* vectors along the classes, where the outputs allow them */
    const size_t few_classes[] = { 100, 301 };
    for (size_t i = 0; i < COUNT(few_classes); i++) {
        const clxent_desc desc = make_desc(ALONG_OUTPUTS | CLXENT_OUTPUT_STATISTICS, CLXENT_F32,
                                           small_run() ? 20 : 1003, 1, few_classes[i]);
        run_filled_case("alone, along the classes", &desc,
                        FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS, 15 + i,
                        CASE_SUBSETS | CASE_OUT_OF_ORDER);
    }
}

/* ---- Options ------------------------------------------------------------------------------- */

enum {
    OPTION_CLASS_WEIGHTS = 1 << 0,
    OPTION_ROW_WEIGHTS = 1 << 1,
    OPTION_SMOOTHING = 1 << 2,
    OPTION_Z_LOSS = 1 << 3,
    OPTION_SCALE = 1 << 4,
    OPTION_SOFTCAP = 1 << 5,
    OPTION_SHIFT = 1 << 6,
    OPTION_ACCUMULATE = 1 << 7,
    OPTION_PROBABILITIES = 1 << 8,
    OPTION_PROBABILITIES_LOGITS = 1 << 9,
    OPTION_INNER = 1 << 10,
    OPTIONS = 1 << 11
};

static void set_options(clxent_desc *desc, unsigned options)
{
    if (options & OPTION_CLASS_WEIGHTS) desc->has_class_weights = 1;
    if (options & OPTION_ROW_WEIGHTS) desc->has_row_weights = 1;
    if (options & OPTION_SMOOTHING) desc->label_smoothing = 0.1;
    if (options & OPTION_Z_LOSS) desc->z_loss = 1e-3;
    if (options & OPTION_SCALE) desc->logit_scale = -0.75;
    if (options & OPTION_SOFTCAP) desc->softcap = 15;
    if (options & OPTION_SHIFT) desc->shift = 2;
    if (options & OPTION_ACCUMULATE) desc->gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    if (options & OPTION_INNER) desc->inner = 3;
    if (options & (OPTION_PROBABILITIES | OPTION_PROBABILITIES_LOGITS)) {
        desc->outputs &= OF_PROBABILITIES;
        desc->target_type = options & OPTION_PROBABILITIES ? CLXENT_TARGET_PROBABILITIES_F32
                                                           : CLXENT_TARGET_PROBABILITIES_LOGITS;
    }
    pad(desc);
}

static void run_options(uint32_t outputs, uint32_t dtype, uint32_t gradient_dtype, unsigned options,
                        size_t classes, uint64_t seed)
{
    clxent_desc desc = make_desc(outputs, dtype, 6, 4, classes);
    desc.gradient_dtype = gradient_dtype;
    set_options(&desc, options);
    run_filled_case("options", &desc,
                    FILL_DESIGNED | FILL_MASKED | FILL_IGNORED | (seed % 2 == 0 ? FILL_GRAD_OUTPUT : 0), seed,
                    0);
}

static const size_t option_classes[] = { 3, 18, 1026, 2085 };

/* Options that are constants of a program, together where they touch the same sums. The others are values of a run. */
static const unsigned option_sets[] = {
    OPTION_SCALE | OPTION_SOFTCAP,
    OPTION_CLASS_WEIGHTS | OPTION_SMOOTHING | OPTION_SCALE | OPTION_ACCUMULATE,
    OPTION_PROBABILITIES | OPTION_CLASS_WEIGHTS | OPTION_SMOOTHING | OPTION_SOFTCAP,
};

Test(cross_entropy, options_that_share_a_program_match_the_reference)
{
    const unsigned others[] = { 0, OPTION_ROW_WEIGHTS, OPTION_Z_LOSS, OPTION_SHIFT,
                                OPTION_ROW_WEIGHTS | OPTION_Z_LOSS | OPTION_SHIFT };
    for (size_t s = 0; s < COUNT(option_sets); s++) {
        for (size_t i = small_run() ? 1 : 0; i < (small_run() ? 2 : COUNT(option_classes)); i++) {
            /* the second in rows, the third in lanes: programs of their own */
            if (!runs_all() && s > 0 && (s == 1) == (option_classes[i] < 1000)) continue;
            for (size_t k = 0; k < COUNT(others); k++)
                run_options(GENERAL, CLXENT_F32, 0, option_sets[s] | others[k], option_classes[i], k + i);
        }
    }
}

Test(cross_entropy, each_option_alone_matches_the_reference)
{
    for (unsigned option = 1; option < OPTIONS; option <<= 1) {
        const bool is_value = (option & (OPTION_ROW_WEIGHTS | OPTION_Z_LOSS | OPTION_SHIFT)) != 0;
        for (size_t i = small_run() ? 1 : 0; i < (small_run() ? 2 : COUNT(option_classes)); i++) {
            if (!is_value && !runs_all()) continue;
            run_options(GENERAL, CLXENT_F32, 0, option, option_classes[i], i);
            run_options(plain(), CLXENT_F32, 0, option, option_classes[i], i + 1);
        }
    }
}

Test(cross_entropy, options_serve_gradients_in_place_and_accumulated)
{
    const size_t classes[] = { 18, 2085 }; /* kept between two passes, and not */
    const bool all = runs_all();
    for (unsigned option = 1; option < OPTIONS; option <<= 1) {
        if (!all && option != OPTION_SMOOTHING) continue;
        for (size_t i = 0; i < (small_run() ? 1 : COUNT(classes)); i++) {
            const uint32_t outputs = all ? GENERAL & ~CLXENT_OUTPUT_LOG_SOFTMAX : ONE_PASS_OUTPUTS;
            clxent_desc desc = make_desc(outputs, CLXENT_F32, 6, 4, classes[i]);
            set_options(&desc, option);
            desc.gradient_row_stride = desc.row_stride;
            if (option != OPTION_ACCUMULATE)
                run_filled_case("in place", &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 3 + i,
                                CASE_IN_PLACE);
            if (all) run_options(GENERAL, CLXENT_F32, 0, option | OPTION_ACCUMULATE, classes[i], 4 + i);
        }
    }
}

/* The rows that shift takes the targets of have none, and behind the last row's there is no memory. */
Test(cross_entropy, shifted_probabilities_end_with_the_last_row)
{
    const size_t classes[] = { 9, 1100, 70 };
    for (size_t i = 0; i < (small_run() ? COUNT(classes) : volume(COUNT(classes), 2)); i++) {
        const uint32_t all = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_SOFTMAX;
        const uint32_t outputs = runs_all() ? all : SOFT_OUTPUTS;
        clxent_desc desc = make_desc(outputs, CLXENT_F32, 2, 3, classes[i]);
        desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
        desc.shift = 1;
        run_filled_case("shifted probabilities", &desc, FILL_PLAIN, 60 + i, 0);
    }
}

Test(cross_entropy, extreme_values_of_options_match_the_reference)
{
    const struct {
        double smoothing, z_loss, scale, softcap;
    } cases[] = {
        { 1, 0, 1, 0 },     { 0, 100, 1, 0 },   { 0, 0, 0, 0 },    { 0, 0, 1e-3, 0 }, { 0, 0, 30, 0 },
        { 0, 0, -4, 0 },    { 0, 0, 1, 0.01 },  { 0, 0, 1, 1e6 },  { 0, 0, 50, 3 },   { 0.5, 0.1, -2, 5 },
        { 0, 0, 1e-30, 2 }, { 0, 0, 2, 1e-30 }, { 1e-7, 0, 1, 0 },
    };
    /* lanes, rows */
    const size_t classes[] = { small_run() ? 5 : 30, small_run() ? 70 : 1100 };
    for (size_t k = 0; k < 2 * COUNT(cases); k++) {
        const size_t i = k / 2;
        /* else only what shares the programs of other tests */
        const bool shared = cases[i].smoothing == 0 && (cases[i].scale == 1) == (cases[i].softcap == 0);
        if (!shared && !runs_all()) continue;
        clxent_desc desc = make_desc(GENERAL, CLXENT_F32, ALL_KINDS, 1, classes[k % 2]);
        desc.label_smoothing = cases[i].smoothing;
        desc.z_loss = cases[i].z_loss;
        desc.logit_scale = cases[i].scale;
        desc.softcap = cases[i].softcap;
        run_filled_case("extremes", &desc, FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_HIT, 30 + i, 0);
    }
}

Test(cross_entropy, an_inner_class_axis_and_images_match_the_reference)
{
    const size_t inners[] = { 2, 7, 33, 16 }, classes[] = { 1, 5, 1025, 21 };
    /* lanes of 1, of 4 and of 16: the first two have few inner positions; bf16 of the truth table has those of 1 */
    for (size_t i = runs_all() ? 0 : 1; i < (small_run() ? 2 : volume(COUNT(inners), 3)); i++) {
        for (int general = 0; general < 2; general++) {
            if (!runs_all() && general != (int)i % 2) continue;
            /* N,C,H,W with W = seq */
            clxent_desc desc =
                make_desc(general ? GENERAL : plain(), CLXENT_F32, 2 * inners[i], 1, classes[i]);
            desc.inner = inners[i];
            if (i % 2 == 0) {
                desc.batch = 2;
                desc.seq = inners[i];
                desc.shift = 1;
            }
            if (i > 0) pad(&desc);
            run_filled_case("inner", &desc,
                            FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS,
                            40 + i, i == 2 ? CASE_LARGER_PLAN : 0);
        }
    }
}

/* ---- Storage types ------------------------------------------------------------------------- */

static void check_dtype(uint32_t dtype, uint32_t gradient_dtype)
{
    const size_t classes[] = { 5, 34, 1026, 2085 };
    const bool all = runs_all();

    if (dtype == CLXENT_F64 && !device.has_f64) cr_skip("the device has no f64");
    check_sizes(all ? plain() : GENERAL, dtype, gradient_dtype, small_run() ? 65 : 2049);
    for (size_t i = 0; i < (small_run() ? 1 : COUNT(classes)); i++) {
        clxent_desc desc = make_desc(GENERAL, dtype, small_run() ? 7 : 37, 1, classes[i]);
        desc.gradient_dtype = gradient_dtype;
        desc.z_loss = 1e-3;
        run_filled_case("specials", &desc,
                        FILL_DESIGNED | FILL_MASKED | FILL_SPECIAL | FILL_IGNORED | FILL_BAD_TARGETS, i,
                        CASE_SUBSETS);
    }
    for (unsigned option = 1; option < OPTION_INNER; option <<= 1) {
        if (!all && (option != OPTION_PROBABILITIES_LOGITS || dtype != CLXENT_BF16)) continue;
        run_options(GENERAL, dtype, gradient_dtype, option, small_run() ? 5 : 47, 1);
    }
    if (!all && dtype != CLXENT_BF16) return;
    run_options(GENERAL, dtype, gradient_dtype,
                OPTION_CLASS_WEIGHTS | OPTION_ROW_WEIGHTS | OPTION_SMOOTHING | OPTION_Z_LOSS | OPTION_SCALE |
                    OPTION_SOFTCAP | OPTION_ACCUMULATE,
                small_run() ? 18 : 1030, 2);
}

Test(cross_entropy, f16_logits_match_the_reference) { check_dtype(CLXENT_F16, 0); }

Test(cross_entropy, bf16_logits_match_the_reference) { check_dtype(CLXENT_BF16, 0); }

/* Rounding to nearest carries the payload of this NaN into the sign, and makes it -0. */
Test(cross_entropy, a_bf16_gradient_of_a_nan_is_nan)
{
    enum { ROWS = 3 };
    const uint32_t payload = 0x7fffffff;
    clxent_desc desc = make_desc(GENERAL, CLXENT_BF16, ROWS, 1, small_run() ? 70 : 1100);
    problem p;
    make_problem(&p, &desc, FILL_GRAD_OUTPUT, 5);
    memcpy((void *)p.args.grad_output.data, &payload, sizeof payload);
    run_case("NaN", &p, 0);
    free_problem(&p);
}

Test(cross_entropy, bf16_logits_with_an_f32_gradient_match_the_reference)
{
    if (full_run()) check_dtype(CLXENT_BF16, CLXENT_F32);
    /* in the program that a gradient rounded once has */
    run_options(GENERAL, CLXENT_BF16, CLXENT_F32, 0, small_run() ? 35 : 50, 5);
}

Test(cross_entropy, f64_logits_match_the_reference) { check_dtype(CLXENT_F64, 0); }

/* One result's values must not take the place of what the other is made of. */
Test(cross_entropy, softmax_and_gradient_alone_beside_each_other)
{
    const size_t inners[] = { 1, 16, 2, 75 }, classes[] = { 2, 21, 300 };
    for (size_t i = 0; i < (small_run() ? COUNT(inners) : volume(COUNT(inners), 2)); i++) {
        for (size_t k = 0; k < (small_run() ? 2 : COUNT(classes)); k++) {
            clxent_desc desc = make_desc(CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_GRADIENT, CLXENT_F32, 3,
                                         inners[i], classes[k]);
            desc.inner = inners[i];
            run_filled_case("two", &desc, FILL_DESIGNED | FILL_IGNORED, 70 + i, 0);
        }
    }
}

Test(cross_entropy, an_inner_class_axis_serves_every_dtype)
{
    for (uint32_t dtype = CLXENT_F16; dtype <= CLXENT_F64; dtype++) {
        if (dtype == CLXENT_F64 && !device.has_f64) continue;
        if (!runs_all() && dtype != CLXENT_F16) continue;
        if (runs_all()) {
            run_options(GENERAL, dtype, 0, OPTION_INNER | OPTION_SMOOTHING, 21, 3);
            run_options(GENERAL, dtype, 0, OPTION_INNER | OPTION_PROBABILITIES_LOGITS, 21, 4);
        }
        run_options(GENERAL, dtype, 0, OPTION_INNER | OPTION_SMOOTHING | OPTION_PROBABILITIES_LOGITS, 21, 5);
    }
}

/* The gradient in its narrow type is the f32 one rounded once, which two roundings of the same numbers would
 * miss at ties, and arithmetic in the narrow type everywhere. */
static void check_rounded_once(uint32_t dtype, uint32_t narrow)
{
    const size_t classes[] = { 17, 1026, 3001 };

    for (size_t i = 0; i < (small_run() ? 1 : volume(COUNT(classes), 1)); i++) {
        for (int general = runs_all() ? 0 : 1; general < 2; general++) {
            clxent_desc desc =
                make_desc(general ? GENERAL : CLXENT_OUTPUT_GRADIENT, dtype, 14, 1, classes[i]);
            clxent_host_args out[2];
            if (general && runs_all()) desc.label_smoothing = 0.1;
            for (int k = 0; k < 2; k++) {
                problem p;
                desc.gradient_dtype = k == 0 ? CLXENT_F32 : narrow;
                make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED | FILL_GRAD_OUTPUT, 9);
                run_with("rounded", NULL, &p, 0, &out[k]);
                free_problem(&p);
            }
            for (size_t k = 0; k < 14 * classes[i]; k++) {
                const double exact = get_element(out[0].gradient.data, CLXENT_F32, k);
                const uint16_t want =
                    narrow == CLXENT_F16 ? clxent_f16_from_double(exact) : clxent_bf16_from_double(exact);
                const uint16_t got = ((const uint16_t *)out[1].gradient.data)[k];
                cr_assert(got == want, "%s: element %zu: 0x%04x, %.9g rounds to 0x%04x", "rounded", k, got,
                          exact, want);
            }
            free_outputs(&out[0]);
            free_outputs(&out[1]);
        }
    }
}

Test(cross_entropy, a_16_bit_gradient_is_the_f32_gradient_rounded_once)
{
    const uint32_t pairs[][2] = { { CLXENT_F32, CLXENT_BF16 },
                                  { CLXENT_BF16, CLXENT_BF16 },
                                  { CLXENT_F16, CLXENT_F16 },
                                  { CLXENT_F32, CLXENT_F16 } };
    for (size_t i = 0; i < volume(COUNT(pairs), 2); i++) check_rounded_once(pairs[i][0], pairs[i][1]);
}

/* Where few programs are compiled, lanes of the pair above and rows of f64. */
Test(cross_entropy, gradients_of_other_types_than_the_logits_match_the_reference)
{
    const uint32_t pairs[][2] = { { CLXENT_F32, CLXENT_BF16 }, { CLXENT_F64, CLXENT_F32 },
                                  { CLXENT_F32, CLXENT_F16 },  { CLXENT_F16, CLXENT_F32 },
                                  { CLXENT_F16, CLXENT_BF16 }, { CLXENT_BF16, CLXENT_F16 } };
    for (size_t i = 0; i < volume(COUNT(pairs), 2); i++) {
        if (pairs[i][0] == CLXENT_F64 && !device.has_f64) continue;
        if (i == 0) run_options(GENERAL, pairs[i][0], pairs[i][1], 0, small_run() ? 5 : 50, 6);
        if (i == 0 && !runs_all()) continue;
        run_options(plain(), pairs[i][0], pairs[i][1], 0, small_run() ? 35 : 1030, 5);
        if (!runs_all()) continue;
        run_options(plain(), pairs[i][0], pairs[i][1], OPTION_ACCUMULATE | OPTION_ROW_WEIGHTS,
                    small_run() ? 5 : 50, 6);
    }
}

/* ---- Large problems ------------------------------------------------------------------------ */

Test(cross_entropy, a_million_classes_match_the_reference)
{
    clxent_desc desc = make_desc(ONE_PASS_OUTPUTS, CLXENT_F32, 3, 1, small_run() ? 5003 : (1 << 20) + 3);
    desc.reduction = CLXENT_REDUCTION_SUM;
    run_filled_case("a million classes", &desc, FILL_PLAIN, 1, 0);
    desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_ENTROPY;
    desc.label_smoothing = 0.1;
    desc.has_class_weights = 1;
    if (!runs_all()) {
        desc.outputs = EVERY_OUTPUT;
        desc.softcap = SHARED_SOFTCAP;
        desc.batch = 2;
    }
    run_filled_case("a million classes, smoothing", &desc, FILL_DESIGNED, 2, 0);
}

Test(cross_entropy, the_loss_of_ten_million_rows_keeps_its_digits)
{
    const size_t rows = small_run() ? 4200 : 10000019;
    const clxent_desc desc =
        make_desc(CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_CORRECT, CLXENT_F32, rows, 1, 2);
    float *logits = take_memory(2 * rows * sizeof *logits), loss,
          *losses = take_memory(rows * sizeof *losses);
    int64_t *targets = take_memory(rows * sizeof *targets);
    uint64_t correct = 0, hits = 0;
    clxent_host_args args = CLXENT_HOST_ARGS_INIT;
    random_state random = { 8 };
    double sum = 0;

    for (size_t row = 0; row < rows; row++) {
        const uint32_t bits = random_u32(&random);
        /* losses of all sizes: a running f32 sum would end up off in the fourth digit */
        logits[2 * row] = (float)(bits >> 8) * 0x1p-22f;
        logits[2 * row + 1] = 0.25f;
        targets[row] = bits & 1u;
        hits += targets[row] == (logits[2 * row + 1] > logits[2 * row] ? 1 : 0);
    }
    args.logits = (clxent_input){ logits, 2 * rows * sizeof *logits };
    args.targets = (clxent_input){ targets, rows * sizeof *targets };
    args.losses = (clxent_output){ losses, rows * sizeof *losses };
    args.loss = (clxent_output){ &loss, sizeof loss };
    args.correct = (clxent_output){ &correct, sizeof correct };
    cr_assert(clxent_run_host(device.ctx, &desc, &args) == CLXENT_OK, "%s", last_error());
    for (size_t row = 0; row < rows; row++) sum += losses[row];
    const double want = sum / (double)rows;
    cr_assert(fabs(loss - want) <= 0x1p-23 * want, "got %.9g, want %.17g", loss, want);
    cr_assert(correct == hits, "got %llu, want %llu", (unsigned long long)correct, (unsigned long long)hits);
    free(logits);
    free(losses);
    free(targets);
}

/* Another plan may take a row by another strategy, with sums at a scale of its own. */
Test(cross_entropy, statistics_of_one_plan_serve_another)
{
    const uint32_t saved_with[] = { CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS, CLXENT_OUTPUT_LSE };
    const size_t classes[] = { 40, 300, 768 };

    for (size_t c = 0; c < COUNT(classes); c++) {
        for (size_t i = 0; i < (small_run() ? 2 : volume(2, 1)); i++) {
            const clxent_desc desc =
                make_desc(CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS | saved_with[i], CLXENT_F32,
                          small_run() ? 5 : 50, 1, classes[c]);
            problem p;
            make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 5);
            run_from_statistics_of(desc.classes == 40    ? "lanes"
                                   : desc.classes == 300 ? "along"
                                                         : "rows",
                                   &p, saved_with[i]);
            free_problem(&p);
        }
    }
    /* of every row then, and of three numbers */
    clxent_desc desc = make_desc(CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS | CLXENT_OUTPUT_LOSSES,
                                 CLXENT_F32, small_run() ? 5 : 50, 1, 300);
    problem p;
    desc.has_grad_entropy = desc.has_grad_lse = 1;
    make_problem(&p, &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 5);
    run_from_statistics_of("with grad_entropy", &p, CLXENT_OUTPUT_LOSSES);
    free_problem(&p);
}
