// What 16 tokens of a chunk read of what earlier ones of them write, however far it has decayed between; forward and backward.
// Rows of tiles are tokens, columns keys, or other tokens.
#pragma once
#include "mma.h"

// Of how many bfloat16 an operand is the sum. What is written stays in the state: no digit of it may be lost. What is read is
// rounded as y will be, or not at all for inputs of float32.
constexpr int READ = sizeof(INPUT) == 2 ? 1 : 2, WRITTEN = 2;

__device__ inline float of_columns(float x) {  // of the four lanes of a row
  x += __shfl_xor_sync(ALL_LANES, x, 1);
  return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

__device__ inline void add(Tile& to, const Tile& x) {
#pragma unroll
  for (int i = 0; i < 8; i++) to.x[i / 4][i % 4] += x.x[i / 4][i % 4];
}
__device__ inline void add_product(Tile& to, const Tile& x, const Tile& y) {  // element by element
#pragma unroll
  for (int i = 0; i < 8; i++) to.x[i / 4][i % 4] += x.x[i / 4][i % 4] * y.x[i / 4][i % 4];
}
__device__ inline Tile product(const Tile& x, const Tile& y) {
  Tile to;
#pragma unroll
  for (int i = 0; i < 8; i++) to.x[i / 4][i % 4] = x.x[i / 4][i % 4] * y.x[i / 4][i % 4];
  return to;
}
__device__ inline Tile exponentials(const Tile& x) {
  Tile to;
#pragma unroll
  for (int i = 0; i < 8; i++) to.x[i / 4][i % 4] = expf(x.x[i / 4][i % 4]);
  return to;
}

// Of the rows of a tile: in all of them their sum.
__device__ inline Tile of_rows(const Tile& x) {
  Tile to;
#pragma unroll
  for (int e = 0; e < 4; e++) {
    float total = x.x[0][e] + x.x[1][e];
#pragma unroll
    for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(ALL_LANES, total, step);
    to.x[0][e] = to.x[1][e] = total;
  }
  return to;
}

// In all columns of a row the element on the diagonal.
__device__ inline Tile diagonal(const Tile& x) {
  Tile to;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float own = 0.f;
#pragma unroll
    for (int e = 0; e < 4; e++) own += tile_row(h) == tile_column(e) ? x.x[h][e] : 0.f;
    own = of_columns(own);
#pragma unroll
    for (int e = 0; e < 4; e++) to.x[h][e] = own;
  }
  return to;
}

// To the diagonal the totals of what the four lanes of a row have.
__device__ inline void set_diagonal(Tile& x, const float (&shares)[2]) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float total = of_columns(shares[h]);
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (tile_row(h) == tile_column(e)) x.x[h][e] = total;
  }
}

// Two neighbouring blocks of M tokens join. A reader has decayed since its block's first token, a writer to its block's last, so
// readers of the later one and writers of the earlier one make the scores between the two; no factor exceeds 1. `total`: the
// decay of a block, the same in all of its rows.
template <int M> __device__ inline bool is_later(int row) { return row / M % 2; }
// Whether a reader's row and a writer's column are of such blocks; which elements of a tile may be is known beforehand.
template <int M> __device__ inline bool are_between(int h, int e) {
  const int t = tile_row(h), s = tile_column(e);
  return (M == 8 ? h == 1 && e < 2 : h == e / 2) && is_later<M>(t) && t / M == s / M + 1;
}
template <int M> __device__ inline void add_between(Tile& to, const Tile& scores) {
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (are_between<M>(h, e)) to.x[h][e] += scores.x[h][e];
}
template <int M> __device__ inline Tile between(const Tile& scores) {
  Tile to = {};
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (are_between<M>(h, e)) to.x[h][e] = scores.x[h][e];
  return to;
}
template <int M> __device__ inline Tile of_other_block(const Tile& x) {
  Tile to;
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int e = 0; e < 4; e++) to.x[h][e] = M == 8 ? x.x[1 - h][e] : __shfl_xor_sync(ALL_LANES, x.x[h][e], 4 * (M % 8));
  return to;
}
template <int M, int R, int W> __device__ inline void join(Tile (&readers)[R], Tile (&writers)[W], Tile& total) {
  const Tile other = of_other_block<M>(total);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const bool later = is_later<M>(tile_row(h));
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float factor = other.x[h][e], of_reader = later ? factor : 1.f, of_writer = later ? 1.f : factor;
#pragma unroll
      for (int r = 0; r < R; r++) readers[r].x[h][e] *= of_reader;
#pragma unroll
      for (int w = 0; w < W; w++) writers[w].x[h][e] *= of_writer;
      total.x[h][e] *= factor;
    }
  }
}
template <int M, int R, int W>
__device__ inline void score_and_join(Tile (&readers)[R], Tile (&writers)[W], Tile& total, Tile (&scores)[R][W]) {
  Operand<READ> of_writer[W];
#pragma unroll
  for (int w = 0; w < W; w++) of_writer[w] = operand<READ>(writers[w]);
#pragma unroll
  for (int r = 0; r < R; r++) {
    const Operand<READ> of_reader = operand<READ>(readers[r]);
#pragma unroll
    for (int w = 0; w < W; w++) {
      Tile all = {};
      add_product<0, M == 8 ? 1 : 2>(all, of_reader, of_writer[w]);
      add_between<M>(scores[r][w], all);
    }
  }
  join<M>(readers, writers, total);
}

// Adds to the scores of each token's readers with the writers of earlier ones, for 16 keys. Afterwards readers have decayed
// since the chunk's first token and writers to its last, and `total` is the decay of the chunk.
template <int R, int W> __device__ inline void exchange(Tile (&readers)[R], Tile (&writers)[W], Tile& total, Tile (&scores)[R][W]) {
  score_and_join<1>(readers, writers, total, scores);
  score_and_join<2>(readers, writers, total, scores);
  score_and_join<4>(readers, writers, total, scores);
  score_and_join<8>(readers, writers, total, scores);
}

// How far tokens have decayed since the first one of their block of M, and to the last one; and the decay of the block.
struct Fades { Tile reader, writer, total; };

template <int M> __device__ inline Fades fades(const Tile& decay) {
  if constexpr (M == 1) {
    Fades to;
#pragma unroll
    for (int i = 0; i < 8; i++) to.reader.x[i / 4][i % 4] = to.writer.x[i / 4][i % 4] = 1.f;
    to.total = decay;
    return to;
  } else {
    const Fades half = fades<M / 2>(decay);
    Tile readers[1] = {half.reader}, writers[1] = {half.writer}, total = half.total;
    join<M / 2>(readers, writers, total);
    return {readers[0], writers[0], total};
  }
}

// `join` backwards. of_readers and of_writers: the gradients of readers and writers as far as they come from larger blocks; to
// them those of the scores between blocks of M are added. of_decay: of the logarithm of a block's decay, which wherever it
// acts multiplies the readers of the later block or the writers of the earlier one.
template <int M, int R, int W>
__device__ inline void part(const Tile (&readers)[R], const Tile (&writers)[W], const Tile& decay, const Tile (&of_scores)[R][W], Tile (&of_readers)[R],
                            Tile (&of_writers)[W], Tile& of_decay) {
  Tile used;
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float read = 0.f, written = 0.f;
#pragma unroll
      for (int r = 0; r < R; r++) read += of_readers[r].x[h][e] * readers[r].x[h][e];
#pragma unroll
      for (int w = 0; w < W; w++) written += of_writers[w].x[h][e] * writers[w].x[h][e];
      float sum = is_later<M>(tile_row(h)) ? read : written;
#pragma unroll
      for (int step = 4; step < 4 * M; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
      used.x[h][e] = sum;
    }
  add(of_decay, of_other_block<M>(used));

  const Fades fade = fades<M>(decay);
  Operand<READ> by_reader[R], by_writer[W];
  Tile to_writers[W] = {};
#pragma unroll
  for (int r = 0; r < R; r++) by_reader[r] = transposed(operand<READ>(product(readers[r], fade.reader)));
#pragma unroll
  for (int w = 0; w < W; w++) by_writer[w] = transposed(operand<READ>(product(writers[w], fade.writer)));
#pragma unroll
  for (int r = 0; r < R; r++) {
    Tile to_reader = {};
#pragma unroll
    for (int w = 0; w < W; w++) {
      const Operand<READ> here = operand<READ>(between<M>(of_scores[r][w]));
      add_product(to_reader, here, by_writer[w]);
      add_product(to_writers[w], transposed(here), by_reader[r]);
    }
    add_product(of_readers[r], to_reader, fade.reader);
  }
#pragma unroll
  for (int w = 0; w < W; w++) add_product(of_writers[w], to_writers[w], fade.writer);
}

// `exchange` backwards. readers, writers, decay: before it. of_readers, of_writers, of_decay: the gradients of what it gave, that of
// the chunk's decay in all rows and by its logarithm; they become those of each token's.
template <int R, int W>
__device__ inline void exchange_gradient(const Tile (&readers)[R], const Tile (&writers)[W], const Tile& decay, const Tile (&of_scores)[R][W],
                                         Tile (&of_readers)[R], Tile (&of_writers)[W], Tile& of_decay) {
  const Fades fade = fades<16>(decay);
#pragma unroll
  for (int r = 0; r < R; r++) of_readers[r] = product(of_readers[r], fade.reader);
#pragma unroll
  for (int w = 0; w < W; w++) of_writers[w] = product(of_writers[w], fade.writer);
  part<8>(readers, writers, decay, of_scores, of_readers, of_writers, of_decay);
  part<4>(readers, writers, decay, of_scores, of_readers, of_writers, of_decay);
  part<2>(readers, writers, decay, of_scores, of_readers, of_writers, of_decay);
  part<1>(readers, writers, decay, of_scores, of_readers, of_writers, of_decay);
}
