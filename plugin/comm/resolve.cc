// SPDX-License-Identifier: Apache-2.0
// Looks for a group among the local ones, then in c10d's registry; there, memory that GPUs share comes before the group itself.
#include "plugin/comm/resolve.h"

#include <fmt/format.h>

#include <utility>

#include "plugin/comm/c10d_transport.h"
#include "plugin/comm/local.h"
#include "plugin/comm/peers.h"

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

Status OtherSize(const std::string& name, int64_t size, int64_t ep_size) {
  return Status(
      Code::kPlugin,
      fmt::format("{} has {} ranks, and the experts are spread over {}: load the model with a group of {} ranks",
                  name.empty() ? "the default process group" : "the process group '" + name + "'", size, ep_size, ep_size));
}

}  // namespace

Result<CommunicatorPtr> ResolveCommunicator(const std::string& name, int64_t ep_size, const at::Device& device) {
  if (CommunicatorPtr local = BoundLocalRank(name)) {
    if (local->size() != ep_size) return OtherSize(name, local->size(), ep_size);
    return local;
  }
  c10::intrusive_ptr<c10d::ProcessGroup> group = FindProcessGroup(name);
  if (!group && name.empty()) group = FindProcessGroup(kDefaultGroup);
  if (!group) return NoGroup(name, ep_size);
  if (group->getSize() != ep_size) return OtherSize(name, group->getSize(), ep_size);
  if (CommunicatorPtr peers = PeersOf(group, device)) return peers;
  return MakeC10dCommunicator(std::move(group));
}

}  // namespace autoep::comm
