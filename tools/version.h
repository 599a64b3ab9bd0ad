// SPDX-License-Identifier: Apache-2.0
// The tool's version: what --version prints and what stands in every manifest.
#pragma once

namespace autoep {

inline constexpr char kToolVersion[] = "0.1.0";
inline constexpr char kToolName[] = "autoep 0.1.0";

}  // namespace autoep
