// SPDX-License-Identifier: Apache-2.0
// Which groups have peers.
#include "plugin/comm/peers.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "plugin/comm/c10d_transport.h"

namespace autoep::comm {
namespace {

MakePeers make_peers = nullptr;

struct Known {
  c10::weak_intrusive_ptr<c10d::ProcessGroup> group;  // of that name there may be another later
  CommunicatorPtr peers;
};

}  // namespace

void RegisterPeers(MakePeers make) { make_peers = make; }

CommunicatorPtr PeersOf(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const at::Device& device) {
  if (make_peers == nullptr || !device.is_cuda()) return nullptr;
  static std::mutex mutex;
  // Not destroyed: CUDA may be gone before it.
  static auto& known = *new std::map<std::pair<std::string, std::string>, Known>();
  const std::lock_guard lock(mutex);
  const auto key = std::pair(group->getGroupName(), device.str());
  const auto found = known.find(key);
  if (found != known.end() && found->second.group.lock() == group) return found->second.peers;
  CommunicatorPtr peers = make_peers(*group, device, TimeoutOf(*group, device.type()));
  known.insert_or_assign(key, Known{c10::weak_intrusive_ptr(group), peers});
  return peers;
}

}  // namespace autoep::comm
