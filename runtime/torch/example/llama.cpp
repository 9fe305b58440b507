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
#include <set>

namespace {

using Json = nlohmann::json;
using Tensors = std::map<std::string, at::Tensor>;

/// The f32 tensors of a safetensors file: eight bytes of size, a JSON header, the data.
Tensors readTensors(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  uint64_t size = 0;
  if (!file.read(reinterpret_cast<char *>(&size), sizeof(size)) || size > (1U << 30))
    throw std::runtime_error("cannot read " + path + "; need the model's tensors in this one file");
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
    try {
      configure(Json::parse(file));
    } catch (const Json::exception &error) {
      throw std::runtime_error(folder + "/config.json: " + error.what());
    }
    if (!weights.contains("lm_head.weight") && weights.contains("model.embed_tokens.weight"))
      weights["lm_head.weight"] = weights.at("model.embed_tokens.weight");
    checkTensors();
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

  /// Refuses what this program would read without a word and compute wrong.
  void configure(const Json &config) {
    // transformers writes null for what is not set
    auto value = [](const Json &from, const char *name, auto other) -> decltype(other) {
      auto found = from.find(name);
      if (found == from.end() || found->is_null())
        return other;
      return found->get<decltype(other)>();
    };
    std::string kind = value(config, "model_type", std::string("none"));
    if (kind != "llama" && kind != "mistral")
      throw std::runtime_error("the model is of type `" + kind + "`; need `llama` or `mistral`");
    std::string activation = value(config, "hidden_act", std::string("silu"));
    if (activation != "silu" && activation != "swish")
      throw std::runtime_error("`hidden_act` is `" + activation + "`; need `silu`");
    if (kind == "mistral" && config.contains("sliding_window") &&
        !config.at("sliding_window").is_null())
      throw std::runtime_error("`sliding_window` is set; need a model without one");
    heads = config.at("num_attention_heads");
    keyHeads = value(config, "num_key_value_heads", heads);
    channels = value(config, "head_dim", config.at("hidden_size").get<int64_t>() / heads);
    epsilon = value(config, "rms_norm_eps", 1e-6);
    layers.resize(config.at("num_hidden_layers").get<size_t>());
    // Older files have the base beside `rope_scaling`, and call the kind `type`.
    Json rope = value(config, "rope_parameters", value(config, "rope_scaling", Json::object()));
    std::string type = value(rope, "rope_type", value(rope, "type", std::string("default")));
    if (type != "default")
      throw std::runtime_error("the rotary embedding is of type `" + type + "`; need `default`");
    for (const Json &one : {rope, config})
      if (value(one, "partial_rotary_factor", 1.0) != 1)
        throw std::runtime_error("the rotary embedding is partial; need one of all channels");
    double theta = value(rope, "rope_theta", value(config, "rope_theta", 10000.0));
    frequencies = at::pow(theta, at::arange(0, channels, 2, at::kFloat) / -double(channels));
  }

  /// All that are read are there, and all that are there are read: biases and norms are not.
  void checkTensors() const {
    std::set<std::string> read = {"model.embed_tokens.weight", "model.norm.weight",
                                  "lm_head.weight"};
    for (size_t i = 0; i < layers.size(); ++i)
      for (const char *name : {"input_layernorm", "post_attention_layernorm", "self_attn.q_proj",
                               "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
        read.insert("model.layers." + std::to_string(i) + "." + name + ".weight");
    for (const std::string &name : read)
      if (!weights.contains(name))
        throw std::runtime_error("the model has no tensor `" + name + "`; need a plain Llama");
    for (const auto &[name, tensor] : weights)
      if (!read.contains(name) && !name.ends_with("rotary_emb.inv_freq"))
        throw std::runtime_error("the model has the tensor `" + name +
                                 "`, which a plain Llama has not");
  }

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
