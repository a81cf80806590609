// What a CUDA kernel needs to run on a CPU: one thread of the system for each thread of a block, a barrier, and copies
// that arrive as late as they may.
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

using std::max;
using std::min;

struct Index { int x, y, z; };
static thread_local Index threadIdx, blockIdx;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

#define __global__
#define __launch_bounds__(count)

static pthread_barrier_t emulated_barrier;
static inline void __syncthreads() { pthread_barrier_wait(&emulated_barrier); }

struct Copy { void *to; const void *from; int bytes; };
static thread_local std::vector<Copy> open_copies;
static thread_local std::deque<std::vector<Copy>> groups;

static inline void fxprune_copy4(void *to, const void *from) { open_copies.push_back({to, from, 4}); }
static inline void fxprune_copy8(void *to, const void *from) { open_copies.push_back({to, from, 8}); }
static inline void fxprune_copy16(void *to, const void *from) { open_copies.push_back({to, from, 16}); }
static inline void fxprune_commit() { groups.push_back(std::move(open_copies)); open_copies.clear(); }
static inline void emulate_wait(size_t left) {
  for (; groups.size() > left; groups.pop_front())
    for (const Copy &copy : groups.front()) {
      if ((size_t)copy.to % copy.bytes || (size_t)copy.from % copy.bytes) abort();  // a GPU faults here
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
}
static inline void fxprune_wait0() { emulate_wait(0); }
static inline void fxprune_wait1() { emulate_wait(1); }
static inline void fxprune_wait2() { emulate_wait(2); }

template <typename Kernel>
static void emulate(int blocks_x, int blocks_y, int threads, Kernel kernel) {
  pthread_barrier_init(&emulated_barrier, nullptr, threads);
  std::vector<std::thread> running;
  for (int thread = 0; thread < threads; ++thread)
    running.emplace_back([=] {
      threadIdx = {thread, 0, 0};
      for (int block = 0; block < blocks_x * blocks_y; ++block) {
        blockIdx = {block % blocks_x, block / blocks_x, 0};
        kernel();
        groups.clear();
        __syncthreads();  // the next block has this one's shared memory
      }
    });
  for (std::thread &thread : running) thread.join();
  pthread_barrier_destroy(&emulated_barrier);
}
