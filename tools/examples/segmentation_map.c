/* SPDX-License-Identifier: MIT
 *
 * segmentation_map.c - loss and pixel accuracy of N,C,H,W logits: a class for each pixel of an image.
 *
 * The class axis is the second of four. clxent reads it where it is; nothing is transposed.
 */
#include "example.h"

#include <math.h>

enum { IMAGES = 2, CLASSES = 21, HEIGHT = 24, WIDTH = 32, PIXELS = HEIGHT * WIDTH, VOID = 255 };
static float logits[IMAGES][CLASSES][PIXELS];
static uint8_t targets[IMAGES][PIXELS];

/* The mean loss in double precision, one pixel after another. */
static double plain_loop(uint64_t *counted, uint64_t *correct)
{
    double sum = 0;
    *counted = *correct = 0;
    for (int image = 0; image < IMAGES; image++) {
        for (int pixel = 0; pixel < PIXELS; pixel++) {
            const int target = targets[image][pixel];
            if (target == VOID) continue;
            int best = 0;
            for (int class = 1; class < CLASSES; class ++)
                if (logits[image][class][pixel] > logits[image][best][pixel]) best = class;
            const double max = (double)logits[image][best][pixel];
            double sum_exp = 0;
            for (int class = 0; class < CLASSES; class ++)
                sum_exp += exp((double)logits[image][class][pixel] - max);
            sum += max - (double)logits[image][target][pixel] + log(sum_exp);
            *counted += 1;
            *correct += best == target;
        }
    }
    return sum / (double)*counted;
}

int main(void)
{
    /* Objects of 8 x 8 pixels. The line between two objects belongs to neither and does not count. */
    for (int image = 0; image < IMAGES; image++) {
        for (int pixel = 0; pixel < PIXELS; pixel++) {
            const int x = pixel % WIDTH, y = pixel / WIDTH, object = (image + x / 8 + y / 8 * 5) % CLASSES;
            targets[image][pixel] = (uint8_t)(x % 8 == 0 || y % 8 == 0 ? VOID : object);
            for (int class = 0; class < CLASSES; class ++)
                logits[image][class][pixel] = 3 * sample() + (class == object ? 3.0F : 0.0F);
        }
    }
    open_device();

    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_plan *plan;
    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_COUNTED;
    desc.batch = IMAGES * HEIGHT; /* batch * seq: a row for each pixel */
    desc.seq = WIDTH;
    desc.classes = CLASSES;
    desc.inner = PIXELS; /* elements from one class of a pixel to the next */
    desc.target_type = CLXENT_TARGET_U8;
    desc.ignore_index = VOID;
    check(clxent_plan_create(&plan, ctx, &desc), "clxent_plan_create");

    float loss;
    uint64_t correct, counted, want_correct, want_counted;
    clxent_args args = CLXENT_ARGS_INIT;
    args.logits.mem = buffer(sizeof logits, logits);
    args.targets.mem = buffer(sizeof targets, targets);
    args.loss.mem = buffer(sizeof loss, NULL);
    args.correct.mem = buffer(sizeof correct, NULL);
    args.counted.mem = buffer(sizeof counted, NULL);
    args.workspace.mem = buffer(clxent_plan_workspace_size(plan), NULL);
    check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "clxent_enqueue");
    read_buffer(args.loss.mem, sizeof loss, &loss);
    read_buffer(args.correct.mem, sizeof correct, &correct);
    read_buffer(args.counted.mem, sizeof counted, &counted);

    const double want = plain_loop(&want_counted, &want_correct);
    printf("loss            %.7f, in double precision %.7f\n", (double)loss, want);
    printf("pixel accuracy  %.4f (%llu of %llu; %llu of %d do not count)\n",
           (double)correct / (double)counted, (unsigned long long)correct, (unsigned long long)counted,
           (unsigned long long)(IMAGES * PIXELS - counted), IMAGES * PIXELS);

    clxent_plan_destroy(plan);
    close_device();
    /* The bounds in reference.h add up to less than 2^-19 of the loss here. */
    const bool right =
        fabs((double)loss - want) <= want / 524288 && correct == want_correct && counted == want_counted;
    return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
