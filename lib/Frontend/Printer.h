//===- Printer.h - the canonical form of a program --------------------------------------------===//
#ifndef KVPC_LIB_FRONTEND_PRINTER_H
#define KVPC_LIB_FRONTEND_PRINTER_H

#include "lib/Frontend/AST.h"

namespace kvpc {

/// The program laid out in at most 100 columns, comments kept. The file must have no errors.
std::string print(const File &file);

} // namespace kvpc

#endif
