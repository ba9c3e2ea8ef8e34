// RWKV-6 by chunks on tensor cores; matrix_state.cc has the equations, and the meaning of the tensors.
#define INPUTS const INPUT *r, const DECAY *w, const INPUT *k, const INPUT *v, const float *u
#include "chunked.h"

#ifdef FORWARD
namespace {
constexpr int GROUP = 4;  // chunks whose scores are made at once

struct Chunk {
  Shared<READ> readers[TILES];
  Shared<WRITTEN> writers[TILES];  // turned
  Shared<READ> scores;
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
    exchange(readers, writers, total, scores);
    chunk.readers[i].set(operand<READ>(readers[0]));
    chunk.writers[i].set(transposed(operand<WRITTEN>(writers[0])));
    chunk.decays[i].set(total);
  }
  set_diagonal(scores[0][0], own);
  chunk.scores.set(operand<READ>(scores[0][0]));
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) forward(GIVEN, float* y, float* last, float* checkpoints, int T, int H) {
  __shared__ Chunk ready[GROUP];
  const Item item(start, flags, T, H);
  const auto prepare_chunk = [&](Chunk& chunk, const Tokens& tokens) { prepare(chunk, tokens, r, w, k, u + item.number * N); };
  const auto read_and_write = [&](const Chunk& chunk, Tile (&S)[TILES], const Operand<READ>& values, const auto& put) {
    Tile out = {};
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      add_product(out, operand<READ>(S[i]), chunk.readers[i].get());
      chunk.decays[i].apply(S[i]);
      add_product(S[i], values, chunk.writers[i].get());
    }
    add_product(out, values, chunk.scores.get());
    put(out, y);
  };
  pass_forward(item, ready, v, state, last, checkpoints, prepare_chunk, read_and_write);
}
#endif

#ifdef GRADIENT
extern "C" __global__ void __launch_bounds__(THREADS) gradient(
    GIVEN, const float* checkpoints, const float* dy, const float* dlast, INPUT* dr, DECAY* dw, INPUT* dk, INPUT* dv, float* du, float* dstate,
    float* dstart, int T, int H) {
  __shared__ Shared<READ> readers_[TILES], writers_[TILES], G_[TILES][TILES];  // readers turned
  __shared__ Decays decays_[TILES];
  __shared__ Shares<WARPS> scores_;
  const Item item(start, flags, T, H);
  const int warp = threadIdx.x / 32, i0 = 16 * warp;
  Tile bonus, of_bonus = {};
#pragma unroll
  for (int i = 0; i < 8; i++) bonus.x[i / 4][i % 4] = u[item.number * N + i0 + tile_column(i % 4)];
  pass_backward(item, dlast, dstate, dstart, [&](Tile (&G)[TILES], const Marks& marks, const Tokens& tokens, int t0, int end) {
    const Tile read[1] = {tokens.get(r, i0, tokens.here)}, written[1] = {tokens.get(k, i0, tokens.there)};
    const Tile decay = exponentials(tokens.get(w, i0, tokens.there));
    {
      Tile readers[1] = {read[0]}, writers[1] = {written[0]}, total = decay, scores[1][1] = {};
      exchange(readers, writers, total, scores);
      float own[2] = {};
#pragma unroll
      for (int i = 0; i < 8; i++) own[i / 4] += read[0].x[i / 4][i % 4] * bonus.x[i / 4][i % 4] * written[0].x[i / 4][i % 4];
      set_diagonal(scores[0][0], own);
      scores_.set(warp, scores[0][0]);
      readers_[warp].set(transposed(operand<READ>(readers[0])));
      writers_[warp].set(operand<READ>(writers[0]));
      decays_[warp].set(total);
    }
    __syncthreads();
    {
      const Operand<READ> slopes = transposed(operand<READ>(tokens.get(dy, i0, tokens.here)));
      Tile of_v = {};
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        const Operand<READ> of_G = operand<READ>(G[i]);
        G_[warp][i].set(of_G);
        add_product(of_v, of_G, writers_[i].get());
        decays_[i].apply(G[i]);
        add_product(G[i], slopes, readers_[i].get());
      }
      add_product(of_v, slopes, transposed(operand<READ>(scores_.sum())));
      put_tokens(item, of_v, dv, t0, end, i0);
    }
    __syncthreads();
    const Found<1> found(item, marks, t0, checkpoints, w, {k}, i0);
    Slopes<1, 1> of;
#pragma unroll 1
    for (int j = 0; j < TILES; j++) {
      const Operand<READ> slopes[1] = {operand<READ>(tokens.get(dy, 16 * j, tokens.here))};
      const Operand<READ> values[1] = {operand<READ>(tokens.get(v, 16 * j, tokens.here))};
      of.of_values(found.get(16 * j, v), G_[j][warp].get(), slopes, values);
    }
    of.of_tokens(read, written, decay);
    const Tile own = diagonal(of.scores[0][0]);
    add_product(of.readers[0], own, product(bonus, written[0]));
    add_product(of.writers[0], own, product(bonus, read[0]));
    add_product(of_bonus, own, product(read[0], written[0]));
    tokens.put(of.readers[0], dr, i0, false);
    tokens.put(of.writers[0], dk, i0, true);
    tokens.put(of.decay, dw, i0, true);
  });
  of_bonus = of_rows(of_bonus);
  if (tile_row(0) == 0)
#pragma unroll
    for (int e = 0; e < 4; e++) du[item.number * N + i0 + tile_column(e)] = of_bonus.x[0][e];
}
#endif
