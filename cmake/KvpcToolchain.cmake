# Optimisation, linker and compiler cache. Included before any target exists.
include(CheckLinkerFlag)

# -O2: the compiler's own speed is LLVM's, and -O3 builds slower. Assertions cost the compiler
# nothing that shows and turn a wrong cast into a message instead of a wrong module.
option(KVPC_ASSERTIONS "keep assertions in release builds" ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O2")
if(NOT KVPC_ASSERTIONS)
  string(APPEND CMAKE_CXX_FLAGS_RELEASE " -DNDEBUG")
endif()

check_linker_flag(CXX -fuse-ld=lld KVPC_HAVE_LLD)
if(KVPC_HAVE_LLD)
  add_link_options(-fuse-ld=lld) # before HandleLLVMOptions, which probes the linker
endif()

# The sloppiness lets ccache see through a precompiled header. It is set here and not in the
# preset, because a plain `ninja` must profit too.
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(launcher ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${CCACHE_PROGRAM})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
endif()

if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  add_compile_options(-fcolor-diagnostics)
endif()
