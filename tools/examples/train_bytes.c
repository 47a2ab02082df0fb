/* SPDX-License-Identifier: MIT
 *
 * train_bytes.c - trains a language model of bytes: all on the device, from the text to the optimiser.
 *
 *     train_bytes [TEXT] [--steps N]
 *
 * The model predicts a byte from the 8 before it: an embedding of each, a hidden layer with tanh, and a linear layer whose
 * cross-entropy and three gradients are one clxent_enqueue(). Its other layers and Adam are in train_bytes.cl. It learns from
 * nine tenths of the text; the last tenth shows what it learned: of GPL-3 2.0861 nats per byte on PoCL, where a bigram model has
 * 2.7914. The gradients of the first steps are compared with differences of the loss, Adam with double precision.
 */
#define _XOPEN_SOURCE 700 /* clock_gettime, M_PI */
#include "example.h"

#include <math.h>
#include <string.h>
#include <time.h>

enum {
    CONTEXT = 8,
    WIDTH = 16,
    INPUTS = CONTEXT * WIDTH,
    UNITS = 128,
    CLASSES = 256,
    /* One buffer has all parameters: embeddings [CLASSES, WIDTH], the hidden layer with its bias [INPUTS + 1, UNITS], weight
     * [CLASSES, UNITS] and bias [CLASSES] of the linear layer. */
    DENSE_AT = CLASSES * WIDTH,
    WEIGHT_AT = DENSE_AT + (INPUTS + 1) * UNITS,
    BIAS_AT = WEIGHT_AT + CLASSES * UNITS,
    PARAMETERS = BIAS_AT + CLASSES,
    DEFAULT_STEPS = 1500,
    MAX_STEPS = 100000,
    WARM_UP = 50,
    CHECKED_STEPS = 5,
    REPORT = 100,         /* steps */
    HELD_OUT_ROWS = 4096, /* in one run; a batch has fewer */
    MAX_BYTES = 1 << 20,
};
#define DEFAULT_TEXT "/usr/share/common-licenses/GPL-3"
#define GOAL 2.2 /* nats per byte of the default text after the default steps */
static const double RATE = 0.008, BETA1 = 0.9, BETA2 = 0.99, EPSILON = 1e-8, DECAY = 0.2;

static unsigned char text[MAX_BYTES];
static uint32_t size, learned; /* bytes of the text, and those to learn from */
static uint32_t rows = 256;    /* of a batch */
static int steps = DEFAULT_STEPS;
static float current[PARAMETERS]; /* the parameters before the step, while steps are checked */

/* ---- On the device ----------------------------------------------------------------------------- */

static clxent_plan *plan;
static clxent_args args = CLXENT_ARGS_INIT;
static cl_mem parameters, gradients, losses; /* losses: [0] held out, [step] of each batch */
static cl_program program;
static cl_kernel pick, embed, forward, tanh_gradient, dense_gradient, input_gradient, embedding_gradient,
    adam;

static cl_mem floats(size_t count, float *data) { return buffer(count * sizeof(float), data); }

/* A kernel of the program whose first arguments are mems, up to a NULL. */
static cl_kernel kernel(const char *name, const cl_mem *mems)
{
    cl_int code;
    cl_kernel result = clCreateKernel(program, name, &code);
    check(code, name);
    for (cl_uint i = 0; mems[i] != NULL; i++)
        check(clSetKernelArg(result, i, sizeof mems[i], &mems[i]), name);
    return result;
}

/* A scalar argument of four bytes. */
static void set(cl_kernel to, cl_uint index, const void *value)
{
    check(clSetKernelArg(to, index, 4, value), "clSetKernelArg");
}

static void launch(cl_kernel what, size_t width, size_t height)
{
    const size_t grid[2] = { width, height };
    check(clEnqueueNDRangeKernel(queue, what, 2, NULL, grid, NULL, 0, NULL, NULL), "clEnqueueNDRangeKernel");
}

static void build_program(void)
{
    const char *source = (const char *)example_sources[0].text;
    cl_device_id device = clxent_context_device(ctx);
    char options[200], log[2000] = "";
    cl_int code;
    snprintf(options, sizeof options,
             "-DCONTEXT=%d -DWIDTH=%d -DUNITS=%d -DDENSE_AT=%d -DBETA1=%.9ff -DBETA2=%.9ff -DEPSILON=%.9ef",
             CONTEXT, WIDTH, UNITS, DENSE_AT, BETA1, BETA2, EPSILON);
    program = clCreateProgramWithSource(clxent_context_cl(ctx), 1, &source, &example_sources[0].size, &code);
    check(code, "clCreateProgramWithSource");
    code = clBuildProgram(program, 1, &device, options, NULL, NULL);
    clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, sizeof log, log, NULL);
    check(code, log);
}

/* The loss of the linear layer, and its gradients: of hidden [rows, UNITS], weight and bias. */
static void create_plan(void)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    desc.op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT |
                   CLXENT_OUTPUT_BIAS_GRADIENT;
    desc.batch = HELD_OUT_ROWS;
    desc.seq = 1;
    desc.classes = CLASSES;
    desc.features = UNITS;
    desc.has_bias = 1;
    desc.target_type = CLXENT_TARGET_U8;
    desc.use_ignore_index = 0;
    check(clxent_plan_create(&plan, ctx, &desc), "clxent_plan_create");
    args.targets.mem = buffer(HELD_OUT_ROWS, NULL);
    args.hidden.mem = floats(HELD_OUT_ROWS * UNITS, NULL);
    args.weight = (clxent_buffer){ parameters, WEIGHT_AT * sizeof(float) };
    args.bias = (clxent_buffer){ parameters, BIAS_AT * sizeof(float) };
    args.loss.mem = losses;
    args.hidden_gradient.mem = floats(HELD_OUT_ROWS * UNITS, NULL);
    args.weight_gradient = (clxent_buffer){ gradients, WEIGHT_AT * sizeof(float) };
    args.bias_gradient = (clxent_buffer){ gradients, BIAS_AT * sizeof(float) };
    args.workspace.mem = buffer(clxent_plan_workspace_size(plan), NULL);
}

static void create_model(void)
{
    static float zeros[PARAMETERS];
    parameters = floats(PARAMETERS, current);
    gradients = floats(PARAMETERS, NULL);
    losses = floats((size_t)steps + 1, NULL);
    create_plan();
    build_program();

    cl_mem bytes = buffer(size, text), positions = buffer(HELD_OUT_ROWS * sizeof(uint32_t), NULL);
    cl_mem inputs = floats(HELD_OUT_ROWS * INPUTS, NULL), from_inputs = floats(rows * INPUTS, NULL);
    cl_mem hidden = args.hidden.mem, from_hidden = args.hidden_gradient.mem;
    pick = kernel("train_rows", (cl_mem[]){ bytes, positions, args.targets.mem, NULL });
    embed = kernel("train_embed", (cl_mem[]){ bytes, positions, parameters, inputs, NULL });
    forward = kernel("train_hidden", (cl_mem[]){ parameters, inputs, hidden, NULL });
    tanh_gradient = kernel("train_tanh_gradient", (cl_mem[]){ hidden, from_hidden, NULL });
    dense_gradient = kernel("train_dense_gradient", (cl_mem[]){ inputs, from_hidden, gradients, NULL });
    set(dense_gradient, 3, &rows);
    input_gradient = kernel("train_input_gradient", (cl_mem[]){ parameters, from_hidden, from_inputs, NULL });
    embedding_gradient =
        kernel("train_embedding_gradient", (cl_mem[]){ bytes, positions, from_inputs, gradients, NULL });
    set(embedding_gradient, 4, &rows);
    adam = kernel("train_adam", (cl_mem[]){ gradients, floats(PARAMETERS, zeros), floats(PARAMETERS, zeros),
                                            parameters, NULL });
}

static void destroy_model(void)
{
    const cl_kernel all[] = {
        pick, embed, forward, tanh_gradient, dense_gradient, input_gradient, embedding_gradient, adam
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) clReleaseKernel(all[i]);
    clReleaseProgram(program);
    clxent_plan_destroy(plan);
}

/* Rows from position first on, or with a key count of them chosen by it; their loss becomes losses[to]. */
static void run_model(uint32_t first, uint32_t count, uint32_t key, uint32_t outputs, int to)
{
    const uint32_t num = key == 0 ? count : rows;
    set(pick, 3, &first);
    set(pick, 4, &count);
    set(pick, 5, &key);
    launch(pick, num, 1);
    launch(embed, CONTEXT, num);
    launch(forward, UNITS / 8, num);
    args.outputs = outputs;
    args.rows = num;
    args.loss.offset = (size_t)to * sizeof(float);
    check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "clxent_enqueue");
}

/* The step's learning rate: it rises over the first steps, then falls along a cosine. */
static double rate_of(int step)
{
    return RATE * fmin(1, (double)step / WARM_UP) * (0.5 + 0.5 * cos(M_PI * (step - 1) / steps));
}

/* What a batch is chosen by; never 0. */
static uint32_t key_of(int step) { return (uint32_t)step * rows; }

static void train(int step)
{
    const float rate = (float)(rate_of(step) / (1 - pow(BETA1, step)));
    const float root = (float)sqrt(1 / (1 - pow(BETA2, step)));
    const float keep = (float)(1 - rate_of(step) * DECAY);
    run_model(CONTEXT, learned - CONTEXT, key_of(step), 0, step);
    launch(tanh_gradient, rows * UNITS / 8, 1);
    launch(dense_gradient, UNITS / 8, INPUTS + 1);
    launch(input_gradient, INPUTS, rows);
    launch(embedding_gradient, CLASSES, 1);
    set(adam, 4, &rate);
    set(adam, 5, &root);
    set(adam, 6, &keep);
    launch(adam, PARAMETERS / 8, 1);
}

static double read_loss(int index)
{
    float loss;
    check(clEnqueueReadBuffer(queue, losses, CL_TRUE, (size_t)index * sizeof loss, sizeof loss, &loss, 0,
                              NULL, NULL),
          "clEnqueueReadBuffer");
    return (double)loss;
}

/* The mean over the bytes from learned to end. */
static double held_out_loss(uint32_t end)
{
    double sum = 0;
    for (uint32_t first = learned; first < end; first += HELD_OUT_ROWS) {
        const uint32_t count = end - first < HELD_OUT_ROWS ? end - first : HELD_OUT_ROWS;
        run_model(first, count, 0, CLXENT_OUTPUT_LOSS, 0);
        sum += count * read_loss(0);
    }
    return sum / (end - learned);
}

/* ---- The first steps are checked --------------------------------------------------------------- */

/* Parameters whose gradients come from different kernels: embeddings, hidden layer, its bias, weight, bias. */
enum { PARTS = 5 };
static const int part_at[PARTS + 1] = { 0, DENSE_AT, WEIGHT_AT - UNITS, WEIGHT_AT, BIAS_AT, PARAMETERS };

static float direction[PARAMETERS]; /* random, so that no parameter's gradient can be wrong unseen */

static void write_parameters(const float *values)
{
    check(clEnqueueWriteBuffer(queue, parameters, CL_TRUE, 0, sizeof current, values, 0, NULL, NULL),
          "clEnqueueWriteBuffer");
}

/* The loss of the step's batch where a part of the parameters lies so far along the direction. */
static double moved_loss(int step, int part, float distance)
{
    static float moved[PARAMETERS];
    memcpy(moved, current, sizeof moved);
    for (int i = part_at[part]; i < part_at[part + 1]; i++) moved[i] += distance * direction[i];
    write_parameters(moved);
    run_model(CONTEXT, learned - CONTEXT, key_of(step), CLXENT_OUTPUT_LOSS, 0);
    return read_loss(0);
}

/* The error of each part's gradient as a part of its length, the largest of them. */
static double gradient_error(int step, const float *gradient)
{
    const float distance = 0x1p-6F;
    double worst = 0;
    for (int part = 0; part < PARTS; part++) {
        const double rise = moved_loss(step, part, distance) - moved_loss(step, part, -distance);
        double slope = 0, square = 0;
        for (int i = part_at[part]; i < part_at[part + 1]; i++) {
            slope += (double)gradient[i] * (double)direction[i];
            square += (double)gradient[i] * (double)gradient[i];
        }
        const double error = fabs(rise / (2 * (double)distance) - slope) / sqrt(square);
        if (!(error <= worst)) worst = error; /* NaN too */
    }
    return worst;
}

/* Moves current by Adam in double precision. The largest difference to what the device made of it, as a part of the step's rate,
 * less the rounding of the parameter. */
static double adam_error(int step, const float *gradient, const float *got)
{
    static double mean[PARAMETERS], square[PARAMETERS];
    double worst = 0;
    for (int i = 0; i < PARAMETERS; i++) {
        const double g = (double)gradient[i], from = (double)current[i];
        mean[i] = BETA1 * mean[i] + (1 - BETA1) * g;
        square[i] = BETA2 * square[i] + (1 - BETA2) * g * g;
        const double divisor = sqrt(square[i] / (1 - pow(BETA2, step))) + EPSILON;
        const double move = mean[i] / (1 - pow(BETA1, step)) / divisor + DECAY * from;
        const double rounding = 0x1p-22 * fabs(from);
        const double error =
            (fabs((double)got[i] - (from - rate_of(step) * move)) - rounding) / rate_of(step);
        if (!(error <= worst)) worst = error;
    }
    return worst;
}

/* Checks what train(step) computed. */
static bool check_step(int step)
{
    static float gradient[PARAMETERS], got[PARAMETERS];
    read_buffer(gradients, sizeof gradient, gradient);
    read_buffer(parameters, sizeof got, got);
    const double of_gradient = gradient_error(step, gradient), of_adam = adam_error(step, gradient, got);
    const bool right = of_gradient < 0.01 && of_adam < 0.001;
    memcpy(current, got, sizeof current);
    write_parameters(current);
    printf("%5d  %8.6f  %9.6f  %9.6f%s\n", step, read_loss(step), of_gradient, of_adam,
           right ? "" : "  WRONG");
    return right;
}

/* ---- The program ------------------------------------------------------------------------------- */

/* Nats per byte that a bigram model of the learned part gives to the bytes from there to end: 0.01 is added to each count. */
static double bigram_loss(uint32_t end)
{
    static double counts[CLASSES][CLASSES], totals[CLASSES];
    double sum = 0;
    for (uint32_t i = 1; i < learned; i++) {
        counts[text[i - 1]][text[i]] += 1;
        totals[text[i - 1]] += 1;
    }
    for (uint32_t i = learned; i < end; i++)
        sum -= log((counts[text[i - 1]][text[i]] + 0.01) / (totals[text[i - 1]] + 0.01 * CLASSES));
    return sum / (end - learned);
}

/* Prints the mean loss of the steps after before, and returns that held out. */
static double report(int before, int step, uint32_t end)
{
    double sum = 0;
    for (int i = before + 1; i <= step; i++) sum += read_loss(i);
    const double held_out = held_out_loss(end);
    printf("%5d  %8.4f  %8.4f\n", step, sum / (step - before), held_out);
    fflush(stdout);
    return held_out;
}

static double seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void read_text(const char *path)
{
    FILE *from = fopen(path, "rb");
    size = from != NULL ? (uint32_t)fread(text, 1, sizeof text, from) : 0;
    if (from != NULL) fclose(from);
    learned = size - size / 10;
    if (size >= 1000) return;
    fprintf(stderr, "%s: cannot be read, or has fewer than 1000 bytes\n", path);
    exit(EXIT_FAILURE);
}

static void initialise(void)
{
    for (int i = 0; i < PARAMETERS; i++) {
        const bool is_bias = (i >= WEIGHT_AT - UNITS && i < WEIGHT_AT) || i >= BIAS_AT;
        const float scale = is_bias ? 0 : i < DENSE_AT ? 1 : i < WEIGHT_AT ? 0.15F : 0.05F;
        current[i] = scale * sample();
    }
    for (int i = 0; i < PARAMETERS; i++) direction[i] = sample();
}

int main(int argc, char **argv)
{
    const char *path = DEFAULT_TEXT;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc) steps = atoi(argv[++i]);
        else if (argv[i][0] != '-') path = argv[i];
        else steps = 0;
    }
    if (steps < 1 || steps > MAX_STEPS) {
        fprintf(stderr, "usage: %s [TEXT] [--steps N]\n", argv[0]);
        return 2;
    }
    read_text(path);
    uint32_t end = size;
    const bool is_small = getenv("CLXENT_TEST_SMALL") != NULL; /* for interpreters: only that it runs */
    if (is_small) {
        rows = 4;
        steps = 1;
        end = learned + rows;
    }
    const double bigram = bigram_loss(end);
    const double goal = steps == DEFAULT_STEPS && strcmp(path, DEFAULT_TEXT) == 0 ? GOAL : bigram;

    initialise();
    open_device();
    create_model();
    printf("text      %u bytes, the last %u held out\nmodel     %d parameters\n\n", size, size - learned,
           PARAMETERS);

    bool right = true;
    double held_out = 0;
    int reported = 0;
    const int checked = is_small ? 0 : steps < CHECKED_STEPS ? steps : CHECKED_STEPS;
    const double begun = seconds();
    if (checked > 0) printf(" step      loss  error of gradients, of Adam\n");
    for (int step = 1; step <= steps; step++) {
        train(step);
        if (step <= checked) right &= check_step(step);
        if (step == checked || is_small)
            printf("\n step  training  held out  nats per byte, before and after\n");
        if (step % REPORT != 0 && step != steps) continue;
        held_out = report(reported, step, end);
        reported = step;
    }
    printf("\nbigram    %.4f nats per byte held out\nmodel     %.4f, goal %.4f, after %.1f s\n", bigram,
           held_out, goal, seconds() - begun);
    destroy_model();
    close_device();
    return right && (is_small || held_out < goal) ? EXIT_SUCCESS : EXIT_FAILURE;
}
