//===- SectionTest.cpp - what is written is what hosts read -----------------------------------===//
#include "lib/Module/Section.h"
#include "lib/Module/Summary.h"

#include "kvpc/Header.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "gtest/gtest.h"

using namespace kvpc;

namespace {

/// Chunks of a window's attention, shared by two layers, then channels.
const char *const kProgram = R"(
kvp.press @chunk_think kind "press" doc "Chunks, then channels." parameters [
  {name = "window", type = "int", static = true, value = 8, default = 8, min = 1},
  {name = "budget", type = "budget", default = {drop = 0.5}, doc = "how much"},
  {name = "ratios", type = "fraction", axes = ["layer"]},
  {name = "filter", type = "float", axes = ["layer", "head", "channel"]},
  {name = "cap", type = "float", default = 0x7FF0000000000000 : f64}] {
^bb0(%cache: !kvp.cache<0>, %budget: !kvp.budget, %ratio: f64, %cap: f64,
     %filter: !kvp.tensor<[head, channel], f32>):
  %k = kvp.input keys of %cache : !kvp.cache<0> -> !kvp.tensor<[head, token, channel], f32>
  %q = kvp.input queries last 8 of %cache : !kvp.cache<0>
    -> !kvp.tensor<[head, group, query:8, channel], f32> loc("chunk.kv":3:13)
  %d = kvp.dot %q, %k over "channel"
    : (!kvp.tensor<[head, group, query:8, channel], f32>, !kvp.tensor<[head, token, channel], f32>)
    -> !kvp.tensor<[head, group, query:8, token], f32>
  %x = kvp.reduce sum %d over ["head", "group", "query"]
    : !kvp.tensor<[head, group, query:8, token], f32> -> !kvp.tensor<[token], f32>
  %p = kvp.partition %x along "token" size 20
    : !kvp.tensor<[token], f32> -> !kvp.tensor<[part, slot:20], f32>
  %s = kvp.reduce mean %p over ["slot"]
    : !kvp.tensor<[part, slot:20], f32> -> !kvp.tensor<[part], f32>
  %e = kvp.extent "part" of %s : !kvp.tensor<[part], f32>
  %n = kvp.budget_of %budget of %e
  %one = kvp.topk %cache by %s keep %n part_size 20 reuse 2
    : !kvp.cache<0>, !kvp.tensor<[part], f32> -> !kvp.cache<1>
  %k1 = kvp.input keys of %one : !kvp.cache<1> -> !kvp.tensor<[head, token/1, channel/1], f32>
  %y = kvp.reduce mean %k1 over ["token"]
    : !kvp.tensor<[head, token/1, channel/1], f32> -> !kvp.tensor<[head, channel/1], f32>
  %c = kvp.dim channels %one : !kvp.cache<1>
  %m = kvp.budget_of %budget of %c
  %two = kvp.topk %one by %y keep %m
    : !kvp.cache<1>, !kvp.tensor<[head, channel/1], f32> -> !kvp.cache<2>
  kvp.return %two score %s : !kvp.tensor<[part], f32> : !kvp.cache<2>
})";

class Section : public ::testing::Test {
protected:
  void SetUp() override {
    context.loadDialect<kvp::KvpDialect, mlir::arith::ArithDialect>();
    program = mlir::parseSourceString<mlir::ModuleOp>(kProgram, &context);
    ASSERT_TRUE(bool(program));
    info.source = "chunk.kv";
    info.dtypes = {"f32", "bf16"};
    info.channels = {64, 0};
    info.targets = {"x86-64-v3", "x86-64-v4"};
    info.variants["chunk_think"] = {{"f32", 64, 1, "kvpc_plan_0_0", "kvpc_run_0_0"}};
    bytes = buildHeaderSection(*program, info);
  }

  runtime::Bytes span() const {
    return {reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size()};
  }

  mlir::MLIRContext context;
  mlir::OwningOpRef<mlir::ModuleOp> program;
  ModuleInfo info;
  std::string bytes;
};

TEST_F(Section, hostsReadWhatWasWritten) {
  auto header = runtime::parseSection(span());
  ASSERT_TRUE(bool(header)) << header.error().text();
  EXPECT_EQ(header->compiler, "kvpc " + version().str());
  EXPECT_EQ(header->optimization, "O2");
  EXPECT_EQ(header->source, "chunk.kv");
  EXPECT_EQ(header->channels, (std::vector<int64_t>{64, 0}));
  ASSERT_EQ(header->presses.size(), 1u);
  const runtime::PressHeader &press = header->presses[0];
  EXPECT_EQ(press.name, "chunk_think");
  EXPECT_EQ(press.doc, "Chunks, then channels.");
  EXPECT_EQ(press.kind, "press");
  ASSERT_EQ(press.parameters.size(), 5u);
  EXPECT_TRUE(press.parameters[0].isStatic);
  EXPECT_EQ(press.parameters[0].value.i, 8);
  EXPECT_EQ(press.parameters[0].min, 1);
  EXPECT_EQ(press.parameters[1].fallback.str(), "drop(0.5)");
  EXPECT_EQ(press.parameters[4].fallback.str(), "inf");
  EXPECT_EQ(press.runtime, (std::vector<std::string>{"budget", "ratios", "cap"}));
  ASSERT_EQ(press.weights.size(), 1u);
  EXPECT_EQ(press.weights[0].axes, (std::vector<std::string>{"head", "channel"}));
  EXPECT_TRUE(press.weights[0].layered);
  ASSERT_EQ(press.variants.size(), 1u);
  EXPECT_EQ(press.variants[0].target, 1u);
  EXPECT_EQ(press.variants[0].run, "kvpc_run_0_0");
}

TEST_F(Section, whatTheProgramNeedsAndDoes) {
  auto header = runtime::parseSection(span());
  ASSERT_TRUE(bool(header)) << header.error().text();
  const runtime::PressHeader &press = header->presses[0];
  EXPECT_EQ(press.inputs.queries.count, 8);
  EXPECT_FALSE(press.inputs.hidden);
  EXPECT_FALSE(press.inputs.originalPositions);
  EXPECT_TRUE(press.uniform);
  EXPECT_FALSE(press.ragged);
  EXPECT_TRUE(press.dataCounts);
  EXPECT_TRUE(press.dropsTokens);
  EXPECT_TRUE(press.dropsChannels);
  EXPECT_EQ(press.reuse, 2);
  EXPECT_EQ(press.leaderInputs, (std::vector<std::string>{"queries"}));
  EXPECT_EQ(*press.scoreAxes, (std::vector<std::string>{"part"}));
  EXPECT_EQ(press.scoreExtents[0], (std::pair<std::string, int64_t>("part", 20)));
  EXPECT_EQ(press.usedAt("queries"), " (used at chunk.kv:3:13)");
}

TEST_F(Section, sameInputSameBytes) {
  mlir::MLIRContext other;
  other.loadDialect<kvp::KvpDialect, mlir::arith::ArithDialect>();
  auto again = mlir::parseSourceString<mlir::ModuleOp>(kProgram, &other);
  EXPECT_EQ(buildHeaderSection(*again, info), bytes);
}

TEST_F(Section, programComesBack) {
  auto header = runtime::parseSection(span());
  ASSERT_TRUE(bool(header));
  mlir::MLIRContext other;
  llvm::StringRef bytecode(reinterpret_cast<const char *>(header->bytecode.data()),
                           header->bytecode.size());
  auto read = readProgram(other, bytecode);
  ASSERT_TRUE(bool(read)) << llvm::toString(read.takeError());
  std::string before, after;
  llvm::raw_string_ostream(before) << *program;
  llvm::raw_string_ostream(after) << **read;
  EXPECT_EQ(before, after);
}

TEST_F(Section, damagedProgramIsRefused) {
  auto header = runtime::parseSection(span());
  ASSERT_TRUE(bool(header));
  std::string bytecode(reinterpret_cast<const char *>(header->bytecode.data()),
                       header->bytecode.size());
  // Cut anywhere it must be refused; with any one byte changed it must not crash.
  for (size_t size = 0; size + 1 < bytecode.size(); size += 7) {
    mlir::MLIRContext other;
    auto read = readProgram(other, llvm::StringRef(bytecode).take_front(size));
    if (read)
      EXPECT_TRUE((*read)->getOps<kvp::PressOp>().empty()) << size;
    else
      llvm::consumeError(read.takeError());
  }
}

TEST(Summary, raggedAndPerHead) {
  mlir::MLIRContext context;
  context.loadDialect<kvp::KvpDialect, mlir::arith::ArithDialect>();
  auto program = mlir::parseSourceString<mlir::ModuleOp>(R"(
    kvp.press @m kind "press" parameters [] {
    ^bb0(%cache: !kvp.cache<0>):
      %k = kvp.input unrotated_keys of %cache : !kvp.cache<0>
        -> !kvp.tensor<[head, token, channel], f32>
      %x = kvp.reduce sum %k over ["channel"]
        : !kvp.tensor<[head, token, channel], f32> -> !kvp.tensor<[head, token], f32>
      %zero = arith.constant 0.0 : f64
      %c = kvp.map lt(%x, %zero) : (!kvp.tensor<[head, token], f32>, f64)
        -> !kvp.tensor<[head, token], i1>
      %left = kvp.mask %cache where %c
        : !kvp.cache<0>, !kvp.tensor<[head, token], i1> -> !kvp.cache<1>
      kvp.return %left : !kvp.cache<1>
    })",
                                                         &context);
  ASSERT_TRUE(bool(program));
  PressSummary summary = summarize(*program->getOps<kvp::PressOp>().begin());
  EXPECT_FALSE(summary.uniform);
  EXPECT_TRUE(summary.ragged);
  EXPECT_TRUE(summary.dataCounts);
  EXPECT_FALSE(summary.dropsChannels);
  EXPECT_EQ(summary.reuse, 0);
  EXPECT_FALSE(summary.scoreAxes);
  EXPECT_EQ(summary.inputs,
            (std::map<std::string, int64_t>{{"original_positions", -1}, {"rope", -1}}));
}

} // namespace
