#include "Data.h"
#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>

using namespace kvpc::test;

namespace {

/// Entries in the order of selection: protected, score, newest of protected or earliest of others.
std::vector<int64_t> ordered(const std::vector<float> &score, const std::vector<uint8_t> &protect) {
  std::vector<int64_t> ids(score.size());
  std::iota(ids.begin(), ids.end(), 0);
  auto isProtected = [&](int64_t i) { return !protect.empty() && protect[i]; };
  std::sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) {
    if (isProtected(a) != isProtected(b))
      return isProtected(a);
    if (above(score[a], score[b]) || above(score[b], score[a]))
      return above(score[a], score[b]);
    return isProtected(a) ? a > b : a < b;
  });
  return ids;
}

void expectSelection(const std::vector<float> &score, const std::vector<uint8_t> &protect,
                     int64_t k) {
  int64_t n = score.size(), kept = std::clamp<int64_t>(k, 0, n);
  std::vector<int64_t> best = ordered(score, protect);
  std::vector<int32_t> expected(best.begin(), best.begin() + kept);
  std::sort(expected.begin(), expected.end());
  Guarded<int32_t> out(kept);
  Scratch scratch(kvpc_prim_select_scratch(n));
  int64_t count = kvpc_prim_select(score.data(), protect.empty() ? nullptr : protect.data(),
                                   nullptr, n, k, out.data(), scratch.data());
  ASSERT_EQ(count, kept) << "n " << n << " k " << k;
  ASSERT_EQ(out.first(kept), expected) << "n " << n << " k " << k;
  ASSERT_TRUE(out.intact()) << "n " << n << " k " << k;
  ASSERT_TRUE(scratch.intact()) << "n " << n << " k " << k;
}

TEST(Select, KeepsTheBestOfEveryKind) {
  for (const char *kind : kKinds)
    for (int64_t n : kSizes)
      for (int64_t k : {int64_t(-3), int64_t(0), int64_t(1), n / 10, n / 2, n - 1, n, n + 5}) {
        SCOPED_TRACE(kind);
        expectSelection(scores(kind, n), {}, k);
        if (HasFatalFailure())
          return;
      }
}

TEST(Select, ProtectedEntriesStandAbove) {
  for (const char *kind : kKinds)
    for (double part : {0.01, 0.3, 0.9, 1.0})
      for (int64_t n : {1, 7, 64, 65, 1000, 20000})
        for (int64_t k : {int64_t(1), n / 3, n / 2, n - 1}) {
          SCOPED_TRACE(kind);
          expectSelection(scores(kind, n), conditions(n, part), k);
          if (HasFatalFailure())
            return;
        }
}

TEST(Select, TiesGoToTheEarlierAndAmongTooManyProtectedToTheNewer) {
  std::vector<float> score(10, 1.0f);
  Scratch scratch(kvpc_prim_select_scratch(10));
  std::vector<int32_t> out(3);
  kvpc_prim_select(score.data(), nullptr, nullptr, 10, 3, out.data(), scratch.data());
  EXPECT_EQ(out, (std::vector<int32_t>{0, 1, 2}));
  std::vector<uint8_t> protect(10, 1);
  kvpc_prim_select(score.data(), protect.data(), nullptr, 10, 3, out.data(), scratch.data());
  EXPECT_EQ(out, (std::vector<int32_t>{7, 8, 9}));
  protect = {1, 1, 0, 0, 0, 0, 0, 0, 0, 0};
  kvpc_prim_select(score.data(), protect.data(), nullptr, 10, 3, out.data(), scratch.data());
  EXPECT_EQ(out, (std::vector<int32_t>{0, 1, 2}));
}

TEST(Select, LongRowsAndPeriodsOfTheSampling) {
  std::mt19937 engine(5);
  for (int64_t n : {65536, 100003}) {
    std::vector<float> score(n);
    for (int64_t i = 0; i < n; ++i)
      score[i] = i % (n / 1024) == 0 ? 100.0f + float(i) : float(engine() % 50);
    expectSelection(score, {}, n / 2);
    expectSelection(score, {}, n / 1000);
    expectSelection(scores("normal", n), {}, n - n / 1000);
  }
}

TEST(Select, DataMadeAgainstTheSampling) {
  // The sampled entries, one of each eight, stand all below or all above the others, so that the
  // bracket of the first round misses. Mirrors the sampling of Select.cpp.
  const int64_t n = 8192;
  std::vector<float> score = scores("normal", n);
  for (bool low : {true, false}) {
    uint32_t noise = 1;
    for (float &x : score)
      x = low ? std::abs(x) : -std::abs(x);
    for (int64_t i = 0; i < n / 8; ++i) {
      noise = noise * 1664525u + 1013904223u;
      float &x = score[i * 8 + (noise >> 8) % 8];
      x = -x;
    }
    for (int64_t k : {1, 50, 1023, 1024, 1025, 4096, 7167, 7168, 7169, 8000, 8191})
      expectSelection(score, {}, k);
  }
}

/// Heads of n[h] scores, each in a row of `stride`.
struct Heads {
  std::vector<float> score;
  std::vector<uint8_t> protect;
  std::vector<int64_t> n, floor;
  int64_t stride;

  bool isProtected(int64_t i) const { return !protect.empty() && protect[i]; }
};

std::vector<std::vector<int32_t>> jointOracle(const Heads &in, int64_t k) {
  int64_t heads = in.n.size();
  std::vector<char> chosen(heads * in.stride);
  for (int64_t h = 0; h < heads; ++h) {
    auto from = h * in.stride, to = from + in.n[h];
    std::vector<float> mine(in.score.begin() + from, in.score.begin() + to);
    std::vector<uint8_t> shield;
    if (!in.protect.empty())
      shield.assign(in.protect.begin() + from, in.protect.begin() + to);
    std::vector<int64_t> best = ordered(mine, shield);
    for (int64_t i = 0; i < std::min(in.floor[h], in.n[h]); ++i, --k)
      chosen[from + best[i]] = 1;
  }
  std::vector<std::pair<int64_t, int64_t>> rest; // token, head
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < in.n[h]; ++t)
      if (!chosen[h * in.stride + t])
        rest.push_back({t, h});
  std::sort(rest.begin(), rest.end(), [&](auto a, auto b) {
    int64_t i = a.second * in.stride + a.first, j = b.second * in.stride + b.first;
    if (in.isProtected(i) != in.isProtected(j))
      return in.isProtected(i);
    if (above(in.score[i], in.score[j]) || above(in.score[j], in.score[i]))
      return above(in.score[i], in.score[j]);
    return in.isProtected(i) ? a > b : a < b;
  });
  for (int64_t i = 0; i < k; ++i)
    chosen[rest[i].second * in.stride + rest[i].first] = 1;
  std::vector<std::vector<int32_t>> out(heads);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < in.n[h]; ++t)
      if (chosen[h * in.stride + t])
        out[h].push_back(int32_t(t));
  return out;
}

void expectJoint(const Heads &in, int64_t k) {
  int64_t heads = in.n.size(), all = 0;
  for (int64_t n : in.n)
    all += n;
  k = std::min(k, all);
  auto expected = jointOracle(in, k);
  std::vector<int64_t> counts(heads, -1);
  Guarded<int32_t> out(heads * in.stride);
  Scratch scratch(kvpc_prim_select_joint_scratch(heads, in.stride));
  int64_t total = kvpc_prim_select_joint(
      in.score.data(), in.stride, in.protect.empty() ? nullptr : in.protect.data(), in.stride,
      heads, in.n.data(), in.stride, k, in.floor.data(), out.data(), in.stride, counts.data(),
      scratch.data());
  ASSERT_EQ(total, k);
  for (int64_t h = 0; h < heads; ++h) {
    ASSERT_EQ(counts[h], int64_t(expected[h].size())) << "heads " << heads << " k " << k;
    const int32_t *first = out.data() + h * in.stride;
    ASSERT_EQ(std::vector<int32_t>(first, first + counts[h]), expected[h]);
  }
  ASSERT_TRUE(out.intact() && scratch.intact());
}

TEST(SelectJoint, OneBudgetForAllHeads) {
  for (const char *kind : kKinds)
    for (int64_t heads : {1, 3, 8})
      for (int64_t n : {1, 7, 65, 700})
        for (double part : {0.0, 0.1, 0.9})
          for (int64_t k : {int64_t(0), int64_t(1), heads * n / 2, heads * n - 1, heads * n})
            for (int64_t floor : {int64_t(0), n / 10, n}) {
              SCOPED_TRACE(kind);
              Heads in{scores(kind, heads * n), {}, {}, {}, n};
              if (part > 0)
                in.protect = conditions(heads * n, part);
              in.n.assign(heads, n);
              in.floor.assign(heads, std::min(floor, k / heads));
              expectJoint(in, k);
            }
}

TEST(SelectJoint, HeadsOfDifferentLengths) {
  for (const char *kind : kKinds)
    for (double part : {0.0, 0.1, 0.9})
      for (const auto &n : {std::vector<int64_t>{5, 0, 65}, {700, 1, 33, 64}, {0, 0}})
        for (int64_t share : {0, 3, 10}) {
          SCOPED_TRACE(kind);
          int64_t stride = 701, heads = n.size(), k = 0;
          Heads in{scores(kind, heads * stride), {}, n, {}, stride};
          if (part > 0)
            in.protect = conditions(heads * stride, part);
          for (int64_t own : n) {
            k += own / 2;
            in.floor.push_back(own / 2 * share / 10);
          }
          expectJoint(in, k);
        }
}

TEST(Sets, MaskKeepsWhereTrueOrTheNewest) {
  for (int64_t n : kSizes)
    for (double part : {0.0, 0.02, 0.5, 1.0}) {
      std::vector<uint8_t> cond = conditions(n, part);
      std::vector<int32_t> expected;
      for (int64_t i = 0; i < n; ++i)
        if (cond[i])
          expected.push_back(int32_t(i));
      if (expected.empty() && n)
        expected.push_back(int32_t(n - 1));
      Guarded<int32_t> out(n);
      ASSERT_EQ(kvpc_prim_mask_select(cond.data(), n, out.data()), int64_t(expected.size()));
      ASSERT_EQ(out.first(expected.size()), expected);
      ASSERT_TRUE(out.intact());
    }
}

TEST(Sets, PartsBecomeTheirTokens) {
  std::vector<int32_t> parts = {0, 2, 3}, tokens(11);
  ASSERT_EQ(kvpc_prim_parts_to_tokens(parts.data(), 3, 4, 0, 15, 15, tokens.data()), 11);
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14}));
  ASSERT_EQ(kvpc_prim_parts_to_tokens(parts.data(), 3, 4, 2, 16, 20, tokens.data()), 10);
  EXPECT_EQ(tokens, (std::vector<int32_t>{2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 14}));
  ASSERT_EQ(kvpc_prim_parts_to_tokens(parts.data(), 0, 4, 0, 15, 15, tokens.data()), 1);
  EXPECT_EQ(tokens[0], 14);
  EXPECT_EQ(kvpc_prim_parts_to_tokens(parts.data(), 0, 4, 0, 0, 0, tokens.data()), 0);
}

TEST(Sets, ComposeAndComplement) {
  std::vector<int32_t> outer = {1, 4, 5, 9}, inner = {0, 2, 3};
  kvpc_prim_compose_sets(outer.data(), inner.data(), 3, inner.data());
  EXPECT_EQ(inner, (std::vector<int32_t>{1, 5, 9}));
  std::vector<int32_t> rest(7);
  EXPECT_EQ(kvpc_prim_complement(inner.data(), 3, 10, rest.data()), 7);
  EXPECT_EQ(rest, (std::vector<int32_t>{0, 2, 3, 4, 6, 7, 8}));
  EXPECT_EQ(kvpc_prim_complement(nullptr, 0, 2, rest.data()), 2);
}

} // namespace
