// Tile GEMMs with fp32 results: oneDNN's batch-reduce kernels where the processor has them.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace wavalign::cpu {

// Whether `brgemm` multiplies operands of this type here; without it, tiles are widened to fp32
// and go to the BLAS that torch was built with.
bool brgemm_available(at::ScalarType dtype);

// C[m, n] = A[m, k] B[k, n] (+ C). Row-major. B is packed by pairs along k for bf16
// ([k / 2][n][2]), plain for fp32. One thread; the order of summation over k does not depend
// on m, n or the place in the tile.
void gemm(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda,
          const c10::BFloat16* b, int64_t ldb, float* c, int64_t ldc, bool accumulate);
void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
          float* c, int64_t ldc, bool accumulate);

// Gives the processor's tile state back (AMX) at the end of a thread's work.
struct GemmScope {
  GemmScope() = default;
  GemmScope(const GemmScope&) = delete;
  GemmScope& operator=(const GemmScope&) = delete;
  ~GemmScope();
};

}  // namespace wavalign::cpu
