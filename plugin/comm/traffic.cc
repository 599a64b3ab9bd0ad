// SPDX-License-Identifier: Apache-2.0
#include "plugin/comm/traffic.h"

namespace autoep::comm {

int64_t Traffic::SendBegin(int64_t source, int64_t destination) const {
  int64_t begin = 0;
  for (int64_t other = 0; other < ranks(); ++other) {
    if (other != source && (other < destination || destination == source)) begin += Rows(source, other);
  }
  return begin;
}

int64_t Traffic::ReceiveBegin(int64_t source, int64_t destination) const {
  int64_t begin = 0;
  for (int64_t other = 0; other < ranks(); ++other) {
    if (other != destination && (other < source || source == destination)) begin += Rows(other, destination);
  }
  return begin;
}

bool Traffic::Travels() const {
  for (int64_t source = 0; source < ranks(); ++source) {
    if (Away(source) > 0) return true;
  }
  return false;
}

std::vector<int64_t> Traffic::SendSizes(int64_t source) const {
  std::vector<int64_t> sizes = rows_[source];
  sizes[source] = 0;
  return sizes;
}

std::vector<int64_t> Traffic::ReceiveSizes(int64_t destination) const { return Back().SendSizes(destination); }

Traffic Traffic::Back() const {
  std::vector<std::vector<int64_t>> back(rows_.size(), std::vector<int64_t>(rows_.size()));
  for (int64_t source = 0; source < ranks(); ++source) {
    for (int64_t destination = 0; destination < ranks(); ++destination) back[destination][source] = Rows(source, destination);
  }
  return Traffic(std::move(back));
}

}  // namespace autoep::comm
