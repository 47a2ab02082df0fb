/* SPDX-License-Identifier: MIT
 *
 * test_large.c - elements beyond 2^31 and 2^32: a 32-bit index anywhere reads, and writes, the wrong ones.
 *
 * Few rows at a huge stride: the buffers are large but only the pages of the rows are ever touched. A device that
 * reports too little memory for it skips; ctest sets what makes PoCL report more than the machine has.
 */
#include "support.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

TestSuite(large, .init = open_device, .fini = close_device);

enum { ROWS = 3, CLASSES = 1100 };

static cl_mem make_buffer(size_t bytes)
{
    cl_int code;
    cl_mem mem = clCreateBuffer(device.cl, CL_MEM_READ_WRITE, bytes, NULL, &code);
    if (code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_HOST_MEMORY) {
        cr_skip("the system does not reserve %zu bytes", bytes);
    }
    cr_assert(code == CL_SUCCESS, "clCreateBuffer of %zu bytes: %d", bytes, code);
    return mem;
}

static void write_at(cl_mem mem, size_t offset, const void *data, size_t bytes)
{
    cr_assert(clEnqueueWriteBuffer(device.queue, mem, CL_TRUE, offset, bytes, data, 0, NULL, NULL) ==
              CL_SUCCESS);
}

static void read_at(cl_mem mem, size_t offset, void *data, size_t bytes)
{
    cr_assert(clEnqueueReadBuffer(device.queue, mem, CL_TRUE, offset, bytes, data, 0, NULL, NULL) ==
              CL_SUCCESS);
}

/* Rows of logits in one buffer, `stride` elements apart, from element `offset` on; the gradient in their place.
 * The same rows, dense, go to run_case()'s judge. */
static void check_strided(const char *name, uint32_t dtype, size_t stride, size_t offset)
{
    const size_t size = dtype == CLXENT_F32 ? 4 : 2, row_bytes = CLASSES * size;
    const size_t bytes = (offset + (ROWS - 1) * stride + CLASSES) * size;
    const clxent_desc defaults = CLXENT_DESC_INIT;
    clxent_desc desc = defaults;
    clxent_args args = CLXENT_ARGS_INIT;
    clxent_host_args dense;
    clxent_plan *plan;
    cl_ulong most = 0;
    cl_event done;
    problem p;

    clGetDeviceInfo(device.id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof most, &most, NULL);
    if (bytes > most) cr_skip("the device allocates %llu bytes at most", (unsigned long long)most);

    desc.outputs = CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_LOSSES;
    desc.dtype = dtype;
    desc.batch = ROWS;
    desc.seq = 1;
    desc.classes = CLASSES;
    make_problem(&p, &desc, FILL_PLAIN, 1);
    cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s: %s", name, last_error());
    run_once(name, plan, &p, desc.outputs, 0, &dense);
    clxent_plan_destroy(plan);

    desc.row_stride = desc.gradient_row_stride = stride;
    cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s: %s", name, last_error());
    args.logits = args.gradient = (clxent_buffer){ make_buffer(bytes), offset * size };
    args.targets.mem = make_buffer(p.args.targets.size);
    args.losses.mem = make_buffer(ROWS * sizeof(float));
    args.workspace.mem = make_buffer(clxent_plan_workspace_size(plan) + 1);
    for (size_t row = 0; row < ROWS; row++) {
        write_at(args.logits.mem, (offset + row * stride) * size,
                 (const char *)p.args.logits.data + row * row_bytes, row_bytes);
    }
    write_at(args.targets.mem, 0, p.args.targets.data, p.args.targets.size);
    cr_assert(clxent_enqueue(plan, device.queue, &args, 0, NULL, &done) == CLXENT_OK, "%s: %s", name,
              last_error());
    cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
    clReleaseEvent(done);

    float losses[ROWS];
    unsigned char got[CLASSES * sizeof(float)];
    read_at(args.losses.mem, 0, losses, sizeof losses);
    cr_assert(memcmp(losses, dense.losses.data, sizeof losses) == 0, "%s: losses", name);
    for (size_t row = 0; row < ROWS; row++) {
        read_at(args.gradient.mem, (offset + row * stride) * size, got, row_bytes);
        cr_assert(memcmp(got, (char *)dense.gradient.data + row * row_bytes, row_bytes) == 0,
                  "%s: gradient of row %zu", name, row);
    }
    const cl_mem mems[] = { args.logits.mem, args.targets.mem, args.losses.mem, args.workspace.mem };
    for (size_t i = 0; i < sizeof mems / sizeof *mems; i++) clReleaseMemObject(mems[i]);
    clxent_plan_destroy(plan);
    free_outputs(&dense);
    free_problem(&p);
}

/* The other tensors of [rows, classes]: probability targets and the softmax, each with its own huge stride. */
static void check_strided_targets_and_softmax(const char *name, size_t stride)
{
    const size_t bytes = ((ROWS - 1) * stride + CLASSES) * 2, row_bytes = CLASSES * (size_t)2;
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_args args = CLXENT_ARGS_INIT;
    clxent_host_args dense;
    clxent_plan *plan;
    cl_ulong most = 0;
    cl_event done;
    problem p;

    clGetDeviceInfo(device.id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof most, &most, NULL);
    if (bytes > most) cr_skip("the device allocates %llu bytes at most", (unsigned long long)most);

    desc.outputs = CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOSSES;
    desc.dtype = CLXENT_BF16;
    desc.target_type = CLXENT_TARGET_PROBABILITIES_LOGITS;
    desc.batch = ROWS;
    desc.seq = 1;
    desc.classes = CLASSES;
    make_problem(&p, &desc, FILL_PLAIN, 2);
    cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s: %s", name, last_error());
    run_once(name, plan, &p, desc.outputs, 0, &dense);
    clxent_plan_destroy(plan);

    desc.target_row_stride = desc.probabilities_row_stride = stride;
    cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s: %s", name, last_error());
    args.logits.mem = make_buffer(p.args.logits.size);
    args.targets.mem = make_buffer(bytes);
    args.softmax.mem = make_buffer(bytes);
    args.losses.mem = make_buffer(ROWS * sizeof(float));
    args.workspace.mem = make_buffer(clxent_plan_workspace_size(plan) + 1);
    write_at(args.logits.mem, 0, p.args.logits.data, p.args.logits.size);
    for (size_t row = 0; row < ROWS; row++) {
        write_at(args.targets.mem, row * stride * 2, (const char *)p.args.targets.data + row * row_bytes,
                 row_bytes);
    }
    cr_assert(clxent_enqueue(plan, device.queue, &args, 0, NULL, &done) == CLXENT_OK, "%s: %s", name,
              last_error());
    cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
    clReleaseEvent(done);

    float losses[ROWS];
    unsigned char got[CLASSES * 2];
    read_at(args.losses.mem, 0, losses, sizeof losses);
    cr_assert(memcmp(losses, dense.losses.data, sizeof losses) == 0, "%s: losses", name);
    for (size_t row = 0; row < ROWS; row++) {
        read_at(args.softmax.mem, row * stride * 2, got, row_bytes);
        cr_assert(memcmp(got, (char *)dense.softmax.data + row * row_bytes, row_bytes) == 0,
                  "%s: softmax of row %zu", name, row);
    }
    const cl_mem mems[] = { args.logits.mem, args.targets.mem, args.softmax.mem, args.losses.mem,
                            args.workspace.mem };
    for (size_t i = 0; i < sizeof mems / sizeof *mems; i++) clReleaseMemObject(mems[i]);
    clxent_plan_destroy(plan);
    free_outputs(&dense);
    free_problem(&p);
}

/* Strides are odd so that a lost upper half lands nowhere near a row. */
Test(large, elements_beyond_2_to_the_31)
{
    check_strided("2^31 of f32", CLXENT_F32, ((size_t)1 << 30) + 4099, 0);
    check_strided("2^31 of bf16", CLXENT_BF16, ((size_t)1 << 30) + 4099, 0);
}

Test(large, elements_beyond_2_to_the_32)
{
    check_strided("2^32 of bf16", CLXENT_BF16, ((size_t)1 << 31) + 4099, 0);
    check_strided_targets_and_softmax("2^32 of targets and softmax", ((size_t)1 << 31) + 4099);
}

Test(large, byte_offsets_beyond_4_gigabytes)
{
    check_strided("offset of f32", CLXENT_F32, CLASSES + 3, ((size_t)1 << 30) + 17);
    check_strided("offset of bf16", CLXENT_BF16, CLASSES + 3, ((size_t)1 << 32) + 17);
}

Test(large, a_target_of_2_to_the_32_plus_1_is_out_of_range)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_bad_targets record;
    clxent_host_args out;
    clxent_plan *plan;
    problem p;

    desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_BAD_TARGETS;
    desc.batch = 3;
    desc.seq = 1;
    desc.classes = 4;
    make_problem(&p, &desc, FILL_PLAIN, 1);
    put_target((void *)p.args.targets.data, desc.target_type, 1, ((int64_t)1 << 32) + 1);
    cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    run_once("2^32 + 1", plan, &p, desc.outputs, 0, &out);
    memcpy(&record, out.bad_targets.data, sizeof record);
    cr_assert(record.count == 1 && record.first_row == 1 && record.value == ((int64_t)1 << 32) + 1);
    for (size_t row = 0; row < 3; row++) {
        const bool bad = row == 1;
        cr_assert(!isnan(get_element(out.losses.data, CLXENT_F32, row)) == !bad, "loss of row %zu", row);
        for (size_t j = 0; j < 4; j++) {
            cr_assert(!isnan(get_element(out.gradient.data, CLXENT_F32, 4 * row + j)) == !bad,
                      "gradient of row %zu, class %zu", row, j);
        }
    }
    free_outputs(&out);
    clxent_plan_destroy(plan);
    free_problem(&p);
}
