// SPDX-License-Identifier: Apache-2.0
// The recorder of each thread.
#include "plugin/ops/recorder.h"

#include <utility>

namespace autoep::ops {
namespace {

thread_local Recorder* current = nullptr;

}  // namespace

Recorder::Recorder() : outer_(current) { current = this; }

Recorder::~Recorder() { current = outer_; }

bool Recorder::Active() { return current != nullptr; }

void Recorder::Add(RecordedCall call) {
  if (current != nullptr) current->calls_.push_back(std::move(call));
}

}  // namespace autoep::ops
