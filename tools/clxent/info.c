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

static const char *type_name(cl_device_type type)
{
    return (type & CL_DEVICE_TYPE_GPU) != 0           ? "GPU"
           : (type & CL_DEVICE_TYPE_CPU) != 0         ? "CPU"
           : (type & CL_DEVICE_TYPE_ACCELERATOR) != 0 ? "accelerator"
                                                      : "other";
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

static void print_text(const cli_device *d, const char *tuning, char strategies[SHAPES][512])
{
    const double gib = 1024.0 * 1024.0 * 1024.0;

    printf("device %zu: %s\n", d->index, d->name);
    printf("  type              %s, %u compute units\n", type_name(d->type), d->compute_units);
    printf("  vendor, driver    %s, %s\n", d->vendor, d->driver);
    printf("  OpenCL            %s\n", d->version);
    printf("  memory            %.2f GiB, one buffer up to %.2f GiB%s\n", (double)d->memory / gib,
           (double)d->max_allocation / gib, d->host_memory ? ", shared with the host" : "");
    printf("  local memory      %.0f KiB\n", (double)d->local_memory / 1024.0);
    printf("  work-group        up to %zu\n", d->max_work_group);
    printf("  dtypes            f32, f16, bf16%s\n", d->f64 != 0 ? ", f64" : " (no f64)");
    printf("  parameters        %s\n", tuning != NULL ? tuning : "built in");
    printf("  strategy, loss and gradient in f32:\n");
    for (size_t i = 0; i < SHAPES; i++) printf("    %-32s  %s\n", shapes[i].text, strategies[i]);
}

static json_t *to_json(const cli_device *d, const char *tuning, char strategies[SHAPES][512])
{
    json_t *list = json_array();

    for (size_t i = 0; i < SHAPES; i++)
        json_array_append_new(list, json_pack("{s:s, s:o}", "logits", shapes[i].text, "strategy",
                                              cli_json_text(strategies[i])));
    return json_pack("{s:I, s:o, s:s, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:o, s:o}", "index",
                     (json_int_t)d->index, "name", cli_json_text(d->name), "type", type_name(d->type),
                     "vendor", cli_json_text(d->vendor), "driver", cli_json_text(d->driver), "version",
                     cli_json_text(d->version), "compute_units", (json_int_t)d->compute_units, "memory",
                     (json_int_t)d->memory, "max_allocation", (json_int_t)d->max_allocation, "local_memory",
                     (json_int_t)d->local_memory, "max_work_group", (json_int_t)d->max_work_group,
                     "host_memory", (int)d->host_memory, "f64", (int)(d->f64 != 0), "tuning",
                     tuning != NULL ? cli_json_text(tuning) : json_null(), "strategies", list);
}

int command_info(int argc, char **argv)
{
    static const cli_syntax syntax = {
        .about =
            "Lists the OpenCL devices, all of them or the one that --device names: what they can do, and the "
            "strategy that a plan would choose there for loss and gradient of some shapes. Compiles nothing."
    };
    cli_device *devices = NULL, chosen;
    size_t count = 0;
    int status = CLI_DONE;

    cli_parse(&syntax, argc, argv, NULL);
    if (!cli_find_device(&chosen)) return CLI_FAILED;
    if (cli_given.device == NULL) count = cli_list_devices(&devices);

    json_t *list = json_array();
    for (size_t d = 0; d < (devices != NULL ? count : 1); d++) {
        const cli_device *device = devices != NULL ? &devices[d] : &chosen;
        char strategies[SHAPES][512];
        cli_session session;

        /* A device that the library cannot use is listed all the same. */
        if (!cli_open(&session, device, false)) status = CLI_FAILED;
        for (size_t i = 0; i < SHAPES; i++) {
            strcpy(strategies[i], "none");
            if (session.ctx != NULL) find_strategy(&session, &shapes[i], strategies[i], sizeof strategies[i]);
        }
        if (cli_given.json) json_array_append_new(list, to_json(device, session.tuning, strategies));
        else print_text(device, session.tuning, strategies);
        cli_close(&session);
    }
    if (cli_given.json) cli_json_print(json_pack("{s:O}", "devices", list));
    json_decref(list);
    free(devices);
    return status;
}
