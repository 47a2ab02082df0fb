/* SPDX-License-Identifier: MIT
 *
 * cli.c - what the subcommands share; see cli.h.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *command = "clxent"; /* what messages begin with */

/* ---- Messages ------------------------------------------------------------------------------- */

int cli_fail(const char *subject, const char *format, ...)
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
    return CLI_FAILED;
}

int cli_fail_status(const clxent_context *ctx, const char *subject, clxent_status status)
{
    char text[1024] = "";
    if (ctx != NULL) clxent_context_last_error(ctx, text, sizeof text);
    (void)cli_fail(subject, "%s", text[0] != '\0' ? text : clxent_status_string(status));
    if (status == CLXENT_ERROR_ARRAYS_IN_USE) exit(CLI_FAILED);
    return CLI_FAILED;
}

/* ---- Options -------------------------------------------------------------------------------- */

enum { KEY_DEVICE = 0x1000, KEY_JSON, KEY_NO_TUNING, KEY_TUNING };

/* A number or a part of a name; which of them there are is not known yet. */
static const char *check_device(struct argp_state *state, const char *text)
{
    const bool negative =
        text[0] == '-' && text[1] != '\0' && text[1 + strspn(text + 1, "0123456789")] == '\0';
    if (text[0] == '\0' || negative)
        argp_error(state, "--device is '%s': takes a number of at least 0, or part of a name", text);
    return text;
}

static error_t parse_common(int key, char *text, struct argp_state *state)
{
    cli_common *common = state->input;
    if (key == KEY_DEVICE) common->device = check_device(state, text);
    else if (key == KEY_JSON) common->json = true;
    else if (key == KEY_NO_TUNING) cli_no_tuning = true;
    else if (key == KEY_TUNING) (void)cli_path(state, "tuning", cli_tuning_file = text);
    else if (key == ARGP_KEY_ARG) argp_error(state, "unexpected argument '%s'", text);
    else return ARGP_ERR_UNKNOWN;
    return 0;
}

static const struct argp_option common_options[] = {
    { "device", KEY_DEVICE, "N|NAME", 0,
      "OpenCL device: its number in `clxent info`, or part of its name in any case (default: the first "
      "GPU, else the first device)",
      0 },
    { "json", KEY_JSON, NULL, 0, "Print one JSON object instead of text (default: text)", 0 },
    { "no-tuning", KEY_NO_TUNING, NULL, 0,
      "Use the built-in parameters of kernels, not those that clxent tune stored for the device (default: "
      "stored ones where there are any)",
      0 },
    { "tuning", KEY_TUNING, "FILE", 0,
      "Use the parameters of kernels in FILE, written as clxent tune stores them (default: those stored "
      "for the device)",
      0 },
    { 0 },
};

static const struct argp common_argp = { common_options, parse_common, NULL, NULL, NULL, NULL, NULL };
const struct argp_child cli_common_options[] = { { &common_argp, 0, "Everywhere:", 100 }, { 0 } };

error_t cli_parse(const struct argp *argp, int argc, char **argv, void *input)
{
    command = argv[0];
    argp_err_exit_status = CLI_USAGE;
    return argp_parse(argp, argc, argv, 0, NULL, input);
}

size_t cli_size(struct argp_state *state, const char *option, const char *text, size_t smallest)
{
    char *end = NULL;
    uintmax_t value = 0;

    errno = 0;
    if (isdigit((unsigned char)text[0])) value = strtoumax(text, &end, 10);
    if (end == NULL || *end != '\0' || errno != 0 || value > SIZE_MAX / 2 || value < smallest)
        argp_error(state, "--%s is '%s': takes a whole number of at least %zu", option, text, smallest);
    return (size_t)value;
}

int64_t cli_integer(struct argp_state *state, const char *option, const char *text, const char *takes)
{
    char *end = NULL;
    intmax_t value = 0;

    errno = 0;
    if (isdigit((unsigned char)text[text[0] == '-'])) value = strtoimax(text, &end, 10);
    if (end == NULL || *end != '\0' || errno != 0 || value < INT64_MIN || value > INT64_MAX)
        argp_error(state, "--%s is '%s': takes %s", option, text, takes);
    return (int64_t)value;
}

double cli_number(struct argp_state *state, const char *option, const char *text, double smallest,
                  double largest)
{
    char *end = NULL;
    const double value = strtod(text, &end);

    /* strtod() skips leading space; NaN fails the comparisons. */
    if (end == text || *end != '\0' || isspace((unsigned char)text[0]) ||
        !(value >= smallest && value <= largest)) {
        if (largest < HUGE_VAL && isfinite(largest) && largest < 1e300)
            argp_error(state, "--%s is '%s': takes a number from %g to %g", option, text, smallest, largest);
        else if (smallest > -1e300)
            argp_error(state, "--%s is '%s': takes a finite number of at least %g", option, text, smallest);
        else argp_error(state, "--%s is '%s': takes a finite number", option, text);
    }
    return value;
}

const char *cli_path(struct argp_state *state, const char *option, const char *text)
{
    if (text[0] == '\0') argp_error(state, "--%s is '': takes a path", option);
    if (strcmp(text, "-") == 0)
        argp_error(state,
                   "--%s is '-': takes the path of a file, not standard input or output (./- for that name)",
                   option);
    return text;
}

uint32_t cli_choice(struct argp_state *state, const char *option, const char *text, const char *words)
{
    const size_t length = strlen(text);
    char takes[256] = "";
    uint32_t index = 0;

    for (const char *word = words;; index++) {
        const size_t n = strcspn(word, "|");
        if (n == length && strncmp(word, text, n) == 0) return index;
        snprintf(takes + strlen(takes), sizeof takes - strlen(takes), "%s%.*s", index > 0 ? ", " : "", (int)n,
                 word);
        if (word[n] == '\0') break;
        word += n + 1;
    }
    argp_error(state, "--%s is '%s': takes %s", option, text, takes);
    return index;
}

/* ---- Device --------------------------------------------------------------------------------- */

size_t cli_list_devices(cli_device **devices)
{
    cl_platform_id platforms[64];
    cl_uint num_platforms = 0;
    size_t count = 0;

    *devices = NULL;
    if (clGetPlatformIDs(64, platforms, &num_platforms) != CL_SUCCESS) return 0;
    if (num_platforms > 64) num_platforms = 64;
    for (cl_uint p = 0; p < num_platforms; p++) {
        cl_device_id ids[64];
        cl_uint num_ids = 0;
        cli_device *more;

        if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, 64, ids, &num_ids) != CL_SUCCESS) continue;
        if (num_ids > 64) num_ids = 64;
        more = realloc(*devices, (count + num_ids) * sizeof **devices);
        if (more == NULL) return count;
        *devices = more;
        for (cl_uint d = 0; d < num_ids; d++, count++) {
            cli_device *device = &more[count];
            memset(device, 0, sizeof *device);
            device->platform = platforms[p];
            device->id = ids[d];
            device->index = count;
            (void)clGetDeviceInfo(ids[d], CL_DEVICE_TYPE, sizeof device->type, &device->type, NULL);
            if (clGetDeviceInfo(ids[d], CL_DEVICE_NAME, sizeof device->name, device->name, NULL) !=
                CL_SUCCESS)
                strcpy(device->name, "unnamed device");
            device->name[sizeof device->name - 1] = '\0';
        }
    }
    return count;
}

static bool contains(const char *text, const char *part)
{
    for (; *text != '\0'; text++) {
        size_t i = 0;
        while (part[i] != '\0' && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i])) i++;
        if (part[i] == '\0') return true;
    }
    return false;
}

bool cli_find_device(cli_device *device, const char *wanted)
{
    cli_device *devices;
    const size_t count = cli_list_devices(&devices);
    const bool number = wanted != NULL && wanted[strspn(wanted, "0123456789")] == '\0';
    size_t found = count;

    if (count == 0) {
        cli_fail(NULL,
                 "no OpenCL device: install a driver (for the CPU Debian's pocl-opencl-icd, whose cache "
                 "directory must be writable)");
    } else if (wanted == NULL) {
        for (found = 0; found < count && (devices[found].type & CL_DEVICE_TYPE_GPU) == 0; found++) {
        }
        if (found == count) found = 0;
    } else if (number) {
        errno = 0;
        const unsigned long long index = strtoull(wanted, NULL, 10);
        if (errno == 0 && index < count) found = (size_t)index;
        if (found == count) cli_fail(NULL, "--device %s: takes 0 to %zu, see clxent info", wanted, count - 1);
    } else {
        for (found = 0; found < count && !contains(devices[found].name, wanted); found++) {
        }
        if (found == count) cli_fail(NULL, "--device '%s': no device has that name, see clxent info", wanted);
    }
    if (found < count) *device = devices[found];
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
    const char *folder = getenv("XDG_CACHE_HOME"), *below = "";

    if (folder == NULL || folder[0] != '/') { /* the specification says to ignore relative ones */
        folder = getenv("HOME");
        below = "/.cache";
    }
    if (folder == NULL || folder[0] != '/') return NULL;
    const size_t size = strlen(folder) + strlen(name) + 32;
    char *path = malloc(size);
    if (path != NULL) snprintf(path, size, "%s%s/clxent/%s", folder, below, name);
    return path;
}

bool cli_make_folders(const char *path)
{
    char *copy = strdup(path);
    bool good = copy != NULL;

    for (char *at = copy; good && (at = strchr(at + 1, '/')) != NULL;) {
        *at = '\0';
        good = mkdir(copy, 0700) == 0 || errno == EEXIST;
        *at = '/';
    }
    free(copy);
    return good;
}

/* ---- Stored parameters ---------------------------------------------------------------------- */

bool cli_no_tuning;
char *cli_tuning_file;

/* Device and driver, as far as file names can tell them, and a hash (FNV-1a) of both whole. */
char *cli_tuning_path(const cli_device *device)
{
    char names[2][256] = { "", "" }, name[160];
    uint64_t hash = 0xcbf29ce484222325u;

    snprintf(names[0], sizeof names[0], "%s", device->name);
    (void)clGetDeviceInfo(device->id, CL_DRIVER_VERSION, sizeof names[1] - 1, names[1], NULL);
    for (size_t n = 0; n < 2; n++) {
        for (size_t i = 0; i < strlen(names[n]) + 1; i++)
            hash = (hash ^ (unsigned char)names[n][i]) * 0x100000001b3u;
        for (char *at = names[n]; *at != '\0'; at++)
            if (!isalnum((unsigned char)*at) && *at != '.' && *at != '-') *at = '_';
    }
    snprintf(name, sizeof name, "%.80s-%.40s-%016" PRIx64 ".def", names[0], names[1], hash);
    return cli_cache_path(name);
}

/* The text of path, NULL where there is none. Says what is wrong with a file that is there, and adds what follows. */
static char *read_tuning(const char *path, const char *follows)
{
    enum { MOST = 65536 };
    FILE *file = fopen(path, "r");
    char *text = NULL;
    size_t length = 0;

    errno = file == NULL ? errno : 0;
    if (file != NULL) text = malloc(MOST + 1);
    if (text != NULL) length = fread(text, 1, MOST + 1, file);
    const bool absent = file == NULL && (errno == ENOENT || errno == ENOTDIR);
    if ((file == NULL && !absent) || (absent && cli_tuning_file != NULL) || (file != NULL && ferror(file))) {
        cli_fail(path, "cannot be read: %s%s", strerror(errno), follows);
    } else if (length > MOST || (text != NULL && memchr(text, '\0', length) != NULL)) {
        cli_fail(path, "is no text of at most %d bytes%s", MOST, follows);
    } else if (text != NULL) {
        text[length] = '\0';
        fclose(file);
        return text;
    }
    if (file != NULL) fclose(file);
    free(text);
    return NULL;
}

static clxent_status create_context(cli_session *session, const char *tuning, clxent_context **ctx)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;

    options.log = read_log;
    options.log_payload = session;
    options.tuning = tuning;
    options.store = session->callbacks;
    return clxent_context_create(ctx, session->cl, session->device.id, &options);
}

bool cli_retune(cli_session *session, const char *text)
{
    clxent_context *ctx;
    const clxent_status status = create_context(session, text, &ctx);

    if (status != CLXENT_OK) {
        cli_fail(session->device.name, "%s",
                 latest_line[0] != '\0' ? latest_line : clxent_status_string(status));
        return false;
    }
    clxent_context_destroy(session->ctx);
    session->ctx = ctx;
    return true;
}

static bool open_session(cli_session *session, const cli_device *device, bool stored)
{
    const cl_context_properties properties[] = { CL_CONTEXT_PLATFORM, (cl_context_properties)device->platform,
                                                 0 };
    const bool asked = cli_tuning_file != NULL; /* then nothing else will do */
    const char *follows = asked ? "" : "; the built-in parameters are used";
    char *path = asked ? strdup(cli_tuning_file) : cli_no_tuning ? NULL : cli_tuning_path(device);
    char *text = path != NULL ? read_tuning(path, follows) : NULL;
    clxent_status status = CLXENT_ERROR_INTERNAL;
    cl_int code;

    memset(session, 0, sizeof *session);
    session->device = *device;
    if (stored) session->store = cli_store_open(device, &session->callbacks);
    if (asked && text == NULL) goto done;
    session->cl = clCreateContext(properties, 1, &device->id, NULL, NULL, &code);
    if (session->cl == NULL) {
        cli_fail(device->name, "clCreateContext: %s", clxent_status_string(code));
        goto done;
    }
    status = create_context(session, text, &session->ctx);
    if (text != NULL && status == CLXENT_ERROR_INVALID_ARGUMENT) {
        cli_fail(path, "%s%s", latest_line, follows);
        if (asked) {
            cli_close(session);
            goto done;
        }
        status = create_context(session, NULL, &session->ctx);
    } else if (text != NULL && status == CLXENT_OK) {
        session->tuning = path;
        path = NULL;
    }
    if (status != CLXENT_OK) {
        cli_fail(device->name, "%s", latest_line[0] != '\0' ? latest_line : clxent_status_string(status));
        cli_close(session);
    }

done:
    free(path);
    free(text);
    return status == CLXENT_OK;
}

bool cli_open(cli_session *session, const cli_device *device) { return open_session(session, device, false); }

bool cli_open_stored(cli_session *session, const cli_device *device)
{
    return open_session(session, device, true);
}

void cli_close(cli_session *session)
{
    clxent_context_destroy(session->ctx);
    cli_store_close(session->store);
    if (session->cl != NULL) clReleaseContext(session->cl);
    free(session->tuning);
    memset(session, 0, sizeof *session);
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
        if (value != NULL && value[0] != '\0') return contains(value, "utf-8") || contains(value, "utf8");
    }
    return false;
}

double cli_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
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
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        if (seconds >= 1.0) {
            draw(seconds);
            drawn = true;
            until.tv_nsec += 200000000;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
        } else {
            until.tv_sec += 1;
        }
        pthread_cond_timedwait(&progress.changed, &progress.lock, &until);
    }
    pthread_mutex_unlock(&progress.lock);
    if (drawn) fputs("\r\033[K", stderr);
    return NULL;
}

void cli_progress_start(const char *what)
{
    static double began;
    pthread_condattr_t attributes;

    if (!isatty(STDERR_FILENO) || progress.running) return;
    began = cli_seconds();
    progress.what = what;
    progress.stop = false;
    atomic_store(&progress.fraction, -1);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&progress.changed, &attributes);
    pthread_condattr_destroy(&attributes);
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
