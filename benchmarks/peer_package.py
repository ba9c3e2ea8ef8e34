"""This package as a worker: python -m benchmarks.peer_package CHECKPOINT DTYPE. The backend is KERAS_BACKEND."""

import sys
import time

import numpy as np

from .worker import Language, serve


def make():
    path, dtype = sys.argv[1:]
    from bert4keras_rwkv.models import build_transformer_model

    started = time.perf_counter()
    RWKV = build_transformer_model(checkpoint_path=path, dtype=dtype)
    load_s = time.perf_counter() - started

    class Package(Language):
        def read(self, ids, state):
            logits, state = RWKV.prefill(np.array([ids], "int32"), state)
            return np.asarray(logits)[0], state

        def stream(self, n):
            """n tokens by `RWKV.stream`, after a first one that is not counted."""
            texts = iter(RWKV.stream([1, 2, 3], max_length=n + 1, sampling="greedy", stop_token_ids=[]))
            next(texts)
            started = time.perf_counter()
            count = sum(1 for _ in texts)
            return {"seconds": time.perf_counter() - started, "n": count}

    return Package(load_s=load_s)


if __name__ == "__main__":
    serve(make)
