//===- ModuleRun.h - a press on a batch, by compiled code -------------------------------------===//
#ifndef KVPC_DRIVER_MODULERUN_H
#define KVPC_DRIVER_MODULERUN_H

#include "lib/Driver/Build.h"
#include "lib/Driver/Program.h"

namespace kvpc::driver {

/// The results that the reference would give, by the module's code; a source is compiled first, as
/// `build` says. With --scores the first stage's scores.
llvm::Expected<Arrays> runCompiled(const llvm::opt::InputArgList &options, BuildOptions build,
                                   Program &program, const BoundProgram &bound, const Batch &batch);

} // namespace kvpc::driver

#endif
