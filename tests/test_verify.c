/* SPDX-License-Identifier: MIT
 *
 * test_verify.c - that `clxent verify` notices: a right run with one element, canary or input changed is reported,
 * and a failing case is drawn, written, read and shrunk as promised. (Needs clxent_plan_create_tuned() of the static
 * library, to force parameters.)
 */
#include "support.h"

#include "internal.h"
#include "verify_case.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

TestSuite(verify, .init = open_device, .fini = close_device);

/* ---- The checks ---------------------------------------------------------------------------- */

static runner device_runner(void)
{
    return (runner){ device.cl, device.queue, NULL, device.ctx, clxent_plan_create };
}

static clxent_desc make_op(uint32_t op, uint32_t outputs)
{
    clxent_desc desc = make_desc(outputs, CLXENT_F32, 7, 2, 19);
    desc.op = op;
    return desc;
}

/* A problem of desc and `count` right runs of it in one plan. */
static void run_right(const clxent_desc *desc, uint32_t fill, problem *p, execution *e, size_t count)
{
    const runner on = device_runner();
    clxent_plan *plan = plan_with(NULL, desc);
    problem_fault f;

    make_problem(p, desc, fill, 3);
    for (size_t i = 0; i < count; i++) {
        cr_assert(execute(&e[i], &on, plan, p, desc->outputs, NULL, 0, &f), "%s", f.text);
        cr_assert(check_reference(p, &e[i], NULL, &f) && check_untouched(p, &e[i], desc->outputs, &f), "%s",
                  f.text);
    }
    clxent_plan_destroy(plan);
}

/* Runs desc, then changes one byte of each output's middle element in turn, the one that holds its sign and upper
 * exponent or, of integers, a middle byte. */
static void check_every_change_is_seen(const clxent_desc *desc)
{
    const uint32_t outputs = desc->outputs;
    const int upper = 3; /* of 4 bytes or 8: f32 results and integers */
    execution e[2];
    problem_fault f;
    problem p;
    size_t changed = 0;

    run_right(desc, FILL_IGNORED, &p, e, 2);
    cr_assert(check_same_bits("again", &p, &e[1], &e[0], outputs, &f), "%s", f.text);
    for (int t = FIRST_OUTPUT; t < TENSORS; t++) {
        const bool opaque = 1u << (t - FIRST_OUTPUT) == CLXENT_OUTPUT_STATISTICS;
        const image *i = &e[0].images[t];
        if (i->before == NULL) continue;
        unsigned char *byte = i->after + i->front + i->bytes / 2 / 8 * 8 + upper;

        *byte ^= 0x40;
        cr_assert(check_untouched(&p, &e[0], outputs, &f), "%s", f.text);
        cr_assert(!check_same_bits("again", &p, &e[1], &e[0], outputs, &f), "%s", tensor_names[t]);
        cr_assert(strncmp(f.text, tensor_names[t], strlen(tensor_names[t])) == 0, "%s", f.text);
        if (!opaque) {
            cr_assert(!check_reference(&p, &e[0], NULL, &f), "%s", tensor_names[t]);
            cr_assert(strncmp(f.text, tensor_names[t], strlen(tensor_names[t])) == 0, "%s", f.text);
            cr_assert(strstr(f.text, "got") != NULL && strstr(f.text, "want") != NULL, "%s", f.text);
        }
        *byte ^= 0x40;
        changed++;
    }
    cr_assert(changed > 0 && check_reference(&p, &e[0], NULL, &f), "%s", f.text);
    free_execution(&e[0]);
    free_execution(&e[1]);
    free_problem(&p);
}

enum { LINEAR_ROWS = 30, LINEAR_CLASSES = 12, LINEAR_FEATURES = 9 };

static clxent_desc make_linear(void)
{
    clxent_desc desc = make_desc(0, CLXENT_F32, LINEAR_ROWS, 1, LINEAR_CLASSES);

    desc.op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
    desc.features = LINEAR_FEATURES;
    desc.has_bias = 1;
    desc.weight_row_stride = LINEAR_FEATURES + 2;
    desc.weight_gradient_row_stride = LINEAR_FEATURES + 1;
    desc.weight_gradient_dtype = CLXENT_F16;
    desc.outputs = possible_outputs(&desc);
    return desc;
}

Test(verify, a_wrong_element_of_any_output_is_reported)
{
    const clxent_desc descs[] = {
        make_op(CLXENT_OP_CROSS_ENTROPY, CROSS_ENTROPY_OUTPUTS),
        make_op(CLXENT_OP_ONE_HOT, CLXENT_OUTPUT_ONE_HOT | CLXENT_OUTPUT_BAD_TARGETS), make_linear()
    };
    for (size_t i = 0; i < COUNT(descs); i++) check_every_change_is_seen(&descs[i]);
}

Test(verify, an_error_just_above_its_bound_is_reported)
{
    const double want[] = { 1, -0.0, INFINITY, NAN, 5 }, bound[] = { 0.5, 0, 0, 0, INFINITY };
    const double good[] = { 1.5, 0, INFINITY, NAN, INFINITY };
    const double wrong[] = { 1.5000001, 0x1p-1074, 1e308, 0, NAN };

    cr_assert_eq(compare(good, want, bound, 5).bad, 0);
    for (size_t i = 0; i < 5; i++) {
        double got[5];
        memcpy(got, good, sizeof got);
        got[i] = wrong[i];
        const close_report report = compare(got, want, bound, 5);
        cr_assert(report.bad == 1 && report.first == i && report.worst > 1, "element %zu", i);
    }
}

Test(verify, a_write_beside_the_outputs_is_reported)
{
    clxent_desc desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_LOSS);
    execution e;
    problem_fault f;
    problem p;

    desc.gradient_row_stride = desc.classes + 2;
    run_right(&desc, 0, &p, &e, 1);
    const image *gradient = &e.images[TENSOR_GRADIENT];
    const struct {
        unsigned char *byte;
        const char *text;
    } places[] = {
        { gradient->after + gradient->front - 1, "gradient: byte -1 " },
        { gradient->after + gradient->front + gradient->bytes, "gradient: byte " },
        { gradient->after + gradient->front + desc.classes * 4, "gradient: byte 76 " }, /* padding */
        { e.images[TENSOR_LOGITS].after + e.images[TENSOR_LOGITS].front, "logits: byte 0 " },
        { e.images[TENSOR_TARGETS].after, "targets: byte -" },
        { e.workspace.after, "bytes before the workspace" },
        { e.workspace.after + e.workspace.total - 1, "bytes behind the workspace" },
    };
    for (size_t i = 0; i < COUNT(places); i++) {
        *places[i].byte ^= 1;
        cr_assert(!check_untouched(&p, &e, desc.outputs, &f), "%s", places[i].text);
        cr_assert(strncmp(f.text, places[i].text, strlen(places[i].text)) == 0, "%s", f.text);
        *places[i].byte ^= 1;
    }
    cr_assert(check_untouched(&p, &e, desc.outputs, &f), "%s", f.text);
    free_execution(&e);
    free_problem(&p);
}

Test(verify, padding_that_is_not_zero_is_reported)
{
    clxent_desc desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_GRADIENT);
    execution e;
    problem_fault f;
    problem p;

    desc.gradient_row_stride = desc.classes + 2;
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    run_right(&desc, 0, &p, &e, 1);
    const image *gradient = &e.images[TENSOR_GRADIENT];
    cr_assert_eq(gradient->bytes, 14 * 21 * sizeof(float));
    unsigned char *last = gradient->after + gradient->front + gradient->bytes - 1;
    *last = 0x80;
    cr_assert(!check_untouched(&p, &e, desc.outputs, &f));
    cr_assert_str_eq(f.text, "gradient: byte 7 of the padding of slab 13 is not 0");
    *last = 0;
    last[1] ^= 1; /* behind it the canary */
    cr_assert(!check_untouched(&p, &e, desc.outputs, &f));
    last[1] ^= 1;
    cr_assert(check_untouched(&p, &e, desc.outputs, &f), "%s", f.text);
    free_execution(&e);
    free_problem(&p);
}

static clxent_status no_plan(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    (void)ctx;
    (void)desc;
    *out = NULL;
    return CL_OUT_OF_RESOURCES;
}

Test(verify, a_call_that_fails_is_a_fault_with_its_name)
{
    const clxent_desc desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_LOSS);
    runner on = device_runner();
    problem_fault f;
    problem p;

    make_problem(&p, &desc, 0, 1);
    on.make_plan = no_plan;
    cr_assert(!check_problem(&on, &p, 0, NULL, &f));
    cr_assert_str_eq(f.text, "clxent_plan_create: CL_OUT_OF_RESOURCES");
    free_problem(&p);
}

/* ---- Linear cross-entropy -------------------------------------------------------------------- */

static int64_t integer_of(const image *i, size_t k)
{
    int64_t value;
    memcpy(&value, i->after + i->front + 8 * k, 8);
    return value;
}

static void put_integer(const image *i, size_t k, int64_t value)
{
    memcpy(i->after + i->front + 8 * k, &value, 8);
}

/* FILL_DESIGNED has the first class's weights in the last one too, and there is no bias. */
Test(verify, argmax_of_equal_logits_may_be_either_and_correct_follows)
{
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    clxent_desc desc = make_linear();
    unsigned char allowed[LINEAR_ROWS * LINEAR_CLASSES];
    uint64_t right = 0;
    execution e;
    problem_fault f;
    problem p;
    int64_t undecided = 0;

    desc.has_bias = 0;
    desc.outputs = CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_CORRECT;
    run_right(&desc, FILL_DESIGNED | FILL_HIT, &p, &e, 1);
    want.argmax_allowed = allowed;
    want.correct = &right;
    cr_assert_eq(clxent_reference_run(&desc, &p.args, &want, f.text, sizeof f.text), CLXENT_OK, "%s", f.text);
    const image *argmax = &e.images[TENSOR_ARGMAX], *correct = &e.images[TENSOR_CORRECT];
    for (size_t row = 0; row < LINEAR_ROWS; row++) {
        const unsigned char *own = allowed + row * LINEAR_CLASSES;
        const int64_t best = integer_of(argmax, row);
        undecided += own[0] + own[LINEAR_CLASSES - 1] == 2;
        for (int64_t j = 0; j <= LINEAR_CLASSES; j++) {
            put_integer(argmax, row, j);
            cr_assert_eq(check_reference(&p, &e, NULL, &f), j < LINEAR_CLASSES && own[j] == 1,
                         "row %zu, class %d", row, (int)j);
        }
        put_integer(argmax, row, best);
    }
    cr_assert(undecided > 2 && undecided < LINEAR_ROWS / 2, "%d rows", (int)undecided);
    for (int64_t more = -undecided - 1; more <= undecided + 1; more++) {
        put_integer(correct, 0, (int64_t)right + more);
        cr_assert_eq(check_reference(&p, &e, NULL, &f), more >= -undecided && more <= undecided, "%d",
                     (int)more);
    }
    free_execution(&e);
    free_problem(&p);
}

static bool has_kind(const void *data, size_t n, bool (*is)(double))
{
    for (size_t k = 0; k < n; k++)
        if (is(get_element(data, CLXENT_F32, k))) return true;
    return false;
}

static bool is_nan(double x) { return isnan(x); }

static bool is_infinite(double x) { return isinf(x); }

static bool is_zero(double x) { return x == 0; }

static bool is_high(double x) { return x == 112; }

static bool is_subnormal(double x) { return x != 0 && fabs(x) < 0x1p-126; }

/* Each fill is in the inputs, and what the reference makes of it is as the fill's name says. */
Test(verify, fills_of_hidden_states_and_biases_are_what_they_are_for)
{
    clxent_desc desc = make_linear();

    desc.has_row_weights = 1;
    for (uint64_t seed = 0; seed < 40; seed++) {
        const uint32_t fills[] = { FILL_PLAIN, FILL_DESIGNED, FILL_MASKED, FILL_SPECIAL | FILL_IGNORED,
                                   FILL_HIT };
        const uint32_t fill = fills[seed % COUNT(fills)];
        double lse[LINEAR_ROWS], losses[LINEAR_ROWS], weight[LINEAR_CLASSES * LINEAR_FEATURES];
        uint64_t correct;
        clxent_reference_results out = CLXENT_REFERENCE_RESULTS_INIT;
        problem_fault f;
        problem p;

        desc.batch = fill == FILL_MASKED ? 6 : LINEAR_ROWS; /* few, so that not every class is a target */
        make_problem(&p, &desc, fill, seed);
        const void *hidden = p.args.hidden.data, *bias = p.args.bias.data;
        out.lse = lse, out.losses = losses, out.weight_gradient = weight, out.correct = &correct;
        cr_assert_eq(clxent_reference_run(&p.desc, &p.args, &out, f.text, sizeof f.text), CLXENT_OK);
        const bool special = (fill & FILL_SPECIAL) != 0, designed = fill == FILL_DESIGNED;
        cr_assert(has_kind(hidden, desc.batch * LINEAR_FEATURES, is_nan) == special &&
                  has_kind(hidden, desc.batch * LINEAR_FEATURES, is_infinite) == special);
        cr_assert(has_kind(hidden, desc.batch * LINEAR_FEATURES, is_zero) == designed &&
                  has_kind(hidden, desc.batch * LINEAR_FEATURES, is_high) == designed);
        cr_assert_eq(has_kind(hidden, desc.batch * LINEAR_FEATURES, is_subnormal), designed);
        if (!special) cr_assert_eq(has_kind(bias, LINEAR_CLASSES, is_infinite), fill == FILL_MASKED);
        double largest = 0;
        for (size_t row = 0; row < desc.batch; row++) {
            if (!special) cr_assert(isfinite(losses[row]), "masks are no targets");
            largest = fmax(largest, fabs(lse[row]));
            if (special && seed % 2 == 1 && losses[row] == 0)
                cr_assert(!isfinite(lse[row]), "a row that does not count is spoilt");
        }
        const float *weights = p.args.weight.data;
        cr_assert_eq(memcmp(weights, weights + (LINEAR_CLASSES - 1) * desc.weight_row_stride,
                            LINEAR_FEATURES * sizeof *weights) == 0,
                     designed);
        if (fill == FILL_PLAIN) cr_assert(largest > 6 && largest < 24, "%g", largest);
        if (fill == FILL_HIT) cr_assert(correct >= 5, "%d of 10", (int)correct);
        /* every second seed has them where they are not to be seen */
        if (special) cr_assert(seed % 2 == 0 ? isnan(weight[0]) : isfinite(weight[0]), "seed %d", (int)seed);
        free_problem(&p);
    }
}

/* ---- Cases --------------------------------------------------------------------------------- */

enum { DRAWN = 3000 };

Test(verify, drawn_cases_are_valid_repeat_and_survive_their_text)
{
    verify_case c, again;
    problem_fault f;
    char text[CASE_TEXT_SIZE], back[CASE_TEXT_SIZE];

    for (uint64_t i = 0; i < DRAWN; i++) {
        const size_t limit = i % 3 == 0 ? 100 : (size_t)1 << 20;
        case_draw(&c, 5, i, limit);
        cr_assert(case_check(&c, &f), "case %u: %s", (unsigned)i, f.text);
        cr_assert(c.desc.batch * c.desc.seq * c.desc.classes <= limit, "case %u", (unsigned)i);
        cr_assert(c.desc.batch * c.desc.seq * c.desc.classes * c.desc.features <= 4 * limit, "case %u",
                  (unsigned)i);
        case_write(&c, text);
        for (int k = 0; k < 3; k++) { /* drawn again, read, drawn with another seed */
            if (k == 1) cr_assert(case_read(&again, text, &f), "%s: %s", text, f.text);
            else case_draw(&again, k == 0 ? 5 : 6, i, limit);
            case_write(&again, back);
            cr_assert((strcmp(text, back) == 0) == (k < 2), "%d: %s, %s", k, text, back);
        }
    }
}

Test(verify, every_feature_is_drawn_and_every_value_of_it_reads_back)
{
    case_feature features[CASE_FEATURES];
    size_t found[CASE_FEATURES] = { 0 };
    const size_t count = case_list_features(features);

    cr_assert(count > 70 && count < CASE_FEATURES);
    for (uint64_t i = 0; i < DRAWN; i++) {
        verify_case c;
        case_draw(&c, 1, i, (size_t)1 << 20);
        for (size_t k = 0; k < count; k++) found[k] += case_has_feature(&c, &features[k]);
    }
    for (size_t k = 0; k < count; k++) {
        /* names of the values that mean "as the logits" and "not looked at" */
        const bool none =
            strcmp(features[k].name, "dtype same") == 0 || strcmp(features[k].name, "target_type none") == 0;
        cr_assert(none ? found[k] == 0 : found[k] >= DRAWN / 300, "%s: %zu cases", features[k].name,
                  found[k]);
    }
}

Test(verify, text_that_is_no_case_is_refused_by_name)
{
    const struct {
        const char *text, *fault;
    } wrong[] = {
        { "", "'': takes a number, or field=value" },
        { "outputs", "'outputs': takes a number, or field=value" },
        { "outputs=loss;rows=3", "'rows' is no field of a case: takes fields of clxent_desc, seed, fill" },
        { "outputs=loss+lsd", "outputs is 'lsd': takes any of, joined by '+': losses, loss, lse" },
        { "outputs=loss;dtype=f8", "dtype is 'f8': takes same, f32, f16, bf16, f64" },
        { "outputs=loss;classes=-3", "classes is '-3': takes a whole number of at least 0" },
        { "outputs=loss;classes=3x", "classes is '3x': takes a whole number of at least 0" },
        { "outputs=loss;use_ignore_index=2", "use_ignore_index is '2': takes a whole number, 0 or 1" },
        { "outputs=loss;softcap=nan", "softcap is 'nan': takes a finite number" },
        { "outputs=loss;softcap=-1", "softcap is -1: takes 0 (off) or" },
        { "outputs=", "outputs is 0: takes at least one of" },
        { "outputs=loss;checks=in-place", "checks has in-place: takes cross-entropy with gradient" },
    };
    verify_case c;
    problem_fault f;

    for (size_t i = 0; i < COUNT(wrong); i++) {
        cr_assert(!case_read(&c, wrong[i].text, &f), "%s", wrong[i].text);
        cr_assert(strncmp(f.text, wrong[i].fault, strlen(wrong[i].fault)) == 0, "%s: %s", wrong[i].text,
                  f.text);
    }
    cr_assert(case_read(&c, "outputs=loss+lse;classes=7;ignore_index=-3;softcap=0.1", &f), "%s", f.text);
    cr_assert(c.desc.outputs == (CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE) && c.desc.classes == 7 &&
              c.desc.batch == 1 && c.desc.ignore_index == -3 && c.desc.softcap == 0.1 && c.seed == 1);
}

/* ---- Data ---------------------------------------------------------------------------------- */

/* The denominator is 0 then by ignored rows, and the one bad row must show all the same. */
Test(verify, all_ignored_with_bad_targets_is_all_but_one_bad_row)
{
    const uint32_t types[] = { CLXENT_TARGET_I32, CLXENT_TARGET_I64, CLXENT_TARGET_U8, CLXENT_TARGET_U16,
                               CLXENT_TARGET_U32 };
    const int64_t ignored[] = { -100, -1, 3, 255 };
    clxent_desc desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_LOSS);
    const size_t rows = desc.batch * desc.seq;
    bool bad_at[64] = { false };

    for (uint64_t seed = 0; seed < 200; seed++) {
        problem p;
        size_t bad = 0, kept = 0;
        desc.target_type = types[seed % COUNT(types)];
        const bool is_signed = desc.target_type == CLXENT_TARGET_I32 || desc.target_type == CLXENT_TARGET_I64;
        desc.ignore_index = ignored[is_signed ? seed % 4 : 2 + seed % 2];
        make_problem(&p, &desc, FILL_ALL_IGNORED | FILL_BAD_TARGETS, seed);
        for (size_t row = 0; row < rows; row++) {
            const int64_t target = target_of(&p, row);
            if (target == desc.ignore_index) continue;
            kept++;
            bad += target < 0 || target >= (int64_t)desc.classes;
            bad_at[row] = true;
        }
        cr_assert(kept == 1 && bad == 1, "seed %u: %zu rows, %zu of them bad", (unsigned)seed, kept, bad);
        free_problem(&p);
    }
    for (size_t row = 0; row < rows; row++) cr_expect(bad_at[row], "row %zu", row);
}

Test(verify, weights_and_denominators_have_both_signs_and_zero)
{
    clxent_desc desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT);
    const uint32_t fills[] = { FILL_DENOMINATOR, FILL_ZERO_DENOMINATOR };
    bool below = false, above = false;

    desc.has_class_weights = desc.has_row_weights = 1;
    for (uint64_t seed = 0; seed < 40; seed++) {
        problem p;
        make_problem(&p, &desc, fills[seed % 2], seed);
        const double d = get_element(p.args.denominator.data, CLXENT_F32, 0);
        cr_assert((d == 0) == (seed % 2 == 1), "%g", d);
        below = below || d < 0;
        above = above || d > 0;
        for (int k = 0; k < 2; k++) {
            const void *weights = k == 0 ? p.args.class_weights.data : p.args.row_weights.data;
            size_t negative = 0, zero = 0;
            for (size_t i = 0; i < desc.batch * desc.seq; i++) {
                negative += get_element(weights, CLXENT_F32, i) < 0;
                zero += get_element(weights, CLXENT_F32, i) == 0;
            }
            cr_assert(negative > 0 && zero > 0, "%s weights", k == 0 ? "class" : "row");
        }
        free_problem(&p);
    }
    cr_assert(below && above);
}

/* ---- Failures of the device tests ----------------------------------------------------------- */

/* The command in text repeats p with flags. */
static void check_repeats(const char *text, const problem *p, uint32_t flags)
{
    static const char begin[] = "clxent verify --case '";
    char fields[CASE_TEXT_SIZE];
    verify_case c;
    problem_fault f;
    problem again;

    cr_assert(strncmp(text, begin, sizeof begin - 1) == 0, "%s", text);
    (void)snprintf(fields, sizeof fields, "%s", text + sizeof begin - 1);
    fields[strcspn(fields, "'")] = '\0';
    cr_assert(case_read(&c, fields, &f), "%s: %s", fields, f.text);
    cr_assert(memcmp(&c.desc, &p->desc, sizeof c.desc) == 0 && c.checks == flags, "%s", fields);
    make_problem(&again, &c.desc, c.fill, c.seed);
    cr_assert(again.args.logits.size == p->args.logits.size);
    cr_assert(memcmp(again.args.logits.data, p->args.logits.data, p->args.logits.size) == 0);
    cr_assert(memcmp(again.args.targets.data, p->args.targets.data, p->args.targets.size) == 0);
    free_problem(&again);
}

Test(verify, a_failing_test_prints_the_command_that_repeats_it)
{
    const clxent_tuning tuning = {
        .group = 1, .vector = 16, .block = 64, .elements = 4096, .lane_vector = 16
    };
    const uint32_t flags = CASE_SUBSETS | CASE_ALIGNED;
    clxent_desc desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT);
    problem p;

    desc.softcap = 30;
    desc.shift = 1;
    make_problem(&p, &desc, FILL_DESIGNED | FILL_IGNORED, 77);
    check_repeats(repeat_text(&p, flags), &p, flags);
    cr_assert(strchr(repeat_text(&p, flags), '(') == NULL, "%s", repeat_text(&p, flags));

    put_element((void *)p.args.logits.data, CLXENT_F32, 5, 1e6);
    cr_assert(strstr(repeat_text(&p, flags), "(whose data the test has changed)") != NULL);
    free_problem(&p);

    desc = make_op(CLXENT_OP_CROSS_ENTROPY, CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT);
    force(&tuning);
    make_problem(&p, &desc, FILL_PLAIN, 1);
    run_case("forced", &p, 0);
    check_repeats(repeat_text(&p, 0), &p, 0);
    cr_assert(strstr(repeat_text(&p, 0),
                     "forced parameters: TUNE(ANY, \"*\", ANY_DTYPE, 1, 16, 64, 0, 4096, 0, ") != NULL,
              "%s", repeat_text(&p, 0));
    free_problem(&p);
}

/* ---- Shrinking ----------------------------------------------------------------------------- */

static bool fails_with_softcap(const verify_case *c, void *payload, problem_fault *f)
{
    ++*(size_t *)payload;
    return c->desc.softcap > 0 && c->desc.classes > 7 && !say_fault(f, "%zu classes", c->desc.classes);
}

static bool fails_with_padding(const verify_case *c, void *payload, problem_fault *f)
{
    (void)payload;
    return c->desc.inner > 1 && c->desc.row_stride > c->desc.classes * c->desc.inner + 1 &&
           (c->checks & CASE_SUBSETS) != 0 && (c->fill & FILL_MASKED) != 0 && !say_fault(f, "padding");
}

/* The first of seed 1 that fails. */
static verify_case draw_failure(case_fails_fn fails, void *payload)
{
    verify_case c;
    problem_fault f;
    uint64_t i = 0;
    do {
        case_draw(&c, 1, i++, (size_t)1 << 20);
    } while (!fails(&c, payload, &f));
    return c;
}

Test(verify, a_failure_shrinks_to_the_one_option_and_size_that_matter)
{
    size_t calls = 0;
    verify_case c = draw_failure(fails_with_softcap, &calls);
    problem_fault f;
    char text[CASE_TEXT_SIZE];

    calls = 0;
    const size_t tried = case_shrink(&c, fails_with_softcap, &calls, &f);
    cr_assert(c.desc.outputs != 0 && (c.desc.outputs & (c.desc.outputs - 1)) == 0, "one output is left");
    cr_assert(c.desc.classes == 8 && c.desc.softcap > 0);
    cr_assert_str_eq(f.text, "8 classes");
    cr_assert(tried == calls && tried < 300, "%zu of %zu", tried, calls);
    /* else as by default */
    const double softcap = c.desc.softcap;
    c.desc.classes = 1;
    c.desc.softcap = 0;
    c.desc.outputs = CLXENT_OUTPUT_LOSSES;
    case_write(&c, text);
    cr_assert_str_eq(text, "outputs=losses");
    cr_assert(softcap == 30 || softcap == 50 || softcap == 5 || softcap == 1 || softcap == 0.5);
}

Test(verify, sizes_that_hang_together_shrink_together)
{
    verify_case c = draw_failure(fails_with_padding, NULL);
    problem_fault f;

    case_shrink(&c, fails_with_padding, NULL, &f);
    cr_assert(c.desc.inner == 2 && c.desc.batch * c.desc.seq == 2 && c.desc.classes == 1);
    cr_assert(c.desc.row_stride == 4 && c.checks == CASE_SUBSETS && c.fill == FILL_MASKED);
}

static bool fails_with_features(const verify_case *c, void *payload, problem_fault *f)
{
    (void)payload;
    return c->desc.features > 5 && c->desc.workspace_limit > 0 && !say_fault(f, "features");
}

Test(verify, what_fails_in_linear_cross_entropy_alone_keeps_what_it_needs)
{
    verify_case c = draw_failure(fails_with_features, NULL);
    problem_fault f;
    char text[CASE_TEXT_SIZE], want[CASE_TEXT_SIZE];

    case_shrink(&c, fails_with_features, NULL, &f);
    cr_assert((c.desc.outputs & (c.desc.outputs - 1)) == 0 && c.desc.workspace_limit > 0);
    cr_assert(c.desc.has_bias == (c.desc.outputs == CLXENT_OUTPUT_BIAS_GRADIENT));
    c.desc.outputs = CLXENT_OUTPUT_LSE;
    c.desc.has_bias = 0;
    case_write(&c, text);
    (void)snprintf(want, sizeof want, "outputs=lse;op=linear-cross-entropy;features=6;workspace_limit=%zu",
                   c.desc.workspace_limit);
    cr_assert_str_eq(text, want);
}
