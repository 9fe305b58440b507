// runtime/torch without Python: the class, its errors, threads, a second copy of the library.
#include "kvpc/torch.h"
#include "Sections.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <cstdio>
#include <dlfcn.h>
#include <filesystem>
#include <thread>
#include <unistd.h>

using kvpc::ErrorCode;
using kvpc::Value;
using kvpc::torch::Inputs;
using kvpc::torch::Press;
using kvpc::torch::State;

namespace {

struct Cache {
  at::Tensor keys = at::randn({2, 2, 12, 4}), values = at::randn({2, 2, 12, 4});
};

template <class Function>
std::optional<ErrorCode> codeOf(Function function) {
  try {
    function();
  } catch (const kvpc::torch::Error &error) {
    return error.code();
  }
  return {};
}

Press last(int64_t keep) {
  return Press::load(KVPC_FAKE_MODULE, "last", {{"keep", Value::ofInt(keep)}});
}

TEST(Torch, CompressesAndScores) {
  Cache cache;
  Press press = last(5);
  auto out = press.compress(cache.keys, cache.values);
  EXPECT_TRUE(at::equal(out.keys, cache.keys.narrow(2, 7, 5)));
  EXPECT_TRUE(at::equal(out.values, cache.values.narrow(2, 7, 5)));
  EXPECT_FALSE(out.channels.defined());
  EXPECT_EQ(out.lengths.sizes(), at::IntArrayRef({2}));
  auto scores = press.scores(cache.keys, cache.values);
  EXPECT_EQ(scores.values.sizes(), at::IntArrayRef({2, 2, 12}));

  at::Tensor keys = cache.keys.clone(), values = cache.values.clone();
  auto inPlace = press.compressInPlace(keys, values);
  EXPECT_TRUE(at::equal(inPlace.keys, out.keys));
  EXPECT_EQ(inPlace.keys.data_ptr(), keys.data_ptr());

  auto thin = Press::load(KVPC_FAKE_MODULE, "thin").compress(cache.keys, cache.values);
  EXPECT_EQ(thin.channels.size(2), 2);
}

TEST(Torch, ErrorsHaveCodes) {
  Cache cache;
  EXPECT_EQ(codeOf([] { Press::load("/nonexistent.kvm"); }), ErrorCode::File);
  EXPECT_EQ(codeOf([] { Press::load(KVPC_FAKE_MODULE); }), ErrorCode::Press);
  EXPECT_EQ(codeOf([] { Press::load(KVPC_FAKE_MODULE, "last", {}, {}, std::string(64, '0')); }),
            ErrorCode::Digest);
  EXPECT_EQ(codeOf([] { Press::load(KVPC_FAKE_MODULE, "last", {}, {{"filter", at::ones({1})}}); }),
            ErrorCode::ExtraInput);
  EXPECT_EQ(codeOf([&] { last(3).compress(cache.keys.to(at::kMeta), cache.values); }),
            ErrorCode::Device);
  EXPECT_EQ(codeOf([&] { last(3).compress(cache.keys.to(at::kDouble), cache.values); }),
            ErrorCode::Dtype);
  EXPECT_EQ(
      codeOf([&] { Press::load(KVPC_FAKE_MODULE, "window").compress(cache.keys, cache.values); }),
      ErrorCode::MissingInput);
}

TEST(Torch, WeightsAndLayers) {
  Cache cache;
  at::Tensor filter = at::randn({3, 2, 4}, at::kDouble);
  auto ratios = kvpc::parseArguments(R"({"ratios": [0.25, 0.5, 0.75]})");
  Press press = Press::load(KVPC_FAKE_MODULE, "weighted", *ratios, {{"filter", filter}});
  for (int64_t layer = 0; layer < 3; ++layer) {
    Inputs inputs;
    inputs.layer = layer;
    inputs.layers = 3;
    EXPECT_EQ(press.compress(cache.keys, cache.values, inputs).keys.size(2), 9 - 3 * layer);
    at::Tensor wanted = at::einsum("bhtc,hc->bht", {cache.keys, filter[layer].to(at::kFloat)});
    EXPECT_TRUE(
        at::allclose(press.scores(cache.keys, cache.values, inputs).values, wanted, 1e-4, 1e-5));
  }
  EXPECT_EQ(codeOf([&] { press.compress(cache.keys, cache.values); }), ErrorCode::Shape);
  EXPECT_EQ(codeOf([&] { Press::load(KVPC_FAKE_MODULE, "weighted", *ratios); }),
            ErrorCode::MissingInput);
}

TEST(Torch, LayersShareAState) {
  Cache cache;
  Press press = Press::load(KVPC_FAKE_MODULE, "shared", {{"keep", Value::ofInt(4)}});
  State state;
  Inputs inputs;
  inputs.layers = 2;
  inputs.state = &state;
  inputs.queries = at::ones({2, 2, 1, 4});
  auto leader = press.compress(cache.keys, cache.values, inputs);
  inputs.queries.reset();
  inputs.layer = 1;
  auto follower = press.compress(cache.keys, cache.values, inputs);
  EXPECT_TRUE(at::equal(leader.tokens, follower.tokens));
  state.reset();
  EXPECT_EQ(codeOf([&] { press.compress(cache.keys, cache.values, inputs); }), ErrorCode::State);
}

TEST(Torch, ManyThreadsOnePress) {
  Cache cache;
  Press press = last(5);
  auto wanted = press.compress(cache.keys, cache.values);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round)
        wrong += !at::equal(press.compress(cache.keys, cache.values).keys, wanted.keys);
      kvpc::torch::releaseWorkspace();
    });
  for (std::thread &thread : threads)
    thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Torch, ASecondCopyOfTheLibrary) {
  std::string copy = testing::TempDir() + "/libkvpc_torch_copy_" + std::to_string(getpid()) + ".so";
  std::filesystem::copy_file(KVPC_BINARY_DIR "/lib/libkvpc_torch.so", copy);
  void *handle = dlopen(copy.c_str(), RTLD_NOW | RTLD_LOCAL);
  EXPECT_TRUE(handle) << dlerror();
  std::filesystem::remove(copy);
  // The operators are still those of the first copy, which knows the presses.
  Press press = last(5);
  auto op = c10::Dispatcher::singleton().findSchemaOrThrow("kvpc::bind", "");
  std::string digest = press.handle().substr(0, 64);
  auto handleText = op.typed<std::string(std::string, std::string, std::string)>().call(
      digest, "last", R"({"keep": 3})");
  EXPECT_EQ(handleText, digest + "/last?{\"keep\": 3}");
}

TEST(Torch, TheExampleRuns) {
  std::string command = std::string(KVPC_BINARY_DIR "/bin/kvpc_example ") + KVPC_FAKE_MODULE;
  FILE *pipe = popen((command + " last").c_str(), "r");
  std::string text;
  for (int c; (c = fgetc(pipe)) != EOF;)
    text += char(c);
  EXPECT_EQ(pclose(pipe), 0) << text;
  EXPECT_NE(text.find("keys [2, 2, 1000, 64] -> [2, 2, 500, 64]"), std::string::npos) << text;
  EXPECT_NE(text.find("in place: the same"), std::string::npos) << text;
  EXPECT_NE(std::system((command + " none 2>/dev/null").c_str()), 0);
}

} // namespace
