"""llama.cpp as a worker: python -m benchmarks.peer_llama_cpp GGUF THREADS. It needs llama-cpp-python alone."""

import ctypes
import sys
import time

from .worker import Language, serve

MOST_TEXTS = 32


def make():
    path, threads = sys.argv[1], int(sys.argv[2])
    import llama_cpp as library
    import numpy as np

    started = time.perf_counter()
    library.llama_backend_init()
    options = library.llama_model_default_params()
    options.n_gpu_layers = 0
    model = library.llama_model_load_from_file(path.encode(), options)
    options = library.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = 4096, 2048, 512, MOST_TEXTS
    options.n_threads = options.n_threads_batch = threads
    context = library.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError(f"llama.cpp cannot read {path}")
    memory = library.llama_get_memory(context)
    size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    room = library.llama_batch_init(2048, 0, 1)

    def run(tokens):
        """tokens: (id, position, number of the text, whether logits are wanted) each. Returns the last logits."""
        room.n_tokens = len(tokens)
        for i, (token, position, text, wanted) in enumerate(tokens):
            room.token[i], room.pos[i], room.n_seq_id[i], room.logits[i] = token, position, 1, wanted
            room.seq_id[i][0] = text
        if library.llama_decode(context, room):
            raise RuntimeError("llama_decode failed")
        found = library.llama_get_logits_ith(context, len(tokens) - 1)
        return np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (size,))

    class LlamaCpp(Language):
        def read(self, ids, state):
            if state is None:
                library.llama_memory_clear(memory, True)
                state = 0
            last = len(ids) - 1
            logits = run([(token, state + i, 0, i == last) for i, token in enumerate(ids)])
            return logits.copy(), state + len(ids)

        def texts(self, n, count):
            """n tokens in all, `count` texts side by side."""
            library.llama_memory_clear(memory, True)
            run([(1 + text, 0, text, True) for text in range(count)])
            started = time.perf_counter()
            for step in range(n // count):
                run([(100 + text + step, 1 + step, text, True) for text in range(count)])
            return time.perf_counter() - started

    return LlamaCpp(load_s=time.perf_counter() - started)


if __name__ == "__main__":
    serve(make)
