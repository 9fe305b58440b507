//===- Explanation.h - what a plan does, and what it costs ------------------------------------===//
#ifndef KVPC_DRIVER_EXPLANATION_H
#define KVPC_DRIVER_EXPLANATION_H

#include "lib/Driver/PlanCosts.h"

#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

#include <set>
#include <string>
#include <vector>

namespace kvpc::driver {

/// Bytes that move between memory and a step, over the whole call.
struct Traffic {
  std::string what; ///< `keys`, or the name of a buffer
  int64_t bytes;
};

struct Step {
  std::string kind;              ///< pass, small, order, select, filter, compact
  std::string space;             ///< head or batch: what one task works for; "" outside tasks
  std::string over;              ///< axis of a pass
  std::vector<std::string> work; ///< what happens in it, in order
  std::vector<Traffic> reads, writes;
  int64_t flops = 0;
  int64_t queries = 0; ///< taken at a time, block after block; 0: no blocks
};

struct HeldBuffer {
  std::string name, type, why;
  bool perCall; ///< room for all rows and heads, else for each task in flight
  int64_t bytes;
};

/// One press.
struct Explanation {
  std::string press;
  CostShape shape;
  std::vector<Step> steps;
  std::vector<HeldBuffer> buffers;
  std::set<std::string> primitives;
  std::vector<std::string> dataCounts; ///< places where counts depend on data
  StateSize kept{};
  int64_t floorReads = 0, floorWrites = 0; ///< every input and output once

  int64_t passes() const;
  int64_t reads() const;
  int64_t writes() const;
  int64_t flops() const;
  int64_t callWorkspace() const;
  int64_t taskWorkspace() const;
  /// Of the bytes of keys and values, what is left.
  double keptShare() const;
};

Explanation explain(kvplan::PipelineOp pipeline, kvp::PressOp press, const CostShape &shape);

void print(const Explanation &explanation, llvm::raw_ostream &os);
llvm::json::Value toJson(const Explanation &explanation);

} // namespace kvpc::driver

#endif
