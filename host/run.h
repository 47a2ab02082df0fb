/* SPDX-License-Identifier: MIT
 *
 * run.h - one run of a plan: what arguments.c makes of the caller's arguments, and enqueue.c and linear.c launch.
 */
#ifndef CLXENT_RUN_H
#define CLXENT_RUN_H

#include "internal.h"
#include "parameters.h"

/* One call of clxent_enqueue_part(). */
typedef struct run {
    clxent_plan *plan;
    clxent_args args; /* complete */
    clxent_part part;
    uint32_t outputs;
    size_t rows;
    bool statistics_in;
    clxent_need *needs;    /* [CLXENT_TENSORS] */
    clxent_parameters p;   /* of the reductions: all rows of the [rows] buffers */
    clxent_parameters own; /* of the kernels between them: the rows of this part */
    /* the chain */
    cl_command_queue queue;
    bool out_of_order;
    cl_uint num_wait;
    const cl_event *wait;
    cl_event previous; /* of the latest launch, where the next or the caller needs it */
    bool launched;
    const char *failed; /* the OpenCL call that refused a launch */
} run;

/* ---- arguments.c --------------------------------------------------------------------------- */

/* What the run is by its arguments, before its buffers are looked at. */
clxent_status clxent_run_open(run *r, const clxent_args *args);
clxent_status clxent_run_check_queue(run *r);
clxent_status clxent_run_check_outputs(run *r);
/* The rows of the batch. */
clxent_status clxent_run_check_batch(const run *r, size_t *total);
/* The batch and the part of it that the caller's numbers name. */
clxent_status clxent_run_check_part(run *r);
/* Finds out what each tensor must be, checks the buffers, clears those that the run does not use, and fills the offsets
 * of r->p. */
clxent_status clxent_run_check_buffers(run *r);

/* Whether this part ends the batch, or the rows that the [rows] buffers hold. */
bool clxent_run_ends_batch(const run *r);
bool clxent_run_ends_span(const run *r);

cl_ulong *clxent_run_offset(clxent_parameters *p, clxent_tensor tensor);

/* ---- enqueue.c ----------------------------------------------------------------------------- */

/* Sets arguments one after the other; the first failure stays. */
typedef struct setter {
    cl_kernel kernel;
    cl_uint next;
    cl_int code;
} setter;

setter clxent_set_begin(cl_kernel kernel, size_t size, const void *parameters);
void clxent_set_bytes(setter *s, size_t size, const void *value);
void clxent_set_mem(setter *s, cl_mem mem); /* may be NULL */

/* The events that the next command of the chain waits for, and how many. */
cl_uint clxent_run_waits(const run *r, const cl_event **wait);
/* Puts one kernel behind the chain. Only the first waits for the caller's events; an out-of-order queue needs
 * an event between any two. */
clxent_status clxent_run_launch(run *r, const setter *s, size_t groups, size_t group, bool last,
                                cl_event *event);

#endif
