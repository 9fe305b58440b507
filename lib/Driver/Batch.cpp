//===- Batch.cpp - tensors of one call of a press ---------------------------------------------===//
#include "lib/Driver/Batch.h"

#include "lib/Target/CPU/Primitives/Random.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

#include <cmath>

using namespace kvpc;
using namespace kvpc::driver;
using reference::Axes;
using reference::Tensor;

static llvm::Error wrong(const llvm::Twine &text, llvm::StringRef code = "kvm-shape") {
  return llvm::createStringError(text + " [" + code + "]");
}

static bool isStorage(const Array &array) {
  return array.dtype == "F32" || array.dtype == "BF16" || array.dtype == "F16";
}

/// The shape that an array needs; -1 takes any extent.
static llvm::Error checkShape(llvm::StringRef name, const Array &array,
                              llvm::ArrayRef<int64_t> need, llvm::StringRef axes) {
  bool fits = array.shape.size() == need.size();
  for (size_t i = 0; fits && i < need.size(); ++i)
    fits = need[i] < 0 || need[i] == array.shape[i];
  if (fits)
    return llvm::Error::success();
  std::string wanted = llvm::join(
      llvm::map_range(need, [](int64_t n) { return n < 0 ? std::string("?") : std::to_string(n); }),
      ", ");
  return wrong("`" + name + "` is " + array.str() + "; need [" + wanted + "] over [" + axes + "]");
}

static llvm::Error checkDtype(llvm::StringRef name, const Array &array, llvm::StringRef need) {
  if (need == "storage" ? isStorage(array) : array.dtype == need)
    return llvm::Error::success();
  return wrong("`" + name + "` has dtype " + array.dtype + "; need " +
                   (need == "storage" ? llvm::StringRef("F32, BF16 or F16") : need),
               "kvm-dtype");
}

const Array *Batch::find(llvm::StringRef name) const {
  auto it = given.find(name.str());
  return it == given.end() ? nullptr : &it->second;
}

double Batch::scale() const {
  return host.scale.value_or(1 / std::sqrt(static_cast<double>(std::max<int64_t>(channels, 1))));
}

llvm::Error Batch::readKeysAndValues() {
  for (llvm::StringRef name : {"keys", "values"}) {
    const Array *array = find(name);
    if (!array)
      return wrong("the input has no `" + name + "`; need [batch, head, token, channel]",
                   "kvm-missing-input");
    if (llvm::Error error = checkDtype(name, *array, "storage"))
      return error;
    std::vector<int64_t> need{-1, -1, -1, -1};
    if (name == "values")
      need = {batch, heads, tokens, -1};
    if (llvm::Error error = checkShape(name, *array, need, "batch, head, token, channel"))
      return error;
    if (llvm::is_contained(array->shape, 0))
      return wrong("`" + name + "` is " + array->str() +
                   "; need at least one row, head, token and channel");
    if (name == "keys") {
      batch = array->shape[0];
      heads = array->shape[1];
      tokens = array->shape[2];
      channels = array->shape[3];
    } else {
      valueChannels = array->shape[3];
    }
  }
  if (find("keys")->dtype != find("values")->dtype)
    return wrong("`keys` has dtype " + find("keys")->dtype + ", `values` " + find("values")->dtype +
                     "; need the same",
                 "kvm-dtype");
  return llvm::Error::success();
}

llvm::Error Batch::readQueries() {
  int64_t known = -1;
  for (llvm::StringRef name : {"queries", "unrotated_queries"})
    if (const Array *array = find(name)) {
      if (llvm::Error error = checkDtype(name, *array, find("keys")->dtype))
        return error;
      if (llvm::Error error = checkShape(name, *array, {batch, heads, known, -1, channels},
                                         "batch, head, group, query, channel"))
        return error;
      known = array->shape[2];
    }
  if (const Array *array = find("output_weight")) {
    if (llvm::Error error = checkDtype("output_weight", *array, find("keys")->dtype))
      return error;
    if (llvm::Error error = checkShape("output_weight", *array, {heads, known, valueChannels, -1},
                                       "head, group, channel, feature"))
      return error;
    known = array->shape[1];
  }
  if (known >= 0)
    groups = known;
  return llvm::Error::success();
}

llvm::Error Batch::readOthers() {
  if (const Array *array = find("hidden")) {
    if (llvm::Error error = checkDtype("hidden", *array, find("keys")->dtype))
      return error;
    if (llvm::Error error = checkShape("hidden", *array, {batch, -1, -1}, "batch, query, feature"))
      return error;
  }
  if (const Array *array = find("original_positions")) {
    if (llvm::Error error = checkDtype("original_positions", *array, "I64"))
      return error;
    if (llvm::Error error =
            checkShape("original_positions", *array, {batch, heads, tokens}, "batch, head, token"))
      return error;
  }
  if (const Array *array = find("rope_frequencies")) {
    if (llvm::Error error = checkDtype("rope_frequencies", *array, "F64"))
      return error;
    if (llvm::Error error = checkShape("rope_frequencies", *array, {-1}, "pair"))
      return error;
    if (2 * array->shape[0] > channels)
      return wrong("`rope_frequencies` turns " + llvm::Twine(2 * array->shape[0]) +
                   " channels, the keys have " + llvm::Twine(channels));
  }
  for (auto &[name, array] : given) {
    if (!llvm::StringRef(name).starts_with("weight."))
      continue;
    if (llvm::Error error = checkDtype(name, array, "F32"))
      return error;
    for (int64_t i = 0, n = array.size(); i < n; ++i)
      if (std::isnan(array.get<float>(i)))
        return wrong("`" + name + "` holds NaN; need numbers", "kvm-parameter");
  }
  return llvm::Error::success();
}

/// Of real entries, ascending and below `seen`.
llvm::Error Batch::checkPositions() const {
  const Array *array = find("original_positions");
  for (int64_t i = 0, n = array ? batch * heads : 0; i < n; ++i) {
    int64_t row = i / heads, last = -1;
    for (int64_t t = start[row]; t < start[row] + length[row]; ++t) {
      int64_t one = array->get<int64_t>(i * tokens + t);
      if (one <= last || one >= seen[row])
        return wrong("`original_positions` has " + llvm::Twine(one) +
                     (last >= 0 ? " after " + llvm::Twine(last).str() : "") + " in row " +
                     llvm::Twine(row) + "; need ascending ones of 0.." +
                     llvm::Twine(seen[row] - 1));
      last = one;
    }
  }
  return llvm::Error::success();
}

llvm::Error Batch::readRows() {
  start.assign(batch, 0);
  length.assign(batch, tokens);
  for (auto [name, to] : {std::pair("start", &start), {"length", &length}}) {
    const Array *array = find(name);
    if (!array)
      continue;
    if (llvm::Error error = checkDtype(name, *array, "I64"))
      return error;
    if (llvm::Error error = checkShape(name, *array, {batch}, "batch"))
      return error;
    for (int64_t row = 0; row < batch; ++row)
      (*to)[row] = array->get<int64_t>(row);
  }
  for (int64_t row = 0; row < batch; ++row) {
    if (start[row] < 0 || start[row] > tokens)
      return wrong("`start` of row " + llvm::Twine(row) + " is " + llvm::Twine(start[row]) +
                   "; need 0.." + llvm::Twine(tokens));
    if (!find("length"))
      length[row] = tokens - start[row];
    if (length[row] < 0 || length[row] > tokens - start[row])
      return wrong("`length` of row " + llvm::Twine(row) + " is " + llvm::Twine(length[row]) +
                   "; need 0.." + llvm::Twine(tokens - start[row]));
  }
  seen = length;
  if (const Array *array = find("seen")) {
    if (llvm::Error error = checkDtype("seen", *array, "I64"))
      return error;
    if (llvm::Error error = checkShape("seen", *array, {batch}, "batch"))
      return error;
    for (int64_t row = 0; row < batch; ++row)
      if ((seen[row] = array->get<int64_t>(row)) < length[row])
        return wrong("`seen` of row " + llvm::Twine(row) + " is " + llvm::Twine(seen[row]) +
                     ", fewer than its " + llvm::Twine(length[row]) + " tokens");
  }
  return llvm::Error::success();
}

llvm::Expected<Batch> Batch::of(Arrays arrays, const HostValues &host) {
  Batch out;
  out.given = std::move(arrays);
  out.host = host;
  for (auto read :
       {&Batch::readKeysAndValues, &Batch::readQueries, &Batch::readOthers, &Batch::readRows})
    if (llvm::Error error = (out.*read)())
      return error;
  if (llvm::Error error = out.checkPositions())
    return error;
  if (host.layers < 1 || host.layer < 0 || host.layer >= host.layers)
    return wrong("layer " + llvm::Twine(host.layer) + " is not one of " + llvm::Twine(host.layers) +
                 " layers");
  return out;
}

/// Axis 0 (the batch) at `index`, the rest widened.
static Tensor widen(const Array &array, int64_t index, Axes axes) {
  int64_t n = reference::countOf(axes);
  std::vector<float> values(n);
  for (int64_t i = 0; i < n; ++i)
    values[i] = array.number(index * n + i);
  return Tensor::ofFloats(std::move(axes), std::move(values));
}

/// Entries [from, from + n) of axis `token` of [head, token, ...].
static Tensor sliceTokens(const Array &array, int64_t index, int64_t from, int64_t n) {
  int64_t heads = array.shape[1], tokens = array.shape[2], width = array.shape[3];
  std::vector<float> values;
  values.reserve(heads * n * width);
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t i = 0; i < n * width; ++i)
      values.push_back(array.number(((index * heads + head) * tokens + from) * width + i));
  return Tensor::ofFloats({{"head", heads}, {"token", n}, {"channel", width}}, std::move(values));
}

reference::Row Batch::row(int64_t index) const {
  reference::Row row;
  row.length = length[index];
  row.seen = seen[index];
  row.layer = host.layer;
  row.layers = host.layers;
  row.heads = heads;
  row.groups = groups;
  row.channels = channels;
  row.scale = scale();
  row.keys = sliceTokens(*find("keys"), index, start[index], row.length);
  row.values = sliceTokens(*find("values"), index, start[index], row.length);
  auto queries = [&](llvm::StringRef name) -> std::optional<Tensor> {
    const Array *array = find(name);
    if (!array)
      return std::nullopt;
    return widen(
        *array, index,
        {{"head", heads}, {"group", groups}, {"query", array->shape[3]}, {"channel", channels}});
  };
  row.queries = queries("queries");
  row.unrotatedQueries = queries("unrotated_queries");
  if (const Array *array = find("hidden"))
    row.hidden = widen(*array, index, {{"query", array->shape[1]}, {"feature", array->shape[2]}});
  if (const Array *array = find("output_weight"))
    row.outputWeight = widen(*array, 0,
                             {{"head", heads},
                              {"group", groups},
                              {"channel", valueChannels},
                              {"feature", array->shape[3]}});
  if (const Array *array = find("original_positions")) {
    std::vector<int64_t> ids;
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t i = 0; i < row.length; ++i)
        ids.push_back(array->get<int64_t>((index * heads + head) * tokens + start[index] + i));
    row.originalPositions =
        Tensor::ofInts({{"head", heads}, {"token", row.length}}, std::move(ids));
  }
  if (const Array *array = find("rope_frequencies")) {
    row.rope.emplace();
    for (int64_t i = 0; i < array->shape[0]; ++i)
      row.rope->frequencies.push_back(array->get<double>(i));
    row.rope->scaling = host.ropeScaling;
    row.rope->interleaved = host.ropeInterleaved;
  }
  return row;
}

llvm::Expected<Arrays> driver::syntheticArrays(const PressSummary &press,
                                               llvm::ArrayRef<int64_t> shape, uint64_t seed) {
  if (!press.weights.empty())
    return wrong("the press takes the weight `" + press.weights[0].name +
                     "`, which cannot be made up; give --input with `weight." +
                     press.weights[0].name + "`",
                 "kvm-missing-input");
  int64_t batch = shape[0], heads = shape[1], groups = shape[2], tokens = shape[3],
          channels = shape[4], features = groups * heads * channels;
  Arrays out;
  // Each tensor has numbers of its own, whichever others there are.
  enum { kKeys, kValues, kQueries, kUnrotated, kHidden, kOutputWeight };
  auto add = [&](llvm::StringRef name, int stream, std::vector<int64_t> extents) {
    Array array("F32", std::move(extents));
    for (int64_t i = 0, n = array.size(); i < n; ++i)
      array.put<float>(i, random::gaussianOf(random::blockAt(seed, stream, i >> 32, i, 0)));
    out.emplace(name.str(), std::move(array));
  };
  auto amount = [&](llvm::StringRef name) -> int64_t {
    auto it = press.inputs.find(name.str());
    if (it == press.inputs.end())
      return 0;
    return it->second == PressSummary::kAll ? tokens : std::min(it->second, tokens);
  };
  add("keys", kKeys, {batch, heads, tokens, channels});
  add("values", kValues, {batch, heads, tokens, channels});
  if (int64_t n = amount("queries"))
    add("queries", kQueries, {batch, heads, groups, n, channels});
  if (int64_t n = amount("unrotated_queries"))
    add("unrotated_queries", kUnrotated, {batch, heads, groups, n, channels});
  if (int64_t n = amount("hidden"))
    add("hidden", kHidden, {batch, n, features});
  if (press.inputs.count("output_weight"))
    add("output_weight", kOutputWeight, {heads, groups, channels, features});
  if (press.inputs.count("rope")) {
    Array frequencies("F64", {channels / 2});
    for (int64_t i = 0; i < channels / 2; ++i)
      frequencies.put<double>(i, std::pow(10000.0, -2.0 * i / channels));
    out.emplace("rope_frequencies", std::move(frequencies));
  }
  return out;
}
