// SPDX-License-Identifier: Apache-2.0
// CanonicalExpert on the layouts that sources have: stacked, transposed, interleaved, Linear by Linear, biases.
#include "passes/repack/canonical.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/stack.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace autoep {
namespace {

using contract::SourcePart;

at::Tensor Numbers(std::vector<int64_t> shape) { return at::arange(c10::multiply_integers(shape), at::kFloat).view(shape); }

// 3 experts, gate and up of 2 rows, 5 columns.
ExpertTensor GateUp(std::vector<SourcePart> parts, std::vector<at::Tensor> sources) {
  return {"gate_up", {3, 4, 5}, at::kFloat, false, std::move(parts), std::move(sources)};
}

void ExpectExperts(const ExpertTensor& tensor, const at::Tensor& expected) {
  for (int64_t e = 0; e < 3; ++e) {
    const auto found = CanonicalExpert(tensor, e);
    ASSERT_TRUE(found.ok()) << found.status().message();
    EXPECT_TRUE(found->is_contiguous());
    EXPECT_TRUE(at::equal(*found, expected[e])) << "expert " << e;
  }
}

TEST(CanonicalExpertTest, IsAViewOfAStackedTensor) {
  const at::Tensor stacked = Numbers({3, 4, 5});
  const ExpertTensor tensor = GateUp({{.tensor = "w", .expert_count = 3, .row_count = 4}}, {stacked});
  ExpectExperts(tensor, stacked);
  EXPECT_EQ(CanonicalExpert(tensor, 2)->const_data_ptr(), stacked[2].const_data_ptr());
}

TEST(CanonicalExpertTest, TurnsATransposedTensor) {
  const at::Tensor stored = Numbers({3, 5, 4});
  ExpectExperts(GateUp({{.tensor = "w", .expert_count = 3, .row_count = 4, .transposed = true}}, {stored}), stored.transpose(1, 2));
}

TEST(CanonicalExpertTest, SortsInterleavedRows) {
  const at::Tensor stored = Numbers({3, 4, 5});
  const SourcePart gate{
      .tensor = "w", .expert_count = 3, .row_begin = 0, .row_count = 2, .source_row_begin = 0, .source_row_step = 2};
  const SourcePart up{
      .tensor = "w", .expert_count = 3, .row_begin = 2, .row_count = 2, .source_row_begin = 1, .source_row_step = 2};
  ExpectExperts(GateUp({gate, up}, {stored, stored}), at::cat({stored.slice(1, 0, 4, 2), stored.slice(1, 1, 4, 2)}, 1));
}

TEST(CanonicalExpertTest, StacksLinears) {
  const at::Tensor gate = Numbers({3, 2, 5}), up = at::arange(100, 130, at::kFloat).view({3, 2, 5});
  std::vector<SourcePart> parts;
  std::vector<at::Tensor> sources;
  for (int64_t e = 0; e < 3; ++e) {
    parts.push_back({.tensor = "g", .expert_begin = e, .row_begin = 0, .row_count = 2});
    parts.push_back({.tensor = "u", .expert_begin = e, .row_begin = 2, .row_count = 2});
    sources.push_back(gate[e]);
    sources.push_back(up[e]);
  }
  ExpectExperts(GateUp(parts, sources), at::cat({gate, up}, 1));
}

TEST(CanonicalExpertTest, TakesBiases) {
  const at::Tensor bias = Numbers({3, 4});
  ExpectExperts({"gate_up_bias", {3, 4}, at::kFloat, false, {{.tensor = "b", .expert_count = 3, .row_count = 4}}, {bias}}, bias);
}

TEST(CanonicalExpertTest, RefusesPartsThatDoNotFit) {
  const at::Tensor stacked = Numbers({3, 4, 5});
  EXPECT_EQ(CanonicalExpert(GateUp({{.tensor = "w", .expert_count = 2, .row_count = 4}}, {stacked}), 0).status().code(),
            Code::kBug);
  EXPECT_EQ(CanonicalExpert(GateUp({{.tensor = "w", .expert_count = 3, .row_count = 5}}, {stacked}), 0).status().code(),
            Code::kBug);
  EXPECT_EQ(CanonicalExpert(GateUp({{.tensor = "w", .expert_begin = 1, .expert_count = 1, .row_count = 4}}, {stacked[0]}), 0)
                .status()
                .code(),
            Code::kBug);
}

}  // namespace
}  // namespace autoep
