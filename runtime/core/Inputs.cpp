//===- Inputs.cpp - checks of a call's tensors and their way into the binary interface --------===//
#include "kvpc/Module.h"

#include <algorithm>
#include <cmath>
#include <map>

using namespace kvpc;

namespace {

Error shapeError(const char *name, const TensorRef &tensor, const std::string &need) {
  return {ErrorCode::Shape,
          std::string("`") + name + "` has shape " + tensor.shape() + "; need " + need};
}

Error strideError(const char *name) {
  return {ErrorCode::Stride, std::string("the channels of `") + name +
                                 "` are not contiguous (its last stride is not 1); make a copy, "
                                 "e.g. by `contiguous()`"};
}

bool hasDenseRows(const TensorRef &tensor) {
  int last = tensor.rank - 1;
  return tensor.stride[last] == 1 || tensor.size[last] == 1;
}

bool lists(const std::vector<std::string> &names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

int64_t longestRow(const Call &call) {
  int64_t tokens = call.keys.size[2];
  return call.lengths ? *std::max_element(call.lengths, call.lengths + call.keys.size[0]) : tokens;
}

Failure checkElement(const char *name, const TensorRef &tensor, const TensorRef &keys) {
  if (tensor.element == keys.element)
    return {};
  return Error{ErrorCode::Dtype, std::string("`") + name + "` is " +
                                     std::string(elementName(tensor.element)) + ", `keys` are " +
                                     std::string(elementName(keys.element)) +
                                     "; all must have one dtype: convert `" + name + "`"};
}

Failure checkCache(const Call &call) {
  const TensorRef &keys = call.keys, &values = call.values;
  for (auto [name, tensor] : {std::pair("keys", &keys), std::pair("values", &values)}) {
    if (!tensor->given())
      return Error{ErrorCode::MissingInput, std::string("`") + name + "` is not given"};
    if (tensor->rank != 4)
      return shapeError(name, *tensor, "[batch, head, token, channel]");
  }
  if (keys.element > Element::F16)
    return Error{ErrorCode::Dtype, "`keys` are " + std::string(elementName(keys.element)) +
                                       "; need `f32`, `bf16` or `f16`"};
  if (auto error = checkElement("values", values, keys))
    return error;
  if (keys.size[0] < 1 || keys.size[1] < 1 || keys.size[3] < 1 || values.size[3] < 1)
    return shapeError(values.size[3] < 1 ? "values" : "keys", values.size[3] < 1 ? values : keys,
                      "at least one batch row, head and channel");
  if (keys.size[2] < 1)
    return shapeError("keys", keys, "at least one token; do not compress an empty cache");
  if (!std::equal(keys.size, keys.size + 3, values.size))
    return shapeError("values", values, "the batch, heads and tokens of `keys`, " + keys.shape());
  for (auto [name, tensor] : {std::pair("keys", &keys), std::pair("values", &values)})
    if (!hasDenseRows(*tensor))
      return strideError(name);
  return {};
}

/// One of the inputs that list the last queries.
struct QueryInput {
  const char *name;
  const TensorRef &tensor;
  const Amount &need;
  int queryAxis;
};

Failure checkEnough(const QueryInput &input, const Call &call, const PressHeader &press) {
  int64_t given = input.tensor.size[input.queryAxis], longest = longestRow(call);
  int64_t need = input.need.count == Amount::all ? longest : std::min(input.need.count, longest);
  if (given >= need)
    return {};
  return Error{ErrorCode::Shape, std::string("`") + input.name + "` has " + std::to_string(given) +
                                     " queries; `" + press.name + "` needs the last " +
                                     (input.need.count == Amount::all
                                          ? "of all " + std::to_string(longest) + " tokens"
                                          : std::to_string(need)) +
                                     press.usedAt(input.name) +
                                     "; give them, each row's ending at its last token"};
}

Failure checkQueries(const char *name, const TensorRef &queries, const TensorRef &keys) {
  if (queries.rank != 4 || queries.size[0] != keys.size[0] || queries.size[1] < 1 ||
      queries.size[1] % keys.size[1] != 0 || queries.size[3] != keys.size[3])
    return shapeError(name, queries,
                      "[" + std::to_string(keys.size[0]) + ", a multiple of " +
                          std::to_string(keys.size[1]) + " heads, query, " +
                          std::to_string(keys.size[3]) + "]");
  if (auto error = checkElement(name, queries, keys))
    return error;
  return hasDenseRows(queries) ? Failure() : strideError(name);
}

Failure checkOutputWeight(const Call &call) {
  const TensorRef &weight = call.outputWeight;
  int64_t heads = call.keys.size[1], channels = call.values.size[3];
  bool linear = weight.rank == 2 && weight.size[1] >= heads * channels &&
                weight.size[1] % (heads * channels) == 0;
  bool split = weight.rank == 4 && weight.size[0] == heads && weight.size[2] == channels;
  if (!linear && !split)
    return shapeError("output_weight", weight,
                      "[feature, query head * " + std::to_string(channels) +
                          "] with a multiple of " + std::to_string(heads) +
                          " query heads, as the output projection has it");
  return checkElement("output_weight", weight, call.keys);
}

Failure checkHidden(const Call &call) {
  const TensorRef &hidden = call.hidden;
  if (hidden.rank != 3 || hidden.size[0] != call.keys.size[0] || hidden.size[2] < 1)
    return shapeError("hidden", hidden,
                      "[" + std::to_string(call.keys.size[0]) + ", query, feature]");
  if (auto error = checkElement("hidden", hidden, call.keys))
    return error;
  return hasDenseRows(hidden) ? Failure() : strideError("hidden");
}

Failure checkPositions(const Call &call) {
  const TensorRef &positions = call.originalPositions, &keys = call.keys;
  bool perHead = positions.rank == 3 && std::equal(keys.size, keys.size + 3, positions.size);
  bool shared =
      positions.rank == 2 && positions.size[0] == keys.size[0] && positions.size[1] == keys.size[2];
  if (!perHead && !shared)
    return shapeError("original_positions", positions,
                      "[batch, head, token] or [batch, token] of `keys`, " + keys.shape());
  if (positions.element != Element::I64)
    return Error{ErrorCode::Dtype, "`original_positions` are " +
                                       std::string(elementName(positions.element)) +
                                       "; need `int64`"};
  return {};
}

/// Real entries are in the order in which they were cached, each once.
Failure checkOrder(const Call &call) {
  const TensorRef &positions = call.originalPositions;
  const auto *data = static_cast<const int64_t *>(positions.data);
  int64_t tokens = call.keys.size[2], heads = positions.rank == 3 ? positions.size[1] : 1;
  int64_t step = positions.stride[positions.rank - 1];
  for (int64_t row = 0; row < positions.size[0]; ++row) {
    int64_t length = call.lengths ? call.lengths[row] : tokens;
    int64_t start = call.padRight ? 0 : tokens - length;
    int64_t seen = call.seen ? call.seen[row] : length;
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t *at = data + row * positions.stride[0] + start * step;
      if (positions.rank == 3)
        at += head * positions.stride[1];
      for (int64_t n = 0, last = -1; n < length; last = at[n++ * step])
        if (int64_t one = at[n * step]; one <= last || one >= seen)
          return Error{ErrorCode::Shape,
                       "`original_positions` has " + std::to_string(one) +
                           (last >= 0 ? " after " + std::to_string(last) : "") + " in row " +
                           std::to_string(row) + "; need ascending ones of 0.." +
                           std::to_string(seen - 1) +
                           (call.seen ? ", below `seen`" : "; give `seen` if more were cached")};
    }
  }
  return {};
}

/// A press has one position for each token. `checkOrder` has seen them.
Failure checkAlike(const Call &call, const std::string &press) {
  const TensorRef &positions = call.originalPositions;
  if (positions.rank == 2)
    return {};
  const auto *data = static_cast<const int64_t *>(positions.data);
  const int64_t *step = positions.stride;
  for (int64_t row = 0; row < positions.size[0]; ++row) {
    int64_t length = call.lengths ? call.lengths[row] : call.keys.size[2];
    int64_t start = call.padRight ? 0 : call.keys.size[2] - length;
    for (int64_t head = 1; head < positions.size[1]; ++head)
      for (int64_t n = start; n < start + length; ++n) {
        const int64_t *at = data + row * step[0] + n * step[2];
        if (at[0] != at[head * step[1]])
          return Error{ErrorCode::Shape,
                       "`original_positions` of row " + std::to_string(row) + " are " +
                           std::to_string(at[0]) + " for head 0 and " +
                           std::to_string(at[head * step[1]]) + " for head " +
                           std::to_string(head) + "; `" + press +
                           "` reads one position of a token: need the same for all heads, or "
                           "compress each head by itself"};
      }
  }
  return {};
}

/// Query heads of a KV head, as one input has them; 0: it does not say.
int64_t groupsOf(const TensorRef &queries, int64_t heads) {
  return queries.given() ? queries.size[1] / heads : 0;
}

} // namespace

Failure BoundPress::checkInputs(const Call &call) const {
  if (auto error = checkCache(call))
    return error;
  if (call.layers < 1 || call.layer < 0 || call.layer >= call.layers)
    return Error{ErrorCode::Shape, "layer " + std::to_string(call.layer) + " of " +
                                       std::to_string(call.layers) +
                                       "; need 0 <= `layer` < `layers`"};
  const Inputs &inputs = press->inputs;
  const bool following = follows(call.layer);
  struct Presence {
    const char *name;
    bool given, needed;
  };
  const Presence all[] = {
      {"queries", call.queries.given(), bool(inputs.queries)},
      {"unrotated_queries", call.unrotatedQueries.given(), bool(inputs.unrotatedQueries)},
      {"hidden", call.hidden.given(), bool(inputs.hidden)},
      {"output_weight", call.outputWeight.given(), inputs.outputWeight},
      {"rope", !call.ropeFrequencies.empty(), inputs.rope},
  };
  for (auto &[name, given, needed] : all) {
    if (needed && !given && !(following && lists(press->leaderInputs, name)))
      return Error{ErrorCode::MissingInput, "`" + press->name + "` needs `" + name + "`" +
                                                press->usedAt(name) + ", which is not given"};
    // RoPE describes the model, whoever uses it.
    if (given && !needed && name != std::string_view("rope"))
      return Error{ErrorCode::ExtraInput,
                   "`" + press->name + "` does not use `" + name + "`; leave it out"};
  }
  const QueryInput queryInputs[] = {
      {"queries", call.queries, inputs.queries, 2},
      {"unrotated_queries", call.unrotatedQueries, inputs.unrotatedQueries, 2},
      {"hidden", call.hidden, inputs.hidden, 1},
  };
  for (const QueryInput &input : queryInputs) {
    if (!input.tensor.given())
      continue;
    auto error = input.queryAxis == 2 ? checkQueries(input.name, input.tensor, call.keys)
                                      : checkHidden(call);
    if (error)
      return error;
  }
  if (call.outputWeight.given())
    if (auto error = checkOutputWeight(call))
      return error;
  if (call.originalPositions.given())
    if (auto error = checkPositions(call))
      return error;
  if (int64_t(call.ropeFrequencies.size()) * 2 > call.keys.size[3])
    return Error{ErrorCode::Shape, "`rope` has " + std::to_string(call.ropeFrequencies.size()) +
                                       " inverse frequencies; keys of " +
                                       std::to_string(call.keys.size[3]) +
                                       " channels take at most half as many"};
  if (!std::isfinite(call.ropeScaling) || call.ropeScaling == 0 ||
      !std::all_of(call.ropeFrequencies.begin(), call.ropeFrequencies.end(),
                   [](double x) { return std::isfinite(x); }))
    return Error{ErrorCode::Parameter, "`rope` has a NaN or an infinity among its inverse "
                                       "frequencies and its scaling, or is scaled by 0; need "
                                       "finite numbers"};
  for (int64_t row = 0; row < call.keys.size[0]; ++row) {
    int64_t length = call.lengths ? call.lengths[row] : call.keys.size[2];
    if (length < 0 || length > call.keys.size[2])
      return Error{ErrorCode::Shape,
                   "`lengths` has " + std::to_string(length) + " in row " + std::to_string(row) +
                       "; need 0.." + std::to_string(call.keys.size[2]) + ", the tokens of `keys`"};
    if (call.seen && call.seen[row] < length)
      return Error{ErrorCode::Shape, "`seen` has " + std::to_string(call.seen[row]) + " in row " +
                                         std::to_string(row) + "; need at least its length, " +
                                         std::to_string(length)};
  }
  if (call.originalPositions.given()) {
    if (auto error = checkOrder(call))
      return error;
    if (press->sharedPositions)
      if (auto error = checkAlike(call, press->name))
        return error;
  }
  for (const QueryInput &input : queryInputs)
    if (input.tensor.given())
      if (auto error = checkEnough(input, call, *press))
        return error;
  return {};
}

Failure BoundPress::bindQueries(Call &call) const {
  kvpc_call &raw = call.raw;
  struct Input {
    const TensorRef &from;
    kvpc_tensor &to;
    const Amount &need;
    int queryAxis;
  };
  const Input inputs[] = {
      {call.queries, raw.queries_rotated, press->inputs.queries, 2},
      {call.unrotatedQueries, raw.queries_unrotated, press->inputs.unrotatedQueries, 2},
      {call.hidden, raw.hidden, press->inputs.hidden, 1},
  };
  int64_t groups = 0;
  for (auto [name, given] :
       {std::pair("queries", groupsOf(call.queries, raw.heads)),
        std::pair("unrotated_queries", groupsOf(call.unrotatedQueries, raw.heads)),
        std::pair("output_weight",
                  !call.outputWeight.given() ? int64_t(0)
                  : call.outputWeight.rank == 4
                      ? call.outputWeight.size[1]
                      : call.outputWeight.size[1] / (raw.heads * raw.value_channels))}) {
    if (given && groups && given != groups)
      return Error{ErrorCode::Shape,
                   std::string("`") + name + "` has " + std::to_string(given * raw.heads) +
                       " query heads; the other inputs have " + std::to_string(groups * raw.heads)};
    groups = given ? given : groups;
  }
  raw.groups = groups;
  for (const Input &input : inputs)
    if (input.from.given()) {
      int64_t given = input.from.size[input.queryAxis];
      int64_t used = input.need.count == Amount::all ? given : std::min(given, input.need.count);
      raw.queries = std::max(raw.queries, used);
    }
  for (const Input &input : inputs) {
    if (!input.from.given())
      continue;
    const int64_t *stride = input.from.stride;
    // The last query of every input is query raw.queries - 1; an input that has fewer begins
    // before its memory and is not read there.
    int64_t skipped = input.from.size[input.queryAxis] - raw.queries;
    int64_t bytes = input.from.element == Element::F32 ? 4 : 2;
    input.to.data = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(input.from.data) +
                                             uintptr_t(skipped * stride[input.queryAxis] * bytes));
    if (input.queryAxis == 2) {
      int64_t strides[] = {stride[0], stride[1] * groups, stride[1], stride[2], 1};
      std::copy(std::begin(strides), std::end(strides), input.to.stride);
    } else {
      int64_t strides[] = {stride[0], stride[1], 1};
      std::copy(std::begin(strides), std::end(strides), input.to.stride);
    }
  }
  if (call.hidden.given())
    raw.features = call.hidden.size[2];
  if (!call.outputWeight.given())
    return {};

  const TensorRef &weight = call.outputWeight;
  int64_t features = weight.rank == 2 ? weight.size[0] : weight.size[3];
  if (raw.features && raw.features != features)
    return shapeError("output_weight", weight,
                      std::to_string(raw.features) + " features, the width of `hidden`");
  raw.features = features;
  raw.output_weight.data = weight.data;
  if (weight.rank == 4) {
    std::copy(weight.stride, weight.stride + 4, raw.output_weight.stride);
  } else {
    int64_t channels = raw.value_channels, one = weight.stride[1];
    int64_t strides[] = {groups * channels * one, channels * one, one, weight.stride[0]};
    std::copy(std::begin(strides), std::end(strides), raw.output_weight.stride);
  }
  return {};
}

/// What is not of the type or in the range that the program gives a tensor. `float` without a range
/// takes anything, and nothing is read.
static Failure checkElements(const Parameter &parameter, const TensorRef &tensor) {
  bool whole = parameter.type == "int", fraction = parameter.type == "fraction";
  if (!whole && !fraction && !parameter.min && !parameter.max)
    return {};
  int64_t count = 1;
  for (int axis = 0; axis < tensor.rank; ++axis)
    count *= tensor.size[axis];
  const auto *x = static_cast<const float *>(tensor.data);
  const float *end = x + count;
  const float *wrong = std::find_if_not(x, end, [&](float v) {
    return (!whole || (v == std::floor(v) && std::isfinite(v))) &&
           (!fraction || (v >= 0 && v < 1)) && (!parameter.min || v >= *parameter.min) &&
           (!parameter.max || v <= *parameter.max);
  });
  if (wrong == end)
    return {};
  std::string need = whole      ? "whole numbers"
                     : fraction ? "fractions, at least 0 and less than 1"
                                : "numbers";
  if (parameter.min)
    need += ", " + Value::ofFloat(*parameter.min).str() + " at least";
  if (parameter.max)
    need += ", " + Value::ofFloat(*parameter.max).str() + " at most";
  return Error{ErrorCode::Parameter,
               "`" + parameter.name + "` holds " + Value::ofFloat(*wrong).str() + "; need " + need};
}

Failure BoundPress::bindWeights(Call &call) const {
  kvpc_call &raw = call.raw;
  call.rawWeights.assign(press->weights.size(), {});
  call.weightSizes.assign(press->weights.size() * TensorRef::maxRank, 0);
  std::map<std::string, int64_t> own; // axes that weights alone have
  if (call.weights.size() > press->weights.size())
    return Error{ErrorCode::ExtraInput, "the call has " + std::to_string(call.weights.size()) +
                                            " weights; `" + press->name + "` has " +
                                            std::to_string(press->weights.size())};
  for (size_t n = 0; n < press->weights.size(); ++n) {
    const Weight &weight = press->weights[n];
    if (n >= call.weights.size() || !call.weights[n].given())
      return Error{ErrorCode::MissingInput, "`" + press->name + "` needs the tensor `" +
                                                weight.name + "`" + press->usedAt(weight.name) +
                                                ", which is not given"};
    const TensorRef &tensor = call.weights[n];
    std::string need;
    bool fits = tensor.rank == int(weight.axes.size());
    for (size_t axis = 0; axis < weight.axes.size(); ++axis) {
      // `channel'` is as long as `channel`.
      std::string name = weight.axes[axis].substr(0, weight.axes[axis].find('\''));
      if (name == "group" && !raw.groups && fits)
        raw.groups = tensor.size[axis];
      int64_t extent = name == "head"      ? raw.heads
                       : name == "group"   ? raw.groups
                       : name == "channel" ? raw.channels
                       : name == "feature" ? raw.features
                       : name == "layer"   ? call.layers
                                           : 0;
      if (!extent && fits)
        extent = own.insert({name, tensor.size[axis]}).first->second;
      need += (need.empty() ? "[" : ", ") + weight.axes[axis] +
              (extent ? " " + std::to_string(extent) : "");
      fits = fits && (extent ? tensor.size[axis] == extent : tensor.size[axis] >= 1);
    }
    if (!fits)
      return shapeError(weight.name.c_str(), tensor,
                        (need.empty() ? "[" : need) + "] at a layer" +
                            (weight.layered ? ", and `layer` as well in what is given" : ""));
    if (tensor.element != Element::F32)
      return Error{ErrorCode::Dtype, "`" + weight.name + "` is " +
                                         std::string(elementName(tensor.element)) + "; need `f32`"};
    int64_t dense = 1;
    for (int axis = tensor.rank - 1; axis >= 0; dense *= tensor.size[axis--])
      if (tensor.size[axis] != 1 && tensor.stride[axis] != dense)
        return Error{ErrorCode::Stride,
                     "`" + weight.name + "` is not contiguous; make a copy of it"};
    if (const Parameter *parameter = press->parameter(weight.name))
      if (auto error = checkElements(*parameter, tensor))
        return error;
    std::copy(tensor.size, tensor.size + tensor.rank,
              call.weightSizes.begin() + ptrdiff_t(n * TensorRef::maxRank));
    call.rawWeights[n].data = tensor.data;
    dense = 1;
    for (int axis = tensor.rank - 1; axis >= 0; dense *= tensor.size[axis--])
      call.rawWeights[n].stride[axis] = dense;
  }
  raw.weights = call.rawWeights.data();
  raw.weight_sizes = call.weightSizes.data();
  return {};
}
