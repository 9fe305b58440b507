//===- Header.cpp - the section `.kvpc` and its JSON ------------------------------------------===//
#include "kvpc/Header.h"
#include "JsonFields.h"
#include "Sha256.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

using namespace kvpc;

namespace {

constexpr char magic[8] = {'K', 'V', 'P', 'C', 'M', 'O', 'D', '\n'};
constexpr size_t prefixSize = 88;
/// No real header is near it; bounds what the JSON parser may allocate.
constexpr uint64_t maxJsonSize = 64 << 20;
/// Of any extent in a header: far above every model, far below an overflow of products.
constexpr int64_t maxExtent = int64_t(1) << 31;

uint64_t littleEndian(const uint8_t *bytes, int count) {
  uint64_t out = 0;
  for (int i = 0; i < count; ++i)
    out |= uint64_t(bytes[i]) << 8 * i;
  return out;
}

void readValue(Fields &fields, const char *name, Value &out) {
  const Json *json = fields.find(name);
  if (!json || json->is_null())
    return;
  if (!valueOf(*json, out))
    fields.fail(name, "a value");
}

void readParameter(Fields fields, Parameter &out) {
  fields.need("name", out.name);
  fields.need("type", out.type);
  fields.read("doc", out.doc);
  fields.read("static", out.isStatic);
  fields.read("axes", out.axes);
  fields.read("min", out.min);
  fields.read("max", out.max);
  readValue(fields, "default", out.fallback);
  readValue(fields, "value", out.value);
}

void readAmount(Fields &fields, const char *name, Amount &out) {
  const Json *json = fields.find(name);
  if (!json || json->is_null())
    return;
  if (json->is_boolean())
    out.count = json->get<bool>() ? Amount::all : 0;
  else if (json->is_string() && json->get_ref<const std::string &>() == "all")
    out.count = Amount::all;
  else
    fields.read(name, out.count, 0, maxExtent);
}

void readInputs(Fields fields, Inputs &out) {
  readAmount(fields, "queries", out.queries);
  readAmount(fields, "unrotated_queries", out.unrotatedQueries);
  readAmount(fields, "hidden", out.hidden);
  fields.read("output_weight", out.outputWeight);
  fields.read("rope", out.rope);
  fields.read("original_positions", out.originalPositions);
}

bool isSymbol(const std::string &name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '.' || c == '$';
  });
}

void readVariant(Fields fields, const Header &header, Variant &out) {
  std::string dtype;
  int64_t target = 0;
  fields.need("dtype", dtype);
  fields.read("channels", out.channels, 0, maxExtent);
  fields.read("target", target, 0, int64_t(header.targets.size()) - 1);
  fields.need("plan", out.plan);
  fields.need("run", out.run);
  out.target = size_t(target);
  if (header.targets.empty())
    fields.fail("target", "one of the module's `targets`, which are none");
  if (dtype == "f32")
    out.dtype = KVPC_F32;
  else if (dtype == "bf16")
    out.dtype = KVPC_BF16;
  else if (dtype == "f16")
    out.dtype = KVPC_F16;
  else
    fields.fail("dtype", "`f32`, `bf16` or `f16`");
  if (!isSymbol(out.plan) || !isSymbol(out.run))
    fields.fail("plan", "the name of a symbol");
}

void readPress(Fields fields, const Header &header, PressHeader &out) {
  fields.need("name", out.name);
  fields.read("doc", out.doc);
  fields.read("kind", out.kind);
  fields.list("parameters", out.parameters, readParameter);
  fields.read("runtime", out.runtime);
  fields.list("weights", out.weights, [](Fields weight, Weight &to) {
    weight.need("name", to.name);
    weight.read("axes", to.axes);
    weight.read("layered", to.layered);
  });
  if (auto inputs = fields.object("inputs"))
    readInputs(*inputs, out.inputs);
  fields.read("uniform", out.uniform);
  fields.read("ragged", out.ragged);
  fields.read("data_counts", out.dataCounts);
  fields.read("drops_channels", out.dropsChannels);
  fields.read("drops_tokens", out.dropsTokens);
  fields.read("equal_channels", out.equalChannels);
  fields.read("shared_positions", out.sharedPositions);
  fields.read("reuse", out.reuse, 0, maxExtent);
  fields.read("leader_inputs", out.leaderInputs);
  if (const Json *axes = fields.find("score_axes"); axes && !axes->is_null())
    fields.read("score_axes", out.scoreAxes.emplace());
  if (auto extents = fields.object("score_extent"))
    for (const std::string &axis : extents->names()) {
      int64_t extent = 1;
      extents->read(axis.c_str(), extent, 1, maxExtent);
      out.scoreExtents.emplace_back(axis, extent);
    }
  if (auto locations = fields.object("locations"))
    for (const std::string &input : locations->names()) {
      std::string where;
      locations->read(input.c_str(), where);
      out.locations.emplace_back(input, where);
    }
  fields.list("variants", out.variants,
              [&](Fields variant, Variant &to) { readVariant(variant, header, to); });
  for (const std::string &name : out.runtime)
    if (!out.parameter(name))
      fields.fail("runtime", "names of parameters");
  for (const Weight &weight : out.weights)
    if (!out.parameter(weight.name) || weight.axes.size() > 5)
      fields.fail("weights", "parameters with at most 5 axes");
  if (out.scoreAxes && out.scoreAxes->size() > 4)
    fields.fail("score_axes", "at most 4 axes");
}

} // namespace

const Parameter *PressHeader::parameter(std::string_view name) const {
  for (const Parameter &parameter : parameters)
    if (parameter.name == name)
      return &parameter;
  return nullptr;
}

std::string PressHeader::usedAt(std::string_view input) const {
  for (auto &[name, where] : locations)
    if (name == input && !where.empty())
      return " (used at " + where + ")";
  return "";
}

std::string Header::pressNames() const {
  std::vector<std::string> names;
  for (const PressHeader &press : presses)
    names.push_back(press.name);
  return quoteList(names);
}

Result<Header> kvpc::runtime::parseSection(Bytes section) {
  auto damaged = [](std::string what) {
    return Error{ErrorCode::Damaged,
                 "the module's header " + std::move(what) + "; copy or compile it again"};
  };
  if (section.size() < sizeof magic || std::memcmp(section.data(), magic, sizeof magic) != 0)
    return Error{ErrorCode::NotAModule, "the section `.kvpc` does not start with `KVPCMOD`; need a "
                                        "module (.kvm) written by `kvpc compile`"};
  if (section.size() < prefixSize)
    return damaged("ends after " + std::to_string(section.size()) + " bytes");
  const uint8_t *at = section.data();
  Header header;
  header.major = uint32_t(littleEndian(at + 8, 4));
  header.minor = uint32_t(littleEndian(at + 12, 4));
  if (header.major != formatMajor)
    return Error{ErrorCode::Format,
                 "the module has format " + std::to_string(header.major) + "." +
                     std::to_string(header.minor) + "; this runtime reads format " +
                     std::to_string(formatMajor) + "; " +
                     (header.major > formatMajor ? "update the runtime, or compile the press again "
                                                   "with the `kvpc` that belongs to it"
                                                 : "compile the press again")};
  uint64_t size = littleEndian(at + 16, 8);
  uint64_t jsonAt = littleEndian(at + 24, 8), jsonSize = littleEndian(at + 32, 8);
  uint64_t codeAt = littleEndian(at + 40, 8), codeSize = littleEndian(at + 48, 8);
  if (size > section.size())
    return Error{ErrorCode::Truncated, "the module's header has " + std::to_string(section.size()) +
                                           " bytes of " + std::to_string(size) +
                                           "; copy or compile it again"};
  auto inside = [&](uint64_t from, uint64_t length) {
    return from >= prefixSize && from <= size && length <= size - from;
  };
  if (!inside(jsonAt, jsonSize) || jsonSize > maxJsonSize || !inside(codeAt, codeSize))
    return damaged("points outside itself");
  Bytes json = section.subspan(jsonAt, jsonSize);
  header.bytecode = section.subspan(codeAt, codeSize);
  std::vector<uint8_t> both(json.begin(), json.end());
  both.insert(both.end(), header.bytecode.begin(), header.bytecode.end());
  if (auto digest = sha256(both); std::memcmp(digest.data(), at + 56, digest.size()) != 0)
    return damaged("does not have the digest it states");

  header.json.assign(json.begin(), json.end());
  // Third argument: no callback; fourth: no exceptions.
  Json root = Json::parse(header.json, nullptr, false);
  if (!root.is_object())
    return damaged("is not a JSON object");
  std::string problem;
  Fields fields(root, "", problem);
  int64_t abi = 0;
  fields.need("compiler", header.compiler);
  fields.read("abi", abi, 0, maxExtent);
  if (problem.empty() && abi != KVPC_ABI_VERSION)
    return Error{ErrorCode::Format, "the module has binary interface " + std::to_string(abi) +
                                        " (" + header.compiler + "); this runtime has " +
                                        std::to_string(KVPC_ABI_VERSION) +
                                        "; compile the press with the `kvpc` that belongs to the "
                                        "runtime"};
  fields.read("optimization", header.optimization);
  fields.read("source", header.source);
  fields.read("source_digest", header.sourceDigest);
  fields.read("dtypes", header.dtypes);
  fields.read("channels", header.channels);
  fields.read("targets", header.targets);
  fields.list("presses", header.presses,
              [&](Fields press, PressHeader &to) { readPress(press, header, to); });
  if (!problem.empty())
    return damaged(problem);
  if (header.presses.empty())
    return damaged("lists no press");
  return header;
}

Result<Header> kvpc::runtime::readHeader(Bytes file, std::string_view name) {
  auto named = [&](const Error &error) {
    return Error{error.code, "`" + std::string(name) + "`: " + error.message};
  };
  auto section = findSection(file);
  if (!section)
    return named(section.error());
  auto header = parseSection(*section);
  if (!header)
    return named(header.error());
  return header;
}

Result<std::vector<uint8_t>> kvpc::runtime::readFile(const std::string &path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  auto size = in ? std::streamoff(in.tellg()) : -1;
  // A folder opens, and tells a size that is no size.
  if (size < 0 || size > (int64_t(1) << 32)) {
    std::error_code unused;
    bool folder = std::filesystem::is_directory(path, unused);
    return Error{ErrorCode::File, "cannot read `" + path + "`: " +
                                      std::strerror(folder ? EISDIR
                                                    : in   ? EFBIG
                                                           : errno) +
                                      "; give the path of a module (.kvm)"};
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  if (!in.seekg(0) || !in.read(reinterpret_cast<char *>(bytes.data()), size))
    return Error{ErrorCode::File, "cannot read `" + path + "`; give the path of a module (.kvm)"};
  return bytes;
}

Result<std::string> kvpc::runtime::inspect(const std::string &path) {
  auto file = readFile(path);
  if (!file)
    return file.error();
  auto header = readHeader(*file, path);
  if (!header)
    return header.error();
  return std::move(header->json);
}

std::string_view kvpc::runtime::dtypeName(kvpc_dtype dtype) {
  return dtype == KVPC_F32 ? "f32" : dtype == KVPC_BF16 ? "bf16" : "f16";
}

std::string kvpc::runtime::quoteList(const std::vector<std::string> &names) {
  std::string out;
  for (const std::string &name : names)
    out += (out.empty() ? "`" : ", `") + name + "`";
  return out.empty() ? "none" : out;
}

/// By Levenshtein distance, at most a third of the letters.
std::string kvpc::runtime::nearest(std::string_view name, const std::vector<std::string> &names) {
  size_t best = (name.size() + 2) / 3 + 1;
  std::string out;
  for (const std::string &other : names) {
    std::vector<size_t> row(other.size() + 1);
    std::iota(row.begin(), row.end(), 0);
    for (size_t i = 1; i <= name.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= other.size(); ++j) {
        size_t next =
            std::min({row[j] + 1, row[j - 1] + 1, diagonal + (name[i - 1] != other[j - 1])});
        diagonal = std::exchange(row[j], next);
      }
    }
    if (row.back() < best) {
      best = row.back();
      out = other;
    }
  }
  return out;
}
