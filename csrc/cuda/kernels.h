// Host entry points of the CUDA kernels: one parameter struct and one launch function for each.
//
// Plain C++: pointers are device addresses, `stream` is a cudaStream_t. A launch function enqueues
// its kernels on the current device and returns without waiting. It returns 0, or the cudaError_t
// of a launch that failed; `status_text` describes it. A size of 0 is valid: if there is nothing to
// write, nothing is launched.
#pragma once

#include <cstdint>

namespace wavalign::cuda {

using Status = int;

const char* status_text(Status status);

enum class Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A chunk of logits, one row for each token: z = logits * scale + bias.
struct RowChunk {
  void* logits;  // [rows, vocab], aligned to 16 bytes
  int64_t rows;
  int64_t vocab;
  int64_t pitch;           // row stride in elements, >= vocab; in bytes a multiple of 16
  Dtype dtype;             // kFloat32 or kBFloat16
  const int64_t* targets;  // [rows]
  const float* bias;       // [vocab], aligned to 16 bytes; or null
  float scale;
  int64_t ignore_index;  // the target of a dead row
};

// Statistics of each row, fp32 [rows]; 0 in dead rows, NaN if the target is outside the vocabulary.
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

// dL/dlogits in place: row r of the result starts where row r of the logits starts. Its type is no
// wider than that of the logits.
struct RowGradient {
  RowChunk chunk;
  Dtype out_dtype;
  const float* top;  // the statistics that row_stats wrote, each [rows]
  const float* log_sum;
  const float* logp;
  const float* entropy;
  const float* grad_logp;     // [rows]; null means 0
  const float* grad_entropy;  // the same
  const float* grad_lse;      // the same
};

Status row_gradient(const RowGradient& params, void* stream);

// Per-row inputs of the hybrid loss, each fp32 [rows].
struct TokenTable {
  const float* policy_coef;
  const float* advantage;
  const float* kl_coef;
  const float* anchor_coef;
  const float* old_logp;  // null: on-policy, the ratio is 1
  const float* ref_logp;  // null: no KL term
};

// Statistics, g = dL/dlogp, and dL/dlogits in place. Reads the logits once if a row fits in shared
// memory.
struct HybridRows {
  RowChunk chunk;
  Dtype out_dtype;
  TokenTable table;
  float clip_low;   // bounds of the ratio; -infinity as the lower one
  float clip_high;  // turns clipping off
  RowStatsOut out;
  float* grad_logp;  // [rows]
};

Status hybrid_rows(const HybridRows& params, void* stream);

// Where a row of hybrid_rows stays between its statistics and its gradient.
enum class RowStrategy : int32_t {
  kShared = 0,   // in the shared memory of one block, or of all blocks of a cluster
  kStreamed = 1  // nowhere: the logits are read twice
};

struct RowPlan {
  RowStrategy strategy;
  int32_t cluster;       // number of blocks that share a row: 1, 2, 4 or 8
  int64_t shared_bytes;  // dynamic shared memory of each block
};

// Plans rows of `vocab` logits. `arch` is 90 for sm_90; `shared_limit` is the most shared memory of
// a block, in bytes.
RowPlan plan_hybrid_rows(int arch, int64_t vocab, Dtype dtype, int64_t shared_limit);

// Advantages within each group of rewards, and the sums from which `mix` computes λ. These are,
// over all groups that have a reward: raw λ, reward gate, information gate, largest reward,
// variance, and the number of such groups.
struct GroupStatistics {
  const float* rewards;  // [groups, size]; NaN: missing
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

// λ of the step, from the sums of group_statistics. With several ranks, reduce the sums first.
struct Mix {
  const float* sums;            // [6]
  const float* previous;        // [1]
  const uint8_t* has_previous;  // [1], 0 or 1
  double lambda_max;
  double ema;
  float* rl_weight;  // [1]
  float* parts;      // [5], means of the first five sums
};

Status mix(const Mix& params, void* stream);

// Indices of the live rows in ascending order, then -1. If more rows are live than `capacity`,
// `index` holds the first ones; `count` counts all of them.
struct CompactRows {
  const uint8_t* live;  // [size], 0 or 1
  int64_t size;
  int64_t capacity;
  int64_t* index;   // [capacity]
  int64_t* count;   // [1]
  void* workspace;  // compact_rows_workspace(size) bytes, aligned to 8; need not be initialised
};

int64_t compact_rows_workspace(int64_t size);
Status compact_rows(const CompactRows& params, void* stream);

// Gather: rows[n] = source[index[n]], or 0 if the index is outside the source.
struct GatherRows {
  const void* source;  // [size, width], contiguous
  int64_t size;
  int64_t width;
  int32_t item_bytes;    // size of an element: 1, 2, 4 or 8
  const int64_t* index;  // [count]
  int64_t count;
  void* rows;  // [count, width], contiguous
};

Status gather_rows(const GatherRows& params, void* stream);

// Scatter: target[index[n]] = rows[n], converted to the target's type. Rows whose index is outside
// the target are skipped. An index may occur only once.
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

// gradient *= factor in fp32, rounded to the gradient's type. If the factor is exactly 1, the
// gradient is neither read nor written.
struct Scale {
  void* gradient;  // [size], aligned to its elements
  Dtype dtype;
  int64_t size;
  const float* factor;  // [1]
};

Status scale(const Scale& params, void* stream);

}  // namespace wavalign::cuda
