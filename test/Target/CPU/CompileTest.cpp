// From MLIR to running code: parallel loops, levels, errors.
#include "Compiled.h"

#include "kvpc/abi.h"
#include "llvm/Support/FormatVariadic.h"
#include <cmath>
#include <thread>
#include <vector>

using namespace kvpc;
using namespace kvpc::test;

namespace {

// y[i] = exp(x[i]) in tiles of 16, one item of the parallel loop a tile.
std::string expProgram() {
  return llvm::formatv(R"(
func.func @run(%call: !llvm.ptr) -> i32 attributes {{kvpc.export} {{
  %one = arith.constant 1 : i64
  %frame = llvm.alloca %one x !llvm.struct<(ptr, ptr, ptr)> : (i64) -> !llvm.ptr
  %px = llvm.getelementptr %call[{0}] : (!llvm.ptr) -> !llvm.ptr, i8
  %py = llvm.getelementptr %call[{1}] : (!llvm.ptr) -> !llvm.ptr, i8
  %pn = llvm.getelementptr %call[{2}] : (!llvm.ptr) -> !llvm.ptr, i8
  %x = llvm.load %px : !llvm.ptr -> !llvm.ptr
  %y = llvm.load %py : !llvm.ptr -> !llvm.ptr
  %n = llvm.load %pn : !llvm.ptr -> i64
  llvm.store %call, %frame : !llvm.ptr, !llvm.ptr
  %f1 = llvm.getelementptr %frame[8] : (!llvm.ptr) -> !llvm.ptr, i8
  %f2 = llvm.getelementptr %frame[16] : (!llvm.ptr) -> !llvm.ptr, i8
  llvm.store %x, %f1 : !llvm.ptr, !llvm.ptr
  llvm.store %y, %f2 : !llvm.ptr, !llvm.ptr
  func.call @tiles.parallel(%frame, %n) : (!llvm.ptr, i64) -> ()
  %ok = arith.constant 0 : i32
  return %ok : i32
}
func.func private @tiles.parallel(!llvm.ptr, i64) attributes {{kvpc.body = @tiles}
func.func private @tiles(%frame: !llvm.ptr, %begin: i64, %end: i64) {{
  %one = arith.constant 1 : i64
  %f1 = llvm.getelementptr %frame[8] : (!llvm.ptr) -> !llvm.ptr, i8
  %f2 = llvm.getelementptr %frame[16] : (!llvm.ptr) -> !llvm.ptr, i8
  %x = llvm.load %f1 : !llvm.ptr -> !llvm.ptr
  %y = llvm.load %f2 : !llvm.ptr -> !llvm.ptr
  scf.for %tile = %begin to %end step %one : i64 {{
    %from = llvm.getelementptr %x[%tile] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.array<16 x f32>
    %to = llvm.getelementptr %y[%tile] : (!llvm.ptr, i64) -> !llvm.ptr, !llvm.array<16 x f32>
    %v = llvm.load %from : !llvm.ptr -> vector<16xf32>
    %e = math.exp %v : vector<16xf32>
    llvm.store %e, %to : vector<16xf32>, !llvm.ptr
  }
  return
}
)",
                       offsetof(kvpc_call, keys), offsetof(kvpc_call, out_scores),
                       offsetof(kvpc_call, tokens))
      .str();
}

void serialFor(void *host, kvpc_body body, void *context, int64_t count) {
  *static_cast<int *>(host) += 1;
  body(context, 0, count);
}

void threadedFor(void *host, kvpc_body body, void *context, int64_t count) {
  *static_cast<int *>(host) += 1;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < 3; ++i)
    threads.emplace_back(body, context, count * i / 3, count * (i + 1) / 3);
  for (std::thread &thread : threads)
    thread.join();
}

void checkExp(kvpc_parallel_for parallelFor, unsigned optimization) {
  Library library(expProgram(), {cpu::Level::V3, optimization});
  auto run = library.find<int32_t(kvpc_call *)>("run");
  ASSERT_TRUE(run);
  EXPECT_FALSE(library.has("tiles"));
  EXPECT_FALSE(library.has("tiles.parallel"));

  // One past the start: no alignment may be asked for.
  constexpr int64_t kTiles = 7;
  std::vector<float> x(kTiles * 16 + 1), y(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = float(i) - 56;
  int calls = 0;
  kvpc_call call = {};
  call.keys.data = x.data() + 1;
  call.out_scores.data = y.data() + 1;
  call.tokens = kTiles;
  call.parallel_for = parallelFor;
  call.parallel_context = &calls;
  EXPECT_EQ(run(&call), 0);
  EXPECT_EQ(calls, 1);
  for (size_t i = 1; i < x.size(); ++i)
    EXPECT_NEAR(y[i] / std::exp(double(x[i])), 1, 2e-7) << x[i];
}

bool contains(llvm::StringRef text, llvm::StringRef part) { return text.contains(part); }

TEST(Compile, SerialLoop) { checkExp(serialFor, 2); }
TEST(Compile, ThreadedLoop) { checkExp(threadedFor, 2); }
TEST(Compile, EveryOptimizationRuns) {
  for (unsigned optimization : {0, 1, 3})
    checkExp(serialFor, optimization);
}

TEST(Compile, Level0HasAvx2Only) {
  Answer code = assembly(expProgram(), {cpu::Level::V3, 2});
  EXPECT_EQ(code.error, "");
  EXPECT_TRUE(contains(code.result, "vfmadd"));
  EXPECT_TRUE(contains(code.result, "%ymm"));
  EXPECT_FALSE(contains(code.result, "%zmm"));
  EXPECT_FALSE(contains(code.result, "%k1"));
  EXPECT_FALSE(contains(code.result, "%xmm16"));
}

TEST(Compile, Level1HasWideVectors) {
  Answer code = assembly(expProgram(), {cpu::Level::V4, 2});
  EXPECT_EQ(code.error, "");
  EXPECT_TRUE(contains(code.result, "%zmm"));
  EXPECT_FALSE(contains(code.result, "call\tkvpc_prim"));
}

TEST(Compile, SameSourceSameObject) {
  EXPECT_EQ(compiled(expProgram()).result, compiled(expProgram()).result);
}

TEST(Compile, LLVMTextIsOptimised) {
  Context context;
  auto module = mlir::parseSourceString<mlir::ModuleOp>(expProgram(), &context);
  Answer text(cpu::compileToLLVMIR(*module, {cpu::Level::V4Bf16, 2}));
  EXPECT_EQ(text.error, "");
  EXPECT_TRUE(contains(text.result, "\"target-features\"=\"+avx512bf16\""));
  EXPECT_FALSE(contains(text.result, "@kvpc_prim_exp"));
}

TEST(Compile, LevelNames) {
  for (unsigned level = 0; level < cpu::kLevels; ++level)
    EXPECT_EQ(cpu::levelNamed(cpu::levelName(cpu::Level(level))), cpu::Level(level));
  EXPECT_FALSE(cpu::levelNamed("x86-64-v2"));
}

TEST(Compile, WhatCannotBeLoweredIsAnError) {
  Context context;
  std::string said;
  mlir::ScopedDiagnosticHandler handler(&context, [&](mlir::Diagnostic &diagnostic) {
    if (diagnostic.getSeverity() == mlir::DiagnosticSeverity::Error)
      said = diagnostic.str();
  });
  auto module = mlir::parseSourceString<mlir::ModuleOp>(
      "func.func private @f.parallel(!llvm.ptr, i64) attributes {kvpc.body = @g}", &context);
  Answer code(cpu::compileToObject(*module, {}));
  EXPECT_EQ(code.error, "cannot compile to machine code: the program cannot be lowered to the LLVM "
                        "dialect");
  EXPECT_TRUE(contains(said, "needs @g to take a frame, a begin and an end")) << said;
}

// LLVM ends the process over an instruction that it cannot select; the compiler must not, and must
// work afterwards.
TEST(Compile, FatalErrorsOfLLVMAreErrors) {
  for (int i = 0; i < 2; ++i) {
    Answer code = compiled(R"(
llvm.func @f(%x: i64) -> i64 attributes {kvpc.export} {
  %y = llvm.inline_asm "bswap $0", "={xmm0},{nothing}" %x : (i64) -> i64
  llvm.return %y : i64
})");
    EXPECT_TRUE(contains(code.error, "cannot compile to machine code: ")) << code.error;
    EXPECT_EQ(code.result, "");
  }
  checkExp(serialFor, 2);
}

TEST(Compile, PrimitivesAreChecked) {
  EXPECT_EQ(compiled("llvm.func @kvpc_prim_exponential(f32) -> f32").error,
            "cannot compile to machine code: there is no primitive `kvpc_prim_exponential`");
  EXPECT_EQ(compiled("llvm.func @kvpc_prim_sort(!llvm.ptr, i64)").error,
            "cannot compile to machine code: the primitive `kvpc_prim_sort` is declared as `void "
            "(ptr, i64)`, but it is `void (ptr, ptr, i64, float, ptr, ptr)`");
}

// Of each level its own code.
TEST(Compile, PrimitivesOfTheLevel) {
  constexpr const char *kSource = R"(
llvm.func @kvpc_prim_panel_rows() -> i64
llvm.func @f() -> i64 attributes {kvpc.export} {
  %rows = llvm.call @kvpc_prim_panel_rows() : () -> i64
  llvm.return %rows : i64
})";
  for (unsigned level = 0; level < cpu::kLevels; ++level)
    EXPECT_TRUE(contains(assembly(kSource, {cpu::Level(level), 2}).result,
                         "\tlevel" + std::to_string(level) + ".kvpc_prim_panel_rows"));
}

TEST(Compile, PrimitivesAreLinked) {
  Library library(R"(
llvm.func @kvpc_prim_argmax(!llvm.ptr, !llvm.ptr, i64) -> i64
func.func private @kvpc_prim_cumsum(!llvm.ptr, !llvm.ptr, i64, !llvm.ptr)
llvm.func @largest(%x: !llvm.ptr, %n: i64) -> i64 attributes {kvpc.export} {
  %all = llvm.mlir.zero : !llvm.ptr
  %i = llvm.call @kvpc_prim_argmax(%x, %all, %n) : (!llvm.ptr, !llvm.ptr, i64) -> i64
  llvm.return %i : i64
}
func.func @sums(%x: !llvm.ptr, %n: i64) attributes {kvpc.export} {
  %all = llvm.mlir.zero : !llvm.ptr
  call @kvpc_prim_cumsum(%x, %all, %n, %x) : (!llvm.ptr, !llvm.ptr, i64, !llvm.ptr) -> ()
  return
})");
  std::vector<float> x = {1, 5, 2, 7, 3};
  EXPECT_EQ(library.find<int64_t(float *, int64_t)>("largest")(x.data(), 5), 3);
  library.find<void(float *, int64_t)>("sums")(x.data(), 5);
  EXPECT_EQ(x, (std::vector<float>{1, 6, 8, 15, 18}));
  EXPECT_FALSE(library.has("kvpc_prim_argmax"));
}

} // namespace
