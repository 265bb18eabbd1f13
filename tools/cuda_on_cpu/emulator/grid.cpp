#include "emulator/grid.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_on_cpu {
namespace {

// Rounds in which every thread only polled memory.
constexpr long kMostIdleRounds = 100000;
constexpr size_t kMostResident = 4;

void run_thread() {
  current->fiber.entered();
  happens_after(&grid->start_sync);
  grid->body();
  if (current->arrived) fail("a thread ends between the two halves of a cluster barrier");
  happens_before(&grid->end_sync);
  current->state = State::kExited;
  ++current->block->exited;
  current->fiber.leave(true);
}

bool runnable(const Thread& thread) {
  if (thread.state == State::kAtCluster) return thread.block->cluster->phase != thread.arrival;
  return thread.state == State::kReady;
}

}  // namespace

Grid* grid = nullptr;
Thread* current = nullptr;

bool Site::operator==(const Site& other) const {
  return line == other.line && std::strcmp(file, other.file) == 0;
}

std::string Site::text() const {
  const char* name = std::strrchr(file, '/');
  return std::string(name == nullptr ? file : name + 1) + ":" + std::to_string(line);
}

SharedPart::SharedPart(Site site, size_t bytes)
    : site(site), bytes(bytes), memory(nullptr, &std::free) {
  constexpr size_t kAlignment = 128;
  void* p = nullptr;
  if (posix_memalign(&p, kAlignment, std::max<size_t>(bytes, 1)) != 0) fail("out of memory");
  memory.reset(static_cast<unsigned char*>(p));
  std::memset(p, 0xff, bytes);
  happens_before(&sync);
}

void SharedPart::end() {
  // Not memset: the thread sanitizer would take that for a write by the scheduler.
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(memory.get())[i] = 0xff;
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(memory.get(), bytes);
#endif
}

Block::Block(Cluster* cluster, unsigned index, unsigned rank, unsigned count)
    : cluster(cluster), index(index), rank(rank), warp_sync((count + kWarpLanes - 1) / kWarpLanes) {
  for (unsigned i = 0; i < count; ++i) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->block = this;
    threads.back()->index = i;
    threads.back()->fiber.begin(run_thread);
  }
}

SharedPart& Block::shared(Site site, size_t bytes) {
  size_t total = bytes;
  for (const auto& part : parts) {
    if (part->site == site && part->bytes == bytes) {
      happens_after(&part->sync);
      return *part;
    }
    total += part->bytes;
  }
  if (total > static_cast<size_t>(device.shared_bytes)) {
    fail("a block wants " + std::to_string(total) + " bytes of shared memory, the device has " +
         std::to_string(device.shared_bytes));
  }
  parts.push_back(std::make_unique<SharedPart>(site, bytes));
  return *parts.back();
}

std::string Block::text() const { return "block " + std::to_string(index); }

bool Cluster::done() const {
  return std::all_of(blocks.begin(), blocks.end(),
                     [](const auto& block) { return block->exited == block->threads.size(); });
}

size_t Cluster::thread_count() const { return blocks.size() * blocks[0]->threads.size(); }

Grid::Grid(const Shape& shape, std::function<void()> body)
    : shape(shape), body(std::move(body)), random_(device.seed), shuffled_(device.seed != 0) {
  order_.resize(shape.blocks / shape.cluster);
  for (unsigned i = 0; i < order_.size(); ++i) order_[i] = i;
  if (shuffled_) {
    std::shuffle(order_.begin(), order_.end(), random_);
    most_resident_ = 1 + random_() % kMostResident;
  }
}

void Grid::admit() {
  while (resident_.size() < most_resident_ && admitted_ < order_.size()) {
    auto cluster = std::make_unique<Cluster>();
    const unsigned first = order_[admitted_++] * shape.cluster;
    for (unsigned rank = 0; rank < shape.cluster; ++rank) {
      cluster->blocks.push_back(
          std::make_unique<Block>(cluster.get(), first + rank, rank, shape.threads));
    }
    resident_.push_back(std::move(cluster));
  }
}

// A block that can go on: any, or the first if schedules are not shuffled.
Block* Grid::pick() {
  std::vector<Block*> ready;
  for (const auto& cluster : resident_) {
    for (const auto& block : cluster->blocks) {
      const auto& threads = block->threads;
      if (std::any_of(threads.begin(), threads.end(), [](auto& t) { return runnable(*t); })) {
        ready.push_back(block.get());
      }
    }
  }
  if (ready.empty()) return nullptr;
  // Not always the first one: it may be polling what another block writes.
  return ready[shuffled_ ? random_() % ready.size() : idle_rounds_ % ready.size()];
}

// Runs every thread of the block that can go on up to its next wait. False: all only polled.
bool Grid::run_round(Block& block) {
  std::vector<Thread*> ready;
  for (const auto& thread : block.threads) {
    if (runnable(*thread)) ready.push_back(thread.get());
  }
  if (shuffled_) std::shuffle(ready.begin(), ready.end(), random_);
  bool moved = false;
  for (Thread* thread : ready) {
    thread->state = State::kReady;
    thread->spun = false;
    current = thread;
    thread->fiber.enter();
    current = nullptr;
    moved |= !thread->spun;
  }
  if (block.exited == block.threads.size()) {
    for (const auto& part : block.parts) part->end();
    for (const auto& thread : block.threads) thread->fiber.end();
  }
  return release_waiting(block) || moved;
}

void Grid::run_block(Block& block) {
  // Half of the time one block runs as far as it can, so that blocks get far apart.
  const bool far = shuffled_ && random_() % 2 == 0;
  do {
    const bool moved = run_round(block);
    idle_rounds_ = moved ? 0 : idle_rounds_ + 1;
    if (!moved) break;
    const auto& threads = block.threads;
    if (std::none_of(threads.begin(), threads.end(), [](auto& t) { return runnable(*t); })) break;
  } while (far);
  if (idle_rounds_ > kMostIdleRounds) {
    fail("no progress: every thread that can run looks at memory that nobody writes, " +
         block.text() + " among them");
  }
}

void Grid::run() {
  grid = this;
  happens_before(&start_sync);
  for (admit(); !resident_.empty(); admit()) {
    Block* block = pick();
    if (block == nullptr) {
      std::string waiting;
      for (const auto& thread : resident_[0]->blocks[0]->threads) {
        if (thread->state == State::kAtCluster) waiting = " waits for the others of its cluster";
        if (thread->state == State::kAtBlockBarrier) waiting = " waits at " + thread->site.text();
        if (thread->state == State::kAtWarp)
          waiting = " waits in " + std::string(thread->operation);
        if (!waiting.empty()) fail("deadlock: thread " + std::to_string(thread->index) + waiting);
      }
      fail("deadlock: some threads of a cluster ended before a barrier of the others");
    }
    run_block(*block);
    const auto done = std::partition(resident_.begin(), resident_.end(),
                                     [](const auto& cluster) { return !cluster->done(); });
    std::move(done, resident_.end(), std::back_inserter(ended_));
    resident_.erase(done, resident_.end());
  }
  happens_after(&end_sync);
  grid = nullptr;
}

void wait_as(State state) {
  current->state = state;
  current->fiber.leave(false);
}

void fail(const std::string& message) {
  std::string where;
  if (current != nullptr) {
    where = " (" + current->block->text() + ", thread " + std::to_string(current->index) + ")";
  }
  std::fflush(stdout);
  std::fprintf(stderr, "CUDA on CPU: %s%s\n", message.c_str(), where.c_str());
  std::_Exit(70);
}

}  // namespace cuda_on_cpu
