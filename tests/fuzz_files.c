/* SPDX-License-Identifier: MIT
 *
 * fuzz_files.c - libFuzzer entry of the parsers of .npy and .safetensors headers: whatever the bytes, no access outside
 * them, and what is accepted lies within the file. Input that begins with '{' is a .safetensors header up to the last '}',
 * and data; the length that stands before it in a file is added, as chance would seldom find it.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -I tools/clxent tests/fuzz_files.c tools/clxent/npy.c \
 *         tools/clxent/signals.c tools/clxent/tensor_file.c -ljansson -lzip -lpthread
 */
#include "tensor_file.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Of a result: good, or one line of text. Returns the bytes that the array ends before. */
static size_t check(bool good, const npy_header *h, const npy_fault *fault)
{
    size_t count = 1;

    if (!good && (fault->text[0] == '\0' || strchr(fault->text, '\n') != NULL)) abort();
    if (!good) return 0;
    if (h->axes > NPY_MAX_AXES || h->item_size == 0) abort();
    for (size_t axis = 0; axis < h->axes; axis++) count *= h->shape[axis];
    if (count != h->count || strlen(npy_shape_text(h->shape, h->axes).text) < 2) abort();
    return h->data_offset + count * h->item_size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = { NULL, "a", "b" };
    npy_header header;
    npy_fault fault = { "" };
    size_t length = 0;
    const bool is_text = size > 0 && data[0] == '{';
    const size_t before = is_text ? 8 : 0;
    /* exactly as long as the file, so that reads past it are seen */
    unsigned char *file = malloc(before + size > 0 ? before + size : 1);

    if (file == NULL) abort();
    if (size > 0) memcpy(file + before, data, size);
    for (size_t i = 0; i < size; i++)
        if (data[i] == '}') length = i + 1;
    for (size_t k = 0; k < before; k++) file[k] = (unsigned char)(length >> 8 * k);

    bool good = npy_parse(&header, file, before + size, &fault);
    if (good && check(good, &header, &fault) != size) abort();
    check(good, &header, &fault);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fault.text[0] = '\0';
        good = safetensors_parse(&header, names[i], file, before + size, &fault);
        if (check(good, &header, &fault) > before + size ||
            (good && is_text && header.data_offset < before + length))
            abort();
    }
    free(file);
    return 0;
}
