"""This package as a worker: python -m benchmarks.ours CHECKPOINT DTYPE[+QUANTIZATION]. The backend is KERAS_BACKEND."""

import sys
import time

import numpy as np

from .worker import Language, serve

PROMPT = list(range(1, 9))


def make():
    path, numbers = sys.argv[1:]
    dtype, _, quantization = numbers.partition("+")
    from bert4keras_rwkv.models import build_transformer_model

    started = time.perf_counter()
    RWKV = build_transformer_model(checkpoint_path=path, dtype=dtype, quantization=quantization or None)
    load_s = time.perf_counter() - started

    class Package(Language):
        def read(self, ids, state):
            logits, state = RWKV.prefill(np.array([ids], "int32"), state)
            return np.asarray(logits)[0], state

        def stream(self, n):
            """n tokens by `RWKV.stream`, after a first one that is not counted."""
            ids = iter(RWKV.stream(PROMPT, len(PROMPT) + 1 + n, sampling="greedy", stop_token_ids=None))
            next(ids)
            started = time.perf_counter()
            for _ in ids:
                pass
            return time.perf_counter() - started

        def loop(self, n):
            """n tokens inside one compiled loop: what `RWKV.generate` of n + 1 tokens costs more than that of one."""
            return self.generate(n + 1) - self.generate(1)

        def generate(self, n):
            started = time.perf_counter()
            RWKV.generate(PROMPT, len(PROMPT) + n, sampling="greedy", stop_token_ids=None)
            return time.perf_counter() - started

        def texts(self, n, count):
            """n tokens in all, `count` texts side by side: what longer answers cost more than those of one token."""
            prompts = [[1 + text] for text in range(count)]

            def seconds(length):
                started = time.perf_counter()
                RWKV.generate(prompts, length, sampling="greedy", stop_token_ids=None)
                return time.perf_counter() - started

            if count not in self.warm:
                self.warm.add(count)
                seconds(2)
            return seconds(2 + n // count) - seconds(2)

    Package.warm = set()
    package = Package(load_s=load_s)
    for warm_up in (lambda: package.prefill(512), lambda: package.stream(2), lambda: package.generate(1)):
        warm_up()
    return package


if __name__ == "__main__":
    serve(make)
