// From the tensors that a kernel is given to its sizes. What each takes stands here once, for all kinds of devices.
#pragma once
#include <string>

#include "tensors.h"

// A letter for each dimension of each argument and result, results after ">"; "*" before a group: it may also be empty.
#define MATRIX "BTHN BTHN BTHN BTHN "
constexpr char WKV4[] = "BTD BTD BD BD B3D *B3D *BT > BTD B3D *BC3D";
constexpr char WKV4_GRADIENT[] = "BTD BTD BD BD B3D *B3D *BT BC3D BTD B3D > BTD BTD BD BD B3D *B3D";
constexpr char WKV6[] = MATRIX "BHN BHNN *BHNN *BT > BTHN BHNN *BHCNN";
constexpr char WKV6_GRADIENT[] = MATRIX "BHN BHNN *BHNN *BT BHCNN BTHN BHNN > " MATRIX "BHN BHNN *BHNN";
constexpr char WKV7[] = MATRIX "BTHN BTHN BHNN *BHNN *BT > BTHN BHNN *BHCNN *BTHN";
constexpr char WKV7_GRADIENT[] = MATRIX "BTHN BTHN BHNN *BHNN *BT BHCNN BTHN BTHN BHNN > " MATRIX "BTHN BTHN BHNN *BHNN";
#undef MATRIX
// R rows, I inputs, O outputs, J: I up to whole groups, of which there are G; K: bytes of J numbers of 4 bits.
constexpr char PRODUCT_BFLOAT16[] = "RI OJ > RO";
constexpr char PRODUCT_INT8[] = "RI OJ OG > RO";
constexpr char PRODUCT_INT4[] = "RI OK OG *OG > RO";
constexpr char PRODUCT_DENSE[] = "RI IO > RO";
constexpr char ROUND_ROWS[] = "RI > RV";  // V: bytes of a rounded row, of J numbers, with a scale and a sum for each 32
constexpr char PRODUCT_MANY_BFLOAT16[] = "RI OJ > RO";
constexpr char PRODUCT_MANY_INT8[] = "RV OJ OG > RO";
constexpr char PRODUCT_MANY_INT4[] = "RV OK OG *OG > RO";

constexpr int MOST_TENSORS = 24;

// Into how many items a matrix (I, O) is cut: by its outputs, and, unless those are many, by its inputs.
constexpr int64_t stretches(int64_t O) { return (O + STRETCH - 1) / STRETCH; }
constexpr int64_t blocks(int64_t I, int64_t O) { return I > BLOCK && stretches(O) < 16 ? (I + BLOCK - 1) / BLOCK : 1; }

// Binds the letters of `pattern` to the sizes of the tensors; empty, or what is wrong.
inline std::string bind(const char* pattern, const Tensor* in, int inputs, const Tensor* out, int outputs, int64_t* sizes) {
  for (int i = 0; i < 26; i++) sizes[i] = -1;
  const Tensor* x = in;
  int at = 0, most = inputs;
  for (const char* p = pattern; *p;) {
    if (*p == ' ') { p++; continue; }
    if (*p == '>') {
      if (at != inputs) return "takes " + std::to_string(at) + " arguments, not " + std::to_string(inputs);
      x = out, at = 0, most = outputs, p++;
      continue;
    }
    if (at == most) return std::string(x == in ? "takes more arguments than " : "gives more results than ") + std::to_string(most);
    const bool optional = *p == '*';
    p += optional;
    int rank = 0;
    while (p[rank] && p[rank] != ' ') rank++;
    if (!(optional && x[at].size() == 0)) {
      if (x[at].rank != rank) return "tensor " + std::to_string(at) + " has another number of dimensions";
      for (int i = 0; i < rank; i++) {
        const int64_t given = x[at].dims[i];
        int64_t digit = p[i] - '0', *size = p[i] <= '9' ? &digit : sizes + (p[i] - 'A');
        if (*size < 0) *size = given;
        if (*size != given) {
          const std::string where = "tensor " + std::to_string(at) + ", dimension " + std::to_string(i);
          return where + ": " + std::to_string(given) + ", not " + std::to_string(*size);
        }
        if (p[i] == 'T') sizes['C' - 'A'] = (given + CHUNK - 1) / CHUNK;
        if (p[i] == 'D') sizes['S' - 'A'] = (given + STRIP - 1) / STRIP;
        if (p[i] == 'O') sizes['P' - 'A'] = (given + PANEL - 1) / PANEL;
      }
    }
    p += rank, at++;
  }
  sizes['Q' - 'A'] = blocks(sizes['I' - 'A'], sizes['O' - 'A']) * stretches(sizes['O' - 'A']);
  return at == outputs ? "" : "gives " + std::to_string(at) + " results, not " + std::to_string(outputs);
}
