# `cmake --install BUILD --component C` for C in
#   runtime   libkvpc_runtime.a and its headers        kvpc::runtime
#   torch     libkvpc_torch.so and the Python package  kvpc::torch
#   compiler  kvpc and the library of presses          kvpc::compiler (the program)
# Each stands alone: find_package(kvpc COMPONENTS ...) takes the target files that are there.
# The layout is the build folder's: bin, lib, python/kvpc, share/kvpc/presses.
include(CMakePackageConfigHelpers)
set(config lib/cmake/kvpc)

function(kvpc_install component)
  cmake_parse_arguments(ARG "" "" "TARGETS;FOLDERS" ${ARGN})
  install(TARGETS ${ARG_TARGETS} EXPORT kvpc-${component}
          RUNTIME DESTINATION bin COMPONENT ${component}
          LIBRARY DESTINATION lib COMPONENT ${component}
          ARCHIVE DESTINATION lib COMPONENT ${component})
  install(EXPORT kvpc-${component} NAMESPACE kvpc:: DESTINATION ${config} COMPONENT ${component})
  while(ARG_FOLDERS)
    list(POP_FRONT ARG_FOLDERS from to)
    if(EXISTS ${PROJECT_SOURCE_DIR}/${from})
      install(DIRECTORY ${PROJECT_SOURCE_DIR}/${from}/ DESTINATION ${to} COMPONENT ${component}
              PATTERN __pycache__ EXCLUDE PATTERN CMakeLists.txt EXCLUDE)
    endif()
  endwhile()
  install(FILES ${PROJECT_BINARY_DIR}/cmake/kvpcConfig.cmake
                ${PROJECT_BINARY_DIR}/cmake/kvpcConfigVersion.cmake
                ${PROJECT_SOURCE_DIR}/cmake/KvpcTorch.cmake
          DESTINATION ${config} COMPONENT ${component})
  install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION share/kvpc COMPONENT ${component})
endfunction()

configure_file(${PROJECT_SOURCE_DIR}/cmake/kvpcConfig.cmake.in
               ${PROJECT_BINARY_DIR}/cmake/kvpcConfig.cmake @ONLY)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/kvpcConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)

if(TARGET kvpc_runtime)
  kvpc_install(runtime TARGETS kvpc_runtime kvpc_primitives_native
               FOLDERS runtime/core/include include)
endif()
if(TARGET kvpc_torch)
  kvpc_install(torch TARGETS kvpc_torch
               FOLDERS runtime/torch/include include runtime/python/kvpc python/kvpc)
endif()
if(TARGET kvpc)
  set_target_properties(kvpc PROPERTIES EXPORT_NAME compiler INSTALL_RPATH_USE_LINK_PATH ON)
  kvpc_install(compiler TARGETS kvpc FOLDERS presses share/kvpc/presses)
endif()
