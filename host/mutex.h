/* SPDX-License-Identifier: MIT
 *
 * mutex.h - a mutex: the only lines that know the threading library.
 */
#ifndef CLXENT_MUTEX_H
#define CLXENT_MUTEX_H

#include <stdbool.h>

#ifdef _WIN32

#    ifndef WIN32_LEAN_AND_MEAN
#        define WIN32_LEAN_AND_MEAN
#    endif
#    include <windows.h>

typedef SRWLOCK mutex; /* held for writing only */
static inline bool mutex_init(mutex *m)
{
    InitializeSRWLock(m);
    return true;
}
static inline void mutex_destroy(mutex *m) { (void)m; }
static inline void mutex_lock(mutex *m) { AcquireSRWLockExclusive(m); }
static inline void mutex_unlock(mutex *m) { ReleaseSRWLockExclusive(m); }

#else

#    include <pthread.h>

typedef pthread_mutex_t mutex;
static inline bool mutex_init(mutex *m) { return pthread_mutex_init(m, NULL) == 0; }
static inline void mutex_destroy(mutex *m) { (void)pthread_mutex_destroy(m); }
static inline void mutex_lock(mutex *m) { (void)pthread_mutex_lock(m); }
static inline void mutex_unlock(mutex *m) { (void)pthread_mutex_unlock(m); }

#endif
#endif
