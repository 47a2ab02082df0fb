/* SPDX-License-Identifier: MIT
 *
 * parameters.h - the struct that kernels take, as host C: kernels/parameters.cl with OpenCL's type names, and
 * the promise that its constants are the public ones.
 */
#ifndef CLXENT_PARAMETERS_H
#define CLXENT_PARAMETERS_H

#include <clxent/clxent.h>

typedef cl_ulong u64;
typedef cl_long i64;
typedef cl_uint u32;
#include "../kernels/parameters.cl"

_Static_assert(sizeof(clxent_parameters) == (26 + 19 + 4) * sizeof(u64),
               "no padding: kernels see the same layout");
_Static_assert(sizeof(clxent_offsets) == 19 * sizeof(u64), "one offset for every tensor of clxent_args");

_Static_assert(OUTPUT_LOSSES == CLXENT_OUTPUT_LOSSES && OUTPUT_LOSS == CLXENT_OUTPUT_LOSS &&
                   OUTPUT_LSE == CLXENT_OUTPUT_LSE && OUTPUT_SOFTMAX == CLXENT_OUTPUT_SOFTMAX &&
                   OUTPUT_LOG_SOFTMAX == CLXENT_OUTPUT_LOG_SOFTMAX &&
                   OUTPUT_GRADIENT == CLXENT_OUTPUT_GRADIENT && OUTPUT_ARGMAX == CLXENT_OUTPUT_ARGMAX &&
                   OUTPUT_CORRECT == CLXENT_OUTPUT_CORRECT && OUTPUT_ENTROPY == CLXENT_OUTPUT_ENTROPY &&
                   OUTPUT_STATISTICS == CLXENT_OUTPUT_STATISTICS &&
                   OUTPUT_BAD_TARGETS == CLXENT_OUTPUT_BAD_TARGETS && OUTPUT_ONE_HOT == CLXENT_OUTPUT_ONE_HOT,
               "parameters.cl and clxent.h name the same bits");
_Static_assert(TARGET_I32 == CLXENT_TARGET_I32 && TARGET_I64 == CLXENT_TARGET_I64 &&
                   TARGET_U8 == CLXENT_TARGET_U8 &&
                   TARGET_PROBABILITIES_F32 == CLXENT_TARGET_PROBABILITIES_F32 &&
                   TARGET_PROBABILITIES_LOGITS == CLXENT_TARGET_PROBABILITIES_LOGITS,
               "parameters.cl and clxent.h name the same targets");

#endif
