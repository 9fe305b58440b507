//===- torch.h - presses on at::Tensor, for C++ programs without Python -----------------------===//
//
//   auto press = kvpc::torch::Press::load("snapkv.kvm", "", {{"drop", kvpc::Value::ofFloat(0.5)}});
//   kvpc::torch::Inputs inputs;
//   inputs.queries = queries;                       // [batch, query head, query, channel]
//   auto out = press.compress(keys, values, inputs);  // keys: [batch, head, token, channel]
//
// The same calls are registered as operators of the namespace `kvpc` (torch.ops.kvpc.compress, ...)
// when the library is loaded. All errors are kvpc::torch::Error; a call that fails has changed
// nothing. A Press may be used by several threads at once.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_TORCH_H
#define KVPC_TORCH_H

#include "kvpc/Module.h"

#include <ATen/core/Tensor.h>
#include <memory>
#include <optional>
#include <stdexcept>

#define KVPC_TORCH_API __attribute__((visibility("default")))

namespace kvpc::torch {

class KVPC_TORCH_API Error : public std::runtime_error {
public:
  explicit Error(const kvpc::Error &error)
      : std::runtime_error(error.text()), errorCode(error.code) {}
  ErrorCode code() const { return errorCode; }

private:
  ErrorCode errorCode;
};

struct Rope {
  at::Tensor inverseFrequencies; // [width / 2]
  double attentionScaling = 1;
  bool interleaved = false; // pairs are neighbours instead of halves
};

/// What the layers of one forward pass share, where a press reuses a choice. Use one for each
/// forward pass (or `reset` it), and give it to the calls of all layers, in order.
class KVPC_TORCH_API State {
public:
  void reset() { buffer.reset(); }
  /// The memory, made anew where there is too little; a new one is empty.
  at::Tensor &sized(int64_t bytes);
  std::optional<at::Tensor> buffer;
};

struct Inputs {
  std::optional<at::Tensor> queries;          // [batch, query head, query, channel], each row's
  std::optional<at::Tensor> unrotatedQueries; // ... ending at its own last real token
  std::optional<at::Tensor> hidden;           // [batch, query, feature], likewise
  std::optional<at::Tensor> outputWeight;     // [feature, query head * channel]
  std::optional<Rope> rope;
  std::optional<double> scale;                 // of logits; 1 / sqrt(channels)
  int64_t layer = 0, layers = 1;               // among the attention layers
  std::optional<at::Tensor> lengths;           // int64 [batch], real tokens of each row
  bool padRight = false;                       // padding stands after the real tokens
  std::optional<at::Tensor> originalPositions; // int64 [batch, head, token] or [batch, token]
  std::optional<at::Tensor> seen;              // int64 [batch], tokens ever cached
  State *state = nullptr;
};

struct Output {
  at::Tensor keys, values; // [batch, head, kept, channel]
  at::Tensor tokens;   // int64 [batch, head, kept], indices into the given keys, -1 past a count
  at::Tensor channels; // int64 [batch, head, kept channels]; undefined if all are kept
  at::Tensor lengths;  // int64 [batch], or [batch, head] where heads keep different counts
};

struct Scores {
  at::Tensor values;      // f32, batch first, then the score's own axes; NaN at padding
  at::Tensor isProtected; // bool, the same shape
};

class KVPC_TORCH_API Press {
public:
  /// `weights`: the press's tensor parameters by name, whole: with their `layer` axis.
  static Press load(const std::string &path, const std::string &name = "",
                    const kvpc::Press::Arguments &arguments = {},
                    const std::vector<std::pair<std::string, at::Tensor>> &weights = {},
                    const std::string &digest = "");

  const PressHeader &header() const;
  /// How operators name it: torch.ops.kvpc.compress(..., press=handle).
  const std::string &handle() const { return name; }

  /// Keys or values that the press leaves whole are the given ones, not a copy, where no lengths
  /// are given.
  Output compress(const at::Tensor &keys, const at::Tensor &values,
                  const Inputs &inputs = {}) const;
  /// Compacts `keys` and `values` themselves; the result's are views of their beginning.
  Output compressInPlace(at::Tensor &keys, at::Tensor &values, const Inputs &inputs = {}) const;
  /// Of the first stage.
  Scores scores(const at::Tensor &keys, const at::Tensor &values, const Inputs &inputs = {}) const;

private:
  std::vector<at::Tensor> weightsAt(int64_t layer, int64_t layers) const;

  std::string name;
  std::shared_ptr<const BoundPress> bound;
  std::vector<at::Tensor> weights; // f32, contiguous, `layer` first, in the header's order
};

/// What a press left of a prompt, for `attend`.
struct KVPC_TORCH_API Prefix {
  at::Tensor keys,
      values; // [row, head, entry, channel], or [entry, channel] of all one after other
  std::optional<at::Tensor> offsets;  // int64 [row * head + 1]: where each one's entries begin
  std::optional<at::Tensor> channels; // int64 [row, head, channel of keys]: which these are
  std::optional<at::Tensor> rows; // int64 [batch]: whose prefix each batch row reads; none: equal
                                  // shares, in order
  /// Takes no room for entries that a head does not have.
  static Prefix of(const Output &output);
};

/// One softmax over what a prompt left and the whole tokens that came later, on the CPU, in f32,
/// bf16 or f16 with sums in f32. Nothing of it depends on the number of threads.
///   queries       [batch, query head, query, channel]
///   keys, values  [batch, head, token, channel], the tail; ends with the tokens of these queries
///   mask          of the tail: bool [batch or 1, 1, query, token], true where seen; none: causal
/// Returns [batch, query, query head, channel].
KVPC_TORCH_API at::Tensor attend(const at::Tensor &queries, const Prefix &prefix,
                                 const at::Tensor &keys, const at::Tensor &values,
                                 const std::optional<at::Tensor> &mask, double scale);

/// Frees the calling thread's workspace, which is otherwise kept for its next call.
KVPC_TORCH_API void releaseWorkspace();

} // namespace kvpc::torch

#endif
