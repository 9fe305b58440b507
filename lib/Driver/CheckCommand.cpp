//===- CheckCommand.cpp - kvpc check ----------------------------------------------------------===//
#include "lib/Driver/Commands.h"
#include "lib/Driver/Source.h"

using namespace kvpc;
using namespace kvpc::driver;

int driver::checkCommand(const llvm::opt::InputArgList &options) {
  auto argument = onlyInput(options, "a program");
  if (!argument)
    return kUsage;
  auto source = readSource(*argument);
  if (!source)
    return failure(source.takeError());
  Session session;
  CompileInput input;
  if (!readCompileInput(options, *source, input))
    return kUsage;
  input.press = options.getLastArgValue(OPT_press_EQ).str();
  return check(&session.context, session.sources, input) ? kSuccess : kFailure;
}
