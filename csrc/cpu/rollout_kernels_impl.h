// Bodies of the rollout kernels. A file in isa/ of each instruction set includes them once.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/isa/vec_sum.h"
#include "cpu/linear_tiles_impl.h"
#include "cpu/rollout_kernels.h"

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kTile = 4;           // tokens, or vectors of a value, held in registers
constexpr int64_t kCachedTokens = 64;  // tokens whose values stay in the L1 cache for all heads

float sum(Vec v) {
  __at_align__ float lanes[kWidth];
  v.store(lanes);
  for (int64_t half = kWidth / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Products of a query [d] in fp32 and kWidth keys. The order of summation depends on d only.
template <typename T>
void dots(const float* query, const T* keys, int64_t d, float* scores) {
  const Vec zero(0.f);
  Vec total[kWidth] = {};
  for (Vec& one : total) one = zero;
  int64_t i = 0;
  for (; i + kWidth <= d; i += kWidth) {
    const Vec q = load(query + i);
    for (int64_t j = 0; j < kWidth; ++j) {
      total[j] = at::vec::fmadd(q, load(keys + j * d + i), total[j]);
    }
  }
  lane_sums(total, scores);
  for (; i < d; ++i) {
    for (int64_t j = 0; j < kWidth; ++j) {
      scores[j] += query[i] * static_cast<float>(keys[j * d + i]);
    }
  }
}

// The same for one key.
template <typename T>
float dot(const float* query, const T* key, int64_t d) {
  Vec total(0.f);
  int64_t i = 0;
  for (; i + kWidth <= d; i += kWidth) {
    total = at::vec::fmadd(load(query + i), load(key + i), total);
  }
  float score = sum(total);
  for (; i < d; ++i) score += query[i] * static_cast<float>(key[i]);
  return score;
}

template <typename T>
void scores_of(const float* queries, const CacheSegment<T>& segment, int64_t heads, int64_t d,
               int64_t stride, float* scores) {
  int64_t t = 0;
  for (; t + kWidth <= segment.tokens; t += kWidth) {
    for (int64_t h = 0; h < heads; ++h) {
      dots(queries + h * padded(d), segment.keys + t * d, d, scores + h * stride + t);
    }
  }
  for (; t < segment.tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      scores[h * stride + t] = dot(queries + h * padded(d), segment.keys + t * d, d);
    }
  }
}

// Replaces n scores by exp(score - max) and returns their sum; the buffer has padded(n) floats.
float softmax(float* scores, int64_t n) {
  const float lowest = -std::numeric_limits<float>::infinity();
  std::fill(scores + n, scores + padded(n), lowest);
  Vec top(lowest), total(0.f);
  // `maximum` drops a NaN here; the sum propagates it.
  for (int64_t t = 0; t < n; t += kWidth) top = maximum(load(scores + t), top);
  __at_align__ float lanes[kWidth];
  top.store(lanes);
  const Vec shift(*std::max_element(lanes, lanes + kWidth)), least(kLowestExponent);
  for (int64_t t = 0; t < n; t += kWidth) {
    const Vec e = exp_nonpositive(maximum(least, load(scores + t) - shift));
    store(e, scores + t);
    total = total + e;
  }
  return sum(total);
}

// out [d] += weights [n] values [n, d], for `count` vectors of columns.
template <int64_t count, typename T>
void add_columns(const float* weights, const T* values, int64_t n, int64_t d, float* out) {
  Vec total[count];
  for (int64_t j = 0; j < count; ++j) total[j] = load(out + j * kWidth);
  for (int64_t t = 0; t < n; ++t) {
    const Vec weight(weights[t]);
    for (int64_t j = 0; j < count; ++j) {
      total[j] = at::vec::fmadd(weight, load(values + t * d + j * kWidth), total[j]);
    }
  }
  for (int64_t j = 0; j < count; ++j) store(total[j], out + j * kWidth);
}

template <typename T>
void add_values(const float* weights, const T* values, int64_t n, int64_t d, float* out) {
  int64_t i = 0;
  for (; i + kTile * kWidth <= d; i += kTile * kWidth) {
    add_columns<kTile>(weights, values + i, n, d, out + i);
  }
  for (; i + kWidth <= d; i += kWidth) add_columns<1>(weights, values + i, n, d, out + i);
  for (int64_t t = 0; i < d && t < n; ++t) {
    for (int64_t rest = i; rest < d; ++rest) {
      out[rest] += weights[t] * static_cast<float>(values[t * d + rest]);
    }
  }
}

template <typename T>
void attend(const CacheSegment<T>* segments, int64_t heads, int64_t d, float* queries,
            float* scores) {
  const int64_t tokens = segments[0].tokens + segments[1].tokens;
  const int64_t stride = padded(tokens), width = padded(d);
  scores_of(queries, segments[0], heads, d, stride, scores);
  scores_of(queries, segments[1], heads, d, stride, scores + segments[0].tokens);
  for (int64_t h = 0; h < heads; ++h) {
    float* own = scores + h * stride;
    const Vec share(1.f / softmax(own, tokens));
    for (int64_t t = 0; t < tokens; t += kWidth) store(load(own + t) * share, own + t);
  }
  std::fill_n(queries, heads * width, 0.f);
  for (const CacheSegment<T>* segment : {segments, segments + 1}) {
    const int64_t before = segment == segments ? 0 : segments[0].tokens;
    for (int64_t t = 0; t < segment->tokens; t += kCachedTokens) {
      const int64_t n = std::min(kCachedTokens, segment->tokens - t);
      for (int64_t h = 0; h < heads; ++h) {
        add_values(scores + h * stride + before + t, segment->values + t * d, n, d,
                   queries + h * width);
      }
    }
  }
}

// Rounds to T and back, as a tensor of T between two operations would.
template <typename T>
float rounded(float x) {
  return static_cast<float>(static_cast<T>(x));
}

template <typename T>
float inverse_rms(const T* x, float eps, int64_t n) {
  Vec squares(0.f);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vec v = load(x + i);
    squares = at::vec::fmadd(v, v, squares);
  }
  float total = sum(squares);
  for (; i < n; ++i) total += static_cast<float>(x[i]) * static_cast<float>(x[i]);
  return 1.f / std::sqrt(total / static_cast<float>(n) + eps);
}

template <typename T>
void rotate(const T* x, const Rotation<T>& by, float scale, float* out) {
  const float factor = by.norm == nullptr ? 1.f : inverse_rms(x, by.eps, by.d);
  const auto value = [&](int64_t i) {
    const float v = static_cast<float>(x[i]);
    return by.norm == nullptr ? v : rounded<T>(v * factor) * static_cast<float>(by.norm[i]);
  };
  const int64_t half = by.d / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = value(i), b = value(i + half);
    out[i] = (a * by.cos[i] - b * by.sin[i]) * scale;
    out[i + half] = (b * by.cos[i + half] + a * by.sin[i + half]) * scale;
  }
}

template <typename T>
void round_floats(const float* x, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(load(x + i), out + i);
  for (; i < n; ++i) out[i] = static_cast<T>(x[i]);
}

template <typename T>
void add_rms_norm(T* x, const T* update, const T* weight, float eps, int64_t n, T* out) {
  int64_t i = 0;
  if (update != nullptr) {
    for (; i + kWidth <= n; i += kWidth) store(load(x + i) + load(update + i), x + i);
    for (; i < n; ++i)
      x[i] = static_cast<T>(static_cast<float>(x[i]) + static_cast<float>(update[i]));
  }
  const float factor = inverse_rms(x, eps, n);
  const Vec factors(factor);
  for (i = 0; i + kWidth <= n; i += kWidth) {
    store(load(x + i) * factors, out + i);
    store(load(out + i) * load(weight + i), out + i);
  }
  for (; i < n; ++i) {
    out[i] = static_cast<T>(rounded<T>(static_cast<float>(x[i]) * factor) *
                            static_cast<float>(weight[i]));
  }
}

template <typename T>
void silu_mul(const T* gate, const T* up, int64_t n, T* out) {
  const Vec one(1.f);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vec g = load(gate + i);
    store(g / (one + g.neg().exp()), out + i);
    store(load(out + i) * load(up + i), out + i);
  }
  for (; i < n; ++i) {
    const float g = static_cast<float>(gate[i]);
    out[i] = static_cast<T>(rounded<T>(g / (1.f + std::exp(-g))) * static_cast<float>(up[i]));
  }
}

template <typename T>
float max_of(const T* logits, int64_t n) {
  float top = -std::numeric_limits<float>::infinity();
  Vec tops(top);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) tops = maximum(load(logits + i), tops);
  __at_align__ float lanes[kWidth];
  tops.store(lanes);
  for (float lane : lanes) top = std::max(top, lane);
  for (; i < n; ++i) top = std::max(top, static_cast<float>(logits[i]));
  return top;
}

template <typename T>
void exp_of(const T* logits, int64_t n, float max, float temperature, float* probs) {
  const Vec shift(max), divisor(temperature), least(kLowestExponent);
  const auto probs_of = [&](Vec z) {
    return exp_nonpositive(maximum(least, (z - shift) / divisor));
  };
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(probs_of(load(logits + i)), probs + i);
  if (i < n) {
    __at_align__ float lanes[kWidth] = {};
    for (int64_t rest = i; rest < n; ++rest) lanes[rest - i] = static_cast<float>(logits[rest]);
    store(probs_of(load(lanes)), lanes);
    std::copy_n(lanes, n - i, probs + i);
  }
}

template <typename T>
DecodeKernels<T> decode_kernels() {
  return {rotate<T>,   attend<T>, round_floats<T>, add_rms_norm<T>,
          silu_mul<T>, max_of<T>, exp_of<T>};
}

}  // namespace

RolloutKernels make_rollout_kernels() {
  return {decode_kernels<float>(),
          decode_kernels<c10::BFloat16>(),
          {packed_rows_size, pack_rows, multiply}};
}

}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu
