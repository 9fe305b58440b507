//===- ExplainCommand.cpp - kvpc explain ------------------------------------------------------===//
#include "lib/Driver/Commands.h"

using namespace kvpc;

int driver::explainCommand(const llvm::opt::InputArgList &options) {
  return failure("not there yet");
}
