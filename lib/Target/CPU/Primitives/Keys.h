//===- Keys.h - integers that order scores ---------------------------------===//
//
// A score's key is an int32 that compares as the language orders scores: NaN lowest, then -inf,
// ..., +inf, with -0 and +0 the same key. Keys are made from bits alone, so a host that flushes
// denormal numbers gets the same order. Below and above all of them there is room for entries that
// are out or in whatever their score.
//
//===----------------------------------------------------------------------===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_KEYS_H
#define KVPC_TARGET_CPU_PRIMITIVES_KEYS_H

#include "Vector.h"

namespace kvpc::prim {

constexpr int32_t kOutKey = INT32_MIN;     // cannot be chosen
constexpr int32_t kNanKey = INT32_MIN + 1; // -inf is -0x7f800000
constexpr int32_t kProtectedKey = INT32_MAX - 1;
constexpr int32_t kFirstKey = INT32_MAX; // chosen before the protected ones

KVPC_INLINE int32_t scoreKey(float score) {
  int32_t b = __builtin_bit_cast(int32_t, score), magnitude = b & 0x7fffffff, sign = b >> 31;
  return magnitude > 0x7f800000 ? kNanKey : (magnitude ^ sign) - sign;
}

KVPC_INLINE Ints scoreKeys(Lanes score) {
  Ints b = __builtin_bit_cast(Ints, score), magnitude = b & 0x7fffffff, sign = b >> 31;
  return magnitude > 0x7f800000 ? Ints(kNanKey) : (magnitude ^ sign) - sign;
}

/// Unsigned, ascending where scores descend.
KVPC_INLINE uint32_t descendingKey(float score) {
  return ~(uint32_t(scoreKey(score)) ^ 0x80000000u);
}

} // namespace kvpc::prim

#endif
