// RWKV-6 by chunks on tensor cores; matrix_state.cc has the equations, and the meaning of the tensors.
//
// -DN= the head size, a multiple of 16; -DCOLUMNS= the values of a block, likewise, and a divisor of N; -DINPUT= and -DDECAY= float
// or bf16: the inputs, and w of them. One of -DFORWARD and -DGRADIENT. A tensor that is not given is null.
#include "chunked.h"

#define GIVEN const INPUT *r, const DECAY *w, const INPUT *k, const INPUT *v, const float *u, const float *state, const float *start, const unsigned char *flags

namespace {
// Of how many bfloat16 an operand is the sum. What is written stays in the state: no digit of it may be lost. What is read is
// rounded as y will be, or not at all for inputs of float32.
constexpr int PARTS = sizeof(INPUT) == 2 ? 1 : 2, WRITTEN = 2;
constexpr int GROUP = 4;  // chunks whose scores are made at once

struct Chunk {
  Shared<PARTS> readers[TILES];
  Shared<WRITTEN> writers[TILES];  // turned
  Shared<PARTS> scores;
  Decays decays[TILES];
};

__device__ inline void prepare(Chunk& chunk, const Tokens& tokens, const INPUT* r, const DECAY* w, const INPUT* k, const float* u) {
  Tile scores[1][1] = {};
  float own[2] = {};
#pragma unroll
  for (int i = 0; i < TILES; i++) {
    Tile readers[1] = {tokens.get(r, 16 * i, tokens.here)}, writers[1] = {tokens.get(k, 16 * i, tokens.there)};
    Tile total = exponentials(tokens.get(w, 16 * i, tokens.there));
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int e = 0; e < 4; e++) own[h] += readers[0].x[h][e] * u[16 * i + tile_column(e)] * writers[0].x[h][e];
    exchange<PARTS>(readers, writers, total, scores);
    chunk.readers[i].set(operand<PARTS>(readers[0]));
    chunk.writers[i].set(transposed(operand<WRITTEN>(writers[0])));
    chunk.decays[i].set(total);
  }
  set_diagonal(scores[0][0], own);
  chunk.scores.set(operand<PARTS>(scores[0][0]));
}
}  // namespace

#ifdef FORWARD
extern "C" __global__ void __launch_bounds__(THREADS) forward(GIVEN, float* y, float* last, float* checkpoints, int T, int H) {
  __shared__ Chunk ready[GROUP];
  const int item = blockIdx.x / SLICES, batch = item / H, head = item % H, warp = threadIdx.x / 32;
  const int j0 = blockIdx.x % SLICES * COLUMNS + 16 * warp;
  const float* begin = start ? start + (wide)item * SQUARE : nullptr;
  if (flags) flags += (wide)batch * T;
  Tile S[TILES];
  get_state(S, state + (wide)item * SQUARE, j0);
#pragma unroll 1
  for (int t0 = 0; t0 < T;) {
    const Marks marks(flags, t0, T);
    __syncthreads();  // all have read what was there
    int t = t0;
#pragma unroll 1
    for (int c = 0; c < GROUP && t < T; c++) {
      const int end = marks.end(t);
      if (c % WARPS == warp) prepare(ready[c], Tokens(marks, t, end, batch, T, head, H), r, w, k, u + item * N);
      t = end;
    }
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < GROUP && t0 < T; c++) {
      const Chunk& chunk = ready[c];
      const int end = marks.end(t0);
      if (checkpoints && t0 % CHUNK == 0) keep_state(S, checkpoints + ((wide)item * chunks_of(T) + t0 / CHUNK) * SQUARE, j0);
      if (marks.is_reset(t0)) get_state(S, begin, j0);
      const Tokens tokens(marks, t0, end, batch, T, head, H);
      const Operand<PARTS> values = transposed(operand<PARTS>(tokens.get(v, j0, tokens.here)));
      Tile out = {};
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        add_product(out, operand<PARTS>(S[i]), chunk.readers[i].get());
        chunk.decays[i].apply(S[i]);
        add_product(S[i], values, chunk.writers[i].get());
      }
      add_product(out, values, chunk.scores.get());
      put_tokens(out, y, t0, end, j0, batch, T, head, H);
      t0 = end;
    }
  }
  keep_state(S, last + (wide)item * SQUARE, j0);
}
#endif
