// SPDX-License-Identifier: Apache-2.0
// Tables, remarks and JSON of layers.
#include "tools/layer_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "passes/repack/plan.h"
#include "plugin/contract/dtype.h"
#include "plugin/io/text.h"
#include "tools/table.h"

namespace autoep {
namespace {

std::string DtypeName(at::ScalarType type) {
  const auto known = contract::FindDtype(type);
  return known ? std::string(known->name) : c10::toString(type);
}

// Paths, with "[n]" where one module holds several layers.
std::vector<std::string> ShownNames(const std::vector<MoeLayer>& layers) {
  std::vector<std::string> names = LayerNames(layers);
  for (std::string& name : names) name = PathName(name);
  return names;
}

std::string RouterText(const MoeLayer& layer) {
  std::string text;
  for (const auto& [key, value] : layer.router) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", key, Printable(value));
  return text;
}

std::string SharedText(const MoeLayer& layer) {
  std::vector<std::string> names;
  for (const std::string& name : layer.shared_experts) names.push_back(Printable(name));
  return JoinWords(names);
}

// "layers: text" for each different text, in the order of its first layer.
std::string Grouped(const std::vector<MoeLayer>& layers, const std::string& title, auto text_of) {
  std::vector<std::pair<std::string, std::vector<std::string>>> groups;
  const std::vector<std::string> names = ShownNames(layers);
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string text = text_of(layers[i]);
    if (text.empty()) continue;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == text; });
    if (group == groups.end()) group = groups.insert(groups.end(), {text, {}});
    group->second.push_back(names[i]);
  }
  std::string result;
  for (const auto& [text, paths] : groups) {
    const std::string others = paths.size() > 1 ? fmt::format(" and {} more", paths.size() - 1) : "";
    result += fmt::format("{} of {}{}: {}\n", title, Printable(paths.front()), others, text);
  }
  return result;
}

Json TensorJson(const ExpertTensor& tensor) {
  Json sources = Json::array();
  for (const auto& part : tensor.parts) sources.push_back(part.tensor);
  return {{"role", tensor.role},
          {"shape", tensor.shape},
          {"dtype", DtypeName(tensor.dtype)},
          {"requires_grad", tensor.requires_grad},
          {"source", sources}};
}

}  // namespace

int64_t TotalExperts(const std::vector<MoeLayer>& layers) {
  int64_t total = 0;
  for (const MoeLayer& layer : layers) total += layer.num_experts;
  return total;
}

int64_t TotalExpertBytes(const std::vector<MoeLayer>& layers) {
  int64_t total = 0;
  for (const MoeLayer& layer : layers) total += layer.ExpertBytes();
  return total;
}

std::string PathName(const std::string& path) { return path.empty() || path[0] == '[' ? "(root)" + path : path; }

std::string SizesName(int64_t hidden, int64_t intermediate) { return fmt::format("{} x {}", hidden, intermediate); }

std::string LayerTable(const std::vector<MoeLayer>& layers, const Console& console) {
  Table table({{"layer"}, {"family"}, {"form"}, {"experts", Align::kRight}, {"top-k", Align::kRight}, {"hidden x intermediate"},
               {"activation"}, {"dtype"}, {"expert bytes", Align::kRight}});
  const std::vector<std::string> names = ShownNames(layers);
  for (size_t i = 0; i < layers.size(); ++i) {
    const MoeLayer& layer = layers[i];
    table.AddRow({names[i], layer.family, layer.form, fmt::to_string(layer.num_experts), fmt::to_string(layer.top_k),
                  SizesName(layer.hidden, layer.intermediate), layer.activation,
                  layer.tensors.empty() ? "" : DtypeName(layer.tensors.front().dtype), HumanBytes(layer.ExpertBytes())});
  }
  return table.Render(console);
}

std::string LayerRemarks(const std::vector<MoeLayer>& layers) {
  std::string text = Grouped(layers, "Router", RouterText);
  text += Grouped(layers, "Shared experts", SharedText);
  for (const MoeLayer& layer : layers) {
    for (const std::string& note : layer.notes) text += fmt::format("Note on {}: {}\n", Printable(PathName(layer.path)), Printable(note));
  }
  return text;
}

std::string RefusalSentence(const Refusal& refusal) {
  const std::string where = refusal.source.empty() ? "" : ", at " + Printable(refusal.source);
  return fmt::format("{}: {}{}", Printable(PathName(refusal.path)), refusal.predicate, where);
}

std::string RefusalList(const std::vector<Refusal>& refusals) {
  if (refusals.empty()) return "";
  std::string text = "Refused:\n";
  for (const Refusal& refusal : refusals) {
    text += fmt::format("  {}\n", RefusalSentence(refusal));
    if (!refusal.node.empty()) text += fmt::format("    node: {}\n", Printable(refusal.node));
  }
  return text;
}

Status NoLayersError(const std::string& model, const std::vector<Refusal>& refusals) {
  std::string sentence = fmt::format("{}: no MoE layer that can be rewritten: ", Printable(model));
  if (refusals.empty()) {
    sentence += "nothing in it routes tokens to experts; a dense model needs no conversion";
  } else {
    sentence += RefusalSentence(refusals.front());
    if (refusals.size() > 1) sentence += fmt::format(" (and {} more; 'autoep inspect' lists them)", refusals.size() - 1);
  }
  return Status(Code::kNoMoe, std::move(sentence));
}

Json LayersJson(const std::vector<MoeLayer>& layers) {
  const std::vector<std::string> names = LayerNames(layers);
  Json result = Json::array();
  for (size_t i = 0; i < layers.size(); ++i) {
    const MoeLayer& layer = layers[i];
    Json tensors = Json::array();
    for (const ExpertTensor& tensor : layer.tensors) tensors.push_back(TensorJson(tensor));
    result.push_back({{"name", names[i]},
                      {"path", layer.path},
                      {"class", layer.class_name},
                      {"family", layer.family},
                      {"form", layer.form},
                      {"num_experts", layer.num_experts},
                      {"top_k", layer.top_k},
                      {"hidden", layer.hidden},
                      {"intermediate", layer.intermediate},
                      {"activation", layer.activation},
                      {"activation_args", layer.activation_args},
                      {"weights_act", layer.weights_on_input ? "input" : "after"},
                      {"router", layer.router},
                      {"shared_experts", layer.shared_experts},
                      {"rebuilt", layer.rebuilt},
                      {"expert_bytes", layer.ExpertBytes()},
                      {"tensors", tensors},
                      {"notes", layer.notes}});
  }
  return result;
}

Json RefusalsJson(const std::vector<Refusal>& refusals) {
  Json result = Json::array();
  for (const Refusal& refusal : refusals) {
    result.push_back({{"path", refusal.path},
                      {"predicate", refusal.predicate},
                      {"node", refusal.node},
                      {"source", refusal.source}});
  }
  return result;
}

}  // namespace autoep
