/* SPDX-License-Identifier: MIT
 *
 * host_arrays.c - arrays in host memory, in one blocking call, without OpenCL code; and how it refuses a wrong target.
 *
 * clxent_run_host() makes plan, queue and buffers for each call, which costs more than a small batch. It is for results
 * that are wanted once, and for arrays that the device has no memory for.
 */
#include "example.h"

#include <math.h>

enum { ROWS = 300, IGNORED = 30, CLASSES = 50, WRONG_ROW = 123, WRONG_TARGET = CLASSES };

int main(void)
{
    static float logits[ROWS][CLASSES], gradient[ROWS][CLASSES];
    int64_t targets[ROWS];
    float loss;
    double mean = 0, worst = 0;
    for (int row = 0; row < ROWS; row++) {
        double sum_exp = 0;                                       /* logits below 4: exp() needs no maximum */
        targets[row] = row >= IGNORED ? row * 7 % CLASSES : -100; /* the first are ignored */
        for (int class = 0; class < CLASSES; class ++) {
            logits[row][class] = 4 * sample();
            sum_exp += exp((double)logits[row][class]);
        }
        if (targets[row] >= 0) mean += (log(sum_exp) - (double)logits[row][targets[row]]) / (ROWS - IGNORED);
    }
    check(clxent_context_create_default(&ctx, NULL, NULL), "clxent_context_create_default");

    clxent_desc desc = CLXENT_DESC_INIT; /* f32, int64_t targets, mean, ignore_index -100, ... */
    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = ROWS;
    desc.seq = 1;
    desc.classes = CLASSES;

    clxent_host_args args = CLXENT_HOST_ARGS_INIT;
    args.logits.data = logits;
    args.logits.size = sizeof logits;
    args.targets.data = targets;
    args.targets.size = sizeof targets;
    args.loss.data = &loss;
    args.loss.size = sizeof loss;
    args.gradient.data = gradient;
    args.gradient.size = sizeof gradient;
    args.max_chunk_bytes =
        sizeof logits / 4; /* at most a quarter of the rows at a time; no bit depends on it */
    check(clxent_run_host(ctx, &desc, &args), "clxent_run_host");

    for (int row = 0; row < ROWS; row++) {
        double sum = 0; /* of a gradient's row: 0 but for rounding */
        for (int class = 0; class < CLASSES; class ++) sum += (double)gradient[row][class];
        worst = fmax(worst, fabs(sum));
    }
    printf("loss %.6f, in double precision %.6f\nlargest sum of a row of the gradient %.1e\n", (double)loss,
           mean, worst);

    /* A target that is no class: an error that says where, and no result. */
    char text[256];
    const float untouched = loss;
    clxent_bad_targets bad;
    targets[WRONG_ROW] = WRONG_TARGET;
    args.bad_targets.data = &bad;
    args.bad_targets.size = sizeof bad;
    desc.outputs |= CLXENT_OUTPUT_BAD_TARGETS;
    const clxent_status status = clxent_run_host(ctx, &desc, &args);
    clxent_context_last_error(ctx, text, sizeof text);
    printf("%s: %s\n", clxent_status_string(status), text);
    const bool refused = status == CLXENT_ERROR_BAD_TARGET && bad.count == 1 && bad.first_row == WRONG_ROW &&
                         bad.value == WRONG_TARGET && loss == untouched;

    clxent_context_destroy(ctx);
    return fabs((double)loss - mean) < 1e-5 && worst < 1e-7 && refused ? EXIT_SUCCESS : EXIT_FAILURE;
}
