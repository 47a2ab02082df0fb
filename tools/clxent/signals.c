/* SPDX-License-Identifier: MIT
 *
 * signals.c - see signals.h.
 *
 * Signals from outside (Ctrl-C, kill, hangup) are blocked in every thread; one thread waits for them. A driver's
 * handler for them never runs by surprise: LLVM installs some, which delete its files and end the process even where
 * the caller had ignored the signal.
 *
 * Signals of a fault come to the thread that made it. A handler for them is installed first, so that a driver's run
 * before: PoCL repairs integer divisions by zero in its own and calls the former one for the rest; LLVM restores
 * the former one and lets the fault happen again. abort() repeats nothing, so for SIGABRT our handler has to run
 * before the driver's.
 */
#define _XOPEN_SOURCE 700
#include "signals.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

/* From outside; by default they end the process. */
static const int ending[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU };
/* Of a fault. */
static const int crashes[] = { SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS };
/* Those for which LLVM installs handlers besides. */
static const int others[] = { SIGUSR1, SIGUSR2 };
#define COUNT(array) (sizeof(array) / sizeof *(array))

static sigset_t of_caller, waited;
static struct sigaction at_start[COUNT(crashes)];

static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER; /* what signals_hold() takes */

void signals_hold(void) { pthread_mutex_lock(&busy); }
void signals_release(void) { pthread_mutex_unlock(&busy); }

/* ---- Faults --------------------------------------------------------------------------------- */

static _Atomic(void (*)(void)) on_crash;

/* Lets the signal do what it would have done without us: exit status, core and the report of a sanitizer stay as they
 * were. */
static void crash(int number, siginfo_t *info, void *context)
{
    void (*const crashed)(void) = atomic_exchange(&on_crash, NULL);
    /* These happen again when the handler returns. */
    const bool repeats =
        info->si_code > 0 && (number == SIGSEGV || number == SIGBUS || number == SIGILL || number == SIGFPE);
    (void)context;

    if (crashed != NULL) crashed();
    for (size_t i = 0; i < COUNT(crashes); i++)
        if (crashes[i] == number) sigaction(number, &at_start[i], NULL);
    if (!repeats) raise(number); /* it is blocked until the handler returns */
}

static void catch_crash(size_t i)
{
    struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };

    action.sa_sigaction = crash;
    sigemptyset(&action.sa_mask);
    sigaction(crashes[i], &action, NULL);
}

/* An overflow of the stack leaves no room on it for a handler. Only this thread gets one: a driver's threads are the
 * driver's. 96 KiB is what LLVM asks for, which then leaves ours in place. */
static void give_stack(void)
{
    enum { SIZE = 96 * 1024 };
    static char memory[SIZE];
    const stack_t stack = { .ss_sp = memory, .ss_size = SIZE };
    stack_t before;

    if (sigaltstack(NULL, &before) == 0 && (before.ss_flags & SS_DISABLE) != 0) sigaltstack(&stack, NULL);
}

void signals_on_crash(void (*crashed)(void))
{
    atomic_store(&on_crash, crashed);
    give_stack();
    for (size_t i = 0; i < COUNT(crashes); i++)
        if (sigaction(crashes[i], NULL, &at_start[i]) == 0 && at_start[i].sa_handler != SIG_IGN)
            catch_crash(i);
}

void signals_lead_abort(void)
{
    for (size_t i = 0; i < COUNT(crashes); i++)
        if (crashes[i] == SIGABRT && at_start[i].sa_handler != SIG_IGN) catch_crash(i);
}

/* ---- Signals from outside ------------------------------------------------------------------- */

static _Atomic(bool (*)(int)) on_interrupt;

void signals_on_interrupt(bool (*interrupted)(int number)) { atomic_store(&on_interrupt, interrupted); }

const sigset_t *signals_of_caller(void) { return &of_caller; }

/* Never returns. signals_hold() keeps it waiting, and waits for the end of the process from here on. */
static void end_by(int number)
{
    struct sigaction standard = { .sa_flags = 0 };
    sigset_t set;

    pthread_mutex_lock(&busy);
    sigemptyset(&set);
    sigaddset(&set, number);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    raise(number); /* a driver's handler removes the driver's files */
    standard.sa_handler = SIG_DFL;
    sigemptyset(&standard.sa_mask);
    sigaction(number, &standard, NULL);
    raise(number);
    _exit(128 + number);
}

static void *wait_for_signals(void *unused)
{
    (void)unused;
    for (;;) {
        int number;
        if (sigwait(&waited, &number) != 0) continue;
        bool (*const interrupted)(int) = atomic_load(&on_interrupt);
        const bool told = interrupted != NULL && (number == SIGINT || number == SIGTERM);
        if (!told || !interrupted(number)) end_by(number);
    }
    return NULL;
}

/* Adds to blocked what the caller ignored: ignoring it would not last until a driver installs a handler. */
static bool was_ignored(int number, sigset_t *blocked)
{
    struct sigaction before;

    if (sigaction(number, NULL, &before) != 0 || before.sa_handler != SIG_IGN) return false;
    sigaddset(blocked, number);
    return true;
}

void signals_start(void)
{
    sigset_t blocked;
    pthread_t thread;

    sigemptyset(&blocked);
    sigemptyset(&waited);
    pthread_sigmask(SIG_BLOCK, NULL, &of_caller);
    for (size_t i = 0; i < COUNT(ending); i++) {
        if (was_ignored(ending[i], &blocked) || sigismember(&of_caller, ending[i])) continue;
        sigaddset(&waited, ending[i]);
        sigaddset(&blocked, ending[i]);
    }
    for (size_t i = 0; i < COUNT(others); i++) (void)was_ignored(others[i], &blocked);
    sigaddset(&blocked, SIGXFSZ); /* a file beyond the limit is an error of the call that made it so */
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);

    if (pthread_create(&thread, NULL, wait_for_signals, NULL) == 0) pthread_detach(thread);
    else pthread_sigmask(SIG_UNBLOCK, &waited, NULL);
}
