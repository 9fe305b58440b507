//===- EnumBase.td - enumerations whose cases are spelled as in the language ------------------===//
#ifndef KVPC_DIALECT_IR_ENUMBASE_TD
#define KVPC_DIALECT_IR_ENUMBASE_TD

include "mlir/IR/EnumAttr.td"

class Kvp_Enum<string name, string text, list<string> cases, string space = "::kvpc::kvp"> : I32EnumAttr<name, text,
    !foreach(i, !range(!size(cases)), I32EnumAttrCase<!cond(
      !eq(cases[i], "and") : "And", !eq(cases[i], "or") : "Or", !eq(cases[i], "not") : "Not",
      true : !strconcat(!toupper(!substr(cases[i], 0, 1)), !substr(cases[i], 1))),
      i, cases[i]>)> {
  let cppNamespace = space;
  let genSpecializedAttr = 0;
}

#endif
