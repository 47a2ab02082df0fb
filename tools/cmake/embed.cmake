# SPDX-License-Identifier: MIT
#
# cmake -DOUT=kernels.c "-DIN=/path/a.cl;/path/b.cl" -P embed.cmake
# Writes the table clxent_sources[] of host/internal.h: every file of IN as a byte array. Byte arrays need no
# quoting and know no limit on the length of a string literal.
cmake_minimum_required(VERSION 3.21)

set(arrays "")
set(rows "")
foreach(path IN LISTS IN)
  get_filename_component(file ${path} NAME)
  string(MAKE_C_IDENTIFIER ${file} identifier)
  file(READ ${path} hex HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  if(bytes MATCHES "0x[89a-f]")
    message(FATAL_ERROR "${path}: not plain ASCII, which some OpenCL compilers refuse")
  endif()
  string(APPEND arrays "static const unsigned char ${identifier}[] = {\n${bytes}\n};\n\n")
  string(APPEND rows "    { \"${file}\", ${identifier}, sizeof ${identifier} },\n")
endforeach()
file(WRITE ${OUT}
  "/* Made by tools/cmake/embed.cmake. */\n#include \"internal.h\"\n\n${arrays}"
  "const clxent_source clxent_sources[] = {\n${rows}    { NULL, NULL, 0 },\n};\n")
