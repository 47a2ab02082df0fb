/* SPDX-License-Identifier: MIT
 *
 * reference.h - the oracle: every operation of clxent.h in plain double-precision C.
 *
 * Same desc, host pointers; reads the inputs in the storage that desc names and returns doubles, never
 * rounded to it. Calls no OpenCL function: it runs where no driver is installed. Slow, single-threaded,
 * and written to be read.
 *
 * Beside each result it can return the error that the library's contract allows there, so that tests,
 * `clxent verify` and users judge by the same numbers.
 */
#ifndef CLXENT_REFERENCE_H
#define CLXENT_REFERENCE_H

#include <clxent/clxent.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Results and error bounds; each optional (NULL: not computed). [rows, classes] here is dense and
 * row-major whatever desc's strides and inner: element r * classes + j is row r, class j. There is no padding here, so
 * that desc.gradient_padding has no effect.
 *
 * A bound is absolute, for results in desc's storage: |device - reference| <= bound. Where the reference is
 * NaN or infinite, the device must give exactly that, and where the bound is 0 exactly the value. The bounds
 * include the one rounding to dtype or gradient_dtype, and the smallest normal number of real where a result or a
 * factor of it may underflow. Row losses and gradients of one-hot targets include the share of the classes whose
 * exponentials may underflow. Bounds are infinite where the result may overflow in its storage. Their derivation is in
 * host/reference.c. */
typedef struct clxent_reference_results {
    size_t struct_size;
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
    double *denominator;               /* [1]: D as used */
    clxent_bad_targets *bad_targets;   /* [1] */
} clxent_reference_results;
#define CLXENT_REFERENCE_RESULTS_INIT                                                                       \
    {                                                                                                       \
        sizeof(clxent_reference_results), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL                                            \
    }
CLXENT_API void clxent_reference_results_init(clxent_reference_results *results);

/* Computes whatever results asks for from the inputs of args (its outputs are not touched, except that
 * gradient is read when desc accumulates). desc.outputs must name at least what results asks for.
 *
 * text  [size bytes, optional] receives one line on failure, "" on success
 * Returns CLXENT_OK, CLXENT_ERROR_NULL_ARGUMENT, _INVALID_DESC, _INVALID_ARGUMENT (a struct_size that does not end with
 * a field), _BUFFER_TOO_SMALL, _OUT_OF_HOST_MEMORY.
 * A target out of range is not an error here: its row is as the policy says, and bad_targets tells.
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
