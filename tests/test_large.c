/* SPDX-License-Identifier: MIT
 *
 * test_large.c - elements beyond 2^31 and 2^32: a 32-bit index anywhere reads, and writes, the wrong ones.
 *
 * Few rows at a huge stride: the buffers are large but only the pages of the rows are ever touched. A device that
 * reports too little memory for it skips; ctest sets what makes PoCL report more than the machine has.
 */
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <string.h>

TestSuite(large, .init = open_device, .fini = close_device);

enum { SLABS = 3, MOST_ELEMENTS = 2100, MOST_ROWS = SLABS * 80 };

/* A slab is a row, or with the class axis not last [classes, inner]. narrow, narrow_general: 2-byte logits, of index
 * and of probability targets, in programs that other tests have too. */
typedef struct shape {
    const char *name;
    size_t which, classes, inner;
    clxent_strategy shares;
    uint32_t narrow, narrow_general;
} shape;
static const shape shapes[] = {
    { "rows", EACH_ROWS, 1100, 1, CLXENT_STRATEGY_ROWS, CLXENT_BF16, CLXENT_BF16 },
    { "split", EACH_SPLIT, 2100, 1, CLXENT_STRATEGY_SPLIT, CLXENT_BF16, CLXENT_BF16 },
    { "groups", EACH_GROUPS, 1100, 1, CLXENT_STRATEGY_ROWS, CLXENT_F16, CLXENT_BF16 },
    { "lanes", EACH_LANES, 7, 1, CLXENT_STRATEGY_LANES, CLXENT_BF16, CLXENT_BF16 },
    { "lanes along the classes", EACH_LANES, 100, 1, CLXENT_STRATEGY_LANES, CLXENT_BF16, CLXENT_BF16 },
    { "inner lanes", EACH_LANES, 7, 80, CLXENT_STRATEGY_LANES, CLXENT_BF16, CLXENT_F16 },
};
enum { SHAPES = COUNT(shapes) };

/* shapes[i] for that dtype. Where few programs are compiled, those of test_variants.c and test_cross_entropy.c, which have
 * other inner sizes. */
static shape shape_for(size_t i, uint32_t dtype)
{
    shape s = shapes[i];
    if (runs_all()) return s;
    if (s.inner > 1) s.inner = dtype == CLXENT_F32 ? 16 : 3;
    return s;
}

/* A plan that may be asked for more than outputs, where another test's program has more. */
static clxent_desc large_desc(const shape *s, uint32_t outputs, uint32_t dtype)
{
    const bool f32 = dtype == CLXENT_F32, inner = s->inner > 1;
    clxent_desc desc = make_desc(outputs, dtype, SLABS * s->inner, 1, s->classes);
    desc.inner = s->inner;
    if (runs_all() || (outputs & CLXENT_OUTPUT_GRADIENT) == 0) return desc;
    if (f32 && inner) desc.outputs = ONE_PASS_OUTPUTS;
    if (!f32 && (inner || s->which == EACH_SPLIT || s->which == EACH_ROWS || s->classes < 10))
        desc.outputs = EVERY_OUTPUT;
    return desc;
}

/* PoCL takes half a minute to compile a group: where few programs are compiled, one of f32 alone. */
static bool takes(const shape *s, uint32_t dtype)
{
    const clxent_tuning tuning = strategy_for(dtype, s->which);
    return (runs_all() || s->which != EACH_GROUPS || dtype == CLXENT_F32) && driver_takes(&tuning);
}

static clxent_plan *make_plan(const shape *s, const clxent_desc *desc)
{
    const clxent_tuning tuning = strategy_for(desc->dtype, s->which);
    clxent_plan *plan = plan_with(&tuning, desc);
    cr_assert(plan->shares == s->shares, "%s: %s", s->name, clxent_plan_strategy(plan));
    return plan;
}

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

static void need(size_t bytes)
{
    cl_ulong most = 0;
    clGetDeviceInfo(device.id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof most, &most, NULL);
    if (bytes > most) cr_skip("the device allocates %llu bytes at most", (unsigned long long)most);
}

/* Runs p in plan with the buffers of args, to which it adds targets, losses and a workspace, holds the losses against
 * dense ones, and releases what it added. */
static void run(const shape *s, clxent_plan *plan, clxent_args *args, const problem *p, const void *losses)
{
    const size_t bytes = SLABS * s->inner * sizeof(float);
    const bool adds_targets = args->targets.mem == NULL;
    float got[MOST_ROWS];
    cl_event done;

    if (adds_targets)
        args->targets.mem =
            new_buffer(device.cl, CL_MEM_READ_WRITE, p->args.targets.size, p->args.targets.data);
    args->losses.mem = make_buffer(bytes);
    args->workspace.mem = make_buffer(clxent_plan_workspace_size(plan) + 1);
    cr_assert(clxent_enqueue(plan, device.queue, args, 0, NULL, &done) == CLXENT_OK, "%s: %s", s->name,
              last_error());
    cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
    clReleaseEvent(done);
    read_at(args->losses.mem, 0, got, bytes);
    cr_assert(memcmp(got, losses, bytes) == 0, "%s: losses", s->name);
    if (adds_targets) clReleaseMemObject(args->targets.mem);
    clReleaseMemObject(args->losses.mem);
    clReleaseMemObject(args->workspace.mem);
    clxent_plan_destroy(plan);
}

/* The outputs of desc, dense. */
static void run_dense(const shape *s, const clxent_desc *desc, uint32_t outputs, problem *p,
                      clxent_host_args *dense)
{
    clxent_plan *plan = make_plan(s, desc);
    make_problem(p, desc, FILL_PLAIN, 1);
    run_once(s->name, plan, p, outputs, 0, dense);
    clxent_plan_destroy(plan);
}

/* Slab i of mem, strided, against the dense one. */
static void check_slabs(const shape *s, const char *what, cl_mem mem, size_t size, size_t stride,
                        size_t offset, const void *dense)
{
    const size_t bytes = s->classes * s->inner * size;
    unsigned char got[MOST_ELEMENTS * sizeof(float)];
    for (size_t i = 0; i < SLABS; i++) {
        read_at(mem, (offset + i * stride) * size, got, bytes);
        cr_assert(memcmp(got, (const char *)dense + i * bytes, bytes) == 0, "%s: %s of slab %zu", s->name,
                  what, i);
    }
}

static void write_slabs(const shape *s, cl_mem mem, size_t size, size_t stride, size_t offset,
                        const void *dense)
{
    const size_t bytes = s->classes * s->inner * size;
    for (size_t i = 0; i < SLABS; i++) {
        write_at(mem, (offset + i * stride) * size, (const char *)dense + i * bytes, bytes);
    }
}

/* Behind every slab, `stride` elements apart, no more than fits got. */
static void check_zero_padding(const shape *s, cl_mem mem, size_t size, size_t stride, size_t offset)
{
    const size_t used = s->classes * s->inner, bytes = (stride - used) * size;
    unsigned char got[64];
    for (size_t i = 0; i < SLABS; i++) {
        read_at(mem, (offset + i * stride + used) * size, got, bytes);
        for (size_t k = 0; k < bytes; k++) cr_assert(got[k] == 0, "%s: padding of slab %zu", s->name, i);
    }
}

/* Slabs of logits in one buffer, `stride` elements apart, from element `offset` on; the gradient in their place, its
 * padding 0 where there is an offset: elsewhere the padding is too large to be touched. The same slabs, dense, give
 * what must come out. */
static void check_strided(const shape *s, uint32_t dtype, size_t stride, size_t offset)
{
    const size_t size = dtype == CLXENT_F32 ? 4 : 2;
    const size_t last = offset > 0 ? stride : s->classes * s->inner;
    const size_t bytes = (offset + (SLABS - 1) * stride + last) * size;
    const uint32_t outputs = CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_LOSSES;
    clxent_desc desc = large_desc(s, outputs, dtype);
    clxent_args args = CLXENT_ARGS_INIT;
    clxent_host_args dense;
    problem p;

    need(bytes);
    run_dense(s, &desc, outputs, &p, &dense);
    desc.row_stride = desc.gradient_row_stride = stride;
    if (offset > 0) desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    args.outputs = outputs;
    args.logits = args.gradient = (clxent_buffer){ make_buffer(bytes), offset * size };
    write_slabs(s, args.logits.mem, size, stride, offset, p.args.logits.data);
    run(s, make_plan(s, &desc), &args, &p, dense.losses.data);
    check_slabs(s, "gradient", args.gradient.mem, size, stride, offset, dense.gradient.data);
    if (offset > 0) check_zero_padding(s, args.gradient.mem, size, stride, offset);
    clReleaseMemObject(args.logits.mem);
    free_run(&p, &dense);
}

/* The other tensors of [rows, classes]: probability targets and the softmax, each with its own huge stride. */
static void check_strided_targets_and_softmax(const shape *s, size_t stride)
{
    const size_t bytes = ((SLABS - 1) * stride + s->classes * s->inner) * 2;
    /* of lanes test_cross_entropy.c has programs, with the class axis not last under smoothing */
    const bool shared = s->which == EACH_LANES && !runs_all();
    const uint32_t outputs = CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOSSES;
    clxent_desc desc = large_desc(s, outputs, s->narrow_general);
    clxent_args args = CLXENT_ARGS_INIT;
    clxent_host_args dense;
    problem p;

    need(bytes);
    desc.target_type = CLXENT_TARGET_PROBABILITIES_LOGITS;
    if (shared) desc.outputs = EVERY_OUTPUT & ~(CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_BAD_TARGETS);
    if (shared && s->inner > 1) desc.label_smoothing = 0.1;
    run_dense(s, &desc, outputs, &p, &dense);
    desc.target_row_stride = desc.probabilities_row_stride = stride;
    args.outputs = outputs;
    args.logits.mem = new_buffer(device.cl, CL_MEM_READ_WRITE, p.args.logits.size, p.args.logits.data);
    args.targets.mem = make_buffer(bytes);
    args.softmax.mem = make_buffer(bytes);
    write_slabs(s, args.targets.mem, 2, stride, 0, p.args.targets.data);
    run(s, make_plan(s, &desc), &args, &p, dense.losses.data);
    check_slabs(s, "softmax", args.softmax.mem, 2, stride, 0, dense.softmax.data);
    clReleaseMemObject(args.logits.mem);
    clReleaseMemObject(args.targets.mem);
    clReleaseMemObject(args.softmax.mem);
    free_run(&p, &dense);
}

/* Strides are odd so that a lost upper half lands nowhere near a row. */
Test(large, elements_beyond_2_to_the_31)
{
    for (size_t i = 0; i < SHAPES; i++) {
        const shape s = shape_for(i, CLXENT_F32), narrow = shape_for(i, CLXENT_BF16);
        if (takes(&s, CLXENT_F32)) check_strided(&s, CLXENT_F32, ((size_t)1 << 30) + 4099, 0);
        if (takes(&narrow, CLXENT_BF16)) check_strided(&narrow, narrow.narrow, ((size_t)1 << 30) + 4099, 0);
    }
}

Test(large, elements_beyond_2_to_the_32)
{
    for (size_t i = 0; i < SHAPES; i++) {
        const shape s = shape_for(i, CLXENT_BF16);
        if (!takes(&s, CLXENT_BF16)) continue;
        check_strided(&s, s.narrow, ((size_t)1 << 31) + 4099, 0);
        /* split rows read and write them as whole ones do */
        if (runs_all() || s.which != EACH_SPLIT)
            check_strided_targets_and_softmax(&s, ((size_t)1 << 31) + 4099);
    }
}

Test(large, byte_offsets_beyond_4_gigabytes)
{
    for (size_t i = 0; i < SHAPES; i++) {
        const shape s = shape_for(i, CLXENT_F32), narrow = shape_for(i, CLXENT_BF16);
        if (takes(&s, CLXENT_F32))
            check_strided(&s, CLXENT_F32, s.classes * s.inner + 3, ((size_t)1 << 30) + 17);
        if (takes(&narrow, CLXENT_BF16))
            check_strided(&narrow, narrow.narrow, narrow.classes * narrow.inner + 3, ((size_t)1 << 32) + 17);
    }
}
