//===- Contract.cpp - the contraction microkernel -------------------------===//
//
// Rows stand on lanes in packed panels; one number (or pair) of each of six keys is broadcast
// against the vectors of a panel. Every sum has one accumulator and takes its channels in ascending
// order, whatever the tile it is in. f32 keys, and bf16 keys by pairs, are read where they lie.
// Other 16-bit keys are widened, which is exact, in blocks that all panels then pass over.
//
//===----------------------------------------------------------------------===//
#include "KeyElements.h"
#include "Primitives.h"

using namespace kvpc::prim;

namespace {

struct Task {
  const void *keys;
  int64_t keyStride;
  const int32_t *ids;
  int64_t tokens, channels;
  const void *panels;
  int64_t panelBytes, parts, rows;
  float scale;
  float *out;
  int64_t outStride;

  template <typename Element>
  KVPC_ALWAYS_INLINE const Element *key(int64_t t) const {
    return static_cast<const Element *>(keys) + (ids ? int64_t(ids[t]) : t) * keyStride;
  }
};

/// Tokens t .. t + tokens - 1 against the first `vectors` vectors of panel p, of which `rows` rows
/// are written.
template <int tokens, int vectors, typename Keys>
KVPC_INLINE void microTile(const Task &task, int64_t t, int64_t p, int64_t rows) {
  const typename Keys::Element *keys[tokens];
  for (int i = 0; i < tokens; ++i)
    keys[i] = task.key<typename Keys::Element>(t + i);
  const float *panel =
      reinterpret_cast<const float *>(static_cast<const char *>(task.panels) + p * task.panelBytes);
  int64_t partFloats = task.panelBytes / 4 / task.parts;

  Lanes sums[tokens][vectors] = {};
  for (int64_t part = 0; part < task.parts; ++part, panel += partFloats)
    for (int64_t c = 0; c < task.channels; c += Keys::kChannels)
#pragma clang loop unroll(full)
      for (int i = 0; i < tokens; ++i)
#pragma clang loop unroll(full)
        for (int v = 0; v < vectors; ++v)
          sums[i][v] = Keys::add(sums[i][v], panel + v * kLanes, keys[i], c);

  float *out = task.out + t * task.outStride + p * kPanelRows;
#pragma clang loop unroll(full)
  for (int i = 0; i < tokens; ++i)
#pragma clang loop unroll(full)
    for (int v = 0; v < vectors; ++v) {
      float *to = out + i * task.outStride + v * kLanes;
      Lanes sum = sums[i][v] * task.scale;
      if (int64_t rest = rows - v * kLanes; rest >= kLanes)
        store(to, sum);
      else
        storeFirst(to, sum, most(rest, 0));
    }
}

/// One panel: few rows take one vector of it.
template <int tokens, typename Keys>
KVPC_INLINE void panelTile(const Task &task, int64_t t, int64_t p) {
  int64_t rows = task.rows - p * kPanelRows;
  if (rows > kLanes)
    microTile<tokens, kVectors, Keys>(task, t, p, rows);
  else
    microTile<tokens, 1, Keys>(task, t, p, rows);
}

/// Tokens first .. end - 1 against all panels, each of which stays in the cache meanwhile.
template <typename Keys>
void contractBlock(const Task &task, int64_t first, int64_t end) {
  for (int64_t p = 0; p * kPanelRows < task.rows; ++p) {
    int64_t t = first;
    for (; t + kTokens <= end; t += kTokens) {
      // A set's rows are not what the machine expects next.
      if (task.ids && p == 0 && t + 2 * kTokens <= end)
        for (int i = kTokens; i < 2 * kTokens; ++i)
          for (int64_t c = 0; c < task.channels; c += 64 / sizeof(typename Keys::Element))
            __builtin_prefetch(task.key<typename Keys::Element>(t + i) + c);
      panelTile<kTokens, Keys>(task, t, p);
    }
    switch (end - t) {
    case 5:
      panelTile<5, Keys>(task, t, p);
      break;
    case 4:
      panelTile<4, Keys>(task, t, p);
      break;
    case 3:
      panelTile<3, Keys>(task, t, p);
      break;
    case 2:
      panelTile<2, Keys>(task, t, p);
      break;
    case 1:
      panelTile<1, Keys>(task, t, p);
      break;
    }
  }
}

template <typename Keys>
void contract(const Task &task) {
  constexpr int64_t kBlock = 20 * kTokens;
  for (int64_t t = 0; t < task.tokens; t += kBlock)
    contractBlock<Keys>(task, t, least(t + kBlock, task.tokens));
}

template <typename Half>
void contractWidened(const Task &task) {
  Task part = task;
  part.keyStride = task.channels;
  part.ids = nullptr;
  bool done = widened<Half>(
      task.channels, task.tokens, [&](int64_t t) { return task.key<uint16_t>(t); },
      [&](const float *keys, int64_t t, int64_t count) {
        part.keys = keys;
        part.out = task.out + t * task.outStride;
        contractBlock<F32Keys>(part, 0, count);
      });
  if (!done)
    for (int64_t t = 0; t < task.tokens; ++t)
      for (int64_t p = 0; p * kPanelRows < task.rows; ++p)
        panelTile<1, LongKeys<Half>>(task, t, p);
}

int64_t f32PanelBytes(int64_t channels) { return channels * kPanelRows * 4; }

} // namespace

extern "C" {

void kvpc_prim_contract_f32(const float *keys, int64_t key_stride, const int32_t *ids,
                            int64_t tokens, int64_t channels, const void *panels, int64_t rows,
                            float scale, float *out, int64_t out_stride) {
  contract<F32Keys>(Task{keys, key_stride, ids, tokens, channels, panels, f32PanelBytes(channels),
                         1, rows, scale, out, out_stride});
}

void kvpc_prim_contract_bf16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                             int64_t tokens, int64_t channels, const void *panels, int64_t parts,
                             int64_t rows, float scale, float *out, int64_t out_stride) {
  if (inPairs(channels))
    contract<PairKeys>(Task{keys, key_stride, ids, tokens, channels, panels,
                            f32PanelBytes(channels) / 2 * parts, parts, rows, scale, out,
                            out_stride});
  else
    contractWidened<Bf16>(Task{keys, key_stride, ids, tokens, channels, panels,
                               f32PanelBytes(channels), 1, rows, scale, out, out_stride});
}

void kvpc_prim_contract_f16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                            int64_t tokens, int64_t channels, const void *panels, int64_t rows,
                            float scale, float *out, int64_t out_stride) {
  contractWidened<F16>(Task{keys, key_stride, ids, tokens, channels, panels,
                            f32PanelBytes(channels), 1, rows, scale, out, out_stride});
}
}
