// Elementwise kernels for a tile of logits, with one implementation per instruction set.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace wavalign::cpu {

// A tile is a row-major matrix of `rows` vocabulary entries by `lanes` tokens. Tokens lie along the
// vector lanes, so softmax statistics are vertical reductions and the bits of a token do not depend
// on its lane. `lanes` is a multiple of kLaneAlign.
constexpr int64_t kLaneAlign = 16;

// Softmax statistics of each token over the rows of a tile.
struct TileStats {
  float* max;       // max z
  float* sum;       // sum exp(z - max)
  float* weighted;  // sum exp(z - max) (z - max)
};

// Factors of each token in dL/dz = e * (softmax - entropy_grad * (log e + shift)), where
// e = exp(z - max) and shift = max - lse + entropy. The target's logit has another derivative.
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
  // logits = c tanh((raw + bias[row]) / c), in place, and `slope`, its derivative by raw, unless it
  // is null.
  void (*cap_logits)(float* raw, int64_t rows, int64_t lanes, float c, const float* bias,
                     float* slope);
  // probs = exp(logits - max); `probs` may be null.
  void (*softmax_stats)(const float* logits, int64_t rows, int64_t lanes, TileStats stats,
                        T* probs);
  // dlogits = probs * factor[lane].
  void (*grad_from_probs)(const T* probs, int64_t rows, int64_t lanes, const float* factor,
                          T* dlogits);
  void (*entropy_grad_from_probs)(const T* probs, int64_t rows, int64_t lanes, TokenGrads grads,
                                  T* dlogits);
  // dlogits *= slope; n is a multiple of kLaneAlign.
  void (*multiply)(const float* slope, int64_t n, T* dlogits);
  // [rows, lanes] -> [lanes, ld_out]
  void (*transpose)(const T* tile, int64_t rows, int64_t lanes, T* out, int64_t ld_out);
  // Packs a row-major B operand [k, n] for gemm(): pairs along k in bf16, no padding in fp32.
  void (*pack_rows)(const T* in, int64_t k, int64_t n, int64_t ld_in, T* out);
  // Rounds rows of fp32 to T. `stream`: with non-temporal stores, if the rows are aligned.
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

// The kernels for the best instruction set of this processor, chosen at the first call.
const RowKernels& row_kernels();

}  // namespace wavalign::cpu
