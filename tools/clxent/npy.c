/* SPDX-License-Identifier: MIT
 *
 * npy.c - the .npy format, conversion to C order and native bytes, and files that appear complete or not
 * at all.
 *
 * A file is magic "\x93NUMPY", version, header length, header, data. The header is the text of a Python
 * dictionary with the keys 'descr', 'fortran_order' and 'shape'; the parser below reads exactly the
 * literals that can stand there and nothing else of Python. It reads a copy of the header that ends with a
 * zero byte; every length is checked against the file's.
 */
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE /* O_TMPFILE, asprintf */
#endif
#include "npy.h"
#include "signals.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

bool npy_fail(npy_fault *fault, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(fault->text, sizeof fault->text, format, list);
    va_end(list);
    /* one line, whatever a file puts into it */
    for (char *at = fault->text; *at != '\0'; at++)
        if (iscntrl((unsigned char)*at)) *at = '?';
    return false;
}

/* New text; NULL where there is no memory. */
static char *text_of(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *text_of(const char *format, ...)
{
    va_list list;
    char *text;
    va_start(list, format);
    if (vasprintf(&text, format, list) < 0) text = NULL;
    va_end(list);
    return text;
}

bool npy_little_endian(void)
{
    const uint16_t one = 1;
    return *(const unsigned char *)&one == 1;
}

/* ---- Header -------------------------------------------------------------------------------- */

typedef struct cursor {
    const char *at, *text;
    size_t first; /* of the file's bytes that text is */
    npy_fault *fault;
} cursor;

static bool expected(const cursor *c, const char *what)
{
    return npy_fail(c->fault, "malformed header: expected %s at byte %zu", what,
                    c->first + (size_t)(c->at - c->text));
}

static void skip_space(cursor *c) { c->at += strspn(c->at, " \t\n\v\f\r"); }

/* Consumes a word if it is next. */
static bool take(cursor *c, const char *word)
{
    const size_t length = strlen(word);
    skip_space(c);
    if (strncmp(c->at, word, length) != 0) return false;
    c->at += length;
    return true;
}

/* A string literal without escapes; text points into the header. */
static bool read_string(cursor *c, const char *what, const char **text, size_t *length)
{
    skip_space(c);
    if (*c->at != '\'' && *c->at != '"') return expected(c, what);
    const char ends[] = { *c->at++, '\\', '\n', '\0' };
    *text = c->at;
    *length = strcspn(c->at, ends);
    c->at += *length;
    if (*c->at != ends[0]) return expected(c, "the end of a string");
    c->at++;
    return true;
}

/* A decimal number that fits size_t, with the L that Python 2 wrote. */
static bool read_size(cursor *c, size_t *value)
{
    skip_space(c);
    const bool negative = *c->at == '-';
    const size_t digits = strspn(c->at + negative, "0123456789");

    if (digits == 0) return expected(c, "a length");
    if (negative)
        return npy_fail(c->fault, "shape has the length %.*s: takes 0 or more",
                        digits < 23 ? (int)digits + 1 : 24, c->at);
    errno = 0;
    const uintmax_t number = strtoumax(c->at, NULL, 10);
    if (errno != 0 || number > SIZE_MAX) return npy_fail(c->fault, "an axis is longer than memory can be");
    *value = (size_t)number;
    c->at += digits;
    if (*c->at == 'L') c->at++;
    return true;
}

static bool read_shape(cursor *c, npy_header *header)
{
    if (!take(c, "(")) return expected(c, "a tuple, the shape");
    header->axes = 0;
    while (!take(c, ")")) {
        if (header->axes == NPY_MAX_AXES) return npy_fail(c->fault, "more than %d axes", NPY_MAX_AXES);
        if (!read_size(c, &header->shape[header->axes++])) return false;
        if (take(c, ",")) continue;
        /* "(3)" is a number in Python, "(3,)" a tuple. */
        if (header->axes == 1 || !take(c, ")")) return expected(c, "','");
        break;
    }
    return true;
}

static bool read_descr(cursor *c, npy_header *header)
{
    const char *text, *at;
    char descr[24] = "", order = '=', *end = descr;
    size_t length;

    skip_space(c);
    if (*c->at == '[' || *c->at == '(') return npy_fail(c->fault, "structured dtype: takes plain numbers");
    if (!read_string(c, "a dtype", &text, &length)) return false;

    /* What the file says goes into messages: printable and short. */
    for (size_t k = 0; k < length && k < sizeof descr - 1; k++)
        descr[k] = text[k] < ' ' || text[k] > '~' ? '?' : text[k];
    at = descr;
    if (*at != '\0' && strchr("<>|=", *at) != NULL) order = *at++;
    if (*at == 'O') return npy_fail(c->fault, "dtype '%s': Python objects are not read", descr);
    /* As some libraries name what NumPy, which has no such type, calls V2. */
    if (strcmp(at, "bfloat16") == 0) at = "V2";
    header->kind = *at;
    if (*at != '\0' && at[1] >= '0' && at[1] <= '9') header->item_size = strtoul(at + 1, &end, 10);
    if (header->item_size == 0 || header->item_size > 999999 || *end != '\0' || length >= sizeof descr ||
        strchr("fiubcV", header->kind) == NULL)
        return npy_fail(c->fault, "dtype '%s' is not a number", descr);
    header->swapped =
        header->item_size > 1 && (order == '<' || order == '>') && (order == '<') != npy_little_endian();
    return true;
}

/* length: of the header, which may have zero bytes of its own. */
static bool read_dictionary(cursor *c, npy_header *header, size_t length)
{
    static const char *const names[] = { "descr", "fortran_order", "shape" };
    bool seen[3] = { false, false, false };

    if (!take(c, "{")) return expected(c, "'{'");
    while (!take(c, "}")) {
        const char *key = "";
        size_t size = 0, which = 0;
        if (!read_string(c, "a key", &key, &size)) return false;
        while (which < 3 && (strlen(names[which]) != size || memcmp(names[which], key, size) != 0)) which++;
        if (which == 3)
            return npy_fail(c->fault, "malformed header: a key that is not descr, fortran_order or shape");
        if (seen[which]) return npy_fail(c->fault, "malformed header: %s twice", names[which]);
        seen[which] = true;
        if (!take(c, ":")) return expected(c, "':'");

        if (which == 0 && !read_descr(c, header)) return false;
        if (which == 1) header->fortran = take(c, "True");
        if (which == 1 && !header->fortran && !take(c, "False")) return expected(c, "True or False");
        if (which == 2 && !read_shape(c, header)) return false;
        if (take(c, ",")) continue;
        if (!take(c, "}")) return expected(c, "',' or '}'");
        break;
    }
    for (size_t k = 0; k < 3; k++)
        if (!seen[k]) return npy_fail(c->fault, "malformed header: no %s", names[k]);
    skip_space(c);
    return c->at == c->text + length || expected(c, "nothing more");
}

bool npy_measure(npy_header *header, npy_fault *fault)
{
    size_t product = 1;

    /* Axes of length 0 are left out, so that the product of any axes fits once this one does. */
    header->count = 1;
    for (size_t axis = 0; axis < header->axes; axis++) {
        const size_t n = header->shape[axis];
        if (n > 0 && product > (SIZE_MAX / 2 / header->item_size) / n)
            return npy_fail(fault, "its shape has more items than memory can hold");
        if (n > 0) product *= n;
        else header->count = 0;
    }
    header->count *= product;
    return true;
}

bool npy_parse(npy_header *header, const void *bytes, size_t size, npy_fault *fault)
{
    const unsigned char *file = bytes;
    size_t length_bytes, length;

    memset(header, 0, sizeof *header);
    if (size >= 4 && memcmp(file, "PK\x03\x04", 4) == 0)
        return npy_fail(fault, "a zip archive: takes .npy, or a .npz whose name ends in .npz");
    if (size < 6 || memcmp(file, "\x93NUMPY", 6) != 0)
        return npy_fail(fault, size == 0 ? "empty: takes a .npy file" : "not a .npy file");
    if (size < 8) return npy_fail(fault, "truncated: ends within the .npy header");
    if (file[6] < 1 || file[6] > 3) return npy_fail(fault, "version %d of .npy: takes 1, 2 and 3", file[6]);

    length_bytes = file[6] == 1 ? 2 : 4;
    if (size < 8 + length_bytes) return npy_fail(fault, "truncated: ends within the .npy header");
    length = (size_t)file[8] | (size_t)file[9] << 8;
    if (length_bytes == 4) length |= (size_t)file[10] << 16 | (size_t)file[11] << 24;
    if (length > size - 8 - length_bytes) return npy_fail(fault, "truncated: ends within the .npy header");
    header->data_offset = 8 + length_bytes + length;

    char *text = malloc(length + 1);
    if (text == NULL) return npy_fail(fault, "no memory for a header of %zu bytes", length);
    memcpy(text, file + 8 + length_bytes, length);
    text[length] = '\0';
    cursor c = { text, text, 8 + length_bytes, fault };
    const bool good = read_dictionary(&c, header, length);
    free(text);
    if (!good) return false;

    if (!npy_measure(header, fault)) return false;
    const size_t data_bytes = header->count * header->item_size;
    if (size - header->data_offset < data_bytes)
        return npy_fail(fault, "truncated: %zu of %zu data bytes", size - header->data_offset, data_bytes);
    if (size - header->data_offset > data_bytes)
        return npy_fail(fault, "%zu bytes follow the array", size - header->data_offset - data_bytes);
    return true;
}

npy_text npy_dtype_text(const npy_header *header)
{
    npy_text t;
    if (header->bf16) strcpy(t.text, "bf16");
    else if (header->kind == 'f' && header->item_size > 8)
        strcpy(t.text, "long double"); /* "f16" would be taken for half */
    else snprintf(t.text, sizeof t.text, "%c%zu", header->kind, header->item_size);
    return t;
}

npy_text npy_shape_text(const size_t *shape, size_t axes)
{
    npy_text t = { "(" };
    size_t length = 1;
    for (size_t axis = 0; axis < axes; axis++) {
        const char *separator = axis + 1 < axes ? ", " : axes == 1 ? "," : "";
        length += (size_t)snprintf(t.text + length, sizeof t.text - length, "%zu%s", shape[axis], separator);
    }
    snprintf(t.text + length, sizeof t.text - length, ")");
    return t;
}

/* ---- Native form ---------------------------------------------------------------------------- */

/* Copies a Fortran-order array to C order. The first axis is the source's fast one, the last the
 * destination's: for every index of the axes between them a matrix is transposed, in tiles so that a
 * cache line fetched on either side is used whole. */
static inline void to_c_order(char *to, const char *from, size_t size, const size_t *shape, size_t axes)
{
    enum { TILE = 64 };
    const size_t first = shape[0], last = shape[axes - 1];
    size_t index[NPY_MAX_AXES] = { 0 };
    size_t count = 1, middle = 1;

    for (size_t axis = 0; axis < axes; axis++) count *= shape[axis];
    for (size_t axis = 1; axis + 1 < axes; axis++) middle *= shape[axis];
    for (size_t m = 0; m < middle; m++) {
        size_t source = 0, target = 0;
        for (size_t axis = axes - 1; axis-- > 1;) source = source * shape[axis] + index[axis];
        for (size_t axis = 1; axis + 1 < axes; axis++) target = target * shape[axis] + index[axis];
        source *= first;
        target *= last;

        for (size_t i0 = 0; i0 < first; i0 += TILE) {
            const size_t i1 = first - i0 < TILE ? first : i0 + TILE;
            for (size_t j0 = 0; j0 < last; j0 += TILE) {
                const size_t j1 = last - j0 < TILE ? last : j0 + TILE;
                for (size_t i = i0; i < i1; i++) {
                    for (size_t j = j0; j < j1; j++) {
                        memcpy(to + (target + i * (count / first) + j) * size,
                               from + (source + i + j * (count / last)) * size, size);
                    }
                }
            }
        }
        for (size_t axis = 1; axis + 1 < axes && ++index[axis] == shape[axis]; axis++) index[axis] = 0;
    }
}

static inline void swap_bytes(unsigned char *data, size_t count, size_t size)
{
    for (size_t i = 0; i < count; i++, data += size) {
        for (size_t k = 0; k < size / 2; k++) {
            const unsigned char byte = data[k];
            data[k] = data[size - 1 - k];
            data[size - 1 - k] = byte;
        }
    }
}

static inline void convert(char *to, const char *from, size_t size, const npy_header *header,
                           const size_t *shape, size_t axes)
{
    if (header->count == 0) return;
    if (axes > 1) to_c_order(to, from, size, shape, axes);
    else memcpy(to, from, header->count * size);
    if (header->swapped) swap_bytes((unsigned char *)to, header->count, size);
}

bool npy_native(npy_array *array, npy_fault *fault)
{
    const npy_header *header = &array->header;
    const char *stored = (const char *)array->mapping + header->data_offset;
    size_t shape[NPY_MAX_AXES];
    size_t axes = 0;

    /* Where at most one axis is longer than 1, both orders are the same. */
    for (size_t axis = 0; header->fortran && axis < header->axes; axis++)
        if (header->shape[axis] != 1) shape[axes++] = header->shape[axis];

    array->data = stored;
    if (axes <= 1 && !header->swapped && (uintptr_t)stored % header->item_size == 0) return true;

    array->data = array->converted = npy_scratch(array->bytes, fault);
    if (array->converted == NULL) return false;
    switch (header->item_size) { /* a constant size lets the compiler turn the copies into moves */
    case 1: convert(array->converted, stored, 1, header, shape, axes); return true;
    case 2: convert(array->converted, stored, 2, header, shape, axes); return true;
    case 4: convert(array->converted, stored, 4, header, shape, axes); return true;
    case 8: convert(array->converted, stored, 8, header, shape, axes); return true;
    default:
        return npy_fail(fault, "dtype %s: items of 1, 2, 4 or 8 bytes are read", npy_dtype_text(header).text);
    }
}

bool npy_map(const char *path, void **mapping, size_t *bytes, npy_fault *fault)
{
    struct stat info;
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe would block */
    bool good = descriptor >= 0 && fstat(descriptor, &info) == 0;

    *mapping = NULL;
    if (!good) npy_fail(fault, "cannot be read: %s", strerror(errno));
    else if (!S_ISREG(info.st_mode)) good = npy_fail(fault, "not a regular file");
    *bytes = good ? (size_t)info.st_size : 0;
    if (*bytes > 0) *mapping = mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (*mapping == MAP_FAILED) {
        npy_fail(fault, "cannot be mapped: %s", strerror(errno));
        *mapping = NULL;
        good = false;
    }
    if (descriptor >= 0) close(descriptor);
    return good;
}

bool npy_open(npy_array *array, const char *path, npy_fault *fault)
{
    memset(array, 0, sizeof *array);
    if (!npy_map(path, &array->mapping, &array->mapping_bytes, fault) ||
        !npy_parse(&array->header, array->mapping, array->mapping_bytes, fault)) {
        npy_close(array);
        return false;
    }
    array->bytes = array->header.count * array->header.item_size;
    return true;
}

void npy_close(npy_array *array)
{
    npy_scratch_free(array->converted, array->bytes);
    if (array->mapping != NULL) munmap(array->mapping, array->mapping_bytes);
    memset(array, 0, sizeof *array);
}

/* ---- Temporary files -------------------------------------------------------------------------- */

/* Takes the space on disk first: writing to a mapping without it would end in SIGBUS. */
static void *map_new(int descriptor, size_t bytes, npy_fault *fault)
{
    const int error = posix_fallocate(descriptor, 0, (off_t)bytes);
    void *mapping;

    if (error != 0) {
        npy_fail(fault, "no room for %zu bytes: %s", bytes, strerror(error));
        return NULL;
    }
    mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (mapping != MAP_FAILED) return mapping;
    npy_fail(fault, "cannot be mapped: %s", strerror(errno));
    return NULL;
}

static size_t scratch_bytes(size_t bytes) { return bytes > 0 ? bytes : 1; }

void *npy_scratch(size_t bytes, npy_fault *fault)
{
    const char *directory = getenv("TMPDIR");
    npy_fault reason;
    char path[4096];
    void *mapping = NULL;
    int descriptor;

    if (directory == NULL || directory[0] == '\0') directory = "/tmp";
    snprintf(path, sizeof path, "%s/clxent.XXXXXX", directory);
    descriptor = mkstemp(path);
    if (descriptor < 0) {
        npy_fail(fault, "no temporary file in %.200s (TMPDIR names another place): %s", directory,
                 strerror(errno));
        return NULL;
    }
    unlink(path);
    mapping = map_new(descriptor, scratch_bytes(bytes), &reason);
    if (mapping == NULL)
        npy_fail(fault, "temporary file in %.200s (TMPDIR names another place): %.200s", directory,
                 reason.text);
    close(descriptor);
    return mapping;
}

void npy_scratch_free(void *data, size_t bytes)
{
    if (data != NULL) munmap(data, scratch_bytes(bytes));
}

/* Up to the last slash, that included; 0 where there is none. */
static int folder_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? (int)(slash - path) + 1 : 0;
}

/* The one name that every spelling of path has, whether or not the file is there yet; a symbolic link to what is not
 * there is a name of that, as for open(). Where the folder is not there, path as it is: writing to it says so. The
 * caller frees it; NULL and errno on failure. */
static char *resolve(const char *path)
{
    enum { MOST_LINKS = 40 }; /* as in Linux: more are taken for a circle */
    char *at = strdup(path), target[4096];

    for (int links = 0; at != NULL; links++) {
        char *next = realpath(at, NULL);
        const bool found = next != NULL;
        const ssize_t length = found ? 0 : readlink(at, target, sizeof target);
        if (!found && length < 0) break;
        if (!found && links < MOST_LINKS)
            next = text_of("%.*s%.*s", target[0] == '/' ? 0 : folder_length(at), at, (int)length, target);
        free(at);
        if (!found && links == MOST_LINKS) errno = ELOOP;
        if (found || links == MOST_LINKS) return next;
        at = next;
    }
    if (at == NULL) return NULL;

    char *folder = text_of("%.*s.", folder_length(at), at);
    char *real = folder != NULL ? realpath(folder, NULL) : NULL;
    free(folder);
    if (real == NULL) return at;
    char *name = text_of("%s/%s", strcmp(real, "/") == 0 ? "" : real, at + folder_length(at));
    free(real);
    free(at);
    return name;
}

/* A name for descriptor's file beside path: of 7 characters more, which no other process takes. */
static char *name_beside(const char *path, int descriptor)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return text_of("%s.%06lx", path,
                   ((unsigned long)getpid() << 10 ^ (unsigned long)now.tv_nsec ^ (unsigned long)descriptor) &
                       0xfffffful);
}

/* The name of a file that has one although it is temporary; NULL: it has none. */
static char *name_of(int descriptor)
{
    char self[64];
    struct stat info;

    if (fstat(descriptor, &info) != 0 || info.st_nlink == 0) return NULL;
    snprintf(self, sizeof self, "/proc/self/fd/%d", descriptor);
    return realpath(self, NULL);
}

int npy_temporary(const char *path, char **resolved, npy_fault *fault)
{
    struct stat info;
    char *name;
    int descriptor = -1;

    /* Written through a symbolic link: rename() would replace the link. */
    *resolved = resolve(path);
    const bool exists = *resolved != NULL && stat(*resolved, &info) == 0;
    if (exists && !S_ISREG(info.st_mode)) {
        npy_fail(fault, S_ISDIR(info.st_mode) ? "is a directory" : "exists and is not a regular file");
        goto fail;
    }
    name = *resolved != NULL ? text_of("%.*s.", folder_length(*resolved), *resolved) : NULL;
    if (name != NULL) descriptor = open(name, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    if (name != NULL && descriptor < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        free(name);
        name = name_beside(*resolved, 0);
        if (name != NULL) descriptor = open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
    }
    free(name);
    if (descriptor >= 0 && (!exists || fchmod(descriptor, info.st_mode & 0777) == 0)) return descriptor;
    npy_fail(fault, "cannot be written: %s", strerror(errno));
    if (descriptor >= 0) npy_temporary_drop(descriptor);

fail:
    free(*resolved);
    *resolved = NULL;
    return -1;
}

bool npy_temporary_keep(int descriptor, const char *resolved, npy_fault *fault)
{
    char self[64], *name = name_of(descriptor);
    bool good = name != NULL;

    if (name == NULL) {
        snprintf(self, sizeof self, "/proc/self/fd/%d", descriptor);
        name = name_beside(resolved, descriptor);
        good = name != NULL && linkat(AT_FDCWD, self, AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0;
    }
    good = good && rename(name, resolved) == 0;
    if (good) {
        close(descriptor);
    } else {
        npy_fail(fault, "cannot be written: %s", strerror(errno));
        if (name != NULL) unlink(name);
    }
    free(name);
    return good;
}

void npy_temporary_drop(int descriptor)
{
    char *name = name_of(descriptor);

    if (name != NULL) unlink(name);
    free(name);
    close(descriptor);
}

bool npy_save(const char *path, const void *bytes, size_t size, bool cached, npy_fault *fault)
{
    char *resolved;
    const int descriptor = npy_temporary(path, &resolved, fault);
    size_t done = 0;

    if (descriptor < 0) return false;
    bool good = !cached || fchmod(descriptor, S_IRUSR | S_IWUSR) == 0;
    while (good && done < size) {
        const ssize_t n = write(descriptor, (const char *)bytes + done, size - done);
        good = n >= 0 || errno == EINTR;
        if (n > 0) done += (size_t)n;
    }
    good = good && (cached || fsync(descriptor) == 0);
    if (!good) npy_fail(fault, "cannot be written: %s", strerror(errno));
    good = good && npy_temporary_keep(descriptor, resolved, fault);
    if (!good) npy_temporary_drop(descriptor);
    free(resolved);
    return good;
}

bool npy_can_write(const char *path, char **resolved, npy_fault *fault)
{
    char *name;
    const int descriptor = npy_temporary(path, &name, fault);

    if (descriptor >= 0) npy_temporary_drop(descriptor);
    if (resolved != NULL) *resolved = name;
    else free(name);
    return descriptor >= 0;
}

/* ---- Outputs -------------------------------------------------------------------------------- */

/* The whole header, data_offset bytes; 0 if it does not fit. Version 1, data at a multiple of 64 bytes, as
 * NumPy writes it. */
static size_t format_header(char *text, size_t size, const char *dtype, const size_t *shape, size_t axes)
{
    const bool bytes = dtype[1] == '1';
    const int written =
        snprintf(text + 10, size - 10, "{'descr': '%c%s', 'fortran_order': False, 'shape': %s, }",
                 bytes                 ? '|'
                 : npy_little_endian() ? '<'
                                       : '>',
                 dtype, npy_shape_text(shape, axes).text);
    const size_t used = 10 + (size_t)written + 1; /* and a newline */
    const size_t total = (used + 63) / 64 * 64;

    memcpy(text, "\x93NUMPY\x01\x00", 8);
    text[8] = (char)((total - 10) & 0xff);
    text[9] = (char)((total - 10) >> 8);
    memset(text + used - 1, ' ', total - used);
    text[total - 1] = '\n';
    return total;
}

bool npy_create(npy_output *output, const char *path, const char *dtype, const size_t *shape, size_t axes,
                npy_fault *fault)
{
    char header[1024]; /* 32 axes of 20 digits, and 60 more, fit */
    const size_t header_bytes = format_header(header, sizeof header, dtype, shape, axes);
    size_t bytes = strtoul(dtype + 1, NULL, 10);

    memset(output, 0, sizeof *output);
    output->descriptor = -1;
    for (size_t axis = 0; axis < axes; axis++) {
        if (shape[axis] != 0 && bytes > (SIZE_MAX / 4) / shape[axis])
            return npy_fail(fault, "too large for a file");
        bytes *= shape[axis];
    }
    output->descriptor = npy_temporary(path, &output->path, fault);
    if (output->descriptor < 0) return false;
    output->bytes = bytes;
    output->mapping_bytes = header_bytes + bytes;
    output->mapping = map_new(output->descriptor, output->mapping_bytes, fault);
    if (output->mapping == NULL) {
        npy_discard(output);
        return false;
    }
    memcpy(output->mapping, header, header_bytes);
    output->data = (char *)output->mapping + header_bytes;
    return true;
}

bool npy_one_file(const char *a, const char *b)
{
    struct stat one, other;
    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
}

bool npy_same_file(const npy_output *a, const npy_output *b)
{
    return strcmp(a->path, b->path) == 0 || npy_one_file(a->path, b->path);
}

bool npy_commit(npy_output *outputs, size_t count, size_t *failed, npy_fault *fault)
{
    bool good = true;

    signals_hold(); /* a signal ends the process before or after, with all outputs or none */
    for (size_t i = 0; i < count && good; i++) {
        npy_output *o = &outputs[i];
        char *name = name_beside(o->path, o->descriptor);
        *failed = i;
        /* the file that this one replaces keeps a second name, by which it can come back */
        o->former = name != NULL ? text_of("%s~", name) : NULL;
        free(name);
        const bool kept = o->former != NULL && link(o->path, o->former) == 0;
        o->is_new = !kept && errno == ENOENT;
        if (!kept) {
            free(o->former);
            o->former = NULL;
        }
        good = npy_temporary_keep(o->descriptor, o->path, fault);
        if (good) o->descriptor = -1;
    }
    for (size_t i = 0; i < count; i++) {
        npy_output *o = &outputs[i];
        const bool renamed = o->descriptor < 0;
        if (!good && renamed && o->is_new) unlink(o->path);
        /* where even rename() fails, the second name is all that is left of the file, and stays */
        if (o->former != NULL && (good || !renamed)) unlink(o->former);
        else if (o->former != NULL) (void)rename(o->former, o->path);
        npy_discard(o);
    }
    signals_release();
    return good;
}

void npy_discard(npy_output *output)
{
    if (output->mapping != NULL) munmap(output->mapping, output->mapping_bytes);
    if (output->path != NULL && output->descriptor >= 0) npy_temporary_drop(output->descriptor);
    free(output->former);
    free(output->path);
    memset(output, 0, sizeof *output);
}
