// A stand-in for libcuda.so.1 with one device, whose cubins are the paths of libraries made of emulated.cc.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>

typedef void (*Kernel)(unsigned seed, unsigned blocks, unsigned threads, void** arguments);
static std::mutex one;
static unsigned seed_ = 0, launches_ = 0;
static int major_ = 9;
enum { INVALID_IMAGE = 200, NOT_FOUND = 500, INVALID_CONTEXT = 201 };

extern "C" {
void stand_in_seed(unsigned seed) { seed_ = seed; }
void stand_in_major(int major) { major_ = major; }
unsigned stand_in_launches() { return launches_; }

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuCtxGetDevice(int*) { return INVALID_CONTEXT; }
int cuDeviceGetAttribute(int* value, int attribute, int) { return *value = attribute == 75 ? major_ : 0, 0; }
int cuDeviceGetName(char* name, int room, int) { return std::strncpy(name, "Stand-in", room), 0; }
int cuLibraryLoadData(void** library, const void* image, void*, void*, unsigned, void*, void*, unsigned) {
  *library = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
  return *library ? 0 : INVALID_IMAGE;
}
int cuLibraryGetKernel(void** kernel, void* library, const char*) {
  *kernel = dlsym(library, "emulated_launch");
  return *kernel ? 0 : NOT_FOUND;
}
int cuLaunchKernel(void* kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned, void*, void** arguments, void**) {
  std::lock_guard<std::mutex> lock(one);
  launches_++;
  ((Kernel)kernel)(seed_, blocks, threads, arguments);
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = nullptr, 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuMemAlloc_v2(uint64_t* memory, size_t size) { return *memory = (uint64_t)std::malloc(size), 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t size) { return std::memcpy((void*)to, from, size), 0; }
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t size) { return std::memcpy(to, (void*)from, size), 0; }
int cuMemFree_v2(uint64_t memory) { return std::free((void*)memory), 0; }
int cuGetErrorString(int code, const char** text) {
  return *text = code == INVALID_IMAGE ? "device kernel image is invalid" : "an error", 0;
}
}
