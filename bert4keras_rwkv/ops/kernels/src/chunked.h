// What the recurrences by chunks on tensor cores share. A chunk has at most 16 tokens of one document and none beyond a multiple
// of 16: one document has begun before its first token, or begins with it. Rows of its tiles are tokens, of the state's values.
#pragma once
#include "mma.h"

static_assert(N % 16 == 0 && COLUMNS % 16 == 0 && N % COLUMNS == 0, "not whole tiles");
static_assert(N <= 64, "too large for what shared memory a block has");
static_assert(CHUNK == 16 || CHUNK == 32, "a chunk without a checkpoint follows one with it");

typedef long long wide;
// Of how many bfloat16 an operand is the sum. What is written stays in the state: no digit of it may be lost. What is read is
// rounded as y will be, or not at all for inputs of float32.
constexpr int READ = sizeof(INPUT) == 2 ? 1 : 2, WRITTEN = 2;
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
  __device__ int begin(int end) const {  // of the chunk before `end`, one of the first 16 tokens
    const unsigned long long earlier = reset & ((2ull << (end - 1 - base)) - 1);
    return base + (earlier ? last_bit(earlier) : 0);
  }
};

// Of the state that a chunk finds: what was kept, and tokens [begin, end) after that.
struct Origin {
  const float* from;
  Marks marks;
  int begin, end;

  __device__ Origin(const Marks& here, const unsigned char* flags, int t0, int T, const float* start, const float* checkpoints)
      : marks(flags, here.is_reset(t0) || t0 % CHUNK == 0 ? t0 : t0 - 1, T), begin(t0), end(t0) {
    const bool is_kept = here.is_reset(t0) || t0 % CHUNK == 0;
    if (!is_kept) begin = marks.begin(t0);
    from = marks.is_reset(begin) ? start : checkpoints + (wide)(begin / CHUNK) * SQUARE;
  }
  __device__ bool is_kept() const { return begin == end; }
};

// Two numbers side by side, the first at an even place.
struct __align__(8) Two { float x, y; };

__device__ inline void get(const float* from, float& x, float& y) {
  const Two both = *(const Two*)from;
  x = both.x, y = both.y;
}
__device__ inline void get(const bf16* from, float& x, float& y) {
  const unsigned both = *(const unsigned*)from;
  x = __uint_as_float(both << 16), y = __uint_as_float(both & 0xffff0000u);
}
__device__ inline void put(float* to, float x, float y) { *(Two*)to = {x, y}; }
__device__ inline void put(bf16* to, float x, float y) { *(unsigned*)to = packed(x, y); }

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
  // Rows of tokens that leave no trace are 0 in `traces`.
  template <class X> __device__ void put(const Tile& x, X* to, int column, bool traces) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const bool is_zero = traces && !there[h];
#pragma unroll
      for (int e = 0; e < 4; e += 2)
        if (here[h]) ::put(to + at[h] + column + tile_column(e), is_zero ? 0.f : x.x[h][e], is_zero ? 0.f : x.x[h][e + 1]);
    }
  }
};

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

// A tile of a state: keys from i0, values from j0. The rows of memory are keys, those of a tile values.
__device__ inline Tile get_state(const float* from, int i0, int j0) {
  Tile to;
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int e = 0; e < 4; e++) to.x[h][e] = from ? from[(i0 + tile_column(e)) * N + j0 + tile_row(h)] : 0.f;
  return to;
}
__device__ inline void get_state(Tile (&S)[TILES], const float* from, int j0) {
#pragma unroll
  for (int i = 0; i < TILES; i++) S[i] = get_state(from, 16 * i, j0);
}
__device__ inline void keep_state(const Tile (&S)[TILES], float* to, int j0, bool add = false) {
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float& here = to[(16 * i + tile_column(e)) * N + j0 + tile_row(h)];
        here = S[i].x[h][e] + (add ? here : 0.f);
      }
}

// Of tokens [begin, end), columns from j0; the columns of a tile are tokens.
template <class X> __device__ inline void put_tokens(const Tile& x, X* to, int begin, int end, int j0, int batch, int T, int head, int H) {
#pragma unroll
  for (int e = 0; e < 4; e++)
    if (begin + tile_column(e) < end)
#pragma unroll
      for (int h = 0; h < 2; h++) put(to + (((wide)batch * T + begin + tile_column(e)) * H + head) * N + j0 + tile_row(h), x.x[h][e]);
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

// Shares of the warps in a tile, and their sum.
template <int COUNT> struct Shares {
  Tile x[COUNT][32];

  __device__ void set(int warp, const Tile& share) { x[warp][threadIdx.x % 32] = share; }
  __device__ Tile sum() const {
    Tile to = x[0][threadIdx.x % 32];
#pragma unroll
    for (int i = 1; i < COUNT; i++) add(to, x[i][threadIdx.x % 32]);
    return to;
  }
};
