// Dynamic scheduling of independent tasks. A thread whose core is shared with another process takes
// fewer tasks instead of delaying the others. The result of a task must not depend on its thread.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace wavalign::cpu {

// Calls `worker(next)` on every thread. `next()` returns the index of the next task, or -1 if none
// is left.
template <typename Worker>
void parallel_tasks(int64_t count, const Worker& worker) {
  std::atomic<int64_t> taken{0};
  const auto next = [&] {
    const int64_t task = taken.fetch_add(1, std::memory_order_relaxed);
    return task < count ? task : -1;
  };
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1,
                   [&](int64_t, int64_t) { worker(next); });
}

}  // namespace wavalign::cpu
