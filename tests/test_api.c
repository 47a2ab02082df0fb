/* SPDX-License-Identifier: MIT
 *
 * test_api.c - the contract of plans and runs at the edges: every status provoked, each with a text that names the
 * argument, what it got and what it takes; results NULL and nothing written on failure; structs of other ages.
 *
 * (Statuses of the context and of builds are provoked in test_context.c, of host arrays in test_host_arrays.c,
 * failing drivers and failing malloc in test_faults.c.) Includes internal.h to take f64 from the device.
 */
#include "internal.h"
#include "support.h"

#include <clxent/reference.h>
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROWS = 6, CLASSES = 4 };

/* A plan with all its buffers, exactly as large as they must be. */
static struct fixture {
    clxent_desc desc;
    clxent_plan *plan;
    clxent_args args;
    cl_mem mems[CLXENT_TENSORS];
    size_t sizes[CLXENT_TENSORS];
    size_t workspace;
} f;

/* Of zeros. */
static cl_mem make_buffer_with(cl_context cl, cl_mem_flags flags, size_t bytes)
{
    cl_int code;
    unsigned char *data = take_memory(bytes);
    memset(data, 0, bytes);
    cl_mem mem = clCreateBuffer(cl, flags | CL_MEM_COPY_HOST_PTR, bytes, data, &code);
    cr_assert(code == CL_SUCCESS, "clCreateBuffer: %d", code);
    free(data);
    return mem;
}

static cl_mem make_buffer(size_t bytes) { return make_buffer_with(device.cl, CL_MEM_READ_WRITE, bytes); }

static clxent_buffer *field(clxent_args *args, int tensor)
{
    return tensor == CLXENT_TENSORS ? &args->workspace : buffer_of(args, tensor);
}

static void open_fixture(void)
{
    const clxent_desc desc = CLXENT_DESC_INIT;

    open_device();
    f.desc = desc;
    f.desc.outputs = EVERY_OUTPUT;
    f.desc.batch = ROWS;
    f.desc.seq = 1;
    f.desc.classes = CLASSES;
    f.desc.target_type = CLXENT_TARGET_I32;
    f.desc.has_class_weights = f.desc.has_row_weights = 1;
    cr_assert(clxent_plan_create(&f.plan, device.ctx, &f.desc) == CLXENT_OK, "%s", last_error());
    clxent_args_init(&f.args);
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        clxent_need need;
        cr_assert(
            clxent_tensor_need(&f.desc, f.desc.outputs, false, ROWS, (clxent_tensor)t, &need, NULL, 0) == 0);
        if (need.use == CLXENT_UNUSED) continue;
        f.sizes[t] = need.bytes;
        f.mems[t] = field(&f.args, t)->mem = make_buffer(need.bytes);
    }
    f.workspace = clxent_plan_workspace_size(f.plan);
    f.args.workspace.mem = make_buffer(f.workspace > 0 ? f.workspace : 1);
}

static void close_fixture(void)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (f.mems[t] != NULL) clReleaseMemObject(f.mems[t]);
    }
    clReleaseMemObject(f.args.workspace.mem);
    clxent_plan_destroy(f.plan);
    memset(&f, 0, sizeof f);
    close_device();
}

TestSuite(api, .init = open_fixture, .fini = close_fixture);

#define WORDS(...) ((const char *const[]){ __VA_ARGS__, NULL })

static void check_text(const char *name, const char *const *words)
{
    const char *text = last_error();
    cr_assert(strchr(text, '\n') == NULL && text[0] != '\0', "%s: not one line: \"%s\"", name, text);
    for (size_t i = 0; words[i] != NULL; i++) {
        cr_assert(strstr(text, words[i]) != NULL, "%s: \"%s\" does not say \"%s\"", name, text, words[i]);
    }
}

/* Fails as it should, leaves the event alone, and enqueues nothing. */
static void expect_enqueue(const char *name, const clxent_args *args, clxent_status want,
                           const char *const *words)
{
    cl_event untouched = (cl_event)&f, event = untouched;
    const clxent_status status = clxent_enqueue(f.plan, device.queue, args, 0, NULL, &event);
    cr_assert(status == want, "%s: got %s: %s", name, clxent_status_string(status), last_error());
    cr_assert(event == untouched, "%s: the event was touched", name);
    check_text(name, words);
}

Test(api, the_fixture_itself_runs)
{
    cl_event done = NULL;
    const clxent_status status = clxent_enqueue(f.plan, device.queue, &f.args, 0, NULL, &done);
    cr_assert(status == CLXENT_OK, "%s: %s", clxent_status_string(status), last_error());
    cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
    clReleaseEvent(done);
}

/* ---- Plans --------------------------------------------------------------------------------- */

Test(api, plan_create_needs_its_pointers)
{
    clxent_plan *plan = f.plan;
    cr_assert(clxent_plan_create(NULL, device.ctx, &f.desc) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(clxent_plan_create(&plan, NULL, &f.desc) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(plan == NULL);
    plan = f.plan;
    cr_assert(clxent_plan_create(&plan, device.ctx, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(plan == NULL);
}

Test(api, destroy_accepts_null)
{
    clxent_plan_destroy(NULL);
    clxent_context_destroy(NULL);
    cr_assert(clxent_plan_workspace_size(f.plan) == f.workspace);
}

static void expect_plan(const char *name, const clxent_desc *desc, clxent_status want,
                        const char *const *words)
{
    clxent_plan *plan = f.plan;
    const clxent_status status = clxent_plan_create(&plan, device.ctx, desc);
    cr_assert(status == want, "%s: got %s: %s", name, clxent_status_string(status), last_error());
    cr_assert(plan == NULL, "%s: *out is not NULL", name);
    check_text(name, words);
}

Test(api, invalid_descs_are_refused_by_name)
{
    clxent_desc desc = f.desc;
    desc.classes = 0;
    expect_plan("classes", &desc, CLXENT_ERROR_INVALID_DESC, WORDS("classes is 0"));
    desc = f.desc;
    desc.label_smoothing = 1.5;
    expect_plan("label_smoothing", &desc, CLXENT_ERROR_INVALID_DESC,
                WORDS("label_smoothing is 1.5", "[0, 1]"));
    desc = f.desc;
    desc.row_stride = 3;
    expect_plan("row_stride", &desc, CLXENT_ERROR_INVALID_DESC, WORDS("row_stride is 3", "4"));
    desc = f.desc;
    desc.outputs = 0;
    expect_plan("outputs", &desc, CLXENT_ERROR_INVALID_DESC, WORDS("outputs is 0"));
    desc = f.desc;
    desc.struct_size = sizeof desc + 8;
    expect_plan("struct_size", &desc, CLXENT_ERROR_INVALID_DESC, WORDS("struct_size"));
    desc.struct_size = offsetof(clxent_desc, softcap) + 4; /* half a double */
    expect_plan("struct_size", &desc, CLXENT_ERROR_INVALID_DESC, WORDS("struct_size", "CLXENT_DESC_INIT"));
}

Test(api, f64_without_device_support_is_unsupported)
{
    clxent_desc desc = f.desc;
    desc.dtype = CLXENT_F64;
    device.ctx->device.has_f64 = false;
    expect_plan("f64", &desc, CLXENT_ERROR_UNSUPPORTED, WORDS("f64"));
    /* The others still run. */
    clxent_plan *plan;
    desc.dtype = CLXENT_BF16;
    cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    clxent_plan_destroy(plan);
}

/* PoCL 6.0's compiler ends the process: nothing but a refusal before it is asked can be told apart from a crash. */
Test(api, groups_that_the_drivers_compiler_does_not_survive_are_refused)
{
    static const struct {
        const char *driver, *version;
        bool cpu, takes;
    } drivers[] = {
        { "6.0", "OpenCL 3.0 PoCL HSTR: cpu-x86_64-pc-linux-gnu-haswell", true, false },
        { "6.0+debian", "OpenCL 3.0 PoCL HSTR: cpu-x86_64-pc-linux-gnu-haswell", true, false },
        { "6.0", "OpenCL 3.0 PoCL HSTR: CUDA-sm_80", false, true },
        { "6.1", "OpenCL 3.0 PoCL HSTR: cpu-x86_64-pc-linux-gnu-haswell", true, true },
        { "3.1+debian", "OpenCL 3.0 PoCL HSTR: pthread-x86_64-pc-linux-gnu-haswell", true, true },
        { "6.0", "OpenCL 3.0 (Build 0)", true, true },
    };
    const clxent_tuning groups[] = {
        { .group = 8, .vector = 4, .block = 4, .elements = 1, .lane_group = 1, .lane_vector = 4 },
        { .group = 1,
          .vector = 4,
          .block = 4,
          .lane_classes = 32,
          .lane_group = 2,
          .lane_vector = 1,
          .lane_cache = 4096 },
    };
    clxent_device *d = &device.ctx->device;
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_plan *plan;
    uint32_t most;

    desc.outputs = CLXENT_OUTPUT_LOSS;
    desc.batch = 1;
    desc.seq = 1;
    desc.classes = 4;
    for (size_t i = 0; i < COUNT(drivers); i++) {
        (void)snprintf(d->driver, sizeof d->driver, "%s", drivers[i].driver);
        (void)snprintf(d->version, sizeof d->version, "%s", drivers[i].version);
        d->type = drivers[i].cpu ? CL_DEVICE_TYPE_CPU : CL_DEVICE_TYPE_GPU;
        for (uint32_t group = 1; group <= 1024; group *= 2) {
            const bool takes = group == 1 || drivers[i].takes;
            cr_assert((clxent_tuning_driver_fault(d, group, &most) == NULL) == takes, "driver %s, group %u",
                      drivers[i].driver, (unsigned)group);
        }
        for (size_t k = 0; !drivers[i].takes && k < 2; k++) {
            cr_assert(clxent_plan_create_tuned(&plan, device.ctx, &desc, &groups[k]) ==
                          CLXENT_ERROR_UNSUPPORTED,
                      "driver %s, tuning %zu: %s", drivers[i].driver, k, last_error());
            cr_assert(plan == NULL);
            check_text("tuning",
                       WORDS(k == 0 ? "work-group of 8" : "work-group of 2", "at most 1", "PoCL 6.0"));
        }
    }

    /* What the library chooses by itself is never refused. */
    (void)snprintf(d->driver, sizeof d->driver, "%s", drivers[0].driver);
    (void)snprintf(d->version, sizeof d->version, "%s", drivers[0].version);
    d->type = CL_DEVICE_TYPE_CPU;
    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++) {
        desc.dtype = dtype;
        const clxent_tuning t = clxent_tuning_choose(device.ctx->tuning, d, &desc);
        cr_assert(clxent_tuning_driver_fault(d, t.group, &most) == NULL &&
                      clxent_tuning_driver_fault(d, t.lane_group, &most) == NULL,
                  "dtype %u", (unsigned)dtype);
    }
}

Test(api, a_plan_names_its_strategy)
{
    const char *strategy = clxent_plan_strategy(f.plan);
    cr_assert(strategy != NULL && strategy[0] != '\0' && strchr(strategy, '\n') == NULL);
}

static void count_programs(const char *message, void *payload)
{
    if (strncmp(message, "program: ", 9) == 0) ++*(size_t *)payload;
}

Test(api, a_strategy_is_told_before_anything_is_compiled)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    clxent_context *ctx;
    clxent_plan *plan;
    char text[512], start[9] = "........";
    size_t programs = 0;

    options.log = count_programs;
    options.log_payload = &programs;
    cr_assert(clxent_context_create(&ctx, device.cl, device.id, &options) == CLXENT_OK);
    cr_assert(clxent_plan_describe(ctx, &f.desc, text, sizeof text) == CLXENT_OK);
    cr_assert(clxent_plan_describe(ctx, &f.desc, start, sizeof start) == CLXENT_OK);
    cr_assert(clxent_plan_describe(ctx, &f.desc, NULL, 0) == CLXENT_OK);
    cr_assert_eq(programs, 0);
    cr_assert(clxent_plan_create(&plan, ctx, &f.desc) == CLXENT_OK);
    cr_assert_eq(programs, 1);
    cr_assert_str_eq(text, clxent_plan_strategy(plan));
    cr_assert(strlen(start) == 8 && strncmp(start, text, 8) == 0, "%s", start);
    clxent_plan_destroy(plan);

    cr_assert(clxent_plan_describe(NULL, &f.desc, text, sizeof text) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert_str_eq(text, "");
    cr_assert(clxent_plan_describe(ctx, NULL, text, sizeof text) == CLXENT_ERROR_NULL_ARGUMENT);
    f.desc.classes = 0;
    strcpy(text, "before");
    cr_assert(clxent_plan_describe(ctx, &f.desc, text, sizeof text) == CLXENT_ERROR_INVALID_DESC);
    cr_assert_str_eq(text, "");
    clxent_context_destroy(ctx);
}

Test(api, a_plan_outlives_its_context)
{
    clxent_context *ctx;
    clxent_plan *plan;
    cl_event done;

    cr_assert(clxent_context_create(&ctx, device.cl, device.id, NULL) == CLXENT_OK);
    cr_assert(clxent_plan_create(&plan, ctx, &f.desc) == CLXENT_OK);
    clxent_context_destroy(ctx);
    cr_assert(clxent_enqueue(plan, device.queue, &f.args, 0, NULL, &done) == CLXENT_OK);
    cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
    f.args.logits.mem = NULL; /* also its words have somewhere to go */
    cr_assert(clxent_enqueue(plan, device.queue, &f.args, 0, NULL, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    clReleaseEvent(done);
    clxent_plan_destroy(plan);
}

/* ---- Runs ---------------------------------------------------------------------------------- */

Test(api, enqueue_needs_its_pointers)
{
    cl_event gate[1] = { NULL };
    cr_assert(clxent_enqueue(NULL, device.queue, &f.args, 0, NULL, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(clxent_enqueue(f.plan, NULL, &f.args, 0, NULL, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    check_text("queue", WORDS("queue"));
    cr_assert(clxent_enqueue(f.plan, device.queue, NULL, 0, NULL, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    check_text("args", WORDS("args"));
    cr_assert(clxent_enqueue(f.plan, device.queue, &f.args, 1, NULL, NULL) != CLXENT_OK,
              "1 event, but no list");
    check_text("wait", WORDS("wait"));
    cr_assert(clxent_enqueue(f.plan, device.queue, &f.args, 0, gate, NULL) != CLXENT_OK,
              "a list of 0 events");
    check_text("wait", WORDS("wait"));
}

Test(api, every_buffer_must_be_there)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        const char *name = clxent_tensor_name((clxent_tensor)t);
        char bytes[32];
        clxent_args args = f.args;
        if (f.mems[t] == NULL || t == CLXENT_TENSOR_GRAD_OUTPUT || t == CLXENT_TENSOR_DENOMINATOR ||
            t == CLXENT_TENSOR_BAD_TARGETS) {
            continue;
        }
        field(&args, t)->mem = NULL;
        snprintf(bytes, sizeof bytes, "%zu bytes", f.sizes[t]);
        expect_enqueue(name, &args, CLXENT_ERROR_NULL_ARGUMENT, WORDS(name, "NULL", bytes));
    }
    if (f.workspace > 0) {
        clxent_args args = f.args;
        args.workspace.mem = NULL;
        expect_enqueue("workspace", &args, CLXENT_ERROR_NULL_ARGUMENT, WORDS("workspace", "NULL"));
    }
}

Test(api, optional_buffers_may_be_absent)
{
    clxent_args args = f.args;
    args.grad_output.mem = args.denominator.mem = args.bad_targets.mem = NULL;
    cr_assert(clxent_enqueue(f.plan, device.queue, &args, 0, NULL, NULL) == CLXENT_OK, "%s", last_error());
    clFinish(device.queue);
}

Test(api, every_buffer_must_be_large_enough)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        const char *name = clxent_tensor_name((clxent_tensor)t);
        char needs[32], holds[32];
        clxent_args args = f.args;
        if (f.mems[t] == NULL) continue;
        cl_mem small = make_buffer(f.sizes[t] - 1);
        field(&args, t)->mem = small;
        snprintf(needs, sizeof needs, "= %zu bytes", f.sizes[t]);
        snprintf(holds, sizeof holds, "%zu", f.sizes[t] - 1);
        expect_enqueue(name, &args, CLXENT_ERROR_BUFFER_TOO_SMALL,
                       WORDS(name, "mem holds", holds, "takes [", needs));
        clReleaseMemObject(small);

        /* Large enough, but not from there on; and an offset that would wrap around. */
        args = f.args;
        field(&args, t)->offset = t == CLXENT_TENSOR_BAD_TARGETS ? 24 : 8;
        expect_enqueue(name, &args, CLXENT_ERROR_BUFFER_TOO_SMALL, WORDS(name, "offset"));
        field(&args, t)->offset = SIZE_MAX / 24 * 24;
        expect_enqueue(name, &args, CLXENT_ERROR_BUFFER_TOO_SMALL, WORDS(name, "offset"));
    }
    if (f.workspace > 0) {
        clxent_args args = f.args;
        cl_mem small = make_buffer(f.workspace > 1 ? f.workspace - 1 : 1);
        args.workspace.mem = small;
        expect_enqueue("workspace", &args, CLXENT_ERROR_BUFFER_TOO_SMALL, WORDS("workspace"));
        clReleaseMemObject(small);
    }
}

Test(api, a_gradient_with_zero_padding_must_hold_the_last_rows_too)
{
    clxent_args args = f.args;
    clxent_plan *plan = f.plan;

    f.desc.gradient_row_stride = CLASSES + 3;
    f.desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    cr_assert(clxent_plan_create(&f.plan, device.ctx, &f.desc) == CLXENT_OK, "%s", last_error());
    args.gradient.mem = make_buffer((ROWS * (CLASSES + 3) - 1) * 4);
    expect_enqueue("gradient", &args, CLXENT_ERROR_BUFFER_TOO_SMALL,
                   WORDS("gradient", "row stride 7, padding too = 168 bytes", "holds 164"));
    clReleaseMemObject(args.gradient.mem);
    args.gradient.mem = make_buffer(ROWS * (CLASSES + 3) * 4);
    cr_assert(clxent_enqueue(f.plan, device.queue, &args, 0, NULL, NULL) == CLXENT_OK, "%s", last_error());
    clFinish(device.queue);
    clReleaseMemObject(args.gradient.mem);
    clxent_plan_destroy(f.plan);
    f.plan = plan;
}

Test(api, arguments_out_of_range)
{
    clxent_args args = f.args;
    args.rows = ROWS + 1;
    expect_enqueue("rows", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("rows is 7", "6"));
    args = f.args;
    args.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_ONE_HOT;
    expect_enqueue("outputs", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("outputs"));
    args = f.args;
    args.struct_size = sizeof args + 8;
    expect_enqueue("struct_size", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("struct_size"));
    args.struct_size = 0;
    expect_enqueue("struct_size", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("struct_size"));
    args.struct_size = offsetof(clxent_args, logits) + sizeof(cl_mem); /* a buffer without its offset */
    expect_enqueue("struct_size", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                   WORDS("args.struct_size is", "takes", "CLXENT_ARGS_INIT"));
}

Test(api, offsets_are_multiples_of_the_element)
{
    clxent_args args = f.args;
    cl_mem large = make_buffer(ROWS * CLASSES * 4 + 64);
    args.logits = (clxent_buffer){ large, 2 };
    expect_enqueue("logits", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("logits", "offset is 2", "4"));
    args = f.args;
    args.argmax = (clxent_buffer){ large, 4 };
    expect_enqueue("argmax", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("argmax", "offset is 4", "8"));
    clReleaseMemObject(large);
    if (f.workspace > 0) {
        large = make_buffer(f.workspace + 64);
        args = f.args;
        args.workspace = (clxent_buffer){ large, 32 };
        expect_enqueue("workspace", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                       WORDS("workspace", "offset is 32", "64"));
        clReleaseMemObject(large);
    }
}

Test(api, buffers_may_not_overlap)
{
    clxent_args args = f.args;
    args.lse = args.losses;
    expect_enqueue("lse", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("lse", "losses"));
    args = f.args;
    args.losses.mem = args.row_weights.mem;
    expect_enqueue("losses", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("losses", "row_weights"));
    args = f.args;
    args.softmax = args.logits; /* with the gradient asked for, too */
    expect_enqueue("softmax", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("softmax", "logits"));

    /* Next to each other is no overlap. */
    cl_mem both = make_buffer(2 * f.sizes[CLXENT_TENSOR_LOSSES]);
    args = f.args;
    args.losses = (clxent_buffer){ both, 0 };
    args.lse = (clxent_buffer){ both, f.sizes[CLXENT_TENSOR_LOSSES] };
    cr_assert(clxent_enqueue(f.plan, device.queue, &args, 0, NULL, NULL) == CLXENT_OK, "%s", last_error());
    clFinish(device.queue);
    args.lse.offset -= 4;
    expect_enqueue("lse", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("lse", "losses"));
    clReleaseMemObject(both);
}

/* ---- Memory objects ------------------------------------------------------------------------ */

static const char *name_of(int tensor)
{
    return tensor == CLXENT_TENSORS ? "workspace" : clxent_tensor_name((clxent_tensor)tensor);
}

static size_t size_of(int tensor) { return tensor == CLXENT_TENSORS ? f.workspace : f.sizes[tensor]; }

/* Tensors of the fixture's plan and, last, its workspace. */
static bool is_used(int tensor)
{
    return tensor == CLXENT_TENSORS ? f.workspace > 0 : f.mems[tensor] != NULL;
}

static void expect_accepted(const char *name, const clxent_args *args)
{
    const clxent_status status = clxent_enqueue(f.plan, device.queue, args, 0, NULL, NULL);
    cr_assert(status == CLXENT_OK, "%s: %s: %s", name, clxent_status_string(status), last_error());
    clFinish(device.queue);
}

Test(api, buffers_of_another_context_are_refused)
{
    cl_int code;
    cl_context other = clCreateContext(NULL, 1, &device.id, NULL, NULL, &code);
    cr_assert(code == CL_SUCCESS);
    for (int t = 0; t <= CLXENT_TENSORS; t++) {
        clxent_args args = f.args;
        if (!is_used(t)) continue;
        cl_mem foreign = make_buffer_with(other, CL_MEM_READ_WRITE, size_of(t));
        field(&args, t)->mem = foreign;
        expect_enqueue(
            name_of(t), &args, CLXENT_ERROR_INVALID_ARGUMENT,
            WORDS(name_of(t), ".mem is a buffer of another cl_context", "takes one of the plan's"));
        clReleaseMemObject(foreign);
    }
    clReleaseContext(other);
}

Test(api, images_are_refused)
{
    const cl_image_format format = { CL_RGBA, CL_FLOAT };
    const cl_image_desc shape = { .image_type = CL_MEM_OBJECT_IMAGE2D,
                                  .image_width = 64,
                                  .image_height = 64 };
    cl_bool has_images = CL_FALSE;
    cl_int code;

    clGetDeviceInfo(device.id, CL_DEVICE_IMAGE_SUPPORT, sizeof has_images, &has_images, NULL);
    if (!has_images) cr_skip("the device has no images");
    cl_mem picture = clCreateImage(device.cl, CL_MEM_READ_WRITE, &format, &shape, NULL, &code);
    cr_assert(code == CL_SUCCESS, "clCreateImage: %d", code);
    for (int t = 0; t <= CLXENT_TENSORS; t++) {
        clxent_args args = f.args;
        if (!is_used(t)) continue;
        field(&args, t)->mem = picture;
        expect_enqueue(name_of(t), &args, CLXENT_ERROR_INVALID_ARGUMENT,
                       WORDS(name_of(t), ".mem is an image", "takes a buffer"));
    }
    clReleaseMemObject(picture);
}

/* Inputs that kernels may not read, outputs that they may not write, and a workspace that allows one of both. */
Test(api, buffers_closed_to_kernels_are_refused)
{
    for (int t = 0; t <= CLXENT_TENSORS; t++) {
        const bool input = t < CLXENT_TENSOR_LOSSES, output = t >= CLXENT_TENSOR_LOSSES;
        clxent_args args = f.args;
        if (!is_used(t)) continue;
        const bool both =
            t == CLXENT_TENSORS || t == CLXENT_TENSOR_LOSSES; /* the loss is summed from losses */
        for (int i = 0; i < 2; i++) {
            const cl_mem_flags flags = i == 0 ? CL_MEM_READ_ONLY : CL_MEM_WRITE_ONLY;
            const char *is = i == 0 ? ".mem is CL_MEM_READ_ONLY" : ".mem is CL_MEM_WRITE_ONLY";
            cl_mem closed = make_buffer_with(device.cl, flags | CL_MEM_HOST_NO_ACCESS, size_of(t));
            field(&args, t)->mem = closed;
            if (both || (flags == CL_MEM_READ_ONLY ? output : input)) {
                expect_enqueue(name_of(t), &args, CLXENT_ERROR_INVALID_ARGUMENT,
                               WORDS(name_of(t), is, "takes ", "CL_MEM_READ_WRITE",
                                     both || output ? "writes" : "reads"));
            } else {
                expect_accepted(name_of(t), &args);
            }
            clReleaseMemObject(closed);
        }
    }
}

Test(api, what_a_run_does_with_a_buffer_decides)
{
    cl_mem read_only = make_buffer_with(device.cl, CL_MEM_READ_ONLY, ROWS * CLASSES * 4);
    cl_mem write_only = make_buffer_with(device.cl, CL_MEM_WRITE_ONLY, ROWS * CLASSES * 4);
    clxent_plan *own = f.plan;
    clxent_args args = f.args;
    clxent_desc desc = f.desc;

    /* Row losses alone are not read back. */
    args.outputs = CLXENT_OUTPUT_LOSSES;
    args.losses.mem = write_only;
    expect_accepted("losses", &args);

    /* Statistics are an output of one run and an input of another. */
    args = f.args;
    args.outputs = CLXENT_OUTPUT_GRADIENT;
    args.statistics.mem = write_only;
    expect_enqueue("statistics", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                   WORDS("statistics.mem is CL_MEM_WRITE_ONLY", "takes CL_MEM_READ_ONLY or", "reads"));
    args.statistics.mem = read_only;
    expect_accepted("statistics", &args);
    args.outputs = CLXENT_OUTPUT_STATISTICS;
    expect_enqueue("statistics", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                   WORDS("statistics.mem is CL_MEM_READ_ONLY", "takes CL_MEM_WRITE_ONLY or", "writes"));

    /* In place: read as logits, written as gradient. */
    args = f.args;
    args.outputs = CLXENT_OUTPUT_GRADIENT;
    args.statistics.mem = NULL;
    args.logits.mem = args.gradient.mem = read_only;
    expect_enqueue("in place", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                   WORDS("gradient.mem is CL_MEM_READ_ONLY"));
    args.logits.mem = args.gradient.mem = write_only;
    expect_enqueue("in place", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                   WORDS("logits.mem is CL_MEM_WRITE_ONLY"));

    /* Accumulated: read and written. */
    desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    cr_assert(clxent_plan_create(&f.plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    for (int i = 0; i < 2; i++) {
        args = f.args;
        args.gradient.mem = i == 0 ? read_only : write_only;
        expect_enqueue("accumulated", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                       WORDS("gradient.mem is CL_MEM_", "takes CL_MEM_READ_WRITE", "reads and writes"));
    }
    clxent_plan_destroy(f.plan);
    f.plan = own;
    clReleaseMemObject(read_only);
    clReleaseMemObject(write_only);
}

/* A sub-buffer has its own flags, else its parent's. */
Test(api, sub_buffers_inherit_their_access)
{
    const cl_mem_flags parents[] = { CL_MEM_READ_WRITE, CL_MEM_READ_WRITE, CL_MEM_READ_WRITE,
                                     CL_MEM_READ_ONLY, CL_MEM_WRITE_ONLY };
    const cl_mem_flags subs[] = { 0, CL_MEM_READ_ONLY, CL_MEM_WRITE_ONLY, 0, 0 };
    const cl_buffer_region region = { 0, ROWS * CLASSES * 4 };

    for (int i = 0; i < 5; i++) {
        const bool reads = i != 2 && i != 4, writes = i != 1 && i != 3;
        cl_int code;
        cl_mem parent = make_buffer_with(device.cl, parents[i], 2 * region.size);
        cl_mem sub = clCreateSubBuffer(parent, subs[i], CL_BUFFER_CREATE_TYPE_REGION, &region, &code);
        clxent_args args = f.args;
        cr_assert(code == CL_SUCCESS, "clCreateSubBuffer: %d", code);

        args.logits.mem = sub;
        if (reads) expect_accepted("logits", &args);
        else
            expect_enqueue("logits", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                           WORDS("logits.mem is CL_MEM_WRITE_ONLY"));
        args = f.args;
        args.gradient.mem = sub;
        if (writes) expect_accepted("gradient", &args);
        else
            expect_enqueue("gradient", &args, CLXENT_ERROR_INVALID_ARGUMENT,
                           WORDS("gradient.mem is CL_MEM_READ_ONLY"));
        args.gradient.offset = 4; /* and no more room than its own */
        if (writes)
            expect_enqueue("gradient", &args, CLXENT_ERROR_BUFFER_TOO_SMALL, WORDS("gradient.mem holds 96"));
        clReleaseMemObject(sub);
        clReleaseMemObject(parent);
    }
}

/* Plans whose gradient could stand in the logits' place but for one thing. */
Test(api, in_place_needs_equal_layouts)
{
    clxent_desc descs[3] = { f.desc, f.desc, f.desc };
    descs[0].gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    descs[1].gradient_dtype = CLXENT_F16;
    descs[2].gradient_row_stride = CLASSES + 1;
    for (int i = 0; i < 3; i++) {
        clxent_plan *own = f.plan;
        clxent_args args = f.args;
        cl_mem large = make_buffer(ROWS * (CLASSES + 1) * 4);
        cr_assert(clxent_plan_create(&f.plan, device.ctx, &descs[i]) == CLXENT_OK, "%s", last_error());
        args.logits.mem = args.gradient.mem = large;
        expect_enqueue("in place", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("gradient", "logits"));
        clxent_plan_destroy(f.plan);
        clReleaseMemObject(large);
        f.plan = own;
    }
}

Test(api, rows_come_in_whole_sequences_and_slabs)
{
    clxent_plan *own = f.plan;
    clxent_desc desc = f.desc;
    clxent_args args = f.args;

    desc.batch = 2;
    desc.seq = 3;
    desc.shift = 1;
    cr_assert(clxent_plan_create(&f.plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    args.rows = 4;
    expect_enqueue("shift", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("rows is 4", "3"));
    clxent_plan_destroy(f.plan);

    desc.shift = 0;
    desc.inner = 2;
    cr_assert(clxent_plan_create(&f.plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    args.rows = 3;
    expect_enqueue("inner", &args, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("rows is 3", "2"));
    clxent_plan_destroy(f.plan);
    f.plan = own;
}

/* No size of a batch without rows divides, overflows or is allocated. */
Test(api, plans_without_rows_run_whatever_their_sizes)
{
    static const struct {
        size_t seq, shift, inner, stride;
    } shapes[] = { { 0, 1, 1, 0 },
                   { 0, SIZE_MAX, 3, 0 },
                   { SIZE_MAX, SIZE_MAX, 1, 0 },
                   { 5, 6, SIZE_MAX / CLASSES / 8, 0 },
                   { 1, 0, 1, SIZE_MAX / 8 } };

    for (size_t i = 0; i < COUNT(shapes); i++) {
        clxent_desc desc = f.desc;
        clxent_plan *plan;
        cl_event done;
        uint64_t correct = 9;
        desc.batch = 0;
        desc.seq = shapes[i].seq;
        desc.shift = shapes[i].shift;
        desc.inner = shapes[i].inner;
        desc.row_stride = desc.gradient_row_stride = desc.probabilities_row_stride = shapes[i].stride;
        cr_assert(clxent_plan_create(&plan, device.ctx, &desc) == CLXENT_OK, "%zu: %s", i, last_error());
        cr_assert(clxent_plan_workspace_size(plan) <= f.workspace);
        cr_assert(clxent_enqueue(plan, device.queue, &f.args, 0, NULL, &done) == CLXENT_OK, "%zu: %s", i,
                  last_error());
        cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
        clReleaseEvent(done);
        cr_assert(clEnqueueReadBuffer(device.queue, f.args.correct.mem, CL_TRUE, 0, sizeof correct, &correct,
                                      0, NULL, NULL) == CL_SUCCESS);
        cr_assert(correct == 0, "%zu: correct is %llu", i, (unsigned long long)correct);
        clxent_plan_destroy(plan);
    }
}

Test(api, a_queue_of_another_context_is_refused)
{
    cl_int code;
    cl_event event = NULL;
    cl_context other = clCreateContext(NULL, 1, &device.id, NULL, NULL, &code);
    cl_command_queue queue = clCreateCommandQueue(other, device.id, 0, &code);
    cr_assert(code == CL_SUCCESS);
    cr_assert(clxent_enqueue(f.plan, queue, &f.args, 0, NULL, &event) == CLXENT_ERROR_INVALID_ARGUMENT);
    cr_assert(event == NULL);
    check_text("queue", WORDS("queue"));
    clReleaseCommandQueue(queue);
    clReleaseContext(other);
}

/* A part of the plan's device is another device. */
Test(api, a_queue_of_a_part_of_the_device_is_refused)
{
    const cl_device_partition_property equally[] = { CL_DEVICE_PARTITION_EQUALLY, 1, 0 };
    cl_device_partition_property can[8] = { 0 };
    cl_event event = NULL;
    cl_uint units = 0, parts = 0;
    cl_device_id subs[256];
    cl_int code;

    /* Asked first: some drivers crash where they cannot. */
    clGetDeviceInfo(device.id, CL_DEVICE_PARTITION_PROPERTIES, sizeof can, can, NULL);
    clGetDeviceInfo(device.id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof units, &units, NULL);
    if (can[0] == 0 || units < 2 || units > 256) cr_skip("the device cannot be divided");
    code = clCreateSubDevices(device.id, equally, 256, subs, &parts);
    if (code != CL_SUCCESS) cr_skip("the device cannot be divided: %d", code);
    cl_command_queue queue = clCreateCommandQueue(device.cl, subs[0], 0, &code);
    if (code == CL_SUCCESS) {
        cr_assert(clxent_enqueue(f.plan, queue, &f.args, 0, NULL, &event) == CLXENT_ERROR_INVALID_ARGUMENT);
        cr_assert(event == NULL);
        check_text("queue", WORDS("queue is one of another device", "takes one of the plan's"));
        clReleaseCommandQueue(queue);
    }
    for (cl_uint i = 0; i < parts; i++) clReleaseDevice(subs[i]);
}

Test(api, events_of_the_wait_list_are_events_of_the_context)
{
    cl_int code;
    cl_event event = NULL;
    cl_context other = clCreateContext(NULL, 1, &device.id, NULL, NULL, &code);
    cr_assert(code == CL_SUCCESS);
    cl_event good = clCreateUserEvent(device.cl, &code), foreign = clCreateUserEvent(other, &code);
    cr_assert(code == CL_SUCCESS);
    clSetUserEventStatus(good, CL_COMPLETE);
    clSetUserEventStatus(foreign, CL_COMPLETE);

    const cl_event with_null[] = { good, NULL, good }, with_foreign[] = { good, good, foreign };
    cr_assert(clxent_enqueue(f.plan, device.queue, &f.args, 3, with_null, &event) ==
              CLXENT_ERROR_INVALID_ARGUMENT);
    check_text("NULL", WORDS("wait[1] is NULL", "takes an event"));
    cr_assert(clxent_enqueue(f.plan, device.queue, &f.args, 3, with_foreign, &event) ==
              CLXENT_ERROR_INVALID_ARGUMENT);
    check_text("foreign", WORDS("wait[2] is an event of another cl_context", "takes one of the plan's"));
    cr_assert(event == NULL);
    cr_assert(clxent_enqueue(f.plan, device.queue, &f.args, 1, with_null, NULL) == CLXENT_OK, "%s",
              last_error());
    clFinish(device.queue);
    clReleaseEvent(good);
    clReleaseEvent(foreign);
    clReleaseContext(other);
}

/* What a failing run would have written holds what it held. */
Test(api, a_refused_run_writes_nothing)
{
    const float before[ROWS] = { 1, 2, 3, 4, 5, 6 };
    float after[ROWS];
    clxent_args args = f.args;

    clEnqueueWriteBuffer(device.queue, args.losses.mem, CL_TRUE, 0, sizeof before, before, 0, NULL, NULL);
    args.one_hot.mem = args.entropy.mem; /* not used: ignored */
    args.entropy.offset = 4;
    expect_enqueue("entropy", &args, CLXENT_ERROR_BUFFER_TOO_SMALL, WORDS("entropy"));
    clFinish(device.queue);
    clEnqueueReadBuffer(device.queue, args.losses.mem, CL_TRUE, 0, sizeof after, after, 0, NULL, NULL);
    cr_assert(memcmp(before, after, sizeof before) == 0);
}

/* ---- Structs of other ages ----------------------------------------------------------------- */

Test(api, init_functions_set_what_the_macros_set)
{
    clxent_desc desc;
    const clxent_desc desc_macro = CLXENT_DESC_INIT;
    clxent_args args;
    const clxent_args args_macro = CLXENT_ARGS_INIT;
    clxent_host_args host;
    const clxent_host_args host_macro = CLXENT_HOST_ARGS_INIT;

    memset(&desc, 0xFF, sizeof desc);
    clxent_desc_init(&desc);
    cr_assert(desc.struct_size == sizeof desc && desc.dtype == CLXENT_F32 &&
              desc.target_type == CLXENT_TARGET_I64);
    cr_assert(desc.ignore_index == -100 && desc.use_ignore_index == 1 && desc.inner == 1 &&
              desc.logit_scale == 1);
    cr_assert(desc.reduction == desc_macro.reduction && desc.softcap == 0 && desc.shift == 0 &&
              desc.outputs == 0);
    clxent_args_init(&args);
    cr_assert(memcmp(&args, &args_macro, sizeof args) == 0 && args.rows == CLXENT_ALL_ROWS);
    clxent_host_args_init(&host);
    cr_assert(memcmp(&host, &host_macro, sizeof host) == 0 && host.max_chunk_bytes == 0);
}

/* As an application that was compiled before the last fields existed would call. */
Test(api, older_structs_are_read_as_far_as_they_go)
{
    unsigned char bytes[sizeof(clxent_desc)];
    clxent_desc *old = take_memory(sizeof *old);
    clxent_plan *plan;

    f.desc.softcap = 0;
    memcpy(bytes, &f.desc, sizeof bytes);
    memset(bytes + offsetof(clxent_desc, softcap), 0xFF, sizeof bytes - offsetof(clxent_desc, softcap));
    memcpy(old, bytes, sizeof bytes);
    old->struct_size = offsetof(clxent_desc, softcap);
    cr_assert(clxent_plan_create(&plan, device.ctx, old) == CLXENT_OK, "%s", last_error());
    clxent_plan_destroy(plan);
    free(old);

    /* Nothing behind struct_size is given: outputs and buffers are defaults, so logits is missing. */
    clxent_args args = f.args;
    args.struct_size = offsetof(clxent_args, logits);
    expect_enqueue("args", &args, CLXENT_ERROR_NULL_ARGUMENT, WORDS("logits"));
}

/* The parent has a context and a plan: no OpenCL call works in the child any more, but these make none. */
Test(api, a_forked_child_may_check_descs_and_run_the_reference)
{
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        const float logits[4] = { 1, 3, 5, 7 };
        const int64_t target = 3;
        double loss = 0;
        clxent_desc d = CLXENT_DESC_INIT;
        clxent_host_args in = CLXENT_HOST_ARGS_INIT;
        clxent_reference_results results = CLXENT_REFERENCE_RESULTS_INIT;

        d.outputs = CLXENT_OUTPUT_LOSS;
        d.batch = d.seq = 1;
        d.classes = 4;
        in.logits = (clxent_input){ logits, sizeof logits };
        in.targets = (clxent_input){ &target, sizeof target };
        results.loss = &loss;
        const bool good = clxent_desc_check(&d, NULL, 0) == CLXENT_OK &&
                          clxent_reference_run(&d, &in, &results, NULL, 0) == CLXENT_OK && loss > 0.145 &&
                          loss < 0.1451;
        _exit(good ? 0 : 1);
    }
    int status = -1;
    cr_assert(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
              "status 0x%x", (unsigned)status);
}
