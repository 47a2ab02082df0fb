/* SPDX-License-Identifier: MIT
 *
 * test_threads.c - threads run plans on shared contexts: every run of a case has the bits of the case's first run, which
 * the reference has checked.
 *
 *     CLXENT_TEST_STRESS=SECONDS build/tests/test_threads    (and what else ctest sets)
 *
 * takes random cases of `clxent verify` and more threads for so long, and demands that resident memory stays flat.
 *
 * A step of a thread is one run of one case: by a plan that threads share and enqueue at the same time, each with its own
 * buffers and workspace; by a plan made for the step; or by clxent_run_host(). Half of the steps take the case of the moment,
 * so that threads meet. Contexts that are made and destroyed beside others: test_store.c.
 */
#include "support.h"
#include "verify_case.h"

#include <criterion/criterion.h>

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CONTEXTS = 2,
    MOST_CASES = 96,
    MOST_THREADS = 8,
    STEPS = 600, /* of a thread, without CLXENT_TEST_STRESS */
    MEETING = 64 /* steps of all threads with one case of the moment */
};

TestSuite(threads, .init = open_device, .fini = close_device);

static clxent_context *contexts[CONTEXTS];

typedef struct shared_case {
    verify_case drawn;
    problem p;
    pthread_mutex_t lock; /* of what follows; first does not change once recorded is set */
    bool recorded;
    execution first;
    clxent_plan *plans[CONTEXTS]; /* which threads share */
} shared_case;

static shared_case cases[MOST_CASES];
static size_t case_count;
static atomic_size_t steps;

static void add_case(const char *name, const verify_case *drawn)
{
    shared_case *c = &cases[case_count++];
    (void)name;
    c->drawn = *drawn;
    c->drawn.fill &= ~(uint32_t)FILL_BAD_TARGETS; /* clxent_run_host() refuses them */
    make_problem(&c->p, &drawn->desc, c->drawn.fill, drawn->seed);
    pthread_mutex_init(&c->lock, NULL);
}

static void open_cases(bool stress)
{
    /* programs of other tests, of either operation; row weights are a pass over the targets */
    static const case_line few = { "threads",
                                   "outputs=" ONE_PASS_NAMES
                                   "|loss+losses+hidden_gradient+weight_gradient;op=cross-entropy|"
                                   "linear-cross-entropy;batch=9;classes=5|20|1100|20;features=0|6;cases=8;"
                                   "has_row_weights=1|0|0|1;fill=designed+ignored" };
    contexts[0] = device.ctx;
    cr_assert(clxent_context_create(&contexts[1], device.cl, device.id, NULL) == CLXENT_OK);
    if (!stress) each_case(&few, 1, add_case);
    for (uint64_t i = 0; stress && case_count < MOST_CASES; i++) {
        verify_case c;
        case_draw(&c, 1, i, 40000);
        c.desc.workspace_limit = 0; /* some are too small */
        if (c.desc.dtype != CLXENT_F64 || device.has_f64) add_case("", &c);
    }
}

static void close_cases(void)
{
    for (size_t i = 0; i < case_count; i++) {
        for (int k = 0; k < CONTEXTS; k++) clxent_plan_destroy(cases[i].plans[k]);
        free_execution(&cases[i].first);
        free_problem(&cases[i].p);
        pthread_mutex_destroy(&cases[i].lock);
    }
    clxent_context_destroy(contexts[1]);
}

/* ---- Steps --------------------------------------------------------------------------------- */

typedef struct worker {
    pthread_t thread;
    random_state random;
    runner on[CONTEXTS];
    double until; /* 0: STEPS of them */
    bool failed;
    char text[CASE_TEXT_SIZE + sizeof(problem_fault) + 4];
} worker;

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool chance(random_state *random, unsigned percent) { return random_u32(random) % 100 < percent; }

static bool make_plan(clxent_plan **plan, clxent_context *ctx, const shared_case *c, problem_fault *f)
{
    const clxent_status status = clxent_plan_create(plan, ctx, &c->p.desc);
    return status == CLXENT_OK || say_fault(f, "clxent_plan_create: %s", clxent_status_string(status));
}

/* The first run of a case is recorded, others wait for it; every later one, of all outputs or some, is compared with it. */
static bool run_plan(shared_case *c, const runner *on, clxent_plan *plan, random_state *random,
                     problem_fault *f)
{
    const uint32_t flags = random_u32(random) & (CASE_ALIGNED | CASE_OUT_OF_ORDER);
    const uint32_t all = c->p.desc.outputs, some = all & random_u32(random);
    const uint32_t outputs = chance(random, 70) || some == 0 ? all : some;
    execution e;

    pthread_mutex_lock(&c->lock);
    if (!c->recorded)
        c->recorded = execute(&c->first, on, plan, &c->p, all, NULL, flags, f) &&
                      check_untouched(&c->p, &c->first, all, f) && check_reference(&c->p, &c->first, NULL, f);
    const bool recorded = c->recorded;
    pthread_mutex_unlock(&c->lock);
    if (!recorded) return false;

    const bool good = execute(&e, on, plan, &c->p, outputs, NULL, flags, f) &&
                      check_untouched(&c->p, &e, outputs, f) &&
                      check_same_bits("than in the first run", &c->p, &c->first, &e, outputs, f);
    free_execution(&e);
    return good;
}

static bool run_shared_plan(shared_case *c, worker *w, int context, problem_fault *f)
{
    clxent_plan **plan = &c->plans[context];

    pthread_mutex_lock(&c->lock);
    const bool made = *plan != NULL || make_plan(plan, contexts[context], c, f);
    pthread_mutex_unlock(&c->lock);
    return made && run_plan(c, &w->on[context], *plan, &w->random, f);
}

static bool run_own_plan(shared_case *c, const runner *on, random_state *random, problem_fault *f)
{
    clxent_plan *plan;
    if (!make_plan(&plan, on->ctx, c, f)) return false;
    const bool good = run_plan(c, on, plan, random, f);
    clxent_plan_destroy(plan);
    return good;
}

/* In parts where one row fits the limit, else whole. */
static bool run_host_arrays(shared_case *c, const runner *on, random_state *random, problem_fault *f)
{
    const uint32_t outputs = c->p.desc.outputs;
    size_t limit = chance(random, 25) ? 100 + random_u32(random) % 20000 : 0;
    execution e;
    clxent_status status;

    bool good = execute_on_host(&e, on, &c->p, 0, limit, &status, f);
    if (good && limit > 0 && status == CLXENT_ERROR_INVALID_ARGUMENT) {
        free_execution(&e);
        good = execute_on_host(&e, on, &c->p, 0, 0, &status, f);
    }
    if (good && status != CLXENT_OK) good = say_fault(f, "clxent_run_host: %s", clxent_status_string(status));
    good = good && check_untouched(&c->p, &e, outputs, f) &&
           check_same_bits("by clxent_run_host", &c->p, &c->first, &e, outputs, f);
    free_execution(&e);
    return good;
}

static bool has_first_run(shared_case *c)
{
    pthread_mutex_lock(&c->lock);
    const bool recorded = c->recorded;
    pthread_mutex_unlock(&c->lock);
    return recorded;
}

static bool take_step(worker *w, const shared_case **taken, problem_fault *f)
{
    random_state *random = &w->random;
    const size_t moment = atomic_fetch_add(&steps, 1) / MEETING;
    shared_case *c =
        &cases[(chance(random, w->until > 0 ? 50 : 90) ? moment : random_u32(random)) % case_count];
    const int context = chance(random, w->until > 0 ? 50 : 10);

    *taken = c;
    if (chance(random, w->until > 0 ? 60 : 90)) return run_shared_plan(c, w, context, f);
    /* linear cross-entropy has sums over rows, with other bits where host arrays are cut */
    if (chance(random, 45) && c->p.desc.op != CLXENT_OP_LINEAR_CROSS_ENTROPY && has_first_run(c))
        return run_host_arrays(c, &w->on[context], random, f);
    return run_own_plan(c, &w->on[context], random, f);
}

static void *work(void *payload)
{
    worker *w = payload;
    problem_fault f = { "out of memory" };
    const shared_case *c;
    char text[CASE_TEXT_SIZE];

    for (size_t i = 0; !w->failed && (w->until > 0 ? seconds_now() < w->until : i < STEPS); i++) {
        if (take_step(w, &c, &f)) continue;
        case_write(&c->drawn, text);
        (void)snprintf(w->text, sizeof w->text, "%s: %s", text, f.text);
        w->failed = true;
    }
    return NULL;
}

/* ---- Threads ------------------------------------------------------------------------------- */

/* Two of them on one queue, the others on queues of their own. */
static void open_worker(worker *w, size_t number)
{
    cl_command_queue out_of_order = make_out_of_order_queue(), queue = device.queue;
    cl_int code = CL_SUCCESS;

    if (number >= 2) queue = clCreateCommandQueue(device.cl, device.id, 0, &code);
    cr_assert(code == CL_SUCCESS);
    w->random = random_start(1000 + number);
    for (int i = 0; i < CONTEXTS; i++)
        w->on[i] = (runner){ device.cl, queue, out_of_order, contexts[i], clxent_plan_create };
}

static void close_worker(worker *w)
{
    if (w->on[0].queue != device.queue) clReleaseCommandQueue(w->on[0].queue);
    if (w->on[0].out_of_order != NULL) clReleaseCommandQueue(w->on[0].out_of_order);
}

static void run_threads(worker *workers, size_t threads, double seconds)
{
    const double until = seconds > 0 ? seconds_now() + seconds : 0;

    for (size_t i = 0; i < threads; i++) {
        workers[i].until = until;
        cr_assert(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    }
    for (size_t i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
    for (size_t i = 0; i < threads; i++) cr_assert(!workers[i].failed, "thread %zu: %s", i, workers[i].text);
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
    cr_assert(kibibytes >= 0, "/proc/self/status has no RssAnon");
    return kibibytes / 1024;
}

/* After a run of every case in every context. Memory is measured between two parts, while no thread runs, and compared with
 * that after the first: threads that run at once keep buffers at once. */
static void run_for(worker *workers, size_t threads, double seconds)
{
    enum { PARTS = 6, MOST_GROWTH = 16 };
    double first = 0, now = 0;
    problem_fault f = { "out of memory" };

    for (size_t i = 0; i < CONTEXTS * case_count; i++)
        cr_assert(run_shared_plan(&cases[i / CONTEXTS], &workers[0], (int)(i % CONTEXTS), &f), "%s", f.text);
    for (int part = 0; part < PARTS; part++) {
        run_threads(workers, threads, seconds / PARTS);
        now = resident_memory();
        if (part == 0) first = now;
        (void)fprintf(stderr, "%zu steps, %.1f MiB resident\n", atomic_load(&steps), now);
    }
    cr_assert(now - first <= MOST_GROWTH, "%.1f MiB more than after the first part", now - first);
}

Test(threads, runs_at_once_have_the_bits_of_one)
{
    const char *text = getenv("CLXENT_TEST_STRESS");
    const double seconds = text != NULL ? strtod(text, NULL) : 0;
    const size_t threads = seconds > 0 ? MOST_THREADS : 4;
    worker workers[MOST_THREADS] = { 0 };

    if (small_run()) cr_skip("Oclgrind takes no calls of several threads at once");
    open_cases(seconds > 0);
    for (size_t i = 0; i < threads; i++) open_worker(&workers[i], i);
    if (seconds > 0) run_for(workers, threads, seconds);
    else run_threads(workers, threads, 0);
    for (size_t i = 0; i < threads; i++) close_worker(&workers[i]);
    close_cases();
}
