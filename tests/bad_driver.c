/* SPDX-License-Identifier: MIT
 *
 * bad_driver.c - preloaded (LD_PRELOAD) into the command line, it makes the OpenCL driver fail as real ones do.
 *
 * CLXENT_BAD_DRIVER is a list "call:what:number,...": at the call of that number (default 1; 0: at every call)
 *   call   build (clBuildProgram) or launch (clEnqueueNDRangeKernel)
 *   what   segv ill fpe bus abort   the fault, once
 *          exit                     exit(3), as compilers do that give up
 *          hang                     says so on stderr and never returns
 *          signals                  sends SIGHUP and SIGINT to the process, as a terminal does that is closed
 *          sleep                    takes 1.5 s longer
 *          skip                     launches nothing and says that it did
 *
 * With CLXENT_BAD_DRIVER_FOLDER calls count only while the process has a file of that folder open, with a name or without.
 */
#define _GNU_SOURCE /* RTLD_NEXT */
#include <CL/cl.h>

#include <dirent.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static void rest(double seconds)
{
    nanosleep(&(struct timespec){ (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) }, NULL);
}

static volatile int result = 7;

static void divide_by_zero(void)
{
#if defined(__x86_64__) || defined(__i386__)
    static volatile int zero;
    result = result / zero;
#else
    raise(SIGFPE); /* a division there gives 0 */
#endif
}

/* Memory behind the end of a mapped file. */
static void read_past_the_end(void)
{
    FILE *file = tmpfile();
    volatile const char *memory = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fileno(file), 0);
    result = memory[0];
}

static void fail(const char *what)
{
    volatile int *nowhere = NULL;

    if (strcmp(what, "segv") == 0) *nowhere = 1;
    if (strcmp(what, "ill") == 0) __builtin_trap();
    if (strcmp(what, "fpe") == 0) divide_by_zero();
    if (strcmp(what, "bus") == 0) read_past_the_end();
    if (strcmp(what, "abort") == 0) abort();
    if (strcmp(what, "exit") == 0) exit(3);
    if (strcmp(what, "sleep") == 0) rest(1.5);
    if (strcmp(what, "signals") == 0) {
        kill(getpid(), SIGHUP);
        kill(getpid(), SIGINT);
        rest(0.2); /* whoever gets them acts meanwhile */
    }
    if (strcmp(what, "hang") == 0) {
        fputs("bad driver: hangs\n", stderr);
        for (;;) pause();
    }
}

static bool folder_is_unused(void)
{
    const char *path = getenv("CLXENT_BAD_DRIVER_FOLDER");
    DIR *open_files = path != NULL ? opendir("/proc/self/fd") : NULL;
    bool used = path == NULL;

    for (struct dirent *entry; open_files != NULL && (entry = readdir(open_files)) != NULL;) {
        char target[4096] = "";
        (void)!readlinkat(dirfd(open_files), entry->d_name, target, sizeof target - 1);
        used |= path != NULL && strncmp(target, path, strlen(path)) == 0;
    }
    if (open_files != NULL) closedir(open_files);
    return !used;
}

/* Fails as the list has it for this call; true: the call itself is to be skipped. */
static bool misbehave(const char *call, int *calls)
{
    const char *list = getenv("CLXENT_BAD_DRIVER");
    char copy[256], *rest = copy;
    bool skip = false;

    if (folder_is_unused()) return false;
    ++*calls;
    snprintf(copy, sizeof copy, "%s", list != NULL ? list : "");
    for (char *item; (item = strtok_r(rest, ",", &rest)) != NULL;) {
        char where[16] = "", what[16] = "";
        int from = 1;
        if (sscanf(item, "%15[^:]:%15[^:]:%d", where, what, &from) < 2 || strcmp(where, call) != 0) continue;
        if (from != 0 && from != *calls) continue;
        if (strcmp(what, "skip") == 0) skip = true;
        else fail(what);
    }
    return skip;
}

static void *next(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);
    if (function == NULL) abort();
    return function;
}

CL_API_ENTRY cl_int CL_API_CALL clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims,
                                                       const size_t *offset, const size_t *global,
                                                       const size_t *local, cl_uint num_wait,
                                                       const cl_event *wait, cl_event *event)
{
    static int calls;
    __typeof__(&clEnqueueNDRangeKernel) loader;

    if (misbehave("launch", &calls)) return clEnqueueMarkerWithWaitList(queue, num_wait, wait, event);
    *(void **)&loader = next("clEnqueueNDRangeKernel");
    return loader(queue, kernel, dims, offset, global, local, num_wait, wait, event);
}

CL_API_ENTRY cl_int CL_API_CALL clBuildProgram(cl_program program, cl_uint num_devices,
                                               const cl_device_id *devices, const char *options,
                                               void(CL_CALLBACK *notify)(cl_program program, void *data),
                                               void *data)
{
    static int calls;
    __typeof__(&clBuildProgram) loader;

    (void)misbehave("build", &calls);
    *(void **)&loader = next("clBuildProgram");
    return loader(program, num_devices, devices, options, notify, data);
}
