/* SPDX-License-Identifier: MIT
 *
 * padding.cl - zeros behind the rows of a gradient; short, as a plan that asks for them compiles it beside its own.
 */
#include "../parameters.cl"
#include "../padding.cl"
