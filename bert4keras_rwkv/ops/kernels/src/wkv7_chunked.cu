// RWKV-7 by chunks on tensor cores; matrix_state.cc has the equations, and the meaning of the tensors.
//
// What token t reads from the state is p_t = a_t S; what it leaves is k_t^T v_t + b_t^T p_t. So with the strictly lower triangle of
// scores between a and b called L, the p of a chunk solve (I - L) P = (what a reads of S and of k^T v).
#define INPUTS const INPUT *r, const DECAY *w, const INPUT *k, const INPUT *v, const INPUT *a, const INPUT *b
#include "chunked.h"

namespace {
enum { A, R };  // readers
enum { B, K };  // writers

// (I - lower)^-1 for a strictly lower triangle. Inverses of the blocks of M on the diagonal give those of 2M: [X, 0; Y L X, Y] for
// neighbours X and Y with L between them.
template <int M> __device__ inline void join_inverses(Tile& inverse, const Tile& lower) {
  Tile once = {};
  const Operand<2> of_inverse = operand<2>(inverse);
  add_product(once, operand<2>(between<M>(lower)), transposed(of_inverse));
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
}  // namespace

#ifdef FORWARD
namespace {
constexpr int GROUP = READ == 1 ? 3 : 2;  // chunks whose scores are made at once: as many as there is room for

struct Chunk {
  Shared<READ> a[TILES];
  Shared<READ> r[TILES];
  Shared<WRITTEN> writers[2][TILES];  // turned
  Shared<READ> a_of_k;
  Shared<READ> inverse;
  Shared<READ> r_of[2];
  Decays decays[TILES];
};

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
    exchange(readers, writers, total, scores);
    chunk.a[i].set(operand<READ>(readers[A]));
    chunk.r[i].set(operand<READ>(readers[R]));
    chunk.writers[B][i].set(transposed(operand<WRITTEN>(writers[B])));
    chunk.writers[K][i].set(transposed(operand<WRITTEN>(writers[K])));
    chunk.decays[i].set(total);
  }
  set_diagonal(scores[R][B], own[B]);
  set_diagonal(scores[R][K], own[K]);
  chunk.a_of_k.set(operand<READ>(scores[A][K]));
  chunk.inverse.set(operand<READ>(inverse_of(scores[A][B])));
  chunk.r_of[B].set(operand<READ>(scores[R][B]));
  chunk.r_of[K].set(operand<READ>(scores[R][K]));
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) forward(GIVEN, float* y, float* last, float* checkpoints, float* reads, int T, int H) {
  __shared__ Chunk ready[GROUP];
  const Item item(start, flags, T, H);
  const auto prepare_chunk = [&](Chunk& chunk, const Tokens& tokens) { prepare(chunk, tokens, r, w, k, v, a, b); };
  const auto read_and_write = [&](const Chunk& chunk, Tile (&S)[TILES], const Operand<READ>& values, const auto& put) {
    Tile p = {}, out = {}, solved = {};
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      const Operand<READ> of_state = operand<READ>(S[i]);
      add_product(p, of_state, chunk.a[i].get());
      add_product(out, of_state, chunk.r[i].get());
    }
    add_product(p, values, chunk.a_of_k.get());
    add_product(solved, operand<READ>(p), chunk.inverse.get());
    const Operand<READ> written = operand<READ>(solved);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      chunk.decays[i].apply(S[i]);
      add_product(S[i], values, chunk.writers[K][i].get());
      add_product(S[i], written, chunk.writers[B][i].get());
    }
    add_product(out, values, chunk.r_of[K].get());
    add_product(out, written, chunk.r_of[B].get());
    put(out, y);
    if (reads) put(solved, reads);
  };
  pass_forward(item, ready, v, state, last, checkpoints, prepare_chunk, read_and_write);
}
#endif

#ifdef GRADIENT
extern "C" __global__ void __launch_bounds__(THREADS) gradient(
    GIVEN, const float* checkpoints, const float* reads, const float* dy, const float* dlast, INPUT* dr, DECAY* dw, INPUT* dk, INPUT* dv, INPUT* da,
    INPUT* db, float* dstate, float* dstart, int T, int H) {
  __shared__ Shared<READ> readers_[2][TILES], writers_[2][TILES];  // readers turned
  __shared__ Decays decays_[TILES];
  __shared__ union {
    Shares<WARPS> scores[2][2];
    struct {
      Shared<READ> G[TILES][TILES], q[TILES];
    } of;
  } x;
  const Item item(start, flags, T, H);
  const int warp = threadIdx.x / 32, i0 = 16 * warp;
  pass_backward(item, dlast, dstate, dstart, [&](Tile (&G)[TILES], const Marks& marks, const Tokens& tokens, int t0, int end) {
    __syncthreads();  // all have read what is here of the chunk after this
    {
      const Tile receptance = tokens.get(r, i0, tokens.here), decay = exponentials(tokens.get(w, i0, tokens.there));
      const Tile written[2] = {tokens.get(b, i0, tokens.there), tokens.get(k, i0, tokens.there)};
      Tile readers[2] = {tokens.get(a, i0, tokens.here), product(receptance, decay)}, writers[2] = {written[B], written[K]};
      Tile total = decay, scores[2][2] = {};
      exchange(readers, writers, total, scores);
      float own[2][2] = {};
#pragma unroll
      for (int y = 0; y < 2; y++) {
#pragma unroll
        for (int i = 0; i < 8; i++) own[y][i / 4] += receptance.x[i / 4][i % 4] * written[y].x[i / 4][i % 4];
        set_diagonal(scores[R][y], own[y]);
        x.scores[A][y].set(warp, scores[A][y]);
        x.scores[R][y].set(warp, scores[R][y]);
        readers_[y][warp].set(transposed(operand<READ>(readers[y])));
        writers_[y][warp].set(operand<READ>(writers[y]));
      }
      decays_[warp].set(total);
    }
    __syncthreads();
    {
      const Operand<READ> inverse = transposed(operand<READ>(inverse_of(x.scores[A][B].sum())));
      const Operand<READ> a_of_k = transposed(operand<READ>(x.scores[A][K].sum()));
      const Operand<READ> r_of_b = transposed(operand<READ>(x.scores[R][B].sum())), r_of_k = transposed(operand<READ>(x.scores[R][K].sum()));
      const Operand<READ> slopes = transposed(operand<READ>(tokens.get(dy, i0, tokens.here)));
      __syncthreads();  // the scores have been read
      Tile of_p = {}, of_q = {}, of_v = {};
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        const Operand<READ> of_G = operand<READ>(G[i]);
        x.of.G[warp][i].set(of_G);
        add_product(of_p, of_G, writers_[B][i].get());
        add_product(of_v, of_G, writers_[K][i].get());
      }
      add_product(of_p, slopes, r_of_b);
      add_product(of_q, operand<READ>(of_p), inverse);
      const Operand<READ> solved = operand<READ>(of_q);
      x.of.q[warp].set(transposed(solved));
      add_product(of_v, slopes, r_of_k);
      add_product(of_v, solved, a_of_k);
      put_tokens(item, of_v, dv, t0, end, i0);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        decays_[i].apply(G[i]);
        add_product(G[i], slopes, readers_[R][i].get());
        add_product(G[i], solved, readers_[A][i].get());
      }
    }
    __syncthreads();
    const Found<2> found(item, marks, t0, checkpoints, w, {b, k}, i0);
    Slopes<2, 2> of;
#pragma unroll 1
    for (int j = 0; j < TILES; j++) {
      const Operand<READ> by_reader[2] = {x.of.q[j].get(), operand<READ>(tokens.get(dy, 16 * j, tokens.here))};
      const Operand<READ> by_writer[2] = {operand<READ>(tokens.get(reads, 16 * j, tokens.here)), operand<READ>(tokens.get(v, 16 * j, tokens.here))};
      of.of_values(found.get(16 * j, reads, v), x.of.G[j][warp].get(), by_reader, by_writer);
    }
    // Fetched again: to keep them costs more.
    const Tile receptance = tokens.get(r, i0, tokens.here), decay = exponentials(tokens.get(w, i0, tokens.there));
    const Tile read[2] = {tokens.get(a, i0, tokens.here), product(receptance, decay)};
    const Tile written[2] = {tokens.get(b, i0, tokens.there), tokens.get(k, i0, tokens.there)};
    of.of_tokens(read, written, decay);
    add_product(of.decay, of.readers[R], read[R]);
    Tile of_r = product(of.readers[R], decay);
#pragma unroll
    for (int y = 0; y < 2; y++) {
      const Tile own = diagonal(of.scores[R][y]);
      add_product(of_r, own, written[y]);
      add_product(of.writers[y], own, receptance);
    }
    tokens.put(of_r, dr, i0, false);
    tokens.put(of.decay, dw, i0, true);
    tokens.put(of.writers[K], dk, i0, true);
    tokens.put(of.readers[A], da, i0, false);
    tokens.put(of.writers[B], db, i0, true);
  });
}
#endif
