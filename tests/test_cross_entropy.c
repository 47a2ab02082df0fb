/* SPDX-License-Identifier: MIT
 *
 * test_cross_entropy.c - the kernels of the default strategy against the reference: every output, option, dtype
 * and layout, at the sizes where loops, vectors, blocks and the cache begin and end.
 *
 * run_lines() and run_case() compare; what stands here is which problems they get. Other strategies: test_variants.c.
 */
#include "support.h"

#include <criterion/criterion.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

TestSuite(cross_entropy, .init = open_device, .fini = close_device);

/* Where few programs are compiled, ONE_PASS_NAMES stand for all but the entropy: without the log-softmax log sum_exp comes from
 * one pass. */
#define BUT_ENTROPY "outputs=" ONE_PASS_NAMES ";all:outputs=" ONE_PASS_NAMES "+log_softmax"
#define EVERY "outputs=" EVERY_NAME
#define SUM_NAMES "losses+loss+lse+argmax+correct+bad_targets"
#define ORDINARY ";fill=designed+masked+ignored"
#define HOSTILE ";fill=designed+masked+special+ignored+bad-targets"

/* Around the vector, the unrolled loop, the block of 1,024, the cache of 8 KiB, and several blocks; each kind of finite and
 * masked row of problem.c twice, against all places of the target. */
#define SIZES                                                                                              \
    ";batch=26;pad=|odd;reduction=mean|sum|none;checks=|||larger-plan;seed=100"                            \
    ";fill=designed+masked+ignored+hit|designed+masked+ignored+grad-output"                                \
    ";classes=1|2|3|15|16|17|31|63|64|65|255|1023|1024|1025|1087|2032|2033|2047|2048|2049|3071|4097|50257" \
    ";small:batch=5;small:classes=1|2|17|65|1025"

/* Everything but the entropy; sums alone, whose log sum_exp no log-softmax asks for its last digits; everything. */
Test(cross_entropy, every_size_matches_the_reference)
{
    RUN_LINES({ "sizes", BUT_ENTROPY ";all:target_type=i32" SIZES },
              { "sizes, sums", "outputs=" SUM_NAMES ";all:target_type=u8" SIZES },
              { "sizes, everything", EVERY SIZES });
}

Test(cross_entropy, rows_with_specials_and_bad_targets_match_the_reference)
{
#define SPECIALS                                                                        \
    ";batch=37;ignore_index=0;pad=odd;fill=designed+special+ignored+bad-targets;seed=7" \
    ";bad_target=report|nan|ignore;reduction=mean|sum|none;small:batch=9"
    RUN_LINES({ "specials",
                BUT_ENTROPY SPECIALS ";classes=1|5|33|2500;cases=12;small:classes=1|5|33;small:cases=9" },
              { "specials", EVERY SPECIALS ";classes=2|16;cases=6" },
              { "specials", EVERY SPECIALS ";classes=1025;small:batch=3" });
}

/* Whole tiles whose rows have no exception, of which lanes on CPUs take code of their own: with each output that it writes, and with
 * each that it does not. */
Test(cross_entropy, tiles_without_exceptions_match_the_reference)
{
#define ONE_OUTPUT \
    "outputs=losses+lse|argmax+correct|statistics+gradient|losses+entropy|bad_targets+counted+loss"
    RUN_LINES(
        { "along, one output", ONE_OUTPUT ";batch=40;classes=100|300;cases=10;fill=steady" },
        { "transposed, one output", ONE_OUTPUT ";batch=40;classes=2|10;cases=10;fill=steady" },
        { "neighbours, one output", ONE_OUTPUT ";batch=2;seq=40;inner=40;classes=21;cases=5;fill=steady" },
        { "sums",
          "outputs=losses+gradient;gradient_mode=accumulate;batch=40;classes=2|10|100;cases=3;fill=steady" },
        { "along the classes", "outputs=losses+softmax;batch=40;classes=64|100|256;cases=3;fill=steady" },
        { "transposed", "outputs=losses+gradient;batch=40;classes=2|10|37;cases=3;fill=steady" },
        { "neighbours", "outputs=losses+softmax;batch=2;seq=40;inner=40;classes=21;fill=steady" });
}

/* ---- The exponential's range --------------------------------------------------------------- */

static uint32_t plain(void) { return runs_all() ? EVERY_OUTPUT & ~CLXENT_OUTPUT_ENTROPY : ONE_PASS_OUTPUTS; }

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
            check_far(general ? EVERY_OUTPUT : plain(), CLXENT_F32, classes[i]);
        if (device.has_f64 && (runs_all() || i % 2 == 1)) check_far(EVERY_OUTPUT, CLXENT_F64, classes[i]);
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
        const uint32_t outputs = runs_all() ? CLXENT_OUTPUT_ENTROPY : n == 100 ? ALONG_OUTPUTS : EVERY_OUTPUT;
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
    RUN_LINES({ "many classes", "outputs=" ONE_PASS_NAMES ";batch=12;classes=5003|20001;label_smoothing=1;"
                                "fill=designed+hit;seed=90" },
              { "many classes, strided",
                "outputs=" ONE_PASS_NAMES ";seq=16;inner=16;classes=20001;fill=designed+hit;seed=91" },
              { "very many classes",
                "only=all;outputs=losses+lse+entropy;batch=4;seq=4;inner=1|4;label_smoothing=1;"
                "classes=5003|20001|300007;cases=6;fill=designed+hit;seed=92" });
}

/* ---- Arguments of a run -------------------------------------------------------------------- */

Test(cross_entropy, reductions_grad_output_and_denominator_combine)
{
#define REDUCTIONS                                                                                      \
    ";batch=4;seq=7;classes=67;small:classes=5;reduction=mean|sum|none;cases=15;seed=70;fill=designed+" \
    "masked+ignored"                                                                                    \
    "|designed+masked+ignored+grad-output|designed+masked+ignored+denominator"                          \
    "|designed+masked+ignored+grad-output+denominator|designed+masked+ignored+zero-denominator"
    RUN_LINES({ "reductions", BUT_ENTROPY REDUCTIONS }, { "reductions", EVERY REDUCTIONS });
}

/* On tiles, rows, rows of several pieces and an inner class axis; from saved statistics, in place, and of rows that do not
 * count, or are not finite. Where few programs are compiled, one more of each strategy, and one for lanes of 4. */
Test(cross_entropy, gradients_of_entropy_and_lse_match_the_reference)
{
#define UPSTREAMS                                                                                  \
    "outputs=" ALONG_NAMES "+statistics+counted;batch=4;seq=12;has_grad_entropy=1;has_grad_lse=1;" \
    "has_row_weights=1;seed=40;small:batch=1" HOSTILE
#define DENSE ";softcap=40;label_smoothing=0.1;has_class_weights=1;logit_scale=0.5"
#define EACH_PLACE                                                                                        \
    ";classes=3|33|300|1024|4099|70001|7|200|1;inner=1|1|1|1|1|1|6|12|1;dtype=f32|bf16|f64|f16;cases=36;" \
    "checks=parts|in-place|subsets|aligned|in-place|parts|host-arrays|in-place|parts;small:cases=9"
    RUN_LINES({ "upstreams", UPSTREAMS ";classes=3|300|4099|1;checks=parts|subsets|in-place|parts" },
              { "upstreams, dense", UPSTREAMS DENSE ";classes=33|1024|70001;checks=in-place|aligned|parts" },
              { "upstreams, strided", UPSTREAMS DENSE ";inner=12;classes=7|200;checks=host-arrays|in-place" },
              { "upstreams, every place", "only=all;" UPSTREAMS EACH_PLACE ";has_grad_lse=0" },
              { "upstreams, dense, every place", "only=all;" UPSTREAMS DENSE EACH_PLACE });
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
#define PARTS                                                                                           \
    EVERY ";batch=6;seq=5;classes=67;reduction=mean|sum|none;fill=designed+masked+ignored+grad-output;" \
          "checks=parts|parts|parts|parts+out-of-order;cases=12;seed=30;small:classes=5;small:cases=3;" \
          "small:checks=parts+out-of-order;has_row_weights=1"
    RUN_LINES(
        { "parts", PARTS ";has_row_weights=0" }, { "parts, shift", PARTS ";shift=2" },
        { "parts, inner", PARTS ";inner=10" }, { "parts, inner, shift", PARTS ";shift=1;inner=2" },
        { "parts, soft targets", PARTS ";target_type=probabilities-f32" },
        { "parts, denominator", PARTS ";fill=designed+masked+ignored+grad-output+denominator+bad-targets" },
        /* row losses are in the workspace then */
        { "parts, no losses", PARTS ";outputs=loss+lse+softmax+log_softmax+gradient+argmax+correct+entropy+"
                                    "statistics+bad_targets+computed_denominator+counted" },
        /* more rows than one partial sum has, of which none is a row's own cut */
        { "many rows in parts", EVERY ";batch=9001;classes=5;has_row_weights=1;fill=designed+ignored;seed=7;"
                                      "checks=parts;small:batch=300;small:classes=2" });
}

/* Two classes alike that hold nearly everything: neither is all but the whole of the sum. */
Test(cross_entropy, two_equal_maxima_share_the_row)
{
    enum { ROWS = 200 };
    const size_t classes[] = { 2, 20, 300, 5000 };
    for (size_t i = 0; i < (small_run() ? 2 : COUNT(classes)); i++) {
        const size_t n = classes[i], rows = small_run() ? 20 : ROWS;
        const clxent_desc desc = make_desc(EVERY_OUTPUT, CLXENT_F32, rows, 1, n);
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

/* At full width 2^32 + 5 is not class 5. Types beside i64 have the sums, which compile faster. */
Test(cross_entropy, ignore_index_may_be_a_class_or_out_of_range_or_off)
{
#define IGNORE ";batch=5;seq=6;classes=33;has_row_weights=1;fill=ignored;seed=80"
    RUN_LINES({ "ignore_index", BUT_ENTROPY ";ignore_index=-1|33|4294967301;cases=9" IGNORE },
              { "ignore_index", "outputs=" SUM_NAMES
                                ";target_type=i32|u8|u8|i32;ignore_index=3|0|255|4294967301;cases=8" IGNORE },
              { "no ignore_index",
                "outputs=" SUM_NAMES ";target_type=i32;ignore_index=5;use_ignore_index=0" IGNORE });
}

/* Also all but one, which is bad and does not count either: no policy hides its NaN. */
Test(cross_entropy, all_rows_ignored_give_the_policy_and_zero_gradients)
{
#define ALL_IGNORED                                                                                   \
    BUT_ENTROPY ";batch=6;classes=20;seed=4;fill=special+all-ignored|special+all-ignored+denominator" \
                "|special+all-ignored+bad-targets|special+all-ignored+bad-targets+denominator"
    RUN_LINES({ "all ignored", ALL_IGNORED }, { "all ignored, zero", ALL_IGNORED ";all_ignored=zero" });
}

Test(cross_entropy, a_softcap_of_f64_may_be_less_than_any_f32)
{
    const size_t classes[] = { 300, 7 };
    for (size_t i = 0; device.has_f64 && i < (small_run() ? COUNT(classes) : volume(COUNT(classes), 1));
         i++) {
        clxent_desc desc = make_desc(EVERY_OUTPUT, CLXENT_F64, 5, 1, classes[i]);
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
    RUN_LINES({ "zero padding",
                EVERY ";dtype=f32|f16|bf16|f64;batch=3;seq=5;classes=1000;pad=odd;gradient_padding=zero;"
                      "fill=special+ignored+bad-targets;seed=9;small:classes=33" });
}

/* Lanes, rows; test_variants.c has the gradient in place, too. */
Test(cross_entropy, results_may_stand_in_the_place_of_the_logits)
{
#define IN_PLACE ";batch=18;pad=|same;checks=in-place;fill=designed+special+ignored;seed=90"
    RUN_LINES({ "in place, lanes", "outputs=" SUM_NAMES "+log_softmax;classes=1|17" IN_PLACE },
              { "in place, rows", "outputs=" ONE_PASS_NAMES "|" SUM_NAMES
                                  "+softmax;classes=2048|2048|3001|3001;pad=||same|same" IN_PLACE },
              { "in place, every result",
                "only=all;classes=1|17|2048|3001;cases=20;outputs=gradient|" SUM_NAMES
                "+softmax|gradient+entropy|" SUM_NAMES "+log_softmax+entropy|" ONE_PASS_NAMES
                "+entropy" IN_PLACE ";small:batch=5" });
}

Test(cross_entropy, each_output_alone_has_the_bits_it_has_beside_others)
{
#define ALONE                                                                                             \
    ";batch=19;classes=9|1030|2100;pad=odd;checks=subsets+larger-plan+out-of-order;seed=5;small:classes=" \
    "9" HOSTILE
    RUN_LINES({ "alone", BUT_ENTROPY ALONE },
              { "alone, dense", EVERY ALONE ";label_smoothing=0.1;has_class_weights=1;softcap=40" },
              /* vectors along the classes, where the outputs allow them */
              { "alone, along", "outputs=" ALONG_NAMES "+statistics;batch=1003;classes=100|301;seed=15;"
                                "checks=subsets+out-of-order;small:batch=20" HOSTILE });
}

/* ---- Options ------------------------------------------------------------------------------- */

#define ROWS_OF_OPTIONS \
    ";batch=6;seq=4;pad=odd;fill=designed+masked+ignored+grad-output|designed+masked+ignored;seed=0"

/* Options that are constants of a program, together where they touch the same sums, with those that are values of a run. Where
 * few programs are compiled, the second in rows, the third in lanes. */
Test(cross_entropy, options_that_share_a_program_match_the_reference)
{
#define SHARED(few)                                                                                       \
    EVERY ROWS_OF_OPTIONS ";has_row_weights=0|1|0|0|1;z_loss=0|0|0.001|0|0.001;shift=0|0|0|2|2;cases=10;" \
                          "classes=" few                                                                  \
                          ";all:cases=20;all:classes=3|18|1026|2085;small:cases=5;small:classes=18"
    RUN_LINES(
        { "scale, softcap", SHARED("3|18|1026|2085") ";cases=20;small:cases=5;logit_scale=-0.75;softcap=15" },
        { "class weights, smoothing, scale, accumulated",
          SHARED("1026|2085") ";has_class_weights=1;label_smoothing=0.1;logit_scale=-0.75;gradient_mode="
                              "accumulate" },
        { "probabilities, class weights, smoothing, softcap",
          SHARED(
              "3|18") ";target_type=probabilities-f32;has_class_weights=1;label_smoothing=0.1;softcap=15" });
}

/* Values of a run; then each option that takes a program of its own. */
#define EACH_VALUE                                                                                          \
    ";has_row_weights=1|0|0;z_loss=0|0.001|0;shift=0|0|2;classes=3|18|1026|2085;cases=12;small:classes=18;" \
    "small:cases=3"
#define EACH_OPTION                                                                                   \
    ";has_class_weights=1|0|0|0|0|0|0;label_smoothing=0|0.1|0|0|0|0|0;logit_scale=1|1|-0.75|1|1|1|1;" \
    "softcap=0|0|0|15|0|0|0;inner=1|1|1|1|3|1|1;"                                                     \
    "target_type=i64|i64|i64|i64|i64|probabilities-f32|probabilities"
#define EACH_CLASSES ";classes=3|18|1026|2085;cases=28;small:classes=18;small:cases=7"

Test(cross_entropy, each_option_alone_matches_the_reference)
{
    RUN_LINES({ "a value", EVERY ROWS_OF_OPTIONS EACH_VALUE },
              { "a value", BUT_ENTROPY ROWS_OF_OPTIONS ";seed=1" EACH_VALUE },
              { "an option", "only=all;" EVERY ROWS_OF_OPTIONS EACH_OPTION EACH_CLASSES },
              { "an option", "only=all;" BUT_ENTROPY ROWS_OF_OPTIONS ";seed=1" EACH_OPTION EACH_CLASSES },
              { "accumulated",
                "only=all;" EVERY ROWS_OF_OPTIONS ";gradient_mode=accumulate" EACH_OPTION EACH_CLASSES });
}

/* Kept between two passes, and not. */
Test(cross_entropy, options_serve_gradients_in_place)
{
#define OPTIONS_IN_PLACE ";batch=6;seq=4;pad=same;checks=in-place;seed=3" ORDINARY
    RUN_LINES(
        { "in place", "outputs=" ONE_PASS_NAMES ";label_smoothing=0.1;classes=18|2085" OPTIONS_IN_PLACE },
        { "an option in place", "only=all;" EVERY OPTIONS_IN_PLACE EACH_OPTION ";classes=18|2085;cases=14;"
                                "small:classes=18;small:cases=7" });
}

/* The rows that shift takes the targets of have none, and behind the last row's there is no memory. */
Test(cross_entropy, shifted_probabilities_end_with_the_last_row)
{
    RUN_LINES({ "shifted probabilities",
                "outputs=losses+loss+gradient;all:outputs=losses+lse+softmax;batch=2;seq=3;shift=1;"
                "target_type=probabilities-f32;classes=9|1100;all:classes=9|1100|70;seed=60" });
}

/* In lanes and in rows; first those that share the programs of other tests. */
Test(cross_entropy, extreme_values_of_options_match_the_reference)
{
#define EXTREMES EVERY ";batch=26;classes=30|1100;small:classes=5|70;seed=30;fill=designed+masked+special+hit"
    RUN_LINES({ "extremes", EXTREMES ";z_loss=100;logit_scale=1" },
              { "extremes", EXTREMES ";logit_scale=50|1e-30|2;softcap=3|2|1e-30;cases=6" },
              { "extremes",
                "only=all;" EXTREMES ";label_smoothing=1|0|0|0|0|0|0|0.5|1e-7;z_loss=0|0|0|0|0|0|0|0.1|0;"
                "logit_scale=1|0|0.001|30|-4|1|1|-2|1;softcap=0|0|0|0|0|0.01|1e6|5|0;cases=18" });
}

/* N,C,H,W with W = seq. Lanes of 4 and of 16: the first have few inner positions; bf16 of test_variants.c has those of 1. */
Test(cross_entropy, an_inner_class_axis_and_images_match_the_reference)
{
    RUN_LINES({ "inner", EVERY ";batch=14;inner=7;classes=5;pad=odd;seed=41" HOSTILE },
              { "images", BUT_ENTROPY
                ";batch=2;seq=33;inner=33;shift=1;classes=1025;pad=odd;checks=larger-plan;seed=42" HOSTILE },
              { "inner", "only=all;" EVERY "|" ONE_PASS_NAMES
                         "+log_softmax;batch=4;inner=2|4;classes=1|5|21;cases=6;seed=43" HOSTILE },
              { "images", "only=full;" BUT_ENTROPY
                          ";batch=2;seq=2|7|33|16;inner=2|7|33|16;shift=1|0;classes=1|5|1025;cases=12;"
                          "pad=|odd;seed=44" HOSTILE });
}

/* ---- Storage types ------------------------------------------------------------------------- */

/* Sizes, rows that are not finite, and options of logits of that dtype. */
#define OF_DTYPE(dtype)                                                                                      \
    { "sizes of " dtype, EVERY ";all:outputs=" ONE_PASS_NAMES "+log_softmax;dtype=" dtype SIZES              \
                               ";classes=1|2|3|15|16|17|31|63|64|65|255|1023|1024|1025|1087|2032|2033|2047|" \
                               "2048|2049;small:classes=1|2|17|65" },                                        \
        { "specials of " dtype,                                                                              \
          EVERY ";dtype=" dtype ";batch=37;classes=5|34|1026|2085;z_loss=0.001;checks=subsets;seed=0;"       \
                "small:batch=7;small:classes=5" HOSTILE },                                                   \
        { "options of " dtype, "only=all;" EVERY ";dtype=" dtype ROWS_OF_OPTIONS EACH_OPTION                 \
                               ";inner=1;classes=47;small:classes=5" },                                      \
        { "values of " dtype, "only=all;" EVERY ";dtype=" dtype ROWS_OF_OPTIONS EACH_VALUE                   \
                              ";classes=47;cases=3;small:classes=5" },                                       \
    {                                                                                                        \
        "all options of " dtype, "only=all;" EVERY ALL_OPTIONS ";dtype=" dtype                               \
    }
#define ALL_OPTIONS                                                                                         \
    ROWS_OF_OPTIONS ";classes=1030;small:classes=18;has_class_weights=1;has_row_weights=1;label_smoothing=" \
                    "0.1;z_loss=0.001;"                                                                     \
                    "logit_scale=-0.75;softcap=15;gradient_mode=accumulate;seed=2"

Test(cross_entropy, f16_logits_match_the_reference) { RUN_LINES(OF_DTYPE("f16")); }

Test(cross_entropy, bf16_logits_match_the_reference)
{
    RUN_LINES(OF_DTYPE("bf16"),
              { "soft targets of bf16",
                EVERY ROWS_OF_OPTIONS ";dtype=bf16;target_type=probabilities;classes=47;small:classes=5" },
              { "all options of bf16", EVERY ALL_OPTIONS ";dtype=bf16" });
}

Test(cross_entropy, f64_logits_match_the_reference) { RUN_LINES(OF_DTYPE("f64")); }

/* Rounding to nearest carries the payload of this NaN into the sign, and makes it -0. */
Test(cross_entropy, a_bf16_gradient_of_a_nan_is_nan)
{
    enum { ROWS = 3 };
    const uint32_t payload = 0x7fffffff;
    clxent_desc desc = make_desc(EVERY_OUTPUT, CLXENT_BF16, ROWS, 1, small_run() ? 70 : 1100);
    problem p;
    make_problem(&p, &desc, FILL_GRAD_OUTPUT, 5);
    memcpy((void *)p.args.grad_output.data, &payload, sizeof payload);
    run_case("NaN", &p, 0);
    free_problem(&p);
}

/* One result's values must not take the place of what the other is made of. */
Test(cross_entropy, softmax_and_gradient_alone_beside_each_other)
{
    RUN_LINES({ "two", "outputs=softmax+gradient;batch=3;seq=1|16;inner=1|16;classes=2|21|300;cases=6;fill="
                       "designed+ignored;"
                       "seed=70;all:seq=1|16|2|75;all:inner=1|16|2|75;all:cases=12" });
}

Test(cross_entropy, an_inner_class_axis_serves_every_dtype)
{
#define INNER EVERY ROWS_OF_OPTIONS ";inner=3;classes=21;seed=3;dtype=f16;all:dtype=f16|bf16|f64"
    RUN_LINES({ "inner", INNER ";label_smoothing=0.1;target_type=probabilities" },
              { "inner, smoothing", "only=all;" INNER ";label_smoothing=0.1" },
              { "inner, probabilities", "only=all;" INNER ";target_type=probabilities" });
}

/* The gradient in its narrow type is the f32 one rounded once, which two roundings of the same numbers would
 * miss at ties, and arithmetic in the narrow type everywhere. */
static void check_rounded_once(uint32_t dtype, uint32_t narrow)
{
    const size_t classes[] = { 17, 1026, 3001 };

    for (size_t i = 0; i < (small_run() ? 1 : volume(COUNT(classes), 1)); i++) {
        for (int general = runs_all() ? 0 : 1; general < 2; general++) {
            clxent_desc desc =
                make_desc(general ? EVERY_OUTPUT : CLXENT_OUTPUT_GRADIENT, dtype, 14, 1, classes[i]);
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

/* Where few programs are compiled, lanes of pairs above and rows of f64. */
Test(cross_entropy, gradients_of_other_types_than_the_logits_match_the_reference)
{
#define OTHER_TYPES                                                                                    \
    ";dtype=f32|f64|f32|f16|f16|bf16|bf16;gradient_dtype=bf16|f32|f16|f32|bf16|f16|f32;small:classes=" \
    "35" ROWS_OF_OPTIONS
    RUN_LINES(
        { "of bf16 logits",
          EVERY ROWS_OF_OPTIONS ";dtype=bf16;gradient_dtype=f32;classes=50;seed=5;small:classes=35" },
        { "of f32 logits", EVERY ROWS_OF_OPTIONS ";gradient_dtype=bf16;classes=50;seed=6;small:classes=5" },
        { "of f64 logits",
          BUT_ENTROPY ROWS_OF_OPTIONS ";dtype=f64;gradient_dtype=f32;classes=1030;seed=5;small:classes=35" },
        { "of every pair", "only=all;" BUT_ENTROPY OTHER_TYPES ";classes=1030;seed=5" },
        { "accumulated", "only=all;" BUT_ENTROPY OTHER_TYPES
                         ";classes=50;has_row_weights=1;gradient_mode=accumulate;seed=6" },
        { "sizes of bf16 logits", "only=full;" BUT_ENTROPY ";dtype=bf16;gradient_dtype=f32" SIZES });
}

/* ---- Large problems ------------------------------------------------------------------------ */

Test(cross_entropy, a_million_classes_match_the_reference)
{
#define MILLION ";classes=1048579;small:classes=5003"
    RUN_LINES({ "a million classes", "outputs=" ONE_PASS_NAMES ";batch=3;reduction=sum;seed=1" MILLION },
              { "a million classes, dense",
                EVERY ";batch=2;label_smoothing=0.1;has_class_weights=1;softcap=40;reduction=sum;"
                      "fill=designed;seed=2" MILLION });
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
