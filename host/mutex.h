/* SPDX-License-Identifier: MIT
 *
 * mutex.h - a mutex: the only lines that know the threading library, but for mutex_windows.c.
 */
#ifndef CLXENT_MUTEX_H
#define CLXENT_MUTEX_H

#include <stdbool.h>

#ifdef _WIN32

/* An SRWLOCK. windows.h, which has its type, would define TEXT, near, small and the like in every file. */
typedef struct mutex {
    void *lock;
} mutex;
#    define mutex_init clxent_mutex_init
#    define mutex_destroy clxent_mutex_destroy
#    define mutex_lock clxent_mutex_lock
#    define mutex_unlock clxent_mutex_unlock
bool mutex_init(mutex *m);
void mutex_destroy(mutex *m);
void mutex_lock(mutex *m);
void mutex_unlock(mutex *m);

#else

#    include <pthread.h>

typedef pthread_mutex_t mutex;
static inline bool mutex_init(mutex *m) { return pthread_mutex_init(m, NULL) == 0; }
static inline void mutex_destroy(mutex *m) { (void)pthread_mutex_destroy(m); }
static inline void mutex_lock(mutex *m) { (void)pthread_mutex_lock(m); }
static inline void mutex_unlock(mutex *m) { (void)pthread_mutex_unlock(m); }

#endif
#endif
