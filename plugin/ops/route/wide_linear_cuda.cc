// SPDX-License-Identifier: Apache-2.0
// Products of 16 bits with sums of fp32, and their gradients, by torch's mm.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sub.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>
#include <vector>

#include "plugin/ops/route/wide_linear.h"

namespace autoep::ops {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// [.., H] as [T, H].
at::Tensor Flat(const at::Tensor& x) { return x.view({c10::multiply_integers(x.sizes().slice(0, x.dim() - 1)), x.size(-1)}); }

at::Tensor Multiply(const at::Tensor& x, const at::Tensor& gate, const OptionalTensor& bias) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = gate.size(0);
  at::Tensor sums = at::mm(Flat(x), gate.t(), at::kFloat).view(shape);
  return bias ? sums.add_(*bias) : sums;
}

// fp32 [T, E] as three terms of bf16 side by side, [T, 3E]: 8 bits each of 24.
at::Tensor InTerms(const at::Tensor& values) {
  const at::Tensor high = values.to(at::kBFloat16);
  const at::Tensor rest = at::sub(values, high);
  const at::Tensor middle = rest.to(at::kBFloat16);
  return at::cat({high, middle, at::sub(rest, middle).to(at::kBFloat16)}, 1);
}

class WideLinearFunction : public torch::autograd::Function<WideLinearFunction> {
 public:
  using Variables = torch::autograd::variable_list;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& gate,
                            const OptionalTensor& bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, gate});
    if (bias) ctx->saved_data["bias"] = bias->scalar_type();
    return Multiply(x, gate, bias);
  }

  static Variables backward(torch::autograd::AutogradContext* ctx, Variables grads) {
    const Variables saved = ctx->get_saved_variables();
    const at::Tensor tokens = Flat(saved[0]), gate = saved[1];
    const at::Tensor grad = grads[0].reshape({tokens.size(0), gate.size(0)});
    Variables result(3);
    if (ctx->saved_data.count("bias") != 0) result[2] = grad.sum(0).to(ctx->saved_data["bias"].toScalarType());
    if (at::GradMode::is_enabled()) {  // somebody will differentiate this
      result[0] = at::matmul(grad, gate.to(at::kFloat)).to(tokens.scalar_type()).view(saved[0].sizes());
      result[1] = at::matmul(grad.t(), tokens.to(at::kFloat)).to(gate.scalar_type());
      return result;
    }
    const at::Tensor terms = InTerms(grad);
    if (ctx->needs_input_grad(0)) result[0] = at::mm(terms, gate.repeat({3, 1})).view(saved[0].sizes());
    if (ctx->needs_input_grad(1)) {
      const at::Tensor parts = at::mm(terms.t(), tokens, at::kFloat).view({3, gate.size(0), gate.size(1)});
      result[1] = parts.sum(0).to(gate.scalar_type());
    }
    return result;
  }
};

}  // namespace

bool LinearOperands::AreNarrow() const {
  const at::ScalarType type = x.scalar_type();
  const auto alike = [&](const at::Tensor& other) {
    return other.scalar_type() == type && other.device() == x.device() && other.is_contiguous();
  };
  return (type == at::kHalf || type == at::kBFloat16) && x.is_contiguous() && alike(gate) && x.dim() >= 1 && gate.dim() == 2 &&
         x.size(-1) == gate.size(1) && (!bias || (alike(*bias) && bias->dim() == 1 && bias->size(0) == gate.size(0)));
}

bool LinearOperands::GiveGradients() const {
  return at::GradMode::is_enabled() && (x.requires_grad() || gate.requires_grad() || (bias && bias->requires_grad()));
}

std::optional<at::Tensor> TryWideLinear(const LinearOperands& operands) {
  const auto& [x, gate, bias] = operands;
  if (!operands.AreNarrow()) return std::nullopt;
  if (!operands.GiveGradients()) return Multiply(x, gate, bias);
  if (x.scalar_type() != at::kBFloat16) return std::nullopt;
  return WideLinearFunction::apply(x, gate, bias);
}

}  // namespace autoep::ops
