//===- Source.h - the program that a command line names ---------------------------------------===//
#ifndef KVPC_DRIVER_SOURCE_H
#define KVPC_DRIVER_SOURCE_H

#include "lib/Driver/CommandLine.h"
#include "lib/Frontend/Frontend.h"

#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "llvm/Support/Error.h"

namespace kvpc::driver {

/// The text of a file, of the library's file that declares a press, or of the standard input (`-`).
struct Source {
  std::string path; ///< as messages show it
  std::string text;
  std::string press; ///< what the library was asked for, "" for a file
};

llvm::Expected<Source> readSource(llvm::StringRef argument);

/// The bytes of a file.
llvm::Expected<std::unique_ptr<llvm::MemoryBuffer>> readFile(llvm::StringRef path,
                                                             llvm::StringRef code = "kvpc-file");

/// The same of a program: a compiled module is refused.
llvm::Expected<std::unique_ptr<llvm::MemoryBuffer>> readProgramFile(llvm::StringRef path);

/// The context of one command, with messages to the standard error.
struct Session {
  Session();

  mlir::MLIRContext context;
  llvm::SourceMgr sources;
  mlir::SourceMgrDiagnosticHandler messages;
};

/// The only positional argument. Reports what is wrong with the command line.
std::optional<llvm::StringRef> onlyInput(const llvm::opt::InputArgList &options,
                                         llvm::StringRef what);

/// The front end's input from the source and -D, -I. False after reporting.
bool readCompileInput(const llvm::opt::InputArgList &options, const Source &source,
                      CompileInput &input);

/// The presses that the command line asks for: those of --press, or the one that was named, or all
/// of the file. Null after reporting.
mlir::OwningOpRef<mlir::ModuleOp> compileSource(const llvm::opt::InputArgList &options,
                                                const Source &source, Session &session,
                                                CompileInput &input);

/// Hexadecimal SHA-256 of all that decides what is compiled: the texts that were read, defines, the
/// presses asked for, and `flags`.
std::string programDigest(const Session &session, const llvm::opt::InputArgList &options,
                          llvm::StringRef flags);

} // namespace kvpc::driver

#endif
