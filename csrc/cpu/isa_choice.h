// The instruction set whose kernels run.
#pragma once

#include <ATen/Version.h>

#include <string>

namespace wavalign::cpu {

enum class Isa { kDefault, kAvx2, kAvx512 };

// What torch has chosen; the variable ATEN_CPU_CAPABILITY can lower it.
inline Isa isa() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return Isa::kAvx512;
  if (capability == "AVX2") return Isa::kAvx2;
#endif
  return Isa::kDefault;
}

}  // namespace wavalign::cpu
