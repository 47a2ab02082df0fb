/* SPDX-License-Identifier: MIT
 *
 * bench_hand.c - runs tools/bench/hand.c and plain.c on as many threads as the device has compute units. What is here
 * alone: which instruction set is taken, and how the rows are shared out.
 */
#define _XOPEN_SOURCE 700
#include "measure.h"

#include <stdlib.h>

typedef struct hand_set {
    const char *name;
    hand_function *functions[3]; /* by HAND_ROWS, HAND_TEN, HAND_PLAIN */
} hand_set;

#ifdef CLXENT_HAS_HAND
static const hand_set sets[] = { { "AVX2", { hand_rows_avx2, hand_ten_avx2, hand_plain_avx2 } },
                                 { "AVX-512", { hand_rows_avx512, hand_ten_avx512, hand_plain_avx512 } } };

static bool supports(size_t set)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           (set == 0 || (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")));
}
#endif

struct hand_pool {
    const hand_set *set;
    size_t threads; /* the caller's, number 0, is one of them */
    pthread_t *thread;
    pthread_mutex_t lock;           /* held until all threads are there */
    pthread_barrier_t begins, ends; /* of a run; all threads wait at either */
    atomic_size_t started;
    bool closing;

    /* of the latest run */
    const hand_problem *problem;
    hand_function *function;
    unsigned variant;
    size_t piece;         /* rows that a free thread takes at a time */
    atomic_size_t taken;  /* rows */
    double *loss;         /* of the rows that each thread has done */
    float *scratch;       /* of all threads, one after the other */
    size_t scratch_bytes; /* of one */
};

static void work(hand_pool *pool, size_t number)
{
    const hand_problem *p = pool->problem;
    float *scratch = pool->scratch + number * (pool->scratch_bytes / sizeof(float));
    double loss = 0;

    for (size_t row; (row = atomic_fetch_add(&pool->taken, pool->piece)) < p->rows;) {
        const size_t end = row + pool->piece < p->rows ? row + pool->piece : p->rows;
        loss += pool->function(p, row, end, pool->variant, scratch);
    }
    pool->loss[number] = loss;
}

static void *thread_main(void *data)
{
    hand_pool *pool = data;
    const size_t number = atomic_fetch_add(&pool->started, 1) + 1;

    pthread_mutex_lock(&pool->lock);
    pthread_mutex_unlock(&pool->lock);
    for (;;) {
        pthread_barrier_wait(&pool->begins);
        if (pool->closing) return NULL;
        work(pool, number);
        pthread_barrier_wait(&pool->ends);
    }
}

hand_pool *hand_open(uint32_t choice, const cli_device *device, const char **why_not)
{
    const size_t threads = device->compute_units > 0 ? device->compute_units : 1;
    const hand_set *set = NULL;

    *why_not = "--hand none";
    if (choice == HAND_NONE) return NULL;
    *why_not = "the device is no CPU";
    if ((device->type & CL_DEVICE_TYPE_CPU) == 0) return NULL;
    *why_not = "this build has no hand-written code";
#ifdef CLXENT_HAS_HAND
    cl_uint width = 0;
    (void)clGetDeviceInfo(device->id, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, sizeof width, &width, NULL);
    const size_t number = choice == HAND_AUTO ? (width >= 16 && supports(1)) : choice == HAND_AVX512;
    *why_not = "the CPU lacks the instructions";
    if (supports(number)) set = &sets[number];
#endif
    if (set == NULL) return NULL;
    *why_not = "out of memory or threads";
    hand_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL) return NULL;
    pool->set = set;
    pool->threads = 1;
    pool->thread = calloc(threads, sizeof *pool->thread);
    pool->loss = calloc(threads, sizeof *pool->loss);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_mutex_lock(&pool->lock);
    while (pool->thread != NULL && pool->loss != NULL && pool->threads < threads &&
           pthread_create(&pool->thread[pool->threads], NULL, thread_main, pool) == 0)
        pool->threads++;
    pthread_barrier_init(&pool->begins, NULL, (unsigned)pool->threads);
    pthread_barrier_init(&pool->ends, NULL, (unsigned)pool->threads);
    pthread_mutex_unlock(&pool->lock);
    if (pool->threads == threads && pool->thread != NULL && pool->loss != NULL) return pool;
    hand_close(pool);
    return NULL;
}

void hand_close(hand_pool *pool)
{
    if (pool == NULL) return;
    pool->closing = true;
    pthread_barrier_wait(&pool->begins);
    for (size_t i = 1; i < pool->threads; i++) pthread_join(pool->thread[i], NULL);
    pthread_barrier_destroy(&pool->begins);
    pthread_barrier_destroy(&pool->ends);
    pthread_mutex_destroy(&pool->lock);
    free(pool->thread);
    free(pool->loss);
    free(pool->scratch);
    free(pool);
}

const char *hand_name(const hand_pool *pool) { return pool->set->name; }

bool hand_prepare(hand_pool *pool, size_t classes)
{
    const size_t bytes = hand_scratch(classes);

    if (bytes <= pool->scratch_bytes) return true;
    free(pool->scratch);
    pool->scratch = aligned_alloc(64, pool->threads * bytes);
    pool->scratch_bytes = pool->scratch != NULL ? bytes : 0;
    return pool->scratch != NULL || cli_fail(NULL, "out of memory: exponentials of %zu classes", classes);
}

double hand_run(hand_pool *pool, const hand_problem *p, int which, unsigned variant)
{
    const size_t eight = 8; /* rows that hand_ten() takes at once */
    double loss = 0;

    pool->problem = p;
    pool->function = pool->set->functions[which];
    pool->variant = variant;
    pool->piece = (p->rows / (64 * pool->threads) / eight + 1) * eight;
    atomic_store(&pool->taken, 0);
    pthread_barrier_wait(&pool->begins);
    work(pool, 0);
    pthread_barrier_wait(&pool->ends);
    for (size_t i = 0; i < pool->threads; i++) loss += pool->loss[i];
    return loss / (double)p->rows;
}
