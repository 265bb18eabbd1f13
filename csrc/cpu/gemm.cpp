#include "cpu/gemm.h"

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

namespace wavalign::cpu {

namespace cpublas = at::native::cpublas;

namespace {

// Tries the smallest GEMM, because brgemm throws for an unsupported type and offers no query.
template <typename T>
bool probe() {
  try {
    const T a[2] = {T(1), T(1)}, b[2 * 16] = {};
    float c[16];
    cpublas::brgemm(1, 16, 2, 2, 16, 16, false, a, b, c, !std::is_same_v<T, float>);
    cpublas::brgemm_release(!std::is_same_v<T, float>);
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

}  // namespace

bool brgemm_available(at::ScalarType dtype) {
  if (!at::globalContext().userEnabledMkldnn()) return false;
  static const bool bf16 = probe<c10::BFloat16>(), f32 = probe<float>();
  return dtype == at::kBFloat16 ? bf16 : dtype == at::kFloat ? f32 : false;
}

void gemm(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda,
          const c10::BFloat16* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  cpublas::brgemm(m, n, k, lda, ldb, ldc, accumulate, a, b, c, /*is_vnni=*/true);
}

void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
          float* c, int64_t ldc, bool accumulate) {
  if (brgemm_available(at::kFloat)) {
    cpublas::brgemm(m, n, k, lda, ldb, ldc, accumulate, a, b, c, /*is_vnni=*/false);
    return;
  }
  const auto matrix = [](const float* data, int64_t rows, int64_t columns, int64_t ld) {
    return at::from_blob(const_cast<float*>(data), {rows, columns}, {ld, 1}, at::kFloat);
  };
  at::Tensor out = matrix(c, m, n, ldc);
  if (accumulate) {
    out.addmm_(matrix(a, m, k, lda), matrix(b, k, n, ldb));
  } else {
    at::mm_out(out, matrix(a, m, k, lda), matrix(b, k, n, ldb));
  }
}

GemmScope::~GemmScope() {
  if (brgemm_available(at::kBFloat16)) cpublas::brgemm_release(/*is_vnni=*/true);
}

}  // namespace wavalign::cpu
