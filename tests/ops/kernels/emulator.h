// Kernels of a GPU on a CPU: a C++ compiler, told to `-include` this, makes of a .cu a library that runs its grid.
//
// The threads of a block are fibers of one thread, and each runs up to a barrier; in which order is drawn anew between any
// two barriers. So where a barrier is missing the result depends on the seed. With -DEMU_THREADS each is a thread of the
// system, for -fsanitize=thread. Shared memory is NaN when a block begins. Blocks run one after another.
//
// Known: one dimension of threads and blocks, __shared__, __syncthreads, __shfl_xor_sync by all threads of a warp.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

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
}  // namespace emulated

#ifdef EMU_THREADS
#include <barrier>
#include <memory>
#include <thread>
inline thread_local Index threadIdx, blockIdx;

namespace emulated {
inline std::unique_ptr<std::barrier<>> block;
inline std::vector<std::unique_ptr<std::barrier<>>> warps;

inline void wait_for_block() { block->arrive_and_wait(); }
inline void wait_for_warp() { warps[threadIdx.x / WARP]->arrive_and_wait(); }

inline void run_block(unsigned number, int threads, const std::function<void()>& body) {
  block = std::make_unique<std::barrier<>>(threads);
  warps.clear();
  for (int i = 0; i < threads; i += WARP) warps.push_back(std::make_unique<std::barrier<>>(std::min(WARP, threads - i)));
  std::vector<std::thread> all;
  for (int i = 0; i < threads; i++)
    all.emplace_back([&, i] {
      threadIdx.x = i, blockIdx.x = number;
      body();
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
  std::vector<char> stack;
};
inline std::vector<Fiber> fibers;
inline ucontext_t home_begin;
inline jmp_buf home;
inline const std::function<void()>* task;
inline std::mt19937 order;
inline void seed(unsigned x) { order.seed(x); }

inline void leave(Place place) {
  Fiber& fiber = fibers[threadIdx.x];
  fiber.place = place;
  if (!_setjmp(fiber.here)) _longjmp(home, 1);
}
inline void wait_for_block() { leave(AT_BLOCK); }
inline void wait_for_warp() { leave(AT_WARP); }
inline void begin() {
  (*task)();
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

inline void run_block(unsigned number, int threads, const std::function<void()>& body) {
  task = &body, blockIdx.x = number;
  if ((int)fibers.size() < threads) fibers.resize(threads);
  std::vector<int> turn(threads);
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.stack.resize(128 << 10);
    getcontext(&fiber.begin);
    fiber.begin.uc_stack.ss_sp = fiber.stack.data(), fiber.begin.uc_stack.ss_size = fiber.stack.size();
    fiber.begin.uc_link = nullptr;
    makecontext(&fiber.begin, begin, 0);
    fiber.begun = false, fiber.place = READY, turn[i] = i;
  }
  for (;;) {
    bool moves = false;
    std::shuffle(turn.begin(), turn.end(), order);
    for (int i : turn)
      if (fibers[i].place == READY) moves = true, go_on(i);
    for (int i = 0; i < threads; i += WARP) moves |= released(i, std::min(i + WARP, threads), AT_WARP);
    moves |= released(0, threads, AT_BLOCK);
    if (moves) continue;
    for (int i = 0; i < threads; i++)
      if (fibers[i].place != DONE) {
        std::fprintf(stderr, "emulator: some threads wait for others that never come\n");
        std::abort();
      }
    return;
  }
}
}  // namespace emulated
#endif

inline void __syncthreads() { emulated::wait_for_block(); }
inline float __shfl_xor_sync(unsigned, float x, int mask) {
  const unsigned me = threadIdx.x, place = emulated::shows[me]++ % 2;
  std::memcpy(&emulated::shown[place][me], &x, sizeof x);
  emulated::wait_for_warp();
  std::memcpy(&x, &emulated::shown[place][me ^ mask], sizeof x);
  return x;
}
inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

extern "C" __attribute__((visibility("hidden"), weak)) char __start_shared_memory[], __stop_shared_memory[];

namespace emulated {
// As the driver starts a kernel: with addresses of its arguments.
template <class... P, size_t... I>
void launch(unsigned blocks, int threads, void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  std::fill(shows, shows + MOST_THREADS, 0u);
  for (unsigned block = 0; block < blocks; block++) {
    if (__start_shared_memory) std::memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    run_block(block, threads, [&] { kernel(*(std::remove_reference_t<P>*)arguments[I]...); });
  }
}
template <class... P> void launch(unsigned blocks, int threads, void (*kernel)(P...), void** arguments) {
  launch(blocks, threads, kernel, arguments, std::index_sequence_for<P...>{});
}
}  // namespace emulated
