# SPDX-License-Identifier: MIT
#
# cmake -DOUT=kernels.c "-DIN=/path/rows.cl;/path/lanes.cl" -DHEADER=internal.h -DNAME=clxent_source -P embed.cmake
# Writes the table NAMEs[] of the type NAME that HEADER declares: the text of every program of IN, its #include "..."
# lines replaced by the files they name, each of them once. Texts are byte arrays, which need no quoting and know no
# limit on the length of a string literal.
cmake_minimum_required(VERSION 3.21)

# Appends the bytes of path, in hex, to the caller's `hex`; a file that is in `seen` adds nothing.
function(append_file path)
  get_filename_component(path ${path} ABSOLUTE)
  if(path IN_LIST seen)
    return()
  endif()
  list(APPEND seen ${path})
  get_filename_component(folder ${path} DIRECTORY)
  file(READ ${path} rest)
  while(rest MATCHES "\n# *include \"([^\"\n]*)\"\n")
    string(FIND "${rest}" "${CMAKE_MATCH_0}" at)
    string(LENGTH "${CMAKE_MATCH_0}" length)
    set(included ${folder}/${CMAKE_MATCH_1})
    string(SUBSTRING "${rest}" 0 ${at} before)
    math(EXPR behind "${at} + ${length} - 1") # the newline may begin the next #include
    string(SUBSTRING "${rest}" ${behind} -1 rest)
    string(HEX "${before}\n" bytes)
    string(APPEND hex "${bytes}")
    append_file(${included})
  endwhile()
  string(HEX "${rest}" bytes)
  string(APPEND hex "${bytes}")
  set(hex "${hex}" PARENT_SCOPE)
  set(seen "${seen}" PARENT_SCOPE)
endfunction()

set(arrays "")
set(rows "")
foreach(path IN LISTS IN)
  get_filename_component(file ${path} NAME)
  string(MAKE_C_IDENTIFIER ${file} identifier)
  set(hex "")
  set(seen "")
  append_file(${path})
  string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  if(bytes MATCHES "0x[89a-f]")
    message(FATAL_ERROR "${path}: not plain ASCII, which some OpenCL compilers refuse")
  endif()
  string(APPEND arrays "static const unsigned char ${identifier}[] = {\n${bytes}\n};\n\n")
  string(APPEND rows "    { \"${file}\", ${identifier}, sizeof ${identifier} },\n")
endforeach()
file(WRITE ${OUT}
  "/* Made by tools/cmake/embed.cmake. */\n#include \"${HEADER}\"\n\n${arrays}"
  "const ${NAME} ${NAME}s[] = {\n${rows}    { NULL, NULL, 0 },\n};\n")
