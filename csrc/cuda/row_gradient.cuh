// Device code that turns a row of logits into their gradient, in place.
#pragma once

#include "cuda/row_stats.cuh"

namespace wavalign::cuda {

// result[begin, end) = 0.
template <typename Out>
__device__ __forceinline__ void write_zeros(Out* result, int begin, int end) {
  const float zeros[kUnit] = {};
  const int step = kUnit * threads_of_block();
  for (int i = begin + kUnit * thread_in_block(); i < end; i += step) {
    store_items(result + i, end - i, zeros);
  }
}

// What the gradient of a row's logits depends on, besides the logits.
struct GradientOfRow {
  RowSummary<float> row;
  RowGrads<float> grads;
  int target;
};

// Whether a step of an in-place conversion to a narrower type needs a block barrier between its
// reads and its writes.
//
// Step k of T threads reads the bytes [8 T w k, 8 T w (k + 1)) of the row and writes
// [8 T n k, 8 T n (k + 1)), with w and n the widths in bytes and n <= w / 2. Threads may be several
// steps apart, so step k may write only bytes that all threads have read for certain. A barrier in
// step b, between reads and writes, shows that all bytes below 8 T w (b + 1) have been read. This
// covers the writes of step k if n (k + 1) <= w (b + 1), which holds for k <= 2 b + 1. So barriers
// in steps 0, 2, 6, 14, ... suffice: each covers the steps up to the next one.
__device__ __forceinline__ bool overtakes_readers(int step) {
  return ((step + 1) & (step + 2)) == 0;
}

// result[begin, end) = dL/dlogits. `source` points to the logit at `begin`. `kInPlace`: source and
// result share the memory of the row, which starts at `result`.
template <bool kInPlace, typename In, typename Out>
__device__ __forceinline__ void write_gradient(const In* source, Out* result,
                                               const Scaling& scaling, int begin, int end,
                                               const GradientOfRow& of) {
  const int threads = threads_of_block();
  const int size = end - begin;
  // The derivative by a logit before scaling has the factor `scale`.
  const RowGrads<float> grads = {scaling.scale * of.grads.logp, scaling.scale * of.grads.entropy,
                                 scaling.scale * of.grads.lse};
  const int steps = (size + kUnit * threads - 1) / (kUnit * threads);
  for (int step = 0; step < steps; ++step) {
    const int first = kUnit * (step * threads + thread_in_block());
    const int n = size - first;
    float values[kUnit];
    if (n > 0) load_items(source + first, n, values);
    if constexpr (kInPlace && sizeof(Out) < sizeof(In)) {
      if (overtakes_readers(step)) __syncthreads();
    }
    if (n <= 0) continue;
    scaling.apply(values, begin + first, n);
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const float logp = (values[j] - of.row.top) - of.row.log_sum;
      values[j] = logit_gradient<RowExp>(logp, grads, of.row.entropy);
    }
    const int own = of.target - begin - first;
    if (own >= 0 && own < kUnit) {
      const float gradient = target_gradient(of.row, grads);
#pragma unroll
      for (int j = 0; j < kUnit; ++j) {
        if (j == own) values[j] = gradient;
      }
    }
    store_items(result + begin + first, n, values);
  }
}

}  // namespace wavalign::cuda
