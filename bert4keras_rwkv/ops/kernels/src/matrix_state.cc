// The recurrences with a matrix-valued state, RWKV-5, 6 (arXiv 2404.05892) and 7 (arXiv 2503.14456), forward and backward.
//
//   wkv6: y_t = r_t (S + diag(u) k_t^T v_t),  S' = diag(e^{w_t}) S + k_t^T v_t
//   wkv7: y_t = r_t S',                       S' = diag(e^{w_t}) S + b_t^T (a_t S) + k_t^T v_t
//
// S (N, N) is [key, value]; S is what token t finds, S' what it leaves. An absent token has w = k = b = 0; where a
// document begins, S becomes `start` first. Sums are float32. One item is one head of one row of the batch.
#include "shapes.h"
#include "vectors.h"

#define INLINE inline __attribute__((always_inline))

namespace {
constexpr int AHEAD = 4;  // tokens that are fetched before they are read
constexpr int BLOCK = W == 16 ? 2 : 1;  // vectors side by side in the backward pass: as many as there are registers for

struct Shape {
  int64_t T, H, N, P, chunks;  // P: N, filled up to whole vectors

  explicit Shape(const Tensor& r) : T(r.dims[1]), H(r.dims[2]), N(r.dims[3]), P(padded(N)), chunks((T + CHUNK - 1) / CHUNK) {}
};

struct Place {  // of one item in tensors of tokens
  int64_t begin, stride;
  const uint8_t* flags;

  Place(const Shape& shape, const Tensor& flags_, int64_t item) {
    const int64_t batch = item / shape.H, head = item % shape.H;
    begin = (batch * shape.T * shape.H + head) * shape.N, stride = shape.H * shape.N;
    flags = flags_ ? static_cast<const uint8_t*>(flags_.data) + batch * shape.T : nullptr;
  }
  int64_t at(int64_t t) const { return begin + t * stride; }
  int flag(int64_t t) const { return flags ? flags[t] : 0; }
};

struct Token {
  float *r, *w, *k, *v, *a, *b;  // w: the decay itself

  Token(Parts& parts, const Shape& shape) {
    for (float** x : {&r, &w, &k, &v, &a, &b}) *x = parts.take(shape.P);
  }
  void read(const Tensor* const x[6], const Shape& shape, const Place& place, int64_t t, bool absent) {
    const int64_t at = place.at(t), N = shape.N;
    float* const to[6] = {r, w, k, v, a, b};
    for (int i = 0; i < 6; i++)
      if (x[i]) {
        fetch(*x[i], place.at(t + AHEAD < shape.T ? t + AHEAD : t), N);
        if (absent && (i == 1 || i == 2 || i == 5)) std::memset(to[i], 0, shape.P * sizeof(float));
        else load(*x[i], at, N, to[i]);
      }
    for (int64_t i = 0; i < shape.P; i += W) *(vec*)(w + i) = exponential(*(vec*)(w + i));
  }
};

inline float dot(const float* x, const float* y, int64_t P) {
  vec total = {};
  for (int64_t i = 0; i < P; i += W) total += *(const vec*)(x + i) * *(const vec*)(y + i);
  return sum(total);
}

// A state is kept in columns of V vectors, one after another; rows lie at distance V * W within one.
template <int V, bool DELTA> INLINE void each_column(int64_t N, const Token& all, float bonus, float* __restrict S, float* __restrict reads, float* __restrict y) {
  constexpr int64_t row = V * W;
  struct { const float *__restrict r, *__restrict w, *__restrict k, *__restrict v, *__restrict a, *__restrict b; } x = {all.r, all.w, all.k, all.v, all.a, all.b};
  vec out[V], value[V];
  for (int j = 0; j < V; j++) value[j] = *(const vec*)(x.v + j * W);
  if constexpr (DELTA) {
    vec p[V] = {}, q[V] = {};  // two sums, so that an addition need not wait for the one before
    int64_t i = 0;
    for (; i + 1 < N; i += 2)
      for (int j = 0; j < V; j++) {
        p[j] += x.a[i] * *(vec*)(S + i * row + j * W);
        q[j] += x.a[i + 1] * *(vec*)(S + (i + 1) * row + j * W);
      }
    for (int j = 0; j < V; j++) {
      if (i < N) p[j] += x.a[i] * *(vec*)(S + i * row + j * W);
      p[j] += q[j];
      *(vec*)(reads + j * W) = p[j];
      out[j] = vec{};
    }
    for (i = 0; i < N; i++)
      for (int j = 0; j < V; j++) {
        vec& s = *(vec*)(S + i * row + j * W);
        s = x.w[i] * s + (x.b[i] * p[j] + x.k[i] * value[j]);
        out[j] += x.r[i] * s;
      }
  } else {
    for (int j = 0; j < V; j++) out[j] = bonus * value[j];
    for (int64_t i = 0; i < N; i++)
      for (int j = 0; j < V; j++) {
        vec& s = *(vec*)(S + i * row + j * W);
        out[j] += x.r[i] * s;
        s = x.w[i] * s + x.k[i] * value[j];
      }
  }
  for (int j = 0; j < V; j++) *(vec*)(y + j * W) = out[j];
}

// Calls f(first column, number of vectors) for columns of 4, 2 and 1 vectors.
template <class F> void columns(int64_t P, const F& f) {
  for (int64_t j = 0; j < P;) {
    const int64_t left = (P - j) / W, V = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    f(j, V);
    j += V * W;
  }
}

enum { IN, OUT };
// A matrix (N, N) in memory, and its columns as `each_column` has them.
template <int WAY> void exchange(int64_t N, int64_t P, float* memory, float* S) {
  if (N == 4 * W) {  // one column
    std::memcpy(WAY == OUT ? memory : S, WAY == OUT ? S : memory, N * N * sizeof(float));
    return;
  }
  columns(P, [&](int64_t j, int64_t V) {
    const int64_t row = V * W, real = N - j < row ? N - j : row;
    for (int64_t i = 0; i < N; i++) {
      float *here = memory + i * N + j, *there = S + j * N + i * row;
      if (WAY == OUT) std::memcpy(here, there, real * sizeof(float));
      else {
        std::memcpy(there, here, real * sizeof(float));
        for (int64_t l = real; l < row; l++) there[l] = 0.f;
      }
    }
  });
}

// HEAD: the head size, for which a compiler can count, or 0.
template <bool DELTA, int HEAD> void forward(const Tensor* in, const Tensor* out, float*, int64_t from, int64_t to) {
  const Tensor* const xs[6] = {in, in + 1, in + 2, in + 3, DELTA ? in + 4 : nullptr, DELTA ? in + 5 : nullptr};
  const Tensor &bonus = in[4], *more = in + (DELTA ? 6 : 5);
  const Tensor &state = more[0], &start = more[1], &flags = more[2];
  const Tensor &y = out[0], &last = out[1], &checkpoints = out[2], &reads = out[3];
  const Shape shape(in[0]);
  const int64_t N = HEAD ? HEAD : shape.N, P = padded(N), square = N * N;
  Parts parts{scratch(N * P + 9 * P)};
  float* S = parts.take(N * P);
  Token x(parts, shape);
  float *p = parts.take(P), *given = parts.take(P), *u = parts.take(P);
  for (int64_t item = from; item < to; item++) {
    const Place place(shape, flags, item);
    exchange<IN>(N, P, state.to() + item * square, S);
    if (!DELTA) load(bonus, item * N, N, u);
    for (int64_t t = 0; t < shape.T; t++) {
      if (checkpoints && t % CHUNK == 0) exchange<OUT>(N, P, checkpoints.to() + (item * shape.chunks + t / CHUNK) * square, S);
      const int flag = place.flag(t);
      if (flag & RESET) {
        if (start) exchange<IN>(N, P, start.to() + item * square, S);
        else std::memset(S, 0, N * P * sizeof(float));
      }
      x.read(xs, shape, place, t, flag & ABSENT);
      if (t + AHEAD < shape.T) fetch<true>(y, place.at(t + AHEAD), N);
      float own = 0.f;
      if (!DELTA) {
        for (int64_t i = 0; i < P; i += W) *(vec*)(x.a + i) = *(vec*)(x.r + i) * *(vec*)(u + i);
        own = dot(x.a, x.k, P);
      }
      columns(P, [&](int64_t j, int64_t V) {
        Token here = x;
        here.v += j;
        (V == 4 ? each_column<4, DELTA> : V == 2 ? each_column<2, DELTA> : each_column<1, DELTA>)(N, here, own, S + j * N, p + j, given + j);
      });
      std::memcpy(y.to() + place.at(t), given, N * sizeof(float));
      if (DELTA && reads) std::memcpy(reads.to() + place.at(t), p, N * sizeof(float));
    }
    exchange<OUT>(N, P, last.to() + item * square, S);
  }
}

// The backward pass keeps matrices turned, [value, key], so that all sums but two run along vectors.
// from (n, m) with rows at distance `from_row`; to (m, n), likewise. `add`: to what is there.
inline void turn(int64_t n, int64_t m, const float* from, int64_t from_row, float* to, int64_t to_row, bool add = false) {
  const int64_t n_whole = n / W * W, m_whole = m / W * W;
  for (int64_t i = 0; i < n_whole; i += W)
    for (int64_t j = 0; j < m_whole; j += W) {
      vec rows[W];
      for (int l = 0; l < W; l++) rows[l] = *(const loose*)(from + (i + l) * from_row + j);
      transpose(rows);
      for (int l = 0; l < W; l++) {
        loose& here = *(loose*)(to + (j + l) * to_row + i);
        here = add ? here + rows[l] : rows[l];
      }
    }
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = i < n_whole ? m_whole : 0; j < m; j++) {
      float& here = to[j * to_row + i];
      here = from[i * from_row + j] + (add ? here : 0.f);
    }
}

inline void turned(int64_t N, int64_t P, const float* from, float* to) {
  turn(N, N, from, N, to, P);
  if (N < P)
    for (int64_t j = 0; j < N; j++) std::memset(to + j * P + N, 0, (P - N) * sizeof(float));
}

inline void turned_back(int64_t N, int64_t P, const float* from, float* to, bool add = false) { turn(N, N, from, P, to, N, add); }

struct Slopes {  // gradients of one token
  float *r, *w, *k, *v, *a, *b, *p;

  Slopes(Parts& parts, int64_t P) {
    for (float** x : {&r, &w, &k, &v, &a, &b, &p}) *x = parts.take(P);
  }
};

// What columns v and b of the state's gradient make of k and b: Slopes.v and .p. `rows`: P vectors for each.
template <bool DELTA> INLINE void across(int64_t N, int64_t P, const Token& x, const float* dy, const float* G, vec* rows, Slopes& out) {
  vec *of_k = rows, *of_b = rows + P;
  for (int64_t j = 0; j < N; j++) {
    vec k = {}, b = {};
    for (int64_t i = 0; i < P; i += W) {
      vec g = *(const vec*)(G + j * P + i);
      if (DELTA) g += *(const vec*)(x.r + i) * dy[j];
      k += g * *(const vec*)(x.k + i);
      if (DELTA) b += g * *(const vec*)(x.b + i);
    }
    of_k[j] = k;
    if (DELTA) of_b[j] = b;
  }
  for (int64_t j = N; j < P; j++) of_k[j] = of_b[j] = vec{};
  for (int64_t j = 0; j < P; j += W) {
    *(vec*)(out.v + j) = sums(of_k + j);
    if (DELTA) *(vec*)(out.p + j) = sums(of_b + j);
  }
}

// All that is summed over values, for V vectors of keys, and the gradient of the state before the token. The decay's
// and `seen`, what of dy the state that the token finds has seen, come back in Slopes.w and .r.
template <bool DELTA, int V>
INLINE void along(int64_t N, int64_t P, const Token& x, const float* dy, const float* p, const float* S, float* G, Slopes& out, int64_t i) {
  vec seen[V] = {}, dw[V] = {}, dk[V] = {}, da[V] = {}, db[V] = {}, r[V], w[V], a[V];
  for (int c = 0; c < V; c++) {
    r[c] = *(const vec*)(x.r + i + c * W);
    w[c] = *(const vec*)(x.w + i + c * W);
    if (DELTA) a[c] = *(const vec*)(x.a + i + c * W);
  }
  for (int64_t j = 0; j < N; j++)
    for (int c = 0; c < V; c++) {
      const vec s = *(const vec*)(S + j * P + i + c * W);
      vec g = *(vec*)(G + j * P + i + c * W);
      seen[c] += s * dy[j];
      if (DELTA) g += r[c] * dy[j];
      dk[c] += g * x.v[j];
      dw[c] += g * s;
      if (DELTA) {
        db[c] += g * p[j];
        da[c] += s * out.p[j];
        g = w[c] * g + a[c] * out.p[j];
      } else {
        g = w[c] * g + r[c] * dy[j];
      }
      *(vec*)(G + j * P + i + c * W) = g;
    }
  for (int c = 0; c < V; c++) {
    *(vec*)(out.r + i + c * W) = seen[c];
    *(vec*)(out.w + i + c * W) = dw[c] * w[c];
    *(vec*)(out.k + i + c * W) = dk[c];
    if (DELTA) *(vec*)(out.a + i + c * W) = da[c], *(vec*)(out.b + i + c * W) = db[c];
  }
}

// `across` and `along` of two tokens of RWKV-6 at once, `first` and then `next`, whose state is not kept: the gradient of the
// state and the state are read once for both. Of V vectors of keys; sums over keys are added to `rows`, those of next first.
template <int V>
INLINE void along_two(int64_t N, int64_t P, const Token& first, const Token& next, const float* dy, const float* dy_next, const float* S, float* G,
                      vec* rows, Slopes& out, Slopes& out_next, int64_t i) {
  vec seen[V] = {}, dw[V] = {}, dk[V] = {}, seen_[V] = {}, dw_[V] = {}, dk_[V] = {}, r[V], w[V], k[V], r_[V], w_[V], k_[V];
  for (int c = 0; c < V; c++) {
    const int64_t at = i + c * W;
    r[c] = *(const vec*)(first.r + at), w[c] = *(const vec*)(first.w + at), k[c] = *(const vec*)(first.k + at);
    r_[c] = *(const vec*)(next.r + at), w_[c] = *(const vec*)(next.w + at), k_[c] = *(const vec*)(next.k + at);
  }
  for (int64_t j = 0; j < N; j++) {
    vec of_next = i ? rows[j] : vec{}, of_first = i ? rows[P + j] : vec{};
    for (int c = 0; c < V; c++) {
      const vec s = *(const vec*)(S + j * P + i + c * W), between = w[c] * s + k[c] * first.v[j];
      vec g = *(vec*)(G + j * P + i + c * W);
      of_next += g * k_[c];
      seen_[c] += between * dy_next[j];
      dk_[c] += g * next.v[j];
      dw_[c] += g * between;
      g = w_[c] * g + r_[c] * dy_next[j];
      of_first += g * k[c];
      seen[c] += s * dy[j];
      dk[c] += g * first.v[j];
      dw[c] += g * s;
      *(vec*)(G + j * P + i + c * W) = w[c] * g + r[c] * dy[j];
    }
    rows[j] = of_next, rows[P + j] = of_first;
  }
  for (int c = 0; c < V; c++) {
    const int64_t at = i + c * W;
    *(vec*)(out.r + at) = seen[c], *(vec*)(out.w + at) = dw[c] * w[c], *(vec*)(out.k + at) = dk[c];
    *(vec*)(out_next.r + at) = seen_[c], *(vec*)(out_next.w + at) = dw_[c] * w_[c], *(vec*)(out_next.k + at) = dk_[c];
  }
}

// The state after two tokens of RWKV-6, [value, key].
INLINE void leave_two(int64_t N, int64_t P, const Token& x, const Token& y, const float* S, float* to) {
  for (int64_t i = 0; i < P; i += W) {
    const vec w = *(const vec*)(x.w + i), k = *(const vec*)(x.k + i), w_ = *(const vec*)(y.w + i), k_ = *(const vec*)(y.k + i);
    for (int64_t j = 0; j < N; j++) *(vec*)(to + j * P + i) = w_ * (w * *(const vec*)(S + j * P + i) + k * x.v[j]) + k_ * y.v[j];
  }
}

// The state after a token, [value, key].
template <bool DELTA> INLINE void leave(int64_t N, int64_t P, const Token& x, const float* p, const float* S, float* to) {
  for (int64_t j = 0; j < N; j++)
    for (int64_t i = 0; i < P; i += W) {
      vec s = *(const vec*)(x.w + i) * *(const vec*)(S + j * P + i) + *(const vec*)(x.k + i) * x.v[j];
      if (DELTA) s += *(const vec*)(x.b + i) * p[j];
      *(vec*)(to + j * P + i) = s;
    }
}

template <bool DELTA, int HEAD> void backward(const Tensor* in, const Tensor* out, float*, int64_t from, int64_t to) {
  const Tensor* const xs[6] = {in, in + 1, in + 2, in + 3, DELTA ? in + 4 : nullptr, DELTA ? in + 5 : nullptr};
  const Tensor &bonus = in[4], *more = in + (DELTA ? 6 : 5);
  const Tensor &start = more[1], &flags = more[2], &checkpoints = more[3];
  const Tensor &reads = more[4], *given = more + (DELTA ? 5 : 4);
  const Tensor &dy = given[0], &dlast = given[1];
  const Tensor *d = out, &du = out[4], *dmore = out + (DELTA ? 6 : 5);
  const Tensor &dstate = dmore[0], &dstart = dmore[1];
  const Shape shape(in[0]);
  const int64_t N = HEAD ? HEAD : shape.N, P = padded(N), square = N * N, full = N * P;
  Parts parts{scratch((CHUNK + 3) * full + 2 * W * P + (6 + CHUNK * 8 + 14 + 2) * P)};
  float *states = parts.take((CHUNK + 1) * full), *begin = parts.take(full), *G = parts.take(full);
  vec* rows = (vec*)parts.take(2 * W * P);
  Slopes slopes(parts, P), ahead(parts, P);
  bool paired = false;  // whether `ahead` has the gradients of the token before the one at hand
  float *u = parts.take(P), *sum_u = parts.take(P), *dy_[CHUNK], *p_[CHUNK];
  Token* tokens[CHUNK];
  alignas(Token) char room[CHUNK * sizeof(Token)];
  for (int s = 0; s < CHUNK; s++) {
    tokens[s] = new (room + s * sizeof(Token)) Token(parts, shape);
    dy_[s] = parts.take(P), p_[s] = parts.take(P);
  }
  for (int64_t item = from; item < to; item++) {
    const Place place(shape, flags, item);
    turned(N, P, dlast.floats() + item * square, G);
    if (!start) std::memset(begin, 0, full * sizeof(float));
    else turned(N, P, start.floats() + item * square, begin);
    if (dstart) std::memset(dstart.to() + item * square, 0, square * sizeof(float));
    if (!DELTA) load(bonus, item * N, N, u), std::memset(sum_u, 0, P * sizeof(float));
    for (int64_t chunk = shape.chunks - 1; chunk >= 0; chunk--) {
      const int64_t t0 = chunk * CHUNK, n = shape.T - t0 < CHUNK ? shape.T - t0 : CHUNK;
      turned(N, P, checkpoints.floats() + (item * shape.chunks + chunk) * square, states);
      for (int64_t s = 0; s < n; s++) {
        const int flag = place.flag(t0 + s);
        Token& x = *tokens[s];
        x.read(xs, shape, place, t0 + s, flag & ABSENT);
        load(dy, place.at(t0 + s), N, dy_[s]);
        if (DELTA) load(reads, place.at(t0 + s), N, p_[s]);
        float* S = states + s * full;
        // Two at once where no document begins with the second; then the state between them is not kept.
        if (s % 2 == 1 && !DELTA && !(flag & RESET)) {
          if (s + 1 < n) leave_two(N, P, *tokens[s - 1], x, S - full, S + full);
          continue;
        }
        if (flag & RESET) std::memcpy(S, begin, full * sizeof(float));
        if (s + 1 < n && (DELTA || s % 2 == 1)) leave<DELTA>(N, P, x, p_[s], S, S + full);
      }
      for (int64_t s = n - 1; s >= 0; s--) {
        const int flag = place.flag(t0 + s);
        const Token& x = *tokens[s];
        if (s >= AHEAD)
          for (int q = 0; q < (DELTA ? 6 : 4); q++) fetch<true>(d[q], place.at(t0 + s - AHEAD), N);
        if (chunk > 0) {  // the same token of the next chunk to be read
          for (const Tensor* q : xs)
            if (q) fetch(*q, place.at(t0 - CHUNK + s), N);
          fetch(dy, place.at(t0 - CHUNK + s), N);
          if (DELTA) fetch(reads, place.at(t0 - CHUNK + s), N);
        }
        const float *S = states + s * full, *slope = dy_[s];
        int64_t i = 0;
        if (paired) {
          std::swap(slopes, ahead);  // done with the token after this one
          paired = false;
        } else if (!DELTA && s % 2 == 1 && !(flag & RESET)) {
          for (; i + BLOCK * W <= P; i += BLOCK * W) along_two<BLOCK>(N, P, *tokens[s - 1], x, dy_[s - 1], slope, S - full, G, rows, ahead, slopes, i);
          for (; i < P; i += W) along_two<1>(N, P, *tokens[s - 1], x, dy_[s - 1], slope, S - full, G, rows, ahead, slopes, i);
          for (int64_t j = N; j < P; j++) rows[j] = rows[P + j] = vec{};
          for (int64_t j = 0; j < P; j += W) *(vec*)(slopes.v + j) = sums(rows + j), *(vec*)(ahead.v + j) = sums(rows + P + j);
          paired = true;
        } else {
          across<DELTA>(N, P, x, slope, G, rows, slopes);
          for (; i + BLOCK * W <= P; i += BLOCK * W) along<DELTA, BLOCK>(N, P, x, slope, p_[s], S, G, slopes, i);
          for (; i < P; i += W) along<DELTA, 1>(N, P, x, slope, p_[s], S, G, slopes, i);
        }
        const float of_v = dot(x.v, slope, P), of_p = DELTA ? dot(p_[s], slope, P) : 0.f;
        float own = 0.f;
        for (int64_t l = 0; l < P; l += W) {
          const vec r = *(vec*)(x.r + l), k = *(vec*)(x.k + l);
          vec& dr = *(vec*)(slopes.r + l);
          if (DELTA) {
            dr = dr * *(vec*)(x.w + l) + (*(vec*)(x.b + l) * of_p + k * of_v);
          } else {
            const vec here = *(vec*)(u + l);
            dr += here * k * of_v;
            *(vec*)(slopes.k + l) += here * r * of_v;
            *(vec*)(sum_u + l) += r * k * of_v;
            own += sum(r * here * k);
          }
        }
        if (!DELTA)
          for (int64_t l = 0; l < P; l += W) *(vec*)(slopes.v + l) += own * *(const vec*)(slope + l);
        if (flag & ABSENT)
          for (float* nothing : {slopes.w, slopes.k, slopes.b}) std::memset(nothing, 0, P * sizeof(float));
        const float* found[6] = {slopes.r, slopes.w, slopes.k, slopes.v, slopes.a, slopes.b};
        for (int q = 0; q < (DELTA ? 6 : 4); q++) store(d[q], place.at(t0 + s), N, found[q]);
        if (flag & RESET) {
          if (dstart) turned_back(N, P, G, dstart.to() + item * square, true);
          std::memset(G, 0, full * sizeof(float));
        }
      }
    }
    turned_back(N, P, G, dstate.to() + item * square);
    if (!DELTA) store(du, item * N, N, sum_u);
  }
}

template <bool DELTA> void any_forward(const Tensor* in, const Tensor* out, float* room, int64_t from, int64_t to) {
  (in[0].dims[3] == 64 ? forward<DELTA, 64> : forward<DELTA, 0>)(in, out, room, from, to);
}
template <bool DELTA> void any_backward(const Tensor* in, const Tensor* out, float* room, int64_t from, int64_t to) {
  (in[0].dims[3] == 64 ? backward<DELTA, 64> : backward<DELTA, 0>)(in, out, room, from, to);
}

int64_t once(const int64_t* n) { return 4 * n['T' - 'A'] * n['N' - 'A'] * n['N' - 'A']; }
int64_t there_and_back(const int64_t* n) { return 4 * once(n); }
}  // namespace

extern const Kernel TABLE[];
const Kernel TABLE[] = {
    {"wkv6", WKV6, "BH", once, any_forward<false>},
    {"wkv6_gradient", WKV6_GRADIENT, "BH", there_and_back, any_backward<false>},
    {"wkv7", WKV7, "BH", once, any_forward<true>},
    {"wkv7_gradient", WKV7_GRADIENT, "BH", there_and_back, any_backward<true>},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
