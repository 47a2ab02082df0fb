/* SPDX-License-Identifier: MIT
 *
 * test_npy.c - the .npy reader and writer of the command line, without NumPy: hostile headers, conversion
 * to native C order, outputs that appear complete or not at all. tests/test_eval.py holds it against NumPy
 * itself.
 */
#include "npy.h"
#include "signals.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- Support -------------------------------------------------------------------------------- */

/* A .npy file of header text and data_bytes zeros. The caller frees it. */
static unsigned char *make_file(int version, const char *text, size_t data_bytes, size_t *size)
{
    const size_t length = strlen(text), prefix = version == 1 ? 10 : 12;
    unsigned char *file = calloc(1, prefix + length + data_bytes);

    memcpy(file, "\x93NUMPY", 6);
    file[6] = (unsigned char)version;
    file[8] = (unsigned char)(length & 0xff);
    file[9] = (unsigned char)(length >> 8);
    memcpy(file + prefix, text, length);
    *size = prefix + length + data_bytes;
    return file;
}

static bool parse(const char *text, size_t data_bytes, npy_header *header, npy_fault *fault)
{
    size_t size;
    unsigned char *file = make_file(1, text, data_bytes, &size);
    const bool good = npy_parse(header, file, size, fault);
    free(file);
    return good;
}

static char directory[64];

static void make_directory(void)
{
    strcpy(directory, "/tmp/clxent-npy-XXXXXX");
    cr_assert(mkdtemp(directory) != NULL);
}

static const char *in_directory(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", directory, name);
    return path;
}

static int files_in_directory(void)
{
    DIR *stream = opendir(directory);
    int count = 0;
    while (readdir(stream) != NULL) count++;
    closedir(stream);
    return count - 2; /* . and .. */
}

static void remove_directory(void)
{
    DIR *stream = opendir(directory);
    const struct dirent *entry;
    while ((entry = readdir(stream)) != NULL)
        if (entry->d_name[0] != '.') remove(in_directory(entry->d_name));
    closedir(stream);
    rmdir(directory);
}

static void write_file(const char *path, const void *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");
    cr_assert(stream != NULL && fwrite(bytes, 1, size, stream) == size && fclose(stream) == 0);
}

TestSuite(npy, .init = make_directory, .fini = remove_directory);

static void create(npy_output *output, const char *name, const char *dtype, const size_t *shape, size_t axes)
{
    npy_fault fault = { "" };
    cr_assert(npy_create(output, in_directory(name), dtype, shape, axes, &fault), "%s: %s", name, fault.text);
}

static void commit(npy_output *outputs, size_t count)
{
    npy_fault fault = { "" };
    size_t failed;
    cr_assert(npy_commit(outputs, count, &failed, &fault), "%s", fault.text);
}

/* The array of the file, native and in C order. */
static void open_native(npy_array *array, const char *name)
{
    npy_fault fault = { "" };
    cr_assert(npy_open(array, in_directory(name), &fault) && npy_native(array, &fault), "%s: %s", name,
              fault.text);
}

#define HEADER(descr, shape) "{'descr': " descr ", 'fortran_order': False, 'shape': " shape ", }"

/* ---- Headers -------------------------------------------------------------------------------- */

Test(npy, reads_what_numpy_may_write)
{
    static const struct {
        const char *text;
        char kind;
        size_t item_size, axes, count;
        bool fortran;
    } cases[] = {
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   \n", 'f', 4, 2, 6, false },
        { "{'shape':(2,3,),'fortran_order':True,'descr':'<f8'}", 'f', 8, 2, 6, true },
        { "  { \"descr\" : \"|u1\" , \"fortran_order\" : False , \"shape\" : ( ) }", 'u', 1, 0, 1, false },
        { HEADER("'i8'", "(5L,)"), 'i', 8, 1, 5, false },
        { HEADER("'=i4'", "(4, 0, 7)"), 'i', 4, 3, 0, false },
        { HEADER("'|V2'", "(1,)"), 'V', 2, 1, 1, false },
        { HEADER("'bfloat16'", "(3,)"), 'V', 2, 1, 3, false },
        { HEADER("'<bfloat16'", "(3,)"), 'V', 2, 1, 3, false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        npy_header h;
        npy_fault fault = { "" };
        const bool good = parse(cases[i].text, cases[i].count * cases[i].item_size, &h, &fault);
        cr_expect(good, "%s: %s", cases[i].text, fault.text);
        cr_expect(h.kind == cases[i].kind && h.item_size == cases[i].item_size && h.axes == cases[i].axes &&
                      h.count == cases[i].count && h.fortran == cases[i].fortran,
                  "%s", cases[i].text);
    }
}

Test(npy, versions_differ_in_the_length_field_only)
{
    static const char text[] = "{'descr': '>i4', 'fortran_order': False, 'shape': (3,), }\n";
    for (int version = 0; version <= 4; version++) {
        size_t size;
        npy_header h;
        npy_fault fault = { "" };
        unsigned char *file = make_file(version, text, 12, &size);
        const bool good = npy_parse(&h, file, size, &fault);
        cr_expect(good == (version >= 1 && version <= 3), "version %d: %s", version, fault.text);
        if (good) cr_expect(h.data_offset == (version == 1 ? 10 : 12) + sizeof text - 1);
        if (!good) cr_expect(strstr(fault.text, "version") != NULL);
        free(file);
    }
}

Test(npy, refuses_hostile_headers_with_the_reason)
{
    static const struct {
        const char *text, *reason;
    } cases[] = {
        { "", "expected '{'" },
        { "{", "expected a key" },
        { "{}", "no descr" },
        { "[]", "expected '{'" },
        { "{'descr': '<f4', 'fortran_order': False, }", "no shape" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'shape': (1,), }", "twice" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'extra': 1, }", "a key that is not" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } x", "expected nothing more" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)", "expected ',' or '}'" },
        { "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,), }", "expected True or False" },
        { HEADER("'<f4'", "1"), "expected a tuple" },
        { HEADER("'<f4'", "(1)"), "expected ','" },
        { HEADER("'<f4'", "(-1,)"), "shape has the length -1: takes 0 or more" },
        { HEADER("'<f4'", "(2, -, )"), "expected a length" },
        { HEADER("'<f4'", "(1.5,)"), "expected ','" },
        { HEADER("'<f4'", "(18446744073709551616,)"), "longer than memory" },
        { HEADER("'<f4'", "(4294967296, 4294967296)"), "more items than memory" },
        { HEADER("'<f4'", "(0, 4294967296, 4294967296)"), "more items" },
        { HEADER("'<f4'", "(4611686018427387904,)"), "more items than memory" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': "
          "(1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"
          "1,1,1,1,1,1,1), }",
          "more than 32 axes" },
        { HEADER("'|O'", "(1,)"), "Python objects" },
        { HEADER("[('a', '<f4')]", "(1,)"), "structured dtype" },
        { HEADER("'<M8[ns]'", "(1,)"), "'<M8[ns]' is not a number" },
        { HEADER("'<U5'", "(1,)"), "'<U5' is not a number" },
        { HEADER("'<f'", "(1,)"), "is not a number" },
        { HEADER("''", "(1,)"), "'' is not a number" },
        { HEADER("'<f99999999999999999999999'", "(1,)"), "is not a number" },
        { HEADER("'<f4\n\x01'", "(1,)"), "expected the end of a string" },
        { HEADER("'<\\x664'", "(1,)"), "expected the end of a string" },
        { HEADER("'<f4", "(1,)"), "" },
        { HEADER("'<f4'", "(2,)"), "truncated: 4 of 8 data bytes" },
        { HEADER("'<u2'", "(1,)"), "2 bytes follow the array" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        npy_header h;
        npy_fault fault = { "" };
        cr_expect(!parse(cases[i].text, 4, &h, &fault), "%s", cases[i].text);
        cr_expect(strstr(fault.text, cases[i].reason) != NULL, "%s: %s", cases[i].text, fault.text);
        cr_expect(fault.text[0] != '\0' && strchr(fault.text, '\n') == NULL);
    }
}

Test(npy, refuses_every_proper_prefix_and_every_longer_file)
{
    size_t size;
    npy_header h;
    npy_fault fault;
    unsigned char *file =
        make_file(2, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", 12, &size);

    for (size_t shorter = 0; shorter < size; shorter++) {
        unsigned char *part = malloc(shorter + 1); /* exact length, for the address sanitizer */
        memcpy(part, file, shorter);
        cr_expect(!npy_parse(&h, part, shorter, &fault), "%zu bytes", shorter);
        free(part);
    }
    cr_expect(npy_parse(&h, file, size, &fault));
    file = realloc(file, size + 1);
    file[size] = 0;
    cr_expect(!npy_parse(&h, file, size + 1, &fault));
    cr_expect(strcmp(fault.text, "1 bytes follow the array") == 0);
    free(file);
}

Test(npy, names_files_of_other_formats)
{
    npy_header h;
    npy_fault fault;
    cr_expect(!npy_parse(&h, "PK\x03\x04....", 8, &fault) && strstr(fault.text, ".npz") != NULL);
    cr_expect(!npy_parse(&h, "hello, world", 12, &fault) && strcmp(fault.text, "not a .npy file") == 0);
    cr_expect(!npy_parse(&h, "", 0, &fault) && strstr(fault.text, "empty") != NULL);
}

/* ---- Conversion ------------------------------------------------------------------------------ */

/* Items hold their own C-order index. What is stored is that array in the order and byte order asked for. */
static void check_conversion(const size_t *shape, size_t axes, size_t item, bool fortran, bool swapped)
{
    char text[1024], *at;
    size_t count = 1, size, offset;
    unsigned char *file;
    npy_array array;
    const uint16_t one = 1;
    const bool little = *(const unsigned char *)&one == 1;

    for (size_t axis = 0; axis < axes; axis++) count *= shape[axis];
    snprintf(text, sizeof text, "{'descr': '%c%c%zu', 'fortran_order': %s, 'shape': %s, }\n",
             little != swapped ? '<' : '>', item == 1 ? 'u' : 'i', item, fortran ? "True" : "False",
             npy_shape_text(shape, axes).text);
    file = make_file(1, text, count * item, &size);
    at = (char *)file + size - count * item;

    for (size_t i = 0; i < count; i++) {
        size_t rest = i, place = fortran ? 0 : i, scale = count;
        unsigned char bytes[8] = { 0 };
        if (fortran) {
            /* last axis first: rest % shape is its index, and its stride is the product of the axes
             * before it */
            for (size_t axis = axes; axis-- > 0;) {
                scale /= shape[axis];
                place += rest % shape[axis] * scale;
                rest /= shape[axis];
            }
        }
        for (size_t k = 0; k < item && k < sizeof i; k++) {
            const size_t byte = little != swapped ? k : item - 1 - k;
            bytes[byte] = (unsigned char)(i >> (8 * k));
        }
        memcpy(at + place * item, bytes, item);
    }
    write_file(in_directory("a.npy"), file, size);
    free(file);

    open_native(&array, "a.npy");
    offset = array.header.data_offset;
    cr_expect((array.converted == NULL) == (array.data == (const char *)array.mapping + offset));
    cr_expect((uintptr_t)array.data % item == 0);
    for (size_t i = 0; i < count; i++) {
        uint64_t value = 0;
        switch (item) {
        case 1: value = ((const uint8_t *)array.data)[i]; break;
        case 2: value = ((const uint16_t *)array.data)[i]; break;
        case 4: value = ((const uint32_t *)array.data)[i]; break;
        default: value = ((const uint64_t *)array.data)[i]; break;
        }
        const uint64_t want = item == 8 ? i : i & ((UINT64_C(1) << (8 * item)) - 1);
        cr_assert(value == want, "%s: item %zu is %llu", text, i, (unsigned long long)value);
    }
    npy_close(&array);
    cr_expect(array.mapping == NULL);
}

Test(npy, converts_any_order_to_native_c_order)
{
    static const struct {
        size_t axes, shape[5];
    } shapes[] = {
        { 0, { 0 } },       { 1, { 7 } },         { 2, { 3, 5 } },        { 2, { 65, 129 } },
        { 3, { 2, 3, 4 } }, { 3, { 1, 70, 66 } }, { 4, { 5, 1, 2, 67 } }, { 5, { 2, 3, 1, 2, 5 } },
        { 3, { 3, 0, 2 } },
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (size_t item = 1; item <= 8; item *= 2) {
            for (int how = 0; how < 4; how++)
                check_conversion(shapes[s].shape, shapes[s].axes, item, how & 1, how & 2);
        }
    }
}

Test(npy, maps_native_c_order_without_a_copy)
{
    const size_t shape[] = { 4, 1, 3 };
    npy_output output;
    npy_array array;

    create(&output, "a.npy", "f4", shape, 3);
    cr_expect((uintptr_t)output.data % 64 == 0);
    cr_expect(output.bytes == 48);
    for (int i = 0; i < 12; i++) ((float *)output.data)[i] = (float)i;
    commit(&output, 1);

    open_native(&array, "a.npy");
    cr_expect(array.converted == NULL);
    cr_expect(strcmp(npy_dtype_text(&array.header).text, "f4") == 0);
    cr_expect(strcmp(npy_shape_text(array.header.shape, array.header.axes).text, "(4, 1, 3)") == 0);
    for (int i = 0; i < 12; i++) cr_expect(((const float *)array.data)[i] == (float)i);
    npy_close(&array);
}

Test(npy, copies_data_that_is_not_aligned)
{
    size_t size;
    npy_array array;
    const double value = 0.1;
    unsigned char *file = make_file(1, "{'descr': 'f8', 'fortran_order': False, 'shape': (1,) }", 8, &size);

    cr_assert((size - 8) % 8 != 0);
    memcpy(file + size - 8, &value, 8);
    write_file(in_directory("a.npy"), file, size);
    free(file);
    open_native(&array, "a.npy");
    cr_expect((uintptr_t)array.data % 8 == 0);
    cr_expect(*(const double *)array.data == value);
    npy_close(&array);
}

Test(npy, what_is_not_a_file_is_neither_read_nor_replaced)
{
    npy_array array;
    npy_output output;
    npy_fault fault = { "" };

    cr_expect(!npy_open(&array, in_directory("none.npy"), &fault) &&
              strstr(fault.text, "No such file") != NULL);
    cr_expect(!npy_open(&array, directory, &fault) && strcmp(fault.text, "not a regular file") == 0);
    cr_expect(!npy_create(&output, directory, "f4", NULL, 0, &fault) &&
              strcmp(fault.text, "is a directory") == 0);
    cr_expect(!npy_create(&output, "/dev/null", "f4", NULL, 0, &fault) &&
              strstr(fault.text, "regular") != NULL);
    cr_expect(!npy_create(&output, in_directory("no/a.npy"), "f4", NULL, 0, &fault) &&
              strstr(fault.text, "No such file") != NULL);
    cr_expect(files_in_directory() == 0);
    cr_assert(mkfifo(in_directory("pipe"), 0600) == 0);
    cr_expect(!npy_open(&array, in_directory("pipe"), &fault) &&
              strcmp(fault.text, "not a regular file") == 0);
    npy_close(&array);
}

/* ---- Outputs --------------------------------------------------------------------------------- */

Test(npy, discarded_outputs_leave_nothing)
{
    const size_t shape[] = { 2 };
    npy_output output;

    write_file(in_directory("old.npy"), "old", 3);
    create(&output, "old.npy", "i8", shape, 1);
    npy_discard(&output);
    npy_discard(&output);
    cr_expect(files_in_directory() == 1);
    cr_expect(access(in_directory("old.npy"), F_OK) == 0);
}

static bool file_has(const char *path, const char *text)
{
    char found[64] = "";
    FILE *file = fopen(path, "rb");
    if (file == NULL) return false;
    const size_t size = fread(found, 1, sizeof found, file);
    fclose(file);
    return size == strlen(text) && memcmp(found, text, size) == 0;
}

/* The one before the failure had been renamed, the one behind it not. */
Test(npy, files_of_before_survive_a_commit_that_fails)
{
    static const char *const names[] = { "a.npy", "new.npy", "b.npy", "c.npy" };
    npy_output outputs[4];
    npy_fault fault = { "" };
    size_t failed = 99;

    write_file(in_directory("a.npy"), "a of before", 11);
    write_file(in_directory("c.npy"), "c of before", 11);
    for (size_t i = 0; i < 4; i++) create(&outputs[i], names[i], "f8", NULL, 0);
    cr_assert(mkdir(in_directory("b.npy"), 0700) == 0);
    cr_expect(!npy_commit(outputs, 4, &failed, &fault));
    cr_expect(failed == 2);
    cr_expect(strstr(fault.text, "cannot be written") != NULL, "%s", fault.text);
    cr_expect(file_has(in_directory("a.npy"), "a of before"));
    cr_expect(file_has(in_directory("c.npy"), "c of before"));
    cr_expect(files_in_directory() == 3, "a, c and the directory");

    rmdir(in_directory("b.npy"));
    for (size_t i = 0; i < 4; i++) create(&outputs[i], names[i], "f8", NULL, 0);
    commit(outputs, 4);
    cr_expect(!file_has(in_directory("a.npy"), "a of before"));
    cr_expect(files_in_directory() == 4, "no second names are left");
}

Test(npy, a_file_is_the_same_however_its_path_is_spelled)
{
    enum { SAME = 6 };
    static const char *const names[SAME + 4] = { "./a.npy",    "link.npy",  "chain.npy",    "sub/../a.npy",
                                                 "back/a.npy", "up/a.npy", /* others: */
                                                 "b.npy",      "sub/a.npy", "up/sub/a.npy", "away.npy" };
    npy_output a, other;

    cr_assert(mkdir(in_directory("sub"), 0700) == 0 && symlink("a.npy", in_directory("link.npy")) == 0);
    cr_assert(symlink(in_directory("link.npy"), in_directory("chain.npy")) == 0);
    cr_assert(symlink(directory, in_directory("back")) == 0 && symlink("sub/..", in_directory("up")) == 0);
    cr_assert(symlink("sub/b.npy", in_directory("away.npy")) == 0);
    for (int exists = 0; exists < 2; exists++) {
        if (exists) write_file(in_directory("a.npy"), "old", 3);
        create(&a, "a.npy", "f4", NULL, 0);
        for (size_t i = 0; i < SAME + 4; i++) {
            create(&other, names[i], "f4", NULL, 0);
            cr_expect(npy_same_file(&a, &other) == (i < SAME), "%s", names[i]);
            npy_discard(&other);
        }
        npy_discard(&a);
    }
    rmdir(in_directory("sub"));
}

Test(npy, a_file_that_is_there_is_known_by_all_of_its_names)
{
    write_file(in_directory("a.npy"), "a", 1);
    write_file(in_directory("other.npy"), "a", 1);
    cr_assert(link(in_directory("a.npy"), in_directory("hard.npy")) == 0);
    cr_assert(symlink("hard.npy", in_directory("link.npy")) == 0);
    for (size_t i = 0; i < 4; i++) {
        static const char *const names[] = { "a.npy", "./a.npy", "hard.npy", "link.npy" };
        cr_expect(npy_one_file(in_directory(names[i]), in_directory("a.npy")), "%s", names[i]);
        cr_expect(!npy_one_file(in_directory(names[i]), in_directory("other.npy")), "%s", names[i]);
    }
    cr_expect(!npy_one_file(in_directory("none.npy"), in_directory("none.npy")));
}

Test(npy, what_could_be_written_is_not)
{
    npy_fault fault = { "" };
    char *resolved, *other;

    cr_assert(npy_can_write(in_directory("a.npy"), &resolved, &fault), "%s", fault.text);
    cr_assert(npy_can_write(in_directory("./a.npy"), &other, &fault), "%s", fault.text);
    cr_expect(strcmp(resolved, other) == 0, "%s, %s", resolved, other);
    free(resolved);
    free(other);
    cr_expect(!npy_can_write(in_directory("no/a.npy"), &resolved, &fault));
    cr_expect(resolved == NULL && strstr(fault.text, "No such file") != NULL, "%s", fault.text);
    cr_expect(files_in_directory() == 0);
}

Test(npy, outputs_take_the_usual_permissions_and_follow_links)
{
    npy_output output;
    npy_fault fault = { "" };
    struct stat info;

    umask(027);
    write_file(in_directory("target.npy"), "old", 3);
    cr_assert(symlink("target.npy", in_directory("link.npy")) == 0);
    cr_assert(symlink("new.npy", in_directory("to_nothing.npy")) == 0);
    for (int i = 0; i < 2; i++) {
        static const char *const names[][2] = { { "link.npy", "target.npy" },
                                                { "to_nothing.npy", "new.npy" } };
        create(&output, names[i][0], "f4", NULL, 0);
        commit(&output, 1);
        cr_expect(lstat(in_directory(names[i][0]), &info) == 0 && S_ISLNK(info.st_mode));
        cr_expect(lstat(in_directory(names[i][1]), &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 3);
    }
    cr_expect((info.st_mode & 0777) == 0640);

    cr_assert(symlink("one.npy", in_directory("two.npy")) == 0);
    cr_assert(symlink("two.npy", in_directory("one.npy")) == 0);
    cr_expect(!npy_create(&output, in_directory("one.npy"), "f4", NULL, 0, &fault), "a circle");
    cr_expect(strstr(fault.text, "cannot be written: ") != NULL, "%s", fault.text);
    cr_expect(files_in_directory() == 6);
}

/* Creates a file in a child that then sends itself the signal. Returns the child's status: that of the signal, or 0
 * where the signal was ignored, as it should be with before. */
static int end_child(int number, void (*before)(void), int (*send)(int))
{
    const struct rlimit no_core = { 0, 0 };
    const pid_t child = fork();
    int status = 0;

    if (child == 0) {
        npy_output output;
        npy_fault fault;
        setrlimit(RLIMIT_CORE, &no_core);
        signal(number, SIG_DFL); /* a sanitizer's handler would report the signal */
        if (before != NULL) before();
        signals_start();
        if (!npy_create(&output, in_directory("a.npy"), "f4", NULL, 0, &fault)) _exit(99);
        send(number);
        while (before == NULL) pause(); /* a thread of its own looks after signals from outside */
        nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
        npy_discard(&output);
        exit(0);
    }
    cr_assert(child > 0 && waitpid(child, &status, 0) == child);
    cr_expect(files_in_directory() == 0, "signal %d left a file", number);
    return status;
}

static int send_to_self(int number) { return kill(getpid(), number); }

/* As a driver's compiler that gives up. */
static int call_exit(int number) { exit(number); }

Test(npy, a_signal_leaves_nothing_unfinished)
{
    static const int outside[] = { SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGXCPU };
    static const int faults[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS, SIGPIPE };

    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        const int status = end_child(outside[i], NULL, send_to_self);
        cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == outside[i], "signal %d", outside[i]);
    }
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        const int status = end_child(faults[i], NULL, raise);
        cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == faults[i], "signal %d", faults[i]);
    }
    const int status = end_child(3, NULL, call_exit);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

static void ignore_all(void)
{
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
}

static int end_by_handler(int number)
{
    /* what LLVM does when it compiles, within a driver */
    signal(number, _exit);
    return kill(getpid(), number);
}

Test(npy, a_signal_that_the_caller_ignored_stays_ignored)
{
    static const int numbers[] = { SIGHUP, SIGINT, SIGTERM };

    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const int status = end_child(numbers[i], ignore_all, end_by_handler);
        cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "signal %d: status %d", numbers[i], status);
    }
}

/* Writes pairs of files of one number each, until a signal ends it. */
static void write_pairs(int started)
{
    signals_start();
    for (float number = 1;; number++) {
        npy_output pair[2];
        npy_fault fault;
        size_t failed;

        if (!npy_create(&pair[0], in_directory("a.npy"), "f4", NULL, 0, &fault)) _exit(1);
        if (number == 1 && write(started, "", 1) != 1) _exit(1);
        if (!npy_create(&pair[1], in_directory("b.npy"), "f4", NULL, 0, &fault)) _exit(1);
        memcpy(pair[0].data, &number, sizeof number);
        memcpy(pair[1].data, &number, sizeof number);
        if (!npy_commit(pair, 2, &failed, &fault)) _exit(1);
    }
}

static float number_in(const char *path)
{
    npy_array input;
    npy_fault fault;
    float number;

    if (!npy_open(&input, path, &fault) || !npy_native(&input, &fault)) return 0; /* none has been written */
    memcpy(&number, input.data, sizeof number);
    npy_close(&input);
    return number;
}

Test(npy, a_signal_at_any_moment_leaves_whole_sets_of_files)
{
    enum { ROUNDS = 150 };
    float most = 0;

    for (int round = 0; round < ROUNDS; round++) {
        int ends[2], status = 0;
        char begun;
        cr_assert(pipe(ends) == 0);
        const pid_t child = fork();

        if (child == 0) write_pairs(ends[1]);
        close(ends[1]);
        cr_assert(child > 0 && read(ends[0], &begun, 1) == 1);
        close(ends[0]);
        nanosleep(&(struct timespec){ .tv_nsec = round * 20011L }, NULL);
        cr_assert(kill(child, SIGTERM) == 0 && waitpid(child, &status, 0) == child);
        cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);

        const float a = number_in(in_directory("a.npy")), b = number_in(in_directory("b.npy"));
        cr_assert(a == b, "round %d: a.npy is of set %g, b.npy of %g", round, a, b);
        cr_assert(files_in_directory() == (a > 0 ? 2 : 0), "round %d: %d files", round, files_in_directory());
        if (a > most) most = a;
    }
    cr_expect(most > 1); /* some were interrupted late enough to have written */
}
