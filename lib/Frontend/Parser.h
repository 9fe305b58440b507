//===- Parser.h - from text to AST ------------------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_PARSER_H
#define KVPC_LIB_FRONTEND_PARSER_H

#include "lib/Frontend/AST.h"

namespace kvpc {

/// Reads one file: the text of a buffer of the source manager. Reports every error that it finds
/// and goes on; what could be read is in the result, whose `hasErrors` then says so.
std::unique_ptr<File> parse(llvm::StringRef path, llvm::StringRef source, Diagnostics &diagnostics);

/// Reads a lone expression (the value of a -D) into `file`; null after an error.
Expr *parseExpression(llvm::StringRef source, File &file, Diagnostics &diagnostics);

} // namespace kvpc

#endif
