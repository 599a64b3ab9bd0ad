// SPDX-License-Identifier: Apache-2.0
#include "plugin/io/checked.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace autoep {
namespace {

__extension__ using Wide = __int128;

// The exact result where it fits, else nullopt.
std::optional<int64_t> Exact(Wide value) {
  if (value < std::numeric_limits<int64_t>::min() || value > std::numeric_limits<int64_t>::max()) return std::nullopt;
  return static_cast<int64_t>(value);
}

// Numbers around every power of two, where overflow lives.
std::vector<int64_t> Edges() {
  std::vector<int64_t> edges = {0};
  for (int bit = 0; bit < 63; ++bit) {
    for (int64_t near = -2; near <= 2; ++near) {
      edges.push_back((int64_t{1} << bit) + near);
      edges.push_back(-(int64_t{1} << bit) + near);
    }
  }
  edges.push_back(std::numeric_limits<int64_t>::max());
  edges.push_back(std::numeric_limits<int64_t>::min());
  return edges;
}

TEST(Checked, AddAndMulEqualExactArithmeticOrFail) {
  for (const int64_t a : Edges()) {
    for (const int64_t b : Edges()) {
      ASSERT_EQ(CheckedAdd(a, b), Exact(Wide{a} + b)) << a << " + " << b;
      ASSERT_EQ(CheckedMul(a, b), Exact(Wide{a} * b)) << a << " * " << b;
    }
  }
}

TEST(Checked, UnsignedOverflows) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(CheckedAdd(kMax, 0), kMax);
  EXPECT_EQ(CheckedAdd(kMax, 1), std::nullopt);
  EXPECT_EQ(CheckedMul(kMax / 2, 2), kMax - 1);
  EXPECT_EQ(CheckedMul(kMax / 2 + 1, 2), std::nullopt);
}

TEST(Checked, AlignUp) {
  EXPECT_EQ(CheckedAlignUp<int64_t>(0, 64), 0);
  EXPECT_EQ(CheckedAlignUp<int64_t>(1, 64), 64);
  EXPECT_EQ(CheckedAlignUp<int64_t>(64, 64), 64);
  EXPECT_EQ(CheckedAlignUp<int64_t>(65, 48), 96);
  EXPECT_EQ(CheckedAlignUp<int64_t>(-1, 64), std::nullopt);
  EXPECT_EQ(CheckedAlignUp<int64_t>(1, 0), std::nullopt);
  EXPECT_EQ(CheckedAlignUp<int64_t>(std::numeric_limits<int64_t>::max(), 64), std::nullopt);
  EXPECT_EQ(CheckedAlignUp<uint64_t>(std::numeric_limits<uint64_t>::max(), 2), std::nullopt);
}

TEST(Checked, Product) {
  const auto product = [](std::vector<int64_t> shape) { return CheckedProduct(std::span<const int64_t>(shape)); };
  EXPECT_EQ(product({}), 1);
  EXPECT_EQ(product({3, 5, 7}), 105);
  EXPECT_EQ(product({3, 0, 7}), 0);
  EXPECT_EQ(product({3, -1}), std::nullopt);
  EXPECT_EQ(product({int64_t{1} << 32, int64_t{1} << 31}), std::nullopt);
  // Zero comes last: the reference implementation overflows before it sees it, and so does this.
  EXPECT_EQ(product({int64_t{1} << 32, int64_t{1} << 32, 0}), std::nullopt);
}

}  // namespace
}  // namespace autoep
