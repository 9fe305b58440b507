//===- LowerPlan.h - kvplan to scf, arith, vector and LLVM memory operations ------------------===//
#ifndef KVPC_DIALECT_CONVERSION_LOWERPLAN_H
#define KVPC_DIALECT_CONVERSION_LOWERPLAN_H

#include "dialect/Conversion/Kernel.h"

namespace kvpc {

/// Names of the functions of one press in one variant.
struct KernelNames {
  std::string press, plan, run;
};

/// Code of all pipelines of `plan` for one variant; `prefix` keeps symbols of variants apart.
/// Null and an error at what cannot be lowered.
mlir::OwningOpRef<mlir::ModuleOp> lowerPlan(mlir::ModuleOp plan, const codegen::Variant &variant,
                                            llvm::StringRef prefix,
                                            llvm::SmallVectorImpl<KernelNames> &names);

} // namespace kvpc

#endif
