// RWKV-6 by chunks on tensor cores; matrix_state.cc has the equations, and the meaning of the tensors.
//
// -DN= the head size, 16, 32, 48 or 64; -DCOLUMNS= the values of a block, a multiple of 16 and a divisor of N, for the gradient N;
// -DINPUT= and -DDECAY= float or bf16: the inputs, and w of them. One of -DFORWARD and -DGRADIENT. It wants B * H * N / COLUMNS blocks
// of 2 * COLUMNS threads, tensors that begin at a multiple of 8 bytes, and sm_80. A tensor that is not given is null.
#include "chunked.h"

#define INPUTS const INPUT *r, const DECAY *w, const INPUT *k, const INPUT *v, const float *u
#define GIVEN INPUTS, const float *state, const float *start, const unsigned char *flags

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
    Tile next;  // values, fetched before they are needed
    const auto fetch = [&](int t) {
      const Tokens tokens(marks, t, marks.end(t), batch, T, head, H);
      next = tokens.get(v, j0, tokens.here);
    };
    fetch(t0);
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < GROUP && t0 < T; c++) {
      const Chunk& chunk = ready[c];
      const int end = marks.end(t0);
      if (checkpoints && t0 % CHUNK == 0) keep_state(S, checkpoints + ((wide)item * chunks_of(T) + t0 / CHUNK) * SQUARE, j0);
      if (marks.is_reset(t0)) get_state(S, begin, j0);
      const Operand<READ> values = transposed(operand<READ>(next));
      if (c + 1 < GROUP && end < T) fetch(end);
      Tile out = {};
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        add_product(out, operand<READ>(S[i]), chunk.readers[i].get());
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

#ifdef GRADIENT
static_assert(COLUMNS == N, "a block has the whole state");

// Warp i has the gradient G of values 16i and on, and then whatever is summed over values for keys 16i and on.
extern "C" __global__ void __launch_bounds__(THREADS) gradient(
    GIVEN, const float* checkpoints, const float* dy, const float* dlast, INPUT* dr, DECAY* dw, INPUT* dk, INPUT* dv, float* du, float* dstate,
    float* dstart, int T, int H) {
  __shared__ Shared<READ> readers_[TILES], writers_[TILES], G_[TILES][TILES];  // readers turned
  __shared__ Decays decays_[TILES];
  __shared__ Shares<WARPS> scores_;
  const int item = blockIdx.x, batch = item / H, head = item % H, warp = threadIdx.x / 32, i0 = 16 * warp;
  const wide matrix = (wide)item * SQUARE;
  const float* begin = start ? start + matrix : nullptr;
  checkpoints += matrix * chunks_of(T);
  if (flags) flags += (wide)batch * T;
  Tile G[TILES], bonus, of_bonus = {};
  get_state(G, nullptr, i0);
  if (dstart) keep_state(G, dstart + matrix, i0);
  get_state(G, dlast + matrix, i0);
#pragma unroll
  for (int i = 0; i < 8; i++) bonus.x[i / 4][i % 4] = u[item * N + i0 + tile_column(i % 4)];
#pragma unroll 1
  for (int end = T; end > 0;) {
    const Marks marks(flags, end - 1, T);
    const int t0 = marks.begin(end);
    const Tokens tokens(marks, t0, end, batch, T, head, H);
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
      put_tokens(of_v, dv, t0, end, i0, batch, T, head, H);
      if (marks.is_reset(t0)) {
        if (dstart) keep_state(G, dstart + matrix, i0, true);
        get_state(G, nullptr, i0);
      }
    }
    __syncthreads();
    {
      const Origin origin(marks, flags, t0, T, begin, checkpoints);
      const Tokens earlier(origin.marks, origin.begin, origin.end, batch, T, head, H);
      Operand<WRITTEN> keys;
      Tile fade;
      if (!origin.is_kept()) {
        const Fades all = fades<16>(exponentials(earlier.get(w, i0, earlier.there)));
        keys = transposed(operand<WRITTEN>(product(earlier.get(k, i0, earlier.there), all.writer)));
        fade = all.total;
      }
      Tile of_readers[1] = {}, of_writers[1] = {}, of_scores[1][1] = {}, of_decay = {};
#pragma unroll 1
      for (int j = 0; j < TILES; j++) {
        Tile S = get_state(origin.from, i0, 16 * j);
        if (!origin.is_kept()) {
          S = product(S, fade);
          add_product(S, transposed(operand<READ>(earlier.get(v, 16 * j, earlier.here))), keys);
        }
        const Operand<READ> of_G = G_[j][warp].get();
        const Operand<READ> slopes = operand<READ>(tokens.get(dy, 16 * j, tokens.here)), values = operand<READ>(tokens.get(v, 16 * j, tokens.here));
        add_product(of_decay, S, number(of_G));
        add_product(of_readers[0], slopes, transposed(operand<READ>(S)));
        add_product(of_writers[0], values, transposed(of_G));
        add_product(of_scores[0][0], slopes, values);
      }
      of_decay = product(of_rows(of_decay), fades<16>(decay).total);
      exchange_gradient(read, written, decay, of_scores, of_readers, of_writers, of_decay);
      const Tile own = diagonal(of_scores[0][0]);
      add_product(of_readers[0], own, product(bonus, written[0]));
      add_product(of_writers[0], own, product(bonus, read[0]));
      add_product(of_bonus, own, product(read[0], written[0]));
      tokens.put(of_readers[0], dr, i0, false);
      tokens.put(of_writers[0], dk, i0, true);
      tokens.put(of_decay, dw, i0, true);
    }
    end = t0;
  }
  keep_state(G, dstate + matrix, i0);
  of_bonus = of_rows(of_bonus);
  if (tile_row(0) == 0)
#pragma unroll
    for (int e = 0; e < 4; e++) du[item * N + i0 + tile_column(e)] = of_bonus.x[0][e];
}
#endif
