// SPDX-License-Identifier: Apache-2.0
// A Gloo process group from C++, without Python: what torch.distributed.init_process_group("gloo") is for Python.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "plugin/contract/export.h"
#include "plugin/io/status.h"

namespace autoep::comm {

struct GlooOptions {
  // Where the ranks meet: "host:port", where rank 0 listens, or the path of a file that does not exist yet, for ranks of one
  // machine, which then talk over the loopback interface.
  std::string store;
  int64_t rank = 0;
  int64_t size = 1;
  std::string name = "ep";                    // registered with c10d under this name: the `group` of a model
  std::chrono::milliseconds timeout{60'000};  // for meeting, and for every exchange
};

// Registered while it lives. Not copied, not moved.
class AUTOEP_API GlooGroup {
 public:
  GlooGroup(const GlooGroup&) = delete;
  GlooGroup& operator=(const GlooGroup&) = delete;
  ~GlooGroup();

  const std::string& name() const;
  // Returns when every rank has called it. kPlugin: a rank is gone or late.
  Status Barrier();

 private:
  struct State;
  explicit GlooGroup(std::unique_ptr<State> state);
  friend AUTOEP_API Result<std::unique_ptr<GlooGroup>> CreateGlooGroup(const GlooOptions& options);

  std::unique_ptr<State> state_;
};

// Blocks until all ranks are there. Where SIGPIPE has its default action, it is ignored from then on, as Python does: Gloo
// would let a peer that dies end this process. kPlugin: bad options, a name already registered, or ranks that did not come in time.
AUTOEP_API Result<std::unique_ptr<GlooGroup>> CreateGlooGroup(const GlooOptions& options);

}  // namespace autoep::comm
