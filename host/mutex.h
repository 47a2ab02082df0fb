/* SPDX-License-Identifier: MIT
 *
 * mutex.h - a mutex: the only lines that know the threading library.
 */
#ifndef CLXENT_MUTEX_H
#define CLXENT_MUTEX_H

#include <pthread.h>
#include <stdbool.h>

typedef pthread_mutex_t mutex;
static inline bool mutex_init(mutex *m) { return pthread_mutex_init(m, NULL) == 0; }
static inline void mutex_destroy(mutex *m) { (void)pthread_mutex_destroy(m); }
static inline void mutex_lock(mutex *m) { (void)pthread_mutex_lock(m); }
static inline void mutex_unlock(mutex *m) { (void)pthread_mutex_unlock(m); }

#endif
