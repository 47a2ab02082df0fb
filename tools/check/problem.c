/* SPDX-License-Identifier: MIT
 *
 * problem.c - see problem.h: what a problem holds.
 */
#include "layout.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool say_fault(problem_fault *f, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(f->text, sizeof f->text, format, list);
    va_end(list);
    return false;
}

void *take(size_t n, problem_fault *f)
{
    void *memory = malloc(n > 0 ? n : 1);
    if (memory == NULL) say_fault(f, "malloc of %zu bytes failed", n);
    return memory;
}

/* ---- Random numbers ---------------------------------------------------------------------------- */

/* PCG-XSH-RR 64/32: the same numbers on every machine, which rand() does not promise. */
uint32_t random_u32(random_state *random)
{
    const uint64_t old = random->state;
    const uint32_t mixed = (uint32_t)(((old >> 18) ^ old) >> 27);
    const unsigned turn = (unsigned)(old >> 59);
    random->state = old * 6364136223846793005u + 1442695040888963407u;
    return mixed >> turn | mixed << (-turn & 31u);
}

random_state random_start(uint64_t seed)
{
    random_state random = { seed * 0x9E3779B97F4A7C15u + 1 };
    /* the state's low bits take a few turns to reach what is drawn from it */
    for (int i = 0; i < 4; i++) random_u32(&random);
    return random;
}

double random_uniform(random_state *random, double low, double high)
{
    return low + (high - low) * (random_u32(random) * 0x1p-32);
}

/* ---- Problems ------------------------------------------------------------------------------ */

static bool target_fits(uint32_t target_type, int64_t value)
{
    int64_t stored = 0;

    put_target(&stored, target_type, 0, value);
    return get_target(&stored, target_type, 0) == value;
}

/* The next value of a list that is no class, nor ignored, and fits the targets' type: false where none does. */
static bool next_bad_target(const clxent_desc *desc, size_t *next, int64_t *value)
{
    /* 2^32 + 1 is class 1 to code that compares 32 bits. */
    const int64_t bad[] = { (int64_t)desc->classes,
                            -1,
                            ((int64_t)1 << 32) + 1,
                            INT32_MIN,
                            INT64_MIN,
                            INT32_MAX,
                            UINT8_MAX,
                            UINT16_MAX,
                            UINT32_MAX };
    const size_t count = sizeof bad / sizeof *bad;

    for (size_t tried = 0; tried < count; tried++) {
        *value = bad[(*next)++ % count];
        if ((*value < 0 || *value >= (int64_t)desc->classes) && target_fits(desc->target_type, *value) &&
            !(desc->use_ignore_index && *value == desc->ignore_index))
            return true;
    }
    return false;
}

static void fill_index_targets(const clxent_desc *desc, void *data, uint32_t fill, random_state *random)
{
    const int64_t last = (int64_t)desc->classes - 1;
    const bool can_ignore = desc->use_ignore_index && target_fits(desc->target_type, desc->ignore_index);
    const bool all_ignored = (fill & FILL_ALL_IGNORED) != 0 && can_ignore;
    const bool has_bad = (fill & FILL_BAD_TARGETS) != 0;
    const size_t lone_bad =
        all_ignored && has_bad && rows_of(desc) > 0 ? random_u32(random) % rows_of(desc) : 0;
    size_t bads = 0;

    for (size_t row = 0; row < rows_of(desc); row++) {
        int64_t target;
        switch (row % 6) {
        case 0: target = last; break; /* the vector tail's last element */
        case 1: target = 0; break;
        case 2: target = last >= 3 ? last - 3 : 0; break; /* elsewhere in the tail */
        default: target = (int64_t)(random_u32(random) % desc->classes);
        }
        if (!target_fits(desc->target_type, target)) target = random_u32(random) % 256;
        const bool ignored = all_ignored || ((fill & FILL_IGNORED) != 0 && can_ignore && row % 5 == 2);
        const bool bad = has_bad && (all_ignored ? row == lone_bad : !ignored && row % 7 == 3);
        int64_t bad_value;
        if (bad && next_bad_target(desc, &bads, &bad_value)) target = bad_value;
        else if (ignored) target = desc->ignore_index;
        put_target(data, desc->target_type, row, target);
    }
}

static void fill_probability_targets(const clxent_desc *desc, void *data, uint32_t dtype,
                                     random_state *random)
{
    for (size_t row = 0; row < rows_of(desc); row++) {
        const size_t hot = random_u32(random) % desc->classes;
        for (size_t j = 0; j < desc->classes; j++) {
            double q;
            switch (row % 4) {
            case 0: q = random_uniform(random, 0, 2.0 / (double)desc->classes); break;
            case 1: q = j == hot; break;
            case 2: q = j % 3 == 0 ? 0 : random_uniform(random, 0, 1); break; /* sum far from 1 */
            default: q = random_uniform(random, -0.5, 1); /* signed, as logits of a teacher */
            }
            put_element(data, dtype, element_index(desc, desc->target_row_stride, row, j), q);
        }
    }
}

enum row_kind {
    ROW_PLAIN,
    /* finite */
    ROW_NEGATIVE, /* a maximum that starts at 0 */
    ROW_HIGH,     /* exp without the maximum subtracted overflows above 88.7 */
    ROW_EQUAL,    /* three classes share the top: sum not 1 and log of it not 0, which would hide its error */
    ROW_DOMINANT, /* a confident row: loss near 0, log(1 + tiny) */
    ROW_DENORMAL, /* flushed inputs, and all exponentials 1 */
    ROW_OFFSET,   /* a large shared offset: a rounded lse loses the loss */
    ROW_RISING,   /* each block rescales the running sum */
    ROW_FALLING,  /* none does, and the tail underflows */
    ROW_STEADY,   /* one class dominates many equal ones: a running sum that rounds the same way each time */
    /* -inf, not at the target */
    ROW_HOLES,
    ROW_LEADING, /* -inf - -inf in a running maximum before the first finite logit */
    ROW_LONE,    /* one finite logit: p = 1 */
    /* rows with results that are not finite */
    ROW_ALL_MASKED,
    ROW_TARGET_MASKED,
    ROW_NAN,
    ROW_NAN_LAST, /* in the tail */
    ROW_INF,
    ROW_NAN_AND_INF
};

static double logit_of(const clxent_desc *desc, enum row_kind kind, size_t j, size_t special, bool is_target,
                       random_state *random)
{
    const bool f16 = desc->dtype == CLXENT_F16;
    const size_t last = desc->classes - 1;
    const double plain = random_uniform(random, -8, 8);
    const double tiny = f16 ? 0x1p-20 : desc->dtype == CLXENT_F64 ? 0x1p-1060 : 0x1p-135;

    switch (kind) {
    case ROW_NEGATIVE: return plain - 112;
    case ROW_HIGH: return plain + 112;
    case ROW_EQUAL: return j == special || j == last || j == last / 2 ? 9.25 : plain;
    case ROW_DOMINANT: return j == special ? 12.5 : plain - 20;
    case ROW_DENORMAL: return floor(plain) * tiny;
    case ROW_OFFSET: return floor(4 * plain) + (f16 ? 3e4 : desc->dtype == CLXENT_BF16 ? 4096 : 1e6);
    case ROW_RISING: return -100 + 200 * ((double)j / (double)desc->classes);
    case ROW_FALLING: return 100 - 200 * ((double)j / (double)desc->classes);
    case ROW_STEADY: return j == special ? 0 : -8.3;
    case ROW_HOLES: return !is_target && j != last && (j + special) % 3 == 0 ? -INFINITY : plain;
    case ROW_LEADING:
        return !is_target && j != last && j < desc->classes - desc->classes / 8 ? -INFINITY : plain;
    case ROW_LONE: return !is_target && j != last ? -INFINITY : plain;
    case ROW_ALL_MASKED: return -INFINITY;
    case ROW_TARGET_MASKED: return is_target ? -INFINITY : plain;
    case ROW_NAN: return j == special ? (double)NAN : plain;
    case ROW_NAN_LAST: return j == last ? (double)NAN : plain;
    case ROW_INF: return j == special ? INFINITY : plain;
    case ROW_NAN_AND_INF: return j == last ? (double)NAN : j == last / 2 ? INFINITY : plain;
    case ROW_PLAIN: break;
    }
    return plain;
}

/* The class that row is compared with; classes where there is none. */
static size_t target_class(const problem *p, size_t row)
{
    const clxent_desc *desc = &p->desc;
    if (p->args.targets.data == NULL || !has_index_targets(desc)) return desc->classes;
    if (row % desc->seq + desc->shift >= desc->seq) return desc->classes;
    const int64_t target = get_target(p->args.targets.data, desc->target_type, row + desc->shift);
    return target >= 0 && target < (int64_t)desc->classes ? (size_t)target : desc->classes;
}

static void fill_logits(const problem *p, void *data, uint32_t fill, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    enum row_kind kinds[ROW_NAN_AND_INF + 1];
    size_t count = 0;

    kinds[count++] = ROW_PLAIN;
    for (int kind = ROW_NEGATIVE; kind <= ROW_NAN_AND_INF; kind++) {
        const uint32_t needs = kind <= ROW_FALLING  ? FILL_DESIGNED
                               : kind == ROW_STEADY ? FILL_STEADY
                               : kind <= ROW_LONE   ? FILL_MASKED
                                                    : FILL_SPECIAL;
        if ((fill & needs) != 0) kinds[count++] = (enum row_kind)kind;
    }
    for (size_t row = 0; row < rows_of(desc); row++) {
        const enum row_kind kind = kinds[row % count];
        const size_t special = random_u32(random) % desc->classes, target = target_class(p, row);
        double top = -INFINITY;
        for (size_t j = 0; j < desc->classes; j++) {
            const size_t at = element_index(desc, desc->row_stride, row, j);
            const double x = logit_of(desc, kind, j, special, j == target, random);
            put_element(data, desc->dtype, at, x);
            top = fmax(top, get_element(data, desc->dtype, at));
        }
        if ((fill & FILL_HIT) != 0 && row % 2 == 0 && target < desc->classes && kind <= ROW_LONE) {
            put_element(data, desc->dtype, element_index(desc, desc->row_stride, row, target),
                        top + (fabs(top) > 1e3 ? fabs(top) / 64 : 3));
        }
    }
}

static double exponential_of(uint32_t fill, size_t row, size_t j, random_state *random)
{
    const double e = exp(random_uniform(random, -8, 8));
    return (fill & FILL_MASKED) != 0 && row % 3 == 1 && j % 2 == 1 ? 0 : e;
}

/* Rows of a softmax, with exact zeros under FILL_MASKED. */
static void fill_probabilities(const clxent_desc *desc, void *data, uint32_t fill, random_state *random)
{
    for (size_t row = 0; row < rows_of(desc); row++) {
        random_state again = *random; /* the same exponentials twice, so that none are kept */
        double sum = 0;
        for (size_t j = 0; j < desc->classes; j++) sum += exponential_of(fill, row, j, random);
        for (size_t j = 0; j < desc->classes; j++) {
            put_element(data, desc->dtype, element_index(desc, desc->probabilities_row_stride, row, j),
                        exponential_of(fill, row, j, &again) / sum);
        }
    }
}

/* ---- Hidden states --------------------------------------------------------------------------- */

/* Whether the row's loss counts; a target out of range does. */
static bool row_counts(const problem *p, size_t row)
{
    const clxent_desc *desc = &p->desc;

    if (desc->seq - row % desc->seq <= desc->shift) return false;
    if (p->args.row_weights.data != NULL && get_element(p->args.row_weights.data, real_dtype(desc), row) == 0)
        return false;
    if (!has_index_targets(desc) || p->args.targets.data == NULL) return true;
    const int64_t target = get_target(p->args.targets.data, desc->target_type, row + desc->shift);
    if (desc->use_ignore_index != 0 && target == desc->ignore_index) return false;
    return desc->bad_target != CLXENT_BAD_TARGET_IGNORE || (target >= 0 && (uint64_t)target < desc->classes);
}

/* Weights of -1 to 1. Under FILL_DESIGNED all classes have 1 in the first column, by which hidden states reach all logits of a
 * row alike, and the last class has the weights of the first: whichever argmax takes, it is a tie. */
static void fill_weight(const problem *p, void *data, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    const layout l = layout_of(desc, TENSOR_WEIGHT);
    const bool designed = (p->fill & FILL_DESIGNED) != 0;

    for (size_t j = 0; j < l.rows; j++)
        for (size_t f = 0; f < l.columns; f++) {
            double weight = random_uniform(random, -1, 1);
            if (designed && j > 1 && j == l.rows - 1)
                weight = get_element(data, l.dtype, index_of(desc, &l, 0, f));
            if (designed && l.columns > 1 && f == 0) weight = 1;
            put_element(data, l.dtype, index_of(desc, &l, j, f), weight);
        }
}

/* Under FILL_MASKED some classes that are no row's target are -inf. Under FILL_STEADY all are equal but one, for rows whose
 * hidden state is 0; under FILL_SPECIAL one is -inf that may be a target. */
static void fill_bias(const problem *p, void *data, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    const uint32_t dtype = layout_of(desc, TENSOR_BIAS).dtype;
    const size_t special = random_u32(random) % desc->classes, step = 2 + random_u32(random) % 3;

    for (size_t j = 0; j < desc->classes; j++) {
        const double plain = random_uniform(random, -1, 1);
        const bool masked = (p->fill & FILL_MASKED) != 0 && j % step == 1 && j != desc->classes - 1;
        const bool one = (p->fill & FILL_SPECIAL) != 0 && p->seed % 4 == 0 && j == special;
        put_element(data, dtype, j,
                    masked || one                  ? -INFINITY
                    : (p->fill & FILL_STEADY) == 0 ? plain
                    : j == special                 ? 0
                                                   : -8.3);
    }
    for (size_t row = 0; (p->fill & FILL_SPECIAL) == 0 && row < rows_of(desc); row++) {
        const size_t target = target_class(p, row);
        if (target < desc->classes && get_element(data, dtype, target) == -INFINITY)
            put_element(data, dtype, target, 0.5);
    }
}

enum hidden_kind {
    HIDDEN_PLAIN, /* logits of -8 to 8, mostly */
    HIDDEN_ZERO,  /* the bias alone; without one all logits are equal, and argmax is class 0 */
    /* finite */
    HIDDEN_LARGE,    /* confident rows; exponentials underflow */
    HIDDEN_SMALL,    /* all classes nearly alike */
    HIDDEN_HIGH,     /* exp without the maximum subtracted overflows above 88.7 */
    HIDDEN_LOW,      /* a maximum that starts at 0 */
    HIDDEN_DENORMAL, /* flushed inputs */
    HIDDEN_LONE,     /* one feature, the last: the tail of a block of features */
    /* not finite */
    HIDDEN_NAN,
    HIDDEN_NAN_LAST, /* in the tail */
    HIDDEN_INF,
    HIDDEN_MINUS_INF,
    HIDDEN_KINDS
};

static double hidden_of(const clxent_desc *desc, enum hidden_kind kind, size_t f, size_t special,
                        double plain)
{
    const double tiny = desc->dtype == CLXENT_F16   ? 0x1p-20
                        : desc->dtype == CLXENT_F64 ? 0x1p-1060
                                                    : 0x1p-135;
    const bool last = f == desc->features - 1;

    switch (kind) {
    case HIDDEN_ZERO: return 0;
    case HIDDEN_LARGE: return 8 * plain;
    case HIDDEN_SMALL: return plain / 1024;
    case HIDDEN_HIGH: return f == 0 ? 112 : plain;
    case HIDDEN_LOW: return f == 0 ? -112 : plain;
    case HIDDEN_DENORMAL: return floor(4 * plain) * tiny;
    case HIDDEN_LONE: return last ? 6 : 0;
    case HIDDEN_NAN: return f == special ? (double)NAN : plain;
    case HIDDEN_NAN_LAST: return last ? (double)NAN : plain;
    case HIDDEN_INF: return f == special ? INFINITY : plain;
    case HIDDEN_MINUS_INF: return last ? -INFINITY : plain;
    default: return plain;
    }
}

/* A row's state along the weights of its target, whose logit is 12 then, but for the bias. */
static void point_at_target(const problem *p, void *data, size_t row, size_t target)
{
    const layout hidden = layout_of(&p->desc, TENSOR_HIDDEN), weight = layout_of(&p->desc, TENSOR_WEIGHT);
    double square = 0.125; /* no weights are 0 */

    for (int pass = 0; pass < 2; pass++)
        for (size_t f = 0; f < weight.columns; f++) {
            const double w =
                get_element(p->args.weight.data, weight.dtype, index_of(&p->desc, &weight, target, f));
            if (pass == 0) square += w * w;
            else put_element(data, hidden.dtype, index_of(&p->desc, &hidden, row, f), 12 * w / square);
        }
}

/* Under FILL_SPECIAL every second seed has NaN and infinities only where a row does not count, which must not be seen in any
 * gradient; else weight_gradient is NaN throughout. */
static void fill_hidden(const problem *p, void *data, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    const layout l = layout_of(desc, TENSOR_HIDDEN);
    const double range = 14 / sqrt((double)desc->features); /* logits have a variance of 8^2 / 3 */
    const bool everywhere = p->seed % 2 == 0;
    enum hidden_kind kinds[HIDDEN_KINDS];
    size_t count = 0;

    for (int kind = HIDDEN_PLAIN; kind < HIDDEN_KINDS; kind++) {
        const bool offset = kind == HIDDEN_HIGH || kind == HIDDEN_LOW;
        const uint32_t needs = kind == HIDDEN_ZERO ? FILL_DESIGNED | FILL_STEADY
                               : kind < HIDDEN_NAN ? FILL_DESIGNED
                                                   : FILL_SPECIAL;
        if (kind == HIDDEN_PLAIN || ((p->fill & needs) != 0 && !(offset && desc->features == 1)))
            kinds[count++] = (enum hidden_kind)kind;
    }
    for (size_t row = 0; row < l.rows; row++) {
        enum hidden_kind kind = kinds[row % count];
        const size_t special = random_u32(random) % desc->features, target = target_class(p, row);
        if ((p->fill & FILL_SPECIAL) != 0 && !everywhere) {
            if (!row_counts(p, row))
                kind = (enum hidden_kind)(HIDDEN_NAN + row % (HIDDEN_KINDS - HIDDEN_NAN));
            else if (kind >= HIDDEN_NAN) kind = HIDDEN_PLAIN;
        }
        for (size_t f = 0; f < desc->features; f++) {
            const double plain = random_uniform(random, -range, range);
            put_element(data, l.dtype, index_of(desc, &l, row, f), hidden_of(desc, kind, f, special, plain));
        }
        if ((p->fill & FILL_HIT) != 0 && row % 2 == 0 && target < desc->classes && kind <= HIDDEN_SMALL)
            point_at_target(p, data, row, target);
    }
}

/* ---- Other inputs ---------------------------------------------------------------------------- */

/* A negative weight is lost where its absolute value is taken, or where only what is above 0 counts. */
static void fill_weights(void *data, uint32_t dtype, size_t n, random_state *random)
{
    for (size_t i = 0; i < n; i++) {
        double weight = random_uniform(random, 0.25, 2);
        if (i % 6 == 4) weight = 0;
        if (i % 9 == 7) weight = -0.25;
        put_element(data, dtype, i, weight);
    }
}

/* An array for the tensor, absent where desc takes none; false where there is no memory. */
static bool take_array(problem *p, int tensor, problem_fault *f)
{
    const layout l = layout_of(&p->desc, tensor);
    clxent_output *array = array_of(&p->args, tensor);

    if (!takes(&p->desc, p->desc.outputs, tensor)) return true;
    array->size = layout_bytes(&p->desc, &l);
    array->data = take(array->size, f);
    /* All bits set is NaN in every storage type, and -1 as a target: what padding holds. */
    if (array->data != NULL) memset(array->data, 0xFF, array->size);
    return array->data != NULL;
}

/* Every element of a tensor of real numbers; those of row or element number i % 5 == 3 are zero where zeros. */
static void fill_uniform(const clxent_desc *desc, int tensor, void *data, double range, bool zeros,
                         random_state *random)
{
    const layout l = layout_of(desc, tensor);
    for (size_t i = 0; i < l.rows * l.columns; i++) {
        const size_t at = index_of(desc, &l, i / l.columns, i % l.columns);
        put_element(data, l.dtype, at, zeros && i % 5 == 3 ? 0 : random_uniform(random, -range, range));
    }
}

static void fill_tensor(const problem *p, int tensor, void *data, random_state *random)
{
    const clxent_desc *desc = &p->desc;
    const bool backward = desc->op == CLXENT_OP_SOFTMAX_BACKWARD;
    const layout l = layout_of(desc, tensor);

    switch (tensor) {
    case TENSOR_TARGETS:
        if (has_index_targets(desc)) fill_index_targets(desc, data, p->fill, random);
        else fill_probability_targets(desc, data, l.dtype, random);
        break;
    case TENSOR_LOGITS: fill_logits(p, data, p->fill, random); break;
    case TENSOR_PROBABILITIES: fill_probabilities(desc, data, p->fill, random); break;
    case TENSOR_CLASS_WEIGHTS:
    case TENSOR_ROW_WEIGHTS: fill_weights(data, l.dtype, l.rows, random); break;
    case TENSOR_GRAD_ENTROPY:
    case TENSOR_GRAD_LSE:
    case TENSOR_GRAD_OUTPUT: fill_uniform(desc, tensor, data, 2, !backward, random); break;
    case TENSOR_DENOMINATOR: {
        const double denominator = random_u32(random) % 2 == 0 ? 7.25 : -3.5;
        put_element(data, l.dtype, 0, (p->fill & FILL_ZERO_DENOMINATOR) != 0 ? 0 : denominator);
        break;
    }
    case TENSOR_HIDDEN: fill_hidden(p, data, random); break;
    case TENSOR_WEIGHT: fill_weight(p, data, random); break;
    case TENSOR_BIAS: fill_bias(p, data, random); break;
    default: fill_uniform(desc, tensor, data, 1, false, random); break;
    }
}

bool fill_problem(problem *p, const clxent_desc *desc, uint32_t fill, uint64_t seed, problem_fault *f)
{
    const bool backward = desc->op == CLXENT_OP_SOFTMAX_BACKWARD;
    /* targets first: what a row's logits hold depends on where its target is; a hidden state depends on weights and on whether
     * its row counts, too */
    const struct {
        int tensor;
        bool given;
    } order[] = { { TENSOR_TARGETS, true },
                  { TENSOR_LOGITS, true },
                  { TENSOR_PROBABILITIES, true },
                  { TENSOR_CLASS_WEIGHTS, true },
                  { TENSOR_ROW_WEIGHTS, true },
                  { TENSOR_GRAD_OUTPUT, backward || (fill & FILL_GRAD_OUTPUT) != 0 },
                  { TENSOR_DENOMINATOR, (fill & (FILL_DENOMINATOR | FILL_ZERO_DENOMINATOR)) != 0 },
                  { TENSOR_GRADIENT, accumulates(desc, TENSOR_GRADIENT) },
                  { TENSOR_GRAD_ENTROPY, true },
                  { TENSOR_GRAD_LSE, true },
                  { TENSOR_WEIGHT, true },
                  { TENSOR_BIAS, true },
                  { TENSOR_HIDDEN, true },
                  { TENSOR_HIDDEN_GRADIENT, accumulates(desc, TENSOR_HIDDEN_GRADIENT) },
                  { TENSOR_WEIGHT_GRADIENT, accumulates(desc, TENSOR_WEIGHT_GRADIENT) },
                  { TENSOR_BIAS_GRADIENT, accumulates(desc, TENSOR_BIAS_GRADIENT) } };
    const clxent_host_args absent = CLXENT_HOST_ARGS_INIT;
    random_state random = random_start(seed);

    *p = (problem){ *desc, absent, fill, seed };
    if (clxent_desc_check(desc, f->text, sizeof f->text) != CLXENT_OK) return false;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        if (!order[i].given) continue;
        if (!take_array(p, order[i].tensor, f)) return false;
        void *data = array_of(&p->args, order[i].tensor)->data;
        if (data != NULL) fill_tensor(p, order[i].tensor, data, &random);
    }
    return true;
}

void free_problem(problem *p)
{
    for (int t = 0; t < TENSORS; t++) free(array_of(&p->args, t)->data);
    memset(p, 0, sizeof *p);
}
