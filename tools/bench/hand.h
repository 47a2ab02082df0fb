/* SPDX-License-Identifier: MIT
 *
 * hand.h - loss and gradient written by hand for one instruction set, beside which `clxent bench --suite` times the
 * kernels. They have no options, and rows are finite: what a CPU can do, not what a library must do. Each source is
 * compiled once for AVX2 and once for AVX-512.
 */
#ifndef CLXENT_BENCH_HAND_H
#define CLXENT_BENCH_HAND_H

#include <stddef.h>
#include <stdint.h>

typedef struct hand_problem {
    const void *logits; /* [rows, classes], 64-byte aligned, finite, of magnitudes below 90,000 */
    void *gradient;     /* of the mean loss, as the logits, which it may replace; NULL: losses alone */
    const int32_t *targets;
    size_t rows, classes;
    uint32_t dtype; /* CLXENT_F32, CLXENT_BF16, CLXENT_F16 */
} hand_problem;

enum {
    HAND_KEEP = 1 << 0,   /* the gradient is made of exponentials that were kept, not computed again */
    HAND_STREAM = 1 << 1, /* stores bypass the caches */
    HAND_VARIANTS = 1 << 2
};

/* The sum of the losses of rows from begin to end. scratch: hand_scratch() bytes, 64-byte aligned. */
typedef double hand_function(const hand_problem *p, size_t begin, size_t end, unsigned variant,
                             float *scratch);
static inline size_t hand_scratch(size_t classes) { return (classes + classes / 512 + 64) / 16 * 64; }

hand_function hand_rows_avx2, hand_rows_avx512;   /* from 256 classes on */
hand_function hand_ten_avx2, hand_ten_avx512;     /* 10 classes of f32; begin and end are multiples of 8 */
hand_function hand_plain_avx2, hand_plain_avx512; /* the loop that anybody would write, f32 with gradient */

#endif
