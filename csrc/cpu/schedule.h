// The order of the backward pass's work: two stages over groups of items, without barriers.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace wavalign::cpu {

// The first stage processes the items of a group in any order. When all of them are done, the
// second stage processes the group in `blocks` tasks; each of them waits for the same block of the
// previous group. A group is in flight from its first item to its last block, and at most
// kGroupsInFlight are in flight. So a thread waits only for work that is a whole group late. With a
// barrier after each stage, every thread would wait whenever another process takes a core.
class TwoStageSchedule {
 public:
  static constexpr int64_t kGroupsInFlight = 3;

  struct Step {
    bool second_stage;
    int64_t group;
    int64_t index;  // of the item among all items, or of the block
  };

  // `blocks` = 0: no second stage.
  TwoStageSchedule(int64_t items, int64_t group_size, int64_t blocks);

  // Calls `run` with steps on this thread until none is left. Steps are handed out in an order in
  // which each depends on earlier ones only, so a waiting thread waits for a working one. If `run`
  // throws, the other threads stop waiting and return.
  template <typename Run>
  void work(const Run& run) {
    try {
      while (const Step* step = next()) {
        run(*step);
        finish(*step);
      }
    } catch (...) {
      failed_.store(true, std::memory_order_relaxed);
      throw;
    }
  }

 private:
  int64_t items_in(int64_t group) const;
  void append_second_stage(int64_t group);
  // The next step, once what it depends on is done; null if none is left or a thread has failed.
  const Step* next();
  bool wait_for_dependencies(const Step& step) const;
  bool wait(const std::atomic<int64_t>& count, int64_t wanted) const;
  void finish(const Step& step);

  int64_t items_, group_size_, blocks_;
  std::vector<Step> steps_;
  std::atomic<size_t> taken_{0};
  std::atomic<bool> failed_{false};
  std::vector<std::atomic<int64_t>> items_done_, blocks_done_;  // of each group
  std::vector<std::atomic<int64_t>> groups_done_;               // by each block
};

}  // namespace wavalign::cpu
