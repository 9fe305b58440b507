//===- CommandLine.cpp - from arguments to a command ------------------------------------------===//
#include "lib/Driver/CommandLine.h"

#include "lib/Driver/Commands.h"
#include "lib/Driver/Crash.h"
#include "lib/Module/Section.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/raw_ostream.h"

using namespace kvpc;
using namespace kvpc::driver;
namespace opt = llvm::opt;

#define OPTTABLE_STR_TABLE_CODE
#include "lib/Driver/Options.inc"
#undef OPTTABLE_STR_TABLE_CODE

#define OPTTABLE_PREFIXES_TABLE_CODE
#include "lib/Driver/Options.inc"
#undef OPTTABLE_PREFIXES_TABLE_CODE

// The generated table names visibilities of both.
using llvm::opt::DefaultVis, llvm::opt::HelpHidden;

static constexpr opt::OptTable::Info kOptions[] = {
#define OPTION(...) LLVM_CONSTRUCT_OPT_INFO(__VA_ARGS__),
#include "lib/Driver/Options.inc"
#undef OPTION
};

namespace {

class Options : public opt::GenericOptTable {
public:
  Options() : GenericOptTable(OptionStrTable, OptionPrefixesTable, kOptions) {}
};

} // namespace

llvm::ArrayRef<Command> driver::commands() {
  static const Command table[] = {
      {"compile", "<file> | <name> | -", "Compile presses to a module (.kvm)", CompileOption,
       compileCommand},
      {"check", "<file> | <name> | -", "Check a program and say nothing if it is right",
       CheckOption, checkCommand},
      {"fmt", "[<file>...]", "Bring programs into the canonical form", FmtOption, formatCommand},
      {"inspect", "<module>", "Show what a module says of itself, without loading its code",
       InspectOption, inspectCommand},
      {"explain", "<file> | <name> | -", "Say what compiled code will do, and what it costs",
       ExplainOption, explainCommand},
      {"run", "<module> | <file> | <name> | -", "Run a press on tensors", RunOption, runCommand},
  };
  return table;
}

int driver::usageError(const llvm::Twine &text) {
  llvm::errs() << "error: " << text << "\n";
  return kUsage;
}

int driver::failure(const llvm::Twine &text) {
  llvm::errs() << "error: " << text << "\n";
  return kFailure;
}

int driver::failure(llvm::Error error) {
  std::string text = llvm::toString(std::move(error));
  return text.empty() ? int(kFailure) : failure(llvm::Twine(text));
}

static void printHelp(llvm::raw_ostream &os) {
  os << "kvpc: compiler of presses, programs that say which entries of a KV cache survive\n\n"
     << "usage: kvpc <command> [<option>...] <input>\n\n";
  for (const Command &command : commands())
    os << llvm::formatv("  {0,-9} {1}\n", command.name, command.summary);
  os << "\n`kvpc <command> --help` lists the options of a command, `kvpc --version` the version.\n";
}

static int runCommandLine(const Command &command, llvm::ArrayRef<const char *> arguments) {
  Options table;
  unsigned missingIndex = 0, missingCount = 0;
  opt::Visibility visible(command.visibility);
  opt::InputArgList options = table.ParseArgs(arguments, missingIndex, missingCount, visible);
  if (missingCount)
    return usageError(llvm::Twine("`") + arguments[missingIndex] + "` needs a value");
  for (const opt::Arg *argument : options.filtered(OPT_UNKNOWN)) {
    std::string text = argument->getAsString(options), near;
    llvm::StringRef plain = llvm::StringRef(text).split('=').first;
    bool found = table.findNearest(text, near, visible) <= 2;
    return usageError(
        "`kvpc " + command.name + "` has no option `" + plain + "`" +
        (found ? "; did you mean `" + near + "`" : "; see `kvpc " + command.name + " --help`"));
  }
  if (options.hasArg(OPT_help)) {
    std::string usage = ("kvpc " + command.name + " [<option>...] " + command.usage).str();
    table.printHelp(llvm::outs(), usage.c_str(), command.summary.str().c_str(),
                    /*ShowHidden=*/false, /*ShowAllAliases=*/false, visible);
    return kSuccess;
  }
  if (const opt::Arg *crash = options.getLastArg(OPT_debug_crash_EQ))
    crashForTests(crash->getValue());
  return command.run(options);
}

static int dispatch(llvm::ArrayRef<const char *> arguments) {
  if (arguments.empty()) {
    printHelp(llvm::errs());
    return kUsage;
  }
  llvm::StringRef first = arguments.front();
  if (first == "--version") {
    llvm::outs() << "kvpc " << version() << " (LLVM " LLVM_VERSION_STRING ")\n";
    return kSuccess;
  }
  if (first == "--help" || first == "-h" || first == "help") {
    printHelp(llvm::outs());
    return kSuccess;
  }
  for (const Command &command : commands())
    if (command.name == first)
      return runCommandLine(command, arguments.drop_front());
  std::string names = llvm::join(
      llvm::map_range(commands(), [](const Command &c) { return ("`" + c.name + "`").str(); }),
      ", ");
  return usageError("there is no command `" + first + "`; need one of " + names);
}

int driver::run(int argc, char **argv) {
  installCrashHandlers();
  int code = dispatch(llvm::ArrayRef<const char *>(argv + 1, argv + argc));
  llvm::outs().flush();
  if (!llvm::outs().has_error())
    return code;
  std::string reason = llvm::StringRef(llvm::outs().error().message()).lower();
  llvm::outs().clear_error(); // else the stream ends the process as it goes
  return failure("cannot write `<stdout>`: " + reason);
}
