/* SPDX-License-Identifier: MIT
 *
 * moves.cl - kernels that move bytes and compute next to nothing, for tools/clxent/measure.c, and those that make data.
 *
 *   GROUP    work-items of a group; they stand side by side
 *   EACH     vectors of a work-item
 *   VECTOR   uint4 or uint16: integers, because the bits may be of any dtype
 *   HAS_F64  defined: the device has double
 *
 * key is 0 at run time, which the compiler does not know: it keeps the maximum of move_read and the store of
 * move_in_place. Data come from a hash of the index, so that no work-item waits for another.
 */
#if !defined(GROUP) || !defined(EACH) || !defined(VECTOR)
#    error "see the list above"
#endif

/* All moves have the same arguments. */
#define MOVE(name)                                                                                          \
    __kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void name(                                  \
        __global const VECTOR *from, __global const VECTOR *also, __global VECTOR *to, const ulong vectors, \
        const uint key)
#define EVERY(count)                                                                         \
    const size_t start = get_group_id(0) * (size_t)(EACH * GROUP) + get_local_id(0);         \
    const size_t end = min((get_group_id(0) + 1) * (size_t)(EACH * GROUP), (size_t)(count)); \
    for (size_t i = start; i < end; i += GROUP)

MOVE(move_copy) { EVERY(vectors) to[i] = from[i]; }

#ifdef __has_builtin
#    if __has_builtin(__builtin_nontemporal_store)
MOVE(move_stream) { EVERY(vectors) __builtin_nontemporal_store(from[i], &to[i]); }
#    endif
#endif

MOVE(move_read)
{
    VECTOR most = 0;
    EVERY(vectors) most = max(most, from[i]);
    if (most.s0 + most.s1 + most.s2 + most.s3 == key) to[0] = most;
}

MOVE(move_in_place) { EVERY(vectors) to[i] = to[i] ^ key; }

MOVE(move_two) { EVERY(vectors) to[i] = from[i] ^ also[i]; }

__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void nothing(void) {}

uint hash(uint x)
{
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

#define FILL(name, type)                                                   \
    __kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void name( \
        __global type *to, const float lowest, const float range, const uint seed, const ulong count)
#define VALUE (lowest + range * 0x1p-24f * (float)(hash((uint)i + seed) >> 8))
FILL(fill_f32, float) { EVERY(count) to[i] = VALUE; }
FILL(fill_f16, half) { EVERY(count) vstore_half(VALUE, i, to); }
FILL(fill_bf16, ushort) { EVERY(count) to[i] = (ushort)(as_uint(VALUE) >> 16); }
#ifdef HAS_F64
FILL(fill_f64, double) { EVERY(count) to[i] = VALUE; }
#endif

/* So many of the rows, spread evenly, have ignore_index. */
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void fill_targets(
    __global int *to, const uint ignored, const int ignore_index, const uint classes, const ulong rows)
{
    EVERY(rows)
    {
        const bool counts = ignored == 0 || (i + 1) * (ulong)ignored / rows == i * (ulong)ignored / rows;
        to[i] = counts ? (int)(hash((uint)i + 77u) % classes) : ignore_index;
    }
}
