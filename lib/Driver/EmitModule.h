//===- EmitModule.h - from a kvp program to a module file -------------------------------------===//
#ifndef KVPC_DRIVER_EMITMODULE_H
#define KVPC_DRIVER_EMITMODULE_H

#include "dialect/Conversion/LowerPlan.h"
#include "dialect/Transforms/Passes.h"
#include "lib/Module/Section.h"
#include "lib/Target/CPU/Target.h"

namespace kvpc {

/// What to compile a program for: every combination becomes a variant of the module's code.
struct EmitOptions {
  PlanOptions plan;
  std::vector<std::string> dtypes = {"f32", "bf16"}; ///< of the cache
  std::vector<int64_t> channels = {64, 128, 0};      ///< head sizes; 0: any
  std::vector<cpu::Level> levels = {cpu::Level::V3, cpu::Level::V4, cpu::Level::V4Bf16};
  std::string source, sourceDigest; ///< for the header
};

/// kvpc_dtype of "f32", "bf16", "f16"; nothing for another name.
std::optional<int64_t> dtypeCode(llvm::StringRef name);

/// The plans of all presses of `program`, which stays as it is; null after an error.
mlir::OwningOpRef<mlir::ModuleOp> planOf(mlir::ModuleOp program, const PlanOptions &options);

/// Scalar and vector code of one variant; null after an error.
mlir::OwningOpRef<mlir::ModuleOp> kernelsOf(mlir::ModuleOp plan, llvm::StringRef dtype,
                                            int64_t channels, cpu::Level level,
                                            llvm::StringRef prefix,
                                            llvm::SmallVectorImpl<KernelNames> &names);

/// Compiles every variant and links them to a module at `path`; says what fails through the
/// context's diagnostics.
mlir::LogicalResult emitModule(mlir::ModuleOp program, const EmitOptions &options,
                               llvm::StringRef path);

} // namespace kvpc

#endif
