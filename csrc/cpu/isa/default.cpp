#define CPU_CAPABILITY DEFAULT
#define CPU_CAPABILITY_DEFAULT
#include "cpu/rollout_kernels_impl.h"
#include "cpu/row_kernels_impl.h"
