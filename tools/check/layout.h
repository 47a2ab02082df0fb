/* SPDX-License-Identifier: MIT
 *
 * layout.h - the tensors of a desc as the files of this folder see them: what a run takes, and how the elements lie.
 */
#ifndef CLXENT_TOOLS_LAYOUT_H
#define CLXENT_TOOLS_LAYOUT_H

#include "problem.h"

#include "../../host/tensors.h"

enum {
    GRADIENTS = CLXENT_OUTPUT_GRADIENT | CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT |
                CLXENT_OUTPUT_BIAS_GRADIENT
};

/* A row of tensors.def. */
struct tensor {
    enum element element;
    enum shape shape;
    size_t stride; /* its offset in clxent_desc */
    uint32_t operations;
    enum { DEPENDS_LOGITS, DEPENDS_TARGETS, DEPENDS_INDICES } depends;
    enum { REFERENCE_BOUNDED, REFERENCE_EXACT, REFERENCE_INTEGER, REFERENCE_OPAQUE } reference;
    size_t buffer, array; /* offsets in clxent_args and clxent_host_args */
};
extern const struct tensor tensors[TENSORS];

uint32_t output_bit(int tensor); /* 0 of inputs */
size_t rows_of(const clxent_desc *desc);

bool has_tensor(uint32_t op, int tensor); /* the operation reads it or gives it */
bool accumulates(const clxent_desc *desc, int tensor);
bool needs_targets(const clxent_desc *desc); /* some output does, and needs the weights with them */

/* Whether a run of outputs takes the tensor at all; grad_output and denominator it need not be given. */
bool takes(const clxent_desc *desc, uint32_t outputs, int tensor);

/* How the elements of a tensor lie: rows x columns of them. */
typedef struct layout {
    size_t rows, columns, element_size, stride;
    bool matrix;    /* [rows, classes], see element_index() */
    bool own_rows;  /* in a batch in parts, those of the part */
    bool full;      /* ends with the padding of its last row */
    uint32_t dtype; /* 0: integers */
} layout;

layout layout_of(const clxent_desc *desc, int tensor);

/* Index of an element in the tensor's own memory; byte of element number k, counted row by row. */
size_t index_of(const clxent_desc *desc, const layout *l, size_t row, size_t column);
size_t offset_of(const clxent_desc *desc, const layout *l, size_t k);

/* Elements of a row or slab without its padding, and with it. */
size_t slab_elements(const clxent_desc *desc);
size_t slab_stride(const clxent_desc *desc, const layout *l);

/* Up to the last element: the last row ends without its padding, unless that is written. */
size_t layout_bytes(const clxent_desc *desc, const layout *l);

/* malloc that never asks for nothing, of which malloc may make NULL; NULL: f says why. */
void *take(size_t n, problem_fault *f);

#endif
