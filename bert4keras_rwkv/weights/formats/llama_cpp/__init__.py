"""The GGUF files of llama.cpp, for RWKV-6 and RWKV-7."""
