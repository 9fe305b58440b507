//===- ModuleRun.cpp - a press on a batch, by compiled code -----------------------------------===//
#include "lib/Driver/ModuleRun.h"

#include "lib/Driver/Build.h"
#include "lib/Driver/Output.h"

#include "kvpc/Module.h"
#include "kvpc/Parallel.h"
#include "llvm/ADT/StringSwitch.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FileUtilities.h"
#include "llvm/Support/MemoryBuffer.h"

#include <chrono>

using namespace kvpc;
using namespace kvpc::driver;
namespace opt = llvm::opt;

namespace {

llvm::Error errorOf(const runtime::Error &error) { return llvm::createStringError(error.text()); }

runtime::Element elementOf(llvm::StringRef dtype) {
  return llvm::StringSwitch<runtime::Element>(dtype)
      .Case("F32", runtime::Element::F32)
      .Case("BF16", runtime::Element::BF16)
      .Case("F16", runtime::Element::F16)
      .Case("I64", runtime::Element::I64)
      .Case("F64", runtime::Element::F64)
      .Default(runtime::Element::Other);
}

/// The array's memory under a shape with the same number of entries.
runtime::TensorRef refer(const Array *array, std::vector<int64_t> shape = {}) {
  runtime::TensorRef out;
  if (!array)
    return out;
  if (shape.empty())
    shape = array->shape;
  out.data = const_cast<char *>(array->bytes.data());
  out.element = elementOf(array->dtype);
  out.rank = shape.size();
  int64_t stride = 1;
  for (int axis = out.rank; axis-- > 0; stride *= shape[axis]) {
    out.size[axis] = shape[axis];
    out.stride[axis] = stride;
  }
  return out;
}

/// [batch, head, group, query, channel] as the runtime's [batch, query head, query, channel].
runtime::TensorRef referQueries(const Array *array) {
  if (!array)
    return {};
  const std::vector<int64_t> &s = array->shape;
  return refer(array, {s[0], s[1] * s[2], s[3], s[4]});
}

llvm::Error fillCall(const BoundProgram &bound, const Batch &batch, runtime::Call &call) {
  call.keys = refer(batch.find("keys"));
  call.values = refer(batch.find("values"));
  // A file may hold more than this press needs.
  const runtime::Inputs &inputs = bound.header->inputs;
  auto needed = [&](const char *name, bool uses) { return uses ? batch.find(name) : nullptr; };
  call.queries = referQueries(needed("queries", bool(inputs.queries)));
  call.unrotatedQueries = referQueries(needed("unrotated_queries", bool(inputs.unrotatedQueries)));
  call.hidden = refer(needed("hidden", bool(inputs.hidden)));
  call.outputWeight = refer(needed("output_weight", inputs.outputWeight));
  call.originalPositions = refer(batch.find("original_positions"));
  for (const runtime::Weight &weight : bound.header->weights)
    call.weights.push_back(refer(batch.find("weight." + weight.name)));
  bool left = true, right = true;
  for (int64_t row = 0; row < batch.batch; ++row) {
    left &= batch.start[row] == batch.tokens - batch.length[row];
    right &= batch.start[row] == 0;
  }
  if (!left && !right)
    return llvm::createStringError("`start` puts padding on both sides; compiled code takes rows "
                                   "that all begin at 0, or all end at the last token");
  call.padRight = !left;
  call.lengths = batch.length.data();
  call.seen = batch.seen.data();
  if (const Array *frequencies = needed("rope_frequencies", inputs.rope))
    for (int64_t i = 0; i < frequencies->shape[0]; ++i)
      call.ropeFrequencies.push_back(frequencies->get<double>(i));
  call.ropeScaling = batch.host.ropeScaling;
  call.ropeInterleaved = batch.host.ropeInterleaved;
  call.scale = batch.scale();
  call.layer = batch.host.layer;
  call.layers = batch.host.layers;
  call.threads = runtime::parallelThreads();
  return llvm::Error::success();
}

/// The first `count` of axis 2, where the module's bound was higher.
Array trimmed(const Array &array, int64_t count) {
  std::vector<int64_t> shape = array.shape;
  int64_t width = (shape.size() > 3 ? shape[3] : 1) * elementSize(array.dtype);
  int64_t lines = shape[0] * shape[1], had = shape[2];
  shape[2] = count;
  Array out(array.dtype, shape);
  for (int64_t line = 0; line < lines; ++line)
    std::memcpy(out.bytes.data() + line * count * width, array.bytes.data() + line * had * width,
                count * width);
  return out;
}

llvm::Expected<Arrays> select(const runtime::BoundPress &press, const Batch &batch,
                              runtime::Call &call) {
  const runtime::Sizes &sizes = call.sizes;
  llvm::StringRef dtype = batch.find("keys")->dtype;
  Arrays out;
  int64_t rows = batch.batch, heads = batch.heads;
  out["keys"] = Array(dtype, {rows, heads, sizes.kept, sizes.keptChannels});
  out["values"] = Array(dtype, {rows, heads, sizes.kept, batch.valueChannels});
  out["tokens"] = Array("I64", {rows, heads, sizes.kept});
  out["lengths"] = Array("I64", {rows, heads});
  Array channels("I64", {rows, heads, sizes.keptChannels});
  call.outKeys = refer(&out["keys"]);
  call.outValues = refer(&out["values"]);
  call.outTokens = refer(&out["tokens"]);
  call.outLengths = refer(&out["lengths"]);
  if (press.header().dropsChannels)
    call.outChannels = refer(&channels);
  if (auto error = press.run(call))
    return errorOf(*error);
  int64_t most = 0;
  for (int64_t i = 0; i < rows * heads; ++i)
    most = std::max(most, out["lengths"].get<int64_t>(i));
  for (const char *name : {"keys", "values", "tokens"})
    if (most < sizes.kept)
      out[name] = trimmed(out[name], most);
  if (press.header().dropsChannels)
    out["channels"] = std::move(channels);
  return out;
}

llvm::Expected<Arrays> score(const runtime::BoundPress &press, runtime::Call &call) {
  Arrays out;
  out["scores"] = Array("F32", call.scoreShape);
  out["protected"] = Array("BOOL", call.scoreShape);
  call.outScores = reinterpret_cast<float *>(out["scores"].bytes.data());
  call.outProtected = reinterpret_cast<uint8_t *>(out["protected"].bytes.data());
  if (auto error = press.run(call))
    return errorOf(*error);
  return out;
}

/// Memory of `bytes`, aligned as modules need it.
std::unique_ptr<char, void (*)(void *)> aligned(int64_t bytes) {
  bytes = llvm::alignTo(std::max<int64_t>(bytes, 1), 64);
  return {static_cast<char *>(std::aligned_alloc(64, bytes)), std::free};
}

double milliseconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

llvm::Expected<Arrays> call(const opt::InputArgList &options, const runtime::BoundPress &press,
                            const BoundProgram &bound, const Batch &batch) {
  runtime::Call call;
  if (llvm::Error error = fillCall(bound, batch, call))
    return error;
  call.scores = options.hasArg(OPT_scores);

  // The state that an earlier layer left, or room for what this one leaves.
  llvm::StringRef statePath = options.getLastArgValue(OPT_state_EQ);
  std::unique_ptr<llvm::MemoryBuffer> before;
  if (auto buffer = llvm::MemoryBuffer::getFile(statePath, false, false);
      !statePath.empty() && buffer)
    before = std::move(*buffer);
  auto state = aligned(before ? before->getBufferSize() : 0);
  if (before) {
    std::memcpy(state.get(), before->getBufferStart(), before->getBufferSize());
    call.state = state.get();
    call.stateSize = before->getBufferSize();
  }
  if (auto error = press.plan(call))
    return errorOf(*error);
  if (call.sizes.stateBytes > call.stateSize) {
    state = aligned(call.sizes.stateBytes);
    std::memset(state.get(), 0, call.sizes.stateBytes);
    call.state = state.get();
    call.stateSize = call.sizes.stateBytes;
  }
  auto workspace = aligned(call.sizes.workspaceBytes);
  call.workspace = workspace.get();

  auto begin = std::chrono::steady_clock::now();
  auto out = call.scores ? score(press, call) : select(press, batch, call);
  auto end = std::chrono::steady_clock::now();
  if (!out)
    return out;
  if (options.getLastArgValue(OPT_output_EQ).empty())
    llvm::outs() << llvm::formatv("ran in {0:f3} ms on {1} threads, {2} bytes of workspace\n",
                                  milliseconds(end - begin), call.threads,
                                  call.sizes.workspaceBytes);
  if (!statePath.empty() && call.sizes.stateBytes)
    if (llvm::Error error = writeOutput(
            statePath, [&](llvm::raw_ostream &os) { os.write(state.get(), call.stateSize); }))
      return error;
  return out;
}

} // namespace

llvm::Expected<Arrays> driver::runCompiled(const opt::InputArgList &options, BuildOptions build,
                                           Program &program, const BoundProgram &bound,
                                           const Batch &batch) {
  std::string path = program.modulePath;
  llvm::SmallString<128> temporary;
  llvm::FileRemover remover;
  if (path.empty()) {
    // What this call needs, where nothing else is asked for.
    if (!options.hasArg(OPT_dtype_EQ))
      build.dtypes = {llvm::StringRef(batch.find("keys")->dtype).lower()};
    if (!options.hasArg(OPT_channels_EQ))
      build.channels = {batch.channels == batch.valueChannels ? batch.channels : 0};
    if (std::error_code error = llvm::sys::fs::createTemporaryFile("kvpc", "kvm", temporary))
      return llvm::createStringError("cannot write a temporary file: " + error.message());
    remover.setFile(temporary);
    ModuleInfo info;
    info.source = program.header.source;
    if (llvm::Error error = buildModule(*program.module, build, info, temporary))
      return error;
    path = temporary.str();
  }
  auto module = runtime::Module::load(path);
  if (!module)
    return errorOf(module.error());
  auto press = (*module)->press(bound.header->name);
  if (!press)
    return errorOf(press.error());
  runtime::Press::Arguments arguments;
  for (auto [name, value] : llvm::zip_equal(bound.header->runtime, bound.arguments))
    arguments.emplace_back(name, value);
  auto ready = press->bind(arguments);
  if (!ready)
    return errorOf(ready.error());
  return call(options, *ready, bound, batch);
}
