/* SPDX-License-Identifier: MIT
 *
 * fuzz_npy.c - libFuzzer entry of the .npy header parser: whatever the bytes, no access outside them, and
 * what is accepted is consistent with the file's length.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -I tools/clxent tests/fuzz_npy.c tools/clxent/npy.c
 */
#include "npy.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    npy_header header;
    npy_fault fault = { "" };
    void *copy =
        malloc(size > 0 ? size : 1); /* exactly as long as the input, so that reads past it are seen */

    if (copy == NULL) abort();
    if (size > 0) memcpy(copy, data, size);
    if (npy_parse(&header, copy, size, &fault)) {
        size_t count = 1;
        if (header.axes > NPY_MAX_AXES || header.item_size == 0) abort();
        for (size_t axis = 0; axis < header.axes; axis++) count *= header.shape[axis];
        if (count != header.count || header.data_offset + count * header.item_size != size) abort();
        if (strlen(npy_shape_text(header.shape, header.axes).text) < 2) abort();
    } else if (fault.text[0] == '\0' || strchr(fault.text, '\n') != NULL) {
        abort();
    }
    free(copy);
    return 0;
}
