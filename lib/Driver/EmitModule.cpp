//===- EmitModule.cpp - from a kvp program to a module file -----------------------------------===//
#include "lib/Driver/EmitModule.h"

#include "kvpc/abi.h"
#include "mlir/Pass/PassManager.h"
#include "llvm/ADT/StringSwitch.h"

using namespace mlir;

std::optional<int64_t> kvpc::dtypeCode(StringRef name) {
  return llvm::StringSwitch<std::optional<int64_t>>(name)
      .Case("f32", KVPC_F32)
      .Case("bf16", KVPC_BF16)
      .Case("f16", KVPC_F16)
      .Default(std::nullopt);
}

OwningOpRef<ModuleOp> kvpc::planOf(ModuleOp program, const PlanOptions &options) {
  OwningOpRef<ModuleOp> plan(program.clone());
  PassManager pm(program.getContext());
  buildPlanPipeline(pm, options);
  if (failed(pm.run(*plan)))
    return nullptr;
  return plan;
}

OwningOpRef<ModuleOp> kvpc::kernelsOf(ModuleOp plan, StringRef dtype, int64_t channels,
                                      cpu::Level level, StringRef prefix,
                                      SmallVectorImpl<KernelNames> &names) {
  codegen::Variant variant;
  variant.dtype = *dtypeCode(dtype);
  variant.channels = channels;
  variant.lanes = cpu::levelLanes(level);
  return lowerPlan(plan, variant, prefix, names);
}

LogicalResult kvpc::emitModule(ModuleOp program, const EmitOptions &options, StringRef path) {
  auto plan = planOf(program, options.plan);
  if (!plan)
    return failure();
  ModuleInfo info;
  info.optimization = "O" + std::to_string(options.plan.optimization);
  info.source = options.source;
  info.sourceDigest = options.sourceDigest;
  info.dtypes = options.dtypes;
  info.channels = options.channels;
  for (cpu::Level level : options.levels)
    info.targets.push_back(cpu::levelName(level).str());

  std::vector<std::string> objects;
  auto report = [&](llvm::Error error) {
    return program.emitError(llvm::toString(std::move(error)));
  };
  for (auto [target, level] : llvm::enumerate(options.levels))
    for (const std::string &dtype : options.dtypes) {
      // The pairs of vdpbf16ps are the only thing the highest level has that others have not.
      for (int64_t channels : options.channels) {
        std::string prefix = "kvpc_" + std::to_string(objects.size());
        SmallVector<KernelNames> names;
        auto kernels = kernelsOf(*plan, dtype, channels, level, prefix, names);
        if (!kernels)
          return failure();
        cpu::CodegenOptions codegen{level, options.plan.optimization};
        auto object = cpu::compileToObject(*kernels, codegen);
        if (!object)
          return report(object.takeError());
        objects.push_back(std::move(*object));
        for (const KernelNames &name : names)
          info.variants[name.press].push_back(
              {dtype, channels, static_cast<int64_t>(target), name.plan, name.run});
      }
    }
  if (auto error = cpu::linkModule(objects, buildHeaderSection(program, info), path))
    return report(std::move(error));
  return success();
}
