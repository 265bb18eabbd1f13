// What kernels and launch functions call: the thread's place, barriers, exchanges, the runtime.
#include <cmath>
#include <cstring>
#include <map>

#include "emulator/grid.h"

namespace cuda_on_cpu {

Device device;

namespace {

std::map<const void*, int> allowed_dynamic_bytes;
constexpr int kDynamicBytesUnasked = 48 * 1024;
const Site kDynamic = {"dynamic shared memory", 0};

Block& block() {
  if (current == nullptr) fail("device code on the host");
  return *current->block;
}

}  // namespace

unsigned thread_index() { return current->index; }
unsigned block_index() { return block().index; }
unsigned block_size() { return grid->shape.threads; }
unsigned grid_size() { return grid->shape.blocks; }

void sync_block(const char* file, int line) {
  Block& mine = block();
  // Even and odd barriers are different edges: a thread that is late in leaving one must not be
  // ordered after what the others do before the next.
  char* sync = &mine.barrier_sync[mine.barriers % 2];
  current->site = {file, line};
  happens_before(sync);
  wait_as(State::kAtBlockBarrier);
  happens_after(sync);
}

uint64_t warp_operation(const char* operation, unsigned mask, uint64_t value, int source) {
  Thread& thread = *current;
  if ((mask >> thread.lane() & 1) == 0) {
    fail(std::string(operation) + " by a lane that its own mask does not name");
  }
  thread.operation = operation;
  thread.mask = mask;
  thread.value = value;
  thread.source = source;
  wait_as(State::kAtWarp);
  return thread.result;
}

// Only this warp operation orders memory; shuffles and votes exchange their operands.
void sync_warp(unsigned mask) {
  char* sync = &block().warp_sync[current->index / kWarpLanes];
  happens_before(sync);
  warp_operation("__syncwarp", mask, 0, static_cast<int>(current->lane()));
  happens_after(sync);
}

int lane() { return static_cast<int>(current->lane()); }
int cluster_rank() { return static_cast<int>(block().rank); }
int cluster_size() { return static_cast<int>(grid->shape.cluster); }

void cluster_arrive() {
  Cluster& cluster = *block().cluster;
  if (current->arrived) fail("arrives twice at a cluster barrier");
  current->arrived = true;
  current->arrival = cluster.phase;
  happens_before(&cluster.sync[cluster.phase % 2]);
  if (++cluster.arrived == cluster.thread_count()) {
    cluster.arrived = 0;
    ++cluster.phase;
  }
}

void cluster_wait() {
  Cluster& cluster = *block().cluster;
  if (!current->arrived) fail("waits at a cluster barrier without having arrived");
  if (cluster.phase == current->arrival) wait_as(State::kAtCluster);
  current->arrived = false;
  happens_after(&cluster.sync[current->arrival % 2]);
}

void* static_shared(const char* file, int line, size_t bytes) {
  return block().shared({file, line}, bytes).memory.get();
}

unsigned char* dynamic_shared() {
  return block().shared(kDynamic, grid->shape.dynamic_bytes).memory.get();
}

void* shared_of(void* mine, int rank) {
  if (rank < 0 || rank >= cluster_size())
    fail("no block " + std::to_string(rank) + " in the cluster");
  const auto* byte = static_cast<unsigned char*>(mine);
  for (const auto& part : block().parts) {
    const auto offset = byte - part->memory.get();
    if (offset < 0 || static_cast<size_t>(offset) >= part->bytes) continue;
    Block& other = *block().cluster->blocks[static_cast<size_t>(rank)];
    if (other.exited == other.threads.size())
      fail("shared memory of " + other.text() + ", which has ended");
    return other.shared(part->site, part->bytes).memory.get() + offset;
  }
  fail("an address outside shared memory is mapped to another block");
}

// As inexact as the instruction may be: the last bit is lost, exact powers stay.
float exp2_approximate(float x) {
  const float exact = std::exp2(x);
  uint32_t bits;
  std::memcpy(&bits, &exact, sizeof(bits));
  bits &= ~1u;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result < 0x1p-126f ? 0.f : result;
}

// Let the others go on between two looks at a word that they write.
uint64_t load_relaxed(const uint64_t* p) {
  current->spun = true;
  wait_as(State::kReady);
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}

void store_relaxed(uint64_t* p, uint64_t value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }

unsigned long long atomic_add(unsigned long long* p, unsigned long long value) {
  return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}

int current_cluster() {
  return current == nullptr ? -1 : static_cast<int>(current->block->index / grid->shape.cluster);
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   std::function<void()> body) {
  Shape shape = {config.gridDim.x, config.blockDim.x, 1, config.dynamicSmemBytes};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) return cudaErrorNotSupported;
    shape.cluster = config.attrs[i].val.clusterDim.x;
    if (device.arch < 90) return cudaErrorNotSupported;
    if (shape.cluster > static_cast<unsigned>(device.most_cluster))
      return cudaErrorInvalidClusterSize;
  }
  const auto allowed = allowed_dynamic_bytes.find(kernel);
  const int dynamic =
      allowed == allowed_dynamic_bytes.end() ? kDynamicBytesUnasked : allowed->second;
  constexpr unsigned kMostThreads = 1024;
  if (shape.blocks == 0 || shape.blocks % shape.cluster != 0 || shape.threads == 0 ||
      shape.threads > kMostThreads) {
    return cudaErrorInvalidConfiguration;
  }
  if (shape.dynamic_bytes > static_cast<size_t>(dynamic)) return cudaErrorInvalidValue;
  ++device.launches;
  Grid(shape, std::move(body)).run();
  return cudaSuccess;
}

cudaError_t set_dynamic_bytes(const void* kernel, int bytes) {
  if (bytes > device.shared_bytes) return cudaErrorInvalidValue;
  allowed_dynamic_bytes[kernel] = bytes;
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = cuda_on_cpu::device.arch / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = cuda_on_cpu::device.arch % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = cuda_on_cpu::device.shared_bytes;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated device"; }
