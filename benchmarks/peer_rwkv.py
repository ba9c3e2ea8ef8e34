"""The `rwkv` package as a worker: python -m benchmarks.peer_rwkv CHECKPOINT STRATEGY THREADS."""

import os
import sys
import time

from .worker import Language, serve

CHUNK = 256  # what the package's own pipeline reads at a time


def make():
    path, strategy, threads = sys.argv[1:]
    os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = "1", "0"
    import torch
    from rwkv.model import RWKV

    torch.set_num_threads(int(threads))
    started = time.perf_counter()
    model = RWKV(model=path.removesuffix(".pth"), strategy=strategy)
    load_s = time.perf_counter() - started

    class Rwkv(Language):
        def read(self, ids, state):
            for i in range(0, len(ids), CHUNK):
                logits, state = model.forward(ids[i : i + CHUNK], state)
            return logits.float().numpy(), state

    return Rwkv(load_s=load_s)


if __name__ == "__main__":
    serve(make)
