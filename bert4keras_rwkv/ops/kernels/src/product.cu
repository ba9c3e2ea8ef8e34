// Products of a few rows with a packed matrix: y (R, O) = x (R, I) W', which cost what reading W costs. So a warp reads the rows of
// W for its outputs from their beginning to their end, 16 bytes a lane, and multiplies them by all rows of x.
//
// -DINPUT= float or bf16: x. -DBITS= 16, 8 or 4: of W. -DROWS= 1, 2, 4 or 8, those beyond R being zero.
#include "rounding.h"

namespace {
typedef long long wide;
constexpr int LINE = 128;                      // bytes that are fetched ahead at once
constexpr int AHEAD = AT_ONCE < 8 ? 4 : 2;     // pieces that are read at once; more of them want too many registers
constexpr int STAGED = few_staged(AT_ONCE, BITS), PER_PIECE = 128 / BITS;  // numbers of W in 16 bytes
constexpr int PIECES = STAGED / PER_PIECE, PER_UNIT = BITS == 16 ? 1 : FACTOR_UNIT / PER_PIECE;  // pieces; of a unit

#if BITS == 16
// Of each row two planes: the first halves of what a piece of W is multiplied by, and the others. So lanes read side by side.
struct __align__(16) Staged {
  float x[AT_ONCE][2][PIECES][4];
};

__device__ inline void stage(Staged& to, const INPUT* x, int R, int I, int j0, int numbers) {
  const int fours = numbers / 4;
  for (int i = threadIdx.x; i < AT_ONCE * fours; i += FEW_THREADS) {
    const int row = i / fours, four = i % fours;
    get_four(x + (wide)row * I, j0 + 4 * four, row < R ? I : 0, to.x[row][four % 2][four / 2]);
  }
}

struct Weights {
  float x[8];

  __device__ Weights(const Words& from, const Scales&, int) {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = __uint_as_float(i % 2 ? from.x[i / 2] & 0xffff0000u : from.x[i / 2] << 16);
  }
  __device__ void add_product(float& to, const Staged& staged, int row, int piece) const {
#pragma unroll
    for (int i = 0; i < 8; i++) to += x[i] * staged.x[row][i / 4][piece][i % 4];
  }
};
#else
constexpr int PLANES = BITS == 4 ? 2 : 1;

// x in whole numbers. Of 4 bits there are two planes: what low halves of bytes are multiplied by, and what high ones.
struct Staged {
  Words x[AT_ONCE][PLANES][PIECES];
  float scales[AT_ONCE][STAGED / FACTOR_UNIT], sums[AT_ONCE][STAGED / FACTOR_UNIT];
};

__device__ inline void stage(Staged& to, const INPUT* x, int R, int I, int j0, int numbers) {
  const int units = numbers / FACTOR_UNIT, lane = threadIdx.x % ROUND_LANES;
  for (int begin = 0; begin < AT_ONCE * units; begin += ROUND_UNITS) {  // by all lanes: `round_unit` exchanges
    const int i = begin + threadIdx.x / ROUND_LANES, row = i / units, unit = i % units;
    float four[4];
    get_four(x + (wide)row * I, j0 + unit * FACTOR_UNIT + 4 * lane, row < R ? I : 0, four);
    const Rounded found = round_unit(four);
    if (row >= AT_ONCE) continue;
    if (BITS == 4) to.x[row][lane / 4][unit].x[lane % 4] = found.numbers;
    else to.x[row][0][2 * unit + lane / 4].x[lane % 4] = found.numbers;
    if (lane == 0) to.scales[row][unit] = found.scale, to.sums[row][unit] = found.sum;
  }
}

struct Weights {
  Words x;
  float scale, low;

  __device__ Weights(const Words& from, const Scales& scales, int unit) : x(from) { scales.get(unit, scale, low); }
  __device__ void add_product(float& to, const Staged& staged, int row, int piece) const {
    int dot = 0;
#pragma unroll
    for (int plane = 0; plane < PLANES; plane++) {
      const Words by = staged.x[row][plane][piece];
#pragma unroll
      for (int i = 0; i < 4; i++) dot = dot4(BITS == 4 ? x.x[i] >> 4 * plane & 0x0f0f0f0fu : x.x[i], by.x[i], dot);
    }
    const int unit = piece / PER_UNIT;
    const float product = BITS == 4 ? scale * (float)dot + low * staged.sums[row][unit] : scale * (float)dot;
    to += product * staged.scales[row][unit];
  }
};
#endif
}  // namespace

extern "C" __global__ void __launch_bounds__(FEW_THREADS) forward(const INPUT* __restrict__ x, const unsigned char* __restrict__ w, SCALES float* y, int R, int I, int O,
                                                                  int J, int groups) {
  __shared__ Staged staged;
  const int lane = threadIdx.x % 32, first = (blockIdx.x * FEW_WARPS + threadIdx.x / 32) * FEW_OUTPUTS;
  const unsigned char* rows[FEW_OUTPUTS];
  Scales scales[FEW_OUTPUTS];
#pragma unroll
  for (int o = 0; o < FEW_OUTPUTS; o++) {
    const int output = smaller(first + o, O - 1);  // those beyond O are computed, and not written
    rows[o] = w + (wide)output * J * BITS / 8;
    scales[o] = SCALES_OF(output);
  }
  float sums[FEW_OUTPUTS * AT_ONCE] = {};
#pragma unroll 1
  for (int j0 = 0; j0 < J; j0 += STAGED) {
    const int numbers = smaller(J - j0, STAGED);
#pragma unroll
    for (int o = 0; o < FEW_OUTPUTS; o++)
      for (int i = lane * LINE; i < numbers * BITS / 8; i += 32 * LINE) fetch_ahead(rows[o] + (wide)j0 * BITS / 8 + i);
    if (j0) __syncthreads();
    stage(staged, x, R, I, j0, numbers);
    __syncthreads();
#pragma unroll AHEAD
    for (int piece = lane; piece < numbers / PER_PIECE; piece += 32) {
#pragma unroll
      for (int o = 0; o < FEW_OUTPUTS; o++) {
        const Weights weights(((const Words*)rows[o])[j0 / PER_PIECE + piece], scales[o], j0 / FACTOR_UNIT + piece / PER_UNIT);
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) weights.add_product(sums[o * AT_ONCE + r], staged, r, piece);
      }
    }
  }
  constexpr int COUNT = FEW_OUTPUTS * AT_ONCE, SAME = 32 / COUNT;  // so many lanes get the same sum
  totals<COUNT, 32>(sums, lane);
  const int output = first + lane / SAME / AT_ONCE, row = lane / SAME % AT_ONCE;
  if (lane % SAME == 0 && output < O && row < R) y[(wide)row * O + output] = sums[0];
}
