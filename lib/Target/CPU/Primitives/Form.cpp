//===- Form.cpp - quadratic forms of keys, by the contraction's micro-tile -===//
//
// Columns of a matrix stand on lanes in panels, as the rows of a contraction do, and one number (or
// pair) of each of six keys is broadcast against them. A column needs only the channels up to the
// end of its vector: the matrix is folded onto that side of its diagonal, and a micro-tile takes
// its last channels with one vector less after each kLanes. The sums never leave their registers:
// times the key's own channels, folded, they are the form.
//
//===----------------------------------------------------------------------===//
#include "KeyElements.h"
#include "Primitives.h"
#include "kvpc/abi.h"

using namespace kvpc::prim;

namespace {

/// Panels cover the columns in order, each with the channels that its columns need.
KVPC_INLINE int64_t channelsOf(int64_t panel, int64_t channels) {
  return least((panel + 1) * kPanelRows, channels);
}

struct Task {
  const void *keys;
  int64_t keyStride;
  const int32_t *ids;
  int64_t tokens, channels;
  const char *panels;
  int64_t parts, forms;
  float *out;
  int64_t outStride;

  template <typename Element>
  KVPC_ALWAYS_INLINE const Element *key(int64_t t) const {
    return static_cast<const Element *>(keys) + (ids ? int64_t(ids[t]) : t) * keyStride;
  }
};

/// Adds channels [from, to) to the vectors first .. vectors - 1 of every token.
template <int tokens, int vectors, int first, typename Keys>
KVPC_INLINE void addChannels(Lanes (&sums)[tokens][vectors], const float *panel,
                             const typename Keys::Element *const *keys, int64_t from, int64_t to) {
  for (int64_t c = from; c < to; c += Keys::kChannels)
#pragma clang loop unroll(full)
    for (int i = 0; i < tokens; ++i)
#pragma clang loop unroll(full)
      for (int v = first; v < vectors; ++v)
        sums[i][v] = Keys::add(sums[i][v], panel + v * kLanes, keys[i], c);
}

/// The last channels of a panel: those of vector `first`, then those of the next.
template <int tokens, int vectors, int first, typename Keys>
KVPC_INLINE void addStairs(Lanes (&sums)[tokens][vectors], const float *panel,
                           const typename Keys::Element *const *keys, int64_t from, int64_t to) {
  if constexpr (first < vectors) {
    int64_t next = least(from + kLanes, to);
    addChannels<tokens, vectors, first, Keys>(sums, panel, keys, from, next);
    addStairs<tokens, vectors, first + 1, Keys>(sums, panel, keys, next, to);
  }
}

/// The last channels of a key, fewer than lanes. Not inlined: a micro-tile has a dozen of these.
template <typename Keys>
__attribute__((noinline)) Lanes lastChannels(const typename Keys::Element *key, int64_t count) {
  typename Keys::Element last[kLanes] = {};
#pragma clang loop vectorize(disable) unroll(disable)
  for (int64_t c = 0; c < count; ++c)
    last[c] = key[c];
  return Keys::widen(last);
}

/// The key's channels from `from` on, as many as there are.
template <typename Keys>
KVPC_INLINE Lanes ownChannels(const typename Keys::Element *key, int64_t from, int64_t channels) {
  return from + kLanes <= channels ? Keys::widen(key + from)
                                   : lastChannels<Keys>(key + from, channels - from);
}

template <int tokens, int vectors, typename Keys>
KVPC_INLINE void microTile(const Task &task, int64_t t, int64_t p, const float *panel,
                           Lanes *products) {
  const typename Keys::Element *keys[tokens];
  for (int i = 0; i < tokens; ++i)
    keys[i] = task.key<typename Keys::Element>(t + i);
  int64_t first = p * kPanelRows, end = channelsOf(p, task.channels);
  int64_t partFloats = end * kPanelRows / Keys::kChannels;

  Lanes sums[tokens][vectors] = {};
  for (int64_t part = 0; part < task.parts; ++part, panel += partFloats) {
    addChannels<tokens, vectors, 0, Keys>(sums, panel, keys, 0, first);
    addStairs<tokens, vectors, 0, Keys>(sums, panel, keys, first, end);
  }

#pragma clang loop unroll(full)
  for (int i = 0; i < tokens; ++i) {
    Lanes sum = p ? products[i] : Lanes();
#pragma clang loop unroll(full)
    for (int v = 0; v < vectors; ++v)
      if (int64_t from = first + v * kLanes; v == 0 || from < task.channels)
        sum = __builtin_elementwise_fma(sums[i][v], ownChannels<Keys>(keys[i], from, task.channels),
                                        sum);
    products[i] = sum;
  }
}

template <int tokens, typename Keys>
KVPC_INLINE void panelTile(const Task &task, int64_t t, int64_t p, const float *panel,
                           Lanes *products) {
  if (task.channels - p * kPanelRows > kLanes)
    microTile<tokens, kVectors, Keys>(task, t, p, panel, products);
  else
    microTile<tokens, 1, Keys>(task, t, p, panel, products);
}

constexpr int64_t kBlock = 22 * kTokens; // a tile of 128

/// Tokens first .. end - 1, at most kBlock, against all panels, each of which stays in the cache
/// meanwhile.
template <typename Keys>
__attribute__((noinline)) void formBlock(const Task &task, int64_t first, int64_t end) {
  const char *at = task.panels;
  Lanes products[kBlock];
  for (int64_t form = 0; form < task.forms; ++form) {
    for (int64_t p = 0; p * kPanelRows < task.channels; ++p) {
      const float *panel = reinterpret_cast<const float *>(at);
      at += channelsOf(p, task.channels) * kPanelRows * 4 / Keys::kChannels * task.parts;
      int64_t t = first;
      // Keys that are too long for a block are rare, and go one by one. Two: what a tile of 128
      // leaves.
      if constexpr (!Keys::kLong) {
        for (; t + kTokens <= end; t += kTokens)
          panelTile<kTokens, Keys>(task, t, p, panel, products + (t - first));
        for (; t + 2 <= end; t += 2)
          panelTile<2, Keys>(task, t, p, panel, products + (t - first));
      }
      for (; t < end; ++t)
        panelTile<1, Keys>(task, t, p, panel, products + (t - first));
    }
    for (int64_t t = first; t < end; ++t)
      task.out[t * task.outStride + form] = foldLanes(products[t - first]);
  }
}

template <typename Keys>
void form(const Task &task) {
  for (int64_t t = 0; t < task.tokens; t += kBlock)
    formBlock<Keys>(task, t, least(t + kBlock, task.tokens));
}

template <typename Half>
void formWidened(const Task &task) {
  Task part = task;
  part.keyStride = task.channels;
  part.ids = nullptr;
  bool done = widened<Half>(
      task.channels, task.tokens, [&](int64_t t) { return task.key<uint16_t>(t); },
      [&](const float *keys, int64_t t, int64_t count) {
        part.keys = keys;
        part.out = task.out + t * task.outStride;
        part.tokens = count;
        form<F32Keys>(part);
      });
  if (!done)
    form<LongKeys<Half>>(task);
}

} // namespace

extern "C" {

int64_t kvpc_prim_form_bytes(int64_t key_dtype, int64_t channels, int64_t parts) {
  bool pairs = key_dtype == KVPC_BF16 && inPairs(channels);
  int64_t numbers = 0;
  for (int64_t p = 0; p * kPanelRows < channels; ++p)
    numbers += channelsOf(p, channels) * kPanelRows;
  return numbers * (pairs ? 2 * parts : 4);
}

void kvpc_prim_pack_form(const float *matrix, int64_t row_stride, int64_t column_stride,
                         int64_t channels, int64_t key_dtype, int64_t parts, void *panels) {
  bool pairs = key_dtype == KVPC_BF16 && inPairs(channels);
  kvpc_prim_zero_rows(panels, 0, 1, kvpc_prim_form_bytes(key_dtype, channels, parts));
  char *panel = static_cast<char *>(panels);
  for (int64_t p = 0; p * kPanelRows < channels; ++p) {
    int64_t end = channelsOf(p, channels);
    for (int64_t r = 0; r < least(kPanelRows, channels - p * kPanelRows); ++r)
      for (int64_t c = 0, column = p * kPanelRows + r; c <= column; ++c) {
        float x = matrix[c * row_stride + column * column_stride];
        if (c != column)
          x += matrix[column * row_stride + c * column_stride];
        if (!pairs) {
          reinterpret_cast<float *>(panel)[c * kPanelRows + r] = x;
          continue;
        }
        uint16_t *at = reinterpret_cast<uint16_t *>(panel) + (c / 2 * kPanelRows + r) * 2 + c % 2;
        at[0] = toBf16(x);
        if (parts == 2)
          at[end * kPanelRows] = restOf(x, at[0]);
      }
    panel += end * kPanelRows * (pairs ? 2 * parts : 4);
  }
}

void kvpc_prim_form_f32(const float *keys, int64_t key_stride, const int32_t *ids, int64_t tokens,
                        int64_t channels, const void *panels, int64_t forms, float *out,
                        int64_t out_stride) {
  form<F32Keys>(Task{keys, key_stride, ids, tokens, channels, static_cast<const char *>(panels), 1,
                     forms, out, out_stride});
}

void kvpc_prim_form_bf16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                         int64_t tokens, int64_t channels, const void *panels, int64_t parts,
                         int64_t forms, float *out, int64_t out_stride) {
  Task task{keys,  key_stride, ids, tokens,    channels, static_cast<const char *>(panels),
            parts, forms,      out, out_stride};
  if (inPairs(channels)) {
    form<PairKeys>(task);
  } else {
    task.parts = 1;
    formWidened<Bf16>(task);
  }
}

void kvpc_prim_form_f16(const uint16_t *keys, int64_t key_stride, const int32_t *ids,
                        int64_t tokens, int64_t channels, const void *panels, int64_t forms,
                        float *out, int64_t out_stride) {
  formWidened<F16>(Task{keys, key_stride, ids, tokens, channels, static_cast<const char *>(panels),
                        1, forms, out, out_stride});
}
}
