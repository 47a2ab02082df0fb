/* SPDX-License-Identifier: MIT
 *
 * constants.c - the constants of clxent.h have the types of the fields that they go into. Compiled as C11 and as C++17,
 * where a constant of another type makes a warning of its uses below; never linked.
 */
#include <clxent/clxent.h>

#ifdef __cplusplus
#    include <type_traits>
#    define IS(type, constant) static_assert(std::is_same<decltype(constant), type>::value, #    constant);
#else
#    define IS(type, constant) _Static_assert(_Generic((constant), type : 1, default : 0), #    constant);
#endif

#define NO_VALUE(word)
#define VALUE(prefix, NAME, word) IS(uint32_t, CLXENT_##prefix##NAME)
#define ENUMERATION(name, prefix, first, values) values
#include "../host/options.def"
#define OUTPUT(name, NAME, ...) IS(uint32_t, CLXENT_OUTPUT_##NAME)
#include "../host/tensors.def"
IS(uint32_t, CLXENT_PART_WHOLE)
IS(uint32_t, CLXENT_PART_FIRST)
IS(uint32_t, CLXENT_PART_MIDDLE)
IS(uint32_t, CLXENT_PART_LAST)
IS(size_t, CLXENT_ALL_ROWS)
IS(clxent_status, CLXENT_OK)
IS(clxent_status, CLXENT_ERROR_NULL_ARGUMENT)
IS(clxent_status, CLXENT_ERROR_INVALID_DESC)
IS(clxent_status, CLXENT_ERROR_INVALID_ARGUMENT)
IS(clxent_status, CLXENT_ERROR_UNSUPPORTED)
IS(clxent_status, CLXENT_ERROR_BUFFER_TOO_SMALL)
IS(clxent_status, CLXENT_ERROR_BAD_TARGET)
IS(clxent_status, CLXENT_ERROR_OUT_OF_HOST_MEMORY)
IS(clxent_status, CLXENT_ERROR_BUILD_FAILED)
IS(clxent_status, CLXENT_ERROR_INTERNAL)
IS(clxent_status, CLXENT_ERROR_ARRAYS_IN_USE)

#if CLXENT_OK != 0 || CLXENT_OUTPUT_LOSS != 2
#    error "constants are numbers to the preprocessor too"
#endif

static const uint32_t training = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
static const clxent_desc desc_init = CLXENT_DESC_INIT;
static const clxent_args args_init = CLXENT_ARGS_INIT;

uint32_t use(clxent_status status, int soft);
uint32_t use(clxent_status status, int soft)
{
    clxent_desc desc = desc_init;
    clxent_args args = args_init;

    desc.outputs = training;
    desc.outputs |= soft ? CLXENT_OUTPUT_SOFTMAX : CLXENT_OUTPUT_BAD_TARGETS;
    desc.outputs &= ~CLXENT_OUTPUT_LOSS;
    desc.target_type = soft ? CLXENT_TARGET_PROBABILITIES_F32 : desc.target_type;
    args.part = args.rows == CLXENT_ALL_ROWS ? args.part : CLXENT_PART_LAST;
    switch (soft ? status : CLXENT_OK) {
    case CLXENT_OK: break;
    case CLXENT_ERROR_BAD_TARGET: return training;
    default: return CLXENT_OUTPUT_LOSS;
    }
    switch (desc.op) {
    case CLXENT_OP_ONE_HOT: return ~CLXENT_OUTPUT_ONE_HOT;
    case CLXENT_OP_CROSS_ENTROPY: return desc.reduction > CLXENT_REDUCTION_MEAN ? 1 : args.part;
    default: return status != CLXENT_OK ? desc.dtype : CLXENT_F16;
    }
}
