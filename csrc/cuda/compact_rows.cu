// Stable compaction of the indices of live rows, in one pass over the flags.
//
// Each block takes the next tile. It learns how many rows are live before the tile from the words
// that earlier blocks published (decoupled look-back, Merrill and Garland 2016). A word holds a
// count and the kind of the count, so no other memory access needs to be ordered with it. Running
// blocks take tiles in order, so the word that a block waits for is always published.
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/vector_access.cuh"
#include "cuda/warps.cuh"

namespace wavalign::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kFlags = kVectorBytes;  // for each thread
constexpr int kTile = kThreads * kFlags;

// A published word is a count of live rows in the low bits, and its kind in the top two: the rows
// of this tile, or those of all tiles up to and including it. 0 is a word that is not published
// yet.
constexpr uint64_t kOfTile = uint64_t{1} << 62;
constexpr uint64_t kUpToHere = uint64_t{2} << 62;
constexpr uint64_t kCount = kOfTile - 1;

struct TileScratch {
  int64_t tile;
  int64_t live_before;
  int of_warps[kWarps];
  uint16_t kept[kTile];  // positions of the live rows in the tile
};

// The flags of a thread as bits, 1 for a live row.
__device__ unsigned flags_of(const CompactRows& params, int64_t first) {
  const uint8_t* live = params.live + first;
  const int64_t n = params.size - first;
  unsigned bits = 0;
  if (n >= kFlags && reinterpret_cast<uintptr_t>(live) % kVectorBytes == 0) {
    const Vector<uint8_t> flags = load_vector(live);
#pragma unroll
    for (int j = 0; j < kFlags; ++j) bits |= static_cast<unsigned>(flags.items[j] != 0) << j;
    return bits;
  }
  for (int j = 0; j < kFlags && j < n; ++j) bits |= static_cast<unsigned>(live[j] != 0) << j;
  return bits;
}

// Returns the number of live rows of the tile before this thread's; sets `of_tile` to their number
// in the whole tile.
__device__ int live_before_thread(int count, TileScratch& scratch, int& of_tile) {
  int upto = count;
#pragma unroll
  for (int offset = 1; offset < kWarpLanes; offset *= 2) {
    const int lower = __shfl_up_sync(kAllLanes, upto, offset);
    if (lane_of_warp() >= offset) upto += lower;
  }
  if (lane_of_warp() == kWarpLanes - 1) scratch.of_warps[warp_of_block()] = upto;
  __syncthreads();
  int before = upto - count;
  of_tile = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < warp_of_block()) before += scratch.of_warps[warp];
    of_tile += scratch.of_warps[warp];
  }
  return before;
}

// The number of live rows in all earlier tiles, from their words. A whole warp calls this.
__device__ int64_t live_before_tile(const uint64_t* words, int64_t tile) {
  uint64_t before = 0;
  for (int64_t last = tile - 1;; last -= kWarpLanes) {
    const int64_t looked_at = last - lane_of_warp();
    uint64_t word = kUpToHere;  // before the first tile, the count is 0
    if (looked_at >= 0) {
      do {
        word = load_relaxed(words + looked_at);
      } while (word == 0);
    }
    const unsigned ends = __ballot_sync(kAllLanes, (word & kUpToHere) != 0);
    // Adds the nearest word that counts from the start, and the words of the tiles after it.
    const int nearest = ends == 0 ? kWarpLanes - 1 : __ffs(static_cast<int>(ends)) - 1;
    before += warp_sum(lane_of_warp() <= nearest ? word & kCount : 0);
    if (ends != 0) return static_cast<int64_t>(before);
  }
}

// Writes the indices of the tile's live rows, and the tile's share of the -1. The j-th dead row
// writes the j-th entry from the end of [0, size), so exactly one thread writes each entry. Entries
// beyond `size` are divided among the blocks.
__device__ void write_tile(const CompactRows& params, const TileScratch& scratch, int of_tile) {
  const int64_t start = scratch.tile * kTile, before = scratch.live_before;
  const int64_t rows = min(static_cast<int64_t>(kTile), params.size - start);
  for (int j = thread_in_block(); j < of_tile; j += kThreads) {
    if (before + j < params.capacity) params.index[before + j] = start + scratch.kept[j];
  }
  const int64_t dead_before = start - before;
  for (int j = thread_in_block(); j < rows - of_tile; j += kThreads) {
    const int64_t entry = params.size - 1 - (dead_before + j);
    if (entry < params.capacity) params.index[entry] = -1;
  }
  for (int64_t entry = params.size + scratch.tile * kThreads + thread_in_block();
       entry < params.capacity; entry += static_cast<int64_t>(gridDim.x) * kThreads) {
    params.index[entry] = -1;
  }
}

__global__ void __launch_bounds__(kThreads) compact_rows_kernel(CompactRows params) {
  WAVALIGN_SHARED(TileScratch, scratch);
  auto* taken = static_cast<unsigned long long*>(params.workspace);
  uint64_t* words = static_cast<uint64_t*>(params.workspace) + 1;
  if (thread_in_block() == 0) scratch.tile = static_cast<int64_t>(atomicAdd(taken, 1ull));
  __syncthreads();
  const int64_t tile = scratch.tile;
  const int first = thread_in_block() * kFlags;
  unsigned bits = flags_of(params, tile * kTile + first);
  int of_tile;
  int at = live_before_thread(__popc(bits), scratch, of_tile);
  if (tile > 0 && thread_in_block() == 0) store_relaxed(words + tile, kOfTile | of_tile);
  for (; bits != 0; bits &= bits - 1) {
    scratch.kept[at++] = static_cast<uint16_t>(first + __ffs(static_cast<int>(bits)) - 1);
  }
  if (warp_of_block() == 0) {
    const int64_t before = live_before_tile(words, tile);
    if (lane_of_warp() == 0) {
      store_relaxed(words + tile, kUpToHere | static_cast<uint64_t>(before + of_tile));
      scratch.live_before = before;
      if (tile == gridDim.x - 1) *params.count = before + of_tile;
    }
  }
  __syncthreads();
  write_tile(params, scratch, of_tile);
}

int64_t tiles_of(int64_t size) { return size > 0 ? (size + kTile - 1) / kTile : 1; }

}  // namespace

int64_t compact_rows_workspace(int64_t size) {
  return static_cast<int64_t>(sizeof(uint64_t)) * (1 + tiles_of(size));
}

Status compact_rows(const CompactRows& params, void* stream) {
  if (params.size < 0 || params.capacity < 0) return cudaErrorInvalidValue;
  const size_t bytes = static_cast<size_t>(compact_rows_workspace(params.size));
  const Status status =
      cleared(cudaMemsetAsync(params.workspace, 0, bytes, static_cast<cudaStream_t>(stream)));
  if (status != cudaSuccess) return status;
  // Without any row, one tile still has to write the count and the -1.
  return launch(compact_rows_kernel, {tiles_of(params.size), kThreads}, stream, params);
}

}  // namespace wavalign::cuda
