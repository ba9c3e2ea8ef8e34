// RWKV-7 by chunks on tensor cores; matrix_state.cc has the equations, and the meaning of the tensors. Options: as in wkv6_chunked.cu.
//
// What token t reads from the state is p_t = a_t S; what it leaves is k_t^T v_t + b_t^T p_t. So with the strictly lower triangle of
// scores between a and b called L, the p of a chunk solve (I - L) P = (what a reads of S and of k^T v).
#include "chunked.h"

#define INPUTS const INPUT *r, const DECAY *w, const INPUT *k, const INPUT *v, const INPUT *a, const INPUT *b
#define GIVEN INPUTS, const float *state, const float *start, const unsigned char *flags

namespace {
constexpr int PARTS = sizeof(INPUT) == 2 ? 1 : 2, WRITTEN = 2;  // as in wkv6_chunked.cu
constexpr int GROUP = 2;  // chunks whose scores are made at once
enum { A, R };            // readers
enum { B, K };            // writers

struct Chunk {
  Shared<PARTS> a[TILES];
  Shared<PARTS> r[TILES];
  Shared<WRITTEN> writers[2][TILES];  // turned
  Shared<PARTS> a_of_k;
  Shared<PARTS> inverse;
  Shared<PARTS> r_of[2];
  Decays decays[TILES];
};

// (I - lower)^-1 for a strictly lower triangle. Inverses of the blocks of M on the diagonal give those of 2M: [X, 0; Y L X, Y] for
// neighbours X and Y with L between them.
template <int M> __device__ inline void join_inverses(Tile& inverse, const Tile& lower) {
  Tile between = {}, once = {};
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int t = tile_row(h), s = tile_column(e);
      if (t / M % 2 && t / M == s / M + 1) between.x[h][e] = lower.x[h][e];
    }
  const Operand<2> of_inverse = operand<2>(inverse);
  add_product(once, operand<2>(between), transposed(of_inverse));
  add_product(inverse, of_inverse, transposed(operand<2>(once)));
}
__device__ inline Tile inverse_of(const Tile& lower) {
  Tile inverse;
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int t = tile_row(h), s = tile_column(e);
      inverse.x[h][e] = t == s ? 1.f : t % 2 && t == s + 1 ? lower.x[h][e] : 0.f;
    }
  join_inverses<2>(inverse, lower);
  join_inverses<4>(inverse, lower);
  join_inverses<8>(inverse, lower);
  return inverse;
}

__device__ inline void prepare(Chunk& chunk, const Tokens& tokens, INPUTS) {
  Tile scores[2][2] = {};
  float own[2][2] = {};
#pragma unroll
  for (int i = 0; i < TILES; i++) {
    Tile readers[2] = {tokens.get(a, 16 * i, tokens.here), tokens.get(r, 16 * i, tokens.here)};
    Tile writers[2] = {tokens.get(b, 16 * i, tokens.there), tokens.get(k, 16 * i, tokens.there)};
    Tile total = exponentials(tokens.get(w, 16 * i, tokens.there));
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        own[B][h] += readers[R].x[h][e] * writers[B].x[h][e];
        own[K][h] += readers[R].x[h][e] * writers[K].x[h][e];
        readers[R].x[h][e] *= total.x[h][e];  // r reads what its token leaves
      }
    exchange<PARTS>(readers, writers, total, scores);
    chunk.a[i].set(operand<PARTS>(readers[A]));
    chunk.r[i].set(operand<PARTS>(readers[R]));
    chunk.writers[B][i].set(transposed(operand<WRITTEN>(writers[B])));
    chunk.writers[K][i].set(transposed(operand<WRITTEN>(writers[K])));
    chunk.decays[i].set(total);
  }
  set_diagonal(scores[R][B], own[B]);
  set_diagonal(scores[R][K], own[K]);
  chunk.a_of_k.set(operand<PARTS>(scores[A][K]));
  chunk.inverse.set(operand<PARTS>(inverse_of(scores[A][B])));
  chunk.r_of[B].set(operand<PARTS>(scores[R][B]));
  chunk.r_of[K].set(operand<PARTS>(scores[R][K]));
}
}  // namespace

#ifdef FORWARD
extern "C" __global__ void __launch_bounds__(THREADS) forward(GIVEN, float* y, float* last, float* checkpoints, float* reads, int T, int H) {
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
      if (c % WARPS == warp) prepare(ready[c], Tokens(marks, t, end, batch, T, head, H), r, w, k, v, a, b);
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
      Tile p = {}, out = {}, solved = {};
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        const Operand<PARTS> of_state = operand<PARTS>(S[i]);
        add_product(p, of_state, chunk.a[i].get());
        add_product(out, of_state, chunk.r[i].get());
      }
      add_product(p, values, chunk.a_of_k.get());
      add_product(solved, operand<PARTS>(p), chunk.inverse.get());
      const Operand<PARTS> written = operand<PARTS>(solved);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        chunk.decays[i].apply(S[i]);
        add_product(S[i], values, chunk.writers[K][i].get());
        add_product(S[i], written, chunk.writers[B][i].get());
      }
      add_product(out, values, chunk.r_of[K].get());
      add_product(out, written, chunk.r_of[B].get());
      put_tokens(out, y, t0, end, j0, batch, T, head, H);
      if (reads) put_tokens(solved, reads, t0, end, j0, batch, T, head, H);
      t0 = end;
    }
  }
  keep_state(S, last + (wide)item * SQUARE, j0);
}
#endif
