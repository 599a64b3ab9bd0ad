// SPDX-License-Identifier: Apache-2.0
// autoep doctor: what this build was made with and what this machine gives it.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "plugin/contract/schemas.h"
#include "plugin/io/json.h"
#include "plugin/io/text.h"
#include "tools/subcommand.h"
#include "tools/table.h"
#include "tools/version.h"

namespace autoep {
namespace {

struct Finding {
  std::string what;
  std::string found;
  std::string problem;  // "" where all is well
};

std::string LibraryOf(const void* symbol) {
  Dl_info info;
  return dladdr(symbol, &info) != 0 && info.dli_fname ? info.dli_fname : "unknown";
}

Finding CheckTorch() {
  const auto& singleton = c10::Dispatcher::realSingleton();
  return {"torch", fmt::format("{}, {}", TORCH_VERSION, LibraryOf(&singleton)), ""};
}

Finding CheckOps() {
  std::string missing;
  for (const char* op : {"route", "dispatch", "experts", "combine", "moe", "load_shard"}) {
    if (!c10::Dispatcher::singleton().findSchema({fmt::format("autoep::{}", op), ""})) missing += fmt::format(" {}", op);
  }
  Finding finding{"plugin", fmt::format("op ABI {}", contract::kOpAbi), ""};
  if (!missing.empty()) finding.problem = "libautoep.so did not register:" + missing + "; build the project again";
  return finding;
}

Finding CheckDevices() {
  const auto& hooks = at::detail::getCUDAHooks();
  if (!hooks.hasCUDA()) return {"CUDA", "no device; models run on the CPU", ""};
  return {"CUDA", Plural(hooks.deviceCount(), "device"), ""};
}

Finding CheckMachine() {
  const int64_t memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  return {"machine", fmt::format("{}, {} of memory", Plural(std::thread::hardware_concurrency(), "core"), HumanBytes(memory)), ""};
}

Finding CheckOpenFiles() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  Finding finding{"open files", fmt::format("{} allowed", limit.rlim_cur), ""};
  if (limit.rlim_cur < 256) finding.problem = "fewer than 256 open files are allowed; raise the limit with 'ulimit -n 1024'";
  return finding;
}

Finding CheckTemporary() {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::temp_directory_path(error);
  if (error) return {"temporary files", "none", "there is no folder for temporary files; set TMPDIR to one"};
  Finding finding{"temporary files", Printable(path.string()), ""};
  if (access(path.c_str(), W_OK | X_OK) != 0) finding.problem = "it cannot be written to; set TMPDIR to a folder that can";
  return finding;
}

class Doctor : public Subcommand {
 public:
  std::string name() const override { return "doctor"; }
  std::string summary() const override { return "Check this build and this machine"; }
  std::string group() const override { return kInspectGroup; }

  void Declare(CLI::App& app) override { AddJsonFlag(app); }

  Status Run(Console& console) override {
    const std::vector<Finding> findings = {
        {"autoep", kToolVersion, ""}, CheckTorch(), CheckOps(), CheckDevices(), CheckMachine(), CheckOpenFiles(), CheckTemporary()};
    std::string problem;
    Json rows = Json::array();
    Table table({{"what"}, {"found"}, {"problem"}});
    for (const Finding& finding : findings) {
      table.AddRow({finding.what, finding.found, finding.problem});
      rows.push_back({{"what", finding.what}, {"found", finding.found}, {"problem", finding.problem}});
      if (problem.empty() && !finding.problem.empty()) problem = fmt::format("{}: {}", finding.what, finding.problem);
    }
    const Status status = problem.empty() ? Status() : Status(Code::kPlugin, problem);
    if (json()) {
      console.Print(
          DumpJson({{"findings", rows}, {"status", CodeName(status.code())}, {"exit_code", static_cast<int>(status.code())}}));
    } else {
      console.Print(table.Render(console));
    }
    return status;
  }
};

const RegisterSubcommand<Doctor> kRegistered;

}  // namespace
}  // namespace autoep
