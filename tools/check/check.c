/* SPDX-License-Identifier: MIT
 *
 * check.c - see problem.h: one run of a problem between canaries, and what must be true of it.
 */
#include "layout.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Comparison ---------------------------------------------------------------------------- */

close_report compare(const double *got, const double *want, const double *bound, size_t n)
{
    close_report report = { 0, 0, 0 };
    for (size_t i = 0; i < n; i++) {
        const bool same = (isnan(got[i]) && isnan(want[i])) || got[i] == want[i];
        const double error = fabs(got[i] - want[i]);
        double ratio = bound[i] > 0 ? error / bound[i] : INFINITY;
        bool close = error <= bound[i]; /* false for NaN */

        if (same) continue;
        if (!isfinite(want[i])) close = false;
        if (isinf(bound[i]) && close) ratio = 0; /* infinity is a correct rounding of want */
        if (!close && report.bad++ == 0) report.first = i;
        if (!(ratio <= report.worst)) report.worst = isnan(ratio) ? INFINITY : ratio;
    }
    return report;
}

/* ---- One run ------------------------------------------------------------------------------- */

static bool make_image(image *made, size_t front, size_t bytes, size_t back, const void *data, unsigned byte,
                       problem_fault *f)
{
    const size_t total = front + bytes + back;

    *made = (image){ NULL, take(total, f), take(total, f), front, bytes, total };
    if (made->before == NULL || made->after == NULL) return false;
    /* Two bytes in turn: 0xFFFE, so that NaN copied from an input's padding, 0xFFFF, differs from it. */
    for (size_t i = 0; i < total; i++) made->before[i] = (unsigned char)(i % 2 == 0 ? byte : 0xFF);
    if (data != NULL && bytes > 0) memcpy(made->before + front, data, bytes);
    memcpy(made->after, made->before, total);
    return true;
}

static void free_image(image *i)
{
    if (i->mem != NULL) clReleaseMemObject(i->mem);
    free(i->before);
    free(i->after);
    memset(i, 0, sizeof *i);
}

void free_execution(execution *e)
{
    for (int t = 0; t < TENSORS; t++) free_image(&e->images[t]);
    free_image(&e->workspace);
}

const image *image_of(const execution *e, int tensor)
{
    return &e->images[tensor == e->in_place ? TENSOR_LOGITS : tensor];
}

static int in_place_tensor(uint32_t outputs)
{
    if ((outputs & CLXENT_OUTPUT_GRADIENT) != 0) return TENSOR_GRADIENT;
    return (outputs & CLXENT_OUTPUT_SOFTMAX) != 0 ? TENSOR_SOFTMAX : TENSOR_LOG_SOFTMAX;
}

/* The images of a run in host memory. */
static bool make_images(execution *e, const problem *p, uint32_t outputs, const execution *saved,
                        uint32_t flags, problem_fault *f)
{
    const clxent_desc *desc = &p->desc;

    memset(e, 0, sizeof *e);
    e->in_place = (flags & CASE_IN_PLACE) != 0 ? in_place_tensor(outputs) : -1;
    for (int t = 0; t < TENSORS; t++) {
        const layout l = layout_of(desc, t);
        const size_t element =
            tensors[t].element == ELEMENT_RECORD ? sizeof(clxent_bad_targets) : l.element_size;
        const size_t front = (flags & CASE_ALIGNED) != 0 ? 0 : 37 * element;
        const void *data = array_of(&p->args, t)->data; /* of outputs: what a gradient is added to */
        bool used = takes(desc, outputs, t) && (t >= FIRST_OUTPUT || data != NULL);

        if (saved != NULL && output_bit(t) == CLXENT_OUTPUT_STATISTICS) {
            data = saved->images[t].after + saved->images[t].front;
            used = true;
        }
        if (!used || t == e->in_place) continue;
        if (!make_image(&e->images[t], front, layout_bytes(desc, &l), 256, data,
                        t < FIRST_OUTPUT ? 0xFF : 0xFE, f))
            return false;
    }
    return true;
}

static bool say_status(problem_fault *f, const char *what, clxent_status status, const clxent_context *ctx)
{
    char text[768] = "";
    if (ctx != NULL) clxent_context_last_error(ctx, text, sizeof text);
    return say_fault(f, "%s: %s%s%s", what, clxent_status_string(status), text[0] != '\0' ? ": " : "", text);
}

static bool upload(image *i, const runner *on, problem_fault *f)
{
    cl_int code;

    if (i->before == NULL) return true;
    i->mem = clCreateBuffer(on->cl, CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR, i->total, i->before, &code);
    if (code != CL_SUCCESS)
        return say_fault(f, "clCreateBuffer of %zu bytes: %s", i->total, clxent_status_string(code));
    return true;
}

static bool download(image *i, const runner *on, problem_fault *f)
{
    if (i->mem == NULL) return true;
    const cl_int code = clEnqueueReadBuffer(on->queue, i->mem, CL_TRUE, 0, i->total, i->after, 0, NULL, NULL);
    return code == CL_SUCCESS || say_status(f, "clEnqueueReadBuffer", code, NULL);
}

/* Everything on the device, and args that name it. */
static bool upload_all(execution *e, const runner *on, clxent_plan *plan, const problem *p, uint32_t outputs,
                       const execution *saved, uint32_t flags, clxent_args *args, problem_fault *f)
{
    const clxent_args init = CLXENT_ARGS_INIT;

    *args = init;
    if (!make_images(e, p, outputs, saved, flags, f)) return false;
    for (int t = 0; t < TENSORS; t++) {
        if (!upload(&e->images[t], on, f)) return false;
        *buffer_of(args, t) = (clxent_buffer){ image_of(e, t)->mem, image_of(e, t)->front };
    }
    args->workspace = (clxent_buffer){ NULL, 64 };
    if (!make_image(&e->workspace, 64, clxent_plan_workspace_size(plan), 64, NULL, 0xFF, f) ||
        !upload(&e->workspace, on, f))
        return false;
    args->workspace.mem = e->workspace.mem;
    args->outputs = outputs;
    args->rows = rows_of(&p->desc);
    return true;
}

static bool download_all(execution *e, const runner *on, problem_fault *f)
{
    for (int t = 0; t < TENSORS; t++)
        if (!download(&e->images[t], on, f)) return false;
    return download(&e->workspace, on, f);
}

typedef clxent_status (*enqueue_fn)(clxent_plan *plan, cl_command_queue queue, const clxent_args *args,
                                    cl_uint num_wait, const cl_event *wait, cl_event *event);

/* Enqueues and waits. */
static bool run_once(const char *name, enqueue_fn enqueue, const runner *on, clxent_plan *plan,
                     const clxent_args *args, uint32_t flags, problem_fault *f)
{
    const bool out_of_order = (flags & CASE_OUT_OF_ORDER) != 0 && on->out_of_order != NULL;
    cl_event done = NULL;

    clxent_status status = enqueue(plan, out_of_order ? on->out_of_order : on->queue, args, 0, NULL, &done);
    if (status != CLXENT_OK) return say_status(f, name, status, on->ctx);
    status = clWaitForEvents(1, &done);
    clReleaseEvent(done);
    return status == CL_SUCCESS || say_status(f, "clWaitForEvents", status, NULL);
}

bool execute(execution *e, const runner *on, clxent_plan *plan, const problem *p, uint32_t outputs,
             const execution *saved, uint32_t flags, problem_fault *f)
{
    clxent_args args;

    return upload_all(e, on, plan, p, outputs, saved, flags, &args, f) &&
           run_once("clxent_enqueue", clxent_enqueue, on, plan, &args, flags, f) && download_all(e, on, f);
}

/* Rows that parts are cut between. */
static size_t part_unit(const clxent_desc *desc)
{
    size_t unit = desc->inner;
    while (desc->shift > 0 && unit % desc->seq != 0) unit += desc->inner;
    return unit;
}

/* Moves the [rows, classes] buffers of args to where the part begins. */
static void move_to_part(clxent_args *args, const problem *p, const execution *e, size_t first_row)
{
    for (int t = 0; t < TENSORS; t++) {
        const layout l = layout_of(&p->desc, t);
        if (!l.own_rows || image_of(e, t)->mem == NULL) continue;
        buffer_of(args, t)->offset =
            image_of(e, t)->front + index_of(&p->desc, &l, first_row, 0) * l.element_size;
    }
}

/* As execute(), part by part. A mean without a denominator gets one from its own pass. */
static bool execute_in_parts(execution *e, const runner *on, clxent_plan *plan, const problem *p,
                             uint32_t outputs, const execution *saved, uint32_t flags, problem_fault *f)
{
    const clxent_desc *desc = &p->desc;
    const size_t rows = rows_of(desc), unit = part_unit(desc);
    random_state random = random_start(p->seed ^ 0x7061727473);
    const uint32_t divided = outputs & (CLXENT_OUTPUT_LOSS | GRADIENTS);
    const bool is_mean = desc->reduction == CLXENT_REDUCTION_MEAN && divided != 0 && needs_targets(desc);
    image denominator = { 0 };
    clxent_args args;

    bool good = upload_all(e, on, plan, p, outputs, saved, flags, &args, f) &&
                make_image(&denominator, 0, sizeof(double), 0, NULL, 0xFF, f) && upload(&denominator, on, f);
    args.total_rows = rows;
    if (good && is_mean && args.denominator.mem == NULL) {
        clxent_args of_targets = args;
        of_targets.counted.mem = NULL;
        of_targets.computed_denominator = (clxent_buffer){ denominator.mem, 0 };
        good = run_once("clxent_enqueue_denominator", clxent_enqueue_denominator, on, plan, &of_targets,
                        flags, f);
        args.denominator = of_targets.computed_denominator;
    }
    for (size_t first = 0; good && first < rows; first += args.rows) {
        const size_t left = (rows - first) / unit, few = left < 4 ? left : 4;
        const size_t units = random_u32(&random) % 4 == 0 ? left : 1 + random_u32(&random) % few;
        const size_t least = rows / unit / 16; /* of many rows not too many parts */
        args.rows = (units > least ? units : least < left ? least : left) * unit;
        args.first_row = first;
        args.part = first + args.rows == rows ? CLXENT_PART_LAST
                    : first == 0              ? CLXENT_PART_FIRST
                                              : CLXENT_PART_MIDDLE;
        move_to_part(&args, p, e, first);
        good = run_once("clxent_enqueue of a part", clxent_enqueue, on, plan, &args, flags, f);
    }
    free_image(&denominator);
    return good && download_all(e, on, f);
}

bool execute_on_host(execution *e, const runner *on, const problem *p, uint32_t flags, size_t max_chunk_bytes,
                     clxent_status *status, problem_fault *f)
{
    clxent_host_args args = CLXENT_HOST_ARGS_INIT;

    if (!make_images(e, p, p->desc.outputs, NULL, flags, f)) return false;
    args.max_chunk_bytes = max_chunk_bytes;
    for (int t = 0; t < TENSORS; t++) {
        const image *i = image_of(e, t);
        if (i->before != NULL) *array_of(&args, t) = (clxent_output){ i->after + i->front, i->bytes };
    }
    *status = clxent_run_host(on->ctx, &p->desc, &args);
    if (*status != CLXENT_ERROR_ARRAYS_IN_USE) return true;
    (void)say_status(f, "clxent_run_host", *status, on->ctx);
    memset(e, 0, sizeof *e); /* they stay until the process ends */
    return false;
}

/* ---- What must be true of it ---------------------------------------------------------------- */

/* Of a gradient whose padding must be 0; puts back what it was, in after, the image's copy. */
static bool check_zero_padding(const problem *p, const image *i, const layout *l, unsigned char *after,
                               problem_fault *f)
{
    const size_t used = slab_elements(&p->desc), stride = slab_stride(&p->desc, l);

    for (size_t slab = 0; slab < l->rows / p->desc.inner; slab++) {
        const size_t first = i->front + (slab * stride + used) * l->element_size;
        for (size_t k = first; k < first + (stride - used) * l->element_size; k++) {
            if (after[k] != 0)
                return say_fault(f, "gradient: byte %zu of the padding of slab %zu is not 0", k - first,
                                 slab);
            after[k] = i->before[k];
        }
    }
    return true;
}

/* Puts back what the run was free to write; then nothing may differ. */
static bool check_image_untouched(const problem *p, const image *i, int image_tensor, int written,
                                  problem_fault *f)
{
    unsigned char *after = take(i->total, f);
    size_t first = 0;

    if (after == NULL) return false;
    memcpy(after, i->after, i->total);
    if (written >= 0) {
        const layout l = layout_of(&p->desc, written);
        for (size_t k = 0; k < l.rows * l.columns; k++) {
            const size_t offset = i->front + offset_of(&p->desc, &l, k);
            memcpy(after + offset, i->before + offset, l.element_size);
        }
        if (written == TENSOR_GRADIENT && l.full && !check_zero_padding(p, i, &l, after, f)) {
            free(after);
            return false;
        }
    }
    while (first < i->total && after[first] == i->before[first]) first++;
    free(after);
    return first == i->total ||
           say_fault(f, "%s: byte %lld of its %zu was written", tensor_names[image_tensor],
                     (long long)first - (long long)i->front, i->bytes);
}

bool check_untouched(const problem *p, const execution *e, uint32_t outputs, problem_fault *f)
{
    const image *w = &e->workspace;

    for (int t = 0; t < TENSORS; t++) {
        const int written = t == TENSOR_LOGITS ? e->in_place : (outputs & output_bit(t)) != 0 ? t : -1;
        if (e->images[t].before != NULL && !check_image_untouched(p, &e->images[t], t, written, f))
            return false;
    }
    if (w->before == NULL) return true;
    if (memcmp(w->before, w->after, w->front) != 0)
        return say_fault(f, "bytes before the workspace were written");
    if (memcmp(w->before + w->front + w->bytes, w->after + w->front + w->bytes,
               w->total - w->front - w->bytes) != 0)
        return say_fault(f, "bytes behind the workspace of %zu were written", w->bytes);
    return true;
}

/* The outputs that both executions have, element by element: padding differs where only one is in place. */
bool check_same_bits(const char *what, const problem *p, const execution *a, const execution *b,
                     uint32_t outputs, problem_fault *f)
{
    for (int t = FIRST_OUTPUT; t < TENSORS; t++) {
        if ((outputs & output_bit(t)) == 0) continue;
        const layout l = layout_of(&p->desc, t);
        const image *x = image_of(a, t), *y = image_of(b, t);
        for (size_t k = 0; k < l.rows * l.columns; k++) {
            const size_t offset = offset_of(&p->desc, &l, k);
            if (memcmp(x->after + x->front + offset, y->after + y->front + offset, l.element_size) != 0)
                return say_fault(f, "%s: row %zu column %zu has other bits %s", tensor_names[t],
                                 k / l.columns, k % l.columns, what);
        }
    }
    return true;
}

static bool check_integers(int tensor, const image *i, const void *want, size_t n, problem_fault *f)
{
    for (size_t k = 0; k < n; k++) {
        int64_t got, wanted;
        memcpy(&got, i->after + i->front + 8 * k, 8);
        memcpy(&wanted, (const char *)want + 8 * k, 8);
        if (got != wanted)
            return say_fault(f, "%s[%zu]: got %" PRId64 ", want %" PRId64, tensor_names[tensor], k, got,
                             wanted);
    }
    return true;
}

/* argmax, where it may be any of several classes. */
static bool check_argmax(const image *i, const unsigned char *allowed, const int64_t *want, size_t rows,
                         size_t classes, problem_fault *f)
{
    for (size_t row = 0; row < rows; row++) {
        int64_t got;
        memcpy(&got, i->after + i->front + 8 * row, 8);
        if (got < 0 || (uint64_t)got >= classes || allowed[row * classes + (size_t)got] == 0)
            return say_fault(f, "argmax[%zu]: got %" PRId64 ", want %" PRId64 " or what is as large", row,
                             got, want[row]);
    }
    return true;
}

/* correct, which each row may change whose argmax may be its target or another class. */
static bool check_correct(const image *i, const unsigned char *allowed, uint64_t want, size_t rows,
                          size_t classes, problem_fault *f)
{
    uint64_t got, undecided = 0;

    for (size_t row = 0; row < rows; row++) {
        size_t several = 0;
        for (size_t j = 0; j < classes; j++) several += allowed[row * classes + j];
        undecided += several > 1;
    }
    memcpy(&got, i->after + i->front, 8);
    return (got > want ? got - want : want - got) <= undecided ||
           say_fault(f, "correct[0]: got %" PRIu64 ", want %" PRIu64 " within %" PRIu64, got, want,
                     undecided);
}

/* The distance between numbers of dtype at value. */
static double ulp_of(double value, uint32_t dtype)
{
    static const struct {
        int digits, lowest; /* of the significand; exponent of the smallest normal number */
    } formats[] = { [CLXENT_F32] = { 24, -126 },
                    [CLXENT_F16] = { 11, -14 },
                    [CLXENT_BF16] = { 8, -126 },
                    [CLXENT_F64] = { 53, -1022 } };
    int exponent;
    (void)frexp(value, &exponent); /* value = f * 2^exponent, f in [0.5, 1) */
    if (--exponent < formats[dtype].lowest) exponent = formats[dtype].lowest;
    return ldexp(1, exponent - formats[dtype].digits + 1);
}

/* Finite results only, and above where real underflows: there a device may give 0. */
static double worst_ulps(const double *got, const double *want, size_t n, uint32_t dtype, uint32_t real)
{
    const double smallest = real == CLXENT_F64 ? 0x1p-1022 : 0x1p-126;
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i]) || !isfinite(want[i]) || fabs(want[i]) < smallest) continue;
        worst = fmax(worst, fabs(got[i] - want[i]) / ulp_of(want[i], dtype));
    }
    return worst;
}

static bool check_values(const problem *p, const image *i, int tensor, const double *want,
                         const double *bound, worst_error worst[OUTPUTS], problem_fault *f)
{
    const layout l = layout_of(&p->desc, tensor);
    const size_t n = l.rows * l.columns;
    double *got = take(n * sizeof *got, f);
    bool good;

    if (got == NULL) return false;
    for (size_t k = 0; k < n; k++) {
        const size_t at = index_of(&p->desc, &l, k / l.columns, k % l.columns);
        got[k] = get_element(i->after + i->front, l.dtype, at);
    }
    const close_report report = compare(got, want, bound, n);
    const size_t first = report.first;
    good = report.bad == 0 ||
           say_fault(f,
                     "%s: %zu of %zu are wrong, first row %zu column %zu: got %.17g, want %.17g, bound %.3g; "
                     "worst error %.3g times its bound",
                     tensor_names[tensor], report.bad, n, first / l.columns, first % l.columns, got[first],
                     want[first], bound[first], report.worst);
    if (worst != NULL) {
        worst_error *own = &worst[tensor - FIRST_OUTPUT];
        own->ratio = fmax(own->ratio, report.worst);
        own->ulps = fmax(own->ulps, worst_ulps(got, want, n, l.dtype, real_dtype(&p->desc)));
    }
    free(got);
    return good;
}

/* Points the results that outputs ask for at memory: values, and bounds behind them. */
static void point_results(clxent_reference_results *want, uint32_t outputs, double *const memory[OUTPUTS],
                          const size_t counts[OUTPUTS])
{
#define POINT_BOUNDED(name, k) \
    want->name = memory[k];    \
    want->name##_bound = memory[k] + counts[k];
#define POINT_EXACT(name, k) want->name = memory[k];
#define POINT_INTEGER(name, k) want->name = (void *)memory[k];
#define POINT_OPAQUE(name, k)
#define OUTPUT(name, NAME, element, shape, stride, operations, depends, made, reference, npy) \
    if ((outputs & CLXENT_OUTPUT_##NAME) != 0) {                                              \
        POINT_##reference(name, TENSOR_##NAME - FIRST_OUTPUT)                                 \
    }
#include "../../host/tensors.def"
}

static bool check_output(const problem *p, const execution *e, int tensor, double *want, size_t count,
                         const unsigned char *allowed, worst_error worst[OUTPUTS], problem_fault *f)
{
    const image *i = image_of(e, tensor);
    const size_t rows = rows_of(&p->desc), classes = p->desc.classes;
    const void *integers = want;

    if (allowed != NULL && tensor == TENSOR_ARGMAX)
        return check_argmax(i, allowed, integers, rows, classes, f);
    if (allowed != NULL && tensor == TENSOR_CORRECT)
        return check_correct(i, allowed, *(const uint64_t *)integers, rows, classes, f);
    switch (tensors[tensor].reference) {
    case REFERENCE_OPAQUE: return true;
    case REFERENCE_INTEGER: return check_integers(tensor, i, want, count, f);
    default: return check_values(p, i, tensor, want, want + count, worst, f);
    }
}

/* check_reference() of some outputs. */
static bool check_outputs(const problem *p, const execution *e, uint32_t outputs, worst_error worst[OUTPUTS],
                          problem_fault *f)
{
    const bool has_argmax = (outputs & (CLXENT_OUTPUT_ARGMAX | CLXENT_OUTPUT_CORRECT)) != 0;
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    double *memory[OUTPUTS] = { NULL };
    unsigned char *allowed = NULL;
    size_t counts[OUTPUTS] = { 0 };
    bool good = true;

    if (p->desc.op == CLXENT_OP_LINEAR_CROSS_ENTROPY && has_argmax) {
        allowed = take(rows_of(&p->desc) * p->desc.classes, f);
        good = allowed != NULL;
        want.argmax_allowed = allowed;
    }

    for (int k = 0; good && k < OUTPUTS; k++) {
        const layout l = layout_of(&p->desc, FIRST_OUTPUT + k);
        counts[k] = l.rows * l.columns;
        if ((outputs >> k & 1u) == 0) continue;
        memory[k] = take(2 * counts[k] * sizeof(double), f);
        good = memory[k] != NULL;
        if (good) memset(memory[k], 0, 2 * counts[k] * sizeof(double));
    }
    if (good) {
        char text[512] = "";
        point_results(&want, outputs, memory, counts);
        const clxent_status status = clxent_reference_run(&p->desc, &p->args, &want, text, sizeof text);
        if (status != CLXENT_OK) good = say_fault(f, "reference: %s: %s", clxent_status_string(status), text);
    }
    for (int k = 0; good && k < OUTPUTS; k++)
        if (memory[k] != NULL)
            good = check_output(p, e, FIRST_OUTPUT + k, memory[k], counts[k], allowed, worst, f);
    for (int k = 0; k < OUTPUTS; k++) free(memory[k]);
    free(allowed);
    return good;
}

bool check_reference(const problem *p, const execution *e, worst_error worst[OUTPUTS], problem_fault *f)
{
    return check_outputs(p, e, p->desc.outputs, worst, f);
}

/* ---- check_problem ------------------------------------------------------------------------- */

typedef bool (*execute_fn)(execution *e, const runner *on, clxent_plan *plan, const problem *p,
                           uint32_t outputs, const execution *saved, uint32_t flags, problem_fault *f);

/* Sums over the rows of products, which have other bits where the rows are cut elsewhere. */
enum { SUMS_OF_ROWS = CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT };

/* A problem, and the run whose bits all others of it must have. */
typedef struct checking {
    const runner *on;
    const problem *p;
    clxent_plan *plan;
    uint32_t flags;
    const execution *first;
    bool cut; /* rows of the other run are cut elsewhere */
    problem_fault *f;
} checking;

/* Outputs have the bits of the first run; where rows are cut elsewhere, sums of products are as the reference has them. */
static bool check_like_first(const checking *c, const char *what, const execution *again, uint32_t outputs)
{
    const uint32_t sums = c->cut ? outputs & SUMS_OF_ROWS : 0;

    return check_untouched(c->p, again, outputs, c->f) &&
           check_same_bits(what, c->p, c->first, again, outputs & ~sums, c->f) &&
           (sums == 0 || check_outputs(c->p, again, sums, NULL, c->f));
}

/* One more run, by execute() or execute_in_parts(). */
static bool check_again(const checking *c, const char *what, execute_fn run, uint32_t outputs,
                        const execution *saved)
{
    execution again;
    const bool good = run(&again, c->on, c->plan, c->p, outputs, saved, c->flags, c->f) &&
                      check_like_first(c, what, &again, outputs);
    free_execution(&again);
    return good;
}

/* The record of bad targets as the reference has it, whether desc asks for it or not. */
static bool find_bad_targets(const problem *p, clxent_bad_targets *bad, problem_fault *f)
{
    clxent_reference_results want = CLXENT_REFERENCE_RESULTS_INIT;
    clxent_desc desc = p->desc;

    memset(bad, 0, sizeof *bad);
    if (!needs_targets(&desc) || !has_index_targets(&desc) || desc.bad_target != CLXENT_BAD_TARGET_REPORT)
        return true;
    desc.outputs |= CLXENT_OUTPUT_BAD_TARGETS;
    want.bad_targets = bad;
    return clxent_reference_run(&desc, &p->args, &want, f->text, sizeof f->text) == CLXENT_OK;
}

/* A limit that the smallest chunk does not fit is refused, and nothing written; what that chunk takes is the
 * library's affair, so the limit is doubled until it is taken, which it must be where a chunk of all rows fits. */
static bool execute_in_chunks(execution *e, const runner *on, const problem *p, uint32_t flags,
                              clxent_status *status, problem_fault *f)
{
    size_t limit = p->args.max_chunk_bytes, largest = 0;

    for (;;) {
        if (!execute_on_host(e, on, p, flags, limit, status, f)) return false;
        for (int t = 0; t < TENSORS; t++) {
            const layout l = layout_of(&p->desc, t);
            /* the last row of a chunk may have its padding, which the tensor's last row has not */
            const size_t bytes = e->images[t].bytes + l.stride * l.element_size;
            if (e->images[t].before != NULL && bytes > largest) largest = bytes;
        }
        if (limit == 0 || limit > largest || *status != CLXENT_ERROR_INVALID_ARGUMENT) return true;
        e->in_place = -1;
        if (!check_untouched(p, e, 0, f)) return false;
        free_execution(e);
        limit *= 2;
    }
}

/* clxent_run_host() gives what the first run gave, or refuses what it promises to refuse. */
static bool check_on_host(checking c)
{
    const problem *p = c.p;
    execution e = { .in_place = -1 };
    clxent_bad_targets bad;
    clxent_status status;

    if (!find_bad_targets(p, &bad, c.f)) return false;
    bool good = execute_in_chunks(&e, c.on, p, c.flags, &status, c.f);
    const uint32_t outputs = bad.count > 0 ? p->desc.outputs & CLXENT_OUTPUT_BAD_TARGETS : p->desc.outputs;
    if (good && bad.count > 0 && status != CLXENT_ERROR_BAD_TARGET)
        good = say_fault(c.f, "clxent_run_host: got %s, want CLXENT_ERROR_BAD_TARGET for %" PRIu64 " targets",
                         clxent_status_string(status), bad.count);
    if (good && bad.count == 0 && status != CLXENT_OK)
        good = say_status(c.f, "clxent_run_host", status, c.on->ctx);
    if (bad.count > 0) e.in_place = -1; /* the logits are as they were */
    c.cut = true;
    good = good && check_like_first(&c, "by clxent_run_host", &e, outputs);
    free_execution(&e);
    return good;
}

/* What the fewest rows take is the library's affair: a workspace_limit that is too small for them is refused, and doubled
 * until it is not. */
static bool make_plan_within(clxent_plan **plan, const runner *on, clxent_desc *desc, problem_fault *f)
{
    static const size_t enough = (size_t)1 << (sizeof(size_t) == 8 ? 40 : 30);
    clxent_status status;

    while ((status = on->make_plan(plan, on->ctx, desc)) == CLXENT_ERROR_INVALID_DESC &&
           desc->workspace_limit != 0 && desc->workspace_limit < enough)
        desc->workspace_limit *= 2;
    if (status != CLXENT_OK) return say_status(f, "clxent_plan_create", status, on->ctx);
    const size_t size = clxent_plan_workspace_size(*plan), limit = desc->workspace_limit;
    if (limit == 0 || size <= limit) return true;
    clxent_plan_destroy(*plan);
    *plan = NULL;
    return say_fault(f, "clxent_plan_workspace_size: got %zu, want at most workspace_limit, %zu", size,
                     limit);
}

/* A plan without a workspace_limit cuts rows elsewhere, and gives the same bits but for sums of products. */
static bool check_without_limit(checking c, clxent_desc plan_desc)
{
    plan_desc.workspace_limit = 0;
    if (!make_plan_within(&c.plan, c.on, &plan_desc, c.f)) return false;
    c.cut = true;
    const bool good = check_again(&c, "with another workspace_limit", execute, c.p->desc.outputs, NULL);
    clxent_plan_destroy(c.plan);
    return good;
}

/* A second run, a gradient from saved statistics, and all that flags ask for. */
static bool check_others(checking c)
{
    const uint32_t outputs = c.p->desc.outputs, gradient = CLXENT_OUTPUT_GRADIENT;
    const bool saves = (outputs & gradient) != 0 && (outputs & CLXENT_OUTPUT_STATISTICS) != 0;
    checking alone = c;

    alone.flags &= ~(uint32_t)CASE_IN_PLACE;
    bool good = (c.flags & CASE_RUN_ONCE) != 0 || check_again(&c, "in a second run", execute, outputs, NULL);
    if (saves) good = good && check_again(&c, "from saved statistics", execute, gradient, c.first);
    for (uint32_t bit = 1; (c.flags & CASE_SUBSETS) != 0 && bit <= outputs; bit <<= 1)
        if ((outputs & bit) != 0)
            good = good && check_again(&alone, "when it is the only output", execute, bit, NULL);
    if ((c.flags & CASE_HOST_ARRAYS) != 0) good = good && check_on_host(c);
    if ((c.flags & CASE_PARTS) == 0 || rows_of(&c.p->desc) == 0) return good;
    c.cut = true;
    return good && check_again(&c, "in parts", execute_in_parts, outputs, NULL) &&
           (!saves || check_again(&c, "in parts from saved statistics", execute_in_parts, gradient, c.first));
}

bool check_problem(const runner *on, const problem *given, uint32_t flags, worst_error worst[OUTPUTS],
                   problem_fault *f)
{
    problem p = *given;
    clxent_desc plan_desc = p.desc;
    execution first;
    checking c = { on, &p, NULL, flags, &first, false, f };

    if ((flags & CASE_LARGER_PLAN) != 0) plan_desc.batch = p.desc.batch > 0 ? 2 * p.desc.batch : p.desc.inner;
    if (plan_desc.seq == 0) plan_desc.seq = 1;
    if (!make_plan_within(&c.plan, on, &plan_desc, f)) return false;
    p.desc.workspace_limit = plan_desc.workspace_limit;

    const bool good = execute(&first, on, c.plan, &p, p.desc.outputs, NULL, flags, f) &&
                      check_untouched(&p, &first, p.desc.outputs, f) &&
                      check_reference(&p, &first, worst, f) && check_others(c) &&
                      (p.desc.workspace_limit == 0 || check_without_limit(c, plan_desc));
    free_execution(&first);
    clxent_plan_destroy(c.plan);
    return good;
}
