#include "Random.h"
#include "Data.h"
#include <gtest/gtest.h>

using namespace kvpc::test;
using kvpc::random::Block, kvpc::random::philox;

namespace {

// The known answers of Random123's philox4x32 with 10 rounds.
static_assert(philox({{0, 0, 0, 0}}, 0, 0).word[0] == 0x6627e8d5);

TEST(Random, PhiloxKnownAnswers) {
  auto expect = [](Block counter, uint32_t key0, uint32_t key1, Block answer) {
    Block got = philox(counter, key0, key1);
    for (int i = 0; i < 4; ++i)
      EXPECT_EQ(got.word[i], answer.word[i]);
  };
  expect({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  uint32_t ones = 0xffffffff;
  expect({{ones, ones, ones, ones}}, ones, ones,
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Random, EveryCoordinateCounts) {
  float base = kvpc_prim_uniform(1, 2, 3, 4, 5);
  EXPECT_EQ(base, kvpc_prim_uniform(1, 2, 3, 4, 5));
  EXPECT_NE(base, kvpc_prim_uniform(2, 2, 3, 4, 5));
  EXPECT_NE(base, kvpc_prim_uniform(1 + (int64_t(1) << 32), 2, 3, 4, 5));
  EXPECT_NE(base, kvpc_prim_uniform(1, 3, 3, 4, 5));
  EXPECT_NE(base, kvpc_prim_uniform(1, 2, 4, 4, 5));
  EXPECT_NE(base, kvpc_prim_uniform(1, 2, 3, 5, 5));
  EXPECT_NE(base, kvpc_prim_uniform(1, 2, 3, 4, 6));
}

TEST(Random, BitsArePinned) {
  // Seed 0 at the origin is the first known answer; the normal number is fixed for other targets.
  EXPECT_EQ(kvpc_prim_uniform(0, 0, 0, 0, 0), float(0x6627e8) * 0x1p-24f);
  EXPECT_EQ(kvpc_prim_gaussian(0, 0, 0, 0, 0), -0x1.3c3742p-1f);
  EXPECT_EQ(kvpc_prim_gaussian(7, 3, 2, 1000, 47), -0x1.eb380ap-1f);
}

TEST(Random, RowsAreTheirPlaces) {
  for (int64_t n : {0, 1, 7, 8, 17, 1000}) {
    std::vector<int64_t> positions(n);
    for (int64_t i = 0; i < n; ++i)
      positions[i] = i * i + (i % 3 ? int64_t(1) << 33 : 0);
    Guarded<float> out(n), listed(n), normal(n);
    kvpc_prim_uniform_row(-5, 1, 2, nullptr, 100, 3, n, out.data());
    kvpc_prim_uniform_row(-5, 1, 2, positions.data(), 0, 3, n, listed.data());
    kvpc_prim_gaussian_row(-5, 1, 2, positions.data(), 0, 3, n, normal.data());
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(out[i], kvpc_prim_uniform(-5, 1, 2, 100 + i, 3));
      ASSERT_EQ(listed[i], kvpc_prim_uniform(-5, 1, 2, positions[i], 3));
      ASSERT_EQ(normal[i], kvpc_prim_gaussian(-5, 1, 2, positions[i], 3));
    }
    ASSERT_TRUE(out.intact() && listed.intact() && normal.intact());
  }
}

TEST(Random, MomentsOfManyNumbers) {
  const int64_t n = 200000;
  std::vector<float> uniform(n), normal(n);
  kvpc_prim_uniform_row(3, 0, 0, nullptr, 0, 0, n, uniform.data());
  kvpc_prim_gaussian_row(3, 0, 0, nullptr, 0, 0, n, normal.data());
  double mean = 0, square = 0, normalMean = 0, normalSquare = 0, fourth = 0;
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_GE(uniform[i], 0.0f);
    ASSERT_LT(uniform[i], 1.0f);
    mean += uniform[i] / n;
    square += double(uniform[i]) * uniform[i] / n;
    normalMean += normal[i] / n;
    normalSquare += double(normal[i]) * normal[i] / n;
    fourth += std::pow(double(normal[i]), 4) / n;
  }
  EXPECT_NEAR(mean, 0.5, 0.003);
  EXPECT_NEAR(square, 1.0 / 3, 0.003);
  EXPECT_NEAR(normalMean, 0, 0.01);
  EXPECT_NEAR(normalSquare, 1, 0.015);
  EXPECT_NEAR(fourth, 3, 0.1);
}

TEST(Random, GaussianIsBoxAndMuller) {
  for (int64_t i = 0; i < 20000; ++i) {
    Block b = kvpc::random::blockAt(1, 2, 3, i, 4);
    double u = ((b.word[2] >> 8) + 1) * 0x1p-24, v = (b.word[3] >> 8) * 0x1p-24;
    double exact = std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
    ASSERT_NEAR(kvpc_prim_gaussian(1, 2, 3, i, 4), exact, 3e-7 * std::max(1.0, std::abs(exact)));
  }
}

} // namespace
