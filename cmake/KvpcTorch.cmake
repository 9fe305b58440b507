# kvpc_find_torch() makes the target kvpc_libtorch, for the build and for projects that use an
# installed kvpc::torch. Torch_DIR, the folder of TorchConfig.cmake, says where it is; without it
# the Python named by KVPC_PYTHON, or python3, is asked.
#
# It is taken from its folder rather than by find_package(Torch): a CUDA build of Torch would then
# ask for a CUDA toolkit, and the package overwrites CMAKE_CUDA_ARCHITECTURES. Only the CPU half of
# the library is linked.

# Sets `folder` to the folder of TorchConfig.cmake, or to nothing. Torch is not imported: that takes
# seconds.
function(kvpc_locate_torch folder)
  if(Torch_DIR)
    set(${folder} "${Torch_DIR}" PARENT_SCOPE)
    return()
  endif()
  find_program(KVPC_PYTHON NAMES python3 DOC "Python that runs kvpc's package and tests")
  set(found "")
  if(KVPC_PYTHON)
    execute_process(
      COMMAND ${KVPC_PYTHON} -c
"import importlib.util, pathlib
spec = importlib.util.find_spec('torch')
print(pathlib.Path(spec.origin).parent / 'share' / 'cmake' / 'Torch' if spec else '')"
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(${folder} "${found}" PARENT_SCOPE)
endfunction()

function(kvpc_find_torch)
  if(TARGET kvpc_libtorch)
    return()
  endif()
  kvpc_locate_torch(folder)
  if(NOT folder)
    message(FATAL_ERROR "kvpc: no torch in ${KVPC_PYTHON} and no Torch_DIR; give "
            "-DTorch_DIR=<folder of TorchConfig.cmake> or -DKVPC_PYTHON=<python with torch>")
  endif()
  get_filename_component(root "${folder}/../../.." ABSOLUTE)
  foreach(lib c10 torch_cpu)
    find_library(KVPC_LIB_${lib} ${lib} PATHS ${root}/lib NO_DEFAULT_PATH REQUIRED)
  endforeach()
  add_library(kvpc_libtorch INTERFACE IMPORTED GLOBAL)
  target_include_directories(kvpc_libtorch SYSTEM INTERFACE
                             ${root}/include ${root}/include/torch/csrc/api/include)
  target_link_libraries(kvpc_libtorch INTERFACE ${KVPC_LIB_torch_cpu} ${KVPC_LIB_c10})
endfunction()
