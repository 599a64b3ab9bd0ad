// SPDX-License-Identifier: Apache-2.0
// The groups, and a model of the time that they take.
#include "plugin/comm/groups.h"

#include <algorithm>

namespace autoep::comm {
namespace {

constexpr double kLink = 300e9;      // bytes a second in one direction
constexpr double kLaunches = 40e-6;  // more of them in groups, and as many of the own rows' work before any rows travel
constexpr int64_t kMostGroups = 8;   // each one reads the weights again
constexpr double kSure = 0.97;       // what groups must take of the time of all at once: the model errs by as much

struct Trip {
  const Traffic& traffic;
  const double there, back;  // seconds of a row on the link
  const Seconds& work;
  std::vector<std::vector<int64_t>> begins;  // of each rank's steps

  Trip(const Traffic& rows, int64_t bytes_there, int64_t bytes_back, const Seconds& seconds)
      : traffic(rows), there(bytes_there / kLink), back(bytes_back / kLink), work(seconds) {
    for (int64_t rank = 0; rank < traffic.ranks(); ++rank) {
      begins.emplace_back(2, 0);  // from step 1 on
      for (int64_t step = 1; step < traffic.ranks(); ++step) {
        begins[rank].push_back(begins[rank].back() + traffic.Rows(SourceAt(rank, step, traffic.ranks()), rank));
      }
    }
  }
  // The least that is gained where all is hidden.
  double OnTheLink() const {
    int64_t most = 0;
    for (const std::vector<int64_t>& of : begins) most = std::max(most, of.back());
    return most * (there + back);
  }
};

// Rows there, the work, and the answers back, one after the other.
double AtOnce(const Trip& trip) {
  double made = 0, home = 0;
  for (int64_t rank = 0; rank < trip.traffic.ranks(); ++rank) {
    const int64_t coming = trip.begins[rank].back();
    made = std::max(made, coming * trip.there + trip.work(coming + trip.traffic.Rows(rank, rank)));
    home = std::max(home, trip.traffic.Away(rank) * trip.back);
  }
  return made + home;
}

double InGroups(const Trip& trip, const std::vector<Group>& groups) {
  const int64_t ranks = trip.traffic.ranks();
  std::vector<double> made(ranks), home(ranks);  // until when the device works, and the link is in use
  for (int64_t rank = 0; rank < ranks; ++rank) {
    made[rank] = trip.work(trip.traffic.Rows(rank, rank));
    home[rank] = kLaunches + trip.begins[rank].back() * trip.there;
  }
  for (const Group& group : groups) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const int64_t begin = trip.begins[rank][group.begin], end = trip.begins[rank][group.end];
      made[rank] = std::max(made[rank], kLaunches + end * trip.there) + trip.work(end - begin);
    }
    for (int64_t rank = 0; rank < ranks; ++rank) {
      double there = std::max(home[rank], made[rank]);
      int64_t answers = 0;
      for (int64_t step = group.begin; step < group.end; ++step) {
        const int64_t answerer = AnswererAt(rank, step, ranks);
        there = std::max(there, made[answerer]);
        answers += trip.traffic.Rows(rank, answerer);
      }
      home[rank] = there + answers * trip.back;
    }
  }
  return kLaunches + std::max(*std::max_element(made.begin(), made.end()), *std::max_element(home.begin(), home.end()));
}

}  // namespace

int64_t StepBegin(const Traffic& traffic, int64_t rank, int64_t step) {
  int64_t begin = 0;
  for (int64_t before = 1; before < step; ++before) begin += traffic.Rows(SourceAt(rank, before, traffic.ranks()), rank);
  return begin;
}

std::vector<Group> GroupSteps(int64_t ranks, int64_t groups) {
  std::vector<Group> found;
  int64_t begin = 1;
  for (int64_t group = 1; group < groups; ++group) {
    const int64_t end = 1 + (ranks - 2) * group / (groups - 1);
    found.push_back({begin, end});
    begin = end;
  }
  found.push_back({begin, ranks});
  return found;
}

std::vector<int64_t> SourcesOf(const Group& group, int64_t rank, int64_t ranks) {
  std::vector<int64_t> sources;
  for (int64_t step = group.begin; step < group.end; ++step) sources.push_back(SourceAt(rank, step, ranks));
  return sources;
}

std::vector<Group> BestGroups(const Traffic& traffic, int64_t bytes_there, int64_t bytes_back, const Seconds& seconds) {
  const Trip trip(traffic, bytes_there, bytes_back, seconds);
  if (trip.OnTheLink() < kLaunches) return {};
  std::vector<Group> best;
  double least = kSure * AtOnce(trip);
  for (int64_t count = 1; count <= std::min(traffic.ranks() - 1, kMostGroups); ++count) {
    std::vector<Group> groups = GroupSteps(traffic.ranks(), count);
    const double time = InGroups(trip, groups);
    if (time >= least) continue;
    best = std::move(groups);
    least = time;
  }
  return best;
}

}  // namespace autoep::comm
