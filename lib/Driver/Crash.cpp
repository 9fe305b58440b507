//===- Crash.cpp - internal errors end with their own exit code -------------------------------===//
#include "lib/Driver/Crash.h"

#include "lib/Driver/CommandLine.h"
#include "lib/Module/Section.h"

#include "llvm/Support/ErrorHandling.h"
#include "llvm/Support/Signals.h"
#include "llvm/Support/raw_ostream.h"

#include <csignal>
#include <cstdlib>
#include <unistd.h>

using namespace kvpc;

static void report(const char *what) {
  llvm::errs() << "error: internal error of kvpc " << version() << ": " << what
               << "; this is a bug, please report it with the program and the command line\n";
}

/// Runs after LLVM removed the files that were being written.
static void onSignal(void *) {
  report("it crashed");
  llvm::sys::PrintStackTrace(llvm::errs());
  _exit(driver::kInternal);
}

static void onFatalError(void *, const char *reason, bool) {
  report(reason);
  llvm::sys::RunInterruptHandlers();
  _exit(driver::kInternal);
}

void driver::installCrashHandlers() {
  llvm::sys::AddSignalHandler(onSignal, nullptr);
  llvm::install_fatal_error_handler(onFatalError);
  llvm::install_bad_alloc_error_handler(onFatalError);
  // A reader that went away is not an error of ours.
  llvm::sys::SetOneShotPipeSignalFunction(llvm::sys::DefaultOneShotPipeSignalHandler);
}

void driver::crashForTests(llvm::StringRef how) {
  if (how == "abort")
    std::abort();
  if (how == "fault")
    std::raise(SIGSEGV);
  if (how == "fatal")
    llvm::report_fatal_error("asked for by --debug-crash");
}
