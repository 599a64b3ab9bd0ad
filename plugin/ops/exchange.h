// SPDX-License-Identifier: Apache-2.0
// The way between tokens and the experts of other ranks. A token goes once to each rank that holds one of its experts, with the
// numbers of its slots there; the rank makes the experts' rows of it, and sums them again before the one row that goes back.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plugin/comm/communicator.h"
#include "plugin/ops/count_exchange.h"
#include "plugin/ops/kernels.h"

namespace autoep::ops {

// placement is [E, 1, 2] int64 for this number of ranks; on the CPU, also that its entries are a placement.
void CheckPlacement(const at::Tensor& placement, int64_t ep_size, const std::string& layer);

// For tensors on such a device. Throws with a sentence that names the layer.
comm::CommunicatorPtr Resolve(const std::string& group, int64_t ep_size, const at::Device& device, const std::string& layer);

// tokens [N, N] int64, on the CPU: from each rank to each.
comm::Traffic TrafficOf(const at::Tensor& tokens);

// Where this rank's tokens go.
struct SendPlan {
  // [T, k] int64, contiguous: the position in the send buffer of what goes to a rank, at the first choice that does; else past its
  // end. The buffer is laid out as AllToAllRows takes it.
  at::Tensor first;
  at::Tensor slots;   // [T, k] int64: slot numbers
  at::Tensor tokens;  // [N] int64: tokens to each rank; known to dispatch alone

  // order [T, 2k], as dispatch returns it, and from it.
  at::Tensor Order() const;
  static SendPlan FromOrder(const at::Tensor& order);
};

// What a rank is told of the tokens that came to it: V of them, laid out as AllToAllRows gives them.
struct Choices {
  at::Tensor slots;                   // [V, k] int64: slot numbers
  std::optional<at::Tensor> factors;  // [V, k] fp32 or fp64
};

// What it makes of that.
struct Arrivals {
  at::Tensor ends;                    // [S] int32: of each slot's rows
  at::Tensor places;                  // [V, k] int64: each choice's row of [R, H]; R and above: another rank has it
  std::optional<at::Tensor> factors;  // as told
};

// What Announce sends, [T, k] or with factors [T, 2k], fp32 or fp64.
at::Tensor Numbers(const SendPlan& plan, const std::optional<at::Tensor>& factors);

// values [T, C] at the positions of the send buffer, before it is known how many of its rows are used: every row that could be.
at::Tensor Pack(const at::Tensor& values, const SendPlan& plan, int64_t ranks, at::ScalarType type);

struct Packed;

// Between several ranks. Each call that sends is collective.
class Exchange {
 public:
  // received as dispatch returns it.
  Exchange(comm::CommunicatorPtr communicator, SendPlan plan, const at::Tensor& received, std::string layer);

  // Rows of this rank's experts.
  int64_t num_rows() const { return num_rows_; }

  // Sends each token's slots, and its factors [T, k] if given.
  Arrivals Announce(const std::optional<at::Tensor>& factors) const;
  // values [T, C], float, sent in `type`, theirs or narrower: [V, C].
  at::Tensor ToExperts(const at::Tensor& values, at::ScalarType type) const;
  // Both at once: what Pack made of Numbers and of values.
  std::pair<Choices, at::Tensor> AnnounceWith(const at::Tensor& numbers, bool has_factors, const at::Tensor& values,
                                              const comm::Boxed& boxed = {}) const;
  // values [V, C] back to their tokens, the ranks' summed: [T, C] of `type`, theirs or wider.
  at::Tensor ToTokens(const at::Tensor& values, at::ScalarType type) const;
  // The same of values that were written into [V, columns] of dtype `part` on `like`'s device.
  at::Tensor ToTokens(int64_t columns, at::ScalarType part, const at::Tensor& like, at::ScalarType type,
                      const std::function<void(const at::Tensor& values)>& write) const;
  // As ToTokens of each, in their own types. What the device does until Wait is called goes on beside it.
  class Home {
   public:
    std::vector<at::Tensor> Wait();

   private:
    friend class Exchange;
    std::unique_ptr<comm::Arriving> rows_;
    at::Tensor first_;
  };
  Home StartToTokens(const std::vector<at::Tensor>& values) const;

  // packed to the experts and their answers back, where the transport gains by moving some while others are worked on: work makes
  // answers [n, H] of dtype `part`, of tokens [n, H] with these choices, num_rows of which are for experts here, and takes so many
  // seconds. Returns the answers' sums [T, H] of dtype `type`.
  using Work = std::function<void(const Choices& choices, const at::Tensor& tokens, int64_t num_rows, const at::Tensor& answers)>;
  std::optional<at::Tensor> RoundTrip(const Packed& packed, at::ScalarType part, at::ScalarType type, const comm::Seconds& seconds,
                                      const Work& work) const;

  // A placement [N * S, 1, 2] on one rank: this rank's slot numbers in its slots, all others in slot S.
  at::Tensor Placement(const at::Device& device) const;
  Arrivals Arrive(const Choices& choices) const;

 private:
  Choices Told(const at::Tensor& numbers, bool has_factors) const;
  at::Tensor Filled(const at::Tensor& packed) const;

  const comm::CommunicatorPtr communicator_;
  const SendPlan plan_;
  const std::string layer_;
  int64_t slots_per_rank_;
  int64_t num_rows_;                // of this rank's experts;
  std::vector<int64_t> rows_from_;  // of these, of each rank's tokens
  comm::Traffic traffic_;           // tokens to their experts
};

// This rank's tokens, ready to go.
struct Packed {
  Exchange exchange;
  Counts counts;
  SendPlan plan;
  bool has_factors;
  comm::Outbox box;  // Numbers, and the tokens

  // What came, and [V, H] of it.
  std::pair<Choices, at::Tensor> Send() const;
};

// x [T, H] and, if given, factors [T, k] for the ranks that `pairs` says. Ranks that differ in `signature` throw, and all do where
// one has a bad id. Collective.
Packed PackTokens(comm::CommunicatorPtr communicator, const at::Tensor& x, const PairOrder& pairs,
                  const std::optional<at::Tensor>& factors, const std::string& signature, const std::string& layer);

// The sentence for an id that no expert has.
std::string BadId(int64_t id, int64_t experts);

// What ranks must agree on before rows travel.
std::string Signature(const at::Tensor& x, int64_t num_experts, const std::string& layer);

// In which dtype a rank's part of a sum of `rows` travels whose result is `sum`. fp16 would leave its range.
at::ScalarType PartType(at::ScalarType rows, at::ScalarType sum);

}  // namespace autoep::ops
