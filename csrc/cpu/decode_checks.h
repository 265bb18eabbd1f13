// Checks of the operands of a decoded token's ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace wavalign::cpu {

inline void check_shape(const char* name, const at::Tensor& tensor, at::IntArrayRef wanted) {
  TORCH_CHECK_VALUE(tensor.sizes() == wanted, name, ": got the shape ", tensor.sizes(), ", want ",
                    wanted);
}

// A contiguous tensor of this type.
inline void check_plain(const char* name, const at::Tensor& tensor, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, ": got ", tensor.scalar_type(), ", want ",
                   dtype);
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, ": got the strides ", tensor.strides(),
                    ", want contiguous ones");
}

inline at::ScalarType checked_dtype(const char* name, const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16, name, ": got ", dtype,
                   ", want float32 or bfloat16");
  return dtype;
}

inline void check_indices(const char* name, const at::Tensor& tensor, int64_t limit) {
  check_plain(name, tensor, at::kLong);
  const int64_t* values = tensor.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    TORCH_CHECK_INDEX(values[i] >= 0 && values[i] < limit, name, "[", i, "]: got ", values[i],
                      ", want 0 <= value < ", limit);
  }
}

}  // namespace wavalign::cpu
