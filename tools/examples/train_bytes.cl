/* SPDX-License-Identifier: MIT
 *
 * train_bytes.cl - the layers of train_bytes.c below the linear cross-entropy, their gradients, and Adam.
 *
 *   CONTEXT   bytes that the model sees
 *   WIDTH     elements of a byte's embedding: 16, a float16
 *   UNITS     of the hidden layer; a multiple of 8, as a work-item has a float8 of them
 *   DENSE_AT  where the hidden layer's parameters begin; those before it are the embeddings, [256, WIDTH]
 *   BETA1, BETA2, EPSILON   of Adam
 *
 * The hidden layer is a matrix [INPUTS + 1, UNITS]; its last row is the bias. Parameters and gradients lie alike. Each sum is
 * made by one work-item in a fixed order, so that every run has the same bits.
 */
#if !defined(CONTEXT) || WIDTH != 16 || UNITS % 8 != 0 || !defined(DENSE_AT) || !defined(EPSILON)
#    error "see the list above"
#endif
#define INPUTS (CONTEXT * WIDTH)

uint hash(uint x)
{
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

/* Rows of a batch: the positions in the text of the bytes to predict. From first on: in order with key 0, else count of them to
 * choose from. Grid: [rows]. */
__kernel void train_rows(__global const uchar *text, __global uint *positions, __global uchar *targets,
                         const uint first, const uint count, const uint key)
{
    const uint row = (uint)get_global_id(0);
    const uint position = first + (key == 0 ? row : hash(key + row) % count);
    positions[row] = position;
    targets[row] = text[position];
}

/* inputs [rows, CONTEXT, WIDTH]: embeddings of the bytes before each position. Grid: [CONTEXT, rows]. */
__kernel void train_embed(__global const uchar *text, __global const uint *positions,
                          __global const float *parameters, __global float *inputs)
{
    const size_t row = get_global_id(1), place = get_global_id(0);
    const uchar byte = text[positions[row] - CONTEXT + place];
    vstore16(vload16(byte, parameters), row * CONTEXT + place, inputs);
}

/* hidden [rows, UNITS] = tanh(inputs * dense + bias). Grid: [UNITS / 8, rows]. */
__kernel void train_hidden(__global const float *parameters, __global const float *inputs,
                           __global float *hidden)
{
    __global const float *dense = parameters + DENSE_AT;
    const size_t row = get_global_id(1), unit = get_global_id(0) * 8;
    float8 sum = vload8(0, dense + INPUTS * UNITS + unit);
    for (uint i = 0; i < INPUTS; i++)
        sum = fma((float8)(inputs[row * INPUTS + i]), vload8(0, dense + i * UNITS + unit), sum);
    vstore8(tanh(sum), 0, hidden + row * UNITS + unit);
}

/* Gradient of tanh's argument in the place of tanh's. Grid: [rows * UNITS / 8]. */
__kernel void train_tanh_gradient(__global const float8 *hidden, __global float8 *hidden_gradient)
{
    const size_t i = get_global_id(0);
    hidden_gradient[i] *= 1 - hidden[i] * hidden[i];
}

/* inputs^T * gradient, and for the bias the gradient's sum: inputs' last column is 1. Grid: [UNITS / 8, INPUTS + 1]. */
__kernel void train_dense_gradient(__global const float *inputs, __global const float *hidden_gradient,
                                   __global float *gradients, const uint rows)
{
    const size_t i = get_global_id(1), unit = get_global_id(0) * 8;
    float8 sum = 0;
    for (uint row = 0; row < rows; row++) {
        const float input = i < INPUTS ? inputs[row * INPUTS + i] : 1;
        sum = fma((float8)(input), vload8(0, hidden_gradient + row * UNITS + unit), sum);
    }
    vstore8(sum, 0, gradients + DENSE_AT + i * UNITS + unit);
}

/* input_gradient [rows, INPUTS] = gradient * dense^T. Grid: [INPUTS, rows]. */
__kernel void train_input_gradient(__global const float *parameters, __global const float *hidden_gradient,
                                   __global float *input_gradient)
{
    const size_t row = get_global_id(1), i = get_global_id(0);
    __global const float *dense = parameters + DENSE_AT + i * UNITS;
    float8 sum = 0;
    for (uint unit = 0; unit < UNITS; unit += 8)
        sum = fma(vload8(0, hidden_gradient + row * UNITS + unit), vload8(0, dense + unit), sum);
    const float4 half_sum = sum.lo + sum.hi;
    const float2 quarter = half_sum.lo + half_sum.hi;
    input_gradient[row * INPUTS + i] = quarter.x + quarter.y;
}

/* A byte's embedding stands in inputs wherever the byte does. Each byte collects its own, without atomics. Grid: [256]. */
__kernel void train_embedding_gradient(__global const uchar *text, __global const uint *positions,
                                       __global const float *input_gradient, __global float *gradients,
                                       const uint rows)
{
    const size_t byte = get_global_id(0);
    float16 sum = 0;
    for (uint row = 0; row < rows; row++) {
        __global const uchar *context = text + positions[row] - CONTEXT;
        for (uint place = 0; place < CONTEXT; place++)
            if (context[place] == byte) sum += vload16(row * CONTEXT + place, input_gradient);
    }
    vstore16(sum, byte, gradients);
}

/* Adam with decoupled weight decay: keep is 1 less the step's part of it. rate and root have the corrections of the moments,
 * which begin at 0. Grid: [parameters / 8]. */
__kernel void train_adam(__global const float8 *gradients, __global float8 *mean, __global float8 *square,
                         __global float8 *parameters, const float rate, const float root, const float keep)
{
    const size_t i = get_global_id(0);
    const float8 gradient = gradients[i];
    mean[i] = BETA1 * mean[i] + (1 - BETA1) * gradient;
    square[i] = BETA2 * square[i] + (1 - BETA2) * gradient * gradient;
    parameters[i] = keep * parameters[i] - rate * mean[i] / (root * sqrt(square[i]) + EPSILON);
}
