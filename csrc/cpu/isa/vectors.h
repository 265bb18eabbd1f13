// Vectors of floats of one instruction set. The files of isa/ include it with CPU_CAPABILITY
// defined, so that at::vec::Vectorized has the width of theirs. Include no other ATen header there:
// the linker might keep an inline function that was compiled for AVX-512 for the whole library.
#pragma once

#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kWidth = Vec::size();

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu

#include "cpu/isa/vec_exp.h"

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

inline Vec load(const float* p) { return Vec::loadu(p); }

inline Vec load(const c10::BFloat16* p) {
  Vec wide;
  at::vec::load_fp32_from_bf16(p, wide);
  return wide;
}

inline void store(Vec v, float* p) { v.store(p); }

inline void store(Vec v, c10::BFloat16* p) {
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

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu
