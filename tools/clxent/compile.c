/* SPDX-License-Identifier: MIT
 *
 * compile.c - compiles what a run needs before the run, so that the two can be timed apart. A driver may leave part
 * of its work to a kernel's first launch, as PoCL does: the kernels are also launched once, on a few rows of zeros.
 */
#define _XOPEN_SOURCE 700
#include "measure.h"
#include "problem.h"

enum {
    ALIGNMENT = 192, /* a workspace takes a multiple of 64, a record of bad targets one of its 24 bytes */
    MOST_ELEMENTS = 1 << 23 /* a launch on more would be a run by itself */
};

/* Outputs of clxent_run_host(): it records bad targets whether or not its caller asks. */
static uint32_t outputs_of(const clxent_desc *desc)
{
    const bool indices = has_index_targets(desc);
    const uint32_t of_targets = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT |
                                CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_HIDDEN_GRADIENT |
                                CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT;
    const bool records =
        indices && desc->bad_target == CLXENT_BAD_TARGET_REPORT && (desc->outputs & of_targets) != 0;
    return desc->outputs | (records ? CLXENT_OUTPUT_BAD_TARGETS : 0u);
}

/* The fewest rows that a run takes: a multiple of inner and, under a shift, of seq. 0: none, or too many. */
static size_t fewest_rows(const clxent_desc *desc)
{
    const size_t seq = desc->shift > 0 ? desc->seq : 1, inner = desc->inner;
    size_t a = inner, b = seq;

    if (desc->batch == 0 || desc->seq == 0) return 0;
    while (b > 0) {
        const size_t rest = a % b;
        a = b;
        b = rest;
    }
    if (inner / a > MOST_ELEMENTS / seq) return 0;
    return inner / a * seq <= MOST_ELEMENTS / desc->classes ? inner / a * seq : 0;
}

/* The fewest, or as many as reach the kernels that fold partial sums where the run does, as long as that is no run by
 * itself. */
static size_t rows_to_launch(const clxent_desc *desc)
{
    enum { ROWS_OF_A_PARTIAL = 4096 };
    const size_t fewest = fewest_rows(desc);
    if (fewest == 0 || desc->batch * desc->seq <= ROWS_OF_A_PARTIAL) return fewest;
    const size_t several =
        fewest > ROWS_OF_A_PARTIAL ? 2 * fewest : (ROWS_OF_A_PARTIAL / fewest + 2) * fewest;
    const bool fits = several <= desc->batch * desc->seq && several <= MOST_ELEMENTS / desc->classes;
    return fits ? several : fewest;
}

clxent_status launch_zeros(const cli_session *session, clxent_plan *plan, const clxent_desc *desc,
                           size_t rows)
{
    clxent_desc part = *desc;
    clxent_args args = CLXENT_ARGS_INIT;
    const cl_uchar zero = 0;
    cl_command_queue queue = NULL;
    size_t used = clxent_plan_workspace_size(plan);
    clxent_status status;
    cl_int code;

    part.batch = rows;
    part.seq = 1;
    used = (used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT; /* the workspace comes first */
    for (int t = 0; t < TENSORS; t++) {
        buffer_of(&args, t)->offset = used;
        used += (tensor_bytes(&part, t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    cl_mem all = clCreateBuffer(session->cl, CL_MEM_READ_WRITE, used, NULL, &code);
    if (all != NULL) queue = clCreateCommandQueue(session->cl, session->device.id, 0, &code);
    if (queue != NULL) code = clEnqueueFillBuffer(queue, all, &zero, 1, 0, used, 0, NULL, NULL);
    status = code;
    if (status == CLXENT_OK) {
        for (int t = 0; t < TENSORS; t++)
            if (t != TENSOR_GRAD_OUTPUT && t != TENSOR_DENOMINATOR && tensor_bytes(&part, t) > 0)
                buffer_of(&args, t)->mem = all;
        args.workspace.mem = all;
        args.rows = rows;
        status = clxent_enqueue(plan, queue, &args, 0, NULL, NULL);
    }
    if (queue != NULL) {
        code = clFinish(queue);
        if (status == CLXENT_OK) status = code;
        clReleaseCommandQueue(queue);
    }
    if (all != NULL) clReleaseMemObject(all);
    return status;
}

/* By a plan's own launches, which touch its workspace alone: a row of a run would read the whole weight. Where they fail the
 * run tells why. */
static void warm(const cli_session *session, clxent_plan *plan)
{
    cl_int code;
    cl_command_queue queue = clCreateCommandQueue(session->cl, session->device.id, 0, &code);
    if (queue == NULL) return;
    (void)clxent_plan_warm(plan, queue);
    clReleaseCommandQueue(queue);
}

clxent_status cli_compile(cli_session *session, const clxent_desc *desc, double *seconds)
{
    const double start = cli_seconds();
    const size_t rows = rows_to_launch(desc);
    clxent_desc complete = *desc;
    clxent_plan *plan;

    complete.outputs = outputs_of(desc);
    cli_progress_compiling(true);
    const clxent_status status = clxent_plan_create(&plan, session->ctx, &complete);
    if (status == CLXENT_OK && desc->op == CLXENT_OP_LINEAR_CROSS_ENTROPY) warm(session, plan);
    /* Where the launch cannot be, the run tells why, or it was only this that is too large. */
    else if (status == CLXENT_OK && rows > 0) (void)launch_zeros(session, plan, &complete, rows);
    clxent_plan_destroy(plan);
    cli_progress_compiling(false);
    *seconds += cli_seconds() - start;
    return status;
}
