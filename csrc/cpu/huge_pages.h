// Fresh vocabulary-sized buffers on large pages.
#pragma once

#include <ATen/core/Tensor.h>

namespace wavalign::cpu {

// `buffer` as it is, after asking the kernel to back it with large pages. A buffer of this size
// comes fresh from the kernel at every call: with pages of 4 KiB the faults of a 1 GiB gradient
// take longer than writing it.
at::Tensor on_huge_pages(at::Tensor buffer);

}  // namespace wavalign::cpu
