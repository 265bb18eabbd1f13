#include "cpu/huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

namespace wavalign::cpu {

at::Tensor on_huge_pages(at::Tensor buffer) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(buffer.data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage,
                  last = (begin + buffer.nbytes()) / kPage * kPage;
  // Advice only: where the kernel has no large pages, nothing changes.
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return buffer;
}

}  // namespace wavalign::cpu
