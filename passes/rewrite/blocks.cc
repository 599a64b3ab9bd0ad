// SPDX-License-Identifier: Apache-2.0
// First types are told apart where they must be, then graphs are prepared: a clone made later would leave an edited object
// behind.
#include "passes/rewrite/blocks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <optional>
#include <set>

#include "passes/detect/proof_memory.h"
#include "passes/model/modules.h"
#include "passes/rewrite/unshare.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

// What the edited graph says of a layer; the rest lies in attributes, which each object has for itself.
std::string GraphFacts(const MoeLayer& layer) {
  std::string facts = fmt::format("{} {} {} {} [{}]", layer.form, layer.num_experts, layer.weights_on_input, layer.activation,
                                  fmt::join(layer.activation_args, ","));
  for (const ExpertTensor& tensor : layer.tensors) {
    facts += fmt::format(" {} {} [{}]", tensor.role, c10::toString(tensor.dtype), fmt::join(tensor.shape, ","));
  }
  return facts;
}

// Paths of blocks, each once, and the facts of all layers in it.
std::vector<std::pair<std::string, std::string>> FactsByPath(const std::vector<MoeLayer>& layers) {
  std::vector<std::pair<std::string, std::string>> facts;
  std::map<std::string, size_t> position;
  for (const MoeLayer& layer : layers) {
    const auto [entry, fresh] = position.emplace(layer.path, facts.size());
    if (fresh) facts.emplace_back(layer.path, "");
    facts[entry->second].second += GraphFacts(layer) + "\n";
  }
  return facts;
}

using Groups = std::vector<std::vector<std::string>>;  // paths of blocks that share a type, by first path

Groups GroupByType(const torch::jit::Module& root, const std::vector<std::pair<std::string, std::string>>& facts) {
  Groups groups;
  std::map<const void*, size_t> position;
  for (const auto& [path, unused] : facts) {
    const auto [entry, fresh] = position.emplace(FindModule(root, path)->type().get(), groups.size());
    if (fresh) groups.emplace_back();
    groups[entry->second].push_back(path);
  }
  return groups;
}

// Gives blocks a type of their own where one graph cannot serve all objects of the type.
void TellApart(torch::jit::Module& root, const std::vector<std::pair<std::string, std::string>>& facts) {
  const std::map<std::string, std::string> facts_of(facts.begin(), facts.end());
  std::optional<ObjectIndex> index;  // until a type is told apart
  for (const std::vector<std::string>& paths : GroupByType(root, facts)) {
    std::set<std::string> distinct;
    for (const std::string& path : paths) distinct.insert(facts_of.at(path));
    if (!index) index.emplace(root);
    const size_t objects = index->OfType(FindModule(root, paths[0])->type().get()).size();
    if (distinct.size() == 1 && objects == paths.size()) continue;
    for (const std::string& path : paths) Unshare(root, path);
    index.reset();
  }
}

bool SameTensors(const MoeLayer& a, const MoeLayer& b) {
  if (a.tensors.size() != b.tensors.size()) return false;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const auto& x = a.tensors[i];
    const auto& y = b.tensors[i];
    if (x.role != y.role || x.sources.size() != y.sources.size()) return false;
    for (size_t j = 0; j < x.sources.size(); ++j) {
      if (x.sources[j].const_data_ptr() != y.sources[j].const_data_ptr()) return false;
    }
  }
  return true;
}

Status NotAsDetected(const std::string& path) {
  return Status(Code::kBug,
                fmt::format("the MoE block '{}' does not match in place as it did when it was detected", Printable(path)));
}

// Adds the matches of one object to those of the objects before it.
Status MatchObject(const std::string& path, const std::vector<MoeLayer>& layers, ProofMemory& memory, BlockGraph& block) {
  std::vector<BlockMatch> matches = MatchBlocks(block.graph, block.objects.back(), path, &memory).matches;
  const bool first = block.objects.size() == 1;
  size_t next = 0;
  size_t wanted = 0;
  for (const MoeLayer& layer : layers) wanted += layer.path == path;
  for (BlockMatch& match : matches) {
    for (size_t i = 0; i < layers.size(); ++i) {
      if (layers[i].path != path || !SameTensors(match.layer, layers[i])) continue;
      if (first) block.matches.push_back({std::move(match), {i}});
      if (!first && (next >= block.matches.size() || block.matches[next].match.out != match.out)) return NotAsDetected(path);
      if (!first) block.matches[next].layers.push_back(i);
      ++next;
      break;
    }
  }
  return next == wanted ? Status() : NotAsDetected(path);
}

}  // namespace

Result<std::vector<BlockGraph>> PrepareBlocks(torch::jit::Module& root, const std::vector<MoeLayer>& layers) {
  const auto facts = FactsByPath(layers);
  TellApart(root, facts);
  std::vector<BlockGraph> blocks;
  ProofMemory memory;
  for (const std::vector<std::string>& paths : GroupByType(root, facts)) {
    BlockGraph block;
    for (const std::string& path : paths) {
      block.objects.push_back(*FindModule(root, path));
      if (block.graph == nullptr) {
        block.graph = torch::jit::toGraphFunction(block.objects[0].get_method("forward").function()).graph();
        PrepareBlockGraph(block.graph);
      }
      AUTOEP_RETURN_IF_ERROR(MatchObject(path, layers, memory, block));
    }
    blocks.push_back(std::move(block));
  }
  return blocks;
}

}  // namespace autoep
