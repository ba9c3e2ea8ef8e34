// The recurrences with a matrix-valued state on a GPU; matrix_state.cc has the equations, and the meaning of the tensors.
//
// -DDELTA=0 (RWKV-5 and 6) or 1 (RWKV-7), -DN= the head size, -DINPUT= and -DDECAY= float or bf16: the inputs, and w of
// them. One of -DFORWARD, -DSTEP (of one token) and -DGRADIENT. Sums are float32. A tensor that is not given is null.
#include "geometry.h"
#include "port.h"

namespace {
typedef long long wide;
constexpr int SQUARE = N * N;
}  // namespace

#if DELTA
#define INPUTS const INPUT *r, const DECAY *w, const INPUT *k, const INPUT *v, const INPUT *a, const INPUT *b
#else
#define INPUTS const INPUT *r, const DECAY *w, const INPUT *k, const INPUT *v, const float *u
#endif
#define GIVEN INPUTS, const float *state, const float *start, const unsigned char *flags

#ifdef FORWARD
namespace {
constexpr int COLUMNS = forward_columns(N), THREADS = forward_threads(N), SLICES = forward_slices(N);
constexpr int KEYS = whole(N, 4 * PARTS) / PARTS, P = KEYS * PARTS;  // of a thread, and with those that fill up
constexpr int STAGED = P <= 128 ? 16 : 8;                            // tokens that are fetched together

// Four of the keys of a thread lie side by side, those of its neighbours next to them.
__device__ inline int key(int l, int part) { return (l / 4 * PARTS + part) * 4 + l % 4; }

__device__ inline void get(float* S, const float* from, int part, int j) {
#pragma unroll
  for (int l = 0; l < KEYS; l++) S[l] = from && j < N && key(l, part) < N ? from[key(l, part) * N + j] : 0.f;
}
__device__ inline void keep(const float* S, float* to, int part, int j) {
#pragma unroll
  for (int l = 0; l < KEYS; l++)
    if (j < N && key(l, part) < N) to[key(l, part) * N + j] = S[l];
}
__device__ inline float of_column(float x) {
#pragma unroll
  for (int step = PARTS / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) forward(
    GIVEN, float* y, float* last, float* checkpoints,
#if DELTA
    float* reads,
#endif
    int T, int H) {
  __shared__ __align__(16) float r_[STAGED][P], d_[STAGED][P], k_[STAGED][P], a_[STAGED][P];
#if DELTA
  __shared__ __align__(16) float b_[STAGED][P];
#endif
  __shared__ float v_[STAGED][COLUMNS];
  __shared__ int flag_[STAGED];
  const int item = blockIdx.x / SLICES, batch = item / H, head = item % H, chunks = chunks_of(T);
  const int part = threadIdx.x % PARTS, column = threadIdx.x / PARTS, j0 = blockIdx.x % SLICES * COLUMNS, j = j0 + column;
  const float* begin = start ? start + (wide)item * SQUARE : nullptr;
  float S[KEYS];
  get(S, state + (wide)item * SQUARE, part, j);
#pragma unroll 1
  for (int t0 = 0; t0 < T; t0 += STAGED) {
    const int n = smaller(T - t0, STAGED);
    __syncthreads();  // all have read what was there
#pragma unroll 1
    for (int e = threadIdx.x; e < n * P; e += THREADS) {
      const int s = e / P, i = e % P, flag = flags ? flags[(wide)batch * T + t0 + s] : 0;
      const bool here = i < N, there = here && !(flag & ABSENT);
      const wide at = (((wide)batch * T + t0 + s) * H + head) * N + i;
      const float key = there ? number(k[at]) : 0.f;
      r_[s][i] = here ? number(r[at]) : 0.f;
      d_[s][i] = there ? expf(number(w[at])) : 1.f;
      k_[s][i] = key;
#if DELTA
      a_[s][i] = here ? number(a[at]) : 0.f;
      b_[s][i] = there ? number(b[at]) : 0.f;
#else
      a_[s][i] = here ? u[item * N + i] * key : 0.f;
#endif
      if (i == 0) flag_[s] = flag;
    }
#pragma unroll 1
    for (int e = threadIdx.x; e < n * COLUMNS; e += THREADS) {
      const int s = e / COLUMNS, l = e % COLUMNS;
      v_[s][l] = j0 + l < N ? number(v[(((wide)batch * T + t0 + s) * H + head) * N + j0 + l]) : 0.f;
    }
    __syncthreads();
#pragma unroll 1
    for (int s = 0; s < n; s++) {
      const int t = t0 + s;
      if (checkpoints && t % CHUNK == 0) keep(S, checkpoints + ((wide)item * chunks + t / CHUNK) * SQUARE, part, j);
      if (flag_[s] & RESET) get(S, begin, part, j);
      const float value = v_[s][column];
      float out = 0.f;
#if DELTA
      float p = 0.f;
#pragma unroll
      for (int l = 0; l < KEYS; l++) p += a_[s][key(l, part)] * S[l];
      p = of_column(p);
#endif
#pragma unroll
      for (int l = 0; l < KEYS; l++) {
        const int i = key(l, part);
#if DELTA
        S[l] = d_[s][i] * S[l] + (b_[s][i] * p + k_[s][i] * value);
        out += r_[s][i] * S[l];
#else
        out += r_[s][i] * (S[l] + a_[s][i] * value);
        S[l] = d_[s][i] * S[l] + k_[s][i] * value;
#endif
      }
      out = of_column(out);
      if (part == 0 && j < N) {
        const wide at = (((wide)batch * T + t) * H + head) * N + j;
        y[at] = out;
#if DELTA
        if (reads) reads[at] = p;
#endif
      }
    }
  }
  keep(S, last + (wide)item * SQUARE, part, j);
}
#endif

#ifdef STEP
namespace {
constexpr int KEYS = divided(N, STEP_PARTS), SLICES = step_slices(N);

__device__ inline float of_column(const float (*sums)[STEP_COLUMNS], int column) {
  float total = 0.f;
#pragma unroll
  for (int part = 0; part < STEP_PARTS; part++) total += sums[part][column];
  return total;
}
}  // namespace

extern "C" __global__ void __launch_bounds__(step_threads(N)) step(
    GIVEN, float* y, float* last, float*,
#if DELTA
    float*,
#endif
    int, int H) {
  __shared__ float y_[STEP_PARTS][STEP_COLUMNS];
  const int item = blockIdx.x / SLICES, flag = flags ? flags[item / H] : 0;
  const int column = threadIdx.x % STEP_COLUMNS, part = threadIdx.x / STEP_COLUMNS;
  const int j = blockIdx.x % SLICES * STEP_COLUMNS + column;
  const wide vectors = (wide)item * N, matrix = (wide)item * SQUARE;
  const float* from = flag & RESET ? start : state;
  const bool absent = flag & ABSENT;
  const float value = j < N ? number(v[vectors + j]) : 0.f;
  float S[KEYS], out = 0.f;
#pragma unroll
  for (int l = 0; l < KEYS; l++) {
    const int i = l * STEP_PARTS + part;
    S[l] = from && i < N && j < N ? from[matrix + i * N + j] : 0.f;
  }
#if DELTA
  __shared__ float p_[STEP_PARTS][STEP_COLUMNS];
  float p = 0.f;
#pragma unroll
  for (int l = 0; l < KEYS; l++) {
    const int i = l * STEP_PARTS + part;
    if (i < N) p += number(a[vectors + i]) * S[l];
  }
  p_[part][column] = p;
  __syncthreads();
  p = of_column(p_, column);
#endif
#pragma unroll
  for (int l = 0; l < KEYS; l++) {
    const int i = l * STEP_PARTS + part;
    if (i >= N) break;
    const wide at = vectors + i;
    const float key = absent ? 0.f : number(k[at]), decay = absent ? 1.f : expf(number(w[at]));
#if DELTA
    S[l] = decay * S[l] + ((absent ? 0.f : number(b[at])) * p + key * value);
    out += number(r[at]) * S[l];
#else
    out += number(r[at]) * (S[l] + u[at] * key * value);
    S[l] = decay * S[l] + key * value;
#endif
    if (j < N) last[matrix + i * N + j] = S[l];
  }
  y_[part][column] = out;
  __syncthreads();
  if (part == 0 && j < N) y[vectors + j] = of_column(y_, column);
}
#endif

#ifdef GRADIENT
static_assert(N <= MOST_GRADIENT, "too large");
namespace {
constexpr int LANES = gradient_lanes(N), THREADS = gradient_threads(N), WARPS = THREADS / 32;
constexpr int WIDE = whole(N, 4 * LANES) / LANES;  // columns of a thread
constexpr int ACROSS = LANES * WIDE, DOWN = THREADS / LANES * ROWS, P = ACROSS > DOWN ? ACROSS : DOWN;
constexpr int GROUP = 4;                      // tokens whose states are kept at once
constexpr int STAGED = P <= 64 ? 16 : GROUP;  // tokens that are fetched together
enum { R, D, K, V, DY, A, B, READ, VECTORS = DELTA ? 8 : 5 };

typedef float Tile[ROWS][WIDE];  // what a thread has of a matrix

struct Place {
  int lane, row;

  __device__ Place() : lane(threadIdx.x % LANES), row(threadIdx.x / LANES * ROWS) {}
  __device__ int column(int c) const { return (c / 4 * LANES + lane) * 4 + c % 4; }
  __device__ bool inside(int m, int c) const { return row + m < N && column(c) < N; }
  __device__ int at(int m, int c) const { return (row + m) * N + column(c); }

  __device__ void get(Tile& to, const float* from) const {
#pragma unroll
    for (int m = 0; m < ROWS; m++)
#pragma unroll
      for (int c = 0; c < WIDE; c++) to[m][c] = from && inside(m, c) ? from[at(m, c)] : 0.f;
  }
  __device__ void keep(const Tile& from, float* to, bool add) const {
#pragma unroll
    for (int m = 0; m < ROWS; m++)
#pragma unroll
      for (int c = 0; c < WIDE; c++)
        if (inside(m, c)) to[at(m, c)] = from[m][c] + (add ? to[at(m, c)] : 0.f);
  }
};

__device__ inline void copy(const Tile& from, Tile& to) {
#pragma unroll
  for (int m = 0; m < ROWS; m++)
#pragma unroll
    for (int c = 0; c < WIDE; c++) to[m][c] = from[m][c];
}

typedef float Staged[VECTORS][STAGED][P];

// The state after token s of those that were fetched.
__device__ inline void leave(const Place& place, Tile& S, const Staged& x, int s) {
#pragma unroll
  for (int m = 0; m < ROWS; m++) {
    const int i = place.row + m;
#pragma unroll
    for (int c = 0; c < WIDE; c++) {
      const int j = place.column(c);
      float more = x[K][s][i] * x[V][s][j];
      if constexpr (DELTA) more += x[B][s][i] * x[READ][s][j];
      S[m][c] = x[D][s][i] * S[m][c] + more;
    }
  }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) gradient(
    GIVEN, const float* checkpoints,
#if DELTA
    const float* reads,
#endif
    const float* dy, const float* dlast, INPUT* dr, DECAY* dw, INPUT* dk, INPUT* dv,
#if DELTA
    INPUT* da, INPUT* db,
#else
    float* du,
#endif
    float* dstate, float* dstart, int T, int H) {
  __shared__ __align__(16) Staged x;
  __shared__ float sums_[DELTA ? 2 : 1][WARPS][ACROSS];
#if DELTA
  __shared__ __align__(16) float dp_[ACROSS];
#endif
  __shared__ int flag_[STAGED];
  const int item = blockIdx.x, batch = item / H, head = item % H, chunks = chunks_of(T);
  const wide matrix = (wide)item * SQUARE;
  const float* begin = start ? start + matrix : nullptr;
  const Place place;
  const int lane = place.lane, warp = threadIdx.x / 32;
  int staged = -1;  // the first token of those that were fetched

  const auto stage = [&](int t0) {
    if (t0 == staged) return;
    staged = t0;
    const int n = smaller(T - t0, STAGED);
    __syncthreads();  // all have read what was there
#pragma unroll 1
    for (int e = threadIdx.x; e < n * P; e += THREADS) {
      const int s = e / P, i = e % P, flag = flags ? flags[(wide)batch * T + t0 + s] : 0;
      const bool here = i < N, there = here && !(flag & ABSENT);
      const wide at = (((wide)batch * T + t0 + s) * H + head) * N + i;
      x[R][s][i] = here ? number(r[at]) : 0.f;
      x[D][s][i] = there ? expf(number(w[at])) : 1.f;
      x[K][s][i] = there ? number(k[at]) : 0.f;
      x[V][s][i] = here ? number(v[at]) : 0.f;
      x[DY][s][i] = here ? dy[at] : 0.f;
#if DELTA
      x[A][s][i] = here ? number(a[at]) : 0.f;
      x[B][s][i] = there ? number(b[at]) : 0.f;
      x[READ][s][i] = here ? reads[at] : 0.f;
#endif
      if (i == 0) flag_[s] = flag;
    }
    __syncthreads();
  };

  Tile G, S, states[GROUP], inner[CHUNK / GROUP];
  place.get(G, dlast + matrix);
  if (dstart) {
    place.get(S, nullptr);
    place.keep(S, dstart + matrix, false);
  }
#if !DELTA
  float bonus[ROWS], of_u[ROWS];
#pragma unroll
  for (int m = 0; m < ROWS; m++) {
    bonus[m] = place.row + m < N ? u[item * N + place.row + m] : 0.f;
    of_u[m] = 0.f;
  }
#endif
#pragma unroll 1
  for (int chunk = chunks - 1; chunk >= 0; chunk--) {
    const int t0 = chunk * CHUNK, n = smaller(T - t0, CHUNK);
    place.get(S, checkpoints + ((wide)item * chunks + chunk) * SQUARE);
#pragma unroll 1
    for (int s = 0; s < n; s++) {
      if (s % GROUP == 0) copy(S, inner[s / GROUP]);
      stage(t0 + s / STAGED * STAGED);
      if (flag_[s % STAGED] & RESET) place.get(S, begin);
      leave(place, S, x, s % STAGED);
    }
#pragma unroll 1
    for (int g = (n - 1) / GROUP; g >= 0; g--) {
      const int s0 = g * GROUP, count = smaller(n - s0, GROUP);
      stage(t0 + s0 / STAGED * STAGED);
      copy(inner[g], S);
#pragma unroll 1
      for (int s = 0; s < count; s++) {
        if (flag_[(s0 + s) % STAGED] & RESET) place.get(S, begin);
        copy(S, states[s]);
        leave(place, S, x, (s0 + s) % STAGED);
      }
#pragma unroll 1
      for (int l = count - 1; l >= 0; l--) {
        const int s = (s0 + l) % STAGED, flag = flag_[s];
        const bool absent = flag & ABSENT;
        const wide at = (((wide)batch * T + t0 + s0 + l) * H + head) * N;
        copy(states[l], S);
        float of_row[4 * ROWS], of_v[WIDE], of_p[DELTA ? WIDE : 1];  // dr, dw, dk and db of each row; of each column
#pragma unroll
        for (int c = 0; c < WIDE; c++) {
          of_v[c] = 0.f;
          if constexpr (DELTA) of_p[c] = 0.f;
        }
#if !DELTA
        float seen = 0.f;  // v dy
#pragma unroll
        for (int c = 0; c < WIDE; c++) seen += x[V][s][place.column(c)] * x[DY][s][place.column(c)];
#pragma unroll
        for (int step = LANES / 2; step; step /= 2) seen += __shfl_xor_sync(0xffffffffu, seen, step);
#endif
#pragma unroll
        for (int m = 0; m < ROWS; m++) {
          const int i = place.row + m;
          const float key = x[K][s][i], read = x[R][s][i];
          float of_r = 0.f, of_w = 0.f, of_k = 0.f, of_b = 0.f;
#pragma unroll
          for (int c = 0; c < WIDE; c++) {
            const int j = place.column(c);
            const float value = x[V][s][j], slope = x[DY][s][j];
#if DELTA
            const float p = x[READ][s][j];
            of_r += (x[D][s][i] * S[m][c] + (x[B][s][i] * p + key * value)) * slope;
            G[m][c] += read * slope;
            of_b += G[m][c] * p;
            of_p[c] += G[m][c] * x[B][s][i];
            of_v[c] += G[m][c] * key;
#else
            of_r += S[m][c] * slope;
            of_v[c] += G[m][c] * key + read * bonus[m] * key * slope;
#endif
            of_w += G[m][c] * S[m][c];
            of_k += G[m][c] * value;
          }
          of_row[m] = of_r, of_row[ROWS + m] = of_w, of_row[2 * ROWS + m] = of_k, of_row[3 * ROWS + m] = of_b;
#if !DELTA
          of_u[m] += read * key * seen;
#endif
        }
#pragma unroll
        for (int c = 0; c < WIDE; c++) {
#pragma unroll
          for (int step = LANES; step < 32; step *= 2) {
            of_v[c] += __shfl_xor_sync(0xffffffffu, of_v[c], step);
            if constexpr (DELTA) of_p[c] += __shfl_xor_sync(0xffffffffu, of_p[c], step);
          }
          if (threadIdx.x % 32 < LANES) {
            sums_[0][warp][place.column(c)] = of_v[c];
            if constexpr (DELTA) sums_[1][warp][place.column(c)] = of_p[c];
          }
        }
        __syncthreads();
#pragma unroll 1
        for (int j = threadIdx.x; j < ACROSS; j += THREADS) {
          float total = 0.f;
#pragma unroll
          for (int i = 0; i < WARPS; i++) total += sums_[0][i][j];
          if (j < N) put(dv + at + j, total);
#if DELTA
          total = 0.f;
#pragma unroll
          for (int i = 0; i < WARPS; i++) total += sums_[1][i][j];
          dp_[j] = total;
#endif
        }
        __syncthreads();

        totals<4 * ROWS, LANES>(of_row, lane);
#pragma unroll
        for (int e = 0; e < 4 * ROWS / LANES; e++) {
          const int number = lane * (4 * ROWS / LANES) + e, m = number % ROWS, i = place.row + m;
          if (i >= N) continue;
          const float total = of_row[e];
#if DELTA
          if (number < ROWS) put(dr + at + i, total);
          else if (number < 2 * ROWS) put(dw + at + i, absent ? 0.f : total * x[D][s][i]);
          else if (number < 3 * ROWS) put(dk + at + i, absent ? 0.f : total);
          else put(db + at + i, absent ? 0.f : total);
#else
          const float here = u[item * N + i] * seen;
          if (number < ROWS) put(dr + at + i, total + here * x[K][s][i]);
          else if (number < 2 * ROWS) put(dw + at + i, absent ? 0.f : total * x[D][s][i]);
          else if (number < 3 * ROWS) put(dk + at + i, absent ? 0.f : total + here * x[R][s][i]);
#endif
        }
#if DELTA
        float of_a[ROWS];
#endif
#pragma unroll
        for (int m = 0; m < ROWS; m++) {
          const int i = place.row + m;
#if DELTA
          of_a[m] = 0.f;
#endif
#pragma unroll
          for (int c = 0; c < WIDE; c++) {
            const int j = place.column(c);
#if DELTA
            of_a[m] += S[m][c] * dp_[j];
            G[m][c] = x[D][s][i] * G[m][c] + x[A][s][i] * dp_[j];
#else
            G[m][c] = x[D][s][i] * G[m][c] + x[R][s][i] * x[DY][s][j];
#endif
          }
        }
#if DELTA
        totals<ROWS, LANES>(of_a, lane);
        if (lane % (LANES / ROWS) == 0) {
          const int i = place.row + lane / (LANES / ROWS);
          if (i < N) put(da + at + i, of_a[0]);
        }
#endif
        if (flag & RESET) {
          if (dstart) place.keep(G, dstart + matrix, true);
          place.get(G, nullptr);
        }
      }
    }
  }
  place.keep(G, dstate + matrix, false);
#if !DELTA
#pragma unroll
  for (int m = 0; m < ROWS; m++)
    if (lane == 0 && place.row + m < N) du[item * N + place.row + m] = of_u[m];
#endif
}
#endif
