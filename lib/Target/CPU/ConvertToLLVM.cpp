//===- ConvertToLLVM.cpp - arith, vector, cf and func to the LLVM dialect --===//
//
// Before: no scf, and no math operation that ElementaryCalls rewrites. After: the LLVM dialect
// only. One conversion for all dialects is twice as fast as one pass each.
//
//===----------------------------------------------------------------------===//
#include "Target.h"

#include "mlir/Conversion/ArithToLLVM/ArithToLLVM.h"
#include "mlir/Conversion/ControlFlowToLLVM/ControlFlowToLLVM.h"
#include "mlir/Conversion/FuncToLLVM/ConvertFuncToLLVM.h"
#include "mlir/Conversion/LLVMCommon/ConversionTarget.h"
#include "mlir/Conversion/LLVMCommon/TypeConverter.h"
#include "mlir/Conversion/MathToLLVM/MathToLLVM.h"
#include "mlir/Conversion/SCFToControlFlow/SCFToControlFlow.h"
#include "mlir/Conversion/UBToLLVM/UBToLLVM.h"
#include "mlir/Conversion/VectorToLLVM/ConvertVectorToLLVM.h"
#include "mlir/Dialect/Arith/Transforms/Passes.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/UB/IR/UBOps.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/Dialect/Vector/Transforms/LoweringPatterns.h"
#include "mlir/Dialect/Vector/Transforms/VectorRewritePatterns.h"
#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassOptions.h"
#include "mlir/Pass/PassRegistry.h"
#include "mlir/Transforms/DialectConversion.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"

using namespace mlir;

namespace kvpc::cpu {
namespace {

/// Vectors of several dimensions to one, and what has no LLVM counterpart to what has.
LogicalResult simplify(ModuleOp module) {
  RewritePatternSet patterns(module.getContext());
  // Otherwise a truncation to bf16 is a call of __truncsfbf2.
  arith::populateExpandBFloat16Patterns(patterns);
  arith::populateCeilFloorDivExpandOpsPatterns(patterns);
  vector::populateVectorBroadcastLoweringPatterns(patterns);
  // The default, dot products, is 25 times slower.
  vector::populateVectorContractLoweringPatterns(patterns,
                                                 vector::VectorContractLowering::OuterProduct);
  vector::populateVectorOuterProductLoweringPatterns(patterns);
  vector::populateVectorMultiReductionLoweringPatterns(
      patterns, vector::VectorMultiReductionLowering::InnerParallel);
  vector::populateVectorMaskOpLoweringPatterns(patterns);
  vector::populateVectorShapeCastLoweringPatterns(patterns);
  vector::populateVectorInterleaveLoweringPatterns(patterns);
  vector::populateVectorBitCastLoweringPatterns(patterns);
  vector::populateVectorTransposeLoweringPatterns(patterns,
                                                  vector::VectorTransposeLowering::Shuffle16x16);
  vector::populateVectorMaskMaterializationPatterns(patterns, /*force32BitVectorIndices=*/true);
  vector::populateVectorInsertExtractStridedSliceTransforms(patterns);
  vector::populateVectorStepLoweringPatterns(patterns);
  vector::populateVectorRankReducingFMAPattern(patterns);
  vector::populateVectorToElementsUnrollPatterns(patterns);
  vector::populateVectorFromElementsUnrollPatterns(patterns);
  return applyPatternsGreedily(module, std::move(patterns));
}

/// The natural alignment of a vector is its size, which tensors do not have.
void setAlignments(ModuleOp module) {
  auto set = [](auto access, Type type) {
    auto vector = dyn_cast<VectorType>(type);
    if (!vector || access.getAlignment())
      return;
    unsigned bits = vector.getElementType().isIntOrFloat()
                        ? vector.getElementType().getIntOrFloatBitWidth()
                        : 64;
    access.setAlignment(std::max(1u, bits / 8));
  };
  module.walk([&](Operation *op) {
    if (auto load = dyn_cast<LLVM::LoadOp>(op))
      set(load, load.getType());
    else if (auto store = dyn_cast<LLVM::StoreOp>(op))
      set(store, store.getValue().getType());
  });
}

struct ConvertToLLVM : PassWrapper<ConvertToLLVM, OperationPass<ModuleOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(ConvertToLLVM)

  StringRef getArgument() const override { return "kvpc-convert-to-llvm"; }
  StringRef getDescription() const override {
    return "arith, math, vector, cf and func to the LLVM dialect, in one conversion";
  }
  void getDependentDialects(DialectRegistry &registry) const override {
    registry.insert<LLVM::LLVMDialect, vector::VectorDialect, ub::UBDialect, arith::ArithDialect>();
  }

  void runOnOperation() override {
    ModuleOp module = getOperation();
    if (failed(simplify(module)))
      return signalPassFailure();

    LowerToLLVMOptions options(&getContext());
    LLVMTypeConverter types(&getContext(), options);
    RewritePatternSet patterns(&getContext());
    arith::populateArithToLLVMConversionPatterns(types, patterns);
    cf::populateControlFlowToLLVMConversionPatterns(types, patterns);
    populateFuncToLLVMConversionPatterns(types, patterns);
    populateMathToLLVMConversionPatterns(types, patterns, /*approximateLog1p=*/false);
    populateVectorToLLVMConversionPatterns(types, patterns, /*reassociateFPReductions=*/false,
                                           /*force32BitVectorIndices=*/true);
    ub::populateUBToLLVMConversionPatterns(types, patterns);
    LLVMConversionTarget target(getContext());
    target.addLegalOp<ModuleOp>();
    if (failed(applyFullConversion(module, target, std::move(patterns))))
      return signalPassFailure();
    setAlignments(module);
  }
};

struct LowerToLLVMPipelineOptions : PassPipelineOptions<LowerToLLVMPipelineOptions> {
  Option<unsigned> level{*this, "level", llvm::cl::desc("instruction set: 0, 1 or 2"),
                         llvm::cl::init(0)};
};

} // namespace

std::unique_ptr<Pass> createConvertToLLVMPass() { return std::make_unique<ConvertToLLVM>(); }

void buildLowerToLLVM(OpPassManager &pm, Level level) {
  pm.addPass(createElementaryCallsPass(level));
  pm.addPass(createSCFToControlFlowPass());
  pm.addPass(createConvertToLLVMPass());
  pm.addPass(createParallelLoopsPass());
}

void registerPasses() {
  registerPass([] { return createElementaryCallsPass(Level::V3); });
  registerPass(createConvertToLLVMPass);
  registerPass(createParallelLoopsPass);
  PassPipelineRegistration<LowerToLLVMPipelineOptions>(
      "kvpc-lower-to-llvm", "the CPU target's way to the LLVM dialect",
      [](OpPassManager &pm, const LowerToLLVMPipelineOptions &options) {
        buildLowerToLLVM(pm, Level(options.level.getValue()));
      });
}

LogicalResult lowerToLLVMDialect(ModuleOp module, Level level) {
  PassManager pm(module.getContext());
  buildLowerToLLVM(pm, level);
  return pm.run(module);
}

} // namespace kvpc::cpu
