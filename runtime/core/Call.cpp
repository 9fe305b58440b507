//===- Call.cpp - the two calls of a press ----------------------------------------------------===//
#include "Target.h"
#include "kvpc/Module.h"
#include "kvpc/Parallel.h"

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace kvpc;

namespace {

constexpr uint64_t stateMagic = 0x6574617473766b31; // "1kvstate"

/// Stands before the module's own bytes, so that a follower can tell whose choice it is given.
struct alignas(64) StateHeader {
  uint64_t magic, press;
  int64_t leader, layers, batch, heads, tokens, bytes, kept;
  uint64_t rows;      // digest of where the rows' real tokens stand
  uint64_t positions; // digest of where they were first cached; 0: counted from the first
};
static_assert(sizeof(StateHeader) == 128);

uint64_t rowsId(const std::vector<int64_t> &start, const std::vector<int64_t> &length) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const std::vector<int64_t> *numbers : {&start, &length})
    for (int64_t n : *numbers)
      for (int byte = 0; byte < 8; ++byte)
        hash = (hash ^ uint8_t(n >> 8 * byte)) * 0x100000001b3;
  return hash;
}

/// Digest of the original positions of all real tokens: those given, or counted from the first.
uint64_t positionsId(const kvpc_call &call, bool given) {
  const kvpc_tensor &positions = call.original_positions;
  uint64_t hash = 0xcbf29ce484222325;
  for (int64_t row = 0; row < call.batch; ++row) {
    for (int64_t head = 0; head < call.heads; ++head) {
      const int64_t step = positions.stride[2];
      const int64_t *from = nullptr;
      if (given)
        from = static_cast<const int64_t *>(positions.data) + row * positions.stride[0] +
               head * positions.stride[1] + call.start[row] * step;
      for (int64_t i = 0; i < call.length[row]; ++i) {
        hash = (hash ^ uint64_t(given ? from[i * step] : i)) * 0x100000001b3;
        hash ^= hash >> 32;
      }
    }
    hash = (hash ^ uint64_t(call.seen[row])) * 0x100000001b3;
  }
  return hash ? hash : 1;
}

/// Tells presses of different modules apart.
uint64_t pressId(const Module &module, const PressHeader &press) {
  uint64_t hash = 0xcbf29ce484222325; // FNV-1a
  for (char c : module.digest() + "/" + press.name)
    hash = (hash ^ uint8_t(c)) * 0x100000001b3;
  return hash;
}

kvpc_tensor rawTensor(const TensorRef &tensor) {
  kvpc_tensor out = {};
  if (!tensor.given())
    return out;
  out.data = tensor.data;
  std::copy(tensor.stride, tensor.stride + tensor.rank, out.stride);
  return out;
}

Result<std::vector<int64_t>> scoreShapeOf(const PressHeader &press, const kvpc_call &raw) {
  if (!press.scoreAxes)
    return Error{ErrorCode::Unsupported,
                 "the first stage of `" + press.name + "` has no score; it selects by a condition"};
  auto extentOf = [&](std::string_view axis) -> int64_t {
    for (auto &[name, extent] : press.scoreExtents)
      if (name == axis)
        return extent;
    return 0;
  };
  std::vector<int64_t> out = {raw.batch};
  for (const std::string &axis : *press.scoreAxes) {
    int64_t size = extentOf("part") ? extentOf("part") : extentOf("slot");
    if (axis == "head")
      out.push_back(raw.heads);
    else if (axis == "token")
      out.push_back(raw.tokens);
    else if (axis == "channel")
      out.push_back(raw.channels);
    else if (axis == "part" && size)
      out.push_back((raw.tokens + size - 1) / size);
    else if (axis == "slot" && size)
      out.push_back(extentOf("slot") ? extentOf("slot") : size);
    else
      return Error{ErrorCode::Unsupported, "the extent of the score's axis `" + axis +
                                               "` is not known to this runtime; update it"};
  }
  return out;
}

ErrorCode codeOf(int32_t status) {
  return status == KVPC_ERROR_REQUIRE ? ErrorCode::Require : ErrorCode::Parameter;
}

Failure checkOutput(const char *name, const TensorRef &tensor, std::initializer_list<int64_t> shape,
                    bool perHead) {
  bool fits =
      tensor.rank == int(shape.size()) && std::equal(shape.begin(), shape.end(), tensor.size) &&
      (!perHead || tensor.stride[tensor.rank - 1] == 1 || tensor.size[tensor.rank - 1] <= 1);
  if (fits)
    return {};
  return Error{ErrorCode::Shape, std::string("the output `") + name + "` has shape " +
                                     tensor.shape() + "; allocate it by the sizes of `plan`"};
}

} // namespace

std::string_view kvpc::runtime::elementName(Element element) {
  constexpr std::string_view names[] = {"f32", "bf16", "f16", "int64", "f64"};
  return element == Element::Other ? "of another dtype" : names[int(element)];
}

std::string TensorRef::shape() const {
  std::string out = "[";
  for (int axis = 0; axis < rank; ++axis)
    out += (axis ? ", " : "") + std::to_string(size[axis]);
  return out + "]";
}

Failure BoundPress::bindRows(Call &call) const {
  kvpc_call &raw = call.raw;
  call.start.assign(size_t(raw.batch), 0);
  call.length.assign(size_t(raw.batch), raw.tokens);
  if (call.lengths)
    std::copy(call.lengths, call.lengths + raw.batch, call.length.begin());
  if (!call.padRight)
    for (size_t row = 0; row < call.start.size(); ++row)
      call.start[row] = raw.tokens - call.length[row];
  call.seenTokens = call.length;
  if (call.seen)
    std::copy(call.seen, call.seen + raw.batch, call.seenTokens.begin());
  raw.start = call.start.data();
  raw.length = call.length.data();
  raw.seen = call.seenTokens.data();
  return {};
}

Failure BoundPress::bindScalars(Call &call) const {
  call.scalars.clear();
  for (size_t n = 0; n < arguments.size(); ++n) {
    if (arguments[n].kind == Value::List && int64_t(arguments[n].items.size()) != call.layers)
      return Error{ErrorCode::Parameter,
                   "`" + press->runtime[n] + "` has " + std::to_string(arguments[n].items.size()) +
                       " values; need one a layer, `layers` is " + std::to_string(call.layers)};
    const Value &value = argument(n, call.layer);
    kvpc_scalar scalar{value.i, value.f};
    // A reader may take either field; a float beyond int64 has no `i`.
    if (value.kind == Value::Float && std::fabs(value.f) < 9e15)
      scalar.i = int64_t(value.f);
    call.scalars.push_back(scalar);
  }
  call.raw.parameters = call.scalars.data();
  return {};
}

Failure BoundPress::checkState(const Call &call) const {
  if (!follows(call.layer))
    return {};
  int64_t leader = call.layer - call.layer % press->reuse;
  std::string takes = "layer " + std::to_string(call.layer) + " takes the choice of layer " +
                      std::to_string(leader);
  auto error = [&](std::string what) {
    return Error{ErrorCode::State, takes + std::move(what) +
                                       "; give one state to the calls of all layers of a forward "
                                       "pass, in order"};
  };
  if (call.scores)
    return Error{ErrorCode::Unsupported, takes + " and scores nothing; ask layer " +
                                             std::to_string(leader) + " for its scores"};
  if (!call.state || call.stateSize < int64_t(sizeof(StateHeader)))
    return error(", but no state is given");
  StateHeader header;
  std::memcpy(&header, call.state, sizeof header);
  if (header.magic != stateMagic || header.bytes + int64_t(sizeof header) > call.stateSize)
    return error(", but the state is empty");
  if (header.press != pressId(*owner, *press))
    return error(", but the state is of another press");
  if (header.leader != leader)
    return error(", but the state is of layer " + std::to_string(header.leader));
  if (header.layers != call.layers)
    return Error{ErrorCode::State, takes + " of " + std::to_string(header.layers) +
                                       ", but `layers` is " + std::to_string(call.layers) +
                                       "; give all layers of a model the same"};
  const int64_t *size = call.keys.size;
  if (header.batch != size[0] || header.heads != size[1] || header.tokens != size[2])
    return error(" with " + std::to_string(header.batch) + " rows, " +
                 std::to_string(header.heads) + " heads and " + std::to_string(header.tokens) +
                 " tokens, but `keys` have shape " + call.keys.shape());
  return {};
}

Result<BoundPress::Entries> BoundPress::choose(const Call &call) const {
  const auto &entries = owner->entries[size_t(press - owner->header().presses.data())];
  int64_t channels = call.keys.size[3];
  bool square = channels == call.values.size[3];
  const Module::Entry *best = nullptr;
  std::vector<std::string> dtypes;
  std::vector<std::string> sizes;
  auto note = [](std::vector<std::string> &list, std::string name) {
    if (std::find(list.begin(), list.end(), name) == list.end())
      list.push_back(std::move(name));
  };
  for (const Module::Entry &entry : entries) {
    const Variant &variant = *entry.variant;
    note(dtypes, std::string(dtypeName(variant.dtype)));
    if (int(variant.dtype) != int(call.keys.element))
      continue;
    note(sizes, variant.channels ? std::to_string(variant.channels) : "any");
    if (variant.channels && (variant.channels != channels || !square))
      continue;
    // An exact head size is worth more than a newer machine's instructions for any.
    auto rank = [](const Module::Entry &e) { return (e.variant->channels ? 100 : 0) + e.level; };
    if (!best || rank(entry) > rank(*best))
      best = &entry;
  }
  if (best)
    return Entries{best->plan, best->run};
  if (sizes.empty()) {
    std::string element(elementName(call.keys.element));
    return Error{ErrorCode::Dtype,
                 "`keys` are " + element + "; the module has code for " + quoteList(dtypes) +
                     "; convert the cache, or compile the press with `--dtype=" + element + "`"};
  }
  return Error{
      ErrorCode::Channels,
      "keys and values have " + std::to_string(channels) +
          (square ? "" : " and " + std::to_string(call.values.size[3])) +
          " channels; the module has code for " + quoteList(sizes) +
          "; compile the press with `--channels=" +
          (square ? std::to_string(channels) + "`, or `--channels=0` for any" : "0` for any")};
}

Failure BoundPress::plan(Call &call) const {
  if (auto error = checkInputs(call))
    return error;
  if (auto error = checkState(call))
    return error;
  kvpc_call &raw = call.raw;
  raw = {};
  raw.size = sizeof raw;
  raw.batch = call.keys.size[0];
  raw.heads = call.keys.size[1];
  raw.tokens = call.keys.size[2];
  raw.channels = call.keys.size[3];
  raw.value_channels = call.values.size[3];
  raw.layer = call.layer;
  raw.layers = call.layers;
  raw.threads = std::max<int64_t>(call.threads, 1);
  raw.scale = call.scale ? *call.scale : 1 / std::sqrt(double(raw.channels));
  if (!std::isfinite(float(raw.scale)))
    return Error{ErrorCode::Parameter, std::string("`scale` is ") +
                                           (std::isnan(raw.scale) ? "NaN" : "infinite as f32") +
                                           "; need a finite number"};
  if (press->equalChannels && raw.channels != raw.value_channels)
    return Error{ErrorCode::Channels,
                 "keys and values have " + std::to_string(raw.channels) + " and " +
                     std::to_string(raw.value_channels) + " channels; `" + press->name +
                     "` takes both along one axis `channel`: they must have as many"};
  if (auto error = bindRows(call))
    return error;
  if (auto error = bindQueries(call))
    return error;
  if (auto error = bindWeights(call))
    return error;
  raw.groups = std::max<int64_t>(raw.groups, 1);
  if (auto error = bindScalars(call))
    return error;
  auto entries = choose(call);
  if (!entries)
    return entries.error();
  if (call.scores) {
    auto shape = scoreShapeOf(*press, raw);
    if (!shape)
      return shape.error();
    call.scoreShape = std::move(*shape);
  }

  raw.keys = rawTensor(call.keys);
  raw.values = rawTensor(call.values);
  raw.original_positions = rawTensor(call.originalPositions);
  if (call.originalPositions.rank == 2) {
    raw.original_positions.stride[2] = raw.original_positions.stride[1];
    raw.original_positions.stride[1] = 0;
  }
  raw.rope_frequencies = call.ropeFrequencies.empty() ? nullptr : call.ropeFrequencies.data();
  raw.rope_width = int64_t(call.ropeFrequencies.size()) * 2;
  raw.rope_interleaved = call.ropeInterleaved;
  raw.rope_scaling = call.ropeScaling;
  raw.error = call.message;
  raw.error_size = sizeof call.message;
  call.message[0] = 0;
  if (int32_t status = entries->plan(&raw))
    return Error{codeOf(status), call.message[0] ? std::string(call.message)
                                                 : "`" + press->name + "` refuses the call"};
  if (raw.kept < 0 || raw.kept > raw.tokens || raw.kept_channels < 0 ||
      raw.kept_channels > raw.channels || raw.workspace_bytes < 0 || raw.state_bytes < 0)
    return Error{ErrorCode::Damaged, "`" + press->name + "` computes sizes that cannot be (" +
                                         std::to_string(raw.kept) + " entries of " +
                                         std::to_string(raw.kept_channels) +
                                         " channels); compile the press again"};
  if (follows(call.layer)) {
    StateHeader header;
    std::memcpy(&header, call.state, sizeof header);
    if (header.kept != raw.kept)
      return Error{ErrorCode::State,
                   "layer " + std::to_string(call.layer) + " keeps " + std::to_string(raw.kept) +
                       " entries, but takes the choice of layer " + std::to_string(header.leader) +
                       ", which kept " + std::to_string(header.kept) +
                       "; give both layers calls of the same sizes"};
    if (header.rows != rowsId(call.start, call.length))
      return Error{ErrorCode::State,
                   "layer " + std::to_string(call.layer) + " takes the choice of layer " +
                       std::to_string(header.leader) +
                       ", whose rows had other `lengths` or padding; give both layers the same"};
    bool given = call.originalPositions.given();
    // Counted positions may be given, too.
    if ((given || header.positions) &&
        positionsId(raw, given) != (header.positions ? header.positions : positionsId(raw, false)))
      return Error{ErrorCode::State,
                   "layer " + std::to_string(call.layer) + " takes the choice of layer " +
                       std::to_string(header.leader) +
                       ", whose tokens had other `original_positions` or `seen`; give both layers "
                       "the same"};
  }
  call.sizes.kept = raw.kept;
  call.sizes.keptChannels = raw.kept_channels;
  call.sizes.workspaceBytes = raw.workspace_bytes;
  call.sizes.stateBytes = raw.state_bytes ? raw.state_bytes + int64_t(sizeof(StateHeader)) : 0;
  call.runEntry = entries->run;
  return {};
}

Failure BoundPress::run(Call &call) const {
  kvpc_call &raw = call.raw;
  if (!call.runEntry)
    return Error{ErrorCode::Unsupported, "`run` needs a call that `plan` accepted"};
  if (call.scores) {
    if (!call.outScores || !call.outProtected)
      return Error{ErrorCode::Unsupported, "`run` needs memory for scores and protection"};
    int64_t count = 1;
    for (size_t axis = call.scoreShape.size(); axis-- > 0; count *= call.scoreShape[axis])
      raw.out_scores.stride[axis] = raw.out_protected.stride[axis] = count;
    std::fill_n(call.outScores, count, std::nanf(""));
    std::fill_n(call.outProtected, count, uint8_t(0));
    raw.out_scores.data = call.outScores;
    raw.out_protected.data = call.outProtected;
  } else {
    int64_t batch = raw.batch, heads = raw.heads, kept = raw.kept;
    if (auto error =
            checkOutput("keys", call.outKeys, {batch, heads, kept, raw.kept_channels}, true))
      return error;
    if (auto error =
            checkOutput("values", call.outValues, {batch, heads, kept, raw.value_channels}, true))
      return error;
    if (auto error = checkOutput("tokens", call.outTokens, {batch, heads, kept}, false))
      return error;
    if (auto error = checkOutput("lengths", call.outLengths, {batch, heads}, false))
      return error;
    if (call.outChannels.given())
      if (auto error =
              checkOutput("channels", call.outChannels, {batch, heads, raw.kept_channels}, false))
        return error;
    raw.out_keys = rawTensor(call.outKeys);
    raw.out_values = rawTensor(call.outValues);
    raw.out_tokens = rawTensor(call.outTokens);
    raw.out_channels = rawTensor(call.outChannels);
    raw.out_lengths = rawTensor(call.outLengths);
  }
  if ((raw.workspace_bytes && !call.workspace) ||
      reinterpret_cast<uintptr_t>(call.workspace) % 64 != 0)
    return Error{ErrorCode::Memory, "`run` needs a workspace of " +
                                        std::to_string(raw.workspace_bytes) +
                                        " bytes, 64-byte aligned"};
  raw.workspace = call.workspace;
  auto *header = static_cast<StateHeader *>(call.state);
  if (raw.state_bytes) {
    if (!header || call.stateSize < call.sizes.stateBytes ||
        reinterpret_cast<uintptr_t>(header) % 64 != 0)
      return Error{ErrorCode::State, "`run` needs a state of " +
                                         std::to_string(call.sizes.stateBytes) +
                                         " bytes, 64-byte aligned"};
    raw.state = header + 1;
    if (!follows(call.layer) && !call.scores) {
      // Of a leader that fails, nobody shall take the choice.
      header->magic = 0;
      std::memset(raw.state, 0, size_t(raw.state_bytes));
    }
  }
  raw.parallel_for = call.parallelFor ? call.parallelFor : parallelFor;
  raw.parallel_context = call.parallelContext;
  if (int32_t status = call.runEntry(&raw))
    return Error{codeOf(status),
                 call.message[0] ? std::string(call.message) : "`" + press->name + "` failed"};
  if (call.scores) // of a row without entries there is nothing to score, whatever the axes
    for (int64_t row = 0; row < raw.batch; ++row) {
      int64_t count = raw.out_scores.stride[0];
      if (call.length[size_t(row)])
        continue;
      std::fill_n(call.outScores + row * count, count, std::nanf(""));
      std::fill_n(call.outProtected + row * count, count, uint8_t(0));
    }
  if (raw.state_bytes && !follows(call.layer) && !call.scores)
    *header = {stateMagic,
               pressId(*owner, *press),
               call.layer,
               call.layers,
               raw.batch,
               raw.heads,
               raw.tokens,
               raw.state_bytes,
               raw.kept,
               rowsId(call.start, call.length),
               call.originalPositions.given() ? positionsId(raw, true) : 0};
  return {};
}
