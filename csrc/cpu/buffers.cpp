#include "cpu/buffers.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarTypeToTypeMeta.h>

#include <algorithm>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace wavalign::cpu {

#ifdef __linux__

namespace {

constexpr int64_t kPage = 2 << 20;
// malloc is as fast for smaller buffers.
constexpr int64_t kMinBytes = 4 * kPage;

struct Block {
  void* data;
  int64_t bytes;
};

class BufferCache {
 public:
  // A cached block that holds `bytes` and is at most twice as large, or a new one.
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
    // The sizes have changed: the cached blocks may never fit again.
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
    // A hint: kernels without large pages ignore it.
    madvise(data, size, MADV_HUGEPAGE);
    return {data, size};
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
};

BufferCache& buffer_cache() {
  static auto* cache = new BufferCache;  // never destroyed
  return *cache;
}

}  // namespace

at::Tensor cached_buffer(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const int64_t bytes =
      c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  if (bytes < kMinBytes) return at::empty(sizes, options);
  const Block block = buffer_cache().take(bytes);
  return at::from_blob(
      block.data, sizes, [block](void*) { buffer_cache().put(block); }, options);
}

int64_t release_cached_buffers() { return buffer_cache().release(); }

#else

at::Tensor cached_buffer(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

int64_t release_cached_buffers() { return 0; }

#endif

namespace {

// Which memory is the probability buffer in use. It does not own the memory.
class ProbBufferSlot {
 public:
  bool occupied() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return memory_ != nullptr;
  }

  // False if another probability buffer is in use.
  bool occupy(void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (memory_ != nullptr) return false;
    memory_ = memory;
    ++id_;
    return true;
  }

  void vacate(const void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (memory_ == memory) memory_ = nullptr;
  }

  int64_t id_of(const void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return memory_ == memory ? id_ : 0;
  }

 private:
  std::mutex mutex_;
  void* memory_ = nullptr;
  int64_t id_ = 0;  // of the newest probability buffer
};

ProbBufferSlot& prob_buffer_slot() {
  static auto* slot = new ProbBufferSlot;  // never destroyed
  return *slot;
}

}  // namespace

at::Tensor new_prob_buffer(const at::Tensor& weight) {
  const at::Tensor refused = at::empty({0}, weight.options());
  if (prob_buffer_slot().occupied()) return refused;
  const at::Tensor buffer = cached_buffer(weight.sizes(), weight.options());
  if (!prob_buffer_slot().occupy(buffer.data_ptr())) return refused;
  const auto release = [buffer](void* memory) { prob_buffer_slot().vacate(memory); };
  return at::from_blob(buffer.data_ptr(), buffer.sizes(), release, buffer.options());
}

int64_t prob_buffer_id(const at::Tensor& prob_buffer) {
  return prob_buffer.numel() == 0 ? 0 : prob_buffer_slot().id_of(prob_buffer.data_ptr());
}

void release_prob_buffer(const at::Tensor& prob_buffer) {
  prob_buffer_slot().vacate(prob_buffer.data_ptr());
}

}  // namespace wavalign::cpu
