/* SPDX-License-Identifier: MIT
 *
 * test_async.c - clxent_enqueue() behaves as a clEnqueue* call: it returns at once though its wait list is not
 * complete, does nothing before that is, chains through events on in-order and out-of-order queues, and its
 * event is all that one needs to wait for. Threads: test_threads.c.
 */
#include "support.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* As many features as classes: hidden states and their gradient are as large as logits and theirs. */
enum { ROWS = 3, CLASSES = 5, FEATURES = CLASSES };

/* What a plan of either operation reads a row of, and the gradient it writes. */
typedef struct kind {
    uint32_t op, target_type;
    int input, gradient;
} kind;
static const kind kinds[] = {
    { CLXENT_OP_CROSS_ENTROPY, CLXENT_TARGET_I32, TENSOR_LOGITS, TENSOR_GRADIENT },
    { CLXENT_OP_LINEAR_CROSS_ENTROPY, CLXENT_TARGET_I64, TENSOR_HIDDEN, TENSOR_HIDDEN_GRADIENT },
};

/* A loss + gradient plan and its buffers. */
typedef struct job {
    const kind *of;
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

static uint32_t both_of(const kind *of) { return CLXENT_OUTPUT_LOSS | 1u << (of->gradient - FIRST_OUTPUT); }

static clxent_desc desc_for(const kind *of)
{
    clxent_desc desc = make_desc(both_of(of), CLXENT_F32, ROWS, 1, CLASSES);
    desc.op = of->op;
    desc.features = of->op == CLXENT_OP_LINEAR_CROSS_ENTROPY ? FEATURES : 0;
    desc.target_type = of->target_type;
    return desc;
}

/* Buffers for loss and gradient of p. */
static void fill_args(clxent_args *args, const kind *of, const clxent_plan *plan, const problem *p)
{
    clxent_args_init(args);
    for (int t = 0; t < FIRST_OUTPUT; t++) {
        const clxent_output *array = array_of(&p->args, t);
        if (array->data != NULL) buffer_of(args, t)->mem = make_buffer(array->size, array->data);
    }
    args->loss.mem = make_buffer(sizeof(float), NULL);
    buffer_of(args, of->gradient)->mem = make_buffer(ROWS * CLASSES * sizeof(float), NULL);
    args->workspace.mem = make_buffer(clxent_plan_workspace_size(plan), NULL);
}

static void release_args(clxent_args *args)
{
    for (int t = 0; t < TENSORS; t++)
        if (buffer_of(args, t)->mem != NULL) clReleaseMemObject(buffer_of(args, t)->mem);
    clReleaseMemObject(args->workspace.mem);
}

static void make_job(job *j, const kind *of)
{
    const clxent_desc desc = desc_for(of);
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    char text[256] = "";

    j->of = of;
    make_problem(&j->p, &desc, FILL_PLAIN, 7);
    want.loss = &j->loss;
    want.loss_bound = &j->loss_bound;
    if (of->op == CLXENT_OP_CROSS_ENTROPY) {
        want.gradient = j->gradient;
        want.gradient_bound = j->gradient_bound;
    } else {
        want.hidden_gradient = j->gradient;
        want.hidden_gradient_bound = j->gradient_bound;
    }
    cr_assert(clxent_reference_run(&desc, &j->p.args, &want, text, sizeof text) == CLXENT_OK, "%s", text);

    cr_assert(clxent_plan_create(&j->plan, device.ctx, &desc) == CLXENT_OK, "%s", last_error());
    fill_args(&j->args, of, j->plan, &j->p);
}

static void free_job(job *j)
{
    release_args(&j->args);
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
    clxent_args args = j->args;
    const cl_mem of_gradient = buffer_of(&args, j->of->gradient)->mem;
    code = clEnqueueReadBuffer(reader, of_gradient, CL_TRUE, 0, sizeof gradient, gradient, 1, &done, NULL);
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

static cl_event make_gate(void)
{
    cl_int code;
    cl_event gate = clCreateUserEvent(device.cl, &code);
    cr_assert(code == CL_SUCCESS, "clCreateUserEvent: %d", code);
    return gate;
}

static cl_event enqueue(const job *j, cl_command_queue queue, cl_uint num_wait, const cl_event *wait)
{
    cl_event done = NULL;
    const clxent_status status = clxent_enqueue(j->plan, queue, &j->args, num_wait, wait, &done);
    cr_assert(status == CLXENT_OK, "%s: %s", clxent_status_string(status), last_error());
    return done;
}

static bool is_complete(cl_event event)
{
    cl_int status = CL_QUEUED;
    clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof status, &status, NULL);
    cr_assert(status >= 0, "the run failed on the device: %d", status);
    return status == CL_COMPLETE;
}

TestSuite(async, .init = open_device, .fini = close_device);

/* Would hang, and so time out, if enqueue waited; the logits come only when it has returned. */
static void gate_opens_after_enqueue(cl_command_queue queue, const kind *of)
{
    cl_int code;
    cl_event written = NULL;
    job j;

    make_job(&j, of);
    const float nothing[ROWS * CLASSES] = { 0 };
    const clxent_output *input = array_of(&j.p.args, of->input);
    const cl_mem mem = buffer_of(&j.args, of->input)->mem;
    code = clEnqueueWriteBuffer(device.queue, mem, CL_TRUE, 0, sizeof nothing, nothing, 0, NULL, NULL);
    cr_assert(code == CL_SUCCESS);
    cl_event gate = make_gate(), done = enqueue(&j, queue, 1, &gate);
    flush(queue);
    cr_assert(!is_complete(done), "the run did not wait for its wait list");

    code = clEnqueueWriteBuffer(device.queue, mem, CL_FALSE, 0, input->size, input->data, 0, NULL, &written);
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

/* Queues of the check's own, in-order and, where the device has them, out-of-order; each kind of plan. */
static void on_each_queue(void (*check)(cl_command_queue queue, const kind *of))
{
    cl_int code;
    cl_command_queue queues[] = { clCreateCommandQueue(device.cl, device.id, 0, &code),
                                  make_out_of_order_queue() };

    for (int i = 0; i < 2; i++) {
        if (queues[i] == NULL) continue;
        for (size_t k = 0; k < COUNT(kinds); k++) check(queues[i], &kinds[k]);
        clReleaseCommandQueue(queues[i]);
    }
}

Test(async, enqueue_returns_before_its_wait_list) { on_each_queue(gate_opens_after_enqueue); }

/* logits -> gradient in the same buffer -> the next run's logits: each step depends on the one before, and
 * events alone say so. The expected values come from running the steps one at a time. */
static void chain(cl_command_queue queue, bool wait_each, float *result)
{
    enum { STEPS = 8 };
    cl_event events[STEPS + 1];
    cl_int code;
    job j;

    make_job(&j, &kinds[0]);
    clReleaseMemObject(j.args.gradient.mem);
    j.args.gradient = j.args.logits;
    events[0] = make_gate();
    if (wait_each) clSetUserEventStatus(events[0], CL_COMPLETE);
    for (int step = 0; step < STEPS; step++) {
        events[step + 1] = enqueue(&j, queue, 1, &events[step]);
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
    cl_event gates[3];
    job j;

    make_job(&j, &kinds[0]);
    for (int i = 0; i < 3; i++) gates[i] = make_gate();
    cl_event done = enqueue(&j, device.queue, 3, gates);
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

    make_job(&j, &kinds[0]);
    cr_assert(clxent_enqueue(j.plan, device.queue, &j.args, 0, NULL, NULL) == CLXENT_OK, "%s", last_error());
    cr_assert(clEnqueueMarkerWithWaitList(device.queue, 0, NULL, &marker) == CL_SUCCESS);
    check_results(&j, marker);
    clReleaseEvent(marker);
    free_job(&j);
}

/* No rows is a run like any other: it waits, and its event completes. */
static void run_no_rows(cl_command_queue queue, const kind *of)
{
    float loss = -1, gradient[ROWS * CLASSES];
    job j;

    make_job(&j, of);
    j.args.rows = 0;
    cl_event gate = make_gate(), done = enqueue(&j, queue, 1, &gate);
    flush(queue);
    cr_assert(!is_complete(done), "a run of no rows did not wait for its wait list");
    clSetUserEventStatus(gate, CL_COMPLETE);
    cr_assert(clWaitForEvents(1, &done) == CL_SUCCESS);
    clEnqueueReadBuffer(device.queue, j.args.loss.mem, CL_TRUE, 0, sizeof loss, &loss, 1, &done, NULL);
    cr_assert(isnan(loss), "the mean of no rows is %g", loss);
    clEnqueueReadBuffer(device.queue, buffer_of(&j.args, of->gradient)->mem, CL_TRUE, 0, sizeof gradient,
                        gradient, 1, &done, NULL);
    for (size_t i = 0; i < sizeof gradient; i++) {
        cr_assert(((unsigned char *)gradient)[i] == 0xFF, "byte %zu of the gradient was written", i);
    }
    clReleaseEvent(gate);
    clReleaseEvent(done);
    free_job(&j);
}

Test(async, no_rows_wait_and_complete) { on_each_queue(run_no_rows); }

/* Whoever enqueued may drop everything: the commands hold what they need. */
static void release_before_it_runs(cl_command_queue queue, const kind *of)
{
    job j;

    make_job(&j, of);
    cl_event gate = make_gate(), done = enqueue(&j, queue, 1, &gate);
    flush(queue);
    const cl_mem results[] = { j.args.loss.mem, buffer_of(&j.args, of->gradient)->mem };
    for (size_t i = 0; i < COUNT(results); i++) clRetainMemObject(results[i]);
    clxent_args args = j.args;
    release_args(&args);
    clxent_plan_destroy(j.plan);
    clSetUserEventStatus(gate, CL_COMPLETE);
    check_results(&j, done);
    for (size_t i = 0; i < COUNT(results); i++) clReleaseMemObject(results[i]);
    clReleaseEvent(gate);
    clReleaseEvent(done);
    free_problem(&j.p);
}

Test(async, buffers_may_be_released_while_the_run_waits) { on_each_queue(release_before_it_runs); }

static cl_ulong time_of(cl_event event, cl_profiling_info what)
{
    cl_ulong value = 0;
    const cl_int code = clGetEventProfilingInfo(event, what, sizeof value, &value, NULL);
    cr_assert(code == CL_SUCCESS, "clGetEventProfilingInfo(0x%x): %d", (unsigned)what, code);
    return value;
}

/* As the header says: a run's own event times its last launch only; a marker before it gives the begin of the run. */
Test(async, a_marker_before_a_run_times_it)
{
    cl_int code;
    cl_event begin;
    job j;

    if (small_run()) cr_skip("Oclgrind gives every command the same times");
    cl_command_queue queue = clCreateCommandQueue(device.cl, device.id, CL_QUEUE_PROFILING_ENABLE, &code);
    cr_assert(code == CL_SUCCESS);
    make_job(&j, &kinds[0]);
    for (int i = 0; i < 2; i++) { /* the second without a compilation in the driver */
        cr_assert(clEnqueueMarkerWithWaitList(queue, 0, NULL, &begin) == CL_SUCCESS);
        cl_event end = enqueue(&j, queue, 1, &begin);
        cr_assert(clWaitForEvents(1, &end) == CL_SUCCESS);
        const cl_ulong run_begin = time_of(begin, CL_PROFILING_COMMAND_END);
        const cl_ulong last_begin = time_of(end, CL_PROFILING_COMMAND_START);
        const cl_ulong run_end = time_of(end, CL_PROFILING_COMMAND_END);
        cr_assert(run_begin <= last_begin && last_begin <= run_end, "%llu, %llu, %llu",
                  (unsigned long long)run_begin, (unsigned long long)last_begin, (unsigned long long)run_end);
        clReleaseEvent(begin);
        clReleaseEvent(end);
    }
    clReleaseCommandQueue(queue);
    free_job(&j);
}
