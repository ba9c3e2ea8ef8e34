// The RWKV-4 recurrence on a GPU; ops/wkv4.py explains its parts, and wkv4.cc has them on a CPU.
//
// -DINPUT= float or bf16: keys and values. One of -DFORWARD and -DGRADIENT. A thread has a channel of a row of the batch.
#include "geometry.h"
#include "port.h"

namespace {
typedef long long wide;
constexpr float MOST = 1e29f, STEEPEST = 60.f, SMALLEST = 1e-30f;

struct State { float a, b, p; };

// e^(p - m) and e^(q - m), m the larger.
__device__ inline void shares(float p, float q, float& of_p, float& of_q) {
  const bool ahead = p >= q;
  const float less = expf(ahead ? q - p : p - q);
  of_p = ahead ? 1.f : less;
  of_q = ahead ? less : 1.f;
}

__device__ inline bool is_empty(const State& s) { return s.a == 0.f && s.b == 0.f; }
__device__ inline float below(float k, float u) { return k + (u < 0.f ? u : 0.f) - 1.f; }
__device__ inline float scale(const State& s, float k, float u) {
  const float x = s.p - below(k, u);
  return is_empty(s) ? expf(x < STEEPEST ? x : STEEPEST) : 1.f;
}

// A state that was handed in, before a token of key k.
__device__ inline State entered(const State& s, float k, float u) {
  const float by = scale(s, k, u);
  return {by * s.a, by * s.b, is_empty(s) ? below(k, u) : s.p};
}

__device__ inline State written(const State& s, float k, float v, float w) {
  float old, fresh;
  const float p = s.p + w;
  shares(p, k, old, fresh);
  return {old * s.a + fresh * v, old * s.b + fresh, p >= k ? p : k};
}

// Keys and bonuses so large that a sum of two would overflow are as good as MOST; NaN stays.
__device__ inline float bounded(float x) { return x > MOST ? MOST : x < -MOST ? -MOST : x; }

// What a thread has of the tensors.
struct Place {
  int T, D, batch, channel;
  const unsigned char* flags;

  __device__ Place(const unsigned char* flags_, int T_, int D_) : T(T_), D(D_), flags(flags_) {
    const int strips = (D + STRIP_THREADS - 1) / STRIP_THREADS;
    batch = blockIdx.x / strips, channel = blockIdx.x % strips * STRIP_THREADS + threadIdx.x;
  }
  __device__ wide one() const { return (wide)batch * D + channel; }
  __device__ wide at(int t) const { return ((wide)batch * T + t) * D + channel; }
  __device__ int flag(int t) const { return flags ? flags[(wide)batch * T + t] : 0; }
  __device__ State get(const float* x, wide number) const {  // a state of (..., 3, D)
    const wide at = number * 3 * D + channel;
    return {x[at], x[at + D], x[at + 2 * D]};
  }
  __device__ void keep(const State& s, float* x, wide number) const {
    const wide at = number * 3 * D + channel;
    x[at] = s.a, x[at + D] = s.b, x[at + 2 * D] = s.p;
  }
  __device__ int first_token() const {
#pragma unroll 1
    for (int t = 0; t < T; t++)
      if (!(flag(t) & ABSENT)) return t;
    return -1;
  }
};
}  // namespace

#define GIVEN const INPUT *k_, const INPUT *v_, const float *w_, const float *u_, const float *state, const float *start, const unsigned char *flags

#ifdef FORWARD
extern "C" __global__ void __launch_bounds__(STRIP_THREADS) forward(GIVEN, float* y, float* last, float* checkpoints, int T, int D) {
  const Place place(flags, T, D);
  if (place.channel >= D) return;
  const float w = w_[place.one()] > -MOST ? w_[place.one()] : -MOST, u = bounded(u_[place.one()]);
  const State begin = start ? place.get(start, place.batch) : State{0.f, 0.f, 0.f};
  const int first = place.first_token(), chunks = chunks_of(T);
  State S = place.get(state, place.batch);
  if (first < 0) place.keep(S, last, place.batch);  // before anything is done to it
  S = entered(S, bounded(number(k_[place.at(first < 0 ? 0 : first)])), u);
#pragma unroll 1
  for (int t = 0; t < T; t++) {
    if (checkpoints && t % CHUNK == 0) place.keep(S, checkpoints, (wide)place.batch * chunks + t / CHUNK);
    const int flag = place.flag(t);
    const float k = bounded(number(k_[place.at(t)])), v = number(v_[place.at(t)]);
    if (flag & RESET) S = entered(begin, k, u);
    float old, fresh;
    shares(S.p, u + k, old, fresh);
    const float under = old * S.b + fresh;
    const bool seen = under > SMALLEST;
    y[place.at(t)] = (seen ? old * S.a + fresh * v : 0.f) / (seen ? under : 1.f);
    if (!(flag & ABSENT)) S = written(S, k, v, w);
  }
  if (first >= 0) place.keep(S, last, place.batch);
}
#endif

#ifdef GRADIENT
namespace {
struct Slopes { float k, v, w, u; };

__device__ inline bool is_large(float x) { return x > MOST || x < -MOST; }

// Backwards through what a token reads: adds to the slopes of the state and of the inputs.
__device__ inline void read_back(const State& s, float k, float v, float u, float dy, State& g, Slopes& d) {
  float old, fresh;
  const float q = u + k;
  shares(s.p, q, old, fresh);
  const float under = old * s.b + fresh;
  const bool seen = under > SMALLEST;
  const float of_top = seen ? dy / under : 0.f;
  const float of_under = seen ? -of_top * (old * s.a + fresh * v) / under : 0.f;
  g.a += of_top * old;
  g.b += of_under * old;
  d.v += of_top * fresh;
  // One of the two shares is 1 whatever p and q are; through the other goes what they do.
  const float slope = s.p >= q ? (of_top * v + of_under) * fresh : -(of_top * s.a + of_under * s.b) * old;
  g.p -= slope;
  d.k += slope;
  d.u += slope;
}

// Backwards through `written`: g becomes the slopes of the state before the token.
__device__ inline void write_back(const State& s, float k, float v, float w, State& g, Slopes& d) {
  float old, fresh;
  const float p = s.p + w;
  shares(p, k, old, fresh);
  const bool ahead = p >= k;
  const float slope = ahead ? (g.a * v + g.b) * fresh : -(g.a * s.a + g.b * s.b) * old;
  const float of_p = (ahead ? g.p : 0.f) - slope;
  d.k += slope + (ahead ? 0.f : g.p);
  d.v += g.a * fresh;
  d.w += of_p;
  g = {g.a * old, g.b * old, of_p};
}

__device__ inline State entered_back(const State& s, float k, float u, const State& g) {
  const float by = scale(s, k, u);
  const float of_scale = (g.a * s.a + g.b * s.b) * by;  // 0, unless it is NaN
  return {g.a * by, g.b * by, is_empty(s) ? of_scale : g.p};
}

__device__ inline void add(State& to, const State& x) { to.a += x.a, to.b += x.b, to.p += x.p; }
}  // namespace

extern "C" __global__ void __launch_bounds__(STRIP_THREADS) gradient(
    GIVEN, const float* checkpoints, const float* dy, const float* dlast, INPUT* dk, INPUT* dv, float* dw, float* du,
    float* dstate, float* dstart, int T, int D) {
  const Place place(flags, T, D);
  if (place.channel >= D) return;
  const float raw_w = w_[place.one()], raw_u = u_[place.one()], w = raw_w > -MOST ? raw_w : -MOST, u = bounded(raw_u);
  const State begin = start ? place.get(start, place.batch) : State{0.f, 0.f, 0.f}, zero{0.f, 0.f, 0.f};
  const int first = place.first_token(), chunks = chunks_of(T);
  const State by = place.get(dlast, place.batch);
  State G = first < 0 ? zero : by, of_start = zero, states[CHUNK];  // first < 0: the state went by
  Slopes all{0.f, 0.f, 0.f, 0.f};
#pragma unroll 1
  for (int chunk = chunks - 1; chunk >= 0; chunk--) {
    const int t0 = chunk * CHUNK, n = T - t0 < CHUNK ? T - t0 : CHUNK;
    State S = place.get(checkpoints, (wide)place.batch * chunks + chunk);
#pragma unroll 1
    for (int s = 0; s < n; s++) {
      const int flag = place.flag(t0 + s);
      const float k = bounded(number(k_[place.at(t0 + s)]));
      if (flag & RESET) S = entered(begin, k, u);
      states[s] = S;
      if (!(flag & ABSENT)) S = written(S, k, number(v_[place.at(t0 + s)]), w);
    }
#pragma unroll 1
    for (int s = n - 1; s >= 0; s--) {
      const int flag = place.flag(t0 + s);
      const wide at = place.at(t0 + s);
      const float raw = number(k_[at]), k = bounded(raw), v = number(v_[at]);
      Slopes d{0.f, 0.f, all.w, all.u};
      if (!(flag & ABSENT)) write_back(states[s], k, v, w, G, d);
      read_back(states[s], k, v, u, dy[at], G, d);
      if (flag & RESET) {
        add(of_start, entered_back(begin, k, u, G));
        G = zero;
      }
      put(dk + at, is_large(raw) ? 0.f : d.k);
      put(dv + at, d.v);
      all.w = d.w, all.u = d.u;
    }
  }
  G = entered_back(place.get(state, place.batch), bounded(number(k_[place.at(first < 0 ? 0 : first)])), u, G);
  if (first < 0) add(G, by);
  place.keep(G, dstate, place.batch);
  dw[place.one()] = raw_w > -MOST ? all.w : 0.f;
  du[place.one()] = is_large(raw_u) ? 0.f : all.u;
  if (dstart) place.keep(of_start, dstart, place.batch);
}
#endif
