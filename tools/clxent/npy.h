/* SPDX-License-Identifier: MIT
 *
 * npy.h - NumPy's .npy files as memory: inputs are mapped, outputs are mapped temporary files that get their
 * names when all of them are complete.
 *
 * Functions that can fail return false and leave one line in the fault's text; the caller puts
 * the file's name before it.
 */
#ifndef CLXENT_TOOLS_NPY_H
#define CLXENT_TOOLS_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NPY_MAX_AXES = 32 }; /* NumPy's own limit */

typedef struct npy_fault {
    char text[512];
} npy_fault;

/* Writes the line, without control characters, and returns false. */
bool npy_fail(npy_fault *fault, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What the header of a file says. */
typedef struct npy_header {
    char kind;        /* 'f', 'i', 'u', 'b', 'c' or 'V' as in NumPy's dtype strings */
    size_t item_size; /* bytes: 1 to 16 for numbers */
    bool bf16;        /* the items, of kind 'V', are known to be bf16 */
    bool swapped;     /* not this machine's byte order */
    bool fortran;     /* the first axis is the fast one */
    size_t axes;      /* 0: one value */
    size_t shape[NPY_MAX_AXES];
    size_t count;       /* items: the product of shape */
    size_t data_offset; /* bytes before the first item */
} npy_header;

/* Reads the header of a file of size bytes at bytes. Accepts versions 1 to 3; refuses a file whose length
 * is not exactly header plus data. Pure. */
bool npy_parse(npy_header *header, const void *bytes, size_t size, npy_fault *fault);

/* Sets count; refuses a shape whose bytes, with any of its axes left out too, are more than size_t can count. */
bool npy_measure(npy_header *header, npy_fault *fault);

bool npy_little_endian(void); /* this machine */

/* A file, mapped; tensor_file.h has those that are not .npy. */
typedef struct npy_array {
    npy_header header;
    const void *data; /* after npy_native(): count items in C order and this machine's byte order, aligned to
                         the item size; not NULL, even when count is 0 */
    size_t bytes;     /* of data */
    void *mapping, *converted; /* the file; its copy in native form, NULL where none is needed */
    size_t mapping_bytes;
} npy_array;

/* Maps any file to be read; of an empty one the mapping is NULL. */
bool npy_map(const char *path, void **mapping, size_t *bytes, npy_fault *fault);

/* Maps path and reads its header: cheap, so that callers can look at dtype and shape before npy_native(). */
bool npy_open(npy_array *array, const char *path, npy_fault *fault);

/* Sets data. An array in C order and native byte order is used where it lies; any other is converted
 * into npy_scratch(), so that files larger than memory work either way. Numbers of 1 to 8 bytes only. */
bool npy_native(npy_array *array, npy_fault *fault);
void npy_close(npy_array *array); /* accepts a zeroed array */

/* Zeroed memory backed by an unlinked file in $TMPDIR or /tmp; NULL on failure. bytes may be 0. */
void *npy_scratch(size_t bytes, npy_fault *fault);
void npy_scratch_free(void *data, size_t bytes); /* accepts NULL */

/* A dtype and a shape as NumPy prints them, without byte order: "f4", "long double", "(2, 3)", "(3,)", "()". */
typedef struct npy_text {
    char text[NPY_MAX_AXES * 22 + 4]; /* 20 digits and ", " for each axis */
} npy_text;
npy_text npy_dtype_text(const npy_header *header);
npy_text npy_shape_text(const size_t *shape, size_t axes);

/* ---- Outputs ------------------------------------------------------------------------------ */

/* A file being written. It has no name until npy_commit(). */
typedef struct npy_output {
    void *data; /* to be filled: count items in C order, native byte order, at a multiple of 64 bytes */
    size_t bytes;
    char *path;
    int descriptor;
    void *mapping;
    size_t mapping_bytes;
    char *former; /* during npy_commit(): a second name of the file that path named before; NULL: none */
    bool is_new;  /* path named no file before */
} npy_output;

/* dtype: "f4", "u2", ... The disk space is taken here, so that filling data cannot fail. */
bool npy_create(npy_output *output, const char *path, const char *dtype, const size_t *shape, size_t axes,
                npy_fault *fault);

/* Whether two outputs would replace each other, however their paths were spelled. */
bool npy_same_file(const npy_output *a, const npy_output *b);

/* Whether two paths name one file that is there: through symbolic and hard links and any spelling. */
bool npy_one_file(const char *a, const char *b);

/* Gives every output its name, replacing files of that name, and frees it. Where one of them cannot have its name,
 * *failed is its index, all are discarded, and files of before that had been replaced are back.
 * Every name is at any time that of a whole file, the former or the new one. A signal that ends the process does so
 * before or after all of them; no system renames several files at once, though: what cannot be caught can leave some
 * names new and others not. And where a file of before cannot have a second link (no hard links on the file system, another user's file, a name of
 * 248 characters or more) it cannot come back once it has been replaced: there the new file stays. */
bool npy_commit(npy_output *outputs, size_t count, size_t *failed, npy_fault *fault);
void npy_discard(npy_output *output); /* accepts a zeroed or committed output */

/* Whether path could be written, which leaves nothing behind. *resolved, optional, is the one name that all of its spellings
 * have, which the caller frees; NULL on failure. */
bool npy_can_write(const char *path, char **resolved, npy_fault *fault);

/* The same guarantees for files that are not arrays. Opens a new file for writing in path's folder; *resolved, which the
 * caller frees, is path with symbolic links followed. -1 on failure. Then keep, or, also where that fails, drop; both
 * close it. The file has no name, so that nothing is left of it whatever ends the process. File systems without such
 * files (NFS) give it one, which a signal leaves behind. */
int npy_temporary(const char *path, char **resolved, npy_fault *fault);
bool npy_temporary_keep(int descriptor, const char *resolved, npy_fault *fault);
void npy_temporary_drop(int descriptor);

/* Writes such a file whole. cached: for this user alone, and without waiting for the disk. */
bool npy_save(const char *path, const void *bytes, size_t size, bool cached, npy_fault *fault);

#endif
