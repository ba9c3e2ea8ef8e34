// Products of a few rows with a packed matrix: y (R, O) = x (R, I) W', for decoding, which costs what reading W costs.
//
// W has a row of J numbers for each output, which are zero beyond I. They are bfloat16; or int8, or two numbers of 4 bits a
// byte, in groups that have a scale, and of 4 bits perhaps a least value (float16; without: -8 scales). Of each 32 numbers of 4
// bits the first 16 are the low halves of 16 bytes, and the others the high ones: as in GGUF.
//
// Where W is of whole numbers, so is x: each 32 of it are rounded to int8 and have a scale.
#include <algorithm>
#include <cmath>
#include <vector>

#include "shapes.h"
#include "vectors.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")

namespace {
constexpr int64_t UNIT = 32;  // numbers of x that have a scale; a group of W is some of these
constexpr int TILE = 4, MOST_ROWS = 2;  // outputs and rows at once
typedef ints loose_ints __attribute__((aligned(4)));

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

// A row of x in whole numbers: of each unit the scale, and the scale times the sum. For W of 4 bits the numbers of two units
// lie as those of W do: the first halves of both, and then the others.
struct Whole {
  int8_t* numbers;
  float *scales, *sums;
};

template <int BITS> void to_whole(const float* x, int64_t units, const Whole& to) {
  for (int64_t u = 0; u < units; u++) {
    const float* from = x + u * UNIT;
    float most = 0.f, check = 0.f;
    for (int i = 0; i < UNIT; i++) {
      most = std::fabs(from[i]) > most ? std::fabs(from[i]) : most;
      check += from[i] * 0.f;  // NaN where one is infinite or none
    }
    const float inverse = most > 0.f && check == 0.f ? 127.f / most : 0.f;
    int8_t* numbers = to.numbers + (BITS == 4 ? u / 2 * 2 * UNIT + u % 2 * (UNIT / 2) : u * UNIT);
    int32_t total = 0;
    for (int i = 0; i < UNIT; i++) {
      const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
      const int32_t n = (int32_t)((from[i] * inverse + magic) - magic);
      numbers[BITS == 4 && i >= UNIT / 2 ? i + UNIT / 2 : i] = (int8_t)n;
      total += n;
    }
    to.scales[u] = most / 127.f + check;
    to.sums[u] = to.scales[u] * (float)total;
  }
}

// Of ROWS rows of x and TILE of W the products. factors: of each row, output and unit the product of both scales.
template <int BITS, int ROWS> INLINE void whole_products(const Whole* x, const uint8_t* const* w, const float* factors, int64_t units, float (*y)[TILE]) {
  constexpr int64_t step = BITS == 4 ? 2 : 1, bytes = UNIT;  // units that fill `bytes`
#if defined(__AVX2__)
  __m256 sums[ROWS][TILE];
  UNROLLED for (int r = 0; r < ROWS; r++)
    UNROLLED for (int o = 0; o < TILE; o++) sums[r][o] = _mm256_setzero_ps();
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), halves = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
  for (int64_t u = 0; u < units; u += step)
    UNROLLED for (int o = 0; o < TILE; o++) {
      const uint8_t* from = w[o] + u / step * bytes;
      __builtin_prefetch(from + TILE * units / step * bytes);  // of the tile after this one
      const __m256i read = _mm256_loadu_si256((const __m256i*)from);
      const __m256i first = BITS == 4 ? _mm256_and_si256(read, low) : _mm256_abs_epi8(read);
      const __m256i second = BITS == 4 ? _mm256_and_si256(_mm256_srli_epi16(read, 4), low) : read;
      UNROLLED for (int r = 0; r < ROWS; r++) {
        const __m256i* given = (const __m256i*)(x[r].numbers + u * UNIT);
        const float* factor = factors + (r * TILE + o) * units + u;
        __m256i pairs;
        __m256 by;
        if (BITS == 4) {
          pairs = _mm256_add_epi16(_mm256_maddubs_epi16(first, _mm256_load_si256(given)), _mm256_maddubs_epi16(second, _mm256_load_si256(given + 1)));
          by = _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_broadcast_sd((const double*)factor)), halves);
        } else {
          pairs = _mm256_maddubs_epi16(first, _mm256_sign_epi8(_mm256_load_si256(given), second));
          by = _mm256_broadcast_ss(factor);
        }
        sums[r][o] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones)), by, sums[r][o]);
      }
    }
  UNROLLED for (int r = 0; r < ROWS; r++)
    UNROLLED for (int o = 0; o < TILE; o++) {
      const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums[r][o]), _mm256_extractf128_ps(sums[r][o], 1));
      const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
      y[r][o] = _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
#else
  for (int r = 0; r < ROWS; r++)
    for (int o = 0; o < TILE; o++) {
      y[r][o] = 0.f;
      for (int64_t u = 0; u < units; u++) {
        const uint8_t* from = w[o] + u * bytes / step;
        const int8_t* given = x[r].numbers + (BITS == 4 ? u / 2 * 2 * UNIT + u % 2 * (UNIT / 2) : u * UNIT);
        int32_t dot = 0;
        for (int i = 0; i < bytes / step; i++) {
          if (BITS == 4) dot += (from[i] & 15) * given[i] + (from[i] >> 4) * given[i + UNIT];
          else dot += (int8_t)from[i] * given[i];
        }
        y[r][o] += (float)dot * factors[(r * TILE + o) * units + u];
      }
    }
#endif
}

INLINE float dot(const float* a, const float* b, int64_t n) {
  vec total = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) total += *(const loose*)(a + i) * *(const loose*)(b + i);
  float rest = sum(total);
  for (; i < n; i++) rest += a[i] * b[i];
  return rest;
}

template <int ROWS> INLINE void float_products(const float* const* x, const uint16_t* const* w, int64_t J, float (*y)[TILE]) {
  // x has the even numbers first, and then the odd ones: two of W are one lane.
  vec sums[ROWS][TILE] = {};
  for (int64_t i = 0; i < J; i += 2 * W)
    UNROLLED for (int o = 0; o < TILE; o++) {
      __builtin_prefetch(w[o] + i + TILE * J);  // the tile after this one
      const ints pairs = *(const loose_ints*)(w[o] + i);
      const vec even = (vec)(pairs << 16), odd = (vec)(pairs & (int32_t)0xffff0000);
      UNROLLED for (int r = 0; r < ROWS; r++) sums[r][o] += even * *(const vec*)(x[r] + i / 2) + odd * *(const vec*)(x[r] + (J + i) / 2);
    }
  UNROLLED for (int r = 0; r < ROWS; r++)
    UNROLLED for (int o = 0; o < TILE; o++) y[r][o] = sum(sums[r][o]);
}

// Calls products(first row, how many) for rows 0 to R, several at once where there are as many.
template <class F> INLINE void by_rows(int64_t R, const F& products) {
  int64_t r = 0;
  for (; r + MOST_ROWS <= R; r += MOST_ROWS) products(r, std::integral_constant<int, MOST_ROWS>());
  for (; r < R; r++) products(r, std::integral_constant<int, 1>());
}

struct Sizes {
  int64_t R, I, O, J;
};

// Calls tile(first output, how many of the TILE there are) for the outputs of some panels.
template <class F> INLINE void by_tiles(const Sizes& n, int64_t from, int64_t to, const F& tile) {
  const int64_t end = std::min(n.O, to * PANEL);
  for (int64_t o = from * PANEL; o < end; o += TILE) tile(o, std::min<int64_t>(TILE, end - o));
}

template <int BITS> void whole(const Tensor* in, const Tensor* out, int64_t from, int64_t to) {
  const Tensor &x = in[0], &w = in[1], &scale = in[2], *least = BITS == 4 ? in + 3 : nullptr;
  const Sizes n{x.dims[0], x.dims[1], w.dims[0], w.dims[1] * 8 / BITS};
  const int64_t units = n.J / UNIT, groups = scale.dims[1], each = units / groups, row = w.dims[1];
  const bool has_least = least && *least;
  Parts parts{scratch(n.J + n.R * (n.J / 4 + 2 * units + 3 * W) + (TILE * (MOST_ROWS + 1) + 1) * (units + W) + 8 * W)};
  float* room = parts.take(n.J);
  std::vector<Whole> rows(n.R);
  for (int64_t r = 0; r < n.R; r++) {
    rows[r] = {(int8_t*)parts.take(n.J / 4), parts.take(units), parts.take(units)};
    load(x, r * n.I, n.I, room);
    std::memset(room + n.I, 0, (n.J - n.I) * sizeof(float));
    to_whole<BITS>(room, units, rows[r]);
  }
  float *scales[TILE], *lowest = parts.take(units), *factors = parts.take(MOST_ROWS * TILE * units);
  for (int o = 0; o < TILE; o++) scales[o] = parts.take(units);
  by_tiles(n, from, to, [&](int64_t first, int64_t count) {
    const uint8_t* at[TILE];
    for (int o = 0; o < TILE; o++) {
      const int64_t here = first + std::min<int64_t>(o, count - 1);
      at[o] = (const uint8_t*)w.data + here * row;
      spread_scales((const uint16_t*)scale.data + here * groups, units, each, scales[o]);
    }
    by_rows(n.R, [&](int64_t r, auto several) {
      for (int q = 0; q < several; q++)
        for (int o = 0; o < TILE; o++)
          for (int64_t u = 0; u < units; u++) factors[(q * TILE + o) * units + u] = scales[o][u] * rows[r + q].scales[u];
      float y[several][TILE];
      whole_products<BITS, several>(&rows[r], at, factors, units, y);
      for (int q = 0; q < several; q++)
        for (int64_t o = 0; o < count; o++) out[0].to()[(r + q) * n.O + first + o] = y[q][o];
    });
    if (BITS == 4)
      for (int64_t o = 0; o < count; o++) {
        if (has_least) spread_scales((const uint16_t*)least->data + (first + o) * groups, units, each, lowest);
        const float* of = has_least ? lowest : scales[o];
        for (int64_t r = 0; r < n.R; r++) out[0].to()[r * n.O + first + o] += (has_least ? 1.f : -8.f) * dot(of, rows[r].sums, units);
      }
  });
}

void bfloat16(const Tensor* in, const Tensor* out, int64_t from, int64_t to) {
  const Tensor &x = in[0], &w = in[1];
  const Sizes n{x.dims[0], x.dims[1], w.dims[0], w.dims[1]};
  Parts parts{scratch((n.R + 1) * (n.J + 2 * W))};
  float* room = parts.take(n.J);
  std::vector<float*> rows(n.R);
  for (int64_t r = 0; r < n.R; r++) {
    rows[r] = parts.take(n.J);
    load(x, r * n.I, n.I, room);
    std::memset(room + n.I, 0, (n.J - n.I) * sizeof(float));
    for (int64_t i = 0; i < n.J; i++) rows[r][(i % 2 * n.J + i) / 2] = room[i];
  }
  by_tiles(n, from, to, [&](int64_t first, int64_t count) {
    const uint16_t* at[TILE];
    UNROLLED for (int o = 0; o < TILE; o++) at[o] = (const uint16_t*)w.data + (first + std::min<int64_t>(o, count - 1)) * n.J;
    by_rows(n.R, [&](int64_t r, auto several) {
      float y[several][TILE];
      float_products<several>(&rows[r], at, n.J, y);
      for (int q = 0; q < several; q++)
        for (int64_t o = 0; o < count; o++) out[0].to()[(r + q) * n.O + first + o] = y[q][o];
    });
  });
}

int64_t panel(const int64_t* n) { return PANEL * n['R' - 'A'] * n['I' - 'A'] / 4; }
}  // namespace

extern const Kernel TABLE[];
const Kernel TABLE[] = {
    {"product_bfloat16", PRODUCT_BFLOAT16, "P", panel, bfloat16},
    {"product_int8", PRODUCT_INT8, "P", panel, whole<8>},
    {"product_int4", PRODUCT_INT4, "P", panel, whole<4>},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
