// SPDX-License-Identifier: Apache-2.0
// SHA-256 (identity of files and tensors) and CRC-32 (the zip format's own check).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace autoep {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(const void* data, size_t size);
  // 64 lower-case hex digits. Ends the stream: nothing may follow but the destructor.
  std::string HexDigest();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(std::string_view bytes);

// CRC-32 as zip files have it. `crc` continues an earlier result.
uint32_t Crc32(const void* data, size_t size, uint32_t crc = 0);

}  // namespace autoep
