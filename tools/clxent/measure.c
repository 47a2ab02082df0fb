/* SPDX-License-Identifier: MIT
 *
 * measure.c - timing on a device; see measure.h. What is here alone: the kernels that move bytes, how they are cut
 * into work for CPUs and for GPUs, the test data, and how launches are counted.
 */
#define _GNU_SOURCE /* RTLD_NEXT */
#include "measure.h"

#include "layout.h"

#include <dlfcn.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- Calls that are counted ----------------------------------------------------------------- */

/* A definition in the program comes before that of the OpenCL loader, for libclxent too, static or shared. */
static atomic_size_t launches, builds, log_bytes;

cl_calls measure_calls(void)
{
    return (cl_calls){ atomic_load(&launches), atomic_load(&builds), atomic_load(&log_bytes) };
}

CL_API_ENTRY cl_int CL_API_CALL clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims,
                                                       const size_t *offset, const size_t *global,
                                                       const size_t *local, cl_uint num_wait,
                                                       const cl_event *wait, cl_event *event)
{
    static __typeof__(&clEnqueueNDRangeKernel) loader;

    /* ISO C has no cast from an object's address to a function's. */
    if (loader == NULL) *(void **)&loader = dlsym(RTLD_NEXT, "clEnqueueNDRangeKernel");
    atomic_fetch_add(&launches, 1);
    return loader(queue, kernel, dims, offset, global, local, num_wait, wait, event);
}

CL_API_ENTRY cl_int CL_API_CALL clBuildProgram(cl_program program, cl_uint num_devices,
                                               const cl_device_id *devices, const char *options,
                                               void(CL_CALLBACK *notify)(cl_program program, void *data),
                                               void *data)
{
    static __typeof__(&clBuildProgram) loader;

    if (loader == NULL) *(void **)&loader = dlsym(RTLD_NEXT, "clBuildProgram");
    atomic_fetch_add(&builds, 1);
    cli_progress_compiling(true);
    const cl_int code = loader(program, num_devices, devices, options, notify, data);
    cli_progress_compiling(false);
    for (cl_uint i = 0; devices != NULL && i < num_devices; i++) {
        size_t size = 0;
        (void)clGetProgramBuildInfo(program, devices[i], CL_PROGRAM_BUILD_LOG, 0, NULL, &size);
        if (size > 1) atomic_fetch_add(&log_bytes, size - 1); /* an empty log is "" */
    }
    return code;
}

/* ---- Kernels -------------------------------------------------------------------------------- */

/* Of moves.cl: moves by their bits, fills by dtype - 1. */
enum { FILLS = MOVES, FILL_TARGETS = FILLS + 4, NOTHING = FILLS + 5 };
static const char *const kernel_names[KERNELS] = { "move_copy", "move_stream",  "move_read", "move_in_place",
                                                   "move_two",  "fill_f32",     "fill_f16",  "fill_bf16",
                                                   "fill_f64",  "fill_targets", "nothing" };

static bool check(const measure *m, cl_int code, const char *what)
{
    return code == CL_SUCCESS || cli_fail(m->session.device.name, "%s: %s", what, clxent_status_string(code));
}

static size_t cache_of(const cli_device *device)
{
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long level3 = (device->type & CL_DEVICE_TYPE_CPU) != 0 ? sysconf(_SC_LEVEL3_CACHE_SIZE) : 0;
    if (level3 > 0) return (size_t)level3;
#endif
    return (size_t)device->cache;
}

cl_program measure_program(const cli_session *session, size_t source, const char *options)
{
    const char *text = (const char *)bench_sources[source].text;
    cl_int code;
    cl_program program =
        clCreateProgramWithSource(session->cl, 1, &text, &bench_sources[source].length, &code);

    if (code == CL_SUCCESS) code = clBuildProgram(program, 1, &session->device.id, options, NULL, NULL);
    if (code == CL_SUCCESS) return program;
    cli_fail(session->device.name, "%s: %s", bench_sources[source].name, clxent_status_string(code));
    if (program != NULL) clReleaseProgram(program);
    return NULL;
}

static bool build(measure *m)
{
    const bool cpu = (m->session.device.type & CL_DEVICE_TYPE_CPU) != 0;
    const bool f64 = m->session.device.f64 != 0;
    cl_program program;
    char options[128];
    cl_int code;
    bool good;

    /* A CPU's core takes neighbouring lines, in the largest vectors there are; a GPU's group neighbouring 16 bytes.
     * Either finds work for all of its units in the sizes that are timed. */
    m->group = cpu ? 1 : 256;
    m->each = cpu ? 1024 : 8;
    m->vector = cpu ? 64 : 16;
    snprintf(options, sizeof options, "-cl-std=CL1.2 -w -DGROUP=%zu -DEACH=%zu -DVECTOR=%s%s", m->group,
             m->each, cpu ? "uint16" : "uint4", f64 ? " -DHAS_F64" : "");

    program = measure_program(&m->session, SOURCE_MOVES, options);
    good = program != NULL;
    for (size_t i = 0; good && i < KERNELS; i++) {
        if (i == FILLS + CLXENT_F64 - 1 && !f64) continue;
        m->kernels[i] = clCreateKernel(program, kernel_names[i], &code);
        if (i == 1 && code == CL_INVALID_KERNEL_NAME)
            m->kernels[i] = clCreateKernel(program, kernel_names[0], &code);
        else if (i == 1) m->has_stream = true;
        good = check(m, code, kernel_names[i]);
    }
    if (program != NULL) clReleaseProgram(program);
    return good;
}

bool measure_open(measure *m, const cli_device *device, size_t elements)
{
    memset(m, 0, sizeof *m);
    m->progress_to = 1;
    m->looks = 1;
    m->elements = elements;
    if (!cli_open(&m->session, device, false)) return false;
    m->cache_bytes = cache_of(device);
    if (build(m)) return true;
    measure_close(m);
    return false;
}

static void release(cl_mem mem)
{
    if (mem != NULL) clReleaseMemObject(mem);
}

static void release_run(timed *t)
{
    clxent_plan_destroy(t->plan);
    for (int i = 0; i < TENSORS; i++) {
        free(array_of(&t->host, i)->data);
        release(buffer_of(&t->args, i)->mem);
    }
    release(t->args.workspace.mem);
    free(t->products.hidden);
    free(t->products.weight);
    free(t->products.logits);
    free(t->products.hidden_gradient);
    free(t->products.weight_gradient);
    memset(t, 0, sizeof *t);
}

static void drop(bulk *b)
{
    release(b->mem);
    *b = (bulk){ NULL, 0 };
}

void measure_cut(measure *m, size_t number)
{
    while (m->num_runs > number) release_run(&m->runs[--m->num_runs]);
}

/* kept: the logits and results of so many dtypes stay, of which f32 is the first. */
static void drop_bulks(measure *m, size_t kept)
{
    for (int t = 0; t <= TENSORS; t++)
        for (size_t i = t == TENSOR_LOGITS || t == TENSOR_GRADIENT ? kept : 0; i < DTYPES; i++)
            drop(&m->bulks[t][i]);
}

void measure_trim(measure *m)
{
    measure_cut(m, 0);
    drop_bulks(m, 1);
}

void measure_close(measure *m)
{
    measure_cut(m, 0);
    free(m->seconds);
    drop_bulks(m, 0);
    hand_close(m->hand);
    for (size_t i = 0; i < KERNELS; i++)
        if (m->kernels[i] != NULL) clReleaseKernel(m->kernels[i]);
    cli_close(&m->session);
    memset(m, 0, sizeof *m);
}

/* ---- Data ----------------------------------------------------------------------------------- */

static cl_mem allocate(const measure *m, size_t bytes)
{
    cl_int code;
    cl_mem mem = clCreateBuffer(m->session.cl, CL_MEM_READ_WRITE, bytes > 64 ? bytes : 64, NULL, &code);

    if (code != CL_SUCCESS) {
        cli_fail(m->session.device.name, "a buffer of %zu bytes: %s", bytes, clxent_status_string(code));
        return NULL;
    }
    return mem;
}

/* Launches one of the kernels above, over count vectors or elements. */
typedef struct argument {
    size_t size;
    const void *value;
} argument;
enum { ARGUMENTS = 5 };
#define ARGUMENT(variable)            \
    {                                 \
        sizeof(variable), &(variable) \
    }

static bool launch(measure *m, size_t which, size_t count, const argument arguments[ARGUMENTS])
{
    cl_kernel kernel = m->kernels[which];
    const size_t share = m->each * m->group;
    const size_t global = (count + share - 1) / share * m->group;

    for (cl_uint i = 0; i < ARGUMENTS; i++)
        if (!check(m, clSetKernelArg(kernel, i, arguments[i].size, arguments[i].value), "clSetKernelArg"))
            return false;
    return check(m,
                 clEnqueueNDRangeKernel(m->session.queue, kernel, 1, NULL, &global, &m->group, 0, NULL, NULL),
                 kernel_names[which]);
}

/* Numbers of tensors, uniform from lowest on; range 0: what runs write there. */
static const struct {
    float lowest, range;
    cl_uint seed;
} contents[TENSORS + 1] = { [TENSOR_LOGITS] = { -8, 16, 1 },          [TENSOR_TARGETS] = { 0, 1, 2 },
                            [TENSOR_CLASS_WEIGHTS] = { 0.5f, 1, 78 }, [TENSOR_ROW_WEIGHTS] = { 0.5f, 1, 79 },
                            [TENSOR_HIDDEN] = { -1, 2, 3 },           [TENSOR_WEIGHT] = { -0.1f, 0.2f, 4 } };

static bool fill(measure *m, cl_mem mem, int tensor, uint32_t dtype, size_t count)
{
    const cl_ulong elements = count;
    const size_t kernel = FILLS + dtype - 1;
    const argument arguments[] = { ARGUMENT(mem), ARGUMENT(contents[tensor].lowest),
                                   ARGUMENT(contents[tensor].range), ARGUMENT(contents[tensor].seed),
                                   ARGUMENT(elements) };

    return contents[tensor].range == 0 || (launch(m, kernel, count, arguments) &&
                                           check(m, clFinish(m->session.queue), kernel_names[kernel]));
}

/* ignored: the part of the rows that have ignore_index. */
static bool fill_targets(measure *m, cl_mem mem, const clxent_desc *desc, double ignored)
{
    const cl_ulong rows = desc->batch * desc->seq;
    const cl_uint without = (cl_uint)((double)rows * ignored), classes = (cl_uint)desc->classes;
    const cl_int ignore_index = (cl_int)desc->ignore_index;
    const argument arguments[] = { ARGUMENT(mem), ARGUMENT(without), ARGUMENT(ignore_index),
                                   ARGUMENT(classes), ARGUMENT(rows) };

    return launch(m, FILL_TARGETS, rows, arguments) &&
           check(m, clFinish(m->session.queue), kernel_names[FILL_TARGETS]);
}

/* A buffer of at least so many bytes, for all runs. One that grew would leave an earlier run of the same case behind: those
 * that have the logits' size start with what most runs have. NULL: has said why. */
static cl_mem shared(measure *m, int tensor, uint32_t dtype, size_t bytes)
{
    bulk *b = &m->bulks[tensor][dtype - 1];
    const size_t size = dtype_size(dtype);
    const bool is_matrix = tensor < TENSORS && tensors[tensor].shape == SHAPE_MATRIX;

    if (is_matrix && bytes < m->elements * size) bytes = m->elements * size;
    if (b->mem != NULL && b->bytes >= bytes) return b->mem;
    drop(b);
    *b = (bulk){ allocate(m, bytes), bytes };
    if (b->mem != NULL && !fill(m, b->mem, tensor, dtype, bytes / size)) drop(b);
    return b->mem;
}

/* A shared buffer, which a run keeps also where another run needs a larger one. */
static bool share(measure *m, clxent_buffer *buffer, int tensor, uint32_t dtype, size_t bytes)
{
    cl_mem mem = shared(m, tensor, dtype, bytes);

    if (mem == NULL || !check(m, clRetainMemObject(mem), "clRetainMemObject")) return false;
    buffer->mem = mem;
    return true;
}

/* ---- What is timed -------------------------------------------------------------------------- */

clxent_desc measure_desc(uint32_t outputs, uint32_t dtype, size_t rows, size_t features, size_t classes)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    desc.op = features > 0 ? CLXENT_OP_LINEAR_CROSS_ENTROPY : CLXENT_OP_CROSS_ENTROPY;
    desc.outputs = outputs;
    desc.batch = rows;
    desc.seq = 1;
    desc.features = features;
    desc.classes = classes;
    desc.dtype = dtype;
    desc.target_type = CLXENT_TARGET_I32;
    return desc;
}

static timed *new_run(measure *m, size_t run, uint32_t dtype, size_t bytes)
{
    release_run(&m->runs[run]);
    if (m->num_runs <= run) m->num_runs = run + 1;
    m->runs[run].bytes = bytes;
    m->runs[run].dtype = dtype;
    return &m->runs[run];
}

bool timed_move(measure *m, size_t run, uint32_t moves, uint32_t dtype, size_t bytes)
{
    timed *t = new_run(m, run, dtype, bytes);

    t->moves = moves;
    t->restore = (moves & MOVE_IN_PLACE) != 0;
    return shared(m, TENSOR_LOGITS, dtype, bytes) != NULL &&
           shared(m, TENSOR_GRADIENT, dtype, bytes) != NULL &&
           ((moves & MOVE_TWO) == 0 || shared(m, TENSOR_TARGETS, CLXENT_F32, bytes) != NULL);
}

/* A tensor of the run in its buffer: large ones are shared, and the results in the logits' shape are one. */
static bool make_tensor(measure *m, timed *t, int tensor, double ignored)
{
    const layout l = layout_of(&t->desc, tensor);
    const size_t bytes = tensor_bytes(&t->desc, tensor);
    const bool is_large = l.matrix || tensors[tensor].shape >= SHAPE_HIDDEN;
    const bool is_result = tensor == TENSOR_SOFTMAX || tensor == TENSOR_LOG_SOFTMAX;
    clxent_buffer *buffer = buffer_of(&t->args, tensor);

    if (bytes == 0 || tensor == TENSOR_GRAD_OUTPUT || tensor == TENSOR_DENOMINATOR) return true;
    if (is_large) return share(m, buffer, is_result ? TENSOR_GRADIENT : tensor, l.dtype, bytes);
    buffer->mem = allocate(m, bytes);
    return buffer->mem != NULL &&
           (tensor == TENSOR_TARGETS ? fill_targets(m, buffer->mem, &t->desc, ignored)
                                     : l.dtype == 0 || fill(m, buffer->mem, tensor, l.dtype, l.rows));
}

bool timed_plan(measure *m, size_t run, const clxent_desc *desc, bool in_place, double ignored,
                clxent_status *status)
{
    timed *t =
        new_run(m, run, desc->dtype, desc->batch * desc->seq * desc->classes * dtype_size(desc->dtype));

    t->desc = *desc;
    t->restore = in_place;
    clxent_args_init(&t->args);
    const clxent_status created = clxent_plan_create(&t->plan, m->session.ctx, desc);
    const bool expected = created == CLXENT_ERROR_UNSUPPORTED ||
                          (created == CLXENT_ERROR_INVALID_DESC && desc->workspace_limit != 0);
    if (status != NULL) *status = created;
    if (created != CLXENT_OK) {
        if (!expected || status == NULL) cli_fail_status(m->session.ctx, m->session.device.name, created);
        return false;
    }
    for (int i = 0; i < TENSORS; i++)
        if (!make_tensor(m, t, i, ignored)) return false;
    if (in_place) {
        release(t->args.logits.mem);
        t->args.logits.mem = NULL;
        if (!share(m, &t->args.logits, TENSOR_GRADIENT, desc->dtype, t->bytes)) return false;
    }
    return share(m, &t->args.workspace, TENSORS, CLXENT_F32, clxent_plan_workspace_size(t->plan));
}

/* As much memory as pages, so that a driver that can use it in place does. */
static void *host_array(size_t bytes)
{
    const size_t page = 4096;
    return aligned_alloc(page, (bytes + page - 1) / page * page);
}

static bool download(measure *m, cl_mem from, void *to, size_t bytes)
{
    return check(m, clEnqueueReadBuffer(m->session.queue, from, CL_TRUE, 0, bytes, to, 0, NULL, NULL),
                 "clEnqueueReadBuffer");
}

bool timed_host(measure *m, size_t run, size_t plan)
{
    const timed *from = &m->runs[plan];
    clxent_args args = from->args;
    timed *t = new_run(m, run, from->dtype, from->bytes);

    t->is_host = true;
    t->desc = from->desc;
    clxent_host_args_init(&t->host);
    for (int i = 0; i < TENSORS; i++) {
        const size_t bytes = tensor_bytes(&t->desc, i);
        cl_mem mem = buffer_of(&args, i)->mem;
        clxent_output *array = array_of(&t->host, i);
        if (mem == NULL) continue;
        *array = (clxent_output){ host_array(bytes), bytes };
        if (array->data == NULL) return cli_fail(NULL, "out of memory: an array of %zu bytes", bytes);
        if (i < FIRST_OUTPUT && !download(m, mem, array->data, bytes)) return false;
    }
    return true;
}

/* ---- Hand-written code ----------------------------------------------------------------------- */

static double sample(measure *m, size_t run, size_t repeats); /* see Timing */

bool timed_hand(measure *m, size_t run, size_t plan, int which, unsigned variant)
{
    const timed *from = &m->runs[plan];
    timed *t = new_run(m, run, from->dtype, from->bytes);

    t->is_hand = true;
    t->restore = from->restore;
    t->plan_run = plan;
    t->which = which;
    t->variant = variant;
    t->problem = (hand_problem){ .rows = from->desc.batch * from->desc.seq,
                                 .classes = from->desc.classes,
                                 .dtype = from->dtype };
    return hand_prepare(m->hand, t->problem.classes);
}

/* Maps what a run of hand-written code reads and writes; those of CPUs are their memory. */
static bool map_hand(measure *m, timed *t)
{
    const clxent_args *args = &m->runs[t->plan_run].args;
    const bool in_place = args->gradient.mem == args->logits.mem;
    const size_t bytes[] = { t->bytes, t->problem.rows * sizeof(int32_t), t->bytes };
    const cl_map_flags flags[] = { in_place ? CL_MAP_READ | CL_MAP_WRITE : CL_MAP_READ, CL_MAP_READ,
                                   CL_MAP_WRITE };
    void *to[3] = { NULL };
    cl_int code = CL_SUCCESS;

    t->mapped[0] = args->logits.mem;
    t->mapped[1] = args->targets.mem;
    t->mapped[2] = in_place ? NULL : args->gradient.mem;
    for (size_t i = 0; i < 3 && code == CL_SUCCESS; i++)
        if (t->mapped[i] != NULL)
            to[i] = clEnqueueMapBuffer(m->session.queue, t->mapped[i], CL_TRUE, flags[i], 0, bytes[i], 0,
                                       NULL, NULL, &code);
    t->problem.logits = to[0];
    t->problem.targets = to[1];
    t->problem.gradient = in_place ? to[0] : to[2];
    return check(m, code, "clEnqueueMapBuffer") &&
           (((uintptr_t)to[0] | (uintptr_t)to[2]) % 64 == 0 ||
            cli_fail(m->session.device.name, "buffers do not begin on a cache line"));
}

static bool unmap_hand(measure *m, const timed *t)
{
    void *const from[] = { (void *)t->problem.logits, (void *)t->problem.targets, t->problem.gradient };
    cl_int code = CL_SUCCESS;

    for (size_t i = 0; i < 3 && code == CL_SUCCESS; i++)
        if (t->mapped[i] != NULL)
            code = clEnqueueUnmapMemObject(m->session.queue, t->mapped[i], from[i], 0, NULL, NULL);
    if (code == CL_SUCCESS) code = clFinish(m->session.queue);
    return check(m, code, "clEnqueueUnmapMemObject");
}

/* The errors allowed are a few roundings of the dtype, and of 1 / rows. */
static bool same_gradient(const measure *m, const timed *t, const void *want, const void *got)
{
    const double relative = t->dtype == CLXENT_F32 ? 0x1p-16 : t->dtype == CLXENT_F16 ? 0x1p-10 : 0x1p-7;
    const double absolute = 0x1p-21 / (double)t->problem.rows + (t->dtype == CLXENT_F16 ? 0x1p-24 : 0);

    for (size_t i = 0; i < t->problem.rows * t->problem.classes; i++) {
        const double w = get_element(want, t->dtype, i), g = get_element(got, t->dtype, i);
        if (!(fabs(g - w) <= relative * fabs(w) + absolute))
            return cli_fail(m->session.device.name,
                            "row %zu, class %zu: hand-written code has a gradient of %.9g, clxent of %.9g",
                            i / t->problem.classes, i % t->problem.classes, g, w);
    }
    return true;
}

bool measure_agrees(measure *m, size_t hand)
{
    const timed *t = &m->runs[hand], *plan = &m->runs[t->plan_run];
    cl_mem gradient = plan->args.gradient.mem;
    void *want = gradient != NULL ? malloc(t->bytes) : NULL,
         *got = gradient != NULL ? malloc(t->bytes) : NULL;
    float loss = NAN;
    bool good = gradient == NULL || (want != NULL && got != NULL) ||
                cli_fail(NULL, "out of memory: a gradient of %zu bytes", t->bytes);

    good = good && sample(m, t->plan_run, 1) >= 0 && download(m, plan->args.loss.mem, &loss, sizeof loss) &&
           (gradient == NULL || download(m, gradient, want, t->bytes)) && sample(m, hand, 1) >= 0;
    if (good && !(fabs(t->loss - (double)loss) <= 1e-5 * fabs((double)loss)))
        good = cli_fail(m->session.device.name, "hand-written code has a loss of %.9g, clxent of %.9g",
                        t->loss, (double)loss);
    if (good && gradient != NULL)
        good = download(m, gradient, got, t->bytes) && same_gradient(m, t, want, got);
    free(want);
    free(got);
    return good;
}

/* ---- Linear cross-entropy -------------------------------------------------------------------- */

size_t linear_bytes(const measure *m, size_t run)
{
    const timed *t = &m->runs[run];
    clxent_args args = t->args;
    size_t bytes = clxent_plan_workspace_size(t->plan);

    for (int i = 0; i < TENSORS; i++)
        if (buffer_of(&args, i)->mem != NULL) bytes += tensor_bytes(&t->desc, i);
    return bytes;
}

/* Numbers uniform in [-range, range). */
static void *random_array(bool f64, size_t count, double range)
{
    void *array = host_array(count * (f64 ? sizeof(double) : sizeof(float)));
    uint32_t state = 1;

    for (size_t i = 0; array != NULL && i < count; i++) {
        state = state * 1664525u + 1013904223u;
        const double value = range * ((double)(state >> 8) * 0x1p-23 - 1);
        if (f64) ((double *)array)[i] = value;
        else ((float *)array)[i] = (float)value;
    }
    return array;
}

bool timed_blas(measure *m, size_t run, const blas *b, const clxent_desc *desc)
{
    timed *t = new_run(m, run, desc->dtype, 0);
    blas_problem *p = &t->products;
    const bool f64 = desc->dtype == CLXENT_F64;

    t->blas = b;
    *p = (blas_problem){
        .f64 = f64, .rows = desc->batch * desc->seq, .features = desc->features, .classes = desc->classes
    };
    p->hidden = random_array(f64, p->rows * p->features, 1);
    p->weight = random_array(f64, p->classes * p->features, 0.1);
    p->logits = random_array(f64, p->rows * p->classes, 0); /* writes every page */
    bool good = p->hidden != NULL && p->weight != NULL && p->logits != NULL;
    if (good && (desc->outputs & CLXENT_OUTPUT_WEIGHT_GRADIENT) != 0) {
        p->hidden_gradient = random_array(f64, p->rows * p->features, 0);
        p->weight_gradient = random_array(f64, p->classes * p->features, 0);
        good = p->hidden_gradient != NULL && p->weight_gradient != NULL;
    }
    return good ||
           cli_fail(NULL, "out of memory: OpenBLAS's arrays of %zu rows, %zu features and %zu classes",
                    p->rows, p->features, p->classes);
}

/* ---- Timing --------------------------------------------------------------------------------- */

static bool enqueue_move(measure *m, size_t which, uint32_t dtype, size_t bytes)
{
    const cl_ulong vectors = bytes / m->vector;
    cl_mem from = m->bulks[TENSOR_LOGITS][dtype - 1].mem, to = m->bulks[TENSOR_GRADIENT][dtype - 1].mem;
    cl_mem also = (1 << which) == MOVE_TWO ? m->bulks[TENSOR_TARGETS][CLXENT_F32 - 1].mem : from;
    const cl_uint key = 0;
    const argument arguments[] = { ARGUMENT(from), ARGUMENT(also), ARGUMENT(to), ARGUMENT(vectors),
                                   ARGUMENT(key) };

    return launch(m, which, vectors, arguments);
}

bool measure_enqueue(measure *m, size_t run)
{
    timed *t = &m->runs[run];
    clxent_status status = CLXENT_OK;

    if (t->is_hand) t->loss = hand_run(m->hand, &t->problem, t->which, t->variant);
    else if (t->blas != NULL) blas_run(t->blas, &t->products);
    else if (t->is_host) status = clxent_run_host(m->session.ctx, &t->desc, &t->host);
    else if (t->plan != NULL) status = clxent_enqueue(t->plan, m->session.queue, &t->args, 0, NULL, NULL);
    for (size_t i = 0; i < t->empty; i++)
        if (!check(m,
                   clEnqueueNDRangeKernel(m->session.queue, m->kernels[NOTHING], 1, NULL, &m->group,
                                          &m->group, 0, NULL, NULL),
                   "nothing"))
            return false;
    for (size_t i = 0; i < MOVES; i++)
        if ((t->moves & (1u << i)) != 0 && !enqueue_move(m, i, t->dtype, t->bytes)) return false;
    return status == CLXENT_OK || cli_fail_status(m->session.ctx, m->session.device.name, status);
}

/* Returns when no thread of this process works any more. OpenBLAS's spin for some 30 ms before they sleep. */
static void wait_for_threads(void)
{
    const struct timespec slice = { 0, 5000000 };
    struct timespec before, after;

    for (size_t i = 0; i < 100; i++) {
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
        nanosleep(&slice, NULL);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
        if (1e9 * (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) < 5e5)
            return;
    }
}

/* Seconds of one of repeats runs one after the other; negative on failure. */
static double sample(measure *m, size_t run, size_t repeats)
{
    timed *t = &m->runs[run];

    if (t->restore &&
        !(enqueue_move(m, 0, t->dtype, t->bytes) && check(m, clFinish(m->session.queue), "clFinish")))
        return -1;
    for (size_t i = 0; i < m->num_runs; i++) {
        if (m->runs[i].blas == NULL) continue;
        wait_for_threads();
        break;
    }
    if (t->is_hand && !map_hand(m, t)) return -1;
    const double start = cli_seconds();
    for (size_t i = 0; i < repeats; i++)
        if (!measure_enqueue(m, run)) return -1;
    if (!check(m, clFinish(m->session.queue), "clFinish")) return -1;
    const double seconds = (cli_seconds() - start) / (double)repeats;
    return !t->is_hand || unmap_hand(m, t) ? seconds : -1;
}

void measure_progress(const measure *m, size_t done, size_t all)
{
    cli_progress_set(m->progress_from + (m->progress_to - m->progress_from) * (double)done / (double)all);
}

bool measure_more(measure *m, size_t pairs)
{
    const size_t count = m->num_runs, all = m->pairs + pairs;
    double *seconds = count > 0 ? realloc(m->seconds, all * count * sizeof *seconds) : NULL;

    if (seconds == NULL) return cli_fail(NULL, "out of memory");
    m->seconds = seconds;
    while (m->pairs < all) {
        for (size_t i = 0; i < count; i++) {
            seconds[m->pairs * count + i] = sample(m, i, m->repeats);
            if (seconds[m->pairs * count + i] < 0) return false;
        }
        measure_progress(m, ++m->pairs, all);
    }
    return true;
}

bool measure_times(measure *m, size_t pairs)
{
    const double enough = 4e-3; /* far above launch latency and clock */
    double shortest = enough;

    /* The first turn compiles: drivers finish that at a kernel's first launch. */
    for (size_t turn = 0; turn < 2; turn++) {
        for (size_t i = 0; i < m->num_runs; i++) {
            if (turn == 0) cli_progress_compiling(true);
            const double once = sample(m, i, 1);
            if (turn == 0) cli_progress_compiling(false);
            if (once < 0) return false;
            if (turn == 1 && once < shortest) shortest = once;
        }
    }
    m->pairs = 0;
    m->repeats = 1;
    while ((double)m->repeats * shortest < enough && m->repeats < 256) m->repeats *= 2;
    return measure_more(m, pairs);
}

/* under: num_runs for seconds themselves. */
static summary summarize_quotients(const measure *m, size_t over, size_t under)
{
    double *values = malloc(m->pairs * sizeof *values);
    summary s = { NAN, NAN, NAN, NAN, NAN, 0 };

    for (size_t i = 0; values != NULL && i < m->pairs; i++) {
        const double *row = &m->seconds[i * m->num_runs];
        values[i] = row[over] / (under < m->num_runs ? row[under] : 1.0);
    }
    if (values != NULL) s = summarize(values, m->pairs, m->looks);
    free(values);
    return s;
}

summary times_of(const measure *m, size_t run) { return summarize_quotients(m, run, m->num_runs); }

summary ratio_of(const measure *m, size_t over, size_t under) { return summarize_quotients(m, over, under); }
