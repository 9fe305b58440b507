//===- Random.cpp - random numbers of single places and of rows -----------===//
#include "Random.h"
#include "Primitives.h"
#include "Vector.h"

using namespace kvpc::prim;
using kvpc::random::blockAt, kvpc::random::gaussianOf, kvpc::random::uniformOf;

namespace {

struct BlockRow {
  LongWords word[4]; // 32 bits each
};

/// kLanes blocks that differ in their position.
KVPC_INLINE BlockRow blocksAt(int64_t seed, int64_t layer, int64_t head, LongWords position,
                              int64_t extra) {
  using kvpc::random::kMultiply, kvpc::random::kWeyl;
  constexpr uint64_t kLow = 0xffffffffu;
  uint64_t key0 = uint32_t(seed), key1 = uint64_t(seed) >> 32;
  LongWords c0 = position & kLow, c1 = uint32_t(extra), c2 = uint32_t(head), c3 = uint32_t(layer);
  for (int round = 0; round < 10; ++round) {
    LongWords a = c0 * uint64_t(kMultiply[0]), b = c2 * uint64_t(kMultiply[1]);
    c0 = (b >> 32) ^ c1 ^ key0;
    c1 = b & kLow;
    c2 = (a >> 32) ^ c3 ^ key1;
    c3 = a & kLow;
    key0 = (key0 + kWeyl[0]) & kLow;
    key1 = (key1 + kWeyl[1]) & kLow;
  }
  return {{c0, c1, c2, c3}};
}

} // namespace

extern "C" {

float kvpc_prim_uniform(int64_t seed, int64_t layer, int64_t head, int64_t position,
                        int64_t extra) {
  return uniformOf(blockAt(seed, layer, head, position, extra));
}

float kvpc_prim_gaussian(int64_t seed, int64_t layer, int64_t head, int64_t position,
                         int64_t extra) {
  return gaussianOf(blockAt(seed, layer, head, position, extra));
}

void kvpc_prim_uniform_row(int64_t seed, int64_t layer, int64_t head, const int64_t *positions,
                           int64_t first, int64_t extra, int64_t n, float *out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    LongWords position =
        positions ? load<LongWords>(positions + i)
                  : LongWords(uint64_t(first + i)) + __builtin_convertvector(kIota, LongWords);
    LongWords word = blocksAt(seed, layer, head, position, extra).word[0];
    store(out + i,
          __builtin_convertvector(__builtin_convertvector(word >> 8, Ints), Lanes) * 0x1p-24f);
  }
  for (; i < n; ++i)
    out[i] = kvpc_prim_uniform(seed, layer, head, positions ? positions[i] : first + i, extra);
}

void kvpc_prim_gaussian_row(int64_t seed, int64_t layer, int64_t head, const int64_t *positions,
                            int64_t first, int64_t extra, int64_t n, float *out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = kvpc_prim_gaussian(seed, layer, head, positions ? positions[i] : first + i, extra);
}
}
