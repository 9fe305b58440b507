//===- CompileCommand.cpp - kvpc compile ------------------------------------------------------===//
#include "lib/Driver/Build.h"
#include "lib/Driver/Commands.h"
#include "lib/Driver/Output.h"
#include "lib/Driver/Source.h"

#include "dialect/IR/Kvplan.h"
#include "llvm/ADT/StringSwitch.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FileUtilities.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/Signals.h"

using namespace kvpc;
using namespace kvpc::driver;
namespace opt = llvm::opt;

namespace {

enum class Emit { Ast, Kvp, Plan, Mlir, Llvm, Asm, Obj, Module };

std::optional<Emit> readEmit(const opt::InputArgList &options) {
  llvm::StringRef text = options.getLastArgValue(OPT_emit_EQ, "module");
  auto emit = llvm::StringSwitch<std::optional<Emit>>(text)
                  .Case("ast", Emit::Ast)
                  .Case("kvp", Emit::Kvp)
                  .Case("plan", Emit::Plan)
                  .Case("mlir", Emit::Mlir)
                  .Case("llvm", Emit::Llvm)
                  .Case("asm", Emit::Asm)
                  .Case("obj", Emit::Obj)
                  .Case("module", Emit::Module)
                  .Default(std::nullopt);
  if (!emit)
    usageError("cannot emit `" + text + "`; need ast, kvp, plan, mlir, llvm, asm, obj or module");
  return emit;
}

/// Text goes to the standard output, code to a file named like the source.
std::string outputPath(const opt::InputArgList &options, const Source &source, Emit emit) {
  if (const opt::Arg *output = options.getLastArg(OPT_o))
    return output->getValue();
  llvm::StringRef stem = source.path == "<stdin>" ? "a" : llvm::sys::path::stem(source.path);
  if (emit == Emit::Module)
    return (stem + ".kvm").str();
  return emit == Emit::Obj ? (stem + ".o").str() : "-";
}

int finish(llvm::Error error) { return error ? failure(std::move(error)) : int(kSuccess); }

int writeText(llvm::StringRef path, llvm::StringRef text) {
  return finish(writeOutput(path, [&](llvm::raw_ostream &os) { os << text; }));
}

int writeOperation(llvm::StringRef path, mlir::ModuleOp module) {
  return finish(writeOutput(path, [&](llvm::raw_ostream &os) { os << module << "\n"; }));
}

int emitCode(const opt::InputArgList &options, mlir::ModuleOp plan, const BuildOptions &build,
             Emit emit, llvm::StringRef path) {
  // Where nothing is asked for, one variant that every machine can run.
  BuildOptions one = build;
  if (!options.hasArg(OPT_dtype_EQ))
    one.dtypes = {"f32"};
  if (!options.hasArg(OPT_channels_EQ))
    one.channels = {0};
  if (!options.hasArg(OPT_target_EQ))
    one.levels = {cpu::Level::V3};
  std::vector<VariantChoice> variants = variantsOf(one);
  if (variants.size() != 1)
    return usageError("`--emit=" + options.getLastArgValue(OPT_emit_EQ) + "` shows one variant, " +
                      llvm::Twine(variants.size()) +
                      " are asked for; name one `--dtype`, `--channels` and `--target`");
  CodeForm form = emit == Emit::Mlir   ? CodeForm::Mlir
                  : emit == Emit::Llvm ? CodeForm::LlvmIr
                  : emit == Emit::Asm  ? CodeForm::Assembly
                                       : CodeForm::Object;
  auto code = toCode(plan, variants[0], one, form);
  if (!code)
    return finish(code.takeError());
  return writeText(path, *code);
}

/// The linker wants a file of its own, to make and to rename: not the output, which may be a
/// device, and whose folder stays clean whatever happens.
llvm::Error buildTo(mlir::ModuleOp kvp, const BuildOptions &build, const ModuleInfo &info,
                    llvm::StringRef path) {
  llvm::SmallString<128> temporary;
  if (std::error_code error = llvm::sys::fs::createTemporaryFile("kvpc", "kvm", temporary))
    return llvm::createStringError("cannot write a temporary file: " + error.message());
  llvm::sys::RemoveFileOnSignal(temporary);
  llvm::FileRemover remover(temporary);
  if (llvm::Error error = buildModule(kvp, build, info, temporary))
    return error;
  auto bytes = readFile(temporary);
  if (!bytes)
    return bytes.takeError();
  return writeOutput(path, [&](llvm::raw_ostream &os) { os << (*bytes)->getBuffer(); });
}

} // namespace

int driver::compileCommand(const opt::InputArgList &options) {
  auto argument = onlyInput(options, "a program (.kv), a press of the library, or `-`");
  if (!argument)
    return kUsage;
  auto emit = readEmit(options);
  BuildOptions build;
  if (!emit || !readBuildOptions(options, build))
    return kUsage;
  auto source = readSource(*argument);
  if (!source)
    return failure(source.takeError());
  Session session;
  CompileInput input;
  if (!readCompileInput(options, *source, input))
    return kUsage;
  std::string path = outputPath(options, *source, *emit);
  if (llvm::sys::fs::equivalent(path, source->path))
    return usageError("`-o " + path + "` is the program itself; name another file");
  if (*emit == Emit::Ast) {
    std::string text;
    llvm::raw_string_ostream os(text);
    if (!dumpAst(&session.context, session.sources, source->path, source->text, os))
      return kFailure;
    return writeText(path, text);
  }
  auto kvp = compileSource(options, *source, session, input);
  if (!kvp)
    return kFailure;
  if (*emit == Emit::Kvp)
    return writeOperation(path, *kvp);
  if (*emit == Emit::Module) {
    ModuleInfo info;
    info.source = source->path;
    info.sourceDigest = programDigest(session, options, build.str());
    return finish(buildTo(*kvp, build, info, path));
  }
  if (failed(toPlan(*kvp, build)))
    return kFailure;
  if (*emit == Emit::Plan)
    return writeOperation(path, *kvp);
  return emitCode(options, *kvp, build, *emit, path);
}
