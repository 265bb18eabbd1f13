// Which vocabulary tiles the gradient of a token skips, because their probability mass is below
// the tolerance.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/token_panels.h"
#include "cpu/vocab_tiles.h"

namespace wavalign::cpu {

// uint8 [tiles, T]: 1 if the token in that lane of the forward pass skips the tile. An empty or
// undefined table skips nothing.
class SkipTable {
 public:
  explicit SkipTable(const at::Tensor& table)
      : data_(table.numel() == 0 ? nullptr : table.data_ptr<uint8_t>()),
        columns_(table.numel() == 0 ? 0 : table.size(1)) {}

  bool used() const { return data_ != nullptr; }
  bool skipped(int64_t tile, int64_t lane) const {
    return used() && data_[tile * columns_ + lane] != 0;
  }

  // Skips the tiles with the least mass, as long as their total is at most `tolerance`, but never
  // the tile of the target. The choice depends on this token alone, and so do the bits of its
  // gradient.
  void choose(int64_t lane, const std::vector<double>& mass, int64_t target_tile,
              double tolerance) const;

 private:
  uint8_t* data_;
  int64_t columns_;
};

// Lanes [first, last) of a panel; both are multiples of kLaneAlign.
struct LaneRange {
  int64_t first, last;

  int64_t size() const { return last - first; }
};

// For each tile and panel, the smallest range of lanes with all tokens that do not skip the tile.
// `source` is the lane of each token in the forward pass.
class ActiveLanes {
 public:
  ActiveLanes(const SkipTable& skip, const VocabTiles& tiles, const TokenPanels& panels,
              const std::vector<int64_t>& source);

  LaneRange at(int64_t tile, int64_t panel) const { return ranges_[tile * panels_ + panel]; }
  // Whether all tokens skip the tile.
  bool none(int64_t tile) const;

 private:
  int64_t panels_;
  std::vector<LaneRange> ranges_;
};

}  // namespace wavalign::cpu
