/* SPDX-License-Identifier: MIT
 *
 * tensor_file.c - see tensor_file.h. Either format ends in what npy.c knows: a mapping, and a header that says which items
 * of it are the array.
 */
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE /* strndup, MAP_ANONYMOUS */
#endif
#include "tensor_file.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zip.h>

/* ---- Names ----------------------------------------------------------------------------------- */

static bool ends_with(const char *text, size_t length, const char *end)
{
    const size_t n = strlen(end);
    return length > n && memcmp(text + length - n, end, n) == 0;
}

static bool is_npz(const char *file, size_t length) { return ends_with(file, length, ".npz"); }
static bool is_safetensors(const char *file, size_t length)
{
    return ends_with(file, length, ".safetensors");
}

size_t tensor_file_length(const char *text)
{
    for (size_t length = strcspn(text, ":");; length += 1 + strcspn(text + length + 1, ":")) {
        if (is_npz(text, length) || is_safetensors(text, length)) return length;
        if (text[length] == '\0') return 0;
    }
}

char *tensor_file_name(const char *text, const char **name)
{
    const size_t length = tensor_file_length(text);

    *name = length > 0 && text[length] == ':' ? text + length + 1 : NULL;
    return *name != NULL ? strndup(text, length) : strdup(text);
}

/* The tensor that is asked for among those of a file. */
typedef struct choice {
    const char *name; /* NULL: the only one */
    size_t length;    /* of name */
    size_t total, found;
    char list[256]; /* the first few names, for messages */
} choice;

enum { LISTED = 5, SHOWN = 40 }; /* names in a message; bytes of each */

/* Counts a tensor of the file; whether it is the one. */
static bool is_chosen(choice *c, const char *name, size_t length)
{
    const size_t used = strlen(c->list);
    const bool chosen = c->name == NULL || (c->length == length && memcmp(c->name, name, length) == 0);

    if (c->total < LISTED)
        snprintf(c->list + used, sizeof c->list - used, "%s'%.*s'", c->total > 0 ? ", " : "",
                 length < SHOWN ? (int)length : SHOWN, name);
    c->total++;
    c->found += chosen;
    return chosen;
}

static bool check_choice(const choice *c, npy_fault *fault)
{
    const char *more = c->total > LISTED ? ", ..." : "";
    const int shown = c->length < SHOWN ? (int)c->length : SHOWN;

    if (c->found == 1) return true;
    if (c->total == 0) return npy_fail(fault, "has no tensors");
    if (c->name == NULL)
        return npy_fail(fault, "has %zu tensors: takes FILE:NAME, NAME one of %s%s", c->total, c->list, more);
    if (c->found == 0)
        return npy_fail(fault, "has no tensor '%.*s': takes %s%s", shown, c->name, c->list, more);
    return npy_fail(fault, "has %zu tensors of the name '%.*s'", c->found, shown, c->name);
}

/* ---- .safetensors ---------------------------------------------------------------------------- */

static const struct dtype {
    const char *name;
    char kind;
    size_t size;
} dtypes[] = {
    { "F32", 'f', 4 }, { "F16", 'f', 2 }, { "BF16", 'V', 2 }, { "F64", 'f', 8 }, { "I64", 'i', 8 },
    { "I32", 'i', 4 }, { "I16", 'i', 2 }, { "I8", 'i', 1 },   { "U64", 'u', 8 }, { "U32", 'u', 4 },
    { "U16", 'u', 2 }, { "U8", 'u', 1 },  { "BOOL", 'b', 1 },
};

static bool read_size(const json_t *value, size_t *size)
{
    const json_int_t number = json_integer_value(value);
    *size = (size_t)number;
    return json_is_integer(value) && number >= 0 && (uintmax_t)number <= SIZE_MAX;
}

/* One tensor's entry, checked against the file's data_bytes; data_offset is that in the data. Of a dtype that is not among
 * dtypes item_size is 0. */
static bool read_entry(npy_header *header, const json_t *entry, size_t data_bytes, size_t *bytes,
                       npy_fault *fault)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));
    const json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
    size_t end;

    memset(header, 0, sizeof *header);
    if (name == NULL) return npy_fail(fault, "no dtype");
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(dtypes[i].name, name) != 0) continue;
        header->kind = dtypes[i].kind;
        header->item_size = dtypes[i].size;
        header->bf16 = header->kind == 'V';
        header->swapped = header->item_size > 1 && !npy_little_endian();
    }

    if (!json_is_array(shape)) return npy_fail(fault, "no shape");
    header->axes = json_array_size(shape);
    if (header->axes > NPY_MAX_AXES)
        return npy_fail(fault, "%zu axes: takes at most %d", header->axes, NPY_MAX_AXES);
    for (size_t axis = 0; axis < header->axes; axis++)
        if (!read_size(json_array_get(shape, axis), &header->shape[axis]))
            return npy_fail(fault, "axis %zu of its shape is no whole number of at least 0", axis);

    if (json_array_size(offsets) != 2 || !read_size(json_array_get(offsets, 0), &header->data_offset) ||
        !read_size(json_array_get(offsets, 1), &end))
        return npy_fail(fault, "no data_offsets, two whole numbers of at least 0");
    if (header->data_offset > end || end > data_bytes)
        return npy_fail(fault, "data_offsets %zu to %zu: takes 0 to %zu, the bytes that follow the header",
                        header->data_offset, end, data_bytes);
    *bytes = end - header->data_offset;
    if (header->item_size == 0) return true;
    if (!npy_measure(header, fault)) return false;
    const size_t needed = header->count * header->item_size;
    return *bytes == needed || npy_fail(fault, "%zu bytes of data: %s of shape %s takes %zu", *bytes, name,
                                        npy_shape_text(header->shape, header->axes).text, needed);
}

/* Where a tensor's data are. */
typedef struct extent {
    size_t begin, end;
    const char *name;
} extent;

static int compare_extents(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    return x->begin != y->begin ? (x->begin > y->begin) - (x->begin < y->begin)
                                : (x->end > y->end) - (x->end < y->end);
}

/* Whether each tensor's data begin where those of another end. Sorts them. */
static bool check_extents(extent *extents, size_t count, npy_fault *fault)
{
    size_t end = 0;

    qsort(extents, count, sizeof *extents, compare_extents);
    for (size_t i = 0; i < count; i++) {
        const extent *e = &extents[i];
        if (e->begin != end)
            return npy_fail(fault,
                            "tensor '%.*s': data_offsets %zu to %zu: takes %zu, the end of those before",
                            SHOWN, e->name, e->begin, e->end, end);
        end = e->end;
    }
    return true;
}

static bool read_entries(npy_header *header, choice *c, json_t *root, extent *extents, size_t data_bytes,
                         npy_fault *fault)
{
    const char *name, *dtype = "";
    json_t *entry;
    size_t all = 0, bytes = 0, count = 0;

    json_object_foreach(root, name, entry)
    {
        npy_header one;
        npy_fault reason;
        if (strcmp(name, "__metadata__") == 0) continue;
        if (!read_entry(&one, entry, data_bytes, &bytes, &reason))
            return npy_fail(fault, "tensor '%.*s': %.300s", SHOWN, name, reason.text);
        all += bytes;
        extents[count++] = (extent){ one.data_offset, one.data_offset + bytes, name };
        if (!is_chosen(c, name, strlen(name))) continue;
        *header = one;
        dtype = json_string_value(json_object_get(entry, "dtype"));
    }
    if (!check_choice(c, fault)) return false;
    if (all != data_bytes)
        return npy_fail(fault, "%zu bytes follow the header, its tensors take %zu", data_bytes, all);
    if (!check_extents(extents, count, fault)) return false;
    return header->item_size > 0 ||
           npy_fail(fault, "dtype %.*s: takes F16, BF16, F32, F64, BOOL, I8 to I64, U8 to U64", SHOWN, dtype);
}

bool safetensors_parse(npy_header *header, const char *name, const void *bytes, size_t size, npy_fault *fault)
{
    enum { MOST = 100000000 }; /* as the format's own library: what claims more is another kind of file */
    const unsigned char *file = bytes;
    choice c = { .name = name, .length = name != NULL ? strlen(name) : 0 };
    uint64_t length = 0;
    json_error_t error;

    memset(header, 0, sizeof *header);
    if (size < 8) return npy_fail(fault, "truncated: ends within the length of its header");
    for (size_t k = 8; k-- > 0;) length = length << 8 | file[k];
    if (length > MOST)
        return npy_fail(fault, "a header of %" PRIu64 " bytes: takes at most %d", length, MOST);
    if (length > size - 8)
        return npy_fail(fault, "truncated: %zu of %" PRIu64 " bytes of its header", size - 8, length);

    json_t *root = json_loadb((const char *)file + 8, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    extent *extents = malloc((json_object_size(root) + 1) * sizeof *extents);
    const bool good = root == NULL            ? npy_fail(fault, "malformed header: %s", error.text)
                      : !json_is_object(root) ? npy_fail(fault, "malformed header: takes an object of JSON")
                      : extents == NULL
                          ? npy_fail(fault, "no memory for its header")
                          : read_entries(header, &c, root, extents, size - 8 - (size_t)length, fault);
    free(extents);
    json_decref(root);
    header->data_offset += 8 + (size_t)length;
    return good;
}

/* ---- .npz -------------------------------------------------------------------------------------- */

/* Without .npy, which NumPy adds to the names of members. */
static size_t stem(const char *name)
{
    const size_t length = strlen(name);
    return ends_with(name, length, ".npy") ? length - 4 : length;
}

/* Replaces the mapping by what the member holds. */
static bool read_member(npy_array *array, zip_t *archive, zip_uint64_t index, npy_fault *fault)
{
    zip_stat_t info;
    zip_int64_t got = 0;
    zip_uint64_t done = 0;
    char beyond;

    if (zip_stat_index(archive, index, 0, &info) != 0 || (info.valid & ZIP_STAT_SIZE) == 0)
        return npy_fail(fault, "cannot be read: %s", zip_strerror(archive));
    if (info.size == 0) return npy_fail(fault, "empty: takes a .npy file");
    void *memory = info.size > SIZE_MAX / 2 ? MAP_FAILED
                                            : mmap(NULL, (size_t)info.size, PROT_READ | PROT_WRITE,
                                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return npy_fail(fault, "no memory for its %" PRIu64 " bytes", info.size);
    array->mapping = memory;
    array->mapping_bytes = (size_t)info.size;

    zip_file_t *member = zip_fopen_index(archive, index, 0);
    if (member == NULL) return npy_fail(fault, "cannot be read: %s", zip_strerror(archive));
    while (done < info.size && (got = zip_fread(member, (char *)memory + done, info.size - done)) > 0)
        done += (zip_uint64_t)got;
    /* libzip compares the checksum at the end, which only one more read reaches */
    if (done == info.size) got = zip_fread(member, &beyond, 1);
    const bool good = got < 0 ? npy_fail(fault, "cannot be read: %s", zip_file_strerror(member))
                      : done != info.size
                          ? npy_fail(fault, "truncated: %" PRIu64 " of %" PRIu64 " bytes", done, info.size)
                          : got == 0 || npy_fail(fault, "longer than its %" PRIu64 " bytes", info.size);
    zip_fclose(member);
    return good;
}

static bool open_npz(npy_array *array, const char *name, npy_fault *fault)
{
    choice c = { .name = name, .length = name != NULL ? stem(name) : 0 };
    void *const file = array->mapping;
    const size_t bytes = array->mapping_bytes;
    zip_uint64_t index = 0;
    zip_error_t error;

    zip_error_init(&error);
    zip_source_t *source = zip_source_buffer_create(file, bytes, 0, &error);
    zip_t *archive = source != NULL ? zip_open_from_source(source, ZIP_RDONLY, &error) : NULL;
    bool good = archive != NULL || npy_fail(fault, "not a .npz archive: %s", zip_error_strerror(&error));
    if (archive == NULL && source != NULL) zip_source_free(source);
    zip_error_fini(&error);

    for (zip_int64_t i = 0; good && i < zip_get_num_entries(archive, 0); i++) {
        const char *member = zip_get_name(archive, (zip_uint64_t)i, 0);
        if (member == NULL) continue;
        /* folders and other files are no tensors, unless the whole name is asked for */
        if (stem(member) == strlen(member) && (name == NULL || strcmp(member, name) != 0)) continue;
        if (is_chosen(&c, member, stem(member))) index = (zip_uint64_t)i;
    }
    good = good && check_choice(&c, fault) && read_member(array, archive, index, fault);
    if (archive != NULL) zip_discard(archive);
    if (array->mapping != file && file != NULL) munmap(file, bytes);
    return good && npy_parse(&array->header, array->mapping, array->mapping_bytes, fault);
}

/* ---- Either ------------------------------------------------------------------------------------ */

bool tensor_open(npy_array *array, const char *file, const char *name, npy_fault *fault)
{
    const size_t length = strlen(file);
    const bool npz = is_npz(file, length);

    if (!npz && !is_safetensors(file, length)) return npy_open(array, file, fault);
    memset(array, 0, sizeof *array);
    if (!npy_map(file, &array->mapping, &array->mapping_bytes, fault)) return false;
    if (npz ? !open_npz(array, name, fault)
            : !safetensors_parse(&array->header, name, array->mapping, array->mapping_bytes, fault)) {
        npy_close(array);
        return false;
    }
    array->bytes = array->header.count * array->header.item_size;
    return true;
}
