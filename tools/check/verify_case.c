/* SPDX-License-Identifier: MIT
 *
 * verify_case.c - see verify_case.h. One table of fields carries text form, features and shrinking: a field of
 * clxent_desc that is added there is served by all three.
 */
#include "verify_case.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Fields -------------------------------------------------------------------------------- */

/* Named by value, from 0; each list ends with NULL. */
#define VALUE(prefix, NAME, word) word,
#define NO_VALUE(word) word,
#define ENUMERATION(name, prefix, first, values) const char *const name##_names[] = { values NULL };
#include "../../host/options.def"

/* Named by bit. */
static const char *const fill_names[] = { "designed",    "masked",      "special",          "ignored",
                                          "bad-targets", "grad-output", "denominator",      "hit",
                                          "all-ignored", "steady",      "zero-denominator", NULL };
static const char *const check_names[] = { "in-place", "subsets",     "larger-plan", "out-of-order",
                                           "aligned",  "host-arrays", "parts",       NULL };

enum kind {
    KIND_ENUM, /* uint32_t, one of names */
    KIND_SET,  /* uint32_t, bits of names */
    KIND_FLAG, /* uint32_t, 0 or 1 */
    KIND_SIZE, /* size_t */
    KIND_I64,
    KIND_U64,
    KIND_REAL /* double */
};

/* In the order in which shrinking tries them: what makes a case cheap to run comes first. */
static const struct field {
    const char *name;
    enum kind kind;
    size_t offset;
    const char *const *names;
} fields[] = {
#define DESC(name, kind, names) { #name, kind, offsetof(verify_case, desc.name), names },
#define FIELD_SET(name)                                                                                   \
    DESC(name, KIND_SET, tensor_names + FIRST_OUTPUT){ "checks", KIND_SET, offsetof(verify_case, checks), \
                                                       check_names },                                     \
        { "chunk_bytes", KIND_SIZE, offsetof(verify_case, chunk_bytes), NULL },
#define FIELD_SIZE(name) DESC(name, KIND_SIZE, NULL)
#define FIELD_FLAG(name) DESC(name, KIND_FLAG, NULL)
#define FIELD_I64(name) DESC(name, KIND_I64, NULL)
#define FIELD_REAL(name) DESC(name, KIND_REAL, NULL)
#define FIELD(name, kind, initial) FIELD_##kind(name)
#define CHOICE(name, enumeration, initial, flag) DESC(name, KIND_ENUM, enumeration##_names)
#include "../../host/options.def"
    { "fill", KIND_SET, offsetof(verify_case, fill), fill_names },
    { "seed", KIND_U64, offsetof(verify_case, seed), NULL },
};
enum { FIELDS = sizeof fields / sizeof *fields };

/* Whether the field has 64 bits: those of a double are a whole number too. */
static bool is_wide(const struct field *field)
{
    const bool size = field->kind == KIND_SIZE && sizeof(size_t) == sizeof(uint64_t);
    return size || field->kind == KIND_I64 || field->kind == KIND_U64 || field->kind == KIND_REAL;
}

static uint64_t get_bits(const verify_case *c, const struct field *field)
{
    const char *at = (const char *)c + field->offset;
    uint32_t narrow;
    uint64_t wide;

    memcpy(&narrow, at, sizeof narrow);
    if (!is_wide(field)) return narrow;
    memcpy(&wide, at, sizeof wide);
    return wide;
}

static void set_bits(verify_case *c, const struct field *field, uint64_t bits)
{
    const uint32_t narrow = (uint32_t)bits;

    if (is_wide(field)) memcpy((char *)c + field->offset, &bits, sizeof bits);
    else memcpy((char *)c + field->offset, &narrow, sizeof narrow);
}

static bool is_default(const verify_case *c, const struct field *field)
{
    const verify_case plain = case_default();
    return get_bits(c, field) == get_bits(&plain, field);
}

static bool is_field(const struct field *field, const char *name) { return strcmp(field->name, name) == 0; }

/* The index of the name that the n characters of word are; the number of names where they are none. */
static size_t find_name(const char *const *names, const char *word, size_t n)
{
    size_t i = 0;
    while (names[i] != NULL && (strlen(names[i]) != n || strncmp(names[i], word, n) != 0)) i++;
    return i;
}

static bool is_name(const char *const *names, const char *word)
{
    return names[find_name(names, word, strlen(word))] != NULL;
}

verify_case case_default(void)
{
    const clxent_desc desc = CLXENT_DESC_INIT;
    verify_case c = { .desc = desc, .seed = 1 };
    c.desc.batch = c.desc.seq = c.desc.classes = 1;
    return c;
}

bool case_check(const verify_case *c, problem_fault *f)
{
    const clxent_desc *desc = &c->desc;
    const uint32_t matrices =
        desc->outputs & (CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOG_SOFTMAX | CLXENT_OUTPUT_GRADIENT);
    const bool gradient = (desc->outputs & CLXENT_OUTPUT_GRADIENT) != 0;
    const size_t stride = gradient ? desc->gradient_row_stride : desc->probabilities_row_stride;
    const size_t slab = desc->classes * desc->inner;

    if (clxent_desc_check(desc, f->text, sizeof f->text) != CLXENT_OK) return false;
    if ((c->checks & CASE_IN_PLACE) == 0) return true;
    if (desc->op != CLXENT_OP_CROSS_ENTROPY || matrices == 0)
        return say_fault(f, "checks has in-place: takes cross-entropy with gradient, softmax or log_softmax");
    if (!gradient && matrices == (CLXENT_OUTPUT_SOFTMAX | CLXENT_OUTPUT_LOG_SOFTMAX))
        return say_fault(f, "checks has in-place: takes one of softmax and log_softmax");
    if (gradient && desc->gradient_dtype != 0 && desc->gradient_dtype != desc->dtype)
        return say_fault(f, "checks has in-place: takes a gradient of the logits' dtype");
    if ((stride != 0 ? stride : slab) != (desc->row_stride != 0 ? desc->row_stride : slab))
        return say_fault(f, "checks has in-place: takes strides that are the logits'");
    if (desc->gradient_mode == CLXENT_GRADIENT_ACCUMULATE)
        return say_fault(f, "checks has in-place: takes gradient_mode write");
    if (!gradient && (c->checks & CASE_HOST_ARRAYS) != 0)
        return say_fault(f, "checks has in-place and host-arrays: takes gradient among the outputs");
    return true;
}

/* ---- Text ---------------------------------------------------------------------------------- */

static void add(char text[CASE_TEXT_SIZE], const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(char text[CASE_TEXT_SIZE], const char *format, ...)
{
    const size_t used = strlen(text);
    va_list list;
    va_start(list, format);
    vsnprintf(text + used, CASE_TEXT_SIZE - used, format, list);
    va_end(list);
}

static void add_value(char text[CASE_TEXT_SIZE], const verify_case *c, const struct field *field)
{
    const uint64_t bits = get_bits(c, field);
    const char *between = "";
    double real;
    char digits[32];

    switch (field->kind) {
    case KIND_ENUM: add(text, "%s", field->names[bits]); break;
    case KIND_SET:
        for (size_t bit = 0; field->names[bit] != NULL; bit++) {
            if ((bits >> bit & 1u) == 0) continue;
            add(text, "%s%s", between, field->names[bit]);
            between = "+";
        }
        break;
    case KIND_REAL:
        memcpy(&real, &bits, sizeof real);
        snprintf(digits, sizeof digits, "%g", real);
        if (strtod(digits, NULL) != real) snprintf(digits, sizeof digits, "%.17g", real);
        add(text, "%s", digits);
        break;
    case KIND_I64: add(text, "%" PRId64, (int64_t)bits); break;
    default: add(text, "%" PRIu64, bits); break;
    }
}

void case_write(const verify_case *c, char text[CASE_TEXT_SIZE])
{
    text[0] = '\0';
    for (size_t i = 0; i < FIELDS; i++) {
        if (is_default(c, &fields[i])) continue;
        add(text, "%s%s=", text[0] != '\0' ? ";" : "", fields[i].name);
        add_value(text, c, &fields[i]);
    }
}

void case_describe(const verify_case *c, char text[CASE_TEXT_SIZE])
{
    static const char *const said[] = { "op", "dtype", "batch", "seq", "classes", NULL };

    text[0] = '\0';
    add(text, "%s of %s [%zu, %zu, %zu]", op_names[c->desc.op], dtype_names[c->desc.dtype], c->desc.batch,
        c->desc.seq, c->desc.classes);
    for (size_t i = 0; i < FIELDS; i++) {
        if (is_default(c, &fields[i]) || is_name(said, fields[i].name)) continue;
        add(text, ", %s ", fields[i].name);
        add_value(text, c, &fields[i]);
    }
}

static bool say_names(problem_fault *f, const struct field *field, const char *word, size_t n)
{
    char list[CASE_TEXT_SIZE] = "";
    for (size_t i = 0; field->names[i] != NULL; i++) add(list, "%s%s", i > 0 ? ", " : "", field->names[i]);
    return say_fault(f, "%s is '%.*s': takes %s%s", field->name, (int)n, word,
                     field->kind == KIND_SET ? "any of, joined by '+': " : "", list);
}

static bool read_names(verify_case *c, const struct field *field, const char *value, problem_fault *f)
{
    uint32_t result = 0;

    for (const char *word = value; *value != '\0';) {
        const size_t n = field->kind == KIND_SET ? strcspn(word, "+") : strlen(word);
        const size_t found = find_name(field->names, word, n);
        if (field->names[found] == NULL) return say_names(f, field, word, n);
        result = field->kind == KIND_SET ? result | 1u << found : (uint32_t)found;
        if (word[n] == '\0') break;
        word += n + 1;
    }
    if (*value == '\0' && field->kind == KIND_ENUM) return say_names(f, field, value, 0);
    set_bits(c, field, result);
    return true;
}

static bool read_number(verify_case *c, const struct field *field, const char *value, problem_fault *f)
{
    const bool negative = value[0] == '-';
    char *end = NULL;
    uint64_t bits = 0;

    errno = 0;
    if (field->kind == KIND_REAL) {
        const double real = strtod(value, &end);
        if (end == value || *end != '\0' || !isfinite(real))
            return say_fault(f, "%s is '%s': takes a finite number", field->name, value);
        memcpy(&bits, &real, sizeof bits);
    } else {
        if (value[negative] >= '0' && value[negative] <= '9') {
            if (field->kind == KIND_I64) bits = (uint64_t)strtoimax(value, &end, 10);
            else if (!negative) bits = strtoumax(value, &end, 10);
        }
        if (end == NULL || *end != '\0' || errno != 0 || (field->kind == KIND_FLAG && bits > 1))
            return say_fault(f, "%s is '%s': takes a whole number%s", field->name, value,
                             field->kind == KIND_FLAG  ? ", 0 or 1"
                             : field->kind == KIND_I64 ? " of 64 bits"
                                                       : " of at least 0");
    }
    set_bits(c, field, bits);
    return true;
}

bool case_read(verify_case *c, const char *text, problem_fault *f)
{
    char copy[CASE_TEXT_SIZE];

    *c = case_default();
    if (strlen(text) >= sizeof copy) return say_fault(f, "takes less than %zu characters", sizeof copy);
    strcpy(copy, text);
    for (char *item = copy; item != NULL;) {
        char *next = strchr(item, ';');
        if (next != NULL) *next++ = '\0';
        char *value = strchr(item, '=');
        if (value == NULL) return say_fault(f, "'%s': takes a number, or field=value;field=value...", item);
        *value++ = '\0';
        size_t i = 0;
        while (i < FIELDS && !is_field(&fields[i], item)) i++;
        if (i == FIELDS)
            return say_fault(f,
                             "'%s' is no field of a case: takes fields of clxent_desc, seed, fill, checks or "
                             "chunk_bytes",
                             item);
        if (fields[i].names != NULL ? !read_names(c, &fields[i], value, f)
                                    : !read_number(c, &fields[i], value, f))
            return false;
        item = next;
    }
    return case_check(c, f);
}

/* ---- Drawing ------------------------------------------------------------------------------- */

static bool chance(random_state *random, unsigned percent) { return random_u32(random) % 100 < percent; }

static size_t between(random_state *random, size_t low, size_t high)
{
    return high > low ? low + random_u32(random) % (high - low + 1) : low;
}

/* As many small numbers as large ones, by magnitude. */
static size_t magnitude(random_state *random, double largest)
{
    const size_t drawn = (size_t)exp(random_uniform(random, 0, log(largest + 1)));
    return drawn > 0 ? drawn : 1;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define PICK(random, array) ((array)[random_u32(random) % COUNT(array)])

static size_t draw_classes(random_state *random)
{
    /* around vectors, unrolled loops and blocks; primes, which no width divides; rows of several blocks */
    static const size_t edges[] = { 15,  16,  17,  31,  32,   33,   63,   64,   65,   127,  128,  129,
                                    255, 256, 257, 511, 1023, 1024, 1025, 1087, 2047, 2048, 2049, 4097 };
    static const size_t primes[] = { 2, 3, 5, 7, 11, 13, 37, 97, 251, 509, 1021, 2039, 4093 };
    static const size_t long_rows[] = { 16385, 32768, 50257, 65535, 65536, 65537, 69997 };

    switch (random_u32(random) % 12) {
    case 0: return 1;
    case 1:
    case 2: return between(random, 2, 8);
    case 3:
    case 4:
    case 5: return PICK(random, edges);
    case 6:
    case 7: return PICK(random, primes);
    case 8: return chance(random, 25) ? PICK(random, long_rows) : between(random, 9, 100);
    default: return magnitude(random, 4096);
    }
}

/* many: enough rows of few classes that the second reduction and chunks of rows have several parts */
static void draw_shape(clxent_desc *desc, bool many, size_t max_elements, random_state *random)
{
    static const size_t inners[] = { 2, 3, 4, 7, 8, 15, 16, 17, 33, 64 };
    const size_t limit = many ? SIZE_MAX : magnitude(random, 16384);

    desc->classes = many ? between(random, 1, 5) : draw_classes(random);
    desc->inner = chance(random, 15) ? PICK(random, inners) : 1;
    if (desc->classes > max_elements) desc->classes = desc->classes % max_elements + 1;
    if (desc->classes * desc->inner > max_elements) desc->inner = 1;
    const size_t slab_elements = desc->classes * desc->inner, most_slabs = max_elements / slab_elements;

    /* slabs are rows where inner is 1; a long row is not multiplied much */
    size_t slabs = limit / slab_elements;
    if (slabs > most_slabs) slabs = most_slabs;
    if (slabs == 0) slabs = most_slabs < 3 ? 1 : between(random, 1, 3);
    const size_t most = many ? between(random, 4000, 14000) / desc->inner : 300;
    if (slabs > most) slabs = most;
    const size_t rows = slabs * desc->inner;
    desc->seq = between(random, 1, rows < 16 ? rows : 16);
    while (rows % desc->seq != 0) desc->seq--;
    desc->batch = chance(random, 1) ? 0 : rows / desc->seq;
}

static size_t draw_stride(const clxent_desc *desc, random_state *random)
{
    static const size_t paddings[] = { 0, 1, 3, 13, 16, 64 };
    return chance(random, 20) ? desc->classes * desc->inner + PICK(random, paddings) : 0;
}

static void draw_targets(verify_case *c, random_state *program, random_state *random)
{
    clxent_desc *desc = &c->desc;
    static const uint32_t indices[] = { CLXENT_TARGET_I32, CLXENT_TARGET_I32, CLXENT_TARGET_I64,
                                        CLXENT_TARGET_I64, CLXENT_TARGET_U8,  CLXENT_TARGET_U16,
                                        CLXENT_TARGET_U32 };
    static const uint32_t probabilities[] = { CLXENT_TARGET_PROBABILITIES_F32,
                                              CLXENT_TARGET_PROBABILITIES_LOGITS };
    const size_t types = COUNT(indices) + (desc->op == CLXENT_OP_ONE_HOT ? 0 : COUNT(probabilities));
    const size_t type = random_u32(program) % types;
    const int64_t ignored[] = { -100,      -1,         0,          (int64_t)desc->classes / 2,
                                UINT8_MAX, UINT16_MAX, UINT32_MAX, (int64_t)1 << 32 };

    desc->target_type = type < COUNT(indices) ? indices[type] : probabilities[type - COUNT(indices)];
    desc->use_ignore_index = !chance(random, 15);
    desc->ignore_index = chance(random, 40) ? PICK(random, ignored) : -100;
    if (!has_index_targets(desc) && desc->ignore_index >= 0) desc->ignore_index = -100;
    desc->bad_target = chance(program, 40) ? random_u32(program) % 3 : CLXENT_BAD_TARGET_REPORT;
    desc->all_ignored = random_u32(random) % 2;
    if (chance(random, 40)) c->fill |= FILL_IGNORED;
    if (chance(random, 20)) c->fill |= FILL_BAD_TARGETS;
    if (chance(random, 4)) c->fill |= FILL_ALL_IGNORED;
    if (chance(random, 30)) c->fill |= FILL_HIT;
}

static void draw_options(clxent_desc *desc, random_state *program, random_state *random)
{
#define DRAWS(...) { __VA_ARGS__ }
#define NUMBER(name, initial, takes, acts, constant, parameter, draws, flag)                    \
    {                                                                                           \
        static const double values[] = draws;                                                   \
        static const char *const compiled = constant;                                           \
        if (chance(compiled != NULL ? program : random, 25)) desc->name = PICK(random, values); \
    }
#include "../../host/options.def"
    desc->has_class_weights = chance(program, 25);
    desc->has_row_weights = chance(random, 25);
    if (chance(random, 15)) desc->shift = between(random, 0, desc->seq);
}

/* A hidden state of up to 300 features, within a time that the reference takes for max_elements logits. */
static void draw_features(clxent_desc *desc, size_t max_elements, random_state *random)
{
    static const size_t edges[] = { 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65 };
    static const size_t paddings[] = { 0, 1, 3, 13, 16 };
    size_t *const strides[] = { &desc->hidden_row_stride, &desc->weight_row_stride,
                                &desc->hidden_gradient_row_stride, &desc->weight_gradient_row_stride };
    const size_t rows = desc->batch * desc->seq, logits = (rows > 0 ? rows : 1) * desc->classes;
    const size_t drawn = random_u32(random) % 10;
    const size_t most = max_elements / logits > SIZE_MAX / 4 ? SIZE_MAX : max_elements / logits * 4;

    desc->features = drawn < 4   ? PICK(random, edges)
                     : drawn < 8 ? between(random, 1, 70)
                                 : between(random, 71, 300);
    if (desc->features > most) desc->features = desc->features % most + 1;
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++)
        if (chance(random, 25)) *strides[i] = desc->features + PICK(random, paddings);
    desc->has_bias = chance(random, 60);
}

static uint32_t draw_outputs(const clxent_desc *desc, random_state *random)
{
    const uint32_t possible = possible_outputs(desc);
    const uint32_t products =
        CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT;
    uint32_t outputs = 0;

    switch (random_u32(random) % 6) {
    case 0: outputs = possible; break;
    case 1: /* what training asks for */
        outputs = possible & (CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT | products);
        break;
    case 2: outputs = possible & (CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_STATISTICS | products); break;
    case 3: outputs = possible & 1u << random_u32(random) % OUTPUTS; break;
    default: outputs = possible & random_u32(random);
    }
    return outputs != 0 ? outputs : possible;
}

static void draw_row_grads(clxent_desc *desc, random_state *program)
{
    const uint32_t gradients = CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_HIDDEN_GRADIENT |
                               CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT;

    if ((desc->outputs & gradients) == 0) return;
    desc->has_grad_entropy = chance(program, 25);
    desc->has_grad_lse = chance(program, 25);
}

static void draw_linear(clxent_desc *desc, uint32_t gradient_dtype, random_state *program,
                        random_state *random)
{
    /* too small for any row, doubled until a few fit; and what chunks of some rows have room in */
    static const size_t limits[] = { 1, 3000, 20000, 100000, 1000000 };
    const struct {
        uint32_t *dtype, *mode;
    } gradients[] = { { &desc->hidden_gradient_dtype, &desc->hidden_gradient_mode },
                      { &desc->weight_gradient_dtype, &desc->weight_gradient_mode },
                      { &desc->bias_gradient_dtype, &desc->bias_gradient_mode } };

    for (size_t i = 0; i < sizeof gradients / sizeof *gradients; i++) {
        if (chance(random, 30)) *gradients[i].dtype = gradient_dtype;
        else if (chance(random, 30)) *gradients[i].dtype = desc->dtype; /* the default by its name */
        if (chance(program, 40)) *gradients[i].mode = CLXENT_GRADIENT_ACCUMULATE;
    }
    if (chance(random, 50)) desc->workspace_limit = PICK(random, limits);
    draw_row_grads(desc, program);
}

static void draw_gradient(clxent_desc *desc, random_state *program, random_state *random)
{
    static const uint32_t narrow[] = { CLXENT_F32, CLXENT_F16, CLXENT_BF16 };

    if (chance(program, 30)) {
        desc->gradient_dtype = desc->dtype == CLXENT_F64 ? CLXENT_F32 : PICK(program, narrow);
    } else if (chance(random, 20)) {
        desc->gradient_dtype = desc->dtype; /* the default by its name */
    }
    if (chance(program, 20)) desc->gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
    if (desc->op == CLXENT_OP_CROSS_ENTROPY) draw_row_grads(desc, program);
}

/* What a driver compiles a program for is drawn once for 16 cases, and 64 times for each seed, as compiling takes longer than
 * cases do. Option values, shapes, strides and data are drawn for each case. */
enum { CASES_OF_A_DRAW = 16, DRAWS = 64, LINEAR_EVERY = 8 };

/* The draws of linear cross-entropy are few: they take turns, so that each seed has all dtypes. */
static const struct {
    uint32_t own, gradient; /* one other dtype for the three gradients, for few programs */
} linear_dtypes[DRAWS / LINEAR_EVERY] = {
    { CLXENT_F32, CLXENT_F16 },  { CLXENT_F16, CLXENT_F32 },  { CLXENT_BF16, CLXENT_F32 },
    { CLXENT_F64, CLXENT_F32 },  { CLXENT_F32, CLXENT_BF16 }, { CLXENT_F16, CLXENT_BF16 },
    { CLXENT_BF16, CLXENT_F16 }, { CLXENT_F64, CLXENT_F32 },
};

void case_draw(verify_case *c, uint64_t seed, uint64_t number, size_t max_elements)
{
    static const uint32_t dtypes[] = { CLXENT_F32, CLXENT_F32, CLXENT_F16, CLXENT_BF16, CLXENT_F64 };
    static const size_t chunks[] = { 1, 100, 1000, 4096, 20000, 0 };
    const uint64_t draw = number / CASES_OF_A_DRAW % DRAWS;
    const bool linear = draw % LINEAR_EVERY == LINEAR_EVERY / 2;
    random_state program = random_start(seed * 0x9E3779B97F4A7C15u + draw);
    random_state random = random_start(seed * 0xD1342543DE82EF95u + number);
    clxent_desc *desc = &c->desc;
    problem_fault unused;

    *c = case_default();
    c->seed = seed * 1000003 + number;
    c->checks = random_u32(&random) & ((1u << (COUNT(check_names) - 1)) - 1);
    c->checks &= random_u32(&random); /* each in a quarter of the cases */
    if ((c->checks & CASE_HOST_ARRAYS) != 0) c->chunk_bytes = PICK(&random, chunks);
    desc->op = linear                 ? CLXENT_OP_LINEAR_CROSS_ENTROPY
               : chance(&program, 80) ? CLXENT_OP_CROSS_ENTROPY
                                      : (uint32_t)between(&program, 1, 4);
    desc->dtype = linear ? linear_dtypes[draw / LINEAR_EVERY].own : PICK(&program, dtypes);
    desc->reduction = random_u32(&program) % (COUNT(reduction_names) - 1); /* NULL ends them */
    if (max_elements == 0) max_elements = 1;
    draw_shape(desc, chance(&random, (c->checks & CASE_HOST_ARRAYS) != 0 ? 8 : 1), max_elements, &random);
    if (linear) desc->inner = 1;
    draw_targets(c, &program, &random);
    if (linear || desc->op == CLXENT_OP_CROSS_ENTROPY) draw_options(desc, &program, &random);
    if (linear) draw_features(desc, max_elements, &random);
    desc->outputs = draw_outputs(desc, &program);
    if (linear) draw_linear(desc, linear_dtypes[draw / LINEAR_EVERY].gradient, &program, &random);
    else if (desc->op != CLXENT_OP_ONE_HOT && desc->op != CLXENT_OP_PROBABILITY_LOSS)
        draw_gradient(desc, &program, &random);
    desc->row_stride = linear ? 0 : draw_stride(desc, &random);
    desc->gradient_row_stride = linear ? 0 : draw_stride(desc, &random);
    desc->probabilities_row_stride = linear ? 0 : draw_stride(desc, &random);
    desc->target_row_stride = draw_stride(desc, &random);
    if (chance(&random, 60)) c->fill |= FILL_DESIGNED;
    if (chance(&random, 40)) c->fill |= FILL_MASKED;
    if (chance(&random, 15)) c->fill |= FILL_SPECIAL;
    if (chance(&random, 20)) c->fill |= FILL_STEADY;
    if (chance(&random, 40)) c->fill |= FILL_GRAD_OUTPUT;
    if (chance(&random, 25)) {
        c->fill |= chance(&random, 20) ? FILL_ZERO_DENOMINATOR : FILL_DENOMINATOR;
    }

    /* a gradient in place lies as the logits do; what cannot be in place is not */
    if ((c->checks & CASE_IN_PLACE) != 0) {
        desc->gradient_row_stride = desc->probabilities_row_stride = desc->row_stride;
        if (!case_check(c, &unused)) c->checks &= ~(uint32_t)CASE_IN_PLACE;
    }
    if ((desc->outputs & CLXENT_OUTPUT_GRADIENT) != 0 && desc->gradient_mode == CLXENT_GRADIENT_WRITE &&
        chance(&random, desc->gradient_row_stride != 0 ? 50 : 5))
        desc->gradient_padding = CLXENT_GRADIENT_PADDING_ZERO;
}

/* ---- Shrinking ----------------------------------------------------------------------------- */

typedef struct shrinking {
    verify_case *smallest; /* fails, as *fault says */
    problem_fault *fault;
    case_fails_fn fails;
    void *payload;
    size_t tried;
} shrinking;

/* Whether a candidate fails too; if so, it is the smallest from here on. */
static bool still_fails(shrinking *s, const verify_case *candidate)
{
    problem_fault f;

    if (!case_check(candidate, &f)) return false;
    s->tried++;
    if (!s->fails(candidate, s->payload, &f)) return false;
    *s->smallest = *candidate;
    *s->fault = f;
    return true;
}

static bool drop_bits(shrinking *s, const struct field *field)
{
    bool smaller = false;

    for (uint32_t bit = 0; bit < 32; bit++) {
        verify_case candidate = *s->smallest;
        const uint64_t bits = get_bits(&candidate, field);
        if ((bits >> bit & 1u) == 0) continue;
        set_bits(&candidate, field, bits & ~((uint64_t)1 << bit));
        if (still_fails(s, &candidate)) smaller = true;
    }
    return smaller;
}

static bool set_default(shrinking *s, const struct field *field)
{
    const verify_case plain = case_default();
    verify_case candidate = *s->smallest;

    if (is_default(&candidate, field)) return false;
    set_bits(&candidate, field, get_bits(&plain, field));
    return still_fails(s, &candidate);
}

/* Between the default, which passes, and what fails: exact where everything above some size fails. */
static bool bisect(shrinking *s, const struct field *field)
{
    const verify_case plain = case_default();
    uint64_t passes = get_bits(&plain, field), failing = get_bits(s->smallest, field);
    bool smaller = false;

    while (failing > passes + 1) {
        const uint64_t middle = passes + (failing - passes) / 2;
        verify_case candidate = *s->smallest;
        set_bits(&candidate, field, middle);
        if (still_fails(s, &candidate)) failing = middle, smaller = true;
        else passes = middle;
    }
    return smaller;
}

/* rows must be a multiple of inner, so that neither shrinks alone. */
static bool shrink_inner(shrinking *s)
{
    verify_case candidate = *s->smallest;

    if (candidate.desc.inner <= 2) return false;
    candidate.desc.batch = candidate.desc.inner = 2;
    candidate.desc.seq = 1;
    return still_fails(s, &candidate);
}

/* What only linear cross-entropy has goes with it; the gradient of the logits stands for its gradients. */
static bool shrink_linear(shrinking *s)
{
    const verify_case plain = case_default();
    verify_case candidate = *s->smallest;
    clxent_desc *desc = &candidate.desc;
    const uint32_t products = desc->outputs & (CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT |
                                               CLXENT_OUTPUT_BIAS_GRADIENT);
    static const char *const own[] = { "op",      "has_bias", "features", "workspace_limit",
                                       "hidden_", "weight_",  "bias_" }; /* what names begin with */

    if (desc->op != CLXENT_OP_LINEAR_CROSS_ENTROPY) return false;
    for (size_t i = 0; i < FIELDS; i++)
        for (size_t k = 0; k < sizeof own / sizeof *own; k++)
            if (strncmp(fields[i].name, own[k], strlen(own[k])) == 0)
                set_bits(&candidate, &fields[i], get_bits(&plain, &fields[i]));
    desc->outputs ^= products;
    if (products != 0) desc->outputs |= CLXENT_OUTPUT_GRADIENT;
    return still_fails(s, &candidate);
}

size_t case_shrink(verify_case *c, case_fails_fn fails, void *payload, problem_fault *f)
{
    shrinking s = { c, f, fails, payload, 0 };

    /* Each step that succeeds simplifies one field and spoils none, so that this ends. */
    for (bool smaller = true; smaller;) {
        smaller = shrink_inner(&s);
        if (shrink_linear(&s)) smaller = true;
        for (size_t i = 0; i < FIELDS; i++) {
            const struct field *field = &fields[i];
            bool step = field->kind == KIND_SET ? drop_bits(&s, field) : set_default(&s, field);
            if (!step && field->kind == KIND_SIZE) step = bisect(&s, field);
            smaller = smaller || step;
        }
    }
    return s.tried;
}

/* ---- Features ------------------------------------------------------------------------------ */

/* Features that are no field's: by the number of classes, and without rows. */
enum { CLASSES_FIELD = -1, NO_ROWS_FIELD = -2 };
static const struct {
    const char *name;
    size_t smallest, largest;
} class_counts[] = {
    { "1 class", 1, 1 },
    { "2 to 16 classes", 2, 16 },
    { "17 to 1024 classes", 17, 1024 },
    { "1025 to 16384 classes", 1025, 16384 },
    { "more than 16384 classes", 16385, SIZE_MAX },
};
enum { CLASS_COUNTS = sizeof class_counts / sizeof *class_counts };

static void add_feature(case_feature *list, size_t *count, int field, uint32_t value, const char *name,
                        const char *more)
{
    const bool output = field >= 0 && is_field(&fields[field], "outputs");
    case_feature *feature = &list[*count];

    if (*count == CASE_FEATURES) return;
    ++*count;
    *feature = (case_feature){ "", field, value, output ? (int)value : -1 };
    snprintf(feature->name, sizeof feature->name, "%s%s%s", name, more[0] != '\0' ? " " : "", more);
}

size_t case_list_features(case_feature list[CASE_FEATURES])
{
    static const char *const none[] = { "batch", "seq", "classes", "seed", NULL };
    size_t count = 0;

    for (size_t i = 0; i < CLASS_COUNTS; i++)
        add_feature(list, &count, CLASSES_FIELD, (uint32_t)i, class_counts[i].name, "");
    add_feature(list, &count, NO_ROWS_FIELD, 0, "no rows", "");
    for (size_t i = 0; i < FIELDS; i++) {
        const struct field *field = &fields[i];
        if (field->names == NULL) {
            if (!is_name(none, field->name)) add_feature(list, &count, (int)i, 0, field->name, "");
            continue;
        }
        for (uint32_t k = 0; field->names[k] != NULL; k++)
            add_feature(list, &count, (int)i, k, field->name, field->names[k]);
    }
    return count;
}

bool case_has_feature(const verify_case *c, const case_feature *feature)
{
    if (feature->field == NO_ROWS_FIELD) return c->desc.batch * c->desc.seq == 0;
    if (feature->field == CLASSES_FIELD)
        return c->desc.classes >= class_counts[feature->value].smallest &&
               c->desc.classes <= class_counts[feature->value].largest;
    const struct field *field = &fields[feature->field];
    if (field->kind == KIND_SET) return (get_bits(c, field) >> feature->value & 1u) != 0;
    if (field->kind == KIND_ENUM) return get_bits(c, field) == feature->value;
    return !is_default(c, field);
}
