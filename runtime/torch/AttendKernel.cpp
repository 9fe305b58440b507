//===- AttendKernel.cpp - attention over one run of entries, at the machine's level -----------===//
#include "AttendKernel.h"

namespace kvpc::torch {
namespace {

namespace base {
#include "AttendKernel.inc"
} // namespace base

#ifdef __x86_64__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
namespace avx2 {
#include "AttendKernel.inc"
} // namespace avx2
#pragma clang attribute pop
#endif

} // namespace

AttendFunction attendFunction(bool bf16) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return bf16 ? avx2::attend<uint16_t> : avx2::attend<float>;
#endif
  return bf16 ? base::attend<uint16_t> : base::attend<float>;
}

} // namespace kvpc::torch
