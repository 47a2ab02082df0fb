# SPDX-License-Identifier: MIT
#
# Installs the library into WORK/prefix, then builds and runs a program against it, once through
# find_package() and once through pkg-config, and once more by README.md's lines for each. KIND is static or shared. The
# program names no version of OpenCL, and its compilation prints nothing of it; one that names a newer version has that.
# Where DOCS says that Doxygen is there the manual is installed too.
cmake_minimum_required(VERSION 3.21)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nfailed (${status}):\n${output}")
  endif()
  if(output MATCHES "CL_TARGET_OPENCL_VERSION")
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nprinted:\n${output}")
  endif()
endfunction()

set(prefix ${WORK}/prefix)
set(program ${SOURCE}/tools/examples/quickstart.c)
set(shared OFF)
if(KIND STREQUAL "shared")
  set(shared ON)
endif()
# Unoptimised: half of the time, and other tests run the kernels and the host.
set(configure ${CMAKE_COMMAND} -G ${GENERATOR} -DCMAKE_C_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=Release
  -DCMAKE_C_FLAGS_RELEASE=-O0)

# The prefix starts empty, so that nothing an earlier run installed is found.
file(REMOVE_RECURSE ${prefix} ${WORK}/consumer)
run(${configure} -S ${SOURCE} -B ${WORK}/library -DBUILD_SHARED_LIBS=${shared}
  -DCMAKE_INSTALL_LIBDIR=lib -DCLXENT_BUILD_TOOLS=OFF -DCLXENT_BUILD_TESTS=OFF -DCLXENT_BUILD_DOCS=${DOCS})
run(${CMAKE_COMMAND} --build ${WORK}/library)
# As README.md installs: the prefix is not known before, so nothing installed may have another in it.
run(${CMAKE_COMMAND} --install ${WORK}/library --prefix ${prefix})
if(DOCS AND NOT EXISTS ${prefix}/share/doc/clxent/html/index.html)
  message(FATAL_ERROR "the manual is not installed")
endif()

run(${configure} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK}/consumer -DCMAKE_PREFIX_PATH=${prefix}
  -DSOURCE=${program})
run(${CMAKE_COMMAND} --build ${WORK}/consumer)
run(${WORK}/consumer/consumer)
run(${WORK}/consumer/newer)

find_program(pkg_config NAMES pkg-config pkgconf REQUIRED)
set(ENV{PKG_CONFIG_PATH} ${prefix}/lib/pkgconfig)
execute_process(COMMAND ${pkg_config} --cflags --libs clxent
  OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(flags UNIX_COMMAND "${flags}")
execute_process(COMMAND ${pkg_config} --cflags clxent
  OUTPUT_VARIABLE cflags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(cflags UNIX_COMMAND "${cflags}")
run(${COMPILER} -std=c11 -o ${WORK}/consumer/consumer-pkg-config ${program} ${flags} -Wl,-rpath,${prefix}/lib)
run(${WORK}/consumer/consumer-pkg-config)
run(${COMPILER} -std=c11 -Werror -c -o ${WORK}/consumer/newer.o ${CMAKE_CURRENT_LIST_DIR}/newer.c ${cflags})

# README.md's own lines, with its program as app.c and $HOME/clxent as the prefix.
set(app ${WORK}/home/app)
file(REMOVE_RECURSE ${WORK}/home)
file(MAKE_DIRECTORY ${app})
file(CREATE_LINK ${prefix} ${WORK}/home/clxent SYMBOLIC)
file(COPY_FILE ${program} ${app}/app.c)
file(COPY ${SOURCE}/tools/examples/example.h DESTINATION ${app})
set(ENV{HOME} ${WORK}/home)
file(READ ${SOURCE}/README.md readme)
if(NOT readme MATCHES "set `CMAKE_PREFIX_PATH=[$](HOME/clxent)` and `PKG_CONFIG_PATH=[$](HOME/clxent/lib/pkgconfig)`")
  message(FATAL_ERROR "README.md has no line on prefixes")
endif()
foreach(number RANGE 1 2)
  string(REPLACE "HOME" "$ENV{HOME}" path_${number} "${CMAKE_MATCH_${number}}")
endforeach()
set(ENV{CMAKE_PREFIX_PATH} ${path_1})
set(ENV{PKG_CONFIG_PATH} ${path_2})
if(NOT readme MATCHES "\n    (find_package[^\n]*\n *target_link_libraries[^\n]*)\n\n    (cc app.c[^\n]*)\n    (cc app.c[^\n]*)# shared\n")
  message(FATAL_ERROR "README.md has no lines on linking")
endif()
set(lines "${CMAKE_MATCH_1}")
set(command "${CMAKE_MATCH_2}")
if(shared)
  set(command "${CMAKE_MATCH_3}")
endif()
file(WRITE ${app}/CMakeLists.txt
  "cmake_minimum_required(VERSION 3.21)\nproject(app LANGUAGES C)\nadd_executable(app app.c)\n${lines}\n")
run(${configure} -S ${app} -B ${app}/build)
run(${CMAKE_COMMAND} --build ${app}/build)
run(${app}/build/app)
run(sh -c "cd '${app}' && ${command}")
run(${app}/app)
