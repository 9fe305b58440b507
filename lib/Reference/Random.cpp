//===- Random.cpp - counter-based random numbers over named axes ------------------------------===//
#include "lib/Target/CPU/Primitives/Random.h"
#include "lib/Reference/Operations.h"

using namespace kvpc;
using namespace kvpc::reference;

Tensor kvpc::reference::uniform(int64_t seed, int64_t layer, Axes axes, const Tensor &positions,
                                int64_t width, const Tensor *channels) {
  Tensor out(axes, Element::Float);
  out.present = positions.present;
  bool tokens = out.has("token");
  Tensor heads({{"head", out.has("head") ? out.extent("head") : 1}}, Element::Int);
  // One number of all others: a channel counts for the one it was first, of all there were.
  std::vector<int64_t> head = offsets(axes, heads), extra(out.floats.size());
  for (const Axis &axis : without(axes, {"head", "token"})) {
    bool channel = axis.name == "channel";
    Tensor own({axis}, Element::Int);
    std::vector<int64_t> index = offsets(axes, own), named;
    if (channel && channels)
      named = offsets(axes, *channels);
    for (size_t i = 0; i < extra.size(); ++i)
      extra[i] = extra[i] * (channel ? width : axis.extent) +
                 (named.empty() ? index[i] : channels->ints[named[i]]);
  }
  std::vector<int64_t> position = offsets(axes, positions);
  for (size_t i = 0; i < out.floats.size(); ++i)
    out.floats[i] = random::uniformOf(
        random::blockAt(seed, layer, head[i], tokens ? positions.ints[position[i]] : 0, extra[i]));
  return out;
}
