// SPDX-License-Identifier: Apache-2.0
// Tables, remarks and JSON of layers.
#include "tools/layer_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "passes/repack/plan.h"
#include "plugin/contract/dtype.h"
#include "plugin/io/text.h"

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

// How the source stores a tensor's parts: "one tensor an expert, gate and up apart".
std::string LayoutText(const ExpertTensor& tensor, int64_t num_experts) {
  if (tensor.parts.empty()) return "unknown";
  const contract::SourcePart& part = tensor.parts.front();
  const bool each = part.expert_count < num_experts;
  std::string text = each ? "one tensor an expert" : "one tensor for all";
  const bool matrix = tensor.shape.size() == 3;
  if (!each && matrix && !tensor.sources.empty() && tensor.sources.front().dim() == 2) text += " as a matrix";
  if (part.source_row_step > 1) {
    text += ", gate and up alternating";
  } else if (static_cast<int64_t>(tensor.parts.size()) > (each ? num_experts / part.expert_count : 1)) {
    text += ", gate and up apart";
  }
  if (part.transposed) text += ", stored [in, out]";
  return text;
}

std::string ExpertsText(const MoeLayer& layer) {
  std::string text = fmt::format("weights act {}", layer.weights_on_input ? "on the input" : "after");
  std::vector<std::string> biases;
  for (const ExpertTensor& tensor : layer.tensors) {
    if (tensor.role.ends_with("bias")) {
      biases.push_back(tensor.role);
    } else {
      text += fmt::format("; {}: {}", tensor.role, LayoutText(tensor, layer.num_experts));
    }
  }
  text += biases.empty() ? "; no biases" : "; biases: " + JoinWords(biases);
  for (size_t i = 0; i < layer.activation_args.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "; activation's numbers " : ", ", layer.activation_args[i]);
  }
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

Json TensorJson(const ExpertTensor& tensor, int64_t num_experts) {
  Json sources = Json::array();
  for (const auto& part : tensor.parts) sources.push_back(part.tensor);
  return {{"role", tensor.role},
          {"shape", tensor.shape},
          {"dtype", DtypeName(tensor.dtype)},
          {"requires_grad", tensor.requires_grad},
          {"layout", LayoutText(tensor, num_experts)},
          {"source", sources}};
}

LayerLine LineOf(const MoeLayer& layer, const std::string& name) {
  return {name,
          layer.family,
          layer.form,
          layer.num_experts,
          layer.top_k,
          layer.hidden,
          layer.intermediate,
          layer.activation,
          layer.tensors.empty() ? "" : DtypeName(layer.tensors.front().dtype),
          layer.ExpertBytes()};
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

std::vector<Table::Column> LayerColumns(const std::string& bytes_title) {
  return {{"layer"},
          {"family"},
          {"form"},
          {"experts", Align::kRight},
          {"top-k", Align::kRight},
          {"hidden x intermediate"},
          {"activation"},
          {"dtype"},
          {bytes_title, Align::kRight}};
}

std::vector<std::string> LayerCells(const LayerLine& line) {
  return {line.name,
          line.family,
          line.form,
          fmt::to_string(line.num_experts),
          fmt::to_string(line.top_k),
          fmt::format("{} x {}", line.hidden, line.intermediate),
          line.activation,
          line.dtype,
          HumanBytes(line.bytes)};
}

Json LineJson(const LayerLine& line) {
  return {{"family", line.family},        {"form", line.form},     {"num_experts", line.num_experts},
          {"top_k", line.top_k},          {"hidden", line.hidden}, {"intermediate", line.intermediate},
          {"activation", line.activation}};
}

std::string LayerTable(const std::vector<MoeLayer>& layers, const Console& console) {
  Table table(LayerColumns("expert bytes"));
  const std::vector<std::string> names = ShownNames(layers);
  for (size_t i = 0; i < layers.size(); ++i) table.AddRow(LayerCells(LineOf(layers[i], names[i])));
  return table.Render(console);
}

std::string LayerRemarks(const std::vector<MoeLayer>& layers) {
  std::string text = Grouped(layers, "Router", RouterText);
  text += Grouped(layers, "Experts", ExpertsText);
  text += Grouped(layers, "Shared experts", SharedText);
  for (const MoeLayer& layer : layers) {
    for (const std::string& note : layer.notes)
      text += fmt::format("Note on {}: {}\n", Printable(PathName(layer.path)), Printable(note));
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
    if (!refusal.line.empty()) text += fmt::format("    line: {}\n", Printable(refusal.line));
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
    for (const ExpertTensor& tensor : layer.tensors) tensors.push_back(TensorJson(tensor, layer.num_experts));
    Json line = LineJson(LineOf(layer, names[i]));
    line.update({{"name", names[i]},
                 {"path", layer.path},
                 {"class", layer.class_name},
                 {"activation_args", layer.activation_args},
                 {"weights_act", layer.weights_on_input ? "input" : "after"},
                 {"router", layer.router},
                 {"shared_experts", layer.shared_experts},
                 {"rebuilt", layer.rebuilt},
                 {"expert_bytes", layer.ExpertBytes()},
                 {"tensors", tensors},
                 {"notes", layer.notes}});
    result.push_back(std::move(line));
  }
  return result;
}

Json RefusalsJson(const std::vector<Refusal>& refusals) {
  Json result = Json::array();
  for (const Refusal& refusal : refusals) {
    result.push_back({{"path", refusal.path},
                      {"predicate", refusal.predicate},
                      {"node", refusal.node},
                      {"source", refusal.source},
                      {"line", refusal.line}});
  }
  return result;
}

}  // namespace autoep
