//===- Program.h - a compiled or source program that is to run --------------------------------===//
#ifndef KVPC_DRIVER_PROGRAM_H
#define KVPC_DRIVER_PROGRAM_H

#include "lib/Driver/ReferenceRun.h"
#include "lib/Driver/Source.h"

namespace kvpc::driver {

/// The program of a module file, or of a source as the front end compiles it.
struct Program {
  Session session;
  std::string modulePath; ///< "" for a source
  std::string bytes;      ///< what the header points into
  runtime::Header header; ///< of a source: without compiled variants
  mlir::OwningOpRef<mlir::ModuleOp> module;

  const runtime::PressHeader *findHeader(llvm::StringRef name) const;
  kvp::PressOp findPress(llvm::StringRef name);
};

/// kSuccess, or what to end with after reporting.
int loadProgram(const llvm::opt::InputArgList &options, llvm::StringRef argument, Program &program);

/// `64`, `0.5`, `true`, `inf`, `drop(0.5)`, `keep(1024)`.
std::optional<runtime::Value> parseValue(llvm::StringRef text);

} // namespace kvpc::driver

#endif
