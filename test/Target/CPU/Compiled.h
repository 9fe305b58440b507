//===- Compiled.h - a program in MLIR, compiled, linked and loaded ---------===//
#ifndef KVPC_TEST_TARGET_CPU_COMPILED_H
#define KVPC_TEST_TARGET_CPU_COMPILED_H

#include "lib/Target/CPU/Target.h"

#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/ControlFlow/IR/ControlFlow.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/UB/IR/UBOps.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "llvm/Support/FileSystem.h"
#include "gtest/gtest.h"
#include <dlfcn.h>

namespace kvpc::test {

/// Has every dialect that the target takes.
struct Context : mlir::MLIRContext {
  Context() : MLIRContext(registry()) {
    disableMultithreading();
    loadAllAvailableDialects();
  }
  static mlir::DialectRegistry registry() {
    mlir::DialectRegistry registry;
    registry.insert<mlir::arith::ArithDialect, mlir::cf::ControlFlowDialect,
                    mlir::func::FuncDialect, mlir::math::MathDialect, mlir::scf::SCFDialect,
                    mlir::ub::UBDialect, mlir::vector::VectorDialect>();
    cpu::registerTranslations(registry);
    return registry;
  }
};

/// What a compilation answers: the result or the error's text.
struct Answer {
  std::string result, error;
  explicit Answer(llvm::Expected<std::string> value) {
    if (value)
      result = std::move(*value);
    else
      error = llvm::toString(value.takeError());
  }
};

inline Answer compiled(llvm::StringRef source, const cpu::CodegenOptions &options = {}) {
  Context context;
  auto module = mlir::parseSourceString<mlir::ModuleOp>(source, &context);
  EXPECT_TRUE(module);
  return Answer(cpu::compileToObject(*module, options));
}

inline Answer assembly(llvm::StringRef source, const cpu::CodegenOptions &options = {}) {
  Context context;
  auto module = mlir::parseSourceString<mlir::ModuleOp>(source, &context);
  EXPECT_TRUE(module);
  return Answer(cpu::compileToAssembly(*module, options));
}

struct File {
  File() {
    llvm::SmallString<128> name;
    if (!llvm::sys::fs::createTemporaryFile("kvpc-test", "kvm", name))
      path = name.str();
  }
  ~File() { llvm::sys::fs::remove(path); }
  std::string path;
};

/// A loaded module.
class Library {
public:
  explicit Library(llvm::StringRef source, const cpu::CodegenOptions &options = {}) {
    Answer code = compiled(source, options);
    EXPECT_EQ(code.error, "");
    std::string error = llvm::toString(cpu::linkModule({code.result}, "header", file.path));
    EXPECT_EQ(error, "");
    handle = dlopen(file.path.c_str(), RTLD_NOW | RTLD_LOCAL);
    EXPECT_TRUE(handle) << dlerror();
  }
  ~Library() {
    if (handle)
      dlclose(handle);
  }
  template <typename F>
  F *find(const char *name) const {
    void *symbol = handle ? dlsym(handle, name) : nullptr;
    EXPECT_TRUE(symbol) << name;
    return reinterpret_cast<F *>(symbol);
  }
  bool has(const char *name) const { return handle && dlsym(handle, name); }

private:
  File file;
  void *handle = nullptr;
};

} // namespace kvpc::test

#endif // KVPC_TEST_TARGET_CPU_COMPILED_H
