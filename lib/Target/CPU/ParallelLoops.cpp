//===- ParallelLoops.cpp - bodies of @X.parallel ---------------------------===//
//
// Before: llvm.func @X.parallel(frame, count) {kvpc.body = @X} without a body.
// After: it reads the host's parallel_for from the kvpc_call, whose address the frame begins with,
// and hands it @X.
//
//===----------------------------------------------------------------------===//
#include "Target.h"

#include "kvpc/abi.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Pass/Pass.h"

using namespace mlir;

namespace kvpc::cpu {
namespace {

struct ParallelLoops : PassWrapper<ParallelLoops, OperationPass<ModuleOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(ParallelLoops)

  StringRef getArgument() const override { return "kvpc-parallel-loops"; }
  StringRef getDescription() const override {
    return "functions with `kvpc.body` call the host's parallel_for";
  }
  void getDependentDialects(DialectRegistry &registry) const override {
    registry.insert<LLVM::LLVMDialect>();
  }

  void runOnOperation() override {
    SymbolTable symbols(getOperation());
    for (auto function : getOperation().getOps<LLVM::LLVMFuncOp>())
      if (auto body = function->getAttrOfType<FlatSymbolRefAttr>("kvpc.body"))
        if (failed(define(function, body, symbols)))
          return signalPassFailure();
  }

private:
  LogicalResult define(LLVM::LLVMFuncOp function, FlatSymbolRefAttr name, SymbolTable &symbols) {
    MLIRContext *context = &getContext();
    auto pointer = LLVM::LLVMPointerType::get(context);
    auto count = IntegerType::get(context, 64);
    auto none = LLVM::LLVMVoidType::get(context);
    auto body = symbols.lookup<LLVM::LLVMFuncOp>(name.getValue());
    if (!function.isExternal())
      return function.emitOpError("with `kvpc.body` must not have a body");
    if (function.getFunctionType() != LLVM::LLVMFunctionType::get(none, {pointer, count}))
      return function.emitOpError("with `kvpc.body` must take a frame and a count");
    if (!body ||
        body.getFunctionType() != LLVM::LLVMFunctionType::get(none, {pointer, count, count}))
      return function.emitOpError("needs ") << name << " to take a frame, a begin and an end";

    OpBuilder builder(context);
    Location loc = function.getLoc();
    builder.setInsertionPointToStart(function.addEntryBlock(builder));
    Value frame = function.getArgument(0);
    Value call = LLVM::LoadOp::create(builder, loc, pointer, frame);
    auto field = [&](size_t offset) -> Value {
      Value address = LLVM::GEPOp::create(builder, loc, pointer, builder.getI8Type(), call,
                                          LLVM::GEPArg(int32_t(offset)));
      return LLVM::LoadOp::create(builder, loc, pointer, address);
    };
    Value parallelFor = field(offsetof(kvpc_call, parallel_for));
    Value host = field(offsetof(kvpc_call, parallel_context));
    Value entry = LLVM::AddressOfOp::create(builder, loc, body);
    auto type = LLVM::LLVMFunctionType::get(none, {pointer, pointer, pointer, count});
    LLVM::CallOp::create(builder, loc, type,
                         ValueRange{parallelFor, host, entry, frame, function.getArgument(1)});
    LLVM::ReturnOp::create(builder, loc, ValueRange{});
    function->removeAttr("kvpc.body");
    return success();
  }
};

} // namespace

std::unique_ptr<Pass> createParallelLoopsPass() { return std::make_unique<ParallelLoops>(); }

} // namespace kvpc::cpu
