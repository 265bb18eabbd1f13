// Bodies of the row kernels. Included once per instruction set, with CPU_CAPABILITY defined, so
// that at::vec::Vectorized has that set's width. No other ATen header may be included here: inline
// functions compiled for AVX-512 must not be the ones the linker keeps for the whole library.
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cpu/row_kernels.h"

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kWidth = Vec::size();
static_assert(kLaneAlign % kWidth == 0);

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu

#include "cpu/isa/vec_exp.h"

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

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

// `count` vectors of lanes side by side: whole cache lines of a row, and independent sums.
template <int count, typename T>
void softmax_stats_of(const float* logits, int64_t rows, int64_t lanes, TileStats stats, T* probs) {
  const Vec lowest(-std::numeric_limits<float>::infinity()), zero(0.f), least(kLowestExponent);
  Vec top[count], shift[count], sum[count], weighted[count];
  for (int j = 0; j < count; ++j) {
    top[j] = lowest;
    sum[j] = weighted[j] = zero;
  }
  for (int64_t v = 0; v < rows; ++v) {
    for (int j = 0; j < count; ++j) {
      // A NaN is passed over here and reaches the sum.
      top[j] = maximum(load(logits + v * lanes + j * kWidth), top[j]);
    }
  }
  for (int j = 0; j < count; ++j) {
    // A tile of banned ids has max -inf; subtracting it would turn -inf - -inf into NaN.
    shift[j] = Vec::blendv(top[j], zero, top[j] == lowest);
  }
  for (int64_t v = 0; v < rows; ++v) {
    for (int j = 0; j < count; ++j) {
      const int64_t i = v * lanes + j * kWidth;
      const Vec below = maximum(least, load(logits + i) - shift[j]);
      const Vec e = exp_nonpositive(below);
      sum[j] = sum[j] + e;
      weighted[j] = at::vec::fmadd(e, below, weighted[j]);
      if (probs != nullptr) store(e, probs + i);
    }
  }
  for (int j = 0; j < count; ++j) {
    store(top[j], stats.max + j * kWidth);
    store(sum[j], stats.sum + j * kWidth);
    store(weighted[j], stats.weighted + j * kWidth);
  }
}

template <typename T>
void softmax_stats(const float* logits, int64_t rows, int64_t lanes, TileStats stats, T* probs) {
  constexpr int kBlock = 4;
  int64_t n = 0;
  const auto block = [&](auto count) {
    softmax_stats_of<count()>(logits + n, rows, lanes,
                              {stats.max + n, stats.sum + n, stats.weighted + n},
                              probs == nullptr ? nullptr : probs + n);
    n += count() * kWidth;
  };
  while (n + kBlock * kWidth <= lanes) block(std::integral_constant<int, kBlock>());
  while (n < lanes) block(std::integral_constant<int, 1>());
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

// With the logarithm of the rounded probability: as exact as the product that it goes into.
template <typename T>
void entropy_grad_from_probs(const T* probs, int64_t rows, int64_t lanes, TokenGrads grads,
                             T* dlogits) {
  const Vec tiny(std::numeric_limits<float>::min());
  for (int64_t v = 0; v < rows; ++v) {
    for (int64_t n = 0; n < lanes; n += kWidth) {
      const Vec e = load(probs + v * lanes + n);
      // The entropy's logarithm of 0 is finite, for it is multiplied with that 0.
      const Vec surprise = maximum(tiny, e).log() + load(grads.shift + n);
      const Vec factor = load(grads.softmax + n) - load(grads.entropy_grad + n) * surprise;
      store(e * factor, dlogits + v * lanes + n);
    }
  }
}

template <typename T>
void transpose(const T* tile, int64_t rows, int64_t lanes, T* out, int64_t ld_out) {
  constexpr int64_t kBlock = 16;
  const int64_t whole = rows / kBlock * kBlock;
  for (int64_t v = 0; v < whole; v += kBlock) {
    for (int64_t n = 0; n < lanes; n += kBlock) {
      at::vec::transpose_mxn<T, kBlock, kBlock>(tile + v * lanes + n, lanes, out + n * ld_out + v,
                                                ld_out);
    }
  }
  for (int64_t v = whole; v < rows; ++v) {
    for (int64_t n = 0; n < lanes; ++n) out[n * ld_out + v] = tile[v * lanes + n];
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
  return {scale_logits, softmax_stats<T>, grad_from_probs<T>, entropy_grad_from_probs<T>,
          transpose<T>, pack_rows,        round_rows<T>};
}

}  // namespace

RowKernels make_row_kernels(const char* isa) {
  return {tile_kernels<float>(), tile_kernels<c10::BFloat16>(), isa};
}

}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu
