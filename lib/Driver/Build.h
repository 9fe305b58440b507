//===- Build.h - from kvp to plans, code and modules ------------------------------------------===//
#ifndef KVPC_DRIVER_BUILD_H
#define KVPC_DRIVER_BUILD_H

#include "lib/Driver/CommandLine.h"
#include "lib/Module/Section.h"
#include "lib/Target/CPU/Target.h"

namespace kvpc::driver {

/// Forms of a cache and machines that code is made for.
struct BuildOptions {
  unsigned optimization = 2;
  std::vector<std::string> dtypes{"f32", "bf16"};
  std::vector<int64_t> channels{64, 128, 0};
  std::vector<cpu::Level> levels{cpu::Level::V3, cpu::Level::V4, cpu::Level::V4Bf16};
  /// Bytes of wide buffers over bytes of the keys, at most; what does not fit is made again.
  double workspace = std::numeric_limits<double>::infinity();
  unsigned without = 0; ///< optimisations that are left out, of enum Without
  /// A line that says all of the above, for digests.
  std::string str() const;
};

/// From -O, --dtype, --channels, --target, --workspace, --without. False after reporting.
bool readBuildOptions(const llvm::opt::InputArgList &options, BuildOptions &out);

/// One form and machine.
struct VariantChoice {
  std::string dtype;
  int64_t channels;
  cpu::Level level;
  double workspace;
};
std::vector<VariantChoice> variantsOf(const BuildOptions &options);

/// kvp presses to kvplan pipelines, in place. Errors go to the context's diagnostics.
mlir::LogicalResult toPlan(mlir::ModuleOp module, const BuildOptions &options);
/// As far as the form that plans are made of.
mlir::LogicalResult toProgram(mlir::ModuleOp module, const BuildOptions &options);

enum class CodeForm { Mlir, LlvmIr, Assembly, Object };

/// Code of one variant of a plan, as text or object bytes.
llvm::Expected<std::string> toCode(mlir::ModuleOp plan, const VariantChoice &variant,
                                   const BuildOptions &options, CodeForm form);

/// Compiles all variants and writes the module at `path`, which appears when it is complete.
llvm::Error buildModule(mlir::ModuleOp kvp, const BuildOptions &options, ModuleInfo info,
                        llvm::StringRef path);

} // namespace kvpc::driver

#endif
