// The CUDA kernels as the host sees them: one parameter struct and one launch function each.
//
// Plain C++: pointers are device addresses, `stream` is a cudaStream_t. A launch function enqueues
// its kernels on the current device and returns without waiting. It returns 0, or the cudaError_t
// of the refused launch: `status_text` says what that means. Sizes of 0 are no error; nothing is
// launched where there is nothing to write.
#pragma once

#include <cstdint>

namespace wavalign::cuda {

using Status = int;

const char* status_text(Status status);

enum class Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A chunk of logits and what its rows mean: z = logits * scale + bias.
struct RowChunk {
  void* logits;  // [rows, vocab], starts on 16 bytes
  int64_t rows;
  int64_t vocab;
  int64_t pitch;           // elements between rows, >= vocab, a whole number of 16 bytes
  Dtype dtype;             // kFloat32 or kBFloat16
  const int64_t* targets;  // [rows]
  const float* bias;       // [vocab], starts on 16 bytes; or null
  float scale;
  int64_t ignore_index;  // targets of dead rows
};

// Each fp32 [rows]; 0 in dead rows, NaN where the target is not an id.
struct RowStatsOut {
  float* top;
  float* log_sum;
  float* logp;
  float* entropy;
};

struct RowStats {
  RowChunk chunk;
  RowStatsOut out;
};

Status row_stats(const RowStats& params, void* stream);

// dL/dlogits in place: row r of the result starts where row r of the logits does, in a type no
// wider than theirs.
struct RowGradient {
  RowChunk chunk;
  Dtype out_dtype;
  const float* top;  // statistics of the same rows, each [rows]
  const float* log_sum;
  const float* logp;
  const float* entropy;
  const float* grad_logp;     // [rows], or null: 0
  const float* grad_entropy;  // [rows], or null
  const float* grad_lse;      // [rows], or null
};

Status row_gradient(const RowGradient& params, void* stream);

// What the hybrid loss knows of each row, each fp32 [rows].
struct TokenTable {
  const float* policy_coef;
  const float* advantage;
  const float* kl_coef;
  const float* anchor_coef;
  const float* old_logp;  // null: the policy itself, ratio 1
  const float* ref_logp;  // null: no KL
};

// Statistics, g = dL/dlogp and dL/dlogits in place, reading the logits once where they fit.
struct HybridRows {
  RowChunk chunk;
  Dtype out_dtype;
  TokenTable table;
  float clip_low;   // bounds of the ratio; -infinity and
  float clip_high;  // +infinity: no clipping
  RowStatsOut out;
  float* grad_logp;  // [rows]
};

Status hybrid_rows(const HybridRows& params, void* stream);

// How a hybrid row is held between its statistics and its gradient.
enum class RowStrategy : int32_t {
  kShared = 0,   // in the shared memory of one block, or spread over those of a cluster
  kStreamed = 1  // not: the logits are read twice
};

struct RowPlan {
  RowStrategy strategy;
  int32_t cluster;       // blocks that share a row: 1, 2, 4 or 8
  int64_t shared_bytes;  // dynamic shared memory of each block
};

// The plan for rows of this size on an `arch` (90 for sm_90) whose blocks may have `shared_limit`
// bytes of shared memory.
RowPlan plan_hybrid_rows(int arch, int64_t vocab, Dtype dtype, int64_t shared_limit);

// Advantages within each group of rewards, and the sums that the mixture λ is made of:
// λ_raw, reward gate, information gate, largest reward, variance, each over the groups that have a
// reward, and their number.
struct GroupStatistics {
  const float* rewards;  // [groups, size]; NaN is missing
  int64_t groups;
  int64_t size;
  double eps;
  bool sample_std;  // divide by size - 1
  double lambda_max;
  double slope;
  double threshold;
  double variance_scale;
  float* advantages;  // [groups, size]
  float* sums;        // [6]
};

Status group_statistics(const GroupStatistics& params, void* stream);

// λ of the step from the sums, of all ranks where they were reduced.
struct Mix {
  const float* sums;            // [6]
  const float* previous;        // [1]
  const uint8_t* has_previous;  // [1], 0 or 1
  double lambda_max;
  double ema;
  float* rl_weight;  // [1]
  float* parts;      // [5], the means of the first five sums
};

Status mix(const Mix& params, void* stream);

// Indices of the live rows in ascending order, -1 beyond them. Where more rows are live than the
// capacity holds, the first ones stand in `index`; `count` is of all.
struct CompactRows {
  const uint8_t* live;  // [size], 0 or 1
  int64_t size;
  int64_t capacity;
  int64_t* index;   // [capacity]
  int64_t* count;   // [1]
  void* workspace;  // compact_rows_workspace(size) bytes on 8 bytes, in any state
};

int64_t compact_rows_workspace(int64_t size);
Status compact_rows(const CompactRows& params, void* stream);

// rows[n] = source[index[n]], 0 where the index is outside the source.
struct GatherRows {
  const void* source;  // [size, width], contiguous
  int64_t size;
  int64_t width;
  int32_t item_bytes;    // of one element: 1, 2, 4 or 8
  const int64_t* index;  // [count]
  int64_t count;
  void* rows;  // [count, width], contiguous
};

Status gather_rows(const GatherRows& params, void* stream);

// target[index[n]] = rows[n] in the target's type; rows whose index is outside it are left out.
// No index may come twice.
struct ScatterRows {
  const void* rows;  // [count, width], contiguous
  Dtype rows_dtype;
  const int64_t* index;  // [count]
  int64_t count;
  int64_t width;
  void* target;  // [size, width], contiguous
  Dtype target_dtype;
  int64_t size;
};

Status scatter_rows(const ScatterRows& params, void* stream);

// gradient *= factor in fp32, rounded to the gradient's type. Where the factor is exactly 1, the
// gradient is neither read nor written.
struct Scale {
  void* gradient;  // [size], on its items
  Dtype dtype;
  int64_t size;
  const float* factor;  // [1]
};

Status scale(const Scale& params, void* stream);

}  // namespace wavalign::cuda
