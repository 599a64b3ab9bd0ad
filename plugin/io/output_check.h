// SPDX-License-Identifier: Apache-2.0
// Where an output goes: its canonical place. Used by output.cc alone.
#pragma once

#include <string>
#include <string_view>

#include "plugin/io/output.h"
#include "plugin/io/status.h"

namespace autoep {

struct OutputPlace {
  std::string parent;  // canonical
  std::string name;
  std::string path() const { return parent == "/" ? "/" + name : parent + "/" + name; }
};

Status OutputError(const std::string& target, std::string_view sentence);
// `what` and the system's reason, with advice where there is some: full disk, read-only, permission.
Status OutputError(const std::string& target, std::string_view what, int error);

// The folder of `target` must exist.
Result<OutputPlace> PlaceOutput(const std::string& target);

// The rest of CheckOutput.
Status CheckOutputPlace(const std::string& target, const OutputPlace& place, OutputKind kind, const OutputOptions& options);

}  // namespace autoep
