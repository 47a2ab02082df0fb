/* SPDX-License-Identifier: MIT
 *
 * stress.c - threads run random plans on shared contexts: every run of a case has the bits of the case's first run,
 * which the reference has checked, and resident memory stays flat after warm-up. It takes minutes and is no ctest entry.
 *
 *     build/tests/stress [THREADS [SECONDS [SEED]]]      by default 8 300 1
 *
 * Cases are those of `clxent verify`, which share programs, so that the threads run more than they compile. A step of a thread is
 * one run of one case: by a plan that threads share and enqueue at the same time, each with its own buffers and workspace; by a
 * plan made for the step; or by clxent_run_host(). Half of the steps take the case of the moment, so that threads meet. Contexts
 * that are made and destroyed beside others: test_store.c.
 *
 * The warm-up runs every case in every context. Then the time is cut into parts. Memory is measured between two parts,
 * while no thread runs, and compared with that after the first: threads that run at once keep buffers at once.
 */
#define _GNU_SOURCE
#include "problem.h"
#include "verify_case.h"

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CONTEXTS = 2,
    PARTS = 6,
    CASES = 96,
    MOST_ELEMENTS = 40000, /* logits of a case */
    MOST_FAULTS = 10,      /* that are printed */
    MOST_GROWTH = 16       /* MiB of resident memory after warm-up */
};

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- Faults -------------------------------------------------------------------------------- */

static atomic_size_t faults, runs, host_runs, plans_made, programs;

static void report_fault(const char *what, const verify_case *c, const problem_fault *f)
{
    char text[CASE_TEXT_SIZE];

    case_write(c, text);
    if (atomic_fetch_add(&faults, 1) < MOST_FAULTS) printf("FAULT, %s: %s\n  %s\n", what, f->text, text);
    fflush(stdout);
}

static void count_programs(const char *message, void *payload)
{
    (void)payload;
    if (strncmp(message, "program:", 8) == 0) atomic_fetch_add(&programs, 1);
}

/* ---- The device ---------------------------------------------------------------------------- */

static struct {
    cl_device_id id;
    bool has_f64, has_out_of_order;
    cl_context cl[CONTEXTS];
    clxent_context *ctx[CONTEXTS];
} device;

static void need(clxent_status status, const char *what)
{
    if (status == CLXENT_OK) return;
    fprintf(stderr, "stress: %s: %s\n", what, clxent_status_string(status));
    exit(EXIT_FAILURE);
}

static const clxent_context_options logged = { .struct_size = sizeof logged, .log = count_programs };

static void open_device(void)
{
    cl_platform_id platforms[16];
    cl_uint count = 0;
    cl_device_fp_config f64 = 0;
    cl_command_queue_properties queues = 0;
    cl_int code;

    need(clGetPlatformIDs(16, platforms, &count), "clGetPlatformIDs");
    for (cl_uint i = 0; i < count && i < 16 && device.id == NULL; i++)
        (void)clGetDeviceIDs(platforms[i], CL_DEVICE_TYPE_ALL, 1, &device.id, NULL);
    need(device.id != NULL ? CLXENT_OK : CL_DEVICE_NOT_FOUND, "clGetDeviceIDs");
    (void)clGetDeviceInfo(device.id, CL_DEVICE_DOUBLE_FP_CONFIG, sizeof f64, &f64, NULL);
    (void)clGetDeviceInfo(device.id, CL_DEVICE_QUEUE_PROPERTIES, sizeof queues, &queues, NULL);
    device.has_f64 = f64 != 0;
    device.has_out_of_order = (queues & CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE) != 0;
    for (int i = 0; i < CONTEXTS; i++) {
        device.cl[i] = clCreateContext(NULL, 1, &device.id, NULL, NULL, &code);
        need(code, "clCreateContext");
        need(clxent_context_create(&device.ctx[i], device.cl[i], device.id, &logged),
             "clxent_context_create");
    }
}

static void close_device(void)
{
    for (int i = 0; i < CONTEXTS; i++) {
        clxent_context_destroy(device.ctx[i]);
        clReleaseContext(device.cl[i]);
    }
}

/* ---- Cases --------------------------------------------------------------------------------- */

typedef struct stress_case {
    verify_case drawn;
    problem p;
    pthread_mutex_t lock; /* of what follows; first does not change once recorded is set */
    bool recorded;
    execution first;
    clxent_plan *plans[CONTEXTS]; /* which threads share */
} stress_case;

static stress_case cases[CASES];

static bool chance(random_state *random, unsigned percent) { return random_u32(random) % 100 < percent; }

static void draw_cases(uint64_t seed)
{
    problem_fault f;

    for (size_t i = 0, count = 0; count < CASES; i++) {
        stress_case *c = &cases[count];
        const clxent_desc *desc = &c->drawn.desc;
        case_draw(&c->drawn, seed, i, MOST_ELEMENTS);
        /* sums over rows that have other bits where host arrays are cut */
        if (desc->op == CLXENT_OP_LINEAR_CROSS_ENTROPY) continue;
        if (desc->dtype == CLXENT_F64 && !device.has_f64) continue;
        c->drawn.fill &= ~(uint32_t)FILL_BAD_TARGETS; /* clxent_run_host() refuses them */
        if (!fill_problem(&c->p, desc, c->drawn.fill, c->drawn.seed, &f)) {
            fprintf(stderr, "stress: case %zu: %s\n", i, f.text);
            exit(EXIT_FAILURE);
        }
        pthread_mutex_init(&c->lock, NULL);
        count++;
    }
}

static void drop_cases(void)
{
    for (size_t i = 0; i < CASES; i++) {
        for (int k = 0; k < CONTEXTS; k++) clxent_plan_destroy(cases[i].plans[k]);
        free_execution(&cases[i].first);
        free_problem(&cases[i].p);
        pthread_mutex_destroy(&cases[i].lock);
    }
}

static bool make_plan(clxent_plan **plan, clxent_context *ctx, const stress_case *c, problem_fault *f)
{
    char text[512];
    const clxent_status status = clxent_plan_create(plan, ctx, &c->p.desc);

    atomic_fetch_add(&plans_made, 1);
    if (status == CLXENT_OK) return true;
    clxent_context_last_error(ctx, text, sizeof text);
    return say_fault(f, "clxent_plan_create: %s: %s", clxent_status_string(status), text);
}

/* ---- Steps --------------------------------------------------------------------------------- */

typedef struct worker {
    pthread_t thread;
    random_state random;
    runner on[CONTEXTS];
    double began, until;
} worker;

/* All outputs, or some of them: the bits are the same. */
static uint32_t draw_outputs(const stress_case *c, random_state *random)
{
    const uint32_t all = c->p.desc.outputs, some = all & random_u32(random);
    return chance(random, 70) || some == 0 ? all : some;
}

/* The first run of a case is recorded, others wait for it; every later one is compared with it. */
static bool run_plan(stress_case *c, const runner *on, clxent_plan *plan, random_state *random,
                     problem_fault *f)
{
    const uint32_t flags = random_u32(random) & (CASE_ALIGNED | CASE_OUT_OF_ORDER);
    const uint32_t all = c->p.desc.outputs, outputs = draw_outputs(c, random);
    execution e;

    atomic_fetch_add(&runs, 1);
    pthread_mutex_lock(&c->lock);
    if (!c->recorded) {
        const bool good = execute(&c->first, on, plan, &c->p, all, NULL, flags, f) &&
                          check_untouched(&c->p, &c->first, all, f) &&
                          check_reference(&c->p, &c->first, NULL, f);
        c->recorded = good;
        if (!good) free_execution(&c->first);
        pthread_mutex_unlock(&c->lock);
        return good;
    }
    pthread_mutex_unlock(&c->lock);

    const bool good = execute(&e, on, plan, &c->p, outputs, NULL, flags, f) &&
                      check_untouched(&c->p, &e, outputs, f) &&
                      check_same_bits("than in the first run", &c->p, &c->first, &e, outputs, f);
    free_execution(&e);
    return good;
}

static bool run_shared_plan(stress_case *c, worker *w, int context, problem_fault *f)
{
    clxent_plan **plan = &c->plans[context];

    pthread_mutex_lock(&c->lock);
    const bool made = *plan != NULL || make_plan(plan, device.ctx[context], c, f);
    pthread_mutex_unlock(&c->lock);
    return made && run_plan(c, &w->on[context], *plan, &w->random, f);
}

static bool run_own_plan(stress_case *c, const runner *on, random_state *random, problem_fault *f)
{
    clxent_plan *plan;
    if (!make_plan(&plan, on->ctx, c, f)) return false;
    const bool good = run_plan(c, on, plan, random, f);
    clxent_plan_destroy(plan);
    return good;
}

static bool run_host_arrays(stress_case *c, const runner *on, random_state *random, problem_fault *f)
{
    execution e;
    clxent_status status;

    pthread_mutex_lock(&c->lock);
    const bool recorded = c->recorded;
    pthread_mutex_unlock(&c->lock);
    if (!recorded) return run_own_plan(c, on, random, f);

    /* In parts where one row fits the limit, else whole. */
    const size_t limit = chance(random, 25) ? 100 + random_u32(random) % 20000 : 0;
    atomic_fetch_add(&host_runs, 1);
    bool good = execute_on_host(&e, on, &c->p, 0, limit, &status, f);
    if (good && limit > 0 && status == CLXENT_ERROR_INVALID_ARGUMENT) {
        free_execution(&e);
        good = execute_on_host(&e, on, &c->p, 0, 0, &status, f);
    }
    if (good && status != CLXENT_OK) {
        char text[512];
        clxent_context_last_error(on->ctx, text, sizeof text);
        good = say_fault(f, "clxent_run_host: %s: %s", clxent_status_string(status), text);
    }
    good = good && check_untouched(&c->p, &e, c->p.desc.outputs, f) &&
           check_same_bits("by clxent_run_host", &c->p, &c->first, &e, c->p.desc.outputs, f);
    free_execution(&e);
    return good;
}

enum kind_of_step { SHARED_PLAN, OWN_PLAN, HOST_ARRAYS };
static const char *const step_names[] = { "a shared plan", "a plan of its own", "host arrays" };

static void take_step(worker *w)
{
    random_state *random = &w->random;
    const size_t moment = (size_t)(seconds_now() - w->began) % CASES;
    stress_case *c = &cases[chance(random, 50) ? moment : random_u32(random) % CASES];
    const int context = (int)(random_u32(random) % CONTEXTS);
    const uint32_t drawn = random_u32(random) % 100;
    const enum kind_of_step kind = drawn < 60 ? SHARED_PLAN : drawn < 82 ? OWN_PLAN : HOST_ARRAYS;
    problem_fault f = { "out of memory" };
    bool good;

    switch (kind) {
    case SHARED_PLAN: good = run_shared_plan(c, w, context, &f); break;
    case OWN_PLAN: good = run_own_plan(c, &w->on[context], random, &f); break;
    default: good = run_host_arrays(c, &w->on[context], random, &f); break;
    }
    if (!good) report_fault(step_names[kind], &c->drawn, &f);
}

static void *work(void *payload)
{
    worker *w = payload;
    while (seconds_now() < w->until) take_step(w);
    return NULL;
}

/* The threads share out the cases among them. */
static void *warm_up(void *payload)
{
    static atomic_size_t taken;
    worker *w = payload;
    size_t i;

    while ((i = atomic_fetch_add(&taken, 1)) < (size_t)CASES * CONTEXTS) {
        stress_case *c = &cases[i / CONTEXTS];
        problem_fault f = { "out of memory" };
        if (!run_shared_plan(c, w, (int)(i % CONTEXTS), &f)) report_fault("warm-up", &c->drawn, &f);
    }
    return NULL;
}

/* ---- Parts --------------------------------------------------------------------------------- */

static cl_command_queue make_queue(int context, cl_command_queue_properties properties)
{
    cl_int code;
    cl_command_queue queue = clCreateCommandQueue(device.cl[context], device.id, properties, &code);
    need(code, "clCreateCommandQueue");
    return queue;
}

static void open_worker(worker *w, uint64_t seed)
{
    w->random = random_start(seed);
    for (int i = 0; i < CONTEXTS; i++) {
        cl_command_queue out_of_order =
            device.has_out_of_order ? make_queue(i, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE) : NULL;
        w->on[i] =
            (runner){ device.cl[i], make_queue(i, 0), out_of_order, device.ctx[i], clxent_plan_create };
    }
}

static void close_worker(worker *w)
{
    for (int i = 0; i < CONTEXTS; i++) {
        clReleaseCommandQueue(w->on[i].queue);
        if (w->on[i].out_of_order != NULL) clReleaseCommandQueue(w->on[i].out_of_order);
    }
}

/* MiB of anonymous memory, without what malloc keeps for later: pages of files come and go with the page cache. */
static double resident_memory(void)
{
    char line[256];
    double kibibytes = -1;

    malloc_trim(0);
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "RssAnon: %lf", &kibibytes) == 1) break;
    if (file != NULL) fclose(file);
    if (kibibytes >= 0) return kibibytes / 1024;
    fprintf(stderr, "stress: /proc/self/status has no RssAnon\n");
    exit(EXIT_FAILURE);
}

static void run_threads(worker *workers, size_t threads, void *(*function)(void *))
{
    for (size_t i = 0; i < threads; i++)
        need(pthread_create(&workers[i].thread, NULL, function, &workers[i]), "pthread_create");
    for (size_t i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
}

static void run_part(worker *workers, size_t threads, double seconds, double began)
{
    const double until = seconds_now() + seconds;

    for (size_t i = 0; i < threads; i++) {
        workers[i].began = began;
        workers[i].until = until;
    }
    run_threads(workers, threads, work);
}

static void print_part(double seconds, double resident)
{
    printf(
        "%6.0f s: %zu runs, %zu by clxent_run_host, %zu plans, %zu programs, %zu faults, %.1f MiB resident\n",
        seconds, atomic_load(&runs), atomic_load(&host_runs), atomic_load(&plans_made),
        atomic_load(&programs), atomic_load(&faults), resident);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 8;
    const double seconds = argc > 2 ? strtod(argv[2], NULL) : 300;
    const uint64_t seed = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    double warm = 0, now = 0;

    if (threads == 0 || seconds < 0 || argc > 4) {
        fprintf(stderr, "stress: takes [THREADS [SECONDS [SEED]]]\n");
        return 2;
    }
    open_device();
    draw_cases(seed);
    worker *workers = calloc(threads, sizeof *workers);
    need(workers != NULL ? CLXENT_OK : CLXENT_ERROR_OUT_OF_HOST_MEMORY, "calloc");
    for (size_t i = 0; i < threads; i++) open_worker(&workers[i], seed * 1000 + i + 1);

    double began = seconds_now();
    run_threads(workers, threads, warm_up);
    print_part(seconds_now() - began, resident_memory());
    began = seconds_now();
    for (int part = 1; part <= PARTS; part++) {
        run_part(workers, threads, seconds / PARTS, began);
        now = resident_memory();
        if (part == 1) warm = now;
        print_part(seconds_now() - began, now);
    }

    for (size_t i = 0; i < threads; i++) close_worker(&workers[i]);
    free(workers);
    drop_cases();
    close_device();
    const bool grew = now - warm > MOST_GROWTH;
    printf("%zu faults; resident memory grew by %.1f MiB since the first part, %s %d\n", atomic_load(&faults),
           now - warm, grew ? "more than" : "at most", (int)MOST_GROWTH);
    return atomic_load(&faults) > 0 || grew ? EXIT_FAILURE : EXIT_SUCCESS;
}
