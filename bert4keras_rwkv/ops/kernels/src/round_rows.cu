// Rows of x in whole numbers, once for all outputs of a product of many rows: the numbers, of each unit the scale, and of each the
// sum. As in product_many.cc. -DINPUT= float or bf16.
#include "rounding.h"

extern "C" __global__ void __launch_bounds__(ROUND_THREADS) forward(const INPUT* x, unsigned char* rounded, int, int I, int, int J) {
  const int units = J / FACTOR_UNIT, blocks = (units + ROUND_UNITS - 1) / ROUND_UNITS, lane = threadIdx.x % ROUND_LANES;
  const int row = blockIdx.x / blocks, unit = blockIdx.x % blocks * ROUND_UNITS + threadIdx.x / ROUND_LANES;
  float numbers[4];
  get_four(x + (long long)row * I, unit * FACTOR_UNIT + 4 * lane, unit < units ? I : 0, numbers);
  const Rounded found = round_unit(numbers);
  if (unit >= units) return;
  unsigned char* to = rounded + (long long)row * units * ROUNDED_UNIT;
  ((unsigned*)(to + unit * FACTOR_UNIT))[lane] = found.numbers;
  float* scales = (float*)(to + units * FACTOR_UNIT);
  if (lane == 0) scales[unit] = found.scale, scales[units + unit] = found.sum;
}
