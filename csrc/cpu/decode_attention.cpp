#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "cpu/decode_checks.h"
#include "cpu/rollout.h"
#include "cpu/rollout_kernels.h"

namespace wavalign::cpu {

namespace {

// Products of a token's queries with a cache that are worth a thread of their own.
constexpr int64_t kAttentionGrain = 1 << 15;

struct Sizes {
  int64_t rows, heads, d, kv, caches, capacity, prompts, prefix;
};

Sizes checked_sizes(const DecodeOperands& of) {
  TORCH_CHECK_VALUE(of.qkv.dim() == 2, "qkv: got ", of.qkv.dim(), " dimensions, want 2");
  TORCH_CHECK_VALUE(of.keys.dim() == 4, "keys: got ", of.keys.dim(), " dimensions, want 4");
  TORCH_CHECK_VALUE(of.prefix_keys.dim() == 4, "prefix_keys: got ", of.prefix_keys.dim(),
                    " dimensions, want 4");
  Sizes n{of.qkv.size(0),         0,
          of.keys.size(3),        of.keys.size(1),
          of.keys.size(0),        of.keys.size(2),
          of.prefix_keys.size(0), of.prefix_keys.size(2)};
  TORCH_CHECK_VALUE(n.kv > 0 && n.d > 0 && n.d % 2 == 0, "keys: got ", n.kv, " heads of ", n.d,
                    ", want some of an even size");
  n.heads = of.qkv.size(1) / n.d - 2 * n.kv;
  TORCH_CHECK_VALUE(of.qkv.size(1) % n.d == 0 && n.heads > 0 && n.heads % n.kv == 0, "qkv: got ",
                    of.qkv.size(1), " columns, want (heads + 2 * ", n.kv, ") * ", n.d,
                    " with a multiple of ", n.kv, " heads");
  TORCH_CHECK_VALUE(n.prompts > 0 && n.caches % n.prompts == 0, "keys: got ", n.caches,
                    " rows, want a multiple of ", n.prompts, ", those of prefix_keys");
  TORCH_CHECK_VALUE(of.length >= 0 && of.length < n.capacity, "length: got ", of.length,
                    ", want 0 <= length < ", n.capacity, ", the capacity of keys");
  return n;
}

void check_operands(const DecodeOperands& of, const Sizes& n) {
  const at::ScalarType dtype = checked_dtype("qkv", of.qkv);
  const auto check = [](const char* name, const at::Tensor& tensor, at::IntArrayRef wanted,
                        at::ScalarType type) {
    check_shape(name, tensor, wanted);
    check_plain(name, tensor, type);
  };
  check_plain("qkv", of.qkv, dtype);
  TORCH_CHECK_VALUE(of.cos.dim() == 2, "cos: got ", of.cos.dim(), " dimensions, want 2");
  check("cos", of.cos, {of.cos.size(0), n.d}, at::kFloat);
  check("sin", of.sin, of.cos.sizes(), at::kFloat);
  check("keys", of.keys, {n.caches, n.kv, n.capacity, n.d}, dtype);
  check("values", of.values, of.keys.sizes(), dtype);
  check("prefix_keys", of.prefix_keys, {n.prompts, n.kv, n.prefix, n.d}, dtype);
  check("prefix_values", of.prefix_values, of.prefix_keys.sizes(), dtype);
  if (of.q_norm) check("q_norm", *of.q_norm, {n.d}, dtype);
  if (of.k_norm) check("k_norm", *of.k_norm, {n.d}, dtype);
  check_shape("positions", of.positions, {n.rows});
  check_shape("slots", of.slots, {n.rows});
  check_shape("prefix_start", of.prefix_start, {n.prompts});
  check_indices("positions", of.positions, of.cos.size(0));
  check_indices("slots", of.slots, n.caches);
  check_indices("prefix_start", of.prefix_start, n.prefix + 1);  // at its end: nothing but padding
}

// The heads of one row that share their keys and values.
template <typename T>
class Row {
 public:
  Row(const DecodeOperands& of, const Sizes& n) : of_(of), n_(n), shared_(n.heads / n.kv) {
    queries_.resize(shared_ * padded(n.d));
    scores_.resize(shared_ * padded(n.prefix + of.length + 1));
    key_.resize(n.d);
  }

  void attend(int64_t r, int64_t h, T* out) {
    const DecodeKernels<T>& kernels = rollout_kernels().of<T>();
    const int64_t slot = of_.slots.const_data_ptr<int64_t>()[r];
    const int64_t position = of_.positions.const_data_ptr<int64_t>()[r] * n_.d;
    const float *cos = of_.cos.const_data_ptr<float>() + position,
                *sin = of_.sin.const_data_ptr<float>() + position;
    const auto rotation = [&](const std::optional<at::Tensor>& norm) {
      return Rotation<T>{cos, sin, norm ? norm->const_data_ptr<T>() : nullptr,
                         static_cast<float>(of_.eps), n_.d};
    };
    const T* row = of_.qkv.const_data_ptr<T>() + r * (n_.heads + 2 * n_.kv) * n_.d;
    const int64_t cache = (slot * n_.kv + h) * n_.capacity * n_.d;
    T *keys = of_.keys.template mutable_data_ptr<T>() + cache,
      *values = of_.values.template mutable_data_ptr<T>() + cache;
    kernels.rotate(row + (n_.heads + h) * n_.d, rotation(of_.k_norm), 1.f, key_.data());
    kernels.round(key_.data(), n_.d, keys + of_.length * n_.d);
    std::copy_n(row + (n_.heads + n_.kv + h) * n_.d, n_.d, values + of_.length * n_.d);
    for (int64_t i = 0; i < shared_; ++i) {
      kernels.rotate(row + (h * shared_ + i) * n_.d, rotation(of_.q_norm),
                     static_cast<float>(of_.scale), queries_.data() + i * padded(n_.d));
    }
    const int64_t prompt = slot / (n_.caches / n_.prompts);
    const int64_t start = of_.prefix_start.const_data_ptr<int64_t>()[prompt];
    const int64_t prefix = ((prompt * n_.kv + h) * n_.prefix + start) * n_.d;
    const CacheSegment<T> segments[2] = {
        {of_.prefix_keys.const_data_ptr<T>() + prefix,
         of_.prefix_values.const_data_ptr<T>() + prefix, n_.prefix - start},
        {keys, values, of_.length + 1}};
    kernels.attend(segments, shared_, n_.d, queries_.data(), scores_.data());
    for (int64_t i = 0; i < shared_; ++i) {
      kernels.round(queries_.data() + i * padded(n_.d), n_.d,
                    out + (r * n_.heads + h * shared_ + i) * n_.d);
    }
  }

 private:
  const DecodeOperands& of_;
  const Sizes& n_;
  const int64_t shared_;
  std::vector<float> queries_, scores_, key_;
};

template <typename T>
void run(const DecodeOperands& of, const Sizes& n, T* out) {
  const int64_t work = (n.prefix + of.length + 1) * n.d * (n.heads / n.kv);
  at::parallel_for(0, n.rows * n.kv, std::max<int64_t>(1, kAttentionGrain / work),
                   [&](int64_t begin, int64_t end) {
                     Row<T> row(of, n);
                     for (int64_t task = begin; task < end; ++task) {
                       row.attend(task / n.kv, task % n.kv, out);
                     }
                   });
}

}  // namespace

at::Tensor decode_attention(const DecodeOperands& of) {
  const Sizes n = checked_sizes(of);
  check_operands(of, n);
  at::Tensor out = at::empty({n.rows, n.heads * n.d}, of.qkv.options());
  if (of.qkv.scalar_type() == at::kFloat) {
    run<float>(of, n, out.mutable_data_ptr<float>());
  } else {
    run<c10::BFloat16>(of, n, out.mutable_data_ptr<c10::BFloat16>());
  }
  return out;
}

}  // namespace wavalign::cpu
