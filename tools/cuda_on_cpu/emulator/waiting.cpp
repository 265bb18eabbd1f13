// When threads of a block that wait for each other may go on, and which waits never end.
#include "emulator/grid.h"

namespace cuda_on_cpu {
namespace {

std::string count(size_t n, size_t of) { return std::to_string(n) + " of " + std::to_string(of); }

// The lanes of a warp that exist.
struct Warp {
  std::vector<Thread*> lanes;
};

Warp warp_of(Block& block, const Thread& thread) {
  Warp warp;
  const size_t first = thread.index - thread.lane();
  for (size_t i = first; i < first + kWarpLanes && i < block.threads.size(); ++i) {
    warp.lanes.push_back(block.threads[i].get());
  }
  return warp;
}

// Whether every lane that the thread's mask names takes part in its operation.
bool complete(const Warp& warp, const Thread& thread) {
  const std::string mine =
      "lane " + std::to_string(thread.lane()) + " waits in " + thread.operation;
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    if ((thread.mask >> lane & 1) == 0) continue;
    const std::string theirs = ", whose mask names lane " + std::to_string(lane);
    if (lane >= warp.lanes.size()) fail(mine + theirs + ", which the block does not have");
    const Thread& other = *warp.lanes[lane];
    if (other.state == State::kExited) fail(mine + theirs + ", which has exited");
    if (other.state != State::kAtWarp) return false;
    if (other.mask != thread.mask || std::string(other.operation) != thread.operation) {
      fail(mine + theirs + ", which waits in " + other.operation + " or with another mask");
    }
  }
  return true;
}

void finish(const Warp& warp, unsigned mask) {
  unsigned ballot = 0;
  for (Thread* thread : warp.lanes) {
    if (mask >> thread->lane() & 1) ballot |= (thread->value != 0 ? 1u : 0u) << thread->lane();
  }
  const bool votes = std::string(warp.lanes[__builtin_ctz(mask)]->operation) == "__ballot_sync";
  for (Thread* thread : warp.lanes) {
    if ((mask >> thread->lane() & 1) == 0) continue;
    if ((mask >> thread->source & 1) == 0) {
      fail("lane " + std::to_string(thread->lane()) + " reads lane " +
           std::to_string(thread->source) + ", which its mask does not name");
    }
    thread->result = votes ? ballot : warp.lanes[static_cast<size_t>(thread->source)]->value;
    thread->state = State::kReady;
  }
}

bool release_warps(Block& block) {
  bool released = false;
  for (const auto& thread : block.threads) {
    if (thread->state != State::kAtWarp) continue;
    const Warp warp = warp_of(block, *thread);
    if (!complete(warp, *thread)) continue;
    finish(warp, thread->mask);
    released = true;
  }
  return released;
}

bool release_barrier(Block& block) {
  size_t at_barrier = 0;
  const Thread* first = nullptr;
  for (const auto& thread : block.threads) {
    if (thread->state != State::kAtBlockBarrier) continue;
    ++at_barrier;
    if (first == nullptr) first = thread.get();
    if (!(first->site == thread->site)) {
      fail("threads of " + block.text() + " wait at different barriers, " + first->site.text() +
           " and " + thread->site.text());
    }
  }
  if (at_barrier == 0 || at_barrier + block.exited < block.threads.size()) return false;
  if (block.exited > 0) {
    fail("__syncthreads at " + first->site.text() + " is reached by " +
         count(at_barrier, block.threads.size()) + " threads of " + block.text() +
         ", the others have exited");
  }
  ++block.barriers;
  for (const auto& thread : block.threads) thread->state = State::kReady;
  return true;
}

}  // namespace

bool release_waiting(Block& block) {
  const bool warps = release_warps(block);
  return release_barrier(block) || warps;
}

}  // namespace cuda_on_cpu
