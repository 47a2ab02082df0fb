/* SPDX-License-Identifier: MIT
 *
 * copy_ratio.c - what the mean loss with its gradient, and the loss alone, cost on the first OpenCL device as
 * ratios to moving the same bytes: a plain vector copy of the logits, and a pass that only reads them.
 *
 *     copy_ratio [LOG2_LOGITS [PAIRS]]      default 26 (256 MiB of f32) and 11 alternated runs
 *
 * Each figure is the median over the runs of time / time of the copy (read) run just before it.
 */
#define CL_TARGET_OPENCL_VERSION 120
#include <clxent/clxent.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static const char source[] =
    "__kernel void copy(__global const float16 *from, __global float16 *to, const uint each) {\n"
    "    const size_t begin = get_global_id(0) * each;\n"
    "    for (uint i = 0; i < each; i++) to[begin + i] = from[begin + i];\n"
    "}\n"
    "__kernel void read(__global const float16 *from, __global float16 *to, const uint each) {\n"
    "    const size_t begin = get_global_id(0) * each;\n"
    "    float16 a = from[begin], b = a, c = a, d = a;\n"
    "    for (uint i = 0; i < each; i += 4) {\n"
    "        a = from[begin + i] > a ? from[begin + i] : a;\n"
    "        b = from[begin + i + 1] > b ? from[begin + i + 1] : b;\n"
    "        c = from[begin + i + 2] > c ? from[begin + i + 2] : c;\n"
    "        d = from[begin + i + 3] > d ? from[begin + i + 3] : d;\n"
    "    }\n"
    "    to[get_global_id(0)] = fmax(fmax(a, b), fmax(c, d));\n"
    "}\n";

enum { MAX_PAIRS = 101, VECTORS_EACH = 1024 };

static clxent_context *ctx;
static cl_command_queue queue;

static void check(clxent_status status, const char *what)
{
    char text[512] = "";
    if (status == CLXENT_OK) return;
    clxent_context_last_error(ctx, text, sizeof text);
    fprintf(stderr, "%s: %s %s\n", what, clxent_status_string(status), text);
    exit(EXIT_FAILURE);
}

static double now(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

/* Seconds of one pass of kernel over all vectors. */
static double move_bytes(cl_kernel kernel, cl_mem from, cl_mem to, size_t vectors)
{
    const cl_uint each = VECTORS_EACH;
    const size_t groups = vectors / each, group = 1;
    const double start = now();
    clSetKernelArg(kernel, 0, sizeof from, &from);
    clSetKernelArg(kernel, 1, sizeof to, &to);
    clSetKernelArg(kernel, 2, sizeof each, &each);
    check(clEnqueueNDRangeKernel(queue, kernel, 1, NULL, &groups, &group, 0, NULL, NULL), "copy");
    check(clFinish(queue), "clFinish");
    return now() - start;
}

static double run(clxent_plan *plan, const clxent_args *args)
{
    const double start = now();
    check(clxent_enqueue(plan, queue, args, 0, NULL, NULL), "clxent_enqueue");
    check(clFinish(queue), "clFinish");
    return now() - start;
}

int main(int argc, char **argv)
{
    const int log2_logits = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 26;
    const int pairs = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 11;
    static const size_t class_counts[] = { 32, 256, 1024, 4096, 32768, 50257, 50304, 131072, 262144 };
    char name[256], driver[128];
    cl_platform_id platform;
    cl_device_id device;
    cl_int code;

    if (log2_logits < 20 || log2_logits > 30 || pairs < 1 || pairs > MAX_PAIRS) {
        fprintf(stderr, "copy_ratio: takes LOG2_LOGITS from 20 to 30 and PAIRS from 1 to %d\n", MAX_PAIRS);
        return 2;
    }
    const size_t logits = (size_t)1 << log2_logits;
    check(clGetPlatformIDs(1, &platform, NULL), "clGetPlatformIDs");
    check(clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &device, NULL), "clGetDeviceIDs");
    check(clGetDeviceInfo(device, CL_DEVICE_NAME, sizeof name, name, NULL), "clGetDeviceInfo");
    check(clGetDeviceInfo(device, CL_DRIVER_VERSION, sizeof driver, driver, NULL), "clGetDeviceInfo");
    cl_context cl = clCreateContext(NULL, 1, &device, NULL, NULL, &code);
    check(code, "clCreateContext");
    queue = clCreateCommandQueue(cl, device, 0, &code);
    check(code, "clCreateCommandQueue");
    check(clxent_context_create(&ctx, cl, device, NULL), "clxent_context_create");

    const char *text = source;
    cl_program program = clCreateProgramWithSource(cl, 1, &text, NULL, &code);
    check(code, "clCreateProgramWithSource");
    check(clBuildProgram(program, 1, &device, "-cl-std=CL1.2", NULL, NULL), "clBuildProgram");
    cl_kernel copy = clCreateKernel(program, "copy", &code), read = clCreateKernel(program, "read", &code);

    /* uniform in [-8, 8), and targets below the smallest class count */
    float *values = malloc(logits * sizeof *values);
    int32_t *targets = malloc(logits / class_counts[0] * sizeof *targets);
    if (values == NULL || targets == NULL) exit(EXIT_FAILURE);
    uint32_t random = 1;
    for (size_t i = 0; i < logits; i++) {
        random = random * 1664525u + 1013904223u;
        values[i] = (float)(random >> 8) / 1048576.0f - 8.0f;
    }
    for (size_t i = 0; i < logits / class_counts[0]; i++) {
        random = random * 1664525u + 1013904223u;
        targets[i] = (int32_t)(random >> 16) % (int32_t)class_counts[0];
    }
    const cl_mem_flags given = CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR;
    cl_mem x = clCreateBuffer(cl, given, logits * sizeof *values, values, &code);
    check(code, "logits");
    cl_mem y = clCreateBuffer(cl, CL_MEM_READ_WRITE, logits * sizeof *values, NULL, &code);
    check(code, "gradient");
    cl_mem t = clCreateBuffer(cl, given, logits / class_counts[0] * sizeof *targets, targets, &code);
    check(code, "targets");
    cl_mem loss = clCreateBuffer(cl, CL_MEM_READ_WRITE, sizeof(float), NULL, &code);
    check(code, "loss");
    free(values);
    free(targets);

    printf("%s, driver %s: f32, %zu MiB of logits, median of %d\n", name, driver, logits >> 18, pairs);
    printf("%8s %12s %18s %12s\n", "classes", "copy, GB/s", "loss + gradient", "loss");
    printf("%8s %12s %18s %12s\n", "", "", "/ copy", "/ read");
    for (size_t c = 0; c < sizeof class_counts / sizeof *class_counts; c++) {
        const size_t classes = class_counts[c], rows = logits / classes;
        if (rows == 0) continue;
        /* per element: where classes do not divide the logits, a little less is computed than copied */
        const double share = (double)(rows * classes) / (double)logits;
        double copies[MAX_PAIRS], both[MAX_PAIRS], alone[MAX_PAIRS];
        clxent_desc desc = CLXENT_DESC_INIT;
        clxent_plan *plan;
        desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
        desc.batch = rows;
        desc.seq = 1;
        desc.classes = classes;
        desc.target_type = CLXENT_TARGET_I32;
        check(clxent_plan_create(&plan, ctx, &desc), "clxent_plan_create");
        clxent_args args = CLXENT_ARGS_INIT;
        args.logits.mem = x;
        args.targets.mem = t;
        args.loss.mem = loss;
        args.gradient.mem = y;
        args.workspace.mem =
            clCreateBuffer(cl, CL_MEM_READ_WRITE, clxent_plan_workspace_size(plan), NULL, &code);
        check(code, "workspace");
        for (int i = -1; i < pairs; i++) { /* -1: drivers compile at the first launch */
            const int at = i < 0 ? 0 : i;
            args.outputs = 0;
            copies[at] = move_bytes(copy, x, y, logits / 16);
            both[at] = run(plan, &args) / share / copies[at];
            args.outputs = CLXENT_OUTPUT_LOSS;
            const double reads = move_bytes(read, x, y, logits / 16);
            alone[at] = run(plan, &args) / share / reads;
        }
        printf("%8zu %12.1f %18.2f %12.2f\n", classes, 8e-9 * (double)logits / median(copies, pairs),
               median(both, pairs), median(alone, pairs));
        clReleaseMemObject(args.workspace.mem);
        clxent_plan_destroy(plan);
    }

    clReleaseMemObject(x);
    clReleaseMemObject(y);
    clReleaseMemObject(t);
    clReleaseMemObject(loss);
    clReleaseKernel(copy);
    clReleaseKernel(read);
    clReleaseProgram(program);
    clxent_context_destroy(ctx);
    clReleaseCommandQueue(queue);
    clReleaseContext(cl);
    return EXIT_SUCCESS;
}
