// The library of one kernel. -DSOURCE= its file in quotes, -DKERNEL= its name, and what the source wants.
#include SOURCE

extern "C" __attribute__((visibility("default"))) void emulated_launch(unsigned seed, unsigned blocks, unsigned threads, void** arguments) {
  emulated::seed(seed);
  emulated::launch<KERNEL>(blocks, (int)threads, arguments);
}
