// From a name to a kernel of a GPU, for XLA (FFI) and for ctypes. No CUDA headers: the driver is looked up when it is needed.
//
// A kernel is known by a key: its name (and whether it goes by chunks), part, head size, dtypes and architecture. One that is not
// there yet is asked for:
// `missing` compiles it (ops/kernels/cuda.py). So a program that XLA kept says only "wkv7", and runs in another process.
#include <dlfcn.h>

#include <cstdio>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "geometry.h"
#include "shapes.h"

namespace {
// Where the shapes have what, for the dtypes: i the inputs, w the decay, f float32, u flags.
struct Entry {
  const char *name, *shapes, *dtypes, *part;
  bool is_matrix;
};
const Entry ENTRIES[] = {
    {"wkv4", WKV4, "iiffffu fff", "forward", false},
    {"wkv4_gradient", WKV4_GRADIENT, "iiffffufff iiffff", "gradient", false},
    {"wkv6", WKV6, "iwiifffu fff", "forward", true},
    {"wkv6_gradient", WKV6_GRADIENT, "iwiifffufff iwiifff", "gradient", true},
    {"wkv7", WKV7, "iwiiiiffu ffff", "forward", true},
    {"wkv7_gradient", WKV7_GRADIENT, "iwiiiiffuffff iwiiiiff", "gradient", true},
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

const char* dtype_name(const Tensor& x) { return x.dtype == BFLOAT16 ? "bf16" : "float"; }

// Whether each tensor has the dtype that the kernel takes it for.
std::string check_dtypes(const Entry& entry, const Tensor* in, const Tensor* out) {
  const Tensor* x = in;
  int number = 0;
  for (const char* d = entry.dtypes; *d; d++) {
    if (*d == ' ') {
      x = out, number = 0;
      continue;
    }
    const int wanted = *d == 'i' ? in[0].dtype : *d == 'w' ? in[1].dtype : *d == 'f' ? FLOAT32 : UINT8;
    if (x[number].size() && x[number].dtype != wanted) return (x == in ? "argument " : "result ") + std::to_string(number) + " has another dtype";
    number++;
  }
  return in[0].dtype == UINT8 || in[1].dtype == UINT8 ? "takes numbers" : "";
}

// Those by chunks read and write eight bytes at once.
bool is_aligned(const Tensor* x, int count) {
  for (int i = 0; i < count; i++)
    if (x[i] && x[i].dtype != UINT8 && (uintptr_t)x[i].data % 8) return false;
  return true;
}

struct Launch {
  void* kernel = nullptr;
  int64_t blocks = 0;
  int threads = 0, sizes[2] = {0, 0};
};

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
  std::string part = entry->part, key = name.substr(0, name.find('_'));
  if (entry->is_matrix) {
    const int N = (int)size('N');
    const bool is_forward = part == "forward";
    const bool chunked = in[0].dtype == BFLOAT16 && is_chunked(N, size('T'), arch) && is_aligned(in, inputs) && is_aligned(out, outputs);
    if (chunked) key += "_chunked";
    if (is_forward && size('T') == 1 && !out[2]) part = "step";
    const int slices = chunked ? 1 : part == "step" ? step_slices(N) : is_forward ? forward_slices(N) : 1;
    launch.threads = chunked ? chunked_threads(N) : part == "step" ? step_threads(N) : is_forward ? forward_threads(N) : gradient_threads(N);
    launch.blocks = size('B') * size('H') * slices;
    launch.sizes[1] = (int)size('H');
    key += " " + part + " " + std::to_string(N) + " " + dtype_name(in[0]) + " " + dtype_name(in[1]);
  } else {
    launch.threads = STRIP_THREADS;
    launch.blocks = size('B') * size('S');
    launch.sizes[1] = (int)size('D');
    key += " " + part + " 0 " + dtype_name(in[0]) + " float";
  }
  launch.sizes[0] = (int)size('T');
  if (launch.blocks > 0x7fffffff) return name + ": too many rows at once";
  wrong = find(key + " " + std::to_string(arch), launch.kernel);
  return wrong.empty() ? "" : name + ": " + wrong;
}

std::string run(const std::string& name, const Tensor* in, int inputs, const Tensor* out, int outputs, void* stream) {
  Launch launch;
  const std::string wrong = prepare(name, in, inputs, out, outputs, launch);
  if (!wrong.empty() || !launch.blocks) return wrong;
  void *addresses[2 * MOST_TENSORS], *parameters[2 * MOST_TENSORS + 2];
  int n = 0;
  for (int i = 0; i < inputs; i++) addresses[n++] = in[i] ? in[i].data : nullptr;
  for (int i = 0; i < outputs; i++) addresses[n++] = out[i] ? out[i].data : nullptr;
  for (int i = 0; i < n; i++) parameters[i] = &addresses[i];
  parameters[n] = &launch.sizes[0], parameters[n + 1] = &launch.sizes[1];
  const int bad = driver.launch(launch.kernel, (unsigned)launch.blocks, 1, 1, launch.threads, 1, 1, 0, stream, parameters, nullptr);
  return bad ? name + ": the CUDA driver says: " + said(bad) : "";
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
