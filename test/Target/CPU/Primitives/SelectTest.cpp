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

std::vector<std::vector<int32_t>> jointOracle(const std::vector<float> &score,
                                              const std::vector<uint8_t> &protect, int64_t heads,
                                              int64_t n, int64_t k, int64_t floor) {
  std::vector<char> chosen(heads * n);
  k = std::clamp<int64_t>(k, 0, heads * n);
  floor = std::clamp<int64_t>(floor, 0, std::min(n, k / heads));
  for (int64_t h = 0; h < heads; ++h) {
    std::vector<float> mine(score.begin() + h * n, score.begin() + (h + 1) * n);
    std::vector<uint8_t> shield;
    if (!protect.empty())
      shield.assign(protect.begin() + h * n, protect.begin() + (h + 1) * n);
    std::vector<int64_t> best = ordered(mine, shield);
    for (int64_t i = 0; i < floor; ++i)
      chosen[h * n + best[i]] = 1;
  }
  std::vector<std::pair<int64_t, int64_t>> rest; // token, head
  for (int64_t t = 0; t < n; ++t)
    for (int64_t h = 0; h < heads; ++h)
      if (!chosen[h * n + t])
        rest.push_back({t, h});
  std::sort(rest.begin(), rest.end(), [&](auto a, auto b) {
    int64_t i = a.second * n + a.first, j = b.second * n + b.first;
    bool pi = !protect.empty() && protect[i], pj = !protect.empty() && protect[j];
    if (pi != pj)
      return pi;
    if (above(score[i], score[j]) || above(score[j], score[i]))
      return above(score[i], score[j]);
    return pi ? a > b : a < b;
  });
  for (int64_t i = 0; i < k - heads * floor; ++i)
    chosen[rest[i].second * n + rest[i].first] = 1;
  std::vector<std::vector<int32_t>> out(heads);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < n; ++t)
      if (chosen[h * n + t])
        out[h].push_back(int32_t(t));
  return out;
}

TEST(SelectJoint, OneBudgetForAllHeads) {
  for (const char *kind : kKinds)
    for (int64_t heads : {1, 3, 8})
      for (int64_t n : {1, 7, 65, 700})
        for (double part : {0.0, 0.1, 0.9})
          for (int64_t k : {int64_t(0), int64_t(1), heads * n / 2, heads * n - 1, heads * n})
            for (int64_t floor : {int64_t(0), n / 10, n}) {
              SCOPED_TRACE(kind);
              std::vector<float> score = scores(kind, heads * n);
              std::vector<uint8_t> protect;
              if (part > 0)
                protect = conditions(heads * n, part);
              auto expected = jointOracle(score, protect, heads, n, k, floor);
              std::vector<int64_t> counts(heads, -1);
              Guarded<int32_t> out(heads * n);
              Scratch scratch(kvpc_prim_select_joint_scratch(heads, n));
              int64_t total = kvpc_prim_select_joint(
                  score.data(), protect.empty() ? nullptr : protect.data(), n, heads, n, k, floor,
                  out.data(), n, counts.data(), scratch.data());
              ASSERT_EQ(total, k);
              for (int64_t h = 0; h < heads; ++h) {
                ASSERT_EQ(counts[h], int64_t(expected[h].size()))
                    << "heads " << heads << " n " << n << " k " << k << " floor " << floor;
                std::vector<int32_t> mine(out.data() + h * n, out.data() + h * n + counts[h]);
                ASSERT_EQ(mine, expected[h]);
              }
              ASSERT_TRUE(out.intact() && scratch.intact());
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
  ASSERT_EQ(kvpc_prim_parts_to_tokens(parts.data(), 3, 4, 15, tokens.data()), 11);
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14}));
  EXPECT_EQ(kvpc_prim_parts_to_tokens(parts.data(), 0, 4, 15, tokens.data()), 0);
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
