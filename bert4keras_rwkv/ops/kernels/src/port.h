// What the kernels of a GPU share. NVRTC and nvcc compile them, and under tests/ops/kernels/emulator.h a C++ compiler.
#pragma once

constexpr int CHUNK = 32;          // tokens between two states that are kept for the backward pass
enum { ABSENT = 1, RESET = 2 };    // bits of a token's flag

__device__ inline int smaller(int x, int y) { return x < y ? x : y; }
__device__ inline int chunks_of(int tokens) { return (tokens + CHUNK - 1) / CHUNK; }

struct bf16 { unsigned short bits; };

__device__ inline float number(float x) { return x; }
__device__ inline float number(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline void put(float* to, float x) { *to = x; }
__device__ inline void put(bf16* to, float x) {  // to the nearest, halves to even
  const unsigned bits = __float_as_uint(x);
  const bool is_number = (bits & 0x7fffffffu) <= 0x7f800000u;
  to->bits = (unsigned short)(is_number ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : bits >> 16 | 0x40u);
}

// Of COUNT numbers of each of LANES neighbouring threads (powers of two), the totals: a thread gets COUNT / LANES of them,
// from number `lane * COUNT / LANES` on, or one that others get too. Halves are exchanged, so few numbers travel.
template <int COUNT, int LANES> __device__ inline void totals(float* x, int lane) {
  if constexpr (LANES > 1) {
    constexpr int APART = LANES / 2, HALF = COUNT / 2;
    if constexpr (COUNT > 1) {
      const bool upper = lane & APART;
#pragma unroll
      for (int i = 0; i < HALF; i++) {
        const float mine = upper ? x[i + HALF] : x[i], other = upper ? x[i] : x[i + HALF];
        x[i] = mine + __shfl_xor_sync(0xffffffffu, other, APART);
      }
      totals<HALF, APART>(x, lane);
    } else {
      x[0] += __shfl_xor_sync(0xffffffffu, x[0], APART);
      totals<1, APART>(x, lane);
    }
  }
}
