/* SPDX-License-Identifier: MIT
 *
 * test_context.c - lifetime, error text, log and program cache of a context. Includes internal.h because
 * programs and references are asked for by plans only, and brings its own kernel sources in place of the library's,
 * so that a build can fail here and takes milliseconds. Also the rows of parameters that a context takes.
 */
#include "internal.h"
#include "support.h"
#include "verify_case.h"

#include <criterion/criterion.h>

#include <ctype.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOOD "__kernel void good(__global int *out) { out[0] = VALUE; }\n"
#define WARNS \
    "#warning \"a warning of the compiler\"\n__kernel void warns(__global int *out) { out[0] = 1; }\n"
#define BAD "__kernel void bad(OUT) {\n    out[0] = no_such_name;\n    out[1] = nor_this_one;\n}\n"

const clxent_source clxent_sources[] = {
    { "good.cl", (const unsigned char *)GOOD, sizeof GOOD - 1 },
    { "warns.cl", (const unsigned char *)WARNS, sizeof WARNS - 1 },
    { "bad.cl", (const unsigned char *)BAD, sizeof BAD - 1 },
    { NULL, NULL, 0 },
};

/* Stands before the loader's: tests make the device an old one, or one without a compiler, or
 * take it out of the context, or list devices before it. */
static const char *device_version;
static bool device_has_no_compiler, context_has_another_device;
static size_t device_work_items[3]; /* CL_DEVICE_MAX_WORK_ITEM_SIZES; 0: the device's own */

/* A platform before the driver's own, with one device; *_code: what its calls return. */
static struct {
    bool listed;
    cl_int platforms_code, devices_code, name_code;
    cl_device_type type, type_of_others; /* 0: their own */
} fake;
static int fake_object;
#define FAKE_PLATFORM ((cl_platform_id)(void *)&fake_object)
#define FAKE_DEVICE ((cl_device_id)(void *)&fake_object)
#define FAKE_NAME "Fake accelerator"

cl_int clGetPlatformIDs(cl_uint most, cl_platform_id *ids, cl_uint *count)
{
    REAL(clGetPlatformIDs);
    if (fake.platforms_code != CL_SUCCESS) return fake.platforms_code;
    if (!fake.listed) return real(most, ids, count);
    ids[0] = FAKE_PLATFORM;
    const cl_int code = real(most - 1, ids + 1, count);
    ++*count;
    return code;
}

cl_int clGetDeviceIDs(cl_platform_id platform, cl_device_type type, cl_uint most, cl_device_id *ids,
                      cl_uint *count)
{
    REAL(clGetDeviceIDs);
    if (platform != FAKE_PLATFORM) return real(platform, type, most, ids, count);
    if (fake.devices_code != CL_SUCCESS) return fake.devices_code;
    ids[0] = FAKE_DEVICE;
    *count = 1;
    return CL_SUCCESS;
}

cl_int clGetContextInfo(cl_context cl, cl_context_info info, size_t size, void *value, size_t *size_ret)
{
    REAL(clGetContextInfo);
    const cl_int code = real(cl, info, size, value, size_ret);
    if (info == CL_CONTEXT_DEVICES && context_has_another_device && value != NULL) memset(value, 0, size);
    return code;
}

cl_int clGetDeviceInfo(cl_device_id id, cl_device_info info, size_t size, void *value, size_t *size_ret)
{
    REAL(clGetDeviceInfo);
    if (id == FAKE_DEVICE) {
        if (info == CL_DEVICE_NAME && fake.name_code != CL_SUCCESS) return fake.name_code;
        if (info == CL_DEVICE_NAME) (void)snprintf(value, size, "%s", FAKE_NAME);
        else if (size == sizeof fake.type) memcpy(value, &fake.type, sizeof fake.type);
        return CL_SUCCESS;
    }
    if (info == CL_DEVICE_VERSION && device_version != NULL) {
        const size_t needed = strlen(device_version) + 1;
        if (size_ret != NULL) *size_ret = needed;
        if (value == NULL) return CL_SUCCESS;
        if (size < needed) return CL_INVALID_VALUE;
        memcpy(value, device_version, needed);
        return CL_SUCCESS;
    }
    const cl_int code = real(id, info, size, value, size_ret);
    if (info == CL_DEVICE_TYPE && fake.type_of_others != 0 && size == sizeof fake.type)
        memcpy(value, &fake.type_of_others, sizeof fake.type_of_others);
    if (info == CL_DEVICE_COMPILER_AVAILABLE && device_has_no_compiler && value != NULL)
        memset(value, 0, sizeof(cl_bool));
    if (info == CL_DEVICE_MAX_WORK_ITEM_SIZES && device_work_items[0] != 0 && value != NULL)
        memcpy(value, device_work_items, sizeof device_work_items);
    return code;
}

/* ---- The log ------------------------------------------------------------------------------- */

static struct {
    int messages;
    char first[8192], last[8192];
} book;

static void write_down(const char *message, void *payload)
{
    cr_assert(payload == &book);
    if (book.messages++ == 0) snprintf(book.first, sizeof book.first, "%s", message);
    snprintf(book.last, sizeof book.last, "%s", message);
}

static const clxent_context_options listening = { .struct_size = sizeof listening,
                                                  .log = write_down,
                                                  .log_payload = &book };

static void expect_said(const char *name, const char *what)
{
    cr_assert(strstr(book.last, what) != NULL, "%s: \"%s\" does not say \"%s\"", name, book.last, what);
}

static cl_uint context_references(void)
{
    cl_uint count = 0;
    clGetContextInfo(device.cl, CL_CONTEXT_REFERENCE_COUNT, sizeof count, &count, NULL);
    return count;
}

TestSuite(context, .init = open_device, .fini = close_device);

static clxent_context *make_context(const clxent_context_options *options)
{
    clxent_context *ctx;
    cr_assert(clxent_context_create(&ctx, device.cl, device.id, options) == CLXENT_OK, "%s", book.last);
    return ctx;
}

/* A context that is refused leaves nothing. */
static void expect_refused(const char *name, const clxent_context_options *options, clxent_status want)
{
    const cl_uint references = context_references();
    clxent_context *ctx = device.ctx;
    const clxent_status status = clxent_context_create(&ctx, device.cl, device.id, options);
    cr_assert(status == want, "%s: %s", name, clxent_status_string(status));
    cr_assert(ctx == NULL && context_references() == references, "%s: a failed create kept something", name);
}

Test(context, create_needs_its_pointers_and_leaves_null)
{
    clxent_context *ctx = device.ctx;
    cr_assert(clxent_context_create(NULL, device.cl, device.id, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(clxent_context_create(&ctx, NULL, device.id, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(ctx == NULL);
    ctx = device.ctx;
    cr_assert(clxent_context_create(&ctx, device.cl, NULL, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(ctx == NULL);
}

Test(context, options_of_other_ages)
{
    /* never initialised; newer than this library; within a field */
    const size_t wrong[] = { 0, sizeof listening + 8, offsetof(clxent_context_options, log) + 1 };
    clxent_context_options options;

    clxent_context_options_init(&options);
    cr_assert(options.struct_size == sizeof options && options.log == NULL && options.log_payload == NULL);
    options = listening;
    for (size_t i = 0; i < COUNT(wrong); i++) {
        options.struct_size = wrong[i];
        expect_refused("struct_size", &options, CLXENT_ERROR_INVALID_ARGUMENT);
    }

    /* Older, from before there was a log: the rest must not be read. */
    options.struct_size = sizeof options.struct_size;
    book.messages = 0;
    clxent_context *ctx = make_context(&options);
    clxent_fail(ctx, CLXENT_ERROR_INTERNAL, "nobody listens");
    cr_assert(book.messages == 0);
    clxent_context_destroy(ctx);
}

Test(context, device_facts_are_those_of_the_device)
{
    const clxent_device *facts = &device.ctx->device;
    char name[1024] = "";
    cl_ulong bytes = 0;

    clGetDeviceInfo(device.id, CL_DEVICE_NAME, sizeof name, name, NULL);
    name[sizeof facts->name - 1] = '\0';
    cr_assert_str_eq(facts->name, name);
    clGetDeviceInfo(device.id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof bytes, &bytes, NULL);
    cr_assert(facts->max_allocation == bytes && bytes > 0);
    clGetDeviceInfo(device.id, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof bytes, &bytes, NULL);
    cr_assert(facts->global_memory == bytes && bytes > 0);
    cr_assert(facts->compute_units > 0 && facts->max_work_group > 0 && facts->local_memory > 0);
    cr_assert(strncmp(facts->version, "OpenCL ", 7) == 0 && facts->vendor[0] != '\0' &&
              facts->driver[0] != '\0');
}

/* Groups lie along the first dimension, which may be shorter than a group. */
Test(context, work_groups_are_no_longer_than_their_dimension)
{
    const size_t longest = device.ctx->device.max_work_group, sizes[] = { 2 * longest, 16 };

    for (int i = 0; i < 2; i++) {
        device_work_items[0] = sizes[i];
        device_work_items[1] = device_work_items[2] = 2 * longest;
        clxent_context *ctx = make_context(NULL);
        cr_assert(ctx->device.max_work_group == (sizes[i] < longest ? sizes[i] : longest));
        clxent_context_destroy(ctx);
    }
}

Test(context, versions_below_1_2_are_refused_by_name)
{
    static const char *const old[] = { "OpenCL 1.1 old", "OpenCL 1.0", "OpenCL 0.9", "OpenGL 4.6" };
    static const char *const enough[] = { "OpenCL 1.2", "OpenCL 2.0 x", "OpenCL 3.0 PoCL",
                                          "OpenCL 10.1 later" };

    for (size_t i = 0; i < 4; i++) {
        device_version = old[i];
        expect_refused(old[i], &listening, CLXENT_ERROR_UNSUPPORTED);
        expect_said(old[i], old[i]);
        expect_said(old[i], "1.2");
    }
    for (size_t i = 0; i < 4; i++) {
        device_version = enough[i];
        clxent_context_destroy(make_context(NULL));
    }
}

Test(context, a_device_without_compiler_or_of_another_context_is_refused)
{
    device_has_no_compiler = true;
    expect_refused("compiler", &listening, CLXENT_ERROR_UNSUPPORTED);
    expect_said("compiler", "compiler: takes");
    device_has_no_compiler = false;
    context_has_another_device = true;
    expect_refused("context", &listening, CLXENT_ERROR_UNSUPPORTED);
    expect_said("context", "device is not");
    expect_said("context", "takes");
    context_has_another_device = false;
}

Test(context, a_part_of_a_device_is_a_device)
{
    cl_device_id parts[64];
    const cl_uint count = divide_device(parts);
    clxent_context *ctx = device.ctx;
    cl_int code;

    if (count == 0) cr_skip("the device cannot be divided");
    cl_context of_part = clCreateContext(NULL, 1, parts, NULL, NULL, &code);
    cr_assert(code == CL_SUCCESS);
    cr_assert(clxent_context_create(&ctx, of_part, parts[0], NULL) == CLXENT_OK);
    cr_assert(ctx->device.compute_units == 1);
    clxent_context_destroy(ctx);
    clReleaseContext(of_part);
    for (cl_uint i = 0; i < count; i++) clReleaseDevice(parts[i]);
}

/* ---- A device by name ---------------------------------------------------------------------- */

static void expect_found(const char *wanted)
{
    clxent_context *ctx = NULL;
    const clxent_status status = clxent_context_create_default(&ctx, wanted, &listening);
    cr_assert(status == CLXENT_OK, "%s: %s: %s", wanted, clxent_status_string(status), book.last);
    cr_assert(clxent_context_device(ctx) == device.id && ctx->device.compute_units > 0, "%s", wanted);
    clxent_context_destroy(ctx);
}

static void expect_not_found(const char *wanted, cl_int want, const char *text)
{
    clxent_context *ctx = device.ctx;
    const clxent_status status = clxent_context_create_default(&ctx, wanted, &listening);
    cr_assert(status == want && ctx == NULL, "%s: %s", wanted, clxent_status_string(status));
    cr_assert_str_eq(book.last, text);
}

Test(context, the_default_has_a_context_of_its_own)
{
    clxent_context *ctx;
    cl_context listed = NULL;
    cl_uint count = 0;
    cl_int code;

    cr_assert(clxent_context_create_default(NULL, NULL, NULL) == CLXENT_ERROR_NULL_ARGUMENT);
    cr_assert(clxent_context_cl(NULL) == NULL && clxent_context_device(NULL) == NULL);
    cr_assert(clxent_context_cl(device.ctx) == device.cl && clxent_context_device(device.ctx) == device.id);
    cr_assert(clxent_context_create_default(&ctx, NULL, NULL) == CLXENT_OK);
    cl_context own = clxent_context_cl(ctx);
    cr_assert(own != NULL && own != device.cl && clxent_context_device(ctx) == device.id);

    cl_command_queue queue = clCreateCommandQueue(own, clxent_context_device(ctx), 0, &code);
    cr_assert(code == CL_SUCCESS);
    cr_assert(clGetCommandQueueInfo(queue, CL_QUEUE_CONTEXT, sizeof listed, &listed, NULL) == CL_SUCCESS);
    cr_assert(listed == own);
    clReleaseCommandQueue(queue);
    cr_assert(clRetainContext(own) == CL_SUCCESS);
    clxent_context_destroy(ctx);
    clGetContextInfo(own, CL_CONTEXT_REFERENCE_COUNT, sizeof count, &count, NULL);
    cr_assert(count == 1, "%u references are left", count);
    clReleaseContext(own);
}

Test(context, a_device_is_found_by_type_or_part_of_its_name)
{
    char name[256], text[512];

    cr_assert(clGetDeviceInfo(device.id, CL_DEVICE_NAME, sizeof name, name, NULL) == CL_SUCCESS);
    for (size_t i = 0; name[i] != '\0'; i++)
        name[i] = (char)(i % 2 == 0 ? toupper(name[i]) : tolower(name[i]));
    expect_found(name);
    expect_found(name + strlen(name) / 2);
    fake.type_of_others = CL_DEVICE_TYPE_CPU | CL_DEVICE_TYPE_DEFAULT;
    expect_found("cpu");
    expect_found("CPU");
    expect_found(NULL);
    fake.type_of_others = CL_DEVICE_TYPE_GPU;
    expect_found("Gpu");

    fake.listed = true; /* before the driver's own */
    fake.type = CL_DEVICE_TYPE_CPU;
    expect_found(NULL);
    expect_found("gpu");
    expect_found(name);
    expect_not_found("no device of this", CL_DEVICE_NOT_FOUND, book.last);
    cr_assert(clGetDeviceInfo(device.id, CL_DEVICE_NAME, sizeof name, name, NULL) == CL_SUCCESS);
    snprintf(text, sizeof text,
             "device is \"gpu-2\": takes NULL, \"gpu\", \"cpu\" or part of a name, and the devices are "
             "\"" FAKE_NAME "\", \"%s\"",
             name);
    expect_not_found("gpu-2", CL_DEVICE_NOT_FOUND, text);
    fake.type_of_others = CL_DEVICE_TYPE_ACCELERATOR;
    expect_found(name);
    memcpy(text + strlen("device is \""), "gpu", 3);
    memmove(text + strlen("device is \"gpu"), text + strlen("device is \"gpu-2"),
            strlen(text + strlen("device is \"gpu-2")) + 1);
    expect_not_found("gpu", CL_DEVICE_NOT_FOUND, text);
}

Test(context, platforms_that_fail_are_skipped)
{
    fake.listed = true;
    fake.type = CL_DEVICE_TYPE_GPU;
    fake.devices_code = CL_DEVICE_NOT_FOUND;
    expect_found(NULL);
    fake.devices_code = CL_OUT_OF_RESOURCES;
    expect_found(NULL);
    fake.devices_code = CL_SUCCESS;
    fake.name_code = CL_INVALID_VALUE;
    expect_found(NULL);
    expect_not_found("fake", CL_DEVICE_NOT_FOUND, book.last);
    cr_assert(strstr(book.last, "Fake") == NULL, "%s", book.last);
    fake.platforms_code = -1001;
    expect_not_found(
        NULL, -1001,
        "no OpenCL device: takes an installed driver with one: CL_PLATFORM_NOT_FOUND_KHR (-1001)");
}

Test(context, the_default_takes_the_options)
{
    clxent_context *ctx = device.ctx;
    clxent_context_options options = listening;

    options.struct_size = 3;
    cr_assert(clxent_context_create_default(&ctx, NULL, &options) == CLXENT_ERROR_INVALID_ARGUMENT &&
              ctx == NULL);
    options = listening;
    options.tuning = "no row";
    ctx = device.ctx;
    cr_assert(clxent_context_create_default(&ctx, NULL, &options) == CLXENT_ERROR_INVALID_ARGUMENT &&
              ctx == NULL);
    device_has_no_compiler = true;
    expect_not_found(NULL, CLXENT_ERROR_UNSUPPORTED, book.last);
}

Test(context, outlives_its_owner_while_a_plan_holds_it)
{
    const cl_uint references = context_references();
    clxent_context *ctx = make_context(NULL);
    cl_program program;

    cr_assert(context_references() > references);
    clxent_context_retain(ctx);
    clxent_context_destroy(ctx);
    cr_assert(clxent_program_get(ctx, "good.cl", "-DVALUE=1", &program) == CLXENT_OK);
    clxent_context_destroy(ctx);

    /* The caller's program lives on. */
    cl_int code;
    cl_kernel kernel = clCreateKernel(program, "good", &code);
    cr_assert(code == CL_SUCCESS);
    clReleaseKernel(kernel);
    clReleaseProgram(program);
    cr_assert(context_references() == references, "%u references before, %u after", references,
              context_references());
}

Test(context, last_error_is_cut_and_measured)
{
    char text[64];
    memset(text, 'x', sizeof text);
    cr_assert(clxent_context_last_error(device.ctx, text, sizeof text) == 1);
    cr_assert_str_eq(text, "");

    cr_assert(clxent_fail(device.ctx, CLXENT_ERROR_INTERNAL, "row %d", 123) == CLXENT_ERROR_INTERNAL);
    cr_assert(clxent_context_last_error(device.ctx, NULL, 0) == 8);
    cr_assert(clxent_context_last_error(device.ctx, text, sizeof text) == 8);
    cr_assert_str_eq(text, "row 123");
    memset(text, 'x', sizeof text);
    cr_assert(clxent_context_last_error(device.ctx, text, 4) == 8);
    cr_assert_str_eq(text, "row");
    cr_assert(text[4] == 'x', "a byte behind the text was written");
    cr_assert(clxent_context_last_error(device.ctx, text, 8) == 8);
    cr_assert_str_eq(text, "row 123");
    memset(text, 'x', sizeof text);
    cr_assert(clxent_context_last_error(device.ctx, text, 0) == 8 && text[0] == 'x');

    char *longest = take_memory(10000);
    memset(longest, 'y', 9999);
    longest[9999] = '\0';
    clxent_fail(device.ctx, CLXENT_ERROR_INTERNAL, "%s", longest);
    const size_t size = clxent_context_last_error(device.ctx, NULL, 0);
    cr_assert(size > 512 && size < 10000);
    free(longest);

    cr_assert(clxent_context_last_error(NULL, text, sizeof text) == 1 && text[0] == '\0');
}

Test(context, driver_errors_pass_unchanged_with_a_text)
{
    cr_assert(clxent_check_cl(device.ctx, CL_SUCCESS, "clDoNothing") == CLXENT_OK);
    cr_assert_str_eq(last_error(), "");
    cr_assert(clxent_check_cl(device.ctx, CL_OUT_OF_RESOURCES, "clDoMuch") == CL_OUT_OF_RESOURCES);
    cr_assert_str_eq(last_error(), "clDoMuch: CL_OUT_OF_RESOURCES (-5)");
}

Test(context, failures_reach_the_log)
{
    clxent_context *ctx = make_context(&listening);

    cr_assert(book.messages == 0, "a context that works says nothing: %s", book.first);
    clxent_fail(ctx, CLXENT_ERROR_INTERNAL, "one %s", "two");
    cr_assert(book.messages == 1);
    cr_assert_str_eq(book.last, "one two");
    clxent_log(ctx, "strategy %d", 7);
    cr_assert_str_eq(book.last, "strategy 7");
    char text[64];
    clxent_context_last_error(ctx, text, sizeof text);
    cr_assert_str_eq(text, "one two", "the log is not an error");
    clxent_context_destroy(ctx);
}

/* ---- Tuning -------------------------------------------------------------------------------- */

#define NUMBERS "1, 4, 8, 0, 1, 0, 64, 2, 3, 1, 4, 1024, 1"

/* The parameters of f32 logits after `text`, which must be read without a fault. */
static clxent_tuning tuned(const char *text, uint32_t dtype)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_tuning_rows *rows = NULL;
    char fault[256] = "";

    desc.dtype = dtype;
    cr_assert(clxent_tuning_parse(&rows, text, fault, sizeof fault) == CLXENT_OK, "%s: %s", text, fault);
    const clxent_tuning t = clxent_tuning_choose(rows, &device.ctx->device, &desc);
    free(rows);
    return t;
}

static bool same_tuning(clxent_tuning a, clxent_tuning b) { return memcmp(&a, &b, sizeof a) == 0; }

Test(context, the_first_tuning_row_that_fits_is_taken)
{
    const clxent_tuning none = tuned("", CLXENT_F32);
    const bool cpu = (device.ctx->device.type & CL_DEVICE_TYPE_CPU) != 0;
    char text[1024];

    clxent_tuning t = tuned("TUNE(ANY, \"*\", ANY_DTYPE, " NUMBERS ")", CLXENT_F32);
    cr_assert(t.group == 1 && t.vector == 4 && t.block == 8 && t.cache == 0 && t.elements == 1);
    cr_assert(t.stream == 0 && t.piece == 64 && t.split == 2 && t.lane_classes == 3 && t.lane_group == 1);
    cr_assert(t.lane_vector == 4 && t.lane_cache == 1024 && t.native_exp == 1);
    cr_assert(same_tuning(
        t, tuned(" /* a\n * b */TUNE(ANY,\"*\",F32,1,4,8,0,1,0,64,2,3,1,4,1024,1)/**/\r\n\t", CLXENT_F32)));

    /* Neither of these fits. */
    cr_assert(same_tuning(none, tuned("TUNE(ANY, \"no such device\", ANY_DTYPE, " NUMBERS ")", CLXENT_F32)));
    cr_assert(same_tuning(none, tuned("TUNE(ANY, \"*\", BF16, " NUMBERS ")", CLXENT_F32)));
    snprintf(text, sizeof text, "TUNE(%s, \"*\", F32, " NUMBERS ")", cpu ? "GPU" : "CPU");
    cr_assert(same_tuning(none, tuned(text, CLXENT_F32)));

    snprintf(text, sizeof text,
             "TUNE(ANY, \"*\", F16, " NUMBERS ")\n"
             "TUNE(%s, \"%.100s\", F32, 1, 8, 4, 0, 0, 4294967295, 0, 0, 0, 1, 1, 0, 0)\n"
             "TUNE(ANY, \"*\", ANY_DTYPE, " NUMBERS ")\n",
             cpu ? "CPU" : "GPU", device.ctx->device.name);
    t = tuned(text, CLXENT_F32);
    cr_assert(t.vector == 8 && t.block == 4 && t.elements == 0 && t.stream == UINT32_MAX);
    cr_assert(tuned(text, CLXENT_BF16).block == 8 && tuned(text, CLXENT_BF16).vector == 4);

    /* Within what the device has. */
    t = tuned("TUNE(ANY, \"*\", F32, 4096, 4, 4, 4294967295, 1, 0, 0, 0, 0, 4096, 4, 4294967295, 0)",
              CLXENT_F32);
    cr_assert(t.group <= 1024 && t.lane_group <= 1024); /* the kernels' own limit */
    cr_assert(t.group <= device.ctx->device.max_work_group && t.cache <= device.ctx->device.local_memory);
    cr_assert(t.lane_group <= device.ctx->device.max_work_group &&
              t.lane_cache <= device.ctx->device.local_memory);
}

Test(context, the_librarys_own_rows_are_rows)
{
    const uint32_t dtypes[] = { CLXENT_F32, CLXENT_F16, CLXENT_BF16, CLXENT_F64 };
    char *text = take_memory(65536);
    FILE *file = fopen(CLXENT_TUNING_DEF, "r");

    cr_assert(file != NULL, "%s", CLXENT_TUNING_DEF);
    const size_t length = fread(text, 1, 65535, file);
    cr_assert(length > 0 && length < 65535);
    text[length] = '\0';
    fclose(file);
    for (size_t i = 0; i < 4; i++) cr_assert(same_tuning(tuned(text, dtypes[i]), tuned("", dtypes[i])));
    free(text);
}

Test(context, what_is_no_tuning_row_is_refused_by_line_and_field)
{
    static const struct {
        const char *text, *line, *field, *got, *takes;
    } bad[] = {
        { "TUNE", "1", "TUNE", "missing", "'('" },
        { "\n\nTUNED(ANY", "3", "begin", "'TUNED'", "TUNE" },
        { "TUNE(ANY, \"*\", F32, " NUMBERS ")\n;", "2", "begin", "';'", "TUNE" },
        { "/* a\nb */ TUNE(XPU, ", "2", "device", "'XPU'", "CPU, GPU or ANY" },
        { "TUNE(, ", "1", "device", "','", "CPU, GPU or ANY" },
        { "TUNE(CPU \"*\"", "1", "device", "'\"*\"'", "','" },
        { "TUNE(CPU, *, F32", "1", "name", "'*'", "quotes" },
        { "TUNE(CPU, \"\", F32", "1", "name", "'\"\"'", "quotes" },
        { "TUNE(CPU, \"open,\n F32", "1", "name", "'\"open,'", "quotes" },
        { "TUNE(CPU, \"a\\\", F32", "1", "name", "a\\", "backslashes" },
        { "TUNE(CPU, \"*\", F99", "1", "dtype", "'F99'", "F32, F16, BF16, F64 or ANY_DTYPE" },
        { "TUNE(CPU, \"*\", F32,\n3", "2", "group", "'3'", "power of two from 1 to 4096" },
        { "TUNE(CPU, \"*\", F32, 0", "1", "group", "'0'", "power of two" },
        { "TUNE(CPU, \"*\", F32, 8192", "1", "group", "'8192'", "4096" },
        { "TUNE(CPU, \"*\", F32, -1", "1", "group", "'-1'", "power of two" },
        { "TUNE(CPU, \"*\", F32, 1e2", "1", "group", "'1e2'", "power of two" },
        { "TUNE(CPU, \"*\", F32, 1, 2", "1", "vector", "'2'", "1, 4, 8 or 16" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 5", "1", "block", "'5'", "an even number" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 0", "1", "block", "'0'", "an even number" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4100", "1", "block", "'4100'", "to 4096" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 4294967296", "1", "cache", "'4294967296'", "below 2^32" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 99999999999999999999999", "1", "elements", "999", "2^32" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, x", "1", "stream", "'x'", "whole number" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, 0, \n\n)", "3", "piece", "')'", "whole number" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, 0, 1)", "1", "piece", "')'", "','" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, 0, 1, 0.5", "1", "split", "'0.5'", "whole number" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, 0, 1, 2, ,", "1", "lane_classes", "','", "whole number" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, 0, 1, 2, 3, 5", "1", "lane_group", "'5'", "power of two" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, 0, 1, 2, 3, 1, 32", "1", "lane_vector", "'32'", "16" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, 0, 1, 2, 3, 1, 4, ", "1", "lane_cache", "missing", "number" },
        { "TUNE(CPU, \"*\", F32, 1, 4, 4, 0, 1, 0, 1, 2, 3, 1, 4, 0, 2", "1", "native_exp", "'2'", "0 or 1" },
        { "TUNE(CPU, \"*\", F32, " NUMBERS, "1", "native_exp", "missing", "')'" },
        { "TUNE(CPU, \"*\", F32, " NUMBERS ", 9)", "1", "native_exp", "','", "')'" },
        { "\n/* TUNE", "2", "comment", "no end", "" },
        { "/*/ TUNE", "1", "comment", "no end", "" },
        { "\xff\x01", "1", "begin", "'", "TUNE" },
    };
    clxent_context_options options = listening;
    char line[32];

    for (size_t i = 0; i < COUNT(bad); i++) {
        options.tuning = bad[i].text;
        expect_refused(bad[i].text, &options, CLXENT_ERROR_INVALID_ARGUMENT);
        snprintf(line, sizeof line, "tuning, line %s: ", bad[i].line);
        cr_assert(strncmp(book.last, line, strlen(line)) == 0, "%s: %s", bad[i].text, book.last);
        expect_said(bad[i].text, bad[i].field);
        expect_said(bad[i].text, bad[i].got);
        expect_said(bad[i].text, bad[i].takes);
    }

    /* A whole one is kept, not its text. */
    char own[] = "TUNE(ANY, \"*\", ANY_DTYPE, " NUMBERS ")";
    const clxent_desc desc = CLXENT_DESC_INIT;
    options.tuning = own;
    clxent_context *ctx = make_context(&options);
    memset(own, 'x', sizeof own - 1);
    cr_assert(clxent_tuning_choose(ctx->tuning, &ctx->device, &desc).piece == 64);
    clxent_context_destroy(ctx);
}

/* ---- Programs ------------------------------------------------------------------------------ */

Test(context, a_program_is_built_once_for_its_options)
{
    cl_program a, b, c;
    cr_assert(clxent_program_get(device.ctx, "good.cl", "-DVALUE=41", &a) == CLXENT_OK, "%s", last_error());
    cr_assert(clxent_program_get(device.ctx, "good.cl", "-DVALUE=41", &b) == CLXENT_OK);
    cr_assert(clxent_program_get(device.ctx, "good.cl", "-DVALUE=42", &c) == CLXENT_OK);
    cr_assert(a == b && a != c);

    /* Each is what its options say, and OpenCL C 1.2. */
    char options[256] = "";
    clGetProgramBuildInfo(c, device.id, CL_PROGRAM_BUILD_OPTIONS, sizeof options, options, NULL);
    cr_assert(strstr(options, "-cl-std=CL1.2") != NULL && strstr(options, "-DVALUE=42") != NULL, "%s",
              options);
    clReleaseProgram(a);
    clReleaseProgram(b);
    clReleaseProgram(c);
}

Test(context, a_build_that_fails_tells_everything_to_the_log)
{
    cl_program program = NULL;
    char text[1024];

    if (small_run()) cr_skip("Oclgrind reports a failed build as a fault of the program");
    clxent_context *ctx = make_context(&listening);
    for (int i = 0; i < 2; i++) { /* a failure is not remembered as a program */
        book.messages = 0;
        cr_assert(clxent_program_get(ctx, "bad.cl", "", &program) == CLXENT_ERROR_BUILD_FAILED);
        cr_assert(program == NULL && book.messages == 2);
    }
    cr_assert(strstr(book.first, "no_such_name") != NULL && strstr(book.first, "nor_this_one") != NULL,
              "the whole build log: %s", book.first);
    clxent_context_last_error(ctx, text, sizeof text);
    cr_assert_str_eq(text, book.last);
    cr_assert(strstr(text, "bad.cl") != NULL && strchr(text, '\n') == NULL, "one line, naming the file: %s",
              text);
    clxent_context_destroy(ctx);
}

Test(context, options_that_the_compiler_refuses_are_a_failed_build)
{
    cl_program program = NULL;
    if (small_run()) cr_skip("Oclgrind reports a failed build as a fault of the program");
    const clxent_status status =
        clxent_program_get(device.ctx, "good.cl", "-DVALUE=1 -no-such-option", &program);
    cr_assert(status == CLXENT_ERROR_BUILD_FAILED, "%s", clxent_status_string(status));
    cr_assert(strstr(last_error(), "good.cl") != NULL, "%s", last_error());
}

/* Some drivers print a build log on the application's stderr. */
Test(context, a_program_that_builds_leaves_no_warnings)
{
    char log[1024] = "";
    cl_program program;

    if (small_run()) cr_skip("Oclgrind logs #warning under -w too");
    cr_assert(clxent_program_get(device.ctx, "warns.cl", "", &program) == CLXENT_OK, "%s", last_error());
    cr_assert(clGetProgramBuildInfo(program, device.id, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL) ==
              CL_SUCCESS);
    cr_assert(strstr(log, "warning") == NULL, "%s", log);
    clReleaseProgram(program);
}

Test(context, a_source_that_is_not_there_is_our_own_bug)
{
    cl_program program = NULL;
    cr_assert(clxent_program_get(device.ctx, "absent.cl", "", &program) == CLXENT_ERROR_INTERNAL);
    cr_assert(strstr(last_error(), "absent.cl") != NULL, "%s", last_error());
}

enum { THREADS = 8, ROUNDS = 4 };

static void *use_context(void *result)
{
    cl_program *programs = result;
    for (int round = 0; round < ROUNDS; round++) {
        char options[32], text[64];
        snprintf(options, sizeof options, "-DVALUE=%d", 1000 + round);
        clxent_context_retain(device.ctx);
        if (clxent_program_get(device.ctx, "good.cl", options, &programs[round]) != CLXENT_OK) return NULL;
        clxent_fail(device.ctx, CLXENT_ERROR_INTERNAL, "text of one");
        clxent_context_last_error(device.ctx, text, sizeof text);
        if (strcmp(text, "text of one") != 0) return NULL;
        clxent_context_destroy(device.ctx);
    }
    return result;
}

Test(context, threads_share_programs)
{
    pthread_t threads[THREADS];
    cl_program programs[THREADS][ROUNDS] = { { NULL } };

    /* Four threads that do nothing but clBuildProgram() crash Oclgrind 21.10, without this library too. */
    if (small_run()) cr_skip("Oclgrind cannot build programs in several threads at once");
    for (int t = 0; t < THREADS; t++)
        cr_assert(pthread_create(&threads[t], NULL, use_context, programs[t]) == 0);
    for (int t = 0; t < THREADS; t++) {
        void *result = NULL;
        pthread_join(threads[t], &result);
        cr_assert(result == (void *)programs[t], "thread %d failed: %s", t, last_error());
        for (int round = 0; round < ROUNDS; round++) {
            cr_assert(programs[t][round] == programs[0][round],
                      "two programs for one set of options were kept");
        }
    }
    for (int t = 0; t < THREADS; t++) {
        for (int round = 0; round < ROUNDS; round++) clReleaseProgram(programs[t][round]);
    }
}

/* ---- Programs of GPUs ------------------------------------------------------------------------- */

#define AMD "Advanced Micro Devices, Inc."
#define INTEL "Intel(R) Corporation"
#define NVIDIA "NVIDIA Corporation" /* of compute capability 8.0 */

/* What the plan of a GPU is compiled with, of 100 rows, losses and gradient unless fields say otherwise. */
typedef struct gpu_case {
    const char *vendor, *fields; /* as `clxent verify --case` reads them */
    uint32_t group;              /* 0: any */
    const char *has, *lacks;     /* options; NULL: any */
    size_t most;                 /* the device's largest group; 0: 1024 */
    const char *product;         /* of linear cross-entropy */
} gpu_case;

static void check_gpu_case(const clxent_tuning_rows *rows, const gpu_case *c)
{
    clxent_device facts = { .type = CL_DEVICE_TYPE_GPU,
                            .max_work_group = c->most != 0 ? c->most : 1024,
                            .local_memory = 48 << 10,
                            .compute_units = 8,
                            .has_f64 = true };
    char fields[CASE_TEXT_SIZE];
    clxent_plan_build build;
    verify_case v;
    problem_fault f;

    snprintf(facts.vendor, sizeof facts.vendor, "%s", c->vendor);
    facts.sm_80 = strcmp(c->vendor, NVIDIA) == 0;
    snprintf(fields, sizeof fields, "outputs=losses+gradient;batch=100;%s", c->fields);
    cr_assert(case_read(&v, fields, &f), "%s: %s", fields, f.text);
    cr_assert((c->product == NULL
                   ? clxent_plan_program(rows, &facts, &v.desc, &build)
                   : clxent_linear_program(rows, &facts, &v.desc, c->product, &build)) == CLXENT_OK,
              "%s", fields);
    cr_assert(c->group == 0 || build.group == c->group, "%s: groups of %u", fields, (unsigned)build.group);
    cr_assert(c->has == NULL || strstr(build.options, c->has) != NULL, "%s: %s", fields, build.options);
    cr_assert(c->lacks == NULL || strstr(build.options, c->lacks) == NULL, "%s: %s", fields, build.options);
    if (c->product != NULL) cr_assert_str_eq(build.file, "product.cl");
}

static void check_gpu_cases(const clxent_tuning_rows *rows, const gpu_case *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) check_gpu_case(rows, &cases[i]);
}
#define CHECK_GPU(rows, ...) \
    check_gpu_cases(rows, (const gpu_case[]){ __VA_ARGS__ }, COUNT(((const gpu_case[]){ __VA_ARGS__ })))

/* The smallest group that has a row in one block, on both sides of each boundary; outputs do not change it. NVIDIA's may be one
 * warp, with longer blocks of f32. */
Test(tuning, groups_follow_from_the_class_count)
{
#define GROUP(vendor, fields, group, ...)                             \
    { vendor, "outputs=losses;classes=" fields, group, __VA_ARGS__ }, \
        { vendor, "outputs=losses+entropy;classes=" fields, group, __VA_ARGS__ }
#define IN_ONE(block) .has = "-DBLOCK=" #block " -DKERNELS=1 -DONE_BLOCK=1 "
#define IN_SEVERAL(block) .has = "-DBLOCK=" #block " ", .lacks = "-DONE_BLOCK=1"
    CHECK_GPU(NULL, GROUP("", "40", 64, IN_ONE(4)), GROUP("", "1024", 64, IN_ONE(4)),
              GROUP("", "1028", 128, IN_ONE(4)), GROUP("", "4096", 256, IN_ONE(4)),
              GROUP("", "4100", 512, IN_ONE(4)), GROUP("", "16384", 1024, IN_ONE(4)),
              GROUP("", "16388", 1024, IN_SEVERAL(4)), GROUP("", "511", 64, IN_ONE(4)),
              GROUP("", "513", 64, IN_ONE(4)), GROUP("", "1025", 128, IN_ONE(4)),
              GROUP("", "50257", 1024, IN_SEVERAL(4)), GROUP(NVIDIA, "40", 32, IN_ONE(4)),
              GROUP(NVIDIA, "512", 32, IN_ONE(4)), GROUP(NVIDIA, "513", 32, IN_ONE(8)),
              GROUP(NVIDIA, "1024", 32, IN_ONE(8)), GROUP(NVIDIA, "1025", 128, IN_ONE(4)),
              GROUP(NVIDIA, "16384", 1024, IN_ONE(4)), GROUP(NVIDIA, "16385", 512, IN_SEVERAL(4)),
              GROUP(NVIDIA, "32768", 512, IN_SEVERAL(4)), GROUP(NVIDIA, "32769", 1024, IN_SEVERAL(4)),
              GROUP(NVIDIA, "512;dtype=bf16", 32, IN_ONE(2)), GROUP(NVIDIA, "513;dtype=bf16", 64, IN_ONE(2)));
}

/* Of vectors of one a block is as many logits as of longer ones, and the PTX for vectors is not there. */
Test(tuning, nvidias_rows_may_have_vectors_of_one)
{
    static const char row[] =
        "TUNE(GPU, \"NVIDIA\", ANY_DTYPE, 1024, 1, 16, 0, 1024, 0, 32768, 2, 32, 64, 1, 16384, 0)";
    clxent_tuning_rows *own;
    char fault[256];

    cr_assert(clxent_tuning_parse(&own, row, fault, sizeof fault) == CLXENT_OK, "%s", fault);
#define OF_ONE(block) "-DVEC=1 -DBLOCK=" #block " -DKERNELS=1 -DONE_BLOCK=1 -DDIVIDES=1"
    CHECK_GPU(own, { NVIDIA, "classes=512", .has = OF_ONE(16) " -DSM_80=1 " },
              { NVIDIA, "classes=1023", .has = OF_ONE(32) " -DSM_80=1 " },
              { NVIDIA, "classes=1024;label_smoothing=0.1", .has = OF_ONE(8) " -DSM_80=1 " },
              { NVIDIA, "classes=1024;dtype=bf16", .has = OF_ONE(16) " -DSM_80=1 " },
              { NVIDIA, "classes=1024;dtype=f64", .has = OF_ONE(16) });
    free(own);
}

/* NVIDIA's compiler is told a cap, of lanes of a strided class axis. */
Test(tuning, registers_of_a_strided_class_axis_are_capped_where_that_spills_nothing)
{
#define STRIDED "batch=4096;inner=4096;"
#define CAP "-cl-nv-maxrregcount="
    CHECK_GPU(NULL, { NVIDIA, STRIDED "classes=1000;label_smoothing=0.1;softcap=30", .has = CAP "72" },
              { NVIDIA, STRIDED "classes=1000;label_smoothing=0.1;softcap=30;dtype=bf16", .has = CAP "72" },
              { NVIDIA, STRIDED "classes=1000;label_smoothing=0.1;softcap=30;dtype=f16", .has = CAP "72" },
              /* on chip */
              { NVIDIA, STRIDED "classes=21;label_smoothing=0.1;softcap=30", .lacks = CAP },
              { NVIDIA, STRIDED "classes=1000;label_smoothing=0.1;softcap=30;dtype=f64", .lacks = CAP },
              { NVIDIA, STRIDED "classes=1000;label_smoothing=0.1", .lacks = CAP },
              { NVIDIA, STRIDED "classes=1000", .lacks = CAP });
}

/* exp2 of the device only where its maker or the compiler's documents its error. */
Test(tuning, makers_of_gpus_have_rows_of_their_own)
{
#define LONG "classes=50256;dtype="
    CHECK_GPU(NULL, { AMD, LONG "f32", 256, .has = "-DWG_SIZE=256 " },
              { INTEL, LONG "f32", 256, .has = "-DWG_SIZE=256 ", .lacks = "-DNATIVE_EXP" },
              { NVIDIA, LONG "f32", 1024, .has = "-DWG_SIZE=1024 ", .lacks = "-DNATIVE_EXP" },
              { AMD, LONG "bf16", .has = "-DNATIVE_EXP=1", .lacks = "-DSM_80" },
              { AMD, LONG "f64", .lacks = "-DNATIVE_EXP" }, { NVIDIA, LONG "bf16", .has = "-DSM_80=1" },
              { NVIDIA, LONG "f64", .lacks = "-DSM_80" },
              /* vectors of a block: half with options that take a register for each logit */
              { AMD, LONG "bf16", .has = "-DVEC=8 -DBLOCK=2 " },
              { AMD, LONG "bf16;label_smoothing=0.1", .has = "-DVEC=8 -DBLOCK=1 " },
              { INTEL, LONG "f32;label_smoothing=0.1", .has = "-DVEC=4 -DBLOCK=2 " });
}

/* Tiles of 8 x 8 numbers, 4 x 4 of f64, in groups of 256 work-items, and of 64 where the device takes fewer than 256. */
Test(tuning, products_of_gpus_have_tiles_in_registers)
{
#define PRODUCTS                                                                                         \
    "op=linear-cross-entropy;outputs=losses+hidden_gradient+weight_gradient;classes=50257;features=768;" \
    "dtype="
#define BF16_TO_F16 PRODUCTS "bf16;hidden_gradient_dtype=f16"
    CHECK_GPU(
        NULL,
        { "", PRODUCTS "f32", 256, .has = "-DPRODUCT=1 -DDTYPE=1 -DGRADIENT_DTYPE=1 -DVEC=4 -DWG_SIZE=256 ",
          .product = "logits" },
        { "", BF16_TO_F16, 256, .has = "-DPRODUCT=2 -DDTYPE=3 -DGRADIENT_DTYPE=2 -DVEC=4 -DWG_SIZE=256 ",
          .product = "hidden" },
        { "", BF16_TO_F16, 256, .has = "-DTILE_ROWS=8 -DTILE_VECTORS=2 -DGROUP_COLUMNS=16 ",
          .product = "weight" },
        { "", PRODUCTS "f64", 256, .has = "-DTILE_ROWS=4 -DTILE_VECTORS=1 -DGROUP_COLUMNS=16 ",
          .product = "weight" },
        { "", PRODUCTS "f32", 64, .has = "-DTILE_ROWS=8 -DTILE_VECTORS=2 -DGROUP_COLUMNS=8 ",
          .product = "logits", .most = 128 });
    clxent_device facts = { .type = CL_DEVICE_TYPE_GPU, .max_work_group = 1024 };
    clxent_plan_build build;
    verify_case v;
    problem_fault f;
    cr_assert(case_read(&v, BF16_TO_F16, &f), "%s", f.text);
    cr_assert(clxent_linear_program(NULL, &facts, &v.desc, "bias", &build) == CLXENT_ERROR_INVALID_ARGUMENT);
}
