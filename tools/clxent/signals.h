/* SPDX-License-Identifier: MIT
 *
 * signals.h - a signal that ends the command leaves no unfinished file behind, and one that the caller ignored
 * (nohup, a job in the background) stays ignored, whatever handlers a driver installs.
 */
#ifndef CLXENT_TOOLS_SIGNALS_H
#define CLXENT_TOOLS_SIGNALS_H

#include <signal.h>
#include <stdbool.h>

/* The first call of main(), before the driver is loaded and before any thread starts. Without it nothing below
 * catches a signal. */
void signals_start(void);

/* SIGABRT calls our handler first from here on. To be called again once a driver may have installed its own. */
void signals_lead_abort(void);

/* The signals that were blocked before signals_start(): the mask for other programs. */
const sigset_t *signals_of_caller(void);

/* ---- Files ---------------------------------------------------------------------------------- */

/* path is removed when a signal or exit() ends the command. It stays the caller's, who keeps it until
 * signals_forget(). False where there is no place left for it. */
bool signals_remember(const char *path);
void signals_forget(const char *path);

/* Between these two no signal ends the command, except those of a fault: it waits. */
void signals_hold(void);
void signals_release(void);

/* ---- Subcommands that have more to do -------------------------------------------------------- */

/* Called in a thread of its own on SIGINT and SIGTERM. True: the command goes on; false: it ends by the signal. */
void signals_on_interrupt(bool (*interrupted)(int number));

/* Called first in the handler of a fault or an abort: async-signal-safe calls only. */
void signals_on_crash(void (*crashed)(void));

#endif
