// Products of a few rows with a matrix as layers have it: y (R, O) = x (R, I) W, where W (I, O) is float32, bfloat16 or
// float16, for decoding, which costs what reading W costs. So it is read from its beginning to its end, a few rows at a time.
#include <algorithm>
#include <vector>

#include "shapes.h"
#include "vectors.h"

#define INLINE inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")

namespace {
constexpr int AT_ONCE = 4;  // rows of W
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

// What all items share: x in floats, and where inputs are cut, of each block of them a y (R, O).
int64_t floats_of_x(int64_t R, int64_t I) { return padded(R * I); }

int64_t room_of(const int64_t* n) {
  const int64_t R = n['R' - 'A'], I = n['I' - 'A'], O = n['O' - 'A'], many = blocks(I, O);
  return floats_of_x(R, I) + (many > 1 ? many * R * O : 0);
}

void to_floats(const Tensor* in, float* room) { load(in[0], 0, in[0].size(), room); }

template <class Kind> void dense(const Tensor* in, const Tensor* out, float* room, int64_t from, int64_t to) {
  const int64_t R = in[0].dims[0], I = in[0].dims[1], O = in[1].dims[1], many = blocks(I, O), deep = many > 1 ? BLOCK : I;
  const auto* w = static_cast<const typename Kind::number*>(in[1].data);
  const int64_t columns = std::max<int64_t>(STRETCH / std::max<int64_t>(R, 1) / 64 * 64, 256), apart = columns + W;
  float* sums = scratch(R * apart);  // apart, for rows of y often lie so that they drive each other out of the cache
  std::vector<const float*> here(R);
  for (int64_t item = from; item < to; item++) {
    const int64_t block = item % many, begin = block * deep, end = std::min(I, begin + deep);
    const int64_t left = item / many * STRETCH, right = std::min(O, left + STRETCH);
    float* y = many > 1 ? room + floats_of_x(R, I) + block * R * O : out[0].to();
    for (int64_t first = left; first < right; first += columns) {
      const int64_t n = std::min(columns, right - first);
      std::memset(sums, 0, R * apart * sizeof(float));
      int64_t i = begin;
      const auto next = [&](auto count) {
        for (int64_t r = 0; r < R; r++) here[r] = room + r * I + i;
        add_rows<Kind, count>(here.data(), R, w + i * O + first, O, n, sums, apart);
        i += count;
      };
      while (i + AT_ONCE <= end) next(std::integral_constant<int, AT_ONCE>());
      while (i < end) next(std::integral_constant<int, 1>());
      for (int64_t r = 0; r < R; r++) std::memcpy(y + r * O + first, sums + r * apart, n * sizeof(float));
    }
  }
}

void dense_of_any(const Tensor* in, const Tensor* out, float* room, int64_t from, int64_t to) {
  switch (in[1].dtype) {
    case BFLOAT16: return dense<Bfloat16>(in, out, room, from, to);
    case FLOAT16: return dense<Float16>(in, out, room, from, to);
    default: return dense<Float32>(in, out, room, from, to);
  }
}

// In the order of the blocks, whoever has computed them.
void add_blocks(const Tensor* in, const Tensor* out, const float* room) {
  const int64_t size = out[0].size(), many = blocks(in[0].dims[1], in[1].dims[1]);
  if (many == 1) return;
  const float* part = room + floats_of_x(in[0].dims[0], in[0].dims[1]);
  float* y = out[0].to();
  std::memcpy(y, part, size * sizeof(float));
  for (int64_t block = 1; block < many; block++)
    for (int64_t i = 0; i < size; i++) y[i] += part[block * size + i];
}

int64_t work_of(const int64_t* n) {
  return n['R' - 'A'] * n['I' - 'A'] * n['O' - 'A'] / n['Q' - 'A'];
}
}  // namespace

extern const Kernel TABLE[];
const Kernel TABLE[] = {
    {"product_dense", PRODUCT_DENSE, "Q", work_of, dense_of_any, true, room_of, to_floats, add_blocks},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
