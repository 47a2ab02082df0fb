/* SPDX-License-Identifier: MIT
 *
 * opencl.h - what clxent.h uses of the header that macOS has in its OpenCL framework, for a test on other systems.
 */
#ifndef TEST_MACOS_OPENCL_H
#define TEST_MACOS_OPENCL_H

#include <stdint.h>

typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef struct _cl_context *cl_context;
typedef struct _cl_device_id *cl_device_id;
typedef struct _cl_command_queue *cl_command_queue;
typedef struct _cl_mem *cl_mem;
typedef struct _cl_event *cl_event;

#endif
