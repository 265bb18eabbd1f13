// Torch bindings of the CUDA kernels: schemas, checks, device, stream. The module
// wavalign_fast._C_cuda uses only torch's stable ABI, so one build loads in every torch from 2.10
// on.
#include <Python.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda/kernels.h"
#include "cuda/tensor_checks.h"

// The tests build this source a second time, for kernels that run on the CPU.
#ifndef WAVALIGN_NAMESPACE
#define WAVALIGN_NAMESPACE wavalign_fast
#define WAVALIGN_DISPATCH_KEY CUDA
#endif

// A function of the C shim of libtorch_cuda. The stable ABI has its own one only from 2.13 on. It
// is weak because a torch without CUDA does not have it; there is then no tensor to launch for.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace wavalign::cuda {
namespace {

namespace accelerator = torch::stable::accelerator;
using OptionalTensor = std::optional<Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The dispatcher also calls an op if an argument other than the first is on the device.
int32_t index_of_device(const Tensor& tensor) {
  check(tensor.device().type() == torch::headeronly::DeviceType::WAVALIGN_DISPATCH_KEY,
        "the first argument: got ", seen(tensor), ", want it on the device of the others");
  return tensor.get_device_index();
}

void* current_stream(int32_t device) {
  check(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA streams");
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "device ", device,
        " has no current stream");
  return stream;
}

// Makes the tensor's device current for a scope, and launches on the current stream of that device.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor)
      : guard_(index_of_device(tensor)), stream_(current_stream(tensor.get_device_index())) {}

  template <typename Params>
  void launch(const char* name, Status (*function)(const Params&, void*), const Params& params) {
    const Status status = function(params, stream_);
    check(status == 0, name, ": the launch failed: ", status_text(status));
  }

 private:
  accelerator::DeviceGuard guard_;
  void* stream_;
};

Tensor new_vector(const Tensor& like, int64_t size, ScalarType type = ScalarType::Float) {
  return torch::stable::new_empty(like, {size}, type);
}

struct RowStatsTensors {
  Tensor logp, entropy, top, log_sum;

  RowStatsTensors(const Tensor& like, int64_t rows)
      : logp(new_vector(like, rows)),
        entropy(new_vector(like, rows)),
        top(new_vector(like, rows)),
        log_sum(new_vector(like, rows)) {}

  RowStatsOut out() const {
    RowStatsOut out;
    out.top = top.mutable_data_ptr<float>();
    out.log_sum = log_sum.mutable_data_ptr<float>();
    out.logp = logp.mutable_data_ptr<float>();
    out.entropy = entropy.mutable_data_ptr<float>();
    return out;
  }
};

FourTensors row_stats_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& bias,
                         double scale, int64_t ignore_index) {
  OnDeviceOf device(logits);
  RowStats params;
  params.chunk = row_chunk(logits, targets, bias, scale, ignore_index);
  const RowStatsTensors stats(logits, params.chunk.rows);
  params.out = stats.out();
  device.launch("row_stats", row_stats, params);
  return {stats.logp, stats.entropy, stats.top, stats.log_sum};
}

void row_gradient_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& bias,
                     const Tensor& logp, const Tensor& entropy, const Tensor& top,
                     const Tensor& log_sum, const OptionalTensor& grad_logp,
                     const OptionalTensor& grad_entropy, const OptionalTensor& grad_lse,
                     double scale, int64_t ignore_index, ScalarType out_dtype) {
  OnDeviceOf device(logits);
  RowGradient params;
  params.chunk = row_chunk(logits, targets, bias, scale, ignore_index);
  const int64_t rows = params.chunk.rows;
  params.out_dtype = operand_dtype(out_dtype, params.chunk);
  params.top = floats("top", top, rows, logits);
  params.log_sum = floats("log_sum", log_sum, rows, logits);
  params.logp = floats("logp", logp, rows, logits);
  params.entropy = floats("entropy", entropy, rows, logits);
  params.grad_logp = floats("grad_logp", grad_logp, rows, logits);
  params.grad_entropy = floats("grad_entropy", grad_entropy, rows, logits);
  params.grad_lse = floats("grad_lse", grad_lse, rows, logits);
  device.launch("row_gradient_", row_gradient, params);
}

FiveTensors hybrid_rows_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& bias,
                           const Tensor& policy_coef, const Tensor& advantage,
                           const Tensor& kl_coef, const Tensor& anchor_coef,
                           const OptionalTensor& old_logp, const OptionalTensor& ref_logp,
                           double scale, int64_t ignore_index, double clip_low, double clip_high,
                           ScalarType out_dtype) {
  OnDeviceOf device(logits);
  HybridRows params;
  params.chunk = row_chunk(logits, targets, bias, scale, ignore_index);
  const int64_t rows = params.chunk.rows;
  params.out_dtype = operand_dtype(out_dtype, params.chunk);
  params.table.policy_coef = floats("policy_coef", policy_coef, rows, logits);
  params.table.advantage = floats("advantage", advantage, rows, logits);
  params.table.kl_coef = floats("kl_coef", kl_coef, rows, logits);
  params.table.anchor_coef = floats("anchor_coef", anchor_coef, rows, logits);
  params.table.old_logp = floats("old_logp", old_logp, rows, logits);
  params.table.ref_logp = floats("ref_logp", ref_logp, rows, logits);
  params.clip_low = static_cast<float>(clip_low);
  params.clip_high = static_cast<float>(clip_high);
  const RowStatsTensors stats(logits, rows);
  const Tensor grad_logp = new_vector(logits, rows);
  params.out = stats.out();
  params.grad_logp = grad_logp.mutable_data_ptr<float>();
  device.launch("hybrid_rows_", hybrid_rows, params);
  return {stats.logp, stats.entropy, stats.top, stats.log_sum, grad_logp};
}

std::tuple<Tensor, Tensor> group_statistics_op(const Tensor& rewards, double eps, bool sample_std,
                                               double lambda_max, double slope, double threshold,
                                               double variance_scale) {
  check_matrix("rewards", rewards);
  check(rewards.scalar_type() == ScalarType::Float, "rewards: got ", seen(rewards), ", want Float");
  OnDeviceOf device(rewards);
  const Tensor advantages = torch::stable::empty_like(rewards);
  const Tensor sums = new_vector(rewards, 6);
  GroupStatistics params;
  params.rewards = rewards.const_data_ptr<float>();
  params.groups = rewards.size(0);
  params.size = rewards.size(1);
  params.eps = eps;
  params.sample_std = sample_std;
  params.lambda_max = lambda_max;
  params.slope = slope;
  params.threshold = threshold;
  params.variance_scale = variance_scale;
  params.advantages = advantages.mutable_data_ptr<float>();
  params.sums = sums.mutable_data_ptr<float>();
  device.launch("group_statistics", group_statistics, params);
  return {advantages, sums};
}

std::tuple<Tensor, Tensor> mix_op(const Tensor& sums, const Tensor& previous,
                                  const Tensor& has_previous, double lambda_max, double ema) {
  OnDeviceOf device(sums);
  const Tensor rl_weight = new_vector(sums, 1);
  const Tensor parts = new_vector(sums, 5);
  Mix params;
  params.sums = floats("sums", sums, 6, sums);
  params.previous = floats("previous", previous, 1, sums);
  params.has_previous = flags("has_previous", has_previous, 1, sums);
  params.lambda_max = lambda_max;
  params.ema = ema;
  params.rl_weight = rl_weight.mutable_data_ptr<float>();
  params.parts = parts.mutable_data_ptr<float>();
  device.launch("mix", mix, params);
  return {rl_weight, parts};
}

std::tuple<Tensor, Tensor> compact_rows_op(const Tensor& live, int64_t capacity) {
  check(live.dim() == 1, "live: got ", seen(live), ", want a vector");
  check(capacity >= 0, "capacity: got ", capacity, ", want >= 0");
  OnDeviceOf device(live);
  const int64_t size = live.size(0);
  const Tensor index = new_vector(live, capacity, ScalarType::Long);
  const Tensor count = new_vector(live, 1, ScalarType::Long);
  const Tensor workspace = new_vector(live, compact_rows_workspace(size), ScalarType::Byte);
  CompactRows params;
  params.live = flags("live", live, size, live);
  params.size = size;
  params.capacity = capacity;
  params.index = index.mutable_data_ptr<int64_t>();
  params.count = count.mutable_data_ptr<int64_t>();
  params.workspace = workspace.data_ptr();
  device.launch("compact_rows", compact_rows, params);
  return {index, count};
}

Tensor gather_rows_op(const Tensor& source, const Tensor& index) {
  check_matrix("source", source);
  check(source.element_size() <= 8, "source: got ", seen(source), ", want at most 8 bytes each");
  check(index.dim() == 1, "index: got ", seen(index), ", want a vector");
  check_vector("index", index, ScalarType::Long, index.size(0), source);
  OnDeviceOf device(source);
  const Tensor rows = torch::stable::new_empty(source, {index.size(0), source.size(1)});
  GatherRows params;
  params.source = source.const_data_ptr();
  params.size = source.size(0);
  params.width = source.size(1);
  params.item_bytes = static_cast<int32_t>(source.element_size());
  params.index = index.const_data_ptr<int64_t>();
  params.count = index.size(0);
  params.rows = rows.data_ptr();
  device.launch("gather_rows", gather_rows, params);
  return rows;
}

void scatter_rows_op(const Tensor& rows, const Tensor& index, const Tensor& target) {
  check_matrix("rows", rows);
  check_matrix("target", target);
  check(target.size(1) == rows.size(1) && target.device() == rows.device(), "target: got ",
        seen(target), ", want [T, ", rows.size(1), "] where the rows are, ", seen(rows));
  check_vector("index", index, ScalarType::Long, rows.size(0), rows);
  OnDeviceOf device(rows);
  ScatterRows params;
  params.rows = rows.const_data_ptr();
  params.rows_dtype = dtype_of("rows", rows.scalar_type());
  params.index = index.const_data_ptr<int64_t>();
  params.count = rows.size(0);
  params.width = rows.size(1);
  params.target = target.data_ptr();
  params.target_dtype = dtype_of("target", target.scalar_type());
  params.size = target.size(0);
  device.launch("scatter_rows_", scatter_rows, params);
}

void scale_op(const Tensor& gradient, const Tensor& factor) {
  check(gradient.is_contiguous(), "gradient: got ", seen(gradient), ", want it contiguous");
  check(factor.scalar_type() == ScalarType::Float && factor.dim() == 0 &&
            factor.device() == gradient.device(),
        "factor: got ", seen(factor), ", want Float [] ", place_of(gradient));
  OnDeviceOf device(gradient);
  Scale params;
  params.gradient = gradient.data_ptr();
  params.dtype = dtype_of("gradient", gradient.scalar_type());
  params.size = gradient.numel();
  params.factor = factor.const_data_ptr<float>();
  device.launch("scale_", scale, params);
}

}  // namespace
}  // namespace wavalign::cuda

// cuda/kernels.h says what each op computes. An op whose name ends in _ overwrites its logits,
// target or gradient; a result never shares memory with an argument.
STABLE_TORCH_LIBRARY_FRAGMENT(WAVALIGN_NAMESPACE, m) {
  m.def(
      "row_stats(Tensor logits, Tensor targets, Tensor? bias, float scale, int ignore_index) -> "
      "(Tensor logp, Tensor entropy, Tensor top, Tensor log_sum)");
  m.def(
      "row_gradient_(Tensor(a!) logits, Tensor targets, Tensor? bias, Tensor logp, Tensor entropy, "
      "Tensor top, Tensor log_sum, Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse, "
      "float scale, int ignore_index, ScalarType out_dtype) -> ()");
  m.def(
      "hybrid_rows_(Tensor(a!) logits, Tensor targets, Tensor? bias, Tensor policy_coef, "
      "Tensor advantage, Tensor kl_coef, Tensor anchor_coef, Tensor? old_logp, Tensor? ref_logp, "
      "float scale, int ignore_index, float clip_low, float clip_high, ScalarType out_dtype) -> "
      "(Tensor logp, Tensor entropy, Tensor top, Tensor log_sum, Tensor grad_logp)");
  m.def(
      "group_statistics(Tensor rewards, float eps, bool sample_std, float lambda_max, float slope, "
      "float threshold, float variance_scale) -> (Tensor advantages, Tensor sums)");
  m.def(
      "mix(Tensor sums, Tensor previous, Tensor has_previous, float lambda_max, float ema) -> "
      "(Tensor rl_weight, Tensor parts)");
  m.def("compact_rows(Tensor live, int capacity) -> (Tensor index, Tensor count)");
  m.def("gather_rows(Tensor source, Tensor index) -> Tensor");
  m.def("scatter_rows_(Tensor rows, Tensor index, Tensor(a!) target) -> ()");
  m.def("scale_(Tensor(a!) gradient, Tensor factor) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(WAVALIGN_NAMESPACE, WAVALIGN_DISPATCH_KEY, m) {
  m.impl("row_stats", TORCH_BOX(&wavalign::cuda::row_stats_op));
  m.impl("row_gradient_", TORCH_BOX(&wavalign::cuda::row_gradient_op));
  m.impl("hybrid_rows_", TORCH_BOX(&wavalign::cuda::hybrid_rows_op));
  m.impl("group_statistics", TORCH_BOX(&wavalign::cuda::group_statistics_op));
  m.impl("mix", TORCH_BOX(&wavalign::cuda::mix_op));
  m.impl("compact_rows", TORCH_BOX(&wavalign::cuda::compact_rows_op));
  m.impl("gather_rows", TORCH_BOX(&wavalign::cuda::gather_rows_op));
  m.impl("scatter_rows_", TORCH_BOX(&wavalign::cuda::scatter_rows_op));
  m.impl("scale_", TORCH_BOX(&wavalign::cuda::scale_op));
}

namespace {

// What `wavalign-fast doctor` reports about this build.
PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s, s:s}", "cuda", WAVALIGN_CUDA_RELEASE, "archs", WAVALIGN_CUDA_ARCHS);
}

PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS, "CUDA release, architectures."},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module); }
