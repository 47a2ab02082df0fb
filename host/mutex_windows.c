/* SPDX-License-Identifier: MIT
 *
 * mutex_windows.c - see mutex.h. An SRWLOCK needs no destruction, and here it is only held for writing.
 */
#include "mutex.h"

#ifdef _WIN32

#    include <windows.h>

_Static_assert(sizeof(SRWLOCK) == sizeof(mutex) && _Alignof(SRWLOCK) <= _Alignof(mutex),
               "an SRWLOCK is one pointer");

bool mutex_init(mutex *m)
{
    InitializeSRWLock((SRWLOCK *)m);
    return true;
}

void mutex_destroy(mutex *m) { (void)m; }
void mutex_lock(mutex *m) { AcquireSRWLockExclusive((SRWLOCK *)m); }
void mutex_unlock(mutex *m) { ReleaseSRWLockExclusive((SRWLOCK *)m); }

#endif
