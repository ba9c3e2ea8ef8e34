// Products of a few rows with a packed matrix: y (R, O) = x (R, I) W', for decoding, which costs what reading W costs. So it is
// read from its beginning to its end, one output after another, and each row of it is multiplied by all rows of x.
#include "packed.h"

namespace {
constexpr int MOST_ROWS = W == 16 ? 4 : 2;  // of x at once
constexpr int64_t AHEAD = 4096;             // bytes of W that are fetched ahead
typedef ints loose_ints __attribute__((aligned(4)));
typedef double loose_double __attribute__((aligned(4), may_alias));

// So many sums are made side by side, that one need not wait for the other.
constexpr int chains(int rows) { return rows < 4 ? 4 / rows : 1; }

// A row of x in whole numbers: of each unit the scale, and the scale times the sum, and zeros up to a whole vector. For W of 4 bits, where TOGETHER units fill a
// vector of W, the numbers of so many lie as those of W do: the first halves of all, and then the others. Whole vectors are
// read: beyond the last unit numbers and factors are zero.
struct Whole {
  int8_t* numbers;
  float *scales, *sums;
};

constexpr int64_t TOGETHER = VNNI ? 4 : 2;
constexpr int64_t whole_units(int64_t units) { return (units + TOGETHER - 1) / TOGETHER * TOGETHER; }

// Where in a row of x the halves of unit u are.
template <int BITS> INLINE int64_t half_at(int64_t u, int half) {
  if (BITS != 4) return u * UNIT + half * (UNIT / 2);
  return u / TOGETHER * TOGETHER * UNIT + half * TOGETHER * (UNIT / 2) + u % TOGETHER * (UNIT / 2);
}

// Rows of x in memory, one after another. `units` of each, with those that fill vectors.
struct Rows {
  const float* begin;
  int64_t units;
  explicit Rows(const float* memory, int64_t of_numbers) : begin(memory), units(padded(whole_units(of_numbers))) {}
  int64_t floats() const { return units * (UNIT / 4 + 2); }
  Whole operator[](int64_t r) const {
    float* row = const_cast<float*>(begin) + r * floats();
    return {(int8_t*)row, row + units * UNIT / 4, row + units * (UNIT / 4 + 1)};
  }
};

int64_t units_of(const Tensor& w, int bits) { return w.dims[1] * 8 / bits / UNIT; }

template <int BITS> int64_t whole_rows(const int64_t* n) {
  const int64_t units = BITS == 4 ? n['K' - 'A'] * 2 / UNIT : n['J' - 'A'] / UNIT;
  return n['R' - 'A'] * Rows(nullptr, units).floats();
}

template <int BITS> void to_whole(const Tensor* in, float* room) {
  const int64_t R = in[0].dims[0], I = in[0].dims[1], units = units_of(in[1], BITS);
  float* row = scratch(units * UNIT + W);
  std::memset(room, 0, R * Rows(room, units).floats() * sizeof(float));
  for (int64_t r = 0; r < R; r++) {
    const Whole to = Rows(room, units)[r];
    load(in[0], r * I, I, row);
    std::memset(row + I, 0, (units * UNIT - I) * sizeof(float));
    round_units(row, units, to.scales, to.sums, [&](int64_t u, int half) { return to.numbers + half_at<BITS>(u, half); });
    for (int64_t u = 0; u < units; u++) to.sums[u] *= to.scales[u];
  }
}

#if VNNI
typedef __m512 some;
template <int BITS> constexpr int64_t STEP = BITS == 4 ? 4 : 2;  // units that 64 bytes of W hold

// The products of a vector of W and one of x, of each unit times its factor, added to `sums`.
template <int BITS, int ROWS> INLINE void add_step(const Whole* x, const uint8_t* w, int64_t u, int64_t units, const float* factors, int64_t apart, some* sums, int jump) {
  const __m512i low = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128), none = _mm512_setzero_si512();
  const __m512i lanes = _mm512_srli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), BITS == 4 ? 2 : 3);
  const __m512i read = u + STEP<BITS> <= units ? _mm512_loadu_si512(w) : _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)w));
  const __m512i first = BITS == 4 ? _mm512_and_si512(read, low) : _mm512_xor_si512(read, sign);  // of 8 bits W + 128
  const __m512i second = _mm512_and_si512(_mm512_srli_epi16(read, 4), low);
  UNROLLED for (int r = 0; r < ROWS; r++) {
    const int8_t* given = x[r].numbers + u * UNIT;
    const __m512i of_first = _mm512_loadu_si512(given);
    __m512i dot = BITS == 4 ? none : _mm512_sub_epi32(none, _mm512_dpbusd_epi32(none, sign, of_first));
    dot = _mm512_dpbusd_epi32(dot, first, of_first);
    if (BITS == 4) dot = _mm512_dpbusd_epi32(dot, second, _mm512_loadu_si512(given + 64));
    const float* factor = factors + r * apart + u;
    const __m512 few = BITS == 4 ? _mm512_broadcast_f32x4(_mm_loadu_ps(factor)) : _mm512_castpd_ps(_mm512_set1_pd(*(const loose_double*)factor));
    sums[r * jump] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, few), sums[r * jump]);
  }
}
INLINE float total(some x, vec more) { return _mm512_reduce_add_ps(x + (some)more); }
#elif defined(__AVX2__)
typedef __m256 some;
template <int BITS> constexpr int64_t STEP = BITS == 4 ? 2 : 1;

template <int BITS, int ROWS> INLINE void add_step(const Whole* x, const uint8_t* w, int64_t u, int64_t, const float* factors, int64_t apart, some* sums, int jump) {
  const __m256i low = _mm256_set1_epi8(15), halves = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
  const __m256i read = _mm256_loadu_si256((const __m256i*)w);
  const __m256i first = BITS == 4 ? _mm256_and_si256(read, low) : _mm256_abs_epi8(read);
  const __m256i second = BITS == 4 ? _mm256_and_si256(_mm256_srli_epi16(read, 4), low) : read;
  UNROLLED for (int r = 0; r < ROWS; r++) {
    const __m256i* given = (const __m256i*)(x[r].numbers + u * UNIT);
    const float* factor = factors + r * apart + u;
    const __m256i of_first = BITS == 4 ? _mm256_load_si256(given) : _mm256_sign_epi8(_mm256_load_si256(given), second);
#if VNNI_OF_256
    __m256i dot = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), first, of_first);
    if (BITS == 4) dot = _mm256_dpbusd_avx_epi32(dot, second, _mm256_load_si256(given + 1));
#else
    __m256i pairs = _mm256_maddubs_epi16(first, of_first);
    if (BITS == 4) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(second, _mm256_load_si256(given + 1)));
    const __m256i dot = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
    const __m256 by = BITS == 4 ? _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_broadcast_sd((const double*)factor)), halves) : _mm256_broadcast_ss(factor);
    sums[r * jump] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), by, sums[r * jump]);
  }
}
INLINE float total(some x, vec more) {
#if WIDTH == 16
  x += _mm256_add_ps(_mm512_castps512_ps256((__m512)more), _mm512_extractf32x8_ps((__m512)more, 1));
#else
  x += (some)more;
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#else
typedef float some;
template <int BITS> constexpr int64_t STEP = 1;

template <int BITS, int ROWS> INLINE void add_step(const Whole* x, const uint8_t* w, int64_t u, int64_t, const float* factors, int64_t apart, some* sums, int jump) {
  for (int r = 0; r < ROWS; r++) {
    const int8_t *given = x[r].numbers + half_at<BITS>(u, 0), *others = x[r].numbers + half_at<BITS>(u, 1);
    int32_t dot = 0;
    for (int i = 0; i < UNIT / 2; i++) {
      if (BITS == 4) dot += (w[i] & 15) * given[i] + (w[i] >> 4) * others[i];
      else dot += (int8_t)w[i] * given[i] + (int8_t)w[i + UNIT / 2] * others[i];
    }
    sums[r * jump] += (float)dot * factors[r * apart + u];
  }
}
INLINE float total(some x, vec more) { return x + sum(more); }
#endif

// The products of ROWS rows of x with a row of W. factors: of each row and unit the product of both scales, rows `apart` apart.
// more: what is added to a product, in any lane.
template <int BITS, int ROWS> INLINE void whole_products(const Whole* x, const uint8_t* w, const float* factors, int64_t apart, int64_t units, const vec* more, float* y) {
  constexpr int CHAINS = chains(ROWS);
  constexpr int64_t step = STEP<BITS>, bytes = step * UNIT * BITS / 8;
  some sums[ROWS * CHAINS] = {};
  int64_t u = 0;
  for (; u + CHAINS * step <= units; u += CHAINS * step, w += CHAINS * bytes) {
    UNROLLED for (int i = 0; i < CHAINS * bytes; i += 64) __builtin_prefetch(w + AHEAD + i);
    UNROLLED for (int c = 0; c < CHAINS; c++) add_step<BITS, ROWS>(x, w + c * bytes, u + c * step, units, factors, apart, sums + c, CHAINS);
  }
  for (; u < units; u += step, w += bytes) add_step<BITS, ROWS>(x, w, u, units, factors, apart, sums, CHAINS);
  UNROLLED for (int r = 0; r < ROWS; r++) {
    for (int c = 1; c < CHAINS; c++) sums[r * CHAINS] += sums[r * CHAINS + c];
    y[r] = total(sums[r * CHAINS], more[r]);
  }
}

// x has the even numbers first, and then the odd ones: two of W are one lane.
template <int ROWS> INLINE void float_products(const float* const* x, const uint16_t* w, int64_t J, float* y) {
  constexpr int CHAINS = chains(ROWS);
  vec sums[ROWS][CHAINS] = {};
  const auto step = [&](int64_t i, int c) __attribute__((always_inline)) {
    const ints pairs = *(const loose_ints*)(w + i);
    const vec even = (vec)(pairs << 16), odd = (vec)(pairs & (int32_t)0xffff0000);
    UNROLLED for (int r = 0; r < ROWS; r++) {
      sums[r][c] += even * *(const vec*)(x[r] + i / 2);
      sums[r][c] += odd * *(const vec*)(x[r] + (J + i) / 2);
    }
  };
  int64_t i = 0;
  for (; i + CHAINS * 2 * W <= J; i += CHAINS * 2 * W) {
    UNROLLED for (int64_t at = 0; at < CHAINS * 2 * W; at += 32) __builtin_prefetch(w + AHEAD / 2 + i + at);
    UNROLLED for (int c = 0; c < CHAINS; c++) step(i + c * 2 * W, c);
  }
  for (; i < J; i += 2 * W) step(i, 0);
  UNROLLED for (int r = 0; r < ROWS; r++) {
    for (int c = 1; c < CHAINS; c++) sums[r][0] += sums[r][c];
    y[r] = sum(sums[r][0]);
  }
}

// Calls products(first row, how many) for rows 0 to R, several at once where there are as many.
template <class F> INLINE void by_rows(int64_t R, const F& products) {
  int64_t r = 0;
  for (; r + MOST_ROWS <= R; r += MOST_ROWS) products(r, std::integral_constant<int, MOST_ROWS>());
  for (; r + 2 <= R; r += 2) products(r, std::integral_constant<int, 2>());
  for (; r < R; r++) products(r, std::integral_constant<int, 1>());
}

// The numbers of units u to u + W of a row of W that has one for each of its groups; those beyond `units` are zero.
struct Groups {
  const uint16_t* begin;
  int64_t units, each;
  INLINE vec at(int64_t u) const {
    if (each == 1 && u + W <= units) return wide_halves(begin + u);
    uint16_t some[W] = {};
    for (int64_t i = 0; i < W && u + i < units; i++) some[i] = begin[(u + i) / each];
    return wide_halves(some);
  }
};

template <int BITS> void whole(const Tensor* in, const Tensor* out, float* prepared, int64_t from, int64_t to) {
  const Tensor &w = in[1], &scale = in[2], *least = BITS == 4 ? in + 3 : nullptr;
  const int64_t R = in[0].dims[0], O = w.dims[0], row = w.dims[1], units = units_of(w, BITS), groups = scale.dims[1];
  const bool has_least = least && *least;
  const Rows rows(prepared, units);
  float* factors = scratch(MOST_ROWS * rows.units);
  std::memset(factors, 0, MOST_ROWS * rows.units * sizeof(float));
  for (int64_t o = from * PANEL; o < std::min(O, to * PANEL); o++) {
    const Groups scales{(const uint16_t*)scale.data + o * groups, units, units / groups};
    const Groups lowest{has_least ? (const uint16_t*)least->data + o * groups : nullptr, units, units / groups};
    by_rows(R, [&](int64_t r, auto several) {
      Whole x[several];
      vec more[several] = {};
      for (int q = 0; q < several; q++) x[q] = rows[r + q];
      for (int64_t u = 0; u < units; u += W) {
        const vec of_w = scales.at(u), low = has_least ? lowest.at(u) : of_w * -8.f;
        UNROLLED for (int q = 0; q < several; q++) {
          *(vec*)(factors + q * rows.units + u) = of_w * *(const vec*)(x[q].scales + u);
          if (BITS == 4) more[q] += low * *(const vec*)(x[q].sums + u);
        }
      }
      float y[several];
      whole_products<BITS, several>(x, (const uint8_t*)w.data + o * row, factors, rows.units, units, more, y);
      for (int q = 0; q < several; q++) out[0].to()[(r + q) * O + o] = y[q];
    });
  }
}

int64_t float_rows(const int64_t* n) { return n['R' - 'A'] * padded(n['J' - 'A']); }

// Of each row the even numbers, and then the odd ones.
void to_floats(const Tensor* in, float* room) {
  const int64_t R = in[0].dims[0], I = in[0].dims[1], J = in[1].dims[1];
  float* row = scratch(J + W);
  for (int64_t r = 0; r < R; r++, room += padded(J)) {
    load(in[0], r * I, I, row);
    std::memset(row + I, 0, (J - I) * sizeof(float));
    for (int64_t i = 0; i < J; i += 2) room[i / 2] = row[i], room[(J + i) / 2] = row[i + 1];
  }
}

void bfloat16(const Tensor* in, const Tensor* out, float* prepared, int64_t from, int64_t to) {
  const int64_t R = in[0].dims[0], O = in[1].dims[0], J = in[1].dims[1];
  for (int64_t o = from * PANEL; o < std::min(O, to * PANEL); o++)
    by_rows(R, [&](int64_t r, auto several) {
      const float* x[several];
      float y[several];
      for (int q = 0; q < several; q++) x[q] = prepared + (r + q) * padded(J);
      float_products<several>(x, (const uint16_t*)in[1].data + o * J, J, y);
      for (int q = 0; q < several; q++) out[0].to()[(r + q) * O + o] = y[q];
    });
}

int64_t panel(const int64_t* n) { return PANEL * n['R' - 'A'] * n['I' - 'A']; }
}  // namespace

extern const Kernel TABLE[];
const Kernel TABLE[] = {
    {"product_bfloat16", PRODUCT_BFLOAT16, "P", panel, bfloat16, true, float_rows, to_floats},
    {"product_int8", PRODUCT_INT8, "P", panel, whole<8>, true, whole_rows<8>, to_whole<8>},
    {"product_int4", PRODUCT_INT4, "P", panel, whole<4>, true, whole_rows<4>, to_whole<4>},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
