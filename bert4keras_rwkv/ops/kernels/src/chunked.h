// What the recurrences by chunks on tensor cores share. A chunk has at most 16 tokens of one document and none beyond a multiple
// of 16: one document has begun before its first token, or begins with it. Rows of its tiles are tokens, of the state's values.
#pragma once
#include "mma.h"

static_assert(N % 16 == 0 && COLUMNS % 16 == 0 && N % COLUMNS == 0 && CHUNK % 16 == 0, "not whole tiles");

typedef long long wide;
constexpr int TILES = N / 16, SQUARE = N * N, SLICES = N / COLUMNS, WARPS = COLUMNS / 16, THREADS = 32 * WARPS;

__device__ inline float of_columns(float x) {  // of the four lanes of a row
  x += __shfl_xor_sync(ALL_LANES, x, 1);
  return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// The flags of 64 tokens, from a multiple of 16 on.
struct Marks {
  unsigned long long absent = 0, reset = 0;
  int base, T;

  __device__ Marks(const unsigned char* flags, int t, int T_) : base(t / 16 * 16), T(T_) {
    if (!flags) return;
    const int at = base + threadIdx.x % 32;
    const int one = at < T ? flags[at] : 0, two = at + 32 < T ? flags[at + 32] : 0;
    absent = votes(one & ABSENT) | (unsigned long long)votes(two & ABSENT) << 32;
    reset = votes(one & RESET) | (unsigned long long)votes(two & RESET) << 32;
  }
  __device__ bool is_absent(int t) const { return absent >> (t - base) & 1; }
  __device__ bool is_reset(int t) const { return reset >> (t - base) & 1; }
  __device__ int end(int t) const {  // of the chunk that begins at t
    const int whole = smaller(t / 16 * 16 + 16, T), next = t + 1 - base;
    const unsigned long long later = next < 64 ? reset >> next : 0;
    return later ? smaller(whole, t + 1 + first_bit(later)) : whole;
  }
};

__device__ inline void get(const float* from, float& x, float& y) { x = from[0], y = from[1]; }
__device__ inline void get(const bf16* from, float& x, float& y) {  // an even place
  const unsigned both = *(const unsigned*)from;
  x = __uint_as_float(both << 16), y = __uint_as_float(both & 0xffff0000u);
}

// A chunk of tokens [begin, end) of one item; `here` is whether a row's token exists, `there` whether it leaves a trace.
struct Tokens {
  wide at[2];
  bool here[2], there[2];

  __device__ Tokens(const Marks& marks, int begin, int end, int batch, int T, int head, int H) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int t = begin + tile_row(h);
      here[h] = t < end, there[h] = here[h] && !marks.is_absent(t);
      at[h] = (((wide)batch * T + (here[h] ? t : begin)) * H + head) * N;
    }
  }
  template <class X> __device__ Tile get(const X* x, int column, const bool (&which)[2]) const {
    Tile to;
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        ::get(x + at[h] + column + tile_column(e), to.x[h][e], to.x[h][e + 1]);
        if (!which[h]) to.x[h][e] = to.x[h][e + 1] = 0.f;
      }
    return to;
  }
};

__device__ inline Tile exponentials(const Tile& x) {
  Tile to;
#pragma unroll
  for (int i = 0; i < 8; i++) to.x[i / 4][i % 4] = expf(x.x[i / 4][i % 4]);
  return to;
}

// Tiles of the columns from j0 of a state; the rows of memory are keys, those of a tile values.
__device__ inline void get_state(Tile (&S)[TILES], const float* from, int j0) {
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int e = 0; e < 4; e++) S[i].x[h][e] = from ? from[(16 * i + tile_column(e)) * N + j0 + tile_row(h)] : 0.f;
}
__device__ inline void keep_state(const Tile (&S)[TILES], float* to, int j0) {
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int e = 0; e < 4; e++) to[(16 * i + tile_column(e)) * N + j0 + tile_row(h)] = S[i].x[h][e];
}

// Of tokens [begin, end), columns from j0; the columns of a tile are tokens.
__device__ inline void put_tokens(const Tile& x, float* to, int begin, int end, int j0, int batch, int T, int head, int H) {
#pragma unroll
  for (int e = 0; e < 4; e++)
    if (begin + tile_column(e) < end)
#pragma unroll
      for (int h = 0; h < 2; h++) to[(((wide)batch * T + begin + tile_column(e)) * H + head) * N + j0 + tile_row(h)] = x.x[h][e];
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
template <int M, int PARTS, int R, int W>
__device__ inline void join(Tile (&readers)[R], Tile (&writers)[W], Tile& total, Tile (&scores)[R][W]) {
  Operand<PARTS> of_writer[W];
#pragma unroll
  for (int w = 0; w < W; w++) of_writer[w] = operand<PARTS>(writers[w]);
#pragma unroll
  for (int r = 0; r < R; r++) {
    const Operand<PARTS> of_reader = operand<PARTS>(readers[r]);
#pragma unroll
    for (int w = 0; w < W; w++) {
      Tile between = {};
      add_product<0, M == 8 ? 1 : 2>(between, of_reader, of_writer[w]);
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int t = tile_row(h), s = tile_column(e);
          if (t / M % 2 && t / M == s / M + 1) scores[r][w].x[h][e] += between.x[h][e];
        }
    }
  }
  Tile other;
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int e = 0; e < 4; e++) other.x[h][e] = M == 8 ? total.x[1 - h][e] : __shfl_xor_sync(ALL_LANES, total.x[h][e], 4 * (M % 8));
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const bool later = tile_row(h) / M % 2;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float factor = other.x[h][e];
#pragma unroll
      for (int r = 0; r < R; r++) readers[r].x[h][e] *= later ? factor : 1.f;
#pragma unroll
      for (int w = 0; w < W; w++) writers[w].x[h][e] *= later ? 1.f : factor;
      total.x[h][e] *= factor;
    }
  }
}

// Adds to the scores of each token's readers with the writers of earlier ones, for 16 keys. Afterwards readers have decayed
// since the chunk's first token and writers to its last, and `total` is the decay of the chunk.
template <int PARTS, int R, int W> __device__ inline void exchange(Tile (&readers)[R], Tile (&writers)[W], Tile& total, Tile (&scores)[R][W]) {
  join<1, PARTS>(readers, writers, total, scores);
  join<2, PARTS>(readers, writers, total, scores);
  join<4, PARTS>(readers, writers, total, scores);
  join<8, PARTS>(readers, writers, total, scores);
}

template <int PARTS> struct Shared {  // an operand that all warps read
  Half x[PARTS][32];

  __device__ void set(const Operand<PARTS>& from) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) x[part][threadIdx.x % 32] = from.part[part];
  }
  __device__ Operand<PARTS> get() const {
    Operand<PARTS> to;
#pragma unroll
    for (int part = 0; part < PARTS; part++) to.part[part] = x[part][threadIdx.x % 32];
    return to;
  }
};

// Decays of 16 keys by tile_column, the same for all rows of a tile.
struct __align__(16) Decays {
  float x[4][4];

  __device__ void set(const Tile& total) {
    if (tile_row(0) == 0)
#pragma unroll
      for (int e = 0; e < 4; e++) x[threadIdx.x % 4][e] = total.x[0][e];
  }
  __device__ void apply(Tile& S) const {
#pragma unroll
    for (int e = 0; e < 4; e++) S.x[0][e] *= x[threadIdx.x % 4][e], S.x[1][e] *= x[threadIdx.x % 4][e];
  }
};
