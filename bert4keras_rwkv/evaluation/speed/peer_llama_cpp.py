"""llama.cpp, by llama-cpp-python, as a measured program, on the processor."""

import ctypes
import time
from importlib.metadata import version

import numpy as np

from bert4keras_rwkv.evaluation.speed.serving import Peer, serve

BATCH = 512  # tokens that it reads at a time


class LlamaCpp(Peer):
    """A GGUF file."""

    def __init__(self, options):
        super().__init__(options)
        import llama_cpp

        self.library = llama_cpp
        self.facts = {"versions": {"llama-cpp-python": version("llama-cpp-python")}}

    def open(self):
        library, texts, threads = self.library, self.options["texts"], self.options["threads"]
        library.llama_backend_init()
        options = library.llama_model_default_params()
        options.n_gpu_layers = 0
        model = library.llama_model_load_from_file(self.options["path"].encode(), options)
        if not model:
            raise ValueError("llama.cpp cannot read the GGUF file of this model")
        options = library.llama_context_default_params()
        options.n_ctx, options.n_seq_max = self.options["length"] * texts, texts
        options.n_batch = options.n_ubatch = max(BATCH, texts)
        options.n_threads = options.n_threads_batch = threads
        self.context = library.llama_init_from_model(model, options)
        if not self.context:
            raise ValueError(f"llama.cpp makes no context of {texts} texts for this model")
        self.memory = library.llama_get_memory(self.context)
        self.size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self.room = library.llama_batch_init(max(BATCH, texts), 0, 1)

    def read(self, ids, state):
        if state is None:
            self.library.llama_memory_clear(self.memory, True)
            state = 0
        for i in range(0, len(ids), BATCH):
            piece = ids[i : i + BATCH]
            logits = self._run([(one, state + i + j, 0, i + j + 1 == len(ids)) for j, one in enumerate(piece)])
        return logits.copy(), state + len(ids)

    def texts(self, count, texts):
        """So many tokens of each of several texts, side by side."""
        self.library.llama_memory_clear(self.memory, True)
        most = self.options["vocabulary"] - 1
        started = time.perf_counter()
        for step in range(count):
            self._run([(1 + (100 * step + text) % most, step, text, True) for text in range(texts)])
        return time.perf_counter() - started

    def _run(self, tokens):
        """tokens: (id, position, number of the text, whether logits are wanted) each. Returns the last logits."""
        room, library = self.room, self.library
        room.n_tokens = len(tokens)
        for i, (token, position, text, wanted) in enumerate(tokens):
            room.token[i], room.pos[i], room.n_seq_id[i], room.logits[i] = token, position, 1, wanted
            room.seq_id[i][0] = text
        if library.llama_decode(self.context, room):
            raise RuntimeError("llama_decode failed")
        if not tokens[-1][3]:
            return None
        found = library.llama_get_logits_ith(self.context, len(tokens) - 1)
        return np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (self.size,))


if __name__ == "__main__":
    serve(LlamaCpp)
