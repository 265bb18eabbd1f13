// Runs TwoStageSchedule with delays that force its waits, and reports a step that ran too early.
//
// Each item writes its number into its slot of its group's buffer. Each block reads all slots of
// the group twice, with a pause in between.
// Usage: schedule THREADS ITEMS GROUP_SIZE BLOCKS FAILING_ITEM
#include "cpu/schedule.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>

using wavalign::cpu::TwoStageSchedule;

namespace {

void pause(int64_t milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

class Work {
 public:
  Work(int64_t items, int64_t group, int64_t blocks, int64_t failing)
      : items_(items),
        group_(group),
        failing_(failing),
        // Without a second stage no slot is used again.
        slots_(blocks > 0 ? TwoStageSchedule::kGroupsInFlight * group : items, -1),
        done_(blocks, 0) {}

  void run(const TwoStageSchedule::Step& step) {
    if (step.second_stage) {
      block(step.group, step.index);
    } else {
      item(step.index);
    }
  }

  // The exit code: 0 if all steps ran in order.
  int report(int64_t blocks) const {
    const int64_t groups = (items_ + group_ - 1) / group_;
    for (int64_t b = 0; b < blocks; ++b) {
      if (done_[b] != groups) report_fault("a block missed a group");
    }
    if (!fault_) return 0;
    std::puts(fault_.load());
    return 1;
  }

 private:
  void item(int64_t index) {
    if (index == failing_) throw std::runtime_error("item fails on purpose");
    // The last item of a group is late, so that the blocks of the group have to wait.
    if (index % group_ == group_ - 1) pause(2);
    slots_[index % slots_.size()] = index;
  }

  void block(int64_t group, int64_t b) {
    if (done_[b] != group) report_fault("a block did not wait for the previous group");
    // Every fourth group is slow: later groups wait for its buffer and for this block.
    for (const int64_t late : {group % 4 == 1 ? 4 : 0, 0}) {
      for (int64_t i = group * group_; i < std::min((group + 1) * group_, items_); ++i) {
        const int64_t seen = slots_[i % slots_.size()];
        if (seen < i) report_fault("a block did not wait for an item");
        if (seen > i) report_fault("a buffer was reused too early");
      }
      pause(late);
    }
    done_[b] = group + 1;
  }

  void report_fault(const char* fault) const { fault_.store(fault); }

  int64_t items_, group_, failing_;
  std::vector<int64_t> slots_, done_;
  mutable std::atomic<const char*> fault_{nullptr};
};

}  // namespace

int main(int, char** argument) {
  const int64_t threads = std::atoll(argument[1]), items = std::atoll(argument[2]),
                group = std::atoll(argument[3]), blocks = std::atoll(argument[4]),
                failing = std::atoll(argument[5]);
  TwoStageSchedule schedule(items, group, blocks);
  Work work(items, group, blocks, failing);
  std::atomic<int> thrown{0};
  std::vector<std::thread> workers;
  for (int64_t t = 0; t < threads; ++t) {
    workers.emplace_back([&] {
      try {
        schedule.work([&](const TwoStageSchedule::Step& step) { work.run(step); });
      } catch (const std::runtime_error&) {
        ++thrown;
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  if (failing >= 0) {
    std::printf("%d thrown\n", thrown.load());
    return 0;
  }
  return work.report(blocks);
}
