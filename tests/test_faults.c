/* SPDX-License-Identifier: MIT
 *
 * test_faults.c - whatever OpenCL call or malloc fails, the library passes the failure on, leaves results as
 * promised and leaks nothing.
 *
 * This program defines the OpenCL calls that the library makes in front of the loader's, as well as malloc and calloc.
 * Only calls from this executable, into which the library is linked, are counted, never the driver's own. Each
 * operation is repeated with its first call failing, then its second, until it gets through without a fault; then
 * again with all later calls failing too, as those of a device that was lost do.
 */
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A code that no driver returns by itself, so that it must be ours. */
enum { INJECTED = -9998, NEVER = -1 };

static struct {
    bool armed;
    bool stays;                 /* once a call has failed, all later ones do, but for releases */
    int until_failure;          /* OpenCL calls that still succeed; NEVER: all */
    int until_no_memory;        /* likewise allocations */
    int failed;                 /* faults injected */
    int live;                   /* objects created and retained, less those released */
    const char *call;           /* that failed first */
    bool unfinished;            /* clFinish() failed: what was enqueued may still run */
    int lost;                   /* objects released after that */
    cl_command_queue queues[4]; /* the latest that were created */
    int made_queues;
    bool like_nvidia; /* builds: see as_nvidia() */
    int refused;      /* builds with SM_80 */
} fault = { .until_failure = NEVER, .until_no_memory = NEVER };

extern char __executable_start, etext;

static bool is_ours(const void *caller)
{
    return (const char *)caller >= &__executable_start && (const char *)caller < &etext;
}

static bool fails(const char *call)
{
    if (fault.until_failure == NEVER) return false;
    if (fault.until_failure > 0) {
        fault.until_failure--;
        return false;
    }
    if (!fault.stays) fault.until_failure = NEVER;
    if (fault.failed++ == 0) fault.call = call;
    return true;
}

/* ---- OpenCL -------------------------------------------------------------------------------- */

#define REAL_COUNTED(name) \
    REAL(name);            \
    const bool counted = fault.armed && is_ours(__builtin_return_address(0))

#define CODE(name, parameters, arguments, made)                  \
    cl_int name parameters                                       \
    {                                                            \
        REAL_COUNTED(name);                                      \
        if (counted && fails(#name)) return INJECTED;            \
        const cl_int code = real arguments;                      \
        if (counted && code == CL_SUCCESS) fault.live += (made); \
        return code;                                             \
    }
#define WAITING(name, parameters, arguments, blocks, made) CODE(name, parameters, arguments, made)
#define OBJECT(type, name, parameters, arguments, made)      \
    type name parameters                                     \
    {                                                        \
        REAL_COUNTED(name);                                  \
        if (counted && fails(#name)) {                       \
            *code = INJECTED;                                \
            return NULL;                                     \
        }                                                    \
        type object = real arguments;                        \
        if (counted && object != NULL) fault.live += (made); \
        return object;                                       \
    }
#define RELEASE(name, type, in_use)                              \
    cl_int name(type object)                                     \
    {                                                            \
        REAL_COUNTED(name);                                      \
        if (counted) fault.live--;                               \
        if (counted && fault.unfinished) fault.lost += (in_use); \
        return real(object);                                     \
    }
#include "fault_calls.def"

/* The programs of the first attempt, by the order of its calls. A driver takes 30 ms for each that it has in its cache, and
 * attempts ask for hundreds: they get these, and must release them as any other. */
static struct {
    cl_program program; /* NULL: none yet */
    const char *source;
    char options[1024]; /* that it was built with */
} built[8];
static size_t sources; /* calls of this attempt */

/* Calls of ours that are neither counted nor fail. */
static void release_program(size_t i)
{
    const bool armed = fault.armed;
    fault.armed = false;
    if (built[i].program != NULL) clReleaseProgram(built[i].program);
    built[i].program = NULL;
    built[i].options[0] = '\0';
    fault.armed = armed;
}

cl_program clCreateProgramWithSource(cl_context a, cl_uint b, const char **c, const size_t *d, cl_int *code)
{
    REAL_COUNTED(clCreateProgramWithSource);
    if (!counted) return real(a, b, c, d, code);
    if (fails("clCreateProgramWithSource")) {
        *code = INJECTED;
        return NULL;
    }
    const size_t i = sources++;
    cr_assert(i < COUNT(built), "an attempt has %zu programs", i);
    if (built[i].program == NULL || built[i].source != *c) {
        release_program(i);
        built[i].program = real(a, b, c, d, code);
        built[i].source = *c;
        cr_assert(built[i].program != NULL);
    }
    fault.armed = false;
    *code = clRetainProgram(built[i].program);
    fault.armed = true;
    fault.live++;
    return built[i].program;
}

/* As a driver of NVIDIA's would have it whose compiler does not know the PTX of SM_80; this driver does not know the option that
 * caps registers. */
static bool as_nvidia(char *options)
{
    static const char cap[] = "-cl-nv-maxrregcount=";
    char *at = strstr(options, cap);

    if (at != NULL) memset(at, ' ', sizeof cap - 1 + strspn(at + sizeof cap - 1, "0123456789"));
    if (strstr(options, "-DSM_80=1") == NULL) return true;
    fault.refused++;
    return false;
}

cl_int clBuildProgram(cl_program a, cl_uint b, const cl_device_id *c, const char *d,
                      void(CL_CALLBACK *e)(cl_program, void *), void *f)
{
    REAL_COUNTED(clBuildProgram);
    char own[sizeof built->options];
    size_t i = 0;
    if (counted && fails("clBuildProgram")) return INJECTED;
    if (fault.like_nvidia) {
        cr_assert(strlen(d) < sizeof own);
        (void)snprintf(own, sizeof own, "%s", d);
        d = own;
        if (!as_nvidia(own)) return CL_INVALID_BINARY;
    }
    while (i < COUNT(built) && built[i].program != a) i++;
    if (i < COUNT(built) && strcmp(built[i].options, d) == 0) return CL_SUCCESS;
    const cl_int code = real(a, b, c, d, e, f);
    if (i < COUNT(built)) {
        cr_assert(strlen(d) < sizeof built[i].options);
        (void)snprintf(built[i].options, sizeof built[i].options, "%s", d);
    }
    return code;
}

CODE(clEnqueueNDRangeKernel,
     (cl_command_queue a, cl_kernel b, cl_uint c, const size_t *d, const size_t *e, const size_t *f, EVENTS),
     (a, b, c, d, e, f, num, wait, event), event != NULL)
OBJECT(void *, clEnqueueMapBuffer,
       (cl_command_queue a, cl_mem b, cl_bool c, cl_map_flags d, size_t e, size_t f, EVENTS, cl_int *code),
       (a, b, c, d, e, f, num, wait, event, code), 1 + (event != NULL))

cl_command_queue clCreateCommandQueue(cl_context a, cl_device_id b, cl_command_queue_properties c,
                                      cl_int *code)
{
    REAL_COUNTED(clCreateCommandQueue);
    if (counted && fails("clCreateCommandQueue")) {
        *code = INJECTED;
        return NULL;
    }
    cl_command_queue made = real(a, b, c, code);
    if (counted && *code == CL_SUCCESS) {
        fault.live++;
        fault.queues[fault.made_queues++ % 4] = made;
    }
    return made;
}

cl_int clFinish(cl_command_queue a)
{
    REAL_COUNTED(clFinish);
    if (!counted || !fails("clFinish")) return real(a);
    fault.unfinished = true;
    return INJECTED;
}

/* A mapping counts as an object. It ends even where this fails: a driver keeps a mapped buffer for ever, and
 * nobody could do better than release it. */
cl_int clEnqueueUnmapMemObject(cl_command_queue a, cl_mem b, void *c, EVENTS)
{
    REAL_COUNTED(clEnqueueUnmapMemObject);
    const bool failing = counted && fails("clEnqueueUnmapMemObject");
    const cl_int code = real(a, b, c, num, wait, failing ? NULL : event);
    if (counted) fault.live--;
    if (failing) return INJECTED;
    if (counted && code == CL_SUCCESS && event != NULL) fault.live++;
    return code;
}

/* ---- malloc -------------------------------------------------------------------------------- */

/* A sanitizer has a malloc of its own, and elsewhere than in glibc there is nothing to forward to. */
#if defined(__has_feature)
#    define SANITIZED __has_feature(address_sanitizer)
#elif defined(__SANITIZE_ADDRESS__)
#    define SANITIZED 1
#else
#    define SANITIZED 0
#endif
#if defined(__GLIBC__) && !SANITIZED
#    define CAN_FAIL_MALLOC 1
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
static bool no_memory(const void *caller)
{
    if (!fault.armed || fault.until_no_memory == NEVER || !is_ours(caller)) return false;
    if (fault.until_no_memory-- > 0) return false;
    fault.until_no_memory = NEVER;
    fault.failed++;
    fault.call = "malloc";
    return true;
}
void *malloc(size_t size) { return no_memory(__builtin_return_address(0)) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size)
{
    return no_memory(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}
#else
#    define CAN_FAIL_MALLOC 0
#endif

/* What the library leaves to a device that cannot be waited for is lost. */
#if SANITIZED
#    include <sanitizer/lsan_interface.h>
#    define IGNORE_LEAKS(condition) ((condition) ? __lsan_disable() : (void)0)
#    define SEE_LEAKS(condition) ((condition) ? __lsan_enable() : (void)0)
#else
#    define IGNORE_LEAKS(condition) (void)(condition)
#    define SEE_LEAKS(condition) (void)(condition)
#endif

/* ---- Operations ---------------------------------------------------------------------------- */

static clxent_desc desc;
static problem p;
static clxent_context *ctx; /* fresh for each attempt */
static clxent_plan *plan;
static clxent_args args;
static cl_mem mems[CLXENT_TENSORS + 1];
static cl_command_queue queue;
static cl_event gates[2]; /* complete */
static unsigned char *out[CLXENT_TENSORS];
static clxent_host_args host_args;
static int unfinished; /* attempts that clFinish() failed in */

static void open_with(const clxent_desc *own)
{
    const clxent_args no_args = CLXENT_ARGS_INIT;

    open_device();
    for (int i = 0; i < 2; i++) {
        cl_int made;
        gates[i] = clCreateUserEvent(device.cl, &made);
        cr_assert(made == CL_SUCCESS && clSetUserEventStatus(gates[i], CL_COMPLETE) == CL_SUCCESS);
    }
    desc = *own;
    make_problem(&p, &desc, FILL_IGNORED, 5);
    host_args = p.args;
    args = no_args;
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        clxent_output *host = array_of(&host_args, t);
        clxent_need need;
        cl_int code;
        cr_assert(clxent_tensor_need(&desc, desc.outputs, false, desc.batch, (clxent_tensor)t, &need, NULL,
                                     0) == 0);
        if (need.use != CLXENT_REQUIRED) continue;
        if (t >= CLXENT_TENSOR_LOSSES) {
            out[t] = take_memory(need.bytes);
            host->data = out[t];
            host->size = need.bytes;
        }
        mems[t] = clCreateBuffer(device.cl, CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR, need.bytes,
                                 (void *)host->data, &code);
        cr_assert(code == CL_SUCCESS);
        buffer_of(&args, t)->mem = mems[t];
    }
}

static void open_fixture(void)
{
    clxent_desc own =
        make_desc(CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_CORRECT,
                  CLXENT_F32, 5, 1, 3);
    /* More than one partial sum of each reduction. */
    if (!small_run()) own.batch += clxent_span_unit(&own);
    own.gradient_row_stride = 4;
    own.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    open_with(&own);
}

/* Linear cross-entropy in chunks, with every kernel that it has: sums of its own that are rounded at the end. */
static void open_linear(void)
{
    clxent_desc own = make_desc(CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_HIDDEN_GRADIENT |
                                    CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT,
                                CLXENT_BF16, 40, 1, 24);
    own.op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
    own.features = 3;
    own.has_bias = 1;
    own.workspace_limit = 4096;
    open_with(&own);
}

static void close_fixture(void)
{
    for (int i = 0; i < 2; i++) clReleaseEvent(gates[i]);
    for (int t = 0; t < CLXENT_TENSORS; t++) free(out[t]);
    for (int t = 0; t <= CLXENT_TENSORS; t++) {
        if (mems[t] != NULL) clReleaseMemObject(mems[t]);
    }
    free_problem(&p);
    for (size_t i = 0; i < COUNT(built); i++) release_program(i);
    close_device();
}

TestSuite(faults, .init = open_fixture, .fini = close_fixture);
TestSuite(faults_of_linear, .init = open_linear, .fini = close_fixture);

/* An operation: prepared and cleaned up without faults and without counting, run with both. */
typedef struct operation {
    const char *name;
    void (*prepare)(void);
    clxent_status (*run)(void); /* also undoes what it did, when it did it */
} operation;

static void nothing(void) {}

static void make_context(void)
{
    cr_assert(clxent_context_create(&ctx, device.cl, device.id, NULL) == CLXENT_OK);
}

static void drop_context(void) { clxent_context_destroy(ctx); }

static clxent_status create_context(void)
{
    clxent_context *made = device.ctx;
    const clxent_status status = clxent_context_create(&made, device.cl, device.id, NULL);
    cr_assert((status == CLXENT_OK) == (made != NULL), "*out is not NULL after a failure");
    clxent_context_destroy(made);
    return status;
}

static clxent_status create_default_context(void)
{
    clxent_context *made = device.ctx;
    const clxent_status status = clxent_context_create_default(&made, NULL, NULL);
    cr_assert((status == CLXENT_OK) == (made != NULL), "*out is not NULL after a failure");
    clxent_context_destroy(made);
    return status;
}

/* A store for one program, whose allocations are not the library's. */
static struct {
    bool used;
    unsigned char bytes[1 << 22];
    size_t size;
} kept;

static size_t load(const char *key, void *binary, size_t size, void *payload)
{
    (void)key, (void)payload;
    if (size > 0) memcpy(binary, kept.bytes, size < kept.size ? size : kept.size);
    return kept.size;
}

static void save(const char *key, const void *binary, size_t size, void *payload)
{
    (void)key, (void)payload;
    if (size > sizeof kept.bytes) return;
    memcpy(kept.bytes, binary, size);
    kept.size = size;
}

static void empty_store(void) { kept.size = 0; }

/* With the context's death inside, so that programs it kept count as released. */
static clxent_status create_plan(void)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    clxent_context *own = NULL;
    clxent_plan *made = plan;
    if (kept.used) options.store = (clxent_store){ load, save, NULL };
    const clxent_status first = clxent_context_create(&own, device.cl, device.id, &options);
    if (first != CLXENT_OK) return first;
    const clxent_status status = clxent_plan_create(&made, own, &desc);
    cr_assert((status == CLXENT_OK) == (made != NULL), "*out is not NULL after a failure");
    char text[256] = "";
    clxent_context_last_error(own, text, sizeof text);
    cr_assert((status == CLXENT_OK) == (text[0] == '\0'), "%s: \"%s\"", clxent_status_string(status), text);
    clxent_plan_destroy(made);
    clxent_context_destroy(own);
    return status;
}

static void make_plan(void)
{
    cl_int code;
    if (plan != NULL) return; /* one serves all attempts: a refused run must not spoil it */
    make_context();
    cr_assert(clxent_plan_create(&plan, ctx, &desc) == CLXENT_OK);
    if (mems[CLXENT_TENSORS] != NULL) clReleaseMemObject(mems[CLXENT_TENSORS]); /* another plan's */
    mems[CLXENT_TENSORS] =
        clCreateBuffer(device.cl, CL_MEM_READ_WRITE, clxent_plan_workspace_size(plan) + 1, NULL, &code);
    cr_assert(code == CL_SUCCESS);
    args.workspace.mem = mems[CLXENT_TENSORS];
}

static clxent_status enqueue(void)
{
    cl_event untouched = (cl_event)&args, event = untouched;
    const clxent_status status = clxent_enqueue(plan, queue, &args, 2, gates, &event);
    fault.armed = false;
    cr_assert((status == CLXENT_OK) == (event != untouched), "the event of a refused run was touched");
    cr_assert(clFinish(queue) == CL_SUCCESS);
    fault.armed = true;
    if (status == CLXENT_OK) clReleaseEvent(event);
    return status;
}

static clxent_status warm(void) { return clxent_plan_warm(plan, queue); }

static clxent_status run_host(void) { return clxent_run_host(device.ctx, &desc, &host_args); }

/* What may still run keeps all that it uses. Here it really runs, so that the next attempt needs its end. */
static void check_left_alone(const operation *op, int i)
{
    cr_assert(fault.lost == 0, "%s: %d objects were released though clFinish failed too after %s, call %d",
              op->name, fault.lost, fault.call, i);
    cr_assert(strstr(last_error(), "may still use the arrays") != NULL, "%s: %s", op->name, last_error());
    for (int q = 0; q < fault.made_queues && q < 4; q++) cr_assert(clFinish(fault.queues[q]) == CL_SUCCESS);
    unfinished++;
}

/* Makes the operation's 1st, 2nd, ... call fail; returns how many there were. */
static int fail_each(const operation *op, int *countdown, clxent_status expected, bool may_get_through)
{
    for (int i = 0;; i++) {
        op->prepare();
        fault.live = fault.failed = fault.lost = fault.made_queues = 0;
        sources = 0;
        fault.unfinished = false;
        *countdown = i;
        fault.armed = true;
        IGNORE_LEAKS(fault.stays);
        const clxent_status status = op->run();
        SEE_LEAKS(fault.stays);
        fault.armed = false;
        *countdown = NEVER;
        /* what warms a plan has buffers of its own, which commands keep */
        const bool in_use = fault.unfinished && op->run == run_host;
        if (in_use) {
            check_left_alone(op, i);
        } else {
            cr_assert(fault.live == 0, "%s: %d objects are left after %s failed, call %d", op->name,
                      fault.live, fault.failed > 0 ? fault.call : "nothing", i);
        }
        if (fault.failed == 0) {
            cr_assert(status == CLXENT_OK, "%s: %s without a fault", op->name, clxent_status_string(status));
            return i;
        }
        if (status == CLXENT_OK && may_get_through) continue;
        const clxent_status want = in_use ? CLXENT_ERROR_ARRAYS_IN_USE : expected;
        cr_assert(status == want, "%s: call %d, %s, failed, and it returned %s", op->name, i, fault.call,
                  clxent_status_string(status));
    }
}

/* Some failures are survived: a device that cannot tell whether it has f64 has none, a driver that refuses a window
 * gets a copy, a program that cannot be retained is built again. */
static void fail_every_call(const operation *op, int at_least)
{
    const int calls = fail_each(op, &fault.until_failure, INJECTED, true);
    cr_assert(calls >= at_least, "%s made %d calls: these are not all", op->name, calls);
    fault.stays = true;
    fail_each(op, &fault.until_failure, INJECTED, true);
    fault.stays = false;
}

Test(faults, context_create)
{
    const operation op = { "clxent_context_create", nothing, create_context };
    fail_every_call(&op, 15);
}

Test(faults, context_create_default)
{
    const operation op = { "clxent_context_create_default", nothing, create_default_context };
    fail_every_call(&op, 20);
}

Test(faults, plan_create)
{
    const operation op = { "clxent_plan_create", nothing, create_plan };
    if (small_run()) cr_skip("an interpreter takes too long to compile so often");
    fail_every_call(&op, 40);
}

/* A store is no reason to fail: what it needs and cannot have leaves a plan as it is without one. */
Test(faults, plan_create_with_a_store)
{
    const operation empty = { "clxent_plan_create, empty store", empty_store, create_plan };
    const operation full = { "clxent_plan_create, full store", nothing, create_plan };

    if (small_run()) cr_skip("an interpreter takes too long to compile so often");
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_KEEP; /* one program: the store has room for no more */
    kept.used = true;
    cr_assert(fail_each(&empty, &fault.until_failure, INJECTED, true) >= 50);
    cr_assert(kept.size > 0);
    cr_assert(fail_each(&full, &fault.until_failure, INJECTED, true) >= 45);
    kept.used = false;
}

/* What a second build makes good is no failure: no error is left, and no later plan tries again. */
Test(faults, ptx_that_a_driver_refuses_is_left_out)
{
    const clxent_tuning tuning = ROWS(2, 4, 2, 0, 1024, 0);

    if (!driver_takes(&tuning)) cr_skip("the driver takes no groups");
    make_context();
    (void)snprintf(ctx->device.vendor, sizeof ctx->device.vendor, "NVIDIA Corporation");
    ctx->device.sm_80 = true;
    desc.outputs = CLXENT_OUTPUT_LOSSES;
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_KEEP;
    fault.like_nvidia = true;
    for (int i = 0; i < 2; i++) { /* the second plan has the first one's program */
        char text[256] = "";
        const clxent_status status = clxent_plan_create_tuned(&plan, ctx, &desc, &tuning);
        clxent_context_last_error(ctx, text, sizeof text);
        cr_assert(status == CLXENT_OK && text[0] == '\0', "%s: %s", clxent_status_string(status), text);
        cr_assert(fault.refused == 1, "%d builds were refused", fault.refused);
        clxent_plan_destroy(plan);
    }
    plan = NULL;
    /* of a program that fails without it too, the error is that of the second build */
    desc.outputs |= CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_GRADIENT;
    fault.like_nvidia = false;
    fault.armed = fault.stays = true;
    fault.until_failure = 1; /* clCreateProgramWithSource() */
    cr_assert(clxent_plan_create_tuned(&plan, ctx, &desc, &tuning) == INJECTED);
    fault.armed = fault.stays = false;
    fault.until_failure = NEVER;
    cr_assert(fault.failed == 2, "%d calls failed", fault.failed);
    drop_context();
}

static void enqueue_on(cl_command_queue on)
{
    const operation op = { "clxent_enqueue", make_plan, enqueue };
    const operation first = { "clxent_plan_warm", make_plan, warm };
    queue = on;
    fail_every_call(&first, 30);
    fail_every_call(&op, 60);
    clxent_plan_destroy(plan);
    plan = NULL;
    drop_context();
}

Test(faults, enqueue_in_order) { enqueue_on(device.queue); }

Test(faults, enqueue_out_of_order)
{
    cl_command_queue on = make_out_of_order_queue();
    if (on == NULL) cr_skip("the device has no out-of-order queue");
    enqueue_on(on);
    clReleaseCommandQueue(on);
}

Test(faults_of_linear, plan_create)
{
    const operation op = { "clxent_plan_create", nothing, create_plan };
    if (small_run()) cr_skip("an interpreter takes too long to compile so often");
    fail_every_call(&op, 60);
}

Test(faults_of_linear, enqueue)
{
    if (small_run()) cr_skip("an interpreter takes five minutes");
    cl_command_queue out_of_order = make_out_of_order_queue();
    enqueue_on(device.queue);
    if (out_of_order == NULL) return;
    enqueue_on(out_of_order);
    clReleaseCommandQueue(out_of_order);
}

static void host_arrays(bool copy)
{
    const operation op = { copy ? "clxent_run_host, copied" : "clxent_run_host", nothing, run_host };
    clxent_host_args whole = host_args;

    device.ctx->device.host_memory = !copy;
    whole.max_chunk_bytes = 0;
    cr_assert(run_host() == CLXENT_OK, "%s", last_error()); /* programs are in the cache from here on */
    host_args.max_chunk_bytes = (desc.batch / 3 + 1) * 4 * sizeof(float); /* three parts */
    fail_every_call(&op, 60);
    cr_assert(unfinished >= 30, "clFinish failed %d times", unfinished);

    /* The last attempt had no fault: its results are those of a run that never had one. */
    unsigned char *after[CLXENT_TENSORS] = { NULL };
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (out[t] == NULL) continue;
        const size_t size = array_of(&host_args, t)->size;
        after[t] = take_memory(size);
        memcpy(after[t], out[t], size);
    }
    cr_assert(clxent_run_host(device.ctx, &desc, &whole) == CLXENT_OK);
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        if (out[t] == NULL) continue;
        cr_assert(memcmp(after[t], out[t], array_of(&host_args, t)->size) == 0, "%s differs",
                  clxent_tensor_name((clxent_tensor)t));
        free(after[t]);
    }
}

Test(faults, host_arrays_without_copies)
{
    if (small_run()) cr_skip("an interpreter takes too long for so many runs");
    host_arrays(false);
}

Test(faults, host_arrays_with_copies)
{
    if (small_run()) cr_skip("an interpreter takes too long for so many runs");
    host_arrays(true);
}

Test(faults_of_linear, host_arrays)
{
    const operation op = { "clxent_run_host", nothing, run_host };

    if (small_run()) cr_skip("an interpreter takes too long for so many runs");
    device.ctx->device.host_memory = false;
    cr_assert(run_host() == CLXENT_OK, "%s", last_error()); /* programs are in the cache from here on */
    fail_every_call(&op, 60);
}

/* ---- No memory ----------------------------------------------------------------------------- */

Test(faults, no_host_memory)
{
    const operation operations[] = {
        { "clxent_context_create_default", nothing, create_default_context },
        { "clxent_plan_create", nothing, create_plan },
        { "clxent_enqueue", make_plan, enqueue },
        { "clxent_run_host", nothing, run_host },
    };
    const int at_least[] = { 3, 6, 0, 1 };

    if (!CAN_FAIL_MALLOC) cr_skip("malloc is the sanitizer's");
    queue = device.queue;
    cr_assert(run_host() == CLXENT_OK, "%s", last_error()); /* what the cache keeps is no leak */
    for (int i = 0; i < (small_run() ? 1 : 4); i++) {
        const int calls =
            fail_each(&operations[i], &fault.until_no_memory, CLXENT_ERROR_OUT_OF_HOST_MEMORY, false);
        cr_assert(calls >= at_least[i], "%s allocated %d times: these are not all", operations[i].name,
                  calls);
    }
    clxent_plan_destroy(plan);
    plan = NULL;
    drop_context();

    const operation stored[] = { { "clxent_plan_create, empty store", empty_store, create_plan },
                                 { "clxent_plan_create, full store", nothing, create_plan } };
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_KEEP; /* one program */
    kept.used = true;
    for (int i = 0; i < (small_run() ? 0 : 2); i++)
        fail_each(&stored[i], &fault.until_no_memory, CLXENT_ERROR_OUT_OF_HOST_MEMORY, true);
}
