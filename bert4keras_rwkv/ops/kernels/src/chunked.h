// What the recurrences by chunks on tensor cores share. A chunk has at most 16 tokens of one document and none beyond a multiple
// of 16: one document has begun before its first token, or begins with it. Rows of its tiles are tokens, of the state's values.
//
// -DN= the head size, 16, 32, 48 or 64; -DCOLUMNS= the values of a block, a multiple of 16 and a divisor of N, for the gradient N;
// -DINPUT= and -DDECAY= float or bf16: the inputs, and w of them. One of -DFORWARD and -DGRADIENT. It wants B * H * N / COLUMNS blocks
// of 2 * COLUMNS threads, tensors that begin at a multiple of 8 bytes, and sm_80. A tensor that is not given is null.
#pragma once
#include "exchange.h"

static_assert(N % 16 == 0 && COLUMNS % 16 == 0 && N % COLUMNS == 0, "not whole tiles");
static_assert(N <= 64, "too large for what shared memory a block has");
static_assert(CHUNK == 16 || CHUNK == 32, "a chunk without a checkpoint follows one with it");

typedef long long wide;
constexpr int TILES = N / 16, SQUARE = N * N, SLICES = N / COLUMNS, WARPS = COLUMNS / 16, THREADS = 32 * WARPS;

// What a kernel is given first; INPUTS are those of the recurrence.
#define GIVEN INPUTS, const float *state, const float *start, const unsigned char *flags

// A head of a row of the batch. A block has one, or a slice of its values.
struct Item {
  int number, batch, head, T, H;
  const float* start;          // what its documents begin with
  const unsigned char* flags;  // of its row

  __device__ Item(const float* start_, const unsigned char* flags_, int T_, int H_)
      : number(blockIdx.x / SLICES), batch(blockIdx.x / SLICES / H_), head(blockIdx.x / SLICES % H_), T(T_), H(H_), start(start_ ? start_ + state() : nullptr),
        flags(flags_ ? flags_ + (wide)batch * T_ : nullptr) {}
  __device__ wide state() const { return (wide)number * SQUARE; }
  __device__ wide checkpoint(int t) const { return ((wide)number * chunks_of(T) + t / CHUNK) * SQUARE; }
  __device__ wide token(int t) const { return (((wide)batch * T + t) * H + head) * N; }
};

// The flags of 64 tokens, from a multiple of 16 on.
struct Marks {
  unsigned long long absent = 0, reset = 0;
  int base, T;

  __device__ Marks(const Item& item, int t) : base(t / 16 * 16), T(item.T) {
    if (!item.flags) return;
    const int at = base + threadIdx.x % 32;
    const int one = at < T ? item.flags[at] : 0, two = at + 32 < T ? item.flags[at + 32] : 0;
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

  __device__ Origin(const Item& item, const Marks& here, int t0, const float* checkpoints)
      : marks(item, here.is_reset(t0) || t0 % CHUNK == 0 ? t0 : t0 - 1), begin(t0), end(t0) {
    const bool is_kept = here.is_reset(t0) || t0 % CHUNK == 0;
    if (!is_kept) begin = marks.begin(t0);
    from = marks.is_reset(begin) ? item.start : checkpoints + item.checkpoint(begin);
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

  __device__ Tokens(const Item& item, const Marks& marks, int begin, int end) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int t = begin + tile_row(h);
      here[h] = t < end, there[h] = here[h] && !marks.is_absent(t);
      at[h] = item.token(here[h] ? t : begin);
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
template <class X> __device__ inline void put_tokens(const Item& item, const Tile& x, X* to, int begin, int end, int j0) {
#pragma unroll
  for (int e = 0; e < 4; e++)
    if (begin + tile_column(e) < end)
#pragma unroll
      for (int h = 0; h < 2; h++) put(to + item.token(begin + tile_column(e)) + j0 + tile_row(h), x.x[h][e]);
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

#ifdef FORWARD
// The forward pass of a block. A group of chunks is prepared at a time: prepare(chunk, tokens) makes, by one warp, what all of
// them need of a chunk. Then each warp has 16 values of the state S: read_and_write(chunk, S, values, put) takes it through a
// chunk, and put(x, to) writes what it gives for the chunk's tokens.
template <class Chunk, int GROUP, class Prepare, class ReadAndWrite>
__device__ inline void pass_forward(const Item item, Chunk (&ready)[GROUP], const INPUT* v, const float* state, float* last, float* checkpoints,
                                    const Prepare& prepare, const ReadAndWrite& read_and_write) {
  const int warp = threadIdx.x / 32, j0 = blockIdx.x % SLICES * COLUMNS + 16 * warp, T = item.T;
  Tile S[TILES];
  get_state(S, state + item.state(), j0);
#pragma unroll 1
  for (int t0 = 0; t0 < T;) {
    const Marks marks(item, t0);
    __syncthreads();  // all have read what was there
    int t = t0;
#pragma unroll 1
    for (int c = 0; c < GROUP && t < T; c++) {
      const int end = marks.end(t);
      if (c % WARPS == warp) {
        const Tokens tokens(item, marks, t, end);
        prepare(ready[c], tokens);
      }
      t = end;
    }
    Tile next;  // values, fetched before they are needed
    const auto fetch = [&](int t) {
      const Tokens tokens(item, marks, t, marks.end(t));
      next = tokens.get(v, j0, tokens.here);
    };
    fetch(t0);
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < GROUP && t0 < T; c++) {
      const int end = marks.end(t0);
      if (checkpoints && t0 % CHUNK == 0) keep_state(S, checkpoints + item.checkpoint(t0), j0);
      if (marks.is_reset(t0)) get_state(S, item.start, j0);
      const Operand<READ> values = transposed(operand<READ>(next));
      if (c + 1 < GROUP && end < T) fetch(end);
      read_and_write(ready[c], S, values, [&](const Tile& x, float* to) { put_tokens(item, x, to, t0, end, j0); });
      t0 = end;
    }
  }
  keep_state(S, last + item.state(), j0);
}
#endif

#ifdef GRADIENT
static_assert(COLUMNS == N, "a block has the whole state");

// The state that a chunk finds, for keys from i0, a tile at a time: one that was kept, with what a chunk left since.
template <int W> struct Found {
  Origin origin;
  Tokens earlier;
  Operand<WRITTEN> writers[W];
  Tile fade;
  int i0;

  __device__ Found(const Item& item, const Marks& marks, int t0, const float* checkpoints, const DECAY* w, const INPUT* const (&written)[W], int i0_)
      : origin(item, marks, t0, checkpoints), earlier(item, origin.marks, origin.begin, origin.end), i0(i0_) {
    if (origin.is_kept()) return;
    const Fades all = fades<16>(exponentials(earlier.get(w, i0, earlier.there)));
#pragma unroll
    for (int y = 0; y < W; y++) writers[y] = transposed(operand<WRITTEN>(product(earlier.get(written[y], i0, earlier.there), all.writer)));
    fade = all.total;
  }
  // Values from j0; `values`: what each of the writers wrote.
  template <class... X> __device__ Tile get(int j0, const X*... values) const {
    Tile S = get_state(origin.from, i0, j0);
    if (!origin.is_kept()) {
      S = product(S, fade);
      int y = 0;
      (add_product(S, transposed(operand<READ>(earlier.get(values, j0, earlier.here))), writers[y++]), ...);
    }
    return S;
  }
};

// The gradients of a chunk's readers, writers and decays, for 16 keys.
template <int R, int W> struct Slopes {
  Tile readers[R] = {}, writers[W] = {}, scores[R][W] = {}, decay = {};

  // For 16 values: S, the state that the chunk finds, and G, the gradient of the one it leaves; what readers gave is worth
  // by_reader, and what writers wrote is by_writer.
  __device__ void of_values(const Tile& S, const Operand<READ>& G, const Operand<READ> (&by_reader)[R], const Operand<READ> (&by_writer)[W]) {
    const Operand<READ> by_G = transposed(G), by_S = transposed(operand<READ>(S));
    add_product(decay, S, number(G));
#pragma unroll
    for (int r = 0; r < R; r++) add_product(readers[r], by_reader[r], by_S);
#pragma unroll
    for (int w = 0; w < W; w++) add_product(writers[w], by_writer[w], by_G);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int w = 0; w < W; w++) add_product(scores[r][w], by_reader[r], by_writer[w]);
  }
  // After all values: from those of the whole chunk to those of each token.
  __device__ void of_tokens(const Tile (&read)[R], const Tile (&written)[W], const Tile& decays) {
    decay = product(of_rows(decay), fades<16>(decays).total);
    exchange_gradient(read, written, decays, scores, readers, writers, decay);
  }
};

// The backward pass of a block, from the last chunk to the first. Warp i has the gradient G of values 16i and on, and then whatever
// is summed over values for keys 16i and on. back(G, marks, tokens, t0, end) takes G to before the chunk of tokens [t0, end).
template <class Back>
__device__ inline void pass_backward(const Item& item, const float* dlast, float* dstate, float* dstart, const Back& back) {
  const int i0 = threadIdx.x / 32 * 16;
  Tile G[TILES];
  get_state(G, nullptr, i0);
  if (dstart) keep_state(G, dstart + item.state(), i0);
  get_state(G, dlast + item.state(), i0);
#pragma unroll 1
  for (int end = item.T; end > 0;) {
    const Marks marks(item, end - 1);
    const int t0 = marks.begin(end);
    back(G, marks, Tokens(item, marks, t0, end), t0, end);
    if (marks.is_reset(t0)) {
      if (dstart) keep_state(G, dstart + item.state(), i0, true);
      get_state(G, nullptr, i0);
    }
    end = t0;
  }
  keep_state(G, dstate + item.state(), i0);
}
#endif
