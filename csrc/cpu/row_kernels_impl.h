// Bodies of the row kernels. A file in isa/ of each instruction set includes them once.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "cpu/isa/vectors.h"
#include "cpu/row_kernels.h"

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

static_assert(kLaneAlign % kWidth == 0);

void add(const float* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kWidth) store(load(out + i) + load(in + i), out + i);
}

void scale_logits(float* raw, int64_t rows, int64_t lanes, float scale, const float* bias) {
  const Vec factor(scale);
  for (int64_t v = 0; v < rows; ++v) {
    const Vec shift(bias == nullptr ? 0.f : bias[v]);
    float* row = raw + v * lanes;
    for (int64_t n = 0; n < lanes; n += kWidth) store(load(row + n) * factor + shift, row + n);
  }
}

void cap_logits(float* raw, int64_t rows, int64_t lanes, float c, const float* bias, float* slope) {
  const Vec cap(c), one(1.f);
  for (int64_t v = 0; v < rows; ++v) {
    const Vec shift(bias == nullptr ? 0.f : bias[v]);
    for (int64_t n = 0; n < lanes; n += kWidth) {
      const int64_t i = v * lanes + n;
      const Vec t = ((load(raw + i) + shift) / cap).tanh();
      if (slope != nullptr) store(one - t * t, slope + i);
      store(cap * t, raw + i);
    }
  }
}

template <typename T>
void multiply(const float* slope, int64_t n, T* dlogits) {
  for (int64_t i = 0; i < n; i += kWidth) store(load(dlogits + i) * load(slope + i), dlogits + i);
}

// For `count` adjacent vectors of lanes: they fill whole cache lines of a row, and their sums are
// independent.
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
      // `maximum` drops a NaN here; the sum propagates it.
      top[j] = maximum(load(logits + v * lanes + j * kWidth), top[j]);
    }
  }
  for (int j = 0; j < count; ++j) {
    // A tile of banned ids has max -inf, and -inf - -inf is NaN.
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

// Takes the log of the rounded probability, which is as accurate as the product with it.
template <typename T>
void entropy_grad_from_probs(const T* probs, int64_t rows, int64_t lanes, TokenGrads grads,
                             T* dlogits) {
  const Vec tiny(std::numeric_limits<float>::min());
  for (int64_t v = 0; v < rows; ++v) {
    for (int64_t n = 0; n < lanes; n += kWidth) {
      const Vec e = load(probs + v * lanes + n);
      // A finite log of 0, because it is multiplied by that 0.
      const Vec centered_logp = maximum(tiny, e).log() + load(grads.shift + n);
      const Vec factor = load(grads.softmax + n) - load(grads.entropy_grad + n) * centered_logp;
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

// Writes n pairs (even[j], odd[j]) of two rows, and prefetches the rows `ahead` elements further:
// the pieces of a row are too short for the hardware prefetcher.
void interleave(const uint16_t* even, const uint16_t* odd, int64_t n,
                [[maybe_unused]] int64_t ahead, uint32_t* pairs) {
  int64_t j = 0;
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i step = _mm512_set1_epi16(16);
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, step);
  for (; j + 32 <= n; j += 32) {
    const __m512i a = _mm512_loadu_si512(even + j), b = _mm512_loadu_si512(odd + j);
    _mm_prefetch(reinterpret_cast<const char*>(even + j + ahead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(odd + j + ahead), _MM_HINT_T0);
    _mm512_storeu_si512(pairs + j, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(pairs + j + 16, _mm512_permutex2var_epi16(a, high, b));
  }
#endif
  for (; j < n; ++j) pairs[j] = even[j] | static_cast<uint32_t>(odd[j]) << 16;
}

void pack_rows(const c10::BFloat16* in, int64_t k, int64_t n, int64_t ld_in, c10::BFloat16* out) {
  constexpr int64_t kRowsAhead = 8;
  auto* pairs = reinterpret_cast<uint32_t*>(out);
  const auto* bits = reinterpret_cast<const uint16_t*>(in);
  int64_t i = 0;
  for (; i + 1 < k; i += 2) {
    const uint16_t* even = bits + i * ld_in;
    interleave(even, even + ld_in, n, kRowsAhead * ld_in, pairs + i / 2 * n);
  }
  if (i < k) std::copy_n(bits + i * ld_in, n, pairs + i / 2 * n);
}

// Rounds two vectors at once, which fill a cache line of the narrow type. `stream`: with
// non-temporal stores, for outputs far larger than the caches; `to` must be aligned to a line.
void round_line(const float* from, c10::BFloat16* to, [[maybe_unused]] bool stream) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m256i low = at::vec::cvtfp32_bf16(load(from)),
                high = at::vec::cvtfp32_bf16(load(from + kWidth));
  const __m512i line = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  if (stream) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
  } else {
    _mm512_storeu_si512(to, line);
  }
#else
  store(load(from), to);
  store(load(from + kWidth), to + kWidth);
#endif
}

void round_line(const float* from, float* to, [[maybe_unused]] bool stream) {
  for (int64_t i = 0; i < 2 * kWidth; i += kWidth) {
#if defined(CPU_CAPABILITY_AVX512)
    if (stream) {
      _mm512_stream_ps(to + i, load(from + i));
      continue;
    }
#endif
    store(load(from + i), to + i);
  }
}

template <typename T>
void round_rows(const float* in, int64_t rows, int64_t n, int64_t ld_in, T* out, int64_t ld_out,
                bool stream) {
  constexpr int64_t kLine = 64;
  const auto aligned = [](const T* row) { return reinterpret_cast<uintptr_t>(row) % kLine == 0; };
  stream = stream && aligned(out) && aligned(out + ld_out);
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = in + r * ld_in;
    T* to = out + r * ld_out;
    int64_t i = 0;
    for (; i + 2 * kWidth <= n; i += 2 * kWidth) round_line(from + i, to + i, stream);
    for (; i < n; ++i) to[i] = static_cast<T>(from[i]);
  }
}

template <typename T>
TileKernels<T> tile_kernels() {
  return {add,
          scale_logits,
          cap_logits,
          softmax_stats<T>,
          grad_from_probs<T>,
          entropy_grad_from_probs<T>,
          multiply<T>,
          transpose<T>,
          pack_rows,
          round_rows<T>};
}

}  // namespace

RowKernels make_row_kernels(const char* isa) {
  return {tile_kernels<float>(), tile_kernels<c10::BFloat16>(), isa};
}

}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu
