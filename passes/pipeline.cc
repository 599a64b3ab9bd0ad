// SPDX-License-Identifier: Apache-2.0
// The registry, and running passes one by one.
#include "passes/pipeline.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>

#include "passes/invariants.h"
#include "passes/model/modules.h"
#include "plugin/io/output.h"
#include "plugin/io/text.h"

namespace autoep {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

std::vector<PassInfo>& Registry() {
  static std::vector<PassInfo> passes;
  return passes;
}

Result<const PassInfo*> FindPass(const std::string& name) {
  std::vector<std::string> known;
  for (const PassInfo& info : ListPasses()) {
    if (info.name == name) return &info;
    known.push_back(info.name);
  }
  return Status(Code::kUsage, fmt::format("there is no pass '{}'{}; the passes are {}", Printable(name), DidYouMean(name, known),
                                          JoinWords(known)));
}

Result<std::vector<const PassInfo*>> ChoosePasses(const PipelineOptions& options) {
  std::vector<const PassInfo*> chosen;
  for (const std::string& name : options.passes) {
    AUTOEP_ASSIGN_OR_RETURN(const PassInfo* info, FindPass(name));
    chosen.push_back(info);
  }
  for (const PassInfo& info : ListPasses()) {
    if (options.passes.empty() && info.by_default) chosen.push_back(&info);
  }
  for (const std::string& name : options.extra) {
    AUTOEP_ASSIGN_OR_RETURN(const PassInfo* info, FindPass(name));
    chosen.push_back(info);
  }
  return chosen;
}

class Dumper {
 public:
  explicit Dumper(std::string folder) : folder_(std::move(folder)) {}
  Status Dump(const std::string& name, const torch::jit::Module& module) {
    if (folder_.empty()) return Status();
    OutputOptions options;
    options.overwrite = true;
    return WriteFileAtomically(fmt::format("{}/{:02}-{}.ir", folder_, next_++, name), PrintModel(module), options);
  }

 private:
  std::string folder_;
  int next_ = 0;
};

Result<Change> RunPass(const PassInfo& info, MoeModel& model, PassContext& context) {
  try {
    return info.make(context)->Run(model);
  } catch (const c10::Error& error) {
    return Status(Code::kBug, fmt::format("pass {}: {}", info.name, error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return Status(Code::kBug, fmt::format("pass {}: {}", info.name, error.what()));
  }
}

// `signatures` are those of the methods that only the outside calls, before the first pass.
Status CheckAfter(const torch::jit::Module& module, const ObjectIndex& index, const PassContext& context,
                  const std::string& signatures, bool reported, const Fingerprint& before, const Fingerprint& now) {
  const bool changed = !(before == now);
  if (reported != changed) {
    return Status(Code::kBug,
                  reported ? "a change was reported, and the model is the same" : "the model changed, and no change was reported");
  }
  if (!changed) return Status();
  if (Signatures(module, context.called_functions) != signatures)
    return Status(Code::kBug, "the model's inputs or outputs changed");
  return CheckInvariants(index, now, &before);
}

}  // namespace

bool PassContext::Allow(const std::string& pass) {
  const int64_t edit = edits_[pass]++;
  if (options_.limit && total_ >= *options_.limit) return false;
  for (const DisabledPass& disabled : options_.disabled) {
    if (disabled.pass == pass && disabled.edit.value_or(edit) == edit) return false;
  }
  ++total_;
  return true;
}

RegisterPass::RegisterPass(PassInfo info) {
  Registry().push_back(std::move(info));
  std::sort(Registry().begin(), Registry().end(), [](const PassInfo& a, const PassInfo& b) { return a.order < b.order; });
}

const std::vector<PassInfo>& ListPasses() { return Registry(); }

Result<DisabledPass> ParseDisabledPass(const std::string& text) {
  const size_t colon = text.find(':');
  DisabledPass disabled{text.substr(0, colon), std::nullopt};
  AUTOEP_RETURN_IF_ERROR(FindPass(disabled.pass).status());
  if (colon == std::string::npos) return disabled;
  int64_t edit = -1;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, edit);
  if (error != std::errc() || stop != end || edit < 0) {
    return Status(Code::kUsage,
                  fmt::format("'{}' is to be NAME or NAME:K with K the number of an edit, counted from 0", Printable(text)));
  }
  disabled.edit = edit;
  return disabled;
}

Status CheckPassNames(const std::vector<std::string>& names) {
  for (const std::string& name : names) AUTOEP_RETURN_IF_ERROR(FindPass(name).status());
  return Status();
}

Result<PipelineReport> RunPipeline(MoeModel& model, const Plan& plan, const PipelineOptions& options) {
  AUTOEP_ASSIGN_OR_RETURN(const std::vector<const PassInfo*> passes, ChoosePasses(options));
  PassContext context(plan, options);
  Fingerprint before = TakeFingerprint(ObjectIndex(model.module));
  context.called_functions = before.called;
  const std::string signatures = Signatures(model.module, context.called_functions);
  Dumper dumper(options.dump_ir);
  AUTOEP_RETURN_IF_ERROR(dumper.Dump("source", model.module));
  PipelineReport report;
  for (const PassInfo* info : passes) {
    const auto begin = Clock::now();
    AUTOEP_ASSIGN_OR_RETURN(Change change, RunPass(*info, model, context));
    const auto done = Clock::now();
    const ObjectIndex index(model.module);
    Fingerprint after = TakeFingerprint(index);
    AUTOEP_RETURN_IF_ERROR(dumper.Dump(info->name, model.module));
    AUTOEP_RETURN_IF_ERROR(
        CheckAfter(model.module, index, context, signatures, !change.edits.empty(), before, after).At("after pass " + info->name));
    before = std::move(after);
    report.passes.push_back({info->name, std::move(change.edits), Seconds(done - begin), Seconds(Clock::now() - done)});
    report.limits.insert(report.limits.end(), change.limits.begin(), change.limits.end());
  }
  report.rewritten = context.rewritten;
  return report;
}

}  // namespace autoep
