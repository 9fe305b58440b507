//===- SelectJoint.cpp - one budget for several heads ---------------------===//
//
// First each head's own best `floor` entries are marked, then the rest of the budget goes to the
// best of all others. Equals are cut by (token, head), so only where the bound's equals do not all
// fit is a walk across the heads needed, which gives each head its number of them.
//
//===----------------------------------------------------------------------===//
#include "Primitives.h"
#include "Selection.h"

using namespace kvpc::prim;

/// Marks the best `floor` of one head's entries in `chosen`.
static void markFloor(const float *score, const uint8_t *protect, int64_t n, int64_t floor,
                      int32_t *keys, int32_t *buffer, uint8_t *chosen) {
  bool contest = countTrue(protect, n) > floor;
  int64_t padded =
      keysOf(score, protect, n, contest ? Protection::Contest : Protection::First, keys);
  int32_t bound = kthLargest(keys, padded, floor, buffer);
  int64_t above, equal = countEqual(keys, padded, bound, &above), take = floor - above;
  int64_t skip = contest ? equal - take : 0;
  for (int64_t i = 0; i < n; ++i) {
    bool isEqual = keys[i] == bound;
    chosen[i] = keys[i] > bound || (isEqual && skip <= 0 && take > 0);
    take -= isEqual && skip <= 0;
    skip -= isEqual;
  }
}

/// Deals `take` of the entries equal to `bound` to the heads in the order of (token, head).
static void dealEquals(const int32_t *keys, int64_t padded, int64_t heads, int32_t bound,
                       int64_t take, bool newest, int64_t *quota) {
  for (int64_t i = 0; i < padded && take; ++i)
    for (int64_t h = 0; h < heads && take; ++h) {
      int64_t token = newest ? padded - 1 - i : i, head = newest ? heads - 1 - h : h;
      bool isEqual = keys[head * padded + token] == bound;
      quota[head] += isEqual;
      take -= isEqual;
    }
}

extern "C" {

int64_t kvpc_prim_select_joint_scratch(int64_t heads, int64_t longest) {
  int64_t padded = roundUp(longest, 16);
  return 2 * (heads * padded + 16) * 4 + roundUp(heads * longest, 64);
}

int64_t kvpc_prim_select_joint(const float *score, int64_t score_stride, const uint8_t *protect,
                               int64_t protect_stride, int64_t heads, const int64_t *n,
                               int64_t longest, int64_t k, const int64_t *floor, int32_t *out,
                               int64_t out_stride, int64_t *counts, void *scratch) {
  int64_t entries = 0;
  for (int64_t h = 0; h < heads; ++h) {
    counts[h] = 0;
    entries += n[h];
  }
  k = least(most(k, 0), entries);
  if (k <= 0)
    return 0;
  int64_t padded = roundUp(longest, kLanes), total = heads * padded;
  int32_t *keys = static_cast<int32_t *>(scratch);
  int32_t *buffer = keys + heads * roundUp(longest, 16) + 16;
  uint8_t *chosen = reinterpret_cast<uint8_t *>(buffer + heads * roundUp(longest, 16) + 16);
  auto protectOf = [=](int64_t h) { return protect ? protect + h * protect_stride : nullptr; };
  auto floorOf = [=](int64_t h) { return least(most(floor[h], 0), n[h]); };

  int64_t contenders = 0, open = k;
  for (int64_t h = 0; h < heads; ++h) {
    uint8_t *mine = chosen + h * longest;
    const uint8_t *protectMine = protectOf(h);
    int64_t certain = floorOf(h);
    open -= certain;
    contenders += countTrue(protectMine, n[h]);
    if (!certain)
      continue;
    markFloor(score + h * score_stride, protectMine, n[h], certain, keys, buffer, mine);
    for (int64_t i = 0; protectMine && i < n[h]; ++i)
      contenders -= protectMine[i] && mine[i];
  }
  bool contest = contenders > open;
  for (int64_t h = 0; h < heads; ++h) {
    int32_t *mine = keys + h * padded;
    int64_t filled = keysOf(score + h * score_stride, protectOf(h), n[h],
                            contest ? Protection::Contest : Protection::First, mine);
    for (int64_t i = filled; i < padded; ++i)
      mine[i] = kOutKey;
    if (floorOf(h))
      for (int64_t i = 0; i < n[h]; ++i)
        mine[i] = chosen[h * longest + i] ? kFirstKey : mine[i];
  }

  int32_t bound = kthLargest(keys, total, k, buffer);
  int64_t above, equal = countEqual(keys, total, bound, &above);
  bool all = equal == k - above;
  if (!all)
    dealEquals(keys, padded, heads, bound, k - above, contest, counts);
  for (int64_t h = 0; h < heads; ++h) {
    int64_t aboveMine, equalMine = countEqual(keys + h * padded, padded, bound, &aboveMine);
    int64_t take = all ? equalMine : counts[h];
    counts[h] = aboveMine + take;
    writeIds(keys + h * padded, padded, bound, contest ? equalMine - take : 0, take,
             out + h * out_stride, counts[h]);
  }
  return k;
}
}
