/* SPDX-License-Identifier: MIT
 *
 * main.c - the clxent command: the table of subcommands, --help and --version.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"
#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct subcommand {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} subcommands[] = {
    { "info", "devices, what they can do, and the strategy a plan would choose", command_info },
    { "demo", "a worked example: softmax, losses and gradient of two rows", command_demo },
    { "sample", "logits and targets of a real text, as input for eval", command_sample },
    { "eval", "losses, gradients and statistics of logits in .npy files", command_eval },
    { "verify", "this device against the CPU reference over random cases", command_verify },
    { "bench", "time against copying the same bytes, for one shape or a suite of them", command_bench },
    { "tune", "searches the kernels' parameters for this device and stores them", command_tune },
};
enum { SUBCOMMANDS = sizeof subcommands / sizeof *subcommands };

typedef struct choice {
    const struct subcommand *subcommand;
    int first; /* the subcommand's index in argv */
} choice;

static error_t parse(int key, char *text, struct argp_state *state)
{
    choice *chosen = state->input;

    if (key == ARGP_KEY_ARG) {
        for (size_t i = 0; i < SUBCOMMANDS; i++)
            if (strcmp(text, subcommands[i].name) == 0) chosen->subcommand = &subcommands[i];
        if (chosen->subcommand == NULL) argp_error(state, "unknown subcommand '%s'", text);
        chosen->first = state->next - 1;
        state->next = state->argc; /* the rest is the subcommand's */
    } else if (key == ARGP_KEY_NO_ARGS) {
        argp_error(state, "a subcommand is missing");
    } else {
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/* Lists the subcommands in front of the options. */
static char *help(int key, const char *text, void *input)
{
    static const char *const about =
        "Softmax cross-entropy on any OpenCL device.\n\nSubcommands (each has its own --help):\n";
    char *list = NULL; /* argp frees it */
    size_t size;
    (void)input;

    if (key != ARGP_KEY_HELP_PRE_DOC) return (char *)text;
    FILE *to = open_memstream(&list, &size);
    if (to == NULL) return NULL;
    fputs(about, to);
    for (size_t i = 0; i < SUBCOMMANDS; i++)
        fprintf(to, "  %-10s%s\n", subcommands[i].name, subcommands[i].summary);
    return fclose(to) == 0 ? list : NULL;
}

static void print_version(FILE *stream, struct argp_state *state)
{
    (void)state;
    fprintf(stream, "clxent %s\n", clxent_version());
}

/* A closed standard stream would give its number to the next file that is opened, and receive what is printed. What
 * stands there instead refuses to be read or written. */
static void fill_streams(void)
{
    for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; stream++)
        if (fcntl(stream, F_GETFD) < 0) (void)open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

/* At exit, --help included: what could not be printed is a failure. */
static void check_output(void)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return;
    cli_fail("standard output", "%s", errno != 0 ? strerror(errno) : "cannot be written");
    _exit(CLI_FAILED);
}

int main(int argc, char **argv)
{
    static const struct argp argp = { NULL, parse, "SUBCOMMAND [OPTION...]", " ", NULL, help, NULL };
    choice chosen = { NULL, 0 };
    static char self[] = "clxent"; /* in messages, whatever path it was called by */
    static char name[64];          /* messages begin with it, those of check_output() after main() too */

    signals_start();
    fill_streams();
    atexit(check_output);
    if (argc > 0) argv[0] = self;
    /* PoCL runs the linker, which it looks for in PATH; without one it aborts. */
    setenv("PATH", "/usr/local/bin:/usr/bin:/bin", 0);
    argp_program_version_hook = print_version;
    argp_err_exit_status = CLI_USAGE;
    if (argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &chosen) != 0 || chosen.subcommand == NULL)
        return CLI_USAGE;

    snprintf(name, sizeof name, "clxent %s", chosen.subcommand->name);
    argv[chosen.first] = name;
    return chosen.subcommand->run(argc - chosen.first, argv + chosen.first);
}
