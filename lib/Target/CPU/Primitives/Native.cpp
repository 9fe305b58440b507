//===- Native.cpp - whether this machine runs the native build ------------===//
//
// Compiled for the host's base ISA, unlike all other files.
//
//===----------------------------------------------------------------------===//
#include "Primitives.h"

extern "C" int kvpc_primitives_supported(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
}
