//===- Source.cpp - the program that a command line names -------------------------------------===//
#include "lib/Driver/Source.h"

#include "dialect/IR/Kvp.h"
#include "lib/Module/Section.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"

using namespace kvpc;
using namespace kvpc::driver;
namespace opt = llvm::opt;

/// Names of the scores and presses that a file of the library declares. It is formatted: a
/// declaration begins a line.
static std::vector<llvm::StringRef> declarationsOf(const LibraryFile &file) {
  std::vector<llvm::StringRef> names;
  llvm::SmallVector<llvm::StringRef> lines;
  file.source.split(lines, '\n');
  for (llvm::StringRef line : lines)
    if (line.consume_front("score ") || line.consume_front("press "))
      names.push_back(line.take_until([](char c) { return c == '('; }));
  return names;
}

/// The file that declares `name`, and else the one that is called so.
static const LibraryFile *findDeclaration(llvm::StringRef name, bool &declared) {
  for (const LibraryFile &file : library())
    if ((declared = llvm::is_contained(declarationsOf(file), name)))
      return &file;
  return findLibraryFile(name);
}

/// The name in the library that is nearest to `name`, or "".
static llvm::StringRef nearestInLibrary(llvm::StringRef name) {
  llvm::StringRef best;
  unsigned distance = name.size() / 3 + 2;
  for (const LibraryFile &file : library())
    for (llvm::StringRef candidate : declarationsOf(file))
      if (unsigned d = name.edit_distance(candidate, true, distance); d < distance) {
        best = candidate;
        distance = d;
      }
  return best;
}

llvm::Expected<std::unique_ptr<llvm::MemoryBuffer>> driver::readFile(llvm::StringRef path,
                                                                     llvm::StringRef code) {
  auto buffer = llvm::MemoryBuffer::getFileOrSTDIN(path);
  if (!buffer)
    return llvm::createStringError("cannot read `" + path +
                                   "`: " + llvm::StringRef(buffer.getError().message()).lower() +
                                   " [" + code + "]");
  return std::move(*buffer);
}

llvm::Expected<std::unique_ptr<llvm::MemoryBuffer>> driver::readProgramFile(llvm::StringRef path) {
  auto buffer = readFile(path);
  if (buffer && (*buffer)->getBuffer().starts_with("\177ELF"))
    return llvm::createStringError("`" + path +
                                   "` is a compiled module, not a program; `kvpc inspect` says "
                                   "what is in it [kvpc-program]");
  return buffer;
}

llvm::Expected<Source> driver::readSource(llvm::StringRef argument) {
  bool declared = false;
  const LibraryFile *named = findDeclaration(argument, declared);
  // A file comes before the library, a folder behind it.
  bool isFile =
      argument == "-" || argument.contains('/') || argument.ends_with(".kv") ||
      (llvm::sys::fs::exists(argument) && !(named && llvm::sys::fs::is_directory(argument)));
  if (isFile) {
    auto buffer = readProgramFile(argument);
    if (!buffer)
      return buffer.takeError();
    return Source{argument == "-" ? "<stdin>" : argument.str(), (*buffer)->getBuffer().str(), ""};
  }
  if (named)
    return Source{named->path.str(), named->source.str(), declared ? argument.str() : ""};
  std::string near = nearestInLibrary(argument).str();
  if (!near.empty())
    near = "; did you mean `" + near + "`";
  return llvm::createStringError("there is no file `" + argument +
                                 "`, and no press of that name in the library" + near +
                                 " [kvpc-program]");
}

Session::Session() : context(mlir::MLIRContext::Threading::DISABLED), messages(sources, &context) {
  context.loadDialect<kvp::KvpDialect, mlir::arith::ArithDialect>();
  context.printOpOnDiagnostic(false); // messages are about a program of the language
}

std::optional<llvm::StringRef> driver::onlyInput(const opt::InputArgList &options,
                                                 llvm::StringRef what) {
  std::vector<std::string> inputs = options.getAllArgValues(OPT_INPUT);
  if (inputs.empty()) {
    usageError("there is no input; need " + what);
    return std::nullopt;
  }
  if (inputs.size() > 1) {
    usageError("there are " + llvm::Twine(inputs.size()) + " inputs, `" + inputs[0] + "` and `" +
               inputs[1] + "`" + (inputs.size() > 2 ? ", ..." : "") + "; need one");
    return std::nullopt;
  }
  return options.getLastArg(OPT_INPUT)->getValue();
}

bool driver::readCompileInput(const opt::InputArgList &options, const Source &source,
                              CompileInput &input) {
  input.path = source.path;
  input.source = source.text;
  input.includeDirs = options.getAllArgValues(OPT_I);
  for (const std::string &define : options.getAllArgValues(OPT_D)) {
    auto [name, value] = llvm::StringRef(define).split('=');
    if (name.trim().empty() || value.trim().empty()) {
      usageError("`-D " + define +
                 "` does not name a parameter and its value; need "
                 "`-D [<press>.]<name>=<value>`");
      return false;
    }
    // Of two, the later one counts.
    llvm::erase_if(input.defines, [&](const auto &earlier) { return earlier.name == name.trim(); });
    input.defines.push_back({name.trim().str(), value.str()});
  }
  return true;
}

mlir::OwningOpRef<mlir::ModuleOp> driver::compileSource(const opt::InputArgList &options,
                                                        const Source &source, Session &session,
                                                        CompileInput &input) {
  std::vector<std::string> presses;
  for (const std::string &press : options.getAllArgValues(OPT_press_EQ))
    if (!llvm::is_contained(presses, press))
      presses.push_back(press);
  if (presses.empty())
    presses.push_back(source.press);
  mlir::OwningOpRef<mlir::ModuleOp> all;
  for (const std::string &press : presses) {
    input.press = press;
    auto one = compileToKvp(&session.context, session.sources, input);
    if (!one)
      return nullptr;
    if (!all) {
      all = std::move(one);
      continue;
    }
    auto &to = all->getBodyRegion().front().getOperations();
    to.splice(to.end(), one->getBodyRegion().front().getOperations());
  }
  return all;
}

std::string driver::programDigest(const Session &session, const opt::InputArgList &options,
                                  llvm::StringRef flags) {
  // Each part with its length, so that no two lists of parts run together to the same bytes.
  std::string all;
  auto add = [&](llvm::StringRef part) {
    all += std::to_string(part.size()) + ":";
    all += part;
  };
  add(version());
  add(flags);
  for (OptionId id : {OPT_INPUT, OPT_press_EQ, OPT_D})
    for (const std::string &value : options.getAllArgValues(id))
      add(value);
  for (unsigned i = 1; i <= session.sources.getNumBuffers(); ++i)
    add(session.sources.getMemoryBuffer(i)->getBuffer());
  return digestOf(all);
}
