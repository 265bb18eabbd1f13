// The elementwise parts of a decoder layer.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpu/decode_checks.h"
#include "cpu/rollout.h"
#include "cpu/rollout_kernels.h"

namespace wavalign::cpu {

namespace {

// Numbers that are worth a thread of their own.
constexpr int64_t kRowGrain = 1 << 15;

template <typename Function>
void each_row(int64_t rows, int64_t size, const Function& function) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kRowGrain / std::max<int64_t>(size, 1)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r) function(r);
                   });
}

template <typename T>
void norm_rows(T* x, const T* update, const T* weight, float eps, int64_t rows, int64_t n, T* out) {
  each_row(rows, n, [&](int64_t r) {
    rollout_kernels().of<T>().add_rms_norm(x + r * n, update == nullptr ? nullptr : update + r * n,
                                           weight, eps, n, out + r * n);
  });
}

template <typename T>
void silu_rows(const T* gate_up, int64_t rows, int64_t n, T* out) {
  each_row(rows, n, [&](int64_t r) {
    const T* row = gate_up + r * 2 * n;
    rollout_kernels().of<T>().silu_mul(row, row + n, n, out + r * n);
  });
}

}  // namespace

at::Tensor add_rms_norm_(at::Tensor x, const std::optional<at::Tensor>& update,
                         const at::Tensor& weight, double eps) {
  TORCH_CHECK_VALUE(x.dim() == 2, "x: got ", x.dim(), " dimensions, want 2");
  const at::ScalarType dtype = checked_dtype("x", x);
  check_plain("x", x, dtype);
  check_shape("weight", weight, {x.size(1)});
  check_plain("weight", weight, dtype);
  if (update) {
    check_shape("update", *update, x.sizes());
    check_plain("update", *update, dtype);
  }
  at::Tensor out = at::empty(x.sizes(), x.options());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    norm_rows<T>(x.mutable_data_ptr<T>(), update ? update->const_data_ptr<T>() : nullptr,
                 weight.const_data_ptr<T>(), static_cast<float>(eps), x.size(0), x.size(1),
                 out.mutable_data_ptr<T>());
  };
  dtype == at::kFloat ? run(0.f) : run(c10::BFloat16());
  return out;
}

at::Tensor silu_mul(const at::Tensor& gate_up) {
  TORCH_CHECK_VALUE(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "gate_up: got the shape ",
                    gate_up.sizes(), ", want [N, 2 F]");
  const at::ScalarType dtype = checked_dtype("gate_up", gate_up);
  check_plain("gate_up", gate_up, dtype);
  const int64_t rows = gate_up.size(0), n = gate_up.size(1) / 2;
  at::Tensor out = at::empty({rows, n}, gate_up.options());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    silu_rows<T>(gate_up.const_data_ptr<T>(), rows, n, out.mutable_data_ptr<T>());
  };
  dtype == at::kFloat ? run(0.f) : run(c10::BFloat16());
  return out;
}

}  // namespace wavalign::cpu
