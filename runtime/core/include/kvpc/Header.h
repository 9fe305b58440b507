//===- Header.h - what a module says of itself ------------------------------------------------===//
//
// A module (.kvm) is an ELF shared object with a section `.kvpc`: a fixed prefix, a JSON text and
// the program as MLIR bytecode. All of it is read here without loading any code, and nothing in it
// is trusted: every offset is checked, and every field that the runtime uses has its type and
// range checked once, so that the rest of the runtime need not.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_HEADER_H
#define KVPC_HEADER_H

#include "kvpc/Result.h"
#include "kvpc/abi.h"

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvpc {
inline namespace runtime {

using Bytes = std::span<const uint8_t>;

constexpr uint32_t formatMajor = 1;

/// An argument or a default: what a caller can write.
struct Value {
  enum Kind { None, Bool, Int, Float, Text, Drop, Keep, List };
  Kind kind = None;
  int64_t i = 0;            // Bool, Int, Keep
  double f = 0;             // Float, Drop
  std::string text;         // Text: source text of the language
  std::vector<Value> items; // List: one value a layer

  static Value ofInt(int64_t n);
  static Value ofFloat(double x);
  static Value ofBool(bool b);
  static Value drop(double ratio);
  static Value keep(int64_t count);

  /// As the language writes it: `drop(0.5)`, `64`, `true`.
  std::string str() const;
};

/// How much of an input a press needs.
struct Amount {
  static constexpr int64_t all = -1;
  int64_t count = 0; // last queries of a row, or `all`; 0: not needed

  explicit operator bool() const { return count != 0; }
  std::string str() const;
};

struct Parameter {
  std::string name, type, doc;
  bool isStatic = false;
  Value fallback; // the default; None: must be given
  Value value;    // what a static parameter was fixed to
  std::optional<double> min, max;
  std::vector<std::string> axes; // of a tensor parameter, `layer` included
};

struct Weight {
  std::string name;
  std::vector<std::string> axes; // at one layer
  bool layered = false;
};

struct Inputs {
  Amount queries, unrotatedQueries, hidden;
  bool outputWeight = false, rope = false, originalPositions = false;
};

struct Variant {
  kvpc_dtype dtype;
  int64_t channels; // 0: any
  size_t target;    // index into Header::targets
  std::string plan, run;
};

struct PressHeader {
  std::string name, doc, kind;
  std::vector<Parameter> parameters;
  std::vector<std::string> runtime; // order of kvpc_call.parameters
  std::vector<Weight> weights;      // order of kvpc_call.weights
  Inputs inputs;
  bool uniform = false, ragged = false, dataCounts = false;
  bool dropsChannels = false, dropsTokens = true;
  bool equalChannels = false;   // keys and values must have as many channels
  bool sharedPositions = false; // original positions must be the same for all heads
  int64_t reuse = 0;            // layers that share one choice; 0: each chooses
  std::vector<std::string> leaderInputs;
  std::optional<std::vector<std::string>> scoreAxes;
  std::vector<std::pair<std::string, int64_t>> scoreExtents;
  std::vector<std::pair<std::string, std::string>> locations;
  std::vector<Variant> variants;

  const Parameter *parameter(std::string_view name) const;
  /// Where the program uses an input, as ` (used at file:line:col)`, or nothing.
  std::string usedAt(std::string_view input) const;
};

struct Header {
  std::string compiler, source, sourceDigest, optimization;
  uint32_t major = 0, minor = 0;
  std::vector<std::string> dtypes, targets;
  std::vector<int64_t> channels;
  std::vector<PressHeader> presses;
  std::string json; // all of it, as written
  Bytes bytecode;   // of the file's bytes

  /// "`a`, `b`"
  std::string pressNames() const;
};

/// The section `.kvpc` of an ELF file, after checks that the file is whole, is for this kind of
/// machine, needs no library and runs nothing when loaded.
Result<Bytes> findSection(Bytes file);

Result<Header> parseSection(Bytes section);

/// Both; `name` is used in messages only.
Result<Header> readHeader(Bytes file, std::string_view name);

/// The header's JSON of a module file. Loads no code.
Result<std::string> inspect(const std::string &path);

Result<std::vector<uint8_t>> readFile(const std::string &path);

/// Arguments by name, as a JSON object: numbers, booleans, {"drop": r}, {"keep": n}, "inf", "-inf",
/// "nan", and lists of numbers.
Result<std::vector<std::pair<std::string, Value>>> parseArguments(std::string_view json);

std::string_view dtypeName(kvpc_dtype dtype);
/// "`f32`, `bf16`"
std::string quoteList(const std::vector<std::string> &names);
/// The nearest of `names`, if it is near enough for "did you mean".
std::string nearest(std::string_view name, const std::vector<std::string> &names);

} // namespace runtime
} // namespace kvpc

#endif
