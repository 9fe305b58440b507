//===- Frontend.h - what tools ask of the front end -------------------------------------------===//
//
// Source text goes in, a kvp program comes out. All sources are added to the caller's SourceMgr and
// all messages go to the context's diagnostic engine: with a SourceMgrDiagnosticHandler over both,
// each shows file, line, column, the source line and a caret.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_FRONTEND_H
#define KVPC_LIB_FRONTEND_FRONTEND_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/Support/SourceMgr.h"
#include <optional>
#include <string>
#include <vector>

namespace kvpc {

/// `-D [press.]name=value`: the value is source text.
struct Define {
  std::string name;
  std::string value;
};

struct CompileInput {
  /// As messages show it. Imports are looked for in its folder.
  std::string path;
  std::string source;
  /// Where imports are looked for next (-I).
  std::vector<std::string> includeDirs;
  std::vector<Define> defines;
  /// Export this declaration alone, whether or not its run-time parameters have defaults.
  std::string press;
};

/// The exported presses as kvp.press operations, or null after reporting errors.
mlir::OwningOpRef<mlir::ModuleOp> compileToKvp(mlir::MLIRContext *context, llvm::SourceMgr &sources,
                                               const CompileInput &input);

/// Checks all declarations of the file, exported or not. False after reporting errors.
bool check(mlir::MLIRContext *context, llvm::SourceMgr &sources, const CompileInput &input);

/// The canonical form of the source, or nothing after reporting errors.
std::optional<std::string> format(mlir::MLIRContext *context, llvm::SourceMgr &sources,
                                  llvm::StringRef path, llvm::StringRef source);

/// Writes the syntax tree. False after reporting errors.
bool dumpAst(mlir::MLIRContext *context, llvm::SourceMgr &sources, llvm::StringRef path,
             llvm::StringRef source, llvm::raw_ostream &os);

/// A file of the library, which is part of the compiler.
struct LibraryFile {
  llvm::StringRef name; // snapkv
  llvm::StringRef path; // <library>/snapkv.kv, as messages show it
  llvm::StringRef source;
};

/// In alphabetical order.
llvm::ArrayRef<LibraryFile> library();
/// Null where the library has no file of that name.
const LibraryFile *findLibraryFile(llvm::StringRef name);

} // namespace kvpc

#endif
