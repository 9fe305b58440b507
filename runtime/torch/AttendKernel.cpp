//===- AttendKernel.cpp - attention over one run of entries, at the machine's level -----------===//
#include "AttendKernel.h"

namespace kvpc::torch {
namespace {

/// An f16, where bits alone are a bf16.
struct Half {
  uint16_t bits;
};

#define KVPC_WIDENS_HALVES 0
namespace base {
#include "AttendKernel.inc"
} // namespace base

#ifdef __x86_64__
#undef KVPC_WIDENS_HALVES
#define KVPC_WIDENS_HALVES 1
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
namespace avx2 {
#include "AttendKernel.inc"
} // namespace avx2
#pragma clang attribute pop
#endif

#define KVPC_ATTEND(LEVEL)                                                                         \
  (element == AttendElement::F32    ? LEVEL::attend<float>                                         \
   : element == AttendElement::BF16 ? LEVEL::attend<uint16_t>                                      \
                                    : LEVEL::attend<Half>)

} // namespace

AttendFunction attendFunction(AttendElement element) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return KVPC_ATTEND(avx2);
#endif
  return KVPC_ATTEND(base);
}

} // namespace kvpc::torch
