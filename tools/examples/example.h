/* SPDX-License-Identifier: MIT
 *
 * example.h - what the examples need besides clxent: a device, a queue, buffers, error messages, sample data.
 *
 * Your program has its own. The functions are inline so that no compiler warns where an example calls only some.
 */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <clxent/clxent.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_BUFFERS = 16 };
static cl_command_queue queue; /* in order: each command sees what those before it wrote */
static cl_mem buffers[MAX_BUFFERS];
static int num_buffers;
static clxent_context *ctx; /* check() asks it for the error's text */

/* Text of the OpenCL C file that the build embeds, for an example that has one. */
typedef struct example_source {
    const char *name;
    const unsigned char *text;
    size_t size;
} example_source;
extern const example_source example_sources[];

/* Ends the program with one line for any error, of OpenCL or clxent. */
static inline void check(clxent_status status, const char *what)
{
    char text[512] = "";
    if (status == CLXENT_OK) return;
    clxent_context_last_error(ctx, text, sizeof text);
    fprintf(stderr, "%s: %s %s\n", what, clxent_status_string(status), text);
    exit(EXIT_FAILURE);
}

/* Opens the first GPU, else the first device. A program with OpenCL code of its own calls
 * clxent_context_create() with its cl_context and device. */
static inline void open_device(void)
{
    cl_int code;
    check(clxent_context_create_default(&ctx, NULL, NULL), "clxent_context_create_default");
    queue = clCreateCommandQueue(clxent_context_cl(ctx), clxent_context_device(ctx), 0, &code);
    check(code, "clCreateCommandQueue");
}

/* Releases what open_device() and buffer() created. */
static inline void close_device(void)
{
    while (num_buffers > 0) clReleaseMemObject(buffers[--num_buffers]);
    clReleaseCommandQueue(queue);
    clxent_context_destroy(ctx);
}

/* A buffer of size bytes with a copy of data (optional). A workspace may be empty; OpenCL has no empty buffers. */
static inline cl_mem buffer(size_t size, void *data)
{
    cl_int code = num_buffers < MAX_BUFFERS ? CL_SUCCESS : CL_OUT_OF_RESOURCES;
    check(code, "buffer");
    const cl_mem_flags copy = data != NULL ? CL_MEM_COPY_HOST_PTR : 0;
    buffers[num_buffers] =
        clCreateBuffer(clxent_context_cl(ctx), CL_MEM_READ_WRITE | copy, size > 0 ? size : 1, data, &code);
    check(code, "clCreateBuffer");
    return buffers[num_buffers++];
}

/* Copies size bytes of mem to data, after all that was enqueued before. */
static inline void read_buffer(cl_mem mem, size_t size, void *data)
{
    check(clEnqueueReadBuffer(queue, mem, CL_TRUE, 0, size, data, 0, NULL, NULL), "clEnqueueReadBuffer");
}

/* The next of a fixed series of numbers in [-1, 1), in place of a model's results. */
static inline float sample(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005U + 1442695040888963407U;
    return (float)(state >> 40) / 8388608.0F - 1.0F; /* 24 bits, so that the float is exact */
}

#endif
