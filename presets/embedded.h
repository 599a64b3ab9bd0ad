// SPDX-License-Identifier: Apache-2.0
// The table that the build makes of presets/*.yaml.
#pragma once

namespace autoep {

struct EmbeddedPreset {
  const char* file;  // "presets/mixtral.yaml"
  const char* text;  // begins with the newline that ends the raw string's first line
};

extern const EmbeddedPreset kEmbeddedPresets[];
extern const int kEmbeddedPresetCount;

}  // namespace autoep
