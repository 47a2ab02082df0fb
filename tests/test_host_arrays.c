/* SPDX-License-Identifier: MIT
 *
 * test_host_arrays.c - the blocking call: right against the reference, the same bits however the rows are cut,
 * with and without copies, errors that name what was wrong and leave every output as it was.
 *
 * Includes internal.h to make the device one with memory of its own: then arrays are copied, in overlap.
 */
#include "internal.h"
#include "support.h"
#include "verify_case.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

TestSuite(host_arrays, .init = open_device, .fini = close_device);

/* ---- Chunks -------------------------------------------------------------------------------- */

/* More than one partial sum of the loss; parts of 41 rows, which divide nothing. */
static size_t many_rows(void)
{
    const clxent_desc desc = make_desc(CLXENT_OUTPUT_LOSS, CLXENT_F32, 1, 1, 3);
    return (small_run() ? 0 : 1) * clxent_span_unit(&desc) + 37;
}

#define MOST "outputs=losses+loss+gradient+lse+argmax+statistics"
#define ALL MOST "+correct"
#define EVERYTHING ALL "+softmax+log_softmax+entropy" /* the program of all outputs that tests share */

/* A case of fewer than 37 rows is repeated until it has about many_rows(). */
static const case_line cases[] = {
    { "plain", ALL ";classes=19;fill=designed+ignored+hit" },
    { "lanes, groups, split rows",
      ALL ";batch=37;classes=3|19|1100;fill=designed+ignored+hit;small:classes=3|19" },
    { "weights", ALL ";classes=7;has_class_weights=1;has_row_weights=1;z_loss=0.25;reduction=mean|mean|sum;"
                     "fill=ignored+grad-output|ignored+denominator|ignored" },
    { "no reduction", ALL ";classes=5;reduction=none;fill=grad-output" },
    { "in place", ALL ";classes=6;fill=ignored;checks=in-place;row_stride=0|9;gradient_row_stride=0|9" },
    { "padded",
      EVERYTHING ";classes=5;row_stride=8;gradient_row_stride=7;probabilities_row_stride=11;fill=designed" },
    { "zero padding", ALL
      ";classes=6;row_stride=9;gradient_row_stride=9;gradient_padding=zero;fill=ignored;checks=|in-place" },
    { "zero padding of slabs",
      ALL "+softmax;classes=4;batch=24;inner=24;gradient_row_stride=97;gradient_padding=zero;fill=ignored" },
    { "accumulated", ALL ";classes=5;gradient_mode=accumulate;gradient_row_stride=6;fill=ignored" },
    /* the last is longer than a partial sum, here and below */
    { "sequences", ALL ";classes=4;batch=1|1|3;seq=10|7|5003;shift=1|3|3;fill=ignored;small:seq=10|7|43" },
    { "slabs",
      ALL "+softmax;classes=4;batch=4;seq=6;inner=24;row_stride=0|101|101;gradient_row_stride=0|97|97;"
          "shift=0|0|2;fill=designed|designed|ignored" },
    { "long slabs", ALL ";classes=4;batch=3;seq=5003;inner=5003;fill=designed;small:seq=43;small:inner=43" },
    { "probabilities",
      MOST ";classes=6;target_type=probabilities-f32;has_row_weights=1;target_row_stride=7;seq=1|11;"
           "shift=0|1;all:label_smoothing=0.125" },
    { "16 bits", EVERYTHING ";classes=5;dtype=f16|bf16;fill=designed;all:target_type=u8" },
    { "f64", EVERYTHING "+bad_targets;classes=5;dtype=f64;fill=designed" },
    { "softmax", "outputs=softmax;classes=5;fill=designed" },
    { "one-hot", "op=one-hot;outputs=one_hot;classes=5;fill=ignored" },
    { "probability loss", "op=probability-loss;outputs=loss+losses;classes=5" },
    { "gradients of probabilities", "op=softmax-gradient|softmax-backward;outputs=gradient;classes=5" },
    { "bad targets", ALL ";classes=5;bad_target=ignore|nan;fill=bad-targets+ignored" },
    /* refused, with a record and nothing else written */
    { "bad targets reported", EVERYTHING "+bad_targets;classes=5;target_type=i64|i32;seq=1|10;shift=0|2;"
                                         "fill=bad-targets+ignored|bad-targets+all-ignored;cases=4" },
    { "narrow bad targets reported",
      "outputs=" ONE_PASS_NAMES ";classes=5;target_type=u8;fill=bad-targets+ignored" },
    { "bad targets of one-hot", "op=one-hot;outputs=one_hot;classes=5;fill=bad-targets+ignored" },
};

/* In one chunk and in about 100 and 3, without copies and with them. */
static void check_chunks(const char *name, const verify_case *given)
{
    static const size_t chunks[] = { 1, 100, 3 };
    verify_case c = *given;
    const size_t rows = c.desc.batch * c.desc.seq;

    if (rows < 37) c.desc.batch *= many_rows() / rows;
    for (size_t i = 0; i < 2 * COUNT(chunks); i++) {
        const size_t count = chunks[i / 2];
        if (small_run() && count == 3) break;
        c.chunk_bytes = count == 1 ? 0 : c.desc.batch * c.desc.seq * c.desc.classes * sizeof(float) / count;
        c.checks = given->checks | CASE_HOST_ARRAYS | (i < 2 ? 0 : CASE_ALIGNED);
        device.ctx->device.host_memory = i % 2 == 0;
        run_verify_case(name, &c);
    }
}

Test(host_arrays, chunks_give_the_bits_of_one_run) { each_case(cases, COUNT(cases), check_chunks); }

static void expect_ok(const clxent_desc *desc, const clxent_host_args *args, size_t number)
{
    cr_assert(clxent_run_host(device.ctx, desc, args) == CLXENT_OK, "%zu: %s", number, last_error());
}

/* ---- Linear cross-entropy -------------------------------------------------------------------- */

#define LINEAR \
    "op=linear-cross-entropy;outputs=losses+loss+lse+argmax+correct+hidden_gradient+weight_gradient"
#define LINEAR_ROWS "op=linear-cross-entropy;outputs=losses+loss+lse+hidden_gradient+weight_gradient"
#define LINEAR_BIAS LINEAR "+bias_gradient;has_bias=1"
#define SIZES ";classes=19;features=13"
#define LINEAR_PADDED \
    ";hidden_row_stride=17;weight_row_stride=15;hidden_gradient_row_stride=14;weight_gradient_row_stride=16"
#define LINEAR_ACCUMULATED \
    ";hidden_gradient_mode=accumulate;weight_gradient_mode=accumulate;bias_gradient_mode=accumulate"

static const case_line linear_cases[] = {
    { "linear", LINEAR SIZES ";fill=ignored" },
    { "linear, bias, padded", LINEAR_BIAS SIZES ";fill=ignored" LINEAR_PADDED },
    { "linear, bias, padded, accumulated",
      LINEAR_BIAS SIZES ";fill=ignored" LINEAR_PADDED LINEAR_ACCUMULATED },
    { "linear, weighted sum", LINEAR_BIAS
      ";classes=7;features=5;has_class_weights=1;has_row_weights=1;z_loss=0.25;reduction=sum;fill=ignored" },
    { "linear, a denominator", LINEAR SIZES ";fill=ignored+denominator+grad-output" },
    { "linear, no reduction", LINEAR_ROWS SIZES ";reduction=none;fill=grad-output" },
    { "linear, nothing of the targets", "op=linear-cross-entropy;outputs=lse+argmax" SIZES },
    { "linear, weight alone, no record of bad targets",
      "op=linear-cross-entropy;outputs=weight_gradient;bad_target=nan" SIZES },
    { "linear, shifted", LINEAR SIZES ";seq=10;shift=3;fill=ignored" },
    { "linear, probabilities",
      LINEAR_ROWS SIZES ";target_type=probabilities-f32;target_row_stride=20;seq=1|11;shift=0|1" },
    { "linear, f16", LINEAR_BIAS SIZES ";dtype=f16;fill=ignored" LINEAR_ACCUMULATED },
    { "linear, bf16", LINEAR_BIAS SIZES
      ";dtype=bf16;hidden_gradient_dtype=f32;bias_gradient_dtype=f32;fill=ignored" LINEAR_PADDED },
    { "linear, f64", LINEAR SIZES ";dtype=f64" },
    { "linear, upstreams", "op=linear-cross-entropy;outputs=loss+entropy+hidden_gradient+weight_gradient;"
                           "has_grad_entropy=1;has_grad_lse=1;fill=ignored" SIZES },
    { "linear, bad targets", LINEAR SIZES ";bad_target=nan|ignore;fill=bad-targets+ignored" },
    { "linear, bad targets reported",
      LINEAR SIZES ";seq=1|10;shift=0|2;reduction=mean|sum;fill=bad-targets+ignored" },
    { "linear, little workspace", LINEAR_BIAS SIZES ";workspace_limit=4000;fill=ignored" },
};

Test(host_arrays, linear_chunks_give_the_bits_of_one_run)
{
    for (size_t i = 0; i < COUNT(linear_cases); i += small_run() ? 3 : 1)
        each_case(&linear_cases[i], 1, check_chunks);
}

Test(host_arrays, linear_without_rows)
{
    for (int copy = 0; copy < 2; copy++) {
        const clxent_desc desc = desc_of("op=linear-cross-entropy;outputs=loss+hidden_gradient+weight_"
                                         "gradient+bias_gradient;batch=0;seq=5;"
                                         "classes=3;features=2;has_bias=1;bias_gradient_mode=accumulate");
        const float weight[6] = { 1, 2, 3, 4, 5, 6 }, bias[3] = { 0, 0, 0 };
        float loss = -1, weight_gradient[6] = { 7, 7, 7, 7, 7, 7 }, bias_gradient[3] = { 7, 7, 7 };
        clxent_host_args args = CLXENT_HOST_ARGS_INIT;

        device.ctx->device.host_memory = !copy;
        args.weight = (clxent_input){ weight, sizeof weight };
        args.bias = (clxent_input){ bias, sizeof bias };
        args.loss = (clxent_output){ &loss, sizeof loss };
        args.weight_gradient = (clxent_output){ weight_gradient, sizeof weight_gradient };
        args.bias_gradient = (clxent_output){ bias_gradient, sizeof bias_gradient };
        expect_ok(&desc, &args, (size_t)copy);
        cr_assert(isnan(loss), "%g", loss);
        for (size_t i = 0; i < 6; i++) cr_assert(weight_gradient[i] == 0, "%g", weight_gradient[i]);
        for (size_t i = 0; i < 3; i++) cr_assert(bias_gradient[i] == 7, "%g", bias_gradient[i]);
    }
}

/* ---- Edges --------------------------------------------------------------------------------- */

static clxent_desc host_desc(size_t rows, size_t classes)
{
    clxent_desc desc = desc_of(ALL);
    desc.batch = rows;
    desc.classes = classes;
    return desc;
}

Test(host_arrays, no_rows_need_no_arrays)
{
    for (int copy = 0; copy < 2; copy++) {
        clxent_desc desc = host_desc(0, 5);
        clxent_host_args args = CLXENT_HOST_ARGS_INIT;
        float loss = -1;
        uint64_t correct = 9;
        clxent_bad_targets bad = { 9, 9, 9 };

        desc.outputs |= CLXENT_OUTPUT_BAD_TARGETS;
        device.ctx->device.host_memory = !copy;
        args.loss = (clxent_output){ &loss, sizeof loss };
        args.correct = (clxent_output){ &correct, sizeof correct };
        args.bad_targets = (clxent_output){ &bad, sizeof bad };
        expect_ok(&desc, &args, 0);
        cr_assert(isnan(loss) && correct == 0, "loss %g, correct %llu", loss, (unsigned long long)correct);
        cr_assert(bad.count == 0 && bad.first_row == 0 && bad.value == 0);
        desc.reduction = CLXENT_REDUCTION_SUM;
        expect_ok(&desc, &args, 1);
        cr_assert(loss == 0, "the sum of no rows is %g", loss);
    }
}

/* No size of a batch without rows divides, overflows or is allocated; nor does a stride from one row to none. */
Test(host_arrays, sizes_without_rows_mean_nothing)
{
    static const struct {
        size_t batch, seq, shift, inner, stride;
    } shapes[] = { { 0, 0, 1, 1, 0 },
                   { 0, 0, SIZE_MAX, 3, 0 },
                   { 0, SIZE_MAX, SIZE_MAX, 1, 0 },
                   { 0, 5, 6, SIZE_MAX / 4 / 8, 0 },
                   { 0, 1, 0, 1, SIZE_MAX / 8 },
                   { 0, 1, 0, 1, (size_t)1 << 50 },
                   { 1, 1, 0, 1, (size_t)1 << 50 },
                   { 1, 1, 0, 1, SIZE_MAX / 8 },
                   { 1, 2, 0, 2, SIZE_MAX / 8 },
                   { 1, 2, 1, 2, SIZE_MAX / 8 } };

    for (size_t i = 0; i < 2 * COUNT(shapes); i++) {
        const float logits[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
        const int64_t targets[2] = { 1, 1 };
        clxent_desc desc = make_desc(CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS, CLXENT_F32,
                                     shapes[i / 2].batch, shapes[i / 2].seq, 4);
        clxent_host_args args = CLXENT_HOST_ARGS_INIT;
        float loss = -1, losses[2] = { -1, -1 };

        desc.shift = shapes[i / 2].shift;
        desc.inner = shapes[i / 2].inner;
        desc.row_stride = shapes[i / 2].stride;
        args.logits = (clxent_input){ logits, sizeof logits };
        args.targets = (clxent_input){ targets, sizeof targets };
        args.losses = (clxent_output){ losses, sizeof losses };
        args.loss = (clxent_output){ &loss, sizeof loss };
        device.ctx->device.host_memory = i % 2 == 0;
        expect_ok(&desc, &args, i / 2);
        cr_assert(desc.batch == 0 ? isnan(loss) : fabsf(loss - logf(4)) < 1e-6f, "%zu: %g", i / 2, loss);
        cr_assert(desc.batch == 0 ? losses[0] == -1 : losses[0] == loss, "%zu: %g", i / 2, losses[0]);
    }
}

/* What a device with a largest buffer of 256 MiB must cut. All logits are 0, in pages that nobody wrote. */
Test(host_arrays, large_arrays_on_a_device_with_small_buffers)
{
    static const struct {
        size_t batch, seq, classes, inner, shift;
    } shapes[] = { { 2048, 1, 50257, 1, 0 },
                   { 600, 1, 131072, 1, 0 },
                   { 16 * 513, 513, 21, 513 * 513, 0 },
                   { 16, 1023, 5000, 1, 1 } };

    if (small_run()) cr_skip("an interpreter takes too long for 10^8 logits");
    device.ctx->device.max_allocation = (cl_ulong)256 << 20;
    device.ctx->device.global_memory = (cl_ulong)1 << 30;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        const size_t rows = shapes[i].batch * shapes[i].seq;
        clxent_desc desc =
            make_desc(CLXENT_OUTPUT_LOSS, CLXENT_F32, shapes[i].batch, shapes[i].seq, shapes[i].classes);
        clxent_host_args args = CLXENT_HOST_ARGS_INIT;
        float loss = -1;

        desc.inner = shapes[i].inner;
        desc.shift = shapes[i].shift;
        args.logits.size = rows * desc.classes * sizeof(float);
        args.targets.size = rows * sizeof(int64_t);
        args.logits.data = calloc(args.logits.size, 1);
        args.targets.data = calloc(args.targets.size, 1);
        args.loss = (clxent_output){ &loss, sizeof loss };
        if (args.logits.data == NULL || args.targets.data == NULL) cr_skip("no memory");
        expect_ok(&desc, &args, i);
        cr_assert(fabs(loss - log((double)desc.classes)) <= 2e-6, "%zu: %.9g", i, loss);
        free((void *)args.logits.data);
        free((void *)args.targets.data);
    }
}

/* ---- Errors -------------------------------------------------------------------------------- */

enum { CANARY = 64 };

/* A problem and output arrays of its own, each with canaries, 0xFE all over. */
typedef struct fixture {
    problem p;
    unsigned char *memory[CLXENT_TENSORS];
    size_t size[CLXENT_TENSORS];
    clxent_host_args args;
} fixture;

static void open_fixture(fixture *x, const clxent_desc *desc, uint32_t fill)
{
    memset(x, 0, sizeof *x);
    make_problem(&x->p, desc, fill, 3);
    x->args = x->p.args;
    for (int t = CLXENT_TENSOR_LOSSES; t < CLXENT_TENSORS; t++) {
        x->size[t] = (desc->outputs >> (t - CLXENT_TENSOR_LOSSES) & 1u) != 0 ? tensor_bytes(desc, t) : 0;
        if (x->size[t] == 0) continue;
        x->memory[t] = take_memory(x->size[t] + 2 * CANARY);
        memset(x->memory[t], 0xFE, x->size[t] + 2 * CANARY);
        *array_of(&x->args, t) = (clxent_output){ x->memory[t] + CANARY, x->size[t] };
    }
}

static void close_fixture(fixture *x)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) free(x->memory[t]);
    free_problem(&x->p);
}

/* The status, each of words in the text, and nothing written, but perhaps bad_targets. */
static void expect_error(const char *name, const fixture *x, clxent_status want, const char *const *words)
{
    const clxent_status status = clxent_run_host(device.ctx, &x->p.desc, &x->args);
    cr_assert(status == want, "%s: got %s: %s", name, clxent_status_string(status), last_error());
    check_words(name, words);
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (x->memory[t] == NULL || t == CLXENT_TENSOR_BAD_TARGETS) continue;
        for (size_t i = 0; i < x->size[t] + 2 * CANARY; i++) {
            cr_assert(x->memory[t][i] == 0xFE, "%s: %s was written", name,
                      clxent_tensor_name((clxent_tensor)t));
        }
    }
}

Test(host_arrays, null_arguments)
{
    const clxent_desc desc = host_desc(3, 4);
    clxent_host_args args = CLXENT_HOST_ARGS_INIT;
    cr_assert(clxent_run_host(NULL, &desc, &args) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(clxent_run_host(device.ctx, NULL, &args) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(strstr(last_error(), "desc") != NULL, "%s", last_error());
    cr_assert(clxent_run_host(device.ctx, &desc, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(strstr(last_error(), "args") != NULL, "%s", last_error());
}

/* Of all that are given but grad_output and denominator. */
static void check_each_array(fixture *x)
{
    char size[32];

    for (int t = 0; t < CLXENT_TENSORS; t++) {
        const char *name = clxent_tensor_name((clxent_tensor)t);
        clxent_output *field = array_of(&x->args, t);
        const clxent_output whole = *field;
        if (whole.data == NULL) continue;
        field->size--;
        snprintf(size, sizeof size, "= %zu bytes, got %zu", whole.size, field->size);
        expect_error(name, x, CLXENT_ERROR_BUFFER_TOO_SMALL, WORDS(name, "[", size));
        field->size = whole.size;
        if (t != CLXENT_TENSOR_GRAD_OUTPUT && t != CLXENT_TENSOR_DENOMINATOR) {
            field->data = NULL;
            snprintf(size, sizeof size, "%zu bytes", whole.size);
            expect_error(name, x, CLXENT_ERROR_NULL_ARGUMENT, WORDS(name, size));
        }
        *field = whole;
    }
}

Test(host_arrays, each_array_must_be_there_and_large_enough)
{
    const clxent_desc descs[] = { desc_of(ALL ";batch=3;classes=4;has_class_weights=1;has_row_weights=1"),
                                  desc_of(LINEAR_BIAS SIZES ";batch=3") };
    for (size_t i = 0; i < COUNT(descs); i++) {
        fixture x;
        open_fixture(&x, &descs[i], FILL_GRAD_OUTPUT | FILL_DENOMINATOR);
        check_each_array(&x);
        close_fixture(&x);
    }
}

Test(host_arrays, wrong_descriptions_and_arguments)
{
    const clxent_desc desc = host_desc(3, 4);
    fixture x;

    open_fixture(&x, &desc, FILL_PLAIN);
    x.p.desc.classes = 0;
    expect_error("classes", &x, CLXENT_ERROR_INVALID_DESC, WORDS("classes is 0"));
    x.p.desc.classes = 4;
    x.p.desc.struct_size = 0;
    expect_error("struct_size", &x, CLXENT_ERROR_INVALID_DESC, WORDS("struct_size"));
    x.p.desc = desc;
    x.args.struct_size = sizeof x.args + 1;
    expect_error("struct_size", &x, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("struct_size"));
    x.args.struct_size =
        offsetof(clxent_host_args, gradient) + sizeof(void *); /* an array without its size */
    expect_error("struct_size", &x, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("args.struct_size is", "CLXENT_HOST_ARGS_INIT"));
    x.args.struct_size = sizeof x.args;

    const clxent_host_args good = x.args;
    x.args.losses.data = (char *)x.args.gradient.data + 4;
    expect_error("overlap", &x, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("losses", "gradient", "takes memory of its own"));
    x.args = good;
    x.args.logits.data = (char *)x.args.gradient.data + 16;
    expect_error("half in place", &x, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("gradient", "logits"));
    x.args.logits.data = x.args.gradient.data;
    x.p.desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    expect_error("in place", &x, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("gradient is logits itself", "takes", "ACCUMULATE"));
    x.p.desc = desc;
    x.p.desc.gradient_dtype = CLXENT_F16;
    expect_error("in place", &x, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("gradient", "f16", "f32"));
    close_fixture(&x);
}

Test(host_arrays, a_chunk_that_cannot_be_small_enough)
{
    const clxent_desc desc = host_desc(many_rows(), 4);
    fixture x;

    open_fixture(&x, &desc, FILL_PLAIN);
    x.args.max_chunk_bytes = 15;
    expect_error("limit", &x, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("max_chunk_bytes is 15", "at least 16", "one row", "logits"));
    x.p.desc.inner = many_rows();
    x.args.max_chunk_bytes = 16 * many_rows() - 1;
    expect_error("a slab", &x, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("max_chunk_bytes", "one slab"));
    x.p.desc.inner = 1;
    x.p.desc.seq = many_rows();
    x.p.desc.batch = x.p.desc.shift = 1;
    expect_error("a sequence", &x, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("max_chunk_bytes", "one sequence"));
    close_fixture(&x);
}

Test(host_arrays, a_device_that_has_no_room_for_one_row_or_no_f64)
{
    clxent_desc desc = host_desc(5, 1000);
    const clxent_device real = device.ctx->device;
    fixture x;

    desc.outputs |= CLXENT_OUTPUT_SOFTMAX;
    open_fixture(&x, &desc, FILL_PLAIN);
    device.ctx->device.max_allocation = 3999;
    expect_error("buffer", &x, CLXENT_ERROR_UNSUPPORTED,
                 WORDS("logits: one row takes 4000 bytes", "the device takes 3999"));
    device.ctx->device.max_allocation = 30;
    expect_error("rows", &x, CLXENT_ERROR_UNSUPPORTED, WORDS("the device takes 30"));
    device.ctx->device = real;
    device.ctx->device.host_memory = false;
    device.ctx->device.global_memory = 11999;
    expect_error("memory", &x, CLXENT_ERROR_UNSUPPORTED,
                 WORDS("one row takes 12000 bytes in all arrays", "the device has"));
    close_fixture(&x);

    device.ctx->device = real;
    device.ctx->device.has_f64 = false;
    desc = host_desc(3, 4);
    desc.dtype = CLXENT_F64;
    open_fixture(&x, &desc, FILL_PLAIN);
    expect_error("f64", &x, CLXENT_ERROR_UNSUPPORTED, WORDS("f64"));
    close_fixture(&x);
}

/* Runs on a device with these limits (0: its own), with and without copies. */
static void check_limits(const char *name, const clxent_desc *desc, size_t max_allocation,
                         size_t global_memory)
{
    const clxent_device real = device.ctx->device;

    for (int copy = 0; copy < 2; copy++) {
        device.ctx->device.host_memory = copy == 0;
        if (max_allocation > 0) device.ctx->device.max_allocation = max_allocation;
        if (global_memory > 0) device.ctx->device.global_memory = global_memory;
        run_filled_case(name, desc, FILL_IGNORED, 3, CASE_ALIGNED | CASE_HOST_ARRAYS);
        device.ctx->device = real;
    }
}

/* The device's own limits cut as max_chunk_bytes does, down to one row in one slot, and [rows] arrays too. */
Test(host_arrays, chunks_and_spans_follow_from_the_device)
{
    enum { ROW = 16, KEPT = 8 + 4 + 4 + 8 + 8 + 4 + 1 }; /* bytes: logits; targets to statistics, workspace */
    const size_t rows = (small_run() ? 0 : 2 * 4096) + 100;
    clxent_desc desc = host_desc(rows, 4);

    check_limits("two parts", &desc, rows / 2 * ROW, 0);
    check_limits("spans of 4096 rows in the largest buffer", &desc, 8 * 4100, 0);
    check_limits("spans of 4096 rows in memory", &desc, 0, 4 * 4100 * KEPT);
    desc.batch = 100;
    check_limits("one slot of one row", &desc, 0, 2 * (100 * KEPT + 2 * ROW));
    check_limits("more than half of memory", &desc, 0, 100 * KEPT + 2 * ROW);
    if (small_run()) return;
    desc = host_desc(3 * 5003, 4);
    desc.inner = 5003;
    check_limits("spans of two slabs", &desc, 5003 * ROW, 0);
    desc.inner = 1;
    desc.seq = 5003;
    desc.batch = 3;
    desc.shift = 1;
    check_limits("spans of two sequences", &desc, 5003 * ROW, 0);
    desc.reduction = CLXENT_REDUCTION_NONE;
    desc.outputs = CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_GRADIENT;
    desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
    check_limits("spans without a loss", &desc, 5003 * ROW, 0);
}

Test(host_arrays, linear_chunks_follow_from_the_device)
{
    const clxent_desc desc = desc_of(LINEAR_BIAS SIZES ";batch=100" LINEAR_PADDED LINEAR_ACCUMULATED);

    check_limits("buffers of 3 KB", &desc, 3 << 10, 0);
    check_limits("memory of 24 KB", &desc, 0, 24 << 10);
    check_limits("memory of 10 KB", &desc, 0, 10 << 10); /* copied, one slot of one row */
}

static clxent_desc linear_desc(size_t rows)
{
    clxent_desc desc = desc_of(LINEAR_BIAS SIZES);
    desc.batch = rows;
    return desc;
}

Test(host_arrays, linear_arrays_must_be_apart)
{
    const clxent_desc desc = linear_desc(3);
    fixture x;

    open_fixture(&x, &desc, FILL_PLAIN);
    const clxent_host_args good = x.args;
    x.args.weight_gradient.data = (char *)x.args.weight.data + 4;
    expect_error("overlap", &x, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("weight_gradient overlaps weight"));
    x.args = good;
    x.args.hidden_gradient.data = (void *)x.args.hidden.data;
    expect_error("in place", &x, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("hidden_gradient overlaps hidden"));
    close_fixture(&x);
}

/* 19 x 13 f32 of weight are 988 bytes. */
Test(host_arrays, linear_that_has_no_room)
{
    const clxent_desc desc = linear_desc(50);
    const clxent_device real = device.ctx->device;
    fixture x;

    open_fixture(&x, &desc, FILL_PLAIN);
    x.args.max_chunk_bytes = 51;
    expect_error("limit", &x, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("max_chunk_bytes is 51", "at least 52", "one row", "hidden"));
    x.args.max_chunk_bytes = 0;
    x.p.desc.workspace_limit = 64;
    expect_error("workspace", &x, CLXENT_ERROR_INVALID_DESC,
                 WORDS("workspace_limit is 64", "takes at least", "bytes"));
    x.p.desc.workspace_limit = 0;
    for (int copy = 0; copy < 2; copy++) {
        device.ctx->device.host_memory = copy == 0;
        device.ctx->device.max_allocation = 987;
        expect_error("weight", &x, CLXENT_ERROR_UNSUPPORTED,
                     WORDS("weight takes 988 bytes", "the device takes 987"));
        device.ctx->device.max_allocation = 988;
        x.p.desc.weight_gradient_dtype = CLXENT_F16; /* has sums in f32 */
        expect_error("workspace", &x, CLXENT_ERROR_UNSUPPORTED,
                     WORDS("the largest buffer of the device is 988", "takes at least"));
        device.ctx->device.max_allocation = real.max_allocation;
        x.p.desc.weight_gradient_dtype = 0;
    }
    device.ctx->device.global_memory = 2000; /* copied */
    expect_error("memory", &x, CLXENT_ERROR_UNSUPPORTED,
                 WORDS("the arrays that are not cut take 2164 bytes", "the device has 2000"));
    close_fixture(&x);

    clxent_desc rows = desc;
    rows.batch = 500;
    open_fixture(&x, &rows, FILL_PLAIN);
    device.ctx->device = real;
    device.ctx->device.max_allocation = 3999; /* targets are i64 */
    expect_error("rows", &x, CLXENT_ERROR_UNSUPPORTED, WORDS("targets", "the device takes 3999"));
    close_fixture(&x);
}

/* ---- Targets out of range -------------------------------------------------------------------- */

Test(host_arrays, the_first_of_many_bad_targets_is_reported)
{
    const size_t rows = many_rows(), bad_rows[] = { rows - 1, 3 * rows / 4, rows / 3 + 1, rows / 3 };
    const clxent_desc desc = host_desc(rows, 5);
    clxent_bad_targets bad = { 9, 9, 9 };
    char row[64];
    fixture x;

    open_fixture(&x, &desc, FILL_PLAIN);
    x.args.bad_targets = (clxent_output){ &bad, sizeof bad };
    expect_ok(&desc, &x.args, 0);
    cr_assert(bad.count == 0 && bad.first_row == 0 && bad.value == 0, "good targets leave no empty record");
    close_fixture(&x);

    open_fixture(&x, &desc, FILL_PLAIN);
    for (size_t i = 0; i < 4; i++)
        put_target((void *)x.args.targets.data, desc.target_type, bad_rows[i], 100 + (int)i);
    x.args.bad_targets = (clxent_output){ &bad, sizeof bad };
    x.args.max_chunk_bytes = rows * desc.classes * sizeof(float) / 5;
    snprintf(row, sizeof row, "row %zu", rows / 3);
    expect_error("many", &x, CLXENT_ERROR_BAD_TARGET, WORDS("targets", row, "is 103", "[0, 5)", "4 of "));
    cr_assert(bad.count == 4 && bad.first_row == rows / 3 && bad.value == 103);
    close_fixture(&x);
}
