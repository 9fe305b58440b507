# MLIR, LLVM and LLD 22.1, and LLVM's own compile options, for the folders added from here on.
# -DMLIR_DIR=... points to another installation than llvm-config-22's.
if(NOT MLIR_DIR)
  find_program(LLVM_CONFIG NAMES llvm-config-22 llvm-config)
  if(NOT LLVM_CONFIG)
    message(FATAL_ERROR "llvm-config-22 is not there; the compiler needs MLIR 22.1: "
            "run scripts/setup, give -DMLIR_DIR=<dir>, or build the runtime alone with "
            "-DKVPC_COMPILER=OFF")
  endif()
  execute_process(COMMAND ${LLVM_CONFIG} --cmakedir OUTPUT_VARIABLE llvm_cmake_dir
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  get_filename_component(MLIR_DIR "${llvm_cmake_dir}/../mlir" ABSOLUTE)
endif()
find_package(MLIR 22.1 REQUIRED CONFIG)
find_package(LLD REQUIRED CONFIG HINTS "${MLIR_DIR}/../lld")

list(APPEND CMAKE_MODULE_PATH "${MLIR_CMAKE_DIR}" "${LLVM_CMAKE_DIR}")
set(LLVM_RUNTIME_OUTPUT_INTDIR ${PROJECT_BINARY_DIR}/bin)
set(LLVM_LIBRARY_OUTPUT_INTDIR ${PROJECT_BINARY_DIR}/lib)
set(MLIR_BINARY_DIR ${PROJECT_BINARY_DIR})
set(LLVM_ENABLE_WARNINGS OFF) # kvpc_warnings instead
include(TableGen)
include(AddLLVM)
include(AddMLIR)
include(HandleLLVMOptions)
foreach(flags CMAKE_C_FLAGS CMAKE_CXX_FLAGS)
  string(REGEX REPLACE "(^| )-w( |$)" " " ${flags} "${${flags}}") # what OFF adds
endforeach()

include_directories(SYSTEM ${LLVM_INCLUDE_DIRS} ${MLIR_INCLUDE_DIRS} ${LLD_INCLUDE_DIRS})
include_directories(${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}
                    ${PROJECT_SOURCE_DIR}/runtime/core/include)
separate_arguments(llvm_definitions NATIVE_COMMAND "${LLVM_DEFINITIONS}")
add_definitions(${llvm_definitions})

# The two dylibs, never together with an archive of MLIR or LLVM: that would be two copies of
# every TypeID. lld exists as archives alone; they resolve against the LLVM dylib.
# Not ${LLD_EXPORTED_TARGETS}: it pulls in LLVM's archives.
set(KVPC_LLVM_LIBRARIES MLIR LLVM)
set(KVPC_LLD_LIBRARIES lldELF lldCommon)

# Every object of the compiler reuses this one precompiled header, so its flags must be theirs.
if(KVPC_PCH)
  add_library(KvpcPch OBJECT ${PROJECT_SOURCE_DIR}/cmake/pch.cpp)
  target_precompile_headers(KvpcPch PRIVATE ${PROJECT_SOURCE_DIR}/cmake/pch.h)
  kvpc_compile_options(KvpcPch)
endif()
