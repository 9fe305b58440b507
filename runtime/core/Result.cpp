//===- Result.cpp - names of error codes ------------------------------------------------------===//
#include "kvpc/Result.h"

using namespace kvpc;

std::string_view kvpc::runtime::codeName(ErrorCode code) {
  switch (code) {
  case ErrorCode::File:
    return "kvm-file";
  case ErrorCode::NotAModule:
    return "kvm-not-a-module";
  case ErrorCode::Truncated:
    return "kvm-truncated";
  case ErrorCode::Format:
    return "kvm-format";
  case ErrorCode::Damaged:
    return "kvm-damaged";
  case ErrorCode::Digest:
    return "kvm-digest";
  case ErrorCode::Target:
    return "kvm-target";
  case ErrorCode::Press:
    return "kvm-press";
  case ErrorCode::Parameter:
    return "kvm-parameter";
  case ErrorCode::StaticParameter:
    return "kvm-static-parameter";
  case ErrorCode::Dtype:
    return "kvm-dtype";
  case ErrorCode::Channels:
    return "kvm-channels";
  case ErrorCode::Shape:
    return "kvm-shape";
  case ErrorCode::Stride:
    return "kvm-stride";
  case ErrorCode::Device:
    return "kvm-device";
  case ErrorCode::MissingInput:
    return "kvm-missing-input";
  case ErrorCode::ExtraInput:
    return "kvm-extra-input";
  case ErrorCode::State:
    return "kvm-state";
  case ErrorCode::Require:
    return "kvm-require";
  case ErrorCode::Unsupported:
    return "kvm-unsupported";
  case ErrorCode::Memory:
    return "kvm-memory";
  }
  return "kvm-error";
}

std::string Error::text() const {
  std::string out = message;
  out += " [";
  out += codeName(code);
  out += "]";
  return out;
}
