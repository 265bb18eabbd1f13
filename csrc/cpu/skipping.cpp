#include "cpu/skipping.h"

#include <algorithm>
#include <numeric>

namespace wavalign::cpu {

void SkipTable::choose(int64_t lane, const std::vector<double>& mass, int64_t target_tile,
                       double tolerance) const {
  std::vector<int64_t> tiles(mass.size());
  std::iota(tiles.begin(), tiles.end(), 0);
  std::erase(tiles, target_tile);
  std::stable_sort(tiles.begin(), tiles.end(),
                   [&](int64_t a, int64_t b) { return mass[a] < mass[b]; });
  double skipped = 0;
  for (const int64_t tile : tiles) {
    skipped += mass[tile];
    if (!(skipped <= tolerance)) break;  // a row with a NaN skips nothing
    data_[tile * columns_ + lane] = 1;
  }
}

ActiveLanes::ActiveLanes(const SkipTable& skip, const VocabTiles& tiles, const TokenPanels& panels,
                         const std::vector<int64_t>& source)
    : panels_(panels.count()) {
  ranges_.reserve(tiles.count() * panels_);
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t lane = panels.begin(panel), width = panels.width(panel);
      LaneRange range{0, width};
      if (skip.used()) {
        int64_t first = 0, last = std::min(width, panels.tokens() - lane);
        while (first < last && skip.skipped(tile, source[lane + first])) ++first;
        while (first < last && skip.skipped(tile, source[lane + last - 1])) --last;
        range = {first / kLaneAlign * kLaneAlign,
                 (last + kLaneAlign - 1) / kLaneAlign * kLaneAlign};
        if (first == last) range = {0, 0};
      }
      ranges_.push_back(range);
    }
  }
}

bool ActiveLanes::none(int64_t tile) const {
  const auto row = ranges_.begin() + tile * panels_;
  return std::all_of(row, row + panels_, [](const LaneRange& r) { return r.size() == 0; });
}

}  // namespace wavalign::cpu
