// SPDX-License-Identifier: Apache-2.0
// experts on the CPU: one GEMM pair an expert, on slices of the rows. fp16, and bf16 where the processor has no instructions for
// its products, are widened to fp32, rows expert by expert and weights panel by panel: torch's GEMM is slow for them.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <vector>

#include "plugin/ops/checks.h"
#include "plugin/ops/experts/activation_cpu.h"
#include "plugin/ops/experts/experts.h"

namespace autoep::ops::cpu {
namespace {

constexpr int64_t kPanelElements = int64_t{1} << 20;
// Below this many rows an expert, experts run side by side; above, the threads share one GEMM.
constexpr int64_t kRowsForThreadedGemm = 64;

bool HasBf16Products() {
  static const bool has = [] {
    const auto capabilities = at::cpu::get_cpu_capabilities();
    return std::ranges::any_of(std::array{"avx512_bf16", "amx_bf16"}, [&](const char* name) {
      const auto found = capabilities.find(name);
      return found != capabilities.end() && found->second.isBool() && found->second.toBool();
    });
  }();
  return has;
}

// The dtype in which matrices are multiplied; sums are fp32 or wider in all.
at::ScalarType ProductType(at::ScalarType type) { return type == at::kBFloat16 && HasBf16Products() ? type : AccumulateType(type); }

struct Group {
  int64_t expert, begin, rows;
};

std::vector<Group> Groups(const ExpertsCall& call) {
  const int32_t* ends = call.offsets.const_data_ptr<int32_t>();
  std::vector<Group> groups;
  int64_t begin = 0;
  for (int64_t expert = 0; expert < call.offsets.size(0); ++expert) {
    TORCH_CHECK(ends[expert] >= begin, "autoep: offsets fall at expert ", expert);
    if (ends[expert] > begin) groups.push_back({expert, begin, ends[expert] - begin});
    begin = ends[expert];
  }
  TORCH_CHECK(begin == call.rows.size(0), "autoep: offsets end at ", begin, ", and there are ", call.rows.size(0), " rows");
  return groups;
}

template <typename Body>
void ForGroups(const std::vector<Group>& groups, int64_t rows, Body body) {
  const auto count = static_cast<int64_t>(groups.size());
  const bool side_by_side = rows < kRowsForThreadedGemm * count;
  at::parallel_for(0, count, side_by_side ? 1 : count + 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;  // of this thread
    for (int64_t i = begin; i < end; ++i) body(groups[i]);
  });
}

// Calls body(first row, panel) over matrix [n, m], whole where it has the dtype already.
template <typename Body>
void ForPanels(const at::Tensor& matrix, at::ScalarType type, Body body) {
  const int64_t height =
      matrix.scalar_type() == type ? matrix.size(0) : std::max<int64_t>(1, kPanelElements / std::max<int64_t>(1, matrix.size(1)));
  for (int64_t begin = 0; begin < matrix.size(0); begin += height) {
    body(begin, matrix.narrow(0, begin, std::min(height, matrix.size(0) - begin)).to(type));
  }
}

// out [n, m] = in [n, k] x weight [m, k]^T + bias [m]
void Linear(const at::Tensor& in, const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t expert,
            at::Tensor& out) {
  if (bias && in.scalar_type() == at::kBFloat16) {
    at::addmm_out(out, bias->select(0, expert), in, weight.t());  // rounds once
    return;
  }
  ForPanels(weight, in.scalar_type(), [&](int64_t begin, const at::Tensor& panel) {
    at::Tensor part = out.narrow(1, begin, panel.size(0));
    at::mm_out(part, in, panel.t());
  });
  if (bias) out.add_(bias->select(0, expert));
}

// [n, k] = grad [n, m] x weight [m, k]
at::Tensor LinearBackward(const at::Tensor& grad, const at::Tensor& weight) {
  at::Tensor out = at::empty({grad.size(0), weight.size(1)}, grad.options());
  ForPanels(weight, grad.scalar_type(), [&](int64_t begin, const at::Tensor& panel) {
    const at::Tensor part = grad.narrow(1, begin, panel.size(0));
    if (begin == 0) {
      at::mm_out(out, part, panel);
    } else {
      at::addmm_out(out, out, part, panel);
    }
  });
  return out;
}

// out [m, k] = grad [n, m]^T x in [n, k]
void WeightGrad(const at::Tensor& grad, const at::Tensor& in, at::Tensor out) {
  if (out.scalar_type() == grad.scalar_type()) {
    at::mm_out(out, grad.t(), in);
    return;
  }
  const int64_t height = std::max<int64_t>(1, kPanelElements / std::max<int64_t>(1, out.size(1)));
  for (int64_t begin = 0; begin < out.size(0); begin += height) {
    const int64_t rows = std::min(height, out.size(0) - begin);
    out.narrow(0, begin, rows).copy_(at::mm(grad.narrow(1, begin, rows).t(), in));
  }
}

// A tensor of which ForGroups fills the hit experts' parts; the others' are zeroed here.
at::Tensor GradLike(const at::Tensor& weight, const std::vector<Group>& groups) {
  at::Tensor grad = at::empty(weight.sizes(), weight.options());
  std::vector<bool> hit(weight.size(0), false);
  for (const Group& group : groups) hit[group.expert] = true;
  for (int64_t expert = 0; expert < weight.size(0); ++expert) {
    if (!hit[expert]) grad.select(0, expert).zero_();
  }
  return grad;
}

// [n, I] of hidden [n, 2I or I], in the dtype of sums.
at::Tensor Activated(const ExpertsCall& call, const at::Tensor& hidden) {
  const at::ScalarType wide = AccumulateType(hidden.scalar_type());
  at::Tensor out = at::empty({hidden.size(0), call.down.size(2)}, hidden.options().dtype(wide));
  Activate(call, hidden, out);
  return out;
}

}  // namespace

ExpertsOut ForwardExperts(const ExpertsCall& call, bool keep_hidden) {
  const at::ScalarType type = ProductType(call.rows.scalar_type());
  const bool widened = type != call.rows.scalar_type();
  const int64_t width = call.gate_up.size(1);
  const int64_t count = call.rows.size(0);
  ExpertsOut result{at::empty(call.rows.sizes(), call.rows.options()), at::Tensor()};
  if (keep_hidden) result.hidden = at::empty({count, width}, call.rows.options());
  ForGroups(Groups(call), count, [&](const Group& group) {
    const at::Tensor in = call.rows.narrow(0, group.begin, group.rows).to(type);
    at::Tensor hidden =
        keep_hidden && !widened ? result.hidden.narrow(0, group.begin, group.rows) : at::empty({group.rows, width}, in.options());
    Linear(in, call.gate_up[group.expert], call.gate_up_bias, group.expert, hidden);
    // Rounded as the model's own linear would, and the same with and without a gradient.
    if (widened) hidden = hidden.to(call.rows.scalar_type());
    if (keep_hidden && widened) result.hidden.narrow(0, group.begin, group.rows).copy_(hidden);
    const at::Tensor activated = Activated(call, hidden).to(type);
    at::Tensor out = result.out.narrow(0, group.begin, group.rows);
    if (widened) {
      at::Tensor wide = at::empty(out.sizes(), in.options());
      Linear(activated, call.down[group.expert], call.down_bias, group.expert, wide);
      out.copy_(wide);
    } else {
      Linear(activated, call.down[group.expert], call.down_bias, group.expert, out);
    }
  });
  return result;
}

ExpertsGrads BackwardExperts(const ExpertsCall& call, const at::Tensor& grad, const at::Tensor& hidden,
                             const std::array<bool, 5>& needs) {
  const at::ScalarType type = ProductType(call.rows.scalar_type());
  const at::ScalarType wide = AccumulateType(type);
  const std::vector<Group> groups = Groups(call);
  ExpertsGrads grads;
  if (needs[0]) grads.rows = at::empty(call.rows.sizes(), call.rows.options());
  if (needs[1]) grads.gate_up = GradLike(call.gate_up, groups);
  if (needs[2]) grads.down = GradLike(call.down, groups);
  if (needs[3]) grads.gate_up_bias = GradLike(*call.gate_up_bias, groups);
  if (needs[4]) grads.down_bias = GradLike(*call.down_bias, groups);
  ForGroups(groups, call.rows.size(0), [&](const Group& group) {
    const auto part = [&](const at::Tensor& tensor) { return tensor.narrow(0, group.begin, group.rows); };
    const at::Tensor grad_out = part(grad).to(type);
    if (needs[4]) grads.down_bias[group.expert].copy_(grad_out.sum(0));
    if (needs[2]) {
      WeightGrad(grad_out, Activated(call, part(hidden)).to(type), grads.down[group.expert]);
    }
    if (!needs[0] && !needs[1] && !needs[3]) return;
    at::Tensor grad_hidden = at::empty({group.rows, call.gate_up.size(1)}, grad_out.options().dtype(wide));
    ActivateBackward(call, part(hidden), LinearBackward(grad_out, call.down[group.expert]).to(wide), grad_hidden);
    if (needs[3]) grads.gate_up_bias[group.expert].copy_(grad_hidden.sum(0));
    grad_hidden = grad_hidden.to(type);
    if (needs[1]) WeightGrad(grad_hidden, part(call.rows).to(type), grads.gate_up[group.expert]);
    if (needs[0]) part(grads.rows).copy_(LinearBackward(grad_hidden, call.gate_up[group.expert]));
  });
  return grads;
}

}  // namespace autoep::ops::cpu
