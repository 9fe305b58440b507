//===- Commands.h - one function a command of kvpc --------------------------------------------===//
#ifndef KVPC_DRIVER_COMMANDS_H
#define KVPC_DRIVER_COMMANDS_H

#include "lib/Driver/CommandLine.h"

namespace kvpc::driver {

int compileCommand(const llvm::opt::InputArgList &options);
int checkCommand(const llvm::opt::InputArgList &options);
int formatCommand(const llvm::opt::InputArgList &options);
int inspectCommand(const llvm::opt::InputArgList &options);
int explainCommand(const llvm::opt::InputArgList &options);
int runCommand(const llvm::opt::InputArgList &options);

} // namespace kvpc::driver

#endif
