// SPDX-License-Identifier: Apache-2.0
// Who sends whom how much, and where it lies in the buffers.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace autoep::comm {

// Rows that the ranks of a group send one another. A rank's send buffer holds the rows for each other rank, in the order of ranks,
// then those for itself, which do not travel; what it receives is laid out likewise by source.
class Traffic {
 public:
  // rows[s][d]: from rank s to rank d; as many lists as each has entries.
  explicit Traffic(std::vector<std::vector<int64_t>> rows = {}) : rows_(std::move(rows)) {}

  int64_t ranks() const { return static_cast<int64_t>(rows_.size()); }
  int64_t Rows(int64_t source, int64_t destination) const { return rows_[source][destination]; }
  // The first row in its source's send buffer, and in its destination's receive buffer.
  int64_t SendBegin(int64_t source, int64_t destination) const;
  int64_t ReceiveBegin(int64_t source, int64_t destination) const;
  // What goes to other ranks, and what comes from them.
  int64_t Away(int64_t source) const { return SendBegin(source, source); }
  int64_t Coming(int64_t destination) const { return ReceiveBegin(destination, destination); }
  int64_t Sent(int64_t source) const { return Away(source) + Rows(source, source); }
  int64_t Received(int64_t destination) const { return Coming(destination) + Rows(destination, destination); }
  bool Travels() const;  // anything at all
  // For each other rank what it sends or is sent; 0 for this one.
  std::vector<int64_t> SendSizes(int64_t source) const;
  std::vector<int64_t> ReceiveSizes(int64_t destination) const;

  // The same rows on their way back.
  Traffic Back() const;

 private:
  std::vector<std::vector<int64_t>> rows_;
};

}  // namespace autoep::comm
