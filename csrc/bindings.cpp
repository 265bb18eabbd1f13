// The schemas of all ops and the Python module that registers them when it is imported.
#include <Python.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "cpu/buffers.h"
#include "cpu/gemm.h"
#include "cpu/linear_logprob.h"
#include "cpu/rollout.h"
#include "cpu/row_kernels.h"

TORCH_LIBRARY(wavalign_fast, m) {
  // The log-probability of the target, the entropy and the log-sum-exp, each [T] in fp32, of the
  // logits z = hidden weight^T / temperature + bias; 0 in rows whose target is ignore_index.
  // With a softcap c, z = c tanh(x / c) / temperature + bias for x = hidden weight^T, or if
  // `bias_inside` z = c tanh((x + bias) / c) / temperature; the store must then be empty.
  // `norm` [2, T] is lse in two parts, max z and log sum exp(z - max z). If the max is large, their
  // fp32 sum rounds the second part away, and the gradient with it.
  // `store` keeps at most `store_bytes` of probabilities for the backward pass.
  // `skipped` marks the vocabulary tiles that the gradient of a row skips, because their total
  // probability mass is at most `skip_tolerance`.
  // `prob_buffer` [V, H] holds the probabilities that fit into it until the backward pass turns it
  // into the gradient of weight. It is [0] if it is not wanted or another one is in use.
  m.def(
      "linear_logprob(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, "
      "float temperature, int ignore_index, SymInt store_bytes, float skip_tolerance, "
      "bool want_prob_buffer, float? softcap=None, bool bias_inside=False) -> (Tensor logp, Tensor "
      "entropy, Tensor lse, Tensor norm, "
      "Tensor store, Tensor skipped, Tensor prob_buffer)");
  // The gradients of hidden, weight and bias; those that are not needed are empty. That of hidden
  // is in fp32 if `wide_hidden`, else in the type of hidden.
  m.def(
      "linear_logprob_backward(Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse, "
      "Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float temperature, "
      "int ignore_index, Tensor logp, Tensor entropy, Tensor norm, Tensor store, Tensor skipped, "
      "Tensor prob_buffer, bool need_hidden, bool need_weight, bool need_bias, "
      "bool wide_hidden=False, float? softcap=None, bool bias_inside=False) -> "
      "(Tensor, Tensor, Tensor)");
  // The gradients of hidden and bias; writes the gradient of weight over the probability buffer.
  m.def(
      "linear_logprob_backward_(Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse, "
      "Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float temperature, "
      "int ignore_index, Tensor logp, Tensor entropy, Tensor norm, Tensor store, "
      "Tensor skipped, Tensor(a!) prob_buffer, bool need_hidden, bool need_bias, "
      "bool wide_hidden=False) -> (Tensor, Tensor)");
  // Attention [N, heads d] of one new token in each of N rows. Queries and keys are normalised over
  // d where there are weights for it, and rotated to the token's position. A row attends to the
  // prompt's keys and values from column prefix_start on, to the `length` sampled tokens before it
  // and to itself. Its key and value are written to column `length` of row slots[n] of the cache,
  // which no other row may name. Cache rows are grouped by prompt: row s is of prompt s * B / S.
  m.def(
      "decode_attention(Tensor qkv, Tensor positions, Tensor cos, Tensor sin, Tensor? q_norm, "
      "Tensor? k_norm, float eps, Tensor(a!) keys, Tensor(b!) values, Tensor prefix_keys, "
      "Tensor prefix_values, Tensor prefix_start, Tensor slots, int length, float scale) -> "
      "Tensor");
  // x += update, and returns x / rms(x) * weight, each [N, D].
  m.def("add_rms_norm_(Tensor(a!) x, Tensor? update, Tensor weight, float eps) -> Tensor");
  // x W^T + bias of a few rows x [N, K] in fp32 and of each weight [F, K], side by side.
  m.def("decode_linear(Tensor x, Tensor[] weights, Tensor?[] biases) -> Tensor");
  // silu(gate) * up [N, F] of gate and up side by side, [N, 2 F].
  m.def("silu_mul(Tensor gate_up) -> Tensor");
  // The ids [N] at which the CDF of softmax(logits / temperature) first exceeds the uniform numbers
  // [N], float64 in [0, 1), and their log-probs [N]. The id is -1 in a row with NaN or inf, or with
  // nothing above -inf.
  m.def(
      "choose_tokens(Tensor logits, Tensor uniform, float temperature) -> (Tensor ids, "
      "Tensor logps)");
}

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
namespace cpu = wavalign::cpu;

// torch passes the arguments of a schema one by one. These functions pack them into structs.

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_logprob(
    const Tensor& hidden, const Tensor& weight, const Tensor& targets, const OptionalTensor& bias,
    double temperature, int64_t ignore_index, int64_t store_bytes, double skip_tolerance,
    bool want_prob_buffer, std::optional<double> softcap, bool bias_inside) {
  const cpu::ForwardResults results = cpu::linear_logprob(
      {hidden, weight, targets, bias, temperature, ignore_index, softcap.value_or(0), bias_inside},
      {store_bytes, skip_tolerance, want_prob_buffer});
  return {results.logp,  results.entropy, results.lse,        results.norm,
          results.store, results.skipped, results.prob_buffer};
}

std::tuple<Tensor, Tensor, Tensor> linear_logprob_backward(
    const OptionalTensor& grad_logp, const OptionalTensor& grad_entropy,
    const OptionalTensor& grad_lse, const Tensor& hidden, const Tensor& weight,
    const Tensor& targets, const OptionalTensor& bias, double temperature, int64_t ignore_index,
    const Tensor& logp, const Tensor& entropy, const Tensor& norm, const Tensor& store,
    const Tensor& skipped, const Tensor& prob_buffer, bool need_hidden, bool need_weight,
    bool need_bias, bool wide_hidden, std::optional<double> softcap, bool bias_inside) {
  const cpu::OperandGrads grads = cpu::linear_logprob_backward(
      {{grad_logp, grad_entropy, grad_lse},
       {hidden, weight, targets, bias, temperature, ignore_index, softcap.value_or(0), bias_inside},
       {logp, entropy, norm, store, skipped, prob_buffer}},
      {need_hidden, need_weight, need_bias, wide_hidden});
  return {grads.hidden, grads.weight, grads.bias};
}

std::tuple<Tensor, Tensor> linear_logprob_backward_(
    const OptionalTensor& grad_logp, const OptionalTensor& grad_entropy,
    const OptionalTensor& grad_lse, const Tensor& hidden, const Tensor& weight,
    const Tensor& targets, const OptionalTensor& bias, double temperature, int64_t ignore_index,
    const Tensor& logp, const Tensor& entropy, const Tensor& norm, const Tensor& store,
    const Tensor& skipped, Tensor prob_buffer, bool need_hidden, bool need_bias, bool wide_hidden) {
  const cpu::OperandGrads grads =
      cpu::linear_logprob_backward_({{grad_logp, grad_entropy, grad_lse},
                                     {hidden, weight, targets, bias, temperature, ignore_index},
                                     {logp, entropy, norm, store, skipped, prob_buffer}},
                                    {need_hidden, /*weight=*/true, need_bias, wide_hidden});
  return {grads.hidden, grads.bias};
}

Tensor decode_attention(const Tensor& qkv, const Tensor& positions, const Tensor& cos,
                        const Tensor& sin, const OptionalTensor& q_norm,
                        const OptionalTensor& k_norm, double eps, Tensor keys, Tensor values,
                        const Tensor& prefix_keys, const Tensor& prefix_values,
                        const Tensor& prefix_start, const Tensor& slots, int64_t length,
                        double scale) {
  return cpu::decode_attention({qkv, positions, cos, sin, q_norm, k_norm, eps, keys, values,
                                prefix_keys, prefix_values, prefix_start, slots, length, scale});
}

Tensor decode_linear(const Tensor& x, at::TensorList weights,
                     const c10::List<OptionalTensor>& biases) {
  return cpu::decode_linear(x, weights.vec(), biases);
}

}  // namespace

TORCH_LIBRARY_IMPL(wavalign_fast, CPU, m) {
  m.impl("linear_logprob", &linear_logprob);
  m.impl("linear_logprob_backward", &linear_logprob_backward);
  m.impl("linear_logprob_backward_", &linear_logprob_backward_);
  m.impl("decode_attention", &decode_attention);
  m.impl("add_rms_norm_", &cpu::add_rms_norm_);
  m.impl("decode_linear", &decode_linear);
  m.impl("silu_mul", &cpu::silu_mul);
  m.impl("choose_tokens", &cpu::choose_tokens);
}

namespace {

// What the command `doctor` reports about this build and this processor.
PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s, s:s, s:O}", "torch", WAVALIGN_TORCH_VERSION, "isa",
                       cpu::row_kernels().isa, "brgemm_bf16",
                       cpu::brgemm_available(at::kBFloat16) ? Py_True : Py_False);
}

PyObject* release_cached_buffers(PyObject*, PyObject*) {
  return PyLong_FromLongLong(cpu::release_cached_buffers());
}

PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS,
                          "Torch version, ISA and whether brgemm multiplies bf16."},
                         {"release_cached_buffers", release_cached_buffers, METH_NOARGS,
                          "Unmaps all cached buffers and returns their bytes."},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
