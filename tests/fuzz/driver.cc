// SPDX-License-Identifier: Apache-2.0
// Mutants of seeds.
#include "tests/fuzz/driver.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

namespace autoep {
namespace {

class Mutator {
 public:
  explicit Mutator(const std::vector<std::string>& seeds) : seeds_(seeds) {}

  std::string Next() {
    std::string bytes = seeds_[Below(seeds_.size())];
    for (size_t steps = 1 + Below(4); steps > 0 && !bytes.empty(); --steps) Step(bytes);
    return bytes;
  }

 private:
  size_t Below(size_t limit) { return random_() % limit; }

  void Step(std::string& bytes) {
    const size_t at = Below(bytes.size());
    const size_t length = std::min(bytes.size() - at, 1 + Below(64));
    switch (Below(7)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << Below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(random_());
        break;
      case 2:
        SetNumber(bytes, at);
        break;
      case 3:
        bytes.erase(at, length);
        break;
      case 4:
        bytes.insert(Below(bytes.size()), bytes.substr(at, length));
        break;
      case 5:
        bytes.resize(at);
        break;
      default:
        Splice(bytes, at);
        break;
    }
  }

  // A little-endian number of 2, 4 or 8 bytes near an edge.
  void SetNumber(std::string& bytes, size_t at) {
    static constexpr uint64_t kEdges[] = {0,         1,          0x7F,           0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, uint64_t{1} << 32,
                                          INT64_MAX, UINT64_MAX, UINT64_MAX - 21};
    const uint64_t value = kEdges[Below(std::size(kEdges))];
    const size_t width = std::min<size_t>(size_t{2} << Below(3), bytes.size() - at);
    std::memcpy(bytes.data() + at, &value, width);
  }

  void Splice(std::string& bytes, size_t at) {
    const std::string& other = seeds_[Below(seeds_.size())];
    if (!other.empty()) bytes = bytes.substr(0, at) + other.substr(Below(other.size()));
  }

  const std::vector<std::string>& seeds_;
  std::mt19937_64 random_{20240229};
};

void Run(const std::string& bytes) {
  const std::unique_ptr<uint8_t[]> copy(new uint8_t[bytes.size()]);
  std::copy(bytes.begin(), bytes.end(), copy.get());
  LLVMFuzzerTestOneInput(copy.get(), bytes.size());
}

// AUTOEP_FUZZ_TIMES: how many times as many mutants; `tools/dev test --full` sets it.
int64_t Times() {
  const char* times = std::getenv("AUTOEP_FUZZ_TIMES");
  return times ? std::max(1, std::atoi(times)) : 1;
}

}  // namespace

void FuzzWithMutants(const std::vector<std::string>& seeds, int64_t count) {
  for (const std::string& seed : seeds) Run(seed);
  Mutator mutator(seeds);
  for (int64_t i = 0; i < count * Times(); ++i) Run(mutator.Next());
}

}  // namespace autoep
