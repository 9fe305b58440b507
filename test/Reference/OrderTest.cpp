//===- OrderTest.cpp - sort, rank and the order of selections ---------------------------------===//
#include "test/Reference/Program.h"

using namespace kvpc::test;

namespace {

const std::string kConditions = R"(
    %limit = arith.constant 100.0 : f64
    %zero = arith.constant 0.0 : f64
    %in = kvp.map lt(%x, %limit) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], i1>
    %low = kvp.map lt(%x, %zero) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], i1>
)";

TEST(Order, sort) {
  auto sort = [](const std::string &where, std::vector<float> line) {
    std::string body = kLine + kConditions;
    body += "%s = kvp.sort %x along \"token\" to \"place\" " + where +
            " : !kvp.tensor<[token], f32> -> !kvp.tensor<[place], f32>";
    return Program(body, "!kvp.tensor<[place], f32>").score(lineOf(std::move(line)));
  };
  expectNear(sort("", {1, kNan, 3, -kInf, 2}), {3, 2, 1, -kInf, kNan});
  expectNear(sort("where %in : !kvp.tensor<[token], i1>", {1, 200, 3}), {3, 1, 0});
}

std::vector<float> rank(const std::string &options, std::vector<float> line) {
  std::string body = kLine + kConditions;
  body += "%r = kvp.rank %x over [\"token\"] " + options + R"(
    : !kvp.tensor<[token], f32> -> !kvp.tensor<[token], i64>
    %s = kvp.map float(%r) : (!kvp.tensor<[token], i64>) -> !kvp.tensor<[token], f32>)";
  return Program(body, kType).score(lineOf(std::move(line)));
}

TEST(Order, rank) {
  expectNear(rank("", {1, 3, 2}), {2, 0, 1});
  expectNear(rank("", {5, 5, 7}), {1, 2, 0});
  expectNear(rank("", {kNan, -kInf, kInf, 0}), {3, 2, 0, 1});
  expectNear(rank("", {0.0f, -0.0f}), {0, 1});
}

TEST(Order, rankOutsideWhereComesLast) {
  expectNear(rank("where %in : !kvp.tensor<[token], i1>", {1, 300, -5, 200, 2}), {1, 3, 2, 4, 0});
}

TEST(Order, rankOfProtected) {
  const std::string protect = "protect %low : !kvp.tensor<[token], i1>";
  expectNear(rank(protect, {3, -2, 9, -1}), {3, 1, 2, 0});
  // Of equal protected entries the newest: rank < k is the selection of k.
  expectNear(rank(protect, {-1, 9, -1}), {1, 2, 0});
}

TEST(Order, rankOverHeadsTiesToTheEarlierToken) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %x = kvp.reduce sum %k over ["channel"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token], f32>
    %r = kvp.rank %x over ["head", "token"]
      : !kvp.tensor<[head, token], f32> -> !kvp.tensor<[head, token], i64>
    %s = kvp.map float(%r) : (!kvp.tensor<[head, token], i64>) -> !kvp.tensor<[head, token], f32>)";
  expectNear(Program(body, "!kvp.tensor<[head, token], f32>").score(rowOf(2, 2, 1, {5, 5, 5, 9})),
             {1, 3, 2, 0});
}

using Ids = std::vector<int64_t>;

TEST(Order, selectBest) {
  EXPECT_EQ(selectBest({1, 3, 2, 3}, {}, 2), (Ids{1, 3}));
  EXPECT_EQ(selectBest({5, 5, 5}, {}, 2), (Ids{0, 1}));
  EXPECT_EQ(selectBest({0.0f, -0.0f}, {}, 1), (Ids{0}));
  EXPECT_EQ(selectBest({-0.0f, 0.0f}, {}, 1), (Ids{0}));
  EXPECT_EQ(selectBest({kNan, -kInf, -1}, {}, 2), (Ids{1, 2}));
  EXPECT_EQ(selectBest({kNan, kNan}, {}, 1), (Ids{0}));
}

TEST(Order, selectBestClampsTheCount) {
  EXPECT_EQ(selectBest({1, 2}, {}, -7), (Ids{1}));
  EXPECT_EQ(selectBest({1, 2}, {}, 9), (Ids{0, 1}));
  EXPECT_EQ(selectBest({}, {}, 3), (Ids{}));
}

TEST(Order, selectBestOfProtected) {
  EXPECT_EQ(selectBest({kInf, -9, 1}, {0, 1, 0}, 2), (Ids{0, 1}));
  EXPECT_EQ(selectBest({kInf, kNan, 1}, {0, 1, 0}, 1), (Ids{1}));
  // More of them than the budget: the highest, of equals the newest.
  EXPECT_EQ(selectBest({1, 2, 3, 9}, {1, 1, 1, 0}, 2), (Ids{1, 2}));
  EXPECT_EQ(selectBest({1, 1, 1, 9}, {1, 1, 1, 0}, 2), (Ids{1, 2}));
}

} // namespace
