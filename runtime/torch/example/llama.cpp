// A small Llama in LibTorch, without Python, whose cache a compiled press makes smaller.
//
//   model.save_pretrained("model")                      # in Python, once; f32
//   kvpc compile snapkv -o snapkv.kvm
//   kvpc_llama model snapkv.kvm 64 1 5 17 23 ...        # 64 more tokens after these
//
// Prefill is ordinary attention. At its end each layer gives its keys and values to the press, and
// goes on with a compressed prefix and a tail of whole tokens; kvpc::torch::attend reads both.
// Prints each new token with its logit, then what the cache takes.
#include "kvpc/torch.h"

#include <ATen/ATen.h>
#include <cmath>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

namespace {

using Json = nlohmann::json;
using Tensors = std::map<std::string, at::Tensor>;

/// The f32 tensors of a safetensors file: eight bytes of size, a JSON header, the data.
Tensors readTensors(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  uint64_t size = 0;
  if (!file.read(reinterpret_cast<char *>(&size), sizeof(size)) || size > (1U << 30))
    throw std::runtime_error("cannot read " + path);
  std::string text(size, 0);
  file.read(text.data(), int64_t(size));
  const Json header = Json::parse(text);
  Tensors out;
  for (auto &[name, entry] : header.items()) {
    if (name == "__metadata__")
      continue;
    if (entry.at("dtype") != "F32")
      throw std::runtime_error(name + " is not f32: save the model in f32");
    at::Tensor tensor = at::empty(entry.at("shape").get<std::vector<int64_t>>(), at::kFloat);
    file.seekg(int64_t(8 + size + entry.at("data_offsets").at(0).get<uint64_t>()));
    if (!file.read(static_cast<char *>(tensor.data_ptr()), int64_t(tensor.nbytes())))
      throw std::runtime_error(path + " is truncated");
    out[name] = tensor;
  }
  return out;
}

class Llama {
public:
  Llama(const std::string &folder, kvpc::torch::Press press)
      : weights(readTensors(folder + "/model.safetensors")), press(std::move(press)) {
    std::ifstream file(folder + "/config.json");
    Json config = Json::parse(file);
    heads = config.at("num_attention_heads");
    keyHeads = config.at("num_key_value_heads");
    int64_t hidden = config.at("hidden_size");
    channels = config.value("head_dim", hidden / heads);
    epsilon = config.at("rms_norm_eps");
    layers.resize(config.at("num_hidden_layers").get<size_t>());
    Json rope = config.value("rope_parameters", config); // where older files have it
    if (rope.value("rope_type", "default") != "default")
      throw std::runtime_error("rotary embeddings of the default kind only");
    double theta = rope.at("rope_theta");
    frequencies = at::pow(theta, at::arange(0, channels, 2, at::kFloat) / -double(channels));
    if (!weights.contains("lm_head.weight"))
      weights["lm_head.weight"] = weights.at("model.embed_tokens.weight");
  }

  /// Logits after the last of `ids`; the first call is the prompt.
  at::Tensor forward(const at::Tensor &ids) {
    bool prompt = length == 0;
    kvpc::torch::State state; // what layers share, where a press reuses a choice
    at::Tensor angles =
        at::outer(at::arange(length, length + ids.size(1), at::kFloat), frequencies).repeat({1, 2});
    cosine = angles.cos(), sine = angles.sin();
    at::Tensor x = at::embedding(weights.at("model.embed_tokens.weight"), ids);
    for (size_t i = 0; i < layers.size(); ++i) {
      std::string name = "model.layers." + std::to_string(i) + ".";
      at::Tensor normed = norm(x, name + "input_layernorm");
      x = x + linear(attend(i, normed, prompt, state), name + "self_attn.o_proj");
      normed = norm(x, name + "post_attention_layernorm");
      at::Tensor gate = at::silu(linear(normed, name + "mlp.gate_proj"));
      x = x + linear(gate * linear(normed, name + "mlp.up_proj"), name + "mlp.down_proj");
    }
    length += ids.size(1);
    return linear(norm(x.narrow(1, x.size(1) - 1, 1), "model.norm"), "lm_head").flatten();
  }

  /// Of prefix and tail.
  int64_t cacheBytes() const {
    size_t bytes = 0;
    for (const Layer &layer : layers)
      for (const at::Tensor &tensor :
           {layer.prefix.keys, layer.prefix.values, layer.keys, layer.values})
        bytes += tensor.nbytes();
    return int64_t(bytes);
  }

private:
  struct Layer {
    kvpc::torch::Prefix prefix;
    at::Tensor keys, values; // the tail
  };

  at::Tensor linear(const at::Tensor &x, const std::string &name) {
    return at::linear(x, weights.at(name + ".weight"));
  }
  at::Tensor norm(const at::Tensor &x, const std::string &name) {
    return x * at::rsqrt(x.square().mean(-1, true) + epsilon) * weights.at(name + ".weight");
  }
  at::Tensor rotate(const at::Tensor &x) const {
    std::vector<at::Tensor> half = x.chunk(2, -1);
    return x * cosine + at::cat({-half[1], half[0]}, -1) * sine;
  }
  at::Tensor split(const at::Tensor &x, const std::string &name) {
    return linear(x, name).unflatten(2, {-1, channels}).transpose(1, 2);
  }

  at::Tensor attend(size_t i, const at::Tensor &x, bool prompt, kvpc::torch::State &state) {
    std::string name = "model.layers." + std::to_string(i) + ".self_attn.";
    Layer &layer = layers[i];
    at::Tensor plain = split(x, name + "q_proj"), queries = rotate(plain);
    at::Tensor keys = rotate(split(x, name + "k_proj")), values = split(x, name + "v_proj");
    double scale = 1 / std::sqrt(double(channels));
    if (!prompt) {
      layer.keys = at::cat({layer.keys, keys}, 2);
      layer.values = at::cat({layer.values, values}, 2);
      auto out = kvpc::torch::attend(queries, layer.prefix, layer.keys, layer.values, {}, scale);
      return out.flatten(2);
    }
    at::Tensor out = at::scaled_dot_product_attention(queries, keys, values, {}, 0, true, scale,
                                                      /*enable_gqa=*/true);
    // Exactly what the press asks for.
    const kvpc::Inputs &wanted = press.header().inputs;
    kvpc::torch::Inputs inputs;
    inputs.layer = int64_t(i), inputs.layers = int64_t(layers.size());
    inputs.scale = scale, inputs.state = &state;
    if (wanted.queries)
      inputs.queries = queries;
    if (wanted.unrotatedQueries)
      inputs.unrotatedQueries = plain;
    if (wanted.hidden)
      inputs.hidden = x;
    if (wanted.outputWeight)
      inputs.outputWeight = weights.at(name + "o_proj.weight");
    if (wanted.rope)
      inputs.rope = kvpc::torch::Rope{frequencies};
    layer.prefix = kvpc::torch::Prefix::of(press.compress(keys, values, inputs));
    layer.keys = keys.new_empty({1, keyHeads, 0, channels});
    layer.values = layer.keys.clone();
    return out.transpose(1, 2).flatten(2);
  }

  Tensors weights;
  kvpc::torch::Press press;
  int64_t heads, keyHeads, channels, length = 0;
  double epsilon;
  std::vector<Layer> layers;
  at::Tensor frequencies, cosine, sine;
};

} // namespace

int main(int argc, char **argv) {
  if (argc < 5) {
    std::cerr << "usage: kvpc_llama MODEL_FOLDER MODULE.kvm COUNT TOKEN...\n";
    return 2;
  }
  try {
    Llama model(argv[1], kvpc::torch::Press::load(argv[2]));
    std::vector<int64_t> prompt;
    for (int i = 4; i < argc; ++i)
      prompt.push_back(std::stoll(argv[i]));
    at::Tensor next = at::tensor(prompt, at::kLong).unsqueeze(0);
    for (int64_t left = std::stoll(argv[3]); left > 0; --left) {
      at::Tensor logits = model.forward(next);
      next = logits.argmax().reshape({1, 1});
      std::cout << next.item<int64_t>() << " " << logits.max().item<float>() << "\n";
    }
    std::cout << "cache " << model.cacheBytes() << " bytes\n";
    return 0;
  } catch (const std::exception &error) {
    std::cerr << "kvpc_llama: error: " << error.what() << "\n";
    return 1;
  }
}
