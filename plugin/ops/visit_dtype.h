// SPDX-License-Identifier: Apache-2.0
// From run-time dtypes to template arguments.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

namespace autoep::ops {

// Calls visit.operator()<T>() with the type of `type`, one of fp64, fp32, fp16, bf16.
template <typename Visit>
auto VisitFloat(c10::ScalarType type, Visit visit) {
  switch (type) {
    case c10::kDouble:
      return visit.template operator()<double>();
    case c10::kFloat:
      return visit.template operator()<float>();
    case c10::kHalf:
      return visit.template operator()<c10::Half>();
    case c10::kBFloat16:
      return visit.template operator()<c10::BFloat16>();
    default:
      TORCH_CHECK(false, "autoep: no kernel for dtype ", type);
  }
}

// Calls visit.operator()<Row, Other>() for rows and what is promoted from them: Other is Row, float or double.
template <typename Visit>
void VisitRowPair(c10::ScalarType row, c10::ScalarType other, Visit visit) {
  VisitFloat(row, [&]<typename Row>() {
    if (other == row) return visit.template operator()<Row, Row>();
    if (other == c10::kFloat) return visit.template operator()<Row, float>();
    TORCH_CHECK(other == c10::kDouble, "autoep: no kernel for rows of ", row, " with ", other);
    return visit.template operator()<Row, double>();
  });
}

}  // namespace autoep::ops
