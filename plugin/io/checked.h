// SPDX-License-Identifier: Apache-2.0
// Checked integer arithmetic. Every size and offset that comes from a file goes through it: nullopt means overflow.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

namespace autoep {

template <std::integral T>
constexpr std::optional<T> CheckedAdd(T a, std::type_identity_t<T> b) {
  T out;
  if (__builtin_add_overflow(a, b, &out)) return std::nullopt;
  return out;
}

template <std::integral T>
constexpr std::optional<T> CheckedMul(T a, std::type_identity_t<T> b) {
  T out;
  if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
  return out;
}

// The smallest multiple of `alignment` >= value; value >= 0 and alignment > 0, else nullopt.
template <std::integral T>
constexpr std::optional<T> CheckedAlignUp(T value, std::type_identity_t<T> alignment) {
  if (std::cmp_less(value, 0) || std::cmp_less_equal(alignment, 0)) return std::nullopt;
  const T rest = value % alignment;
  return rest == 0 ? std::optional<T>(value) : CheckedAdd<T>(value, alignment - rest);
}

// The product of a shape; nullopt for a negative size too. The empty shape is a scalar: 1.
template <std::integral T>
constexpr std::optional<T> CheckedProduct(std::span<const T> shape) {
  T out = 1;
  for (T size : shape) {
    if (std::cmp_less(size, 0)) return std::nullopt;
    const auto next = CheckedMul<T>(out, size);
    if (!next) return std::nullopt;
    out = *next;
  }
  return out;
}

}  // namespace autoep
