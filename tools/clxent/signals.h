/* SPDX-License-Identifier: MIT
 *
 * signals.h - a signal that ends the command does so before or after a set of files gets its names, and one that the
 * caller ignored (nohup, a job in the background) stays ignored, whatever handlers a driver installs.
 */
#ifndef CLXENT_TOOLS_SIGNALS_H
#define CLXENT_TOOLS_SIGNALS_H

#include <signal.h>
#include <stdbool.h>

/* The first call of main(), before the driver is loaded and before any thread starts. Without it nothing below
 * catches a signal. */
void signals_start(void);

/* The signals that were blocked before signals_start(): the mask for other programs. */
const sigset_t *signals_of_caller(void);

/* Between these two no signal ends the command, except those of a fault: it waits. */
void signals_hold(void);
void signals_release(void);

/* ---- Subcommands that have more to do -------------------------------------------------------- */

/* Called in a thread of its own on SIGINT and SIGTERM. True: the command goes on; false: it ends by the signal. */
void signals_on_interrupt(bool (*interrupted)(int number));

/* crashed is called first where a fault or an abort ends the process: async-signal-safe calls only. Before the driver is
 * loaded. */
void signals_on_crash(void (*crashed)(void));

/* SIGABRT calls our handler first from here on. To be called again once a driver may have installed its own. */
void signals_lead_abort(void);

#endif
