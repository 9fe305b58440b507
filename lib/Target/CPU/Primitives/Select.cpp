//===- Select.cpp - choosing k of n entries -------------------------------===//
//
// Scores become integer keys (Keys.h). The k-th largest key is found by bracketing it between two
// order statistics of a sample, keeping only what lies between, and bisecting the rest over key
// values; then one sweep writes the ids above it and as many of the equals as are still wanted.
//
//===----------------------------------------------------------------------===//
#include "Primitives.h"
#include "Selection.h"

namespace kvpc::prim {

/// How many of n keys, a multiple of kLanes, are >= bound.
static int64_t countAtLeast(const int32_t *keys, int64_t n, int32_t bound) {
  Ints sum = 0, sum2 = 0;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum -= load<Ints>(keys + i) >= bound;
    sum2 -= load<Ints>(keys + i + kLanes) >= bound;
  }
  if (i < n)
    sum -= load<Ints>(keys + i) >= bound;
  return __builtin_reduce_add(sum + sum2);
}

static int64_t countAbove(const int32_t *keys, int64_t n, int32_t bound) {
  return bound == INT32_MAX ? 0 : countAtLeast(keys, n, bound + 1);
}

/// The k-th largest of n keys, known to be in [low, high]: the largest value that k keys reach.
static int32_t bisect(const int32_t *keys, int64_t n, int64_t k, int64_t low, int64_t high) {
  while (low < high) {
    int64_t middle = low + (high - low + 1) / 2;
    if (countAtLeast(keys, n, int32_t(middle)) >= k)
      low = middle;
    else
      high = middle - 1;
  }
  return int32_t(low);
}

/// Moves the keys in [low, high] to `to` (which may be `keys`), padded to a multiple of kLanes.
static int64_t keepBetween(const int32_t *keys, int64_t n, int32_t low, int32_t high, int32_t *to) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    Ints k = load<Ints>(keys + i);
    kept += compress(to + kept, k, bits((k >= low) & (k <= high)));
  }
  int64_t padded = roundUp(kept, kLanes);
  for (int64_t i = kept; i < padded; ++i)
    to[i] = kOutKey;
  return padded;
}

int32_t kthLargest(const int32_t *keys, int64_t n, int64_t k, int32_t *buffer) {
  constexpr int64_t kSample = 1024, kMargin = 52; // 3.2 deviations of a median's rank in the sample
  int64_t low = INT32_MIN, high = INT32_MAX;
  uint32_t noise = 1;
  while (n > 4 * kSample) {
    alignas(64) int32_t sample[kSample];
    for (int64_t i = 0; i < kSample; ++i) {
      int64_t from = i * n / kSample, width = (i + 1) * n / kSample - from;
      noise = noise * 1664525u + 1013904223u;
      sample[i] = keys[from + int64_t((noise >> 8) % uint32_t(width))];
    }
    int64_t rank = k * kSample / n;
    int64_t sampleLow = low, sampleHigh = high;
    if (rank + kMargin < kSample)
      sampleLow = bisect(sample, kSample, rank + kMargin, low, high);
    if (rank - kMargin > 0)
      sampleHigh = bisect(sample, kSample, rank - kMargin, sampleLow, high);

    // Where the bracket missed, the rank is known to lie on that side of it.
    int64_t reach = countAtLeast(keys, n, int32_t(sampleLow));
    int64_t above = countAbove(keys, n, int32_t(sampleHigh));
    if (k <= above) {
      low = sampleHigh + 1;
      reach = above, above = 0;
    } else if (k <= reach) {
      low = sampleLow, high = sampleHigh;
    } else {
      high = sampleLow - 1;
      above = reach, reach = n;
    }
    if (low == high)
      return int32_t(low);
    // Few values: the bracket's ends are the likeliest. Or data made against this sampling:
    // bisection is bounded by 32 sweeps.
    if (reach - above > n - n / 4) {
      if (countAtLeast(keys, n, int32_t(high)) >= k)
        return int32_t(high);
      if (countAbove(keys, n, int32_t(low)) < k)
        return int32_t(low);
      ++low, --high;
      break;
    }
    n = keepBetween(keys, n, int32_t(low), int32_t(high), buffer);
    k -= above;
    keys = buffer;
  }
  return bisect(keys, n, k, low, high);
}

int64_t keysOf(const float *score, const uint8_t *protect, int64_t n, Protection protection,
               int32_t *keys) {
  int64_t padded = roundUp(n, kLanes), i = 0;
  if (!protect || protection == Protection::Ignored) {
    for (; i + kLanes <= n; i += kLanes)
      store(keys + i, scoreKeys(load<Lanes>(score + i)));
    for (; i < n; ++i)
      keys[i] = scoreKey(score[i]);
  } else {
    bool contest = protection == Protection::Contest;
    int32_t in = contest ? 0 : kProtectedKey;
    for (; i + kLanes <= n; i += kLanes) {
      Ints k = scoreKeys(load<Lanes>(score + i));
      Ints yes = __builtin_convertvector(load<Bytes>(protect + i), Ints) != 0;
      store(keys + i, contest ? (yes ? k : Ints(kOutKey)) : (yes ? Ints(in) : k));
    }
    for (; i < n; ++i) {
      int32_t k = scoreKey(score[i]);
      keys[i] = contest ? (protect[i] ? k : kOutKey) : (protect[i] ? in : k);
    }
  }
  for (i = n; i < padded; ++i)
    keys[i] = kOutKey;
  return padded;
}

int64_t countTrue(const uint8_t *condition, int64_t n) {
  if (!condition)
    return 0;
  Ints sum = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    sum -= __builtin_convertvector(load<Bytes>(condition + i), Ints) != 0;
  int64_t total = __builtin_reduce_add(sum);
  for (; i < n; ++i)
    total += condition[i] != 0;
  return total;
}

int64_t countEqual(const int32_t *keys, int64_t padded, int32_t bound, int64_t *above) {
  *above = countAbove(keys, padded, bound);
  return countAtLeast(keys, padded, bound) - *above;
}

void writeIds(const int32_t *keys, int64_t padded, int32_t bound, int64_t skip, int64_t take,
              int32_t *out, int64_t total) {
  int64_t written = 0;
  for (int64_t i = 0; i < padded && written < total; i += kLanes) {
    Ints k = load<Ints>(keys + i);
    uint32_t equal = bits(k == bound), chosen = bits(k > bound);
    if (equal) {
      int64_t here = __builtin_popcount(equal);
      int64_t drop = least(skip, here);
      skip -= drop, here -= drop;
      for (; drop; --drop)
        equal &= equal - 1;
      if (here <= take) {
        chosen |= equal;
        take -= here;
      } else {
        for (; take; --take, equal &= equal - 1)
          chosen |= equal & -equal;
      }
    }
    // A whole vector is stored while it fits: the ids behind the last are overwritten later.
    if (written + kLanes <= total) {
      written += compress(out + written, Ints(int32_t(i)) + kIota, chosen);
    } else {
      for (; chosen; chosen &= chosen - 1)
        out[written++] = int32_t(i) + __builtin_ctz(chosen);
    }
  }
}

} // namespace kvpc::prim

using namespace kvpc::prim;

extern "C" {

int64_t kvpc_prim_select_scratch(int64_t n) { return 2 * (roundUp(n, 16) + 16) * 4; }

int64_t kvpc_prim_select(const float *score, const uint8_t *protect, const int32_t *, int64_t n,
                         int64_t k, int32_t *out, void *scratch) {
  k = least(most(k, 0), n);
  if (k <= 0)
    return 0;
  if (k == n) {
    for (int64_t i = 0; i < n; ++i)
      out[i] = int32_t(i);
    return n;
  }
  int32_t *keys = static_cast<int32_t *>(scratch), *buffer = keys + roundUp(n, 16) + 16;
  bool contest = countTrue(protect, n) > k;
  int64_t padded =
      keysOf(score, protect, n, contest ? Protection::Contest : Protection::First, keys);
  int32_t bound = kthLargest(keys, padded, k, buffer);
  int64_t above, equal = countEqual(keys, padded, bound, &above), take = k - above;
  writeIds(keys, padded, bound, contest ? equal - take : 0, take, out, k);
  return k;
}
}
