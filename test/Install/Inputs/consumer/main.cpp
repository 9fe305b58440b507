// A host of the installed runtime: names the presses of a module.
#include "kvpc/Module.h"

#include <iostream>

int main(int argc, char **argv) {
  auto module = kvpc::Module::load(argv[1]);
  if (!module) {
    std::cerr << module.error().text() << "\n";
    return 1;
  }
  for (const auto &press : (*module)->header().presses)
    std::cout << "press: " << press.name << "\n";
  return 0;
}
