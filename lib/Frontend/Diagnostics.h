//===- Diagnostics.h - what a wrong program is told -------------------------------------------===//
//
// One table, Diagnostics.def, holds every message with its stable code. Messages go through the
// MLIR diagnostic engine, so a driver shows them with a SourceMgrDiagnosticHandler.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_DIAGNOSTICS_H
#define KVPC_LIB_FRONTEND_DIAGNOSTICS_H

#include "mlir/IR/Diagnostics.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/SourceMgr.h"
#include <string>

namespace kvpc {

enum class Diag {
#define KVPC_DIAGNOSTIC(ID, CODE, FORMAT) ID,
#include "lib/Frontend/Diagnostics.def"
};

/// A text with so many errors is none of this language, and not read to its end.
inline constexpr unsigned maxTextErrors = 20;

/// The stable code, e.g. `kv-axis-unknown`. Several messages may share one.
llvm::StringRef diagnosticCode(Diag id);
/// The message with `{0}`, `{1}`, ... for its arguments.
const char *diagnosticFormat(Diag id);
/// Every code once, in the order of the table.
llvm::ArrayRef<llvm::StringRef> diagnosticCodes();

/// Reports about places in the buffers of a source manager.
class Diagnostics {
public:
  Diagnostics(mlir::MLIRContext *context, llvm::SourceMgr &sources)
      : context(context), sources(sources) {}

  mlir::Location location(llvm::SMLoc place) const;
  mlir::MLIRContext *getContext() const { return context; }
  llvm::SourceMgr &getSources() const { return sources; }

  /// `message [code]` at `place`; notes may be attached to what is returned.
  template <typename... Args>
  mlir::InFlightDiagnostic error(llvm::SMLoc place, Diag id, Args &&...args) {
    return errorText(place, id,
                     llvm::formatv(false, diagnosticFormat(id), std::forward<Args>(args)...).str());
  }
  /// The same with the message already made.
  mlir::InFlightDiagnostic errorText(llvm::SMLoc place, Diag id, const std::string &text);

  unsigned errorCount() const { return errors; }

private:
  mlir::MLIRContext *context;
  llvm::SourceMgr &sources;
  unsigned errors = 0;
};

/// The text on one line, as a message needs it: line ends, with comments before them and
/// indentation after, are single spaces.
std::string oneLine(llvm::StringRef text);

/// The candidate that `name` is probably a misspelling of, or "".
llvm::StringRef nearest(llvm::StringRef name, llvm::ArrayRef<llvm::StringRef> candidates);

/// "`a`, `b`, `c`".
std::string quoteList(llvm::ArrayRef<llvm::StringRef> names);

} // namespace kvpc

#endif
