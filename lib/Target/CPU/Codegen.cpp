//===- Codegen.cpp - LLVM dialect to object code ---------------------------===//
#include "Target.h"

#include "Primitives/Bitcode/PrimitivesBitcode.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "llvm/Analysis/TargetLibraryInfo.h"
#include "llvm/Bitcode/BitcodeReader.h"
#include "llvm/IR/DiagnosticInfo.h"
#include "llvm/IR/DiagnosticPrinter.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/IR/Module.h"
#include "llvm/IR/Verifier.h"
#include "llvm/Linker/Linker.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/CrashRecoveryContext.h"
#include "llvm/Support/ErrorHandling.h"
#include "llvm/Support/Process.h"
#include "llvm/Support/SmallVectorMemoryBuffer.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/Support/TimeProfiler.h"
#include "llvm/Target/TargetMachine.h"
#include <mutex>

using namespace llvm;

namespace kvpc::cpu {
namespace {

struct LevelDescription {
  StringRef name, cpu, features, vectorWidth;
  unsigned lanes;
};
// The width is given because LLVM prefers 256 bits on x86-64-v4.
constexpr LevelDescription kLevelTable[kLevels] = {
    {"x86-64-v3", "x86-64-v3", "", "256", 8},
    {"x86-64-v4", "x86-64-v4", "", "512", 16},
    {"x86-64-v4+avx512bf16", "x86-64-v4", "+avx512bf16", "512", 16},
};
const LevelDescription &describe(Level level) { return kLevelTable[unsigned(level)]; }

constexpr StringLiteral kTriple = "x86_64-unknown-linux-gnu";

enum class Form { Object, Assembly, IR };

//===----------------------------------------------------------------------===//
// Errors. LLVM reports some of them through the context and others, such as an instruction that it
// cannot select, by ending the process; those leave the recovery context instead.
//===----------------------------------------------------------------------===//

thread_local std::string fatalMessage;

void handleFatalError(void *, const char *reason, bool) {
  if (!CrashRecoveryContext::GetCurrent()) {
    errs() << "LLVM ERROR: " << reason << '\n';
    return;
  }
  fatalMessage = reason;
  sys::Process::Exit(1); // returns from RunSafely
}

void initializeLLVM() {
  static std::once_flag once;
  std::call_once(once, [] {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    install_fatal_error_handler(handleFatalError);
    CrashRecoveryContext::Enable();
  });
}

struct Messages : DiagnosticHandler {
  explicit Messages(std::string &text) : text(text) {}
  bool handleDiagnostics(const DiagnosticInfo &info) override {
    if (info.getSeverity() != DS_Error)
      return true;
    raw_string_ostream stream(text);
    DiagnosticPrinterRawOStream printer(stream);
    if (!text.empty())
      stream << "; ";
    info.print(printer);
    return true;
  }
  std::string &text;
};

Error failure(const Twine &message) {
  return createStringError("cannot compile to machine code: " + message);
}

//===----------------------------------------------------------------------===//
// Stages
//===----------------------------------------------------------------------===//

std::unique_ptr<TargetMachine> createMachine(const CodegenOptions &options, std::string &error) {
  Triple triple(kTriple);
  const llvm::Target *target = TargetRegistry::lookupTarget(triple, error);
  if (!target)
    return nullptr;
  TargetOptions target_options;
  target_options.FunctionSections = true; // for --gc-sections
  target_options.DataSections = true;
  const LevelDescription &level = describe(options.level);
  CodeGenOptLevel effort =
      options.optimization == 0 ? CodeGenOptLevel::None : CodeGenOptLevel::Default;
  return std::unique_ptr<TargetMachine>(target->createTargetMachine(
      triple, level.cpu, level.features, target_options, Reloc::PIC_, std::nullopt, effort));
}

/// Small primitives, those that their author wants inlined, come in as bitcode. The others are in
/// an object of the level (Objects/), under names with a prefix; of their bitcode only the
/// attributes are of use, which tell what memory they touch.
Error linkPrimitives(Module &module, Level level) {
  StringRef bitcode = primitivesBitcode(unsigned(level));
  Expected<std::unique_ptr<Module>> primitives = getLazyBitcodeModule(
      MemoryBufferRef(bitcode, "primitives"), module.getContext(), /*ShouldLazyLoadMetadata=*/true);
  if (!primitives)
    return primitives.takeError();
  std::string prefix = ("level" + Twine(unsigned(level)) + ".").str();
  bool inlined = false;
  for (Function &declared : module) {
    StringRef name = declared.getName();
    if (!declared.isDeclaration() || !name.starts_with("kvpc_prim_") ||
        name.starts_with("kvpc_prim_f64_"))
      continue;
    const Function *primitive = (*primitives)->getFunction(name);
    if (!primitive)
      return failure("there is no primitive `" + name + "`");
    if (declared.getFunctionType() != primitive->getFunctionType()) {
      std::string types;
      raw_string_ostream(types) << "`" << *declared.getFunctionType() << "`, but it is `"
                                << *primitive->getFunctionType() << "`";
      return failure("the primitive `" + name + "` is declared as " + types);
    }
    if (primitive->hasFnAttribute(Attribute::AlwaysInline)) {
      inlined = true;
      continue;
    }
    declared.setAttributes(primitive->getAttributes());
    declared.setName(prefix + name);
  }
  if (!inlined)
    return Error::success();
  (*primitives)->setDataLayout(module.getDataLayout());
  (*primitives)->setTargetTriple(module.getTargetTriple());
  // It would bring in memcpy, which is an object too.
  if (GlobalVariable *used = (*primitives)->getNamedGlobal("llvm.compiler.used"))
    used->eraseFromParent();
  if (Linker::linkModules(module, std::move(*primitives), Linker::LinkOnlyNeeded))
    return failure("the primitives cannot be linked");
  return Error::success();
}

/// Everything but the exports is of this module alone. One set of attributes for all functions:
/// only then does LLVM inline them into each other.
void setAttributes(Module &module, const StringSet<> &exports, const LevelDescription &level) {
  for (GlobalObject &object : module.global_objects()) {
    if (object.getName().starts_with("llvm."))
      continue;
    // The only definitions elsewhere are those of Objects/, in the same shared object.
    if (object.isDeclaration()) {
      object.setVisibility(GlobalValue::HiddenVisibility);
      continue;
    }
    if (!exports.contains(object.getName())) {
      object.setComdat(nullptr);
      object.setVisibility(GlobalValue::DefaultVisibility);
      object.setLinkage(GlobalValue::InternalLinkage);
    }
    object.setDSOLocal(true);
  }
  for (Function &function : module) {
    if (function.isDeclaration())
      continue;
    function.addFnAttr("target-cpu", level.cpu);
    function.removeFnAttr("tune-cpu");
    if (level.features.empty())
      function.removeFnAttr("target-features");
    else
      function.addFnAttr("target-features", level.features);
    function.addFnAttr("prefer-vector-width", level.vectorWidth);
    function.removeFnAttr("min-legal-vector-width");
    function.addFnAttr(Attribute::NoUnwind);
    function.setUWTableKind(UWTableKind::Async); // for debuggers and profilers
  }
}

/// What code made of small pieces cannot do without, at half the cost of -O1.
constexpr StringLiteral kFewPasses = "always-inline,globaldce,function(sroa,early-cse,instcombine<"
                                     "no-verify-fixpoint>,simplifycfg,loop-mssa(licm))";

Error optimize(Module &module, TargetMachine &machine, unsigned level) {
  PipelineTuningOptions tuning;
  tuning.SLPVectorization = false;
  LoopAnalysisManager loops;
  FunctionAnalysisManager functions;
  CGSCCAnalysisManager cgscc;
  ModuleAnalysisManager modules;
  PassBuilder builder(&machine, tuning);
  // There is no C library: no loop may become memcpy, no call be taken for one of libm.
  functions.registerPass([&] {
    TargetLibraryInfoImpl library(machine.getTargetTriple());
    library.disableAllFunctions();
    return TargetLibraryAnalysis(library);
  });
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(cgscc);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, cgscc, modules);
  ModulePassManager passes;
  if (level == 0) {
    if (Error error = builder.parsePassPipeline(passes, kFewPasses))
      return error;
  } else {
    passes = builder.buildPerModuleDefaultPipeline(level == 1   ? OptimizationLevel::O1
                                                   : level == 2 ? OptimizationLevel::O2
                                                                : OptimizationLevel::O3);
  }
  passes.run(module, modules);
  return Error::success();
}

Error emit(Module &module, TargetMachine &machine, Form form, std::string &result) {
  if (form == Form::IR) {
    raw_string_ostream stream(result);
    module.print(stream, nullptr);
    return Error::success();
  }
  SmallVector<char, 0> buffer;
  raw_svector_ostream stream(buffer);
  legacy::PassManager passes;
  TargetLibraryInfoImpl library(machine.getTargetTriple());
  library.disableAllFunctions();
  passes.add(new TargetLibraryInfoWrapperPass(library));
  auto type = form == Form::Object ? CodeGenFileType::ObjectFile : CodeGenFileType::AssemblyFile;
  if (machine.addPassesToEmitFile(passes, stream, nullptr, type, /*DisableVerify=*/true))
    return failure("the target cannot emit this kind of file");
  passes.run(module);
  result.assign(buffer.begin(), buffer.end());
  return Error::success();
}

Error compileInContext(mlir::ModuleOp source, const CodegenOptions &options, Form form,
                       LLVMContext &context, std::string &result) {
  std::string error;
  std::unique_ptr<TargetMachine> machine = createMachine(options, error);
  if (!machine)
    return failure(error);
  StringSet<> exports;
  for (auto function : source.getOps<mlir::LLVM::LLVMFuncOp>())
    if (function->hasAttr("kvpc.export"))
      exports.insert(function.getName());

  std::unique_ptr<Module> module;
  {
    TimeTraceScope scope("kvpc-translate");
    module = mlir::translateModuleToLLVMIR(source, context, "kvpc", /*disableVerification=*/true);
    if (!module)
      return failure("the program cannot be translated to LLVM IR");
    module->setTargetTriple(machine->getTargetTriple());
    module->setDataLayout(machine->createDataLayout());
    module->setPICLevel(PICLevel::BigPIC);
    if (Error linked = linkPrimitives(*module, options.level))
      return linked;
    setAttributes(*module, exports, describe(options.level));
    raw_string_ostream stream(error);
    if (verifyModule(*module, &stream))
      return failure(error);
  }
  {
    TimeTraceScope scope("kvpc-optimize");
    if (Error error = optimize(*module, *machine, options.optimization))
      return error;
  }
  TimeTraceScope scope("kvpc-emit");
  return emit(*module, *machine, form, result);
}

Expected<std::string> compile(mlir::ModuleOp source, const CodegenOptions &options, Form form) {
  initializeLLVM();
  {
    TimeTraceScope scope("kvpc-lower");
    if (failed(lowerToLLVMDialect(source, options.level)))
      return failure("the program cannot be lowered to the LLVM dialect");
  }
  // Outlives a failure: what LLVM was doing then is never finished, nor its memory released.
  auto *context = new LLVMContext;
  std::string messages, result;
  context->setDiagnosticHandler(std::make_unique<Messages>(messages));
  fatalMessage.clear();
  Error error = Error::success();
  CrashRecoveryContext recovery;
  bool finished = recovery.RunSafely([&] {
    if (Error failed = compileInContext(source, options, form, *context, result))
      error = joinErrors(std::move(error), std::move(failed));
  });
  if (!finished) {
    consumeError(std::move(error));
    return failure(fatalMessage.empty() ? "LLVM crashed" : StringRef(fatalMessage).trim());
  }
  delete context;
  if (error)
    return std::move(error);
  if (!messages.empty())
    return failure(messages);
  return result;
}

} // namespace

StringRef levelName(Level level) { return describe(level).name; }
unsigned levelLanes(Level level) { return describe(level).lanes; }

std::optional<Level> levelNamed(StringRef name) {
  for (unsigned level = 0; level < kLevels; ++level)
    if (kLevelTable[level].name == name)
      return Level(level);
  return std::nullopt;
}

void registerTranslations(mlir::DialectRegistry &registry) {
  registry.insert<mlir::LLVM::LLVMDialect>();
  mlir::registerBuiltinDialectTranslation(registry);
  mlir::registerLLVMDialectTranslation(registry);
}

Expected<std::string> compileToObject(mlir::ModuleOp module, const CodegenOptions &options) {
  return compile(module, options, Form::Object);
}
Expected<std::string> compileToAssembly(mlir::ModuleOp module, const CodegenOptions &options) {
  return compile(module, options, Form::Assembly);
}
Expected<std::string> compileToLLVMIR(mlir::ModuleOp module, const CodegenOptions &options) {
  return compile(module, options, Form::IR);
}

} // namespace kvpc::cpu
