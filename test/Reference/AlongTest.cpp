//===- AlongTest.cpp - softmax, normalize, cumsum, pools and shift ----------------------------===//
#include "test/Reference/Program.h"

using namespace kvpc::test;

namespace {

/// `%s = kvp.<op> ... along "token" <options>` of the line, admitted where x < `below`.
std::vector<float> along(const std::string &op, const std::string &options, std::vector<float> line,
                         bool where = false) {
  std::string body = kLine;
  body += R"(
    %limit = arith.constant 100.0 : f64
    %in = kvp.map lt(%x, %limit) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], i1>
    %s = kvp.)" +
          op + " %x along \"token\" " + options;
  if (where)
    body += " where %in : !kvp.tensor<[token], i1>";
  body += " : " + kType + " -> " + kType;
  return Program(body, kType).score(lineOf(std::move(line)));
}

TEST(Along, softmax) {
  float z = 1 + std::exp(1.f) + std::exp(3.f);
  expectNear(along("softmax", "", {1, 2, 4}), {1 / z, std::exp(1.f) / z, std::exp(3.f) / z});
  // Large numbers do not overflow.
  expectNear(along("softmax", "", {1000, 1000}), {0.5, 0.5});
}

TEST(Along, softmaxOutsideWhereIsZero) {
  expectNear(along("softmax", "", {1, 1, 500}, true), {0.5, 0.5, 0});
  expectNear(along("softmax", "", {200, 500}, true), {0, 0});
}

TEST(Along, softmaxOfMinusInfinityIsZero) {
  expectNear(along("softmax", "", {-kInf, 3}), {0, 1});
  expectNear(along("softmax", "", {-kInf, -kInf}), {0, 0});
}

TEST(Along, normalize) {
  expectNear(along("normalize", "", {3, -4}), {0.6f, -0.8f});
  expectNear(along("normalize", "", {0, 0}), {0, 0});
  expectNear(along("normalize", "", {3, 200, -4}, true), {0.6f, 0, -0.8f});
}

TEST(Along, cumsum) {
  expectNear(along("cumsum", "", {1, 2, 3}), {1, 3, 6});
  expectNear(along("cumsum", "", {1, 200, 3}, true), {1, 0, 4});
}

TEST(Along, averagePoolCountsZerosOutside) {
  expectNear(along("avg_pool", "size 3", {3, 6, 9, 12}), {3, 6, 9, 7});
  expectNear(along("avg_pool", "size 3", {3, 300, 9, 12}, true), {1, 0, 7, 7});
  expectNear(along("avg_pool", "size 7", {7, 14}), {3, 3});
}

TEST(Along, maxPoolCountsNothingOutside) {
  expectNear(along("max_pool", "size 3", {-3, -6, -9, -1}), {-3, -3, -1, -1});
  expectNear(along("max_pool", "size 3", {-3, 300, -9, -1}, true), {-3, 0, -1, -1});
}

TEST(Along, shift) {
  auto shift = [](int64_t by) {
    std::string body = kLine;
    body += "%by = arith.constant " + std::to_string(by) + R"( : i64
      %fill = arith.constant 9.0 : f64
      %s = kvp.shift %x along "token" by %by fill %fill : !kvp.tensor<[token], f32>, f64
        -> !kvp.tensor<[token], f32>)";
    return Program(body, kType).score(lineOf({1, 2, 3}));
  };
  expectNear(shift(1), {9, 1, 2});
  expectNear(shift(-1), {2, 3, 9});
  expectNear(shift(0), {1, 2, 3});
  expectNear(shift(3), {9, 9, 9});
  expectNear(shift(std::numeric_limits<int64_t>::max()), {9, 9, 9});
  expectNear(shift(std::numeric_limits<int64_t>::min() + 1), {9, 9, 9});
}

} // namespace
