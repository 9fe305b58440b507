//===- Pack.cpp - rows of queries into panels -----------------------------===//
#include "Panel.h"
#include "Primitives.h"
#include "kvpc/abi.h"

using namespace kvpc::prim;

namespace {

struct Rows {
  const char *data;
  int64_t groupStride, queryStride, channelStride, queries, count;
  const int32_t *channels;
  float scale;
};

struct F32 {
  static constexpr int kBytes = 4;
  static float get(const char *at) { return load<float>(at); }
};
struct Bf16 {
  static constexpr int kBytes = 2;
  static float get(const char *at) { return fromBf16(load<uint16_t>(at)); }
};
struct F16 {
  static constexpr int kBytes = 2;
  static float get(const char *at) { return fromF16(load<uint16_t>(at)); }
};

/// Calls put(row of the panel, channel, value) for the rows of a panel that are there.
template <typename Element, typename Put>
KVPC_INLINE void overPanel(const Rows &rows, int64_t first, int64_t channels, Put put) {
  int64_t count = least(rows.count - first, kPanelRows);
  for (int64_t r = 0; r < count; ++r) {
    int64_t row = first + r;
    const char *at = rows.data + (row / rows.queries * rows.groupStride +
                                  row % rows.queries * rows.queryStride) *
                                     Element::kBytes;
    for (int64_t c = 0; c < channels; ++c) {
      int64_t channel = rows.channels ? int64_t(rows.channels[c]) : c;
      put(r, c, Element::get(at + channel * rows.channelStride * Element::kBytes) * rows.scale);
    }
  }
}

template <typename Element>
void pack(const Rows &rows, int64_t channels, bool pairs, int64_t parts, int64_t panelBytes,
          char *panel) {
  for (int64_t first = 0; first < rows.count; first += kPanelRows, panel += panelBytes) {
    if (rows.count - first < kPanelRows)
      kvpc_prim_zero_rows(panel, panelBytes, 1, panelBytes);
    if (!pairs) {
      float *to = reinterpret_cast<float *>(panel);
      overPanel<Element>(rows, first, channels,
                         [=](int64_t r, int64_t c, float x) { to[c * kPanelRows + r] = x; });
      continue;
    }
    uint16_t *to = reinterpret_cast<uint16_t *>(panel);
    int64_t part = channels * kPanelRows;
    overPanel<Element>(rows, first, channels, [=](int64_t r, int64_t c, float x) {
      uint16_t *at = to + (c / 2 * kPanelRows + r) * 2 + c % 2;
      at[0] = toBf16(x);
      if (parts == 2)
        at[part] = restOf(x, at[0]);
    });
  }
}

} // namespace

extern "C" {

int64_t kvpc_prim_panel_rows(void) { return kPanelRows; }

int64_t kvpc_prim_panel_bytes(int64_t key_dtype, int64_t channels, int64_t parts) {
  bool pairs = key_dtype == KVPC_BF16 && inPairs(channels);
  return channels * kPanelRows * (pairs ? 2 * parts : 4);
}

void kvpc_prim_pack_rows(const void *q, int64_t q_dtype, int64_t group_stride, int64_t query_stride,
                         int64_t channel_stride, int64_t groups, int64_t queries, int64_t channels,
                         const int32_t *channel_ids, float scale, int64_t key_dtype, int64_t parts,
                         void *panels) {
  Rows rows = {static_cast<const char *>(q),
               group_stride,
               query_stride,
               channel_stride,
               queries,
               groups * queries,
               channel_ids,
               scale};
  int64_t bytes = kvpc_prim_panel_bytes(key_dtype, channels, parts);
  bool pairs = key_dtype == KVPC_BF16 && inPairs(channels);
  char *panel = static_cast<char *>(panels);
  if (q_dtype == KVPC_F32)
    pack<F32>(rows, channels, pairs, parts, bytes, panel);
  else if (q_dtype == KVPC_BF16)
    pack<Bf16>(rows, channels, pairs, parts, bytes, panel);
  else
    pack<F16>(rows, channels, pairs, parts, bytes, panel);
}
}
