/* SPDX-License-Identifier: MIT
 *
 * tuning.c - device facts and dtype -> kernel parameters: the rows that the application handed over, then the table
 * of tuning.def, and the limits that a device sets. Calls no OpenCL.
 *
 * Rows come from files that may be old, damaged or written by hand: what is not exactly a row is refused, and a row
 * that is accepted gives correct results on every device, be they slow.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KIND_ANY, KIND_CPU, KIND_GPU };
enum { MOST_GROUP = 1024 }; /* WG_SIZE of kernels/common.cl */
enum { ANY_DTYPE = 0 };
enum {
    NAME_SIZE = sizeof(((clxent_device *)0)->name),
    PARAMETERS = sizeof(clxent_tuning) / sizeof(uint32_t)
};

typedef struct row {
    char name[NAME_SIZE];
    int kind;
    uint32_t dtype;
    clxent_tuning tuning;
} row;

struct clxent_tuning_rows {
    size_t count;
    row rows[];
};

#define F32 CLXENT_F32
#define F16 CLXENT_F16
#define BF16 CLXENT_BF16
#define F64 CLXENT_F64
#define TUNE(kind, name, dtype, ...) { name, KIND_##kind, dtype, { __VA_ARGS__ } },
static const row rows[] = {
#include "tuning.def"
};
#undef TUNE
#undef F64
#undef BF16
#undef F16
#undef F32

/* ---- Choice -------------------------------------------------------------------------------- */

static bool matches(const row *r, const clxent_device *device, uint32_t dtype)
{
    const bool cpu = (device->type & CL_DEVICE_TYPE_CPU) != 0;

    if (r->kind == KIND_CPU && !cpu) return false;
    if (r->kind == KIND_GPU && cpu) return false;
    if (r->dtype != ANY_DTYPE && r->dtype != dtype) return false;
    return strcmp(r->name, "*") == 0 || strstr(device->name, r->name) != NULL ||
           strstr(device->vendor, r->name) != NULL;
}

clxent_tuning clxent_tuning_choose(const clxent_tuning_rows *own, const clxent_device *device,
                                   const clxent_desc *desc)
{
    const row *r = rows;

    for (size_t i = 0; own != NULL && i < own->count; i++) {
        if (matches(&own->rows[i], device, desc->dtype))
            return clxent_tuning_clamp(&own->rows[i].tuning, device, desc);
    }
    while (!matches(r, device, desc->dtype)) r++;
    return clxent_tuning_clamp(&r->tuning, device, desc);
}

/* Of a group, whose blocks are in registers (kernels/group_rows.cl): the smallest that has a row in one block, but for what a
 * device needs to be busy. AMD's waves may be 64 work-items. NVIDIA's warps are 32, and an f32 row of two is one of longer
 * blocks, as the first warp of a group merges and finishes for all (tools/gpu.py, sm_80, 1,024 classes, instructions of a
 * logit: 38.1 of two warps with 16 logits for each work-item, 31.2 of one with 32, which spills 24 bytes). 32 logits of 16 bits
 * would spill 640 bytes with entropy and log-softmax. Decides bits. */
static void fit_registers(clxent_tuning *t, const clxent_device *device, const clxent_desc *desc)
{
    enum { MOST_ELEMENTS = 32, WARP = 32, MOST_OF_TWO = 32768 };
    const bool has_warps = strstr(device->vendor, "NVIDIA") != NULL;
    const uint32_t least = has_warps ? WARP : 64;
    const size_t classes = desc->classes;
    const bool dense =
        desc->softcap != 0.0 || desc->label_smoothing != 0.0 || !clxent_targets_are_indices(desc);

    /* a_j and slopes take as many registers again (f32, sm_90: 170 of all options, 128 with half of the block; bf16, sm_80:
     * 176 bytes spilled with two vectors, none with one) */
    if (dense) t->block = t->block >= 4 ? t->block / 4 * 2 : 1;
    if (has_warps && !dense && desc->dtype == CLXENT_F32 && classes <= WARP * MOST_ELEMENTS &&
        classes > (size_t)WARP * t->block * t->vector)
        t->block = MOST_ELEMENTS / t->vector;
    if (t->block * t->vector > MOST_ELEMENTS) t->block = MOST_ELEMENTS / t->vector;
    while (t->group > least && (size_t)t->group / 2 * t->block * t->vector >= classes) t->group /= 2;
    /* Rows of several blocks: two groups of 512 have the registers of one of 1,024, and one reads while the other merges and
     * writes (GPGPU-Sim, f32 of 32,768 classes: 0.81 of the cycles). Of longer rows those of two groups on each multiprocessor do
     * not fit into the second-level cache of an H100, from which they are read again. */
    if (has_warps && t->group > 512 && classes > (size_t)t->group * t->block * t->vector &&
        classes <= MOST_OF_TWO)
        t->group = 512;
}

clxent_tuning clxent_tuning_clamp(const clxent_tuning *tuning, const clxent_device *device,
                                  const clxent_desc *desc)
{
    /* what every work-item has in local memory: the sums of group_rows.cl are the largest, with the entropy's, whatever the
     * plan's outputs, as groups decide bits */
    const bool dense = !clxent_targets_are_indices(desc) || desc->label_smoothing != 0.0;
    const cl_ulong local_item = (dense ? 48u : 32u) * (desc->dtype == CLXENT_F64 ? 2u : 1u);
    const cl_ulong of_groups = device->local_memory / 4 * 3;
    /* of a CPU, its second-level cache: 50,257 classes that take 0.4 of 0.5 MiB with their slopes, 0.66 of the time of slopes
     * computed twice; 131,072 that take all of it in place 0.79, beside the logits 0.99 (Zen 3, PoCL 3.1) */
    const uint32_t local = (uint32_t)(device->local_memory < UINT32_MAX ? device->local_memory : UINT32_MAX);
    clxent_tuning t = *tuning;

    const uint32_t most_group =
        device->max_work_group < MOST_GROUP ? (uint32_t)device->max_work_group : MOST_GROUP;
    while (t.group > 1 && (t.group > most_group || t.group * local_item > of_groups)) t.group /= 2;
    if (t.group > 1) {
        fit_registers(&t, device, desc);
    } else {
        t.block = (t.block + 3) / 4 * 4;
    }
    if (t.cache > local) t.cache = local;
    if (t.lane_group == 0) t.lane_group = 1;
    if (t.lane_vector == 0) t.lane_vector = 1;
    while (t.lane_group > 1 && (t.lane_group > most_group || t.lane_group * local_item > of_groups))
        t.lane_group /= 2;
    if (t.lane_cache > local / 2) t.lane_cache = local / 2;
    if (desc->inner > 1) {
        /* vectors may not be longer than the run of neighbours that they lie along; there is none of 2 */
        while (t.lane_vector > desc->inner) t.lane_vector = t.lane_vector > 4 ? t.lane_vector / 2 : 1;
    } else if (t.lane_group > 1) {
        t.lane_vector = 1;
    }
    return t;
}

/* ---- Faults of drivers --------------------------------------------------------------------- */

/* Work-groups that a driver's compiler does not survive. It ends the process, so that nothing can be tried: such a
 * plan is refused. driver and version are the beginning of CL_DRIVER_VERSION and a part of CL_DEVICE_VERSION. */
static const struct driver_fault {
    const char *driver, *version;
    int kind;
    uint32_t most_group;
    const char *text;
} driver_faults[] = {
    /* PoCL 6.0 with LLVM 18 (Debian 13), CPU devices: "LLVM ERROR: Instruction Combining did not reach a fixpoint after
     * 1 iterations", then abort(), at the first launch of many kernels with barriers; which of them changes with any
     * edit. https://github.com/pocl/pocl/issues/1608; later versions leave that pass out. To repeat, without this entry:
     * clxent_plan_create_tuned() with LANES(8, 1, 1 << 19, 0) of tests/strategies.h, then a run of 19 rows of 20 f32
     * classes. */
    { "6.0", "PoCL", KIND_CPU, 1, "PoCL 6.0 may end the process when it compiles larger ones (pocl#1608)" },
};

const char *clxent_tuning_driver_fault(const clxent_device *device, uint32_t group, uint32_t *most)
{
    for (size_t i = 0; i < sizeof driver_faults / sizeof *driver_faults; i++) {
        const struct driver_fault *f = &driver_faults[i];
        const int kind = (device->type & CL_DEVICE_TYPE_CPU) != 0 ? KIND_CPU : KIND_GPU;
        if (kind != f->kind || group <= f->most_group) continue;
        if (strncmp(device->driver, f->driver, strlen(f->driver)) != 0) continue;
        if (strstr(device->version, f->version) == NULL) continue;
        *most = f->most_group;
        return f->text;
    }
    return NULL;
}

/* ---- Rows as text -------------------------------------------------------------------------- */

typedef enum limits { TAKES_GROUP, TAKES_VECTOR, TAKES_BLOCK, TAKES_NUMBER, TAKES_FLAG } limits;
static const char *const takes_texts[] = { "a power of two from 1 to 4096", "1, 4, 8 or 16",
                                           "an even number from 2 to 4096", "a whole number below 2^32",
                                           "0 or 1" };

/* In the order of clxent_tuning. What the kernels are compiled with is limited to what they are written for, which
 * the device's own limits may clamp further; the others are thresholds, right at any value. */
static const struct {
    const char *name;
    limits takes;
} parameters[] = {
    { "group", TAKES_GROUP },      { "vector", TAKES_VECTOR },      { "block", TAKES_BLOCK },
    { "cache", TAKES_NUMBER },     { "elements", TAKES_NUMBER },    { "stream", TAKES_NUMBER },
    { "piece", TAKES_NUMBER },     { "split", TAKES_NUMBER },       { "lane_classes", TAKES_NUMBER },
    { "lane_group", TAKES_GROUP }, { "lane_vector", TAKES_VECTOR }, { "lane_cache", TAKES_NUMBER },
    { "native_exp", TAKES_FLAG },
};
_Static_assert(sizeof parameters / sizeof *parameters == PARAMETERS, "one entry for each field");

typedef struct word {
    const char *name;
    uint32_t value;
} word;
static const word kinds[] = { { "CPU", KIND_CPU }, { "GPU", KIND_GPU }, { "ANY", KIND_ANY }, { NULL, 0 } };
static const word dtypes[] = { { "F32", CLXENT_F32 }, { "F16", CLXENT_F16 },      { "BF16", CLXENT_BF16 },
                               { "F64", CLXENT_F64 }, { "ANY_DTYPE", ANY_DTYPE }, { NULL, 0 } };

typedef struct reader {
    const char *at;    /* behind the token */
    const char *token; /* a word, a text with both of its quotes, one other character; empty at the end */
    size_t length;
    size_t line; /* of the token */
    char *fault; /* size bytes */
    size_t size;
} reader;

static clxent_status refuse(const reader *r, const char *what, const char *takes)
{
    enum { MOST = 40 }; /* characters of a token that a message repeats */
    return clxent_fail_text(r->fault, r->size, CLXENT_ERROR_INVALID_ARGUMENT,
                            "tuning, line %zu: %s is %s%.*s%s: takes %s", r->line, what,
                            r->length > 0 ? "'" : "missing", (int)(r->length < MOST ? r->length : MOST),
                            r->token, r->length > 0 ? "'" : "", takes);
}

static bool is_word(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' ||
           c == '.' || c == '+' || c == '-';
}

static clxent_status next_token(reader *r)
{
    const char *p = r->at;

    for (;; p++) {
        if (*p == '\n') {
            r->line++;
        } else if (p[0] == '/' && p[1] == '*') {
            const char *end = strstr(p + 2, "*/");
            if (end == NULL) {
                return clxent_fail_text(r->fault, r->size, CLXENT_ERROR_INVALID_ARGUMENT,
                                        "tuning, line %zu: a comment has no end: takes */", r->line);
            }
            for (; p <= end; p++) r->line += *p == '\n';
        } else if (*p != ' ' && *p != '\t' && *p != '\r') {
            break;
        }
    }
    r->token = p;
    if (*p == '"') {
        p += 1 + strcspn(p + 1, "\"\n");
        if (*p == '"') p++;
    } else if (is_word(*p)) {
        while (is_word(*p)) p++;
    } else if (*p != '\0') {
        p++;
    }
    r->length = (size_t)(p - r->token);
    r->at = p;
    return CLXENT_OK;
}

static bool token_is(const reader *r, const char *text)
{
    return strlen(text) == r->length && strncmp(r->token, text, r->length) == 0;
}

static clxent_status expect(reader *r, const char *before, const char *text)
{
    char what[64], takes[8];

    CLXENT_TRY(next_token(r));
    if (token_is(r, text)) return CLXENT_OK;
    (void)snprintf(what, sizeof what, "what follows %s", before);
    (void)snprintf(takes, sizeof takes, "'%s'", text);
    return refuse(r, what, takes);
}

static clxent_status read_word(reader *r, const char *what, const word *words, const char *takes,
                               uint32_t *value)
{
    CLXENT_TRY(next_token(r));
    for (; words->name != NULL; words++) {
        if (!token_is(r, words->name)) continue;
        *value = words->value;
        return expect(r, what, ",");
    }
    return refuse(r, what, takes);
}

static clxent_status read_name(reader *r, char *name)
{
    CLXENT_TRY(next_token(r));
    const bool whole = r->length > 2 && r->token[0] == '"' && r->token[r->length - 1] == '"';
    if (!whole || r->length - 2 >= NAME_SIZE || memchr(r->token, '\\', r->length) != NULL) {
        return refuse(r, "name",
                      "a part of the device's name or vendor, or *, in quotes: 1 to 127 characters without "
                      "quotes and backslashes");
    }
    memcpy(name, r->token + 1, r->length - 2);
    name[r->length - 2] = '\0';
    return expect(r, "name", ",");
}

static clxent_status read_parameter(reader *r, size_t i, uint32_t *to)
{
    uint64_t value = 0;
    bool good;

    CLXENT_TRY(next_token(r));
    good = r->length > 0 && r->length <= 10;
    for (size_t k = 0; good && k < r->length; k++) {
        good = r->token[k] >= '0' && r->token[k] <= '9';
        value = 10 * value + (uint64_t)(r->token[k] - '0');
    }
    good = good && value <= UINT32_MAX;
    switch (parameters[i].takes) {
    case TAKES_GROUP: good = good && value >= 1 && value <= 4096 && (value & (value - 1)) == 0; break;
    case TAKES_VECTOR: good = good && (value == 1 || value == 4 || value == 8 || value == 16); break;
    case TAKES_BLOCK: good = good && value >= 2 && value <= 4096 && value % 2 == 0; break;
    case TAKES_NUMBER: break;
    case TAKES_FLAG: good = good && value <= 1; break;
    }
    if (!good) return refuse(r, parameters[i].name, takes_texts[parameters[i].takes]);
    *to = (uint32_t)value;
    return expect(r, parameters[i].name, i + 1 < PARAMETERS ? "," : ")");
}

/* What stands behind TUNE. */
static clxent_status read_row(reader *r, row *to)
{
    uint32_t kind = KIND_ANY, values[PARAMETERS];

    CLXENT_TRY(expect(r, "TUNE", "("));
    CLXENT_TRY(read_word(r, "device", kinds, "CPU, GPU or ANY", &kind));
    CLXENT_TRY(read_name(r, to->name));
    CLXENT_TRY(read_word(r, "dtype", dtypes, "F32, F16, BF16, F64 or ANY_DTYPE", &to->dtype));
    for (size_t i = 0; i < PARAMETERS; i++) CLXENT_TRY(read_parameter(r, i, &values[i]));
    to->kind = (int)kind;
    memcpy(&to->tuning, values, sizeof values);
    return CLXENT_OK;
}

clxent_status clxent_tuning_parse(clxent_tuning_rows **out, const char *text, char *fault, size_t size)
{
    reader r = { .at = text, .line = 1, .fault = fault, .size = size };
    clxent_tuning_rows *own = calloc(1, sizeof *own);
    clxent_status status;

    *out = NULL;
    for (;;) {
        clxent_tuning_rows *more =
            own == NULL ? NULL : realloc(own, sizeof *own + (own->count + 1) * sizeof *own->rows);
        if (more == NULL) {
            status = clxent_fail_text(fault, size, CLXENT_ERROR_OUT_OF_HOST_MEMORY,
                                      "tuning: malloc of its rows failed");
            goto fail;
        }
        own = more;
        CLXENT_TRY_OR_FAIL(next_token(&r));
        if (r.length == 0) break;
        if (!token_is(&r, "TUNE")) {
            status = refuse(&r, "a row's begin", "TUNE");
            goto fail;
        }
        CLXENT_TRY_OR_FAIL(read_row(&r, &own->rows[own->count]));
        own->count++;
    }
    *out = own;
    return CLXENT_OK;

fail:
    free(own);
    return status;
}
