// A LibTorch program without Python: compresses a cache of random numbers with a compiled press.
//
//   kvpc compile snapkv -o snapkv.kvm
//   kvpc_example snapkv.kvm [press]
#include "kvpc/torch.h"

#include <ATen/ATen.h>
#include <iostream>

int main(int argc, char **argv) {
  if (argc < 2) {
    std::cerr << "usage: kvpc_example MODULE.kvm [PRESS]\n";
    return 2;
  }
  at::manual_seed(0);
  const int64_t batch = 2, heads = 2, groups = 2, tokens = 1000, channels = 64, hidden = 128;
  at::Tensor keys = at::randn({batch, heads, tokens, channels});
  at::Tensor values = at::randn({batch, heads, tokens, channels});
  try {
    auto press = kvpc::torch::Press::load(argv[1], argc > 2 ? argv[2] : "");
    std::cout << "press " << press.header().name << ": " << press.header().doc << "\n";

    // Exactly what the press asks for.
    kvpc::torch::Inputs inputs;
    inputs.lengths = at::tensor({tokens, tokens / 2}, at::kLong);
    at::Tensor queries = at::randn({batch, heads * groups, tokens, channels});
    const kvpc::Inputs &wanted = press.header().inputs;
    if (wanted.queries)
      inputs.queries = queries;
    if (wanted.unrotatedQueries)
      inputs.unrotatedQueries = queries;
    if (wanted.hidden)
      inputs.hidden = at::randn({batch, tokens, hidden});
    if (wanted.outputWeight)
      inputs.outputWeight = at::randn({hidden, heads * groups * channels});

    auto out = press.compress(keys, values, inputs);
    std::cout << "keys " << keys.sizes() << " -> " << out.keys.sizes() << "\n"
              << "lengths " << inputs.lengths->sum().item<int64_t>() << " -> "
              << out.lengths.sum().item<int64_t>() << "\n";

    auto inPlace = press.compressInPlace(keys, values, inputs);
    bool same = at::equal(inPlace.keys, out.keys) && at::equal(inPlace.values, out.values) &&
                at::equal(inPlace.tokens, out.tokens);
    std::cout << "in place: " << (same ? "the same" : "DIFFERENT") << "\n";
    return same ? 0 : 1;
  } catch (const kvpc::torch::Error &error) {
    std::cerr << "kvpc_example: error: " << error.what() << "\n";
    return 1;
  }
}
