//===- Contract.cpp - the contraction microkernel -------------------------===//
//
// Rows stand on lanes in packed panels, keys are read where they lie: one number (or pair) of each of
// six keys is broadcast against the vectors of a panel. Every sum has one accumulator and takes its
// channels in ascending order, whatever the tile it is in.
//
//===----------------------------------------------------------------------===//
#include "Panel.h"
#include "Primitives.h"

using namespace kvpc::prim;

namespace {

/// How one or two channels of a key meet the panel: step() adds channel c, in ascending order.
struct F32Keys {
  typedef float Element;
  static constexpr int kStep = 1;
  template <int tokens>
  static KVPC_ALWAYS_INLINE void step(Lanes (&sums)[tokens][kVectors], const float *const *keys,
                        const float *panel, int64_t c) {
    Lanes rows[kVectors];
#pragma clang loop unroll(full)
    for (int v = 0; v < kVectors; ++v)
      rows[v] = load<Lanes>(panel + c * kPanelRows + v * kLanes);
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; ++t)
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v)
        sums[t][v] = __builtin_elementwise_fma(rows[v], Lanes(keys[t][c]), sums[t][v]);
  }
};

/// Two channels a step: the pair is broadcast once and widened by integer operations.
struct Bf16Keys {
  typedef uint16_t Element;
  static constexpr int kStep = 2;
  template <int tokens>
  static KVPC_ALWAYS_INLINE void step(Lanes (&sums)[tokens][kVectors], const uint16_t *const *keys,
                        const float *panel, int64_t c) {
#pragma clang loop unroll(full)
    for (int half = 0; half < 2; ++half) {
      Lanes rows[kVectors];
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v)
        rows[v] = load<Lanes>(panel + (c + half) * kPanelRows + v * kLanes);
#pragma clang loop unroll(full)
      for (int t = 0; t < tokens; ++t) {
        Words pair = Words(load<uint32_t>(keys[t] + c));
        Lanes key = __builtin_bit_cast(Lanes, half ? pair & 0xffff0000u : pair << 16);
#pragma clang loop unroll(full)
        for (int v = 0; v < kVectors; ++v)
          sums[t][v] = __builtin_elementwise_fma(rows[v], key, sums[t][v]);
      }
    }
  }
};

/// The last of an odd number of bf16 channels.
struct Bf16LastKey {
  typedef uint16_t Element;
  template <int tokens>
  static KVPC_ALWAYS_INLINE void step(Lanes (&sums)[tokens][kVectors], const uint16_t *const *keys,
                        const float *panel, int64_t c) {
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; ++t)
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v)
        sums[t][v] =
            __builtin_elementwise_fma(load<Lanes>(panel + c * kPanelRows + v * kLanes),
                                      Lanes(fromBf16(keys[t][c])), sums[t][v]);
  }
};

struct F16Keys {
  typedef uint16_t Element;
  static constexpr int kStep = 1;
  template <int tokens>
  static KVPC_ALWAYS_INLINE void step(Lanes (&sums)[tokens][kVectors], const uint16_t *const *keys,
                        const float *panel, int64_t c) {
    Lanes rows[kVectors];
#pragma clang loop unroll(full)
    for (int v = 0; v < kVectors; ++v)
      rows[v] = load<Lanes>(panel + c * kPanelRows + v * kLanes);
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; ++t) {
      Lanes key = broadcastHalf(keys[t] + c);
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v)
        sums[t][v] = __builtin_elementwise_fma(rows[v], key, sums[t][v]);
    }
  }
};

/// bf16 panels: rows of pairs, c counts channels.
struct PairKeys {
  typedef uint16_t Element;
  static constexpr int kStep = 2;
  template <int tokens>
  static KVPC_ALWAYS_INLINE void step(Lanes (&sums)[tokens][kVectors], const uint16_t *const *keys,
                        const float *panel, int64_t c) {
    Words rows[kVectors];
#pragma clang loop unroll(full)
    for (int v = 0; v < kVectors; ++v)
      rows[v] = load<Words>(panel + c / 2 * kPanelRows + v * kLanes);
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; ++t)
#pragma clang loop unroll(full)
      for (int v = 0; v < kVectors; ++v)
        sums[t][v] = dotPairs(sums[t][v], rows[v], Words(load<uint32_t>(keys[t] + c)));
  }
};

/// What does not change over a call.
struct Task {
  const char *keys;
  int64_t keyStride; // bytes
  const int32_t *ids;
  int64_t tokens, channels;
  const char *panels;
  int64_t panelBytes, parts, npanels;
  float scale;
  float *out;
  int64_t outStride;

  const char *key(int64_t t) const { return keys + (ids ? int64_t(ids[t]) : t) * keyStride; }
};

template <int tokens, typename Keys, typename Last>
KVPC_INLINE void microTile(const Task &task, int64_t t, int64_t p) {
  typedef typename Keys::Element Element;
  const Element *keys[tokens];
  for (int i = 0; i < tokens; ++i)
    keys[i] = reinterpret_cast<const Element *>(task.key(t + i));
  const float *panel = reinterpret_cast<const float *>(task.panels + p * task.panelBytes);
  int64_t partFloats = task.panelBytes / 4 / task.parts;

  Lanes sums[tokens][kVectors] = {};
  for (int64_t part = 0; part < task.parts; ++part, panel += partFloats) {
    int64_t c = 0;
    for (; c + Keys::kStep <= task.channels; c += Keys::kStep)
      Keys::template step<tokens>(sums, keys, panel, c);
    if (Keys::kStep > 1 && c < task.channels)
      Last::template step<tokens>(sums, keys, panel, c);
  }
  float *out = task.out + t * task.outStride + p * kPanelRows;
#pragma clang loop unroll(full)
  for (int i = 0; i < tokens; ++i)
#pragma clang loop unroll(full)
    for (int v = 0; v < kVectors; ++v)
      store(out + i * task.outStride + v * kLanes, sums[i][v] * task.scale);
}

/// Blocks of keys stay in the cache while all panels pass over them.
template <typename Keys, typename Last = Keys> void contract(const Task &task) {
  constexpr int64_t kBlock = 20 * kTokens;
  for (int64_t first = 0; first < task.tokens; first += kBlock) {
    int64_t end = least(first + kBlock, task.tokens);
    for (int64_t p = 0; p < task.npanels; ++p) {
      int64_t t = first;
      for (; t + kTokens <= end; t += kTokens) {
        if (task.ids && p == 0 && t + 2 * kTokens <= end)
          for (int64_t i = t + kTokens; i < t + 2 * kTokens; ++i)
            for (int64_t b = 0; b < least(task.keyStride, 1024); b += 64)
              __builtin_prefetch(task.key(i) + b);
        microTile<kTokens, Keys, Last>(task, t, p);
      }
      switch (end - t) {
      case 5:
        microTile<5, Keys, Last>(task, t, p);
        break;
      case 4:
        microTile<4, Keys, Last>(task, t, p);
        break;
      case 3:
        microTile<3, Keys, Last>(task, t, p);
        break;
      case 2:
        microTile<2, Keys, Last>(task, t, p);
        break;
      case 1:
        microTile<1, Keys, Last>(task, t, p);
        break;
      }
    }
  }
}

Task taskOf(const void *keys, int64_t keyStrideBytes, const int32_t *ids, int64_t tokens,
            int64_t channels, const void *panels, int64_t npanels, float scale, float *out,
            int64_t outStride) {
  int64_t panelBytes = channels * kPanelRows * 4;
  return {static_cast<const char *>(keys),
          keyStrideBytes,
          ids,
          tokens,
          channels,
          static_cast<const char *>(panels),
          panelBytes,
          1,
          npanels,
          scale,
          out,
          outStride};
}

} // namespace

extern "C" {

void kvpc_prim_contract_f32(const float *keys, int64_t key_stride, const int32_t *ids,
                            int64_t tokens, int64_t channels, const void *panels, int64_t npanels,
                            float scale, float *out, int64_t out_stride) {
  contract<F32Keys>(taskOf(keys, key_stride * 4, ids, tokens, channels, panels, npanels, scale,
                           out, out_stride));
}

void kvpc_prim_contract_bf16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                             int64_t tokens, int64_t channels, const void *panels, int64_t parts,
                             int64_t npanels, float scale, float *out, int64_t out_stride) {
  Task task = taskOf(keys, key_stride * 2, ids, tokens, channels, panels, npanels, scale, out,
                     out_stride);
  if (inPairs(channels)) {
    task.parts = parts;
    task.panelBytes = channels * kPanelRows * 2 * parts;
    contract<PairKeys>(task);
  } else {
    contract<Bf16Keys, Bf16LastKey>(task);
  }
}

void kvpc_prim_contract_f16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                            int64_t tokens, int64_t channels, const void *panels, int64_t npanels,
                            float scale, float *out, int64_t out_stride) {
  contract<F16Keys>(taskOf(keys, key_stride * 2, ids, tokens, channels, panels, npanels, scale,
                           out, out_stride));
}
}
