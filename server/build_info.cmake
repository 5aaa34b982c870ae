# fewbit_build_info: what --version and build_info say. Included by server/CMakeLists.txt; run as a script (cmake -P) by every build,
# because the commit changes without CMake noticing. The header is only rewritten when its text changes.
if(CMAKE_SCRIPT_MODE_FILE)
  if(NOT COMMIT)
    # Without locks: a build must not stand in the way of somebody's commit.
    execute_process(
      COMMAND git --no-optional-locks -C ${SOURCE_DIR} describe --always --abbrev=12 --dirty --exclude=*
      OUTPUT_VARIABLE COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(NOT COMMIT)
    set(COMMIT unknown)
  endif()
  file(CONFIGURE OUTPUT ${OUTPUT} CONTENT [[
#pragma once
#define FEWBIT_BUILD_COMMIT "@COMMIT@"
#define FEWBIT_BUILD_COMPILER "@COMPILER@"
#define FEWBIT_BUILD_CUDA "@CUDA@"
]] @ONLY)
  return()
endif()

set(FEWBIT_COMMIT "" CACHE STRING "What --version calls the commit; empty: ask git at build time")
set(build_info_gen ${CMAKE_CURRENT_BINARY_DIR}/gen)
set(cuda_version none)
if(FEWBIT_CUDA_ENABLED)
  set(cuda_version ${CMAKE_CUDA_COMPILER_VERSION})
endif()
add_custom_target(fewbit_build_info_values
  COMMAND ${CMAKE_COMMAND} -DCOMMIT=${FEWBIT_COMMIT} -DSOURCE_DIR=${CMAKE_SOURCE_DIR}
          "-DCOMPILER=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}" -DCUDA=${cuda_version}
          -DOUTPUT=${build_info_gen}/server/build_info_values.h -P ${CMAKE_CURRENT_LIST_FILE}
  BYPRODUCTS ${build_info_gen}/server/build_info_values.h
  COMMENT "Looking up the commit"
  VERBATIM)

add_library(fewbit_build_info STATIC build_info.cc)
add_dependencies(fewbit_build_info fewbit_build_info_values)
target_include_directories(fewbit_build_info PRIVATE ${build_info_gen})
target_compile_definitions(fewbit_build_info PRIVATE FEWBIT_VERSION="${PROJECT_VERSION}")
target_link_libraries(fewbit_build_info PUBLIC fewbit_options)
