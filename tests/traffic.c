/* SPDX-License-Identifier: MIT
 *
 * traffic.c - one run of one strategy with the parameters of a GPU, for test_traffic.py, which lets Oclgrind count what
 * it reads and writes.
 *
 * traffic ROWS CLASSES INNER LANES PIECE GRADIENT: LANES, rows of at most so many classes are lanes; PIECE, rows are
 * split over groups in pieces of so many logits, 0: they are not; GRADIENT, 1 or 0, the gradient beside the losses.
 * Prints the plan's strategy.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>

static void check(clxent_status status, const char *what)
{
    if (status == CLXENT_OK) return;
    (void)fprintf(stderr, "traffic: %s: %s (%d)\n", what, clxent_status_string(status), (int)status);
    exit(1);
}

static cl_mem buffer(cl_context cl, size_t size, void *content)
{
    cl_int code;
    const cl_mem_flags flags = CL_MEM_READ_WRITE | (content != NULL ? CL_MEM_COPY_HOST_PTR : 0);
    cl_mem mem = clCreateBuffer(cl, flags, size > 0 ? size : 1, content, &code);
    check(code, "clCreateBuffer");
    return mem;
}

int main(int argc, char **argv)
{
    size_t number[6];
    cl_platform_id platform;
    cl_device_id id;
    cl_int code;
    clxent_context *ctx;
    clxent_plan *plan;
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_args args = CLXENT_ARGS_INIT;

    if (argc != 7) {
        (void)fprintf(stderr, "traffic: takes ROWS CLASSES INNER LANES PIECE GRADIENT\n");
        return 2;
    }
    for (int i = 0; i < 6; i++) number[i] = strtoul(argv[i + 1], NULL, 10);
    const size_t rows = number[0], classes = number[1], inner = number[2], elements = rows * classes;
    const clxent_tuning tuning = { .group = 256,
                                   .vector = 4,
                                   .block = 4,
                                   .elements = 1,
                                   .piece = number[4] > 0 ? (uint32_t)number[4] : 32768,
                                   .split = number[4] > 0 ? UINT32_MAX : 0,
                                   .lane_classes = (uint32_t)number[3],
                                   .lane_group = 64,
                                   .lane_vector = 1,
                                   .lane_cache = 16384 };

    check(clGetPlatformIDs(1, &platform, NULL), "clGetPlatformIDs");
    check(clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &id, NULL), "clGetDeviceIDs");
    cl_context cl = clCreateContext(NULL, 1, &id, NULL, NULL, &code);
    check(code, "clCreateContext");
    cl_command_queue queue = clCreateCommandQueue(cl, id, 0, &code);
    check(code, "clCreateCommandQueue");
    check(clxent_context_create(&ctx, cl, id, NULL), "clxent_context_create");

    desc.batch = rows / inner;
    desc.seq = inner;
    desc.classes = classes;
    desc.inner = inner;
    desc.reduction = CLXENT_REDUCTION_SUM; /* one kernel, or those of split rows */
    desc.outputs = CLXENT_OUTPUT_LOSSES | (number[5] != 0 ? CLXENT_OUTPUT_GRADIENT : 0u);
    desc.target_type = CLXENT_TARGET_I32;
    check(clxent_plan_create_tuned(&plan, ctx, &desc, &tuning), "clxent_plan_create_tuned");
    (void)puts(clxent_plan_strategy(plan));

    float *logits = malloc(elements * sizeof *logits);
    int32_t *targets = calloc(rows, sizeof *targets);
    if (logits == NULL || targets == NULL) check(CLXENT_ERROR_OUT_OF_HOST_MEMORY, "malloc");
    for (size_t i = 0; i < elements; i++) logits[i] = (float)(i * 7919 % 1009) / 256.0F;
    args.logits.mem = buffer(cl, elements * sizeof *logits, logits);
    args.targets.mem = buffer(cl, rows * sizeof *targets, targets);
    args.losses.mem = buffer(cl, rows * sizeof(float), NULL);
    args.workspace.mem = buffer(cl, clxent_plan_workspace_size(plan), NULL);
    if (number[5] != 0) args.gradient.mem = buffer(cl, elements * sizeof *logits, NULL);
    check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "clxent_enqueue");
    check(clFinish(queue), "clFinish");

    const cl_mem mems[] = { args.logits.mem, args.targets.mem, args.losses.mem, args.workspace.mem,
                            args.gradient.mem };
    for (size_t i = 0; i < sizeof mems / sizeof *mems; i++) {
        if (mems[i] != NULL) (void)clReleaseMemObject(mems[i]);
    }
    clxent_plan_destroy(plan);
    clxent_context_destroy(ctx);
    (void)clReleaseCommandQueue(queue);
    (void)clReleaseContext(cl);
    free(logits);
    free(targets);
    return 0;
}
