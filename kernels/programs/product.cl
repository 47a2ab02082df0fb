/* SPDX-License-Identifier: MIT
 *
 * product.cl - one matrix product of linear cross-entropy. Its parts, in order.
 */
#include "../parameters.cl"
#include "../constants.cl"
#include "../common.cl"
#include "../target.cl"
#include "../product.cl"
