// Runs one kernel once, linked with emulated.cc, so that a sanitizer sees it. Arguments: seed, blocks, threads, then a word
// for each of the kernel's: f64 (64 floats, at random), b64 (as many bf16), w64 (floats below 0), u64 (flags), o64 (floats
// to be written), O64 (bf16 to be written), 0 (null), i3 (the number 3). Prints a digest of what was written.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

extern "C" void emulated_launch(unsigned seed, unsigned blocks, unsigned threads, void** arguments);

int main(int count, char** words) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::vector<char>> tensors;
  std::vector<void*> addresses(count);
  std::vector<int> numbers(count);
  std::vector<void*> arguments;
  for (int i = 4; i < count; i++) {
    const char kind = words[i][0];
    const int n = std::atoi(words[i] + 1), size = kind == 'u' ? 1 : kind == 'b' || kind == 'O' ? 2 : 4;
    if (kind == 'i') {
      numbers[i] = n;
      arguments.push_back(&numbers[i]);
      continue;
    }
    if (kind != '0') {
      std::vector<char>& to = tensors.emplace_back(n * size, (char)0xff);
      for (int e = 0; e < n && kind != 'o' && kind != 'O'; e++) {
        const float x = kind == 'w' ? -0.3f : normal(random);
        if (kind == 'u') to[e] = (char)(random() % 3);
        else std::memcpy(to.data() + e * size, (const char*)&x + 4 - size, size);
      }
      addresses[i] = to.data();
    }
    arguments.push_back(&addresses[i]);
  }
  emulated_launch((unsigned)std::atoi(words[1]), (unsigned)std::atoi(words[2]), (unsigned)std::atoi(words[3]), arguments.data());
  uint64_t digest = 14695981039346656037u;
  size_t tensor = 0;
  for (int i = 4; i < count; i++) {
    if (words[i][0] == 'i' || words[i][0] == '0') continue;
    const std::vector<char>& x = tensors[tensor++];
    if (words[i][0] == 'o' || words[i][0] == 'O')
      for (char byte : x) digest = (digest ^ (unsigned char)byte) * 1099511628211u;
  }
  std::printf("%016llx\n", (unsigned long long)digest);
}
