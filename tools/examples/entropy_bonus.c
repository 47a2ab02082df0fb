/* SPDX-License-Identifier: MIT
 *
 * entropy_bonus.c - a policy gradient with an entropy bonus, in a forward and a backward run.
 *
 * The objective to minimise is the mean over rows (states of a game, say), each with the action that was chosen:
 *
 *     -advantage * p(action) / p_old(action) - BONUS * entropy + PENALTY * lse^2
 *
 * p_old is the probability at the time of the choice. The derivative by a row's loss depends on its p(action), so the
 * gradient comes from a second run, which starts from the statistics that the first one saved.
 */
#include "example.h"

#include <math.h>

enum { ROWS = 32, ACTIONS = 6, ELEMENTS = ROWS * ACTIONS };
static const double BONUS = 0.02, PENALTY = 0.001; /* the penalty keeps logits near 0 */
static int32_t actions[ROWS];
static double exact[ELEMENTS], advantage[ROWS], log_p_old[ROWS]; /* exact: the logits */

static double objective(void)
{
    double sum = 0;
    for (int row = 0; row < ROWS; row++) {
        const double *x = exact + row * ACTIONS;
        double sum_exp = 0, mean = 0; /* logits below 2: exp() needs no maximum */
        for (int action = 0; action < ACTIONS; action++) sum_exp += exp(x[action]);
        for (int action = 0; action < ACTIONS; action++) mean += exp(x[action]) / sum_exp * x[action];
        const double lse = log(sum_exp), log_p = x[actions[row]] - lse;
        sum += -advantage[row] * exp(log_p - log_p_old[row]) - BONUS * (lse - mean) + PENALTY * lse * lse;
    }
    return sum / ROWS;
}

int main(void)
{
    float logits[ELEMENTS], gradient[ELEMENTS];
    for (int i = 0; i < ELEMENTS; i++) exact[i] = logits[i] = 2 * sample();
    for (int row = 0; row < ROWS; row++) {
        actions[row] = row * 5 % ACTIONS;
        advantage[row] = (double)sample();
        log_p_old[row] = -1.8 + 0.3 * (double)sample();
    }
    open_device();

    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_plan *plan;
    const uint32_t forward =
        CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LSE | CLXENT_OUTPUT_ENTROPY | CLXENT_OUTPUT_STATISTICS;
    desc.outputs = forward | CLXENT_OUTPUT_GRADIENT;
    desc.batch = ROWS;
    desc.seq = 1;
    desc.classes = ACTIONS;
    desc.target_type = CLXENT_TARGET_I32;
    desc.reduction = CLXENT_REDUCTION_NONE; /* so that grad_output has a number for each row */
    desc.has_grad_entropy = desc.has_grad_lse = 1;
    check(clxent_plan_create(&plan, ctx, &desc), "clxent_plan_create");

    float losses[ROWS], entropy[ROWS], lse[ROWS];
    clxent_args args = CLXENT_ARGS_INIT;
    args.outputs = forward;
    args.logits.mem = buffer(sizeof logits, logits);
    args.targets.mem = buffer(sizeof actions, actions);
    args.losses.mem = buffer(sizeof losses, NULL);
    args.lse.mem = buffer(sizeof lse, NULL);
    args.entropy.mem = buffer(sizeof entropy, NULL);
    args.statistics.mem = buffer(clxent_plan_bytes(plan, "statistics"), NULL);
    args.workspace.mem = buffer(clxent_plan_workspace_size(plan), NULL);
    check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "forward");
    read_buffer(args.losses.mem, sizeof losses, losses);
    read_buffer(args.lse.mem, sizeof lse, lse);
    read_buffer(args.entropy.mem, sizeof entropy, entropy);

    /* The backward run needs the objective's derivatives by each row's loss (-log p(action)), entropy and lse. */
    float grad_output[ROWS], grad_entropy[ROWS], grad_lse[ROWS];
    double sum = 0;
    for (int row = 0; row < ROWS; row++) {
        const double weighted = advantage[row] * exp(-(double)losses[row] - log_p_old[row]);
        grad_output[row] = (float)(weighted / ROWS);
        grad_entropy[row] = (float)(-BONUS / ROWS);
        grad_lse[row] = (float)(2 * PENALTY * (double)lse[row] / ROWS);
        sum += -weighted - BONUS * (double)entropy[row] + PENALTY * (double)lse[row] * (double)lse[row];
    }
    args.outputs = CLXENT_OUTPUT_GRADIENT;
    args.grad_output.mem = buffer(sizeof grad_output, grad_output);
    args.grad_entropy.mem = buffer(sizeof grad_entropy, grad_entropy);
    args.grad_lse.mem = buffer(sizeof grad_lse, grad_lse);
    args.gradient.mem = buffer(sizeof gradient, NULL);
    check(clxent_enqueue(plan, queue, &args, 0, NULL, NULL), "backward");
    read_buffer(args.gradient.mem, sizeof gradient, gradient);

    /* Gradients reach 0.04 here: f32 keeps them within a few 1e-9. So are central differences of this step. */
    const double step = 1e-4;
    int close = 0;
    for (int i = 0; i < ELEMENTS; i++) {
        const double x = exact[i];
        exact[i] = x + step;
        const double above = objective();
        exact[i] = x - step;
        const double want = (above - objective()) / (2 * step);
        exact[i] = x;
        close += fabs((double)gradient[i] - want) <= 1e-7;
        if (i < ACTIONS)
            printf("gradient   %12.9f, by central differences %12.9f\n", (double)gradient[i], want);
    }
    const double want = objective();
    printf("gradient   %d of %d elements within 1e-7\n", close, ELEMENTS);
    printf("objective  %12.9f, in double precision %12.9f\n", sum / ROWS, want);

    clxent_plan_destroy(plan);
    close_device();
    return close == ELEMENTS && fabs(sum / ROWS - want) <= 1e-6 ? EXIT_SUCCESS : EXIT_FAILURE;
}
