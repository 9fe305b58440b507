# The Python of the virtual environment that scripts/setup makes, else the system's, and whether
# there is a Torch to build against.
find_program(KVPC_PYTHON NAMES python3 HINTS ${PROJECT_SOURCE_DIR}/.venv/bin
             NO_CMAKE_ENVIRONMENT_PATH DOC "Python that runs kvpc's package and tests")
include(KvpcTorch)

if(KVPC_TORCH)
  kvpc_locate_torch(torch_folder)
  if(torch_folder)
    set(KVPC_TORCH ON) # a normal variable: the cache keeps AUTO
  elseif(KVPC_TORCH STREQUAL "AUTO")
    set(KVPC_TORCH OFF)
    message(STATUS "kvpc: no Torch found, runtime/torch is left out")
  else()
    message(FATAL_ERROR "KVPC_TORCH is ON but ${KVPC_PYTHON} has no torch: run scripts/setup or "
            "give -DTorch_DIR=<folder of TorchConfig.cmake>")
  endif()
endif()
