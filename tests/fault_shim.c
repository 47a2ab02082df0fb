/* SPDX-License-Identifier: MIT
 *
 * fault_shim.c - makes OpenCL calls of a whole process fail. LD_PRELOAD puts it in front of the ICD loader;
 * test_cli_faults.py runs the command line with it.
 *
 *     CLXENT_FAIL_AT=k         the k-th call fails, from 1; the driver does not see it
 *     CLXENT_FAIL_FOREVER=1    and so do all later ones, as those of a device that was lost
 *     CLXENT_FAIL_LATE=1       kernels begin when the device is waited for, else at the end of the process: one that
 *                              writes what was freed crashes
 *     CLXENT_FAIL_REPORT=file  at the end of the process: a line for each call, then "live N", the objects that were
 *                              created and retained, less those released
 *
 * A release that fails has released all the same: nobody could do more about it.
 */
#define _GNU_SOURCE
#define CL_TARGET_OPENCL_VERSION 120
#define CL_USE_DEPRECATED_OPENCL_1_1_APIS
#include <CL/cl.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FAILURE = CL_OUT_OF_RESOURCES, MOST_CALLS = 1 << 16, MOST_GATES = 64 };

static struct {
    unsigned long at; /* 0: none */
    bool forever, late;
    const char *report;
    atomic_ulong calls;
    atomic_long live;
    const char *names[MOST_CALLS];
} fault;

static bool is_set(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && strcmp(value, "1") == 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *at = getenv("CLXENT_FAIL_AT");
    fault.at = at != NULL ? strtoul(at, NULL, 10) : 0;
    fault.forever = is_set("CLXENT_FAIL_FOREVER");
    fault.late = is_set("CLXENT_FAIL_LATE");
    fault.report = getenv("CLXENT_FAIL_REPORT");
}

__attribute__((destructor)) static void end(void)
{
    FILE *file = fault.report != NULL ? fopen(fault.report, "w") : NULL;
    if (file == NULL) return;
    for (unsigned long i = 0; i < atomic_load(&fault.calls) && i < MOST_CALLS; i++)
        fprintf(file, "%s\n", fault.names[i]);
    fprintf(file, "live %ld\n", atomic_load(&fault.live));
    fclose(file);
}

static bool fails(const char *name)
{
    const unsigned long call = atomic_fetch_add(&fault.calls, 1) + 1;
    if (call <= MOST_CALLS) fault.names[call - 1] = name;
    return fault.at > 0 && (fault.forever ? call >= fault.at : call == fault.at);
}

/* ---- Late kernels -------------------------------------------------------------------------- */

/* A kernel waits for an event of ours, its gate. Calls that wait for the device open all gates; else the end of the
 * process does. */
static struct {
    pthread_mutex_t lock;
    cl_event events[MOST_GATES];
    cl_command_queue queues[MOST_GATES]; /* of the kernels */
    size_t count;
} gates = { .lock = PTHREAD_MUTEX_INITIALIZER };

#define REAL_AS(real, name) \
    __typeof__(&name) real; \
    *(void **)&real = dlsym(RTLD_NEXT, #name)
#define REAL(name) REAL_AS(real, name)

static void open_gates(void)
{
    REAL_AS(set, clSetUserEventStatus);
    REAL_AS(release_event, clReleaseEvent);
    REAL_AS(release_queue, clReleaseCommandQueue);
    pthread_mutex_lock(&gates.lock);
    for (size_t i = 0; i < gates.count; i++) {
        (void)set(gates.events[i], CL_COMPLETE);
        (void)release_event(gates.events[i]);
        (void)release_queue(gates.queues[i]);
    }
    gates.count = 0;
    pthread_mutex_unlock(&gates.lock);
}

/* What still waits runs now, before the driver ends: into memory that is there, or that was taken from it. */
static void run_late_kernels(void)
{
    REAL_AS(finish, clFinish);
    REAL_AS(retain, clRetainCommandQueue);
    cl_command_queue queues[MOST_GATES];
    pthread_mutex_lock(&gates.lock);
    const size_t count = gates.count;
    for (size_t i = 0; i < count; i++) {
        queues[i] = gates.queues[i];
        (void)retain(queues[i]);
    }
    pthread_mutex_unlock(&gates.lock);
    open_gates();
    for (size_t i = 0; i < count; i++) (void)finish(queues[i]);
}

/* After the driver was loaded, so that it runs before the driver's own handlers. */
static void register_end(void) { (void)atexit(run_late_kernels); }

/* NULL where kernels are not late. The caller releases it too: it may be open before its kernel is enqueued. */
static cl_event make_gate(cl_command_queue queue)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    REAL_AS(ask, clGetCommandQueueInfo);
    REAL_AS(create, clCreateUserEvent);
    REAL_AS(retain_event, clRetainEvent);
    REAL_AS(retain_queue, clRetainCommandQueue);
    cl_context context = NULL;
    cl_int code = CL_SUCCESS;

    if (!fault.late) return NULL;
    (void)pthread_once(&once, register_end);
    if (ask(queue, CL_QUEUE_CONTEXT, sizeof context, &context, NULL) != CL_SUCCESS) abort();
    cl_event gate = create(context, &code);
    if (code != CL_SUCCESS || retain_event(gate) != CL_SUCCESS || retain_queue(queue) != CL_SUCCESS) abort();
    pthread_mutex_lock(&gates.lock);
    if (gates.count == MOST_GATES) abort();
    gates.queues[gates.count] = queue;
    gates.events[gates.count++] = gate;
    pthread_mutex_unlock(&gates.lock);
    return gate;
}

/* ---- Calls --------------------------------------------------------------------------------- */

#define WAITING(name, parameters, arguments, blocks, made)             \
    cl_int name parameters                                             \
    {                                                                  \
        REAL(name);                                                    \
        if (fails(#name)) return FAILURE;                              \
        if (blocks) open_gates();                                      \
        const cl_int result = real arguments;                          \
        if (result == CL_SUCCESS) atomic_fetch_add(&fault.live, made); \
        return result;                                                 \
    }
#define CODE(name, parameters, arguments, made) WAITING(name, parameters, arguments, 0, made)
#define OBJECT(type, name, parameters, arguments, made)          \
    type name parameters                                         \
    {                                                            \
        REAL(name);                                              \
        if (fails(#name)) {                                      \
            if (code != NULL) *code = FAILURE;                   \
            return NULL;                                         \
        }                                                        \
        type object = real arguments;                            \
        if (object != NULL) atomic_fetch_add(&fault.live, made); \
        return object;                                           \
    }
#define RELEASE(name, type, in_use)         \
    cl_int name(type object)                \
    {                                       \
        REAL(name);                         \
        const bool failing = fails(#name);  \
        const cl_int result = real(object); \
        atomic_fetch_sub(&fault.live, 1);   \
        return failing ? FAILURE : result;  \
    }
#include "fault_calls.def"

OBJECT(cl_program, clCreateProgramWithSource,
       (cl_context a, cl_uint b, const char **c, const size_t *d, cl_int *code), (a, b, c, d, code), 1)
CODE(clBuildProgram,
     (cl_program a, cl_uint b, const cl_device_id *c, const char *d, void(CL_CALLBACK *e)(cl_program, void *),
      void *f),
     (a, b, c, d, e, f), 0)

/* ---- Calls of the command line alone, or of neither ----------------------------------------------- */

OBJECT(cl_event, clCreateUserEvent, (cl_context a, cl_int *code), (a, code), 1)
CODE(clSetUserEventStatus, (cl_event a, cl_int b), (a, b), 0)
OBJECT(cl_mem, clCreateSubBuffer,
       (cl_mem a, cl_mem_flags b, cl_buffer_create_type c, const void *d, cl_int *code), (a, b, c, d, code),
       1)
INFO(clGetKernelInfo, cl_kernel, cl_kernel_info)
INFO(clGetEventProfilingInfo, cl_event, cl_profiling_info)
CODE(clGetProgramBuildInfo,
     (cl_program a, cl_device_id b, cl_program_build_info c, size_t d, void *e, size_t *f),
     (a, b, c, d, e, f), 0)
CODE(clRetainMemObject, (cl_mem a), (a), 1)
CODE(clRetainKernel, (cl_kernel a), (a), 1)
CODE(clRetainEvent, (cl_event a), (a), 1)
CODE(clEnqueueFillBuffer, (cl_command_queue a, cl_mem b, const void *c, size_t d, size_t e, size_t f, EVENTS),
     (a, b, c, d, e, f, num, wait, event), event != NULL)
CODE(clEnqueueCopyBuffer, (cl_command_queue a, cl_mem b, cl_mem c, size_t d, size_t e, size_t f, EVENTS),
     (a, b, c, d, e, f, num, wait, event), event != NULL)
WAITING(clFinish, (cl_command_queue a), (a), 1, 0)
OBJECT(cl_command_queue, clCreateCommandQueue,
       (cl_context a, cl_device_id b, cl_command_queue_properties c, cl_int *code), (a, b, c, code), 1)

cl_int clEnqueueNDRangeKernel(cl_command_queue a, cl_kernel b, cl_uint c, const size_t *d, const size_t *e,
                              const size_t *f, EVENTS)
{
    enum { MOST_WAITS = 64 };
    cl_event all[MOST_WAITS + 1];
    REAL(clEnqueueNDRangeKernel);
    REAL_AS(release_event, clReleaseEvent);

    if (fails("clEnqueueNDRangeKernel")) return FAILURE;
    cl_event gate = num <= MOST_WAITS ? make_gate(a) : NULL;
    if (gate != NULL) {
        if (num > 0) memcpy(all, wait, num * sizeof *all);
        all[num++] = gate;
        wait = all;
    }
    const cl_int result = real(a, b, c, d, e, f, num, wait, event);
    if (gate != NULL) (void)release_event(gate);
    if (result == CL_SUCCESS && event != NULL) atomic_fetch_add(&fault.live, 1);
    return result;
}

/* A mapping counts as an object. It ends even where this fails. */
void *clEnqueueMapBuffer(cl_command_queue a, cl_mem b, cl_bool c, cl_map_flags d, size_t e, size_t f, EVENTS,
                         cl_int *code)
{
    REAL(clEnqueueMapBuffer);
    if (fails("clEnqueueMapBuffer")) {
        if (code != NULL) *code = FAILURE;
        return NULL;
    }
    if (c) open_gates();
    void *mapped = real(a, b, c, d, e, f, num, wait, event, code);
    if (mapped != NULL) atomic_fetch_add(&fault.live, 1 + (event != NULL));
    return mapped;
}

cl_int clEnqueueUnmapMemObject(cl_command_queue a, cl_mem b, void *c, EVENTS)
{
    REAL(clEnqueueUnmapMemObject);
    const bool failing = fails("clEnqueueUnmapMemObject");
    const cl_int result = real(a, b, c, num, wait, failing ? NULL : event);
    atomic_fetch_sub(&fault.live, 1);
    if (failing) return FAILURE;
    if (result == CL_SUCCESS && event != NULL) atomic_fetch_add(&fault.live, 1);
    return result;
}
