// SPDX-License-Identifier: Apache-2.0
// The comparison. A token that chose another expert at a near tie is a flip: nothing it computes afterwards is compared,
// and neither are the tokens of its sequence, which attention mixes with it. Any other difference is a failure.
#include "tools/compare.h"

#include <ATen/ops/isfinite.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "plugin/io/text.h"

namespace autoep {
namespace {

// State of the tokens of one call, as the layers go by.
struct Tokens {
  int64_t count = 0;
  int64_t sequence = 1;
  std::vector<bool> flipped;
  std::vector<bool> sequence_flipped;  // by an earlier layer

  int64_t SequenceOf(int64_t token) const { return token / sequence; }
};

// One token's choices, by expert.
std::map<int64_t, double> Choices(const at::Tensor& ids, const at::Tensor& weights, int64_t token) {
  std::map<int64_t, double> choices;
  const int64_t* id = ids.const_data_ptr<int64_t>() + token * ids.size(1);
  const double* weight = weights.defined() ? weights.const_data_ptr<double>() + token * ids.size(1) : nullptr;
  for (int64_t i = 0; i < ids.size(1); ++i) choices[id[i]] += weight ? weight[i] : 0;
  return choices;
}

std::string Describe(const std::map<int64_t, double>& choices) {
  std::vector<std::string> words;
  for (const auto& [expert, weight] : choices) words.push_back(fmt::format("{} ({:.4g})", expert, weight));
  return JoinWords(words);
}

enum class Agreement { kSame, kWeightsDiffer, kNearTie, kDifferent };

// Experts that only one side chose are near ties when, largest to smallest, their weights pair up within the tolerance.
Agreement CompareChoices(const std::map<int64_t, double>& source, const std::map<int64_t, double>& converted, double near_tie) {
  double largest = 0;
  for (const auto& [expert, weight] : source) largest = std::max(largest, std::abs(weight));
  std::vector<double> only_source;
  std::vector<double> only_converted;
  bool weights_differ = false;
  for (const auto& [expert, weight] : source) {
    const auto other = converted.find(expert);
    if (other == converted.end()) {
      only_source.push_back(weight);
    } else if (!(std::abs(other->second - weight) <= near_tie * largest)) {
      weights_differ = true;
    }
  }
  for (const auto& [expert, weight] : converted) {
    if (!source.count(expert)) only_converted.push_back(weight);
  }
  if (only_source.size() != only_converted.size()) return Agreement::kDifferent;
  if (only_source.empty()) return weights_differ ? Agreement::kWeightsDiffer : Agreement::kSame;
  std::sort(only_source.begin(), only_source.end());
  std::sort(only_converted.begin(), only_converted.end());
  for (size_t i = 0; i < only_source.size(); ++i) {
    if (!(std::abs(only_source[i] - only_converted[i]) <= near_tie * largest)) return Agreement::kDifferent;
  }
  return Agreement::kNearTie;
}

at::Tensor AsDouble(const at::Tensor& weights) { return weights.defined() ? weights.to(at::kDouble).contiguous() : weights; }

// Compares one layer's routes; marks flips in `tokens`; the failure's sentence, or "".
std::string CompareRoutes(const LayerRoute& source, const LayerRoute& converted, const Tolerance& tolerance, Tokens* tokens,
                          Comparison* result) {
  const std::string name = LayerName(source.layer);
  if (LayerName(converted.layer) != name) {
    return fmt::format("the source runs the MoE layer {} where the converted model runs {}", name, LayerName(converted.layer));
  }
  if (source.ids.sizes() != converted.ids.sizes() || source.ids.dim() != 2 || source.ids.size(0) != tokens->count) {
    return fmt::format("{}: the routes have another shape after conversion", name);
  }
  const at::Tensor source_ids = source.ids.to(at::kLong).contiguous();
  const at::Tensor converted_ids = converted.ids.to(at::kLong).contiguous();
  const bool weighted = source.weights.defined() && converted.weights.defined();
  const at::Tensor source_weights = weighted ? AsDouble(source.weights) : at::Tensor();
  const at::Tensor converted_weights = weighted ? AsDouble(converted.weights) : at::Tensor();
  std::vector<bool> flipped_here(tokens->sequence_flipped.size(), false);
  for (int64_t token = 0; token < tokens->count; ++token) {
    if (tokens->sequence_flipped[tokens->SequenceOf(token)]) continue;
    const auto before = Choices(source_ids, source_weights, token);
    const auto after = Choices(converted_ids, converted_weights, token);
    const Agreement agreement = CompareChoices(before, after, tolerance.near_tie);
    if (agreement == Agreement::kSame) continue;
    if (agreement == Agreement::kWeightsDiffer) {
      if (result->first_layer.empty()) result->first_layer = name;
      continue;
    }
    if (agreement == Agreement::kDifferent || !weighted) {
      if (result->first_layer.empty()) result->first_layer = name;
      return fmt::format(
          "{}: token {} goes to experts {} in the source and to {} after conversion (weights in brackets), which is "
          "no near tie",
          name, token, Describe(before), Describe(after));
    }
    tokens->flipped[token] = true;
    flipped_here[tokens->SequenceOf(token)] = true;
  }
  for (size_t i = 0; i < flipped_here.size(); ++i) {
    if (flipped_here[i]) tokens->sequence_flipped[i] = true;
  }
  return "";
}

// [rows, columns] with rows = tokens where the leading dimensions hold them, else one row.
at::Tensor AsRows(const at::Tensor& output, int64_t tokens) {
  if (output.dim() >= 1 && output.size(0) == tokens) return output.reshape({tokens, output.numel() / std::max<int64_t>(tokens, 1)});
  if (output.dim() >= 2 && output.size(0) * output.size(1) == tokens) {
    return output.reshape({tokens, output.numel() / std::max<int64_t>(tokens, 1)});
  }
  return output.reshape({1, output.numel()});
}

// Error of each row, [rows] double, relative to the largest finite value of `source`. Infinity where a value is not finite
// on one side only, or where whole numbers differ.
at::Tensor RowErrors(const at::Tensor& source, const at::Tensor& converted) {
  const at::Tensor a = source.to(at::kDouble);
  const at::Tensor b = converted.to(at::kDouble);
  const at::Tensor finite = at::isfinite(a);
  const at::Tensor same = a.eq(b).logical_or(a.isnan().logical_and(b.isnan()));
  const double infinity = std::numeric_limits<double>::infinity();
  at::Tensor error = a.sub(b).abs();
  if (at::isFloatingType(source.scalar_type())) {
    const double scale = at::where(finite, a.abs(), at::zeros_like(a)).max().item<double>();
    if (scale > 0) error = error.div(scale);
    error = at::where(finite.logical_and(at::isfinite(b)), error, at::zeros_like(a).fill_(infinity));
  } else {
    error = at::zeros_like(a).fill_(infinity);
  }
  return at::where(same, at::zeros_like(a), error).amax({1}).contiguous();
}

// True where a flip may have changed this row.
bool Exempt(const Tokens& tokens, int64_t row, bool rows_are_tokens) {
  if (!rows_are_tokens) {
    return std::find(tokens.sequence_flipped.begin(), tokens.sequence_flipped.end(), true) != tokens.sequence_flipped.end();
  }
  return tokens.sequence_flipped[tokens.SequenceOf(row)];
}

std::string CompareOutput(const std::string& name, const at::Tensor& source, const at::Tensor& converted, const Tokens& tokens,
                          const Tolerance& tolerance, Comparison* result) {
  if (source.scalar_type() != converted.scalar_type() || source.sizes() != converted.sizes()) {
    return fmt::format("{} is {} {} in the source and {} {} after conversion", name, c10::toString(source.scalar_type()),
                       fmt::join(source.sizes(), "x"), c10::toString(converted.scalar_type()), fmt::join(converted.sizes(), "x"));
  }
  if (source.numel() == 0) return "";
  const at::Tensor rows = AsRows(source, tokens.count);
  const bool rows_are_tokens = rows.size(0) == tokens.count;
  const at::Tensor errors = RowErrors(rows, AsRows(converted, tokens.count));
  const double* error = errors.const_data_ptr<double>();
  int64_t worst = -1;
  for (int64_t row = 0; row < errors.numel(); ++row) {
    if (Exempt(tokens, row, rows_are_tokens)) {
      const bool flipped = rows_are_tokens && tokens.flipped[row];
      if (!flipped && !(error[row] <= tolerance.output)) ++result->exempt_over;
      continue;
    }
    result->max_error = std::max(result->max_error, error[row]);
    if (!(error[row] <= tolerance.output) && (worst < 0 || error[row] > error[worst])) worst = row;
  }
  if (worst < 0) return "";
  return fmt::format("{}{} differs by {:.3g} of the largest value, and {:.0e} is allowed", name,
                     rows_are_tokens ? fmt::format(" of token {}", worst) : "", error[worst], tolerance.output);
}

}  // namespace

Tolerance Tolerance::For(at::ScalarType dtype) {
  const bool narrow = dtype == at::kBFloat16 || dtype == at::kHalf;
  return narrow ? Tolerance{2e-2, 5e-2} : Tolerance{2e-4, 1e-3};
}

std::string LayerName(const std::string& label) {
  const std::string path = label.substr(0, label.find('#'));
  return path.empty() ? "(root)" : Printable(path);
}

Comparison Compare(const RunRecord& source, const RunRecord& converted, int64_t sequence, const Tolerance& tolerance) {
  Comparison result;
  if (source.routes.size() != converted.routes.size()) {
    result.failure =
        fmt::format("the source ran {} MoE layers and the converted model {}", source.routes.size(), converted.routes.size());
    return result;
  }
  Tokens tokens;
  tokens.count = source.routes.empty() ? 0 : source.routes[0].ids.size(0);
  tokens.sequence = std::clamp<int64_t>(sequence, 1, std::max<int64_t>(tokens.count, 1));
  tokens.flipped.assign(tokens.count, false);
  tokens.sequence_flipped.assign((tokens.count + tokens.sequence - 1) / tokens.sequence, false);
  result.tokens = tokens.count;
  for (size_t i = 0; i < source.routes.size(); ++i) {
    result.failure = CompareRoutes(source.routes[i], converted.routes[i], tolerance, &tokens, &result);
    if (!result.failure.empty()) return result;
  }
  if (source.outputs.size() != converted.outputs.size()) {
    result.failure =
        fmt::format("the source has {} outputs and the converted model {}", source.outputs.size(), converted.outputs.size());
    return result;
  }
  for (size_t i = 0; i < source.outputs.size() && result.failure.empty(); ++i) {
    const auto& [name, tensor] = source.outputs[i];
    result.failure = CompareOutput(name, tensor, converted.outputs[i].second, tokens, tolerance, &result);
  }
  result.flips = std::count(tokens.flipped.begin(), tokens.flipped.end(), true);
  for (int64_t token = 0; token < tokens.count; ++token) {
    if (!tokens.flipped[token] && tokens.sequence_flipped[tokens.SequenceOf(token)]) ++result.after_flips;
  }
  return result;
}

Status CheckRows(const std::vector<RunRecord>& ranks, const contract::Manifest& manifest) {
  std::map<std::string, const contract::ManifestLayer*> layers;
  for (const contract::ManifestLayer& layer : manifest.layers) layers[layer.label] = &layer;
  const size_t calls = ranks.empty() ? 0 : ranks[0].routes.size();
  for (size_t call = 0; call < calls; ++call) {
    const auto layer = layers.find(ranks[0].routes[call].layer);
    if (layer == layers.end()) {
      return Status(Code::kVerify, fmt::format("the model runs a layer '{}' that the manifest does not have",
                                               Printable(ranks[0].routes[call].layer)));
    }
    std::vector<int64_t> expected(ranks.size(), 0);
    for (const RunRecord& rank : ranks) {
      const at::Tensor ids = rank.routes.at(call).ids.to(at::kLong).contiguous();
      for (int64_t i = 0; i < ids.numel(); ++i) ++expected.at(layer->second->placement.at(ids.const_data_ptr<int64_t>()[i]).rank);
    }
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      const int64_t rows = call < ranks[rank].rows.size() ? ranks[rank].rows[call].rows : -1;
      if (rows == expected[rank]) continue;
      return Status(Code::kVerify,
                    fmt::format("{}: the experts of rank {} processed {} rows, and the routes of all ranks send it {}",
                                LayerName(layer->first), rank, std::max<int64_t>(rows, 0), expected[rank]));
    }
  }
  return Status();
}

}  // namespace autoep
