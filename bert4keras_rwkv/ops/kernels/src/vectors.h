// Vectors of WIDTH floats in the compiler's own terms: one source for every instruction set.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "tensors.h"

#ifndef WIDTH
#define WIDTH 4
#endif

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {
typedef float vec __attribute__((vector_size(4 * WIDTH), may_alias));
typedef float loose __attribute__((vector_size(4 * WIDTH), may_alias, aligned(4)));  // anywhere in memory
typedef int32_t ints __attribute__((vector_size(4 * WIDTH), may_alias));
constexpr int W = WIDTH;

inline vec all(float x) { return x - vec{}; }
inline int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

// e^x within about 1 ulp, from 0 to infinity; NaN stays NaN. Cephes' expf: x = n ln 2 + r, a polynomial in r.
inline vec exponential(vec x) {
  x = x > 89.f ? all(89.f) : x;
  x = x < -104.f ? all(-104.f) : x;
  const vec magic = all(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vec n = (x * 1.44269504088896341f + magic) - magic;
  const vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const ints whole = __builtin_convertvector(n, ints), half = whole >> 1;  // in two steps: 2^n may be subnormal
  return p * (vec)((half + 127) << 23) * (vec)((whole - half + 127) << 23);
}

template <int STEP, int... I> inline vec interleaved_sum(vec a, vec b, std::integer_sequence<int, I...>) {
  // Lanes with bit STEP clear come from a, the others from b; each is the sum of two neighbours at distance STEP.
  const vec low = __builtin_shufflevector(a, b, (I & STEP ? W + (I ^ STEP) : I)...);
  const vec high = __builtin_shufflevector(a, b, (I & STEP ? W + I : (I ^ STEP))...);
  return low + high;
}

// Lane l of the result: the sum over all lanes of rows[l].
template <int STEP = W / 2> inline vec sums(const vec* rows) {
  if constexpr (STEP == 0) {
    return rows[0];
  } else {
    return interleaved_sum<STEP>(sums<STEP / 2>(rows), sums<STEP / 2>(rows + STEP), std::make_integer_sequence<int, W>());
  }
}

template <int STEP, int... I> inline void exchange_lanes(vec& a, vec& b, std::integer_sequence<int, I...>) {
  const vec low = __builtin_shufflevector(a, b, (I & STEP ? W + (I ^ STEP) : I)...);
  const vec high = __builtin_shufflevector(a, b, (I & STEP ? W + I : (I ^ STEP))...);
  a = low, b = high;
}

// W rows of W floats become their columns.
template <int STEP = 1> inline void transpose(vec* rows) {
  if constexpr (STEP < W) {
    for (int i = 0; i < W; i++)
      if (!(i & STEP)) exchange_lanes<STEP>(rows[i], rows[i + STEP], std::make_integer_sequence<int, W>());
    transpose<STEP * 2>(rows);
  }
}

inline float sum(vec x) {
  float total = 0.f;
  for (int l = 0; l < W; l++) total += x[l];
  return total;
}

// A float16.
inline float from_half(uint16_t bits) {
  const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = (uint32_t)(bits & 0x7fffu) << 13;
  float x;
  std::memcpy(&x, &rest, 4);
  x = rest >= 0x7c00u << 13 ? (rest > 0x7c00u << 13 ? NAN : INFINITY) : x * 0x1p112f;  // exponents count from -15 there
  uint32_t whole;
  std::memcpy(&whole, &x, 4);
  whole |= sign;
  std::memcpy(&x, &whole, 4);
  return x;
}

// W float16, anywhere in memory.
inline vec wide_halves(const uint16_t* from) {
#if WIDTH == 16 && defined(__AVX512F__)
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif WIDTH == 8 && defined(__F16C__)
  return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  vec found;
  for (int l = 0; l < W; l++) found[l] = from_half(from[l]);
  return found;
#endif
}

// n numbers of a tensor from element `at` on, as floats; what is beyond them up to a whole vector becomes `fill`.
inline void load(const Tensor& from, int64_t at, int64_t n, float* to, float fill = 0.f) {
  if (from.dtype == BFLOAT16) {
    const uint16_t* bits = static_cast<const uint16_t*>(from.data) + at;
    for (int64_t i = 0; i < n; i++) {
      const uint32_t wide = (uint32_t)bits[i] << 16;
      std::memcpy(to + i, &wide, 4);
    }
  } else {
    std::memcpy(to, from.floats() + at, n * sizeof(float));
  }
  for (int64_t i = n; i < padded(n); i++) to[i] = fill;
}

// Say that n numbers of a tensor from element `at` on will be read (or, WRITTEN, replaced) soon.
template <bool WRITTEN = false> inline void fetch(const Tensor& x, int64_t at, int64_t n) {
  const int64_t size = x.dtype == BFLOAT16 ? 2 : 4;
  const char* from = static_cast<const char*>(x.data) + at * size;
  for (int64_t byte = 0; byte < n * size; byte += 64) __builtin_prefetch(from + byte, WRITTEN);
}

// n floats into a tensor from element `at` on; to bfloat16 they are rounded to the nearest, halves to even.
inline void store(const Tensor& to, int64_t at, int64_t n, const float* from) {
  if (to.dtype == BFLOAT16) {
    uint16_t* bits = static_cast<uint16_t*>(to.data) + at;
    for (int64_t i = 0; i < n; i++) {
      uint32_t wide;
      std::memcpy(&wide, from + i, 4);
      const bool number = (wide & 0x7fffffffu) <= 0x7f800000u;
      bits[i] = number ? (uint16_t)((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16) : (uint16_t)(wide >> 16 | 0x40u);
    }
  } else {
    std::memcpy(to.to() + at, from, n * sizeof(float));
  }
}

enum Purpose { ITEMS, SHARED };

// Memory of the thread that asks, for one purpose, kept for its next call: nothing may keep a pointer into it.
template <Purpose = ITEMS> inline float* scratch(int64_t floats) {
  struct Memory {
    void* begin = nullptr;
    int64_t size = 0;
    ~Memory() { std::free(begin); }
  };
  static thread_local Memory memory;
  if (floats > memory.size) {
    std::free(memory.begin);
    memory.size = 0;
    memory.begin = std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    if (!memory.begin) throw std::bad_alloc();
    memory.size = floats;
  }
  return static_cast<float*>(memory.begin);
}

// Parts of one piece of memory, each beginning at a whole vector.
struct Parts {
  float* next;
  float* take(int64_t floats) {
    float* here = next;
    next += padded(floats);
    return here;
  }
};
}  // namespace
