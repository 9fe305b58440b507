//===- KvplanEnums.td - enumerations of the kvplan dialect ------------------------------------===//
#ifndef KVPC_DIALECT_IR_KVPLANENUMS_TD
#define KVPC_DIALECT_IR_KVPLANENUMS_TD

include "dialect/IR/EnumBase.td"

class Kvplan_Enum<string name, string text, list<string> cases>
    : Kvp_Enum<name, text, cases, "::kvpc::kvplan">;

def Kvplan_Scope : Kvplan_Enum<"Scope", "how long and for whom a buffer lives", [
    "tile",   // a block of rows of one tile, inside one operation
    "rows",   // a block of queries, one per task in flight
    "task",   // one per task in flight
    "call",   // for all rows and heads of the call
    "state"   // kept by the host over the layers of a forward pass
  ]>;

def Kvplan_Space : Kvplan_Enum<"Space", "what a task is", ["batch", "head"]>;

def Kvplan_Combine : Kvplan_Enum<"Combine", "associative reduction", [
    "sum", "max", "min", "any", "all"]>;

def Kvplan_Order : Kvplan_Enum<"Order", "whole-row operation", ["rank", "sort", "cumsum"]>;

#endif
