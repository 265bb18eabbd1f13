// Compiled with this instruction set's flags (setup.py), whatever the rest of the library gets.
#if defined(__x86_64__)
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#include "cpu/row_kernels_impl.h"
#endif
