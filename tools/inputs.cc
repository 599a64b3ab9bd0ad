// SPDX-License-Identifier: Apache-2.0
// Makes the tensors of the inferred inputs, and checks the ones that were given.
#include "tools/inputs.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/triu.h>
#include <c10/util/TypeCast.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "plugin/io/text.h"

namespace autoep {
namespace {

// The additive causal mask that transformers makes: 0 where a token may look, the dtype's least number elsewhere.
at::Tensor CausalMask(at::ScalarType dtype, const InputShape& shape) {
  const double least = dtype == at::kHalf ? -65504.0 : -3.0e38;
  const at::Tensor full = at::full({shape.batch, 1, shape.length, shape.length}, least, at::kFloat);
  return at::triu(full, 1).to(dtype);
}

at::Tensor MakeInput(const InputSpec& spec, const InputShape& shape, at::Generator& generator) {
  const std::vector<int64_t> grid = {shape.batch, shape.length};
  switch (spec.kind) {
    case InputKind::kTokenIds:
      return at::randint(0, spec.size, grid, generator, at::TensorOptions(at::kLong));
    case InputKind::kPositions:
      return at::arange(shape.length, at::kLong).unsqueeze(0).expand(grid).contiguous();
    case InputKind::kMask:
      return CausalMask(spec.dtype, shape);
    case InputKind::kHidden:
      break;
  }
  const at::Tensor rows = at::randn({shape.Tokens(), spec.size}, generator, at::TensorOptions(at::kFloat)).to(spec.dtype);
  return shape.flat ? rows : rows.reshape({shape.batch, shape.length, spec.size});
}

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::string InputShape::Name() const { return flat ? std::to_string(Tokens()) : fmt::format("{}x{}", batch, length); }

std::vector<std::vector<InputShape>> ShapesToTry(const std::vector<InputSpec>& specs) {
  const std::vector<InputShape> grid = {{2, 12, false}, {3, 5, false}, {1, 1, false}};
  const std::vector<InputShape> flat = {{2, 12, true}, {3, 5, true}, {1, 1, true}};
  const std::vector<InputShape> single = {{1, 12, false}, {1, 5, false}};
  const bool all_hidden =
      std::all_of(specs.begin(), specs.end(), [](const InputSpec& spec) { return spec.kind == InputKind::kHidden; });
  if (!all_hidden) return {grid, single};
  const bool flat_first = std::any_of(specs.begin(), specs.end(), [](const InputSpec& spec) { return spec.flat_first; });
  return flat_first ? std::vector{flat, grid, single} : std::vector{grid, flat, single};
}

NamedTensors MakeInputs(const std::vector<InputSpec>& specs, const InputShape& shape, uint64_t seed) {
  NamedTensors inputs;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (const InputSpec& spec : specs) inputs.emplace_back(spec.name, MakeInput(spec, shape, generator));
  return inputs;
}

ArgumentNames ArgumentsOf(const torch::jit::Module& module) {
  ArgumentNames names;
  const auto& arguments = module.get_method("forward").function().getSchema().arguments();
  for (size_t i = 1; i < arguments.size(); ++i) {
    names.all.push_back(arguments[i].name());
    if (!arguments[i].default_value()) names.required.push_back(arguments[i].name());
  }
  return names;
}

Result<NamedTensors> OrderInputs(const NamedTensors& given, const ArgumentNames& arguments, const std::string& where) {
  NamedTensors ordered;
  for (const auto& [name, tensor] : given) {
    if (Contains(arguments.all, name)) continue;
    return Status(Code::kUsage, fmt::format("{}: the model has no argument '{}'; its arguments are {}", where, Printable(name),
                                            JoinWords(arguments.all)));
  }
  for (const std::string& name : arguments.all) {
    const auto found = std::find_if(given.begin(), given.end(), [&](const auto& input) { return input.first == name; });
    if (found != given.end()) {
      ordered.push_back(*found);
    } else if (Contains(arguments.required, name)) {
      return Status(Code::kUsage, fmt::format("{}: there is no tensor named '{}', which the model's argument of that name needs",
                                              where, Printable(name)));
    }
  }
  return ordered;
}

std::string RankPath(const std::string& pattern, int64_t rank) {
  static constexpr std::string_view kMark = "{rank}";
  std::string path = pattern;
  for (size_t at = path.find(kMark); at != std::string::npos; at = path.find(kMark, at)) {
    path.replace(at, kMark.size(), std::to_string(rank));
  }
  return path;
}

}  // namespace autoep
