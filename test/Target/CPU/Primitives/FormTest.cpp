#include "Data.h"
#include "kvpc/abi.h"
#include <gtest/gtest.h>

using namespace kvpc::test;

namespace {

/// Keys, and matrices of no symmetry, as the storage types round them.
struct FormProblem {
  int64_t dtype, channels, forms, keyStride, total;
  std::vector<float> k, m;
  std::vector<uint16_t> halves;

  FormProblem(int64_t dtype, int64_t channels, int64_t forms, int64_t total, int64_t gap)
      : dtype(dtype), channels(channels), forms(forms), keyStride(channels + gap), total(total),
        k(scores("normal", total * keyStride, 7)),
        m(scores("normal", forms * channels * channels, 3)) {
    for (float &x : k) {
      if (dtype == KVPC_F32)
        continue;
      halves.push_back(dtype == KVPC_BF16 ? toBf16(x) : toF16(x));
      x = dtype == KVPC_BF16 ? fromBf16(halves.back()) : fromF16(halves.back());
    }
  }

  bool pairs() const {
    return kvpc_prim_panel_bytes(dtype, channels, 1) != channels * kvpc_prim_panel_rows() * 4;
  }

  /// `turned`: rows and columns of the matrices exchanged, which changes no form.
  std::vector<float> form(const std::vector<int32_t> *ids, int64_t tokens, int64_t parts,
                          int64_t outStride, bool turned = false) const {
    int64_t bytes = kvpc_prim_form_bytes(dtype, channels, parts);
    Guarded<uint8_t> panels(forms * bytes);
    for (int64_t f = 0; f < forms; ++f)
      kvpc_prim_pack_form(&m[f * channels * channels], turned ? 1 : channels, turned ? channels : 1,
                          channels, dtype, parts, panels.data() + f * bytes);
    EXPECT_TRUE(panels.intact());
    int64_t size = tokens ? (tokens - 1) * outStride + forms : 0;
    Guarded<float> out(size, -1.0f);
    const int32_t *list = ids ? ids->data() : nullptr;
    if (dtype == KVPC_F32)
      kvpc_prim_form_f32(k.data(), keyStride, list, tokens, channels, panels.data(), forms,
                         out.data(), outStride);
    else if (dtype == KVPC_BF16)
      kvpc_prim_form_bf16(halves.data(), keyStride, list, tokens, channels, panels.data(), parts,
                          forms, out.data(), outStride);
    else
      kvpc_prim_form_f16(halves.data(), keyStride, list, tokens, channels, panels.data(), forms,
                         out.data(), outStride);
    EXPECT_TRUE(out.intact());
    return out.first(size);
  }
};

void expectForm(int64_t dtype, int64_t channels, int64_t forms, int64_t tokens, bool byIds) {
  FormProblem p(dtype, channels, forms, 2 * tokens + 3, channels % 3);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t)
    ids.push_back(int32_t(2 * t + (t > 4)));
  int64_t stride = forms + channels % 2;
  std::vector<float> out = p.form(byIds ? &ids : nullptr, tokens, 2, stride);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t f = 0; f < forms; ++f) {
      const float *key = &p.k[(byIds ? ids[t] : t) * p.keyStride];
      double exact = 0, size = 0;
      for (int64_t a = 0; a < channels; ++a)
        for (int64_t b = 0; b < channels; ++b) {
          double product = double(key[a]) * p.m[(f * channels + a) * channels + b] * key[b];
          exact += product;
          size += std::abs(product);
        }
      // f32 sums of up to `channels` numbers; matrices in two parts keep 16 bits.
      double bound = p.pairs() ? 0x1p-16 : 2e-7;
      ASSERT_NEAR(out[t * stride + f], exact, bound * size + 1e-30) << "t " << t << " f " << f;
    }
}

TEST(Form, EveryDtypeShapeAndStride) {
  for (int64_t dtype : {KVPC_F32, KVPC_BF16, KVPC_F16})
    for (int64_t channels : {1, 2, 7, 16, 64, 66, 80, 96, 128, 136})
      for (int64_t forms : {1, 3})
        for (int64_t tokens : {0, 1, 5, 6, 13, 127})
          for (bool byIds : {false, true}) {
            expectForm(dtype, channels, forms, tokens, byIds);
            if (HasFatalFailure()) {
              ADD_FAILURE() << "dtype " << dtype << " channels " << channels << " forms " << forms
                            << " tokens " << tokens << " ids " << byIds;
              return;
            }
          }
}

TEST(Form, MoreChannelsThanABlockOfWidenedKeysHolds) {
  for (int64_t dtype : {KVPC_F32, KVPC_BF16, KVPC_F16})
    expectForm(dtype, 801, 1, 3, false);
}

TEST(Form, ATokenDoesNotDependOnItsTile) {
  for (int64_t dtype : {KVPC_F32, KVPC_BF16, KVPC_F16}) {
    FormProblem p(dtype, 80, 2, 300, 0);
    std::vector<float> all = p.form(nullptr, 300, 2, 2);
    for (int64_t t = 0; t < 300; t += 7) {
      std::vector<int32_t> one = {int32_t(t)};
      std::vector<float> alone = p.form(&one, 1, 2, 2);
      ASSERT_EQ(std::memcmp(alone.data(), &all[t * 2], 8), 0) << "token " << t;
    }
  }
}

TEST(Form, AMatrixAndItsTransposeAreOneForm) {
  FormProblem p(KVPC_F32, 96, 2, 40, 0);
  std::vector<float> one = p.form(nullptr, 40, 1, 2), other = p.form(nullptr, 40, 1, 2, true);
  ASSERT_EQ(std::memcmp(one.data(), other.data(), one.size() * 4), 0);
}

} // namespace
