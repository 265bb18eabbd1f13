// Replaces the runtime that g++'s -fsanitize=thread calls at each access to memory. It
// distinguishes clusters of blocks instead of threads. Nothing orders two clusters within a launch:
// what one writes, no other may read or write, and no cluster may touch a byte outside all buffers.
//
// Whole words that blocks exchange (compaction) go through the emulator, which is not instrumented,
// and are therefore exempt.
#include "replay/accesses.h"

#include <cstdio>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "emulator/grid.h"

namespace {

constexpr int kNobody = -1;
constexpr int kSeveral = -2;

struct Owners {
  int writer = kNobody;  // a cluster
  int reader = kNobody;
};

struct Buffer {
  std::string name;
  const unsigned char* start;
  std::vector<Owners> bytes;
  Traffic traffic;
};

std::vector<Buffer> buffers;
int launch_seen = 0;

Buffer* buffer_of(const unsigned char* p) {
  for (Buffer& buffer : buffers) {
    if (p >= buffer.start && p < buffer.start + buffer.bytes.size()) return &buffer;
  }
  return nullptr;
}

[[noreturn]] void race(const Buffer& buffer, size_t byte, const char* what, int other) {
  cuda_on_cpu::fail(std::string(what) + " byte " + std::to_string(byte) + " of " + buffer.name +
                    " as cluster " + std::to_string(other) + " does in the same launch");
}

// A launch is ordered after everything before it.
void forget_earlier_launches() {
  if (launch_seen == cuda_on_cpu::device.launches) return;
  launch_seen = cuda_on_cpu::device.launches;
  for (Buffer& buffer : buffers) buffer.bytes.assign(buffer.bytes.size(), Owners());
}

void touch(const void* address, size_t size, bool write) {
  const int me = cuda_on_cpu::current_cluster();
  if (me == kNobody) return;  // the host's part of a launch
  forget_earlier_launches();
  const auto* p = static_cast<const unsigned char*>(address);
  Buffer* buffer = buffer_of(p);
  if (buffer == nullptr) return;  // stack and shared memory
  const size_t first = static_cast<size_t>(p - buffer->start);
  if (reinterpret_cast<uintptr_t>(p) % size != 0) {
    cuda_on_cpu::fail("a misaligned access of " + std::to_string(size) + " bytes to byte " +
                      std::to_string(first) + " of " + buffer->name);
  }
  if (first + size > buffer->bytes.size()) {
    cuda_on_cpu::fail("an access of " + std::to_string(size) + " bytes reaches beyond " +
                      buffer->name);
  }
  (write ? buffer->traffic.written : buffer->traffic.read) += size;
  for (size_t byte = first; byte < first + size; ++byte) {
    Owners& owners = buffer->bytes[byte];
    const bool foreign = owners.writer != kNobody && owners.writer != me;
    if (foreign) race(*buffer, byte, write ? "writes" : "reads the written", owners.writer);
    if (write) {
      if (owners.reader != kNobody && owners.reader != me) {
        race(*buffer, byte, "writes the read", owners.reader);
      }
      owners.writer = me;
    } else {
      owners.reader = owners.reader == kNobody || owners.reader == me ? me : kSeveral;
    }
  }
}

}  // namespace

void watch(const char* name, const void* buffer, size_t bytes) {
  buffers.push_back(
      {name, static_cast<const unsigned char*>(buffer), std::vector<Owners>(bytes), {}});
}

Traffic traffic_of(const void* p) {
  const Buffer* buffer = buffer_of(static_cast<const unsigned char*>(p));
  return buffer == nullptr ? Traffic() : buffer->traffic;
}

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}

#define ACCESSES(size)                                                 \
  void __tsan_read##size(void* p) { touch(p, size, false); }           \
  void __tsan_write##size(void* p) { touch(p, size, true); }           \
  void __tsan_unaligned_read##size(void* p) { touch(p, size, false); } \
  void __tsan_unaligned_write##size(void* p) { touch(p, size, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* p, size_t size) { touch(p, size, false); }
void __tsan_write_range(void* p, size_t size) { touch(p, size, true); }

}  // extern "C"
