// The RWKV-4 recurrence (arXiv 2305.13048), forward and backward: as ops/wkv4.py, which explains the parts, writes it.
//
//   y_t = (a + e^{u + k_t} v_t) / (b + e^{u + k_t}),  a' = e^w a + e^{k_t} v_t,  b' = e^w b + e^{k_t}
//
// Channels stand alone: a vector holds some, and one item is a strip of STRIP of them, of one row of the batch.
#include "shapes.h"
#include "vectors.h"

namespace {
constexpr int AHEAD = 8;  // tokens that are fetched before they are read
constexpr int VECTORS = STRIP / W;
constexpr float MOST = 1e29f, STEEPEST = 60.f, SMALLEST = 1e-30f;

struct State { vec a, b, p; };

inline vec choose(ints mask, vec x, vec y) { return mask ? x : y; }
inline vec least(vec x, vec y) { return x < y ? x : y; }
inline vec most(vec x, vec y) { return x > y ? x : y; }

// e^(p - m) and e^(q - m), m the larger.
inline void shares(vec p, vec q, vec& of_p, vec& of_q) {
  const ints ahead = p >= q;
  const vec less = exponential(ahead ? q - p : p - q);
  of_p = choose(ahead, all(1.f), less);
  of_q = choose(ahead, less, all(1.f));
}

// A state that was handed in, before a token of key k. `scale` and `empty` are for the gradient.
inline State entered(State s, vec k, vec u, vec& scale, ints& empty) {
  empty = (s.a == 0.f) & (s.b == 0.f);
  const vec below = k + least(u, vec{}) - 1.f;
  scale = choose(empty, exponential(least(s.p - below, all(STEEPEST))), all(1.f));
  return {scale * s.a, scale * s.b, choose(empty, below, s.p)};
}

inline State written(const State& s, vec k, vec v, vec w) {
  vec old, fresh;
  const vec p = s.p + w;
  shares(p, k, old, fresh);
  return {old * s.a + fresh * v, old * s.b + fresh, p >= k ? p : k};
}

inline vec read(const State& s, vec k, vec v, vec u) {
  vec old, fresh;
  shares(s.p, u + k, old, fresh);
  const vec below = old * s.b + fresh;
  const ints seen = below > SMALLEST;
  return choose(seen, old * s.a + fresh * v, vec{}) / choose(seen, below, all(1.f));
}

// One strip of one row, and what of it the kernel is at.
struct Place {
  int64_t T, D, batch, first, n;  // n channels from `first` on

  Place(const Tensor& k, int64_t item) : T(k.dims[1]), D(k.dims[2]) {
    const int64_t strips = (D + STRIP - 1) / STRIP;
    batch = item / strips, first = item % strips * STRIP;
    n = D - first < STRIP ? D - first : STRIP;
  }
  int64_t at(int64_t t) const { return (batch * T + t) * D + first; }
  int64_t part(int64_t i) const { return (batch * 3 + i) * D + first; }  // of a state (B, 3, D)
  int flag(const Tensor& flags, int64_t t) const { return flags ? static_cast<const uint8_t*>(flags.data)[batch * T + t] : 0; }
};

typedef vec Row[VECTORS];

inline void get(const Tensor& x, int64_t at, const Place& place, Row& to) {
  load(x, at, place.n, (float*)to);
  for (int c = (int)(padded(place.n) / W); c < VECTORS; c++) to[c] = vec{};
}
inline void put(const Tensor& x, int64_t at, const Place& place, const Row& from) { store(x, at, place.n, (const float*)from); }
inline void get_state(const Tensor& x, const Place& place, State* to) {
  Row parts[3];
  for (int i = 0; i < 3; i++) get(x, place.part(i), place, parts[i]);
  for (int c = 0; c < VECTORS; c++) to[c] = {parts[0][c], parts[1][c], parts[2][c]};
}
inline void put_state(float* to, const Place& place, const State* from, bool add = false) {
  for (int c = 0; c * W < place.n; c++)
    for (int i = 0; i < 3; i++) {
      const vec x = i == 0 ? from[c].a : i == 1 ? from[c].b : from[c].p;
      for (int l = 0; l < W && c * W + l < place.n; l++) {
        float& here = to[i * place.D + c * W + l];
        here = add ? here + x[l] : x[l];
      }
    }
}

// Keys and bonuses so large that a sum of two would overflow are as good as MOST; NaN stays.
inline vec bounded(vec x) { return x > MOST ? all(MOST) : x < -MOST ? all(-MOST) : x; }

struct Given {  // what all tokens share
  Row w, u;
  Given(const Tensor& w_, const Tensor& u_, const Place& place) {
    get(w_, place.batch * place.D + place.first, place, w);
    get(u_, place.batch * place.D + place.first, place, u);
    for (int c = 0; c < VECTORS; c++) w[c] = w[c] > -MOST ? w[c] : all(-MOST), u[c] = bounded(u[c]);
  }
};

inline int64_t first_token(const Tensor& flags, const Place& place) {
  for (int64_t t = 0; t < place.T; t++)
    if (!(place.flag(flags, t) & ABSENT)) return t;
  return -1;
}

void forward(const Tensor* in, const Tensor* out, float*, int64_t from, int64_t to) {
  const Tensor &k_ = in[0], &v_ = in[1], &state = in[4], &start = in[5], &flags = in[6];
  const Tensor &y_ = out[0], &last = out[1], &checkpoints = out[2];
  for (int64_t item = from; item < to; item++) {
    const Place place(k_, item);
    const Given given(in[2], in[3], place);
    State begin[VECTORS], S[VECTORS];
    Row k, v, y;
    vec scale;
    ints empty;
    if (start) get_state(start, place, begin);
    else std::memset(begin, 0, sizeof begin);
    get_state(state, place, S);
    const int64_t first = first_token(flags, place);
    if (first < 0) put_state(last.to() + place.part(0), place, S);  // before anything is done to it
    get(k_, place.at(first < 0 ? 0 : first), place, k);
    for (int c = 0; c < VECTORS; c++) S[c] = entered(S[c], bounded(k[c]), given.u[c], scale, empty);
    for (int64_t t = 0; t < place.T; t++) {
      if (checkpoints && t % CHUNK == 0) {
        const int64_t chunks = (place.T + CHUNK - 1) / CHUNK;
        put_state(checkpoints.to() + ((place.batch * chunks + t / CHUNK) * 3) * place.D + place.first, place, S);
      }
      const int flag = place.flag(flags, t);
      if (t + AHEAD < place.T) {
        for (const Tensor* x : {&k_, &v_}) fetch(*x, place.at(t + AHEAD), place.n);
        fetch<true>(y_, place.at(t + AHEAD), place.n);
      }
      get(k_, place.at(t), place, k);
      get(v_, place.at(t), place, v);
      for (int c = 0; c < VECTORS; c++) {
        k[c] = bounded(k[c]);
        if (flag & RESET) S[c] = entered(begin[c], k[c], given.u[c], scale, empty);
        y[c] = read(S[c], k[c], v[c], given.u[c]);
        if (!(flag & ABSENT)) S[c] = written(S[c], k[c], v[c], given.w[c]);
      }
      put(y_, place.at(t), place, y);
    }
    if (first >= 0) put_state(last.to() + place.part(0), place, S);
  }
}

// Backwards through `read`: adds to the slopes of the state and of k, v, u.
inline void read_back(const State& s, vec k, vec v, vec u, vec dy, State& g, vec& dk, vec& dv, vec& du) {
  vec old, fresh;
  const vec q = u + k;
  shares(s.p, q, old, fresh);
  const vec below = old * s.b + fresh;
  const ints seen = below > SMALLEST;
  const vec of_top = choose(seen, dy / choose(seen, below, all(1.f)), vec{});
  const vec of_below = choose(seen, -of_top * (old * s.a + fresh * v) / choose(seen, below, all(1.f)), vec{});
  g.a += of_top * old;
  g.b += of_below * old;
  dv += of_top * fresh;
  // One of the two shares is 1 whatever p and q are; through the other goes what they do.
  const ints ahead = s.p >= q;
  const vec slope = choose(ahead, (of_top * v + of_below) * fresh, -(of_top * s.a + of_below * s.b) * old);
  g.p -= slope;
  dk += slope;
  du += slope;
}

// Backwards through `written`: from the slopes of the state after it to those of the state before it.
inline State write_back(const State& s, vec k, vec v, vec w, const State& g, vec& dk, vec& dv, vec& dw) {
  vec old, fresh;
  const vec p = s.p + w;
  shares(p, k, old, fresh);
  const ints ahead = p >= k;
  const vec slope = choose(ahead, (g.a * v + g.b) * fresh, -(g.a * s.a + g.b * s.b) * old);
  const vec of_p = choose(ahead, g.p, vec{}) - slope;
  dk += slope + choose(ahead, vec{}, g.p);
  dv += g.a * fresh;
  dw += of_p;
  return {g.a * old, g.b * old, of_p};
}

inline State entered_back(const State& s, vec k, vec u, const State& g) {
  vec scale;
  ints empty;
  entered(s, k, u, scale, empty);
  const vec of_scale = (g.a * s.a + g.b * s.b) * scale;  // 0, unless it is NaN
  return {g.a * scale, g.b * scale, choose(empty, of_scale, g.p)};
}

void backward(const Tensor* in, const Tensor* out, float*, int64_t from, int64_t to) {
  const Tensor &k_ = in[0], &v_ = in[1], &state = in[4], &start = in[5], &flags = in[6], &checkpoints = in[7];
  const Tensor &dy_ = in[8], &dlast = in[9];
  for (int64_t item = from; item < to; item++) {
    const Place place(k_, item);
    const Given given(in[2], in[3], place);
    const int64_t chunks = (place.T + CHUNK - 1) / CHUNK, first = first_token(flags, place);
    State begin[VECTORS], S[CHUNK][VECTORS], G[VECTORS], of_start[VECTORS];
    Row k[CHUNK], v[CHUNK], dy, dk, dv, dw, du, raw;
    std::memset(of_start, 0, sizeof of_start);
    std::memset(dw, 0, sizeof dw);
    std::memset(du, 0, sizeof du);
    if (start) get_state(start, place, begin);
    else std::memset(begin, 0, sizeof begin);
    get_state(dlast, place, G);
    if (first < 0) std::memset(G, 0, sizeof G);  // the state went by: its slopes are added at the end
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
      const int64_t t0 = chunk * CHUNK, n = place.T - t0 < CHUNK ? place.T - t0 : CHUNK;
      Row parts[3];
      for (int i = 0; i < 3; i++) get(checkpoints, ((place.batch * chunks + chunk) * 3 + i) * place.D + place.first, place, parts[i]);
      State now[VECTORS];
      for (int c = 0; c < VECTORS; c++) now[c] = {parts[0][c], parts[1][c], parts[2][c]};
      for (int64_t s = 0; s < n; s++) {
        const int flag = place.flag(flags, t0 + s);
        get(k_, place.at(t0 + s), place, k[s]);
        get(v_, place.at(t0 + s), place, v[s]);
        for (int c = 0; c < VECTORS; c++) {
          vec scale;
          ints empty;
          const vec key = bounded(k[s][c]);
          if (flag & RESET) now[c] = entered(begin[c], key, given.u[c], scale, empty);
          S[s][c] = now[c];
          if (!(flag & ABSENT)) now[c] = written(now[c], key, v[s][c], given.w[c]);
        }
      }
      for (int64_t s = n - 1; s >= 0; s--) {
        const int flag = place.flag(flags, t0 + s);
        if (t0 + s >= CHUNK) {
          for (const Tensor* x : {&k_, &v_, &dy_}) fetch(*x, place.at(t0 + s - CHUNK), place.n);
        }
        if (s >= AHEAD)
          for (const Tensor* x : {out, out + 1}) fetch<true>(*x, place.at(t0 + s - AHEAD), place.n);
        get(dy_, place.at(t0 + s), place, dy);
        for (int c = 0; c < VECTORS; c++) {
          const vec key = bounded(k[s][c]);
          dk[c] = dv[c] = vec{};
          if (!(flag & ABSENT)) G[c] = write_back(S[s][c], key, v[s][c], given.w[c], G[c], dk[c], dv[c], dw[c]);
          read_back(S[s][c], key, v[s][c], given.u[c], dy[c], G[c], dk[c], dv[c], du[c]);
          if (flag & RESET) {
            const State g = entered_back(begin[c], key, given.u[c], G[c]);
            of_start[c] = {of_start[c].a + g.a, of_start[c].b + g.b, of_start[c].p + g.p};
            G[c] = {vec{}, vec{}, vec{}};
          }
          dk[c] = choose((k[s][c] > MOST) | (k[s][c] < -MOST), vec{}, dk[c]);
        }
        put(out[0], place.at(t0 + s), place, dk);
        put(out[1], place.at(t0 + s), place, dv);
      }
    }
    State was[VECTORS];
    get_state(state, place, was);
    get(k_, place.at(first < 0 ? 0 : first), place, k[0]);
    for (int c = 0; c < VECTORS; c++) G[c] = entered_back(was[c], bounded(k[0][c]), given.u[c], G[c]);
    if (first < 0) {
      State by[VECTORS];
      get_state(dlast, place, by);
      for (int c = 0; c < VECTORS; c++) G[c] = {G[c].a + by[c].a, G[c].b + by[c].b, G[c].p + by[c].p};
    }
    get(in[2], place.batch * place.D + place.first, place, raw);
    for (int c = 0; c < VECTORS; c++) dw[c] = choose(raw[c] > -MOST, dw[c], vec{});
    put(out[2], place.batch * place.D + place.first, place, dw);
    get(in[3], place.batch * place.D + place.first, place, raw);
    for (int c = 0; c < VECTORS; c++) du[c] = choose((raw[c] > MOST) | (raw[c] < -MOST), vec{}, du[c]);
    put(out[3], place.batch * place.D + place.first, place, du);
    put_state(out[4].to() + place.part(0), place, G);
    if (out[5]) put_state(out[5].to() + place.part(0), place, of_start);
  }
}

int64_t once(const int64_t* n) { return 50 * n['T' - 'A'] * STRIP; }
int64_t there_and_back(const int64_t* n) { return 3 * once(n); }
}  // namespace

extern const Kernel TABLE[];
const Kernel TABLE[] = {
    {"wkv4", WKV4, "BS", once, forward},
    {"wkv4_gradient", WKV4_GRADIENT, "BS", there_and_back, backward},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
