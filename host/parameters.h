/* SPDX-License-Identifier: MIT
 *
 * parameters.h - the struct that kernels take, as host C: kernels/parameters.cl with OpenCL's type names, and
 * the promise that its constants are those of clxent.h and tensors.def.
 */
#ifndef CLXENT_PARAMETERS_H
#define CLXENT_PARAMETERS_H

#include "internal.h"

typedef cl_ulong u64;
typedef cl_long i64;
typedef cl_uint u32;
#include "../kernels/parameters.cl"

_Static_assert(offsetof(clxent_parameters, classes) ==
                       offsetof(clxent_parameters, offset) + sizeof(clxent_offsets) &&
                   sizeof(clxent_parameters) == offsetof(clxent_parameters, tiles_per_group) + sizeof(u32),
               "no padding: kernels see the same layout");

/* parameters.cl, clxent.h and tensors.def name the same bits, and the same offsets in the same order. */
#define HAS_OFFSET(name, NAME)                                                                     \
    _Static_assert(offsetof(clxent_offsets, name) == CLXENT_TENSOR_##NAME * sizeof(u64), "offset " \
                                                                                         "of " #name);
#define INPUT(name, NAME, ...) HAS_OFFSET(name, NAME)
#define OUTPUT(name, NAME, ...) \
    HAS_OFFSET(name, NAME)      \
    _Static_assert(OUTPUT_##NAME == CLXENT_OUTPUT_##NAME, "bit of " #name);
#include "tensors.def"
_Static_assert(sizeof(clxent_offsets) == CLXENT_TENSORS * sizeof(u64), "one offset for every tensor");

#define INDEX_TYPE(NAME, word, type) \
    _Static_assert(TARGET_##NAME == CLXENT_TARGET_##NAME, "target type " #NAME);
#include "options.def"
_Static_assert(TARGET_PROBABILITIES_F32 == CLXENT_TARGET_PROBABILITIES_F32 &&
                   TARGET_PROBABILITIES_LOGITS == CLXENT_TARGET_PROBABILITIES_LOGITS,
               "parameters.cl and clxent.h name the same targets");

#endif
