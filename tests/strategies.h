/* SPDX-License-Identifier: MIT
 *
 * strategies.h - clxent_tuning initialisers for tests that force a strategy; see tuning.def for the parameters.
 */
#ifndef CLXENT_TEST_STRATEGIES_H
#define CLXENT_TEST_STRATEGIES_H

#include "internal.h"

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

#endif
