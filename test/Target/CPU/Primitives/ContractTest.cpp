#include "Data.h"
#include "kvpc/abi.h"
#include <gtest/gtest.h>

using namespace kvpc::test;

namespace {

struct Problem {
  int64_t dtype, groups, queries, channels, keyStride, total;
  std::vector<float> q, k; // as the storage type rounds them
  std::vector<uint8_t> qBytes, kBytes;

  static std::vector<uint8_t> stored(std::vector<float> &values, int64_t dtype) {
    int64_t size = dtype == KVPC_F32 ? 4 : 2;
    std::vector<uint8_t> out(values.size() * size);
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t half = dtype == KVPC_BF16 ? toBf16(values[i]) : toF16(values[i]);
      if (dtype != KVPC_F32)
        values[i] = dtype == KVPC_BF16 ? fromBf16(half) : fromF16(half);
      std::memcpy(&out[i * size], dtype == KVPC_F32 ? static_cast<void *>(&values[i]) : &half,
                  size);
    }
    return out;
  }

  Problem(int64_t dtype, int64_t groups, int64_t queries, int64_t channels, int64_t total,
          int64_t gap)
      : dtype(dtype), groups(groups), queries(queries), channels(channels),
        keyStride(channels + gap), total(total), q(scores("normal", groups * queries * channels)),
        k(scores("normal", total * keyStride, 7)) {
    qBytes = stored(q, dtype);
    kBytes = stored(k, dtype);
  }

  bool pairs() const {
    return kvpc_prim_panel_bytes(dtype, channels, 1) != channels * kvpc_prim_panel_rows() * 4;
  }

  std::vector<float> contract(const std::vector<int32_t> *ids, int64_t tokens, float packScale,
                              float scale, int64_t parts, int64_t outStride) const {
    int64_t rows = groups * queries, width = kvpc_prim_panel_rows();
    int64_t npanels = (rows + width - 1) / width;
    Guarded<uint8_t> panels(npanels * kvpc_prim_panel_bytes(dtype, channels, parts));
    kvpc_prim_pack_rows(qBytes.data(), dtype, queries * channels, channels, 1, groups, queries,
                        channels, nullptr, packScale, dtype, parts, panels.data());
    EXPECT_TRUE(panels.intact());
    Guarded<float> out(tokens ? (tokens - 1) * outStride + rows : 0, -1.0f);
    const int32_t *list = ids ? ids->data() : nullptr;
    auto *halves = reinterpret_cast<const uint16_t *>(kBytes.data());
    if (dtype == KVPC_F32)
      kvpc_prim_contract_f32(reinterpret_cast<const float *>(kBytes.data()), keyStride, list,
                             tokens, channels, panels.data(), rows, scale, out.data(), outStride);
    else if (dtype == KVPC_BF16)
      kvpc_prim_contract_bf16(halves, keyStride, list, tokens, channels, panels.data(), parts, rows,
                              scale, out.data(), outStride);
    else
      kvpc_prim_contract_f16(halves, keyStride, list, tokens, channels, panels.data(), rows, scale,
                             out.data(), outStride);
    EXPECT_TRUE(out.intact());
    return out.first(tokens ? (tokens - 1) * outStride + rows : 0);
  }
};

void expectContraction(int64_t dtype, int64_t groups, int64_t queries, int64_t channels,
                       int64_t tokens, int64_t gap, bool byIds) {
  Problem p(dtype, groups, queries, channels, 2 * tokens + 3, gap);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t)
    ids.push_back(int32_t(2 * t + (t > 4)));
  int64_t rows = groups * queries, stride = rows + gap;
  // The scale where each layout takes it.
  float packScale = p.pairs() ? 1.0f : 0.7f, scale = 0.3f;
  std::vector<float> out = p.contract(byIds ? &ids : nullptr, tokens, packScale, scale, 1, stride);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r) {
      // Channels of few rows stand on lanes.
      int lanes = rows > 4 || channels > 512 ? 1 : kvpc_prim_panel_rows() == 64 ? 16 : 8;
      float sums[16] = {};
      double exact = 0, size = 0;
      for (int64_t c = 0; c < channels; ++c) {
        float key = p.k[(byIds ? ids[t] : t) * p.keyStride + c];
        float query = p.q[r * channels + c] * packScale;
        sums[c % lanes] = std::fma(query, key, sums[c % lanes]);
        exact += double(query) * key;
        size += std::abs(double(query) * key);
      }
      for (int half = lanes / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane)
          sums[lane] += sums[lane + half];
      float got = out[t * stride + r], sum = sums[0];
      if (p.pairs())
        ASSERT_NEAR(got, exact * scale, 1e-6 * size + 1e-30) << "t " << t << " r " << r;
      else
        ASSERT_TRUE(sameBits(got, sum * scale))
            << "t " << t << " r " << r << ": " << got << ", " << sum * scale;
    }
}

TEST(Contract, EveryDtypeShapeAndStride) {
  for (int64_t dtype : {KVPC_F32, KVPC_BF16, KVPC_F16})
    for (int64_t channels : {1, 2, 7, 64, 80, 128})
      for (auto [groups, queries] :
           {std::pair<int64_t, int64_t>{1, 1}, {2, 1}, {1, 3}, {2, 2}, {3, 5}, {4, 16}, {1, 130}})
        for (int64_t tokens : {0, 1, 2, 3, 4, 5, 6, 13, 126, 245})
          for (bool byIds : {false, true}) {
            expectContraction(dtype, groups, queries, channels, tokens, channels % 3, byIds);
            if (HasFatalFailure()) {
              ADD_FAILURE() << "dtype " << dtype << " channels " << channels << " rows "
                            << groups * queries << " tokens " << tokens << " ids " << byIds;
              return;
            }
          }
}

TEST(Contract, MoreChannelsThanABlockOfWidenedKeysHolds) {
  for (int64_t dtype : {KVPC_F32, KVPC_BF16, KVPC_F16})
    for (int64_t channels : {500, 901})
      for (bool byIds : {false, true})
        for (int64_t rows : {3, 20})
          expectContraction(dtype, 1, rows, channels, 15, 3, byIds);
}

TEST(Contract, ATokenDoesNotDependOnItsTile) {
  for (auto [dtype, rows] : {std::pair<int64_t, int64_t>{KVPC_F32, 20},
                             {KVPC_F32, 1},
                             {KVPC_F32, 3},
                             {KVPC_BF16, 20},
                             {KVPC_BF16, 4},
                             {KVPC_F16, 20},
                             {KVPC_F16, 2}}) {
    Problem p(dtype, 1, rows, 64, 300, 0);
    int64_t stride = p.contract(nullptr, 1, 1, 1, 1, 64).size();
    std::vector<float> all = p.contract(nullptr, 300, 1, 1, 1, stride);
    for (int64_t t = 0; t < 300; t += 7) {
      std::vector<int32_t> one = {int32_t(t)};
      std::vector<float> alone = p.contract(&one, 1, 1, 1, 1, stride);
      ASSERT_EQ(std::memcmp(alone.data(), &all[t * stride], stride * 4), 0) << "token " << t;
    }
  }
}

TEST(Contract, ComputedQueriesInTwoParts) {
  for (int64_t rows : {3, 40}) {
    const int64_t channels = 128, tokens = 50, width = kvpc_prim_panel_rows();
    int64_t npanels = (rows + width - 1) / width, stride = rows;
    Problem p(KVPC_BF16, 1, rows, channels, tokens, 0);
    std::vector<float> q = scores("normal", rows * channels, 21), out(tokens * stride);
    std::vector<uint8_t> panels(npanels * kvpc_prim_panel_bytes(KVPC_BF16, channels, 2));
    kvpc_prim_pack_rows(q.data(), KVPC_F32, 0, channels, 1, 1, rows, channels, nullptr, 0.9f,
                        KVPC_BF16, 2, panels.data());
    kvpc_prim_contract_bf16(reinterpret_cast<const uint16_t *>(p.kBytes.data()), channels, nullptr,
                            tokens, channels, panels.data(), 2, rows, 1.0f, out.data(), stride);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t r = 0; r < rows; ++r) {
        double exact = 0, size = 0;
        for (int64_t c = 0; c < channels; ++c) {
          double product = double(q[r * channels + c] * 0.9f) * p.k[t * channels + c];
          exact += product;
          size += std::abs(product);
        }
        // Two parts keep at least 16 bits of each query.
        ASSERT_NEAR(out[t * stride + r], exact, size * 0x1p-16);
      }
  }
}

TEST(Contract, PackedChannelsAndDtypesOfQueries) {
  std::vector<float> q = scores("normal", 6 * 80);
  std::vector<uint8_t> halves = Problem::stored(q, KVPC_F16);
  std::vector<int32_t> channels = {1, 4, 79};
  int64_t width = kvpc_prim_panel_rows();
  std::vector<float> panel(width * 3, -1.0f);
  // 3 groups of 2 queries.
  kvpc_prim_pack_rows(halves.data(), KVPC_F16, 160, 80, 1, 3, 2, 3, channels.data(), 0.5f, KVPC_F32,
                      1, panel.data());
  for (int64_t c = 0; c < 3; ++c)
    for (int64_t r = 0; r < width; ++r)
      ASSERT_EQ(panel[c * width + r], r < 6 ? q[r * 80 + channels[c]] * 0.5f : 0.0f);
  // Rows that lie side by side: 5 of 7 channels each.
  std::vector<float> side(width * 5, -1.0f);
  kvpc_prim_pack_rows(q.data(), KVPC_F32, 0, 1, 60, 1, 7, 5, nullptr, 1.0f, KVPC_F32, 1,
                      side.data());
  for (int64_t c = 0; c < 5; ++c)
    for (int64_t r = 0; r < width; ++r)
      ASSERT_EQ(side[c * width + r], r < 7 ? q[c * 60 + r] : 0.0f);
}

} // namespace
