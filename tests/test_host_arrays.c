/* SPDX-License-Identifier: MIT
 *
 * test_host_arrays.c - the blocking call: right against the reference, the same bits however the rows are cut,
 * with and without copies, errors that name what was wrong and leave every output as it was.
 *
 * Includes internal.h to make the device one with memory of its own: then arrays are copied, in overlap.
 */
#include "internal.h"
#include "support.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

TestSuite(host_arrays, .init = open_device, .fini = close_device);

enum { CANARY = 64 };

/* Output arrays of a problem, each with canaries, 0xFE all over. */
typedef struct results {
    unsigned char *memory[CLXENT_TENSORS];
    size_t size[CLXENT_TENSORS];
    clxent_host_args args;
} results;

static void make_results(results *r, const problem *p, bool in_place)
{
    memset(r, 0, sizeof *r);
    r->args = p->args;
    for (int t = CLXENT_TENSOR_LOSSES; t < CLXENT_TENSORS; t++) {
        clxent_output *field = array_of(&r->args, t);
        clxent_need need;
        cr_assert(clxent_tensor_need(&p->desc, p->desc.outputs, false, p->desc.batch * p->desc.seq,
                                     (clxent_tensor)t, &need, NULL, 0) == CLXENT_OK);
        if (need.use == CLXENT_UNUSED) continue;
        const void *from =
            t == CLXENT_TENSOR_GRADIENT ? (in_place ? p->args.logits.data : p->args.gradient.data) : NULL;
        r->size[t] = need.bytes;
        r->memory[t] = take_memory(need.bytes + 2 * CANARY);
        memset(r->memory[t], 0xFE, need.bytes + 2 * CANARY);
        if (from != NULL) memcpy(r->memory[t] + CANARY, from, need.bytes);
        field->data = r->memory[t] + CANARY;
        field->size = need.bytes;
        if (t == CLXENT_TENSOR_GRADIENT && in_place) r->args.logits.data = field->data;
    }
}

static void free_results(results *r)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) free(r->memory[t]);
}

static void check_canaries(const char *name, const results *r)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (r->memory[t] == NULL) continue;
        for (int i = 0; i < CANARY; i++) {
            cr_assert(r->memory[t][i] == 0xFE && r->memory[t][CANARY + r->size[t] + (size_t)i] == 0xFE,
                      "%s: bytes around %s were written", name, clxent_tensor_name((clxent_tensor)t));
        }
    }
}

/* Nothing at all was written, but perhaps bad_targets. */
static void check_unwritten(const char *name, const results *r)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (r->memory[t] == NULL || t == CLXENT_TENSOR_BAD_TARGETS) continue;
        for (size_t i = 0; i < r->size[t] + 2 * CANARY; i++) {
            cr_assert(r->memory[t][i] == 0xFE, "%s: %s was written", name,
                      clxent_tensor_name((clxent_tensor)t));
        }
    }
}

/* max_chunk_bytes of which the largest [rows, classes] tensor makes `chunks` chunks or more, as far as rows can be cut
 * so often; 0 for one. */
static size_t limit_for(const problem *p, size_t chunks)
{
    const clxent_desc *desc = &p->desc;
    const size_t rows = desc->batch * desc->seq, unit = clxent_part_unit(desc);
    size_t largest = 0;

    if (chunks <= 1) return 0;
    size_t chunk_rows = rows / chunks / unit * unit;
    if (chunk_rows == 0) chunk_rows = unit;
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        clxent_need need;
        cr_assert(clxent_tensor_need(desc, desc->outputs, false, chunk_rows, (clxent_tensor)t, &need, NULL,
                                     0) == 0);
        if (need.use != CLXENT_UNUSED && need.is_matrix && need.bytes > largest) largest = need.bytes;
    }
    return largest;
}

static void run(const char *name, const problem *p, results *r, bool copy, size_t limit)
{
    device.ctx->device.host_memory = !copy;
    r->args.max_chunk_bytes = limit;
    const clxent_status status = clxent_run_host(device.ctx, &p->desc, &r->args);
    cr_assert(status == CLXENT_OK, "%s: %s: %s", name, clxent_status_string(status), last_error());
    check_canaries(name, r);
}

static void check_row_values(const char *name, const char *tensor, const void *data, uint32_t dtype,
                             const clxent_desc *desc, size_t stride, size_t columns, const double *want,
                             const double *bound)
{
    const size_t n = desc->batch * desc->seq * columns;
    double *got = take_memory(n * sizeof *got);
    for (size_t i = 0; i < n; i++) {
        got[i] = get_element(data, dtype,
                             columns == 1 ? i : element_index(desc, stride, i / columns, i % columns));
    }
    const close_report report = compare(got, want, bound, n);
    cr_assert(report.bad == 0, "%s: %s: %zu wrong, first %zu: got %.9g, want %.9g", name, tensor, report.bad,
              report.first, got[report.first], want[report.first]);
    free(got);
}

/* Losses, loss and gradient are the reference's: run_case() judges kernels, this that chunks came together. */
static void check_against_reference(const char *name, const problem *p, const results *r)
{
    const clxent_desc *desc = &p->desc;
    const size_t rows = desc->batch * desc->seq, n = rows * desc->classes;
    const uint32_t real = desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
    double *values = take_memory(2 * (rows + 1 + n) * sizeof *values);
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    char text[256] = "";

    if ((desc->outputs & CLXENT_OUTPUT_LOSSES) != 0) want.losses = values, want.losses_bound = values + rows;
    if ((desc->outputs & CLXENT_OUTPUT_LOSS) != 0)
        want.loss = values + 2 * rows, want.loss_bound = want.loss + 1;
    if ((desc->outputs & CLXENT_OUTPUT_GRADIENT) != 0) {
        want.gradient = values + 2 * (rows + 1);
        want.gradient_bound = want.gradient + n;
    }
    cr_assert(clxent_reference_run(desc, &p->args, &want, text, sizeof text) == CLXENT_OK, "%s: %s", name,
              text);
    if (want.losses != NULL) {
        check_row_values(name, "losses", r->args.losses.data, real, desc, 0, 1, want.losses,
                         want.losses_bound);
    }
    if (want.loss != NULL) {
        const double loss = get_element(r->args.loss.data, real, 0);
        cr_assert(compare(&loss, want.loss, want.loss_bound, 1).bad == 0, "%s: loss: got %.9g, want %.9g",
                  name, loss, *want.loss);
    }
    if (want.gradient != NULL) {
        check_row_values(name, "gradient", r->args.gradient.data, clxent_gradient_dtype(desc), desc,
                         desc->gradient_row_stride, desc->classes, want.gradient, want.gradient_bound);
    }
    free(values);
}

static void check_same(const char *name, const results *whole, const results *cut)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (whole->memory[t] == NULL) continue;
        const size_t n = whole->size[t] + 2 * CANARY;
        size_t first = 0;
        while (first < n && whole->memory[t][first] == cut->memory[t][first]) first++;
        cr_assert(first == n, "%s: %s: byte %zu of %zu differs from the run in one chunk", name,
                  clxent_tensor_name((clxent_tensor)t), first - CANARY, whole->size[t]);
    }
}

/* Every output array as one chunk without copies gives it, whatever the chunks and with copies. */
static void check_all_ways(const char *name, const clxent_desc *desc, uint32_t fill, bool in_place)
{
    static const size_t chunks[] = { 1, 100, 3 };
    results whole, cut;
    problem p;
    char way[128];

    make_problem(&p, desc, fill, 11);
    make_results(&whole, &p, in_place);
    run(name, &p, &whole, false, 0);
    check_against_reference(name, &p, &whole);
    for (int copy = 0; copy < 2; copy++) {
        for (size_t i = 0; i < (small_run() ? 2 : 3); i++) {
            snprintf(way, sizeof way, "%s, %zu chunks%s", name, chunks[i], copy ? ", copied" : "");
            make_results(&cut, &p, in_place);
            run(way, &p, &cut, copy, limit_for(&p, chunks[i]));
            check_same(way, &whole, &cut);
            free_results(&cut);
        }
    }
    free_results(&whole);
    free_problem(&p);
}

static clxent_desc host_desc(size_t rows, size_t classes)
{
    return make_desc(CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_LSE |
                         CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_STATISTICS,
                     CLXENT_F32, rows, 1, classes);
}

/* More than one partial sum of the loss; parts of 41 rows, which divide nothing. */
static size_t many_rows(void)
{
    const clxent_desc desc = host_desc(1, 3);
    return (small_run() ? 0 : 1) * clxent_span_unit(&desc) + 37;
}

Test(host_arrays, chunks_give_the_bits_of_one_run)
{
    const clxent_desc desc = host_desc(many_rows(), 19);
    check_all_ways("plain", &desc, FILL_DESIGNED | FILL_IGNORED | FILL_HIT, false);
}

/* 37 rows one by one: rows, a row split over groups, lanes. */
Test(host_arrays, chunks_of_one_row)
{
    static const size_t classes[] = { 3, 19, 1100 };
    for (size_t i = 0; i < (small_run() ? 2 : 3); i++) {
        clxent_desc desc = host_desc(37, classes[i]);
        check_all_ways("one row", &desc, FILL_DESIGNED | FILL_IGNORED | FILL_HIT, false);
    }
}

Test(host_arrays, chunks_of_weighted_rows)
{
    clxent_desc desc = host_desc(many_rows(), 7);
    desc.has_class_weights = 1;
    desc.has_row_weights = 1;
    desc.z_loss = 0.25;
    check_all_ways("weights", &desc, FILL_PLAIN | FILL_IGNORED | FILL_GRAD_OUTPUT, false);
    check_all_ways("weights and a denominator", &desc, FILL_PLAIN | FILL_IGNORED | FILL_DENOMINATOR, false);
    desc.reduction = CLXENT_REDUCTION_SUM;
    check_all_ways("a weighted sum", &desc, FILL_PLAIN | FILL_IGNORED, false);
}

Test(host_arrays, chunks_of_grad_output_rows)
{
    clxent_desc desc = host_desc(many_rows(), 5);
    desc.reduction = CLXENT_REDUCTION_NONE;
    desc.outputs &= ~(uint32_t)CLXENT_OUTPUT_LOSS;
    check_all_ways("no reduction", &desc, FILL_GRAD_OUTPUT, false);
}

Test(host_arrays, chunks_in_place)
{
    clxent_desc desc = host_desc(many_rows(), 6);
    check_all_ways("in place", &desc, FILL_IGNORED, true);
    desc.row_stride = desc.gradient_row_stride = 9;
    check_all_ways("in place, padded", &desc, FILL_IGNORED, true);
}

Test(host_arrays, padding_is_left_alone)
{
    clxent_desc desc = host_desc(many_rows(), 5);
    desc.outputs |= CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOG_SOFTMAX | CLXENT_OUTPUT_ENTROPY;
    desc.row_stride = 8;
    desc.gradient_row_stride = 7;
    desc.probabilities_row_stride = 11;
    check_all_ways("padded", &desc, FILL_DESIGNED, false);
}

/* Of every row, the last one of each chunk and of the array too. */
static void check_zero_padding(const clxent_desc *desc, bool in_place, bool copy)
{
    const size_t used = desc->classes * desc->inner, stride = desc->gradient_row_stride;
    results r;
    problem p;

    make_problem(&p, desc, FILL_IGNORED, 11);
    make_results(&r, &p, in_place);
    run("zero padding", &p, &r, copy, limit_for(&p, 1000));
    cr_assert_eq(r.size[CLXENT_TENSOR_GRADIENT],
                 desc->batch * desc->seq / desc->inner * stride * sizeof(float));
    for (size_t i = 0; i < desc->batch * desc->seq / desc->inner * stride; i++) {
        if (i % stride < used) continue;
        const float value = ((const float *)r.args.gradient.data)[i];
        cr_assert(value == 0, "slab %zu, element %zu: %g", i / stride, i % stride, (double)value);
    }
    free_results(&r);
    free_problem(&p);
}

Test(host_arrays, padding_of_the_gradient_is_zero_where_asked)
{
    clxent_desc desc = host_desc(many_rows(), 6);
    desc.row_stride = desc.gradient_row_stride = 9;
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    for (int way = 0; way < 4; way++) check_zero_padding(&desc, way % 2 == 1, way / 2 == 1);
    check_all_ways("zero padding", &desc, FILL_IGNORED, false);
    check_all_ways("zero padding in place", &desc, FILL_IGNORED, true);
    desc = host_desc(many_rows() / 24 * 24, 4);
    desc.inner = 24;
    desc.gradient_row_stride = 4 * 24 + 1;
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    for (int copy = 0; copy < 2; copy++) check_zero_padding(&desc, false, copy == 1);
}

Test(host_arrays, chunks_that_accumulate)
{
    clxent_desc desc = host_desc(many_rows(), 5);
    desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    desc.gradient_row_stride = 6;
    check_all_ways("accumulated", &desc, FILL_IGNORED, false);
}

Test(host_arrays, chunks_are_whole_sequences_when_targets_shift)
{
    clxent_desc desc = host_desc(many_rows() / 10, 4);
    desc.seq = 10;
    desc.shift = 1;
    check_all_ways("shift", &desc, FILL_IGNORED, false);
    desc.seq = 7;
    desc.shift = 3;
    check_all_ways("shift over 3", &desc, FILL_IGNORED, false);
    desc.batch = small_run() ? 2 : 3;
    desc.seq = small_run() ? 41 : 5003; /* more rows than a partial sum has */
    check_all_ways("shift of long sequences", &desc, FILL_IGNORED, false);
}

Test(host_arrays, chunks_are_whole_slabs_when_classes_are_not_last)
{
    clxent_desc desc = host_desc(0, 4);
    desc.seq = 6; /* N, C, H, W with W = 6, H = 4 */
    desc.inner = 24;
    desc.batch = many_rows() / 24 * 4;
    check_all_ways("inner", &desc, FILL_DESIGNED, false);
    desc.row_stride = 4 * 24 + 5;
    desc.gradient_row_stride = 4 * 24 + 1;
    check_all_ways("inner, padded", &desc, FILL_DESIGNED, false);
    desc.shift = 2;
    check_all_ways("inner, shifted", &desc, FILL_IGNORED, false);
    desc.shift = 0;
    desc.row_stride = desc.gradient_row_stride = 0;
    desc.batch = 3;
    desc.seq = desc.inner = small_run() ? 43 : 5003; /* more rows than a partial sum has */
    check_all_ways("large inner", &desc, FILL_DESIGNED, false);
}

Test(host_arrays, chunks_of_probabilities)
{
    clxent_desc desc = host_desc(many_rows(), 6);
    desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
    desc.has_row_weights = 1;
    if (runs_all()) desc.label_smoothing = 0.125;
    desc.target_row_stride = 7;
    desc.outputs &= ~(uint32_t)CLXENT_OUTPUT_CORRECT;
    check_all_ways("probabilities", &desc, FILL_PLAIN, false);
    desc.seq = 11;
    desc.batch /= 11;
    desc.shift = 1;
    check_all_ways("probabilities, shifted", &desc, FILL_PLAIN, false);
}

Test(host_arrays, chunks_of_other_storage)
{
    static const uint32_t dtypes[] = { CLXENT_F16, CLXENT_BF16, CLXENT_F64 };
    for (size_t i = 0; i < 3; i++) {
        clxent_desc desc = host_desc(many_rows(), 5);
        desc.dtype = dtypes[i];
        if (runs_all()) desc.target_type = CLXENT_TARGET_U8;
        else if (desc.dtype == CLXENT_F64) desc.outputs = EVERY_OUTPUT;
        if (desc.dtype != CLXENT_F64 || device.has_f64)
            check_all_ways("storage", &desc, FILL_DESIGNED, false);
    }
}

Test(host_arrays, building_blocks)
{
    clxent_desc desc = host_desc(many_rows(), 5);
    desc.outputs = CLXENT_OUTPUT_SOFTMAX;
    check_all_ways("softmax", &desc, FILL_DESIGNED, false);
    desc.op = CLXENT_OP_ONE_HOT;
    desc.outputs = CLXENT_OUTPUT_ONE_HOT;
    check_all_ways("one-hot", &desc, FILL_IGNORED, false);
    desc.op = CLXENT_OP_PROBABILITY_LOSS;
    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LOSSES;
    check_all_ways("probability loss", &desc, FILL_PLAIN, false);
    desc.op = CLXENT_OP_SOFTMAX_GRADIENT;
    desc.outputs = CLXENT_OUTPUT_GRADIENT;
    check_all_ways("softmax gradient", &desc, FILL_PLAIN, false);
    desc.op = CLXENT_OP_SOFTMAX_BACKWARD;
    check_all_ways("softmax backward", &desc, FILL_PLAIN, false);
}

/* ---- Edges --------------------------------------------------------------------------------- */

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
        cr_assert(clxent_run_host(device.ctx, &desc, &args) == CLXENT_OK, "%s", last_error());
        cr_assert(isnan(loss) && correct == 0, "loss %g, correct %llu", loss, (unsigned long long)correct);
        cr_assert(bad.count == 0 && bad.first_row == 0 && bad.value == 0);
        desc.reduction = CLXENT_REDUCTION_SUM;
        cr_assert(clxent_run_host(device.ctx, &desc, &args) == CLXENT_OK, "%s", last_error());
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
        clxent_desc desc = host_desc(shapes[i / 2].batch, 4);
        clxent_host_args args = CLXENT_HOST_ARGS_INIT;
        float loss = -1, losses[2] = { -1, -1 };

        desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS;
        desc.seq = shapes[i / 2].seq;
        desc.shift = shapes[i / 2].shift;
        desc.inner = shapes[i / 2].inner;
        desc.row_stride = shapes[i / 2].stride;
        args.logits = (clxent_input){ logits, sizeof logits };
        args.targets = (clxent_input){ targets, sizeof targets };
        args.losses = (clxent_output){ losses, sizeof losses };
        args.loss = (clxent_output){ &loss, sizeof loss };
        device.ctx->device.host_memory = i % 2 == 0;
        cr_assert(clxent_run_host(device.ctx, &desc, &args) == CLXENT_OK, "%zu: %s", i / 2, last_error());
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
        clxent_desc desc = host_desc(shapes[i].batch, shapes[i].classes);
        clxent_host_args args = CLXENT_HOST_ARGS_INIT;
        float loss = -1;

        desc.outputs = CLXENT_OUTPUT_LOSS;
        desc.seq = shapes[i].seq;
        desc.inner = shapes[i].inner;
        desc.shift = shapes[i].shift;
        args.logits.size = rows * desc.classes * sizeof(float);
        args.targets.size = rows * sizeof(int64_t);
        args.logits.data = calloc(args.logits.size, 1);
        args.targets.data = calloc(args.targets.size, 1);
        args.loss = (clxent_output){ &loss, sizeof loss };
        if (args.logits.data == NULL || args.targets.data == NULL) cr_skip("no memory");
        cr_assert(clxent_run_host(device.ctx, &desc, &args) == CLXENT_OK, "%zu: %s", i, last_error());
        cr_assert(fabs(loss - log((double)desc.classes)) <= 2e-6, "%zu: %.9g", i, loss);
        free((void *)args.logits.data);
        free((void *)args.targets.data);
    }
}

Test(host_arrays, the_worked_example)
{
    const float logits[8] = { 1, 3, 5, 7, 1, -9, 4, 8 };
    const int64_t targets[2] = { 3, 1 };
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_host_args args;
    float losses[2], loss;

    clxent_host_args_init(&args);
    desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS;
    desc.batch = 1;
    desc.seq = 2;
    desc.classes = 4;
    args.logits = (clxent_input){ logits, sizeof logits };
    args.targets = (clxent_input){ targets, sizeof targets };
    args.losses = (clxent_output){ losses, sizeof losses };
    args.loss = (clxent_output){ &loss, sizeof loss };
    cr_assert(clxent_run_host(device.ctx, &desc, &args) == CLXENT_OK, "%s", last_error());
    cr_assert(fabs(losses[0] - 0.14507793896078233) < 2e-8, "%.9g", losses[0]);
    cr_assert(fabs(losses[1] - 17.01904504849764) < 2e-6, "%.9g", losses[1]);
    cr_assert(fabs(loss - (0.14507793896078233 + 17.01904504849764) / 2) < 1e-6, "%.9g", loss);
}

/* ---- Errors -------------------------------------------------------------------------------- */

static void expect_error(const char *name, const problem *p, results *r, clxent_status want,
                         const char *const *words)
{
    const clxent_status status = clxent_run_host(device.ctx, &p->desc, &r->args);
    cr_assert(status == want, "%s: got %s: %s", name, clxent_status_string(status), last_error());
    for (size_t i = 0; words[i] != NULL; i++) {
        cr_assert(strstr(last_error(), words[i]) != NULL, "%s: \"%s\" does not say \"%s\"", name,
                  last_error(), words[i]);
    }
    check_unwritten(name, r);
}

#define WORDS(...) ((const char *const[]){ __VA_ARGS__, NULL })

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

Test(host_arrays, each_array_must_be_there_and_large_enough)
{
    clxent_desc desc = host_desc(3, 4);
    problem p;
    char size[32];

    desc.has_class_weights = desc.has_row_weights = 1;
    make_problem(&p, &desc, FILL_GRAD_OUTPUT | FILL_DENOMINATOR, 3);
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        const char *name = clxent_tensor_name((clxent_tensor)t);
        results r;
        make_results(&r, &p, false);
        clxent_output *field = array_of(&r.args, t);
        const clxent_output whole = *field;
        if (whole.data == NULL) {
            free_results(&r);
            continue;
        }
        field->size--;
        snprintf(size, sizeof size, "= %zu bytes, got %zu", whole.size, field->size);
        expect_error(name, &p, &r, CLXENT_ERROR_BUFFER_TOO_SMALL, WORDS(name, "[", size));
        field->size = whole.size;
        if (t != CLXENT_TENSOR_GRAD_OUTPUT && t != CLXENT_TENSOR_DENOMINATOR &&
            t != CLXENT_TENSOR_BAD_TARGETS) {
            field->data = NULL;
            snprintf(size, sizeof size, "%zu bytes", whole.size);
            expect_error(name, &p, &r, CLXENT_ERROR_NULL_ARGUMENT, WORDS(name, size));
        }
        free_results(&r);
    }
    free_problem(&p);
}

Test(host_arrays, wrong_descriptions_and_arguments)
{
    clxent_desc desc = host_desc(3, 4);
    results r;
    problem p;

    make_problem(&p, &desc, FILL_PLAIN, 3);
    make_results(&r, &p, false);
    p.desc.classes = 0;
    expect_error("classes", &p, &r, CLXENT_ERROR_INVALID_DESC, WORDS("classes is 0"));
    p.desc.classes = 4;
    p.desc.struct_size = 0;
    expect_error("struct_size", &p, &r, CLXENT_ERROR_INVALID_DESC, WORDS("struct_size"));
    p.desc = desc;
    r.args.struct_size = sizeof r.args + 1;
    expect_error("struct_size", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("struct_size"));
    r.args.struct_size =
        offsetof(clxent_host_args, gradient) + sizeof(void *); /* an array without its size */
    expect_error("struct_size", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("args.struct_size is", "CLXENT_HOST_ARGS_INIT"));
    r.args.struct_size = sizeof r.args;

    r.args.losses.data = (char *)r.args.gradient.data + 4;
    expect_error("overlap", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("losses", "gradient", "takes memory of its own"));
    r.args.losses.data = r.memory[CLXENT_TENSOR_LOSSES] + CANARY;
    const clxent_input logits = r.args.logits;
    r.args.logits.data = (char *)r.args.gradient.data + 16;
    expect_error("half in place", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("gradient", "logits"));
    r.args.logits.data = r.args.gradient.data;
    p.desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    expect_error("in place", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("gradient is logits itself", "takes", "ACCUMULATE"));
    p.desc = desc;
    p.desc.gradient_dtype = CLXENT_F16;
    expect_error("in place", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("gradient", "f16", "f32"));
    r.args.logits = logits;
    free_results(&r);
    free_problem(&p);
}

Test(host_arrays, a_chunk_that_cannot_be_small_enough)
{
    const clxent_desc desc = host_desc(many_rows(), 4);
    results r;
    problem p;

    make_problem(&p, &desc, FILL_PLAIN, 3);
    make_results(&r, &p, false);
    r.args.max_chunk_bytes = 15;
    expect_error("limit", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("max_chunk_bytes is 15", "at least 16", "one row", "logits"));
    p.desc.inner = many_rows();
    r.args.max_chunk_bytes = 16 * many_rows() - 1;
    expect_error("a slab", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("max_chunk_bytes", "one slab"));
    p.desc.inner = 1;
    p.desc.seq = many_rows();
    p.desc.batch = p.desc.shift = 1;
    expect_error("a sequence", &p, &r, CLXENT_ERROR_INVALID_ARGUMENT,
                 WORDS("max_chunk_bytes", "one sequence"));
    p.desc = desc;
    r.args.max_chunk_bytes = 0;
    free_results(&r);
    free_problem(&p);
}

Test(host_arrays, a_device_that_has_no_room_for_one_row)
{
    clxent_desc desc = host_desc(5, 1000);
    const clxent_device real = device.ctx->device;
    results r;
    problem p;

    desc.outputs |= CLXENT_OUTPUT_SOFTMAX;
    make_problem(&p, &desc, FILL_PLAIN, 3);
    make_results(&r, &p, false);
    device.ctx->device.max_allocation = 3999;
    expect_error("buffer", &p, &r, CLXENT_ERROR_UNSUPPORTED,
                 WORDS("logits: one row takes 4000 bytes", "the device takes 3999"));
    device.ctx->device.max_allocation = 30;
    expect_error("rows", &p, &r, CLXENT_ERROR_UNSUPPORTED, WORDS("the device takes 30"));
    device.ctx->device = real;
    device.ctx->device.host_memory = false;
    device.ctx->device.global_memory = 11999;
    expect_error("memory", &p, &r, CLXENT_ERROR_UNSUPPORTED,
                 WORDS("one row takes 12000 bytes in all arrays", "the device has"));
    free_results(&r);
    free_problem(&p);
}

/* The bits of a run in one chunk on a device with these limits (0: its own), with and without copies. */
static void check_limits(const char *name, const clxent_desc *desc, size_t max_allocation,
                         size_t global_memory)
{
    const clxent_device real = device.ctx->device;
    results whole, cut;
    problem p;

    make_problem(&p, desc, FILL_IGNORED, 3);
    make_results(&whole, &p, false);
    run("whole", &p, &whole, false, 0);
    for (int copy = 0; copy < 2; copy++) {
        if (max_allocation > 0) device.ctx->device.max_allocation = max_allocation;
        if (global_memory > 0) device.ctx->device.global_memory = global_memory;
        make_results(&cut, &p, false);
        run(name, &p, &cut, copy, 0);
        check_same(name, &whole, &cut);
        free_results(&cut);
        device.ctx->device = real;
    }
    free_results(&whole);
    free_problem(&p);
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
    desc = host_desc(3 * 5003, 4);
    desc.inner = 5003;
    if (!small_run()) check_limits("spans of two slabs", &desc, 5003 * ROW, 0);
    desc.inner = 1;
    desc.seq = 5003;
    desc.batch = 3;
    desc.shift = 1;
    if (!small_run()) check_limits("spans of two sequences", &desc, 5003 * ROW, 0);
    desc.reduction = CLXENT_REDUCTION_NONE;
    desc.outputs = CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_GRADIENT;
    desc.target_type = CLXENT_TARGET_PROBABILITIES_F32;
    if (!small_run()) check_limits("spans without a loss", &desc, 5003 * ROW, 0);
}

Test(host_arrays, a_device_without_f64_says_so)
{
    clxent_desc desc = host_desc(3, 4);
    results r;
    problem p;

    desc.dtype = CLXENT_F64;
    make_problem(&p, &desc, FILL_PLAIN, 3);
    make_results(&r, &p, false);
    device.ctx->device.has_f64 = false;
    expect_error("f64", &p, &r, CLXENT_ERROR_UNSUPPORTED, WORDS("f64"));
    free_results(&r);
    free_problem(&p);
}

/* ---- Targets out of range -------------------------------------------------------------------- */

static void check_bad_target(const char *name, clxent_desc desc, size_t row, int64_t value)
{
    char at[64], is[64], range[64];

    for (int way = 0; way < 4; way++) {
        results r;
        problem p;
        make_problem(&p, &desc, FILL_IGNORED, 3);
        /* The array is ours to spoil. */
        put_target((void *)p.args.targets.data, desc.target_type, row + desc.shift, value);
        make_results(&r, &p, false);
        clxent_bad_targets bad = { 9, 9, 9 };
        if (way != 0) r.args.bad_targets = (clxent_output){ &bad, sizeof bad };
        r.args.max_chunk_bytes = limit_for(&p, way % 2 == 0 ? 1 : 7);
        device.ctx->device.host_memory = way < 2;
        snprintf(at, sizeof at, "row %zu", row);
        snprintf(is, sizeof is, "is %lld", (long long)value);
        snprintf(range, sizeof range, "[0, %zu)", desc.classes);
        expect_error(name, &p, &r, CLXENT_ERROR_BAD_TARGET, WORDS("targets", at, is, range));
        if (way != 0) {
            cr_assert(bad.count == 1 && bad.first_row == row && bad.value == value,
                      "%s: record: %llu rows, first %llu, value %lld", name, (unsigned long long)bad.count,
                      (unsigned long long)bad.first_row, (long long)bad.value);
        }
        free_results(&r);
        free_problem(&p);
    }
}

Test(host_arrays, a_target_out_of_range_is_named_and_nothing_is_written)
{
    const size_t rows = many_rows();
    clxent_desc desc = host_desc(rows, 5);

    desc.outputs = EVERY_OUTPUT & ~CLXENT_OUTPUT_BAD_TARGETS;
    check_bad_target("first", desc, 0, 5);
    check_bad_target("last", desc, rows - 1, -1);
    check_bad_target("wide", desc, rows / 2, ((int64_t)1 << 32) + 1);
    desc.target_type = CLXENT_TARGET_U8;
    desc.outputs = ONE_PASS_OUTPUTS & ~CLXENT_OUTPUT_BAD_TARGETS;
    check_bad_target("narrow", desc, rows - 2, 255);
    desc.target_type = CLXENT_TARGET_I32;
    desc.outputs = EVERY_OUTPUT & ~CLXENT_OUTPUT_BAD_TARGETS;
    desc.batch = rows / 10;
    desc.seq = 10;
    desc.shift = 2;
    check_bad_target("shifted", desc, 10 * (desc.batch - 1) + 3, 77);
    desc.shift = 0;
    desc.op = CLXENT_OP_ONE_HOT;
    desc.outputs = CLXENT_OUTPUT_ONE_HOT;
    check_bad_target("one-hot", desc, 12, 6);
}

Test(host_arrays, the_first_of_many_bad_targets_is_reported)
{
    const size_t rows = many_rows();
    clxent_desc desc = host_desc(rows, 5);
    results r;
    problem p;

    make_problem(&p, &desc, FILL_PLAIN, 3);
    const size_t bad_rows[] = { rows - 1, 3 * rows / 4, rows / 3 + 1, rows / 3 };
    for (size_t i = 0; i < 4; i++)
        put_target((void *)p.args.targets.data, desc.target_type, bad_rows[i], 100 + (int)i);
    make_results(&r, &p, false);
    clxent_bad_targets bad = { 0, 0, 0 };
    r.args.bad_targets = (clxent_output){ &bad, sizeof bad };
    r.args.max_chunk_bytes = limit_for(&p, 5);
    expect_error("many", &p, &r, CLXENT_ERROR_BAD_TARGET, WORDS("is 103", "4 of "));
    cr_assert(bad.count == 4 && bad.first_row == rows / 3 && bad.value == 103);
    free_results(&r);
    free_problem(&p);
}

Test(host_arrays, other_policies_let_bad_targets_pass)
{
    clxent_desc desc = host_desc(many_rows(), 5);
    desc.bad_target = CLXENT_BAD_TARGET_IGNORE;
    check_all_ways("ignored", &desc, FILL_BAD_TARGETS | FILL_IGNORED, false);
    desc.bad_target = CLXENT_BAD_TARGET_NAN;
    check_all_ways("NaN", &desc, FILL_BAD_TARGETS | FILL_IGNORED, false);
}

Test(host_arrays, good_targets_leave_an_empty_record)
{
    clxent_desc desc = host_desc(5, 5);
    clxent_bad_targets bad = { 9, 9, 9 };
    results r;
    problem p;

    make_problem(&p, &desc, FILL_PLAIN, 3);
    make_results(&r, &p, false);
    r.args.bad_targets = (clxent_output){ &bad, sizeof bad };
    run("good", &p, &r, false, 0);
    cr_assert(bad.count == 0 && bad.first_row == 0 && bad.value == 0);
    free_results(&r);
    free_problem(&p);
}
