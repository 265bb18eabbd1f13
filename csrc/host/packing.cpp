#include "host/packing.h"

#include <algorithm>
#include <utility>

namespace wavalign::host {

namespace {

struct Row {
  int64_t length;
  int64_t index;
};

std::vector<Row> longest_first(const std::vector<int64_t>& lengths) {
  std::vector<Row> rows;
  rows.reserve(lengths.size());
  for (const int64_t length : lengths) rows.push_back({length, static_cast<int64_t>(rows.size())});
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
    return a.length != b.length ? a.length > b.length : a.index < b.index;
  });
  return rows;
}

// The room of every group, in a tree whose inner nodes hold the most room of any group below them.
// So the first group with room for a row is found in log2(groups) steps.
class Rooms {
 public:
  Rooms(size_t groups, int64_t budget) {
    while (leaves_ < groups) leaves_ *= 2;
    room_.assign(2 * leaves_, budget);
  }

  // Takes `length` of the first group with that much room, and returns the group.
  size_t take(int64_t length) {
    size_t node = 1;
    while (node < leaves_) {
      node *= 2;
      node += room_[node] < length;
    }
    const size_t group = node - leaves_;
    room_[node] -= length;
    while (node > 1) {
      node /= 2;
      const int64_t most = std::max(room_[2 * node], room_[2 * node + 1]);
      if (room_[node] == most) break;
      room_[node] = most;
    }
    return group;
  }

 private:
  size_t leaves_ = 1;
  std::vector<int64_t> room_;
};

}  // namespace

Groups first_fit_decreasing(const std::vector<int64_t>& lengths, int64_t budget) {
  const std::vector<Row> rows = longest_first(lengths);
  Rooms rooms(rows.size(), budget);
  std::vector<size_t> group_of;
  group_of.reserve(rows.size());
  Groups groups{std::vector<int64_t>(rows.size()), {}};
  for (const Row& row : rows) {
    group_of.push_back(rooms.take(row.length));
    if (group_of.back() == groups.ends.size()) groups.ends.push_back(0);
    ++groups.ends[group_of.back()];
  }
  // Counts become the starts of the groups, and these their ends while the groups are filled.
  int64_t start = 0;
  for (int64_t& count : groups.ends) start += std::exchange(count, start);
  for (size_t n = 0; n < rows.size(); ++n) {
    groups.rows[groups.ends[group_of[n]]++] = rows[n].index;
  }
  return groups;
}

}  // namespace wavalign::host
