//===- RotaryTest.cpp - turns by the model's rotary embedding ---------------------------------===//
#include "test/Reference/Program.h"

using namespace kvpc::test;

namespace {

/// One head; `tokens` keys of five channels, of which four turn: 0 with 2 and 1 with 3, or
/// neighbours.
Row turning(int64_t tokens, bool interleaved = false, double scaling = 1) {
  std::vector<float> keys;
  for (int64_t i = 0; i < 5 * tokens; ++i)
    keys.push_back(static_cast<float>(i % 7) - 2.5f);
  Row row = rowOf(1, tokens, 5, keys);
  row.rope = Rope{{1, 0.25}, scaling, interleaved};
  return row;
}

const std::string kKeys = R"(
  %k = kvp.input keys of %cache : <0> -> <[head, token, channel], f32>
)";
const std::string kType = "!kvp.tensor<[head, token, channel], f32>";

/// Key `token` of a row, turned by `position`.
std::vector<float> turnedBy(const Row &row, int64_t token, double position) {
  const float *k = &row.keys.floats[token * 5];
  std::vector<float> out(k, k + 5);
  for (int pair = 0; pair < 2; ++pair) {
    int a = row.rope->interleaved ? 2 * pair : pair;
    int b = row.rope->interleaved ? a + 1 : a + 2;
    double angle = position * row.rope->frequencies[pair], s = row.rope->scaling;
    out[a] = static_cast<float>(s * (k[a] * std::cos(angle) - k[b] * std::sin(angle)));
    out[b] = static_cast<float>(s * (k[b] * std::cos(angle) + k[a] * std::sin(angle)));
  }
  return out;
}

TEST(Rotary, byAPositionOfTheHost) {
  Program program(kKeys + "%s = kvp.rotate %k by %n : <[head, token, channel], f32>, i64 -> "
                          "<[head, token, channel], f32>",
                  kType, "%n: i64");
  for (bool interleaved : {false, true})
    for (int64_t position : {0, 3, -7, 100000, 1 << 30}) {
      Row row = turning(1, interleaved, 1.5);
      expectNear(program.score(row, {position}), turnedBy(row, 0, position));
    }
}

TEST(Rotary, byThePositionsOfTokens) {
  Program program(kKeys + R"(
    %p = kvp.position %cache : <0> -> <[token], i64>
    %s = kvp.rotate %k by %p : <[head, token, channel], f32>, !kvp.tensor<[token], i64>
      -> <[head, token, channel], f32>)",
                  kType);
  Row row = turning(3);
  std::vector<float> wanted;
  for (int64_t token = 0; token < 3; ++token)
    for (float x : turnedBy(row, token, token))
      wanted.push_back(x);
  expectNear(program.score(row), wanted);
}

TEST(Rotary, averagedOverPositions) {
  Program program(kKeys + R"(
    %i = kvp.iota "ahead" : 3 -> <[ahead:3], i64>
    %t = kvp.map add(%i, %n) : (!kvp.tensor<[ahead:3], i64>, i64) -> !kvp.tensor<[ahead:3], i64>
    %s = kvp.rotate %k by %t mean ["ahead"] : <[head, token, channel], f32>,
      !kvp.tensor<[ahead:3], i64> -> <[head, token, channel], f32>)",
                  kType, "%n: i64");
  Row row = turning(1);
  std::vector<float> wanted(5);
  for (int64_t i = 0; i < 3; ++i)
    for (int c = 0; c < 5; ++c)
      wanted[c] += turnedBy(row, 0, 100 + i)[c] / 3;
  expectNear(program.score(row, {int64_t(100)}), wanted);
}

TEST(Rotary, tablesAndPartnersMakeATurn) {
  std::string text = kKeys;
  for (std::string wave : {"cos", "sin"})
    text += "%" + wave + " = kvp.rotary " + wave +
            R"( of %n along "channel" of %k : i64, <[head, token, channel], f32>
                -> <[channel], f32>)";
  text += R"(
    %p = kvp.pair %k along "channel" : <[head, token, channel], f32>
      -> <[head, token, channel], f32>
    %a = kvp.map mul(%k, %cos) : (!kvp.tensor<[head, token, channel], f32>,
      !kvp.tensor<[channel], f32>) -> !kvp.tensor<[head, token, channel], f32>
    %b = kvp.map mul(%p, %sin) : (!kvp.tensor<[head, token, channel], f32>,
      !kvp.tensor<[channel], f32>) -> !kvp.tensor<[head, token, channel], f32>
    %s = kvp.map add(%a, %b) : (!kvp.tensor<[head, token, channel], f32>,
      !kvp.tensor<[head, token, channel], f32>) -> !kvp.tensor<[head, token, channel], f32>)";
  Program program(text, kType, "%n: i64");
  for (bool interleaved : {false, true}) {
    Row row = turning(1, interleaved, 0.75);
    expectNear(program.score(row, {int64_t(11)}), turnedBy(row, 0, 11), 1e-6f);
  }
}

TEST(Rotary, keysBeforeTheModelTurnedThem) {
  Program turned(kKeys + R"(
    %p = kvp.position original %cache : <0> -> <[token], i64>
    %s = kvp.rotate %k by %p : <[head, token, channel], f32>, !kvp.tensor<[token], i64>
      -> <[head, token, channel], f32>)",
                 kType);
  Program back("%s = kvp.input unrotated_keys of %cache : <0> -> <[head, token, channel], f32>",
               kType);
  for (bool interleaved : {false, true}) {
    Row row = turning(3, interleaved, 1.25);
    row.seen = 100;
    row.originalPositions = Tensor::ofInts({{"head", 1}, {"token", 3}}, {2, 40, 99});
    Row after = row;
    after.keys.floats = turned.score(row);
    expectNear(back.score(after), row.keys.floats, 2e-6f);
  }
}

TEST(Rotary, needsWhatTheModelSays) {
  Program program(kKeys + "%s = kvp.rotate %k by %n : <[head, token, channel], f32>, i64 -> "
                          "<[head, token, channel], f32>",
                  kType, "%n: i64");
  Row row = turning(1);
  row.rope.reset();
  auto none = score(program.press(), row, {int64_t(1)});
  EXPECT_EQ(llvm::toString(none.takeError()),
            "the press needs `rope`: give the inverse frequencies of the model");
  row.rope = Rope{{1, 1, 1}};
  auto wide = score(program.press(), row, {int64_t(1)});
  EXPECT_EQ(llvm::toString(wide.takeError()), "`rope` turns 6 channels, what is turned has 5");
}

TEST(Rotary, quadraticForm) {
  Program program(kKeys + R"(
    %s = kvp.form %k along "channel", %m along "channel", "channel'" : <[head, token, channel], f32>,
      <[head, channel, "channel'"], f32> -> <[head, token], f32>)",
                  "!kvp.tensor<[head, token], f32>",
                  "%m: !kvp.tensor<[head, channel, \"channel'\"], f32>");
  Row row = rowOf(1, 2, 2, {1, 2, 3, -1});
  Tensor matrix =
      Tensor::ofFloats({{"head", 1}, {"channel", 2}, {"channel'", 2}}, {1, 10, 100, 1000});
  expectNear(program.score(row, {matrix}), {1 + 220 + 4000, 9 - 330 + 1000});
}

} // namespace
