// Work handed out to threads piece by piece: a thread whose core is busy with something else takes
// fewer pieces instead of keeping the others waiting. What a piece computes must not depend on who
// computes it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace wavalign::cpu {

// Calls `worker(next)` on every thread; `next()` gives it the index of a task that nobody has, or
// -1 when all are taken.
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
