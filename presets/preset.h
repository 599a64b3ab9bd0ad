// SPDX-License-Identifier: Apache-2.0
// Preset: what a graph cannot say about a model family: its name, which tensor of an expert is which, and the facts a
// correct model of it must have. One YAML file a family; a new family is that file and nothing else.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugin/io/json.h"
#include "plugin/io/status.h"

namespace autoep {

enum class ExpertRole { kGate, kUp, kGateUp, kDown };
std::string_view ExpertRoleName(ExpertRole role);  // "gate", "up", "gate_up", "down": as in ExpertTensor::role

// A regular expression (ECMAScript, whole-string match) and its text.
struct Pattern {
  std::string text;
  std::regex regex;
  bool Matches(const std::string& name) const { return std::regex_match(name, regex); }
};

// Where the experts' tensors are, relative to the block.
struct ExpertLayout {
  enum class Kind {
    kSeparate,  // one module an expert: "<experts>.<i>.<name>.weight" or ".bias", where <i> ends in the expert's number
    kStacked,   // one tensor for all, [E, out, in]: "<experts>.<name>", "<experts>.<name>_bias", or with ".weight"
    kFlat,      // the same names, the experts one below another: [E*out, in]
  };
  Kind kind = Kind::kSeparate;
  Pattern experts;                                        // path from the block to what holds them
  std::vector<std::pair<ExpertRole, std::string>> names;  // in the order gate, up, gate_up, down
  std::vector<ExpertRole> transposed;                     // of these, an expert's matrix is [in, out] instead of [out, in]
  bool interleaved = false;                               // gate_up's rows are gate 0, up 0, gate 1, ...; else all gates first

  // Which tensor of an expert `tensor` is, given relative to the block; nullopt if none.
  std::optional<ExpertRole> RoleOf(std::string_view tensor) const;
};

struct PresetTest {
  std::string model_class;            // of transformers: "MixtralForCausalLM"
  std::string config_class;           // "MixtralConfig"
  std::vector<int64_t> transformers;  // major versions it is tested with: 4, 5
  bool whole_model = true;            // a trace of the whole model is right for other lengths, so it is tested too
  Json config;                        // keyword arguments of a tiny configuration
};

// What a block was found to do, in the words of MoeLayer and of the manifest.
struct BlockFacts {
  std::string activation;                     // contract/activation.h
  std::string weights_act;                    // "after" or "input"
  std::map<std::string, std::string> router;  // "scores": "softmax", "renorm": "true", ...
};

struct Preset {
  std::string name;                         // "mixtral"
  std::string title;                        // "Mixtral (Mistral AI)"
  std::vector<std::string> model_classes;   // transformers classes of this family
  Pattern block;                            // class name of the MoE block, without modules and mangling
  Pattern router;                           // name of the child that scores the experts
  std::vector<std::string> shared_experts;  // children that every token passes, if any
  std::vector<ExpertLayout> layouts;
  BlockFacts facts;  // only what must hold; an empty string or a missing key is not checked
  std::vector<std::string> notes;
  PresetTest test;
  std::string text;    // the YAML it came from
  std::string origin;  // "presets/mixtral.yaml"

  // Which tensor of an expert `tensor` is, given relative to the block: "experts.3.w1.weight" -> kGate,
  // "experts.gate_up_proj" -> kGateUp. A bias has its weight's role.
  std::optional<ExpertRole> RoleOf(std::string_view tensor) const;

  // One sentence for each fact in which the block differs from this family; empty if none.
  std::vector<std::string> Disagreements(const BlockFacts& found) const;
};

// "__torch__.transformers.models.mixtral.modeling_mixtral.___torch_mangle_309.MixtralSparseMoeBlock" ->
// "MixtralSparseMoeBlock"
std::string BareClassName(std::string_view qualified);

// `text` is strict YAML. Failures are kUsage: "FILE:LINE:COL: ...".
Result<Preset> ParsePreset(std::string_view text, const std::string& origin);
Result<Preset> LoadPreset(const std::string& path);

}  // namespace autoep
