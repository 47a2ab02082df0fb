/* SPDX-License-Identifier: MIT
 *
 * rows.cl - cross-entropy where a row is a work-group's, or is split over several. Its parts, in order.
 */
#include "../parameters.cl"
#include "../constants.cl"
#include "../common.cl"
#include "../reduce.cl"
#include "../exp.cl"
#include "../loss.cl"
#include "../row_sums.cl"
#include "../cross_entropy.cl"
