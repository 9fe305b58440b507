//===- Values.cpp - what expressions evaluate to ----------------------------------------------===//
#include "lib/Frontend/Values.h"

#include "llvm/ADT/STLExtras.h"

using namespace kvpc;

bool Range::contains(double x) const {
  return (!low || x >= *low) && (!high || (open ? x < *high : x <= *high));
}

bool Range::within(const Range &outer) const {
  bool above = !outer.low || (low && *low >= *outer.low);
  bool below = !outer.high ||
               (high && (*high < *outer.high || (*high == *outer.high && (open || !outer.open))));
  return above && below;
}

Element kvpc::elementOf(mlir::Type type) {
  if (auto tensor = llvm::dyn_cast<kvp::NamedTensorType>(type))
    type = tensor.getElementType();
  return type.isInteger(1) ? Element::Bool : type.isInteger(64) ? Element::Int : Element::Float;
}

Element Tensor::element() const { return elementOf(type()); }

bool Tensor::isThinned(llvm::StringRef axis) const { return llvm::is_contained(thinned, axis); }

const Tensor::Renamed *Tensor::findRenamed(llvm::StringRef axis) const {
  const auto *it = llvm::find_if(renamed, [&](const Renamed &r) { return r.name == axis; });
  return it == renamed.end() ? nullptr : it;
}

llvm::StringRef Tensor::entriesOf(llvm::StringRef axis) const {
  const Renamed *found = findRenamed(axis);
  return found ? llvm::StringRef(found->entries) : axis.rtrim('\'');
}

void Tensor::forgetAxes() {
  llvm::erase_if(thinned, [&](const std::string &axis) { return !has(axis); });
  llvm::erase_if(renamed, [&](const Renamed &r) { return !has(r.name); });
}

std::string kvpc::axesText(llvm::ArrayRef<kvp::AxisAttr> axes) {
  std::string text;
  for (kvp::AxisAttr axis : axes)
    text += (text.empty() ? "`" : ", `") + axis.getName().str() + "`";
  return text;
}

std::string kvpc::axesText(const Tensor &tensor) {
  std::string text = tensor.repeated ? "`head`" : "";
  std::string rest = axesText(tensor.type().getAxes());
  return text.empty() || rest.empty() ? text + rest : text + ", " + rest;
}
