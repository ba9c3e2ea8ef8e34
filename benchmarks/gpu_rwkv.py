"""The `rwkv` package on a GPU as a worker: VERSION SIZE STRATEGY CACHE COMMAND... It reads one row at a time."""

import os
import sys
import time

from .checkpoints import Size, checkpoint
from .worker import Language, serve


def make():
    version, size, strategy, cache, *commands = sys.argv[1:]
    os.environ["RWKV_JIT_ON"], os.environ["RWKV_V7_ON"] = "1", "1" if version == "7" else "0"
    os.environ["RWKV_CUDA_ON"] = "1" if strategy.startswith("cuda") else "0"
    import torch
    from rwkv.model import RWKV

    path = str(checkpoint(Size.parse(size), cache, version))
    model = RWKV(model=path.removesuffix(".pth"), strategy=strategy)

    class Rwkv(Language):
        def read(self, ids, state):
            logits, state = model.forward(ids, state)
            if logits.is_cuda:
                torch.cuda.synchronize()
            return logits, state

        def decode(self, n, rows=1):
            """The next token is chosen on the card."""
            if rows != 1:
                raise ValueError("The `rwkv` package reads one row.")
            started = time.perf_counter()
            for _ in range(n):
                self.logits, self.state = model.forward([int(self.logits.argmax())], self.state)
            if self.logits.is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - started

    package = Rwkv()
    for command in commands:
        name, *numbers = command.split()
        getattr(package, name)(*map(int, numbers))
    return package


if __name__ == "__main__":
    serve(make)
