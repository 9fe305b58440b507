//===- Section.h - the section `.kvpc` of a module --------------------------------------------===//
//
// What a module says of itself, in front of its code and readable without loading it: a fixed
// prefix, JSON, and the program as MLIR bytecode for the reference interpreter. docs/Module.md has
// the layout; runtime/core reads it.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_MODULE_SECTION_H
#define KVPC_MODULE_SECTION_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/JSON.h"

#include <string>
#include <vector>

namespace kvpc {

/// "0.1.0"
llvm::StringRef version();

/// One compiled form of a press and the symbols it exports.
struct ModuleVariant {
  std::string dtype;     ///< "f32", "bf16"
  int64_t channels = 0;  ///< 0: any
  int64_t target = 0;    ///< index into ModuleInfo::targets
  std::string plan, run; ///< entry points
};

/// What the kvp program does not say.
struct ModuleInfo {
  std::string optimization = "O2"; ///< "O0", "O2"
  std::string source;              ///< name or path
  std::string sourceDigest;        ///< hex SHA-256 of sources, defines and flags
  std::vector<std::string> dtypes;
  std::vector<int64_t> channels;
  std::vector<std::string> targets;                     ///< from the lowest level to the highest
  llvm::StringMap<std::vector<ModuleVariant>> variants; ///< by name of the press
};

/// The JSON object that hosts read.
llvm::json::Value headerJson(mlir::ModuleOp kvp, const ModuleInfo &info);

/// The section's bytes. The same input gives the same bytes.
std::string buildHeaderSection(mlir::ModuleOp kvp, const ModuleInfo &info);

/// The program in the `bytecode` of a section. The bytes are not trusted: what is not a verified
/// kvp program is refused.
llvm::Expected<mlir::OwningOpRef<mlir::ModuleOp>> readProgram(mlir::MLIRContext &context,
                                                              llvm::StringRef bytecode);

/// Hexadecimal SHA-256.
std::string digestOf(llvm::StringRef bytes);

} // namespace kvpc

#endif
