// SPDX-License-Identifier: Apache-2.0
// Preset: the questions that are asked of one.
#include "presets/preset.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "plugin/io/text.h"

namespace autoep {
namespace {

// `name` without `suffix`, or as it is.
std::string_view Without(std::string_view name, std::string_view suffix) {
  return name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : name;
}

// "3" or "expert_3"
bool IsExpertIndex(std::string_view part) {
  const size_t digits = part.find_first_of("0123456789");
  return digits != std::string_view::npos &&
         std::all_of(part.begin() + static_cast<std::ptrdiff_t>(digits), part.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::optional<ExpertRole> RoleOfName(const ExpertLayout& layout, std::string_view name) {
  for (const auto& [role, known] : layout.names) {
    if (name == known) return role;
  }
  return std::nullopt;
}

std::optional<ExpertRole> RoleInOneExpert(const ExpertLayout& layout, std::string_view name) {
  return RoleOfName(layout, Without(Without(name, ".weight"), ".bias"));
}

void Compare(std::string_view what, const std::string& expected, const std::string& found, const std::string& family,
             std::vector<std::string>* out) {
  if (expected.empty() || found.empty() || expected == found) return;
  out->push_back(fmt::format("{} is {} and in a {} it is {}", what, Printable(found), family, expected));
}

}  // namespace

std::string_view ExpertRoleName(ExpertRole role) {
  static constexpr std::array<std::string_view, 4> kNames = {"gate", "up", "gate_up", "down"};
  return kNames[static_cast<size_t>(role)];
}

std::optional<ExpertRole> ExpertLayout::RoleOf(std::string_view tensor) const {
  // Every way to cut the name into the holder's path and the rest.
  for (size_t cut = 0; cut <= tensor.size(); cut = tensor.find('.', cut + 1)) {
    const std::string path(tensor.substr(0, cut));
    std::string_view rest = tensor.substr(cut == 0 ? 0 : cut + 1);
    if (!experts.Matches(path)) continue;
    std::optional<ExpertRole> role;
    if (kind != Kind::kSeparate) {
      role = RoleOfName(*this, Without(Without(rest, ".weight"), "_bias"));
    } else if (const size_t dot = rest.find('.'); dot != std::string_view::npos && IsExpertIndex(rest.substr(0, dot))) {
      role = RoleInOneExpert(*this, rest.substr(dot + 1));
    }
    if (role) return role;
  }
  return std::nullopt;
}

std::optional<ExpertRole> Preset::RoleOf(std::string_view tensor) const {
  for (const ExpertLayout& layout : layouts) {
    if (const auto role = layout.RoleOf(tensor)) return role;
  }
  return std::nullopt;
}

std::vector<std::string> Preset::Disagreements(const BlockFacts& found) const {
  std::vector<std::string> out;
  Compare("the activation", facts.activation, found.activation, name, &out);
  Compare("the place where the weights act", facts.weights_act, found.weights_act, name, &out);
  for (const auto& [key, expected] : facts.router) {
    const auto value = found.router.find(key);
    if (value != found.router.end()) Compare("the router's " + key, expected, value->second, name, &out);
  }
  return out;
}

std::string BareClassName(std::string_view qualified) {
  const size_t dot = qualified.rfind('.');
  return std::string(dot == std::string_view::npos ? qualified : qualified.substr(dot + 1));
}

}  // namespace autoep
