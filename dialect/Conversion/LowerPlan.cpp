//===- LowerPlan.cpp - kvplan to scf, arith, vector and LLVM memory operations ----------------===//
#include "dialect/Conversion/LowerPlan.h"

#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"

using namespace mlir;

OwningOpRef<ModuleOp> kvpc::lowerPlan(ModuleOp plan, const codegen::Variant &variant,
                                      StringRef prefix, SmallVectorImpl<KernelNames> &names) {
  MLIRContext *context = plan.getContext();
  context->loadDialect<arith::ArithDialect, func::FuncDialect, LLVM::LLVMDialect, math::MathDialect,
                       scf::SCFDialect, vector::VectorDialect>();
  OwningOpRef<ModuleOp> out = ModuleOp::create(plan.getLoc());
  unsigned number = 0;
  for (auto pipeline : plan.getOps<kvplan::PipelineOp>()) {
    std::string symbol = (prefix + "_" + Twine(number++)).str();
    codegen::Kernel kernel(*out, pipeline, variant, symbol);
    if (failed(kernel.emit()))
      return nullptr;
    names.push_back({pipeline.getSymName().str(), kernel.planName(), kernel.runName()});
  }
  return out;
}
