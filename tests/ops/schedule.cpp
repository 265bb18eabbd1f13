// Runs csrc/cpu/schedule.h with delays that a wait must outlast, and says what came too early.
//
// An item writes its number into the place that its group's buffer has for it; a block reads all
// places of the group, twice with a pause in between. Usage: schedule THREADS ITEMS GROUP BLOCKS
// FAILING_ITEM.
#include "cpu/schedule.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

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
        // Without a second stage nobody needs a buffer.
        places_(blocks > 0 ? TwoStageSchedule::kGroupsInFlight * group : items, -1),
        done_(blocks, 0) {}

  void run(const TwoStageSchedule::Step& step) {
    if (step.second) {
      block(step.group, step.index);
    } else {
      item(step.index);
    }
  }

  // 0 where everything came in its turn.
  int report(int64_t blocks) const {
    const int64_t groups = (items_ + group_ - 1) / group_;
    for (int64_t b = 0; b < blocks; ++b) {
      if (done_[b] != groups) complain("a block missed a group");
    }
    if (!complaint_) return 0;
    std::puts(complaint_.load());
    return 1;
  }

 private:
  void item(int64_t index) {
    if (index == failing_) throw std::runtime_error("told to fail");
    // The last item of a group is late, so that its blocks have to wait.
    if (index % group_ == group_ - 1) pause(2);
    places_[index % places_.size()] = index;
  }

  void block(int64_t group, int64_t b) {
    if (done_[b] != group) complain("a block did not wait for the group before");
    // A slow group: its buffer is wanted again, and the block is wanted by the next groups.
    for (const int64_t late : {group % 4 == 1 ? 4 : 0, 0}) {
      for (int64_t i = group * group_; i < std::min((group + 1) * group_, items_); ++i) {
        const int64_t seen = places_[i % places_.size()];
        if (seen < i) complain("a block did not wait for an item");
        if (seen > i) complain("a buffer was used again too early");
      }
      pause(late);
    }
    done_[b] = group + 1;
  }

  void complain(const char* what) const { complaint_.store(what); }

  int64_t items_, group_, failing_;
  std::vector<int64_t> places_, done_;
  mutable std::atomic<const char*> complaint_{nullptr};
};

}  // namespace

int main(int, char** argument) {
  const int64_t threads = std::atoll(argument[1]), items = std::atoll(argument[2]),
                group = std::atoll(argument[3]), blocks = std::atoll(argument[4]),
                failing = std::atoll(argument[5]);
  TwoStageSchedule schedule(items, group, blocks);
  Work work(items, group, blocks, failing);
  std::atomic<int> thrown{0};
  std::vector<std::thread> crew;
  for (int64_t t = 0; t < threads; ++t) {
    crew.emplace_back([&] {
      try {
        schedule.work([&](const TwoStageSchedule::Step& step) { work.run(step); });
      } catch (const std::runtime_error&) {
        ++thrown;
      }
    });
  }
  for (std::thread& one : crew) one.join();
  if (failing >= 0) {
    std::printf("%d thrown\n", thrown.load());
    return 0;
  }
  return work.report(blocks);
}
