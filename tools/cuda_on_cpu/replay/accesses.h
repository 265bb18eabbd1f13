// Counts and checks what kernels do to the buffers of a case, in the build that records accesses;
// in the others nothing is counted.
#pragma once

#include <cstddef>
#include <cstdint>

struct Traffic {
  uint64_t read = 0;  // bytes, each as often as it is touched
  uint64_t written = 0;
};

void watch(const char* name, const void* buffer, size_t bytes);
Traffic traffic_of(const void* buffer);
