// Ops of one decoded token. bindings.cpp has their schemas and documents them.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace wavalign::cpu {

struct DecodeOperands {
  at::Tensor qkv;                            // [N, (heads + 2 kv) d]
  at::Tensor positions, cos, sin;            // [N]; [length, d] in fp32
  std::optional<at::Tensor> q_norm, k_norm;  // [d]
  double eps;
  at::Tensor keys, values;                // [S, kv, capacity, d], of earlier sampled tokens
  at::Tensor prefix_keys, prefix_values;  // [B, kv, P, d]
  at::Tensor prefix_start;                // [B], first column that is no padding
  at::Tensor slots;                       // [N], row of `keys`
  int64_t length;                         // sampled tokens so far
  double scale;
};

at::Tensor decode_attention(const DecodeOperands& of);

at::Tensor add_rms_norm_(at::Tensor x, const std::optional<at::Tensor>& update,
                         const at::Tensor& weight, double eps);

at::Tensor decode_linear(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                         const c10::List<std::optional<at::Tensor>>& biases);

at::Tensor silu_mul(const at::Tensor& gate_up);

std::tuple<at::Tensor, at::Tensor> choose_tokens(const at::Tensor& logits,
                                                 const at::Tensor& uniform, double temperature);

}  // namespace wavalign::cpu
