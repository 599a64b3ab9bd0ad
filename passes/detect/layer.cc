// SPDX-License-Identifier: Apache-2.0
// The experts' tensors of a matched block: canonical tensors, the stored tensors that make them up, and what must agree.
#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "passes/detect/claim.h"
#include "passes/detect/ir.h"

namespace autoep {

int64_t MoeLayer::ExpertBytes() const {
  int64_t bytes = 0;
  for (const ExpertTensor& tensor : tensors) {
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    bytes += elements * static_cast<int64_t>(c10::elementSize(tensor.dtype));
  }
  return bytes;
}

namespace {

class LayerFiller {
 public:
  LayerFiller(const MatchContext& context, const Router& router, const std::vector<const ExpertFfn*>& experts, MoeLayer& layer)
      : context_(context), experts_(experts), layer_(layer), logits_(router.num_experts), stacked_(experts[0]->stacked()) {
    const ExpertFfn& first = *experts[0];
    layer.form = first.form().name;
    layer.num_experts = experts[0]->stacked() ? router.num_experts : static_cast<int64_t>(experts.size());
    layer.hidden = first.hidden();
    layer.intermediate = first.intermediate();
    layer.activation = first.activation;
    layer.activation_args = first.activation_args;
  }

  std::optional<Miss> Fill() {
    for (const ExpertFfn* expert : experts_) {
      if (!SameShape(*expert)) return Fail("all experts must have the same shape, activation and biases", *expert);
    }
    const ExpertFfn& first = *experts_[0];
    if (first.gate) {
      Halves("gate_up", {&GetGate, &GetUp}, false);
    } else {
      Halves("up", {&GetUp}, false);
    }
    if (!failure_) Whole("down", false);
    if (!failure_ && first.up.projection.bias) {
      if (first.gate) {
        Halves("gate_up_bias", {&GetGate, &GetUp}, true);
      } else {
        Halves("up_bias", {&GetUp}, true);
      }
    }
    if (!failure_ && first.down.bias) Whole("down_bias", true);
    if (!failure_) CheckAgreement();
    return failure_;
  }

 private:
  using GetHalf = const Half& (*)(const ExpertFfn&);
  static const Half& GetGate(const ExpertFfn& expert) { return *expert.gate; }
  static const Half& GetUp(const ExpertFfn& expert) { return expert.up; }

  std::optional<Miss> Fail(std::string predicate, const ExpertFfn& expert) {
    return Refuse(context_.path, std::move(predicate), expert.output->node());
  }

  bool SameShape(const ExpertFfn& expert) const {
    const ExpertFfn& first = *experts_[0];
    const auto has_bias = [](const Half& half) { return half.projection.bias.has_value(); };
    return expert.hidden() == layer_.hidden && expert.intermediate() == layer_.intermediate &&
           expert.up.projection.in() == layer_.hidden && (!expert.gate || expert.gate->projection.in() == layer_.hidden) &&
           expert.scale == first.scale && expert.activation == first.activation && expert.activation_args == first.activation_args &&
           expert.gate.has_value() == first.gate.has_value() && expert.down.bias.has_value() == first.down.bias.has_value() &&
           has_bias(expert.up) == has_bias(first.up) && (!expert.gate || has_bias(*expert.gate) == has_bias(expert.up));
  }

  // Rows `range` of `weight` at `row_begin` of the canonical tensor, for experts [begin, begin + count).
  void AddPart(ExpertTensor& tensor, const Weight& weight, RowRange range, int64_t row_begin, int64_t begin, int64_t count,
               bool transposed) {
    contract::SourcePart part;
    const bool constant = weight.name.starts_with("constant:");
    part.tensor = constant || context_.path.empty() ? weight.name : context_.path + "." + weight.name;
    part.expert_begin = begin;
    part.expert_count = count;
    part.row_begin = row_begin;
    part.row_count = range.count;
    part.source_row_begin = range.begin;
    part.source_row_step = range.step;
    part.transposed = transposed;
    tensor.parts.push_back(part);
    tensor.sources.push_back(weight.at ? FirstEntries(weight.tensor, count) : weight.tensor);
  }

  // Of a stack that has entries for experts without weights too, those of the others.
  static at::Tensor FirstEntries(const at::Tensor& stack, int64_t count) {
    if (stack.size(0) == count) return stack;
    return stack.detach().narrow(0, 0, count).set_requires_grad(stack.requires_grad());
  }

  // The experts use the entries of one stacked tensor in order: all, or all but those of experts that answer the token itself.
  bool UsesStack(const std::vector<const Weight*>& weights) const {
    const int64_t entries = weights[0]->tensor.size(0);
    if (static_cast<int64_t>(weights.size()) != entries && (entries != logits_ || IsSplit(*weights[0]))) return false;
    for (size_t e = 0; e < weights.size(); ++e) {
      if (weights[e]->name != weights[0]->name || weights[e]->at != static_cast<int64_t>(e)) return false;
    }
    return true;
  }

  // Stored as one matrix, of which no part says how many entries it has.
  static bool IsSplit(const Weight& weight) {
    return std::any_of(weight.nodes.begin(), weight.nodes.end(), [](const torch::jit::Node* node) {
      return node->kind() == c10::aten::view || node->kind() == c10::aten::reshape;
    });
  }

  // A stacked tensor is one part.
  void AddAll(ExpertTensor& tensor, const std::vector<const Weight*>& weights, RowRange range, int64_t row_begin,
              bool transposed) {
    const Weight& first = *weights[0];
    if (first.at) {
      if (UsesStack(weights)) {
        AddPart(tensor, first, range, row_begin, 0, layer_.num_experts, transposed);
      } else {
        failure_ = Fail(fmt::format("the experts must use all entries of the stacked weight {}, in order; it holds {}, and there "
                                    "are {} experts", first.name, first.tensor.size(0), layer_.num_experts), *experts_[0]);
      }
    } else if (!stacked_) {
      for (size_t e = 0; e < weights.size(); ++e) {
        AddPart(tensor, *weights[e], range, row_begin, static_cast<int64_t>(e), 1, transposed);
      }
    } else if (first.tensor.size(0) == layer_.num_experts) {
      AddPart(tensor, first, range, row_begin, 0, layer_.num_experts, transposed);
    } else {
      failure_ = Fail(fmt::format("the stacked weight {} must have as many experts as the router has logits, {}, and has {}",
                                  first.name, layer_.num_experts, first.tensor.size(0)),
                      *experts_[0]);
    }
  }

  void Halves(const std::string& role, const std::vector<GetHalf>& halves, bool bias) {
    ExpertTensor& tensor = Begin(role, static_cast<int64_t>(halves.size()) * layer_.intermediate, bias ? 0 : layer_.hidden);
    const ExpertFfn& first = *experts_[0];
    const auto weights = [&](GetHalf get) {
      std::vector<const Weight*> all;
      for (const ExpertFfn* expert : experts_) {
        const Projection& projection = get(*expert).projection;
        all.push_back(bias ? &*projection.bias : &projection.weight);
      }
      return all;
    };
    for (const ExpertFfn* expert : experts_) {
      for (const GetHalf get : halves) {
        if (get(*expert).rows != get(first).rows || get(*expert).projection.stored_in_out != get(first).projection.stored_in_out) {
          failure_ = Fail("all experts must store gate and up in the same way", *expert);
          return;
        }
      }
    }
    const int64_t width = layer_.intermediate;
    const bool transposed = !bias && halves[0](first).projection.stored_in_out;
    if (halves.size() == 2 && GetGate(first).projection.output == GetUp(first).projection.output &&
        GetGate(first).rows == RowRange{0, width, 1} && GetUp(first).rows == RowRange{width, width, 1}) {
      AddAll(tensor, weights(&GetGate), {0, 2 * width, 1}, 0, transposed);
      return;
    }
    for (size_t h = 0; h < halves.size(); ++h) {
      AddAll(tensor, weights(halves[h]), halves[h](first).rows, static_cast<int64_t>(h) * width,
             !bias && halves[h](first).projection.stored_in_out);
    }
  }

  void Whole(const std::string& role, bool bias) {
    ExpertTensor& tensor = Begin(role, layer_.hidden, bias ? 0 : layer_.intermediate);
    std::vector<const Weight*> weights;
    for (const ExpertFfn* expert : experts_) {
      weights.push_back(bias ? &*expert->down.bias : &expert->down.weight);
      if (expert->down.stored_in_out != experts_[0]->down.stored_in_out) {
        failure_ = Fail("all experts must store their last matrix in the same way", *expert);
        return;
      }
    }
    AddAll(tensor, weights, {0, layer_.hidden, 1}, 0, !bias && experts_[0]->down.stored_in_out);
  }

  ExpertTensor& Begin(const std::string& role, int64_t rows, int64_t columns) {
    ExpertTensor tensor;
    tensor.role = role;
    tensor.shape = {layer_.num_experts, rows};
    if (columns > 0) tensor.shape.push_back(columns);
    tensor.dtype = experts_[0]->dtype();
    tensor.requires_grad = experts_[0]->down.weight.tensor.requires_grad();
    layer_.tensors.push_back(std::move(tensor));
    return layer_.tensors.back();
  }

  // One dtype and one requires_grad in a layer, sizes that fit, and no stored number used twice.
  void CheckAgreement() {
    std::set<std::tuple<const void*, int64_t, int64_t, int64_t>> parts;  // storage, offset, first row, step
    for (const ExpertTensor& tensor : layer_.tensors) {
      for (size_t i = 0; i < tensor.parts.size(); ++i) {
        const at::Tensor& source = tensor.sources[i];
        const contract::SourcePart& part = tensor.parts[i];
        const std::string name = part.tensor;
        if (source.scalar_type() != tensor.dtype || source.requires_grad() != tensor.requires_grad) {
          failure_ = Fail(fmt::format("all tensors of the experts must have one dtype and one requires_grad; {} differs", name),
                          *experts_[0]);
          return;
        }
        const bool fresh = parts.emplace(source.storage().unsafeGetStorageImpl(), source.storage_offset(), part.source_row_begin,
                                         part.source_row_step).second;
        if (!fresh) {
          failure_ = Fail(fmt::format("each tensor must belong to one expert in one role; {} is used twice", name), *experts_[0]);
          return;
        }
        if (!Fits(tensor, part, source)) {
          failure_ = Fail(fmt::format("{} must have the shape that its expert needs", name), *experts_[0]);
          return;
        }
      }
    }
  }

  static bool Fits(const ExpertTensor& tensor, const contract::SourcePart& part, const at::Tensor& source) {
    const bool matrix = tensor.shape.size() == 3;
    const int64_t rows = matrix ? source.size(part.transposed ? -1 : -2) : source.size(-1);
    if (matrix && source.size(part.transposed ? -2 : -1) != tensor.shape[2]) return false;
    return part.source_row_begin + (part.row_count - 1) * part.source_row_step < rows;
  }

  const MatchContext& context_;
  const std::vector<const ExpertFfn*>& experts_;
  MoeLayer& layer_;
  const int64_t logits_;
  const bool stacked_;
  std::optional<Miss> failure_;
};

}  // namespace

std::optional<Miss> FillLayer(const MatchContext& context, const Router& router, const std::vector<const ExpertFfn*>& experts,
                              MoeLayer& layer) {
  return LayerFiller(context, router, experts, layer).Fill();
}

}  // namespace autoep
