// Numbers of fewer bytes on a GPU: rows of x in whole numbers, and the scales of a packed matrix. packed.h says what lies where.
#pragma once
#include "geometry.h"
#include "port.h"

constexpr float TINY = 1e-30f;  // as in packed.h
constexpr unsigned ALL = 0xffffffffu;

struct fp16 { unsigned short bits; };
struct __align__(16) Words { unsigned x[4]; };
struct __align__(8) Pair { unsigned x[2]; };

__device__ inline float number(fp16 x) {  // the exponent of a float is 112 more
  const unsigned size = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const bool is_number = size < 0x0f800000u;
  return __uint_as_float(__float_as_uint(is_number ? __uint_as_float(size) * __uint_as_float(0x77800000u) : __uint_as_float(size | 0x7f800000u)) | sign);
}

#ifdef __CUDACC__
// sum + the products of four int8 and four others.
__device__ inline int dot4(unsigned a, unsigned b, int sum) { return __dp4a((int)a, (int)b, sum); }
__device__ inline void fetch_ahead(const void* x) { asm volatile("prefetch.global.L2 [%0];" : : "l"(x)); }
#else
inline int dot4(unsigned a, unsigned b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += (signed char)(a >> i) * (signed char)(b >> i);
  return sum;
}
inline void fetch_ahead(const void*) {}
#endif

// Of a unit of x, which ROUND_LANES neighbouring lanes hold, 4 numbers each: those of a lane as int8, the scale and the sum of all.
struct Rounded { unsigned numbers; float scale, sum; };

// As `rounded` in ops/matmul.py. A unit with a number that is infinite or none has a scale that is none.
__device__ inline Rounded round_unit(const float (&x)[4]) {
  float most = 0.f, check = 0.f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    most = fmaxf(most, fabsf(x[i]));
    check += x[i] * 0.f;
  }
#pragma unroll
  for (int step = 1; step < ROUND_LANES; step *= 2) {
    most = fmaxf(most, __shfl_xor_sync(ALL, most, step));
    check += __shfl_xor_sync(ALL, check, step);
  }
  const float inverse = most >= TINY && check == 0.f ? 127.f / most : 0.f;
  Rounded to = {0u, most / 127.f + check, 0.f};
#pragma unroll
  for (int i = 0; i < 4; i++) to.numbers |= ((unsigned)__float2int_rn(x[i] * inverse) & 255u) << 8 * i;
  to.sum = (float)dot4(to.numbers, 0x01010101u, 0);
#pragma unroll
  for (int step = 1; step < ROUND_LANES; step *= 2) to.sum += __shfl_xor_sync(ALL, to.sum, step);
  return to;
}

// Four numbers of a row of x from `i` on, zero from `end` on.
template <class T> __device__ inline void get_four(const T* row, int i, int end, float (&to)[4]) {
#pragma unroll
  for (int e = 0; e < 4; e++) to[e] = i + e < end ? number(row[i + e]) : 0.f;
}

// Scales and least values of an output of a packed matrix, by unit. least: null, where 8 is zero.
struct Scales {
  const fp16 *scales, *least;
  int each;  // units in a group

  __device__ void get(int unit, float& scale, float& low) const {
    const int group = each == 1 ? unit : unit / each;
    scale = number(scales[group]);
    low = least ? number(least[group]) : -8.f * scale;
  }
};

// What a kernel is given of a packed matrix beside its numbers, and the scales of an output.
#if !defined(BITS) || BITS == 16
#define SCALES
#define SCALES_OF(output) Scales{nullptr, nullptr, 1}
#else
#define SCALES_FROM(least, output) Scales{scales_ + (long long)(output) * groups, least, J / FACTOR_UNIT / groups}
#if BITS == 8
#define SCALES const fp16 *__restrict__ scales_,
#define SCALES_OF(output) SCALES_FROM(nullptr, output)
#else
#define SCALES const fp16 *__restrict__ scales_, const fp16 *__restrict__ least_,
#define SCALES_OF(output) SCALES_FROM(least_ ? least_ + (long long)(output) * groups : nullptr, output)
#endif
#endif
