/* SPDX-License-Identifier: MIT */
#error "macOS has no CL/cl.h"
