/* SPDX-License-Identifier: MIT
 *
 * quickstart.c - mean cross-entropy loss and gradient of a [2, 4] batch on the first OpenCL device.
 *
 *     cc quickstart.c $(pkg-config --cflags --libs clxent) -o quickstart
 */
#include <clxent/clxent.h>

#include <stdio.h>
#include <stdlib.h>

static clxent_context *ctx;

/* One line for whatever went wrong; the context has the words. */
static void check(clxent_status status, const char *what)
{
    char text[512] = "";
    if (status == CLXENT_OK) return;
    clxent_context_last_error(ctx, text, sizeof text);
    fprintf(stderr, "%s: %s %s\n", what, clxent_status_string(status), text);
    exit(EXIT_FAILURE);
}

static cl_mem buffer(cl_context cl, size_t size, void *data)
{
    cl_int code;
    const cl_mem_flags copy = data != NULL ? CL_MEM_COPY_HOST_PTR : 0;
    cl_mem mem = clCreateBuffer(cl, CL_MEM_READ_WRITE | copy, size, data, &code);
    check(code, "clCreateBuffer");
    return mem;
}

int main(void)
{
    float logits[2][4] = { { 1, 3, 5, 7 }, { 1, -9, 4, 8 } }, gradient[2][4], loss;
    int32_t targets[2] = { 3, 1 };
    cl_platform_id platform;
    cl_device_id device;
    cl_int code;

    check(clGetPlatformIDs(1, &platform, NULL), "clGetPlatformIDs");
    check(clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &device, NULL), "clGetDeviceIDs");
    cl_context cl = clCreateContext(NULL, 1, &device, NULL, NULL, &code);
    check(code, "clCreateContext");
    cl_command_queue queue = clCreateCommandQueue(cl, device, 0, &code);
    check(code, "clCreateCommandQueue");

    /* Once: what is computed. A plan validates, chooses and compiles; keep it for all steps. */
    clxent_desc desc = CLXENT_DESC_INIT; /* f32, mean, ignore_index -100, ... */
    clxent_plan *plan;
    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = 1;
    desc.seq = 2;
    desc.classes = 4;
    desc.target_type = CLXENT_TARGET_I32;
    check(clxent_context_create(&ctx, cl, device, NULL), "clxent_context_create");
    check(clxent_plan_create(&plan, ctx, &desc), "clxent_plan_create");

    /* Every step: name the buffers, enqueue. Nothing is compiled, allocated or waited for here. */
    const size_t workspace = clxent_plan_workspace_size(plan);
    clxent_args args = CLXENT_ARGS_INIT;
    cl_event done;
    args.logits.mem = buffer(cl, sizeof logits, logits);
    args.targets.mem = buffer(cl, sizeof targets, targets);
    args.loss.mem = buffer(cl, sizeof loss, NULL);
    args.gradient.mem = buffer(cl, sizeof gradient, NULL);
    args.workspace.mem = buffer(cl, workspace > 0 ? workspace : 1, NULL);
    check(clxent_enqueue(plan, queue, &args, 0, NULL, &done), "clxent_enqueue");

    check(clEnqueueReadBuffer(queue, args.loss.mem, CL_TRUE, 0, sizeof loss, &loss, 1, &done, NULL), "loss");
    check(
        clEnqueueReadBuffer(queue, args.gradient.mem, CL_TRUE, 0, sizeof gradient, gradient, 1, &done, NULL),
        "gradient");
    printf("loss      %.6f\n", (double)loss);
    for (int row = 0; row < 2; row++) {
        printf("gradient ");
        for (int class = 0; class < 4; class ++) printf(" %12.9f", (double)gradient[row][class]);
        printf("\n");
    }

    clReleaseEvent(done);
    clReleaseMemObject(args.logits.mem);
    clReleaseMemObject(args.targets.mem);
    clReleaseMemObject(args.loss.mem);
    clReleaseMemObject(args.gradient.mem);
    clReleaseMemObject(args.workspace.mem);
    clxent_plan_destroy(plan);
    clxent_context_destroy(ctx);
    clReleaseCommandQueue(queue);
    clReleaseContext(cl);
    return EXIT_SUCCESS;
}
