// Calls: what is kept, strides, padding, and every refusal.
#include "Host.h"

#include <cmath>
#include <limits>
#include <numeric>

using namespace kvpc;
using namespace kvpc::test;

namespace {

TEST(Call, KeepsTheLast) {
  Floats keys({2, 3, 8, 4}), values({2, 3, 8, 5}, 1000);
  Call call;
  call.keys = keys.ref;
  call.values = values.ref;
  Outputs out;
  ASSERT_EQ(textOf(out.call(bound("last", {{"keep", Value::ofInt(3)}}), call)), "ok");
  EXPECT_EQ(call.sizes.kept, 3);
  EXPECT_EQ(call.sizes.keptChannels, 4);
  for (int64_t task = 0; task < 6; ++task)
    for (int64_t n = 0; n < 3; ++n) {
      EXPECT_EQ(out.tokens.data[size_t(task * 3 + n)], 5 + n);
      EXPECT_EQ(out.keys->data[size_t((task * 3 + n) * 4 + 1)], float((task * 8 + 5 + n) * 4 + 1));
      EXPECT_EQ(out.values->data[size_t((task * 3 + n) * 5 + 2)],
                float(1000 + (task * 8 + 5 + n) * 5 + 2));
    }
  EXPECT_EQ(out.lengths.data, std::vector<int64_t>(6, 3));
}

TEST(Call, PaddingOnBothSides) {
  Floats keys({3, 1, 6, 2}), values({3, 1, 6, 2});
  const int64_t lengths[] = {6, 0, 3};
  for (bool right : {false, true}) {
    Call call;
    call.keys = keys.ref;
    call.values = values.ref;
    call.lengths = lengths;
    call.padRight = right;
    Outputs out;
    ASSERT_EQ(textOf(out.call(bound("last"), call)), "ok");
    EXPECT_EQ(call.sizes.kept, 3);
    std::vector<int64_t> tokens = {3, 4, 5, -1, -1, -1, right ? 2 : 5, -1, -1};
    EXPECT_EQ(out.tokens.data, tokens);
    EXPECT_EQ(out.lengths.data, (std::vector<int64_t>{3, 0, 1}));
    EXPECT_EQ(out.keys->data[6], 0); // a row that keeps nothing is zero
  }
}

TEST(Call, StridesOfAnyKind) {
  // [batch, token, head, channel] seen as [batch, head, token, channel], with a gap after channels.
  Floats storage({2, 8, 3, 6});
  TensorRef view = storage.ref;
  std::swap(view.size[1], view.size[2]);
  std::swap(view.stride[1], view.stride[2]);
  view.size[3] = 4;
  Call call;
  call.keys = call.values = view;
  Outputs out;
  ASSERT_EQ(textOf(out.call(bound("last", {{"keep", Value::ofInt(1)}}), call)), "ok");
  for (int64_t row = 0; row < 2; ++row)
    for (int64_t head = 0; head < 3; ++head)
      EXPECT_EQ(out.keys->data[size_t((row * 3 + head) * 4)],
                float(((row * 8 + 7) * 3 + head) * 6));
}

TEST(Call, InPlace) {
  Floats keys({2, 2, 6, 3}), values({2, 2, 6, 3}, 500);
  auto before = keys.data;
  Call call;
  call.keys = keys.ref;
  call.values = values.ref;
  BoundPress press = bound("last", {{"keep", Value::ofInt(2)}});
  Outputs out;
  ASSERT_EQ(textOf(press.plan(call)), "ok");
  call.outKeys = call.keys;
  call.outValues = call.values;
  call.outKeys.size[2] = call.outValues.size[2] = 2;
  ASSERT_EQ(textOf(out.call(press, call)), "ok");
  for (size_t head = 0; head < 4; ++head)
    for (size_t n = 0; n < 6; ++n)
      EXPECT_EQ(keys.data[head * 18 + n], before[head * 18 + 12 + n]);
}

TEST(Call, Scores) {
  Floats keys({2, 1, 4, 2}), values({2, 1, 4, 2});
  const int64_t lengths[] = {4, 2};
  Call call;
  call.keys = keys.ref;
  call.values = values.ref;
  call.lengths = lengths;
  call.scores = true;
  Outputs out;
  ASSERT_EQ(textOf(out.call(bound("last"), call)), "ok");
  EXPECT_EQ(call.scoreShape, (std::vector<int64_t>{2, 1, 4}));
  EXPECT_EQ(out.scores[3], 3);
  EXPECT_TRUE(std::isnan(out.scores[4]) && std::isnan(out.scores[5]));
  EXPECT_EQ(out.scores[6], 0);
  EXPECT_EQ(out.isProtected, (std::vector<uint8_t>{0, 0, 0, 1, 0, 0, 0, 1}));
  EXPECT_EQ(textOf(out.call(bound("positive"), call)),
            "the first stage of `positive` has no score; it selects by a condition "
            "[kvm-unsupported]");
}

/// The score of `window`: the sum of channel 0 of the queries used, times key channel 0.
float windowScore(int64_t queries, int64_t length) {
  Floats keys({1, 1, 6, 2}, 1, 0), values({1, 1, 6, 2}), q({1, 2, queries, 2});
  Call call;
  call.keys = keys.ref;
  call.values = values.ref;
  call.queries = q.ref;
  call.lengths = &length;
  call.scores = true;
  Outputs out;
  EXPECT_EQ(textOf(out.call(bound("window"), call)), "ok");
  return out.scores[5];
}

TEST(Call, TheLastQueriesAreUsed) {
  // Channel 0 of query q of head h is 2 (h * queries + q).
  EXPECT_EQ(windowScore(4, 6), 2 * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7));
  EXPECT_EQ(windowScore(6, 6), 2 * (2 + 3 + 4 + 5 + 8 + 9 + 10 + 11));
  EXPECT_EQ(windowScore(6, 1), 2 * (5 + 11));        // a row shorter than the window
  EXPECT_EQ(windowScore(2, 2), 2 * (0 + 1 + 2 + 3)); // queries for the row's length are enough
}

class Refusals : public testing::Test {
protected:
  Floats keys{{2, 2, 6, 4}}, values{{2, 2, 6, 4}}, q{{2, 4, 4, 4}};
  Call call;

  void SetUp() override {
    call.keys = keys.ref;
    call.values = values.ref;
  }
  std::string plan(std::string_view name) { return textOf(bound(name).plan(call)); }
};

TEST_F(Refusals, Shapes) {
  call.keys.rank = 3;
  EXPECT_EQ(plan("last"),
            "`keys` has shape [2, 2, 6]; need [batch, head, token, channel] [kvm-shape]");
  call.keys = keys.ref;
  call.values.size[2] = 5;
  EXPECT_NE(plan("last").find("the batch, heads and tokens of `keys`, [2, 2, 6, 4]"),
            std::string::npos);
  call.values = values.ref;
  call.keys.size[2] = call.values.size[2] = 0;
  EXPECT_NE(plan("last").find("at least one token"), std::string::npos);
  call.keys = keys.ref;
  call.values = TensorRef();
  EXPECT_NE(plan("last").find("`values` is not given"), std::string::npos);
}

TEST_F(Refusals, StridesAndTypes) {
  call.keys.stride[3] = 2;
  EXPECT_NE(plan("last").find("the channels of `keys` are not contiguous"), std::string::npos);
  call.keys = keys.ref;
  call.values.element = Element::BF16;
  EXPECT_EQ(plan("last"), "`values` is bf16, `keys` are f32; all must have one dtype: convert "
                          "`values` [kvm-dtype]");
  call.keys.element = call.values.element = Element::F64;
  EXPECT_NE(plan("last").find("`keys` are f64; need `f32`"), std::string::npos);
  call.keys.element = call.values.element = Element::F16;
  EXPECT_EQ(plan("last"),
            "`keys` are f16; the module has code for `f32`, `bf16`; convert the cache, or "
            "compile the press with `--dtype=f16` [kvm-dtype]");
}

TEST_F(Refusals, Inputs) {
  EXPECT_EQ(plan("window"), "`window` needs `queries` (used at window.kv:3:13), which is not given "
                            "[kvm-missing-input]");
  call.queries = q.ref;
  EXPECT_EQ(plan("window"), "ok");
  EXPECT_EQ(plan("last"), "`last` does not use `queries`; leave it out [kvm-extra-input]");
  call.queries.size[2] = 3;
  EXPECT_EQ(plan("window"),
            "`queries` has 3 queries; `window` needs the last 4 (used at window.kv:3:13); give "
            "them, each row's ending at its last token [kvm-shape]");
  call.queries = q.ref;
  call.queries.size[1] = 3;
  EXPECT_NE(plan("window").find("a multiple of 2 heads"), std::string::npos);
}

TEST_F(Refusals, Rows) {
  int64_t lengths[] = {6, 7};
  call.lengths = lengths;
  EXPECT_EQ(plan("last"), "`lengths` has 7 in row 1; need 0..6, the tokens of `keys` [kvm-shape]");
  lengths[1] = -1;
  EXPECT_NE(plan("last").find("`lengths` has -1"), std::string::npos);
  lengths[1] = 4;
  const int64_t seen[] = {6, 3};
  call.seen = seen;
  EXPECT_NE(plan("last").find("`seen` has 3 in row 1; need at least its length, 4"),
            std::string::npos);
  call.seen = nullptr;
  // Of real entries positions ascend below `seen`; those of padding say nothing.
  Int64s positions;
  positions.resize({2, 6});
  positions.data = {0, 1, 2, 3, 4, 5, 9, 9, 0, 1, 2, 3};
  call.originalPositions = positions.ref;
  EXPECT_EQ(plan("last"), "ok");
  positions.data[9] = 0;
  EXPECT_EQ(plan("last"), "`original_positions` has 0 after 0 in row 1; need ascending ones of "
                          "0..3; give `seen` if more were cached [kvm-shape]");
  positions.data[9] = 1;
  positions.data[5] = 6;
  EXPECT_NE(plan("last").find("`original_positions` has 6 after 4 in row 0"), std::string::npos);
  const int64_t more[] = {7, 4};
  call.seen = more;
  EXPECT_EQ(plan("last"), "ok");
  call.seen = nullptr;
  call.originalPositions = TensorRef();
  call.layer = 1;
  EXPECT_NE(plan("last").find("need 0 <= `layer` < `layers`"), std::string::npos);
}

TEST_F(Refusals, OfThePressItself) {
  call.queries = q.ref;
  auto press = fake()->press("window")->bind({{"gain", Value::ofInt(7)}});
  EXPECT_EQ(textOf(press->plan(call)), "`gain` may not be 7 [kvm-require]");
  call.queries = TensorRef();
  call.scale = std::nan("");
  EXPECT_NE(plan("last").find("`scale` is NaN"), std::string::npos);
  call.scale = std::numeric_limits<double>::infinity();
  EXPECT_NE(plan("last").find("`scale` is infinite as f32"), std::string::npos);
}

TEST_F(Refusals, Weights) {
  auto press = fake()->press("weighted")->bind(*parseArguments(R"({"ratios": 0.5})"));
  ASSERT_TRUE(bool(press));
  EXPECT_NE(textOf(press->plan(call)).find("needs the tensor `filter`"), std::string::npos);
  Floats filter({2, 4}), wrong({3, 4});
  call.weights = {wrong.ref};
  EXPECT_EQ(textOf(press->plan(call)),
            "`filter` has shape [3, 4]; need [head 2, channel 4] at a layer, and `layer` as well "
            "in what is given [kvm-shape]");
  call.weights = {filter.ref};
  EXPECT_EQ(textOf(press->plan(call)), "ok");
  call.weights[0].element = Element::BF16;
  EXPECT_NE(textOf(press->plan(call)).find("need `f32`"), std::string::npos);
  call.weights = {filter.ref, filter.ref};
  EXPECT_NE(textOf(press->plan(call)).find("2 weights; `weighted` has 1"), std::string::npos);
  call.weights = {filter.ref};
  press = fake()->press("weighted")->bind(*parseArguments(R"({"ratios": [0.5, 0.5]})"));
  EXPECT_NE(
      textOf(press->plan(call)).find("`ratios` has 2 values; need one a layer, `layers` is 1"),
      std::string::npos);
}

TEST_F(Refusals, RunWithoutPlan) {
  EXPECT_NE(textOf(bound("last").run(call)).find("`run` needs a call that `plan` accepted"),
            std::string::npos);
  EXPECT_EQ(plan("last"), "ok");
  EXPECT_NE(textOf(bound("last").run(call)).find("the output `keys`"), std::string::npos);
}

TEST(Reuse, AFollowerTakesTheLeadersChoice) {
  Floats keys({1, 2, 6, 4}), values({1, 2, 6, 4}), up({1, 2, 1, 4}, 1), down({1, 2, 1, 4}, -9);
  BoundPress press = bound("shared", {{"keep", Value::ofInt(2)}});
  EXPECT_FALSE(press.follows(0));
  EXPECT_TRUE(press.follows(3));
  for (bool first : {true, false}) {
    Call leader;
    leader.keys = keys.ref;
    leader.values = values.ref;
    leader.queries = first ? up.ref : down.ref;
    leader.layer = 2;
    leader.layers = 4;
    Outputs out;
    ASSERT_EQ(textOf(out.call(press, leader)), "ok");

    Call follower;
    follower.keys = keys.ref;
    follower.values = values.ref;
    follower.layer = 3;
    follower.layers = 4;
    follower.state = leader.state;
    follower.stateSize = leader.stateSize;
    Outputs taken;
    ASSERT_EQ(textOf(taken.call(press, follower)), "ok");
    EXPECT_EQ(taken.tokens.data, out.tokens.data);
    EXPECT_EQ(taken.tokens.data[0], first ? 0 : 4);

    // Whose real tokens stand elsewhere takes nothing.
    int64_t lengths[] = {6 - 2};
    follower.lengths = lengths;
    EXPECT_EQ(
        textOf(press.plan(follower)),
        "layer 3 takes the choice of layer 2, whose rows had other `lengths` or padding; give "
        "both layers the same [kvm-state]");
    follower.lengths = nullptr;

    // Nor whose tokens were first cached elsewhere, but for positions that are those counted.
    Int64s positions;
    positions.resize({1, 2, 6});
    for (int64_t i = 0; i < 12; ++i)
      positions.data[size_t(i)] = i % 6;
    follower.originalPositions = positions.ref;
    EXPECT_EQ(textOf(press.plan(follower)), "ok");
    positions.data[11] = 7;
    int64_t seen[] = {8};
    follower.seen = seen;
    std::string text =
        "layer 3 takes the choice of layer 2, whose tokens had other `original_positions` or "
        "`seen`; give both layers the same [kvm-state]";
    EXPECT_EQ(textOf(press.plan(follower)), text);
    leader.originalPositions = positions.ref;
    leader.seen = seen;
    ASSERT_EQ(textOf(out.call(press, leader)), "ok");
    follower.state = leader.state;
    EXPECT_EQ(textOf(press.plan(follower)), "ok");
    follower.originalPositions = {};
    follower.seen = nullptr;
    EXPECT_EQ(textOf(press.plan(follower)), text);
    follower.layers = 5;
    EXPECT_EQ(textOf(press.plan(follower)),
              "layer 3 takes the choice of layer 2 of 4, but `layers` is 5; give all layers of a "
              "model the same [kvm-state]");
  }
}

TEST(Reuse, RefusesAnotherState) {
  Floats keys({1, 2, 6, 4}), values({1, 2, 6, 4}), queries({1, 2, 1, 4});
  BoundPress press = bound("shared");
  Call call;
  call.keys = keys.ref;
  call.values = values.ref;
  call.layers = 4;
  call.layer = 1;
  std::string remedy = "; give one state to the calls of all layers of a forward pass, in order "
                       "[kvm-state]";
  EXPECT_EQ(textOf(press.plan(call)),
            "layer 1 takes the choice of layer 0, but no state is given" + remedy);
  Aligned memory;
  call.state = memory.resize(256);
  call.stateSize = 256;
  std::memset(call.state, 0, 256);
  EXPECT_NE(textOf(press.plan(call)).find("but the state is empty"), std::string::npos);

  call.layer = 0;
  call.queries = queries.ref;
  Outputs out;
  ASSERT_EQ(textOf(out.call(press, call)), "ok");
  Call follower;
  follower.keys = keys.ref;
  follower.values = values.ref;
  follower.layers = 4;
  follower.layer = 3;
  follower.state = call.state;
  follower.stateSize = call.stateSize;
  EXPECT_NE(textOf(press.plan(follower)).find("but the state is of layer 0"), std::string::npos);
  follower.layer = 1;
  follower.keys.size[2] = follower.values.size[2] = 5;
  EXPECT_NE(textOf(press.plan(follower)).find("6 tokens, but `keys` have shape [1, 2, 5, 4]"),
            std::string::npos);
  follower.keys.size[2] = follower.values.size[2] = 6;
  follower.scores = true;
  EXPECT_NE(textOf(press.plan(follower)).find("scores nothing"), std::string::npos);
}

TEST(Call, EverythingArrives) {
  Floats keys({1, 2, 5, 4}), values({1, 2, 5, 4}), hidden({1, 7, 3}, 0, 0.5f);
  Floats unrotated({1, 4, 3, 4}, 0, 100), weight({3, 16}, 0, 10000);
  Call call;
  call.keys = keys.ref;
  call.values = values.ref;
  call.hidden = hidden.ref;
  call.unrotatedQueries = unrotated.ref;
  call.outputWeight = weight.ref;
  call.ropeFrequencies = {1, 0.25};
  call.ropeScaling = 2;
  call.scale = 3;
  const int64_t seen[] = {70};
  call.seen = seen;
  call.scores = true;
  Outputs out;
  ASSERT_EQ(textOf(out.call(bound("everything"), call)), "ok");
  // hidden row 6 channel 0, query head 3 (head 1, group 1) query 2, weight feature 2 of head 1,
  // group 1, channel 3; scale, last frequency, scaling, seen, position 4.
  float expected =
      0.5f * 18 + 100 * (3 * 3 + 2) * 4 + 10000 * (2 * 16 + 15) + 3 + 0.25f + 2 + 70 + 4;
  EXPECT_EQ(out.scores[9], expected);

  Floats split({2, 2, 4, 3}, 0, 10000); // the same as [head, group, channel, feature]
  call.outputWeight = split.ref;
  ASSERT_EQ(textOf(out.call(bound("everything"), call)), "ok");
  EXPECT_EQ(out.scores[9], expected);
  Int64s positions;
  positions.resize({1, 5});
  std::iota(positions.data.begin(), positions.data.end(), 10);
  call.originalPositions = positions.ref;
  ASSERT_EQ(textOf(out.call(bound("everything"), call)), "ok");
  EXPECT_EQ(out.scores[9], expected + 10);
}

} // namespace
