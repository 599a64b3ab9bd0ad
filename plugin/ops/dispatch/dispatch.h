// SPDX-License-Identifier: Apache-2.0
// dispatch: token rows to the ranks that hold their experts. Device kernels; the op is in dispatch.cc.
//
// A pair is one (token, choice); pair t*k+j is choice j of token t. A slot's number is rank * S + slot, S slots on a rank.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace autoep::ops {

struct PairOrder {
  at::Tensor order;    // [T, k] int64: position of each pair when sorted by slot number; stable
  at::Tensor by_slot;  // [E] int64: pairs of each slot number
  at::Tensor counts;   // [E] int64: pairs of each expert
  at::Tensor ends;     // [E] int32: sums of by_slot up to each slot number
  // An id outside [0, E), where the device can say so at once; the rest is then undefined. CUDA takes such an id for 0, and the
  // next call on the host throws (fault_cuda.h).
  std::optional<int64_t> bad_id;
};

// Where each choice's expert is.
struct Destinations {
  at::Tensor slots;  // [T, k] int64: slot number
  at::Tensor ranks;  // [T, k] int64: its rank, if no earlier choice of the token goes there; else the number of ranks
};

namespace cpu {
// ids [T, k] int64, contiguous. placement [E, 1, 2] int64: rank and slot of each id, checked by the caller; ids may share a slot,
// but then `counts` means nothing.
PairOrder OrderPairs(const at::Tensor& ids, const at::Tensor& placement, int64_t ep_size, const std::string& layer);

// order and ends as OrderPairs gives them.
Destinations FindDestinations(const at::Tensor& order, const at::Tensor& ends, int64_t ranks);

// Returns out [num_rows, H] of dtype `type` with out[order[t, j]] = source[t] * scale[t, j]; positions from num_rows on are left
// out, and every one below must be there. source's dtype is `type` or wider.
at::Tensor SpreadRows(const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order, int64_t num_rows,
                      at::ScalarType type);
// Into out, contiguous, of which rows that no position names stay as they are.
void SpreadInto(const at::Tensor& out, const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order);
}  // namespace cpu

namespace cuda {
PairOrder OrderPairs(const at::Tensor& ids, const at::Tensor& placement, int64_t ep_size, const std::string& layer);
Destinations FindDestinations(const at::Tensor& order, const at::Tensor& ends, int64_t ranks);
at::Tensor SpreadRows(const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order, int64_t num_rows,
                      at::ScalarType type);
void SpreadInto(const at::Tensor& out, const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order);
}  // namespace cuda

}  // namespace autoep::ops
