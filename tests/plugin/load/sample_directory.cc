// SPDX-License-Identifier: Apache-2.0
// Writing the sample directory with torch's own serialization and our safetensors writer.
#include "tests/plugin/load/sample_directory.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>
#include <torch/csrc/jit/serialization/export.h>

#include <fstream>

#include "plugin/contract/dtype.h"
#include "plugin/io/safetensors.h"
#include "plugin/io/sha256.h"

namespace autoep {
namespace {

using torch::jit::Module;

constexpr char kBlockForward[] = R"(
def forward(self, x, ids, weights):
    no_numbers: List[float] = []
    rows, offsets, counts, order, received = autoep.dispatch(
        x, ids, None, self.autoep_placement, {ep_size}, self.autoep_group, "{label}", 1)
    rows = autoep.experts(
        rows, offsets, self.autoep_gate_up, self.autoep_down, None, None, "silu_gated", no_numbers, "{label}", 1)
    return autoep.combine(
        rows, weights, order, counts, received, self.autoep_placement, {ep_size}, self.autoep_group, "{label}", 1)
)";

// `autoep` in the source means the ops.
struct OpsResolver : torch::jit::Resolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(const std::string& name, torch::jit::GraphFunction&,
                                                         const torch::jit::SourceRange&) override {
    return name == "autoep" ? std::make_shared<torch::jit::BuiltinModule>(name) : nullptr;
  }
};

// This rank's slots of a whole tensor.
at::Tensor Piece(const at::Tensor& whole, const contract::ManifestLayer& layer, int64_t ep_size, int64_t rank) {
  const contract::Placement placement{.ep_size = ep_size, .experts = layer.placement};
  std::vector<at::Tensor> slots;
  for (const int64_t expert : placement.ExpertsOf(rank)) slots.push_back(whole.narrow(0, expert, 1));
  return at::cat(slots).contiguous();
}

std::string_view BytesOf(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

at::Tensor PlacementTable(const contract::ManifestLayer& layer) {
  at::Tensor table = at::empty({layer.num_experts, 1, 2}, at::kLong);
  for (int64_t expert = 0; expert < layer.num_experts; ++expert) {
    table[expert][0][0] = layer.placement[expert].rank;
    table[expert][0][1] = layer.placement[expert].slot;
  }
  return table;
}

// The block with the experts of `rank`, or placeholders where it is negative.
Module MakeBlock(const SampleDirectory& sample, const contract::ManifestLayer& layer, int64_t rank) {
  Module block("Block" + layer.path.substr(layer.path.size() - 1));
  block.register_attribute("autoep_group", c10::StringType::get(), std::string());
  block.register_buffer("autoep_placement", PlacementTable(layer));
  for (const contract::ManifestTensor& tensor : layer.tensors) {
    const at::Tensor& whole = sample.experts.at(tensor.param);
    const at::Tensor value = rank < 0 ? whole.narrow(0, 0, 0).clone() : Piece(whole, layer, sample.manifest.ep_size, rank);
    block.register_parameter(tensor.param.substr(tensor.param.rfind('.') + 1), value.set_requires_grad(tensor.requires_grad),
                             false);
  }
  block.define(fmt::format(kBlockForward, fmt::arg("ep_size", sample.manifest.ep_size), fmt::arg("label", layer.label)),
               std::make_shared<OpsResolver>());
  return block;
}

Module MakeModel(const SampleDirectory& sample, int64_t rank) {
  Module model("Model");
  std::string sum = "x * self.scale";
  model.register_parameter("scale", at::zeros({1}, sample.experts.begin()->second.scalar_type()), false);
  for (size_t i = 0; i < sample.manifest.layers.size(); ++i) {
    model.register_module(fmt::format("block{}", i), MakeBlock(sample, sample.manifest.layers[i], rank));
    sum += fmt::format(" + self.block{}.forward(x, ids, weights)", i);
  }
  model.define("def forward(self, x, ids, weights):\n    return " + sum + "\n");
  Module root("Root");
  root.register_module("model", model);
  root.define("def forward(self, x, ids, weights):\n    return self.model.forward(x, ids, weights)\n");
  return root;
}

void WriteModel(const SampleDirectory& sample, const std::string& name, int64_t rank) {
  std::ofstream out(sample.path / name, std::ios::binary);
  const auto write = [&](const void* data, size_t size) {
    out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
    return size;
  };
  torch::jit::ExportModule(MakeModel(sample, rank), write, {{contract::kManifestName, contract::ToJson(sample.manifest)}});
}

// Writes `rank`'s shard and its hashes into the manifest.
void WriteShard(SampleDirectory& sample, int64_t rank) {
  std::map<std::string, at::Tensor> pieces;
  std::vector<SafetensorsSpec> specs;
  for (contract::ManifestLayer& layer : sample.manifest.layers) {
    for (contract::ManifestTensor& tensor : layer.tensors) {
      pieces[tensor.param] = Piece(sample.experts.at(tensor.param), layer, sample.manifest.ep_size, rank);
      tensor.pieces[rank].sha256 = Sha256Hex(BytesOf(pieces[tensor.param]));
      specs.push_back({.name = tensor.param, .dtype = tensor.dtype, .shape = tensor.pieces[rank].shape});
    }
  }
  std::ofstream out(sample.path / contract::ShardName(rank, sample.manifest.ep_size), std::ios::binary);
  auto writer = SafetensorsWriter::Create(specs, {}, [&](const void* data, size_t size) {
    out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
    return Status();
  });
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  for (const SafetensorsSpec& spec : writer->tensors()) {
    ASSERT_TRUE(writer->Append(BytesOf(pieces[spec.name]).data(), BytesOf(pieces[spec.name]).size()).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
}

}  // namespace

void SampleDirectory::WriteManifest() const { std::ofstream(path / contract::kManifestName) << contract::ToJson(manifest); }

at::Tensor SampleDirectory::Reference(const at::Tensor& x, const at::Tensor& ids, const at::Tensor& weights) const {
  at::Tensor out = at::zeros_like(x);
  for (const contract::ManifestLayer& layer : manifest.layers) {
    const at::Tensor& gate_up = experts.at(layer.tensors[0].param);
    const at::Tensor& down = experts.at(layer.tensors[1].param);
    for (int64_t token = 0; token < ids.size(0); ++token) {
      for (int64_t choice = 0; choice < ids.size(1); ++choice) {
        const int64_t expert = ids[token][choice].item<int64_t>();
        const auto halves = at::linear(x[token], gate_up[expert]).chunk(2);
        out[token] += weights[token][choice] * at::linear(at::silu(halves[0]) * halves[1], down[expert]);
      }
    }
  }
  return out;
}

SampleDirectory MakeDirectory(const std::filesystem::path& path, const contract::SampleSizes& sizes, const std::string& layout) {
  std::filesystem::create_directories(path);
  SampleDirectory sample{.path = path, .manifest = contract::SampleManifest(sizes), .experts = {}};
  contract::Manifest& manifest = sample.manifest;
  manifest.layout = layout;
  manifest.layers[0].tensors[1].requires_grad = true;
  at::manual_seed(1);
  for (const contract::ManifestLayer& layer : manifest.layers) {
    for (const contract::ManifestTensor& tensor : layer.tensors) {
      sample.experts[tensor.param] = at::randn(tensor.shape).to(contract::FindDtype(tensor.dtype)->type);
    }
  }
  manifest.files.clear();
  for (int64_t rank = 0; rank < sizes.ep_size; ++rank) {
    if (layout == "shared") WriteShard(sample, rank);
    if (layout != "shared") WriteModel(sample, contract::PerRankModelName(rank, sizes.ep_size), rank);
  }
  if (layout == "shared") WriteModel(sample, contract::kModelName, -1);
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    manifest.files.push_back({.file = entry.path().filename().string(),
                              .bytes = static_cast<int64_t>(entry.file_size()),
                              .sha256 = contract::SampleHash('c')});
  }
  sample.WriteManifest();
  return sample;
}

}  // namespace autoep
