# The build folder is laid out like an installation, so that each part finds the others by the
# same relative paths: bin/kvpc, lib/libkvpc_torch.so, python/kvpc, share/kvpc/presses.
function(kvpc_mirror target from to)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${from}/*)
  list(FILTER files EXCLUDE REGEX "/__pycache__/")
  list(FILTER files EXCLUDE REGEX "/CMakeLists.txt$")
  if(NOT files)
    return()
  endif()
  set(stamp ${PROJECT_BINARY_DIR}/CMakeFiles/${target}.stamp)
  # The list of files is a dependency: a file removed from the source leaves the copy too.
  set(manifest ${PROJECT_BINARY_DIR}/CMakeFiles/${target}.files)
  list(JOIN files "\n" text)
  file(CONFIGURE OUTPUT ${manifest} CONTENT "${text}\n" @ONLY)
  add_custom_command(
    OUTPUT ${stamp}
    COMMAND ${CMAKE_COMMAND} -E rm -rf ${PROJECT_BINARY_DIR}/${to}
    COMMAND ${CMAKE_COMMAND} -E copy_directory ${PROJECT_SOURCE_DIR}/${from}
            ${PROJECT_BINARY_DIR}/${to}
    COMMAND ${CMAKE_COMMAND} -E touch ${stamp}
    DEPENDS ${files} ${manifest} COMMENT "copying ${from}" VERBATIM)
  add_custom_target(${target} ALL DEPENDS ${stamp})
endfunction()

kvpc_mirror(kvpc_python runtime/python/kvpc python/kvpc)
kvpc_mirror(kvpc_presses presses share/kvpc/presses)

# What a user runs, without the tests.
add_custom_target(product)
foreach(target kvpc kvpc_torch kvpc_python kvpc_presses)
  if(TARGET ${target})
    add_dependencies(product ${target})
  endif()
endforeach()
