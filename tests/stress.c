/* SPDX-License-Identifier: MIT
 *
 * stress.c - threads run random plans on shared contexts: every run of a case has the bits of the case's first run,
 * which the reference has checked, and resident memory stays flat after warm-up. It takes minutes and is no ctest entry.
 *
 *     build/tests/stress --threads 8 --seconds 300
 *
 * Cases are drawn from a few kinds of plan, so that the threads run more than they compile. A step of a thread is one
 * run of one case: by a plan that threads share and enqueue at the same time, each with its own buffers and workspace; by a plan
 * made for the step; in a context made for the step; or by clxent_run_host(). Now and then a shared plan is replaced
 * while others use it, and an invalid desc must be refused with a text. Half of the steps take the case of the
 * moment, so that threads meet.
 *
 * The warm-up runs every case in every context. Then the time is cut into parts. Memory is measured between two parts,
 * while no thread runs, and compared with that after the first: threads that run at once keep buffers at once.
 */
#define _GNU_SOURCE
#include "problem.h"
#include "verify_case.h"

#include <argp.h>
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
    MOST_ELEMENTS = 40000, /* logits of a case, but for one long row */
    MOST_FAULTS = 10       /* that are printed */
};

/* ---- Options ------------------------------------------------------------------------------- */

typedef struct options {
    size_t threads, seed, cases;
    double seconds, growth; /* growth in MiB */
} options;

static const struct argp_option option_list[] = {
    { "threads", 't', "N", 0, "Threads (default: 8)", 0 },
    { "seconds", 's', "S", 0, "How long they run (default: 300)", 0 },
    { "seed", 'k', "K", 0, "Which cases, and which steps (default: 1)", 0 },
    { "cases", 'c', "N", 0, "Different cases (default: 96)", 0 },
    { "growth", 'g', "MIB", 0, "Resident memory may grow by so much after warm-up (default: 16)", 0 },
    { 0 },
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    options *o = state->input;
    char *end = NULL;
    const double number = value != NULL ? strtod(value, &end) : 0;

    if (value != NULL && (end == value || *end != '\0' || !(number >= 0 && number < 1e9)))
        argp_error(state, "-%c is '%s': takes a number of at least 0", key, value);
    switch (key) {
    case 't': o->threads = (size_t)number; return 0;
    case 's': o->seconds = number; return 0;
    case 'k': o->seed = (size_t)number; return 0;
    case 'c': o->cases = (size_t)number; return 0;
    case 'g': o->growth = number; return 0;
    case ARGP_KEY_END:
        if (o->threads == 0 || o->cases == 0) argp_error(state, "--threads and --cases take at least 1");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- Faults -------------------------------------------------------------------------------- */

static atomic_size_t faults, runs, host_runs, plans_made, contexts_made, programs;

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

/* Options that a plan's program is compiled for, and shapes that it serves: a kind costs one or two programs, however many
 * cases are drawn from it. */
static const struct kind {
    const char *text;   /* as case_read() reads it */
    size_t least, most; /* classes */
    size_t inner;
} kinds[] = {
    { "outputs=loss+gradient", 2, 60, 1 },
    { "outputs=loss+gradient", 5000, 9000, 1 },
    { "outputs=loss+gradient;reduction=sum", 140000, 150000, 1 }, /* split rows */
    { "outputs=loss+gradient;reduction=sum", 2, 30, 16 },
    { "outputs=losses+gradient+lse+entropy;reduction=none;gradient_dtype=f32;dtype=bf16;target_type=i32", 300,
      2000, 1 },
    { "outputs=losses+lse+argmax;reduction=none;dtype=f16;target_type=u8", 300, 2000, 1 },
    { "outputs=loss+gradient+correct;dtype=f64", 300, 1500, 1 },
    { "outputs=softmax+log_softmax", 300, 1500, 1 },
    { "outputs=losses+loss+gradient+lse;target_type=probabilities;label_smoothing=0.1", 300, 900, 1 },
    { "outputs=losses+loss+lse+softmax+gradient+argmax+correct+entropy+bad_targets;softcap=30;z_loss=0.01;"
      "label_smoothing=0.1;"
      "has_class_weights=1;has_row_weights=1;shift=1",
      300, 1500, 1 },
    { "op=softmax-backward;outputs=gradient", 3, 700, 1 },
    { "op=one-hot;outputs=one_hot", 3, 700, 1 },
};
enum { KINDS = sizeof kinds / sizeof *kinds };

typedef struct shared_plan {
    clxent_plan *plan;
    size_t users;
    bool replaced; /* destroyed when its last user is done */
} shared_plan;

typedef struct stress_case {
    verify_case drawn;
    problem p;
    pthread_mutex_t lock; /* of what follows; first does not change once recorded is set */
    bool recorded;
    execution first;
    shared_plan *plans[CONTEXTS];
} stress_case;

static stress_case *cases;
static size_t num_cases;

static size_t between(random_state *random, size_t low, size_t high)
{
    return low + random_u32(random) % (high - low + 1);
}

static bool chance(random_state *random, unsigned percent) { return random_u32(random) % 100 < percent; }

static bool draw_case(stress_case *c, const struct kind *kind, random_state *random, problem_fault *f)
{
    static const uint32_t fills[] = { FILL_DESIGNED,    FILL_MASKED, FILL_IGNORED,
                                      FILL_GRAD_OUTPUT, FILL_HIT,    FILL_STEADY };
    clxent_desc *desc = &c->drawn.desc;

    if (!case_read(&c->drawn, kind->text, f)) return false;
    desc->classes = between(random, kind->least, kind->most);
    desc->inner = kind->inner;
    const size_t slab = desc->classes * desc->inner;
    const size_t most = slab < MOST_ELEMENTS ? MOST_ELEMENTS / slab : 1;
    desc->batch = between(random, 1, most < 40 ? most : 40) * desc->inner;
    desc->seq = between(random, 1, 3);
    if (desc->batch * desc->seq * desc->classes > MOST_ELEMENTS) desc->seq = 1;
    if (chance(random, 30)) desc->row_stride = slab + between(random, 1, 20);
    if (chance(random, 30)) desc->gradient_row_stride = slab + between(random, 1, 20);
    for (size_t i = 0; i < sizeof fills / sizeof *fills; i++)
        if (chance(random, 40)) c->drawn.fill |= fills[i];
    c->drawn.seed = random_u32(random);
    return case_check(&c->drawn, f) && fill_problem(&c->p, desc, c->drawn.fill, c->drawn.seed, f);
}

static void draw_cases(const options *o)
{
    random_state random = random_start(o->seed);
    problem_fault f;

    cases = calloc(o->cases, sizeof *cases);
    need(cases != NULL ? CLXENT_OK : CLXENT_ERROR_OUT_OF_HOST_MEMORY, "calloc");
    for (size_t i = 0; num_cases < o->cases; i++) {
        stress_case *c = &cases[num_cases];
        if (strstr(kinds[i % KINDS].text, "dtype=f64") != NULL && !device.has_f64) continue;
        if (!draw_case(c, &kinds[i % KINDS], &random, &f)) {
            fprintf(stderr, "stress: %s: %s\n", kinds[i % KINDS].text, f.text);
            exit(EXIT_FAILURE);
        }
        pthread_mutex_init(&c->lock, NULL);
        num_cases++;
    }
}

static void drop_cases(void)
{
    for (size_t i = 0; i < num_cases; i++) {
        for (int k = 0; k < CONTEXTS; k++) {
            if (cases[i].plans[k] == NULL) continue;
            clxent_plan_destroy(cases[i].plans[k]->plan);
            free(cases[i].plans[k]);
        }
        free_execution(&cases[i].first);
        free_problem(&cases[i].p);
        pthread_mutex_destroy(&cases[i].lock);
    }
    free(cases);
}

/* ---- Plans that threads share --------------------------------------------------------------- */

static bool make_plan(clxent_plan **plan, clxent_context *ctx, const stress_case *c, problem_fault *f)
{
    char text[512];
    const clxent_status status = clxent_plan_create(plan, ctx, &c->p.desc);

    atomic_fetch_add(&plans_made, 1);
    if (status == CLXENT_OK) return true;
    clxent_context_last_error(ctx, text, sizeof text);
    return say_fault(f, "clxent_plan_create: %s: %s", clxent_status_string(status), text);
}

static shared_plan *borrow_plan(stress_case *c, int context, problem_fault *f)
{
    pthread_mutex_lock(&c->lock);
    shared_plan *shared = c->plans[context];
    if (shared == NULL) {
        shared = calloc(1, sizeof *shared);
        if (shared != NULL && !make_plan(&shared->plan, device.ctx[context], c, f)) {
            free(shared);
            shared = NULL;
        }
        c->plans[context] = shared;
    }
    if (shared != NULL) shared->users++;
    pthread_mutex_unlock(&c->lock);
    return shared;
}

static void return_plan(stress_case *c, shared_plan *shared)
{
    pthread_mutex_lock(&c->lock);
    const bool last = --shared->users == 0 && shared->replaced;
    pthread_mutex_unlock(&c->lock);
    if (!last) return;
    clxent_plan_destroy(shared->plan);
    free(shared);
}

/* The next to borrow one makes it anew. */
static void replace_plan(stress_case *c, int context)
{
    pthread_mutex_lock(&c->lock);
    shared_plan *shared = c->plans[context];
    c->plans[context] = NULL;
    const bool unused = shared != NULL && shared->users == 0;
    if (shared != NULL) shared->replaced = true;
    pthread_mutex_unlock(&c->lock);
    if (!unused) return;
    clxent_plan_destroy(shared->plan);
    free(shared);
}

/* ---- Steps --------------------------------------------------------------------------------- */

typedef struct worker {
    pthread_t thread;
    random_state random;
    runner on[CONTEXTS];
    double began, until;
    bool makes_context; /* in this part */
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
    shared_plan *shared = borrow_plan(c, context, f);
    if (shared == NULL) return false;
    const bool good = run_plan(c, &w->on[context], shared->plan, &w->random, f);
    return_plan(c, shared);
    return good;
}

static bool run_own_plan(stress_case *c, const runner *on, random_state *random, problem_fault *f)
{
    clxent_plan *plan;
    if (!make_plan(&plan, on->ctx, c, f)) return false;
    const bool good = run_plan(c, on, plan, random, f);
    clxent_plan_destroy(plan);
    return good;
}

/* The plan outlives the application's reference to its context. Once for each thread: PoCL 3.1 keeps about 50 kB of each
 * program that it builds, with clxent or without. */
static bool run_own_context(stress_case *c, const worker *w, int context, random_state *random,
                            problem_fault *f)
{
    runner on = w->on[context];
    clxent_plan *plan;

    atomic_fetch_add(&contexts_made, 1);
    const clxent_status status = clxent_context_create(&on.ctx, on.cl, device.id, NULL);
    if (status != CLXENT_OK) return say_fault(f, "clxent_context_create: %s", clxent_status_string(status));
    if (!make_plan(&plan, on.ctx, c, f)) {
        clxent_context_destroy(on.ctx);
        return false;
    }
    clxent_context_destroy(on.ctx);
    on.ctx = NULL;
    const bool good = run_plan(c, &on, plan, random, f);
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
    const size_t limit = chance(random, 25) ? between(random, 100, 20000) : 0;
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

static bool refuse_desc(const stress_case *c, clxent_context *ctx, problem_fault *f)
{
    clxent_desc desc = c->p.desc;
    clxent_plan *plan;
    char text[512] = "";

    desc.classes = 0;
    const clxent_status status = clxent_plan_create(&plan, ctx, &desc);
    clxent_context_last_error(ctx, text, sizeof text);
    if (status == CLXENT_ERROR_INVALID_DESC && plan == NULL && text[0] != '\0') return true;
    return say_fault(f, "a desc of 0 classes: %s, \"%s\"", clxent_status_string(status), text);
}

enum kind_of_step { SHARED_PLAN, OWN_PLAN, OWN_CONTEXT, HOST_ARRAYS, REPLACE, REFUSE };
static const char *const step_names[] = { "a shared plan", "a plan of its own", "a context of its own",
                                          "host arrays",   "replace",           "refuse" };

static enum kind_of_step draw_step(random_state *random)
{
    const uint32_t drawn = random_u32(random) % 100;
    if (drawn < 57) return SHARED_PLAN;
    if (drawn < 77) return OWN_PLAN;
    if (drawn < 92) return HOST_ARRAYS;
    return drawn < 97 ? REPLACE : REFUSE;
}

static void take_step(worker *w, enum kind_of_step kind)
{
    random_state *random = &w->random;
    const size_t moment = (size_t)(seconds_now() - w->began) % num_cases;
    stress_case *c = &cases[chance(random, 50) ? moment : random_u32(random) % num_cases];
    const int context = (int)(random_u32(random) % CONTEXTS);
    const runner *on = &w->on[context];
    problem_fault f = { "out of memory" };
    bool good = true;

    switch (kind) {
    case SHARED_PLAN: good = run_shared_plan(c, w, context, &f); break;
    case OWN_PLAN: good = run_own_plan(c, on, random, &f); break;
    case OWN_CONTEXT: good = run_own_context(c, w, context, random, &f); break;
    case HOST_ARRAYS: good = run_host_arrays(c, on, random, &f); break;
    case REPLACE: replace_plan(c, context); break;
    case REFUSE: good = refuse_desc(c, on->ctx, &f); break;
    }
    if (!good) report_fault(step_names[kind], &c->drawn, &f);
}

static void *work(void *payload)
{
    worker *w = payload;
    if (w->makes_context) take_step(w, OWN_CONTEXT);
    while (seconds_now() < w->until) take_step(w, draw_step(&w->random));
    return NULL;
}

/* The threads share out the cases among them. */
static void *warm_up(void *payload)
{
    static atomic_size_t taken;
    worker *w = payload;
    size_t i;

    while ((i = atomic_fetch_add(&taken, 1)) < num_cases * CONTEXTS) {
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

static void run_part(worker *workers, const options *o, int part, double began)
{
    const double until = seconds_now() + o->seconds / PARTS;

    for (size_t i = 0; i < o->threads; i++) {
        workers[i].began = began;
        workers[i].until = until;
        workers[i].makes_context = i % PARTS == (size_t)part - 1;
    }
    run_threads(workers, o->threads, work);
}

static void print_part(double seconds, double resident)
{
    printf("%6.0f s: %zu runs, %zu by clxent_run_host, %zu plans, %zu contexts, %zu programs, %zu faults, "
           "%.1f MiB resident\n",
           seconds, atomic_load(&runs), atomic_load(&host_runs), atomic_load(&plans_made),
           atomic_load(&contexts_made), atomic_load(&programs), atomic_load(&faults), resident);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const struct argp argp = {
        option_list, parse, NULL, "Random plans on shared contexts, from many threads.", NULL, NULL, NULL
    };
    options o = { .threads = 8, .seconds = 300, .seed = 1, .cases = 96, .growth = 16 };
    double warm = 0, now = 0;

    argp_parse(&argp, argc, argv, 0, NULL, &o);
    open_device();
    draw_cases(&o);
    worker *workers = calloc(o.threads, sizeof *workers);
    need(workers != NULL ? CLXENT_OK : CLXENT_ERROR_OUT_OF_HOST_MEMORY, "calloc");
    for (size_t i = 0; i < o.threads; i++) open_worker(&workers[i], o.seed * 1000 + i + 1);

    double began = seconds_now();
    run_threads(workers, o.threads, warm_up);
    print_part(seconds_now() - began, resident_memory());
    began = seconds_now();
    for (int part = 1; part <= PARTS; part++) {
        run_part(workers, &o, part, began);
        now = resident_memory();
        if (part == 1) warm = now;
        print_part(seconds_now() - began, now);
    }

    for (size_t i = 0; i < o.threads; i++) close_worker(&workers[i]);
    free(workers);
    drop_cases();
    close_device();
    const bool grew = now - warm > o.growth;
    printf("%zu faults; resident memory grew by %.1f MiB since the first part, %s %.0f\n",
           atomic_load(&faults), now - warm, grew ? "more than" : "at most", o.growth);
    return atomic_load(&faults) > 0 || grew ? EXIT_FAILURE : EXIT_SUCCESS;
}
