// SPDX-License-Identifier: Apache-2.0
// Allocation and rendezvous, each of which all ranks must have managed.
#include "plugin/comm/shared_memory_cuda.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <functional>
#include <string>

#include "plugin/comm/c10d_transport.h"
#include "plugin/comm/host_copy.h"

namespace autoep::comm {
namespace {

namespace symmetric = c10d::symmetric_memory;

// Whether every rank did it.
bool AllDo(c10d::ProcessGroup& group, const at::Device& device, const std::function<void()>& what) {
  std::string failure;
  try {
    what();
  } catch (const c10::Error& error) {
    failure = error.what_without_backtrace();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  if (AllSayTrue(group, device, failure.empty())) return true;
  TORCH_WARN_ONCE("autoep: the GPUs of this process group do not reach each other's memory: ",
                  failure.empty() ? "another rank failed" : failure);
  return false;
}

}  // namespace

std::vector<int64_t> AllSay(c10d::ProcessGroup& group, const at::Device& device, int64_t word) {
  at::Tensor said = at::empty({group.getSize()}, at::TensorOptions(device).dtype(at::kLong)).fill_(word);
  at::Tensor heard = at::empty_like(said);
  std::vector<int64_t> equal;
  group.alltoall_base(heard, said, equal, equal)->wait();
  const auto timeout = TimeoutOf(group, device.type());
  const std::optional<at::Tensor> host = HostCopy(heard).Wait(timeout);
  TORCH_CHECK(host, "autoep: rank ", group.getRank(), " of the group waited ", timeout.count() / 1000.0, " s for the others to ",
              "say whether the GPUs reach each other's memory: one of them is gone, or is not in this call");
  return {host->const_data_ptr<int64_t>(), host->const_data_ptr<int64_t>() + host->numel()};
}

bool AllSayTrue(c10d::ProcessGroup& group, const at::Device& device, bool word) {
  const std::vector<int64_t> words = AllSay(group, device, word);
  return std::all_of(words.begin(), words.end(), [](int64_t one) { return one != 0; });
}

std::optional<SharedMemory> MakeSharedMemory(c10d::ProcessGroup& group, const at::Device& device, int64_t bytes) {
  SharedMemory memory;
  const std::string& name = group.getGroupName();
  const auto allocate = [&] { memory.own = symmetric::empty_strided_p2p({bytes}, {1}, at::kByte, device, name, std::nullopt); };
  if (!AllDo(group, device, allocate)) return std::nullopt;
  const auto join = [&] {
    memory.all_ranks = symmetric::rendezvous(memory.own, name);
    memory.own.zero_();  // before this rank says that it has done it
  };
  if (!AllDo(group, device, join)) return std::nullopt;
  return memory;
}

}  // namespace autoep::comm
