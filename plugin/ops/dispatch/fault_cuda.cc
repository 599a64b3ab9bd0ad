// SPDX-License-Identifier: Apache-2.0
// The fault word, in host memory that devices write.
#include "plugin/ops/dispatch/fault_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <vector>

#include "plugin/ops/checks.h"

namespace autoep::ops::cuda {
namespace {

struct Layers {
  std::mutex mutex;
  std::map<std::string, int64_t, std::less<>> numbers;
  std::vector<std::string> names;
};

Layers& KnownLayers() {
  static Layers layers;
  return layers;
}

}  // namespace

volatile Fault* FaultWord() {
  static volatile Fault* const word = [] {
    void* memory = nullptr;
    C10_CUDA_CHECK(cudaHostAlloc(&memory, sizeof(Fault), cudaHostAllocPortable | cudaHostAllocMapped));
    return new (memory) Fault{0, 0};
  }();
  return word;
}

int64_t LayerNumber(const std::string& layer) {
  Layers& layers = KnownLayers();
  const std::lock_guard lock(layers.mutex);
  const auto [found, added] = layers.numbers.try_emplace(layer, layers.names.size() + 1);
  if (added) layers.names.push_back(layer);
  return found->second;
}

void CheckFaults() {
  volatile Fault* word = FaultWord();
  const int64_t number = word->layer;
  if (number == 0) return;
  const int64_t id = word->id;
  word->layer = 0;
  Layers& layers = KnownLayers();
  const std::lock_guard lock(layers.mutex);
  AUTOEP_CHECK(false, layers.names.at(number - 1), "in an earlier call ids held ", id,
               ", which is no expert's number; that call's output is wrong");
}

}  // namespace autoep::ops::cuda
