// The bodies of the kernels of decode_linear, for rollout_kernels_impl.h.
//
// A BLAS packs the weights at each call, which pays for many rows only. Here the rows are packed,
// with their numbers side by side in vectors. Each weight is read once, where it is, and multiplied
// by all rows.
#include <algorithm>

#include "cpu/isa/vectors.h"
#include "cpu/rollout_kernels.h"

namespace wavalign::cpu {
namespace CPU_CAPABILITY {
namespace {

// Vectors of rows in a panel. With kTileOutputs weights their products fill the registers.
constexpr int64_t kPanelVectors = 2;
#if defined(CPU_CAPABILITY_AVX512)
constexpr int64_t kTileOutputs = 12;
#else
constexpr int64_t kTileOutputs = 6;
#endif
static_assert(kLinearChunk % kTileOutputs == 0);
constexpr int64_t kPanel = kPanelVectors * kWidth;
// Products that are added one by one before their sum is added to those before it.
constexpr int64_t kSumBlock = 512;
constexpr int64_t kLine = 16;  // floats of a cache line

// The last panel is narrower if its rows fit into one vector.
int64_t panel_width(int64_t rows) { return rows <= kWidth ? kWidth : kPanel; }

int64_t packed_rows_size(int64_t rows, int64_t k) {
  const int64_t rest = rows % kPanel;
  return (rows - rest + (rest == 0 ? 0 : panel_width(rest))) * k;
}

// out [columns][rows] = the transpose of in [rows][columns].
void transpose_floats(const float* in, int64_t ld_in, int64_t rows, int64_t columns, float* out,
                      int64_t ld_out) {
  for (int64_t r = 0; r < rows; r += kWidth) {
    for (int64_t c = 0; c < columns; c += kWidth) {
      const float* from = in + r * ld_in + c;
      float* to = out + c * ld_out + r;
      const int64_t high = std::min(kWidth, rows - r), wide = std::min(kWidth, columns - c);
      if (high == kWidth && wide == kWidth) {
        at::vec::transpose_mxn<float, kWidth, kWidth>(from, ld_in, to, ld_out);
        continue;
      }
      for (int64_t i = 0; i < wide; ++i) {
        for (int64_t j = 0; j < high; ++j) to[i * ld_out + j] = from[j * ld_in + i];
      }
    }
  }
}

// Each panel is [k][width], with zeros in the lanes of no row.
void pack_rows(const float* rows, int64_t n, int64_t k, float* packed) {
  for (int64_t first = 0; first < n; first += kPanel) {
    const int64_t count = std::min(kPanel, n - first), width = panel_width(count);
    if (count < width) std::fill_n(packed, width * k, 0.f);
    transpose_floats(rows + first * k, k, count, k, packed, width);
    packed += width * k;
  }
}

// totals [outputs][vectors] += weights [outputs, k] of columns begin to end and a panel. Unless it
// is inlined, the totals leave the registers.
template <int64_t outputs, int64_t vectors>
[[gnu::always_inline]] inline void add_products(const float* weights, int64_t k, const float* panel,
                                                int64_t begin, int64_t end,
                                                Vec (&totals)[outputs][vectors]) {
  for (int64_t i = begin; i < end; ++i) {
    Vec lanes[vectors];
    for (int64_t v = 0; v < vectors; ++v) lanes[v] = load(panel + (i * vectors + v) * kWidth);
    for (int64_t o = 0; o < outputs; ++o) {
      const Vec weight(weights[o * k + i]);
      for (int64_t v = 0; v < vectors; ++v) {
        totals[o][v] = at::vec::fmadd(weight, lanes[v], totals[o][v]);
      }
    }
  }
}

// sums [outputs][vectors * kWidth] = bias + weights [outputs, k] times a panel. `next` [outputs, k]
// is fetched meanwhile. The order of summation depends on k only.
template <int64_t outputs, int64_t vectors>
void multiply_tile(const float* weights, const float* next, const float* bias, int64_t k,
                   const float* panel, float* sums) {
  for (int64_t begin = 0; begin < k; begin += kSumBlock) {
    const int64_t end = std::min(k, begin + kSumBlock);
    Vec totals[outputs][vectors];
    for (int64_t o = 0; o < outputs; ++o) {
      const Vec first(begin == 0 && bias != nullptr ? bias[o] : 0.f);
      for (Vec& total : totals[o]) total = first;
    }
    int64_t i = begin;
    for (; i + kLine <= end; i += kLine) {
      for (int64_t o = 0; o < outputs; ++o) __builtin_prefetch(next + o * k + i);
      add_products(weights, k, panel, i, i + kLine, totals);
    }
    add_products(weights, k, panel, i, end, totals);
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t v = 0; v < vectors; ++v) {
        float* sum = sums + (o * vectors + v) * kWidth;
        store(begin == 0 ? totals[o][v] : load(sum) + totals[o][v], sum);
      }
    }
  }
}

// sums [outputs begin to end][vectors * kWidth]; up to kTileOutputs before them are overwritten.
template <int64_t vectors>
void multiply_panel(const LinearTask& of, int64_t begin, int64_t end, const float* panel,
                    float* sums) {
  const auto tile = [&](auto multiply, int64_t first, int64_t next) {
    multiply(of.weight + first * of.k, of.weight + next * of.k,
             of.bias == nullptr ? nullptr : of.bias + first, of.k, panel,
             sums + (first - begin) * vectors * kWidth);
  };
  if (of.outputs < kTileOutputs) {
    for (int64_t o = begin; o < end; ++o) tile(multiply_tile<1, vectors>, o, o);
    return;
  }
  for (int64_t o = begin; o < end; o += kTileOutputs) {
    // The last tile may begin inside the one before it.
    tile(multiply_tile<kTileOutputs, vectors>, std::min(o, end - kTileOutputs),
         std::min(o + kTileOutputs, of.outputs - kTileOutputs));
  }
}

void multiply(const LinearTask& of, int64_t begin, int64_t end) {
  __at_align__ float buffer[(kTileOutputs + kLinearChunk) * kPanel];
  float* sums = buffer + kTileOutputs * kPanel;
  const float* panel = of.packed;
  for (int64_t row = 0; row < of.rows; row += kPanel) {
    const int64_t count = std::min(kPanel, of.rows - row), width = panel_width(count);
    (width == kPanel ? multiply_panel<kPanelVectors> : multiply_panel<1>)(of, begin, end, panel,
                                                                          sums);
    transpose_floats(sums, width, end - begin, count, of.out + row * of.stride + begin, of.stride);
    panel += width * of.k;
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace wavalign::cpu
