/* SPDX-License-Identifier: MIT
 *
 * lanes.cl - cross-entropy of few classes, and of a strided class axis: a row per lane. Its parts, in order.
 */
#include "../parameters.cl"
#include "../constants.cl"
#include "../common.cl"
#include "../target.cl"
#include "../reduce.cl"
#include "../math.cl"
#include "../row_state.cl"
#include "../epilogue.cl"
#if ALONG
#    include "../row_input.cl"
#    include "../row_scan.cl"
#endif
#include "../tile.cl"
#if ALONG
#    include "../along_scan.cl"
#else
#    include "../lane_scan.cl"
#endif
#include "../map_lane.cl"
#include "../fused.cl"
