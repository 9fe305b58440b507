//===- Kvplan.h - the kvplan dialect ----------------------------------------------------------===//
#ifndef KVPC_DIALECT_IR_KVPLAN_H
#define KVPC_DIALECT_IR_KVPLAN_H

#include "dialect/IR/Kvp.h"

#include "dialect/IR/KvplanDialect.h.inc"
#include "dialect/IR/KvplanEnums.h.inc"
#define GET_ATTRDEF_CLASSES
#include "dialect/IR/KvplanAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "dialect/IR/KvplanTypes.h.inc"
#define GET_OP_CLASSES
#include "dialect/IR/KvplanOps.h.inc"

#endif
