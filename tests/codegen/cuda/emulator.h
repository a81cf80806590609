// What a CUDA kernel needs to run on a CPU: fibers for the threads of a block, in an order that is drawn anew between two
// barriers; asynchronous copies that arrive at once or as late as they may, drawn for each; a warp's products together.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

using std::max;
using std::min;

struct Index { int x, y, z; };
static Index threadIdx, blockIdx;

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

#define __global__
#define __launch_bounds__(count)

[[noreturn]] static void fail(const char *what) {
  std::fprintf(stderr, "emulator: %s (block %d %d, thread %d)\n", what, blockIdx.x, blockIdx.y, threadIdx.x);
  std::abort();  // a GPU faults or hangs here
}

// Threads.

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 1 << 16;
enum Wait { NOTHING, BLOCK, MULTIPLY, LOAD, END };
struct Copy { void *to; const void *from; int bytes; };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(STACK_BYTES);
  Wait waits = NOTHING;
  void *to;             // of the instruction that the warp executes together
  const void *from[2];
  unsigned (*widen)(unsigned short);  // a cell of 16 bits; none: the cells are TF32
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
static std::vector<Fiber> fibers;
static std::function<void()> emulated_kernel;
static ucontext_t scheduler;
static int current;
static std::mt19937 draw;

static void wait_for(Wait what) {
  fibers[current].waits = what;
  swapcontext(&fibers[current].context, &scheduler);
}
static void run_fiber() {
  emulated_kernel();
  wait_for(END);
}
static inline void __syncthreads() { wait_for(BLOCK); }

// Asynchronous copies.

static inline void finish(const Copy &copy) { std::memcpy(copy.to, copy.from, copy.bytes); }
static inline void start(void *to, const void *from, int bytes) {
  if ((size_t)to % bytes || (size_t)from % bytes) fail("a copy is not aligned");
  const Copy copy = {to, from, bytes};
  if (draw() % 2) finish(copy);
  else fibers[current].open.push_back(copy);
}
static inline void fxprune_copy4(void *to, const void *from) { start(to, from, 4); }
static inline void fxprune_copy8(void *to, const void *from) { start(to, from, 8); }
static inline void fxprune_copy16(void *to, const void *from) { start(to, from, 16); }
static inline void fxprune_move2(void *to, const void *from) { std::memcpy(to, from, 2); }
static inline void fxprune_commit() {
  Fiber &fiber = fibers[current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
static inline void emulate_wait(size_t left) {
  for (auto &groups = fibers[current].groups; groups.size() > left; groups.pop_front())
    for (const Copy &copy : groups.front()) finish(copy);
}
static inline void fxprune_wait0() { emulate_wait(0); }
static inline void fxprune_wait1() { emulate_wait(1); }
static inline void fxprune_wait2() { emulate_wait(2); }
static inline void fxprune_wait3() { emulate_wait(3); }

// Cells.

template <typename To, typename From>
static inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
static unsigned widen_bf16(unsigned short cell) { return (unsigned)cell << 16; }
static unsigned short narrow_bf16(float x) {
  const unsigned all = bits<unsigned>(x);
  if (x != x) return 0x7fff;
  return (all + 0x7fff + (all >> 16 & 1)) >> 16;
}
static unsigned widen_f16(unsigned short cell) {
  const int exponent = cell >> 10 & 31, fraction = cell & 1023;
  float size = exponent == 0    ? std::ldexp((float)fraction, -24)
               : exponent == 31 ? (fraction ? NAN : INFINITY)
                                : std::ldexp((float)(fraction + 1024), exponent - 25);
  return bits<unsigned>(cell & 0x8000 ? -size : size);
}
static unsigned short narrow_f16(float x) {
  const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  if (x != x) return 0x7fff;
  const double size = std::fabs((double)x);
  if (size >= 65520) return sign | 0x7c00;
  int exponent = std::max(size ? std::ilogb(size) : -14, -14);
  const int steps = (int)std::nearbyint(std::ldexp(size, 10 - exponent));  // to even, as the processor starts with
  return sign | (unsigned short)(((exponent + 14) << 10) + steps);          // a carry goes into the exponent
}
static inline void start_product(float *d, const unsigned *a, const unsigned *b, unsigned (*widen)(unsigned short)) {
  Fiber &fiber = fibers[current];
  fiber.to = d, fiber.from[0] = a, fiber.from[1] = b, fiber.widen = widen;
  wait_for(MULTIPLY);
}
#define CELLS(type)                                                                                             \
  static inline void fxprune_read1_##type(float *to, const void *from) {                                        \
    to[0] = bits<float>(widen_##type(*(const unsigned short *)from));                                           \
  }                                                                                                             \
  static inline void fxprune_read2_##type(float *to, const void *from) {                                        \
    if ((size_t)from % 4) fail("a pair is not aligned");                                                        \
    for (int i = 0; i < 2; ++i) to[i] = bits<float>(widen_##type(((const unsigned short *)from)[i]));           \
  }                                                                                                             \
  static inline void fxprune_write1_##type(void *to, float x) { *(unsigned short *)to = narrow_##type(x); }     \
  static inline void fxprune_write2_##type(void *to, float low, float high) {                                   \
    if ((size_t)to % 4) fail("a pair is not aligned");                                                          \
    ((unsigned short *)to)[0] = narrow_##type(low), ((unsigned short *)to)[1] = narrow_##type(high);            \
  }                                                                                                             \
  static inline void fxprune_multiply_##type(float *d, const unsigned *a, const unsigned *b) {                  \
    start_product(d, a, b, widen_##type);                                                                       \
  }
CELLS(bf16)
CELLS(f16)
static unsigned round_tf32(float x) {  // to nearest, ties away from zero: cvt.rna
  const unsigned all = bits<unsigned>(x);
  return std::isfinite(x) ? (all + 0x1000) & ~0x1fffu : all;
}
static inline void fxprune_load_rounded(unsigned *to, const float *from, int next) {
  to[0] = round_tf32(from[0]), to[1] = round_tf32(from[next]);
}
static inline void fxprune_load_cut(unsigned *to, const float *from, int next) {  // a mistake
  to[0] = bits<unsigned>(from[0]), to[1] = bits<unsigned>(from[next]);
}
static inline void fxprune_multiply_tf32(float *d, const unsigned *a, const unsigned *b) {
  start_product(d, a, b, nullptr);
}
static inline void fxprune_read1_f32(float *to, const void *from) { to[0] = *(const float *)from; }
static inline void fxprune_read2_f32(float *to, const void *from) {
  if ((size_t)from % 8) fail("a pair is not aligned");
  to[0] = ((const float *)from)[0], to[1] = ((const float *)from)[1];
}
static inline void fxprune_write1_f32(void *to, float x) { *(float *)to = x; }
static inline void fxprune_write2_f32(void *to, float x, float y) {
  if ((size_t)to % 8) fail("a pair is not aligned");
  ((float *)to)[0] = x, ((float *)to)[1] = y;
}

// What a warp does together; fragments as the PTX ISA has them in "Matrix Fragments for mma.m16n8k16", those
// "for mma.m16n8k8", and "ldmatrix".

static inline void fxprune_load_transposed(unsigned *to, const void *from) {
  Fiber &fiber = fibers[current];
  fiber.to = to, fiber.from[0] = from;
  wait_for(LOAD);
}
static float cell_of(const Fiber &fiber, int operand, int number) {  // 0 is the lower half of the first register
  if (!fiber.widen) return bits<float>(((const unsigned *)fiber.from[operand])[number] & ~0x1fffu);  // cut, not rounded
  const unsigned both = ((const unsigned *)fiber.from[operand])[number / 2];
  return bits<float>(fiber.widen(number % 2 ? both >> 16 : both & 0xffff));
}
static void multiply(Fiber *warp) {
  const int word = warp[0].widen ? 2 : 1, steps = 8 * word;  // cells of a register, columns of a
  double a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < WARP; ++lane) {
    const int group = lane >> 2, within = lane % 4;
    for (int i = 0; i < 4 * word; ++i) {
      const int reg = i / word, row = reg % 2 ? group + 8 : group;
      const int column = within * word + i % word + (reg >= 2 ? steps / 2 : 0);
      a[row][column] = cell_of(warp[lane], 0, i);
    }
    for (int i = 0; i < 2 * word; ++i)
      b[within * word + i % word + (i >= word ? steps / 2 : 0)][group] = cell_of(warp[lane], 1, i);
  }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      d[row][column] = 0;
      for (int k = 0; k < steps; ++k) d[row][column] += a[row][k] * b[k][column];
    }
  for (int lane = 0; lane < WARP; ++lane)
    for (int i = 0; i < 4; ++i)
      ((float *)warp[lane].to)[i] += (float)d[(lane >> 2) + (i < 2 ? 0 : 8)][lane % 4 * 2 + (i & 1)];
}
static void load_transposed(Fiber *warp) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    const unsigned short *rows[8];
    for (int row = 0; row < 8; ++row) {
      rows[row] = (const unsigned short *)warp[matrix * 8 + row].from[0];
      if ((size_t)rows[row] % 16) fail("a row of ldmatrix is not aligned");
    }
    // Without .trans thread t has row t / 4, cells 2 * (t % 4) and the next; with it rows and columns change places.
    for (int lane = 0; lane < WARP; ++lane)
      ((unsigned *)warp[lane].to)[matrix] =
          rows[lane % 4 * 2][lane / 4] | (unsigned)rows[lane % 4 * 2 + 1][lane / 4] << 16;
  }
}

// Blocks.

static bool all_wait(const Fiber *first, int count, Wait what) {
  return std::all_of(first, first + count, [=](const Fiber &fiber) { return fiber.waits == what; });
}
static void release(Fiber *first, int count) {
  for (int i = 0; i < count; ++i) first[i].waits = NOTHING;
}
static void run_block(int threads) {
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  for (Fiber &fiber : fibers) {
    fiber.waits = NOTHING, fiber.open.clear(), fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber.context, run_fiber, 0);
  }
  while (!all_wait(fibers.data(), threads, END)) {
    bool moved = false;
    std::shuffle(order.begin(), order.end(), draw);
    for (int thread : order)
      if (fibers[thread].waits == NOTHING) {
        current = thread, threadIdx = {thread, 0, 0}, moved = true;
        swapcontext(&scheduler, &fibers[thread].context);
      }
    for (Fiber *warp = fibers.data(); warp + WARP <= fibers.data() + threads; warp += WARP) {
      if (all_wait(warp, WARP, MULTIPLY)) multiply(warp), release(warp, WARP), moved = true;
      if (all_wait(warp, WARP, LOAD)) load_transposed(warp), release(warp, WARP), moved = true;
    }
    if (all_wait(fibers.data(), threads, BLOCK)) release(fibers.data(), threads), moved = true;
    if (!moved) fail("threads wait for each other for ever");
  }
}
template <typename Kernel>
static void emulate(int blocks_x, int blocks_y, int threads, Kernel kernel) {
  draw.seed(threads);
  fibers = std::vector<Fiber>(threads);
  emulated_kernel = kernel;
  for (int block = 0; block < blocks_x * blocks_y; ++block) {
    blockIdx = {block % blocks_x, block / blocks_x, 0};
    run_block(threads);
  }
  fibers.clear();
}
