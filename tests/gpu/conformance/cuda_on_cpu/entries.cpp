// The entries of one kernel source: the build defines its name, and links only that source.
#include "replay/entries.h"

#include "cuda/kernels.h"
#include "cuda/token_math.h"

using namespace wavalign;

namespace {

template <typename Params, cuda::Status (*launch)(const Params&, void*)>
int on_no_stream(void* params) {
  return launch(*static_cast<const Params*>(params), nullptr);
}

#define LAUNCH(function, Params) \
  { #function, sizeof(cuda::Params), on_no_stream < cuda::Params, cuda::function> }

// Functions of the host, with their results in their parameters.
struct PlanQuery {
  int64_t vocab;
  int64_t shared_limit;
  int32_t arch;
  cuda::Dtype dtype;
  cuda::RowPlan plan;
};

#if defined(SOURCE_hybrid_rows)
int plan_hybrid_rows(void* params) {
  PlanQuery& query = *static_cast<PlanQuery*>(params);
  query.plan = cuda::plan_hybrid_rows(query.arch, query.vocab, query.dtype, query.shared_limit);
  return 0;
}
#endif

#if defined(SOURCE_compact_rows)
int workspace(void* params) {
  int64_t& value = *static_cast<int64_t*>(params);
  value = cuda::compact_rows_workspace(value);
  return 0;
}
#endif

// Columns of six terms, logp first, and g as the last one.
struct TokenQuery {
  double* columns;  // [8, count]
  int64_t count;
  double clip_low;
  double clip_high;
  int32_t has_old;
  int32_t has_ref;
};

template <typename T>
int token_gradients(void* params) {
  const TokenQuery& query = *static_cast<TokenQuery*>(params);
  const auto column = [&](int64_t c, int64_t i) { return T(query.columns[c * query.count + i]); };
  for (int64_t i = 0; i < query.count; ++i) {
    const TokenTerms<T> terms = {column(1, i),       column(2, i),      column(3, i),
                                 column(4, i),       column(5, i),      column(6, i),
                                 query.has_old != 0, query.has_ref != 0};
    query.columns[7 * query.count + i] = double(
        token_gradient(column(0, i), terms, ClipBounds<T>{T(query.clip_low), T(query.clip_high)}));
  }
  return 0;
}

}  // namespace

const Entry entries[] = {
#if defined(SOURCE_hybrid_rows)
    LAUNCH(hybrid_rows, HybridRows),
    {"plan_hybrid_rows", sizeof(PlanQuery), plan_hybrid_rows},
#elif defined(SOURCE_row_stats)
    LAUNCH(row_stats, RowStats),
#elif defined(SOURCE_row_gradient)
    LAUNCH(row_gradient, RowGradient),
#elif defined(SOURCE_group_statistics)
    LAUNCH(group_statistics, GroupStatistics),
    LAUNCH(mix, Mix),
#elif defined(SOURCE_compact_rows)
    LAUNCH(compact_rows, CompactRows),
    {"compact_rows_workspace", sizeof(int64_t), workspace},
#elif defined(SOURCE_gather_scatter)
    LAUNCH(gather_rows, GatherRows),
    LAUNCH(scatter_rows, ScatterRows),
#elif defined(SOURCE_scale)
    LAUNCH(scale, Scale),
#endif
    {"token_gradients_in_float", sizeof(TokenQuery), token_gradients<float>},
    {"token_gradients_in_double", sizeof(TokenQuery), token_gradients<double>},
};
const size_t entry_count = sizeof(entries) / sizeof(entries[0]);
