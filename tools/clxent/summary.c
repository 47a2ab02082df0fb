/* SPDX-License-Identifier: MIT
 *
 * summary.c - medians with bounds that assume no distribution; see summary.h.
 */
#define _XOPEN_SOURCE 700
#include "summary.h"

#include <math.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b)
{
    const double difference = *(const double *)a - *(const double *)b;
    return (difference > 0) - (difference < 0);
}

/* The largest k for which the k-th smallest and the k-th largest of count values enclose the median but for chance; 0:
 * none. A value is below the median with probability 1/2, so that the k-th smallest lies above it where fewer than k
 * values of a binomial distribution lie below. */
static size_t rank_of_bounds(size_t count, double chance)
{
    double log_share = -(double)count * M_LN2; /* of the case that exactly rank values lie below */
    double fewer = 0;
    size_t rank = 0;

    while (2 * rank < count) {
        fewer += exp(log_share);
        if (2 * fewer > chance) break;
        rank++;
        log_share += log((double)(count - rank + 1) / (double)rank);
    }
    return rank;
}

summary summarize(double *values, size_t count, size_t looks)
{
    const size_t rank = rank_of_bounds(count, 0.05 / (double)looks);

    qsort(values, count, sizeof *values, by_value);
    return (summary){ .median = 0.5 * (values[(count - 1) / 2] + values[count / 2]),
                      .least = values[0],
                      .most = values[count - 1],
                      .low = rank > 0 ? values[rank - 1] : NAN,
                      .high = rank > 0 ? values[count - rank] : NAN,
                      .count = count };
}

summary summary_of_exact(double value) { return (summary){ value, value, value, value, value, 1 }; }

summary summary_scaled(summary s, double scale)
{
    return (summary){ s.median * scale, s.least * scale, s.most * scale,
                      s.low * scale,    s.high * scale,  s.count };
}

verdict summary_verdict(const summary *s, double goal)
{
    if (isnan(goal)) return NO_GOAL;
    if (s->high <= goal) return MET;
    return s->low > goal ? MISSED : UNSURE;
}

size_t summary_looks(size_t first, size_t most)
{
    size_t looks = 1;

    for (size_t count = first; count < most; count *= 2) looks++;
    return looks;
}

size_t summary_wants(const summary *s, double goal, size_t most)
{
    if (summary_verdict(s, goal) != UNSURE || s->count >= most) return 0;
    return s->count <= most - s->count ? s->count : most - s->count;
}
