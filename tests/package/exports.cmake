# SPDX-License-Identifier: MIT
#
# LIBRARY, a shared library or the import library of a DLL, exports exactly the functions that the headers of the
# folder HEADERS declare. An import library also has symbols of data, which are its own.
cmake_minimum_required(VERSION 3.21)

set(symbols_of -D)
if(LIBRARY MATCHES "\\.dll\\.a$")
  set(symbols_of -g)
endif()
execute_process(COMMAND ${NM} ${symbols_of} --defined-only --format=posix ${LIBRARY}
  OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]+" symbols "${symbols}")
if(LIBRARY MATCHES "\\.dll\\.a$")
  list(FILTER symbols INCLUDE REGEX " T ")
endif()
list(TRANSFORM symbols REPLACE " .*" "")

set(declared "")
foreach(header clxent.h reference.h)
  file(READ ${HEADERS}/${header} text)
  string(REGEX MATCHALL "CLXENT_API [^;(]*[ *]clxent_[a-z0-9_]+\\(" found "${text}")
  list(TRANSFORM found REPLACE ".*[ *](clxent_[a-z0-9_]+)\\(" "\\1")
  list(APPEND declared ${found})
endforeach()
list(LENGTH declared count)
if(count LESS 10)
  message(FATAL_ERROR "only ${count} declarations found in the headers: ${declared}")
endif()

set(unexpected ${symbols})
list(REMOVE_ITEM unexpected ${declared})
set(absent ${declared})
list(REMOVE_ITEM absent ${symbols})
if(unexpected OR absent)
  message(FATAL_ERROR "exported but not declared: ${unexpected}\ndeclared but not exported: ${absent}")
endif()
