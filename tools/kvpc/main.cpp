//===- main.cpp - kvpc, the compiler of presses -----------------------------------------------===//
#include "lib/Driver/CommandLine.h"

int main(int argc, char **argv) { return kvpc::driver::run(argc, argv); }
