//===- Panel.h - the layout that packing and contraction agree on ----------===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_PANEL_H
#define KVPC_TARGET_CPU_PRIMITIVES_PANEL_H

#include "Vector.h"

namespace kvpc::prim {

// A micro-tile holds kTokens x kVectors sums in registers: 24 of 32 or 12 of 16.
constexpr int kTokens = 6;
constexpr int kVectors = kLanes == 16 ? 4 : 2;
constexpr int kPanelRows = kVectors * kLanes;

/// Whether panels for bf16 keys hold pairs of channels.
constexpr bool inPairs(int64_t channels) { return KVPC_PRIM_PAIRS && channels % 2 == 0; }

/// The second of two parts: 0 where the first is not finite.
KVPC_INLINE uint16_t restOf(float x, uint16_t first) {
  return (first & 0x7f80) == 0x7f80 ? 0 : toBf16(x - fromBf16(first));
}

} // namespace kvpc::prim

#endif
