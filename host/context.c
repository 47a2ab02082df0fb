/* SPDX-License-Identifier: MIT
 *
 * context.c - one device of one cl_context, found by name where the application has none: its facts, queried once; the
 * programs built for it; the text of the latest error. Knows nothing of what the programs compute.
 *
 * Plans hold a reference, so that a context may be destroyed before them. The lock guards only the
 * reference count, the list of programs and the error text: nothing is compiled and no callback is called
 * while it is held.
 */
#include "internal.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct program_entry {
    struct program_entry *next;
    cl_program program;
    char key[]; /* file, newline, options */
} program_entry;

/* An error text longer than this is cut: room for a path-length name, two numbers and their meaning. */
enum { ERROR_TEXT_SIZE = 1024 };

struct clxent_cache {
    mutex lock;
    size_t references;
    program_entry *programs;
    char error[ERROR_TEXT_SIZE];
};

/* ---- Errors and the log -------------------------------------------------------------------- */

clxent_status clxent_fail(clxent_context *ctx, clxent_status status, const char *format, ...)
{
    char text[ERROR_TEXT_SIZE];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(text, sizeof text, format, list);
    va_end(list);

    mutex_lock(&ctx->cache->lock);
    memcpy(ctx->cache->error, text, sizeof text);
    mutex_unlock(&ctx->cache->lock);
    if (ctx->log != NULL) ctx->log(text, ctx->log_payload);
    return status;
}

void clxent_log(clxent_context *ctx, const char *format, ...)
{
    char text[ERROR_TEXT_SIZE];
    va_list list;

    if (ctx->log == NULL) return;
    va_start(list, format);
    (void)vsnprintf(text, sizeof text, format, list);
    va_end(list);
    ctx->log(text, ctx->log_payload);
}

clxent_status clxent_check_cl(clxent_context *ctx, cl_int code, const char *what)
{
    if (code == CL_SUCCESS) return CLXENT_OK;
    return clxent_fail(ctx, code, "%s: %s (%d)", what, clxent_status_string(code), (int)code);
}

size_t clxent_context_last_error(const clxent_context *ctx, char *text, size_t size)
{
    if (ctx == NULL) {
        if (text != NULL && size > 0) text[0] = '\0';
        return 1;
    }
    mutex_lock(&ctx->cache->lock);
    const size_t length = strlen(ctx->cache->error);
    if (text != NULL && size > 0) {
        const size_t kept = length < size ? length : size - 1;
        memcpy(text, ctx->cache->error, kept);
        text[kept] = '\0';
    }
    mutex_unlock(&ctx->cache->lock);
    return length + 1;
}

/* ---- Device facts -------------------------------------------------------------------------- */

/* A device text of any length, cut to size. */
static clxent_status device_text(clxent_context *ctx, cl_device_info info, const char *what, char *text,
                                 size_t size)
{
    size_t bytes = 0;
    CLXENT_TRY(clxent_check_cl(ctx, clGetDeviceInfo(ctx->id, info, 0, NULL, &bytes), what));
    char *whole = malloc(bytes + 1);
    if (whole == NULL) {
        return clxent_fail(ctx, CLXENT_ERROR_OUT_OF_HOST_MEMORY, "%s: malloc of %zu bytes failed", what,
                           bytes + 1);
    }
    const clxent_status status =
        clxent_check_cl(ctx, clGetDeviceInfo(ctx->id, info, bytes, whole, NULL), what);
    if (status == CLXENT_OK) {
        whole[bytes] = '\0';
        (void)snprintf(text, size, "%s", whole);
    }
    free(whole);
    return status;
}

static clxent_status device_value(clxent_context *ctx, cl_device_info info, const char *what, void *value,
                                  size_t size)
{
    return clxent_check_cl(ctx, clGetDeviceInfo(ctx->id, info, size, value, NULL), what);
}

#define DEVICE_TEXT(info, field) \
    CLXENT_TRY(device_text(ctx, info, "clGetDeviceInfo(" #info ")", field, sizeof(field)))
#define DEVICE_VALUE(info, value) \
    CLXENT_TRY(device_value(ctx, info, "clGetDeviceInfo(" #info ")", &(value), sizeof(value)))

/* A work-group lies along the first dimension, which may have a limit of its own. */
static clxent_status limit_work_group(clxent_context *ctx)
{
    enum { MOST_DIMENSIONS = 16 };
    clxent_device *device = &ctx->device;
    size_t items[MOST_DIMENSIONS] = { 0 };
    cl_uint dimensions = 0;

    DEVICE_VALUE(CL_DEVICE_MAX_WORK_ITEM_DIMENSIONS, dimensions);
    if (dimensions < 1 || dimensions > MOST_DIMENSIONS) return CLXENT_OK;
    CLXENT_TRY(device_value(ctx, CL_DEVICE_MAX_WORK_ITEM_SIZES,
                            "clGetDeviceInfo(CL_DEVICE_MAX_WORK_ITEM_SIZES)", items,
                            dimensions * sizeof *items));
    if (items[0] > 0 && items[0] < device->max_work_group) device->max_work_group = items[0];
    return CLXENT_OK;
}

static clxent_status query_device(clxent_context *ctx)
{
    clxent_device *device = &ctx->device;
    cl_bool unified = CL_FALSE, compiler = CL_FALSE;
    unsigned major = 0, minor = 0;

    DEVICE_TEXT(CL_DEVICE_NAME, device->name);
    DEVICE_TEXT(CL_DEVICE_VENDOR, device->vendor);
    DEVICE_TEXT(CL_DRIVER_VERSION, device->driver);
    DEVICE_TEXT(CL_DEVICE_VERSION, device->version);
    if (sscanf(device->version, "OpenCL %u.%u", &major, &minor) != 2 || major < 1 ||
        (major == 1 && minor < 2)) {
        return clxent_fail(ctx, CLXENT_ERROR_UNSUPPORTED,
                           "device \"%s\" has \"%s\": takes one with OpenCL 1.2 or later", device->name,
                           device->version);
    }
    DEVICE_VALUE(CL_DEVICE_COMPILER_AVAILABLE, compiler);
    if (!compiler) {
        return clxent_fail(
            ctx, CLXENT_ERROR_UNSUPPORTED,
            "device \"%s\" has no OpenCL C compiler: takes one with CL_DEVICE_COMPILER_AVAILABLE",
            device->name);
    }
    DEVICE_VALUE(CL_DEVICE_TYPE, device->type);
    DEVICE_VALUE(CL_DEVICE_MAX_COMPUTE_UNITS, device->compute_units);
    DEVICE_VALUE(CL_DEVICE_MAX_WORK_GROUP_SIZE, device->max_work_group);
    CLXENT_TRY(limit_work_group(ctx));
    DEVICE_VALUE(CL_DEVICE_LOCAL_MEM_SIZE, device->local_memory);
    DEVICE_VALUE(CL_DEVICE_GLOBAL_MEM_SIZE, device->global_memory);
    DEVICE_VALUE(CL_DEVICE_MAX_MEM_ALLOC_SIZE, device->max_allocation);
    DEVICE_VALUE(CL_DEVICE_ADDRESS_BITS, device->address_bits);
    DEVICE_VALUE(CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, device->native_floats);
    DEVICE_VALUE(CL_DEVICE_HOST_UNIFIED_MEMORY, unified);
    device->host_memory = unified != CL_FALSE;

    /* Drivers without f64 answer 0 or, some of them, that they do not know the question. */
    cl_device_fp_config f64 = 0;
    device->has_f64 =
        clGetDeviceInfo(ctx->id, CL_DEVICE_DOUBLE_FP_CONFIG, sizeof f64, &f64, NULL) == CL_SUCCESS &&
        f64 != 0;

    /* NVIDIA's extension cl_nv_device_attribute_query. */
    enum { COMPUTE_CAPABILITY_MAJOR = 0x4000 };
    cl_uint capability = 0;
    device->sm_80 = strstr(device->vendor, "NVIDIA") != NULL &&
                    clGetDeviceInfo(ctx->id, COMPUTE_CAPABILITY_MAJOR, sizeof capability, &capability,
                                    NULL) == CL_SUCCESS &&
                    capability >= 8;
    return CLXENT_OK;
}

static clxent_status read_tuning(clxent_context *ctx, const char *text)
{
    char fault[ERROR_TEXT_SIZE];

    if (text == NULL) return CLXENT_OK;
    const clxent_status status = clxent_tuning_parse(&ctx->tuning, text, fault, sizeof fault);
    return status == CLXENT_OK ? CLXENT_OK : clxent_fail(ctx, status, "%s", fault);
}

/* A part of a device may stand for it: PoCL lists the whole one where the context was made of a part. */
static clxent_status check_device_of_context(clxent_context *ctx, cl_context cl, cl_device_id id)
{
    size_t bytes = 0;
    CLXENT_TRY(clxent_check_cl(ctx, clGetContextInfo(cl, CL_CONTEXT_DEVICES, 0, NULL, &bytes),
                               "clGetContextInfo(CL_CONTEXT_DEVICES)"));
    cl_device_id *ids = malloc(bytes > 0 ? bytes : 1);
    if (ids == NULL) {
        return clxent_fail(ctx, CLXENT_ERROR_OUT_OF_HOST_MEMORY, "device list: malloc of %zu bytes failed",
                           bytes);
    }
    clxent_status status = clxent_check_cl(ctx, clGetContextInfo(cl, CL_CONTEXT_DEVICES, bytes, ids, NULL),
                                           "clGetContextInfo(CL_CONTEXT_DEVICES)");
    bool found = false;
    while (status == CLXENT_OK && !found && id != NULL) {
        for (size_t i = 0; i < bytes / sizeof *ids; i++) found = found || ids[i] == id;
        status = clxent_check_cl(ctx, clGetDeviceInfo(id, CL_DEVICE_PARENT_DEVICE, sizeof id, &id, NULL),
                                 "clGetDeviceInfo(CL_DEVICE_PARENT_DEVICE)");
    }
    if (status == CLXENT_OK && !found)
        status =
            clxent_fail(ctx, CLXENT_ERROR_UNSUPPORTED,
                        "device is not of the cl_context: takes one of its %zu devices, or a part of one",
                        bytes / sizeof *ids);
    free(ids);
    return status;
}

/* ---- A device by name ---------------------------------------------------------------------- */

/* In any case of letters. */
static bool has_part(const char *text, const char *part)
{
    for (; *text != '\0'; text++) {
        size_t i = 0;
        while (part[i] != '\0' && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i])) i++;
        if (part[i] == '\0') return true;
    }
    return false;
}

static bool is_word(const char *text, const char *word)
{
    return strlen(text) == strlen(word) && has_part(text, word);
}

/* 0: another device is wanted; the first with the highest number is taken. */
static int rank_device(const char *wanted, cl_device_type type, const char *name)
{
    if (wanted == NULL) return (type & CL_DEVICE_TYPE_GPU) != 0 ? 2 : 1;
    if (is_word(wanted, "gpu")) return (type & CL_DEVICE_TYPE_GPU) != 0;
    if (is_word(wanted, "cpu")) return (type & CL_DEVICE_TYPE_CPU) != 0;
    return has_part(name, wanted);
}

typedef struct found_device {
    cl_platform_id platform;
    cl_device_id id; /* NULL: none is wanted */
    cl_int code;     /* of the latest query that failed; CL_SUCCESS: none did */
    char names[512]; /* of all devices */
} found_device;

/* A platform or device whose query fails is not there: a loader lists drivers whose hardware is absent. */
static void find_device(const char *wanted, found_device *found)
{
    enum { MOST = 64 }; /* platforms; devices of each */
    cl_platform_id platforms[MOST];
    cl_uint num_platforms = 0;
    size_t used = 0;
    int best = 0;

    memset(found, 0, sizeof *found);
    found->code = clGetPlatformIDs(MOST, platforms, &num_platforms);
    if (found->code != CL_SUCCESS) return;
    for (cl_uint p = 0; p < num_platforms && p < MOST; p++) {
        cl_device_id ids[MOST];
        cl_uint num_ids = 0;
        const cl_int listed = clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, MOST, ids, &num_ids);
        if (listed != CL_SUCCESS) found->code = listed;
        for (cl_uint d = 0; listed == CL_SUCCESS && d < num_ids && d < MOST; d++) {
            cl_device_type type = 0;
            char name[256] = "";
            cl_int code = clGetDeviceInfo(ids[d], CL_DEVICE_TYPE, sizeof type, &type, NULL);
            if (code == CL_SUCCESS) code = clGetDeviceInfo(ids[d], CL_DEVICE_NAME, sizeof name, name, NULL);
            if (code != CL_SUCCESS) {
                found->code = code;
                continue;
            }
            const int rank = rank_device(wanted, type, name);
            if (rank > best) {
                best = rank;
                found->platform = platforms[p];
                found->id = ids[d];
            }
            const int length = snprintf(found->names + used, sizeof found->names - used, "%s\"%s\"",
                                        used > 0 ? ", " : "", name);
            if ((size_t)length < sizeof found->names - used) used += (size_t)length;
            found->names[used] = '\0'; /* whole names */
        }
    }
}

/* *cl is the caller's. */
static clxent_status open_device(clxent_context *ctx, const char *wanted, cl_context *cl, cl_device_id *id)
{
    found_device found;
    cl_int code;

    find_device(wanted, &found);
    if (found.id == NULL) {
        const clxent_status status = found.code != CL_SUCCESS ? found.code : CL_DEVICE_NOT_FOUND;
        if (found.names[0] == '\0')
            return clxent_fail(ctx, status, "no OpenCL device: takes an installed driver with one: %s (%d)",
                               clxent_status_string(status), (int)status);
        return clxent_fail(
            ctx, CL_DEVICE_NOT_FOUND,
            "device is \"%s\": takes NULL, \"gpu\", \"cpu\" or part of a name, and the devices are %s",
            wanted, found.names);
    }
    const cl_context_properties properties[] = { CL_CONTEXT_PLATFORM, (cl_context_properties)found.platform,
                                                 0 };
    *cl = clCreateContext(properties, 1, &found.id, NULL, NULL, &code);
    *id = found.id;
    return clxent_check_cl(ctx, code, "clCreateContext");
}

/* ---- Lifetime ------------------------------------------------------------------------------ */

/* A context without a device. */
static clxent_status start(clxent_context **out, const clxent_context_options *own)
{
    clxent_context *ctx = calloc(1, sizeof *ctx);
    if (ctx == NULL) return CLXENT_ERROR_OUT_OF_HOST_MEMORY;
    ctx->cache = calloc(1, sizeof *ctx->cache);
    if (ctx->cache == NULL || !mutex_init(&ctx->cache->lock)) {
        free(ctx->cache);
        free(ctx);
        return CLXENT_ERROR_OUT_OF_HOST_MEMORY;
    }
    ctx->cache->references = 1;
    ctx->log = own->log;
    ctx->log_payload = own->log_payload;
    ctx->store = own->store;
    *out = ctx;
    return CLXENT_OK;
}

static clxent_status bind(clxent_context *ctx, cl_context context, cl_device_id device, const char *tuning)
{
    CLXENT_TRY(check_device_of_context(ctx, context, device));
    CLXENT_TRY(clxent_check_cl(ctx, clRetainContext(context), "clRetainContext"));
    ctx->cl = context;
    CLXENT_TRY(clxent_check_cl(ctx, clRetainDevice(device), "clRetainDevice"));
    ctx->id = device;
    CLXENT_TRY(query_device(ctx));
    return read_tuning(ctx, tuning);
}

static clxent_status read_options(clxent_context_options *own, const clxent_context_options *options)
{
    clxent_context_options_init(own);
    if (options == NULL) return CLXENT_OK;
    return clxent_struct_copy(CLXENT_STRUCT_CONTEXT_OPTIONS, own, options, NULL, 0);
}

clxent_status clxent_context_create(clxent_context **out, cl_context context, cl_device_id device,
                                    const clxent_context_options *options)
{
    clxent_context *ctx;
    clxent_context_options own;

    if (out == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    *out = NULL;
    if (context == NULL || device == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    CLXENT_TRY(read_options(&own, options));
    CLXENT_TRY(start(&ctx, &own));
    const clxent_status status = bind(ctx, context, device, own.tuning);
    if (status == CLXENT_OK) *out = ctx;
    else clxent_context_destroy(ctx);
    return status;
}

clxent_status clxent_context_create_default(clxent_context **out, const char *device,
                                            const clxent_context_options *options)
{
    clxent_context *ctx;
    clxent_context_options own;
    cl_context cl = NULL;
    cl_device_id id = NULL;

    if (out == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    *out = NULL;
    CLXENT_TRY(read_options(&own, options));
    CLXENT_TRY(start(&ctx, &own));
    clxent_status status = open_device(ctx, device, &cl, &id);
    if (status == CLXENT_OK) status = bind(ctx, cl, id, own.tuning);
    if (cl != NULL) (void)clReleaseContext(cl); /* ctx has a reference of its own */
    if (status == CLXENT_OK) *out = ctx;
    else clxent_context_destroy(ctx);
    return status;
}

cl_context clxent_context_cl(const clxent_context *ctx) { return ctx == NULL ? NULL : ctx->cl; }

cl_device_id clxent_context_device(const clxent_context *ctx) { return ctx == NULL ? NULL : ctx->id; }

void clxent_context_retain(clxent_context *ctx)
{
    mutex_lock(&ctx->cache->lock);
    ctx->cache->references++;
    mutex_unlock(&ctx->cache->lock);
}

/* Drops one reference: the application's, or a plan's. */
void clxent_context_destroy(clxent_context *ctx)
{
    if (ctx == NULL) return;
    mutex_lock(&ctx->cache->lock);
    const size_t left = --ctx->cache->references;
    mutex_unlock(&ctx->cache->lock);
    if (left > 0) return;

    program_entry *entry = ctx->cache->programs;
    while (entry != NULL) {
        program_entry *next = entry->next;
        (void)clReleaseProgram(entry->program);
        free(entry);
        entry = next;
    }
    mutex_destroy(&ctx->cache->lock);
    free(ctx->cache);
    free(ctx->tuning);
    if (ctx->id != NULL) (void)clReleaseDevice(ctx->id);
    if (ctx->cl != NULL) (void)clReleaseContext(ctx->cl);
    free(ctx);
}

/* ---- Programs ------------------------------------------------------------------------------ */

static const clxent_source *source_find(const char *name)
{
    for (const clxent_source *source = clxent_sources; source->name != NULL; source++) {
        if (strcmp(source->name, name) == 0) return source;
    }
    return NULL;
}

/* Needs the lock. The program is retained for the caller; NULL when it is not there. */
static cl_program find_locked(clxent_context *ctx, const char *key)
{
    for (program_entry *entry = ctx->cache->programs; entry != NULL; entry = entry->next) {
        if (strcmp(entry->key, key) != 0) continue;
        return clRetainProgram(entry->program) == CL_SUCCESS ? entry->program : NULL;
    }
    return NULL;
}

/* Hands the whole build log to the application's log; its first line becomes the error's text. */
static clxent_status build_failure(clxent_context *ctx, cl_program program, const char *file,
                                   const char *options, cl_int code)
{
    size_t bytes = 0;
    char *log = NULL;

    if (clGetProgramBuildInfo(program, ctx->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &bytes) == CL_SUCCESS) {
        log = malloc(bytes + 1);
    }
    if (log != NULL &&
        clGetProgramBuildInfo(program, ctx->id, CL_PROGRAM_BUILD_LOG, bytes, log, NULL) == CL_SUCCESS) {
        log[bytes] = '\0';
        if (ctx->log != NULL) ctx->log(log, ctx->log_payload);
    } else {
        free(log);
        log = NULL;
    }

    const char *line = log == NULL ? "" : log + strspn(log, " \t\r\n");
    if (*line == '\0') line = "no build log";
    const clxent_status status =
        clxent_fail(ctx, CLXENT_ERROR_BUILD_FAILED, "%s with \"%s\": clBuildProgram: %s (%d): %.*s", file,
                    options, clxent_status_string(code), (int)code, (int)strcspn(line, "\r\n"), line);
    free(log);
    return status;
}

/* The compute capability of a device does not say which PTX its driver's compiler knows. Where a build with SM_80 fails, whatever
 * the driver calls that, the options become those without. Only such drivers build a program twice: a probe would cost every
 * context of NVIDIA's a build. The program is kept under the options that were asked for, so that no later plan tries again. */
static bool leave_sm_80(clxent_context *ctx, char *options)
{
    static const char sm_80[] = "-DSM_80=1";
    char *at = strstr(options, sm_80);

    if (at == NULL) return false;
    at[sizeof sm_80 - 2] = '0';
    clxent_log(ctx, "program: not with PTX of compute capability 8.0: built without");
    return true;
}

static clxent_status compile(clxent_context *ctx, const clxent_source *source, char *options, cl_program *out)
{
    const char *text = (const char *)source->text;
    clxent_status status;
    cl_int code;

    cl_program program = clCreateProgramWithSource(ctx->cl, 1, &text, &source->length, &code);
    CLXENT_TRY_OR_FAIL(clxent_check_cl(ctx, code, "clCreateProgramWithSource"));
    code = clBuildProgram(program, 1, &ctx->id, options, NULL, NULL);
    if (code != CL_SUCCESS && leave_sm_80(ctx, options))
        code = clBuildProgram(program, 1, &ctx->id, options, NULL, NULL);
    if (code == CL_BUILD_PROGRAM_FAILURE || code == CL_INVALID_BUILD_OPTIONS ||
        code == CL_COMPILE_PROGRAM_FAILURE || code == CL_LINK_PROGRAM_FAILURE) {
        status = build_failure(ctx, program, source->name, options, code);
        goto fail;
    }
    CLXENT_TRY_OR_FAIL(clxent_check_cl(ctx, code, "clBuildProgram"));
    *out = program;
    return CLXENT_OK;

fail:
    if (program != NULL) (void)clReleaseProgram(program);
    return status;
}

/* From the application's store, else from source. */
static clxent_status build(clxent_context *ctx, const char *file, const char *options, cl_program *out)
{
    /* -w: PoCL reports each warning of its compiler as a line on the application's stderr; without AVX-512 that is one
     * for every function of 16 floats. The kernels' own lint compiles with warnings as errors. */
    static const char standard[] = "-cl-std=CL1.2 -w ";
    const clxent_source *source = source_find(file);
    clxent_status status = CLXENT_OK;
    cl_program program = NULL;
    clxent_key key;

    if (source == NULL) {
        return clxent_fail(ctx, CLXENT_ERROR_INTERNAL, "no program %s in the library", file);
    }
    char *all = malloc(sizeof standard + strlen(options));
    if (all == NULL) {
        return clxent_fail(ctx, CLXENT_ERROR_OUT_OF_HOST_MEMORY, "build options of %s: malloc failed", file);
    }
    memcpy(all, standard, sizeof standard);
    strcat(all, options);

    const bool kept = clxent_store_key(ctx, source, all, &key);
    if (kept) program = clxent_store_load(ctx, &key, all);
    const bool loaded = program != NULL;
    if (!loaded) status = compile(ctx, source, all, &program);
    if (!loaded && kept && status == CLXENT_OK) clxent_store_save(ctx, &key, program);
    if (status == CLXENT_OK)
        clxent_log(ctx, "program%s: %s %s", loaded ? ", from the store" : "", file, options);
    free(all);
    *out = program;
    return status;
}

clxent_status clxent_program_get(clxent_context *ctx, const char *file, const char *options, cl_program *out)
{
    const size_t key_size = strlen(file) + 1 + strlen(options) + 1;
    program_entry *entry = malloc(sizeof *entry + key_size);
    if (entry == NULL) {
        return clxent_fail(ctx, CLXENT_ERROR_OUT_OF_HOST_MEMORY, "program %s: malloc failed", file);
    }
    (void)snprintf(entry->key, key_size, "%s\n%s", file, options);

    mutex_lock(&ctx->cache->lock);
    cl_program program = find_locked(ctx, entry->key);
    mutex_unlock(&ctx->cache->lock);
    if (program != NULL) {
        free(entry);
        *out = program;
        return CLXENT_OK;
    }

    /* Another thread may be compiling the same: the first to come back here is kept. */
    clxent_status status = build(ctx, file, options, &program);
    if (status == CLXENT_OK) {
        status = clxent_check_cl(ctx, clRetainProgram(program), "clRetainProgram");
        if (status != CLXENT_OK) (void)clReleaseProgram(program);
    }
    if (status != CLXENT_OK) {
        free(entry);
        return status;
    }
    mutex_lock(&ctx->cache->lock);
    cl_program kept = find_locked(ctx, entry->key);
    if (kept == NULL) {
        entry->program = program;
        entry->next = ctx->cache->programs;
        ctx->cache->programs = entry;
    }
    mutex_unlock(&ctx->cache->lock);
    if (kept != NULL) {
        (void)clReleaseProgram(program); /* the cache's reference and the caller's */
        (void)clReleaseProgram(program);
        free(entry);
        program = kept;
    }
    *out = program;
    return CLXENT_OK;
}
