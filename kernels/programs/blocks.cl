/* SPDX-License-Identifier: MIT
 *
 * blocks.cl - the building blocks: softmax backward, one-hot, loss and gradient of given probabilities. Its parts,
 * in order.
 */
#include "../parameters.cl"
#include "../constants.cl"
#include "../common.cl"
#include "../target.cl"
#include "../reduce.cl"
#include "../blocks.cl"
