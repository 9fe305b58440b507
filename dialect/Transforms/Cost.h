//===- Cost.h - what computing, storing and reading take, in flops ----------------------------===//
//
// One multiply-add is two flops, as in the peak that a machine is measured by. An addition, product
// or comparison is one: they often come in pairs. Dear functions count what good vector code takes
// for them in slots of multiply-adds. Bytes count the flops that a machine does meanwhile.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_DIALECT_TRANSFORMS_COST_H
#define KVPC_DIALECT_TRANSFORMS_COST_H

#include "dialect/IR/Kvp.h"

namespace kvpc {

/// Of an exponential in f32; of a division or square root.
inline constexpr int64_t kExponentialFlops = 22, kDivisionFlops = 16;

/// Of one element, to the precision that the language promises.
int64_t flopsOf(kvp::Fn fn);

/// Flops in the time of a byte from or to memory, all cores at work: between the 7 and 4 of a
/// processor with AVX2 (200 Gflop/s; 30 GB/s read, 55 written) and the 8 and 7 of one with AVX-512.
inline constexpr double kReadFlops = 7, kWriteFlops = 5;

/// Of writing an element of f32 to a tile in the cache, and of reading it there.
inline constexpr double kTileFlops = 4;

/// What plans are weighed at where the program leaves it open.
inline constexpr int64_t kUsualChannels = 128, kUsualGroups = 4, kUsualHeads = 8;

} // namespace kvpc

#endif
