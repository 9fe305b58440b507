//===- Data.h - inputs for the tests of the primitives ---------------------===//
#ifndef KVPC_TEST_TARGET_CPU_PRIMITIVES_DATA_H
#define KVPC_TEST_TARGET_CPU_PRIMITIVES_DATA_H

#include "Primitives.h"
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace kvpc::test {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline const int64_t kSizes[] = {0, 1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 1000, 4097, 32768};

/// Scores of different kinds, those included that selections and orders find hard.
inline const char *const kKinds[] = {"normal", "equal",   "two values", "ascending", "descending",
                                     "few",    "special", "all NaN",    "mostly one"};
inline std::vector<float> scores(const std::string &kind, int64_t n, unsigned seed = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (int64_t i = 0; i < n; ++i) {
    float x = normal(engine);
    if (kind == "equal")
      x = -3.5f;
    else if (kind == "two values")
      x = x < 0 ? 1.0f : 2.0f;
    else if (kind == "ascending")
      x = float(i);
    else if (kind == "descending")
      x = -float(i);
    else if (kind == "few")
      x = std::round(x);
    else if (kind == "special") {
      const float values[] = {kNan,    kInf, -kInf, 0.0f,  -0.0f, 1e-45f,
                              -1e-45f, 1.0f, -1.0f, -kNan, 3e38f};
      x = values[engine() % 11];
    } else if (kind == "all NaN")
      x = i % 2 ? kNan : -kNan;
    else if (kind == "mostly one")
      x = engine() % 10 ? 0.25f : x;
    out[i] = x;
  }
  return out;
}

/// Conditions that hold about `part` of the time.
inline std::vector<uint8_t> conditions(int64_t n, double part, unsigned seed = 2) {
  std::mt19937 engine(seed);
  std::bernoulli_distribution holds(part);
  std::vector<uint8_t> out(n);
  for (uint8_t &x : out)
    x = holds(engine) ? uint8_t(1 + engine() % 255) : 0;
  return out;
}

/// Whether score a stands above score b.
inline bool above(float a, float b) { return std::isnan(a) ? false : std::isnan(b) || a > b; }

/// Memory with bytes behind it that must stay as they are.
template <typename T>
class Guarded {
public:
  explicit Guarded(int64_t n, T fill = T()) : values(n + kGuard, fill), size(n) {
    std::memset(static_cast<void *>(values.data() + n), 0xa5, kGuard * sizeof(T));
  }
  T *data() { return values.data(); }
  T &operator[](int64_t i) { return values[i]; }
  std::vector<T> first(int64_t n) const { return {values.begin(), values.begin() + n}; }
  bool intact() const {
    auto *bytes = reinterpret_cast<const unsigned char *>(values.data() + size);
    for (size_t i = 0; i < kGuard * sizeof(T); ++i)
      if (bytes[i] != 0xa5)
        return false;
    return true;
  }

private:
  static constexpr int64_t kGuard = 64;
  std::vector<T> values;
  int64_t size;
};

/// 64-byte aligned scratch, filled with rubbish.
class Scratch {
public:
  explicit Scratch(int64_t bytes) : bytes(bytes), memory(bytes + 128, 0xcd) {
    start = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    std::memset(start + bytes, 0xa5, 64);
  }
  void *data() { return start; }
  bool intact() const {
    for (int i = 0; i < 64; ++i)
      if (start[bytes + i] != 0xa5)
        return false;
    return true;
  }

private:
  int64_t bytes;
  std::vector<unsigned char> memory;
  unsigned char *start;
};

inline bool sameBits(float a, float b) { return std::memcmp(&a, &b, 4) == 0; }

inline uint16_t toBf16(float x) {
  uint32_t b;
  std::memcpy(&b, &x, 4);
  return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
inline float fromBf16(uint16_t x) {
  uint32_t b = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &b, 4);
  return f;
}
inline uint16_t toF16(float x) {
  _Float16 half = _Float16(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float fromF16(uint16_t x) {
  _Float16 half;
  std::memcpy(&half, &x, 2);
  return float(half);
}

} // namespace kvpc::test

#endif
