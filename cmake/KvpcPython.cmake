# The Python of the virtual environment that scripts/setup makes, else the system's, and
# whether Torch lives in it. Torch is not imported: that takes seconds.
find_program(KVPC_PYTHON NAMES python3 HINTS ${PROJECT_SOURCE_DIR}/.venv/bin
             NO_CMAKE_ENVIRONMENT_PATH DOC "Python that runs kvpc's package and tests")

set(KVPC_TORCH_CMAKE_DIR "")
if(KVPC_TORCH AND KVPC_PYTHON)
  execute_process(
    COMMAND ${KVPC_PYTHON} -c
"import importlib.util, pathlib
spec = importlib.util.find_spec('torch')
print(pathlib.Path(spec.origin).parent / 'share' / 'cmake' / 'Torch' if spec else '')"
    OUTPUT_VARIABLE KVPC_TORCH_CMAKE_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(Torch_DIR)
  set(KVPC_TORCH_CMAKE_DIR "${Torch_DIR}")
endif()
if(KVPC_TORCH STREQUAL "AUTO")
  if(KVPC_TORCH_CMAKE_DIR)
    set(KVPC_TORCH ON) # a normal variable: the cache keeps AUTO
  else()
    set(KVPC_TORCH OFF)
    message(STATUS "kvpc: no Torch found, runtime/torch is left out")
  endif()
elseif(KVPC_TORCH AND NOT KVPC_TORCH_CMAKE_DIR)
  message(FATAL_ERROR "KVPC_TORCH is ON but ${KVPC_PYTHON} has no torch: run scripts/setup or "
          "give -DTorch_DIR=<dir of TorchConfig.cmake>")
endif()
