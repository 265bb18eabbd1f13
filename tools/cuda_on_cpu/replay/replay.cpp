// Runs one case: `replay CASE RESULT`.
//
// A case holds the emulated device, the name of an entry, its parameters as bytes, and the buffers
// that its pointers point to. Each buffer is allocated on its own, to the byte, so that the address
// sanitizer guards both its ends. A sparse buffer is mapped without memory behind it, and only its
// segments are filled. The result holds the status, the parameters, and every segment after
// the call. All numbers are little-endian.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "replay/accesses.h"
#include "replay/entries.h"

namespace {

[[noreturn]] void stop(const std::string& message) {
  std::fprintf(stderr, "replay: %s\n", message.c_str());
  std::_Exit(2);
}

class File {
 public:
  File(const char* path, const char* mode) : file_(std::fopen(path, mode)) {
    if (file_ == nullptr) stop(std::string("cannot open ") + path);
  }
  ~File() { std::fclose(file_); }

  void read(void* p, size_t bytes) {
    if (std::fread(p, 1, bytes, file_) != bytes) stop("the case ends early");
  }
  void write(const void* p, size_t bytes) {
    if (std::fwrite(p, 1, bytes, file_) != bytes) stop("the result cannot be written");
  }
  template <typename T>
  T number() {
    T value;
    read(&value, sizeof(value));
    return value;
  }
  std::string text() {
    std::string value(number<uint32_t>(), ' ');
    read(value.data(), value.size());
    return value;
  }

 private:
  std::FILE* file_;
};

struct Segment {
  uint64_t offset;
  uint64_t bytes;
};

struct Buffer {
  std::string name;
  unsigned char* memory;
  std::vector<Segment> segments;
};

unsigned char* allocate(uint64_t bytes, bool sparse) {
  void* memory = nullptr;
  if (sparse) {
    memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) stop("no address space for a sparse buffer");
    return static_cast<unsigned char*>(memory);
  }
  // CUDA's own allocations start on 256 bytes.
  if (posix_memalign(&memory, 256, bytes == 0 ? 1 : bytes) != 0) stop("out of memory");
  return static_cast<unsigned char*>(memory);
}

Buffer read_buffer(File& file, std::vector<unsigned char>& params) {
  Buffer buffer;
  buffer.name = file.text();
  const auto place = file.number<uint64_t>();  // of the pointer in the parameters
  const auto bytes = file.number<uint64_t>();
  const bool sparse = file.number<uint8_t>() != 0;
  const auto shift = file.number<uint8_t>();  // from the alignment of an allocation
  buffer.memory = allocate(bytes + shift, sparse) + shift;
  buffer.segments.resize(file.number<uint32_t>());
  for (Segment& segment : buffer.segments) {
    segment = file.number<Segment>();
    if (segment.offset + segment.bytes > bytes) stop("a segment ends beyond its buffer");
    file.read(buffer.memory + segment.offset, segment.bytes);
  }
  if (place + sizeof(void*) > params.size()) stop("a pointer lies beyond the parameters");
  std::memcpy(params.data() + place, &buffer.memory, sizeof(void*));
  if (!sparse) watch(buffer.name.c_str(), buffer.memory, bytes);
  return buffer;
}

}  // namespace

int main(int, char** arguments) {
  File file(arguments[1], "rb");
  auto& device = cuda_on_cpu::device;
  device.arch = file.number<int32_t>();
  device.shared_bytes = file.number<int32_t>();
  device.most_cluster = file.number<int32_t>();
  device.seed = file.number<uint32_t>();
  const std::string name = file.text();
  const Entry* entry = entries;
  while (entry < entries + entry_count && name != entry->name) ++entry;
  if (entry == entries + entry_count) stop("no entry " + name);
  std::vector<unsigned char> params(file.number<uint32_t>());
  if (params.size() != entry->bytes) {
    stop(name + " has parameters of " + std::to_string(entry->bytes) + " bytes, the case gives " +
         std::to_string(params.size()));
  }
  file.read(params.data(), params.size());
  std::vector<Buffer> buffers(file.number<uint32_t>());
  for (Buffer& buffer : buffers) buffer = read_buffer(file, params);

  const int32_t status = entry->call(params.data());

  File result(arguments[2], "wb");
  result.write(&status, sizeof(status));
  result.write(&device.launches, sizeof(device.launches));
  result.write(params.data(), params.size());
  for (const Buffer& buffer : buffers) {
    const Traffic traffic = traffic_of(buffer.memory);
    result.write(&traffic, sizeof(traffic));
    for (const Segment& segment : buffer.segments) {
      result.write(buffer.memory + segment.offset, segment.bytes);
    }
  }
  return 0;
}
