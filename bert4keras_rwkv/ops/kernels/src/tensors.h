// What a kernel is given: tensors, row-major and without gaps. The host (host.cc) checks them and splits the work.
#pragma once
#include <cstdint>

enum Dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1, UINT8 = 2, INT8 = 3, FLOAT16 = 4 };
enum Flag : uint8_t { ABSENT = 1, RESET = 2 };  // bits of a token's flag
constexpr int MOST_DIMS = 6;
constexpr int CHUNK = 32;  // tokens between two states that are kept for the backward pass; in port.h and native.py too
constexpr int STRIP = 64;  // channels of RWKV-4 that are one item
constexpr int PANEL = 64;  // outputs of a product with a packed matrix that are one item
constexpr int BLOCK = 256, STRETCH = 2048;  // inputs and outputs of a product with a matrix as layers have it that are one item

struct Tensor {
  void* data;
  int32_t dtype, rank;
  int64_t dims[MOST_DIMS];

  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; i++) n *= dims[i];
    return n;
  }
  explicit operator bool() const { return size() > 0; }  // one that is not given has no elements
  const float* floats() const { return static_cast<const float*>(data); }
  float* to() const { return static_cast<float*>(data); }
};

// One kernel for one instruction set. Of `split` the product is the number of items that may run side by side.
struct Kernel {
  const char* name;
  const char* arguments;  // as in shapes.h
  const char* split;
  int64_t (*work)(const int64_t* sizes);  // of one item, in multiplications, about
  void (*run)(const Tensor* arguments, const Tensor* results, float* room, int64_t from, int64_t to);
  bool in_a_row = false;  // calls follow each other closely: threads that stay awake between them help
  // What all items share: how many floats, what writes those that they need, before they are run, and what makes results of
  // those that they have written.
  int64_t (*room)(const int64_t* sizes) = nullptr;
  void (*prepare)(const Tensor* arguments, float* room) = nullptr;
  void (*finish)(const Tensor* arguments, const Tensor* results, const float* room) = nullptr;
};
