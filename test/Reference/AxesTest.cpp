//===- AxesTest.cpp - rename, partition, join, at ---------------------------------------------===//
#include "test/Reference/Program.h"

using namespace kvpc::test;

namespace {

const std::string kParts = "!kvp.tensor<[part, slot:2], f32>";

/// The line cut into runs of 2; `tail` makes `%s` from `%p`.
std::vector<float> parts(const std::string &options, const std::string &tail,
                         const std::string &type, std::vector<float> line) {
  std::string body = kLine;
  body += R"(
    %one = arith.constant 1 : i64
    %four = arith.constant 4 : i64
    %fill = arith.constant 9.0 : f64
    %p = kvp.partition %x along "token" size 2 )" +
          options + " : !kvp.tensor<[token], f32> -> " + kParts + "\n" + tail;
  return Program(body, type).score(lineOf(std::move(line)));
}

std::vector<float> means(const std::string &options, std::vector<float> line) {
  return parts(options,
               "%s = kvp.reduce mean %p over [\"slot\"] : " + kParts +
                   " -> !kvp.tensor<[part], f32>",
               "!kvp.tensor<[part], f32>", std::move(line));
}

TEST(Axes, partition) {
  expectNear(means("", {1, 3, 5, 7}), {2, 6});
  // The missing slot of the last part is absent, not 0.
  expectNear(means("", {1, 3, 5}), {2, 5});
  expectNear(means("whole", {1, 3, 5}), {2});
  expectNear(means("from %one", {1, 3, 5, 7}), {4, 7});
  expectNear(means("from %one to %four", {1, 3, 5, 7, 9}), {4, 7});
  expectNear(means("from %four", {1, 3}), {});
}

TEST(Axes, missingSlotsAreAbsentWhereverTheyGo) {
  std::string softmax = R"(
    %r = kvp.rename %p from "slot" to "slot'"
      : !kvp.tensor<[part, slot:2], f32> -> !kvp.tensor<[part, "slot'":2], f32>
    %w = kvp.softmax %r along "slot'"
      : !kvp.tensor<[part, "slot'":2], f32> -> !kvp.tensor<[part, "slot'":2], f32>
    %s = kvp.reduce max %w over ["slot'"]
      : !kvp.tensor<[part, "slot'":2], f32> -> !kvp.tensor<[part], f32>)";
  expectNear(parts("", softmax, "!kvp.tensor<[part], f32>", {3, 3, -8}), {0.5, 1});
  std::string minimum = R"(
    %c = arith.constant 5.0 : f64
    %m = kvp.map add(%p, %c) : (!kvp.tensor<[part, slot:2], f32>, f64) -> !kvp.tensor<[part, slot:2], f32>
    %s = kvp.reduce min %m over ["slot", "part"]
      : !kvp.tensor<[part, slot:2], f32> -> !kvp.tensor<[], f32>)";
  expectNear(parts("", minimum, "!kvp.tensor<[], f32>", {3, 4, 7}), {8});
}

std::vector<float> joined(const std::string &options, std::vector<float> line) {
  return parts(options,
               "%s = kvp.join %p like %x along \"token\" size 2 " + options +
                   " fill %fill : " + kParts + ", !kvp.tensor<[token], f32>, f64 -> " + kType,
               kType, std::move(line));
}

TEST(Axes, joinUndoesPartition) {
  expectNear(joined("", {1, 3, 5}), {1, 3, 5});
  expectNear(joined("whole", {1, 3, 5}), {1, 3, 9});
  expectNear(joined("from %one", {1, 3, 5, 7}), {9, 3, 5, 7});
  expectNear(joined("from %one to %four", {1, 3, 5, 7, 8}), {9, 3, 5, 7, 9});
}

TEST(Axes, atClampsTheIndex) {
  auto at = [](int64_t index) {
    std::string body = kLine;
    body += "%i = arith.constant " + std::to_string(index) + R"( : i64
      %s = kvp.at %x along "token", %i : !kvp.tensor<[token], f32>, i64 -> !kvp.tensor<[], f32>)";
    return Program(body, "!kvp.tensor<[], f32>").score(lineOf({4, 5, 6}));
  };
  expectNear(at(1), {5});
  expectNear(at(-3), {4});
  expectNear(at(9), {6});
}

TEST(Axes, atTakesATensorOfIndices) {
  std::string body = kLine;
  body += R"(
    %two = arith.constant 2 : i64
    %pos = kvp.position %cache : !kvp.cache<0> -> !kvp.tensor<[token], i64>
    %i = kvp.map sub(%two, %pos) : (i64, !kvp.tensor<[token], i64>) -> !kvp.tensor<[token], i64>
    %s = kvp.at %x along "token", %i : !kvp.tensor<[token], f32>, !kvp.tensor<[token], i64>
      -> !kvp.tensor<[token], f32>)";
  expectNear(Program(body, kType).score(lineOf({4, 5, 6})), {6, 5, 4});
}

TEST(Axes, indexAndIotaAndExtent) {
  std::string body = kLine;
  body += R"(
    %a = kvp.index "token" of %x : !kvp.tensor<[token], f32> -> !kvp.tensor<[token], i64>
    %b = kvp.iota "ahead" : 2 -> !kvp.tensor<[ahead:2], i64>
    %n = kvp.extent "token" of %x : !kvp.tensor<[token], f32>
    %c = kvp.map add(%a, %b) : (!kvp.tensor<[token], i64>, !kvp.tensor<[ahead:2], i64>)
      -> !kvp.tensor<[token, ahead:2], i64>
    %d = kvp.map div(%c, %n) : (!kvp.tensor<[token, ahead:2], i64>, i64)
      -> !kvp.tensor<[token, ahead:2], f32>
    %s = kvp.reduce sum %d over ["ahead"]
      : !kvp.tensor<[token, ahead:2], f32> -> !kvp.tensor<[token], f32>)";
  expectNear(Program(body, kType).score(lineOf({4, 5})), {0.5, 1.5});
}

} // namespace
