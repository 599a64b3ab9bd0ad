// SPDX-License-Identifier: Apache-2.0
// Status: names of the codes, and context added to a failure.
#include "plugin/io/status.h"

namespace autoep {

std::string_view CodeName(Code code) {
  switch (code) {
    case Code::kOk:
      return "OK";
    case Code::kDifferent:
      return "DIFFERENT";
    case Code::kUsage:
      return "USAGE";
    case Code::kInput:
      return "INPUT";
    case Code::kNoMoe:
      return "NO_MOE";
    case Code::kPlan:
      return "PLAN";
    case Code::kVerify:
      return "VERIFY";
    case Code::kOutput:
      return "OUTPUT";
    case Code::kPlugin:
      return "PLUGIN";
    case Code::kBatch:
      return "BATCH";
    case Code::kBug:
      return "BUG";
    case Code::kInterrupted:
      return "INTERRUPTED";
    case Code::kTerminated:
      return "TERMINATED";
  }
  return "BUG";
}

Status Status::At(std::string_view where) const {
  if (ok()) return *this;
  std::string message(where);
  message += ": ";
  message += message_;
  return Status(code_, std::move(message));
}

}  // namespace autoep
