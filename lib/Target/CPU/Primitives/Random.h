//===- Random.h - counter-based random numbers -----------------------------===//
//
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). A number is a
// function of where it stands and of nothing else, the same on every target:
//
//   key      seed, low and high 32 bits
//   counter  position, extra, head, layer: the low 32 bits of each
//   uniform  word 0 of the result: its upper 24 bits times 2^-24
//   normal   words 2 and 3, by Box and Muller in double, rounded to float (gaussianOf)
//
// `position` is the token's original position; `extra` the row-major linear index over the axes
// that are not layer, head or token; what a value has no axis for is 0. Plain C++ for any host.
//
//===----------------------------------------------------------------------===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_RANDOM_H
#define KVPC_TARGET_CPU_PRIMITIVES_RANDOM_H

#include <stdint.h>

namespace kvpc::random {

struct Block {
  uint32_t word[4];
};

inline constexpr uint32_t kMultiply[2] = {0xD2511F53u, 0xCD9E8D57u};
inline constexpr uint32_t kWeyl[2] = {0x9E3779B9u, 0xBB67AE85u};

constexpr Block philox(Block c, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    uint64_t a = uint64_t(kMultiply[0]) * c.word[0], b = uint64_t(kMultiply[1]) * c.word[2];
    c = {{uint32_t(b >> 32) ^ c.word[1] ^ key0, uint32_t(b), uint32_t(a >> 32) ^ c.word[3] ^ key1,
          uint32_t(a)}};
    key0 += kWeyl[0];
    key1 += kWeyl[1];
  }
  return c;
}

constexpr Block blockAt(int64_t seed, int64_t layer, int64_t head, int64_t position,
                        int64_t extra) {
  return philox({{uint32_t(position), uint32_t(extra), uint32_t(head), uint32_t(layer)}},
                uint32_t(seed), uint32_t(uint64_t(seed) >> 32));
}

constexpr float uniformOf(const Block &b) { return float(b.word[0] >> 8) * 0x1p-24f; }

/// ln x for a normal x > 0. Sums and products are not fused, here and in what follows: that is what
/// makes the bits the same everywhere.
inline double logOf(double x) {
#pragma clang fp contract(off)
  uint64_t b = __builtin_bit_cast(uint64_t, x);
  uint64_t exponent = (b - 0x3fe6a09e667f3bcdull) & 0xfff0000000000000ull;
  double m = __builtin_bit_cast(double, b - exponent), s = (m - 1.0) / (m + 1.0), q = s * s;
  double p = 1.0 / 15;
  p = p * q + 1.0 / 13;
  p = p * q + 1.0 / 11;
  p = p * q + 1.0 / 9;
  p = p * q + 1.0 / 7;
  p = p * q + 1.0 / 5;
  p = p * q + 1.0 / 3;
  p = p * q + 1.0;
  return 2.0 * (p * s) + double(int64_t(exponent) / (int64_t(1) << 52)) * 0.6931471805599453;
}

/// cos(pi x) for 0 <= x < 2, by Taylor's series of the sine on a quarter.
inline double cosPi(double x) {
#pragma clang fp contract(off)
  double y = x > 1.0 ? 2.0 - x : x, r = (0.5 - y) * 3.141592653589793, q = r * r;
  double p = 1.0 / 355687428096000.0;
  p = p * q - 1.0 / 1307674368000.0;
  p = p * q + 1.0 / 6227020800.0;
  p = p * q - 1.0 / 39916800.0;
  p = p * q + 1.0 / 362880.0;
  p = p * q - 1.0 / 5040.0;
  p = p * q + 1.0 / 120.0;
  p = p * q - 1.0 / 6.0;
  p = p * q + 1.0;
  return p * r;
}

inline float gaussianOf(const Block &b) {
#pragma clang fp contract(off)
  double u = double((b.word[2] >> 8) + 1) * 0x1p-24, v = double(b.word[3] >> 8) * 0x1p-23;
  return float(__builtin_sqrt(-2.0 * logOf(u)) * cosPi(v));
}

} // namespace kvpc::random

#endif
