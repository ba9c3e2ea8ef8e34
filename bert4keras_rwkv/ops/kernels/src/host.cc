// From a name to a kernel: which instruction set, what it was given, who helps. For XLA (FFI) and for ctypes.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "shapes.h"
#include "vectors.h"

#if defined(__x86_64__) && !defined(ONLY_PLAIN)
#define HAS_LEVELS
#include <cpuid.h>
#endif
#define DECLARE(level) extern const Kernel matrix_state_##level[], wkv4_##level[], product_##level[], product_many_##level[], product_dense_##level[];
#ifdef HAS_LEVELS
extern const Kernel product_vnni[], product_many_vnni[], product_bf16[], product_many_bf16[], product_avxvnni[], product_many_avxvnni[];
DECLARE(avx512)
DECLARE(avx2)
#endif
DECLARE(plain)

namespace {
struct Level {
  const char* name;
  bool (*here)();
  const Kernel* tables[5];
};
#ifdef HAS_LEVELS
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_bf16() { return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"); }
bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"); }
bool has_avxvnni() {  // GCC has a name for it since version 12 only
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif
bool always() { return true; }
const Level LEVELS[] = {
#ifdef HAS_LEVELS
#ifndef NO_BF16
    {"bf16", has_bf16, {matrix_state_avx512, wkv4_avx512, product_bf16, product_many_bf16, product_dense_avx512}},
#endif
#ifndef NO_VNNI
    {"vnni", has_vnni, {matrix_state_avx512, wkv4_avx512, product_vnni, product_many_vnni, product_dense_avx512}},
#endif
    {"avx512", has_avx512, {matrix_state_avx512, wkv4_avx512, product_avx512, product_many_avx512, product_dense_avx512}},
#ifndef NO_AVXVNNI
    {"avxvnni", has_avxvnni, {matrix_state_avx2, wkv4_avx2, product_avxvnni, product_many_avxvnni, product_dense_avx2}},
#endif
    {"avx2", has_avx2, {matrix_state_avx2, wkv4_avx2, product_avx2, product_many_avx2, product_dense_avx2}},
#endif
    {"plain", always, {matrix_state_plain, wkv4_plain, product_plain, product_many_plain, product_dense_plain}},
};

const Level* best() {
  for (const Level& level : LEVELS)
    if (level.here()) return &level;
  return nullptr;
}
std::atomic<const Level*> chosen{nullptr};

const Kernel* find(const std::string& name) {
  const Level* level = chosen.load();
  if (!level) chosen = level = best();
  for (const Kernel* kernel : level->tables)
    for (; kernel->name; kernel++)
      if (name == kernel->name) return kernel;
  return nullptr;
}

constexpr int64_t WORTHWHILE = 200 * 1000;  // multiplications that take longer than calling a helper
constexpr int64_t LEAST = 50 * 1000;        // those that are taken at a time, at least
constexpr int64_t BRIEF = 8 * 1000 * 1000;  // those that take not much longer than it takes a thread to wake

// Items in a row, of which a part is taken at a time: half of what is left, so that the last parts are small.
struct alignas(64) Range {
  std::atomic<int64_t> next;
  int64_t end;

  bool take(int64_t least, int64_t* from, int64_t* to) {
    *from = next;
    do {
      if (*from >= end) return false;
      *to = std::min(end, *from + std::max(least, (end - *from) / 2));
    } while (!next.compare_exchange_weak(*from, *to));
    return true;
  }
};

// The items of a call. Each who works on them has a range of his own, which he goes through from its beginning, for memory is read
// fastest in a line, and then takes of what others have left: the caller never waits for a helper that has not begun.
struct Shared {
  std::unique_ptr<Range[]> ranges;
  const int64_t workers, least;
  std::atomic<int> active{0};
  std::atomic<bool> failed{false};

  Shared(int64_t items, int64_t many, int64_t at_once) : ranges(new Range[many]), workers(many), least(at_once) {
    for (int64_t i = 0; i < many; i++) ranges[i].next = i * items / many, ranges[i].end = (i + 1) * items / many;
  }
  template <class Run> void work(int64_t worker, const Run& run) {
    active++;
    try {
      for (int64_t k = 0, from, to; k < workers; k++)
        while (!failed && ranges[(worker + k) % workers].take(least, &from, &to)) run(from, to);
    } catch (...) {
      failed = true;
    }
    active--;
  }
};

template <class Schedule> bool spread(int64_t items, int64_t work, bool in_a_row, int64_t helpers, const Schedule& schedule, const std::function<void(int64_t, int64_t)>& run) {
  if (items * work < WORTHWHILE || items < 2 || helpers < 1) {
    run(0, items);
    return true;
  }
  const int64_t useful = std::min(helpers, items - 1);
  auto shared = std::make_shared<Shared>(items, useful + 1, std::max<int64_t>(1, LEAST / work));
  for (int64_t i = 1; i <= useful; i++)
    schedule([shared, i, todo = &run] { shared->work(i, *todo); }, in_a_row || items * work < BRIEF);
  shared->work(0, run);
  while (shared->active.load() > 0) std::this_thread::yield();
  return !shared->failed;
}

template <class Schedule> std::string run(const char* name, const Tensor* in, int inputs, const Tensor* out, int outputs, int64_t helpers, const Schedule& schedule) {
  const Kernel* kernel = find(name);
  if (!kernel) return std::string("There is no kernel ") + name;
  int64_t sizes[26];
  const std::string wrong = bind(kernel->arguments, in, inputs, out, outputs, sizes);
  if (!wrong.empty()) return std::string(name) + " " + wrong;
  int64_t items = 1;
  for (const char* p = kernel->split; *p; p++) items *= sizes[*p - 'A'];
  if (items == 0) return "";
  if (sizes['T' - 'A'] == 0) return std::string(name) + " is of at least one token";
  try {
    float* room = kernel->room ? scratch<SHARED>(kernel->room(sizes)) : nullptr;
    if (kernel->prepare) kernel->prepare(in, room);
    if (spread(items, kernel->work(sizes), kernel->in_a_row, helpers, schedule, [&](int64_t from, int64_t to) { kernel->run(in, out, room, from, to); })) {
      if (kernel->finish) kernel->finish(in, out, room);
      return "";
    }
  } catch (const std::bad_alloc&) {
  }
  return std::string(name) + ": out of memory";
}

// Threads for callers that bring none, and for work that is done before a thread that sleeps has woken: one that has worked looks
// for more for a while before it sleeps, and lets others run meanwhile. A process that was forked has none of its parent's,
// and starts its own.
class Pool {
 public:
  static Pool& get(int threads) {
    static std::mutex one;
    static Pool* pool = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(one);
    if (!pool || owner != getpid()) pool = new Pool, owner = getpid();  // never ends: its threads may be in use at exit
    pool->grow(threads);
    return *pool;
  }
  void operator()(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
      waiting_++;
      if (asleep_ == 0) return;
    }
    wake_.notify_one();
  }

 private:
  void grow(int threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (; count_ < threads; count_++) std::thread([this] { serve(); }).detach();
  }
  void serve() {
    for (;;) {
      const auto end = std::chrono::steady_clock::now() + AWAKE;
      while (waiting_.load() == 0 && std::chrono::steady_clock::now() < end) {
        for (int i = 0; i < 32 && waiting_.load() == 0; i++) pause();
        std::this_thread::yield();
      }
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_++;
        wake_.wait(lock, [this] { return !tasks_.empty(); });
        asleep_--;
        task = std::move(tasks_.front());
        tasks_.pop_front();
        waiting_--;
      }
      task();
    }
  }
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  static constexpr std::chrono::microseconds AWAKE{200};
  std::atomic<int> waiting_{0};
  int asleep_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  int count_ = 0;
};
}  // namespace

extern "C" {
// The instruction sets of this processor that there are kernels for, best first, separated by blanks.
const char* rwkv_levels() {
  static const std::string names = [] {
    std::string all;
    for (const Level& level : LEVELS)
      if (level.here()) all += (all.empty() ? "" : " ") + std::string(level.name);
    return all;
  }();
  return names.c_str();
}

// Run the kernels of this instruction set from now on. Not 0: this processor does not have it.
int rwkv_choose(const char* name) {
  for (const Level& level : LEVELS)
    if (!std::strcmp(name, level.name) && level.here()) {
      chosen = &level;
      return 0;
    }
  return 1;
}

// Run a kernel on tensors in this machine's memory, on up to `threads` threads. Not 0: `message` says why.
int rwkv_run(const char* kernel, const Tensor* in, int inputs, const Tensor* out, int outputs, int threads, char* message, int room) {
  std::string wrong;
  try {
    if (threads > 1) {
      Pool& pool = Pool::get(threads - 1);
      wrong = run(kernel, in, inputs, out, outputs, threads - 1, [&](const std::function<void()>& task, bool) { pool(task); });
    } else {
      wrong = run(kernel, in, inputs, out, outputs, 0, [](const std::function<void()>&, bool) {});
    }
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  std::snprintf(message, room, "%s", wrong.c_str());
  return !wrong.empty();
}
}

#if __has_include("xla/ffi/api/ffi.h")
#include "xla.h"

static ffi::Error call(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view kernel) {
  return with_tensors(args, rets, [&](const Tensor* in, const Tensor* out) {
    const int helpers = (int)pool.num_threads() - 1;
    const auto schedule = [&](const std::function<void()>& task, bool is_brief) {
      if (is_brief) Pool::get(helpers)(task);
      else pool.Schedule(std::function<void()>(task));
    };
    return run(std::string(kernel).c_str(), in, (int)args.size(), out, (int)rets.size(), helpers, schedule);
  });
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(rwkv_xla, call, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<std::string_view>("kernel"));
#endif
