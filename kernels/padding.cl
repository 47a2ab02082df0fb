/* SPDX-License-Identifier: MIT
 *
 * padding.cl - zeros behind the rows of a gradient, for plans with CLXENT_GRADIENT_PADDING_ZERO. A program of its own
 * behind parameters.cl, so that no other program grows.
 *
 * Traffic: one write of each padding element. Set by the host with -D:
 *   ELEMENT_BYTES  2, 4 or 8: of the gradient's dtype, whose 0 has all bits clear
 *   WG_SIZE        work-items in a group
 */
#if !defined(WG_SIZE) || WG_SIZE < 1
#    error "WG_SIZE: at least 1"
#endif
#if ELEMENT_BYTES == 2
typedef ushort element;
#elif ELEMENT_BYTES == 4
typedef uint element;
#elif ELEMENT_BYTES == 8
typedef ulong element;
#else
#    error "ELEMENT_BYTES: 2, 4 or 8"
#endif

/* Grid: any number of work-groups; each takes a slab, skips as many as there are groups, and takes the next. */
__kernel __attribute__((reqd_work_group_size(WG_SIZE, 1, 1))) void clxent_zero_padding(
    const clxent_parameters p, __global element *restrict gradient) /* [rows / inner, gradient_row_stride] */
{
    const ulong used = p.classes * p.inner;
    const ulong slabs = p.rows / p.inner;
    for (ulong slab = get_group_id(0); slab < slabs; slab += get_num_groups(0)) {
        __global element *start = gradient + p.offset.gradient + slab * p.gradient_row_stride;
        for (ulong i = used + get_local_id(0); i < p.gradient_row_stride; i += WG_SIZE) start[i] = 0;
    }
}
