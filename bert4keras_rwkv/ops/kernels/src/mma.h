// Products on tensor cores (sm_80 and later): bfloat16 operands, float32 sums, matrices in tiles of 16 x 16 that a warp holds; and
// of whole numbers of 8 bits, their sums exact.
//
// Of lane l, g = l / 4 and q = l % 4, a tile's elements are those of rows g and g + 8, columns 2q, 2q + 1, 2q + 8 and 2q + 9.
// So mma.m16n8k16 takes its first operand, its second one turned, and its sums (PTX ISA, "matrix fragments"): what one product
// gives the next one takes, and a tile in shared memory is 16 bytes of each lane.
#pragma once
#include "port.h"

constexpr unsigned ALL_LANES = 0xffffffffu;

#ifdef __CUDACC__
// D (16 x 8) += A (16 x 16) B (16 x 8), a fragment of each.
__device__ inline void mma(float& d0, float& d1, float& d2, float& d3, const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same of whole numbers, of which a word has four: A (16 x 32), B (32 x 8).
__device__ inline void mma(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Lane (g, q) has elements 2q and 2q + 1 of row g of a matrix 8 x 8, and gets those of column g.
__device__ inline unsigned turned(unsigned x) {
  unsigned y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
// Two numbers rounded to the nearest bfloat16, the first in the lower bits.
__device__ inline unsigned packed(float x, float y) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(y), "f"(x));
  return both;
}
__device__ inline unsigned votes(bool yes) { return __ballot_sync(ALL_LANES, yes); }
__device__ inline int first_bit(unsigned long long x) { return __ffsll(x) - 1; }
__device__ inline int last_bit(unsigned long long x) { return 63 - __clzll(x); }
#else
namespace emulated {
inline unsigned words[2][MOST_THREADS][6], turn_of_words[MOST_THREADS];

// What each lane of the warp shows: the words of lane l are at [l].
template <int COUNT> inline const unsigned (*exchanged(const unsigned (&mine)[COUNT]))[6] {
  const unsigned me = threadIdx.x, place = turn_of_words[me]++ % 2;
  for (int i = 0; i < COUNT; i++) words[place][me][i] = mine[i];
  wait_for_warp();
  return &words[place][me / WARP * WARP];
}
}  // namespace emulated

inline unsigned packed(float x, float y) {
  bf16 both[2];
  put(both, x), put(both + 1, y);
  return both[0].bits | (unsigned)both[1].bits << 16;
}
inline void mma(float& d0, float& d1, float& d2, float& d3, const unsigned (&a)[4], const unsigned (&b)[2]) {
  const auto all = emulated::exchanged<6>({a[0], a[1], a[2], a[3], b[0], b[1]});
  const auto part = [](unsigned both, int k) { return __uint_as_float(k % 2 ? both & 0xffff0000u : both << 16); };
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  float* const d[4] = {&d0, &d1, &d2, &d3};
  for (int e = 0; e < 4; e++)
    for (int k = 0; k < 16; k++)
      *d[e] += part(all[4 * g + k % 8 / 2][k / 8 * 2 + e / 2], k) * part(all[4 * (2 * q + e % 2) + k % 8 / 2][4 + k / 8], k);
}
inline void mma(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  const auto all = emulated::exchanged<6>({a[0], a[1], a[2], a[3], b[0], b[1]});
  const auto part = [](unsigned four, int k) { return (int)(signed char)(four >> 8 * (k % 4)); };
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  for (int e = 0; e < 4; e++)
    for (int k = 0; k < 32; k++)
      d[e] += part(all[4 * g + k % 16 / 4][k / 16 * 2 + e / 2], k) * part(all[4 * (2 * q + e % 2) + k % 16 / 4][4 + k / 16], k);
}
inline unsigned turned(unsigned x) {
  const auto all = emulated::exchanged<1>({x});
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, up = g % 2 * 16;
  return (all[8 * q + g / 2][0] >> up & 0xffffu) | (all[8 * q + 4 + g / 2][0] >> up & 0xffffu) << 16;
}
inline unsigned votes(bool yes) {
  const auto all = emulated::exchanged<1>({yes});
  unsigned bits = 0;
  for (int lane = 0; lane < 32; lane++) bits |= all[lane][0] << lane;
  return bits;
}
inline int first_bit(unsigned long long x) { return __builtin_ctzll(x); }
inline int last_bit(unsigned long long x) { return 63 - __builtin_clzll(x); }
#endif

struct Tile { float x[2][4]; };                    // [row / 8][column's place]
struct __align__(16) Half { unsigned x[2][2]; };   // of a tile in bfloat16: [row / 8][column / 8]
template <int PARTS> struct Operand { Half part[PARTS]; };  // their sum; the second is what the first one lacks

__device__ inline int tile_row(int h) { return threadIdx.x % 32 / 4 + 8 * h; }
__device__ inline int tile_column(int e) { return threadIdx.x % 4 * 2 + e % 2 + e / 2 * 8; }

__device__ inline Half halved(const Tile& x) {
  return {{{packed(x.x[0][0], x.x[0][1]), packed(x.x[0][2], x.x[0][3])}, {packed(x.x[1][0], x.x[1][1]), packed(x.x[1][2], x.x[1][3])}}};
}
template <int PARTS> __device__ inline Operand<PARTS> operand(Tile x) {
  Operand<PARTS> to;
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
    to.part[part] = halved(x);
#pragma unroll
    for (int i = 0; part + 1 < PARTS && i < 8; i++) {
      const unsigned both = to.part[part].x[i / 4][i % 4 / 2];
      x.x[i / 4][i % 4] -= __uint_as_float(i % 2 ? both & 0xffff0000u : both << 16);
    }
  }
  return to;
}

template <int PARTS> __device__ inline Tile number(const Operand<PARTS>& from) {
  Tile to = {};
#pragma unroll
  for (int part = PARTS - 1; part >= 0; part--)
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const unsigned both = from.part[part].x[i / 4][i % 4 / 2];
      to.x[i / 4][i % 4] += __uint_as_float(i % 2 ? both & 0xffff0000u : both << 16);
    }
  return to;
}

__device__ inline Half transposed(const Half& x) { return {{{turned(x.x[0][0]), turned(x.x[1][0])}, {turned(x.x[0][1]), turned(x.x[1][1])}}}; }
template <int PARTS> __device__ inline Operand<PARTS> transposed(const Operand<PARTS>& x) {
  Operand<PARTS> to;
#pragma unroll
  for (int part = 0; part < PARTS; part++) to.part[part] = transposed(x.part[part]);
  return to;
}

// d += a b^T, of which columns [8 FROM, 8 TO).
template <int FROM = 0, int TO = 2> __device__ inline void add_product(Tile& d, const Half& a, const Half& b) {
  const unsigned of_a[4] = {a.x[0][0], a.x[1][0], a.x[0][1], a.x[1][1]};
#pragma unroll
  for (int n = FROM; n < TO; n++) mma(d.x[0][2 * n], d.x[0][2 * n + 1], d.x[1][2 * n], d.x[1][2 * n + 1], of_a, b.x[n]);
}
// The product of the two second parts is too small to count.
template <int FROM = 0, int TO = 2, int A, int B> __device__ inline void add_product(Tile& d, const Operand<A>& a, const Operand<B>& b) {
#pragma unroll
  for (int i = A - 1; i >= 0; i--)
#pragma unroll
    for (int j = B - 1; j >= 0; j--)
      if (i + j < 2) add_product<FROM, TO>(d, a.part[i], b.part[j]);
}

template <int PARTS> struct Shared {  // an operand in shared memory, for all warps
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
