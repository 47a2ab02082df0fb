/* SPDX-License-Identifier: MIT
 *
 * verify_case.h - one case of `clxent verify`: drawn from a seed and a number, written as a line of text that
 * reproduces it, sorted by feature, and shrunk to the smallest case that still fails. No OpenCL call.
 */
#ifndef CLXENT_TOOLS_VERIFY_CASE_H
#define CLXENT_TOOLS_VERIFY_CASE_H

#include "problem.h"

extern const char *const dtype_names[], *const reduction_names[]; /* by value */

typedef struct verify_case {
    clxent_desc desc;
    uint32_t fill;      /* FILL_* */
    uint32_t checks;    /* CASE_* */
    size_t chunk_bytes; /* clxent_host_args.max_chunk_bytes under CASE_HOST_ARRAYS */
    uint64_t seed;      /* of the data */
} verify_case;

/* Default options, one row of one class, no output: what text leaves out and shrinking aims at. */
verify_case case_default(void);

/* Case number of seed: the same on every machine. At most max_elements logits, or one where that is 0; some cases
 * have no rows. */
void case_draw(verify_case *c, uint64_t seed, uint64_t number, size_t max_elements);

/* Whether desc is valid and the flags fit it. */
bool case_check(const verify_case *c, problem_fault *f);

enum { CASE_TEXT_SIZE = 1024 };

/* "outputs=loss+gradient;dtype=f16;batch=3;classes=8;softcap=30": the fields that differ from case_default(). */
void case_write(const verify_case *c, char text[CASE_TEXT_SIZE]);
/* The same for people: "cross-entropy of f16 [3, 1, 8], outputs loss+gradient, softcap 30". */
void case_describe(const verify_case *c, char text[CASE_TEXT_SIZE]);
/* Reads what case_write() wrote, or a person; the fault names the field, what it got and what it takes. */
bool case_read(verify_case *c, const char *text, problem_fault *f);

/* Whether a case fails, and how. */
typedef bool (*case_fails_fn)(const verify_case *c, void *payload, problem_fault *f);

/* Simplifies *c, which fails, as long as it fails, one field at a time: options to their defaults, parts
 * of outputs, data and checks dropped, sizes bisected. *f is how the smallest one fails. Returns how many cases it
 * tried. */
size_t case_shrink(verify_case *c, case_fails_fn fails, void *payload, problem_fault *f);

/* A property that some cases have: "dtype f16", "softcap", "1 class". */
typedef struct case_feature {
    char name[48];
    int field; /* of verify_case.c's table */
    uint32_t value;
    int output; /* the index of the output's bit, where the feature is an output; else -1 */
} case_feature;

enum { CASE_FEATURES = 160 };
size_t case_list_features(case_feature list[CASE_FEATURES]);
bool case_has_feature(const verify_case *c, const case_feature *feature);

#endif
