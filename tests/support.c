/* SPDX-License-Identifier: MIT
 *
 * support.c - see support.h. The work is done in tools/check/; here its faults become assertions.
 */
#include "support.h"

#include "internal.h"
#include "verify_case.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test_device device;
clxent_status (*plan_maker)(clxent_plan **, clxent_context *, const clxent_desc *) = clxent_plan_create;

void *take_memory(size_t n)
{
    void *memory = malloc(n > 0 ? n : 1);
    cr_assert(memory != NULL, "malloc of %zu bytes failed", n);
    return memory;
}

static bool is_set(const char *variable)
{
    const char *value = getenv(variable);
    return value != NULL && strcmp(value, "1") == 0;
}

bool small_run(void) { return is_set("CLXENT_TEST_SMALL"); }

bool full_run(void) { return is_set("CLXENT_TEST_FULL"); }

bool runs_all(void) { return small_run() || full_run(); }

size_t volume(size_t count, size_t few) { return full_run() || count < few ? count : few; }

/* ---- Device -------------------------------------------------------------------------------- */

static cl_device_id find_device(cl_device_type type)
{
    cl_platform_id platforms[16];
    cl_uint count = 0;

    if (clGetPlatformIDs(16, platforms, &count) != CL_SUCCESS) return NULL;
    for (cl_uint p = 0; p < count && p < 16; p++) {
        cl_device_id id;
        /* A platform without devices (CL_DEVICE_NOT_FOUND) is common and no fault. */
        if (clGetDeviceIDs(platforms[p], type, 1, &id, NULL) == CL_SUCCESS) return id;
    }
    return NULL;
}

/* What CLXENT_TEST_TUNING names, NULL where it is not set. */
static char *read_tuning(void)
{
    enum { MOST = 65536 };
    const char *path = getenv("CLXENT_TEST_TUNING");

    if (path == NULL || path[0] == '\0') return NULL;
    FILE *file = fopen(path, "r");
    cr_assert(file != NULL, "CLXENT_TEST_TUNING: %s cannot be opened", path);
    char *text = take_memory(MOST + 1);
    const size_t length = fread(text, 1, MOST, file);
    cr_assert(feof(file), "CLXENT_TEST_TUNING: %s has more than %d bytes", path, MOST);
    text[length] = '\0';
    (void)fclose(file);
    return text;
}

/* Why driver_takes() last answered no; "" where it never did. */
static char not_taken[256];

void open_context(cl_device_id id)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    cl_int code;

    device.id = id;
    device.cl = clCreateContext(NULL, 1, &device.id, NULL, NULL, &code);
    cr_assert(code == CL_SUCCESS, "clCreateContext: %d", code);
    device.queue = clCreateCommandQueue(device.cl, device.id, 0, &code);
    cr_assert(code == CL_SUCCESS, "clCreateCommandQueue: %d", code);
    options.tuning = device.tuning;
    code = clxent_context_create(&device.ctx, device.cl, device.id, &options);
    cr_assert(code == CLXENT_OK, "clxent_context_create: %s", clxent_status_string(code));
    device.has_f64 = device.ctx->device.has_f64;
}

void close_context(void)
{
    clxent_context_destroy(device.ctx);
    if (device.queue != NULL) clReleaseCommandQueue(device.queue);
    if (device.cl != NULL) clReleaseContext(device.cl);
}

void open_device(void)
{
    cl_device_id id = find_device(CL_DEVICE_TYPE_GPU);
    if (id == NULL) id = find_device(CL_DEVICE_TYPE_ALL);
    if (id == NULL && is_set("CLXENT_TEST_ALLOW_NO_DEVICE")) cr_skip("no OpenCL device");
    cr_assert(id != NULL, "no OpenCL device: a driver, and for PoCL a writable POCL_CACHE_DIR, are needed");
    device.tuning = read_tuning();
    open_context(id);
}

bool driver_takes(const clxent_tuning *tuning)
{
    const uint32_t group = tuning->group > tuning->lane_group ? tuning->group : tuning->lane_group;
    uint32_t most;
    const char *fault = clxent_tuning_driver_fault(&device.ctx->device, group, &most);

    if (fault != NULL)
        (void)snprintf(not_taken, sizeof not_taken, "work-groups of %u: %s", (unsigned)group, fault);
    return fault == NULL;
}

void skip_unless_driver_takes(const clxent_tuning *tuning)
{
    if (driver_takes(tuning)) return;
    char reason[sizeof not_taken];
    memcpy(reason, not_taken, sizeof reason);
    not_taken[0] = '\0';
    cr_skip("%s", reason);
}

/* Of this process, by dtype of the logits and output. */
static worst_error worst_errors[CLXENT_F64 + 1][OUTPUTS];

bool wants_ratios(void) { return is_set("CLXENT_TEST_RATIOS"); }

worst_error worst_of(uint32_t output, uint32_t dtype)
{
    int i = 0;
    while ((output >>= 1) != 0) i++;
    return worst_errors[dtype][i];
}

void forget_worst(void) { memset(worst_errors, 0, sizeof worst_errors); }

static void print_worst_errors(void)
{
    for (int i = 0; i < OUTPUTS; i++) {
        for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++) {
            const worst_error w = worst_errors[dtype][i];
            if (w.ratio == 0) continue;
            (void)fprintf(stderr, "worst ratio: %s %s %.3f, %.2f ulp\n", tensor_names[FIRST_OUTPUT + i],
                          clxent_dtype_name(dtype), w.ratio, w.ulps);
        }
    }
}

void close_device(void)
{
    if (wants_ratios()) print_worst_errors();
    if (not_taken[0] != '\0') (void)fprintf(stderr, "[SKIP] a part of this test, %s\n", not_taken);
    not_taken[0] = '\0';
    close_context();
    free(device.tuning);
    memset(&device, 0, sizeof device);
}

const char *last_error(void)
{
    static char text[2048];
    clxent_context_last_error(device.ctx, text, sizeof text);
    return text;
}

void check_words(const char *name, const char *const *words)
{
    for (size_t i = 0; words[i] != NULL; i++)
        cr_assert(strstr(last_error(), words[i]) != NULL, "%s: \"%s\" does not say \"%s\"", name,
                  last_error(), words[i]);
}

cl_command_queue make_out_of_order_queue(void)
{
    cl_command_queue_properties can = 0;
    cl_int code;

    clGetDeviceInfo(device.id, CL_DEVICE_QUEUE_PROPERTIES, sizeof can, &can, NULL);
    if ((can & CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE) == 0) return NULL;
    cl_command_queue queue =
        clCreateCommandQueue(device.cl, device.id, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE, &code);
    cr_assert(code == CL_SUCCESS, "clCreateCommandQueue: %d", code);
    return queue;
}

cl_uint divide_device(cl_device_id parts[64])
{
    const cl_device_partition_property by_one[] = { CL_DEVICE_PARTITION_EQUALLY, 1, 0 };
    cl_device_partition_property can[8] = { 0 };
    cl_uint units = 0, count = 0;

    /* Asked first: some drivers crash where they cannot. */
    clGetDeviceInfo(device.id, CL_DEVICE_PARTITION_PROPERTIES, sizeof can, can, NULL);
    clGetDeviceInfo(device.id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof units, &units, NULL);
    if (can[0] == 0 || units < 2 || units > 64) return 0;
    return clCreateSubDevices(device.id, by_one, 64, parts, &count) == CL_SUCCESS ? count : 0;
}

/* ---- Problems ------------------------------------------------------------------------------ */

clxent_desc make_desc(uint32_t outputs, uint32_t dtype, size_t batch, size_t seq, size_t classes)
{
    clxent_desc desc = CLXENT_DESC_INIT;
    desc.outputs = outputs;
    desc.dtype = dtype;
    desc.batch = batch;
    desc.seq = seq;
    desc.classes = classes;
    return desc;
}

void make_problem(problem *p, const clxent_desc *desc, uint32_t fill, uint64_t seed)
{
    problem_fault f;
    cr_assert(fill_problem(p, desc, fill, seed, &f), "%s", f.text);
}

static clxent_tuning forced;

static clxent_status make_forced(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    return clxent_plan_create_tuned(out, ctx, desc, &forced);
}

void force(const clxent_tuning *tuning)
{
    forced = *tuning;
    plan_maker = make_forced;
}

static clxent_tuning latest_tuning; /* of the plan that was made last */

static clxent_status make_plan(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    const clxent_status status = plan_maker(out, ctx, desc);
    if (status == CLXENT_OK) latest_tuning = (*out)->tuning;
    return status;
}

/* out_of_order: whether flags ask for such a queue; close_runner() releases it. */
static runner open_runner(uint32_t flags)
{
    const bool out_of_order = (flags & CASE_OUT_OF_ORDER) != 0;
    return (runner){ device.cl, device.queue, out_of_order ? make_out_of_order_queue() : NULL, device.ctx,
                     make_plan };
}

static void close_runner(const runner *on)
{
    if (on->out_of_order != NULL) clReleaseCommandQueue(on->out_of_order);
}

void run_once(const char *name, clxent_plan *plan, const problem *p, uint32_t outputs, uint32_t flags,
              clxent_host_args *out)
{
    const clxent_host_args absent = CLXENT_HOST_ARGS_INIT;
    const runner on = open_runner(flags);
    execution e;
    problem_fault f;

    *out = absent;
    cr_assert(execute(&e, &on, plan, p, outputs, NULL, flags, &f), "%s: %s", name, f.text);
    for (int t = FIRST_OUTPUT; t < TENSORS; t++) {
        const image *i = image_of(&e, t);
        clxent_output *array = array_of(out, t);
        if ((outputs >> (t - FIRST_OUTPUT) & 1u) == 0) continue;
        array->size = i->bytes;
        array->data = take_memory(i->bytes);
        memcpy(array->data, i->after + i->front, i->bytes);
    }
    free_execution(&e);
    close_runner(&on);
}

clxent_plan *plan_with(const clxent_tuning *tuning, const clxent_desc *desc)
{
    clxent_plan *plan;
    cr_assert(clxent_plan_create_tuned(&plan, device.ctx, desc, tuning) == CLXENT_OK, "%s", last_error());
    return plan;
}

void run_with(const char *name, const clxent_tuning *tuning, const problem *p, uint32_t flags,
              clxent_host_args *out)
{
    clxent_plan *plan = plan_with(tuning, &p->desc);
    run_once(name, plan, p, p->desc.outputs, flags, out);
    clxent_plan_destroy(plan);
}

double get_logit(const problem *p, size_t i) { return get_element(p->args.logits.data, p->desc.dtype, i); }

void set_logit(const problem *p, size_t i, double value)
{
    put_element((void *)p->args.logits.data, p->desc.dtype, i, value);
}

int64_t target_of(const problem *p, size_t row)
{
    return get_target(p->args.targets.data, p->desc.target_type, row);
}

void set_target(const problem *p, size_t row, int64_t value)
{
    put_target((void *)p->args.targets.data, p->desc.target_type, row, value);
}

double real_of(const problem *p, const clxent_output *out, size_t i)
{
    return get_element(out->data, real_dtype(&p->desc), i);
}

void check_same_outputs(const char *what, const clxent_host_args *a, const clxent_host_args *b)
{
    size_t compared = 0;
    for (int t = FIRST_OUTPUT; t < TENSORS; t++) {
        const clxent_output *x = array_of(a, t), *y = array_of(b, t);
        if (x->data == NULL || y->data == NULL) continue;
        compared++;
        cr_assert(x->size == y->size && memcmp(x->data, y->data, x->size) == 0, "%s: %s has other bits", what,
                  tensor_names[t]);
    }
    cr_assert(compared > 0, "%s: nothing to compare", what);
}

cl_mem new_buffer(cl_context cl, cl_mem_flags flags, size_t bytes, const void *data)
{
    cl_int code;
    void *zeros = take_memory(bytes);
    memset(zeros, 0, bytes);
    cl_mem mem =
        clCreateBuffer(cl, flags | CL_MEM_COPY_HOST_PTR, bytes, data != NULL ? (void *)data : zeros, &code);
    cr_assert(code == CL_SUCCESS, "clCreateBuffer of %zu bytes: %d", bytes, code);
    free(zeros);
    return mem;
}

static void count_programs(const char *message, void *payload)
{
    int *counts = payload;
    counts[0] += strncmp(message, "program: ", 9) == 0;
    counts[1] += strncmp(message, "program: padding.cl ", 20) == 0;
}

clxent_context *make_counting_context(int counts[2])
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    clxent_context *ctx;
    options.log = count_programs;
    options.log_payload = counts;
    counts[0] = counts[1] = 0;
    cr_assert(clxent_context_create(&ctx, device.cl, device.id, &options) == CLXENT_OK);
    return ctx;
}

void run_from_statistics_of(const char *name, const problem *p, uint32_t saved_with)
{
    const uint32_t outputs[] = { saved_with | CLXENT_OUTPUT_STATISTICS, CLXENT_OUTPUT_GRADIENT };
    const runner on = open_runner(0);
    worst_error worst[OUTPUTS] = { 0 };
    execution e[2];
    problem_fault f;

    for (int i = 0; i < 2; i++) {
        clxent_desc desc = p->desc;
        clxent_plan *plan;
        desc.outputs = outputs[i];
        cr_assert(plan_maker(&plan, device.ctx, &desc) == CLXENT_OK, "%s: %s", name, last_error());
        cr_assert(execute(&e[i], &on, plan, p, outputs[i], i == 0 ? NULL : &e[0], 0, &f), "%s: %s", name,
                  f.text);
        clxent_plan_destroy(plan);
    }
    problem gradient = *p; /* nothing else is there to compare */
    gradient.desc.outputs = CLXENT_OUTPUT_GRADIENT;
    cr_assert(check_reference(&gradient, &e[1], worst, &f), "%s: %s", name, f.text);
    free_execution(&e[0]);
    free_execution(&e[1]);
    close_runner(&on);
}

void free_outputs(clxent_host_args *out)
{
    for (int t = FIRST_OUTPUT; t < TENSORS; t++) free(array_of(out, t)->data);
}

void free_run(problem *p, clxent_host_args *out)
{
    free_outputs(out);
    free_problem(p);
}

/* Whether the test left the data as make_problem() made them. */
static bool has_drawn_data(const problem *p)
{
    bool same = true;
    problem drawn;
    problem_fault f;

    if (!fill_problem(&drawn, &p->desc, p->fill, p->seed, &f)) same = false;
    for (int t = 0; same && t < FIRST_OUTPUT; t++) {
        const clxent_output *given = array_of(&p->args, t), *want = array_of(&drawn.args, t);
        same = given->size == want->size && (given->data == NULL) == (want->data == NULL) &&
               (given->size == 0 || memcmp(given->data, want->data, given->size) == 0);
    }
    free_problem(&drawn);
    return same;
}

const char *repeat_text(const problem *p, uint32_t flags)
{
    static char text[CASE_TEXT_SIZE + 1024];
    const verify_case c = { p->desc, p->fill, flags, p->args.max_chunk_bytes, p->seed };
    const clxent_tuning *t = &latest_tuning;
    char fields[CASE_TEXT_SIZE];
    problem_fault f;
    int length;

    case_write(&c, fields);
    length = snprintf(text, sizeof text, "clxent verify --case '%s'", fields);
    if (!case_check(&c, &f))
        length += snprintf(text + length, sizeof text - (size_t)length, " (which takes no such case: %.300s)",
                           f.text);
    if (!has_drawn_data(p))
        length += snprintf(text + length, sizeof text - (size_t)length, " (whose data the test has changed)");
    if (plan_maker != clxent_plan_create)
        (void)snprintf(
            text + length, sizeof text - (size_t)length,
            " (with forced parameters: TUNE(ANY, \"*\", ANY_DTYPE, %u, %u, %u, %u, %u, %u, %u, %u, %u, %u, "
            "%u, %u, %u))",
            (unsigned)t->group, (unsigned)t->vector, (unsigned)t->block, (unsigned)t->cache,
            (unsigned)t->elements, (unsigned)t->stream, (unsigned)t->piece, (unsigned)t->split,
            (unsigned)t->lane_classes, (unsigned)t->lane_group, (unsigned)t->lane_vector,
            (unsigned)t->lane_cache, (unsigned)t->native_exp);
    return text;
}

void run_case(const char *name, const problem *p, uint32_t flags)
{
    const runner on = open_runner(flags);
    const uint32_t once = small_run() ? CASE_RUN_ONCE : 0;
    problem_fault f;

    if (!check_problem(&on, p, flags | once, worst_errors[p->desc.dtype], &f))
        cr_assert_fail("%s: %s\n  repeat    %s", name, f.text, repeat_text(p, flags));
    close_runner(&on);
}

void run_filled_case(const char *name, const clxent_desc *desc, uint32_t fill, uint64_t seed, uint32_t flags)
{
    const verify_case c = { *desc, fill, flags, 0, seed };
    run_verify_case(name, &c);
}

/* ---- Lines of cases ------------------------------------------------------------------------- */

enum { MOST_FIELDS = 32, LINE_SIZE = 4096, SMALL_LOGITS = 16000 };

typedef struct line_field {
    const char *name, *value; /* a value, or a list */
} line_field;

/* The fields of this kind of run, each once: a later one replaces an earlier one. Cuts text into them. */
static size_t split_line(char *text, line_field fields[MOST_FIELDS])
{
    size_t count = 0;

    for (char *item = strtok(text, ";"); item != NULL; item = strtok(NULL, ";")) {
        char *value = strchr(item, '=');
        size_t i = 0;
        cr_assert(value != NULL, "'%s' is no field=value", item);
        *value++ = '\0';
        if (strncmp(item, "all:", 4) == 0 && !runs_all()) continue;
        if (strncmp(item, "small:", 6) == 0 && !small_run()) continue;
        const char *colon = strchr(item, ':'), *name = colon != NULL ? colon + 1 : item;
        while (i < count && strcmp(fields[i].name, name) != 0) i++;
        cr_assert(i < MOST_FIELDS);
        fields[i] = (line_field){ name, value };
        if (i == count) count++;
    }
    return count;
}

static size_t list_length(const char *list)
{
    size_t length = 1;
    for (; *list != '\0'; list++) length += *list == '|';
    return length;
}

static size_t count_cases(const line_field *fields, size_t count)
{
    size_t longest = 0;
    for (size_t k = 0; k < count; k++) {
        const size_t length = list_length(fields[k].value);
        if (strcmp(fields[k].name, "cases") == 0) return strtoul(fields[k].value, NULL, 10);
        if (length > longest) longest = length;
    }
    return longest;
}

/* Element i of the list, counted round, and its length in characters. */
static const char *list_element(const char *list, size_t i, size_t *size)
{
    for (i %= list_length(list); i > 0; i--) list = strchr(list, '|') + 1;
    *size = strcspn(list, "|");
    return list;
}

static void pad_rows(clxent_desc *desc, bool same)
{
    const size_t slab = desc->classes * desc->inner;
    desc->row_stride = slab + 3;
    desc->gradient_row_stride = slab + (same ? 3 : 5);
    desc->probabilities_row_stride = slab + (same ? 3 : 1);
    desc->target_row_stride = slab + (same ? 3 : 7);
}

/* Case i of the line; false where this run has no such cases. */
static bool read_line(const case_line *line, const line_field *fields, size_t count, size_t i, verify_case *c)
{
    char text[CASE_TEXT_SIZE] = "";
    const char *pad = "";
    problem_fault f;

    for (size_t k = 0; k < count; k++) {
        const char *name = fields[k].name;
        size_t used = strlen(text), size;
        const char *value = list_element(fields[k].value, i, &size);
        if (strcmp(name, "only") == 0 && !(strcmp(value, "all") == 0 ? runs_all() : full_run())) return false;
        if (strcmp(name, "pad") == 0) pad = value;
        if (strcmp(name, "only") == 0 || strcmp(name, "pad") == 0 || strcmp(name, "cases") == 0) continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s=%.*s", used > 0 ? ";" : "", name,
                                 (int)size, value);
        cr_assert(used < sizeof text, "%s: too long", line->name);
    }
    if (!case_read(c, text, &f)) {
        cr_assert(strncmp(f.text, "outputs is 0x", 13) == 0, "%s: %s: %s", line->name, text, f.text);
        c->desc.outputs &= possible_outputs(&c->desc);
    }
    if (pad[0] == 'o' || pad[0] == 's') pad_rows(&c->desc, pad[0] == 's');
    c->seed += i;
    cr_assert(case_check(c, &f), "%s: %s: %s", line->name, text, f.text);
    return (c->desc.dtype != CLXENT_F64 || device.has_f64) &&
           (!small_run() || c->desc.batch * c->desc.seq * c->desc.classes <= SMALL_LOGITS);
}

void each_case(const case_line *lines, size_t count, void (*check)(const char *name, const verify_case *c))
{
    for (const case_line *line = lines; line < lines + count; line++) {
        char text[LINE_SIZE];
        line_field fields[MOST_FIELDS];
        verify_case c;

        cr_assert(strlen(line->fields) < sizeof text, "%s: too long", line->name);
        strcpy(text, line->fields);
        const size_t of_line = split_line(text, fields), cases = count_cases(fields, of_line);
        for (size_t i = 0; i < cases; i++)
            if (read_line(line, fields, of_line, i, &c)) check(line->name, &c);
    }
}

void run_verify_case(const char *name, const verify_case *c)
{
    problem p;
    make_problem(&p, &c->desc, c->fill, c->seed);
    p.args.max_chunk_bytes = c->chunk_bytes;
    run_case(name, &p, c->checks);
    free_problem(&p);
}

void run_lines(const case_line *lines, size_t count) { each_case(lines, count, run_verify_case); }

static clxent_desc latest_desc;

static void keep_desc(const char *name, const verify_case *c)
{
    (void)name;
    latest_desc = c->desc;
}

clxent_desc desc_of(const char *fields)
{
    const case_line line = { fields, fields };
    each_case(&line, 1, keep_desc);
    return latest_desc;
}
