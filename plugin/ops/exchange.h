// SPDX-License-Identifier: Apache-2.0
// The way between tokens and the experts of other ranks. A token goes once to each rank that holds one of its experts, with the
// numbers of its slots there; the rank makes the experts' rows of it, and sums them again before the one row that goes back.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plugin/comm/communicator.h"
#include "plugin/ops/kernels.h"

namespace autoep::ops {

// placement is [E, 1, 2] int64 for this number of ranks; on the CPU, also that its entries are a placement.
void CheckPlacement(const at::Tensor& placement, int64_t ep_size, const std::string& layer);

// Throws with a sentence that names the layer.
comm::CommunicatorPtr Resolve(const std::string& group, int64_t ep_size, const std::string& layer);

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

struct Counts {
  at::Tensor counts;    // [E], as dispatch returns it: on the CPU
  at::Tensor received;  // [N, S + 2], likewise
};

// Tells every rank how much comes to it. Every rank also says which call it is in (`signature`); if they differ, or if a rank
// reports a `failure`, every rank throws, each with its own sentence.
class CountExchange {
 public:
  // counts [E]: this rank's pairs for each expert; by_slot [E]: for each slot number; tokens [N]: its tokens to each rank. Starts
  // the exchange and does not wait for it, so that what does not need the counts can be launched.
  CountExchange(comm::Communicator& communicator, const at::Tensor& counts, const at::Tensor& by_slot, const at::Tensor& tokens,
                const std::string& signature, bool failed);

  // Waits for the counts, and for nothing that was launched since. Throws where the others do not come within the group's timeout.
  Counts Finish(const std::optional<std::string>& failure, const std::string& layer);

 private:
  void Wait(const std::string& layer) const;

  const int64_t rank_, ranks_, slots_, experts_;
  const std::chrono::milliseconds timeout_;
  const std::string signature_;
  const int64_t mark_;
  at::Tensor heard_;  // [N, S + 2]: from each rank; its pairs for each slot, its tokens, its mark
  at::Tensor host_;   // on the CPU: heard_, tokens, counts
  std::optional<c10::Event> copied_;
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
  std::pair<Choices, at::Tensor> AnnounceWith(const at::Tensor& numbers, bool has_factors, const at::Tensor& values) const;
  // values [V, C] back to their tokens, the ranks' summed: [T, C] of `type`, theirs or wider.
  at::Tensor ToTokens(const at::Tensor& values, at::ScalarType type) const;
  // As ToTokens of each, in their own types.
  std::vector<at::Tensor> ToTokensEach(const std::vector<at::Tensor>& values) const;

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
  int64_t num_rows_;
  std::vector<int64_t> send_;     // tokens to each rank
  std::vector<int64_t> receive_;  // tokens from each rank
};

// This rank's tokens on their way.
struct Sent {
  Exchange exchange;
  Counts counts;
  SendPlan plan;
  Choices choices;    // of what came
  at::Tensor tokens;  // [V, H] that came
};

// x [T, H] and, if given, factors [T, k] to the ranks that `pairs` says. Ranks that differ in `signature` throw, and all do where
// one has a bad id.
Sent SendTokens(comm::CommunicatorPtr communicator, const at::Tensor& x, const PairOrder& pairs,
                const std::optional<at::Tensor>& factors, const std::string& signature, const std::string& layer);

// The sentence for an id that no expert has.
std::string BadId(int64_t id, int64_t experts);

// What ranks must agree on before rows travel.
std::string Signature(const at::Tensor& x, int64_t num_experts, const std::string& layer);

// In which dtype a rank's part of a sum of `rows` travels whose result is `sum`. fp16 would leave its range.
at::ScalarType PartType(at::ScalarType rows, at::ScalarType sum);

}  // namespace autoep::ops
