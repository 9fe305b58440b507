//===- ElementwiseTest.cpp - map on tensors and on host scalars -------------------------------===//
#include "test/Reference/Program.h"

#include "llvm/Support/FormatVariadic.h"

using namespace kvpc::test;

namespace {

const std::string kInts = "!kvp.tensor<[token], i64>";
const std::string kBools = "!kvp.tensor<[token], i1>";

/// `fn` of the line; the result is turned to floats if it is not.
std::vector<float> unary(const std::string &fn, std::vector<float> line, std::string type = kType) {
  std::string body = kLine;
  body += "%y = kvp.map " + fn + "(%x) : (" + kType + ") -> " + type;
  body += "\n%s = kvp.map float(%y) : (" + type + ") -> " + kType;
  return Program(body, kType).score(lineOf(std::move(line)));
}

/// `fn` of the line and a host float.
std::vector<float> binary(const std::string &fn, std::vector<float> line, double rhs,
                          std::string type = kType) {
  std::string body = kLine;
  body += "%c = arith.constant " + llvm::formatv("{0:e}", rhs).str() + " : f64\n";
  body += "%y = kvp.map " + fn + "(%x, %c) : (" + kType + ", f64) -> " + type;
  body += "\n%s = kvp.map float(%y) : (" + type + ") -> " + kType;
  return Program(body, kType).score(lineOf(std::move(line)));
}

TEST(Elementwise, functionsOfOneNumber) {
  expectNear(unary("neg", {1, -2}), {-1, 2});
  expectNear(unary("abs", {1, -2}), {1, 2});
  expectNear(unary("exp", {0, 1}), {1, 2.7182817f});
  expectNear(unary("log", {1, 0}), {0, -kInf});
  expectNear(unary("sqrt", {4, -1}), {2, kNan});
  expectNear(unary("rsqrt", {4, 0}), {0.5, kInf});
  expectNear(unary("tanh", {0.5}), {0.46211717f});
  expectNear(unary("sigmoid", {0, 2}), {0.5, 0.8807971f});
  expectNear(unary("gelu", {1, -1}), {0.8413447f, -0.1586553f});
  expectNear(unary("relu", {2, -3, kNan}), {2, 0, kNan});
}

TEST(Elementwise, roundingGivesIntegers) {
  expectNear(unary("floor", {1.5, -1.5}, kInts), {1, -2});
  expectNear(unary("round", {0.5, 1.5, -0.5}, kInts), {0, 2, 0});
  expectNear(unary("int", {1.9f, -1.9f, kNan}, kInts), {1, -1, 0});
}

TEST(Elementwise, functionsOfTwoNumbers) {
  expectNear(binary("add", {1, 2}, 0.5), {1.5, 2.5});
  expectNear(binary("sub", {1, 2}, 0.5), {0.5, 1.5});
  expectNear(binary("mul", {1, 2}, 0.5), {0.5, 1});
  expectNear(binary("div", {1, 2}, 0.5), {2, 4});
  expectNear(binary("pow", {4, 9}, 0.5), {2, 3});
  expectNear(binary("mod", {5.5, -5.5}, 2), {1.5, 0.5});
  expectNear(binary("minimum", {1, 3, kNan}, 2), {1, 2, kNan});
  expectNear(binary("maximum", {1, 3, kNan}, 2), {2, 3, kNan});
}

TEST(Elementwise, comparisons) {
  expectNear(binary("lt", {1, 2, kNan}, 2, kBools), {1, 0, 0});
  expectNear(binary("le", {1, 2, kNan}, 2, kBools), {1, 1, 0});
  expectNear(binary("eq", {1, 2, kNan}, 2, kBools), {0, 1, 0});
  expectNear(binary("ne", {1, 2, kNan}, 2, kBools), {1, 0, 1});
}

TEST(Elementwise, hostFloatsAreRoundedAtTensors) {
  // 0.1 as a double is not 0.1f; against a tensor it is.
  expectNear(binary("eq", {0.1f}, 0.1, kBools), {1});
}

TEST(Elementwise, conditions) {
  auto logical = [](const std::string &fn) {
    std::string body = kLine;
    body += R"(
      %one = arith.constant 1.5 : f64
      %two = arith.constant 2.5 : f64
      %a = kvp.map lt(%x, %one) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], i1>
      %b = kvp.map lt(%x, %two) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], i1>
      %n = kvp.map not(%a) : (!kvp.tensor<[token], i1>) -> !kvp.tensor<[token], i1>
      %y = kvp.map )" +
            fn + R"((%n, %b) : (!kvp.tensor<[token], i1>, !kvp.tensor<[token], i1>)
        -> !kvp.tensor<[token], i1>
      %s = kvp.map float(%y) : (!kvp.tensor<[token], i1>) -> !kvp.tensor<[token], f32>)";
    return Program(body, kType).score(lineOf({1, 2, 3}));
  };
  expectNear(logical("and"), {0, 1, 0});
  expectNear(logical("or"), {1, 1, 1});
}

TEST(Elementwise, integersStayIntegers) {
  auto integers = [](const std::string &fn, const std::string &result = "i64") {
    std::string type = "!kvp.tensor<[token], " + result + ">";
    std::string body = R"(
      %p = kvp.position %cache : !kvp.cache<0> -> !kvp.tensor<[token], i64>
      %c = arith.constant -3 : i64
      %y = kvp.map )" + fn +
                       "(%p, %c) : (!kvp.tensor<[token], i64>, i64) -> " + type + R"(
      %s = kvp.map float(%y) : ()" +
                       type + ") -> !kvp.tensor<[token], f32>";
    return Program(body, kType).score(lineOf({0, 0, 0}));
  };
  expectNear(integers("add"), {-3, -2, -1});
  expectNear(integers("mul"), {0, -3, -6});
  expectNear(integers("mod"), {0, -2, -1}); // the sign of the divisor
  expectNear(integers("minimum"), {-3, -3, -3});
  expectNear(integers("div", "f32"), {0, -1 / 3.f, -2 / 3.f});
  expectNear(integers("lt", "i1"), {0, 0, 0});
}

TEST(Elementwise, axesUniteByName) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %a = kvp.reduce sum %k over ["head", "channel"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[token], f32>
    %b = kvp.reduce sum %k over ["token", "channel"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head], f32>
    %s = kvp.map sub(%a, %b) : (!kvp.tensor<[token], f32>, !kvp.tensor<[head], f32>)
      -> !kvp.tensor<[head, token], f32>)";
  // Heads (1, 2, 4) and (10, 20, 40): per token 11, 22, 44, per head 7, 70.
  expectNear(
      Program(body, "!kvp.tensor<[head, token], f32>").score(rowOf(2, 3, 1, {1, 2, 4, 10, 20, 40})),
      {4, 15, 37, -59, -48, -26});
}

TEST(Elementwise, whereTakesIntegersAmongFloats) {
  std::string body = kLine;
  body += R"(
    %zero = arith.constant 0.0 : f64
    %c = kvp.map lt(%x, %zero) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], i1>
    %one = arith.constant 1 : i64
    %s = kvp.map where(%c, %one, %x) : (!kvp.tensor<[token], i1>, i64, !kvp.tensor<[token], f32>)
      -> !kvp.tensor<[token], f32>)";
  expectNear(Program(body, kType).score(lineOf({-5, 7})), {1, 7});
}

TEST(Elementwise, hostConditionEvaluatesOneSide) {
  // The other side asks for queries, which are not given.
  std::string body = kLine;
  body += R"(
    %q = kvp.input queries last 2 of %cache : !kvp.cache<0>
      -> !kvp.tensor<[head, group, query:2, channel], f32>
    %m = kvp.reduce mean %q over ["head", "group", "query", "channel"]
      : !kvp.tensor<[head, group, query:2, channel], f32> -> !kvp.tensor<[], f32>
    %y = kvp.map add(%x, %m) : (!kvp.tensor<[token], f32>, !kvp.tensor<[], f32>)
      -> !kvp.tensor<[token], f32>
    %layer = kvp.dim layer %cache : !kvp.cache<0>
    %zero = arith.constant 0 : i64
    %first = kvp.map eq(%layer, %zero) : (i64, i64) -> i1
    %s = kvp.map where(%first, %x, %y)
      : (i1, !kvp.tensor<[token], f32>, !kvp.tensor<[token], f32>) -> !kvp.tensor<[token], f32>)";
  Program program(body, kType);
  expectNear(program.score(lineOf({3, 4})), {3, 4});
}

/// The host scalar `%h` at every token.
std::vector<float> host(const std::string &lines, const std::string &type) {
  std::string body = kLine;
  body += R"(
    %nought = arith.constant 0.0 : f64
    %zeros = kvp.map mul(%x, %nought) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], f32>
    )" + lines +
          "\n%f = kvp.map float(%h) : (" + type + R"() -> f64
    %s = kvp.map add(%zeros, %f) : (!kvp.tensor<[token], f32>, f64) -> !kvp.tensor<[token], f32>)";
  return Program(body, kType).score(lineOf({0}));
}

TEST(Elementwise, hostScalarsAreDoubles) {
  // In f32 the difference would be lost.
  expectNear(host(R"(%a = arith.constant 16777217.0 : f64
                     %b = arith.constant 16777216.0 : f64
                     %h = kvp.map sub(%a, %b) : (f64, f64) -> f64)",
                  "f64"),
             {1});
  expectNear(host(R"(%a = arith.constant 7 : i64
                     %b = arith.constant 2 : i64
                     %h = kvp.map div(%a, %b) : (i64, i64) -> f64)",
                  "f64"),
             {3.5});
  expectNear(host(R"(%a = arith.constant -7 : i64
                     %b = arith.constant 2 : i64
                     %h = kvp.map mod(%a, %b) : (i64, i64) -> i64)",
                  "i64"),
             {1});
  expectNear(host(R"(%a = arith.constant 3.5 : f64
                     %h = kvp.map round(%a) : (f64) -> i64)",
                  "i64"),
             {4});
}

} // namespace
