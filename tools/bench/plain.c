/* SPDX-License-Identifier: MIT
 *
 * plain.c - the loss and gradient that a C programmer would write; see hand.h. It is compiled with -O3 -ffast-math, and
 * the compiler brings the exponential of vectors.
 */
#include "hand.h"

#include <math.h>

#ifdef __AVX512F__
#    define hand_plain hand_plain_avx512
#else
#    define hand_plain hand_plain_avx2
#endif

double hand_plain(const hand_problem *p, size_t begin, size_t end, unsigned variant, float *scratch)
{
    const size_t classes = p->classes;
    const float weight = 1.0f / (float)p->rows;
    double loss = 0;
    (void)variant, (void)scratch;

    for (size_t row = begin; row < end; row++) {
        const float *restrict x = (const float *)p->logits + row * classes;
        float *restrict gradient = (float *)p->gradient + row * classes;
        const size_t target = (size_t)p->targets[row];
        float most = x[0], sum = 0;

        for (size_t i = 1; i < classes; i++) most = x[i] > most ? x[i] : most;
        for (size_t i = 0; i < classes; i++) {
            gradient[i] = expf(x[i] - most);
            sum += gradient[i];
        }
        loss += (double)(logf(sum) + most - x[target]);
        const float scale = weight / sum;
        for (size_t i = 0; i < classes; i++) gradient[i] *= scale;
        gradient[target] -= weight;
    }
    return loss;
}
