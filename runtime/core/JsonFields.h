//===- JsonFields.h - typed, checked access to JSON objects -----------------------------------===//
//
// The first thing that is wrong is written down with its path, the rest is then of no interest:
// readers go on without tests and the caller looks once.
//
//===------------------------------------------------------------------------------------------===//
#ifndef KVPC_RUNTIME_JSONFIELDS_H
#define KVPC_RUNTIME_JSONFIELDS_H

#include "kvpc/Header.h"

#include <nlohmann/json.hpp>

namespace kvpc {
inline namespace runtime {

using Json = nlohmann::json;

/// False: not a value of the language.
bool valueOf(const Json &json, Value &out);

class Fields {
public:
  /// `json` is an object or is reported as not being one; `path` ends in a dot or is empty.
  Fields(const Json &json, std::string path, std::string &problem)
      : json(json), path(std::move(path)), problem(problem) {
    if (!json.is_object())
      fail("", "an object");
  }

  /// Notes that field `name` is not what is needed.
  void fail(const char *name, const std::string &need);

  const Json *find(const char *name) const;
  std::vector<std::string> names() const;

  // Absent or null: `out` stays as it is.
  void read(const char *name, std::string &out);
  void read(const char *name, bool &out);
  void read(const char *name, int64_t &out, int64_t min, int64_t max);
  void read(const char *name, std::optional<double> &out);
  void read(const char *name, std::vector<std::string> &out);
  void read(const char *name, std::vector<int64_t> &out);
  /// Must be there and not be empty.
  void need(const char *name, std::string &out);

  std::optional<Fields> object(const char *name);

  /// Calls read(Fields, T &) for every object of the list.
  template <class T, class Read>
  void list(const char *name, std::vector<T> &out, Read read) {
    const Json *items = find(name);
    if (!items || items->is_null())
      return;
    if (!items->is_array())
      return fail(name, "a list");
    for (size_t i = 0; i < items->size(); ++i)
      read(Fields((*items)[i], path + name + "[" + std::to_string(i) + "].", problem),
           out.emplace_back());
  }

private:
  const Json &json;
  std::string path;
  std::string &problem;
};

} // namespace runtime
} // namespace kvpc

#endif
