# The functions with which folders declare their targets.
#
#   kvpc_library(Name a.cpp ... [UNITY] [DEPENDS TableGenTarget ...] [LINK library ...])
#       static library of the compiler and alias kvpc::Name; links are public. UNITY: its sources
#       are compiled a few at a time, which takes a third of the time, MLIR's templates being most
#       of it (-DKVPC_UNITY=OFF: one by one)
#   kvpc_tool(name a.cpp ... [DEPENDS ...] [LINK ...])
#       executable in ${build}/bin
#   kvpc_unittest(name a.cpp ... [RUNTIME] [UNITY] [DEPENDS ...] [LINK ...])
#       GoogleTest program in ${build}/test/unit, run by scripts/test and ctest; UNITY as above.
#       RUNTIME: no LLVM, and exceptions and RTTI as in runtime/
#   kvpc_warnings(target)
#       the project's warnings, for targets made by hand (runtime/)
#   kvpc_precompile(target header ... | REUSE_FROM other)
#       precompiled headers, for targets that do not have the compiler's

function(kvpc_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-unused-parameter)
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
    target_compile_options(${target} PRIVATE -Wimplicit-fallthrough -Wsuggest-override
                           -Wnon-virtual-dtor -Wno-missing-field-initializers
                           -Wno-missing-designated-field-initializers)
  endif()
endfunction()

function(kvpc_precompile_options target)
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang AND KVPC_PCH)
    # No time stamp: the header is the same file for ccache when it is made again.
    target_compile_options(${target} PRIVATE -fpch-instantiate-templates
                           "SHELL:-Xclang -fno-pch-timestamp")
  endif()
endfunction()

function(kvpc_precompile target)
  if(NOT KVPC_PCH)
    return()
  endif()
  kvpc_precompile_options(${target})
  if(ARGV1 STREQUAL REUSE_FROM)
    target_compile_options(${target} PRIVATE -fPIC) # as a shared library's, whose header it may be
    target_precompile_headers(${target} REUSE_FROM ${ARGV2})
  else()
    target_precompile_headers(${target} PRIVATE ${ARGN})
  endif()
endfunction()

# The compiler throws nothing; an eighth of the time to build it went into cleaning up after what
# might be thrown.
function(kvpc_compile_options target)
  kvpc_warnings(${target})
  target_compile_options(${target} PRIVATE -fno-exceptions)
  kvpc_precompile_options(${target})
endfunction()

function(kvpc_unity target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
endfunction()

# What libraries, tools and tests of the compiler have in common.
macro(kvpc_compiler_target target)
  target_link_libraries(${target} PUBLIC ${ARG_LINK} ${KVPC_LLVM_LIBRARIES})
  if(KVPC_PCH)
    target_precompile_headers(${target} REUSE_FROM KvpcPch)
  endif()
  kvpc_compile_options(${target})
  if(ARG_UNITY AND KVPC_UNITY)
    kvpc_unity(${target})
  endif()
  if(ARG_DEPENDS)
    add_dependencies(${target} ${ARG_DEPENDS})
  endif()
endmacro()

function(kvpc_library name)
  cmake_parse_arguments(ARG "UNITY" "" "DEPENDS;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  add_library(kvpc::${name} ALIAS ${name})
  kvpc_compiler_target(${name})
endfunction()

function(kvpc_tool name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;LINK" ${ARGN})
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  kvpc_compiler_target(${name})
  set_property(GLOBAL APPEND PROPERTY KVPC_TOOLS ${name})
endfunction()

function(kvpc_unittest name)
  cmake_parse_arguments(ARG "RUNTIME;UNITY" "" "DEPENDS;LINK" ${ARGN})
  find_package(GTest REQUIRED)
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test/unit)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
  target_compile_definitions(${name} PRIVATE KVPC_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
                             KVPC_BINARY_DIR="${PROJECT_BINARY_DIR}")
  target_link_libraries(${name} PRIVATE GTest::gtest GTest::gtest_main)
  if(ARG_RUNTIME)
    target_link_libraries(${name} PRIVATE ${ARG_LINK})
    target_compile_options(${name} PRIVATE -fexceptions -frtti)
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/runtime/core/include)
    kvpc_warnings(${name})
    list(LENGTH ARG_UNPARSED_ARGUMENTS files)
    if(ARG_UNITY AND KVPC_UNITY)
      kvpc_unity(${name})
    elseif(files GREATER 1)
      kvpc_precompile(${name} <gtest/gtest.h> <algorithm> <cmath> <random> <string> <vector>)
    endif()
    if(ARG_DEPENDS)
      add_dependencies(${name} ${ARG_DEPENDS})
    endif()
  else()
    kvpc_compiler_target(${name})
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_property(GLOBAL APPEND PROPERTY KVPC_UNITTESTS ${name})
endfunction()
