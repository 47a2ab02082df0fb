# SPDX-License-Identifier: MIT
#
# clang compiles PROGRAM in every shape that host/plan.c may ask for, with FULL for every dtype and else for one each in
# turn, for a device that has nothing beyond OpenCL C 1.2. The compilers of drivers are more lenient: they accept
# doubles and extensions of later versions. STAMP, optional, is a file: what was clean is not compiled again before
# a kernel, the compiler or this file changes.
cmake_minimum_required(VERSION 3.21)

# Sets name to the hash of all that a verdict depends on.
function(get_state name)
  file(GLOB sources ${KERNELS}/*.cl ${KERNELS}/programs/*.cl)
  execute_process(COMMAND ${CLANG} --version OUTPUT_VARIABLE version)
  set(state "${PROGRAM} ${FULL} ${version}")
  foreach(file IN LISTS sources ITEMS ${CMAKE_CURRENT_LIST_FILE})
    file(SHA256 ${file} hash)
    string(APPEND state "${file} ${hash}\n")
  endforeach()
  string(SHA256 state "${state}")
  set(${name} ${state} PARENT_SCOPE)
endfunction()

get_state(state)
if(DEFINED STAMP AND EXISTS "${STAMP}")
  file(READ "${STAMP}" clean)
  if(clean STREQUAL state)
    message(STATUS "nothing has changed since it was clean")
    return()
  endif()
endif()

# DTYPE:GRADIENT_DTYPE, as kernels/common.cl numbers them. The two meet nowhere but in a conversion: each type
# with itself, and one mixture for each kind of conversion.
set(dtypes 1:1 2:2 3:3 4:4 1:2 3:1 4:1)
set(cpu -DWG_SIZE=1)
set(gpu -DWG_SIZE=256)
# kernels/constants.cl: every output without options, everything at once, what training asks for, the loss alone, an
# entropy's gradient, and no targets.
set(none "-DHAS_CLASS_WEIGHTS=0 -DHAS_SMOOTHING=0 -DHAS_LOGIT_SCALE=0 -DHAS_SOFTCAP=0 -DHAS_GRAD_ENTROPY=0 -DHAS_GRAD_LSE=0 -DACCUMULATE=0")
set(all "-DHAS_CLASS_WEIGHTS=1 -DHAS_SMOOTHING=1 -DHAS_LOGIT_SCALE=1 -DHAS_SOFTCAP=1 -DHAS_GRAD_ENTROPY=1 -DHAS_GRAD_LSE=1 -DACCUMULATE=1")
set(row_grads "-DHAS_CLASS_WEIGHTS=0 -DHAS_SMOOTHING=0 -DHAS_LOGIT_SCALE=0 -DHAS_SOFTCAP=0 -DHAS_GRAD_ENTROPY=1 -DHAS_GRAD_LSE=0 -DACCUMULATE=0")
set(constants
  "-DOUTPUTS=767 -DTARGETS=1 -DREDUCES=1 -DKERNELS=3 ${none}"
  "-DOUTPUTS=1023 -DTARGETS=5 -DREDUCES=1 -DKERNELS=3 ${all}"
  "-DOUTPUTS=34 -DTARGETS=2 -DREDUCES=1 -DKERNELS=1 ${all}"
  "-DOUTPUTS=3 -DTARGETS=3 -DREDUCES=0 -DKERNELS=2 ${none}"
  "-DOUTPUTS=34 -DTARGETS=2 -DREDUCES=1 -DKERNELS=3 ${row_grads}"
  "-DOUTPUTS=12 -DTARGETS=0 -DREDUCES=0 -DKERNELS=1 ${none}")
set(shapes "")
if(PROGRAM STREQUAL "rows")
  foreach(of_plan IN LISTS constants)
    list(APPEND shapes
      "${cpu} -DLANES=0 -DVEC=16 -DBLOCK=64 ${of_plan}"
      "${cpu} -DLANES=0 -DVEC=1 -DBLOCK=4 ${of_plan}"
      "${gpu} -DLANES=0 -DVEC=4 -DBLOCK=4 -DONE_BLOCK=1 -DDIVIDES=0 ${of_plan}"
      "${gpu} -DLANES=0 -DVEC=8 -DBLOCK=2 -DONE_BLOCK=0 -DDIVIDES=1 ${of_plan}"
      "${gpu} -DLANES=0 -DVEC=1 -DBLOCK=16 -DONE_BLOCK=0 -DDIVIDES=1 ${of_plan}"
      "${gpu} -DLANES=0 -DVEC=4 -DBLOCK=4 -DONE_BLOCK=0 -DDIVIDES=0 -DNATIVE_EXP=1 ${of_plan}")
  endforeach()
elseif(PROGRAM STREQUAL "lanes")
  foreach(of_plan IN LISTS constants)
    foreach(shape "${cpu} -DVEC=16 -DCOLUMNS=4" "${cpu} -DVEC=1 -DCOLUMNS=1" "${gpu} -DVEC=4 -DCOLUMNS=1")
      list(APPEND shapes "${shape} -DLANES=1 -DALONG=0 -DINNER=1 -DIN_LOCAL=1 ${of_plan}")
    endforeach()
    list(APPEND shapes
      "${cpu} -DVEC=16 -DCOLUMNS=1 -DLANES=1 -DALONG=0 -DINNER=1 -DIN_LOCAL=0 ${of_plan}"
      "${cpu} -DVEC=16 -DCOLUMNS=1 -DLANES=1 -DALONG=0 -DINNER=0 -DIN_LOCAL=1 ${of_plan}"
      "${cpu} -DVEC=4 -DCOLUMNS=1 -DLANES=1 -DALONG=0 -DINNER=0 -DIN_LOCAL=1 ${of_plan}"
      "${gpu} -DVEC=1 -DCOLUMNS=1 -DLANES=1 -DALONG=0 -DINNER=0 -DIN_LOCAL=1 ${of_plan}")
  endforeach()
  foreach(vector 4 16)
    foreach(outputs 711 999)
      list(APPEND shapes
        "${cpu} -DVEC=${vector} -DCOLUMNS=1 -DLANES=1 -DALONG=1 -DINNER=0 -DIN_LOCAL=1 -DOUTPUTS=${outputs} -DTARGETS=1 -DREDUCES=1 ${none}")
    endforeach()
  endforeach()
elseif(PROGRAM STREQUAL "product")
  foreach(product 1 2 3 4)
    foreach(shape "${cpu} -DVEC=16 -DTILE_ROWS=8 -DTILE_VECTORS=3" "${cpu} -DVEC=4 -DTILE_ROWS=6 -DTILE_VECTORS=2"
            "${gpu} -DVEC=4 -DTILE_ROWS=8 -DTILE_VECTORS=2 -DGROUP_COLUMNS=16")
      list(APPEND shapes "${shape} -DLANES=0 -DPRODUCT=${product} -DBIAS_VECTORS=2 -DOUTPUTS=0 -DTARGETS=2 -DREDUCES=0 ${row_grads}")
    endforeach()
  endforeach()
elseif(PROGRAM STREQUAL "padding")
  set(dtypes 1:1)
  set(shapes "${cpu} -DELEMENT_BYTES=2" "${gpu} -DELEMENT_BYTES=4" "${gpu} -DELEMENT_BYTES=8")
else()
  foreach(targets 1 5 7)
    list(APPEND shapes
      "${cpu} -DLANES=0 -DVEC=1 -DOUTPUTS=0 -DTARGETS=${targets} -DREDUCES=1 ${none}"
      "${gpu} -DLANES=0 -DVEC=1 -DOUTPUTS=0 -DTARGETS=${targets} -DREDUCES=1 ${none}")
  endforeach()
endif()
# -cl-no-stdinc leaves out clang's own table of builtins, which lacks vload_half where the device lacks fp16;
# opencl-c.h, which -finclude-default-header then brings, has it.
set(language -cl-std=CL1.2 -cl-no-stdinc -Xclang -finclude-default-header -target spir64)
set(flags -x cl -Wall -Wextra -Wdouble-promotion -Werror -fsyntax-only)
get_filename_component(compiler ${CLANG} NAME)
set(header ${CMAKE_CURRENT_BINARY_DIR}/lint_${PROGRAM}_${compiler})
file(WRITE ${header}.h "")

# What a compilation takes of the device's extensions. opencl-c.h is parsed once for all: it takes more time than the kernels.
foreach(extensions -all -all,+cl_khr_fp64)
  execute_process(COMMAND ${CLANG} -x cl-header ${language} -Xclang -cl-ext=${extensions}
    ${header}.h -o ${header}${extensions}.pch COMMAND_ERROR_IS_FATAL ANY)
  set(with${extensions} ${language} -Xclang -cl-ext=${extensions} -include-pch ${header}${extensions}.pch)
endforeach()

# clang 19's -Wconversion takes every vector condition of ?:, && and || for a conversion to bool. OpenCL C has such
# conditions: they choose element by element. The groups below are all of -Wconversion but that diagnostic, which has
# no group of its own.
set(conversion -Wconversion)
file(WRITE ${header}_probe.cl "int4 f(int4 a, int4 b) { return a < b ? a : b; }\n")
execute_process(COMMAND ${CLANG} ${flags} ${with-all} ${conversion} ${header}_probe.cl
  RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
if(NOT status EQUAL 0)
  set(conversion -Wbitfield-enum-conversion -Wbool-conversion -Wconstant-conversion -Wenum-conversion
    -Wfloat-conversion -Wimplicit-float-conversion -Wimplicit-int-conversion -Wint-conversion -Wliteral-conversion
    -Wnon-literal-null-conversion -Wnull-conversion -Wshorten-64-to-32 -Wsign-conversion -Wstring-conversion)
endif()
list(APPEND flags ${conversion})

set(turn 0)
list(LENGTH dtypes count)
foreach(shape IN LISTS shapes)
  list(GET dtypes ${turn} of_this_shape)
  math(EXPR turn "(${turn} + 1) % ${count}")
  if(FULL)
    set(of_this_shape ${dtypes})
  endif()
  foreach(dtype IN LISTS of_this_shape)
    if(shape MATCHES "NATIVE_EXP" AND dtype MATCHES "^4")
      continue()
    endif()
    set(extensions -all)
    if(dtype MATCHES "4")
      set(extensions -all,+cl_khr_fp64)
    endif()
    string(REGEX REPLACE "(.*):(.*)" "${shape} -DDTYPE=\\1 -DGRADIENT_DTYPE=\\2" defines ${dtype})
    separate_arguments(arguments UNIX_COMMAND "${defines}")
    execute_process(
      COMMAND ${CLANG} ${flags} ${with${extensions}} ${arguments} ${KERNELS}/programs/${PROGRAM}.cl
      RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(NOT status EQUAL 0)
      message(FATAL_ERROR "${PROGRAM}.cl with ${defines}:\n${output}")
    endif()
  endforeach()
endforeach()

# A kernel's __local variables belong to the kernel: what an optimizer leaves in another function, PoCL shares between threads
# (TAKES_LOCAL in kernels/common.cl). Every third, which has each kind of shape and each set of constants: optimizing takes a
# second.
list(FILTER shapes EXCLUDE REGEX "-DWG_SIZE=1 ")
set(turn 0)
foreach(shape IN LISTS shapes)
  math(EXPR turn "(${turn} + 1) % 3")
  if(FULL OR turn EQUAL 1)
    separate_arguments(arguments UNIX_COMMAND "${shape} -DDTYPE=1 -DGRADIENT_DTYPE=1 -DPOCL_DEVICE_ADDRESS_BITS=64")
    execute_process(
      COMMAND ${CLANG} -x cl ${with-all} -O2 -w -S -emit-llvm -o - ${arguments} ${KERNELS}/programs/${PROGRAM}.cl
      RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE errors)
    if(NOT status EQUAL 0)
      message(FATAL_ERROR "${PROGRAM}.cl with ${shape}:\n${errors}")
    endif()
    string(REPLACE ";" "," output "${output}")
    string(REPLACE "\ndefine " ";" output "${output}")
    list(POP_FRONT output)
    list(FILTER output EXCLUDE REGEX "^[^\n]*spir_kernel")
    list(FILTER output INCLUDE REGEX "\\.scratch")
    if(NOT output STREQUAL "")
      message(FATAL_ERROR "${PROGRAM}.cl with ${shape}: a function names a kernel's __local variable:\n${output}")
    endif()
  endif()
endforeach()

# Sets name to the functions that text defines, each once.
function(list_definitions name text)
  string(REGEX MATCHALL "\n(static inline|ALWAYS_INLINE|INLINE_ON_GPU|TAKES_LOCAL|PART|PART_OF_SLAB) [A-Za-z_0-9 *]*[ *][a-z_0-9]+\\("
    found "${text}")
  list(TRANSFORM found REPLACE ".*[ *]([A-Za-z_0-9]+)\\($" "\\1")
  list(REMOVE_DUPLICATES found) # one file may have it for each of two shapes
  set(${name} ${found} PARENT_SCOPE)
endfunction()

# One name is one thing: only what fused.cl asks of a mapping, and map_lane.cl of a scan, is defined in more than one file.
set(of_mapping find_best find_classes stage stage_shared sum_shared sum_tile tile_excluding_max tile_maximum count_units epilogue_of_unit make_input open_rows open_unit scan_rows sum_part sum_part_excluding_max target_logits units_of_group write_result)
file(GLOB files ${KERNELS}/*.cl)
set(text "")
set(known "")
foreach(file IN LISTS files)
  file(READ ${file} part)
  string(APPEND text "${part}")
  list_definitions(here "${part}")
  foreach(name IN LISTS here)
    if(name IN_LIST known AND NOT name IN_LIST of_mapping)
      message(FATAL_ERROR "${name}: two files define it")
    endif()
  endforeach()
  list(APPEND known ${here})
endforeach()

# The compiler reports unused functions of the main file alone; those of the kernels stand in included files. A function
# whose name occurs once in all kernels is unused.
list(REMOVE_DUPLICATES known)
foreach(name IN LISTS known)
  string(REGEX MATCHALL "[^A-Za-z_0-9]${name}[^A-Za-z_0-9]" uses "${text}")
  list(LENGTH uses count)
  if(count EQUAL 1)
    message(FATAL_ERROR "${name}: no kernel uses it")
  endif()
endforeach()

get_state(state_behind)
if(DEFINED STAMP AND state STREQUAL state_behind) # else it was edited meanwhile
  file(WRITE "${STAMP}" "${state}")
endif()
