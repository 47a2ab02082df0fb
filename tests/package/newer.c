/* SPDX-License-Identifier: MIT
 *
 * newer.c - a program that uses clxent and calls a later OpenCL than the library does.
 */
#define CL_TARGET_OPENCL_VERSION 300
#include <clxent/clxent.h>

int main(void)
{
    cl_int code = CL_SUCCESS;
    cl_command_queue queue = clCreateCommandQueueWithProperties(NULL, NULL, NULL, &code); /* of OpenCL 2.0 */
    return queue == NULL && code == CL_INVALID_CONTEXT && clxent_version()[0] != '\0' ? 0 : 1;
}
