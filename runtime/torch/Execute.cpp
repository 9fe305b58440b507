//===- Execute.cpp - one call of a press on tensors -------------------------------------------===//
#include "Execute.h"
#include "Parallel.h"
#include "Registry.h"

#include "kvpc/Select.h"

#include <ATen/Functions.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <cstdlib>
#include <sys/mman.h>

using namespace kvpc;
using namespace kvpc::torch;

namespace {

constexpr int64_t pageBytes = 4096, largePageBytes = 2 << 20;

/// Asks for large pages in memory that is about to be written. With small ones the faults of a
/// large fresh output take longer than what is written there. A hint: nothing depends on it.
void useLargePages(void *memory, int64_t bytes) {
  auto from = (reinterpret_cast<uintptr_t>(memory) + largePageBytes - 1) / largePageBytes;
  auto to = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / largePageBytes;
  if (from < to)
    (void)madvise(reinterpret_cast<void *>(from * largePageBytes), (to - from) * largePageBytes,
                  MADV_HUGEPAGE);
}

at::Tensor emptyOutput(at::IntArrayRef shape, const at::Tensor &like) {
  at::Tensor out = at::empty(shape, like.options().requires_grad(false));
  useLargePages(out.mutable_data_ptr(), int64_t(out.nbytes()));
  return out;
}

/// Memory of a thread, kept between calls. Not a tensor: it may outlive Torch's allocator.
class Workspace {
public:
  ~Workspace() { std::free(memory); }

  void *sized(int64_t bytes) {
    if (bytes <= size)
      return memory;
    release();
    int64_t page = bytes < largePageBytes ? pageBytes : largePageBytes;
    int64_t whole = (bytes + page - 1) / page * page;
    memory = std::aligned_alloc(size_t(page), size_t(whole));
    if (!memory)
      raise({ErrorCode::Memory, "cannot allocate a workspace of " + std::to_string(bytes) +
                                    " bytes; compile the press with a smaller `--workspace`"});
    useLargePages(memory, whole);
    size = whole;
    return memory;
  }
  void release() {
    std::free(memory);
    memory = nullptr;
    size = 0;
  }

private:
  void *memory = nullptr;
  int64_t size = 0;
};

thread_local Workspace workspace;

Element elementOf(at::ScalarType type) {
  switch (type) {
  case at::kFloat:
    return Element::F32;
  case at::kBFloat16:
    return Element::BF16;
  case at::kHalf:
    return Element::F16;
  case at::kLong:
    return Element::I64;
  case at::kDouble:
    return Element::F64;
  default:
    return Element::Other;
  }
}

TensorRef refOf(const char *name, const at::Tensor &tensor) {
  if (!tensor.device().is_cpu())
    raise({ErrorCode::Device, std::string("`") + name + "` is on " + tensor.device().str() +
                                  "; this runtime runs modules on cpu; move it there"});
  if (tensor.layout() != at::kStrided)
    raise({ErrorCode::Stride, std::string("`") + name + "` is not a dense tensor; make it one"});
  if (tensor.is_neg() || tensor.is_conj())
    raise({ErrorCode::Stride,
           std::string("`") + name + "` is a view that changes values as it is read; make a copy"});
  if (tensor.dim() > TensorRef::maxRank)
    raise({ErrorCode::Shape, std::string("`") + name + "` has " + std::to_string(tensor.dim()) +
                                 " axes; need at most " + std::to_string(TensorRef::maxRank)});
  TensorRef out;
  out.data = const_cast<void *>(tensor.const_data_ptr()); // inputs are only read
  out.element = elementOf(tensor.scalar_type());
  out.rank = int(tensor.dim());
  for (int axis = 0; axis < out.rank; ++axis) {
    out.size[axis] = tensor.size(axis);
    out.stride[axis] = tensor.stride(axis);
  }
  return out;
}

TensorRef refOf(const char *name, const std::optional<at::Tensor> &tensor) {
  return tensor && tensor->defined() ? refOf(name, *tensor) : TensorRef();
}

/// int64 [batch] on the host, contiguous; holds its own memory.
at::Tensor rowsOf(const char *name, const std::optional<at::Tensor> &tensor, int64_t batch) {
  if (!tensor || !tensor->defined())
    return {};
  if (tensor->dim() != 1 || tensor->size(0) != batch)
    raise({ErrorCode::Shape, std::string("`") + name + "` has shape " +
                                 refOf(name, tensor->cpu()).shape() + "; need [" +
                                 std::to_string(batch) + "], one for each batch row"});
  if (!at::isIntegralType(tensor->scalar_type(), false))
    raise({ErrorCode::Dtype, std::string("`") + name + "` are no whole numbers; need `int64`"});
  return tensor->to(at::kCPU, at::kLong).contiguous();
}

/// A Call with what it points to.
struct Prepared {
  Call call;
  at::Tensor lengths, seen, temporaryState;

  Prepared(const BoundPress &press, const Request &request, bool scores) {
    call.keys = refOf("keys", request.keys);
    call.values = refOf("values", request.values);
    call.queries = refOf("queries", request.queries);
    call.unrotatedQueries = refOf("unrotated_queries", request.unrotatedQueries);
    call.hidden = refOf("hidden", request.hidden);
    call.outputWeight = refOf("output_weight", request.outputWeight);
    call.originalPositions = refOf("original_positions", request.originalPositions);
    const auto &names = press.header().weights;
    for (size_t n = 0; n < request.weights.size(); ++n)
      call.weights.push_back(
          refOf(n < names.size() ? names[n].name.c_str() : "weights", request.weights[n]));
    int64_t batch = call.keys.rank == 4 ? call.keys.size[0] : 0;
    lengths = rowsOf("lengths", request.lengths, batch);
    seen = rowsOf("seen", request.seen, batch);
    call.lengths = lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr;
    call.seen = seen.defined() ? seen.const_data_ptr<int64_t>() : nullptr;
    call.padRight = request.padRight;
    if (request.rope && request.rope->defined()) {
      if (request.rope->dim() != 1 || !request.rope->is_floating_point())
        raise({ErrorCode::Shape, "the inverse frequencies of `rope` need to be floats along one "
                                 "axis"});
      at::Tensor frequencies = request.rope->to(at::kCPU, at::kDouble).contiguous();
      const double *data = frequencies.const_data_ptr<double>();
      call.ropeFrequencies.assign(data, data + frequencies.numel());
    }
    call.ropeScaling = request.ropeScaling;
    call.ropeInterleaved = request.ropeInterleaved;
    call.scale = request.scale;
    call.layer = request.layer;
    call.layers = request.layers;
    call.threads = at::get_num_threads();
    call.parallelFor = parallelFor;
    call.scores = scores;
    if (request.state && request.state->defined())
      use(*request.state);
    if (auto error = press.plan(call))
      raise(*error);
  }

  void use(const at::Tensor &state) {
    if (state.scalar_type() != at::kByte || !state.device().is_cpu() || !state.is_contiguous())
      raise({ErrorCode::State, "`state` is not the buffer of a state; give what `plan` sized"});
    call.state = state.data_ptr();
    call.stateSize = state.numel();
  }

  void run(const BoundPress &press) {
    // Without a state, or for scores, what layers share goes nowhere.
    if (call.sizes.stateBytes && (!call.state || call.scores)) {
      temporaryState = at::empty({call.sizes.stateBytes}, at::kByte);
      use(temporaryState);
    }
    call.workspace = workspace.sized(call.sizes.workspaceBytes);
    if (auto error = press.run(call))
      raise(*error);
  }
};

struct Indices {
  at::Tensor tokens, channels, lengths;
};

/// Allocates what does not depend on where keys and values go, and points the call to it.
Indices allocate(const BoundPress &press, Call &call) {
  const PressHeader &header = press.header();
  int64_t batch = call.keys.size[0], heads = call.keys.size[1];
  Indices out;
  out.tokens = header.uniform
                   ? at::empty({batch, 1, call.sizes.kept}, at::kLong).expand({batch, heads, -1})
                   : at::empty({batch, heads, call.sizes.kept}, at::kLong);
  out.lengths = at::empty({batch, heads}, at::kLong);
  out.channels =
      at::empty({batch, heads, header.dropsChannels ? call.sizes.keptChannels : 0}, at::kLong);
  call.outTokens = refOf("tokens", out.tokens);
  call.outLengths = refOf("lengths", out.lengths);
  if (header.dropsChannels)
    call.outChannels = refOf("channels", out.channels);
  return out;
}

/// Cuts outputs from an upper bound to the largest count, if counts depend on data. The cut ones
/// are views, as kernels under torch.compile may not choose their strides by data.
void trim(const BoundPress &press, Indices &indices, at::Tensor *keys, at::Tensor *values) {
  const PressHeader &header = press.header();
  if (header.dataCounts && indices.tokens.size(2) > 0) {
    int64_t bound = indices.tokens.size(2);
    int64_t largest = indices.lengths.max().item<int64_t>();
    for (at::Tensor *tensor : {&indices.tokens, keys, values}) {
      if (tensor && largest < bound)
        *tensor = tensor->narrow(2, 0, largest);
    }
  }
  if (!header.ragged)
    indices.lengths = indices.lengths.select(1, 0).contiguous();
}

/// A stride, and how often it may be taken.
struct Steps {
  int64_t stride, low, high;
};

/// Whether some number of each step adds up to `distance`, not all of them zero unless `stay`.
/// Strides that nest, as those of views do, leave two or three candidates for each; where there are
/// too many to try, the answer is yes.
bool reaches(at::ArrayRef<Steps> steps, int64_t distance, bool stay, int &tries) {
  if (--tries < 0)
    return true;
  if (steps.empty())
    return distance == 0 && stay;
  int64_t low = 0, high = 0; // of all smaller strides
  for (const Steps &s : steps.slice(1)) {
    low += s.stride * s.low;
    high += s.stride * s.high;
  }
  const auto &[stride, least, most] = steps.front();
  auto floorDiv = [](int64_t a, int64_t b) { return a / b - (a % b != 0 && a < 0); };
  int64_t first = std::max(least, -floorDiv(high - distance, stride));
  int64_t last = std::min(most, floorDiv(distance - low, stride));
  for (int64_t n = first; n <= last; ++n)
    if (reaches(steps.slice(1), distance - n * stride, stay || n != 0, tries))
      return true;
  return false;
}

/// Adds the bytes of each axis, `forward` or backward, or both; equal strides are one.
void addSteps(std::vector<Steps> &out, const at::Tensor &tensor, bool forward, bool backward) {
  auto add = [&](int64_t stride, int64_t size) {
    if (size < 2)
      return;
    auto it = std::find_if(out.begin(), out.end(), [&](const Steps &s) {
      return s.stride == stride && !(forward && backward);
    });
    if (it == out.end())
      it = out.insert(it, {stride, 0, 0});
    it->low -= backward ? size - 1 : 0;
    it->high += forward ? size - 1 : 0;
  };
  for (int64_t axis = 0; axis < tensor.dim(); ++axis)
    add(tensor.stride(axis) * tensor.element_size(), tensor.size(axis));
  if (forward != backward) // not of one entry with itself
    add(1, tensor.element_size());
}

bool shareMemory(std::vector<Steps> steps, int64_t distance, bool stay) {
  if (std::any_of(steps.begin(), steps.end(), [](const Steps &s) { return s.stride == 0; })) {
    if (!stay)
      return true;
    steps.erase(
        std::remove_if(steps.begin(), steps.end(), [](const Steps &s) { return s.stride == 0; }),
        steps.end());
  }
  std::sort(steps.begin(), steps.end(),
            [](const Steps &a, const Steps &b) { return a.stride > b.stride; });
  int tries = 1 << 16;
  return reaches(steps, distance, stay, tries);
}

} // namespace

void kvpc::torch::releaseWorkspace() { workspace.release(); }

Sizes kvpc::torch::plan(const BoundPress &press, const Request &request, bool scores) {
  return Prepared(press, request, scores).call.sizes;
}

Sizes kvpc::torch::planShapes(const BoundPress &press, const Shapes &shapes) {
  // Of no memory; plan reads none.
  auto ref = [&](at::IntArrayRef shape, Element element) {
    TensorRef out;
    if (shape.empty() || shape.size() > TensorRef::maxRank)
      return out;
    out.element = element;
    out.rank = int(shape.size());
    int64_t count = 1;
    for (int axis = out.rank - 1; axis >= 0; count *= out.size[axis--]) {
      out.size[axis] = shape[size_t(axis)];
      out.stride[axis] = count;
    }
    return out;
  };
  Element element = elementOf(shapes.dtype);
  Call call;
  call.keys = ref(shapes.keys, element);
  call.values = ref(shapes.values, element);
  call.queries = ref(shapes.queries, element);
  call.unrotatedQueries = ref(shapes.unrotatedQueries, element);
  call.hidden = ref(shapes.hidden, element);
  call.outputWeight = ref(shapes.outputWeight, element);
  call.ropeFrequencies.assign(size_t(shapes.ropeWidth / 2), 1);
  const PressHeader &header = press.header();
  int64_t heads = call.keys.rank == 4 ? call.keys.size[1] : 1;
  int64_t groups = call.queries.rank == 4 ? call.queries.size[1] / std::max<int64_t>(heads, 1) : 1;
  for (const Weight &weight : header.weights) {
    std::vector<int64_t> shape;
    for (const std::string &axis : weight.axes)
      shape.push_back(axis == "head"                               ? heads
                      : axis == "group"                            ? groups
                      : axis == "channel" && call.keys.rank == 4   ? call.keys.size[3]
                      : axis == "feature" && call.hidden.rank == 3 ? call.hidden.size[2]
                      : axis == "layer"                            ? shapes.layers
                                                                   : 1);
    TensorRef made = ref(shape, Element::F32);
    made.rank = int(shape.size()); // one without axes is given too
    call.weights.push_back(made);
  }
  // A follower keeps what its leader does; its state is not there, nor what only leaders are given.
  call.layer = shapes.layer;
  if (press.follows(shapes.layer) && call.keys.rank == 4) {
    call.layer -= shapes.layer % header.reuse;
    const int64_t *size = call.keys.size;
    for (auto [input, needed] :
         {std::pair(&call.queries, bool(header.inputs.queries)),
          std::pair(&call.unrotatedQueries, bool(header.inputs.unrotatedQueries))})
      if (needed && !input->given())
        *input = ref({size[0], size[1], size[2], size[3]}, element);
    if (header.inputs.hidden && !call.hidden.given())
      call.hidden = ref({size[0], size[2], 1}, element);
    if (header.inputs.outputWeight && !call.outputWeight.given())
      call.outputWeight = ref({1, size[1] * call.values.size[3]}, element);
    if (header.inputs.rope && call.ropeFrequencies.empty())
      call.ropeFrequencies.assign(size_t(size[3] / 2), 1);
  }
  call.layers = shapes.layers;
  call.threads = at::get_num_threads();
  auto error = press.plan(call);
  if (error)
    raise(*error);
  return call.sizes;
}

Output kvpc::torch::compress(const BoundPress &press, const Request &request) {
  Prepared prepared(press, request, false);
  Call &call = prepared.call;
  const int64_t *shape = call.keys.size;
  // What stays whole stays where it is. Rows with padding move to the front, in memory of their
  // own.
  bool whole = !press.header().dropsTokens && !call.lengths;
  auto outputOf = [&](const at::Tensor &given, int64_t channels, bool untouched) {
    return untouched ? given.detach()
                     : emptyOutput({shape[0], shape[1], call.sizes.kept, channels}, given);
  };
  Output out;
  out.keys =
      outputOf(request.keys, call.sizes.keptChannels, whole && !press.header().dropsChannels);
  out.values = outputOf(request.values, call.values.size[3], whole);
  call.outKeys = refOf("keys", out.keys);
  call.outValues = refOf("values", out.values);
  Indices indices = allocate(press, call);
  prepared.run(press);
  trim(press, indices, &out.keys, &out.values);
  out.tokens = indices.tokens;
  out.channels = indices.channels;
  out.lengths = indices.lengths;
  return out;
}

/// In place, entries must be where nobody else's are.
void kvpc::torch::checkWritable(const at::Tensor &keys, const at::Tensor &values) {
  for (auto [name, tensor] : {std::pair("keys", &keys), std::pair("values", &values)}) {
    if (tensor->layout() != at::kStrided || !tensor->is_cpu() || tensor->numel() == 0 ||
        tensor->is_neg() || tensor->is_conj())
      return; // refused for that, by what reads it
    std::vector<Steps> steps;
    addSteps(steps, *tensor, /*forward=*/true, /*backward=*/true);
    if (shareMemory(std::move(steps), 0, /*stay=*/false))
      raise({ErrorCode::Stride, std::string("several entries of `") + name +
                                    "` share memory; in place they cannot; make a copy"});
    if (tensor->requires_grad() && c10::GradMode::is_enabled())
      raise({ErrorCode::Unsupported,
             std::string("`") + name + "` requires a gradient; in place it has none: detach it"});
  }
  std::vector<Steps> steps;
  addSteps(steps, keys, /*forward=*/true, /*backward=*/false);
  addSteps(steps, values, /*forward=*/false, /*backward=*/true);
  int64_t distance = static_cast<const char *>(values.const_data_ptr()) -
                     static_cast<const char *>(keys.const_data_ptr());
  if (shareMemory(std::move(steps), distance, /*stay=*/true))
    raise({ErrorCode::Stride, "`keys` and `values` share memory; in place they cannot; make a "
                              "copy of one"});
}

Output kvpc::torch::compressInPlace(const BoundPress &press, const Request &request) {
  checkWritable(request.keys, request.values);
  Prepared prepared(press, request, false);
  Call &call = prepared.call;
  call.outKeys = call.keys;
  call.outKeys.size[2] = call.sizes.kept;
  call.outKeys.size[3] = call.sizes.keptChannels;
  call.outValues = call.values;
  call.outValues.size[2] = call.sizes.kept;
  Indices indices = allocate(press, call);
  prepared.run(press);
  trim(press, indices, nullptr, nullptr);
  // Whoever saved these tensors for a backward pass must notice.
  for (const at::Tensor &tensor : {request.keys, request.values})
    if (!tensor.is_inference())
      tensor.unsafeGetTensorImpl()->bump_version();
  Output out;
  out.tokens = indices.tokens;
  out.channels = indices.channels;
  out.lengths = indices.lengths;
  return out;
}

Scores kvpc::torch::scores(const BoundPress &press, const Request &request) {
  Prepared prepared(press, request, true);
  Scores out;
  out.values = at::empty(prepared.call.scoreShape, at::kFloat);
  out.isProtected = at::empty(prepared.call.scoreShape, at::kBool);
  prepared.call.outScores = out.values.data_ptr<float>();
  prepared.call.outProtected = static_cast<uint8_t *>(out.isProtected.data_ptr());
  prepared.run(press);
  return out;
}

std::pair<at::Tensor, at::Tensor>
kvpc::torch::select(const at::Tensor &scores, const std::optional<at::Tensor> &isProtected,
                    std::optional<double> drop, std::optional<int64_t> keep,
                    const std::optional<at::Tensor> &lengths, bool padRight) {
  if (scores.dim() < 1 || scores.dim() > TensorRef::maxRank)
    raise({ErrorCode::Shape,
           "`scores` has " + std::to_string(scores.dim()) + " axes; need 1 to 5, tokens last"});
  (void)refOf("scores", scores);
  if (scores.scalar_type() != at::kFloat)
    raise({ErrorCode::Dtype, "`scores` are not f32; selection is by f32 scores: convert them"});
  if (drop.has_value() == keep.has_value())
    raise({ErrorCode::Parameter, "need one of `drop` and `keep`"});
  at::Tensor dense = scores.contiguous(), isKept;
  SelectCall call;
  call.tokens = call.stride = dense.size(-1);
  call.rows = call.tokens ? dense.numel() / call.tokens : 0;
  call.scores = dense.const_data_ptr<float>();
  call.budget = drop ? Value::drop(*drop) : Value::keep(*keep);
  if (dense.numel() >= 1 << 14) { // below, waking threads takes longer than it saves
    call.threads = at::get_num_threads();
    call.parallelFor = parallelFor;
  }
  if (isProtected && isProtected->defined()) {
    if (isProtected->sizes() != scores.sizes() || isProtected->scalar_type() != at::kBool)
      raise({ErrorCode::Shape, "`protected` needs to be bool of the shape of `scores`"});
    isKept = isProtected->contiguous();
    call.isProtected = static_cast<const uint8_t *>(isKept.const_data_ptr());
  }
  std::vector<int64_t> start, length;
  if (lengths && lengths->defined()) {
    if (scores.dim() < 2)
      raise({ErrorCode::Shape, "`lengths` needs scores with a batch axis"});
    int64_t batch = dense.size(0);
    at::Tensor rows = rowsOf("lengths", lengths, batch);
    for (int64_t row = 0; row < call.rows; ++row) {
      length.push_back(rows.const_data_ptr<int64_t>()[row * batch / call.rows]);
      start.push_back(padRight ? 0 : call.tokens - length.back());
    }
    call.start = start.data();
    call.length = length.data();
  }
  if (auto error = kvpc::select(call))
    raise(*error);
  std::vector<int64_t> shape = dense.sizes().vec();
  shape.back() = call.kept;
  at::Tensor out = at::empty(shape, at::kLong);
  shape.pop_back();
  at::Tensor counts = at::empty(shape, at::kLong);
  call.out = out.data_ptr<int64_t>();
  call.counts = counts.data_ptr<int64_t>();
  if (auto error = kvpc::select(call))
    raise(*error);
  return {out, counts};
}
