/* SPDX-License-Identifier: MIT
 *
 * strategies.h - clxent_tuning initialisers for tests that force a strategy; see tuning.def for the parameters.
 */
#ifndef CLXENT_TEST_STRATEGIES_H
#define CLXENT_TEST_STRATEGIES_H

#include "internal.h"
#include "support.h"

/* Whole rows a group; a row is one piece. With the class axis not last: lanes of one. */
#define ROWS(GROUP, VECTOR, BLOCK, CACHE, ELEMENTS, STREAM)                                               \
    {                                                                                                     \
        .group = (GROUP), .vector = (VECTOR), .block = (BLOCK), .cache = (CACHE), .elements = (ELEMENTS), \
        .stream = (STREAM)                                                                                \
    }

/* Rows of several blocks, in pieces of PIECE logits, whole (SPLIT 0) or each split over groups (UINT32_MAX). */
#define PIECES(GROUP, VECTOR, BLOCK, CACHE, PIECE, SPLIT)                                        \
    {                                                                                            \
        .group = (GROUP), .vector = (VECTOR), .block = (BLOCK), .cache = (CACHE), .elements = 1, \
        .piece = (PIECE), .split = (SPLIT)                                                       \
    }

/* Lanes wherever a tile of them fits into CACHE bytes of local memory; elsewhere small groups of rows. */
#define LANES(GROUP, VECTOR, CACHE, STREAM)                                                               \
    {                                                                                                     \
        .group = 1, .vector = 4, .block = 4, .elements = 4096, .stream = (STREAM),                        \
        .lane_classes = UINT32_MAX, .lane_group = (GROUP), .lane_vector = (VECTOR), .lane_cache = (CACHE) \
    }

/* An interpreter runs work-items one after another. Groups of 16 have one level of the trees that join more than 8, and all
 * else that larger groups have; test_variants.c runs a row of the larger ones. */
static inline uint32_t group_of_several(uint32_t size) { return small_run() && size > 16 ? 16 : size; }

/* One of each: whole rows, rows split over groups, work-groups, lanes. The parameters are those of tuning.def or of
 * other tests, so that a driver compiles few programs more. */
enum { EACH_ROWS, EACH_SPLIT, EACH_GROUPS, EACH_LANES, EACH_STRATEGY };
static inline clxent_tuning strategy_for(uint32_t dtype, size_t which)
{
    const uint32_t vector = dtype == CLXENT_F64 ? 8 : 16;
    const bool wide = dtype == CLXENT_F32 || dtype == CLXENT_F64;
    const clxent_tuning each[EACH_STRATEGY] = {
        [EACH_ROWS] = ROWS(1, vector, 64, 8192, 4096, 0),
        [EACH_SPLIT] = PIECES(1, vector, 64, 8192, 1024, UINT32_MAX),
        /* PoCL takes 40 s of CPU to compile one, of 8 as of 64: where few programs are compiled, that of f32 alone */
        [EACH_GROUPS] = ROWS(dtype == CLXENT_F32 ? group_of_several(64) : 8, wide ? 4 : 8, 4,
                             dtype == CLXENT_F32 ? 16384 : 8192, 1024, 0),
        [EACH_LANES] = LANES(1, vector, 1 << 19, 0),
    };
    return each[which];
}

#endif
