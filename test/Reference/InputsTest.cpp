//===- InputsTest.cpp - what a cache state sees of the host -----------------------------------===//
#include "test/Reference/Program.h"

#include "lib/Target/CPU/Primitives/Random.h"

using namespace kvpc::test;

namespace {

const std::string kQueries = "!kvp.tensor<[head, group, query:2, channel], f32>";

/// Two tokens, one channel; three queries of which the last is 30.
Row withQueries() {
  Row row = lineOf({1, 2});
  row.seen = 5;
  row.queries =
      Tensor::ofFloats({{"head", 1}, {"group", 1}, {"query", 3}, {"channel", 1}}, {10, 20, 30});
  return row;
}

TEST(Inputs, lastQueries) {
  std::string body = "%s = kvp.input queries last 2 of %cache : !kvp.cache<0> -> " + kQueries;
  expectNear(Program(body, kQueries).score(withQueries()), {20, 30});
}

TEST(Inputs, shortRowHasFewerQueries) {
  Row row = withQueries();
  row.length = 1;
  row.keys = row.values = Tensor::ofFloats({{"head", 1}, {"token", 1}, {"channel", 1}}, {1});
  Program program("%s = kvp.input queries last 2 of %cache : !kvp.cache<0> -> " + kQueries,
                  kQueries);
  expectNear(program.score(row), {30});
  EXPECT_EQ(program.axes[2].extent, 1);
}

TEST(Inputs, missingQueriesAreNamed) {
  std::string body = "%s = kvp.input queries last 2 of %cache : !kvp.cache<0> -> " + kQueries;
  auto none = score(Program(body, kQueries).press(), lineOf({1, 2}), {});
  EXPECT_EQ(llvm::toString(none.takeError()),
            "the press needs `queries`, which were not given [kvm-missing-input]");
  Row row = lineOf({1, 2, 3});
  row.queries = Tensor({{"head", 1}, {"group", 1}, {"query", 1}, {"channel", 1}}, Element::Float);
  auto few = score(Program(body, kQueries).press(), row, {});
  EXPECT_EQ(llvm::toString(few.takeError()),
            "the press needs the last 2 queries of each row, 1 were given");
}

TEST(Inputs, values) {
  std::string type = "!kvp.tensor<[head, token, channel], f32>";
  std::string body = "%s = kvp.input values of %cache : !kvp.cache<0> -> " + type;
  expectNear(Program(body, type).score(lineOf({1, 2})), {-1, -2});
}

TEST(Inputs, hiddenAndOutputWeight) {
  Row row = lineOf({1, 2});
  row.hidden = Tensor::ofFloats({{"query", 3}, {"feature", 1}}, {7, 8, 9});
  row.outputWeight =
      Tensor::ofFloats({{"head", 1}, {"group", 1}, {"channel", 1}, {"feature", 1}}, {4});
  std::string type = "!kvp.tensor<[query, feature], f32>";
  // Of three given the row has two.
  expectNear(Program("%s = kvp.input hidden of %cache : !kvp.cache<0> -> " + type, type).score(row),
             {8, 9});
  type = "!kvp.tensor<[head, group, channel, feature], f32>";
  expectNear(
      Program("%s = kvp.input output_weight of %cache : !kvp.cache<0> -> " + type, type).score(row),
      {4});
}

TEST(Inputs, causal) {
  std::string body = R"(
    %c = kvp.causal last 2 of %cache : !kvp.cache<0> -> !kvp.tensor<[query:2, token], i1>
    %s = kvp.map float(%c) : (!kvp.tensor<[query:2, token], i1>)
      -> !kvp.tensor<[query:2, token], f32>)";
  Row row = lineOf({0, 0, 0});
  Program program(body, "!kvp.tensor<[query:2, token], f32>");
  // The queries are tokens 1 and 2.
  expectNear(program.score(row), {1, 1, 0, 1, 1, 1});
  // Of 10 ever cached these three were the 1st, the 9th and the 10th.
  row.seen = 10;
  row.originalPositions = Tensor::ofInts({{"head", 1}, {"token", 3}}, {0, 8, 9});
  expectNear(program.score(row), {1, 1, 0, 1, 1, 1});
  row.originalPositions = Tensor::ofInts({{"head", 1}, {"token", 3}}, {0, 9, 10});
  expectNear(program.score(row), {1, 0, 0, 1, 1, 0});
}

TEST(Inputs, positions) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %x = kvp.reduce sum %k over ["channel"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token], f32>
    %two = arith.constant 2 : i64
    %left = kvp.topk %cache by %x keep %two
      : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>
    %p = kvp.position %left : !kvp.cache<1> -> !kvp.tensor<[token/1], i64>
    %o = kvp.position original %left : !kvp.cache<1> -> !kvp.tensor<[head, token/1], i64>
    %hundred = arith.constant 100 : i64
    %h = kvp.map mul(%o, %hundred) : (!kvp.tensor<[head, token/1], i64>, i64)
      -> !kvp.tensor<[head, token/1], i64>
    %sum = kvp.map add(%h, %p) : (!kvp.tensor<[head, token/1], i64>, !kvp.tensor<[token/1], i64>)
      -> !kvp.tensor<[head, token/1], i64>
    %s = kvp.map float(%sum) : (!kvp.tensor<[head, token/1], i64>)
      -> !kvp.tensor<[head, token/1], f32>)";
  expectNear(
      Program(body, "!kvp.tensor<[head, token/1], f32>").score(rowOf(2, 3, 1, {1, 3, 2, 3, 1, 2})),
      {100, 201, 0, 201});
}

TEST(Inputs, unrotatedKeys) {
  Row row = rowOf(1, 2, 2, {1, 2, 0, 0});
  double angle = 0.25;
  // The vector (3, 4) at position 1, turned by 0.25 and scaled by 2.
  row.keys.floats[2] = 2 * (3 * std::cos(angle) - 4 * std::sin(angle));
  row.keys.floats[3] = 2 * (4 * std::cos(angle) + 3 * std::sin(angle));
  row.rope = Rope{{angle}, 2, false};
  std::string type = "!kvp.tensor<[head, token, channel], f32>";
  std::string body = "%s = kvp.input unrotated_keys of %cache : !kvp.cache<0> -> " + type;
  expectNear(Program(body, type).score(row), {0.5, 1, 3, 4});
}

TEST(Inputs, dimensionsAndScale) {
  std::string body = kLine;
  std::string dims;
  const char *names[] = {"length", "seen", "layer", "layers", "heads", "groups", "channels"};
  std::string sum = "%zero";
  body += "%zero = arith.constant 0 : i64\n%ten = arith.constant 10 : i64\n";
  for (const char *name : names) {
    std::string n = name;
    body += "%d" + n + " = kvp.dim " + n + " %cache : !kvp.cache<0>\n";
    body += "%m" + n + " = kvp.map mul(" + sum + ", %ten) : (i64, i64) -> i64\n";
    body += "%a" + n + " = kvp.map add(%m" + n + ", %d" + n + ") : (i64, i64) -> i64\n";
    sum = "%a" + n;
  }
  body += "%scale = kvp.scale\n%t = kvp.map add(%scale, " + sum + R"() : (f64, i64) -> f64
    %nought = arith.constant 0.0 : f64
    %y = kvp.map mul(%x, %nought) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], f32>
    %s = kvp.map add(%y, %t) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], f32>)";
  Row row = lineOf({0, 0});
  row.seen = 3;
  row.layer = 4;
  row.layers = 5;
  row.groups = 7;
  expectNear(Program(body, "!kvp.tensor<[token], f32>").score(row), {2345171.5, 2345171.5});
}

TEST(Inputs, uniform) {
  std::string type = "!kvp.tensor<[head, token, draw:2], f32>";
  std::string body = R"(
    %seed = arith.constant 7 : i64
    %s = kvp.uniform %seed over [#kvp.axis<head>, #kvp.axis<token>, #kvp.axis<draw:2>]
      of %cache : !kvp.cache<0> -> )" +
                     type;
  Row row = rowOf(2, 3, 1, {0, 0, 0, 0, 0, 0});
  row.layer = 3;
  row.originalPositions = Tensor::ofInts({{"head", 2}, {"token", 3}}, {4, 5, 6, 4, 5, 6});
  std::vector<float> got = Program(body, type).score(row), want;
  for (int head = 0; head < 2; ++head)
    for (int position = 4; position < 7; ++position)
      for (int draw = 0; draw < 2; ++draw)
        want.push_back(kvpc::random::uniformOf(kvpc::random::blockAt(7, 3, head, position, draw)));
  EXPECT_EQ(got, want);
}

TEST(Inputs, weightsAndParameters) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %d = kvp.dot %k, %w over "channel"
      : (!kvp.tensor<[head, token, channel], f32>, !kvp.tensor<[head, channel], f32>)
      -> !kvp.tensor<[head, token], f32>
    %s = kvp.map mul(%d, %f) : (!kvp.tensor<[head, token], f32>, f64)
      -> !kvp.tensor<[head, token], f32>)";
  std::string type = "!kvp.tensor<[head, token], f32>";
  std::string arguments = "%f: f64, %w: !kvp.tensor<[head, channel], f32>";
  Row row = rowOf(1, 2, 2, {1, 2, 3, 4});
  Tensor weight = Tensor::ofFloats({{"head", 1}, {"channel", 2}}, {10, 1});
  expectNear(Program(body, type, arguments).score(row, {2.0, weight}), {24, 68});
  Tensor wide({{"head", 1}, {"channel", 3}}, Element::Float);
  auto wrong = score(Program(body, type, arguments).press(), row, {2.0, wide});
  EXPECT_EQ(llvm::toString(wrong.takeError()),
            "axis `channel` has 2 entries in one operand of `kvp.dot` and 3 in another");
}

} // namespace
