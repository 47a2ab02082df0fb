/* SPDX-License-Identifier: MIT
 *
 * support.c - see support.h. Sizes come from the library's own clxent_tensor_need() (tested against written-out
 * numbers in test_desc.c), so that a problem never disagrees with it about an array.
 */
#include "support.h"

#include "internal.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test_device device;
clxent_status (*plan_maker)(clxent_plan **, clxent_context *, const clxent_desc *) = clxent_plan_create;

void *take_memory(size_t n)
{
    void *memory = malloc(n > 0 ? n : 1);
    cr_assert(memory != NULL, "malloc of %zu bytes failed", n);
    return memory;
}

static bool is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value != NULL && strcmp(value, "1") == 0;
}

bool small_run(void) { return is_set("CLXENT_TEST_SMALL"); }

/* ---- Device -------------------------------------------------------------------------------- */

static cl_device_id find_device(cl_device_type type)
{
    cl_platform_id platforms[16];
    cl_uint count = 0;

    if (clGetPlatformIDs(16, platforms, &count) != CL_SUCCESS) return NULL;
    for (cl_uint p = 0; p < count && p < 16; p++) {
        cl_device_id id;
        /* A platform without devices (CL_DEVICE_NOT_FOUND) is common and no fault. */
        if (clGetDeviceIDs(platforms[p], type, 1, &id, NULL) == CL_SUCCESS) return id;
    }
    return NULL;
}

void open_device(void)
{
    cl_int code;

    device.id = find_device(CL_DEVICE_TYPE_GPU);
    if (device.id == NULL) device.id = find_device(CL_DEVICE_TYPE_ALL);
    if (device.id == NULL && is_set("CLXENT_TEST_ALLOW_NO_DEVICE")) cr_skip("no OpenCL device");
    cr_assert(device.id != NULL,
              "no OpenCL device: a driver, and for PoCL a writable POCL_CACHE_DIR, are needed");
    device.cl = clCreateContext(NULL, 1, &device.id, NULL, NULL, &code);
    cr_assert(code == CL_SUCCESS, "clCreateContext: %d", code);
    device.queue = clCreateCommandQueue(device.cl, device.id, 0, &code);
    cr_assert(code == CL_SUCCESS, "clCreateCommandQueue: %d", code);
    code = clxent_context_create(&device.ctx, device.cl, device.id, NULL);
    cr_assert(code == CLXENT_OK, "clxent_context_create: %s", clxent_status_string(code));
    device.has_f64 = device.ctx->device.has_f64;
}

/* Of this process, by output and dtype of the logits. */
static worst_error worst_errors[CLXENT_TENSORS][CLXENT_F64 + 1];

bool wants_ratios(void) { return is_set("CLXENT_TEST_RATIOS"); }

static int tensor_of(uint32_t output)
{
    int tensor = CLXENT_TENSOR_LOSSES;
    while ((output >>= 1) != 0) tensor++;
    return tensor;
}

worst_error worst_of(uint32_t output, uint32_t dtype) { return worst_errors[tensor_of(output)][dtype]; }

void forget_worst(void) { memset(worst_errors, 0, sizeof worst_errors); }

static void print_worst_errors(void)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++) {
            const worst_error w = worst_errors[t][dtype];
            if (w.ratio == 0) continue;
            (void)fprintf(stderr, "worst ratio: %s %s %.3f, %.2f ulp\n", clxent_tensor_name((clxent_tensor)t),
                          clxent_dtype_name(dtype), w.ratio, w.ulps);
        }
    }
}

void close_device(void)
{
    if (wants_ratios()) print_worst_errors();
    clxent_context_destroy(device.ctx);
    if (device.queue != NULL) clReleaseCommandQueue(device.queue);
    if (device.cl != NULL) clReleaseContext(device.cl);
    memset(&device, 0, sizeof device);
}

bool compiles_groups(void)
{
    cl_platform_id platform;
    char name[128] = "";

    clGetDeviceInfo(device.id, CL_DEVICE_PLATFORM, sizeof platform, &platform, NULL);
    clGetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof name, name, NULL);
    return strcmp(name, "Portable Computing Language") != 0;
}

const char *last_error(void)
{
    static char text[2048];
    clxent_context_last_error(device.ctx, text, sizeof text);
    return text;
}

cl_command_queue make_out_of_order_queue(void)
{
    cl_command_queue_properties can = 0;
    cl_int code;

    clGetDeviceInfo(device.id, CL_DEVICE_QUEUE_PROPERTIES, sizeof can, &can, NULL);
    if ((can & CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE) == 0) return NULL;
    cl_command_queue queue =
        clCreateCommandQueue(device.cl, device.id, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE, &code);
    cr_assert(code == CL_SUCCESS, "clCreateCommandQueue: %d", code);
    return queue;
}

/* ---- Random numbers and storage ------------------------------------------------------------ */

/* PCG-XSH-RR 64/32: the same numbers on every machine, which rand() does not promise. */
uint32_t random_u32(random_state *random)
{
    const uint64_t old = random->state;
    const uint32_t mixed = (uint32_t)(((old >> 18) ^ old) >> 27);
    const unsigned turn = (unsigned)(old >> 59);
    random->state = old * 6364136223846793005u + 1442695040888963407u;
    return mixed >> turn | mixed << (-turn & 31u);
}

double random_uniform(random_state *random, double low, double high)
{
    return low + (high - low) * (random_u32(random) * 0x1p-32);
}

double get_element(const void *data, uint32_t dtype, size_t index)
{
    const char *at = (const char *)data + index * clxent_dtype_size(dtype);
    uint16_t bits;
    float single;
    double value = 0;

    switch (dtype) {
    case CLXENT_F32: memcpy(&single, at, sizeof single); return single;
    case CLXENT_F64: memcpy(&value, at, sizeof value); return value;
    default: memcpy(&bits, at, sizeof bits);
    }
    return dtype == CLXENT_F16 ? clxent_f16_to_double(bits) : clxent_bf16_to_double(bits);
}

void put_element(void *data, uint32_t dtype, size_t index, double value)
{
    char *at = (char *)data + index * clxent_dtype_size(dtype);
    uint16_t bits;
    float single;

    switch (dtype) {
    case CLXENT_F32:
        single = (float)value;
        memcpy(at, &single, sizeof single);
        return;
    case CLXENT_F64: memcpy(at, &value, sizeof value); return;
    default:
        bits = dtype == CLXENT_F16 ? clxent_f16_from_double(value) : clxent_bf16_from_double(value);
        memcpy(at, &bits, sizeof bits);
    }
}

int64_t get_target(const void *data, uint32_t target_type, size_t index)
{
    int32_t narrow;
    int64_t wide;

    switch (target_type) {
    case CLXENT_TARGET_U8: return ((const uint8_t *)data)[index];
    case CLXENT_TARGET_I32: memcpy(&narrow, (const char *)data + 4 * index, 4); return narrow;
    default: memcpy(&wide, (const char *)data + 8 * index, 8); return wide;
    }
}

void put_target(void *data, uint32_t target_type, size_t index, int64_t value)
{
    const int32_t narrow = (int32_t)value;

    switch (target_type) {
    case CLXENT_TARGET_U8: ((uint8_t *)data)[index] = (uint8_t)value; return;
    case CLXENT_TARGET_I32: memcpy((char *)data + 4 * index, &narrow, 4); return;
    default: memcpy((char *)data + 8 * index, &value, 8);
    }
}

size_t element_index(const clxent_desc *desc, size_t stride, size_t row, size_t class_index)
{
    const size_t slab = stride != 0 ? stride : desc->classes * desc->inner;
    return row / desc->inner * slab + class_index * desc->inner + row % desc->inner;
}

/* ---- Problems ------------------------------------------------------------------------------ */

static size_t rows_of(const clxent_desc *desc) { return desc->batch * desc->seq; }

static uint32_t real_dtype(const clxent_desc *desc)
{
    return desc->dtype == CLXENT_F64 ? CLXENT_F64 : CLXENT_F32;
}

static bool target_fits(uint32_t target_type, int64_t value)
{
    if (target_type == CLXENT_TARGET_U8) return value >= 0 && value <= UINT8_MAX;
    return target_type != CLXENT_TARGET_I32 || (value >= INT32_MIN && value <= INT32_MAX);
}

static void fill_index_targets(const clxent_desc *desc, void *data, uint32_t fill, random_state *random)
{
    /* 2^32 + 1 is class 1 to code that compares 32 bits. */
    const int64_t bad[] = {
        (int64_t)desc->classes, -1, ((int64_t)1 << 32) + 1, INT32_MIN, INT64_MIN, INT32_MAX
    };
    const int64_t last = (int64_t)desc->classes - 1;
    size_t bads = 0;

    for (size_t row = 0; row < rows_of(desc); row++) {
        int64_t target;
        switch (row % 6) {
        case 0: target = last; break; /* the vector tail's last element */
        case 1: target = 0; break;
        case 2: target = last >= 3 ? last - 3 : 0; break; /* elsewhere in the tail */
        default: target = (int64_t)(random_u32(random) % desc->classes);
        }
        if (!target_fits(desc->target_type, target)) target = random_u32(random) % 256;
        if ((fill & FILL_IGNORED) != 0 && row % 5 == 2 && desc->use_ignore_index &&
            target_fits(desc->target_type, desc->ignore_index)) {
            target = desc->ignore_index;
        } else if ((fill & FILL_BAD_TARGETS) != 0 && row % 7 == 3) {
            const int64_t value = bad[bads++ % (sizeof bad / sizeof *bad)];
            const bool is_bad = value < 0 || value > last;
            if (is_bad && target_fits(desc->target_type, value)) target = value;
        }
        put_target(data, desc->target_type, row, target);
    }
}

static void fill_probability_targets(const clxent_desc *desc, void *data, uint32_t dtype,
                                     random_state *random)
{
    for (size_t row = 0; row < rows_of(desc); row++) {
        const size_t hot = random_u32(random) % desc->classes;
        for (size_t j = 0; j < desc->classes; j++) {
            double q;
            switch (row % 4) {
            case 0: q = random_uniform(random, 0, 2.0 / (double)desc->classes); break;
            case 1: q = j == hot; break;
            case 2: q = j % 3 == 0 ? 0 : random_uniform(random, 0, 1); break; /* sum far from 1 */
            default: q = random_uniform(random, -0.5, 1); /* signed, as logits of a teacher */
            }
            put_element(data, dtype, element_index(desc, desc->target_row_stride, row, j), q);
        }
    }
}

enum row_kind {
    ROW_PLAIN,
    /* finite */
    ROW_NEGATIVE, /* a maximum that starts at 0 */
    ROW_HIGH,     /* exp without the maximum subtracted overflows above 88.7 */
    ROW_EQUAL,    /* three classes share the top: sum not 1 and log of it not 0, which would hide its error */
    ROW_DOMINANT, /* a confident row: loss near 0, log(1 + tiny) */
    ROW_DENORMAL, /* flushed inputs, and all exponentials 1 */
    ROW_OFFSET,   /* a large shared offset: a rounded lse loses the loss */
    ROW_RISING,   /* each block rescales the running sum */
    ROW_FALLING,  /* none does, and the tail underflows */
    /* -inf, not at the target */
    ROW_HOLES,
    ROW_LEADING, /* -inf - -inf in a running maximum before the first finite logit */
    ROW_LONE,    /* one finite logit: p = 1 */
    /* rows with results that are not finite */
    ROW_ALL_MASKED,
    ROW_TARGET_MASKED,
    ROW_NAN,
    ROW_NAN_LAST, /* in the tail */
    ROW_INF,
    ROW_NAN_AND_INF
};

static double logit_of(const clxent_desc *desc, enum row_kind kind, size_t j, size_t special, bool is_target,
                       random_state *random)
{
    const bool f16 = desc->dtype == CLXENT_F16;
    const size_t last = desc->classes - 1;
    const double plain = random_uniform(random, -8, 8);
    const double tiny = f16 ? 0x1p-20 : desc->dtype == CLXENT_F64 ? 0x1p-1060 : 0x1p-135;

    switch (kind) {
    case ROW_NEGATIVE: return plain - 112;
    case ROW_HIGH: return plain + 112;
    case ROW_EQUAL: return j == special || j == last || j == last / 2 ? 9.25 : plain;
    case ROW_DOMINANT: return j == special ? 12.5 : plain - 20;
    case ROW_DENORMAL: return floor(plain) * tiny;
    case ROW_OFFSET: return floor(4 * plain) + (f16 ? 3e4 : desc->dtype == CLXENT_BF16 ? 4096 : 1e6);
    case ROW_RISING: return -100 + 200 * ((double)j / (double)desc->classes);
    case ROW_FALLING: return 100 - 200 * ((double)j / (double)desc->classes);
    case ROW_HOLES: return !is_target && j != last && (j + special) % 3 == 0 ? -INFINITY : plain;
    case ROW_LEADING:
        return !is_target && j != last && j < desc->classes - desc->classes / 8 ? -INFINITY : plain;
    case ROW_LONE: return !is_target && j != last ? -INFINITY : plain;
    case ROW_ALL_MASKED: return -INFINITY;
    case ROW_TARGET_MASKED: return is_target ? -INFINITY : plain;
    case ROW_NAN: return j == special ? (double)NAN : plain;
    case ROW_NAN_LAST: return j == last ? (double)NAN : plain;
    case ROW_INF: return j == special ? INFINITY : plain;
    case ROW_NAN_AND_INF: return j == last ? (double)NAN : j == last / 2 ? INFINITY : plain;
    case ROW_PLAIN: break;
    }
    return plain;
}

/* The class that row is judged against; classes where there is none. */
static size_t target_class(const problem *p, size_t row)
{
    const clxent_desc *desc = &p->desc;
    if (p->args.targets.data == NULL || !clxent_targets_are_indices(desc)) return desc->classes;
    if (row % desc->seq + desc->shift >= desc->seq) return desc->classes;
    const int64_t target = get_target(p->args.targets.data, desc->target_type, row + desc->shift);
    return target >= 0 && target < (int64_t)desc->classes ? (size_t)target : desc->classes;
}

static void fill_logits(const problem *p, void *data, uint32_t fill, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    enum row_kind kinds[ROW_NAN_AND_INF + 1];
    size_t count = 0;

    kinds[count++] = ROW_PLAIN;
    for (int kind = ROW_NEGATIVE; kind <= ROW_NAN_AND_INF; kind++) {
        const uint32_t needs = kind <= ROW_FALLING ? FILL_DESIGNED
                               : kind <= ROW_LONE  ? FILL_MASKED
                                                   : FILL_SPECIAL;
        if ((fill & needs) != 0) kinds[count++] = (enum row_kind)kind;
    }
    for (size_t row = 0; row < rows_of(desc); row++) {
        const enum row_kind kind = kinds[row % count];
        const size_t special = random_u32(random) % desc->classes, target = target_class(p, row);
        double top = -INFINITY;
        for (size_t j = 0; j < desc->classes; j++) {
            const size_t at = element_index(desc, desc->row_stride, row, j);
            const double x = logit_of(desc, kind, j, special, j == target, random);
            put_element(data, desc->dtype, at, x);
            top = fmax(top, get_element(data, desc->dtype, at));
        }
        if ((fill & FILL_HIT) != 0 && row % 2 == 0 && target < desc->classes && kind <= ROW_LONE) {
            put_element(data, desc->dtype, element_index(desc, desc->row_stride, row, target),
                        top + (fabs(top) > 1e3 ? fabs(top) / 64 : 3));
        }
    }
}

/* Rows of a softmax, with exact zeros under FILL_MASKED. */
static void fill_probabilities(const clxent_desc *desc, void *data, uint32_t fill, random_state *random)
{
    for (size_t row = 0; row < rows_of(desc); row++) {
        double sum = 0, *e = take_memory(desc->classes * sizeof *e);
        for (size_t j = 0; j < desc->classes; j++) {
            const bool masked = (fill & FILL_MASKED) != 0 && row % 3 == 1 && j % 2 == 1;
            e[j] = masked ? 0 : exp(random_uniform(random, -8, 8));
            sum += e[j];
        }
        for (size_t j = 0; j < desc->classes; j++) {
            put_element(data, desc->dtype, element_index(desc, desc->probabilities_row_stride, row, j),
                        e[j] / sum);
        }
        free(e);
    }
}

static void fill_weights(void *data, uint32_t dtype, size_t n, bool negatives, random_state *random)
{
    for (size_t i = 0; i < n; i++) {
        double weight = random_uniform(random, 0.25, 2);
        if (i % 6 == 4) weight = 0;
        if (negatives && i % 9 == 7) weight = -0.25;
        put_element(data, dtype, i, weight);
    }
}

static void *take_array(const clxent_desc *desc, clxent_tensor tensor, size_t *size)
{
    clxent_need need;
    char text[256] = "";
    const clxent_status status =
        clxent_tensor_need(desc, desc->outputs, false, rows_of(desc), tensor, &need, text, sizeof text);
    cr_assert(status == CLXENT_OK, "%s", text);
    *size = 0;
    if (need.use == CLXENT_UNUSED) return NULL;
    *size = need.bytes;
    /* All bits set is NaN in every storage type, and -1 as a target: what padding holds. */
    return memset(take_memory(need.bytes), 0xFF, need.bytes);
}

void make_problem(problem *p, const clxent_desc *desc, uint32_t fill, uint64_t seed)
{
    random_state random = { seed * 0x9E3779B97F4A7C15u + 1 };
    const uint32_t real = real_dtype(desc);
    const size_t rows = rows_of(desc);
    const clxent_host_args absent = CLXENT_HOST_ARGS_INIT;
    clxent_host_args *args = &p->args;
    char text[256] = "";
    void *data;

    for (int i = 0; i < 4; i++) random_u32(&random);
    cr_assert(clxent_desc_check(desc, text, sizeof text) == CLXENT_OK, "%s", text);
    p->desc = *desc;
    *args = absent;

    args->targets.data = data = take_array(desc, CLXENT_TENSOR_TARGETS, &args->targets.size);
    if (data != NULL && clxent_targets_are_indices(desc)) {
        fill_index_targets(desc, data, fill, &random);
    } else if (data != NULL) {
        fill_probability_targets(
            desc, data, desc->target_type == CLXENT_TARGET_PROBABILITIES_F32 ? CLXENT_F32 : desc->dtype,
            &random);
    }
    args->logits.data = data = take_array(desc, CLXENT_TENSOR_LOGITS, &args->logits.size);
    if (data != NULL) fill_logits(p, data, fill, &random);
    args->probabilities.data = data =
        take_array(desc, CLXENT_TENSOR_PROBABILITIES, &args->probabilities.size);
    if (data != NULL) fill_probabilities(desc, data, fill, &random);
    args->class_weights.data = data =
        take_array(desc, CLXENT_TENSOR_CLASS_WEIGHTS, &args->class_weights.size);
    if (data != NULL) fill_weights(data, real, desc->classes, true, &random);
    args->row_weights.data = data = take_array(desc, CLXENT_TENSOR_ROW_WEIGHTS, &args->row_weights.size);
    if (data != NULL) fill_weights(data, real, rows, false, &random);

    if (desc->op == CLXENT_OP_SOFTMAX_BACKWARD || (fill & FILL_UPSTREAM) != 0) {
        args->upstream.data = data = take_array(desc, CLXENT_TENSOR_UPSTREAM, &args->upstream.size);
    }
    if (args->upstream.data != NULL && desc->op == CLXENT_OP_SOFTMAX_BACKWARD) {
        for (size_t i = 0; i < rows * desc->classes; i++) {
            put_element(
                data, desc->dtype,
                element_index(desc, desc->probabilities_row_stride, i / desc->classes, i % desc->classes),
                random_uniform(&random, -2, 2));
        }
    } else if (args->upstream.data != NULL) {
        for (size_t i = 0; i < args->upstream.size / clxent_dtype_size(real); i++) {
            put_element(data, real, i, i % 5 == 3 ? 0 : random_uniform(&random, -2, 2));
        }
    }
    if ((fill & FILL_DENOMINATOR) != 0) {
        args->denominator.data = data = take_array(desc, CLXENT_TENSOR_DENOMINATOR, &args->denominator.size);
        if (data != NULL) put_element(data, real, 0, 7.25);
    }
    if (desc->gradient_mode == CLXENT_GRADIENT_ACCUMULATE) {
        args->gradient.data = data = take_array(desc, CLXENT_TENSOR_GRADIENT, &args->gradient.size);
        for (size_t i = 0; data != NULL && i < rows * desc->classes; i++) {
            put_element(data, clxent_gradient_dtype(desc),
                        element_index(desc, desc->gradient_row_stride, i / desc->classes, i % desc->classes),
                        random_uniform(&random, -1, 1));
        }
    }
}

void free_problem(problem *p)
{
    const void *arrays[] = { p->args.logits.data,        p->args.probabilities.data, p->args.targets.data,
                             p->args.class_weights.data, p->args.row_weights.data,   p->args.upstream.data,
                             p->args.denominator.data,   p->args.gradient.data };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free((void *)arrays[i]);
    memset(p, 0, sizeof *p);
}

/* ---- Comparison ---------------------------------------------------------------------------- */

close_report compare(const double *got, const double *want, const double *bound, size_t n)
{
    close_report report = { 0, 0, 0 };
    for (size_t i = 0; i < n; i++) {
        const bool same = (isnan(got[i]) && isnan(want[i])) || got[i] == want[i];
        const double error = fabs(got[i] - want[i]);
        double ratio = bound[i] > 0 ? error / bound[i] : INFINITY;
        bool close = error <= bound[i]; /* false for NaN */

        if (same) continue;
        if (!isfinite(want[i])) close = false;
        if (isinf(bound[i]) && close) ratio = 0; /* infinity is a correct rounding of want */
        if (!close && report.bad++ == 0) report.first = i;
        if (!(ratio <= report.worst)) report.worst = isnan(ratio) ? INFINITY : ratio;
    }
    return report;
}

/* ---- run_case ------------------------------------------------------------------------------ */

/* A buffer as the host saw it before the run and after. Canaries lie on both sides of the tensor. */
typedef struct image {
    cl_mem mem; /* NULL: absent */
    unsigned char *before, *after;
    size_t front, bytes, total;
} image;

typedef struct execution {
    image images[CLXENT_TENSORS];
    image workspace;
    int in_place; /* the tensor whose buffer is the logits'; -1: none */
} execution;

static image make_image(size_t front, size_t bytes, size_t back, const void *data, unsigned fill)
{
    image made = { .front = front, .bytes = bytes, .total = front + bytes + back };
    cl_int code;

    made.before = take_memory(made.total);
    made.after = take_memory(made.total);
    /* Two bytes in turn: 0xFFFE, so that NaN copied from an input's padding, 0xFFFF, differs from it. */
    for (size_t i = 0; i < made.total; i++) made.before[i] = (unsigned char)(i % 2 == 0 ? fill : 0xFF);
    if (data != NULL && bytes > 0) memcpy(made.before + front, data, bytes);
    made.mem =
        clCreateBuffer(device.cl, CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR, made.total, made.before, &code);
    cr_assert(code == CL_SUCCESS, "clCreateBuffer of %zu bytes: %d", made.total, code);
    return made;
}

static void free_image(image *i)
{
    if (i->mem != NULL) clReleaseMemObject(i->mem);
    free(i->before);
    free(i->after);
    memset(i, 0, sizeof *i);
}

static void read_image(image *i)
{
    if (i->mem == NULL) return;
    const cl_int code =
        clEnqueueReadBuffer(device.queue, i->mem, CL_TRUE, 0, i->total, i->after, 0, NULL, NULL);
    cr_assert(code == CL_SUCCESS, "clEnqueueReadBuffer: %d", code);
}

/* The fields of the structs lie in the order of clxent_tensor. */
static clxent_buffer *args_field(clxent_args *args, int tensor) { return &args->logits + tensor; }

static const void *input_data(const problem *p, int tensor)
{
    if (tensor == CLXENT_TENSOR_GRADIENT) return p->args.gradient.data;
    return tensor < CLXENT_TENSOR_LOSSES ? (&p->args.logits + tensor)->data : NULL;
}

static const image *image_of(const execution *e, int tensor)
{
    return &e->images[tensor == e->in_place ? CLXENT_TENSOR_LOGITS : tensor];
}

static int in_place_tensor(uint32_t outputs)
{
    if ((outputs & CLXENT_OUTPUT_GRADIENT) != 0) return CLXENT_TENSOR_GRADIENT;
    return (outputs & CLXENT_OUTPUT_SOFTMAX) != 0 ? CLXENT_TENSOR_SOFTMAX : CLXENT_TENSOR_LOG_SOFTMAX;
}

/* Fresh buffers, one run, everything read back. saved: an earlier execution whose statistics this one,
 * a gradient run, begins from. */
static void execute(const char *name, execution *e, clxent_plan *plan, const problem *p, uint32_t outputs,
                    const execution *saved, uint32_t flags)
{
    const clxent_desc *desc = &p->desc;
    const size_t workspace = clxent_plan_workspace_size(plan);
    cl_command_queue queue = device.queue, out_of_order = NULL;
    clxent_args args = CLXENT_ARGS_INIT;
    cl_event done = NULL;
    char text[256] = "";

    memset(e, 0, sizeof *e);
    e->in_place = (flags & CASE_IN_PLACE) != 0 ? in_place_tensor(outputs) : -1;
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        const void *data = input_data(p, t);
        clxent_need need;
        clxent_status status = clxent_tensor_need(desc, outputs, saved != NULL, rows_of(desc),
                                                  (clxent_tensor)t, &need, text, sizeof text);
        cr_assert(status == CLXENT_OK, "%s: %s", name, text);
        if (need.use == CLXENT_UNUSED || (t < CLXENT_TENSOR_LOSSES && data == NULL)) continue;
        if (saved != NULL && t == CLXENT_TENSOR_STATISTICS)
            data = saved->images[t].after + saved->images[t].front;
        if (t != e->in_place) {
            const size_t front = (flags & CASE_ALIGNED) != 0 ? 0 : 37 * need.element_size;
            e->images[t] = make_image(front, need.bytes, 256, data, t < CLXENT_TENSOR_LOSSES ? 0xFF : 0xFE);
        }
        args_field(&args, t)->mem = image_of(e, t)->mem;
        args_field(&args, t)->offset = image_of(e, t)->front;
    }
    e->workspace = make_image(64, workspace, 64, NULL, 0xFF);
    args.workspace = (clxent_buffer){ e->workspace.mem, e->workspace.front };
    args.outputs = outputs;
    args.rows = rows_of(desc);

    if ((flags & CASE_OUT_OF_ORDER) != 0) out_of_order = make_out_of_order_queue();
    if (out_of_order != NULL) queue = out_of_order;
    clxent_status status = clxent_enqueue(plan, queue, &args, 0, NULL, &done);
    cr_assert(status == CLXENT_OK, "%s: clxent_enqueue: %s: %s", name, clxent_status_string(status),
              last_error());
    status = clWaitForEvents(1, &done);
    cr_assert(status == CL_SUCCESS, "%s: clWaitForEvents: %s", name, clxent_status_string(status));
    clReleaseEvent(done);
    if (out_of_order != NULL) clReleaseCommandQueue(out_of_order);

    for (int t = 0; t < CLXENT_TENSORS; t++) read_image(&e->images[t]);
    read_image(&e->workspace);
}

static void free_execution(execution *e)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) free_image(&e->images[t]);
    free_image(&e->workspace);
}

/* How the elements of an output lie: rows x columns of them. */
typedef struct layout {
    size_t rows, columns, element_size, stride;
    bool matrix;
    uint32_t dtype; /* 0: integers */
} layout;

static layout output_layout(const clxent_desc *desc, int tensor)
{
    const uint32_t real = real_dtype(desc);
    layout l = { rows_of(desc), 1, 0, 0, false, real };

    switch (tensor) {
    case CLXENT_TENSOR_LOSS: l.rows = 1; break;
    case CLXENT_TENSOR_STATISTICS: l.columns = 2; break;
    case CLXENT_TENSOR_ARGMAX: l.dtype = 0; break;
    case CLXENT_TENSOR_CORRECT:
        l.rows = 1;
        l.dtype = 0;
        break;
    case CLXENT_TENSOR_BAD_TARGETS:
        l.rows = 1;
        l.columns = 3;
        l.dtype = 0;
        break;
    case CLXENT_TENSOR_SOFTMAX:
    case CLXENT_TENSOR_LOG_SOFTMAX:
    case CLXENT_TENSOR_ONE_HOT:
        l.matrix = true;
        l.stride = desc->probabilities_row_stride;
        l.dtype = desc->dtype;
        break;
    case CLXENT_TENSOR_GRADIENT:
        l.matrix = true;
        l.stride = desc->gradient_row_stride;
        l.dtype = clxent_gradient_dtype(desc);
        break;
    default: break;
    }
    if (l.matrix) l.columns = desc->classes;
    l.element_size = l.dtype != 0 ? clxent_dtype_size(l.dtype) : 8;
    return l;
}

/* Index of an element in the tensor's own memory. */
static size_t at(const clxent_desc *desc, const layout *l, size_t row, size_t column)
{
    return l->matrix ? element_index(desc, l->stride, row, column) : row * l->columns + column;
}

/* Puts back what the run was free to write; then nothing may differ. */
static void check_untouched(const char *name, const problem *p, const execution *e, uint32_t outputs)
{
    for (int t = 0; t < CLXENT_TENSORS; t++) {
        const image *i = &e->images[t];
        const bool in_place = t == CLXENT_TENSOR_LOGITS && e->in_place >= 0;
        const bool output = t >= CLXENT_TENSOR_LOSSES && (outputs >> (t - CLXENT_TENSOR_LOSSES) & 1u) != 0;
        if (i->mem == NULL) continue;

        unsigned char *after = take_memory(i->total);
        memcpy(after, i->after, i->total);
        if (in_place || output) {
            const layout l = output_layout(&p->desc, in_place ? e->in_place : t);
            for (size_t row = 0; row < l.rows; row++) {
                for (size_t column = 0; column < l.columns; column++) {
                    const size_t offset = i->front + at(&p->desc, &l, row, column) * l.element_size;
                    memcpy(after + offset, i->before + offset, l.element_size);
                }
            }
        }
        size_t first = 0;
        while (first < i->total && after[first] == i->before[first]) first++;
        cr_assert(first == i->total, "%s: %s: byte %lld of its %zu was written", name,
                  clxent_tensor_name((clxent_tensor)t), (long long)first - (long long)i->front, i->bytes);
        free(after);
    }
    const image *w = &e->workspace;
    cr_assert(memcmp(w->before, w->after, w->front) == 0, "%s: bytes before the workspace were written",
              name);
    cr_assert(memcmp(w->before + w->front + w->bytes, w->after + w->front + w->bytes, 64) == 0,
              "%s: bytes behind the workspace of %zu were written", name, w->bytes);
}

/* The outputs that both executions have, element by element: padding differs where only one is in place. */
static void check_same_bits(const char *name, const char *what, const problem *p, const execution *a,
                            const execution *b, uint32_t outputs)
{
    for (int t = CLXENT_TENSOR_LOSSES; t < CLXENT_TENSORS; t++) {
        if ((outputs >> (t - CLXENT_TENSOR_LOSSES) & 1u) == 0) continue;
        const layout l = output_layout(&p->desc, t);
        const image *x = image_of(a, t), *y = image_of(b, t);
        for (size_t row = 0; row < l.rows; row++) {
            for (size_t column = 0; column < l.columns; column++) {
                const size_t offset = at(&p->desc, &l, row, column) * l.element_size;
                const int differs =
                    memcmp(x->after + x->front + offset, y->after + y->front + offset, l.element_size);
                cr_assert(differs == 0, "%s: %s: row %zu column %zu has other bits %s", name,
                          clxent_tensor_name((clxent_tensor)t), row, column, what);
            }
        }
    }
}

static void check_integers(const char *name, const char *tensor, const void *got, const void *want, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int64_t g, w;
        memcpy(&g, (const char *)got + 8 * i, 8);
        memcpy(&w, (const char *)want + 8 * i, 8);
        cr_assert(g == w, "%s: %s[%zu]: got %lld, want %lld", name, tensor, i, (long long)g, (long long)w);
    }
}

/* The distance between numbers of dtype at value. */
static double ulp_of(double value, uint32_t dtype)
{
    static const struct {
        int digits, lowest; /* of the significand; exponent of the smallest normal number */
    } formats[] = { [CLXENT_F32] = { 24, -126 },
                    [CLXENT_F16] = { 11, -14 },
                    [CLXENT_BF16] = { 8, -126 },
                    [CLXENT_F64] = { 53, -1022 } };
    int exponent;
    (void)frexp(value, &exponent); /* value = f * 2^exponent, f in [0.5, 1) */
    if (--exponent < formats[dtype].lowest) exponent = formats[dtype].lowest;
    return ldexp(1, exponent - formats[dtype].digits + 1);
}

/* Finite results only, and above where real underflows: there a device may give 0. */
static double worst_ulps(const double *got, const double *want, size_t n, uint32_t dtype, uint32_t real)
{
    const double smallest = real == CLXENT_F64 ? 0x1p-1022 : 0x1p-126;
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i]) || !isfinite(want[i]) || fabs(want[i]) < smallest) continue;
        worst = fmax(worst, fabs(got[i] - want[i]) / ulp_of(want[i], dtype));
    }
    return worst;
}

static void check_values(const char *name, const problem *p, const execution *e, int tensor,
                         const double *want, const double *bound)
{
    const layout l = output_layout(&p->desc, tensor);
    const image *i = image_of(e, tensor);
    const size_t n = l.rows * l.columns;
    double *got = take_memory(n * sizeof *got);

    for (size_t k = 0; k < n; k++) {
        got[k] = get_element(i->after + i->front, l.dtype, at(&p->desc, &l, k / l.columns, k % l.columns));
    }
    const close_report report = compare(got, want, bound, n);
    const size_t f = report.first;
    cr_assert(report.bad == 0,
              "%s: %s: %zu of %zu are wrong, first row %zu column %zu: got %.17g, want %.17g, bound %.3g; "
              "worst error %.3g times its bound",
              name, clxent_tensor_name((clxent_tensor)tensor), report.bad, n, f / l.columns, f % l.columns,
              n > 0 ? got[f] : 0, n > 0 ? want[f] : 0, n > 0 ? bound[f] : 0, report.worst);
    worst_error *worst = &worst_errors[tensor][p->desc.dtype];
    worst->ratio = fmax(worst->ratio, report.worst);
    worst->ulps = fmax(worst->ulps, worst_ulps(got, want, n, l.dtype, real_dtype(&p->desc)));
    free(got);
}

static void check_against_reference(const char *name, const problem *p, const execution *e)
{
    const clxent_desc *desc = &p->desc;
    const size_t rows = rows_of(desc), n = rows * desc->classes;
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    int64_t *argmax = take_memory(rows * sizeof *argmax);
    uint64_t correct = 0;
    clxent_bad_targets bad = { 0, 0, 0 };
    char text[256] = "";
    struct {
        int tensor;
        size_t count;
        double **values, **bounds;
    } parts[] = {
        { CLXENT_TENSOR_LOSSES, rows, &want.losses, &want.losses_bound },
        { CLXENT_TENSOR_LOSS, 1, &want.loss, &want.loss_bound },
        { CLXENT_TENSOR_LSE, rows, &want.lse, &want.lse_bound },
        { CLXENT_TENSOR_SOFTMAX, n, &want.softmax, &want.softmax_bound },
        { CLXENT_TENSOR_LOG_SOFTMAX, n, &want.log_softmax, &want.log_softmax_bound },
        { CLXENT_TENSOR_GRADIENT, n, &want.gradient, &want.gradient_bound },
        { CLXENT_TENSOR_ENTROPY, rows, &want.entropy, &want.entropy_bound },
        { CLXENT_TENSOR_ONE_HOT, n, &want.one_hot, NULL },
    };
    const size_t count = sizeof parts / sizeof *parts;

    for (size_t k = 0; k < count; k++) {
        if ((desc->outputs >> (parts[k].tensor - CLXENT_TENSOR_LOSSES) & 1u) == 0) continue;
        *parts[k].values = take_memory(parts[k].count * sizeof(double));
        if (parts[k].bounds != NULL) *parts[k].bounds = take_memory(parts[k].count * sizeof(double));
    }
    if ((desc->outputs & CLXENT_OUTPUT_ARGMAX) != 0) want.argmax = argmax;
    if ((desc->outputs & CLXENT_OUTPUT_CORRECT) != 0) want.correct = &correct;
    if ((desc->outputs & CLXENT_OUTPUT_BAD_TARGETS) != 0) want.bad_targets = &bad;
    const clxent_status status = clxent_reference_run(desc, &p->args, &want, text, sizeof text);
    cr_assert(status == CLXENT_OK, "%s: reference: %s", name, text);

    for (size_t k = 0; k < count; k++) {
        if (*parts[k].values == NULL) continue;
        double *none = NULL;
        if (parts[k].bounds == NULL) none = memset(take_memory(n * sizeof *none), 0, n * sizeof *none);
        check_values(name, p, e, parts[k].tensor, *parts[k].values, none != NULL ? none : *parts[k].bounds);
        free(none);
        free(*parts[k].values);
        if (parts[k].bounds != NULL) free(*parts[k].bounds);
    }
    const struct {
        int tensor;
        const void *want;
        size_t count;
    } integers[] = {
        { CLXENT_TENSOR_ARGMAX, want.argmax, rows },
        { CLXENT_TENSOR_CORRECT, want.correct, 1 },
        { CLXENT_TENSOR_BAD_TARGETS, want.bad_targets, 3 },
    };
    for (size_t k = 0; k < sizeof integers / sizeof *integers; k++) {
        const image *i = image_of(e, integers[k].tensor);
        if (integers[k].want == NULL) continue;
        check_integers(name, clxent_tensor_name((clxent_tensor)integers[k].tensor), i->after + i->front,
                       integers[k].want, integers[k].count);
    }
    free(argmax);
}

void run_once(const char *name, clxent_plan *plan, const problem *p, uint32_t outputs, uint32_t flags,
              clxent_host_args *out)
{
    const clxent_host_args absent = CLXENT_HOST_ARGS_INIT;
    execution e;

    *out = absent;
    execute(name, &e, plan, p, outputs, NULL, flags);
    for (int t = CLXENT_TENSOR_LOSSES; t < CLXENT_TENSORS; t++) {
        const image *i = image_of(&e, t);
        clxent_output *array = &out->losses + (t - CLXENT_TENSOR_LOSSES);
        if ((outputs >> (t - CLXENT_TENSOR_LOSSES) & 1u) == 0) continue;
        array->size = i->bytes;
        array->data = take_memory(i->bytes);
        memcpy(array->data, i->after + i->front, i->bytes);
    }
    free_execution(&e);
}

void free_outputs(clxent_host_args *out)
{
    for (clxent_output *array = &out->losses; array <= &out->one_hot; array++) free(array->data);
}

void run_case(const char *name, const problem *p, uint32_t flags)
{
    const clxent_desc *desc = &p->desc;
    const uint32_t both = CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS;
    const uint32_t plain = flags & ~(uint32_t)CASE_IN_PLACE;
    clxent_desc plan_desc = *desc;
    clxent_plan *plan;
    execution first, again;

    if ((flags & CASE_LARGER_PLAN) != 0) plan_desc.batch = desc->batch > 0 ? 2 * desc->batch : desc->inner;
    if (plan_desc.seq == 0) plan_desc.seq = 1;
    clxent_status status = plan_maker(&plan, device.ctx, &plan_desc);
    cr_assert(status == CLXENT_OK, "%s: clxent_plan_create: %s: %s", name, clxent_status_string(status),
              last_error());

    execute(name, &first, plan, p, desc->outputs, NULL, flags);
    check_untouched(name, p, &first, desc->outputs);
    check_against_reference(name, p, &first);

    execute(name, &again, plan, p, desc->outputs, NULL, flags);
    check_same_bits(name, "in a second run", p, &first, &again, desc->outputs);
    free_execution(&again);
    if ((desc->outputs & both) == both) {
        execute(name, &again, plan, p, CLXENT_OUTPUT_GRADIENT, &first, flags);
        check_untouched(name, p, &again, CLXENT_OUTPUT_GRADIENT);
        check_same_bits(name, "from saved statistics", p, &first, &again, CLXENT_OUTPUT_GRADIENT);
        free_execution(&again);
    }
    for (uint32_t bit = 1; (flags & CASE_SUBSETS) != 0 && bit <= desc->outputs; bit <<= 1) {
        if ((desc->outputs & bit) == 0) continue;
        execute(name, &again, plan, p, bit, NULL, plain);
        check_untouched(name, p, &again, bit);
        check_same_bits(name, "when it is the only output", p, &first, &again, bit);
        free_execution(&again);
    }
    free_execution(&first);
    clxent_plan_destroy(plan);
}

void run_filled_case(const char *name, const clxent_desc *desc, uint32_t fill, uint64_t seed, uint32_t flags)
{
    problem p;
    make_problem(&p, desc, fill, seed);
    run_case(name, &p, flags);
    free_problem(&p);
}
