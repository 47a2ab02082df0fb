/* SPDX-License-Identifier: MIT
 *
 * summary.h - the median of repeated measurements, the range in which it lies, and what that says of a goal.
 */
#ifndef CLXENT_TOOLS_SUMMARY_H
#define CLXENT_TOOLS_SUMMARY_H

#include <stddef.h>

typedef struct summary {
    double median, least, most;
    double low, high; /* the median lies between them; NAN: too few values for bounds */
    size_t count;     /* of values */
} summary;

/* Sorts values. low and high are two of them, counted from either end: the median of what is measured lies outside with a
 * chance of at most 5 %, whatever the distribution. looks: how often the same measurement may be judged with more values
 * each time; the 5 % hold for all looks together. */
summary summarize(double *values, size_t count, size_t looks);
summary summary_of_exact(double value);
summary summary_scaled(summary s, double scale);

typedef enum verdict { MET, MISSED, UNSURE, NO_GOAL } verdict;

/* MET where the whole range is at most goal, MISSED where none of it is. goal NAN: NO_GOAL. */
verdict summary_verdict(const summary *s, double goal);

/* A measurement starts with first values and doubles them while its verdict is unsure, up to most. */
size_t summary_looks(size_t first, size_t most);
size_t summary_wants(const summary *s, double goal, size_t most); /* more values; 0: enough */

#endif
