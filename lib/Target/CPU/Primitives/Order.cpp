//===- Order.cpp - rank, sort, cumsum and argmax of a row -----------------===//
//
// Entries are sorted as (key, payload) pairs by a stable radix sort of eight bits a pass; a digit
// that all keys share costs no pass.
//
//===----------------------------------------------------------------------===//
#include "Keys.h"
#include "Primitives.h"

using namespace kvpc::prim;

namespace {

/// The key in the upper half, the payload in the lower.
typedef uint64_t Pair;
constexpr Pair pairOf(uint32_t key, uint32_t payload) { return Pair(key) << 32 | payload; }

void sortFew(Pair *pairs, int64_t n) {
  for (int64_t i = 1; i < n; ++i) {
    Pair moving = pairs[i];
    int64_t j = i;
    for (; j > 0 && pairs[j - 1] >> 32 > moving >> 32; --j)
      pairs[j] = pairs[j - 1];
    pairs[j] = moving;
  }
}

/// Stable, by ascending keys. Returns where the result is: `pairs` or `other`.
Pair *sortPairs(Pair *pairs, Pair *other, int64_t n) {
  if (n <= 32) {
    sortFew(pairs, n);
    return pairs;
  }
  int32_t counts[4][256];
  for (int digit = 0; digit < 4; ++digit)
    for (int i = 0; i < 256; i += kLanes)
      store(&counts[digit][i], Ints(0));
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key = uint32_t(pairs[i] >> 32);
    ++counts[0][key & 255];
    ++counts[1][key >> 8 & 255];
    ++counts[2][key >> 16 & 255];
    ++counts[3][key >> 24];
  }
  for (int digit = 0; digit < 4; ++digit) {
    int32_t *count = counts[digit], next = 0;
    int shift = 32 + 8 * digit;
    if (count[pairs[0] >> shift & 255] == n)
      continue;
    for (int i = 0; i < 256; ++i) {
      int32_t here = count[i];
      count[i] = next;
      next += here;
    }
    for (int64_t i = 0; i < n; ++i)
      other[count[pairs[i] >> shift & 255]++] = pairs[i];
    Pair *swap = pairs;
    pairs = other;
    other = swap;
  }
  return pairs;
}

void rankSorted(const Pair *sorted, int64_t n, int64_t from, int64_t *rank) {
  for (int64_t i = 0; i < n; ++i)
    rank[uint32_t(sorted[i])] = from + i;
}

bool holds(const uint8_t *condition, int64_t i) { return !condition || condition[i]; }

} // namespace

extern "C" {

int64_t kvpc_prim_order_scratch(int64_t n) { return 2 * 8 * roundUp(n, 8); }

void kvpc_prim_rank(const float *x, const uint8_t *protect, const uint8_t *where, int64_t n,
                    int64_t *rank, void *scratch) {
  Pair *pairs = static_cast<Pair *>(scratch), *other = pairs + roundUp(n, 8);
  int64_t ranked = 0, count = 0;
  if (protect) {
    // From the newest on, so that of equals it stands first.
    for (int64_t i = n - 1; i >= 0; --i)
      if (protect[i] && holds(where, i))
        pairs[count++] = pairOf(descendingKey(x[i]), uint32_t(i));
    rankSorted(sortPairs(pairs, other, count), count, 0, rank);
    ranked = count;
  }
  count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (!(protect && protect[i]) && holds(where, i))
      pairs[count++] = pairOf(descendingKey(x[i]), uint32_t(i));
  rankSorted(sortPairs(pairs, other, count), count, ranked, rank);
  ranked += count;
  if (where)
    for (int64_t i = 0; i < n; ++i)
      if (!where[i])
        rank[i] = ranked++;
}

void kvpc_prim_sort(const float *x, const uint8_t *where, int64_t n, float fill, float *out,
                    void *scratch) {
  Pair *pairs = static_cast<Pair *>(scratch), *other = pairs + roundUp(n, 8);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (holds(where, i))
      pairs[count++] = pairOf(descendingKey(x[i]), __builtin_bit_cast(uint32_t, x[i]));
  const Pair *sorted = sortPairs(pairs, other, count);
  for (int64_t i = 0; i < n; ++i)
    out[i] = i < count ? __builtin_bit_cast(float, uint32_t(sorted[i])) : fill;
}

void kvpc_prim_cumsum(const float *x, const uint8_t *where, int64_t n, float *out) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!holds(where, i)) {
      out[i] = 0;
      continue;
    }
    sum += x[i];
    out[i] = float(sum);
  }
}

int64_t kvpc_prim_argmax(const float *x, const uint8_t *where, int64_t n) {
  int32_t best = kNanKey;
  int64_t at = 0, i = 0;
  // A vector is looked into only where something in it is larger than all before.
  if (!where)
    for (; i + kLanes <= n; i += kLanes) {
      Ints keys = scoreKeys(load<Lanes>(x + i));
      if (!bits(keys > best))
        continue;
      best = __builtin_reduce_max(keys);
      at = i + __builtin_ctz(bits(keys == best));
    }
  for (; i < n; ++i)
    if (holds(where, i) && scoreKey(x[i]) > best) {
      best = scoreKey(x[i]);
      at = i;
    }
  return at;
}
}
