//===- Build.cpp - from kvp to plans, code and modules ----------------------------------------===//
#include "lib/Driver/Build.h"

#include "dialect/Conversion/LowerPlan.h"
#include "dialect/Transforms/Passes.h"
#include "kvpc/abi.h"
#include "mlir/Bytecode/BytecodeWriter.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/ThreadPool.h"

#include <mutex>

using namespace kvpc;
using namespace kvpc::driver;

namespace {

int64_t dtypeNumber(llvm::StringRef name) {
  return name == "f32" ? KVPC_F32 : name == "bf16" ? KVPC_BF16 : KVPC_F16;
}

codegen::Variant codegenVariant(const VariantChoice &variant) {
  return {dtypeNumber(variant.dtype), variant.channels, cpu::levelLanes(variant.level),
          variant.workspace};
}

std::string prefixOf(size_t variant) { return ("kvpc_" + llvm::Twine(variant)).str(); }

/// The first error of a context and where it stands, for workers that have a context of their own.
struct Problem {
  std::string text, file;
  unsigned line = 0, column = 0;

  mlir::DiagnosticEngine::HandlerTy handler() {
    return [this](mlir::Diagnostic &diagnostic) {
      if (diagnostic.getSeverity() != mlir::DiagnosticSeverity::Error || !text.empty())
        return mlir::success();
      text = diagnostic.str();
      diagnostic.getLocation()->walk([&](mlir::Location inner) {
        auto place = mlir::dyn_cast<mlir::FileLineColLoc>(inner);
        if (!place)
          return mlir::WalkResult::advance();
        file = place.getFilename().str();
        line = place.getLine();
        column = place.getColumn();
        return mlir::WalkResult::interrupt();
      });
      return mlir::success();
    };
  }

  mlir::Location location(mlir::MLIRContext *context) const {
    if (file.empty())
      return mlir::UnknownLoc::get(context);
    return mlir::FileLineColLoc::get(context, file, line, column);
  }
};

/// One variant's object file and the names in it.
struct Compiled {
  std::string object;
  llvm::SmallVector<KernelNames> names;
  std::optional<Problem> problem;
};

/// Everything in a context of its own, so that variants compile side by side.
Compiled compileVariant(llvm::StringRef planBytecode, const VariantChoice &variant,
                        unsigned optimization, size_t number) {
  Compiled out;
  mlir::DialectRegistry registry;
  registry.insert<kvp::KvpDialect, kvplan::KvplanDialect>();
  cpu::registerTranslations(registry);
  mlir::MLIRContext context(registry, mlir::MLIRContext::Threading::DISABLED);
  Problem problem;
  mlir::ScopedDiagnosticHandler handler(&context, problem.handler());
  auto plan = mlir::parseSourceString<mlir::ModuleOp>(planBytecode, &context);
  mlir::OwningOpRef<mlir::ModuleOp> code;
  if (plan)
    code = lowerPlan(*plan, codegenVariant(variant), prefixOf(number), out.names);
  if (!code) {
    if (problem.text.empty())
      problem.text = "the plan could not be lowered";
    out.problem = problem;
    return out;
  }
  auto object = cpu::compileToObject(*code, {variant.level, optimization});
  if (object) {
    out.object = std::move(*object);
    return out;
  }
  std::string text = llvm::toString(object.takeError());
  if (problem.text.empty())
    problem.text = text;
  out.problem = problem;
  return out;
}

} // namespace

std::string BuildOptions::str() const {
  std::string out;
  llvm::raw_string_ostream os(out);
  os << "-O" << optimization << " --dtype=" << llvm::join(dtypes, ",") << " --channels=";
  llvm::interleave(channels, os, ",");
  os << " --target=";
  llvm::interleave(levels, os, [&](cpu::Level level) { os << cpu::levelName(level); }, ",");
  if (!std::isinf(workspace))
    os << " --workspace=" << workspace;
  for (auto [i, name] : llvm::enumerate(kWithoutNames))
    if (without >> i & 1)
      os << " --without=" << name;
  return out;
}

/// What an option lists, each once; of an empty list one empty entry, which nothing is called.
static std::vector<std::string> listOf(const llvm::opt::InputArgList &options, OptionId id) {
  std::vector<std::string> all;
  for (const std::string &one : options.getAllArgValues(id))
    if (!llvm::is_contained(all, one))
      all.push_back(one);
  if (all.empty())
    all.emplace_back();
  return all;
}

bool driver::readBuildOptions(const llvm::opt::InputArgList &options, BuildOptions &out) {
  if (const llvm::opt::Arg *level = options.getLastArg(OPT_O)) {
    llvm::StringRef text = level->getValue();
    if (text != "0" && text != "2")
      return usageError("there is no `-O" + text + "`; need `-O0` or `-O2`"), false;
    out.optimization = text == "0" ? 0 : 2;
  }
  if (options.hasArg(OPT_dtype_EQ)) {
    out.dtypes = listOf(options, OPT_dtype_EQ);
    for (const std::string &dtype : out.dtypes)
      if (dtype != "f32" && dtype != "bf16" && dtype != "f16")
        return usageError("there is no dtype `" + dtype + "`; need `f32`, `bf16` or `f16`"), false;
  }
  if (options.hasArg(OPT_channels_EQ)) {
    out.channels.clear();
    for (const std::string &text : listOf(options, OPT_channels_EQ)) {
      int64_t channels;
      if (llvm::StringRef(text).getAsInteger(10, channels) || channels < 0 || channels > 1 << 16)
        return usageError("`" + text +
                          "` is not a head size; need counts such as 64, or 0 for "
                          "any"),
               false;
      out.channels.push_back(channels);
    }
  }
  if (options.hasArg(OPT_target_EQ)) {
    out.levels.clear();
    for (const std::string &text : listOf(options, OPT_target_EQ)) {
      auto level = cpu::levelNamed(text);
      if (!level)
        return usageError("there is no target `" + text +
                          "`; need `x86-64-v3`, `x86-64-v4` or "
                          "`x86-64-v4+avx512bf16`"),
               false;
      out.levels.push_back(*level);
    }
  }
  if (const llvm::opt::Arg *workspace = options.getLastArg(OPT_workspace_EQ)) {
    llvm::StringRef text = workspace->getValue();
    if (text.getAsDouble(out.workspace) || !(out.workspace >= 0 && out.workspace <= 1e6))
      return usageError("`--workspace=" + text +
                        "` is not a fraction of the keys' bytes; need a "
                        "number of 0 or more"),
             false;
  }
  if (options.hasArg(OPT_without_EQ))
    for (const std::string &name : listOf(options, OPT_without_EQ)) {
      auto known = llvm::find(kWithoutNames, llvm::StringRef(name));
      if (known == std::end(kWithoutNames))
        return usageError("there is no optimisation `" + name + "`; there are `" +
                          llvm::join(llvm::ArrayRef(kWithoutNames), "`, `") + "`"),
               false;
      out.without |= 1u << (known - std::begin(kWithoutNames));
    }
  // Each once, in the order given; levels from the lowest to the highest.
  auto once = [](auto &list) {
    for (size_t i = 0; i < list.size(); ++i)
      list.erase(std::remove(list.begin() + i + 1, list.end(), list[i]), list.end());
  };
  once(out.dtypes);
  once(out.channels);
  llvm::sort(out.levels);
  once(out.levels);
  return true;
}

std::vector<VariantChoice> driver::variantsOf(const BuildOptions &options) {
  std::vector<VariantChoice> out;
  for (cpu::Level level : options.levels)
    for (const std::string &dtype : options.dtypes) {
      // Instructions for pairs of bf16 are all that the highest level adds: others would be the
      // same code again, and machines take the best level that there is for a dtype.
      if (level == cpu::Level::V4Bf16 && dtype != "bf16" &&
          llvm::is_contained(options.levels, cpu::Level::V4))
        continue;
      for (int64_t channels : options.channels)
        out.push_back({dtype, channels, level, options.workspace});
    }
  return out;
}

static PlanOptions planOptions(const BuildOptions &options) {
  PlanOptions plan;
  plan.optimization = options.optimization;
  plan.without = options.without;
  plan.recompute = std::isinf(options.workspace) ? Recompute::Never
                   : options.workspace == 0      ? Recompute::Always
                                                 : Recompute::Over;
  return plan;
}

mlir::LogicalResult driver::toPlan(mlir::ModuleOp module, const BuildOptions &options) {
  mlir::PassManager pm(module.getContext());
  buildPlanPipeline(pm, planOptions(options));
  return pm.run(module);
}

mlir::LogicalResult driver::toProgram(mlir::ModuleOp module, const BuildOptions &options) {
  mlir::PassManager pm(module.getContext());
  buildProgramPipeline(pm, planOptions(options));
  return pm.run(module);
}

llvm::Expected<std::string> driver::toCode(mlir::ModuleOp plan, const VariantChoice &variant,
                                           const BuildOptions &options, CodeForm form) {
  mlir::DialectRegistry registry;
  cpu::registerTranslations(registry);
  plan.getContext()->appendDialectRegistry(registry);
  llvm::SmallVector<KernelNames> names;
  auto code = lowerPlan(plan, codegenVariant(variant), prefixOf(0), names);
  if (!code)
    return llvm::createStringError(""); // reported where it stands
  cpu::CodegenOptions codegen{variant.level, options.optimization};
  switch (form) {
  case CodeForm::Mlir: {
    std::string out;
    llvm::raw_string_ostream(out) << *code << "\n";
    return out;
  }
  case CodeForm::LlvmIr:
    return cpu::compileToLLVMIR(*code, codegen);
  case CodeForm::Assembly:
    return cpu::compileToAssembly(*code, codegen);
  case CodeForm::Object:
    return cpu::compileToObject(*code, codegen);
  }
  llvm_unreachable("all forms are covered");
}

llvm::Error driver::buildModule(mlir::ModuleOp kvp, const BuildOptions &options, ModuleInfo info,
                                llvm::StringRef path) {
  mlir::OwningOpRef<mlir::ModuleOp> plan = kvp.clone();
  if (failed(toPlan(*plan, options)))
    return llvm::createStringError("");
  std::string bytecode;
  llvm::raw_string_ostream stream(bytecode);
  if (failed(mlir::writeBytecodeToFile(*plan, stream)))
    return llvm::createStringError("the plan cannot be written as bytecode");

  std::vector<VariantChoice> variants = variantsOf(options);
  std::vector<Compiled> compiled(variants.size());
  {
    llvm::DefaultThreadPool pool;
    for (size_t i = 0; i < variants.size(); ++i)
      pool.async(
          [&, i] { compiled[i] = compileVariant(bytecode, variants[i], options.optimization, i); });
    pool.wait();
  }

  std::vector<std::string> objects;
  for (auto [variant, result] : llvm::zip_equal(variants, compiled)) {
    if (const auto &problem = result.problem) {
      mlir::emitError(problem->location(kvp.getContext()))
          << problem->text << " (" << variant.dtype << ", "
          << (variant.channels ? std::to_string(variant.channels) : "any number of")
          << " channels, " << cpu::levelName(variant.level) << ")";
      return llvm::createStringError("");
    }
    auto level = llvm::find(options.levels, variant.level) - options.levels.begin();
    for (const KernelNames &names : result.names)
      info.variants[names.press].push_back(
          {variant.dtype, variant.channels, level, names.plan, names.run});
    objects.push_back(std::move(result.object));
  }
  info.optimization = "O" + std::to_string(options.optimization);
  info.dtypes = options.dtypes;
  info.channels = options.channels;
  for (cpu::Level level : options.levels)
    info.targets.push_back(cpu::levelName(level).str());
  return cpu::linkModule(objects, buildHeaderSection(kvp, info), path);
}
