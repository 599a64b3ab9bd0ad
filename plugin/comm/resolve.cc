// SPDX-License-Identifier: Apache-2.0
// Looks for a group among the local ones, then in c10d's registry.
#include "plugin/comm/resolve.h"

#include <fmt/format.h>

#include "plugin/comm/c10d_transport.h"
#include "plugin/comm/local.h"

namespace autoep::comm {
namespace {

// torch.distributed registers the default group under the number of groups made before it.
constexpr char kDefaultGroup[] = "0";

Status NoGroup(const std::string& name, int64_t ep_size) {
  if (name.empty()) {
    return Status(Code::kPlugin, fmt::format("the experts are spread over {} ranks, and there is no default process group: call "
                                             "torch.distributed.init_process_group, or name a group when loading",
                                             ep_size));
  }
  return Status(Code::kPlugin,
                fmt::format("no process group is registered under '{}' in this process: create it before the model runs, or "
                            "load the model with the group that it shall use",
                            name));
}

CommunicatorPtr Find(const std::string& name) {
  if (CommunicatorPtr local = BoundLocalRank(name)) return local;
  if (CommunicatorPtr found = FindProcessGroup(name)) return found;
  return name.empty() ? FindProcessGroup(kDefaultGroup) : nullptr;
}

}  // namespace

Result<CommunicatorPtr> ResolveCommunicator(const std::string& name, int64_t ep_size) {
  CommunicatorPtr found = Find(name);
  if (found == nullptr) return NoGroup(name, ep_size);
  if (found->size() == ep_size) return found;
  return Status(Code::kPlugin,
                fmt::format("{} has {} ranks, and the experts are spread over {}: load the model with a group of {} ranks",
                            name.empty() ? "the default process group" : "the process group '" + name + "'", found->size(), ep_size,
                            ep_size));
}

}  // namespace autoep::comm
