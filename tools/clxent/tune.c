/* SPDX-License-Identifier: MIT
 *
 * tune.c - searches the kernels' parameters for a device and stores them where cli_open() finds them. What is here
 * alone: which parameters and shapes the search knows, and how it decides.
 *
 * Coordinate descent: one parameter at a time, all of its values and the best so far taking turns on every shape that
 * it bears on, so that what disturbs the machine disturbs all of them. A value is taken where it gains clearly over
 * those shapes together. Candidates go the way of every user's rows, through clxent_context_options.tuning.
 */
#define _XOPEN_SOURCE 700
#include "measure.h"
#include "npy.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* ---- Rows of parameters --------------------------------------------------------------------- */

enum {
    GROUP,
    VECTOR,
    BLOCK,
    CACHE,
    ELEMENTS,
    STREAM,
    PIECE,
    SPLIT,
    LANE_CLASSES,
    LANE_GROUP,
    LANE_VECTOR,
    LANE_CACHE,
    NATIVE_EXP,
    PARAMETERS
};

typedef struct parameters {
    uint32_t value[PARAMETERS];
} parameters;

enum { KIND_ANY, KIND_CPU, KIND_GPU };
enum { ANY_DTYPE = 0 };

/* The library's own, where the search starts. */
#define F32 CLXENT_F32
#define F16 CLXENT_F16
#define BF16 CLXENT_BF16
#define F64 CLXENT_F64
#define TUNE(kind, name, dtype, ...) { name, KIND_##kind, dtype, { { __VA_ARGS__ } } },
static const struct {
    const char *name;
    int kind;
    uint32_t dtype;
    parameters start;
} built_in[] = {
#include "../../host/tuning.def"
};
#undef TUNE
#undef F64
#undef BF16
#undef F16
#undef F32

/* The dtypes whose logits share a row. */
enum { FAMILY_ANY, FAMILY_F64, FAMILIES };
static const char *const family_dtypes[] = { "ANY_DTYPE", "F64" };

typedef struct tuner {
    measure m;
    const cli_device *device;
    bool cpu, quick, any_bits;
    size_t logits, pairs;
    double deadline;
    bool late;           /* the time was up before the search was through */
    size_t steps, taken; /* of the progress line */
    parameters best[FAMILIES];
} tuner;

static parameters start_of(const tuner *t, int family)
{
    size_t i = 0;

    for (;; i++) { /* the last matches everything */
        const bool kind = built_in[i].kind == KIND_ANY || (built_in[i].kind == KIND_CPU) == t->cpu;
        const bool dtype = built_in[i].dtype == (family == FAMILY_F64 ? CLXENT_F64 : ANY_DTYPE) ||
                           built_in[i].dtype == ANY_DTYPE;
        const bool name = strcmp(built_in[i].name, "*") == 0 ||
                          strstr(t->device->name, built_in[i].name) != NULL ||
                          strstr(t->device->vendor, built_in[i].name) != NULL;
        if (kind && dtype && name) return built_in[i].start;
    }
}

enum { ROW_SIZE = 512 };

/* One row of tuning.def. A name that such a row cannot hold is "*": the file is for one device all the same. */
static void write_row(const tuner *t, int family, const parameters *p, char text[ROW_SIZE])
{
    enum { MOST = 127 };
    const char *name = t->device->name;

    for (const char *at = name; *at != '\0'; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ') name = "*";
    int n = snprintf(text, ROW_SIZE, "TUNE(%s, \"%.*s\", %s", t->cpu ? "CPU" : "GPU", MOST,
                     name[0] != '\0' ? name : "*", family_dtypes[family]);
    for (size_t i = 0; i < PARAMETERS; i++)
        n += snprintf(text + n, (size_t)(ROW_SIZE - n), ", %u", (unsigned)p->value[i]);
    snprintf(text + n, (size_t)(ROW_SIZE - n), ")");
}

/* The row of f64 comes first, and never lacks: ANY_DTYPE would take its place. */
static void write_rows(const tuner *t, const parameters rows[FAMILIES], char text[FAMILIES * ROW_SIZE])
{
    text[0] = '\0';
    for (int family = FAMILIES; family-- > 0;) {
        write_row(t, family, &rows[family], text + strlen(text));
        strcat(text, "\n");
    }
}

static bool use(tuner *t, const parameters rows[FAMILIES])
{
    char text[FAMILIES * ROW_SIZE];
    write_rows(t, rows, text);
    return cli_retune(&t->m.session, text);
}

/* ---- What is searched ----------------------------------------------------------------------- */

enum { IS_ROWS = 1, IS_SPLIT = 2, IS_LANES = 4, IS_SMALL = 8 };
enum { LOSS = CLXENT_OUTPUT_LOSS, FUSED = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT };

/* A shape has the tuner's logits, or 2^-smaller of them: results that fit a cache and results that do not want
 * different stores. */
static const struct shape {
    uint32_t dtype, outputs;
    size_t each;           /* rows for each compute unit; 0: what the classes leave */
    size_t classes, inner; /* classes 0: what the rows leave */
    unsigned smaller;
    uint32_t is; /* what its parameters bear on */
    bool quick;
} shapes[] = {
    { CLXENT_F32, FUSED, 0, 10, 1, 0, IS_LANES, true },
    { CLXENT_F32, FUSED, 0, 100, 1, 0, IS_LANES, false },
    { CLXENT_F32, FUSED, 0, 200, 1, 0, IS_LANES, false },
    { CLXENT_F32, FUSED, 0, 21, 4096, 0, IS_LANES, false },
    { CLXENT_F32, FUSED, 0, 1024, 1, 0, IS_ROWS, true },
    { CLXENT_F32, FUSED, 0, 1024, 1, 3, IS_SMALL, false },
    { CLXENT_F32, FUSED, 0, 1024, 1, 5, IS_SMALL, false },
    { CLXENT_F32, FUSED, 0, 50257, 1, 0, IS_ROWS, false },
    { CLXENT_F32, LOSS, 0, 32768, 1, 0, IS_ROWS, false },
    { CLXENT_BF16, FUSED, 0, 1024, 1, 0, IS_ROWS, false },
    { CLXENT_F32, FUSED, 1, 0, 1, 0, IS_SPLIT, true },
    { CLXENT_F32, FUSED, 12, 0, 1, 0, IS_SPLIT, false },
    { CLXENT_F64, FUSED, 0, 10, 1, 0, IS_LANES, false },
    { CLXENT_F64, FUSED, 0, 1024, 1, 0, IS_ROWS, false },
    { CLXENT_F64, FUSED, 0, 1024, 1, 4, IS_SMALL, false },
    { CLXENT_F64, FUSED, 4, 0, 1, 0, IS_SPLIT, false },
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

enum { VALUES = 6 }; /* of a parameter, at most */
#define END UINT32_MAX
enum { KIB = 1024, MIB = 1024 * 1024 };

/* Groups of more than one work-item are not for CPUs, whose drivers take many times as long to compile their barriers as
 * the kernels ever win back. LANE_CLASSES changes nothing for the shapes above on CPUs: their rows lie along the classes. */
static const struct search {
    size_t parameter;
    uint32_t bears_on;
    bool bits;                                   /* decides bits of results */
    uint32_t cpu[VALUES + 1], other[VALUES + 1]; /* values, and END */
} searches[] = {
    { ELEMENTS,
      IS_ROWS | IS_LANES,
      false,
      { 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, END },
      { 256, KIB, 4 * KIB, 16 * KIB, END } },
    { STREAM,
      IS_ROWS | IS_SPLIT | IS_LANES | IS_SMALL,
      false,
      { 0, MIB, 4 * MIB, 8 * MIB, 32 * MIB, 128 * MIB, END },
      { 0, 32 * MIB, END } },
    { SPLIT, IS_SPLIT, false, { 0, 2, 4, 8, 16, END }, { 0, 1, 2, 4, 8, END } },
    { LANE_VECTOR, IS_LANES, true, { 4, 8, 16, END }, { 1, 4, END } },
    { GROUP, IS_ROWS | IS_SPLIT, true, { END }, { 64, 128, 256, 512, 1024, END } },
    { VECTOR, IS_ROWS | IS_SPLIT, true, { 4, 8, 16, END }, { 1, 4, 8, END } },
    { BLOCK, IS_ROWS | IS_SPLIT, true, { 16, 32, 64, 128, END }, { 4, 8, 16, END } },
    { CACHE, IS_ROWS, true, { 0, 8 * KIB, 32 * KIB, END }, { 0, 8 * KIB, 16 * KIB, 24 * KIB, END } },
    { PIECE, IS_SPLIT, true, { 16 * KIB, 64 * KIB, 256 * KIB, END }, { 8 * KIB, 32 * KIB, 128 * KIB, END } },
    { LANE_GROUP, IS_LANES, true, { END }, { 32, 64, 128, 256, END } },
    { LANE_CLASSES, IS_LANES, true, { END }, { 16, 32, 64, 128, END } },
};
enum { SEARCHES = sizeof searches / sizeof *searches, ROUNDS = 2 };

static int family_of(const struct shape *s) { return s->dtype == CLXENT_F64 ? FAMILY_F64 : FAMILY_ANY; }

static bool has_family(const tuner *t, int family)
{
    return family != FAMILY_F64 || (t->device->f64 != 0 && !t->quick);
}

static bool has_shape(const tuner *t, const struct shape *s)
{
    return (s->quick || !t->quick) && has_family(t, family_of(s));
}

static clxent_desc desc_of(const tuner *t, const struct shape *s)
{
    const size_t units = t->device->compute_units, logits = t->logits >> s->smaller;
    size_t slabs = s->classes == 0 ? s->each * units : logits / (s->classes * s->inner);

    if (slabs == 0) slabs = 1;
    clxent_desc desc =
        measure_desc(s->outputs, s->dtype, slabs, 0, s->classes != 0 ? s->classes : logits / slabs);
    desc.seq = desc.inner = s->inner;
    return desc;
}

static void shape_text(const tuner *t, const struct shape *s, char *text, size_t size)
{
    const clxent_desc desc = desc_of(t, s);
    char inner[32] = "";

    if (desc.inner > 1) snprintf(inner, sizeof inner, " x %zu", desc.inner);
    snprintf(text, size, "%zu x %zu%s %s %s", desc.batch, desc.classes, inner, dtype_names[desc.dtype],
             s->outputs == LOSS ? "loss" : "loss + gradient");
}

/* Times the shape under each of rows, in turn. column[i] is the number of row i's run, NO_COLUMN where the driver refuses
 * the row; it never refuses the first. */
enum { NO_COLUMN = -1 };
static bool time_rows(tuner *t, const struct shape *s, parameters rows[][FAMILIES], size_t count,
                      int column[])
{
    const clxent_desc desc = desc_of(t, s);
    int n = 0;

    measure_cut(&t->m, 0);
    for (size_t i = 0; i < count; i++) {
        clxent_status status = CLXENT_OK;
        if (!use(t, rows[i])) return false;
        const bool good = timed_plan(&t->m, (size_t)n, &desc, false, 0, i > 0 ? &status : NULL);
        if (!good && status != CLXENT_ERROR_UNSUPPORTED) return false;
        column[i] = good ? n++ : NO_COLUMN;
    }
    t->m.num_runs = (size_t)n; /* the last may have been refused */
    t->m.progress_from = (double)t->taken / (double)t->steps;
    t->m.progress_to = (double)++t->taken / (double)t->steps;
    return measure_times(&t->m, t->pairs);
}

/* Tries every value of one parameter; *moved: another than before is the best. */
static bool search_one(tuner *t, int family, const struct search *search, bool *moved)
{
    const double enough = 0.97; /* what is nearer to 1 may be noise */
    const uint32_t *tried = t->cpu ? search->cpu : search->other;
    parameters rows[VALUES + 1][FAMILIES];
    double logs[VALUES + 1] = { 0 };
    size_t count = 1, bearing = 0, best = 0;

    memcpy(rows[0], t->best, sizeof rows[0]);
    for (; *tried != END; tried++) {
        if (*tried == t->best[family].value[search->parameter]) continue;
        memcpy(rows[count], t->best, sizeof rows[0]);
        rows[count++][family].value[search->parameter] = *tried;
    }
    if (count == 1) return true;
    for (size_t s = 0; s < SHAPES; s++) {
        if (family_of(&shapes[s]) != family || !has_shape(t, &shapes[s]) ||
            (shapes[s].is & search->bears_on) == 0)
            continue;
        if (cli_seconds() > t->deadline) {
            t->late = true;
            return true;
        }
        int column[VALUES + 1];
        if (!time_rows(t, &shapes[s], rows, count, column)) return false;
        for (size_t i = 1; i < count; i++)
            logs[i] += column[i] == NO_COLUMN ? INFINITY : log(ratio_of(&t->m, (size_t)column[i], 0).median);
        bearing++;
    }
    for (size_t i = 1; i < count; i++)
        if (logs[i] < logs[best]) best = i;
    if (best > 0 && exp(logs[best] / (double)bearing) < enough) {
        t->best[family] = rows[best][family];
        *moved = true;
    }
    return true;
}

static bool takes(const tuner *t, const struct search *search) { return !search->bits || t->any_bits; }

static bool search_all(tuner *t, int family)
{
    bool moved = true;

    for (size_t round = 0; round < (t->quick ? 1 : ROUNDS) && moved && !t->late; round++) {
        moved = false;
        for (size_t i = 0; i < SEARCHES && !t->late; i++)
            if (takes(t, &searches[i]) && !search_one(t, family, &searches[i], &moved)) return false;
    }
    return true;
}

/* ---- The result ----------------------------------------------------------------------------- */

typedef struct outcome {
    struct {
        char text[96]; /* "": not measured */
        double before, after, ratio;
    } shapes[SHAPES];
    bool kept[FAMILIES]; /* the search found something else, which the last comparison did not bear out */
} outcome;

static bool compare_ends(tuner *t, const parameters start[FAMILIES], outcome *o)
{
    parameters rows[2][FAMILIES];
    double logs[FAMILIES] = { 0 };

    memcpy(rows[0], start, sizeof rows[0]);
    memcpy(rows[1], t->best, sizeof rows[1]);
    for (size_t s = 0; s < SHAPES; s++) {
        const int family = family_of(&shapes[s]);
        const bool same = memcmp(&start[family], &t->best[family], sizeof start[family]) == 0;
        if (!has_shape(t, &shapes[s])) continue;
        int column[2];
        if (!time_rows(t, &shapes[s], rows, same ? 1 : 2, column)) return false;
        const size_t after = t->m.num_runs - 1;
        shape_text(t, &shapes[s], o->shapes[s].text, sizeof o->shapes[s].text);
        o->shapes[s].before = times_of(&t->m, 0).median;
        o->shapes[s].after = times_of(&t->m, after).median;
        o->shapes[s].ratio = ratio_of(&t->m, after, 0).median;
        logs[family] += log(o->shapes[s].ratio);
    }
    for (int family = 0; family < FAMILIES; family++) {
        o->kept[family] = logs[family] > 0;
        if (o->kept[family]) t->best[family] = start[family];
    }
    return true;
}

/* Text within a comment. */
static void add_comment(char *to, size_t size, const char *what, const char *text)
{
    const size_t used = strlen(to);

    snprintf(to + used, size - used, " * %s%s\n", what, text);
    for (char *at = to + used + strlen(" * ") + strlen(what); *at != '\0' && at[1] != '\0'; at++)
        if ((unsigned char)*at < ' ' || (at[0] == '/' && at[-1] == '*')) *at = '?';
}

/* Whether store() will be able to: no search should be lost. */
static bool can_store(const char *path)
{
    npy_fault fault;

    if (!cli_make_folders(path, 0700))
        return cli_fail(path, "its folder cannot be made: %s", strerror(errno));
    return npy_can_write(path, NULL, &fault) || cli_fail(path, "%s", fault.text);
}

/* Writes the file whole or not at all. */
static bool store(const tuner *t, const char *path)
{
    char text[FAMILIES * ROW_SIZE + 1024] = "/* Parameters of clxent's kernels, found by `clxent tune`.\n";
    npy_fault fault;

    add_comment(text, sizeof text, "device  ", t->device->name);
    add_comment(text, sizeof text, "driver  ", t->device->driver);
    strcat(text, " * Without this file the built-in ones are used. */\n");
    write_rows(t, t->best, text + strlen(text));
    return npy_save(path, text, strlen(text), false, &fault) || cli_fail(path, "%s", fault.text);
}

static void print_outcome(const tuner *t, const outcome *o)
{
    char rows[FAMILIES * ROW_SIZE];

    printf("device      %zu: %s\n", t->device->index, t->device->name);
    printf("driver      %s\n\n%-40s %11s %11s %7s\n", t->device->driver, "logits", "built in", "tuned",
           "ratio");
    for (size_t s = 0; s < SHAPES; s++)
        if (o->shapes[s].text[0] != '\0')
            printf("%-40s %8.3f ms %8.3f ms %7.3f\n", o->shapes[s].text, o->shapes[s].before * 1e3,
                   o->shapes[s].after * 1e3, o->shapes[s].ratio);
    putchar('\n');
    for (int family = 0; family < FAMILIES; family++)
        if (o->kept[family])
            printf("%s: no gain in this last comparison; the built-in parameters stay\n",
                   family_dtypes[family]);
    if (t->late) printf("The time was up before the search was through: see --seconds.\n");
    write_rows(t, t->best, rows);
    fputs(rows, stdout);
}

static void print_json(const tuner *t, const outcome *o, const char *path)
{
    json_t *list = json_array(), *rows = json_array();

    for (size_t s = 0; s < SHAPES; s++)
        if (o->shapes[s].text[0] != '\0')
            json_array_append_new(list, json_pack("{s:s, s:o, s:o, s:o}", "logits", o->shapes[s].text,
                                                  "built_in_s", cli_json_number(o->shapes[s].before),
                                                  "tuned_s", cli_json_number(o->shapes[s].after), "ratio",
                                                  cli_json_number(o->shapes[s].ratio)));
    for (int family = FAMILIES; family-- > 0;) {
        char text[ROW_SIZE];
        write_row(t, family, &t->best[family], text);
        json_array_append_new(rows, cli_json_text(text));
    }
    cli_json_print(json_pack("{s:o, s:o, s:o, s:b, s:o, s:o}", "device", cli_json_text(t->device->name),
                             "driver", cli_json_text(t->device->driver), "path", cli_json_text(path),
                             "complete", (int)!t->late, "shapes", list, "rows", rows));
}

/* ---- The command ---------------------------------------------------------------------------- */

typedef struct options {
    double seconds;
    bool quick, any_bits;
} options;

static const cli_flag flags[] = {
    { "seconds", "S", "Ends the search after S seconds; what was found is compared and stored (default: 300)",
      CLI_NUMBER, offsetof(options, seconds), .least = 0, .most = 1e6 },
    { "quick", NULL, "Fewer and smaller shapes, f32 only: a first impression (default: off)",
      .kind = CLI_SWITCH, offsetof(options, quick) },
    { "any-bits", NULL,
      "Also searches what decides the last bits of results, such as work-group size and vector width "
      "(default: only what leaves every bit as it is)",
      .kind = CLI_SWITCH, offsetof(options, any_bits) },
};

/* Progress steps that a search cannot exceed. */
static size_t most_steps(const tuner *t)
{
    size_t steps = 0;

    for (size_t s = 0; s < SHAPES; s++) {
        if (!has_shape(t, &shapes[s])) continue;
        steps++;
        for (size_t i = 0; i < SEARCHES; i++)
            if (takes(t, &searches[i]) && (searches[i].bears_on & shapes[s].is) != 0)
                steps += t->quick ? 1 : ROUNDS;
    }
    return steps;
}

static bool run(tuner *t, const options *o, outcome *result)
{
    const double begin = cli_seconds();
    parameters start[FAMILIES];
    bool good = true;

    for (int family = 0; family < FAMILIES; family++) t->best[family] = start[family] = start_of(t, family);
    t->steps = most_steps(t);
    cli_progress_start("tuning");
    for (int family = 0; good && family < FAMILIES; family++) {
        if (!has_family(t, family)) continue;
        /* The last third is that of f64. */
        const bool more = family == FAMILY_ANY && has_family(t, FAMILY_F64), was_late = t->late;
        t->deadline = begin + o->seconds * (more ? 2.0 / 3 : 1.0);
        t->late = false;
        good = search_all(t, family);
        t->late = t->late || was_late;
    }
    good = good && compare_ends(t, start, result);
    cli_progress_stop();
    return good;
}

int command_tune(int argc, char **argv)
{
    static const cli_syntax syntax = {
        "Searches the parameters of the kernels for one device, prints time with the built-in parameters "
        "and with those found for a list of shapes, and rows for host/tuning.def, and stores the rows in "
        "$XDG_CACHE_HOME/clxent (else ~/.cache/clxent) under the names of device and driver. The other "
        "subcommands use them from then on, unless told --no-tuning; programs hand the file's text to "
        "clxent_context_create(). Nothing else should run meanwhile.\v"
        "JSON keys: device, driver, path (of the stored file), complete (false: the time was up), shapes "
        "(logits, built_in_s, tuned_s, ratio), rows.",
        flags, sizeof flags / sizeof *flags, NULL
    };
    options o = { .seconds = 300 };
    cli_device device;
    outcome result;
    tuner t;

    cli_parse(&syntax, argc, argv, &o);
    if (!cli_find_device(&device)) return CLI_FAILED;
    memset(&t, 0, sizeof t);
    memset(&result, 0, sizeof result);
    t.device = &device;
    t.cpu = (device.type & CL_DEVICE_TYPE_CPU) != 0;
    t.quick = o.quick;
    t.any_bits = o.any_bits;
    t.pairs = o.quick ? 3 : 7;
    t.logits = (size_t)1 << (o.quick ? 20 : t.cpu ? 24 : 26);
    while (t.logits > 65536 && t.logits * sizeof(double) > device.max_allocation) t.logits /= 2;

    char *path = cli_tuning_path(&device);
    if (path == NULL) {
        cli_fail(NULL, "neither XDG_CACHE_HOME nor HOME names a folder to store the result in");
        return CLI_FAILED;
    }
    cli_given.tuning = NULL;
    cli_given.no_tuning = true; /* the search starts from the library's own */
    bool good = can_store(path) && measure_open(&t.m, &device, t.logits) && run(&t, &o, &result);
    if (good) {
        good = store(&t, path);
        if (cli_given.json) print_json(&t, &result, good ? path : "");
        else print_outcome(&t, &result);
        if (good && !cli_given.json) printf("stored      %s\n", path);
    }
    measure_close(&t.m);
    free(path);
    return good ? CLI_DONE : CLI_FAILED;
}
