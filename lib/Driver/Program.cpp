//===- Program.cpp - a compiled or source program that is to run ------------------------------===//
#include "lib/Driver/Program.h"

#include "lib/Module/Section.h"

#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"

#include <cmath>
#include <limits>

using namespace kvpc;
using namespace kvpc::driver;

static runtime::Bytes span(llvm::StringRef bytes) {
  return {reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size()};
}

const runtime::PressHeader *Program::findHeader(llvm::StringRef name) const {
  for (const runtime::PressHeader &press : header.presses)
    if (press.name == name)
      return &press;
  return nullptr;
}

kvp::PressOp Program::findPress(llvm::StringRef name) {
  for (auto press : module->getOps<kvp::PressOp>())
    if (press.getSymName() == name)
      return press;
  return nullptr;
}

static int loadModule(const llvm::opt::InputArgList &options, llvm::StringRef path,
                      Program &program) {
  // What was decided when it was compiled.
  for (OptionId id : {OPT_D, OPT_I, OPT_O, OPT_dtype_EQ, OPT_channels_EQ, OPT_target_EQ,
                      OPT_workspace_EQ, OPT_without_EQ})
    if (const llvm::opt::Arg *given = options.getLastArg(id))
      return usageError(
          "`" + given->getSpelling() + given->getValue() + "` is of compiling, and `" + path +
          "` is compiled; give it the program" +
          (id == OPT_D ? ", or set a run-time parameter with `--set <name>=<value>`" : ""));
  auto header = runtime::readHeader(span(program.bytes), path.str());
  if (!header)
    return failure(header.error().text());
  program.header = std::move(*header);
  program.modulePath = path.str();
  llvm::StringRef bytecode(reinterpret_cast<const char *>(program.header.bytecode.data()),
                           program.header.bytecode.size());
  auto module = readProgram(program.session.context, bytecode);
  if (!module)
    return failure("`" + path + "`: " + llvm::toString(module.takeError()));
  program.module = std::move(*module);
  return kSuccess;
}

int driver::loadProgram(const llvm::opt::InputArgList &options, llvm::StringRef argument,
                        Program &program) {
  // A module is known by its first bytes, whatever its name.
  if (auto buffer = llvm::MemoryBuffer::getFile(argument, false, false);
      argument != "-" && buffer && (*buffer)->getBuffer().starts_with("\177ELF")) {
    program.bytes = (*buffer)->getBuffer().str();
    return loadModule(options, argument, program);
  }
  if (argument.ends_with(".kvm")) {
    auto buffer = readFile(argument, "kvm-file");
    if (!buffer)
      return failure(buffer.takeError());
    program.bytes = (*buffer)->getBuffer().str();
    return loadModule(options, argument, program);
  }
  auto source = readSource(argument);
  if (!source)
    return failure(source.takeError());
  CompileInput input;
  if (!readCompileInput(options, *source, input))
    return kUsage;
  program.module = compileSource(options, *source, program.session, input);
  if (!program.module)
    return kFailure;
  // The same description that a module would carry.
  ModuleInfo info;
  info.source = source->path;
  program.bytes = buildHeaderSection(*program.module, info);
  auto header = runtime::parseSection(span(program.bytes));
  if (!header)
    return failure(header.error().text());
  program.header = std::move(*header);
  return kSuccess;
}

std::optional<runtime::Value> driver::parseValue(llvm::StringRef text) {
  text = text.trim();
  if (text.consume_front("[")) { // one a layer
    runtime::Value list;
    list.kind = runtime::Value::List;
    if (!text.consume_back("]"))
      return std::nullopt;
    llvm::SmallVector<llvm::StringRef> items;
    text.split(items, ',');
    for (llvm::StringRef item : items) {
      auto value = parseValue(item);
      if (!value || value->kind == runtime::Value::List)
        return std::nullopt;
      list.items.push_back(*value);
    }
    return list;
  }
  if (text == "true" || text == "false")
    return runtime::Value::ofBool(text == "true");
  bool closed = text.ends_with(")");
  if (closed && text.consume_front("drop(")) {
    text = text.drop_back();
    double ratio;
    if (text.trim() == "nan")
      return runtime::Value::drop(std::numeric_limits<double>::quiet_NaN());
    if (text.trim().getAsDouble(ratio))
      return std::nullopt;
    return runtime::Value::drop(ratio);
  }
  if (closed && text.consume_front("keep(")) {
    text = text.drop_back();
    int64_t count;
    if (text.trim().getAsInteger(10, count))
      return std::nullopt;
    return runtime::Value::keep(count);
  }
  int64_t integer;
  if (!text.getAsInteger(10, integer))
    return runtime::Value::ofInt(integer);
  double number;
  if (!text.getAsDouble(number))
    return runtime::Value::ofFloat(number); // inf and nan too
  return std::nullopt;
}
