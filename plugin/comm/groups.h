// SPDX-License-Identifier: Apache-2.0
// In what order, and in how many groups, a rank works on what the others send it, so that rows travel meanwhile.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "plugin/comm/traffic.h"

namespace autoep::comm {

// A rank's own rows come first. At step i, 1 and above, rank r takes and answers those of rank r + i, so that no two ranks take
// from one at a time; rank r - i answers it then.
inline int64_t SourceAt(int64_t rank, int64_t step, int64_t ranks) { return (rank + step) % ranks; }
inline int64_t AnswererAt(int64_t rank, int64_t step, int64_t ranks) { return (rank + ranks - step) % ranks; }

// What a rank took and its answers lie in the order of its steps: the first row of a step; past the last, the number of all.
int64_t StepBegin(const Traffic& traffic, int64_t rank, int64_t step);

// Steps that are worked on together, from begin until before end.
struct Group {
  int64_t begin, end;
};

// All steps, in as many groups as asked for, 1 to ranks - 1. The last one is one step, for its answers travel beside nothing.
std::vector<Group> GroupSteps(int64_t ranks, int64_t groups);

// The rank that a group's rows come from, at each step.
std::vector<int64_t> SourcesOf(const Group& group, int64_t rank, int64_t ranks);

// How long so many rows take to be worked on in one go; nothing for none. The same on every rank.
using Seconds = std::function<double(int64_t rows)>;

// The groups by which rows of so many bytes are answered soonest, by a model of NVLink 4; none where it is sooner to work on all
// of them at once, after they came and before the answers travel. The same on every rank.
std::vector<Group> BestGroups(const Traffic& traffic, int64_t bytes_there, int64_t bytes_back, const Seconds& seconds);

}  // namespace autoep::comm
