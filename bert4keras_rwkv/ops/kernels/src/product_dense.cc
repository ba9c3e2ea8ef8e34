// Products of a few rows with a matrix as layers have it: y (R, O) = x (R, I) W, where W (I, O) is float32, bfloat16 or
// float16, for decoding, which costs what reading W costs. A strip of its columns is read a few rows at a time.
#include <algorithm>
#include <vector>

#include "shapes.h"
#include "vectors.h"

#define INLINE inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")

namespace {
constexpr int AT_ONCE = 4;        // rows of W
constexpr int64_t WIDEST = 2048;  // columns of a strip
typedef uint16_t shorts __attribute__((vector_size(2 * WIDTH), may_alias, aligned(2)));

struct Float32 {
  typedef float number;
  static INLINE vec wide(const float* from) { return *(const loose*)from; }
};
struct Bfloat16 {
  typedef uint16_t number;
  static INLINE vec wide(const uint16_t* from) { return (vec)(__builtin_convertvector(*(const shorts*)from, ints) << 16); }
};
struct Float16 {
  typedef uint16_t number;
  static INLINE vec wide(const uint16_t* from) { return wide_halves(from); }
};

// Adds to y, ROWS rows `apart` numbers apart, what COUNT rows of W from `w` on give, in columns 0 to n; of x those numbers begin.
template <class Kind, int COUNT> INLINE void add_rows(const float* const* x, int64_t R, const typename Kind::number* w, int64_t O, int64_t n, float* y, int64_t apart) {
  int64_t o = 0;
  for (; o + W <= n; o += W) {
    vec of_w[COUNT];
    UNROLLED for (int k = 0; k < COUNT; k++) {
      const auto* from = w + k * O + o;
      if (o * sizeof(*w) % 64 == 0) __builtin_prefetch(from + std::max<int64_t>(COUNT * O, 8192 / sizeof(*w)), 0, 2);
      of_w[k] = Kind::wide(from);
    }
    for (int64_t r = 0; r < R; r++) {
      loose* to = (loose*)(y + r * apart + o);
      vec sum = *to;
      UNROLLED for (int k = 0; k < COUNT; k++) sum += of_w[k] * x[r][k];
      *to = sum;
    }
  }
  if (o == n) return;
  typename Kind::number last[COUNT][W] = {};
  for (int k = 0; k < COUNT; k++) std::memcpy(last[k], w + k * O + o, (n - o) * sizeof(*w));
  for (int64_t r = 0; r < R; r++) {
    vec sum = {};
    UNROLLED for (int k = 0; k < COUNT; k++) sum += Kind::wide(last[k]) * x[r][k];
    for (int l = 0; l < n - o; l++) y[r * apart + o + l] += sum[l];
  }
}

template <class Kind> void dense(const Tensor* in, const Tensor* out, const float*, int64_t from, int64_t to) {
  const int64_t R = in[0].dims[0], I = in[0].dims[1], O = in[1].dims[1];
  const auto* w = static_cast<const typename Kind::number*>(in[1].data);
  float* y = out[0].to();
  Parts parts{scratch(R * (I + W))};
  std::vector<const float*> x(R), here(R);
  for (int64_t r = 0; r < R; r++) {
    float* row = parts.take(I);
    load(in[0], r * I, I, row);
    x[r] = row;
  }
  for (int64_t first = from * BAND; first < std::min(O, to * BAND); first += WIDEST) {
    const int64_t n = std::min(WIDEST, std::min(O, to * BAND) - first);
    for (int64_t r = 0; r < R; r++) std::memset(y + r * O + first, 0, n * sizeof(float));
    int64_t i = 0;
    for (; i + AT_ONCE <= I; i += AT_ONCE) {
      for (int64_t r = 0; r < R; r++) here[r] = x[r] + i;
      add_rows<Kind, AT_ONCE>(here.data(), R, w + i * O + first, O, n, y + first, O);
    }
    for (; i < I; i++) {
      for (int64_t r = 0; r < R; r++) here[r] = x[r] + i;
      add_rows<Kind, 1>(here.data(), R, w + i * O + first, O, n, y + first, O);
    }
  }
}

void dense_of_any(const Tensor* in, const Tensor* out, const float* prepared, int64_t from, int64_t to) {
  switch (in[1].dtype) {
    case BFLOAT16: return dense<Bfloat16>(in, out, prepared, from, to);
    case FLOAT16: return dense<Float16>(in, out, prepared, from, to);
    default: return dense<Float32>(in, out, prepared, from, to);
  }
}

int64_t band(const int64_t* n) { return BAND * n['R' - 'A'] * n['I' - 'A'] * 4; }
}  // namespace

extern const Kernel TABLE[];
const Kernel TABLE[] = {
    {"product_dense", PRODUCT_DENSE, "Q", band, dense_of_any, true},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
