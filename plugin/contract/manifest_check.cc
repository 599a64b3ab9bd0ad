// SPDX-License-Identifier: Apache-2.0
// CheckManifest, from the outside in: files, layers, tensors, source parts, pieces.
#include "plugin/contract/manifest_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <string_view>

#include "plugin/contract/activation.h"
#include "plugin/contract/dtype.h"
#include "plugin/contract/placement.h"
#include "plugin/io/checked.h"
#include "plugin/io/text.h"

namespace autoep::contract {
namespace {

constexpr std::array<std::string_view, 6> kRoles = {"gate_up", "up", "down", "gate_up_bias", "up_bias", "down_bias"};

template <typename... Args>
Status Fail(const std::string& where, fmt::format_string<Args...> format, Args&&... args) {
  return Status(Code::kPlugin, where + ": " + fmt::format(format, std::forward<Args>(args)...));
}

bool IsPlainFileName(std::string_view name) {
  if (name.empty() || name == "." || name == "..") return false;
  return std::none_of(name.begin(), name.end(),
                      [](char c) { return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

bool IsHash(std::string_view text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

Status CheckHash(const std::string& where, const std::string& hash) {
  if (IsHash(hash)) return {};
  return Fail(where, "expected 64 lower-case hex digits, found '{}'", Printable(hash));
}

Status CheckNotEmpty(const std::string& where, const std::string& text) {
  return text.empty() ? Fail(where, "is empty") : Status();
}

// A dotted path of an attribute: no empty step.
Status CheckAttribute(const std::string& where, const std::string& path) {
  const bool empty_step = path.empty() || path.front() == '.' || path.back() == '.' || path.find("..") != std::string::npos;
  return empty_step ? Fail(where, "'{}' is not the name of an attribute", Printable(path)) : Status();
}

Status CheckFiles(const Manifest& manifest) {
  std::set<std::string> seen;
  for (size_t i = 0; i < manifest.files.size(); ++i) {
    const ManifestFile& file = manifest.files[i];
    const std::string where = fmt::format("files[{}]", i);
    if (!IsPlainFileName(file.file)) return Fail(where + ".file", "'{}' is not a plain file name", Printable(file.file));
    if (file.file == kManifestName) return Fail(where + ".file", "the manifest does not list itself");
    if (!seen.insert(file.file).second) return Fail(where + ".file", "'{}' occurs twice", Printable(file.file));
    AUTOEP_RETURN_IF_ERROR(CheckHash(where + ".sha256", file.sha256));
  }
  return {};
}

bool Overlap(int64_t begin_a, int64_t count_a, int64_t begin_b, int64_t count_b) {
  return begin_a < begin_b + count_b && begin_b < begin_a + count_a;
}

// Every (expert, row) of the tensor comes from exactly one part.
Status CheckSource(const std::string& where, const ManifestTensor& tensor) {
  const int64_t experts = tensor.shape[0], rows = tensor.shape[1];
  int64_t covered = 0;
  for (size_t i = 0; i < tensor.source.size(); ++i) {
    const SourcePart& part = tensor.source[i];
    const std::string here = fmt::format("{}[{}]", where, i);
    AUTOEP_RETURN_IF_ERROR(CheckNotEmpty(here + ".tensor", part.tensor));
    const bool inside = part.expert_begin <= experts && part.expert_count <= experts - part.expert_begin &&
                        part.row_begin <= rows && part.row_count <= rows - part.row_begin;
    if (!inside) return Fail(here, "lies outside the tensor's {} experts and {} rows", experts, rows);
    for (size_t j = 0; j < i; ++j) {
      const SourcePart& other = tensor.source[j];
      if (Overlap(part.expert_begin, part.expert_count, other.expert_begin, other.expert_count) &&
          Overlap(part.row_begin, part.row_count, other.row_begin, other.row_count)) {
        return Fail(here, "covers rows that part {} covers too", j);
      }
    }
    covered += part.expert_count * part.row_count;
  }
  if (covered == experts * rows) return {};
  return Fail(where, "the parts cover {} of {} rows", covered, experts * rows);
}

Status CheckPiece(const std::string& where, const ManifestTensor& tensor, const ShardPiece& piece, int64_t slots) {
  std::vector<int64_t> shape = tensor.shape;
  shape[0] = slots;
  if (piece.shape != shape) {
    return Fail(where + ".shape", "expected [{}], found [{}]", fmt::join(shape, ", "), fmt::join(piece.shape, ", "));
  }
  const auto elements = CheckedProduct<int64_t>(shape);
  const auto bytes = elements ? CheckedMul(*elements, FindDtype(tensor.dtype)->bytes) : std::nullopt;
  if (!bytes) return Fail(where + ".shape", "[{}] is larger than any file", fmt::join(shape, ", "));
  if (piece.bytes != *bytes) return Fail(where + ".bytes", "expected {}, found {}", *bytes, piece.bytes);
  return CheckHash(where + ".sha256", piece.sha256);
}

Status CheckPieces(const std::string& where, const Manifest& manifest, const ManifestTensor& tensor) {
  if (std::cmp_not_equal(tensor.pieces.size(), manifest.ep_size)) {
    return Fail(where, "expected one for each of {} ranks, found {}", manifest.ep_size, tensor.pieces.size());
  }
  for (size_t rank = 0; rank < tensor.pieces.size(); ++rank) {
    const std::string here = fmt::format("{}[{}]", where, rank);
    const ShardPiece& piece = tensor.pieces[rank];
    if (std::cmp_not_equal(piece.rank, rank)) return Fail(here + ".rank", "expected {}, found {}", rank, piece.rank);
    AUTOEP_RETURN_IF_ERROR(CheckPiece(here, tensor, piece, tensor.shape[0] / manifest.ep_size));
  }
  return {};
}

Status CheckTensor(const std::string& where, const Manifest& manifest, const ManifestLayer& layer, const ManifestTensor& tensor) {
  if (std::find(kRoles.begin(), kRoles.end(), tensor.role) == kRoles.end()) {
    return Fail(where + ".role", "'{}' is none of {}", Printable(tensor.role), fmt::join(kRoles, ", "));
  }
  AUTOEP_RETURN_IF_ERROR(CheckAttribute(where + ".param", tensor.param));
  if (!FindDtype(tensor.dtype)) return Fail(where + ".dtype", "this build does not know '{}'", Printable(tensor.dtype));
  const size_t dims = tensor.role.ends_with("_bias") ? 2 : 3;
  if (tensor.shape.size() != dims) {
    return Fail(where + ".shape", "expected {} sizes for {}, found {}", dims, tensor.role, tensor.shape.size());
  }
  if (tensor.shape[0] != layer.num_experts) {
    return Fail(where + ".shape", "expected {} experts first, found {}", layer.num_experts, tensor.shape[0]);
  }
  if (!CheckedProduct<int64_t>(tensor.shape)) {
    return Fail(where + ".shape", "[{}] is larger than any file", fmt::join(tensor.shape, ", "));
  }
  AUTOEP_RETURN_IF_ERROR(CheckSource(where + ".source", tensor));
  return CheckPieces(where + ".pieces", manifest, tensor);
}

Status CheckLayerPlacement(const std::string& where, const Manifest& manifest, const ManifestLayer& layer) {
  if (std::cmp_not_equal(layer.placement.size(), layer.num_experts)) {
    return Fail(where, "expected {} experts, found {}", layer.num_experts, layer.placement.size());
  }
  const Status status = CheckPlacement({.ep_size = manifest.ep_size, .experts = layer.placement});
  return status.ok() ? Status() : Fail(where, "{}", status.message());
}

Status CheckLayer(const std::string& where, const Manifest& manifest, const ManifestLayer& layer) {
  AUTOEP_RETURN_IF_ERROR(CheckNotEmpty(where + ".label", layer.label));
  AUTOEP_RETURN_IF_ERROR(CheckNotEmpty(where + ".family", layer.family));
  AUTOEP_RETURN_IF_ERROR(CheckNotEmpty(where + ".form", layer.form));
  AUTOEP_RETURN_IF_ERROR(CheckAttribute(where + ".group_attr", layer.group_attr));
  AUTOEP_RETURN_IF_ERROR(CheckAttribute(where + ".placement_attr", layer.placement_attr));
  if (!ParseActivation(layer.activation)) {
    return Fail(where + ".activation", "this build does not know '{}'", Printable(layer.activation));
  }
  if (layer.weights_act != "after" && layer.weights_act != "input") {
    return Fail(where + ".weights_act", "expected 'after' or 'input', found '{}'", Printable(layer.weights_act));
  }
  if (layer.top_k > layer.num_experts) {
    return Fail(where + ".top_k", "{} is more than the {} experts", layer.top_k, layer.num_experts);
  }
  AUTOEP_RETURN_IF_ERROR(CheckLayerPlacement(where + ".placement", manifest, layer));
  if (layer.tensors.empty()) return Fail(where + ".tensors", "is empty");
  for (size_t i = 0; i < layer.tensors.size(); ++i) {
    AUTOEP_RETURN_IF_ERROR(CheckTensor(fmt::format("{}.tensors[{}]", where, i), manifest, layer, layer.tensors[i]));
  }
  return {};
}

// No two layers or tensors that a loader would take for the same.
Status CheckUnique(const Manifest& manifest) {
  std::set<std::string> labels, params;
  for (size_t i = 0; i < manifest.layers.size(); ++i) {
    const ManifestLayer& layer = manifest.layers[i];
    const std::string where = fmt::format("layers[{}]", i);
    if (!labels.insert(layer.label).second) return Fail(where + ".label", "'{}' occurs twice", Printable(layer.label));
    std::set<std::string> roles;
    for (size_t j = 0; j < layer.tensors.size(); ++j) {
      const ManifestTensor& tensor = layer.tensors[j];
      const std::string here = fmt::format("{}.tensors[{}]", where, j);
      if (!roles.insert(tensor.role).second) return Fail(here + ".role", "'{}' occurs twice", tensor.role);
      if (!params.insert(tensor.param).second) return Fail(here + ".param", "'{}' occurs twice", Printable(tensor.param));
    }
  }
  return {};
}

}  // namespace

Status CheckManifest(const Manifest& manifest) {
  AUTOEP_RETURN_IF_ERROR(CheckNotEmpty("tool", manifest.tool));
  AUTOEP_RETURN_IF_ERROR(CheckNotEmpty("torch", manifest.torch));
  AUTOEP_RETURN_IF_ERROR(CheckNotEmpty("plan", manifest.plan));
  if (manifest.layout != "shared" && manifest.layout != "per-rank") {
    return Fail("layout", "expected 'shared' or 'per-rank', found '{}'", Printable(manifest.layout));
  }
  AUTOEP_RETURN_IF_ERROR(CheckHash("source.digest", manifest.source.digest));
  AUTOEP_RETURN_IF_ERROR(CheckFiles(manifest));
  if (manifest.layers.empty()) return Fail("layers", "is empty");
  for (size_t i = 0; i < manifest.layers.size(); ++i) {
    AUTOEP_RETURN_IF_ERROR(CheckLayer(fmt::format("layers[{}]", i), manifest, manifest.layers[i]));
  }
  return CheckUnique(manifest);
}

}  // namespace autoep::contract
