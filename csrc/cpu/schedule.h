// Two stages of work over groups of items, without a barrier between them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace wavalign::cpu {

// The items of a group go through the first stage in any order; when all of them have, the second
// stage takes the group in `blocks` tasks, each after the same block of the group before. A group
// is under way from its first item to its last block, at most kGroupsInFlight of them at a time. So
// a thread waits only for work that is late by a whole group: with a barrier after each stage, a
// core that is shared with another process stops every thread at every barrier.
class TwoStageSchedule {
 public:
  static constexpr int64_t kGroupsInFlight = 3;

  struct Step {
    bool second;
    int64_t group, index;  // index: item of all, or block
  };

  // `blocks` may be 0: no second stage.
  TwoStageSchedule(int64_t items, int64_t group_size, int64_t blocks)
      : items_(items),
        group_size_(group_size),
        blocks_(blocks),
        first_done_((items + group_size - 1) / group_size),
        second_done_(first_done_.size()),
        added_(blocks) {
    const auto groups = static_cast<int64_t>(first_done_.size());
    const auto second = [&](int64_t group) {
      for (int64_t block = 0; block < blocks_; ++block) steps_.push_back({true, group, block});
    };
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t i = 0; i < items_in(group); ++i) {
        steps_.push_back({false, group, group * group_size_ + i});
      }
      if (group > 0) second(group - 1);
    }
    second(groups - 1);
  }

  // Runs steps on this thread until none is left. Steps are handed out in an order in which each
  // needs earlier ones only, so whoever waits waits for a thread that works.
  template <typename Run>
  void work(const Run& run) {
    try {
      for (;;) {
        const size_t ticket = taken_.fetch_add(1, std::memory_order_relaxed);
        if (ticket >= steps_.size() || !ready(steps_[ticket])) return;
        const Step& step = steps_[ticket];
        run(step);
        finish(step);
      }
    } catch (...) {
      failed_.store(true, std::memory_order_relaxed);
      throw;
    }
  }

 private:
  int64_t items_in(int64_t group) const {
    return std::min(group_size_, items_ - group * group_size_);
  }

  bool ready(const Step& step) const {
    if (step.second) {
      return wait(first_done_[step.group], items_in(step.group)) &&
             wait(added_[step.index], step.group);
    }
    return step.group < kGroupsInFlight ||
           wait(second_done_[step.group - kGroupsInFlight], blocks_);
  }

  bool wait(const std::atomic<int64_t>& count, int64_t wanted) const {
    while (count.load(std::memory_order_acquire) < wanted) {
      if (failed_.load(std::memory_order_relaxed)) return false;
      std::this_thread::yield();
    }
    return true;
  }

  void finish(const Step& step) {
    if (step.second) {
      added_[step.index].fetch_add(1, std::memory_order_release);
      second_done_[step.group].fetch_add(1, std::memory_order_release);
    } else {
      first_done_[step.group].fetch_add(1, std::memory_order_release);
    }
  }

  int64_t items_, group_size_, blocks_;
  std::vector<Step> steps_;
  std::atomic<size_t> taken_{0};
  std::atomic<bool> failed_{false};
  std::vector<std::atomic<int64_t>> first_done_, second_done_, added_;
};

}  // namespace wavalign::cpu
