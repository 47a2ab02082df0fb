/* SPDX-License-Identifier: MIT
 *
 * clxent.h - softmax cross-entropy for OpenCL: losses, softmax statistics and gradients.
 *
 * Objects    A context binds a cl_context and one cl_device_id and caches built programs. A plan
 *            fixes an operation, its shapes, options and the outputs it may be asked for; all
 *            validation, tuning and compilation by this library happens when it is created.
 *            Enqueueing a plan only sets kernel arguments and launches: it never compiles, allocates
 *            device memory, blocks or prints. (Some drivers, PoCL among them, finish their own
 *            compilation at the first launch of a kernel, after the enqueue call has returned:
 *            clxent_plan_warm() has them do it before.)
 * Ownership  Whatever *_create() returned goes to the matching *_destroy(), which accepts NULL.
 *            CL objects passed in are retained, never taken over. The library has no globals, no
 *            exit handlers, and reads no environment variable and no file.
 * Arguments  Results first, then the object, then inputs; enqueue calls end like clEnqueue*.
 *            Pointers must not be NULL unless marked "optional".
 * Units      Shapes are [slow, ..., fast] in elements, strides in elements; offsets and sizes in
 *            bytes. "rows" is batch * seq.
 * Constants  Macros with the type of the fields that they go into, uint32_t or clxent_status (an enumerator is an int in
 *            C11 and a type of its own in C++): for initialisers, case labels and #if.
 * Structs    Every struct the caller fills begins with struct_size, set by its *_INIT macro or
 *            its *_init() function (for language bindings). Fields added by later versions are appended
 *            and mean "as before" when zero. A struct_size that does not end with a field is refused.
 * Errors     Every function that can fail returns a clxent_status. The text that names the
 *            argument, what it got and what it takes goes to the context's log callback and is
 *            kept for clxent_context_last_error(). A call that fails has no effect, except where noted.
 * Threads    Threads may share a context and a plan: every function may run in several threads at once.
 *            No other call may use an object while its *_destroy() runs. clxent_enqueue() holds a mutex of
 *            the plan while it sets arguments and launches; it does not wait for the device. Runs that may
 *            overlap in time need a workspace each: one for each run in flight, in one thread or many.
 * Processes  After fork() the child must not use contexts, plans, queues or buffers of its parent, nor
 *            destroy them: drivers lose their threads there (PoCL hangs). It creates OpenCL objects of its
 *            own, or calls exec(). On PoCL its own hang too where the parent called OpenCL before fork():
 *            fork first, or exec. clxent_desc_check() and reference.h work in every child.
 *
 * The formulas, for one row x of logits with target y (sums over the classes j):
 *
 *     s = logit_scale * x        z = softcap > 0 ? softcap * tanh(s / softcap) : s
 *                                x_j = -inf is a mask: z_j = -inf whatever scale and cap
 *     m = max z        sum_exp = sum exp(z_j - m)        lse = m + log sum_exp        p_j = exp(z_j - m) / sum_exp
 *     nll_j = (m - z_j) + log sum_exp
 *     q    = one-hot(y), or the given probabilities
 *     a_j  = class_weight_j * ((1 - label_smoothing) * q_j + label_smoothing / classes)
 *     loss = row_weight * (sum a_j * nll_j + z_loss * lse^2)         a_j = 0 adds 0, also at nll_j = inf
 *     dz_j = row_weight * (p_j * sum_k a_k - a_j + 2 * z_loss * lse * p_j)
 *     gradient_j = dz_j * (dz/dx)_j * grad_output / denominator
 *     (dz/dx)_j  = logit_scale; with a softcap logit_scale * (1 - tanh^2), and 0 where x_j = -inf
 *
 * The denominator is 1 for reductions "none" and "sum". For "mean" it is the sum of row_weight * class_weight[y]
 * over the rows that count (index targets) or of row_weight (probability targets), as in PyTorch. args.denominator,
 * where given, takes its place, whatever the reduction. Where it is 0, computed or given, the gradient is 0 and the loss
 * is as desc.all_ignored says.
 *
 * A loss may also be made of a row's entropy and lse. grad_entropy h and grad_lse k are the gradients of what follows these
 * (desc.has_grad_entropy, has_grad_lse):
 *
 *     gradient_j += (k * p_j + h * p_j * ((m - z_j) - sum_i p_i (m - z_i))) * (dz/dx)_j
 *
 * Both parts are neither weighted nor divided by the denominator, and every row has them, ignored or not. Where h and k are 0
 * they add exactly 0, whatever the row's logits are. Otherwise the gradient of a row that is not finite is NaN. Where h or k
 * itself is not finite, the gradient of its row is NaN. A row whose target is out of range stays NaN.
 *
 * Rows that are not finite or do not count, on every strategy and in every dtype. z decides: a softcap turns +inf into
 * the cap, with gradient 0 there, while -inf stays a mask.
 *
 *     row                                                  loss                gradient       lse
 *     a non-target logit is -inf                           finite              0 there        finite
 *     the target's logit is -inf, others finite            +inf                p - onehot     finite
 *     -inf logit and label smoothing > 0, all a_j >= 0     +inf, never NaN     finite         finite
 *     all logits -inf                                      NaN                 NaN            -inf
 *     any +inf, no NaN                                     NaN                 NaN            +inf
 *     any NaN, also where a_j = 0                          NaN                 NaN            NaN
 *     ignored, or row weight 0, whatever its logits are    exactly 0           exactly 0 *    of its logits
 *     a long leading block of -inf                         as if not there     0 there        finite
 *     logits + 1e6                                         of what is stored   likewise       likewise
 *                                                          (full precision)
 *     classes = 1, finite, no z-loss                       0                   0 *            z
 *     rows = 0                                             none: empty,        untouched
 *                                                          sum: 0, mean: as a denominator of 0; the event completes
 *     * except for the parts of grad_entropy and grad_lse
 */
#ifndef CLXENT_H
#define CLXENT_H

#include <stddef.h>
#include <stdint.h>

/* The library calls OpenCL 1.2. A program that calls later versions defines its own before it includes this; one that
 * defines none gets 1.2 instead of the OpenCL headers' message that none is defined. */
#ifndef CL_TARGET_OPENCL_VERSION
#    define CL_TARGET_OPENCL_VERSION 120
#endif
#ifdef __APPLE__
#    include <OpenCL/opencl.h>
#else
#    include <CL/cl.h>
#endif

/* The version of this header; clxent_version() has that of the library. */
#define CLXENT_VERSION_MAJOR 0 /* this and MINOR are part of the shared library's name: */
#define CLXENT_VERSION_MINOR 1 /* where either changes programs are compiled anew */
#define CLXENT_VERSION_PATCH 0 /* fixes; no program need be compiled anew */

/* Windows: a program that links the DLL defines CLXENT_SHARED, as the CMake target and pkg-config do for it; the
 * library's own build also defines CLXENT_BUILDING. */
#if defined(_WIN32)
#    if !defined(CLXENT_SHARED)
#        define CLXENT_API
#    elif defined(CLXENT_BUILDING)
#        define CLXENT_API __declspec(dllexport)
#    else
#        define CLXENT_API __declspec(dllimport)
#    endif
#elif defined(__GNUC__)
#    define CLXENT_API __attribute__((visibility("default")))
#else
#    define CLXENT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status ------------------------------------------------------------------------------ */

/* 0 is success; positive values are the library's (below); negative values are the cl_int of the
 * OpenCL call that failed, unchanged. clxent_status_string() names them all. */
typedef int32_t clxent_status;

#define CLXENT_OK 0                       /* success */
#define CLXENT_ERROR_NULL_ARGUMENT 1      /* a required pointer or buffer was NULL */
#define CLXENT_ERROR_INVALID_DESC 2       /* a desc field is out of range or contradicts another */
#define CLXENT_ERROR_INVALID_ARGUMENT 3   /* an argument of a run is out of range or contradicts the plan */
#define CLXENT_ERROR_UNSUPPORTED 4        /* valid, but this device or this version cannot do it */
#define CLXENT_ERROR_BUFFER_TOO_SMALL 5   /* offset + bytes needed exceed the buffer */
#define CLXENT_ERROR_BAD_TARGET 6         /* host-array calls: a target is out of range */
#define CLXENT_ERROR_OUT_OF_HOST_MEMORY 7 /* malloc failed */
#define CLXENT_ERROR_BUILD_FAILED 8       /* the driver could not compile a kernel; the log has its words */
#define CLXENT_ERROR_INTERNAL 9           /* a bug in clxent: please report it */
#define CLXENT_ERROR_ARRAYS_IN_USE 10 /* clxent_run_host(): the driver failed, and so did waiting for it */

/* The name of a status, e.g. "CLXENT_ERROR_BAD_TARGET" or "CL_OUT_OF_RESOURCES".
 * Never NULL; static storage. Any thread. */
CLXENT_API const char *clxent_status_string(clxent_status status);

/* "0.1.0": the version of the library that is linked. */
CLXENT_API const char *clxent_version(void);

/* ---- Context ----------------------------------------------------------------------------- */

/* Binds a cl_context and a device; has programs, parameters of kernels and the log. */
typedef struct clxent_context clxent_context;

/* One line of text for one event: an error, a build log, a tuning choice. May be called from any
 * thread that is inside a clxent call. message is valid during the call only. */
typedef void (*clxent_log_fn)(const char *message, void *payload);

/* Compiled programs, kept by the application from one process or context to the next: for drivers that keep none
 * themselves, where each process would wait seconds for the compiler. (By default PoCL, NVIDIA's, Mesa's and Intel's
 * for GPUs do keep them.)
 *
 * key is 64 lower-case hex digits and a NUL: the SHA-256 of device, platform, driver and library, by name and version,
 * and of the program's source and build options. What a driver's compiler takes from its environment is not in it.
 * What is kept under a key has some kilobytes to several megabytes.
 *
 * load  optional; returns the number of bytes kept under key, 0 for none, and copies the first of them, at most size,
 *       to binary. Called with a size of 0 and a binary of NULL first, then with the size that this returned.
 * save  optional; keeps size bytes, more than 0, in place of what is under key. binary is valid during the call only.
 *       Nothing depends on its success.
 *
 * Both are called inside clxent_plan_create() and clxent_run_host(), in the calling thread, for each program that the
 * context has not built yet: load() before, save() after a build from source. Several threads may be in them at once, also
 * with one key: threads that share the context, or contexts that share the functions. They may not call clxent.
 * They and payload must outlive the context's last call of that kind; clxent_enqueue() and destruction call neither.
 *
 * The bytes are a digest and the driver's binary. By the digest damaged bytes, or those of another key, are found before
 * the driver gets them. These, and what the driver refuses (clCreateProgramWithBinary, clBuildProgram, or a kernel is
 * not there), are built from source and saved anew; no call fails for it and nothing is logged of it. Loaded programs
 * give the bits of those built from source. The digest is no signature: a binary is code, and whoever can write into the
 * store runs code in your process. Keep it where only those can write who can also change the program itself. */
typedef size_t (*clxent_load_fn)(const char *key, void *binary, size_t size, void *payload);
typedef void (*clxent_save_fn)(const char *key, const void *binary, size_t size, void *payload);

/* Where a context looks for programs and leaves them. */
typedef struct clxent_store {
    clxent_load_fn load; /* see clxent_load_fn */
    clxent_save_fn save; /* see clxent_load_fn */
    void *payload;       /* handed to both */
} clxent_store;

/* What a context may be given besides its device. */
typedef struct clxent_context_options {
    size_t struct_size; /* set by CLXENT_CONTEXT_OPTIONS_INIT */
    clxent_log_fn log;  /* optional; it and its payload must outlive the context and its plans */
    void *log_payload;  /* handed to log() */

    /* optional: rows of kernel parameters, tried before the library's own, as `clxent tune` finds, prints and stores
     * them. Plans of this context use the first row that fits their device and logits. Read by
     * clxent_context_create(), which keeps no pointer to it.
     *
     *     TUNE(device, "name", dtype, group, vector, block, cache, elements, stream, piece, split,
     *          lane_classes, lane_group, lane_vector, lane_cache, native_exp)
     *
     * any number of them, with C comments between. device is CPU, GPU (accelerators included) or ANY; name a part of
     * CL_DEVICE_NAME or CL_DEVICE_VENDOR, or *; dtype F32, F16, BF16, F64 or ANY_DTYPE, of the logits; the others
     * are whole numbers; host/tuning.def in the source describes them. group and lane_group take a power of two up to 4096,
     * vector and lane_vector 1, 4, 8 or 16, block an even number up to 4096, native_exp 0 or 1. What is more than
     * the device has, or takes for a kernel, or 1024 work-items, is cut down to it. Results keep their error bounds
     * under any row, with native_exp 1 where the device's native_exp2() errs by no more than host/tuning.def allows;
     * only elements, stream and split never change a bit of them. A plan whose row asks for groups that end the process
     * in the driver's compiler fails with CLXENT_ERROR_UNSUPPORTED and names the driver's fault; the library's own rows
     * ask for none. */
    const char *tuning;

    /* optional: see above. With both functions NULL only the context keeps programs. */
    clxent_store store;
} clxent_context_options;
/* The defaults: for initialisers, and for language bindings. */
#define CLXENT_CONTEXT_OPTIONS_INIT                                            \
    {                                                                          \
        sizeof(clxent_context_options), NULL, NULL, NULL, { NULL, NULL, NULL } \
    }
CLXENT_API void clxent_context_options_init(clxent_context_options *options);

/* Binds context and device, both retained until clxent_context_destroy().
 *
 * options  optional
 * Returns  CLXENT_ERROR_NULL_ARGUMENT; CLXENT_ERROR_INVALID_ARGUMENT where options.struct_size is not the end of a
 *          field, or where options.tuning has what is no row (the log gets its line, field, what it got and what
 *          it takes); CLXENT_ERROR_UNSUPPORTED below OpenCL 1.2, without a compiler, or where device is not one of
 *          context's; or a cl_int. *out is NULL then. */
CLXENT_API clxent_status clxent_context_create(clxent_context **out, cl_context context, cl_device_id device,
                                               const clxent_context_options *options);

/* For programs without OpenCL code of their own: finds a device, makes a cl_context for it and binds both.
 *
 * device   NUL-terminated, letters in any case: "gpu" or "cpu": the first device of that type; else a part of
 *          CL_DEVICE_NAME: the first device with it, and with "" the first of all. NULL: the first GPU, else the first
 *          device. "First" is in the order of the OpenCL loader. A platform without devices is skipped, and so is
 *          what fails while it is asked.
 * options  optional
 * Returns  CL_DEVICE_NOT_FOUND where no device is meant; the log gets the names of those that there are. Without any:
 *          the cl_int of the query that failed (CL_PLATFORM_NOT_FOUND_KHR, -1001, without a driver). Else as
 *          clxent_context_create(). *out is NULL then. */
CLXENT_API clxent_status clxent_context_create_default(clxent_context **out, const char *device,
                                                       const clxent_context_options *options);

/* What ctx is bound to, for queues and buffers; NULL of NULL. Not retained for the caller: valid until ctx and the last
 * of its plans are destroyed. Any thread. */
CLXENT_API cl_context clxent_context_cl(const clxent_context *ctx);
CLXENT_API cl_device_id clxent_context_device(const clxent_context *ctx);

/* Plans keep what they need of a context: destroy them before or after it. */
CLXENT_API void clxent_context_destroy(clxent_context *ctx);

/* Copies the text of the context's latest error, NUL-terminated and cut to size bytes, into text;
 * "" when there was none. Returns the bytes the whole text needs, the NUL included. text may be NULL
 * when size is 0. Any thread; with several failing at once, the text is that of one of them. */
CLXENT_API size_t clxent_context_last_error(const clxent_context *ctx, char *text, size_t size);

/* ---- Descriptor -------------------------------------------------------------------------- */

/* What a plan computes from what. Unless another buffer is named, the input is args.logits. Operations other than
 * CROSS_ENTROPY and LINEAR_CROSS_ENTROPY refuse label_smoothing, z_loss, logit_scale, softcap, class and row weights, shift,
 * and gradients of entropy and lse. gradient_dtype and gradient_mode are refused where the operation has no gradient,
 * gradient_padding where GRADIENT is not among the outputs.
 *
 *     CROSS_ENTROPY     any outputs but ONE_HOT, from logits; targets only where an output depends on them
 *     SOFTMAX_BACKWARD  GRADIENT_j = p_j * (g_j - sum_k p_k g_k) from args.probabilities p (a softmax) and
 *                       args.grad_output g, both [rows, classes]
 *     ONE_HOT           ONE_HOT from index targets: 1 at the target, else 0; a row whose target is ignored is all 0,
 *                       out of range all NaN
 *     PROBABILITY_LOSS  LOSSES and LOSS: sum_j q_j * -log p_j of given probabilities p = args.probabilities against
 *                       index targets or soft targets q; q_j = 0 adds 0, also at p_j = 0; p_j = 0 under q_j > 0 is
 *                       +inf
 *     SOFTMAX_GRADIENT  GRADIENT = (p - q) * grad_output / denominator of given softmax p = args.probabilities and
 *                       targets q
 *     LINEAR_CROSS_ENTROPY
 *                       CROSS_ENTROPY of x = args.hidden * args.weight^T (+ args.bias), logits that are never stored as a
 *                       whole, with all its options. Logits and their gradient are made for as many rows at a time as
 *                       desc.workspace_limit has room for. Outputs are those of CROSS_ENTROPY that have one value for each
 *                       row or one in all, but STATISTICS, and with dx the gradient of CROSS_ENTROPY
 *                           HIDDEN_GRADIENT = dx * weight   WEIGHT_GRADIENT = dx^T * hidden   BIAS_GRADIENT_c = sum_r dx_rc
 *                       Takes inner 1, and 0 for the strides of [rows, classes] arrays but target_row_stride, for
 *                       gradient_dtype, gradient_mode and gradient_padding. Logits are acc_t, and so are
 *                       TARGET_PROBABILITIES_LOGITS. A row that does not count adds exactly 0 to gradients, whatever
 *                       its hidden state is */
#define CLXENT_OP_CROSS_ENTROPY 0u
#define CLXENT_OP_SOFTMAX_BACKWARD 1u
#define CLXENT_OP_ONE_HOT 2u
#define CLXENT_OP_PROBABILITY_LOSS 3u
#define CLXENT_OP_SOFTMAX_GRADIENT 4u
#define CLXENT_OP_LINEAR_CROSS_ENTROPY 5u

/* Storage of logits-shaped tensors. Sums, losses, weights, lse and statistics have the accumulator
 * type, acc_t below: f32, and f64 when the logits are f64. A device without f64 still runs the others. */
#define CLXENT_F32 1u  /* float */
#define CLXENT_F16 2u  /* IEEE 754 binary16 */
#define CLXENT_BF16 3u /* the upper half of a float */
#define CLXENT_F64 4u  /* double */

/* What a row's target is: a class, or a distribution over the classes (soft targets). */
#define CLXENT_TARGET_I32 1u                  /* int32_t  [rows] */
#define CLXENT_TARGET_I64 2u                  /* int64_t  [rows] */
#define CLXENT_TARGET_U8 3u                   /* uint8_t  [rows] */
#define CLXENT_TARGET_PROBABILITIES_F32 4u    /* float    [rows, classes], any numbers */
#define CLXENT_TARGET_PROBABILITIES_LOGITS 5u /* the logits' dtype [rows, classes] */
#define CLXENT_TARGET_U16 6u                  /* uint16_t [rows] */
#define CLXENT_TARGET_U32 7u                  /* uint32_t [rows] */

/* What the row losses become. The gradient is that of the reduced loss. */
#define CLXENT_REDUCTION_MEAN 0u /* their sum, divided by the denominator */
#define CLXENT_REDUCTION_SUM 1u  /* their sum, divided by args.denominator where given */
#define CLXENT_REDUCTION_NONE 2u /* no reduced loss; args.grad_output is [rows] */

/* A target t that is not ignored and not in [0, classes). It never causes an access out of bounds.
 *
 *     REPORT  loss and gradient of the row are NaN, and args.bad_targets, where given, records it; host-array calls
 *             return CLXENT_ERROR_BAD_TARGET
 *     NAN     loss and gradient of the row are NaN; no record
 *     IGNORE  as an ignored row */
#define CLXENT_BAD_TARGET_REPORT 0u
#define CLXENT_BAD_TARGET_NAN 1u
#define CLXENT_BAD_TARGET_IGNORE 2u

/* The reduced loss when the denominator is 0 (every row ignored, or 0 given). Gradients are 0. A row that is
 * NaN for another reason (its target, its logits) is not hidden. */
#define CLXENT_ALL_IGNORED_NAN 0u  /* NaN, as of 0 / 0 */
#define CLXENT_ALL_IGNORED_ZERO 1u /* 0 */

/* What a run does with the buffer of the gradient. */
#define CLXENT_GRADIENT_WRITE 0u      /* replaces what it holds */
#define CLXENT_GRADIENT_ACCUMULATE 1u /* adds to what it holds */

/* What becomes of the gradient's padding, the elements from classes * inner to gradient_row_stride of each row or slab.
 * A gradient written in the place of logits with a padded vocabulary (classes 50257, row_stride 50304) leaves logits in
 * the padding under KEEP. The matrix product of the backward pass reads whole rows, so that training is wrong, and
 * nothing reports it: ask for ZERO there.
 *
 *     KEEP  as it was before the run
 *     ZERO  0, of the last row too: the buffer holds rows * gradient_row_stride elements, with inner > 1
 *           rows / inner * gradient_row_stride, in full */
#define CLXENT_GRADIENT_PADDING_KEEP 0u
#define CLXENT_GRADIENT_PADDING_ZERO 1u

/* Outputs: bits of clxent_desc.outputs and clxent_args.outputs.
 * Those marked * depend on the logits alone and are computed for every row, ignored or not.
 *
 *       LOSSES       [rows] acc_t: row losses, with row weight and z-loss, without denominator and grad_output; 0
 *                    where ignored
 *       LOSS         [1] acc_t: their sum / denominator; not with REDUCTION_NONE
 *     * LSE          [rows] acc_t
 *     * SOFTMAX      [rows, classes] dtype
 *     * LOG_SOFTMAX  [rows, classes] dtype
 *       GRADIENT     [rows, classes] gradient_dtype
 *     * ARGMAX       [rows] int64_t: the first NaN, else the first maximum of logit_scale * x, as a saturated softcap
 *                    rounds different logits to the same z; it changes no other order
 *       CORRECT      [1] uint64_t: rows that count (row weight not 0) whose argmax is their target; index targets
 *     * ENTROPY      [rows] acc_t: log sum_exp + sum p (m - z); p = 0 adds 0
 *       STATISTICS   [rows, 2] acc_t: what a later gradient run needs of a row: m and the scaled sum over the classes
 *                    other than the target; opaque. With has_grad_entropy [rows, 3]
 *       BAD_TARGETS  [1] clxent_bad_targets; CLXENT_BAD_TARGET_REPORT, index targets
 *       ONE_HOT      [rows, classes] dtype; CLXENT_OP_ONE_HOT only
 *       COMPUTED_DENOMINATOR
 *                    [1] acc_t: the sum of weights that a mean divides by, whatever the reduction, and also where
 *                    args.denominator is given
 *       COUNTED      [1] uint64_t: rows that are neither ignored, masked nor out of range
 *       HIDDEN_GRADIENT, WEIGHT_GRADIENT, BIAS_GRADIENT
 *                    [rows, features], [classes, features], [classes], each of its own dtype;
 *                    CLXENT_OP_LINEAR_CROSS_ENTROPY only */
#define CLXENT_OUTPUT_LOSSES (1u << 0)
#define CLXENT_OUTPUT_LOSS (1u << 1)
#define CLXENT_OUTPUT_LSE (1u << 2)
#define CLXENT_OUTPUT_SOFTMAX (1u << 3)
#define CLXENT_OUTPUT_LOG_SOFTMAX (1u << 4)
#define CLXENT_OUTPUT_GRADIENT (1u << 5)
#define CLXENT_OUTPUT_ARGMAX (1u << 6)
#define CLXENT_OUTPUT_CORRECT (1u << 7)
#define CLXENT_OUTPUT_ENTROPY (1u << 8)
#define CLXENT_OUTPUT_STATISTICS (1u << 9)
#define CLXENT_OUTPUT_BAD_TARGETS (1u << 10)
#define CLXENT_OUTPUT_ONE_HOT (1u << 11)
#define CLXENT_OUTPUT_COMPUTED_DENOMINATOR (1u << 12)
#define CLXENT_OUTPUT_COUNTED (1u << 13)
#define CLXENT_OUTPUT_HIDDEN_GRADIENT (1u << 14)
#define CLXENT_OUTPUT_WEIGHT_GRADIENT (1u << 15)
#define CLXENT_OUTPUT_BIAS_GRADIENT (1u << 16)

/* What a plan computes: operation, outputs, storage, shapes, options. */
typedef struct clxent_desc {
    size_t struct_size; /* set by CLXENT_DESC_INIT */
    uint32_t op;        /* CLXENT_OP_*; default CROSS_ENTROPY */
    uint32_t outputs;   /* CLXENT_OUTPUT_* bits: all that any run of the plan may ask for; not 0 */
    uint32_t dtype;     /* of logits, probabilities, softmax, log_softmax, one_hot, hidden, weight and bias;
                                default F32 */
    uint32_t gradient_dtype; /* 0: as dtype; f64 logits take f64 or f32, others f32, f16 or bf16 */
    uint32_t target_type;    /* CLXENT_TARGET_*; default I64; not looked at where nothing uses targets */
    uint32_t reduction;      /* CLXENT_REDUCTION_*; default MEAN */

    /* rows = batch * seq; row r is timestep r % seq of sequence r / seq. batch = 0 is allowed; seq is at
     * least 1 unless batch is 0.
     *
     * The class axis may stand anywhere: with inner > 1 the logits are [rows / inner, classes, inner],
     * and row r is [r / inner, :, r % inner]; rows must be a multiple of inner. N,C,H,W is batch = N * H,
     * seq = W, inner = H * W: seq is the last axis that is not the class axis. */
    size_t batch;
    size_t seq;
    size_t classes; /* 1 to 2^31 - 1 */
    size_t inner;   /* default 1 */

    /* Elements from one row to the next, with inner > 1 from one [classes, inner] slab to the
     * next; at least classes * inner, or 0 for exactly that. Padding is never read into a result and
     * never written, unless gradient_padding says so. */
    size_t row_stride;               /* logits */
    size_t gradient_row_stride;      /* gradient */
    size_t probabilities_row_stride; /* args.probabilities, softmax, log_softmax, one_hot, and the
                                        [rows, classes] grad_output of SOFTMAX_BACKWARD */
    size_t target_row_stride;        /* probability targets */

    int64_t ignore_index;       /* rows with this target have loss 0 and gradient 0 (except for the parts of
                                   grad_entropy and grad_lse), and do not count; compared at full width, may be
                                   a valid class; default -100. With probability targets it must be negative,
                                   or not in use */
    uint32_t use_ignore_index;  /* 0: no target is ignored; default 1 */
    uint32_t bad_target;        /* CLXENT_BAD_TARGET_*; default REPORT */
    uint32_t all_ignored;       /* CLXENT_ALL_IGNORED_*; default NAN */
    uint32_t gradient_mode;     /* CLXENT_GRADIENT_*; default WRITE. ACCUMULATE adds to what gradient
                                   holds; gradients of 0, as those of masked and ignored rows, then leave
                                   it unchanged, -0 too */
    uint32_t has_class_weights; /* nonzero: every run gives args.class_weights */
    uint32_t has_row_weights;   /* nonzero: every run gives args.row_weights */
    size_t shift;               /* row t has the target of row t + shift of its sequence; the
                                   last shift rows of each sequence are ignored; at most seq; default 0.
                                   Row weights belong to the logits' row. */
    double label_smoothing;     /* [0, 1]; default 0 */
    double z_loss;              /* finite (as acc_t: see CLXENT_F32), >= 0; default 0 */
    double logit_scale;         /* finite as acc_t; default 1 */
    double softcap;             /* finite as acc_t, >= 0, not subnormal; 0: off; default 0 */
    uint32_t gradient_padding;  /* CLXENT_GRADIENT_PADDING_*; default KEEP. ZERO takes gradient among the
                                   outputs, and gradient_mode WRITE: each run that writes the gradient
                                   writes its padding too */
    uint32_t has_grad_entropy;  /* nonzero: every run that writes the gradient gives args.grad_entropy; takes
                                   gradient or statistics among the outputs */
    uint32_t has_grad_lse;      /* likewise args.grad_lse */
    uint32_t has_bias;          /* LINEAR_CROSS_ENTROPY; nonzero: every run gives args.bias */

    /* LINEAR_CROSS_ENTROPY; with other operations all take 0. */
    size_t features;          /* 1 to 2^31 - 1: columns of hidden and weight */
    size_t hidden_row_stride; /* elements from one row to the next: at least features, 0 for just that */
    size_t weight_row_stride; /* likewise, from one class to the next */
    size_t hidden_gradient_row_stride; /* likewise */
    size_t weight_gradient_row_stride; /* likewise */
    uint32_t hidden_gradient_dtype;    /* 0: as dtype; with f64 f64 or f32, else f32, f16 or bf16 */
    uint32_t weight_gradient_dtype;    /* likewise */
    uint32_t bias_gradient_dtype;      /* likewise */
    uint32_t hidden_gradient_mode; /* CLXENT_GRADIENT_*: written, or added to what is there, rounded once */
    uint32_t weight_gradient_mode; /* likewise; of a batch in parts the first part writes, later parts add */
    uint32_t bias_gradient_mode;   /* likewise */
    /* Bytes that clxent_plan_workspace_size() may be at most. With fewer bytes rows come in more and smaller chunks, which
     * takes more time. 0: chunks of 2,048 rows, as larger ones save little, or of as many as one buffer of the device has
     * room for. A limit below what a chunk of one row takes is refused with that number of bytes
     * (CLXENT_ERROR_INVALID_DESC), a device with smaller buffers likewise (CLXENT_ERROR_UNSUPPORTED). */
    size_t workspace_limit;
} clxent_desc;
/* The defaults: for initialisers, and for language bindings. */
#define CLXENT_DESC_INIT                                                                      \
    {                                                                                         \
        sizeof(clxent_desc), CLXENT_OP_CROSS_ENTROPY, 0, CLXENT_F32, 0, CLXENT_TARGET_I64,    \
            CLXENT_REDUCTION_MEAN, 0, 0, 0, 1, 0, 0, 0, 0, -100, 1, CLXENT_BAD_TARGET_REPORT, \
            CLXENT_ALL_IGNORED_NAN, CLXENT_GRADIENT_WRITE, 0, 0, 0, 0.0, 0.0, 1.0, 0.0,       \
            CLXENT_GRADIENT_PADDING_KEEP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0         \
    }
CLXENT_API void clxent_desc_init(clxent_desc *desc);

/* Checks all that can be said of a desc without a device. text [size bytes, optional] receives the reason of a
 * failure, NUL-terminated, or "" on success. Pure: any thread.
 * Returns CLXENT_OK, CLXENT_ERROR_NULL_ARGUMENT or CLXENT_ERROR_INVALID_DESC. */
CLXENT_API clxent_status clxent_desc_check(const clxent_desc *desc, char *text, size_t size);

/* ---- Plan -------------------------------------------------------------------------------- */

/* A desc made ready for a device: everything that a run needs but its buffers. */
typedef struct clxent_plan clxent_plan;

/* Validates desc, picks a strategy for the device, builds the kernels. Slow: reuse plans.
 *
 * A program holds what its plan can be asked for, and the context keeps programs: plans share one where it holds the same.
 * That is: the strategy with its parameters, dtypes, target type, gradient_mode; which of softmax, log-softmax, gradient
 * and entropy the plan gives, and whether it gives anything that depends on targets or is summed over rows; which of class
 * weights, smoothing, logit_scale, softcap, and gradients of entropy and lse are in use. Rows, strides, the numbers of
 * options, and classes but for what they make of the strategy, build nothing.
 *
 * Where the device takes a kernel only in smaller work-groups than the parameters ask for, the plan has smaller ones.
 * Their size decides bits. It follows from device, driver, parameters and the desc's op, dtypes, options and
 * outputs, not from rows or strides: a batch and its chunks have the same.
 *
 * Returns CLXENT_ERROR_NULL_ARGUMENT, _INVALID_DESC, _UNSUPPORTED (f64 without device support, a kernel that the device
 * takes in no work-group at all, options.tuning with groups that the driver cannot compile), _OUT_OF_HOST_MEMORY,
 * _BUILD_FAILED or a cl_int; *out is NULL then. */
CLXENT_API clxent_status clxent_plan_create(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc);

/* NULL is allowed. */
CLXENT_API void clxent_plan_destroy(clxent_plan *plan);

/* Optional: launches every kernel of the plan once and waits for their end, so that what a driver leaves for the first
 * launch (compilation, loading of code) is done before the first run. The launches have the sizes of a run of all rows; a
 * driver may have work left for a run of fewer. They read and write only buffers that the call creates and releases, of
 * clxent_plan_workspace_size() bytes and, with op PROBABILITY_LOSS, [rows] acc_t more. Products of LINEAR_CROSS_ENTROPY run in
 * one group each.
 *
 * queue    of the plan's context and device, in-order or out-of-order. On an in-order queue the call waits for what was
 *          enqueued before, too.
 * Returns  CLXENT_ERROR_NULL_ARGUMENT; CLXENT_ERROR_INVALID_ARGUMENT where queue is of another context or device; or a
 *          cl_int. After a failure the plan can be used as before.
 * Threads  Any, also beside runs of the same plan. */
CLXENT_API clxent_status clxent_plan_warm(clxent_plan *plan, cl_command_queue queue);

/* Bytes of args.workspace that any run of the plan needs; may be 0. Runs that may overlap in time need that much
 * each: one workspace for each run in flight. */
CLXENT_API size_t clxent_plan_workspace_size(const clxent_plan *plan);

/* Bytes that the buffer of one argument must have behind its offset for a run of all outputs and rows of the plan.
 * Optional arguments count as given. Statistics also count where only a gradient run may read them, computed_denominator and
 * counted where only clxent_enqueue_denominator() may write them.
 *
 * argument  the name of a field of clxent_args, e.g. "logits" or "workspace": a word that every language has, without
 *           numbers to keep in step with the struct
 * Returns   0 where no run of the plan uses the argument, and where there is no such argument; the context's error text
 *           then lists those that there are. Any thread. */
CLXENT_API size_t clxent_plan_bytes(const clxent_plan *plan, const char *argument);

/* One line naming the strategy and its parameters, for people. Lives as long as the plan. */
CLXENT_API const char *clxent_plan_strategy(const clxent_plan *plan);

/* Validates desc and writes the strategy that clxent_plan_create() would choose to text [size bytes, optional],
 * NUL-terminated and cut to size; "" on failure. Compiles and launches nothing: it takes microseconds. Only a plan finds
 * out where a device takes one of its kernels in smaller work-groups than others.
 * Returns CLXENT_OK, CLXENT_ERROR_NULL_ARGUMENT, _INVALID_DESC, _UNSUPPORTED or _OUT_OF_HOST_MEMORY. Any thread. */
CLXENT_API clxent_status clxent_plan_describe(clxent_context *ctx, const clxent_desc *desc, char *text,
                                              size_t size);

/* ---- Run --------------------------------------------------------------------------------- */

/* What CLXENT_OUTPUT_BAD_TARGETS writes: 24 bytes, on the device as {ulong, ulong, long}.
 * first_row and value are 0 when count is 0. value is the target as stored; first_row is the
 * logits' row. Rows of weight 0 are not looked at. */
typedef struct clxent_bad_targets {
    uint64_t count;     /* rows with such a target */
    uint64_t first_row; /* the first of them */
    int64_t value;      /* its target */
} clxent_bad_targets;

/* A place in an OpenCL buffer. */
typedef struct clxent_buffer {
    cl_mem mem;    /* NULL: absent */
    size_t offset; /* bytes; a multiple of the element size */
} clxent_buffer;

/* For clxent_args.rows. */
#define CLXENT_ALL_ROWS SIZE_MAX

/* A batch whose [rows, classes] arrays come part by part, as micro-batches or chunks of logits do, in one run for each,
 * in order, on one plan and workspace, which nothing else uses in between (on queues that do not run them in order each waits
 * for the event of the one before). args.total_rows is the whole batch, args.first_row and args.rows are the part. All
 * [rows] buffers hold the whole batch, whatever part a run computes; [rows, classes] buffers hold the part alone. Both
 * counts are multiples of inner, and of seq when shift > 0.
 *
 * Whatever one row has of its own is written by its part; loss, correct, bad_targets, computed_denominator and counted by the
 * last one, from all rows: outputs have the bits of one run of the whole batch, however it is cut, down to one row. So all
 * parts name the same outputs and the same [rows] buffers; what the last one alone writes need not be given before, but is
 * checked where it is. A mean takes the batch's denominator from clxent_enqueue_denominator(), or any other, as
 * args.denominator. */
#define CLXENT_PART_WHOLE 0u  /* the run is the batch: first_row is 0 */
#define CLXENT_PART_FIRST 1u  /* first_row is 0, and rows follow */
#define CLXENT_PART_MIDDLE 2u /* rows go before and follow */
#define CLXENT_PART_LAST 3u   /* ends with the batch */

/* "in" and "out" as seen by the device; acc_t is f32, f64 for f64 logits. Fields that a run does
 * not use are ignored. Buffers of one run may not overlap, except that gradient (also softmax or log_softmax,
 * where it is the only [rows, classes] output of the run) may be logits itself: same mem, offset, stride and
 * dtype; not with CLXENT_GRADIENT_ACCUMULATE.
 *
 * Each mem is a buffer or sub-buffer of the plan's cl_context, not an image. "in" needs CL_MEM_READ_ONLY or
 * CL_MEM_READ_WRITE, "out" CL_MEM_WRITE_ONLY or CL_MEM_READ_WRITE, what is both CL_MEM_READ_WRITE. CL_MEM_HOST_*
 * flags may be any. */
typedef struct clxent_args {
    size_t struct_size; /* set by CLXENT_ARGS_INIT */
    uint32_t outputs;   /* those of desc.outputs that this run computes; 0: all of them. Exactly
                           CLXENT_OUTPUT_GRADIENT (with or without BAD_TARGETS, COMPUTED_DENOMINATOR, COUNTED)
                           with a statistics buffer: the gradient from statistics that an earlier run saved for
                           the same logits and targets, of a plan with the same has_grad_entropy and
                           has_grad_lse: bit for bit what one run of both gives where the run was of the same
                           plan, else within the same bounds */
    size_t rows;        /* at most desc.batch * desc.seq; CLXENT_ALL_ROWS: all of them, from first_row on; 0
                           is allowed. A multiple of inner, and of seq when shift > 0 */

    clxent_buffer logits;        /* in  [rows, classes] dtype, row_stride */
    clxent_buffer probabilities; /* in  [rows, classes] dtype, probabilities_row_stride; ops that say so */
    clxent_buffer targets;       /* in  [rows], or [rows, classes] probabilities, target_row_stride; as the
                                    weights below needed by every run of a plan one of whose outputs
                                    depends on them */
    clxent_buffer class_weights; /* in  [classes] acc_t, any finite numbers */
    clxent_buffer row_weights;   /* in  [rows] acc_t; 0 masks the row whatever it holds */
    clxent_buffer grad_output;   /* in  optional: absent means 1. [1] acc_t, or [rows] with
                                    CLXENT_REDUCTION_NONE; SOFTMAX_BACKWARD: [rows, classes] dtype, required */
    clxent_buffer denominator;   /* in  optional: [1] acc_t, in the place of the computed one */

    clxent_buffer losses;  /* out, shapes at CLXENT_OUTPUT_*; in and out of a run that computes loss too */
    clxent_buffer loss;    /* out */
    clxent_buffer lse;     /* out */
    clxent_buffer softmax; /* out */
    clxent_buffer log_softmax; /* out */
    clxent_buffer gradient;    /* out; in and out when accumulating */
    clxent_buffer argmax;      /* out */
    clxent_buffer correct;     /* out */
    clxent_buffer entropy;     /* out */
    clxent_buffer statistics;  /* out, or in of a gradient run */
    clxent_buffer bad_targets; /* out; optional even when asked for */
    clxent_buffer one_hot;     /* out */
    clxent_buffer workspace;   /* in and out: scratch, clxent_plan_workspace_size() bytes, offset a multiple
                                  of 64; one for each run in flight: runs that share it must not overlap
                                  in time */

    /* A batch in parts: see CLXENT_PART_WHOLE. */
    size_t total_rows; /* of the batch, at most desc.batch * desc.seq, which 0 means; with part WHOLE 0 means
                          rows */
    size_t first_row;  /* of the part, in the batch */
    uint32_t part;     /* CLXENT_PART_*; default WHOLE */
    uint32_t reserved; /* takes 0 */

    clxent_buffer computed_denominator; /* out [1] acc_t; not the buffer that is given as denominator */
    clxent_buffer counted;              /* out [1] uint64_t */
    clxent_buffer grad_entropy;         /* in  [rows] acc_t, with desc.has_grad_entropy */
    clxent_buffer grad_lse;             /* in  [rows] acc_t, with desc.has_grad_lse */

    /* CLXENT_OP_LINEAR_CROSS_ENTROPY. In a batch in parts hidden and hidden_gradient hold the part's rows; all parts ask for
     * the same gradients and name the same weight_gradient and bias_gradient, which are complete after the last part. */
    clxent_buffer hidden;          /* in  [rows, features] dtype, hidden_row_stride */
    clxent_buffer weight;          /* in  [classes, features] dtype, weight_row_stride */
    clxent_buffer bias;            /* in  [classes] dtype, with desc.has_bias */
    clxent_buffer hidden_gradient; /* out [rows, features], hidden_gradient_row_stride; in and out when
                                      accumulating */
    clxent_buffer weight_gradient; /* out [classes, features], weight_gradient_row_stride; in and out when
                                      accumulating, and in f32 or f64 */
    clxent_buffer bias_gradient;   /* out [classes]; likewise */
} clxent_args;
/* The defaults: for initialisers, and for language bindings. */
#define CLXENT_ARGS_INIT                                                                                 \
    {                                                                                                    \
        sizeof(clxent_args), 0, CLXENT_ALL_ROWS, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 },     \
            { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 },   \
            { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 },   \
            { NULL, 0 }, { NULL, 0 }, 0, 0, CLXENT_PART_WHOLE, 0, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, \
            { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 },                \
        {                                                                                                \
            NULL, 0                                                                                      \
        }                                                                                                \
    }
CLXENT_API void clxent_args_init(clxent_args *args);

/* Enqueues one run on queue (in-order or out-of-order, of the plan's context and device).
 *
 * wait, event  as in clEnqueue*: starts after the num_wait events of wait, all of the plan's cl_context; event
 *              (optional) completes when all outputs are written, also with 0 rows. Returns at once, also
 *              when wait has not completed.
 * Returns      CLXENT_ERROR_NULL_ARGUMENT, _INVALID_ARGUMENT, _BUFFER_TOO_SMALL, or the cl_int of a query of queue,
 *              buffers or events, before anything is enqueued; or the cl_int of a launch that the driver
 *              refused: outputs are undefined then. On any failure *event is untouched.
 * Numerics     Deterministic: the same inputs give the same bits on one device, whatever the queue, the
 *              timing, and which others of the plan's outputs are asked for beside one. Batch invariant: with
 *              the same options, dtype, classes and inner, the bits of a row do not depend on the number of
 *              rows, on its place among them, and on the outputs of its plan. Outputs do matter in three cases:
 *              between plans with and without targets; on devices whose plans have work-groups of one (CPUs),
 *              up to 4,096 classes, between plans of log_softmax, of softmax and gradient together, of either,
 *              and of neither; with inner > 1 and larger work-groups, where a tile of logits fills half the local memory.
 * Threads      Any, also several at once on one plan, each run in flight with a workspace of its own. The
 *              launches of one run are not mixed with those of another of the same plan, but for
 *              LINEAR_CROSS_ENTROPY, whose chunks are.
 * Timing       A run is one launch or several; the profiling times of event are those of the last. To time a
 *              whole run on a queue with CL_QUEUE_PROFILING_ENABLE, enqueue a marker, let the run wait for its
 *              event, and take the time from CL_PROFILING_COMMAND_END of the marker to that of event. */
CLXENT_API clxent_status clxent_enqueue(clxent_plan *plan, cl_command_queue queue, const clxent_args *args,
                                        cl_uint num_wait, const cl_event *wait, cl_event *event);

/* Enqueues what a mean over a batch in parts needs first: reads targets, class_weights and row_weights of all the batch's
 * rows (args.total_rows, or rows with part WHOLE), as far as desc has them, and writes args.computed_denominator [1] acc_t
 * and args.counted [1] uint64_t (either may be absent), whether desc.outputs names them or not. No other buffer but the
 * workspace is looked at, nor are args.outputs and first_row.
 *
 * Returns  CLXENT_ERROR_INVALID_ARGUMENT where the plan is neither one of a mean with loss or gradient nor has one of these
 *          outputs; CLXENT_ERROR_NULL_ARGUMENT where both are absent. The rest is as for clxent_enqueue(). */
CLXENT_API clxent_status clxent_enqueue_denominator(clxent_plan *plan, cl_command_queue queue,
                                                    const clxent_args *args, cl_uint num_wait,
                                                    const cl_event *wait, cl_event *event);

/* ---- Host arrays ------------------------------------------------------------------------- */

/* An array that is read. */
typedef struct clxent_input {
    const void *data; /* NULL: absent */
    size_t size;      /* the bytes that data points at: checked against what desc needs */
} clxent_input;

/* An array that is written. */
typedef struct clxent_output {
    void *data;  /* NULL: absent */
    size_t size; /* likewise */
} clxent_output;

/* As clxent_args, in host memory. The outputs computed are those of desc.outputs; each needs its array,
 * but bad_targets. Of the inputs only what desc needs is read. */
typedef struct clxent_host_args {
    size_t struct_size;     /* set by CLXENT_HOST_ARGS_INIT */
    size_t max_chunk_bytes; /* 0, or an upper limit to the device memory that one buffer of a [rows, classes]
                               or [rows, features] array takes; at least what one row (below) needs */

    /* As the field of clxent_args with this name, without an offset. */
    clxent_input logits;
    clxent_input probabilities;
    clxent_input targets;
    clxent_input class_weights;
    clxent_input row_weights;
    clxent_input grad_output;
    clxent_input denominator;
    clxent_output losses;
    clxent_output loss;
    clxent_output lse;
    clxent_output softmax;
    clxent_output log_softmax;
    clxent_output gradient;
    clxent_output argmax;
    clxent_output correct;
    clxent_output entropy;
    clxent_output statistics;
    clxent_output bad_targets;
    clxent_output one_hot;
    clxent_output computed_denominator;
    clxent_output counted;
    clxent_input grad_entropy;
    clxent_input grad_lse;
    clxent_input hidden;
    clxent_input weight;
    clxent_input bias;
    clxent_output hidden_gradient;
    clxent_output weight_gradient;
    clxent_output bias_gradient;
} clxent_host_args;
/* The defaults: for initialisers, and for language bindings. */
#define CLXENT_HOST_ARGS_INIT                                                                          \
    {                                                                                                  \
        sizeof(clxent_host_args), 0, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 },  \
            { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, \
            { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, \
            { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, { NULL, 0 }, \
            { NULL, 0 }, { NULL, 0 },                                                                  \
        {                                                                                              \
            NULL, 0                                                                                    \
        }                                                                                              \
    }
CLXENT_API void clxent_host_args_init(clxent_host_args *args);

/* Computes desc on arrays in host memory and returns when they are written. Rows are cut into chunks that
 * fit the device's largest buffer (CL_DEVICE_MAX_MEM_ALLOC_SIZE) and its memory, down to one row; the result has
 * the same bits however they are cut, but for two gradients below. With inner > 1 the smallest chunk is one
 * [classes, inner] slab, with shift > 0 one sequence of seq rows, with both a whole number of either. Arrays may
 * not overlap, except that gradient may be logits itself.
 *
 * LINEAR_CROSS_ENTROPY: hidden, hidden_gradient and probability targets are cut; weight, bias and their gradients are not: each
 * has one device buffer, is uploaded once (a gradient only where its mode accumulates) and comes back at the end. One that
 * is larger than the device's largest buffer is CLXENT_ERROR_UNSUPPORTED with a text that has the bytes. The workspace is
 * that of a plan, by desc.workspace_limit, but at most half of CL_DEVICE_GLOBAL_MEM_SIZE (of what these arrays leave of it,
 * where the device has memory of its own), unless one row takes more. weight_gradient and bias_gradient are sums over
 * chunks, whose bits depend on how rows are cut, hence on workspace_limit, max_chunk_bytes and the device's memory; no
 * other result's do.
 *
 * Under CLXENT_BAD_TARGET_REPORT all targets are looked at first: one out of range gives
 * CLXENT_ERROR_BAD_TARGET with a text that names its row, its value and the valid range; bad_targets is
 * written where given, and no other output is.
 * Returns also what clxent_plan_create() and clxent_enqueue() return; CLXENT_ERROR_UNSUPPORTED where the smallest chunk,
 * or what is not cut, does not fit the device, CLXENT_ERROR_INVALID_ARGUMENT where it does not fit max_chunk_bytes, with a
 * text that has the bytes; CLXENT_ERROR_OUT_OF_HOST_MEMORY. Outputs are undefined where the driver failed
 * (status < 0). Any thread; each call creates and destroys its own plan, queue and buffers.
 *
 * CLXENT_ERROR_ARRAYS_IN_USE means that the driver failed so far that it cannot be waited for either (clFinish); the text
 * begins with the first failure. Then the device may read and write all of args' arrays after the return, and
 * windows over them (CL_MEM_USE_HOST_PTR) stay open: do not free, unmap or use them before the process ends.
 * What the call created (plan, queues, buffers) is never released, nor are ctx and its cl_context. */
CLXENT_API clxent_status clxent_run_host(clxent_context *ctx, const clxent_desc *desc,
                                         const clxent_host_args *args);

#ifdef __cplusplus
}
#endif
#endif
