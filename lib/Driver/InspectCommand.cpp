//===- InspectCommand.cpp - kvpc inspect ------------------------------------------------------===//
#include "lib/Driver/Commands.h"
#include "lib/Driver/Source.h"

#include "kvpc/Header.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

using namespace kvpc;
using namespace kvpc::driver;

namespace {

/// Every line indented.
void printText(llvm::StringRef text, unsigned indent, llvm::raw_ostream &os) {
  while (!text.empty()) {
    auto [line, rest] = text.split('\n');
    os.indent(indent) << line << "\n";
    text = rest;
  }
}

void printParameter(const runtime::Parameter &parameter, llvm::raw_ostream &os) {
  os << "    " << parameter.name << ": " << parameter.type;
  if (!parameter.axes.empty())
    os << "[" << llvm::join(parameter.axes, ", ") << "]";
  const runtime::Value &value = parameter.isStatic ? parameter.value : parameter.fallback;
  if (value.kind != runtime::Value::None)
    os << " = " << value.str();
  if (parameter.min || parameter.max) {
    os << " in ";
    if (parameter.min)
      os << llvm::format("%g", *parameter.min);
    os << "..";
    if (parameter.max)
      os << llvm::format("%g", *parameter.max);
  }
  os << (parameter.isStatic ? ", fixed when compiled\n" : "\n");
  printText(parameter.doc, 6, os);
}

std::string inputsOf(const runtime::PressHeader &press) {
  std::vector<std::string> out{"keys", "values"};
  const runtime::Inputs &inputs = press.inputs;
  auto counted = [&](const char *name, const runtime::Amount &amount) {
    if (amount.count == runtime::Amount::all)
      out.push_back(std::string("all ") + name);
    else if (amount)
      out.push_back("the last " + amount.str() + " " + name);
  };
  counted("queries", inputs.queries);
  counted("unrotated queries", inputs.unrotatedQueries);
  counted("hidden states", inputs.hidden);
  if (inputs.outputWeight)
    out.push_back("output weight");
  if (inputs.rope)
    out.push_back("rotary frequencies");
  return llvm::join(out, ", ");
}

void printPress(const runtime::PressHeader &press, llvm::raw_ostream &os) {
  os << "\n" << press.kind << " " << press.name << "\n";
  printText(press.doc, 2, os);
  if (!press.parameters.empty())
    os << "  parameters\n";
  for (const runtime::Parameter &parameter : press.parameters)
    printParameter(parameter, os);
  os << "  needs " << inputsOf(press) << "\n";
  os << "  drops "
     << (press.dropsTokens && press.dropsChannels ? "tokens and channels"
         : press.dropsChannels                    ? "channels"
         : press.dropsTokens                      ? "tokens"
                                                  : "nothing")
     << (press.uniform ? ", the same for all heads" : ", each head its own")
     << (press.dataCounts ? "; how many depends on data" : "") << "\n";
  if (press.reuse > 1)
    os << "  " << press.reuse << " layers share one choice\n";
}

} // namespace

int driver::inspectCommand(const llvm::opt::InputArgList &options) {
  auto argument = onlyInput(options, "a module (.kvm)");
  if (!argument)
    return kUsage;
  auto buffer = readFile(*argument, "kvm-file");
  if (!buffer)
    return failure(buffer.takeError());
  llvm::StringRef bytes = (*buffer)->getBuffer();
  auto header = runtime::readHeader({reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size()},
                                    argument->str());
  if (!header)
    return failure(header.error().text());
  if (options.hasArg(OPT_json)) {
    auto value = llvm::json::parse(header->json);
    if (!value)
      return failure(value.takeError());
    llvm::outs() << llvm::formatv("{0:2}\n", *value);
    return kSuccess;
  }
  llvm::raw_ostream &os = llvm::outs();
  os << *argument << ": module of format " << header->major << "." << header->minor
     << ", compiled by " << header->compiler << " with -" << header->optimization << " from "
     << header->source << "\n";
  os << "  dtypes " << llvm::join(header->dtypes, ", ") << "; head sizes ";
  llvm::interleaveComma(header->channels, os, [&](int64_t n) {
    if (n)
      os << n;
    else
      os << "any";
  });
  os << "; targets " << llvm::join(header->targets, ", ") << "\n";
  for (const runtime::PressHeader &press : header->presses)
    printPress(press, os);
  return kSuccess;
}
