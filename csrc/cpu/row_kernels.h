// Elementwise kernels on one tile of logits, one implementation per instruction set.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace wavalign::cpu {

// A tile holds `rows` vocabulary entries by `lanes` tokens, row-major. Tokens lie along the
// vector lanes, so every softmax statistic is a vertical reduction and a token's bits cannot
// depend on which lane it sits in. `lanes` is a multiple of kLaneAlign.
constexpr int64_t kLaneAlign = 16;

// What a tile says about each of its tokens: max logit, sum exp(z - max), sum exp(z - max)(z -
// max).
struct TileStats {
  float* max;
  float* sum;
  float* weighted;
};

// Per-token factors of dL/dz = e * (softmax - entropy_grad * (log e + shift)) with e = exp(z - max)
// and shift = max - lse + entropy, without the target's own term.
struct TokenGrads {
  const float* softmax;
  const float* entropy_grad;
  const float* shift;
};

template <typename T>
struct TileKernels {
  // out += in; n is a multiple of kLaneAlign.
  void (*add)(const float* in, int64_t n, float* out);
  // logits = raw * scale + bias[row], in place.
  void (*scale_logits)(float* raw, int64_t rows, int64_t lanes, float scale, const float* bias);
  // probs = exp(logits - max); `probs` may be null.
  void (*softmax_stats)(const float* logits, int64_t rows, int64_t lanes, TileStats stats,
                        T* probs);
  // dlogits = probs * factor[lane].
  void (*grad_from_probs)(const T* probs, int64_t rows, int64_t lanes, const float* factor,
                          T* dlogits);
  void (*entropy_grad_from_probs)(const T* probs, int64_t rows, int64_t lanes, TokenGrads grads,
                                  T* dlogits);
  // [rows, lanes] -> [lanes, ld_out]
  void (*transpose)(const T* tile, int64_t rows, int64_t lanes, T* out, int64_t ld_out);
  // Row-major B operand [k, n] -> what the GEMM of this type wants (pairs along k for bf16).
  void (*pack_rows)(const T* in, int64_t k, int64_t n, int64_t ld_in, T* out);
  // Rows of fp32 into rows of T. `stream`: past the caches, where the rows allow it.
  void (*round_rows)(const float* in, int64_t rows, int64_t n, int64_t ld_in, T* out,
                     int64_t ld_out, bool stream);
};

struct RowKernels {
  TileKernels<float> f32;
  TileKernels<c10::BFloat16> bf16;
  const char* isa;

  template <typename T>
  const TileKernels<T>& tile() const;
};

template <>
inline const TileKernels<float>& RowKernels::tile<float>() const {
  return f32;
}
template <>
inline const TileKernels<c10::BFloat16>& RowKernels::tile<c10::BFloat16>() const {
  return bf16;
}

// The kernels for the best instruction set of this processor, chosen once.
const RowKernels& row_kernels();

}  // namespace wavalign::cpu
