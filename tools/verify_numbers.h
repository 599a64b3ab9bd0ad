// SPDX-License-Identifier: Apache-2.0
// The numeric half of verify: one subject, the whole model or a block alone, run as the source and as ranks, and compared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plugin/contract/manifest.h"
#include "plugin/io/status.h"
#include "tools/compare.h"
#include "tools/inputs.h"
#include "tools/ranks.h"
#include "tools/verify.h"

namespace autoep {

struct NumbersContext {
  const std::string& directory;
  const contract::Manifest& manifest;
  const VerifyOptions& options;
  const TempFolder& folder;
  VerifyReport* report;  // rows, bytes and notes are added to it
};

struct Subject {
  std::string path;    // of the block in the source; "" for the whole model
  std::string block;   // ManifestLayer::block; "" for the whole model
  std::string source;  // the instrumented source, saved
  ArgumentNames arguments;
  std::vector<InputSpec> specs;  // to make inputs from; empty where VerifyOptions::inputs gives them
};

struct SubjectOutcome {
  std::vector<VerifyCase> cases;
  int64_t exempt_over = 0;  // tokens beyond the tolerance that a flip in their sequence excuses
  std::string failure;      // what differs, a sentence, or ""
  std::string first_layer;  // with a failure: the first layer whose routes differ, or ""
};

// Fails where there is nothing to compare: kUsage for inputs that the source itself cannot take, kVerify for a rank that
// fails, holds another share of the experts than 1/N, or whose experts see other rows than the routes say.
Result<SubjectOutcome> RunSubject(const NumbersContext& context, const Subject& subject);

// The least precise dtype among the expert weights.
at::ScalarType ExpertDtype(const contract::Manifest& manifest);

}  // namespace autoep
