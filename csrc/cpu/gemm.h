// GEMMs of tiles with fp32 results, by oneDNN's batch-reduce kernels (brgemm) if the processor has
// them.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace wavalign::cpu {

// Whether brgemm supports this type on this processor. Otherwise tiles are widened to fp32 and
// multiplied by the BLAS of torch.
bool brgemm_available(at::ScalarType dtype);

// C[m, n] = A[m, k] B[k, n], plus C if `accumulate`. Row-major; in bf16, B is packed in pairs along
// k: [k / 2][n][2]. On one thread. The order of summation over k does not depend on m, n or the
// position in the tile.
void gemm(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda,
          const c10::BFloat16* b, int64_t ldb, float* c, int64_t ldc, bool accumulate);
void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
          float* c, int64_t ldc, bool accumulate);

// Releases the AMX tile state of the processor at the end of a thread's work.
struct GemmScope {
  GemmScope() = default;
  GemmScope(const GemmScope&) = delete;
  GemmScope& operator=(const GemmScope&) = delete;
  ~GemmScope();
};

}  // namespace wavalign::cpu
