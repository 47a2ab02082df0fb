/* SPDX-License-Identifier: MIT
 *
 * plan.c - from a desc to kernels: validation, parameters, build options, the layout of the workspace.
 * Everything slow or fallible happens here, so that enqueue.c has only arguments to set.
 */
#include "linear.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, TEXT_SIZE = 512, MOST_COLUMNS = 8 };

static clxent_status supported(clxent_context *ctx, const clxent_desc *desc)
{
    if (desc->dtype == CLXENT_F64 && !ctx->device.has_f64) {
        return clxent_fail(ctx, CLXENT_ERROR_UNSUPPORTED,
                           "dtype is f64: takes a device with cl_khr_fp64, \"%s\" has none",
                           ctx->device.name);
    }
    return CLXENT_OK;
}

static bool uses_targets(const clxent_desc *desc) { return clxent_needs_targets(desc, desc->outputs); }

/* Whether some run reduces the rows' losses. */
static bool reduces_losses(const clxent_desc *desc)
{
    return (desc->outputs & clxent_outputs_made(CLXENT_MADE_LOSSES)) != 0;
}

/* Whether every class has its own a_j: HAS_DENSE of constants.cl. */
static bool has_dense(const clxent_desc *desc)
{
    return uses_targets(desc) && (!clxent_targets_are_indices(desc) || desc->label_smoothing != 0.0);
}

/* Whether z is not x: HAS_Z of constants.cl. */
static bool has_z(const clxent_desc *desc) { return desc->logit_scale != 1.0 || desc->softcap != 0.0; }

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

clxent_status clxent_kernel_create(clxent_context *ctx, cl_program program, const char *name, cl_kernel *out)
{
    cl_int code;
    *out = clCreateKernel(program, name, &code);
    return clxent_check_cl(ctx, code, name);
}

static bool is_row_kernel(const clxent_desc *desc) { return desc->op == CLXENT_OP_CROSS_ENTROPY; }

/* Reals of local memory that a tile of lanes takes with so many vectors for each work-item; SIZE_MAX where that
 * overflows. As map_lane.cl lays it out. */
static size_t tile_elements(const clxent_plan *plan, uint32_t columns, bool keeps)
{
    const clxent_tuning *t = &plan->tuning;
    const bool inner = plan->desc.inner > 1, alone = t->lane_group == 1;
    const size_t rows = (size_t)t->lane_group * t->lane_vector * columns;
    if (plan->along) return plan->desc.classes * rows; /* as lies_along() limits it */
    const size_t pitch = !inner && !alone ? rows + 1 : rows;
    const size_t tiles = (keeps ? 2u : 1u) + (!inner && alone ? 1u : 0u);
    /* neighbours' maxima, block by block, or a vector behind rows */
    const size_t blocks = plan->desc.classes / NEIGHBOUR_CLASSES + 1;
    const size_t spare = !alone ? 0 : inner ? blocks * rows : t->lane_vector;
    const size_t classes = plan->desc.classes > LEAST_CLASSES ? plan->desc.classes : LEAST_CLASSES;
    size_t elements;

    return clxent_size_mul(classes, pitch * tiles, &elements) && elements < SIZE_MAX - spare
               ? elements + spare
               : SIZE_MAX;
}

/* Logits that map_lane.cl must still have once their exponentials are taken. */
static bool keeps_logits(const clxent_plan *plan)
{
    const uint32_t wide = plan->desc.outputs & (CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_GRADIENT);
    /* But for neighbours that one work-item has, results are gathered in the place of the exponentials. */
    const bool overwrites = plan->desc.inner == 1 || plan->tuning.lane_group > 1;
    return has_z(&plan->desc) || plan->desc.has_grad_entropy != 0 ||
           (overwrites && (wide & (wide - 1)) != 0) ||
           (plan->desc.outputs & (CLXENT_OUTPUT_LOG_SOFTMAX | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_CORRECT |
                                  CLXENT_OUTPUT_LSE)) != 0;
}

/* Whether vectors of map_lane.cl lie along the classes (ALONG), which serves all but scale, softcap, smoothing, probabilities,
 * gradients of entropy or lse, log-softmax, and softmax and gradient together. PoCL 3.1, loss + gradient of f32. Zen 4, CPU
 * time next to lanes that are transposed whole, with AVX-512 and without: 1.15 and 1.19 at 48 classes, 1.11 and 0.96 at 64,
 * 0.81 and 0.84 at 100, 0.79 and 0.75 at 200. 2 hyperthreads of Emerald Rapids, next to rows: 0.90 at 512, 1.03 at 768, and
 * 0.8 from 600 to 4,000 where rows lie side by side and begin at any element: a tile is streamed whole, short rows one by one
 * are not (LONG_ROW). Loss alone 0.76 at 512, 0.98 at 1,024, 1.04 at 2,048. */
static bool lies_along(const clxent_plan *plan)
{
    enum { LEAST_VECTORS = 4, MOST_CLASSES = 512, MOST_UNALIGNED = 4096, MOST_LOSS = 1024 };
    const clxent_desc *desc = &plan->desc;
    const clxent_tuning *t = &plan->tuning;
    const uint32_t wide = desc->outputs & (CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_GRADIENT);
    const size_t most = wide == 0                             ? MOST_LOSS
                        : desc->classes % t->lane_vector == 0 ? MOST_CLASSES
                                                              : MOST_UNALIGNED;

    return t->lane_classes > 0 && t->lane_group == 1 && t->lane_vector > 1 && desc->inner == 1 &&
           !has_z(desc) && !has_dense(desc) && desc->has_grad_entropy == 0 && desc->has_grad_lse == 0 &&
           (desc->outputs & CLXENT_OUTPUT_LOG_SOFTMAX) == 0 && (wide & (wide - 1)) == 0 &&
           desc->classes >= LEAST_VECTORS * (size_t)t->lane_vector && desc->classes <= most &&
           desc->classes <= t->lane_cache / clxent_acc_size(desc) / t->lane_vector;
}

/* Units, of so many rows each, that one group takes, as long as every compute unit has a few groups to take; of CPUs all,
 * where they are done before another launch would be, which reduces what several groups leave. Decides no bits. */
static size_t units_per_group(const clxent_plan *plan, uint32_t unit)
{
    enum { GROUPS_EACH = 8, MOST_ALONE = 8192 };
    if (plan->group == 1 && reduces_losses(&plan->desc) && plan->rows <= CLXENT_MOST_ROWS_ALONE &&
        plan->rows <= MOST_ALONE / plan->desc.classes)
        return plan->rows > 0 ? plan->rows : 1;
    const size_t groups = GROUPS_EACH * (size_t)plan->ctx->device.compute_units;
    const size_t unit_elements = plan->desc.classes * unit;
    const size_t spread = unit > 0 ? plan->part_rows / unit / groups : 0;
    const size_t wanted = unit_elements > 0 ? plan->tuning.elements / unit_elements : 0;
    const size_t each = wanted < spread ? wanted : spread;
    return each > 0 ? each : 1;
}

/* Elements of local memory: a row's exponentials, kept for its results, with its slopes under a softcap if they fit too; without
 * room, under a softcap, one block of capped logits. */
static size_t local_elements(const clxent_plan *plan)
{
    const clxent_desc *desc = &plan->desc;
    const clxent_tuning *t = &plan->tuning;
    const size_t most = t->cache / clxent_acc_size(desc), block = (size_t)t->block * t->vector;
    const size_t row = (desc->classes - 1) / t->vector * t->vector + t->vector;
    const bool slopes = desc->softcap != 0.0 && (desc->outputs & CLXENT_OUTPUT_GRADIENT) != 0;

    if (t->group > 1) return 0; /* groups keep rows in registers */
    if ((desc->outputs & (CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_GRADIENT)) != 0 && row <= most)
        return slopes && row <= most / 2 ? 2 * row : row;
    return desc->softcap != 0.0 && block <= most ? block : 0;
}

/* Vectors of a piece: as many in each, so that groups that share a row have equal work. Each group merges all pieces of its
 * row: so no more pieces than take 2 % of the time (PoCL, Zen 3: 17 ns to merge one, 1 ns for a class). Decides bits. */
static size_t piece_vectors(const clxent_plan *plan, size_t vectors, size_t block)
{
    enum { FEW_PIECES = 16, CLASSES_EACH = 1024 };
    const size_t most = plan->tuning.piece / plan->tuning.vector / block * block;
    size_t pieces = most > 0 ? (vectors - 1) / most + 1 : 1;
    while (pieces > FEW_PIECES && pieces > plan->desc.classes / CLASSES_EACH / pieces) pieces /= 2;
    return ((vectors - 1) / pieces / block + 1) * block;
}

/* Whether rows are split. On CPUs not into two pieces: whole, such a row's logits and exponentials stay in the cache, while
 * split rows take exponentials twice; and PoCL gives its first thread half of the groups and one (2 cores of a Zen 3, rows of
 * 50,257 classes split: of 1 row 1.23, of 8 rows 1.44 of the time). */
static bool splits(const clxent_plan *plan)
{
    const clxent_tuning *t = &plan->tuning;
    const size_t least = t->group > 1 ? 2 : 3;
    return plan->pieces >= least && plan->part_rows / plan->ctx->device.compute_units < t->split;
}

/* Strategy and everything that follows from it. Between rows and lanes the choice decides bits: it looks at options,
 * outputs, classes and inner, and not at rows, which the parts of a batch have fewer of. */
static void choose_strategy(clxent_plan *plan)
{
    const clxent_desc *desc = &plan->desc;
    const clxent_tuning *t = &plan->tuning;
    const size_t vectors = (desc->classes - 1) / t->vector + 1;
    const size_t block = (size_t)t->block * t->group; /* in vectors */

    plan->shares = CLXENT_STRATEGY_ROWS;
    plan->along = false;
    plan->flags = 0;
    plan->second_pass = NEEDS_FINE_LSE(has_dense(desc), desc->outputs);
    plan->group = t->group;
    plan->local_elements = (uint32_t)local_elements(plan);
    plan->rows_per_group = units_per_group(plan, 1);
    plan->piece_vectors = piece_vectors(plan, vectors, block);
    plan->pieces = (vectors - 1) / plan->piece_vectors + 1;
    if (!is_row_kernel(desc)) return;

    plan->along = lies_along(plan);
    const bool keeps = !plan->along && keeps_logits(plan);
    const size_t limit = t->lane_cache / clxent_acc_size(desc);
    uint32_t columns = desc->inner > 1 && t->lane_group == 1 ? MOST_COLUMNS : 1;
    while (columns > 1 &&
           (tile_elements(plan, columns, keeps) > limit || columns * t->lane_vector > desc->inner)) {
        columns /= 2;
    }
    const size_t elements = tile_elements(plan, columns, keeps);
    /* Neighbours' bits tell whether they fit, and do not depend on outputs. */
    const bool fits =
        (desc->inner > 1 && t->lane_group == 1 ? tile_elements(plan, 1, true) : elements) <= limit;
    if (desc->inner > 1 || plan->along || (desc->classes <= t->lane_classes && fits)) {
        plan->shares = CLXENT_STRATEGY_LANES;
        plan->group = t->lane_group;
        plan->columns = columns;
        plan->tile = t->lane_group * t->lane_vector * columns;
        plan->local_elements = fits ? (uint32_t)elements : 0;
        plan->tiles_per_group = units_per_group(plan, plan->tile);
        plan->flags = keeps || !fits ? FLAG_KEEPS_LOGITS : 0u;
    } else if (splits(plan)) {
        plan->shares = CLXENT_STRATEGY_SPLIT;
    }
}

/* tuning: NULL: the table's. */
static void choose(clxent_plan *plan, const clxent_tuning *tuning, const clxent_device *device)
{
    plan->tuning = tuning != NULL ? clxent_tuning_clamp(tuning, device, &plan->desc)
                                  : clxent_tuning_choose(plan->ctx->tuning, device, &plan->desc);
    choose_strategy(plan);
}

static clxent_status check_driver(const clxent_plan *plan)
{
    uint32_t most;
    const char *fault = clxent_tuning_driver_fault(&plan->ctx->device, plan->group, &most);

    if (fault == NULL) return CLXENT_OK;
    return clxent_fail(plan->ctx, CLXENT_ERROR_UNSUPPORTED,
                       "tuning asks for a work-group of %u: takes at most %u; %s", (unsigned)plan->group,
                       (unsigned)most, fault);
}

/* Whether some run divides by the weights of the rows that count. */
static bool may_sum_weights(const clxent_desc *desc)
{
    return desc->reduction == CLXENT_REDUCTION_MEAN && uses_targets(desc) &&
           (desc->outputs & (CLXENT_OUTPUT_LOSS | CLXENT_GRADIENTS)) != 0;
}

static bool reduces_targets(const clxent_desc *desc)
{
    return may_sum_weights(desc) || (desc->outputs & clxent_outputs_made(CLXENT_MADE_TARGETS_PASS)) != 0;
}

/* KERNELS of fused.cl. In groups of one work-item no limit of the device can differ. */
static unsigned row_kernels(const clxent_plan *plan)
{
    if (plan->pieces == 1) return 1;
    return plan->group > 1 ? 3 : plan->shares == CLXENT_STRATEGY_SPLIT ? 2 : 1;
}

/* ONE_BLOCK of group_rows.cl. */
static bool is_one_block(const clxent_plan *plan)
{
    const clxent_tuning *t = &plan->tuning;
    return t->group > 1 && plan->desc.classes <= (size_t)t->group * t->block * t->vector;
}

/* OUTPUTS of constants.cl. */
static unsigned constant_outputs(const clxent_plan *plan)
{
    const uint32_t of_rows = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LSE |
                             CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_STATISTICS;
    const uint32_t outputs = plan->desc.outputs;

    if (!is_row_kernel(&plan->desc)) return 0;
    return (outputs & (clxent_outputs_made(CLXENT_MADE_CLASSES) | of_rows)) | (plan->group > 1 ? 0 : of_rows);
}

/* TARGETS of constants.cl. */
static unsigned constant_targets(const clxent_desc *desc)
{
    if (!uses_targets(desc)) return TARGET_NONE;
    if (desc->target_type == CLXENT_TARGET_PROBABILITIES_LOGITS && desc->dtype == CLXENT_F32)
        return TARGET_PROBABILITIES_F32;
    return desc->target_type;
}

/* Build options as they grow. */
typedef struct definitions {
    char text[CLXENT_OPTIONS_SIZE];
    size_t length;
} definitions;

static void define(definitions *d, const char *name, unsigned value)
{
    const int n = snprintf(d->text + d->length, sizeof d->text - d->length, "%s-D%s=%u",
                           d->length > 0 ? " " : "", name, value);
    d->length += (size_t)n;
}

/* HAS_* of constants.cl: an option has another value than its initial one, and some run looks at it. */
static void define_options(definitions *d, const clxent_desc *desc)
{
    const bool targets = uses_targets(desc), logits = is_row_kernel(desc);
    const struct {
        const char *constant;
        bool used;
    } options[] = {
#define USED_ANY false
#define USED_LOSS targets
#define USED_GRADIENT targets
#define USED_ROWS targets
#define USED_LOGITS logits
#define USED_LINEAR false
#define OPTION(name, kind, initial, acts, constant, ...) { constant, USED_##acts && desc->name != (initial) },
#include "options.def"
    };

    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (options[i].constant != NULL) define(d, options[i].constant, options[i].used);
}

/* Registers of a work-item, at most, that NVIDIA's compiler is told, which else takes what it likes: with 64 the multiprocessor
 * has room for half of the work-items that it can hold. With 96 it has room for one group of 512, and with 128 as well, of which
 * ptxas then spills nothing (50,257 classes, all options, sm_80: 24 to 72 bytes with 96). A work-item of 32 logits that looks for
 * a class too would spill 208 to 664 bytes of 64 (f32 of 1,024 classes, sm_80), none of 96. Left to itself ptxas gives lanes of
 * f64 72, with all options 128, and spills 16 and 52 bytes (sm_80). With all options it gives lanes of a strided class axis that do
 * not stay on chip 72 and spills 8 to 24 bytes; told of 72 none; 64 would spill 124 to 132, once a row. Tiles on chip take
 * 63 by themselves (sm_90, f32, 21 classes), under that cap 71. 0: no limit. */
static unsigned most_registers(const clxent_plan *plan)
{
    const clxent_desc *desc = &plan->desc;
    const clxent_tuning *t = &plan->tuning;
    const bool is_f64 = desc->dtype == CLXENT_F64;
    const bool is_heavy = has_z(desc) || has_dense(desc) ||
                          (desc->outputs & (CLXENT_OUTPUT_ENTROPY | CLXENT_OUTPUT_LOG_SOFTMAX)) != 0;
    const bool looks_again =
        (desc->outputs & (CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_CORRECT)) != 0;

    if (strstr(plan->ctx->device.vendor, "NVIDIA") == NULL || plan->group == 1 || !is_row_kernel(desc))
        return 0;
    if (plan->shares == CLXENT_STRATEGY_LANES && desc->inner > 1)
        return !is_f64 && plan->local_elements == 0 && has_z(desc) && has_dense(desc) ? 72 : 0;
    if (plan->shares == CLXENT_STRATEGY_LANES) return !is_f64 ? 0 : is_heavy ? 144 : 96;
    if (is_f64) return 0;
    if (is_heavy) return plan->group < 512 ? 96 : 128;
    return looks_again && t->block * t->vector >= 32 ? 96 : 64;
}

/* What constants.cl and the files behind it take; equal texts are one program. */
static void define_all(const clxent_plan *plan, definitions *d)
{
    const clxent_desc *desc = &plan->desc;
    const clxent_tuning *t = &plan->tuning;
    const bool lanes = plan->shares == CLXENT_STRATEGY_LANES, rows = is_row_kernel(desc);
    const bool gradient = (desc->outputs & CLXENT_OUTPUT_GRADIENT) != 0;

    define(d, "DTYPE", desc->dtype);
    define(d, "GRADIENT_DTYPE", gradient ? desc->gradient_dtype : desc->dtype);
    define(d, "WG_SIZE", plan->group);
    define(d, "LANES", lanes);
    define(d, "OUTPUTS", constant_outputs(plan));
    define(d, "TARGETS", constant_targets(desc));
    define_options(d, desc);
    define(d, "ACCUMULATE", gradient && desc->gradient_mode == CLXENT_GRADIENT_ACCUMULATE);
    define(d, "REDUCES", !rows || reduces_targets(desc) || reduces_losses(desc));
    if (lanes) {
        define(d, "VEC", t->lane_vector);
        define(d, "INNER", desc->inner > 1);
        define(d, "IN_LOCAL", plan->local_elements > 0);
        define(d, "COLUMNS", plan->columns);
        define(d, "ALONG", plan->along);
    } else if (rows) {
        define(d, "VEC", t->vector);
        define(d, "BLOCK", t->block);
        define(d, "KERNELS", row_kernels(plan));
        if (t->group > 1) {
            define(d, "ONE_BLOCK", is_one_block(plan));
            define(d, "DIVIDES", desc->classes % t->vector == 0);
        }
        if (t->group > 1 && t->native_exp && desc->dtype != CLXENT_F64) define(d, "NATIVE_EXP", 1);
        if (t->group > 1 && plan->ctx->device.sm_80 && desc->dtype != CLXENT_F64) define(d, "SM_80", 1);
    } else {
        define(d, "VEC", 1);
    }
    const unsigned registers = most_registers(plan);
    if (registers > 0) {
        const int n = snprintf(d->text + d->length, sizeof d->text - d->length,
                               " -DGROUP_IS_HINT -cl-nv-maxrregcount=%u", registers);
        d->length += (size_t)n;
    }
}

static const char *program_file(const clxent_plan *plan)
{
    if (plan->shares == CLXENT_STRATEGY_LANES) return "lanes.cl";
    return is_row_kernel(&plan->desc) ? "rows.cl" : "blocks.cl";
}

static clxent_status get_program(const clxent_plan *plan, cl_program *out)
{
    definitions d = { .length = 0 };

    define_all(plan, &d);
    return clxent_program_get(plan->ctx, program_file(plan), d.text, out);
}

static clxent_status make_main(clxent_plan *plan, cl_program program)
{
    switch (plan->shares) {
    case CLXENT_STRATEGY_SPLIT:
        CLXENT_TRY(clxent_kernel_create(plan->ctx, program, "clxent_split_partials", &plan->main));
        return clxent_kernel_create(plan->ctx, program, "clxent_split_finalize", &plan->finalize);
    default: return clxent_kernel_create(plan->ctx, program, kernel_name(plan->desc.op), &plan->main);
    }
}

static clxent_status make_reductions(clxent_plan *plan, cl_program program)
{
    if (reduces_targets(&plan->desc)) {
        CLXENT_TRY(clxent_kernel_create(plan->ctx, program, "clxent_reduce_targets", &plan->reduce_targets));
    }
    if (reduces_losses(&plan->desc)) {
        CLXENT_TRY(clxent_kernel_create(plan->ctx, program, "clxent_reduce_losses", &plan->reduce_losses));
    }
    return CLXENT_OK;
}

/* Whether the device takes the kernel's work-group. Registers may set the kernel's own limit, *takes, below that of the
 * device. */
static clxent_status fits_group(const clxent_plan *plan, cl_kernel kernel, bool *fits, size_t *takes)
{
    cl_device_id id = plan->ctx->id;
    size_t required[3] = { 0, 0, 0 };

    CLXENT_TRY(clxent_check_cl(
        plan->ctx,
        clGetKernelWorkGroupInfo(kernel, id, CL_KERNEL_WORK_GROUP_SIZE, sizeof *takes, takes, NULL),
        "clGetKernelWorkGroupInfo(CL_KERNEL_WORK_GROUP_SIZE)"));
    CLXENT_TRY(clxent_check_cl(plan->ctx,
                               clGetKernelWorkGroupInfo(kernel, id, CL_KERNEL_COMPILE_WORK_GROUP_SIZE,
                                                        sizeof required, required, NULL),
                               "clGetKernelWorkGroupInfo(CL_KERNEL_COMPILE_WORK_GROUP_SIZE)"));
    /* Kernels are written for one work-item, or for the plan's group. */
    *fits = *takes >= (required[0] == 1 ? 1 : plan->group);
    return CLXENT_OK;
}

/* The smallest limit of the program's kernels that do not fit; SIZE_MAX where all do. Kernels that this plan does not
 * launch count too: a plan of the same program for another number of rows may launch them, and must have the same bits. */
static clxent_status find_group_limit(const clxent_plan *plan, cl_program program, size_t *limit)
{
    enum { MOST_KERNELS = 16 };
    cl_kernel kernels[MOST_KERNELS];
    cl_uint count = 0;

    *limit = SIZE_MAX;
    clxent_status status =
        clxent_check_cl(plan->ctx, clCreateKernelsInProgram(program, MOST_KERNELS, kernels, &count),
                        "clCreateKernelsInProgram");
    if (status != CLXENT_OK) return status;
    for (cl_uint i = 0; i < count; i++) {
        bool fits = true;
        size_t takes = 0;
        if (status == CLXENT_OK) status = fits_group(plan, kernels[i], &fits, &takes);
        if (!fits && takes < *limit) *limit = takes;
        (void)clReleaseKernel(kernels[i]);
    }
    return status;
}

/* Parameters, strategy and program. What the device takes of each kernel is known once a program is built. Where that is
 * less than the parameters' groups, the plan becomes that of a device with this limit. Groups decide bits; the limit
 * follows from device, driver and program alone, so that all plans of one program have the same. */
static clxent_status choose_program(clxent_plan *plan, const clxent_tuning *tuning, cl_program *out)
{
    clxent_context *ctx = plan->ctx;
    clxent_device limited = ctx->device;

    for (;;) {
        size_t limit;
        choose(plan, tuning, &limited);
        CLXENT_TRY(check_driver(plan));
        CLXENT_TRY(get_program(plan, out));
        clxent_status status = find_group_limit(plan, *out, &limit);
        if (status == CLXENT_OK && limit == SIZE_MAX) return CLXENT_OK;
        (void)clReleaseProgram(*out);
        CLXENT_TRY(status);
        if (plan->group == 1) {
            return clxent_fail(
                ctx, CLXENT_ERROR_UNSUPPORTED,
                "device \"%s\" has work-groups of at most %zu for a kernel of this plan: takes one "
                "with work-groups of at least 1",
                ctx->device.name, limit);
        }
        clxent_log(ctx, "plan: a kernel takes work-groups of at most %zu, not %u: smaller ones are built",
                   limit, (unsigned)plan->group);
        limited.max_work_group = limit;
    }
}

static clxent_status build_padding(clxent_plan *plan)
{
    definitions d = { .length = 0 };
    cl_program program;

    define(&d, "ELEMENT_BYTES", (unsigned)clxent_dtype_size(plan->desc.gradient_dtype));
    define(&d, "WG_SIZE", plan->padding_group);
    CLXENT_TRY(clxent_program_get(plan->ctx, "padding.cl", d.text, &program));
    const clxent_status status =
        clxent_kernel_create(plan->ctx, program, "clxent_zero_padding", &plan->padding);
    (void)clReleaseProgram(program);
    return status;
}

/* In a program of its own: a plan that zeroes padding compiles nothing else anew. Its groups decide no bits, so a limit
 * of this kernel alone makes only them smaller. */
static clxent_status make_padding(clxent_plan *plan)
{
    const clxent_desc *desc = &plan->desc;
    bool fits;
    size_t takes;

    if (desc->gradient_padding != CLXENT_GRADIENT_PADDING_ZERO ||
        desc->gradient_row_stride <= desc->classes * desc->inner)
        return CLXENT_OK;
    plan->padding_group = plan->group;
    CLXENT_TRY(build_padding(plan));
    CLXENT_TRY(fits_group(plan, plan->padding, &fits, &takes));
    if (fits) return CLXENT_OK;
    (void)clReleaseKernel(plan->padding);
    plan->padding = NULL;
    plan->padding_group = 1;
    return build_padding(plan);
}

static clxent_status build_kernels(clxent_plan *plan, const clxent_tuning *tuning)
{
    cl_program program;
    CLXENT_TRY(choose_program(plan, tuning, &program));
    clxent_status status = make_main(plan, program);
    if (status == CLXENT_OK) status = make_reductions(plan, program);
    if (status == CLXENT_OK) status = make_padding(plan);
    (void)clReleaseProgram(program);
    return status;
}

bool clxent_reserve(size_t *used, size_t rows, size_t columns, size_t size, size_t *at)
{
    size_t bytes;
    if (!clxent_size_mul(rows, columns, &bytes) || !clxent_size_mul(bytes, size, &bytes) ||
        bytes > SIZE_MAX - ALIGNMENT - *used)
        return false;
    *at = *used;
    *used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return true;
}

size_t clxent_span_unit(const clxent_desc *desc)
{
    const size_t unit = clxent_part_unit(desc);
    return unit <= REDUCE_ROWS ? REDUCE_ROWS / unit * unit : unit;
}

size_t clxent_partials(const clxent_plan *plan, size_t rows)
{
    const size_t rest = rows % plan->reduce_unit;
    const size_t partials =
        rows / plan->reduce_unit * plan->partials_per_unit + (rest > 0 ? (rest - 1) / REDUCE_ROWS + 1 : 0);
    return partials > 0 ? partials : 1;
}

static clxent_status lay_out_workspace(clxent_plan *plan)
{
    const size_t partials = clxent_partials(plan, plan->rows);
    const bool needs_losses = (plan->desc.outputs & CLXENT_OUTPUT_LOSS) != 0;
    const bool needs_correct = (plan->desc.outputs & CLXENT_OUTPUT_CORRECT) != 0;
    const bool split = plan->shares == CLXENT_STRATEGY_SPLIT;
    const size_t acc = clxent_acc_size(&plan->desc), split_rows = split ? plan->part_rows : 0;
    size_t *used = &plan->workspace_size;

    if (!reduces_targets(&plan->desc) && !reduces_losses(&plan->desc) && !split) return CLXENT_OK;
    if (!clxent_reserve(used, 1, 1, acc, &plan->denominator_at) ||
        !clxent_reserve(used, partials, 1, PARTIAL_BYTES, &plan->partials_at) ||
        !clxent_reserve(used, needs_losses ? plan->span_rows : 0, 1, acc, &plan->row_losses_at) ||
        !clxent_reserve(used, needs_correct ? plan->span_rows : 0, 1, 1, &plan->correct_at) ||
        !clxent_reserve(used, split_rows, plan->pieces, RECORD_BYTES, &plan->pieces_at) ||
        !clxent_reserve(used, plan->second_pass ? split_rows : 0, plan->pieces, RECORD_BYTES,
                        &plan->excluding_at)) {
        return clxent_fail(plan->ctx, CLXENT_ERROR_INVALID_DESC,
                           "rows is %zu: takes so many that the workspace has at most %zu bytes", plan->rows,
                           SIZE_MAX);
    }
    return CLXENT_OK;
}

static void describe(clxent_plan *plan)
{
    const clxent_desc *desc = &plan->desc;
    const clxent_tuning *t = &plan->tuning;
    char *text = plan->strategy;
    const size_t size = sizeof plan->strategy;

    if (!is_row_kernel(desc)) {
        (void)snprintf(text, size, "%s: a work-group of %u a row", kernel_name(desc->op), (unsigned)t->group);
    } else if (plan->shares == CLXENT_STRATEGY_LANES) {
        (void)snprintf(text, size, "lanes: tiles of %u rows, work-groups of %u, vectors of %u%s, %s",
                       (unsigned)plan->tile, (unsigned)t->lane_group, (unsigned)t->lane_vector,
                       plan->along ? " along the classes" : "",
                       plan->local_elements > 0 ? "kept in local memory" : "read twice");
    } else if (plan->shares == CLXENT_STRATEGY_SPLIT) {
        (void)snprintf(text, size,
                       "split rows: %zu pieces of %zu a row, work-groups of %u, vectors of %u, blocks of %u",
                       plan->pieces, plan->piece_vectors * t->vector, (unsigned)t->group, (unsigned)t->vector,
                       (unsigned)(t->block * t->group * t->vector));
    } else {
        const bool wide = (desc->outputs & clxent_outputs_made(CLXENT_MADE_CLASSES)) != 0;
        const bool fits = desc->classes <= plan->local_elements;
        (void)snprintf(text, size, "rows: %zu row%s a work-group of %u, vectors of %u, blocks of %u, %s",
                       plan->rows_per_group, plan->rows_per_group == 1 ? "" : "s", (unsigned)t->group,
                       (unsigned)t->vector, (unsigned)(t->block * t->group * t->vector),
                       is_one_block(plan) ? "kept in registers"
                       : !wide            ? "read once"
                       : fits             ? "kept in local memory"
                                          : "read twice");
    }
}

/* desc is complete but for its gradient_dtype. span_rows, part_rows: at most its rows. */
static void set_desc(clxent_plan *plan, const clxent_desc *desc, size_t span_rows, size_t part_rows)
{
    plan->desc = *desc;
    plan->desc.gradient_dtype = clxent_gradient_dtype(desc);
    plan->rows = desc->batch * desc->seq;
    plan->span_rows = span_rows < plan->rows ? span_rows : plan->rows;
    plan->part_rows = part_rows < plan->rows ? part_rows : plan->rows;
    plan->reduce_unit = clxent_span_unit(desc);
    plan->partials_per_unit = (plan->reduce_unit - 1) / REDUCE_ROWS + 1;
}

/* A plan without parameters, kernels and workspace; NULL and *status where it cannot be. span_rows, part_rows: at most the
 * desc's rows. */
static clxent_plan *prepare(clxent_context *ctx, const clxent_desc *desc, size_t span_rows, size_t part_rows,
                            clxent_status *status)
{
    clxent_desc complete;
    char text[TEXT_SIZE];

    *status = CLXENT_ERROR_NULL_ARGUMENT;
    if (ctx == NULL) return NULL;
    if (desc == NULL) {
        (void)clxent_fail(ctx, *status, "desc is NULL: takes a clxent_desc");
        return NULL;
    }
    *status = clxent_struct_copy(CLXENT_STRUCT_DESC, &complete, desc, text, sizeof text);
    if (*status == CLXENT_OK) *status = clxent_desc_check(&complete, text, sizeof text);
    if (*status != CLXENT_OK) {
        (void)clxent_fail(ctx, *status, "%s", text);
        return NULL;
    }
    *status = supported(ctx, &complete);
    if (*status != CLXENT_OK) return NULL;

    clxent_plan *plan = calloc(1, sizeof *plan);
    if (plan == NULL || !mutex_init(&plan->lock)) {
        free(plan);
        *status = clxent_fail(ctx, CLXENT_ERROR_OUT_OF_HOST_MEMORY,
                              "plan: malloc of %zu bytes or its mutex failed", sizeof *plan);
        return NULL;
    }
    clxent_context_retain(ctx);
    plan->ctx = ctx;
    set_desc(plan, &complete, span_rows, part_rows);
    return plan;
}

clxent_status clxent_plan_create_parts(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc,
                                       const clxent_tuning *tuning, size_t span_rows, size_t part_rows)
{
    clxent_status status;

    if (out == NULL) return CLXENT_ERROR_NULL_ARGUMENT;
    *out = NULL;
    clxent_plan *plan = prepare(ctx, desc, span_rows, part_rows, &status);
    if (plan == NULL) return status;
    if (plan->desc.op == CLXENT_OP_LINEAR_CROSS_ENTROPY) {
        CLXENT_TRY_OR_FAIL(clxent_linear_create(plan, tuning));
    } else {
        CLXENT_TRY_OR_FAIL(build_kernels(plan, tuning));
        CLXENT_TRY_OR_FAIL(lay_out_workspace(plan));
        describe(plan);
    }
    clxent_log(ctx, "plan: %s", plan->strategy);
    *out = plan;
    return CLXENT_OK;

fail:
    clxent_plan_destroy(plan);
    return status;
}

clxent_status clxent_plan_create_tuned(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc,
                                       const clxent_tuning *tuning)
{
    return clxent_plan_create_parts(out, ctx, desc, tuning, CLXENT_ALL_ROWS, CLXENT_ALL_ROWS);
}

clxent_status clxent_plan_measure(clxent_plan_facts *facts, clxent_context *ctx, const clxent_desc *desc,
                                  const clxent_tuning *tuning, size_t span_rows, size_t part_rows)
{
    clxent_status status;
    clxent_plan *plan = prepare(ctx, desc, span_rows, part_rows, &status);
    if (plan == NULL) return status;
    if (plan->desc.op == CLXENT_OP_LINEAR_CROSS_ENTROPY) {
        status = clxent_linear_measure(plan, tuning);
    } else {
        choose(plan, tuning, &ctx->device);
        describe(plan);
        /* split rows take the most, and whether rows are split depends on the compute units */
        if (plan->shares == CLXENT_STRATEGY_ROWS && plan->pieces > 1) plan->shares = CLXENT_STRATEGY_SPLIT;
        status = lay_out_workspace(plan);
    }
    facts->workspace = plan->workspace_size;
    facts->group = plan->tuning.group;
    (void)snprintf(facts->strategy, sizeof facts->strategy, "%.191s", plan->strategy);
    clxent_plan_destroy(plan);
    return status;
}

clxent_status clxent_plan_create(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    return clxent_plan_create_parts(out, ctx, desc, NULL, CLXENT_ALL_ROWS, CLXENT_ALL_ROWS);
}

clxent_status clxent_plan_describe(clxent_context *ctx, const clxent_desc *desc, char *text, size_t size)
{
    clxent_status status;

    if (text != NULL && size > 0) text[0] = '\0';
    clxent_plan *plan = prepare(ctx, desc, CLXENT_ALL_ROWS, CLXENT_ALL_ROWS, &status);
    if (plan == NULL) return status;
    if (plan->desc.op == CLXENT_OP_LINEAR_CROSS_ENTROPY) {
        status = clxent_linear_describe(plan, NULL);
    } else {
        choose(plan, NULL, &ctx->device);
        status = check_driver(plan);
        describe(plan);
    }
    if (status == CLXENT_OK && text != NULL && size > 0) (void)snprintf(text, size, "%s", plan->strategy);
    clxent_plan_destroy(plan);
    return status;
}

clxent_status clxent_plan_program(const clxent_tuning_rows *own, const clxent_device *device,
                                  const clxent_desc *desc, clxent_plan_build *build)
{
    clxent_context ctx = { .device = *device };
    clxent_plan plan = { .ctx = &ctx };
    definitions d = { .length = 0 };
    char text[TEXT_SIZE];

    CLXENT_TRY(clxent_desc_check(desc, text, sizeof text));
    set_desc(&plan, desc, CLXENT_ALL_ROWS, CLXENT_ALL_ROWS);
    plan.tuning = clxent_tuning_choose(own, device, &plan.desc);
    choose_strategy(&plan);
    define_all(&plan, &d);
    build->file = program_file(&plan);
    memcpy(build->options, d.text, sizeof d.text);
    build->group = plan.group;
    build->local_bytes = plan.local_elements * clxent_acc_size(&plan.desc);
    return CLXENT_OK;
}

void clxent_plan_destroy(clxent_plan *plan)
{
    if (plan == NULL) return;
    const cl_kernel kernels[] = { plan->main, plan->finalize, plan->reduce_targets, plan->reduce_losses,
                                  plan->padding };
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        if (kernels[i] != NULL) (void)clReleaseKernel(kernels[i]);
    }
    clxent_linear_destroy(plan->linear);
    clxent_context_destroy(plan->ctx);
    mutex_destroy(&plan->lock);
    free(plan);
}

size_t clxent_plan_workspace_size(const clxent_plan *plan) { return plan == NULL ? 0 : plan->workspace_size; }

size_t clxent_plan_bytes(const clxent_plan *plan, const char *argument)
{
    char names[512] = "";
    size_t used = 0;

    if (plan == NULL) return 0;
    if (argument == NULL) argument = "";
    if (strcmp(argument, "workspace") == 0) return plan->workspace_size;
    const clxent_desc *desc = &plan->desc;
    /* what a gradient run reads of an earlier one, and what clxent_enqueue_denominator() writes */
    const bool statistics =
        desc->op == CLXENT_OP_CROSS_ENTROPY && (desc->outputs & CLXENT_OUTPUT_GRADIENT) != 0;
    const uint32_t of_targets = CLXENT_OUTPUT_COMPUTED_DENOMINATOR | CLXENT_OUTPUT_COUNTED;
    const clxent_plan *loss = plan->linear != NULL ? clxent_linear_loss(plan->linear) : plan;
    const uint32_t outputs = desc->outputs | (loss->reduce_targets != NULL ? of_targets : 0);
    for (int i = 0; i < CLXENT_TENSORS; i++) {
        const char *name = clxent_tensor_name((clxent_tensor)i);
        clxent_need need;
        used += (size_t)snprintf(names + used, sizeof names - used, "%s, ", name);
        if (strcmp(argument, name) != 0) continue;
        const clxent_status status =
            clxent_tensor_need(desc, outputs, statistics, plan->rows, (clxent_tensor)i, &need, NULL, 0);
        return status == CLXENT_OK ? need.bytes : 0;
    }
    (void)clxent_fail(plan->ctx, CLXENT_ERROR_INVALID_ARGUMENT,
                      "argument is \"%s\": takes one of %sworkspace", argument, names);
    return 0;
}

const char *clxent_plan_strategy(const clxent_plan *plan) { return plan == NULL ? "" : plan->strategy; }
