/* SPDX-License-Identifier: MIT
 *
 * gradient_accumulation.c - a batch too large for one run, in micro-batches of any size.
 *
 * Loss and gradient have the bits of one run of the whole batch. The program runs both and compares them.
 */
#include "example.h"

#include <string.h>

enum { ROWS = 24, CLASSES = 300, PARTS = 4, LARGEST_PART = 10, IGNORED = -100 };
static const size_t part_rows[PARTS] = { LARGEST_PART, 1, 8, 5 };

static bool same_bits(const void *a, const void *b, size_t size) { return memcmp(a, b, size) == 0; }

int main(void)
{
    static float logits[ROWS][CLASSES], whole_gradient[ROWS][CLASSES], gradient[ROWS][CLASSES];
    float losses[ROWS], whole_loss, loss;
    int32_t targets[ROWS];
    for (int row = 0; row < ROWS; row++) {
        targets[row] = row % 5 == 4 || row > 20 ? IGNORED : row * 7; /* such as the padding of short texts */
        for (int class = 0; class < CLASSES; class ++) logits[row][class] = 3 * sample();
    }
    open_device();

    clxent_desc desc = CLXENT_DESC_INIT; /* a mean over the rows that are not ignored */
    clxent_plan *plan;
    desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = ROWS;
    desc.seq = 1;
    desc.classes = CLASSES;
    desc.ignore_index = IGNORED;
    desc.target_type = CLXENT_TARGET_I32;
    check(clxent_plan_create(&plan, ctx, &desc), "clxent_plan_create");

    /* The whole batch in one run. */
    clxent_args args = CLXENT_ARGS_INIT;
    args.logits.mem = buffer(sizeof logits, logits);
    args.targets.mem = buffer(sizeof targets, targets);
    args.losses.mem = buffer(sizeof losses, NULL);
    args.loss.mem = buffer(sizeof loss, NULL);
    args.gradient.mem = buffer(sizeof gradient, NULL);
    args.workspace.mem = buffer(clxent_plan_workspace_size(plan), NULL);
    check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "clxent_enqueue");
    read_buffer(args.loss.mem, sizeof whole_loss, &whole_loss);
    read_buffer(args.gradient.mem, sizeof whole_gradient, whole_gradient);

    /* In parts. A mean divides every gradient by the number of rows that count in the whole batch. This number comes
     * first: it depends on the targets alone, which are small and known from the beginning. */
    args.total_rows = ROWS;
    args.computed_denominator.mem = buffer(sizeof(float), NULL);
    check(clxent_enqueue_denominator(plan, queue, &args, 0, NULL, NULL), "clxent_enqueue_denominator");
    args.denominator = args.computed_denominator;
    args.computed_denominator.mem = NULL; /* parts only read it */

    /* Buffers with one number for each row hold the whole batch; logits and gradient hold one part. */
    const size_t row_size = sizeof logits[0];
    args.losses.mem = buffer(sizeof losses, NULL);
    args.loss.mem = buffer(sizeof loss, NULL);
    args.logits.mem = buffer(LARGEST_PART * row_size, NULL);
    args.gradient.mem = buffer(LARGEST_PART * row_size, NULL);
    for (int i = 0; i < PARTS; i++, args.first_row += args.rows) {
        args.rows = part_rows[i];
        args.part = i == 0 ? CLXENT_PART_FIRST : i + 1 < PARTS ? CLXENT_PART_MIDDLE : CLXENT_PART_LAST;
        check(clEnqueueWriteBuffer(queue, args.logits.mem, CL_FALSE, 0, args.rows * row_size,
                                   logits[args.first_row], 0, NULL, NULL),
              "clEnqueueWriteBuffer");
        check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "clxent_enqueue");
        /* Here the backward pass of a model adds to the gradients of its weights. */
        check(clEnqueueReadBuffer(queue, args.gradient.mem, CL_FALSE, 0, args.rows * row_size,
                                  gradient[args.first_row], 0, NULL, NULL),
              "clEnqueueReadBuffer");
    }
    read_buffer(args.losses.mem, sizeof losses, losses);
    read_buffer(args.loss.mem, sizeof loss, &loss);

    /* Without the denominator, a part with few rows that count would weigh as much as the others. */
    double mean_of_means = 0;
    for (size_t i = 0, row = 0; i < PARTS; i++) {
        double sum = 0, counted = 0;
        for (const size_t end = row + part_rows[i]; row < end; row++) {
            sum += (double)losses[row];
            counted += targets[row] != IGNORED;
        }
        mean_of_means += sum / counted / PARTS;
    }

    const bool same_loss = same_bits(&loss, &whole_loss, sizeof loss);
    const bool same_gradient = same_bits(gradient, whole_gradient, sizeof gradient);
    printf("loss in one run            %.9f\n", (double)whole_loss);
    printf("loss in %d parts            %.9f, %s\n", PARTS, (double)loss,
           same_loss ? "the same bits" : "DIFFERENT");
    printf("gradient in %d parts        %s\n", PARTS, same_gradient ? "the same bits" : "DIFFERENT");
    printf("the mean of %d means        %.9f: wrong, because the parts are uneven\n", PARTS, mean_of_means);

    clxent_plan_destroy(plan);
    close_device();
    return same_loss && same_gradient ? EXIT_SUCCESS : EXIT_FAILURE;
}
