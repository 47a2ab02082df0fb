/* SPDX-License-Identifier: MIT
 *
 * verify.c - a device against the CPU reference over random cases: what users attach to bug reports. A failure is
 * shrunk to the smallest case that still fails and printed with the command line that repeats it.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"
#include "signals.h"
#include "verify_case.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_CASES = 5000, DEFAULT_FAILURES = 10, COMMAND_SIZE = CASE_TEXT_SIZE + 512 };

typedef struct options {
    size_t cases, seed, max_elements, max_failures; /* cases: 0 where not given */
    double seconds;                                 /* INFINITY: not given */
    const char *text;                               /* of --case; NULL: not given */
    bool no_host_arrays, has_number;                /* whether text is one */
    size_t number;
    verify_case one; /* the case that text is */
} options;

static const cli_flag flags[] = {
    { "cases", "N", "Check N cases (default: 5000; with --seconds as many as there is time for)", CLI_SIZE,
      offsetof(options, cases), .least = 1 },
    { "seconds", "T", "Check cases for T seconds (default: until --cases are done)", CLI_NUMBER,
      offsetof(options, seconds), .least = 0, .most = 1e9 },
    { "seed", "S", "Which cases: the same seed gives the same ones everywhere (default: 1)", .kind = CLI_SIZE,
      offsetof(options, seed) },
    { "case", "I|TEXT",
      "Check one case: number I of the seed, or the one that TEXT describes, as a failure prints it, "
      "'field=value;field=value...' (default: numbers 0 to N - 1)",
      .kind = CLI_TEXT, offsetof(options, text) },
    { "max-elements", "N",
      "Logits of the largest case, for slow devices (default: 1048576, which limits none)", CLI_SIZE,
      offsetof(options, max_elements), .least = 1 },
    { "no-host-arrays", NULL,
      "Leave out clxent_run_host, for checkers that do not see the host write into shared memory (default: "
      "it is checked in some cases)",
      .kind = CLI_SWITCH, offsetof(options, no_host_arrays) },
    { "max-failures", "N", "Stop after N failures (default: 10)", CLI_SIZE, offsetof(options, max_failures),
      .least = 1 },
};

static void check_flags(void *data, struct argp_state *state)
{
    options *o = data;
    problem_fault f;

    if (o->text != NULL) {
        o->has_number = o->text[0] != '\0' && o->text[strspn(o->text, "0123456789")] == '\0';
        if (o->has_number) o->number = cli_size(state, "case", o->text, 0);
        if (o->has_number) case_draw(&o->one, o->seed, o->number, o->max_elements);
        else if (!case_read(&o->one, o->text, &f)) argp_error(state, "--case is '%s': %s", o->text, f.text);
    }
    if (o->text != NULL && (o->cases != 0 || isfinite(o->seconds)))
        argp_error(state, "--case is one case: takes neither --cases nor --seconds beside it");
    if (o->cases == 0) o->cases = isfinite(o->seconds) ? SIZE_MAX : DEFAULT_CASES;
}

/* ---- Checking ------------------------------------------------------------------------------ */

typedef struct tally {
    size_t cases, failures;
    double worst; /* error / bound; -1: nothing that it is told of */
} tally;

typedef struct verification {
    const options *options;
    cli_session session;
    runner on;
    size_t skipped;
    int ended_by;           /* the signal; 0: none */
    bool out_of_time;       /* --seconds passed */
    double began, deadline; /* by the clock of cli_seconds() */
    double seconds, compile_seconds;
    tally all;
    case_feature features[CASE_FEATURES];
    tally tallies[CASE_FEATURES];
    size_t num_features;
    json_t *reports; /* one object for each failure */

    /* The failure that is being shrunk: what is known of it is reported even if the run ends meanwhile. */
    struct {
        bool open;
        const size_t *number; /* NULL: a case that came as text */
        verify_case c, smallest;
        problem_fault fault, smallest_fault;
    } failure;
} verification;

static verification v;

/* ---- The end of the run ---------------------------------------------------------------------- */

/* SIGINT, SIGTERM or the end of --seconds ends the run with the summary of the cases done until then: after the case
 * that is running where that does not take long, else within it, as no driver's compiler can be interrupted. A
 * thread of its own prints the summary then, and ends the process. */
static struct {
    pthread_mutex_t lock; /* held while a case is counted and while anything is printed */
    pthread_cond_t changed;
    atomic_int signal;  /* 0: none */
    atomic_bool wanted; /* no further case */
    bool over;          /* under lock: the thread that runs the cases prints the summary */
    double first;       /* when the signal came */
} ending = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* The case that is running may end in so many seconds. timeout(1) sends a signal to the process and one to its group:
 * what comes within them is the same signal. */
#define GRACE_SECONDS 0.25

static bool interrupt(int number)
{
    if (atomic_load(&ending.signal) != 0) return cli_seconds() - ending.first < GRACE_SECONDS;
    ending.first = cli_seconds();
    atomic_store(&ending.signal, number);
    atomic_store(&ending.wanted, true);
    return true; /* without the lock: a reader of the summary may keep it for long */
}

static int print_summary(void);

static void *end_in_time(void *unused)
{
    const double often = 0.1;
    (void)unused;

    pthread_mutex_lock(&ending.lock);
    while (!ending.over && !atomic_load(&ending.wanted) && cli_seconds() < v.deadline)
        cli_wait(&ending.changed, &ending.lock, fmin(often, v.deadline - cli_seconds()));
    atomic_store(&ending.wanted, true);
    const double latest = cli_seconds() + GRACE_SECONDS;
    while (!ending.over && cli_seconds() < latest)
        cli_wait(&ending.changed, &ending.lock, latest - cli_seconds());
    if (!ending.over) {
        const int status = print_summary();
        if (fflush(stdout) != 0 || ferror(stdout)) cli_fail("standard output", "cannot be written");
        _exit(ferror(stdout) ? CLI_FAILED : status);
    }
    pthread_mutex_unlock(&ending.lock);
    return NULL;
}

static bool start_end(pthread_t *thread)
{
    cli_wait_init(&ending.changed);
    if (pthread_create(thread, NULL, end_in_time, NULL) != 0)
        return cli_fail(NULL, "no thread could be started");
    signals_on_interrupt(interrupt);
    return true;
}

/* ---- Repeating a case ----------------------------------------------------------------------- */

/* ' in it would end the shell's quotes; such a device is named by its number. */
static void write_command(const char *arguments, char command[COMMAND_SIZE])
{
    const char *device = cli_given.device;
    char chosen[256] = "", tuning[1024] = "";

    if (device != NULL && strchr(device, '\'') == NULL)
        snprintf(chosen, sizeof chosen, " --device '%s'", device);
    else if (device != NULL) snprintf(chosen, sizeof chosen, " --device %zu", v.session.device.index);
    if (cli_given.tuning != NULL) snprintf(tuning, sizeof tuning, " --tuning '%s'", cli_given.tuning);
    else if (cli_given.no_tuning) snprintf(tuning, sizeof tuning, " --no-tuning");
    snprintf(command, COMMAND_SIZE, "clxent verify%s%s %s", chosen, tuning, arguments);
}

static void write_case_command(const verify_case *c, char command[COMMAND_SIZE])
{
    char text[CASE_TEXT_SIZE], arguments[CASE_TEXT_SIZE + 16];

    case_write(c, text);
    snprintf(arguments, sizeof arguments, "--case '%s'", text);
    write_command(arguments, command);
}

/* A kernel that writes where it should not, or a driver's own fault, ends the process: the case that is
 * running is said all the same. */
static char running[COMMAND_SIZE]; /* its command, read by the signals' handler */

static void say_crash(void)
{
    static const char what[] = "\nclxent verify: a kernel or the driver crashed; repeat with\n  ";
    ssize_t written = 0;

    if (running[0] == '\0') return;
    written += write(STDERR_FILENO, what, sizeof what - 1);
    written += write(STDERR_FILENO, running, strlen(running));
    written += write(STDERR_FILENO, "\n", 1);
    (void)written; /* nothing could be done about it */
}

/* ---- Running cases -------------------------------------------------------------------------- */

/* The case that is running, for the summary and the progress line. */
static struct {
    _Atomic(double) began;  /* 0: none */
    atomic_size_t programs; /* compiled before it */
    atomic_bool building;
    bool compiled; /* a program, so that launches may compile too */
} current;

static clxent_status make_plan(clxent_plan **out, clxent_context *ctx, const clxent_desc *desc)
{
    atomic_store(&current.building, true);
    const clxent_status status = clxent_plan_create(out, ctx, desc);
    atomic_store(&current.building, false);
    if (!current.compiled && v.session.programs != atomic_load(&current.programs)) {
        current.compiled = true;
        cli_progress_compiling(true);
    }
    return status;
}

/* Seconds of the current case if it compiled: a driver may compile in its first launches too, so that what counts is
 * all of a case that needed a new program. */
static double compiling_seconds(void)
{
    const double began = atomic_load(&current.began);
    const bool compiled =
        atomic_load(&current.building) || v.session.programs != atomic_load(&current.programs);
    return began > 0 && compiled ? cli_seconds() - began : 0;
}

/* Runs the case; worst as check_problem() has it. */
static bool passes(const verify_case *c, worst_error worst[OUTPUTS], problem_fault *f)
{
    problem p;

    write_case_command(c, running);
    signals_lead_abort();
    atomic_store(&current.programs, v.session.programs);
    atomic_store(&current.began, cli_seconds());
    bool good = fill_problem(&p, &c->desc, c->fill, c->seed, f);
    p.args.max_chunk_bytes = c->chunk_bytes;
    good = good && check_problem(&v.on, &p, c->checks, worst, f);
    free_problem(&p);
    if (current.compiled) cli_progress_compiling(false);
    current.compiled = false;

    pthread_mutex_lock(&ending.lock);
    v.compile_seconds += compiling_seconds();
    atomic_store(&current.began, 0);
    pthread_mutex_unlock(&ending.lock);
    return good;
}

/* Once the run is to end nothing is tried any more, and the smallest case so far stays. */
static bool fails(const verify_case *c, void *payload, problem_fault *f)
{
    worst_error worst[OUTPUTS] = { { 0, 0 } };
    (void)payload;

    if (atomic_load(&ending.wanted) || passes(c, worst, f)) return false;
    pthread_mutex_lock(&ending.lock);
    v.failure.smallest = *c;
    v.failure.smallest_fault = *f;
    pthread_mutex_unlock(&ending.lock);
    return true;
}

/* error / bound of an output of the case, or -1 where it shows nothing. Beyond the bound an error counts in any case. */
static double telling_ratio(const verify_case *c, size_t output, const worst_error *worst)
{
    if ((c->desc.outputs >> output & 1u) == 0) return -1;
    return shows_arithmetic(&c->desc, FIRST_OUTPUT + (int)output) || worst->ratio > 1 ? worst->ratio : -1;
}

static void add(tally *t, bool good, double worst)
{
    t->cases++;
    t->failures += good ? 0 : 1;
    t->worst = fmax(t->worst, worst);
}

static void count(const verify_case *c, bool good, const worst_error worst[OUTPUTS])
{
    double most = -1, ratios[OUTPUTS];

    for (size_t i = 0; i < OUTPUTS; i++) {
        ratios[i] = telling_ratio(c, i, &worst[i]);
        most = fmax(most, ratios[i]);
    }
    add(&v.all, good, most);
    for (size_t i = 0; i < v.num_features; i++) {
        const int output = v.features[i].output;
        if (case_has_feature(c, &v.features[i]))
            add(&v.tallies[i], good, output >= 0 ? ratios[output] : most);
    }
}

/* Reports v.failure, with the lock. tried: how many cases the shrinking took; unfinished: it would have gone on. */
static void report(size_t tried, bool unfinished)
{
    const options *o = v.options;
    const size_t *number = v.failure.number;
    char text[CASE_TEXT_SIZE], words[CASE_TEXT_SIZE], name[64] = "case", arguments[256];
    char repeat[COMMAND_SIZE], repeat_smallest[COMMAND_SIZE];

    write_case_command(&v.failure.c, repeat);
    if (number != NULL) {
        snprintf(name, sizeof name, "case %zu", *number);
        snprintf(arguments, sizeof arguments, "--seed %zu --case %zu --max-elements %zu%s", o->seed, *number,
                 o->max_elements, o->no_host_arrays ? " --no-host-arrays" : "");
        write_command(arguments, repeat);
    }
    case_write(&v.failure.smallest, text);
    case_describe(&v.failure.smallest, words);
    write_case_command(&v.failure.smallest, repeat_smallest);

    cli_progress_stop();
    if (!cli_given.json) {
        printf("FAILED %s: %s\n", name, v.failure.fault.text);
        printf("  repeat    %s\n", repeat);
        if (unfinished) printf("  smallest  %s (interrupted)\n", words);
        else printf("  smallest  %s (%zu tried)\n", words, tried);
        printf("  it fails  %s\n", v.failure.smallest_fault.text);
        printf("  repeat    %s\n\n", repeat_smallest);
        fflush(stdout);
    }
    json_array_append_new(v.reports,
                          json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "case",
                                    number != NULL ? json_integer((json_int_t)*number) : json_null(), "fault",
                                    cli_json_text(v.failure.fault.text), "command", cli_json_text(repeat),
                                    "smallest", cli_json_text(text), "smallest_words", cli_json_text(words),
                                    "smallest_fault", cli_json_text(v.failure.smallest_fault.text),
                                    "smallest_command", cli_json_text(repeat_smallest)));
    v.failure.open = false;
}

static void check_case(verify_case *c, const size_t *number)
{
    worst_error worst[OUTPUTS] = { { 0, 0 } };
    problem_fault f = { "" };

    if (c->desc.dtype == CLXENT_F64 && v.session.device.f64 == 0) {
        pthread_mutex_lock(&ending.lock);
        v.skipped++;
        pthread_mutex_unlock(&ending.lock);
        return;
    }
    if (v.options->no_host_arrays) c->checks &= ~(uint32_t)CASE_HOST_ARRAYS;
    const bool good = passes(c, worst, &f);
    pthread_mutex_lock(&ending.lock);
    count(c, good, worst);
    if (!good) {
        v.failure.open = true;
        v.failure.number = number;
        v.failure.c = v.failure.smallest = *c;
        v.failure.fault = v.failure.smallest_fault = f;
    }
    pthread_mutex_unlock(&ending.lock);
    if (good) return;

    verify_case smallest = *c;
    const size_t tried = case_shrink(&smallest, fails, NULL, &f);
    pthread_mutex_lock(&ending.lock);
    report(tried, atomic_load(&ending.wanted));
    pthread_mutex_unlock(&ending.lock);
}

static void show_progress(double fraction)
{
    pthread_mutex_lock(&ending.lock);
    cli_progress_start("verifying");
    cli_progress_set(fraction);
    pthread_mutex_unlock(&ending.lock);
}

static void check_cases(void)
{
    const options *o = v.options;
    verify_case c = o->one;

    if (o->text != NULL) check_case(&c, o->has_number ? &o->number : NULL);
    for (size_t i = 0; o->text == NULL; i++) {
        const double fraction = fmax((cli_seconds() - v.began) / o->seconds, (double)i / (double)o->cases);

        if (!(fraction < 1) || v.all.failures >= o->max_failures || atomic_load(&ending.wanted)) break;
        show_progress(fraction);
        case_draw(&c, o->seed, i, o->max_elements);
        check_case(&c, &i);
    }
}

/* ---- The summary --------------------------------------------------------------------------- */

static void print_tally(const char *name, const tally *t)
{
    printf("%-34s %7zu %9zu ", name, t->cases, t->failures);
    if (t->worst >= 0) printf("%14.3f\n", t->worst);
    else printf("%14s\n", "-");
}

static void print_text(void)
{
    const cli_device *device = &v.session.device;
    char words[CASE_TEXT_SIZE];

    if (v.options->text != NULL) {
        case_describe(&v.options->one, words);
        printf("case      %s\n", words);
    }
    printf("device    %zu: %s\n", device->index, device->name);
    printf("driver    %s, %s\n", device->driver, device->version);
    printf("clxent    %s\n", clxent_version());
    printf("cases     %zu", v.all.cases);
    if (v.options->text == NULL || v.options->has_number) printf(" of seed %zu", v.options->seed);
    printf(": %zu passed, %zu failed", v.all.cases - v.all.failures, v.all.failures);
    if (v.skipped > 0) printf("; %zu more need f64, which the device has not", v.skipped);
    if (v.ended_by != 0) printf("; interrupted by %s", v.ended_by == SIGINT ? "SIGINT" : "SIGTERM");
    putchar('\n');
    printf("programs  %zu compiled\n", v.session.programs);
    printf("time      %.1f s\n", v.seconds);
    if ((v.ended_by != 0 || v.out_of_time) && v.compile_seconds > 0.5 * v.seconds) {
        printf(
            "note      few cases ran: %.1f of the %.1f s went into cases whose programs had to be compiled\n",
            v.compile_seconds, v.seconds);
    }
    putchar('\n');
    printf("%-34s %7s %9s %14s\n", "feature", "cases", "failures", "worst / bound");
    for (size_t i = 0; i < v.num_features; i++) {
        if (v.tallies[i].cases > 0) print_tally(v.features[i].name, &v.tallies[i]);
    }
    print_tally("all", &v.all);
}

static json_t *worst_or_null(double worst) { return worst >= 0 ? cli_json_number(worst) : json_null(); }

static void print_json(void)
{
    json_t *features = json_array();

    for (size_t i = 0; i < v.num_features; i++) {
        const tally *t = &v.tallies[i];
        if (t->cases > 0)
            json_array_append_new(features,
                                  json_pack("{s:s, s:I, s:I, s:o}", "feature", v.features[i].name, "cases",
                                            (json_int_t)t->cases, "failures", (json_int_t)t->failures,
                                            "worst", worst_or_null(t->worst)));
    }
    cli_json_print(json_pack(
        "{s:o, s:o, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:o, s:o, s:o, s:O, s:o}", "device",
        cli_json_text(v.session.device.name), "driver", cli_json_text(v.session.device.driver), "opencl",
        cli_json_text(v.session.device.version), "version", clxent_version(), "seed",
        (json_int_t)v.options->seed, "cases", (json_int_t)v.all.cases, "failed", (json_int_t)v.all.failures,
        "skipped", (json_int_t)v.skipped, "programs", (json_int_t)v.session.programs, "interrupted",
        (int)(v.ended_by != 0), "worst", worst_or_null(v.all.worst), "seconds", cli_json_number(v.seconds),
        "compile_seconds", cli_json_number(v.compile_seconds), "failures", v.reports, "features", features));
}

/* With the lock. Returns the exit status. */
static int print_summary(void)
{
    const options *o = v.options;

    cli_progress_stop();
    v.seconds = cli_seconds() - v.began;
    v.compile_seconds += compiling_seconds();
    v.ended_by = atomic_load(&ending.signal);
    v.out_of_time = v.seconds >= o->seconds;
    if (v.failure.open) report(0, true);
    if (cli_given.json) print_json();
    else print_text();
    if (v.all.failures > 0) return CLI_FAILED;
    return v.ended_by != 0 ? 128 + v.ended_by : CLI_DONE;
}

/* ---- The command --------------------------------------------------------------------------- */

/* Whether the device can hold the case that came as text. Those that are drawn are small. */
static bool fits_device(const verify_case *c)
{
    const clxent_desc *d = &c->desc;
    const double bytes =
        (double)d->batch * (double)d->seq * (double)d->classes * (double)dtype_size(d->dtype);
    const cl_ulong most = v.session.device.max_allocation;

    return bytes <= (double)most ||
           cli_fail("--case", "logits of %.0f bytes: the device takes at most %llu in one buffer", bytes,
                    (unsigned long long)most);
}

static bool open_runner(void)
{
    const cli_device *device = &v.session.device;
    const cl_command_queue_properties any = CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE;
    cl_int code;

    v.on = (runner){
        .cl = v.session.cl, .queue = v.session.queue, .ctx = v.session.ctx, .make_plan = make_plan
    };
    if ((device->queue & any) == 0) return true;
    v.on.out_of_order = clCreateCommandQueue(v.session.cl, device->id, any, &code);
    return code == CL_SUCCESS ||
           cli_fail(device->name, "clCreateCommandQueue: %s", clxent_status_string(code));
}

int command_verify(int argc, char **argv)
{
    static const cli_syntax syntax = {
        "Checks the device against the CPU reference over random cases: operations, options, dtypes, "
        "shapes, layouts and outputs, with data designed to find faults. Every result must lie within the "
        "library's error bounds, a second run must have the same bits, and nothing but the outputs may "
        "change. A case that fails is shrunk to the smallest one that does.\v"
        "The summary counts cases by what they have, with the worst error of their results as a part of "
        "its bound. Results that reach their bound by their last rounding alone are left out of that, "
        "unless they are beyond it: those of f16 and bf16, f32 gradients of f64 logits, accumulated "
        "gradients. '-': no other ones.\n"
        "Ctrl-C (SIGINT), SIGTERM and the end of --seconds end it within a second with the summary of the "
        "cases done until then, even while a driver compiles; a second signal ends it at once.\n"
        "Exit status: 0 all cases passed, 1 some failed, 2 wrong flags, 130 after SIGINT and 143 after "
        "SIGTERM where none had failed.",
        flags, sizeof flags / sizeof *flags, check_flags
    };
    options o = {
        .seed = 1, .max_elements = (size_t)1 << 20, .max_failures = DEFAULT_FAILURES, .seconds = INFINITY
    };
    cli_device device;
    pthread_t thread;
    int status = CLI_FAILED;

    cli_parse(&syntax, argc, argv, &o);
    signals_on_crash(say_crash);
    v.options = &o;
    v.all.worst = -1;
    if (!cli_find_device(&device) || !cli_open(&v.session, &device, false)) return CLI_FAILED;
    v.reports = json_array();
    v.num_features = case_list_features(v.features);
    for (size_t i = 0; i < v.num_features; i++) v.tallies[i].worst = -1;
    v.began = cli_seconds();
    v.deadline = v.began + o.seconds;
    if ((o.text == NULL || o.has_number || fits_device(&o.one)) && open_runner() && start_end(&thread)) {
        check_cases();
        pthread_mutex_lock(&ending.lock);
        ending.over = true;
        pthread_cond_signal(&ending.changed);
        status = print_summary();
        pthread_mutex_unlock(&ending.lock);
        pthread_join(thread, NULL);
    }
    json_decref(v.reports);
    if (v.on.out_of_order != NULL) clReleaseCommandQueue(v.on.out_of_order);
    cli_close(&v.session);
    return status;
}
