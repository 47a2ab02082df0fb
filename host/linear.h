/* SPDX-License-Identifier: MIT
 *
 * linear.h - what plan.c and enqueue.c ask of linear.c.
 */
#ifndef CLXENT_LINEAR_H
#define CLXENT_LINEAR_H

#include "run.h"

/* Makes plan->linear of a plan of CLXENT_OP_LINEAR_CROSS_ENTROPY, whose desc is complete, and sets its workspace_size.
 * tuning: of the loss; NULL: the table's. The plan destroys what there is after a failure too. */
clxent_status clxent_linear_create(clxent_plan *plan, const clxent_tuning *tuning);
void clxent_linear_destroy(struct clxent_linear *linear); /* NULL is fine */

/* As clxent_linear_create() without building anything: for plan->strategy alone, or plan->workspace_size. */
clxent_status clxent_linear_describe(clxent_plan *plan, const clxent_tuning *tuning);
clxent_status clxent_linear_measure(clxent_plan *plan, const clxent_tuning *tuning);

/* Launches a run whose arguments are checked. */
clxent_status clxent_linear_launch(run *r, cl_event *event);

clxent_plan *clxent_linear_loss(const struct clxent_linear *linear); /* the plan of the logits' loss */
size_t clxent_linear_loss_at(const struct clxent_linear *linear);    /* of its workspace, in the plan's */

/* Launches every kernel once with nothing to do, and waits; see clxent_plan_warm(). */
clxent_status clxent_linear_warm(run *r);

#endif
