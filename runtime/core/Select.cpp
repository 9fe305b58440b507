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

namespace {

int64_t roundUp(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Shares {
  const SelectCall &call;
  int64_t count;
  int64_t scratchBytes = 0, bytes = 0;
  uint8_t *memory = nullptr;
};

/// A kvpc_body over shares of the rows.
void selectShares(void *context, int64_t begin, int64_t end) {
  const Shares &shares = *static_cast<const Shares *>(context);
  const SelectCall &call = shares.call;
  for (int64_t share = begin; share < end; ++share) {
    uint8_t *scratch = shares.memory + share * shares.bytes;
    auto *ids = reinterpret_cast<int32_t *>(scratch + shares.scratchBytes);
    int64_t last = (share + 1) * call.rows / shares.count;
    for (int64_t row = share * call.rows / shares.count; row < last; ++row) {
      int64_t start = call.start ? call.start[row] : 0;
      int64_t length = call.length ? call.length[row] : call.tokens;
      const uint8_t *isProtected =
          call.isProtected ? call.isProtected + row * call.tokens + start : nullptr;
      int64_t count = kvpc_prim_select(call.scores + row * call.stride + start, isProtected,
                                       nullptr, length, keptOf(call.budget, length), ids, scratch);
      int64_t *out = call.out + row * call.kept;
      for (int64_t n = 0; n < count; ++n)
        out[n] = ids[n] + start;
      std::fill(out + count, out + call.kept, int64_t(-1));
      if (call.counts)
        call.counts[row] = count;
    }
  }
}

} // namespace

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

  // Each share of the rows has scratch, then one row of ids.
  int64_t most = call.parallelFor ? std::min(call.threads, call.rows) : 1;
  Shares shares{call, std::max<int64_t>(most, 1)};
  shares.scratchBytes = roundUp(kvpc_prim_select_scratch(call.tokens));
  shares.bytes = shares.scratchBytes + roundUp(call.kept * 4);
  int64_t bytes = std::max<int64_t>(shares.count * shares.bytes, 64);
  std::unique_ptr<uint8_t, decltype(&std::free)> memory(
      static_cast<uint8_t *>(std::aligned_alloc(64, size_t(bytes))), &std::free);
  if (!memory)
    return Error{ErrorCode::Memory,
                 "cannot allocate " + std::to_string(bytes) + " bytes of workspace"};
  shares.memory = memory.get();
  if (shares.count > 1)
    call.parallelFor(call.parallelContext, selectShares, &shares, shares.count);
  else
    selectShares(&shares, 0, 1);
  return {};
}
