/* SPDX-License-Identifier: MIT
 *
 * blas.c - OpenBLAS, the peer of the linear cross-entropy's products, where its library can be opened at run time; see
 * measure.h. What is here alone: the library's names, the part of its interface that is called, and the kernels it is
 * told to take.
 */
#define _XOPEN_SOURCE 700
#include "measure.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Of the CBLAS interface with 32-bit integers. */
enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 };
typedef void sgemm(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                   const float *a, int a_stride, const float *b, int b_stride, float beta, float *c,
                   int c_stride);
typedef void dgemm(int order, int transpose_a, int transpose_b, int m, int n, int k, double alpha,
                   const double *a, int a_stride, const double *b, int b_stride, double beta, double *c,
                   int c_stride);

struct blas_functions {
    sgemm *sgemm;
    dgemm *dgemm;
    void (*set_threads)(int threads);
    int (*get_threads)(void);
    char *(*get_core)(void), *(*get_config)(void);
};

/* Debian, Fedora and others, macOS with Homebrew. */
static const char *const names[] = {
    "libopenblas.so.0", "libopenblasp.so.0",   "libopenblaso.so.0",
    "libopenblas.so",   "libopenblas.0.dylib", "/opt/homebrew/opt/openblas/lib/libopenblas.dylib"
};

static const char core_variable[] = "OPENBLAS_CORETYPE";

/* OpenBLAS 0.3.21 does not know newer Xeons and takes "Prescott", of SSE3, or kernels that are slower than those of the
 * first AVX-512 CPUs. It reads the variable while it is opened. */
static bool has_avx512(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

static bool find_functions(blas *b, void *library)
{
    static struct blas_functions f;
    /* ISO C has no cast from an object's address to a function's. */
    const struct {
        const char *name;
        void *to;
    } wanted[] = { { "cblas_sgemm", &f.sgemm },
                   { "cblas_dgemm", &f.dgemm },
                   { "openblas_set_num_threads", &f.set_threads },
                   { "openblas_get_num_threads", &f.get_threads },
                   { "openblas_get_corename", &f.get_core },
                   { "openblas_get_config", &f.get_config } };

    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (found == NULL) {
            snprintf(b->why_not, sizeof b->why_not, "%s has no %s", b->library, wanted[i].name);
            return false;
        }
        memcpy(wanted[i].to, &found, sizeof found);
    }
    b->functions = &f;
    return true;
}

void blas_open(blas *b, const char *library)
{
    const char *const *candidates = library != NULL ? &library : names;
    const size_t count = library != NULL ? 1 : sizeof names / sizeof *names;
    void *opened = NULL;

    memset(b, 0, sizeof *b);
    if (getenv(core_variable) == NULL && has_avx512())
        b->chose_core = setenv(core_variable, "SkylakeX", 0) == 0;
    for (size_t i = 0; opened == NULL && i < count; i++) {
        b->library = candidates[i];
        opened = dlopen(candidates[i], RTLD_NOW | RTLD_LOCAL);
        /* the first name's fault: the others are for other systems */
        const char *fault = opened == NULL && i == 0 ? dlerror() : NULL;
        if (fault != NULL) snprintf(b->why_not, sizeof b->why_not, "%.200s", fault);
    }
    /* Never closed: its threads live as long as the process. */
    if (opened == NULL || !find_functions(b, opened)) return;
    snprintf(b->core, sizeof b->core, "%s", b->functions->get_core());
    snprintf(b->config, sizeof b->config, "%s", b->functions->get_config());
    for (char *end = b->config + strlen(b->config); end > b->config && end[-1] == ' ';) *--end = '\0';
}

bool blas_prepare(blas *b, const cli_device *device)
{
    if (b->functions == NULL) return false;
    if ((device->type & CL_DEVICE_TYPE_CPU) == 0) {
        snprintf(b->why_not, sizeof b->why_not, "the device is no CPU");
        b->functions = NULL;
        return false;
    }
    b->functions->set_threads(device->compute_units < INT_MAX ? (int)device->compute_units : INT_MAX);
    b->threads = b->functions->get_threads();
    return true;
}

/* c [m, n] = a b, row-major; a is [m, k] or its transpose [k, m], b is [k, n] or its transpose [n, k]. */
typedef struct operands {
    const void *a, *b;
    void *c;
    bool transpose_a, transpose_b;
    size_t m, n, k;
} operands;

static void multiply(const struct blas_functions *f, bool f64, const operands *o)
{
    const int m = (int)o->m, n = (int)o->n, k = (int)o->k;
    const int a_stride = o->transpose_a ? m : k, b_stride = o->transpose_b ? k : n;
    const int a = o->transpose_a ? TRANSPOSE : NO_TRANSPOSE, b = o->transpose_b ? TRANSPOSE : NO_TRANSPOSE;

    if (f64) f->dgemm(ROW_MAJOR, a, b, m, n, k, 1, o->a, a_stride, o->b, b_stride, 0, o->c, n);
    else f->sgemm(ROW_MAJOR, a, b, m, n, k, 1, o->a, a_stride, o->b, b_stride, 0, o->c, n);
}

void blas_run(const blas *b, const blas_problem *p)
{
    const operands products[] = {
        { p->hidden, p->weight, p->logits, false, true, p->rows, p->classes, p->features },
        { p->logits, p->weight, p->hidden_gradient, false, false, p->rows, p->features, p->classes },
        { p->logits, p->hidden, p->weight_gradient, true, false, p->classes, p->features, p->rows },
    };

    for (size_t i = 0; i < (p->hidden_gradient != NULL ? 3 : 1); i++)
        multiply(b->functions, p->f64, &products[i]);
}
