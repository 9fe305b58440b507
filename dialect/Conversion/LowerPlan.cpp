//===- LowerPlan.cpp - kvplan to scf, arith, vector and LLVM memory operations ----------------===//
#include "dialect/Conversion/LowerPlan.h"

#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "llvm/ADT/StringSet.h"

using namespace mlir;

OwningOpRef<ModuleOp> kvpc::lowerPlan(ModuleOp plan, const codegen::Variant &variant,
                                      StringRef prefix, SmallVectorImpl<KernelNames> &names) {
  MLIRContext *context = plan.getContext();
  context->loadDialect<arith::ArithDialect, func::FuncDialect, LLVM::LLVMDialect, math::MathDialect,
                       scf::SCFDialect, vector::VectorDialect>();
  OwningOpRef<ModuleOp> out = ModuleOp::create(plan.getLoc());
  llvm::StringSet<> others; // plans that stand in for one
  for (auto pipeline : plan.getOps<kvplan::PipelineOp>())
    if (auto tight = pipeline.getTight())
      others.insert(*tight);
  unsigned number = 0;
  for (auto pipeline : plan.getOps<kvplan::PipelineOp>()) {
    if (others.contains(pipeline.getSymName()))
      continue;
    std::string symbol = (prefix + "_" + Twine(number++)).str();
    codegen::Kernel kernel(*out, pipeline, variant, symbol);
    if (failed(kernel.emit()))
      return nullptr;
    names.push_back({pipeline.getSymName().str(), kernel.planName(), kernel.runName()});
    if (auto tight = pipeline.getTight()) {
      auto other = plan.lookupSymbol<kvplan::PipelineOp>(*tight);
      codegen::Kernel instead(*out, other, variant, symbol + ".tight");
      if (failed(instead.emit()))
        return nullptr;
      names.back().plan = kernel.emitChoice("plan", kernel.planName(), instead.planName());
      names.back().run = kernel.emitChoice("run", kernel.runName(), instead.runName());
    }
  }
  return out;
}
