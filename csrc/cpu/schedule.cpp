#include "cpu/schedule.h"

#include <algorithm>
#include <thread>

namespace wavalign::cpu {

TwoStageSchedule::TwoStageSchedule(int64_t items, int64_t group_size, int64_t blocks)
    : items_(items),
      group_size_(group_size),
      blocks_(blocks),
      items_done_((items + group_size - 1) / group_size),
      blocks_done_(items_done_.size()),
      groups_done_(blocks) {
  const auto groups = static_cast<int64_t>(items_done_.size());
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t i = 0; i < items_in(group); ++i) {
      steps_.push_back({false, group, group * group_size_ + i});
    }
    if (group > 0) append_second_stage(group - 1);
  }
  append_second_stage(groups - 1);
}

int64_t TwoStageSchedule::items_in(int64_t group) const {
  return std::min(group_size_, items_ - group * group_size_);
}

void TwoStageSchedule::append_second_stage(int64_t group) {
  for (int64_t block = 0; block < blocks_; ++block) steps_.push_back({true, group, block});
}

const TwoStageSchedule::Step* TwoStageSchedule::next() {
  const size_t ticket = taken_.fetch_add(1, std::memory_order_relaxed);
  if (ticket >= steps_.size() || !wait_for_dependencies(steps_[ticket])) return nullptr;
  return &steps_[ticket];
}

bool TwoStageSchedule::wait_for_dependencies(const Step& step) const {
  if (step.second_stage) {
    return wait(items_done_[step.group], items_in(step.group)) &&
           wait(groups_done_[step.index], step.group);
  }
  return step.group < kGroupsInFlight || wait(blocks_done_[step.group - kGroupsInFlight], blocks_);
}

bool TwoStageSchedule::wait(const std::atomic<int64_t>& count, int64_t wanted) const {
  while (count.load(std::memory_order_acquire) < wanted) {
    if (failed_.load(std::memory_order_relaxed)) return false;
    std::this_thread::yield();
  }
  return true;
}

void TwoStageSchedule::finish(const Step& step) {
  if (step.second_stage) {
    groups_done_[step.index].fetch_add(1, std::memory_order_release);
    blocks_done_[step.group].fetch_add(1, std::memory_order_release);
  } else {
    items_done_[step.group].fetch_add(1, std::memory_order_release);
  }
}

}  // namespace wavalign::cpu
