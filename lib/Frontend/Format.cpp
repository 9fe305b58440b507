//===- Format.cpp - canonical form and syntax tree of one file --------------------------------===//
#include "lib/Frontend/Frontend.h"
#include "lib/Frontend/Parser.h"
#include "lib/Frontend/Printer.h"
#include "lib/Frontend/Sources.h"

using namespace kvpc;
using llvm::StringRef;

std::optional<std::string> kvpc::format(mlir::MLIRContext *context, llvm::SourceMgr &sources,
                                        StringRef path, StringRef source) {
  Diagnostics diagnostics(context, sources);
  auto file = parse(path, addSource(sources, path, source), diagnostics);
  if (file->hasErrors)
    return std::nullopt;
  std::string text = print(*file);
  // A comment that moves to the end of a line may be another group's there, and break it instead.
  for (int round = 0; round < 10; ++round) {
    llvm::SourceMgr again;
    Diagnostics silent(context, again);
    std::string next = print(*parse(path, addSource(again, path, text), silent));
    if (next == text)
      break;
    text = next;
  }
  return text;
}

bool kvpc::dumpAst(mlir::MLIRContext *context, llvm::SourceMgr &sources, StringRef path,
                   StringRef source, llvm::raw_ostream &os) {
  Diagnostics diagnostics(context, sources);
  auto file = parse(path, addSource(sources, path, source), diagnostics);
  if (file->hasErrors)
    return false;
  dump(*file, sources, os);
  return true;
}
