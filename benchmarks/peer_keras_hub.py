"""Keras Hub's RWKV-7 as a worker like `peer_training`. It runs in an environment of its own, see `make bench-train`.

With the argument `native`, its recurrence is the kernel of `rwkv_ops`, which Keras Hub recommends.
"""

import sys
import time

from .peer_training import HEAD, LAYERS, VOCABULARY, WIDTH, texts
from .worker import serve


class Training:
    """Its backbone gives logits; the loss is Keras'."""

    def __init__(self):
        import keras
        import numpy as np
        from keras_hub.models import RWKV7Backbone

        self.model = RWKV7Backbone(
            vocabulary_size=VOCABULARY,
            hidden_size=WIDTH,
            head_size=HEAD,
            num_layers=LAYERS,
            intermediate_dim=4 * WIDTH,
        )
        self.model.compile(keras.optimizers.AdamW(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        ids, self.following = texts()
        self.inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        started = time.perf_counter()
        self.step()
        self.facts = {"first_step_s": time.perf_counter() - started, "parameters": self.model.count_params()}
        self.step()

    def step(self):
        started = time.perf_counter()
        self.model.train_on_batch(self.inputs, self.following)
        return time.perf_counter() - started


if __name__ == "__main__":
    if "native" not in sys.argv[1:]:
        sys.modules["rwkv_ops"] = None  # not to be imported
    serve(Training)
