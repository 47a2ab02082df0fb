/* SPDX-License-Identifier: MIT
 *
 * test_async.c - clxent_enqueue() behaves as a clEnqueue* call: it returns at once though its wait list is not
 * complete, does nothing before that is, chains through events on in-order and out-of-order queues, and its
 * event is all that one needs to wait for.
 */
#include "support.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 3, CLASSES = 5 };

/* A loss + gradient plan and its buffers. */
typedef struct job {
    problem p;
    clxent_plan *plan;
    clxent_args args;
    double loss, loss_bound, gradient[ROWS * CLASSES], gradient_bound[ROWS * CLASSES];
} job;

static cl_mem make_buffer(size_t bytes, const void *data)
{
    cl_int code;
    unsigned char *fill = take_memory(bytes + 1);
    memset(fill, 0xFF, bytes + 1);
    if (data != NULL) memcpy(fill, data, bytes);
    cl_mem mem = clCreateBuffer(device.cl, CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR, bytes + 1, fill, &code);
    cr_assert(code == CL_SUCCESS, "clCreateBuffer: %d", code);
    free(fill);
    return mem;
}

static void make_job(job *j, uint32_t target_type)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    const clxent_args none = CLXENT_ARGS_INIT;
    char text[256] = "";

    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = ROWS;
    desc.seq = 1;
    desc.classes = CLASSES;
    desc.target_type = target_type;
    make_problem(&j->p, &desc, FILL_PLAIN, 7);
    want.loss = &j->loss;
    want.loss_bound = &j->loss_bound;
    want.gradient = j->gradient;
    want.gradient_bound = j->gradient_bound;
    cr_assert(clxent_reference_run(&desc, &j->p.args, &want, text, sizeof text) == CLXENT_OK, "%s", text);

    cr_assert(clxent_plan_create(&j->plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    j->args = none;
    j->args.logits.mem = make_buffer(j->p.args.logits.size, j->p.args.logits.data);
    j->args.targets.mem = make_buffer(j->p.args.targets.size, j->p.args.targets.data);
    j->args.loss.mem = make_buffer(sizeof(float), NULL);
    j->args.gradient.mem = make_buffer(ROWS * CLASSES * sizeof(float), NULL);
    j->args.workspace.mem = make_buffer(clxent_plan_workspace_size(j->plan), NULL);
}

static void free_job(job *j)
{
    clReleaseMemObject(j->args.logits.mem);
    clReleaseMemObject(j->args.targets.mem);
    clReleaseMemObject(j->args.loss.mem);
    clReleaseMemObject(j->args.gradient.mem);
    clReleaseMemObject(j->args.workspace.mem);
    clxent_plan_destroy(j->plan);
    free_problem(&j->p);
}

/* Reads through another queue, ordered by event alone; no clFinish() anywhere. */
static void check_results(const job *j, cl_event done)
{
    float loss, gradient[ROWS * CLASSES];
    double got[ROWS * CLASSES], got_loss;
    cl_int code;
    cl_command_queue reader = clCreateCommandQueue(device.cl, device.id, 0, &code);

    cr_assert(code == CL_SUCCESS);
    code = clEnqueueReadBuffer(reader, j->args.loss.mem, CL_TRUE, 0, sizeof loss, &loss, 1, &done, NULL);
    cr_assert(code == CL_SUCCESS, "reading loss: %d", code);
    code = clEnqueueReadBuffer(reader, j->args.gradient.mem, CL_TRUE, 0, sizeof gradient, gradient, 1, &done,
                               NULL);
    cr_assert(code == CL_SUCCESS, "reading gradient: %d", code);
    for (int i = 0; i < ROWS * CLASSES; i++) got[i] = gradient[i];
    got_loss = loss;
    cr_assert(compare(&got_loss, &j->loss, &j->loss_bound, 1).bad == 0, "loss: got %g, want %g", got_loss,
              j->loss);
    const close_report report = compare(got, j->gradient, j->gradient_bound, ROWS * CLASSES);
    cr_assert(report.bad == 0, "gradient[%zu]: got %g, want %g", report.first, got[report.first],
              j->gradient[report.first]);
    clReleaseCommandQueue(reader);
}

/* So that what may run, runs. Oclgrind runs everything inside clFlush() and would wait there for a gate that
 * only the test opens. */
static void flush(cl_command_queue queue)
{
    if (!small_run()) clFlush(queue);
}

static bool is_complete(cl_event event)
{
    cl_int status = CL_QUEUED;
    clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof status, &status, NULL);
    cr_assert(status >= 0, "the run failed on the device: %d", status);
    return status == CL_COMPLETE;
}

TestSuite(async, .init = open_device, .fini = close_device, .timeout = 60);

/* Would hang, and so time out, if enqueue waited; the logits come only when it has returned. */
static void gate_opens_after_enqueue(cl_command_queue queue)
{
    cl_int code;
    cl_event done = NULL, written = NULL;
    job j;

    make_job(&j, CLXENT_TARGET_I32);
    const float nothing[ROWS * CLASSES] = { 0 };
    code = clEnqueueWriteBuffer(device.queue, j.args.logits.mem, CL_TRUE, 0, sizeof nothing, nothing, 0, NULL,
                                NULL);
    cr_assert(code == CL_SUCCESS);
    cl_event gate = clCreateUserEvent(device.cl, &code);
    cr_assert(code == CL_SUCCESS);

    const clxent_status status = clxent_enqueue(j.plan, queue, &j.args, 1, &gate, &done);
    cr_assert(status == CLXENT_OK, "%s: %s", clxent_status_string(status), last_error());
    flush(queue);
    cr_assert(!is_complete(done), "the run did not wait for its wait list");

    code = clEnqueueWriteBuffer(device.queue, j.args.logits.mem, CL_FALSE, 0, j.p.args.logits.size,
                                j.p.args.logits.data, 0, NULL, &written);
    cr_assert(code == CL_SUCCESS);
    cr_assert(clWaitForEvents(1, &written) == CL_SUCCESS);
    cr_assert(!is_complete(done), "the run did not wait for its wait list");
    cr_assert(clSetUserEventStatus(gate, CL_COMPLETE) == CL_SUCCESS);
    check_results(&j, done);
    cr_assert(is_complete(done));

    clReleaseEvent(written);
    clReleaseEvent(gate);
    clReleaseEvent(done);
    free_job(&j);
}

Test(async, enqueue_returns_before_its_wait_list_in_order)
{
    cl_int code;
    cl_command_queue queue = clCreateCommandQueue(device.cl, device.id, 0, &code);
    cr_assert(code == CL_SUCCESS);
    gate_opens_after_enqueue(queue);
    clReleaseCommandQueue(queue);
}

Test(async, enqueue_returns_before_its_wait_list_out_of_order)
{
    cl_command_queue queue = make_out_of_order_queue();
    if (queue == NULL) cr_skip("the device has no out-of-order queue");
    gate_opens_after_enqueue(queue);
    clReleaseCommandQueue(queue);
}

/* logits -> gradient in the same buffer -> the next run's logits: each step depends on the one before, and
 * events alone say so. The expected values come from running the steps one at a time. */
static void chain(cl_command_queue queue, bool wait_each, float *result)
{
    enum { STEPS = 8 };
    cl_event events[STEPS + 1];
    cl_int code;
    job j;

    make_job(&j, CLXENT_TARGET_I64);
    clReleaseMemObject(j.args.gradient.mem);
    j.args.gradient = j.args.logits;
    events[0] = clCreateUserEvent(device.cl, &code);
    cr_assert(code == CL_SUCCESS);
    if (wait_each) clSetUserEventStatus(events[0], CL_COMPLETE);
    for (int step = 0; step < STEPS; step++) {
        const clxent_status status =
            clxent_enqueue(j.plan, queue, &j.args, 1, &events[step], &events[step + 1]);
        cr_assert(status == CLXENT_OK, "step %d: %s: %s", step, clxent_status_string(status), last_error());
        if (wait_each) cr_assert(clWaitForEvents(1, &events[step + 1]) == CL_SUCCESS);
    }
    flush(queue);
    if (!wait_each) clSetUserEventStatus(events[0], CL_COMPLETE);
    code = clEnqueueReadBuffer(device.queue, j.args.logits.mem, CL_TRUE, 0, ROWS * CLASSES * sizeof(float),
                               result, 1, &events[STEPS], NULL);
    cr_assert(code == CL_SUCCESS, "reading the result: %d", code);
    for (int step = 0; step <= STEPS; step++) clReleaseEvent(events[step]);
    clRetainMemObject(j.args.logits.mem); /* named twice */
    free_job(&j);
}

Test(async, runs_chain_through_events)
{
    float one_at_a_time[ROWS * CLASSES], in_order[ROWS * CLASSES], out_of_order[ROWS * CLASSES];
    cl_command_queue queue = make_out_of_order_queue();

    chain(device.queue, true, one_at_a_time);
    for (int i = 0; i < ROWS * CLASSES; i++)
        cr_assert(fabsf(one_at_a_time[i]) <= 1, "[%d] is no gradient", i);
    chain(device.queue, false, in_order);
    cr_assert(memcmp(in_order, one_at_a_time, sizeof in_order) == 0, "an in-order queue gives other bits");
    if (queue == NULL) return;
    chain(queue, false, out_of_order);
    cr_assert(memcmp(out_of_order, one_at_a_time, sizeof out_of_order) == 0,
              "an out-of-order queue gives other bits");
    clReleaseCommandQueue(queue);
}

/* Several events at once: the run waits for the last of them. */
Test(async, every_event_of_the_wait_list_counts)
{
    cl_event gates[3], done;
    cl_int code;
    job j;

    make_job(&j, CLXENT_TARGET_I32);
    for (int i = 0; i < 3; i++) gates[i] = clCreateUserEvent(device.cl, &code);
    cr_assert(clxent_enqueue(j.plan, device.queue, &j.args, 3, gates, &done) == CLXENT_OK, "%s",
              last_error());
    flush(device.queue);
    for (int i = 0; i < 3; i++) {
        cr_assert(!is_complete(done), "the run waited for %d of 3 events", i);
        clSetUserEventStatus(gates[i], CL_COMPLETE);
        clReleaseEvent(gates[i]);
    }
    check_results(&j, done);
    clReleaseEvent(done);
    free_job(&j);
}

Test(async, without_an_event_the_queue_orders)
{
    cl_event marker;
    job j;

    make_job(&j, CLXENT_TARGET_I32);
    cr_assert(clxent_enqueue(j.plan, device.queue, &j.args, 0, NULL, NULL) == CLXENT_OK, "%s", last_error());
    cr_assert(clEnqueueMarkerWithWaitList(device.queue, 0, NULL, &marker) == CL_SUCCESS);
    check_results(&j, marker);
    clReleaseEvent(marker);
    free_job(&j);
}

/* No rows is a run like any other: it waits, and its event completes. */
static void run_no_rows(cl_command_queue queue)
{
    cl_event gate, done = NULL;
    cl_int code;
    float loss = -1, gradient[ROWS * CLASSES];
    job j;

    make_job(&j, CLXENT_TARGET_I32);
    j.args.rows = 0;
    gate = clCreateUserEvent(device.cl, &code);
    cr_assert(clxent_enqueue(j.plan, queue, &j.args, 1, &gate, &done) == CLXENT_OK, "%s", last_error());
    flush(queue);
    cr_assert(!is_complete(done), "a run of no rows did not wait for its wait list");
    clSetUserEventStatus(gate, CL_COMPLETE);
    cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
    clEnqueueReadBuffer(device.queue, j.args.loss.mem, CL_TRUE, 0, sizeof loss, &loss, 1, &done, NULL);
    cr_assert(isnan(loss), "the mean of no rows is %g", loss);
    clEnqueueReadBuffer(device.queue, j.args.gradient.mem, CL_TRUE, 0, sizeof gradient, gradient, 1, &done,
                        NULL);
    for (size_t i = 0; i < sizeof gradient; i++) {
        cr_assert(((unsigned char *)gradient)[i] == 0xFF, "byte %zu of the gradient was written", i);
    }
    clReleaseEvent(gate);
    clReleaseEvent(done);
    free_job(&j);
}

Test(async, no_rows_wait_and_complete_in_order) { run_no_rows(device.queue); }

Test(async, no_rows_wait_and_complete_out_of_order)
{
    cl_command_queue queue = make_out_of_order_queue();
    if (queue == NULL) cr_skip("the device has no out-of-order queue");
    run_no_rows(queue);
    clReleaseCommandQueue(queue);
}

/* Whoever enqueued may drop everything: the commands hold what they need. */
Test(async, buffers_may_be_released_while_the_run_waits)
{
    cl_event gate, done;
    cl_int code;
    job j;

    make_job(&j, CLXENT_TARGET_I32);
    gate = clCreateUserEvent(device.cl, &code);
    cr_assert(clxent_enqueue(j.plan, device.queue, &j.args, 1, &gate, &done) == CLXENT_OK, "%s",
              last_error());
    flush(device.queue);
    clRetainMemObject(j.args.loss.mem);
    clRetainMemObject(j.args.gradient.mem);
    const clxent_args kept = j.args;
    clReleaseMemObject(j.args.logits.mem);
    clReleaseMemObject(j.args.targets.mem);
    clReleaseMemObject(j.args.workspace.mem);
    clxent_plan_destroy(j.plan);
    clSetUserEventStatus(gate, CL_COMPLETE);
    check_results(&j, done);
    clReleaseMemObject(kept.loss.mem);
    clReleaseMemObject(kept.loss.mem);
    clReleaseMemObject(kept.gradient.mem);
    clReleaseMemObject(kept.gradient.mem);
    clReleaseEvent(gate);
    clReleaseEvent(done);
    free_problem(&j.p);
}
