// SPDX-License-Identifier: Apache-2.0
// Passes over a MoeModel: their interface, their registry, and the pipeline that runs them in order, checks the model's
// invariants after each change, and can leave edits out to find the one that breaks a model.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "passes/model/moe_model.h"
#include "passes/repack/plan.h"
#include "plugin/io/status.h"

namespace autoep {

struct Change {
  std::vector<std::string> edits;   // what was done, one sentence an edit, in order; empty if nothing changed
  std::vector<std::string> limits;  // what the model will not do for want of an edit, sentences for people and the manifest
};

// Leaves out edit `edit` (counted from 0) of a pass, or all of its edits.
struct DisabledPass {
  std::string pass;
  std::optional<int64_t> edit;
};

struct PipelineOptions {
  std::vector<std::string> passes;  // names, in the order to run; empty: the default passes
  std::vector<std::string> extra;   // names, run after those
  std::vector<DisabledPass> disabled;
  std::optional<int64_t> limit;  // number of edits, of all passes together, after which no more are made
  std::string dump_ir;           // an existing folder for the graphs before the first pass and after each; "" for none
};

// What the passes of one run share.
class PassContext {
 public:
  PassContext(const Plan& plan, const PipelineOptions& options) : plan_(plan), options_(options) {}

  const Plan& plan() const { return plan_; }
  // Asked by a pass before each edit, once an edit.
  bool Allow(const std::string& pass);

  std::set<size_t> rewritten;              // layers of the plan that now run on EP ops
  std::set<const void*> called_functions;  // c10::Function that some graph called before the first pass

 private:
  const Plan& plan_;
  const PipelineOptions& options_;
  int64_t total_ = 0;
  std::map<std::string, int64_t> edits_;
};

class Pass {
 public:
  virtual ~Pass() = default;
  virtual Result<Change> Run(MoeModel& model) = 0;
};

struct PassInfo {
  std::string name;
  std::string summary;
  int order = 0;  // default passes run by it
  bool by_default = true;
  std::function<std::unique_ptr<Pass>(PassContext&)> make;
};

class RegisterPass {
 public:
  explicit RegisterPass(PassInfo info);
};

const std::vector<PassInfo>& ListPasses();  // by order

// "NAME" or "NAME:K". kUsage for an unknown pass (with a did-you-mean) or a K that is no number.
Result<DisabledPass> ParseDisabledPass(const std::string& text);
// kUsage for an unknown pass.
Status CheckPassNames(const std::vector<std::string>& names);

struct PassReport {
  std::string pass;
  std::vector<std::string> edits;
  double seconds = 0;        // of the pass itself
  double check_seconds = 0;  // of the invariants after it
};

struct PipelineReport {
  std::vector<PassReport> passes;
  std::set<size_t> rewritten;  // layers of the plan
  std::vector<std::string> limits;
};

// Runs the passes. A model that breaks an invariant after a pass is kBug, naming the pass; after any failure the model is
// in an unknown state and must not be written.
Result<PipelineReport> RunPipeline(MoeModel& model, const Plan& plan, const PipelineOptions& options);

}  // namespace autoep
