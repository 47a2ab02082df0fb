/* SPDX-License-Identifier: MIT
 *
 * lanes.cl - cross-entropy of few classes, and of a strided class axis: a row per lane. Its parts, in order.
 */
#include "../parameters.cl"
#include "../constants.cl"
#include "../common.cl"
#include "../reduce.cl"
#include "../exp.cl"
#include "../loss.cl"
#include "../tiles.cl"
#include "../lane_sums.cl"
#include "../lanes.cl"
