// From a name to a kernel of a GPU, for XLA (FFI) and for ctypes. No CUDA headers: the driver is looked up when it is needed.
//
// A kernel is known by a key: its name (and whether it goes by chunks), part, size (of a head, or the rows that a product takes),
// dtypes and architecture. One that is not there yet is asked for: `missing` compiles it (ops/kernels/cuda.py). So a program that
// XLA kept says only "wkv7", and runs in another process.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "geometry.h"
#include "shapes.h"

namespace {
enum Kind { CHANNELS, MATRICES, FEW, MANY, ROUNDING };
// Where the shapes have what, for the dtypes: i the inputs, w the decay, f float32, u flags or bytes, b bfloat16, c int8, h float16.
struct Entry {
  const char *name, *shapes, *dtypes, *part;
  Kind kind;
  int bits = 0;  // of a packed matrix
};
const Entry ENTRIES[] = {
    {"wkv4", WKV4, "iiffffu fff", "forward", CHANNELS},
    {"wkv4_gradient", WKV4_GRADIENT, "iiffffufff iiffff", "gradient", CHANNELS},
    {"wkv6", WKV6, "iwiifffu fff", "forward", MATRICES},
    {"wkv6_gradient", WKV6_GRADIENT, "iwiifffufff iwiifff", "gradient", MATRICES},
    {"wkv7", WKV7, "iwiiiiffu ffff", "forward", MATRICES},
    {"wkv7_gradient", WKV7_GRADIENT, "iwiiiiffuffff iwiiiiff", "gradient", MATRICES},
    {"product_bfloat16", PRODUCT_BFLOAT16, "ib f", "forward", FEW, 16},
    {"product_int8", PRODUCT_INT8, "ich f", "forward", FEW, 8},
    {"product_int4", PRODUCT_INT4, "iuhh f", "forward", FEW, 4},
    {"product_many_bfloat16", PRODUCT_MANY_BFLOAT16, "ib f", "forward", MANY, 16},
    {"product_many_int8", PRODUCT_MANY_INT8, "uch f", "forward", MANY, 8},
    {"product_many_int4", PRODUCT_MANY_INT4, "uuhh f", "forward", MANY, 4},
    {"round_rows", ROUND_ROWS, "i u", "forward", ROUNDING},
};

struct Driver {
  int (*init)(unsigned);
  int (*version)(int*);
  int (*count)(int*);
  int (*current)(int*);
  int (*attribute)(int*, int, int);
  int (*name)(char*, int, int);
  int (*load)(void**, const void*, void*, void*, unsigned, void*, void*, unsigned);
  int (*find)(void**, void*, const char*);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
  int (*error)(int, const char**);
};
typedef int (*Missing)(const char* key, char* message, int room);

Driver driver;
Missing missing;
bool is_open;
std::unordered_map<std::string, void*> kernels;
std::shared_mutex guard;  // of `kernels`
std::mutex making;

std::string said(int code) {
  const char* text = nullptr;
  if (!driver.error(code, &text) && text) return text;
  return "CUDA error " + std::to_string(code);
}

template <class F> bool look_up(void* library, const char* name, F& to) { return (to = (F)dlsym(library, name)) != nullptr; }

std::string open(const char* path) {
  is_open = false;
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::string("There is no CUDA driver (") + path + ")";
  const bool known = look_up(library, "cuInit", driver.init) && look_up(library, "cuDriverGetVersion", driver.version) &&
                     look_up(library, "cuDeviceGetCount", driver.count) && look_up(library, "cuCtxGetDevice", driver.current) &&
                     look_up(library, "cuDeviceGetAttribute", driver.attribute) && look_up(library, "cuDeviceGetName", driver.name) &&
                     look_up(library, "cuLaunchKernel", driver.launch) && look_up(library, "cuGetErrorString", driver.error);
  if (!known) return std::string(path) + " is no CUDA driver";
  if (!look_up(library, "cuLibraryLoadData", driver.load) || !look_up(library, "cuLibraryGetKernel", driver.find))
    return "The CUDA driver is older than CUDA 12";
  if (const int bad = driver.init(0)) return "The CUDA driver says: " + said(bad);
  int devices = 0;
  if (driver.count(&devices) || !devices) return "The CUDA driver knows no device";
  std::unique_lock lock(guard);
  kernels.clear();
  is_open = true;
  return "";
}

// That of the context of this thread, or the first.
int here() {
  int device = 0;
  return driver.current(&device) ? 0 : device;
}

int architecture(int device) {
  int major = 0, minor = 0;
  driver.attribute(&major, 75, device);
  driver.attribute(&minor, 76, device);
  return 10 * major + minor;
}

void* known(const std::string& key) {
  std::shared_lock lock(guard);
  const auto found = kernels.find(key);
  return found == kernels.end() ? nullptr : found->second;
}

std::string find(const std::string& key, void*& kernel) {
  if ((kernel = known(key))) return "";
  std::lock_guard<std::mutex> one(making);
  if ((kernel = known(key))) return "";
  char message[512] = "";
  if (missing(key.c_str(), message, sizeof message) || !(kernel = known(key))) return *message ? message : "cannot be made";
  return "";
}

int bytes_of(const Tensor& x) { return x.dtype == FLOAT32 ? 4 : x.dtype == UINT8 ? 1 : 2; }
const char* dtype_name(const Tensor& x) { return x.dtype == BFLOAT16 ? "bf16" : "float"; }

int dtype_of(char letter, const Tensor* in) {
  switch (letter) {
    case 'i': return in[0].dtype;
    case 'w': return in[1].dtype;
    case 'f': return FLOAT32;
    case 'b': return BFLOAT16;
    case 'c': return INT8;
    case 'h': return FLOAT16;
    default: return UINT8;
  }
}

// Whether each tensor has the dtype that the kernel takes it for.
std::string check_dtypes(const Entry& entry, const Tensor* in, const Tensor* out) {
  const Tensor* x = in;
  int number = 0;
  for (const char* d = entry.dtypes; *d; d++) {
    if (*d == ' ') {
      x = out, number = 0;
      continue;
    }
    const int wanted = dtype_of(*d, in);
    if ((*d == 'i' || *d == 'w') && wanted != FLOAT32 && wanted != BFLOAT16) return "takes numbers of float32 or bfloat16";
    if (x[number].size() && x[number].dtype != wanted) return (x == in ? "argument " : "result ") + std::to_string(number) + " has another dtype";
    number++;
  }
  return "";
}

// Those by chunks read and write eight bytes at once.
bool is_aligned(const Tensor* x, int count) {
  for (int i = 0; i < count; i++)
    if (x[i] && x[i].dtype != UINT8 && (uintptr_t)x[i].data % 8) return false;
  return true;
}

constexpr int SIZES = 5;  // that a kernel is given at most, behind its tensors
struct Launch {
  void* kernel = nullptr;
  int64_t blocks = 0, rows = 0;  // of a product with more rows one starts after another, each of so many
  int threads = 0, sizes[SIZES] = {};
};

// Of a product with a packed matrix, or of rounding for one: what is to be started; or what is wrong. Kernels read 16 bytes of a
// matrix at once.
std::string prepare_product(const Entry& entry, const Tensor* in, const int64_t* given, Launch& launch) {
  const auto size = [&](char letter) { return given[letter - 'A']; };
  const bool rounds = entry.kind == ROUNDING, few = entry.kind == FEW;
  const int64_t R = size('R'), O = size('O'), I = std::max<int64_t>(size('I'), 0), V = size('V'), G = rounds || entry.bits == 16 ? 1 : size('G');
  const int64_t J = rounds ? V / ROUNDED_UNIT * FACTOR_UNIT : entry.bits == 4 ? 2 * size('K') : size('J'), units = J / FACTOR_UNIT;
  if (J % FACTOR_UNIT || I > J || G < 1 || units % G) return "takes whole units of numbers, in groups of as many";
  if (V >= 0 && V != units * ROUNDED_UNIT) return "takes rows that are rounded for as many numbers";
  if (!rounds && (uintptr_t)in[1].data % 16) return "takes a matrix that begins at a multiple of 16 bytes";
  const int64_t sizes[SIZES] = {R, I, O, J, G};
  for (int i = 0; i < SIZES; i++) launch.sizes[i] = (int)sizes[i];
  if (!rounds) launch.rows = few ? rows_at_once((int)std::min<int64_t>(R, MOST_FEW)) : std::max(TILE, rows_at_once((int)std::min<int64_t>(R, MOST_MANY)));
  launch.threads = rounds ? ROUND_THREADS : few ? FEW_THREADS : MANY_THREADS;
  launch.blocks = rounds ? divided((int)units, ROUND_UNITS) : divided((int)O, few ? FEW_WARPS * FEW_OUTPUTS : TILE);
  if (rounds || !R) launch.blocks *= R;
  return "";
}

// What is to be started for these tensors, made if it is not there yet; or what is wrong.
std::string prepare(const std::string& name, const Tensor* in, int inputs, const Tensor* out, int outputs, Launch& launch) {
  const Entry* entry = nullptr;
  for (const Entry& one : ENTRIES)
    if (name == one.name) entry = &one;
  if (!entry) return "There is no kernel " + name;
  if (!is_open) return name + ": no CUDA driver is open";
  int64_t sizes[26];
  std::string wrong = bind(entry->shapes, in, inputs, out, outputs, sizes);
  if (wrong.empty()) wrong = check_dtypes(*entry, in, out);
  if (!wrong.empty()) return name + " " + wrong;
  const auto size = [&](char letter) { return sizes[letter - 'A']; };
  const int arch = architecture(here());
  std::string part = entry->part, key = name;
  if (entry->kind == MATRICES) {
    key = name.substr(0, name.find('_'));
    const int N = (int)size('N');
    const bool is_forward = part == "forward";
    const bool chunked = in[0].dtype == BFLOAT16 && is_chunked(N, size('T'), arch) && is_aligned(in, inputs) && is_aligned(out, outputs);
    if (chunked) key += "_chunked";
    if (is_forward && size('T') == 1 && !out[2]) part = "step";
    const int slices = chunked ? 1 : part == "step" ? step_slices(N) : is_forward ? forward_slices(N) : 1;
    launch.threads = chunked ? chunked_threads(N) : part == "step" ? step_threads(N) : is_forward ? forward_threads(N) : gradient_threads(N);
    launch.blocks = size('B') * size('H') * slices;
    launch.sizes[0] = (int)size('T'), launch.sizes[1] = (int)size('H');
    key += " " + part + " " + std::to_string(N) + " " + dtype_name(in[0]) + " " + dtype_name(in[1]);
  } else if (entry->kind == CHANNELS) {
    key = name.substr(0, name.find('_'));
    launch.threads = STRIP_THREADS;
    launch.blocks = size('B') * size('S');
    launch.sizes[0] = (int)size('T'), launch.sizes[1] = (int)size('D');
    key += " " + part + " 0 " + dtype_name(in[0]) + " float";
  } else {
    wrong = prepare_product(*entry, in, sizes, launch);
    if (!wrong.empty()) return name + " " + wrong;
    key += " " + part + " " + std::to_string(launch.rows) + " " + dtype_name(in[0]) + " float";
  }
  if (launch.blocks > 0x7fffffff) return name + ": too many rows at once";
  wrong = find(key + " " + std::to_string(arch), launch.kernel);
  return wrong.empty() ? "" : name + ": " + wrong;
}

std::string run(const std::string& name, const Tensor* in, int inputs, const Tensor* out, int outputs, void* stream) {
  Launch launch;
  const std::string wrong = prepare(name, in, inputs, out, outputs, launch);
  if (!wrong.empty() || !launch.blocks) return wrong;
  void *addresses[2 * MOST_TENSORS], *parameters[2 * MOST_TENSORS + SIZES];
  int n = 0;
  for (int i = 0; i < inputs; i++) addresses[n++] = in[i] ? in[i].data : nullptr;
  for (int i = 0; i < outputs; i++) addresses[n++] = out[i] ? out[i].data : nullptr;
  for (int i = 0; i < n; i++) parameters[i] = &addresses[i];
  for (int i = 0; i < SIZES; i++) parameters[n + i] = &launch.sizes[i];
  const int64_t all = launch.rows ? launch.sizes[0] : 1, step = launch.rows ? launch.rows : 1;
  for (int64_t first = 0; first < all; first += step) {
    if (launch.rows) {
      addresses[0] = (char*)in[0].data + first * in[0].dims[1] * bytes_of(in[0]);
      addresses[n - 1] = out[0].to() + first * out[0].dims[1];
      launch.sizes[0] = (int)std::min(step, all - first);
    }
    const int bad = driver.launch(launch.kernel, (unsigned)launch.blocks, 1, 1, launch.threads, 1, 1, 0, stream, parameters, nullptr);
    if (bad) return name + ": the CUDA driver says: " + said(bad);
  }
  return "";
}

template <class F> int told(char* message, int room, const F& f) {
  std::string wrong;
  try {
    wrong = f();
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  std::snprintf(message, room, "%s", wrong.c_str());
  return !wrong.empty();
}
}  // namespace

extern "C" {
// Load the driver, or a stand-in for it. missing: makes the kernel of a key and hands it to `rwkv_cuda_add`, or says why
// not. Not 0, here and below: `message` says what is wrong.
int rwkv_cuda_open(const char* path, Missing make, char* message, int room) {
  missing = make;
  return told(message, room, [&] { return open(path); });
}

// The device of the context of this thread, or the first: its name, its architecture as in 90, and the driver's CUDA as in 13000.
int rwkv_cuda_device(char* name, int room, int* arch, int* version) {
  *arch = architecture(here());
  return driver.name(name, room, here()) || driver.version(version);
}

// Take what was compiled for a key. A kernel serves all devices of its architecture.
int rwkv_cuda_add(const char* key, const void* cubin, const char* function, char* message, int room) {
  return told(message, room, [&]() -> std::string {
    void *library = nullptr, *kernel = nullptr;
    if (const int bad = driver.load(&library, cubin, nullptr, nullptr, 0, nullptr, nullptr, 0)) return "the CUDA driver does not load it: " + said(bad);
    if (const int bad = driver.find(&kernel, library, function)) return "the CUDA driver does not find it: " + said(bad);
    std::unique_lock lock(guard);
    kernels[key] = kernel;
    return "";
  });
}

// Make what a call of `rwkv_cuda_run` with such tensors needs. Of the tensors only shapes and dtypes count.
int rwkv_cuda_prepare(const char* kernel, const Tensor* in, int inputs, const Tensor* out, int outputs, char* message, int room) {
  Launch launch;
  return told(message, room, [&] { return prepare(kernel, in, inputs, out, outputs, launch); });
}

// Start a kernel on tensors in a device's memory. It has begun when this returns, and ends in the order of the stream.
int rwkv_cuda_run(const char* kernel, const Tensor* in, int inputs, const Tensor* out, int outputs, void* stream, char* message, int room) {
  return told(message, room, [&] { return run(kernel, in, inputs, out, outputs, stream); });
}
}

#if __has_include("xla/ffi/api/ffi.h")
#include "xla.h"

static ffi::Error call(void* stream, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view kernel) {
  return with_tensors(args, rets, [&](const Tensor* in, const Tensor* out) {
    return run(std::string(kernel), in, (int)args.size(), out, (int)rets.size(), stream);
  });
}
static ffi::Error call_stand_in(ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view kernel) { return call(nullptr, args, rets, kernel); }

// Not for command buffers: a kernel may have to be loaded first, which a stream that records does not allow.
#define TENSORS RemainingArgs().RemainingRets().Attr<std::string_view>("kernel")
XLA_FFI_DEFINE_HANDLER_SYMBOL(rwkv_cuda_xla, call, ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>().TENSORS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(rwkv_cuda_xla_stand_in, call_stand_in, ffi::Ffi::Bind().TENSORS);
#endif
