/* SPDX-License-Identifier: MIT
 *
 * tensors.h - the words of tensors.def, for all that read that table.
 */
#ifndef CLXENT_TENSORS_H
#define CLXENT_TENSORS_H

enum element {
    ELEMENT_DTYPE,           /* of the logits */
    ELEMENT_GRADIENT,        /* gradient_dtype */
    ELEMENT_HIDDEN_GRADIENT, /* hidden_gradient_dtype, and so on */
    ELEMENT_WEIGHT_GRADIENT,
    ELEMENT_BIAS_GRADIENT,
    ELEMENT_REAL,   /* f32, with f64 logits f64 */
    ELEMENT_TARGET, /* as target_type says */
    ELEMENT_I64,
    ELEMENT_U64,
    ELEMENT_RECORD /* three uint64 */
};

enum shape {
    SHAPE_ONE,        /* [1] */
    SHAPE_ROWS,       /* [rows] */
    SHAPE_STATISTICS, /* [rows, 2], with an upstream of the entropy [rows, 3] */
    SHAPE_CLASSES,    /* [classes] */
    SHAPE_MATRIX,     /* [rows, classes] with a stride, or [rows / inner, classes, inner] */
    SHAPE_HIDDEN,     /* [rows, features] with a stride */
    SHAPE_WEIGHT      /* [classes, features] with a stride */
};

#endif
