// Tensors as XLA hands them over (FFI).
#pragma once
#include <string>

#include "shapes.h"
#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;

static bool describe(const ffi::AnyBuffer& x, Tensor& to) {
  const auto dims = x.dimensions();
  if (dims.size() > MOST_DIMS) return false;
  switch (x.element_type()) {
    case ffi::F32: to.dtype = FLOAT32; break;
    case ffi::BF16: to.dtype = BFLOAT16; break;
    case ffi::U8: to.dtype = UINT8; break;
    case ffi::S8: to.dtype = INT8; break;
    case ffi::F16: to.dtype = FLOAT16; break;
    default: return false;
  }
  to.data = x.untyped_data();
  to.rank = (int32_t)dims.size();
  for (size_t i = 0; i < dims.size(); i++) to.dims[i] = dims[i];
  return true;
}

// Calls run(arguments, results), which says what is wrong, or nothing.
template <class Run> ffi::Error with_tensors(ffi::RemainingArgs& args, ffi::RemainingRets& rets, const Run& run) {
  Tensor in[MOST_TENSORS], out[MOST_TENSORS];
  if (args.size() > MOST_TENSORS || rets.size() > MOST_TENSORS) return ffi::Error::InvalidArgument("too many tensors");
  for (size_t i = 0; i < args.size(); i++) {
    auto x = args.get<ffi::AnyBuffer>(i);
    if (!x || !describe(*x, in[i])) return ffi::Error::InvalidArgument("an argument of unknown kind");
  }
  for (size_t i = 0; i < rets.size(); i++) {
    auto x = rets.get<ffi::AnyBuffer>(i);
    if (!x || !describe(**x, out[i])) return ffi::Error::InvalidArgument("a result of unknown kind");
  }
  const std::string wrong = run(in, out);
  return wrong.empty() ? ffi::Error::Success() : ffi::Error::InvalidArgument(wrong);
}
