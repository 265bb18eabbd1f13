// A launched grid: clusters of blocks of threads, and what each thread waits for.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "emulator/fiber.h"

namespace cuda_on_cpu {

constexpr unsigned kWarpLanes = 32;

struct Block;
struct Cluster;

// A place in the source.
struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& other) const;
  std::string text() const;
};

enum class State { kReady, kAtBlockBarrier, kAtWarp, kAtCluster, kExited };

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  unsigned index = 0;
  State state = State::kReady;
  Site site;          // of the barrier it waits at
  bool spun = false;  // its last step ended in polling memory that others write

  // The warp operation it takes part in.
  const char* operation = "";
  unsigned mask = 0;
  uint64_t value = 0;
  int source = 0;
  uint64_t result = 0;

  // Between the two halves of a cluster barrier.
  bool arrived = false;
  uint64_t arrival = 0;

  unsigned lane() const { return index % kWarpLanes; }
};

// Shared memory of one declaration, filled with 0xff: a read before the first write gives NaN.
struct SharedPart {
  SharedPart(Site site, size_t bytes);
  void end();  // after the block's last thread: reading it is an error

  Site site;
  size_t bytes;
  char sync = 0;  // its memory belongs to the allocating thread, then to all
  std::unique_ptr<unsigned char, decltype(&std::free)> memory;
};

struct Block {
  Block(Cluster* cluster, unsigned index, unsigned rank, unsigned threads);
  SharedPart& shared(Site site, size_t bytes);
  std::string text() const;

  Cluster* cluster;
  unsigned index;
  unsigned rank;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<SharedPart>> parts;
  unsigned exited = 0;
  uint64_t barriers = 0;
  char barrier_sync[2] = {};  // addresses that stand for even and odd barriers
  std::vector<char> warp_sync;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  unsigned arrived = 0;
  uint64_t phase = 0;
  char sync[2] = {};
  bool done() const;
  size_t thread_count() const;
};

struct Shape {
  unsigned blocks;
  unsigned threads;
  unsigned cluster;
  size_t dynamic_bytes;
};

struct Grid {
  Grid(const Shape& shape, std::function<void()> body);
  void run();

  Shape shape;
  std::function<void()> body;
  char start_sync = 0;
  char end_sync = 0;

 private:
  void admit();
  Block* pick();
  void run_block(Block& block);
  bool run_round(Block& block);

  std::mt19937 random_;
  bool shuffled_;
  size_t most_resident_ = 1;
  unsigned admitted_ = 0;
  std::vector<unsigned> order_;  // of the clusters
  std::vector<std::unique_ptr<Cluster>> resident_;
  std::vector<std::unique_ptr<Cluster>> ended_;  // kept: fibers own what they allocated
  long idle_rounds_ = 0;
};

// What runs now; null between launches and on the host.
extern Grid* grid;
extern Thread* current;

// Leaves the current thread until its state is kReady again.
void wait_as(State state);

// Prints the message, and where the current thread is, and ends the process.
[[noreturn]] void fail(const std::string& message);

// Wakes the threads of a block whose barrier or warp operation is complete.
bool release_waiting(Block& block);

}  // namespace cuda_on_cpu
