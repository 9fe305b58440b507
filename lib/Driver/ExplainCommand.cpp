//===- ExplainCommand.cpp - kvpc explain ------------------------------------------------------===//
#include "lib/Driver/Build.h"
#include "lib/Driver/Commands.h"
#include "lib/Driver/Explanation.h"
#include "lib/Driver/Shape.h"
#include "lib/Driver/Source.h"

#include "llvm/Support/FormatVariadic.h"

using namespace kvpc;
using namespace kvpc::driver;

/// The shape that is asked for, else one of a usual model with a long prompt.
static bool readCostShape(const llvm::opt::InputArgList &options, const BuildOptions &build,
                          CostShape &out) {
  bool narrow = !options.hasArg(OPT_dtype_EQ) || build.dtypes[0] != "f32";
  out.storageBytes = narrow ? 2 : 4;
  if (!options.hasArg(OPT_shape_EQ))
    return true;
  auto shape = readShape(options);
  if (!shape)
    return false;
  auto [batch, heads, groups, tokens, channels] = *shape;
  out = {batch, heads, groups, tokens, channels, out.layers, out.storageBytes};
  return true;
}

int driver::explainCommand(const llvm::opt::InputArgList &options) {
  auto argument = onlyInput(options, "a program (.kv), a press of the library, or `-`");
  if (!argument)
    return kUsage;
  BuildOptions build;
  CostShape shape;
  if (!readBuildOptions(options, build) || !readCostShape(options, build, shape))
    return kUsage;
  auto source = readSource(*argument);
  if (!source)
    return failure(source.takeError());
  Session session;
  CompileInput input;
  if (!readCompileInput(options, *source, input))
    return kUsage;
  auto kvp = compileSource(options, *source, session, input);
  if (!kvp)
    return kFailure;
  mlir::OwningOpRef<mlir::ModuleOp> plan = kvp->clone(), program = kvp->clone();
  if (failed(toPlan(*plan, build)) || failed(toProgram(*program, build)))
    return kFailure;
  llvm::json::Array all;
  for (auto press : kvp->getOps<kvp::PressOp>()) {
    auto pipeline = plan->lookupSymbol<kvplan::PipelineOp>(press.getSymName());
    auto lowered = program->lookupSymbol<kvp::PressOp>(press.getSymName());
    Explanation explanation = explain(pipeline, press, lowered, shape);
    if (auto tight = pipeline.getTight()) {
      double cap = build.workspace * shape.keysBytes();
      bool fits = double(explanation.widestTask) < cap;
      std::string choice = llvm::formatv(
          "of two plans this, as a task's {0:f1} MiB of wide values {1} a workspace "
          "of {2:f1} MiB",
          explanation.widestTask / 1048576.0, fits ? "fit" : "do not fit", cap / 1048576.0);
      if (!fits)
        explanation =
            explain(plan->lookupSymbol<kvplan::PipelineOp>(*tight), press, lowered, shape);
      explanation.press = press.getSymName().str();
      explanation.choice = choice;
    }
    if (options.hasArg(OPT_json))
      all.push_back(toJson(explanation));
    else
      print(explanation, llvm::outs());
  }
  if (options.hasArg(OPT_json))
    llvm::outs() << llvm::formatv("{0:2}\n", llvm::json::Value(std::move(all)));
  return kSuccess;
}
