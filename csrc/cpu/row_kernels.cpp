#include "cpu/row_kernels.h"

#include "cpu/isa_choice.h"

namespace wavalign::cpu {

namespace DEFAULT {
RowKernels make_row_kernels(const char* isa);
}
#if defined(__x86_64__)
namespace AVX2 {
RowKernels make_row_kernels(const char* isa);
}
namespace AVX512 {
RowKernels make_row_kernels(const char* isa);
}
#endif

namespace {

RowKernels choose_row_kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return AVX512::make_row_kernels("AVX-512");
    case Isa::kAvx2:
      return AVX2::make_row_kernels("AVX2");
#endif
    default:
      return DEFAULT::make_row_kernels("default");
  }
}

}  // namespace

const RowKernels& row_kernels() {
  static const RowKernels kernels = choose_row_kernels();
  return kernels;
}

}  // namespace wavalign::cpu
