//===- Host.h - a host without Torch, for tests -----------------------------------------------===//
#ifndef KVPC_TEST_RUNTIME_HOST_H
#define KVPC_TEST_RUNTIME_HOST_H

#include "Sections.h"
#include "kvpc/Module.h"

#include <memory>
#include <numeric>

namespace kvpc::test {

inline std::shared_ptr<const Module> fake() {
  static auto module = Module::load(KVPC_FAKE_MODULE);
  EXPECT_TRUE(bool(module)) << (module ? "" : module.error().text());
  return module ? *module : nullptr;
}

inline BoundPress bound(std::string_view name, const Press::Arguments &arguments = {}) {
  auto press = fake()->press(name);
  EXPECT_TRUE(bool(press)) << textOf(press);
  auto out = press->bind(arguments);
  EXPECT_TRUE(bool(out)) << textOf(out);
  return *out;
}

/// Dense f32 memory with its description.
struct Floats {
  std::vector<float> data;
  TensorRef ref;

  explicit Floats(std::initializer_list<int64_t> shape, float first = 0, float step = 1) {
    int64_t count = 1;
    ref.rank = int(shape.size());
    std::copy(shape.begin(), shape.end(), ref.size);
    for (int axis = ref.rank - 1; axis >= 0; --axis) {
      ref.stride[axis] = count;
      count *= ref.size[axis];
    }
    for (int64_t n = 0; n < count; ++n)
      data.push_back(first + step * float(n));
    ref.element = Element::F32;
    ref.data = data.data();
  }
  Floats(const Floats &) = delete;
};

struct Int64s {
  std::vector<int64_t> data;
  TensorRef ref;

  void resize(std::initializer_list<int64_t> shape) {
    int64_t count = 1;
    ref.rank = int(shape.size());
    std::copy(shape.begin(), shape.end(), ref.size);
    for (int axis = ref.rank - 1; axis >= 0; --axis) {
      ref.stride[axis] = count;
      count *= ref.size[axis];
    }
    data.assign(size_t(count), -99);
    ref.element = Element::I64;
    ref.data = data.data();
  }
};

struct Aligned {
  std::unique_ptr<uint8_t, decltype(&std::free)> memory{nullptr, &std::free};
  void *resize(int64_t bytes) {
    memory.reset(static_cast<uint8_t *>(std::aligned_alloc(64, size_t((bytes + 127) / 64 * 64))));
    return memory.get();
  }
};

/// Outputs of a call, allocated by what plan says.
struct Outputs {
  std::unique_ptr<Floats> keys, values;
  Int64s tokens, channels, lengths;
  std::vector<float> scores;
  std::vector<uint8_t> isProtected;
  Aligned workspace, state;

  /// plan, allocation and run.
  Failure call(const BoundPress &press, Call &call) {
    if (auto error = press.plan(call))
      return error;
    call.workspace = workspace.resize(call.sizes.workspaceBytes);
    if (call.sizes.stateBytes && !call.state) {
      call.state = state.resize(call.sizes.stateBytes);
      call.stateSize = call.sizes.stateBytes;
    }
    if (call.scores) {
      auto count = size_t(std::accumulate(call.scoreShape.begin(), call.scoreShape.end(),
                                          int64_t(1), std::multiplies<>()));
      scores.assign(count, -99);
      isProtected.assign(count, 99);
      call.outScores = scores.data();
      call.outProtected = isProtected.data();
      return press.run(call);
    }
    int64_t batch = call.keys.size[0], heads = call.keys.size[1], kept = call.sizes.kept;
    if (!call.outKeys.given()) {
      keys.reset(new Floats({batch, heads, kept, call.sizes.keptChannels}, -99, 0));
      values.reset(new Floats({batch, heads, kept, call.values.size[3]}, -99, 0));
      call.outKeys = keys->ref;
      call.outValues = values->ref;
    }
    tokens.resize({batch, heads, kept});
    channels.resize({batch, heads, call.sizes.keptChannels});
    lengths.resize({batch, heads});
    call.outTokens = tokens.ref;
    call.outChannels = channels.ref;
    call.outLengths = lengths.ref;
    return press.run(call);
  }
};

} // namespace kvpc::test

#endif
