//===- Summary.h - what a host must know of a press -------------------------------------------===//
//
// Read off the kvp program: which inputs it uses and how much of each, whether one selection serves
// all heads, where counts depend on data, what it drops, what layers share.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_MODULE_SUMMARY_H
#define KVPC_MODULE_SUMMARY_H

#include "dialect/IR/Kvp.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace kvpc {

struct PressSummary {
  static constexpr int64_t kAll = -1;

  /// Non-static parameters, split as the block's arguments are: host scalars and budgets, then
  /// tensors.
  std::vector<std::string> runtime;
  struct Weight {
    std::string name;
    std::vector<std::string> axes; // without `layer`
    bool layered = false;
  };
  std::vector<Weight> weights;

  /// By name; queries, unrotated_queries and hidden with how many of a row's last are read, or
  /// kAll; the others with kAll.
  std::map<std::string, int64_t> inputs;
  /// Inputs that only a layer that chooses needs.
  std::vector<std::string> leaderInputs;
  /// `file:line:column` of the first use of an input.
  std::map<std::string, std::string> locations;

  bool uniform = true;     ///< one selection of tokens for all heads
  bool ragged = false;     ///< heads may keep different counts
  bool dataCounts = false; ///< counts depend on data
  bool dropsTokens = false;
  bool dropsChannels = false;
  bool equalChannels = false;   ///< keys' and values' channels meet, and so must be as many
  bool sharedPositions = false; ///< a token's original position is read as that of all heads
  int64_t reuse = 0;            ///< layers that share one choice, 0: none do
  std::optional<std::vector<std::string>> scoreAxes; ///< of the returned score
  std::optional<int64_t> partSize;                   ///< tokens of one entry of axis `part`
};

PressSummary summarize(kvp::PressOp press);

/// `file:line:column`, or "" where the location has none.
std::string placeOf(mlir::Location location);

} // namespace kvpc

#endif
