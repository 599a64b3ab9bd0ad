// SPDX-License-Identifier: Apache-2.0
// The op all_to_all: the transport alone, for tests and measurements.
#include <torch/library.h>

#include <string>
#include <vector>

#include "plugin/ops/checks.h"
#include "plugin/ops/exchange.h"

namespace autoep::ops {
namespace {

at::Tensor AllToAll(const at::Tensor& rows, const at::Tensor& tokens, std::string group) {
  const std::string layer = "all_to_all";
  CheckInt64(tokens, 2, "tokens", layer);
  AUTOEP_CHECK(tokens.is_cpu() && tokens.size(0) == tokens.size(1), layer, "tokens must be [ranks, ranks] on the CPU");
  const comm::CommunicatorPtr communicator = Resolve(group, tokens.size(0), rows.device(), layer);
  const comm::Traffic traffic = TrafficOf(tokens);
  AUTOEP_CHECK(rows.dim() == 2 && rows.size(0) == traffic.Sent(communicator->rank()), layer, "rows is ", rows.sizes(), ", and ",
               traffic.Sent(communicator->rank()), " rows are to be sent");
  return communicator->AllToAllRows(rows, traffic);
}

}  // namespace

TORCH_LIBRARY_IMPL(autoep, CompositeExplicitAutograd, library) { library.impl("all_to_all", &AllToAll); }

}  // namespace autoep::ops
