/* SPDX-License-Identifier: MIT
 *
 * epilogue.cl - what becomes of a row state: loss, entropy and the other results that a row has one of, and the values
 * of softmax, log-softmax and gradient. Stands behind row_state.cl. A lane is one row or a vector of rows, a vec lies along
 * the classes of one row or holds one class of many. Formulas: clxent.h.
 */
/* What every kernel of a run gets; buffers that the run does not use are NULL. logits and gradient (or softmax,
 * log_softmax) may be one buffer, hence no restrict on them: an element is read before it is written, and by
 * others not after that. */
#define ARGUMENTS                                                                                     \
    const clxent_parameters p, __global const storage *logits,        /* [rows, classes] */           \
        __global const void *restrict targets,                        /* [rows] or [rows, classes] */ \
        __global const acc_t *restrict class_weights,                 /* [classes] */                 \
        __global const acc_t *restrict row_weights,                   /* [rows] */                    \
        __global const acc_t *restrict grad_output,                   /* [1] or [rows] */             \
        __global const acc_t *restrict denominator,                   /* [1] */                       \
        __global const acc_t *restrict grad_entropy,                  /* [rows] */                    \
        __global const acc_t *restrict grad_lse,                      /* [rows] */                    \
        __global acc_t *restrict losses,                              /* [rows] */                    \
        __global acc_t *restrict loss,                                /* [1] */                       \
        __global acc_t *restrict lse,                                 /* [rows] */                    \
        __global storage *softmax,                                    /* [rows, classes] */           \
        __global storage *log_softmax,                                /* [rows, classes] */           \
        __global gradient_storage *gradient,                          /* [rows, classes] */           \
        __global long *restrict argmax,                               /* [rows] */                    \
        __global ulong *restrict correct,                             /* [1] */                       \
        __global acc_t *restrict entropy,                             /* [rows] */                    \
        __global acc_t *restrict statistics,                          /* [rows, STATISTICS_WIDTH] */  \
        __global ulong *restrict bad_targets,                         /* [3] */                       \
        __global acc_t *restrict computed_denominator,                /* [1] */                       \
        __global ulong *restrict counted,                             /* [1] */                       \
        __global uchar *restrict workspace, __local acc_t *local_rows /* [local_elements] */

/* What a kernel was given, for the functions below. */
typedef struct {
    const clxent_parameters *p;
    size_t group; /* the work-group */
    __global const storage *logits;
    __global const void *targets;
    __global const acc_t *class_weights, *row_weights, *grad_output, *grad_entropy, *grad_lse;
    __global acc_t *losses, *loss, *lse;
    __global storage *softmax, *log_softmax;
    __global gradient_storage *gradient;
    __global long *argmax;
    __global ulong *correct;
    __global acc_t *entropy, *statistics;
    __global ulong *bad_targets;
    __global acc_t *computed_denominator;
    __global ulong *counted;
    __global uchar *workspace;
    __local acc_t *local_rows;
    options o;
    acc_t denominator; /* what gradients are divided by */
} run;

/* All but the denominator. */
#define MAKE_RUN                                                                                             \
    {                                                                                                        \
        &p, get_group_id(0), logits, targets, class_weights + p.offset.class_weights, row_weights,           \
            grad_output, grad_entropy, grad_lse, losses, loss, lse, softmax, log_softmax, gradient, argmax,  \
            correct, entropy, statistics, bad_targets, computed_denominator, counted, workspace, local_rows, \
            options_of(&p), 1                                                                                \
    }

/* ---- Few rows, reduced on the way ----------------------------------------------------------- */

/* Both make of the batch's only partial what reduce.cl's kernels do: the same bits. On CPUs alone: in groups they would cost
 * registers of every run (f32 of 50,257 classes, sm_80: 108 bytes spilled). */
#define REDUCES_ITSELF (REDUCES && WG_SIZE == 1)
#if REDUCES_ITSELF
/* FLAG_OWN_TARGETS: every group makes the pass over the targets for itself, and one writes its results. */
static inline acc_t sum_own_targets(const run *u)
{
    const share_of_partial share = { 0, u->p->rows, 0 };
    partial all;
    sum_targets(&all, u->p, u->targets, u->class_weights, u->row_weights, share);
    if (u->group == 0)
        fold_targets(u->p, all, u->bad_targets, u->computed_denominator, u->counted, u->workspace);
    return compensated_value_one(all.sum);
}

/* FLAG_ALONE: once all losses are there. */
PART void sum_own_losses(const run *u)
{
    const share_of_partial share = { 0, u->p->rows, 0 };
    partial all;
    if ((u->p->outputs & (OUTPUT_LOSS | OUTPUT_CORRECT)) == 0) return;
    sum_losses(&all, u->p, u->losses, u->workspace, share);
    fold_losses(u->p, all, u->denominator, u->loss, u->correct);
}
#endif

/* What losses and gradients are divided by. */
PART acc_t get_denominator(const run *u, __global const acc_t *denominator)
{
#if REDUCES_ITSELF
    if (u->p->flags & FLAG_OWN_TARGETS) {
        const acc_t sum = sum_own_targets(u);
        if ((u->p->flags & (FLAG_MEAN | FLAG_DENOMINATOR)) == FLAG_MEAN) return sum;
    }
#endif
    return denominator_of(u->p, denominator, u->workspace);
}

/* DEFINE_KERNEL(NAME, SIZE) { OPEN_RUN; ... } is a kernel of groups of SIZE work-items, with `u` as its run. On CPUs its
 * body is a function of its own: PoCL makes three copies of a kernel, each with all that is inlined in it, and it inlines
 * every function that calls get_local_id() and the like (PoCL 3.1, kernel of loss and gradient of 50,257 classes: 0.5 s of
 * CPU, 1.4 without this). On GPUs such a body took 14 registers more (f32, sm_90).
 * OPEN_SCRATCH(T, n): `scratch` is the group's local memory [n], on CPUs NULL. */
#if WG_SIZE > 1
/* Set by the host where it limits registers (plan.c): NVIDIA's compiler heeds a limit only where no group is required. */
#    if defined(GROUP_IS_HINT)
#        define GROUP_OF(SIZE) work_group_size_hint(SIZE, 1, 1)
#    else
#        define GROUP_OF(SIZE) reqd_work_group_size(SIZE, 1, 1)
#    endif
#    define DEFINE_KERNEL(NAME, SIZE) __kernel __attribute__((GROUP_OF(SIZE))) void NAME(ARGUMENTS)
#    define OPEN_RUN                                                    \
        run of_group = MAKE_RUN;                                        \
        of_group.denominator = get_denominator(&of_group, denominator); \
        const run *u = &of_group
#    define OPEN_SCRATCH(T, n) __local T scratch[n]
#else
#    define DEFINE_KERNEL(NAME, SIZE)                                                   \
        PART void NAME##_body(const run *restrict u);                                   \
        __kernel __attribute__((reqd_work_group_size(SIZE, 1, 1))) void NAME(ARGUMENTS) \
        {                                                                               \
            run u = MAKE_RUN;                                                           \
            u.denominator = get_denominator(&u, denominator);                           \
            NAME##_body(&u);                                                            \
        }                                                                               \
        PART void NAME##_body(const run *restrict u)
#    define OPEN_RUN (void)0
#    define OPEN_SCRATCH(T, n) __local T *const scratch = 0
#endif

/* What of a row its target decides, and the weights of its terms. */
typedef struct {
    ilane counts;   /* neither ignored nor masked nor out of range */
    ilane bad;      /* out of range, and the policy makes that NaN */
    lane weight;    /* row_weight */
    lane z;         /* of the target's class; -inf without one */
    lane slope;     /* of the softcap there */
    lane one_hot;   /* one_minus_smoothing * class_weight of the target's class; 0 without one */
    lane dense;     /* the part of a_j at the target's class that every class has */
    lane dense_sum; /* sum of that part over the classes */
    lane dense_nll; /* sum of that part times (maximum - z_j) */
} target_terms;

/* x: the logit of the target's class; -inf without one. */
ALWAYS_INLINE void judge_these_targets(target_terms *of, const run *u, const lane_targets *t, const lane x)
{
    const lane zero = (lane)(0);
    target_terms j;
    j.counts = t->counts;
    j.bad = t->bad;
    j.weight = t->weight;
    j.slope = (lane)(1);
    j.z = softcap_lane_z(x, u->o, &j.slope);
    const lane class_weight = HAS_CLASS_WEIGHTS ? gather(u->class_weights, t->class_index) : (lane)(1);
    j.one_hot = t->has_class ? (lane)(u->o.one_minus_smoothing) * class_weight : zero;
    const lane of_class = t->has_class ? (lane)(u->o.smoothing_per_class) * class_weight : zero;
    j.dense = HAS_DENSE ? of_class : zero;
    j.dense_sum = (lane)(HAS_DENSE ? u->o.smoothing : 0); /* where the sums do not say it */
    j.dense_nll = zero;
    *of = j;
}

static inline target_terms judge_targets(const run *u, const lane_targets *t, const lane x)
{
    target_terms j;
    judge_these_targets(&j, u, t, x);
    return j;
}

/* A second pass is needed where log sum_exp must have its full precision: see NEEDS_FINE_LSE(). */
static inline uint count_passes(const run *u)
{
    return NEEDS_FINE_LSE(HAS_DENSE, OUTPUTS) && !(u->p->flags & FLAG_FROM_STATISTICS) ? 2 : 1;
}

/* What the sums s of the whole row come to, and with them j. */
static inline row_result finish(target_terms *j, const lane_targets *t, const row_state *s)
{
#if HAS_DENSE
    if (SUMS_WEIGHT) j->dense_sum = compensated_value(s->dense_weight);
    j->dense_nll = compensated_value(s->dense_nll);
#endif
    const lane of_target = exp_lane(j->z, exp_scale_of(s->maximum), true);
    const lane target_exp = t->has_class ? of_target : (lane)(0);
    row_result r = finish_state(s->maximum, compensated_value(s->sum_excluding_target), target_exp,
                                s->nan_at != NO_CLASSES || j->z != j->z);
#if HAS_ENTROPY
    const lane zero = (lane)(0);
    const lane distance = target_exp == zero ? zero : target_exp * (r.maximum - j->z);
    r.mean_distance = (compensated_value(s->entropy) + distance) / r.sum_exp;
#endif
    return r;
}

ALWAYS_INLINE lane loss_of(const run *u, const row_result *r, const target_terms *t)
{
    const lane zero = (lane)(0);
    const acc_t z_loss = ACC_OF(u->p->z_loss);
    const lane lse_minus_max = HAS_DENSE ? r->fine_lse_minus_max : r->lse_minus_max;
    lane loss = t->one_hot != zero ? t->one_hot * ((r->maximum - t->z) + lse_minus_max) : zero;
    if (HAS_DENSE) loss = loss + (t->dense_nll + t->dense_sum * lse_minus_max);
    const lane lse = HAS_DENSE ? r->maximum + lse_minus_max : r->lse;
    if (z_loss != 0) loss = fma((lane)(z_loss), lse * lse, loss); /* 0 * inf would be NaN */
    loss = r->valid ? t->weight * loss : (lane)(ACC_NAN);
    return t->counts ? loss : t->bad ? (lane)(ACC_NAN) : zero;
}

/* See accumulated_one(). */
static inline __attribute__((unused)) vec accumulated(const vec old, const vec value)
{
    return value == (vec)(0) ? old : old + value;
}

/* ---- Results that a row has one of ---------------------------------------------------------- */

/* Row losses are the caller's, or in the workspace. */
static inline __global acc_t *losses_of(const run *u)
{
    return WANTS(u->p, OUTPUT_LOSSES) ? u->losses + u->p->offset.losses
                                      : (__global acc_t *)(u->workspace + u->p->row_losses_at);
}

/* The argmax of the n rows from `row` on, and whether it is the target's class. */
PART void write_best(const run *u, const ulong row, const uint n, const lane_targets *t, const ilane best)
{
    const clxent_parameters *p = u->p;
    const ilane is_hit = t->has_class && best == t->class_index;
    integer at[LANE_ROWS], hit[LANE_ROWS];
    STORE_LANE(best, at);
    STORE_LANE(is_hit, hit);
    ROLLED
    for (uint i = 0; i < n; i++) {
        if (WANTS(p, OUTPUT_ARGMAX)) u->argmax[p->offset.argmax + row + i] = at[i];
        if (WANTS(p, OUTPUT_CORRECT)) u->workspace[p->correct_at + row + i] = hit[i] != 0;
    }
}

/* What read_statistics() of another run reads. entropy: the sum, where upstreams of it pull. */
PART void write_statistics(const run *u, const ulong row, const uint n, const lane_targets *t,
                           const row_result *r, const lane entropy)
{
    __global acc_t *to = u->statistics + u->p->offset.statistics + STATISTICS_WIDTH * row;
    const lane zero = (lane)(0), factor = (lane)(STATISTICS_FACTOR);
    const ilane is_kept = HAS_UPSTREAMS ? (ilane)(-1) : t->counts;
    acc_t value[3][LANE_ROWS];
    STORE_LANE(is_kept ? r->maximum : zero, value[0]);
    STORE_LANE(is_kept ? r->sum_excluding_target * factor : zero, value[1]);
    STORE_LANE(entropy * factor, value[2]);
    ROLLED
    for (uint i = 0; i < n; i++) {
        for (uint k = 0; k < STATISTICS_WIDTH; k++) to[STATISTICS_WIDTH * i + k] = value[k][i];
    }
}

/* Of the rows from `row` on, of which `count` exist. */
static inline void write_rows(const run *u, const ulong row, const uint count, const lane_targets *t,
                              const target_terms *j, const row_result *r, const row_state *s)
{
    const clxent_parameters *p = u->p;
    const uint n = LANE_ROWS == 1 ? 1 : count;
    if (TARGETS != TARGET_NONE && WANTS(p, OUTPUT_LOSSES | OUTPUT_LOSS)) {
        store_lanes(losses_of(u) + row, loss_of(u, r, j), n);
    }
    if (WANTS(p, OUTPUT_LSE)) store_lanes(u->lse + p->offset.lse + row, r->lse, n);
    if (WANTS(p, OUTPUT_ARGMAX | OUTPUT_CORRECT)) {
        const ilane target_is_nan = t->has_class && j->z != j->z; /* which the sums have left out */
        const ilane nan_at = target_is_nan ? min(t->class_index, s->nan_at) : s->nan_at;
        write_best(u, row, n, t, nan_at != NO_CLASSES ? nan_at : s->best);
    }
#if HAS_ENTROPY
    if (WANTS(p, OUTPUT_ENTROPY)) {
        const lane entropy = r->valid ? r->fine_lse_minus_max + r->mean_distance : (lane)(ACC_NAN);
        store_lanes(u->entropy + p->offset.entropy + row, entropy, n);
    }
#endif
    if (WANTS(p, OUTPUT_STATISTICS) && !(p->flags & FLAG_FROM_STATISTICS)) {
        lane entropy = (lane)(0);
#if HAS_GRAD_ENTROPY
        entropy = compensated_value(s->entropy);
#endif
        write_statistics(u, row, n, t, r, entropy);
    }
}

/* The sums that write_statistics() of another run has saved. */
static inline void read_statistics(const run *u, const ulong row, const uint n, row_state *s)
{
    __global const acc_t *from = u->statistics + u->p->offset.statistics + STATISTICS_WIDTH * row;
    const lane factor = (lane)(1 / STATISTICS_FACTOR);
    acc_t value[STATISTICS_WIDTH][LANE_ROWS];
    ROLLED
    for (uint i = 0; i < LANE_ROWS; i++) {
        for (uint k = 0; k < STATISTICS_WIDTH; k++) value[k][i] = from[STATISTICS_WIDTH * min(i, n - 1) + k];
    }
    s->maximum = LOAD_LANE(value[0]);
    s->sum_excluding_target = compensated_zero();
    s->sum_excluding_target.high = LOAD_LANE(value[1]) * factor;
#if HAS_GRAD_ENTROPY
    s->entropy = compensated_zero();
    s->entropy.high = LOAD_LANE(value[2]) * factor;
#endif
}

/* row_weight grad_output logit_scale / denominator; of rows that do not count it is not used. */
ALWAYS_INLINE lane outer_of(const run *u, const ulong row, const uint n, const lane_targets *t)
{
    const clxent_parameters *p = u->p;
    lane outer;
    if (p->flags & FLAG_GRAD_OUTPUT_ROWS) {
        outer =
            t->weight * load_lanes(u->grad_output + p->offset.grad_output + row, n) / (lane)(u->denominator);
    } else {
        const acc_t up = (p->flags & FLAG_GRAD_OUTPUT) ? u->grad_output[p->offset.grad_output] : ACC(1.0);
        if (p->flags & FLAG_ROW_WEIGHTS) {
            outer = t->weight * (lane)(up) / (lane)(u->denominator);
        } else {
            outer = (lane)(up / u->denominator);
        }
    }
    return HAS_LOGIT_SCALE ? outer * (lane)(u->o.logit_scale) : outer;
}

/* ---- [rows, classes] results ---------------------------------------------------------------- */

/* Of a program with one of them the kind is known. */
#define WIDE_OUTPUTS (OUTPUTS & (OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX | OUTPUT_GRADIENT))
#define IS_KIND(g, output) \
    (WIDE_OUTPUTS == (output) || ((WIDE_OUTPUTS & (output)) != 0 && (g)->kind == (output)))

/* A value is its exponential times one factor. */
#define HAS_PLAIN_FACTOR(g) \
    (IS_KIND(g, OUTPUT_SOFTMAX) || (HAS_ONE_FACTOR && !IS_KIND(g, OUTPUT_LOG_SOFTMAX)))

#define WANTS_WIDE(p) WANTS(p, OUTPUT_SOFTMAX | OUTPUT_LOG_SOFTMAX | OUTPUT_GRADIENT)

/* What the values of one result are made of. */
typedef struct {
    uint kind;    /* OUTPUT_SOFTMAX, OUTPUT_LOG_SOFTMAX or OUTPUT_GRADIENT */
    ilane filled; /* every element is fill. Rows of NaN are: computed NaNs differ in bits */
    lane fill;
    lane factor; /* softmax: 1 / sum_exp; gradient: what multiplies the exponentials */
    lane rest;   /* what the factor was rounded by: of lanes, as few classes have large shares */
    lane outer;  /* gradient: what multiplies dz; 1 where the factor has it all */
#if HAS_UPSTREAMS
    ilane is_out;            /* of the loss: its part is 0 */
    lane share;              /* what makes exp(z) logit_scale p_j */
    lane of_lse, of_entropy; /* k and h of the row */
    lane mean_distance;
#endif
    ilane class_index; /* NO_CLASS, or the class whose gradient is `target` */
    lane target;
} epilogue;

#if HAS_UPSTREAMS
/* Adds what the upstreams k of lse and h of entropy pull at: k p_j + h p_j ((maximum - z_j) - mean_distance), with p_j first: k or h
 * by sum_exp may overflow or underflow where that does not. Rows that the loss leaves out have this part alone; upstreams of
 * 0 add nothing, whatever the row holds. */
static inline void add_upstreams(epilogue *g, const run *u, const ulong row, const uint n,
                                 const row_result *r, const target_terms *t)
{
    const clxent_offsets *at = &u->p->offset;
    const lane zero = (lane)(0);
    g->of_lse = HAS_GRAD_LSE ? load_lanes(u->grad_lse + at->grad_lse + row, n) : zero;
    g->of_entropy = HAS_GRAD_ENTROPY ? load_lanes(u->grad_entropy + at->grad_entropy + row, n) : zero;
    const ilane pulls = g->of_lse != zero || g->of_entropy != zero;
    g->is_out = g->filled && g->fill == zero;
    g->share = (lane)(HAS_LOGIT_SCALE ? u->o.logit_scale : ACC(1.0)) / r->sum_exp;
    g->mean_distance = zero;
    const lane p = r->target_exp * g->share;
    lane pull = p * g->of_lse;
#    if HAS_GRAD_ENTROPY
    g->mean_distance = r->mean_distance;
    pull = fma(p * g->of_entropy, (r->maximum - t->z) - g->mean_distance, pull);
#    endif
    const lane of_loss = g->is_out ? zero : g->target;
    g->target = pulls && r->target_exp != zero ? of_loss + pull * t->slope : of_loss;
    const ilane is_nan = pulls && !(r->valid && fabs(g->of_lse) < (lane)(ACC_INFINITY) &&
                                    fabs(g->of_entropy) < (lane)(ACC_INFINITY));
    g->filled = is_nan || (g->filled && !(g->is_out && pulls));
    g->fill = is_nan ? (lane)(ACC_NAN) : g->fill;
}
#endif

/* The upstream goes into the factor where that stays between this and its inverse. Else the factor, what it was rounded by, or a
 * polynomial that begins with it may underflow or overflow where gradients do not, and an infinite factor makes NaN of a masked
 * class's 0. */
#define SMALLEST_FACTOR (ACC_SMALLEST_NORMAL * (DTYPE == F64 ? ACC(0x1p+56) : ACC(0x1p+26)))

/* dx_j = (exp(z_j) * factor - dense a_j) * outer * slope_j, at the target's class `target`. Where a row has no gradient all
 * its elements are `fill`. outer: row_weight grad_output logit_scale / denominator. */
ALWAYS_INLINE void gradient_of(epilogue *g, const run *u, const row_result *r, const target_terms *t,
                               const lane outer)
{
    const lane z_term = (lane)(2 * ACC_OF(u->p->z_loss)) * r->lse;
    /* the lesser of p and 1 - p, rounded as their quotient is; of the other the difference to 1 cancels nothing */
    const ilane is_likely = r->target_exp > r->sum_excluding_target;
    const lane part = is_likely ? r->sum_excluding_target : r->target_exp;
    const lane inverse = (lane)(1) / r->sum_exp;
    const lane near = part * inverse;
    const lane share = fma(fma(-near, r->sum_exp, part), inverse, near);
    const lane p = is_likely ? (lane)(1) - share : share;
    const lane missing = is_likely ? share : (lane)(1) - share;
    const lane at_target = (t->dense_sum + z_term) * p - t->one_hot * missing;
    const lane sum = t->one_hot + t->dense_sum + z_term;
    g->factor = LANES ? sum * inverse : sum / r->sum_exp; /* rest takes what either was rounded by */
    g->rest = fma(-g->factor, r->sum_exp, sum) * inverse;
    g->outer = outer;
    g->target = (HAS_DENSE ? at_target - t->dense : at_target) * outer * t->slope;
    g->filled = EITHER(EITHER((ilane)(u->denominator == 0 ? -1 : 0), NOT(t->counts)), NOT(r->valid));
    g->fill = EITHER(t->bad, BOTH(t->counts, NOT(r->valid))) ? (lane)(ACC_NAN) : (lane)(0);
    if (HAS_ONE_FACTOR) {
        const lane factor = g->factor * outer;
        const lane rest = fma(g->factor, outer, -factor) + g->rest * outer;
        const ilane is_alone =
            EITHER(IS_ZERO(factor), IS_WITHIN(factor, SMALLEST_FACTOR, 1 / SMALLEST_FACTOR));
        g->rest = is_alone ? rest : g->rest;
        g->factor = is_alone ? factor : g->factor;
        g->outer = is_alone ? (lane)(1) : outer;
    }
}

/* exp(z_j) * factor; of log-softmax `filled` and `fill` alone are used. */
ALWAYS_INLINE void softmax_of(epilogue *g, const row_result *r)
{
    g->filled = NOT(r->valid);
    g->fill = (lane)(ACC_NAN);
    g->factor = (lane)(1) / r->sum_exp;
    g->rest = fma(-g->factor, r->sum_exp, (lane)(1)) * g->factor;
    g->outer = (lane)(1);
    g->class_index = NO_CLASSES;
    g->target = (lane)(0);
#if HAS_UPSTREAMS
    g->is_out = (ilane)(0);
    g->share = (lane)(0);
    g->of_lse = (lane)(0);
    g->of_entropy = (lane)(0);
    g->mean_distance = (lane)(0);
#endif
}

/* Of the n rows from `row` on. */
static inline epilogue epilogue_of(const run *u, const uint kind, const ulong row, const uint n,
                                   const lane_targets *t, const target_terms *j, const row_result *r)
{
    epilogue g = { .kind = kind,
                   .filled = NOT(r->valid),
                   .fill = (lane)(ACC_NAN),
                   .outer = (lane)(1),
                   .class_index = NO_CLASSES };
    if (kind == OUTPUT_GRADIENT) {
        g.class_index = t->class_index;
        gradient_of(&g, u, r, j, outer_of(u, row, n, t));
#if HAS_UPSTREAMS
        add_upstreams(&g, u, row, n, r, j);
#endif
        return g;
    }
    softmax_of(&g, r);
    return g;
}

/* Of logits z with their exponentials e, slopes and a. */
ALWAYS_INLINE vec result_of(const row_result *r, const epilogue *g, const vec z, const vec slope, const vec e,
                            const vec a)
{
    if (IS_KIND(g, OUTPUT_LOG_SOFTMAX)) return -(((vec)(r->maximum) - z) + (vec)(r->fine_lse_minus_max));
    vec value = e * (vec)(g->factor);
    if (LANES) value = fma(e, (vec)(g->factor), e * (vec)(g->rest));
    if (IS_KIND(g, OUTPUT_SOFTMAX)) return value;
    if (HAS_ONE_FACTOR) return value * (vec)(g->outer);
    if (HAS_DENSE) value = LANES ? value - a : fma(e, (vec)(g->factor), -a);
    value = value * (vec)(g->outer);
#if HAS_UPSTREAMS
    const vec p = e * (vec)(g->share);
    vec sum = fma(p, (vec)(g->of_lse), g->is_out ? (vec)(0) : value);
    if (HAS_GRAD_ENTROPY)
        sum = fma(p * (vec)(g->of_entropy), ((vec)(r->maximum) - z) - (vec)(g->mean_distance), sum);
    value = e == (vec)(0) ? (g->is_out ? (vec)(0) : value) : sum;
#endif
    return value * slope;
}

/* Where the values of one result go. */
typedef struct {
    uint kind;
    bool aligned; /* whole vectors are, and may bypass the cache where that is possible */
    __global storage *out;
    __global gradient_storage *gradient;
} destination;

/* Of the result `kind`, from element `at` on. */
static inline destination destination_of(const run *u, const uint kind, const ulong at)
{
    const clxent_offsets *offset = &u->p->offset;
    return (destination){ kind, false,
                          kind == OUTPUT_SOFTMAX ? u->softmax + offset->softmax + at
                                                 : u->log_softmax + offset->log_softmax + at,
                          u->gradient + offset->gradient + at };
}

static inline size_t address_of(const destination *to, const ulong at)
{
    return IS_KIND(to, OUTPUT_GRADIENT) ? (size_t)(to->gradient + at) : (size_t)(to->out + at);
}

#define BYTES_OF(to) (IS_KIND(to, OUTPUT_GRADIENT) ? sizeof(gradient_storage) : sizeof(storage))

/* What belongs into a vector at element `at`, of which n exist: the value, or the sum with what is there. */
ALWAYS_INLINE vec with_old(const destination *to, const ulong at, const vec value, const uint n)
{
    if (!ACCUMULATE || !IS_KIND(to, OUTPUT_GRADIENT)) return value;
    return accumulated(n == VEC ? load_gradient_vector(to->gradient + at)
                                : load_gradient_partial(to->gradient + at, n, 0),
                       value);
}

ALWAYS_INLINE void put(const destination *to, const ulong at, const vec value, const uint n)
{
    if (IS_KIND(to, OUTPUT_GRADIENT)) {
        if (n == VEC) {
            store_gradient_vector(to->gradient + at, value, to->aligned);
        } else {
            store_gradient_partial(to->gradient + at, value, n);
        }
    } else if (n == VEC) {
        store_vector(to->out + at, value, to->aligned);
    } else {
        store_partial(to->out + at, value, n);
    }
}

/* A whole vector without NaN. */
ALWAYS_INLINE void put_number(const destination *to, const ulong at, const vec value, const bool aligned)
{
    if (IS_KIND(to, OUTPUT_GRADIENT)) {
        store_gradient_numbers(to->gradient + at, value, aligned);
    } else {
        store_numbers(to->out + at, value, aligned);
    }
}

#if WG_SIZE == 1
/* Two of them, as load_pair() has them. aligned: see PAIR_ALIGNMENT(). */
ALWAYS_INLINE void put_pair(const destination *to, const ulong at, const vec_pair v, const bool aligned)
{
#    if DEINTERLEAVES
    const bool joined = !IS_KIND(to, OUTPUT_GRADIENT) || GRADIENT_DTYPE == BF16;
    if (joined) {
        store_deinterleaved((__global ushort *)address_of(to, at), v, aligned);
        return;
    }
    const vec_pair ordered = in_class_order(v);
#    else
    const vec_pair ordered = v;
#    endif
    put_number(to, at, ordered.first, aligned);
    put_number(to, at + VEC, ordered.second, aligned);
}
#endif

ALWAYS_INLINE void put_one(const destination *to, const ulong at, const acc_t value)
{
    if (IS_KIND(to, OUTPUT_GRADIENT)) {
        store_gradient_one(to->gradient + at, value);
    } else {
        store_one(to->out + at, value);
    }
}

/* Both add where the plan accumulates. */
ALWAYS_INLINE void put_sum(const destination *to, const ulong at, const vec value, const uint n)
{
    put(to, at, with_old(to, at, value, n), n);
}

ALWAYS_INLINE void put_sum_one(const destination *to, const ulong at, const acc_t value)
{
    const bool adds = ACCUMULATE && IS_KIND(to, OUTPUT_GRADIENT);
    put_one(to, at, adds ? accumulated_one(load_gradient_one(to->gradient + at), value) : value);
}
