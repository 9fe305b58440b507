//===- Module.h - loading and calling compiled presses ----------------------------------------===//
//
//   auto module = kvpc::Module::load("snapkv.kvm");          // runs nothing yet
//   auto press = (*module)->press();                         // the only one
//   auto bound = press->bind({{"budget", kvpc::Value::drop(0.5)}});
//   kvpc::Call call;  call.keys = ...;  call.values = ...;   // and what press->header().inputs
//   lists bound->plan(call);                                       // checks everything, computes
//   sizes
//   ... allocate outputs, workspace, state ...
//   bound->run(call);
//
// A BoundPress may be called by several threads at once, each with its own Call.
//
// Loading a module is loading machine code: load only files you would run. `Module::load` accepts
// explicit paths only, and an expected SHA-256 of the file.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_MODULE_H
#define KVPC_MODULE_H

#include "kvpc/Header.h"

#include <memory>

namespace kvpc {
inline namespace runtime {

/// Elements as the runtime meets them; a module takes the first three.
enum class Element { F32, BF16, F16, I64, F64, Other };
std::string_view elementName(Element element);

/// Someone else's memory. Strides count elements.
struct TensorRef {
  static constexpr int maxRank = 5;
  void *data = nullptr;
  Element element = Element::Other;
  int rank = -1; // -1: not given
  int64_t size[maxRank] = {};
  int64_t stride[maxRank] = {};

  bool given() const { return rank >= 0; }
  /// "[2, 8, 64]"
  std::string shape() const;
};

struct Sizes {
  int64_t kept = 0; // token axis of the outputs (an upper bound where counts depend on data)
  int64_t keptChannels = 0;   // channels of the output keys
  int64_t workspaceBytes = 0; // 64-byte aligned
  int64_t stateBytes = 0;     // the buffer that layers share, its own header included; 0: none
};

/// One call of a press. Inputs may be of any strides; channels of keys, values, queries and hidden
/// must be contiguous.
struct Call {
  // Before plan.
  TensorRef keys, values;              // [batch, head, token, channel]
  TensorRef queries, unrotatedQueries; // [batch, query head, query, channel]
  TensorRef hidden;                    // [batch, query, feature]
  TensorRef outputWeight;      // [feature, query head * channel] or [head, group, channel, feature]
  TensorRef originalPositions; // int64 [batch, head, token] or [batch, token]
  std::vector<TensorRef> weights;      // f32, contiguous, at this layer if layered, in header order
  const int64_t *lengths = nullptr;    // [batch] real tokens; null: all
  const int64_t *seen = nullptr;       // [batch] tokens ever cached; null: the lengths
  bool padRight = false;               // padding stands after the real tokens
  std::vector<double> ropeFrequencies; // inverse frequencies
  double ropeScaling = 1;              // of attention, as the model multiplies cos and sin
  bool ropeInterleaved = false;        // pairs are neighbours instead of halves
  std::optional<double> scale;         // of logits; 1 / sqrt(channels)
  int64_t layer = 0, layers = 1;       // among the attention layers
  int64_t threads = 1;
  bool scores = false;   // the first stage's scores are wanted, not a selection
  void *state = nullptr; // what an earlier layer of this forward pass left
  int64_t stateSize = 0;

  // Set by plan.
  Sizes sizes;
  std::vector<int64_t> scoreShape; // of outScores and outProtected, batch first

  // Before run.
  TensorRef outKeys, outValues; // [batch, head, kept, channel]; may be keys and values
  TensorRef outTokens;          // int64 [batch, head, kept]
  TensorRef outChannels;        // int64 [batch, head, kept channels]; null: not wanted
  TensorRef outLengths;         // int64 [batch, head]
  float *outScores = nullptr;   // dense
  uint8_t *outProtected = nullptr;
  void *workspace = nullptr;
  kvpc_parallel_for parallelFor = nullptr; // null: the runtime's own threads
  void *parallelContext = nullptr;

private:
  friend class BoundPress;
  kvpc_call raw = {};
  std::vector<int64_t> start, length, seenTokens;
  std::vector<kvpc_scalar> scalars;
  std::vector<kvpc_tensor> rawWeights;
  std::vector<int64_t> weightSizes;
  kvpc_entry runEntry = nullptr;
  char message[512] = {};
};

class Module;

/// A press with all arguments but the weights.
class BoundPress {
public:
  const PressHeader &header() const { return *press; }
  const std::shared_ptr<const Module> &module() const { return owner; }

  /// Whether this layer takes the choice of an earlier one.
  bool follows(int64_t layer) const { return press->reuse > 1 && layer % press->reuse != 0; }

  /// Checks the call against the press and computes its sizes. Reads no tensor's elements.
  Failure plan(Call &call) const;
  /// After plan of the same call. Allocates nothing.
  Failure run(Call &call) const;

  /// Value of runtime parameter `index` (header().runtime) at a layer.
  const Value &argument(size_t index, int64_t layer) const;

private:
  friend class Press;
  struct Entries {
    kvpc_entry plan, run;
  };
  Failure checkInputs(const Call &call) const;
  Failure bindQueries(Call &call) const;
  Failure bindWeights(Call &call) const;
  Failure bindRows(Call &call) const;
  Failure bindScalars(Call &call) const;
  Failure checkState(const Call &call) const;
  Result<Entries> choose(const Call &call) const;

  std::shared_ptr<const Module> owner;
  const PressHeader *press = nullptr;
  std::vector<Value> arguments;
};

/// A press of a loaded module.
class Press {
public:
  using Arguments = std::vector<std::pair<std::string, Value>>;

  const PressHeader &header() const { return *press; }
  /// Checks names, types, ranges. `drop` and `keep` (or `compression_ratio`, the same as `drop`) as
  /// names bind the only budget. Parameters that are weights are not bound here but given in the
  /// call.
  Result<BoundPress> bind(const Arguments &arguments) const;

private:
  friend class Module;
  std::shared_ptr<const Module> owner;
  const PressHeader *press = nullptr;
};

/// Values of header.runtime in its order, checked and with defaults, as `Press::bind` takes them.
Result<std::vector<Value>> bindArguments(const PressHeader &press, const Press::Arguments &given);

class Module : public std::enable_shared_from_this<Module> {
public:
  /// `digest`: the file's expected SHA-256 in hexadecimal; empty: not checked.
  static Result<std::shared_ptr<const Module>> load(const std::string &path,
                                                    std::string_view digest = {});
  ~Module();
  Module(const Module &) = delete;
  Module &operator=(const Module &) = delete;

  const Header &header() const { return contents; }
  const std::string &path() const { return file; }
  /// SHA-256 of the file, hexadecimal.
  const std::string &digest() const { return fileDigest; }
  /// Name of the best target that is used.
  std::string_view target() const;

  /// No name: the only one.
  Result<Press> press(std::string_view name = {}) const;

private:
  friend class BoundPress;
  struct Entry {
    const Variant *variant;
    int level;
    kvpc_entry plan, run;
  };
  Module() = default;
  Failure checkTargets(int level) const;
  Failure open(Bytes bytes, int level);

  Header contents;
  std::string file, fileDigest;
  int level = -1;
  void *handle = nullptr;
  std::vector<std::vector<Entry>> entries; // per press, those this machine runs
};

/// The instruction set whose code modules run here: what the machine is fastest with, or the one
/// that the environment variable KVPC_TARGET names. Empty where the machine runs none of them; an
/// error if KVPC_TARGET names none, or one that this machine lacks.
Result<std::string_view> machineTarget();

/// Entries that a budget keeps of n: `keep` as it is, drop(r) int(n * (1 - r)); then clamped
/// to 1..n.
int64_t keptOf(const Value &budget, int64_t n);

} // namespace runtime
} // namespace kvpc

#endif
