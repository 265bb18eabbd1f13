// Sums across the lanes of vectors, for the files of isa/.
#pragma once

#include "cpu/isa/vectors.h"

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

// Sums kWidth vectors: out[j] is the sum of the lanes of total[j].
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)

inline void sums_of_eight(const __m256 (&total)[8], float* out) {
  const auto four = [&](int j) {
    return _mm256_hadd_ps(_mm256_hadd_ps(total[j], total[j + 1]),
                          _mm256_hadd_ps(total[j + 2], total[j + 3]));
  };
  // Each half of a vector holds half of the sums of four.
  const __m256 low = four(0), high = four(4);
  const __m256 crossed = _mm256_permute2f128_ps(low, high, 0x21);
  _mm256_storeu_ps(out, _mm256_add_ps(crossed, _mm256_blend_ps(low, high, 0xf0)));
}

#endif

#if defined(CPU_CAPABILITY_AVX512)

inline void lane_sums(const Vec (&total)[kWidth], float* out) {
  for (int64_t begin = 0; begin < kWidth; begin += 8) {
    __m256 halves[8];
    for (int64_t j = 0; j < 8; ++j) {
      const __m512 v = total[begin + j];
      halves[j] = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    }
    sums_of_eight(halves, out + begin);
  }
}

#elif defined(CPU_CAPABILITY_AVX2)

inline void lane_sums(const Vec (&total)[kWidth], float* out) {
  const __m256 all[8] = {total[0], total[1], total[2], total[3],
                         total[4], total[5], total[6], total[7]};
  sums_of_eight(all, out);
}

#else

inline void lane_sums(const Vec (&total)[kWidth], float* out) {
  for (int64_t j = 0; j < kWidth; ++j) {
    __at_align__ float lanes[kWidth];
    total[j].store(lanes);
    out[j] = 0.f;
    for (float lane : lanes) out[j] += lane;
  }
}

#endif

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu
