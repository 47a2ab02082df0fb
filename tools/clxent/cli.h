/* SPDX-License-Identifier: MIT
 *
 * cli.h - what the subcommands of the command line share: exit status and messages, option values, the
 * device, JSON, and the progress line. Data goes to stdout, talk to stderr.
 */
#ifndef CLXENT_TOOLS_CLI_H
#define CLXENT_TOOLS_CLI_H

#include <clxent/clxent.h>

#include <argp.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

/* Exit status: CLI_FAILED is for whatever depends on files, data or the machine, CLI_USAGE for flags that
 * are wrong by themselves. */
enum { CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* ---- Subcommands ---------------------------------------------------------------------------- */

/* argv[0] is "clxent <name>"; the result is the exit status. */
int command_info(int argc, char **argv);
int command_demo(int argc, char **argv);
int command_sample(int argc, char **argv);
int command_eval(int argc, char **argv);
int command_verify(int argc, char **argv);
int command_bench(int argc, char **argv);
int command_tune(int argc, char **argv);

/* ---- Messages ------------------------------------------------------------------------------- */

/* Prints the one line "clxent eval: subject: message" on stderr, without the subject where that is NULL, and returns
 * false. */
bool cli_fail(const char *subject, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- Flags ---------------------------------------------------------------------------------- */

/* The flags of every subcommand, as they were given. */
typedef struct cli_common {
    const char *device; /* --device; NULL: the default one */
    const char
        *tuning;    /* --tuning: these parameters instead of the stored ones, and a fault of them is final */
    bool json;      /* --json */
    bool no_tuning; /* --no-tuning: no stored parameters are looked for */
} cli_common;
extern cli_common cli_given;

/* A flag of a subcommand: its help, and which member of the subcommand's options takes its value. */
typedef struct cli_flag {
    const char *name, *argument,
        *help; /* argument NULL: has none; help NULL: hidden; name NULL: a headline */
    enum {
        CLI_SWITCH, /* bool */
        CLI_TEXT,   /* const char * */
        CLI_PATH,   /* const char *, a file's: not empty, not "-" */
        CLI_PNG,    /* the same, and ends with .png */
        CLI_SIZE,   /* size_t */
        CLI_NUMBER, /* double */
        CLI_CHOICE  /* uint32_t */
    } kind;
    size_t offset;
    double least, most; /* a size has no most; of a choice the value of its first word */
    const char *words;  /* of a choice, "mean|sum|none"; NULL: argument has them */
    int group;          /* of the help */
    char letter;        /* the flag's short form; 0: none */
    size_t mark;        /* offset of a const char * that becomes the name of the latest such flag; 0: none */
} cli_flag;

typedef struct cli_syntax {
    const char *about;
    const cli_flag *flags; /* those without name and help are skipped */
    size_t num_flags;
    void (*check)(void *options, struct argp_state *state); /* at the end of the arguments; optional */
} cli_syntax;

/* Parses argv into options and cli_given, or exits with CLI_USAGE. */
void cli_parse(const cli_syntax *syntax, int argc, char **argv, void *options);

/* The value of a flag, or a usage error that says what the flag takes. */
size_t cli_size(struct argp_state *state, const char *flag, const char *text, size_t smallest);

/* ---- Device --------------------------------------------------------------------------------- */

typedef struct cli_device {
    cl_platform_id platform;
    cl_device_id id;
    size_t index; /* as `clxent info` numbers them */

    /* What the driver says of it; zero where it does not. */
    cl_device_type type;
    char name[256], vendor[256], driver[256], version[256];
    cl_uint compute_units;
    size_t max_work_group;
    cl_ulong memory, max_allocation, local_memory, cache;
    cl_bool host_memory;
    cl_device_fp_config f64;
    cl_command_queue_properties queue;
} cli_device;

/* Every device of every platform; platforms without devices are skipped. The caller frees *devices. */
size_t cli_list_devices(cli_device **devices);

/* The first device that --device names: by its index, or by part of its name in any case. Without the flag the first GPU,
 * else the first device. Says why there is none and returns false. */
bool cli_find_device(cli_device *device);

typedef struct cli_session {
    cli_device device;
    cl_context cl;
    cl_command_queue queue; /* in-order */
    clxent_context *ctx;
    char *tuning;           /* the file whose parameters ctx uses; NULL: the library's own */
    clxent_store store;     /* empty: programs are compiled, or the driver keeps them */
    atomic_size_t programs; /* compiled so far */
} cli_session;
/* With the parameters that `clxent tune` stored for the device; where they cannot be read, warns and takes the library's
 * own. Says what failed. The session stays where it is until it is closed.
 * stored: for commands whose user waits for one result, with programs that such commands have stored, where the driver
 * keeps none itself. Measurements and checks of a device compile theirs. One thread at a time may make plans. */
bool cli_open(cli_session *session, const cli_device *device, bool stored);

/* Where parameters for device are stored, whether or not they are; NULL where the environment names no folder. The
 * caller frees it. */
char *cli_tuning_path(const cli_device *device);

/* Gives the session another context, whose parameters are the rows of text. Plans of the former live on. */
bool cli_retune(cli_session *session, const char *text);
void cli_close(cli_session *session); /* accepts a zeroed session */

/* The path of name in $XDG_CACHE_HOME/clxent, else in ~/.cache/clxent; NULL where the environment names no folder. The
 * caller frees it. */
char *cli_cache_path(const char *name);

/* Creates every folder above path; errno where it cannot. */
bool cli_make_folders(const char *path, mode_t mode);

/* Of the session, store.c: empty where device's driver keeps programs, or there is nowhere to put them. The caller frees the
 * payload. */
clxent_store cli_store(const cli_device *device);

/* Compiles what clxent_run_host() of desc, a (linear) cross-entropy, will use, and adds the seconds that took to *seconds:
 * builds the kernels, then clxent_plan_warm(), as a driver may compile only at the first launch. The status is that of the
 * building. */
clxent_status cli_compile(cli_session *session, const clxent_desc *desc, double *seconds);

/* cli_fail() with the text of ctx's latest error. Ends the command where the status is CLXENT_ERROR_ARRAYS_IN_USE: the
 * caller would unmap or free what the device may still use. */
bool cli_fail_status(const clxent_context *ctx, const char *subject, clxent_status status);

/* ---- Results -------------------------------------------------------------------------------- */

json_t *cli_json_number(double value);   /* "NaN", "Infinity", "-Infinity" where JSON has no number */
json_t *cli_json_known(double value);    /* null for NAN */
json_t *cli_json_text(const char *text); /* any bytes */
void cli_json_print(json_t *object);     /* one line on stdout, 17 digits; releases object */

bool cli_terminal_is_utf8(void);
double cli_seconds(void); /* monotonic */

/* A condition variable whose waits last so many seconds at most. */
void cli_wait_init(pthread_cond_t *changed);
void cli_wait(pthread_cond_t *changed, pthread_mutex_t *lock, double seconds);

/* ---- Progress ------------------------------------------------------------------------------- */

/* A line on stderr that appears after one second, only where stderr is a terminal: a bar once a fraction
 * is known, until then the time that has passed. Stop it before anything else is printed; cli_fail()
 * does. */
void cli_progress_start(const char *what);
void cli_progress_set(double fraction);
void cli_progress_compiling(bool begins); /* between true and false the line says that kernels are compiled */
void cli_progress_stop(void);

/* ---- Pictures ------------------------------------------------------------------------------- */

/* Draws path as a PNG so many pixels wide, from gnuplot's commands as script(to, data) writes them; on failure says why,
 * leaves no file and returns false. */
bool plot_check(const char *path); /* before the work: plot_png() could write there, and replaces no input */
bool plot_png(const char *path, int width, void (*script)(FILE *to, const void *data), const void *data);

#endif
