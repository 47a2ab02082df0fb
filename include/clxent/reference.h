/* SPDX-License-Identifier: MIT
 *
 * reference.h - the oracle: every operation of clxent.h in plain double-precision C.
 *
 * Same desc, host pointers; reads the inputs in the storage that desc names and returns doubles, never
 * rounded to it. Calls no OpenCL function: it runs where no driver is installed. Slow, single-threaded,
 * and written to be read.
 *
 * Beside each result it can return the error that the library's contract allows there, so that tests,
 * `clxent verify` and users compare with the same numbers.
 *
 * The bounds. u is half an ulp of 1: 2^-24, for f64 logits 2^-53; A = sum |a_k|, delta_j = m - z_j, H the entropy.
 *
 *     softmax p_j        u (8 + delta_j) p_j
 *     log-softmax        u (8 + 2 delta_j + 4 log sum_exp)
 *     lse                u (|lse| + 2 log sum_exp + 4); f64: 2 |lse|
 *     row loss           16 u times the sum of its absolute terms, also for confident rows: a loss of 1e-6 keeps its
 *                        digits; with a z-loss 2 z_loss |lse| (bound of lse) more
 *     reduced loss       (the rows' bounds, added up, and 8 u sum |row loss|) / |denominator|, and |loss| (u + relative
 *                        error of the denominator)
 *     gradient           u ((8 + delta_j) p_j (A + 2 |z_loss lse|) + 8 |a_j|) + 2 z_loss p_j (bound of lse), times the
 *                        outer factors, f64 twice; and |gradient| times the relative error of the denominator
 *       of entropy, lse  grad_lse k, grad_entropy h: u (8 + delta_j) p_j (|k| + |h| (delta_j + D + log sum_exp)), f64 twice,
 *                        D = sum p_i delta_i; and |h| p_j W, W = sum p_i delta_i over the classes of V (below)
 *       one-hot target   u |a_y| sum over the others of (8 + delta_k) p_k in place of the terms with A and a_j: it keeps
 *                        its digits where p is 1
 *     entropy            u (8 + 4 log sum_exp + H + sum p_j delta_j (18 + delta_j))
 *     denominator        of a mean, relative: u where it is a count, of weights w 9 u sum |w| / |denominator|; given: 0
 *     linear             the above at the exact logits, moved by the error of these, see below; gradients as sums of products
 *     other operations   loss of probabilities 16 u sum |q_j log p_j|; softmax backward 8 u p_j (|g_j| + sum |p_k g_k|);
 *                        softmax - onehot 4 u, relative
 *     f16, bf16          the above, then one rounding: bit-equal to the f32 result rounded once
 *
 * A logit_scale or a softcap rounds z itself. Let Z be the largest |z_k| of the classes that matter (delta_k < 110, f64
 * 750) and X_j = r max(|z_j|, Z), where r is 4, with a softcap 12, f64 twice. Then softmax, gradient and entropy have
 * 8 + delta_j + X_j for 8 + delta_j; a row loss has 2 u (1 - p_j) X_j |a_j| more for each class, lse, log-softmax and
 * entropy r u Z, besides log-softmax u X_j and entropy u sum p_j X_j, and the part of grad_entropy
 * |h| p_j u (X_j + r Z + sum p_i X_i (1 + delta_i)). The slope of a softcap, 1 - tanh(y)^2 with y = s x / c, has a
 * relative error of u (8 + 7 |y| tanh |y|), f64 twice, which adds to the gradient's. A logit at y = 40 has a gradient with digits still;
 * beyond 44 (f64: 355) it underflows.
 *
 * What is less than the smallest normal number of the sums' type, 2^-126 (f64 2^-1022), may be 0 or have lost digits: such
 * a result, and such a p_j, slope, dz_j or a_j nll_j as a part of one, may be off by that number more. So may a gradient
 * where row_weight grad_output logit_scale / denominator is less than 2^-90 and not 0. A class with exp(z_k - m) < 2^-125
 * (f64 2^-1021) may count as 0: let V be the sum of p_k over these classes; a row loss has A V more, the
 * gradient of a one-hot target |a_y| V. For 4,099 classes V is less than an ulp of any loss above 2e-27. Where value and
 * bound reach the largest number
 * of the storage, infinity is right as well. Accumulating rounds once more, the sum. Every f64 result may be off by
 * u |result| more, as the reference rounds it.
 *
 * Linear cross-entropy. The device's logits are never rounded to 16 bits, but sums of products in acc_t, in any order:
 *
 *     x_j                R_j = u (features + 2) M_j, M_j = sum_f |h_f w_jf| + |b_j|; f64: + 4. e_j = |logit_scale| R_j, with a softcap
 *                        times 1 - tanh^2 where it is largest within R_j; 1 + 2^-12 times that. l = log sum p_k exp(e_k)
 *     lse                l more
 *     p_j                p_j x exp(x) more, x = e_j + l, wherever softmax p_j (8 + delta_j + X_j) stands above: then
 *                        u X_j + x exp(x) is in the place of u X_j. For x < 1: first order p_j (e_j + sum p_k e_k)
 *     row loss           for each class |a_j| log(p_j + sum over the others of p_k exp(e_k + e_j)) more, at most |a_j| (e_j + l):
 *                        first order |a_j| ((1 - p_j) e_j + sum over the others of p_k e_k)
 *     entropy            sum p_j (1 + x exp(x)) e_j (|delta_j - D| + e_j + sum p_i x_i exp(x_i) (1 + delta_i)) more: first order
 *                        sum p_j |log p_j + H| e_j
 *     slope              of a softcap: a factor of exp(2 d tanh(y + d)) more, d = |logit_scale| R_j / c
 *     hidden_gradient    with the gradient D of the logits and its bound d: sum_j d_j |w_jf| + u (classes + 2) sum_j
 *                        (|D_j| + d_j) |w_jf|; accumulating, u |sum| more
 *     weight_gradient    sum_r d_r |h_rf| + u (rows + 2) (sum_r (|D_r| + d_r) |h_rf| + |old|), old what it is added to, else 0
 *     bias_gradient      likewise with 1 for h. Of all three, f64: + 4; then one rounding to the output's dtype
 *     argmax             any class that no other exceeds by more than both errors, see argmax_allowed
 *
 * Each product that is not 0 may add 2 smallest normal numbers, and one times the other factor where a factor is less than that.
 * Bounds are infinite, and NaN is right as well, where a sum may pass the largest number before it is done and where l exceeds 100.
 * A row that adds nothing to the gradients has a hidden_gradient of exactly 0. Its hidden state is not looked at.
 *
 * The exponential is range-reduced on z itself and shifted by a power of two instead of the maximum: raising the maximum
 * rescales a sum without rounding, so that logits with a common offset lose nothing. Sums carry what their additions lose.
 * The target's gradient is -(sum of the others) / sum_exp where that is small, never a p - 1 that cancels. The reference itself
 * is checked by closed forms, finite differences and vectors of another program.
 */
#ifndef CLXENT_REFERENCE_H
#define CLXENT_REFERENCE_H

#include <clxent/clxent.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Reference --------------------------------------------------------------------------- */

/* Results and error bounds; each optional (NULL: not computed). [rows, classes] here is dense and
 * row-major whatever desc's strides and inner: element r * classes + j is row r, class j. There is no padding here, so
 * that desc.gradient_padding has no effect.
 *
 * A bound is absolute, for results in desc's storage: |device - reference| <= bound. Where the reference is
 * NaN or infinite, the device must give exactly that, and where the bound is 0 exactly the value. The bounds
 * include the one rounding to dtype or gradient_dtype, and the smallest normal number of acc_t where a result or a
 * factor of it may underflow. Row losses and gradients of one-hot targets include the share of the classes whose
 * exponentials may underflow. Bounds are infinite where the result may overflow in its storage. Their derivation is in
 * host/reference.c.
 *
 * argmax_allowed is 1 for a class that the device's argmax may be, else 0: argmax itself, and with LINEAR_CROSS_ENTROPY classes
 * whose logits differ from the largest by no more than the errors of both. correct may then differ by one for each row that
 * has several. */
typedef struct clxent_reference_results {
    size_t struct_size;                      /* set by CLXENT_REFERENCE_RESULTS_INIT */
    double *losses, *losses_bound;           /* [rows] */
    double *loss, *loss_bound;               /* [1] */
    double *lse, *lse_bound;                 /* [rows] */
    double *softmax, *softmax_bound;         /* [rows, classes] */
    double *log_softmax, *log_softmax_bound; /* [rows, classes] */
    double *gradient, *gradient_bound; /* [rows, classes]; when accumulating, starts from args.gradient */
    double *entropy, *entropy_bound;   /* [rows] */
    double *one_hot;                   /* [rows, classes] */
    int64_t *argmax;                   /* [rows] */
    uint64_t *correct;                 /* [1] */
    uint64_t *counted;                 /* [1]: rows neither ignored, masked nor out of range */
    double *denominator;               /* [1]: as used, computed or given */
    clxent_bad_targets *bad_targets;   /* [1] */
    double *computed_denominator, *computed_denominator_bound; /* [1] */
    double *hidden_gradient, *hidden_gradient_bound; /* [rows, features]; accumulates as gradient does */
    double *weight_gradient, *weight_gradient_bound; /* [classes, features]; likewise */
    double *bias_gradient, *bias_gradient_bound;     /* [classes]; likewise */
    unsigned char *argmax_allowed;                   /* [rows, classes], with argmax or correct */
} clxent_reference_results;
/* All NULL: for initialisers, and for language bindings. */
#define CLXENT_REFERENCE_RESULTS_INIT                                                                       \
    {                                                                                                       \
        sizeof(clxent_reference_results), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
            NULL, NULL                                                                                      \
    }
CLXENT_API void clxent_reference_results_init(clxent_reference_results *results);

/* Computes whatever results asks for from the inputs of args (its outputs are not touched, except that
 * gradient is read when desc accumulates). desc.outputs must name at least what results asks for.
 *
 * text  [size bytes, optional] receives one line on failure, "" on success
 * Returns CLXENT_OK, CLXENT_ERROR_NULL_ARGUMENT, _INVALID_DESC, _INVALID_ARGUMENT (a struct_size that does not end with
 * a field), _BUFFER_TOO_SMALL, _OUT_OF_HOST_MEMORY.
 * A target out of range is not an error here: its row is as the policy says, and bad_targets records it.
 * Any thread. */
CLXENT_API clxent_status clxent_reference_run(const clxent_desc *desc, const clxent_host_args *args,
                                              const clxent_reference_results *results, char *text,
                                              size_t size);

/* The storage conversions of the library, round to nearest even, NaN kept NaN, for those who prepare
 * f16 and bf16 arrays. Pure; any thread. */
CLXENT_API uint16_t clxent_f16_from_double(double value);
CLXENT_API uint16_t clxent_bf16_from_double(double value);
CLXENT_API double clxent_f16_to_double(uint16_t bits);
CLXENT_API double clxent_bf16_to_double(uint16_t bits);

#ifdef __cplusplus
}
#endif
#endif
