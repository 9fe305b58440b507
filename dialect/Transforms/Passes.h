//===- Passes.h - passes over kvp and kvplan, and the pipelines made of them ------------------===//
#ifndef KVPC_DIALECT_TRANSFORMS_PASSES_H
#define KVPC_DIALECT_TRANSFORMS_PASSES_H

#include "dialect/IR/Kvplan.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace kvpc {

/// When what is wide is made again in each pass that reads it: never, where it does not fit the
/// workspace, always.
enum class Recompute { Never, Over, Always };

#define GEN_PASS_DECL
#include "dialect/Transforms/Passes.h.inc"
#define GEN_PASS_REGISTRATION
#include "dialect/Transforms/Passes.h.inc"

/// Optimisations that can be left out, to see what they are worth.
enum Without : unsigned {
  kWithoutAlgebra = 1,     // linear maps move to the small side, forms take half of their matrix
  kWithoutFusion = 2,      // values of the same entries share a pass
  kWithoutMicrokernel = 4, // contractions of keys with rows of queries
  kWithoutExponents = 8,   // a softmax' exponents stay where its logits stood
  kWithoutTiles = 16,      // what one pass uses alone lies in the cache
  kWithoutWeighing = 32,   // what several loops take is kept, what is cheap is made again
};
/// Their names, in this order.
inline constexpr llvm::StringLiteral kWithoutNames[] = {"algebra",   "fusion", "microkernel",
                                                        "exponents", "tiles",  "weighing"};

struct PlanOptions {
  unsigned optimization = 2; // 0: one pass per operation, every value held
  Recompute recompute = Recompute::Never;
  unsigned without = 0; // of enum Without
};

/// kvp presses in the form that plans are made of.
void buildProgramPipeline(mlir::OpPassManager &pm, const PlanOptions &options);

/// kvp presses to kvplan pipelines: the whole middle of the compiler, in order.
void buildPlanPipeline(mlir::OpPassManager &pm, const PlanOptions &options);

} // namespace kvpc

#endif
