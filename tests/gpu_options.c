/* SPDX-License-Identifier: MIT
 *
 * gpu_options.c - what a plan of a GPU that is not there would build, as one line of shell variables, for tools/gpu.py:
 * the program's file, its build options, the work-items of a group, the bytes of local memory that an enqueue gives the main
 * kernel, and the cap on registers that the options ask NVIDIA's compiler for (0: none). With --product the program is that of
 * a matrix product of linear cross-entropy. Calls no OpenCL.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "gpu_options [--vendor TEXT] [--name TEXT] [--max-group N] [--local BYTES] [--units N] [--no-f64]\n"
    "            [--dtype f32|f16|bf16|f64] [--rows N] [--classes N] [--inner N] [--sm-80]\n"
    "            [--outputs losses,gradient,...] [--all-options] [--tuning ROWS]\n"
    "            [--product logits|hidden|weight [--features N]]\n";

static void refuse(const char *what, const char *got)
{
    (void)fprintf(stderr, "gpu_options: %s is '%s'\n%s", what, got, usage);
    exit(2);
}

static size_t number(const char *name, const char *text)
{
    char *end;
    const unsigned long long value = strtoull(text, &end, 10);

    if (*text < '0' || *text > '9' || *end != '\0' || value == 0 || value > UINT32_MAX) refuse(name, text);
    return (size_t)value;
}

static uint32_t dtype_of(const char *text)
{
    for (uint32_t dtype = CLXENT_F32; dtype <= CLXENT_F64; dtype++)
        if (strcmp(text, clxent_dtype_name(dtype)) == 0) return dtype;
    refuse("--dtype", text);
    return 0;
}

/* Names as clxent_tensor_name() has them, with commas between. */
static uint32_t outputs_of(const char *text)
{
    uint32_t outputs = 0;

    for (const char *at = text; *at != '\0';) {
        const size_t length = strcspn(at, ",");
        int t = CLXENT_FIRST_OUTPUT;
        while (t < CLXENT_TENSORS && (strlen(clxent_tensor_name((clxent_tensor)t)) != length ||
                                      strncmp(at, clxent_tensor_name((clxent_tensor)t), length) != 0))
            t++;
        if (t == CLXENT_TENSORS) refuse("--outputs", text);
        outputs |= 1u << (t - CLXENT_FIRST_OUTPUT);
        at += length + (at[length] == ',');
    }
    return outputs;
}

/* Prints the words of `options` that every compiler knows, and takes the cap from the one that NVIDIA's knows. */
static void print(const clxent_plan_build *build)
{
    static const char cap[] = "-cl-nv-maxrregcount=";
    unsigned registers = 0;
    char options[CLXENT_OPTIONS_SIZE] = "", text[CLXENT_OPTIONS_SIZE];

    (void)snprintf(text, sizeof text, "%s", build->options);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) {
        if (strncmp(word, cap, sizeof cap - 1) == 0) {
            registers = (unsigned)strtoul(word + sizeof cap - 1, NULL, 10);
        } else {
            if (options[0] != '\0') strcat(options, " ");
            strcat(options, word);
        }
    }
    (void)printf("file='%s' group=%u local=%zu maxregisters=%u options='%s'\n", build->file,
                 (unsigned)build->group, build->local_bytes, registers, options);
}

int main(int argc, char **argv)
{
    clxent_device device = { .name = "GPU",
                             .vendor = "vendor",
                             .type = CL_DEVICE_TYPE_GPU,
                             .compute_units = 132,
                             .max_work_group = 1024,
                             .local_memory = 48 << 10,
                             .global_memory = (cl_ulong)64 << 30,
                             .max_allocation = (cl_ulong)16 << 30,
                             .address_bits = 64,
                             .has_f64 = true };
    clxent_desc desc = CLXENT_DESC_INIT;
    size_t rows = 65536;
    bool all_options = false;
    clxent_tuning_rows *own = NULL;
    char fault[256] = "";
    const char *product = NULL;
    clxent_plan_build build;

    desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_GRADIENT;
    desc.classes = 32768;
    for (int i = 1; i < argc; i++) {
        const char *flag = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(flag, "--all-options") == 0) {
            all_options = true;
            continue;
        }
        if (strcmp(flag, "--no-f64") == 0) {
            device.has_f64 = false;
            continue;
        }
        if (strcmp(flag, "--sm-80") == 0) {
            device.sm_80 = true;
            continue;
        }
        if (strcmp(flag, "--vendor") == 0) (void)snprintf(device.vendor, sizeof device.vendor, "%s", value);
        else if (strcmp(flag, "--name") == 0) (void)snprintf(device.name, sizeof device.name, "%s", value);
        else if (strcmp(flag, "--max-group") == 0) device.max_work_group = number(flag, value);
        else if (strcmp(flag, "--local") == 0) device.local_memory = number(flag, value);
        else if (strcmp(flag, "--units") == 0) device.compute_units = (cl_uint)number(flag, value);
        else if (strcmp(flag, "--dtype") == 0) desc.dtype = dtype_of(value);
        else if (strcmp(flag, "--rows") == 0) rows = number(flag, value);
        else if (strcmp(flag, "--classes") == 0) desc.classes = number(flag, value);
        else if (strcmp(flag, "--inner") == 0) desc.inner = number(flag, value);
        else if (strcmp(flag, "--outputs") == 0) desc.outputs = outputs_of(value);
        else if (strcmp(flag, "--features") == 0) desc.features = number(flag, value);
        else if (strcmp(flag, "--product") == 0) product = value;
        else if (strcmp(flag, "--tuning") == 0) (void)clxent_tuning_parse(&own, value, fault, sizeof fault);
        else refuse("argument", flag);
        if (fault[0] != '\0') refuse("--tuning", fault);
        i++;
    }
    desc.batch = (rows - 1) / desc.inner + 1;
    desc.seq = desc.inner;
    if (all_options) {
        desc.outputs |= CLXENT_OUTPUT_ENTROPY;
        desc.has_class_weights = 1;
        desc.label_smoothing = 0.1;
        desc.logit_scale = 0.75;
        desc.softcap = 30;
        desc.gradient_mode = CLXENT_GRADIENT_ACCUMULATE;
        desc.has_grad_entropy = 1;
        desc.has_grad_lse = 1;
    }
    if (desc.dtype == CLXENT_F64 && !device.has_f64) refuse("--no-f64, and --dtype", "f64");
    if (product != NULL) {
        desc.op = CLXENT_OP_LINEAR_CROSS_ENTROPY;
        desc.outputs = CLXENT_OUTPUT_LOSSES | CLXENT_OUTPUT_HIDDEN_GRADIENT | CLXENT_OUTPUT_WEIGHT_GRADIENT;
        desc.gradient_mode = CLXENT_GRADIENT_WRITE;
        if (desc.features == 0) desc.features = 4096;
    }
    const clxent_status status = product != NULL ? clxent_linear_program(own, &device, &desc, product, &build)
                                                 : clxent_plan_program(own, &device, &desc, &build);
    if (status == CLXENT_ERROR_INVALID_ARGUMENT) refuse("--product", product);
    if (status != CLXENT_OK) refuse("a size, --outputs or --features", "impossible");
    print(&build);
    free(own);
    return 0;
}
