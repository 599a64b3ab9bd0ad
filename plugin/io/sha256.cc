// SPDX-License-Identifier: Apache-2.0
// SHA-256 by OpenSSL, which uses the processor's instructions for it; CRC-32 by zlib.
#include "plugin/io/sha256.h"

#include <openssl/evp.h>
#include <zlib.h>

#include <cstdio>
#include <cstdlib>

namespace autoep {
namespace {

// OpenSSL fails here only when memory is exhausted or SHA-256 is disabled in its configuration: no digest is possible then.
void Require(int ok) {
  if (ok == 1) return;
  std::fputs("autoep: OpenSSL cannot compute SHA-256\n", stderr);
  std::abort();
}

}  // namespace

struct Sha256::State {
  State() : context(EVP_MD_CTX_new()) { Require(context != nullptr && EVP_DigestInit_ex(context, EVP_sha256(), nullptr) == 1); }
  ~State() { EVP_MD_CTX_free(context); }
  EVP_MD_CTX* context;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(const void* data, size_t size) { Require(EVP_DigestUpdate(state_->context, data, size)); }

std::string Sha256::HexDigest() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  Require(EVP_DigestFinal_ex(state_->context, digest, &size));
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * size);
  for (unsigned int i = 0; i < size; ++i) {
    hex += kDigits[digest[i] >> 4];
    hex += kDigits[digest[i] & 15];
  }
  return hex;
}

std::string Sha256Hex(std::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes.data(), bytes.size());
  return hash.HexDigest();
}

uint32_t Crc32(const void* data, size_t size, uint32_t crc) {
  if (size == 0) return crc;  // zlib takes a null pointer for "the initial value"
  return static_cast<uint32_t>(::crc32_z(crc, static_cast<const unsigned char*>(data), size));
}

}  // namespace autoep
