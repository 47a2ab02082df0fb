/* SPDX-License-Identifier: MIT
 *
 * reference_inputs.h - arrays for the reference, from doubles: in the storage that desc names, exactly as large as desc needs,
 * padding NaN. Each tensor has memory of its own, until it is given again.
 */
#ifndef CLXENT_TEST_REFERENCE_INPUTS_H
#define CLXENT_TEST_REFERENCE_INPUTS_H

#include "layout.h"

#include <criterion/criterion.h>

#include <string.h>

/* Values of [rows, columns], without padding, whatever the tensor has. */
static inline void give_values(clxent_host_args *args, const clxent_desc *desc, int tensor,
                               const double *values)
{
    enum { BEHIND = 256 }; /* bytes of NaN behind the last row */
    static uint64_t memory[TENSORS][8192 + BEHIND / 8];
    const layout l = layout_of(desc, tensor);
    clxent_output *array = array_of(args, tensor);

    *array = (clxent_output){ memory[tensor], layout_bytes(desc, &l) };
    cr_assert(array->size + BEHIND <= sizeof memory[tensor]);
    memset(array->data, 0xFF, array->size + BEHIND);
    for (size_t k = 0; k < l.rows * l.columns; k++)
        put_element(array->data, l.dtype, index_of(desc, &l, k / l.columns, k % l.columns), values[k]);
}

static inline void give_classes(clxent_host_args *args, const clxent_desc *desc, const int64_t *targets)
{
    static uint64_t memory[8192];
    const size_t rows = rows_of(desc);

    cr_assert(rows <= sizeof memory / sizeof *memory);
    for (size_t r = 0; r < rows; r++) put_target(memory, desc->target_type, r, targets[r]);
    args->targets = (clxent_input){ memory, rows * index_size(desc->target_type) };
}

#endif
