// SPDX-License-Identifier: Apache-2.0
// Runs one subject on the shapes that the source takes.
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "plugin/contract/dtype.h"
#include "plugin/io/text.h"
#include "tools/inputs_file.h"
#include "tools/verify_numbers.h"

namespace autoep {
namespace {

struct Case {
  std::string name;
  int64_t sequence = 1;              // tokens that may see each other
  std::vector<NamedTensors> inputs;  // by rank
};

using Results = std::vector<std::vector<RankResult>>;  // by case, then by rank

int64_t Ranks(const NumbersContext& context) { return context.manifest.ep_size; }

std::string InputFile(const NumbersContext& context, size_t index, int64_t rank) {
  return context.folder.File(fmt::format("inputs-{}-{}.safetensors", index, rank));
}

std::string OutputFileName(const NumbersContext& context, const std::string& who, size_t index, int64_t rank) {
  return context.folder.File(fmt::format("{}-{}-{}.safetensors", who, index, rank));
}

std::vector<Case> MadeCases(const NumbersContext& context, const Subject& subject, const std::vector<InputShape>& shapes) {
  std::vector<Case> cases;
  for (const InputShape& shape : shapes) {
    Case made{shape.Name(), subject.block.empty() ? (shape.flat ? shape.Tokens() : shape.length) : 1, {}};
    for (int64_t rank = 0; rank < Ranks(context); ++rank) {
      const uint64_t seed = context.options.seed + 7919 * static_cast<uint64_t>(rank) + 104729 * cases.size();
      made.inputs.push_back(MakeInputs(subject.specs, shape, seed));
    }
    cases.push_back(std::move(made));
  }
  return cases;
}

// Only ids [batch, length] and hidden states [batch, length, size] say which tokens share a sequence; else all may.
int64_t SequenceOf(const NamedTensors& inputs) {
  if (inputs.empty()) return std::numeric_limits<int64_t>::max();
  const at::Tensor& first = inputs.front().second;
  const int64_t grid = at::isFloatingType(first.scalar_type()) ? 3 : 2;
  return first.dim() >= grid ? first.size(1) : std::numeric_limits<int64_t>::max();
}

Result<std::vector<Case>> GivenCases(const NumbersContext& context, const Subject& subject) {
  Case given{"given", 1, {}};
  for (int64_t rank = 0; rank < Ranks(context); ++rank) {
    const std::string path = RankPath(context.options.inputs, rank);
    AUTOEP_ASSIGN_OR_RETURN(const TensorFile file, ReadTensors(path));
    AUTOEP_ASSIGN_OR_RETURN(NamedTensors inputs, OrderInputs(file.tensors, subject.arguments, Printable(path)));
    given.inputs.push_back(std::move(inputs));
  }
  given.sequence = SequenceOf(given.inputs.front());
  return std::vector<Case>{std::move(given)};
}

Status WriteInputs(const NumbersContext& context, const std::vector<Case>& cases) {
  for (size_t i = 0; i < cases.size(); ++i) {
    for (int64_t rank = 0; rank < Ranks(context); ++rank) {
      const std::string path = InputFile(context, i, rank);
      std::remove(path.c_str());
      AUTOEP_RETURN_IF_ERROR(WriteTensorsTo(path, {cases[i].inputs[rank], {}}));
    }
  }
  return Status();
}

Result<Results> RunAndRead(const NumbersContext& context, const std::string& who, size_t cases, std::vector<RankJob> jobs) {
  for (size_t i = 0; i < cases; ++i) {
    for (int64_t rank = 0; rank < Ranks(context); ++rank) {
      const std::string path = OutputFileName(context, who, i, rank);
      std::remove(path.c_str());
      RankJob& job = jobs[jobs.size() == 1 ? 0 : rank];  // the source runs every rank's tokens in one process
      job.calls.push_back({InputFile(context, i, rank), path});
    }
  }
  RankOptions options;
  options.timeout_s = context.options.timeout_s;
  AUTOEP_RETURN_IF_ERROR(RunJobs(jobs, context.folder, options));
  Results results(cases);
  for (size_t i = 0; i < cases; ++i) {
    for (int64_t rank = 0; rank < Ranks(context); ++rank) {
      AUTOEP_ASSIGN_OR_RETURN(RankResult result, ReadRankResult(OutputFileName(context, who, i, rank)));
      results[i].push_back(std::move(result));
    }
  }
  return results;
}

Result<Results> RunSource(const NumbersContext& context, const Subject& subject, const std::vector<Case>& cases) {
  AUTOEP_RETURN_IF_ERROR(WriteInputs(context, cases));
  RankJob job;
  job.model = subject.source;
  return RunAndRead(context, "source", cases.size(), {job});
}

Result<Results> RunRanks(const NumbersContext& context, const Subject& subject, const std::vector<Case>& cases) {
  AUTOEP_RETURN_IF_ERROR(WriteInputs(context, cases));
  const std::string store = context.folder.File("store");
  std::remove(store.c_str());
  std::vector<RankJob> jobs(Ranks(context));
  for (int64_t rank = 0; rank < Ranks(context); ++rank) {
    jobs[rank].directory = context.directory;
    jobs[rank].block = subject.block;
    jobs[rank].rank = rank;
    jobs[rank].ranks = Ranks(context);
    jobs[rank].store = Ranks(context) > 1 ? store : "";
    jobs[rank].timeout_s = context.options.timeout_s;
  }
  return RunAndRead(context, "rank", cases.size(), std::move(jobs));
}

std::string Named(const Subject& subject, const std::string& name) {
  return subject.block.empty() ? name : LayerName(subject.path) + " " + name;
}

// Drops the cases that the source itself cannot run; returns what it said of the first, or "".
std::string KeepWorking(const NumbersContext& context, const Subject& subject, std::vector<Case>* cases, Results* results) {
  std::string said;
  std::vector<Case> kept;
  Results kept_results;
  for (size_t i = 0; i < cases->size(); ++i) {
    const auto& by_rank = (*results)[i];
    const auto failed =
        std::find_if(by_rank.begin(), by_rank.end(), [](const RankResult& result) { return !result.error.empty(); });
    if (failed == by_rank.end()) {
      kept.push_back(std::move((*cases)[i]));
      kept_results.push_back(std::move((*results)[i]));
      continue;
    }
    context.report->notes.push_back(
        fmt::format("{} was left out: the source model itself fails on it", Named(subject, (*cases)[i].name)));
    if (said.empty()) said = failed->error;
  }
  *cases = std::move(kept);
  *results = std::move(kept_results);
  return said;
}

std::string Where(const Subject& subject) { return subject.block.empty() ? "it" : LayerName(subject.path); }

// Finds the cases that the source can run, and runs it on them.
Status TrySource(const NumbersContext& context, const Subject& subject, std::vector<Case>* cases, Results* results) {
  std::vector<std::vector<Case>> groups;
  if (subject.specs.empty()) {
    AUTOEP_ASSIGN_OR_RETURN(std::vector<Case> given, GivenCases(context, subject));
    groups.push_back(std::move(given));
  } else {
    for (const auto& shapes : ShapesToTry(subject.specs)) groups.push_back(MadeCases(context, subject, shapes));
  }
  std::string said;
  const size_t notes = context.report->notes.size();
  for (std::vector<Case>& group : groups) {
    context.report->notes.resize(notes);
    *cases = std::move(group);
    AUTOEP_ASSIGN_OR_RETURN(*results, RunSource(context, subject, *cases));
    const std::string error = KeepWorking(context, subject, cases, results);
    if (said.empty()) said = error;
    if (!cases->empty()) return Status();
  }
  context.report->notes.resize(notes);
  return Status(Code::kUsage,
                fmt::format("the source model itself fails on {}: {}{}",
                            subject.specs.empty() ? "the given inputs" : "every input that was inferred for " + Where(subject),
                            Printable(said), subject.specs.empty() ? "" : "; give inputs with --inputs FILE.safetensors"));
}

// Each rank holds 1/N of the subject's expert bytes.
Status CheckExpertBytes(const NumbersContext& context, const Subject& subject, const std::vector<RankResult>& ranks) {
  for (int64_t rank = 0; rank < Ranks(context); ++rank) {
    int64_t expected = 0;
    for (const contract::ManifestLayer& layer : context.manifest.layers) {
      if (!subject.block.empty() && layer.block != subject.block) continue;
      for (const contract::ManifestTensor& tensor : layer.tensors) {
        for (const contract::ShardPiece& piece : tensor.pieces) expected += piece.bytes;
      }
    }
    expected /= Ranks(context);
    if (ranks[rank].expert_bytes != expected) {
      return Status(Code::kVerify, fmt::format("rank {} holds {} bytes of experts, and 1/{} of them is {}", rank,
                                               ranks[rank].expert_bytes, Ranks(context), expected));
    }
  }
  return Status();
}

void AddMeasures(const NumbersContext& context, const Subject& subject, const Results& ranks) {
  auto& bytes = context.report->rank_bytes;
  auto& rows = context.report->rank_rows;
  bytes.resize(Ranks(context), 0);
  rows.resize(Ranks(context), 0);
  for (int64_t rank = 0; rank < Ranks(context); ++rank) {
    bytes[rank] = subject.block.empty() ? ranks[0][rank].expert_bytes : bytes[rank] + ranks[0][rank].expert_bytes;
    for (const auto& by_rank : ranks) {
      for (const LayerRows& layer : by_rank[rank].record.rows) rows[rank] += layer.rows;
    }
  }
}

Status CompareCase(const NumbersContext& context, const Subject& subject, const Case& one, const std::vector<RankResult>& source,
                   const std::vector<RankResult>& converted, SubjectOutcome* outcome) {
  const Tolerance tolerance = Tolerance::For(ExpertDtype(context.manifest));
  VerifyCase summary;
  summary.name = Named(subject, one.name);
  summary.tolerance = tolerance.output;
  std::vector<RunRecord> records;
  for (size_t rank = 0; rank < converted.size(); ++rank) {
    const Comparison comparison = Compare(source[rank].record, converted[rank].record, one.sequence, tolerance);
    summary.tokens += comparison.tokens;
    summary.flips += comparison.flips;
    summary.after_flips += comparison.after_flips;
    summary.max_error = std::max(summary.max_error, comparison.max_error);
    outcome->exempt_over += comparison.exempt_over;
    if (!comparison.failure.empty() && outcome->failure.empty()) {
      outcome->failure = fmt::format("rank {}, {}: {}", rank, summary.name, comparison.failure);
      outcome->first_layer = comparison.first_layer;
    }
    records.push_back(converted[rank].record);
  }
  outcome->cases.push_back(summary);
  return outcome->failure.empty() ? CheckRows(records, context.manifest) : Status();
}

}  // namespace

at::ScalarType ExpertDtype(const contract::Manifest& manifest) {
  at::ScalarType least = at::kDouble;
  for (const contract::ManifestLayer& layer : manifest.layers) {
    for (const contract::ManifestTensor& tensor : layer.tensors) {
      const auto dtype = contract::FindDtype(tensor.dtype);
      if (dtype && dtype->bytes < static_cast<int64_t>(c10::elementSize(least))) least = dtype->type;
    }
  }
  return least;
}

Result<SubjectOutcome> RunSubject(const NumbersContext& context, const Subject& subject) {
  std::vector<Case> cases;
  Results source;
  AUTOEP_RETURN_IF_ERROR(TrySource(context, subject, &cases, &source));
  AUTOEP_ASSIGN_OR_RETURN(const Results ranks, RunRanks(context, subject, cases));
  AUTOEP_RETURN_IF_ERROR(CheckExpertBytes(context, subject, ranks.front()));
  AddMeasures(context, subject, ranks);
  SubjectOutcome outcome;
  for (size_t i = 0; i < cases.size(); ++i) {
    AUTOEP_RETURN_IF_ERROR(CompareCase(context, subject, cases[i], source[i], ranks[i], &outcome));
  }
  return outcome;
}

}  // namespace autoep
