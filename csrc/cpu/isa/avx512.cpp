// Compiled with the flags of this instruction set (build_cpu.py), unlike the rest of the library.
#if defined(__x86_64__)
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#include "cpu/rollout_kernels_impl.h"
#include "cpu/row_kernels_impl.h"
#endif
