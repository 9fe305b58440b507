//===- Vector.h - vectors of the level that is being compiled --------------===//
//
// clang vector extensions, and the few operations that need an instruction set: compression, half
// conversion, bf16 dot products, stores past the cache.
//
// KVPC_PRIM_LANES=16 or KVPC_PRIM_PAIRS=1 given by the build makes the code of a higher level run
// on a lower one, so that tests cover it everywhere.
//
//===----------------------------------------------------------------------===//
#ifndef KVPC_TARGET_CPU_PRIMITIVES_VECTOR_H
#define KVPC_TARGET_CPU_PRIMITIVES_VECTOR_H

#include <immintrin.h>
#include <stdint.h>

#ifndef KVPC_PRIM_LANES
#ifdef __AVX512F__
#define KVPC_PRIM_LANES 16
#else
#define KVPC_PRIM_LANES 8
#endif
#endif
#ifndef KVPC_PRIM_PAIRS
#ifdef __AVX512BF16__
#define KVPC_PRIM_PAIRS 1
#else
#define KVPC_PRIM_PAIRS 0
#endif
#endif

#define KVPC_ALWAYS_INLINE __attribute__((always_inline)) inline
#define KVPC_INLINE static KVPC_ALWAYS_INLINE

namespace kvpc::prim {

constexpr int kLanes = KVPC_PRIM_LANES;

typedef float Lanes __attribute__((ext_vector_type(kLanes)));
typedef int32_t Ints __attribute__((ext_vector_type(kLanes)));
typedef uint32_t Words __attribute__((ext_vector_type(kLanes)));
typedef int64_t Longs __attribute__((ext_vector_type(kLanes)));
typedef uint64_t LongWords __attribute__((ext_vector_type(kLanes)));
typedef double Doubles __attribute__((ext_vector_type(kLanes)));
typedef uint16_t Halves __attribute__((ext_vector_type(kLanes)));
typedef uint8_t Bytes __attribute__((ext_vector_type(kLanes)));
typedef bool Mask __attribute__((ext_vector_type(kLanes)));

#if KVPC_PRIM_LANES == 16
constexpr Ints kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
constexpr Ints kIota = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

/// A value at an address that need not be aligned.
template <typename T>
KVPC_INLINE T load(const void *from) {
  struct __attribute__((packed, may_alias)) Unaligned {
    T value;
  };
  return static_cast<const Unaligned *>(from)->value;
}
template <typename T>
KVPC_INLINE void store(void *to, T value) {
  struct __attribute__((packed, may_alias)) Unaligned {
    T value;
  };
  static_cast<Unaligned *>(to)->value = value;
}

/// Lanes below `count`. Loads give `rest` in the others; nothing past them is touched.
KVPC_INLINE Mask firstLanes(int64_t count) {
  return __builtin_convertvector(kIota < int32_t(count < kLanes ? count : kLanes), Mask);
}
template <typename V, typename T>
KVPC_INLINE V loadFirst(const T *from, int64_t count, T rest) {
  return __builtin_masked_load(firstLanes(count), from, V(rest));
}
template <typename V, typename T>
KVPC_INLINE void storeFirst(T *to, V v, int64_t count) {
  __builtin_masked_store(firstLanes(count), v, to);
}

/// One bit a lane, from a comparison's result.
KVPC_INLINE uint32_t bits(Ints condition) {
  Mask mask = __builtin_convertvector(condition, Mask);
#if KVPC_PRIM_LANES == 16
  return __builtin_bit_cast(uint16_t, mask);
#else
  return __builtin_bit_cast(uint8_t, mask);
#endif
}

/// The sum of the lanes, folded by halves: lane i + lane i + half, and so on.
KVPC_INLINE float foldLanes(Lanes x) {
#if KVPC_PRIM_LANES == 16
  auto eight = x.lo + x.hi;
  auto four = eight.lo + eight.hi;
#else
  auto four = x.lo + x.hi;
#endif
  auto two = four.lo + four.hi;
  return two.x + two.y;
}

KVPC_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
KVPC_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
KVPC_INLINE int64_t roundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

#ifndef __AVX512F__
/// Lanes of the set bits of a byte, first to last.
struct CompressTable {
  uint8_t lanes[256][8];
  constexpr CompressTable() : lanes() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, next = 0; lane < 8; ++lane)
        if (mask >> lane & 1)
          lanes[mask][next++] = uint8_t(lane);
  }
};
static constexpr CompressTable kCompressTable;

KVPC_INLINE void compressEight(int32_t *to, __m256i v, uint32_t mask) {
  __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(kCompressTable.lanes[mask]));
  v = _mm256_permutevar8x32_epi32(v, _mm256_cvtepu8_epi32(lanes));
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), v);
}
#endif

/// Writes the lanes of `mask` to `to`; may write up to kLanes lanes. Returns how many count.
KVPC_INLINE int64_t compress(int32_t *to, Ints v, uint32_t mask) {
#ifdef __AVX512F__
  // A compressing store to memory is slow on some machines: compress, then store the register.
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(mask), __m512i(v)));
#elif KVPC_PRIM_LANES == 16
  compressEight(to, __m256i(v.lo), mask & 255);
  compressEight(to + __builtin_popcount(mask & 255), __m256i(v.hi), mask >> 8);
#else
  compressEight(to, __m256i(v), mask);
#endif
  return __builtin_popcount(mask);
}

KVPC_INLINE float fromBf16(uint16_t x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }
KVPC_INLINE float fromF16(uint16_t x) { return _cvtsh_ss(x); }

/// Round to nearest even; NaN stays NaN.
KVPC_INLINE uint16_t toBf16(float x) {
  uint32_t b = __builtin_bit_cast(uint32_t, x);
  if ((b & 0x7fffffff) > 0x7f800000)
    return uint16_t(b >> 16 | 0x40);
  return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

/// Panel pairs times one pair of the key (in all lanes), added to the sums.
KVPC_INLINE Lanes dotPairs(Lanes sums, Words panel, Words key) {
#if defined(__AVX512BF16__) && KVPC_PRIM_LANES == 16
  return Lanes(_mm512_dpbf16_ps(__m512(sums), __m512bh(panel), __m512bh(key)));
#else
  auto low = [](Words w) { return __builtin_bit_cast(Lanes, w << 16); };
  auto high = [](Words w) { return __builtin_bit_cast(Lanes, w & 0xffff0000u); };
  sums = __builtin_elementwise_fma(high(panel), high(key), sums);
  return __builtin_elementwise_fma(low(panel), low(key), sums);
#endif
}

} // namespace kvpc::prim

#endif
