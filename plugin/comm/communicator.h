// SPDX-License-Identifier: Apache-2.0
// The one interface through which ops talk to the other ranks of an EP group. Transports: c10d (c10d_transport.h), between GPUs
// that reach each other's memory (peers.h), and local (local.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "plugin/comm/groups.h"
#include "plugin/comm/traffic.h"

namespace autoep::comm {

// Memory from which rows travel soonest.
struct Outbox {
  std::vector<at::Tensor> parts;  // [rows, C] each
  // Rows of each part; negative: they lie in memory of no transport, and so many would have been wanted.
  int64_t room = 0;
};

// Rows to be sent that lie in outboxes already.
struct Boxed {
  std::vector<int64_t> rooms;  // of each rank's outbox; empty: no rows are in one
  bool met = false;            // the ranks exchanged counts since the rows were put there, and their rooms with them
};

// Every rank's, where none was told.
Boxed BoxedAll(const Traffic& traffic);

// Rows that are on their way.
class Arriving {
 public:
  virtual ~Arriving() = default;
  // Called once. What the current stream does next has the rows.
  virtual std::vector<at::Tensor> Wait() = 0;
};

// What answers rows.
struct Worker {
  int64_t columns;  // of the answers
  at::ScalarType type;
  Seconds seconds;
  // Makes answers [n, columns], of the rows that came from these ranks, in their order: [n, ..] of each part.
  std::function<void(const std::vector<int64_t>& sources, const std::vector<at::Tensor>& came, const at::Tensor& answers)> answer;
};

// What a rank tells the others, int64: each its own row, and all of them the rest.
struct Message {
  at::Tensor each;                    // [ranks, m]
  at::Tensor all = {};                // [n], or undefined
  std::vector<int64_t> numbers = {};  // known to the host

  // [ranks, m + n + numbers].
  at::Tensor Whole() const;
};

inline constexpr int64_t kAbsent = -2;

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  // How long an exchange of tensors on such a device may take.
  virtual std::chrono::milliseconds timeout(c10::DeviceType device) const = 0;

  // Returns what was told, row i by rank i. What this rank put into an outbox before it is there for the others after it.
  // Collective: every rank calls it, with as many numbers.
  // A peer that is gone, failed, or took longer than the transport's timeout is a c10::Error, or a row of kAbsent.
  virtual at::Tensor AllToAllCounts(const Message& message) = 0;

  // Parts of (columns, dtype) on `like`'s device, with room for `room` rows each.
  using Columns = std::vector<std::pair<int64_t, at::ScalarType>>;
  virtual Outbox MakeOutbox(const Columns& parts, int64_t room, const at::Tensor& like);
  // With room for traffic.Sent(rank()) rows, on every rank: the exchange is then given BoxedAll(traffic). Collective.
  virtual Outbox MakeOutbox(const Columns& parts, const Traffic& traffic, const at::Tensor& like);

  // rows: matrices of one device and any dtypes, each with traffic.Sent(rank()) rows; all from an outbox, or none. Returns those
  // that came, traffic.Received(rank()) rows each. Collective, with equal traffic.
  virtual std::vector<at::Tensor> AllToAllEach(const std::vector<at::Tensor>& rows, const Traffic& traffic,
                                               const Boxed& boxed = {}) = 0;

  // The same beside what the device does next, where the transport can.
  virtual std::unique_ptr<Arriving> StartEach(const std::vector<at::Tensor>& rows, const Traffic& traffic);

  // rows to their destinations and answers to them back home, so that they travel while others are worked on: the own first, then
  // those of the others in groups. Returns the answers to this rank's rows, [traffic.Sent(rank()), columns]; or nothing, on every
  // rank, where the transport gains nothing by it: AllToAllEach then has the rows as they were.
  virtual std::optional<at::Tensor> RoundTrip(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Boxed& boxed,
                                              const Worker& worker);

  at::Tensor AllToAllRows(const at::Tensor& rows, const Traffic& traffic) { return AllToAllEach({rows}, traffic).front(); }
};

using CommunicatorPtr = std::shared_ptr<Communicator>;

}  // namespace autoep::comm
