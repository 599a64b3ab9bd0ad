// SPDX-License-Identifier: Apache-2.0
// VerifyNumbers: the whole model, or block by block where asked for, where memory is short, or to name the layer that
// differs.
#include "tools/verify_numbers.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <set>

#include "passes/detect/detect.h"
#include "passes/detect/moe_layer.h"
#include "passes/model/modules.h"
#include "passes/model/moe_model.h"
#include "passes/rewrite/instrument.h"
#include "plugin/io/output.h"
#include "plugin/io/text.h"
#include "tools/console.h"

namespace autoep {
namespace {

constexpr int64_t kProcessBytes = 400 << 20;  // LibTorch and the inputs and outputs of small shapes

// The least of what the machine and this process's cgroup have left, or nullopt where neither says.
std::optional<int64_t> AvailableMemory() {
  std::optional<int64_t> available;
  std::ifstream meminfo("/proc/meminfo");
  std::string word;
  while (meminfo >> word) {
    int64_t kib = 0;
    if (word == "MemAvailable:" && meminfo >> kib) available = kib * 1024;
  }
  int64_t limit = 0;
  int64_t used = 0;
  std::ifstream max("/sys/fs/cgroup/memory.max");
  std::ifstream current("/sys/fs/cgroup/memory.current");
  if (max >> limit && current >> used) available = std::min(available.value_or(INT64_MAX), std::max<int64_t>(limit - used, 0));
  return available;
}

// What the whole model takes: the source alone, then all ranks together with the replicated weights once each.
int64_t NeededMemory(const contract::Manifest& manifest) {
  int64_t experts = 0;
  for (const contract::ManifestLayer& layer : manifest.layers) {
    for (const contract::ManifestTensor& tensor : layer.tensors) {
      for (const contract::ShardPiece& piece : tensor.pieces) experts += piece.bytes;
    }
  }
  const int64_t source = manifest.source.bytes;
  const int64_t ranks = experts + manifest.ep_size * (std::max<int64_t>(source - experts, 0) + kProcessBytes);
  return std::max(source + kProcessBytes, ranks);
}

bool Fits(const contract::Manifest& manifest, VerifyReport* report) {
  const auto available = AvailableMemory();
  const int64_t needed = NeededMemory(manifest);
  if (!available || needed <= *available) return true;
  report->notes.push_back(fmt::format("the whole model needs {} and {} are free: each MoE block was compared alone",
                                      HumanBytes(needed), HumanBytes(*available)));
  return false;
}

// The source with its routes recorded; written out before it is run, because an edited module is not run where it was edited.
class InstrumentedSource {
 public:
  static Result<InstrumentedSource> Open(const std::string& path) {
    InstrumentedSource source;
    AUTOEP_ASSIGN_OR_RETURN(source.original_, OpenModel(path));
    AUTOEP_ASSIGN_OR_RETURN(source.edited_, OpenModel(path));
    const Detection detection = Detect(source.edited_.module);
    AUTOEP_RETURN_IF_ERROR(InstrumentRoutes(source.edited_, detection));
    return source;
  }

  // The module at `path`, saved to `file`, and its arguments.
  Result<Subject> Save(const std::string& path, const std::string& file) const {
    const auto edited = FindModule(edited_.module, path);
    if (!edited) return Status(Code::kVerify, fmt::format("the source has no module '{}'", Printable(path)));
    std::remove(file.c_str());
    AUTOEP_ASSIGN_OR_RETURN(const auto output, OutputFile::Create(file, &FileSystem::Real()));
    AUTOEP_RETURN_IF_ERROR(WriteModel(*edited, {}, output->Sink()));
    AUTOEP_RETURN_IF_ERROR(output->Finish());
    Subject subject;
    subject.path = path;
    subject.source = file;
    subject.arguments = ArgumentsOf(*edited);
    return subject;
  }

  Result<std::vector<InputSpec>> Specs(const std::string& path) const { return InferInputs(*FindModule(original_.module, path)); }

 private:
  MoeModel original_;
  MoeModel edited_;
};

// Whether every layer has a module of its own below the root.
bool HasBlocks(const contract::Manifest& manifest) {
  return std::none_of(manifest.layers.begin(), manifest.layers.end(),
                      [](const contract::ManifestLayer& layer) { return layer.block.empty(); });
}

Result<SubjectOutcome> RunWhole(const NumbersContext& context, const InstrumentedSource& source) {
  AUTOEP_ASSIGN_OR_RETURN(Subject subject, source.Save("", context.folder.File("source.pt")));
  if (context.options.inputs.empty()) {
    AUTOEP_ASSIGN_OR_RETURN(subject.specs, source.Specs(""));
  }
  return RunSubject(context, subject);
}

// Every block alone, up to the first that differs.
Result<SubjectOutcome> RunBlocks(const NumbersContext& context, const InstrumentedSource& source) {
  SubjectOutcome all;
  std::set<std::string> seen;
  for (const contract::ManifestLayer& layer : context.manifest.layers) {
    if (!seen.insert(layer.block).second) continue;
    AUTOEP_ASSIGN_OR_RETURN(Subject subject, source.Save(layer.path, context.folder.File("block.pt")));
    subject.block = layer.block;
    auto specs = source.Specs(layer.path);
    if (!specs.ok()) return specs.status().At(LayerName(layer.path));
    subject.specs = std::move(*specs);
    AUTOEP_ASSIGN_OR_RETURN(const SubjectOutcome outcome, RunSubject(context, subject));
    all.cases.insert(all.cases.end(), outcome.cases.begin(), outcome.cases.end());
    if (outcome.failure.empty()) continue;
    all.failure = outcome.failure;
    all.first_layer = LayerName(layer.path);
    break;
  }
  return all;
}

// The blocks again after the whole model was run: rows and bytes were measured then.
Result<SubjectOutcome> RunBlocksToo(const NumbersContext& context, const InstrumentedSource& source) {
  VerifyReport ignored;
  return RunBlocks(NumbersContext{context.directory, context.manifest, context.options, context.folder, &ignored}, source);
}

// Names the layer behind a difference of the whole model, by running the blocks alone.
Status Locate(const NumbersContext& context, const InstrumentedSource& source, const SubjectOutcome& whole) {
  std::string where;
  if (HasBlocks(context.manifest)) {
    const auto blocks = RunBlocksToo(context, source);
    if (!blocks.ok()) {
      where = fmt::format("; {}", blocks.status().message());
    } else if (blocks->failure.empty()) {
      where = "; every MoE block alone agrees, so the difference lies outside the experts";
    } else {
      where = fmt::format("; the first layer that differs is {}: {}", blocks->first_layer, blocks->failure);
    }
  } else if (!whole.first_layer.empty()) {
    where = fmt::format("; the first layer that differs is {}", whole.first_layer);
  }
  return Status(Code::kVerify, whole.failure + where);
}

Status CheckFlips(const std::vector<VerifyCase>& cases, std::string_view advice) {
  int64_t tokens = 0;
  int64_t flips = 0;
  for (const VerifyCase& one : cases) {
    tokens += one.tokens;
    flips += one.flips;
  }
  if (flips <= kMaxFlips * tokens) return Status();
  return Status(Code::kVerify,
                fmt::format("{} of {} tokens took other experts than in the source, at near ties, and {:.0f} % are allowed{}",
                            flips, tokens, 100 * kMaxFlips, advice));
}

Status CheckBlocks(const SubjectOutcome& blocks, VerifyReport* report) {
  report->cases.insert(report->cases.end(), blocks.cases.begin(), blocks.cases.end());
  if (blocks.failure.empty()) return CheckFlips(blocks.cases, "");
  return Status(Code::kVerify, fmt::format("the first layer that differs is {}: {}", blocks.first_layer, blocks.failure));
}

// What a flip excuses in the whole model is looked at again without attention: each block is given the same hidden states.
Status CheckExempt(const NumbersContext& context, const InstrumentedSource& source, int64_t exempt) {
  if (exempt == 0) return Status();
  const std::string what =
      fmt::format("{} that share a sequence with a flip differ by more than the tolerance", Plural(exempt, "token"));
  if (!HasBlocks(context.manifest)) {
    context.report->notes.push_back(what + "; the MoE layers cannot be run alone, so nothing more can be said of them");
    return Status();
  }
  const auto blocks = RunBlocksToo(context, source);
  if (blocks.status().code() == Code::kUsage) {
    context.report->notes.push_back(fmt::format("{}; the MoE blocks were not run alone: {}", what, blocks.status().message()));
    return Status();
  }
  AUTOEP_RETURN_IF_ERROR(blocks.status());
  context.report->notes.push_back(what + "; the MoE blocks were compared alone too");
  return CheckBlocks(*blocks, context.report);
}

// What the source was replaced by where it is wrong itself.
void NoteRebuilt(const contract::Manifest& manifest, VerifyReport* report) {
  const auto rebuilt = std::count_if(manifest.layers.begin(), manifest.layers.end(),
                                     [](const contract::ManifestLayer& layer) { return !layer.rebuilt.empty(); });
  if (rebuilt == 0) return;
  const bool lifted = std::any_of(manifest.layers.begin(), manifest.layers.end(), [](const contract::ManifestLayer& layer) {
    const auto capacity = layer.router.find("capacity");
    return capacity != layer.router.end() && capacity->second == kCapacityOfTokens;
  });
  report->notes.push_back(fmt::format(
      "{} of {} were rebuilt because the source is wrong there: they were compared with {} in the source's place", rebuilt,
      Plural(manifest.layers.size(), "layer"),
      lifted ? "what the source computes without a router's capacity" : "the dense sum over all experts of the source's weights"));
}

Status RunAll(const NumbersContext& context, const InstrumentedSource& source) {
  if (context.report->blocks) {
    AUTOEP_ASSIGN_OR_RETURN(const SubjectOutcome blocks, RunBlocks(context, source));
    return CheckBlocks(blocks, context.report);
  }
  AUTOEP_ASSIGN_OR_RETURN(const SubjectOutcome whole, RunWhole(context, source));
  context.report->cases = whole.cases;
  if (!whole.failure.empty()) return Locate(context, source, whole);
  AUTOEP_RETURN_IF_ERROR(CheckFlips(whole.cases, "; --blocks compares each MoE block on the same hidden states"));
  return CheckExempt(context, source, whole.exempt_over);
}

}  // namespace

Status VerifyNumbers(const std::string& source_path, const std::string& directory, const contract::Manifest& manifest,
                     const VerifyOptions& options, VerifyReport* report) {
  AUTOEP_ASSIGN_OR_RETURN(const auto folder, TempFolder::Create());
  AUTOEP_ASSIGN_OR_RETURN(const InstrumentedSource source, InstrumentedSource::Open(source_path));
  report->ranks = manifest.ep_size;
  NoteRebuilt(manifest, report);
  report->blocks = HasBlocks(manifest) && (options.blocks || !Fits(manifest, report));
  if (options.blocks && !report->blocks) {
    report->notes.push_back("the model is one block, or was frozen into one graph: it was compared whole");
  }
  return RunAll(NumbersContext{directory, manifest, options, *folder, report}, source);
}

}  // namespace autoep
