//===- Shape.cpp - the option --shape ---------------------------------------------------------===//
#include "lib/Driver/Shape.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/MathExtras.h"

using namespace kvpc;

std::optional<std::array<int64_t, 5>> driver::readShape(const llvm::opt::InputArgList &options) {
  std::vector<std::string> texts = options.getAllArgValues(OPT_shape_EQ);
  std::array<int64_t, 5> shape{};
  bool fits = texts.size() == shape.size();
  int64_t product = 1;
  for (size_t i = 0; fits && i < shape.size(); ++i)
    fits = !llvm::StringRef(texts[i]).getAsInteger(10, shape[i]) && shape[i] > 0 &&
           !llvm::MulOverflow(product, shape[i], product) && product <= (int64_t(1) << 34);
  if (fits)
    return shape;
  usageError(
      "`--shape=" + llvm::join(texts, ",") +
      "` is not five counts whose product is at most 2^34; need batch, heads, groups, tokens, "
      "channels, as in `--shape=1,8,4,4096,64`");
  return std::nullopt;
}
