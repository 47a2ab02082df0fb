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
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>

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

/* Prints the one line "clxent eval: subject: message" on stderr, without the subject where that is NULL,
 * and returns CLI_FAILED. */
int cli_fail(const char *subject, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- Options -------------------------------------------------------------------------------- */

/* Options of every subcommand: a child of its argp, whose ARGP_KEY_INIT puts a cli_common into
 * state->child_inputs[0]. */
typedef struct cli_common {
    const char *device; /* --device; NULL: the default one */
    bool json;          /* --json */
} cli_common;
extern const struct argp_child cli_common_options[];

/* Parses argv with the settings that every subcommand has; returns as argp_parse() does, or exits with
 * CLI_USAGE. */
error_t cli_parse(const struct argp *argp, int argc, char **argv, void *input);

/* The value of an option, or a usage error that says what the option takes. */
size_t cli_size(struct argp_state *state, const char *option, const char *text, size_t smallest);
int64_t cli_integer(struct argp_state *state, const char *option, const char *text, const char *takes);
double cli_number(struct argp_state *state, const char *option, const char *text, double smallest,
                  double largest);
const char *cli_path(struct argp_state *state, const char *option, const char *text); /* not empty, not "-" */
/* Index of text among words, "mean|sum|none". */
uint32_t cli_choice(struct argp_state *state, const char *option, const char *text, const char *words);

/* ---- Device --------------------------------------------------------------------------------- */

typedef struct cli_device {
    cl_platform_id platform;
    cl_device_id id;
    size_t index; /* as `clxent info` numbers them */
    cl_device_type type;
    char name[256];
} cli_device;

/* Every device of every platform; platforms without devices are skipped. The caller frees *devices. */
size_t cli_list_devices(cli_device **devices);

/* The first device that wanted names: an index, or part of a name in any case. NULL: the first GPU, else
 * the first device. Says why there is none and returns false. */
bool cli_find_device(cli_device *device, const char *wanted);

typedef struct cli_store cli_store;

typedef struct cli_session {
    cli_device device;
    cl_context cl;
    clxent_context *ctx;
    char *tuning;           /* the file whose parameters ctx uses; NULL: the library's own */
    cli_store *store;       /* NULL: programs are compiled, or the driver keeps them */
    clxent_store callbacks; /* its */
    atomic_size_t programs; /* compiled so far */
} cli_session;
/* With the parameters that `clxent tune` stored for the device; where they cannot be read, warns and takes the library's
 * own. Says what failed. The session stays where it is until it is closed. */
bool cli_open(cli_session *session, const cli_device *device);

/* The same for commands whose user waits for one result: with programs that such commands have stored, where the driver
 * keeps none itself. Measurements and checks of a device compile theirs. One thread at a time may make plans. */
bool cli_open_stored(cli_session *session, const cli_device *device);
extern bool cli_no_tuning;    /* --no-tuning: no stored parameters are looked for */
extern char *cli_tuning_file; /* --tuning: these instead of the stored ones, and a fault of them is final */

/* Where parameters for device are stored, whether or not they are; NULL where the environment names no folder. The
 * caller frees it. */
char *cli_tuning_path(const cli_device *device);

/* Gives the session another context, whose parameters are the rows of text. Plans of the former live on. */
bool cli_retune(cli_session *session, const char *text);
void cli_close(cli_session *session); /* accepts a zeroed session */

/* The path of name in $XDG_CACHE_HOME/clxent, else in ~/.cache/clxent; NULL where the environment names no folder. The
 * caller frees it. */
char *cli_cache_path(const char *name);

/* Creates every folder above path, for this user alone; errno where it cannot. */
bool cli_make_folders(const char *path);

/* Of the session, store.c: NULL where device's driver keeps programs, or there is nowhere to put them. */
cli_store *cli_store_open(const cli_device *device, clxent_store *callbacks);
void cli_store_keep(cli_store *store);  /* writes new programs; once the results are out. Accepts NULL */
void cli_store_close(cli_store *store); /* likewise */

/* Compiles what clxent_run_host() of desc, a cross-entropy, will use, and adds the seconds that took to *seconds:
 * builds the kernels, then launches them once on the fewest rows that a run takes, as a driver may compile only
 * at that launch. Without the launch where that many rows have more than 2^23 logits. The status is that of the
 * building. */
clxent_status cli_compile(cli_session *session, const clxent_desc *desc, double *seconds);

/* cli_fail() with the text of ctx's latest error. Ends the command where the status is CLXENT_ERROR_ARRAYS_IN_USE: the
 * caller would unmap or free what the device may still use. */
int cli_fail_status(const clxent_context *ctx, const char *subject, clxent_status status);

/* ---- Results -------------------------------------------------------------------------------- */

json_t *cli_json_number(double value);   /* "NaN", "Infinity", "-Infinity" where JSON has no number */
json_t *cli_json_known(double value);    /* null for NAN */
json_t *cli_json_text(const char *text); /* any bytes */
void cli_json_print(json_t *object);     /* one line on stdout, 17 digits; releases object */

bool cli_terminal_is_utf8(void);
double cli_seconds(void); /* monotonic */

/* ---- Progress ------------------------------------------------------------------------------- */

/* A line on stderr that appears after one second, only where stderr is a terminal: a bar once a fraction
 * is known, until then the time that has passed. Stop it before anything else is printed; cli_fail()
 * does. */
void cli_progress_start(const char *what);
void cli_progress_set(double fraction);
void cli_progress_compiling(bool begins); /* between true and false the line says that kernels are compiled */
void cli_progress_stop(void);

/* ---- Pictures ------------------------------------------------------------------------------- */

/* Draws path as a PNG from gnuplot's commands as script(to, data) writes them, the terminal included; on failure
 * says why, leaves no file and returns false. */
bool plot_check(
    const char *path); /* whether plot_png() could write there, and replaces no input; before the work */
bool plot_png(const char *path, void (*script)(FILE *to, const void *data), const void *data);

/* ---- The worked example --------------------------------------------------------------------- */

enum { EXAMPLE_ROWS = 2, EXAMPLE_CLASSES = 4 };
typedef struct example {
    float logits[EXAMPLE_ROWS][EXAMPLE_CLASSES];
    int32_t targets[EXAMPLE_ROWS];
    float softmax[EXAMPLE_ROWS][EXAMPLE_CLASSES], losses[EXAMPLE_ROWS], loss;
    float gradient[EXAMPLE_ROWS][EXAMPLE_CLASSES];
} example;

bool plot_example(const example *e, const char *path); /* as plot_png() */

#endif
