/* SPDX-License-Identifier: MIT
 *
 * test_desc.c - what a desc may be, what is said of one that is wrong, and the sizes that follow from a right
 * one. Includes internal.h: sizes and shapes of tensors are not public, but every buffer check rests on them.
 */
#include "internal.h"
#include "layout.h"
#include "verify_case.h"

#include <clxent/reference.h>

#include <criterion/criterion.h>

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { TEXT = 512 };

static clxent_desc desc;
static char text[TEXT];

static void reset(void)
{
    clxent_desc_init(&desc);
    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = 2;
    desc.seq = 3;
    desc.classes = 4;
    text[0] = '\0';
}

static void check_accepted(void)
{
    const clxent_status status = clxent_desc_check(&desc, text, sizeof text);
    cr_assert_eq(status, CLXENT_OK, "status %d: %s", (int)status, text);
}

/* The whole text, so that every word of it is meant. Leaves desc as reset() does, for the next one. */
__attribute__((format(printf, 1, 2))) static void check_refused(const char *format, ...)
{
    char want[TEXT];
    va_list list;

    va_start(list, format);
    (void)vsnprintf(want, sizeof want, format, list);
    va_end(list);
    const clxent_status status = clxent_desc_check(&desc, text, sizeof text);
    cr_assert_eq(status, CLXENT_ERROR_INVALID_DESC, "status %d where \"%s\" was expected", (int)status, want);
    cr_assert_str_eq(text, want);
    reset();
}

/* With one field of reset()'s desc changed. */
#define REFUSED(field, value, ...) (desc.field = (value), check_refused(__VA_ARGS__))

static void use_op(uint32_t op, uint32_t outputs)
{
    reset();
    desc.op = op;
    desc.outputs = outputs;
}

/* reset()'s desc with these fields besides, as `clxent verify --case` reads them, and the whole text of its check: "" where it is
 * accepted. */
typedef struct told {
    const char *fields, *text;
} told;

static void check_told(const told *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char fields[CASE_TEXT_SIZE];
        problem_fault f = { "" };
        verify_case c;

        (void)snprintf(fields, sizeof fields, "outputs=loss+gradient;batch=2;seq=3;classes=4;%s",
                       cases[i].fields);
        cr_assert_eq(case_read(&c, fields, &f), cases[i].text[0] == '\0', "%s: %s", cases[i].fields, f.text);
        cr_assert_str_eq(f.text, cases[i].text, "%s: %s", cases[i].fields, f.text);
    }
}
#define CHECK_TOLD(...) \
    check_told((const told[]){ __VA_ARGS__ }, sizeof((const told[]){ __VA_ARGS__ }) / sizeof(told))

TestSuite(desc, .init = reset);

/* ---- Defaults ------------------------------------------------------------------------------ */

/* Bytes between fields have no value: the structs that are compared whole have none. */
Test(desc, init_functions_and_macros_give_the_defaults_of_the_table)
{
    const clxent_desc desc_macro = CLXENT_DESC_INIT;
    const clxent_args args_macro = CLXENT_ARGS_INIT;
    const clxent_host_args host_macro = CLXENT_HOST_ARGS_INIT;
    const clxent_context_options options_macro = CLXENT_CONTEXT_OPTIONS_INIT;
    const clxent_reference_results results_macro = CLXENT_REFERENCE_RESULTS_INIT;
    clxent_reference_results results;
    clxent_args args;
    clxent_host_args host;
    clxent_context_options options;

    memset(&desc, 0xff, sizeof desc);
    memset(&args, 0xff, sizeof args);
    memset(&host, 0xff, sizeof host);
    memset(&options, 0xff, sizeof options);
    memset(&results, 0xff, sizeof results);
    clxent_desc_init(&desc);
    clxent_args_init(&args);
    clxent_host_args_init(&host);
    clxent_context_options_init(&options);
    clxent_reference_results_init(&results);
#define FIELD(name, kind, initial) cr_assert(desc.name == (initial) && desc_macro.name == (initial), #name);
#include "options.def"
    cr_assert(desc.struct_size == sizeof desc && desc_macro.struct_size == sizeof desc);
    cr_assert(args.struct_size == sizeof args && args.rows == CLXENT_ALL_ROWS && args.workspace.mem == NULL);
    cr_assert(memcmp(&args, &args_macro, sizeof args) == 0);
    cr_assert(host.struct_size == sizeof host && host.one_hot.data == NULL && host.max_chunk_bytes == 0);
    cr_assert(memcmp(&host, &host_macro, sizeof host) == 0);
    cr_assert(options.struct_size == sizeof options && options.log == NULL && options.log_payload == NULL);
    cr_assert_eq(options_macro.struct_size, sizeof options);
    cr_assert(memcmp(&results, &results_macro, sizeof results) == 0 && results.struct_size == sizeof results);
}

/* begin, the names of outputs in the order of their bits, end */
static const char *with_names(const char *begin, uint32_t outputs, const char *end)
{
    static char all[TEXT];
    const char *between = "";
    int used = snprintf(all, sizeof all, "%s", begin);

    for (int k = 0; k < OUTPUTS; k++) {
        if ((outputs >> k & 1u) == 0) continue;
        used +=
            snprintf(all + used, sizeof all - (size_t)used, "%s%s", between, tensor_names[FIRST_OUTPUT + k]);
        between = ", ";
    }
    (void)snprintf(all + used, sizeof all - (size_t)used, "%s", end);
    return all;
}

Test(desc, defaults_without_outputs_are_refused)
{
    clxent_desc_init(&desc);
    desc.classes = 4;
    check_refused("%s", with_names("outputs is 0: takes at least one of ", CROSS_ENTROPY_OUTPUTS,
                                   " with op CROSS_ENTROPY"));
}

Test(desc, text_is_optional_cut_to_its_size_and_empty_where_nothing_is_wrong)
{
    strcpy(text, "what an earlier call left");
    check_accepted();
    cr_assert_str_eq(text, "");
    memset(text, 'x', 11);
    cr_assert(clxent_desc_check(&desc, text, 0) == CLXENT_OK && text[0] == 'x',
              "a text of 0 bytes was written");
    cr_assert_eq(clxent_desc_check(&desc, NULL, 0), CLXENT_OK);
    desc.classes = 0;
    cr_assert_eq(clxent_desc_check(&desc, NULL, 0), CLXENT_ERROR_INVALID_DESC);
    cr_assert_eq(clxent_desc_check(&desc, text, 10), CLXENT_ERROR_INVALID_DESC);
    cr_assert(strcmp(text, "classes i") == 0 && text[10] == 'x', "%s", text);
    cr_assert_eq(clxent_desc_check(NULL, text, sizeof text), CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert_str_eq(text, "desc is NULL: takes a clxent_desc");
    cr_assert_eq(clxent_desc_check(NULL, NULL, 0), CLXENT_ERROR_NULL_ARGUMENT);
}

/* ---- struct_size --------------------------------------------------------------------------- */

Test(desc, struct_of_an_older_version_gets_our_defaults)
{
    clxent_desc copy;
    desc.shift = 2;
    desc.softcap = 30;
    desc.logit_scale = 5;
    desc.struct_size = offsetof(clxent_desc, logit_scale);
    cr_assert_eq(clxent_struct_copy(CLXENT_STRUCT_DESC, &copy, &desc, text, sizeof text), CLXENT_OK);
    cr_assert(copy.shift == 2 && copy.classes == 4);
    cr_assert(copy.logit_scale == 1 && copy.softcap == 0, "fields beyond struct_size are not read");
    cr_assert_eq(copy.struct_size, sizeof copy);
    check_accepted();
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    desc.struct_size = offsetof(clxent_desc, gradient_padding);
    cr_assert_eq(clxent_struct_copy(CLXENT_STRUCT_DESC, &copy, &desc, text, sizeof text), CLXENT_OK);
    cr_assert(copy.softcap == 30 && copy.gradient_padding == CLXENT_GRADIENT_PADDING_KEEP);
}

Test(desc, struct_size_of_zero_or_beyond_ours_is_refused)
{
    const size_t sizes[] = { 0, sizeof desc + 1, SIZE_MAX };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        REFUSED(struct_size, sizes[i],
                "struct_size is %zu: takes %zu to %zu bytes, up to the end of a field, as set by "
                "CLXENT_DESC_INIT",
                sizes[i], sizeof desc.struct_size, sizeof desc);
    }
}

/* The size up to which each struct is read must be the end of a field, or where the next field begins. */
Test(desc, struct_size_within_a_field_is_refused)
{
#define DESC(field) offsetof(clxent_desc, field)
#define ARGS(field) offsetof(clxent_args, field)
#define HOST(field) offsetof(clxent_host_args, field)
#define OPTIONS(field) offsetof(clxent_context_options, field)
#define RESULTS(field) offsetof(clxent_reference_results, field)
    static const struct {
        clxent_struct kind;
        const char *prefix;
        size_t size, whole[4], within[4]; /* sizes that are taken, and that are not */
    } kinds[] = {
#define KIND(NAME, prefix, type, ...) \
    { CLXENT_STRUCT_##NAME, prefix "struct_size is ", sizeof(type), __VA_ARGS__ }
#define SIZES(...)  \
    {               \
        __VA_ARGS__ \
    }
        KIND(DESC, "", clxent_desc, SIZES(DESC(op), DESC(gradient_dtype), DESC(batch), DESC(softcap)),
             SIZES(DESC(op) + 1, DESC(ignore_index) + 4, DESC(classes) + 1, DESC(softcap) + 4)),
        KIND(
            ARGS, "args.", clxent_args, SIZES(ARGS(outputs), ARGS(outputs) + 4, ARGS(rows), ARGS(workspace)),
            SIZES(ARGS(outputs) + 2, ARGS(rows) + 4, ARGS(logits) + sizeof(cl_mem), sizeof(clxent_args) - 8)),
        KIND(HOST_ARGS, "args.", clxent_host_args,
             SIZES(HOST(max_chunk_bytes), HOST(logits), HOST(losses), HOST(one_hot)),
             SIZES(HOST(max_chunk_bytes) + 3, HOST(logits) + 1, HOST(lse) + 8, sizeof(clxent_host_args) - 1)),
        KIND(CONTEXT_OPTIONS, "options.", clxent_context_options,
             SIZES(OPTIONS(log), OPTIONS(log_payload), OPTIONS(tuning), sizeof(clxent_context_options)),
             SIZES(1, OPTIONS(log) + 1, OPTIONS(tuning) - 1, sizeof(clxent_context_options) - 1)),
        KIND(REFERENCE_RESULTS, "results.", clxent_reference_results,
             SIZES(RESULTS(losses), RESULTS(one_hot), RESULTS(counted), sizeof(clxent_reference_results)),
             SIZES(1, RESULTS(loss) + 4, RESULTS(argmax) + 1, sizeof(clxent_reference_results) - 1)),
    };
    enum { LARGEST = 1024 };
    _Static_assert(sizeof(clxent_args) <= LARGEST && sizeof(clxent_desc) <= LARGEST, "room for every struct");

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const clxent_status refused =
            kinds[i].kind == CLXENT_STRUCT_DESC ? CLXENT_ERROR_INVALID_DESC : CLXENT_ERROR_INVALID_ARGUMENT;
        _Alignas(max_align_t) unsigned char from[LARGEST], to[LARGEST], untouched[LARGEST];
        memset(from, 0x11, sizeof from);
        memset(untouched, 0x22, sizeof untouched);
        for (size_t k = 0; k < 4; k++) {
            const size_t whole = kinds[i].whole[k], word = sizeof whole;
            memcpy(from, &whole, word);
            cr_assert_eq(clxent_struct_copy(kinds[i].kind, to, from, text, sizeof text), CLXENT_OK, "%zu: %s",
                         whole, text);
            cr_assert(memcmp(to, &kinds[i].size, word) == 0);
            cr_assert(memcmp(to + word, from + word, whole - word) == 0);

            memcpy(from, &kinds[i].within[k], word);
            memcpy(to, untouched, sizeof to);
            cr_assert_eq(clxent_struct_copy(kinds[i].kind, to, from, text, sizeof text), refused, "%s%zu",
                         kinds[i].prefix, kinds[i].within[k]);
            cr_assert(memcmp(to, untouched, sizeof to) == 0, "a refused struct was copied");
            cr_assert(strstr(text, kinds[i].prefix) == text, "%s", text);
        }
    }
}

/* ---- Enumerations -------------------------------------------------------------------------- */

Test(desc, unknown_enumerators_are_refused_with_the_list)
{
    static const struct {
        const char *name;
        size_t field;
        uint32_t first, last;
        const char *takes;
    } enums[] = {
#define ENUM(name, first, last, takes) { #name, offsetof(clxent_desc, name), first, last, takes }
        ENUM(op, 0, 5,
             "CLXENT_OP_CROSS_ENTROPY (0), CLXENT_OP_SOFTMAX_BACKWARD (1), CLXENT_OP_ONE_HOT (2), "
             "CLXENT_OP_PROBABILITY_LOSS (3), CLXENT_OP_SOFTMAX_GRADIENT (4), "
             "CLXENT_OP_LINEAR_CROSS_ENTROPY (5)"),
        ENUM(dtype, 1, 4, "CLXENT_F32 (1), CLXENT_F16 (2), CLXENT_BF16 (3), CLXENT_F64 (4)"),
        ENUM(target_type, 1, 7,
             "CLXENT_TARGET_I32 (1), CLXENT_TARGET_I64 (2), CLXENT_TARGET_U8 (3), "
             "CLXENT_TARGET_PROBABILITIES_F32 (4), CLXENT_TARGET_PROBABILITIES_LOGITS (5), "
             "CLXENT_TARGET_U16 (6), CLXENT_TARGET_U32 (7)"),
        ENUM(reduction, 0, 2,
             "CLXENT_REDUCTION_MEAN (0), CLXENT_REDUCTION_SUM (1), CLXENT_REDUCTION_NONE (2)"),
        ENUM(bad_target, 0, 2,
             "CLXENT_BAD_TARGET_REPORT (0), CLXENT_BAD_TARGET_NAN (1), CLXENT_BAD_TARGET_IGNORE (2)"),
        ENUM(all_ignored, 0, 1, "CLXENT_ALL_IGNORED_NAN (0), CLXENT_ALL_IGNORED_ZERO (1)"),
        ENUM(gradient_mode, 0, 1, "CLXENT_GRADIENT_WRITE (0), CLXENT_GRADIENT_ACCUMULATE (1)"),
        ENUM(gradient_padding, 0, 1, "CLXENT_GRADIENT_PADDING_KEEP (0), CLXENT_GRADIENT_PADDING_ZERO (1)"),
    };
    for (size_t i = 0; i < sizeof enums / sizeof *enums; i++) {
        const uint32_t values[] = { enums[i].last + 1, UINT32_MAX, enums[i].first - 1 }; /* wraps around */
        for (size_t k = 0; k < 3; k++) {
            memcpy((char *)&desc + enums[i].field, &values[k], sizeof values[k]);
            check_refused("%s is %u: takes %s", enums[i].name, (unsigned)values[k], enums[i].takes);
        }
    }
}

Test(desc, target_type_is_not_looked_at_where_nothing_uses_targets)
{
    desc.target_type = 99;
    desc.outputs = CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_ENTROPY;
    check_accepted();
    use_op(CLXENT_OP_SOFTMAX_BACKWARD, CLXENT_OUTPUT_GRADIENT);
    check_accepted();
}

Test(desc, gradient_type_follows_the_logits)
{
    static const uint32_t takes[5] = { 0, 0xf, 0xf, 0xf,
                                       0x13 }; /* bit t of entry d: dtype d takes gradient t */
    for (uint32_t d = CLXENT_F32; d <= CLXENT_F64; d++)
        for (uint32_t g = 0; g <= 4; g++) {
            reset();
            desc.dtype = d;
            desc.gradient_dtype = g;
            const clxent_status status = clxent_desc_check(&desc, text, sizeof text);
            cr_assert_eq(status == CLXENT_OK, takes[d] >> g & 1u, "dtype %u, gradient_dtype %u: %s", d, g,
                         text);
            cr_assert_eq(clxent_gradient_dtype(&desc), g == 0 ? d : g);
        }
    reset();
#define OF_F32_LOGITS ": takes 0, CLXENT_F32 (1), CLXENT_F16 (2) or CLXENT_BF16 (3) with dtype f32"
    REFUSED(gradient_dtype, CLXENT_F64, "gradient_dtype is 4 (f64)" OF_F32_LOGITS);
    REFUSED(gradient_dtype, 77, "gradient_dtype is 77 (unknown)" OF_F32_LOGITS);
    desc.dtype = CLXENT_F64;
    REFUSED(gradient_dtype, CLXENT_F16,
            "gradient_dtype is 2 (f16): takes 0, CLXENT_F64 (4) or CLXENT_F32 (1) with dtype f64");
}

/* ---- Outputs ------------------------------------------------------------------------------- */

Test(desc, unknown_output_bits_are_refused)
{
    const unsigned unknown = 1u << OUTPUTS | 1u << 31;
    desc.outputs |= unknown;
    check_refused("outputs is 0x%x: takes CLXENT_OUTPUT_* bits, which 0x%x are not", desc.outputs, unknown);
}

Test(desc, each_operation_gives_its_own_outputs)
{
    const uint32_t of_targets = 1u << 10 | 1u << 12 | 1u << 13;
    /* cross-entropy gives all but one_hot and linear cross-entropy's gradients */
    const uint32_t of_others = 1u << 11 | 1u << 14 | 1u << 15 | 1u << 16;
    const uint32_t gives[] = { ~of_others, 1u << 5, 1u << 11 | 1u << 10, 1u << 0 | 1u << 1 | of_targets,
                               1u << 5 | of_targets };
    for (uint32_t op = 0; op < 5; op++)
        for (unsigned bit = 0; bit < OUTPUTS; bit++) {
            reset();
            use_op(op, 1u << bit);
            const clxent_status status = clxent_desc_check(&desc, text, sizeof text);
            cr_assert_eq(status == CLXENT_OK, gives[op] >> bit & 1u, "op %u, bit %u: %s", op, bit, text);
        }
    use_op(CLXENT_OP_PROBABILITY_LOSS, CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_LSE);
    check_refused("outputs is 0x26 with lse, gradient: takes losses, loss, bad_targets, "
                  "computed_denominator, counted with "
                  "op PROBABILITY_LOSS");
    desc.outputs = CLXENT_OUTPUT_ONE_HOT;
    check_refused("%s", with_names("outputs is 0x800 with one_hot: takes ", CROSS_ENTROPY_OUTPUTS,
                                   " with op CROSS_ENTROPY"));
    use_op(CLXENT_OP_ONE_HOT, 0);
    check_refused("outputs is 0: takes at least one of bad_targets, one_hot with op ONE_HOT");
}

Test(desc, outputs_that_contradict_other_fields_are_refused)
{
    CHECK_TOLD(
        { "reduction=none", "outputs is 0x22 with loss and reduction is CLXENT_REDUCTION_NONE: takes MEAN or "
                            "SUM, or losses alone" },
        { "outputs=correct+bad_targets+lse;target_type=probabilities-f32",
          "outputs is 0x484 with correct, bad_targets and target_type is PROBABILITIES_F32: takes an index "
          "type "
          "(I32, I64, U8, U16, U32)" },
        { "outputs=bad_targets+loss;bad_target=ignore",
          "outputs is 0x402 with bad_targets and bad_target is IGNORE: takes CLXENT_BAD_TARGET_REPORT" },
        { "op=one-hot;outputs=one_hot;target_type=probabilities",
          "target_type is PROBABILITIES_LOGITS: takes an index type (I32, I64, U8, U16, U32) with op "
          "ONE_HOT" });
}

/* ---- Shape --------------------------------------------------------------------------------- */

Test(desc, shape_has_its_limits)
{
    CHECK_TOLD({ "classes=2147483648", "classes is 2147483648: takes 1 to 2147483647" },
               { "classes=2147483647", "" }, { "classes=0", "classes is 0: takes 1 to 2147483647" },
               { "inner=0", "inner is 0: takes at least 1" },
               { "inner=4", "inner is 4: takes a divisor of batch * seq, which is 6" }, { "inner=6", "" },
               { "seq=0", "seq is 0: takes at least 1 unless batch, which is 2, is 0" },
               { "batch=0;seq=0", "" }, { "batch=0;seq=7;inner=5", "" }, { "shift=0", "" }, { "shift=3", "" },
               { "shift=4", "shift is 4: takes 0 to seq, which is 3" }, { "shift=4;batch=0", "" },
               { "shift=18446744073709551615", "shift is 18446744073709551615: takes 0 to seq, which is 3" });
}

Test(desc, strides_hold_a_whole_row_or_slab)
{
#define STRIDE(name)                                                                                    \
    { #name "=4", "" }, { #name "=3", #name " is 3: takes 0 or at least classes * inner, which is 4" }, \
        { "inner=2;" #name "=8", "" },                                                                  \
        { "inner=2;" #name "=7", #name " is 7: takes 0 or at least classes * inner, which is 8" }
    CHECK_TOLD(STRIDE(row_stride), STRIDE(gradient_row_stride), STRIDE(probabilities_row_stride),
               STRIDE(target_row_stride));
}

/* SIZE_MAX, the half and the eighth of it. */
#define MOST "18446744073709551615"
#define HALF "9223372036854775807"
#define EIGHTH "2305843009213693951"

Test(desc, sizes_that_overflow_are_refused)
{
    _Static_assert(SIZE_MAX == 18446744073709551615u, "sizes are of 64 bits");
#define TOO_LARGE(batch, seq, classes, stride, tensor)        \
    "batch is " batch ", seq is " seq ", classes is " classes \
    ", inner is 1, features is 0, row stride " stride ": takes at most " MOST " bytes for " tensor
    CHECK_TOLD(
        { "batch=" HALF, "batch is " HALF " and seq is 3: takes a product of at most " MOST },
        /* rows fit, rows * classes * 4 bytes do not */
        { "seq=1;batch=" EIGHTH, TOO_LARGE(EIGHTH, "1", "4", "4", "logits") },
        { "gradient_row_stride=" HALF, TOO_LARGE("2", "3", "4", HALF, "gradient") },
        { "probabilities_row_stride=" HALF, "" }, /* nothing here has this stride */
        { "seq=1;batch=" HALF ";inner=" HALF, "inner is " HALF ": takes classes * inner of at most " MOST },
        /* elements alone may overflow, with a stride that divides SIZE_MAX: the sum would come out as 2 */
        { "outputs=softmax;classes=3;seq=1;batch=6148914691236517206",
          TOO_LARGE("6148914691236517206", "1", "3", "3", "logits") },
        /* the last row ends without its padding: 2^60 - 1 rows of 4 elements and one of 3, 4 bytes each */
        { "seq=1;classes=3;row_stride=4;gradient_row_stride=4;batch=1152921504606846976", "" },
        { "seq=1;classes=3;row_stride=4;gradient_row_stride=4;batch=1152921504606846977",
          TOO_LARGE("1152921504606846977", "1", "3", "4", "logits") },
        { "seq=1;classes=3;row_stride=4;gradient_row_stride=4;batch=1152921504606846976;gradient_padding="
          "zero",
          TOO_LARGE("1152921504606846976", "1", "3", "4", "gradient") });
}

/* ---- Numbers ------------------------------------------------------------------------------- */

Test(desc, numbers_have_their_ranges)
{
#define FRACTION ": takes a number in [0, 1]"
#define OF_F32 ": takes a number in [-3.40282e+38, 3.40282e+38]"
#define SOFTCAP_OF_F32 ": takes 0 (off) or a number in [1.17549e-38, 3.40282e+38]"
    CHECK_TOLD({ "label_smoothing=1.5", "label_smoothing is 1.5" FRACTION },
               { "label_smoothing=-0.25", "label_smoothing is -0.25" FRACTION },
               { "z_loss=-1", "z_loss is -1: takes a number in [0, 3.40282e+38]" },
               { "logit_scale=1e300", "logit_scale is 1e+300" OF_F32 },
               { "softcap=-2", "softcap is -2" SOFTCAP_OF_F32 },
               { "softcap=1e-60", "softcap is 1e-60" SOFTCAP_OF_F32 },
               { "label_smoothing=1;z_loss=0x1.fffffep127;logit_scale=0;softcap=0x1p-126", "" },
               { "label_smoothing=0;z_loss=0;logit_scale=-0x1.fffffep127;softcap=0", "" },
               { "dtype=f64;logit_scale=-1e300;softcap=1e-60;z_loss=1e300", "" },
               { "dtype=f64;softcap=4.9406564584124654e-324",
                 "softcap is 4.94066e-324: takes 0 (off) or a number in [2.22507e-308, 1.79769e+308]" });
    REFUSED(z_loss, INFINITY, "z_loss is inf: takes a number in [0, 3.40282e+38]");
    REFUSED(logit_scale, -INFINITY, "logit_scale is -inf" OF_F32);
    REFUSED(softcap, INFINITY, "softcap is inf" SOFTCAP_OF_F32);
    double *const fields[] = { &desc.label_smoothing, &desc.z_loss, &desc.logit_scale, &desc.softcap };
    for (size_t i = 0; i < 4; i++) { /* the sign of a NaN is not ours to say */
        static const char *const names[] = { "label_smoothing is ", "z_loss is ", "logit_scale is ",
                                             "softcap is " };
        *fields[i] = NAN;
        cr_assert_eq(clxent_desc_check(&desc, text, TEXT), CLXENT_ERROR_INVALID_DESC, "%s", names[i]);
        cr_assert_eq(strncmp(text, names[i], strlen(names[i])), 0, "%s", text);
        reset();
    }
}

/* ---- Options of other operations ----------------------------------------------------------- */

Test(desc, options_that_an_operation_would_pass_over_are_refused)
{
    static const struct {
        uint32_t op, outputs;
        const char *op_name;
    } ops[] = {
        { CLXENT_OP_SOFTMAX_BACKWARD, CLXENT_OUTPUT_GRADIENT, "SOFTMAX_BACKWARD" },
        { CLXENT_OP_ONE_HOT, CLXENT_OUTPUT_ONE_HOT, "ONE_HOT" },
        { CLXENT_OP_PROBABILITY_LOSS, CLXENT_OUTPUT_LOSSES, "PROBABILITY_LOSS" },
        { CLXENT_OP_SOFTMAX_GRADIENT, CLXENT_OUTPUT_GRADIENT, "SOFTMAX_GRADIENT" },
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
#define OTHER_REAL 0.5
#define OTHER_FLAG 1
#define OTHER_SIZE 1
#define OTHER_I64 1
#define ACTS_ANY(name, initial, other)
#define ACTS_LOGITS(name, initial, other)                                                                \
    use_op(ops[i].op, ops[i].outputs);                                                                   \
    check_accepted();                                                                                    \
    desc.name = other;                                                                                   \
    check_refused("%s is %g: takes %d with op %s, which does not use it", #name, (double)other, initial, \
                  ops[i].op_name);
#define ACTS_LOSS ACTS_LOGITS
#define ACTS_GRADIENT ACTS_LOGITS
#define ACTS_ROWS ACTS_LOGITS
#define ACTS_LINEAR ACTS_LOGITS
#define OPTION(name, kind, initial, acts, constant, ...) ACTS_##acts(name, initial, OTHER_##kind)
#include "options.def"
    }
}

Test(desc, gradient_fields_need_an_operation_with_a_gradient)
{
#define GRADIENT_OF(op) "op=" op ";outputs=gradient;"
    CHECK_TOLD({ "op=one-hot;outputs=one_hot;gradient_mode=accumulate",
                 "gradient_mode is ACCUMULATE: takes CLXENT_GRADIENT_WRITE with op ONE_HOT, which has no "
                 "such output" },
               { "op=probability-loss;gradient_dtype=f32;outputs=loss",
                 "gradient_dtype is 1: takes 0 with op PROBABILITY_LOSS, which has no such output" },
               { GRADIENT_OF("softmax-backward") "gradient_mode=accumulate;gradient_dtype=f16", "" },
               { GRADIENT_OF("softmax-backward") "gradient_padding=zero", "" },
               { GRADIENT_OF("softmax-gradient") "gradient_padding=zero", "" });
}

Test(desc, zero_padding_needs_a_gradient_that_is_written)
{
#define KEEP "gradient_padding is ZERO: takes CLXENT_GRADIENT_PADDING_KEEP with "
    CHECK_TOLD(
        { "gradient_padding=zero", "" },
        { "gradient_padding=zero;gradient_mode=accumulate",
          KEEP "gradient_mode ACCUMULATE, which adds to what is there" },
        { "gradient_padding=zero;outputs=loss", KEEP "outputs 0x2, which have no gradient" },
        { "gradient_padding=zero;op=one-hot;outputs=one_hot", KEEP "outputs 0x800, which have no gradient" });
}

Test(desc, gradients_of_entropy_and_lse_need_a_gradient_or_statistics)
{
#define NEITHER ": takes 0 with outputs 0x102, which have neither gradient nor statistics"
    CHECK_TOLD({ "outputs=loss+entropy;has_grad_entropy=1", "has_grad_entropy is 1" NEITHER },
               { "outputs=loss+entropy;has_grad_lse=1", "has_grad_lse is 1" NEITHER },
               { "outputs=loss+entropy+gradient;has_grad_entropy=1;has_grad_lse=1", "" },
               { "outputs=losses+statistics;has_grad_entropy=1;has_grad_lse=1", "" },
               { GRADIENT_OF("softmax-gradient") "has_grad_lse=1",
                 "has_grad_lse is 1: takes 0 with op SOFTMAX_GRADIENT, which does not use it" });
}

Test(desc, ignore_index_of_probability_targets_is_refused)
{
#define NO_INDEX(index, type)                                                                           \
    "ignore_index is " index " and target_type is PROBABILITIES_" type ": takes a negative number, or " \
    "use_ignore_index 0, as probability targets have no index (row weights of 0 mask rows)"
    CHECK_TOLD(
        { "target_type=probabilities-f32;ignore_index=0", NO_INDEX("0", "F32") },
        { "target_type=probabilities;ignore_index=1", NO_INDEX("1", "LOGITS") },
        { "op=probability-loss;outputs=loss;target_type=probabilities-f32;ignore_index=2",
          NO_INDEX("2", "F32") },
        { GRADIENT_OF("softmax-gradient") "target_type=probabilities;ignore_index=3",
          NO_INDEX("3", "LOGITS") },
        { "target_type=probabilities-f32", "" },
        { "target_type=probabilities-f32;ignore_index=3;use_ignore_index=0", "" },
        { "target_type=probabilities-f32;ignore_index=3;outputs=softmax", "" }, /* nothing uses targets */
        { "ignore_index=3", "" });
}

/* ---- Sizes of tensors ---------------------------------------------------------------------- */

/* By the shapes that tools/check/ has of its own, of a run of all outputs and of each alone. */
Test(desc, tensors_of_drawn_cases_have_the_sizes_that_runs_take)
{
    for (uint64_t i = 0; i < 2000; i++) {
        verify_case c;
        case_draw(&c, 3, i, (size_t)1 << 20);
        /* there, logits have what a gradient in their place must have */
        const bool longer_logits = c.desc.gradient_padding == CLXENT_GRADIENT_PADDING_ZERO;
        for (int t = longer_logits ? TENSOR_LOGITS + 1 : 0; t < TENSORS; t++) {
            clxent_need need;
            const clxent_status status = clxent_tensor_need(&c.desc, c.desc.outputs, false, rows_of(&c.desc),
                                                            (clxent_tensor)t, &need, text, TEXT);
            cr_assert(status == CLXENT_OK && need.bytes == tensor_bytes(&c.desc, t), "case %d, %s: %zu %s",
                      (int)i, tensor_names[t], need.bytes, text);
            for (uint32_t output = 1; output < 1u << OUTPUTS; output <<= 1) {
                if ((c.desc.outputs & output) == 0) continue;
                clxent_tensor_need(&c.desc, output, false, rows_of(&c.desc), (clxent_tensor)t, &need, NULL,
                                   0);
                cr_assert_eq(need.use != CLXENT_UNUSED, takes(&c.desc, output, t), "case %d, output 0x%x, %s",
                             (int)i, (unsigned)output, tensor_names[t]);
            }
        }
    }
}

/* Of reset()'s desc with these fields besides: what an element and a row of the tensor take, and its shape in words. */
Test(desc, tensors_have_shapes_in_words)
{
#define NEED(fields, tensor, use, ...)                            \
    {                                                             \
        fields, CLXENT_TENSOR_##tensor, CLXENT_##use, __VA_ARGS__ \
    }
#define MATRIX "[rows 6, classes 4] f32, row stride 6"
    static const struct {
        const char *fields;
        clxent_tensor tensor;
        clxent_use use;
        size_t element_size, row_bytes;
        const char *shape;
    } cases[] = {
        NEED("dtype=f16", LOGITS, REQUIRED, 2, 8, "[rows 6, classes 4] f16, row stride 4"),
        NEED("target_type=i32", TARGETS, REQUIRED, 4, 4, "[rows 6] i32"),
        NEED("target_type=u8", TARGETS, REQUIRED, 1, 1, "[rows 6] u8"),
        NEED("target_type=probabilities-f32;dtype=f64;target_row_stride=5", TARGETS, REQUIRED, 4, 20,
             "[rows 6, classes 4] f32, row stride 5"),
        NEED("target_type=probabilities;dtype=f64;target_row_stride=5", TARGETS, REQUIRED, 8, 40,
             "[rows 6, classes 4] f64, row stride 5"),
        NEED("has_class_weights=1", CLASS_WEIGHTS, REQUIRED, 4, 0, "[classes 4] f32"),
        NEED("has_row_weights=1;dtype=bf16", ROW_WEIGHTS, REQUIRED, 4, 4, "[rows 6] f32"),
        NEED("reduction=mean", GRAD_OUTPUT, OPTIONAL, 4, 0, "[1] f32"),
        NEED("dtype=f64;reduction=none;outputs=losses+gradient", GRAD_OUTPUT, OPTIONAL, 8, 8, "[rows 6] f64"),
        NEED("reduction=mean", DENOMINATOR, OPTIONAL, 4, 0, "[1] f32"),
        NEED("outputs=losses", LOSSES, REQUIRED, 4, 4, "[rows 6] f32"),
        NEED("dtype=f64", LOSS, REQUIRED, 8, 0, "[1] f64"),
        NEED("dtype=f16;gradient_dtype=f32", GRADIENT, REQUIRED, 4, 16,
             "[rows 6, classes 4] f32, row stride 4"),
        NEED("outputs=softmax;dtype=f16", SOFTMAX, REQUIRED, 2, 8, "[rows 6, classes 4] f16, row stride 4"),
        NEED("outputs=argmax", ARGMAX, REQUIRED, 8, 8, "[rows 6] i64"),
        NEED("outputs=correct", CORRECT, REQUIRED, 8, 0, "[1] u64"),
        NEED("outputs=statistics", STATISTICS, REQUIRED, 4, 8, "[rows 6, 2] f32"),
        NEED("outputs=bad_targets", BAD_TARGETS, OPTIONAL, 24, 0, "[1] clxent_bad_targets"),
        NEED("reduction=mean", ONE_HOT, UNUSED, 0, 0, ""),
        NEED("batch=0;gradient_row_stride=9;gradient_padding=zero", GRADIENT, REQUIRED, 4, 36,
             "[rows 0, classes 4] f32, row stride 9, padding too"),
        NEED("inner=3;row_stride=20", LOGITS, REQUIRED, 4, 80, "[2, classes 4, inner 3] f32, row stride 20"),
        NEED("inner=3;gradient_padding=zero", GRADIENT, REQUIRED, 4, 48,
             "[2, classes 4, inner 3] f32, row stride 12, padding too"),
        NEED(GRADIENT_OF("softmax-backward") "probabilities_row_stride=6", PROBABILITIES, REQUIRED, 4, 24,
             MATRIX),
        NEED(GRADIENT_OF("softmax-backward") "probabilities_row_stride=6", GRAD_OUTPUT, REQUIRED, 4, 24,
             MATRIX),
        NEED(GRADIENT_OF("softmax-gradient") "probabilities_row_stride=6", GRAD_OUTPUT, OPTIONAL, 4, 0,
             "[1] f32"),
        NEED("op=one-hot;outputs=one_hot;probabilities_row_stride=6", ONE_HOT, REQUIRED, 4, 24, MATRIX),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char fields[CASE_TEXT_SIZE];
        clxent_need need;
        verify_case c;
        problem_fault f;
        (void)snprintf(fields, sizeof fields, "outputs=loss+gradient;batch=2;seq=3;classes=4;%s",
                       cases[i].fields);
        cr_assert(case_read(&c, fields, &f), "%s: %s", fields, f.text);
        clxent_tensor_need(&c.desc, c.desc.outputs, false, rows_of(&c.desc), cases[i].tensor, &need, NULL, 0);
        cr_assert(need.use == cases[i].use && need.element_size == cases[i].element_size &&
                      need.row_bytes == cases[i].row_bytes,
                  "case %zu: use %d, %zu, %zu", i, (int)need.use, need.element_size, need.row_bytes);
        cr_assert_str_eq(need.shape, cases[i].shape);
    }
    cr_assert_str_eq(clxent_tensor_name(CLXENT_TENSOR_BAD_TARGETS), "bad_targets");
    cr_assert_str_eq(clxent_tensor_name(CLXENT_TENSORS), "unknown");
}

Test(desc, dtypes_have_sizes_and_names)
{
    desc.dtype = CLXENT_F64;
    cr_assert_eq(clxent_acc_size(&desc), 8);
    desc.dtype = CLXENT_BF16;
    cr_assert_eq(clxent_acc_size(&desc), 4);
    cr_assert(clxent_dtype_size(CLXENT_BF16) == 2 && clxent_dtype_size(0) == 0 && clxent_dtype_size(99) == 0);
    cr_assert_str_eq(clxent_dtype_name(CLXENT_BF16), "bf16");
    cr_assert_str_eq(clxent_dtype_name(99), "unknown");
}

/* A gradient run from saved statistics has them as an input. */
Test(desc, statistics_are_needed_where_a_run_begins_from_them)
{
    clxent_need need;
    desc.outputs = CROSS_ENTROPY_OUTPUTS;
    cr_assert(!clxent_needs_targets(&desc, CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_ARGMAX));
    cr_assert(clxent_needs_targets(&desc, CLXENT_OUTPUT_STATISTICS));
    clxent_tensor_need(&desc, CLXENT_OUTPUT_GRADIENT, true, 6, CLXENT_TENSOR_STATISTICS, &need, NULL, 0);
    cr_assert(need.use == CLXENT_REQUIRED && need.bytes == 48);
}

Test(desc, size_mul_tells_overflow)
{
    size_t product = 1;
    cr_assert(clxent_size_mul(SIZE_MAX, 1, &product) && product == SIZE_MAX);
    cr_assert(clxent_size_mul(0, SIZE_MAX, &product) && product == 0);
    cr_assert(clxent_size_mul(SIZE_MAX, 0, &product) && product == 0);
    cr_assert(!clxent_size_mul(SIZE_MAX / 2 + 1, 2, &product));
    cr_assert(!clxent_size_mul(2, SIZE_MAX / 2 + 1, &product));
    cr_assert(clxent_size_mul(SIZE_MAX / 2, 2, &product) && product == SIZE_MAX - 1);
}
