//===- Ops.cpp - the operators torch.ops.kvpc.* -----------------------------------------------===//
//
// Plain arguments only (tensors, numbers, text), so that programs which hold them can be exported.
// Errors are std::runtime_error with a code in brackets at the end; Python makes its own classes of
// them. What sizes come out under torch.compile is said in Python (kvpc/ops.py): C++ cannot make
// sizes that depend on data.
//
//===------------------------------------------------------------------------------------------===//
#include "Execute.h"
#include "Registry.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

using namespace kvpc;
using namespace kvpc::torch;

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Arguments of every call, in schema and signature.
#define KVPC_SCHEMA_INPUTS                                                                         \
  "Tensor? queries, Tensor? unrotated_queries, Tensor? hidden, Tensor? output_weight, "            \
  "Tensor? rope, float rope_scaling, bool rope_interleaved, float? scale, int layer, int layers, " \
  "Tensor? lengths, bool pad_right, Tensor? original_positions, Tensor? seen, Tensor[] weights"
#define KVPC_INPUTS                                                                                \
  const OptionalTensor &queries, const OptionalTensor &unrotatedQueries,                           \
      const OptionalTensor &hidden, const OptionalTensor &outputWeight,                            \
      const OptionalTensor &rope, double ropeScaling, bool ropeInterleaved,                        \
      std::optional<double> scale, int64_t layer, int64_t layers, const OptionalTensor &lengths,   \
      bool padRight, const OptionalTensor &originalPositions, const OptionalTensor &seen,          \
      at::TensorList weights
#define KVPC_REQUEST                                                                               \
  Request {                                                                                        \
    keys, values, queries, unrotatedQueries, hidden, outputWeight, rope, ropeScaling,              \
        ropeInterleaved, scale, layer, layers, lengths, padRight, originalPositions, seen,         \
        weights.vec(), state                                                                       \
  }

std::string load(std::string path, std::string digest) {
  return loadModule(path, digest)->digest();
}

std::string header(std::string module) { return moduleOf(module)->header().json; }

std::string target(std::string module) { return std::string(moduleOf(module)->target()); }

std::string machine() {
  auto target = machineTarget();
  if (!target)
    raise(target.error());
  return std::string(*target);
}

std::string inspectFile(std::string path) {
  auto json = inspect(path);
  if (!json)
    raise(json.error());
  return *json;
}

std::string bind(std::string module, std::string press, std::string arguments) {
  auto loaded = moduleOf(module);
  auto found = loaded->press(press);
  if (!found)
    raise(found.error());
  std::string handle = handleOf(*loaded, found->header(), arguments);
  boundOf(handle);
  return handle;
}

std::vector<int64_t> planOp(const at::Tensor &keys, const at::Tensor &values, KVPC_INPUTS,
                            const OptionalTensor &state, bool scores, std::string press) {
  Sizes sizes = plan(*boundOf(press), KVPC_REQUEST, scores);
  return {sizes.kept, sizes.keptChannels, sizes.workspaceBytes, sizes.stateBytes};
}

std::vector<int64_t> sizesOp(std::string press, at::ScalarType dtype, at::IntArrayRef keys,
                             at::IntArrayRef values, at::IntArrayRef queries,
                             at::IntArrayRef unrotatedQueries, at::IntArrayRef hidden,
                             at::IntArrayRef outputWeight, int64_t ropeWidth, int64_t layer,
                             int64_t layers) {
  Sizes sizes = planShapes(*boundOf(press), {dtype, keys, values, queries, unrotatedQueries, hidden,
                                             outputWeight, ropeWidth, layer, layers});
  return {sizes.kept, sizes.keptChannels, sizes.workspaceBytes, sizes.stateBytes};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
compressOp(const at::Tensor &keys, const at::Tensor &values, KVPC_INPUTS,
           const OptionalTensor &state, std::string press) {
  Output out = compress(*boundOf(press), KVPC_REQUEST);
  // An operator may not return what it was given; who calls it has it.
  for (auto [made, given] : {std::pair(&out.keys, &keys), std::pair(&out.values, &values)})
    if (made->is_alias_of(*given))
      *made = given->new_empty({0});
  return {out.keys, out.values, out.tokens, out.channels, out.lengths};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor>
compressInPlaceOp(const at::Tensor &keys, const at::Tensor &values, KVPC_INPUTS,
                  const OptionalTensor &state, std::string press) {
  Output out = compressInPlace(*boundOf(press), KVPC_REQUEST);
  return {out.tokens, out.channels, out.lengths};
}

void checkWritableOp(const at::Tensor &keys, const at::Tensor &values) {
  checkWritable(keys, values);
}

std::tuple<at::Tensor, at::Tensor> scoresOp(const at::Tensor &keys, const at::Tensor &values,
                                            KVPC_INPUTS, std::string press) {
  OptionalTensor state;
  Scores out = scores(*boundOf(press), KVPC_REQUEST);
  return {out.values, out.isProtected};
}

std::tuple<at::Tensor, at::Tensor> selectOp(const at::Tensor &scores,
                                            const OptionalTensor &isProtected,
                                            std::optional<double> drop, std::optional<int64_t> keep,
                                            const OptionalTensor &lengths, bool padRight) {
  return select(scores, isProtected, drop, keep, lengths, padRight);
}

at::Tensor attendOp(const at::Tensor &queries, const at::Tensor &prefixKeys,
                    const at::Tensor &prefixValues, const OptionalTensor &offsets,
                    const OptionalTensor &channels, const OptionalTensor &rows,
                    const at::Tensor &keys, const at::Tensor &values, const OptionalTensor &mask,
                    double scale) {
  return attend(queries, {prefixKeys, prefixValues, offsets, channels, rows}, keys, values, mask,
                scale);
}

std::string version() { return KVPC_VERSION; }

void define(::torch::Library &m) {
  m.def("version() -> str", version);
  m.def("load(str path, str digest) -> str", load);
  m.def("header(str module) -> str", header);
  m.def("target(str module) -> str", target);
  m.def("machine() -> str", machine);
  m.def("inspect(str path) -> str", inspectFile);
  m.def("bind(str module, str press, str arguments) -> str", bind);
  m.def("sizes(str press, ScalarType dtype, int[] keys, int[] values, int[] queries, "
        "int[] unrotated_queries, int[] hidden, int[] output_weight, int rope_width, int layer, "
        "int layers) -> int[]",
        sizesOp);
  m.def("release_workspace() -> ()", releaseWorkspace);
  m.def("plan(Tensor keys, Tensor values, " KVPC_SCHEMA_INPUTS
        ", Tensor? state, bool scores, str press) -> int[]");
  m.def("compress(Tensor keys, Tensor values, " KVPC_SCHEMA_INPUTS ", Tensor(a!)? state, str press)"
        " -> (Tensor keys, Tensor values, Tensor tokens, Tensor channels, Tensor lengths)");
  m.def("compress_(Tensor(a!) keys, Tensor(b!) values, " KVPC_SCHEMA_INPUTS
        ", Tensor(c!)? state, str press) -> (Tensor tokens, Tensor channels, Tensor lengths)");
  m.def("check_writable(Tensor keys, Tensor values) -> ()");
  m.def("scores(Tensor keys, Tensor values, " KVPC_SCHEMA_INPUTS
        ", str press) -> (Tensor scores, Tensor protected)");
  m.def("select(Tensor scores, Tensor? protected, float? drop, int? keep, Tensor? lengths, "
        "bool pad_right) -> (Tensor indices, Tensor counts)");
  m.def("attend(Tensor queries, Tensor prefix_keys, Tensor prefix_values, Tensor? offsets, "
        "Tensor? channels, Tensor? rows, Tensor keys, Tensor values, Tensor? mask, float scale)"
        " -> Tensor");
}

/// For every device: where there is no code for it, we say so ourselves.
void implement(::torch::Library &m) {
  m.impl("plan", planOp);
  m.impl("compress", compressOp);
  m.impl("compress_", compressInPlaceOp);
  m.impl("check_writable", checkWritableOp);
  m.impl("scores", scoresOp);
  m.impl("select", selectOp);
  m.impl("attend", attendOp);
}

/// A second copy of this library in the process, from another folder or linked into a program, must
/// not define the operators again: that would end the process. The first copy serves both.
[[maybe_unused]] const bool registered = [] {
  if (c10::Dispatcher::singleton().findSchema({"kvpc::compress", ""}))
    return false;
  static ::torch::Library definitions(::torch::Library::DEF, "kvpc", std::nullopt, __FILE__,
                                      __LINE__);
  define(definitions);
  static ::torch::Library kernels(::torch::Library::IMPL, "kvpc",
                                  c10::DispatchKey::CompositeExplicitAutograd, __FILE__, __LINE__);
  implement(kernels);
  return true;
}();

} // namespace
