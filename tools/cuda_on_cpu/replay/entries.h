// The functions that a case may call.
#pragma once

#include <cstddef>
#include <cstdint>

struct Entry {
  const char* name;
  size_t bytes;  // of its parameters
  int (*call)(void* params);
};

extern const Entry entries[];
extern const size_t entry_count;
