// Counts and checks the accesses of kernels to the buffers of a case, in the build that records
// them; the other builds count nothing.
#pragma once

#include <cstddef>
#include <cstdint>

struct Traffic {
  uint64_t read = 0;  // bytes, counted every time
  uint64_t written = 0;
};

void watch(const char* name, const void* buffer, size_t bytes);
Traffic traffic_of(const void* buffer);
