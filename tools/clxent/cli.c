/* SPDX-License-Identifier: MIT
 *
 * cli.c - what the subcommands share; see cli.h.
 */
#define _GNU_SOURCE /* asprintf, strcasestr */
#include "cli.h"
#include "problem.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *command = "clxent"; /* what messages begin with */

/* ---- Messages ------------------------------------------------------------------------------- */

bool cli_fail(const char *subject, const char *format, ...)
{
    char message[2048];
    va_list list;

    cli_progress_stop();
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    /* One line, whatever a driver or a file name puts into it. */
    for (char *at = message; *at != '\0'; at++)
        if (iscntrl((unsigned char)*at)) *at = ' ';

    fprintf(stderr, "%s: ", command);
    for (const char *at = subject; at != NULL && *at != '\0'; at++)
        fputc(iscntrl((unsigned char)*at) ? '?' : *at, stderr);
    fprintf(stderr, "%s%s\n", subject != NULL ? ": " : "", message);
    return false;
}

bool cli_fail_status(const clxent_context *ctx, const char *subject, clxent_status status)
{
    char text[1024] = "";
    if (ctx != NULL) clxent_context_last_error(ctx, text, sizeof text);
    (void)cli_fail(subject, "%s", text[0] != '\0' ? text : clxent_status_string(status));
    if (status == CLXENT_ERROR_ARRAYS_IN_USE) exit(CLI_FAILED);
    return false;
}

/* ---- Flags ---------------------------------------------------------------------------------- */

cli_common cli_given;

enum { EVERYWHERE = 100 }; /* the last group of the help */
static const cli_flag common_flags[] = {
    { .help = "Everywhere:", .group = EVERYWHERE },
    { "device", "N|NAME",
      "OpenCL device: its number in `clxent info`, or part of its name in any case (default: the first "
      "GPU, else the first device)",
      .kind = CLI_TEXT, offsetof(cli_common, device), .group = EVERYWHERE },
    { "json", NULL, "Print one JSON object instead of text (default: text)", .kind = CLI_SWITCH,
      offsetof(cli_common, json), .group = EVERYWHERE },
    { "no-tuning", NULL,
      "Use the built-in parameters of kernels, not those that clxent tune stored for the device (default: "
      "stored ones where there are any)",
      .kind = CLI_SWITCH, offsetof(cli_common, no_tuning), .group = EVERYWHERE },
    { "tuning", "FILE",
      "Use the parameters of kernels in FILE, written as clxent tune stores them (default: those stored "
      "for the device)",
      .kind = CLI_PATH, offsetof(cli_common, tuning), .group = EVERYWHERE },
};

size_t cli_size(struct argp_state *state, const char *flag, const char *text, size_t smallest)
{
    char *end = NULL;
    uintmax_t value = 0;

    errno = 0;
    if (isdigit((unsigned char)text[0])) value = strtoumax(text, &end, 10);
    if (end == NULL || *end != '\0' || errno != 0 || value > SIZE_MAX / 2 || value < smallest)
        argp_error(state, "--%s is '%s': takes a whole number of at least %zu", flag, text, smallest);
    return (size_t)value;
}

static double number(struct argp_state *state, const cli_flag *flag, const char *text)
{
    char *end = NULL;
    const double value = strtod(text, &end);

    /* strtod() skips leading space; NaN fails the comparisons. */
    if (end != text && *end == '\0' && !isspace((unsigned char)text[0]) && value >= flag->least &&
        value <= flag->most)
        return value;
    if (flag->most < 1e300)
        argp_error(state, "--%s is '%s': takes a number from %g to %g", flag->name, text, flag->least,
                   flag->most);
    else if (flag->least > -1e300)
        argp_error(state, "--%s is '%s': takes a finite number of at least %g", flag->name, text,
                   flag->least);
    else argp_error(state, "--%s is '%s': takes a finite number", flag->name, text);
    return value;
}

static const char *path(struct argp_state *state, const cli_flag *flag, const char *text)
{
    if (text[0] == '\0') argp_error(state, "--%s is '': takes a path", flag->name);
    if (strcmp(text, "-") == 0)
        argp_error(state,
                   "--%s is '-': takes the path of a file, not standard input or output (./- for that name)",
                   flag->name);
    return text;
}

static const char *png(struct argp_state *state, const cli_flag *flag, const char *text)
{
    const size_t length = strlen(path(state, flag, text));

    if (length < 4 || strcasecmp(text + length - 4, ".png") != 0)
        argp_error(state, "--%s is '%s': takes a .png file", flag->name, text);
    return text;
}

/* Index of text among the words. */
static uint32_t choice(struct argp_state *state, const cli_flag *flag, const char *text)
{
    const size_t length = strlen(text);
    char takes[256] = "";
    uint32_t index = 0;

    for (const char *word = flag->words != NULL ? flag->words : flag->argument;; index++) {
        const size_t n = strcspn(word, "|"), used = strlen(takes);
        if (n == length && strncmp(word, text, n) == 0) return index;
        snprintf(takes + used, sizeof takes - used, "%s%.*s", index > 0 ? ", " : "", (int)n, word);
        if (word[n] == '\0') break;
        word += n + 1;
    }
    argp_error(state, "--%s is '%s': takes %s", flag->name, text, takes);
    return index;
}

static void take(struct argp_state *state, const cli_flag *flag, char *text, void *options)
{
    void *to = (char *)options + flag->offset;

    if (flag->mark != 0) memcpy((char *)options + flag->mark, &flag->name, sizeof flag->name);
    switch (flag->kind) {
    case CLI_SWITCH: *(bool *)to = true; break;
    case CLI_TEXT: *(const char **)to = text; break;
    case CLI_PATH: *(const char **)to = path(state, flag, text); break;
    case CLI_PNG: *(const char **)to = png(state, flag, text); break;
    case CLI_SIZE: *(size_t *)to = cli_size(state, flag->name, text, (size_t)flag->least); break;
    case CLI_NUMBER: *(double *)to = number(state, flag, text); break;
    case CLI_CHOICE: *(uint32_t *)to = (uint32_t)flag->least + choice(state, flag, text); break;
    }
}

/* A number or a part of a name; which of them there are is not known yet. */
static void check_device(struct argp_state *state)
{
    const char *text = cli_given.device;

    if (text == NULL) return;
    const bool negative =
        text[0] == '-' && text[1] != '\0' && text[1 + strspn(text + 1, "0123456789")] == '\0';
    if (text[0] == '\0' || negative)
        argp_error(state, "--device is '%s': takes a number of at least 0, or part of a name", text);
}

/* The flags of the subcommand, then those of all; keys count through both. */
typedef struct parsing {
    const cli_syntax *syntax;
    void *options;
} parsing;

enum { COMMON_FLAGS = sizeof common_flags / sizeof *common_flags, MOST_FLAGS = 64, FIRST_KEY = 0x1000 };

static const cli_flag *flag_of(const cli_syntax *syntax, size_t i)
{
    return i < syntax->num_flags ? &syntax->flags[i] : &common_flags[i - syntax->num_flags];
}

static int key_of(const cli_flag *flag, size_t i)
{
    return flag->letter != 0 ? flag->letter : flag->name != NULL ? FIRST_KEY + (int)i : 0;
}

static error_t parse(int key, char *text, struct argp_state *state)
{
    const parsing *p = state->input;

    if (key == ARGP_KEY_ARG) argp_error(state, "unexpected argument '%s'", text);
    if (key == ARGP_KEY_END) check_device(state);
    if (key == ARGP_KEY_END && p->syntax->check != NULL) p->syntax->check(p->options, state);
    for (size_t i = 0; key > 0 && i < COMMON_FLAGS + p->syntax->num_flags; i++) {
        const cli_flag *flag = flag_of(p->syntax, i);
        if (key != key_of(flag, i)) continue;
        take(state, flag, text, i < p->syntax->num_flags ? p->options : &cli_given);
        return 0;
    }
    return ARGP_ERR_UNKNOWN;
}

void cli_parse(const cli_syntax *syntax, int argc, char **argv, void *options)
{
    parsing p = { syntax, options };
    struct argp_option list[MOST_FLAGS + 1] = { { 0 } }, *next = list;

    assert(COMMON_FLAGS + syntax->num_flags <= MOST_FLAGS);
    for (size_t i = 0; i < COMMON_FLAGS + syntax->num_flags; i++) {
        const cli_flag *f = flag_of(syntax, i);
        const int hidden = f->help == NULL ? OPTION_HIDDEN : 0;
        if (f->name != NULL || f->help != NULL)
            *next++ = (struct argp_option){ f->name, key_of(f, i), f->argument, hidden, f->help, f->group };
    }
    const struct argp argp = { list, parse, NULL, syntax->about, NULL, NULL, NULL };
    command = argv[0];
    argp_err_exit_status = CLI_USAGE;
    argp_parse(&argp, argc, argv, 0, NULL, &p);
}

/* ---- Device --------------------------------------------------------------------------------- */

static const struct fact {
    size_t offset, size;
    cl_device_info parameter;
} facts[] = {
#define FACT(member) offsetof(cli_device, member), sizeof((const cli_device *)NULL)->member
    { FACT(type), CL_DEVICE_TYPE },
    { FACT(name), CL_DEVICE_NAME },
    { FACT(vendor), CL_DEVICE_VENDOR },
    { FACT(driver), CL_DRIVER_VERSION },
    { FACT(version), CL_DEVICE_VERSION },
    { FACT(compute_units), CL_DEVICE_MAX_COMPUTE_UNITS },
    { FACT(max_work_group), CL_DEVICE_MAX_WORK_GROUP_SIZE },
    { FACT(memory), CL_DEVICE_GLOBAL_MEM_SIZE },
    { FACT(max_allocation), CL_DEVICE_MAX_MEM_ALLOC_SIZE },
    { FACT(local_memory), CL_DEVICE_LOCAL_MEM_SIZE },
    { FACT(cache), CL_DEVICE_GLOBAL_MEM_CACHE_SIZE },
    { FACT(host_memory), CL_DEVICE_HOST_UNIFIED_MEMORY },
    { FACT(f64), CL_DEVICE_DOUBLE_FP_CONFIG },
    { FACT(queue), CL_DEVICE_QUEUE_PROPERTIES },
};

static cli_device describe(cl_platform_id platform, cl_device_id id, size_t index)
{
    cli_device device = { .platform = platform, .id = id, .index = index };

    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        char *fact = (char *)&device + facts[i].offset;
        if (clGetDeviceInfo(id, facts[i].parameter, facts[i].size, fact, NULL) != CL_SUCCESS)
            memset(fact, 0, facts[i].size);
    }
    if (device.name[0] == '\0') strcpy(device.name, "unnamed device");
    return device;
}

size_t cli_list_devices(cli_device **devices)
{
    enum { MOST = 64 };
    cl_platform_id platforms[MOST];
    cl_uint num_platforms = 0;
    size_t count = 0;

    *devices = NULL;
    if (clGetPlatformIDs(MOST, platforms, &num_platforms) != CL_SUCCESS) return 0;
    for (cl_uint p = 0; p < num_platforms && p < MOST; p++) {
        cl_device_id ids[MOST];
        cl_uint num_ids = 0;

        if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, MOST, ids, &num_ids) != CL_SUCCESS) continue;
        cli_device *more = realloc(*devices, (count + MOST) * sizeof *more);
        if (more == NULL) return count;
        *devices = more;
        for (cl_uint d = 0; d < num_ids && d < MOST; d++, count++)
            more[count] = describe(platforms[p], ids[d], count);
    }
    return count;
}

bool cli_find_device(cli_device *device)
{
    const char *wanted = cli_given.device;
    const bool number = wanted != NULL && wanted[strspn(wanted, "0123456789")] == '\0';
    cli_device *devices;
    const size_t count = cli_list_devices(&devices);
    size_t found = 0;

    if (number) {
        errno = 0;
        const unsigned long long index = strtoull(wanted, NULL, 10);
        found = errno == 0 && index < count ? (size_t)index : count;
    } else {
        while (found < count && (wanted == NULL ? (devices[found].type & CL_DEVICE_TYPE_GPU) == 0
                                                : strcasestr(devices[found].name, wanted) == NULL))
            found++;
        if (wanted == NULL && found == count) found = 0;
    }
    if (found < count) *device = devices[found];
    else if (count == 0)
        cli_fail(NULL,
                 "no OpenCL device: install a driver (for the CPU Debian's pocl-opencl-icd, whose cache "
                 "directory must be writable)");
    else if (number && count == 1) cli_fail(NULL, "--device %s: there is no such device: takes 0", wanted);
    else if (number)
        cli_fail(NULL, "--device %s: there is no such device: takes 0 to %zu", wanted, count - 1);
    else cli_fail(NULL, "--device '%s': no device has that name", wanted);
    free(devices);
    return found < count;
}

static char latest_line[1024]; /* of the log, for the one failure that leaves no context to ask */

static void read_log(const char *message, void *payload)
{
    cli_session *session = payload;
    snprintf(latest_line, sizeof latest_line, "%s", message);
    if (strncmp(message, "program: ", 9) == 0) atomic_fetch_add(&session->programs, 1);
}

/* ---- The cache folder ------------------------------------------------------------------------ */

char *cli_cache_path(const char *name)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    const bool given = cache != NULL && cache[0] == '/'; /* the specification says to ignore relative ones */
    char *path;

    if (!given && (home == NULL || home[0] != '/')) return NULL;
    return asprintf(&path, "%s%s/clxent/%s", given ? cache : home, given ? "" : "/.cache", name) < 0 ? NULL
                                                                                                     : path;
}

bool cli_make_folders(const char *path, mode_t mode)
{
    char *copy = strdup(path);
    bool good = copy != NULL;

    for (char *at = copy; good && (at = strchr(at + 1, '/')) != NULL;) {
        *at = '\0';
        good = mkdir(copy, mode) == 0 || errno == EEXIST;
        *at = '/';
    }
    free(copy);
    return good;
}

/* ---- Stored parameters ---------------------------------------------------------------------- */

/* Device and driver, as far as file names can tell them, and a hash (FNV-1a) of both whole. */
char *cli_tuning_path(const cli_device *device)
{
    const char *names[] = { device->name, device->driver };
    char texts[2][81] = { "", "" }, name[160];
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t n = 0; n < 2; n++) {
        for (size_t i = 0; i < strlen(names[n]) + 1; i++)
            hash = (hash ^ (unsigned char)names[n][i]) * 0x100000001b3u;
        snprintf(texts[n], sizeof texts[n], "%s", names[n]);
        for (char *at = texts[n]; *at != '\0'; at++)
            if (!isalnum((unsigned char)*at) && *at != '.' && *at != '-') *at = '_';
    }
    snprintf(name, sizeof name, "%s-%.40s-%016" PRIx64 ".def", texts[0], texts[1], hash);
    return cli_cache_path(name);
}

/* The text of path, NULL where there is none. Says what is wrong with a file that is there, and adds what follows. */
static char *read_tuning(const char *path, const char *follows)
{
    enum { MOST = 65536 };
    FILE *file = fopen(path, "r");
    char *text = file != NULL ? calloc(1, MOST + 2) : NULL;

    if (file == NULL) {
        if (cli_given.tuning != NULL || (errno != ENOENT && errno != ENOTDIR))
            cli_fail(path, "cannot be read: %s%s", strerror(errno), follows);
        return NULL;
    }
    const size_t length = text != NULL ? fread(text, 1, MOST + 1, file) : 0;
    const bool unread = ferror(file) != 0, whole = text != NULL && length <= MOST && strlen(text) == length;
    if (unread) cli_fail(path, "cannot be read: %s%s", strerror(errno), follows);
    else if (!whole && text != NULL) cli_fail(path, "is no text of at most %d bytes%s", MOST, follows);
    fclose(file);
    if (whole && !unread) return text;
    free(text);
    return NULL;
}

static clxent_status create_context(cli_session *session, const char *tuning, clxent_context **ctx)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;

    options.log = read_log;
    options.log_payload = session;
    options.tuning = tuning;
    options.store = session->store;
    return clxent_context_create(ctx, session->cl, session->device.id, &options);
}

static bool fail_context(const cli_session *session, clxent_status status)
{
    return cli_fail(session->device.name, "%s",
                    latest_line[0] != '\0' ? latest_line : clxent_status_string(status));
}

bool cli_retune(cli_session *session, const char *text)
{
    clxent_context *ctx;
    const clxent_status status = create_context(session, text, &ctx);

    if (status != CLXENT_OK) return fail_context(session, status);
    clxent_context_destroy(session->ctx);
    session->ctx = ctx;
    return true;
}

bool cli_open(cli_session *session, const cli_device *device, bool stored)
{
    const cl_context_properties properties[] = { CL_CONTEXT_PLATFORM, (cl_context_properties)device->platform,
                                                 0 };
    const bool asked = cli_given.tuning != NULL; /* then nothing else will do */
    const char *follows = asked ? "" : "; the built-in parameters are used";
    char *path = asked ? strdup(cli_given.tuning) : cli_given.no_tuning ? NULL : cli_tuning_path(device);
    char *text = path != NULL ? read_tuning(path, follows) : NULL;
    clxent_status status = CLXENT_ERROR_INTERNAL;
    cl_int code;

    memset(session, 0, sizeof *session);
    session->device = *device;
    if (asked && text == NULL) goto done;
    if (stored) session->store = cli_store(device);
    session->cl = clCreateContext(properties, 1, &device->id, NULL, NULL, &code);
    if (session->cl != NULL) session->queue = clCreateCommandQueue(session->cl, device->id, 0, &code);
    if (session->queue == NULL) {
        cli_fail(device->name, "%s: %s", session->cl == NULL ? "clCreateContext" : "clCreateCommandQueue",
                 clxent_status_string(code));
        goto done;
    }
    status = create_context(session, text, &session->ctx);
    const bool refused = text != NULL && status == CLXENT_ERROR_INVALID_ARGUMENT;
    if (refused) cli_fail(path, "%s%s", latest_line, follows);
    if (refused && !asked) status = create_context(session, NULL, &session->ctx);
    if (status != CLXENT_OK && !(refused && asked)) fail_context(session, status);
    if (status == CLXENT_OK && text != NULL && !refused) {
        session->tuning = path;
        path = NULL;
    }

done:
    free(path);
    free(text);
    if (status != CLXENT_OK) cli_close(session);
    return status == CLXENT_OK;
}

void cli_close(cli_session *session)
{
    clxent_context_destroy(session->ctx);
    if (session->queue != NULL) clReleaseCommandQueue(session->queue);
    if (session->cl != NULL) clReleaseContext(session->cl);
    free(session->tuning);
    free(session->store.payload);
    memset(session, 0, sizeof *session);
}

/* ---- Compiling ------------------------------------------------------------------------------ */

/* Outputs of clxent_run_host(): it records bad targets whether or not its caller asks. */
static uint32_t outputs_of(const clxent_desc *desc)
{
    const uint32_t of_targets = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT |
                                CLXENT_OUTPUT_CORRECT | CLXENT_OUTPUT_HIDDEN_GRADIENT |
                                CLXENT_OUTPUT_WEIGHT_GRADIENT | CLXENT_OUTPUT_BIAS_GRADIENT;
    const bool records = has_index_targets(desc) && desc->bad_target == CLXENT_BAD_TARGET_REPORT &&
                         (desc->outputs & of_targets) != 0;
    return desc->outputs | (records ? CLXENT_OUTPUT_BAD_TARGETS : 0u);
}

clxent_status cli_compile(cli_session *session, const clxent_desc *desc, double *seconds)
{
    const double start = cli_seconds();
    clxent_desc complete = *desc;
    clxent_plan *plan;

    complete.outputs = outputs_of(desc);
    cli_progress_compiling(true);
    const clxent_status status = clxent_plan_create(&plan, session->ctx, &complete);
    if (status == CLXENT_OK)
        (void)clxent_plan_warm(plan, session->queue); /* where it fails the run tells why */
    clxent_plan_destroy(plan);
    cli_progress_compiling(false);
    *seconds += cli_seconds() - start;
    return status;
}

/* ---- Results -------------------------------------------------------------------------------- */

json_t *cli_json_number(double value)
{
    if (isnan(value)) return json_string("NaN");
    if (isinf(value)) return json_string(value > 0 ? "Infinity" : "-Infinity");
    return json_real(value);
}

json_t *cli_json_known(double value) { return isnan(value) ? json_null() : cli_json_number(value); }

json_t *cli_json_text(const char *text)
{
    json_t *string = json_string(text);
    if (string == NULL) { /* not UTF-8 */
        char *copy = strdup(text);
        for (char *at = copy; at != NULL && *at != '\0'; at++)
            if ((unsigned char)*at > '~') *at = '?';
        string = json_string(copy != NULL ? copy : "");
        free(copy);
    }
    return string;
}

void cli_json_print(json_t *object)
{
    json_dumpf(object, stdout, JSON_REAL_PRECISION(17) | JSON_ENSURE_ASCII);
    putchar('\n');
    json_decref(object);
}

bool cli_terminal_is_utf8(void)
{
    static const char *const names[] = { "LC_ALL", "LC_CTYPE", "LANG" };
    for (size_t i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        if (value != NULL && value[0] != '\0')
            return strcasestr(value, "utf-8") != NULL || strcasestr(value, "utf8") != NULL;
    }
    return false;
}

double cli_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void cli_wait_init(pthread_cond_t *changed)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

void cli_wait(pthread_cond_t *changed, pthread_mutex_t *lock, double seconds)
{
    const double moment = cli_seconds() + seconds, whole = floor(moment);
    const struct timespec until = { (time_t)whole, (long)((moment - whole) * 1e9) };
    pthread_cond_timedwait(changed, lock, &until);
}

/* ---- Progress ------------------------------------------------------------------------------- */

/* A thread draws, so that one long call shows that it is alive. fraction is in 1/1000, -1 while unknown. */
static struct {
    bool running;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop; /* under lock */
    atomic_int fraction;
    atomic_int compiling; /* calls that are at it */
    const char *what;
} progress = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void draw(double seconds)
{
    enum { WIDTH = 40 };
    const int fraction = atomic_load(&progress.fraction);
    const char *more = atomic_load(&progress.compiling) > 0 ? ": compiling kernels" : "";

    if (fraction < 0) {
        fprintf(stderr, "\r\033[K%s%s %c %.0f s", progress.what, more, "|/-\\"[(int)(seconds * 5) % 4],
                seconds);
    } else {
        char bar[WIDTH + 1];
        for (int i = 0; i < WIDTH; i++) bar[i] = i * 1000 < fraction * WIDTH ? '#' : '.';
        bar[WIDTH] = '\0';
        fprintf(stderr, "\r\033[K%s [%s] %3d %% %.0f s%s", progress.what, bar, fraction / 10, seconds, more);
    }
    fflush(stderr);
}

static void *draw_until_stopped(void *start)
{
    const double began = *(const double *)start;
    bool drawn = false;

    pthread_mutex_lock(&progress.lock);
    while (!progress.stop) {
        const double seconds = cli_seconds() - began;
        if (seconds >= 1.0) draw(seconds), drawn = true;
        cli_wait(&progress.changed, &progress.lock, drawn ? 0.2 : 1.0);
    }
    pthread_mutex_unlock(&progress.lock);
    if (drawn) fputs("\r\033[K", stderr);
    return NULL;
}

void cli_progress_start(const char *what)
{
    static double began;

    if (!isatty(STDERR_FILENO) || progress.running) return;
    began = cli_seconds();
    progress.what = what;
    progress.stop = false;
    atomic_store(&progress.fraction, -1);
    cli_wait_init(&progress.changed);
    progress.running = pthread_create(&progress.thread, NULL, draw_until_stopped, &began) == 0;
}

void cli_progress_compiling(bool begins) { atomic_fetch_add(&progress.compiling, begins ? 1 : -1); }

void cli_progress_set(double fraction) { atomic_store(&progress.fraction, (int)(1000 * fraction)); }

void cli_progress_stop(void)
{
    if (!progress.running) return;
    pthread_mutex_lock(&progress.lock);
    progress.stop = true;
    pthread_cond_signal(&progress.changed);
    pthread_mutex_unlock(&progress.lock);
    pthread_join(progress.thread, NULL);
    pthread_cond_destroy(&progress.changed);
    progress.running = false;
}
