// SPDX-License-Identifier: Apache-2.0
// Models run in processes of their own: N ranks of a converted directory with a Gloo group between them, or one process
// for a source. Each is this program again, under the hidden subcommand `_rank`, with a job file in a private folder.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "plugin/io/json.h"
#include "plugin/io/status.h"
#include "tools/compare.h"

namespace autoep {

// A private folder under TMPDIR, removed with all it holds on destruction and on an interrupt.
class TempFolder {
 public:
  static Result<std::unique_ptr<TempFolder>> Create();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  struct Undo;
  TempFolder() = default;

  std::string path_;
  std::unique_ptr<Undo> undo_;
};

// One call: tensors keyed by argument name in `inputs`; the worker writes what came out to `outputs`.
struct RankCall {
  std::string inputs;
  std::string outputs;
};

// What one process does. Exactly one of `model` and `directory` is set.
struct RankJob {
  std::string model;      // a TorchScript file, run as it is; a call that throws is recorded, and the next one is run
  std::string directory;  // a converted directory; a call that throws ends the process
  std::string block;      // of `directory`: only this module (ManifestLayer::block); "" for the whole model
  int64_t rank = 0;
  int64_t ranks = 1;
  std::string store;         // file where the ranks meet; "" where no group is needed
  int64_t timeout_s = 1800;  // for one exchange
  std::vector<RankCall> calls;

  Json ToJson() const;
  static Result<RankJob> FromJson(const Json& json, const std::string& where);
};

struct RankOptions {
  std::string program = "/proc/self/exe";
  int64_t timeout_s = 1800;  // for all jobs together
};

// Runs all jobs at once and waits for them. The first process that fails ends the others; its sentence, with its rank, is
// the result. kVerify when they take too long, else the code of the process that failed.
Status RunJobs(const std::vector<RankJob>& jobs, const TempFolder& folder, const RankOptions& options);

// What a worker handed back for one call.
struct RankResult {
  RunRecord record;
  int64_t expert_bytes = 0;  // of the expert tensors that this process held
  std::string error;         // RankJob::model only: what the call threw, or ""
};
Result<RankResult> ReadRankResult(const std::string& path);
Status WriteRankResult(const std::string& path, const RankResult& result);

// Where a worker leaves its exit code and its sentence, on two lines.
std::string RankFailurePath(const std::string& job_path);

// The worker: runs the job in `job_path` in this process. Returns 0; a failure is left in RankFailurePath, and ends the
// process.
int RankMain(const std::string& job_path);

}  // namespace autoep
