/* SPDX-License-Identifier: MIT
 *
 * test_api.c - the contract of plans and runs at the edges: every status provoked, each with a text that names the
 * argument, what it got and what it takes; results NULL and nothing written on failure; structs of other ages.
 *
 * (Statuses of the context and of builds are provoked in test_context.c, of host arrays in test_host_arrays.c,
 * failing drivers and failing malloc in test_faults.c.) Includes internal.h to take f64 from the device.
 */
#include "internal.h"
#include "strategies.h"
#include "support.h"

#include <clxent/reference.h>
#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ALL_ROWS = 6, CLASSES = 4 };

/* A plan with all its buffers, exactly as large as they must be. */
static struct fixture {
    clxent_desc desc;
    clxent_plan *plan;
    clxent_args args;
    cl_mem mems[CLXENT_TENSORS];
    size_t sizes[CLXENT_TENSORS];
    size_t workspace;
} f;

static cl_mem zeros(size_t bytes) { return new_buffer(device.cl, CL_MEM_READ_WRITE, bytes, NULL); }

static clxent_buffer *field(clxent_args *args, int tensor)
{
    return tensor == CLXENT_TENSORS ? &args->workspace : buffer_of(args, tensor);
}

/* All options of a program that other tests share. */
static void open_fixture(void)
{
    open_device();
    f.desc = make_desc(EVERY_OUTPUT, CLXENT_F32, ALL_ROWS, 1, CLASSES);
    f.desc.has_class_weights = f.desc.has_row_weights = 1;
    f.desc.label_smoothing = 0.1;
    f.desc.softcap = SHARED_SOFTCAP;
    f.plan = plan_with(NULL, &f.desc);
    clxent_args_init(&f.args);
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        clxent_need need;
        cr_assert(clxent_tensor_need(&f.desc, f.desc.outputs, false, ALL_ROWS, (clxent_tensor)t, &need, NULL,
                                     0) == 0);
        if (need.use == CLXENT_UNUSED) continue;
        f.sizes[t] = need.bytes;
        f.mems[t] = field(&f.args, t)->mem = zeros(need.bytes);
    }
    f.workspace = clxent_plan_workspace_size(f.plan);
    f.args.workspace.mem = zeros(f.workspace > 0 ? f.workspace : 1);
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

static void check_text(const char *name, const char *const *words)
{
    const char *text = last_error();
    cr_assert(strchr(text, '\n') == NULL && text[0] != '\0', "%s: not one line: \"%s\"", name, text);
    check_words(name, words);
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

/* A run of the fixture, with what is changed in `args`, is refused by CLXENT_ERROR_<status> in these words. */
#define REFUSED(name, status, words, ...)                          \
    do {                                                           \
        clxent_args args = f.args;                                 \
        __VA_ARGS__;                                               \
        expect_enqueue(name, &args, CLXENT_ERROR_##status, words); \
    } while (0)

static void expect_accepted(const char *name, const clxent_args *args)
{
    const clxent_status status = clxent_enqueue(f.plan, device.queue, args, 0, NULL, NULL);
    cr_assert(status == CLXENT_OK, "%s: %s: %s", name, clxent_status_string(status), last_error());
    clFinish(device.queue);
}

/* Another plan in the fixture's place, until use_own_plan(). */
static clxent_plan *own_plan;

static void use_plan(const clxent_desc *desc)
{
    own_plan = f.plan;
    f.plan = plan_with(NULL, desc);
}

static void use_own_plan(void)
{
    clxent_plan_destroy(f.plan);
    f.plan = own_plan;
}

Test(api, the_fixture_itself_runs_also_without_optional_buffers)
{
    clxent_args args = f.args;
    cl_event done = NULL;
    const clxent_status status = clxent_enqueue(f.plan, device.queue, &args, 0, NULL, &done);
    cr_assert(status == CLXENT_OK, "%s: %s", clxent_status_string(status), last_error());
    cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
    clReleaseEvent(done);
    args.grad_output.mem = args.denominator.mem = args.bad_targets.mem = NULL;
    expect_accepted("optional buffers", &args);
}

/* ---- Plans --------------------------------------------------------------------------------- */

/* Also that *out becomes NULL. */
static void expect_plan(clxent_context *ctx, const clxent_desc *desc, clxent_status want,
                        const char *const *words)
{
    clxent_plan *plan = f.plan;
    const clxent_status status = clxent_plan_create(&plan, ctx, desc);
    cr_assert(status == want, "%s: got %s: %s", words[0], clxent_status_string(status), last_error());
    cr_assert(plan == NULL, "%s: *out is not NULL", words[0]);
    if (ctx != NULL) check_text(words[0], words);
}

Test(api, plans_need_their_pointers)
{
    cr_assert(clxent_plan_create(NULL, device.ctx, &f.desc) == CLXENT_ERROR_NULL_ARGUMENT);
    expect_plan(NULL, &f.desc, CLXENT_ERROR_NULL_ARGUMENT, WORDS("context"));
    expect_plan(device.ctx, NULL, CLXENT_ERROR_NULL_ARGUMENT, WORDS("desc is NULL"));
    clxent_plan_destroy(NULL);
    clxent_context_destroy(NULL);
    cr_assert(clxent_plan_workspace_size(f.plan) == f.workspace);
}

/* test_desc.c has every text; here, that plans report it. */
Test(api, invalid_descs_are_refused_by_name)
{
    clxent_desc desc = f.desc;
    desc.label_smoothing = 1.5;
    expect_plan(device.ctx, &desc, CLXENT_ERROR_INVALID_DESC, WORDS("label_smoothing is 1.5", "[0, 1]"));
    desc.struct_size = offsetof(clxent_desc, softcap) + 4; /* half a double */
    expect_plan(device.ctx, &desc, CLXENT_ERROR_INVALID_DESC, WORDS("struct_size", "CLXENT_DESC_INIT"));
}

Test(api, f64_without_device_support_is_unsupported)
{
    device.ctx->device.has_f64 = false;
    const clxent_desc wide = make_desc(EVERY_OUTPUT, CLXENT_F64, ALL_ROWS, 1, CLASSES);
    const clxent_desc others = make_desc(EVERY_OUTPUT, CLXENT_BF16, ALL_ROWS, 1, CLASSES);
    expect_plan(device.ctx, &wide, CLXENT_ERROR_UNSUPPORTED, WORDS("f64"));
    clxent_plan_destroy(plan_with(NULL, &others));
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
    const clxent_tuning groups[] = { ROWS(8, 4, 4, 0, 1, 0), LANES(2, 1, 4096, 0) };
    clxent_device *d = &device.ctx->device;
    clxent_desc desc = make_desc(CLXENT_OUTPUT_LOSS, CLXENT_F32, 1, 1, 4);
    clxent_plan *plan;
    uint32_t most;

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

Test(api, a_strategy_is_told_before_anything_is_compiled)
{
    clxent_plan *plan;
    char text[512], start[9] = "........";
    int counts[2];
    clxent_context *ctx = make_counting_context(counts);

    cr_assert(clxent_plan_describe(ctx, &f.desc, text, sizeof text) == CLXENT_OK);
    cr_assert(clxent_plan_describe(ctx, &f.desc, start, sizeof start) == CLXENT_OK);
    cr_assert(clxent_plan_describe(ctx, &f.desc, NULL, 0) == CLXENT_OK);
    cr_assert_eq(counts[0], 0);
    cr_assert(clxent_plan_create(&plan, ctx, &f.desc) == CLXENT_OK);
    cr_assert_eq(counts[0], 1);
    cr_assert_str_eq(text, clxent_plan_strategy(plan));
    cr_assert(strlen(start) == 8 && strncmp(start, text, 8) == 0 && strchr(text, '\n') == NULL, "%s", start);
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

Test(api, enqueue_and_warm_need_their_pointers)
{
    cl_event gate[1] = { NULL };
    const struct {
        const char *word; /* NULL: nobody to tell */
        clxent_plan *plan;
        cl_command_queue queue;
        const clxent_args *args;
        cl_uint count;
        const cl_event *wait;
        clxent_status want;
    } cases[] = {
        { NULL, NULL, device.queue, &f.args, 0, NULL, CLXENT_ERROR_NULL_ARGUMENT },
        { "queue", f.plan, NULL, &f.args, 0, NULL, CLXENT_ERROR_NULL_ARGUMENT },
        { "args", f.plan, device.queue, NULL, 0, NULL, CLXENT_ERROR_NULL_ARGUMENT },
        { "wait", f.plan, device.queue, &f.args, 1, NULL, CLXENT_ERROR_INVALID_ARGUMENT },
        { "wait", f.plan, device.queue, &f.args, 0, gate, CLXENT_ERROR_INVALID_ARGUMENT },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const clxent_status status =
            clxent_enqueue(cases[i].plan, cases[i].queue, cases[i].args, cases[i].count, cases[i].wait, NULL);
        cr_assert(status == cases[i].want, "case %zu: %s", i, clxent_status_string(status));
        if (cases[i].word != NULL) check_text(cases[i].word, WORDS(cases[i].word));
    }
    cr_assert(clxent_plan_warm(NULL, device.queue) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(clxent_plan_warm(f.plan, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    check_text("queue", WORDS("queue is NULL", "takes"));
}

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

/* The run with this buffer alone changed. */
static void refuse_buffer(int tensor, cl_mem mem, size_t offset, clxent_status status,
                          const char *const *words)
{
    clxent_args args = f.args;
    *field(&args, tensor) = (clxent_buffer){ mem, offset };
    expect_enqueue(name_of(tensor), &args, status, words);
}

Test(api, the_bytes_of_every_argument_are_those_that_a_run_needs)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        const size_t bytes = clxent_plan_bytes(f.plan, tensor_names[t]);
        cr_assert(bytes == f.sizes[t], "%s: %zu", tensor_names[t], bytes);
    }
    cr_assert(clxent_plan_bytes(f.plan, "workspace") == f.workspace && f.workspace > 0);
    /* by the shapes that tools/check/ has of its own */
    for (int t = 0; t < TENSORS; t++)
        cr_assert(clxent_plan_bytes(f.plan, tensor_names[t]) == tensor_bytes(&f.desc, t), "%s",
                  tensor_names[t]);

    clxent_desc desc = make_desc(CLXENT_OUTPUT_GRADIENT, CLXENT_F64, ALL_ROWS, 1, CLASSES);
    if (device.has_f64) {
        desc.gradient_dtype = CLXENT_F32;
        desc.row_stride = CLASSES + 3;
        use_plan(&desc);
        cr_assert(clxent_plan_bytes(f.plan, "logits") == ((ALL_ROWS - 1) * desc.row_stride + CLASSES) * 8);
        cr_assert(clxent_plan_bytes(f.plan, "gradient") == ALL_ROWS * CLASSES * sizeof(float));
        cr_assert(clxent_plan_bytes(f.plan, "statistics") == ALL_ROWS * 2 * 8, "in of a gradient run");
        cr_assert(clxent_plan_bytes(f.plan, "loss") == 0 && clxent_plan_bytes(f.plan, "row_weights") == 0);
        use_own_plan();
    }
    desc = make_desc(CLXENT_OUTPUT_LOSS, CLXENT_F32, ALL_ROWS, 1, CLASSES);
    use_plan(&desc);
    cr_assert(clxent_plan_bytes(f.plan, "computed_denominator") == sizeof(float), "of a mean");
    cr_assert(clxent_plan_bytes(f.plan, "counted") == sizeof(uint64_t));
    cr_assert(clxent_plan_bytes(f.plan, "statistics") == 0, "without a gradient");
    use_own_plan();
    cr_assert(clxent_plan_bytes(NULL, "logits") == 0);
    cr_assert_str_eq(last_error(), "");
    cr_assert(clxent_plan_bytes(f.plan, "logit") == 0);
    check_text("no such argument",
               WORDS("argument is \"logit\": takes one of logits, ", ", one_hot, ", ", workspace"));
    cr_assert(clxent_plan_bytes(f.plan, NULL) == 0);
    check_text("NULL", WORDS("argument is \"\": takes one of logits, "));
}

/* Nothing of it is left in the plan, on either kind of queue, also of a plan without rows. */
Test(api, a_warm_plan_runs_as_any_other)
{
    cl_command_queue queues[] = { device.queue, make_out_of_order_queue() };
    for (size_t i = 0; i < COUNT(queues); i++) {
        if (queues[i] == NULL) continue;
        expect_accepted("before", &f.args);
        cr_assert(clxent_plan_warm(f.plan, queues[i]) == CLXENT_OK, "%s", last_error());
        expect_accepted("behind", &f.args);
    }
    clxent_desc empty = f.desc;
    empty.batch = 0;
    use_plan(&empty);
    cr_assert(clxent_plan_warm(f.plan, device.queue) == CLXENT_OK, "%s", last_error());
    use_own_plan();
    if (queues[1] != NULL) clReleaseCommandQueue(queues[1]);
}

/* Linear cross-entropy has kernels of its own, of which no case of other tests has all. */
Test(api, a_linear_plan_warms)
{
    cl_command_queue queues[] = { device.queue, make_out_of_order_queue() };
    clxent_desc desc =
        desc_of("op=linear-cross-entropy;outputs=loss+lse+hidden_gradient+weight_gradient+bias_gradient;"
                "classes=19;features=13;has_bias=1;weight_gradient_dtype=bf16;bias_gradient_dtype=bf16");
    for (size_t i = 0; i < 2 * COUNT(queues); i++) {
        desc.batch = i < COUNT(queues) ? 5 : 0;
        if (queues[i % COUNT(queues)] == NULL) continue;
        clxent_plan *plan = plan_with(NULL, &desc);
        cr_assert(clxent_plan_warm(plan, queues[i % COUNT(queues)]) == CLXENT_OK, "%s", last_error());
        clxent_plan_destroy(plan);
    }
    if (queues[1] != NULL) clReleaseCommandQueue(queues[1]);
}

Test(api, every_buffer_must_be_there_and_large_enough)
{
    for (int t = 0; t <= CLXENT_TENSORS; t++) {
        const bool optional = t == CLXENT_TENSOR_GRAD_OUTPUT || t == CLXENT_TENSOR_DENOMINATOR ||
                              t == CLXENT_TENSOR_BAD_TARGETS;
        const bool workspace = t == CLXENT_TENSORS;
        char needs[32], holds[32];
        if (!is_used(t)) continue;
        cl_mem small = zeros(size_of(t) > 1 ? size_of(t) - 1 : 1);
        snprintf(needs, sizeof needs, "%zu bytes", size_of(t));
        snprintf(holds, sizeof holds, "%zu", size_of(t) - 1);
        if (!optional)
            refuse_buffer(t, NULL, 0, CLXENT_ERROR_NULL_ARGUMENT,
                          WORDS(name_of(t), "NULL", workspace ? "" : needs));
        refuse_buffer(t, small, 0, CLXENT_ERROR_BUFFER_TOO_SMALL,
                      workspace ? WORDS("workspace")
                                : WORDS(name_of(t), "mem holds", holds, "takes [", "= ", needs));
        clReleaseMemObject(small);
        if (workspace) continue;
        /* Large enough, but not from there on; and an offset that would wrap around. */
        const size_t offsets[] = { t == CLXENT_TENSOR_BAD_TARGETS ? 24 : 8, SIZE_MAX / 24 * 24 };
        for (int i = 0; i < 2; i++)
            refuse_buffer(t, f.mems[t], offsets[i], CLXENT_ERROR_BUFFER_TOO_SMALL,
                          WORDS(name_of(t), "offset"));
    }
}

Test(api, a_gradient_with_zero_padding_must_hold_the_last_rows_too)
{
    clxent_args args = f.args;

    f.desc.gradient_row_stride = CLASSES + 3;
    f.desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    use_plan(&f.desc);
    for (size_t missing = 0; missing <= 4; missing += 4) {
        args.gradient.mem = zeros(ALL_ROWS * (CLASSES + 3) * 4 - missing);
        if (missing == 0) expect_accepted("gradient", &args);
        else
            expect_enqueue("gradient", &args, CLXENT_ERROR_BUFFER_TOO_SMALL,
                           WORDS("gradient", "row stride 7, padding too = 168 bytes", "holds 164"));
        clReleaseMemObject(args.gradient.mem);
    }
    use_own_plan();
}

Test(api, arguments_out_of_range)
{
    REFUSED("rows", INVALID_ARGUMENT, WORDS("rows is 7", "6"), args.rows = ALL_ROWS + 1);
    REFUSED("outputs", INVALID_ARGUMENT, WORDS("outputs"),
            args.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_ONE_HOT);
    REFUSED("struct_size", INVALID_ARGUMENT, WORDS("struct_size"), args.struct_size = sizeof args + 8);
    REFUSED("struct_size", INVALID_ARGUMENT, WORDS("struct_size"), args.struct_size = 0);
    /* a buffer without its offset */
    REFUSED("struct_size", INVALID_ARGUMENT, WORDS("args.struct_size is", "takes", "CLXENT_ARGS_INIT"),
            args.struct_size = offsetof(clxent_args, logits) + sizeof(cl_mem));
}

Test(api, offsets_are_multiples_of_the_element)
{
    cl_mem large = zeros(f.workspace + ALL_ROWS * CLASSES * 4 + 64);
    refuse_buffer(CLXENT_TENSOR_LOGITS, large, 2, CLXENT_ERROR_INVALID_ARGUMENT,
                  WORDS("logits", "offset is 2", "4"));
    refuse_buffer(CLXENT_TENSOR_ARGMAX, large, 4, CLXENT_ERROR_INVALID_ARGUMENT,
                  WORDS("argmax", "offset is 4", "8"));
    refuse_buffer(CLXENT_TENSORS, large, 32, CLXENT_ERROR_INVALID_ARGUMENT,
                  WORDS("workspace", "offset is 32", "64"));
    clReleaseMemObject(large);
}

Test(api, buffers_may_not_overlap)
{
    clxent_args beside = f.args;
    cl_mem both = zeros(2 * f.sizes[CLXENT_TENSOR_LOSSES]);

    REFUSED("lse", INVALID_ARGUMENT, WORDS("lse", "losses"), args.lse = args.losses);
    REFUSED("losses", INVALID_ARGUMENT, WORDS("losses", "row_weights"), args.losses = args.row_weights);
    /* with the gradient asked for, too */
    REFUSED("softmax", INVALID_ARGUMENT, WORDS("softmax", "logits"), args.softmax = args.logits);

    beside.losses = (clxent_buffer){ both, 0 };
    beside.lse = (clxent_buffer){ both, f.sizes[CLXENT_TENSOR_LOSSES] };
    expect_accepted("next to each other", &beside);
    beside.lse.offset -= 4;
    expect_enqueue("lse", &beside, CLXENT_ERROR_INVALID_ARGUMENT, WORDS("lse", "losses"));
    clReleaseMemObject(both);
}

/* ---- Memory objects ------------------------------------------------------------------------ */

/* Every buffer of the run in turn replaced by one of another context, which must be large enough, and by an image. */
Test(api, buffers_of_another_context_and_images_are_refused)
{
    const cl_image_format format = { CL_RGBA, CL_FLOAT };
    const cl_image_desc shape = { .image_type = CL_MEM_OBJECT_IMAGE2D,
                                  .image_width = 64,
                                  .image_height = 64 };
    cl_bool has_images = CL_FALSE;
    cl_mem picture = NULL;
    cl_int code;

    clGetDeviceInfo(device.id, CL_DEVICE_IMAGE_SUPPORT, sizeof has_images, &has_images, NULL);
    if (has_images) picture = clCreateImage(device.cl, CL_MEM_READ_WRITE, &format, &shape, NULL, &code);
    cr_assert(!has_images || code == CL_SUCCESS, "clCreateImage: %d", code);
    cl_context other = clCreateContext(NULL, 1, &device.id, NULL, NULL, &code);
    cr_assert(code == CL_SUCCESS);
    for (int t = 0; t <= CLXENT_TENSORS; t++) {
        if (!is_used(t)) continue;
        cl_mem foreign = new_buffer(other, CL_MEM_READ_WRITE, size_of(t), NULL);
        refuse_buffer(t, foreign, 0, CLXENT_ERROR_INVALID_ARGUMENT,
                      WORDS(name_of(t), ".mem is a buffer of another cl_context", "takes one of the plan's"));
        clReleaseMemObject(foreign);
        if (picture != NULL)
            refuse_buffer(t, picture, 0, CLXENT_ERROR_INVALID_ARGUMENT,
                          WORDS(name_of(t), ".mem is an image", "takes a buffer"));
    }
    clReleaseContext(other);
    if (picture != NULL) clReleaseMemObject(picture);
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
            cl_mem closed = new_buffer(device.cl, flags | CL_MEM_HOST_NO_ACCESS, size_of(t), NULL);
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
    const size_t bytes = ALL_ROWS * CLASSES * 4;
    cl_mem read_only = new_buffer(device.cl, CL_MEM_READ_ONLY, bytes, NULL);
    cl_mem write_only = new_buffer(device.cl, CL_MEM_WRITE_ONLY, bytes, NULL);
    clxent_args run = f.args;

    run.outputs = CLXENT_OUTPUT_LOSSES;
    run.losses.mem = write_only;
    expect_accepted("row losses alone are not read back", &run);
    run = f.args;
    run.outputs = CLXENT_OUTPUT_GRADIENT;
    run.statistics.mem = read_only;
    expect_accepted("statistics, an input of this run", &run);

    REFUSED("statistics", INVALID_ARGUMENT,
            WORDS("statistics.mem is CL_MEM_WRITE_ONLY", "takes CL_MEM_READ_ONLY or", "reads"),
            args.outputs = CLXENT_OUTPUT_GRADIENT, args.statistics.mem = write_only);
    REFUSED("statistics", INVALID_ARGUMENT,
            WORDS("statistics.mem is CL_MEM_READ_ONLY", "takes CL_MEM_WRITE_ONLY or", "writes"),
            args.outputs = CLXENT_OUTPUT_STATISTICS, args.statistics.mem = read_only);
    /* In place: read as logits, written as gradient. */
    REFUSED("in place", INVALID_ARGUMENT, WORDS("gradient.mem is CL_MEM_READ_ONLY"),
            args.outputs = CLXENT_OUTPUT_GRADIENT, args.statistics.mem = NULL,
            args.logits.mem = args.gradient.mem = read_only);
    REFUSED("in place", INVALID_ARGUMENT, WORDS("logits.mem is CL_MEM_WRITE_ONLY"),
            args.outputs = CLXENT_OUTPUT_GRADIENT, args.statistics.mem = NULL,
            args.logits.mem = args.gradient.mem = write_only);

    /* Accumulated: read and written. */
    clxent_desc desc = make_desc(CLXENT_OUTPUT_GRADIENT, CLXENT_F32, ALL_ROWS, 1, CLASSES);
    desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    use_plan(&desc);
    for (int i = 0; i < 2; i++)
        REFUSED("accumulated", INVALID_ARGUMENT,
                WORDS("gradient.mem is CL_MEM_", "takes CL_MEM_READ_WRITE", "reads and writes"),
                args.gradient.mem = i == 0 ? read_only : write_only);
    use_own_plan();
    clReleaseMemObject(read_only);
    clReleaseMemObject(write_only);
}

/* A sub-buffer has its own flags, else its parent's. */
Test(api, sub_buffers_inherit_their_access)
{
    const cl_mem_flags parents[] = { CL_MEM_READ_WRITE, CL_MEM_READ_WRITE, CL_MEM_READ_WRITE,
                                     CL_MEM_READ_ONLY, CL_MEM_WRITE_ONLY };
    const cl_mem_flags subs[] = { 0, CL_MEM_READ_ONLY, CL_MEM_WRITE_ONLY, 0, 0 };
    const cl_buffer_region region = { 0, ALL_ROWS * CLASSES * 4 };

    for (int i = 0; i < 5; i++) {
        const bool reads = i != 2 && i != 4, writes = i != 1 && i != 3;
        cl_int code;
        cl_mem parent = new_buffer(device.cl, parents[i], 2 * region.size, NULL);
        cl_mem sub = clCreateSubBuffer(parent, subs[i], CL_BUFFER_CREATE_TYPE_REGION, &region, &code);
        clxent_args read = f.args, written = f.args;
        cr_assert(code == CL_SUCCESS, "clCreateSubBuffer: %d", code);
        read.logits.mem = written.gradient.mem = sub;
        if (reads) expect_accepted("logits", &read);
        else
            expect_enqueue("logits", &read, CLXENT_ERROR_INVALID_ARGUMENT,
                           WORDS("logits.mem is CL_MEM_WRITE_ONLY"));
        if (writes) expect_accepted("gradient", &written);
        else
            expect_enqueue("gradient", &written, CLXENT_ERROR_INVALID_ARGUMENT,
                           WORDS("gradient.mem is CL_MEM_READ_ONLY"));
        written.gradient.offset = 4; /* and no more room than its own */
        if (writes)
            expect_enqueue("gradient", &written, CLXENT_ERROR_BUFFER_TOO_SMALL,
                           WORDS("gradient.mem holds 96"));
        clReleaseMemObject(sub);
        clReleaseMemObject(parent);
    }
}

/* Plans whose gradient could stand in the logits' place but for one thing. */
Test(api, in_place_needs_equal_layouts)
{
    const clxent_desc every = make_desc(EVERY_OUTPUT, CLXENT_F32, ALL_ROWS, 1, CLASSES);
    clxent_desc descs[3] = { every, every, every };
    descs[0].outputs = CLXENT_OUTPUT_GRADIENT;
    descs[0].gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    descs[1].gradient_dtype = CLXENT_BF16;
    descs[2].gradient_row_stride = CLASSES + 1;
    cl_mem large = zeros(ALL_ROWS * (CLASSES + 1) * 4);
    for (int i = 0; i < 3; i++) {
        use_plan(&descs[i]);
        REFUSED("in place", INVALID_ARGUMENT, WORDS("gradient", "logits"),
                args.logits.mem = args.gradient.mem = large);
        use_own_plan();
    }
    clReleaseMemObject(large);
}

Test(api, rows_come_in_whole_sequences_and_slabs)
{
    clxent_desc desc = make_desc(EVERY_OUTPUT, CLXENT_F32, 2, 3, CLASSES);

    desc.shift = 1;
    use_plan(&desc);
    REFUSED("shift", INVALID_ARGUMENT, WORDS("rows is 4", "3"), args.rows = 4);
    use_own_plan();
    desc.shift = 0;
    desc.inner = 6;
    use_plan(&desc);
    REFUSED("inner", INVALID_ARGUMENT, WORDS("rows is 3", "6"), args.rows = 3);
    use_own_plan();
}

Test(api, parts_say_where_in_the_batch_they_are)
{
    REFUSED("part", INVALID_ARGUMENT, WORDS("args.part is 4: takes", "CLXENT_PART_LAST (3)"), args.part = 4);
    REFUSED("reserved", INVALID_ARGUMENT, WORDS("args.reserved is 1: takes 0"), args.reserved = 1);
    REFUSED("total", INVALID_ARGUMENT, WORDS("args.total_rows is 7", "6"), args.total_rows = ALL_ROWS + 1);
    REFUSED("whole", INVALID_ARGUMENT, WORDS("args.first_row is 2: takes 0 with part WHOLE"),
            args.first_row = 2);
    REFUSED("whole", INVALID_ARGUMENT,
            WORDS("args.rows is 3", "exactly 5 rows with part WHOLE of a batch of 5"), args.rows = 3,
            args.total_rows = 5);
    REFUSED("first", INVALID_ARGUMENT, WORDS("args.first_row is 1: takes 0 with part FIRST"),
            args.first_row = 1, args.part = CLXENT_PART_FIRST);
    REFUSED("first", INVALID_ARGUMENT, WORDS("args.rows is 6", "less than 6 rows with part FIRST"),
            args.part = CLXENT_PART_FIRST);
    REFUSED("middle", INVALID_ARGUMENT, WORDS("args.first_row is 0: takes a row", "behind the first"),
            args.part = CLXENT_PART_MIDDLE, args.rows = 2);
    REFUSED("middle", INVALID_ARGUMENT, WORDS("less than 4 rows with part MIDDLE of a batch of 6"),
            args.part = CLXENT_PART_MIDDLE, args.first_row = 2, args.rows = 4);
    REFUSED("last", INVALID_ARGUMENT, WORDS("exactly 4 rows with part LAST of a batch of 6"),
            args.part = CLXENT_PART_LAST, args.first_row = 2, args.rows = 3);
    REFUSED("last", INVALID_ARGUMENT, WORDS("args.first_row is 7: takes a row"), args.part = CLXENT_PART_LAST,
            args.first_row = ALL_ROWS + 1, args.rows = 0);
    REFUSED("a mean without a denominator", NULL_ARGUMENT,
            WORDS("denominator.mem is NULL", "clxent_enqueue_denominator()"), args.denominator.mem = NULL,
            args.part = CLXENT_PART_FIRST, args.rows = 2);
    REFUSED("middle", INVALID_ARGUMENT, WORDS("args.first_row is 6: takes a row"),
            args.part = CLXENT_PART_MIDDLE, args.first_row = ALL_ROWS, args.rows = 0);
    /* what the last part writes, the others need not be given, but it is looked at before anything is computed */
    REFUSED("overlap", INVALID_ARGUMENT, WORDS("computed_denominator overlaps denominator"),
            args.part = CLXENT_PART_FIRST, args.rows = 2, args.computed_denominator = args.denominator);
    clxent_args part = f.args;
    part.part = CLXENT_PART_FIRST;
    part.rows = 2;
    part.loss.mem = part.correct.mem = part.bad_targets.mem = part.counted.mem = NULL;
    part.computed_denominator.mem = NULL;
    expect_accepted("first", &part);
    part = f.args;
    part.part = CLXENT_PART_LAST;
    part.first_row = 2;
    expect_accepted("last, to the end by default", &part);
    REFUSED("last", NULL_ARGUMENT, WORDS("loss.mem"), args.part = CLXENT_PART_LAST, args.first_row = 2,
            args.loss.mem = NULL);
}

Test(api, a_denominator_needs_a_plan_that_sums_weights_and_a_place)
{
    clxent_args args = CLXENT_ARGS_INIT;

    cr_assert(clxent_enqueue_denominator(NULL, device.queue, &args, 0, NULL, NULL) ==
              CLXENT_ERROR_NULL_ARGUMENT);
#define REFUSED_DENOMINATOR(status, ...)                                                           \
    cr_assert(clxent_enqueue_denominator(f.plan, device.queue, &args, 0, NULL, NULL) == (status)); \
    check_text("denominator", WORDS(__VA_ARGS__))
    REFUSED_DENOMINATOR(CLXENT_ERROR_NULL_ARGUMENT, "computed_denominator.mem and counted.mem are NULL");
    args.counted = f.args.counted;
    args.total_rows = ALL_ROWS + 1;
    REFUSED_DENOMINATOR(CLXENT_ERROR_INVALID_ARGUMENT, "args.total_rows is 7");
    args.total_rows = 0;
    args.part = 4;
    REFUSED_DENOMINATOR(CLXENT_ERROR_INVALID_ARGUMENT, "args.part is 4");
    args.part = CLXENT_PART_WHOLE;
    REFUSED_DENOMINATOR(CLXENT_ERROR_NULL_ARGUMENT, "targets.mem is NULL");
    args.rows = 3; /* the batch, as of a run in one */
    REFUSED_DENOMINATOR(CLXENT_ERROR_NULL_ARGUMENT, "targets.mem is NULL", "[rows 3]");
    args.rows = CLXENT_ALL_ROWS;
    args.targets = f.args.targets;
    args.class_weights = f.args.class_weights;
    args.row_weights = f.args.row_weights;
    args.workspace = f.args.workspace;
    cr_assert(clxent_enqueue_denominator(f.plan, device.queue, &args, 0, NULL, NULL) == CLXENT_OK);
    clFinish(device.queue);
    clxent_desc desc = make_desc(CLXENT_OUTPUT_LSE, CLXENT_F32, 2, 3, CLASSES);
    use_plan(&desc);
    REFUSED_DENOMINATOR(CLXENT_ERROR_INVALID_ARGUMENT, "plan has outputs 0x4", "CLXENT_REDUCTION_MEAN");
    use_own_plan();
#undef REFUSED_DENOMINATOR
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
        /* the inner class axis in programs of few outputs, which is compiled for this test alone */
        const uint32_t few = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_CORRECT;
        clxent_desc desc = make_desc(shapes[i].inner > 1 ? few : EVERY_OUTPUT, CLXENT_F32, 0, 1, CLASSES);
        cl_event done;
        uint64_t correct = 9;
        desc.shift = shapes[i].shift;
        desc.inner = shapes[i].inner;
        desc.row_stride = desc.gradient_row_stride = desc.probabilities_row_stride = shapes[i].stride;
        clxent_plan *plan = plan_with(NULL, &desc);
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

/* Neither runs a plan nor warms it. */
static void refuse_queue(cl_command_queue queue, const char *const *words)
{
    cl_event event = NULL;
    cr_assert(clxent_enqueue(f.plan, queue, &f.args, 0, NULL, &event) == CLXENT_ERROR_INVALID_ARGUMENT);
    cr_assert(event == NULL);
    check_text("enqueue", words);
    cr_assert(clxent_plan_warm(f.plan, queue) == CLXENT_ERROR_INVALID_ARGUMENT);
    check_text("warm", words);
    clReleaseCommandQueue(queue);
}

Test(api, a_queue_of_another_context_is_refused)
{
    cl_int code;
    cl_context other = clCreateContext(NULL, 1, &device.id, NULL, NULL, &code);
    cl_command_queue queue = clCreateCommandQueue(other, device.id, 0, &code);
    cr_assert(code == CL_SUCCESS);
    refuse_queue(queue, WORDS("queue", "another cl_context", "takes"));
    clReleaseContext(other);
}

/* A part of the plan's device is another device. */
Test(api, a_queue_of_a_part_of_the_device_is_refused)
{
    cl_device_id parts[64];
    const cl_uint count = divide_device(parts);
    cl_int code;

    if (count == 0) cr_skip("the device cannot be divided");
    cl_command_queue queue = clCreateCommandQueue(device.cl, parts[0], 0, &code);
    if (code == CL_SUCCESS)
        refuse_queue(queue, WORDS("queue is one of another device", "takes one of the plan's"));
    for (cl_uint i = 0; i < count; i++) clReleaseDevice(parts[i]);
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
    const float before[ALL_ROWS] = { 1, 2, 3, 4, 5, 6 };
    float after[ALL_ROWS];
    clxent_args args = f.args;

    clEnqueueWriteBuffer(device.queue, args.losses.mem, CL_TRUE, 0, sizeof before, before, 0, NULL, NULL);
    args.one_hot.mem = args.entropy.mem; /* not used: ignored */
    args.entropy.offset = 4;
    expect_enqueue("entropy", &args, CLXENT_ERROR_BUFFER_TOO_SMALL, WORDS("entropy"));
    clFinish(device.queue);
    clEnqueueReadBuffer(device.queue, args.losses.mem, CL_TRUE, 0, sizeof after, after, 0, NULL, NULL);
    cr_assert(memcmp(before, after, sizeof before) == 0);
}

/* As an application that was compiled before the last fields existed would call. */
Test(api, older_structs_are_read_as_far_as_they_go)
{
    const size_t known = offsetof(clxent_desc, softcap);
    clxent_desc old = make_desc(EVERY_OUTPUT, CLXENT_F32, ALL_ROWS, 1, CLASSES);

    memset((char *)&old + known, 0xFF, sizeof old - known);
    old.struct_size = known;
    clxent_plan_destroy(plan_with(NULL, &old));
    /* Nothing behind struct_size is given: outputs and buffers are defaults, so logits is missing. */
    REFUSED("args", NULL_ARGUMENT, WORDS("logits"), args.struct_size = offsetof(clxent_args, logits));
}

/* The parent has a context and a plan: no OpenCL call works in the child any more, but these make none. */
Test(api, a_forked_child_may_check_descs_and_run_the_reference)
{
    clxent_reference_results results = CLXENT_REFERENCE_RESULTS_INIT;
    double loss = 0;
    int status = -1;
    problem p;

    results.loss = &loss;
    make_problem(&p, &f.desc, FILL_PLAIN, 1);
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0)
        _exit(clxent_desc_check(&p.desc, NULL, 0) == CLXENT_OK &&
                      clxent_reference_run(&p.desc, &p.args, &results, NULL, 0) == CLXENT_OK && loss > 0
                  ? 0
                  : 1);
    cr_assert(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
              "status 0x%x", (unsigned)status);
    free_problem(&p);
}
