//===- ExplanationText.cpp - an explanation as text and as JSON -------------------------------===//
#include "lib/Driver/Explanation.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"

using namespace kvpc;
using namespace kvpc::driver;
namespace json = llvm::json;

/// 2.0 MiB
static std::string bytes(int64_t n) {
  const char *units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double x = n;
  int unit = 0;
  for (; x >= 1024 && unit < 4; ++unit)
    x /= 1024;
  return unit ? llvm::formatv("{0:f1} {1}", x, units[unit]).str() : llvm::formatv("{0} B", n).str();
}

static std::string list(const std::vector<Traffic> &traffic) {
  return llvm::join(
      llvm::map_range(traffic, [](const Traffic &t) { return t.what + " " + bytes(t.bytes); }),
      ", ");
}

static llvm::StringRef perOf(const HeldBuffer &buffer) {
  return buffer.per == HeldBuffer::Call   ? "a call"
         : buffer.per == HeldBuffer::Task ? "a task in flight"
                                          : "a thread";
}

static void printStep(const Step &step, llvm::raw_ostream &os) {
  os << "  " << step.kind;
  if (!step.over.empty())
    os << " over " << step.over;
  if (!step.space.empty())
    os << " for each " << (step.space == "head" ? "head" : "row");
  if (step.queries)
    os << ", " << step.queries << " queries at a time";
  os << ": " << (step.work.empty() ? "copy" : llvm::join(step.work, "; ")) << "\n";
  if (!step.reads.empty())
    os << "      reads " << list(step.reads) << "\n";
  if (!step.writes.empty())
    os << "      writes " << list(step.writes) << "\n";
}

void driver::print(const Explanation &e, llvm::raw_ostream &os) {
  const CostShape &s = e.shape;
  os << llvm::formatv(
      "press {0}, at {1} row{2} of {3} heads with {4} queries each, {5} tokens, {6} "
      "channels of {7} bytes\n",
      e.press, s.batch, s.batch == 1 ? "" : "s", s.heads, s.groups, s.tokens, s.channels,
      s.storageBytes);
  for (const Step &step : e.steps)
    printStep(step, os);
  if (!e.buffers.empty())
    os << "  held between steps\n";
  for (const HeldBuffer &buffer : e.buffers)
    os << "      " << buffer.name << " " << buffer.type << ", " << bytes(buffer.bytes) << " "
       << perOf(buffer) << ": " << buffer.why << "\n";
  os << llvm::formatv("  in all {0} pass{1}; {2} read, {3} written, {4:f2} Gflop\n", e.passes(),
                      e.passes() == 1 ? "" : "es", bytes(e.reads()), bytes(e.writes()),
                      e.flops() / 1e9);
  os << "  floor " << bytes(e.floorReads) << " read, " << bytes(e.floorWrites)
     << " written: every input and output once; "
     << llvm::formatv("{0:f2} Gflop: every value of the program once\n", e.floorFlops / 1e9);
  os << "  workspace " << bytes(e.callWorkspace()) << " a call and " << bytes(e.taskWorkspace())
     << " a task in flight";
  if (e.threadWorkspace)
    os << ", " << bytes(e.threadWorkspace) << " a thread";
  os << "\n";
  if (!e.choice.empty())
    os << "  " << e.choice << "\n";
  os << llvm::formatv("  keeps {0} of {1} tokens and {2} of {3} key channels: {4:p1} of the "
                      "cache's bytes\n",
                      e.kept.tokens, s.tokens, e.kept.channels, s.channels, e.keptShare());
  os << "  hand-written primitives: " << llvm::join(e.primitives, ", ") << "\n";
  if (e.dataCounts.empty())
    os << "  sizes follow from shapes and arguments alone\n";
  for (const std::string &place : e.dataCounts)
    os << "  counts depend on data: " << place << "\n";
}

static json::Array trafficJson(const std::vector<Traffic> &traffic) {
  json::Array out;
  for (const Traffic &one : traffic)
    out.push_back(json::Object{{"what", one.what}, {"bytes", one.bytes}});
  return out;
}

json::Value driver::toJson(const Explanation &e) {
  json::Array steps, buffers;
  for (const Step &step : e.steps)
    steps.push_back(json::Object{{"kind", step.kind},
                                 {"space", step.space},
                                 {"over", step.over},
                                 {"queries", step.queries},
                                 {"work", json::Array(step.work)},
                                 {"reads", trafficJson(step.reads)},
                                 {"writes", trafficJson(step.writes)},
                                 {"flops", step.flops}});
  for (const HeldBuffer &buffer : e.buffers)
    buffers.push_back(json::Object{{"name", buffer.name},
                                   {"type", buffer.type},
                                   {"why", buffer.why},
                                   {"per", perOf(buffer).split(' ').second.split(' ').first},
                                   {"bytes", buffer.bytes}});
  return json::Object{
      {"press", e.press},
      {"shape", json::Object{{"batch", e.shape.batch},
                             {"heads", e.shape.heads},
                             {"groups", e.shape.groups},
                             {"tokens", e.shape.tokens},
                             {"channels", e.shape.channels},
                             {"element_bytes", e.shape.storageBytes}}},
      {"steps", std::move(steps)},
      {"buffers", std::move(buffers)},
      {"passes", e.passes()},
      {"bytes_read", e.reads()},
      {"bytes_written", e.writes()},
      {"flops", e.flops()},
      {"floor_bytes_read", e.floorReads},
      {"floor_bytes_written", e.floorWrites},
      {"floor_flops", e.floorFlops},
      {"workspace_call_bytes", e.callWorkspace()},
      {"workspace_task_bytes", e.taskWorkspace()},
      {"workspace_thread_bytes", e.threadWorkspace},
      {"choice", e.choice},
      {"kept_tokens", e.kept.tokens},
      {"kept_channels", e.kept.channels},
      {"kept_share", e.keptShare()},
      {"primitives", json::Array(e.primitives)},
      {"data_counts", json::Array(e.dataCounts)},
  };
}
