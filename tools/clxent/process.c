/* SPDX-License-Identifier: MIT
 *
 * process.c - runs another program without a shell. posix_spawnp() and not fork(): a driver's fork handlers
 * would run in the child.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"
#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int cli_run(char *const argv[], void (*input)(FILE *to, const void *data), const void *data, int descriptor)
{
    const struct sigaction ignore = { .sa_handler = SIG_IGN };
    struct sigaction before;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int pipe_ends[2], error, status = 0;
    pid_t child;
    FILE *to;

    if (pipe(pipe_ends) != 0) return -errno;
    fcntl(pipe_ends[1], F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_ends[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, descriptor, STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addclose(&actions, pipe_ends[0]);
    /* Ctrl-C ends it too. */
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attributes, signals_of_caller());
    error = posix_spawnp(&child, argv[0], &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_ends[0]);
    if (error != 0) {
        close(pipe_ends[1]);
        return -error;
    }

    /* A program that ends early is told by its exit status. */
    sigaction(SIGPIPE, &ignore, &before);
    to = fdopen(pipe_ends[1], "w");
    if (to != NULL) {
        if (input != NULL) input(to, data);
        fclose(to);
    } else {
        close(pipe_ends[1]);
    }
    sigaction(SIGPIPE, &before, NULL);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
