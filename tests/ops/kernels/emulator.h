// Kernels of a GPU on a CPU: a C++ compiler, told to `-include` this, makes of a .cu a library that runs its grid.
//
// The threads of a block are fibers of one thread, and each runs up to a barrier; in which order, and how far one warp gets
// ahead of the others, is drawn. So where a barrier is missing the result depends on the seed. With -DEMU_THREADS each is a
// thread of the system, for -fsanitize=thread. Shared memory is NaN when a block begins. Blocks run one after another.
//
// Known: one dimension of threads and blocks, __shared__, __syncthreads, __shfl_xor_sync by all threads of a warp.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("shared_memory")))

struct Index { unsigned x; };

namespace emulated {
constexpr int WARP = 32, MOST_THREADS = 1024;

// Each thread's number, and what it shows the others of its warp, in turn in one of two places.
inline long long shown[2][MOST_THREADS];
inline unsigned shows[MOST_THREADS];

// What each thread does.
struct Body {
  void (*run)(void** arguments);
  void** arguments;
};
inline int smaller(int x, int y) { return x < y ? x : y; }
}  // namespace emulated

#ifdef EMU_THREADS
#include <barrier>
#include <memory>
#include <thread>
#include <vector>
inline thread_local Index threadIdx, blockIdx;

namespace emulated {
inline std::unique_ptr<std::barrier<>> block;
inline std::vector<std::unique_ptr<std::barrier<>>> warps;

inline void wait_for_block() { block->arrive_and_wait(); }
inline void wait_for_warp() { warps[threadIdx.x / WARP]->arrive_and_wait(); }

inline void run_block(unsigned number, int threads, Body body) {
  block = std::make_unique<std::barrier<>>(threads);
  warps.clear();
  for (int i = 0; i < threads; i += WARP) warps.push_back(std::make_unique<std::barrier<>>(smaller(WARP, threads - i)));
  std::vector<std::thread> all;
  for (int i = 0; i < threads; i++)
    all.emplace_back([&, i] {
      threadIdx.x = i, blockIdx.x = number;
      body.run(body.arguments);
    });
  for (std::thread& one : all) one.join();
}
inline void seed(unsigned) {}
}  // namespace emulated
#else
#include <setjmp.h>
#include <ucontext.h>
inline Index threadIdx, blockIdx;

namespace emulated {
enum Place { READY, AT_BLOCK, AT_WARP, DONE };
struct Fiber {
  ucontext_t begin;
  jmp_buf here;
  bool begun;
  Place place;
  char* stack;
};
constexpr size_t STACK = 128 << 10;
inline Fiber fibers[MOST_THREADS];
inline jmp_buf home;
inline Body task;
inline unsigned long long state;
inline void seed(unsigned x) { state = 0x9e3779b97f4a7c15ull * (x + 1); }
inline unsigned drawn(unsigned below) {  // xorshift64*
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return (unsigned)((state * 0x2545f4914f6cdd1dull) >> 32) % below;
}

inline void leave(Place place) {
  Fiber& fiber = fibers[threadIdx.x];
  fiber.place = place;
  if (!_setjmp(fiber.here)) _longjmp(home, 1);
}
inline void wait_for_block() { leave(AT_BLOCK); }
inline void wait_for_warp() { leave(AT_WARP); }
inline void begin() {
  task.run(task.arguments);
  leave(DONE);
}
inline void go_on(int i) {
  Fiber& fiber = fibers[i];
  threadIdx.x = i;
  if (_setjmp(home)) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  setcontext(&fiber.begin);
}

// Those of [from, to) go on if all of them wait at such a place.
inline bool released(int from, int to, Place place) {
  for (int i = from; i < to; i++)
    if (fibers[i].place != place) return false;
  for (int i = from; i < to; i++) fibers[i].place = READY;
  return true;
}

inline int first_ready(int from, int to) {
  for (int i = from; i < to; i++)
    if (fibers[i].place == READY) return i;
  return -1;
}

inline void run_block(unsigned number, int threads, Body body) {
  task = body, blockIdx.x = number;
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
    getcontext(&fiber.begin);
    fiber.begin.uc_stack.ss_sp = fiber.stack, fiber.begin.uc_stack.ss_size = STACK;
    fiber.begin.uc_link = nullptr;
    makecontext(&fiber.begin, begin, 0);
    fiber.begun = false, fiber.place = READY;
  }
  const int warps = (threads + WARP - 1) / WARP;
  for (int warp = 0;;) {
    if (first_ready(0, threads) < 0 && !released(0, threads, AT_BLOCK)) break;
    // One warp may go on for long while others stand: so it comes to where it should have waited for them.
    int from = warp * WARP, to = smaller(from + WARP, threads);
    if (first_ready(from, to) < 0 || drawn(64) == 0) {
      warp = (int)drawn(warps);
      continue;
    }
    int turn[WARP];
    for (int i = 0; i < to - from; i++) turn[i] = from + i;
    for (int i = to - from - 1; i > 0; i--) std::swap(turn[i], turn[drawn(i + 1)]);
    for (int i = 0; i < to - from; i++)
      if (fibers[turn[i]].place == READY) go_on(turn[i]);
    released(from, to, AT_WARP);
  }
  for (int i = 0; i < threads; i++)
    if (fibers[i].place != DONE) {
      fprintf(stderr, "emulator: some threads wait for others that never come\n");
      abort();
    }
}
}  // namespace emulated
#endif

inline void __syncthreads() { emulated::wait_for_block(); }
inline float __shfl_xor_sync(unsigned, float x, int mask) {
  const unsigned me = threadIdx.x, place = emulated::shows[me]++ % 2;
  memcpy(&emulated::shown[place][me], &x, sizeof x);
  emulated::wait_for_warp();
  memcpy(&x, &emulated::shown[place][me ^ mask], sizeof x);
  return x;
}
inline float __uint_as_float(unsigned x) {
  float y;
  memcpy(&y, &x, sizeof y);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  memcpy(&y, &x, sizeof y);
  return y;
}
inline int __float2int_rn(float x) { return x == x ? (int)rintf(x) : 0; }

extern "C" __attribute__((visibility("hidden"), weak)) char __start_shared_memory[], __stop_shared_memory[];

namespace emulated {
// As the driver starts a kernel: with addresses of its arguments.
template <auto KERNEL> struct Kernel;
template <class... P, void (*KERNEL)(P...)> struct Kernel<KERNEL> {
  template <size_t... I> static void call(void** arguments, std::index_sequence<I...>) { KERNEL(*(P*)arguments[I]...); }
  static void run(void** arguments) { call(arguments, std::index_sequence_for<P...>{}); }
};

template <auto KERNEL> void launch(unsigned blocks, int threads, void** arguments) {
  memset(shows, 0, sizeof shows);
  for (unsigned block = 0; block < blocks; block++) {
    if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    run_block(block, threads, {Kernel<KERNEL>::run, arguments});
  }
}
}  // namespace emulated
