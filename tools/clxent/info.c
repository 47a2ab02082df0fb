/* SPDX-License-Identifier: MIT
 *
 * info.c - the OpenCL devices, what they can do, and what a plan would choose for typical shapes.
 */
#define _XOPEN_SOURCE 700
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct shape {
    const char *text;
    size_t batch, seq, classes, inner;
} shapes[] = {
    { "[256, 256, 10]", 256, 256, 10, 1 },
    { "[8, 1024, 1024]", 8, 1024, 1024, 1 },
    { "[4, 1024, 50257]", 4, 1024, 50257, 1 },
    { "[1, 16, 262144]", 1, 16, 262144, 1 },
    { "[8, 21, 512, 512], class axis 1", 8 * 512, 512, 21, 512 * 512 },
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

typedef struct facts {
    char vendor[256], driver[256], version[256];
    cl_uint compute_units;
    size_t max_work_group;
    cl_ulong memory, max_allocation, local_memory;
    cl_bool host_memory;
    cl_device_fp_config f64;
} facts;

static error_t parse(int key, char *text, struct argp_state *state)
{
    (void)text;
    if (key != ARGP_KEY_INIT) return ARGP_ERR_UNKNOWN;
    state->child_inputs[0] = state->input;
    return 0;
}

static const char *type_name(cl_device_type type)
{
    return (type & CL_DEVICE_TYPE_GPU) != 0           ? "GPU"
           : (type & CL_DEVICE_TYPE_CPU) != 0         ? "CPU"
           : (type & CL_DEVICE_TYPE_ACCELERATOR) != 0 ? "accelerator"
                                                      : "other";
}

/* What a driver does not answer stays zero. */
static facts query(cl_device_id id)
{
    facts f = { .vendor = "" };
    (void)clGetDeviceInfo(id, CL_DEVICE_VENDOR, sizeof f.vendor - 1, f.vendor, NULL);
    (void)clGetDeviceInfo(id, CL_DRIVER_VERSION, sizeof f.driver - 1, f.driver, NULL);
    (void)clGetDeviceInfo(id, CL_DEVICE_VERSION, sizeof f.version - 1, f.version, NULL);
    (void)clGetDeviceInfo(id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof f.compute_units, &f.compute_units, NULL);
    (void)clGetDeviceInfo(id, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof f.max_work_group, &f.max_work_group,
                          NULL);
    (void)clGetDeviceInfo(id, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof f.memory, &f.memory, NULL);
    (void)clGetDeviceInfo(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof f.max_allocation, &f.max_allocation, NULL);
    (void)clGetDeviceInfo(id, CL_DEVICE_LOCAL_MEM_SIZE, sizeof f.local_memory, &f.local_memory, NULL);
    (void)clGetDeviceInfo(id, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof f.host_memory, &f.host_memory, NULL);
    (void)clGetDeviceInfo(id, CL_DEVICE_DOUBLE_FP_CONFIG, sizeof f.f64, &f.f64, NULL);
    return f;
}

/* The strategy of loss and gradient together in f32, or why there is none. */
static void find_strategy(const cli_session *session, const struct shape *shape, char *text, size_t size)
{
    clxent_desc desc = CLXENT_DESC_INIT;

    desc.outputs = CLXENT_OUTPUT_LOSS | CLXENT_OUTPUT_GRADIENT;
    desc.batch = shape->batch;
    desc.seq = shape->seq;
    desc.classes = shape->classes;
    desc.inner = shape->inner;
    if (clxent_plan_describe(session->ctx, &desc, text, size) != CLXENT_OK)
        clxent_context_last_error(session->ctx, text, size);
}

static void print_text(const cli_device *device, const facts *f, const char *tuning,
                       char strategies[SHAPES][512])
{
    const double gib = 1024.0 * 1024.0 * 1024.0;

    printf("device %zu: %s\n", device->index, device->name);
    printf("  type              %s, %u compute units\n", type_name(device->type), f->compute_units);
    printf("  vendor, driver    %s, %s\n", f->vendor, f->driver);
    printf("  OpenCL            %s\n", f->version);
    printf("  memory            %.2f GiB, one buffer up to %.2f GiB%s\n", (double)f->memory / gib,
           (double)f->max_allocation / gib, f->host_memory ? ", shared with the host" : "");
    printf("  local memory      %.0f KiB\n", (double)f->local_memory / 1024.0);
    printf("  work-group        up to %zu\n", f->max_work_group);
    printf("  dtypes            f32, f16, bf16%s\n", f->f64 != 0 ? ", f64" : " (no f64)");
    printf("  parameters        %s\n", tuning != NULL ? tuning : "built in");
    printf("  strategy, loss and gradient in f32:\n");
    for (size_t i = 0; i < SHAPES; i++) printf("    %-32s  %s\n", shapes[i].text, strategies[i]);
}

static json_t *to_json(const cli_device *device, const facts *f, const char *tuning,
                       char strategies[SHAPES][512])
{
    json_t *list = json_array();

    for (size_t i = 0; i < SHAPES; i++)
        json_array_append_new(list, json_pack("{s:s, s:o}", "logits", shapes[i].text, "strategy",
                                              cli_json_text(strategies[i])));
    return json_pack("{s:I, s:o, s:s, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:o, s:o}", "index",
                     (json_int_t)device->index, "name", cli_json_text(device->name), "type",
                     type_name(device->type), "vendor", cli_json_text(f->vendor), "driver",
                     cli_json_text(f->driver), "version", cli_json_text(f->version), "compute_units",
                     (json_int_t)f->compute_units, "memory", (json_int_t)f->memory, "max_allocation",
                     (json_int_t)f->max_allocation, "local_memory", (json_int_t)f->local_memory,
                     "max_work_group", (json_int_t)f->max_work_group, "host_memory", (int)f->host_memory,
                     "f64", (int)(f->f64 != 0), "tuning",
                     tuning != NULL ? cli_json_text(tuning) : json_null(), "strategies", list);
}

int command_info(int argc, char **argv)
{
    static const char *const about = "Lists the OpenCL devices, all of them or the one that --device names: "
                                     "what they can do, and the strategy that a plan would choose there "
                                     "for loss and gradient of some shapes. Compiles nothing.";
    const struct argp argp = { NULL, parse, NULL, about, cli_common_options, NULL, NULL };
    cli_common common = { NULL, false };
    cli_device *devices = NULL, chosen;
    size_t count = 0;
    int status = CLI_DONE;

    cli_parse(&argp, argc, argv, &common);
    if (!cli_find_device(&chosen, common.device)) return CLI_FAILED;
    if (common.device == NULL) count = cli_list_devices(&devices);

    json_t *list = json_array();
    for (size_t d = 0; d < (devices != NULL ? count : 1); d++) {
        const cli_device *device = devices != NULL ? &devices[d] : &chosen;
        const facts f = query(device->id);
        char strategies[SHAPES][512];
        cli_session session;

        /* A device that the library cannot use is listed all the same. */
        if (!cli_open(&session, device)) status = CLI_FAILED;
        for (size_t i = 0; i < SHAPES; i++) {
            strcpy(strategies[i], "none");
            if (session.ctx != NULL) find_strategy(&session, &shapes[i], strategies[i], sizeof strategies[i]);
        }
        if (common.json) json_array_append_new(list, to_json(device, &f, session.tuning, strategies));
        else print_text(device, &f, session.tuning, strategies);
        cli_close(&session);
    }
    if (common.json) cli_json_print(json_pack("{s:O}", "devices", list));
    json_decref(list);
    free(devices);
    return status;
}
