//===- Contract.cpp - the contraction microkernel -------------------------===//
//
// Rows stand on lanes in packed panels; one number (or pair) of each of six keys is broadcast
// against the vectors of a panel. Every sum has one accumulator and takes its channels in ascending
// order, whatever the tile it is in. f32 keys, and bf16 keys by pairs, are read where they lie.
// Other 16-bit keys are widened, which is exact, in blocks that all panels then pass over.
//
// Of few rows most lanes of a panel would idle: there channels stand on lanes, and lanes are folded
// at the end.
//
// The first to read a key asks for one that comes later: rows of keys, six at a time, are not what
// the machine expects by itself, and waiting took as long as 60 rows' products.
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
  /// Keys from..to - 1 will be read soon. Past the last there may be none.
  template <typename Element>
  KVPC_ALWAYS_INLINE void prefetch(int64_t from, int64_t to) const {
    for (int64_t t = from; t < (ids ? least(to, tokens) : to); ++t)
      for (int64_t c = 0; c < channels; c += int64_t(64 / sizeof(Element)))
        __builtin_prefetch(key<Element>(t) + c);
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
      if (p == 0)
        task.prefetch<typename Keys::Element>(t + kTokens, t + 2 * kTokens);
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

//===-- Few rows ----------------------------------------------------------===//

constexpr int64_t kFewRows = 4, kFewRowsChannels = 512;

/// Rows one after the other, channels on lanes, zeros past the last.
struct FlatRows {
  alignas(64) float values[kFewRows * kFewRowsChannels];
  int64_t width;

  FlatRows(const Task &task, bool pairs) : width(roundUp(task.channels, kLanes)) {
    int64_t partBytes = task.panelBytes / task.parts;
    for (int64_t r = 0; r < task.rows; ++r)
      for (int64_t c = 0; c < width; ++c) {
        float sum = 0; // of two parts as exact as f32 is
        for (int64_t part = 0; part < task.parts && c < task.channels; ++part) {
          const char *panel = static_cast<const char *>(task.panels) + part * partBytes;
          if (!pairs)
            sum += load<float>(panel + (c * kPanelRows + r) * 4);
          else // the even channel of a pair is the low half
            sum += fromBf16(load<uint16_t>(panel + (c / 2 * kPanelRows + r) * 4 + c % 2 * 2));
        }
        values[r * width + c] = sum;
      }
  }
};

template <int tokens, int rows, typename Keys>
KVPC_INLINE void fewRowsTile(const Task &task, const FlatRows &flat, int64_t t) {
  const typename Keys::Element *keys[tokens];
  for (int i = 0; i < tokens; ++i)
    keys[i] = task.key<typename Keys::Element>(t + i);
  Lanes sums[tokens][rows] = {};
  auto add = [&](int64_t c, auto get) {
    Lanes row[rows];
#pragma clang loop unroll(full)
    for (int r = 0; r < rows; ++r)
      row[r] = load<Lanes>(flat.values + r * flat.width + c);
#pragma clang loop unroll(full)
    for (int i = 0; i < tokens; ++i) {
      Lanes key = get(keys[i] + c);
#pragma clang loop unroll(full)
      for (int r = 0; r < rows; ++r)
        sums[i][r] = __builtin_elementwise_fma(row[r], key, sums[i][r]);
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= task.channels; c += kLanes)
    add(c, [](const auto *key) { return Keys::widen(key); });
  if (int64_t rest = task.channels - c)
    add(c, [=](const auto *key) { return Keys::widenFirst(key, rest); });
  for (int i = 0; i < tokens; ++i)
    for (int r = 0; r < rows; ++r)
      task.out[(t + i) * task.outStride + r] = foldLanes(sums[i][r]) * task.scale;
}

template <int rows, typename Keys>
void fewRows(const Task &task, const FlatRows &flat) {
  constexpr int kTile = kFewRows * 2 / rows; // sums enough that none waits for itself
  constexpr int64_t kAhead = 8192 / 512;
  int64_t t = 0;
  for (; t + kTile <= task.tokens; t += kTile) {
    task.prefetch<typename Keys::Element>(t + kAhead, t + kAhead + kTile);
    fewRowsTile<kTile, rows, Keys>(task, flat, t);
  }
  for (; t < task.tokens; ++t)
    fewRowsTile<1, rows, Keys>(task, flat, t);
}

/// False if rows or channels are too many.
template <typename Keys>
bool contractFewRows(const Task &task, bool pairs) {
  if (task.rows > kFewRows || task.channels > kFewRowsChannels)
    return false;
  FlatRows flat(task, pairs);
  switch (task.rows) {
  case 4:
    fewRows<4, Keys>(task, flat);
    break;
  case 3:
    fewRows<3, Keys>(task, flat);
    break;
  case 2:
    fewRows<2, Keys>(task, flat);
    break;
  case 1:
    fewRows<1, Keys>(task, flat);
    break;
  }
  return true;
}

//===----------------------------------------------------------------------===//

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
      task.channels, task.tokens,
      [&](int64_t t) {
        task.prefetch<uint16_t>(t + 16, t + 17);
        return task.key<uint16_t>(t);
      },
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
  Task task{keys, key_stride, ids,   tokens, channels,  panels, f32PanelBytes(channels),
            1,    rows,       scale, out,    out_stride};
  if (!contractFewRows<F32Keys>(task, /*pairs=*/false))
    contract<F32Keys>(task);
}

void kvpc_prim_contract_bf16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                             int64_t tokens, int64_t channels, const void *panels, int64_t parts,
                             int64_t rows, float scale, float *out, int64_t out_stride) {
  bool pairs = inPairs(channels);
  Task task{keys, key_stride, ids,   tokens, channels,  panels, f32PanelBytes(channels),
            1,    rows,       scale, out,    out_stride};
  if (pairs) {
    task.panelBytes = task.panelBytes / 2 * parts;
    task.parts = parts;
  }
  if (contractFewRows<LongKeys<Bf16>>(task, pairs))
    return;
  if (pairs)
    contract<PairKeys>(task);
  else
    contractWidened<Bf16>(task);
}

void kvpc_prim_contract_f16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                            int64_t tokens, int64_t channels, const void *panels, int64_t rows,
                            float scale, float *out, int64_t out_stride) {
  Task task{keys, key_stride, ids,   tokens, channels,  panels, f32PanelBytes(channels),
            1,    rows,       scale, out,    out_stride};
  if (!contractFewRows<LongKeys<F16>>(task, /*pairs=*/false))
    contractWidened<F16>(task);
}
}
