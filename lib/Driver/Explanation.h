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
  enum {
    Call,
    Task,
    Thread
  } per; ///< room for all rows and heads, each task in flight, each thread
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
  int64_t floorFlops = 0;                  ///< every value of the program once
  int64_t threadWorkspace = 0;             ///< bytes of tiles, in the pass that holds most
  int64_t widestTask = 0; ///< bytes that a task holds for itself, in the tasks that hold most
  std::string choice;     ///< of several plans, why this one

  int64_t passes() const;
  int64_t reads() const;
  int64_t writes() const;
  int64_t flops() const;
  int64_t callWorkspace() const;
  int64_t taskWorkspace() const;
  /// Of the bytes of keys and values, what is left.
  double keptShare() const;
};

/// `program`: the press in the form that the plan is made of.
Explanation explain(kvplan::PipelineOp pipeline, kvp::PressOp press, kvp::PressOp program,
                    const CostShape &shape);

void print(const Explanation &explanation, llvm::raw_ostream &os);
llvm::json::Value toJson(const Explanation &explanation);

} // namespace kvpc::driver

#endif
