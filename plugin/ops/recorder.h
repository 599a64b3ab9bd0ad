// SPDX-License-Identifier: Apache-2.0
// Watching the ops run: which routes they were given and how many rows each rank's experts processed. For verify and tests.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "plugin/contract/export.h"

namespace autoep::ops {

struct RecordedCall {
  enum class Op { kRecordRoutes, kDispatch, kExperts, kCombine };
  Op op;
  std::string layer;   // the op's `layer` argument, whole
  at::Tensor ids;      // [T, k], a copy; record_routes and dispatch
  at::Tensor weights;  // [T, k], a copy; record_routes, and combine where it has weights
  int64_t rows = 0;    // experts: rows processed on this rank; else the number of (token, choice) pairs
};

// While it lives, collects the calls that its own thread makes, in order. One recorder may live inside another's life; the
// inner one collects. Calls made on other threads (a backward pass on a GPU, a fork) are not seen.
class AUTOEP_API Recorder {
 public:
  Recorder();
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  const std::vector<RecordedCall>& calls() const { return calls_; }

  // For the ops. No recorder on this thread: nothing happens.
  static bool Active();
  static void Add(RecordedCall call);

 private:
  Recorder* outer_;
  std::vector<RecordedCall> calls_;
};

}  // namespace autoep::ops
