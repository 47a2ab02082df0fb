/* SPDX-License-Identifier: MIT
 *
 * store.c - compiled programs between one process of the command line and the next, for drivers that keep none. Each is a
 * file of the cache folder, named by its key.
 *
 * Whatever fails here only costs the next process time, and is not told. A binary is code: files that others may have
 * written are left alone.
 */
#define _GNU_SOURCE /* asprintf */
#include "cli.h"
#include "npy.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_BYTES = 64 << 20 }; /* of the folder; the oldest files go first */

/* ---- Drivers -------------------------------------------------------------------------------- */

/* Drivers that keep compiled programs, by a part of CL_PLATFORM_NAME, and the variable and value that switch this off;
 * NULL: none is known. Others, such as Intel's for CPUs ("Intel(R) OpenCL") and Oclgrind, keep none, or we do not know
 * of it: a program is then kept twice at worst. */
static const struct {
    const char *platform, *variable, *off;
} keepers[] = {
    { "Portable Computing Language", "POCL_KERNEL_CACHE", "0" },
    { "NVIDIA CUDA", "CUDA_CACHE_DISABLE", "1" },
    { "Graphics", "NEO_CACHE_PERSISTENT", "0" }, /* "Intel(R) OpenCL Graphics", earlier "... HD Graphics" */
    { "rusticl", "MESA_SHADER_CACHE_DISABLE", "true" },
    { "Clover", "MESA_SHADER_CACHE_DISABLE", "true" },
    { "Apple", NULL, NULL },
};

static bool driver_keeps_programs(cl_platform_id platform)
{
    char name[256] = "";

    if (clGetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof name - 1, name, NULL) != CL_SUCCESS) return true;
    for (size_t i = 0; i < sizeof keepers / sizeof *keepers; i++) {
        if (strstr(name, keepers[i].platform) == NULL) continue;
        const char *value = keepers[i].variable != NULL ? getenv(keepers[i].variable) : NULL;
        return value == NULL || strcmp(value, keepers[i].off) != 0;
    }
    return false;
}

/* ---- Files ---------------------------------------------------------------------------------- */

static char *path_of(const char *folder, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

static size_t load(const char *key, void *binary, size_t size, void *payload)
{
    char *path = path_of(payload, key);
    const int descriptor = path != NULL ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK) : -1;
    struct stat info;
    size_t result = 0;

    free(path);
    if (descriptor < 0) return 0;
    if (fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode) && info.st_uid == geteuid() &&
        (info.st_mode & (S_IWGRP | S_IWOTH)) == 0 && info.st_size <= MOST_BYTES)
        result = (size_t)info.st_size;
    for (size_t at = 0; at < size && at < result;) {
        const ssize_t n = read(descriptor, (char *)binary + at, size - at);
        if (n > 0) at += (size_t)n;
        else if (n == 0 || errno != EINTR) result = 0;
    }
    close(descriptor);
    return result;
}

/* Bytes of the folder's files; path is the oldest of them, to be freed, NULL where there is none. */
static size_t measure_folder(const char *name, char **path)
{
    DIR *folder = opendir(name);
    struct timespec oldest = { 0, 0 };
    size_t bytes = 0;

    *path = NULL;
    for (struct dirent *e; folder != NULL && (e = readdir(folder)) != NULL;) {
        struct stat info;
        if (fstatat(dirfd(folder), e->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(info.st_mode))
            continue;
        bytes += (size_t)info.st_size;
        const struct timespec t = info.st_mtim;
        if (*path != NULL &&
            (t.tv_sec > oldest.tv_sec || (t.tv_sec == oldest.tv_sec && t.tv_nsec >= oldest.tv_nsec)))
            continue;
        free(*path);
        *path = path_of(name, e->d_name);
        oldest = t;
    }
    if (folder != NULL) closedir(folder);
    return bytes;
}

/* Whether size bytes fit, once the oldest files are gone. Another process may make room at the same time: then more goes
 * than had to. */
static bool make_room(const char *folder, size_t size)
{
    for (;;) {
        char *oldest;
        const bool fits = measure_folder(folder, &oldest) <= MOST_BYTES - size;
        const bool removed = !fits && oldest != NULL && unlink(oldest) == 0;
        free(oldest);
        if (fits || !removed) return fits;
    }
}

static void save(const char *key, const void *binary, size_t size, void *payload)
{
    char *path = size <= MOST_BYTES ? path_of(payload, key) : NULL;
    npy_fault fault;

    if (path != NULL && cli_make_folders(path, 0700) && make_room(payload, size))
        (void)npy_save(path, binary, size, true, &fault);
    free(path);
}

clxent_store cli_store(const cli_device *device)
{
    char *folder = driver_keeps_programs(device->platform) ? NULL : cli_cache_path("programs");
    const clxent_store none = { NULL, NULL, NULL };

    return folder != NULL ? (clxent_store){ load, save, folder } : none;
}
