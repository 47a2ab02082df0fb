/* SPDX-License-Identifier: MIT
 *
 * linear.c - CLXENT_OP_LINEAR_CROSS_ENTROPY: chunk by chunk of rows the logits by a matrix product, the loss and its
 * gradient in their place by a plan of CLXENT_OP_CROSS_ENTROPY, and the products of that gradient:
 *
 *     list of rows -> logits -> loss and D -> weight gradient += D^T hidden, hidden gradient = D weight, bias gradient += D
 *
 * Logits of a chunk are all the logits that there are at a time. They are acc_t and never rounded to the dtype of the
 * operands. Rows that do not count are in no product, unless an output or an upstream is asked for of every row: a list on the
 * device says which count, so that the host need not know. kernels/product.cl has the products.
 *
 * Chunks are of rows: each reads the weight twice, and reads and writes its gradient, which takes less time than the
 * arithmetic from some hundred rows on. Chunks of classes would do so once, but make all logits twice, as a row's gradient
 * needs its whole sum: a fourth product.
 */
#include "linear.h"
#include "run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PRODUCTS = 3 };
typedef enum product { LOGITS, HIDDEN, WEIGHT, ROUND } product; /* PRODUCT of product.cl, less 1 */
/* Kernels, behind those of the products. CLEAR: where the loss reads logits of rows that do not count, and uses nothing of them. */
enum { LIST = PRODUCTS, ZEROS, PANELS, BIAS, ROUND_WEIGHT, ROUND_BIAS, CLEAR, KERNELS };
static const char PROGRAM_FILE[] = "product.cl";

/* How the products are cut. Of it only depth decides bits. */
typedef struct blocks {
    uint32_t m, n, depth;
    size_t panels, sums, copy; /* elements of local memory; with groups of one work-item */
} blocks;

struct clxent_linear {
    clxent_plan *loss; /* of a chunk's logits */
    size_t chunk_rows; /* of every chunk but the last */
    uint32_t group, group_columns, most_group;
    uint32_t vector, tile_rows, tile_vectors;
    size_t panel_rows; /* at most, copied to panels at a time; with groups of one work-item */
    blocks blocks[PRODUCTS];
    cl_kernel kernels[KERNELS]; /* NULL: not needed */
    /* bytes into the workspace */
    size_t loss_at, logits_at, all_list_at, list_at, panels_at, weight_sums_at, bias_sums_at, workspace_size;
    size_t loss_size; /* bytes that the loss has of the workspace */
};

/* ---- What a plan is made of ------------------------------------------------------------------ */

/* Rows of the hidden states that are copied to panels at a time, and of a chunk where the workspace has no limit. A block
 * of D^T as deep lies in the second-level cache. More would save little: each depth reads and writes the weight gradient
 * once, 8 bytes for 2 * 2,048 operations. Little local memory has room for less depth, and gets fewer rows at a time. */
enum { PANEL_ROWS = 2048 };

static bool has(const clxent_desc *desc, uint32_t outputs) { return (desc->outputs & outputs) != 0; }

static bool has_gradient(const clxent_desc *desc) { return has(desc, CLXENT_GRADIENTS); }

/* Outputs that each row has, whether it counts or not. */
static bool needs_all_rows(uint32_t outputs)
{
    return (outputs & (CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_ENTROPY)) != 0;
}

static uint32_t acc_dtype(const clxent_desc *desc)
{
    return desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
}

static uint32_t or_dtype(const clxent_desc *desc, uint32_t dtype) { return dtype != 0 ? dtype : desc->dtype; }

/* Whether a sum over chunks has memory of its own, and is rounded once at the end. */
static bool has_weight_sums(const clxent_desc *desc)
{
    return has(desc, CLXENT_OUTPUT_WEIGHT_GRADIENT) &&
           or_dtype(desc, desc->weight_gradient_dtype) != acc_dtype(desc);
}

static bool has_bias_sums(const clxent_desc *desc)
{
    return has(desc, CLXENT_OUTPUT_BIAS_GRADIENT) &&
           or_dtype(desc, desc->bias_gradient_dtype) != acc_dtype(desc);
}

static uint32_t loss_outputs(uint32_t outputs)
{
    return (outputs & ~CLXENT_GRADIENTS) | ((outputs & CLXENT_GRADIENTS) != 0 ? CLXENT_OUTPUT_GRADIENT : 0);
}

/* The loss of the logits, which are acc_t. */
static clxent_desc loss_desc(const clxent_desc *desc)
{
    clxent_desc loss = *desc;
    const clxent_desc initial = CLXENT_DESC_INIT;

    loss.op = CLXENT_OP_CROSS_ENTROPY;
    loss.outputs = loss_outputs(desc->outputs);
    loss.dtype = acc_dtype(desc);
    loss.gradient_dtype = 0;
#define SET_ANY(name)
#define SET_LOGITS(name)
#define SET_LOSS(name)
#define SET_GRADIENT(name)
#define SET_ROWS(name)
#define SET_LINEAR(name) loss.name = initial.name;
#define OPTION(name, kind, value, acts, constant, ...) SET_##acts(name)
#include "options.def"
    loss.hidden_gradient_dtype = loss.weight_gradient_dtype = loss.bias_gradient_dtype = 0;
    loss.hidden_gradient_mode = loss.weight_gradient_mode = loss.bias_gradient_mode = CLXENT_GRADIENT_WRITE;
    return loss;
}

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

static size_t tile_columns(const struct clxent_linear *l) { return (size_t)l->vector * l->tile_vectors; }

/* Of the bias gradient, that a work-item sums at a time. */
static unsigned bias_vectors(const struct clxent_linear *l) { return l->group == 1 ? 16 : 1; }

/* Blocks of CPUs: panels, sums and copies have a third of local memory each, which is a part of what the second-level cache
 * holds. In elements of acc_t. */
static size_t local_third(const clxent_device *device, const clxent_desc *desc)
{
    enum { MOST = 384 * 1024 };
    const size_t third = (size_t)device->local_memory / 3;
    return (third < MOST ? third : MOST) / clxent_acc_size(desc);
}

/* Tiles fill the registers. CPUs: 24 of 32 of AVX-512 with 16 floats, 12 of 16 of AVX2 with 8 (a tile of 8 x 48 ran at the
 * arithmetic peak under PoCL, 15 % above OpenBLAS; 6 x 16 on AVX2 at 127 GFLOPS, where OpenBLAS gave 51 in the same
 * run). GPUs: 64 numbers for each of 256 work-items. */
static void choose_tile(struct clxent_linear *l, const clxent_device *device, const clxent_desc *desc)
{
    const bool f64 = desc->dtype == CLXENT_F64;

    const size_t most = device->max_work_group < l->most_group ? device->max_work_group : l->most_group;
    if (l->group > 1) l->group = most >= 256 ? 256 : most >= 64 ? 64 : 1;
    l->group_columns = l->group == 256 ? 16 : l->group == 64 ? 8 : 1;
    if (l->group > 1) {
        l->vector = 4;
        l->tile_rows = f64 ? 4 : 8;
        l->tile_vectors = f64 ? 1 : 2;
        return;
    }
    const uint32_t floats = device->native_floats >= 16 ? 16 : device->native_floats >= 8 ? 8 : 4;
    l->vector = f64 && floats > 4 ? floats / 2 : floats;
    l->tile_rows = floats == 16 ? 8 : 6;
    l->tile_vectors = floats == 16 ? 3 : 2;
    const size_t depth = local_third(device, desc) / l->tile_rows;
    l->panel_rows = depth < 1 ? 1 : depth < PANEL_ROWS ? depth : PANEL_ROWS;
}

/* Rows of a block, of so many that C has, in whole tiles: one block of all where `most` are that many, as each copies B once
 * more; fewer rows where there would be fewer blocks than wanted. Decides no bits. */
static uint32_t block_rows(const struct clxent_linear *l, size_t most, size_t rows, size_t wanted)
{
    enum { FEWEST = 64 };
    const size_t all = round_up(rows, l->tile_rows);
    size_t high = most < all ? most : all;

    while (high > FEWEST && (rows - 1) / high + 1 < wanted) high /= 2;
    high = high / l->tile_rows * l->tile_rows;
    return high > 0 ? (uint32_t)high : l->tile_rows;
}

static void choose_blocks(struct clxent_linear *l, const clxent_device *device, const clxent_desc *desc)
{
    enum { DEPTH = 512, GROUPS_EACH = 4 };
    const size_t elements = local_third(device, desc), columns = tile_columns(l);
    const size_t classes = desc->classes, features = desc->features, rows = l->chunk_rows;
    const size_t groups = GROUPS_EACH * (size_t)device->compute_units;
    blocks *b = l->blocks;

    if (l->group > 1) {
        for (int i = 0; i < PRODUCTS; i++) {
            b[i].m = l->group / l->group_columns * l->tile_rows;
            b[i].n = (uint32_t)(l->group_columns * columns);
        }
        return;
    }
    /* all features at once where a panel of so many fits, and then all rows for a block of classes */
    size_t depth = elements / columns;
    if (depth > features) depth = features;
    size_t wide = elements / depth / columns * columns;
    if (wide > round_up(classes, columns)) wide = round_up(classes, columns);
    const size_t most = depth < features ? elements / wide : SIZE_MAX;
    b[LOGITS].m = block_rows(l, most, rows, groups / ((classes - 1) / wide + 1));
    b[LOGITS].n = (uint32_t)wide;
    b[LOGITS].depth = (uint32_t)depth;
    b[LOGITS].sums = depth < features ? (size_t)b[LOGITS].m * wide : 0;
    b[LOGITS].copy = l->tile_rows * depth;

    depth = elements / columns < DEPTH ? elements / columns : DEPTH;
    wide = elements / depth / columns * columns;
    if (wide > round_up(features, columns)) wide = round_up(features, columns);
    b[HIDDEN].m = block_rows(l, elements / wide, rows, groups / ((features - 1) / wide + 1));
    b[HIDDEN].n = (uint32_t)wide;
    b[HIDDEN].depth = (uint32_t)depth;
    b[HIDDEN].sums = (size_t)b[HIDDEN].m * wide;

    depth = rows < l->panel_rows ? rows : l->panel_rows;
    if (depth < 1) depth = 1;
    b[WEIGHT].m = block_rows(l, elements / depth, classes, groups);
    b[WEIGHT].n = (uint32_t)round_up(features, columns);
    b[WEIGHT].depth = (uint32_t)depth;
    b[WEIGHT].copy = (size_t)b[WEIGHT].m * depth;
    for (int i = 0; i < PRODUCTS; i++) b[i].panels = i == WEIGHT ? 0 : (size_t)b[i].n * b[i].depth;
}

/* ---- Workspace --------------------------------------------------------------------------------- */

/* With chunks of so many rows; false where the bytes overflow. */
static bool lay_out(struct clxent_linear *l, const clxent_desc *desc, size_t chunk_rows, size_t loss_size)
{
    const size_t acc = clxent_acc_size(desc);
    const bool two_lists = needs_all_rows(desc->outputs) && has_gradient(desc);
    const bool panels = l->group == 1 && has(desc, CLXENT_OUTPUT_WEIGHT_GRADIENT);
    const size_t panel_rows = chunk_rows < l->panel_rows ? chunk_rows : l->panel_rows;
    size_t used = 0;

    l->chunk_rows = chunk_rows;
    l->loss_size = loss_size;
    const bool fits =
        clxent_reserve(&used, 1, loss_size, 1, &l->loss_at) &&
        clxent_reserve(&used, chunk_rows, desc->classes, acc, &l->logits_at) &&
        clxent_reserve(&used, 1 + chunk_rows, 1, sizeof(cl_uint), &l->list_at) &&
        clxent_reserve(&used, two_lists ? 1 + chunk_rows : 0, 1, sizeof(cl_uint), &l->all_list_at) &&
        clxent_reserve(&used, panels ? panel_rows : 0, round_up(desc->features, tile_columns(l)), acc,
                       &l->panels_at) &&
        clxent_reserve(&used, has_weight_sums(desc) ? desc->classes : 0, desc->features, acc,
                       &l->weight_sums_at) &&
        clxent_reserve(&used, has_bias_sums(desc) ? desc->classes : 0, 1, acc, &l->bias_sums_at);
    if (!two_lists) l->all_list_at = l->list_at;
    l->workspace_size = fits ? used : SIZE_MAX;
    return fits;
}

static clxent_status measure_loss(clxent_plan_facts *facts, const clxent_plan *plan,
                                  const clxent_tuning *tuning, size_t chunk_rows)
{
    const clxent_desc desc = loss_desc(&plan->desc);
    return clxent_plan_measure(facts, plan->ctx, &desc, tuning, plan->rows, chunk_rows);
}

/* Lays the workspace out for chunks of so many rows. */
static clxent_status measure(struct clxent_linear *l, const clxent_plan *plan, const clxent_tuning *tuning,
                             size_t chunk_rows)
{
    clxent_plan_facts loss;
    CLXENT_TRY(measure_loss(&loss, plan, tuning, chunk_rows));
    (void)lay_out(l, &plan->desc, chunk_rows, loss.workspace);
    return CLXENT_OK;
}

static size_t limit_of(const clxent_plan *plan)
{
    const cl_ulong largest = plan->ctx->device.max_allocation;
    const size_t limit = plan->desc.workspace_limit;
    return limit != 0 && limit < largest ? limit : largest < SIZE_MAX ? (size_t)largest : SIZE_MAX;
}

static clxent_status refuse(const clxent_plan *plan, const struct clxent_linear *l)
{
    const size_t limit = limit_of(plan);
    const bool own = limit == plan->desc.workspace_limit;
    return clxent_fail(plan->ctx, own ? CLXENT_ERROR_INVALID_DESC : CLXENT_ERROR_UNSUPPORTED,
                       "%s is %zu: takes at least %zu bytes with %zu rows, %zu classes and %zu features",
                       own ? "workspace_limit" : "the largest buffer of the device", limit, l->workspace_size,
                       plan->rows, plan->desc.classes, plan->desc.features);
}

/* The largest chunks that fit, then as even ones as there are of them. */
static clxent_status choose_chunks(const clxent_plan *plan, const clxent_tuning *tuning,
                                   struct clxent_linear *l)
{
    const size_t limit = limit_of(plan);
    const size_t rows = plan->part_rows > 0 ? plan->part_rows : 1;
    const size_t most = plan->desc.workspace_limit != 0 ? INT32_MAX : PANEL_ROWS;
    size_t low = 1, high = rows < most ? rows : most;
    clxent_plan_facts loss;

    CLXENT_TRY(measure_loss(&loss, plan, tuning, 1));
    l->group = loss.group;
    choose_tile(l, &plan->ctx->device, &plan->desc);
    CLXENT_TRY(measure(l, plan, tuning, 1));
    if (l->workspace_size > limit) return refuse(plan, l);
    while (low < high) {
        const size_t middle = low + (high - low + 1) / 2;
        CLXENT_TRY(measure(l, plan, tuning, middle));
        if (l->workspace_size <= limit) low = middle;
        else high = middle - 1;
    }
    const size_t chunks = (rows - 1) / low + 1;
    const size_t even = round_up((rows - 1) / chunks + 1, l->tile_rows);
    return measure(l, plan, tuning, even < low ? even : low);
}

static void describe(clxent_plan *plan, const struct clxent_linear *l, const char *loss)
{
    (void)snprintf(plan->strategy, sizeof plan->strategy,
                   "linear: chunks of %zu rows, tiles of %u x %zu in work-groups of %u; %.180s",
                   l->chunk_rows, (unsigned)l->tile_rows, tile_columns(l), (unsigned)l->group, loss);
}

/* ---- Kernels ----------------------------------------------------------------------------------- */

/* dtype: of C */
static void define_product(const struct clxent_linear *l, const clxent_desc *desc, product which,
                           uint32_t dtype, char options[CLXENT_OPTIONS_SIZE])
{
    const bool targets = clxent_needs_targets(desc, desc->outputs);
    const uint32_t type = which != LOGITS || !targets                               ? TARGET_NONE
                          : desc->target_type == CLXENT_TARGET_PROBABILITIES_LOGITS ? TARGET_PROBABILITIES_F32
                                                                                    : desc->target_type;

    (void)snprintf(
        options, CLXENT_OPTIONS_SIZE,
        "-DPRODUCT=%d -DDTYPE=%u -DGRADIENT_DTYPE=%u -DVEC=%u -DWG_SIZE=%u -DLANES=0 -DTILE_ROWS=%u "
        "-DTILE_VECTORS=%u -DGROUP_COLUMNS=%u -DOUTPUTS=0 -DTARGETS=%u -DHAS_GRAD_ENTROPY=%u "
        "-DHAS_GRAD_LSE=%u -DHAS_CLASS_WEIGHTS=0 -DHAS_SMOOTHING=0 -DHAS_LOGIT_SCALE=0 "
        "-DHAS_SOFTCAP=0 -DACCUMULATE=0 -DREDUCES=0 -DBIAS_VECTORS=%u",
        which + 1, (unsigned)desc->dtype, (unsigned)dtype, (unsigned)l->vector, (unsigned)l->group,
        (unsigned)l->tile_rows, (unsigned)l->tile_vectors, (unsigned)l->group_columns, (unsigned)type,
        which == LOGITS && desc->has_grad_entropy != 0, which == LOGITS && desc->has_grad_lse != 0,
        bias_vectors(l));
}

/* dtype: of C */
static clxent_status get_program(const clxent_plan *plan, product which, uint32_t dtype, cl_program *out)
{
    char options[CLXENT_OPTIONS_SIZE];

    define_product(plan->linear, &plan->desc, which, dtype, options);
    return clxent_program_get(plan->ctx, PROGRAM_FILE, options, out);
}

/* Of C; sums over chunks are acc_t. */
static uint32_t dtype_of_product(const clxent_desc *desc, product which)
{
    return which == HIDDEN ? or_dtype(desc, desc->hidden_gradient_dtype) : acc_dtype(desc);
}

/* Each program, and its kernels. */
static clxent_status make_kernels(const clxent_plan *plan)
{
    enum { MOST_OF_ONE = 3 };
    static const char block[] = "clxent_product_block", zeros[] = "clxent_product_zeros";
    struct clxent_linear *l = plan->linear;
    const clxent_desc *desc = &plan->desc;
    const bool clears = l->loss->shares == CLXENT_STRATEGY_LANES && !needs_all_rows(desc->outputs);
    const bool sums = has(desc, CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT);
    const struct {
        bool needed;
        product which;
        uint32_t dtype; /* of C */
        struct {
            int kernel;
            const char *name;
        } kernels[MOST_OF_ONE];
    } programs[] = {
        { true,
          LOGITS,
          dtype_of_product(desc, LOGITS),
          { { LOGITS, block }, { LIST, "clxent_product_list" }, { CLEAR, clears ? zeros : NULL } } },
        { has(desc, CLXENT_OUTPUT_HIDDEN_GRADIENT),
          HIDDEN,
          dtype_of_product(desc, HIDDEN),
          { { HIDDEN, block }, { ZEROS, zeros } } },
        { sums,
          WEIGHT,
          dtype_of_product(desc, WEIGHT),
          { { WEIGHT, block },
            { BIAS, "clxent_product_bias" },
            { PANELS, l->group == 1 ? "clxent_product_panels" : NULL } } },
        { has_weight_sums(desc),
          ROUND,
          or_dtype(desc, desc->weight_gradient_dtype),
          { { ROUND_WEIGHT, "clxent_product_round" } } },
        { has_bias_sums(desc),
          ROUND,
          or_dtype(desc, desc->bias_gradient_dtype),
          { { ROUND_BIAS, "clxent_product_round" } } },
    };

    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        clxent_status status = CLXENT_OK;
        cl_program program;
        if (!programs[i].needed) continue;
        CLXENT_TRY(get_program(plan, programs[i].which, programs[i].dtype, &program));
        for (int k = 0; status == CLXENT_OK && k < MOST_OF_ONE; k++) {
            const char *name = programs[i].kernels[k].name;
            if (name == NULL) continue;
            status =
                clxent_kernel_create(plan->ctx, program, name, &l->kernels[programs[i].kernels[k].kernel]);
        }
        (void)clReleaseProgram(program);
        CLXENT_TRY(status);
    }
    return CLXENT_OK;
}

/* most_group: work-items in a group of the products, at most. */
static clxent_status prepare(clxent_plan *plan, const clxent_tuning *tuning, uint32_t most_group)
{
    const clxent_device *device = &plan->ctx->device;
    struct clxent_linear *l = calloc(1, sizeof *l);
    if (l == NULL) {
        (void)clxent_fail(plan->ctx, CLXENT_ERROR_OUT_OF_HOST_MEMORY, "plan: malloc of %zu bytes failed",
                          sizeof *l);
        return CLXENT_ERROR_OUT_OF_HOST_MEMORY;
    }
    plan->linear = l;
    l->most_group = most_group;
    CLXENT_TRY(choose_chunks(plan, tuning, l));
    choose_blocks(l, device, &plan->desc);
    for (int i = 0; i < PRODUCTS; i++) {
        const size_t bytes =
            (l->blocks[i].panels + l->blocks[i].sums + l->blocks[i].copy) * clxent_acc_size(&plan->desc);
        if (bytes > device->local_memory) {
            return clxent_fail(
                plan->ctx, CLXENT_ERROR_UNSUPPORTED,
                "device \"%s\" has %zu bytes of local memory: takes at least %zu for a product of matrices",
                device->name, (size_t)device->local_memory, bytes);
        }
    }
    return CLXENT_OK;
}

enum { LARGEST_GROUP = 256, SMALLER_GROUP = 64 };

clxent_status clxent_linear_describe(clxent_plan *plan, const clxent_tuning *tuning)
{
    clxent_plan_facts loss;

    CLXENT_TRY(prepare(plan, tuning, LARGEST_GROUP));
    CLXENT_TRY(measure_loss(&loss, plan, tuning, plan->linear->chunk_rows));
    describe(plan, plan->linear, loss.strategy);
    return CLXENT_OK;
}

clxent_status clxent_linear_measure(clxent_plan *plan, const clxent_tuning *tuning)
{
    CLXENT_TRY(prepare(plan, tuning, LARGEST_GROUP));
    plan->workspace_size = plan->linear->workspace_size;
    return CLXENT_OK;
}

/* Whether the device takes every kernel in the plan's groups: registers may set a kernel's own limit below the device's. */
static clxent_status takes_groups(const clxent_plan *plan, bool *takes)
{
    const cl_kernel *kernels = plan->linear->kernels;

    *takes = true;
    for (int i = 0; i < KERNELS; i++) {
        size_t most = 0;
        if (kernels[i] == NULL) continue;
        CLXENT_TRY(
            clxent_check_cl(plan->ctx,
                            clGetKernelWorkGroupInfo(kernels[i], plan->ctx->id, CL_KERNEL_WORK_GROUP_SIZE,
                                                     sizeof most, &most, NULL),
                            "clGetKernelWorkGroupInfo(CL_KERNEL_WORK_GROUP_SIZE)"));
        if (most < plan->linear->group) *takes = false;
    }
    return CLXENT_OK;
}

static clxent_status build(clxent_plan *plan, const clxent_tuning *tuning, uint32_t most_group, bool *takes)
{
    const clxent_desc *desc = &plan->desc, of_loss = loss_desc(desc);

    CLXENT_TRY(prepare(plan, tuning, most_group));
    struct clxent_linear *l = plan->linear;
    CLXENT_TRY(clxent_plan_create_parts(&l->loss, plan->ctx, &of_loss, tuning, plan->rows, l->chunk_rows));
    const size_t loss_size = clxent_plan_workspace_size(l->loss);
    if (loss_size > l->loss_size) { /* the device takes smaller groups than were measured */
        (void)lay_out(l, desc, l->chunk_rows, loss_size);
        if (l->workspace_size > limit_of(plan)) return refuse(plan, l);
    }
    CLXENT_TRY(make_kernels(plan));
    return takes_groups(plan, takes);
}

clxent_status clxent_linear_create(clxent_plan *plan, const clxent_tuning *tuning)
{
    bool takes = false;

    for (uint32_t most = LARGEST_GROUP; !takes; most = most > SMALLER_GROUP ? SMALLER_GROUP : 1) {
        clxent_linear_destroy(plan->linear);
        plan->linear = NULL;
        CLXENT_TRY(build(plan, tuning, most, &takes));
        if (most == 1) break; /* every device takes groups of one */
    }
    plan->workspace_size = plan->linear->workspace_size;
    describe(plan, plan->linear, clxent_plan_strategy(plan->linear->loss));
    return CLXENT_OK;
}

clxent_status clxent_linear_program(const clxent_tuning_rows *own, const clxent_device *device,
                                    const clxent_desc *desc, const char *name, clxent_plan_build *build)
{
    static const char *const names[PRODUCTS] = { "logits", "hidden", "weight" };
    struct clxent_linear l = { .most_group = LARGEST_GROUP };
    int which = 0;
    char text[256];

    while (which < PRODUCTS && strcmp(name, names[which]) != 0) which++;
    if (which == PRODUCTS || desc->op != CLXENT_OP_LINEAR_CROSS_ENTROPY) return CLXENT_ERROR_INVALID_ARGUMENT;
    CLXENT_TRY(clxent_desc_check(desc, text, sizeof text));
    const clxent_desc loss = loss_desc(desc);
    CLXENT_TRY(clxent_plan_program(own, device, &loss, build));
    l.group = build->group;
    choose_tile(&l, device, desc);
    define_product(&l, desc, (product)which, dtype_of_product(desc, (product)which), build->options);
    build->file = PROGRAM_FILE;
    build->group = l.group;
    build->local_bytes = 0;
    return CLXENT_OK;
}

void clxent_linear_destroy(struct clxent_linear *l)
{
    if (l == NULL) return;
    for (int i = 0; i < KERNELS; i++) {
        if (l->kernels[i] != NULL) (void)clReleaseKernel(l->kernels[i]);
    }
    clxent_plan_destroy(l->loss);
    free(l);
}

clxent_plan *clxent_linear_loss(const struct clxent_linear *linear) { return linear->loss; }
size_t clxent_linear_loss_at(const struct clxent_linear *linear) { return linear->loss_at; }

/* ---- Launches ---------------------------------------------------------------------------------- */

/* Rows of the run's part. */
typedef struct chunk {
    size_t first, rows;
    bool begins; /* the batch */
} chunk;

/* Elements of acc_t to a place in the workspace. */
static cl_ulong acc_at(const run *r, size_t at)
{
    return (r->args.workspace.offset + at) / clxent_acc_size(&r->plan->desc);
}

static size_t stride_of(const clxent_desc *desc, size_t stride)
{
    return stride != 0 ? stride : desc->features;
}

static cl_ulong offset_of(run *r, clxent_tensor tensor) { return *clxent_run_offset(&r->p, tensor); }

static clxent_status launch(run *r, const setter *s, size_t groups)
{
    return groups == 0 ? CLXENT_OK : clxent_run_launch(r, s, groups, r->plan->linear->group, false, NULL);
}

static clxent_product begin_product(const run *r, const chunk *c, size_t list_at)
{
    const clxent_desc *desc = &r->plan->desc;
    const clxent_product p = { .list_at = (r->args.workspace.offset + list_at) / sizeof(cl_uint),
                               .a = acc_at(r, r->plan->linear->logits_at),
                               .a_stride = desc->classes,
                               .classes = (cl_uint)desc->classes,
                               .features = (cl_uint)desc->features,
                               .most = (cl_uint)c->rows };
    return p;
}

/* What C = A B + bias is made of; bias: may be NULL. */
typedef struct matrices {
    cl_mem a, b, bias, c;
} matrices;

/* rows: of C. */
static clxent_status launch_product(run *r, product which, clxent_product *p, const matrices *of, size_t rows)
{
    const struct clxent_linear *l = r->plan->linear;
    const blocks *cut = &l->blocks[which];
    const size_t columns = which == LOGITS ? p->classes : p->features;

    if (rows == 0) return CLXENT_OK;
    p->block_m = cut->m;
    p->block_n = cut->n;
    p->blocks_m = (cl_uint)((rows - 1) / cut->m + 1);
    p->depth = cut->depth;
    p->sums_at = (cl_uint)cut->panels;
    p->copy_at = (cl_uint)(cut->panels + cut->sums);
    setter s = clxent_set_begin(l->kernels[which], sizeof *p, p);
    clxent_set_mem(&s, of->a);
    clxent_set_mem(&s, of->b);
    clxent_set_mem(&s, of->bias);
    if (l->group == 1) clxent_set_mem(&s, r->args.workspace.mem); /* panels */
    clxent_set_mem(&s, of->c);
    clxent_set_mem(&s, r->args.workspace.mem); /* the list */
    if (l->group == 1) {
        const size_t elements = cut->panels + cut->sums + cut->copy;
        clxent_set_bytes(&s, elements * clxent_acc_size(&r->plan->desc), NULL);
    }
    return launch(r, &s, p->blocks_m * ((columns - 1) / cut->n + 1));
}

static clxent_status launch_list(run *r, const chunk *c, size_t list_at, bool all)
{
    const struct clxent_linear *l = r->plan->linear;
    const cl_ulong at = (r->args.workspace.offset + list_at) / sizeof(cl_uint);
    const cl_uint every = all;
    clxent_parameters p = r->own;

    p.rows = c->rows;
    p.first_timestep = r->plan->desc.seq > 0 ? (r->part.first_row + c->first) % r->plan->desc.seq : 0;
    p.offset.targets += c->first;
    p.offset.row_weights += c->first;
    p.offset.grad_entropy += c->first;
    p.offset.grad_lse += c->first;
    setter s = clxent_set_begin(l->kernels[LIST], sizeof p, &p);
    clxent_set_mem(&s, r->args.targets.mem);
    clxent_set_mem(&s, r->args.row_weights.mem);
    clxent_set_mem(&s, r->args.grad_entropy.mem);
    clxent_set_mem(&s, r->args.grad_lse.mem);
    clxent_set_mem(&s, r->args.workspace.mem);
    clxent_set_bytes(&s, sizeof at, &at);
    clxent_set_bytes(&s, sizeof every, &every);
    return launch(r, &s, 1);
}

static clxent_status launch_zeros(run *r, const chunk *c, cl_kernel kernel, const clxent_product *p,
                                  cl_mem mem)
{
    enum { MOST_GROUPS = 64 };
    setter s = clxent_set_begin(kernel, sizeof *p, p);
    clxent_set_mem(&s, mem);
    clxent_set_mem(&s, r->args.workspace.mem);
    return launch(r, &s, c->rows < MOST_GROUPS ? c->rows : MOST_GROUPS);
}

static clxent_status launch_logits(run *r, const chunk *c)
{
    const struct clxent_linear *l = r->plan->linear;
    const clxent_desc *desc = &r->plan->desc;
    cl_mem workspace = r->args.workspace.mem;
    const matrices of = { r->args.hidden.mem, r->args.weight.mem, r->args.bias.mem, workspace };
    clxent_product p = begin_product(r, c, l->all_list_at);

    p.c = p.a;
    p.c_stride = p.a_stride;
    p.a_stride = stride_of(desc, desc->hidden_row_stride);
    p.a = offset_of(r, CLXENT_TENSOR_HIDDEN) + c->first * p.a_stride;
    p.b = offset_of(r, CLXENT_TENSOR_WEIGHT);
    p.b_stride = stride_of(desc, desc->weight_row_stride);
    p.bias = offset_of(r, CLXENT_TENSOR_BIAS);
    p.has_bias = desc->has_bias != 0;
    if (l->kernels[CLEAR] != NULL) CLXENT_TRY(launch_zeros(r, c, l->kernels[CLEAR], &p, workspace));
    return launch_product(r, LOGITS, &p, &of, c->rows);
}

static clxent_status launch_hidden(run *r, const chunk *c)
{
    const struct clxent_linear *l = r->plan->linear;
    const clxent_desc *desc = &r->plan->desc;
    const matrices of = { r->args.workspace.mem, r->args.weight.mem, NULL, r->args.hidden_gradient.mem };
    clxent_product p = begin_product(r, c, l->list_at);

    p.b = offset_of(r, CLXENT_TENSOR_WEIGHT);
    p.b_stride = stride_of(desc, desc->weight_row_stride);
    p.c_stride = stride_of(desc, desc->hidden_gradient_row_stride);
    p.c = offset_of(r, CLXENT_TENSOR_HIDDEN_GRADIENT) + c->first * p.c_stride;
    p.adds = clxent_accumulates(desc, CLXENT_TENSOR_HIDDEN_GRADIENT);
    CLXENT_TRY(launch_product(r, HIDDEN, &p, &of, c->rows));
    return p.adds ? CLXENT_OK : launch_zeros(r, c, l->kernels[ZEROS], &p, of.c);
}

/* Slice by slice of the chunk's rows. The first slice of the batch writes, and an accumulated gradient that has no sums of
 * its own is what all slices add to. */
static clxent_status launch_weight(run *r, const chunk *c)
{
    const struct clxent_linear *l = r->plan->linear;
    const clxent_desc *desc = &r->plan->desc;
    const bool sums = has_weight_sums(desc);
    const size_t slice = l->group == 1 ? l->panel_rows : c->rows;
    cl_mem workspace = r->args.workspace.mem;
    const matrices of = { workspace, r->args.hidden.mem, NULL,
                          sums ? workspace : r->args.weight_gradient.mem };
    clxent_product p = begin_product(r, c, l->list_at);
    size_t first = 0;

    p.b_stride = stride_of(desc, desc->hidden_row_stride);
    p.b = offset_of(r, CLXENT_TENSOR_HIDDEN) + c->first * p.b_stride;
    p.panels_at = acc_at(r, l->panels_at);
    p.c = sums ? acc_at(r, l->weight_sums_at) : offset_of(r, CLXENT_TENSOR_WEIGHT_GRADIENT);
    p.c_stride = sums ? desc->features : stride_of(desc, desc->weight_gradient_row_stride);
    p.adds = !c->begins || (!sums && clxent_accumulates(desc, CLXENT_TENSOR_WEIGHT_GRADIENT));
    do {
        p.first = (cl_uint)first;
        p.most = (cl_uint)(c->rows - first < slice ? c->rows - first : slice);
        if (l->group == 1 && p.most > 0) {
            setter s = clxent_set_begin(l->kernels[PANELS], sizeof p, &p);
            clxent_set_mem(&s, of.b);
            clxent_set_mem(&s, workspace);
            clxent_set_mem(&s, workspace);
            CLXENT_TRY(launch(r, &s, (desc->features - 1) / tile_columns(l) + 1));
        }
        CLXENT_TRY(launch_product(r, WEIGHT, &p, &of, desc->classes));
        p.adds = 1;
        first += slice;
    } while (first < c->rows);
    return CLXENT_OK;
}

static clxent_status launch_bias(run *r, const chunk *c)
{
    const struct clxent_linear *l = r->plan->linear;
    const clxent_desc *desc = &r->plan->desc;
    const bool sums = has_bias_sums(desc);
    const size_t each = (size_t)l->group * l->vector * bias_vectors(l);
    clxent_product p = begin_product(r, c, l->list_at);

    p.c = sums ? acc_at(r, l->bias_sums_at) : offset_of(r, CLXENT_TENSOR_BIAS_GRADIENT);
    p.adds = !c->begins || (!sums && clxent_accumulates(desc, CLXENT_TENSOR_BIAS_GRADIENT));
    setter s = clxent_set_begin(l->kernels[BIAS], sizeof p, &p);
    clxent_set_mem(&s, r->args.workspace.mem);
    clxent_set_mem(&s, sums ? r->args.workspace.mem : r->args.bias_gradient.mem);
    clxent_set_mem(&s, r->args.workspace.mem);
    return launch(r, &s, (desc->classes - 1) / each + 1);
}

/* The sums at p.a to their gradient, if it has any: p.classes rows of p.features. */
static clxent_status launch_round(run *r, int which, clxent_tensor tensor, uint32_t output, clxent_product p)
{
    enum { GROUPS_EACH = 8 };
    const size_t most = GROUPS_EACH * (size_t)r->plan->ctx->device.compute_units;
    cl_kernel kernel = r->plan->linear->kernels[which];

    if (kernel == NULL || (r->outputs & output) == 0) return CLXENT_OK;
    p.c = offset_of(r, tensor);
    p.adds = clxent_accumulates(&r->plan->desc, tensor);
    setter s = clxent_set_begin(kernel, sizeof p, &p);
    clxent_set_mem(&s, r->args.workspace.mem);
    clxent_set_mem(&s, clxent_tensor_buffer(&r->args, tensor)->mem);
    return launch(r, &s, p.classes < most ? p.classes : most);
}

static clxent_status launch_rounding(run *r, const chunk *c)
{
    const struct clxent_linear *l = r->plan->linear;
    const clxent_desc *desc = &r->plan->desc;
    const clxent_product weight = { .a = acc_at(r, l->weight_sums_at),
                                    .c_stride = stride_of(desc, desc->weight_gradient_row_stride),
                                    .classes = (cl_uint)desc->classes,
                                    .features = (cl_uint)desc->features };
    const clxent_product bias = { .a = acc_at(r, l->bias_sums_at),
                                  .classes = 1,
                                  .features = (cl_uint)desc->classes };

    (void)c;
    CLXENT_TRY(
        launch_round(r, ROUND_WEIGHT, CLXENT_TENSOR_WEIGHT_GRADIENT, CLXENT_OUTPUT_WEIGHT_GRADIENT, weight));
    return launch_round(r, ROUND_BIAS, CLXENT_TENSOR_BIAS_GRADIENT, CLXENT_OUTPUT_BIAS_GRADIENT, bias);
}

/* The loss of the chunk's logits, or for a pass over the targets of all rows: one run of its plan behind the chain. Not
 * under the lock: it has its own, and reports its failures itself. */
static clxent_status enqueue_loss(run *r, const chunk *c, clxent_pass pass)
{
    const struct clxent_linear *l = r->plan->linear;
    const clxent_desc *desc = &r->plan->desc;
    const size_t total = r->part.total_rows;
    const cl_event *wait;
    const cl_uint num_wait = clxent_run_waits(r, &wait);
    const clxent_part part = { .pass = pass,
                               .total_rows = total,
                               .span_rows = total,
                               .first_row = r->part.first_row + c->first,
                               .target_rows_behind = r->rows - c->first - c->rows };
    const clxent_buffer logits = { r->args.workspace.mem, r->args.workspace.offset + l->logits_at };
    clxent_args args = r->args;
    cl_event done = NULL;

    args.outputs = loss_outputs(r->outputs);
    args.rows = c->rows;
    args.logits = args.gradient = logits;
    args.workspace.offset += l->loss_at;
    if (args.targets.mem != NULL && !clxent_targets_are_indices(desc)) {
        const size_t stride = desc->target_row_stride != 0 ? desc->target_row_stride : desc->classes;
        args.targets.offset += c->first * stride * r->needs[CLXENT_TENSOR_TARGETS].element_size;
    }
    const clxent_status status =
        clxent_enqueue_part(l->loss, r->queue, &args, &part, num_wait, wait, r->out_of_order ? &done : NULL);
    if (r->previous != NULL) (void)clReleaseEvent(r->previous);
    r->previous = done;
    if (status == CLXENT_OK) r->launched = true;
    return status;
}

static clxent_status launch_rows(run *r, const chunk *c)
{
    const struct clxent_linear *l = r->plan->linear;
    const bool all = needs_all_rows(r->plan->desc.outputs);

    CLXENT_TRY(launch_list(r, c, l->all_list_at, all));
    if (l->all_list_at != l->list_at) CLXENT_TRY(launch_list(r, c, l->list_at, false));
    return launch_logits(r, c);
}

static clxent_status launch_gradients(run *r, const chunk *c)
{
    if ((r->outputs & CLXENT_OUTPUT_HIDDEN_GRADIENT) != 0) CLXENT_TRY(launch_hidden(r, c));
    if ((r->outputs & CLXENT_OUTPUT_WEIGHT_GRADIENT) != 0) CLXENT_TRY(launch_weight(r, c));
    if ((r->outputs & CLXENT_OUTPUT_BIAS_GRADIENT) != 0) CLXENT_TRY(launch_bias(r, c));
    return CLXENT_OK;
}

/* One step of a run under the plan's lock. */
static clxent_status locked(run *r, const chunk *c, clxent_status (*step)(run *r, const chunk *c))
{
    mutex_lock(&r->plan->lock);
    const clxent_status status = step(r, c);
    mutex_unlock(&r->plan->lock);
    return clxent_check_cl(r->plan->ctx, status, r->failed);
}

static clxent_status launch_chunks(run *r)
{
    const struct clxent_linear *l = r->plan->linear;
    const bool rows = clxent_outputs_of_rows(r->outputs) != 0;
    const bool ends = r->part.first_row + r->rows == r->part.total_rows;
    chunk c = { 0, 0, r->part.first_row == 0 };

    if (r->part.pass != CLXENT_PASS_LOGITS && l->loss->reduce_targets != NULL) {
        CLXENT_TRY(enqueue_loss(r, &c, CLXENT_PASS_TARGETS));
    }
    if (!rows || r->part.pass == CLXENT_PASS_TARGETS) return CLXENT_OK;
    do {
        c.rows = r->rows - c.first < l->chunk_rows ? r->rows - c.first : l->chunk_rows;
        CLXENT_TRY(locked(r, &c, launch_rows));
        CLXENT_TRY(enqueue_loss(r, &c, CLXENT_PASS_LOGITS));
        CLXENT_TRY(locked(r, &c, launch_gradients));
        c.first += c.rows;
        c.begins = false;
    } while (c.first < r->rows);
    return ends ? locked(r, &c, launch_rounding) : CLXENT_OK;
}

clxent_status clxent_linear_launch(run *r, cl_event *event)
{
    clxent_status status = launch_chunks(r);

    if (status == CLXENT_OK && (event != NULL || !r->launched)) {
        const cl_event *wait;
        const cl_uint num_wait = clxent_run_waits(r, &wait);
        status = clxent_check_cl(r->plan->ctx, clEnqueueMarkerWithWaitList(r->queue, num_wait, wait, event),
                                 "clEnqueueMarkerWithWaitList");
    }
    if (r->previous != NULL) (void)clReleaseEvent(r->previous);
    r->previous = NULL;
    return status;
}

/* Sizes of nothing: no kernel but the list's looks at more than the length of the list, which no loop passes. */
static clxent_status launch_nothing(run *r, const chunk *c)
{
    const struct clxent_linear *l = r->plan->linear;
    cl_mem workspace = r->args.workspace.mem;
    static const int buffers[KERNELS] = {
        [ZEROS] = 2, [PANELS] = 3, [BIAS] = 3, [ROUND_WEIGHT] = 2, [ROUND_BIAS] = 2, [CLEAR] = 2
    };
    clxent_product p = { .list_at = l->list_at / sizeof(cl_uint), .features = 1, .adds = 1 };

    const matrices of = { workspace, workspace, NULL, workspace };
    CLXENT_TRY(launch_list(r, c, l->list_at, true));
    for (int i = ZEROS; i < KERNELS; i++) {
        if (l->kernels[i] == NULL) continue;
        setter s = clxent_set_begin(l->kernels[i], sizeof p, &p);
        for (int k = 0; k < buffers[i]; k++) clxent_set_mem(&s, workspace);
        CLXENT_TRY(launch(r, &s, 1));
    }
    for (int which = LOGITS; which <= WEIGHT; which++) {
        if (l->kernels[which] == NULL) continue;
        p.classes = which != WEIGHT; /* its rows; else of the grid */
        CLXENT_TRY(launch_product(r, (product)which, &p, &of, 1));
    }
    return CLXENT_OK;
}

clxent_status clxent_linear_warm(run *r)
{
    const chunk c = { 0, 0, true };
    const clxent_plan *plan = r->plan;
    cl_int code;

    r->args.workspace.mem =
        clCreateBuffer(plan->ctx->cl, CL_MEM_READ_WRITE, plan->workspace_size, NULL, &code);
    CLXENT_TRY(clxent_check_cl(plan->ctx, code, "clCreateBuffer"));
    clxent_status status = clxent_plan_warm(plan->linear->loss, r->queue);
    if (status == CLXENT_OK) status = locked(r, &c, launch_nothing);
    if (r->previous != NULL) (void)clReleaseEvent(r->previous);
    r->previous = NULL;
    if (status == CLXENT_OK) status = clxent_check_cl(plan->ctx, clFinish(r->queue), "clFinish");
    (void)clReleaseMemObject(r->args.workspace.mem); /* what is still enqueued keeps it */
    return status;
}
