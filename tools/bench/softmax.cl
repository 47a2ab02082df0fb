/* SPDX-License-Identifier: MIT
 *
 * softmax.cl - the textbook softmax: three passes, one work-item a row. `clxent bench --suite` measures the CPU time of
 * the first result of a plan as a ratio to that of this kernel.
 */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void softmax(
    __global const float *restrict logits, /* [rows, classes] */
    __global float *restrict result,       /* [rows, classes] */
    const uint classes)
{
    const size_t row = get_global_id(0);
    __global const float *x = logits + row * classes;
    __global float *y = result + row * classes;
    float largest = x[0], sum = 0;

    for (uint c = 1; c < classes; c++) largest = fmax(largest, x[c]);
    for (uint c = 0; c < classes; c++) {
        y[c] = exp(x[c] - largest);
        sum += y[c];
    }
    for (uint c = 0; c < classes; c++) y[c] /= sum;
}
