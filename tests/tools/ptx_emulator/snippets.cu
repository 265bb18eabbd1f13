// What nvcc makes of ordinary code, for the tests of the emulator.
#include <cuda_bf16.h>
#include <cuda_pipeline.h>

#include <cstdint>

extern "C" {

__global__ void math(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i];
  const float results[] = {
      expf(v),  logf(fabsf(v)),   expm1f(v), log1pf(fabsf(v)), __expf(v),
      tanhf(v), rsqrtf(fabsf(v)), v / 3.f,   fmodf(v, 0.7f),   powf(fabsf(v), 1.5f)};
#pragma unroll
  for (int j = 0; j < 10; ++j) out[j * n + i] = results[j];
}

__global__ void integers(const int64_t* a, const int64_t* b, int64_t* out, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  const uint64_t u = static_cast<uint64_t>(a[i]), w = static_cast<uint64_t>(b[i]);
  out[i] = a[i] / b[i];
  out[n + i] = a[i] % b[i];
  out[2 * n + i] = static_cast<int64_t>(__umul64hi(u, w));
  out[3 * n + i] = a[i] / 168072;
  out[4 * n + i] = __popcll(u) + 100 * __clzll(a[i]) + 10000 * __ffsll(a[i]);
}

__global__ void row_sums(const __nv_bfloat16* x, float* sums, int columns) {
  __shared__ float of_warps[8];
  const __nv_bfloat16* row = x + static_cast<int64_t>(blockIdx.x) * columns;
  float sum = 0.f;
  for (int i = threadIdx.x * 8; i < columns; i += blockDim.x * 8) {
    const uint4 bits = *reinterpret_cast<const uint4*>(row + i);
    const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&bits);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = __bfloat1622float2(pairs[j]);
      sum += pair.x + pair.y;
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.f;
    for (int w = 0; w < blockDim.x / 32; ++w) total += of_warps[w];
    sums[blockIdx.x] = total;
  }
}

__global__ void sort_by_digit(const unsigned* keys, unsigned* order, unsigned* counts) {
  __shared__ unsigned starts[16];
  const unsigned digit = keys[threadIdx.x] & 15;
  if (threadIdx.x < 16) starts[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&starts[digit], 1u);
  __syncthreads();
  if (threadIdx.x < 16) counts[threadIdx.x] = starts[threadIdx.x];
  unsigned before = 0;
  for (unsigned d = 0; d < digit; ++d) before += starts[d];
  for (unsigned t = 0; t < threadIdx.x; ++t) before += (keys[t] & 15) == digit;
  order[before] = threadIdx.x;
}

__global__ void copied(const float4* x, float4* out, int turns) {
  extern __shared__ float4 stages[];
  for (int turn = 0; turn < turns + 1; ++turn) {
    if (turn < turns) {
      __pipeline_memcpy_async(&stages[turn % 2 * blockDim.x + threadIdx.x],
                              &x[turn * blockDim.x + threadIdx.x], sizeof(float4));
    }
    __pipeline_commit();
    if (turn == 0) continue;
    __pipeline_wait_prior(1);
    __syncthreads();
    const int other = blockDim.x - 1 - threadIdx.x;
    out[(turn - 1) * blockDim.x + threadIdx.x] = stages[(turn - 1) % 2 * blockDim.x + other];
    __syncthreads();
  }
}

}  // extern "C"
