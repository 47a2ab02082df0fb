/* SPDX-License-Identifier: MIT
 *
 * test_store.c - compiled programs that the application keeps: what is loaded, what is refused, what is saved. Includes
 * internal.h because keys and the hash are no part of the header.
 */
#include "internal.h"
#include "support.h"

#include <criterion/criterion.h>

#include <ctype.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The driver ---------------------------------------------------------------------------- */

/* Stands before the loader's: counts, and refuses on demand what was made of a binary. */
typedef enum refusal { NOTHING, CREATE, CREATE_WITH_CODE, STATUS_OF_BINARY, BUILD, KERNEL } refusal;
static refusal refused;
static atomic_int from_source, from_binary;
static _Thread_local bool in_binary; /* the thread's latest program is of a binary */
static const char *driver_version;

cl_program clCreateProgramWithSource(cl_context cl, cl_uint count, const char **texts, const size_t *lengths,
                                     cl_int *code)
{
    REAL(clCreateProgramWithSource);
    from_source++;
    in_binary = false;
    return real(cl, count, texts, lengths, code);
}

cl_program clCreateProgramWithBinary(cl_context cl, cl_uint count, const cl_device_id *ids,
                                     const size_t *sizes, const unsigned char **binaries, cl_int *status,
                                     cl_int *code)
{
    REAL(clCreateProgramWithBinary);
    from_binary++;
    in_binary = true;
    if (refused == CREATE) {
        *code = CL_INVALID_BINARY;
        return NULL;
    }
    cl_program program = real(cl, count, ids, sizes, binaries, status, code);
    if (refused == CREATE_WITH_CODE) *code = CL_INVALID_BINARY;
    if (refused == STATUS_OF_BINARY) *status = CL_INVALID_BINARY;
    return program;
}

cl_int clBuildProgram(cl_program program, cl_uint count, const cl_device_id *ids, const char *options,
                      void(CL_CALLBACK *notify)(cl_program, void *), void *data)
{
    REAL(clBuildProgram);
    if (refused == BUILD && in_binary) return CL_BUILD_PROGRAM_FAILURE;
    return real(program, count, ids, options, notify, data);
}

cl_kernel clCreateKernel(cl_program program, const char *name, cl_int *code)
{
    REAL(clCreateKernel);
    if (refused == KERNEL && in_binary) {
        *code = CL_INVALID_KERNEL_NAME;
        return NULL;
    }
    return real(program, name, code);
}

cl_int clGetDeviceInfo(cl_device_id id, cl_device_info info, size_t size, void *value, size_t *size_ret)
{
    REAL(clGetDeviceInfo);
    if (info != CL_DRIVER_VERSION || driver_version == NULL) return real(id, info, size, value, size_ret);
    if (size_ret != NULL) *size_ret = strlen(driver_version) + 1;
    if (value == NULL) return CL_SUCCESS;
    if (size < strlen(driver_version) + 1) return CL_INVALID_VALUE;
    strcpy(value, driver_version);
    return CL_SUCCESS;
}

/* ---- A store in memory --------------------------------------------------------------------- */

enum { MOST_ENTRIES = 8 };

typedef struct entry {
    char key[65];
    unsigned char *bytes;
    size_t size;
} entry;

typedef struct shelf {
    pthread_mutex_t lock;
    entry entries[MOST_ENTRIES];
    size_t count;
    int loads, saves; /* calls; a load is two where there is something */
    bool wrong;       /* a call was not as promised */
    bool shrinks;     /* the second call of a load finds less than the first */
} shelf;

static shelf kept = { .lock = PTHREAD_MUTEX_INITIALIZER };
static char latest_log[8192];
static atomic_int failures_logged;

static entry *find(shelf *s, const char *key)
{
    for (const char *at = key; *at != '\0'; at++)
        if (!isxdigit((unsigned char)*at) || isupper((unsigned char)*at)) s->wrong = true;
    if (strlen(key) != 64) s->wrong = true;
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->entries[i].key, key) == 0) return &s->entries[i];
    return NULL;
}

static size_t load(const char *key, void *binary, size_t size, void *payload)
{
    shelf *s = payload;
    size_t result = 0;

    pthread_mutex_lock(&s->lock);
    s->loads++;
    if ((size == 0) != (binary == NULL)) s->wrong = true;
    const entry *e = find(s, key);
    if (e != NULL) {
        result = e->size - (s->shrinks && size > 0);
        if (size > 0) memcpy(binary, e->bytes, size < e->size ? size : e->size);
    }
    pthread_mutex_unlock(&s->lock);
    return result;
}

static void save(const char *key, const void *binary, size_t size, void *payload)
{
    shelf *s = payload;

    pthread_mutex_lock(&s->lock);
    s->saves++;
    if (size == 0 || binary == NULL) s->wrong = true;
    entry *e = find(s, key);
    if (e == NULL && s->count < MOST_ENTRIES) {
        e = &s->entries[s->count++];
        snprintf(e->key, sizeof e->key, "%s", key);
    }
    if (e != NULL) {
        free(e->bytes);
        e->bytes = malloc(size);
        e->size = size;
        if (e->bytes != NULL) memcpy(e->bytes, binary, size);
    }
    pthread_mutex_unlock(&s->lock);
}

static void write_down(const char *message, void *payload)
{
    (void)payload;
    pthread_mutex_lock(&kept.lock);
    snprintf(latest_log, sizeof latest_log, "%s", message);
    pthread_mutex_unlock(&kept.lock);
    if (strncmp(message, "program: ", 9) == 0) return;
    if (strncmp(message, "program, from the store: ", 25) != 0 && strncmp(message, "plan: ", 6) != 0)
        failures_logged++;
}

static clxent_context *make_context(bool loads, bool saves)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    clxent_context *ctx;

    options.log = write_down;
    options.store = (clxent_store){ loads ? load : NULL, saves ? save : NULL, &kept };
    cr_assert(clxent_context_create(&ctx, device.cl, device.id, &options) == CLXENT_OK, "%s", latest_log);
    return ctx;
}

/* Of the smallest program there is. */
static clxent_plan *make_plan(clxent_context *ctx, uint32_t dtype)
{
    clxent_desc desc = make_desc(CLXENT_OUTPUT_ONE_HOT, dtype, 2, 1, 4);
    clxent_plan *plan;

    desc.op = CLXENT_OP_ONE_HOT;
    desc.target_type = CLXENT_TARGET_I32;
    return clxent_plan_create(&plan, ctx, &desc) == CLXENT_OK ? plan : NULL;
}

static void drop(clxent_plan *plan, clxent_context *ctx)
{
    clxent_plan_destroy(plan);
    clxent_context_destroy(ctx);
}

/* A context of its own makes a plan. How often programs were built from source, made of a binary, and saved. */
static void expect(const char *name, int source, int binary, int saves)
{
    const int saved = kept.saves;
    char text[64];

    from_source = from_binary = failures_logged = 0;
    kept.wrong = false;
    clxent_context *ctx = make_context(true, true);
    clxent_plan *plan = make_plan(ctx, CLXENT_F32);
    cr_assert(plan != NULL, "%s: %s", name, latest_log);
    cr_assert(from_source == source, "%s: %d programs from source", name, from_source);
    cr_assert(from_binary == binary, "%s: %d binaries reached the driver", name, from_binary);
    cr_assert(kept.saves - saved == saves, "%s: %d were saved", name, kept.saves - saved);
    cr_assert(!kept.wrong, "%s: a key or a size is wrong", name);
    cr_assert(failures_logged == 0 && clxent_context_last_error(ctx, text, sizeof text) == 1, "%s: %s", name,
              latest_log);
    drop(plan, ctx);
}

static void close_store(void)
{
    for (size_t i = 0; i < kept.count; i++) free(kept.entries[i].bytes);
    close_device();
}

TestSuite(store, .init = open_device, .fini = close_store);

/* ---- The hash ------------------------------------------------------------------------------ */

static void expect_digest(const char *name, clxent_sha256 *hash, const char *digits)
{
    unsigned char digest[CLXENT_SHA256_BYTES];
    char text[2 * CLXENT_SHA256_BYTES + 1];

    clxent_sha256_end(hash, digest);
    for (size_t i = 0; i < sizeof digest; i++) snprintf(text + 2 * i, 3, "%02x", digest[i]);
    cr_assert(strcmp(text, digits) == 0, "%s: %s", name, text);
}

/* The examples of FIPS 180-4, in pieces of every size that there is within a block. */
Test(sha256, digests_are_those_of_the_standard)
{
    static const char *const vectors[][2] = {
        { "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
        { "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
        { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
        { "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsm"
          "nopqrstnopqrstu",
          "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1" },
    };
    clxent_sha256 hash;
    char letters[1000];

    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        const size_t length = strlen(vectors[i][0]);
        for (size_t piece = 1; piece <= 65; piece++) {
            clxent_sha256_begin(&hash);
            for (size_t at = 0; at < length; at += piece)
                clxent_sha256_add(&hash, vectors[i][0] + at, length - at < piece ? length - at : piece);
            expect_digest(vectors[i][0], &hash, vectors[i][1]);
        }
    }
    memset(letters, 'a', sizeof letters);
    clxent_sha256_begin(&hash);
    for (size_t i = 0; i < 1000; i++) clxent_sha256_add(&hash, letters, sizeof letters);
    expect_digest("a million", &hash, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

/* ---- Keys ---------------------------------------------------------------------------------- */

static clxent_key key_of(clxent_context *ctx, const char *name, const char *text, const char *options)
{
    const clxent_source source = { name, (const unsigned char *)text, strlen(text) };
    clxent_key key;

    cr_assert(clxent_store_key(ctx, &source, options, &key));
    return key;
}

Test(store, keys_tell_apart_what_programs_depend_on)
{
    clxent_context *ctx = make_context(true, true), *other = make_context(true, false);
    const clxent_key key = key_of(ctx, "a.cl", "text", "-DA=1");
    const clxent_source source = { "a.cl", (const unsigned char *)"text", 4 };
    const char *const others[][3] = {
        { "b.cl", "text", "-DA=1" }, { "a.cl", "texts", "-DA=1" }, { "a.cl", "text", "-DA=2" },
        { "a.clt", "ext", "-DA=1" }, { "1a.cl", "text", "-DA=" },
    };

    cr_assert_str_eq(key_of(other, "a.cl", "text", "-DA=1").text, key.text, "another context");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        cr_assert_str_neq(key_of(ctx, others[i][0], others[i][1], others[i][2]).text, key.text, "%zu", i);
    driver_version = "another driver";
    cr_assert_str_neq(key_of(ctx, "a.cl", "text", "-DA=1").text, key.text, "another driver");
    driver_version = NULL;

    char *longest = take_memory(5000);
    memset(longest, 'x', 4999);
    longest[4999] = '\0';
    driver_version = longest;
    clxent_key untold;
    cr_assert(!clxent_store_key(ctx, &source, "", &untold), "a text that was not read whole");
    driver_version = NULL;
    free(longest);
    cr_assert(!clxent_store_key(device.ctx, &source, "", &untold), "a context without a store");
    clxent_context_destroy(ctx);
    clxent_context_destroy(other);
}

/* ---- Loading and saving --------------------------------------------------------------------- */

Test(store, what_was_saved_is_not_built_again)
{
    expect("an empty store", 1, 0, 1);
    expect("a full one", 0, 1, 0);
    cr_assert(strncmp(latest_log, "plan: ", 6) == 0, "%s", latest_log);

    /* Another program has a place of its own; a context that has built one does not look. */
    clxent_context *ctx = make_context(true, true);
    clxent_plan *one = make_plan(ctx, CLXENT_F16), *same = make_plan(ctx, CLXENT_F16);
    cr_assert(one != NULL && same != NULL && kept.count == 2 && kept.saves == 2 && from_source == 1);
    clxent_plan_destroy(one);
    drop(same, ctx);
}

Test(store, either_function_may_be_null)
{
    for (int round = 0; round < 2; round++) {
        for (int which = 0; which < 4; which++) {
            const int saved = kept.saves, loaded = kept.loads;
            const bool loads = (which & 1) != 0, saves = (which & 2) != 0, full = kept.count > 0;
            clxent_context *ctx = make_context(loads, saves);
            from_source = from_binary = 0;
            clxent_plan *plan = make_plan(ctx, CLXENT_F32);
            cr_assert(plan != NULL, "%s", latest_log);
            cr_assert(from_binary == (loads && full) && from_source == !(loads && full), "%d", which);
            cr_assert(kept.saves - saved == (saves && from_source == 1) && (kept.loads > loaded) == loads);
            drop(plan, ctx);
        }
    }
}

Test(store, an_older_struct_has_none)
{
    clxent_context_options options = CLXENT_CONTEXT_OPTIONS_INIT;
    clxent_context *ctx;

    options.store = (clxent_store){ load, save, &kept };
    options.struct_size = offsetof(clxent_context_options, store);
    cr_assert(clxent_context_create(&ctx, device.cl, device.id, &options) == CLXENT_OK);
    clxent_plan *plan = make_plan(ctx, CLXENT_F32);
    cr_assert(plan != NULL && kept.loads == 0 && kept.saves == 0);
    drop(plan, ctx);
}

/* Puts bytes in the place of the only entry's, looks at what becomes of them, and restores it. */
static void expect_rebuilt(const char *name, const unsigned char *bytes, size_t size)
{
    entry *e = &kept.entries[0];
    unsigned char *good = e->bytes;
    const size_t good_size = e->size;

    e->bytes = take_memory(size + 1);
    memcpy(e->bytes, bytes, size);
    e->size = size;
    expect(name, 1, 0, 1);
    expect(name, 0, 1, 0);
    free(e->bytes);
    e->bytes = good;
    e->size = good_size;
}

Test(store, what_is_damaged_is_built_anew_and_never_reaches_the_driver)
{
    expect("an empty store", 1, 0, 1);
    const size_t size = kept.entries[0].size;
    unsigned char *copy = take_memory(size + 1);
    const size_t flips[] = { 0, 31, 32, 40, size / 2, size - 1 };
    const size_t cuts[] = { 1, 31, 32, 33, size / 2, size - 1, size + 1 };
    char name[64];

    copy[size] = 0;
    for (size_t i = 0; i < COUNT(flips) + COUNT(cuts); i++) {
        const bool flip = i < COUNT(flips);
        const size_t at = flip ? flips[i] : cuts[i - COUNT(flips)];
        memcpy(copy, kept.entries[0].bytes, size);
        if (flip) copy[at] ^= 0x10;
        snprintf(name, sizeof name, "%s %zu of %zu", flip ? "byte" : "length", at, size);
        expect_rebuilt(name, copy, flip ? size : at);
    }
    memset(copy, 0, size);
    expect_rebuilt("zeros", copy, size);
    free(copy);

    /* A whole one of another program. */
    clxent_context *ctx = make_context(true, true);
    clxent_plan *other = make_plan(ctx, CLXENT_F16);
    cr_assert(other != NULL && kept.count == 2);
    expect_rebuilt("another program's", kept.entries[1].bytes, kept.entries[1].size);
    drop(other, ctx);

    kept.shrinks = true;
    expect("a store that changes between the two calls", 1, 0, 1);
}

Test(store, what_the_driver_refuses_is_built_anew)
{
    static const char *const names[] = { "nothing", "create",         "create, with a program",
                                         "status",  "clBuildProgram", "a kernel" };
    cl_uint before, after;

    expect("an empty store", 1, 0, 1);
    clGetContextInfo(device.cl, CL_CONTEXT_REFERENCE_COUNT, sizeof before, &before, NULL);
    for (int what = CREATE; what <= KERNEL; what++) {
        refused = (refusal)what;
        expect(names[what], 1, 1, 1);
    }
    refused = NOTHING;
    clGetContextInfo(device.cl, CL_CONTEXT_REFERENCE_COUNT, sizeof after, &after, NULL);
    cr_assert_eq(before, after, "a program was kept");
    expect("nothing", 0, 1, 0);
}

/* ---- Results ------------------------------------------------------------------------------- */

static void run(clxent_context *ctx, const problem *p, clxent_host_args *out)
{
    clxent_plan *plan;
    cr_assert(clxent_plan_create(&plan, ctx, &p->desc) == CLXENT_OK, "%s", latest_log);
    run_once("store", plan, p, p->desc.outputs, 0, out);
    drop(plan, ctx);
}

Test(store, a_loaded_program_gives_the_same_bits)
{
    const clxent_desc desc = make_desc(TRAINING_OUTPUTS, CLXENT_F32, 5, 3, 1025);
    clxent_host_args built, loaded;
    problem p;

    make_problem(&p, &desc, FILL_IGNORED, 3);
    run(make_context(true, true), &p, &built);
    from_source = from_binary = 0;
    run(make_context(true, true), &p, &loaded);
    cr_assert(from_source == 0 && from_binary > 0, "%d from source", from_source);
    check_same_outputs("loaded", &built, &loaded);
    free_outputs(&built);
    free_run(&p, &loaded);
}

enum { THREADS = 6 };

/* Half of the threads share one context, the others have one each; two programs. */
static void *use_store(void *shared)
{
    clxent_context *ctx = shared != NULL ? shared : make_context(true, true);
    clxent_plan *one = make_plan(ctx, CLXENT_F32), *other = make_plan(ctx, CLXENT_F16);
    const bool good = one != NULL && other != NULL;

    clxent_plan_destroy(one);
    clxent_plan_destroy(other);
    if (shared == NULL) clxent_context_destroy(ctx);
    return good ? &kept : NULL;
}

Test(store, threads_load_and_save_at_once)
{
    pthread_t threads[THREADS];

    if (small_run()) cr_skip("Oclgrind cannot build programs in several threads at once");
    for (int round = 0; round < 3; round++) { /* the first saves, the others load */
        clxent_context *ctx = make_context(true, true);
        from_source = 0;
        for (int t = 0; t < THREADS; t++)
            cr_assert(pthread_create(&threads[t], NULL, use_store, t % 2 == 0 ? ctx : NULL) == 0);
        for (int t = 0; t < THREADS; t++) {
            void *result = NULL;
            pthread_join(threads[t], &result);
            cr_assert(result != NULL, "%s", latest_log);
        }
        clxent_context_destroy(ctx);
        cr_assert(kept.count == 2 && !kept.wrong && (round == 0 || from_source == 0), "%d from source",
                  from_source);
    }
}
