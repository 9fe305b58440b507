//===- ReduceTest.cpp - reductions and contractions -------------------------------------------===//
#include "test/Reference/Program.h"

using namespace kvpc::test;

namespace {

/// `kind` over the tokens of a line, admitted where x < 100 if `where`.
float reduceLine(const std::string &kind, std::vector<float> line, bool where = false) {
  std::string body = kLine;
  body += R"(
    %limit = arith.constant 100.0 : f64
    %in = kvp.map lt(%x, %limit) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], i1>
    %s = kvp.reduce )" +
          kind + " %x over [\"token\"]";
  if (where)
    body += " where %in : !kvp.tensor<[token], i1>";
  body += " : !kvp.tensor<[token], f32> -> !kvp.tensor<[], f32>";
  return Program(body, "!kvp.tensor<[], f32>").score(lineOf(std::move(line))).at(0);
}

TEST(Reduce, sum) {
  EXPECT_EQ(reduceLine("sum", {1, 2, 4}), 7);
  EXPECT_EQ(reduceLine("sum", {1, 200, 4}, true), 5);
  // Wider than f32 inside: the ones are not lost beside 2^24.
  EXPECT_EQ(reduceLine("sum", {16777216, 1, 1}), 16777218);
}

TEST(Reduce, mean) {
  EXPECT_EQ(reduceLine("mean", {1, 2, 6}), 3);
  EXPECT_EQ(reduceLine("mean", {1, 200, 4}, true), 2.5);
  EXPECT_EQ(reduceLine("mean", {200}, true), 0);
}

TEST(Reduce, maximumAndMinimum) {
  EXPECT_EQ(reduceLine("max", {1, 3, 2}), 3);
  EXPECT_EQ(reduceLine("min", {1, 3, 2}), 1);
  EXPECT_EQ(reduceLine("max", {200}, true), -kInf);
  EXPECT_EQ(reduceLine("min", {200}, true), kInf);
  EXPECT_TRUE(std::isnan(reduceLine("max", {1, kNan, 2})));
  EXPECT_TRUE(std::isnan(reduceLine("min", {1, kNan, 2})));
}

TEST(Reduce, spread) {
  EXPECT_FLOAT_EQ(reduceLine("var", {1, 2, 6}), 7);
  EXPECT_FLOAT_EQ(reduceLine("std", {1, 2, 6}), std::sqrt(7.f));
  EXPECT_EQ(reduceLine("std", {200}, true), 0);
  EXPECT_TRUE(std::isnan(reduceLine("std", {3})));
}

TEST(Reduce, norm) {
  EXPECT_EQ(reduceLine("norm", {3, -4}), 5);
  EXPECT_EQ(reduceLine("norm", {200}, true), 0);
}

/// `kind` of the condition x < 100, or of the line itself, as a float.
float reduceTo(const std::string &kind, const std::string &input, const std::string &element,
               std::vector<float> line) {
  std::string body = kLine;
  body += R"(
    %limit = arith.constant 100.0 : f64
    %in = kvp.map lt(%x, %limit) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], i1>
    %y = kvp.reduce )" +
          kind + " " + input + " over [\"token\"] : !kvp.tensor<[token], " +
          (input == "%x" ? "f32" : "i1") + "> -> !kvp.tensor<[], " + element + R"(>
    %s = kvp.map float(%y) : (!kvp.tensor<[], )" +
          element + R"(>) -> !kvp.tensor<[], f32>)";
  return Program(body, "!kvp.tensor<[], f32>").score(lineOf(std::move(line))).at(0);
}

TEST(Reduce, conditions) {
  EXPECT_EQ(reduceTo("all", "%in", "i1", {1, 2}), 1);
  EXPECT_EQ(reduceTo("all", "%in", "i1", {1, 200}), 0);
  EXPECT_EQ(reduceTo("any", "%in", "i1", {1, 200}), 1);
  EXPECT_EQ(reduceTo("any", "%in", "i1", {200}), 0);
  EXPECT_EQ(reduceTo("count", "%in", "i64", {1, 200, 3}), 2);
}

TEST(Reduce, argmaxTiesToTheEarlier) {
  EXPECT_EQ(reduceTo("argmax", "%x", "i64", {1, 5, 5}), 1);
  EXPECT_EQ(reduceTo("argmax", "%x", "i64", {kNan, 1, 2}), 2);
  EXPECT_EQ(reduceTo("argmax", "%x", "i64", {kNan}), 0);
}

TEST(Reduce, severalAxesKeepTheOthers) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %s = kvp.reduce sum %k over ["channel", "head"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[token], f32>)";
  expectNear(Program(body, "!kvp.tensor<[token], f32>")
                 .score(rowOf(2, 2, 2, {1, 2, 3, 4, 10, 20, 30, 40})),
             {33, 77});
}

TEST(Reduce, dot) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %m = kvp.reduce mean %k over ["token"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, channel], f32>
    %s = kvp.dot %k, %m over "channel"
      : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[head, channel], f32>)
      -> !kvp.tensor<[head, token], f32>)";
  // Means (2, 3) and (1, 0).
  expectNear(Program(body, "!kvp.tensor<[head, token], f32>")
                 .score(rowOf(2, 2, 2, {1, 2, 3, 4, 2, 0, 0, 0})),
             {8, 18, 2, 0});
}

TEST(Reduce, dotOverTokens) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %r = kvp.rename %k from "channel" to "channel'"
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token, "channel'"], f32>
    %s = kvp.dot %k, %r over "token"
      : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[head, token, "channel'"], f32>)
      -> !kvp.tensor<[head, channel, "channel'"], f32>)";
  expectNear(Program(body, "!kvp.tensor<[head, channel, \"channel'\"], f32>")
                 .score(rowOf(1, 2, 2, {1, 2, 3, 4})),
             {10, 14, 14, 20});
}

} // namespace
