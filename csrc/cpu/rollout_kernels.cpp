#include "cpu/rollout_kernels.h"

#include "cpu/isa_choice.h"

namespace wavalign::cpu {

namespace DEFAULT {
RolloutKernels make_rollout_kernels();
}
#if defined(__x86_64__)
namespace AVX2 {
RolloutKernels make_rollout_kernels();
}
namespace AVX512 {
RolloutKernels make_rollout_kernels();
}
#endif

namespace {

RolloutKernels choose_rollout_kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return AVX512::make_rollout_kernels();
    case Isa::kAvx2:
      return AVX2::make_rollout_kernels();
#endif
    default:
      return DEFAULT::make_rollout_kernels();
  }
}

}  // namespace

const RolloutKernels& rollout_kernels() {
  static const RolloutKernels kernels = choose_rollout_kernels();
  return kernels;
}

}  // namespace wavalign::cpu
