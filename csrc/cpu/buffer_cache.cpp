#include "cpu/buffer_cache.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarTypeToTypeMeta.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace wavalign::cpu {

#ifdef __linux__

namespace {

constexpr int64_t kPage = 2 << 20;
// Below this malloc does as well.
constexpr int64_t kSmallest = 4 * kPage;

struct Block {
  void* data;
  int64_t bytes;
};

class Waiting {
 public:
  // A waiting block that holds `bytes` and is at most twice as large, or a new one.
  Block take(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto fits = [&](const Block& b) { return b.bytes >= bytes && b.bytes / 2 <= bytes; };
      const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), fits);
      if (found != blocks_.rend()) {
        const Block block = *found;
        blocks_.erase(std::next(found).base());
        return block;
      }
    }
    // The work has changed: what waits would wait for ever.
    release();
    return map(bytes);
  }

  void put(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back(block);
  }

  int64_t release() {
    std::vector<Block> blocks;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      blocks.swap(blocks_);
    }
    int64_t bytes = 0;
    for (const Block& block : blocks) {
      munmap(block.data, block.bytes);
      bytes += block.bytes;
    }
    return bytes;
  }

 private:
  static Block map(int64_t bytes) {
    const int64_t size = (bytes + kPage - 1) / kPage * kPage;
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK_WITH(OutOfMemoryError, data != MAP_FAILED, "cannot allocate ", size, " bytes");
    // Advice only: where the kernel has no large pages, nothing changes.
    madvise(data, size, MADV_HUGEPAGE);
    return {data, size};
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
};

Waiting& waiting() {
  // Never destroyed: a tensor may outlive every other static object.
  static auto* blocks = new Waiting;
  return *blocks;
}

}  // namespace

at::Tensor cached_buffer(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const int64_t bytes =
      c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  if (bytes < kSmallest) return at::empty(sizes, options);
  const Block block = waiting().take(bytes);
  return at::from_blob(
      block.data, sizes, [block](void*) { waiting().put(block); }, options);
}

int64_t release_cached_buffers() { return waiting().release(); }

#else

at::Tensor cached_buffer(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

int64_t release_cached_buffers() { return 0; }

#endif

}  // namespace wavalign::cpu
