/* SPDX-License-Identifier: MIT
 *
 * plan.c - from a desc to kernels: validation, parameters, build options, the layout of the workspace.
 * Everything slow or fallible happens here, so that enqueue.c has only arguments to set.
 */
#include "internal.h"
#include "parameters.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Outputs whose values come from the rows' losses or predictions by the second reduction. */
#define REDUCED_OUTPUTS (CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_CORRECT)

enum { ALIGNMENT = 64, OPTIONS_SIZE = 192, TEXT_SIZE = 512 };

static clxent_status supported(clxent_context *ctx, const clxent_desc *desc)
{
    if (desc->dtype == CLXENT_F64 && !ctx->device.has_f64) {
        return clxent_fail(ctx, CLXENT_ERROR_UNSUPPORTED,
                           "dtype is f64: takes a device with cl_khr_fp64, \"%s\" has none",
                           ctx->device.name);
    }
    return CLXENT_OK;
}

/* Whether an option reaches into the inner loops (cross_entropy.cl, GENERAL). */
static bool is_general(const clxent_desc *desc)
{
    return (clxent_needs_targets(desc, desc->outputs) && !clxent_targets_are_indices(desc)) ||
           desc->label_smoothing != 0.0 || desc->logit_scale != 1.0 || desc->softcap != 0.0 ||
           (desc->outputs & CLXENT_OUTPUT_ENTROPY) != 0;
}

static const char *kernel_name(uint32_t op)
{
    switch (op) {
    case CLXENT_OP_SOFTMAX_BACKWARD: return "clxent_softmax_backward";
    case CLXENT_OP_ONE_HOT: return "clxent_one_hot";
    case CLXENT_OP_PROBABILITY_LOSS: return "clxent_probability_loss";
    case CLXENT_OP_SOFTMAX_GRADIENT: return "clxent_softmax_gradient";
    default: return "clxent_cross_entropy";
    }
}

static clxent_status make_kernel(clxent_context *ctx, cl_program program, const char *name, cl_kernel *out)
{
    cl_int code;
    *out = clCreateKernel(program, name, &code);
    return clxent_check_cl(ctx, code, name);
}

static clxent_status build_main(clxent_plan *plan)
{
    const clxent_desc *desc = &plan->desc;
    const clxent_tuning *t = &plan->tuning;
    const bool cross_entropy = desc->op == CLXENT_OP_CROSS_ENTROPY;
    char options[OPTIONS_SIZE];
    cl_program program;

    if (cross_entropy) {
        (void)snprintf(
            options, sizeof options,
            "-DDTYPE=%u -DGRADIENT_DTYPE=%u -DVEC=%u -DWG_SIZE=%u -DGENERAL=%d -DBLOCK=%u -DSTRIDED=%d",
            (unsigned)desc->dtype, (unsigned)desc->gradient_dtype, (unsigned)t->vector, (unsigned)t->group,
            is_general(desc), (unsigned)t->block, desc->inner > 1);
    } else {
        (void)snprintf(options, sizeof options, "-DDTYPE=%u -DGRADIENT_DTYPE=%u -DVEC=1 -DWG_SIZE=%u",
                       (unsigned)desc->dtype, (unsigned)desc->gradient_dtype, (unsigned)t->group);
    }
    CLXENT_TRY(
        clxent_program_get(plan->ctx, cross_entropy ? "cross_entropy.cl" : "blocks.cl", options, &program));
    const clxent_status status = make_kernel(plan->ctx, program, kernel_name(desc->op), &plan->main);
    (void)clReleaseProgram(program);
    return status;
}

static clxent_status build_reductions(clxent_plan *plan)
{
    const clxent_desc *desc = &plan->desc;
    const unsigned real = desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
    const bool mean = desc->reduction == CLXENT_REDUCTION_MEAN &&
                      (desc->outputs & (CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT)) != 0 &&
                      clxent_needs_targets(desc, desc->outputs);
    const bool targets = mean || (desc->outputs & CLXENT_OUTPUT_BAD_TARGETS) != 0;
    const bool losses = (desc->outputs & REDUCED_OUTPUTS) != 0;
    char options[OPTIONS_SIZE];
    cl_program program;
    clxent_status status = CLXENT_OK;

    if (!targets && !losses) return CLXENT_OK;
    (void)snprintf(options, sizeof options, "-DDTYPE=%u -DGRADIENT_DTYPE=%u -DVEC=1 -DWG_SIZE=%u", real, real,
                   (unsigned)plan->tuning.group);
    CLXENT_TRY(clxent_program_get(plan->ctx, "reduce.cl", options, &program));
    if (targets) {
        CLXENT_TRY_OR_FAIL(
            make_kernel(plan->ctx, program, "clxent_targets_partials", &plan->targets_partials));
        CLXENT_TRY_OR_FAIL(make_kernel(plan->ctx, program, "clxent_targets_fold", &plan->targets_fold));
    }
    if (losses) {
        CLXENT_TRY_OR_FAIL(make_kernel(plan->ctx, program, "clxent_losses_partials", &plan->losses_partials));
        CLXENT_TRY_OR_FAIL(make_kernel(plan->ctx, program, "clxent_losses_fold", &plan->losses_fold));
    }
fail:
    (void)clReleaseProgram(program);
    return status;
}

/* Reserves count * size bytes of the workspace; false on overflow. */
static bool reserve(clxent_plan *plan, size_t count, size_t size, size_t *at)
{
    size_t bytes;
    if (!clxent_size_mul(count, size, &bytes)) return false;
    if (bytes > SIZE_MAX - ALIGNMENT - plan->workspace_size) return false;
    *at = plan->workspace_size;
    plan->workspace_size += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return true;
}

static clxent_status lay_out_workspace(clxent_plan *plan)
{
    const size_t partials = plan->rows / REDUCE_ROWS + 1;
    const bool needs_losses = (plan->desc.outputs & CLXENT_OUTPUT_LOSS) != 0;
    const bool needs_correct = (plan->desc.outputs & CLXENT_OUTPUT_CORRECT) != 0;

    if (plan->targets_partials == NULL && plan->losses_partials == NULL) return CLXENT_OK;
    if (!reserve(plan, 1, TOTALS_BYTES, &plan->totals_at) ||
        !reserve(plan, partials, PARTIAL_BYTES, &plan->partials_at) ||
        !reserve(plan, needs_losses ? plan->rows : 0, clxent_real_size(&plan->desc), &plan->row_losses_at) ||
        !reserve(plan, needs_correct ? plan->rows : 0, 1, &plan->correct_at)) {
        return clxent_fail(plan->ctx, CLXENT_ERROR_INVALID_DESC,
                           "rows is %zu: the workspace overflows size_t", plan->rows);
    }
    return CLXENT_OK;
}

/* Short rows share a group, as long as every compute unit has a few groups to take. Decides no bits. */
static size_t rows_per_group(const clxent_plan *plan)
{
    enum { GROUPS_EACH = 8 };
    const size_t spread = plan->rows / (GROUPS_EACH * (size_t)plan->ctx->device.compute_units);
    const size_t wanted = plan->tuning.elements / plan->desc.classes;
    const size_t rows = wanted < spread ? wanted : spread;
    return rows > 0 ? rows : 1;
}

static void describe(clxent_plan *plan)
{
    const clxent_desc *desc = &plan->desc;
    const clxent_tuning *t = &plan->tuning;
    const size_t reals = plan->cache_elements;

    if (desc->op != CLXENT_OP_CROSS_ENTROPY) {
        (void)snprintf(plan->strategy, sizeof plan->strategy, "%s: a work-group of %u a row",
                       kernel_name(desc->op), (unsigned)t->group);
        return;
    }
    (void)snprintf(plan->strategy, sizeof plan->strategy,
                   "%s%s: %zu row%s a work-group of %u, vectors of %u, blocks of %u, exponentials %s",
                   kernel_name(desc->op), is_general(desc) ? " (general)" : "", plan->rows_per_group,
                   plan->rows_per_group == 1 ? "" : "s", (unsigned)t->group, (unsigned)t->vector,
                   (unsigned)(t->block * t->group * t->vector),
                   desc->classes + t->vector <= reals ? "kept in local memory" : "computed twice");
}

clxent_status clxent_plan_create_tuned(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc,
                                       const clxent_tuning *tuning)
{
    clxent_status status;
    clxent_desc complete;
    clxent_plan *plan;
    char text[TEXT_SIZE];

    if (out == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    *out = NULL;
    if (ctx == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    if (desc == NULL)
        return clxent_fail(ctx, CLXENT_ERROR_NULL_ARGUMENT, "desc is NULL: takes a clxent_desc");
    status = clxent_desc_copy(&complete, desc, text, sizeof text);
    if (status == CLXENT_OK) status = clxent_desc_check(&complete, text, sizeof text);
    if (status != CLXENT_OK) return clxent_fail(ctx, status, "%s", text);
    CLXENT_TRY(supported(ctx, &complete));

    plan = calloc(1, sizeof *plan);
    if (plan == NULL) return clxent_fail(ctx, CLXENT_ERROR_OUT_OF_HOST_MEMORY, "plan: out of host memory");
    clxent_context_retain(ctx);
    plan->ctx = ctx;
    plan->desc = complete;
    plan->desc.gradient_dtype = clxent_gradient_dtype(&complete);
    plan->rows = complete.batch * complete.seq;
    plan->tuning = tuning != NULL ? clxent_tuning_clamp(tuning, &ctx->device, &complete)
                                  : clxent_tuning_choose(&ctx->device, &complete);
    plan->cache_elements = (uint32_t)(plan->tuning.cache / clxent_real_size(&complete));
    plan->rows_per_group = rows_per_group(plan);
    CLXENT_TRY_OR_FAIL(build_main(plan));
    CLXENT_TRY_OR_FAIL(build_reductions(plan));
    CLXENT_TRY_OR_FAIL(lay_out_workspace(plan));
    describe(plan);
    clxent_log(ctx, "plan: %s", plan->strategy);
    *out = plan;
    return CLXENT_OK;

fail:
    clxent_plan_destroy(plan);
    return status;
}

clxent_status clxent_plan_create(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    return clxent_plan_create_tuned(out, ctx, desc, NULL);
}

void clxent_plan_destroy(clxent_plan *plan)
{
    if (plan == NULL) return;
    const cl_kernel kernels[] = { plan->main, plan->targets_partials, plan->targets_fold,
                                  plan->losses_partials, plan->losses_fold };
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        if (kernels[i] != NULL) (void)clReleaseKernel(kernels[i]);
    }
    clxent_context_destroy(plan->ctx);
    free(plan);
}

size_t clxent_plan_workspace_size(const clxent_plan *plan) { return plan == NULL ? 0 : plan->workspace_size; }

const char *clxent_plan_strategy(const clxent_plan *plan) { return plan == NULL ? "" : plan->strategy; }
