// SPDX-License-Identifier: Apache-2.0
// Before and after a conversion.
#include "tools/convert_report.h"

#include <fmt/format.h>

#include "plugin/io/text.h"
#include "tools/converted_report.h"
#include "tools/table.h"

namespace autoep {
namespace {

bool HoldsExperts(const contract::Manifest& manifest) { return manifest.layout == "per-rank"; }

Json SummaryJson(const ModelSummary& summary) {
  return {{"graph_nodes", summary.nodes},
          {"ep_ops", summary.EpOpCount()},
          {"parameters", summary.parameters},
          {"parameter_bytes", summary.parameter_bytes},
          {"buffer_bytes", summary.buffer_bytes},
          {"constant_bytes", summary.constant_bytes}};
}

}  // namespace

int64_t BeforeAfter::ReplicatedBytes() const {
  return after.TensorBytes() - (HoldsExperts(manifest) ? RankExpertBytes(manifest, 0) : 0);
}

int64_t BeforeAfter::RankBytes(int64_t rank) const { return ReplicatedBytes() + RankExpertBytes(manifest, rank); }

std::string BeforeAfterTable(const BeforeAfter& report, const Console& console) {
  Table table({{""}, {"before", Align::kRight}, {"after, a rank", Align::kRight}});
  const auto counts = [&](const char* name, int64_t before, int64_t after) {
    table.AddRow({name, fmt::to_string(before), fmt::to_string(after)});
  };
  const auto bytes = [&](const char* name, int64_t before, int64_t after) {
    table.AddRow({name, HumanBytes(before), HumanBytes(after)});
  };
  counts("graph nodes", report.before.nodes, report.after.nodes);
  counts("EP ops", report.before.EpOpCount(), report.after.EpOpCount());
  counts("parameters", report.before.parameters, report.after.parameters);
  bytes("expert bytes", report.expert_bytes, RankExpertBytes(report.manifest, 0));
  bytes("other tensor bytes", report.before.TensorBytes() - report.expert_bytes, report.ReplicatedBytes());
  bytes("all tensor bytes", report.before.TensorBytes(), report.RankBytes(0));
  return table.Render(console);
}

Json BeforeAfterJson(const BeforeAfter& report) {
  Json document = ConvertedJson(report.manifest, report.after);
  document["before"] = SummaryJson(report.before);
  document["after"] = SummaryJson(report.after);
  document["source_bytes"] = report.source_bytes;
  document["expert_bytes"] = report.expert_bytes;
  document["replicated_bytes"] = report.ReplicatedBytes();
  return document;
}

std::string ConvertedSentence(const contract::Manifest& manifest) {
  int64_t experts = 0;
  for (const contract::ManifestLayer& layer : manifest.layers) experts += layer.num_experts;
  return fmt::format("{}, {} -> {}, {} of experts a rank, plan {}", Plural(manifest.layers.size(), "layer"),
                     Plural(experts, "expert"), Plural(manifest.ep_size, "rank"), HumanBytes(RankExpertBytes(manifest, 0)),
                     manifest.plan.substr(0, 12));
}

}  // namespace autoep
