//===- RunCommand.cpp - kvpc run --------------------------------------------------------------===//
#include "lib/Driver/Commands.h"
#include "lib/Driver/ModuleRun.h"
#include "lib/Driver/Output.h"
#include "lib/Driver/Program.h"
#include "lib/Driver/Shape.h"

#include "kvpc/Module.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FileSystem.h"

using namespace kvpc;
using namespace kvpc::driver;
namespace opt = llvm::opt;

namespace {

/// The number of an option that was given, checked by `read`.
template <typename T, typename Read>
bool readOption(const opt::InputArgList &options, OptionId id, llvm::StringRef need, T &out,
                Read read) {
  const opt::Arg *argument = options.getLastArg(id);
  if (!argument)
    return true;
  T value;
  llvm::StringRef text = argument->getValue();
  if (!read(text, value)) {
    usageError("`" + argument->getSpelling() + text + "` is not " + need);
    return false;
  }
  out = value;
  return true;
}

bool readCount(llvm::StringRef text, int64_t &out) {
  return !text.getAsInteger(10, out) && out >= 0;
}
bool readFloat(llvm::StringRef text, double &out) {
  return !text.getAsDouble(out) && std::isfinite(out);
}

bool readHostValues(const opt::InputArgList &options, HostValues &host) {
  double scale = 0;
  if (!readOption(options, OPT_layer_EQ, "a count", host.layer, readCount) ||
      !readOption(options, OPT_layers_EQ, "a count", host.layers, readCount) ||
      !readOption(options, OPT_scale_EQ, "a number", scale, readFloat) ||
      !readOption(options, OPT_rope_scaling_EQ, "a number", host.ropeScaling, readFloat))
    return false;
  if (options.hasArg(OPT_scale_EQ))
    host.scale = scale;
  host.ropeInterleaved = options.hasArg(OPT_rope_interleaved);
  return true;
}

/// The press that --press names, or the only one.
int choosePress(const opt::InputArgList &options, Program &program, BoundProgram &bound) {
  llvm::StringRef name = options.getLastArgValue(OPT_press_EQ);
  if (name.empty() && program.header.presses.size() == 1)
    name = program.header.presses[0].name;
  if (name.empty())
    return usageError("there are several presses, " + program.header.pressNames() +
                      "; choose one with `--press=<name>`");
  bound.header = program.findHeader(name);
  bound.press = program.findPress(name);
  if (!bound.header || !bound.press)
    return failure("there is no press `" + name + "`; there are " + program.header.pressNames() +
                   " [kvm-press]");
  return kSuccess;
}

int bindParameters(const opt::InputArgList &options, BoundProgram &bound) {
  runtime::Press::Arguments given;
  for (const std::string &text : options.getAllArgValues(OPT_set_EQ)) {
    auto [name, valueText] = llvm::StringRef(text).split('=');
    auto value = parseValue(valueText);
    if (name.empty() || valueText.empty() || !value)
      return usageError("`--set " + text +
                        "` does not set a parameter; need `--set "
                        "<name>=<value>` with a value such as 64, 0.5, true, drop(0.5)");
    given.emplace_back(name.trim().str(), *value);
  }
  auto arguments = runtime::bindArguments(*bound.header, given);
  if (!arguments)
    return failure(arguments.error().text());
  bound.arguments = std::move(*arguments);
  return kSuccess;
}

/// The tensors of --input, or random ones of --shape.
int readArrays(const opt::InputArgList &options, const BoundProgram &bound, Arrays &arrays) {
  bool fromFile = options.hasArg(OPT_input_EQ), shaped = options.hasArg(OPT_shape_EQ);
  if (fromFile == shaped)
    return usageError(fromFile ? "`--input` has shapes of its own; leave out `--shape`"
                               : "there are no tensors; give `--input=<file>` or "
                                 "`--shape=B,H,G,n,D`");
  if (fromFile) {
    auto read = readSafetensors(options.getLastArgValue(OPT_input_EQ));
    if (!read)
      return failure(read.takeError());
    arrays = std::move(*read);
    return kSuccess;
  }
  auto shape = readShape(options);
  if (!shape)
    return kUsage;
  int64_t seed = 0;
  if (!readOption(options, OPT_seed_EQ, "a count", seed, readCount))
    return kUsage;
  auto made = syntheticArrays(summarize(bound.press), *shape, seed);
  if (!made)
    return failure(made.takeError());
  arrays = std::move(*made);
  return kSuccess;
}

/// Refuses what no call has, and weights of other presses: a name may be misspelt.
llvm::Error checkNames(const runtime::PressHeader &press, const Arrays &arrays) {
  static constexpr llvm::StringLiteral kNames[] = {"keys",
                                                   "values",
                                                   "queries",
                                                   "unrotated_queries",
                                                   "hidden",
                                                   "output_weight",
                                                   "rope_frequencies",
                                                   "original_positions",
                                                   "start",
                                                   "length",
                                                   "seen"};
  for (auto &[name, array] : arrays) {
    llvm::StringRef weight = name;
    bool marked = weight.consume_front("weight.");
    bool known = llvm::any_of(press.weights, [&](auto &one) { return one.name == weight; });
    if (marked ? known : llvm::is_contained(kNames, name))
      continue;
    std::string remedy = "a call has `" + llvm::join(llvm::ArrayRef(kNames), "`, `") + "`";
    for (const runtime::Weight &one : press.weights)
      remedy += ", `weight." + one.name + "`";
    if (known)
      remedy = "the weight is called `weight." + name + "`";
    return llvm::createStringError("`" + press.name + "` has no input `" + name + "`; " + remedy +
                                   " [kvm-extra-input]");
  }
  return llvm::Error::success();
}

/// A weight over layers may be given whole: what this layer sees of it takes its place.
llvm::Error takeLayers(const runtime::PressHeader &press, const HostValues &host, Arrays &arrays) {
  for (const runtime::Weight &weight : press.weights) {
    const runtime::Parameter *declared = press.parameter(weight.name);
    auto found = arrays.find("weight." + weight.name);
    if (!declared || !weight.layered || found == arrays.end())
      continue;
    Array &whole = found->second;
    if (whole.shape.size() != declared->axes.size() || whole.dtype != "F32")
      continue; // at the layer already, or wrong, which is told later
    int64_t axis = llvm::find(declared->axes, "layer") - declared->axes.begin();
    int64_t layers = whole.shape[axis];
    if (layers != host.layers || host.layer >= layers)
      return llvm::createStringError(llvm::Twine("`") + found->first + "` has " +
                                     llvm::Twine(layers) + " layers; the call is of layer " +
                                     llvm::Twine(host.layer) + " of " + llvm::Twine(host.layers) +
                                     "; give `--layer` and `--layers` of the model [kvm-shape]");
    std::vector<int64_t> shape = whole.shape;
    shape.erase(shape.begin() + axis);
    Array one("F32", std::move(shape));
    int64_t inner = 1;
    for (int64_t extent : llvm::ArrayRef(whole.shape).drop_front(axis + 1))
      inner *= extent;
    for (int64_t i = 0, size = one.size(); i < size; ++i)
      one.put(i, whole.get<float>((i / inner * layers + host.layer) * inner + i % inner));
    whole = std::move(one);
  }
  return llvm::Error::success();
}

/// An absent or empty file is no state.
llvm::Expected<Arrays> readOptional(llvm::StringRef path) {
  uint64_t size = 0;
  if (path.empty() || llvm::sys::fs::file_size(path, size) || size == 0)
    return Arrays();
  return readSafetensors(path);
}

llvm::Expected<Arrays> evaluate(const opt::InputArgList &options, const BoundProgram &bound,
                                const Batch &batch) {
  if (options.hasArg(OPT_scores))
    return scoreReference(bound, batch);
  auto given = options.hasArg(OPT_given_scores_EQ)
                   ? readSafetensors(options.getLastArgValue(OPT_given_scores_EQ))
                   : Arrays();
  if (!given)
    return given;
  llvm::StringRef statePath = options.getLastArgValue(OPT_state_EQ);
  auto stateArrays = readOptional(statePath);
  if (!stateArrays)
    return stateArrays;
  auto states = readStates(*stateArrays);
  if (!states)
    return states.takeError();
  auto result = runReference(bound, batch, *states, *given);
  if (result && !statePath.empty())
    if (llvm::Error error = writeOutput(
            statePath, [&](llvm::raw_ostream &os) { writeSafetensors(writeStates(*states), os); }))
      return error;
  return result;
}

void printSummary(const Arrays &result) {
  for (auto &[name, array] : result)
    llvm::outs() << name << " " << array.str() << "\n";
}

} // namespace

int driver::runCommand(const opt::InputArgList &options) {
  auto argument = onlyInput(options, "a module (.kvm), a program or a press of the library");
  if (!argument)
    return kUsage;
  HostValues host;
  BuildOptions build;
  if (!readHostValues(options, host) || !readBuildOptions(options, build))
    return kUsage;
  if (options.hasArg(OPT_given_scores_EQ) && !options.hasArg(OPT_reference))
    return usageError("`--given-scores` is for the interpreter; give `--reference` too");
  Program program;
  if (int exit = loadProgram(options, *argument, program))
    return exit;
  BoundProgram bound;
  if (int exit = choosePress(options, program, bound))
    return exit;
  if (int exit = bindParameters(options, bound))
    return exit;
  Arrays arrays;
  if (int exit = readArrays(options, bound, arrays))
    return exit;
  if (llvm::Error error = checkNames(*bound.header, arrays))
    return failure(std::move(error));
  if (llvm::Error error = takeLayers(*bound.header, host, arrays))
    return failure(std::move(error));
  auto batch = Batch::of(std::move(arrays), host);
  if (!batch)
    return failure(batch.takeError());
  auto result = options.hasArg(OPT_reference) ? evaluate(options, bound, *batch)
                                              : runCompiled(options, build, program, bound, *batch);
  if (!result)
    return failure(result.takeError());
  llvm::StringRef output = options.getLastArgValue(OPT_output_EQ);
  if (output.empty()) {
    printSummary(*result);
    return kSuccess;
  }
  if (llvm::Error error =
          writeOutput(output, [&](llvm::raw_ostream &os) { writeSafetensors(*result, os); }))
    return failure(std::move(error));
  return kSuccess;
}
