//===- CommandLine.h - commands of kvpc and their options -------------------------------------===//
#ifndef KVPC_DRIVER_COMMANDLINE_H
#define KVPC_DRIVER_COMMANDLINE_H

#include "llvm/ADT/StringRef.h"
#include "llvm/Option/ArgList.h"
#include "llvm/Option/OptTable.h"
#include "llvm/Support/Error.h"

#include <optional>

namespace kvpc::driver {

/// What the process ends with.
enum Exit : int {
  kSuccess = 0,
  kFailure = 1,  ///< a wrong program, file or module
  kUsage = 2,    ///< a wrong command line
  kInternal = 70 ///< an error of the compiler
};

enum OptionId {
  OPT_INVALID = 0,
#define OPTION(...) LLVM_MAKE_OPT_ID(__VA_ARGS__),
#include "lib/Driver/Options.inc"
#undef OPTION
};

enum OptionVisibility {
  CompileOption = 1 << 8,
  CheckOption = 1 << 9,
  FmtOption = 1 << 10,
  InspectOption = 1 << 11,
  ExplainOption = 1 << 12,
  RunOption = 1 << 13,
};

/// A command and the options that it takes.
struct Command {
  llvm::StringRef name, usage, summary;
  unsigned visibility;
  int (*run)(const llvm::opt::InputArgList &options);
};

llvm::ArrayRef<Command> commands();

/// `error: text` on the standard error, then kUsage.
int usageError(const llvm::Twine &text);
/// The same with kFailure.
int failure(const llvm::Twine &text);
/// The same for an error. One without text was reported where it stands.
int failure(llvm::Error error);

/// Runs the process's command line.
int run(int argc, char **argv);

} // namespace kvpc::driver

#endif
