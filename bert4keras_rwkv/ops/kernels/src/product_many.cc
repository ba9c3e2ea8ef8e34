// Products of many rows with a packed matrix. A few outputs at a time, W is laid out so that each lane of a vector is an output.
//
// Whole numbers are multiplied in two steps: the rows of x are rounded, once for all outputs (`round_rows`), and then
// multiplied. A lane has 4 numbers of 8 bits: the multiplication that processors have for these adds up 4 products a lane.
//
// Of bfloat16 a lane has two numbers where x is bfloat16, too, and the processor adds up 2 products a lane; else one float32.
#include "packed.h"

namespace {
constexpr int AT_ONCE = W == 16 ? 6 : W == 8 ? 4 : 2;  // rows; with two vectors of outputs they fill the registers
constexpr int64_t TILE = 2 * W;  // outputs
constexpr int64_t STEPS = UNIT / 4;
constexpr int PLUS = VNNI || VNNI_OF_256 ? 128 : 0;  // what is added to numbers of 8 bits of W
typedef ints loose_ints __attribute__((aligned(4)));

// Rounded rows, one after another: the numbers, of each unit the scale, and of each the sum.
struct Rows {
  const char* data;
  int64_t units;
  int64_t bytes() const { return units * (UNIT + 2 * sizeof(float)); }
  const int8_t* numbers(int64_t r) const { return (const int8_t*)data + r * bytes(); }
  const float* scales(int64_t r) const { return (const float*)(numbers(r) + units * UNIT); }
  const float* sums(int64_t r) const { return scales(r) + units; }
};

void round_rows(const Tensor* in, const Tensor* out, float*, int64_t from, int64_t to) {
  const int64_t I = in[0].dims[1], units = out[0].dims[1] / (UNIT + 2 * sizeof(float));
  const Rows rows{(const char*)out[0].data, units};
  float* room = scratch(units * UNIT + W);
  for (int64_t r = from; r < to; r++) {
    load(in[0], r * I, I, room);
    std::memset(room + I, 0, (units * UNIT - I) * sizeof(float));
    int8_t* numbers = const_cast<int8_t*>(rows.numbers(r));
    round_units(room, units, const_cast<float*>(rows.scales(r)), const_cast<float*>(rows.sums(r)),
                [&](int64_t u, int half) { return numbers + u * UNIT + half * (UNIT / 2); });
  }
}

// total + of each lane the products of its 4 numbers of w and those of x, which are the same in all lanes.
// Numbers of 4 bits are from 0 to 15; those of 8 bits are of either sign, or PLUS has made them positive.
template <int BITS> INLINE ints add_products(ints total, ints w, ints x) {
#if VNNI
  return (ints)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, (__m512i)x);
#elif VNNI_OF_256
  return (ints)_mm256_dpbusd_avx_epi32((__m256i)total, (__m256i)w, (__m256i)x);
#elif defined(__AVX512BW__)
  const __m512i a = BITS == 4 ? (__m512i)w : _mm512_abs_epi8((__m512i)w), none = _mm512_setzero_si512();
  const __m512i b = BITS == 4 ? (__m512i)x : _mm512_mask_sub_epi8((__m512i)x, _mm512_movepi8_mask((__m512i)w), none, (__m512i)x);
  return total + (ints)_mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
#elif defined(__AVX2__)
  const __m256i a = BITS == 4 ? (__m256i)w : _mm256_abs_epi8((__m256i)w);
  const __m256i b = BITS == 4 ? (__m256i)x : _mm256_sign_epi8((__m256i)x, (__m256i)w);
  return total + (ints)_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
#else
  UNROLLED for (int i = 0; i < 4; i++) total += ((w << (24 - 8 * i)) >> 24) * ((x << (24 - 8 * i)) >> 24);
  return total;
#endif
}

// Calls products(first row, how many) for rows 0 to R, AT_ONCE at most, and of about as many.
template <class F> INLINE void by_blocks(int64_t R, const F& products) {
  const int64_t blocks = (R + AT_ONCE - 1) / AT_ONCE;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t begin = b * R / blocks;
    switch ((b + 1) * R / blocks - begin) {
      case 1: products(begin, std::integral_constant<int, 1>()); break;
      case 2: products(begin, std::integral_constant<int, 2>()); break;
#if WIDTH >= 8
      case 3: products(begin, std::integral_constant<int, 3>()); break;
      case 4: products(begin, std::integral_constant<int, 4>()); break;
#endif
#if WIDTH == 16
      case 5: products(begin, std::integral_constant<int, 5>()); break;
      case 6: products(begin, std::integral_constant<int, 6>()); break;
#endif
    }
  }
}

// W of TILE outputs: of each unit and step, two vectors of numbers; of each unit, two of scales and two of least values.
struct Laid {
  ints* numbers;
  vec *scales, *least;
};

// Lays out the numbers of the rows at `w`, of J / 4 or, of 4 bits, J / 8 words each.
template <int BITS> void lay_out(const uint8_t* const* w, int64_t units, ints* to) {
  const int64_t words = units * UNIT * BITS / 32;
  for (int v = 0; v < 2; v++)
    for (int64_t at = 0; at < words; at += W) {
      vec rows[W];
      for (int l = 0; l < W; l++) {
        const uint8_t* from = w[v * W + l] + at * 4;
        __builtin_prefetch(from + 512);
        if (at + W <= words) {
          rows[l] = *(const loose*)from;
        } else {
          rows[l] = vec{};
          std::memcpy(&rows[l], from, (words - at) * 4);
        }
      }
      transpose(rows);
      for (int64_t i = 0; i < W && at + i < words; i++) {
        const ints here = (ints)rows[i];
        if (BITS == 8) {
          to[(at + i) * 2 + v] = here ^ (ints{} + (int32_t)(PLUS ? 0x80808080 : 0));
        } else {  // 4 words a unit: the first 16 numbers, and the others
          const int64_t unit = (at + i) / 4, step = (at + i) % 4;
          to[(unit * STEPS + step) * 2 + v] = here & 0x0f0f0f0f;
          to[(unit * STEPS + step + STEPS / 2) * 2 + v] = (here >> 4) & 0x0f0f0f0f;
        }
      }
    }
}

// y (ROWS, TILE), rows ldy apart: those from `first` on, and W as it is laid out.
template <int BITS, int ROWS> INLINE void products(const Rows& x, int64_t first, const Laid& w, vec (*y)[2]) {
  const int8_t* numbers[ROWS];
  const float *scales[ROWS], *sums[ROWS];
  for (int r = 0; r < ROWS; r++) numbers[r] = x.numbers(first + r), scales[r] = x.scales(first + r), sums[r] = x.sums(first + r);
  vec total[ROWS][2] = {};
  for (int64_t u = 0; u < x.units; u++) {
    ints dots[ROWS][2] = {};
    UNROLLED for (int s = 0; s < STEPS; s++) {
      const ints *here = w.numbers + (u * STEPS + s) * 2;
      UNROLLED for (int r = 0; r < ROWS; r++) {
        int32_t four;
        std::memcpy(&four, numbers[r] + u * UNIT + s * 4, 4);
        const ints given = ints{} + four;
        dots[r][0] = add_products<BITS>(dots[r][0], here[0], given);
        dots[r][1] = add_products<BITS>(dots[r][1], here[1], given);
      }
    }
    UNROLLED for (int r = 0; r < ROWS; r++) {
      const float scale = scales[r][u], sum = sums[r][u];
      UNROLLED for (int v = 0; v < 2; v++) {
        vec dot = __builtin_convertvector(dots[r][v], vec);
        if (BITS == 8 && PLUS) dot -= all(PLUS * sum);
        total[r][v] += dot * (w.scales[u * 2 + v] * scale);
        if (BITS == 4) total[r][v] += w.least[u * 2 + v] * (scale * sum);
      }
    }
  }
  for (int r = 0; r < ROWS; r++) y[r][0] = total[r][0], y[r][1] = total[r][1];
}

// Of `row` of each output, of which there are TILE, the groups' numbers as one float for each unit and output.
void lay_out_scales(const uint16_t* const* row, int64_t units, int64_t each, float* room, vec* to) {
  for (int64_t o = 0; o < TILE; o++) {
    spread_scales(row[o], units, each, room);
    for (int64_t u = 0; u < units; u++) ((float*)to)[u * TILE + o] = room[u];
  }
}

template <int BITS> void many(const Tensor* in, const Tensor* out, float*, int64_t from, int64_t to) {
  const Tensor &w = in[1], &scale = in[2], *least = BITS == 4 ? in + 3 : nullptr;
  const int64_t R = in[0].dims[0], O = w.dims[0], row = w.dims[1], units = row * 8 / BITS / UNIT, groups = scale.dims[1], each = units / groups;
  const Rows x{(const char*)in[0].data, units};
  Parts parts{scratch(units * TILE * (STEPS + 2) + units + 5 * W)};
  const Laid laid{(ints*)parts.take(units * TILE * STEPS), (vec*)parts.take(units * TILE), (vec*)parts.take(units * TILE)};
  float* room = parts.take(units);
  for (int64_t first = from * PANEL; first < std::min(O, to * PANEL); first += TILE) {
    const int64_t count = std::min(TILE, O - first);
    const uint8_t* numbers[TILE];
    const uint16_t *scales[TILE], *lowest[TILE];
    for (int64_t o = 0; o < TILE; o++) {
      const int64_t here = first + std::min(o, count - 1);
      numbers[o] = (const uint8_t*)w.data + here * row;
      scales[o] = (const uint16_t*)scale.data + here * groups;
      if (least && *least) lowest[o] = (const uint16_t*)least->data + here * groups;
    }
    lay_out<BITS>(numbers, units, laid.numbers);
    lay_out_scales(scales, units, each, room, laid.scales);
    if (least && *least)
      lay_out_scales(lowest, units, each, room, laid.least);
    else if (BITS == 4)
      for (int64_t i = 0; i < 2 * units; i++) laid.least[i] = -8.f * laid.scales[i];
    by_blocks(R, [&](int64_t begin, auto several) {
      vec y[AT_ONCE][2];
      products<BITS, several>(x, begin, laid, y);
      for (int64_t r = 0; r < several; r++) std::memcpy(out[0].to() + (begin + r) * O + first, y[r], count * sizeof(float));
    });
  }
}

// x as the products with bfloat16 take it: pairs of bfloat16, or float32. Rows are padded with zeros to J numbers.
struct Pairs {
  static constexpr int64_t STEP = 2;  // numbers of a row that a lane has
  static INLINE int32_t broadcast(const float* row, int64_t i) {
    int32_t two;
    std::memcpy(&two, (const uint16_t*)row + i, 4);
    return two;
  }
#if BF16
  static INLINE vec add(vec total, ints w, int32_t x) { return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)w, (__m512bh)(ints{} + x)); }
#else
  static INLINE vec add(vec total, ints w, int32_t x) {
    const ints given = ints{} + x, high = ints{} + (int32_t)0xffff0000;
    return total + (vec)(w << 16) * (vec)(given << 16) + (vec)(w & high) * (vec)(given & high);
  }
#endif
};
struct Singles {
  static constexpr int64_t STEP = 1;
  static INLINE float broadcast(const float* row, int64_t i) { return row[i]; }
  static INLINE vec add(vec total, ints w, float x) { return total + (vec)w * x; }
};

// Lays out TILE rows of W of J numbers: of each STEP of them, two vectors.
template <class Kind> void lay_out_halves(const uint16_t* const* w, int64_t J, ints* to) {
  for (int v = 0; v < 2; v++)
    for (int64_t at = 0; at < J / 2; at += W) {  // J is a multiple of 32
      vec rows[W];
      for (int l = 0; l < W; l++) {
        const uint16_t* from = w[v * W + l] + at * 2;
        __builtin_prefetch(from + 256);
        rows[l] = *(const loose*)from;
      }
      transpose(rows);
      for (int64_t i = 0; i < W; i++) {
        const ints here = (ints)rows[i];
        if (Kind::STEP == 2) {
          to[(at + i) * 2 + v] = here;
        } else {
          to[(at + i) * 4 + v] = here << 16;
          to[(at + i) * 4 + 2 + v] = here & (int32_t)0xffff0000;
        }
      }
    }
}

template <class Kind, int ROWS> INLINE void half_products(const float* x, int64_t apart, const ints* w, int64_t J, vec (*y)[2]) {
  vec total[ROWS][2] = {};
  for (int64_t i = 0; i < J; i += Kind::STEP, w += 2)
    UNROLLED for (int r = 0; r < ROWS; r++) {
      const auto given = Kind::broadcast(x + r * apart, i);
      total[r][0] = Kind::add(total[r][0], w[0], given);
      total[r][1] = Kind::add(total[r][1], w[1], given);
    }
  for (int r = 0; r < ROWS; r++) y[r][0] = total[r][0], y[r][1] = total[r][1];
}

// The rows of x, padded to J numbers.
void pad_rows(const Tensor* in, float* room) {
  const int64_t R = in[0].dims[0], I = in[0].dims[1], J = in[1].dims[1], floats = in[0].dtype == BFLOAT16 ? J / 2 : J;
  const int64_t bytes = I * (in[0].dtype == BFLOAT16 ? 2 : 4);
  for (int64_t r = 0; r < R; r++, room += floats) {
    std::memcpy(room, (const char*)in[0].data + r * bytes, bytes);
    std::memset((char*)room + bytes, 0, floats * sizeof(float) - bytes);
  }
}

template <class Kind> void many_halves_of(const Tensor* in, const Tensor* out, float* x, int64_t from, int64_t to) {
  const int64_t R = in[0].dims[0], O = in[1].dims[0], J = in[1].dims[1], apart = J / Kind::STEP;
  ints* laid = (ints*)scratch(TILE * apart);
  for (int64_t first = from * PANEL; first < std::min(O, to * PANEL); first += TILE) {
    const int64_t count = std::min(TILE, O - first);
    const uint16_t* rows[TILE];
    for (int64_t o = 0; o < TILE; o++) rows[o] = (const uint16_t*)in[1].data + (first + std::min(o, count - 1)) * J;
    lay_out_halves<Kind>(rows, J, laid);
    by_blocks(R, [&](int64_t begin, auto several) {
      vec y[AT_ONCE][2];
      half_products<Kind, several>(x + begin * apart, apart, laid, J, y);
      for (int64_t r = 0; r < several; r++) std::memcpy(out[0].to() + (begin + r) * O + first, y[r], count * sizeof(float));
    });
  }
}

void many_halves(const Tensor* in, const Tensor* out, float* x, int64_t from, int64_t to) {
  if (in[0].dtype == BFLOAT16) many_halves_of<Pairs>(in, out, x, from, to);
  else many_halves_of<Singles>(in, out, x, from, to);
}

int64_t padded_rows(const int64_t* n) { return n['R' - 'A'] * n['J' - 'A']; }
int64_t halves_panel(const int64_t* n) { return PANEL * n['R' - 'A'] * n['I' - 'A']; }
int64_t row(const int64_t* n) { return n['V' - 'A'] * 2; }
int64_t panel(const int64_t* n) { return PANEL * n['R' - 'A'] * n['V' - 'A'] / 4; }
}  // namespace

extern const Kernel TABLE[];
const Kernel TABLE[] = {
    {"round_rows", ROUND_ROWS, "R", row, round_rows},
    {"product_many_bfloat16", PRODUCT_MANY_BFLOAT16, "P", halves_panel, many_halves, false, padded_rows, pad_rows},
    {"product_many_int8", PRODUCT_MANY_INT8, "P", panel, many<8>},
    {"product_many_int4", PRODUCT_MANY_INT4, "P", panel, many<4>},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
