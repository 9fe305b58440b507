//===- SelectionsTest.cpp - budgets, topk, mask, shared choices, requirements -----------------===//
#include "test/Reference/Program.h"

using namespace kvpc::test;

namespace {

const std::string kScore = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %x = kvp.reduce sum %k over ["channel"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token], f32>
)";
const std::string kLeft = "%left : !kvp.cache<1>";
const std::string kTopk = R"(
    %left = kvp.topk %cache by %x keep %n
      : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>)";

TEST(Budget, kept) {
  EXPECT_EQ((Budget{0.5}).of(7), 3);
  EXPECT_EQ((Budget{0.1}).of(10), 9);
  EXPECT_EQ((Budget{0.999}).of(10), 1); // at least one
  EXPECT_EQ((Budget{std::nullopt, 4}).of(7), 4);
  EXPECT_EQ((Budget{std::nullopt, 9}).of(7), 7);
  EXPECT_EQ((Budget{std::nullopt, 0}).of(7), 1);
  EXPECT_EQ((Budget{0.5}).of(0), 0);
  EXPECT_EQ((Budget{0.5}).share(7), 3.5);
  EXPECT_EQ((Budget{std::nullopt, 9}).share(7), 9);
}

TEST(Budget, operations) {
  std::string body = kScore + R"(
    %length = kvp.dim length %cache : !kvp.cache<0>
    %made = kvp.budget %f : f64
    %a = kvp.budget_of %made of %length
    %drop = kvp.budget_is_drop %b
    %share = kvp.budget_share %b of %length
    %i = kvp.map int(%share) : (f64) -> i64
    %n = kvp.map where(%drop, %a, %i) : (i1, i64, i64) -> i64)" +
                     kTopk;
  Program program(body, "", "%f: f64, %b: !kvp.budget", kLeft);
  Row row = lineOf({1, 2, 3, 4});
  EXPECT_EQ(program.select(row, {0.75, Budget{0.1}}).tokens[0], (std::vector<int64_t>{3}));
  EXPECT_EQ(program.select(row, {0.75, Budget{std::nullopt, 2}}).tokens[0],
            (std::vector<int64_t>{2, 3}));
}

TEST(Topk, eachHeadChoosesItsOwn) {
  Program program(kScore + kTopk, "", "%n: i64", kLeft);
  Kept kept = program.select(rowOf(2, 3, 1, {1, 3, 2, 5, 4, 3}), {int64_t(2)});
  EXPECT_EQ(kept.tokens, (Sets{{1, 2}, {0, 1}}));
  EXPECT_FALSE(kept.channels);
}

TEST(Topk, headlessScoreChoosesForAll) {
  std::string body = kLine + R"(
    %left = kvp.topk %cache by %x keep %n
      : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>)";
  Program program(body, "", "%n: i64", kLeft);
  EXPECT_EQ(program.select(rowOf(2, 3, 1, {1, 3, 2, 5, 0, 0}), {int64_t(1)}).tokens,
            (Sets{{0}, {0}}));
}

TEST(Topk, protectedFirst) {
  std::string body = kLine + R"(
    %one = arith.constant 1 : i64
    %p = kvp.position %cache : !kvp.cache<0> -> !kvp.tensor<[token], i64>
    %first = kvp.map lt(%p, %one) : (!kvp.tensor<[token], i64>, i64) -> !kvp.tensor<[token], i1>
    %left = kvp.topk %cache by %x keep %n protect %first : !kvp.tensor<[token], i1>
      : !kvp.cache<0>, !kvp.tensor<[token], f32> -> !kvp.cache<1>)";
  Program program(body, "", "%n: i64", kLeft);
  EXPECT_EQ(program.select(lineOf({-9, 3, kInf, 2}), {int64_t(2)}).tokens[0],
            (std::vector<int64_t>{0, 2}));
}

TEST(Topk, parts) {
  std::string body = kLine + R"(
    %p = kvp.partition %x along "token" size 2 : !kvp.tensor<[token], f32>
      -> !kvp.tensor<[part, slot:2], f32>
    %m = kvp.reduce mean %p over ["slot"] : !kvp.tensor<[part, slot:2], f32>
      -> !kvp.tensor<[part], f32>
    %left = kvp.topk %cache by %m keep %n part_size 2
      : !kvp.cache<0>, !kvp.tensor<[part], f32> -> !kvp.cache<1>)";
  Program program(body, "", "%n: i64", kLeft);
  EXPECT_EQ(program.select(lineOf({1, 1, 5, 5, 3}), {int64_t(1)}).tokens[0],
            (std::vector<int64_t>{2, 3}));
  // The short last part is a part.
  EXPECT_EQ(program.select(lineOf({1, 1, 5, 5, 7}), {int64_t(2)}).tokens[0],
            (std::vector<int64_t>{2, 3, 4}));
}

TEST(Topk, channelsOfKeysAndQueries) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %x = kvp.reduce mean %k over ["token"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, channel], f32>
    %left = kvp.topk %cache by %x keep %n
      : !kvp.cache<0>, !kvp.tensor<[head, channel], f32> -> !kvp.cache<1>
    %q = kvp.input queries last 1 of %left : !kvp.cache<1>
      -> !kvp.tensor<[head, group, query:1, channel/1], f32>
    %k1 = kvp.input keys of %left : !kvp.cache<1>
      -> !kvp.tensor<[head, token/1, channel/1], f32>
    %d = kvp.dot %q, %k1 over "channel"
      : (!kvp.tensor<[head, group, query:1, channel/1], f32>,
         !kvp.tensor<[head, token/1, channel/1], f32>)
      -> !kvp.tensor<[head, group, query:1, token/1], f32>
    %v = kvp.input values of %left : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
    %w = kvp.reduce sum %v over ["channel"]
      : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head, token/1], f32>
    %y = kvp.reduce sum %d over ["group", "query"]
      : !kvp.tensor<[head, group, query:1, token/1], f32> -> !kvp.tensor<[head, token/1], f32>
    %s = kvp.map add(%y, %w)
      : (!kvp.tensor<[head, token/1], f32>, !kvp.tensor<[head, token/1], f32>)
      -> !kvp.tensor<[head, token/1], f32>
    %c = kvp.dim channels %left : !kvp.cache<1>)";
  Program program(body, "!kvp.tensor<[head, token/1], f32>", "%n: i64", kLeft);
  Row row = rowOf(2, 2, 3, {1, 9, 2, 1, 9, 3, 8, 1, 2, 8, 1, 3});
  row.queries = Tensor::ofFloats({{"head", 2}, {"group", 1}, {"query", 1}, {"channel", 3}},
                                 {100, 10, 1, 100, 10, 1});
  Kept kept = program.select(row, {int64_t(2)});
  EXPECT_EQ(*kept.channels, (Sets{{1, 2}, {0, 2}}));
  EXPECT_EQ(kept.tokens, (Sets{{0, 1}, {0, 1}}));
  // Values stay whole: minus the sum of all three channels.
  expectNear(program.score(row, {int64_t(2)}), {92 - 12, 93 - 13, 802 - 11, 803 - 12});
}

const std::string kJoint = kScore + R"(
    %left = kvp.topk %cache by %x keep %n joint at_least %a
      : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>)";

TEST(Topk, oneBudgetForAllHeads) {
  Program program(kJoint, "", "%n: i64, %a: f64", kLeft);
  Row row = rowOf(2, 4, 1, {9, 8, 7, 6, 5, 1, 2, 3});
  // Two of four for each head are four together; each keeps one of its own in any case.
  EXPECT_EQ(program.select(row, {int64_t(2), 0.0}).tokens, (Sets{{0, 1, 2}, {0}}));
  EXPECT_EQ(program.select(row, {int64_t(2), 0.99}).tokens, (Sets{{0, 1, 2}, {0}}));
  EXPECT_EQ(program.select(row, {int64_t(2), 1.0}).tokens, (Sets{{0, 1}, {0, 3}}));
  EXPECT_EQ(program.select(row, {int64_t(1), 0.0}).tokens, (Sets{{0}, {0}}));
  EXPECT_EQ(program.select(row, {int64_t(9), 0.5}).tokens, (Sets{{0, 1, 2, 3}, {0, 1, 2, 3}}));
}

TEST(Topk, equalEntriesOfHeads) {
  Program program(kJoint, "", "%n: i64, %a: f64", kLeft);
  // The earlier token, of equal tokens the earlier head; three of five for each.
  Row row = rowOf(3, 5, 1, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 9, 0});
  EXPECT_EQ(program.select(row, {int64_t(3), 0.0}).tokens, (Sets{{0, 1, 2, 3}, {0, 1, 2, 3}, {3}}));
  row = rowOf(2, 5, 1, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_EQ(program.select(row, {int64_t(2), 0.0}).tokens, (Sets{{0, 1}, {0, 1}}));
}

TEST(Topk, protectedEntriesOfHeads) {
  std::string body = kScore + R"(
    %p = kvp.position %cache : !kvp.cache<0> -> !kvp.tensor<[token], i64>
    %one = arith.constant 1 : i64
    %late = kvp.map lt(%one, %p) : (i64, !kvp.tensor<[token], i64>) -> !kvp.tensor<[token], i1>
    %left = kvp.topk %cache by %x keep %n joint protect %late : !kvp.tensor<[token], i1>
      : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>)";
  Program program(body, "", "%n: i64", kLeft);
  Row row = rowOf(2, 4, 1, {9, 8, 0, 0, 5, 1, 0, 0});
  EXPECT_EQ(program.select(row, {int64_t(2)}).tokens, (Sets{{2, 3}, {2, 3}}));
  EXPECT_EQ(program.select(row, {int64_t(3)}).tokens, (Sets{{0, 1, 2, 3}, {2, 3}}));
  // More than the budget: of equals the newest.
  EXPECT_EQ(program.select(row, {int64_t(1)}).tokens, (Sets{{3}, {3}}));
}

TEST(Topk, countsFromData) {
  std::string body = kScore + R"(
    %n = kvp.input values of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %m = kvp.reduce max %n over ["token", "channel"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head], f32>
    %i = kvp.map int(%m) : (!kvp.tensor<[head], f32>) -> !kvp.tensor<[head], i64>)";
  std::string separate = R"(
    %left = kvp.topk %cache by %x keep %i as !kvp.tensor<[head], i64>
      : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>)";
  std::string joint = R"(
    %left = kvp.topk %cache by %x keep %i as !kvp.tensor<[head], i64> joint
      : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>)";
  Row row = rowOf(3, 3, 1, {1, 3, 2, 5, 4, 3, 7, 8, 9});
  row.values = Tensor::ofFloats({{"head", 3}, {"token", 3}, {"channel", 1}},
                                {2, 0, 0, 0, -4, -2, 7, 0, 0}); // 2, 0 and 7
  EXPECT_EQ(Program(body + separate, "", "", kLeft).select(row).tokens,
            (Sets{{1, 2}, {0}, {0, 1, 2}}));
  // Six in all, of which each keeps one.
  EXPECT_EQ(Program(body + joint, "", "", kLeft).select(row).tokens,
            (Sets{{1}, {0, 1}, {0, 1, 2}}));
}

const std::string kMask = kScore + R"(
    %zero = arith.constant 0.0 : f64
    %c = kvp.map lt(%x, %zero) : (!kvp.tensor<[head, token], f32>, f64)
      -> !kvp.tensor<[head, token], i1>
    %left = kvp.mask %cache where %c
      : !kvp.cache<0>, !kvp.tensor<[head, token], i1> -> !kvp.cache<1>)";

TEST(Mask, keepsWhereTheConditionHolds) {
  Program program(kMask, "", "", kLeft);
  EXPECT_EQ(program.select(rowOf(2, 3, 1, {-1, 1, -1, 1, -1, 1})).tokens, (Sets{{0, 2}, {1}}));
  // Nothing holds in the second head: its newest stays.
  EXPECT_EQ(program.select(rowOf(2, 3, 1, {-1, -1, 1, 1, 1, 1})).tokens, (Sets{{0, 1}, {2}}));
}

TEST(Mask, laterStagesSeeRaggedHeads) {
  std::string body = kMask + R"(
    %k1 = kvp.input keys of %left : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
    %y = kvp.reduce sum %k1 over ["channel"]
      : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head, token/1], f32>
    %m = kvp.reduce mean %y over ["token"]
      : !kvp.tensor<[head, token/1], f32> -> !kvp.tensor<[head], f32>
    %s = kvp.map sub(%y, %m) : (!kvp.tensor<[head, token/1], f32>, !kvp.tensor<[head], f32>)
      -> !kvp.tensor<[head, token/1], f32>
    %n = kvp.dim length %left : !kvp.cache<1>
    %one = arith.constant 1 : i64
    %less = kvp.map sub(%n, %one) : (i64, i64) -> i64
    %end = kvp.topk %left by %s keep %less
      : !kvp.cache<1>, !kvp.tensor<[head, token/1], f32> -> !kvp.cache<2>)";
  Program program(body, "", "", "%end : !kvp.cache<2>");
  // Three and one entries are left; two of each are asked for.
  EXPECT_EQ(program.select(rowOf(2, 4, 1, {-3, -1, -2, 1, 1, -5, 1, 1})).tokens,
            (Sets{{1, 2}, {1}}));
}

TEST(Mask, raggedHeadsShareWhatEachWouldKeep) {
  std::string body = kMask + R"(
    %k1 = kvp.input keys of %left : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
    %y = kvp.reduce sum %k1 over ["channel"]
      : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head, token/1], f32>
    %n = kvp.dim length %left : !kvp.cache<1>
    %half = kvp.budget_of %budget of %n
    %end = kvp.topk %left by %y keep %half joint
      : !kvp.cache<1>, !kvp.tensor<[head, token/1], f32> -> !kvp.cache<2>)";
  Program program(body, "", "%budget: !kvp.budget", "%end : !kvp.cache<2>");
  // Half of four and of two: three, of which each head keeps one.
  EXPECT_EQ(program.select(rowOf(2, 4, 1, {-1, -2, -3, -4, -9, 1, -8, 1}), {Budget{0.5}}).tokens,
            (Sets{{0, 1}, {2}}));
}

TEST(Mask, lengthIsThatOfEachHead) {
  std::string body = kMask + R"(
    %k1 = kvp.input keys of %left : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
    %y = kvp.reduce sum %k1 over ["channel"]
      : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head, token/1], f32>
    %n = kvp.dim length %left : !kvp.cache<1>
    %one = arith.constant 1 : i64
    %newest = kvp.map sub(%n, %one) : (i64, i64) -> i64
    %p = kvp.position %left : !kvp.cache<1> -> !kvp.tensor<[token/1], i64>
    %last = kvp.map eq(%p, %newest) : (!kvp.tensor<[token/1], i64>, i64)
      -> !kvp.tensor<[token/1], i1>
    %half = kvp.budget_of %budget of %n
    %end = kvp.topk %left by %y keep %half protect %last : !kvp.tensor<[token/1], i1>
      : !kvp.cache<1>, !kvp.tensor<[head, token/1], f32> -> !kvp.cache<2>)";
  Program program(body, "", "%budget: !kvp.budget", "%end : !kvp.cache<2>");
  // Of four entries two, the newest among them; of two one, the newest.
  EXPECT_EQ(program.select(rowOf(2, 4, 1, {-1, -2, -3, -4, -1, 1, -2, 1}), {Budget{0.5}}).tokens,
            (Sets{{0, 3}, {2}}));
}

TEST(Mask, meanOfRaggedHeads) {
  std::string body = kMask + R"(
    %k1 = kvp.input keys of %left : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
    %s = kvp.reduce mean %k1 over ["token", "channel"]
      : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head], f32>)";
  Program program(body, "!kvp.tensor<[head], f32>", "", kLeft);
  expectNear(program.score(rowOf(2, 4, 1, {-3, -1, -2, 1, 1, -5, 1, 1})), {-2, -5});
}

TEST(Topk, composedSelections) {
  std::string body = kScore + kTopk + R"(
    %v = kvp.input values of %left : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
    %y = kvp.reduce sum %v over ["channel"]
      : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head, token/1], f32>
    %one = arith.constant 1 : i64
    %end = kvp.topk %left by %y keep %one
      : !kvp.cache<1>, !kvp.tensor<[head, token/1], f32> -> !kvp.cache<2>)";
  Program program(body, "", "%n: i64", "%end : !kvp.cache<2>");
  // The three highest, of them the lowest.
  EXPECT_EQ(program.select(lineOf({1, 5, 2, 4, 3}), {int64_t(3)}).tokens[0],
            (std::vector<int64_t>{4}));
}

const std::string kReuse = kScore + R"(
    %q = kvp.input queries last 1 of %cache : !kvp.cache<0>
      -> !kvp.tensor<[head, group, query:1, channel], f32>
    %d = kvp.dot %q, %k over "channel"
      : (!kvp.tensor<[head, group, query:1, channel], f32>,
         !kvp.tensor<[head, token, channel], f32>)
      -> !kvp.tensor<[head, group, query:1, token], f32>
    %y = kvp.reduce sum %d over ["group", "query"]
      : !kvp.tensor<[head, group, query:1, token], f32> -> !kvp.tensor<[head, token], f32>
    %left = kvp.topk %cache by %y keep %n reuse 2
      : !kvp.cache<0>, !kvp.tensor<[head, token], f32> -> !kvp.cache<1>)";

TEST(Reuse, followersNeedNoInputs) {
  Program program(kReuse, "", "%n: i64", kLeft);
  Row leader = lineOf({1, 3, 2});
  leader.layer = 4;
  leader.queries = Tensor::ofFloats({{"head", 1}, {"group", 1}, {"query", 1}, {"channel", 1}}, {1});
  State state;
  EXPECT_EQ(program.select(leader, {int64_t(2)}, &state).tokens[0], (std::vector<int64_t>{1, 2}));
  Row follower = lineOf({9, 1, 1});
  follower.layer = 5;
  EXPECT_EQ(program.select(follower, {int64_t(2)}, &state).tokens[0], (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(program.error(follower, {int64_t(2)}),
            "layer 5 takes the choice of layer 4: give the state that it left");
  Row shorter = lineOf({9, 1});
  shorter.layer = 5;
  EXPECT_EQ(program.error(shorter, {int64_t(2)}, &state),
            "the choice of layer 4 was made on another cache: layers that share one see the same "
            "tokens");
}

TEST(Given, scoresReplaceTheComputedOnes) {
  // The program's own score would need queries.
  Program program(kReuse, "", "%n: i64", kLeft);
  Given given;
  given.scores[0] = Tensor::ofFloats({{"head", 1}, {"token", 3}}, {5, 7, 6});
  EXPECT_EQ(program.select(lineOf({1, 2, 3}), {int64_t(1)}, nullptr, given).tokens[0],
            (std::vector<int64_t>{1}));
  given.protects[0] = Tensor::ofBools({{"head", 1}, {"token", 3}}, {1, 0, 0});
  EXPECT_EQ(program.select(lineOf({1, 2, 3}), {int64_t(1)}, nullptr, given).tokens[0],
            (std::vector<int64_t>{0}));
}

TEST(Require, refusesBeforeAnythingRuns) {
  std::string body = kScore + R"(
    %two = arith.constant 2 : i64
    %enough = kvp.map le(%two, %n) : (i64, i64) -> i1
    kvp.require %enough, "`n` must be at least 2")" +
                     kTopk;
  Program program(body, "", "%n: i64", kLeft);
  EXPECT_EQ(program.error(lineOf({1, 2, 3}), {int64_t(1)}), "`n` must be at least 2");
  EXPECT_EQ(program.select(lineOf({1, 2, 3}), {int64_t(2)}).tokens[0],
            (std::vector<int64_t>{1, 2}));
}

TEST(Require, isNotAskedOfEmptyRows) {
  std::string body = kScore + R"(
    %length = kvp.dim length %cache : !kvp.cache<0>
    %zero = arith.constant 0 : i64
    %some = kvp.map lt(%zero, %length) : (i64, i64) -> i1
    kvp.require %some, "there must be tokens")" +
                     kTopk;
  Program program(body, "", "%n: i64", kLeft);
  EXPECT_EQ(program.select(rowOf(2, 0, 1, {}), {int64_t(1)}).tokens, (Sets{{}, {}}));
}

TEST(Topk, channelsOfEmptyRows) {
  std::string body = R"(
    %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
    %x = kvp.reduce mean %k over ["token"]
      : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, channel], f32>
    %left = kvp.topk %cache by %x keep %n
      : !kvp.cache<0>, !kvp.tensor<[head, channel], f32> -> !kvp.cache<1>)";
  Program program(body, "", "%n: i64", kLeft);
  EXPECT_EQ(*program.select(rowOf(1, 0, 3, {}), {int64_t(2)}).channels, (Sets{{0, 1}}));
}

TEST(Score, protection) {
  std::string body = kLine + R"(
    %one = arith.constant 1 : i64
    %p = kvp.position %cache : !kvp.cache<0> -> !kvp.tensor<[token], i64>
    %first = kvp.map lt(%p, %one) : (!kvp.tensor<[token], i64>, i64) -> !kvp.tensor<[token], i1>
    kvp.return %cache score %x : !kvp.tensor<[token], f32> protect %first
      : !kvp.tensor<[token], i1> : !kvp.cache<0>
  })";
  mlir::MLIRContext context;
  context.loadDialect<kvpc::kvp::KvpDialect, mlir::arith::ArithDialect>();
  auto module = mlir::parseSourceString<mlir::ModuleOp>(
      "kvp.press @p kind \"press\" parameters [] {\n^bb0(%cache: !kvp.cache<0>):" + body, &context);
  ASSERT_TRUE(bool(module));
  auto result = score(*module->getOps<kvpc::kvp::PressOp>().begin(), lineOf({4, 5}), {});
  ASSERT_TRUE(bool(result));
  EXPECT_EQ(result->values.floats, (std::vector<float>{4, 5}));
  EXPECT_EQ(result->protect.bools, (std::vector<uint8_t>{1, 0}));
}

} // namespace
