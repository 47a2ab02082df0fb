/* SPDX-License-Identifier: MIT
 *
 * quickstart.c - mean cross-entropy loss and gradient of a [2, 4] batch on the first GPU, else the first device.
 *
 *     cc quickstart.c $(pkg-config --cflags --libs clxent) -o quickstart      # with example.h beside quickstart.c
 */
#include "example.h"

int main(void)
{
    float logits[2][4] = { { 1, 3, 5, 7 }, { 1, -9, 4, 8 } }, gradient[2][4], loss;
    int32_t targets[2] = { 3, 1 };
    open_device();

    /* Once: what is computed. A plan validates, chooses and compiles; keep it for all steps. */
    clxent_desc desc = CLXENT_DESC_INIT; /* f32, mean, ignore_index -100, ... */
    clxent_plan *plan;
    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = 1;
    desc.seq = 2;
    desc.classes = 4;
    desc.target_type = CLXENT_TARGET_I32;
    check(clxent_plan_create(&plan, ctx, &desc), "clxent_plan_create");

    /* Every step: name the buffers, enqueue. Nothing is compiled, allocated or waited for here. */
    clxent_args args = CLXENT_ARGS_INIT;
    args.logits.mem = buffer(sizeof logits, logits);
    args.targets.mem = buffer(sizeof targets, targets);
    args.loss.mem = buffer(sizeof loss, NULL);
    args.gradient.mem = buffer(sizeof gradient, NULL);
    args.workspace.mem = buffer(clxent_plan_workspace_size(plan), NULL);
    check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "clxent_enqueue");

    read_buffer(args.loss.mem, sizeof loss, &loss);
    read_buffer(args.gradient.mem, sizeof gradient, gradient);
    printf("loss      %.6f\n", (double)loss);
    for (int row = 0; row < 2; row++) {
        printf("gradient ");
        for (int class = 0; class < 4; class ++) printf(" %12.9f", (double)gradient[row][class]);
        printf("\n");
    }

    clxent_plan_destroy(plan);
    close_device();
    return EXIT_SUCCESS;
}
