//===- Select.cpp - the selection primitive alone ---------------------------------------------===//
#include "kvpc/Select.h"
#include "Target.h"
#include "kvpc/Module.h"
#include "lib/Target/CPU/Primitives/Primitives.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

using namespace kvpc;

Failure kvpc::runtime::select(SelectCall &call) {
  const Value &budget = call.budget;
  if (budget.kind == Value::Drop && !(budget.f >= 0 && budget.f < 1))
    return Error{ErrorCode::Parameter,
                 "`drop` is " + Value::ofFloat(budget.f).str() + "; need 0 <= drop < 1"};
  if (budget.kind == Value::Keep && budget.i < 1)
    return Error{ErrorCode::Parameter,
                 "`keep` is " + std::to_string(budget.i) + "; need 1 or more"};
  if (budget.kind != Value::Drop && budget.kind != Value::Keep)
    return Error{ErrorCode::Parameter, "no budget is given; need `drop` or `keep`"};
  if (call.tokens < 1 || call.tokens > INT32_MAX)
    return Error{ErrorCode::Shape, "scores have " + std::to_string(call.tokens) +
                                       " entries; need at least one, and below 2^31"};
  if (machineLevel() == Level::None)
    return Error{ErrorCode::Target, "this machine does not run x86-64-v3, which selection needs"};

  call.kept = call.rows ? 0 : keptOf(budget, call.tokens);
  for (int64_t row = 0; row < call.rows; ++row) {
    int64_t start = call.start ? call.start[row] : 0;
    int64_t length = call.length ? call.length[row] : call.tokens;
    if (start < 0 || length < 0 || start > call.tokens || length > call.tokens - start)
      return Error{ErrorCode::Shape, "`lengths` has " + std::to_string(length) + " in row " +
                                         std::to_string(row) + "; need 0.." +
                                         std::to_string(call.tokens)};
    call.kept = std::max(call.kept, keptOf(budget, length));
  }
  if (!call.out)
    return {};

  // Scratch, then one row of ids.
  int64_t scratchBytes = (kvpc_prim_select_scratch(call.tokens) + 63) / 64 * 64;
  int64_t bytes = scratchBytes + (call.kept * 4 + 63) / 64 * 64;
  std::unique_ptr<uint8_t, decltype(&std::free)> memory(
      static_cast<uint8_t *>(std::aligned_alloc(64, size_t(std::max<int64_t>(bytes, 64)))),
      &std::free);
  if (!memory)
    return Error{ErrorCode::Memory,
                 "cannot allocate " + std::to_string(bytes) + " bytes of workspace"};
  auto *ids = reinterpret_cast<int32_t *>(memory.get() + scratchBytes);
  for (int64_t row = 0; row < call.rows; ++row) {
    int64_t start = call.start ? call.start[row] : 0;
    int64_t length = call.length ? call.length[row] : call.tokens;
    const uint8_t *isProtected =
        call.isProtected ? call.isProtected + row * call.tokens + start : nullptr;
    int64_t count = kvpc_prim_select(call.scores + row * call.stride + start, isProtected, nullptr,
                                     length, keptOf(budget, length), ids, memory.get());
    for (int64_t n = 0; n < call.kept; ++n)
      call.out[row * call.kept + n] = n < count ? ids[n] + start : -1;
    if (call.counts)
      call.counts[row] = count;
  }
  return {};
}
