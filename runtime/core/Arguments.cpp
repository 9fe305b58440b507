//===- Arguments.cpp - binding a press's parameters by name -----------------------------------===//
#include "kvpc/Module.h"

#include <algorithm>
#include <cmath>

using namespace kvpc;

namespace {

Error wrong(const Parameter &parameter, const Value &value, const std::string &need) {
  return {ErrorCode::Parameter, "`" + parameter.name + "` is " + value.str() + "; need " + need};
}

std::string range(const Parameter &parameter) {
  auto number = [](double x) { return Value::ofFloat(x).str(); };
  auto end = [&](const std::optional<double> &x) {
    // `1.0` reads oddly for a count.
    return !x                                             ? ""
           : *x == std::floor(*x) && std::fabs(*x) < 1e15 ? std::to_string(int64_t(*x))
                                                          : number(*x);
  };
  return end(parameter.min) + ".." + end(parameter.max);
}

Failure checkRange(const Parameter &parameter, const Value &value) {
  if ((parameter.min && value.f < *parameter.min) || (parameter.max && value.f > *parameter.max))
    return wrong(parameter, value, "a value in " + range(parameter));
  return {};
}

Failure checkBudget(const Parameter &parameter, const Value &value) {
  if (value.kind == Value::Keep)
    return value.i >= 1 ? Failure() : wrong(parameter, value, "`keep(n)` with n of 1 or more");
  if (value.kind != Value::Drop)
    return wrong(parameter, value, "a budget: `drop(0.5)` or `keep(1024)`");
  if (std::isnan(value.f))
    return wrong(parameter, value, "a number, it is NaN");
  if (value.f < 0 || value.f >= 1)
    return wrong(parameter, value, "`drop(r)` with 0 <= r < 1");
  return {};
}

/// Checks one value and brings it into the parameter's type.
Failure checkScalar(const Parameter &parameter, Value &value) {
  if (parameter.type == "budget")
    return checkBudget(parameter, value);
  if (parameter.type == "bool")
    return value.kind == Value::Bool ? Failure() : wrong(parameter, value, "`true` or `false`");
  if (value.kind != Value::Int && value.kind != Value::Float)
    return wrong(parameter, value,
                 parameter.type == "int" ? std::string("a whole number") : "a number");
  if (std::isnan(value.f))
    return Error{ErrorCode::Parameter, "`" + parameter.name + "` is NaN; need a number"};
  if (parameter.type == "int") {
    // A host that has only floats may say 64.0.
    if (value.kind == Value::Float && value.f == std::floor(value.f) && std::fabs(value.f) < 9e15)
      value = Value::ofInt(int64_t(value.f));
    if (value.kind != Value::Int)
      return wrong(parameter, value, "a whole number");
  } else if (value.kind == Value::Int) {
    value = Value::ofFloat(value.f);
  }
  if (parameter.type == "fraction" && (value.f < 0 || value.f >= 1))
    return wrong(parameter, value, "a fraction, 0 <= `" + parameter.name + "` < 1");
  return checkRange(parameter, value);
}

bool isLayered(const Parameter &parameter) {
  return parameter.axes.size() == 1 && parameter.axes[0] == "layer";
}

Failure check(const Parameter &parameter, Value &value) {
  if (value.kind != Value::List)
    return checkScalar(parameter, value);
  if (!isLayered(parameter))
    return wrong(parameter, value, "one value, it does not differ between layers");
  if (value.items.empty())
    return wrong(parameter, value, "one value a layer");
  for (Value &item : value.items)
    if (auto error = checkScalar(parameter, item))
      return error;
  return {};
}

Result<const Parameter *> findBudget(const PressHeader &press, const std::string &name) {
  const Parameter *found = nullptr;
  std::vector<std::string> budgets;
  for (const Parameter &parameter : press.parameters)
    if (parameter.type == "budget" && !parameter.isStatic) {
      found = &parameter;
      budgets.push_back(parameter.name);
    }
  if (budgets.size() == 1)
    return found;
  return Error{ErrorCode::Parameter,
               budgets.empty() ? "`" + press.name + "` has no budget for `" + name + "` to set"
                               : "`" + press.name + "` has budgets " + quoteList(budgets) +
                                     "; give each by its name, e.g. `" + budgets[0] + "` = `" +
                                     (name == "keep" ? "keep(1024)`" : "drop(0.5)`")};
}

/// `drop = 0.5` and its like, as a budget.
Result<Value> shorthand(const std::string &name, const Value &value) {
  bool isKeep = name == "keep";
  if (value.kind == Value::Int || (value.kind == Value::Float && !isKeep))
    return isKeep ? Value::keep(value.i) : Value::drop(value.f);
  return Error{ErrorCode::Parameter, "`" + name + "` is " + value.str() + "; need " +
                                         (isKeep ? "a count, e.g. 1024" : "a fraction, e.g. 0.5")};
}

Error unknown(const PressHeader &press, const std::string &name) {
  std::vector<std::string> names;
  for (const Parameter &parameter : press.parameters)
    names.push_back(parameter.name);
  std::string near = nearest(name, names);
  return {ErrorCode::Parameter, "`" + press.name + "` has no parameter `" + name + "`; it has " +
                                    quoteList(names) +
                                    (near.empty() ? "" : "; did you mean `" + near + "`?")};
}

} // namespace

Result<std::vector<Value>> kvpc::runtime::bindArguments(const PressHeader &press,
                                                        const Press::Arguments &given) {
  std::vector<std::pair<const Parameter *, Value>> values;
  for (const auto &[name, givenValue] : given) {
    if (givenValue.kind == Value::None)
      continue;
    Value value = givenValue;
    const Parameter *parameter = press.parameter(name);
    if (!parameter && (name == "drop" || name == "keep" || name == "compression_ratio")) {
      auto budget = findBudget(press, name);
      if (!budget)
        return budget.error();
      auto made = shorthand(name, value);
      if (!made)
        return made.error();
      parameter = *budget;
      value = *made;
    }
    if (!parameter)
      return unknown(press, name);
    if (parameter->isStatic)
      return Error{
          ErrorCode::StaticParameter,
          "`" + name + "` was fixed to " +
              (parameter->value.kind == Value::None ? parameter->fallback : parameter->value)
                  .str() +
              " when the module was compiled; compile the press with `-D " + name + "=" +
              value.str() + "` (in Python `defines=`) for another value"};
    if (std::find(press.runtime.begin(), press.runtime.end(), name) == press.runtime.end() &&
        parameter->name == name)
      return Error{ErrorCode::Parameter, "`" + name + "` is a tensor; give it as one"};
    for (auto &[other, unused] : values)
      if (other == parameter)
        return Error{ErrorCode::Parameter,
                     "`" + parameter->name + "` is given twice; give it once" +
                         (parameter->type == "budget"
                              ? ": one of `drop`, `keep` and `" + parameter->name + "`"
                              : "")};
    if (auto error = check(*parameter, value))
      return *error;
    values.emplace_back(parameter, std::move(value));
  }

  std::vector<Value> out;
  for (const std::string &name : press.runtime) {
    const Parameter *parameter = press.parameter(name);
    Value value = parameter->fallback;
    for (auto &[other, givenValue] : values)
      if (other == parameter)
        value = givenValue;
    if (value.kind == Value::None || value.kind == Value::Text)
      return Error{ErrorCode::Parameter, "`" + press.name + "` needs `" + name + "` (" +
                                             parameter->type + "), which has no default; give it"};
    if (auto error = check(*parameter, value))
      return *error;
    out.push_back(std::move(value));
  }
  return out;
}

Result<BoundPress> Press::bind(const Arguments &given) const {
  auto arguments = bindArguments(*press, given);
  if (!arguments)
    return arguments.error();
  BoundPress out;
  out.owner = owner;
  out.press = press;
  out.arguments = std::move(*arguments);
  return out;
}

const Value &BoundPress::argument(size_t index, int64_t layer) const {
  const Value &value = arguments[index];
  return value.kind == Value::List ? value.items[size_t(layer)] : value;
}

int64_t kvpc::runtime::keptOf(const Value &budget, int64_t n) {
  if (n <= 0)
    return 0;
  int64_t count = budget.kind == Value::Keep ? budget.i : int64_t(double(n) * (1 - budget.f));
  return std::clamp<int64_t>(count, 1, n);
}
