// What the products with packed matrices share: what lies where in a matrix, and in rows that are rounded to whole numbers.
//
// W has a row of J numbers for each output, which are zero beyond I. They are bfloat16; or int8, or two numbers of 4 bits a
// byte, in groups that have a scale, and of 4 bits perhaps a least value (float16; without: -8 scales). Of each 32 numbers of 4
// bits the first 16 are the low halves of 16 bytes, and the others the high ones: as in GGUF.
//
// Where W is of whole numbers, so is x: each 32 of it, a unit, are rounded to int8 and have a scale.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "shapes.h"
#include "vectors.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512VNNI__)
#define VNNI 1
#else
#define VNNI 0
#endif
#if defined(__AVXVNNI__) && !VNNI
#define VNNI_OF_256 1
#else
#define VNNI_OF_256 0
#endif

#if defined(__AVX512BF16__)
#define BF16 1
#else
#define BF16 0
#endif

#define INLINE inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")

namespace {
constexpr int64_t UNIT = 32;  // numbers of x that have a scale; a group of W is some of these

constexpr float TINY = 1e-30f;  // units with no number as large are zero: 127 by less might be infinite

// The scales of n units in groups of `each` units, as floats.
void spread_scales(const uint16_t* from, int64_t n, int64_t each, float* to) {
  const int64_t groups = n / each;
  float* last = to + n - groups;  // widened at the end of the room, and then spread from its beginning
  int64_t g = 0;
#if defined(__F16C__)
  for (; g + 8 <= groups; g += 8) _mm256_storeu_ps(last + g, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + g))));
#endif
  for (; g < groups; g++) last[g] = from_half(from[g]);
  g = 0;
#if defined(__AVX2__)
  if (each == 2)
    for (; g + 4 <= groups; g += 4) {
      const __m256 x = _mm256_castps128_ps256(_mm_loadu_ps(last + g));
      _mm256_storeu_ps(to + 2 * g, _mm256_permutevar8x32_ps(x, _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0)));
    }
#endif
  if (each > 1)
    for (; g < groups; g++) {
      const float x = last[g];
      for (int64_t u = 0; u < each; u++) to[g * each + u] = x;
    }
}

// n numbers, 32 at a time, rounded: `to(unit, i)` is where number i of a unit goes. Of each unit the scale and the sum. A unit
// with a number that is infinite or none has a scale that is none.
template <class To> INLINE void round_units(const float* x, int64_t units, float* scales, float* sums, const To& to) {
  for (int64_t u = 0; u < units; u++) {
    const float* from = x + u * UNIT;
    float most = 0.f, check = 0.f;
    for (int i = 0; i < UNIT; i++) {
      most = std::fabs(from[i]) > most ? std::fabs(from[i]) : most;
      check += from[i] * 0.f;  // NaN where one is infinite or none
    }
    const float inverse = most >= TINY && check == 0.f ? 127.f / most : 0.f;
    float products[UNIT];
    for (int i = 0; i < UNIT; i++) products[i] = from[i] * inverse;
    __asm__ volatile("" : : "r"(products) : "memory");  // each is rounded to float32 before it is to a whole number, as elsewhere
    int32_t total = 0;
    for (int half = 0; half < 2; half++) {
      int8_t* numbers = to(u, half);
      for (int i = 0; i < UNIT / 2; i++) {
        const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
        const int32_t n = (int32_t)((products[half * (UNIT / 2) + i] + magic) - magic);
        numbers[i] = (int8_t)n;
        total += n;
      }
    }
    scales[u] = most / 127.f + check;
    sums[u] = (float)total;
  }
}
}  // namespace
