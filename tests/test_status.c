/* SPDX-License-Identifier: MIT
 *
 * test_status.c - every status has its text. The numbers are written out, as an application that logs a bare number would
 * look them up. (status.c makes most texts of the headers' own names.)
 */
#include <clxent/clxent.h>

#include <criterion/criterion.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Ours, and of the driver's those that an application meets most; each one that OpenCL 1.2 and its extensions have is known. */
static const struct {
    clxent_status code;
    const char *name;
} expected[] = {
    { 0, "CLXENT_OK" },
    { 1, "CLXENT_ERROR_NULL_ARGUMENT" },
    { 2, "CLXENT_ERROR_INVALID_DESC" },
    { 3, "CLXENT_ERROR_INVALID_ARGUMENT" },
    { 4, "CLXENT_ERROR_UNSUPPORTED" },
    { 5, "CLXENT_ERROR_BUFFER_TOO_SMALL" },
    { 6, "CLXENT_ERROR_BAD_TARGET" },
    { 7, "CLXENT_ERROR_OUT_OF_HOST_MEMORY" },
    { 8, "CLXENT_ERROR_BUILD_FAILED" },
    { 9, "CLXENT_ERROR_INTERNAL" },
    { 10, "CLXENT_ERROR_ARRAYS_IN_USE" },
    { -1, "CL_DEVICE_NOT_FOUND" },
    { -4, "CL_MEM_OBJECT_ALLOCATION_FAILURE" },
    { -5, "CL_OUT_OF_RESOURCES" },
    { -19, "CL_KERNEL_ARG_INFO_NOT_AVAILABLE" },
    { -30, "CL_INVALID_VALUE" },
    { -38, "CL_INVALID_MEM_OBJECT" },
    { -52, "CL_INVALID_KERNEL_ARGS" },
    /* which status.c writes as numbers */
    { -69, "CL_INVALID_PIPE_SIZE" },
    { -70, "CL_INVALID_DEVICE_QUEUE" },
    { -71, "CL_INVALID_SPEC_ID" },
    { -72, "CL_MAX_SIZE_RESTRICTION_EXCEEDED" },
    { -1000, "CL_INVALID_GL_SHAREGROUP_REFERENCE_KHR" },
    { -1001, "CL_PLATFORM_NOT_FOUND_KHR" },
    { -1057, "CL_DEVICE_PARTITION_FAILED_EXT" },
    { -1058, "CL_INVALID_PARTITION_COUNT_EXT" },
    { -1059, "CL_INVALID_PARTITION_NAME_EXT" },
};

Test(status, every_code_has_its_name)
{
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        cr_assert_str_eq(clxent_status_string(expected[i].code), expected[i].name, "status %d is \"%s\"",
                         (int)expected[i].code, clxent_status_string(expected[i].code));
    }
    for (int code = -72; code < 0; code++) {
        const bool gap = code > -30 && code < -19;
        cr_assert_eq(strncmp(clxent_status_string(code), "CL_", 3) != 0, gap, "status %d is \"%s\"", code,
                     clxent_status_string(code));
    }
}

Test(status, unknown_codes_have_a_text_too)
{
    cr_assert_str_eq(clxent_status_string(-9999), "unknown OpenCL error");
    cr_assert_str_eq(clxent_status_string(INT32_MIN), "unknown OpenCL error");
    cr_assert_str_eq(clxent_status_string(11), "unknown clxent status");
    cr_assert_str_eq(clxent_status_string(INT32_MAX), "unknown clxent status");
}

Test(status, version_is_that_of_the_header)
{
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", CLXENT_VERSION_MAJOR, CLXENT_VERSION_MINOR, CLXENT_VERSION_PATCH);
    cr_assert_str_eq(clxent_version(), text);
}
