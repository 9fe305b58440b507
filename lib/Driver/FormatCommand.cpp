//===- FormatCommand.cpp - kvpc fmt -----------------------------------------------------------===//
#include "lib/Driver/Commands.h"
#include "lib/Driver/Output.h"
#include "lib/Driver/Source.h"

#include "llvm/Support/raw_ostream.h"

using namespace kvpc;
using namespace kvpc::driver;

static int formatFile(llvm::StringRef path, bool inPlace, bool check) {
  auto buffer = readProgramFile(path);
  if (!buffer)
    return failure(buffer.takeError());
  Session session;
  std::string name = path == "-" ? "<stdin>" : path.str();
  auto text = format(&session.context, session.sources, name, (*buffer)->getBuffer());
  if (!text)
    return kFailure;
  bool same = *text == (*buffer)->getBuffer();
  if (check) {
    if (!same)
      llvm::errs() << "error: `" << name << "` is not formatted; run `kvpc fmt -i " << path
                   << "`\n";
    return same ? kSuccess : kFailure;
  }
  if (!inPlace) {
    llvm::outs() << *text;
    return kSuccess;
  }
  if (same)
    return kSuccess;
  buffer->reset(); // the file may be mapped
  if (llvm::Error error = writeOutput(path, [&](llvm::raw_ostream &os) { os << *text; }))
    return failure(std::move(error));
  return kSuccess;
}

int driver::formatCommand(const llvm::opt::InputArgList &options) {
  std::vector<std::string> paths = options.getAllArgValues(OPT_INPUT);
  bool inPlace = options.hasArg(OPT_i), check = options.hasArg(OPT_check);
  if (inPlace && check)
    return usageError("`-i` writes and `--check` does not; give one of them");
  if (paths.empty())
    paths.push_back("-");
  if (paths.size() > 1 && !inPlace && !check)
    return usageError("several files would run together in the output; give `-i` or `--check`");
  if (inPlace && llvm::is_contained(paths, "-"))
    return usageError("`-i` cannot write the standard input; give a file");
  int worst = kSuccess;
  for (const std::string &path : paths)
    worst = std::max(worst, formatFile(path, inPlace, check));
  return worst;
}
