/* SPDX-License-Identifier: MIT
 *
 * tensor_file.h - arrays in the files that people have: .npy, .npz and .safetensors. The latter two hold several, which
 * "FILE.npz:NAME" and "FILE.safetensors:NAME" tell apart.
 */
#ifndef CLXENT_TOOLS_TENSOR_FILE_H
#define CLXENT_TOOLS_TENSOR_FILE_H

#include "npy.h"

/* The length of the part of such a text that names the file; 0 where the text is that of neither format. */
size_t tensor_file_length(const char *text);

/* Splits such a text: new text that the caller frees, the file's name, NULL without memory; *name is what follows the
 * colon, NULL where there is none. */
char *tensor_file_name(const char *text, const char **name);

/* npy_open() for a tensor of a file, whose format is that of the end of its name: .npz, .safetensors, else .npy. name is
 * NULL where it is the file's only one; of a .npy file it must be. A .safetensors file is mapped as a .npy file is, a
 * member of a .npz is read into memory. */
bool tensor_open(npy_array *array, const char *file, const char *name, npy_fault *fault);

/* Finds the tensor in a .safetensors file of size bytes at bytes: its length is 8 bytes of a number, that many of JSON, and
 * the data that JSON says. The whole header is checked, whichever tensor is asked for. Pure. */
bool safetensors_parse(npy_header *header, const char *name, const void *bytes, size_t size,
                       npy_fault *fault);

#endif
