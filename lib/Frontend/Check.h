//===- Check.h - names and kinds, before anything is evaluated --------------------------------===//
#ifndef KVPC_LIB_FRONTEND_CHECK_H
#define KVPC_LIB_FRONTEND_CHECK_H

#include "lib/Frontend/Program.h"

namespace kvpc {

/// Checks what can be said of declarations without evaluating them, so also of those that nothing
/// uses: names, arguments, presses against values, shadowing, parameters, cycles of calls.
/// False after reporting errors.
bool checkDeclarations(Program &program, const File &file, Diagnostics &diagnostics);

/// The same for a lone expression (a -D), as seen from the main file.
bool checkExpression(Program &program, const Expr &expr, bool wantPress, llvm::StringRef parameter,
                     Diagnostics &diagnostics);

enum class ExprKind { Value, Score, Press, Unknown };

/// What kind of thing an expression is, from its form alone. `decl` says what parameters are; its
/// lets count as they stand.
ExprKind kindOf(Program &program, const Expr &expr, const Decl *decl, const File &file);

/// "a score", "a press", "a number", "a value".
llvm::StringRef describeKind(Program &program, const Expr &expr, const Decl *decl,
                             const File &file);

} // namespace kvpc

#endif
