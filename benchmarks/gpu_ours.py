"""This package on a GPU as a worker: VERSION SIZE KERNEL DEVICE CACHE WHAT COMMAND... The backend is KERAS_BACKEND.

KERNEL: 'native', 'ops', or a package of gpu_borrowed.py. WHAT: 'read', or rows x tokens to train with, '4x1024'. Each
COMMAND is run once before the worker is ready, so that all is compiled.
"""

import sys
import time

import numpy as np

from .checkpoints import HEAD, RANKS7, VOCABULARY, Size, checkpoint
from .worker import serve

RANKS = {
    f"{name}_low_rank_dim": RANKS7[letter] for name, letter in zip(("decay", "a", "v", "gate"), "wavg", strict=True)
}


def sizes(version, size):
    """The keyword arguments of a model of this size."""
    return {
        "model": f"rwkv{version}",
        "vocab_size": VOCABULARY,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "attention_head_size": HEAD,
        "intermediate_size": 4 * size.width if version == "7" else size.inner,
        **(RANKS if version == "7" else {}),
    }


class Training:
    """Command: `train n`, the seconds of n steps of AdamW, computed in bfloat16 with weights in float32."""

    def __init__(self, version, size, kernel, rows, length):
        import keras

        from bert4keras_rwkv.models import build_transformer_model

        rwkv = build_transformer_model(**sizes(version, size), dtype="mixed_bfloat16", kernel=kernel, pad_token_id=None)
        self.model = rwkv.training_model()
        self.model.compile(keras.optimizers.AdamW(1e-4))
        self.ids = np.random.default_rng(0).integers(1, VOCABULARY, (rows, length)).astype("int32")

    def train(self, n):
        started = time.perf_counter()
        for _ in range(n):
            self.model.train_on_batch([self.ids])
        return time.perf_counter() - started


class Reading:
    """Commands: `prefill n`, a prompt of n tokens read at once; `decode n rows`, n tokens of each row, greedily, by
    `RWKV.generate`: what n + 1 tokens cost more than one.
    """

    def __init__(self, path, kernel):
        from bert4keras_rwkv.models import build_transformer_model

        self.rwkv = build_transformer_model(checkpoint_path=str(path), dtype="bfloat16", kernel=kernel)

    def prefill(self, n):
        import keras

        ids = [[(i * 7919) % 65000 + 1 for i in range(n)]]
        started = time.perf_counter()
        logits, _ = self.rwkv.prefill(ids, chunk_len=n)
        keras.ops.convert_to_numpy(logits)
        return time.perf_counter() - started

    def decode(self, n, rows):
        return max(self.generate(n + 1, rows) - self.generate(1, rows), 1e-9)

    def generate(self, n, rows):
        prompts = [[7919 + row] for row in range(rows)]
        started = time.perf_counter()
        self.rwkv.generate(prompts, max_new_tokens=n, sampling="greedy", stop_token_ids=None)
        return time.perf_counter() - started


def make():
    version, size, kernel, device, cache, what, *commands = sys.argv[1:]
    size = Size.parse(size)
    from bert4keras_rwkv.ops import backend

    if backend.device_kind() != device:
        raise RuntimeError(f"{backend.name()} does not see the card: its arrays live on {backend.device_kind()}")
    if kernel not in ("native", "ops"):
        from . import gpu_borrowed

        gpu_borrowed.borrow(kernel, version, what != "read")
        kernel = "native"
    if what == "read":
        subject = Reading(checkpoint(size, cache, version), kernel)
    else:
        subject = Training(version, size, kernel, *map(int, what.split("x")))
    for command in commands:
        name, *numbers = command.split()
        getattr(subject, name)(*map(int, numbers))
    return subject


if __name__ == "__main__":
    serve(make)
