// Packs rows under a token budget, as wavalign_fast/data/packing_plan.py defines it.
#pragma once

#include <cstdint>
#include <vector>

namespace wavalign::host {

// The rows of all groups, group after group; group g ends before rows[ends[g]].
struct Groups {
  std::vector<int64_t> rows;
  std::vector<int64_t> ends;
};

// Packs by first-fit decreasing: the longest row comes first, equal lengths by index, each into the
// first group with room, which holds its rows in that order. Lengths are at most `budget`.
Groups first_fit_decreasing(const std::vector<int64_t>& lengths, int64_t budget);

}  // namespace wavalign::host
