/* SPDX-License-Identifier: MIT
 *
 * onednn.c - log-softmax forward and backward of oneDNN on its CPU engine, for tools/peers.py: prints a line once
 * warm, then for each line of standard input the seconds of one run.
 *
 *     peer_onednn ROWS CLASSES [loss]
 *
 * With loss it is the forward pass alone. The backward pass gets the gradient of a mean loss, -1 / ROWS at one class of
 * each row, prepared beforehand: picking the loss and writing that one-hot gradient is not in the figures.
 */
#define _POSIX_C_SOURCE 200809L
#include <oneapi/dnnl/dnnl.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void check(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success) return;
    fprintf(stderr, "peer_onednn: %s: status %d\n", what, (int)status);
    exit(EXIT_FAILURE);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *matrix(size_t elements)
{
    const size_t line = 64;
    float *values = aligned_alloc(line, (elements * sizeof *values + line - 1) / line * line);

    if (values == NULL) {
        fprintf(stderr, "peer_onednn: out of memory: %zu floats\n", elements);
        exit(EXIT_FAILURE);
    }
    return values;
}

/* Forward and backward of the same shape; version 3 has no operation descriptors any more. */
static void create(dnnl_primitive_t *forward, dnnl_primitive_t *backward, dnnl_memory_t memory[4],
                   dnnl_engine_t engine, const dnnl_dims_t dims, float *const data[4])
{
    dnnl_primitive_desc_t forward_desc, backward_desc;

#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_t desc;
    check(dnnl_memory_desc_create_with_tag(&desc, 2, dims, dnnl_f32, dnnl_ab), "memory descriptor");
    check(dnnl_softmax_forward_primitive_desc_create(&forward_desc, engine, dnnl_forward_training,
                                                     dnnl_softmax_log, desc, desc, 1, NULL),
          "forward descriptor");
    check(dnnl_softmax_backward_primitive_desc_create(&backward_desc, engine, dnnl_softmax_log, desc, desc,
                                                      desc, 1, forward_desc, NULL),
          "backward descriptor");
    for (int i = 0; i < 4; i++) check(dnnl_memory_create(&memory[i], desc, engine, data[i]), "memory");
    check(dnnl_memory_desc_destroy(desc), "memory descriptor");
#else
    dnnl_memory_desc_t desc;
    dnnl_logsoftmax_desc_t op;
    check(dnnl_memory_desc_init_by_tag(&desc, 2, dims, dnnl_f32, dnnl_ab), "memory descriptor");
    check(dnnl_logsoftmax_forward_desc_init(&op, dnnl_forward_training, &desc, 1), "forward descriptor");
    check(dnnl_primitive_desc_create(&forward_desc, &op, NULL, engine, NULL), "forward descriptor");
    check(dnnl_logsoftmax_backward_desc_init(&op, &desc, &desc, 1), "backward descriptor");
    check(dnnl_primitive_desc_create(&backward_desc, &op, NULL, engine, forward_desc), "backward descriptor");
    for (int i = 0; i < 4; i++) check(dnnl_memory_create(&memory[i], &desc, engine, data[i]), "memory");
#endif
    check(dnnl_primitive_create(forward, forward_desc), "forward");
    check(dnnl_primitive_create(backward, backward_desc), "backward");
    check(dnnl_primitive_desc_destroy(forward_desc), "forward descriptor");
    check(dnnl_primitive_desc_destroy(backward_desc), "backward descriptor");
}

enum { X, LOG_P, LOG_P_GRADIENT, X_GRADIENT };

/* backward NULL: forward alone. */
static double run(dnnl_stream_t stream, dnnl_primitive_t forward, dnnl_primitive_t backward,
                  dnnl_memory_t memory[4])
{
    const dnnl_exec_arg_t to_log_p[] = { { DNNL_ARG_SRC, memory[X] }, { DNNL_ARG_DST, memory[LOG_P] } };
    const dnnl_exec_arg_t to_gradient[] = { { DNNL_ARG_DST, memory[LOG_P] },
                                            { DNNL_ARG_DIFF_DST, memory[LOG_P_GRADIENT] },
                                            { DNNL_ARG_DIFF_SRC, memory[X_GRADIENT] } };
    const double start = now();

    check(dnnl_primitive_execute(forward, stream, 2, to_log_p), "forward");
    if (backward != NULL) check(dnnl_primitive_execute(backward, stream, 3, to_gradient), "backward");
    check(dnnl_stream_wait(stream), "stream");
    return now() - start;
}

int main(int argc, char **argv)
{
    const int loss_alone = argc == 4 && strcmp(argv[3], "loss") == 0, good = argc == 3 || loss_alone;
    const long rows = good ? strtol(argv[1], NULL, 10) : 0, classes = good ? strtol(argv[2], NULL, 10) : 0;
    const dnnl_version_t *version = dnnl_version();
    dnnl_primitive_t forward, backward;
    dnnl_memory_t memory[4];
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    float *data[4];
    char line[64];

    if (rows < 1 || classes < 1 || rows > 1 << 28 || classes > 1 << 28) {
        fprintf(stderr, "usage: peer_onednn ROWS CLASSES [loss], each from 1 to %d\n", 1 << 28);
        return 2;
    }
    const size_t elements = (size_t)rows * (size_t)classes;
    const dnnl_dims_t dims = { rows, classes };
    uint32_t random = 1;
    for (int i = 0; i < 4; i++) data[i] = matrix(elements);
    for (size_t i = 0; i < elements; i++) {
        random = random * 1664525u + 1013904223u;
        data[X][i] = (float)(random >> 8) / 1048576.0f - 8.0f;
    }
    memset(data[LOG_P_GRADIENT], 0, elements * sizeof(float));
    for (size_t row = 0; row < (size_t)rows; row++)
        data[LOG_P_GRADIENT][row * (size_t)classes + row % (size_t)classes] = -1.0f / (float)rows;

    check(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine");
    check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream");
    create(&forward, &backward, memory, engine, dims, data);
    const dnnl_primitive_t second = loss_alone ? NULL : backward;
    run(stream, forward, second, memory);
    run(stream, forward, second, memory);

    printf("oneDNN %d.%d.%d\n", version->major, version->minor, version->patch);
    while (fflush(stdout) == 0 && fgets(line, sizeof line, stdin) != NULL)
        printf("%.9f\n", run(stream, forward, second, memory));

    check(dnnl_primitive_destroy(forward), "forward");
    check(dnnl_primitive_destroy(backward), "backward");
    for (int i = 0; i < 4; i++) {
        check(dnnl_memory_destroy(memory[i]), "memory");
        free(data[i]);
    }
    check(dnnl_stream_destroy(stream), "stream");
    check(dnnl_engine_destroy(engine), "engine");
    return EXIT_SUCCESS;
}
