//===- Pipelines.cpp - the order of passes ----------------------------------------------------===//
#include "dialect/Transforms/Passes.h"

#include "mlir/Pass/PassManager.h"
#include "mlir/Transforms/Passes.h"

using namespace mlir;

void kvpc::buildProgramPipeline(OpPassManager &pm, const PlanOptions &options) {
  pm.addPass(createCanonicalizerPass());
  pm.nest<kvp::PressOp>().addPass(createKvpPrimitives());
  if (options.optimization > 0) {
    pm.addPass(createCSEPass()); // what is the same value is one
    if (!(options.without & kWithoutAlgebra))
      pm.nest<kvp::PressOp>().addPass(createKvpAlgebra());
  }
  pm.addPass(createCanonicalizerPass());
  pm.addPass(createCSEPass());
}

void kvpc::buildPlanPipeline(OpPassManager &pm, const PlanOptions &options) {
  buildProgramPipeline(pm, options);
  KvplanCutOptions cut;
  cut.stored = options.optimization == 0;
  cut.recompute = options.recompute;
  cut.without = options.without;
  pm.addPass(createKvplanCut(cut));
}
