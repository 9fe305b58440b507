//===- KeyElements.h - how a micro-tile reads keys -------------------------===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_KEYELEMENTS_H
#define KVPC_TARGET_CPU_PRIMITIVES_KEYELEMENTS_H

#include "Panel.h"

namespace kvpc::prim {

struct Bf16 {
  static KVPC_ALWAYS_INLINE float widen(uint16_t x) { return fromBf16(x); }
  static KVPC_ALWAYS_INLINE Lanes widen(Halves x) {
    return __builtin_bit_cast(Lanes, __builtin_convertvector(x, Words) << 16);
  }
};

struct F16 {
  static KVPC_ALWAYS_INLINE float widen(uint16_t x) { return fromF16(x); }
  static KVPC_ALWAYS_INLINE Lanes widen(Halves x) {
    typedef _Float16 Numbers __attribute__((ext_vector_type(kLanes)));
    return __builtin_convertvector(__builtin_bit_cast(Numbers, x), Lanes);
  }
};

struct F32Keys {
  typedef float Element;
  static constexpr int kChannels = 1; // that a step takes
  static constexpr bool kLong = false;
  static KVPC_ALWAYS_INLINE Lanes add(Lanes sums, const float *panel, const float *key, int64_t c) {
    return __builtin_elementwise_fma(load<Lanes>(panel + c * kPanelRows), Lanes(key[c]), sums);
  }
  static KVPC_ALWAYS_INLINE Lanes widen(const float *key) { return load<Lanes>(key); }
  static KVPC_ALWAYS_INLINE Lanes widenFirst(const float *key, int64_t count) {
    return loadFirst<Lanes>(key, count, 0.0f);
  }
};

struct PairKeys {
  typedef uint16_t Element;
  static constexpr int kChannels = 2;
  static constexpr bool kLong = false;
  static KVPC_ALWAYS_INLINE Lanes add(Lanes sums, const float *panel, const uint16_t *key,
                                      int64_t c) {
    return dotPairs(sums, load<Words>(panel + c / 2 * kPanelRows), Words(load<uint32_t>(key + c)));
  }
  static KVPC_ALWAYS_INLINE Lanes widen(const uint16_t *key) {
    return Bf16::widen(load<Halves>(key));
  }
};

/// Not inlined: without masked loads of 16 bits it is a branch for each lane.
__attribute__((noinline)) static inline Halves firstHalves(const uint16_t *from, int64_t count) {
  return loadFirst<Halves>(from, count, uint16_t(0));
}

/// Widens as it goes: for keys too long for a block, and for few rows.
template <typename Half>
struct LongKeys {
  typedef uint16_t Element;
  static constexpr int kChannels = 1;
  static constexpr bool kLong = true;
  static KVPC_ALWAYS_INLINE Lanes add(Lanes sums, const float *panel, const uint16_t *key,
                                      int64_t c) {
    return __builtin_elementwise_fma(load<Lanes>(panel + c * kPanelRows),
                                     Lanes(Half::widen(key[c])), sums);
  }
  static KVPC_ALWAYS_INLINE Lanes widen(const uint16_t *key) {
    return Half::widen(load<Halves>(key));
  }
  static KVPC_ALWAYS_INLINE Lanes widenFirst(const uint16_t *key, int64_t count) {
    return Half::widen(firstHalves(key, count));
  }
};

/// 16-bit keys as f32, exactly: calls use(keys, first token, how many) for one block after the
/// other. False, and nothing done, where keys are too long for a block.
template <typename Half, typename KeyAt, typename Use>
KVPC_INLINE bool widened(int64_t channels, int64_t tokens, KeyAt keyAt, Use use) {
  constexpr int64_t kFloats = 4608; // 18 KB: 36 keys of 128 channels
  int64_t block = kFloats / most(channels, 1) / kTokens * kTokens;
  if (block == 0)
    return false;
  alignas(64) float floats[kFloats];
  for (int64_t t = 0; t < tokens; t += block) {
    int64_t count = least(block, tokens - t);
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t *key = keyAt(t + i);
      float *to = floats + i * channels;
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes)
        store(to + c, Half::widen(load<Halves>(key + c)));
      for (; c < channels; ++c)
        to[c] = Half::widen(key[c]);
    }
    use(static_cast<const float *>(floats), t, count);
  }
  return true;
}

} // namespace kvpc::prim

#endif
