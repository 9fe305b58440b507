//===- Capture.h - a context that keeps its diagnostics as text -------------------------------===//
#ifndef KVPC_TEST_FRONTEND_CAPTURE_H
#define KVPC_TEST_FRONTEND_CAPTURE_H

#include "lib/Frontend/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include <string>
#include <vector>

namespace kvpc::test {

struct Capture {
  mlir::MLIRContext context{mlir::MLIRContext::Threading::DISABLED};
  llvm::SourceMgr sources;
  Diagnostics diagnostics{&context, sources};
  /// `line:column: text` of errors; notes follow theirs, with `note: ` before the text.
  std::vector<std::string> messages;

  Capture() {
    context.getDiagEngine().registerHandler([this](mlir::Diagnostic &d) {
      messages.push_back(place(d.getLocation()) + d.str());
      for (mlir::Diagnostic &note : d.getNotes())
        messages.push_back(place(note.getLocation()) + "note: " + note.str());
    });
  }

  static std::string place(mlir::Location location) {
    auto at = llvm::dyn_cast<mlir::FileLineColLoc>(location);
    if (!at)
      return "?: ";
    return std::to_string(at.getLine()) + ":" + std::to_string(at.getColumn()) + ": ";
  }
};

} // namespace kvpc::test

#endif
