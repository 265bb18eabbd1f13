// Bodies of the row kernels. Included once per instruction set, with CPU_CAPABILITY defined, so
// that at::vec::Vectorized has that set's width. No other ATen header may be included here: inline
// functions compiled for AVX-512 must not be the ones the linker keeps for the whole library.
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <limits>

#include "cpu/row_kernels.h"

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kWidth = Vec::size();
static_assert(kLaneAlign % kWidth == 0);

Vec load(const float* p) { return Vec::loadu(p); }

Vec load(const c10::BFloat16* p) {
  Vec wide;
  at::vec::load_fp32_from_bf16(p, wide);
  return wide;
}

void store(Vec v, float* p) { v.store(p); }

void store(Vec v, c10::BFloat16* p) {
#if defined(CPU_CAPABILITY_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), at::vec::cvtfp32_bf16(v));
#elif defined(CPU_CAPABILITY_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), at::vec::cvtfp32_bf16(v));
#else
  __at_align__ float wide[kWidth];
  v.store(wide);
  for (int64_t i = 0; i < kWidth; ++i) p[i] = c10::BFloat16(wide[i]);
#endif
}

void scale_logits(float* raw, int64_t rows, int64_t lanes, float scale, const float* bias) {
  const Vec factor(scale);
  for (int64_t v = 0; v < rows; ++v) {
    const Vec shift(bias == nullptr ? 0.f : bias[v]);
    float* row = raw + v * lanes;
    for (int64_t n = 0; n < lanes; n += kWidth) store(load(row + n) * factor + shift, row + n);
  }
}

template <typename T>
void softmax_stats(const float* logits, int64_t rows, int64_t lanes, TileStats stats, T* probs) {
  const Vec lowest(-std::numeric_limits<float>::infinity()), zero(0.f);
  for (int64_t n = 0; n < lanes; n += kWidth) {
    Vec top = lowest;
    for (int64_t v = 0; v < rows; ++v) top = at::vec::maximum(top, load(logits + v * lanes + n));
    // A tile of banned ids has max -inf; subtracting it would turn -inf - -inf into NaN.
    const Vec shift = Vec::blendv(top, zero, top == lowest);
    Vec sum(0.f), weighted(0.f);
    for (int64_t v = 0; v < rows; ++v) {
      const Vec below = load(logits + v * lanes + n) - shift;
      const Vec e = below.exp();
      sum = sum + e;
      // 0 * -inf is 0 in an entropy.
      weighted = weighted + e * Vec::blendv(below, zero, below == lowest);
      if (probs != nullptr) store(e, probs + v * lanes + n);
    }
    store(top, stats.max + n);
    store(sum, stats.sum + n);
    store(weighted, stats.weighted + n);
  }
}

template <typename T>
void grad_from_probs(const T* probs, int64_t rows, int64_t lanes, const float* factor, T* dlogits) {
  for (int64_t v = 0; v < rows; ++v) {
    for (int64_t n = 0; n < lanes; n += kWidth) {
      const int64_t i = v * lanes + n;
      store(load(probs + i) * load(factor + n), dlogits + i);
    }
  }
}

template <typename T>
void grad_from_logits(const float* logits, int64_t rows, int64_t lanes, TokenGrads grads,
                      T* dlogits) {
  const Vec zero(0.f), lowest(-std::numeric_limits<float>::infinity());
  for (int64_t n = 0; n < lanes; n += kWidth) {
    const Vec lse = load(grads.lse + n), factor = load(grads.softmax + n);
    const Vec ge = load(grads.entropy_grad + n), entropy = load(grads.entropy + n);
    for (int64_t v = 0; v < rows; ++v) {
      const Vec logp = load(logits + v * lanes + n) - lse;
      const Vec finite = Vec::blendv(logp, zero, logp == lowest);
      store(logp.exp() * (factor - ge * (finite + entropy)), dlogits + v * lanes + n);
    }
  }
}

template <typename T>
void transpose(const T* tile, int64_t rows, int64_t lanes, T* out, int64_t ld_out) {
  constexpr int64_t kBlock = 16;
  for (int64_t v0 = 0; v0 < rows; v0 += kBlock) {
    const int64_t v1 = std::min(v0 + kBlock, rows);
    for (int64_t n0 = 0; n0 < lanes; n0 += kBlock) {
      for (int64_t n = n0; n < n0 + kBlock; ++n) {
        for (int64_t v = v0; v < v1; ++v) out[n * ld_out + v] = tile[v * lanes + n];
      }
    }
  }
}

void pack_rows(const float* in, int64_t k, int64_t n, int64_t ld_in, float* out) {
  for (int64_t i = 0; i < k; ++i) std::copy_n(in + i * ld_in, n, out + i * n);
}

void pack_rows(const c10::BFloat16* in, int64_t k, int64_t n, int64_t ld_in, c10::BFloat16* out) {
  auto* pairs = reinterpret_cast<uint32_t*>(out);
  for (int64_t i = 0; i < k; i += 2) {
    const auto* even = reinterpret_cast<const uint16_t*>(in + i * ld_in);
    uint32_t* row = pairs + i / 2 * n;
    if (i + 1 < k) {
      const auto* odd = even + ld_in;
      for (int64_t j = 0; j < n; ++j) row[j] = even[j] | static_cast<uint32_t>(odd[j]) << 16;
    } else {
      for (int64_t j = 0; j < n; ++j) row[j] = even[j];
    }
  }
}

template <typename T>
void round_rows(const float* in, int64_t rows, int64_t n, int64_t ld_in, T* out, int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = in + r * ld_in;
    T* to = out + r * ld_out;
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(load(from + i), to + i);
    for (; i < n; ++i) to[i] = static_cast<T>(from[i]);
  }
}

template <typename T>
TileKernels<T> tile_kernels() {
  return {scale_logits, softmax_stats<T>, grad_from_probs<T>, grad_from_logits<T>,
          transpose<T>, pack_rows,        round_rows<T>};
}

}  // namespace

RowKernels make_row_kernels(const char* isa) {
  return {tile_kernels<float>(), tile_kernels<c10::BFloat16>(), isa};
}

}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu
