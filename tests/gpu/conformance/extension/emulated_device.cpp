// Sets the device that the emulator of tools/cuda_on_cpu pretends to be.
#include <cuda_runtime.h>

extern "C" __attribute__((visibility("default"))) void pretended_device(int arch, unsigned seed) {
  cuda_on_cpu::device.arch = arch;
  cuda_on_cpu::device.seed = seed;
}
