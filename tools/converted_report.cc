// SPDX-License-Identifier: Apache-2.0
// Tables and JSON of converted models.
#include "tools/converted_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "plugin/io/text.h"
#include "tools/layer_report.h"
#include "tools/table.h"

namespace autoep {
namespace {

int64_t LayerBytes(const contract::ManifestLayer& layer, int64_t rank) {
  int64_t bytes = 0;
  for (const contract::ManifestTensor& tensor : layer.tensors) {
    for (const contract::ShardPiece& piece : tensor.pieces) bytes += piece.rank == rank ? piece.bytes : 0;
  }
  return bytes;
}

OpCounts OpsOf(const ModelSummary& summary, const std::string& block) {
  const auto found = summary.ep_ops.find(block);
  return found == summary.ep_ops.end() ? OpCounts() : found->second;
}

// Ops as data flows through them, others after.
size_t FlowPosition(const std::string& op) {
  static constexpr std::string_view kFlow[] = {"route", "route.linear", "moe", "moe.ranks", "dispatch", "experts", "combine"};
  return std::find(std::begin(kFlow), std::end(kFlow), op) - std::begin(kFlow);
}

// Of the first rank; all hold as much.
LayerLine LineOf(const contract::ManifestLayer& layer) {
  return {PathName(layer.label.substr(0, layer.label.find('#'))),
          layer.family,
          layer.form,
          layer.num_experts,
          layer.top_k,
          layer.hidden,
          layer.intermediate,
          layer.activation,
          layer.tensors.empty() ? "" : layer.tensors.front().dtype,
          LayerBytes(layer, 0)};
}

}  // namespace

std::string OpsText(const OpCounts& ops) {
  std::vector<std::pair<std::string, int64_t>> ordered(ops.begin(), ops.end());
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const auto& a, const auto& b) { return FlowPosition(a.first) < FlowPosition(b.first); });
  std::string text;
  for (const auto& [op, count] : ordered) {
    text += (text.empty() ? "" : ", ") + op;
    if (count > 1) text += fmt::format(" x{}", count);
  }
  return text.empty() ? "none" : text;
}

int64_t RankExpertBytes(const contract::Manifest& manifest, int64_t rank) {
  int64_t bytes = 0;
  for (const contract::ManifestLayer& layer : manifest.layers) bytes += LayerBytes(layer, rank);
  return bytes;
}

int64_t TotalExpertBytes(const contract::Manifest& manifest) {
  int64_t bytes = 0;
  for (int64_t rank = 0; rank < manifest.ep_size; ++rank) bytes += RankExpertBytes(manifest, rank);
  return bytes;
}

std::string ConvertedTable(const contract::Manifest& manifest, const ModelSummary& summary, const Console& console) {
  std::vector<Table::Column> columns = LayerColumns("bytes a rank");
  columns.push_back({"experts a rank", Align::kRight});
  columns.push_back({"EP ops of the block"});
  Table table(std::move(columns));
  for (const contract::ManifestLayer& layer : manifest.layers) {
    std::vector<std::string> cells = LayerCells(LineOf(layer));
    cells.push_back(fmt::to_string(layer.num_experts / manifest.ep_size));
    cells.push_back(OpsText(OpsOf(summary, layer.block)));
    table.AddRow(std::move(cells));
  }
  return table.Render(console);
}

Json ConvertedJson(const contract::Manifest& manifest, const ModelSummary& summary) {
  Json document = {{"layout", manifest.layout},
                   {"ep_size", manifest.ep_size},
                   {"op_abi", manifest.op_abi},
                   {"tool", manifest.tool},
                   {"torch", manifest.torch},
                   {"plan", manifest.plan},
                   {"source_digest", manifest.source.digest}};
  document["layers"] = Json::array();
  for (const contract::ManifestLayer& layer : manifest.layers) {
    Json line = LineJson(LineOf(layer));
    line.update({{"path", layer.path}, {"block", layer.block}, {"ep_ops", OpsOf(summary, layer.block)}});
    document["layers"].push_back(std::move(line));
  }
  document["files"] = Json::array();
  for (const contract::ManifestFile& file : manifest.files) {
    document["files"].push_back({{"file", file.file}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  std::vector<int64_t> rank_bytes;
  for (int64_t rank = 0; rank < manifest.ep_size; ++rank) rank_bytes.push_back(RankExpertBytes(manifest, rank));
  document["expert_bytes_by_rank"] = rank_bytes;
  document["replicated_bytes"] = summary.TensorBytes();
  document["limits"] = manifest.limits;
  return document;
}

}  // namespace autoep
