// Checks of the tensors that the ops receive. Each error gives the value seen and the value wanted.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"

namespace wavalign::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
void check(bool good, const Parts&... parts) {
  if (good) return;
  std::ostringstream message;
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << ']';
  return text.str();
}

inline std::string place_of(const Tensor& tensor) {
  return tensor.is_cpu() ? "on the CPU" : "on device " + std::to_string(tensor.get_device());
}

// "Float [3, 5] on device 0"
inline std::string seen(const Tensor& tensor) {
  std::ostringstream text;
  text << torch::headeronly::toString(tensor.scalar_type()) << ' ' << shape_of(tensor) << ' '
       << place_of(tensor) << (tensor.is_contiguous() ? "" : ", not contiguous");
  return text.str();
}

// Checks for a contiguous vector of this type and length, on the device of `like`.
inline void check_vector(const char* name, const Tensor& tensor, ScalarType type, int64_t size,
                         const Tensor& like) {
  check(tensor.scalar_type() == type && tensor.dim() == 1 && tensor.size(0) == size &&
            tensor.is_contiguous() && tensor.device() == like.device(),
        name, ": got ", seen(tensor), ", want ", torch::headeronly::toString(type), " [", size,
        "] ", place_of(like), ", contiguous");
}

// The data of a checked fp32 vector [size]; null if the tensor is absent.
inline const float* floats(const char* name, const Tensor& tensor, int64_t size,
                           const Tensor& like) {
  check_vector(name, tensor, ScalarType::Float, size, like);
  return tensor.const_data_ptr<float>();
}

inline const float* floats(const char* name, const std::optional<Tensor>& tensor, int64_t size,
                           const Tensor& like) {
  return tensor.has_value() ? floats(name, *tensor, size, like) : nullptr;
}

// The data of a checked vector [size] of bools or bytes; as bytes, both are 0 or 1.
inline const uint8_t* flags(const char* name, const Tensor& tensor, int64_t size,
                            const Tensor& like) {
  const ScalarType type =
      tensor.scalar_type() == ScalarType::Bool ? ScalarType::Bool : ScalarType::Byte;
  check_vector(name, tensor, type, size, like);
  return static_cast<const uint8_t*>(tensor.const_data_ptr());
}

inline void check_matrix(const char* name, const Tensor& tensor) {
  check(tensor.dim() == 2 && tensor.is_contiguous(), name, ": got ", seen(tensor),
        ", want a matrix, contiguous");
}

inline Dtype dtype_of(const char* name, ScalarType type) {
  check(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
        ": got ", torch::headeronly::toString(type), ", want Float, BFloat16 or Half");
  if (type == ScalarType::Float) return Dtype::kFloat32;
  return type == ScalarType::BFloat16 ? Dtype::kBFloat16 : Dtype::kFloat16;
}

// The type of the gradient, which overwrites the logits and so must not be wider.
inline Dtype operand_dtype(ScalarType type, const RowChunk& chunk) {
  const Dtype dtype = dtype_of("out_dtype", type);
  check(dtype != Dtype::kFloat32 || chunk.dtype == Dtype::kFloat32,
        "out_dtype: got Float for BFloat16 logits, want BFloat16 or Half");
  return dtype;
}

inline void check_aligned(const char* name, const Tensor& tensor) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  check(address % 16 == 0, name, ": got memory that starts ", address % 16,
        " bytes beyond a multiple of 16, want 0");
}

// Checks a chunk of logits and describes it for the kernels.
inline RowChunk row_chunk(const Tensor& logits, const Tensor& targets,
                          const std::optional<Tensor>& bias, double scale, int64_t ignore_index) {
  const ScalarType type = logits.scalar_type();
  check(logits.dim() == 2 && (type == ScalarType::Float || type == ScalarType::BFloat16),
        "logits: got ", seen(logits), ", want Float or BFloat16 [R, V]");
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const int64_t vector = 16 / static_cast<int64_t>(logits.element_size());
  check(vocab > 0, "logits: got ", shape_of(logits), ", want V > 0");
  // The stride of a single row may have any value.
  const int64_t pitch = rows > 1 ? logits.stride(0) : (vocab + vector - 1) / vector * vector;
  check((logits.stride(1) == 1 || vocab == 1) && pitch >= vocab && pitch % vector == 0,
        "logits: got strides [", logits.stride(0), ", ", logits.stride(1),
        "], want [P, 1] with P at least ", vocab, " and a multiple of ", vector);
  check_aligned("logits", logits);
  check_vector("targets", targets, ScalarType::Long, rows, logits);
  RowChunk chunk;
  chunk.logits = logits.data_ptr();
  chunk.rows = rows;
  chunk.vocab = vocab;
  chunk.pitch = pitch;
  chunk.dtype = dtype_of("logits", type);
  chunk.targets = targets.const_data_ptr<int64_t>();
  chunk.bias = floats("bias", bias, vocab, logits);
  if (bias.has_value()) check_aligned("bias", *bias);
  chunk.scale = static_cast<float>(scale);
  chunk.ignore_index = ignore_index;
  return chunk;
}

}  // namespace wavalign::cuda
