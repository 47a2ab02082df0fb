/* SPDX-License-Identifier: MIT
 *
 * test_summary.c - the range of a median and the verdict on it, on given values.
 */
#include "summary.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdint.h>

/* 1 to count, in an order that is not sorted. */
static summary of_first(size_t count, size_t looks)
{
    double values[1024];

    for (size_t i = 0; i < count; i++) values[i] = (double)(i % 2 == 0 ? count - i / 2 : i / 2 + 1);
    return summarize(values, count, looks);
}

Test(summary, the_range_is_that_of_order_statistics)
{
    /* The ranks of tables of the sign test at 95 %. */
    static const size_t table[][2] = { { 6, 1 },  { 8, 1 },  { 9, 2 },  { 11, 2 },
                                       { 12, 3 }, { 17, 5 }, { 25, 8 }, { 100, 40 } };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const size_t count = table[i][0], rank = table[i][1];
        const summary s = of_first(count, 1);
        cr_assert(s.low == (double)rank && s.high == (double)(count + 1 - rank), "%zu: %g to %g", count,
                  s.low, s.high);
        cr_assert(s.least == 1 && s.most == (double)count && s.median == 0.5 * (double)(count + 1) &&
                  s.count == count);
    }
}

Test(summary, too_few_values_have_no_range)
{
    for (size_t count = 1; count <= 5; count++) {
        const summary s = of_first(count, 1);
        cr_assert(isnan(s.low) && isnan(s.high), "%zu", count);
        cr_assert(summary_verdict(&s, 1000) == UNSURE);
    }
    cr_assert(of_first(7, 3).low == 1);
    cr_assert(isnan(of_first(7, 4).low));
}

Test(summary, more_looks_make_the_range_wider)
{
    cr_assert(of_first(22, 1).low == 6);
    cr_assert(of_first(22, 4).low == 5);
    cr_assert(of_first(1001, 1).low == 470); /* 1001 / 2 - 0.98 sqrt(1001) */
}

Test(summary, the_range_holds_the_median_as_often_as_it_says)
{
    enum { TRIALS = 4000, COUNT = 11 };
    uint32_t random = 1;
    size_t outside = 0;

    for (size_t i = 0; i < TRIALS; i++) {
        double values[COUNT];
        for (size_t k = 0; k < COUNT; k++) {
            random = random * 1664525u + 1013904223u;
            values[k] = exp((double)(random >> 8) * 0x1p-21); /* the median is exp(4) */
        }
        const summary s = summarize(values, COUNT, 1);
        outside += s.low > exp(4) || s.high < exp(4);
    }
    cr_assert(outside <= TRIALS / 20 && outside > 0, "%zu", outside); /* 1.2 % by theory */
}

Test(summary, a_goal_within_the_range_is_unsure)
{
    const summary s = { .median = 2, .least = 0, .most = 9, .low = 1, .high = 3, .count = 11 };

    cr_assert(summary_verdict(&s, 3) == MET); /* a figure meets its goal when it is no larger */
    cr_assert(summary_verdict(&s, 2.9) == UNSURE);
    cr_assert(summary_verdict(&s, 1) == UNSURE);
    cr_assert(summary_verdict(&s, 0.9) == MISSED);
    cr_assert(summary_verdict(&s, NAN) == NO_GOAL);
    const summary half = summary_scaled(s, 0.5), exact = summary_of_exact(2);
    cr_assert(summary_verdict(&half, 1.5) == MET && summary_verdict(&half, 1.4) == UNSURE);
    cr_assert(half.count == 11 && half.median == 1 && half.least == 0 && half.most == 4.5);
    cr_assert(summary_verdict(&exact, 2) == MET && summary_verdict(&exact, 1) == MISSED);
}

Test(summary, more_values_are_wanted_while_unsure_up_to_the_limit)
{
    summary s = { .low = 1, .high = 3, .count = 11 };

    cr_assert(summary_wants(&s, 2, 88) == 11);
    cr_assert(summary_wants(&s, 2, 15) == 4);
    cr_assert(summary_wants(&s, 2, 11) == 0);
    cr_assert(summary_wants(&s, 3, 88) == 0 && summary_wants(&s, 0.5, 88) == 0 &&
              summary_wants(&s, NAN, 88) == 0);
    s.low = s.high = NAN;
    cr_assert(summary_wants(&s, 2, 88) == 11);
    cr_assert(summary_looks(11, 11) == 1 && summary_looks(11, 5) == 1);
    cr_assert(summary_looks(11, 12) == 2 && summary_looks(11, 22) == 2 && summary_looks(11, 88) == 4);
}
