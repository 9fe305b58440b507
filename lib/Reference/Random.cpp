//===- Random.cpp - counter-based random numbers over named axes ------------------------------===//
#include "lib/Target/CPU/Primitives/Random.h"
#include "lib/Reference/Operations.h"

using namespace kvpc;
using namespace kvpc::reference;

Tensor kvpc::reference::uniform(int64_t seed, int64_t layer, Axes axes, const Tensor &positions) {
  Tensor out(axes, Element::Float);
  out.present = positions.present;
  bool tokens = out.has("token");
  Tensor heads({{"head", out.has("head") ? out.extent("head") : 1}}, Element::Int);
  Axes fresh = without(axes, {"head", "token"});
  Tensor extras(fresh, Element::Int);
  std::vector<int64_t> head = offsets(axes, heads), extra = offsets(axes, extras);
  std::vector<int64_t> position = offsets(axes, positions);
  for (size_t i = 0; i < out.floats.size(); ++i)
    out.floats[i] = random::uniformOf(
        random::blockAt(seed, layer, head[i], tokens ? positions.ints[position[i]] : 0, extra[i]));
  return out;
}
