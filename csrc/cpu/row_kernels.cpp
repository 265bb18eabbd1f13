#include "cpu/row_kernels.h"

#include <ATen/Version.h>

#include <string>

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

RowKernels choose() {
#if defined(__x86_64__)
  // What torch has chosen; the variable ATEN_CPU_CAPABILITY can lower it.
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return AVX512::make_row_kernels("AVX-512");
  if (capability == "AVX2") return AVX2::make_row_kernels("AVX2");
#endif
  return DEFAULT::make_row_kernels("default");
}

}  // namespace

const RowKernels& row_kernels() {
  static const RowKernels kernels = choose();
  return kernels;
}

}  // namespace wavalign::cpu
