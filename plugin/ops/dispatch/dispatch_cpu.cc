// SPDX-License-Identifier: Apache-2.0
// dispatch on the CPU: a stable counting sort over slot numbers, and rows written straight to their sorted places.
#include <ATen/Parallel.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "plugin/ops/checks.h"
#include "plugin/ops/dispatch/dispatch.h"
#include "plugin/ops/visit_dtype.h"

namespace autoep::ops::cpu {
namespace {

constexpr int64_t kPairsPerChunk = 32768;
constexpr int64_t kElementsPerTask = 32768;

// Pairs in chunks; within a chunk in order, so the result does not depend on the number of threads.
class CountingSort {
 public:
  CountingSort(const at::Tensor& ids, const at::Tensor& slots)
      : ids_(ids.const_data_ptr<int64_t>()),
        slots_(slots.const_data_ptr<int64_t>()),
        pairs_(ids.numel()),
        experts_(slots.numel()),
        chunks_((pairs_ + kPairsPerChunk - 1) / kPairsPerChunk),
        next_(chunks_ * experts_) {}

  // Counts into next_; returns an id that is out of range, if there is one.
  std::optional<int64_t> Count() {
    std::atomic<int64_t> bad_pair = -1;
    ForChunks([&](int64_t chunk, int64_t begin, int64_t end) {
      int64_t* counts = &next_[chunk * experts_];
      for (int64_t pair = begin; pair < end; ++pair) {
        const int64_t id = ids_[pair];
        if (id < 0 || id >= experts_) {
          bad_pair = pair;
        } else {
          ++counts[slots_[id]];
        }
      }
    });
    return bad_pair < 0 ? std::nullopt : std::optional(ids_[bad_pair]);
  }

  // Turns counts into each chunk's first position per slot.
  void Accumulate(int64_t* by_slot) {
    int64_t position = 0;
    for (int64_t slot = 0; slot < experts_; ++slot) {
      const int64_t begin = position;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        const int64_t count = next_[chunk * experts_ + slot];
        next_[chunk * experts_ + slot] = position;
        position += count;
      }
      by_slot[slot] = position - begin;
    }
  }

  void Place(int64_t* order) {
    ForChunks([&](int64_t chunk, int64_t begin, int64_t end) {
      int64_t* next = &next_[chunk * experts_];
      for (int64_t pair = begin; pair < end; ++pair) order[pair] = next[slots_[ids_[pair]]]++;
    });
  }

 private:
  template <typename Body>
  void ForChunks(Body body) {
    at::parallel_for(0, chunks_, 1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk)
        body(chunk, chunk * kPairsPerChunk, std::min(pairs_, (chunk + 1) * kPairsPerChunk));
    });
  }

  const int64_t* ids_;
  const int64_t* slots_;
  const int64_t pairs_;
  const int64_t experts_;
  const int64_t chunks_;
  std::vector<int64_t> next_;
};

// rank * S + slot of each id: [E].
at::Tensor SlotNumbers(const at::Tensor& placement, int64_t ep_size) {
  const at::Tensor table = placement.cpu().select(1, 0);
  return table.select(1, 0).mul(placement.size(0) / ep_size).add(table.select(1, 1));
}

}  // namespace

PairOrder OrderPairs(const at::Tensor& ids, const at::Tensor& placement, int64_t ep_size, const std::string&) {
  const at::Tensor slots = SlotNumbers(placement, ep_size);
  PairOrder pairs{at::empty_like(ids), at::zeros_like(slots), {}, {}, std::nullopt};
  CountingSort sort(ids, slots);
  pairs.bad_id = sort.Count();
  if (pairs.bad_id) return pairs;
  sort.Accumulate(pairs.by_slot.mutable_data_ptr<int64_t>());
  sort.Place(pairs.order.mutable_data_ptr<int64_t>());
  pairs.counts = pairs.by_slot.index_select(0, slots);
  pairs.ends = at::cumsum(pairs.by_slot, 0, at::kInt);
  return pairs;
}

Destinations FindDestinations(const at::Tensor& order, const at::Tensor& ends, int64_t ranks) {
  const int64_t choices = order.size(1);
  const int64_t slots_per_rank = ends.size(0) / ranks;
  Destinations found{at::empty_like(order), at::empty_like(order)};
  const int64_t* position = order.const_data_ptr<int64_t>();
  const int32_t* end = ends.const_data_ptr<int32_t>();
  int64_t* slot = found.slots.mutable_data_ptr<int64_t>();
  int64_t* rank = found.ranks.mutable_data_ptr<int64_t>();
  at::parallel_for(0, order.size(0), kPairsPerChunk / (choices + 1) + 1, [&](int64_t begin, int64_t stop) {
    for (int64_t token = begin; token < stop; ++token) {
      for (int64_t pair = token * choices; pair < (token + 1) * choices; ++pair) {
        slot[pair] = std::upper_bound(end, end + ends.size(0), position[pair]) - end;
        const auto same = [&](int64_t other) { return other / slots_per_rank == slot[pair] / slots_per_rank; };
        rank[pair] = std::any_of(slot + token * choices, slot + pair, same) ? ranks : slot[pair] / slots_per_rank;
      }
    }
  });
  return found;
}

at::Tensor SpreadRows(const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order, int64_t num_rows,
                      at::ScalarType type) {
  at::Tensor out = at::empty({num_rows, source.size(1)}, source.options().dtype(type));
  SpreadInto(out, source, scale, order);
  return out;
}

void SpreadInto(const at::Tensor& out, const at::Tensor& source, const std::optional<at::Tensor>& scale, const at::Tensor& order) {
  const int64_t choices = order.size(1);
  const int64_t hidden = source.size(1);
  const int64_t num_rows = out.size(0);
  const at::ScalarType accumulate = AccumulateType(source.scalar_type());
  const at::Tensor in = source.contiguous();
  const at::Tensor factors = scale ? scale->to(accumulate).contiguous() : at::Tensor();
  VisitRowPair(out.scalar_type(), source.scalar_type(), [&]<typename Row, typename Source>() {
    using Accumulate = std::conditional_t<std::is_same_v<Source, double>, double, float>;
    const Source* from = in.const_data_ptr<Source>();
    const Accumulate* by = scale ? factors.const_data_ptr<Accumulate>() : nullptr;
    const int64_t* position = order.const_data_ptr<int64_t>();
    Row* to = out.mutable_data_ptr<Row>();
    at::parallel_for(0, order.numel(), kElementsPerTask / (hidden + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; ++pair) {
        if (position[pair] >= num_rows) continue;
        const Source* row = from + pair / choices * hidden;
        Row* target = to + position[pair] * hidden;
        if (by == nullptr) {
          std::copy(row, row + hidden, target);
        } else {
          for (int64_t i = 0; i < hidden; ++i) target[i] = static_cast<Row>(static_cast<Accumulate>(row[i]) * by[pair]);
        }
      }
    });
  });
}

}  // namespace autoep::ops::cpu
