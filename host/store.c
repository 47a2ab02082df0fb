/* SPDX-License-Identifier: MIT
 *
 * store.c - compiled programs that the application keeps (clxent_context_options.store): their keys, what is kept under
 * one, and which of it a driver gets to see.
 *
 * Kept are, in this order: a digest of the key and of all that follows; the names of the program's kernels, as
 * CL_PROGRAM_KERNEL_NAMES has them, with their NUL; the driver's binary. Drivers crash on damaged binaries: they get
 * only what has its digest. Nothing here is an error: what cannot be loaded is compiled, what cannot be saved is not.
 */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- Keys ---------------------------------------------------------------------------------- */

enum { MOST_TEXT = 1024 }; /* bytes of a device's text; one with a longer one has no store */

static bool add_device_text(clxent_sha256 *hash, cl_device_id id, cl_device_info info)
{
    char text[MOST_TEXT];
    size_t size = 0;

    if (clGetDeviceInfo(id, info, sizeof text, text, &size) != CL_SUCCESS) return false;
    clxent_sha256_add(hash, text, size);
    return true;
}

static bool add_platform_text(clxent_sha256 *hash, cl_platform_id id, cl_platform_info info)
{
    char text[MOST_TEXT];
    size_t size = 0;

    if (clGetPlatformInfo(id, info, sizeof text, text, &size) != CL_SUCCESS) return false;
    clxent_sha256_add(hash, text, size);
    return true;
}

/* Texts are hashed with their NULs, so that no two lists of them are one text. */
static bool hash_everything(clxent_sha256 *hash, const clxent_context *ctx, const clxent_source *source,
                            const char *options)
{
    static const cl_device_info of_device[] = { CL_DEVICE_NAME, CL_DEVICE_VENDOR, CL_DEVICE_VERSION,
                                                CL_DRIVER_VERSION };
    static const char layout[] = "clxent store 1"; /* of what is kept */
    const char *version = clxent_version();
    cl_platform_id platform = NULL;

    clxent_sha256_add(hash, layout, sizeof layout);
    clxent_sha256_add(hash, version, strlen(version) + 1);
    if (clGetDeviceInfo(ctx->id, CL_DEVICE_PLATFORM, sizeof platform, &platform, NULL) != CL_SUCCESS)
        return false;
    if (!add_platform_text(hash, platform, CL_PLATFORM_NAME) ||
        !add_platform_text(hash, platform, CL_PLATFORM_VERSION))
        return false;
    for (size_t i = 0; i < sizeof of_device / sizeof *of_device; i++)
        if (!add_device_text(hash, ctx->id, of_device[i])) return false;
    clxent_sha256_add(hash, options, strlen(options) + 1);
    clxent_sha256_add(hash, source->name, strlen(source->name) + 1);
    clxent_sha256_add(hash, source->text, source->length);
    return true;
}

bool clxent_store_key(const clxent_context *ctx, const clxent_source *source, const char *options,
                      clxent_key *key)
{
    static const char digits[] = "0123456789abcdef";
    unsigned char digest[CLXENT_SHA256_BYTES];
    clxent_sha256 hash;

    if (ctx->store.load == NULL && ctx->store.save == NULL) return false;
    clxent_sha256_begin(&hash);
    if (!hash_everything(&hash, ctx, source, options)) return false;
    clxent_sha256_end(&hash, digest);
    for (size_t i = 0; i < 2 * sizeof digest; i++)
        key->text[i] = digits[digest[i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xf];
    key->text[2 * sizeof digest] = '\0';
    return true;
}

/* ---- What is kept under a key --------------------------------------------------------------- */

typedef struct kept {
    unsigned char *bytes; /* to be freed */
    size_t size;
    const char *kernels;         /* "one;another"; in bytes */
    const unsigned char *binary; /* likewise */
    size_t binary_size;
} kept;

static void digest_of(const clxent_key *key, const kept *k, unsigned char digest[CLXENT_SHA256_BYTES])
{
    clxent_sha256 hash;

    clxent_sha256_begin(&hash);
    clxent_sha256_add(&hash, key->text, sizeof key->text);
    clxent_sha256_add(&hash, k->bytes + CLXENT_SHA256_BYTES, k->size - CLXENT_SHA256_BYTES);
    clxent_sha256_end(&hash, digest);
}

/* Whether k->bytes are what was saved; finds their parts. */
static bool is_whole(const clxent_key *key, kept *k)
{
    unsigned char digest[CLXENT_SHA256_BYTES];

    if (k->size <= sizeof digest) return false;
    digest_of(key, k, digest);
    if (memcmp(digest, k->bytes, sizeof digest) != 0) return false;
    const unsigned char *kernels = k->bytes + sizeof digest;
    const unsigned char *nul = memchr(kernels, '\0', k->size - sizeof digest);
    if (nul == NULL) return false;
    k->kernels = (const char *)kernels;
    k->binary = nul + 1;
    k->binary_size = (size_t)(k->bytes + k->size - k->binary);
    return k->binary_size > 0;
}

/* The size is asked for first. By the second call another process may have put something else there. */
static bool read_kept(const clxent_context *ctx, const clxent_key *key, kept *k)
{
    const clxent_store *store = &ctx->store;

    k->size = store->load == NULL ? 0 : store->load(key->text, NULL, 0, store->payload);
    k->bytes = k->size > 0 ? malloc(k->size) : NULL;
    if (k->bytes == NULL) return false;
    return store->load(key->text, k->bytes, k->size, store->payload) == k->size && is_whole(key, k);
}

/* ---- Loading ------------------------------------------------------------------------------- */

static bool has_kernels(cl_program program, const char *names)
{
    enum { MOST_NAME = 128 };
    char name[MOST_NAME];

    while (*names != '\0') {
        const size_t length = strcspn(names, ";");
        cl_int code;
        if (length >= sizeof name) return false;
        memcpy(name, names, length);
        name[length] = '\0';
        cl_kernel kernel = clCreateKernel(program, name, &code);
        if (kernel == NULL) return false;
        (void)clReleaseKernel(kernel);
        names += length + (names[length] == ';');
    }
    return true;
}

cl_program clxent_store_load(const clxent_context *ctx, const clxent_key *key, const char *options)
{
    kept k = { .bytes = NULL };
    cl_program program = NULL;
    cl_int code, of_binary;

    if (read_kept(ctx, key, &k))
        program =
            clCreateProgramWithBinary(ctx->cl, 1, &ctx->id, &k.binary_size, &k.binary, &of_binary, &code);
    const bool good = program != NULL && code == CL_SUCCESS && of_binary == CL_SUCCESS &&
                      clBuildProgram(program, 1, &ctx->id, options, NULL, NULL) == CL_SUCCESS &&
                      has_kernels(program, k.kernels);
    if (program != NULL && !good) {
        (void)clReleaseProgram(program);
        program = NULL;
    }
    free(k.bytes);
    return program;
}

/* ---- Saving -------------------------------------------------------------------------------- */

/* A program has a binary for each device of its cl_context; ours was built for one of them. */
typedef struct binaries {
    cl_uint count;
    size_t *sizes;
    unsigned char **places; /* NULL: not wanted */
    size_t ours;            /* its index */
} binaries;

static bool find_ours(const clxent_context *ctx, cl_program program, binaries *b)
{
    const size_t bytes = b->count * sizeof(cl_device_id);
    cl_device_id *ids = malloc(bytes);
    bool found = false;

    if (ids != NULL && clGetProgramInfo(program, CL_PROGRAM_DEVICES, bytes, ids, NULL) == CL_SUCCESS) {
        for (size_t i = 0; i < b->count && !found; i++) {
            found = ids[i] == ctx->id;
            b->ours = i;
        }
    }
    free(ids);
    return found;
}

/* Everything but the digest. */
static bool pack(cl_program program, binaries *b, kept *k)
{
    const size_t sizes = b->count * sizeof *b->sizes, places = b->count * sizeof *b->places;
    size_t names = 0;

    if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizes, b->sizes, NULL) != CL_SUCCESS ||
        b->sizes[b->ours] == 0 ||
        clGetProgramInfo(program, CL_PROGRAM_KERNEL_NAMES, 0, NULL, &names) != CL_SUCCESS || names < 2)
        return false;
    k->size = CLXENT_SHA256_BYTES + names + b->sizes[b->ours];
    k->bytes = malloc(k->size);
    if (k->bytes == NULL) return false;
    unsigned char *kernels = k->bytes + CLXENT_SHA256_BYTES;
    b->places[b->ours] = kernels + names;
    return clGetProgramInfo(program, CL_PROGRAM_KERNEL_NAMES, names, kernels, NULL) == CL_SUCCESS &&
           clGetProgramInfo(program, CL_PROGRAM_BINARIES, places, b->places, NULL) == CL_SUCCESS;
}

void clxent_store_save(const clxent_context *ctx, const clxent_key *key, cl_program program)
{
    binaries b = { .count = 0 };
    kept k = { .bytes = NULL };

    if (ctx->store.save == NULL) return;
    if (clGetProgramInfo(program, CL_PROGRAM_NUM_DEVICES, sizeof b.count, &b.count, NULL) != CL_SUCCESS ||
        b.count == 0)
        return;
    b.sizes = calloc(b.count, sizeof *b.sizes);
    b.places = calloc(b.count, sizeof *b.places);
    if (b.sizes != NULL && b.places != NULL && find_ours(ctx, program, &b) && pack(program, &b, &k)) {
        digest_of(key, &k, k.bytes);
        ctx->store.save(key->text, k.bytes, k.size, ctx->store.payload);
    }
    free(k.bytes);
    free(b.places);
    free(b.sizes);
}
