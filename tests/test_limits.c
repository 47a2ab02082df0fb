/* SPDX-License-Identifier: MIT
 *
 * test_limits.c - devices that take less than the parameters ask for, or say less of themselves than PoCL does. Plans on
 * them run with what the device takes, or are refused with a reason: never a plan whose runs fail.
 *
 * This program defines the OpenCL queries of such limits in front of the loader's. Includes internal.h to force
 * parameters that a GPU would have.
 */
#include "internal.h"
#include "strategies.h"
#include "support.h"

#include <criterion/criterion.h>

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* What the driver says of kernels. */
static struct {
    bool limited;
    size_t group;         /* CL_KERNEL_WORK_GROUP_SIZE */
    const char *kernel;   /* of this one alone; NULL: of all */
    bool no_requirement;  /* CL_KERNEL_COMPILE_WORK_GROUP_SIZE is {0, 0, 0} */
    bool no_access_flags; /* CL_MEM_FLAGS of a sub-buffer are those of clCreateSubBuffer alone */
} driver;

cl_int clGetKernelWorkGroupInfo(cl_kernel kernel, cl_device_id id, cl_kernel_work_group_info info,
                                size_t size, void *value, size_t *size_ret)
{
    REAL(clGetKernelWorkGroupInfo);
    char name[64] = "";

    const cl_int code = real(kernel, id, info, size, value, size_ret);
    if (code != CL_SUCCESS || value == NULL) return code;
    clGetKernelInfo(kernel, CL_KERNEL_FUNCTION_NAME, sizeof name, name, NULL);
    const bool meant = driver.kernel == NULL || strcmp(driver.kernel, name) == 0;
    if (info == CL_KERNEL_WORK_GROUP_SIZE && driver.limited && meant)
        memcpy(value, &driver.group, sizeof driver.group);
    if (info == CL_KERNEL_COMPILE_WORK_GROUP_SIZE && driver.no_requirement)
        memset(value, 0, 3 * sizeof(size_t));
    return code;
}

cl_int clGetMemObjectInfo(cl_mem mem, cl_mem_info info, size_t size, void *value, size_t *size_ret)
{
    REAL(clGetMemObjectInfo);
    cl_mem parent = NULL;

    const cl_int code = real(mem, info, size, value, size_ret);
    if (code != CL_SUCCESS || value == NULL || info != CL_MEM_FLAGS || !driver.no_access_flags) return code;
    (void)real(mem, CL_MEM_ASSOCIATED_MEMOBJECT, sizeof parent, &parent, NULL);
    if (parent != NULL) memset(value, 0, sizeof(cl_mem_flags));
    return code;
}

/* The most local memory that an argument of a kernel asked for. */
static size_t most_local;

cl_int clSetKernelArg(cl_kernel kernel, cl_uint index, size_t size, const void *value)
{
    REAL(clSetKernelArg);
    if (value == NULL && size > most_local) most_local = size;
    return real(kernel, index, size, value);
}

static clxent_tuning tuning; /* of forced_plan() */

static clxent_status forced_plan(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    return clxent_plan_create_tuned(out, ctx, desc, &tuning);
}

/* As strategy_for() each, but for the groups of a large GPU, and blocks so short that group_desc() needs them. */
static clxent_tuning large_groups(void)
{
    clxent_tuning large = strategy_for(CLXENT_F32, EACH_GROUPS);
    large.group = 256;
    large.vector = 1;
    large.block = 2;
    return large;
}

static void limit_groups(size_t group)
{
    driver.limited = true;
    driver.group = group;
}

static void open_fixture(void)
{
    memset(&driver, 0, sizeof driver);
    open_device();
    plan_maker = forced_plan;
}

/* For tests that ask for large groups. */
static void open_groups(void)
{
    open_fixture();
    tuning = large_groups();
    skip_unless_driver_takes(&tuning);
    if (device.ctx->device.max_work_group < 256) cr_skip("the device has no groups of 256");
}

static void close_fixture(void)
{
    memset(&driver, 0, sizeof driver);
    close_device();
}

TestSuite(limits, .init = open_groups, .fini = close_fixture);
TestSuite(accesses, .init = open_fixture, .fini = close_fixture);

static clxent_desc group_desc(void) { return make_desc(TRAINING_OUTPUTS, CLXENT_F32, 5, 1, 300); }

/* The group of a plan made of desc and `tuning`. */
static uint32_t group_of(const clxent_desc *desc)
{
    clxent_plan *plan = plan_with(&tuning, desc);
    const uint32_t group = plan->group;
    clxent_plan_destroy(plan);
    return group;
}

/* More than one halving, from the largest group of a GPU to that of other tests. */
Test(limits, smaller_groups_where_a_kernel_takes_no_larger)
{
    const clxent_desc desc = group_desc();
    const size_t fits = strategy_for(CLXENT_F32, EACH_GROUPS).group;
    char groups[32];

    cr_assert(group_of(&desc) == 256);
    limit_groups(2 * fits - 1);
    clxent_plan *plan = plan_with(&tuning, &desc);
    cr_assert(plan->group == fits && plan->tuning.group == fits);
    snprintf(groups, sizeof groups, "work-group of %zu,", fits);
    cr_assert(strstr(clxent_plan_strategy(plan), groups) != NULL, "%s", clxent_plan_strategy(plan));
    clxent_plan_destroy(plan);
    run_filled_case("smaller groups", &desc, FILL_DESIGNED | FILL_MASKED | FILL_IGNORED, 3,
                    small_run() ? 0 : CASE_SUBSETS);
}

/* Rows that are split and rows that are not have the same bits, so the same groups, also where only the kernels of one
 * of them are limited. */
Test(limits, one_kernel_limits_its_program)
{
    static const char *const kernels[] = { "clxent_split_partials", "clxent_split_finalize",
                                           "clxent_cross_entropy", "clxent_reduce_losses",
                                           "clxent_reduce_targets" };
    clxent_desc desc = group_desc();

    desc.classes = 20000; /* several pieces, which a plan of few rows splits */
    limit_groups(64);
    for (size_t i = 0; i < COUNT(kernels); i++) {
        driver.kernel = kernels[i];
        tuning = large_groups();
        tuning.piece = 4096;
        cr_assert(group_of(&desc) == 64, "rows, limited %s", kernels[i]);
        tuning.split = UINT32_MAX;
        cr_assert(group_of(&desc) == 64, "split rows, limited %s", kernels[i]);
    }
}

/* Kernels of one work-item take any limit but 0. */
Test(limits, a_limit_of_one_work_item)
{
    const clxent_desc desc = group_desc();

    tuning.vector = 1;
    limit_groups(1);
    cr_assert(group_of(&desc) == 1);
    run_filled_case("groups of 1", &desc, FILL_DESIGNED | FILL_IGNORED, 3, 0);
    tuning = strategy_for(CLXENT_F32, EACH_ROWS);
    cr_assert(group_of(&desc) == 1);
}

Test(limits, no_work_item_at_all_is_unsupported)
{
    const clxent_desc desc = group_desc();
    clxent_plan *plan = (clxent_plan *)&driver;

    tuning.vector = 1;
    limit_groups(0);
    cr_assert(forced_plan(&plan, device.ctx, &desc) == CLXENT_ERROR_UNSUPPORTED, "%s", last_error());
    cr_assert(plan == NULL);
    cr_assert(strstr(last_error(), "device \"") != NULL && strstr(last_error(), "at most 0") != NULL &&
                  strstr(last_error(), "takes one with work-groups of at least 1") != NULL,
              "%s", last_error());
}

/* rusticl says 32 of kernels that run in groups of 1024: they then run in groups of 32. Of a driver that does not say
 * what a kernel requires, every kernel counts as one of the plan's group. */
Test(limits, a_driver_that_does_not_say_what_a_kernel_requires)
{
    const clxent_desc desc = group_desc();

    driver.no_requirement = true;
    cr_assert(group_of(&desc) == 256);
    const uint32_t fits = strategy_for(CLXENT_F32, EACH_GROUPS).group;
    limit_groups(fits);
    cr_assert(group_of(&desc) == fits);
}

Test(limits, lanes_and_building_blocks_too)
{
    const clxent_tuning lanes = LANES(64, 1, 1 << 19, 0);
    clxent_desc desc = group_desc();

    desc.classes = 10;
    tuning = lanes;
    cr_assert(group_of(&desc) == 64);
    limit_groups(32);
    cr_assert(group_of(&desc) == 32);
    run_filled_case("lanes in groups of 32", &desc, FILL_DESIGNED, 3, 0);

    desc.op = CLXENT_OP_SOFTMAX_BACKWARD;
    desc.outputs = CLXENT_OUTPUT_GRADIENT;
    tuning = large_groups();
    cr_assert(group_of(&desc) == 32);
}

/* The kernel that zeroes padding is a program of its own, whose groups decide no bits. */
Test(limits, the_kernel_that_zeroes_padding)
{
    clxent_desc desc = group_desc();

    desc.gradient_row_stride = desc.classes + 7;
    desc.gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
    tuning = strategy_for(CLXENT_F32, EACH_GROUPS);
    limit_groups(tuning.group / 2);
    driver.kernel = "clxent_zero_padding";
    cr_assert(group_of(&desc) == tuning.group);
    run_filled_case("padding in smaller groups", &desc, FILL_DESIGNED, 3, 0);
}

/* ---- Memory -------------------------------------------------------------------------------- */

Test(accesses, of_a_sub_buffer_whose_driver_does_not_say_it)
{
    const cl_buffer_region region = { 0, 5 * 10 * sizeof(float) };
    const cl_mem_flags parents[] = { CL_MEM_READ_WRITE, CL_MEM_READ_ONLY };
    const clxent_desc desc = make_desc(CLXENT_OUTPUT_SOFTMAX, CLXENT_F32, 5, 1, 10);
    clxent_args args = CLXENT_ARGS_INIT;
    cl_int code;

    tuning = strategy_for(CLXENT_F32, EACH_LANES);
    clxent_plan *plan = plan_with(&tuning, &desc);
    driver.no_access_flags = true;
    args.logits.mem = new_buffer(device.cl, CL_MEM_READ_WRITE, region.size, NULL);
    for (int i = 0; i < 2; i++) {
        cl_mem parent = clCreateBuffer(device.cl, parents[i], region.size, NULL, &code);
        args.softmax.mem = clCreateSubBuffer(parent, 0, CL_BUFFER_CREATE_TYPE_REGION, &region, &code);
        cr_assert(code == CL_SUCCESS, "clCreateSubBuffer: %d", code);
        code = clxent_enqueue(plan, device.queue, &args, 0, NULL, NULL);
        cr_assert(code == (i == 0 ? CLXENT_OK : CLXENT_ERROR_INVALID_ARGUMENT), "%d: %s", code, last_error());
        clFinish(device.queue);
        clReleaseMemObject(args.softmax.mem);
        clReleaseMemObject(parent);
    }
    cr_assert(strstr(last_error(), "softmax.mem is CL_MEM_READ_ONLY") != NULL, "%s", last_error());
    clReleaseMemObject(args.logits.mem);
    clxent_plan_destroy(plan);
}

/* A chunk of rows is deeper than local memory has room for: the products take it in parts. */
Test(accesses, products_stay_within_local_memory)
{
    clxent_desc desc = make_desc(CLXENT_OUTPUT_WEIGHT_GRADIENT, CLXENT_F32, 400, 1, 8);
    const cl_ulong own = device.ctx->device.local_memory;

    desc.op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
    desc.features = 8;
    desc.target_type = CLXENT_TARGET_U8;
    plan_maker = clxent_plan_create;
    for (cl_ulong bytes = own; bytes >= 8192; bytes /= 2) {
        device.ctx->device.local_memory = bytes;
        most_local = 0;
        run_filled_case("products", &desc, FILL_IGNORED, 3, 0);
        cr_assert(most_local > 0 && most_local <= bytes, "%zu of %zu bytes", most_local, (size_t)bytes);
    }
    device.ctx->device.local_memory = own;
}
