/* SPDX-License-Identifier: MIT
 *
 * constants.cl - what a plan fixes and a program is compiled with, and the short names that follow from it. Stands
 * behind parameters.cl in every program that reads rows.
 *
 * A constant is what makes the loops over the classes shorter where it is known. What a row decides in one step, or by
 * one more look for a class, stays a value of clxent_parameters, so that more plans share one program: losses, loss,
 * lse, argmax, correct, statistics, what a mean divides by, row weights, z-loss, ignore_index, shift, policies. (PoCL 3.1,
 * first loss and gradient: with the argmax compiled in 0.1 s of CPU more, of 2.2 s.)
 *
 * Set by the host with -D (host/plan.c, define_all()):
 *   OUTPUTS      of OUTPUT_SOFTMAX, OUTPUT_LOG_SOFTMAX, OUTPUT_GRADIENT, OUTPUT_ENTROPY those that some run may ask for,
 *                and of those that are one step of a row all, but in groups likewise: there a work-item's registers and
 *                each level of a tree pay for them. p.outputs has what this run asks for
 *   TARGETS      TARGET_*; TARGET_NONE where no output depends on targets
 *   HAS_CLASS_WEIGHTS, HAS_SMOOTHING, HAS_LOGIT_SCALE, HAS_SOFTCAP, HAS_GRAD_ENTROPY, HAS_GRAD_LSE
 *                1: the option is in use, 0: it has its default
 *   ACCUMULATE   1: gradient +=
 *   REDUCES      1: with the kernels of reduce.cl
 */
#if !defined(OUTPUTS) || !defined(TARGETS) || TARGETS < 0 || TARGETS > 7
#    error "OUTPUTS: OUTPUT_* bits; TARGETS: TARGET_*"
#endif
#if !defined(HAS_CLASS_WEIGHTS) || !defined(HAS_SMOOTHING) || !defined(HAS_LOGIT_SCALE) ||                   \
    !defined(HAS_SOFTCAP) || !defined(HAS_GRAD_ENTROPY) || !defined(HAS_GRAD_LSE) || !defined(ACCUMULATE) || \
    !defined(REDUCES)
#    error "HAS_*, ACCUMULATE, REDUCES: 0 or 1"
#endif

/* What this run asks for, of what its program has. */
#define WANTS(p, mask) ((OUTPUTS & (mask)) != 0 && ((p)->outputs & (mask)) != 0)

#define HAS_PROBABILITIES (TARGETS == TARGET_PROBABILITIES_F32 || TARGETS == TARGET_PROBABILITIES_LOGITS)
#define HAS_INDICES (TARGETS != TARGET_NONE && !HAS_PROBABILITIES)
#define HAS_4_BYTE_INDICES (TARGETS == TARGET_I32 || TARGETS == TARGET_U32)
#define HAS_BEST ((OUTPUTS & (OUTPUT_ARGMAX | OUTPUT_CORRECT)) != 0)
/* Which class is NaN is asked for. */
#define HAS_NAN_AT (HAS_BEST || (OUTPUTS & OUTPUT_LSE) != 0)
/* The gradient has a part that does not come from the loss. */
#define HAS_UPSTREAMS (HAS_GRAD_ENTROPY || HAS_GRAD_LSE)
#define HAS_ENTROPY ((OUTPUTS & OUTPUT_ENTROPY) != 0 || HAS_GRAD_ENTROPY)
/* z is not x. */
#define HAS_Z (HAS_LOGIT_SCALE || HAS_SOFTCAP)
/* Every class has its own a_j. */
#define HAS_DENSE (TARGETS != TARGET_NONE && (HAS_PROBABILITIES || HAS_SMOOTHING))
/* And their sum is not known beforehand. */
#define SUMS_WEIGHT (HAS_DENSE && (HAS_PROBABILITIES || HAS_CLASS_WEIGHTS))
/* Nothing but the exponentials is summed over the logits as they are. */
#define SUMS_PLAINLY (!HAS_Z && !HAS_DENSE && !HAS_ENTROPY)
/* But for the target's class, a row's gradient is its exponentials times one factor. */
#define HAS_ONE_FACTOR (!HAS_SOFTCAP && !HAS_DENSE && !HAS_UPSTREAMS)
/* Saved statistics of a row. */
#define STATISTICS_WIDTH (HAS_GRAD_ENTROPY ? 3 : 2)
