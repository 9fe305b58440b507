//===- Press.cpp - presses for C++ programs ---------------------------------------------------===//
#include "Execute.h"
#include "Registry.h"

#include <ATen/Functions.h>
#include <algorithm>

namespace kvpc::torch {

at::Tensor &State::sized(int64_t bytes) {
  if (!buffer || buffer->numel() < bytes)
    buffer = at::zeros({bytes}, at::kByte);
  return *buffer;
}

Press Press::load(const std::string &path, const std::string &name,
                  const kvpc::Press::Arguments &arguments,
                  const std::vector<std::pair<std::string, at::Tensor>> &weights,
                  const std::string &digest) {
  auto module = loadModule(path, digest);
  auto found = module->press(name);
  if (!found)
    raise(found.error());
  auto bound = found->bind(arguments);
  if (!bound)
    raise(bound.error());
  Press out;
  out.bound = std::make_shared<const BoundPress>(std::move(*bound));
  out.name = handleOf(*module, out.header(), toJson(arguments));
  remember(out.name, out.bound);

  const auto &wanted = out.header().weights;
  for (auto &[given, unused] : weights)
    if (std::none_of(wanted.begin(), wanted.end(), [&](auto &w) { return w.name == given; }))
      raise({ErrorCode::ExtraInput,
             "`" + out.header().name + "` has no tensor parameter `" + given + "`"});
  for (const Weight &weight : wanted) {
    auto it = std::find_if(weights.begin(), weights.end(),
                           [&](auto &pair) { return pair.first == weight.name; });
    if (it == weights.end())
      raise({ErrorCode::MissingInput,
             "`" + out.header().name + "` needs the tensor `" + weight.name + "`"});
    at::Tensor whole = it->second.to(at::kCPU, at::kFloat);
    if (weight.layered) {
      const auto &axes = out.header().parameter(weight.name)->axes;
      auto layer = std::find(axes.begin(), axes.end(), "layer") - axes.begin();
      if (whole.dim() != int64_t(weight.axes.size()) + 1 || layer >= whole.dim())
        raise({ErrorCode::Shape, "`" + weight.name + "` has " + std::to_string(whole.dim()) +
                                     " axes; need " + quoteList(axes)});
      whole = whole.movedim(layer, 0);
    }
    out.weights.push_back(whole.contiguous());
  }
  return out;
}

const PressHeader &Press::header() const { return bound->header(); }

std::vector<at::Tensor> Press::weightsAt(int64_t layer, int64_t layers) const {
  std::vector<at::Tensor> out;
  for (size_t n = 0; n < weights.size(); ++n) {
    const Weight &weight = header().weights[n];
    if (!weight.layered) {
      out.push_back(weights[n]);
      continue;
    }
    if (weights[n].size(0) != layers || layer < 0 || layer >= layers)
      raise({ErrorCode::Shape, "`" + weight.name + "` has " + std::to_string(weights[n].size(0)) +
                                   " layers; the call is of layer " + std::to_string(layer) +
                                   " of " + std::to_string(layers)});
    out.push_back(weights[n].select(0, layer));
  }
  return out;
}

namespace {

Request requestOf(const at::Tensor &keys, const at::Tensor &values, const Inputs &inputs,
                  std::vector<at::Tensor> weights) {
  Request out;
  out.keys = keys;
  out.values = values;
  out.queries = inputs.queries;
  out.unrotatedQueries = inputs.unrotatedQueries;
  out.hidden = inputs.hidden;
  out.outputWeight = inputs.outputWeight;
  if (inputs.rope) {
    out.rope = inputs.rope->inverseFrequencies;
    out.ropeScaling = inputs.rope->attentionScaling;
    out.ropeInterleaved = inputs.rope->interleaved;
  }
  out.scale = inputs.scale;
  out.layer = inputs.layer;
  out.layers = inputs.layers;
  out.lengths = inputs.lengths;
  out.padRight = inputs.padRight;
  out.originalPositions = inputs.originalPositions;
  out.seen = inputs.seen;
  out.weights = std::move(weights);
  if (inputs.state)
    out.state = inputs.state->buffer;
  return out;
}

/// A view keeps all of its memory alive; where that is much more than is seen, it is given back.
at::Tensor compact(const at::Tensor &tensor) {
  auto seen = int64_t(tensor.nbytes()), all = int64_t(tensor.storage().nbytes());
  return seen < all - all / 8 ? tensor.clone(at::MemoryFormat::Contiguous) : tensor;
}

/// A leader's plan says how much it leaves to its followers.
void sizeState(const BoundPress &press, const Inputs &inputs, Request &request) {
  if (!inputs.state || !press.header().reuse || press.follows(inputs.layer))
    return;
  int64_t bytes = plan(press, request, false).stateBytes;
  if (bytes)
    request.state = inputs.state->sized(bytes);
}

} // namespace

Output Press::compress(const at::Tensor &keys, const at::Tensor &values,
                       const Inputs &inputs) const {
  Request request = requestOf(keys, values, inputs, weightsAt(inputs.layer, inputs.layers));
  sizeState(*bound, inputs, request);
  Output out = torch::compress(*bound, request);
  if (header().dataCounts) {
    out.keys = compact(out.keys);
    out.values = compact(out.values);
  }
  if (!header().dropsChannels)
    out.channels.reset();
  return out;
}

Output Press::compressInPlace(at::Tensor &keys, at::Tensor &values, const Inputs &inputs) const {
  Request request = requestOf(keys, values, inputs, weightsAt(inputs.layer, inputs.layers));
  sizeState(*bound, inputs, request);
  Output out = torch::compressInPlace(*bound, request);
  out.keys = keys.narrow(2, 0, out.tokens.size(2));
  out.values = values.narrow(2, 0, out.tokens.size(2));
  if (header().dropsChannels)
    out.keys = out.keys.narrow(3, 0, out.channels.size(2));
  else
    out.channels.reset();
  return out;
}

Scores Press::scores(const at::Tensor &keys, const at::Tensor &values, const Inputs &inputs) const {
  return torch::scores(*bound,
                       requestOf(keys, values, inputs, weightsAt(inputs.layer, inputs.layers)));
}

} // namespace kvpc::torch
