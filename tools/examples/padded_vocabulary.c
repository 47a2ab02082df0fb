/* SPDX-License-Identifier: MIT
 *
 * padded_vocabulary.c - training with a padded vocabulary, the gradient in the place of the logits.
 *
 * Matrix products are fastest on rows of a round length, so models pad 50,257 classes to 50,304. Here 1,003 classes
 * stand in rows of 1,024 elements. The model is the simplest one: its parameters are the logits.
 */
#include "example.h"

#include <math.h>

enum { ROWS = 16, CLASSES = 1003, STRIDE = 1024, STEPS = 6 };
static const float UNUSED = 5; /* the model's parameters and logits in the padding: anything but 0 */

/* The optimizer is the program's own. As the matrix products of a backward pass do, it reads whole rows. */
static const char descend_source[] =
    "__kernel void descend(__global float *parameters, __global const float *gradient, const float rate)\n"
    "{\n"
    "    const size_t i = get_global_id(0);\n"
    "    parameters[i] -= rate * gradient[i];\n"
    "}\n";

int main(void)
{
    static float parameters[ROWS][STRIDE], gradient[ROWS][STRIDE];
    int32_t targets[ROWS];
    for (int row = 0; row < ROWS; row++) {
        targets[row] = row * 61 % CLASSES;
        for (int class = 0; class < STRIDE; class ++)
            parameters[row][class] = class < CLASSES ? sample() : UNUSED;
    }
    open_device();

    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_plan *plan;
    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = ROWS;
    desc.seq = 1;
    desc.classes = CLASSES;
    desc.row_stride = desc.gradient_row_stride = STRIDE;  /* equal, because one buffer is both */
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO; /* else logits would stay in the padding */
    desc.target_type = CLXENT_TARGET_I32;
    check(clxent_plan_create(&plan, ctx, &desc), "clxent_plan_create");

    float loss, previous = INFINITY;
    const size_t elements = ROWS * STRIDE;
    cl_mem parameters_mem = buffer(sizeof parameters, parameters);
    clxent_args args = CLXENT_ARGS_INIT;
    args.logits.mem = args.gradient.mem = buffer(sizeof gradient, NULL);
    args.targets.mem = buffer(sizeof targets, targets);
    args.loss.mem = buffer(sizeof loss, NULL);
    args.workspace.mem = buffer(clxent_plan_workspace_size(plan), NULL);

    /* The gradient of a mean is divided by ROWS; this rate takes a step of 1 along the gradient of each row's own loss.
     * Such a step always lowers the loss, because its curvature is at most 1/2. */
    const float rate = ROWS;
    cl_int code;
    const char *source = descend_source;
    cl_program program = clCreateProgramWithSource(clxent_context_cl(ctx), 1, &source, NULL, &code);
    check(code, "clCreateProgramWithSource");
    check(clBuildProgram(program, 0, NULL, "-cl-std=CL1.2", NULL, NULL), "clBuildProgram");
    cl_kernel descend = clCreateKernel(program, "descend", &code);
    check(code, "clCreateKernel");
    check(clSetKernelArg(descend, 0, sizeof parameters_mem, &parameters_mem), "clSetKernelArg");
    check(clSetKernelArg(descend, 1, sizeof args.gradient.mem, &args.gradient.mem), "clSetKernelArg");
    check(clSetKernelArg(descend, 2, sizeof rate, &rate), "clSetKernelArg");

    bool falls = true;
    for (int step = 0; step < STEPS; step++) {
        /* Forward pass, loss and gradient, optimizer. The queue keeps their order; the host waits for the loss only. */
        check(clEnqueueCopyBuffer(queue, parameters_mem, args.logits.mem, 0, 0, sizeof parameters, 0, NULL,
                                  NULL),
              "clEnqueueCopyBuffer");
        check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "clxent_enqueue");
        check(clEnqueueNDRangeKernel(queue, descend, 1, NULL, &elements, NULL, 0, NULL, NULL), "descend");
        read_buffer(args.loss.mem, sizeof loss, &loss);
        printf("step %d  loss %.6f\n", step, (double)loss);
        falls = falls && loss < previous;
        previous = loss;
    }

    read_buffer(args.gradient.mem, sizeof gradient, gradient);
    read_buffer(parameters_mem, sizeof parameters, parameters);
    int changed = 0;
    for (int row = 0; row < ROWS; row++)
        for (int class = CLASSES; class < STRIDE; class ++)
            changed += gradient[row][class] != 0 || parameters[row][class] != UNUSED;
    printf("padding: %d of %d elements with a gradient\n", changed, ROWS * (STRIDE - CLASSES));

    clReleaseKernel(descend);
    clReleaseProgram(program);
    clxent_plan_destroy(plan);
    close_device();
    return falls && changed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
