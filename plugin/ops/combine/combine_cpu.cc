// SPDX-License-Identifier: Apache-2.0
// combine on the CPU: one pass over the tokens, each with its choices in order, so the sum is the same every time.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "plugin/ops/checks.h"
#include "plugin/ops/combine/combine.h"
#include "plugin/ops/visit_dtype.h"

namespace autoep::ops::cpu {
namespace {

constexpr int64_t kElementsPerTask = 32768;

int64_t TokensPerTask(int64_t choices, int64_t hidden) { return kElementsPerTask / (choices * hidden + 1) + 1; }

template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace

at::Tensor SumRows(const at::Tensor& rows, const std::optional<at::Tensor>& weights, const at::Tensor& order, at::ScalarType type) {
  at::Tensor out = at::empty({order.size(0), rows.size(1)}, rows.options().dtype(type));
  SumInto(out, rows, weights, order);
  return out;
}

void SumInto(const at::Tensor& out, const at::Tensor& rows, const std::optional<at::Tensor>& weights, const at::Tensor& order) {
  const at::ScalarType type = out.scalar_type();
  const int64_t choices = order.size(1);
  const int64_t hidden = rows.size(1);
  const at::Tensor in = rows.contiguous();
  const at::Tensor factors = weights ? weights->to(AccumulateType(type)).contiguous() : at::Tensor();
  VisitRowPair(rows.scalar_type(), type, [&]<typename Row, typename Out>() {
    using Sum = Accumulate<Out>;
    const Row* from = in.const_data_ptr<Row>();
    const Sum* by = weights ? factors.const_data_ptr<Sum>() : nullptr;
    const int64_t* position = order.const_data_ptr<int64_t>();
    Out* to = out.mutable_data_ptr<Out>();
    at::parallel_for(0, order.size(0), TokensPerTask(choices, hidden), [&](int64_t begin, int64_t end) {
      std::vector<Sum> sum(hidden);
      for (int64_t token = begin; token < end; ++token) {
        std::fill(sum.begin(), sum.end(), Sum{0});
        for (int64_t pair = token * choices; pair < (token + 1) * choices; ++pair) {
          if (position[pair] >= rows.size(0)) continue;
          const Row* row = from + position[pair] * hidden;
          const Sum factor = by == nullptr ? Sum{1} : by[pair];
          for (int64_t i = 0; i < hidden; ++i) sum[i] += factor * static_cast<Sum>(row[i]);
        }
        std::copy(sum.begin(), sum.end(), to + token * hidden);
      }
    });
  });
}

at::Tensor DotRows(const at::Tensor& tokens, const at::Tensor& rows, const at::Tensor& order) {
  const int64_t choices = order.size(1);
  const int64_t hidden = rows.size(1);
  const at::Tensor left = tokens.contiguous();
  const at::Tensor right = rows.contiguous();
  at::Tensor out = at::empty(order.sizes(), rows.options().dtype(AccumulateType(tokens.scalar_type())));
  VisitRowPair(rows.scalar_type(), tokens.scalar_type(), [&]<typename Row, typename Token>() {
    using Sum = Accumulate<Token>;
    const Token* token_rows = left.const_data_ptr<Token>();
    const Row* choice_rows = right.const_data_ptr<Row>();
    const int64_t* position = order.const_data_ptr<int64_t>();
    Sum* to = out.mutable_data_ptr<Sum>();
    at::parallel_for(0, order.numel(), kElementsPerTask / (hidden + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; ++pair) {
        const Token* token = token_rows + pair / choices * hidden;
        const Row* row = choice_rows + position[pair] * hidden;
        const int64_t end = position[pair] < rows.size(0) ? hidden : 0;
        Sum sum = 0;
        for (int64_t i = 0; i < end; ++i) sum += static_cast<Sum>(token[i]) * static_cast<Sum>(row[i]);
        to[pair] = sum;
      }
    });
  });
  return out;
}

}  // namespace autoep::ops::cpu
