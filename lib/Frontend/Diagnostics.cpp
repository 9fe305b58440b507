//===- Diagnostics.cpp - what a wrong program is told -----------------------------------------===//
#include "lib/Frontend/Diagnostics.h"

#include "mlir/IR/Location.h"
#include "mlir/IR/MLIRContext.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/Support/MemoryBuffer.h"

using namespace kvpc;
using llvm::StringRef;

namespace {
struct Row {
  const char *code;
  const char *format;
};
constexpr Row table[] = {
#define KVPC_DIAGNOSTIC(ID, CODE, FORMAT) {CODE, FORMAT},
#include "lib/Frontend/Diagnostics.def"
};
} // namespace

StringRef kvpc::diagnosticCode(Diag id) { return table[static_cast<int>(id)].code; }
const char *kvpc::diagnosticFormat(Diag id) { return table[static_cast<int>(id)].format; }

llvm::ArrayRef<StringRef> kvpc::diagnosticCodes() {
  static const auto codes = [] {
    llvm::SmallVector<StringRef> all;
    for (const Row &row : table)
      if (!llvm::is_contained(all, row.code))
        all.push_back(row.code);
    return all;
  }();
  return codes;
}

mlir::Location Diagnostics::location(llvm::SMLoc place) const {
  unsigned id = place.isValid() ? sources.FindBufferContainingLoc(place) : 0;
  if (!id)
    return mlir::UnknownLoc::get(context);
  auto [line, column] = sources.getLineAndColumn(place, id);
  return mlir::FileLineColLoc::get(context, sources.getMemoryBuffer(id)->getBufferIdentifier(),
                                   line, column);
}

mlir::InFlightDiagnostic Diagnostics::errorText(llvm::SMLoc place, Diag id,
                                                const std::string &text) {
  ++errors;
  return mlir::emitError(location(place)) << oneLine(text) << " [" << diagnosticCode(id) << "]";
}

std::string kvpc::oneLine(StringRef text) {
  std::string out;
  while (true) {
    auto [line, rest] = text.split('\n');
    if (line.size() == text.size())
      return out + text.str();
    out += line.split('#').first.rtrim().str() + " ";
    text = rest.ltrim(" \t");
  }
}

StringRef kvpc::nearest(StringRef name, llvm::ArrayRef<StringRef> candidates) {
  // A third of the letters may be wrong, but never all.
  unsigned size = static_cast<unsigned>(name.size());
  unsigned best = std::min((size + 2) / 3 + 1, size);
  StringRef found;
  for (StringRef candidate : candidates) {
    unsigned distance = name.edit_distance(candidate, /*AllowReplacements=*/true, best);
    if (distance < best)
      best = distance, found = candidate;
  }
  return found;
}

std::string kvpc::quoteList(llvm::ArrayRef<StringRef> names) {
  std::string text;
  for (StringRef name : names) {
    if (!text.empty())
      text += ", ";
    text += "`" + name.str() + "`";
  }
  return text;
}
