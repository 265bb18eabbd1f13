// The probabilities that the forward pass keeps for the backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "cpu/buffers.h"
#include "cpu/token_panels.h"
#include "cpu/vocab_tiles.h"

namespace wavalign::cpu {

// The first bytes of a store, written by the forward pass.
struct StoreHeader {
  int64_t operand_size;    // bytes of one probability
  int64_t prob_buffer_id;  // of the probability buffer that holds a part of them; 0: none does

  static StoreHeader of(const at::Tensor& store) {
    return *reinterpret_cast<const StoreHeader*>(store.const_data_ptr<uint8_t>());
  }
};

// For each of the first `kept` tiles: the largest logit of each token, and exp(z - max) in the
// operand type. The backward pass recomputes the other tiles bit for bit, so the size of the store
// changes the time of a step and never its result.
//
// The probabilities of a tile lie in the tile's own rows of the probability buffer, because the
// backward pass reads a tile's probabilities before it overwrites those rows with the gradient. The
// store, a byte tensor, holds the header, the maxima, and the lanes that do not fit there.
template <typename Operand>
class ProbStore {
 public:
  static constexpr int64_t kHeaderBytes = 64;
  static_assert(sizeof(StoreHeader) <= kHeaderBytes);

  // `store` and `prob_buffer` may be empty or undefined. A store too small for the header counts as
  // empty.
  ProbStore(const at::Tensor& store, const at::Tensor& prob_buffer, const TokenPanels& panels,
            const VocabTiles& tiles)
      : base_(store.numel() < kHeaderBytes ? nullptr : store.data_ptr<uint8_t>()),
        lanes_(panels.lanes()),
        tiles_(tiles) {
    if (prob_buffer.numel() > 0) {
      rows_ = static_cast<uint8_t*>(prob_buffer.data_ptr());
      row_bytes_ = prob_buffer.size(1) * prob_buffer.element_size();
    }
    const int64_t fitting = row_bytes_ / static_cast<int64_t>(sizeof(Operand));
    row_lanes_ = lanes_ <= fitting ? lanes_ : fitting / kPanelLanes * kPanelLanes;
    if (base_ != nullptr && lanes_ > 0) {
      kept_ = std::min(tiles.count(), (store.numel() - kHeaderBytes) / record_bytes());
    }
  }

  int64_t kept() const { return kept_; }
  // [lanes]
  float* max(int64_t tile) const { return reinterpret_cast<float*>(record(tile)); }
  // [rows(tile)][width] of the panel that starts at `lane`
  Operand* probs(int64_t tile, int64_t lane) const {
    if (lane < row_lanes_) {
      return reinterpret_cast<Operand*>(rows_ + tiles_.begin(tile) * row_bytes_) +
             lane * tiles_.rows(tile);
    }
    return reinterpret_cast<Operand*>(max(tile) + lanes_) + (lane - row_lanes_) * kTileRows;
  }

  void write_header(int64_t prob_buffer_id) const {
    if (base_ != nullptr) {
      *reinterpret_cast<StoreHeader*>(base_) = {sizeof(Operand), prob_buffer_id};
    }
  }

 private:
  int64_t record_bytes() const {
    return lanes_ * static_cast<int64_t>(sizeof(float)) +
           (lanes_ - row_lanes_) * static_cast<int64_t>(kTileRows * sizeof(Operand));
  }
  uint8_t* record(int64_t tile) const { return base_ + kHeaderBytes + tile * record_bytes(); }

  uint8_t* base_;
  uint8_t* rows_ = nullptr;  // of the probability buffer
  int64_t row_bytes_ = 0;
  int64_t lanes_;
  int64_t row_lanes_;  // lanes of every tile that are in the probability buffer
  int64_t kept_ = 0;
  VocabTiles tiles_;
};

// The store as the backward pass may read it. It is empty if its probabilities have another type,
// because the operand type is chosen anew in each call, or if the part in the probability buffer is
// gone: the buffer belongs to another forward pass or has become a gradient.
template <typename Operand>
ProbStore<Operand> readable_store(const at::Tensor& store, const at::Tensor& prob_buffer,
                                  const TokenPanels& live, const VocabTiles& tiles) {
  const at::Tensor none;
  if (store.numel() < ProbStore<Operand>::kHeaderBytes) return {none, none, live, tiles};
  const StoreHeader header = StoreHeader::of(store);
  const bool split = header.prob_buffer_id != 0;
  if (header.operand_size != sizeof(Operand) ||
      (split && header.prob_buffer_id != prob_buffer_id(prob_buffer))) {
    return {none, none, live, tiles};
  }
  return {store, split ? prob_buffer : none, live, tiles};
}

}  // namespace wavalign::cpu
