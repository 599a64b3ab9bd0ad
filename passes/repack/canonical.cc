// SPDX-License-Identifier: Apache-2.0
// Applies SourceParts.
#include "passes/repack/canonical.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <vector>

namespace autoep {
namespace {

using contract::SourcePart;

bool Covers(const SourcePart& part, int64_t expert) {
  return expert >= part.expert_begin && expert < part.expert_begin + part.expert_count;
}

// Rows [row_count, C], or [row_count] of a bias, of one expert. A view.
at::Tensor SourceRows(const SourcePart& part, const at::Tensor& source, int64_t expert, bool matrix) {
  const int64_t dims = matrix ? 3 : 2;
  at::Tensor stacked = source;
  // A Linear's weight or bias, or a stack whose experts lie one below the other.
  if (source.dim() == dims - 1 && part.expert_count > 0 && source.size(0) % part.expert_count == 0) {
    std::vector<int64_t> sizes = source.sizes().vec();
    sizes[0] /= part.expert_count;
    sizes.insert(sizes.begin(), part.expert_count);
    stacked = source.view(sizes);
  }
  TORCH_CHECK(stacked.dim() == dims && stacked.size(0) == part.expert_count, "the source tensor ", part.tensor, " has sizes ",
              source.sizes(), " and is to hold ", part.expert_count, " experts");
  if (part.transposed) stacked = stacked.transpose(1, 2);
  const int64_t end = part.source_row_begin + (part.row_count - 1) * part.source_row_step + 1;
  TORCH_CHECK(end <= stacked.size(1), "the source tensor ", part.tensor, " has ", stacked.size(1), " rows, and row ", end - 1,
              " is needed");
  return stacked.select(0, expert - part.expert_begin).slice(0, part.source_row_begin, end, part.source_row_step);
}

at::Tensor Assemble(const ExpertTensor& tensor, int64_t expert) {
  const std::vector<int64_t> shape(tensor.shape.begin() + 1, tensor.shape.end());
  const bool matrix = shape.size() == 2;
  at::Tensor out;
  for (size_t i = 0; i < tensor.parts.size(); ++i) {
    const SourcePart& part = tensor.parts[i];
    if (!Covers(part, expert)) continue;
    const at::Tensor rows = SourceRows(part, tensor.sources[i], expert, matrix);
    TORCH_CHECK(rows.scalar_type() == tensor.dtype, "the source tensor ", part.tensor, " is not ", tensor.dtype);
    if (rows.sizes() == shape && rows.is_contiguous()) return rows;
    if (!out.defined()) out = at::empty(shape, at::TensorOptions().dtype(tensor.dtype));
    out.narrow(0, part.row_begin, part.row_count).copy_(rows);
  }
  TORCH_CHECK(out.defined(), "no source tensor holds expert ", expert);
  return out;
}

}  // namespace

Result<at::Tensor> CanonicalExpert(const ExpertTensor& tensor, int64_t expert) {
  try {
    return Assemble(tensor, expert);
  } catch (const c10::Error& error) {
    return Status(Code::kBug, fmt::format("{}, expert {}: {}", tensor.role, expert, error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return Status(Code::kBug, fmt::format("{}, expert {}: {}", tensor.role, expert, error.what()));
  }
}

}  // namespace autoep
