//===- JsonFields.cpp - typed, checked access to JSON objects ---------------------------------===//
#include "JsonFields.h"

#include <cmath>
#include <limits>

using namespace kvpc;

void Fields::fail(const char *name, const std::string &need) {
  if (problem.empty())
    problem = "has a wrong field `" + path + name + "`, which must be " + need;
}

const Json *Fields::find(const char *name) const {
  if (!json.is_object())
    return nullptr;
  auto it = json.find(name);
  return it == json.end() ? nullptr : &*it;
}

std::vector<std::string> Fields::names() const {
  std::vector<std::string> out;
  if (json.is_object())
    for (auto it = json.begin(); it != json.end(); ++it)
      out.push_back(it.key());
  return out;
}

void Fields::read(const char *name, std::string &out) {
  const Json *field = find(name);
  if (!field || field->is_null())
    return;
  if (!field->is_string())
    return fail(name, "a text");
  out = field->get_ref<const std::string &>();
}

void Fields::read(const char *name, bool &out) {
  const Json *field = find(name);
  if (!field || field->is_null())
    return;
  if (!field->is_boolean())
    return fail(name, "true or false");
  out = field->get<bool>();
}

void Fields::read(const char *name, int64_t &out, int64_t min, int64_t max) {
  const Json *field = find(name);
  if (!field || field->is_null())
    return;
  // An unsigned number above the range of int64 would wrap.
  bool fits = field->is_number_integer() &&
              (!field->is_number_unsigned() || field->get<uint64_t>() <= uint64_t(INT64_MAX));
  if (!fits || field->get<int64_t>() < min || field->get<int64_t>() > max)
    return fail(name, "a number in " + std::to_string(min) + ".." + std::to_string(max));
  out = field->get<int64_t>();
}

void Fields::read(const char *name, std::optional<double> &out) {
  const Json *field = find(name);
  if (!field || field->is_null())
    return;
  if (!field->is_number())
    return fail(name, "a number");
  out = field->get<double>();
}

void Fields::read(const char *name, std::vector<std::string> &out) {
  const Json *field = find(name);
  if (!field || field->is_null())
    return;
  if (!field->is_array())
    return fail(name, "a list of texts");
  for (const Json &item : *field) {
    if (!item.is_string())
      return fail(name, "a list of texts");
    out.push_back(item.get_ref<const std::string &>());
  }
}

void Fields::read(const char *name, std::vector<int64_t> &out) {
  const Json *field = find(name);
  if (!field || field->is_null())
    return;
  if (!field->is_array())
    return fail(name, "a list of numbers");
  for (const Json &item : *field) {
    if (!item.is_number_integer())
      return fail(name, "a list of numbers");
    out.push_back(item.get<int64_t>());
  }
}

void Fields::need(const char *name, std::string &out) {
  read(name, out);
  if (out.empty())
    fail(name, "a text");
}

std::optional<Fields> Fields::object(const char *name) {
  const Json *field = find(name);
  if (!field || field->is_null())
    return {};
  return Fields(*field, path + name + ".", problem);
}

bool kvpc::runtime::valueOf(const Json &json, Value &out) {
  switch (json.type()) {
  case Json::value_t::null:
    return true;
  case Json::value_t::boolean:
    out = Value::ofBool(json.get<bool>());
    return true;
  case Json::value_t::number_unsigned:
    if (json.get<uint64_t>() > uint64_t(INT64_MAX)) {
      out = Value::ofFloat(json.get<double>());
      return true;
    }
    [[fallthrough]];
  case Json::value_t::number_integer:
    out = Value::ofInt(json.get<int64_t>());
    return true;
  case Json::value_t::number_float:
    out = Value::ofFloat(json.get<double>());
    return true;
  case Json::value_t::string: {
    // JSON has no other way to say these.
    const auto &text = json.get_ref<const std::string &>();
    constexpr double inf = std::numeric_limits<double>::infinity();
    if (text == "inf" || text == "-inf")
      out = Value::ofFloat(text == "inf" ? inf : -inf);
    else if (text == "nan")
      out = Value::ofFloat(std::numeric_limits<double>::quiet_NaN());
    else {
      out = Value();
      out.kind = Value::Text;
      out.text = text;
    }
    return true;
  }
  case Json::value_t::object:
    if (json.size() != 1)
      return false;
    if (json.contains("drop") && json["drop"].is_number())
      out = Value::drop(json["drop"].get<double>());
    else if (json.contains("drop") && json["drop"] == "nan")
      out = Value::drop(std::numeric_limits<double>::quiet_NaN());
    else if (json.contains("keep") && json["keep"].is_number_integer())
      out = Value::keep(json["keep"].get<int64_t>());
    else
      return false;
    return true;
  case Json::value_t::array:
    out = Value();
    out.kind = Value::List;
    for (const Json &item : json)
      if (item.is_array() || !valueOf(item, out.items.emplace_back()))
        return false;
    return true;
  default:
    return false;
  }
}

Value Value::ofInt(int64_t n) { return {Int, n, double(n), {}, {}}; }
Value Value::ofFloat(double x) { return {Float, 0, x, {}, {}}; }
Value Value::ofBool(bool b) { return {Bool, b, double(b), {}, {}}; }
Value Value::drop(double ratio) { return {Drop, -1, ratio, {}, {}}; }
Value Value::keep(int64_t count) { return {Keep, count, 0, {}, {}}; }

std::string Value::str() const {
  auto number = [](double x) {
    if (std::isnan(x) || std::isinf(x))
      return std::string(std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
    return Json(x).dump();
  };
  switch (kind) {
  case None:
    return "nothing";
  case Bool:
    return i ? "true" : "false";
  case Int:
    return std::to_string(i);
  case Float:
    return number(f);
  case Text:
    return text;
  case Drop:
    return "drop(" + number(f) + ")";
  case Keep:
    return "keep(" + std::to_string(i) + ")";
  case List:
    return "a list of " + std::to_string(items.size());
  }
  return "";
}

std::string Amount::str() const { return count == all ? "all" : std::to_string(count); }

Result<std::vector<std::pair<std::string, Value>>>
kvpc::runtime::parseArguments(std::string_view json) {
  std::vector<std::pair<std::string, Value>> out;
  if (json.empty())
    return out;
  Json root = Json::parse(json, nullptr, false);
  if (!root.is_object())
    return Error{ErrorCode::Parameter, "arguments must be a JSON object of values by name"};
  for (auto it = root.begin(); it != root.end(); ++it) {
    Value value;
    if (!valueOf(*it, value))
      return Error{ErrorCode::Parameter, "argument `" + it.key() +
                                             "` is not a value: need a number, true or false, "
                                             "drop(r), keep(n), or one number a layer"};
    out.emplace_back(it.key(), std::move(value));
  }
  return out;
}
