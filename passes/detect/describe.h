// SPDX-License-Identifier: Apache-2.0
// From a proved claim to a BlockMatch: the layer, and what of the graph the experts' ops will replace.
#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

#include "passes/detect/claim.h"
#include "passes/detect/proof.h"

namespace autoep {

// The block, or what keeps it from being taken though its sum is the experts'. `experts` are those of the layer by number, or one
// with stacked weights; `router` is what DescribeRouter found.
std::variant<BlockMatch, Miss> DescribeBlock(const MatchContext& context, const SumCandidate& sum, const Claim& claim,
                                             const ShapeTable& shapes, const std::vector<const ExpertFfn*>& experts,
                                             const std::map<std::string, std::string>& router, bool rebuilt);

}  // namespace autoep
