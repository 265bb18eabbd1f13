// Kernels of one decoded token, with one implementation per instruction set.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace wavalign::cpu {

// Ids whose probabilities are summed before a token is searched among the sums.
constexpr int64_t kSampleBlock = 512;

// Outputs of a linear layer that one thread computes at a time.
constexpr int64_t kLinearChunk = 48;

// Rows of floats in a buffer are as long as a multiple of it.
inline int64_t padded(int64_t n) {
  constexpr int64_t kAlign = 16;
  return (n + kAlign - 1) / kAlign * kAlign;
}

// Adjacent keys and values [tokens, d] of one head.
template <typename T>
struct CacheSegment {
  const T *keys, *values;
  int64_t tokens;
};

// What a head's query or key goes through: normalised over d, unless `norm` is null, then rotated.
template <typename T>
struct Rotation {
  const float *cos, *sin;  // [d], of the token's position
  const T* norm;           // [d]
  float eps;
  int64_t d;
};

template <typename T>
struct DecodeKernels {
  // out = scale * (x rotated), of d floats.
  void (*rotate)(const T* x, const Rotation<T>& by, float scale, float* out);
  // Replaces the queries [heads, padded(d)] by softmax(query keys^T) values over two segments,
  // first to last. `scores` has heads * padded(tokens) floats.
  void (*attend)(const CacheSegment<T>* segments, int64_t heads, int64_t d, float* queries,
                 float* scores);
  void (*round)(const float* x, int64_t n, T* out);
  // x += update, unless that is null; out = x / rms(x) * weight.
  void (*add_rms_norm)(T* x, const T* update, const T* weight, float eps, int64_t n, T* out);
  // out = gate / (1 + exp(-gate)) * up.
  void (*silu_mul)(const T* gate, const T* up, int64_t n, T* out);
  // max z of n > 0 logits; drops a NaN.
  float (*max)(const T* logits, int64_t n);
  // probs = exp((logits - max) / temperature); n is at most kSampleBlock. A NaN stays one.
  void (*exp)(const T* logits, int64_t n, float max, float temperature, float* probs);
};

// x W^T + bias of `rows` packed rows of k floats.
struct LinearTask {
  const float* packed;
  int64_t rows, k, outputs;
  const float *weight, *bias;  // [outputs, k]; [outputs] or null
  float* out;                  // [rows, outputs], with `stride` floats from row to row
  int64_t stride;
};

struct LinearKernels {
  // Floats of n packed rows.
  int64_t (*packed_size)(int64_t n, int64_t k);
  void (*pack)(const float* rows, int64_t n, int64_t k, float* packed);
  // Computes the outputs `begin` to `end`, each a multiple of kLinearChunk or the last.
  void (*multiply)(const LinearTask& of, int64_t begin, int64_t end);
};

struct RolloutKernels {
  DecodeKernels<float> f32;
  DecodeKernels<c10::BFloat16> bf16;
  LinearKernels linear;

  template <typename T>
  const DecodeKernels<T>& of() const;
};

template <>
inline const DecodeKernels<float>& RolloutKernels::of<float>() const {
  return f32;
}
template <>
inline const DecodeKernels<c10::BFloat16>& RolloutKernels::of<c10::BFloat16>() const {
  return bf16;
}

// The kernels for the best instruction set of this processor, chosen at the first call.
const RolloutKernels& rollout_kernels();

}  // namespace wavalign::cpu
