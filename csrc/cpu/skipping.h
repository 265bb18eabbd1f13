// Tiles of the vocabulary that a token leaves out of its gradients, because it has next to no
// probability there.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/token_panels.h"
#include "cpu/vocab_tiles.h"

namespace wavalign::cpu {

// uint8 [tiles, T]: 1 where the token in that lane of the forward pass leaves the tile out. An
// empty table leaves out nothing.
class SkipTable {
 public:
  explicit SkipTable(const at::Tensor& table)
      : data_(table.numel() == 0 ? nullptr : table.data_ptr<uint8_t>()),
        columns_(table.numel() == 0 ? 0 : table.size(1)) {}

  bool used() const { return data_ != nullptr; }
  bool skipped(int64_t tile, int64_t lane) const {
    return used() && data_[tile * columns_ + lane] != 0;
  }

  // Leaves out the tiles of least mass, as many as have at most `tolerance` together, but not the
  // target's. A token's choice depends on that token alone, so its gradient's bits do too.
  void choose(int64_t lane, const std::vector<double>& mass, int64_t target_tile,
              double tolerance) const;

 private:
  uint8_t* data_;
  int64_t columns_;
};

// Lanes [first, last) of a panel, whole groups of kLaneAlign.
struct LaneRange {
  int64_t first, last;

  int64_t size() const { return last - first; }
};

// The lanes of every tile and panel that take part in the gradients: the hull of the tokens which
// do not skip the tile. `source` is the forward pass's lane of each token of `panels`.
class ActiveLanes {
 public:
  ActiveLanes(const SkipTable& skip, const VocabTiles& tiles, const TokenPanels& panels,
              const std::vector<int64_t>& source);

  LaneRange at(int64_t tile, int64_t panel) const { return ranges_[tile * panels_ + panel]; }
  bool none(int64_t tile) const;

 private:
  int64_t panels_;
  std::vector<LaneRange> ranges_;
};

}  // namespace wavalign::cpu
