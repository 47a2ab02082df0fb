/* SPDX-License-Identifier: MIT
 *
 * rows.cl - cross-entropy where a row is a work-group's, or is split over several. Its parts, in order.
 */
#include "../parameters.cl"
#include "../constants.cl"
#include "../common.cl"
#include "../target.cl"
#include "../reduce.cl"
#include "../math.cl"
#include "../row_state.cl"
#include "../epilogue.cl"
#include "../row_input.cl"
#if WG_SIZE > 1
#    include "../group_rows.cl"
#else
#    include "../row_scan.cl"
#    include "../row_results.cl"
#endif
#include "../map_row.cl"
#include "../fused.cl"
