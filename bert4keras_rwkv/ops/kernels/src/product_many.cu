// Products of many rows with a packed matrix, on tensor cores: y (R, O) = x (R, I) W'. A block has 16 outputs, a tile of which is the
// first operand, and each of its warps some of the numbers of their rows. No matrix is laid out anew: which of 32 numbers stands
// in which place of an operand does not matter, if it is the same in both.
//
// -DBITS= 16, 8 or 4: of W. -DAT_ONCE= 16, 32 or 64, those beyond R being computed and not written. Whole numbers are multiplied by
// rows of `round_rows`, those of bfloat16 by x, -DINPUT= float or bf16.
#include "mma.h"
#include "rounding.h"

namespace {
typedef long long wide;
constexpr int TILES = AT_ONCE / TILE, AHEAD = AT_ONCE < 64 ? 2 : 1;  // steps that are read at once: more want too many registers

#if BITS == 16
typedef INPUT Given;
constexpr int STEP = TILE, PARTS = sizeof(INPUT) == 2 ? 1 : 3;  // x is the sum of so many bfloat16, without loss

// Numbers j to j + STEP of the tile's outputs times those of all rows of x.
__device__ inline void add_products(Tile (&sums)[TILES], const unsigned char* const (&rows)[2], const Scales (&)[2], const INPUT* x, int R, int I, int, int j) {
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  Half weights;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const Pair pair = ((const Pair*)(rows[h] + 2 * j))[q];
    weights.x[h][0] = pair.x[0], weights.x[h][1] = pair.x[1];
  }
#pragma unroll
  for (int tile = 0; tile < TILES; tile++) {
    Tile given;
#pragma unroll
    for (int h = 0; h < 2; h++) get_four(x + (wide)smaller(tile * TILE + 8 * h + g, R - 1) * I, j + 4 * q, I, given.x[h]);
    const Operand<PARTS> by = operand<PARTS>(given);
#pragma unroll
    for (int part = PARTS - 1; part >= 0; part--) add_product(sums[tile], weights, by.part[part]);
  }
}
#else
typedef unsigned char Given;
constexpr int STEP = FACTOR_UNIT;

// Numbers j to j + STEP, a unit, of the tile's outputs times those of all rows of x.
__device__ inline void add_products(Tile (&sums)[TILES], const unsigned char* const (&rows)[2], const Scales (&scales)[2], const unsigned char* x, int R, int, int J,
                                    int j) {
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, units = J / FACTOR_UNIT, unit = j / FACTOR_UNIT;
  unsigned weights[4];
  float scale[2], low[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    scales[h].get(unit, scale[h], low[h]);
    if (BITS == 8) {
      const Pair pair = ((const Pair*)(rows[h] + j))[q];
      weights[h] = pair.x[0], weights[2 + h] = pair.x[1];
    } else {
      const unsigned both = ((const unsigned*)(rows[h] + j / 2))[q];
      weights[h] = both & 0x0f0f0f0fu, weights[2 + h] = both >> 4 & 0x0f0f0f0fu;
    }
  }
  const wide bytes = (wide)units * ROUNDED_UNIT;
  const unsigned char* factors = x + J + 4 * unit;
#pragma unroll
  for (int n = 0; n < 2 * TILES; n++) {
    const unsigned char* row = x + smaller(8 * n + g, R - 1) * bytes + j;
    unsigned by[2];
    if (BITS == 8) {
      const Pair pair = ((const Pair*)row)[q];
      by[0] = pair.x[0], by[1] = pair.x[1];
    } else {
      by[0] = ((const unsigned*)row)[q], by[1] = ((const unsigned*)row)[4 + q];
    }
    int dots[4] = {};
    mma(dots, weights, by);
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const unsigned char* here = factors + smaller(8 * n + 2 * q + c, R - 1) * bytes;
      const float factor = *(const float*)here, sum = BITS == 4 ? *(const float*)(here + 4 * units) : 0.f;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float dot = scale[h] * (float)dots[2 * h + c];
        sums[n / 2].x[h][n % 2 * 2 + c] += (BITS == 4 ? dot + low[h] * sum : dot) * factor;
      }
    }
  }
}
#endif
}  // namespace

extern "C" __global__ void __launch_bounds__(MANY_THREADS) forward(const Given* __restrict__ x, const unsigned char* __restrict__ w, SCALES float* y, int R, int I, int O,
                                                                   int J, int groups) {
  __shared__ float shares[MANY_WARPS][AT_ONCE][TILE];
  const int warp = threadIdx.x / 32, first = blockIdx.x * TILE;
  const unsigned char* rows[2];
  Scales scales[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int output = smaller(first + tile_row(h), O - 1);
    rows[h] = w + (wide)output * J * BITS / 8;
    scales[h] = SCALES_OF(output);
  }
  Tile sums[TILES] = {};
#pragma unroll AHEAD
  for (int j = warp * STEP; j < J; j += MANY_WARPS * STEP) add_products(sums, rows, scales, x, R, I, J, j);
#pragma unroll
  for (int tile = 0; tile < TILES; tile++)
#pragma unroll
    for (int i = 0; i < 8; i++) shares[warp][tile * TILE + tile_column(i % 4)][tile_row(i / 4)] = sums[tile].x[i / 4][i % 4];
  __syncthreads();
  for (int i = threadIdx.x; i < R * TILE; i += MANY_THREADS) {
    const int row = i / TILE, output = i % TILE;
    float total = 0.f;
#pragma unroll
    for (int share = 0; share < MANY_WARPS; share++) total += shares[share][row][output];
    if (first + output < O) y[(wide)row * O + first + output] = total;
  }
}
