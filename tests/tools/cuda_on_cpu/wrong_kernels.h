#pragma once

#include <cstdint>

#include "cuda/kernels.h"

namespace wrong {

enum Mode : int32_t {
  kRight,
  kNoBarrier,
  kDivergentBarrier,
  kBarrierAfterExit,
  kLaneExits,
  kMaskWithoutMe,
  kDivergentShuffle,
  kUnwrittenShared,
  kIndexOverrun,
  kBlocksRace,
  kClusterRight,
  kNoClusterWait,
  kEndsEarly,
  kArrivesOnly,
  kMisaligned,
  kReadsBeyond,
  kSpins,
  kTooManyThreads,
  kTooMuchShared,
};

struct Params {
  const float* values;  // [blocks, 64]
  float* out;           // [64]
  int64_t blocks;
  Mode mode;
};

wavalign::cuda::Status run(const Params& params, void* stream);

}  // namespace wrong
