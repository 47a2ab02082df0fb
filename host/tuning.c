/* SPDX-License-Identifier: MIT
 *
 * tuning.c - device facts and dtype -> kernel parameters: the table of tuning.def and the limits that a
 * device sets. A pure function; calls no OpenCL.
 */
#include "internal.h"

#include <string.h>

enum { KIND_ANY, KIND_CPU, KIND_GPU };
enum { ANY_DTYPE = 0 };

typedef struct row {
    const char *name;
    int kind;
    uint32_t dtype;
    clxent_tuning tuning;
} row;

#define F16 CLXENT_F16
#define BF16 CLXENT_BF16
#define F64 CLXENT_F64
#define TUNE(kind, name, dtype, ...) { name, KIND_##kind, dtype, { __VA_ARGS__ } },
static const row rows[] = {
#include "tuning.def"
};
#undef TUNE
#undef F16
#undef BF16
#undef F64

static bool matches(const row *r, const clxent_device *device, uint32_t dtype)
{
    const bool cpu = (device->type & CL_DEVICE_TYPE_CPU) != 0;

    if (r->kind == KIND_CPU && !cpu) return false;
    if (r->kind == KIND_GPU && cpu) return false;
    if (r->dtype != ANY_DTYPE && r->dtype != dtype) return false;
    return strcmp(r->name, "*") == 0 || strstr(device->name, r->name) != NULL ||
           strstr(device->vendor, r->name) != NULL;
}

clxent_tuning clxent_tuning_choose(const clxent_device *device, const clxent_desc *desc)
{
    const row *r = rows;

    while (!matches(r, device, desc->dtype)) r++;
    return clxent_tuning_clamp(&r->tuning, device, desc);
}

clxent_tuning clxent_tuning_clamp(const clxent_tuning *tuning, const clxent_device *device,
                                  const clxent_desc *desc)
{
    /* what every work-item has in local memory: the sums of cross_entropy.cl are the largest */
    const cl_ulong local_item = desc->dtype == CLXENT_F64 ? 96 : 64;
    const uint32_t local =
        (uint32_t)(device->local_memory / 2 < UINT32_MAX ? device->local_memory / 2 : UINT32_MAX);
    clxent_tuning t = *tuning;

    while (t.group > 1 && (t.group > device->max_work_group || t.group * local_item > local)) t.group /= 2;
    if (t.cache > local) t.cache = local;
    if (t.lane_group == 0) t.lane_group = 1;
    if (t.lane_vector == 0) t.lane_vector = 1;
    while (t.lane_group > device->max_work_group) t.lane_group /= 2;
    if (t.lane_cache > local) t.lane_cache = local;
    if (desc->inner > 1) {
        /* vectors may not be longer than the run of neighbours that they lie along; there is none of 2 */
        while (t.lane_vector > desc->inner) t.lane_vector = t.lane_vector > 4 ? t.lane_vector / 2 : 1;
    } else if (t.lane_group > 1) {
        t.lane_vector = 1;
    }
    return t;
}
